"""Measures a trained action tokenizer on held-out actions: `metrics.json`, images and `report.html`."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.evaluate.report import Section
from lapa_jax.evaluate.tokenizers import ColumnEvaluation, Rows, code_rows, entry_name
from lapa_jax.plots import tokenizers


class Evaluation(ColumnEvaluation):
    """One evaluation of an `ActionTokenizer`, see `ColumnEvaluation`."""

    NOUN = "action sequences"

    def _one_batch(self, batch: Mapping[str, np.ndarray], dataset: str | None) -> tuple:
        tokenizer = self.tokenizer
        state = batch["state"][..., : tokenizer.width_of(dataset, "state")] if tokenizer.takes_state else None
        true, mask = batch["action"][..., : tokenizer.width_of(dataset)], batch["action_mask"] > 0
        codes = tokenizer.encode(true, mask, state=state, dataset=dataset)
        steps = () if tokenizer.chunk_length else (mask,)
        decoded = tokenizer.decode(codes, *steps, dataset=dataset)
        return true, decoded, mask, codes, batch["episode_id"], batch["step"]

    def sections(self, rows: Sequence[Rows], arrays: Mapping[str, np.ndarray], result: Mapping) -> list[Section]:
        """Trajectories of each dataset, and code usage."""
        sections = []
        for number, part in enumerate(rows):
            names = [entry_name(d) for d in result["datasets"][part.name]["dimensions"]]
            file = "trajectories.png" if len(rows) == 1 else f"trajectories_{number}.png"
            drawn = tokenizers.trajectories(self.out / file, part, self._statistics(part)["scale"], names)
            words = ("True actions (grey) and what is decoded from their codes, in the units of the data: the "
                     "sequences with the least, the median and the largest error.")  # fmt: skip
            sections.append(Section(f"Trajectories of {part.name}", words + drawn, (file,)))
        tokenizers.usage(self.out / "usage.png", code_rows(rows), result["codes"])
        words = ("How often each code occurs at each code position, the most frequent first; dotted: all codes equally "
                 "often. Usage is not meaning.")  # fmt: skip
        return [*sections, Section("Code usage", words, ("usage.png",), tokenizers.usage_table(result["codes"]))]
