"""What a head of `policies.vla_action` is: from hidden states to a loss of actions, and to actions.

Actions are normalised so that their usual range is [-1, 1] (`data.normalize = "q01_q99"`); dimensions of two values, a
gripper's, are -1 and 1. The last projection of a head is float32 whatever the others compute in: bfloat16 has 8 bits,
so that actions would lie on a grid of 0.004, and the logits of neighbouring bins would be equal.
"""

import abc
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax

from lapa_jax.core.errors import UserError
from lapa_jax.models import base


class Context(NamedTuple):
    """What queries could see. embeddings: [B, L, D], of images, instruction, state. real: bool [B, L], no padding."""

    embeddings: jax.Array
    real: jax.Array


class Head(base.Part, abc.ABC):
    """The contract of a head. The model fills in the attributes; a config sets only those of the head's own.

    Attributes: action_dim: A. chunk_length: T. binary: dimensions of two values. dtype: of the computation.
    """

    action_dim: int | None = None
    chunk_length: int | None = None
    binary: tuple[int, ...] | None = None
    dtype: str | None = None

    latent: ClassVar[bool] = False
    """Whether it goes on with the latent action of stage 2: its `hidden` are then the probabilities of the N codes, f32
    [B, N, K], which the model reads off at the queries of stage 2; it has fields `code_length` and `codebook_size`."""

    iterative: ClassVar[bool] = False
    """Whether sampling is many passes, too many for a metric of each training step."""

    @nn.nowrap
    def check(self) -> None:
        """Raises `UserError` for what the model fills in and a config gives."""
        for name in ("action_dim", "chunk_length", "binary", "dtype"):
            if getattr(self, name) is not None:
                raise UserError(f"model.head.{name} is {getattr(self, name)!r}; leave it out, the model knows it")

    @property
    def queries(self) -> int:
        """How many learned queries the head reads hidden states at; one for each step of the chunk by default."""
        return self.chunk_length

    @abc.abstractmethod
    def loss(
        self, hidden: jax.Array, context: Context, actions: jax.Array, weight: jax.Array, rng: jax.Array
    ) -> jax.Array:
        """The error of each number.

        Args:
          hidden: [B, Q, D] at the queries, or probabilities of codes. context: what they could see.
          actions: f32 [B, T, A]. weight: f32 [B, T, A], 0 for numbers that nothing is to be learned from.
          rng: one key for each example, [B].

        Returns:
          f32 [B, T, A], not weighted: the model weighs and averages.
        """

    @abc.abstractmethod
    def sample(self, hidden: jax.Array, context: Context, rng: jax.Array) -> jax.Array:
        """Actions f32 [B, T, A]; the same keys give the same actions. Arguments as of `loss`."""

    def measure(self, hidden: jax.Array, context: Context, actions: jax.Array) -> dict[str, jax.Array]:
        """Further arrays of each held-out example, such as "near" bool [B, T, A] of bins."""
        return {}
