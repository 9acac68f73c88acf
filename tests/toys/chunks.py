"""A linear tokenizer of action chunks: the T actions of a chunk become N codes, N codes become T actions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.nn.quantizers.usage import dataset_usage
from tests.toys.ema import Ema


def from_data(spec: dict, source, seed: int) -> dict:
    """The width of the actions, and a draw of the seed that a resumed run must find again."""
    return {"action_dim": source.batch([])["action"].shape[-1], "drawn": float(np.random.default_rng(seed).random())}


class Model(base.ActionTokenizer):
    action_dim: int | None = None
    drawn: float | None = None
    chunk_length: int = 4
    tokens: int = 2
    width: int = 3
    size: int = 8

    def setup(self):
        self.encoder = nn.Dense(self.tokens * self.width)
        self.quantizer = Ema(self.size)
        self.decoder = nn.Dense(self.chunk_length * self.action_dim)

    @nn.nowrap
    def check(self):
        if self.action_dim is None:
            raise UserError("action_dim is not set")

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        shape = (batch_size, self.chunk_length, self.action_dim)
        return {"action": np.zeros(shape, np.float32), "action_mask": np.ones(shape[:2], np.float32)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.size,) * self.tokens

    def _embed(self, batch) -> jax.Array:
        actions = batch["action"] * batch["action_mask"][..., None]
        x = self.encoder(actions.reshape(len(actions), -1))
        return x.reshape(len(x), self.tokens, self.width)

    def _unembed(self, vectors: jax.Array) -> jax.Array:
        return self.decoder(vectors.reshape(len(vectors), -1)).reshape(-1, self.chunk_length, self.action_dim)

    def __call__(self, batch, *, train: bool) -> Output:
        x = self._embed(batch)
        codes = self.quantizer(x, train=train)
        vectors = self.quantizer.lookup(codes)
        guess = self._unembed(x + jax.lax.stop_gradient(vectors - x))
        return Output({"reconstruction": self._error(guess, batch)}, {}, codes)

    def _error(self, guess, batch):
        mask = batch["action_mask"][..., None]
        return (((guess - batch["action"]) ** 2) * mask).sum((1, 2)) / jnp.maximum(mask.sum((1, 2)), 1)

    def evaluate(self, batch):
        codes = self.encode(batch)["codes"]
        return {"mse": self._error(self.decode(codes), batch), "codes": codes, "episode_id": batch["episode_id"]}

    @nn.nowrap
    def summarize(self, arrays) -> dict[str, float]:
        mse = float(arrays["mse"].mean())
        return {"action_mse": mse, "quality": -mse, **dataset_usage(arrays["codes"], self.size)}

    def encode(self, batch) -> dict[str, jax.Array]:
        return {"codes": self.quantizer(self._embed(batch))}

    def decode(self, codes: jax.Array) -> jax.Array:
        return self._unembed(self.quantizer.lookup(codes))
