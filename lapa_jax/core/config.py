"""Configs: one Python file per stage, variants, files of overrides, the command line, and objects built by module path.

`configs/laq.py:features+cosine` calls `get_config("features+cosine")` of that file. Files of overrides are laid over
it in the order given, and `--config.model.dim=256` over these; see `config_overrides`.
"""

import dataclasses
import importlib
import importlib.util
import json
import pathlib
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_collections

from lapa_jax.core import config_files, config_keys, config_overrides, fields, shipped
from lapa_jax.core.errors import ConfigError, did_you_mean

MODELS, SAMPLES = "lapa_jax.models", "lapa_jax.data.samples"
"""Where the classes are that say which fields `config.model` and `config.data` may have."""


def load(
    path_and_variants: str, overrides: Sequence[str] = (), files: Sequence[str] = ()
) -> ml_collections.ConfigDict:  # fmt: skip
    """Loads `file.py[:variant+variant]` and lays overrides over it.

    Args:
      path_and_variants: a config file that defines `get_config(variants: str)`, and optionally what to ask it for;
        those that come with the package have names, "laq:tiny" (`core.shipped`).
      overrides: `--config.a.b=value` strings, applied in order, after the files.
      files: paths of files of overrides, see `config_files`; later ones win.

    Returns:
      The locked config.

    Raises:
      ConfigError: a wrong file, variant, key or type; or a key that another one, set before it or with it, makes
        meaningless.
    """
    path, _, variants = path_and_variants.partition(":")
    config = import_file(path).get_config(variants)
    config.lock()
    given: dict[str, tuple[int, str, object]] = {}
    for layer, file in enumerate(config_files.read(files).files):
        try:
            for name, value in list(config_overrides.leaves(config, file.values, schema)):
                config_overrides.override(config, name, value, schema)
                given[name] = (layer, f"{file.path}: config.{name}", value)
        except ConfigError as error:
            raise ConfigError(f"{file.path}: {error}") from None
    for argument in overrides:
        name, value = config_overrides.parse_argument(argument)
        config_overrides.override(config, name, value, schema)
        given[name] = (len(files), f"config.{name}", value)
    for name, (other, why) in config_keys.overruled(config).items():
        # What is given later is meant to win over what was given before.
        if name in given and given.get(other, (-1,))[0] <= given[name][0] and given[name][2] not in (None, "None"):
            raise ConfigError(f"{given[name][1]}={given[name][2]} has no effect: config.{other} {why}")
    return config


def explain(path_and_variants: str, overrides: Sequence[str] = (), files: Sequence[str] = ()) -> Iterator[str]:
    """What a config file says of itself, and a line for each key: the option that sets it, its value, what it means.

    Fields of models and samples that the config does not list are shown with the value that they have without it.

    Args: as of `load`.
    """
    config = load(path_and_variants, overrides, files)
    path = path_and_variants.partition(":")[0]
    yield from (f"{path}: {(import_file(path).__doc__ or '').strip()}", "", f"Keys of {path_and_variants}:")
    for name, value, means in keys(config):
        setting = f"  {config_overrides.PREFIX}{name}={textwrap.shorten(str(value), 48, placeholder=' ...')}"
        yield f"{setting:<52} {textwrap.shorten(means, 100, placeholder=' ...')}".rstrip()


def keys(config: ml_collections.ConfigDict) -> Iterator[tuple[str, object, str]]:
    """(dotted name, value, what it means) of each key, those of models and samples included that it does not list."""
    for name, value in _keys(config, config, ""):
        group, _, key = name.rpartition(".")
        if group.split(".")[0] == "model":
            model = _import(MODELS, config_overrides.get(config, f"{group}.name")).Model
            yield name, value, config_keys.line("model.name") if key == "name" else fields.describe(model).get(key, "")
        else:
            yield name, value, config_keys.line(name)


def _keys(config: ml_collections.ConfigDict, node: ml_collections.ConfigDict, parent: str) -> Iterator:
    """(dotted name, value) of what is listed in a group, then of the other fields that the group may have."""
    for key, value in node.items():
        name = f"{parent}.{key}" if parent else key
        if isinstance(value, ml_collections.ConfigDict):
            yield from _keys(config, value, name)
        else:
            yield name, value
    for key, field in (schema(config, parent) if parent else {}).items():
        if key not in node and field.default is not dataclasses.MISSING:
            yield f"{parent}.{key}", field.default


def schema(config: ml_collections.ConfigDict, group: str) -> dict[str, dataclasses.Field]:
    """The fields that a group of a config may have because the class behind it has them: of models and samples."""
    if group == "data":
        kind = config.data.get("samples") or "pairs"
        cls = getattr(importlib.import_module(f"{SAMPLES}.{kind}"), "Options", None)
    elif group.split(".")[0] == "model" and (name := config_overrides.get(config, f"{group}.name")):
        cls = _import(MODELS, name).Model
    else:
        return {}
    return {field.name: field for field in dataclasses.fields(cls) if field.init and field.name not in _FLAX}


_FLAX = ("parent", "name")
"""Fields that every Flax module has."""


def import_file(path: str) -> types.ModuleType:
    """A config file, which defines `get_config` and may import its neighbours: `from . import common`.

    Raises:
      ConfigError: no such file, or none that defines `get_config`.
    """
    file = shipped.find(path, ".py")
    if not file.is_file():
        neighbours = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = did_you_mean(path, neighbours) if neighbours else did_you_mean(file.stem, shipped.names(".py"))
        raise ConfigError(f"config file {path} does not exist{near}")
    # The file's folder is a package for the time of the import: neighbours are those that lie there now.
    package = types.ModuleType("lapa_jax_config")
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    importlib.invalidate_caches()
    try:
        spec = importlib.util.spec_from_file_location(f"{package.__name__}.config", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        if not (error.name or "").startswith(package.__name__):
            raise
        raise ConfigError(f"config file {path} imports a neighbour that {file.parent} lacks; copy it there "
                          f"({error})") from None
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
            del sys.modules[name]
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path} defines no get_config(variants)")
    return module


def with_variants(
    config: ml_collections.ConfigDict, variants: str, known: Mapping[str, Callable[[ml_collections.ConfigDict], None]],
    one_of: Sequence[Sequence[str]] = (),
) -> ml_collections.ConfigDict:  # fmt: skip
    """Applies "a+b", variants of a config, from left to right, and names the run after them, `<name>_a_b`.

    Args:
      config: without a variant; changed in place.
      variants: joined by "+"; "" is none.
      known: {name: function that changes a config in place}.
      one_of: groups of variants of which one is to be chosen at most.

    Raises:
      ConfigError: an unknown variant, or several of a group.
    """
    chosen = variants.split("+") if variants else []
    for variant in chosen:
        if variant not in known:
            raise ConfigError(f"{config.name} has no variant '{variant}'; it has {', '.join(known)}, joined by +")
    for group in one_of:
        if len(both := [variant for variant in chosen if variant in group]) > 1:
            raise ConfigError(f"the variants {' and '.join(both)} of {config.name} exclude each other; give one")
    for variant in chosen:
        known[variant](config)
    config.name = "_".join([config.name, *chosen])
    return config


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
    module, given = _resolve(package, plain)
    fields.check_values(module.Model, {key: _freeze(value) for key, value in given.items() if value is not None})
    if not hasattr(module, "from_data"):
        return dict(from_json(plain))
    completed = {**plain, **module.from_data(dict(plain), source, seed)}
    # what a run folder keeps must be what the model was built from, to the last digit
    completed = json.loads(json.dumps(completed, allow_nan=False))
    _resolve(package, completed)
    return dict(from_json(completed))


def build(package: str, spec: Mapping, **extra):
    """Builds the `Model` of `package.<spec["name"]>` from the other fields of `spec`.

    Args:
      package: where to look, e.g. "lapa_jax.models".
      spec: `{"name": "tokenizers.laq", field: value, ...}`; a value that is such a group itself is built likewise.
      **extra: further fields that do not come from the config.

    Returns:
      The object, after `check` has accepted it.
    """
    module, given = _resolve(package, {**dict(spec), **extra})
    built = module.Model(**{key: _field(package, value) for key, value in given.items()})
    check(built)
    return built


def model_class(package: str, spec: Mapping) -> type:
    """The class `Model` that `build` would make an object of; `ConfigError` as there."""
    module, _ = _resolve(package, spec)
    return module.Model


def check_fields(package: str, spec: Mapping) -> None:
    """Refuses fields that the class does not have or values that they do not declare, before anything is built.

    What is None is left: other runs or the data fill it in. Arguments and errors: as of `build`.
    """
    fields.check_values(model_class(package, spec), {key: value for key, value in spec.items() if value is not None})


def check(model) -> None:
    """Refuses a model whose fields hold what they do not declare (`core.fields`), or do not fit together (its own
    `check()`)."""
    fields.check(model)
    model.check()


def _resolve(package: str, spec: Mapping):
    """The module that `spec["name"]` says, and the other fields, which its `Model` is known to have."""
    given = dict(spec)
    name = given.pop("name", None)
    if name is None:
        raise ConfigError(f"a '{package}' entry of the config needs a name; known: {', '.join(_modules(package))}")
    module = _import(package, name)
    known = {field.name for field in dataclasses.fields(module.Model) if field.init}.difference(_FLAX)
    for key in given:
        if key not in known:
            raise ConfigError(f"{name} has no field '{key}'{did_you_mean(key, known)}")
    return module, given


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
    """The modules of a package that define a `Model` that is not abstract, by their source: others are not offered."""
    root = pathlib.Path(next(iter(importlib.import_module(package).__path__)))
    defined = re.compile(r"^class Model\((?!.*\bABC\b)", re.MULTILINE)
    files = [path.relative_to(root) for path in root.rglob("*.py") if defined.search(path.read_text("utf-8"))]
    return sorted(".".join(f.parent.parts if f.stem == "__init__" else f.with_suffix("").parts) for f in files)


def _import(package: str, name: str):
    known = _modules(package)
    if name not in known:
        raise ConfigError(f"'{name}' is no model of {package}{did_you_mean(name, known)}")
    return importlib.import_module(f"{package}.{name}")
