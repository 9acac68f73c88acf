"""What `config.init_from` means for a config, and what it demands: fields of the model, scaling, frozen parameters."""

import textwrap
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline
from lapa_jax.data.normalize import Normalizer
from lapa_jax.data.samples.base import NORMALIZED
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.train.optim import Optimizer
from lapa_jax.train.origins import Origin

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


def _check_given(prefix: str, given, where: object, spec: Mapping) -> None:
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise ConfigError(f"config.model.{prefix} is {given!r}; leave it None: config.init_from.{prefix} fills it in")
    for name, value in given.items():
        if value is not None and name not in HOW and spec.get(name) != value:
            raise ConfigError(f"config.model.{prefix}.{name} is {value!r}, {where} has {spec.get(name)!r}; leave "
                              f"config.model.{prefix} None, or give another run as config.init_from.{prefix}")


def check_scales(origins: Sequence[Origin], config: ml_collections.ConfigDict, train_data, models: str) -> list[str]:
    """Refuses a part that was trained on columns of another scale than those that it will be given.

    Args:
      origins: of the run; those of whole models are left out, which may change their data.
      config: the run's. train_data: its source of training samples.
      models: the package of models.

    Returns:
      A line for each origin that does not know its data.

    Raises:
      UserError: names the column, the dimension and both values.
    """
    lines, ours = [], _scales(config.data, train_data.meta())
    for origin in origins:
        if not origin.prefix:
            continue
        wanted = _consumed(origin, models) & set(pipeline.fields_of(config.data))
        theirs = _scales(origin.meta["config"].get("data") or {}, origin.meta)
        for column in sorted(wanted):
            if not any(column in statistics for _, statistics in theirs.values()):
                lines.append(f"{origin} does not know how its '{column}' was scaled: that is not checked")
                continue
            for name, scale in ours.items():
                candidates = [theirs[name]] if name in theirs else list(theirs.values())
                wrong = [_difference(column, scale, other) for other in candidates if column in other[1]]
                if wrong and all(wrong):
                    raise UserError(
                        f"config.init_from.{origin.prefix}: {origin} was trained on another scale of '{column}' than "
                        f"data set '{name}' has: {wrong[0]}; train it on the same data with the same data.normalize, "
                        "or train on the data that it was trained on"
                    )
    return lines


def _scales(data: Mapping, meta: Mapping) -> dict[str, tuple[str, Mapping]]:
    """{dataset: (mode of normalisation, {column: summary})}."""
    found = statistics_of(meta)
    return {name: (pipeline.normalization_of(data, name), statistics) for name, statistics in found.items()}


def _consumed(origin: Origin, models: str) -> set[str]:
    """The normalised columns that a model takes as input."""
    model = config_lib.build(models, config_lib.from_json(origin.meta["config"]["model"]))
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
