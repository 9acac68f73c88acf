import os
import pathlib
import signal

from lapa_jax.data.conversion import parts, pool
from tests.data import videos


def die_on_killer(job):
    if job.episode["id"] == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return parts.make_part(job)


def test_a_dying_worker_costs_one_file(tmp_path, monkeypatch):
    for name in ("v0.mp4", "v1.mp4"):
        videos.write(tmp_path / name, 4)
    jobs = []
    work = tmp_path / "parts"
    work.mkdir()
    options = {"fps": None, "size": 16, "resize": "squash", "quality": 95, "captions": None}
    for name in ("v0.mp4", "killer.mp4", "v1.mp4"):
        entry = {"id": pathlib.Path(name).stem, "path": name, "kind": "video", "text": "", "arrays": ""}
        jobs.append(parts.Job(str(tmp_path), str(work), options, {}, entry))
    monkeypatch.setattr(pool, "make_part", die_on_killer)
    results = {job.episode["id"]: failure for job, failure in pool.run_jobs(jobs, 1)}
    assert results["v0"] is None and results["v1"] is None and "died" in results["killer"].error
    assert (work / "v1.json").exists()
