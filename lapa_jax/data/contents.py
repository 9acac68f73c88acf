"""A folder of shards described in Markdown: origin, features, splits, instructions, conversion report, statistics."""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.escape import one_line, table
from lapa_jax.core.files import read_json
from lapa_jax.data.far_values import choices, far_values
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards, read_dataset
from lapa_jax.data.statistics import PER_DIMENSION, kinds

EXAMPLES, DIMENSIONS = 8, 64
REPORT = "report.json"
_QUARTILES = (0, 25, 50, 75, 100)


def choose_split(folder, split: str | None = None) -> str:
    """The split to look at: `split`, else "train", else the first that has steps."""
    if split or PairShards.is_one(folder):
        return split or "train"
    full = [name for name, entry in sorted(read_dataset(folder)["splits"].items()) if entry["steps"]]
    return "train" if "train" in full or not full else full[0]


def describe(shards: StepShards) -> str:
    """Step shards, labelled ones and label sidecars too.

    Args:
      shards: the opened split; lengths and texts are of this split, all else of the whole folder.

    Returns:
      Markdown.
    """
    dataset = read_dataset(shards.folder)
    parts = [
        _head(shards, dataset),
        "## Features\n\n" + _features(dataset["features"]),
        "## Splits\n\n" + _splits(dataset["splits"]),
        f"## Episodes of {shards.split}\n\n" + _lengths(shards) + "\n\n" + _texts(shards),
        "## What the conversion reports\n\n" + _report(shards.folder),
        "## Statistics\n\n" + _statistics(shards),
    ]
    return "\n\n".join(parts) + "\n"


def describe_pairs(pairs: PairShards) -> str:
    """Ready-made pairs, as Markdown; the shape is that of the first pair."""
    height, width, channels = pairs[0]["frames"].shape[1:]
    features = {name: {"shape": [height, width, channels], "codec": "jpeg"} for name in ("t.jpg", "t1.jpg")}
    rows = [
        ("folder", str(pairs.folder)),
        ("format", "ready-made frame pairs (.t.jpg, .t1.jpg), without dataset.json"),
        ("fingerprint", pairs.meta()["data_fingerprint"]),
        ("split", pairs.split),
        ("pairs", f"{len(pairs)}"),
    ]
    head = f"# {one_line(pairs.folder.resolve().name)}\n\n" + _table(("", ""), rows)
    return head + "\n\n## Features\n\n" + _features(features) + "\n"


def _head(shards: StepShards, dataset: Mapping) -> str:
    rates = shards.episode_fps()
    finite = rates[np.isfinite(rates)]
    low_high = sorted({f"{finite.min():g}", f"{finite.max():g}"}, key=float) if len(finite) else ["none"]
    fps = " to ".join(low_high)
    source = dict(dataset["source"])
    rows = [("folder", str(shards.folder)), ("format", f"{dataset['format']}, version {dataset['version']}")]
    rows += [("fingerprint", shards.fingerprint), ("frames per second", fps)]
    labels = source.pop("labels", {})
    rows += [(f"labels: {key}", _value(value)) for key, value in sorted(labels.items())]
    options = source.pop("options", {})
    rows += [(f"source: {key}", _value(value)) for key, value in sorted(source.items())]
    used_options = ", ".join(f"{key} {_value(value)}" for key, value in sorted(options.items()) if value is not None)
    rows += [("converted with", used_options)] if used_options else []
    return f"# {one_line(shards.folder.resolve().name)}\n\n" + _table(("", ""), rows)


def _features(features: Mapping) -> str:
    rows = []
    for name, feature in sorted(features.items()):
        shape = " x ".join(map(str, feature.get("shape", ["varies"] if feature.get("codec") == "jpeg" else [])))
        names = list(feature.get("names") or ())
        shown = ", ".join(names[:DIMENSIONS]) + (f", ... ({len(names)})" if len(names) > DIMENSIONS else "")
        rows.append((name, shape, feature.get("codec") or feature.get("dtype", ""), shown))
    return _table(("feature", "shape", "stored as", "dimensions"), rows)


def _splits(splits: Mapping) -> str:
    rows = []
    for name, split in sorted(splits.items()):
        size = sum(shard["bytes"] for shard in split["shards"]) / 2**20
        rows.append((name, split["episodes"], split["steps"], len(split["shards"]), f"{size:.1f}"))
    return _table(("split", "episodes", "steps", "shards", "MiB"), rows)


def _lengths(shards: StepShards) -> str:
    lengths = np.array([episode.length for episode in shards.episodes])
    seconds = lengths / shards.episode_fps()
    header = ("length", "shortest", "first quartile", "median", "third quartile", "longest", "mean")
    rows = [("steps", *(f"{v:g}" for v in np.percentile(lengths, _QUARTILES)), f"{lengths.mean():.1f}")]
    # Episodes without a clock have steps, but no seconds.
    seconds = seconds[np.isfinite(seconds)]
    if len(seconds):
        rows.append(("seconds", *(f"{v:.1f}" for v in np.percentile(seconds, _QUARTILES)), f"{seconds.mean():.1f}"))
    return _table(header, rows)


def _texts(shards: StepShards) -> str:
    """Instructions by the number of episodes in which they occur, and tasks by that of their episodes."""
    texts, tasks = _instructions(shards), Counter(shards.tasks())
    without = texts.pop("", 0)
    tasks.pop("", None)
    lines = [f"{len(texts)} instructions, {without} episodes without one" + (":" if texts else ".")]
    lines += [f"- {count} x {_value(text)}" for text, count in texts.most_common(EXAMPLES)]
    lines += [f"- ... and {len(texts) - EXAMPLES} more"] if len(texts) > EXAMPLES else []
    # Where each task is its instruction, the list above says it all.
    if tasks and set(tasks) != set(texts):
        lines += ["", f"{len(tasks)} tasks:"]
        lines += [f"- {count} x {_value(task)}" for task, count in tasks.most_common(EXAMPLES)]
        lines += [f"- ... and {len(tasks) - EXAMPLES} more"] if len(tasks) > EXAMPLES else []
    return "\n".join(lines)


def _instructions(shards: StepShards) -> Counter:
    """{instruction: episodes in which it occurs}; "" counts those without any."""
    numbers, episodes = shards.table.arrays["text"], shards.episodes
    # Only where the text changes: within an episode it mostly does not
    begins = np.union1d(np.flatnonzero(np.diff(numbers)) + 1, episodes.starts)
    of_episode = np.searchsorted(episodes.starts, begins, side="right") - 1
    pairs = np.unique(np.stack([of_episode, numbers[begins]], 1), axis=0)
    texted = pairs[pairs[:, 1] >= 0]
    counts = np.bincount(texted[:, 1], minlength=len(shards.table.texts))
    counted = Counter({text: int(count) for text, count in zip(shards.table.texts, counts) if count})
    counted[""] = len(episodes) - len(np.unique(texted[:, 0]))
    return counted


def _report(folder: pathlib.Path) -> str:
    """Everything of `report.json` but what the tables above say; a list by its length and its first entries."""
    if not (folder / REPORT).exists():
        return f"There is no {REPORT}: these shards were not made by tools/convert.py."
    report = read_json(folder / REPORT)
    lines = []
    for key, value in sorted(report.items()):
        if key in ("episodes", "steps", "format") or value in ({}, [], None):
            continue
        if isinstance(value, list):
            more = f", ... ({len(value)} in all)" if len(value) > 3 else ""
            lines.append(f"- {one_line(key.replace('_', ' '))}: {'; '.join(_value(v) for v in value[:3])}{more}")
        else:
            lines.append(f"- {one_line(key.replace('_', ' '))}: {_value(value)}")
    return "\n".join(lines) or "Nothing was dropped, left out or damaged."


def _statistics(shards: StepShards) -> str:
    if not shards.statistics:
        return "None: there are no columns of real numbers."
    return "\n\n".join(_column(name, shards) for name in sorted(shards.statistics))


def _column(name: str, shards: StepShards) -> str:
    summary = shards.statistics[name]
    names = dimension_names(shards.features.get(name, {}), len(summary["mean"]))
    columns = [key for key in PER_DIMENSION if key in summary]
    dimension_kinds = kinds(summary) if len(columns) == len(PER_DIMENSION) else [""] * len(names)
    rows = []
    for i, (label, dimension_kind) in list(enumerate(zip(names, dimension_kinds)))[:DIMENSIONS]:
        rows.append((label, dimension_kind, *(f"{summary[key][i]:.4g}" for key in columns)))
    table = _table(("dimension", "kind", *columns), rows)
    more = f"\n\n... and {len(names) - DIMENSIONS} more dimensions" if len(names) > DIMENSIONS else ""
    far = far_values(summary, "q01_q99", names) if len(columns) == len(PER_DIMENSION) else []
    if far:
        more += "\n\nValues far out:\n\n" + "\n".join(f"- {one_line(one.text)}" for one in far[:EXAMPLES])
        more += f"\n- ... and {len(far) - EXAMPLES} more" if len(far) > EXAMPLES else ""
        more += f"\n\nChoices: {choices('q01_q99', max(one.largest for one in far))}."
    return f"### {one_line(name)}, {summary['count']} rows\n\n{table}{more}"


def _value(value) -> str:
    """A JSON value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{one_line(key)}: {_value(v)}" for key, v in sorted(value.items()))
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return one_line(" ".join(str(value).split()))


def _table(header: Sequence, rows: Sequence[Sequence]) -> str:
    header, *rows = ([one_line(cell).replace("|", "\\|") for cell in cells] for cells in (header, *rows))
    return "\n".join(table(header, rows))
