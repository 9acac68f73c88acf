"""What ends a run, or sets it back, in the middle: it goes on in the bits of a run that was left alone."""

import collections
import json
import os
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.train import fast_checkpoints, feed, loop, spikes
from lapa_jax.train.checkpoint import Checkpointer, load_for_inference, steps
from lapa_jax.train.checkpoint_folder import best_checkpoint
from lapa_jax.train.loop import train
from lapa_jax.train.state import State
from tests import toys
from tests.data.samples import make
from tests.toys import chunks

pytestmark = pytest.mark.usefixtures("one_device")

EVALUATED = {"steps": 6, "eval_every": 2, "save_every": 2, "log_every": 1, "best_metric": "val/action_mse",
             "best_mode": "min"}  # fmt: skip


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make.write(tmp_path_factory.mktemp("data") / "arm", toys.LENGTHS, cameras=())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run of six steps without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        run = tmp_path_factory.mktemp("whole") / "run"
        train(toys.config("chunks", data, **EVALUATED), run)
    return run


def figures(run) -> list[tuple]:
    """(step, name, value) of all lines, in their order, but those that are times."""
    return [(line["step"], name, value) for line in read_metrics(run) for name, value in line.items()
            if name.endswith(("loss", "grad_norm", "left_out_batches")) or name.startswith("val/")]  # fmt: skip


def same(a, b) -> bool:
    a, b = (load_for_inference(run).variables for run in (a, b))
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def names(run) -> set[str]:
    return {path.name for path in run.iterdir()} if run.is_dir() else set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_in_the_middle_of_an_evaluation_it_saves_and_evaluates_later(whole, data, tmp_path, monkeypatch, number):
    run, calls = tmp_path / "run", collections.Counter()
    summarize = chunks.Model.summarize

    def asked(self, arrays):
        calls["evaluations"] += 1
        return summarize(self, arrays)

    shard = feed.Feed.take

    def take(self, *args, **kwargs):
        calls["batches"] += 1
        if calls["batches"] == 4:  # the step before an evaluation
            os.kill(os.getpid(), number)
        return shard(self, *args, **kwargs)

    monkeypatch.setattr(chunks.Model, "summarize", asked)
    monkeypatch.setattr(feed.Feed, "take", take)
    train(toys.config("chunks", data, **EVALUATED), run)
    assert steps(run) == [2, 4] and calls["evaluations"] == 2
    assert "asked to stop after step 4" in (run / "log.txt").read_text()
    train(toys.config("chunks", data, **EVALUATED), run)
    assert figures(run) == figures(whole) and same(run, whole)
    assert best_checkpoint(run) == best_checkpoint(whole)
    assert names(run) == names(whole), "no lock and no temporary file is left"


def test_asked_before_the_first_step_it_saves_nothing_and_ends(data, tmp_path, monkeypatch, capsys):
    evaluate, before = chunks.Model.summarize, signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup hides it
    monkeypatch.setattr(chunks.Model, "summarize", lambda *a: (os.kill(os.getpid(), signal.SIGHUP), evaluate(*a))[1])
    train(toys.config("chunks", data, **EVALUATED), tmp_path / "run")
    signal.signal(signal.SIGHUP, before)
    assert not steps(tmp_path / "run") and "nothing to save" in capsys.readouterr().err
    assert ".lock" not in names(tmp_path / "run")


def test_a_batch_that_never_comes_does_not_keep_it_from_stopping(whole, data, tmp_path, monkeypatch):
    run, release, place, take, taken = tmp_path / "run", threading.Event(), feed.Feed._put, feed.Feed.take, []

    def put(self, item):
        self.count = getattr(self, "count", 0) + 1
        if self.count == 4:
            release.wait(60)
        return place(self, item)

    def asked(self, **conditions):
        taken.append(1)
        if len(taken) == 4:  # the run is at the batch that does not come, however slow the machine is
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        return take(self, **conditions)

    monkeypatch.setattr(feed.Feed, "_put", put)
    monkeypatch.setattr(feed.Feed, "take", asked)
    train(toys.config("chunks", data, **EVALUATED), run)
    release.set()
    assert steps(run) == [2, 3]
    monkeypatch.undo()
    toys.use(monkeypatch)
    train(toys.config("chunks", data, **EVALUATED), run)
    assert figures(run) == figures(whole) and same(run, whole)


def test_a_run_goes_back_before_a_spike_and_leaves_its_batches_out(data, tmp_path, monkeypatch):
    monkeypatch.setattr(spikes, "FEWEST", 3)
    change = {"steps": 14, "eval_every": 7, "save_every": 2, "log_every": 1, "spike_factor": 1.02}
    with pytest.raises(UserError, match=r"the loss spiked at step .*spike_factor=1.02 times the median"):
        train(toys.config("chunks", data, **change), tmp_path / "stops")
    change |= {"on_spike": "rollback"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(toys.config("chunks", data, **change), whole)
    log = (whole / "log.txt").read_text()
    assert "back to step" in log and "without the batches of the steps" in log
    windows = spikes.LeftOut.read(whole).windows
    assert windows and all(first <= last for first, last in windows)
    told = [value for _, name, value in figures(whole) if name == "train/left_out_batches"]
    assert told[-1] == sum(last - first + 1 for first, last in windows)
    losses = [step for step, name, _ in figures(whole) if name == "train/loss"]
    assert losses == list(range(1, 15)), "each step once"
    for end in (5, 9, 14):
        train(toys.config("chunks", data, **{**change, "steps": end}), parts)
    assert spikes.LeftOut.read(parts).windows == windows and same(parts, whole)


def cut_at(monkeypatch, batch: int) -> None:
    """The process is interrupted for good while it waits for a batch, without another checkpoint."""
    count, take = collections.Counter(), feed.Feed.take

    def cut(self, *args, **kwargs):
        count["batches"] += 1
        if count["batches"] == batch:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, *args, **kwargs)

    monkeypatch.setattr(feed.Feed, "take", cut)


@pytest.mark.parametrize("damage", ["nothing", "newest", "all", "another run", "another mesh"])
def test_it_goes_on_from_the_newest_checkpoint_of_any_level(whole, data, tmp_path, monkeypatch, damage, request):
    fast, run = tmp_path / "disk", tmp_path / "run"
    change = {**EVALUATED, "save_every": 3, "fast_dir": str(fast), "fast_every": 2}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        cut_at(patch, 6)
        train(toys.config("chunks", data, **change), run)
    folder = fast / json.loads((run / "env.json").read_text())["run"] / "process-0-of-1"
    patience = time.monotonic() + 60  # the writes that were under way go on in threads of this process
    while not (steps(run) and {"2", "4"} <= names(folder)) and time.monotonic() < patience:
        time.sleep(0.05)
    assert steps(run) == [3] and {"2", "4"} <= names(folder)
    for step in {"newest": ["4"], "all": ["2", "4"]}.get(damage, []):
        with open(folder / step / "state.safetensors", "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\xff" if file.read(1) != b"\xff" else b"\x00")
    if damage == "another run":
        (run / "env.json").write_text('{"run": "0123"}')
    mesh = {}
    if damage == "another mesh":
        request.getfixturevalue("all_devices")
        mesh = {"data": 2, "fsdp": 4}
    train(toys.config("chunks", data, mesh=mesh, **change), run)
    log = (run / "log.txt").read_text()
    assert ("resuming from step 4, a fast checkpoint" if damage == "nothing" else "resuming from step 3\n") in log
    moved = {"newest": {"4.damaged"}, "all": {"2.damaged", "4.damaged"}}.get(damage, set())
    assert {name for name in names(folder) if "damaged" in name} == moved
    assert all(f"moved aside to {name}" in log for name in moved)
    if damage != "another mesh":
        assert same(run, whole)
        assert [x for x in figures(run) if "loss" in x[1]] == [x for x in figures(whole) if "loss" in x[1]]


@pytest.mark.parametrize("moment", ["before the first durable one", "beside the last durable one"])
def test_what_a_killed_fast_checkpoint_leaves_is_gone_when_the_run_is_complete(data, tmp_path, monkeypatch, moment):
    """Also where no other fast checkpoint follows: a run that begins anew has another folder for them."""
    fast, run = tmp_path / "disk", tmp_path / "run"
    change = {"steps": 4, "save_every": 4, "eval_every": 4, "log_every": 1, "fast_dir": str(fast)}

    class Killed(BaseException):
        pass

    def killed(path, value):
        path.with_name(f".{path.name}.01234567.tmp").write_text("half")
        raise Killed

    early = moment == "before the first durable one"
    with monkeypatch.context() as patch:
        patch.setattr(fast_checkpoints, "write_json", killed)
        if early:
            cut_at(patch, 4)
        with pytest.raises(KeyboardInterrupt if early else Killed):
            train(toys.config("chunks", data, **change, fast_every=3 if early else 4), run)
        for thread in threading.enumerate():
            if thread.name == "background":
                thread.join(60)
    assert bool(steps(run)) != early and list(fast.rglob(".*.writing/.meta.json.*.tmp"))
    train(toys.config("chunks", data, **change, fast_every=3), run)
    assert steps(run) == [4] and not list(fast.rglob(".*"))


def test_a_fast_checkpoint_that_is_written_once_more_leaves_nothing_of_the_old_one(tmp_path):
    writer = fast_checkpoints.FastCheckpoints(tmp_path, "run", {}, keep=2)
    for value in (1.0, 2.0):
        writer.save(State(jnp.int32(4), {"params": {"x": jnp.full(3, value)}}, {}), 4, {"value": value}, False)
        writer.wait()
    assert names(tmp_path / "run/process-0-of-1") == {"4"} and writer.meta(4) == {"value": 2.0}


@pytest.fixture
def poisoned(monkeypatch):
    """One batch has numbers that are none."""
    make_batches = toys.setup.Setup.train_batches

    def batches(self, start):
        for number, batch in enumerate(make_batches(self, start), start):
            yield {**batch, "action": batch["action"] * np.float32(np.nan if number == 4 else 1)}

    monkeypatch.setattr(toys.setup.Setup, "train_batches", batches)
    return {"steps": 6, "save_every": 2, "log_every": 2}


def test_the_batches_of_a_spike_are_never_seen_again(data, tmp_path, poisoned):
    """A batch with numbers that are none ends a run, unless it goes back and leaves it out."""
    with pytest.raises(UserError, match=r"not finite at step\(s\) 5"):
        train(toys.config("chunks", data, **poisoned), tmp_path / "stops")
    train(toys.config("chunks", data, on_spike="rollback", **poisoned), tmp_path / "run")
    assert spikes.LeftOut.read(tmp_path / "run").windows == [(4, 5)]
    assert steps(tmp_path / "run") == [2, 4, 6]
    finite = jax.tree.map(lambda x: np.isfinite(x).all(), load_for_inference(tmp_path / "run").variables)
    assert jax.tree.all(finite)


def test_a_run_whose_list_of_left_out_batches_is_lost_goes_on_with_the_same_batches(data, tmp_path, poisoned):
    change, run = {**poisoned, "on_spike": "rollback"}, tmp_path / "run"
    train(toys.config("chunks", data, **change), run)
    (run / "left_out.json").unlink()
    train(toys.config("chunks", data, **{**change, "steps": 8}), run)
    assert "left_out.json lacks batches" in (run / "log.txt").read_text()
    train(toys.config("chunks", data, **{**change, "steps": 8}), tmp_path / "whole")
    assert spikes.LeftOut.read(run).windows == [(4, 5)] and same(run, tmp_path / "whole")


def test_a_spike_never_leads_back_to_a_damaged_checkpoint(data, tmp_path, monkeypatch, poisoned):
    config = toys.config("chunks", data, on_spike="rollback", **poisoned)
    train(config, tmp_path / "whole")
    finish, flipped = Checkpointer._finish, []

    def damaged_later(self, response, temporary, step, *rest):
        finish(self, response, temporary, step, *rest)
        if step == 4 and not flipped:
            files = (path for path in (tmp_path / "run/checkpoints/4/params").rglob("*") if path.is_file())
            flipped.append(max(files, key=lambda path: path.stat().st_size))
            content = bytearray(flipped[0].read_bytes())
            content[len(content) // 2] ^= 1
            flipped[0].write_bytes(content)

    monkeypatch.setattr(Checkpointer, "_finish", damaged_later)
    train(config, tmp_path / "run")
    log = (tmp_path / "run/log.txt").read_text()
    assert "has another checksum): moved aside to 4.damaged" in log and "back to step 2, without the batches" in log
    assert steps(tmp_path / "run") == [2, 4, 6] and same(tmp_path / "run", tmp_path / "whole")


def test_the_watchdog_looks_on_from_the_restored_state_to_the_last_checkpoint(data, tmp_path, monkeypatch):
    seen, run = [], tmp_path / "run"

    def watched(owner, name):
        original = getattr(owner, name)

        def call(*args, **kwargs):
            seen.append((name, any(thread.name == "watchdog" for thread in threading.enumerate())))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    watched(loop, "compile_step")
    for method in ("__init__", "restore", "close"):
        watched(Checkpointer, method)
    watched(chunks.Model, "summarize")
    change = {"save_every": 1, "eval_every": 2, "hang_minutes": 60.0}
    train(toys.config("chunks", data, steps=1, **change), run)
    train(toys.config("chunks", data, steps=2, **change), run)
    evaluations = 2 * [("summarize", True)]
    start, end = [("compile_step", False), ("__init__", True)], [("close", True)]
    assert seen == [*start, *evaluations, *end, *start, ("restore", True), *evaluations[1:], *end]
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())
