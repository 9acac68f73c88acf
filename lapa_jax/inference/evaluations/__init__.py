"""Evaluations of trained models: what each kind of them makes of held-out samples, measured and drawn."""


def evaluation_of(model):
    """The class of evaluation for a tokenizer or policy as `lapa_jax.load` gives it."""
    from lapa_jax.inference.action_tokenizer import ActionTokenizer
    from lapa_jax.inference.feature_tokenizer import FeatureTokenizer
    from lapa_jax.inference.in_context import InContextPolicy
    from lapa_jax.inference.latent_policy import LatentPolicy
    from lapa_jax.inference.policy import Policy

    if isinstance(model, ActionTokenizer):
        from lapa_jax.inference.evaluations.actions import Evaluation
    elif isinstance(model, FeatureTokenizer):
        from lapa_jax.inference.evaluations.features import Evaluation
    elif isinstance(model, InContextPolicy):
        from lapa_jax.inference.evaluations.in_context import Evaluation
    elif isinstance(model, LatentPolicy):
        from lapa_jax.inference.evaluations.latent_policy import Evaluation
    elif isinstance(model, Policy):
        from lapa_jax.inference.evaluations.policy import Evaluation
    else:
        from lapa_jax.inference.evaluations.latent_actions import Evaluation
    return Evaluation
