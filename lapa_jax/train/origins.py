"""Weights of other runs that a run begins with: reads `config.init_from`, and from the runs only what is taken."""

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping

import jax
import ml_collections

from lapa_jax.core import pretrained, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.train import ema
from lapa_jax.train.checkpoint import describe, load_some


@dataclasses.dataclass(frozen=True)
class Origin:
    """A trained model whose variables become those under a prefix.

    Attributes:
      prefix: of the variables without their collection, "tokenizer" or "a/b"; "" is the whole model.
      path: the `checkpoints/<step>` or exported folder.
      step: the training step of the weights.
      meta: its metadata, with "config"; `meta["config"]["model"]` is what the model is built from.
      shapes: {collection: {...}} of `jax.ShapeDtypeStruct`.
    """

    prefix: str
    path: pathlib.Path
    step: int
    meta: dict
    shapes: dict

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by their own names, placed as the shardings of `wanted` say; nothing else is read."""
        if not (self.path / pretrained.WEIGHTS_FILE).is_file():
            return tree.flatten(load_some(self.path, tree.unflatten(wanted)))
        with pretrained.open_pretrained(self.path) as (_, file):
            return {name: _place(file, name, leaf) for name, leaf in wanted.items()}

    def __str__(self) -> str:
        return f"{self.path} (step {self.step})"


@dataclasses.dataclass(frozen=True)
class Taken:
    """Which variables of a model come from which origin.

    Attributes:
      names: {our name: (origin, its name)}, "params/tokenizer/norm/scale": (..., "params/norm/scale").
      lines: the same in words, one line for each thing worth knowing.
    """

    names: Mapping[str, tuple[Origin, str]]
    lines: tuple[str, ...] = ()

    def read(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The arrays {our name: array}, placed as the shardings of `abstract`, {our name: shape}, say."""
        found = {}
        for origin in {id(origin): origin for origin, _ in self.names.values()}.values():
            ours = {theirs: name for name, (of, theirs) in self.names.items() if of is origin}
            arrays = origin.read({theirs: abstract[name] for theirs, name in ours.items()})
            found |= {ours[theirs]: array for theirs, array in arrays.items()}
        return found


def paths_of(config: ml_collections.ConfigDict) -> dict[str, str]:
    """{prefix: path} of the entries of `config.init_from` that name a run.

    Raises:
      ConfigError: an entry that is no path, prefixes within each other, or exceptions without a whole model.
    """
    group = config.get("init_from") or {}
    if not hasattr(group, "items"):
        raise ConfigError(f"config.init_from is {group!r}; it is a group {{prefix of variables: run folder or None}}")
    paths = {prefix: path for prefix, path in group.items() if path is not None}
    for prefix, path in paths.items():
        if not isinstance(path, str) or not path:
            raise ConfigError(f"config.init_from.{prefix} is {path!r}; give the folder of a run, or None")
    for outer, inner in itertools.permutations(paths, 2):
        if not outer or inner.startswith(outer + tree.SEPARATOR):
            raise ConfigError(f"config.init_from gives '{inner}' twice: it also lies within "
                              f"{repr(outer) if outer else 'the whole model'}; leave one of them None")
    exceptions(config)
    return paths


def exceptions(config: ml_collections.ConfigDict) -> tuple[re.Pattern, ...]:
    """The compiled `config.init_from_except`.

    Raises:
      ConfigError: no tuple of regular expressions, or no prefix "" that they could make exceptions of.
    """
    given = config.get("init_from_except") or ()
    if not isinstance(given, (tuple, list)) or not all(isinstance(regex, str) for regex in given):
        raise ConfigError(f"config.init_from_except is {given!r}; give regular expressions, ('head/.*',)")
    if given and "" not in (config.get("init_from") or {}):
        raise ConfigError("config.init_from_except goes with a whole model, the prefix '' of config.init_from")
    try:
        return tuple(re.compile(regex) for regex in given)
    except re.error as error:
        raise ConfigError(f"config.init_from_except: '{error.pattern}' is no regular expression ({error})") from None


def open_origin(prefix: str, path: str) -> Origin:
    """Reads what a run folder, one of its `checkpoints/<step>` or an exported folder holds, without its arrays.

    Raises:
      UserError: nothing there that can be read.
    """
    folder = pathlib.Path(path).absolute()
    try:
        if not folder.is_dir():
            raise UserError(f"{path} does not exist; give a run folder, a checkpoint folder or an exported folder")
        if (folder / pretrained.WEIGHTS_FILE).is_file():
            return _exported(prefix, folder)
        found, meta, shapes = describe(folder)
        return Origin(prefix, found, int(found.name), meta, shapes)
    except UserError as error:
        raise UserError(f"config.init_from.{prefix}: {error}") from None


def match(origins: tuple[Origin, ...], variables: Mapping, free: tuple[re.Pattern, ...]) -> Taken:
    """Finds for every variable under the prefixes the one that takes its place; strict on names, shapes and dtypes.

    Adapters may be what the origin has none of (see `nn/lora.py`); they stay fresh. Float32 and bfloat16 may stand for
    each other: numbers are cast as they are read, to bfloat16 where `config.optim.frozen_dtype` asks for it.

    Args:
      origins: with prefixes that do not overlap.
      variables: the model's, or their shapes.
      free: of the whole model ("" as prefix), names without collection that stay as they are, or are not used.

    Raises:
      UserError: what differs, a prefix without variables, an expression that matches nothing.
    """
    names, lines = {}, []
    for origin in origins:
        found, told = _match_one(origin, tree.flatten(ema.averaged(variables)), free if not origin.prefix else ())
        names |= {ours: (origin, theirs) for ours, theirs in found.items()}
        lines += told
    return Taken(names, tuple(lines))


def _match_one(origin: Origin, variables: dict, free: tuple[re.Pattern, ...]) -> tuple[dict[str, str], list[str]]:
    """{our name: its name}, and lines."""
    ours = {_within(name, origin.prefix): name for name in variables if _within(name, origin.prefix)}
    theirs = tree.flatten(origin.shapes)
    if not ours:
        known = {tree.SEPARATOR.join(name.split(tree.SEPARATOR)[1:2]) for name in variables}
        hint = did_you_mean(origin.prefix, known)
        raise UserError(f"config.init_from.{origin.prefix}: the model has no variables '{origin.prefix}/...'{hint}")
    for regex in free:
        if not any(_free(name, (regex,)) for name in (*ours, *theirs)):
            known = {name.partition(tree.SEPARATOR)[2] for name in (*ours, *theirs)}
            raise UserError(f"config.init_from_except: '{regex.pattern}' matches no variable, neither of the model nor "
                            f"of {origin.path}{tree.closest(regex.pattern, known)}")
    fresh = lambda name: _free(name, free) or tree.ADAPTER.fullmatch(name) and name not in theirs  # noqa: E731
    taken = {name: mine for name, mine in ours.items() if not fresh(name)}
    given = {name: leaf for name, leaf in theirs.items() if not _free(name, free)}
    wanted = {name: variables[mine] for name, mine in taken.items()}
    if wrong := tree.diff(tree.unflatten(wanted), tree.unflatten(given), tree.STORED):
        what = f"the model's '{origin.prefix}'" if origin.prefix else "the model"
        remedy = "" if origin.prefix else "; config.init_from_except names what may differ"
        raise UserError(f"config.init_from.{origin.prefix}: {origin} does not fit {what}: {wrong}{remedy}")
    if not taken:
        raise UserError("config.init_from_except leaves nothing to begin with; leave config.init_from empty")
    count = sum(leaf.size for leaf in given.values())
    what = f"'{origin.prefix}'" if origin.prefix else "the model"
    lines = [f"{what} begins with {len(taken)} variables ({count:,} numbers) of {origin}"]
    types = collections.Counter((leaf.dtype, wanted[name].dtype) for name, leaf in given.items())
    lines += [f"  {n} of them are {old} there and {new} here" for (old, new), n in types.items() if old != new]
    lines += [f"  stays fresh: {name}" for name in ours if name not in taken]
    lines += [f"  not used of that run: {name}" for name in theirs if name not in given]
    return {mine: name for name, mine in taken.items()}, lines


def _within(name: str, prefix: str) -> str | None:
    """A variable's name with the prefix taken out from behind its collection; None where it has another."""
    if not prefix:
        return name
    collection, _, rest = name.partition(tree.SEPARATOR)
    start = prefix + tree.SEPARATOR
    return f"{collection}{tree.SEPARATOR}{rest.removeprefix(start)}" if rest.startswith(start) else None


def _free(name: str, free: tuple[re.Pattern, ...]) -> bool:
    return any(regex.fullmatch(name.partition(tree.SEPARATOR)[2]) for regex in free)


def _exported(prefix: str, folder: pathlib.Path) -> Origin:
    with pretrained.open_pretrained(folder) as (config, file):
        flat = {name: _shape(file, name) for name in file.keys()}
    meta = {**config["meta"], "config": {**config["meta"].get("config", {}), "model": config["model"]}}
    return Origin(prefix, folder, int(meta.get("step", 0)), meta, tree.unflatten(flat))


def _shape(file, name: str) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a tensor; reads a row of it, since the file's names of dtypes are its own."""
    part = file.get_slice(name)
    shape = tuple(part.get_shape())
    some = part[:1] if shape else file.get_tensor(name)
    return jax.ShapeDtypeStruct(shape, some.dtype)


def _place(file, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """A tensor where its sharding wants it; of each piece nothing else is read."""
    part = file.get_slice(name) if leaf.shape else file.get_tensor(name)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: part[index].astype(leaf.dtype))
