"""Stage-2 policies at inference: a picture and an instruction to the codes of a latent action."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import text
from lapa_jax.inference.observations import pictures
from lapa_jax.inference.trained import TrainedModel


class LatentPolicy(TrainedModel):
    """A trained vision-language model that predicts latent actions. Attributes as of `TrainedModel`."""

    def __init__(self, model, variables, **about):
        super().__init__(model, variables, **about)
        self._logits = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")["logits"])

    @functools.cached_property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer of the run's instructions, which lies where it lay in training."""
        spec = self.config.get("data", {}).get("text_tokenizer")
        if spec is None:
            raise UserError("this model's config names no data.text_tokenizer; load the run that trained it")
        return text.build(spec)

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
        image, model = np.asarray(image), self.model
        single = image.ndim == 3 + (model.cameras > 1)
        batch = image[None] if single else image
        texts = [instruction] * len(batch) if isinstance(instruction, str) else list(instruction)
        if len(texts) != len(batch) or (single and not isinstance(instruction, str)):
            raise UserError(f"{len(batch)} pictures and {len(texts)} instructions; give one text, or one for each of a "
                            "batch of pictures")  # fmt: skip
        batch = pictures(batch, "image", batch.shape[:1], model.cameras, model.image_size)
        logits = self.run(self._logits, {"image": batch, **self._tokens(texts)})
        return logits[0] if single else logits

    def _tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        ids, mask = self.tokenizer(texts, self.model.text_length)
        return {"text": ids, "text_mask": mask.astype(np.float32)}
