"""Files of overrides, as `--config_file` takes them: YAML with some keys of a config, in its groups.

    data:
      path: ${roots.data}/bridge
      gap_seconds?: 0.6
    mesh: {data: 1, fsdp: -1}

A key that ends in "?" is for configs that have it; others leave it out. Two groups are no part of a config: `roots`
names folders, which all files of a command may use as ${roots.NAME} (its "runs" is where run folders go), and `slurm`
holds options of sbatch for launch/slurm/submit.py.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import yaml

from lapa_jax.core import shipped
from lapa_jax.core.errors import ConfigError, did_you_mean

ROOTS, SLURM = "roots", "slurm"
_ROOT = re.compile(r"\$\{roots\.(\w+)\}")


class ConfigFile(NamedTuple):
    """Attributes: path: of the file. values: what it lays over a config, nested. slurm: {option of sbatch: value}."""

    path: str
    values: dict
    slurm: dict


class ConfigFiles(NamedTuple):
    """Attributes: files: in the order given. roots: {name: folder} of all of them; later ones win."""

    files: tuple[ConfigFile, ...] = ()
    roots: Mapping[str, str] = {}


def read(paths: Sequence[str]) -> ConfigFiles:
    """Reads files of overrides, with the roots put in.

    Raises:
      ConfigError: no such file, no YAML, a key twice, or a root that none of the files names.
    """
    raw = {str(path): read_yaml(path, "--config_file") for path in paths}
    roots = {}
    for path, values in raw.items():
        for name, folder in _group(path, values, ROOTS).items():
            if not isinstance(folder, str):
                raise ConfigError(f"{path}: {ROOTS}.{name} is {folder!r}; give a folder")
            roots[name] = folder
    files = []
    for path, values in raw.items():
        rest = {key: value for key, value in values.items() if key not in (ROOTS, SLURM)}
        files.append(ConfigFile(path, _with_roots(path, "", rest, roots), _group(path, values, SLURM)))
    return ConfigFiles(tuple(files), roots)


def _group(path: str, values: Mapping, name: str) -> dict:
    group = values.get(name) or {}
    if not isinstance(group, Mapping):
        raise ConfigError(f"{path}: '{name}' is {group!r}; it must be a group of keys")
    return dict(group)


def _with_roots(path: str, name: str, value, roots: Mapping[str, str]):
    """The value with folders in place of ${roots.NAME}, and lists as tuples."""
    if isinstance(value, Mapping):
        return {key: _with_roots(path, f"{name}.{key}".lstrip("."), each, roots) for key, each in value.items()}
    if isinstance(value, list):
        return tuple(_with_roots(path, name, each, roots) for each in value)
    if not isinstance(value, str):
        return value
    for root in _ROOT.findall(value):
        if root not in roots:
            known = did_you_mean(root, roots) if roots else ""
            raise ConfigError(f"{path}: {name} is '{value}', and no --config_file names roots.{root}{known}; "
                              f"add one with `roots: {{{root}: FOLDER}}`, such as those in configs/site/")
    return _ROOT.sub(lambda match: roots[match[1]], value)


class _Loader(yaml.SafeLoader):
    """Plain values as YAML 1.2 has them, with each key of a mapping once.

    PyYAML's are those of version 1.1, where 1e-4 is text, 24:00:00 a number and "on" True; and of a key that stands
    twice it takes the last.
    """

    yaml_implicit_resolvers: dict = {}

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                twice = f"the key '{key}' stands twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _type, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+0123456789.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_type}", re.compile(rf"(?:{_pattern})$"), _first)


def read_yaml(path: str | os.PathLike, option: str) -> dict:
    """The keys of a YAML file; relative paths may be those of configs/.

    Args:
      option: of the command that named the file, for errors.

    Raises:
      ConfigError: no such file, no YAML, a key twice, or no keys.
    """
    path = shipped.find(str(path), ".yaml")
    if not path.is_file():
        near = sorted(str(each) for each in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ConfigError(f"{option} {path} does not exist{did_you_mean(str(path), near) if near else ''}")
    try:
        with open(path, encoding="utf-8") as stream:
            # a subclass of SafeLoader: plain values only
            values = yaml.load(stream, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is no YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no keys of a config; write them as `group: {{key: value}}`")
    return values
