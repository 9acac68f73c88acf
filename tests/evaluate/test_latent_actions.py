"""Evaluation of a small random model: every promised name and picture is there, and action-free data say so."""

import json
import re

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.evaluate import requirements, untrained
from lapa_jax.evaluate.latent_actions import action_table, reference
from lapa_jax.evaluate.latent_actions.evaluation import Evaluation
from lapa_jax.explore.latent_actions import LatentActions
from lapa_jax.explore.options import Options
from lapa_jax.inference import imagine
from lapa_jax.inference.load import load
from lapa_jax.models.tokenizers import inverse_dynamics
from lapa_jax.train.task import Task
from tests.inference import small_run, step_shards

pytestmark = pytest.mark.usefixtures("one_device")

LENGTHS = {"train": [[8]], "val": [[12, 12, 12, 12]]}
NAMES = {
    "psnr", "psnr_gain", "ssim", "swap_gap", "perplexity", "perplexity_position_0", "perplexity_position_3",
    "codebook_utilization", "sequence_perplexity", "cycle_consistency", "identical_frame_psnr", "transfer_consistency",
    "view_consistency", "reversal_correlation", "reversal_r2", "one_frame_r2", "swap_gap_same_place",
}  # fmt: skip
PROBES = {
    "action_probe_r2", "action_probe_r2_delta", "action_probe_r2_untrained", "action_probe_r2_delta_untrained",
    "action_probe_r2_reference", "reference_steps", "reference_stopped", "reference_of_training",
}  # fmt: skip
ADDED = ("action_", "reference_", "transfer_", "view_", "reversal_", "one_frame", "swap_gap_")
"""How the names of those begin that no training logs."""
PICTURES = {"reconstructions", "gallery", "gallery_change", "gallery_positions", "histograms", "deltas", "overview",
            "curves"}
ACTION_PICTURES = {"probe", "code_action", "code_action_arrows"}


def noise(episode: int, step: int) -> np.ndarray:
    return np.random.default_rng([episode, step]).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(root, tmp_path_factory):
    """(run, data with actions, data without)."""
    base = tmp_path_factory.mktemp("evaluation")
    data = step_shards.write(base / "data", lengths=LENGTHS, draw=noise)
    free = step_shards.write(base / "free", lengths=LENGTHS, draw=noise, actions=False)
    run = small_run.write(base / "run", root, data, steps=(3,))
    lines = [{"step": step, "train/loss": 1 / step, "val/action_probe_r2": step / 9} for step in (1, 2, 3)]
    lines = [{"step": 0, "val/action_probe_r2": -0.25, "val/action_probe_r2_delta": 0.125}, *lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run, data, free


@pytest.fixture(scope="module")
def laq(folders):
    return load(folders[0])


@pytest.fixture(scope="module")
def evaluated(folders, laq):
    out = folders[0] / "eval"
    return out, Evaluation(laq, run=folders[0], out=out).write(reference_steps=2)


def test_every_metric_has_its_name(evaluated, laq):
    out, result = evaluated
    assert json.loads((out / "metrics.json").read_text()) == result
    assert NAMES | PROBES <= result["metrics"].keys()
    assert all(isinstance(v, float) and np.isfinite(v) for v in result["metrics"].values())
    # --require knows the names that an evaluation adds, so that it refuses none of them as misspelt.
    assert {n for n in result["metrics"] if n.startswith(ADDED)} <= set(requirements.ADDED)
    assert result["pairs"] == 4 * 9 and result["step"] == 3 and result["tokenizer"] == laq.fingerprint


def test_untrained_scores_are_those_that_the_run_began_with_if_they_are_of_the_same_pairs(evaluated, folders, laq):
    run, data, _ = folders
    metrics = evaluated[1]["metrics"]
    recorded = {"action_probe_r2_untrained": -0.25, "action_probe_r2_delta_untrained": 0.125}
    assert {name: metrics[name] for name in recorded} == recorded
    for other in ({"pairs": 20}, {"data": data, "split": "val"}):
        evaluation = Evaluation(laq, run=run, out=run / "eval", **other)
        scores = untrained.probes(evaluation, evaluation.baselines)
        assert scores.keys() == recorded.keys() and scores != recorded, "measured anew"


def test_codes_of_the_metrics_are_those_of_encode(evaluated, folders, laq):
    source = Evaluation(laq, run=folders[0], out=folders[0] / "eval").source
    codes = laq.encode(np.stack([source[i]["frames"] for i in range(len(source))]))
    counts = np.bincount(codes[:, 0], minlength=8) / len(codes)
    entropy = -sum(p * np.log(p) for p in counts if p)
    np.testing.assert_allclose(evaluated[1]["metrics"]["perplexity_position_0"], np.exp(entropy), rtol=1e-6)


def test_pictures_and_page_are_there(evaluated):
    out, _ = evaluated
    page = (out / "report.html").read_text()
    for name in PICTURES | ACTION_PICTURES:
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 100 and np.asarray(picture.convert("L")).std() > 5
        assert f">{name}.png<" in page
    assert {p.stem for p in out.glob("*.png")} == PICTURES | ACTION_PICTURES
    assert not re.search(r'class="value">[^<]*</td><td></td>', page), "each metric has its sentence"


def test_the_page_holds_in_a_browser(browser, evaluated):
    page = browser.check(evaluated[0] / "report.html")
    assert page.run("document.querySelectorAll('.uplot').length") == 3


def test_the_table_has_each_number_and_group_beside_the_reference(evaluated):
    out, result = evaluated
    table, metrics = result["action_table"], result["metrics"]
    assert table["names"] == ["0", "1"] and set(table) == {"names", "codes", "mlp", "delta", "reference"}
    for reader, metric in (("codes", ""), ("mlp", "_mlp"), ("delta", "_delta"), ("reference", "_reference")):
        assert np.mean(table[reader]["all"]) == pytest.approx(metrics[f"action_probe_r2{metric}"])
        assert len(table[reader]) == 1 + 3 + 4
    page = (out / "report.html").read_text()
    for words in ("<th>codes, small MLP</th>", "<th>reference</th>", "<td>last third</td>",
                  "<td>least motion, a quarter</td>", "<th>R² lost without it</th>"):  # fmt: skip
        assert words in page
    whole = result["code_table"]["all"]
    assert whole["r2_alone"] == pytest.approx(metrics["action_probe_r2"])
    assert metrics["code_action_nmi"] == whole["nmi_adjusted"]


@pytest.mark.parametrize(("augment", "named"), [({"flip": 0.5}, True), ({"shift": 4}, False), (None, False)])
def test_mirrored_pairs_are_named_where_a_position_uses_few_codes(folders, laq, monkeypatch, augment, named):
    monkeypatch.setitem(laq.config["data"], "augment", augment)
    (line,) = Evaluation(laq, run=folders[0], out=folders[0]).judge({"metrics": {"perplexity": 4.0}})
    assert ("training mirrored pairs" in line.words) == named


def test_pairs_are_grouped_by_phase_and_motion(folders, laq):
    source = Evaluation(laq, run=folders[0], out=folders[0]).source  # four episodes of nine pairs
    arrays = source.batch(range(len(source)))
    rows = action_table.groups(arrays, source)
    for third, name in enumerate(action_table.THIRDS):
        np.testing.assert_array_equal(rows[name], arrays["step"] // 3 == third)
    odd = arrays["episode_id"] % 2 == 1
    length = np.linalg.norm(arrays["net_action"] / arrays["net_action"][odd].std(0), axis=1)
    ranks = np.argsort(np.argsort(length[odd]))
    for quarter, name in enumerate(action_table.QUARTERS):
        assert 4 <= rows[name][odd].sum() <= 5
        assert abs(ranks[rows[name][odd]].mean() - (2 + 4.5 * quarter)) < 1
    # R² of a group by hand, and a number that does not vary in it.
    action = arrays["net_action"].astype(np.float64)
    guess, some = action + 0.1, rows[action_table.THIRDS[0]]
    action[some, 1] = 3
    scores = action_table.scores(guess, action, {"some": some})["some"]
    total = np.sum((action[some, 0] - action[some, 0].mean()) ** 2)
    assert scores[0] == pytest.approx(1 - some.sum() * 0.01 / total) and np.isnan(scores[1])


def test_the_reference_is_cached(evaluated, folders, laq, monkeypatch):
    monkeypatch.setattr(reference, "_train_and_score", lambda *args: pytest.fail("trained again"))
    out, result = evaluated
    evaluation = Evaluation(laq, run=folders[0], out=out)
    source, train = evaluation.source, evaluation.training_pairs()
    again = reference.scores(source, laq, steps=2, limit=36, cache=out, train=train)
    assert np.mean(again.r2["all"]) == pytest.approx(result["metrics"]["action_probe_r2_reference"])
    assert (again.steps, again.stopped) == (2, False) and result["metrics"]["reference_stopped"] == 0
    other = reference.Reference({"all": [0.25, float("nan")]}, 7, True)
    monkeypatch.setattr(reference, "_train_and_score", lambda *args: other)
    for _ in range(2):  # trained, then read
        again = reference.scores(source, laq, steps=3, limit=36, cache=out, train=train)
        assert (again.r2.keys(), again.steps, again.stopped) == (other.r2.keys(), 7, True)
        np.testing.assert_array_equal(again.r2["all"], other.r2["all"])


def test_the_reference_learns_from_no_episode_that_it_stops_by_or_is_scored_on(folders, laq):
    evaluation = Evaluation(laq, run=folders[0], out=folders[0])
    source, train = evaluation.source, evaluation.training_pairs()  # the episodes 0 to 3, and another one
    episodes = lambda part: {part.source.locate(int(i))[0] for i in part.indices}  # noqa: E731
    learned, *others = reference.parts(source, train)
    assert learned is train and len(train) == 5 and {"frames", "net_action"} <= set(train.fields)
    assert list(map(episodes, others)) == [{0, 2}, {1, 3}]
    assert list(map(episodes, reference.parts(source))) == [{0}, {2}, {1, 3}]
    there = Evaluation(laq, run=folders[0], out=folders[0], data=folders[1], split="train")
    assert there.training_pairs() is None, "what is judged is no training"

    class Many:
        def __len__(self):
            return 60

        def locate(self, i):
            return i % 20, i

    learned, left_out, scored = ({int(i) % 20 for i in p.indices} for p in reference.parts(Many()))
    assert learned == set(range(0, 16, 2)) and left_out == {16, 18} and scored == set(range(1, 20, 2))


def test_the_reference_is_the_one_before_it_stopped_improving(folders, laq, monkeypatch):
    """By errors of the episodes left out that are given here: the best is the second look's."""
    monkeypatch.setattr(reference, "EVERY", 2)
    monkeypatch.setattr(reference, "PATIENCE", 3)
    source, seen = Evaluation(laq, run=folders[0], out=folders[0]).source, []
    task = Task(reference.build_model(source, inverse_dynamics.reading(laq.model, 2)), {"action": 1.0})

    def error(variables):
        seen.append(jax.device_get(variables))
        return [0.9, 0.5, 0.8, 0.5, 0.6, 0.1][len(seen) - 1]

    with jax.set_mesh(laq.mesh):
        best, steps, stopped = reference._train_until_it_stops(task, source, laq.mesh, 100, error, {})
    assert (steps, stopped, len(seen)) == (4, True, 5)
    chex.assert_trees_all_equal(jax.device_get(best), seen[1])
    # And what is judged are averages, which move less than the parameters.
    kernel = [variables["ema"]["head"]["kernel"] for variables in seen]
    assert 0 < np.abs(kernel[1] - kernel[0]).max() < np.abs(
        seen[1]["params"]["head"]["kernel"] - seen[0]["params"]["head"]["kernel"]).max()


@pytest.mark.parametrize("config", ["laq.py:tiny", "laq_conv.py:tiny", "laq_conv.py:tiny+recommended"])
def test_the_reference_has_the_encoder_of_the_tokenizer(root, config):
    tokenizer = config_lib.build(config_lib.MODELS, config_lib.load(f"{root}/configs/{config}").model)
    model = inverse_dynamics.Model(inverse_dynamics.reading(tokenizer, 7), 7)
    config_lib.check(model)

    def shapes(of):
        rngs = {name: jax.random.key(0) for name in ("params", "noise")}
        params = jax.eval_shape(lambda: of.init(rngs, of.example(2), train=True))["params"]
        return {name: leaf.shape for name, leaf in tree.flatten(params).items()}

    width = max(tokenizer.quant_dim, 7)
    whole = shapes(model)
    assert whole["head/kernel"] == (tokenizer.code_seq_len * width, 7)
    theirs, ours = ({name[name.index("encoder/"):]: shape for name, shape in each.items() if "encoder/" in name}
                    for each in (shapes(tokenizer), whole))  # fmt: skip
    assert theirs.keys() == ours.keys()
    # The last layer is as wide as an action, and nothing else differs.
    different = {name for name in ours if ours[name] != theirs[name]}
    assert different == {name for name in ours if ours[name][-1] == width != theirs[name][-1]}
    assert len(different) < len(ours) / 2


def test_the_tower_of_any_tokenizer_stays_as_it_is(root):
    for config in ("univla.py:test", "laq.py:features"):
        spec = config_lib.load(f"{root}/configs/{config}").model
        model = inverse_dynamics.Model(inverse_dynamics.reading(config_lib.build(config_lib.MODELS, spec), 7), 7)
        assert model.without_gradient == ("tokenizer/tower/.*",)


def test_a_training_split_that_is_of_no_use_is_left(folders, laq, tmp_path):
    """Its episodes are shorter than the gap, or without actions."""
    for name, lengths, actions in (("short", [[2, 2]], True), ("whole", [[8]], True), ("free", [[8]], False)):
        data = step_shards.write(tmp_path / name, lengths={**LENGTHS, "train": lengths}, draw=noise, actions=actions)
        evaluation = Evaluation(laq, run=folders[0], out=tmp_path / "eval", data=data)
        assert (evaluation.training_pairs() is not None) is (name == "whole")


def test_data_without_actions_say_so(folders, laq, tmp_path):
    result = Evaluation(laq, run=folders[0], out=tmp_path, data=folders[2], pairs=34).write(reference_steps=2)
    assert not PROBES & result["metrics"].keys() and NAMES <= result["metrics"].keys() and result["pairs"] == 34
    assert {p.stem for p in tmp_path.glob("*.png")} == PICTURES
    assert "this data has no actions" in (tmp_path / "report.html").read_text()


def test_a_run_without_codes_is_judged_by_its_deltas(folders, root, tmp_path):
    run = small_run.write(tmp_path / "run", root, folders[1], steps=(3,), fields=("quantizer=none",))
    tokenizer = load(run)
    result = Evaluation(tokenizer, run=run, out=tmp_path / "eval").write(reference_steps=0)
    metrics, page = result["metrics"], (tmp_path / "eval" / "report.html").read_text()
    assert metrics.keys() >= {
        "psnr_gain", "swap_gap", "action_probe_r2_delta", "action_probe_r2_delta_untrained", "transfer_delta_r2",
        "transfer_delta_chance", "transfer_action_r2", "cycle_delta_r2", "capacity_bits"}  # fmt: skip
    of_codes = ("perplexity", "codebook", "cycle_consistency", "code_action", "collapse", "identical_frame_agreement")
    assert not [name for name in metrics if name.startswith(of_codes)] and "action_probe_r2" not in metrics
    assert set(result["action_table"]) == {"names", "delta"} and "code_table" not in result
    assert metrics["action_probe_r2_delta"] == pytest.approx(np.mean(result["action_table"]["delta"]["all"]))
    assert {n for n in metrics if n.startswith(ADDED)} <= set(requirements.ADDED) and "view_delta_r2" in metrics
    assert {p.stem for p in (tmp_path / "eval").glob("*.png")} == {
        "reconstructions", "gallery", "gallery_change", "deltas", "overview", "probe"}  # fmt: skip
    assert "What the deltas say about the action" in page
    assert not re.search(r'class="value">[^<]*</td><td></td>', page), "each metric has its sentence"
    # What needs codes says so.
    with pytest.raises(UserError, match="has no codes to explore .model.quantizer is 'none'.: look at the gallery"):
        LatentActions(tokenizer, run, Options())
    with pytest.raises(UserError, match="the tokenizer has no codes .model.quantizer 'none'., and the policy predicts"):
        imagine.check(None, tokenizer)
    with pytest.raises(UserError, match="decodes deltas: floats .B, 4, 8. .* this is int32 .4,."):
        tokenizer.decode(np.zeros((32, 32, 3), np.uint8), np.zeros(4, np.int32))


def test_bad_arguments_are_refused(folders, laq, tmp_path):
    with pytest.raises(UserError, match="no steps in split 'test'"):
        Evaluation(laq, run=folders[0], out=tmp_path, split="test")
    with pytest.raises(UserError, match="does not exist"):
        Evaluation(laq, run=folders[0], out=tmp_path, data=tmp_path / "nothing")
    with pytest.raises(UserError, match="--pairs 2 or more"):
        Evaluation(laq, run=folders[0], out=tmp_path, pairs=1)
