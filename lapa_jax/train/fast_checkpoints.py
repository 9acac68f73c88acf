"""Fast checkpoints: each process writes what its own devices hold to a disk of its node.

No network and no other host is waited for, so they can be frequent. They serve the same processes on the same mesh
after a crash that left the disks alone; all else needs the checkpoints of the run folder.
"""

import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
import safetensors.numpy

from lapa_jax.core import integrity
from lapa_jax.core.errors import naming
from lapa_jax.core.files import read_json, write_json
from lapa_jax.train.background import Background
from lapa_jax.train.checkpoint_folder import clear, move_aside, remove, writing_name
from lapa_jax.train.state import State

LOG = logging.getLogger("lapa_jax")
STATE_FILE, META_FILE = "state.safetensors", "meta.json"


class FastCheckpoints:
    """Those of one process of a run: `folder/<run>/process-<i>-of-<n>/<step>/`.

    Args:
      folder: `config.train.fast_dir`. run: the id of the run, so that another one with its name takes none of them.
      mesh: `config.mesh`, JSON values: other meshes have other pieces. keep: how many of the newest stay.
    """

    def __init__(self, folder: str | os.PathLike, run: str, mesh: Mapping, keep: int):
        process = f"process-{jax.process_index()}-of-{jax.process_count()}"
        self._folder, self._keep = pathlib.Path(folder).expanduser().absolute() / run / process, keep
        self._pieces = {"mesh": json.loads(json.dumps(mesh)), "devices": jax.device_count()}
        self._write: Background | None = None

    def whole(self) -> tuple[list[int], list[str]]:
        """The steps that can be restored here, ascending, and a line for each that is damaged and was moved aside.

        Leftovers of killed writers are removed, which no later write may come to: a run that begins anew has another
        id, and one that is complete writes no more. The run must be locked.
        """
        clear(self._folder)
        found, lines = [], []
        for path in self._numbered():
            if wrong := integrity.faults(path):
                lines.append(f"fast checkpoint {path} is damaged ({wrong[0]}): moved aside to {move_aside(path).name}")
            elif integrity.read_seal(path)["about"]["pieces"] == self._pieces:
                found.append(int(path.name))
        return sorted(found), lines

    def meta(self, step: int) -> dict:
        """The metadata that a step was saved with."""
        return read_json(self._folder / str(step) / META_FILE)

    def evaluated(self, step: int) -> bool:
        """Whether the run had evaluated this step when it was saved."""
        return integrity.read_seal(self._folder / str(step))["about"]["evaluated"]

    def save(self, state: State, step: int, meta: Mapping, evaluated: bool) -> None:
        """Copies the state to memory and writes it in the background; waits for a write that is under way."""
        start = time.perf_counter()
        self.wait()
        # Copies: the next step is given the memory of this state.
        pieces = {_name(path, shard.index): np.array(shard.data)
                  for path, leaf in _leaves(state) for shard in leaf.addressable_shards}  # fmt: skip
        waited = time.perf_counter() - start
        about = {"step": step, "evaluated": evaluated, "pieces": self._pieces}
        self._write = Background(lambda: self._finish(pieces, step, dict(meta), about, start, waited))

    def restore(self, abstract: State, step: int) -> State:
        """A step, placed as the shardings of `abstract` say, which are those it was saved with."""
        self.wait()
        with safetensors.safe_open(self._folder / str(step) / STATE_FILE, framework="numpy") as file:
            leaves = [jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index, path=path: file.get_tensor(
                      _name(path, index))) for path, leaf in _leaves(abstract)]  # fmt: skip
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def wait(self) -> None:
        """Waits for the last write, and raises what went wrong there."""
        if self._write is not None:
            write, self._write = self._write, None
            write.result()

    def abandon(self) -> None:
        """Waits for no write: one that is under way may stay unfinished."""
        self._write = None

    def _finish(self, pieces: dict, step: int, meta: dict, about: dict, start: float, waited: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        clear(self._folder)
        temporary, target = self._folder / writing_name(step), self._folder / str(step)
        temporary.mkdir()
        with naming(temporary):
            safetensors.numpy.save_file(pieces, temporary / STATE_FILE)
        write_json(temporary / META_FILE, meta)
        sizes = integrity.seal(temporary, about)["files"]
        if target.exists():  # It goes when the new one has its name: a kill here must find one or the other.
            os.rename(target, self._folder / f".{step}.removing")
        os.rename(temporary, target)
        clear(self._folder)
        LOG.info("fast checkpoint of step %d: %.1f MB in %.2f s, of which the run waited %.2f s", step,
                 sum(size for size, _ in sizes.values()) / 1e6, time.perf_counter() - start, waited)  # fmt: skip
        for path in sorted(self._numbered(), key=lambda path: int(path.name))[: -self._keep]:
            remove(path)

    def _numbered(self) -> list[pathlib.Path]:
        return [p for p in self._folder.iterdir() if p.name.isdigit()] if self._folder.is_dir() else []


def _leaves(state: State) -> list[tuple[str, jax.Array | jax.ShapeDtypeStruct]]:
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


def _name(path: str, index: tuple[slice, ...]) -> str:
    """Of a piece of an array: which rows of which dimension."""
    return path + "".join(f"|{part.start}:{part.stop}" for part in index)
