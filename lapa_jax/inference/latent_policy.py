"""Stage-2 policies at inference: a picture and an instruction to the codes of a latent action."""

import jax
import numpy as np

from lapa_jax.inference.instructed import Instructed
from lapa_jax.inference.trained import TrainedModel


class LatentPolicy(Instructed, TrainedModel):
    """A trained vision-language model that predicts latent actions. Attributes as of `TrainedModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._logits = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["logits"])

    @property
    def labels(self) -> dict | None:
        """What the codes are: the "labels" entry of the data it was trained on, with the tokenizer's fingerprint."""
        found = [about.get("labels") for about in self.datasets.values()]
        return found[0] if found else None

    def predict(self, image, instruction) -> np.ndarray:
        """The most likely codes.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B; any H and W, resized as in training.
          instruction: B texts, or one for all.

        Returns:
          int32 [B, N], or [N] for a single picture.

        Raises:
          UserError: another shape or type, or an instruction that is longer than those of training could be.
        """
        return self.logits(image, instruction).argmax(-1).astype(np.int32)

    def logits(self, image, instruction) -> np.ndarray:
        """f32 [B, N, K] or [N, K], arguments as of `predict`; of a model that gives codes one after the other those of
        each place are given the most likely codes before."""
        batch, single = self.observed(image, instruction)
        logits = self.run(self._logits, batch)
        return logits[0] if single else logits
