"""Checkpoints: the only file that knows orbax.

`checkpoints/<step>/{params,state,meta}`: "params" holds every collection of variables, so that inference never reads
optimizer slots; "state" the rest; "meta" is JSON with all that is needed to use them. A step exists under its name only
when it is whole. Where a run averages its parameters, whoever reads the checkpoint for another purpose than to go on
with the run gets the averages, under the parameters' names.
"""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.checkpoint_step import BEST, FOLDER, split_best
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.train import ema
from lapa_jax.train.state import State

CONFIG_FILE, BEST_FILE = "config.json", "best.json"
CHUNK = 2**26  # bytes of the pieces that imported weights are stored in: a device reads those that it holds a part of
# Orbax takes any folder with a number for a name as a checkpoint. Writing ends in a rename, but removing an old one
# does not begin with one: a step that lacks any of these was being removed when its run was killed.
WHOLE = ("_CHECKPOINT_METADATA", "commit_success.txt", "meta/data.json", "params/_METADATA", "params/manifest.ocdbt",
         "state/_METADATA", "state/manifest.ocdbt")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read for inference.

    Attributes:
      config: the run's config. meta: the checkpoint's metadata. variables: all collections, numpy arrays.
      step: the training step. path: the checkpoint's folder.
    """

    config: ml_collections.ConfigDict
    meta: dict
    variables: dict
    step: int
    path: pathlib.Path


class Best(NamedTuple):
    """The best checkpoint of a run: `value` of `metric` at `step`; `mode` "max" where higher values are better."""

    metric: str
    mode: str
    value: float
    step: int


class Checkpointer:
    """Writes checkpoints in the background, keeps the last ones and the best one, restores the newest."""

    def __init__(self, workdir: pathlib.Path, *, keep_last: int, best_metric: str | None, best_mode: str = "max"):
        """Opens (or creates) `workdir/checkpoints`; leftovers of a killed writer are removed.

        Args:
          workdir: the run folder.
          keep_last: how many of the newest checkpoints stay.
          best_metric: the validation metric whose best checkpoint stays besides; None keeps none.
          best_mode: "max" where higher values are better, or "min".
        """
        self._workdir, self._metric, self._mode = workdir, best_metric, best_mode
        absl_logging.set_verbosity(absl_logging.ERROR)
        _remove_broken(workdir / FOLDER)
        policies = [ocp.training.preservation_policies.LatestN(keep_last)]
        if best_metric is not None:
            policies.append(ocp.training.preservation_policies.BestN(
                get_metric_fn=functools.partial(_score, best_metric, best_mode), n=1,
                keep_checkpoints_without_metrics=False))  # fmt: skip
        self._manager = ocp.training.Checkpointer(
            (workdir / FOLDER).absolute(),
            save_decision_policy=_Always(),
            preservation_policy=ocp.training.preservation_policies.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            context=_context(),
        )

    @property
    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return None if self._manager.latest is None else self._manager.latest.step

    def save(self, state: State, step: int, meta: Mapping, metrics: Mapping[str, float] | None) -> None:
        """Starts writing; waits only for a write that is still under way. An existing step stays as it is."""
        if self.latest_step is not None and self.latest_step >= step:
            return
        items = {"params": state.variables, "state": _rest(state), "meta": dict(meta)}
        self._manager.save_checkpointables_async(step, items, metrics=dict(metrics) if metrics else None)
        self._write_best()

    def restore(self, abstract: State) -> State:
        """The newest checkpoint, placed as the shardings of `abstract` say; strict on names and shapes."""
        folder = self._manager.latest.path
        variables = ocp.load(folder, abstract.variables, checkpointable_name="params")
        rest = ocp.load(folder, _rest(abstract), checkpointable_name="state")
        return State(rest["step"], variables, rest["opt_state"])

    def meta(self) -> dict:
        """The metadata of the newest checkpoint."""
        return _load_meta(self._manager.latest.path)

    def close(self) -> None:
        """Waits for the last write."""
        self._manager.close()
        self._write_best()

    def _write_best(self) -> None:
        """Writes `best.json`, for people and their scripts, about the checkpoints that are whole by now."""
        if self._metric is None or jax.process_index() > 0:
            return
        if (best := _best(self._workdir, self._metric, self._mode)) is not None:
            write_json(self._workdir / BEST_FILE, best._asdict())


def write_weights(
    folder: pathlib.Path, config: Mapping, variables: Mapping, meta: Mapping, forget: Callable[[], None] | None = None
) -> None:  # fmt: skip
    """Writes weights that no training made as a run folder whose checkpoint is step 0; `config.json` comes last.

    Args:
      folder: made if absent. config: the run's, JSON values with "model". meta: what else is known, JSON values.
      variables: collections of numpy arrays. Those that are mapped from a file do not come into memory as a whole: at
        most two of the largest parts are in flight, into which axis 0 is split over the host's devices.
      forget: called several times a second while it writes, to give back the memory of mapped files.

    Raises:
      UserError: the folder holds a run already.
    """
    check_unused(folder)
    absl_logging.set_verbosity(absl_logging.ERROR)
    context = _context()
    context.array.saving.use_compression = False  # gains little on weights
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    # Orbax limits what is in flight for arrays of JAX alone, and counts by the parts that lie on one device.
    variables = jax.tree.map(_on_host, variables)
    parts = [shard.data.nbytes for leaf in jax.tree.leaves(variables) for shard in leaf.addressable_shards]
    context.memory.write_concurrent_bytes = 1 + max(parts)
    items = {"params": variables, "state": {"step": np.zeros((), np.int32)}, "meta": {"config": config, **meta}}
    with context, _repeated(forget):
        ocp.save_checkpointables((folder / FOLDER / "0").absolute(), items, overwrite=True)
    write_json(folder / CONFIG_FILE, config)


def _on_host(leaf: np.ndarray) -> jax.Array:
    """An array of numpy as one of JAX, in the same memory, split over as many devices of the host as divide axis 0."""
    devices = jax.local_devices(backend="cpu")
    count = max(n for n in range(1, len(devices) + 1) if n == 1 or (leaf.ndim and len(leaf) % n == 0))
    if count == 1:
        return jax.device_put(leaf, devices[0], may_alias=True)
    place = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices[:count]), "parts"),
                                       jax.sharding.PartitionSpec("parts"))  # fmt: skip
    parts = [jax.device_put(part, device, may_alias=True) for part, device in zip(np.split(leaf, count), devices)]
    return jax.make_array_from_single_device_arrays(leaf.shape, place, parts)


@contextlib.contextmanager
def _repeated(function: Callable[[], None] | None, seconds: float = 0.2) -> Iterator[None]:
    """Calls a function again and again in a thread of its own while the `with` block runs."""
    done = threading.Event()

    def loop():
        while function is not None and not done.wait(seconds):
            function()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def check_unused(folder: pathlib.Path) -> None:
    """Raises UserError where a folder holds a run, trained or imported."""
    if (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds a run or an import already; choose another folder, or remove it first")


def load_for_inference(path: str | pathlib.Path, step: int | str | None = None) -> Checkpoint:
    """Reads config, metadata and variables of a run or of one checkpoint; never the optimizer.

    Args:
      path: a run folder or one of its `checkpoints/<step>` folders; `checkpoints/best` is the best one.
      step: which step of a run folder, or "best"; the newest whole one if None.

    Raises:
      UserError: no run, no checkpoint, or not that step; a run without a best metric.
    """
    folder, meta, shapes = describe(path, step)
    abstract = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    config = config_lib.from_json(meta["config"])
    return Checkpoint(config, meta, load_some(folder, abstract), int(folder.name), folder)


def describe(path: str | pathlib.Path, step: int | str | None = None) -> tuple[pathlib.Path, dict, dict]:
    """What a checkpoint holds, without its arrays.

    Args:
      path, step: as of `load_for_inference`.

    Returns:
      Its folder `checkpoints/<step>`, its metadata, and shapes and dtypes of the variables of all collections.

    Raises:
      UserError: as `load_for_inference`.
    """
    folder = _checkpoint_folder(pathlib.Path(path).absolute(), step)
    return folder, _load_meta(folder), ema.averaged(_stored_shapes(folder))


def load_some(folder: pathlib.Path, abstract: Mapping) -> dict:
    """Some of the variables of the checkpoint that `describe` found, and no others.

    Args:
      folder: `checkpoints/<step>`.
      abstract: {collection: {...}} of `jax.ShapeDtypeStruct` with the shardings that the arrays get, or of arrays of
        numpy for such; their dtypes are what numbers are cast to.
    """
    averages = ema.averages_of(_stored_shapes(folder))
    stored = {averages.get(name, name): leaf for name, leaf in tree.flatten(abstract).items()}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        arrays = tree.flatten(ocp.load(folder, tree.unflatten(stored), checkpointable_name="params"))
    return tree.unflatten({name: arrays[averages.get(name, name)] for name in tree.flatten(abstract)})


def _stored_shapes(folder: pathlib.Path) -> dict:
    metadata = ocp.metadata(folder, checkpointable_name="params").metadata
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)


def steps(path: str | pathlib.Path) -> list[int]:
    """The steps of a run that have a whole checkpoint, ascending."""
    folder = pathlib.Path(path) / FOLDER
    names = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return sorted(int(p.name) for p in names if _is_whole(p))


def best_checkpoint(path: str | pathlib.Path) -> Best:
    """The best whole checkpoint of a run, by `train.best_metric` and `train.best_mode` of its config.

    Raises:
      UserError: the run keeps no best one, or none of its checkpoints was evaluated.
    """
    path = pathlib.Path(path)
    train = read_json(path / CONFIG_FILE).get("train", {})
    metric, mode = train.get("best_metric"), train.get("best_mode") or "max"
    if metric is None:
        raise UserError(f"run {path} has no best checkpoint: its config.train.best_metric is None; it has the steps "
                        f"{steps(path)}")
    if (best := _best(path, metric, mode)) is None:
        raise UserError(f"run {path} has no checkpoint with a value of '{metric}', its best_metric; it has the steps "
                        f"{steps(path)}")
    return best


def latest_meta(path: str | pathlib.Path) -> dict | None:
    """The metadata of a run's newest whole checkpoint; None where there is none yet."""
    whole = steps(path)
    return _load_meta(pathlib.Path(path).absolute() / FOLDER / str(whole[-1])) if whole else None


def _checkpoint_folder(path: pathlib.Path, step: int | str | None) -> pathlib.Path:
    path, step = split_best(path, step)
    if path.name.isdigit() and path.parent.name == FOLDER:
        if not _is_whole(path):
            raise UserError(f"{path} is no whole checkpoint; steps of this run: {steps(path.parent.parent)}")
        return path
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is no run folder: it has no {CONFIG_FILE}; give the folder that --workdir named")
    read_json(path / CONFIG_FILE)
    whole = steps(path)
    if not whole:
        raise UserError(f"run {path} has no checkpoint yet; the same train command goes on with it")
    if step == BEST:
        step = best_checkpoint(path).step
    if step is not None and step not in whole:
        raise UserError(f"run {path} has no checkpoint of step {step}; it has {whole}")
    return path / FOLDER / str(whole[-1] if step is None else step)


def _is_whole(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() for name in WHOLE)


def _remove_broken(folder: pathlib.Path) -> None:
    if jax.process_index() == 0 and folder.is_dir():
        for step in folder.iterdir():
            if step.name.isdigit() and not _is_whole(step):
                shutil.rmtree(step)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("broken checkpoints")


def _rest(state: State) -> dict:
    return {"step": state.step, "opt_state": state.opt_state}


def _load_meta(folder: pathlib.Path) -> dict:
    with _context():
        return ocp.load_checkpointables(folder, {"meta": None})["meta"]


def _context() -> ocp.Context:
    """Orbax's defaults, but "meta" is one readable JSON file rather than a tree of strings in an array store."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context


def _best(run: pathlib.Path, metric: str, mode: str) -> Best | None:
    """The best of the whole checkpoints that have a finite value of the metric; of equals the earliest."""
    values = {}
    for step in steps(run):
        # Orbax keeps what it was given as metrics beside the arrays. A checkpoint between evaluations has none, and one
        # that is being removed may lose them at any time.
        with contextlib.suppress(FileNotFoundError):
            value = json.loads((run / FOLDER / str(step) / "metrics" / "metrics").read_text()).get(metric)
            if value is not None and math.isfinite(value):
                values[step] = value
    if not values:
        return None
    step = max(values, key=lambda step: (_score(metric, mode, {metric: values[step]}), -step))
    return Best(metric, mode, values[step], step)


def _score(metric: str, mode: str, metrics: Mapping[str, float]) -> float:
    """What is highest for the best checkpoint; a value that is no number is worse than any."""
    value = metrics.get(metric)
    if value is None or math.isnan(value):
        return -math.inf
    return value if mode == "max" else -value


class _Always(ocp.training.save_decision_policies.SaveDecisionPolicy):
    """The loop decides when to save."""

    def should_save(self, step: object, previous_steps: Sequence, *, context) -> bool:
        return True
