"""The commands under the names that an installation gives them: `lapa-train`, or `python -m lapa_jax train`.

Each runs the script of launch/ or tools/ as `python launch/train.py` would.
"""

import functools
import importlib.util
import sys

from lapa_jax.core import shipped
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.core.escape import say

NAMED = {
    "train": "launch/train.py",
    "eval": "launch/eval.py",
    "label": "launch/label.py",
    "serve": "launch/serve.py",
    "explore": "launch/explore.py",
    "export": "launch/export.py",
    "convert": "tools/convert.py",
    "inspect": "tools/inspect_data.py",
}
"""{name: script}. setup.py makes a console command lapa-NAME of each; they are the attributes of this module."""


def scripts() -> dict[str, str]:
    """{name: script} of all commands: the named ones, then the other scripts of launch/, its studies and tools/."""
    others = {}
    for parent in ("launch", "launch/studies", "tools"):
        top, _, below = parent.partition("/")
        folder = shipped.folder(top) / below
        stems = [path.stem for path in sorted(folder.glob("*.py")) if not path.stem.startswith("common")]
        others |= {stem: f"{parent}/{stem}.py" for stem in stems}
    return {**NAMED, **{name: script for name, script in others.items() if script not in NAMED.values()}}


def run(name: str, program: str) -> None:
    """Runs a command with the arguments of `sys.argv`; `program` is what it calls itself."""
    top, _, rest = scripts()[name].partition("/")
    script = shipped.folder(top) / rest
    sys.argv[0] = program
    # As the interpreter does for a script: a study imports its neighbours `common`, `common_tables`.
    sys.path.insert(0, str(script.parent))
    spec = importlib.util.spec_from_file_location("__main__", script)
    module = sys.modules["__main__"] = importlib.util.module_from_spec(spec)
    module.__spec__ = None  # a script has none: processes that it starts then load it by its path
    spec.loader.exec_module(module)


def main(argv: list[str]) -> None:
    """`python -m lapa_jax NAME ...`."""
    known = scripts()
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        say(__doc__)
        say("\n".join(f"  {name:22s} {script}" for name, script in known.items()))
        return
    if name not in known:
        raise UserError(f"there is no command '{name}'{did_you_mean(name, known)}")
    del sys.argv[1]
    run(name, f"lapa_jax {name}")


train, evaluate, label, serve, explore, export, convert, inspect = (
    functools.partial(run, name, f"lapa-{name}") for name in NAMED
)
