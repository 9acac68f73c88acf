"""10,000 damaged messages over the sockets of a real server: each is answered, none by an internal error, and valid
requests between them get the right actions."""

import asyncio
import collections
import random

import aiohttp
import numpy as np
import pytest

from lapa_jax.data import images
from lapa_jax.serve.limits import Limits
from lapa_jax.serve.service import Options
from tests.serve import messages, served
from tools.torture.mutations import mutated

COUNT, CONNECTIONS, VALID_EVERY = 10_000, 20, 50


@pytest.fixture(scope="module")
def server():
    with served.serving(served.policy(), Options(batch=4, limits=Limits(rate=1e6))) as found:
        yield found


def seeds() -> tuple[list[bytes], list[bytes]]:
    """Valid messages in msgpack and in JSON."""
    jpeg = images.encode(messages.PICTURE)
    packed = [messages.packed(**{"observation/image": messages.PICTURE, "prompt": messages.TEXT}),
              messages.packed(image={"image": messages.PICTURE}, instruction=messages.TEXT, dataset="table"),
              messages.packed(image=jpeg, instruction=messages.TEXT, state=[0.0, 1.0])]  # fmt: skip
    return packed, [messages.recorded("openvla.json"), messages.recorded("openvla_encoded.json")]


def test_10000_mutated_requests_leave_it_answering(server):
    packed, json = seeds()
    expected = served.policy().chunk(images.resize(messages.PICTURE, served.SIDE), messages.TEXT)
    outcomes: collections.Counter = collections.Counter()

    async def by_socket(session, rng):
        async with session.ws_connect(f"ws://{server.address}/") as socket:
            await socket.receive(300)
            for number in range(COUNT // CONNECTIONS):
                await socket.send_bytes(mutated(rng.choice(packed), rng))
                reply = await socket.receive(300)
                told = reply.type == aiohttp.WSMsgType.TEXT
                assert told or reply.type == aiohttp.WSMsgType.BINARY, reply
                assert not told or (reply.data.startswith("error: ") and "server failed" not in reply.data), reply.data
                outcomes["told" if told else "answered"] += 1
                if number % VALID_EVERY == 0:
                    await socket.send_bytes(packed[0])
                    found = messages.read_msgpack((await socket.receive(300)).data)["actions"]
                    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)

    async def by_post(session, rng):
        for number in range(COUNT // CONNECTIONS):
            async with session.post(f"http://{server.address}/act", data=mutated(rng.choice(json), rng)) as reply:
                assert reply.status in (200, 400), await reply.text()
                outcomes["answered" if reply.status == 200 else "told"] += 1
            if number % VALID_EVERY == 0:
                async with session.post(f"http://{server.address}/act", data=json[0]) as reply:
                    found = messages.read_json(await reply.text())
                    np.testing.assert_allclose(found, expected[0], rtol=1e-3, atol=1e-3)

    async def run():
        kind = lambda k: by_socket if k % 2 else by_post  # noqa: E731
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(kind(k)(session, random.Random(k)) for k in range(CONNECTIONS)))
            async with session.get(f"http://{server.address}/readyz") as reply:
                assert reply.status == 200

    asyncio.run(run())
    assert outcomes.total() == COUNT
    assert min(outcomes.values()) > COUNT // 20, outcomes
