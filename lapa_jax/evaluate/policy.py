"""Measures a stage-3 policy on held-out steps: predicted against recorded actions, in physical units. `metrics.json`,
images and `report.html`."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.statistics import kinds
from lapa_jax.evaluate import replay, report
from lapa_jax.evaluate.base import REPORT_FILE, BaseEvaluation, open_scaled, unscaled
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.evaluate.tokenizers import dimensions, entry_name
from lapa_jax.models.policies.action_measures import distance
from lapa_jax.plots import episodes
from lapa_jax.plots import policy as policy_plots

MIN_R2 = 0.5
EPISODES, WORST = 3, 8
WORST_FILE = "worst.png"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The held-out samples of one dataset in its units.

    Attributes:
      name: of the part. dataset: whose scaling the policy used. names: of the dimensions.
      recorded, predicted: f32[M, T, A]. mask: bool[M, T], which actions exist.
    """

    name: str
    dataset: str | None
    names: tuple[str, ...]
    recorded: np.ndarray
    predicted: np.ndarray
    mask: np.ndarray


class Evaluation(BaseEvaluation):
    """One evaluation of a `Policy`.

    Attributes:
      parts: of the data, (name, dataset whose scaling it gets, source of samples) each.
    """

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
        config, source, self.parts = open_scaled(policy, data, split, dataset)
        source = as_wide_as(source, {name: values.shape[1:] for name, values in policy.model.example(1).items()})
        super().__init__(policy, run=run, out=out, data=config, source=source, count=pairs)
        self._raw = pipeline.build({**unscaled(config), "text_tokenizer": None}, "val")

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Its "metrics" are those that training logs under "val/"; "datasets" has the errors of every dimension in the
        units of the data, see `tokenizers.dimensions`, and its "distance", see `action_measures.distance`.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        recorded, worst = self._collect_recorded(_worst(arrays))
        parts = self._in_units(arrays, recorded)
        about = self.about()
        about["policy"] = about.pop("tokenizer")
        figures = {"metrics": dict(sorted(metrics.items())),
                   "datasets": {part.name: self._dimensions(part) for part in parts}}  # fmt: skip
        result = self.save({**about, "samples": self.count, **figures})
        report.write(
            self.out / REPORT_FILE, title=f"Actions of {self.run.name}",
            subtitle=f"step {about['step']}, {self.count} steps of {about['data']} ({about['split']})",
            verdicts=self.judge(result),
            sections=self._sections(result, parts, self._describe_worst(worst, parts, arrays)),
            note=_NOTE, **self.head(),
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

    def _collect_recorded(self, worst: np.ndarray) -> tuple[np.ndarray, list[dict]]:
        """The recorded actions f32[N, T, A] as they are stored, and what was seen at the samples `worst` int[W]."""
        actions, seen, start = [], {}, 0
        # The same samples in the same order as the scaled ones: the order depends on the number of samples alone.
        for batch in self.batches(self._raw):
            real = np.flatnonzero(batch["mask"] > 0)
            actions.append(batch["action"][real])
            for row in worst[(worst >= start) & (worst < start + len(real))].tolist():
                index = real[row - start]
                seen[row] = {"image": batch["image"][index], "instruction": str(batch["text"][index]),
                             "step": int(batch["step"][index]), "row": row}  # fmt: skip
            start += len(real)
        return np.concatenate(actions), [seen[row] for row in worst.tolist()]

    def _in_units(self, arrays: Mapping[str, np.ndarray], recorded: np.ndarray) -> list[Rows]:
        parts = []
        for number, (name, dataset, source) in enumerate(self.parts):
            rows = _rows_of(arrays, number)
            if not rows.any():
                continue
            predicted = self.tokenizer.to_units(arrays["prediction"][rows], dataset)
            names = dimension_names(source.shards.features["action"], predicted.shape[-1])
            # A step exists where any dimension counts; constant dimensions have the weight 0 everywhere.
            parts.append(Rows(name, dataset, tuple(names), recorded[rows][..., : predicted.shape[-1]],
                              predicted, arrays["weight"][rows].max(2) > 0))  # fmt: skip
        return parts

    def _dimensions(self, part: Rows) -> list[dict]:
        entry = self.tokenizer.datasets[part.dataset]["statistics"]["action"]
        scaler = self.tokenizer.normalizer(part.dataset)
        scale = np.ones(len(part.names)) if scaler is None else scaler.scale
        about = {"kind": kinds(entry), "scale": scale, "low": np.array(entry["min"]), "high": np.array(entry["max"])}
        true, guess = part.recorded[part.mask], part.predicted[part.mask]
        metrics = dimensions(true, guess, about, part.names)
        return [{**entry, "distance": None if entry["r2"] is None else distance(guess[:, i], true[:, i])}
                for i, entry in enumerate(metrics)]  # fmt: skip

    def _describe_worst(self, worst: list[dict], parts: list[Rows], arrays: Mapping[str, np.ndarray]) -> list[dict]:
        """The worst samples with both actions of their first step and the names of the dimensions."""
        samples = []
        for number, (name, _, _) in enumerate(self.parts):
            index_of = {int(row): i for i, row in enumerate(np.flatnonzero(_rows_of(arrays, number)))}
            part = next((part for part in parts if part.name == name), None)
            samples += [{**sample, "names": part.names, "recorded": part.recorded[i, 0],
                         "predicted": part.predicted[i, 0]}
                     for sample in worst if (i := index_of.get(sample["row"])) is not None]  # fmt: skip
        return samples

    def _sections(self, result: Mapping, parts: list[Rows], worst: list[dict]) -> list[Section]:
        sources, sections = getattr(self._raw, "sources", None) or {parts[0].name: self._raw}, []
        for number, part in enumerate(parts):
            end = f"_{number + 1}.png" if number else ".png"
            replays = replay.episodes(self.tokenizer, sources[part.name], EPISODES, part.dataset)
            episodes.episodes(self.out / f"episodes{end}", replays, part.names)
            policy_plots.spread(self.out / f"spread{end}", part.recorded[part.mask], part.predicted[part.mask],
                                part.names)  # fmt: skip
            sections += [
                Section(f"Dimensions of {part.name}", _DIMENSIONS, (), _table(result["datasets"][part.name])),
                Section(f"Episodes of {part.name}", _EPISODES, (f"episodes{end}",)),
                Section("What it does and what was done", _SPREAD, (f"spread{end}",)),
            ]
        policy_plots.worst(self.out / WORST_FILE, worst)
        return [*sections, Section("Where it is furthest off", _WORST, (WORST_FILE,)), self.course("val/action_r2")]


def _rows_of(arrays: Mapping[str, np.ndarray], number: int) -> np.ndarray:
    """bool[N]: the samples of a part."""
    return arrays["dataset_id"] == number if "dataset_id" in arrays else np.ones(len(arrays["action"]), bool)


def _worst(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The samples int[W] whose first action is furthest off, normalised, the furthest first."""
    # The first action of a chunk is the one that a robot executes in any case.
    off = np.square(arrays["prediction"] - arrays["action"])[:, 0] * arrays["weight"][:, 0]
    return np.argsort(-off.sum(1), kind="stable")[:WORST]


def _table(entries: list[dict]) -> tuple[tuple[str, ...], ...]:
    number = lambda value: "" if value is None else f"{value:.3g}"  # noqa: E731
    keys = ("mse", "mae", "p99_error", "max_error", "mse_normalized", "mae_normalized", "r2", "distance", "accuracy")
    rows = [(entry_name(e), e["kind"], *(number(e[key]) for key in keys)) for e in entries]
    head = ("dimension", "kind", "MSE", "MAE", "99 %", "largest", "MSE normalised", "MAE normalised", "R²", "distance",
            "right side")  # fmt: skip
    return (head, *rows)


_NOTE = "Held-out episodes; what is predicted at each step follows what was really observed there."
_DIMENSIONS = ("Over all steps of the chunks, in the units of the data and in those of the model. 99 % of the absolute "
               "errors are below the number of that name, none is above the largest. R² is over always doing the mean; "
               "distance is Wasserstein's between the two distributions, in standard deviations; right side is of "
               "dimensions of two values.")  # fmt: skip
_EPISODES = "The first action of each chunk along recorded episodes; driving itself it would meet other observations."
_WORST = "What it saw, was asked and did at the steps whose first action is furthest off."
_SPREAD = "Histograms of the recorded and the predicted actions: a policy that hedges is too narrow."
_WORDS = {
    "action_r2": "of the variation of actions is predicted (mean over the dimensions that vary, normalised)",
    "action_mse": "mean squared error, normalised",
    "action_mae": "mean absolute error, normalised",
    "action_p99_error": "normalised: 1 % of the absolute errors are larger",
    "action_max_error": "the largest absolute error, normalised",
    "action_distance": "standard deviations between the distributions of predictions and of actions",
    "gripper_accuracy": "of the dimensions with two values are on the right side",
    "bin_accuracy": "of the bins are right or next to it",
}
