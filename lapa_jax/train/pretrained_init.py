"""How a run begins with the weights of others (`config.init_from`): the four parts, in the order of a run.

1. `paths_of`, `open_source`: which runs are named, and what they hold; no array is read.
2. `fill_model`, `check_scales`: the model's fields that describe what is taken, and whether numbers are scaled alike.
3. `match`, `check_frozen`: which variable comes from where; what is frozen must come from somewhere.
4. `Loaded.read`: the arrays, on their places on the mesh.
"""

import collections
import dataclasses
import itertools
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import pretrained, tree
from lapa_jax.core.checkpoint_step import split_best
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import pipeline
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.samples.base import NORMALIZED
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.train import ema
from lapa_jax.train.checkpoint import describe, load_some
from lapa_jax.train.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class InitSource:
    """A trained model whose variables become those under a prefix.

    Attributes:
      prefix: of the variables without their collection, "tokenizer" or "a/b"; "" is the whole model.
      path: the `checkpoints/<step>` or exported folder.
      step: the training step of the weights.
      meta: its metadata, with "config"; `meta["config"]["model"]` is what the model is built from.
      shapes: {collection: {...}} of `jax.ShapeDtypeStruct`.
      part: what of a larger model it is, such as the "tower" of a masked autoencoder; `meta` and `shapes` are then of
        the part, and names of variables do not have it. "": the whole of what lies there.
    """

    prefix: str
    path: pathlib.Path
    step: int
    meta: dict
    shapes: dict
    part: str = ""

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by their own names, placed as the shardings of `wanted` say; nothing else is read."""
        stored = {_beneath(name, self.part): name for name in wanted}
        leaves = {there: wanted[name] for there, name in stored.items()}
        if not (self.path / pretrained.WEIGHTS_FILE).is_file():
            arrays = tree.flatten(load_some(self.path, tree.unflatten(leaves)))
        else:
            with pretrained.open_pretrained(self.path) as (_, file):
                arrays = {there: _place(file, there, leaf) for there, leaf in leaves.items()}
        return {stored[there]: array for there, array in arrays.items()}

    def __str__(self) -> str:
        whole = f"{self.path} (step {self.step})"
        return f"the {self.part} of {whole}" if self.part else whole


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Which variables of a model come from which source.

    Attributes:
      names: {our name: (source, its name)}, "params/tokenizer/norm/scale": (..., "params/norm/scale").
      lines: the same in words, one line for each thing worth knowing.
    """

    names: Mapping[str, tuple[InitSource, str]]
    lines: tuple[str, ...] = ()

    def read(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """The arrays {our name: array}, placed as the shardings of `abstract`, {our name: shape}, say."""
        read = {}
        for source in {id(source): source for source, _ in self.names.values()}.values():
            ours = {theirs: name for name, (of, theirs) in self.names.items() if of is source}
            arrays = source.read({theirs: abstract[name] for theirs, name in ours.items()})
            read |= {ours[theirs]: array for theirs, array in arrays.items()}
        return read


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


def open_source(prefix: str, path: str) -> InitSource:
    """Reads what a run folder, one of its `checkpoints/<step>` or an exported folder holds, without its arrays.

    `checkpoints/best` of a run is its best checkpoint. Of a model that has a part of the prefix's name, as a masked
    autoencoder has a tower, that part is meant.

    Raises:
      UserError: nothing there that can be read.
    """
    folder, step = split_best(pathlib.Path(path).absolute(), None)
    try:
        if not folder.is_dir():
            raise UserError(f"{path} does not exist; give a run folder, a checkpoint folder or an exported folder")
        if (folder / pretrained.WEIGHTS_FILE).is_file():
            return _narrowed(_exported(prefix, folder))
        checkpoint, meta, shapes = describe(folder, step)
        return _narrowed(InitSource(prefix, checkpoint, int(checkpoint.name), meta, shapes))
    except UserError as error:
        raise UserError(f"config.init_from.{prefix}: {error}") from None


def _narrowed(source: InitSource) -> InitSource:
    """The part of the prefix's name, where the model that lies there has one."""
    config = source.meta["config"]
    spec = config["model"].get(source.prefix)
    if not isinstance(spec, Mapping) or "name" not in spec:
        return source
    shapes = {_within(name, source.prefix): leaf for name, leaf in tree.flatten(source.shapes).items()}
    shapes.pop(None, None)
    meta = {**source.meta, "config": {**config, "model": spec}}
    return dataclasses.replace(source, meta=meta, shapes=tree.unflatten(shapes), part=source.prefix)


def match(sources: tuple[InitSource, ...], variables: Mapping, free: tuple[re.Pattern, ...]) -> Loaded:
    """Finds for every variable under the prefixes the one that takes its place; strict on names, shapes and dtypes.

    Adapters may be what the source has none of (see `nn/lora.py`); they stay fresh. Float32 and bfloat16 may stand for
    each other: numbers are cast as they are read, to bfloat16 where `config.optim.frozen_dtype` asks for it.

    Args:
      sources: with prefixes that do not overlap.
      variables: the model's, or their shapes.
      free: of the whole model ("" as prefix), names without collection that stay as they are, or are not used.

    Raises:
      UserError: what differs, a prefix without variables, an expression that matches nothing.
    """
    names, lines = {}, []
    for source in sources:
        renamed, notes = _match_one(source, tree.flatten(ema.averaged(variables)), free if not source.prefix else ())
        names |= {ours: (source, theirs) for ours, theirs in renamed.items()}
        lines += notes
    return Loaded(names, tuple(lines))


def _match_one(source: InitSource, variables: dict, free: tuple[re.Pattern, ...]) -> tuple[dict[str, str], list[str]]:
    """{our name: its name}, and lines."""
    ours = {_within(name, source.prefix): name for name in variables if _within(name, source.prefix)}
    theirs = tree.flatten(source.shapes)
    if not ours:
        hint = did_you_mean(source.prefix, {name.split(tree.SEPARATOR)[1] for name in variables})
        raise UserError(f"config.init_from.{source.prefix}: the model has no variables '{source.prefix}/...'{hint}")
    for regex in free:
        if not any(_free(name, (regex,)) for name in (*ours, *theirs)):
            names = {name.partition(tree.SEPARATOR)[2] for name in (*ours, *theirs)}
            raise UserError(f"config.init_from_except: '{regex.pattern}' matches no variable, neither of the model nor "
                            f"of {source.path}; '()' excepts nothing{tree.closest(regex.pattern, names)}")
    fresh = lambda name: _free(name, free) or tree.ADAPTER.fullmatch(name) and name not in theirs  # noqa: E731
    taken = {name: mine for name, mine in ours.items() if not fresh(name)}
    given = {name: leaf for name, leaf in theirs.items() if not _free(name, free)}
    wanted = {name: variables[mine] for name, mine in taken.items()}
    if adapters := [name for name in given if tree.ADAPTER.fullmatch(name) and name not in wanted]:
        raise UserError(f"config.init_from.{source.prefix}: {source} has LoRA adapters that the model lacks, such as "
                        f"{adapters[0]}; give the model that run's model.lora_rank and model.lora_modules, or begin "
                        "with an export of the run, which merges them")
    if wrong := tree.diff(tree.unflatten(wanted), tree.unflatten(given), tree.STORED):
        what = f"the model's '{source.prefix}'" if source.prefix else "the model"
        remedy = "" if source.prefix else "; config.init_from_except names what may differ"
        raise UserError(f"config.init_from.{source.prefix}: {source} does not fit {what}: {wrong}{remedy}")
    if not taken:
        raise UserError("config.init_from_except leaves nothing to begin with; leave config.init_from empty")
    count = sum(leaf.size for leaf in given.values())
    what = f"'{source.prefix}'" if source.prefix else "the model"
    lines = [f"{what} begins with {len(taken)} variables ({count:,} numbers) of {source}"]
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


def _beneath(name: str, part: str) -> str:
    """A variable's name with the part put in behind its collection; the inverse of `_within`."""
    collection, _, rest = name.partition(tree.SEPARATOR)
    return tree.SEPARATOR.join([collection, part, rest]) if part else name


def _free(name: str, free: tuple[re.Pattern, ...]) -> bool:
    return any(regex.fullmatch(name.partition(tree.SEPARATOR)[2]) for regex in free)


def _exported(prefix: str, folder: pathlib.Path) -> InitSource:
    with pretrained.open_pretrained(folder, verify=False) as (config, file):
        flat = {name: _shape(file, name) for name in file.keys()}
    meta = {**config["meta"], "config": {**config["meta"].get("config", {}), "model": config["model"]}}
    return InitSource(prefix, folder, int(meta.get("step", 0)), meta, tree.unflatten(flat))


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


WIDE, TOLERANCE = 160, 1e-6
# Fields of models that say how they compute, not what: a run chooses them for the parts that it takes.
HOW = ("dtype", "remat", "flash")


def fill_model(
    config: ml_collections.ConfigDict, specs: Mapping[str, tuple[object, Mapping]]
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Fills in the fields of the model that describe a model which the run takes from elsewhere, but for those of `HOW`
    that the config gives.

    Args:
      config: the run's.
      specs: {prefix: (where it comes from, its `config.model` as JSON values)}. A prefix that is no field of
        `config.model` is left out.

    Returns:
      The config, and a line for each field that was filled in.

    Raises:
      ConfigError: a field is given and differs.
    """
    filled, lines = {}, []
    for prefix, (where, spec) in specs.items():
        if prefix not in config.model:
            continue
        given = config_lib.to_json(ml_collections.ConfigDict({"it": config.model[prefix]}))["it"]
        _check_given(prefix, given, where, spec)
        spec = {**spec, **{name: value for name, value in (given or {}).items() if name in HOW and value is not None}}
        if given != spec:
            filled[prefix] = spec
            lines.append(f"from {where}: model.{prefix} = {textwrap.shorten(repr(dict(spec)), WIDE)}")
    if filled:
        config = config.copy_and_resolve_references()
        with config.unlocked(), config.ignore_type():
            for prefix, spec in filled.items():
                config.model[prefix] = config_lib.from_json(spec)
    return config, lines


def take_fields(
    config: ml_collections.ConfigDict, where: object, spec: Mapping
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Puts the fields of the model that `config.init_from_fields` names in place of the config's: those of the whole
    model that the run begins with, but for how they compute (`HOW`).

    So a run may begin with a model of any size: its own config need not say how large the parts are.

    Args:
      config: the run's. where, spec: where the whole model comes from, and its `config.model` as JSON values.

    Returns:
      The config, and a line for each field that changed.

    Raises:
      ConfigError: the whole model has no such field.
    """
    names = config.get("init_from_fields") or ()
    if unknown := [name for name in names if name not in spec and name not in config.model]:
        raise ConfigError(f"config.init_from_fields names '{unknown[0]}', which neither model has")
    given = config_lib.to_json(config)["model"]
    lines, config = [], config.copy_and_resolve_references()
    for name in names:
        value = spec.get(name)
        if isinstance(value, Mapping) and isinstance(given.get(name), Mapping):
            value = {**value, **{key: given[name][key] for key in HOW if given[name].get(key) is not None}}
        if value != given.get(name):
            with config.unlocked(), config.ignore_type():
                config.model[name] = config_lib.from_json({"it": value})["it"]
            lines.append(f"from {where}: model.{name} = {textwrap.shorten(repr(value), WIDE)}")
    return config, lines


def _check_given(prefix: str, given, where: object, spec: Mapping) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigError(f"config.model.{prefix} is {given!r}; leave it None: config.init_from.{prefix} fills it in")
    for name, value in given.items():
        if value is not None and name not in HOW and spec.get(name) != value:
            raise ConfigError(f"config.model.{prefix}.{name} is {value!r}, {where} has {spec.get(name)!r}; leave "
                              f"config.model.{prefix} None, or give another run as config.init_from.{prefix}")


def check_scales(
    sources: Sequence[InitSource], config: ml_collections.ConfigDict, train_data, models: str
) -> list[str]:
    """Refuses a part that was trained on columns of another scale than those that it will be given.

    Args:
      sources: of the run; those of whole models are left out, which may change their data.
      config: the run's. train_data: its source of training samples.
      models: the package of models.

    Returns:
      A line for each source that does not know its data.

    Raises:
      UserError: names the column, the dimension and both values.
    """
    lines, ours = [], _scales(config.data, train_data.meta())
    for source in sources:
        if not source.prefix:
            continue
        wanted = _consumed(source, models) & set(pipeline.fields_of(config.data))
        theirs = _scales(source.meta["config"].get("data") or {}, source.meta)
        for column in sorted(wanted):
            if not any(column in statistics for _, statistics in theirs.values()):
                lines.append(f"{source} does not know how its '{column}' was scaled: that is not checked")
                continue
            for name, scale in ours.items():
                candidates = [theirs[name]] if name in theirs else list(theirs.values())
                wrong = [_difference(column, scale, other) for other in candidates if column in other[1]]
                if wrong and all(wrong):
                    raise UserError(
                        f"config.init_from.{source.prefix}: {source} was trained on another scale of '{column}' than "
                        f"data set '{name}' has: {wrong[0]}; train it on the same data with the same data.normalize, "
                        "or train on the data that it was trained on"
                    )
    return lines


def _scales(data: Mapping, meta: Mapping) -> dict[str, tuple[str, Mapping]]:
    """{dataset: (mode of normalisation, {column: summary})}."""
    return {name: (pipeline.normalization_of(data, name), statistics)
            for name, statistics in statistics_of(meta).items()}  # fmt: skip


def _consumed(source: InitSource, models: str) -> set[str]:
    """The normalised columns that a model takes as input."""
    model = config_lib.build(models, config_lib.from_json(source.meta["config"]["model"]))
    return set(model.example(1)) & set(NORMALIZED)


def _difference(column: str, ours: tuple[str, Mapping], theirs: tuple[str, Mapping]) -> str:
    """The first dimension whose scale differs, in words; "" where all agree."""
    (mode, statistics), (other_mode, other_statistics) = ours, theirs
    if mode != other_mode:
        return f"data.normalize is '{mode}', there '{other_mode}'"
    if mode == "none":
        return ""
    scale, other = Normalizer(statistics[column], mode), Normalizer(other_statistics[column], mode)
    if len(scale.offset) != len(other.offset):
        return f"{len(scale.offset)} dimensions, there {len(other.offset)}"
    for what in ("offset", "scale"):
        a, b = getattr(scale, what), getattr(other, what)
        if (far := ~np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE * np.abs(other.scale))).any():
            i = int(np.flatnonzero(far)[0])
            return f"dimension {i} has {what} {a[i]:.6g}, there {b[i]:.6g} ({mode})"
    return ""


def check_frozen(params: Mapping, optimizer: Optimizer, taken: Mapping[str, object]) -> None:
    """Refuses parameters, or layers of them, that are neither trained nor come from another run.

    Args:
      params: the parameters or their shapes. optimizer: knows which are trained. taken: names with the collection.

    Raises:
      ConfigError: names some of them.
    """
    _, held = optimizer.split(params)
    frozen = [name for name in tree.flatten(held) if f"params/{name}" not in taken]
    if frozen:
        shown = ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else "")
        raise ConfigError(f"config.optim.groups freezes {len(frozen)} parameters at their random values ({shown}): "
                          "config.init_from gives them no others; train them, or name the run that they come from")
