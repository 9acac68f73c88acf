"""Lays overrides over a config, from files of them and from the command line: which key is meant, and of which type."""

import ast
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import ml_collections

from lapa_jax.core import fields
from lapa_jax.core.errors import ConfigError, did_you_mean

PREFIX = "--config."
OPTIONAL = "?"

Schema = Callable[[ml_collections.ConfigDict, str], Mapping[str, dataclasses.Field]]
"""(config, dotted name of a group) -> the fields that the group may have, listed or not."""


class Text(str):
    """A value as it was typed on the command line, yet to be read."""


def parse_argument(argument: str) -> tuple[str, Text]:
    """`--config.a.b=value` as ("a.b", "value")."""
    if not argument.startswith(PREFIX) or "=" not in argument:
        raise ConfigError(f"argument '{argument}' is not understood; overrides look like {PREFIX}train.steps=100")
    name, _, text = argument.removeprefix(PREFIX).partition("=")
    return name, Text(text)


def leaves(config: ml_collections.ConfigDict, values: Mapping, schema: Schema, parent: str = "") -> Iterator:
    """The (dotted name, value) pairs of nested values; a group goes on where the config has one."""
    for key, value in values.items():
        name = f"{parent}.{key}" if parent else str(key)
        if name.endswith(OPTIONAL):
            name = name.removesuffix(OPTIONAL)
            if not _exists(config, name, schema):
                continue
        if isinstance(value, Mapping) and isinstance(get(config, name), ml_collections.ConfigDict):
            yield from leaves(config, value, schema, name)
        else:
            yield name, value


def override(config: ml_collections.ConfigDict, name: str, value, schema: Schema) -> None:
    """Sets one key of a config to a value of its type.

    Args:
      config: changed in place.
      name: dotted, "model.dim". The config lists it, or it is a field that `schema` knows and that then is added.
      value: `Text`, or what a file holds.

    Raises:
      ConfigError: no such key, or a value of another type.
    """
    group, _, key = name.rpartition(".")
    node = _find_group(config, group, key, schema)
    known = schema(config, group) if key not in node else {}
    if key not in node and key not in known:
        raise ConfigError(f"config has no key '{name}'{did_you_mean(key, {*node.keys(), *known})}")
    if isinstance(old := node.get(key), ml_collections.ConfigDict):
        value = _replacement_of_group(name, old, value)
    else:
        if key not in node:
            old = _default(known[key])
        value = _typed(name, old, value, lambda: schema(config, group).get(key))
        if key not in node and value == old and type(value) is type(old):
            return  # what the model has anyway; the config stays the same
    with node.unlocked(), node.ignore_type():
        node[key] = value


def _exists(config, name: str, schema: Schema) -> bool:
    group, _, key = name.rpartition(".")
    node = get(config, group) if group else config
    return isinstance(node, ml_collections.ConfigDict) and (key in node or key in schema(config, group))


def get(config, name: str):
    """The value of a dotted name, None where there is none."""
    for key in name.split("."):
        config = config.get(key) if isinstance(config, ml_collections.ConfigDict) else None
    return config


def _find_group(config, group: str, key: str, schema: Schema) -> ml_collections.ConfigDict:
    node, name = config, ""
    for parent in group.split(".") if group else ():
        before, name = name, f"{name}.{parent}".lstrip(".")
        if parent not in node and parent not in schema(config, before):
            raise ConfigError(f"config has no key '{name}'{did_you_mean(parent, node.keys())}")
        node = node.get(parent)
        if not isinstance(node, ml_collections.ConfigDict):
            remedy = "; set it to a group, {'name': ..., ...}" if node is None else ""
            raise ConfigError(f"config.{name} is a value ({node!r}), it has no key '{key}'{remedy}")
    return node


def _replacement_of_group(name: str, old: ml_collections.ConfigDict, value):
    """A group within a group may be switched off by None or replaced as a whole; others are set key by key."""
    given = literal(value) if isinstance(value, Text) else value
    if "." in name and (given is None or isinstance(given, Mapping)):
        return given if given is None else ml_collections.ConfigDict(dict(given))
    # a key may be empty, as that of config.init_from which means the whole model
    keys = ", ".join(f"{PREFIX}{name}.{key}=" for key in sorted(map(str, old)))
    raise ConfigError(f"config.{name} is a group; set one of its keys: {keys}")


def _typed(name: str, old, value, field: Callable[[], dataclasses.Field | None]):
    """A value as one of the type of `old`, or of the annotated type of its field; None where it is absent.

    Where `old` is None, any literal is taken, and the text itself where it is none.
    """
    given = value
    if isinstance(value, Text):
        value = literal(value)
        if isinstance(old, str) and (isinstance(value, str) or not (value is None or _declared(field, value))):
            value = str(given)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, int) and not isinstance(old, bool) and type(value) is float and value.is_integer():
        value = int(value)
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if old is None or value is None or type(value) is type(old) or _declared(field, value):
        return value
    raise ConfigError(f"config.{name} is {type(old).__name__} (now {old!r}), '{given}' is {type(value).__name__}; "
                      f"give a {type(old).__name__}")


def literal(text: str):
    """The Python value that a text spells, or the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return str(text)


def _declared(field: Callable[[], dataclasses.Field | None], value) -> bool:
    """Whether the field declares values of this type besides those of its default."""
    declared = field()
    return declared is not None and fields.accepts(declared.type, value)


def _default(field: dataclasses.Field):
    return None if field.default is dataclasses.MISSING else field.default
