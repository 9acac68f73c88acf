"""Tokenizers of numeric columns at inference: what those of actions and of features share."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.base import ColumnModel, finite


class ColumnTokenizer(ColumnModel):
    """A trained tokenizer of rows of numbers in the units of the data. Attributes as of `ColumnModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._encode = jax.jit(functools.partial(_apply_encode, model))
        self._decode = jax.jit(functools.partial(_apply_decode, model))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes at each code position."""
        return tuple(int(size) for size in jax.tree.leaves(self.model.codebook_sizes))

    @property
    def codebook_size(self) -> int | tuple[int, ...]:
        """K where all positions have the same number of codes, else `codebook_sizes`."""
        sizes = self.codebook_sizes
        return sizes[0] if len(set(sizes)) == 1 else sizes

    @property
    def code_length(self) -> int:
        """Codes a row."""
        return len(self.codebook_sizes)

    def check_codes(self, codes, axes: tuple[int, ...]) -> np.ndarray:
        """`codes` as an int32 array with so many axes, the last of one code each; else a `UserError`."""
        codes, sizes = np.asarray(codes), np.array(self.codebook_sizes)
        if codes.dtype.kind not in "iu" or codes.ndim not in axes or 0 in codes.shape or codes.shape[-1] != len(sizes):
            raise UserError(f"codes is {codes.dtype} {codes.shape}; integers with {' or '.join(map(str, axes))} axes, "
                            f"the last of {len(sizes)}, are expected")  # fmt: skip
        flat = codes.reshape(-1, len(sizes))
        if wrong := np.flatnonzero((flat.min(0) < 0) | (flat.max(0) >= sizes)).tolist():
            position = wrong[0]
            raise UserError(f"codes holds {flat[:, position].min()}..{flat[:, position].max()} at position {position}, "
                            f"whose codebook has 0..{sizes[position] - 1}")
        return codes.astype(np.int32)


def _apply_encode(model, variables, batch: Mapping):
    return model.apply(variables, batch, method="encode")["codes"]


def _apply_decode(model, variables, *arrays):
    return model.apply(variables, *arrays, method="decode").astype("float32")


SHORTEST = 8
"""Sequences of steps are padded to a power of two of at least this, so that few programs are compiled."""


class ActionTokenizer(ColumnTokenizer):
    """A trained tokenizer of actions. Attributes as of `ColumnTokenizer`."""

    COLUMNS = ("action",)

    @property
    def chunk_length(self) -> int | None:
        """T of a tokenizer of chunks; None for one of steps."""
        return self.model.chunk_length

    @property
    def takes_state(self) -> bool:
        """Whether the model was trained on actions and states."""
        return "state" in self.model.example(1)

    def encode(self, actions, mask=None, *, state=None, dataset: str | None = None) -> np.ndarray:
        """Codes of action sequences.

        Args:
          actions: numbers `[B, T, A]` or `[T, A]`, in the units of the data. Chunks may be shorter than `chunk_length`:
            what is missing at the end counts as masked.
          mask: `[B, T]` or `[T]`, 1 or True where there is an action; everywhere if None.
          state: `[B, S]` or `[S]`, at the first step, for models that take it.
          dataset: whose units; needed for a tokenizer of several datasets.

        Returns:
          int32 `[B, N]` of chunks, `[B, T, N]` of steps; without the first axis for a single sequence.

        Raises:
          UserError: another shape or type, or numbers that are not finite where the mask is 1.
        """
        actions = self.check_rows(actions, "actions", (2, 3), self.width_of(dataset))
        mask = _check_mask(mask, actions.shape[:-1])
        actions = finite(np.where(mask[..., None] > 0, actions, 0.0), "actions")
        single, length = actions.ndim == 2, actions.shape[-2]
        if single:
            actions, mask = actions[None], mask[None]
        # what is padded is 0 for the model, whatever it stands for in the units of the data
        rows = self.to_model(actions, dataset) * mask[..., None]
        extra = self._length(length) - length
        batch = {"action": np.pad(rows, [(0, 0), (0, extra), (0, 0)])}
        batch |= {"action_mask": np.pad(mask, [(0, 0), (0, extra)]), **self._state(state, len(rows), dataset)}
        codes = self.run(self._encode, batch)
        codes = codes if self.chunk_length else codes[:, :length]
        return codes[0] if single else codes

    def decode(self, codes, mask=None, *, dataset: str | None = None) -> np.ndarray:
        """The actions that codes stand for, in the units of the data.

        Args:
          codes: integers: of chunks `[B, N]` or `[N]`, of steps `[B, T, N]` or `[T, N]`.
          mask: of steps: `[B, T]` or `[T]`, 1 for steps that exist; all of them if None.
          dataset: as for `encode`.

        Returns:
          float32 `[B, T, A]`, or `[T, A]` for a single sequence.

        Raises:
          UserError: another shape or type, or codes that do not exist.
        """
        per_step = self.chunk_length is None
        codes = self.check_codes(codes, (2, 3) if per_step else (1, 2))
        single = codes.ndim == (2 if per_step else 1)
        rows = codes[None] if single else codes
        if per_step:
            mask = _check_mask(mask, codes.shape[:-1]).reshape(rows.shape[:2])
            length = rows.shape[1]
            pad = [(0, 0), (0, self._length(length) - length)]
            actions = self.run(self._decode, np.pad(rows, [*pad, (0, 0)]), np.pad(mask, pad))[:, :length]
        else:
            actions = self.run(self._decode, rows)
        actions = self.to_units(actions, dataset)
        return actions[0] if single else actions

    def encode_episodes(self, episodes, *, dataset: str | None = None) -> list[np.ndarray]:
        """Codes of every step of whole episodes.

        A tokenizer of chunks gives the codes of the chunk that begins at each step. One of steps sees the episode in
        overlapping windows of its `context`, and each step's codes come from a window in which it has neighbours on
        both sides (causal models: behind it), as far as the episode goes.

        Args:
          episodes: of each (actions `[L, A]` in the data's units, mask `[L]`, states `[L, S]` or None).
          dataset: as for `encode`.

        Returns:
          int32 `[L, N]` of each.
        """
        windows = [self.windows(len(actions)) for actions, _, _ in episodes]
        length = self.chunk_length or self.model.context
        parts: dict[str, list[np.ndarray]] = {"actions": [], "mask": [], "state": []}
        for (actions, mask, states), (starts, _, _) in zip(episodes, windows, strict=True):
            steps = starts[:, None] + np.arange(length)
            inside = np.minimum(steps, len(actions) - 1)
            parts["actions"].append(actions[inside])
            parts["mask"].append(mask[inside] * (steps < len(actions)))
            parts["state"].append(np.zeros(0) if states is None else states[starts])
        joined = {name: np.concatenate(rows) for name, rows in parts.items()}
        state = joined["state"] if self.takes_state else None
        codes = self.encode(joined["actions"], joined["mask"], state=state, dataset=dataset)
        codes_of_episodes, first = [], 0
        for starts, which, offset in windows:
            window_codes = codes[first : first + len(starts)]
            codes_of_episodes.append(window_codes if self.chunk_length else window_codes[which, offset])
            first += len(starts)
        return codes_of_episodes

    def windows(self, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How an episode of so many steps is cut up: the first step of each window, int64[W]; and for each step the
        window that its codes are taken from and its offset there, int64[length] each."""
        steps = np.arange(length)
        if self.chunk_length:
            return steps, steps, np.zeros_like(steps)
        context = self.model.context
        back = context // 2 if self.model.causal else context // 4
        ahead = 0 if self.model.causal else context // 4
        # More neighbours than the convolutions reach would change no code, and only add windows.
        if self.model.reach is not None:
            back, ahead = min(back, self.model.reach[0]), min(ahead, self.model.reach[1])
        hop = context - back - ahead
        # a window answers for the steps [first + back, first + back + hop), the first and the last for the ends as well
        count = max(1, -(-(length - back - ahead) // hop))
        which = np.clip((steps - back) // hop, 0, count - 1)
        return np.arange(count) * hop, which, steps - which * hop

    def _length(self, length: int) -> int:
        """The number of steps that the model is given for so many."""
        if self.chunk_length is None:
            # The next power of two.
            return max(SHORTEST, 1 << (length - 1).bit_length())
        if length > self.chunk_length:
            raise UserError(f"actions has {length} steps; this tokenizer's chunks have {self.chunk_length}: cut them, "
                            "or use encode_episodes")
        return self.chunk_length

    def _state(self, state, count: int, dataset: str | None) -> dict[str, np.ndarray]:
        if not self.takes_state:
            if state is not None:
                raise UserError("this tokenizer was trained on actions alone; leave out the state")
            return {}
        if state is None:
            raise UserError("this tokenizer was trained on actions and states; give the state at the first step")
        width = self.width_of(dataset, "state")
        state = finite(self.check_rows(state, "state", (1, 2), width), "state").reshape(-1, width)
        if len(state) != count:
            raise UserError(f"{len(state)} states and {count} action sequences do not go together")
        return {"state": self.to_model(state, dataset, "state")}


def _check_mask(mask, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape, np.float32)
    mask = np.asarray(mask)
    if mask.shape != shape or mask.dtype.kind not in "bfiu" or not np.isin(mask, (0, 1)).all():
        raise UserError(f"mask is {mask.dtype} {mask.shape}; zeros and ones of shape {shape} are expected")
    return mask.astype(np.float32)


class FeatureTokenizer(ColumnTokenizer):
    """A trained tokenizer of feature vectors. Attributes as of `ColumnTokenizer`."""

    COLUMNS = ("feature", "state")

    def encode(self, features, *, dataset: str | None = None) -> np.ndarray:
        """Codes of rows of features.

        Args:
          features: numbers `[B, F]` or `[F]`, in the units of the data.
          dataset: whose units; needed for a tokenizer of several datasets.

        Returns:
          int32 `[B, N]`, or `[N]` for a single row; position i holds 0..codebook_sizes[i]-1.

        Raises:
          UserError: another shape or type, or numbers that are not finite.
        """
        rows = finite(self.check_rows(features, "features", (1, 2), self.width_of(dataset)), "features")
        batch = {"feature": self.to_model(rows.reshape(-1, rows.shape[-1]), dataset)}
        codes = self.run(self._encode, batch)
        return codes if rows.ndim == 2 else codes[0]

    def decode(self, codes, *, dataset: str | None = None) -> np.ndarray:
        """The rows that codes stand for, float32 `[B, F]` or `[F]`, in the units of the data.

        Args:
          codes: integers `[B, N]` or `[N]`.
          dataset: as for `encode`.

        Raises:
          UserError: another shape or type, or codes that do not exist.
        """
        codes = self.check_codes(codes, (1, 2))
        rows = self.to_units(self.run(self._decode, codes.reshape(-1, codes.shape[-1])), dataset)
        return rows if codes.ndim == 2 else rows[0]
