"""Ready-made frame pairs in WebDataset tars, with the interface of the pairs that are made from step shards."""

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.loader.buffers import empty
from lapa_jax.data.samples.base import NOWHERE, Rows
from lapa_jax.data.samples.meta import describe
from lapa_jax.data.samples.pair_actions import MASK, PAIR_ACTION
from lapa_jax.data.shards.files import DamagedSample, Files
from lapa_jax.data.shards.index import open_index


class PairShards:
    """Ready-made pairs: WebDataset tars whose samples have the members `.t.jpg` and `.t1.jpg`.

    The tars of a split are `<split>-*.tar` or `<split>_*.tar`; where no tar has such a name, all of them are "train".
    The same source interface as `FramePairSource`; each sample is its own episode, since nothing says which belong
    together. `fields` may name "pair_action", of which these pairs have none, as parts of a mixture do;
    `scaled_decoding`: see `StepOptions`.
    """

    FIRST, SECOND = "t.jpg", "t1.jpg"
    numeric: dict[str, int] = {}
    text_lengths = (0, 0)
    pair_actions = emphasis = None

    def __init__(
        self, folder, split: str = "train", image_size: int | None = None, fields: Sequence[str] = ("frames",),
        scaled_decoding: bool = False,
    ):  # fmt: skip
        self.fields = tuple(fields)
        self.folder, self.split, self.image_size = pathlib.Path(folder), split, image_size
        self._smallest = image_size if scaled_decoding else None
        paths = self._tars()
        indexes = [open_index(path) for path in paths]
        for path, index in zip(paths, indexes):
            self._check(path, index)
        self._paths, self._indexes, self._files = paths, indexes, Files()
        self._first_shape: tuple[int, int, int] | None = None
        self._before = np.cumsum([0] + [len(index) for index in indexes])
        locations = []
        for index in indexes:
            columns = [index.fields.index(self.FIRST), index.fields.index(self.SECOND)]
            locations.append(np.stack([index.offsets[:, columns], index.sizes[:, columns]], axis=-1))
        self._locations = np.concatenate(locations)

    @classmethod
    def is_one(cls, folder) -> bool:
        """Whether a folder holds tars but no `dataset.json` of step shards."""
        folder = pathlib.Path(folder)
        return folder.is_dir() and not (folder / "dataset.json").exists() and any(folder.glob("*.tar"))

    def _tars(self) -> list[pathlib.Path]:
        paths = sorted(self.folder.glob("*.tar"))
        named = [p for p in paths if p.name.startswith(("train-", "train_", "val-", "val_"))]
        if named:
            paths = [p for p in paths if p.name.startswith((f"{self.split}-", f"{self.split}_"))]
        elif self.split != "train":
            paths = []
        if not paths:
            raise UserError(f"{self.folder} has no tar of split '{self.split}'; name them {self.split}-00000.tar, ...")
        return paths

    def _check(self, path: pathlib.Path, index) -> None:
        if not {self.FIRST, self.SECOND} <= set(index.fields):
            raise UserError(
                f"{path} holds no frame pairs: each sample needs .{self.FIRST} and .{self.SECOND}, found "
                f"{index.fields}; note that 000_t.jpg and 000_t1.jpg are two samples to WebDataset: 000.t.jpg is "
                "right. tools/convert.py reads both"
            )
        columns = [index.fields.index(self.FIRST), index.fields.index(self.SECOND)]
        lacking = np.flatnonzero((index.offsets[:, columns] < 0).any(axis=1))
        if len(lacking):
            raise UserError(f"{path}: sample '{index.keys[lacking[0]].decode()}' lacks one of its two frames")

    def __len__(self) -> int:
        return len(self._locations)

    def __repr__(self) -> str:
        return f"PairShards({self.split}, {len(self)} pairs, {self.image_size})"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """One pair: what `batch` gives, without the first axis."""
        return {name: values[0] for name, values in self.batch([i]).items()}

    def locate(self, i: int) -> tuple[int, int]:
        """(number of the pair, 0): nothing says which pairs belong to the same episode."""
        return int(i), 0

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """{"frames": uint8[B, 2, H, W, 3], "episode_id", "step": int32[B]}; `into`: see `StepSource.batch`."""
        rows = into.get("frames")
        frames = empty((len(indices), 2, *self._shape), np.uint8) if rows is None else rows
        for pair, i in zip(frames, indices):
            self._decode(int(i), pair)
        where = {"episode_id": np.array(indices, np.int32), "step": np.zeros(len(indices), np.int32)}
        if PAIR_ACTION in self.fields:
            where |= {name: np.zeros((len(indices), 0), np.float32) for name in (PAIR_ACTION, MASK)}
        return {**({"frames": frames} if rows is None else {}), **where}

    def _decode(self, i: int, pair: np.ndarray) -> None:
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        path = self._paths[int(np.searchsorted(self._before, i, side="right")) - 1]
        for out, (offset, size) in zip(pair, self._locations[i]):
            try:
                image = images.decode(self._files.read(path, int(offset), int(size)), self._smallest)
            except ValueError as error:
                raise DamagedSample(f"{path} at byte {offset}: damaged JPEG ({error}); write the shard again") from None
            image = image if self.image_size is None else images.resize(image, self.image_size)
            if image.shape != out.shape:
                words = f"a frame of {image.shape[:2]}, the first pair has {out.shape[:2]}: set data.image_size"
                raise DamagedSample(f"{path} at byte {offset}: {words}")
            out[:] = image

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Of a frame: the first one's, where no size is given."""
        if self._first_shape is None:
            size, location = self.image_size, self._locations[0][0]
            if size:
                self._first_shape = (size, size, 3)
            else:
                self._first_shape = images.decode(self._files.read(self._paths[0], *map(int, location))).shape
        return self._first_shape

    def widen_texts(self, length: int) -> None:
        """Nothing: pairs have no texts."""

    def instructions(self) -> list[str]:
        """None: pairs have no texts."""
        return []

    def meta(self) -> dict:
        """As of `FramePairSource`; pairs have no frame rate and no gap. The fingerprint is over keys and sizes."""
        digest = hashlib.sha256()
        for path, index in zip(self._paths, self._indexes):
            digest.update(path.name.encode() + index.keys.tobytes() + index.sizes.tobytes())
        features = {"image": {"shape": list(self._shape), "codec": "jpeg"}}
        entries = {"fingerprint": digest.hexdigest(), "features": features, "fps": None, "statistics": {}}
        return describe(self.folder.resolve().name, **entries)

    def summary(self) -> dict[str, int]:
        """How many pairs, and members of the tars that are none of them."""
        ignored = sum(index.ignored for index in self._indexes)
        return {"pairs": len(self), **({"companions_of_macOS_and_Windows": ignored} if ignored else {})}
