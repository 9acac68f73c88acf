"""Optical flow of frame pairs: a small field of displacements, which says what moves whatever it looks like.

Flow as the target of a latent action model is the idea of LAOF: distractors that change without moving, such as light
and noise, are not in it.
"""

import numpy as np

from lapa_jax.core.errors import UserError

FIELD = "flow"
CELL = 4
"""Side in pixels of the cells that flow is averaged over."""
_LEAST_SIDE = 64
"""Smaller images are enlarged for the search, which compares patches of eight pixels at several scales."""


def check(shape: tuple[int, int]) -> None:
    """Raises `UserError` where OpenCV is missing, or cells do not fill images of this (height, width)."""
    _opencv()
    if any(side % CELL for side in shape):
        raise UserError(f"data.fields has 'flow', whose cells of {CELL} pixels do not fill images of "
                        f"{shape[0]}x{shape[1]}; give data.image_size a multiple of {CELL}")  # fmt: skip


def of_pairs(frames: np.ndarray) -> np.ndarray:
    """Where the pixels of each first frame are in the second: the mean over cells of 4 x 4 pixels.

    Dense inverse search (Kroeger et al. 2016, arXiv 1603.03590) in OpenCV, on grey images.

    Args:
      frames: uint8[B, 2, H, W, 3], H and W multiples of 4.

    Returns:
      f32[B, H / 4, W / 4, 2], displacements in pixels of these frames: to the right, and down.
    """
    cv2 = _opencv()
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # The default leaves out the two finest scales, at which small things are still visible.
    search.setFinestScale(0)
    height, width = frames.shape[2:4]
    factor = max(1, -(-_LEAST_SIDE // min(height, width)))
    result = np.empty((len(frames), height // CELL, width // CELL, 2), np.float32)
    for out, pair in zip(result, frames):
        first, second = (cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (width * factor, height * factor),
                                    interpolation=cv2.INTER_LINEAR) for frame in pair)  # fmt: skip
        field = search.calc(first, second, None) / factor
        side = CELL * factor
        out[:] = field.reshape(height // CELL, side, width // CELL, side, 2).mean((1, 3))
    return result


def _opencv():
    try:
        import cv2
    except ImportError:
        raise UserError("data.fields has 'flow', which needs OpenCV: pip install 'lapa_jax[flow]'") from None
    return cv2
