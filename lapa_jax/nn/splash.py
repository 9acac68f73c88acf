"""JAX's fused attention for TPUs ("splash", a Pallas kernel), and the masks that it takes: those that follow a rule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from lapa_jax.nn.placement import BATCH_AXES, device_in_use

LANES = 128
"""Sequences are padded to a multiple of it, which is what the kernel's blocks are made of."""
BLOCKS = (512, 384, 256, 128)
FEATURES = (64, 128, 256)
"""Widths of a head that the kernel takes."""


@struct.dataclass
class CausalMask:
    """Each token sees itself and those before it that are no padding; tokens of one range may see each other besides.

    Attributes:
      real: bool [N, L], False for padding. What padding sees besides itself is left open: nothing reads it.
      together: (first, end) of the tokens that see each other, such as those of images; (0, 0) for none.
    """

    real: jax.Array
    together: tuple[int, int] = struct.field(pytree_node=False, default=(0, 0))

    def order(self, length: int) -> np.ndarray:
        """bool [length, length]: which of the tokens each one sees, if none is padding."""
        place = np.arange(length)
        within = (place >= self.together[0]) & (place < self.together[1])
        return (place[None] <= place[:, None]) | (within[None] & within[:, None])

    def whole(self) -> jax.Array:
        """bool [N, L, L]: which of the L tokens each one sees."""
        length = self.real.shape[1]
        # padding sees itself: a row without anything to see would be no number
        return (self.order(length)[None] & self.real[:, None]) | np.eye(length, dtype=bool)[None]


def splash_attention_runs(q: jax.Array, kv_heads: int) -> bool:
    """Whether the kernel computes attention of queries [N, L, heads, D] on the devices in use."""
    rows, _, heads, features = q.shape
    if device_in_use().platform != "tpu" or q.dtype != jnp.bfloat16 or features not in FEATURES:
        return False
    if rows == 1:  # A prediction moves less without: it copies kernels into the order that this one gives them.
        return False
    batch, tensor = _splits()
    if batch is None:  # Without a mesh nothing says how the kernel is to be split, and the compiler cannot know.
        return jax.device_count() == 1
    return rows % batch == heads % tensor == kv_heads % tensor == 0


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: CausalMask, scale: float, interpret: bool = False
) -> jax.Array:  # fmt: skip
    """Attention among the tokens of sequences of any length, which are padded for it and cut again.

    Args:
      q: [N, L, heads, D]. k, v: [N, L, kv_heads, D]. mask: which tokens each one sees.
      scale: factor on the logits. interpret: run the kernel's operations one by one, on any device.

    Returns:
      [N, L, heads, D]; of padding something else than other attention gives.
    """
    length = q.shape[1]
    missing = -length % LANES
    # The kernel has no factor of its own.
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, k, v = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
    # Tokens see those of their own kind alone: 1 for what is real, 0 for padding, which so always sees itself.
    kind = jnp.pad(mask.real.astype(jnp.int32), ((0, 0), (0, missing)))
    order = mask.order(length + missing)

    def attend(q, k, v, kind):
        return jax.vmap(_kernel(order, q.shape[1], interpret))(q, k, v, _kinds(kind))

    if _splits()[0] is not None:
        # A kernel cannot be split by the compiler: each device is told its examples and heads.
        whole = PartitionSpec(BATCH_AXES, "tensor", None, None)
        attend = jax.shard_map(attend, in_specs=(whole, whole, whole, PartitionSpec(BATCH_AXES, None)),
                               out_specs=whole, check_vma=False)  # fmt: skip
    return attend(q, k, v, kind).swapaxes(1, 2)[:, :length]


def _splits() -> tuple[int | None, int]:
    """Into how many parts the mesh in use splits batches, and heads; (None, 1) where there is none."""
    sizes = jax.sharding.get_abstract_mesh().shape
    if "tensor" not in sizes:
        return None, 1
    return math.prod(sizes[axis] for axis in BATCH_AXES), sizes["tensor"]


def _kernel(order: np.ndarray, heads: int, interpret: bool):
    # Here, since importing it takes half a second and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block = next(size for size in BLOCKS if len(order) % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq")  # fmt: skip
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.MultiHeadMask([masks.NumpyMask(order)] * heads)
    return kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _kinds(kind: jax.Array):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    return kernels.SegmentIds(q=kind, kv=kind)
