"""The choice of a gap: what is tried, what is recommended and when nothing is, on a sweep whose runs are there."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from lapa_jax.core import sweep as sweeps
from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import StepShards
from tests.inference import step_shards
from tools import choose_gap as tool

KEYS = ["data.gap_frames", "model.delta_norm"]


def row(gap, r2=None, pairs=500, norm="running"):
    scores = {} if r2 is None else {"R² of the codes": r2, "least": r2, "most": r2}
    return {"data.gap_frames": str(gap), "model.delta_norm": norm, "swap gap": 1.0 / gap, "perplexity": 5.0,
            "change, grey levels": gap, "probe_pairs": pairs if scores else 0, **scores}  # fmt: skip


def test_it_recommends_by_actions_alone():
    choice, lines = tool.advise([row(2, 0.1), row(6, 0.8), row(12, 0.77), row(24, 0.4)], KEYS, 10.0, tool.PROBE)
    assert choice == {"data.gap_frames": "6", "model.delta_norm": "running"}
    words = " ".join(lines)
    assert "--config.data.gap_frames=6 --config.model.delta_norm=running" in words and "6 frames, 0.60 s" in words
    assert "Within 0.05 of it: 12, running" in words
    assert "That is little" in " ".join(tool.advise([row(2, 0.1)], KEYS, None, tool.PROBE)[1])


def test_without_enough_actions_it_claims_nothing():
    # The largest swap gap is that of the shortest gap, and no reason to choose it.
    few = [row(2, 0.9, pairs=100)]
    cases = (([row(2), row(6)], tool.SWAP_GAP, "no held-out pair has an action", "the swap gap"),
             (few, tool.PROBE, "too few held-out pairs have actions", "R² of the codes"))  # fmt: skip
    for table, metric, why, order in cases:
        choice, lines = tool.advise(table, KEYS, 10.0, metric)
        assert choice is None and why in lines[0]
        assert "no rule that does without has been shown to choose" in lines[0]
        assert "--config" not in " ".join(lines) and f"best.yaml is that of {order}" in " ".join(lines)


def test_among_settings_of_one_gap_the_swap_gap_chooses_and_says_where_that_holds():
    table = [row(6), row(6, norm="whitened") | {"swap gap": 0.9}, row(6, norm="none") | {"swap gap": 0.5}]
    few = [{**each, "R² of the codes": 0.5, "probe_pairs": 100} for each in table]
    assert "best.yaml is that of R² of the codes" in " ".join(tool.advise(few, KEYS, 10.0, tool.PROBE)[1])
    sizes = [row(6) | {"model.code_seq_len": size} for size in "248"]
    choice, lines = tool.advise(sizes, [*KEYS, "model.code_seq_len"], 10.0, tool.SWAP_GAP)
    assert choice is None and "choose model.code_seq_len" in lines[0]
    choice, lines = tool.advise(table, KEYS, 10.0, tool.SWAP_GAP)
    assert choice == {"data.gap_frames": "6", "model.delta_norm": "whitened"}
    words = " ".join(lines)
    assert "--config.model.delta_norm=whitened" in words and "90%, since no held-out pair has an action" in words
    assert "and says nothing where they move" in words and "Label about 20 episodes" in words


def test_gaps_that_are_tried_fit_into_the_episodes(tmp_path):
    write = lambda name, fps, *lengths: StepShards(  # noqa: E731
        step_shards.write(tmp_path / name, lengths={"train": [list(lengths)]}, fps=fps), "train")  # fmt: skip
    shards = write("slow", 10.0, 14, 14, 9, 14)
    assert tool.usual_gaps(shards) == (2, 4, 8)  # 1.6 s are 16 frames, more than an episode has
    with pytest.raises(UserError, match="14 leaves no pair, the longest episode of"):
        tool.check_gaps((4, 14), shards)
    shards.fps = None
    assert tool.usual_gaps(shards) == (1, 2, 4, 8)


def test_runs_that_are_there_become_a_table_an_image_and_a_choice(root, tmp_path, capfd):
    """Only what trains is left out: the runs lie where the sweep would put them."""
    data = step_shards.write(tmp_path / "data", lengths={"train": [[9, 9]], "val": [[9, 9]]})
    out = tmp_path / "out"
    words = [str(data), "--out", str(out), "--gaps", "2,5", "--config", f"{root}/configs/laq_conv.py:test", "--seeds",
             "2", "--steps", "4", "--config.model.embed=8", "--grid", "model.delta_norm=running,running_per_position"]
    _, content, fps = tool.plan(words)
    assert content["set"]["model.embed"] == "8" and content["metric"] == "val/action_probe_r2" and fps == 10
    (tmp_path / "same.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    sweep = sweeps.read(str(tmp_path / "same.yaml"))
    for point in sweep.points():
        for seed in range(2):
            (step,) = sweeps.steps(sweep, point, seed, out)
            step.folder.mkdir(parents=True)
            score = 0.1 * int(point["data.gap_frames"]) + (point["model.delta_norm"] != "running") * 0.2 + 0.02 * seed
            line = {"step": 4, "val/swap_gap": 0.3, "val/perplexity": 6.0, "val/psnr": 30.0, "val/psnr_gain": 10.0,
                    "val/action_probe_r2": score, "val/action_probe_pairs": 300.0}  # fmt: skip
            (step.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            done = {"command": step.command, "value": score, "curve": [[4, score]]}
            step.folder.with_name(f"{step.folder.name}.done.json").write_text(json.dumps(done))
    assert len(sweep.points()) == 4
    tool.main(words)
    said = capfd.readouterr().out
    assert "Recommended: --config.data.gap_frames=5 --config.model.delta_norm=running_per_position" in said
    result = json.loads((out / "choice.json").read_text())
    assert result["choice"] == {"data.gap_frames": "5", "model.delta_norm": "running_per_position"}
    best = max(result["tried"], key=lambda each: each["R² of the codes"])
    assert (best["least"], best["most"]) == (pytest.approx(0.7), pytest.approx(0.72))
    assert best["change, grey levels"] == pytest.approx(25.5)  # PSNR 20 dB of copying: a tenth of the range
    assert (out / "sweep.md").is_file() and (out / "best.yaml").is_file()
    with Image.open(out / "choose_gap.png") as image:
        assert min(image.size) > 100 and np.asarray(image.convert("L")).std() > 5
