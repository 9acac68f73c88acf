"""The embedded videos: as users have them, and enough of them."""

import json
import shutil
import tarfile

import numpy as np
import pytest

from lapa_jax import sample
from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import StepShards
from tools import convert
from tools.sample_videos import main


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The folder that the command writes."""
    folder = tmp_path_factory.mktemp("sample") / "new" / "videos"
    main([str(folder)])
    return folder


def test_each_video_has_its_instruction_and_actions(videos):
    assert sample.VIDEOS.stat().st_size < 6_000_000
    lines = [json.loads(line) for line in (videos / "episodes.jsonl").read_text().splitlines()]
    assert len(lines) == 800 and {line["video"] for line in lines} == {
        path.relative_to(videos).as_posix() for path in videos.rglob("*.mp4")}  # fmt: skip
    for line in lines:
        action = np.load(videos / line["arrays"])["action"]
        assert action.shape == (line["frames"] - 1, 2) and np.isfinite(action).all() and line["instruction"]
        assert "split" not in line, "the quickstart holds out by the hash, as of users' own videos"


def test_they_are_converted_by_the_ordinary_command(videos, tmp_path):
    some = tmp_path / "some"
    lines = [json.loads(line) for line in (videos / "episodes.jsonl").read_text().splitlines()][:8]
    for line in lines:
        for name in (line["video"], line["arrays"]):
            (some / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(videos / name, some / name)
    (some / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    convert.main([str(some), str(tmp_path / "data"), "--format", "video", "--size", "64"])
    by_id, converted = {line["id"]: line for line in lines}, set()
    for split in ("train", "val"):
        shards = StepShards(tmp_path / "data", split)
        for episode in shards.episodes:
            line = by_id[episode.id.removeprefix("separate-")]
            converted.add(line["id"])
            assert episode.length == line["frames"] and shards.text(episode.start) == line["instruction"]
            actions = np.stack([shards.array(episode.start + k, "action") for k in range(episode.length - 1)])
            np.testing.assert_array_equal(actions, np.load(videos / line["arrays"])["action"])
    assert converted == set(by_id)


def test_a_folder_that_exists_stays_as_it_is(videos):
    before = sorted(videos.rglob("*"))
    with pytest.raises(UserError, match="exists; give another folder"):
        main([str(videos)])
    assert sorted(videos.rglob("*")) == before and [path.name for path in videos.parent.iterdir()] == ["videos"]


def test_the_archive_keeps_to_its_folder():
    with tarfile.open(sample.VIDEOS) as archive:
        members = archive.getmembers()
    assert all(member.isfile() and not member.name.startswith("/") and ".." not in member.name for member in members)


def test_they_are_unpacked_by_a_python_without_filters(tmp_path, monkeypatch):
    """Debian 12 has 3.11.2; filters of archives came with 3.11.4."""
    extractall = tarfile.TarFile.extractall

    def of_3_11_2(self, path=".", members=None, *, numeric_owner=False):
        some = [member for member in self if member.name.endswith(".jsonl")]
        extractall(self, path, some, numeric_owner=numeric_owner)

    monkeypatch.setattr(tarfile.TarFile, "extractall", of_3_11_2)
    main([str(tmp_path / "videos")])
    assert (tmp_path / "videos" / "episodes.jsonl").is_file()
