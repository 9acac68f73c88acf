"""Checks a cluster before a run, in under a minute: srun python launch/check_cluster.py [--folder DIR].

Every rank says on which host it is and what devices it sees, multiplies matrices, writes a file to the folder that all
share and reads that of the next rank. Together they measure an all-reduce within a node, between nodes and over all
devices. The first rank prints a table, names what stands out, and ends with "all ranks synchronized".
"""

import argparse
import os
import pathlib
import socket
import time
import zlib
from collections.abc import Callable

import numpy as np

from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say

ROUNDS = 5
SLOW = 1.5
"""A rank that is so many times slower than the median is named."""


def main(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    if args.mib < 1 or args.side < 1 or args.file_mib < 1:
        raise UserError("--mib, --side and --file_mib must be at least 1")
    start = time.perf_counter()
    startup.say("joining the other ranks")

    import jax
    from jax.experimental import multihost_utils

    from lapa_jax.train import distributed

    distributed.initialize()
    rank, ranks = jax.process_index(), jax.process_count()
    devices = ", ".join(map(str, jax.local_devices()))
    say(f"rank {rank} of {ranks} on {socket.gethostname()}: {devices} ({jax.local_devices()[0].device_kind}), "
        f"{len(os.sched_getaffinity(0))} cores", flush=True)  # fmt: skip
    flops = 2 * args.side**3 / _seconds(_product(args.side))
    written, read = _file_speeds(pathlib.Path(args.folder), args.file_mib, multihost_utils.sync_global_devices)
    reduced = all_reduce(args.mib * 2**20)
    own = np.array([flops, written, read], np.float64)
    each = multihost_utils.process_allgather(own.astype(np.float32)).reshape(ranks, 3)
    nodes = multihost_utils.process_allgather(np.array(_node(), np.uint32)).reshape(ranks)
    multihost_utils.sync_global_devices("end")
    if rank == 0:
        say("\n".join(table(each, nodes, reduced, args.mib)))
        say(f"all ranks synchronized, after {time.perf_counter() - start:.1f} s")


def table(each: np.ndarray, nodes: np.ndarray, reduced: dict[str, float], mib: int) -> list[str]:
    """Lines for the log.

    Args:
      each: f[ranks, 3], operations a second, bytes a second written and read. nodes: which node each rank is on.
      reduced: {where: bytes a second of an all-reduce}. mib: per device.
    """
    names = list(dict.fromkeys(nodes.tolist()))
    lines = [f"{len(each)} ranks on {len(names)} node(s)", "rank  node  TFLOP/s  write MB/s  read MB/s"]
    for rank, (flops, written, read) in enumerate(each):
        node = names.index(nodes[rank])
        lines.append(f"{rank:4d}  {node:4d}  {flops / 1e12:7.2f}  {written / 1e6:10.0f}  {read / 1e6:9.0f}")
    lines += [f"all-reduce of {mib} MiB a device, {where}: {speed / 1e9:.2f} GB/s" for where, speed in reduced.items()]
    for what, column in zip(("computes", "writes", "reads"), each.T):
        middle = np.median(column)
        lines += [f"warning: rank {rank} {what} {middle / value:.1f} times slower than the median"
                  for rank, value in enumerate(column) if value * SLOW < middle]  # fmt: skip
    return lines


def all_reduce(size: int) -> dict[str, float]:
    """{where: bytes a second} of sums over all devices, over those of each node, and over one of each node; only those
    that there are. Bytes as nccl-tests counts them ("busbw"): 2 (n - 1) / n of the size, whatever the algorithm.

    Args:
      size: bytes of each device.
    """
    import jax
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    of_process = multihost_utils.process_allgather(np.array(_node(), np.uint32)).reshape(-1).tolist()
    by_node: dict[int, list] = {}
    for device in sorted(jax.devices(), key=lambda device: device.id):
        by_node.setdefault(of_process[device.process_index], []).append(device)
    counts = {len(devices) for devices in by_node.values()}
    if len(counts) > 1:
        raise UserError(f"nodes have {sorted(counts)} devices; give each the same number")
    mesh = Mesh(np.array(list(by_node.values())), ("node", "device"))
    spec = PartitionSpec("node", "device")
    count = max(1, size // 4)
    shape = (*mesh.devices.shape, count)
    values = jax.make_array_from_callback(
        shape, NamedSharding(mesh, spec), lambda index: np.ones((1, 1, count), np.float32)
    )
    axes = {"all devices": ("node", "device"), "within a node": ("device",), "between nodes": ("node",)}
    speeds = {}
    for where, names in axes.items():
        members = int(np.prod([mesh.shape[name] for name in names]))
        if members == 1 or (len(names) == 2 and 1 in mesh.devices.shape):
            continue
        total = jax.jit(jax.shard_map(lambda x, names=names: jax.lax.psum(x, names), mesh=mesh, in_specs=spec,
                                      out_specs=spec))  # fmt: skip
        mine = np.asarray(total(values).addressable_shards[0].data)
        if not (mine == members).all():
            raise UserError(f"an all-reduce over {where} gave {mine.flat[0]:g} where {members} is right: a device or a "
                            "link is broken; leave this node out (sbatch --exclude)")  # fmt: skip
        speeds[where] = 2 * (members - 1) / members * 4 * count / _seconds(lambda total=total: total(values))
    return speeds


def _product(side: int) -> Callable:
    """Multiplies two matrices on this process' first device."""
    import jax

    device = jax.local_devices()[0]
    factor = jax.device_put(np.ones((side, side), np.float32), device)
    product = jax.jit(lambda x: x @ x)
    return lambda: product(factor)


def _seconds(call: Callable) -> float:
    """Median of some calls, after one that compiles."""
    import jax

    jax.block_until_ready(call())
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _file_speeds(folder: pathlib.Path, mib: int, barrier: Callable[[str], None]) -> tuple[float, float]:
    """Bytes a second of writing a file, to the disk, and of reading the next rank's, which another host has written."""
    import jax

    rank, ranks = jax.process_index(), jax.process_count()
    name = lambda number: folder / f".check_cluster.{number}"  # noqa: E731
    data, problem = os.urandom(2**20), ""
    try:
        start = time.perf_counter()
        with open(name(rank), "wb") as file:
            for _ in range(mib):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written = mib * 2**20 / (time.perf_counter() - start)
    except OSError as error:
        written, problem = 0.0, f"{folder} cannot be written to by rank {rank} ({error.strerror})"
    barrier("written")
    start, size = time.perf_counter(), 0
    try:
        with open(name((rank + 1) % ranks), "rb") as file:
            while part := file.read(2**20):
                size += len(part)
    except OSError as error:
        problem = problem or (f"rank {rank} does not see the file of rank {(rank + 1) % ranks} in {folder} "
                              f"({error.strerror}): name a folder that all nodes share")  # fmt: skip
    read = size / (time.perf_counter() - start)
    barrier("read")
    name(rank).unlink(missing_ok=True)
    if problem:
        raise UserError(f"{problem}; see --folder")
    return written, read


def _node() -> int:
    """A number of this host. SLURMD_NODENAME where several nodes are played on one machine."""
    return zlib.crc32(os.environ.get("SLURMD_NODENAME", socket.gethostname()).encode())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--folder", default=".", help="on the file system that all nodes share; this one by default")
    parser.add_argument("--mib", type=int, default=256, help="MiB that each device brings to an all-reduce")
    parser.add_argument("--side", type=int, default=4096, help="rows and columns of the matrices")
    parser.add_argument("--file_mib", type=int, default=256, help="MiB of the file that each rank writes")
    return parser


if __name__ == "__main__":
    run_main(main)
