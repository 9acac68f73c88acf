"""Measures a stage-3 policy on held-out steps: predicted against recorded actions, in physical units. `metrics.json`,
pictures and `report.html`."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.data import pipeline
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.statistics import kinds
from lapa_jax.inference import curves, in_context_plots, policy_plots, report
from lapa_jax.inference.evaluations.base import REPORT_FILE, BaseEvaluation, open_scaled, unscaled
from lapa_jax.inference.evaluations.columns import dimensions, entry_name
from lapa_jax.inference.report import Section
from lapa_jax.inference.verdicts import GOOD, NOTE, POOR, Verdict

MIN_R2 = 0.5
EPISODES, LONGEST, WORST = 3, 200, 8
EPISODES_FILE, WORST_FILE, SPREAD_FILE, CURVES_FILE = "episodes.png", "worst.png", "spread.png", "curves.png"


class Evaluation(BaseEvaluation):
    """One evaluation of a `Policy`."""

    def __init__(
        self, policy, *, run, out, data=None, split: str | None = None, pairs: int = 2048, dataset: str | None = None
    ):
        """Opens the held-out steps, scaled for the model and as they are.

        Args:
          policy: a `Policy`. run: where it came from. out: the folder to write.
          data: a folder of step shards; the run's own if None. split: of it; the run's own ("val") if None.
          pairs: how many steps at most, chosen pseudo-randomly, always the same ones.
          dataset: of a run on several datasets: whose scaling `data` get; the one that they are if None.

        Raises:
          UserError: data that do not exist or do not fit.
        """
        if pairs < 2:
            raise UserError(f"{pairs} steps are too few to measure by; give --pairs 2 or more")
        config, source, self._parts = open_scaled(policy, data, split, dataset)
        source = as_wide_as(source, {name: values.shape[1:] for name, values in policy.model.example(1).items()})
        super().__init__(policy, run=run, out=out, data=config, source=source, count=pairs)
        self._raw = pipeline.build(unscaled(config), "val")

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Its "metrics" are those that training logs under "val/"; "datasets" has the errors of every dimension in the
        units of the data, see `columns.dimensions`.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        found = {name: self._in_units(number, dataset, source, arrays)
                 for number, (name, dataset, source) in enumerate(self._parts)}  # fmt: skip
        about = self.about()
        about["policy"] = about.pop("tokenizer")
        figures = {"metrics": dict(sorted(metrics.items())), "datasets": found}
        result = self.save({**about, "samples": self.count, **figures})
        report.write(
            self.out / REPORT_FILE, title=f"Actions of {self.run.name}",
            subtitle=f"step {about['step']}, {self.count} steps of {about['data']} ({about['split']})",
            verdicts=self.judge(result), sections=self._sections(result), note=_NOTE,
        )  # fmt: skip
        return result

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the numbers mean, the most telling first."""
        lines = []
        for name, words in _WORDS.items():
            value = result["metrics"].get(name)
            if value is not None:
                level = NOTE if name != "action_r2" else GOOD if value >= MIN_R2 else POOR
                shown = f"{value:.1%}" if name.endswith("accuracy") else f"{value:.4g}"
                lines.append(Verdict(name, shown, level, words))
        return lines

    def _in_units(self, number: int, dataset: str | None, source, arrays: Mapping[str, np.ndarray]) -> list[dict]:
        """Errors of every dimension on the samples of a part."""
        rows = arrays["dataset_id"] == number if "dataset_id" in arrays else np.ones(len(arrays["action"]), bool)
        there = arrays["weight"][rows].max(2) > 0
        true, guess = (self.tokenizer.to_units(arrays[name][rows][there], dataset) for name in ("action", "prediction"))
        return dimensions(true, guess, self._about(dataset, true.shape[1]), _names(source))

    def _about(self, dataset: str | None, width: int) -> dict:
        entry = self.tokenizer.datasets[dataset]["statistics"]["action"]
        return {"kind": kinds(entry)[:width], "scale": np.array(entry["std"]), "low": np.array(entry["min"]),
                "high": np.array(entry["max"])}  # fmt: skip

    def _sections(self, result: Mapping) -> list[Section]:
        name, dataset, _ = self._parts[0]
        names = [entry_name(entry) for entry in result["datasets"][name]]
        replays = self._replays(dataset)
        in_context_plots.episodes(self.out / EPISODES_FILE, replays, names)
        recorded, predicted = (np.concatenate([r[kind] for r in replays]) for kind in ("recorded", "predicted"))
        policy_plots.spread(self.out / SPREAD_FILE, recorded, predicted, names)
        policy_plots.worst(self.out / WORST_FILE, _worst(replays), names)
        drawn = curves.draw(self.out / CURVES_FILE, read_metrics(self.run), "val/action_r2")
        words = "Losses, and the validation metrics." if drawn else "This folder keeps no metrics.jsonl."
        return [
            *(Section(f"Dimensions of {part}", _DIMENSIONS, (), _table(entries))
              for part, entries in result["datasets"].items()),
            Section("Whole episodes", _EPISODES, (EPISODES_FILE,)),
            Section("Where it is furthest off", _WORST, (WORST_FILE,)),
            Section("What it does and what was done", _SPREAD, (SPREAD_FILE,)),
            Section("The course of training", words, (CURVES_FILE,) if drawn else ()),
        ]  # fmt: skip

    def _replays(self, dataset: str | None) -> list[dict]:
        """The first episodes of the first part: recorded and predicted actions f32[N, A], and what the policy saw."""
        raw = getattr(self._raw, "sources", {"": self._raw})
        raw, found = next(iter(raw.values())), []
        episodes = np.array([raw.locate(i)[0] for i in range(len(raw))])
        for episode in np.unique(episodes)[:EPISODES]:
            batch = raw.batch(np.flatnonzero(episodes == episode)[:LONGEST].tolist())
            texts = [raw.shards.text(raw.shards.episodes[episode].start)] * len(batch["image"])
            predicted = self.tokenizer.chunk(batch["image"], texts, batch.get("state"), dataset=dataset)[:, 0]
            found.append({"title": f"{texts[0][:40]}\nepisode {episode}", "recorded": batch["action"][:, 0],
                          "predicted": predicted, "image": batch["image"], "instruction": texts[0]})  # fmt: skip
        return found


def _worst(replays: list[dict]) -> list[dict]:
    """The steps with the largest errors, relative to how much each dimension varies."""
    scale = np.maximum(np.concatenate([replay["recorded"] for replay in replays]).std(0), 1e-8)
    rows = [(float(np.square((replay["predicted"][t] - replay["recorded"][t]) / scale).mean()), number, t)
            for number, replay in enumerate(replays) for t in range(len(replay["recorded"]))]  # fmt: skip
    chosen = sorted(rows, reverse=True)[:WORST]
    return [{"image": replays[n]["image"][t], "instruction": replays[n]["instruction"], "step": t,
             "recorded": replays[n]["recorded"][t], "predicted": replays[n]["predicted"][t]}
            for _, n, t in chosen]  # fmt: skip


def _names(source) -> list[str] | None:
    names = source.shards.features["action"].get("names")
    return None if names is None else list(map(str, names))


def _table(entries: list[dict]) -> tuple[tuple[str, ...], ...]:
    number = lambda value: "" if value is None else f"{value:.3g}"  # noqa: E731
    rows = [(entry_name(e), e["kind"], *(number(e[key]) for key in ("mse", "mae", "r2", "accuracy"))) for e in entries]
    return (("dimension", "kind", "MSE", "MAE", "R²", "right side"), *rows)


_NOTE = "Held-out episodes; what is predicted at each step follows what was really observed there."
_DIMENSIONS = ("In the units of the data, over all steps of the chunks. R² is over always doing the mean; of two "
               "values the share on the right side.")  # fmt: skip
_EPISODES = "The first action of each chunk along recorded episodes; driving itself it would meet other observations."
_WORST = "What it saw, was asked and did at the steps with the largest errors of these episodes."
_SPREAD = "Histograms of the recorded and the predicted actions of these episodes: a policy that hedges is too narrow."
_WORDS = {
    "action_r2": "of the variation of actions is predicted (mean over the dimensions that vary, normalised)",
    "action_mse": "mean squared error, normalised",
    "action_mae": "mean absolute error, normalised",
    "gripper_accuracy": "of the dimensions with two values are on the right side",
    "bin_accuracy": "of the bins are right or next to it",
}
