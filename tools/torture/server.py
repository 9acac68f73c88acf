"""Hostile messages to launch/serve.py: it answers or refuses each, and goes on answering valid ones as before."""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Iterator, Set

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.system import peak_memory
from tools import attack_server
from tools.torture.mutations import mutated
from tools.torture.processes import Process, still_carrying
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Workshop, script

CONNECTIONS, VALID_EVERY = 20, 50
SECONDS, PERIOD = 20.0, 6.0
"""Of each measurement; between the requests of a valid client."""
VALID_EACH = 6
"""Valid clients for each hostile one: 50 of them at scale 1."""


def mutations(workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Sends `count` damaged messages over websockets and HTTP, and valid ones between, which get the same answer."""
    with _serving(workshop) as (process, address):
        asyncio.run(_mutations(address, count, rng, tally, workshop))
        memory = peak_memory(process.popen.pid)
        tally.figures.append(f"the server held {memory:.0f} MB at most")
        if "Traceback" in process.printed():
            tally.ended("log", ["a traceback in the server's log"])
    _check_end(process, tally)


async def _mutations(address: str, count: int, rng: random.Random, tally: Tally, workshop: Workshop) -> None:
    import aiohttp

    from lapa_jax.serve import msgpack_numpy

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        async with session.get(f"http://{address}/metadata") as reply:
            metadata = await reply.json()
        message = attack_server.valid_message(metadata)
        valid = msgpack_numpy.pack(message)
        # Images as arrays, too: of a JPEG nearly every change is noticed.
        pixels = np.zeros((32, 32, 3), np.uint8)
        seeds = [valid, msgpack_numpy.pack({**message, **dict.fromkeys(metadata["cameras"], pixels)})]
        headers = {"Content-Type": "application/msgpack"}

        async def post(body: bytes) -> tuple[int, bytes]:
            async with session.post(f"http://{address}/act", data=body, headers=headers) as reply:
                return reply.status, await reply.read()

        _, first = await post(valid)
        right = msgpack_numpy.unpack(first)["actions"]
        share = [len(range(k, count, CONNECTIONS)) for k in range(CONNECTIONS)]

        async def by_post(number: int, rng: random.Random) -> None:
            for k in range(share[number]):
                status, text = await post(mutated(rng.choice(seeds), rng))
                how = {200: "answered", 400: "told what is wrong"}.get(status)
                _count(tally, how, f"status {status}: {text[:200]}")
                if k % VALID_EVERY == 0:
                    status, answer = await post(valid)
                    _check_answer(tally, right, answer if status == 200 else None)

        async def by_socket(number: int, rng: random.Random) -> None:
            async with session.ws_connect(f"ws://{address}/", max_msg_size=0) as socket:
                await socket.receive(300)
                for k in range(share[number]):
                    await socket.send_bytes(mutated(rng.choice(seeds), rng))
                    reply = await socket.receive(300)
                    told = isinstance(reply.data, str) and reply.data.startswith("error: ")
                    how = "told what is wrong" if told else "answered" if isinstance(reply.data, bytes) else None
                    _count(tally, None if told and "server failed" in reply.data else how, f"{reply}"[:200])
                    if k % VALID_EVERY == 0:
                        await socket.send_bytes(valid)
                        answer = (await socket.receive(300)).data
                        _check_answer(tally, right, answer if isinstance(answer, bytes) else None)

        async def progress() -> None:
            while tally.tried < count:
                await asyncio.sleep(5)
                workshop.log(f"{tally.tried} of {count} damaged messages")

        telling = asyncio.create_task(progress())
        await asyncio.gather(*((by_post, by_socket)[k % 2](k, random.Random(rng.random())) for k in range(CONNECTIONS)))
        telling.cancel()


def _check_answer(tally: Tally, right: np.ndarray, answer: bytes | None) -> None:
    """A valid message gets the actions that it got before: to rounding, which depends on what it is computed with."""
    from lapa_jax.serve import msgpack_numpy

    if answer is None:
        tally.ended("a valid message", ["got no answer"])
    elif not np.allclose(msgpack_numpy.unpack(answer)["actions"], right, rtol=1e-3, atol=1e-3):
        tally.ended("a valid message", ["got other actions"])


def _count(tally: Tally, how: str | None, otherwise: str) -> None:
    tally.ended(how or "neither answered nor told", [] if how else [otherwise])


def clients(workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """`count` valid clients alone, then beside a sixth as many hostile ones that send without pause what costs most."""
    hostile = -(-count // VALID_EACH)
    limits = "--pending", "512", "--rate", "1000000"
    with _serving(workshop, *limits, cores=attack_server.halves()[0]) as (process, address):
        pid = process.popen.pid
        with attack_server.attacking(pid, address, count, hostile, SECONDS, PERIOD) as (alone, attacked, outcomes):
            memory = peak_memory(pid)
            start = time.monotonic()
            process.popen.terminate()
            process.wait(60)
            stopped = time.monotonic() - start
    times, failed = attacked.times, attacked.failed
    before, after = (1000 * float(np.percentile(measured.times, 99)) for measured in (alone, attacked))
    if times:
        tally.ended("valid requests answered beside hostile clients", times=len(times))
    for _ in range(failed):
        tally.ended("a valid request", ["was not answered"])
    told = ", ".join(f"{name} {number}" for name, number in sorted(outcomes.items()))
    tally.figures += [f"{count} valid clients, {hostile} hostile ones", f"p99 alone {before:.0f} ms, attacked "
                      f"{after:.0f} ms ({after / before:.2f} times)",
                      f"the clients' own process late by {1000 * attacked.late:.0f} ms at most",
                      f"hostile ones: {told}",
                      f"{memory:.0f} MB at most", f"stopped {stopped:.1f} s after SIGTERM"]  # fmt: skip
    if after > 2 * before:
        tally.ended("p99", [f"{after:.0f} ms is more than twice {before:.0f} ms"])
    _check_end(process, tally)


@contextlib.contextmanager
def _serving(workshop: Workshop, *options: str, cores: Set[int] = frozenset()) -> Iterator[tuple[Process, str]]:
    """A server of the workshop's policy that is ready, and its address; ended by SIGTERM. cores: see `on_cores`."""
    command = script("launch/serve.py", "--run", workshop.policy, "--port", 0, "--rate", "1000000", *options)
    with attack_server.on_cores(cores):
        process = Process(command, workshop.environment, workshop.folder / "printed" / "serve.txt",
                          workshop.folder / "tmp" / "serve")  # fmt: skip
    if not process.until(lambda: "ready" in process.printed(), 300):
        raise UserError(f"the server did not start: {process.last_words()}")
    address = re.search(r"127\.0\.0\.1:\d+", process.printed())[0]
    try:
        yield process, address
    finally:
        process.popen.terminate()
        process.wait(60)


def _check_end(process: Process, tally: Tally) -> None:
    if process.popen.returncode:
        tally.ended("the end", [f"the server ended with {process.popen.returncode}: {process.last_words()}"])
    if alive := still_carrying(process.mark, 5.0):
        tally.ended("the end", [f"{len(alive)} process(es) of the server live on"])


KINDS = {"mutations": Kind(mutations, 10_000, 240), "clients": Kind(clients, 300, 90)}
