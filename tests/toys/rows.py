"""A tokenizer of feature vectors: a code for each of a few linear views of a row."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.nn.quantizers.usage import dataset_usage
from tests.toys.ema import Ema


def from_data(spec: dict, source, seed: int) -> dict:
    return {"feature_dim": source.batch([])["feature"].shape[-1]}


class Model(base.FeatureTokenizer):
    feature_dim: int | None = None
    sizes: tuple[int, ...] = (6, 4, 4)
    width: int = 3

    def setup(self):
        self.encoders = [nn.Dense(self.width) for _ in self.sizes]
        self.quantizers = [Ema(size) for size in self.sizes]
        self.decoder = nn.Dense(self.feature_dim)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        return {"feature": np.zeros((batch_size, self.feature_dim), np.float32)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.sizes

    def __call__(self, batch, *, train: bool) -> Output:
        x = [encoder(batch["feature"])[:, None] for encoder in self.encoders]
        codes = jnp.concatenate([q(value, train=train) for q, value in zip(self.quantizers, x)], axis=1)
        joined = jnp.concatenate(x, axis=1).reshape(len(codes), -1)
        guess = self.decoder(joined + jax.lax.stop_gradient(self._look_up(codes) - joined))
        return Output({"reconstruction": jnp.square(guess - batch["feature"]).mean(-1)}, {}, codes)

    def _look_up(self, codes: jax.Array) -> jax.Array:
        return jnp.concatenate([q.lookup(codes[:, i]) for i, q in enumerate(self.quantizers)], axis=-1)

    def encode(self, batch) -> dict[str, jax.Array]:
        return {"codes": self(batch, train=False).codes}

    def decode(self, codes: jax.Array) -> jax.Array:
        return self.decoder(self._look_up(codes))

    def evaluate(self, batch):
        out = self(batch, train=False)
        return {"mse": out.losses["reconstruction"], "codes": out.codes}

    @nn.nowrap
    def summarize(self, arrays) -> dict[str, float]:
        usage = dataset_usage(arrays["codes"], max(self.sizes))
        return {"mse": float(arrays["mse"].mean()), "quality": 1 - float(arrays["mse"].mean()), **usage}
