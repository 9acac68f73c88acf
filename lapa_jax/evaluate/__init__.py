"""Evaluations of trained models: what each kind of them makes of held-out samples, measured and drawn."""


def evaluation_of(model):
    """The class of evaluation for a tokenizer or policy as `lapa_jax.load` gives it."""
    from lapa_jax.inference.in_context import InContextPolicy
    from lapa_jax.inference.policies import LatentPolicy, Policy
    from lapa_jax.inference.tokenizers import ActionTokenizer, FeatureTokenizer

    if isinstance(model, ActionTokenizer):
        from lapa_jax.evaluate.action_tokenizer import Evaluation
    elif isinstance(model, FeatureTokenizer):
        from lapa_jax.evaluate.feature_tokenizer import Evaluation
    elif isinstance(model, InContextPolicy):
        from lapa_jax.evaluate.in_context import Evaluation
    elif isinstance(model, LatentPolicy):
        from lapa_jax.evaluate.latent_policy import Evaluation
    elif isinstance(model, Policy):
        from lapa_jax.evaluate.policy import Evaluation
    else:
        from lapa_jax.evaluate.latent_actions.evaluation import Evaluation
    return Evaluation
