"""Pictures of data: what is drawn is looked up in the PNG, or in the figure before it is written."""

import numpy as np
import pytest
from PIL import Image

from lapa_jax.data import images
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    json_bytes,
    step_key,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics
from lapa_jax.plots import dataset, frames

LENGTH = 22
SHOWN = [0, 3, 6, 9, 12, 15, 18, 21]


def colour(episode: int, step: int, camera: int = 0) -> tuple[int, int, int]:
    return 30 + 10 * step, 40 + 150 * camera, 60 + 160 * episode


def flat(rgb, height=32, width=48):
    return images.encode(np.broadcast_to(np.array(rgb, np.uint8), (height, width, 3)), 100)


def write(folder, rows=None, pictures=True, dtype="float32"):
    """Two episodes whose pictures are of one colour, which tells episode, step and camera; `rows` [2 * LENGTH, A]."""
    features, statistics = {}, {}
    with ShardWriter(folder / "train-00000.tar") as writer:
        for episode in range(2):
            for step in range(LENGTH):
                members = {"json": json_bytes({"episode": f"e{episode}", "step": step}), "txt": b"cost $5 or $6"}
                if pictures:
                    members["image.jpg"] = flat(colour(episode, step))
                if pictures and step % 2:
                    members["image_wrist.jpg"] = flat(colour(episode, step, 1), 40, 40)
                if rows is not None:
                    members["action.npy"] = array_bytes(rows[episode * LENGTH + step])
                writer.add(step_key(f"e{episode}", step), members)
    if pictures:
        features = {"image_wrist": {"codec": "jpeg"}, "image": {"shape": [32, 48, 3], "codec": "jpeg"}}
    if rows is not None:
        features["action"] = {"shape": [rows.shape[1]], "dtype": dtype}
        statistics = {"action": column_statistics([rows])} if dtype == "float32" else {}
    splits = {"train": {"episodes": 2, "steps": 2 * LENGTH, "shards": [writer.summary]}}
    write_dataset(folder, features=features, fps=10.0, source={}, splits=splits, statistics=statistics)
    return StepShards(folder)


def area(picture: np.ndarray, rgb) -> int:
    """How many pixels are of a colour, but for what JPEG and scaling change."""
    return int((np.abs(picture.astype(int) - rgb).max(-1) <= 3).sum())


def test_a_contact_sheet_shows_evenly_spaced_frames_of_every_camera(tmp_path):
    shards = write(tmp_path / "set")
    picture = np.asarray(Image.open(dataset.contact_sheet(tmp_path / "sheet.png", shards)).convert("RGB"))
    for episode in range(2):
        for step in range(LENGTH):
            areas = [area(picture, colour(episode, step, camera)) for camera in range(2)]
            assert (areas[0] > 5000) == (step in SHOWN), (episode, step, areas)
            assert (areas[1] > 3000) == (step in SHOWN and step % 2 == 1), (episode, step, areas)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are about to be saved."""
    seen, save = [], frames.save
    monkeypatch.setattr(frames, "save", lambda figure, path: seen.append(figure) or save(figure, path))
    return seen


def test_captions_and_step_numbers(tmp_path, figures):
    dataset.contact_sheet(tmp_path / "sheet.png", write(tmp_path / "set"))
    for episode, axes in enumerate(figures[0].axes):
        assert axes.get_title(loc="left") == f"“cost $5 or $6”  e{episode}, 22 steps"
        assert [label.get_text() for label in axes.get_xticklabels()] == [str(step) for step in SHOWN]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["image", "wrist"]


def test_histograms_count_the_rows_and_mark_quantiles_and_bins(tmp_path, figures):
    rng = np.random.default_rng(0)
    rows = np.stack([rng.normal(size=44), rng.random(44) < 0.4, np.full(44, 0.5)], 1).astype(np.float32)
    shards = write(tmp_path / "set", rows, pictures=False)
    dataset.histograms(tmp_path / "actions.png", shards, "action")
    narrow = write(tmp_path / "narrow", rows[:, :1], pictures=False)
    dataset.histograms(tmp_path / "narrow.png", narrow, "action")
    for figure in figures:
        assert figure.get_suptitle().replace("\n", " ").endswith("above: of equal frequency")
        (heading,) = figure.texts
        assert heading.get_window_extent().x1 <= figure.bbox.x1
    titles = [axes.get_title(loc="left") for axes in figures[0].axes if axes.get_visible()]
    assert titles == ["action 0: continuous", "action 1: binary", "action 2: constant"]
    for i, axes in enumerate(figures[0].axes[:3]):
        heights, edges, _ = axes.patches[0].get_data()
        assert heights.sum() == pytest.approx(1)
        np.testing.assert_allclose(heights, np.histogram(rows[:, i].astype(np.float64), edges)[0] / 44)
        dashed = sorted(line.get_xdata()[0] for line in axes.lines)
        np.testing.assert_allclose(dashed, np.quantile(rows[:, i].astype(np.float64), [0.01, 0.99]), atol=1e-6)
    uniform, equal = [sorted(s[0][0] for s in marks.get_segments()) for marks in figures[0].axes[0].collections]
    column = rows[:, 0].astype(np.float64)
    np.testing.assert_allclose(uniform, np.linspace(*np.quantile(column, [0.01, 0.99]), 17), atol=1e-5)
    np.testing.assert_allclose(equal, np.quantile(column, np.linspace(0, 1, 17)), atol=1e-5)


def test_codes_are_counted_one_by_one(tmp_path, figures):
    rows = np.random.default_rng(0).integers(0, 8, (44, 4)).astype(np.int32)
    dataset.histograms(tmp_path / "codes.png", write(tmp_path / "set", rows, False, "int32"), "action")
    for i, axes in enumerate(figures[0].axes):
        got = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in axes.patches}
        assert got == pytest.approx({k: n / 44 for k, n in zip(*np.unique(rows[:, i], return_counts=True))})


def test_data_without_pictures_are_drawn_over_time(tmp_path, figures):
    rows = np.random.default_rng(0).normal(size=(44, 3)).astype(np.float32)
    dataset.contact_sheet(tmp_path / "sheet.png", write(tmp_path / "few", rows, pictures=False))
    wide = np.random.default_rng(0).normal(size=(44, 40)).astype(np.float32)
    dataset.contact_sheet(tmp_path / "wide.png", write(tmp_path / "wide", wide, pictures=False))
    few, many = figures
    for episode, axes in enumerate(few.axes):
        got = np.stack([line.get_ydata() for line in axes.lines], 1)
        np.testing.assert_array_equal(got, rows[episode * LENGTH : (episode + 1) * LENGTH])
    assert [axes.images[0].get_array().shape for axes in many.axes] == [(40, LENGTH)] * 2, "a map of wide columns"


def test_pairs_stand_side_by_side(tmp_path):
    with ShardWriter(tmp_path / "train-00000.tar") as writer:
        for i in range(6):
            writer.add(f"{i:06d}", {"t.jpg": flat((20 * i, 0, 60)), "t1.jpg": flat((20 * i, 0, 200))})
    drawn = dataset.pair_sheet(tmp_path / "sheet.png", PairShards(tmp_path))
    picture = np.asarray(Image.open(drawn).convert("RGB")).astype(int)
    for i in range(6):
        left, right = (np.argwhere(np.abs(picture - (20 * i, 0, blue)).max(-1) <= 3).mean(0) for blue in (60, 200))
        assert right[1] > left[1] and abs(right[0] - left[0]) < 2, "the next frame is on the right of the frame"
