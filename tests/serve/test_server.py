"""A policy behind a socket: foreign clients' recorded messages, what is refused, batches, limits, tokens, stopping."""

import asyncio
import concurrent.futures
import gc
import http.client
import json
import os
import signal
import socket
import types

import aiohttp
import jax
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import images
from lapa_jax.inference.kinds import KINDS
from lapa_jax.inference.policies import Policy
from lapa_jax.serve import http as front
from lapa_jax.serve.limits import Limits, Rate, Refused
from lapa_jax.serve.run import serve
from lapa_jax.serve.service import Options, Service
from tests.serve import messages, served

CAMERAS = ("image", "image_wrist")


@pytest.fixture(scope="module")
def server():
    """Of one camera and no state."""
    with served.serving(served.policy(), Options(batch=4)) as found:
        yield found


@pytest.fixture(scope="module")
def rich():
    """Of two cameras and a state."""
    with served.serving(served.policy(CAMERAS, True), Options(batch=1)) as found:
        yield found


def package_message(**fields) -> bytes:
    """A message as the package msgpack-numpy writes it, by the package itself."""
    return msgpack.packb(fields, default=msgpack_numpy.encode)


@pytest.mark.parametrize("texts", [False, True])
def test_the_package_msgpack_numpy_is_understood(rich, server, texts):
    """Its own writer and reader; older versions of msgpack give keys as texts."""
    fields = {"image": messages.PICTURE, "prompt": messages.TEXT}
    names = lambda array: {key.decode(): value for key, value in msgpack_numpy.encode(array).items()}  # noqa: E731
    body = msgpack.packb(fields, default=names) if texts else package_message(**fields)
    _, plain, packaged = talk(server, messages.packed(**fields), body)
    expected = messages.read_msgpack(plain)["actions"]
    for hook in (None, msgpack_numpy.decode):
        np.testing.assert_array_equal(msgpack.unpackb(packaged, object_hook=hook)["actions"], expected)
    full = {"image": messages.PICTURE, "image_wrist": messages.WRIST, "prompt": messages.TEXT, "state": messages.STATE}
    numbers = full | {"state": [np.float64(value) for value in messages.STATE]}
    _, plain, packaged = talk(rich, messages.packed(**full), package_message(**numbers))
    np.testing.assert_array_equal(msgpack.unpackb(packaged)["actions"], messages.read_msgpack(plain)["actions"])


def test_the_package_msgpack_numpy_cannot_make_us_unpickle(server):
    """Its arrays of objects are pickles, and its structured types are lists."""
    objects = package_message(image=np.array([{}, {}], object), prompt="x")
    structured = package_message(image=np.zeros(3, [("a", "f4")]), prompt="x")
    for body in (objects, structured):
        status, _, data = ask(server, body=body, kind="application/msgpack")
        assert status == 400 and "kind" in data and "msgpack-numpy" in data


def talk(server, *sent, headers=None) -> list:
    """What comes back on one websocket for messages sent one after the other; the metadata first."""

    async def run():
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"ws://{server.address}/", headers=headers, max_msg_size=0) as socket:
                found = [(await socket.receive(300)).data]
                for message in sent:
                    await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
                    found.append((await socket.receive(300)).data)
                return found

    return asyncio.run(run())


def ask(server, path="/act", body=None, kind="application/json", **headers):
    """(status, headers, body) of a POST with a body, else of a GET."""
    connection = http.client.HTTPConnection(server.address, timeout=300)
    method = "GET" if body is None else "POST"
    connection.request(method, path, body, {"Content-Type": kind, **headers})
    answer = connection.getresponse()
    found = answer.status, answer.headers, answer.read().decode(errors="replace")
    connection.close()
    return found


def test_a_recorded_openpi_message_is_answered_as_openpi_does(rich):
    metadata, *replies = talk(rich, *2 * [messages.recorded("openpi.msgpack")])
    told = messages.read_msgpack(metadata)
    assert told["cameras"] == list(CAMERAS) and told["state_dim"] == 4 and told["chunk_length"] == 2
    assert told["datasets"]["table"]["action"]["names"] == ["x", "y", "gripper"] and told["step"] == 7
    picture = np.stack([images.resize(x, served.SIDE) for x in (messages.PICTURE, messages.WRIST)])
    expected = served.policy(CAMERAS, True).chunk(picture, messages.TEXT, messages.STATE)
    first, second = map(messages.read_msgpack, replies)
    for reply in (first, second):
        assert set(reply) == {"actions", "server_timing"} and reply["actions"].dtype == np.float32
        np.testing.assert_allclose(reply["actions"], expected, rtol=1e-5)
        timing = reply["server_timing"]
        assert timing["total_ms"] >= timing["infer_ms"] > 0 and timing["batch"] == 1
    assert "prev_total_ms" in second["server_timing"] and "prev_total_ms" not in first["server_timing"]


@pytest.mark.parametrize("name", ["openvla.json", "openvla_encoded.json"])
def test_a_recorded_openvla_message_is_answered_as_openvla_does(server, name):
    status, headers, text = ask(server, body=messages.recorded(name))
    assert status == 200 and headers["Content-Type"].startswith("application/json"), text
    # whoever encodes twice gets a text in JSON that holds JSON
    action = messages.read_json(json.loads(text)) if "encoded" in name else messages.read_json(text)
    expected = served.policy().act(images.resize(messages.PICTURE, served.SIDE), messages.TEXT)
    assert action.shape == (served.A,)
    np.testing.assert_allclose(action, expected, rtol=1e-5)
    assert {part.split(";")[0] for part in headers["Server-Timing"].split(", ")} == {"decode", "wait", "infer", "total"}


def test_a_recorded_openvla_oft_message_gets_a_list_of_actions(rich):
    status, _, text = ask(rich, body=messages.recorded("openvla_oft.json"))
    actions = messages.read_json(text)
    assert status == 200 and isinstance(actions, list) and len(actions) == served.T
    _, reply = talk(rich, messages.recorded("openpi.msgpack"))
    np.testing.assert_allclose(actions, messages.read_msgpack(reply)["actions"], rtol=1e-5)


def array(data=bytes(12), dtype="|u1", shape=(2, 2, 3), **more):
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape, **more}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"", "not valid msgpack"),
        (b"\xc1", "not valid msgpack"),
        (messages.recorded("openpi.msgpack")[:300], "not valid msgpack"),
        (messages.recorded("openpi.msgpack") + b"\x00", "not valid msgpack"),
        (b"\x91" * 3000, "not valid msgpack"),
        (b"\xdd\xff\xff\xff\xff", "not valid msgpack"),
        (b"\x93\x01\x02\x03", "a message is a list; a map is expected"),
        (b"\x80", "has no image"),
        ("{}", "messages are msgpack in binary frames"),
        (messages.packed(image=array(dtype="|O"), prompt="x"), "dtype is '|O'"),
        (messages.packed(image=array(dtype="<c8"), prompt="x"), "dtype is '<c8'"),
        (messages.packed(image=array(dtype=[["a", "<f4"]]), prompt="x"), "dtype is"),
        (messages.packed(image=array(shape=(2, 2, 4)), prompt="x"), "takes 16 bytes, the message holds 12"),
        (messages.packed(image=array(shape=(-1, 2, 3)), prompt="x"), "shape is [-1, 2, 3]"),
        (messages.packed(image=array(shape=(2**40, 0, 3), data=b""), prompt="x"), "shape is"),
        (messages.packed(image=array(data="abc"), prompt="x"), "bytes are expected"),
        (messages.packed(image={b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}, prompt="x"), "holds [1]"),
        (messages.packed(image=messages.PICTURE / 255, prompt="x"), "image is float64 (8, 10, 3); uint8 [H, W, 3]"),
        (messages.packed(image=messages.PICTURE.transpose(2, 0, 1), prompt="x"), "channels first"),
        (messages.packed(image=messages.PICTURE[None], prompt="x"), "uint8 [H, W, 3] is expected"),
        (messages.packed(image=messages.PICTURE[:0], prompt="x"), "uint8 [H, W, 3] is expected"),
        (messages.packed(image=np.zeros((1, 3000, 3), np.uint8), prompt="x"), "at most 2048 pixels"),
        (messages.packed(image=b"\xff\xd8\xff\xe0 not a picture", prompt="x"), "neither an array nor a whole JPEG"),
        (messages.packed(image=7, prompt="x"), "image is a int; uint8 [H, W, 3]"),
        (messages.packed(image=messages.PICTURE, prompt=None), "prompt is a NoneType; a text"),
        (messages.packed(image=messages.PICTURE, prompt="x" * 1001), "1001 characters; 1000 are allowed"),
        (messages.packed(image=messages.PICTURE, prompt="x" * 100), "101 tokens"),
        (messages.packed(image=messages.PICTURE, prompt="x", instruction="y"), "both mean instruction"),
        (messages.packed(image=messages.PICTURE, images={"image": messages.WRIST}, prompt="x"), "image is there twice"),
        (messages.packed(image=messages.PICTURE), "the message has no instruction; expected are image (as image or"),
        (messages.packed(image=messages.PICTURE, prompt="x", wrist=1), "nothing is known of the key 'wrist'; expected"),
        (messages.packed(image=messages.PICTURE, prompt="x", unnorm_key="tabel"), "this model was trained on: table"),
        (messages.packed(image=messages.PICTURE, prompt="x", dataset=3), "dataset is a int; a text"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_and_the_socket_goes_on(server, message, words):
    good = messages.packed(image=messages.PICTURE, prompt=messages.TEXT)
    _, told, answered = talk(server, message, good)
    assert isinstance(told, str) and told.startswith("error: ") and words in told and "\n" not in told
    assert messages.read_msgpack(answered)["actions"].shape == (served.T, served.A)


NUMPY = '{"__numpy__": "AAAA", "dtype": "|u1", "shape": [1, 1, 3]}'


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "at most 16,384 values"),
        (b"[" * 16_000, "not valid JSON (it nests too deeply)"),
        (b'{"image": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"null", "a map is expected"),
        (b'{"encoded": 3}', "JSON as a text is expected"),
        (b'{"encoded": "{"}', "not valid JSON"),
        (b'{"encoded": "{\\"encoded\\": \\"{}\\"}"}', "nothing is known of the key 'encoded'"),
        (NUMPY.replace("AAAA", "A!AA").encode(), "not valid JSON"),
        (NUMPY.replace("|u1", "|O").encode(), "dtype is '|O'"),
        (NUMPY.replace("[1, 1, 3]", "[1, 1, 4]").encode(), "takes 4 bytes"),
        (NUMPY.replace("[1, 1, 3]", "[true, 1, 3]").encode(), "shape is"),
        (NUMPY.encode(), "a message is a ndarray"),
        (b'{"image": "error", "instruction": "x"}', "image is a str"),
        (f'{{"image": {NUMPY}, "instruction": "\\ud800"}}'.encode(), "half a character"),
    ],
)
def test_wrong_json_is_told_with_a_status(server, body, words):
    status, _, text = ask(server, body=body)
    assert status == 400 and words in json.loads(text)["error"]
    assert ask(server, body=messages.recorded("openvla.json"))[0] == 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": None}, "a NoneType; a row of numbers"),
        ({"state": messages.STATE[:3]}, "the last of 4"),
        ({"state": [1, 2, "3", 4]}, "a row of numbers"),
        ({"state": messages.STATE[None]}, "a row of numbers"),
        ({"state": np.array([0, 1, np.nan, 2])}, "not finite"),
        ({"state": [1e301, 0, 0, 0]}, "a row of numbers"),
    ],
)
def test_wrong_states_are_told(rich, change, words):
    sent = {"image": messages.PICTURE, "wrist_image": messages.WRIST, "prompt": "x"} | change
    _, told = talk(rich, messages.packed(**sent))
    assert isinstance(told, str) and words in told


def test_cameras_by_name_states_in_parts_and_what_is_left_out():
    policy = served.policy(CAMERAS, True)
    renamed = (("observation/front", "image"), ("arm", "state"), ("hand", "state"), ("extra", "nothing"))
    service = Service(policy, "runs/x", Options(renamed=renamed))
    sent = {"observation/front": messages.PICTURE, "image_wrist": messages.WRIST, "hand": 2.0,
            "arm": messages.STATE[:3], "extra": [1], "prompt": messages.TEXT}  # fmt: skip
    plain = {"images": {"image": messages.PICTURE, "wrist_image": messages.WRIST}, "state": messages.STATE.tolist(),
             "instruction": messages.TEXT}  # fmt: skip
    read = [service.observation(service.reader.read(message)).batch for message in (sent, plain)]
    for name, values in read[0].items():
        np.testing.assert_array_equal(values, read[1][name])
    wanted = policy.prepare(np.stack([images.resize(x, served.SIDE) for x in (messages.PICTURE, messages.WRIST)]),
                            messages.TEXT, messages.STATE)[0]  # fmt: skip
    np.testing.assert_array_equal(read[0]["image"], wanted["image"])
    np.testing.assert_allclose(read[0]["state"], wanted["state"], rtol=1e-6)
    with pytest.raises(UserError, match="the state is arm, hand; the message has arm only"):
        service.reader.read({name: value for name, value in sent.items() if name != "hand"})
    assert service.metadata["keys"]["state"] == ["state", "observation/state", "arm", "hand"]
    service.close()
    with pytest.raises(UserError, match="did you mean 'image_wrist'"):
        Service(policy, "runs/x", Options(renamed=(("w", "imagewrist"),)))


def test_a_jpeg_is_decoded_and_large_ones_are_not(server):
    picture = np.full((40, 60, 3), 90, np.uint8)
    for sent, words in ((images.encode(picture), None), (images.encode(np.zeros((16, 4096, 3), np.uint8)), "2048")):
        _, reply = talk(server, messages.packed(image=sent, prompt="x"))
        if words is None:
            expected = served.policy().chunk(images.decode(sent), "x")
            np.testing.assert_allclose(messages.read_msgpack(reply)["actions"], expected, rtol=1e-5)
        else:
            assert words in reply


def test_200_clients_at_once_get_each_its_own_answer(server):
    pictures = [served.picture(k) for k in range(200)]

    async def client(session, picture):
        async with session.ws_connect(f"ws://{server.address}/") as socket:
            await socket.receive(300)
            found = []
            for _ in range(2):
                await socket.send_bytes(messages.packed(image=picture, prompt="x"))
                found.append(messages.read_msgpack((await socket.receive(300)).data))
            return found

    async def run():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.gather(*(client(session, picture) for picture in pictures))

    found, policy = asyncio.run(run()), served.policy()
    small = np.stack([images.resize(picture, served.SIDE) for picture in pictures])
    expected = np.concatenate([policy.chunk(small[k : k + 4], "x") for k in range(0, 200, 4)])
    actions = np.array([[reply["actions"] for reply in replies] for replies in found])
    np.testing.assert_allclose(actions, np.stack([expected, expected], 1), rtol=1e-3, atol=1e-3)
    assert np.ptp(expected[:, 0], axis=0).max() > 0.1, "they differ"
    assert {reply["server_timing"]["batch"] for replies in found for reply in replies} <= {1, 2, 3, 4}
    assert max(reply["server_timing"]["batch"] for replies in found for reply in replies) > 1


def test_data_sets_never_share_a_batch():
    policy = served.policy(datasets=("table", "shelf"))
    with served.serving(policy, Options(batch=2, wait=0.2)) as server:

        def one(k):
            dataset = ("table", "shelf")[k % 2]
            body = messages.packed(image=messages.PICTURE, prompt="x", dataset=dataset)
            return dataset, talk(server, body)[1]

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            found = list(pool.map(one, range(6)))
        for dataset, reply in found:
            expected = policy.chunk(images.resize(messages.PICTURE, served.SIDE), "x", dataset=dataset)
            np.testing.assert_allclose(messages.read_msgpack(reply)["actions"], expected, rtol=1e-4)
        _, told = talk(server, messages.packed(image=messages.PICTURE, prompt="x"))
        assert "several datasets" in told


def test_the_token_is_asked_for_everywhere_but_for_health():
    with served.serving(served.policy(), token="secret", ready=False) as server:
        body = messages.recorded("openvla.json")
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"},
                      {"Authorization": "Basic secret"}, {"Authorization": "Bearer s\xe9cret"}):  # fmt: skip
            status, headers, text = ask(server, body=body, **given)
            assert status == 401 and "token" in json.loads(text)["error"] and headers["WWW-Authenticate"] == "Bearer"
            assert ask(server, "/metadata", **given)[0] == 401
        with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
            talk(server)
        assert ask(server, "/healthz")[0] == 200 and ask(server, "/readyz")[0] == 503
        for kind in ("Bearer", "bearer", "Api-Key"):  # the last is what openpi's client sends
            assert ask(server, "/metadata", Authorization=f"{kind} secret")[0] == 200


def test_it_is_alive_before_it_is_ready_and_metadata_wait():
    with served.serving(served.policy(), Options(batch=1), ready=False) as server:
        assert ask(server, "/healthz")[::2] == (200, "OK\n")
        assert ask(server, "/readyz")[::2] == (503, "compiling\n")
        status, headers, text = ask(server, body=messages.recorded("openvla.json"))
        assert status == 503 and "compiling" in text and headers["Retry-After"]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            early = pool.submit(talk, server, messages.packed(image=messages.PICTURE, prompt="x"))
            assert not early.done()
            assert server.call(server.service.compile()) == [1]
            assert isinstance(early.result()[1], bytes)
        assert ask(server, "/readyz")[::2] == (200, "ready\n")


def test_what_is_in_flight_is_answered_before_it_stops():
    with served.serving(served.policy(), Options(batch=4, wait=1.0)) as server:
        message = messages.packed(image=messages.PICTURE, prompt="x")

        async def wait_for(count):
            while server.service.room.places < count:
                await asyncio.sleep(0.01)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(talk, server, message),
                     pool.submit(ask, server, body=messages.recorded("openvla.json"))]  # fmt: skip
            server.call(wait_for(2))
            server.stop()
            assert isinstance(asked[0].result()[1], bytes) and asked[1].result()[0] == 200
        with pytest.raises(OSError):
            ask(server, "/healthz")


def test_limits_of_size_and_rate():
    with served.serving(served.policy(), Options(batch=1, limits=Limits(message_bytes=2000))) as server:
        status, _, text = ask(server, body=bytes(5000))
        assert status == 413 and "larger than 2000 bytes" in text

        async def too_large():
            async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://{server.address}/") as socket:
                await socket.receive(300)
                await socket.send_bytes(bytes(5000))
                return await socket.receive(300), socket.close_code

        assert asyncio.run(too_large())[1] == 1009
    with served.serving(served.policy(), Options(batch=1, limits=Limits(rate=0.001))) as server:
        assert ask(server, body=messages.recorded("openvla.json"))[0] == 200
        status, headers, text = ask(server, body=messages.recorded("openvla.json"))
        assert status == 429 and "127.0.0.1" in text and headers["Retry-After"]
        _, told = talk(server, messages.packed(image=messages.PICTURE, prompt="x"))
        assert "ask less often" in told
        assert ask(server, "/nowhere")[0] == 404 and ask(server, "/act")[0] == 405
    with pytest.raises(UserError, match="rate is 0"):
        Limits(rate=0)


def begun(server, length: int, path: str = "/act") -> socket.socket:
    """A connection that has sent the headers of a POST, and nothing of the body of `length` bytes."""
    host, port = server.address.split(":")
    found = socket.create_connection((host, int(port)), timeout=60)
    found.sendall(f"POST {path} HTTP/1.1\r\nHost: {server.address}\r\nContent-Length: {length}\r\n\r\n".encode())
    return found


def test_a_request_is_refused_before_its_body_is_read():
    with served.serving(served.policy(), Options(batch=1, limits=Limits(rate=0.001))) as server:
        assert ask(server, body=messages.recorded("openvla.json"))[0] == 200
        with begun(server, 10**6) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 429 ")


def test_a_body_that_never_arrives_gives_its_place_back(monkeypatch):
    monkeypatch.setattr(front, "BODY", 1.0)
    with served.serving(served.policy(), Options(batch=1, limits=Limits(pending=1))) as server:
        with begun(server, 1000) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert ask(server, body=messages.recorded("openvla.json"))[0] == 200


def test_no_more_websockets_are_open_than_allowed():
    message = messages.packed(image=messages.PICTURE, prompt="x")
    with served.serving(served.policy(), Options(batch=1, limits=Limits(sockets=1))) as server:

        async def second():
            async with aiohttp.ClientSession() as session, session.ws_connect(f"ws://{server.address}/") as first:
                await first.receive(300)
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    await session.ws_connect(f"ws://{server.address}/")
                await first.send_bytes(message)
                return (await first.receive(300)).data

        assert isinstance(asyncio.run(second()), bytes)
        assert ask(server, body=messages.recorded("openvla.json"))[0] == 200  # HTTP has its own limit


def test_the_rate_is_a_bucket_for_each_address():
    now = [0.0]
    rate = Rate(2.0, clock=lambda: now[0])
    for _ in range(4):
        rate.count("a")
    with pytest.raises(Refused, match="more than 2 requests a second from a"):
        rate.count("a")
    rate.count("b")
    now[0] = 0.5
    rate.count("a")
    with pytest.raises(Refused):
        rate.count("a")
    now[0] = 100.0
    for _ in range(4):
        rate.count("a")
    with pytest.raises(Refused):
        rate.count("a")


def test_pages_of_other_sites_cannot_move_the_robot():
    with served.serving(served.policy(), Options(batch=4)) as server:
        body = messages.recorded("openvla.json")
        for origin in ("https://somewhere.example", "null", f"http://{server.address}.somewhere.example"):
            status, _, text = ask(server, body=body, Origin=origin)
            assert status == 403 and "another site" in json.loads(text)["error"]
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                talk(server, messages.packed(image=messages.PICTURE, prompt="x"), headers={"Origin": origin})
        assert ask(server, body=body, Origin=f"http://{server.address}")[0] == 200


def test_no_more_requests_are_open_than_allowed():
    with served.serving(served.policy(), Options(batch=4, wait=1.0, limits=Limits(pending=2))) as server:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, server, body=messages.recorded("openvla.json")) for _ in range(4)]
            found = sorted(future.result()[0] for future in asked)
        assert found == [200, 200, 503, 503]


def test_only_policies_that_act_are_served():
    with pytest.raises(UserError, match="runs/x holds a stage-2 policy, which gives codes and no actions"):
        Service(types.SimpleNamespace(kind=KINDS["latent_policy"]), "runs/x")
    with pytest.raises(UserError, match="does not act on images and instructions"):
        Service(types.SimpleNamespace(kind=KINDS["action_tokenizer"]), "runs/x")
    with pytest.raises(UserError, match="at least 1"):
        Options(batch=0)


def test_actions_that_are_not_finite_are_never_sent():
    good = served.policy()
    broken = Policy(good.model, jax.tree.map(lambda leaf: leaf * np.nan, good.variables), config=good.config,
                    datasets=good.datasets, devices=jax.devices()[:1])  # fmt: skip
    with served.serving(broken, Options(batch=1)) as server:
        status, _, text = ask(server, body=messages.recorded("openvla.json"))
        assert status == 500 and "FloatingPointError" in text


def test_what_is_loaded_when_it_is_ready_is_no_longer_looked_through_for_garbage():
    kept = []

    def say(line):
        if line.startswith("ready"):
            kept.append(gc.get_freeze_count())
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        before = gc.get_freeze_count()
        serve(lambda: Service(served.policy(), "runs/small", Options(batch=1)), "127.0.0.1", 0, None, say)
    finally:
        gc.unfreeze()
    assert kept[0] - before > 100_000, "each search stops all threads for as long as it takes"
