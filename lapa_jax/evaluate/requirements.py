"""What an evaluation must reach: `launch/eval.py --require 'swap_gap>=0.15'`, and the specification's bars by name."""

import dataclasses
import math
import operator
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from lapa_jax.core.checkpoint_step import FOLDER
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.metrics import read_metrics

SETS = {
    # S4, tasks 1.10 and 2.2; S1, task 1.8. "Perplexity close to codebook_size" names no number and is not in them.
    "spec-laq": ("psnr>22", "codebook_utilization>0.7"),
    "spec-laq-conv": ("psnr>20", "codebook_utilization>0.8"),
    "spec-latent-policy": ("latent_accuracy>0.6",),
    # S2, "Expected Metrics"
    "spec-feature-vq": ("quality>0.9", "codebook_utilization>0.8", "orthogonality<0.25", "topo>0.85"),
}
"""{name: the bars of the specification}."""

ADDED = (
    "action_probe_r2", "action_probe_r2_delta", "action_probe_r2_untrained", "action_probe_r2_delta_untrained",
    "action_probe_r2_reference", "reference_steps", "reference_stopped", "reference_of_training",
    "action_probe_r2_mlp", "action_probe_pairs", "feature_probe_r2", "feature_probe_r2_untrained",
    "feature_probe_pairs", "transfer_consistency", "transfer_chance", "transfer_action_r2", "transfer_delta_r2",
    "transfer_delta_chance", "view_consistency",
    "view_delta_r2", "reversal_correlation", "reversal_r2", "one_frame_r2", "swap_gap_same_place",
    "latent_accuracy_shuffled_text", "latent_accuracy_shuffled_image",
    "latent_r2_shuffled_text", "latent_r2_shuffled_image",
    "text_use", "image_use",
    "action_mse", "action_mae", "action_p99_error", "action_max_error", "action_r2", "feature_mse", "feature_mae",
    "feature_r2", "gripper_accuracy", "perplexity", "codebook_utilization", "dead_codes", "bits_per_row",
    "entropy_per_row", "compression_ratio", "episode_accuracy_features", "episode_accuracy_codes",
    "episode_accuracy_chance", "discriminability",
)  # fmt: skip
"""Metrics that evaluations have besides those that the run logged under "val/", or that other data may bring."""

CLOSED_LOOP = ("success_rate", "success_rate_low", "success_rate_high", "success_rate_expert", "success_rate_random",
               "success_rate_repeat", "of_expert")  # fmt: skip
"""Metrics of an evaluation in an environment."""

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_FORM = re.compile(r"\s*([\w./-]+?)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclasses.dataclass(frozen=True)
class Requirement:
    """One bar. Attributes: metric: its name in metrics.json. sign: one of >=, <=, >, <. bar: a finite number."""

    metric: str
    sign: str
    bar: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bar:g}"


def parse(texts: Iterable[str]) -> list[Requirement]:
    """The requirements of "METRIC>=NUMBER" (also <=, > and <) and of names of `SETS`, in their order.

    Raises:
      UserError: a text that is neither.
    """
    requirements = []
    for text in texts:
        if text in SETS:
            requirements += parse(SETS[text])
            continue
        match = _FORM.fullmatch(text)
        if match is None:
            close = did_you_mean(text, SETS) if text.startswith("spec") else f"; or one of {', '.join(SETS)}"
            raise UserError(f"--require '{text}' is not of the form METRIC>=NUMBER (or <=, >, <){close}")
        metric, sign, number = match.groups()
        try:
            bar = float(number)
        except ValueError:
            bar = math.nan
        if not math.isfinite(bar):
            raise UserError(f"--require '{text}': '{number}' is no number to compare with")
        if metric.startswith("val/"):
            name = metric.removeprefix("val/")
            raise UserError(f"--require '{text}': val/ is where training logs it; give {name}{sign}{number}")
        requirements.append(Requirement(metric, sign, bar))
    return requirements


def check_names(requirements: Sequence[Requirement], known: Iterable[str]) -> None:
    """Refuses metrics that are none of `known`; "DATASET/METRIC" is one where METRIC is.

    Raises:
      UserError: which metric, and the closest names.
    """
    known = set(known)
    for requirement in requirements:
        if requirement.metric not in known and requirement.metric.rpartition("/")[2] not in known:
            raise UserError(f"--require {requirement}: this evaluation has no metric '{requirement.metric}'"
                            f"{did_you_mean(requirement.metric, known)}")  # fmt: skip


def names_of_run(run: str | pathlib.Path) -> set[str] | None:
    """The metrics that an evaluation of a run can have, from its folder or one of its checkpoints' alone; None where
    no `metrics.jsonl` tells, as in an exported folder."""
    folder = pathlib.Path(run)
    if folder.parent.name == FOLDER:
        folder = folder.parent.parent
    logged = {name.removeprefix("val/") for line in read_metrics(folder) for name in line if name.startswith("val/")}
    return logged | set(ADDED) if logged else None


def failures(requirements: Sequence[Requirement], metrics: Mapping[str, float | None]) -> list[str]:
    """A line for each requirement that is not met; a metric that is missing or not finite does not meet any."""
    lines = []
    for requirement in requirements:
        value = metrics.get(requirement.metric)
        if requirement.metric not in metrics:
            lines.append(f"{requirement}: this evaluation has no {requirement.metric}"
                         f"{did_you_mean(requirement.metric, metrics)}")  # fmt: skip
        elif value is None or not math.isfinite(value):
            lines.append(f"{requirement}: {requirement.metric} is not finite")
        elif not _COMPARE[requirement.sign](value, requirement.bar):
            lines.append(f"{requirement}: {requirement.metric} is {value:.4g}")
    return lines
