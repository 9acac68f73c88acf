"""Actions as bins, one per dimension, and as token ids of a language model.

Three ways to lay the bins, all decoded at bin centres (half a bin is then the largest error inside the range, and there
is no bias):
  uniform_quantile  equal widths from the 1 % to the 99 % quantile: bin floor(bins * u) of the spec
  uniform_min_max   equal widths from the minimum to the maximum
  equal_frequency   the quantiles are the edges, (a, b] as of pandas.qcut, equal edges dropped: the official LAPA
What a dimension is like (`statistics.kinds`) goes before that:
  constant  one bin, decoded as the constant; its loss is masked
  binary    two bins, decoded as the two values, never percentiles: the gripper
  sparse    minimum to maximum in equal widths, since its percentiles coincide or cut off a direction; so is, in place
            of equal frequency, a dimension of a few values (a gripper of -1, 0, 1), where edges that are values would
            join two of them
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.statistics import BINS, kinds, values

KINDS = ("uniform_quantile", "uniform_min_max", "equal_frequency")
LAYOUTS = ("append", "overwrite")
FEWEST = 8
"""With fewer bins of equal frequency left a dimension has a few values only, and bins would join them."""


class ActionBins:
    """Bins for one column of one dataset.

    Args:
      summary: the column's statistics; see `lapa_jax.data.statistics`.
      kind: how bins are laid, see above.
      bins: of each dimension. Fewer are left where edges coincide (equal frequency), or where float32 cannot tell them
        apart. With "equal_frequency" a divisor of 256, since the statistics hold the edges of 256 bins.
      binary: the dimensions with two bins (-1 is the last), in place of those that the statistics show to be so.

    Attributes:
      kind, bins: as given. edges: for each dimension f32[n + 1], increasing. counts: int32[A], the n.
      constant: bool[A]. loss_mask: bool[A], false for constant dimensions, in which there is nothing to learn.
    """

    def __init__(
        self,
        summary: Mapping,
        kind: str = "uniform_quantile",
        bins: int = BINS,
        *,
        binary: Sequence[int] | None = None,
    ):
        _check(kind, bins)
        dimension_kinds = kinds(summary, binary)
        laid = [_lay(summary, i, of_dimension, kind, bins) for i, of_dimension in enumerate(dimension_kinds)]
        edges, right = [edges for edges, _ in laid], [right for _, right in laid]
        self._set(kind, bins, edges, [of_dimension == "constant" for of_dimension in dimension_kinds], right)

    def _set(self, kind: str, bins: int, edges: Sequence, constant: Sequence[bool], right: Sequence[bool]) -> None:
        self.kind, self.bins = kind, bins
        self.constant, self._right = np.array(constant, bool), np.array(right, bool)
        # in float32, as the data are: then no bin lies between two neighbouring numbers, where none could fall into it
        edges = [np.asarray(e, np.float64).astype(np.float32) for e in edges]
        self.edges = [e if c else np.unique(e) for e, c in zip(edges, self.constant)]
        self.counts = np.array([len(e) - 1 for e in self.edges], np.int32)
        self._centres = [_centres(e, right) for e, right in zip(self.edges, self._right)]

    @property
    def loss_mask(self) -> np.ndarray:
        """bool[A], see the class."""
        return ~self.constant

    def __len__(self) -> int:
        """The number of dimensions."""
        return len(self.edges)

    def encode(self, actions: np.ndarray) -> np.ndarray:
        """Bins of actions f[..., A] as int32[..., A]; what lies outside the range goes to the nearest bin.

        Raises:
          ValueError: for a number that is not finite, naming its position.
        """
        # A float64 beyond float32 becomes infinite, and is refused below with its position instead of a warning.
        with np.errstate(over="ignore"):
            actions = self._rows(actions).astype(np.float32)
        if not np.isfinite(actions).all():
            at = np.argwhere(~np.isfinite(actions))[0]
            raise ValueError(f"the action at {at[:-1].tolist()}, dimension {at[-1]} is {actions[tuple(at)]}")
        codes = np.zeros(actions.shape, np.int32)
        for i, (edges, right) in enumerate(zip(self.edges, self._right)):
            codes[..., i] = np.searchsorted(edges[1:-1], actions[..., i], side="left" if right else "right")
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The centres of bins int[..., A] as f32[..., A]; a bin that does not exist is a ValueError."""
        codes = self._whole(codes)
        wrong = (codes < 0) | (codes >= self.counts)
        if wrong.any():
            at = np.argwhere(wrong)[0]
            i = at[-1]
            raise ValueError(
                f"bin {codes[tuple(at)]} at {at[:-1].tolist()}: dimension {i} has bins 0 to {self.counts[i] - 1}"
            )
        actions = np.empty(codes.shape, np.float32)
        for i, centres in enumerate(self._centres):
            actions[..., i] = centres[codes[..., i]]
        return actions

    def token_count(self, layout: str = "append") -> int:
        """How many token ids a layout uses; see `to_token_ids`."""
        _check_layout(layout)
        return self.bins * (len(self) if layout == "append" else 1)

    def to_token_ids(self, codes: np.ndarray, vocab_size: int, layout: str = "append") -> np.ndarray:
        """Token ids of bins int[..., A], as int32[..., A].

        Args:
          codes: as of `encode`.
          vocab_size: of the language model before any are added, 32000 for Llama 2.
          layout: "append": each dimension has ids of its own beyond the vocabulary, `vocab_size + bins * dimension +
            bin` (7 x 256 for a robot arm: 32000 to 33791; the embedding is enlarged by `token_count`).
            "overwrite": all dimensions share the last ids of the vocabulary, `vocab_size - 1 - bin`, which OpenVLA
            uses since they are the rarest pieces of Llama's.

        Raises:
          ValueError: a bin that does not exist.
        """
        codes = self._whole(codes)
        self.decode(codes)  # for its refusals
        return self._ids(codes, vocab_size, layout).astype(np.int32)

    def from_token_ids(self, ids: np.ndarray, vocab_size: int, layout: str = "append") -> np.ndarray:
        """The bins of token ids int[..., A]: the inverse of `to_token_ids`.

        Raises:
          ValueError: an id that is no bin of its dimension, naming it. Nothing is put in its place.
        """
        ids = self._whole(ids)
        codes = self._ids(ids, vocab_size, layout, inverse=True)
        wrong = (codes < 0) | (codes >= self.counts)
        if wrong.any():
            at = np.argwhere(wrong)[0]
            i = at[-1]
            ends = self._ids(np.stack([0 * self.counts, self.counts - 1]), vocab_size, layout)[:, i]
            expected = f"{ends.min()} to {ends.max()}"
            raise ValueError(
                f"token {ids[tuple(at)]} at {at[:-1].tolist()} is no action: dimension {i} has ids {expected}"
            )
        return codes.astype(np.int32)

    def _ids(self, numbers: np.ndarray, vocab_size: int, layout: str, inverse: bool = False) -> np.ndarray:
        _check_layout(layout)
        if layout == "overwrite":
            if vocab_size < self.bins:
                raise UserError(f"a vocabulary of {vocab_size} ids has no room for {self.bins} bins; use 'append'")
            return vocab_size - 1 - numbers  # its own inverse
        first = vocab_size + self.bins * np.arange(len(self), dtype=np.int64)
        return numbers - first if inverse else numbers + first

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.shape[-1:] != (len(self),):
            raise ValueError(f"an array of shape {list(rows.shape)} for bins of {len(self)} dimensions")
        return rows

    def _whole(self, numbers: np.ndarray) -> np.ndarray:
        numbers = self._rows(numbers)
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"bins and token ids are whole numbers, not {numbers.dtype}")
        return numbers.astype(np.int64)

    def to_json(self) -> dict:
        """The bins as JSON values, edges and all: `from_json` makes equal ones without the statistics."""
        edges = [[float(edge) for edge in e] for e in self.edges]
        saved = {"kind": self.kind, "bins": self.bins, "edges": edges}
        return saved | {"constant": self.constant.tolist(), "right_closed": self._right.tolist()}

    @classmethod
    def from_json(cls, saved: Mapping) -> "ActionBins":
        """The inverse of `to_json`."""
        _check(saved["kind"], saved["bins"])
        bins = cls.__new__(cls)
        bins._set(saved["kind"], saved["bins"], saved["edges"], saved["constant"], saved["right_closed"])
        return bins

    def __repr__(self) -> str:
        return f"ActionBins({self.kind}, {self.counts.tolist()})"


def _lay(summary: Mapping, i: int, dimension_kind: str, kind: str, bins: int) -> tuple[Sequence[float], bool]:
    """The edges of dimension i, and whether its bins are (a, b] and not [a, b)."""
    low, high, q01, q99, mean = (array[i] for array in values(summary, "min", "max", "q01", "q99", "mean"))
    if dimension_kind == "constant":
        return [mean, mean], False
    if dimension_kind == "binary":
        # Edges half way, so that the bins' centres are exactly the two values.
        half = (high - low) / 2
        return [low - half, low + half, high + half], False
    if dimension_kind == "continuous" and kind == "uniform_quantile":
        return np.linspace(q01, q99, bins + 1), False
    if dimension_kind == "continuous" and kind == "equal_frequency":
        # Equal edges are one bin: what the dimension often is would otherwise fill several empty ones.
        edges = np.unique(values(summary, "quantiles")[0][i][:: BINS // bins].astype(np.float32))
        if len(edges) - 1 >= max(2, min(FEWEST, bins // 4)):
            return edges, True
    return np.linspace(low, high, bins + 1), False


def _centres(edges: np.ndarray, right: bool) -> np.ndarray:
    """Middles of the bins, f32[n]. Between neighbouring float32 there is none: then the one number of the bin."""
    low, high = edges[:-1], edges[1:]
    middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
    if right:
        return np.where(middle <= low, high, middle)
    return np.where(middle >= high, low, middle)


def _check(kind: str, bins: int) -> None:
    if kind not in KINDS:
        raise UserError(f"action bins of kind '{kind}' do not exist{did_you_mean(kind, KINDS)}")
    if bins < 2:
        raise UserError(f"{bins} action bins are too few; 256 are usual")
    if kind == "equal_frequency" and (bins > BINS or BINS % bins):
        raise UserError(f"equal_frequency bins must divide {BINS}, the bins of the statistics; {bins} do not")


def _check_layout(layout: str) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"token layout '{layout}' does not exist{did_you_mean(layout, LAYOUTS)}")
