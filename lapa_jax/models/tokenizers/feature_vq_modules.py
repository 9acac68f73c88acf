"""Networks of the feature tokenizer: an encoder per category, and decoders of all features."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from lapa_jax.nn.linear import Linear
from lapa_jax.nn.norm import LayerNorm, RunningNorm


class CategoryEncoder(nn.Module):
    """The features of one category to one vector a level, each of mean 0 and root mean square 1 over the data.

    Vectors are normalised by running statistics over examples. (A layer norm over a vector of 4 numbers would throw
    away its length, and with it how far from the average an example is.)

    Attributes:
      hidden, embedding: widths of the two layers. dims: widths of the levels' vectors. dropout: share.
    """

    hidden: int
    embedding: int
    dims: Sequence[int]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        """f32 [B, n] -> a list of f32 [B, D], one a level."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        x = drop(nn.relu(Linear(self.hidden, name="hidden_layer")(x)))
        x = LayerNorm(name="norm")(nn.relu(Linear(self.embedding, name="embedding_layer")(x)))
        heads = [drop(Linear(width, name=f"level_{i}")(x)) for i, width in enumerate(self.dims)]
        norms = [RunningNorm(name=f"norm_{i}") for i in range(len(self.dims))]
        return [norm(head[:, None], train=train)[:, 0] for norm, head in zip(norms, heads)]


class FeatureDecoder(nn.Module):
    """Vectors to all features: one hidden layer.

    Attributes: hidden: its width. features: numbers that come out. dropout: share.
    """

    hidden: int
    features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f32 [B, D] -> f32 [B, features]."""
        x = nn.relu(Linear(self.hidden, name="hidden_layer")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return Linear(self.features, name="to_features")(x)


PartialDecoders = nn.vmap(
    FeatureDecoder, in_axes=(0, None), out_axes=0, variable_axes={"params": 0}, split_rngs={"params": True}
)
"""A `FeatureDecoder` for each of P vectors: f32 [P, B, D] -> f32 [P, B, features]."""
