"""The study of numbers of episodes, without its trainings: which studies it is made of, and what it says of them."""

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from launch.studies import scaling as study

CONDITIONS = ("seen", "unseen")


@pytest.fixture
def studies(monkeypatch):
    """Studies that are told and not run: an arm solves the more, the more demonstrations it has."""
    told = []

    def run(self, seeds):
        told.append((self.out.name, self.sizes.videos, self.sizes.demos, self.arms, seeds))
        assert not self.moving, "a tokenizer on a moving background is for the table of one size"
        self.probes["as recorded"] = [{"action_probe_r2": 0.8}] * seeds
        for seed in range(seeds):
            for arm in self.arms:
                count = min(20, self.sizes.demos // (20 if arm == "scratch_long" else 10))
                lines = [{"task": "separate", "success": number < count} for number in range(20)]
                self.cells[arm, seed] = {"episodes": dict.fromkeys(CONDITIONS, lines), "action_r2": 0.5}
            yield seed

    monkeypatch.setattr(study.latent_pretraining.Study, "run", run)
    return told


def test_points_of_the_same_video_share_its_folder(studies, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--videos", "100", "1000", "--demos", "50", "200", "--seeds", "2"])
    assert studies == [
        ("videos_100", 100, 50, ("lapa", "actions"), 2), ("videos_1000", 1000, 50, ("lapa", "actions"), 2),
        ("videos_1000", 1000, 50, ("scratch_long", "lapa", "vpt", "actions"), 2),
        ("videos_1000", 1000, 200, ("scratch_long", "lapa", "vpt", "actions"), 2),
    ]  # fmt: skip
    text = capsys.readouterr().out
    assert "4 points, 2 seeds: at most" in text
    assert "| 200 demonstrations | lapa | 100% " in text and "| 200 demonstrations | scratch_long | 50% " in text
    assert "[100%, 100%] | 0.500, 0.500 | 0.800, 0.800 |" in text, "R² of actions and of the codes, a seed each"
    assert "| scratch_long | +50 (" in text.partition("200 demonstrations. Paired differences")[2]
    assert (tmp_path / "tables.md").read_text() in text
    from PIL import Image

    image = np.asarray(Image.open(tmp_path / "scaling.png").convert("RGB"))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50, "lines are drawn"


def test_one_kind_alone(studies, tmp_path, capsys):
    study.main(["--out", str(tmp_path), "--videos", "--demos", "5", "--seeds", "1"])
    assert "1 point, 1 seed: at most" in capsys.readouterr().out
    assert [each[:3] for each in studies] == [("videos_1000", 1000, 5)]


def test_wrong_input_is_one_line(studies, tmp_path):
    with pytest.raises(UserError, match="no benchmark 'metawrld'; did you mean 'metaworld'"):
        study.main(["--out", str(tmp_path), "--benchmark", "metawrld"])
    with pytest.raises(UserError, match="both empty; name the numbers of one"):
        study.main(["--out", str(tmp_path), "--videos", "--demos"])
    assert studies == []
