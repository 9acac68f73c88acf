"""Measures a trained feature tokenizer on held-out rows: `metrics.json`, pictures and `report.html`."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.inference import column_plots
from lapa_jax.inference.evaluations.columns import ColumnEvaluation, Rows, code_rows
from lapa_jax.inference.report import Section


class Evaluation(ColumnEvaluation):
    """One evaluation of a `FeatureTokenizer`, see `ColumnEvaluation`."""

    NOUN = "rows"

    def _one_batch(self, batch: Mapping[str, np.ndarray], dataset: str | None) -> tuple:
        tokenizer = self.tokenizer
        true = batch[tokenizer.column][:, : tokenizer.width_of(dataset)]
        codes = tokenizer.encode(true, dataset=dataset)
        decoded, mask = tokenizer.decode(codes, dataset=dataset), np.ones((len(true), 1), bool)
        return true[:, None], decoded[:, None], mask, codes, batch["episode_id"], batch["step"]

    def sections(self, rows: Sequence[Rows], arrays: Mapping[str, np.ndarray], result: Mapping) -> list[Section]:
        """Code usage."""
        column_plots.usage(self.out / "usage.png", code_rows(rows), result["codes"])
        words = ("How often each code occurs at each place, the most frequent first; dotted: all codes equally often. "
                 "Usage is not meaning.")  # fmt: skip
        return [Section("Code usage", words, ("usage.png",), column_plots.usage_table(result["codes"]))]
