"""Each file of a run damaged in five ways: it is named, moved aside, gone around or refused, and never read as it is.

A run of four steps is copied, one of its files is damaged, and two things are asked of it, within this process: its
weights, which are the right ones or refused, and to train on to step 6, which ends in the bits of a run that nobody
touched or is refused before anything is changed. Of an exported folder only its weights are asked for.
"""

import contextlib
import functools
import logging
import os
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator

from lapa_jax.core.errors import UserError
from lapa_jax.core.integrity import MANIFEST
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop, compare_runs

DERIVED = ("best.json", "env.json", "log.txt")
"""Records that nothing is read from when a run goes on."""
STEPS = 6


def truncated(path: pathlib.Path, other: pathlib.Path, rng: random.Random) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flipped(path: pathlib.Path, other: pathlib.Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content or b"\0")


def deleted(path: pathlib.Path, other: pathlib.Path, rng: random.Random) -> None:
    path.unlink()


def emptied(path: pathlib.Path, other: pathlib.Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def replaced(path: pathlib.Path, other: pathlib.Path, rng: random.Random) -> None:
    shutil.copyfile(other, path)


DAMAGES = (truncated, flipped, deleted, emptied, replaced)


def damage_runs(damage: Callable, workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Damages `count` files of copies of the run, different ones as long as there are."""
    whole, reference = workshop.run, _reference(workshop)
    names = _files(whole)
    twins = dict(zip(names, _files(workshop.twin), strict=True))
    for number in range(count):
        if number % len(names) == 0:
            order = rng.sample(names, len(names))
        name = order[number % len(names)]
        run = workshop.new("damage")
        shutil.copytree(whole, run)
        before = (run / name).read_bytes()
        damage(run / name, workshop.twin / twins[name], rng)
        if (run / name).exists() and (run / name).read_bytes() == before:
            tally.ended("is as it was: both runs have the same file there, or it is empty")
            continue
        how, wrong = _judge(workshop, run, name, whole, reference)
        tally.ended(how, [f"{name}: {what}" for what in wrong])
        workshop.log(f"{name} {damage.__name__}: {how}{' LOST ' if wrong else ''}{'; '.join(wrong)}")
        shutil.rmtree(run.parent)


def damage_exports(workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Damages the files of exported folders, each in each way."""
    import lapa_jax

    whole, _ = workshop.whole("export")
    other = workshop.new("export")
    process = workshop.start("export", other, "--dtype", "bfloat16")
    if process.wait():
        raise RuntimeError(process.last_words())
    names = sorted(path.name for path in whole.iterdir())
    for number in range(count):
        name, damage = names[number % len(names)], DAMAGES[number // len(names) % len(DAMAGES)]
        folder = workshop.new("damage")
        shutil.copytree(whole, folder)
        damage(folder / name, other / name, rng)
        how, wrong = _weights(lapa_jax.load, folder, name, whole)
        tally.ended(how, [f"{name} {damage.__name__}: {what}" for what in wrong])
        shutil.rmtree(folder.parent)


def _files(run: pathlib.Path) -> list[str]:
    """The files of a run and of its newest checkpoint, sorted as their roles are: some have random names."""
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [path for path in run.iterdir() if path.is_file()]
    files += sorted(newest.rglob("*"), key=lambda path: (path.parent.as_posix(), path.name))
    return [path.relative_to(run).as_posix() for path in files if path.is_file()]


def _reference(workshop: Workshop) -> pathlib.Path:
    """A copy of the run that went on to step 6 with nothing in its way."""
    run = workshop.folder / "reference"
    if not run.exists():
        shutil.copytree(workshop.run, run)
    workshop.resume(run, STEPS)
    return run


def _judge(
    workshop: Workshop, run: pathlib.Path, name: str, whole: pathlib.Path, reference: pathlib.Path
) -> tuple[str, list[str]]:  # fmt: skip
    """How a damaged run ends, and what is wrong with that."""
    from lapa_jax.train.checkpoint import load_for_inference

    _, wrong = _weights(load_for_inference, run, name, whole)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    try:
        with _logged() as lines:
            workshop.resume(run, STEPS)
    except UserError as error:
        wrong += [] if _names(str(error), run, name) else [f"refused without its name: {error}"]
        changed = [str(path.relative_to(run)) for path, content in kept.items()
                   if not path.exists() or path.read_bytes() != content]  # fmt: skip
        return "refused, nothing changed", wrong + [f"{path} was changed" for path in changed if path != "log.txt"]
    except Exception as error:
        return "traceback", [f"{type(error).__name__}: {error}"]
    said = "\n".join(lines)
    if "resuming from step" not in said:
        wrong.append("it began anew in silence")
    aside = [path.name for path in (run / "checkpoints").iterdir() if ".damaged" in path.name]
    differs = [line for line in compare_runs(reference, run) if "damaged is left behind" not in line]
    if name == "metrics.jsonl" and name in said:
        # What is lost of it stays lost, and is said; the run is the same.
        differs = [line for line in differs if not line.startswith("metrics.jsonl: ")]
    wrong += differs
    if name.startswith("checkpoints/"):
        inner = name.split("/", 2)[2]
        named = inner in said or (inner == MANIFEST and "is damaged" in said)  # by what it lists wrongly
        if not aside or not named:
            wrong.append(f"not named or not moved aside ({aside})")
        return "named, moved aside, and the next older one taken", wrong
    if name in DERIVED:
        return "written anew; it only records", wrong
    return "named in the log" if name in said else "the rest of it is as it was", wrong


def _weights(
    load: Callable, folder: pathlib.Path, name: str, whole: pathlib.Path
) -> tuple[str, list[str]]:  # fmt: skip
    """What asking for the weights gives: the right ones, or a refusal that names the file or its folder."""
    import jax
    import numpy as np

    try:
        with _logged():
            loaded = load(folder).variables
    except UserError as error:
        return "refused", [] if _names(str(error), folder, name) else [f"refused without its name: {error}"]
    except Exception as error:
        return "traceback", [f"loading: {type(error).__name__}: {error}"]
    right = load(whole).variables
    same = jax.tree.structure(right) == jax.tree.structure(loaded) and jax.tree.all(
        jax.tree.map(np.array_equal, right, loaded))  # fmt: skip
    return "the right weights", [] if same else ["loads as other weights in silence"]


def _names(error: str, folder: pathlib.Path, name: str) -> bool:
    return pathlib.PurePath(name).name in error or str(folder) in error


@contextlib.contextmanager
def _logged() -> Iterator[list[str]]:
    """The lines of the log, as they come."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("lapa_jax")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


KINDS = {each.__name__: Kind(functools.partial(damage_runs, each), 24, 24 * 8) for each in DAMAGES}
KINDS["exports"] = Kind(damage_exports, 10, 15)
