"""What every codec of action chunks can do, and how its bits are counted.

Bits are those of a code that spends log2(vocabulary) on each token, which is what a policy pays that predicts tokens
from a vocabulary. Where the vocabulary differs from token to token, tokens are digits of one number of mixed radix, so
a chunk fits into ceil(bits) whole bits. Neither what was fitted (edges, merges, weights) nor the number of tokens is
counted: a decoder knows T and A, and knows by them when a chunk is complete.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError


class Codec:
    """Tokens of action chunks.

    Attributes:
      name: what it is called in tables. family: those whose settings trade error for bits share one.
      usual: whether these are the settings that are published, so that it stands in the short table.
    """

    name: str
    family: str
    usual: bool = False

    def fit(self, chunks: np.ndarray, summary: Mapping) -> "Codec":
        """Learns from training data; to be called once, before all else.

        Args:
          chunks: f32[n, T, A] in the data's units.
          summary: statistics of the training actions, see `lapa_jax.data.statistics`.

        Returns:
          Itself.
        """
        chunks = _chunks(chunks)
        self.shape = chunks.shape[1:]
        self._mean, self._low, self._high = (np.asarray(summary[k], np.float32) for k in ("mean", "min", "max"))
        self._fit(chunks, summary)
        return self

    def encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        """The tokens of chunks f32[n, T, A] in the data's units: n arrays int32[tokens]."""
        chunks = _chunks(chunks)
        if chunks.shape[1:] != self.shape:
            raise UserError(f"{self.name} was fitted on chunks of shape {self.shape}, these are {chunks.shape[1:]}")
        return self._encode(chunks)

    def decode(self, tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Actions f32[n, T, A] of n token sequences, and bool[n]: which of them are no chunk.

        Actions are cut off at the minimum and maximum of the training data, whatever the codec: where a controller
        saturates, a wave or a spline that goes beyond is no error. In place of a chunk that cannot be decoded stands
        the mean action of the training data.
        """
        actions = np.broadcast_to(self._mean, (len(tokens), *self.shape)).copy()
        well = np.array([self._is_chunk(sequence) for sequence in tokens], bool)
        if well.any():
            decoded = self._decode([tokens[i] for i in np.flatnonzero(well)])
            actions[well] = np.clip(decoded, self._low, self._high)
        return actions, ~well

    def alphabets(self, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each token of a sequence: how many there are to choose from, and which frequencies it shares.

        Returns:
          int64[tokens], sizes of the vocabularies, and int64[tokens], numbers of the alphabets.
        """
        raise NotImplementedError

    def bits(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """f64[n]: bits of n token sequences, see the module."""
        return np.array([np.log2(self.alphabets(sequence)[0]).sum() for sequence in tokens], np.float64)

    def _fit(self, chunks: np.ndarray, summary: Mapping) -> None:
        raise NotImplementedError

    def _encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        raise NotImplementedError

    def _decode(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def _is_chunk(self, sequence: np.ndarray) -> bool:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"


class FixedLength(Codec):
    """A codec whose chunks all have the same number of tokens. Positions with one possible token are left out.

    What derives from it sets `_sizes` and `_groups`, int64[symbols], and turns chunks into symbols and back.
    """

    _sizes: np.ndarray
    _groups: np.ndarray

    def _symbols(self, chunks: np.ndarray) -> np.ndarray:
        """int[n, symbols] of chunks f32[n, T, A]."""
        raise NotImplementedError

    def _actions(self, symbols: np.ndarray) -> np.ndarray:
        """f32[n, T, A] of symbols int32[n, symbols]."""
        raise NotImplementedError

    @functools.cached_property
    def _coded(self) -> np.ndarray:
        # A position with one possible symbol costs no bits, and the decoder knows what stands there.
        return np.flatnonzero(self._sizes > 1)

    @functools.cached_property
    def _alphabets(self) -> tuple[np.ndarray, np.ndarray]:
        return self._sizes[self._coded], self._groups[self._coded]

    def alphabets(self, sequence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._alphabets

    def _encode(self, chunks: np.ndarray) -> list[np.ndarray]:
        return list(np.asarray(self._symbols(chunks), np.int32)[:, self._coded])

    def _is_chunk(self, sequence: np.ndarray) -> bool:
        sequence = np.asarray(sequence)
        return sequence.shape == self._coded.shape and bool(np.all((sequence >= 0) & (sequence < self._alphabets[0])))

    def _decode(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        symbols = np.zeros((len(tokens), len(self._sizes)), np.int32)
        symbols[:, self._coded] = tokens
        return self._actions(symbols)


def _chunks(chunks: np.ndarray) -> np.ndarray:
    chunks = np.asarray(chunks, np.float32)
    if chunks.ndim != 3 or 0 in chunks.shape[1:]:
        raise UserError(f"action chunks are [n, T, A]; these are {list(chunks.shape)}")
    return chunks
