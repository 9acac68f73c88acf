"""Labels of actions and features: which codes each step gets, remarks and counts, tables, interrupted runs."""

import json

import h5py
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.shards.labels import check_labels, read_codes, read_label_info
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.label import codes as label_sources
from lapa_jax.label.labeller import Labeller
from lapa_jax.label.tables import TableLabeller, read_table
from lapa_jax.train.loop import train
from tests import toys
from tests.data.samples import make
from tests.label.test_labeller import Reader

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A step in the middle of the second episode lacks its action, besides the last step of every episode."""
    folder = tmp_path_factory.mktemp("data") / "arm"
    return make.write(folder, toys.LENGTHS, cameras=(), drop=[(1, 4, "action.npy")])


@pytest.fixture(scope="module")
def tokenizers(data, tmp_path_factory):
    base = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        for toy in toys.KINDS:
            train(toys.config(toy, data, steps=2, eval_every=2), base / toy)
        return {toy: lapa_jax.load(base / toy) for toy in toys.KINDS}


def contents(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".index.npz")}


def expected(tokenizer, folder, split):
    """Codes and flags of every step, from the definition, by an own reading of the shards."""
    codes, flags = [], []
    for episode in make.decoded(folder, split):
        there = np.array([float("action.npy" in step) for step in episode])
        actions = np.stack([step.get("action.npy", np.zeros(3, np.float32)) for step in episode])
        if tokenizer.chunk_length is None:
            codes += list(tokenizer.encode(actions, there))
            flags += (there == 0).tolist()
            continue
        for t in range(len(episode)):
            codes.append(tokenizer.encode(actions[t : t + 4], there[t : t + 4]))
            flags.append(bool(len(there) < t + 4 or not there[t : t + 4].all()))
    return np.stack(codes), np.array(flags)


@pytest.mark.parametrize("toy", ["chunks", "steps"])
@pytest.mark.parametrize("at_once", [1, 15, 4096])
def test_every_step_gets_the_codes_of_its_actions(tokenizers, data, tmp_path, monkeypatch, toy, at_once):
    monkeypatch.setattr(label_sources, "AT_ONCE", at_once)
    summary = Labeller(tokenizers[toy], data, tmp_path / "labels").run(progress=False)
    for split in ("train", "val"):
        source, labels = StepShards(data, split), StepShards(tmp_path / "labels", split)
        codes, flags = expected(tokenizers[toy], data, split)
        np.testing.assert_array_equal(read_codes(labels, source), codes)
        assert [labels.meta(i)["padded"] for i in range(len(labels))] == flags.tolist()
        figures = summary["splits"][split]
        assert figures["padded"] == flags.sum() and figures["steps"] == len(source)
        assert figures["without_action"] == len(source.episodes) + (split == "train")
        real = codes[[source.has(i, "action.npy") for i in range(len(source))]]
        assert [p["used"] for p in figures["positions"]] == [len(np.unique(column)) for column in real.T]
    info = read_label_info(tmp_path / "labels")
    assert info["dataset"] == "arm" and info["column"] == "action" and info["gap_frames"] is None
    assert info["codebook_size"] == {"chunks": 8, "steps": [8, 4]}[toy] and info["code_length"] == 2
    assert check_labels(tmp_path / "labels", tokenizers[toy], source=StepShards(data, "val")) == info


def test_labels_are_read_as_latents_of_steps(tokenizers, data, tmp_path):
    Labeller(tokenizers["steps"], data, tmp_path / "labels").run(progress=False)
    fingerprint = tokenizers["steps"].fingerprint
    asked = {"path": str(data), "samples": "steps", "fields": ("latent", "state"), "labels": str(tmp_path / "labels")}
    source = pipeline.build({**asked, "labels_tokenizer": fingerprint}, "train")
    codes, _ = expected(tokenizers["steps"], data, "train")
    np.testing.assert_array_equal(source.batch(range(len(source)))["latent"], codes)
    with pytest.raises(UserError, match="made by tokenizer"):
        pipeline.build({**asked, "labels_tokenizer": "0" * 64}, "train")


def test_features_as_shards_and_as_tables(tokenizers, data, tmp_path):
    rows = tokenizers["rows"]
    Labeller(rows, data, tmp_path / "labels", format="full").run(progress=False)
    for split in ("train", "val"):
        steps = [step for episode in make.decoded(data, split) for step in episode]
        codes = rows.encode(np.stack([step["feature.npy"] for step in steps]))
        labels = StepShards(tmp_path / "labels", split)
        np.testing.assert_array_equal(np.concatenate(list(labels.column("latent"))), codes)
        assert labels.meta(0) == StepShards(data, split).meta(0)
        for form, name in (("npz", f"{split}.npz"), ("hdf5", f"{split}.h5")):
            TableLabeller(rows, data, tmp_path / form, format=form).run(progress=False)
            table = read_table(tmp_path / form / name)
            np.testing.assert_array_equal(table["codes"], codes)
            ids = [e.id for e in StepShards(data, split).episodes for _ in range(e.length)]
            assert table["episode"].tolist() == ids and set(table) == {"codes", "episode", "step"}
            assert table["step"].tolist() == [step["json"]["step"] for step in steps]
    with np.load(tmp_path / "npz" / "val.npz") as file, h5py.File(tmp_path / "hdf5" / "val.h5") as other:
        assert str(file["tokenizer"]) == other.attrs["tokenizer"] == rows.fingerprint
        assert json.loads(other.attrs["labels"])["source"] == StepShards(data, "val").fingerprint


def test_tables_of_actions_keep_the_remark(tokenizers, data, tmp_path):
    TableLabeller(tokenizers["chunks"], data, tmp_path / "labels", format="npz").run(progress=False)
    table = read_table(tmp_path / "labels" / "train.npz")
    codes, flags = expected(tokenizers["chunks"], data, "train")
    np.testing.assert_array_equal(table["codes"], codes)
    np.testing.assert_array_equal(table["padded"], flags)


@pytest.mark.parametrize("form", ["sidecar", "npz", "hdf5"])
def test_a_second_run_finishes_the_first_to_the_bit(tokenizers, data, tmp_path, monkeypatch, form):
    kind = Labeller if form == "sidecar" else TableLabeller
    chunks = tokenizers["chunks"]
    kind(chunks, data, tmp_path / "whole", format=form).run(progress=False)
    encode, calls = type(chunks).encode_episodes, []

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, *args, **kwargs)

    monkeypatch.setattr(type(chunks), "encode_episodes", stop)
    with pytest.raises(KeyboardInterrupt):
        kind(chunks, data, tmp_path / "labels", format=form).run(progress=False)
    first = {"sidecar": "train-00000.tar", "npz": "train.npz", "hdf5": "train.h5"}[form]
    assert (tmp_path / "labels" / first).is_file() and not (tmp_path / "labels" / "summary.json").exists()
    kind(chunks, data, tmp_path / "labels", format=form).run(progress=False)
    assert len(calls) == (4 if form == "sidecar" else 3), "what was written is not encoded again"
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")
    with pytest.raises(UserError, match="holds another labelling .*tokenizer"):
        kind(tokenizers["steps"], data, tmp_path / "labels", format=form)


def test_what_does_not_fit_is_refused(tokenizers, data, tmp_path):
    out = tmp_path / "labels"
    other = make.write(tmp_path / "other", [4], cameras=(), widths={"action": 5})
    with pytest.raises(UserError, match="actions of 5 numbers; the tokenizer was trained on 3"):
        Labeller(tokenizers["chunks"], other, out)
    with pytest.raises(UserError, match="has no feature, which this tokenizer encodes"):
        Labeller(tokenizers["rows"], other, out)
    gaps = make.write(tmp_path / "gaps", [4], cameras=(), drop=[(0, 2, "feature.npy")])
    with pytest.raises(UserError, match="1 of 4 steps of .* have no feature"):
        Labeller(tokenizers["rows"], gaps, out)
    with pytest.raises(UserError, match="did you mean 'hdf5'"):
        TableLabeller(tokenizers["rows"], data, out, format="hdf")
    with pytest.raises(UserError, match="unknown dataset 'hand'"):
        Labeller(tokenizers["chunks"], data, out, dataset="hand")
    with pytest.raises(UserError, match="--dataset arm says how numbers are scaled"):
        Labeller(Reader(), data, out, dataset="arm")
    assert not out.exists()
