"""Messages made to cost a server time or memory: refused in words, while valid clients get their answers."""

import asyncio
import concurrent.futures
import logging
import socket
import struct
import time
import types

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.core import remarks, web
from lapa_jax.data import images
from lapa_jax.serve import decoding, http, limits, msgpack_numpy
from lapa_jax.serve.limits import Limits
from lapa_jax.serve.service import Options
from tests.serve import messages, served
from tests.serve.test_server import ask, begun, talk
from tools.attack_server import hostile_messages


@pytest.fixture(scope="module")
def server():
    with served.serving(served.policy(), Options(batch=4, limits=Limits(rate=1e6))) as started:
        yield started


REFUSALS = {
    "1,000 scans": "image is a JPEG of 1,000 scans; at most 32 are allowed",
    "32 scans": "neither an array nor a whole JPEG",  # known when all of them are read
    "PNG of 12,000": "neither an array nor a whole JPEG",
    "JSON lists": "holds 5,242,882 times [",
    "JSON depth": "holds 15,728,640 times [",
    "JSON depth, below the limits": "it nests too deeply",
    "JSON text": "the message has no image",
    "JSON digits": "nothing is known of",
    "msgpack lists": "more than 16,384 values",
    "compressed": "the body is compressed",
    "nothing": "not valid msgpack",
}
"""What is told to those hostile messages that are refused; the others are dear, but valid."""


def test_each_is_refused_in_words_and_soon(server):
    """Before, several took 5 to 20 s, in which nobody else was answered."""
    worst = hostile_messages(server.service.metadata)
    assert set(REFUSALS) < set(worst)
    for name, (body, headers) in worst.items():
        start = time.perf_counter()
        kind = headers.get("Content-Type", "application/json")
        status, _, text = ask(server, body=body, kind=kind, **headers)
        seconds = time.perf_counter() - start
        if name in REFUSALS:
            assert status in (400, 415) and (REFUSALS[name] in text or name == "JSON digits"), (name, text)
        else:
            assert status == 200, (name, text)
        assert seconds < 5, (name, seconds)


def test_others_are_answered_meanwhile(server):
    """A large message of 32 scans is read in another process; small ones do not wait for it."""
    body, headers = hostile_messages(server.service.metadata)["32 scans"]
    ask(server, body=body, kind=headers["Content-Type"])  # the process is started
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        hostile = [pool.submit(ask, server, body=body, kind=headers["Content-Type"]) for _ in range(4)]
        answered = 0
        while not all(future.done() for future in hostile):
            assert ask(server, body=messages.recorded("openvla.json"))[0] == 200
            answered += 1
        assert [future.result()[0] for future in hostile] == [400] * 4
    assert answered > 8, "many times as many small ones are answered as large ones"


def test_what_a_process_reads_is_what_the_thread_reads(server):
    """The same image as a large array and as a large JPEG, over msgpack, against the policy itself."""
    picture = np.kron(served.picture(3, 20, 30), np.ones((60, 60, 1), np.uint8))
    expected = served.policy().chunk(images.resize(picture, served.SIDE), "go")
    (reply,) = talk(server, messages.packed(image=picture, prompt="go"))[1:]
    np.testing.assert_allclose(messages.read_msgpack(reply)["actions"], expected, rtol=1e-3, atol=1e-3)
    body = msgpack_numpy.to_json({"image": picture, "instruction": "go"}).encode()
    assert len(body) > decoding.LIGHT_BYTES
    status, _, text = ask(server, body=body)
    assert status == 200
    np.testing.assert_allclose(messages.read_json(text), expected[0], rtol=1e-3, atol=1e-3)
    (told,) = talk(server, messages.packed(image=picture.astype(np.float32)[:900, :1200], prompt="go"))[1:]
    assert "float32" in told, "refusals come back from the process"


def test_a_process_that_takes_too_long_or_dies_is_replaced(server, monkeypatch):
    body = msgpack_numpy.to_json({"image": np.zeros((900, 1200, 3), np.uint8), "instruction": "go"})
    large = lambda: ask(server, body=body)[::2]  # noqa: E731
    assert large()[0] == 200
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "SECONDS", 0.01)
        status, text = large()
        assert status == 400 and "took more than 0.01 s" in text
    assert large()[0] == 200
    (process,) = server.service._decoding._processes
    process._process.kill()
    process._process.wait()
    assert large()[0] == 200


def unfinished(server, size: int, sent: int, host: str = "localhost") -> socket.socket:
    """A websocket that has sent a part of a binary frame."""
    name, port = server.address.split(":")
    connection = socket.create_connection((name, int(port)), timeout=30)
    connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                       "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                       .encode())  # fmt: skip
    connection.sendall(b"\x82\xff" + struct.pack(">Q", size) + bytes(4) + bytes(sent))
    return connection


def wait_until(condition) -> None:
    """Waits for what happens in the server's thread."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_told(connection: socket.socket, words: bytes) -> bool:
    """Whether these words come before the server closes."""
    data = b""
    while words not in data and (part := connection.recv(2**16)):
        data += part
    return words in data


def test_unfinished_messages_of_websockets_are_counted(monkeypatch):
    """40 of them took 600 MB before."""
    monkeypatch.setattr(http, "CLOSING", 30.0)  # the client is slow here, and should hear why
    limits = Limits(held_bytes=40 * 2**20)
    with served.serving(served.policy(), Options(batch=1, limits=limits)) as server:
        room, size = server.service.room, 15 * 2**20
        with unfinished(server, size, size - 1), unfinished(server, size, size - 1):
            wait_until(lambda: room.bytes > 27 * 2**20)
            assert room.places == 2
            with unfinished(server, size, size - 1) as third:
                assert is_told(third, b"large messages hold 40 MiB already")
            # Small messages always find room.
            assert ask(server, body=messages.recorded("openvla.json"))[0] == 200
            with begun(server, size) as connection:
                with pytest.raises(OSError):
                    while True:
                        connection.sendall(bytes(2**20))
        wait_until(lambda: (room.places, room.bytes) == (0, 0))  # what went away gives its place back


def test_unfinished_messages_take_the_places_of_requests():
    with served.serving(served.policy(), Options(batch=1, limits=Limits(pending=1))) as server:
        with unfinished(server, 10**6, 5 * 10**5):
            wait_until(lambda: server.service.room.places)
            assert ask(server, body=messages.recorded("openvla.json"))[0] == 503
        wait_until(lambda: not server.service.room.places)
        assert ask(server, body=messages.recorded("openvla.json"))[0] == 200


def test_a_message_that_never_ends_is_closed(monkeypatch):
    monkeypatch.setattr(http, "BODY", 0.3)
    with served.serving(served.policy(), Options(batch=1)) as server:
        with unfinished(server, 10**6, 5 * 10**5) as connection:
            assert is_told(connection, b"did not arrive within 0.3 s")
            assert not server.service.room.places


def test_large_messages_on_one_socket_do_not_add_up(server):
    """Each is counted while it arrives and while it is answered, and given back."""
    large = messages.packed(image=np.zeros((1000, 1500, 3), np.uint8), prompt="go")
    replies = talk(server, *[large] * 5, messages.packed(image=messages.PICTURE, prompt="x"))
    assert all(isinstance(reply, bytes) for reply in replies)
    assert (server.service.room.places, server.service.room.bytes) == (0, 0)


def test_large_messages_are_read_in_turns_and_an_only_one_is_not():
    """Ten that were read as fast as they came made others wait ten times as long."""
    room = limits.Room(Limits())
    with room.place() as only, room.place() as small:
        only.hold(limits.FREE + 1)
        small.hold(limits.FREE)
        assert room.large == 1
        assert seconds_of(only.turn(2**30), small.turn(2**30)) < 10  # of 16, if it took its turn
        with room.place() as second:
            second.hold(2 * limits.FREE)
            assert room.large == 2
            # One behind the other, and small ones beside them.
            size = limits.SHARED_RATE // 50
            seconds = seconds_of(only.turn(size), second.turn(size), only.turn(size), small.turn(2**30))
            assert 0.055 <= seconds < 10
        assert room.large == 1
    assert (room.places, room.large, room.bytes) == (0, 0, 0)


def seconds_of(*turns) -> float:
    async def all_of_them():
        await asyncio.gather(*turns)

    start = time.perf_counter()
    asyncio.run(all_of_them())
    return time.perf_counter() - start


@pytest.mark.parametrize("path", ["/act", "/nowhere"])
def test_who_sends_all_before_it_reads_hears_why_it_is_refused(server, path):
    """Closed at once, the connection would break while the client still sends."""
    size = 24 * 2**20
    with begun(server, size, path) as connection:
        for _ in range(size // 2**20):
            connection.sendall(bytes(2**20))
        assert is_told(connection, b"larger than 16777216 bytes" if path == "/act" else b"Not Found")


def test_who_is_refused_and_sends_nothing_more_hears_it_soon(server):
    with begun(server, 40 * 2**20) as connection:
        connection.settimeout(8)  # beside it, what is left of a body may take 10 s
        assert is_told(connection, b"larger than 16777216 bytes")


def test_it_stops_soon_while_large_messages_wait():
    """A stop waited 111 s for such an image before."""
    with served.serving(served.policy(), Options(batch=1)) as server:
        body, headers = hostile_messages(server.service.metadata)["32 scans"]
        ask(server, body=body, kind=headers["Content-Type"])
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            hostile = [pool.submit(ask, server, body=body, kind=headers["Content-Type"]) for _ in range(12)]
            wait_until(lambda: server.service.room.places == 12)
            start = time.perf_counter()
            server.stop()
            assert time.perf_counter() - start < 5
            assert {future.result()[0] for future in hostile} <= {400, 503}
    assert not any(process._thread.is_alive() for process in server.service._decoding._processes)


@pytest.mark.parametrize("name", ["attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example:80"])
def test_other_names_for_this_machine_are_refused(server, name):
    """A page of attacker.example whose name then resolves to 127.0.0.1 has this server as its own site."""
    status, _, text = ask(server, body=messages.recorded("openvla.json"), Host=name, Origin=f"http://{name}")
    assert status == 403 and "is not called" in text
    assert ask(server, "/metadata", Host=name)[0] == 403
    with unfinished(server, 10, 0, host=name) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize("name", ["localhost:8000", "LOCALHOST", "a.localhost", "127.0.0.1", "[::1]:8000", "10.0.0.7"])
def test_own_names_and_addresses_are_answered(server, name):
    assert ask(server, "/metadata", Host=name)[0] == 200


def test_further_names_can_be_allowed():
    with served.serving(served.policy(), ready=False) as server:
        application = http.application(server.service, hosts=["Robot.lab"])
        assert application is not None
    front = http.Front(server.service, None, ["Robot.lab"])
    asked = lambda name: types.SimpleNamespace(headers={"Host": f"{name}:8000"})  # noqa: E731
    assert web.foreign_name(asked("robot.lab"), front._hosts) is None
    assert web.foreign_name(asked("Other.lab"), front._hosts) == "other.lab"


def test_mistakes_are_one_line_of_the_log(server, caplog):
    """No traceback, and nothing that a terminal would take for a command."""
    with caplog.at_level(logging.DEBUG):
        ask(server, body=b'{"\\u001b[2J\\n": 1}')
        talk(server, b"\xc1")
        name, port = server.address.split(":")
        with socket.create_connection((name, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /\x1b[2J HTTP/9.9\r\nA\x00: b\r\n\r\n")
            connection.recv(1000)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("lapa_jax.serve")]
    assert len(lines) == 3 and all(record.exc_info is None for record in caplog.records)
    assert lines[0].startswith("refused a message of 127.0.0.1: nothing is known of the key")
    assert all(line.isprintable() for line in lines)


def test_strangers_do_not_write_the_log(caplog):
    with served.serving(served.policy(), Options(batch=1), token="secret") as server, caplog.at_level(logging.DEBUG):
        assert ask(server, body=b"[[[[")[0] == 401
        name, port = server.address.split(":")
        with socket.create_connection((name, int(port)), timeout=30) as connection:
            connection.sendall(b"\x00\x01\r\n\r\n")
            connection.recv(1000)
        assert not [record for record in caplog.records if record.name.startswith("lapa_jax.serve")]
        assert ask(server, body=b"[[[[", Authorization="Bearer secret")[0] == 400
        assert [record for record in caplog.records if record.name.startswith("lapa_jax.serve")]


def test_the_log_is_not_flooded(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(remarks, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    lines = remarks.Remarks(logging.getLogger("lapa_jax.serve.flood"))
    for number in range(60):
        lines.say(f"line {number}")
    now[0] = 101.0
    lines.say("another")
    said = [record.getMessage() for record in caplog.records]
    assert said == [*(f"line {number}" for number in range(10)), "50 more of such lines", "another"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=40), inner, max_size=40),
    max_leaves=60,
)


def count(value) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + count(inner) for inner in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@given(values)
def test_values_are_counted_as_they_are(value):
    """Against the package's own writer: exactly so many pass, and one less does not."""
    data = msgpack.packb(value)
    before = msgpack_numpy.MAX_VALUES
    try:
        msgpack_numpy.MAX_VALUES = count(value)
        msgpack_numpy._check_count(data)
        msgpack_numpy.MAX_VALUES -= 1
        with pytest.raises(msgpack_numpy.WireError, match="more than"):
            msgpack_numpy._check_count(data)
    finally:
        msgpack_numpy.MAX_VALUES = before


@given(st.binary(max_size=300))
def test_counting_any_bytes_ends(data):
    msgpack_numpy._check_count(data)
