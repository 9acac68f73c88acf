import gc
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.loader import workers
from lapa_jax.data.loader.loader import train_batches
from tests.data import sources
from tests.data.loader.test_loader import assert_equal, take

OPTIONS = {"seed": 1, "batch_size": 4}


def pids(batches) -> list[int]:
    return [w._process.pid for w in workers_of(batches)]


def workers_of(batches):
    (made,) = [b for b in workers._open if b._end.alive and b is batches.__reduce__()[1][1]]
    return made._workers


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def test_a_worker_that_is_killed_is_replaced_and_the_stream_goes_on(caplog):
    expected = take(train_batches(sources.Numbers(), **OPTIONS), 40)
    batches = train_batches(sources.Numbers(), workers=2, prefetch=6, **OPTIONS)
    got = take(batches, 7)
    for _ in range(4):  # more often than one batch may lose its worker
        os.kill(pids(batches)[0], signal.SIGKILL)
        got += take(batches, 6)
    os.kill(pids(batches)[0], signal.SIGKILL)
    os.kill(pids(batches)[1], signal.SIGKILL)
    got += take(batches, 9)
    assert_equal(expected, got)
    assert caplog.text.count("killed by SIGKILL") >= 5


def test_a_worker_that_hangs_without_dying_is_replaced_and_the_stream_goes_on(caplog, monkeypatch):
    end = workers._Worker.end

    def end_and_be_patient(worker):
        monkeypatch.setattr(workers, "HANGS", 60.0)  # with its replacement, which takes a second to start
        return end(worker)

    monkeypatch.setattr(workers._Worker, "end", end_and_be_patient)
    expected = take(train_batches(sources.Numbers(), **OPTIONS), 27)
    batches = train_batches(sources.Numbers(), workers=2, prefetch=6, **OPTIONS)
    got = take(batches, 7)
    for number in (0, 1):
        stopped = pids(batches)[number]
        os.kill(stopped, signal.SIGSTOP)
        monkeypatch.setattr(workers, "HANGS", 0.5)
        got += take(batches, 10)
        assert gone(stopped) and stopped not in pids(batches)
    assert_equal(expected, got)
    assert caplog.text.count("has not answered for") == 2


def test_a_batch_that_kills_its_worker_is_tried_again_and_then_named(tmp_path):
    order = [b["i"].tolist() for b in take(train_batches(sources.Numbers(), **OPTIONS), 6)]
    once = sources.Suicidal(os.getpid(), order[4][2], tmp_path / "done")
    assert [b["i"].tolist() for b in take(train_batches(once, workers=1, **OPTIONS), 6)] == order
    assert once.once.exists()
    batches = train_batches(sources.Suicidal(os.getpid(), order[2][0], None), workers=1, **OPTIONS)
    assert [b["i"].tolist() for b in take(batches, 2)] == order[:2]
    with pytest.raises(UserError, match=r"died 3 times at batch 2 \(killed by SIGKILL\).*data\.workers"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_batches_of_any_size_and_kind_arrive_whole():
    expected = take(train_batches(sources.Ragged(), **OPTIONS), 12)
    got = take(train_batches(sources.Ragged(), workers=1, prefetch=3, **OPTIONS), 12)
    assert_equal(expected, got)
    assert [b["text"].dtype for b in got] == [b["text"].dtype for b in expected]


def test_batches_that_are_kept_stay_what_they_were():
    """More than there are slots: those beyond are copied out of shared memory, and none is written to again."""
    source = sources.Numbers(side=64)
    expected = take(train_batches(source, **OPTIONS), 60)
    batches = train_batches(source, workers=1, prefetch=2, **OPTIONS)
    kept, views = [], []
    for k in range(60):
        batch = next(batches)
        kept.append(batch) if k % 2 else views.append(batch["frames"][1:3])
    assert_equal(expected[1::2], kept)
    for batch, view in zip(expected[::2], views):
        np.testing.assert_array_equal(batch["frames"][1:3], view)
    del batches  # and when the workers and their memory are gone
    gc.collect()
    assert_equal(expected[1::2], kept)


def test_errors_arrive_as_they_are():
    class Local(sources.Numbers):
        pass

    damaged = sources.Numbers(damaged=range(100))
    with pytest.raises(UserError, match=r"shard-\d\.tar: ep\d+_000000\.image\.jpg is damaged"):
        next(train_batches(damaged, workers=1, **OPTIONS))
    order = take(train_batches(sources.Numbers(), **OPTIONS), 3)
    late = train_batches(sources.Numbers(damaged=[int(order[2]["i"][1])]), workers=1, **OPTIONS)
    assert_equal(take(late, 2), order[:2])
    with pytest.raises(UserError, match=rf"ep{order[2]['i'][1]}_000000.image.jpg is damaged"):
        next(late)
    with pytest.raises(IndexError):
        next(train_batches(sources.Failing(), workers=1, **OPTIONS))
    with pytest.raises(UserError, match=r"data\.workers > 0 needs data that can be sent"):
        next(train_batches(Local(), workers=1, **OPTIONS))


def test_workers_end_with_their_iterator():
    batches = train_batches(sources.Numbers(), workers=2, **OPTIONS)
    next(batches)
    there = pids(batches)
    descriptors = len(os.listdir("/proc/self/fd"))
    del batches
    gc.collect()
    assert all(gone(pid) for pid in there)
    assert len(os.listdir("/proc/self/fd")) < descriptors


SCRIPT = """
    import os, signal, sys
    from lapa_jax.data.loader.loader import train_batches
    from lapa_jax.data.loader import workers
    from tests.data.sources import Numbers

    if __name__ == "__main__":
        batches = train_batches(Numbers(), seed=1, batch_size=4, workers=2)
        kept = [next(batches) for _ in range(5)]
        (made,) = workers._open
        print(*(w._process.pid for w in made._workers), flush=True)
        {end}
"""
ENDS = {
    "the end of the script": ("pass", 0),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -9),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -15),
    "an error": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
}


@pytest.mark.parametrize("end", ENDS)
def test_workers_end_with_the_training_process(end, tmp_path, root):
    statement, code = ENDS[end]
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).format(end=statement))
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == code and done.stderr == ""
    there = [int(word) for word in done.stdout.split()]
    assert len(there) == 2
    wait_until(lambda: all(gone(pid) for pid in there))


def test_workers_leave_signals_to_the_training_process():
    """Ctrl-C and Slurm's SIGTERM reach the whole group; the training process still needs batches then."""
    expected = take(train_batches(sources.Numbers(), **OPTIONS), 12)
    batches = train_batches(sources.Numbers(), workers=1, prefetch=1, **OPTIONS)
    got = take(batches, 2)
    (before,) = pids(batches)
    os.kill(before, signal.SIGINT)
    os.kill(before, signal.SIGTERM)
    got += take(batches, 10)
    assert_equal(expected, got)
    assert pids(batches) == [before]
