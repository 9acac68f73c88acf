"""What closed-loop evaluation found, written down: `metrics.json`, images and `report.html`."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import einops
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.core.files import write_json
from lapa_jax.data import images
from lapa_jax.evaluate import report
from lapa_jax.evaluate.base import METRICS_FILE, REPORT_FILE
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.plots import film
from lapa_jax.plots import frames as plots

RATES_FILE, FAILURES_FILE, SUCCESSES_FILE = "rates.png", "failures.png", "successes.png"
FILM_FILE = "episodes.webp"
"""The filmed episodes beside each other."""
ROWS = 8
"""Episodes of a contact sheet at most, of as many tasks as there are."""

COLOURS = (plots.ACCENT, plots.BAR, plots.MUTED, "#c5cad6", "#1c7a4a", "#e3b23c", "#7b4fa3")


def write(
    out: pathlib.Path, about: Mapping, results: Mapping[str, Mapping], episodes: Sequence[Mapping], shown: pathlib.Path,
    trained: report.Rows = (), compared: tuple[str, report.Rows] = ("", ()),
) -> dict:  # fmt: skip
    """Writes the evaluation of a policy and its controls.

    Args:
      out: the folder to write.
      about: what was evaluated on what, the head of `metrics.json`: {"env", "policy", "seed", ...}.
      results: {name: {"overall", "tasks": {task: ...}}} with summaries as of `sim.scores`; the policy itself first.
      episodes: the policy's own, as of `sim.rollouts.run`. shown: their folder, within `out`, with strips and videos.
      trained: (what, its value) of the policy's run. compared: see `report.write`. Both are as of `provenance`.

    Returns:
      The content of `metrics.json`: `about`, "policies" as `results`, and "metrics", flat.
    """
    metrics = metrics_of(results)
    result = {**about, "policies": results, "metrics": metrics}
    write_json(out / METRICS_FILE, result)
    draw_rates(out / RATES_FILE, results)
    sections = [Section("Success", _RATES, (RATES_FILE,), table(results)), *_sheets(out, episodes, shown)]
    report.write(
        out / REPORT_FILE, title=f"{about['policy']} in {about['env']}",
        subtitle=f"{len(episodes)} episodes, seed {about['seed']}", verdicts=judge(metrics), sections=sections,
        note="Closed loop: the policy meets what its own actions lead to.",
        about=[*((name, _words(value)) for name, value in about.items() if value), *trained], compared=compared,
    )  # fmt: skip
    return result


def metrics_of(results: Mapping[str, Mapping]) -> dict[str, float | None]:
    """Flat figures: the policy's "success_rate" with its interval; of the others "success_rate_<name>"; and
    "of_expert", its rate over the expert's where there is one and it is not 0."""
    name, *others = results
    policy = results[name]["overall"]
    metrics = {"success_rate": policy["success_rate"], "success_rate_low": policy["low"]}
    metrics["success_rate_high"] = policy["high"]
    metrics |= {f"success_rate_{other}": results[other]["overall"]["success_rate"] for other in others}
    # A share of an expert that never succeeds is undefined: 0 counts as absent.
    if ceiling := metrics.get("success_rate_expert"):
        metrics["of_expert"] = policy["success_rate"] / ceiling
    return metrics


def judge(metrics: Mapping[str, float]) -> list[Verdict]:
    """What the numbers mean: a policy whose interval begins above the best control has learned something."""
    rate, low, high = (metrics[name] for name in ("success_rate", "success_rate_low", "success_rate_high"))
    baselines = [metrics[f"success_rate_{name}"] for name in ("random", "repeat") if f"success_rate_{name}" in metrics]
    words, level = f"of the episodes succeed (95 % interval {low:.0%} to {high:.0%})", NOTE
    if baselines:  # none beside random actions where there is no expert
        words += f", the best control in {max(baselines):.0%}"
        # The lower end of the interval: with few episodes a higher rate alone may be luck.
        level = GOOD if low > max(baselines) else POOR
    lines = [Verdict("success_rate", f"{rate:.1%}", level, words)]
    notes = {"success_rate_expert": "the scripted expert: the ceiling", "success_rate_random": "random actions",
             "success_rate_repeat": "the expert's first action over and over",
             "of_expert": "the policy's rate over the expert's"}  # fmt: skip
    present = {name: words for name, words in notes.items() if name in metrics}
    return lines + [Verdict(name, f"{metrics[name]:.1%}", NOTE, words) for name, words in present.items()]


def cell(summary: Mapping) -> str:
    """For example "62% (48–74), 31/50"."""
    ends = f"{100 * summary['low']:.0f}–{100 * summary['high']:.0f}"
    return f"{summary['success_rate']:.0%} ({ends}), {summary['successes']}/{summary['episodes']}"


def table(results: Mapping[str, Mapping]) -> tuple[tuple[str, ...], ...]:
    """A row a task, then all of them together; a column for the policy and each control."""
    tasks = next(iter(results.values()))["tasks"]
    rows = [(task, *(cell(result["tasks"][task]) for result in results.values())) for task in tasks]
    return (("task", *results), *rows, ("all", *(cell(result["overall"]) for result in results.values())))


def draw_rates(path, results: Mapping[str, Mapping]) -> pathlib.Path:
    """Bars of the success rates with their intervals: a group a task, and all together."""
    tasks = [*next(iter(results.values()))["tasks"]]
    with matplotlib.rc_context(plots.STYLE):
        inches = max(4.5, (0.9 + 0.08 * len(results)) * (len(tasks) + 1) + 1.5)
        figure = Figure(figsize=(inches, 3.0), layout="constrained")
        axes, width = figure.subplots(), 0.8 / len(results)
        for i, (name, result) in enumerate(results.items()):
            parts = [*(result["tasks"][task] for task in tasks), result["overall"]]
            rates = np.array([part["success_rate"] for part in parts])
            ends = np.array([[part["low"], part["high"]] for part in parts]).T
            x = np.arange(len(parts)) + (i - (len(results) - 1) / 2) * width
            # More of them than colours: the colours again, hatched.
            again = {"hatch": "////", "edgecolor": "white"} if i >= len(COLOURS) else {}
            axes.bar(x, rates, width * 0.9, color=COLOURS[i % len(COLOURS)], label=name, **again)
            axes.errorbar(x, rates, np.abs(ends - rates), fmt="none", ecolor=plots.INK, elinewidth=0.8, capsize=2)
        axes.set_xticks(np.arange(len(tasks) + 1), [*tasks, "all"], rotation=20 if len(tasks) > 3 else 0)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("success rate")
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return plots.save(figure, path)


def _sheets(out: pathlib.Path, episodes: Sequence[Mapping], shown: pathlib.Path) -> list[Section]:
    """Contact sheets of failures and of successes, and the videos; of what there is."""
    sections = []
    for success, file, title in ((False, FAILURES_FILE, "Failures"), (True, SUCCESSES_FILE, "Successes")):
        chosen = choose([e for e in episodes if e["success"] is success and strip(shown, e["number"]).exists()])
        # An earlier evaluation's sheet would stand beside a page that does not mention it.
        (out / file).unlink(missing_ok=True)
        if chosen:
            draw_sheet(out / file, chosen, shown)
            count = sum(e["success"] is success for e in episodes)
            sections.append(Section(title, f"{len(chosen)} of {count}, from the first step to the last.", (file,)))
    films = [e for e in episodes if (shown / "videos" / f"{e['number']:06d}.mp4").exists()]
    (out / FILM_FILE).unlink(missing_ok=True)
    if films:
        files = [shown / "videos" / f"{e['number']:06d}.mp4" for e in films]
        film.montage(out / FILM_FILE, [film.Filmed(file, e["instruction"], e["success"])
                                       for file, e in zip(files, films)])  # fmt: skip
        videos = {file.relative_to(out).as_posix(): _caption(e) for file, e in zip(files, films)}
        words = f"The first episodes, in this order; {FILM_FILE} has them beside each other."
        sections.append(Section("Videos", words, videos=videos))
    return sections


def _words(value) -> str:
    """A value of `about` as a reader wants it: "execute 4, step 600", "reach-v3, door-open-v3"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, (list, tuple)) else str(value)


def _caption(episode: Mapping) -> str:
    result = "success" if episode["success"] else "failure"
    return f"{episode['number']}, {episode['task']}: {episode['instruction']}. {result}, {episode['steps']} steps"


def choose(episodes: Sequence[Mapping], count: int = ROWS) -> list[Mapping]:
    """At most `count` episodes, of as many tasks as possible: the first of each, then the second of each, ..."""
    seen: dict[str, int] = {}
    ranked = []
    for episode in episodes:
        # Sorted by rank, the first episode of every task comes before the second of any.
        rank = seen[episode["task"]] = seen.get(episode["task"], -1) + 1
        ranked.append((rank, episode["number"], episode))
    return [episode for *_, episode in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def strip(shown: pathlib.Path, number: int) -> pathlib.Path:
    """Where images of an episode lie, side by side."""
    return shown / "strips" / f"{number:06d}.jpg"


def draw_sheet(path, episodes: Sequence[Mapping], shown: pathlib.Path) -> pathlib.Path:
    """A row an episode, named by number and instruction; images spread evenly over it."""
    strips = [images.decode(strip(shown, episode["number"]).read_bytes()) for episode in episodes]
    side = strips[0].shape[0]
    frames = np.stack([einops.rearrange(row, "h (steps w) c -> steps h w c", w=side) for row in strips])
    rows = [f"{e['number']}: {textwrap.fill(e['instruction'], 26)}\n{e['steps']} steps" for e in episodes]
    columns = ["start", *[""] * (frames.shape[1] - 2), "end"]
    return plots.frame_grid(path, frames, columns, rows)


_RATES = "With the 95 % interval (Wilson), and successes over episodes. All policies have the same episodes."
