"""The golden towers as models of ours, through the command that users run."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.train.checkpoint import load_for_inference
from tools import import_weights

TOWERS = pathlib.Path(__file__).parent / "towers"


def imported(name: str, out: pathlib.Path, *options: str, **fields):
    """(model with further fields, variables, expected arrays) of `towers/<name>`."""
    kind = name.partition("_")[0]
    import_weights.main([kind, "--input", str(TOWERS / name), "--out", str(out), *options])
    spec, variables, _ = read(out)
    model = config_lib.build("lapa_jax.models", {**spec, **fields})
    return model, jax.tree.map(jnp.asarray, variables), dict(np.load(TOWERS / name / "expected.npz"))


def read(folder: pathlib.Path) -> tuple[dict, dict, dict]:
    """(spec of the model, variables, metadata) of an import."""
    saved = load_for_inference(folder)
    return saved.config.model.to_dict(), saved.variables, saved.meta
