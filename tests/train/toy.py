"""A small model for tests of the train floor: linear regression with a frozen part, noise and a counter."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.output import Output
from lapa_jax.models import base


class Model(base.Model):
    width: int = 3

    @nn.compact
    def __call__(self, batch, *, train: bool) -> Output:
        hidden = nn.Dense(self.width, name="first")(batch["x"])
        calls = self.variable("codebook", "calls", lambda: jnp.zeros((), jnp.int32))
        if train and not self.is_initializing():
            calls.value += 1
        noise = jax.random.normal(self.make_rng("noise"), hidden.shape) * 0.01 if train else 0.0
        y = nn.Dense(1, name="last")(hidden + noise)[:, 0]
        return Output({"mse": (y - batch["y"]) ** 2, "l1": jnp.abs(y - batch["y"])}, {"mean": y})

    def evaluate(self, batch):
        return self(batch, train=False).losses


def batch(size: int = 8, seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed))
    x = jax.random.normal(keys[0], (size, 4))
    return {"x": x, "y": x.sum(-1) + 0.1 * jax.random.normal(keys[1], (size,))}
