"""A policy of action chunks that holds a tokenizer: its head guesses the chunk from the tokenizer's reconstruction."""

import flax.linen as nn

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output
from lapa_jax.models import base


def from_data(spec: dict, source, seed: int) -> dict:
    """The width of the actions, which must be that of the tokenizer."""
    width = source.batch([])["action"].shape[-1]
    tokenizer = spec.get("tokenizer")
    if tokenizer is not None and tokenizer["action_dim"] != width:
        raise UserError("the tokenizer's actions have another width")
    return {"action_dim": width}


class Model(base.Model):
    action_dim: int | None = None
    tokenizer: nn.Module | None = None
    head: str = "head"

    def setup(self):
        self.out = nn.Dense(self.action_dim, name=self.head)

    @nn.nowrap
    def check(self):
        if self.tokenizer is None:
            raise UserError("tokenizer is not set")

    @nn.nowrap
    def example(self, batch_size: int):
        return self.tokenizer.example(batch_size)

    def __call__(self, batch, *, train: bool) -> Output:
        output = self.tokenizer(batch, train=train)
        return Output({"reconstruction": self._error(batch) + output.losses["reconstruction"]}, {}, output.codes)

    def _error(self, batch):
        guess = self.out(self.tokenizer.decode(self.tokenizer.encode(batch)["codes"]))
        return ((guess - batch["action"]) ** 2).mean((1, 2))

    def evaluate(self, batch):
        return {"mse": self._error(batch), "episode_id": batch["episode_id"]}

    @nn.nowrap
    def summarize(self, arrays) -> dict[str, float]:
        return {"action_mse": float(arrays["mse"].mean())}
