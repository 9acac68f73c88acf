"""The cache of compiled programs: on by default, limited, in the user's folder; the first line of commands."""

import os
import subprocess
import sys

import pytest

from lapa_jax.core import startup
from lapa_jax.core.errors import UserError

PROGRAM = """
import sys, lapa_jax.core.startup as startup, jax
print(startup.keep_compiled())
print(jax.config.jax_compilation_cache_dir, jax.config.jax_compilation_cache_max_size,
      jax.config.jax_persistent_cache_min_compile_time_secs)
if len(sys.argv) > 1:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.jit(lambda x: x * 3 + 1)(1.0).block_until_ready()
"""


def run(root, home, *compile, **environment) -> list[str]:
    env = {name: value for name, value in os.environ.items() if "CACHE" not in name and name != "XLA_FLAGS"}
    env |= {"HOME": str(home), "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-B", "-c", PROGRAM, *compile]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_programs_are_kept_in_the_user_s_cache_and_found_again(root, tmp_path):
    said, config = run(root, tmp_path, "compile")
    (folder,) = (tmp_path / ".cache/lapa_jax").iterdir()
    assert said == f"compiled programs are kept in {folder} (JAX_ENABLE_COMPILATION_CACHE=false turns that off)"
    assert config == f"{folder} {startup.MAX_BYTES} {startup.KEPT_FROM}"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}
    assert kept
    run(root, tmp_path, "compile")
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")} == kept


def test_the_cache_is_turned_off_or_elsewhere_by_jax_s_variables(root, tmp_path):
    assert run(root, tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")[0].startswith("compiled programs are not kept")
    assert list(tmp_path.iterdir()) == []
    said, config = run(root, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))
    assert f"kept in {tmp_path / 'mine'}" in said and config == f"{tmp_path / 'mine'} -1 1.0"


def test_a_folder_that_cannot_be_made_is_said(root, tmp_path):
    (tmp_path / ".cache").write_text("in the way")
    assert "cannot be made" in run(root, tmp_path)[0]


@pytest.mark.parametrize(("variable", "value", "lines"), [("JAX_PROCESS_ID", "0", 1), ("JAX_PROCESS_ID", "1", 0),
                                                          ("SLURM_PROCID", "3", 0), ("OTHER", "3", 1)])  # fmt: skip
def test_one_process_speaks(monkeypatch, capsys, variable, value, lines):
    monkeypatch.setenv(variable, value)
    startup.say("training")
    assert capsys.readouterr().err.count("training\n") == lines


def test_the_first_line_comes_before_jax_is_imported(root):
    program = ("import sys; from lapa_jax.core import startup\n"
               "startup.keep_compiled = lambda: 'jax' in sys.modules\nstartup.begin('training x')")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert [line.split(" ", 1)[1] for line in done.stderr.splitlines()] == ["training x", "False"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux says which devices there are")
def test_a_gpu_that_the_kernel_does_not_show_is_refused_before_jax_is_imported(root, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cuda asks for a GPU of NVIDIA, and .* shows none"):
        startup.check_platform(str(tmp_path))
    # With another platform behind it, and where there is a device, JAX decides.
    (tmp_path / "nvidia0").touch()
    startup.check_platform(str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    startup.check_platform(str(tmp_path / "none"))
    (tmp_path / "program.py").write_text(
        "import sys\nfrom lapa_jax.core import errors, startup\nstartup.check_platform = lambda: None\n"
        "def main(argv):\n    startup.begin('training')\n    from lapa_jax.train.distributed import initialize\n"
        "    initialize()\nerrors.run_main(main)\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-B", tmp_path / "program.py"], capture_output=True, text=True, env={
        **os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cuda", "XDG_CACHE_HOME": str(tmp_path)})  # fmt: skip
    # With and without a plugin for GPUs, whose driver is not there.
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "JAX_PLATFORMS=cuda" in done.stderr


FIRST = """
import os, sys, time
from lapa_jax import commands
from lapa_jax.core import startup

def say(text):
    late = {"jax", "flax", "matplotlib", "mujoco", "transformers"} & set(sys.modules)
    print(time.process_time(), text, sorted(late), flush=True)
    os._exit(0)

startup.say = say
commands.run(sys.argv.pop(1), "x")
"""


@pytest.mark.parametrize("command", [
    "train --config laq:test --workdir out", "eval --run x", "eval --env push_table --policy random --out out",
    "label --run x --data sample --out out", "serve --run x", "explore --run x", "export --run x --out out",
    "segment --run x --data sample --out out", "sweep --config laq:test --metric val/psnr --out out", "check_cluster",
    "inspect sample --out out", "inspect sample --out out --run x", "make_tokenizer --data sample --out out",
    "choose_gap sample --out out", "import_weights laq --input x --out out", "compare_runs x y", "read_profile x",
    "pseudo_actions --demonstrations sample --data sample --out out", "audit_step --config laq:test",
    "compare_tokenizers --data a=sample --out out",
])  # fmt: skip
def test_commands_say_what_they_do_before_they_import_what_takes_a_second(root, tmp_path, command):
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-B", "-c", FIRST, *command.split()], env=env, cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert float(line.split()[0]) < 1.0 and line.endswith(" []"), line
