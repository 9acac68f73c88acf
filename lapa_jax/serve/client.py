"""Asks a served policy what to do (launch/serve.py). Numpy and msgpack only: no jax, and nothing of the model.

with Client("127.0.0.1:8000") as policy:
    policy.wait()
    action = policy.act(image, "push the red cube to the blue disc")
"""

import functools
import http.client
import json
import time
import urllib.parse

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.serve import msgpack_numpy


class ServerError(Exception):
    """The server did not answer. status: of HTTP: 401 token, 429 too many requests, 500 its fault, 503 not now."""

    def __init__(self, status: int, message: str):
        super().__init__(f"{message} (status {status})")
        self.status = status


class Client:
    """A served policy. One connection, which is made when needed and made again when it broke; one thread at a time.

    Args:
      address: "HOST:PORT" or a URL. token: the server's, if it asks for one.
      timeout: seconds that an answer may take.

    Attributes:
      timing: of the last answer, in milliseconds: "decode_ms", "wait_ms", "infer_ms" and "total_ms" in the server,
        "round_trip_ms" here; and "batch", how many requests were computed together.
    """

    def __init__(self, address: str = "127.0.0.1:8000", *, token: str | None = None, timeout: float = 10.0):
        try:
            self._address = urllib.parse.urlsplit(address if "://" in address else f"http://{address}")
            valid = self._address.scheme in ("http", "https") and self._address.hostname and self._address.port != 0
        except ValueError:  # a port beyond 65535, or brackets that do not close
            valid = False
        if not valid:
            raise UserError(f"'{address}' is no address of a server; give HOST:PORT or http://HOST:PORT")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout, self._connection = timeout, None
        self.timing: dict[str, float] = {}

    @functools.cached_property
    def metadata(self) -> dict:
        """What the server says of its policy: cameras, sizes, names and ranges of dimensions, data sets."""
        return json.loads(self._ask("GET", "/metadata"))

    def wait(self, seconds: float = 300.0) -> None:
        """Returns when the server is ready; TimeoutError if it is not in time."""
        until = time.monotonic() + seconds
        while True:
            try:
                self._ask("GET", "/readyz")
                return
            except (ServerError, ConnectionError, TimeoutError) as error:
                if isinstance(error, ServerError) and error.status != 503:
                    raise
                if time.monotonic() > until:
                    raise TimeoutError(f"{self._name} was not ready within {seconds:g} s ({error})") from None
            time.sleep(min(0.2, seconds))

    def act(self, image, instruction: str, state=None, *, dataset: str | None = None) -> np.ndarray:
        """What to do now: the first action of `chunk`, f32 [A]."""
        return self.chunk(image, instruction, state, dataset=dataset)[0]

    def chunk(self, image, instruction: str, state=None, *, dataset: str | None = None) -> np.ndarray:
        """The next T actions.

        Args:
          image: uint8 [H, W, 3] or the bytes of a JPEG; of several cameras {name: image}.
          instruction: a text; an empty one is refused where the policy was trained with instructions.
          state: [S], in the units of the data.
          dataset: of a policy trained on several: whose units all numbers are in.

        Returns:
          f32 [T, A], in the units of the data.

        Raises:
          UserError: an empty instruction, or the server refuses the observation, and says why.
          ServerError: it does not answer for another reason. ConnectionError, TimeoutError: it cannot be reached.
        """
        if not str(instruction).strip() and self.metadata.get("instructed"):
            raise UserError("the instruction is empty, and this policy was trained with instructions: say what to do")
        message = {"image": image, "instruction": instruction}
        if state is not None:
            message["state"] = np.asarray(state)
        if dataset is not None:
            message["dataset"] = dataset
        start = time.perf_counter()
        answer = msgpack_numpy.unpack(self._ask("POST", "/act", msgpack_numpy.pack(message)))
        self.timing = {**answer["server_timing"], "round_trip_ms": 1000 * (time.perf_counter() - start)}
        return answer["actions"].copy()  # those of a message are read-only

    def close(self) -> None:
        """Ends the connection; the next question makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    @property
    def _name(self) -> str:
        return self._address.netloc

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of an answer. A connection that the server closed while idle is made again, once."""
        fresh = self._connection is None
        connection = self._connected()
        try:
            status, data = self._once(connection, method, path, body)
        except (http.client.HTTPException, ConnectionError):
            # A kept connection may have been closed by the server while idle; a new one that fails is a real failure.
            if fresh:
                raise ConnectionError(f"{self._name} closed the connection without an answer") from None
            return self._ask(method, path, body)
        if status == 200:
            return data
        message = _error_in(data)
        # 400 and 413 are the fault of the observation, and asking again would not help.
        raise UserError(message) if status in (400, 413) else ServerError(status, f"{self._name}: {message}")

    def _once(self, connection, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            kind = {"Content-Type": "application/msgpack"} if body is not None else {}
            connection.request(method, self._address.path.rstrip("/") + path, body, {**kind, **self._headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except TimeoutError:
            self.close()
            raise TimeoutError(f"{self._name} did not answer within {self._timeout:g} s") from None
        except (http.client.HTTPException, OSError):
            self.close()
            raise

    def _connected(self) -> http.client.HTTPConnection:
        if self._connection is None:
            secure = self._address.scheme == "https"
            make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            connection = make(self._address.hostname, self._address.port, timeout=self._timeout)
            try:
                connection.connect()
            except OSError as error:
                raise ConnectionError(f"{self._name} cannot be reached ({error}); does launch/serve.py run?") from None
            self._connection = connection
        return self._connection


def _error_in(data: bytes) -> str:
    try:
        return json.loads(data)["error"]
    except (ValueError, KeyError, TypeError):
        return " ".join(data[:200].decode(errors="replace").split())
