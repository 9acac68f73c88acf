"""Tokenizers: models that turn frames, actions or features into discrete codes."""
