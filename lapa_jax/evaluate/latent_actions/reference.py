"""The reference of the action probe: the encoder of the tokenizer, trained on true actions until it stops improving.

It learns from the training split, stops by the episodes that the probe is fitted on and is scored on those that the
probe is scored on, so it tells how much of the action these frames show to a network like this one. Where there is no
training split with actions it learns from four fifths of the episodes that the probe is fitted on.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lapa_jax.core import config as config_lib
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data.loader import loader
from lapa_jax.evaluate.latent_actions import action_table
from lapa_jax.models.tokenizers import inverse_dynamics
from lapa_jax.models.tokenizers.laq.frame_pair_model import FramePairModel
from lapa_jax.train.evaluate import Evaluator
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.sharding import shard_batch
from lapa_jax.train.state import State, init_state
from lapa_jax.train.step import make_train_step
from lapa_jax.train.stopping import Patience
from lapa_jax.train.task import Task

CACHE_FILE = "reference.json"
BATCH, SEED = 32, 0
EVERY, PATIENCE, LOOKED_AT = 100, 5, 1024
"""Steps between looks at the episodes that are left out, how many looks in a row without a better one end it, and how
many pairs a look takes at most."""
OPTIMIZER = {"learning_rate": 1e-3, "weight_decay": 0.01, "clip_norm": 1.0}
# A rate that falls needs to know its end beforehand. Averages of the parameters serve as well.
UNTIL_IT_STOPS = {**OPTIMIZER, "schedule": "constant", "warmup_steps": 30, "ema_decay": 0.99}


class Reference(NamedTuple):
    """Attributes: r2: `action_table.scores`, {group of pairs: of each number of the action}. steps: of the one that
    was best on the episodes left out. stopped: whether it stopped improving before the steps were used up."""

    r2: dict[str, list[float]]
    steps: int
    stopped: bool


class Part:
    """Some of the pairs of a source. Attributes: indices: which. words: the same, for the fingerprint."""

    def __init__(self, source, chosen: np.ndarray, words: str):
        """chosen: bool, for each pair."""
        self.source, self.indices, self.words = source, np.flatnonzero(chosen), words

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return self.source[int(self.indices[i])]

    def batch(self, indices) -> dict[str, np.ndarray]:
        """Several pairs, stacked."""
        return self.source.batch(self.indices[np.asarray(indices)].tolist())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self.words})"


def parts(source, train=None) -> tuple:
    """What is learned from, what says when to stop, and what is scored: the training split, the episodes with an even
    number, and those with an odd one. Without a training split four fifths of the even ones are learned from, and a
    fifth says when to stop; a single one serves both ways."""
    episode = np.array([source.locate(i)[0] for i in range(len(source))])
    even, scored = episode % 2 == 0, Part(source, episode % 2 == 1, "odd")
    if train is not None:
        return train, Part(source, even, "even"), scored
    numbers = np.unique(episode[even])
    left_out = np.isin(episode, numbers[-max(1, len(numbers) // 5) :])
    learned = even & ~left_out if len(numbers) > 1 else even
    return Part(source, learned, "even, learned"), Part(source, left_out, "even, left out"), scored


def scores(source, tokenizer, *, steps: int, limit: int, cache, train=None) -> Reference:
    """Trains the reference, or reads what an earlier evaluation of the same data and settings came to.

    Args:
      source: `FramePairSource` with "net_action", with episodes of even and of odd number.
      tokenizer: the `LatentActionTokenizer` whose encoder it has.
      steps: training steps at most, of 32 pairs each.
      limit: how many pairs are scored at most.
      cache: the folder that keeps the result.
      train: pairs of the training split with "net_action", where there are any.
    """
    path = pathlib.Path(cache) / CACHE_FILE
    model = inverse_dynamics.reading(tokenizer.model, source.batch([])["net_action"].shape[-1])
    settings = [repr(model), repr(source), repr(train), steps, limit, batch_size(tokenizer.mesh), SEED, EVERY, PATIENCE,
                LOOKED_AT, UNTIL_IT_STOPS]  # fmt: skip
    given = {"tower": tokenizer.variables["params"]["tower"]} if model.without_gradient else {}
    settings.append([f"{float(jnp.sum(leaf)):.4g}" for leaf in jax.tree.leaves(given)])
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    # Training takes most of an evaluation's time, and nothing of it depends on the codes.
    cached = read_json(path) if path.is_file() else {}
    if cached.get("key") == key:
        r2 = {name: [np.nan if v is None else v for v in values] for name, values in cached["r2"].items()}
        return Reference(r2, cached["steps"], cached["stopped"])
    trained = _train_and_score(source, train, model, tokenizer.mesh, steps, limit, given)
    finite = {name: [None if np.isnan(v) else v for v in values] for name, values in trained.r2.items()}
    write_json(path, {"key": key, **trained._asdict(), "r2": finite})
    return trained


def _train_and_score(
    source, train, model: FramePairModel, mesh: Mesh, steps: int, limit: int, given: dict
) -> Reference:  # fmt: skip
    """given: parameters of the tokenizer that are not trained."""
    learned, left_out, scored = parts(source, train)
    task = Task(build_model(learned, model), {"action": 1.0})
    with jax.set_mesh(mesh):
        evaluator = Evaluator(task, mesh)

        def predict(variables, part: Part, most: int) -> dict[str, np.ndarray]:
            return evaluator(variables, loader.eval_batches(part, batch_size=batch_size(mesh), limit=most))[1]

        def error(variables) -> float:
            """In standard deviations of the training data, as in training: no number of the action outweighs others."""
            arrays = predict(variables, left_out, min(limit, LOOKED_AT))
            differences = (arrays["prediction"] - arrays["net_action"]) / np.asarray(task.model.action_std)
            return float(np.mean(np.square(differences, dtype=np.float64)))

        variables, best, stopped = _train_until_it_stops(task, learned, mesh, steps, error, given)
        arrays = predict(variables, scored, limit)
    r2 = action_table.scores(arrays["prediction"], arrays["net_action"], action_table.groups(arrays, source))
    return Reference(r2, best, stopped)


def _train_until_it_stops(
    task: Task, source, mesh: Mesh, steps: int, error: Callable[[dict], float], given: dict
) -> tuple[dict, int, bool]:  # fmt: skip
    """The variables that had the least error, after how many steps, and whether they were no longer improving."""
    patience, best = Patience("the error of the episodes left out", PATIENCE, mode="min"), None
    for step, state in _training(task, source, mesh, steps, UNTIL_IT_STOPS, SEED, "reference", given):
        if step % EVERY == 0 or step == steps:
            patience.update(step, error(state.variables))
            if best is None or patience.stale == 0:
                best = jax.tree.map(lambda x: x.copy(), state.variables)  # the next step takes the state's own
            if patience.exhausted:
                break
    return best, patience.best[1] if patience.best else steps, patience.exhausted


def build_model(source, tokenizer: FramePairModel) -> inverse_dynamics.Model:
    """The model for pairs with "net_action", of a tokenizer's encoder, with mean and standard deviation of the pairs'
    actions."""
    # Mean and standard deviation are known well enough from these.
    chosen = np.random.default_rng(SEED).permutation(len(source))[:2048]
    actions = np.stack([source[int(i)]["net_action"] for i in chosen]).astype(np.float64)
    std = np.where(actions.std(axis=0) > 1e-8, actions.std(axis=0), 1.0)
    mean = actions.mean(axis=0)
    model = inverse_dynamics.Model(tokenizer, len(mean), tuple(mean.tolist()), tuple(std.tolist()))
    config_lib.check(model)
    return model


def train(task: Task, source, mesh: Mesh, steps: int, *, words: str, seed: int = SEED) -> State:
    """Trains a task of `build_model` on the source's pairs, as many steps of `batch_size(mesh)` pairs; `words` name it
    in the progress bar."""
    settings = {**OPTIMIZER, "schedule": "cosine", "warmup_steps": steps // 20}
    # The last one alone is kept: its arrays, though donated to the next step, would pile up.
    _, state = collections.deque(_training(task, source, mesh, steps, settings, seed, words, {}), maxlen=1).pop()
    return state


def _training(
    task: Task, source, mesh: Mesh, steps: int, settings: dict, seed: int, words: str, given: dict
) -> Iterator[tuple[int, State]]:  # fmt: skip
    """The step and the state after each; the state is taken by the next.

    Args:
      given: parameters of the tokenizer that stay as they are here.
    """
    frozen = tuple((pattern, None) for pattern in task.model.without_gradient)
    settings = {**settings, "groups": (*frozen, (".*", {}))}

    def make(params):
        return make_optimizer(settings, steps, params)

    batches = loader.train_batches(source, seed=seed, batch_size=batch_size(mesh))
    batch = shard_batch(mesh, next(batches))
    # Initialised within jit, so that the parameters are made on the devices where they are used.
    state = jax.jit(lambda batch: init_state(task, make, seed, batch))(batch)
    if given:
        params = state.variables["params"]
        # Copies: the step takes the state's arrays.
        own = {**params["tokenizer"], **jax.tree.map(lambda x: x.copy(), given)}
        state = state.replace(variables={**state.variables, "params": {**params, "tokenizer": own}})
    update = jax.jit(make_train_step(task, make(state.variables["params"]), seed=seed), donate_argnums=0)
    for step in bar(range(1, steps + 1), desc=words, unit="step"):
        state, _ = update(state, batch)
        yield step, state
        batch = shard_batch(mesh, next(batches))


def batch_size(mesh: Mesh) -> int:
    """Pairs a step: 32, or the next larger number that the devices share evenly."""
    return -(-BATCH // mesh.size) * mesh.size
