"""Evaluations of trained models: what each kind of them makes of held-out samples, measured and drawn."""

from collections.abc import Mapping

from lapa_jax.core.errors import UserError
from lapa_jax.inference import kinds

MISMATCHES = {
    "dataset": "says how numbers are scaled, and {run} takes images; leave it out",
    "labels": "are latent actions, which {run} does not predict; leave it out",
    "tokenizer": "decodes latent actions, which {run} does not predict; leave it out",
    "projection": "draws codebooks of features, which {run} has not; leave it out",
}
"""Options that only some evaluations take, and what is said where they do not."""


def evaluation_of(trained):
    """The class of evaluation for a tokenizer or policy as `lapa_jax.load` gives it."""
    return kinds.resolve(trained.kind.evaluation)


def drawing_of(task, mesh):
    """What shows the model of a `train.task.Task` at evaluations, see `train.images`; None of one without a kind."""
    kind = kinds.kind_of(task.model)
    return None if kind is None else kinds.resolve(kind.training_image)(task.model, mesh)


def options_of(kind: kinds.Kind, given: Mapping, run) -> dict:
    """Those of `given` that the kind's evaluation takes; a `UserError` where it does not take one that has a value."""
    for name, value in given.items():
        if value and name not in kind.options:
            raise UserError(f"--{name} {value} {MISMATCHES[name].format(run=run)}")
    return {name: value for name, value in given.items() if name in kind.options}
