"""The folder `checkpoints/` of a run: which steps are whole, which are the best, which stay.

A step gets its number as a name when it is whole, with checksums; leftovers of killed writers have names with a leading
dot. What lacks a file under its number was therefore damaged later, by whatever: it is moved aside, and never removed.
"""

import math
import os
import pathlib
import re
import shutil
from collections.abc import Sequence
from typing import NamedTuple

from lapa_jax.core import integrity
from lapa_jax.core.checkpoint_step import FOLDER
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, read_json_object, write_json

CONFIG_FILE, BEST_FILE, META_FILE = "config.json", "best.json", "meta/data.json"
FIRST_FILE = "first_checkpoint.json"
"""Lies in the run folder once a checkpoint is whole, where the loss of all of `checkpoints/` leaves it."""
REQUIRED = ("_CHECKPOINT_METADATA", "commit_success.txt", META_FILE, "params/_METADATA", "params/manifest.ocdbt",
            "state/_METADATA", "state/manifest.ocdbt")  # fmt: skip
"""Files without which no checkpoint can be read, besides its checksums."""
DAMAGED = "damaged"
_TEMPORARY = re.compile(r"\.\d+\.(writing|removing).*")


class Best(NamedTuple):
    """The best checkpoint of a run: `value` of `metric` at `step`; `mode` "max" where higher values are better."""

    metric: str
    mode: str
    value: float
    step: int


class Keep(NamedTuple):
    """Which checkpoints stay: the newest `last`, the `best` by a metric, and those of every so many steps."""

    last: int
    metric: str | None = None
    mode: str = "max"
    best: int = 1
    every: int | None = None


def folder_of(run: str | os.PathLike, step: int) -> pathlib.Path:
    """`checkpoints/<step>` of a run."""
    return pathlib.Path(run).absolute() / FOLDER / str(step)


def steps(run: str | os.PathLike) -> list[int]:
    """The steps of a run that have a whole checkpoint, ascending; checksums are not compared."""
    return sorted(int(path.name) for path in _numbered(run) if not lacks(path))


def numbered(run: str | os.PathLike) -> list[int]:
    """The steps of a run that have a folder, ascending, whole or not."""
    return sorted(int(path.name) for path in _numbered(run))


def lacks(folder: pathlib.Path) -> str:
    """The first required file that a checkpoint lacks; "" where it has all."""
    names = (*REQUIRED, integrity.MANIFEST) if integrity.enabled() else REQUIRED
    return next((name for name in names if not (folder / name).is_file()), "")


def damaged(run: str | os.PathLike) -> list[str]:
    """Names of what lies among a run's checkpoints and is none: incomplete ones, and what was moved aside."""
    aside = (pathlib.Path(run) / FOLDER).glob(f"*.{DAMAGED}*")
    return sorted([path.name for path in _numbered(run) if lacks(path)] + [path.name for path in aside])


def move_aside(folder: pathlib.Path) -> pathlib.Path:
    """Renames a checkpoint to "<step>.damaged", or "<step>.damaged-2" where there is one already; returns the name."""
    target, number = folder.with_name(f"{folder.name}.{DAMAGED}"), 1
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}.{DAMAGED}-{number}")
    os.rename(folder, target)
    return target


def move_incomplete_aside(run: str | os.PathLike) -> list[str]:
    """Moves steps aside that lack files; returns a line about each."""
    lines = []
    for path in sorted(_numbered(run)):
        if missing := lacks(path):
            lines.append(f"checkpoint {path} lacks {missing}: moved aside to {move_aside(path).name}")
    return lines


def writing_name(step: int) -> str:
    """The name of a checkpoint before it is whole."""
    return f".{step}.writing"


def clear_temporary(run: str | os.PathLike) -> None:
    """Removes what killed writers and removals have left. The run must be locked: it may be in use otherwise."""
    clear(pathlib.Path(run) / FOLDER)


def clear(folder: pathlib.Path) -> None:
    """Removes what killed writers and removals have left in a folder of checkpoints, and nothing else."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path)


def remove(checkpoint: pathlib.Path) -> None:
    """Removes a checkpoint. It loses its name first: no half of one is ever left under it."""
    os.rename(checkpoint, removed := checkpoint.with_name(f".{checkpoint.name}.removing"))
    shutil.rmtree(removed)


def prune(run: str | os.PathLike, keep: Keep) -> None:
    """Removes the checkpoints that need not stay."""
    whole = steps(run)
    stay = set(whole[-keep.last :]) if keep.last else set()
    stay |= {best.step for best in ranked(run, keep.metric, keep.mode)[: keep.best]} if keep.metric else set()
    stay |= {step for step in whole if keep.every and step % keep.every == 0}
    for step in whole:
        if step not in stay:
            remove(folder_of(run, step))


def ranked(run: str | os.PathLike, metric: str, mode: str) -> list[Best]:
    """The whole checkpoints of a run with a finite value of a metric, the best first; of equals the earliest."""
    found = []
    for step in steps(run):
        value = metrics_of(folder_of(run, step)).get(metric)
        if value is not None and math.isfinite(value):
            found.append(Best(metric, mode, value, step))
    return sorted(found, key=lambda best: (-best.value if mode == "max" else best.value, best.step))


def metrics_of(folder: pathlib.Path) -> dict[str, float | None]:
    """The evaluation that a checkpoint was saved with; empty where there was none, or it was removed just now."""
    try:
        return integrity.read_seal(folder)["about"].get("metrics") or {}
    except UserError:
        return {}


def best_checkpoint(run: str | os.PathLike) -> Best:
    """The best whole checkpoint of a run, by `train.best_metric` and `train.best_mode` of its config.

    Raises:
      UserError: the run keeps no best one, or none of its checkpoints was evaluated.
    """
    run = pathlib.Path(run)
    train = read_json(run / CONFIG_FILE).get("train", {})
    metric, mode = train.get("best_metric"), train.get("best_mode") or "max"
    if metric is None:
        raise UserError(f"run {run} has no best checkpoint: its config.train.best_metric is None; it has the steps "
                        f"{steps(run)}")
    if not (best := ranked(run, metric, mode)):
        raise UserError(f"run {run} has no checkpoint with a value of '{metric}', its best_metric; it has the steps "
                        f"{steps(run)}")
    return best[0]


def note_first(run: pathlib.Path, step: int) -> None:
    """Notes that a run has reached a checkpoint, if that is not noted yet."""
    if not (run / FIRST_FILE).exists():
        write_json(run / FIRST_FILE, {"step": step})


def check_not_lost(run: pathlib.Path, logged: Sequence[int], saved: Sequence[int], moved: Sequence[str] = ()) -> None:
    """Refuses to begin anew where a run has made checkpoints and none is whole any more.

    A run that was killed before its first checkpoint has lost nothing and may begin again.

    Args:
      logged: steps that its metrics know of. saved: steps that its log says were saved. moved: a line about each
        checkpoint that was just moved aside.

    Raises:
      UserError: what was found, and what to do.
    """
    if steps(run):
        return
    evidence = [*moved[:3], *([f"{len(moved) - 3} more were moved aside"] if len(moved) > 3 else [])]
    evidence += [f"{FOLDER}/ holds {', '.join(names[:5])}"] if (names := damaged(run)) else []
    evidence += [f"log.txt says that step {max(saved)} was saved"] if saved else []
    evidence += [f"{FIRST_FILE} says that one was saved"] if (run / FIRST_FILE).exists() else []
    # Of runs without that file. The second checkpoint is begun when the first one is whole; the metrics of its step are
    # written before that.
    first = _save_every(run)
    if logged and isinstance(first, int) and max(logged) > 2 * first:
        evidence.append(f"metrics.jsonl goes up to step {max(logged)}, with a checkpoint every {first}")
    if evidence:
        renamed = f"; <step>.{DAMAGED} gets its number as its name again" if names else ""
        raise UserError(f"{run} has no whole checkpoint left: {'; '.join(evidence)}. Nothing {'else ' if moved else ''}"
                        f"was changed. Copy the missing or damaged files of {FOLDER}/<step> back (all of them: rsync "
                        f"-a{renamed}), or begin anew in another --workdir")


def _save_every(run: pathlib.Path):
    try:
        return read_json_object(run / CONFIG_FILE)["train"]["save_every"]
    except (UserError, KeyError, TypeError):
        return None


def _numbered(run: str | os.PathLike) -> list[pathlib.Path]:
    folder = pathlib.Path(run) / FOLDER
    return [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
