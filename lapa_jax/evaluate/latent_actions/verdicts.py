"""What the numbers of a latent action model mean, in plain words.

The thresholds are the project's own bar for a latent action model that is worth building on. They judge what the codes
say about the action; reconstruction alone never passes (a decoder that sees the future needs no codes at all).
"""

import math
from collections.abc import Mapping

from lapa_jax.core.output import COLLAPSED
from lapa_jax.evaluate.report import GOOD, NOTE, POOR, Verdict

MIN_SWAP_GAP = 0.15
MIN_USE = 0.6
COLLAPSED_USE = 0.25
MIN_PROBE_OF_REFERENCE = 0.5
# Four positions of eight codes are 32 features: a ridge on fewer than eight pairs for each says little.
MIN_PROBE_PAIRS = 256
MIN_PROBE_OVER_UNTRAINED = 0.15


def judge(
    metrics: Mapping[str, float | None], codebook_size: int | None, *, mirrored: bool = False
) -> list[Verdict]:
    """Judges what is there; a metric that is absent or None gets no line.

    Args:
      metrics: bare names ("psnr_gain", ...) to values, as in metrics.json.
      codebook_size: K, the number of codes a position can take; None where there are no codes: then the probe on the
        deltas is judged.
      mirrored: whether training mirrored some of the pairs.

    Returns:
      The verdicts, the most telling first.
    """
    finite = {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}
    probe = "action_probe_r2" if codebook_size else "action_probe_r2_delta"
    lines = [*_meaning(finite, probe), *_bottleneck(finite), *_usage(finite, codebook_size, mirrored), *_rest(finite)]
    return [line for line in lines if line is not None]


def _meaning(m, probe: str):
    """Lines about what the codes, or the deltas where there are none, say about the true action."""
    score, latents = m.get(probe), "codes" if probe == "action_probe_r2" else "deltas"
    if score is None:
        return
    upper, floor = m.get("action_probe_r2_reference"), m.get(f"{probe}_untrained")
    words, good = [], True
    if upper is not None:
        share = score / upper if upper > 0 else 0.0
        good &= share >= MIN_PROBE_OF_REFERENCE
        words.append(f"{share:.0%} of the reference, which learned from true actions (the bar is 50%)")
    if floor is not None:
        good &= score - floor >= MIN_PROBE_OVER_UNTRAINED
        words.append(f"{score - floor:+.2f} over the same network untrained (the bar is +0.15)")
    if score <= 0:
        good = False
        words.append(f"the {latents} say nothing linear about the action, however much they are used")
    pairs = m.get("action_probe_pairs", MIN_PROBE_PAIRS)
    level = (GOOD if good else POOR) if words else NOTE
    if pairs < MIN_PROBE_PAIRS:
        level, words = NOTE, [f"fitted on {pairs:.0f} pairs, too few to judge by (the bar needs {MIN_PROBE_PAIRS})"]
    yield Verdict(probe, f"{score:.2f}", level, "; ".join(words) or f"how well {latents} predict the net action")
    for name, text in (
        ("action_probe_r2_mlp", "a small network in place of the linear probe: what codes say only together"),
        ("action_probe_r2_delta", "the same probe on the continuous delta, before the codes round it"),
        ("action_probe_r2_untrained", "the probe on the untrained network's codes: only what exceeds it was learned"),
        ("action_probe_r2_delta_untrained", "the probe on the untrained network's delta"),
        ("action_probe_r2_reference", "the reference: the same encoder trained on true actions"),
    ):
        if name in m and name != probe:
            yield Verdict(name, f"{m[name]:.2f}", NOTE, text)


def _bottleneck(m):
    """Lines about whether the decoder uses the codes."""
    if (gap := m.get("swap_gap")) is not None:
        good = gap >= MIN_SWAP_GAP
        words = "with another pair's codes the error grows by this much: " + (
            "the decoder listens to the codes" if good else "the decoder hardly listens to the codes (the bar is 15%)"
        )
        yield Verdict("swap_gap", f"{gap:.0%}", GOOD if good else POOR, words)
    if (gain := m.get("psnr_gain")) is not None:
        good = gain > 0
        words = "better than copying the first frame" if good else "worse than copying the first frame"
        yield Verdict("psnr_gain", f"{gain:+.2f} dB", GOOD if good else POOR, words)
    if (gain := m.get("feature_gain")) is not None:
        words = f"{'better' if gain > 0 else 'worse'} than copying the first frame's features"
        yield Verdict("feature_gain", f"{gain:+.2f} dB", GOOD if gain > 0 else POOR, words)


_MIRRORED = ("training mirrored pairs, and where a mirrored scene looks different they take codes of their own: "
             "compare --config.data.augment=None")  # fmt: skip


def _usage(m, size, mirrored: bool):
    """Lines about how many codes are in use. Usage is not meaning: all codes can be used and say nothing."""
    if (effective := m.get("perplexity")) is not None:
        few = [f"position {i}: {value:.2f}" for i, value in _positions(m, "perplexity_position_")
               if value < MIN_USE * size]  # fmt: skip
        if effective < max(1.5, COLLAPSED_USE * size):
            level, words = POOR, "COLLAPSE: nearly every pair gets the same code"
        elif effective < MIN_USE * size or few:
            words = f"few of the {size} codes are in use (the bar is {MIN_USE * size:.1f}, at each position)"
            level, words = POOR, "; ".join([words, *few, *([_MIRRORED] if mirrored else [])])
        else:
            level, words = GOOD, "the codes are in use, which alone says nothing about their meaning"
        yield Verdict("perplexity", f"{effective:.2f} of {size}", level, words)
    if (share := m.get("codebook_utilization")) is not None:
        level, words = GOOD if share >= 1 else POOR, "share of the codes that occur, the mean over the code positions"
        missing = [f"{name}: {used:.0%}" for name, used in _positions(m, "codebook_utilization_") if used < 1]
        yield Verdict("codebook_utilization", f"{share:.0%}", level, "; ".join([words, *missing]))
    if collapsed := [name for name, share in _positions(m, "largest_code_share_") if share > COLLAPSED]:
        words = f"COLLAPSE: one code takes more than {COLLAPSED:.0%} there"
        yield Verdict("collapse", ", ".join(collapsed), POOR, words)


def _positions(m, prefix: str) -> list[tuple[str, float]]:
    """("position 0", value), ... of the metrics of each code position."""
    return [(name.removeprefix(prefix).replace("_", " "), m[name]) for name in sorted(m) if name.startswith(prefix)]


_PLAIN = {
    "reference_steps": ("{:.0f}", "training steps of the reference that was best on episodes left out"),
    "reference_stopped": ("{:.0f}", "1: the reference had stopped improving; 0: it was cut off and may reach more "
                                    "with more --reference_steps"),
    "reference_of_training": ("{:.0f}", "1: the reference learned from the training split; 0: that is of no use, so "
                                        "it learned from the probe's few held-out episodes, and knows less"),
    "psnr": ("{:.2f} dB", "reconstruction from hard codes; copying a still scene scores high too"),
    "ssim": ("{:.3f}", "structural similarity of the reconstruction"),
}


def _rest(m):
    judged = {"action_probe_r2", "swap_gap", "psnr_gain", "feature_gain", "perplexity", "codebook_utilization",
              "collapse"}  # fmt: skip
    for name, (shape, words) in _PLAIN.items():
        if name in m:
            yield Verdict(name, shape.format(m[name]), NOTE, words)
    for name in sorted(m):
        if name not in judged | set(_PLAIN) and not name.startswith("action_probe_r2"):
            yield Verdict(name, f"{m[name]:.4g}", NOTE, "")
