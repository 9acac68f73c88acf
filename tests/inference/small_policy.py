"""A stage-3 policy with random weights, of the push-table's actions and states."""

import jax
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.data.statistics import column_statistics
from lapa_jax.inference.policies import Policy
from lapa_jax.models.pretrained import expected_variables

CHUNK, SIDE = 4, 28


def make(root, *, width: int = 2, state: int = 2, cameras: int = 1, fps: float | None = 10.0, size: int = 32) -> Policy:
    """A policy on one device.

    Args:
      root: the project's folder. width, state: numbers of its actions and states. fps, size: of its data.
    """
    tower = {"image_size": SIDE, "dim": 8, "heads": 2, "hidden": 16}
    changes = [f"model.{name}.{key}={value}" for name in ("siglip", "dinov2") for key, value in tower.items()]
    changes += ["model.llm.dim=16", "model.llm.depth=1", "model.llm.heads=2", "model.llm.hidden=16",
                "model.head.width=16", "model.llm.vocab=259", f"model.cameras={cameras}", f"model.action_dim={width}",
                f"model.state_dim={state}", "model.constant=()", "model.binary=()", f"data.chunk_length={CHUNK}",
                f"data.image_size={SIDE}", "data.fields=('image','text','action','state')"]  # fmt: skip
    config = config_lib.load(f"{root}/configs/vla_action.py:tiny+chunk", [f"--config.{change}" for change in changes])
    model = config_lib.build("lapa_jax.models", config.model)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.array(0.3 * rng.normal(size=x.shape), x.dtype), expected_variables(model))
    columns = {name: rng.normal(0, 0.02, (400, size)).astype(np.float32) for name, size in
               (("action", width), ("state", max(state, 1)))}  # fmt: skip
    features = {"image": {"shape": [size, size, 3]}, "action": {"shape": [width]}, "state": {"shape": [state]}}
    statistics = {name: column_statistics([rows]) for name, rows in columns.items()}
    about = {"table": {"statistics": statistics, "features": features, "fps": fps, "fingerprint": "f"}}
    return Policy(model, variables, config=config, datasets=about, step=3, devices=jax.devices()[:1])
