"""Images of in-context policies: errors of each task by prompt, and whole episodes against what was recorded."""

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lapa_jax.plots import frames

TASKS, DIMENSIONS = 40, 8
PROMPTS = {"right": ("right prompt", frames.BAR), "none": ("no prompt", "#b9c0cf"),
           "wrong": ("wrong prompt", frames.ACCENT)}  # fmt: skip
"""{condition: (what it is called, its colour)}."""


def task_errors(path, tasks: Sequence[Mapping]) -> str:
    """Draws a group of bars for each task: the squared error with each prompt.

    Args:
      path: the PNG to write. tasks: the entries of `metrics.json`, in the order to draw; the first 40 are drawn.

    Returns:
      A sentence on what is left out, or the empty string.
    """
    shown = tasks[:TASKS]
    kinds = [kind for kind in PROMPTS if any(task.get(kind) for task in shown)]
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(8.4, 0.16 * (len(kinds) + 1) * len(shown) + 1.1), layout="constrained")
        axes, height = figure.subplots(), 1 / (len(kinds) + 1)
        for k, kind in enumerate(kinds):
            measured = [i for i, task in enumerate(shown) if task.get(kind)]
            word, color = PROMPTS[kind]
            axes.barh([i + (k - (len(kinds) - 1) / 2) * height for i in measured],
                      [shown[i][kind]["action_mse"] for i in measured], height, color=color, label=word)  # fmt: skip
        axes.set_yticks(np.arange(len(shown)), [label(task) for task in shown])
        axes.tick_params(axis="y", length=0)
        # Downwards, so that the first task is on top.
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("mean squared error of actions, normalised")
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        frames.save(figure, path)
    left = len(tasks) - len(shown)
    return f" {left} more tasks are left out." if left else ""


def label(task: Mapping) -> str:
    """What a task is called: its name, and whether it was held out of training."""
    name = task["name"] or "(no task)"
    return f"{name} ({task['status']})" if task["status"] != "seen" else name


def episodes(path, replays: Sequence[Mapping], names: Sequence[str]) -> pathlib.Path:
    """Draws recorded and predicted actions of whole episodes, a row for each and a panel for each dimension.

    Args:
      path: the PNG to write.
      replays: of each "title", and "recorded" and "predicted" f32[N, A] in the units of the data.
      names: of the dimensions; the first 8 are drawn.
    """
    shown = names[:DIMENSIONS]
    with matplotlib.rc_context(frames.STYLE):
        figure = Figure(figsize=(3.0 * len(shown) + 0.6, 1.8 * len(replays) + 0.5), layout="constrained")
        panels = figure.subplots(len(replays), len(shown), squeeze=False, sharex="row", sharey="col")
        for line, replay in zip(panels, replays):
            for i, panel in enumerate(line):
                panel.plot(replay["recorded"][:, i], color=frames.MUTED, lw=2.4, alpha=0.6, label="recorded")
                panel.plot(replay["predicted"][:, i], color=frames.ACCENT, lw=1.0, label="predicted")
                panel.tick_params(labelsize=7)
            line[0].set_ylabel(replay["title"], fontsize=7)
        for panel, name in zip(panels[0], shown):
            panel.set_title(name, loc="left")
        for panel in panels[-1]:
            panel.set_xlabel("step")
        panels[0, -1].legend(fontsize=7, frameon=False)
        return frames.save(figure, path)
