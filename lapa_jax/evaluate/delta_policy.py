"""Measures a stage-2 policy of continuous latents on held-out steps: how much of the deltas it predicts, and whether it
looks and listens. `metrics.json`, images and `report.html`."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.evaluate import latent_policy
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Section, Verdict
from lapa_jax.models.probe import r2_score
from lapa_jax.plots import frames

MIN_R2, FEATURES = 0.15, 8
SCATTER_FILE = "deltas.png"


class Evaluation(latent_policy.Evaluation):
    """One evaluation of a `DeltaPolicy`. Arguments as of `latent_policy.Evaluation`, without a tokenizer."""

    MEASURE = "latent_r2"

    def judge(self, result: Mapping) -> list[Verdict]:
        """What the numbers mean, the most telling first."""
        levels = {"latent_r2": MIN_R2, "text_use": latent_policy.MIN_USE, "image_use": latent_policy.MIN_USE}
        lines = []
        for name, words in _WORDS.items():
            if (value := result["metrics"].get(name)) is not None:
                level = NOTE if name not in levels else GOOD if value >= levels[name] else POOR
                lines.append(Verdict(name, f"{value:.3f}", level, words))
        return lines

    def _sections(self, arrays: Mapping[str, np.ndarray], samples: list[dict]) -> list[Section]:
        kept = arrays["weight"].max((1, 2)) > 0
        true, predicted = (arrays[name][kept].reshape(int(kept.sum()), -1) for name in ("action", "prediction"))
        positions, width = arrays["action"].shape[1:]
        names = [f"position {i}, feature {j}" for i in range(positions) for j in range(width)][:FEATURES]
        shown = predicted[:, :FEATURES], true[:, :FEATURES]
        frames.probe_scatter(self.out / SCATTER_FILE, *shown, r2_score(*shown), names)
        return [Section("Predicted and true deltas", _SCATTER, (SCATTER_FILE,)), self.course("val/latent_r2")]


_SCATTER = ("Each dot is a held-out step whose frame pair is whole; deltas are normalised as in training. Points on "
            f"the dotted line are right. The first {FEATURES} features.")  # fmt: skip
_WORDS = {
    "latent_r2": "of the deltas' variation is predicted, mean over the features; always giving the mean delta has 0",
    "latent_mse": "mean squared error of the deltas, normalised",
    "latent_mse_mean": "the same of always giving the mean delta",
    "latent_mae": "mean absolute error of the deltas, normalised",
    "text_use": "R² lost with the instruction of another sample: how much it listens",
    "image_use": "R² lost with the image of another episode: how much it looks",
}
