"""Runs beside each other: the tables hold the values and their differences, the page holds everything."""

import json

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.plots import runs
from tools import compare_runs


def run(folder, config, lines, evaluated=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if evaluated:
        (folder / "eval").mkdir()
        (folder / "eval/metrics.json").write_text(json.dumps(evaluated))
    return folder


@pytest.fixture
def folders(tmp_path):
    config = {"name": "laq", "seed": 0, "model": {"dim": 64, "quantizer": "nsvq"}, "mesh": {"rules": []}}
    model = {"dim": 64, "quantizer": "fsq", "levels": [8, 8]}
    other = {"name": "laq_fsq", "seed": 0, "model": model, "mesh": {"rules": []}}
    lines = [{"step": 0, "val/psnr": 10.0}, {"step": 10, "train/loss": 0.5},
             {"step": 10, "val/psnr": 20.0, "val/ssim": None}]  # fmt: skip
    more = [*lines, {"step": 20, "train/loss": 0.25}, {"step": 20, "val/psnr": 21.5, "val/bridge/psnr": 3.0}]
    return [run(tmp_path / "a" / "run", config, lines, {"metrics": {"swap_gap": 0.1}}),
            run(tmp_path / "b" / "run", other, more, {"metrics": {"swap_gap": 0.3}, "measured": {"action_r2": 0.9}})]


def test_tables_have_values_differences_and_what_differs_in_the_configs(folders):
    markdown = runs.as_markdown(runs.read(folders))
    rows = {line.split(" | ")[0].strip("| "): line for line in markdown.splitlines() if line.startswith("|")}
    assert rows["metric"] == "| metric | a/run | b/run | b/run - a/run |"
    assert rows["step"] == "| step | 10 | 20 |  |" and rows["train/loss"] == "| train/loss | 0.5 | 0.25 | -0.25 |"
    assert rows["val/psnr"] == "| val/psnr | 20 | 21.5 | +1.5 |" and rows["val/ssim"] == "| val/ssim |  |  |  |"
    assert rows["val/bridge/psnr"] == "| val/bridge/psnr |  | 3 |  |"
    assert rows["swap_gap"] == "| swap_gap | 0.1 | 0.3 | +0.2 |" and rows["action_r2"] == "| action_r2 |  | 0.9 |  |"
    assert "2 keys differ." in markdown
    assert rows["model.quantizer"] == "| model.quantizer | nsvq | fsq |"
    assert rows["model.levels"] == "| model.levels | (none) | [8, 8] |" and "seed" not in rows and "name" not in rows


def test_the_command_writes_a_page_that_needs_nothing_else(folders, tmp_path, capsys):
    compare_runs.main([*map(str, folders), "--out", str(tmp_path / "out")])
    page = (tmp_path / "out/index.html").read_text()
    assert "data:image/png;base64," in page and "<td>+1.5</td>" in page and "src=\"curves" not in page
    assert "![curves](curves.png)" in (tmp_path / "out/comparison.md").read_text()
    assert (tmp_path / "out/curves.png").stat().st_size > 5000
    assert str(tmp_path / "out/index.html") in capsys.readouterr().out


def test_runs_that_have_logged_nothing_are_compared_by_their_configs(tmp_path):
    empty = [run(tmp_path / name, {"seed": i}, []) for i, name in enumerate("ab")]
    written = runs.write(tmp_path / "out", runs.read(empty))
    assert [path.name for path in written] == ["index.html", "comparison.md"]
    assert "<td>seed</td><td>0</td><td>1</td>" in written[0].read_text()


@pytest.mark.parametrize(
    ("names", "words"),
    [(["a/run"], "give two run folders"), (["a/run", "a/../a/run"], "given twice"),
     (["a/run", "a"], "has no config.json")],
)
def test_what_is_no_run_is_refused(folders, tmp_path, names, words):
    with pytest.raises(UserError, match=words):
        compare_runs.main([str(tmp_path / name) for name in names])
