"""Trained action tokenizers as codecs, by the interface that all of them have at inference."""

from collections.abc import Mapping, Sequence

import numpy as np

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.evaluate.codecs.base import Codec, FixedLength
from lapa_jax.evaluate.codecs.chunks import ActionChunks
from lapa_jax.inference.tokenizers import ActionTokenizer

NAMES = {"fsq": "FSQ", "mstcn": "MS-TCN"}
"""What families are called in tables, by the module of the model."""


class Learned(FixedLength):
    """A trained tokenizer. All its weights count as known to the decoder.

    Of the code pairs of a two-level model one number is all that its decoder reads (`decoder_input`): the
    subcluster, from which the cluster follows, or for "q" the cluster alone. That number is the token.

    Args:
      name: in tables.
      tokenizer: as `lapa_jax.load` gives it.
      dataset: the name by which it knows the data, where it knows several.
    """

    usual = True

    def __init__(self, name: str, tokenizer: ActionTokenizer, dataset: str | None = None):
        self.name, self.tokenizer, self.dataset = name, tokenizer, dataset
        self._reads = getattr(tokenizer.model, "decoder_input", None)
        kind = tokenizer.config.model.name.rpartition(".")[2]
        self.family = NAMES.get(kind, kind) + (f" {self._reads}" if self._reads else "")

    def _fit(self, chunks: np.ndarray, summary: Mapping) -> None:
        sizes = np.array(self.tokenizer.codebook_sizes, np.int64)
        if self._reads is not None:
            sizes = sizes[[self._level]]
            self._clusters = np.asarray(self.tokenizer.model.apply(self.tokenizer.variables, method="hierarchy"))
        if self.tokenizer.chunk_length is None:
            sizes = np.tile(sizes, self.shape[0])
        # Positions with the same number of codes share their frequencies.
        self._sizes, self._groups = sizes, np.unique(sizes, return_inverse=True)[1]

    @property
    def _level(self) -> int:
        return 1 if self._reads == "q" else 0

    def _symbols(self, chunks: np.ndarray) -> np.ndarray:
        codes = self.tokenizer.encode(chunks, dataset=self.dataset)
        if self._reads is not None:
            codes = codes[..., self._level]
        return codes.reshape(len(chunks), -1)

    def _actions(self, symbols: np.ndarray) -> np.ndarray:
        codes = symbols
        if self._reads is not None:
            # for "q" the decoder reads no subcluster: any will do
            pair = (np.zeros_like(symbols), symbols) if self._reads == "q" else (symbols, self._clusters[symbols])
            codes = np.stack(pair, -1)
        elif self.tokenizer.chunk_length is None:
            codes = symbols.reshape(len(symbols), self.shape[0], -1)
        return self.tokenizer.decode(codes.astype(np.int32), dataset=self.dataset)


def codecs_of(runs: Sequence[tuple[str, str]], sets: Sequence[ActionChunks]) -> dict[str, list[Codec]]:
    """Trained runs as codecs for the data sets that they were trained on.

    Args:
      runs: (name, folder) of each; several may have one name where their data sets differ.
      sets: the data sets.

    Returns:
      {name of a data set: codecs}.

    Raises:
      UserError: a run that is no action tokenizer, was trained on none of the data sets or on chunks of another length.
    """
    codecs: dict[str, list[Codec]] = {chunks.name: [] for chunks in sets}
    for name, folder in runs:
        tokenizer = _load(folder)
        dataset_names = {entry.get("fingerprint"): key for key, entry in tokenizer.datasets.items()}
        fitting = [chunks for chunks in sets if chunks.fingerprint in dataset_names]
        if not fitting:
            trained_on = ", ".join(tokenizer.datasets) or "unknown data"
            raise UserError(f"{folder} was trained on {trained_on}, which is none of --data ({', '.join(codecs)}): "
                            "give the shards that it was trained on")  # fmt: skip
        for chunks in fitting:
            _check_length(tokenizer, folder, chunks)
            if any(codec.name == name for codec in codecs[chunks.name]):
                raise UserError(f"two runs for {chunks.name} are called '{name}': give them different names")
            codecs[chunks.name].append(Learned(name, tokenizer, dataset_names[chunks.fingerprint]))
    return codecs


def _load(folder: str) -> ActionTokenizer:
    tokenizer = lapa_jax.load(folder)
    if tokenizer.kind.name != "action_tokenizer":
        raise UserError(f"{folder} holds a {tokenizer.config.model.name}, which is no action tokenizer")
    if tokenizer.takes_state:
        raise UserError(f"{folder} encodes states with the actions; only tokenizers of actions alone can be compared")
    return tokenizer


def _check_length(tokenizer: ActionTokenizer, folder: str, chunks: ActionChunks) -> None:
    length = tokenizer.model.example(1)["action"].shape[1]
    if length != chunks.length:
        raise UserError(f"{folder} was trained on chunks of {length} steps, those of {chunks.name} have "
                        f"{chunks.length}: give --chunk_length {chunks.name}={length}")  # fmt: skip
