"""A small part of the torture; and that it reports a loss where there is one."""

import json
import random
import subprocess
import sys
import time

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.train.loop import train
from tests import toys
from tests.data.samples import make
from tools.torture import command, damage, disk, kills, two
from tools.torture.processes import Process, carrying, differences, still_carrying
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import Job, NotHere, Workshop

COUNT = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[2])
from lapa_jax.core.errors import run_main
from lapa_jax.core.files import atomic_path
from lapa_jax.core.lock import beside, locked
out = pathlib.Path(sys.argv[1])

def main(argv):
    with locked(beside(out), "counting") if "lock" in argv else open(os.devnull):
        out.mkdir(exist_ok=True)
        for left in out.glob(".*.tmp"):
            left.unlink()
        if "anew" in argv:
            (out / "times.txt").open("a").write("begun\\n")
        for number in range(10):
            path = out / f"{number}.txt"
            if not path.exists():
                time.sleep(0.03)
                with atomic_path(path) as temporary:
                    temporary.write_text(str(number) * 30000)

run_main(main)
"""
"""A job of half a second that goes on where it stopped; with "anew" it also writes down how often it was begun."""
CHANGE = {"steps": 4, "eval_every": 2, "save_every": 2, "log_every": 1, "best_metric": "val/action_mse",
          "best_mode": "min"}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(root, tmp_path_factory):
    made = Workshop(tmp_path_factory.mktemp("torture"))
    count = [sys.executable, "-B", "-c", COUNT]
    for name, options in {"sound": ["lock"], "begins anew": ["lock", "anew"], "without a lock": []}.items():
        made.jobs[name] = Job(name, lambda out, o=options: [*count, str(out), str(root), *o], differences)
    return made


def tried(kind, workshop, count: int) -> Tally:
    tally = Tally()
    kind(workshop, count, random.Random(0), tally)
    return tally


def test_kills_lose_nothing_of_what_goes_on_and_are_losses_of_what_begins_anew(workshop):
    sound, unsound = (tried(lambda *a, job=job: kills.kill_job(job, kills.anywhere, *a), workshop, 4)
                      for job in ("sound", "begins anew"))  # fmt: skip
    assert sound.endings == {"ends as one left alone": 4} and not sound.lost, sound
    assert unsound.tried == 4 and unsound.lost and all("times.txt" in line for line in unsound.lost)


def test_two_at_once_are_a_loss_without_a_lock(workshop, monkeypatch):
    tally = tried(lambda *a: two.two("sound", *a), workshop, 1)
    assert tally.endings.total() == 1 and not tally.lost, tally
    with pytest.raises(RuntimeError, match="has no lock"):
        tried(lambda *a: two.two("without a lock", *a), workshop, 1)


@pytest.mark.parametrize("mounts", [True, False])
def test_a_full_disk_is_found_by_either_means(workshop, monkeypatch, mounts):
    if mounts and not disk._can_mount(workshop.folder):
        pytest.skip("mounting a tmpfs is not allowed")
    monkeypatch.setattr(disk, "_can_mount", lambda folder: mounts)
    tally = tried(lambda *a: disk.fill("sound", *a), workshop, 2)
    print(tally)
    assert tally.tried == 2 and ("a full tmpfs" in tally.figures[0]) == mounts
    assert not tally.lost and "code 2" in tally.endings


def test_what_a_command_has_started_is_found_by_its_mark(tmp_path):
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    process = Process([sys.executable, "-c", child], {"PATH": "/usr/bin:/bin"}, tmp_path / "log", tmp_path / "tmp")
    assert process.wait(20) == 0
    assert len(carrying(process.mark)) == 1 and carrying("of nobody") == []
    assert len(still_carrying(process.mark, 0.0)) == 1
    assert still_carrying(process.mark, 10.0) == []


class SmallWorkshop(Workshop):
    """Whose run is one of a toy, trained within this process."""

    def __init__(self, folder, data):
        super().__init__(folder)
        self._data = data
        self.run, self.twin = folder / "run", folder / "twin"
        train(toys.config("chunks", data, **CHANGE), self.run)
        train(toys.config("chunks", data, seed=1, **CHANGE), self.twin)

    def resume(self, run, steps):
        train(toys.config("chunks", self._data, **{**CHANGE, "steps": steps}), run)


@pytest.fixture
def small(tmp_path, monkeypatch, one_device):
    toys.use(monkeypatch)
    return SmallWorkshop(tmp_path, make.write(tmp_path / "arm", toys.LENGTHS, cameras=()))


def test_damage_is_noticed_and_without_checksums_it_is_a_loss(small, monkeypatch):
    for kind in (damage.truncated, damage.flipped, damage.replaced):
        tally = tried(lambda *a, kind=kind: damage.damage_runs(kind, *a), small, 3)
        assert (tally.tried, tally.lost) == (3, []), tally
    files = damage._files
    monkeypatch.setattr(damage, "_files", lambda run: [name for name in files(run) if "/params/d/" in name])
    monkeypatch.setenv("LAPA_JAX_CHECKSUMS", "off")
    tally = tried(lambda *a: damage.damage_runs(damage.flipped, *a), small, 3)
    assert len(tally.lost) == 3, tally


def test_a_part_that_fails_does_not_stop_another_and_what_is_done_is_not_done_again(monkeypatch, tmp_path, capsys):
    done = []

    def well(workshop, count, rng, tally):
        done.append(count)
        tally.ended("well", times=count)

    def badly(workshop, count, rng, tally):
        raise ValueError("no such luck")

    def nowhere(workshop, count, rng, tally):
        raise NotHere("no driver")

    monkeypatch.setattr(command, "_chosen", lambda parts: {
        "a/badly": Kind(badly, 1, 60), "a/nowhere": Kind(nowhere, 1, 60), "a/well": Kind(well, 20, 60)})  # fmt: skip
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            command.main(["--scale", "0.5", "--out", str(tmp_path / "rows.json"), "--markdown"])
        assert end.value.code == 1 and done == [10]
        printed = capsys.readouterr().out
        assert "| a/well | 10 | 0 | well 10× |" in printed and "| 0 | 0 | not tried: no driver |" in printed
        assert "- a/badly: the torture failed: ValueError" in printed
    assert json.loads((tmp_path / "rows.json").read_text())["rows"]["a/well"]["tried"] == 10
    with pytest.raises(UserError, match="results of another --scale or --seed"):
        command.main(["--scale", "1", "--out", str(tmp_path / "rows.json")])


def test_the_command_names_its_parts(root):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-B", str(root / "tools/torture.py"), "--part", "kills", "--list"],
                          capture_output=True, text=True, check=True, env={"PYTHONPATH": str(root), "PATH": "/usr/bin"})
    assert "kills/train: 45 at scale 1" in done.stdout and "damage" not in done.stdout
    assert time.monotonic() - start < 60
    with pytest.raises(UserError, match="--part kill is unknown; did you mean 'kills'"):
        command.main(["--part", "kill", "--list"])
