"""Observations of several clients put together in one batch of the policy, after a bounded wait."""

import concurrent.futures
import logging
import queue
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

from lapa_jax.inference.policies import Policy

_LOG = logging.getLogger(__name__)


class Observation(NamedTuple):
    """batch: of one row, as `Policy.predict` takes it. dataset: whose units the actions are in."""

    batch: dict[str, np.ndarray]
    dataset: str | None


class Answer(NamedTuple):
    """actions: f32 [T, A], in the units of the data. wait, infer: seconds before and in the policy. batch: its rows."""

    actions: np.ndarray
    wait: float
    infer: float
    batch: int


class _Request(NamedTuple):
    observation: Observation
    since: float
    future: concurrent.futures.Future


class Batcher:
    """One thread that runs the policy on whatever has come in.

    The first request of a batch waits at most `wait` seconds for others; those that come while the policy computes are
    in the next batch. Observations of several data sets, whose units differ, never share one.

    Args:
      policy: the policy. largest: rows of a batch. wait: seconds.
    """

    def __init__(self, policy: Policy, largest: int = 8, wait: float = 0.002):
        self._policy, self.largest, self._wait = policy, largest, wait
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._held: list[_Request] = []
        self._thread = threading.Thread(target=self._loop, name="policy", daemon=True)
        self._thread.start()

    def compile(self) -> list[int]:
        """Runs batches of every size that can occur, so that no request waits for a compiler; returns the sizes."""
        # Batches are padded to powers of two of the devices; the largest one may be none.
        sizes = sorted({self._policy.mesh.size} | {2**k for k in range(self.largest.bit_length())} | {self.largest})
        for size in sizes:
            example = self._policy.model.example(size)
            names = ("image", "text", "text_mask", *(("state",) if self._policy.model.state_dim else ()))
            self._policy.predict({name: example[name] for name in names})
        return sizes

    def submit(self, observation: Observation) -> concurrent.futures.Future[Answer]:
        """The answer to come."""
        request = _Request(observation, time.perf_counter(), concurrent.futures.Future())
        self._queue.put(request)
        return request.future

    def close(self) -> None:
        """Answers what waits, then ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        while (requests := self._collect()) is not None:
            # A client that went away cancelled its future: nobody waits for that action.
            requests = [request for request in requests if request.future.set_running_or_notify_cancel()]
            if requests:
                self._answer(requests)

    def _collect(self) -> list[_Request] | None:
        """The requests of the next batch; None at the end."""
        first = self._held.pop(0) if self._held else self._queue.get()
        if first is None:
            return None
        requests, until = [first], time.perf_counter() + self._wait
        # A held request (of another data set) is the first of the next batch, and should not wait for more of this one.
        while len(requests) < self.largest and not self._held:
            try:
                request = self._queue.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            # The sign to stop goes back to the end: this batch is answered first.
            if request is None:
                self._queue.put(None)
                break
            same = request.observation.dataset == first.observation.dataset
            (requests if same else self._held).append(request)
        return requests

    def _answer(self, requests: list[_Request]) -> None:
        start = time.perf_counter()
        try:
            batch = jax.tree.map(lambda *rows: np.concatenate(rows), *(r.observation.batch for r in requests))
            actions = self._policy.to_units(self._policy.predict(batch), requests[0].observation.dataset)
            answers = list(zip(requests, actions, strict=True))
        except Exception as error:  # the server goes on; who asked is told
            _LOG.exception("the policy failed on a batch of %d", len(requests))
            for request in requests:
                request.future.set_exception(error)
            return
        done = time.perf_counter()
        for request, chunk in answers:
            if np.isfinite(chunk).all():
                request.future.set_result(Answer(chunk, start - request.since, done - start, len(requests)))
            else:  # no robot should get it
                request.future.set_exception(FloatingPointError("the policy gave an action that is not finite"))
