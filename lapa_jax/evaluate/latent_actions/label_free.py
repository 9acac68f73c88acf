"""Figures that need no action and ask whether latent actions say how things move, or only where they are.

None has been shown to replace a probe on labelled episodes: `launch/studies/label_free.py` ranks them against one.
"""

from collections.abc import Iterable, Mapping

import jax
import numpy as np

from lapa_jax.evaluate.latent_actions.transfer import PAIRS, gather, partners
from lapa_jax.models.probe import probe_delta
from lapa_jax.models.tokenizers.laq.metrics import delta_r2
from lapa_jax.nn.views import shift_clips

SHIFT = 1 / 8
"""Of the image's side: how far the second view is moved at most."""

BLOCKS, COMPONENTS = 16, 32
"""What is seen of a single frame: so many blocks along each side, and so many principal components of them."""


def measure(tokenizer, batches: Iterable[Mapping[str, np.ndarray]], limit: int = PAIRS) -> dict[str, float]:
    """The metrics of pairs that are moved, reversed, and given the codes of pairs that end in a similar image.

    Args:
      tokenizer: a `LatentActionTokenizer` of images. batches: of held-out pairs, with "frames", "episode_id", "mask".
      limit: how many pairs at most.

    Returns:
      "view_consistency": share of the codes that stay when both frames are shifted by the same pixels; without codes
        "view_delta_r2", `delta_r2` of the deltas.
      "reversal_correlation": mean correlation of a feature of the delta with that of the reversed pair. What says a
        motion can turn its sign, -1; what says a place has that of a place nearby.
      "reversal_r2": R² of a ridge from deltas to those of the reversed pairs, on episodes that it was not fitted on.
      "one_frame_r2": R² of a ridge from the second frame alone to the deltas: how much of them is a place.
      "swap_gap_same_place": growth of the error when each pair gets the codes of another episode's pair whose second
        frame is the most similar. 0: that place is all that the decoder is told.
      Empty where the pairs are of one episode, or most of them.
    """
    rows = gather(batches, limit)
    frames, episodes = rows["frames"], rows["episode_id"]
    if partners(episodes) is None:
        return {}
    own = tokenizer.encode_both(frames)
    delta, reversed_delta = (flat(each["delta"]) for each in (own, tokenizer.encode_both(frames[:, ::-1])))
    shifted = tokenizer.encode_both(np.asarray(shift_clips(frames, jax.random.key(0), round(frames.shape[2] * SHIFT))))
    latent = "codes" if "codes" in own else "delta"
    if latent == "codes":
        metrics = {"view_consistency": float((shifted["codes"] == own["codes"]).mean())}
    else:
        metrics = {"view_delta_r2": delta_r2(shifted["delta"], own["delta"])}
    metrics["reversal_correlation"] = mean_correlation(delta, reversed_delta)

    last = principal_components(blocks(frames[:, 1]))
    for name, features, target in (("reversal_r2", delta, reversed_delta), ("one_frame_r2", last, delta)):
        score = probe_delta(features[:, None], target, episodes)
        metrics |= {} if score is None else {name: score.r2}

    alike = most_similar(last, episodes)
    observed = tokenizer.observe(frames[:, 1])
    error, swapped = (np.square(tokenizer.decode(frames[:, 0], codes) - observed).mean()
                      for codes in (own[latent], own[latent][alike]))  # fmt: skip
    return metrics | {"swap_gap_same_place": float(swapped / max(error, 1e-12) - 1)}


def flat(delta: np.ndarray) -> np.ndarray:
    """[M, N, Q] -> f64 [M, N * Q]."""
    return delta.reshape(len(delta), -1).astype(np.float64)


def mean_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """The mean over the columns of [M, F] of their correlation; columns that do not vary have 0."""
    one, other = one - one.mean(0), other - other.mean(0)
    size = np.sqrt(np.square(one).sum(0) * np.square(other).sum(0))
    return float(np.mean((one * other).sum(0) / np.maximum(size, 1e-12)))


def blocks(images: np.ndarray) -> np.ndarray:
    """uint8 [M, H, W, 3] -> f64 [M, F], the means of `BLOCKS` x `BLOCKS` blocks; of single pixels where it is small."""
    height, width = (max(1, side // BLOCKS) for side in images.shape[1:3])
    rows, columns = images.shape[1] // height, images.shape[2] // width
    parts = images[:, : rows * height, : columns * width].reshape(len(images), rows, height, columns, width, 3)
    return parts.mean((2, 4), dtype=np.float64).reshape(len(images), -1)


def principal_components(rows: np.ndarray) -> np.ndarray:
    """f64 [M, F] -> [M, at most `COMPONENTS`], scaled as the rows are."""
    u, s, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return (u * s)[:, :COMPONENTS]


def most_similar(features: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """For each row [M, F] the number of the nearest one of another episode."""
    squares = np.square(features).sum(1)
    distance = squares[:, None] + squares - 2 * features @ features.T
    distance[episodes[:, None] == episodes] = np.inf
    return distance.argmin(1)
