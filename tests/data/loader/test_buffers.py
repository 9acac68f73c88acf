import gc
import threading

import jax
import numpy as np
import pytest

from lapa_jax.data.loader import buffers

SHAPE = (64, 2, 32, 32, 3)


def filled(pool, value):
    array = pool.empty(SHAPE, np.uint8)
    array[...] = value
    return array


def test_memory_is_used_again_once_nobody_sees_it():
    pool = buffers.Pool(keep=2)
    array = filled(pool, 1)
    place = array.ctypes.data
    del array
    assert filled(pool, 2).ctypes.data == place


HOLDERS = {
    "array": lambda a: a,
    "row": lambda a: a[3],
    "strided": lambda a: a[::2, 0, ::-1],
    "reshaped": lambda a: a.reshape(-1)[100:],
    "other dtype": lambda a: a.reshape(-1).view(np.uint32)[1:],
    "memoryview": lambda a: memoryview(a)[2:],
    "numpy of a memoryview": lambda a: np.asarray(memoryview(a))[5],
    "dlpack": lambda a: np.from_dlpack(a)[7],
    "broadcast": lambda a: np.broadcast_to(a[0], (4, *a.shape[1:])),
    "jax": lambda a: jax.device_put(a, jax.devices("cpu")[0]),
    "jax, asynchronously": lambda a: jax.numpy.asarray(a)[1:] + 0,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_that_someone_sees_is_never_used_again(holder):
    pool = buffers.Pool(keep=4)
    held = HOLDERS[holder](filled(pool, 7))
    gc.collect()
    others = [filled(pool, 200 + k) for k in range(6)]
    others = [filled(pool, 100 + k) for k in range(6)]
    assert np.all(np.asarray(held).view(np.uint8) == 7) and len(others) == 6


def test_jax_takes_it_over_without_a_copy_and_gives_it_back():
    pool = buffers.Pool(keep=1)
    array = filled(pool, 3)
    place = array.ctypes.data
    assert place % buffers.ALIGNMENT == 0
    taken = jax.device_put(array, jax.devices("cpu")[0])
    del array
    if taken.unsafe_buffer_pointer() == place:
        assert filled(pool, 4).ctypes.data != place and np.all(np.asarray(taken) == 3)
    del taken
    gc.collect()
    assert filled(pool, 5).ctypes.data == place


def test_no_more_is_kept_than_asked_for():
    pool = buffers.Pool(keep=2)
    arrays = [filled(pool, k) for k in range(10)]
    assert len({a.ctypes.data for a in arrays}) == 10
    size = arrays[0].nbytes
    del arrays
    assert len(pool._free[size]) == 2


def test_threads_never_share_a_piece():
    pool, wrong = buffers.Pool(keep=4), []

    def work(number):
        for k in range(300):
            array = filled(pool, (number * 50 + k) % 256)
            view = array[k % 64]
            del array
            if not np.all(view == (number * 50 + k) % 256):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_empty_asks_the_allocator_of_this_thread():
    pool, seen = buffers.Pool(keep=1), []
    with buffers.allocator(pool.empty):
        inside = buffers.empty(SHAPE, np.uint8)
        other = threading.Thread(target=lambda: seen.append(buffers.empty(SHAPE, np.uint8)))
        other.start()
        other.join()
    assert inside.base is not None and inside.shape == SHAPE and inside.dtype == np.uint8
    assert seen[0].base is None and buffers.empty(SHAPE, np.uint8).base is None
    with buffers.allocator(pool.empty):
        assert buffers.empty((3,), np.int64).base is None  # small ones are numpy's
