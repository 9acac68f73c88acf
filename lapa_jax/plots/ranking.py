"""Which sequences an image shows: those with the least, the median and the largest error."""

import numpy as np


def ranked(true: np.ndarray, decoded: np.ndarray, mask: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sequences by their error.

    Args:
      true, decoded: f[M, T, A]. mask: bool[M, T]. scale: f[A], what errors are divided by; 0 leaves a dimension out.

    Returns:
      The error of each, f64[M], its mean square over real steps and dimensions; and, among those with the most real
      steps, the numbers of those with the least, the median and the largest, int[up to 3].
    """
    error = np.divide(decoded - true, scale, out=np.zeros(true.shape), where=scale > 0) * mask[..., None]
    each = (error**2).sum((1, 2)) / np.maximum(mask.sum(1) * max(1, (scale > 0).sum()), 1)
    order = np.argsort(each, kind="stable")
    length = mask.sum(1)
    order = order[length[order] == length.max()]
    chosen = order[[0, len(order) // 2, -1]] if len(order) else order
    return each, np.array(list(dict.fromkeys(chosen.tolist())), np.int64)
