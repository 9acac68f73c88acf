"""Temporal ensembling (ACT): averages the overlapping chunks' predictions for the current step. Numpy only, so that a
robot's computer needs no jax."""

import numpy as np

from lapa_jax.core.errors import UserError


class Ensemble:
    """The exponentially weighted mean of the overlapping chunks at the current step (Zhao et al. 2023).

    Args:
      policy: gives the chunks: a `Policy`, or a `Client` of a served one.
      decay: m of the weights exp(-m i), i = 0 for the oldest chunk. Below 0 the newest one counts most: UniVLA's
        authors take -0.1.
    """

    def __init__(self, policy, decay: float = 0.01):
        if not np.isfinite(decay):
            raise UserError(f"decay is {decay}; 0 weighs all chunks alike, more the older and less the newer ones most")
        self._policy, self._decay = policy, decay
        self._chunks: list[np.ndarray] = []

    def reset(self) -> None:
        """Drops the chunks: an episode begins."""
        self._chunks = []

    def act(self, image, instruction, state=None, *, dataset: str | None = None) -> np.ndarray:
        """As of `Policy.act`, or f32 [B, A] of a batch as of `Policy.chunk`: episodes that begin together."""
        chunk = self._policy.chunk(image, instruction, state, dataset=dataset)
        # Each step drops the first action of every chunk, so that index 0 is always the current step; chunks that are
        # used up leave the list. The oldest comes first, and has the largest weight.
        self._chunks = [rest[..., 1:, :] for rest in self._chunks if rest.shape[-2] > 1] + [chunk]
        weights = np.exp(-self._decay * np.arange(len(self._chunks)))
        return np.average([rest[..., 0, :] for rest in self._chunks], axis=0, weights=weights).astype(np.float32)
