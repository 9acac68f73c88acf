"""What the kinds of samples over step shards share: which steps begin one, fields and where they are read from."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data.images import check_resize, check_scaled
from lapa_jax.data.loader.buffers import empty
from lapa_jax.data.normalize import MODES, Normalizer
from lapa_jax.data.samples.meta import check_statistics, describe
from lapa_jax.data.samples.reading import DTYPES, CameraImages, Column, Texts
from lapa_jax.data.shards.labels import open_labels
from lapa_jax.data.shards.step_shards import StepShards

FIELDS = ("image", "text", "state", "action", "latent", "delta", "feature")
LABELLED = ("latent", "delta")
"""The columns that `data.labels` may hold: codes, and deltas before they are rounded."""
NORMALIZED = ("action", "state", "feature", "delta")
"""The columns that `data.normalize` changes, and that training needs statistics of."""

Rows = Mapping[str, Sequence[np.ndarray]]
NOWHERE: Rows = {}
"""Arrays to decode images into: {field: one for each sample}; see `StepSource.batch`."""


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The fields of `config.data` that steps, chunks and sequences share.

    Attributes:
      fields: what a sample holds, of "image", "text", "state", "action", "latent", "delta", "feature".
      camera: member name of a camera, or several names; then images have an axis of views.
      image_size: side in pixels; None keeps the stored size.
      resize: how images come to that size, one of `images.RESIZE_MODES` or the fields of
        `prismatic_images.PrismaticResize`; None: as the data say, else squashed.
      scaled_decoding: whether training decodes images of at least twice that size at a smaller one, see
        `images.decode`: faster, and not to the bit. Evaluation decodes them whole.
      labels: folder of a labelled set with the latents or deltas; None takes those that the shards hold themselves.
      labels_tokenizer: fingerprint of the tokenizer that must have made the labels; None takes any.
      text_tokenizer: {"name": ..., ...} of `lapa_jax.data.text.build`; None leaves instructions as they are.
      text_length: tokens that an instruction is padded to; a longer one is an error unless the tokenizer may cut it.
        None takes what the longest instruction needs, see `Texts`.
      normalize: "none", "q01_q99", "q01_q99_clip", "mean_std" or "min_max", see `lapa_jax.data.normalize`.
    """

    fields: tuple[str, ...] = ("image",)
    camera: str | tuple[str, ...] = "image"
    image_size: int | None = None
    resize: str | Mapping | None = None
    scaled_decoding: bool = False
    labels: str | None = None
    labels_tokenizer: str | None = None
    text_tokenizer: Mapping | None = None
    text_length: int | None = 64
    normalize: str = "none"

    def __post_init__(self):
        fields = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
        object.__setattr__(self, "fields", fields)
        for name in fields:
            if name not in FIELDS:
                raise UserError(f"data.fields: '{name}' is no field of a step{did_you_mean(name, FIELDS)}")
        if not fields or len(set(fields)) < len(fields):
            raise UserError(f"data.fields {fields} must name at least one field, each once")
        check_resize(self.resize)
        check_scaled(self.scaled_decoding, self.resize)
        if self.text_length is not None:
            whole_number("text_length", self.text_length, 1)
        if self.normalize not in MODES:
            raise UserError(f"data.normalize '{self.normalize}' does not exist{did_you_mean(self.normalize, MODES)}")


def whole_number(name: str, value, least: int) -> None:
    """Refuses a value of `data.<name>` that is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"data.{name} must be a whole number, {least} or more (got {value!r})")


class _Bits(NamedTuple):
    """A bool array of many entries, packed."""

    packed: np.ndarray
    count: int

    @classmethod
    def of(cls, value):
        """A long bool array packed; anything else as it is."""
        long = isinstance(value, np.ndarray) and value.dtype == bool and value.ndim == 1
        return cls(np.packbits(value), len(value)) if long else value

    def unpack(self) -> np.ndarray:
        """bool[count]."""
        return np.unpackbits(self.packed, count=self.count).astype(bool)


class StepSource:
    """Random access to samples that each begin at a step of a split.

    Attributes:
      shards: the steps. fields: what the samples hold.
      statistics: {column: summary} in use: those given (of a checkpoint, or of the training data), else the shards'.
      label_info: the "labels" entry of the set that the latents come from, or None.
      features: as in `dataset.json`, with those of the labels in use.
      gaps: int64[episodes], of frame pairs, in frames; None for other kinds.
      emphasis: samples that training draws more often, a `pair_actions.Emphasis`; None: none.
    """

    emphasis = None

    def __init__(self, shards: StepShards, fields: Sequence[str], statistics: Mapping | None):
        self.shards, self.fields = shards, tuple(fields)
        self.statistics = dict(shards.statistics if statistics is None else statistics)
        self.label_info: Mapping | None = None
        self.features: dict = dict(shards.features)
        self.gaps: np.ndarray | None = None
        self._starts, self._lengths = shards.episodes.starts, shards.episodes.lengths
        self._first = np.empty(0, np.int32)  # the step that each sample begins at

    def __getstate__(self) -> dict:
        """For workers: what the shards hold is mapped again, and of each step no more than a few bits are sent."""
        state = {name: value for name, value in vars(self).items() if name not in ("_starts", "_lengths", "_first")}
        begins = np.zeros(len(self.shards), bool)
        begins[self._first] = True
        state["_first"] = begins
        return {name: _Bits.of(value) for name, value in state.items()}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value.unpack() if isinstance(value, _Bits) else value)
        self._starts, self._lengths = self.shards.episodes.starts, self.shards.episodes.lengths
        self._begin_at(self._first)

    def __len__(self) -> int:
        return len(self._first)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        """One sample: what `batch` gives, without the first axis."""
        return {name: values[0] for name, values in self.batch([i]).items()}

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """Several samples, stacked. An empty batch is legal: it tells shapes and dtypes.

        Images of a field that `into` names are decoded into its arrays, one a sample, and missing from the result.
        """
        raise NotImplementedError

    def locate(self, i: int) -> tuple[int, int]:
        """(number of the episode in `shards.episodes`, step within it) at which sample i begins."""
        where = self._where(self._first_of([i]))
        return int(where["episode_id"][0]), int(where["step"][0])

    def instructions(self) -> list[str]:
        """The distinct instructions of the data."""
        return self.shards.instructions()

    @property
    def numeric(self) -> dict[str, int]:
        """{column in use: its number of dimensions}, of the columns that training needs statistics of."""
        return {name: math.prod(self.features[name]["shape"]) for name in self.fields if name in NORMALIZED}

    @property
    def vocabulary(self) -> int | None:
        """How many token ids the instructions may have; None where they are no tokens."""
        return None

    @property
    def text_lengths(self) -> tuple[int, int]:
        """Tokens that instructions are padded to, and those of the longest; 0 where they are no tokens."""
        return 0, 0

    def widen_texts(self, length: int) -> None:
        """Pads instructions to more tokens; nothing where they are no tokens."""

    @property
    def name(self) -> str:
        """What the dataset is called where nothing else names it: its folder."""
        return self.shards.folder.resolve().name

    def meta(self) -> dict:
        """What a checkpoint keeps of its data, see `lapa_jax.data.samples.meta`."""
        shards, gap = self.shards, None if self.gaps is None else int(self.gaps.max())
        entries = {"fingerprint": shards.fingerprint, "features": self.features, "fps": shards.fps, "gap_frames": gap}
        return describe(self.name, **entries, statistics=self.statistics, labels=self.label_info)

    def _begin_at(self, possible: np.ndarray) -> None:
        """Sets the samples: one for each step at which bool[steps] is True."""
        first = np.flatnonzero(possible)
        # Half the memory, where there are fewer than 2^31 steps.
        self._first = first.astype(np.int32) if len(possible) < 2**31 else first

    def _first_of(self, indices: Sequence[int]) -> np.ndarray:
        indices = np.asarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"sample {indices.min()} or {indices.max()} of {len(self)}")
        return self._first[indices].astype(np.int64)

    def _episode_of(self, steps: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, steps, side="right") - 1

    def _where(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        episodes = self._episode_of(steps)
        return {"episode_id": episodes.astype(np.int32), "step": (steps - self._starts[episodes]).astype(np.int32)}

    def every_step(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The number, the episode's first and the episode's last step of every step: int[steps] each, of four bytes
        where these are enough."""
        kind = np.int32 if len(self.shards) < 2**30 else np.int64
        starts, lengths = self._starts.astype(kind), self._lengths.astype(kind)
        first = np.repeat(starts, lengths)
        return np.arange(len(first), dtype=kind), first, np.repeat(starts + lengths - 1, lengths)


class FieldSource(StepSource):
    """Samples that hold fields of steps.

    Args:
      shards: the steps.
      options: see `StepOptions`.
      statistics: see `StepSource`; normalisation uses them.

    Raises:
      UserError: the data lack a field, its labels are of another tokenizer or of other data, or nothing is left.
    """

    def __init__(self, shards: StepShards, options: StepOptions, statistics: Mapping | None = None):
        super().__init__(shards, options.fields, statistics)
        self.options = options
        for name in self.fields:
            if name in NORMALIZED and name not in (*LABELLED, *shards.features):
                stored = sorted(shards.features)
                raise UserError(f"{shards.folder} has no {name} (features: {stored}); take it out of data.fields")
        self._labels = shards
        if labelled := [name for name in LABELLED if name in self.fields]:
            self._labels, self.label_info = open_labels(options.labels, shards, options.labels_tokenizer, labelled)
            self.features |= {name: self._labels.features[name] for name in labelled}
            if "delta" in labelled and statistics is None and "delta" in self._labels.statistics:
                self.statistics["delta"] = self._labels.statistics["delta"]
        self._images = None
        if "image" in self.fields:
            self._images = CameraImages(shards, options.camera, options.image_size, options.resize,
                                        options.scaled_decoding)  # fmt: skip
        self._texts = Texts(shards, options.text_tokenizer, options.text_length) if "text" in self.fields else None
        self._columns = {name: self._open_column(name) for name in self.fields if name in DTYPES}

    @property
    def vocabulary(self) -> int | None:
        """See `StepSource`."""
        return None if self._texts is None else self._texts.vocabulary

    @property
    def text_lengths(self) -> tuple[int, int]:
        """Tokens that instructions are padded to, and those of the longest; 0 where they are no tokens."""
        return (0, 0) if self._texts is None else (self._texts.length, self._texts.longest)

    def widen_texts(self, length: int) -> None:
        """Pads instructions to more tokens."""
        if self._texts is not None and 0 < self._texts.length < length:
            self._texts.widen(length)

    def _open_column(self, name: str) -> Column:
        shards = self._labels if name in LABELLED else self.shards
        if name == "latent" or self.options.normalize == "none":
            return Column(shards, name)
        width, trained = self.numeric[name], len(self.statistics.get(name, {}).get("mean", ()))
        # Statistics of a run, not of these shards, which may be of another robot.
        if self.statistics.get(name) != shards.statistics.get(name) and trained not in (0, width):
            raise UserError(f"'{name}' has {width} numbers in {self.shards.folder}, and {trained} in the data that the "
                            "run was trained on: give data of the same robot (of --dataset, where it knows several)")
        check_statistics(self.statistics, name, width, str(shards.folder))
        return Column(shards, name, Normalizer(self.statistics[name], self.options.normalize))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shards!r}, {self.options})"

    def _available(self) -> dict[str, np.ndarray]:
        """{field: bool[steps]}: where each can be read. A field that no step has is refused."""
        masks = {}
        for name in self.fields:
            if name == "image":
                masks[name] = self._images.available()
            else:
                masks[name] = self._texts.available() if name == "text" else self._columns[name].present
            if not masks[name].any():
                where = f"{self.shards.folder} ({self.shards.split})"
                raise UserError(f"no step of {where} has '{name}': take it out of data.fields, or give other data")
        return masks

    def _read(self, name: str, steps: np.ndarray, **how) -> dict[str, np.ndarray]:
        """A field at steps int[...]: {name: [..., D], or [..., H, W, 3]}, instructions as `Texts.read` gives them.

        Numbers are zeros where the step has none. `how`: see `_read_images`.
        """
        if name == "text":
            return self._texts.read(steps)
        return self._read_images(name, steps, **how) if name == "image" else {name: self._columns[name].take(steps)}

    def _read_images(
        self, name: str, steps: np.ndarray, rows: Sequence[np.ndarray] | None = None, mask: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Images of steps int[B, ...] as {name: uint8[B, ..., H, W, 3]}, zeros where `mask` bool[B, ...] is False.

        With `rows` they are decoded into these arrays, one for each of B, and the result is empty.
        """
        batch = empty((*steps.shape, *self._images.shape), np.uint8) if rows is None else rows
        mask = np.broadcast_to(True, steps.shape) if mask is None else mask
        # Views into the batch: images are decoded to where they belong, without a copy.
        views = [view for row in batch for view in row.reshape(-1, *self._images.shape)]
        # The buffer's memory is used again and may hold another batch's images.
        for number in np.flatnonzero(~mask.ravel()).tolist():
            views[number][:] = 0
        chosen = np.flatnonzero(mask.ravel())
        self._images.into([views[number] for number in chosen.tolist()], steps.ravel()[chosen].tolist())
        return {name: batch} if rows is None else {}
