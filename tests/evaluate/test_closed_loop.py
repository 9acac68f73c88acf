"""What is written of closed-loop episodes, without a simulator."""

import json

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lapa_jax.data import images
from lapa_jax.evaluate import closed_loop
from lapa_jax.plots import film
from lapa_jax.sim import scores
from lapa_jax.sim.recording_formats import write_mp4


def lines(successes, tasks=("push", "pull"), count=10):
    return [{"number": n, "task": tasks[n % 2], "success": n in successes, "steps": 7 + n, "seed": n,
             "instruction": f"{tasks[n % 2]} <it>"} for n in range(count)]  # fmt: skip


def results(**found):
    return {name: {"overall": scores.summarize(own), "tasks": scores.by_task(own)} for name, own in found.items()}


@pytest.fixture
def out(tmp_path):
    """Strips of all episodes but the last, a video of the first."""
    for number in range(9):
        strip = np.full((16, 4 * 16, 3), 20 * number, np.uint8)
        (tmp_path / "policy/strips").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"policy/strips/{number:06d}.jpg").write_bytes(images.encode(strip))
    (tmp_path / "policy/videos").mkdir()
    film = np.zeros((12, 32, 32, 3), np.uint8)
    film[6:, :, :, 2] = 250
    write_mp4(tmp_path / "policy/videos/000000.mp4", film, 20.0)
    return tmp_path


def test_metrics_report_and_pictures(out):
    own = lines({0, 2, 4, 5})
    found = results(policy=own, expert=lines(range(8)), random=lines({1}), repeat=lines(()))
    closed_loop.write(out, {"env": "table", "policy": "bc", "seed": 3}, found, own, out / "policy")
    told = json.loads((out / "metrics.json").read_text())
    low, high = scores.wilson(4, 10)
    own = {"success_rate": 0.4, "success_rate_low": low, "success_rate_high": high, "of_expert": 0.5}
    others = {"success_rate_expert": 0.8, "success_rate_random": 0.1, "success_rate_repeat": 0.0}
    assert told["metrics"] == {**own, **others}
    assert told["policies"]["policy"]["tasks"]["push"]["success_rate"] == 0.6 and told["seed"] == 3
    page = (out / "report.html").read_text()
    for words in ("60% (23–88), 3/5", "0% (0–28), 0/10", 'video src="data:video/mp4;base64,',
                  "<figcaption>0, push: push &lt;it&gt;. success, 7 steps<",
                  ">failures.png<", ">successes.png<", ">rates.png<"):  # fmt: skip
        assert words in page
    assert all((out / name).stat().st_size > 3000 for name in ("rates.png", "failures.png", "successes.png"))


def test_films_stand_beside_each_other(out):
    """Twelve frames of 20 a second: black for 0.3 s and then blue, as long as the longer episode beside it takes."""
    write_mp4(out / "long.mp4", np.full((40, 32, 32, 3), 128, np.uint8), 20.0)
    short, long = out / "policy/videos/000000.mp4", out / "long.mp4"
    path = film.montage(out / "x.webp", [film.Filmed(short, "turn <blue>", True), film.Filmed(long, "wait", False)])
    with Image.open(path) as image:
        frames = []  # of a tenth of a second; equal ones that follow each other are stored once
        for frame in ImageSequence.Iterator(image):
            frames += [np.asarray(frame.convert("RGB")).astype(int)] * round(frame.info["duration"] / 100)
    assert len(frames) == 20 + 10 * film.HOLD and frames[0].shape[1] == 2 * film.SIDE + 3 * film.GAP
    left, right = film.GAP + film.SIDE // 2, 2 * film.GAP + film.SIDE * 3 // 2
    assert [bool(frame[left, left, 2] > 200) for frame in frames] == [False] * 3 + [True] * 37
    assert np.abs(frames[-1][left, right] - 128).max() < 10
    border = [frames[k][film.GAP - 1, x] for k in (0, -1) for x in (left, right)]
    assert border[0].min() > 240 and border[1].min() > 240, "none before the end"
    assert border[2].argmax() == 1 and border[3].argmax() == 0, "green after success, red after failure"


def test_the_page_holds_in_a_browser(browser, out):
    """With a video that plays, and the run that the policy comes from."""
    own = lines({0, 2})
    about = {"env": "table", "policy": "bc", "seed": 3, "options": {"size": 64, "tasks": ("a", "b")}}
    closed_loop.write(out, about, results(policy=own), own, out / "policy",
                      trained=[("commit", "abc")], compared=("configs/laq.py", [("seed", "0 -> 1")]))  # fmt: skip
    page = browser.check(out / "report.html")
    assert "size 64, tasks a, b" in page.run("document.querySelector('.about').textContent")
    page.run("document.querySelector('video').play()")
    page.wait("document.querySelector('video').currentTime > 0.1")
    assert page.requests() == [(out / "report.html").as_uri()], "the video lies in the page"
    assert page.run("document.querySelector('summary').textContent") == "1 key differs from configs/laq.py"


def test_a_policy_that_only_fails_has_no_sheet_of_successes(out):
    closed_loop.write(out, {"env": "t", "policy": "p", "seed": 0}, results(policy=lines(())), lines(()), out / "policy")
    assert not (out / "successes.png").exists() and (out / "failures.png").exists()


def test_sheets_show_as_many_tasks_as_they_can():
    episodes = [{"number": n, "task": task} for n, task in enumerate("aaaabac")]
    assert [e["number"] for e in closed_loop.choose(episodes, 5)] == [0, 4, 6, 1, 2]


def test_random_actions_alone_are_neither_good_nor_poor():
    """In an environment without an expert there is nothing to compare them with."""
    (line,) = closed_loop.judge(closed_loop.metrics_of(results(random=lines({1}))))
    assert line.level == "note" and "control" not in line.words


@pytest.mark.parametrize(("won", "level"), [(40, "good"), (6, "poor"), (2, "poor")])
def test_a_policy_is_good_that_is_clearly_better_than_the_best_control(won, level):
    found = results(policy=lines(range(won), count=50), repeat=lines(range(3), count=50), random=lines((), count=50))
    assert closed_loop.judge(closed_loop.metrics_of(found))[0].level == level
