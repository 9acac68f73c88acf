"""The upper bound of the action probe: a supervised inverse-dynamics model with the encoder of the tokenizer.

It is trained on the true actions of the episodes that the probe is fitted on and scored on those that the probe is
scored on, so it tells how much of the action these frames show at all to a network of this size.
"""

import dataclasses
import hashlib
import json
import math
import pathlib

import jax
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data.loader import loader
from lapa_jax.evaluate.latent_actions import action_table
from lapa_jax.models.tokenizers import inverse_dynamics
from lapa_jax.train.evaluate import evaluate
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.state import State, init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.task import Task

CACHE_FILE = "supervised.json"
BATCH, SEED = 32, 0
LEARNING_RATE = 1e-3
# The sizes of configs/laq.py:small.
OTHERWISE = {"dim": 128, "quant_dim": 4, "code_seq_len": 4, "spatial_depth": 2, "temporal_depth": 1, "heads": 4,
             "dim_head": 32, "pooling": "maps"}  # fmt: skip


class _Half:
    """The pairs of a source that belong to episodes with an even or an odd number."""

    def __init__(self, source, odd: bool):
        self.source, self.odd = source, odd
        self.indices = np.array([i for i in range(len(source)) if source.locate(i)[0] % 2 == odd], np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.source[int(self.indices[i])]

    def batch(self, indices) -> dict[str, np.ndarray]:
        """Several pairs, stacked."""
        return self.source.batch(self.indices[np.asarray(indices)].tolist())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self.odd})"


def action_scores(source, tokenizer, *, steps: int, limit: int, cache) -> dict[str, list[float]]:
    """Trains the supervised model, or reads what an earlier evaluation of the same data and settings found.

    Args:
      source: `FramePairSource` with "net_action", with episodes of even and of odd number.
      tokenizer: the `LatentActionTokenizer` whose encoder's sizes are used.
      steps: training steps, of 32 pairs each.
      limit: how many pairs are scored at most.
      cache: the folder that keeps the result.

    Returns:
      R² on the episodes with an odd number, `action_table.scores`: {group of pairs: of each number of the action}.
    """
    path = pathlib.Path(cache) / CACHE_FILE
    spec = _shared_fields(tokenizer.model)
    settings = json.dumps([spec, repr(source), steps, limit, BATCH, SEED, LEARNING_RATE], sort_keys=True)
    key = hashlib.sha256(settings.encode()).hexdigest()
    # Training takes most of an evaluation's time, and nothing of it depends on the codes.
    cached = read_json(path) if path.is_file() else {}
    if cached.get("key") == key and "r2" in cached:
        return {name: [np.nan if v is None else v for v in values] for name, values in cached["r2"].items()}
    table = _train_and_score(source, spec, tokenizer.mesh, steps, limit)
    finite = {name: [None if np.isnan(v) else v for v in values] for name, values in table.items()}
    write_json(path, {"key": key, "steps": steps, "r2": finite})
    return table


def _shared_fields(model) -> dict:
    """The fields of the tokenizer that the supervised model has too: those of its encoder; of a tokenizer with another
    kind of encoder the sizes of configs/laq.py:small, with patches of a quarter of the image, which convolutions make
    where halvings lead to them."""
    model_fields = {field.name for field in dataclasses.fields(model)}
    if "patch_size" not in model_fields:
        side = model.image_size if isinstance(model.image_size, int) else math.gcd(*model.image_size)
        patch = side // 4
        stem = "conv" if patch in (2, 4, 8, 16, 32, 64) else "patches"
        return {**OTHERWISE, "image_size": model.image_size, "patch_size": patch, "stem": stem}
    # `build_model` knows the width of the actions; the tokenizer's is that of a head of its own.
    theirs = {field.name for field in dataclasses.fields(inverse_dynamics.Model)} - {"parent", "name", "action_dim"}
    return {name: getattr(model, name) for name in model_fields & theirs}


def _train_and_score(source, spec: dict, mesh, steps: int, limit: int) -> dict[str, list[float]]:
    fit, scored = _Half(source, odd=False), _Half(source, odd=True)
    task = Task(build_model(fit, spec), {"action": 1.0})
    with jax.set_mesh(mesh):
        state = train(task, fit, mesh, steps, words="supervised bound")
        batches = loader.eval_batches(scored, batch_size=batch_size(mesh), limit=limit)
        _, arrays = evaluate(task, state.variables, batches, mesh)
    return action_table.scores(arrays["prediction"], arrays["net_action"], action_table.groups(arrays, source))


def build_model(source, spec: dict) -> inverse_dynamics.Model:
    """The model for pairs with "net_action", with the sizes `spec` and the mean and standard deviation of the
    pairs' actions."""
    # Mean and standard deviation are known well enough from these.
    chosen = np.random.default_rng(SEED).permutation(len(source))[:2048]
    actions = np.stack([source[int(i)]["net_action"] for i in chosen]).astype(np.float64)
    std = np.where(actions.std(axis=0) > 1e-8, actions.std(axis=0), 1.0)
    statistics = {"action_mean": actions.mean(axis=0).tolist(), "action_std": std.tolist()}
    fields = {"name": "tokenizers.inverse_dynamics", "action_dim": actions.shape[1], **statistics, **spec}
    return config_lib.build("lapa_jax.models", fields)


def train(task: Task, source, mesh, steps: int, *, words: str, seed: int = SEED) -> State:
    """Trains a task of `build_model` on the source's pairs, as many steps of `batch_size(mesh)` pairs; `words` name it
    in the progress bar."""
    settings = {"learning_rate": LEARNING_RATE, "schedule": "cosine", "warmup_steps": steps // 20, "weight_decay": 0.01,
                "clip_norm": 1.0, "groups": ((".*", {}),)}  # fmt: skip
    batches = loader.train_batches(source, seed=seed, batch_size=batch_size(mesh))
    first = shard_batch(mesh, next(batches))

    def make(params):
        return make_optimizer(settings, steps, params)

    # Initialised within jit, so that the parameters are made on the devices where they are used.
    state = jax.jit(lambda batch: init_state(task, make, seed, batch))(first)
    step = jax.jit(make_train_step(task, make(state.variables["params"]), seed=seed), donate_argnums=0)
    for _ in bar(range(steps), desc=words, unit="step"):
        state, _ = step(state, first)
        first = shard_batch(mesh, next(batches))
    return state


def batch_size(mesh) -> int:
    """Pairs a step: 32, or the next larger number that the devices share evenly."""
    return -(-BATCH // mesh.size) * mesh.size
