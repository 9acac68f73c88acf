"""The wheel: it holds the configs, commands and sample, and its commands run outside of a checkout."""

import email
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from lapa_jax import commands

SOURCES = ("lapa_jax", "configs", "launch", "tools", "setup.py", "pyproject.toml", "requirements.txt", "README.md",
           "LICENSE")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    """The wheel's folder of files, built from a copy as pip does, and unpacked."""
    base = tmp_path_factory.mktemp("wheel")
    copy = base / "copy"
    copy.mkdir()
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.index.npz"))
        else:
            shutil.copy(root / name, copy / name)
    backend = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["build-backend"]
    program = f"import sys, {backend}; {backend}.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(base)], cwd=copy, check=True, capture_output=True)
    (built,) = base.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(base / "site")
    shutil.rmtree(copy)
    return base / "site"


def run(wheel, folder, *arguments, program="lapa_jax"):
    """A Python program with the wheel in place of the checkout."""
    env = {**os.environ, "PYTHONPATH": str(wheel), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-B", "-m", program, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_the_wheel_holds_what_a_user_needs_and_no_tests(root, wheel):
    package = wheel / "lapa_jax"
    for folder, pattern in (("configs", "*.py"), ("configs", "*.yaml"), ("launch", "*.py"), ("tools", "*.py")):
        # Slurm's scripts need the checkout.
        wanted = {path.relative_to(root) for path in (root / folder).rglob(pattern) if path.parent.name != "slurm"}
        assert wanted and {path for path in wanted if not (package / path).is_file()} == set()
    kinds = (".html", ".css", ".js", ".json", ".jsonl", ".tar", ".gz", ".yaml")
    data = {path.relative_to(root) for path in (root / "lapa_jax").rglob("*") if path.suffix in kinds}
    assert len(data) > 20 and {path.as_posix() for path in data if not (wheel / path).is_file()} == set()
    assert (package / "py.typed").is_file() and (package / "sample/train-00000.tar").stat().st_size > 100_000
    vendored = {path.name for path in (package / "plots/vendor/uplot").iterdir()}
    assert vendored == {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE", "README.md"}
    assert (package / "plots/page.css").is_file() and (package / "plots/curves.js").is_file()
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"lapa_jax"}
    size = sum(path.stat().st_size for path in wheel.rglob("*") if path.is_file())
    assert size < 12e6, f"{size / 1e6:.1f} MB"


def test_metadata_names_commands_and_no_pytest(wheel):
    (info,) = wheel.glob("*.dist-info")
    entries = (info / "entry_points.txt").read_text().splitlines()[1:]
    points = dict(line.split(" = ") for line in entries if line)
    assert list(points) == [f"lapa-{name}" for name in sorted(commands.NAMED)]
    for name in commands.NAMED:
        module, _, attribute = points[f"lapa-{name}"].partition(":")
        assert module == "lapa_jax.commands" and getattr(commands, attribute).args[0] == name
    needed = email.message_from_string((info / "METADATA").read_text()).get_all("Requires-Dist")
    assert [line for line in needed if "pytest" in line and "extra ==" not in line] == []
    assert any(line.startswith("jax") for line in needed)


def test_a_config_is_known_by_its_name_outside_of_a_checkout(wheel, tmp_path):
    for config in ("laq:tiny", "configs/laq.py:tiny"):
        done = run(wheel, tmp_path, "train", "--config", config, "--config_file", "site/local_dev", "--help")
        assert done.returncode == 0, done.stderr
        assert "--config.train.steps=" in done.stdout and "LAQ: discrete latent actions" in done.stdout
    done = run(wheel, tmp_path, "train", "--config", "lag:tiny")
    assert done.returncode == 2 and "config file lag does not exist; did you mean 'laq'?" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_tool_and_a_study_run_outside_of_a_checkout(wheel, tmp_path):
    done = run(wheel, tmp_path, "make_tokenizer", "--data", "sample", "--out", tmp_path / "tokenizer")
    assert done.returncode == 0, done.stderr
    assert any((tmp_path / "tokenizer").iterdir())
    done = run(wheel, tmp_path, "latent_actions", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: lapa_jax latent_actions"), done.stderr


def test_all_commands_are_listed_and_a_wrong_one_is_refused(wheel, tmp_path):
    done = run(wheel, tmp_path)
    assert done.returncode == 0 and "train                  launch/train.py" in done.stdout
    assert "import_weights         tools/import_weights.py" in done.stdout and "common" not in done.stdout
    done = run(wheel, tmp_path, "trian")
    assert done.returncode == 2 and done.stderr == "error: there is no command 'trian'; did you mean 'train'?\n"


def test_the_version_is_the_package_s(wheel):
    import lapa_jax

    (info,) = wheel.glob("*.dist-info")
    assert f"-{lapa_jax.__version__}.dist-info" in info.name


@pytest.mark.parametrize("name", [*commands.NAMED, "compare_runs", "read_profile", "import_weights"])
def test_help_waits_for_nothing_that_takes_a_second(root, tmp_path, name):
    program = f"""
import sys
from lapa_jax import commands
sys.argv = ["x", "--help"]
try:
    commands.run({name!r}, "x")
except SystemExit:
    pass
print(sorted({{"jax", "flax", "matplotlib", "orbax", "grain"}} & set(sys.modules)))
"""
    env = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[0].startswith("usage: x") and done.stdout.splitlines()[-1] == "[]", done.stderr
