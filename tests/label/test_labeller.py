"""Labels: which pair each step gets, what is on disk, what is refused, and that a second run finishes a first."""

import contextlib
import json
import subprocess
import sys
import tarfile

import ml_collections
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.steps import Options
from lapa_jax.data.shards.labels import check_labels, read_codes, read_label_info
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.inference.kinds import KINDS
from lapa_jax.label.labeller import Labeller
from tests.data.samples import make as two_cameras
from tests.inference import step_shards

GAP = 3


class Reader:
    """Stands in for a tokenizer: its codes are the brightness of the two frames, so they name the pair it was given;
    its deltas the same before rounding, and behind them the change."""

    fingerprint, kind = "f" * 64, KINDS["frame_pair_tokenizer"]
    datasets: dict = {}
    delta_shape = (2, 2)
    code_length, side = 2, step_shards.SIZE

    def __init__(self, gap_frames=GAP, gap_seconds=None, discrete=True):
        self.discrete = discrete
        self.codebook_size = step_shards.LEVELS if discrete else None
        self.config = ml_collections.ConfigDict({"data": {"gap_seconds": gap_seconds, "gap_frames": gap_frames}})
        self.batches = []

    def encode_both(self, frames):
        self.batches.append(len(frames))
        levels = (frames.mean(axis=(2, 3, 4)) / 8).astype(np.float32)
        change = np.broadcast_to(levels[:, 1:] - levels[:, :1], levels.shape)
        encoded = {"delta": np.stack([levels, change], -1)}
        return encoded | ({"codes": np.rint(levels).astype(np.int32)} if self.discrete else {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return step_shards.write(tmp_path_factory.mktemp("data"))


def expected(shards: StepShards, gap: int) -> np.ndarray:
    """The codes of `Reader`, from the definition: (t, t + gap), the last frame where the episode has ended."""
    rows = []
    for episode in shards.episodes:
        number = int(episode.id.removeprefix("ep"))
        for t in range(episode.length):
            second = min(t + gap, episode.length - 1)
            rows.append([(5 * number + t) % 32, (5 * number + second) % 32])
    return np.array(rows, np.int32)


def contents(folder) -> dict[str, bytes]:
    """All files of a folder but the indexes, which hold the time a tar was written."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.endswith(".index.npz")}


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_every_step_gets_the_codes_of_its_pair(data, tmp_path, batch_size):
    Labeller(Reader(), data, tmp_path / "labels").run(batch_size=batch_size, progress=False)
    for split in ("train", "val"):
        source, labels = StepShards(data, split), StepShards(tmp_path / "labels", split)
        assert [labels.key(i) for i in range(len(labels))] == [source.key(i) for i in range(len(source))]
        np.testing.assert_array_equal(read_codes(labels, source), expected(source, GAP))


def test_gap_in_seconds_follows_the_data(data, tmp_path):
    Labeller(Reader(None, 0.2), data, tmp_path / "labels").run(progress=False)
    source = StepShards(data, "val")
    np.testing.assert_array_equal(read_codes(StepShards(tmp_path / "labels", "val"), source), expected(source, 2))
    assert read_label_info(tmp_path / "labels")["gap_frames"] == 2


def test_clipped_pairs_are_marked_and_counted(data, tmp_path):
    summary = Labeller(Reader(), data, tmp_path / "labels").run(progress=False)
    labels = StepShards(tmp_path / "labels", "train")
    for episode in labels.episodes:
        marks = [labels.meta(episode.start + t)["clipped"] for t in range(episode.length)]
        assert marks == [t + GAP > episode.length - 1 for t in range(episode.length)]
    assert summary["splits"]["train"]["clipped"] == 12 and summary["splits"]["train"]["steps"] == 23
    assert summary == json.loads((tmp_path / "labels" / "summary.json").read_text())


def test_full_format_is_a_plain_tar_with_the_source_s_bytes(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "labels", format="full", splits=["train"]).run(progress=False)
    for name in ("train-00000.tar", "train-00001.tar"):
        with tarfile.open(data / name) as before, tarfile.open(tmp_path / "labels" / name) as after:
            old = {m.name: before.extractfile(m).read() for m in before}
            new = {m.name: after.extractfile(m).read() for m in after}
        latents = {n for n in new if n.endswith(".latent.npy")}
        assert new.keys() - latents == old.keys()
        assert {n: b for n, b in old.items() if not n.endswith(".json")}.items() <= new.items()
        assert len(latents) == sum(n.endswith(".image.jpg") for n in old)
    shards = StepShards(tmp_path / "labels", "train")
    assert shards.features["latent"] == {"shape": [2], "dtype": "int32"} and "action" in shards.features
    assert shards.meta(0) == {**StepShards(data, "train").meta(0), "clipped": False}
    assert shards.statistics == StepShards(data, "train").statistics


def test_a_second_run_finishes_the_first_to_the_bit(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "whole").run(batch_size=4, progress=False)
    stopped, calls = Reader(), []

    def encode_both(frames):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return Reader().encode_both(frames)

    stopped.encode_both = encode_both
    with pytest.raises(KeyboardInterrupt):
        Labeller(stopped, data, tmp_path / "labels").run(batch_size=4, progress=False)
    assert (tmp_path / "labels" / "train-00000.tar").exists() and not (tmp_path / "labels" / "dataset.json").exists()
    for name in (".train-00001.tar.1.tmp", ".val-00000.tar.index.npz.1.tmp", ".dataset.json.1.tmp"):
        (tmp_path / "labels" / name).write_bytes(b"left by a killed process")
    again = Reader()
    Labeller(again, data, tmp_path / "labels").run(batch_size=4, progress=False)
    assert sum(again.batches) == 12 + 11
    assert contents(tmp_path / "labels") == contents(tmp_path / "whole")


def deltas(shards: StepShards, gap: int) -> np.ndarray:
    """Those of `Reader`, from the codes above; a flat picture's JPEG is off by less than a level of 255."""
    levels = expected(shards, gap).astype(np.float32)
    return np.stack([levels, np.repeat(levels[:, 1:] - levels[:, :1], 2, axis=1)], -1)


@pytest.mark.parametrize("discrete", [True, False])
def test_continuous_labels_are_the_deltas_with_statistics(data, tmp_path, discrete):
    """Beside the codes of a tokenizer that rounds, alone of one that does not, asked for or not."""
    folder = tmp_path / "labels"
    summary = Labeller(Reader(discrete=discrete), data, folder, continuous=discrete).run(progress=False)
    source, labels = StepShards(data, "train"), StepShards(folder, "train")
    rows = np.concatenate(list(labels.column("delta")))
    assert rows.dtype == np.float32 and rows.shape == (len(source), 2, 2)
    np.testing.assert_allclose(rows, deltas(source, GAP), atol=0.15)
    np.testing.assert_array_equal(labels.array(3, "delta"), rows[3])
    assert ("latent" in labels.features) == discrete
    info, written = read_label_info(folder), labels.statistics["delta"]
    assert info["delta_shape"] == [2, 2] and info["codebook_size"] == (32 if discrete else None)
    np.testing.assert_allclose(written["mean"], rows.reshape(len(rows), -1).mean(0), rtol=1e-5)
    np.testing.assert_allclose(written["std"], rows.reshape(len(rows), -1).std(0), rtol=1e-5)
    np.testing.assert_allclose(summary["splits"]["train"]["delta_std"], rows.std(0), rtol=1e-5)
    if discrete:
        np.testing.assert_array_equal(read_codes(labels, source), expected(source, GAP))
    options = Options(fields=("delta",), labels=str(folder), normalize="mean_std")
    steps = options.open(source)
    batch = steps.batch([0, 5, 6])  # of an episode of 7 steps: the last three have clipped pairs
    np.testing.assert_allclose(batch["delta"].reshape(3, 4) * written["std"] + written["mean"],
                               rows[[0, 5, 6]].reshape(3, 4), rtol=1e-4, atol=1e-4)  # fmt: skip
    assert batch["latent_mask"].tolist() == [1, 0, 0] and steps.numeric == {"delta": 4}
    (meta,) = steps.meta()["datasets"].values()
    assert meta["statistics"]["delta"] == written and meta["features"]["delta"] == {"shape": [2, 2], "dtype": "float32"}


def test_labels_that_lack_what_is_learned_are_refused(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "codes").run(progress=False)
    Labeller(Reader(discrete=False), data, tmp_path / "deltas").run(progress=False)
    source = StepShards(data, "train")
    with pytest.raises(UserError, match="codes has codes and no deltas.*label the data again with .* --continuous"):
        Options(fields=("delta",), labels=str(tmp_path / "codes")).open(source)
    with pytest.raises(UserError, match="deltas has deltas and no codes.*vla_latent.py:continuous"):
        Options(fields=("latent",), labels=str(tmp_path / "deltas")).open(source)


def test_finished_labels_are_recognised(data, tmp_path):
    first = Labeller(Reader(), data, tmp_path / "labels").run(progress=False)
    idle = Reader()
    assert Labeller(idle, data, tmp_path / "labels").run(progress=False) == first
    assert idle.batches == []


def test_hosts_share_the_work_and_the_last_one_concludes(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "one").run(progress=False)
    hosts = [Reader(), Reader()]
    assert Labeller(hosts[1], data, tmp_path / "two").run(host=(1, 2), progress=False) is None
    assert Labeller(hosts[0], data, tmp_path / "two").run(host=(0, 2), progress=False) is not None
    assert sum(hosts[0].batches) == 11 + 11 and sum(hosts[1].batches) == 12
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


HOLDER = """
import pathlib, sys
from lapa_jax.core.share import at_work
with at_work(pathlib.Path(sys.argv[1]), eval(sys.argv[2]), "labelling"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def working(root, out, host):
    """Another process at work on a share of a folder, until it is killed."""
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLDER, str(out), str(host)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield
        process.kill()


@pytest.mark.parametrize("host", [(0, 1), (1, 3)])
def test_shares_of_another_number_are_refused_while_one_is_at_work(data, tmp_path, root, host):
    """They have shards in common: the one deleted what the other was writing."""
    out = tmp_path / "labels"
    in_flight = out / ".train-00001.tar.0123abcd.tmp"
    with working(root, out, (1, 2)):
        in_flight.write_bytes(b"half a shard")
        with pytest.raises(UserError, match=f"a share of 2; this one is of {host[1]}.*the same N"):
            Labeller(Reader(), data, out).run(host=host, progress=False)
        assert in_flight.exists() and not (out / "train-00000.tar").exists()
    Labeller(Reader(), data, out).run(progress=False)  # what was killed holds nothing
    Labeller(Reader(), data, tmp_path / "whole").run(progress=False)
    written = {name: data for name, data in contents(out).items() if not name.startswith(".share")}
    assert written == contents(tmp_path / "whole")


def test_what_all_hosts_write_is_cleared_only_when_no_other_is_at_work(data, tmp_path, root):
    out = tmp_path / "labels"
    with working(root, out, (1, 2)):
        of_all = [out / name for name in (".labels.json.0123abcd.tmp", ".train-00000.tar.index.npz.0123abcd.tmp")]
        mine, of_other = out / ".train-00000.tar.0123abcd.tmp", out / ".train-00001.tar.0123abcd.tmp"
        for path in (*of_all, mine, of_other):
            path.write_bytes(b"half")
        assert Labeller(Reader(), data, out).run(host=(0, 2), progress=False) is None
        assert all(path.exists() for path in (*of_all, of_other)) and not mine.exists()
    Labeller(Reader(), data, out).run(host=(1, 2), progress=False)
    assert not list(out.glob(".*"))


def test_another_labelling_in_the_folder_is_refused(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "labels").run(progress=False)
    with pytest.raises(UserError, match="gap_frames 3, asked 2.*remove it or name another --out"):
        Labeller(Reader(gap_frames=2), data, tmp_path / "labels")
    with pytest.raises(UserError, match="format 'sidecar', asked 'full'"):
        Labeller(Reader(), data, tmp_path / "labels", format="full")


def test_bad_arguments_are_refused(data, tmp_path):
    with pytest.raises(UserError, match="did you mean 'sidecar'"):
        Labeller(Reader(), data, tmp_path / "labels", format="sidecars")
    with pytest.raises(UserError, match="did you mean 'val'"):
        Labeller(Reader(), data, tmp_path / "labels", splits=["vall"])
    with pytest.raises(UserError, match="is the data folder itself"):
        Labeller(Reader(), data, data)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        Labeller(Reader(), data, tmp_path)


def test_data_of_a_mixture_are_labelled_at_their_own_gap(data, tmp_path):
    reader = Reader(gap_frames=1)
    source = StepShards(data, "val")
    mine = {"path": str(data), "weight": 1.0, "gap_frames": 2, "name": "x"}
    reader.config.data.mixture = ({"path": "elsewhere/other", "weight": 1.0}, mine)
    reader.datasets = {"other": {"fingerprint": "0" * 64}, "x": {"fingerprint": source.fingerprint}}
    Labeller(reader, data, tmp_path / "a", splits=["val"]).run(progress=False)
    np.testing.assert_array_equal(read_codes(StepShards(tmp_path / "a", "val"), source), expected(source, 2))
    assert read_label_info(tmp_path / "a")["gap"] == {"seconds": None, "frames": 2}
    reader.datasets["x"] = {"fingerprint": "1" * 64}
    Labeller(reader, data, tmp_path / "b", splits=["val"]).run(progress=False)
    np.testing.assert_array_equal(read_codes(StepShards(tmp_path / "b", "val"), source), expected(source, 1))


def codes_of(folder, camera: str, gap: int) -> np.ndarray:
    """The codes of `Reader` for the images of a camera, read with tarfile and Pillow."""
    rows = []
    for steps in two_cameras.decoded(folder, "val"):
        brightness = [np.rint(step[f"{camera}.jpg"].mean() / 8) for step in steps]
        rows += [(brightness[t], brightness[min(t + gap, len(steps) - 1)]) for t in range(len(steps))]
    return np.array(rows, np.int32)


@pytest.mark.parametrize("camera", ["image", "image_wrist"])
@pytest.mark.parametrize("mixture", [False, True])
def test_labels_are_of_the_camera_that_the_tokenizer_was_trained_on(tmp_path, camera, mixture):
    """That of the run, or of the part of its mixture that the data are."""
    (tmp_path / "data").mkdir()
    folder = two_cameras.write(tmp_path / "data", {"val": [[4, 2, 6]]}, cameras=("image", "image_wrist"))
    source, reader = StepShards(folder, "val"), Reader(gap_frames=1)
    reader.side, gap = two_cameras.SIZE, 1
    reader.config.data.camera = camera
    if mixture:
        gap, reader.config.data.camera = 2, {"image": "image_wrist", "image_wrist": "image"}[camera]
        reader.config.data.mixture = ({"path": str(folder), "weight": 1.0, "camera": camera, "gap_frames": 2},)
        reader.datasets = {"data": {"fingerprint": source.fingerprint}}
    Labeller(reader, folder, tmp_path / "labels").run(progress=False)
    codes = read_codes(StepShards(tmp_path / "labels", "val"), source)
    np.testing.assert_array_equal(codes, codes_of(folder, camera, gap))
    assert not np.array_equal(codes_of(folder, "image", gap), codes_of(folder, "image_wrist", gap))
    settings = json.loads((tmp_path / "labels/labelling.json").read_text())
    assert (settings["camera"], settings["gap"]) == (camera, {"seconds": None, "frames": gap})
    assert read_label_info(tmp_path / "labels")["camera"] == camera


def test_data_without_that_camera_are_refused(data, tmp_path):
    reader = Reader()
    reader.config.data.camera = "image_wrist"
    with pytest.raises(UserError, match="no camera 'image_wrist', whose images this tokenizer was .*has image"):
        Labeller(reader, data, tmp_path / "labels")


def test_labels_are_tied_to_tokenizer_and_data(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "labels").run(progress=False)
    source = StepShards(data, "train")
    assert check_labels(tmp_path / "labels", Reader(), source=source)["code_length"] == 2
    with pytest.raises(UserError, match="made by tokenizer ffffffffffff, not by 000000000000"):
        check_labels(tmp_path / "labels", "0" * 64)
    other = StepShards(step_shards.write(tmp_path / "other", seed=1), "train")
    with pytest.raises(UserError, match="belong to data"):
        check_labels(tmp_path / "labels", Reader(), source=other)
    with pytest.raises(UserError, match="holds no latent labels"):
        read_label_info(data)


def test_codes_of_other_episodes_are_refused(data, tmp_path):
    Labeller(Reader(), data, tmp_path / "labels").run(progress=False)
    with pytest.raises(UserError, match="differ in their episodes"):
        read_codes(StepShards(tmp_path / "labels", "val"), StepShards(data, "train"))
