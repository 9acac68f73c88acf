import copy
import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.steps import Options, Steps
from lapa_jax.data.shards.files import DamagedSample
from lapa_jax.data.shards.labels import read_label_info
from lapa_jax.data.shards.step_shards import ShardWriter, StepShards, array_bytes, write_dataset
from tests.data.samples import make

ALL = ("image", "text", "state", "action", "feature", "latent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    drop = [(0, 2, "image_wrist.jpg"), (1, 1, "txt"), (2, 0, "state.npy")]
    return make.write(out, {"train": [[5, 4], [6]], "val": [[3]]}, cameras=("image", "image_wrist"), latents=4,
                      texts=["push", "pull", "lift", "put"], drop=drop)  # fmt: skip


def expected(folder, members):
    """(episode, step, members) of each step that has all of them."""
    return [(e, t, step) for e, episode in enumerate(make.decoded(folder)) for t, step in enumerate(episode)
            if set(members) <= set(step)]  # fmt: skip


def test_every_field_of_every_step_that_has_them_all(folder):
    source = Steps(StepShards(folder), Options(fields=ALL))
    members = ["image.jpg", "txt", "state.npy", "action.npy", "feature.npy", "latent.npy"]
    wanted = expected(folder, members)
    batch = source.batch(range(len(source)))
    assert len(wanted) == 15 - 3 - 1 - 1 == len(source), "three last steps, one without text, one without state"
    assert list(zip(batch["episode_id"], batch["step"])) == [(e, t) for e, t, _ in wanted]
    assert batch["text"].tolist() == [step["txt"] for *_, step in wanted]
    for name in ("state", "action", "feature", "latent"):
        np.testing.assert_array_equal(batch[name], [step[f"{name}.npy"] for *_, step in wanted])
    assert batch["latent"].dtype == np.int32 and batch["action"].dtype == np.float32
    assert batch["image"].shape == (10, 16, 16, 3)
    assert make.close(batch["image"], [step["image.jpg"] for *_, step in wanted])
    assert source.summary() == {
        "episodes": 3, "steps": 15, "samples": 10, "steps_without_image": 0, "steps_without_text": 1,
        "steps_without_state": 1, "steps_without_action": 3, "steps_without_feature": 0, "steps_without_latent": 0,
        "samples_with_clipped_latent": 0,
    }  # fmt: skip
    one = source[7]
    assert all(np.array_equal(one[name], batch[name][7]) for name in batch) and source.locate(7) == wanted[7][:2]


def test_the_order_of_indices_is_that_of_the_batch(folder):
    source = Steps(StepShards(folder), Options(fields=("image", "state")))
    some, every = source.batch([7, 0, 7, 3]), source.batch(range(len(source)))
    for name in every:
        np.testing.assert_array_equal(some[name], every[name][[7, 0, 7, 3]])
    for wrong in ([len(source)], [-1]):
        with pytest.raises(IndexError):
            source.batch(wrong)


def test_several_cameras_have_an_axis_and_steps_need_all_of_them(folder):
    shards = StepShards(folder)
    source = Steps(shards, Options(camera=("image_wrist", "image"), image_size=8))
    wanted = expected(folder, ["image.jpg", "image_wrist.jpg"])
    assert len(source) == len(wanted) == 14
    views = source[5]["image"]
    assert views.shape == (2, 8, 8, 3)
    for view, member in zip(views, ("image_wrist.jpg", "image.jpg")):
        picture = Image.fromarray(wanted[5][2][member]).resize((8, 8), Image.Resampling.BILINEAR)
        assert make.close(view, np.asarray(picture))
    one = Steps(shards, Options(camera="image_wrist"))
    assert one[0]["image"].shape == (16, 16, 3) and make.close(one[0]["image"], wanted[0][2]["image_wrist.jpg"])
    with pytest.raises(UserError, match="no camera 'wrist'.*did you mean 'image_wrist'"):
        Steps(shards, Options(camera="wrist"))


def test_an_empty_batch_tells_shapes(folder):
    source = Steps(StepShards(folder), Options(fields=ALL, text_tokenizer={"name": "bytes"}, text_length=12))
    empty, full = source.batch([]), source.batch([0, 1])
    for name in full:
        assert empty[name].shape == (0, *full[name].shape[1:]) and empty[name].dtype == full[name].dtype


def test_text_as_tokens(folder):
    source = Steps(StepShards(folder), Options(fields=("text",), text_tokenizer={"name": "bytes"}, text_length=6))
    sample = source[0]
    assert sample["text"].tolist() == [1, *(3 + b for b in b"push"), 0] and sample["text"].dtype == np.int32
    assert sample["text_mask"].tolist() == [1, 1, 1, 1, 1, 0] and sample["text_mask"].dtype == np.float32
    with pytest.raises(UserError, match="takes 5 tokens.*4 are allowed"):
        Steps(StepShards(folder), Options(fields=("text",), text_tokenizer={"name": "bytes"}, text_length=4))


def test_the_longest_instruction_tells_the_length_of_all(tmp_path):
    texts = ["push", "take the cup to the left"]
    folder = make.write(tmp_path, {"train": [[3, 3]], "val": [[3]]}, texts=[*texts, "x" * 40])
    options = Options(fields=("text",), text_tokenizer={"name": "bytes"}, text_length=None)
    source = Steps(StepShards(folder), options)
    longest = 1 + len(texts[1])  # one token begins an instruction
    assert source.text_lengths == (32, longest) and source[0]["text"].shape == (32,)
    assert Steps(StepShards(folder, "val"), options).text_lengths == (48, 41)
    masks = source.batch(range(6))["text_mask"]
    assert masks.sum(1).tolist() == [5.0] * 3 + [float(longest)] * 3
    given = Steps(StepShards(folder), dataclasses.replace(options, text_length=40)).batch(range(6))
    source.widen_texts(40)
    wide = source.batch(range(6))
    for name in ("text", "text_mask"):
        np.testing.assert_array_equal(wide[name], given[name])
        assert wide[name].dtype == given[name].dtype
    source.widen_texts(16)
    assert source.text_lengths == (40, longest), "and never cut"
    assert Steps(StepShards(folder), Options(fields=("action",))).text_lengths == (0, 0)
    with pytest.raises(UserError, match="text_length"):
        Options(fields=("text",), text_length=0)


def test_workers_are_sent_a_few_bits_of_each_step(tmp_path):
    sizes, options = [], Options(fields=("state", "action", "text"), text_tokenizer={"name": "bytes"}, text_length=8)
    for steps in (100, 500):
        folder = tmp_path / str(steps)
        folder.mkdir()
        make.write(folder, [steps // 2, steps // 2], cameras=(), texts=["push", "pull"])
        source = Steps(StepShards(folder), options)
        sizes.append(len(pickle.dumps(source)))
        other = copy.deepcopy(source)  # goes by the same protocol
        for name, values in source.batch(range(len(source))).items():
            np.testing.assert_array_equal(other.batch(range(len(source)))[name], values)
    assert sizes[1] - sizes[0] < 400, "less than a byte for each of 400 more steps"


def test_instructions_of_all_steps_are_measured(tmp_path):
    """Not only those at the beginning of an episode."""
    later = "push it until it touches the other one"
    folder = make.write(tmp_path, [4], texts=[["push", "push", later, "push"]])
    options = Options(fields=("text",), text_tokenizer={"name": "bytes"}, text_length=16)
    with pytest.raises(UserError, match=f"takes {1 + len(later)} tokens.*16 are allowed"):
        Steps(StepShards(folder), options)
    source = Steps(StepShards(folder), dataclasses.replace(options, text_length=None))
    assert source.text_lengths == (40, 1 + len(later)) and source.instructions() == ["push", later]
    assert source.batch(range(4))["text_mask"].sum(1).tolist() == [5.0, 5.0, 39.0, 5.0]


def test_normalisation_per_dimension(folder):
    shards = StepShards(folder)
    raw = Steps(shards, Options(fields=("action", "state", "latent"), labels=None)).batch(range(10))
    scaled = Steps(shards, Options(fields=("action", "state", "latent"), normalize="mean_std")).batch(range(10))
    statistics = shards.statistics["action"]
    by_hand = (raw["action"] - np.array(statistics["mean"])) / np.array(statistics["std"])
    np.testing.assert_allclose(scaled["action"], by_hand, atol=1e-5)
    np.testing.assert_array_equal(scaled["latent"], raw["latent"])
    halves = [s / 2 for s in statistics["std"]]
    other = {**shards.statistics, "action": {**statistics, "mean": [0.0] * 3, "std": halves}}
    given = Steps(shards, Options(fields=("action", "state", "latent"), normalize="mean_std"), other)
    np.testing.assert_allclose(given.batch(range(10))["action"], raw["action"] / halves, atol=1e-5)
    assert given.meta()["datasets"][folder.name]["statistics"]["action"]["std"] == halves
    with pytest.raises(UserError, match="no statistics of its column 'action'"):
        Steps(shards, Options(fields=("action",), normalize="mean_std"), {})


def write_labels(out, source: StepShards, *, tokenizer="t" * 64, fingerprint=None, skip=()):
    """A sidecar as launch/label.py writes it, whose codes tell the step."""
    with ShardWriter(out / f"{source.split}-00000.tar") as writer:
        for i in range(len(source)):
            if i not in skip:
                codes = np.array([source.episode_of(i), i], np.int32)
                writer.add(source.key(i), {"latent.npy": array_bytes(codes)})
    info = {"tokenizer": tokenizer, "source": fingerprint or source.fingerprint, "gap_frames": 1, "codebook_size": 8,
            "code_length": 2, "format": "sidecar"}  # fmt: skip
    steps = writer.summary["samples"]
    splits = {source.split: {"episodes": len(source.episodes), "steps": steps, "shards": [writer.summary]}}
    write_dataset(out, features={"latent": {"shape": [2], "dtype": "int32"}}, fps=None, source={"labels": info},
                  splits=splits, statistics={})  # fmt: skip
    return out


def test_latents_from_a_sidecar(folder, tmp_path):
    shards = StepShards(folder)
    labels = write_labels(tmp_path / "labels", shards)
    options = Options(fields=("image", "latent"), labels=str(labels), labels_tokenizer="t" * 64)
    source = Steps(shards, options)
    assert source.batch([0, 14])["latent"].tolist() == [[0, 0], [2, 14]], "the sidecar goes before the shards' own"
    meta = source.meta()
    assert meta["datasets"][folder.name]["labels"] == read_label_info(labels)
    own = Steps(shards, Options(fields=("image", "latent"))).meta()
    assert own["data_fingerprint"] == shards.fingerprint != meta["data_fingerprint"]
    again = Steps(shards, Options(fields=("latent",), labels=str(write_labels(tmp_path / "b", shards, tokenizer="u"))))
    assert again.meta()["data_fingerprint"] != meta["data_fingerprint"], "labels of another tokenizer are other data"


def test_labels_that_do_not_belong_are_refused(folder, tmp_path):
    shards = StepShards(folder)
    with pytest.raises(UserError, match="made by tokenizer tttt.*not by uuuu"):
        Steps(shards, Options(fields=("latent",), labels=str(write_labels(tmp_path / "a", shards)),
                              labels_tokenizer="u" * 64))  # fmt: skip
    with pytest.raises(UserError, match="belong to data ffff"):
        labels = write_labels(tmp_path / "b", shards, fingerprint="f" * 64)
        Steps(shards, Options(fields=("latent",), labels=str(labels)))
    with pytest.raises(UserError, match="differ in their episodes.*ep2"):
        labels = write_labels(tmp_path / "c", shards, skip=(14,))
        Steps(shards, Options(fields=("latent",), labels=str(labels)))
    with pytest.raises(UserError, match="no steps in split 'val'"):
        Steps(StepShards(folder, "val"), Options(fields=("latent",), labels=str(tmp_path / "a")))


def test_what_the_data_lack_is_refused_and_what_is_not_asked_for_may_lack(tmp_path):
    bare = StepShards(make.write(tmp_path / "bare", [4, 3], cameras=(), widths={"feature": 5}))
    features = Steps(bare, Options(fields=("feature",)))
    rows = [step["feature.npy"] for episode in make.decoded(bare.folder) for step in episode]
    np.testing.assert_array_equal(features.batch(range(7))["feature"], rows)
    for name, words in (("image", "no images"), ("text", "no step of .* has 'text'"), ("action", "no action"),
                        ("latent", "no latent labels; label it with launch/label.py")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Steps(bare, Options(fields=("feature", name)))
    with pytest.raises(UserError, match="'imag' is no field.*did you mean 'image'"):
        Options(fields=("imag",))
    with pytest.raises(UserError, match="did you mean 'mean_std'"):
        Options(normalize="meanstd")


def test_a_damaged_row_is_an_error_of_its_own_samples_only(folder, tmp_path):
    out = tmp_path / "copy"
    out.mkdir()
    for path in folder.iterdir():
        if path.suffix in (".tar", ".json"):
            (out / path.name).write_bytes(path.read_bytes())
    whole = (out / "train-00000.tar").read_bytes()
    at = whole.index(b"ep1_000002.action.npy") + 512 + 130
    (out / "train-00000.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    source = Steps(StepShards(out), Options(fields=("action",)))
    bad = [i for i in range(len(source)) if source.locate(i) == (1, 2)]
    with pytest.raises(DamagedSample, match=r"train-00000\.tar.*ep1_000002\.action\.npy"):
        source.batch([0, *bad])
    rest = [i for i in range(len(source)) if i not in bad]
    clean = Steps(StepShards(folder), Options(fields=("action",)))
    np.testing.assert_array_equal(source.batch(rest)["action"], clean.batch(rest)["action"])


def test_a_row_that_is_not_finite_is_damaged(tmp_path):
    folder = make.write(tmp_path, [3], cameras=(), widths={"state": 2})
    row = array_bytes(np.array([1.0, np.nan], np.float32))
    with ShardWriter(folder / "train-00000.tar") as writer:
        for step in range(3):
            writer.add(f"ep0_{step:06d}", {"state.npy": array_bytes(np.zeros(2, np.float64)) if step else row})
    splits = {"train": {"episodes": 1, "steps": 3, "shards": [writer.summary]}}
    write_dataset(folder, features={"state": {"shape": [2]}}, fps=None, source={}, splits=splits, statistics={})
    source = Steps(StepShards(folder), Options(fields=("state",)))
    assert source.batch([1, 2])["state"].tolist() == [[0, 0], [0, 0]]
    with pytest.raises(DamagedSample, match="ep0_000000.state.npy.*not finite"):
        source[0]


def test_a_source_pickles(folder):
    source = Steps(StepShards(folder), Options(fields=ALL))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301
    assert repr(again) == repr(source)
    for name, values in source.batch([3, 1]).items():
        np.testing.assert_array_equal(again.batch([3, 1])[name], values)
