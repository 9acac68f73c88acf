"""Shares of a conversion: the same shards to the byte as one process gives, whoever is last, killed or damaged."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lapa_jax.core import lock
from lapa_jax.core.errors import UserError
from lapa_jax.core.share import parse_share
from lapa_jax.data.convert import share_lock
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.parts import read_part
from lapa_jax.data.convert.run import convert
from lapa_jax.data.convert.shares import convert_share

OPTIONS = Options(size=16, samples_per_shard=12, val_fraction=0.3)


@pytest.fixture
def source(tmp_path):
    """Seven episodes as arrays."""
    rng, folder = np.random.default_rng(0), tmp_path / "source"
    folder.mkdir()
    for number in range(7):
        length = 4 + number
        np.savez(folder / f"episode{number}.npz", image=rng.integers(0, 256, (length, 20, 24, 3)).astype(np.uint8),
                 action=rng.normal(size=(length - 1, 2)).astype(np.float32))  # fmt: skip
    return folder


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(contents: dict[str, bytes]) -> dict[str, bytes]:
    """Tables of steps carry the times of the shards."""
    return {name: data for name, data in contents.items() if not name.endswith(".npz")}


@pytest.fixture
def whole(source, tmp_path):
    convert(source, tmp_path / "whole", OPTIONS)
    return without_times(files(tmp_path / "whole"))


def share(source, out, number, count):
    return convert_share(source, out, OPTIONS, (number, count), max_errors=1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_last_share_packs_what_one_process_would(source, tmp_path, whole, order):
    out = tmp_path / "out"
    assert [share(source, out, number, 3) for number in order[:2]] == [None, None]
    assert not (out / "dataset.json").exists()
    report = share(source, out, order[2], 3)
    assert report["episodes"] == 7 and not report["finished"]
    assert without_times(files(out)) == whole
    assert share(source, out, 0, 3)["finished"], "who comes later finds it done"


def test_more_shares_than_episodes_and_other_numbers(source, tmp_path, whole):
    """A share is no more than who makes a part: numbers may change in between."""
    out = tmp_path / "out"
    assert share(source, out, 1, 2) is None
    assert [share(source, out, number, 9) for number in (8, 0, 2, 4)] == [None] * 4
    assert share(source, out, 6, 9)["episodes"] == 7
    assert without_times(files(out)) == whole


def test_a_killed_share_finishes(source, tmp_path, whole, monkeypatch):
    """Killed while it converts, and while the last one packs."""
    from lapa_jax.data.convert import pack, pool

    out, make = tmp_path / "out", pool.make_part

    def dies(job):
        (out / ".convert" / "parts" / f".{job.entry['id']}.part.0123abcd.tmp").write_bytes(b"half")
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(pool, "make_part", dies)
        with pytest.raises(SystemExit):
            share(source, out, 0, 2)
    assert share(source, out, 1, 2) is None and pool.make_part is make
    with monkeypatch.context() as patched:
        patched.setattr(pack.Packer, "_write_shard", lambda packer: dies(None))
        with pytest.raises((SystemExit, AttributeError)):
            share(source, out, 0, 2)
    assert share(source, out, 1, 2)["episodes"] == 7
    assert without_times(files(out)) == whole


def test_damage_is_reported_once_by_the_whole(source, tmp_path):
    np.savez(source / "episode3.npz", image=np.zeros((4, 20, 24, 3), np.uint8), action=np.full((3, 2), np.nan, "f4"))
    out = tmp_path / "out"
    results = [share(source, out, number, 3) for number in range(3)]
    assert results[:2] == [None, None]
    (error,) = results[2]["errors"]
    assert results[2]["episodes"] == 6 and "episode3" in error["path"] and "not finite" in error["error"]
    assert json.loads((out / "report.json").read_text())["errors"] == results[2]["errors"]


COMMAND = """
import sys
from lapa_jax.core.errors import run_main
from tools.convert import main
run_main(main)
"""


def test_shares_beside_each_other(source, tmp_path, root, whole):
    """Three processes at once: one of them packs."""
    out = tmp_path / "out"
    options = ["--size", "16", "--samples_per_shard", "12", "--val_fraction", "0.3", "--workers", "0"]

    def run(number: int):
        command = [sys.executable, "-c", COMMAND, str(source), str(out), *options, "--share", f"{number}/3"]
        return subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True,
                              text=True, check=False)  # fmt: skip

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(run, range(3)))
    assert [done.returncode for done in results] == [0, 0, 0], [done.stderr for done in results]
    assert any("is finished" in done.stdout for done in results)
    assert without_times(files(out)) == whole


PROGRAM = """
import errno, fcntl, pathlib, sys
from lapa_jax.core import lock
from lapa_jax.data.convert import share_lock

def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[3] == "without locks":
    fcntl.lockf = fcntl.fcntl = no_locks
lock.BEAT = 0.2
work = pathlib.Path(sys.argv[1])
with share_lock.no_other(work) if sys.argv[2] == "all" else share_lock.one_of_several(work, eval(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def enter(work, what):
    return share_lock.no_other(work) if what == "all" else share_lock.one_of_several(work, what)


@pytest.fixture(params=["with locks", "without locks"])
def mount(request, monkeypatch):
    """A file system that has locks, and one that has none."""
    monkeypatch.setattr(lock, "BEAT", 0.2)
    if request.param == "without locks":

        def no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "lockf", no_locks)
        monkeypatch.setattr(fcntl, "fcntl", no_locks)
    return request.param


@pytest.mark.parametrize(("at_work", "refused", "words", "allowed"), [
    ((0, 2), "all", "shares of .* are still being converted", (1, 2)),
    ((1, 2), (0, 3), "a share of 2; this one is of 3", (0, 2)),
    ((1, 2), (1, 2), "another process is converting share 1/2", (0, 2)),
    ("all", (0, 2), "are being packed; nothing is left to do", None),
    ("all", "all", "another process is converting to", None),
])  # fmt: skip
def test_who_may_be_at_work_beside_whom(tmp_path, root, mount, at_work, refused, words, allowed):
    """Locks of other processes: a child holds one, and is killed."""
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", PROGRAM, str(work), str(at_work), mount]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": str(root)}) as child:  # fmt: skip
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=words), enter(work, refused):
            pytest.fail("it was entered")
        if allowed:
            with enter(work, allowed):
                pass
        child.kill()
    with enter(work, refused):
        pass


def test_a_mount_without_locks_is_converted_to(source, tmp_path, whole, mount):
    convert(source, tmp_path / "out", OPTIONS)
    assert without_times(files(tmp_path / "out")) == whole
    assert [share(source, tmp_path / "shared", number, 2) for number in (0, 1)][0] is None
    assert without_times(files(tmp_path / "shared")) == whole


def test_shares_are_read():
    assert parse_share(None) is None and parse_share("0/1") == (0, 1) and parse_share("7/8") == (7, 8)
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8",
             "SLURM_ARRAY_TASK_COUNT": "8"}  # fmt: skip
    assert parse_share("auto", array) == (2, 8)
    for wrong in ("8/8", "1", "a/b", "-1/2", "1/0", ""):
        with pytest.raises(UserError, match="give I/N"):
            parse_share(wrong)
    with pytest.raises(UserError, match="no task of a Slurm job array"):
        parse_share("auto", {})
    with pytest.raises(UserError, match="without gaps: sbatch --array=0-3"):
        parse_share("auto", array | {"SLURM_ARRAY_TASK_COUNT": "4"})


def test_a_summary_of_an_episode_that_cannot_be_read_is_named(tmp_path):
    assert read_part(tmp_path, "one") is None
    for text in ("{", 100_000 * "["):
        (tmp_path / "one.json").write_text(text)
        with pytest.raises(UserError, match="one.json is not valid JSON"):
            read_part(tmp_path, "one")
