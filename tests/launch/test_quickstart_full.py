"""The script of the whole way, shortened: from videos and demonstrations to the action that a client is given."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from tests.data import videos

FRAMES, NUMBER = 14, 12


def write_videos(folder, actions: bool) -> None:
    """Videos with instructions, longer than the script's gap of 8 frames."""
    rng, rows = np.random.default_rng(0), []
    for k in range(NUMBER):
        videos.write(folder / f"v{k}.mp4", FRAMES)
        rows.append({"video": f"v{k}.mp4", "instruction": f"push block {k % 3}"})
        if actions:
            np.savez(folder / f"v{k}.npz", action=rng.normal(size=(FRAMES - 1, 4)).astype(np.float32))
            rows[-1]["arrays"] = f"v{k}.npz"
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def this_environment(root, folder):
    """A folder that launch/venv.sh takes for a finished virtual environment: the one that the tests run in."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "activate").write_text(f'PATH="{os.path.dirname(sys.executable)}:$PATH"\n')
    mark = subprocess.run(["bash", "-c", f"source launch/venv.sh; mark_of '{folder}'"], cwd=root,
                          capture_output=True, text=True, check=True).stdout  # fmt: skip
    (folder / ".lapa_jax[serve,metaworld]").write_text(mark)
    return folder


def can_drive() -> bool:
    """Whether Meta-World is here and can draw."""
    if importlib.util.find_spec("metaworld") is None:
        return False
    from lapa_jax.sim.metaworld import Env

    env = Env(16)
    env.reset(0, "reach-v3")
    try:
        env.observe()
    except UserError:
        return False
    finally:
        env.close()
    return True


def test_videos_and_demonstrations_become_a_served_policy_that_drives(root, tmp_path):
    pytest.importorskip("aiohttp", reason="the server needs lapa_jax[serve]")
    write_videos(tmp_path / "shared" / "metaworld_mt10_videos", actions=False)
    write_videos(tmp_path / "shared" / "metaworld_mt10", actions=True)
    settings = {"SHORT": "1", "SHARED": str(tmp_path / "shared"), "JAX_PLATFORMS": "cpu",
                "VENV": str(this_environment(root, tmp_path / "venv"))}  # fmt: skip
    out = tmp_path / "out"
    done = subprocess.run(["bash", "launch/quickstart_full.sh", str(out)], cwd=root, env={**os.environ, **settings},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "installing" not in done.stdout, "the environment that runs the tests stays as it is"
    last = done.stdout.splitlines()[-1]
    action = json.loads(re.search(r"asked to \"push block \d\" it answers (\[.*\])", last).group(1))
    assert len(action) == 4 and np.isfinite(action).all()
    assert (out / "serve.log").read_text().splitlines()[-1] == "stopped"
    for run, figure in (("laq", "psnr_gain"), ("vla", "latent_accuracy"), ("act", "action_r2")):
        assert figure in json.loads((out / run / "eval" / "metrics.json").read_text())["metrics"]
        assert (out / run / "eval" / "report.html").is_file()
    drives = out / "drives"
    if can_drive():
        rates = json.loads((drives / "metrics.json").read_text())["policies"]
        assert rates["expert"]["overall"]["successes"] == 1
        assert "1 of 1 episodes are solved by the scripted expert" in done.stdout
        assert (drives / "episodes.webp").is_file() and f"{drives}/episodes.webp" in done.stdout
    else:
        assert "it does not drive" in done.stdout and not (drives / "metrics.json").exists()
