"""Actions of a robot and latent actions of video, learned together by one model with two heads (GR00T N1, Bjorck et al.
2025, arXiv 2503.14734): what stage 2 and stage 3 of LAPA learn one after the other."""

from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import FILLED, FromData, Range
from lapa_jax.core.output import Output
from lapa_jax.models.policies import vision_language, vla_action
from lapa_jax.models.policies.heads.base import Context
from lapa_jax.models.policies.vla import cross_entropy
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell, see `vla_action` and `vision_language`."""
    return {**vla_action.from_data(spec, source, seed), **vision_language.latent_from_data(spec, source)}


class Model(vla_action.Model):
    """A policy of stage 3 that also predicts the codes of the latent action at each step.

    Batches are those of `vla_action.Model` with "latent" and "latent_mask": usually of a mixture of demonstrations and
    of video without actions, both labelled by one tokenizer. The losses are "action", and "latent", the cross-entropy
    of the codes. Queries of the codes stand behind those of the actions, which do not see them: acting needs none.

    Attributes, besides those of `vla_action.Model`:
      code_length: N, codes of a latent action. codebook_size: K, how many there are. None is taken from the labels.
    """

    code_length: FromData = None
    codebook_size: Annotated[int | None, Range(2), FILLED] = None

    def setup(self):
        super().setup()
        # named as in stage 2
        self.queries = self.param("queries", nn.initializers.normal(0.02), (self.code_length, self.llm.dim))
        self.codes_norm, self.to_codes = LayerNorm(dtype=jnp.dtype(self.dtype)), Linear(self.codebook_size)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that do not fit together, with what to change."""
        super().check()
        if self.head.latent:
            raise UserError("the latent head reads its actions off the codes; co-training has another head beside "
                            "them: set model.head.name to policies.heads.chunk, flow or bins")  # fmt: skip

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        return {**super().example(batch_size), "latent": np.zeros((batch_size, self.code_length), np.int32),
                "latent_mask": np.ones(batch_size, np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """Both losses of a batch; nothing differs in training."""
        with self.adapters():
            prefix = self._prefix(batch, self.encode_images(batch))
            queries = jnp.concatenate([self.action_queries, self.queries])
            hidden = self.backbone(prefix, jnp.broadcast_to(queries, (batch["text"].shape[0], *queries.shape)))
            of_actions, of_codes = jnp.split(hidden, [self.act.queries], axis=1)
            logits = self.to_codes(self.codes_norm(of_codes))
        output = self._action_output(batch, Context(*prefix), of_actions, train=train)
        right = (jnp.argmax(logits, -1) == batch["latent"]).mean(-1)
        return Output(losses={**output.losses, "latent": cross_entropy(logits, batch["latent"]).mean(-1)},
                      metrics={**output.metrics, "latent_accuracy": right})  # fmt: skip

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """How many numbers of its actions each example has to learn from, and whether it has a latent action."""
        return {**super().weights(batch), **dict.fromkeys(("latent", "latent_accuracy"), batch["latent_mask"])}
