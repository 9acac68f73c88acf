"""The house keeps its floors: who imports whom, read from the source without running it."""

import ast
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

FLOORS = {"core": 0, "sample": 0, "data": 1, "nn": 1, "models": 2, "train": 3, "sim": 3, "plots": 3, "inference": 4,
          "evaluate": 5, "label": 6, "serve": 6, "explore": 6,
          "export": 6}  # fmt: skip
CONFIGS, LAUNCH = 7, 8
NEVER = (("train", ("models", "nn")),)
"""Also not within a function, although the floors would allow it."""

PUBLIC = ("lapa_jax/__init__.py", "lapa_jax/inference/client.py")
"""Where users import from, whatever room holds the code: they re-export and do nothing else."""

ONLY_IN = {
    "orbax": "lapa_jax/train/checkpoint.py",
    "grain": "lapa_jax/data/",
    "transformers": "lapa_jax/data/text.py",
    "tensorboardX": "lapa_jax/core/",
    "wandb": "lapa_jax/core/",
    "clearml": "lapa_jax/core/",
    "tqdm": "lapa_jax/core/progress.py",
    "mujoco": "lapa_jax/sim/",
    "metaworld": "lapa_jax/sim/",
    "gymnasium": "lapa_jax/sim/",
    "libero": "lapa_jax/sim/maps/libero.py",
}
LAZY = {
    "lapa_jax/": ("torch", "mujoco", "metaworld", "gymnasium", "libero", "tensorflow", "tensorflow_datasets"),
    "lapa_jax/data/": ("jax", "flax", "optax"),
}
"""What may be imported only where it is used, within a function."""

NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "absl": None, "ml_dtypes": None, "yaml": None, "scipy": None,
         "tokenizers": None, "libero": None, "pynvml": "nvidia-ml-py"}  # fmt: skip
"""Import names that differ from the distribution's; None comes with jax, or with transformers (tokenizers), or is
refused in words where it is absent (libero, which brings torch)."""


class Import(NamedTuple):
    """One imported module. `top`: the import runs with the module. `optional`: what follows when it is not there."""

    file: str
    line: int
    module: str
    top: bool
    optional: bool


def imports(root: pathlib.Path) -> Iterator[Import]:
    """Every import of the package, the configs, launchers and tools."""
    for folder in ("lapa_jax", "configs", "launch", "tools"):
        for path in sorted((root / folder).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"), file)
            lazy = {id(n) for f in ast.walk(tree) if isinstance(f, FUNCTIONS) for n in ast.walk(f) if n is not f}
            optional = {id(n) for t in ast.walk(tree) if _catches_import_error(t) for b in t.body for n in ast.walk(b)}
            for node in ast.walk(tree):
                for module in _modules(node, file):
                    yield Import(file, node.lineno, module, id(node) not in lazy, id(node) in optional)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def _catches_import_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Try) and any(h.type and ast.unparse(h.type) == "ImportError" for h in node.handlers)


def _modules(node: ast.AST, file: str) -> list[str]:
    """The modules that an import statement, or importlib.import_module of a constant, brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = pathlib.PurePosixPath(file).with_suffix("").parts[: -node.level]
            base = ".".join((*parts, base)).rstrip(".")
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr):
        called = ast.unparse(node.func)
        if called in ("importlib.import_module", "import_module", "__import__"):
            return [ast.unparse(node.args[0]).strip("f'\"").partition("{")[0].rstrip(".")]
    return []


NEIGHBOURS = ("common", "common_settings", "common_tables", "latent_pretraining")
"""Files of launch/studies that others there import by their bare names."""


def floor(file_or_module: str) -> int | None:
    """The floor of a file ("lapa_jax/nn/x.py") or module ("lapa_jax.nn.x"); None for what is not of the house."""
    parts = file_or_module.removesuffix(".py").replace("/", ".").split(".")
    if parts[0] in ("launch", "tools", *NEIGHBOURS):
        return LAUNCH
    if parts[0] == "configs":
        return CONFIGS
    if parts[0] != "lapa_jax":
        return None
    if parts[1:2] in (["commands"], ["__main__"]):  # they run what lies in launch/ and tools/
        return LAUNCH
    return FLOORS.get(parts[1], 0) if len(parts) > 1 else 0


def violations(root: pathlib.Path) -> list[str]:
    """One line for each import that a rule forbids."""
    found = []
    for item in imports(root):
        for why in (_floor_rule(item), _only_in_rule(item), _lazy_rule(item)):
            if why:
                found.append(f"{item.file}:{item.line} imports {item.module}: {why}")
    return found


def _floor_rule(item: Import) -> str | None:
    own, other = floor(item.file), floor(item.module)
    area, target = ".".join(item.file.split("/")[1:2]), (item.module.split(".") + [""])[1]
    if other is None or item.file in PUBLIC:
        return None
    if item.module.startswith("lapa_jax"):
        for who, what in NEVER:
            if area == who and target in what:
                return f"{who} never imports {target}"
        if area == target and item.file.startswith("lapa_jax/"):
            return None
    if other >= own and not (own == other == LAUNCH) and item.module.split(".")[:2] != ["configs", "common"]:
        return f"floor {own} may not import from floor {other}"
    return None


def _only_in_rule(item: Import) -> str | None:
    where = ONLY_IN.get(item.module.split(".")[0])
    return f"only {where} may" if where and not item.file.startswith(where) else None


def _lazy_rule(item: Import) -> str | None:
    for where, modules in LAZY.items():
        if item.top and item.file.startswith(where) and item.module.split(".")[0] in modules:
            return f"in {where} only within a function"
    return None


def test_the_house_keeps_its_floors(root):
    assert violations(root) == []


PLANTED = {
    "lapa_jax/core/a.py": ("import lapa_jax.data.x", "floor 0 may not import from floor 1"),
    "lapa_jax/data/b.py": ("import jax.numpy as jnp", "only within a function"),
    "lapa_jax/data/c.py": ("from lapa_jax.nn import attention", "floor 1 may not import from floor 1"),
    "lapa_jax/nn/d.py": ("from ..models import llama", "floor 1 may not import from floor 2"),
    "lapa_jax/train/e.py": ("def f():\n    from lapa_jax.models import llama", "train never imports models"),
    "lapa_jax/train/g.py": ("import importlib\nimportlib.import_module('lapa_jax.nn.x')", "train never imports nn"),
    "lapa_jax/train/h.py": ("from orbax.checkpoint import v1", "only lapa_jax/train/checkpoint.py may"),
    "lapa_jax/serve/i.py": ("import lapa_jax.label.codes", "floor 6 may not import from floor 6"),
    "lapa_jax/models/j.py": ("import grain", "only lapa_jax/data/ may"),
    "lapa_jax/nn/k.py": ("class A:\n    import torch", "only within a function"),
    "configs/l.py": ("import launch.train", "floor 7 may not import from floor 8"),
    "tools/m.py": ("import transformers", "only lapa_jax/data/text.py may"),
    "lapa_jax/train/n.py": ("import tensorboardX", "only lapa_jax/core/ may"),
}
FINE = {
    "lapa_jax/data/o.py": "def f():\n    import jax",
    "lapa_jax/data/p.py": "import grain, numpy\nfrom lapa_jax.core import errors",
    "lapa_jax/train/checkpoint.py": "from orbax.checkpoint import v1 as ocp\nfrom . import task",
    "lapa_jax/inference/q.py": "from lapa_jax.train.task import Task\nimport lapa_jax.models.tokenizers",
    "launch/r.py": "import lapa_jax\nfrom lapa_jax.sim import env",
    "lapa_jax/nn/quantizers/s.py": "from ..attention import x\nfrom lapa_jax.nn.quantizers import usage",
}


def test_the_walker_finds_what_is_planted_and_nothing_else(tmp_path):
    for file, text in {**{name: text for name, (text, _) in PLANTED.items()}, **FINE}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    found = violations(tmp_path)
    for file, (_, reason) in PLANTED.items():
        hits = [line for line in found if line.startswith(f"{file}:")]
        assert len(hits) == 1 and reason in hits[0], (file, hits)
    assert len(found) == len(PLANTED), found


def test_every_folder_of_the_package_is_a_package(root):
    """Else setup.py would leave it out of the wheel."""
    folders = {path.parent for path in (root / "lapa_jax").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_everything_that_is_imported_is_declared(root):
    """In requirements.txt; in an extra, or nowhere where there is another way, if imported within a function."""
    lines = (root / "requirements.txt").read_text().splitlines()
    declared = {re.split(r"[<>=\[]", line)[0].strip().lower().replace("-", "_") for line in lines if line[:1].isalpha()}
    extras = {name.lower() for name in re.findall(r'\["([A-Za-z0-9_-]+)', (root / "setup.py").read_text())}
    missing = set()
    for item in imports(root):
        name = item.module.split(".")[0]
        if name in sys.stdlib_module_names or floor(item.module) is not None or (item.optional and not item.top):
            continue
        name = NAMES.get(name, {"orbax": "orbax_checkpoint"}.get(name, name))
        if name and name.lower() not in declared | (set() if item.top else extras):
            missing.add(f"{item.file}:{item.line} {item.module}")
    assert missing == set()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("lapa_jax", ("jax", "flax", "numpy", "matplotlib", "grain")),
        ("lapa_jax.data.shards.step_shards", ("jax", "flax", "torch", "tensorflow")),
        ("lapa_jax.data.samples.pairs", ("jax", "flax", "torch", "tensorflow")),
        ("lapa_jax.data.convert.run", ("jax", "flax", "torch", "tensorflow")),
        ("lapa_jax.sim.push_table", ("jax", "flax", "mujoco", "torch")),
    ],
)
def test_importing_is_cheap(root, module, absent):
    program = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr or done.stdout


def test_nothing_is_loaded_that_can_run_code(root):
    """No pickles, no eval: data and weights are read by formats that hold data only.

    Released weights that are pickles go through one file, in which no name of a pickle is ever imported.
    """
    forbidden = re.compile(r"\bpickle\b|allow_pickle=True|\beval\(|\bexec\(|torch\.load\((?![^)]*weights_only=True)")
    hits = []
    for folder in ("lapa_jax", "configs", "launch", "tools"):
        for path in (root / folder).rglob("*.py"):
            code = _without_strings(path.read_text(encoding="utf-8"))
            if path == root / "lapa_jax/core/inert_pickle.py":
                code = code.replace("import pickle\n", "").replace("class InertUnpickler(pickle.Unpickler)", "")
            hits += [f"{path.relative_to(root)}: {m.group()}" for m in forbidden.finditer(code)]
    assert hits == []


def _without_strings(source: str) -> str:
    """The code, without comments, docstrings and other bare strings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(value=None)
    return ast.unparse(tree)
