"""How a server bears hostile clients: python tools/attack_server.py --run RUN [--clients 300] [--hostile 50].

Starts launch/serve.py, lets valid clients ask at a set pace alone, then beside hostile ones that send without pause
what costs most: JPEGs of 1,000 scans and of as many as are allowed, lists of lists in JSON and msgpack, a PNG of 12,000
pixels a side, compressed bodies, messages that never end, large ones over websockets, bytes that are no HTTP. Prints
the percentiles of both, what the hostile ones were told, the server's memory, and how soon it stops under attack.
Clients are mostly on other machines, so that what they compute costs the server nothing. Here the server has the first
half of the cores, in both measurements, and the clients have the others, the hostile ones with low priority. Two
columns tell how late the valid clients' own process was at most, which their times contain, and for how long the
server's event loop was ready to run and had no core.
"""

import argparse
import asyncio
import collections
import contextlib
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from typing import NamedTuple

import numpy as np

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.system import peak_memory

ROOT = pathlib.Path(__file__).resolve().parents[1]
MIB = 2**20
TICK = 0.005
"""Seconds between two looks of the valid clients' process at how late it is."""
UPGRADE = (b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")  # fmt: skip


class Measured(NamedTuple):
    """times: seconds of each answered request. failed: requests without an answer. late: seconds that the clients' own
    event loop was late at most. starved: seconds in which the server's event loop waited for a core."""

    times: list[float]
    failed: int
    late: float
    starved: float


def main(argv: list[str]) -> None:
    """Measures and prints."""
    args = _parser().parse_args(argv)
    if args.clients < 1 or args.hostile < 1 or args.seconds <= 0 or args.period <= 0:
        raise UserError("--clients, --hostile, --seconds and --period must be more than 0")
    import aiohttp  # noqa: F401  that it is there, before anything starts

    with on_cores(halves()[0]):
        server = subprocess.Popen([sys.executable, str(ROOT / "launch" / "serve.py"), "--run", args.run, "--port", "0",
                                   "--pending", "512", "--rate", "1000000", *args.server],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    try:
        address = server.stdout.readline().split()[2].rstrip(",")
        server.stdout.readline()  # ready
        with attacking(server.pid, address, args.clients, args.hostile, args.seconds, args.period) as measured:
            alone, attacked, outcomes = measured
            memory = peak_memory(server.pid)
            start = time.perf_counter()
            server.send_signal(signal.SIGTERM)
            server.wait(60)
            stopped = time.perf_counter() - start
    finally:
        server.kill()
    say(table(args, alone, attacked, outcomes, memory, stopped))


@contextlib.contextmanager
def attacking(
    pid: int, address: str, clients: int, hostile: int, seconds: float, period: float
) -> Iterator[tuple[Measured, Measured, dict[str, int]]]:  # fmt: skip
    """Measures valid clients of a server alone, then beside hostile ones, who go on for some seconds of the block.

    Args:
      pid: of the server, whose main thread runs its event loop.

    Yields:
      What both gave, and a dict that says after the block what the hostile ones were told,
      {what: how often}.
    """
    context = multiprocessing.get_context("spawn")
    results, outcomes = context.SimpleQueue(), {}
    with on_cores(halves()[1]):
        alone = _measured(pid, address, clients, seconds, period)
        attack = context.Process(target=_attack, args=(results, address, hostile, time.time() + seconds + 8))
        attack.start()
        time.sleep(3)
        attacked = _measured(pid, address, clients, seconds, period)
    yield alone, attacked, outcomes
    outcomes |= results.get()
    attack.join()


def halves() -> tuple[set[int], set[int]]:
    """The cores of the server and those of its clients; all of them for both where there is one, or no Linux."""
    if not hasattr(os, "sched_getaffinity"):
        return set(), set()
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return set(cores[:half] or cores), set(cores[half:])


@contextlib.contextmanager
def on_cores(cores: Set[int]) -> Iterator[None]:
    """Processes that this thread starts within the block run on these cores only, on any where there are none."""
    if not cores:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)


def table(args, alone: Measured, attacked: Measured, outcomes, memory: float, stopped: float) -> str:
    """The figures as Markdown."""
    cores = ", ".join(f"{len(half)} for {name}" for name, half in zip(("the server", "clients"), halves()))
    lines = [f"{args.clients} valid clients, one request each {args.period:g} s, {args.seconds:g} s; "
             f"{args.hostile} hostile ones; of {os.cpu_count()} cores {cores}", "",
             "| valid clients, ms | p50 | p95 | p99 | answered | failed | clients late | server without a core |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, (times, failed, late, starved) in (("alone", alone), ("under attack", attacked)):
        figures = " | ".join(f"{1000 * np.percentile(times, p):.1f}" for p in (50, 95, 99))
        lines.append(f"| {name} | {figures} | {len(times)} | {failed} | {1000 * late:.1f} | {1000 * starved:.0f} |")
    told = ", ".join(f"{name}: {count}" for name, count in sorted(outcomes.items()))
    return "\n".join([*lines, "", f"Hostile messages ended so: {told}. Most memory of the server: {memory:.0f} MB. "
                      f"It stopped within {stopped:.1f} s of SIGTERM, under attack."])  # fmt: skip


def _measured(pid: int, address: str, count: int, seconds: float, period: float) -> Measured:
    before = _without_core(pid)
    times, failed, late = _in_process(valid_clients, address, count, seconds, period)
    return Measured(times, failed, late, _without_core(pid) - before)


def _without_core(pid: int) -> float:
    """Seconds for which a process's main thread was ready to run, and waited for a core; 0 where Linux does not say."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


def valid_clients(address: str, count: int, seconds: float, period: float) -> tuple[list[float], int, float]:
    """The seconds that each request over a websocket took, how many failed, and how late this process was at most."""
    return asyncio.run(_valid(address, count, seconds, period))


async def _valid(address: str, count: int, seconds: float, period: float) -> tuple[list[float], int, float]:
    import aiohttp

    from lapa_jax.serve import msgpack_numpy

    times, failed, late = [], 0, 0.0

    async def watch() -> None:
        nonlocal late
        while True:
            start = time.perf_counter()
            await asyncio.sleep(TICK)
            late = max(late, time.perf_counter() - start - TICK)

    async def client(session, number: int) -> None:
        nonlocal failed
        rng = random.Random(number)
        async with session.ws_connect(f"ws://{address}/", max_msg_size=0) as socket:
            metadata = msgpack_numpy.unpack((await socket.receive(60)).data)
            message = msgpack_numpy.pack(valid_message(metadata))
            until = time.perf_counter() + seconds
            await asyncio.sleep(rng.uniform(0, period))
            while time.perf_counter() < until:
                start = time.perf_counter()
                await socket.send_bytes(message)
                reply = await socket.receive(60)
                if isinstance(reply.data, bytes):
                    times.append(time.perf_counter() - start)
                else:
                    failed += 1
                await asyncio.sleep(max(0.0, period * rng.uniform(0.8, 1.2) - (time.perf_counter() - start)))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(client(session, number) for number in range(count)))
        watching.cancel()
    return times, failed, late


def valid_message(metadata: dict) -> dict:
    """What a policy of this metadata takes: JPEGs of 256 x 256."""
    from lapa_jax.data import images

    picture = images.encode(np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8))
    message = dict.fromkeys(metadata["cameras"], picture) | {"instruction": "push it"}
    if metadata["datasets"]:
        message["dataset"] = next(iter(metadata["datasets"]))
        if metadata["state_dim"]:
            message["state"] = np.zeros(len(metadata["datasets"][message["dataset"]]["state"]["names"]))
    return message


def hostile_messages(metadata: dict) -> dict[str, tuple[bytes, dict]]:
    """{name: (body of POST /act, headers)}: what costs a server most, each below 16 MiB."""
    from lapa_jax.serve import msgpack_numpy

    packed, camera = {"Content-Type": "application/msgpack"}, metadata["cameras"][0]
    valid = valid_message(metadata)
    # In a list of lists each inner one is a single byte.
    inner = b"\xdc\x0f\xff" + b"\x90" * 4095
    return {
        "1,000 scans": (msgpack_numpy.pack(valid | {camera: progressive_jpeg(2048, 1000)}), packed),
        "32 scans": (msgpack_numpy.pack(valid | {camera: progressive_jpeg(2048, 32)}), packed),
        "largest array": (msgpack_numpy.pack(valid | {camera: np.zeros((2048, 2048, 3), np.uint8)}), packed),
        "PNG of 12,000": (msgpack_numpy.pack(valid | {camera: large_png(12_000)}), packed),
        "JSON lists": (b"[" + b"[]," * (5 * MIB) + b"[]]", {}),
        "JSON depth": (b"[" * (15 * MIB), {}),
        "JSON depth, below the limits": (b"[" * 16_000, {}),
        "JSON text": (b'{"instruction": "' + b"a" * (15 * MIB) + b'"}', {}),
        "JSON digits": (b'{"state": 0.' + b"1" * (15 * MIB) + b"}", {}),
        "msgpack lists": (b"\xdc\x0f\xff" + inner * 3800, packed),
        "compressed": (gzip.compress(bytes(1024 * MIB // 8), 9), {"Content-Encoding": "gzip"}),
        "nothing": (b"", packed),
    }


def progressive_jpeg(side: int, scans: int) -> bytes:
    """A grey progressive JPEG of so many scans: its last one, which has no new bits, over and over."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (128, 128, 128)).save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * max(0, scans - data.count(b"\xff\xda")) + data[-2:]


def large_png(side: int) -> bytes:
    """A PNG of so many pixels a side, of one bit each."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def _attack(results, address: str, count: int, until: float) -> None:
    os.nice(19)
    results.put(asyncio.run(_hostile(address, count, until)))


async def _hostile(address: str, count: int, until: float) -> dict[str, int]:
    """Hostile clients until a time of `time.time` or until the server is gone; {what they were told: how often}."""
    import aiohttp

    outcomes: collections.Counter = collections.Counter()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(f"http://{address}/metadata") as reply:
            messages = hostile_messages(json.loads(await reply.text()))

        async def post(number: int) -> None:
            rng = random.Random(number)
            while time.time() < until:
                body, headers = messages[rng.choice(list(messages))]
                try:
                    async with session.post(f"http://{address}/act", data=body, headers=headers) as reply:
                        await reply.read()
                        outcomes[str(reply.status)] += 1
                except (OSError, aiohttp.ClientError):
                    outcomes["closed"] += 1
                    await asyncio.sleep(0.05)

        async def unfinished(number: int) -> None:
            host, port = address.split(":")
            while time.time() < until:
                try:
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(UPGRADE)
                    # A binary frame of 15 MiB of which the last byte never comes.
                    writer.write(b"\x82\xff" + (15 * MIB).to_bytes(8, "big") + bytes(4) + bytes(15 * MIB - 1))
                    await writer.drain()
                    await asyncio.wait_for(reader.read(), max(0.1, until - time.time()))
                    writer.close()
                    outcomes["websocket closed"] += 1
                except (OSError, TimeoutError):
                    outcomes["websocket closed"] += 1
                    await asyncio.sleep(0.05)

        async def whole(number: int) -> None:
            rng = random.Random(number)
            largest = [body for body, _ in messages.values() if len(body) > 4 * MIB]
            while time.time() < until:
                try:
                    async with session.ws_connect(f"ws://{address}/", max_msg_size=0) as socket:
                        await socket.receive()
                        while time.time() < until:
                            await socket.send_bytes(rng.choice(largest))
                            reply = await socket.receive()
                            if not isinstance(reply.data, bytes | str):
                                break
                            outcomes["websocket answered"] += 1
                    outcomes["websocket closed"] += 1
                except (OSError, aiohttp.ClientError):
                    outcomes["closed"] += 1
                    await asyncio.sleep(0.05)

        async def garbage(number: int) -> None:
            host, port = address.split(":")
            while time.time() < until:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                    writer.write(random.randbytes(200) + b"\r\n\r\n")
                    await writer.drain()
                    writer.close()
                    outcomes["no HTTP"] += 1
                except OSError:
                    outcomes["closed"] += 1
                await asyncio.sleep(0.05)

        kinds = [post, post, post, unfinished, whole, garbage]
        tasks = [asyncio.create_task(kinds[number % len(kinds)](number)) for number in range(count)]
        await asyncio.wait(tasks, timeout=max(0.0, until - time.time()) + 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return dict(outcomes)


def _in_process(function: Callable, *arguments):
    """The result of a function that runs in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder of a policy")
    parser.add_argument("--clients", type=int, default=300, help="valid clients")
    parser.add_argument("--hostile", type=int, default=50, help="hostile clients")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--period", type=float, default=3.0, help="seconds between the requests of a valid client")
    parser.add_argument("--server", action="append", default=[], metavar="OPTION", help="--server=--wait_ms=0")
    return parser


if __name__ == "__main__":
    run_main(main)
