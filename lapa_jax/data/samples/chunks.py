"""Action chunks: the T actions from each step on, with a mask where the episode ends, and what is seen at that step."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.base import LABELLED, NOWHERE, FieldSource, Rows, StepOptions, whole_number
from lapa_jax.data.samples.steps import whole_pairs
from lapa_jax.data.shards.step_shards import StepShards

OBSERVED = ("image", "state", "feature")
"""The fields that a history extends into the past."""


@dataclasses.dataclass(frozen=True)
class Options(StepOptions):
    """The fields of `config.data` for chunks, besides those of `StepOptions`.

    Attributes:
      fields: without "action" the samples are of steps whose actions are not known, or not to be used: the part of a
        mixture that has latents alone.
      chunk_length: T, in steps of the data.
      history: how many earlier steps are seen besides the current one; with 0 observations have no axis of time.
    """

    fields: tuple[str, ...] = ("action",)
    chunk_length: int = 16
    history: int = 0

    def __post_init__(self):
        super().__post_init__()
        whole_number("chunk_length", self.chunk_length, 1)
        whole_number("history", self.history, 0)
        if "action" not in self.fields and not set(LABELLED) & set(self.fields):
            raise UserError(f"data.fields {self.fields} must hold 'action', or latents to learn in its place")

    def open(self, shards: StepShards, statistics: Mapping | None = None) -> "Chunks":
        """The chunks of a split; `statistics` as for `StepSource`."""
        return Chunks(shards, self, statistics)


class Chunks(FieldSource):
    """A chunk from every step that has all that is asked for. Arguments as of `FieldSource`."""

    def __init__(self, shards: StepShards, options: Options, statistics: Mapping | None = None):
        super().__init__(shards, options, statistics)
        if "action" not in self.fields:
            # Actions that nobody sees have no scale, whatever the shards hold.
            self.statistics.pop("action", None)
        available = self._available()
        for name in OBSERVED:
            if name in available:
                available[name] = self._through_history(available[name])
        self._without = {name: int((~present).sum()) for name, present in available.items()}
        self._begin_at(np.all(list(available.values()), axis=0))
        self._whole = whole_pairs(self) if set(LABELLED) & set(self.fields) else None
        if len(self) == 0:
            lacking = ", ".join(f"{count} lack '{name}'" for name, count in self._without.items())
            raise UserError(f"no step of {shards.folder} ({shards.split}) begins a chunk with {self.fields}: {lacking}")

    def _through_history(self, available: np.ndarray) -> np.ndarray:
        steps, first, _ = self.every_step()
        earlier = [available[np.maximum(steps - k, first)] for k in range(self.options.history + 1)]
        return np.all(earlier, axis=0)

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """Several chunks, stacked.

        Returns:
          {"action": f32[B, T, A], "action_mask": f32[B, T], "episode_id": int32[B], "step": int32[B]} and, of the
          fields asked for: "image" uint8[B, (history + 1,) (V,) H, W, 3], "state" f32[B, (history + 1,) S], "feature"
          likewise, "text" (see `Texts.read`) and "latent" int32[B, N] of the first step, with "latent_mask" f32[B] as
          of steps. The mask of actions is 1 where the episode has one; elsewhere the action is 0. Where "action" is not
          asked for, A is 0, which a mixture fills up, and the mask is 0. With a history the last of its steps is the
          current one; "history_mask" f32[B, history + 1] is 0 where it reaches back before the episode, whose first
          step then stands there again. `into`: see `StepSource.batch`.
        """
        steps = self._first_of(indices)
        where = self._where(steps)
        first = self._starts[where["episode_id"]][:, None]
        last = first + self._lengths[where["episode_id"]][:, None] - 1
        ahead = steps[:, None] + np.arange(self.options.chunk_length)
        if "action" in self.fields:
            inside = np.minimum(ahead, last)
            mask = (ahead <= last) & self._columns["action"].present[inside]
            actions = self._columns["action"].take(inside) * mask[..., None]
        else:
            mask, actions = np.zeros(ahead.shape), np.zeros((*ahead.shape, 0), np.float32)
        batch = {"action": actions, "action_mask": mask.astype(np.float32), **where}
        back = steps[:, None] + np.arange(-self.options.history, 1)
        # Before the episode its first step is repeated, and "history_mask" tells.
        seen = np.maximum(back, first) if self.options.history else steps
        for name in self.fields:
            if name != "action":
                batch |= self._read(name, seen if name in OBSERVED else steps, rows=into.get(name))
        if self._whole is not None:
            batch["latent_mask"] = self._whole[steps].astype(np.float32)
        if self.options.history:
            batch["history_mask"] = (back >= first).astype(np.float32)
        return batch

    def summary(self) -> dict[str, int]:
        """How many episodes, steps and chunks; how many are padded; how many steps lack each field."""
        counts = {"episodes": len(self._lengths), "steps": len(self.shards), "chunks": len(self)}
        if "action" not in self.fields:
            return counts | {f"steps_without_{name}": count for name, count in self._without.items()}
        where = self._where(self._first.astype(np.int64))
        left = self._lengths[where["episode_id"]] - where["step"]
        # ahead[i]: actions from step i to the end of the split, so that a difference counts those within a chunk.
        ahead = np.concatenate([np.cumsum(self._columns["action"].present[::-1])[::-1], [0]])
        actions = ahead[self._first] - ahead[self._first + np.minimum(left, self.options.chunk_length)]
        counts["chunks_padded"] = int((actions < self.options.chunk_length).sum())
        return counts | {f"steps_without_{name}": count for name, count in self._without.items()}
