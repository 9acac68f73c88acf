import os
import pathlib
import signal
import time

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert import parts, pool
from tests.data import videos


def die_on_killer(job):
    if job.entry["id"] == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    if job.entry["id"] == "sleeper":
        time.sleep(3600)
    if job.entry["id"] == "raiser":
        raise KeyError("a fault of ours")
    return parts.make_part(job)


def jobs(folder, names):
    work = folder / "parts"
    work.mkdir()
    options = {"fps": None, "size": 16, "resize": "squash", "quality": 95, "captions": None, "filter": None,
               "white": None}  # fmt: skip
    plan = {"format": "video", "options": options, "columns": {}, "not_colour": {}}
    plan["cameras"] = {"image": [16, 16]}
    for name in names:
        videos.write(folder / name, 4)
        item = {"name": name, "path": name, "at": {"kind": "video"}, "size": 1, "split": "train", "text": ""}
        yield parts.Job(str(folder), str(work), plan, options, {"id": pathlib.Path(name).stem, **item})


@pytest.mark.parametrize("bad, word, patience", [("killer", "died", 600), ("sleeper", "more than 6 s", 6)])
def test_a_bad_worker_costs_one_episode(tmp_path, monkeypatch, bad, word, patience):
    monkeypatch.setattr(pool, "make_part", die_on_killer)
    work = jobs(tmp_path, ("v0.mp4", f"{bad}.mp4", "v1.mp4"))
    results = {job.entry["id"]: failure for job, failure in pool.run_jobs(work, 1, patience)}
    assert results["v0"] is None and results["v1"] is None and word in results[bad].error
    assert (tmp_path / "parts" / "v1.json").exists()


def test_a_fault_of_ours_does_not_wait_for_a_worker_that_stalls(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "make_part", die_on_killer)
    start = time.monotonic()
    with pytest.raises(KeyError, match="a fault of ours"):
        list(pool.run_jobs(jobs(tmp_path, ("sleeper.mp4", "raiser.mp4")), 2, 600))
    assert time.monotonic() - start < 60


def test_a_listing_that_crashes_is_one_line():
    with pytest.raises(UserError, match="the process that listed 9 died"):
        pool.call(signal.raise_signal, signal.SIGKILL, workers=1)
    with pytest.raises(ZeroDivisionError):
        pool.call(divmod, 1, 0, workers=1)
