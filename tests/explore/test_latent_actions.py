"""The page of a tokenizer: answers are what the tokenizer gives when it is asked directly; the page in a browser."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.explore.latent_actions import LatentActions
from lapa_jax.explore.options import Options
from tests.explore.serving import ask, get, refused, serving
from tests.inference import small_run

pytestmark = pytest.mark.usefixtures("one_device")

GAP = 3


@pytest.fixture(scope="module")
def tokenizer(root, tmp_path_factory):
    return lapa_jax.load(small_run.write(tmp_path_factory.mktemp("laq") / "run", root, "sample", steps=(1,)))


@pytest.fixture(scope="module")
def address(tokenizer):
    with serving(LatentActions(tokenizer, "runs/<b>laq", Options(pairs=60))) as address:
        yield address


def pixels(url: str) -> np.ndarray:
    """uint8 [H, W, 3] of an address that holds a PNG."""
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_step_has_its_images_and_the_codes_of_its_pair(address, tokenizer, shards):
    for number, step in ((0, 0), (1, 4)):
        answer, episode = ask(address, "step", episode=number, step=step), shards.episodes[number]
        first = episode.start + step
        pair = np.stack([shards.image(first), shards.image(first + GAP)])
        assert answer["codes"] == tokenizer.encode(pair).tolist() and answer["second"] == step + GAP
        assert (answer["name"], answer["length"]) == (episode.id, episode.length)
        assert answer["instruction"] == shards.text(first)
        status, kind, data = get(address, f"/image/{number}/{step}/0.png")
        assert (status, kind) == (200, "image/png")
        seen = tokenizer.observe(pair[:1])[0] * 255
        np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(data))), seen, atol=1e-3)


def test_the_last_steps_begin_no_pair_and_later_ones_do_not_exist(address, shards):
    length = shards.episodes[0].length
    for step in (length - GAP, length + 100):
        answer = ask(address, "step", episode=0, step=step)
        assert answer["codes"] is answer["second"] is None and answer["step"] == min(step, length - 1)
    assert ask(address, "recorded", episode=0, step=length - 1) == {"actions": [], "steps": []}


def test_frames_roll_out_as_the_decoder_s_output_is_fed_back(address, tokenizer, shards):
    actions = [[0, 1, 2, 3], [7, 7, 0, 0], [5, 4, 3, 2]]
    frames = ask(address, "rollout", episode=0, step=2, actions=actions)["frames"]
    image = shards.image(shards.episodes[0].start + 2)
    for url, codes in zip(frames, actions, strict=True):
        image = np.clip(tokenizer.decode(image, np.array(codes)), 0, 1)
        np.testing.assert_array_equal(pixels(url), np.rint(image * 255))
    assert ask(address, "rollout", episode=0, step=2, actions=[]) == {"frames": []}


def test_the_recording_s_actions_follow_each_other(address, tokenizer, shards):
    answer, start = ask(address, "recorded", episode=1, step=0), shards.episodes[1].start
    assert answer["steps"][:3] == [GAP, 2 * GAP, 3 * GAP] and len(answer["steps"]) == len(answer["actions"]) <= 8
    pair = np.stack([shards.image(start + GAP), shards.image(start + 2 * GAP)])
    assert answer["actions"][1] == tokenizer.encode(pair).tolist()


def test_pairs_are_found_by_their_codes_with_their_mean_action(address, tokenizer, shards):
    """All pairs of the sample are encoded here, so that counting them once more must give the same."""
    explorer = LatentActions(tokenizer, "run", Options(pairs=10**6))
    explorer.prepare()
    rows = []
    for episode in shards.episodes:
        for step in range(episode.start, episode.start + episode.length - GAP):
            codes = tokenizer.encode(np.stack([shards.image(step), shards.image(step + GAP)]))
            rows.append((codes, sum(shards.array(i, "action").astype(float) for i in range(step, step + GAP))))
    codes, actions = (np.stack(column) for column in zip(*rows))
    assert explorer.about({})["pairs"] == {"encoded": len(rows), "all": len(rows)}
    position, code = 1, int(codes[0, 1])
    for pattern in ([None, code, None, None], codes[5].tolist()):
        fits = np.all([codes[:, i] == c for i, c in enumerate(pattern) if c is not None], axis=0)
        answer = explorer.pairs({"codes": pattern})
        assert answer["count"] == fits.sum() > 0
        expected = actions[fits].mean(0)
        np.testing.assert_allclose([row["mean"] for row in answer["actions"]], expected, atol=1e-5)
        deviations = (expected - actions.mean(0)) / actions.std(0)
        np.testing.assert_allclose([row["deviations"] for row in answer["actions"]], deviations, atol=1e-3)
        for number, first, second in answer["examples"]:
            step = explorer.step({"episode": number, "step": first})
            assert step["second"] == second and all(c in (None, k) for c, k in zip(pattern, step["codes"]))
    counts = explorer.about({})["codes"]["counts"]
    assert counts[position][code] == (codes[:, position] == code).sum()
    assert len(LatentActions(tokenizer, "run", Options(pairs=7))._source) == len(rows)


def test_a_code_that_no_pair_has_has_no_mean_action(tokenizer):
    explorer = LatentActions(tokenizer, "run", Options(pairs=1))
    explorer.prepare()
    (codes,) = explorer.index.codes.tolist()
    answer = explorer.pairs({"codes": [(codes[0] + 1) % 8, None, None, None]})
    assert answer == {"count": 0, "examples": [], "actions": None}
    (row, *_) = explorer.pairs({"codes": codes})["actions"]
    assert row["deviations"] == 0, "the only pair is like the mean"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("step", {"episode": 99, "step": 0}, "episode is 99; give a whole number, 0 to "),
        ("step", {"episode": True, "step": 0}, "episode is True"),
        ("step", {"episode": "<b>", "step": 0}, "episode is <b>"),
        ("step", {"episode": 0}, "step is None"),
        ("step", [], "must be a JSON object"),
        ("step", b"[", "not valid JSON"),
        ("step", b"[" * 60_000, "not valid JSON"),
        ("rollout", {"episode": 0, "step": 0}, "actions must be a list of at most 32"),
        ("rollout", {"episode": 0, "step": 0, "actions": [[0, 0, 0, 0]] * 33}, "at most 32"),
        ("rollout", {"episode": 0, "step": 0, "actions": [[0, 0, 0]]}, "is a list of 4 codes"),
        ("rollout", {"episode": 0, "step": 0, "actions": [[0, 0, 0, 8]]}, "a code is 8; give a whole number, 0 to 7"),
        ("rollout", {"episode": 0, "step": 0, "actions": [[0, 0, 0, None]]}, "a code is None"),
        ("pairs", {"codes": [0, 0.5, 0, 0]}, "a code is 0.5"),
        ("pairs", {"codes": "0000"}, "is a list of 4 codes"),
    ],
)
def test_a_wrong_question_is_one_line(address, name, body, message):
    if isinstance(body, bytes):
        status, _, text = get(address, f"/api/{name}", body, **{"Content-Type": "application/json"})
        assert status == 400 and message in json.loads(text)["error"]
    else:
        assert message in refused(address, name, body)


def test_other_names_sites_kinds_and_paths_are_refused(address):
    asked = {"episode": 0, "step": 0}
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        for path, body in (("/", None), ("/image/0/0/0.png", None), ("/api/step", asked)):
            status, kind, text = get(address, path, body, **headers)
            assert (status, kind) == (403, "application/json") and json.loads(text)["error"]
    assert get(address, "/", Host="localhost:1")[0] == get(address, "/", Origin=f"http://{address}")[0] == 200
    # What other sites may send without asking first.
    assert get(address, "/api/step", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    for path in ("/api/step", "/nowhere", "/../setup.py", "/page/page.js", "/image/0/0/0.jpg"):
        assert get(address, path)[0] in (404, 405)
    assert get(address, "/api/nothing", asked)[0] == 404 and get(address, "/api/__init__", asked)[0] == 404
    for path in ("/image/99/0/0.png", "/image/0/0/1.png", "/image/-1/0/0.png", "/image/x/0/0.png"):
        assert get(address, path)[0] == 400
    assert get(address, "/api/step", b"x" * 70_000, **{"Content-Type": "application/json"})[0] == 413


def test_wrong_runs_and_data_are_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match="--tokenizer laq is nothing to run, a tokenizer of frame pairs; leave it out"):
        LatentActions(tokenizer, "run", Options(tokenizer="laq"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        LatentActions(tokenizer, "run", Options(data="nowhere"))
    with pytest.raises(UserError, match="no steps in split 'test'"):
        LatentActions(tokenizer, "run", Options(split="test"))
    (tmp_path / "train-00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="ready-made pairs without episodes"):
        LatentActions(tokenizer, "run", Options(data=str(tmp_path)))
    with tokenizer.config.unlocked():
        before = tokenizer.config.data.mixture
        tokenizer.config.data.mixture = ({"path": "a", "weight": 1.0}, {"path": "b", "weight": 1.0})
        try:
            with pytest.raises(UserError, match="say with --data which to explore: a, b"):
                LatentActions(tokenizer, "run", Options())
        finally:
            tokenizer.config.data.mixture = before


@pytest.fixture
def page(browser, address, request):
    """The page in a browser, which has shown the first step. Parameters as of `Browser.open`."""
    page = browser.open(f"http://{address}/", **getattr(request, "param", {}))
    page.wait("document.body.dataset.ready && document.querySelectorAll('#strip li').length === 2")
    yield page
    page.close()


SHOWN = "document.querySelector('#stage img').src"
PHONE = {"width": 390, "height": 844, "touch": True, "dark": True}


@pytest.mark.parametrize("page", [{}, PHONE], indirect=True, ids=["wide", "phone"])
def test_clicks_on_codes_change_the_frames(page, tokenizer):
    assert page.run("document.querySelector('#title').textContent") == "<b>laq"
    page.check()
    before = page.run(SHOWN)
    unchosen = "input[name=position-2]:not(:checked)"
    code = int(page.run(f"document.querySelector('{unchosen}').value"))
    page.click(unchosen)
    page.wait(f"{SHOWN} !== {json.dumps(before)}")
    page.wait(f"document.querySelector('#often').textContent.startsWith('Pairs with code {code} at position 2: ')")
    page.click("#add")
    page.wait("document.querySelectorAll('#strip li').length === 3")
    page.click("#strip li:nth-child(2) button")
    assert page.run(f"{SHOWN} === document.querySelectorAll('#strip img')[1].src")
    page.click("#take")
    page.wait("document.querySelectorAll('#strip li').length > 3")
    page.click("#play")
    page.wait("document.querySelector('#stage').textContent.includes('recorded frame')")
    page.click("#clear")
    page.wait("document.querySelectorAll('#strip li').length === 2")
    page.check()


@pytest.mark.parametrize("page", [PHONE], indirect=True, ids=["phone"])
def test_a_tap_chooses_a_code_and_shows_its_pairs(page):
    before = page.run(SHOWN)
    page.swipe("#positions fieldset:nth-child(4) .chip:has(:not(:checked))", 0)  # a finger that does not move
    page.wait(f"{SHOWN} !== {json.dumps(before)}")
    page.wait("document.querySelector('#often').textContent.includes(' at position 3: ')")


def test_the_keyboard_is_enough(page):
    """Tab reaches a code position, arrows move between its codes; the slider moves the frame."""
    page.run("document.querySelector('input[name=position-0]:checked').focus()")
    before = page.run(SHOWN), page.run("document.querySelector('input[name=position-0]:checked').value")
    page.key("ArrowRight", 39)
    page.wait(f"{SHOWN} !== {json.dumps(before[0])}")
    assert page.run("document.querySelector('input[name=position-0]:checked').value") != before[1]
    page.key("Tab", 9)
    assert page.run("document.activeElement.name") == "position-1"
    page.run("document.querySelector('#frame').focus()")
    page.key("ArrowRight", 39)
    page.wait("document.querySelector('#step').textContent.startsWith('Frame 1 of ')")
    page.wait("document.querySelector('#frames img').src.endsWith('/image/0/1/0.png')")


def test_hovering_shows_pairs_and_they_lead_there(page):
    often = "document.querySelector('#often').textContent"
    page.hover(".chip:has(input[name=position-3][value='0'])")
    page.wait(f"{often}.startsWith('Pairs with code 0 at position 3: ')")
    page.run("document.querySelector('input[name=position-0]:checked').focus()")
    page.wait(f"{often}.includes('at position 0: ') && document.querySelectorAll('#examples img').length")
    assert page.run("document.querySelectorAll('#mean-action tbody tr').length") > 0
    place = page.run("document.querySelector('#examples img').src")
    page.click("#examples button")
    page.wait(f"document.querySelector('#frames img').src === {json.dumps(place)}")
    page.check()


def test_texts_of_the_data_are_never_html(browser, tokenizer, monkeypatch):
    """An instruction and an episode's name with HTML and a character that turns the direction of writing."""
    explorer = LatentActions(tokenizer, "run", Options(pairs=5))
    wild = "<img src=x onerror=\"document.title='hurt'\"> \u202e & 'x'"
    monkeypatch.setattr(explorer.shards, "text", lambda i: wild)
    with serving(explorer) as address:
        page = browser.open(f"http://{address}/")
        page.wait("document.body.dataset.ready")
        shown = page.run("document.querySelector('#recorded-instruction').textContent")
        assert shown == "Instruction: " + wild.replace("\u202e", "\\u202e")
        assert page.run("document.title") == "run: explorer"
        assert page.run("document.querySelector('#recorded-instruction').children.length") == 0
        page.check()
        page.close()


def test_the_page_asks_nobody_else(page, address):
    assert {url.split("/")[2] for url in page.requests()} == {address}
