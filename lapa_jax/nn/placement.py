"""Which devices compute, and where activations lie on them: split over the batch, like the batches that go in."""

import math

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")


def device_in_use():
    """A device of the mesh in use (`jax.set_mesh`), or without one the default device. It may be a stand-in that a plan
    compiles for."""
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def split_over_batch(x: jax.Array) -> jax.Array:
    """`x` with axis 0, its examples, split over the mesh axes "data" and "fsdp"; the compiler places the other axes.

    Left to itself the compiler may gather the examples of all devices for a product with a kernel that is split over
    "fsdp", where it should gather the kernel, which is smaller and needed by all.

    Args:
      x: [N, ...]. It comes back as it is where no mesh with these axes is set (`jax.set_mesh`), or N does not divide.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if parts == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))
