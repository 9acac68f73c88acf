"""Evaluations of action and feature tokenizers: figures against NumPy, every promised file, datasets apart."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.evaluate import evaluation_of, options_of, requirements
from lapa_jax.evaluate.report import GOOD, NOTE, POOR
from lapa_jax.evaluate.tokenizers import dimensions, judge_column
from lapa_jax.nn.quantizers import usage
from lapa_jax.plots import ranking
from lapa_jax.train.loop import train
from tests import toys
from tests.data.samples import make

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    hand = {"train": [[30]], "val": [[8, 5]]}
    return [make.write(base / "arm", toys.LENGTHS, cameras=()),
            make.write(base / "hand", hand, cameras=(), widths={"action": 5, "feature": 5}, seed=2)]  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory):
    """{name: (run, tokenizer, result of the evaluation)}."""
    base, found = tmp_path_factory.mktemp("runs"), {}
    mixture = {"mixture": tuple({"path": str(folder), "weight": 1.0} for folder in data)}
    asked = {"chunks": ("chunks", data[0]), "steps": ("steps", data[0]), "rows": ("rows", data[0]),
             "mixture": ("chunks", mixture)}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        for name, (toy, places) in asked.items():
            train(toys.config(toy, places, steps=4, eval_every=2), base / name)
            tokenizer = lapa_jax.load(base / name)
            evaluation = evaluation_of(tokenizer)(tokenizer, run=base / name, out=base / name / "eval")
            found[name] = (base / name, tokenizer, evaluation.write())
    return found


ALWAYS = {"usage", "curves"}
PICTURES = {"chunks": {"trajectories", *ALWAYS}, "steps": {"trajectories", *ALWAYS}, "rows": ALWAYS,
            "mixture": {"trajectories_0", "trajectories_1", *ALWAYS}}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_files_are_there(evaluated, name):
    run, _, result = evaluated[name]
    out = run / "eval"
    assert json.loads((out / "metrics.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert {p.stem for p in out.glob("*.png")} >= PICTURES[name]
    for picture in PICTURES[name]:
        with Image.open(out / f"{picture}.png") as image:
            assert min(image.size) > 100 and np.asarray(image.convert("L")).std() > 5
        assert f">{picture}.png<" in page
    assert "<th>perplexity</th>" in page and "Errors of" in page
    assert not re.search(r'class="value">[^<]*</td><td></td>', page), "each metric has its sentence"


def test_the_pages_hold_in_a_browser(browser, evaluated):
    for run, *_ in evaluated.values():
        page = browser.check(run / "eval" / "report.html")
        assert page.run("document.querySelectorAll('.uplot').length") > 3


@pytest.mark.parametrize("name", ["chunks", "steps", "rows", "mixture"])
def test_metrics_are_those_of_training(evaluated, name):
    run, _, result = evaluated[name]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(x for x in reversed(lines) if any(key.startswith("val/") for key in x))
    for key, value in result["metrics"].items():
        np.testing.assert_allclose(value, last[f"val/{key}"], rtol=1e-5)
    assert result["measured"].keys() <= set(requirements.ADDED) | result["metrics"].keys()


def episodes(folder, column):
    """The held-out rows of each episode, by an own reading; the last step of an episode has no action."""
    return [np.stack([s[f"{column}.npy"] for s in e if f"{column}.npy" in s]) for e in make.decoded(folder, "val")]


def test_errors_of_chunks_are_in_the_units_of_the_data(evaluated, data):
    _, tokenizer, result = evaluated["chunks"]
    true, decoded, codes = [], [], []
    for actions in episodes(data[0], "action"):
        for t in range(len(actions)):
            chunk = actions[t : t + 4]
            codes.append(tokenizer.encode(chunk))
            true.append(chunk)
            decoded.append(tokenizer.decode(codes[-1])[: len(chunk)])
    assert result["samples"] == len(true) == 13
    true, decoded = np.concatenate(true), np.concatenate(decoded)
    summary = read_json(data[0] / "statistics.json")["action"]
    scale = (np.array(summary["q99"]) - np.array(summary["q01"])) / 2
    error, own = decoded - true, result["datasets"]["arm"]
    for key, want in (("mse", (error**2).mean(0)), ("mae", np.abs(error).mean(0)),
                      ("mse_normalized", (error**2).mean(0) / scale**2),
                      ("mae_normalized", np.abs(error).mean(0) / scale),
                      ("p99_error", np.quantile(np.abs(error), 0.99, axis=0)), ("max_error", np.abs(error).max(0)),
                      ("max_error_normalized", np.abs(error).max(0) / scale),
                      ("r2", 1 - (error**2).sum(0) / ((true - true.mean(0)) ** 2).sum(0))):  # fmt: skip
        np.testing.assert_allclose([d[key] for d in own["dimensions"]], want, rtol=1e-4)
    np.testing.assert_allclose(result["measured"]["action_mse"], ((error / scale) ** 2).mean(), rtol=1e-4)
    codes = np.stack(codes)
    assert [place["used"] for place in result["codes"]] == [len(np.unique(c)) for c in codes.T]
    assert result["measured"]["codebook_utilization"] == min(len(np.unique(c)) for c in codes.T) / 8


def test_errors_of_steps_and_rows(evaluated, data):
    _, tokenizer, result = evaluated["steps"]
    left = [len(a) - t for a in episodes(data[0], "action") for t in range(len(a))]
    assert result["codes"][0]["rows"] == sum(min(8, steps) for steps in left)
    assert [place["size"] for place in result["codes"]] == [8, 4]
    _, tokenizer, result = evaluated["rows"]
    rows = np.concatenate(episodes(data[0], "feature"))
    error = tokenizer.decode(tokenizer.encode(rows)) - rows
    own = result["datasets"]["arm"]["dimensions"]
    np.testing.assert_allclose([d["mse"] for d in own], (error**2).mean(0), rtol=1e-4)
    assert result["samples"] == len(rows) == 15 and "gripper_accuracy" not in result["measured"]


def test_codes_of_features_are_judged_as_tokens(evaluated, data):
    _, tokenizer, result = evaluated["rows"]
    rows = np.concatenate(episodes(data[0], "feature"))
    bits = sum(np.log2(size) for size in tokenizer.codebook_sizes)
    assert result["measured"]["bits_per_row"] == pytest.approx(bits)
    assert result["measured"]["compression_ratio"] == pytest.approx(32 * rows.shape[1] / bits)
    chance = result["measured"]["episode_accuracy_chance"]
    assert chance == pytest.approx(1 / len(episodes(data[0], "feature")))
    assert "compression_ratio" not in evaluated["chunks"][2]["measured"]


def test_only_codebooks_of_features_are_projected(evaluated, tmp_path):
    run, tokenizer, _ = evaluated["rows"]
    assert options_of(tokenizer.kind, {"projection": "pca", "labels": None}, run) == {"projection": "pca"}
    with pytest.raises(UserError, match="--projection tsne draws codebooks of features, which runs/x has not"):
        options_of(evaluated["chunks"][1].kind, {"projection": "tsne"}, "runs/x")
    with pytest.raises(UserError, match="--projection tsn does not exist; did you mean 'tsne'"):
        evaluation_of(tokenizer)(tokenizer, run=run, out=tmp_path, projection="tsn")


def test_datasets_are_measured_apart(evaluated, data):
    result = evaluated["mixture"][2]
    assert [(name, len(d["dimensions"]), d["scaling"]) for name, d in result["datasets"].items()] == [
        ("arm", 3, "arm"), ("hand", 5, "hand")]  # fmt: skip
    each = [d["measured"]["action_mse"] for d in result["datasets"].values()]
    np.testing.assert_allclose(result["measured"]["action_mse"], np.mean(each))


def test_other_data_get_the_scaling_of_the_run(evaluated, data, tmp_path):
    run, tokenizer, result = evaluated["mixture"]
    kind = evaluation_of(tokenizer)
    alone = kind(tokenizer, run=run, out=tmp_path / "a", data=data[0]).write()
    want, got = result["datasets"]["arm"]["dimensions"], alone["datasets"]["arm"]["dimensions"]
    np.testing.assert_allclose([d["mse"] for d in got], [d["mse"] for d in want], rtol=1e-5)
    other = make.write(tmp_path / "other", toys.LENGTHS, cameras=(), widths={"action": 5}, seed=7)
    with pytest.raises(UserError, match="several datasets"):
        kind(tokenizer, run=run, out=tmp_path / "b", data=other)
    found = kind(tokenizer, run=run, out=tmp_path / "b", data=other, dataset="hand").write()
    assert found["datasets"]["other"]["scaling"] == "hand"
    with pytest.raises(UserError, match="goes with --data"):
        kind(tokenizer, run=run, out=tmp_path / "c", dataset="hand")
    with pytest.raises(UserError, match="--pairs 2 or more"):
        kind(tokenizer, run=run, out=tmp_path / "c", pairs=1)


def test_dimensions_tell_kinds_apart():
    rng = np.random.default_rng(0)
    true = np.stack([rng.normal(size=200), rng.integers(0, 2, 200) * 0.4, np.full(200, 2.0)], axis=1)
    decoded = true + np.array([0.1, 0.0, 0.0])
    decoded[:30, 1] = 0.4 - decoded[:30, 1]
    about = {"kind": ["continuous", "binary", "constant"], "scale": np.array([2.0, 0.2, 0.0]),
             "low": true.min(0), "high": true.max(0)}  # fmt: skip
    found = dimensions(true, decoded, about, ["x", "gripper", "still"])
    np.testing.assert_allclose(found[0]["mae_normalized"], 0.05)
    np.testing.assert_allclose(found[0]["r2"], 1 - 0.01 / true[:, 0].var())
    assert found[1]["accuracy"] == 0.85 and found[0]["accuracy"] is None
    assert found[2]["r2"] is None and found[2]["mse_normalized"] == 0 and found[2]["name"] == "still"


def test_usage_of_code_positions():
    codes = np.array([[0, 3], [0, 1], [1, 3], [0, 2]])
    first, second = usage.positions(codes, (4, 5), ("z", "q"))
    assert first["used"] == 2 and first["dead"] == 2 and first["utilization"] == 0.5 and first["name"] == "z"
    np.testing.assert_allclose(first["perplexity"], np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert second["size"] == 5 and second["rows"] == 4
    assert first["largest_share"] == 0.75 and second["largest_share"] == 0.5


def test_best_median_and_worst():
    true = np.zeros((5, 3, 2))
    decoded = true + np.array([3.0, 1.0, 0.0, 2.0, 9.0])[:, None, None]
    mask = np.ones((5, 3), bool)
    mask[4] = False
    each, chosen = ranking.ranked(true, decoded, mask, np.array([1.0, 0.0]))
    np.testing.assert_allclose(each[:4], [9, 1, 0, 4])
    assert chosen.tolist() == [2, 3, 0]
    mask[:3, 2] = False
    assert ranking.ranked(true, decoded, mask, np.array([1.0, 0.0]))[1].tolist() == [3], "whole sequences only"


def test_verdicts():
    codes = [{"rows": 100, "size": 8, "largest_share": 0.9, "name": "q"}]

    def levels(**measured):
        measured = {"codebook_utilization": 1.0, **measured}
        return {v.metric: v.level for v in judge_column(measured, {"mse": 0.1}, codes, "action")}

    assert levels(action_r2=0.95, gripper_accuracy=0.9) == {
        "action_r2": GOOD, "gripper_accuracy": POOR, "codebook_utilization": GOOD, "mse": NOTE}  # fmt: skip
    assert levels(codebook_utilization=0.5)["codebook_utilization"] == POOR
    codes[0]["rows"] = 79
    assert levels(codebook_utilization=0.5)["codebook_utilization"] == NOTE
    codes.append({"rows": 100, "size": 8, "largest_share": 0.91, "name": "z"})
    collapse = next(v for v in judge_column({"codebook_utilization": 1.0}, {}, codes, "action") if v.level == POOR)
    assert collapse.metric == "collapse" and collapse.shown == "z"
