"""Devices that a plan compiles for without having them: what the compiler must know of them, and stand-ins."""

import dataclasses
import importlib
import importlib.metadata
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


@dataclasses.dataclass(frozen=True)
class Device:
    """A GPU by its data sheet. Memory decides whether a run fits, the generation which code is generated; the rest
    steers the compiler's choice between equivalents.

    Attributes:
      name: as on the command line.
      memory: bytes, the decimal gigabytes of the name; drivers report a few percent more.
      major, minor: compute capability.
      cores: streaming multiprocessors. fpus: float32 units of each. clock: GHz.
      shared, shared_optin: bytes of shared memory a core, and of those that one block may ask for.
      bandwidth: bytes a second to memory. cache: bytes of L2.
    """

    name: str
    memory: int
    major: int
    minor: int
    cores: int
    fpus: int
    clock: float
    shared: int
    shared_optin: int
    bandwidth: int
    cache: int

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


def _hopper(name: str, gigabytes: int, bandwidth: float) -> Device:
    return Device(name, gigabytes * 10**9, 9, 0, 132, 128, 1.98, 233472, 232448, int(bandwidth * 1e12), 50 * 2**20)


DEVICES = {device.name: device for device in (
    _hopper("H100-80GB", 80, 3.35),
    _hopper("H100-94GB", 94, 3.94),
    _hopper("H200-141GB", 141, 4.8),
    Device("A100-80GB", 80 * 10**9, 8, 0, 108, 64, 1.41, 167936, 166912, int(2.04e12), 40 * 2**20),
)}  # fmt: skip


class Target(NamedTuple):
    """What to compile for, and with what.

    Attributes:
      device: the device that is planned for.
      hosts, per_host: how many there are; devices of one host follow each other.
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
      device: one of `DEVICES`. mesh: "2x4" for 2 hosts with 4 devices each.

    Raises:
      UserError: an unknown device or a mesh that is none.
    """
    planned, (hosts, per_host) = find_device(device), parse_mesh(mesh)
    jax.config.update("jax_platforms", "cpu")
    if has_compiler():
        topology = topologies.get_topology_desc(
            device.lower(), "cuda", target_config=planned.target_config(), topology=f"1x{hosts}x{per_host}"
        )  # fmt: skip
        return Target(planned, hosts, per_host, topology.devices, OPTIONS, exact=True)
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
            raise UserError(f"{package} {installed} does not go with jaxlib {wanted}; run: {how_to_install()}")
        return True
    return False


def how_to_install() -> str:
    """The command that brings the real compiler: 130 MB, without CUDA itself."""
    version = importlib.metadata.version("jaxlib")
    return f"pip install jax-cuda13-plugin=={version}"
