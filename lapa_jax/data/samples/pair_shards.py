"""Ready-made frame pairs in WebDataset tars, with the interface of the pairs that are made from step shards."""

import hashlib
import pathlib

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.data.files import Files
from lapa_jax.data.index import open_index
from lapa_jax.data.shards import DamagedSample


def _fit(image: np.ndarray, size: int | None) -> np.ndarray:
    return image if size is None else images.resize(image, size)


class PairShards:
    """Ready-made pairs: WebDataset tars whose samples have the members `.t.jpg` and `.t1.jpg`.

    The tars of a split are `<split>-*.tar` or `<split>_*.tar`; where no tar has such a name, all of them are "train".
    The same source interface as `FramePairs`; each sample counts as its own episode, since nothing says which belong
    together.
    """

    FIRST, SECOND = "t.jpg", "t1.jpg"

    def __init__(self, folder, split: str = "train", image_size: int | None = None):
        self.folder, self.split, self.image_size = pathlib.Path(folder), split, image_size
        paths = self._tars()
        indexes = [open_index(path) for path in paths]
        for path, index in zip(paths, indexes):
            self._check(path, index)
        self._paths, self._indexes, self._files = paths, indexes, Files()
        self._before = np.cumsum([0] + [len(index) for index in indexes])
        places = []
        for index in indexes:
            columns = [index.fields.index(self.FIRST), index.fields.index(self.SECOND)]
            places.append(np.stack([index.offsets[:, columns], index.sizes[:, columns]], axis=-1))
        self._places = np.concatenate(places)

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
                f"{index.fields}; note that 000_t.jpg and 000_t1.jpg are two samples to WebDataset, 000.t.jpg is right"
            )
        columns = [index.fields.index(self.FIRST), index.fields.index(self.SECOND)]
        lacking = np.flatnonzero((index.offsets[:, columns] < 0).any(axis=1))
        if len(lacking):
            raise UserError(f"{path}: sample '{index.keys[lacking[0]].decode()}' lacks one of its two frames")

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"PairShards({self.split}, {len(self)} pairs, {self.image_size})"

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """{"frames": uint8[2, H, W, 3], "episode_id": int32, "step": int32}."""
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        path = self._paths[int(np.searchsorted(self._before, i, side="right")) - 1]
        frames = []
        for offset, size in self._places[i]:
            try:
                frames.append(_fit(images.decode(self._files.read(path, int(offset), int(size))), self.image_size))
            except ValueError as error:
                raise DamagedSample(f"{path} at byte {offset}: damaged JPEG ({error}); write the shard again") from None
        if frames[0].shape != frames[1].shape:
            raise DamagedSample(f"{path}: pair {i} has frames of shapes {frames[0].shape} and {frames[1].shape}")
        return {"frames": np.stack(frames), "episode_id": np.int32(i), "step": np.int32(0)}

    def meta(self) -> dict:
        """As of `FramePairs`; pairs have no frame rate and no known gap. The fingerprint is over keys and sizes."""
        digest = hashlib.sha256()
        for path, index in zip(self._paths, self._indexes):
            digest.update(path.name.encode() + index.keys.tobytes() + index.sizes.tobytes())
        height, width, channels = self[0]["frames"].shape[1:]
        features = {"image": {"shape": [height, width, channels], "codec": "jpeg"}}
        nothing = {"statistics": {}, "fps": None, "gap_frames": None}
        return {**nothing, "features": features, "data_fingerprint": digest.hexdigest()}

    def summary(self) -> dict[str, int]:
        """How many pairs."""
        return {"pairs": len(self)}
