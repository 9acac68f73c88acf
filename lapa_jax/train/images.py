"""Images of the model at evaluations, `plots/<step>.png` of the run folder and in the trackers.

The loop knows no kinds of models: whoever starts it hands in a `Drawing`. What needs the devices is computed within the
evaluation; drawing goes on in the background while the run trains.
"""

import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from lapa_jax.core.trackers import Trackers
from lapa_jax.train.background import Background
from lapa_jax.train.run import LOG
from lapa_jax.train.task import Task

FOLDER, NAME = "plots", "evaluation"
"""Of the run folder; and what trackers call the images."""
MOST = 0.01
"""Share of a run's time above which the log says what images cost."""


class Drawing(Protocol):
    """What shows the models of one kind."""

    def compute(
        self, variables, arrays: Mapping[str, np.ndarray], batches: Callable[[], Iterable[dict]]
    ) -> Mapping[str, np.ndarray]:
        """What is drawn, on the host; called on all hosts alike.

        Args:
          variables: of the task. arrays: of the model's `evaluate`, over the held-out samples.
          batches: gives this host's slices of the evaluation batches anew.
        """

    def draw(self, path: pathlib.Path, content: Mapping[str, np.ndarray]) -> None:
        """Writes what `compute` gave as a PNG; called in another thread, on the first host."""


class Images:
    """Draws at evaluations. What goes wrong is a warning, and the run goes on without images."""

    def __init__(
        self, drawing_of: Callable[[Task, Mesh], Drawing | None], task: Task, mesh: Mesh,
        batches: Callable[[], Iterable[dict]], workdir: pathlib.Path,
    ):  # fmt: skip
        """Args:
          drawing_of: what shows the model of a task; None where nothing does. task, mesh: the run's.
          batches: see `Drawing.compute`. workdir: the run folder.
        """
        self._drawing, self._batches = drawing_of(task, mesh), batches
        self._folder = workdir / FOLDER
        self._job: tuple[int, Background] | None = None
        self._begun, self._seconds, self._drawn = time.perf_counter(), 0.0, 0

    def take(self, step: int, variables, arrays: Mapping[str, np.ndarray], trackers: Trackers | None) -> None:
        """Shows the model as it is at a step.

        Args:
          variables, arrays: see `Drawing.compute`. trackers: of the first host, which get the image before this one.
        """
        if self._drawing is None:
            return
        start = time.perf_counter()
        try:
            content = self._drawing.compute(variables, arrays, self._batches)
        except Exception as error:  # an image must not cost a run
            self._give_up(error)
            return
        if jax.process_index() == 0:
            self.collect(trackers, wait=True)
            if self._drawing is not None:
                drawing, path = self._drawing, self._folder / f"{step}.png"
                self._job = step, Background(lambda: _draw(drawing, path, content))
        self._seconds += time.perf_counter() - start

    def collect(self, trackers: Trackers | None, wait: bool = False) -> None:
        """Hands an image that is ready to the trackers, in the thread that gives them all else.

        Args:
          wait: for one that is not ready.
        """
        if self._job is None or not (wait or self._job[1].done):
            return
        (step, job), self._job = self._job, None
        try:
            job.result()
            self._drawn += 1
            if trackers is not None:
                trackers.image(step, NAME, _pixels(self._folder / f"{step}.png"))
        except Exception as error:
            self._give_up(error)

    def close(self, trackers: Trackers | None) -> None:
        """Waits for the last image, and says what they cost where it was much."""
        self.collect(trackers, wait=True)
        share = self._seconds / max(time.perf_counter() - self._begun, 1e-9)
        if self._drawn and share > MOST:
            LOG.info("images of %d evaluations took %.1f s, %.1f %% of the time; config.train.images=False leaves them "
                     "out", self._drawn, self._seconds, 100 * share)  # fmt: skip

    def _give_up(self, error: Exception) -> None:
        self._drawing = None
        first_line = next(iter(str(error).splitlines()), "")
        LOG.warning("the image of this evaluation could not be made (%s: %s); training goes on without images",
                    type(error).__name__, first_line)  # fmt: skip


def _draw(drawing: Drawing, path: pathlib.Path, content: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(exist_ok=True)
    drawing.draw(path, content)


def _pixels(path: pathlib.Path) -> np.ndarray:
    """A PNG as uint8 [H, W, 3]."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
