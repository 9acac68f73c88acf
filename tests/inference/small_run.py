"""A run folder with a small random LAQ, as training would leave it, without training."""

import jax
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core.files import write_json
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.train.checkpoint import CONFIG_FILE, Checkpointer
from lapa_jax.train.state import State

SMALL = ["image_size=32", "patch_size=8", "dim=16", "heads=2", "dim_head=8", "quant_dim=8", "spatial_depth=1",
         "temporal_depth=1", "decoder_depth=1"]  # fmt: skip
DATASETS = {"table": {"statistics": {"action": {"count": 3, "mean": [0.5, -0.5]}}, "features": {}, "weight": 1.0}}


def write(run, root, data, *, steps=(1, 2), best=None, fields=()):
    """Writes checkpoints of the given steps, each with other random weights; returns the run folder.

    fields: of the model, "name=value", besides those above.
    best: the step whose checkpoint is the best; None without evaluations.
    """
    overrides = [f"--config.model.{o}" for o in (*SMALL, *fields)]
    overrides += [f"--config.data.path={data}", "--config.data.gap_frames=3"]
    config = config_lib.load(f"{root}/configs/laq.py:tiny", overrides)
    values = config_lib.to_json(config)
    write_json(run / CONFIG_FILE, values)
    shapes = expected_variables(config_lib.build("lapa_jax.models", config.model))
    checkpoints = Checkpointer(run, keep_last=len(steps), best_metric=config.train.best_metric)
    for step in steps:
        state = State(np.array(step, np.int32), _random(shapes, step), {"slots": np.zeros(2)})
        checkpoints.save(state, step, {"config": values, "datasets": DATASETS, "step": step},
                         best and {config.train.best_metric: float(step == best)})  # fmt: skip
    checkpoints.close()
    return run


def _random(shapes, seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.array(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)
