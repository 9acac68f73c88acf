"""Single steps: image(s), instruction, latent, action, state; what a vision-language-action model learns from."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.base import LABELLED, NOWHERE, FieldSource, Rows, StepOptions
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.data.shards.step_shards import StepShards


@dataclasses.dataclass(frozen=True)
class Options(StepOptions):
    """The fields of `config.data` for steps; see `StepOptions`."""

    def open(self, shards: StepShards, statistics: Mapping | None = None) -> "Steps":
        """The steps of a split; `statistics` as for `StepSource`."""
        return Steps(shards, self, statistics)


class Steps(FieldSource):
    """Every step that has all the fields; `summary()` counts those that lack each. Arguments as of `FieldSource`."""

    def __init__(self, shards: StepShards, options: Options, statistics: Mapping | None = None):
        super().__init__(shards, options, statistics)
        available = self._available()
        self._without = {name: int((~present).sum()) for name, present in available.items()}
        self._begin_at(np.all(list(available.values()), axis=0))
        self._whole = whole_pairs(self) if set(LABELLED) & set(self.fields) else None
        if len(self) == 0:
            lacking = ", ".join(f"{count} lack '{name}'" for name, count in self._without.items())
            raise UserError(f"no step of {shards.folder} ({shards.split}) has all of {self.fields}: {lacking}")

    def batch(self, indices: Sequence[int], into: Rows = NOWHERE) -> dict[str, np.ndarray]:
        """Several steps, stacked.

        Returns:
          {"episode_id": int32[B], "step": int32[B]} and, of the fields asked for: "image" uint8[B, H, W, 3] (with
          several cameras [B, V, H, W, 3]), "text" (see `Texts.read`), "latent" int32[B, N] and "delta" f32[B, N, Q],
          with "latent_mask" f32[B], "action" f32[B, A], "state" f32[B, S], "feature" f32[B, F]. The mask is 0 where the
          episode ends within the frame gap, and the latent is that of a shorter pair. `into`: see `StepSource.batch`.
        """
        steps = self._first_of(indices)
        batch = self._where(steps)
        for name in self.fields:
            batch |= self._read(name, steps, rows=into.get(name))
        if self._whole is not None:
            batch["latent_mask"] = self._whole[steps].astype(np.float32)
        return batch

    def summary(self) -> dict[str, int]:
        """How many episodes, steps and samples, and how many steps lack each field."""
        counts = {"episodes": len(self._lengths), "steps": len(self.shards), "samples": len(self)}
        if self._whole is not None:
            counts["samples_with_clipped_latent"] = int((~self._whole[self._first]).sum())
        return counts | {f"steps_without_{name}": count for name, count in self._without.items()}


def whole_pairs(source: FieldSource) -> np.ndarray:
    """bool[steps]: whose latent is that of a pair with the whole gap; labels of other things are all whole."""
    steps, _, last = source.every_step()
    info = source.label_info or {}
    gap = info.get("gap") or {"frames": info.get("gap_frames")}
    if not any(gap.values()):
        return np.ones(len(steps), bool)
    return steps + np.repeat(Gap.from_config(**gap).of_episodes(source.shards), source.shards.episodes.lengths) <= last
