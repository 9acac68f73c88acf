"""Evaluations of trained models: what each kind of them makes of held-out samples, measured and drawn."""

from lapa_jax.inference import kinds


def evaluation_of(trained):
    """The class of evaluation for a tokenizer or policy as `lapa_jax.load` gives it."""
    return kinds.resolve(trained.kind.evaluation)
