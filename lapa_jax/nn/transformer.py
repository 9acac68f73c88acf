"""The one transformer stack: a scan over identical pre-norm blocks, whose parameters are stacked on axis 0."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core import counting, layers
from lapa_jax.nn.attention import Attention
from lapa_jax.nn.feedforward import GEGLU
from lapa_jax.nn.norm import LayerNorm
from lapa_jax.nn.placement import device_in_use
from lapa_jax.nn.position import NeighbourConv

# What the backward pass may keep instead of computing it again; None recomputes nothing.
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
WRITTEN_OUT = {"cpu": 4, "gpu": 8, "tpu": 4}
"""Blocks up to which a stack is written out on a platform, which takes longer to compile. The compiler for TPUs ends
itself on loops over few small blocks: "Check failed: ... ProducesSreg", libtpu 0.0.42.1, blocks of width 128."""


class Block(nn.Module):
    """Neighbour convolution or none, self-attention, cross-attention or none, feed-forward, each added to its input.

    Attributes: see `Transformer`.
    """

    heads: int
    dim_head: int
    view: Sequence[int] | None
    axes: tuple[int, int, int]
    cross: bool
    raw_kv: bool
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, bias=None, context=None, mask=None):
        """Arguments as of `Transformer.__call__` -> ([N, L, D], None) for the scan."""
        norm = lambda name, y: LayerNorm(use_bias=False, dtype=self.dtype, name=name)(y)  # noqa: E731
        if self.view is not None:
            cells = x.reshape(-1, *self.view, x.shape[-1])
            x = NeighbourConv(self.axes, self.dtype, name="neighbours")(cells).reshape(x.shape)

        y = norm("attention_norm", x)
        attention = Attention(self.heads, self.dim_head, cosine=True, dtype=self.dtype, name="attention")
        x = x + attention(y, x if self.raw_kv else y, bias=bias, mask=mask)
        if self.cross:
            y, context = norm("cross_norm", x), norm("context_norm", context)
            attention = Attention(self.heads, self.dim_head, cosine=True, null_kv=2, dtype=self.dtype, name="cross")
            x = x + attention(y, context)
        y = LayerNorm(dtype=self.dtype, name="feedforward_norm")(x)
        return x + GEGLU(self.mlp_ratio, dtype=self.dtype, name="feedforward")(y), None


def run_stack(block: nn.Module, depth: int, remat: str, x: jax.Array, *rest, in_axes: Sequence = ()):
    """`depth` blocks one after the other, compiled once: a scan over parameters that are stacked on axis 0.

    The first layers may be frozen (see `core.layers`): a scan of their own then, which gives them no gradients.

    Args:
      block: one block, named "layers", called with (x, *rest); gives (x, whatever is stacked on axis 0).
      depth: how many. remat: see `REMAT_POLICIES`.
      x: the input of the first block.
      in_axes: for each of the rest 0 where every block gets its own slice, `nn.broadcast` where all get the same; the
        latter for those that are not listed.

    Returns:
      The last block's x, and what the blocks gave besides, stacked.
    """
    call = lambda block, *args: block(*args)  # noqa: E731
    if (policy := REMAT_POLICIES[remat]) and counting.recomputes():
        call = nn.remat(call, policy=policy, prevent_cse=False)
    in_axes = (*in_axes, *(nn.broadcast,) * (len(rest) - len(in_axes)))

    def scan(length: int):
        # The check traces the block once more, to see that what all blocks share is the same for all: nothing is. It
        # stays where parameters are made, since it also counts for the random numbers that they begin with.
        # Few blocks are written out: a loop's slices cost a third of such a step on a CPU, and on a GPU nearly half of
        # what a step of LAQ reads and writes. What is to be computed again stays a loop, since the compiler would
        # notice that it has it already.
        written_out = length <= WRITTEN_OUT.get(device_in_use().platform, 1) and remat == "none"
        return nn.scan(call, length=length, in_axes=in_axes, variable_axes={"params": 0}, split_rngs={"params": True},
                       unroll=length if written_out else 1, check_constancy_invariants=block.is_initializing(),
                       )  # fmt: skip

    frozen = layers.frozen_in(block.path)
    if not frozen:
        return scan(depth)(block, x, *rest)

    def run(x: jax.Array, part: slice, stop):
        args = [jax.tree.map(lambda a: a[part], a) if axis == 0 else a for a, axis in zip(rest, in_axes)]
        chosen = lambda params: jax.tree.map(lambda leaf: stop(leaf[part]), params)  # noqa: E731
        return nn.map_variables(scan(part.stop - part.start), "params", chosen)(block, x, *args)

    x, first = run(x, slice(0, frozen), jax.lax.stop_gradient)
    x, others = run(x, slice(frozen, depth), lambda leaf: leaf)
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), first, others)


class Transformer(nn.Module):
    """`depth` blocks and a final norm, over sequences of tokens that may also lie on a grid of (time, rows, columns).

    Attributes:
      depth: number of blocks; their parameters lie stacked on axis 0 under "layers".
      heads: heads of every attention.
      dim_head: features per head.
      view: how the neighbour convolution sees the tokens of the array [N, L, D]: they are reshaped to [-1, *view, D].
        None leaves the convolution out, for sequences that lie on no grid.
      axes: where (time, rows, columns) lie in that view, counted with the leading axis: (1, 2, 3) for view (T, H, W).
      cross: whether blocks attend to a context after attending to themselves, with two learned null keys.
      raw_kv: keys and values of the self-attention come from the block's input before its norm (official weights).
      mlp_ratio: width of the feed-forward relative to that of the tokens, see `GEGLU`.
      dtype: dtype of the computation; parameters, norms' statistics and softmax are float32.
      remat: "none", "dots" (keep matrix products) or "full" (keep block inputs only): memory against recomputation.
    """

    depth: int
    heads: int
    dim_head: int
    view: Sequence[int] | None
    axes: tuple[int, int, int] = (1, 2, 3)
    cross: bool = False
    raw_kv: bool = False
    mlp_ratio: float = 4.0
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, bias: jax.Array | None = None, context: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """Applies the stack.

        Args:
          x: [N, L, D] tokens.
          bias: [heads, L, L] f32 added to the logits of every self-attention.
          context: [N, S, C] what cross-attention attends to.
          mask: [N, L] bool, False for tokens that are padding: no other attends to them. Leave out the convolution
            then (view None): it would see them.

        Returns:
          [N, L, D] in `dtype`.
        """
        view = None if self.view is None else tuple(self.view)
        block = Block(self.heads, self.dim_head, view, self.axes, self.cross, self.raw_kv, self.mlp_ratio, self.dtype,
                      name="layers")  # fmt: skip
        x, _ = run_stack(block, self.depth, self.remat, x.astype(self.dtype), bias, context, mask)
        return LayerNorm(use_bias=False, dtype=self.dtype, name="norm_out")(x)
