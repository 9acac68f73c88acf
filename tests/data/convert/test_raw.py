"""Runs that are given HDF5 files in place of step shards."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import h5py
import jax
import ml_collections
import numpy as np
import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.convert import raw, run
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.raw import as_shards
from lapa_jax.data.shards import step_shards
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.run import check_config
from tests import toys
from tests.commands import error_of
from tests.data.formats import make_robomimic

SMALL = {"batch_size": 8, "eval_batch_size": 8}


@pytest.fixture
def source(tmp_path):
    make_robomimic.make(tmp_path)
    return tmp_path / "demos.hdf5"


def config(source, **data):
    places = {"path": str(source), "val_path": None, "mixture": None, **data}
    data = {"samples": "chunks", "fields": ("action",), **places}
    return ml_collections.ConfigDict({"data": data, "train": {}}).lock()


def converted(found, workdir, **options):
    """The config as a run gets it, and the bytes of what is there while it runs."""
    with as_shards(found, workdir, check_config, **options) as new:
        return new, contents(pathlib.Path(new.data.path or "/nowhere"))


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*")) if "index" not in path.name}


def test_a_file_becomes_the_shards_that_the_converter_makes(source, tmp_path, capsys):
    before = source.read_bytes()
    new, got = converted(config(source), tmp_path / "run")
    assert new.data.path == str(tmp_path / "run/shards/demos") and new.is_locked
    said = capsys.readouterr().err
    assert f"converting {source} to step shards" in said and "converted 3 episodes, 16 steps" in said
    run.convert(source, tmp_path / "by_hand", Options(size=None, format="robomimic"))
    assert got == contents(tmp_path / "by_hand") and "train-00000.tar" in got
    assert step_shards.read_dataset(new.data.path)["features"]["image"]["shape"] == [16, 16, 3], "its own size"
    assert len(pipeline.build(new.data, "train")) == 9 and len(pipeline.build(new.data, "val")) == 7
    assert source.read_bytes() == before


def test_a_second_start_uses_it_again_and_a_changed_source_is_refused(source, tmp_path, capsys):
    _, first = converted(config(source), tmp_path / "run")
    tar = tmp_path / "run/shards/demos/train-00000.tar"
    stamp = tar.stat().st_mtime_ns
    os.utime(source)
    _, second = converted(config(source), tmp_path / "run")
    assert second == first and tar.stat().st_mtime_ns == stamp
    assert "is converted already" in capsys.readouterr().err
    with h5py.File(source, "r+") as file:
        file["data/demo_0/rewards"][:] = 1.0
    for dry_run in (False, True):
        with pytest.raises(UserError, match="is not what .*shards/demos was made from.* remove .* to convert it again"):
            converted(config(source), tmp_path / "run", dry_run=dry_run)
    assert contents(tmp_path / "run/shards/demos") == first


def killed(*_):
    raise KeyboardInterrupt


def test_an_interrupted_conversion_is_finished(source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run._Conversion, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            converted(config(source), tmp_path / "run")
    folder = tmp_path / "run/shards/demos"
    assert (folder / step_shards.WORK).exists() and not (folder / step_shards.DATASET).exists()
    _, got = converted(config(source), tmp_path / "run")
    _, want = converted(config(source), tmp_path / "other")
    assert got == want and not (folder / step_shards.WORK).exists()


def test_a_dry_run_converts_for_the_moment_only(source, tmp_path, capsys):
    with as_shards(config(source), tmp_path / "run", check_config, dry_run=True) as new:
        folder = pathlib.Path(new.data.path)
        assert len(pipeline.build(new.data, "train")) == 9 and tmp_path not in folder.parents
    assert not folder.exists() and not (tmp_path / "run").exists()
    assert "in a temporary folder, for this dry run" in capsys.readouterr().err
    kept, _ = converted(config(source), tmp_path / "run")
    again, _ = converted(config(source), tmp_path / "run", dry_run=True)
    assert again.data.path == kept.data.path


def test_parts_of_mixtures_and_files_to_evaluate_on(source, tmp_path):
    other = tmp_path / "other"
    make_robomimic.make(other, seed=1)
    folder = str(tmp_path / "ready")
    run.convert(source, pathlib.Path(folder), Options(size=None))
    parts = ({"path": str(source), "weight": 1.0}, {"path": folder, "weight": 1.0},
             {"path": str(other / "demos.hdf5"), "weight": 2.0, "split_val": None})  # fmt: skip
    new, _ = converted(config(None, path=None, mixture=parts), tmp_path / "run")
    own = tmp_path / "run/shards"
    assert [part["path"] for part in new.data.mixture] == [str(own / "demos"), folder, str(own / "demos-2")]
    assert pipeline.build(new.data, "train").names == ("demos", "ready", "demos-2")
    new, _ = converted(config(source, val_path=str(other / "demos.hdf5")), tmp_path / "second")
    assert len(pipeline.build(new.data, "val")) == sum(make_robomimic.LENGTHS), "held out whole"
    same, _ = converted(config(source, val_path=str(source)), tmp_path / "third")
    assert same.data.val_path == same.data.path and len(pipeline.build(same.data, "val")) == 7


def test_everything_else_stays_what_it_is(source, tmp_path):
    np.savez(tmp_path / "arrays.npz", action=np.zeros((5, 2)))
    plain = tmp_path / "plain.hdf5"
    with h5py.File(plain, "w") as file:
        file["action"] = np.zeros((5, 2))
    for path in ("sample", str(tmp_path), str(tmp_path / "arrays.npz"), str(plain), "/nowhere", None):
        found = config(path)
        with as_shards(found, tmp_path / "run", check_config) as new:
            assert new is found
    with pytest.raises(UserError, match=r"arrays.npz is a file, .*tools/convert.py .*arrays.npz OUT"):
        pipeline.build(config(tmp_path / "arrays.npz").data, "train")
    assert not (tmp_path / "run").exists()
    shutil.copy(source, tmp_path / "demos.dat")
    assert not raw.is_raw(str(tmp_path / "demos.dat")) and raw.is_raw(str(source))


def test_refusals_come_before_anything_is_written(source, tmp_path, root):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        converted(config(source), tmp_path / "run")
    command = ["launch/train.py", "--config", "configs/mstcn.py:small", f"--config.data.path={source}"]
    done = subprocess.run([sys.executable, *command, "--workdir", str(tmp_path / "run")], cwd=root, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(root)})  # fmt: skip
    assert done.returncode == 2 and "holds no run" in error_of(done.stderr), done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    with h5py.File(source, "r+") as file:
        for demo in file["data"].values():
            del demo["obs"]
            demo["states"] = np.zeros(3)
    with pytest.raises(UserError, match="dataset_states_to_obs.py"):
        converted(config(source), tmp_path / "raw")


def test_a_run_trains_on_it_resumes_and_may_be_moved(source, tmp_path, monkeypatch):
    toys.use(monkeypatch)

    def go(workdir, **more):
        found = toys.config("chunks", source, **SMALL, **more)
        with as_shards(found, workdir, check_config) as new:
            train(new, workdir)

    go(tmp_path / "run", steps=3)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    go(tmp_path / "moved")
    go(tmp_path / "whole")
    a, b = (load_for_inference(tmp_path / name) for name in ("moved", "whole"))
    assert a.step == 6 and jax.tree.all(jax.tree.map(np.array_equal, a.variables, b.variables))
    assert list(a.meta["datasets"]) == ["demos"] and a.meta["datasets"] == b.meta["datasets"]
    assert json.loads((tmp_path / "moved/config.json").read_text())["data"]["path"].endswith("moved/shards/demos")
    with pytest.raises(ConfigError, match="data.path: "):
        train(toys.config("chunks", tmp_path / "whole/shards/demos", **SMALL), tmp_path / "moved")
