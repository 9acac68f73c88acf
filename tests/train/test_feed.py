"""Batches are placed ahead of their steps, and only the time in which the devices have nothing to do is a wait."""

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from lapa_jax.train import loop
from lapa_jax.train.feed import Feed


def slow(seconds: float, count: int):
    """A loader that takes so long for each batch and prepares nothing ahead."""
    for number in range(count):
        time.sleep(seconds)
        yield number


@pytest.fixture
def feeds():
    """`feeds(batches, place)`; closed at the end of the test."""
    made = []

    def make(batches, place=lambda batch: batch):
        made.append(Feed(batches, place))
        return made[-1]

    yield make
    for feed in made:
        feed.close()
        assert not feed._thread.is_alive()


def test_batches_come_in_order_and_end(feeds):
    feed = feeds(iter(range(5)), lambda batch: batch * 10)
    assert [feed.take(busy=lambda: False) for _ in range(5)] == [0, 10, 20, 30, 40]
    with pytest.raises(StopIteration):
        feed.take(busy=lambda: False)


def test_two_batches_are_placed_ahead_and_no_more(feeds):
    placed = threading.Semaphore(0)
    count = itertools.count(1)
    seen = []

    def place(batch):
        seen.append(next(count))
        placed.release()
        return batch

    feed = feeds(itertools.count(), place)
    assert placed.acquire(timeout=10) and placed.acquire(timeout=10)
    assert not placed.acquire(timeout=0.2) and len(seen) == 2
    feed.take(busy=lambda: False)
    assert placed.acquire(timeout=10)
    assert not placed.acquire(timeout=0.2) and len(seen) == 3


def test_a_host_that_waits_while_the_devices_work_waits_for_nothing(feeds):
    feed = feeds(slow(0.05, 3))
    assert [feed.take(busy=lambda: True) for _ in range(3)] == [0, 1, 2]
    assert feed.idle == 0


def test_devices_without_work_wait_for_the_loader(feeds):
    feed = feeds(slow(0.05, 3))
    start = time.perf_counter()
    for _ in range(3):
        feed.take(busy=lambda: False)
    assert 0.1 < feed.idle <= time.perf_counter() - start


def test_the_wait_begins_when_the_devices_are_done(feeds):
    """The batch takes 0.4 s, the devices work for 0.3 s of it; much less than the whole is a wait."""
    feed, until = feeds(slow(0.4, 1)), time.perf_counter() + 0.3
    feed.take(busy=lambda: time.perf_counter() < until)
    assert 0 < feed.idle < 0.3


def test_an_error_comes_in_the_place_of_its_batch(feeds):
    def broken():
        yield from (1, 2)
        raise OSError("the disk is gone")

    feed = feeds(broken())
    assert [feed.take(busy=lambda: False) for _ in range(2)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        feed.take(busy=lambda: False)


class Result:
    """Of a step that takes until somebody waits for it."""

    def __init__(self, waited: list, number: int):
        self._waited, self._number = waited, number

    def block_until_ready(self):
        self._waited.append(self._number)
        return self

    def is_ready(self):
        return self._number in self._waited


def test_the_host_is_two_steps_ahead_at_most(feeds):
    waited, numbers = [], itertools.count()
    run = object.__new__(loop.Loop)
    run._pending, run._state, run._feed = [], None, feeds(itertools.repeat({}))
    run._step = lambda state, batch: (state, {"loss": Result(waited, next(numbers))})
    for dispatched in range(1, 7):
        run._one_step()
        assert waited == list(range(dispatched - 2)), "steps that the host has waited for"


def test_a_loader_that_keeps_up_costs_nothing(feeds):
    """A real step on the CPU, and a loader that takes half as long."""
    run = object.__new__(loop.Loop)
    step = jax.jit(lambda state, batch: (jax.lax.fori_loop(0, 100, lambda i, a: jnp.tanh(a @ a), state), batch))
    state, batch = jnp.eye(200) / 100, {"loss": jnp.ones(())}
    jax.block_until_ready(step(state, batch))
    start = time.perf_counter()
    jax.block_until_ready(step(state, batch))
    alone = time.perf_counter() - start
    run._step, run._state, run._pending = step, state, []
    run._feed = feeds(itertools.repeat(batch), lambda batch: time.sleep(alone / 2) or batch)
    run._one_step()
    run._feed.idle = 0.0
    start = time.perf_counter()
    for _ in range(10):
        run._one_step()
    jax.block_until_ready(run._state)
    assert run._feed.idle < 0.2 * (time.perf_counter() - start)
