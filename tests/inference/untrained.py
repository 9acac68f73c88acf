"""A run folder as training would leave it, with random weights: nothing is compiled."""

import jax
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core.files import write_json
from lapa_jax.train.checkpoint import CONFIG_FILE, Checkpointer
from lapa_jax.train.setup import prepare
from lapa_jax.train.state import State


def write(folder, config, step: int = 1):
    """Writes a run of the config, whose checkpoint is that of `step`; returns its folder."""
    setup, rng = prepare(config), np.random.default_rng(0)

    def random(leaf):
        drawn = 0.3 * rng.normal(size=leaf.shape)
        return np.array(drawn if leaf.dtype.kind == "f" else np.abs(drawn), leaf.dtype)

    variables = jax.tree.map(random, setup.abstract.variables)
    write_json(folder / CONFIG_FILE, config_lib.to_json(setup.config))
    checkpoints = Checkpointer(folder, keep_last=1, best_metric=None)
    checkpoints.save(State(np.array(step, np.int32), variables, {"slots": np.zeros(2)}), step, setup.meta(), None)
    checkpoints.close()
    return folder
