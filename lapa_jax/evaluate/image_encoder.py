"""Measures a trained image encoder on held-out pairs: what it predicts of hidden patches, and what its features say
about the action between two frames. `metrics.json`, an image and `report.html`."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.data import pipeline
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.evaluate import report, untrained
from lapa_jax.evaluate.base import REPORT_FILE, BaseEvaluation, data_config
from lapa_jax.evaluate.latent_actions.verdicts import MIN_PROBE_OVER_UNTRAINED, MIN_PROBE_PAIRS
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.plots import masked

MASKED_FILE, EXAMPLES = "masked.png", 8
PROBE = "feature_probe_r2"


class Evaluation(BaseEvaluation):
    """One evaluation of an `ImageEncoder`."""

    def __init__(self, tokenizer, *, run, out, data=None, split: str | None = None, pairs: int = 2048):
        """Opens the held-out pairs. Arguments as of `latent_actions.evaluation.Evaluation`."""
        config = data_config(tokenizer.config, data, split, tokenizer.datasets)
        source = pipeline.build(config, "val", image_size=tokenizer.side, fields=pipeline.eval_fields(config),
                                statistics=statistics_of({"datasets": tokenizer.datasets}) or None)  # fmt: skip
        super().__init__(tokenizer, run=run, out=out, data=config, source=source, count=pairs)
        self.as_in_training = data is None and split is None

    def write(self) -> dict:
        """Measures, draws and writes; returns the content of `metrics.json`."""
        metrics, _ = self.measure(self.tokenizer.variables)
        if PROBE in metrics:
            metrics |= untrained.probes(self, (PROBE,))
        result = self.save({**self.about(), "pairs": self.count, "metrics": dict(sorted(metrics.items()))})
        picked = np.unique(np.linspace(0, len(self.source) - 1, EXAMPLES).astype(int))
        frames = np.stack([self.source[int(i)]["frames"] for i in picked])
        predicted = self.tokenizer.predict(frames)
        masked.draw(self.out / MASKED_FILE, frames[:, 0], *(predicted[n][:, 0] for n in ("hidden", "reconstruction")))
        about = self.about()
        report.write(
            self.out / REPORT_FILE,
            title=f"Image encoder of {self.run.name}",
            subtitle=f"step {about['step']}, {self.count} pairs of {about['data']} ({about['split']})",
            verdicts=self.judge(result),
            note="Held-out episodes.",
            **self.head(),
            sections=[Section("Hidden patches", _PICTURES, (MASKED_FILE,)), self.course("val/masked_r2")],
        )
        return result

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the numbers mean, the most telling first."""
        metrics = {name: value for name, value in result["metrics"].items() if value is not None}
        lines = [*_probe(metrics)]
        if (r2 := metrics.get("masked_r2")) is not None:
            words = "of what hidden patches show besides their mean colour is predicted from the others"
            lines.append(Verdict("masked_r2", f"{r2:.3f}", GOOD if r2 > 0 else POOR, words))
        judged = {line.metric for line in lines}
        return lines + [Verdict(name, f"{metrics[name]:.4g}", NOTE, "") for name in sorted(metrics.keys() - judged)]


def _probe(metrics: Mapping[str, float]):
    """Lines about what the features say about the action."""
    score, floor = metrics.get(PROBE), metrics.get(f"{PROBE}_untrained")
    if score is None:
        return
    level, words = NOTE, "how well the change of the mean features of each quarter predicts the action"
    pairs = metrics["feature_probe_pairs"]
    if pairs < MIN_PROBE_PAIRS:
        words = f"fitted on {pairs:.0f} pairs, too few to judge by (the bar needs {MIN_PROBE_PAIRS})"
    elif floor is not None:
        level = GOOD if score - floor >= MIN_PROBE_OVER_UNTRAINED and score > 0 else POOR
        words += f"; {score - floor:+.2f} over the same tower untrained (the bar is +{MIN_PROBE_OVER_UNTRAINED})"
    yield Verdict(PROBE, f"{score:.2f}", level, words)
    if floor is not None:
        yield Verdict(f"{PROBE}_untrained", f"{floor:.2f}", NOTE, "the same of the untrained tower")


_PICTURES = (
    "The tower sees the patches that are not grey, and the decoder predicts the others from its features. What is "
    "predicted of a patch is all but its mean colour and its contrast, which are the true ones here."
)
