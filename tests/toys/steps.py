"""A tokenizer of sequences: two codes (fine, coarse) for each step, from the step and its two neighbours."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.nn.quantizers.usage import dataset_usage
from tests.toys.ema import Ema


def from_data(spec: dict, source, seed: int) -> dict:
    return {"action_dim": source.batch([])["action"].shape[-1]}


class Model(base.ActionTokenizer):
    action_dim: int | None = None
    context: int = 8
    causal: bool = False
    width: int = 3
    sizes: tuple[int, int] = (8, 4)

    def setup(self):
        padding = ((2, 0),) if self.causal else "SAME"
        self.encoder = nn.Conv(self.width, (3,), padding=padding)
        self.quantizers = [Ema(size) for size in self.sizes]
        self.decoder = nn.Conv(self.action_dim, (3,), padding=padding)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        shape = (batch_size, self.context, self.action_dim)
        return {"action": np.zeros(shape, np.float32), "action_mask": np.ones(shape[:2], np.float32)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    @property
    def reach(self) -> tuple[int, int]:
        return (2, 0) if self.causal else (1, 1)

    def __call__(self, batch, *, train: bool) -> Output:
        mask = batch["action_mask"]
        x = self.encoder(batch["action"] * mask[..., None])
        codes = jnp.stack([quantizer(x, mask, train=train) for quantizer in self.quantizers], axis=-1)
        vectors = x + jax.lax.stop_gradient(self._look_up(codes) - x)
        error = jnp.square(self.decoder(vectors * mask[..., None]) - batch["action"]).mean(-1) * mask
        return Output({"reconstruction": error.sum(1) / jnp.maximum(mask.sum(1), 1)}, {}, codes)

    def _look_up(self, codes: jax.Array) -> jax.Array:
        return self.quantizers[0].lookup(codes[..., 0])

    def encode(self, batch) -> dict[str, jax.Array]:
        return {"codes": self(batch, train=False).codes}

    def decode(self, codes: jax.Array, action_mask: jax.Array) -> jax.Array:
        return self.decoder(self._look_up(codes) * action_mask[..., None])

    def evaluate(self, batch):
        out = self(batch, train=False)
        return {"mse": out.losses["reconstruction"], "codes": out.codes, "action_mask": batch["action_mask"]}

    @nn.nowrap
    def summarize(self, arrays) -> dict[str, float]:
        codes = arrays["codes"][arrays["action_mask"] > 0]
        return {"action_mse": float(arrays["mse"].mean()), **dataset_usage(codes, max(self.sizes))}
