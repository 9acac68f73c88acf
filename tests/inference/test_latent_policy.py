"""Stage-2 policies at inference: predictions are the model's own, what is refused, shuffles, the report's numbers."""

import json

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.data import images, text
from lapa_jax.data.samples.steps import Options, Steps
from lapa_jax.data.shards.labels import read_label_info
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.evaluate import evaluation_of
from lapa_jax.evaluate.latent_policy import partners, shuffled
from lapa_jax.inference.policies import LatentPolicy
from lapa_jax.train.loop import train
from tests import jitted

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = ("train.steps=2", "train.batch_size=8", "train.eval_batch_size=8", "train.eval_every=2", "train.save_every=2",
         "train.trackers=()", "data.eval_examples=40", "data.image_size=28", "model.siglip.depth=1",
         "model.siglip.layer=-1", "model.dinov2.depth=1", "model.dinov2.layer=-1", "model.siglip.dim=16",
         "model.dinov2.dim=16", "model.llm.dim=32", "model.llm.depth=1", "model.llm.hidden=32")  # fmt: skip


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run of two steps on the labelled sample."""
    config = config_lib.load(f"{root}/configs/vla_latent.py:tiny", [f"--config.{o}" for o in SMALL])
    folder = tmp_path_factory.mktemp("vla") / "run"
    train(config, folder)
    return folder


@pytest.fixture(scope="module")
def policy(run):
    return lapa_jax.load(run)


@pytest.fixture(scope="module")
def steps():
    """Pictures and instructions of a few held-out steps of the sample."""
    shards = StepShards("sample", "val")
    chosen = [0, 9, 30, 44, 60]
    return np.stack([shards.image(i, "image") for i in chosen]), [shards.text(i) for i in chosen]


def test_predictions_are_those_of_the_model_on_batches_as_in_training(policy, steps):
    assert isinstance(policy, LatentPolicy)
    assert policy.labels["tokenizer"] == read_label_info("sample_latents")["tokenizer"]
    pictures, texts = steps
    small = np.stack([images.resize(picture, 28) for picture in pictures])
    ids, mask = text.ByteTokenizer()(texts, policy.model.text_length)
    batch = {"image": small, "text": ids, "text_mask": mask.astype(np.float32)}
    expected = jitted.apply(policy.model, policy.variables, batch, method="predict")
    np.testing.assert_allclose(policy.logits(pictures, texts), expected["logits"], atol=1e-5)
    codes = policy.predict(pictures, texts)
    assert codes.dtype == np.int32 and codes.shape == (5, 4)
    np.testing.assert_array_equal(codes, expected["codes"])
    np.testing.assert_array_equal(policy.predict(pictures[2], texts[2]), codes[2])
    np.testing.assert_array_equal(policy.predict(pictures, texts[0]), policy.predict(pictures, [texts[0]] * 5))


def test_an_exported_policy_is_the_same_to_the_bit(policy, steps, tmp_path):
    policy.save_pretrained(tmp_path / "exported")
    again = lapa_jax.load(tmp_path / "exported")
    np.testing.assert_array_equal(again.logits(*steps), policy.logits(*steps))
    assert again.labels == policy.labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p.astype(np.float32), t), "uint8"),
        (lambda p, t: (p[..., :2], t), "uint8"),
        (lambda p, t: (p, t[:3]), "5 images and 3 instructions"),
        (lambda p, t: (p[0], t), "give one text"),
        (lambda p, t: (p, ["push " * 40] * 5), "tokens"),
    ],
)
def test_what_it_cannot_see_or_read_is_refused(policy, steps, change, message):
    with pytest.raises(UserError, match=message):
        policy.predict(*change(*steps))


def test_partners_are_of_another_kind_and_each_serves_once():
    rng = np.random.default_rng(0)
    for kinds in (rng.integers(0, 9, 101), np.repeat([0, 1], 30), np.arange(7)):
        found = partners(kinds)
        assert sorted(found) == list(range(len(kinds)))
        assert (kinds[found] != kinds).all()
    assert partners(np.zeros(5, int)).tolist() == [0, 1, 2, 3, 4]
    mostly = np.array([0] * 8 + [1] * 2)
    assert (mostly[partners(mostly)] != mostly).sum() == 4, "as many as there can be"


def test_shuffling_exchanges_the_named_fields_alone_and_not_with_padding():
    source = Steps(StepShards("sample", "val"), Options(fields=("image", "text"), text_tokenizer={"name": "bytes"}))
    batch = source.batch(range(0, 60, 5))
    batch = {**batch, "mask": (np.arange(12) < 11).astype(np.float32)}
    halves = [{name: values[part] for name, values in batch.items()} for part in (slice(0, 6), slice(6, 12))]
    for what, fields, own in (("text", ("text", "text_mask"), "text"), ("image", ("image",), "episode_id")):
        found = list(shuffled(halves, what, fields))
        joined = {name: np.concatenate([half[name] for half in found]) for name in batch}
        for name in set(batch) - set(fields):
            np.testing.assert_array_equal(joined[name], batch[name])
        given, taken = (sorted(x[fields[0]][row].tobytes() for row in range(11)) for x in (batch, joined))
        assert given == taken, "each is used once, and the padding is not"
        for row in range(11):
            where = [i for i in range(11) if np.array_equal(batch[fields[0]][i], joined[fields[0]][row])]
            assert any(not np.array_equal(batch[own][i], batch[own][row]) for i in where)
        np.testing.assert_array_equal(joined[fields[0]][11], batch[fields[0]][11])


@pytest.fixture(scope="module")
def report(policy, run, tmp_path_factory):
    """(the evaluation, its result, the folder)."""
    out = tmp_path_factory.mktemp("report")
    evaluation = evaluation_of(policy)(policy, run=run, out=out, pairs=40)
    return evaluation, evaluation.write(), out


def test_the_page_holds_in_a_browser(browser, report):
    page = browser.check(report[2] / "report.html")
    assert page.run("document.querySelectorAll('.uplot').length") > 3


def test_the_report_tells_what_training_told(policy, run, report):
    evaluation, result, out = report
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(told) if "val/latent_accuracy" in line)
    for name in ("loss", "latent_accuracy", "latent_accuracy_top3", "majority_accuracy"):
        assert result["metrics"][name] == pytest.approx(last[f"val/{name}"], rel=1e-5), name
    assert {"text_use", "image_use"} <= set(result["metrics"])
    assert result["labels"] == policy.labels["tokenizer"]
    page = (out / "report.html").read_text()
    for picture in ("confusion.png", "examples.png", "curves.png"):
        assert picture in page and (out / picture).stat().st_size > 1000
    words = [verdict.words for verdict in evaluation.judge(result)]
    assert any("listens" in word for word in words)


def test_a_single_held_out_episode_has_nothing_to_exchange(policy, run, tmp_path, monkeypatch):
    evaluation = evaluation_of(policy)(policy, run=run, out=tmp_path, pairs=40)
    batches = list(evaluation.batches())
    first = batches[0]["episode_id"][0]
    of_one = [{**batch, "mask": batch["mask"] * (batch["episode_id"] == first)} for batch in batches]
    monkeypatch.setattr(evaluation, "batches", lambda source=None: iter(of_one))
    metrics = evaluation.write()["metrics"]
    assert "latent_accuracy" in metrics and not {"image_use", "text_use"} & set(metrics)


def test_labels_of_another_tokenizer_are_refused(policy, run, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    here = StepShards("sample_latents").folder
    for file in here.iterdir():
        (labels / file.name).write_bytes(file.read_bytes())
    about = json.loads((labels / "dataset.json").read_text())
    about["source"]["labels"]["tokenizer"] = "0" * 64
    (labels / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="were made by tokenizer 000000000000"):
        evaluation_of(policy)(policy, run=run, out=tmp_path / "out", data="sample", labels=str(labels))
