"""Damages copies of small sources at random and sorts what the readers make of them."""

import hashlib
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import formats, image_files
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.pool import worker_pool
from lapa_jax.data.formats.base import COLUMNS, Episode

BATCH, PATIENCE = 100, 120.0


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes with one kind of damage: flipped bits, a cut end, a block of zeros, or bytes lost, doubled or put in."""
    data = bytearray(data)
    start = int(rng.integers(len(data)))
    length = int(min(rng.geometric(0.05), len(data) - start))
    kind = rng.integers(6)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 5)):
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start : start + length] = bytes(length)
    elif kind == 3:
        del data[start : start + length]
    elif kind == 4:
        data[start:start] = data[start : start + length]
    else:
        data[start:start] = rng.bytes(length)
    return bytes(data)


def read(name: str, source: pathlib.Path) -> tuple[dict[str, str], Counter]:
    """{episode: digest of all that is in it, or "refused"}, and what the listing counts as missing or left out.

    Raises:
      UserError: the whole source is refused.
    """
    options = Options(format=name, captions=str(source / "episodes.jsonl") if name == "video" else None).for_readers()
    module = formats.open_format(name)
    listing = module.find(source, options, None)
    found = {}
    for item in listing.items:
        try:
            found[item.name] = _digest(module.standardize(source, item, options))
        except ValueError as error:
            assert str(error).strip(), "an error says what is wrong"
            found[item.name] = "refused"
    return found, Counter(missing=len(listing.missing)) + Counter(listing.left_out)


def _digest(episode: Episode) -> str:
    digest = hashlib.sha256(repr((episode.text, episode.task, episode.fps)).encode())
    for name, frames in sorted(episode.cameras.items()):
        for frame in frames:
            digest.update(name.encode() + (b"-" if frame is None else image_files.open_frame(frame).tobytes()))
    for name, rows in sorted(episode.columns.items()):
        rows = np.asarray(rows).astype(COLUMNS[name])
        if not np.isfinite(rows).all():
            raise ValueError(f"'{name}' holds numbers that are not finite")  # the converter refuses them, too
        digest.update(f"{name}{rows.shape}".encode() + rows.tobytes())
    return digest.hexdigest()


def _batch(name: str, whole: str, seeds: range, log: str) -> Counter:
    """Reads the source with one file damaged, once a seed; runs in a process of its own, which damage may crash."""
    expected, counted = read(name, pathlib.Path(whole))
    files = sorted(p for p in pathlib.Path(whole).rglob("*") if p.is_file() and p.stat().st_size)
    outcomes: Counter = Counter()
    for seed in seeds:
        pathlib.Path(log).write_text(str(seed))
        rng = np.random.default_rng(seed)
        path = files[rng.integers(len(files))]
        good = path.read_bytes()
        path.write_bytes(damage(good, rng))
        try:
            outcomes[_outcome(name, pathlib.Path(whole), expected, counted)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, {path.name}: {type(error).__name__}: {error}") from error
        finally:
            path.write_bytes(good)
    return outcomes


def _outcome(name: str, source: pathlib.Path, expected: dict, counted: Counter) -> str:
    try:
        found, now = read(name, source)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).split("{")[0]
        return "refused"
    if found == expected:
        return "same"
    if any(value not in ("refused", expected.get(key)) for key, value in found.items()):
        return "different"
    lost = set(expected) - set(found)
    if lost and now == counted:
        return "lost"
    return "refused" if "refused" in found.values() or not lost else "counted"


def outcomes(name: str, make, folder: pathlib.Path, mutations: int) -> Counter:
    """How `mutations` damaged copies of a format's small source are read.

    "refused": an error, for the source or an episode. "counted": an episode is missing and counted. "same": the damage
    hit nothing that is read. "different": an episode with other content. "lost": an episode is gone without a word.
    "died", "hung": what the converter's processes turn into an error.
    """
    sums: Counter = Counter()
    seeds = iter([range(s, min(s + BATCH, mutations)) for s in range(0, mutations, BATCH)])
    for batch in seeds:
        while len(batch):
            whole, log = folder / f"source{batch.start}", folder / "log"
            whole.mkdir()
            make(whole)
            with worker_pool(1) as pool:
                future = pool.submit(_batch, name, str(whole), batch, str(log))
                try:
                    sums += future.result(PATIENCE)
                    batch = batch[len(batch) :]
                except (TimeoutError, pool_error()) as error:
                    for process in list(pool._processes.values()):
                        process.kill()
                    sums["hung" if isinstance(error, TimeoutError) else "died"] += 1
                    batch = range(int(log.read_text()) + 1, batch.stop)
            shutil.rmtree(whole)
    return sums


def pool_error() -> type[Exception]:
    """What a dead worker raises."""
    from concurrent.futures.process import BrokenProcessPool

    return BrokenProcessPool


def kinds() -> Iterator[str]:
    """The formats."""
    yield from formats.NAMES
