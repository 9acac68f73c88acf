"""Shared fixtures. Eight CPU devices stand in for a node of accelerators; tests that want one use a mesh of one."""

import gc
import os
import pathlib

import jax
import psutil
import pytest

from tests.browser import Browser, executable

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Tests compile far more than they compute, so what makes programs fast costs more than it saves: LLVM's optimisation,
# the emitters of fusions by way of MLIR (which alone are half of the compilation), a module of code for each thread.
# Flags that are given come later and win. Many compile the same small programs, which are shared. All of this also
# reaches the workers of pytest-xdist and the commands that tests start.
_QUICK = ("--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
          "--xla_cpu_parallel_codegen_split_count=1 --xla_cpu_opt_preset=FAST_COMPILE")  # fmt: skip
if jax.__version_info__ < (0, 11):  # jaxlib 0.11 always has them, and ends at a flag that it does not know
    _QUICK += " --xla_cpu_use_fusion_emitters=false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = f"{_QUICK} {os.environ.get('XLA_FLAGS', '')}".strip()
    # Programs are kept between runs, by the versions that made them; XLA's own key knows flags and the machine. Small
    # ones too: there are so many that reading them instead saves a quarter of the time.
    _CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lapa_jax" / "tests"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / f"jax-{jax.__version__}"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.0"
    # Where in the code an operation comes from is not written into programs: looking it up is a tenth of lowering them.
    os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
    # Commands that run within pytest would keep the memory of the largest test for good.
    os.environ["LAPA_JAX_KEEP_MEMORY"] = "0"
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_traceback_in_locations_limit", 0)
# Tracing makes millions of objects; looking through them for cycles every 700 is a fifth of the suite's time.
gc.set_threshold(200_000, 20, 100)

MOST_MEMORY = 2 << 30
"""Bytes that a worker may hold before it lets go of compiled programs."""

SLOWEST = (
    "tests/launch/test_slurm.py",
    "tests/train/test_every_config.py",
    "tests/launch/test_quickstart_full.py",
    "tests/models/policies/test_icl.py",
    "tests/train/test_overfit.py",
    "tests/launch/test_train_two_processes.py",
    "tests/tools/test_import_openvla.py",
    "tests/tools/test_import_lapa7b.py",
    "tests/models/test_laq_conv.py",
    "tests/models/test_laq_features.py",
    "tests/launch/test_univla.py",
    "tests/models/policies/test_vla.py",
    "tests/models/test_laq.py",
    "tests/train/test_loop.py",
    "tests/launch/test_openvla.py",
    "tests/nn/quantizers/test_vq.py",
    "tests/export/test_token_policies.py",
    "tests/inference/test_in_context.py",
    "tests/launch/test_train_killed.py",
    "tests/docs/test_add_pages.py",
    "tests/evaluate/test_latent_actions.py",
    "tests/models/test_fsq.py",
    "tests/models/vision/test_mae.py",
)
"""Files of half a minute or more, the slowest first. Workers of pytest-xdist take whole files: one of these taken last
would leave the others idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The size of the random tests of damaged files."""
    parser.addoption("--mutations", type=int, default=200, help="damaged files a format in test_damage.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slowest files first where several workers share the tests; else in the order of the tree."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        rank = {file: k for k, file in enumerate(SLOWEST)}
        items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs():
    """Lets go of them when they have become many: the whole suite compiles gigabytes, but small ones are shared."""
    yield
    if psutil.Process().memory_info().rss > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()  # what is left in cycles, which is looked for so seldom


_DEVICES, _LOCAL_DEVICES = jax.devices, jax.local_devices


@pytest.fixture(scope="module")
def one_device():
    """Only the first of the devices is there, as on a workstation: for files that train, and not on a mesh."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *args: _DEVICES(*args)[:1])
        patch.setattr(jax, "local_devices", lambda **kwargs: _LOCAL_DEVICES(**kwargs)[:1])
        yield


@pytest.fixture
def all_devices(one_device, monkeypatch):
    """All eight again, for a test of a file with `one_device`."""
    monkeypatch.setattr(jax, "devices", _DEVICES)
    monkeypatch.setattr(jax, "local_devices", _LOCAL_DEVICES)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium; what needs it is skipped where there is none."""
    path, reason = executable()
    if path is None:
        pytest.skip(reason)
    with Browser(path, tmp_path_factory.mktemp("browser")) as chromium:
        yield chromium


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference files and real data that may lie beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the folder with reference data does not lie beside the project")
    return SHARED
