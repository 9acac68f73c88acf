"""Writes docs/reference/config_keys.md from the configs: python tools/write_config_reference.py [--check].

Every key of every config with its value and what it means; a key that configs share is explained once. With --check
nothing is written, and the command ends with an error where the page is not the one that the configs give.
"""

import argparse
import collections
import pathlib
from collections.abc import Mapping

from lapa_jax.core import config as config_lib
from lapa_jax.core import shipped
from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say

PAGE = pathlib.Path(__file__).parents[1] / "docs/reference/config_keys.md"
HEAD = """# Keys of all configs

Written by `tools/write_config_reference.py` from the configs; a test checks that it is current.
[Configs](configs.md) tells more of each config and its variants, and how keys are overridden.

## Shared keys

The value is the one that most configs have; a config that has another one shows it in its section.
"""
Keys = Mapping[str, tuple[object, str]]
"""{dotted name: (value, what it means)}."""


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    args = parser.parse_args(argv)
    if not PAGE.parent.is_dir():
        raise UserError(f"{PAGE.parent} does not exist; run this in a clone of the repository, which has the pages")
    page = written()
    if not args.check:
        PAGE.write_text(page, encoding="utf-8")
        say(PAGE)
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page:
        raise UserError(f"{PAGE} is not what the configs give; run tools/write_config_reference.py")


def written() -> str:
    """The page."""
    files = sorted(path for path in shipped.folder("configs").glob("*.py") if path.stem != "common")
    configs = {path: {name: (value, means) for name, value, means in config_lib.keys(config_lib.load(str(path)))}
               for path in files}  # fmt: skip
    shared = usual(list(configs.values()))
    sections = [f"{HEAD}\n{table(shared)}"]
    for path, keys in configs.items():
        module = config_lib.import_file(str(path))
        own = {name: (value, means) for name, (value, means) in keys.items()
               if name not in shared or shared[name][0] != value}  # fmt: skip
        sections.append(f"## `configs/{path.name}` keys\n\n```text\n{module.__doc__.strip()}\n```\n\n{table(own)}")
    return "\n\n".join(sections) + "\n"


def usual(configs: list[Keys]) -> Keys:
    """The keys besides those of models that more than one config has, with the value that most of them have."""
    values = collections.defaultdict(list)
    for keys in configs:
        for name, (value, means) in keys.items():
            if name.split(".")[0] in ("data", "optim", "train", "mesh", "seed"):
                values[name].append((value, means))
    most = {}
    for name, pairs in values.items():
        if len(pairs) > 1:
            often = collections.Counter(str(value) for value, _ in pairs).most_common(1)[0][0]
            most[name] = next(pair for pair in pairs if str(pair[0]) == often)
    return most


def table(keys: Keys) -> str:
    """Keys as a table of Markdown."""
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")  # noqa: E731
    rows = [f"| `{name}` | `{cell(value)}` | {cell(means)} |" for name, (value, means) in keys.items()]
    return "\n".join(["| key | value | |", "|---|---|---|", *rows])


if __name__ == "__main__":
    run_main(main)
