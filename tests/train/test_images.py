"""Images at evaluations: they lie in the run folder, reach the trackers, and stop no run."""

import logging
import time

import jax
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.trackers import Trackers
from lapa_jax.train import images
from lapa_jax.train.images import Images
from lapa_jax.train.sharding import make_mesh
from lapa_jax.train.task import Task
from tests.train.toy import Model


class Squares:
    """Draws a square whose colour is the mean of an array; fails where it is told to."""

    def __init__(self, fails: str = "", seconds: float = 0.0):
        self._fails, self._seconds = fails, seconds

    def compute(self, variables, arrays, batches):
        time.sleep(self._seconds)
        self._fail("compute")
        return {"color": arrays["mse"].mean()}

    def draw(self, path, content):
        self._fail("draw")
        Image.new("RGB", (20, 30), (int(content["color"]), 0, 0)).save(path)

    def _fail(self, where):
        if where == self._fails:
            raise ValueError(f"no {where}\nand a long story")


class Seen:
    """What trackers are given."""

    def __init__(self):
        self.images = []

    def image(self, step, name, pixels):
        self.images.append((step, name, pixels))


def make(tmp_path, drawing) -> Images:
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return Images(lambda task, mesh: drawing, Task(Model(), {}), mesh, lambda: iter(()), tmp_path)


def test_images_are_files_and_reach_the_trackers_in_order(tmp_path):
    drawn, seen = make(tmp_path, Squares()), Seen()
    for step, color in ((0, 200), (5, 100)):
        drawn.take(step, None, {"mse": np.full(4, color)}, seen)
    drawn.close(seen)
    assert [(step, name, pixels.shape, pixels[0, 0, 0]) for step, name, pixels in seen.images] == [
        (0, "evaluation", (30, 20, 3), 200), (5, "evaluation", (30, 20, 3), 100)]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["0.png", "5.png"]


def test_images_reach_tensorboard(tmp_path):
    trackers = Trackers(("tensorboard",), tmp_path, resume_step=0, config={})
    drawn = make(tmp_path, Squares())
    drawn.take(0, None, {"mse": np.ones(4)}, trackers)
    drawn.close(trackers)
    trackers.close()
    assert b"PNG" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize("where", ["compute", "draw"])
def test_an_image_that_cannot_be_made_is_one_warning(tmp_path, monkeypatch, caplog, where):
    monkeypatch.setattr(images.LOG, "propagate", True)
    drawn, seen = make(tmp_path, Squares(fails=where)), Seen()
    with caplog.at_level(logging.WARNING):
        for step in (0, 5, 10):
            drawn.take(step, None, {"mse": np.ones(4)}, seen)
        drawn.close(seen)
    assert seen.images == []
    assert [record.getMessage() for record in caplog.records] == [
        f"the image of this evaluation could not be made (ValueError: no {where}); training goes on without images"
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0.05, True), (0.0, False)])
def test_what_images_cost_is_said_where_it_is_much(tmp_path, monkeypatch, caplog, seconds, said):
    monkeypatch.setattr(images.LOG, "propagate", True)
    drawn = make(tmp_path, Squares(seconds=seconds))
    drawn.take(0, None, {"mse": np.ones(4)}, None)
    drawn._begun -= 1.0 if said else 1000.0  # as if so many seconds of training had passed
    with caplog.at_level(logging.INFO):
        drawn.close(None)
    assert ("config.train.images=False leaves them out" in caplog.text) is said
