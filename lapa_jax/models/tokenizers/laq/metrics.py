"""Metrics of a latent action tokenizer from the arrays of `evaluate` over a data set. Plain numpy, on the host."""

import numpy as np

from lapa_jax.models.probe import probe_codes, probe_delta, r2_score
from lapa_jax.nn.losses import psnr
from lapa_jax.nn.quantizers.usage import dataset_usage


def summarize(arrays: dict[str, np.ndarray], codebook_size: int) -> dict[str, float]:
    """Scalars of a data set.

    Args:
      arrays: the arrays of `laq.Model.evaluate`, over all examples (padding removed).
      codebook_size: K.

    Returns:
      "mse"; of images "psnr": dB, of the mean squared error over all examples, "psnr_gain" over copying the first
        frame, "ssim" and "identical_frame_psnr"; of features "feature_gain", the same gain in dB.
      "swap_gap": error with the codes of another example, relative to that with the own ones, minus 1: 0 means that the
        decoder ignores the codes.
      of codes: their usage as of `dataset_usage`, "collapse" among it; "cycle_consistency", the share of codes that
        come back from (first frame, prediction); "identical_frame_agreement", for pairs of equal frames the share of
        the most frequent code, averaged over positions; 1 means that standing still has one code.
      without codes "cycle_delta_r2": `delta_r2` of the deltas that come back.
      "action_probe_r2", of codes, and "action_probe_r2_delta": see `lapa_jax.models.probe`; with "net_action" and
        "episode_id" only, and with episodes of even and of odd index. "action_probe_pairs": how many pairs they were
        fitted on.
      "loss_action", and R² of the head of few actions over all pairs that have one: "action_r2_<number>" of each number
        that varies, "action_r2" their mean; where `arrays` have its prediction.
    """
    mse, copy, swapped = (float(np.mean(arrays[name])) for name in ("mse", "mse_copy", "mse_swapped"))
    floor = 1e-12  # equal images have no finite PSNR
    gain = float(psnr(max(mse, floor)) - psnr(max(copy, floor)))
    of_kind = {"feature_gain": gain}
    if "ssim" in arrays:
        still = float(np.mean(arrays["identical_mse"]))
        of_kind = {"psnr": float(psnr(max(mse, floor))), "psnr_gain": gain, "ssim": float(np.mean(arrays["ssim"])),
                   "identical_frame_psnr": float(psnr(max(still, floor)))}  # fmt: skip
    result = {
        "mse": mse,
        **of_kind,
        "swap_gap": swapped / max(mse, floor) - 1,
    }
    if "codes" in arrays:
        result |= {"cycle_consistency": float(np.mean(arrays["cycle"])),
                   "identical_frame_agreement": _agreement(arrays["identical_codes"], codebook_size),
                   **dataset_usage(arrays["codes"], codebook_size)}  # fmt: skip
    else:
        result["cycle_delta_r2"] = delta_r2(arrays["delta_again"], arrays["delta"])
    return result | _probes(arrays, codebook_size) | _action_head(arrays)


def delta_r2(again: np.ndarray, delta: np.ndarray) -> float:
    """How well deltas f32 [M, N, Q] come back: 1 - their squared distance over their variance, all features together.
    1: as they were; 0: no nearer than their mean; about -1 for those of other pairs."""
    delta = delta.astype(np.float64)
    return float(1 - np.square(again - delta).mean() / max(np.square(delta - delta.mean(0)).mean(), 1e-12))


def _agreement(codes: np.ndarray, codebook_size: int) -> float:
    return float(np.mean([np.bincount(column, minlength=codebook_size).max() / len(codes) for column in codes.T]))


def _probes(arrays: dict[str, np.ndarray], codebook_size: int) -> dict[str, float]:
    if "net_action" not in arrays or "episode_id" not in arrays:
        return {}
    action, episode = arrays["net_action"], arrays["episode_id"]
    probes = {"action_probe_r2_delta": probe_delta(arrays["delta"], action, episode)}
    if "codes" in arrays:
        probes["action_probe_r2"] = probe_codes(arrays["codes"], action, episode, codebook_size)
    scores = {name: result.r2 for name, result in probes.items() if result is not None}
    return scores | {"action_probe_pairs": float(np.sum(episode % 2 == 0))} if scores else {}


def _action_head(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    if "action_prediction" not in arrays or not (mask := arrays["pair_action_mask"] > 0).any():
        return {}
    prediction, action = (arrays[name].astype(np.float64) for name in ("action_prediction", "pair_action"))
    # Numbers of other data sets of a mixture have no row that counts.
    numbers = [i for i in range(mask.shape[1]) if mask[:, i].any()]
    r2 = {i: r2_score(*(x[mask[:, i], i : i + 1] for x in (prediction, action)))[0] for i in numbers}
    named = {f"action_r2_{i}": float(value) for i, value in r2.items() if np.isfinite(value)}
    mean = {"action_r2": float(np.mean(list(named.values())))} if named else {}
    return {"loss_action": float(np.square(prediction - action)[mask].mean()), **named, **mean}
