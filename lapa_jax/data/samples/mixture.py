"""Several datasets as one source: their samples one after the other, stacked however much the datasets differ."""

from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader.buffers import empty
from lapa_jax.data.samples.meta import join
from lapa_jax.data.transforms import IMAGES

PADDED = ("action", "state", "net_action", "pair_action", "pair_action_mask", "future_action", "prompt_action",
          "prompt_state", "goal_state")  # fmt: skip
"""Fields whose last axis differs between robots: filled up with zeros to the largest."""


class Mixture:
    """The samples of several sources; its indices are the concatenation of theirs.

    Args:
      sources: {name: source}, all of one kind and with the same fields.
      weights: how often each is drawn from, relative to the others; positive.

    Attributes:
      sources: as given. names, lengths: of the parts, in order. weights: they sum to 1.
      fields: what the samples hold. emphases: of the parts, see `StepSource`.

    Raises:
      UserError: samples of two parts cannot be stacked; the message names the two, the field and the reason.
    """

    def __init__(self, sources: Mapping[str, object], weights: Sequence[float]):
        self.sources, self.names = dict(sources), tuple(sources)
        if not self.names or len(weights) != len(self.names):
            raise UserError(f"a mixture of {len(self.names)} parts {self.names} with {len(weights)} weights")
        for name, weight in zip(self.names, weights):
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
                raise UserError(f"data.mixture: the weight of '{name}' must be a positive number (got {weight!r})")
        self.weights = tuple(float(weight) / sum(weights) for weight in weights)
        self._parts = tuple(self.sources.values())
        self.lengths = tuple(len(source) for source in self._parts)
        self.fields = self._parts[0].fields
        self.emphases = tuple(source.emphasis for source in self._parts)
        self._before = np.concatenate([[0], np.cumsum(self.lengths)])
        self._empty = self._check([source.batch([]) for source in self._parts])

    def _check(self, empty: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """A batch without rows, of the shapes that all parts share once they are padded."""
        first, shapes = empty[0], {}
        for name, part in zip(self.names, empty):
            if lacking := sorted(set(first) ^ set(part)):
                one, other = (self.names[0], name) if lacking[0] in first else (name, self.names[0])
                raise UserError(f"data.mixture: samples of '{one}' have '{lacking[0]}', those of '{other}' have not")
            for field, values in part.items():
                shapes.setdefault(field, []).append(values.shape[1:])
        return {field: np.empty((0, *self._common(field, shapes[field])), first[field].dtype) for field in first}

    def _common(self, field: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        padded = field in PADDED
        for name, shape in zip(self.names, shapes):
            # Fields that are padded may differ in their last axis alone.
            if (shape[:-1] if padded else shape) != (shapes[0][:-1] if padded else shapes[0]):
                remedy = "; set data.image_size" if field in IMAGES else ""
                raise UserError(f"data.mixture: '{field}' has shape {shapes[0]} in '{self.names[0]}' and {shape} in "
                                f"'{name}': they cannot be stacked{remedy}")  # fmt: skip
        return (*shapes[0][:-1], max(shape[-1] for shape in shapes)) if padded else shapes[0]

    def __len__(self) -> int:
        return int(self._before[-1])

    @property
    def vocabulary(self) -> int | None:
        """As of the parts, which share a tokenizer."""
        return self._parts[0].vocabulary

    @property
    def text_lengths(self) -> tuple[int, int]:
        """As of the parts: the largest of each."""
        return tuple(map(max, zip(*(part.text_lengths for part in self._parts))))

    def widen_texts(self, length: int) -> None:
        """Pads the instructions of all parts to more tokens."""
        for part in self._parts:
            part.widen_texts(length)
        self._empty = self._check([part.batch([]) for part in self._parts])

    @property
    def label_info(self) -> Mapping | None:
        """The "labels" entry of the first part's latents; all must be of one tokenizer."""
        infos = [part.label_info for part in self._parts]
        tokenizers = {(info or {}).get("tokenizer") for info in infos}
        if len(tokenizers) > 1:
            raise UserError(f"the parts of data.mixture have latents of {len(tokenizers)} different tokenizers; "
                            "label them all with one")
        return infos[0]

    def __repr__(self) -> str:
        return f"Mixture({self.sources!r}, {self.weights})"

    def part_of(self, i: int) -> tuple[int, int]:
        """(number of the part, index within it) of sample i."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        part = int(np.searchsorted(self._before, i, side="right")) - 1
        return part, int(i - self._before[part])

    def locate(self, i: int) -> tuple[int, ...]:
        """What the part says of sample i: number of the episode in that part, step, ..."""
        part, index = self.part_of(i)
        return self._parts[part].locate(index)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """One sample: what `batch` gives, without the first axis."""
        return {name: values[0] for name, values in self.batch([i]).items()}

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Several samples, stacked.

        Returns:
          What the parts give, actions and states filled up with zeros to the largest number of dimensions, and
          "dataset_id" int32[B], "action_dims" f32[B, A] and "state_dims" f32[B, S]: 1 for dimensions that the sample's
          dataset has.
        """
        locations = [self.part_of(int(i)) for i in indices]
        part_of = np.array([part for part, _ in locations], np.int32)
        # One allocation for all parts: images are decoded straight into their rows.
        batch = {name: _make(name, (len(locations), *v.shape[1:]), v.dtype) for name, v in self._empty.items()}
        batch |= self._dimensions(part_of)
        images = [name for name in IMAGES if name in batch]
        for number in np.unique(part_of).tolist():
            rows = np.flatnonzero(part_of == number)
            into = {name: [batch[name][row] for row in rows] for name in images}
            for name, values in self._parts[number].batch([locations[row][1] for row in rows], into).items():
                if values.dtype.kind == "U" and values.dtype.itemsize > batch[name].dtype.itemsize:
                    batch[name] = batch[name].astype(values.dtype)  # the longest text decides the width
                batch[name][(rows, ..., slice(values.shape[-1])) if name in PADDED else rows] = values
        return {**batch, "dataset_id": part_of}

    def _dimensions(self, part_of: np.ndarray) -> dict[str, np.ndarray]:
        masks = {}
        for name in ("action", "state"):
            field = name if name in self._empty else f"net_{name}"
            if field in self._empty:
                widths = np.array([part.batch([])[field].shape[-1] for part in self._parts])
                masks[f"{name}_dims"] = (np.arange(widths.max()) < widths[part_of][:, None]).astype(np.float32)
        return masks

    def instructions(self) -> list[str]:
        """The distinct instructions of all parts."""
        return sorted({text for source in self._parts for text in source.instructions()})

    def meta(self) -> dict:
        """What a checkpoint keeps of its data, see `lapa_jax.data.samples.meta`."""
        return join({name: source.meta() for name, source in self.sources.items()}, self.weights)

    def summary(self) -> dict[str, dict]:
        """The summary of each part with its weight."""
        parts = zip(self.sources.items(), self.weights)
        return {name: {**source.summary(), "weight": weight} for (name, source), weight in parts}


def _make(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
    """Room for a field: the parts write every image, but not every dimension of the rest."""
    return empty(shape, dtype) if name in IMAGES else np.zeros(shape, dtype)
