"""The one place that shards: the mesh, where each array lives, and the check that nothing big is copied everywhere."""

import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
# Stacked layers of a scanned transformer: axis 0 is the layer, which the scan walks and which must stay whole.
STACKED = re.compile(r"(.*/)?layers/.*")
# Below this many elements a copy on every device costs less than gathering it at each use.
SMALL = 2**14
REPLICATED_SHARE = 0.02


def make_mesh(config: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh over all devices; one axis of `config` (data, fsdp, tensor) may be -1: what remains.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [int(config[axis]) for axis in AXES]
    if sizes.count(-1) == 1:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // known
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ConfigError(f"config.mesh {dict(zip(AXES, sizes, strict=True))} does not cover {len(devices)} devices; "
                          "set one axis to -1")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on the mesh: axis 0 over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH_SPEC)


def shard_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Makes global arrays from each host's own slice of the batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def check_batch_size(mesh: Mesh, batch_size: int, micro_batches: int = 1) -> None:
    """Refuses a global batch that the mesh, the hosts and the micro-batches cannot split evenly."""
    parts = math.lcm(mesh.shape["data"] * mesh.shape["fsdp"], jax.process_count()) * micro_batches
    if batch_size % parts:
        raise ConfigError(f"config.train.batch_size {batch_size} does not divide into {parts} parts (devices on the "
                          f"data and fsdp axes × micro-batches); the next that does is "
                          f"{math.ceil(batch_size / parts) * parts}")


def spec_for(name: str, shape: Sequence[int], mesh: Mesh, rules=()) -> PartitionSpec:
    """Where one array lives: the first rule that matches its name, else its largest divisible axis over "fsdp".

    Args:
      name: the array's name, "a/b/c"; an optimizer slot carries its parameter's name at the end and shares its place.
      shape: the array's shape.
      mesh: the mesh.
      rules: `(regex, partition spec as a tuple)` pairs, matched against the whole name.
    """
    for regex, spec in rules:
        if re.fullmatch(regex, name):
            return PartitionSpec(*spec)
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    first = 1 if STACKED.fullmatch(name) else 0
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.shape["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(("fsdp" if axis == largest else None) for axis in range(len(shape))))


def shardings(state, mesh: Mesh, rules=()):
    """The sharding of every array of a state (or of its shapes), by `spec_for`."""

    def place(path, leaf):
        return NamedSharding(mesh, spec_for(_name(path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, state)


def check_replication(state, mesh: Mesh, rules=()) -> None:
    """Refuses a state of which too much would be copied to every device of the fsdp axis by accident.

    Raises:
      ConfigError: more than 2 % of the bytes are replicated though they are neither small nor replicated by a rule.
    """
    if mesh.shape["fsdp"] == 1:
        return
    total, copied = 0, []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            continue
        name, size = _name(path), math.prod(leaf.shape) * leaf.dtype.itemsize
        total += size
        ruled = any(re.fullmatch(regex, name) for regex, _ in rules)
        if not ruled and math.prod(leaf.shape) >= SMALL and not any(spec_for(name, leaf.shape, mesh)):
            copied.append((size, name, leaf.shape))
    share = sum(size for size, *_ in copied) / max(total, 1)
    if share > REPLICATED_SHARE:
        largest = ", ".join(f"{name} {shape}" for _, name, shape in sorted(copied, reverse=True)[:5])
        raise ConfigError(f"{share:.0%} of the state would be copied to all {mesh.shape['fsdp']} fsdp devices because "
                          f"no axis divides: {largest}; choose another fsdp size or add a rule to config.mesh.rules")


def _name(path) -> str:
    """The array's name within its tree; of an optimizer's path only the part that names the parameter."""
    return tree.SEPARATOR.join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
