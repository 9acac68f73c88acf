"""Stage-3 policies at inference: pictures, an instruction and proprioception to actions in physical units."""

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.inference.instructed import Instructed
from lapa_jax.inference.units import ColumnModel, finite


class Policy(Instructed, ColumnModel):
    """A trained vision-language-action model. Attributes as of `ColumnModel`."""

    COLUMNS = ("action",)

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._predict = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["action"])

    def act(self, image, instruction: str, state=None, *, dataset: str | None = None) -> np.ndarray:
        """What to do now: the first action of `chunk`, f32 [A]. Arguments as of `chunk`, of a single picture."""
        chunk = self.chunk(image, instruction, state, dataset=dataset)
        if chunk.ndim == 3:
            raise UserError("act takes one observation; call chunk for a batch of them")
        return chunk[0]

    def chunk(self, image, instruction, state=None, *, dataset: str | None = None) -> np.ndarray:
        """The next T actions.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B; any H and W, resized as in training.
          instruction: B texts, or one for all.
          state: f32 [B, S] or [S], in the units of the data; what the policy was not trained with is left out.
          dataset: of a policy trained on several: whose units all numbers are in.

        Returns:
          f32 [B, T, A] or [T, A], in the units of the data.

        Raises:
          UserError: another shape or type, numbers that are not finite, an instruction that is too long.
        """
        batch, single = self.observed(image, instruction)
        dataset = self.dataset(dataset)
        if self.model.state_dim:
            batch["state"] = self._state(state, len(batch["image"]), single, dataset)
        chunks = self.to_units(self.run(self._predict, batch), dataset)
        return chunks[0] if single else chunks

    def _state(self, state, rows: int, single: bool, dataset: str | None) -> np.ndarray:
        if state is None:
            raise UserError("this policy was trained with proprioception; give the state")
        state = np.asarray(state)
        state = state[None] if single else state
        state = finite(self.check_rows(state, "state", (2,), self.width_of(dataset, "state")), "state")
        if len(state) != rows:
            raise UserError(f"{rows} pictures and {len(state)} states; give one for each")
        return self.to_model(state, dataset, "state")


class Ensemble:
    """Actions as the weighed mean of all chunks that speak of a step (temporal ensembling, Zhao et al. 2023).

    Args:
      policy: gives the chunks. decay: m of the weights exp(-m i), i = 0 for the oldest chunk.
    """

    def __init__(self, policy: Policy, decay: float = 0.01):
        if not decay >= 0:
            raise UserError(f"decay is {decay}; it must be 0 (all alike) or more")
        self._policy, self._decay = policy, decay
        self._chunks: list[np.ndarray] = []

    def reset(self) -> None:
        """Forgets what was foreseen: an episode begins."""
        self._chunks = []

    def act(self, image, instruction, state=None, *, dataset: str | None = None) -> np.ndarray:
        """As of `Policy.act`, or f32 [B, A] of a batch as of `Policy.chunk`: episodes that begin together."""
        chunk = self._policy.chunk(image, instruction, state, dataset=dataset)
        self._chunks = [rest[..., 1:, :] for rest in self._chunks if rest.shape[-2] > 1] + [chunk]
        weights = np.exp(-self._decay * np.arange(len(self._chunks)))
        return np.average([rest[..., 0, :] for rest in self._chunks], axis=0, weights=weights).astype(np.float32)
