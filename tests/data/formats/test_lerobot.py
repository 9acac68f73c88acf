import json
import pathlib
import random
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import lerobot
from tests.data.formats import make_lerobot
from tests.data.formats.make_lerobot import PICTURE, VIDEO

OPTIONS = {"fps": None, "size": None, "cameras": "all", "action": "all", "state": "all", "captions": None}
MAKERS = {"v2.1": make_lerobot.make, "v3.0": make_lerobot.make_v3}


def read(source: pathlib.Path, **options) -> dict:
    """{name: (episode, {member: frames})} of a whole source."""
    options = OPTIONS | options
    found = {}
    for item in lerobot.find(source, options).items:
        episode = lerobot.standardize(source, item, options)
        found[item.name] = (episode, {member: list(frames) for member, frames in episode.cameras.items()})
    return found


def change_info(source: pathlib.Path, **changes) -> None:
    path = source / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_rows(path: pathlib.Path, **columns) -> None:
    table = pq.read_table(path)
    for key, values in columns.items():
        place = table.column_names.index(key)
        table = table.set_column(place, key, pa.array(values, table.schema.field(key).type))
    pq.write_table(table, path)


@pytest.mark.parametrize("version", MAKERS)
def test_what_was_written_is_read(tmp_path, version):
    made = MAKERS[version](tmp_path)
    assert lerobot.detect(tmp_path) and not lerobot.detect(tmp_path / "meta")
    listing = lerobot.find(tmp_path, OPTIONS)
    assert [(i.name, i.split, i.text) for i in listing.items] == [(n, "", m["text"]) for n, m in made.items()]
    assert not listing.missing and not listing.left_out
    for name, (episode, pictures) in read(tmp_path).items():
        for column in ("action", "state"):
            assert episode.columns[column].dtype == np.float32
            np.testing.assert_array_equal(episode.columns[column], made[name][column])
        assert episode.text == made[name]["text"] and episode.fps == 10 and episode.task == ""
        assert episode.names == {"action": ["x", "y", "grip"], "state": ["shoulder", "elbow"]}
        assert episode.left_out == ["observation.force"]
        frames = np.stack(pictures["image"]).astype(int)
        assert frames.shape == made[name]["frames"].shape and np.abs(frames - made[name]["frames"]).max() <= 3
        assert pictures["image_wrist"] == [make_lerobot.png(picture) for picture in made[name]["wrist"]]


def test_real_v21_agrees_with_another_reading(shared):
    """Numbers as Python lists from pyarrow; frames from one pass over each video."""
    source = shared / "data/lerobot_v21_g1"
    listing = lerobot.find(source, OPTIONS)
    assert [item.at["episode"] for item in listing.items] == [10, 28, 29, 30, 31]
    absent = set(range(100)) - {10, 28, 29, 30, 31}
    assert [path for path, _ in listing.missing] == [f"data/chunk-000/episode_{k:06d}.parquet" for k in sorted(absent)]
    item = listing.items[2]
    episode = lerobot.standardize(source, item, OPTIONS)
    rows = pq.read_table(source / "data/chunk-000/episode_000029.parquet").to_pylist()
    assert [row["action"] for row in rows] == episode.columns["action"].tolist()
    assert [row["observation.state"] for row in rows] == episode.columns["state"].tolist()
    assert episode.text == "Pick up the yellow bottle on the table." and episode.fps == 30
    assert episode.names["action"][0] == "kLeftShoulderPitch" and len(episode.names["action"]) == 26
    video = source / "videos/chunk-000/observation.images.cam_high/episode_000029.mp4"
    with av.open(str(video)) as container:
        for frame, other in zip(episode.cameras["image"], container.decode(video=0), strict=True):
            np.testing.assert_array_equal(frame, other.to_ndarray(format="rgb24"))


def test_real_v3_agrees_with_one_pass_over_its_video(shared):
    source = shared / "data/lerobot_v3_push_table"
    rows = pq.read_table(source / "data/chunk-000/file-000.parquet").to_pylist()
    table = pq.read_table(source / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    with av.open(str(source / "videos/observation.images.cam/chunk-000/file-000.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(rows) == 251
    found = read(source)
    assert len(found) == len(table) == 10
    for entry, (episode, pictures) in zip(table, found.values()):
        start, end = entry["dataset_from_index"], entry["dataset_to_index"]
        assert [row["action"] for row in rows[start:end]] == episode.columns["action"].tolist()
        assert [row["observation.state"] for row in rows[start:end]] == episode.columns["state"].tolist()
        np.testing.assert_array_equal(pictures["image"], frames[start:end])
        assert [episode.text] == entry["tasks"] and episode.names["state"] == ["ee_x", "ee_y", "target_x", "target_y"]


def test_state_and_cameras_are_chosen(tmp_path):
    made = make_lerobot.make(tmp_path)["episode_000001"]
    episode, pictures = read(tmp_path, state="force,observation.state", cameras="wrist")["episode_000001"]
    np.testing.assert_array_equal(episode.columns["state"], np.concatenate([made["force"], made["state"]], 1))
    assert episode.names["state"] == ["force.0", "state.shoulder", "state.elbow"]
    assert list(pictures) == ["image"] and pictures["image"][0] == make_lerobot.png(made["wrist"][0])
    assert episode.left_out == [VIDEO]
    assert lerobot.find(tmp_path, OPTIONS | {"cameras": "wrist"}).left_out == {f"videos of {VIDEO}": 3}
    with pytest.raises(UserError, match="no camera 'back'.*it has front, wrist"):
        lerobot.find(tmp_path, OPTIONS | {"cameras": "back"})
    with pytest.raises(UserError, match="no vector 'forces'.*did you mean 'force'"):
        lerobot.find(tmp_path, OPTIONS | {"state": "forces"})


def test_depth_is_no_camera(tmp_path):
    make_lerobot.make(tmp_path)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    features[VIDEO]["info"]["video.is_depth_map"] = True
    change_info(tmp_path, features=features)
    episode, pictures = read(tmp_path)["episode_000000"]
    assert list(pictures) == ["image"] and VIDEO in episode.left_out


@pytest.mark.parametrize("version", MAKERS)
def test_what_is_listed_but_absent_is_reported(tmp_path, version):
    MAKERS[version](tmp_path)
    gone = sorted(tmp_path.rglob("*.mp4"))[-1]
    gone.unlink()
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/x.tar").write_text("x")
    listing = lerobot.find(tmp_path, OPTIONS, exclude=(tmp_path / "out").resolve())
    assert [item.at["episode"] for item in listing.items] == [0, 1]
    why = f"episode 2 is listed, but there is no {gone.relative_to(tmp_path).as_posix()}"
    assert [reason for _, reason in listing.missing] == [why]
    assert listing.left_out == {"files .txt": 1}
    change_info(tmp_path, total_episodes=9)
    assert ("meta", "meta/info.json says 9 episodes, the tables list 3") in lerobot.find(tmp_path, OPTIONS).missing


def test_v20_is_laid_out_like_v21(tmp_path):
    made = make_lerobot.make(tmp_path)
    change_info(tmp_path, codebase_version="v2.0")
    assert read(tmp_path).keys() == made.keys() and lerobot.find(tmp_path, OPTIONS).notes == {"lerobot": "v2.0"}


@pytest.mark.parametrize("version", ["v1.6", "3.1", "v2.2"])
def test_other_versions_are_refused(tmp_path, version):
    make_lerobot.make(tmp_path)
    change_info(tmp_path, codebase_version=version)
    with pytest.raises(UserError, match=rf"is LeRobot v?{version}; v2.0, v2.1, v3.0 are read: convert it"):
        lerobot.find(tmp_path, OPTIONS)


def test_splits(tmp_path):
    make_lerobot.make_v3(tmp_path)

    def splits():
        listing = lerobot.find(tmp_path, OPTIONS)
        return [item.split for item in listing.items], listing.notes.get("episodes in no split, taken for training")

    for given, expected in (
        ({"train": "0:2", "val": "2:3"}, (["train", "train", "val"], None)),
        ({"test": "1:2"}, (["train", "val", "train"], 2)),
        ({"left": "0:2", "right": "2:3"}, (["", "", ""], None)),
        ({"train": "0:3", "val": "3:3"}, (["", "", ""], None)),
    ):
        change_info(tmp_path, splits=given)
        assert splits() == expected, given
    for given, message in (({"train": "0:3", "val": "2:3"}, "episode 2 is both"), ({"val": "all"}, "not a range")):
        change_info(tmp_path, splits=given)
        with pytest.raises(UserError, match=message):
            splits()


def test_instruction_that_changes_within_an_episode(tmp_path):
    make_lerobot.make(tmp_path)
    path, meta = tmp_path / "data/chunk-000/episode_000002.parquet", tmp_path / "meta/episodes.jsonl"
    change_rows(path, task_index=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="correct one of the tables"):
        read(tmp_path)
    rows = [json.loads(line) for line in meta.read_text().splitlines()]
    rows[2]["tasks"] = list(make_lerobot.TASKS)
    make_lerobot.write_lines(meta, rows)
    one, two = make_lerobot.TASKS
    assert read(tmp_path)["episode_000002"][0].text == [one, one, two, two]
    assert lerobot.find(tmp_path, OPTIONS).items[2].text == ""
    change_rows(path, task_index=[0, 0, 1, 7])
    with pytest.raises(ValueError, match="row 3 has task 7"):
        read(tmp_path)


@pytest.mark.parametrize("version", MAKERS)
@pytest.mark.parametrize("listed", ["no column", "null", "empty", "more", "one text", "numbers"])
def test_the_rows_decide_which_task_an_episode_has(tmp_path, version, listed):
    """The table of episodes may say less or more, as the official lerobot/libero and GR00T's data do."""
    made = MAKERS[version](tmp_path)
    texts = {name: episode["text"] for name, episode in made.items()}
    number = dict(zip(make_lerobot.TASKS, "01"))
    kinds = {"more": lambda t: [t, "valid"], "one text": lambda t: t, "numbers": lambda t: [number[t]]}
    values = [kinds.get(listed, lambda t: [] if listed == "empty" else None)(text) for text in texts.values()]
    if version == "v2.1":
        path = tmp_path / "meta/episodes.jsonl"
        rows = [json.loads(line) for line in path.read_text().split("\n") if line]
        for row, value in zip(rows, values):
            row["tasks"] = value
            if listed == "no column":
                del row["tasks"]
        make_lerobot.write_lines(path, rows)
    else:
        path = next((tmp_path / "meta/episodes").rglob("*.parquet"))
        table = pq.read_table(path).drop(["tasks"])
        pq.write_table(table if listed == "no column" else table.append_column("tasks", pa.array(values)), path)
    assert {name: episode.text for name, (episode, _) in read(tmp_path).items()} == texts


def test_rows_without_a_task_and_tasks_without_a_text(tmp_path):
    made = make_lerobot.make(tmp_path)
    rows = [{"episode_index": i, "length": len(e["action"]), "tasks": []} for i, e in enumerate(made.values())]
    make_lerobot.write_lines(tmp_path / "meta/episodes.jsonl", rows)
    change_rows(tmp_path / "data/chunk-000/episode_000000.parquet", task_index=[None] * 5)
    change_rows(tmp_path / "data/chunk-000/episode_000002.parquet", task_index=[None, 1, 1, 1])
    one, two = make_lerobot.TASKS
    assert [episode.text for episode, _ in read(tmp_path).values()] == ["", two, ["", two, two, two]]
    tasks = [{"task_index": 0, "task": one}, {"task_index": 1, "task": None}]
    make_lerobot.write_lines(tmp_path / "meta/tasks.jsonl", tasks)
    assert [episode.text for episode, _ in read(tmp_path).values()] == ["", "", ""]
    for path in tmp_path.rglob("episode_*.parquet"):
        table = pq.read_table(path)
        words = pa.array([f"reach {i}" for i in range(len(table))])
        pq.write_table(table.append_column("language_instruction", words), path)
    assert read(tmp_path)["episode_000002"][0].text == [f"reach {i}" for i in range(4)], "a column of texts"
    (tmp_path / "meta/tasks.jsonl").unlink()
    assert read(tmp_path)["episode_000001"][0].text == [f"reach {i}" for i in range(7)]


def test_json_lines_of_other_writers(tmp_path):
    """U+2028 does not end a line of JSON, and some editors write a byte order mark."""
    make_lerobot.make(tmp_path)
    rows = [{"task_index": 0, "task": "push\u2028it"}, {"task_index": 1, "task": "open\u0085it"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "meta/tasks.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    episodes = [{"episode_index": i, "length": n, "tasks": []} for i, n in enumerate(make_lerobot.LENGTHS)]
    make_lerobot.write_lines(tmp_path / "meta/episodes.jsonl", episodes)
    info = (tmp_path / "meta/info.json").read_bytes()
    (tmp_path / "meta/info.json").write_bytes(b"\xef\xbb\xbf" + info)
    assert [episode.text for episode, _ in read(tmp_path).values()] == ["push\u2028it", "open\u0085it", "push\u2028it"]


@pytest.mark.parametrize("form", ["number", "nested", "one part"])
def test_actions_of_other_shapes(tmp_path, form):
    made = make_lerobot.make(tmp_path)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    for number, episode in enumerate(made.values()):
        path = tmp_path / f"data/chunk-000/episode_{number:06d}.parquet"
        table, action = pq.read_table(path), episode["action"]
        values = {"number": action[:, 0].tolist(), "nested": action[:, None].tolist()}.get(form, action.tolist())
        table = table.drop(["action"]).append_column("action.arm" if form == "one part" else "action", pa.array(values))
        pq.write_table(table, path)
    feature = features.pop("action")
    shape = {"number": [], "nested": [1, 3], "one part": [3]}[form]
    features["action.arm" if form == "one part" else "action"] = {**feature, "shape": shape}
    change_info(tmp_path, features=features)
    for name, (episode, _) in read(tmp_path).items():
        expected = made[name]["action"][:, :1] if form == "number" else made[name]["action"]
        np.testing.assert_array_equal(episode.columns["action"], expected)


def shift_video_times(source: pathlib.Path, seconds: float) -> None:
    path = next((source / "meta/episodes").rglob("*.parquet"))
    keys = [f"videos/{VIDEO}/{which}_timestamp" for which in ("from", "to")]
    columns = pq.read_table(path, columns=keys).to_pydict()
    change_rows(path, **{key: [time + seconds for time in columns[key]] for key in keys})


def test_times_that_have_drifted_still_find_their_frames(tmp_path):
    """lerobot adds up rounded durations; up to a quarter of the interval (here 25 ms) there is no doubt."""
    made = make_lerobot.make_v3(tmp_path)
    for seconds in (0.02, -0.04):
        shift_video_times(tmp_path, seconds)  # in all 20 ms late, then 20 ms early
        for name, (_, pictures) in read(tmp_path, cameras="front").items():
            assert np.abs(np.stack(pictures["image"]).astype(int) - made[name]["frames"]).max() <= 3
    shift_video_times(tmp_path, -0.03)
    with pytest.raises(ValueError, match="not in step|ends after"):
        read(tmp_path, cameras="front")


def test_frames_and_rows_must_pair(tmp_path):
    made = make_lerobot.make(tmp_path)["episode_000001"]
    video = tmp_path / f"videos/chunk-000/{VIDEO}/episode_000001.mp4"
    make_lerobot.write_video(video, made["frames"][:-1])
    with pytest.raises(ValueError, match="ends after 6 frames, it has 7 rows"):
        read(tmp_path)
    make_lerobot.write_video(video, np.concatenate([made["frames"], made["frames"][:1]]))
    with pytest.raises(ValueError, match="more frames than the episode's 7 rows"):
        read(tmp_path)
    make_lerobot.write_video(video, made["frames"])
    data, times = tmp_path / "data/chunk-000/episode_000001.parquet", np.arange(7) / 10
    change_rows(data, timestamp=(times + [0, 0, 0, 0.01, 0, 0, 0]).tolist())
    with pytest.raises(ValueError, match="video episode_000001.mp4: row 3 is at 0.3100 s .* not in step"):
        read(tmp_path)
    change_rows(data, timestamp=(times * 1.1).tolist())
    with pytest.raises(ValueError, match="run at 9.091 steps per second, meta/info.json says 10"):
        read(tmp_path)
    change_rows(data, timestamp=times.tolist(), frame_index=[0, 1, 2, 4, 3, 5, 6])
    with pytest.raises(ValueError, match="row 3 has frame_index 4"):
        read(tmp_path)


def test_numbers_that_cannot_be(tmp_path):
    make_lerobot.make(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    actions = pq.read_table(path)["action"].to_pylist()
    change_rows(path, action=[*actions[:3], [0.0, float("nan"), 0.0], actions[4]])
    with pytest.raises(ValueError, match="'action' holds 1 numbers that are not finite, the first in row 3"):
        read(tmp_path)
    change_rows(path, action=[*actions[:3], None, actions[4]])
    with pytest.raises(ValueError, match="'action' has no value in 1 of 5 rows"):
        read(tmp_path)
    change_rows(path, action=actions)
    lines = (tmp_path / "meta/episodes.jsonl").read_text()
    (tmp_path / "meta/episodes.jsonl").write_text(lines.replace('"length": 5', '"length": 6'))
    with pytest.raises(ValueError, match="5 rows of the episode, the episode table says 6"):
        read(tmp_path)


def test_columns_that_info_json_does_not_know(tmp_path):
    make_lerobot.make(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("subtask_index", table["index"]), path)
    assert read(tmp_path)["episode_000000"][0].left_out == ["observation.force", "subtask_index"]
    pq.write_table(table.drop_columns("observation.force"), path)
    with pytest.raises(ValueError, match="rows: the table has no column 'observation.force', which meta/info.json"):
        read(tmp_path)
    pq.write_table(table.drop_columns("timestamp"), path)
    features = json.loads((tmp_path / "meta/info.json").read_text())["features"]
    del features["timestamp"]
    change_info(tmp_path, features=features)
    with pytest.raises(ValueError, match="no column 'timestamp', which its videos need"):
        read(tmp_path)
    assert read(tmp_path, cameras="wrist")["episode_000000"][0].columns["action"].shape == (5, 3)


def test_tables_that_lead_out_of_the_dataset(tmp_path):
    make_lerobot.make(tmp_path)
    for template in ("/etc/{episode_index}", "../{episode_index}.parquet", "{nothing}"):
        change_info(tmp_path, data_path=template)
        with pytest.raises(UserError, match="leads out of the dataset|cannot be filled"):
            lerobot.find(tmp_path, OPTIONS)


def test_pictures_outside_of_the_table_are_refused(tmp_path):
    make_lerobot.make(tmp_path)
    path = tmp_path / "data/chunk-000/episode_000000.parquet"
    pictures = pq.read_table(path)[PICTURE].to_pylist()
    change_rows(path, **{PICTURE: [*pictures[:4], {"bytes": None, "path": "images/x.png"}]})
    with pytest.raises(ValueError, match=f"'{PICTURE}': row 4 holds no picture"):
        read(tmp_path)


@pytest.mark.parametrize("version", MAKERS)
def test_damaged_copies_give_an_error_or_the_same_numbers(tmp_path, version):
    """One byte flipped or the end cut off, in tables, rows and videos. Pixels of a video have no checksum."""
    whole = tmp_path / "whole"
    made = MAKERS[version](whole)
    files = sorted(path for path in whole.rglob("*") if path.suffix in (".parquet", ".mp4"))
    dice, errors = random.Random(0), 0
    shutil.copytree(whole, tmp_path / "copy")
    for round_ in range(120):
        path = files[round_ % len(files)]
        data = bytearray(path.read_bytes())
        if round_ % 3:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        else:
            del data[dice.randrange(len(data)) :]
        copy = tmp_path / "copy" / path.relative_to(whole)
        copy.write_bytes(data)
        try:
            for name, (episode, _) in read(tmp_path / "copy").items():
                np.testing.assert_array_equal(episode.columns["action"], made[name]["action"])
                np.testing.assert_array_equal(episode.columns["state"], made[name]["state"])
        except (ValueError, UserError) as error:
            assert str(tmp_path) not in str(error) or isinstance(error, UserError)
            errors += 1
        copy.write_bytes(path.read_bytes())
    assert errors > 60
