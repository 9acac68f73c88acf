"""Heads that turn a vision-language model's hidden states into robot actions: one file each, `model.head.name`."""
