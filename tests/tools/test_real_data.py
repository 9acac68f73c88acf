"""Every folder of reference data goes through the door: converted, read back, compared with the source, and drawn."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.data import formats, image_files
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.plan import make_plan
from lapa_jax.data.convert.run import convert, with_captions
from lapa_jax.data.formats.base import Item
from lapa_jax.data.shards.step_shards import StepShards

FOLDERS = {
    # name: (format, episodes, steps, missing episodes)
    "bridge_debug": ("rlds", 50, 450, 0),
    "lerobot_v21_g1": ("lerobot", 5, 1333, 95),
    "lerobot_v3_push_table": ("lerobot", 10, 251, 0),
    "robomimic/lift_human_low_dim.hdf5": ("robomimic", 3, 1384, 0),
    "robomimic/lift_human_image84.hdf5": ("robomimic", 3, 1384, 0),
    "robomimic/metaworld_mt10_low_dim.hdf5": ("robomimic", 200, 14999, 0),
    "webdataset_push_table": ("webdataset", 10, 261, 0),
    "real_clips": ("video", 6, 622, 0),
}
RECORDED = ("metaworld_mt10", "metaworld_mt10_videos", "push_table", "push_table_videos")
PSNR = 33.0
"""dB between a picture and its JPEG of quality 95 with halved colour resolution; sharp coloured edges cost most."""


def few(source: pathlib.Path, folder: pathlib.Path, count: int = 6) -> pathlib.Path:
    """Some episodes of a recorded folder, with their table."""
    rows = [json.loads(line) for line in (source / "episodes.jsonl").read_text().splitlines()]
    rows = rows[:: max(1, len(rows) // count)]
    for row in rows:
        for name in filter(None, (row["video"], row.get("arrays"))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, folder / name)
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def compare(source: pathlib.Path, out: pathlib.Path, options: Options) -> int:
    """Compares every step of the shards with what the reader says; returns the number of steps compared.

    That the readers say what is in the files is tested beside each of them, against a second reading.
    """
    options = with_captions(source, options)
    plan = make_plan(source, out, options)
    reader, compared = formats.open_format(plan["format"]), 0
    shards = {split: StepShards(out, split) for split in json.loads((out / "dataset.json").read_text())["splits"]}
    places = {(split, e.id): e for split, data in shards.items() for e in data.episodes}
    for entry in plan["episodes"]:
        data, place = shards[entry["split"]], places.pop((entry["split"], entry["id"]))
        episode = reader.standardize(source, Item(*(entry[f] for f in Item._fields)), options.for_readers())
        texts = [episode.text] * place.length if isinstance(episode.text, str) else episode.text
        cameras = {name: iter(frames) for name, frames in episode.cameras.items()}
        for t in range(place.length):
            i = place.start + t
            assert data.text(i) == texts[t] and data.meta(i)["length"] == place.length
            for name, rows in episode.columns.items():
                assert data.has(i, f"{name}.npy") == (t < len(rows))
                if t < len(rows):
                    stored = data.array(i, name)
                    np.testing.assert_array_equal(stored, np.asarray(rows[t]).astype(stored.dtype))
            for name, frames in cameras.items():
                check_picture(data, i, name, next(frames), full=t % 20 == 0)
            compared += 1
        assert all(next(frames, None) is None for frames in cameras.values())
    assert not places
    return compared


def check_picture(data: StepShards, i: int, name: str, frame, *, full: bool) -> None:
    """A stored picture against the source's: the same bytes where it is a JPEG, else within the error of JPEG."""
    if frame is None:
        assert not data.has(i, f"{name}.jpg")
    elif isinstance(frame, bytes) and image_files.is_plain_jpeg(frame):
        assert data.read(i, [f"{name}.jpg"])[f"{name}.jpg"] == frame
    elif full:
        expected = image_files.open_frame(frame).astype(np.float64)
        error = np.square(data.image(i, name) - expected).mean()
        assert 10 * np.log10(255**2 / max(error, 1e-9)) > PSNR


@pytest.mark.parametrize("name", [*FOLDERS, *RECORDED])
def test_folder(tmp_path, shared, name):
    source = shared / "data" / name
    if name in RECORDED:
        source = few(source, tmp_path / "few")
        expected = None
    else:
        expected = FOLDERS[name]
    options = Options(size=None if name != "real_clips" else 128)
    report = convert(source, tmp_path / "out", options)
    assert report["errors"] == []
    if expected:
        assert (report["format"], report["episodes"], report["steps"], len(report["missing"])) == expected
    if name != "real_clips":  # resized: its frames are compared in test_convert.py
        assert compare(source, tmp_path / "out", options) == report["steps"]


def test_a_raw_robosuite_file_is_refused_with_the_reason(tmp_path, shared):
    with pytest.raises(UserError, match=r"states and no observations.*dataset_states_to_obs"):
        convert(shared / "data" / "robosuite_raw", tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()
