"""Checkpoints: the only file that knows orbax.

`checkpoints/<step>/{params,state,meta}`: "params" holds every collection of variables, so that inference never reads
optimizer slots; "state" the rest; "meta" is JSON with all that is needed to use them. A step exists under its name only
when it is whole, with the checksums that are compared when it is read (`checkpoint_folder`). Where a run averages its
parameters, whoever reads the checkpoint for another purpose than to go on with the run gets the averages, under the
parameters' names.
"""

import contextlib
import dataclasses
import logging
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import ml_collections
import numpy as np
from absl import logging as absl_logging
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from lapa_jax.core import config as config_lib
from lapa_jax.core import integrity, tree
from lapa_jax.core.checkpoint_step import BEST, FOLDER, split_best
from lapa_jax.core.errors import UserError, naming, of_disk
from lapa_jax.core.files import check_room, read_json, write_json
from lapa_jax.train import ema, tensorstore_json
from lapa_jax.train.background import Background
from lapa_jax.train.checkpoint_folder import (
    BEST_FILE,
    CONFIG_FILE,
    META_FILE,
    Keep,
    best_checkpoint,
    clear_temporary,
    folder_of,
    lacks,
    note_first,
    numbered,
    prune,
    ranked,
    steps,
    writing_name,
)
from lapa_jax.train.state import State

LOG = logging.getLogger("lapa_jax")
SMALL = 2**20  # bytes of files that are checked whenever a checkpoint is looked at
CHUNK = 2**26  # bytes of the pieces that imported weights are stored in: a device reads those that it holds a part of


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


class Checkpointer:
    """Writes checkpoints in the background, keeps those that are to stay, restores the newest.

    Orbax writes a step under a temporary name. When all hosts have written theirs, checksums are added and it gets its
    number: what has a number was whole.
    """

    def __init__(
        self, workdir: pathlib.Path, *, keep_last: int, best_metric: str | None, best_mode: str = "max",
        keep_best: int = 1, keep_every: int | None = None,
    ):  # fmt: skip
        """Opens (or creates) `workdir/checkpoints`; leftovers of a killed writer are removed.

        Args:
          workdir: the run folder.
          keep_last: how many of the newest checkpoints stay.
          best_metric: the validation metric whose best checkpoints stay besides; None keeps none.
          best_mode: "max" where higher values are better, or "min".
          keep_best: how many of the best stay.
          keep_every: checkpoints whose step it divides stay; None: none for that reason.
        """
        self._workdir, self._keep = workdir, Keep(keep_last, best_metric, best_mode, keep_best, keep_every)
        absl_logging.set_verbosity(absl_logging.FATAL)  # errors are raised where the write is waited for
        tensorstore_json.ask_once()
        if jax.process_index() == 0:
            (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
            clear_temporary(workdir)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("checkpoints")
        self._latest = max(steps(workdir), default=None)
        if jax.process_index() == 0 and self._latest is not None:
            note_first(workdir, self._latest)  # a kill may have come between a checkpoint and its note
        self._write: Background | None = None

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, which may still be written."""
        return self._latest

    def save(self, state: State, step: int, meta: Mapping, metrics: Mapping[str, float] | None) -> None:
        """Starts writing; waits only for a write that is still under way. An existing step stays as it is."""
        if self._latest is not None and self._latest >= step:
            return
        start = time.perf_counter()
        self.wait()
        items = {"params": state.variables, "state": _rest(state), "meta": dict(meta)}
        temporary = (self._workdir / FOLDER / writing_name(step)).absolute()
        with _context():
            response = ocp.save_checkpointables_async(temporary, items)
        self._latest = step
        waited = time.perf_counter() - start
        self._write = Background(lambda: self._finish(response, temporary, step, metrics or {}, start, waited))

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the evaluation of a step that was saved without."""
        self.wait()
        if jax.process_index() == 0:
            folder = folder_of(self._workdir, step)
            integrity.reseal(folder, {"step": step, "metrics": _finite(metrics)})
            self._write_best()

    def restore(self, abstract: State, step: int | None = None) -> State:
        """The newest checkpoint, or that of a step, placed as the shardings of `abstract` say; strict on names and
        shapes. Checksums are not compared: `recovery.recover` does that before."""
        self.wait()
        if step is not None:
            self._latest = step  # where later ones were damaged, their steps are written again
        folder = folder_of(self._workdir, self._latest)
        variables = ocp.load(folder, abstract.variables, checkpointable_name="params")
        rest = ocp.load(folder, _rest(abstract), checkpointable_name="state")
        return State(rest["step"], variables, rest["opt_state"])

    def wait(self) -> None:
        """Waits for the last write, and raises what went wrong there."""
        if self._write is not None:
            write, self._write = self._write, None
            try:
                write.result()
            except Exception as error:
                if not of_disk(error):
                    raise
                raise UserError(f"checkpoint {folder_of(self._workdir, self._latest)} could not be written "
                                f"({' '.join(str(error).split())[:200]}); the older ones are whole, and the same "
                                "command resumes from them once there is room") from None

    def abandon(self) -> None:
        """Waits for no write: one that is under way may stay unfinished, and is removed by the next run."""
        self._write = None

    def close(self) -> None:
        """Waits for the last write."""
        self.wait()

    def _finish(self, response, temporary: pathlib.Path, step: int, metrics: Mapping, start: float, waited: float):
        """Waits for all hosts; the first one adds the checksums, gives the step its name, and removes older ones."""
        response.result()  # without it orbax leaves a thread and an event loop behind, with three descriptors
        if jax.process_index() > 0:
            return
        content = integrity.seal(temporary, {"step": step, "metrics": _finite(metrics)})
        os.rename(temporary, folder_of(self._workdir, step))
        note_first(self._workdir, step)
        size = sum(size for size, _ in content["files"].values())
        LOG.info("saved step %d: %.1f MB in %.2f s, of which the run waited %.2f s", step, size / 1e6,
                 time.perf_counter() - start, waited)  # fmt: skip
        prune(self._workdir, self._keep)
        self._write_best()

    def _write_best(self) -> None:
        if self._keep.metric is not None and (best := ranked(self._workdir, self._keep.metric, self._keep.mode)):
            write_json(self._workdir / BEST_FILE, best[0]._asdict())  # for people and their scripts


def _finite(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON can say it."""
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


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
      UserError: the folder holds a run already, or the disk has no room.
      OSError: another answer of the disk, with the folder's name; the same call goes on once that is mended.
    """
    check_unused(folder)
    clear_temporary(folder)
    check_room(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
    absl_logging.set_verbosity(absl_logging.FATAL)
    context = _context()
    context.array.saving.use_compression = False  # gains little on weights
    context.array.saving.storage_options.chunk_byte_size = CHUNK
    # Orbax limits what is in flight for arrays of JAX alone, and counts by the parts that lie on one device.
    variables = jax.tree.map(_on_host, variables)
    parts = [shard.data.nbytes for leaf in jax.tree.leaves(variables) for shard in leaf.addressable_shards]
    context.memory.write_concurrent_bytes = 1 + max(parts)
    items = {"params": variables, "state": {"step": np.zeros((), np.int32)}, "meta": {"config": config, **meta}}
    with context, _repeated(forget), naming(folder):
        ocp.save_checkpointables((folder / FOLDER / "0").absolute(), items, overwrite=True)
    integrity.seal(folder / FOLDER / "0", {"step": 0})
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
      UserError: no run, no checkpoint, or not that step; a run without a best metric; a damaged file.
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
    # All that tells what the arrays are, and no more of the weights than their sizes: reading them checks the rest.
    _check_files(folder, META_FILE, "_", "params/", most=SMALL)
    return folder, read_json(folder / META_FILE), ema.averaged(_stored_shapes(folder))


def load_some(folder: pathlib.Path, abstract: Mapping) -> dict:
    """Some of the variables of the checkpoint that `describe` found, and no others.

    Args:
      folder: `checkpoints/<step>`.
      abstract: {collection: {...}} of `jax.ShapeDtypeStruct` with the shardings that the arrays get, or of arrays of
        numpy for such; their dtypes are what numbers are cast to.

    Raises:
      UserError: a damaged file.
    """
    _check_files(folder, "params/")
    averages = ema.averages_of(_stored_shapes(folder))
    stored = {averages.get(name, name): leaf for name, leaf in tree.flatten(abstract).items()}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        arrays = tree.flatten(ocp.load(folder, tree.unflatten(stored), checkpointable_name="params"))
    return tree.unflatten({name: arrays[averages.get(name, name)] for name in tree.flatten(abstract)})


def _stored_shapes(folder: pathlib.Path) -> dict:
    try:
        metadata = ocp.metadata(folder, checkpointable_name="params").metadata
    except Exception:
        _check_files(folder, "params/")  # where a file is damaged, that says which
        raise
    if metadata is None:  # orbax's way to say that it cannot be read
        _check_files(folder, "params/")
        raise UserError(f"{folder}/params cannot be read")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)


def _checkpoint_folder(path: pathlib.Path, step: int | str | None) -> pathlib.Path:
    path, step = split_best(path, step)
    if path.name.isdigit() and path.parent.name == FOLDER:
        if missing := lacks(path):
            raise UserError(f"{path} is no whole checkpoint (it lacks {missing}); steps of this run: "
                            f"{steps(path.parent.parent)}")
        return path
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"{path} is no run folder: it has no {CONFIG_FILE}; give the folder that --workdir named")
    read_json(path / CONFIG_FILE)
    whole, last = steps(path), max(numbered(path), default=-1)
    if step is None and whole and last > whole[-1]:
        folder = folder_of(path, last)
        raise UserError(f"{folder} is no whole checkpoint (it lacks {lacks(folder)}); copy it again, or name another "
                        f"step of this run: {whole}")
    if not whole:
        raise UserError(f"run {path} has no checkpoint yet; the same train command goes on with it")
    if step == BEST:
        step = best_checkpoint(path).step
    if step is not None and step not in whole:
        raise UserError(f"run {path} has no checkpoint of step {step}; it has {whole}")
    return folder_of(path, whole[-1] if step is None else step)


def _check_files(folder: pathlib.Path, *parts: str, most: float = math.inf) -> None:
    """Refuses a checkpoint with a damaged file among those whose names begin so, of the larger ones by their size
    alone. Another one is never taken for it."""
    others = [step for step in steps(folder.parents[1]) if step != int(folder.name)]
    integrity.check(folder, f"copy it again, or name another step of this run: {others}", parts, most)


def _rest(state: State) -> dict:
    return {"step": state.step, "opt_state": state.opt_state}


def _context() -> ocp.Context:
    """Orbax's defaults, but "meta" is one readable JSON file rather than a tree of strings in an array store."""
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="meta")
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context
