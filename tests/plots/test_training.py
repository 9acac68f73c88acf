"""Images of a training: what is drawn lies where its values say, and nothing slow is imported for it."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from lapa_jax.plots import pairs, sketch, training


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def count(image: np.ndarray, color: str) -> int:
    return int((image == ImageColor.getrgb(color)).all(-1).sum())


def test_drawing_needs_no_matplotlib():
    """Its import and a figure of many labels take seconds of a run of minutes."""
    code = "import sys; from lapa_jax.plots import pairs, training; print({'matplotlib', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("size", [16, 64, 224])
def test_frames_are_shown_in_their_colors(tmp_path, size):
    red, green, blue = np.eye(3, dtype=np.float32)
    shown = np.broadcast_to(np.stack([red, green])[None, :, None, None], (8, 2, size, size, 3))
    decoded = np.broadcast_to(np.stack([blue, blue * 0.8])[None, :, None, None], (4, 2, size, size, 3))
    counts = np.full((4, 8), 5)
    file = pairs.frame_pairs(tmp_path / "a.png", shown, shown[:, 0], decoded, ["01\n60%", "23\n40%"], counts, [8.0] * 4)
    image = pixels(file)
    frame = count(image, "#00ff00") / 8  # the second frames of eight pairs
    assert 80**2 < frame < 170**2
    # First frames and reconstructions of eight pairs, and the starts of the gallery; then what the first code gives.
    assert count(image, "#ff0000") == 20 * frame and count(image, "#0000ff") == 4 * frame


def test_bars_are_as_high_as_their_shares():
    image = sketch.blank(300, 200)
    panel = sketch.Panel(image, (0, 0, 300, 200), "", (0, 1), (0, 0.5))
    panel.bars(np.array([0.5, 0.25, 0.0]))
    blue = (np.asarray(image) == ImageColor.getrgb(sketch.BAR)).all(-1).sum(0)
    height = 200 - sketch.TITLE - sketch.LABEL
    assert [blue[x] for x in (50, 150, 250)] == [pytest.approx(height, abs=1.5), pytest.approx(height / 2, abs=1.5), 0]


def test_dots_lie_where_their_values_say():
    image = sketch.blank(200, 200)
    panel = sketch.Panel(image, (20, 10, 150, 150), "", (-1, 1), (0, 10))
    panel.dots(np.array([-1.0, 0.5, 9.0]), np.array([0.0, 5.0, 10.0]), ["#ff0000", "#00ff00", "#0000ff"], [2, 2, 2])
    bottom, top = 10 + 150 - sketch.LABEL, 10 + sketch.TITLE
    expected = {"#ff0000": (20, bottom), "#00ff00": (20 + 0.75 * 150, (top + bottom) / 2), "#0000ff": (170, top)}
    for color, (x, y) in expected.items():
        rows, columns = np.nonzero((np.asarray(image) == ImageColor.getrgb(color)).all(-1))
        assert (columns.mean(), rows.mean()) == (pytest.approx(x, abs=1), pytest.approx(y, abs=1)), color


def test_actions_are_drawn_with_and_without_chunks_and_codes(tmp_path):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(40, 4, 3))
    true[..., 1] = 0.5  # constant: has no panel
    mask = np.ones((40, 4), bool)
    mask[::3, 2:] = False
    codes = rng.integers(0, 5, (40, 2))
    files = [
        training.actions(tmp_path / "a.png", true[:, :1], true[:, :1] + 0.1, mask[:, :1]),
        training.actions(tmp_path / "b.png", true, true + 0.1, mask),
        training.actions(tmp_path / "c.png", true, true + 0.1, mask, codes, [5, 5], ["left", "right"]),
        training.actions(tmp_path / "d.png", true, true + 0.1, mask, codes[:, None].repeat(4, 1), [5, 5]),
    ]
    heights, widths = zip(*(pixels(file).shape[:2] for file in files))
    assert set(widths) == {sketch.MARGIN + 2 * training.WIDTH}
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_confusion_is_as_dark_as_the_share(tmp_path):
    codes = np.array([[0, 0], [1, 1], [2, 2], [2, 2]])
    predicted = np.array([[0, 1], [1, 1], [2, 1], [2, 1]])
    image = pixels(training.confusion(tmp_path / "a.png", codes, predicted, 3))
    cell = (training.WIDTH - 2 * sketch.MARGIN) // 3
    assert count(image, "#08306b") == 6 * cell**2, "each row of both positions has one code that is always predicted"
    assert count(image, "#ecf0f7") == 12 * cell**2
