"""Frames laid side by side as one array, without matplotlib, whose import costs half a second."""

import einops
import numpy as np


def to_float(frames: np.ndarray) -> np.ndarray:
    """uint8 or float frames as float32 in [0, 1]."""
    frames = np.asarray(frames)
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / 255.0
    return np.clip(frames.astype(np.float32), 0.0, 1.0)


def mosaic(frames: np.ndarray, gap: int) -> np.ndarray:
    """Lays `[R, C, H, W, 3]` frames out as one white-ruled image, float32 `[R*(H+gap)-gap, C*(W+gap)-gap, 3]`."""
    rows, columns, height, width, _ = frames.shape
    cells = np.ones((rows, height + gap, columns, width + gap, 3), np.float32)
    cells[:, :height, :, :width] = einops.rearrange(to_float(frames), "rows columns h w c -> rows h columns w c")
    # Every cell brings its gap on the right and below; the last ones are cut off.
    whole = einops.rearrange(cells, "rows h columns w c -> (rows h) (columns w) c")
    return whole[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def what_changes(decoded: np.ndarray) -> tuple[np.ndarray, float]:
    """Decoded frames `[R, C, H, W, 3]` minus their mean over the columns, amplified around mid-grey.

    The blur that all codes of a row share drops out; what is left is what choosing one code over another does.

    Returns:
      The frames, and the amplification: it brings all but the strongest 0.5 % of the differences into range.
    """
    decoded = np.asarray(decoded, np.float32)
    difference = decoded - decoded.mean(axis=1, keepdims=True)
    # 1e-3: codes that change nothing are drawn grey, and not as amplified rounding.
    scale = 0.5 / max(float(np.quantile(np.abs(difference), 0.995)), 1e-3)
    return np.clip(0.5 + scale * difference, 0, 1), scale
