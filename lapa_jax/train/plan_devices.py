"""Devices that a plan compiles for without having them: what the compiler must know of them, and stand-ins."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from lapa_jax.core.errors import UserError, did_you_mean

PLUGINS = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
"""Modules that bring XLA's compiler for NVIDIA GPUs; they come with `lapa_jax[plan]` and with `lapa_jax[cuda13]`."""

OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
"""There is nothing to time kernels on. Untimed, XLA takes Triton tilings for products that Triton may then refuse, so
they go to cuBLAS, as most large ones do in a run."""


REACHED = 0.8
"""Share of the rate of large products that a program's products reach together."""

HBM_FULL = re.compile(r"RESOURCE_EXHAUSTED: (.*Ran out of memory (?:on HBM|in memory space hbm).*)")
"""How XLA's TPU compiler says that a program does not fit, and by how much."""

TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                   "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_HOST_BOUNDS": "1,1,1",
                   "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1", "TPU_STDERR_LOG_LEVEL": "3",
                   "TPU_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}  # fmt: skip
"""So that libtpu looks for no TPU and does not complain that there is none; it has no part in what is planned."""


class Roofline(NamedTuple):
    """Seconds that each resource needs alone for a step (Williams et al. 2009). Attributes: as they are named."""

    products: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds of a step in which all three overlap."""
        return max(self)


@dataclasses.dataclass(frozen=True)
class Device:
    """A device by its data sheet.

    Attributes:
      name: as on the command line.
      memory: bytes. Of GPUs the decimal gigabytes of the name; drivers report a few percent more. Of TPUs what their
        compiler lets a program have.
      bandwidth: bytes a second to memory.
      rate: FLOP/s that large products of bfloat16 reach.
      links: bytes a second that one device sends within its host, or of TPUs within its slice. network: the same to
        other hosts, for each device.
      share: of the memory that a run may fill. float32_rate: of products of float32 over that of bfloat16, as JAX has
        them by default.
    """

    name: str
    memory: int
    bandwidth: int
    rate: float
    links: float
    network: float

    @property
    def usable(self) -> float:
        """Bytes that a run may fill."""
        return self.share * self.memory

    def roofline(self, flops: float, traffic: float, sent: tuple[float, float]) -> Roofline:
        """What a step needs at least.

        Args:
          flops: of its products, as if all were of bfloat16. traffic: bytes to and from memory. sent: bytes (within the
            host or slice, to other hosts).
        """
        within, between = sent
        return Roofline(flops / (REACHED * self.rate), traffic / self.bandwidth,
                        within / self.links + between / self.network)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tpu(Device):
    """A TPU chip.

    Attributes:
      generation: "v5e", as in names of topologies. axes: how many its topology has.
    """

    generation: str
    axes: tuple[int, ...]
    share = 1.0
    float32_rate = 1.0  # rounded to bfloat16

    def topology(self, mesh: str) -> tuple[int, ...]:
        """ "4x4" -> (4, 4): chips along each axis of a slice.

        Raises:
          UserError: no such slice.
        """
        shape = tuple(map(int, mesh.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", mesh) else ()
        if len(shape) not in self.axes:
            example = " or ".join({2: "4x4", 3: "2x2x4"}[axes] for axes in self.axes)
            raise UserError(f"--mesh '{mesh}' is no slice of {self.name}s; give its topology in chips, such as "
                            f"{example}")
        return shape


@dataclasses.dataclass(frozen=True)
class Gpu(Device):
    """An NVIDIA GPU. Memory decides whether a run fits, the generation which code is generated; the rest steers the
    compiler's choice between equivalents.

    Attributes:
      major, minor: compute capability.
      cores: streaming multiprocessors. fpus: float32 units of each. clock: GHz.
      shared, shared_optin: bytes of shared memory a core, and of those that one block may ask for.
      cache: bytes of L2.
    """

    major: int
    minor: int
    cores: int
    fpus: int
    clock: float
    shared: int
    shared_optin: int
    cache: int
    share = 0.9  # XLA_PYTHON_CLIENT_MEM_FRACTION; the rest is for CUDA and NCCL
    float32_rate = 0.5  # TF32

    def target_config(self) -> str:
        """The text form of XLA's `GpuTargetConfigProto`."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.shared_optin}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.cache} device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.major} minor: {self.minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
device_description_str: "NVIDIA {self.name}"
"""


def _hopper(name: str, gigabytes: int, bandwidth: float) -> Gpu:
    # NVLink 4 sends 450 GB/s; a node of four has four InfiniBand cards of 400 Gbit/s.
    return Gpu(name, gigabytes * 10**9, int(bandwidth * 1e12), 790e12, 450e9, 50e9, 9, 0, 132, 128, 1.98, 233472,
               232448, 50 * 2**20)


DEVICES = {device.name: device for device in (
    _hopper("H100-80GB", 80, 3.35),
    _hopper("H100-94GB", 94, 3.94),
    _hopper("H200-141GB", 141, 4.8),
    Gpu("A100-80GB", 80 * 10**9, int(2.04e12), 250e12, 300e9, 25e9, 8, 0, 108, 64, 1.41, 167936, 166912, 40 * 2**20),
    # Rates are the data sheets' peaks; links are half of the bidirectional figure of a chip.
    Tpu("TPU-v5e", int(15.75 * 2**30), int(819e9), 197e12, 200e9, math.inf, "v5e", (2,)),
    Tpu("TPU-v5p", int(95.74 * 2**30), int(2765e9), 459e12, 600e9, math.inf, "v5p", (3, 2)),
    Tpu("TPU-v6e", int(31.25 * 2**30), int(1638e9), 918e12, 400e9, math.inf, "v6e", (2,)),
)}  # fmt: skip


class Target(NamedTuple):
    """What to compile for, and with what.

    Attributes:
      device: the device that is planned for.
      hosts, per_host: how many there are; devices of one host follow each other. The chips of a TPU slice count as
        those of one host: all are joined by the same links.
      devices: stand-ins, `hosts * per_host` of them.
      options: for `Lowered.compile`.
      exact: whether this is the compiler of the device; otherwise it is the CPU's.
    """

    device: Device
    hosts: int
    per_host: int
    devices: Sequence
    options: Mapping[str, object]
    exact: bool


def target(device: str, mesh: str) -> Target:
    """Finds the device and the best compiler there is. Call it before anything else runs on JAX.

    Args:
      device: one of `DEVICES`. mesh: "2x4" for 2 hosts with 4 GPUs each; of TPUs the topology of the slice.

    Raises:
      UserError: an unknown device or a mesh that is none.
    """
    planned = find_device(device)
    if isinstance(planned, Tpu):
        return _slice(planned, planned.topology(mesh))
    hosts, per_host = parse_mesh(mesh)
    jax.config.update("jax_platforms", "cpu")
    if has_compiler():
        topology = topologies.get_topology_desc(
            device.lower(), "cuda", target_config=planned.target_config(), topology=f"1x{hosts}x{per_host}"
        )  # fmt: skip
        return Target(planned, hosts, per_host, topology.devices, OPTIONS, exact=True)
    return _on_cpus(planned, hosts, per_host)


def _slice(planned: Tpu, shape: tuple[int, ...]) -> Target:
    """A slice of a TPU pod."""
    chips = math.prod(shape)
    jax.config.update("jax_platforms", "cpu")
    if not has_tpu_compiler():
        return _on_cpus(planned, 1, chips)
    os.environ.update(TPU_ENVIRONMENT)
    # A slice of fewer chips than a host has is planned as a host of so many.
    small = {} if chips >= 4 else {"chips_per_host_bounds": (*shape, 1, 1)[:3]}
    name = f"{planned.generation}:{'x'.join(map(str, shape))}"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **small)
    except RuntimeError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"--mesh {'x'.join(map(str, shape))}: no slice of {planned.name}s ({reason})") from None
    return Target(planned, 1, chips, topology.devices, {}, exact=True)


def _on_cpus(planned: Device, hosts: int, per_host: int) -> Target:
    jax.config.update("jax_num_cpu_devices", hosts * per_host)
    return Target(planned, hosts, per_host, jax.devices("cpu"), {}, exact=False)


def find_device(name: str) -> Device:
    """The device of that name."""
    if name not in DEVICES:
        raise UserError(f"--device {name} is not known{did_you_mean(name, DEVICES)}")
    return DEVICES[name]


def parse_mesh(text: str) -> tuple[int, int]:
    """ "2x4" -> (2, 4): hosts, and devices of each."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise UserError(f"--mesh '{text}' is no mesh; give hosts x GPUs per host, such as 1x4 or 64x4")
    hosts, per_host = text.split("x")
    return int(hosts), int(per_host)


def has_compiler() -> bool:
    """Whether XLA's GPU compiler is there, in the version of the installed JAX."""
    for module in PLUGINS:
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        package = f"jax-{module.rpartition('xla_')[2]}-plugin"
        installed, wanted = importlib.metadata.version(package), importlib.metadata.version("jaxlib")
        if installed != wanted:
            raise UserError(f"{package} {installed} does not go with jaxlib {wanted}; run: pip install "
                            f"{package}=={wanted}")
        return True
    return False


def has_tpu_compiler() -> bool:
    """Whether libtpu is there, in the version that goes with the installed JAX.

    Raises:
      UserError: it is there in another version, which would fail while it is loaded.
    """
    if importlib.util.find_spec("libtpu") is None:
        return False
    installed, wanted = importlib.metadata.version("libtpu"), _libtpu()
    if not installed.startswith(wanted.rstrip("*")):
        raise UserError(f"libtpu {installed} does not go with jax {jax.__version__}; run: pip install --no-deps "
                        f"'libtpu=={wanted}'")
    return True


def _libtpu() -> str:
    """The version of libtpu that the installed JAX asks for, "0.0.42.*"."""
    needs = importlib.metadata.requires("jax") or []
    return next(need for need in needs if need.startswith("libtpu==")).partition("==")[2].partition(";")[0].strip()


def how_to_install(device: Device) -> str:
    """The command that brings the real compiler: 130 MB for GPUs, without CUDA itself; 213 MB for TPUs."""
    if isinstance(device, Tpu):
        return f"pip install --no-deps 'libtpu=={_libtpu()}'"
    version = importlib.metadata.version("jaxlib")
    return f"pip install jax-cuda13-plugin=={version}"
