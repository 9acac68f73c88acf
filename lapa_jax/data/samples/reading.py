"""What the kinds of samples read from step shards: numeric columns, images of cameras, instructions."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import images, text
from lapa_jax.data.shards.files import DamagedSample
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.shards.table import row_checks, table_path

MULTIPLE = 8
"""What the length of instructions is rounded up to where the data tell it: accelerators like round sizes."""
DTYPES = {"action": np.float32, "state": np.float32, "feature": np.float32, "latent": np.int32, "delta": np.float32}
"""The numeric columns of step shards."""


def steps_with(shards: StepShards, member: str) -> np.ndarray:
    """bool[steps]: which steps have the member, e.g. "image.jpg"."""
    return np.asarray(shards.table.present(member))


class Column:
    """A numeric column of a split, mapped from the table of the shards: a batch is one indexing operation.

    Args:
      shards: the steps that hold it. For a sidecar of labels these are not the shards with the images.
      name: "action", "state", "feature", "latent" or "delta".
      normalizer: with `normalize(f32[N, D])`, applied to the rows that are taken; None leaves them.

    Attributes:
      present: bool[steps].
      shape: of a row, (D,); of deltas (N, Q), which are normalised as rows of N * Q numbers. width: how many these are.
    """

    def __init__(self, shards: StepShards, name: str, normalizer=None):
        self.name, self.present = name, steps_with(shards, f"{name}.npy")
        self.shape = tuple(shards.features[name]["shape"])
        if len(self.shape) != (2 if name == "delta" else 1):
            raise UserError(f"{shards.folder}: '{name}' has rows of shape {self.shape}; samples need rows of numbers")
        self.width, self._normalizer, self._shards = math.prod(self.shape), normalizer, shards
        self._damaged = shards.table.damaged.get(f"{name}.npy", {})

    def take(self, steps: np.ndarray) -> np.ndarray:
        """The rows of steps int[...] as f32[..., D] (int32 for latents), zeros where a step has none.

        Raises:
          DamagedSample: one of the rows is damaged, in its shard or in the table.
        """
        self.check(steps)
        steps, table, shards = np.asarray(steps), self._shards.table, self._shards
        if f"column/{self.name}" not in table.arrays:
            return np.zeros((*steps.shape, *self.shape), DTYPES[self.name])
        rows = table.take(f"column/{self.name}", steps.ravel())
        if (wrong := row_checks(rows) != table.take(f"check/{self.name}", steps.ravel())).any():
            key = shards.key(int(steps.ravel()[wrong.argmax()]))
            raise DamagedSample(f"{table_path(shards.folder, shards.split)}: {self.name} of {key} is damaged; remove "
                                "this file, it is made again from the shards")  # fmt: skip
        if self._normalizer is not None:
            flat = rows.reshape(-1, self.width)
            rows = self._normalizer.normalize(flat) * self.present[steps.ravel()][:, None]
        return rows.reshape(*steps.shape, *self.shape)

    def __getstate__(self) -> dict:
        """Without the arrays: what is mapped is mapped again."""
        return {"shards": self._shards, "name": self.name, "normalizer": self._normalizer}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)

    def check(self, steps: np.ndarray) -> None:
        """Raises `DamagedSample` where one of the steps int[...] is damaged; damage elsewhere is no matter."""
        if self._damaged:
            for i in np.ravel(steps).tolist():
                if i in self._damaged:
                    raise DamagedSample(self._damaged[i])


class CameraImages:
    """Reads one camera, or several, at one size.

    Args:
      shards: the steps.
      camera: the member name of a camera ("image", "image_wrist"), or several of them.
      size: side in pixels; stored images of another size are resized. None keeps the stored size.
      mode: how, see `images.resize`; None: as the data say, squashed where they say nothing.
      scaled: whether images of at least twice the size are decoded at a smaller one, see `images.decode`.

    Attributes:
      cameras: the names.
      shape: (H, W, 3) for one camera given by its name, (V, H, W, 3) for a sequence of V of them.
    """

    def __init__(self, shards: StepShards, camera: str | Sequence[str], size: int | None, mode=None, scaled=False):
        self.cameras = (camera,) if isinstance(camera, str) else tuple(camera)
        cameras = cameras_of(shards.features)
        for name in self.cameras:
            if not cameras:
                raise UserError(f"{shards.folder} has no images (features: {sorted(shards.features)})")
            if name not in cameras:
                raise UserError(f"{shards.folder} has no camera '{name}' (data.camera){did_you_mean(name, cameras)}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"data.camera {camera!r} must name one camera, or several different ones")
        if size is not None and size < 1:
            raise UserError(f"data.image_size is {size}; give pixels, 1 or more, or None for the stored size")
        self._shards, self._size, self._mode, self._scaled = shards, size, mode, scaled
        self._stored_modes = [shards.features[name].get(images.RESIZE) for name in self.cameras]
        # data whose images differ in size list no shape
        self._stored = [tuple(shards.features[name].get("shape", ())[:2]) for name in self.cameras]
        if size is None and (len(set(self._stored)) > 1 or not self._stored[0]):
            raise UserError(f"{shards.folder}: images of {self.cameras} differ in size; set data.image_size for all")
        frame = (*(self._stored[0] if size is None else (size, size)), 3)
        self.shape = frame if isinstance(camera, str) else (len(self.cameras), *frame)

    def available(self) -> np.ndarray:
        """bool[steps]: where every camera has an image."""
        return np.all([steps_with(self._shards, f"{name}.jpg") for name in self.cameras], axis=0)

    def into(self, outs: Sequence[np.ndarray], steps: Sequence[int]) -> None:
        """Decodes the images of each step to where they belong: one of `outs`, uint8 of `shape`."""
        for number, (name, stored, how) in enumerate(zip(self.cameras, self._stored, self._stored_modes)):
            views = [out[number] for out in outs] if len(self.shape) == 4 else outs
            if stored == self.shape[-3:-1] and (self._size is None or images.keeps_size(self._mode)):
                self._shards.images_into(steps, views, name)
                continue
            # What is to equal another program's images is decoded whole, also where only the data say so.
            smallest = self._size if self._scaled and (self._mode or how) in images.SMOOTH else None
            for view, step in zip(views, steps):
                view[:] = images.to_side(self._shards.image(step, name, smallest), self._size, how, self._mode)


class Texts:
    """Instructions of steps, as they are or as token ids.

    Args:
      shards: the steps.
      tokenizer: {"name": ..., ...} of `lapa_jax.data.text.build`, or None.
      length: tokens that an instruction is padded to; None takes what the longest needs, a multiple of `MULTIPLE`.

    Attributes:
      vocabulary: token ids are smaller; None without a tokenizer.
      length: tokens that instructions are padded to. longest: tokens of the longest; both 0 without a tokenizer.

    Raises:
      UserError: the instruction of a step is longer, and the tokenizer may not cut it.
    """

    def __init__(self, shards: StepShards, tokenizer: Mapping | None, length: int | None):
        self._shards, self.length, self.longest = shards, 0, 0
        self.vocabulary: int | None = None
        self._ids = self._masks = np.empty((0, 0))
        if tokenizer is None:
            return
        # All instructions now, so that a long one ends the run before it begins; and workers need no tokenizer
        tokenize, table = text.build(tokenizer), shards.table
        self.vocabulary = tokenize.vocab_size
        numbers = np.unique(table.arrays["text"])
        texts = ["" if number < 0 else table.texts[number] for number in [*numbers.tolist(), -1]]
        if length is None:
            length = -(-max(tokenize.lengths(texts)) // MULTIPLE) * MULTIPLE
        ids, masks = tokenize(texts, length)
        self.length, self.longest, self._pad = length, int(masks.sum(axis=1).max()), tokenize.pad_id
        self._ids, self._masks = (np.zeros((len(table.texts) + 1, length), rows.dtype) for rows in (ids, masks))
        self._ids[[*numbers, -1]], self._masks[[*numbers, -1]] = ids, masks  # the last is that of no instruction

    def widen(self, length: int) -> None:
        """Pads instructions to more tokens, as another part of a mixture needs them."""
        more = length - self.length
        self._ids = np.pad(self._ids, ((0, 0), (0, more)), constant_values=self._pad)
        self._masks, self.length = np.pad(self._masks, ((0, 0), (0, more))), length

    def available(self) -> np.ndarray:
        """bool[steps]: which have an instruction."""
        return steps_with(self._shards, "txt")

    def read(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Of steps int[B] {"text": str[B]}, or with a tokenizer {"text": int32[B, L], "text_mask": f32[B, L]}."""
        if self.vocabulary is None or self._shards.table.damaged.get("txt"):
            texts = [self._shards.text(i) for i in steps.tolist()]
            if self.vocabulary is None:
                return {"text": np.array(texts, np.str_)}
        numbers = self._shards.table.take("text", steps)
        return {"text": self._ids[numbers], "text_mask": self._masks[numbers].astype(np.float32)}


def cameras_of(features: Mapping) -> list[str]:
    """The cameras that `dataset.json` lists, by member name."""
    return [name for name, feature in features.items() if feature.get("codec") == "jpeg"]
