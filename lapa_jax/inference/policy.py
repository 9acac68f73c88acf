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
        batch, single = self.prepare(image, instruction, state, dataset=dataset)
        chunks = self.to_units(self.predict(batch), self.dataset(dataset))
        return chunks[0] if single else chunks

    def prepare(self, image, instruction, state=None, *, dataset: str | None = None) -> tuple[dict, bool]:
        """A batch for `predict`, and whether a single picture was given. Arguments and errors as of `chunk`."""
        batch, single = self.observed(image, instruction)
        dataset = self.dataset(dataset)
        if self.model.state_dim:
            batch["state"] = self._state(state, len(batch["image"]), single, dataset)
        return batch, single

    def predict(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """f32 [B, T, width], normalised, for a batch of `prepare`, or rows of several; `to_units` gives actions."""
        return self.run(self._predict, batch)

    def _state(self, state, rows: int, single: bool, dataset: str | None) -> np.ndarray:
        if state is None:
            raise UserError("this policy was trained with proprioception; give the state")
        state = np.asarray(state)
        state = state[None] if single else state
        state = finite(self.check_rows(state, "state", (2,), self.width_of(dataset, "state")), "state")
        if len(state) != rows:
            raise UserError(f"{rows} pictures and {len(state)} states; give one for each")
        return self.to_model(state, dataset, "state")
