import json

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import image_files
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.formats import lapa, video
from lapa_jax.data.formats.lapa.export import export
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    read_dataset,
    step_key,
    write_dataset,
)
from tests.data.formats import make_lapa

OPTIONS = Options(size=None).for_readers()


def write_labels(folder, data, rng):
    """A sidecar labelled set of step shards, as launch/label.py lays it out; gives {split: int32[steps, 4]}."""
    folder.mkdir()
    codes, splits = {}, {}
    for split in read_dataset(data)["splits"]:
        shards = StepShards(data, split)
        codes[split] = rng.integers(0, 8, (len(shards), 4)).astype(np.int32)
        with ShardWriter(folder / f"{split}-00000.tar") as writer:
            for e in shards.episodes:
                for step in range(e.length):
                    members = {"latent.npy": array_bytes(codes[split][e.start + step])}
                    writer.add(step_key(e.id, step), members)
        counts = {"episodes": len(shards.episodes), "steps": len(shards), "shards": [writer.summary]}
        splits[split] = counts
    info = {"tokenizer": "t", "source": read_dataset(data)["fingerprint"], "gap": {}, "gap_frames": 1}
    info |= {"codebook_size": 8, "code_length": 4, "format": "sidecar", "splits": list(splits)}
    features = {"latent": {"shape": [4], "dtype": "int32"}}
    write_dataset(folder, features=features, fps=None, source={"labels": info}, splits=splits, statistics={})
    return codes


def items_of(folder):
    listing = lapa.find(folder, OPTIONS)
    return listing, {item.name: (item.split, lapa.standardize(folder, item, OPTIONS)) for item in listing.items}


def test_latents_go_out_and_come_back(tmp_path):
    codes = write_labels(tmp_path / "labels", "sample", np.random.default_rng(0))
    report = export("sample", tmp_path / "out", "latent", labels=tmp_path / "labels")
    listing, found = items_of(tmp_path / "out")
    assert not listing.missing and listing.notes == {"instructions_outside_the_prompt": 0}
    for split in ("train", "val"):
        data = StepShards("sample", split)
        assert report["splits"][split] == {"episodes": len(data.episodes), "records": len(data), "pictures": len(data)}
        assert {e.id for e in data.episodes} == {name for name, (told, _) in found.items() if told == split}
        for e in data.episodes:
            episode, steps = found[e.id][1], range(e.start, e.start + e.length)
            np.testing.assert_array_equal(episode.columns["latent"], codes[split][e.start : e.start + e.length])
            assert list(episode.cameras["image"]) == [data.read(i)["image.jpg"] for i in steps]
            assert episode.text == data.text(e.start)
    assert report["left_out"] == {f"action ({s})": len(StepShards("sample", s)) for s in ("train", "val")}


def test_a_record_of_stage_2_is_lapas(tmp_path):
    codes = write_labels(tmp_path / "labels", "sample", np.random.default_rng(0))
    export("sample", tmp_path / "out", "latent", ["val"], tmp_path / "labels")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["images", "val.jsonl"]
    data = StepShards("sample", "val")
    records = [json.loads(line) for line in (tmp_path / "out" / "val.jsonl").read_text().splitlines()]
    asked = f"What action should the robot take to `{data.text(3)}`"
    assert records[3] == {
        "id": f"{data.episodes[0].id}_3",
        "image": f"images/val/{data.episodes[0].id}/img_00003.jpg",
        "instruction": f"<s> You are a helpful assistant. USER: {asked} ASSISTANT:",
        "delta": [str(c) for c in codes["val"][3]],
        "fields": "[instruction],[vision],delta",
    }
    assert all((tmp_path / "out" / r["image"]).is_file() for r in records)


def test_finetuning_data_go_out_and_come_back(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    make_lapa.make(source)
    convert(source, tmp_path / "shards", Options(format="lapa", size=None, val_fraction=0.4), 0)
    report = export(tmp_path / "shards", tmp_path / "out", "finetune")
    before = {r["id"]: r for r in json.loads((source / "train.json").read_text())}
    after = [r for split in report["splits"] for r in json.loads((tmp_path / "out" / f"{split}.json").read_text())]
    assert len(after) == len(before) == 16 and not report["left_out"]
    ids = {name.replace("_", "-"): name for name in make_lapa.STEPS}
    for record in after:
        episode, _, step = record["id"].rpartition("_")
        old = before[f"{ids[episode]}_{step}"]
        assert record["conversations"][0] == old["conversations"][0]
        new_answer, old_answer = record["conversations"][1], old["conversations"][1]
        np.testing.assert_array_equal(new_answer["raw_actions"], np.float32(old_answer["raw_actions"]))
        assert list(new_answer["states"]) == list(old_answer["states"])
        for name, values in old_answer["states"].items():
            np.testing.assert_array_equal(new_answer["states"][name], np.float32(values))
        assert (tmp_path / "out" / record["image"]).read_bytes() == (source / old["image"]).read_bytes()


def test_steps_without_an_action_are_counted(tmp_path):
    report = export("sample", tmp_path / "out", "finetune", ["train"])
    data = StepShards("sample")
    assert report["splits"]["train"]["records"] == len(data) - len(data.episodes)
    assert report["left_out"] == {"steps without an action, the last of their episodes": len(data.episodes)}
    _, found = items_of(tmp_path / "out")
    for e in data.episodes:
        actions = [data.array(e.start + t, "action") for t in range(e.length - 1)]
        np.testing.assert_array_equal(found[e.id][1].columns["action"], actions)


def test_frame_folders_go_out_and_come_back(tmp_path):
    report = export("sample", tmp_path / "out", "frames", ["val"])
    data = StepShards("sample", "val")
    assert report["splits"] == {"val": {"episodes": len(data.episodes), "records": 0, "pictures": len(data)}}
    root = tmp_path / "out" / "val"
    assert sorted(p.name for p in root.iterdir()) == sorted(e.id for e in data.episodes)
    e = data.episodes[1]
    # as LAPA's stage 1 sorts them
    names = sorted((root / e.id).iterdir(), key=lambda p: int(p.name.split(".")[0][4:]))
    assert [p.read_bytes() for p in names] == [data.read(e.start + t)["image.jpg"] for t in range(e.length)]
    item = next(i for i in video.find(root, OPTIONS).items if i.name == e.id)
    frames = list(video.standardize(root, item, OPTIONS).cameras["image"])
    assert len(frames) == e.length
    for t, frame in enumerate(frames):
        shown = image_files.open_frame(frame).astype(int)
        assert np.abs(shown - data.image(e.start + t)).max() <= 2, "the same JPEG by another decoder"


def test_state_vectors_keep_their_order(tmp_path):
    for names, expected in (
        (["p.0", "p.1", "g"], {"p": [1, 2], "g": 3}),
        (["p.0", "g", "p.1"], {"state": [1, 2, 3]}),
        (["p", "q"], {"state": [1, 2, 3]}),
        (None, {"state": [1, 2, 3]}),
    ):
        folder = tmp_path / str(names)
        folder.mkdir()
        picture = StepShards("sample").read(0)["image.jpg"]
        members = {"image.jpg": picture, "txt": b"go", "action.npy": array_bytes(np.ones(1, "f4"))}
        with ShardWriter(folder / "train-00000.tar") as writer:
            writer.add(step_key("e", 0), {**members, "state.npy": array_bytes(np.float32([1, 2, 3]))})
        features = {"image": {}, "action": {}, "state": {"names": names} if names else {}}
        splits = {"train": {"episodes": 1, "steps": 1, "shards": [writer.summary]}}
        write_dataset(folder, features=features, fps=None, source={}, splits=splits, statistics={})
        export(folder, folder / "out", "finetune")
        (record,) = json.loads((folder / "out" / "train.json").read_text())
        assert record["conversations"][1]["states"] == expected


def test_nothing_half_done_stays(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(StepShards, "text", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="full"):
        export("sample", tmp_path / "out", "finetune")
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not any((tmp_path / "out").iterdir())


def test_what_is_refused(tmp_path):
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "x").write_text("x")
    for arguments, message in (
        (("sample", tmp_path / "held", "frames"), "held is not an empty folder"),
        (("sample", tmp_path / "out", "latents"), "did you mean 'latent'"),
        (("sample", tmp_path / "out", "latent"), "no latent actions; label it with launch/label.py.*--labels"),
        (("sample", tmp_path / "out", "frames", ["test"]), "no steps in split 'test'"),
        (("sample", tmp_path / "out", "frames", None, tmp_path), "belong to --kind latent"),
        (("sample", tmp_path / "out", "latent", None, tmp_path / "held"), "no step shards"),
        ((tmp_path / "nowhere", tmp_path / "out", "frames"), "nowhere does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            export(*arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["held"]


def test_labels_of_other_data_are_refused(tmp_path):
    write_labels(tmp_path / "labels", "sample", np.random.default_rng(0))
    dataset = json.loads((tmp_path / "labels" / "dataset.json").read_text())
    dataset["source"]["labels"]["source"] = "of something else"
    (tmp_path / "labels" / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(UserError, match="belong to data"):
        export("sample", tmp_path / "out", "latent", labels=tmp_path / "labels")


def test_steps_without_an_instruction_are_refused(tmp_path):
    stored = StepShards("sample").read(0)
    with ShardWriter(tmp_path / "train-00000.tar") as writer:
        writer.add(step_key("e", 0), {field: stored[field] for field in ("image.jpg", "action.npy")})
    splits = {"train": {"episodes": 1, "steps": 1, "shards": [writer.summary]}}
    features = {"image": {}, "action": {}}
    write_dataset(tmp_path, features=features, fps=None, source={}, splits=splits, statistics={})
    with pytest.raises(UserError, match="step e_000000 has no instruction"):
        export(tmp_path, tmp_path / "out", "finetune")
    assert export(tmp_path, tmp_path / "out", "frames")["splits"]["train"]["pictures"] == 1
