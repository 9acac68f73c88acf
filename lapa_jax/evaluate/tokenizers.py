"""Evaluations of tokenizers of numeric columns: held-out rows through encode and decode, errors in the data's units."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import COLLAPSED
from lapa_jax.data import pipeline
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.statistics import kinds
from lapa_jax.evaluate import report
from lapa_jax.evaluate.base import REPORT_FILE, BaseEvaluation, open_scaled, unscaled
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.nn.quantizers import usage

WORST = 20
"""Of many dimensions the table shows those with the lowest R²."""

MIN_R2, MIN_ACCURACY, MIN_UTILIZATION = 0.9, 0.95, 0.8
# So many rows for each code must have had the chance to use it before its absence says something.
ROWS_PER_CODE = 10


@dataclasses.dataclass(frozen=True)
class Rows:
    """Held-out samples of one dataset, encoded and decoded.

    Attributes:
      name: of the part of the data. dataset: whose scaling the tokenizer used; None where nothing is scaled.
      true, decoded: f32[M, T, A] in the units of the data; T is 1 for rows without time.
      mask: bool[M, T], which rows exist. codes: int32[M, N] or [M, T, N].
      episode, step: int[M], where each sample begins.
    """

    name: str
    dataset: str | None
    true: np.ndarray
    decoded: np.ndarray
    mask: np.ndarray
    codes: np.ndarray
    episode: np.ndarray
    step: np.ndarray


class ColumnEvaluation(BaseEvaluation):
    """One evaluation of a `ColumnTokenizer`."""

    NOUN = "rows"

    def __init__(
        self, tokenizer, *, run, out, data=None, split: str | None = None, pairs: int = 2048, dataset: str | None = None
    ):
        """Opens the held-out samples, scaled for the model and as they are.

        Args:
          tokenizer: a `ColumnTokenizer`.
          run: where it came from; its `metrics.jsonl`, if any, gives the curves.
          out: the folder to write.
          data: a folder of step shards; the run's own if None. split: of it; the run's own ("val") if None.
          pairs: how many samples at most, chosen pseudo-randomly, always the same ones.
          dataset: of a run on several datasets: whose scaling `data` get; the one that they are if None.

        Raises:
          UserError: data that do not exist or do not fit.
        """
        if pairs < 2:
            raise UserError(f"{pairs} samples are too few to measure by; give --pairs 2 or more")
        config, source, self._parts = open_scaled(tokenizer, data, split, dataset)
        several = {f"{tokenizer.column}_dims": ()} if len(tokenizer.datasets) > 1 else {}
        source = as_wide_as(source, {name: v.shape[1:] for name, v in tokenizer.model.example(1).items()} | several)
        super().__init__(tokenizer, run=run, out=out, data=config, source=source, count=pairs)
        self.raw = pipeline.build(unscaled(config), "val")

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`.

        Its "metrics" are those that training logs under "val/"; "measured" is what `encode` and `decode` do to held-out
        samples: means over the datasets, whose own figures, with every dimension, are under "datasets"; "codes" tells
        the usage of the codes.
        """
        metrics, arrays = self.measure(self.tokenizer.variables)
        rows = self.decode()
        datasets = {part.name: self._dataset(part) for part in rows}
        codes = usage.positions(code_rows(rows), self.tokenizer.codebook_sizes, self.code_names())
        measured = _mean([entry["measured"] for entry in datasets.values()]) | self._usage(rows, codes)
        result = self.save({
            **self.about(), "samples": self.count, "metrics": dict(sorted(metrics.items())), "measured": measured,
            "datasets": datasets, "codes": codes,
        })  # fmt: skip
        sections = [*self._error_sections(result), *self.sections(rows, arrays, result)]
        sections.append(self.course())
        about = f"step {result['step']}, {self.count} {self.NOUN} of {result['data']} ({result['split']})"
        report.write(
            self.out / REPORT_FILE, title=f"{self.tokenizer.column.capitalize()} codes of {self.run.name}",
            subtitle=about, verdicts=self.judge(result), sections=sections, **self.head(),
        )  # fmt: skip
        return result

    def sections(self, rows: Sequence[Rows], arrays: Mapping[str, np.ndarray], result: Mapping) -> list[Section]:
        """The pictures of the kind.

        Args:
          rows: the samples, a part for each dataset. arrays: of the model's `evaluate`. result: of `metrics.json`.
        """
        raise NotImplementedError

    def decode(self) -> list[Rows]:
        """The held-out samples through `encode` and `decode`, a part for each dataset that has any."""
        decoded: dict[int, list[tuple]] = {}
        for batch in self.batches(self.raw):
            # Each dataset has its own scaling, so that a batch of a mixture is taken apart before encoding.
            which = np.asarray(batch.get("dataset_id", np.zeros(len(batch["mask"]), np.int32)))
            for number in np.unique(which[batch["mask"] > 0]).tolist():
                chosen = (which == number) & (batch["mask"] > 0)
                part_batch = {name: values[chosen] for name, values in batch.items()}
                decoded.setdefault(number, []).append(self._one_batch(part_batch, self._parts[number][1]))
        parts = sorted(decoded.items())
        return [Rows(*self._parts[number][:2], *map(np.concatenate, zip(*batches))) for number, batches in parts]

    def _one_batch(self, batch: Mapping[str, np.ndarray], dataset: str | None) -> tuple:
        """true, decoded [M, T, A], mask [M, T], codes, episode and step of samples of one dataset."""
        raise NotImplementedError

    def code_names(self) -> tuple[str, ...]:
        """What the code positions are called."""
        return tuple(self.tokenizer.model.code_names)

    def _dataset(self, part: Rows) -> dict:
        """The figures of one dataset: "dimensions", and their "measured" means."""
        column, features = self.tokenizer.column, self._features(part.name)
        statistics = self._statistics(part)
        entries = dimensions(part.true[part.mask], part.decoded[part.mask], statistics, features.get("names"))
        moving = [entry for entry in entries if entry["r2"] is not None]
        two = [entry["accuracy"] for entry in entries if entry["kind"] == "binary"]
        measured = {f"{column}_{name}": _average(entry[key] for entry in moving)
                    for name, key in (("mse", "mse_normalized"), ("mae", "mae_normalized"), ("r2", "r2"))}  # fmt: skip
        measured |= {"gripper_accuracy": _average(two)} if two and column == "action" else {}
        return {"scaling": part.dataset, "samples": len(part.true), "measured": measured, "dimensions": entries}

    def _features(self, name: str) -> Mapping:
        part = next(source for part_name, _, source in self._parts if part_name == name)
        return part.shards.features[self.tokenizer.column]

    def _statistics(self, part: Rows) -> dict:
        """What the column is like: "kind" and "scale" of every dimension, and "low" and "high" of binary ones."""
        entry = self.tokenizer.datasets.get(part.dataset, {}).get("statistics", {}).get(self.tokenizer.column)
        scaler = self.tokenizer.normalizer(part.dataset) if part.dataset else None
        if entry is None:
            rows = part.true[part.mask].astype(np.float64)
            words = ["continuous"] * rows.shape[1]
            return {"kind": words, "scale": rows.std(0), "low": rows.min(0), "high": rows.max(0)}
        scale = np.array(entry["std"]) if scaler is None else scaler.scale
        return {"kind": kinds(entry), "scale": scale, "low": np.array(entry["min"]), "high": np.array(entry["max"])}

    def _usage(self, rows: Sequence[Rows], codes: Sequence[Mapping]) -> dict[str, float]:
        return {
            "perplexity": _average(position["perplexity"] for position in codes),
            "codebook_utilization": min(position["utilization"] for position in codes),
            "dead_codes": float(sum(position["dead"] for position in codes)),
        }

    def _error_sections(self, result: Mapping) -> list[Section]:
        sections = []
        for name, entry in result["datasets"].items():
            # Constant dimensions have no r2, and come last.
            listed = sorted(entry["dimensions"], key=lambda d: math.inf if d["r2"] is None else d["r2"])
            shown = sorted(listed[:WORST], key=lambda d: d["index"])
            head = ("dimension", "kind", "R²", "MAE", "99 %", "largest", "MSE", "MAE normalised", "MSE normalised",
                    "accuracy")  # fmt: skip
            keys = ("r2", "mae", "p99_error", "max_error", "mse", "mae_normalized", "mse_normalized", "accuracy")
            table = [(entry_name(d), d["kind"], *(_number(d[key]) for key in keys)) for d in shown]
            words = ("MAE and MSE in the units of the data and in those of the model; 99 % of the absolute errors are "
                     "below the number of that name, and none is above the largest; R² against the mean of these "
                     "samples; accuracy: how often the nearer of two values is the right one.")  # fmt: skip
            if len(listed) > WORST:
                words += f" Shown are the {WORST} of {len(listed)} dimensions with the lowest R²."
            sections.append(Section(f"Errors of {name}", words, (), (head, *table)))
        return sections

    def figures(self, result: Mapping) -> dict[str, float | None]:
        """What `encode` and `decode` do, and of the metrics of training those that have no such name."""
        return {**result["metrics"], **result["measured"]}

    def judge(self, result: Mapping) -> list[Verdict]:
        """See `judge_column`."""
        return judge_column(result["measured"], result["metrics"], result["codes"], self.tokenizer.column)


def dimensions(true: np.ndarray, decoded: np.ndarray, about: Mapping, names: Sequence[str] | None = None) -> list[dict]:
    """Errors of every dimension, as JSON values.

    Args:
      true, decoded: f[S, A] in the units of the data.
      about: "kind" (words), "scale", "low", "high" f[A]; see `ColumnEvaluation`.
      names: of the dimensions.

    Returns:
      For each "index", "name", "kind", "mse", "mae", "p99_error" (which 1 % of the absolute errors exceed),
      "max_error", the same four "_normalized" (divided by the scale; 0 for constants),
      "r2" (1 - squared error over that of predicting the mean of these rows; None where they do not vary) and
      "accuracy" (binary ones: how often the decoded value is nearer to the true one of the two values; else None).
    """
    entries = []
    for i, kind in enumerate(about["kind"]):
        a, b = true[:, i].astype(np.float64), decoded[:, i].astype(np.float64)
        off, scale = np.abs(a - b), float(about["scale"][i])
        mse = float(np.mean(off**2))
        sizes = {"mae": float(off.mean()), "p99_error": float(np.percentile(off, 99)), "max_error": float(off.max())}
        middle, varies = (about["low"][i] + about["high"][i]) / 2, float(a.var()) > 1e-12 and kind != "constant"
        entries.append({
            "index": i, "name": names[i] if names else None, "kind": kind, "mse": mse, **sizes,
            "mse_normalized": mse / scale**2 if scale else 0.0,
            **{f"{key}_normalized": size / scale if scale else 0.0 for key, size in sizes.items()},
            "r2": 1 - mse / float(a.var()) if varies else None,
            "accuracy": float(np.mean((a > middle) == (b > middle))) if kind == "binary" else None,
        })  # fmt: skip
    return entries


def code_rows(rows: Sequence[Rows]) -> np.ndarray:
    """All rows of codes int32[.., N]: of codes for each step, those of steps that exist."""
    return np.concatenate([part.codes[part.mask] if part.codes.ndim == 3 else part.codes for part in rows])


def entry_name(dimension: Mapping) -> str:
    """What a dimension is called in tables and pictures."""
    return str(dimension["name"] or dimension["index"])


def _average(values) -> float:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers else math.nan


def _mean(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    return {name: _average(entry.get(name) for entry in entries) for name in names}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def judge_column(measured: Mapping, metrics: Mapping, codes: Sequence[Mapping], column: str) -> list[Verdict]:
    """Judges a tokenizer of actions or features.

    Args:
      measured, metrics, codes: of its `metrics.json`; see `ColumnEvaluation`.
      column: "action" or "feature"; it names the metrics.

    Returns:
      The verdicts, those with a bar first.
    """
    lines = []
    bars = (
        (f"{column}_r2", MIN_R2, "{:.3f}", "of the variation survives encoding and decoding"),
        ("gripper_accuracy", MIN_ACCURACY, "{:.1%}", "of the gripper's steps come back on the right side"),
    )
    for name, bar, shape, words in bars:
        if (value := measured.get(name)) is not None:
            level = GOOD if value >= bar else POOR
            lines.append(Verdict(name, shape.format(value), level, f"{words} (the bar is {shape.format(bar)})"))
    used, few = measured["codebook_utilization"], [c for c in codes if c["rows"] < ROWS_PER_CODE * c["size"]]
    level = GOOD if used >= MIN_UTILIZATION else NOTE if few else POOR
    words = f"share of the codes that occur, the least of all code positions (the bar is {MIN_UTILIZATION:.0%})"
    words += f"; {codes[0]['rows']} rows are too few to miss a code by" if level == NOTE else ""
    lines.append(Verdict("codebook_utilization", f"{used:.0%}", level, words))
    if collapsed := [code["name"] for code in codes if code["largest_share"] > COLLAPSED]:
        words = f"one code takes more than {COLLAPSED:.0%} there"
        lines.append(Verdict("collapse", ", ".join(collapsed), POOR, words))
    judged = {line.metric for line in lines}
    for name, value in {**metrics, **measured}.items():
        if name not in judged and value is not None:
            lines.append(Verdict(name, f"{value:.4g}", NOTE, ""))
    return lines
