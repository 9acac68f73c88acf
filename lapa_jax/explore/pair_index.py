"""Which frame pairs of the data have which codes, and the true actions of these: a sample of pairs, encoded once."""

from collections.abc import Sequence

import numpy as np

from lapa_jax.core.progress import bar
from lapa_jax.data.samples.meta import dimension_names

BATCH, EXAMPLES = 64, 6


class PairIndex:
    """The codes of a sample of pairs.

    Args:
      tokenizer: a `LatentActionTokenizer`. source: a `FramePairSource`.
      count: how many pairs at most, chosen pseudo-randomly, always the same ones.

    Attributes:
      codes: int32 [M, N]. episode, step: int [M], where each pair begins. source: as given.
      names: of the dimensions of actions; None where the data have none.
    """

    def __init__(self, tokenizer, source, count: int):
        count = min(count, len(source))
        chosen = np.sort(np.random.default_rng(0).choice(len(source), count, replace=False))
        parts = []
        with bar(total=count, desc="encoding pairs", unit="pair") as shown:
            for start in range(0, count, BATCH):
                # Frames are not kept: at 224 pixels those of 500 pairs would take 150 MB.
                batch = source.batch(chosen[start : start + BATCH])
                codes = tokenizer.encode(batch.pop("frames"))
                parts.append({**batch, "codes": codes})
                shown.update(len(codes))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self.source, self.codes, self.episode, self.step = source, rows["codes"], rows["episode_id"], rows["step"]
        self._actions, self.names = rows.get("net_action"), None
        if self._actions is not None:
            self.names = dimension_names(source.shards.features["action"], self._actions.shape[1])

    def __len__(self) -> int:
        return len(self.codes)

    def matches(self, pattern: Sequence[int | None]) -> np.ndarray:
        """int [m]: the pairs that have these codes; None stands for any code."""
        fits = [self.codes[:, i] == code for i, code in enumerate(pattern) if code is not None]
        return np.flatnonzero(np.logical_and.reduce(fits)) if fits else np.arange(len(self))

    def examples(self, rows: np.ndarray) -> list[tuple[int, int, int]]:
        """(episode, first step, second step) of some of the pairs `rows`, spread over all of them."""
        spread = np.unique(np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(int))
        pairs = [(int(self.episode[row]), int(self.step[row])) for row in rows[spread]]
        return [(episode, step, step + int(self.source.gaps[episode])) for episode, step in pairs]

    def mean_action(self, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """The mean net action of the pairs `rows`; None where there is none.

        Returns:
          "mean" f64[A], in the units of the data, and "deviations" f64[A], how far that is from the mean of all pairs,
          in standard deviations over all pairs.
        """
        if self._actions is None or not len(rows):
            return None
        actions = self._actions.astype(np.float64)
        mean, spread = actions[rows].mean(0), actions.std(0)
        # A dimension that never changes deviates by nothing, not by rounding divided by nearly zero.
        varies = spread > 1e-6 * np.maximum(np.abs(actions).max(0), 1e-12)
        return {"mean": mean, "deviations": np.where(varies, (mean - actions.mean(0)) / np.where(varies, spread, 1), 0)}
