import gc
import itertools
import json
import math
import os
import pathlib
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lapa_jax.core import integrity
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import write_json
from lapa_jax.train import checkpoint, pretrained_init, recovery, sharding
from lapa_jax.train.checkpoint import Checkpointer, load_for_inference
from lapa_jax.train.optim import make_optimizer
from lapa_jax.train.run import check_kept
from lapa_jax.train.state import init_state
from lapa_jax.train.task import Task
from tests.train import toy

OPTIM = {"learning_rate": 0.01, "clip_norm": None, "groups": ((".*", {}),)}
META = {"config": {"model": {"sizes": [1, 2]}, "train": {"best_metric": "val/x"}}, "statistics": {}}


def make_state(step=0):
    task = Task(toy.Model(width=512), {"mse": 1.0})
    return init_state(task, lambda p: make_optimizer(OPTIM, 10, p), step, toy.batch()).replace(step=jnp.int32(step))


def abstract(state, mesh):
    place = sharding.shardings(state, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, place)


def mesh(data, fsdp):
    devices = jax.devices()[: data * fsdp]
    return sharding.make_mesh({"data": data, "fsdp": fsdp, "tensor": 1}, devices)


@pytest.fixture
def run(tmp_path):
    """A run folder with the checkpoints 1 to 5, of which step 2 was the best and 4 and 5 are the last."""
    write_json(tmp_path / "config.json", META["config"])
    writer = Checkpointer(tmp_path, keep_last=2, best_metric="val/x")
    for step in range(1, 6):
        writer.save(make_state(step), step, {**META, "step": step}, {"val/x": -abs(step - 2.0)})
    writer.close()
    return tmp_path


def test_best_and_last_are_kept(run):
    assert checkpoint.steps(run) == [2, 4, 5]
    assert (run / "checkpoints/5/meta/data.json").is_file() and (run / "checkpoints/5/params").is_dir()


def test_the_best_can_be_asked_for(run):
    assert json.loads((run / "best.json").read_text()) == {"metric": "val/x", "mode": "max", "value": 0.0, "step": 2}
    assert load_for_inference(run, step="best").step == 2
    assert load_for_inference(run / "checkpoints" / "best").step == 2
    source = pretrained_init.open_source("tokenizer", f"{run}/checkpoints/best")
    assert source.step == 2 and source.path == run / "checkpoints" / "2"


def test_lower_values_may_be_better_and_numbers_better_than_none(tmp_path):
    write_json(tmp_path / "config.json", {"train": {"best_metric": "val/x", "best_mode": "min"}})
    values = {1: 5.0, 2: math.nan, 3: 2.0, 4: None, 5: 2.0, 6: 7.0}
    writer = Checkpointer(tmp_path, keep_last=1, best_metric="val/x", best_mode="min")
    for step, value in values.items():
        writer.save(make_state(step), step, {**META, "step": step}, None if value is None else {"val/x": value})
    writer.close()
    assert checkpoint.steps(tmp_path) in ([3, 6], [5, 6])
    best = checkpoint.best_checkpoint(tmp_path)
    assert best.value == 2.0 and best.step == checkpoint.steps(tmp_path)[0]
    assert load_for_inference(tmp_path, "best").step == best.step


def test_a_run_without_a_best_checkpoint_says_so(run, tmp_path_factory):
    write_json(run / "config.json", {"train": {"best_metric": "val/y"}})
    with pytest.raises(UserError, match=r"no checkpoint with a value of 'val/y', its best_metric; .*\[2, 4, 5\]"):
        load_for_inference(run, "best")
    write_json(run / "config.json", {"train": {"best_metric": None}})
    with pytest.raises(UserError, match="no best checkpoint: its config.train.best_metric is None"):
        load_for_inference(run, "best")
    with pytest.raises(UserError, match="config.init_from.tokenizer: .* no best checkpoint"):
        pretrained_init.open_source("tokenizer", f"{run}/checkpoints/best")


def test_commands_take_a_number_or_best():
    assert parse_step("600") == 600 and parse_step("best") == "best"
    with pytest.raises(UserError, match="--step newest is no step; give a number of training steps, or best"):
        parse_step("newest")


def test_restore_is_bit_equal_on_another_mesh(run):
    want = make_state(5)
    reader = Checkpointer(run, keep_last=2, best_metric=None)
    for axes in ((1, 4), (2, 1), (1, 1)):
        got = reader.restore(abstract(want, mesh(*axes)))
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            assert np.array_equal(a, b)
        assert got.variables["params"]["first"]["kernel"].sharding.mesh.shape["fsdp"] == axes[1]


def test_inference_reads_variables_and_meta_only(run):
    loaded = load_for_inference(run, step=2)
    assert loaded.step == 2 and loaded.meta["step"] == 2 and loaded.config.model.sizes == (1, 2)
    want = make_state(2).variables
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded.variables, jax.tree.map(np.asarray, want)))
    assert load_for_inference(run / "checkpoints" / "4").step == 4


def test_refusals_name_what_there_is(run, tmp_path_factory):
    with pytest.raises(UserError, match=r"no checkpoint of step 3; it has \[2, 4, 5\]"):
        load_for_inference(run, step=3)
    with pytest.raises(UserError, match=r"no whole checkpoint \(it lacks _CHECKPOINT_METADATA\); steps of this run"):
        load_for_inference(run / "checkpoints" / "3")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="is no run folder"):
        load_for_inference(empty)
    write_json(empty / "config.json", {})
    with pytest.raises(UserError, match="no checkpoint yet"):
        load_for_inference(empty)


def test_what_a_killed_writer_leaves_is_removed_and_never_read(run):
    half = run / "checkpoints" / ".6.writing.orbax-checkpoint-tmp-1"
    (half / "params").mkdir(parents=True)
    (run / "checkpoints/.3.removing").mkdir()
    assert load_for_inference(run).step == 5 and half.exists()
    assert Checkpointer(run, keep_last=2, best_metric=None).latest_step == 5
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["2", "4", "5"]


def every_file(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def append(path):
    path.write_bytes(path.read_bytes() + b"0")


def test_every_damage_of_every_file_is_seen_and_the_next_checkpoint_taken(run, tmp_path_factory):
    newest, damages = run / "checkpoints" / "5", (flip, truncate, empty, append, pathlib.Path.unlink)
    spare = tmp_path_factory.mktemp("spare") / "5"
    shutil.copytree(newest, spare)
    files = [path.relative_to(newest) for path in every_file(newest)]
    assert len(files) >= 14
    for name, damage in itertools.product(files, damages):
        if damage in (truncate, flip, empty) and not (newest / name).stat().st_size:
            continue  # commit_success.txt is empty
        damage(newest / name)
        recovered = recovery.recover(run)
        assert recovered.step == 4 and recovered.meta["step"] == 4, (name, damage)
        assert len(recovered.lines) == 1 and "moved aside to 5.damaged" in recovered.lines[0]
        assert str(name) in recovered.lines[0], recovered.lines[0]
        aside = run / "checkpoints/5.damaged"
        assert len(every_file(aside)) == len(files) - (damage is pathlib.Path.unlink), "and nothing is removed"
        shutil.rmtree(aside)
        shutil.copytree(spare, newest)
    assert recovery.recover(run) == (5, {**META, "step": 5}, (), True, False)


@pytest.mark.parametrize("part", ["params", "state"])
def test_of_a_hundred_flipped_bits_each_is_seen(run, part):
    folder, rng = run / "checkpoints" / "5", np.random.default_rng(0)
    contents = {path: path.read_bytes() for path in every_file(folder / part) if path.stat().st_size}
    ends = np.cumsum([len(content) for content in contents.values()])
    for position, bit in zip(rng.integers(0, ends[-1], 100), rng.integers(0, 8, 100)):
        number = int(np.searchsorted(ends, position, side="right"))
        path, whole = list(contents.items())[number]
        damaged = bytearray(whole)
        damaged[position - ends[number]] ^= 1 << int(bit)  # counted from the file's end
        path.write_bytes(damaged)
        assert integrity.faults(folder) == [f"{path.relative_to(folder).as_posix()} has another checksum"]
        path.write_bytes(whole)
    assert not integrity.faults(folder)


def test_inference_refuses_damaged_weights_and_takes_no_others(run, monkeypatch):
    weights = max((run / "checkpoints/5/params").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    folder, _, shapes = checkpoint.describe(run)
    flip(weights)
    words = rf"5 is damaged: params/.*{weights.name} has another checksum; copy it again, or .*: \[2, 4\]"
    with pytest.raises(UserError, match=words):
        load_for_inference(run)
    assert load_for_inference(run, 4).step == 4
    with pytest.raises(UserError, match="has another checksum"):
        checkpoint.load_some(folder, shapes)
    monkeypatch.setenv("LAPA_JAX_CHECKSUMS", "off")
    assert load_for_inference(run).step == 5
    monkeypatch.setenv("LAPA_JAX_CHECKSUMS", "no")
    with pytest.raises(UserError, match="LAPA_JAX_CHECKSUMS=no is not known"):
        load_for_inference(run)


def test_inference_names_whatever_file_of_the_weights_is_damaged(run, tmp_path_factory):
    newest, spare = run / "checkpoints" / "5", tmp_path_factory.mktemp("spare") / "5"
    shutil.copytree(newest, spare)
    names = [path.relative_to(newest) for path in every_file(newest / "params") if path.stat().st_size]
    assert len(names) >= 5
    for name, damage in itertools.product(names, (flip, truncate)):
        damage(newest / name)
        with pytest.raises(UserError, match=f"5 is damaged: .*{name}"):
            load_for_inference(run, 5)
        shutil.copy(spare / name, newest / name)
    assert load_for_inference(run, 5).step == 5


def test_inference_does_not_read_the_optimizer(run):
    for path in every_file(run / "checkpoints/5/state/d"):
        flip(path)
    assert load_for_inference(run).step == 5


def test_a_copy_without_some_files_is_moved_aside_and_named(run):
    for step in (4, 5):
        (run / f"checkpoints/{step}/commit_success.txt").unlink()
    (run / "checkpoints/4.damaged").mkdir()
    assert checkpoint.steps(run) == [2] and load_for_inference(run, 2).step == 2
    words = r"checkpoints/5 is no whole checkpoint \(it lacks commit_success.txt\); copy it again, or .*: \[2\]"
    with pytest.raises(UserError, match=words):  # and the older one is not taken in silence
        load_for_inference(run)
    with pytest.raises(UserError, match="no whole checkpoint"):
        load_for_inference(run / "checkpoints/5")
    recovered = recovery.recover(run)
    assert recovered.step == 2 and len(recovered.lines) == 2
    assert "4 lacks commit_success.txt: moved aside to 4.damaged-2" in recovered.lines[0]
    assert {"2", "4.damaged", "4.damaged-2", "5.damaged"} == {p.name for p in (run / "checkpoints").iterdir()}


def test_a_run_that_has_lost_its_checkpoints_is_refused(run):
    spare = run / "elsewhere"
    check_kept(run)
    os.rename(run / "checkpoints", spare)
    with pytest.raises(UserError, match="no whole checkpoint left: first_checkpoint.json says that one was saved"):
        check_kept(run)
    os.rename(spare, run / "checkpoints")
    for step in (2, 4, 5):
        (run / f"checkpoints/{step}/commit_success.txt").unlink()
    with pytest.raises(UserError, match=r"checkpoints/ holds 2, 4, 5; .* Nothing was changed. Copy the missing"):
        check_kept(run)
    assert {"2", "4", "5"} == {p.name for p in (run / "checkpoints").iterdir()}
    lines = recovery.recover(run).lines
    with pytest.raises(UserError) as refusal:
        check_kept(run, lines)
    assert all(line in str(refusal.value) for line in lines) and "Nothing else was changed" in str(refusal.value)
    assert "<step>.damaged gets its number as its name again" in str(refusal.value)


def test_a_kill_between_a_checkpoint_and_the_note_of_it_is_made_good(run):
    (run / "first_checkpoint.json").unlink()
    Checkpointer(run, keep_last=2, best_metric=None).close()
    assert (run / "first_checkpoint.json").is_file()


def test_a_run_without_that_note_is_refused_by_its_log_or_its_metrics(tmp_path):
    write_json(tmp_path / "config.json", {"train": {"save_every": 5}})
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 10}\n')
    check_kept(tmp_path)  # killed while its first checkpoint was written, and it waited with the second one
    metrics.write_text('{"step": 10}\n{"step": 11}\n')
    with pytest.raises(UserError, match="no whole checkpoint left: metrics.jsonl goes up to step 11, .*every 5"):
        check_kept(tmp_path)
    for text in ("{", "[]", 100_000 * "["):  # which is said where the config is needed
        (tmp_path / "config.json").write_text(text)
        check_kept(tmp_path)
    metrics.unlink()
    (tmp_path / "log.txt").write_text("12:00:00 saved step 3: 1.0 MB in 0.1 s\n")
    with pytest.raises(UserError, match="log.txt says that step 3 was saved"):
        check_kept(tmp_path)


def test_milestones_and_several_best_ones_stay(tmp_path):
    writer = Checkpointer(tmp_path, keep_last=1, best_metric="val/x", keep_best=2, keep_every=4)
    for step in range(1, 10):
        writer.save(make_state(step), step, {**META, "step": step}, {"val/x": -abs(step - 2.4)})
    writer.close()
    assert checkpoint.steps(tmp_path) == [2, 3, 4, 8, 9]
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2


def test_fifty_saves_leave_no_descriptor_no_thread_and_no_object_behind(tmp_path):
    writer, state, seen, blocks = Checkpointer(tmp_path, keep_last=1, best_metric=None), make_state(), [], []
    for step in range(1, 51):
        writer.save(state, step, META, None)
        writer.wait()
        seen.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
        if step in (30, 50):  # caches of some dozens of names are full
            gc.collect()
            blocks.append(sys.getallocatedblocks())
    writer.close()
    assert max(seen[25:]) <= max(seen[:5]), "each save of orbax leaves three and one, where nobody asks for its result"
    assert blocks[1] - blocks[0] < 20 * 40, "as tensorstore is each save leaves 560, of which 480 are its metrics"


def test_another_model_is_refused_with_the_names(run):
    other = make_state(5)
    other.variables["params"]["third"] = {"kernel": jnp.zeros(3)}
    with pytest.raises(Exception, match="third"):
        Checkpointer(run, keep_last=2, best_metric=None).restore(abstract(other, mesh(1, 1)))
