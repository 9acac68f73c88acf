"""The course of training: which lines belong together, and that they zoom under a mouse and under a finger."""

import json

import numpy as np
import pytest
from PIL import Image

from lapa_jax.core import escape
from lapa_jax.plots import curves, page, zoom

EVIL = "</script><script>window.evil = true</script><b>&amp;"


def lines(steps, **of):
    return [{"step": step, **{name: of_step(step) for name, of_step in of.items()}} for step in steps]


def test_curves_belong_together():
    names = {"train/loss": lambda s: 1 / (s + 1), "val/r2": int, "val/a/r2": lambda s: s - 1, "val/r2_0": float,
             "val/action_mse": float, "val/action_mse_0": float, "val/action_mse_10": float,
             "val/top_3": float}  # fmt: skip
    panels = curves.of_run(lines(range(4), **names))
    assert list(panels) == ["train/loss", "val/r2", "val/action_mse", "val/top_3"], "none of single dimensions"
    assert list(panels["val/r2"]) == ["val/r2", "a"]
    np.testing.assert_array_equal(panels["val/r2"]["a"], [[0, -1], [1, 0], [2, 1], [3, 2]])
    assert list(curves.of_run(lines(range(4), **names), "val/r2"))[:2] == ["val/r2", "train/loss"]
    assert curves.of_run([]) == {} and curves.of_run([{"step": 1, "train/loss": None}]) == {}
    assert curves.colours(panels) == dict.fromkeys(panels, 0) | {"a": 1}


def test_a_run_has_one_colour_also_where_another_lacks_the_metric():
    both = {"a": lines([1, 2], **{"train/loss": float}), "b": lines([1], **{"train/loss": float, "val/psnr": float})}
    panels = curves.of_runs(both)
    assert {title: list(of) for title, of in panels.items()} == {"train/loss": ["a", "b"], "val/psnr": ["b"]}
    assert curves.colours(panels) == {"a": 0, "b": 1}


def test_of_long_lines_the_spikes_stay():
    values = np.sin(np.arange(50_000) / 900)
    values[[0, 31_234, -1]] = 0.5, 40, 0.25
    line = zoom._line("x", np.stack([np.arange(50_000), values], axis=1))
    assert len(line["steps"]) <= zoom.MOST + 2 and line["steps"] == sorted(set(line["steps"]))
    at = dict(zip(line["steps"], line["values"]))
    assert at[31_234] == 40 and at[0] == 0.5 and at[49_999] == 0.25
    short = zoom._line("x", np.array([[3, 1.0], [1, 2.0]]))
    assert (short["steps"], short["values"]) == ([1, 3], [2.0, 1.0])


def test_no_text_ends_the_script_that_holds_it():
    text = escape.script({EVIL: "\u2028 \ud800"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {EVIL: "\u2028 \ud800"}


@pytest.fixture
def written(tmp_path):
    """A page of curves: one that falls from 3 to 0.003 over 1,000 steps, one that is below zero, and two runs' own."""
    loss = {"train/loss": lambda step: 3 * 10 ** (-step / 333)}
    histories = {"first": lines(range(0, 1001, 10), **loss, **{"val/psnr": lambda step: step / 100 - 5}),
                 EVIL: lines(range(0, 501, 7), **loss)}  # fmt: skip
    panels = curves.of_runs(histories)
    still = curves.draw(tmp_path / "curves.png", panels)
    tables = "# two runs\n\n## Tables\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    return page.compare(tmp_path / "index.html", tables, panels, still)


def steps(opened) -> tuple[int, int]:
    """The first and the last step that the first curve shows, as its legend says where one points there."""
    steps = []
    for share in (0.001, 0.999):
        opened.hover(".u-over", (share, 0.5))
        steps.append(int(opened.wait("document.querySelector('.u-legend .u-value').textContent")))
    return tuple(steps)


def shows(opened, start: int, end: int) -> bool:
    """Whether these steps are shown, but for what a pixel and the distance of two steps are."""
    return np.abs(np.subtract(steps(opened), (start, end))).max() <= 15


def test_a_drag_zooms_all_curves_and_a_double_click_goes_back(browser, written):
    opened = browser.check(written)
    assert opened.requests() == [written.as_uri()], "all that it needs lies in it"
    assert steps(opened) == (0, 1000)
    opened.drag(".u-over", (0.2, 0.5), (0.6, 0.4))
    assert shows(opened, 200, 600)
    of_others = opened.run("[...document.querySelectorAll('.live button')].map(button => button.hidden)")
    assert of_others == [False, False]
    opened.click(".u-over", count=2)
    assert steps(opened) == (0, 1000)
    opened.drag(".u-over", (0.9, 0.5), (0.5, 0.5))
    assert shows(opened, 500, 900)
    opened.click(".live button")
    assert steps(opened) == (0, 1000) and opened.errors() == []


def test_names_are_shown_as_what_they_are(browser, written):
    opened = browser.open(written)
    labels = opened.run("[...document.querySelectorAll('.u-label')].map(label => label.textContent)")
    assert EVIL in labels and opened.run("window.evil") is None
    assert opened.run("[...document.querySelectorAll('.u-value')].map(value => value.textContent)")[:3] == [
        "1000", f"{3 * 10 ** (-1000 / 333):.4g}", f"{3 * 10 ** (-497 / 333):.4g}"]  # fmt: skip


def test_a_logarithmic_axis_is_offered_where_it_says_something(browser, written):
    opened = browser.open(written)
    boxes = "[...document.querySelectorAll('.live article')].map(one => one.querySelectorAll('input').length)"
    assert opened.run(boxes) == [1, 0], "the loss spans three powers of ten, the other begins below zero"
    opened.drag(".u-over", (0.2, 0.5), (0.6, 0.4))
    before = opened.run("document.querySelector('.uplot canvas').toDataURL()")
    opened.click(".live input")
    assert opened.run("document.querySelector('.uplot canvas').toDataURL()") != before
    assert shows(opened, 200, 600), "the zoom stays"
    assert opened.errors() == []


def test_a_finger_zooms_sideways_and_scrolls_upwards(browser, written):
    opened = browser.open(written, 390, height=500, touch=True)
    first = steps(opened)
    top = opened.run("scrollY")
    opened.swipe(".u-over", up=150)
    assert opened.run("scrollY") > top + 100 and steps(opened) == first
    opened.swipe(".u-over", right=100)
    start, end = steps(opened)
    assert 485 <= start <= 515 and end - start < 500, "from the middle, where the finger began"
    assert opened.errors() == []


def test_curves_follow_their_width_and_the_image_is_printed(browser, written):
    opened = browser.open(written)
    width = "document.querySelector('.uplot canvas').getBoundingClientRect().width"
    wide = opened.run(width)
    opened.call("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1,
                                                       "mobile": False})  # fmt: skip
    opened.wait(f"{width} !== {wide}")
    assert opened.run("document.documentElement.scrollWidth") <= 390
    shown = "['.live', '.still'].map(name => document.querySelector(name).checkVisibility())"
    assert opened.run(shown) == [True, False]
    opened.media(printed=True)
    assert opened.run(shown) == [False, True]


def test_without_scripts_the_image_is_shown(browser, written):
    opened = browser.open(written, scripts=False)
    assert opened.run("document.querySelector('.still img').checkVisibility()")


def test_dark_colours_reach_the_curves(browser, written, tmp_path):
    opened = browser.open(written)
    opened.picture(tmp_path / "light.png")
    opened.media(dark=True)
    opened.picture(tmp_path / "dark.png")
    light, dark = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("L")) for name in ("light", "dark"))
    assert light.mean() > 220 and dark.mean() < 60
