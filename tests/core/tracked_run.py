"""Metrics and an image to a tracker: python -m tests.core.tracked_run FOLDER TRACKER RESUME_STEP STEP [STEP ...]."""

import pathlib
import sys

import numpy as np

from lapa_jax.core.metrics import MetricsWriter

CONFIG = {"name": "laq_tiny", "train": {"steps": 3}}


def write(folder, names, resume_step=0, steps=(1, 2)):
    writer = MetricsWriter(folder, resume_step=resume_step, trackers=names, config=CONFIG)
    for step in steps:
        writer.write(step, {"train/loss": 1.0 / step, "val/psnr": float("nan")})
    writer.trackers.image(steps[-1], "codes", np.zeros((4, 5, 3), np.uint8))
    writer.close()


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]), (sys.argv[2],), int(sys.argv[3]), tuple(map(int, sys.argv[4:])))
