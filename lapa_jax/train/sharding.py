"""The one place that shards: the mesh, where each array lives, and the check that nothing big is copied everywhere."""

import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lapa_jax.core import gradients, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean
from lapa_jax.core.layers import STACK

AXES = ("data", "fsdp", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))
# Below this many elements a copy on every device costs less than gathering it at each use.
SMALL = 2**14
REPLICATED_SHARE = 0.02


def make_mesh(config: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """A mesh over all devices; one axis of `config` (data, fsdp, tensor) may be -1: what remains.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    if (grad_dtype := config.get("grad_dtype")) not in gradients.CHOICES:
        raise ConfigError(f"config.mesh.grad_dtype is '{grad_dtype}'; give 'float32', or None for the type that the "
                          "model computes in")
    devices = jax.devices() if devices is None else devices
    sizes = [int(config[axis]) for axis in AXES]
    if sizes.count(-1) == 1:
        given = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = len(devices) // given
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


def rows_of_host(mesh: Mesh, process: int | None = None) -> tuple[int, int]:
    """Which share of every batch a process reads, (index, count): the rows that its devices hold.

    Processes that differ only along the tensor axis hold the same rows, and read them all.

    Args:
      mesh: over the devices of all processes. process: None for this one.

    Raises:
      ConfigError: the rows of two processes overlap, and are not the same.
    """
    process = jax.process_index() if process is None else process
    parts = batch_parts(mesh)
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices).reshape(parts, -1)
    held = {owner: tuple(np.flatnonzero((owners == owner).any(1))) for owner in set(owners.flat)}
    shares, share = sorted(set(held.values())), held[process]
    if sum(map(len, shares)) != parts or len(set(map(len, shares))) > 1 or share[-1] - share[0] >= len(share):
        raise ConfigError(f"config.mesh {dict(mesh.shape)} splits batches across processes unevenly; give the tensor "
                          "axis a divisor or a multiple of the devices of a process")
    return shares.index(share), len(shares)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch_size(mesh: Mesh, batch_size: int, micro_batches: int = 1, name: str = "batch_size") -> None:
    """Refuses a global batch, `config.train.<name>`, that the mesh and the micro-batches cannot split evenly."""
    parts = batch_parts(mesh) * micro_batches
    if batch_size % parts:
        raise ConfigError(f"config.train.{name} {batch_size} does not divide into {parts} parts (devices on the "
                          f"data and fsdp axes × micro-batches); the next that does is "
                          f"{math.ceil(batch_size / parts) * parts}")


def spec_for(name: str, shape: Sequence[int], mesh: Mesh, rules=()) -> PartitionSpec:
    """Where one array lives: the first rule that matches its name, else its largest divisible axis over "fsdp".

    Args:
      name: the array's name, "a/b/c"; an optimizer slot carries its parameter's name at the end and shares its place.
      shape: the array's shape.
      mesh: the mesh.
      rules: `(regex, partition spec as a tuple)` pairs, matched against the whole name.

    Raises:
      ConfigError: a rule that does not fit the mesh or the array.
    """
    for regex, spec in rules:
        if re.fullmatch(regex, name):
            _check_rule(regex, spec, name, shape, mesh)
            return PartitionSpec(*spec)
    if math.prod(shape) < SMALL:
        return PartitionSpec()
    # Axis 0 of stacked layers is the layer, which the scan walks and which must stay whole.
    first = 1 if STACK.fullmatch(name) else 0
    divisible = [axis for axis in range(first, len(shape)) if shape[axis] % mesh.shape["fsdp"] == 0]
    if not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*(("fsdp" if axis == largest else None) for axis in range(len(shape))))


def shardings(state, mesh: Mesh, rules=()):
    """The sharding of every array of a state (or of its shapes), by `spec_for`.

    Raises:
      ConfigError: a rule that matches no array, or does not fit.
    """
    names = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}
    for regex, _ in rules:
        try:
            re.compile(regex)
        except re.error as error:
            raise ConfigError(f"config.mesh.rules: '{regex}' is no regular expression ({error})") from None
        if not any(re.fullmatch(regex, name) for name in names):
            raise ConfigError(f"config.mesh.rules: '{regex}' matches no array{tree.closest(regex, names)} (rules are "
                              "matched against whole names such as 'params/llm/embedding')")

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


def _check_rule(regex: str, spec: Sequence, name: str, shape: Sequence[int], mesh: Mesh) -> None:
    what = f"config.mesh.rules: '{regex}' -> {tuple(spec)}"
    if len(spec) > len(shape):
        raise ConfigError(f"{what} has {len(spec)} axes, {name} {tuple(shape)} has {len(shape)}; give as many or fewer")
    for axis, (given, size) in enumerate(zip(spec, shape)):
        names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
        if unknown := [one for one in names if one not in mesh.shape]:
            raise ConfigError(f"{what} names the mesh axis {unknown[0]!r}{did_you_mean(unknown[0], AXES)}")
        if size % (parts := math.prod(mesh.shape[one] for one in names)):
            raise ConfigError(f"{what} splits axis {axis} of {name} {tuple(shape)} in {parts}, which does not divide "
                              f"{size}; choose another size of {' and '.join(names)} in config.mesh, or another rule")


def _name(path) -> str:
    """The array's name within its tree; of an optimizer's path only the part that names the parameter."""
    return tree.SEPARATOR.join(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))
