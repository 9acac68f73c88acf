import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import av
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import StepShards
from tests.data import videos
from tests.killing import dies_at, run_until_done_with_kills, timed
from tools.convert import main
from tools.torture.processes import differences

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "convert.py"), *map(str, arguments)]


def run(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def go(source, out, workers=0, max_errors=0, **options):
    options = {"format": "video", "size": 32, "val_fraction": 0.3, **options}
    return convert(source, out, Options(**options), workers, max_errors=max_errors)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    for k in range(6):
        videos.write(folder / ("nested/deep" if k % 2 else "flat") / f"v{k}.{'mp4' if k < 4 else 'webm'}", 5 + k)
    for k in (0, 1, 2, 10):
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(videos.frame(k)).save(folder / "pictures" / f"{k}.png")
    return folder


def episodes_of(out) -> dict[str, list[int]]:
    """{episode id: the number each of its pictures tells} over both splits."""
    found = {}
    for split in json.loads((out / "dataset.json").read_text())["splits"]:
        data = StepShards(out, split)
        for e in data.episodes:
            found[e.id] = [videos.number_of(data.image(e.start + t)) for t in range(e.length)]
    return found


def test_a_folder_becomes_step_shards(source, tmp_path):
    report = go(source, tmp_path / "out", samples_per_shard=12)
    expected = {f"{'nested-deep' if k % 2 else 'flat'}-v{k}": list(range(5 + k)) for k in range(6)}
    expected["pictures"] = [0, 1, 2, 10]
    assert episodes_of(tmp_path / "out") == expected
    assert report["episodes"] == 7 and report["steps"] == 49 and report["errors"] == []
    names = sorted(os.listdir(tmp_path / "out"))
    assert ".convert" not in names and not [n for n in names if n.endswith(".tmp")]
    dataset = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert all(s["samples"] <= 12 for split in dataset["splits"].values() for s in split["shards"])
    assert {"train", "val"} == set(dataset["splits"]) and dataset["fps"] is None, "pictures have no clock"
    assert StepShards(tmp_path / "out").meta(0) == {
        "episode": "flat-v0", "step": 0, "length": 5, "fps": 10.0, "source": "flat/v0.mp4",
    }  # fmt: skip


def test_frames_agree_with_an_independent_reading(tmp_path, shared):
    source = shared / "data" / "real_clips"
    go(source, tmp_path / "out", size=256, split="train")
    data = StepShards(tmp_path / "out")
    for episode in data.episodes[:2] + data.episodes[-1:]:
        with av.open(str(source / data.meta(episode.start)["source"])) as container:
            frames = [f.to_image() for f in container.decode(video=0)]
        assert len(frames) == episode.length
        for t in range(0, episode.length, 7):
            expected = np.asarray(frames[t].resize((256, 256), Image.Resampling.BILINEAR), np.float64)
            error = np.square(data.image(episode.start + t) - expected).mean()
            assert 10 * np.log10(255**2 / error) > 34, "dB, the loss of JPEG at quality 95"


def test_arrays_travel_with_their_frames(tmp_path, shared):
    source = shared / "data" / "push_table"
    table = [json.loads(line) for line in (source / "episodes.jsonl").read_text().splitlines()]
    few = tmp_path / "few"
    rows = table[:3] + table[-2:]
    for row in rows:
        for name in (row["video"], row["arrays"]):
            (few / name).parent.mkdir(parents=True, exist_ok=True)
            (few / name).write_bytes((source / name).read_bytes())
    (few / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    go(few, tmp_path / "out", size=128, captions=str(few / "episodes.jsonl"), split="val")
    data = StepShards(tmp_path / "out", "val")
    assert data.features["action"] == {"shape": [2], "dtype": "float32"} and data.fps == 10
    by_path = {data.meta(e.start)["source"]: e for e in data.episodes}
    actions = []
    for row in rows:
        episode = by_path[row["video"]]
        arrays = np.load(source / row["arrays"])
        assert episode.length == row["frames"] == len(arrays["action"]) + 1
        for t in range(episode.length - 1):
            np.testing.assert_array_equal(data.array(episode.start + t, "action"), arrays["action"][t])
            np.testing.assert_array_equal(data.array(episode.start + t, "state"), arrays["state"][t])
        assert not data.has(episode.start + episode.length - 1, "action.npy")
        assert data.text(episode.start + 3) == row["instruction"]
        actions.append(arrays["action"])
    actions = np.concatenate(actions).astype(np.float64)
    assert data.statistics["action"]["count"] == len(actions)
    np.testing.assert_allclose(data.statistics["action"]["std"], actions.std(0), rtol=1e-9)
    np.testing.assert_allclose(data.statistics["action"]["q99"], np.quantile(actions, 0.99, axis=0), rtol=1e-9)
    with pytest.raises(UserError, match="--fps would drop frames"):
        go(few, tmp_path / "other", fps=5.0, captions=str(few / "episodes.jsonl"))


def write_arrays(folder, **arrays):
    np.savez(folder / "a.npz", **arrays)
    (folder / "c.jsonl").write_text(json.dumps({"video": "v.mp4", "label": "x", "arrays": "a.npz"}))


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"action": np.zeros((6, 2))}, "5 steps and 6 actions"),
        ({"action": np.full((4, 2), np.nan)}, "not finite"),
        ({"action": np.zeros((4, 2)), "state": np.zeros((9, 2))}, "9 rows of 'state'"),
        ({"action": np.array([{}] * 4)}, "cannot be read|has no 'action'"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message):
    (tmp_path / "in").mkdir()
    videos.write(tmp_path / "in" / "v.mp4", 5)
    write_arrays(tmp_path / "in", **arrays)
    if arrays["action"].dtype == object:
        videos.write(tmp_path / "in" / "u.mp4", 5)
        np.savez(tmp_path / "in" / "good.npz", action=np.zeros((4, 2)))
        with open(tmp_path / "in" / "c.jsonl", "a") as file:
            file.write("\n" + json.dumps({"video": "u.mp4", "label": "x", "arrays": "good.npz"}))
    with pytest.raises(UserError, match=message):
        go(tmp_path / "in", tmp_path / "out", captions=str(tmp_path / "in" / "c.jsonl"))


def test_workers_give_the_same_bytes(source, tmp_path):
    go(source, tmp_path / "one", workers=0, samples_per_shard=15)
    done = run(source, tmp_path / "two", "--size", 32, "--val_fraction", 0.3, "--samples_per_shard", 15, "--workers", 3)
    assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "one", tmp_path / "two") == []


def test_kills_change_nothing(tmp_path):
    source = tmp_path / "source"
    for k in range(24):
        videos.write(source / f"v{k}.mp4", 20)
    arguments = ["--size", 256, "--samples_per_shard", 90, "--workers", 2]
    whole, killed = command(source, tmp_path / "whole", *arguments), command(source, tmp_path / "killed", *arguments)
    duration, startup = timed(whole, environment()), timed(whole, environment())
    hits = run_until_done_with_kills(killed, kills=2, seed=0, duration=duration, startup=startup, env=environment())
    assert hits >= 1
    assert differences(tmp_path / "whole", tmp_path / "killed") == []
    assert len(StepShards(tmp_path / "killed")) > 0


def test_every_moment_can_be_the_last(tmp_path, monkeypatch):
    """Stops before each rename, flush and deletion in turn, as a kill there would, and runs again."""
    source = tmp_path / "source"
    for k in range(4):
        videos.write(source / f"v{k}.mp4", 3)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    go(source, tmp_path / "whole", samples_per_shard=5)

    for stop in range(200):
        out = tmp_path / f"out{stop}"
        if not dies_at(monkeypatch, stop, lambda out=out: go(source, out, samples_per_shard=5)):
            break
        go(source, out, samples_per_shard=5)
        assert differences(tmp_path / "whole", out) == [], f"stopped at call {stop}"
    assert stop > 40, "the loop ended because a run was no longer hit"


def test_a_finished_output_is_recognised(source, tmp_path):
    arguments = (source, tmp_path / "out", "--size", 32, "--workers", 0)
    assert run(*arguments).returncode == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    again = run(*arguments)
    assert again.returncode == 0 and "already finished: 7 episodes" in again.stdout
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    other = run(source, tmp_path / "out", "--size", 48, "--workers", 0)
    assert other.returncode == 2 and "--size was 32, now 48" in other.stderr
    videos.write(source / "new.mp4", 4)
    grown = run(*arguments)
    assert grown.returncode == 2 and "changed" in grown.stderr and "Traceback" not in grown.stderr


def test_unreadable_files_are_listed_and_finished_work_is_kept(source, tmp_path):
    (source / "flat" / "broken.mp4").write_bytes(b"no video")
    (source / "flat" / "empty.gif").write_bytes(b"")
    failed = run(source, tmp_path / "out", "--size", 32, "--workers", 2, "--max_errors", 1)
    assert failed.returncode == 2 and failed.stderr.count("error:") == 1 and "Traceback" not in failed.stderr
    assert "2 of 9 episodes cannot be read" in failed.stderr and "flat/broken.mp4" in failed.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [e["path"] for e in report["errors"]] == ["flat/broken.mp4", "flat/empty.gif"] and report["episodes"] == 7
    with pytest.raises(UserError, match="unfinished conversion"):
        StepShards(tmp_path / "out")
    kept = len(list((tmp_path / "out" / ".convert" / "parts").glob("*.json")))
    assert kept + len(list((tmp_path / "out").glob("*.tar"))) > 0
    done = run(source, tmp_path / "out", "--size", 32, "--workers", 0, "--max_errors", 2)
    assert done.returncode == 0 and "2 errors" in done.stdout and "unreadable: flat/broken.mp4" in done.stdout
    assert len(episodes_of(tmp_path / "out")) == 7


def test_a_mended_file_gives_what_a_whole_source_would(source, tmp_path):
    path = source / "flat" / "v2.mp4"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with pytest.raises(UserError, match="1 of 7"):
        go(source, tmp_path / "out")
    path.write_bytes(good)
    go(source, tmp_path / "out")
    go(source, tmp_path / "fresh")
    assert differences(tmp_path / "out", tmp_path / "fresh") == []


def test_a_source_that_changed_underway_is_refused(source, tmp_path):
    (source / "flat" / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read"):
        go(source, tmp_path / "out")
    with pytest.raises(UserError, match="--quality was 95, now 80"):
        go(source, tmp_path / "out", quality=80)
    videos.write(source / "flat" / "v0.mp4", 9)
    with pytest.raises(UserError, match=r"flat/v0\.mp4 has changed"):
        go(source, tmp_path / "out")


def test_two_conversions_to_one_folder(source, tmp_path):
    for k in range(30):
        videos.write(source / f"more{k}.mp4", 28)
    arguments = command(source, tmp_path / "out", "--size", 512, "--workers", 1)
    first = subprocess.Popen(arguments, env=environment(), start_new_session=True)
    try:
        while not list((tmp_path / "out").glob(".convert/parts/*.json")):
            assert first.poll() is None
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGSTOP)  # Else it may be done before the second has begun.
        second = subprocess.run(arguments, env=environment(), capture_output=True, text=True, check=False)
        assert second.returncode == 2 and "another process is converting" in second.stderr
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_ssv2_captions_and_target_rate(tmp_path):
    source = tmp_path / "20bn"
    for name in ("78687", "42326"):
        videos.write(source / f"{name}.webm", 12, rate=12)
    rows = [{"id": "78687", "label": "holding potato"}, {"id": "42326", "label": "moving cup"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    go(source, tmp_path / "out", fps=6.0, captions=str(tmp_path / "train.json"), split="train", resize="center_crop")
    data = StepShards(tmp_path / "out")
    assert data.instructions() == ["holding potato", "moving cup"] and data.fps == 6.0
    assert [videos.number_of(data.image(t)) for t in range(6)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "out"], "input nowhere does not exist"),
        (["IN", "out", "--size", "big"], "--size"),
        (["IN", "out", "--size", "0"], "--size is in pixels"),
        (["IN", "out", "--fps", "fast"], "--fps is a number or 'native'"),
        (["IN", "out", "--resize", "stretch"], "--resize stretch"),
        (["IN", "out", "--quality", "101"], "--quality"),
        (["IN", "out", "--val_fraction", "1"], "--val_fraction"),
        (["IN", "out", "--format", "hdf6"], "--format hdf6"),
        (["IN", "out", "--samples_per_shard", "5", "--shard_bytes", "5"], "exclude each other"),
        (["IN", "out", "--sise", "5"], "--sise"),
        (["IN", "IN"], "same folder"),
        (["IN", "full"], "not empty"),
        (["empty", "out"], "holds nothing that is recognised"),
        (["IN", "out", "--captions", "none.csv"], "cannot read captions"),
    ],
)
def test_wrong_commands_end_in_one_line(source, tmp_path, arguments, message, capsys, monkeypatch):
    import runpy

    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    arguments = [str(source) if a == "IN" else a for a in arguments]
    monkeypatch.setattr(sys, "argv", ["convert.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "convert.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists(), "nothing was written"


def test_what_is_held_out_is_told(tmp_path):
    """And what it means that it is nothing, everything, or a few."""
    for k in range(5):
        videos.write(tmp_path / "source" / f"v{k}.mp4", 6)
    ends = lambda split, *more: run(tmp_path / "source", tmp_path / split, "--size", 32, "--workers", 0, *more)  # noqa: E731
    few = ends("few", "--val_fraction", 0.2)
    assert few.returncode == 0 and "  train: 4 episodes, 24 steps, val: 1 episodes, 6 steps (by a hash of" in few.stdout
    assert "warning: 1 of 5 episodes are held out, and figures on so few say little" in few.stdout
    assert "warning: 1 of 5 episodes" in ends("few", "--val_fraction", 0.2).stdout, "also when it is finished already"
    none = ends("none", "--split", "train").stdout
    assert "train: 5 episodes, 30 steps (by --split train)\n" in none and "warning: nothing is held out" in none
    assert "--split val" in none and "--split auto" in none
    every = ends("every", "--split", "val").stdout
    assert "  val: 5 episodes, 30 steps (by --split val)\n" in every and "warning" not in every, "as it was asked"
    enough = ends("enough", "--val_fraction", 0.6).stdout
    assert "val: 3 episodes, 18 steps (by a hash of the episode's name, --val_fraction 0.6)\n" in enough
    assert "warning" not in enough
    report = json.loads((tmp_path / "enough" / "report.json").read_text())
    assert report["splits"] == {"train": {"episodes": 2, "steps": 12}, "val": {"episodes": 3, "steps": 18}}


def test_a_table_s_own_splits_hold_out(tmp_path, capsys):
    """As those of a recording: a video that the table names no split for is trained on."""
    splits = {"v0": "val", "v1": "Train", "v2": "test", "v3": None}
    for name in splits:
        videos.write(tmp_path / "source" / f"{name}.mp4", 6)
    rows = [{"video": f"{name}.mp4", "instruction": "go", "split": split} for name, split in splits.items()]
    (tmp_path / "source" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(tmp_path / "source"), str(tmp_path / "out"), "--size", "16", "--workers", "0"]
    main(arguments)
    assert "val: 2 episodes, 12 steps (by the source's own splits)\n" in capsys.readouterr().out
    assert [episode.id for episode in StepShards(tmp_path / "out", "val").episodes] == ["v0", "v2"]
    main([arguments[0], str(tmp_path / "all"), *arguments[2:], "--split", "train"])
    assert "train: 4 episodes, 24 steps (by --split train)\n" in capsys.readouterr().out
    (tmp_path / "source" / "episodes.jsonl").write_text(json.dumps(rows[0] | {"split": "left"}))
    with pytest.raises(UserError, match="line 1: split is 'left'; give train or val, or leave it out"):
        main([arguments[0], str(tmp_path / "none"), *arguments[2:]])


def test_csv_written_by_a_spreadsheet(source, tmp_path):
    with open(tmp_path / "c.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows([["video", "caption"], ["v0", "rot; grün"], ["pictures", "b"]])
    report = go(source, tmp_path / "out", captions=str(tmp_path / "c.csv"), split="train")
    expected = {"captions": "c.csv", "captions_without_video": 0, "videos_without_caption": 5}
    assert report["notes"] == expected
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as archive:
        assert archive.extractfile("flat-v0_000000.txt").read().decode() == "rot; grün"
