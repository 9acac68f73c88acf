"""Policies with random weights, and servers of them."""

import functools

import jax
import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.data.statistics import column_statistics
from lapa_jax.inference.policies import Policy
from lapa_jax.models.pretrained import expected_variables
from lapa_jax.serve.background import background
from lapa_jax.serve.service import Options, Service

A, S, T, SIDE = 3, 4, 2, 28
TOWER = {"image_size": SIDE, "patch": 14, "dim": 8, "depth": 1, "heads": 2, "hidden": 12}
MODEL = {"name": "policies.vla_action", "siglip": {"name": "vision.siglip", **TOWER},
         "dinov2": {"name": "vision.dinov2", **TOWER},
         "llm": {"name": "llama", "vocab": 259, "dim": 16, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 24,
                 "head": "none"},
         "image_size": SIDE, "text_length": 40, "action_dim": A, "chunk_length": T,
         "head": {"name": "policies.heads.chunk", "width": 16}, "constant": (), "binary": ()}  # fmt: skip
NAMES = {"action": ["x", "y", "gripper"], "state": ["a", "b", "c", "d"]}


@functools.cache
def policy(cameras=("image",), state: bool = False, datasets=("table",), **changes) -> Policy:
    """A policy on one device; equal arguments give the same object. changes: fields of the model."""
    fields = {**MODEL, "cameras": len(cameras), "state_dim": S if state else 0, **changes}
    data = {"fields": ("image", "text", "action", *(("state",) if state else ())), "normalize": "q01_q99",
            "camera": cameras[0] if len(cameras) == 1 else tuple(cameras),
            "text_tokenizer": {"name": "bytes"}}  # fmt: skip
    config = ml_collections.ConfigDict({"name": "small", "model": fields, "data": data})
    model = config_lib.build("lapa_jax.models", config.model)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: np.array(0.5 * rng.normal(size=x.shape), x.dtype), expected_variables(model))
    about = {name: _about(k) for k, name in enumerate(datasets)}
    return Policy(model, variables, config=config, datasets=about, step=7, devices=jax.devices()[:1])


def _about(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    columns = {"action": A, "state": S}
    rows = {name: (rng.normal(size=(300, n)) * (seed + np.arange(1, n + 1))).astype(np.float32)
            for name, n in columns.items()}  # fmt: skip
    features = {name: {"shape": [n], "dtype": "float32", "names": NAMES[name]} for name, n in columns.items()}
    return {"statistics": {name: column_statistics([r]) for name, r in rows.items()}, "features": features, "fps": 5.0}


def picture(seed: int = 0, height: int = 20, width: int = 30) -> np.ndarray:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def serving(policy, options: Options | None = None, token: str | None = None, ready: bool = True):
    """A server of the policy as a context, see `background`."""
    return background(lambda: Service(policy, "runs/small", options), token, ready)
