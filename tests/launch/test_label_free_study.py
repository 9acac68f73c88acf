"""The study of figures without actions, on evaluations that are made up: what it reads, evaluates again and says."""

import json
import pathlib

import common
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from launch.studies import label_free as study

METRICS = dict.fromkeys(study.OF_EVALUATION, 0.5)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def run(folder, setting, seed, **model):
    """A trained run."""
    given = {"name": "tokenizers.laq_conv", "code_seq_len": 4, "quantizer": "vq", "setting": setting}
    write(folder / "config.json", {"seed": seed, "model": {**given, **model}})
    (folder / "checkpoints").mkdir()


def evaluation(run, data, **metrics):
    return {"run": f"/elsewhere/{run.name}", "data": f"/{data}/data", "data_fingerprint": f"{data}123", "split": "val",
            "metrics": METRICS | metrics}  # fmt: skip


@pytest.fixture
def calls(monkeypatch):
    told = []

    def call(log, script, *arguments):
        told.append(arguments)
        run, out = (pathlib.Path(arguments[arguments.index(name) + 1]) for name in ("--run", "--out"))
        number = int(run.name.removeprefix("tokenizer-"))
        write(out / "metrics.json", evaluation(run, "push", action_probe_r2=number / 10, swap_gap=float(number)))

    monkeypatch.setattr(common, "call", call)
    return told


def test_evaluations_of_a_sweep_are_read_and_those_that_lack_a_figure_are_made_again(calls, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    for number in range(8):
        tokenizer = sweep / f"tokenizer-{number}"
        run(tokenizer, number // 2, number % 2)
        made = evaluation(tokenizer, "push", action_probe_r2=number / 10, swap_gap=float(number), psnr_gain=-number)
        if number == 3:
            del made["metrics"]["one_frame_r2"]
        write(sweep / f"eval-{9 - number}" / "metrics.json", made)
    run(sweep / "deltas", 0, 0, quantizer="none")
    run(sweep / "policy", 0, 0, name="policies.vla")
    run(tmp_path / "single" / "tokenizer-9", 9, 0)
    command = [str(sweep), str(tmp_path / "single"), "--out", str(tmp_path / "out"), "--jobs", "1"]
    study.main(command)
    text = capsys.readouterr().out
    assert [pathlib.Path(a[a.index("--run") + 1]).name for a in calls] == ["tokenizer-3", "tokenizer-9"]
    assert calls[0][2:6] == ("--data", "/push/data", "--split", "val") and "--data" not in calls[1]
    assert "9 tokenizers with codes" in text and "push/data push (9 runs, 5 settings)" in text
    assert "| swap gap | +1.00 (+1.00 to +1.00) | +1.00 (+1.00 to +1.00) |" in text
    assert "| perplexity | - | - |" in text, "what does not vary"
    assert "Above 0 with their intervals in every data set: swap gap." in text
    assert "| swap gap | 0.900 |" in text and "| the best run | 0.900 |" in text
    assert (tmp_path / "out" / "tables.md").read_text() in text
    assert len((tmp_path / "out" / "runs.csv").read_text().splitlines()) == 10
    study.main(command)
    assert len(calls) == 2, "what is evaluated is not evaluated again"


def test_runs_of_the_same_name_are_evaluated_each(calls, tmp_path):
    """As two studies have them, in folders that are called alike too."""
    for number, study_of in enumerate("ab"):
        run(tmp_path / study_of / "videos_1000" / "runs" / "tokenizer-1", number, 0)
    study.main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out"), "--jobs", "1"])
    evaluated = [arguments[arguments.index("--out") + 1] for arguments in calls]
    assert len(calls) == len(set(evaluated)) == 2


def test_a_setting_is_the_same_in_configs_of_two_versions():
    model = {"name": "tokenizers.laq_conv", "code_seq_len": 4}
    old = {"seed": 0, "model": model, "loss": {"reconstruction": 1.0}}
    new = {"seed": 1, "model": {**model, "consistency": "none", "flow": False},
           "loss": {"reconstruction": 1.0, "variance": 0.0}}  # fmt: skip
    assert study.setting_of(old) == study.setting_of(new)
    for group, change in (("model", {"consistency": "beside"}), ("loss", {"variance": 0.5})):
        assert study.setting_of(old) != study.setting_of({**new, group: {**new[group], **change}})


def test_correlations_are_those_of_scipy_and_seeds_of_a_setting_are_drawn_together():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    score = rng.normal(size=12)
    figure = score + rng.normal(size=12)
    clusters = [str(number // 3) for number in range(12)]
    found = study.rank_correlations(figure, score, clusters)
    assert found[0] == pytest.approx(spearmanr(figure, score)[0]) and len(found) == 1 + study.DRAWS
    # Copies of a run are no further evidence: the interval stays that of the runs.
    single = study.rank_correlations(figure, score, [str(number) for number in range(12)])
    copied = study.rank_correlations(np.repeat(figure, 5), np.repeat(score, 5), np.repeat(range(12), 5).astype(str))
    np.testing.assert_allclose(np.std(copied), np.std(single), rtol=0.1)


def test_few_settings_have_a_correlation_and_no_interval():
    ranked = [METRICS | {"action_probe_r2": number, "swap_gap": number} for number in range(8)]
    runs = [study.Run(f"run-{i}", "push", str(i % 4), metrics) for i, metrics in enumerate(ranked)]
    text = study.tables(runs)
    assert "| swap gap | +1.00 | +1.00 |" in text and "No figure is judged: fewer than 5 settings of push." in text


def test_wrong_input_is_one_line(calls, tmp_path):
    with pytest.raises(UserError, match="holds no run of a tokenizer of frame pairs with codes"):
        study.main([str(tmp_path), "--out", str(tmp_path / "out")])
