"""Our client: without jax, against a real server; what it says when something is wrong; connections that break."""

import copy
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.inference.ensemble import Ensemble
from lapa_jax.serve.client import Client, ServerError
from lapa_jax.serve.limits import Limits
from lapa_jax.serve.service import Options
from tests.serve import served

CAMERAS = ("image", "image_wrist")


@pytest.fixture(scope="module")
def server():
    with served.serving(served.policy(CAMERAS, True), Options(batch=1), token="secret") as found:
        yield found


@pytest.fixture
def client(server):
    with Client(server.address, token="secret", timeout=300) as found:
        yield found


def observation(seed: int = 0):
    """What the client sends, and the same as the policy takes it."""
    pictures = {name: served.picture(seed + k) for k, name in enumerate(CAMERAS)}
    small = np.stack([images.resize(picture, served.SIDE) for picture in pictures.values()])
    return pictures, small, np.arange(4.0) - seed


def test_its_actions_are_the_policys(client):
    client.wait()
    pictures, small, state = observation()
    policy = served.policy(CAMERAS, True)
    np.testing.assert_allclose(client.chunk(pictures, "push", state), policy.chunk(small, "push", state), rtol=1e-5)
    np.testing.assert_allclose(client.act(pictures, "push", state), policy.act(small, "push", state), rtol=1e-5)
    client.chunk(pictures, "push", state)[:, 0] *= 2  # its reader may change it, as the policy's own
    assert client.timing["round_trip_ms"] >= client.timing["total_ms"] > 0
    assert client.metadata["cameras"] == list(CAMERAS) and client.metadata["datasets"]["table"]["fps"] == 5.0


def test_ensembling_is_the_same_on_either_side(client):
    ensembles = Ensemble(client), Ensemble(served.policy(CAMERAS, True))
    for seed in range(3):
        pictures, small, state = observation(seed)
        here, there = ensembles[0].act(pictures, "go", state), ensembles[1].act(small, "go", state)
        np.testing.assert_allclose(here, there, rtol=1e-5)


def test_what_the_server_refuses_it_raises(client, server):
    pictures, _, state = observation()
    with pytest.raises(UserError, match="image_wrist has shape"):
        client.act({**pictures, "image_wrist": pictures["image"].transpose(2, 0, 1)}, "push", state)
    with pytest.raises(UserError, match="the message has no image_wrist"):
        client.act(pictures["image"], "push", state)
    with pytest.raises(UserError, match="larger than 16777216 bytes"):
        client.act({**pictures, "image": np.zeros((2048, 3000, 3), np.uint8)}, "push", state)
    assert client.act(pictures, "push", state).shape == (served.A,), "the next answer comes"
    with pytest.raises(ServerError, match="a token is needed.*status 401"), Client(server.address) as stranger:
        stranger.act(pictures, "push", state)


def test_an_empty_instruction_is_refused_where_the_policy_needs_one(client):
    """A variable that was never set, say; the policy would do anything."""
    pictures, _, state = observation()
    for empty in ("", " \n"):
        with pytest.raises(UserError, match="instruction is empty, and this policy was trained with instructions"):
            client.act(pictures, empty, state)
    assert client.act(pictures, "push", state).shape == (served.A,)
    policy = served.policy(CAMERAS, True)
    config = policy.config.copy_and_resolve_references()
    config.data.fields = ("image", "action", "state")
    silent = copy.copy(policy)
    silent.config = config
    with served.serving(silent, Options(batch=1)) as found, Client(found.address, timeout=300) as other:
        assert other.act(pictures, "", state).shape == (served.A,)


def test_a_connection_that_broke_is_made_again(client):
    pictures, _, state = observation()
    first = client.act(pictures, "push", state)
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    np.testing.assert_array_equal(client.act(pictures, "push", state), first)


def test_a_server_that_is_away_or_silent_is_told():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError, match=f"{address} did not answer within 0.2 s"):
            Client(address, timeout=0.2).act(served.picture(), "x")
        silent.settimeout(30)
        closing = threading.Thread(target=lambda: [silent.accept()[0].close() for _ in range(2)])
        closing.start()
        with pytest.raises(ConnectionError, match="without an answer"):
            Client(address, timeout=30).act(served.picture(), "x")
        closing.join()
    with pytest.raises(ConnectionError, match="cannot be reached.*does launch/serve.py run"):
        Client(address).act(served.picture(), "x")
    with pytest.raises(TimeoutError, match="was not ready within 0.1 s"):
        Client(address).wait(0.1)
    for address in ("ftp://somewhere", "robot:99999", "http://[::1"):
        with pytest.raises(UserError, match="is no address of a server"):
            Client(address)


def test_too_many_requests_are_a_status():
    options = Options(batch=1, limits=Limits(rate=0.001))
    with served.serving(served.policy(CAMERAS, True), options) as server, Client(server.address, timeout=300) as client:
        pictures, _, state = observation()
        client.act(pictures, "push", state)
        with pytest.raises(ServerError, match="ask less often") as told:
            client.act(pictures, "push", state)
        assert told.value.status == 429


PROGRAM = """
import sys
import numpy as np
from lapa_jax.serve.client import Client
from lapa_jax.inference.ensemble import Ensemble
with Client(sys.argv[1], token="secret", timeout=300) as client:
    pictures = {name: np.zeros((8, 8, 3), np.uint8) for name in client.metadata["cameras"]}
    print(Ensemble(client).act(pictures, "push", np.zeros(4)).shape)
print(sorted({"jax", "flax", "aiohttp", "websockets", "PIL", "orbax", "scipy"} & set(sys.modules)))
"""


def test_it_needs_no_jax(server, root):
    done = subprocess.run([sys.executable, "-c", PROGRAM, server.address], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["(3,)", "[]"], done.stderr
