"""Configs: one Python file per stage, overrides from the command line, and objects built by module path.

`configs/laq.py:tiny` calls `get_config("tiny")` of that file. `--config.model.dim=256` changes a value that exists, to
a value of its type; a wrong key is answered with the closest right one before anything else happens.
"""

import ast
import dataclasses
import importlib
import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence

import ml_collections

from lapa_jax.core.errors import UserError, did_you_mean

PREFIX = "--config."


class ConfigError(UserError):
    """A config file, key or value that cannot be used."""


def load(path_and_variant: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Loads `file.py[:variant]` and applies overrides of the form `--config.key=value`.

    Args:
      path_and_variant: a config file that defines `get_config(variant: str)`, and optionally the variant to ask for.
      overrides: `--config.a.b=value` strings, applied in order.

    Returns:
      The locked config.
    """
    path, _, variant = path_and_variant.partition(":")
    config = _get_config(path)(variant)
    config.lock()
    for override in overrides:
        _apply(config, override)
    return config


def _get_config(path: str):
    file = pathlib.Path(path)
    if not file.is_file():
        found = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise ConfigError(f"config file {path} does not exist{did_you_mean(path, found) if found else ''}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path} defines no get_config(variant)")
    return module.get_config


def choose_variant(variant: str, known: Mapping[str, object]):
    """Returns `known[variant]`; an unknown variant is a `ConfigError` that lists the known ones."""
    if variant not in known:
        raise ConfigError(f"unknown config variant '{variant}'{did_you_mean(variant, known)}")
    return known[variant]


def _apply(config: ml_collections.ConfigDict, override: str) -> None:
    if not override.startswith(PREFIX) or "=" not in override:
        raise ConfigError(f"argument '{override}' is not understood; overrides look like {PREFIX}train.steps=100")
    name, _, text = override[len(PREFIX) :].partition("=")
    *parents, key = name.split(".")
    node = config
    for depth, parent in enumerate(parents):
        node = _child(node, parent, ".".join(parents[: depth + 1]))
        if not isinstance(node, ml_collections.ConfigDict):
            raise ConfigError(f"config.{'.'.join(parents[: depth + 1])} is a value, it has no key '{key}'")
    old = _child(node, key, name)
    if isinstance(old, ml_collections.ConfigDict):
        raise ConfigError(f"config.{name} is a group; set one of its keys: {', '.join(sorted(old))}")
    with node.ignore_type():
        node[key] = _convert(name, old, text)


def _child(node, key: str, name: str):
    if key not in node:
        raise ConfigError(f"config has no key '{name}'{did_you_mean(key, node.keys())}")
    return node[key]


def _convert(name: str, old, text: str):
    """Parses `text` as a value of the type of `old`; a None default takes any literal, or the text itself."""
    if isinstance(old, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if old is None:
            return text
        value = text
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and type(value) is float and value.is_integer():
        value = int(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is not None and value is not None and type(value) is not type(old):
        raise ConfigError(f"config.{name} is {type(old).__name__} (now {old!r}), '{text}' is {type(value).__name__}")
    return value


def to_json(config: ml_collections.ConfigDict) -> dict:
    """The config as plain JSON values (tuples become lists)."""
    return json.loads(config.to_json())


def from_json(values: Mapping) -> ml_collections.ConfigDict:
    """The inverse of `to_json`; lists become tuples, as config files write them."""
    return ml_collections.ConfigDict({key: _from_json(value) for key, value in values.items()})


def _from_json(value):
    if isinstance(value, Mapping):
        return {key: _from_json(v) for key, v in value.items()}
    return tuple(_from_json(v) for v in value) if isinstance(value, list) else value


def complete(package: str, spec: Mapping, source, seed: int) -> dict:
    """The fields of a model that only the data can tell.

    A model's module may define `from_data(spec, source, seed) -> dict`: it gets the fields of the config and the source
    of training samples, and returns them with what was left open filled in (dimensions, categories, ...), as a
    deterministic function of its arguments.

    Args:
      package, spec: as of `build`.
      source: the training samples.
      seed: of the run.

    Returns:
      `spec` as plain JSON values with lists as tuples, filled in; unchanged where the module defines no `from_data`.

    Raises:
      ConfigError: an unknown model or field.
    """
    plain = to_json(ml_collections.ConfigDict(dict(spec)))
    module, _ = _resolve(package, plain)
    if not hasattr(module, "from_data"):
        return dict(from_json(plain))
    found = {**plain, **module.from_data(dict(plain), source, seed)}
    # what a run folder keeps must be what the model was built from, to the last digit
    found = json.loads(json.dumps(found, allow_nan=False))
    _resolve(package, found)
    return dict(from_json(found))


def build(package: str, spec: Mapping, **extra):
    """Builds the `Model` of `package.<spec["name"]>` from the other fields of `spec`.

    Args:
      package: where to look, e.g. "lapa_jax.models".
      spec: `{"name": "tokenizers.laq", field: value, ...}`; a value that is such a group itself is built likewise.
      **extra: further fields that do not come from the config.

    Returns:
      The object, after its `check()` (where defined) has accepted the values.
    """
    module, fields = _resolve(package, {**dict(spec), **extra})
    built = module.Model(**{key: _field(package, value) for key, value in fields.items()})
    if hasattr(built, "check"):
        built.check()
    return built


def _resolve(package: str, spec: Mapping):
    """The module that `spec["name"]` says, and the other fields, which its `Model` is known to have."""
    fields = dict(spec)
    name = fields.pop("name", None)
    if name is None:
        raise ConfigError(f"a '{package}' entry of the config needs a name; known: {', '.join(_modules(package))}")
    module = _import(package, name)
    known = {f.name for f in dataclasses.fields(module.Model) if f.init} - {"parent", "name"}
    for key in fields:
        if key not in known:
            raise ConfigError(f"{name} has no field '{key}'{did_you_mean(key, known)}")
    return module, fields


def _field(package: str, value):
    """A field's value as a model holds it; a group with a name becomes a model within the model."""
    if isinstance(value, (ml_collections.ConfigDict, Mapping)) and "name" in value:
        return build(package, value)
    return _freeze(value)


def _freeze(value):
    """Model fields must be hashable: lists become tuples, groups become frozen configs."""
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, (ml_collections.ConfigDict, Mapping)):
        return ml_collections.FrozenConfigDict(dict(value))
    return value


def _modules(package: str) -> list[str]:
    """The modules of a package that define a `Model`, by their source: what only helps a model is not offered."""
    root = pathlib.Path(next(iter(importlib.import_module(package).__path__)))
    files = [path.relative_to(root) for path in root.rglob("*.py") if "\nclass Model(" in path.read_text("utf-8")]
    return sorted(".".join(f.parent.parts if f.stem == "__init__" else f.with_suffix("").parts) for f in files)


def _import(package: str, name: str):
    known = _modules(package)
    if name not in known:
        raise ConfigError(f"'{name}' is no model of {package}{did_you_mean(name, known)}")
    return importlib.import_module(f"{package}.{name}")
