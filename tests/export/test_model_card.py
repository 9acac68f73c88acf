"""The model card of an exported folder: what it says, and that nothing of data or runs commands it."""

import json
import re

import pytest
import yaml

import lapa_jax
from lapa_jax.core import escape
from lapa_jax.export import model_card
from lapa_jax.inference import kinds
from tests.core.test_escape import EVIL
from tests.inference import small_run


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "run"
    return small_run.write(folder, root, "sample")


@pytest.fixture(scope="module")
def trained(run):
    return lapa_jax.load(run)


def card(tmp_path, trained, run, license=None) -> str:
    model_card.write(tmp_path, trained, run, license)
    return (tmp_path / "README.md").read_text()


def test_it_says_what_the_model_is_and_how_to_load_it(tmp_path, trained, run):
    text = card(tmp_path, trained, run, "apache-2.0")
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0" and head["library_name"] == "lapa_jax"
    for words in ("# laq\\_tiny", "tokenizer of frame pairs", "after 2 steps", trained.fingerprint, "| table |",
                  "model.encode(frames)", "## Limits", "Nothing here was measured on a real robot"):  # fmt: skip
        assert words in text, words
    compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "card", "exec")
    assert "license" not in yaml.safe_load(card(tmp_path, trained, run).split("---")[1])


def test_it_quotes_the_evaluation_of_this_step_alone(tmp_path, trained, run):
    assert "Not evaluated" in card(tmp_path, trained, run)
    (run / "metrics.jsonl").write_text('{"step": 2, "val/psnr": 21.5}\n{"step": 1, "val/psnr": 3.25}\n')
    text = card(tmp_path, trained, run)
    assert "val/psnr | 21.5 |" in text and "3.25" not in text
    (run / "eval").mkdir()
    measured = {"step": 1, "data": "sample", "split": "val", "metrics": {"swap_gap": 0.3125, "ssim": None}}
    (run / "eval/metrics.json").write_text(json.dumps(measured))
    assert "0.3125" not in card(tmp_path, trained, run), "it was of another step"
    (run / "eval/metrics.json").write_text(json.dumps({**measured, "step": 2}))
    text = card(tmp_path, trained, run)
    assert "| swap\\_gap | 0.3125 |" in text and "ssim" not in text and "launch/eval.py" in text


def test_names_of_others_are_text(tmp_path, trained, run, monkeypatch):
    monkeypatch.setattr(trained, "datasets", {EVIL: {"features": {EVIL: {}}, "fps": 5.0, "fingerprint": EVIL}})
    text = card(tmp_path, trained, run, EVIL)
    _, head, body = text.split("---\n", 2)
    assert "<script>" not in body.replace("\\<", "") and "\x1b" not in text
    assert yaml.safe_load(head)["license"] == EVIL


def test_markdown_shows_the_text():
    assert escape.markdown("a|b <b> `x` [y](z) *k* #1") == r"a\|b \<b\> \`x\` \[y\](z) \*k\* \#1"


def test_every_kind_has_its_words():
    assert (model_card.LIMITS.keys() | model_card.USE.keys()) - {None} <= kinds.KINDS.keys()
