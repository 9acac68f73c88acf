import json
import os

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data.convert.options import Options
from lapa_jax.data.formats import detect, lapa, video
from lapa_jax.data.formats.lapa.records import PROMPT, instruction_of
from tests.data.formats import make_lapa
from tests.data.formats.make_webdataset import jpeg, seen

OPTIONS = Options(size=None).for_readers()


def read(source, **options):
    """{item name: Episode} and the listing."""
    listing = lapa.find(source, {**OPTIONS, **options})
    return {i.name: lapa.standardize(source, i, {**OPTIONS, **options}) for i in listing.items}, listing


def write(folder, rows, name="a.jsonl", pictures=True):
    """A jsonl of records; every picture they name is written."""
    for row in rows if pictures else ():
        path = folder / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(np.zeros((16, 16, 3), np.uint8)))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def steps(count=3, **fields):
    return [{"image": f"ep/img_{t:05d}.jpg", "delta": ["1", "2"], **fields} for t in range(count)]


@pytest.mark.parametrize("make", [make_lapa.make, make_lapa.make_preprocessed, make_lapa.make_latent])
def test_every_file_gives_what_was_written(tmp_path, make):
    made = make(tmp_path)
    assert lapa.detect(tmp_path) and detect(tmp_path) == "lapa"
    episodes, listing = read(tmp_path)
    assert list(episodes) == list(made) and not listing.missing
    assert listing.notes == {"instructions_outside_the_prompt": 0}
    for name, expected in made.items():
        episode = episodes[name]
        assert episode.text == expected["text"] and episode.fps is None
        assert set(episode.columns) == set(expected) - {"text", "frames"}
        for column, rows in episode.columns.items():
            np.testing.assert_array_equal(rows, expected[column])
            assert rows.dtype == expected[column].dtype
        np.testing.assert_array_equal([seen(f) for f in episode.cameras["image"]], expected["frames"])
    steps = sum(make_lapa.STEPS.values())
    left = {"make_preprocessed": {"action (bins)": steps}, "make_latent": {"vision (VQGAN ids)": steps}}
    assert listing.left_out == left.get(make.__name__, {})
    assert {name for e in episodes.values() for name in e.left_out} == set(listing.left_out)


def test_names_and_choice_of_states(tmp_path):
    made = make_lapa.make(tmp_path)
    episode = read(tmp_path)[0]["stack"]
    assert episode.names["action"] == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    assert episode.names["state"][:4] == ["eef_pos.0", "eef_pos.1", "eef_pos.2", "eef_euler.0"]
    chosen = read(tmp_path, state="gripper_state,eef_pos")[0]["stack"].columns["state"]
    np.testing.assert_array_equal(chosen, made["stack"]["state"][:, [6, 0, 1, 2]])
    with pytest.raises(ValueError, match="has the states eef_pos, eef_euler, gripper_state, expected joints"):
        read(tmp_path, state="joints")


def test_fields_that_nobody_knows_are_reported(tmp_path):
    answer = {"from": "gpt", "raw_actions": [1.0], "reward": 3}
    rows = [{"image": "ep/1.jpg", "camera": "top", "conversations": [answer], "vision": []}]
    episode = read(write(tmp_path, rows))[0]["ep"]
    assert episode.left_out == ["camera", "reward (conversations)", "vision (VQGAN ids)"] and episode.text == ""


def test_states_are_joined_in_one_order(tmp_path):
    for swap in (False, True):
        vectors = [{"a": [1], "b": 2}, {"b": 4, "a": [3]} if swap else {"a": [3], "b": 4}]
        rows = [{**row, "raw_actions": [0.0], "states": v} for row, v in zip(steps(2), vectors)]
        np.testing.assert_array_equal(read(write(tmp_path, rows))[0]["ep/img"].columns["state"], [[1, 2], [3, 4]])


@pytest.mark.parametrize("text", ["pick it up", "What action should the robot take to `x`", PROMPT + " x", ""])
def test_other_texts_are_kept(tmp_path, text):
    assert instruction_of(text) == (text, False)
    episodes, listing = read(write(tmp_path, steps(2, instruction=text)))
    assert episodes["ep/img"].text == text and listing.notes["instructions_outside_the_prompt"] == 2


def test_steps_in_any_order_and_with_gaps(tmp_path):
    made = make_lapa.make_latent(tmp_path, ids=True)
    lines = (tmp_path / "latent.jsonl").read_text().splitlines()
    del lines[5]  # step 1 of the second episode
    np.random.default_rng(0).shuffle(lines)
    (tmp_path / "latent.jsonl").write_text("\n\n".join(lines))
    episodes, listing = read(tmp_path)
    assert set(episodes) == set(made) and listing.notes["episodes_with_gaps_in_their_numbers"] == 1
    for name, expected in made.items():
        kept = [t for t in range(len(expected["latent"])) if name != "pick_up_cube_1" or t != 1]
        np.testing.assert_array_equal(episodes[name].columns["latent"], expected["latent"][kept])
        np.testing.assert_array_equal([seen(f) for f in episodes[name].cameras["image"]], expected["frames"][kept])


def test_ids_that_count_through_the_file(tmp_path):
    rows = [{"id": f"sample_{n}", "image": f"{'ab'[n // 3]}/{n}.jpg", "raw_actions": [n]} for n in range(6)]
    episodes, listing = read(write(tmp_path, rows))
    assert list(episodes) == ["sample/a", "sample/b"] and listing.notes["ids_that_run_over_folders"] == 1
    assert episodes["sample/b"].columns["action"].ravel().tolist() == [3, 4, 5]
    spread = [{"id": f"e_{n}", "image": f"{n}/cam.jpg", "raw_actions": [n]} for n in range(4)]
    assert list(read(write(tmp_path / "spread", spread))[0]) == ["e"], "a folder a step"
    for folders in ("aaab", "abab", "aabbaa"):
        mixed = [{"id": f"e_{n}", "image": f"{f}/{n}.jpg", "raw_actions": [n]} for n, f in enumerate(folders)]
        with pytest.raises(UserError, match="steps of 'e' have their pictures in 2 folders, [12] in '[ab]': mend that"):
            lapa.find(write(tmp_path / folders, mixed), OPTIONS)


def test_pictures_that_are_not_there(tmp_path):
    make_lapa.make(tmp_path)
    (tmp_path / "images" / "stack" / "img_00003.jpg").unlink()
    os.mkfifo(
        tmp_path / "images" / "stack" / "img_00003.jpg"
    )  # nor is a pipe a picture: reading it would wait for ever
    (tmp_path / "images" / "stack" / "img_00005.jpg").unlink()
    listing = lapa.find(tmp_path, OPTIONS)
    assert len(listing.items) == 2
    why = "2 of its 7 pictures are not there, the first is images/stack/img_00003.jpg"
    assert listing.missing == [("train.json: stack", why)]
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(UserError, match="no whole episode: .*4 of its 4 pictures.*relative to the json file"):
        lapa.find(tmp_path, OPTIONS)


def test_splits_and_other_files(tmp_path):
    write(tmp_path, [{"id": f"e_{t}", "image": "p.jpg", "raw_actions": [t]} for t in range(2)], "robot_train.jsonl")
    write(tmp_path, [{"id": f"e_{t}", "image": "p.jpg", "raw_actions": [9]} for t in range(2)], "robot_val.jsonl")
    (tmp_path / "stats.json").write_text("{}")
    episodes, listing = read(tmp_path)
    assert {i.name: i.split for i in listing.items} == {"robot_train/e": "train", "robot_val/e": "val"}
    assert episodes["robot_val/e"].columns["action"].tolist() == [[9], [9]]
    assert listing.left_out == {"json files of another kind": 1}
    alone = read(tmp_path / "robot_val.jsonl")[1].items
    assert [i.split for i in alone] == ["val"]
    write(tmp_path, [{"id": "e_0", "image": "p.jpg", "raw_actions": [1]}], "again.jsonl")
    with pytest.raises(UserError, match=r"'e' is in again\.jsonl and in robot_train\.jsonl"):
        lapa.find(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"image": "1.jpg", "delta": []}', "comma or the list's end was expected"),
        ('[{"image": "1.jpg", "delta": []}, ]', "at byte 34: no valid JSON"),
        ('[{"image": "1.jpg", "delta": []}] x', "something follows"),
        ('{"image": "1.jpg", "delta": []}\n{"image": "2.jpg", ', "record 1 at byte 32: no valid JSON"),
        ('{"image": "1.jpg", "delta": []}\n{"image": 2}', "record 1 at byte 32: it is no object with the path"),
        ('{"image": "one.jpg", "delta": []}', "neither its id .None. nor its image .'one.jpg'. ends with the number"),
        ('{"image": "1.jpg", "delta": []}\n{"image": "1.jpg"}', "step 1 of episode 'a' occurs twice"),
        ('{"image": "1.jpg"}', "holds no json or jsonl file of LAPA.*--format video"),
        ("[" * 100000, "holds no json"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        lapa.find(tmp_path, OPTIONS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"delta": ["1", "x"]}, "ep/img_00001.jpg: 'latent' holds <U"),
        ({"delta": ["1"]}, "1 values of 'latent', the first of its episode has 2"),
        ({"delta": None}, "has no latent, while others of its episode have one"),
        ({"delta": "12"}, "no real numbers"),
        ({"delta": [1, 2.5]}, "no int32"),
        ({"raw_actions": [1.0]}, "ep/img_00000.jpg has no action"),
    ],
)
def test_damaged_episodes_name_the_place(tmp_path, change, message):
    rows = steps(2)
    rows[1].update(change)
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, rows))


def test_a_file_that_changes_after_the_listing(tmp_path):
    write(tmp_path, steps(3))
    item = lapa.find(tmp_path, OPTIONS).items[0]
    write(tmp_path, steps(2))
    with pytest.raises(ValueError, match="no longer the 3 records|no valid JSON"):
        lapa.standardize(tmp_path, item, OPTIONS)
    (tmp_path / "ep" / "img_00001.jpg").unlink()
    with pytest.raises(ValueError, match=r"picture ep/img_00001\.jpg: No such file"):
        item = item._replace(at={"spans": [[0, (tmp_path / "a.jsonl").stat().st_size, 2]]})
        list(lapa.standardize(tmp_path, item, OPTIONS).cameras["image"])


def test_stage_1_frame_folders_are_read_in_order(tmp_path):
    """`<video>/img_00012.jpg` as LAPA's stage 1 reads them, and without zeros in front."""
    for number, name in enumerate(("img_{:05d}.jpg", "img_{}.jpg")):
        folder = tmp_path / str(number) / "video"
        folder.mkdir(parents=True)
        for t in (0, 1, 2, 9, 10, 11):
            (folder / name.format(t)).write_bytes(jpeg(np.full((16, 16, 3), 20 * t, np.uint8)))
        items = video.find(folder.parent, OPTIONS).items
        assert [item.name for item in items] == ["video"]
        frames = video.standardize(folder.parent, items[0], OPTIONS).cameras["image"]
        levels = [round(float(np.mean(seen(f) if isinstance(f, bytes) else f)) / 20) for f in frames]
        assert levels == [0, 1, 2, 9, 10, 11]
