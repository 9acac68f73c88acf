"""Parts of the FSQ tokenizer: the network that both halves use, the errors per dimension, what the data tell."""

import math
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.statistics import kinds
from lapa_jax.nn.linear import Linear
from lapa_jax.nn.transformer import Transformer


class Resampler(nn.Module):
    """A sequence of L vectors read into one of M: learned queries stand beside the inputs in one transformer, and what
    becomes of them is the result. The encoder makes tokens of steps with it, the decoder steps of tokens.

    Attributes:
      outputs: M. features: of each output.
      dim, depth, heads, dim_head: of the transformer.
      dtype: dtype of the transformer; the last layer, whose output is rounded or compared, is float32.
      remat: see `Transformer`.
    """

    outputs: int
    features: int
    dim: int
    depth: int
    heads: int
    dim_head: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """x: [B, L, F], mask: bool[B, L], False for vectors that nothing may read -> f32[B, M, features]."""
        batch, length, _ = x.shape
        place = nn.initializers.normal(0.5)
        tokens = Linear(self.dim, dtype=self.dtype, name="embed")(x)
        tokens = tokens + self.param("positions", place, (length, self.dim)).astype(self.dtype)
        queries = self.param("queries", place, (self.outputs, self.dim)).astype(self.dtype)
        tokens = jnp.concatenate([tokens, jnp.broadcast_to(queries, (batch, *queries.shape))], axis=1)
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, self.outputs)), constant_values=True)
        stack = Transformer(self.depth, self.heads, self.dim_head, view=None, dtype=self.dtype, remat=self.remat,
                            name="stack")  # fmt: skip
        return Linear(self.features, name="out")(stack(tokens, mask=mask)[:, length:].astype(jnp.float32))


def refine(codes: jax.Array, levels: Sequence[int], sweeps: int, cost: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Codes whose cost no step of one feature to a neighbouring level would lower, as far as the sweeps get.

    Coordinate descent: feature after feature, of code after code, goes one level down or up where that costs less.

    Args:
      codes: i32[B, N] to begin with. levels: of the features of a code, as `FSQ` orders them.
      sweeps: how often all features are tried; 0 returns `codes`.
      cost: i32[B, N] -> f32[B], called twice for each feature and sweep.

    Returns:
      i32[B, N], of at most the cost of `codes`.
    """
    sizes = jnp.asarray(levels, jnp.int32)
    basis = jnp.asarray([math.prod(levels[:i]) for i in range(len(levels))], jnp.int32)

    def one_feature(i, state):
        place, feature = i // len(levels) % codes.shape[1], i % len(levels)
        for step in (-1, 1):
            found, least = state
            level = found[:, place] // basis[feature] % sizes[feature] + step
            inside = (level >= 0) & (level < sizes[feature])
            other = found.at[:, place].add(jnp.where(inside, step * basis[feature], 0))
            costs = cost(other)
            better = costs < least
            state = jnp.where(better[:, None], other, found), jnp.where(better, costs, least)
        return state

    return jax.lax.fori_loop(0, sweeps * codes.shape[1] * len(levels), one_feature, (codes, cost(codes)))[0]


def action_fields(source) -> dict:
    """What a model of actions must know of its data.

    Args:
      source: `Chunks`, or a `Mixture` of them.

    Returns:
      "action_dim"; "low" and "high", the ends of each dimension in the units that the samples have, over all datasets;
      "grippers", the dimensions that have two values or "gripper" in their name, in every dataset that has them and
      where they move.
    """
    parts = list(getattr(source, "sources", {"": source}).values())
    found = [_of_dataset(part) for part in parts]
    width = max(len(low) for low, _, _ in found)
    low, high, words = np.full(width, np.inf), np.full(width, -np.inf), [set() for _ in range(width)]
    for part_low, part_high, part_words in found:
        own = slice(len(part_low))
        low[own], high[own] = np.minimum(low[own], part_low), np.maximum(high[own], part_high)
        for i, word in enumerate(part_words):
            words[i].add(word)
    grippers = [i for i, seen in enumerate(words) if seen - {"constant"} == {"gripper"}]
    return {"action_dim": width, "low": low.tolist(), "high": high.tolist(), "grippers": grippers}


def _of_dataset(source) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Ends of the normalised dimensions f32[A], and for each "gripper", "constant" or "other"."""
    summary = source.statistics["action"]
    names = source.shards.features["action"].get("names") or [""] * len(summary["mean"])
    normalizer = Normalizer(summary, source.options.normalize)
    low, high = (normalizer.normalize(np.asarray(summary[end])) for end in ("min", "max"))
    words = []
    for kind, name in zip(kinds(summary), names, strict=True):
        gripper = kind == "binary" or "gripper" in str(name).lower()
        words.append("constant" if kind == "constant" else "gripper" if gripper else "other")
    return low, high, words


def check_width(name: str, values, width: int) -> None:
    """Refuses a field that should have one number a dimension."""
    if values is None or len(values) != width:
        raise UserError(f"{name} has {0 if values is None else len(values)} numbers for {width} action dimensions; "
                        "leave it out, the data tell it")


def mean_over_chunk(values: jax.Array, mask: jax.Array, dims: jax.Array) -> jax.Array:
    """The sum of [B, T, A] where steps and dimensions count, over the number that a whole chunk has: f32 [B].

    So every step counts the same in the mean over a batch; of a mean over each chunk's own steps the few that stand
    before much padding would take most (the error on whole chunks is then half as large again).

    Args:
      values: f32[B, T, A]. mask: f32[B, T]. dims: f32[B or 1, A]. Both are 1 for what counts, 0 for what does not.
    """
    total = jnp.sum(values * mask[..., None] * dims[:, None], (1, 2))
    return total / jnp.maximum(mask.shape[1] * jnp.sum(dims, -1), 1e-6)


def binary_cross_entropy(logits: jax.Array, share: jax.Array) -> jax.Array:
    """-share log p - (1 - share) log(1 - p) with p = sigmoid(logits), in the form that cannot overflow."""
    return jnp.maximum(logits, 0) - logits * share + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def moving(low, high) -> np.ndarray:
    """bool[A]: which dimensions are not constant."""
    return np.asarray(high, np.float32) > np.asarray(low, np.float32)


def with_fields(spec: Mapping, found: Mapping) -> dict:
    """`spec` with what it leaves open; its own values win. Another width than that of the data is refused."""
    given = {name: value for name, value in spec.items() if value is not None}
    if given.get("action_dim", found["action_dim"]) != found["action_dim"]:
        raise UserError(f"model.action_dim is {given['action_dim']} and the data's actions have {found['action_dim']} "
                        "dimensions; leave it None")
    return {**spec, **found, **given}
