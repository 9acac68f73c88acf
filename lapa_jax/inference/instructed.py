"""What policies that read instructions share at inference: pictures and texts as batches of their training."""

import functools

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import text
from lapa_jax.inference.observations import pictures


class Instructed:
    """Part of a `TrainedModel` whose model takes "image", "text" and "text_mask"."""

    @functools.cached_property
    def tokenizer(self) -> text.Tokenizer:
        """The tokenizer of the run's instructions, which lies where it lay in training."""
        spec = self.config.get("data", {}).get("text_tokenizer")
        if spec is None:
            raise UserError("this model's config names no data.text_tokenizer; load the run that trained it")
        return text.build(spec)

    def observed(self, image, instruction) -> tuple[dict[str, np.ndarray], bool]:
        """A batch as in training, and whether a single picture was given.

        Args:
          image: uint8 [B, (V,) H, W, 3] or a single one without B. instruction: B texts, or one for all.

        Raises:
          UserError: another shape or type, or an instruction that is longer than those of training could be.
        """
        image, model = np.asarray(image), self.model
        single = image.ndim == 3 + (model.cameras > 1)
        batch = image[None] if single else image
        texts = [instruction] * len(batch) if isinstance(instruction, str) else list(instruction)
        if len(texts) != len(batch) or (single and not isinstance(instruction, str)):
            raise UserError(f"{len(batch)} pictures and {len(texts)} instructions; give one text, or one for each of a "
                            "batch of pictures")  # fmt: skip
        batch = pictures(batch, "image", batch.shape[:1], model.cameras, model.image_size)
        ids, mask = self.tokenizer(texts, model.text_length)
        return {"image": batch, "text": ids, "text_mask": mask.astype(np.float32)}, single
