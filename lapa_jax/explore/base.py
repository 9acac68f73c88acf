"""What the explorers of all kinds of models share: the episodes of a split, and what the page may ask."""

import bisect
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.escape import one_line
from lapa_jax.data import pipeline
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder
from lapa_jax.evaluate.base import data_config, unscaled
from lapa_jax.explore import fields as ask
from lapa_jax.explore.options import Options


class Explorer:
    """Answers the page about one trained model and the episodes of one split.

    Attributes:
      calls: {name: function of the fields of a request, which gives what is sent back as JSON}. A `UserError` says what
        is wrong with the fields.
      shards: the steps. cameras: whose images are shown.
    """

    def __init__(self, trained, run, shards: StepShards, cameras: Sequence[str]):
        self._trained, self._run = trained, pathlib.Path(run)
        self.shards, self.cameras = shards, tuple(cameras)
        self.calls: dict[str, Callable[[Mapping], dict]] = {"about": self.about, "step": self.step}

    def prepare(self) -> None:
        """Computes once what answers need, and compiles, before anybody asks."""
        raise NotImplementedError

    def about(self, fields: Mapping) -> dict:
        """What the page shows at its top, and which of its parts it needs."""
        return {
            "run": one_line(self._run.resolve().name),
            "model": self._trained.config.model.name,
            "noun": self._trained.kind.noun,
            "checkpoint": self._trained.step,
            "data": one_line(self.shards.folder),
            "split": self.shards.split,
            "episodes": len(self.shards.episodes),
            "cameras": len(self.cameras),
        }

    def step(self, fields: Mapping) -> dict:
        """One step of an episode. Fields: "episode", its number, and "step" in it; the last one if there are fewer."""
        number, step = self.where(fields)
        episode = self.shards.episodes[number]
        return {
            "episode": number,
            "name": one_line(episode.id),
            "length": episode.length,
            "step": step,
            "instruction": one_line(self.shards.text(episode.start + step)),
        }

    def image(self, episode: int, step: int, camera: int) -> np.ndarray:
        """uint8 [H, W, 3], the image of a step as it is stored."""
        return self.shards.image(self.shards.episodes[episode].start + step, self.cameras[camera])

    def observed(self, episode: int, step: int) -> np.ndarray:
        """uint8 [(V,) H, W, 3], the images of a step as a policy is given them."""
        images = [self.image(episode, step, camera) for camera in range(len(self.cameras))]
        return images[0] if len(images) == 1 else np.stack(images)

    def where(self, fields: Mapping) -> tuple[int, int]:
        """The episode's number and the step in it that a request names."""
        number = ask.whole(fields, "episode", len(self.shards.episodes))
        # The slider of the page keeps its place where another episode is chosen, which may be shorter.
        step = ask.whole(fields, "step", 1 << 31)
        return number, min(step, self.shards.episodes[number].length - 1)


def chosen_data(trained, run, options: Options) -> dict:
    """The `config.data` of a run with the data that are explored, which have episodes.

    Raises:
      UserError: a run on several datasets where none is chosen, or ready-made pairs.
    """
    config = data_config(trained.config, options.data, options.split, trained.datasets)
    if config.get("mixture") and not config.get("val_path"):
        folders = ", ".join(str(part["path"]) for part in config["mixture"])
        raise UserError(f"{run} was trained on several datasets; say with --data which to explore: {folders}")
    folder = config.get("val_path") or config.get("path")
    if folder and PairShards.is_one(dataset_folder(folder)):
        raise UserError(f"{folder} holds ready-made pairs without episodes; give a folder of step shards with --data")
    return config


def raw_source(config: Mapping, wanted: Sequence[str]):
    """The samples of a policy's data, in the units of the data, with those of the `wanted` fields that its training has
    too."""
    fields = tuple(name for name in pipeline.fields_of(config) if name in wanted)
    return pipeline.build({**unscaled(config), "text_tokenizer": None, "fields": fields}, "val")


def cameras(config: Mapping) -> tuple[str, ...]:
    """The cameras whose images a policy sees."""
    camera = config.get("camera") or "image"
    return (camera,) if isinstance(camera, str) else tuple(camera)


def row_of(source, episode: int, step: int) -> int | None:
    """The sample of a source of step shards that begins at a step; None where there is none."""
    # Samples are in the order of episodes and steps, so that a search by halves finds one.
    row = bisect.bisect_left(range(len(source)), (episode, step), key=source.locate)
    return row if row < len(source) and source.locate(row)[:2] == (episode, step) else None
