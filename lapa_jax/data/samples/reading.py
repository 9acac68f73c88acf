"""What the kinds of samples read from step shards: numeric columns in memory, images of cameras, instructions."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import images, text
from lapa_jax.data.shards.files import DamagedSample
from lapa_jax.data.shards.step_shards import StepShards, array_bytes

DTYPES = {"action": np.float32, "state": np.float32, "feature": np.float32, "latent": np.int32}
"""The numeric columns of step shards."""


def steps_with(shards: StepShards, member: str) -> np.ndarray:
    """bool[steps]: which steps have the member, e.g. "image.jpg"."""
    return np.fromiter((shards.has(i, member) for i in range(len(shards))), bool, len(shards))


class Column:
    """A numeric column of a split, read once: a batch is then one indexing operation.

    Args:
      shards: the steps that hold it. For a sidecar of labels these are not the shards with the images.
      name: "action", "state", "feature" or "latent".
      normalizer: with `normalize(f32[N, D])`, applied to what is stored; None leaves it.

    Attributes:
      values: f32[steps, D] (int32 for latents), 0 where the step has none.
      present: bool[steps].
      width: D.
    """

    def __init__(self, shards: StepShards, name: str, normalizer=None):
        self.name, self.present = name, steps_with(shards, f"{name}.npy")
        shape = tuple(shards.features[name]["shape"])
        if len(shape) != 1:
            raise UserError(f"{shards.folder}: '{name}' has rows of shape {shape}; samples need rows of numbers")
        self.values = np.zeros((len(shards), *shape), DTYPES[name])
        self._damaged: dict[int, str] = {}
        self._read(shards, shape)
        if normalizer is not None:
            whole = self.present.copy()
            # What could not be read is zeros in no unit; it is refused when it is taken.
            whole[list(self._damaged)] = False
            self.values[whole] = normalizer.normalize(self.values[whole])

    @property
    def width(self) -> int:
        """D: numbers a row."""
        return self.values.shape[1]

    def _read(self, shards: StepShards, shape: tuple[int, ...]) -> None:
        member, dtype = f"{self.name}.npy", DTYPES[self.name]
        # rows as the converter writes them all begin with the same bytes: no need to parse each header
        sample = array_bytes(np.zeros(shape, dtype))
        header, size = sample[: -np.zeros(shape, dtype).nbytes], len(sample)
        for i in np.flatnonzero(self.present).tolist():
            try:
                data = shards.read(i, (member,))[member]
                if len(data) == size and data.startswith(header):
                    self.values[i] = np.frombuffer(data, dtype, offset=len(header))
                else:
                    self.values[i] = _parse(data, shape)
                if not np.isfinite(self.values[i]).all():
                    raise ValueError("it holds numbers that are not finite")
            except DamagedSample as error:
                self._damaged[i] = str(error)
            except (ValueError, EOFError) as error:
                self._damaged[i] = f"{shards.folder}: {shards.key(i)}.{member} is damaged ({error}); convert again"

    def take(self, steps: np.ndarray) -> np.ndarray:
        """The rows of steps int[...] as f32[..., D]; a damaged one among them is a `DamagedSample`."""
        self.check(steps)
        return self.values[steps]

    def check(self, steps: np.ndarray) -> None:
        """Raises `DamagedSample` where one of the steps int[...] is damaged; damage elsewhere is no matter."""
        if self._damaged:
            for i in np.ravel(steps).tolist():
                if i in self._damaged:
                    raise DamagedSample(self._damaged[i])


def _parse(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    row = np.load(io.BytesIO(data), allow_pickle=False)
    if row.shape != shape:
        raise ValueError(f"its shape is {row.shape}, the data set says {shape}")
    return row


class CameraImages:
    """Reads one camera, or several, at one size.

    Args:
      shards: the steps.
      camera: the member name of a camera ("image", "image_wrist"), or several of them.
      size: side in pixels; stored images of another size are resized. None keeps the stored size.
      mode: how, see `images.resize`; None: as the data say, squashed where they say nothing.

    Attributes:
      cameras: the names.
      shape: (H, W, 3) for one camera given by its name, (V, H, W, 3) for a sequence of V of them.
    """

    def __init__(self, shards: StepShards, camera: str | Sequence[str], size: int | None, mode=None):
        self.cameras = (camera,) if isinstance(camera, str) else tuple(camera)
        cameras = cameras_of(shards.features)
        for name in self.cameras:
            if not cameras:
                raise UserError(f"{shards.folder} has no images (features: {sorted(shards.features)})")
            if name not in cameras:
                raise UserError(f"{shards.folder} has no camera '{name}' (data.camera){did_you_mean(name, cameras)}")
        if not self.cameras or len(set(self.cameras)) < len(self.cameras):
            raise UserError(f"data.camera {camera!r} must name one camera, or several different ones")
        self._shards, self._size, self._mode = shards, size, mode
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
            for view, step in zip(views, steps):
                view[:] = images.to_side(self._shards.image(step, name), self._size, how, self._mode)


class Texts:
    """Instructions of steps, as they are or as token ids.

    Args:
      shards: the steps.
      tokenizer: {"name": ..., ...} of `lapa_jax.data.text.build`, or None.
      length: tokens that an instruction is padded to.

    Raises:
      UserError: the instruction of an episode is longer, and the tokenizer may not cut it.
    """

    def __init__(self, shards: StepShards, tokenizer: Mapping | None, length: int):
        self._shards, self._length = shards, length
        self._tokenizer = None if tokenizer is None else text.build(tokenizer)
        self._cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if self._tokenizer is not None:
            for instruction in shards.instructions():
                self._tokens(instruction)

    @property
    def vocabulary(self) -> int | None:
        """Token ids are smaller; None without a tokenizer."""
        return None if self._tokenizer is None else self._tokenizer.vocab_size

    def available(self) -> np.ndarray:
        """bool[steps]: which have an instruction."""
        return steps_with(self._shards, "txt")

    def read(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """Of steps int[B] {"text": str[B]}, or with a tokenizer {"text": int32[B, L], "text_mask": f32[B, L]}."""
        texts = [self._shards.text(i) for i in steps.tolist()]
        if self._tokenizer is None:
            return {"text": np.array(texts, np.str_)}
        ids, mask = np.empty((len(texts), self._length), np.int32), np.empty((len(texts), self._length), np.float32)
        for row, instruction in enumerate(texts):
            ids[row], mask[row] = self._tokens(instruction)
        return {"text": ids, "text_mask": mask}

    def _tokens(self, instruction: str) -> tuple[np.ndarray, np.ndarray]:
        # the same few instructions come again and again
        if instruction not in self._cache:
            ids, mask = self._tokenizer([instruction], self._length)
            self._cache[instruction] = ids[0], mask[0]
        return self._cache[instruction]


def cameras_of(features: Mapping) -> list[str]:
    """The cameras that `dataset.json` lists, by member name."""
    return [name for name, feature in features.items() if feature.get("codec") == "jpeg"]
