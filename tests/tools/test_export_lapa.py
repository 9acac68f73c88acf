import subprocess
import sys

from lapa_jax.data.shards.step_shards import StepShards


def test_the_command(tmp_path, root):
    def run(*arguments):
        command = [sys.executable, str(root / "tools" / "export_lapa.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(root)})

    done = run("sample", tmp_path / "out", "--kind", "finetune", "--split", "val")
    assert done.returncode == 0, done.stderr
    assert (
        f"val: {len(StepShards('sample', 'val').episodes)} episodes" in done.stdout and "left out: steps" in done.stdout
    )
    again = run("sample", tmp_path / "out", "--kind", "finetune")
    assert again.returncode == 2 and again.stderr.startswith("error: output") and "Traceback" not in again.stderr
