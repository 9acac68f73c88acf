"""Writes opencv.npz: what OpenCV's bilinear resizing makes of random images. Needs opencv-python-headless.

python -m tests.golden.make_opencv
"""

import pathlib

import numpy as np

SIZES = ((48, 80, 64, 64), (150, 90, 64, 38), (30, 26, 15, 13), (31, 26, 15, 13), (7, 5, 40, 21), (1, 9, 4, 4),
         (200, 133, 17, 16), (64, 64, 63, 65), (90, 40, 30, 20))  # fmt: skip
FILE = pathlib.Path(__file__).parent / "opencv.npz"


def image(number: int) -> np.ndarray:
    """The image that case `number` begins with."""
    rows, columns = SIZES[number][:2]
    return np.random.default_rng(number).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


if __name__ == "__main__":
    import cv2

    cases = {str(n): cv2.resize(image(n), (width, height)) for n, (_, _, height, width) in enumerate(SIZES)}
    np.savez_compressed(FILE, version=cv2.__version__, **cases)
