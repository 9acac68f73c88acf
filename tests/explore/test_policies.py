"""The pages of policies: answers are what the policy gives when it is asked directly; the pages in a browser."""

import json

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.explore.latent_policy import LatentPolicy
from lapa_jax.explore.options import Options
from lapa_jax.explore.policy import Policy
from lapa_jax.inference.imagine import imagine
from lapa_jax.label.labeller import Labeller
from tests.explore.serving import ask, refused, serving
from tests.explore.test_latent_actions import GAP, PHONE, pixels
from tests.inference import random_vla, small_run, step_shards

pytestmark = pytest.mark.usefixtures("one_device")

WORDS = "push the red cube"


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """A tokenizer, a policy of its codes and a policy of actions, of random weights."""
    folder = tmp_path_factory.mktemp("runs")
    laq = small_run.write(folder / "laq", root, "sample", steps=(1,))
    Labeller(lapa_jax.load(laq), "sample", folder / "labels").run(progress=False)
    return {
        "laq": laq,
        "latent": random_vla.write(folder / "latent", root, "vla_latent.py", f"data.labels={folder / 'labels'}"),
        "action": random_vla.write(folder / "action", root, "vla_action.py", head="chunk"),
    }


@pytest.fixture(scope="module")
def loaded(runs):
    return {name: lapa_jax.load(run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def latent(runs, loaded):
    """Where the policy of latent actions answers, with its tokenizer."""
    with serving(LatentPolicy(loaded["latent"], runs["latent"], Options(tokenizer=str(runs["laq"])))) as address:
        yield address


@pytest.fixture(scope="module")
def action(runs, loaded):
    """Where the policy of actions answers."""
    with serving(Policy(loaded["action"], runs["action"], Options())) as address:
        yield address


def test_codes_and_probabilities_are_the_policy_s(latent, loaded, shards):
    policy, start = loaded["latent"], shards.episodes[1].start
    answer = ask(latent, "predict", episode=1, step=2, instruction=WORDS)
    logits = policy.logits(shards.image(start + 2), WORDS).astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for position, codes in enumerate(answer["likely"]):
        best = sorted(chances[position])[::-1][:3]
        np.testing.assert_allclose([chance for _, chance in codes], best, rtol=1e-4)
        np.testing.assert_allclose([chances[position][code] for code, _ in codes], best, rtol=1e-4)
    pair = np.stack([shards.image(start + 2), shards.image(start + 2 + GAP)])
    assert answer["recorded"] == loaded["laq"].encode(pair).tolist() and answer["second"] == 2 + GAP


def test_the_policy_acts_in_what_the_decoder_draws(latent, loaded, shards):
    answer = ask(latent, "predict", episode=1, step=2, instruction=WORDS)
    image = shards.image(shards.episodes[1].start + 2)
    after_recorded = np.clip(loaded["laq"].decode(image, np.array(answer["recorded"])), 0, 1)
    np.testing.assert_array_equal(pixels(answer["by_recorded"]), np.rint(after_recorded * 255))
    for shown in answer["imagined"]:
        codes, frame = imagine(loaded["latent"], loaded["laq"], image, WORDS)
        assert shown["codes"] == codes.tolist()
        np.testing.assert_array_equal(image := pixels(shown["frame"]), np.rint(frame * 255))
    assert len(answer["imagined"]) == 4


def test_without_tokenizer_or_labels_there_are_codes_alone(runs, loaded):
    policy, asked = loaded["latent"], {"episode": 0, "step": 0, "instruction": ""}
    assert LatentPolicy(policy, "run", Options()).predict(asked).keys() == {"likely", "recorded"}
    other = LatentPolicy(policy, "run", Options(data="sample", tokenizer=str(runs["laq"]))).predict(asked)
    assert other["recorded"] is other["by_recorded"] is None and len(other["imagined"]) == 4


def test_actions_are_the_policy_s_and_the_recorded_ones(action, loaded, shards):
    number, episode = 1, shards.episodes[1]
    for step in (0, episode.length - 2, episode.length - 1):
        answer = ask(action, "predict", episode=number, step=step, instruction=WORDS)
        expected = loaded["action"].chunk(shards.image(episode.start + step), WORDS)
        np.testing.assert_allclose(answer["predicted"], expected, rtol=1e-5)
        for k, row in enumerate(answer["recorded"]):
            # An episode's last step has no action.
            if step + k < episode.length - 1:
                np.testing.assert_allclose(row, shards.array(episode.start + step + k, "action"), rtol=1e-6)
            else:
                assert row == [None] * expected.shape[1]
    low, high = np.array(answer["ranges"]).T
    assert answer["fps"] == shards.fps and (low < high).all() and len(answer["names"]) == len(low)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"episode": 0, "step": 0}, "instruction must be a text"),
        ({"episode": 0, "step": 0, "instruction": 3}, "instruction must be a text"),
        ({"episode": 0, "step": 0, "instruction": "x" * 1001}, "has 1001 characters; 1000 are allowed"),
        ({"episode": 0, "step": 0, "instruction": "x" * 500}, "tokens"),
        ({"episode": 3000, "step": 0, "instruction": ""}, "episode is 3000"),
    ],
)
def test_a_wrong_question_is_one_line(latent, action, body, message):
    for address in (latent, action):
        assert message in refused(address, "predict", body)


def test_actions_of_another_robot_are_refused(runs, loaded, tmp_path):
    data = step_shards.write(tmp_path / "data")
    Policy(loaded["action"], "run", Options(data=str(data)))
    wide = json.loads((data / "dataset.json").read_text())
    wide["features"]["action"]["shape"] = [7]
    (data / "dataset.json").write_text(json.dumps(wide))
    with pytest.raises(UserError, match="data has actions of 7 numbers, run gives 2; give data of the same robot"):
        Policy(loaded["action"], "run", Options(data=str(data)))


def test_wrong_options_are_refused(root, runs, loaded, tmp_path):
    with pytest.raises(UserError, match="--pairs 3 is nothing to run, a stage-2 policy"):
        LatentPolicy(loaded["latent"], "run", Options(pairs=3))
    with pytest.raises(UserError, match="--tokenizer laq is nothing to run, a stage-3 policy"):
        Policy(loaded["action"], "run", Options(tokenizer="laq"))
    with pytest.raises(UserError, match="unknown dataset 'table'; this model was trained on: sample"):
        Policy(loaded["action"], "run", Options(dataset="table"))
    other = small_run.write(tmp_path / "other", root, "sample", steps=(2,))
    with pytest.raises(UserError, match="codes of two tokenizers mean different things"):
        LatentPolicy(loaded["latent"], "run", Options(tokenizer=str(other)))
    with pytest.raises(UserError, match="is no tokenizer of frame pairs"):
        LatentPolicy(loaded["latent"], "run", Options(tokenizer=str(runs["action"])))


TABLE = "document.querySelector('#answer-table').textContent"


@pytest.mark.parametrize("how", [{}, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize(("name", "frames"), [("latent", 7), ("action", 0)])
def test_the_page_answers_an_instruction(browser, request, name, frames, how):
    page = browser.open(f"http://{request.getfixturevalue(name)}/", **how)
    page.wait(f"document.body.dataset.ready && {TABLE}")
    assert page.run("document.querySelectorAll('#answer img').length") == frames
    assert page.run("document.querySelectorAll('#answer svg').length > 0") is (name == "action")
    page.check()
    before = page.run(TABLE)
    page.run("document.querySelector('#instruction').select()")
    for letter in "zoo?":
        page.key(letter)
    page.key("Enter", 13)
    page.wait(f"{TABLE} !== {json.dumps(before)}")
    assert page.run("document.querySelector('#instruction').value") == "zoo?"
    # What was typed stays where another frame is chosen.
    before = page.run(TABLE)
    page.click("#next")
    page.wait(f"{TABLE} !== {json.dumps(before)}")
    assert page.run("document.querySelector('#instruction').value") == "zoo?"
    page.run("document.querySelector('#instruction').value = 'x'.repeat(500)")
    label = "document.querySelector('#question button').textContent"
    assert page.run(label) == "Ask"
    assert page.run(f"document.querySelector('#question').requestSubmit(), {label}") == "Computing …"
    page.wait("!document.querySelector('#error').hidden")
    page.wait(f"{label} === 'Ask'")
    assert "tokens" in page.run("document.querySelector('#error').textContent")
    page.close()
