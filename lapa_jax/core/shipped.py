"""The configs and commands that come with the package: beside it in a checkout, within it where it is installed.

The wheel (setup.py) holds the folders `configs`, `launch` and `tools` of the repository as `lapa_jax/configs`,
`lapa_jax/launch` and `lapa_jax/tools`, so that paths such as configs/laq.py name the same files in both.
"""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "launch", "tools")


def folder(name: str) -> pathlib.Path:
    """The folder "configs", "launch" or "tools"; it may be absent where only a part of a checkout was copied."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def find(path: str, suffix: str) -> pathlib.Path:
    """The file that a config's path means.

    A file of the user's comes first. "configs/laq.py", where there is none, is the one that comes with the package, and
    so is its bare name, "laq" (of a file of overrides "data/bridge").

    Args:
      path: as the user gave it. suffix: of such files, ".py" or ".yaml".

    Returns:
      The path as it was given where nothing is found.
    """
    given = pathlib.Path(path)
    if given.is_file() or given.is_absolute():
        return given
    within = given.relative_to("configs") if given.parts[:1] == ("configs",) else given
    shipped = folder("configs") / within
    for candidate in (shipped, shipped.with_name(f"{shipped.name}{suffix}")):
        if candidate.suffix == suffix and ".." not in given.parts and candidate.is_file():
            return candidate
    return given


def names(suffix: str) -> list[str]:
    """The bare names of the configs (".py") or files of overrides (".yaml") that come with the package."""
    root = folder("configs")
    found = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{suffix}")]
    return sorted(name for name in found if not name.startswith((".", "_")) and name != "common")
