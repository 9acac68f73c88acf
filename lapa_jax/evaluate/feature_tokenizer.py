"""Measures a trained feature tokenizer on held-out rows: `metrics.json`, images and `report.html`."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.evaluate.token_quality import compression, discriminability
from lapa_jax.evaluate.tokenizers import ColumnEvaluation, Rows, code_rows
from lapa_jax.plots import codebooks, features, projections, tokenizers

BARS = (
    ("quality", 1, 0.90, "1 - squared error of the standardised features"),
    ("codebook_utilization", 1, 0.80, "share of all codes that occur"),
    ("orthogonality", -1, 0.25, "largest correlation of two category centroids; less is better"),
    ("topo", 1, 0.85, "rank correlation of distances between features and between codes"),
)
"""(metric, 1 where more is better and -1 where less is, bar, words)."""
QUALITY = {
    "compression_ratio": "32 bits for each feature that varies, over the bits of the codes",
    "entropy_per_row": "bits that codes need where it is known how often each occurs",
    "episode_accuracy_features": "of rows are nearest to their own episode's mean, by features",
    "episode_accuracy_codes": "the same, by codes",
    "discriminability": "of what the features have above chance is in the codes",
}
"""Measures of the codes without a bar, see `token_quality`."""


class Evaluation(ColumnEvaluation):
    """One evaluation of a `FeatureTokenizer`, see `ColumnEvaluation`."""

    NOUN = "rows"

    def __init__(self, tokenizer, *, projection: str | None = None, **arguments):
        """As of `ColumnEvaluation`; projection: of the maps of codebooks, see `plots.projections`; "pca" where None."""
        self._projection = projection or "pca"
        projections.check_projection(self._projection)
        super().__init__(tokenizer, **arguments)

    def _dataset(self, part: Rows) -> dict:
        """The figures of one dataset; "measured" has those of `token_quality` too."""
        entry, true = super()._dataset(part), part.true[:, 0]
        entry["measured"] |= compression(true, part.codes, self.tokenizer.codebook_sizes)
        entry["measured"] |= discriminability(true, part.codes, part.episode, part.step)
        return entry

    def _one_batch(self, batch: Mapping[str, np.ndarray], dataset: str | None) -> tuple:
        tokenizer = self.tokenizer
        true = batch[tokenizer.column][:, : tokenizer.width_of(dataset)]
        codes = tokenizer.encode(true, dataset=dataset)
        decoded, mask = tokenizer.decode(codes, dataset=dataset), np.ones((len(true), 1), bool)
        return true[:, None], decoded[:, None], mask, codes, batch["episode_id"], batch["step"]

    def figures(self, result: Mapping) -> dict[str, float | None]:
        """The metrics of training first: the bars are on these."""
        return {**result["measured"], **result["metrics"]}

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the model is meant to reach first, then the rest."""
        metrics = {name: result["metrics"].get(name) for name, *_ in BARS}
        lines = []
        for name, sign, bar, words in BARS:
            if (value := metrics[name]) is not None:
                level = GOOD if sign * value >= sign * bar else POOR
                lines.append(Verdict(name, f"{value:.3f}", level, f"{words} (the bar is {bar:.2f})"))
        r2 = result["measured"].get(f"{self.tokenizer.column}_r2")
        if r2 is not None:
            words = "mean over the features, outliers counted in full, which quality cuts"
            lines.append(Verdict(f"{self.tokenizer.column}_r2", f"{r2:.3f}", NOTE, words))
        lines += [Verdict(name, f"{result['measured'][name]:.3g}", NOTE, words)
                  for name, words in QUALITY.items() if name in result["measured"]]  # fmt: skip
        judged = {line.metric for line in lines}
        return lines + [verdict for verdict in super().judge(result) if verdict.metric not in judged]

    def sections(self, rows: Sequence[Rows], arrays: Mapping[str, np.ndarray], result: Mapping) -> list[Section]:
        """The categories, how their levels are used, maps of the codebooks (of models that have them), code usage."""
        categories = self._categories(rows, arrays) if self.tokenizer.model.layout() is not None else []
        return [*categories, *self._usage_section(rows, result)]

    def _categories(self, rows: Sequence[Rows], arrays: Mapping[str, np.ndarray]) -> list[Section]:
        layout, out = self.tokenizer.model.layout(), self.out
        names = self._features(rows[0].name).get("names") or [str(i) for i in range(layout.features)]
        features.category_heat_map(out / "categories.png", arrays["feature"], layout, names)
        features.category_quality(out / "quality.png", arrays["feature"], arrays["reconstruction"], layout)
        features.level_utilization(out / "levels.png", arrays["codes"], layout)
        books = np.asarray(self.tokenizer.variables["codebook"]["codebooks"]["codes"])
        words = codebooks.codebook_maps(out / "codebooks.png", arrays, books, layout, self._projection)
        return [
            Section("Categories", "Absolute correlation of the features on held-out rows, ordered by category; boxes "
                    "are categories. Light outside of the boxes is what categories share.", ("categories.png",),
                    _category_table(self.tokenizer.model, layout, names)),
            Section("What comes back", "Bars: categories; dots: their features.", ("quality.png",)),
            Section("Levels", "Level 0 has the shortest vectors and the most codes.", ("levels.png",)),
            Section("Codebook maps", "Vectors in the colour of their code, codes as circles, the larger the more used, "
                    f"white ones unused. {words}", ("codebooks.png",)),
        ]  # fmt: skip

    def _usage_section(self, rows: Sequence[Rows], result: Mapping) -> list[Section]:
        tokenizers.usage(self.out / "usage.png", code_rows(rows), result["codes"])
        words = ("How often each code occurs at each code position, the most frequent first; dotted: all codes equally "
                 "often. Usage is not meaning.")  # fmt: skip
        return [Section("Code usage", words, ("usage.png",), tokenizers.usage_table(result["codes"]))]


def _category_table(model, layout, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The features of each category, with what was done to those that needed it."""
    copies = {feature: original for feature, original, _ in layout.duplicates}
    orphans = set(model.orphans)

    def word(i: int) -> str:
        note = f" (copy of {names[copies[i]]})" if i in copies else " (of no cluster)" if i in orphans else ""
        return f"{names[i]}{note}"

    lines = [(f"category {c}", ", ".join(map(word, group)), " ".join(map(str, sizes)))
             for c, (group, sizes) in enumerate(zip(layout.groups, layout.sizes))]  # fmt: skip
    constants = [("constant", ", ".join(names[i] for i in layout.constants), "")] if layout.constants else []
    return (("", "features", "codes"), *lines, *constants)
