"""The comparison: every codec on every data set, and the folder that it leaves."""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import atomic_path, write_json
from lapa_jax.evaluate.codecs import report
from lapa_jax.evaluate.codecs.base import Codec
from lapa_jax.evaluate.codecs.bins import FAMILIES, Bins
from lapa_jax.evaluate.codecs.chunks import ActionChunks
from lapa_jax.evaluate.codecs.fast import Fast
from lapa_jax.evaluate.codecs.measures import measure
from lapa_jax.evaluate.codecs.spline import Spline

BIN_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
SCALES = (0.5, 1, 2, 5, 10, 20, 40)
VOCABULARIES = (256, 1024, 4096)
POINT_BINS = (4, 8, 16, 32, 64, 256)


def baselines(length: int) -> list[Codec]:
    """All of them, not yet fitted, for chunks of `length` steps."""
    codecs: list[Codec] = [Bins(kind, bins) for kind in FAMILIES for bins in BIN_COUNTS]
    codecs += [Fast(scale, vocabulary) for scale in SCALES for vocabulary in VOCABULARIES]
    half = max(1, length // 2)
    counts = sorted({n for n in (2, 4, 6, 8, half, 3 * length // 4, length) if 1 <= n <= length})
    return codecs + [Spline(n, bins, usual=(n, bins) == (half, 256)) for n in counts for bins in POINT_BINS]


JSON_FILE, TABLE_FILE = "comparison.json", "comparison.md"


def compare(
    sets: Sequence[ActionChunks],
    learned: Mapping[str, Sequence[Codec]],
    out: pathlib.Path,
    *,
    say: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Fits and measures all codecs, and writes `comparison.json`, `comparison.md` and a plot of each data set.

    Args:
      sets: the data, with different names.
      learned: {name of a data set: trained codecs for it}; see `learned.codecs_of`.
      out: the folder; what it held under these names is replaced when all is measured.
      say: is told what is being done.

    Returns:
      What was written.
    """
    results, written = [], []
    for chunks in sets:
        measured = []
        for codec in [*baselines(chunks.length), *learned.get(chunks.name, ())]:
            fitted = codec.fit(chunks.train, chunks.summary)
            measured.append({**measure(fitted, chunks), "learned": codec in learned.get(chunks.name, ())})
        results.append((chunks, measured, plot_file(chunks.name)))
        say(f"{chunks.name}: {len(measured)} codecs on {len(chunks.val)} chunks")
    # Written when all is measured, so that an interrupted run leaves the last comparison whole.
    for chunks, measured, plot in results:
        written.append(report.plot(out / plot, chunks, measured))
    write_json(out / JSON_FILE, {chunks.name: _entry(chunks, measured) for chunks, measured, _ in results})
    with atomic_path(out / TABLE_FILE) as temporary:
        temporary.write_text(report.markdown(results), encoding="utf-8")
    return [*written, out / JSON_FILE, out / TABLE_FILE]


def check_names(names: Sequence[str]) -> None:
    """Refuses names of data sets that are used twice, or whose plots would have the same name."""
    files = [plot_file(name) for name in names]
    for name, file in zip(names, files):
        if files.count(file) > 1:
            raise UserError(f"data set '{name}' is given twice, or another's name differs in signs only; rename one")


def plot_file(name: str) -> str:
    """The file name of a data set's plot."""
    return f"tokenizers_{re.sub(r'[^A-Za-z0-9]+', '_', name).strip('_').lower()}.png"


def _entry(chunks: ActionChunks, measured: Sequence[Mapping]) -> dict:
    return {
        "fingerprint": chunks.fingerprint, "chunk_length": chunks.length, "seconds_per_step": chunks.seconds,
        "dimensions": list(chunks.dimensions), "counts": dict(chunks.counts), "codecs": list(measured),
        "grippers": {str(i): levels.tolist() for i, levels in chunks.grippers.items()},
    }  # fmt: skip
