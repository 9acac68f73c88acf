"""Measures a trained in-context policy on held-out episodes: does its prompt help, on which tasks? `metrics.json`,
images and `report.html`."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.statistics import kinds
from lapa_jax.evaluate import replay, report
from lapa_jax.evaluate.base import REPORT_FILE, BaseEvaluation, open_scaled, unscaled
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.evaluate.tokenizers import dimensions
from lapa_jax.plots import episodes

CONDITIONS = {"right": "prediction", "none": "prediction_none", "wrong": "prediction_wrong"}
"""{prompt: the model's arrays with it}."""

SEEN, HELD_OUT, OTHER = "seen", "held out", "other data"
"""What a task was to the training: part of it, left out by its config, or of data that it never opened."""

MIN_WINS = 0.8
EPISODES = 4
TASKS_FILE, EPISODES_FILE = "tasks.png", "episodes.png"


class Evaluation(BaseEvaluation):
    """One evaluation of an `InContextPolicy`."""

    def __init__(
        self, policy, *, run, out, data=None, split: str | None = None, pairs: int = 2048, dataset: str | None = None
    ):
        """Opens the held-out windows, scaled for the model and as they are.

        Args:
          policy: an `InContextPolicy`.
          run: where it came from; its `metrics.jsonl`, if any, gives the curves.
          out: the folder to write.
          data: a folder of step shards; the run's own if None. split: of it; the run's own ("val") if None.
          pairs: how many windows at most, chosen pseudo-randomly, always the same ones.
          dataset: of a run on several datasets: whose scaling `data` get; the one that they are if None.

        Raises:
          UserError: data that do not exist or do not fit.
        """
        if pairs < 2:
            raise UserError(f"{pairs} windows are too few to measure by; give --pairs 2 or more")
        config, source, self._parts = open_scaled(policy, data, split, dataset)
        example = {name: values.shape[1:] for name, values in policy.model.example(1).items()}
        source = as_wide_as(source, example)
        shapes = {name: values.shape[1:] for name, values in source.batch([]).items()}
        for name, shape in example.items():
            if shapes.get(name) != shape:
                raise UserError(f"the policy takes '{name}' of shape {shape}, these data give {shapes.get(name)}: give "
                                "data of the same robot and cameras as in training")  # fmt: skip
        super().__init__(policy, run=run, out=out, data=config, source=source, count=pairs)
        # Replays go step by step, so that a window has to begin at each.
        raw = pipeline.build({**unscaled(config), "stride": 1}, "val")
        self._raw = list(getattr(raw, "sources", {"": raw}).values())

    def about(self) -> dict:
        """What was evaluated on what; the head of `metrics.json`."""
        about = super().about()
        about["policy"] = about.pop("tokenizer")
        return about

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Its "metrics" are those that training logs under "val/". "tasks" has an entry for each task, seen ones first:
        its "name", "dataset" and "status", "windows" and "episodes", and under "right", "none" and "wrong" the errors
        with that prompt, see `errors`; "beats_none" and "beats_wrong" say whether the right prompt has the smaller
        squared error, on the same windows. "groups" counts this over the tasks of each status.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        tasks = self.tasks(arrays)
        groups = {status: _group([t for t in tasks if t["status"] == status]) for status in (SEEN, HELD_OUT, OTHER)}
        result = self.save({
            **self.about(), "windows": self.count, "metrics": dict(sorted(metrics.items())),
            "groups": {status: group for status, group in groups.items() if group["tasks"]}, "tasks": tasks,
        })  # fmt: skip
        report.write(
            self.out / REPORT_FILE, title=f"In-context policy {self.run.name}",
            subtitle=f"step {result['step']}, {self.count} windows of {result['data']} ({result['split']})",
            verdicts=self.judge(result), sections=self._sections(result["tasks"], arrays), note=_NOTE,
            **self.head(),
        )  # fmt: skip
        return result

    def tasks(self, arrays: Mapping[str, np.ndarray]) -> list[dict]:
        """The entries of `metrics.json` for the arrays of the model's `evaluate`."""
        part_of = arrays.get("dataset_id", np.zeros(len(arrays["task_id"]), np.int32))
        entries = []
        for part, task in sorted(set(zip(part_of.tolist(), arrays["task_id"].tolist()))):
            rows = (part_of == part) & (arrays["task_id"] == task)
            entries.append(self._task_entry(part, task, {name: values[rows] for name, values in arrays.items()}))
        order = [SEEN, HELD_OUT, OTHER]
        return sorted(entries, key=lambda entry: order.index(entry["status"]))

    def _task_entry(self, part: int, task: int, arrays: Mapping[str, np.ndarray]) -> dict:
        name, dataset, source = self._parts[part]
        word = source.tasks[task]
        entry = {"name": word, "dataset": name, "status": self._status(word), "windows": len(arrays["action"]),
                 "episodes": len(np.unique(arrays["episode_id"]))}  # fmt: skip
        for kind, key in CONDITIONS.items():
            if key in arrays:
                entry[kind] = self.errors(arrays, key, dataset, source) if _has_prompt(arrays, kind).any() else None
        for kind in ("none", "wrong"):
            # On the same windows for both sides: not every window has another task's prompt in its batch.
            rows = _has_prompt(arrays, kind) if CONDITIONS[kind] in arrays else np.zeros(0, bool)
            better = _mse(arrays, "prediction", rows) < _mse(arrays, CONDITIONS[kind], rows) if rows.any() else None
            entry[f"beats_{kind}"] = better
        return entry

    def errors(self, arrays: Mapping[str, np.ndarray], key: str, dataset: str | None, source) -> dict:
        """How far the predictions `key` are from what was recorded, over all steps.

        Returns:
          "windows"; normalised, over all dimensions: "action_mse", "action_r2" (of the variation within these steps);
          "mae", "p99_error" and "max_error" of each dimension in the units of the data, see `tokenizers.dimensions`;
          and where there are dimensions with two values "gripper_accuracy", how often the nearer of the two is the
          right one.
        """
        kind = next(kind for kind, array_name in CONDITIONS.items() if array_name == key)
        rows = _has_prompt(arrays, kind)
        width = self.tokenizer.width_of(dataset)
        mask = arrays["action_mask"][rows] > 0
        true, guess = (arrays[name][rows][mask][:, :width].astype(np.float64) for name in ("action", key))
        spread, mse = float(np.square(true - true.mean(0)).mean()), float(np.square(guess - true).mean())
        units = dimensions(*(self.tokenizer.to_units(x, dataset) for x in (true, guess)), self._about(dataset, width))
        metrics = {"windows": int(rows.sum()), "action_mse": mse,
                   **{key: [entry[key] for entry in units] for key in ("mae", "p99_error", "max_error")},
                   "action_r2": 1 - mse / spread if spread > 1e-8 else None}  # fmt: skip
        two = [entry["accuracy"] for entry in units if entry["accuracy"] is not None]
        return metrics | ({"gripper_accuracy": float(np.mean(two))} if two else {})

    def _about(self, dataset: str | None, width: int) -> dict:
        """What the dimensions of actions are like, for `tokenizers.dimensions`."""
        entry = self.tokenizer.datasets.get(dataset, {}).get("statistics", {}).get("action")
        if entry is None:
            return {"kind": ["continuous"] * width, "scale": np.ones(width), "low": np.zeros(width),
                    "high": np.zeros(width)}  # fmt: skip
        return {"kind": kinds(entry), "scale": np.array(entry["std"]), "low": np.array(entry["min"]),
                "high": np.array(entry["max"])}  # fmt: skip

    def _status(self, task: str) -> str:
        """What the task was to the training."""
        trained = self.tokenizer.config.data
        held_out = task in (trained.get("held_out_tasks") or ())
        which = trained.get("tasks") or "seen"
        if held_out and which == "seen":
            return HELD_OUT
        if self.data.get("val_path") not in (None, trained.get("val_path"), trained.get("path")):
            return OTHER
        return HELD_OUT if which == "held_out" and not held_out else SEEN

    def judge(self, result: Mapping) -> list[Verdict]:
        """On how many tasks the right prompt wins, then the figures."""
        lines = []
        for status, group in result["groups"].items():
            for kind, word in (("wrong", "another task's"), ("none", "none")):
                if not group[f"tasks_with_{kind}"]:
                    continue
                wins, of = group[f"beats_{kind}"], group[f"tasks_with_{kind}"]
                words = (f"{status} tasks on which the right prompt gives a smaller error than {word} (the bar is "
                         f"{MIN_WINS:.0%})")  # fmt: skip
                level = GOOD if wins >= MIN_WINS * of else POOR
                lines.append(Verdict(f"beats_{kind}", f"{wins} of {of}", level, words))
        for name, value in result["metrics"].items():
            if value is not None:
                poor = name == "action_r2" and value <= 0
                words = "no better than always doing the mean action" if poor else _WORDS.get(name, "")
                lines.append(Verdict(name, f"{value:.4g}", POOR if poor else NOTE, words))
        return lines

    def _sections(self, tasks: Sequence[Mapping], arrays: Mapping[str, np.ndarray]) -> list[Section]:
        left = episodes.task_errors(self.out / TASKS_FILE, tasks)
        sections = [
            Section("Tasks and prompts", _TASKS + left, (TASKS_FILE,), _task_table(tasks)),
            *self._dimension_sections(tasks), *self._replayed(tasks, arrays),
        ]  # fmt: skip
        return [*sections, self.course()]

    def _names(self, part: int) -> list[str]:
        """Of the dimensions of a part's actions."""
        feature = self._parts[part][2].shards.features["action"]
        return [str(name) for name in feature.get("names") or (f"action {i}" for i in range(feature["shape"][0]))]

    def _dimension_sections(self, tasks: Sequence[Mapping]) -> list[Section]:
        """A table of the absolute error of every dimension for each part of the data."""
        sections, words = [], "Mean absolute error in the units of the data: right prompt / no prompt / wrong prompt."
        for part, (name, _, _) in enumerate(self._parts):
            part_tasks = [task for task in tasks if task["dataset"] == name]
            lines = []
            for task in part_tasks:
                columns = zip(*(task[kind]["mae"] for kind in CONDITIONS if task.get(kind)))
                lines.append((episodes.label(task), *(" / ".join(f"{v:.3g}" for v in c) for c in columns)))
            table = (("task", *self._names(part)), *lines)
            sections.append(Section(f"Dimensions of {name}", words, (), table))
        return sections

    def _replayed(self, tasks: Sequence[Mapping], arrays: Mapping[str, np.ndarray]) -> list[Section]:
        """One recorded episode of each of a few tasks of the first part, held-out tasks among them."""
        name, dataset, source = self._parts[0]
        part_tasks = [task for task in tasks if task["dataset"] == name]
        # Held-out tasks come last in the list, and would otherwise be cut off.
        new = [task for task in part_tasks if task["status"] == HELD_OUT][: EPISODES // 2]
        drawn, first = [], arrays.get("dataset_id", np.zeros(len(arrays["task_id"]), np.int32)) == 0
        for task in [*[task for task in part_tasks if task["status"] != HELD_OUT][: EPISODES - len(new)], *new]:
            rows = first & (arrays["task_id"] == source.tasks.index(task["name"]))
            episode = int(arrays["episode_id"][rows].min())
            replayed = replay.replay(self.tokenizer, self._raw[0], episode, dataset)
            if replayed is not None:
                title = f"{episodes.label(task)}\nepisode {episode}"
                drawn.append({"title": title, "recorded": replayed[0], "predicted": replayed[1]})
        if not drawn:
            return [Section("Replayed episodes", "No episode has a window at its beginning.")]
        episodes.episodes(self.out / EPISODES_FILE, drawn, self._names(0))
        return [Section("Replayed episodes", _REPLAYED, (EPISODES_FILE,))]


_NOTE = "Held-out episodes; what is predicted at each step follows the recorded steps before it."
_TASKS = ("With demonstrations of the task, of another task, and without any. Windows of an episode resemble each "
          "other: a task with few episodes says little.")  # fmt: skip
_REPLAYED = ("Whole held-out episodes through reset and act: the policy sees what was observed and is told what was "
             "really done; driving by itself it would meet other observations.")  # fmt: skip
_WORDS = {
    "action_mse": "mean squared error of actions, normalised, over all windows",
    "action_r2": "of the variation of actions over all tasks is predicted (mean over the dimensions)",
    "prompt_gain": "share of the error without a prompt that the right one takes away",
    "prompt_wins": "share of tasks on which the right prompt does better than a wrong one",
}


def _has_prompt(arrays: Mapping[str, np.ndarray], kind: str) -> np.ndarray:
    """bool[N]: the windows that have a prompt of the kind."""
    return arrays["has_wrong"] > 0 if kind == "wrong" else np.ones(len(arrays["action"]), bool)


def _mse(arrays: Mapping[str, np.ndarray], key: str, rows: np.ndarray) -> float:
    """The mean squared error of predictions `key` over the steps of the windows bool[N]."""
    mask = arrays["action_mask"][rows] > 0
    return float(np.square(arrays[key][rows] - arrays["action"][rows])[mask].mean())


def _group(tasks: Sequence[Mapping]) -> dict:
    """How often the right prompt wins over tasks, and their mean errors."""
    figures: dict = {"tasks": len(tasks)}
    for kind in CONDITIONS:
        errors = [task[kind]["action_mse"] for task in tasks if task.get(kind)]
        figures[f"action_mse_{kind}"] = float(np.mean(errors)) if errors else None
    for kind in ("none", "wrong"):
        compared = [task[f"beats_{kind}"] for task in tasks if task[f"beats_{kind}"] is not None]
        figures |= {f"tasks_with_{kind}": len(compared), f"beats_{kind}": sum(compared)}
    return figures


def _task_table(tasks: Sequence[Mapping]) -> tuple[tuple[str, ...], ...]:
    kinds_measured = [kind for kind in CONDITIONS if any(task.get(kind) for task in tasks)]
    head = ["task", "windows", "episodes"]
    columns = [("action_mse", "MSE"), ("action_r2", "R²")]
    if any("gripper_accuracy" in task["right"] for task in tasks):
        columns.append(("gripper_accuracy", "gripper"))
    head += [f"{word}, {episodes.PROMPTS[kind][0]}" for key, word in columns for kind in kinds_measured]
    rows = []
    for task in tasks:
        cells = [(task.get(kind) or {}).get(key) for key, _ in columns for kind in kinds_measured]
        rows.append((episodes.label(task), str(task["windows"]), str(task["episodes"]),
                     *("" if value is None else f"{value:.3g}" for value in cells)))  # fmt: skip
    return (tuple(head), *rows)
