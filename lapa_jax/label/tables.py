"""Labels as plain tables: one npz or HDF5 file for each split, for readers that know no step shards.

A file holds, row by row in the order of the data: "codes" int32 `[steps, N]`, or "delta" f32 `[steps, N, Q]`, or both
(see `label.codes`), "episode" (text, the episode's id),
"step" int32 (within the episode) and, where the codes have a remark (see `label.codes`), a bool column of that name;
and "tokenizer", the fingerprint: a text of its own in an npz, an attribute in HDF5, where the settings stand beside it.
"""

import json
import pathlib

import numpy as np

from lapa_jax.core.files import atomic_path, write_json
from lapa_jax.data.shards.labels import TABLES
from lapa_jax.label.labeller import SUMMARY_FILE, Labeller, Shard

SUFFIXES = {"npz": ".npz", "hdf5": ".h5"}
COLUMNS = {"latent": "codes", "delta": "delta"}
"""What labels are called in tables."""


class TableLabeller(Labeller):
    """Labels one data folder into tables; all else, resuming included, is as of `Labeller`."""

    FORMATS = TABLES

    def _files(self, described: dict) -> list[Shard]:
        suffix = SUFFIXES[self.format]
        return [Shard(name, f"{name}{suffix}", range(len(shards))) for name, shards in self.splits.items()]

    def _label(self, shard: Shard, batch_size: int, advance) -> None:
        parts, flags = {name: [] for name in self.source.features}, []
        for steps, labels, remarks in self.source.codes(shard.split, shard.steps, batch_size):
            for name, values in labels.items():
                parts[name].append(values)
            flags.append(remarks)
            advance(len(steps))
        episodes = self.splits[shard.split].episodes
        columns = {
            **{COLUMNS[name]: np.concatenate(values) for name, values in parts.items()},
            "episode": np.repeat([e.id for e in episodes], [e.length for e in episodes]),
            "step": np.concatenate([np.arange(e.length, dtype=np.int32) for e in episodes]),
        }
        if self.source.flag:
            columns[self.source.flag] = np.concatenate(flags)
        with atomic_path(self._path(shard)) as temporary:
            (_write_npz if self.format == "npz" else _write_hdf5)(temporary, columns, self.settings)

    def _conclude(self) -> dict:
        summary = {"labels": self.settings, "splits": {name: self._usage(name) for name in self.splits}}
        write_json(self.out / SUMMARY_FILE, summary)
        return summary

    def _usage(self, split: str) -> dict:
        shard = next(shard for shard in self.shards if shard.split == split)
        table = read_table(self._path(shard))
        return self.source.summarize(split, {name: table[COLUMNS[name]] for name in self.source.features})


def read_table(path) -> dict[str, np.ndarray]:
    """The columns of a table: "codes" or "delta" or both, "episode", "step" and the remark, if any."""
    if pathlib.Path(path).suffix == SUFFIXES["npz"]:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != "tokenizer"}
    import h5py

    with h5py.File(path, "r") as file:
        return {name: np.array(file[name].asstr() if name == "episode" else file[name]) for name in file}


def _write_npz(path: pathlib.Path, columns: dict[str, np.ndarray], settings: dict) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **columns, tokenizer=np.array(settings["tokenizer"]))


def _write_hdf5(path: pathlib.Path, columns: dict[str, np.ndarray], settings: dict) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            if name == "episode":
                # HDF5 has no type for numpy's fixed-width Unicode.
                values = values.astype(h5py.string_dtype())
            file.create_dataset(name, data=values, compression="gzip")
        file.attrs["tokenizer"] = settings["tokenizer"]
        file.attrs["labels"] = json.dumps(settings, sort_keys=True)
