"""What is worth knowing of a folder of shards before training on it, warnings first; see `tools/inspect_data.py`."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.escape import one_line
from lapa_jax.core.files import read_json
from lapa_jax.data import images
from lapa_jax.data.contents import REPORT
from lapa_jax.data.convert import scenes
from lapa_jax.data.far_values import choices, far_values
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards.step_shards import StepShards, read_dataset
from lapa_jax.data.shards.table import Episode
from lapa_jax.data.statistics import PER_DIMENSION, kinds
from lapa_jax.data.text import Tokenizer

IDLE = 2.0
"""Seconds without motion from which on a stretch is idle, and 20 steps where there is no clock."""
_LOOKED_AT, _FILMS = 200, 8
"""Episodes whose numbers are searched for idle stretches, and whose images are where there are no numbers."""
_MOVES = 1e-3
"""Share of a dimension's usual range by which a step that moves differs from the one before."""
_STILL_LEVEL = 4.0
_SHOWN = 6


class Finding(NamedTuple):
    """One thing about the data. warning: whether something should be done about it. text: a sentence or two."""

    warning: bool
    text: str


def findings(shards: StepShards, gap: Gap, tokenizer: Tokenizer, text_length: int) -> list[Finding]:
    """All of them, warnings first.

    Args:
      shards: the split that is looked at; splits are those of the whole folder.
      gap: of frame pairs, for which episodes may be too short.
      tokenizer, text_length: of prompts: how long they may become, in tokens.
    """
    dataset = read_dataset(shards.folder)
    all_findings = [
        *_splits(dataset["splits"]),
        *_conversion(shards.folder),
        *_rates(shards),
        *_lengths(shards, gap),
        *_instructions(shards, tokenizer, text_length),
        *_images(dataset["features"]),
        *(finding for name in sorted(shards.statistics) for finding in _column(shards, name)),
        *_idle(shards),
    ]
    return sorted(all_findings, key=lambda finding: not finding.warning)


def as_markdown(listed: list[Finding]) -> str:
    """The findings as a list, under a heading."""
    lines = [f"- {'**Warning:** ' if finding.warning else ''}{one_line(finding.text)}" for finding in listed]
    return "## What to know first\n\n" + "\n".join(lines) + "\n"


def _splits(splits: Mapping) -> Iterator[Finding]:
    sizes = {name: (split["episodes"], split["steps"]) for name, split in sorted(splits.items())}
    listed = ", ".join(f"{name} {episodes} episodes with {steps} steps" for name, (episodes, steps) in sizes.items())
    (train, train_steps), (val, val_steps) = sizes.get("train", (0, 0)), sizes.get("val", (0, 0))
    yield Finding(False, f"Splits: {listed}.")
    if train and val_steps > train_steps:
        yield Finding(True, f"More is held out ({val_steps} steps) than there is to train on ({train_steps}).")
    if train and not val:
        yield Finding(True, "Nothing is held out: there is no validation without a val_path or another --split.")
    elif val and val < 5:
        few = "Only one episode is" if val == 1 else f"Only {val} episodes are"
        yield Finding(True, f"{few} held out: what validation says of so few depends on chance.")


def _conversion(folder: pathlib.Path) -> Iterator[Finding]:
    if not (folder / REPORT).exists():
        return
    report = read_json(folder / REPORT)
    for key, words in (("errors", "could not be read"), ("missing", "are listed by the source and not there")):
        if entries := report.get(key):
            first = f"{entries[0]['path']}: {entries[0]['error']}"
            yield Finding(True, f"{len(entries)} episodes {words}; the first: {first}.")
    for what, count in (report.get("remarks") or {}).items():
        yield Finding(False, f"In conversion: {what}: {count}.")
    if missing := (report.get("notes") or {}).get("frame_numbers_missing"):
        yield Finding(True, f"{missing} frame numbers are missing between those that are there: frames before and "
                            "behind such a hole are taken as neighbours.")  # fmt: skip
    if filtered := report.get("filter"):
        done = []
        for what in (what for what in filtered if "frames of" not in what and what != "rules"):
            frames = filtered.get(f"frames of {what}")
            done.append(f"{what} {filtered[what]}" + (f" ({frames} frames)" if frames else ""))
        yield Finding(False, f"The filter ({filtered['rules']}): {', '.join(done) or 'nothing to do'}.")


def _rates(shards: StepShards) -> Iterator[Finding]:
    rates = shards.episode_fps()
    distinct = np.unique(np.round(rates[np.isfinite(rates)], 3))
    clockless = int(np.isnan(rates).sum())
    if clockless:
        yield Finding(True, f"{clockless} of {len(rates)} episodes have no frame rate: set gaps in frames "
                            "(data.gap_frames), or convert with --fps.")  # fmt: skip
    if len(distinct) > 1 and distinct[-1] > 1.001 * distinct[0]:
        shown = ", ".join(f"{rate:g}" for rate in distinct[:_SHOWN]) + (", ..." if len(distinct) > _SHOWN else "")
        far_apart = bool(distinct[-1] > 2 * distinct[0])
        yield Finding(far_apart, f"{len(distinct)} frame rates, {shown}: set gaps in seconds, not in frames; chunks of "
                                 "actions span different times.")  # fmt: skip
    elif len(distinct):
        yield Finding(False, f"Frames per second: {distinct[0]:g}.")


def _lengths(shards: StepShards, gap: Gap) -> Iterator[Finding]:
    """Episodes that are shorter than the gap give no pair. Those without a clock are told of elsewhere."""
    rates = shards.episode_fps()
    lengths = np.array([episode.length for episode in shards.episodes])
    if gap.frames is None:
        gaps = np.array([gap.in_frames(rate) if np.isfinite(rate) else 0 for rate in rates])
    else:
        gaps = np.full(len(lengths), gap.frames)
    words = f"{gap.seconds:g} s" if gap.frames is None else f"{gap.frames} frames"
    if short := int((lengths <= gaps).sum()):
        yield Finding(True, f"{short} of {len(lengths)} episodes are no longer than the gap of {words}, and give no "
                            f"frame pair; the shortest has {lengths.min()} frames.")  # fmt: skip
    yield Finding(False, f"Episodes have {lengths.min()} to {lengths.max()} steps, half of them at most "
                         f"{int(np.median(lengths))}.")  # fmt: skip


def _instructions(shards: StepShards, tokenizer: Tokenizer, text_length: int) -> Iterator[Finding]:
    texts = [shards.text(episode.start) for episode in shards.episodes]
    without, distinct = texts.count(""), sorted(set(texts) - {""})
    if not distinct:
        yield Finding(False, "No episode has an instruction: stages 2 and 3 need them.")
        return
    lengths = tokenizer.lengths(distinct)
    longest = int(np.argmax(lengths))
    text = f"{len(distinct)} instructions. The longest prompt takes {lengths[longest]} tokens of {tokenizer!r}"
    if lengths[longest] > text_length:
        yield Finding(True, f"{text}, data.text_length is {text_length}: '{distinct[longest][:120]}'.")
    else:
        yield Finding(False, f"{text}, of {text_length} that data.text_length has room for.")
    if without:
        yield Finding(True, f"{without} of {len(texts)} episodes have no instruction.")
    if len(distinct) == 1 and len(texts) > 1:
        yield Finding(True, f"All episodes have one instruction, '{distinct[0][:120]}': nothing can be learned of "
                            "language.")  # fmt: skip


def _images(features: Mapping) -> Iterator[Finding]:
    cameras = {name: feature for name, feature in features.items() if feature.get("codec") == "jpeg"}
    for name, feature in cameras.items():
        shape = feature.get("shape")
        if shape and shape[0] != shape[1] and images.RESIZE not in feature:
            yield Finding(True, f"Images of '{name}' are {shape[1]} x {shape[0]}, and the data do not say how they "
                                "become square: they are squashed.")  # fmt: skip
        if shape is None:
            yield Finding(True, f"Images of '{name}' have different sizes: set data.image_size.")


def _column(shards: StepShards, name: str) -> Iterator[Finding]:
    """Dead dimensions, scales that explode, and grippers."""
    summary = shards.statistics[name]
    if not set(PER_DIMENSION) <= set(summary):
        return
    names, words = dimension_names(shards.features.get(name, {}), len(summary["mean"])), kinds(summary)
    dead = [names[i] for i, word in enumerate(words) if word == "constant"]
    if dead:
        more = ", ..." if len(dead) > _SHOWN else ""
        yield Finding(True, f"{len(dead)} of {len(words)} dimensions of '{name}' never change: "
                            f"{', '.join(dead[:_SHOWN])}{more}.")  # fmt: skip
    if far := far_values(summary, "q01_q99", names):
        more = f", and {len(far) - 1} more dimensions" if len(far) > 1 else ""
        yield Finding(True, f"'{name}' holds values far out: {far[0].text}{more}. Choices: "
                            f"{choices('q01_q99', max(one.largest for one in far))}.")  # fmt: skip
    for i, (label, word) in enumerate(zip(names, words)):
        if "grip" not in label.lower() and not (name == "action" and word == "binary"):
            continue
        low, high, mean = summary["min"][i], summary["max"][i], summary["mean"][i]
        text = f"Gripper '{label}' of '{name}' goes from {low:.3g} to {high:.3g}"
        if word == "binary":
            text += f" in two steps, and is {high:.3g} in {100 * (mean - low) / (high - low):.0f} % of the rows"
        if word == "constant":
            yield Finding(True, f"{text}: it never moves.")
        else:
            beyond = low < -1.01 or high > 1.01
            yield Finding(beyond, f"{text}{', beyond -1 to 1' if beyond else ''}.")


def _idle(shards: StepShards) -> Iterator[Finding]:
    """Stretches in which nothing moves, by the numbers where there are some, else by the images."""
    whole = [name for name, summary in shards.statistics.items() if set(PER_DIMENSION) <= set(summary)]
    column = next((name for name in ("state", "action") if name in whole), None)
    episodes = _spread(shards.episodes, _LOOKED_AT if column else _FILMS)
    if column is None and "image" not in shards.features:
        return
    rates = shards.episode_fps()
    steps = idle = idle_episodes = 0
    for episode in episodes:
        rate = rates[shards.episode_of(episode.start)]
        least = max(3, round(IDLE * rate)) if np.isfinite(rate) else 20
        stretches = _idle_rows(shards, episode, column, least) if column else _idle_frames(shards, episode, least)
        idle_steps = sum(end - first for first, end in stretches)
        steps, idle, idle_episodes = steps + episode.length, idle + idle_steps, idle_episodes + (idle_steps > 0)
    by, change = (f"the {column}", "changes") if column else ("the images", "change")
    among = f"{len(episodes)} episodes" + (" that were looked at" if len(episodes) < len(shards.episodes) else "")
    if idle:
        yield Finding(idle > 0.1 * steps, f"{100 * idle / steps:.0f} % of the steps lie in stretches of {IDLE:g} s or "
                                          f"more in which {by} hardly {change}, in {idle_episodes} of {among}: "
                                          "tools/convert.py --filter still leaves them out.")  # fmt: skip
    else:
        yield Finding(False, f"No idle stretches of {IDLE:g} s or more, by {by}, in {among}.")


def _idle_rows(shards: StepShards, episode: Episode, column: str, least: int) -> list[tuple[int, int]]:
    steps = [i for i in range(episode.start, episode.start + episode.length) if shards.has(i, f"{column}.npy")]
    if len(steps) < least:
        return []
    rows, summary = np.stack([shards.array(i, column) for i in steps]), shards.statistics[column]
    q01, q99 = np.array(summary["q01"]), np.array(summary["q99"])
    slack = _MOVES * np.maximum(q99 - q01, 1e-9)
    idle = (np.abs(np.diff(rows, axis=0)) <= slack).all(1)
    moving = np.array([word in ("continuous", "sparse") for word in kinds(summary)])
    if column == "action" and moving.any() and ((q01 <= 0) & (q99 >= 0))[moving].mean() > 0.5:
        # an action on both sides of zero is a displacement: one that goes on moves, unless it is none
        idle &= (np.abs(rows[1:]) <= 2 * slack)[:, moving].all(1)
    return [(first, end + 1) for first, end in scenes.runs(idle) if end + 1 - first >= least]


def _idle_frames(shards: StepShards, episode: Episode, least: int) -> list[tuple[int, int]]:
    steps = range(episode.start, episode.start + min(episode.length, 600))
    frames = np.stack([scenes.small(shards.image(i)) for i in steps])
    return scenes.still(frames, least, _STILL_LEVEL)


def _spread(episodes: Sequence[Episode], count: int) -> list[Episode]:
    return [episodes[i] for i in np.unique(np.linspace(0, len(episodes) - 1, min(count, len(episodes))).astype(int))]
