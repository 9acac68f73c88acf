"""Evaluations of trained tokenizers: what the kind of tokenizer makes of held-out samples, measured and drawn."""


def evaluation_of(tokenizer):
    """The class of evaluation for a tokenizer as `lapa_jax.load` gives it."""
    from lapa_jax.inference.action_tokenizer import ActionTokenizer
    from lapa_jax.inference.feature_tokenizer import FeatureTokenizer

    if isinstance(tokenizer, ActionTokenizer):
        from lapa_jax.inference.evaluations.actions import Evaluation
    elif isinstance(tokenizer, FeatureTokenizer):
        from lapa_jax.inference.evaluations.features import Evaluation
    else:
        from lapa_jax.inference.evaluations.latent_actions import Evaluation
    return Evaluation
