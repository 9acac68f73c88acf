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


def options_of(trained, given: Mapping, run) -> dict:
    """Those of `given` that the model's evaluation takes; a `UserError` where it does not take one that has a value."""
    taken = evaluation_of(trained).OPTIONS
    for name, value in given.items():
        if value and name not in taken:
            raise UserError(f"--{name} {value} {MISMATCHES[name].format(run=run)}")
    return {name: value for name, value in given.items() if name in taken}
