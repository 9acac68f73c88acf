"""From a config to a source of samples: what training and the launchers call."""

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.data import samples
from lapa_jax.data.far_values import LIMIT, choices, far_values
from lapa_jax.data.samples.meta import check_statistics, dimension_names, statistics_of
from lapa_jax.data.samples.mixture import Mixture
from lapa_jax.data.samples.pair_actions import PAIR_ACTION
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards, dataset_folder, read_dataset
from lapa_jax.data.transforms import IMAGES, Augment, check_augment

_SHOWN = 4
LOCATION = ("path", "val_path", "val_labels", "split_train", "split_val")
"""Fields of `config.data`, and of a part of a mixture, that say where the data are."""

GENERAL = ("samples", "mixture", "augment", "eval_examples", "shuffle", "window", "workers", "threads", "prefetch",
           "max_bad_samples", "max_normalized")  # fmt: skip
"""Fields of `config.data` that are the same for all kinds of samples; what is left belongs to the kind."""


def build(
    data: Mapping, split: str, *, image_size: int | None = None, fields: Sequence[str] | None = None,
    statistics: Mapping[str, Mapping] | None = None,
):  # fmt: skip
    """The source of samples of `config.data`.

    Args:
      data: `config.data`: "samples" (the kind, "pairs" where absent), "path" or "mixture", optionally "val_path",
        "val_labels", "split_train", "split_val", and the fields of the kind, see `Options` in its module.
      split: "train" or "val". For "val", `val_path` (another folder) and `split_val` apply where they are set.
      image_size: side in pixels that the model takes; `data.image_size` where None.
      fields: what the samples hold, in place of `data.fields`.
      statistics: {dataset: {column: summary}} that normalisation uses, as `samples.meta.statistics_of` gives them of a
        checkpoint or of the training data; None takes those of the data.

    Returns:
      A source; of a mixture a `Mixture`, of a folder of ready-made pairs a `PairShards`.

    Raises:
      UserError: a wrong field or value, or data that do not fit.
    """
    if split not in ("train", "val"):
        raise UserError(f"split '{split}' is not 'train' or 'val'")
    shared = {name: value for name, value in data.items() if name not in (*GENERAL, *LOCATION)}
    overrides = {"image_size": image_size, "fields": None if fields is None else tuple(fields)}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    kind, parts = _kind(data.get("samples") or "pairs"), data.get("mixture")
    if not parts or (split == "val" and data.get("val_path")):
        name = None if parts else _name(data)
        return _open(kind, data, split, {**shared, **overrides}, _pick(statistics, name, shared))
    sources, weights = {}, []
    for part in parts:
        name, weight, location, options = _part(kind, part, data, shared)
        # A part may be for training only: its "split_val" is None.
        if split == "val" and location["split_val"] is None:
            continue
        if name in sources:
            raise UserError(f"data.mixture has two parts '{name}': give them different values of \"name\"")
        sources[name] = _open(kind, location, split, {**options, **overrides}, _pick(statistics, name, options))
        weights.append(weight)
    if not sources:
        raise UserError("no part of data.mixture has a split_val: nothing to evaluate on")
    if shared.get("text_length", 0) is None:
        # Each part has padded its instructions to its own longest.
        longest = max(source.text_lengths[0] for source in sources.values())
        for source in sources.values():
            source.widen_texts(longest)
    return Mixture(sources, weights)


def for_dataset(data: Mapping, datasets: Mapping[str, Mapping], fingerprint: str | None) -> dict:
    """`config.data` as it is for one dataset: with the camera, the gap and all else of its part of a mixture.

    Args:
      data: `config.data` of a run. datasets: what it was trained on, as in its metadata.
      fingerprint: of the dataset; for one that was no part of a mixture `data` stays as it is.
    """
    for part in data.get("mixture") or ():
        of_part = datasets.get(part.get("name") or _name(part), {}).get("fingerprint")
        if fingerprint is not None and of_part == fingerprint:
            differing = {key: value for key, value in part.items() if key not in (*LOCATION, "name", "weight")}
            return _with_own_gap(dict(data), differing)
    return dict(data)


def fingerprint_of(folder) -> str | None:
    """The fingerprint of a folder of step shards; None of one of ready-made pairs."""
    return None if PairShards.is_one(dataset_folder(folder)) else read_dataset(folder)["fingerprint"]


def normalization_of(data: Mapping, dataset: str | None) -> str:
    """The mode of normalisation of a dataset, by its name: that of its part of a mixture, or of `config.data`."""
    for part in data.get("mixture") or ():
        if dataset == (part.get("name") or _name(part)):
            data = {**data, **part}
    return data.get("normalize") or "none"


def fields_of(data: Mapping) -> tuple[str, ...]:
    """The fields of the samples that `config.data` asks for, as given or those that its kind has by default."""
    kind = _kind(data.get("samples") or "pairs")
    fields = data.get("fields") or next(f.default for f in dataclasses.fields(kind) if f.name == "fields")
    return (fields,) if isinstance(fields, str) else tuple(fields)


def has_actions(data: Mapping, split: str) -> bool:
    """Whether the folders behind `split` store actions, all of them."""
    parts = data.get("mixture")
    if not parts or (split == "val" and data.get("val_path")):
        parts = [data]
    folders = [_where({**data, **part}, split)[0] for part in parts if part.get("split_val", "val") or split != "val"]
    return all(not PairShards.is_one(path) and "action" in read_dataset(path)["features"] for path in folders)


def action_width(folder) -> int:
    """How many numbers the actions of a folder have; 0 where it has none."""
    folder = dataset_folder(folder)
    features = {} if PairShards.is_one(folder) else read_dataset(folder)["features"]
    return features["action"]["shape"][0] if "action" in features else 0


def eval_fields(data: Mapping) -> tuple[str, ...] | None:
    """Fields that evaluation reads in place of those of training, for `build`: pairs with the action between them."""
    if (data.get("samples") or "pairs") != "pairs":
        return None
    few = (PAIR_ACTION,) if PAIR_ACTION in fields_of(data) else ()
    return ("frames", *(("net_action",) if has_actions(data, "val") else ()), *few)


def check_trainable(source, limit: float | None = LIMIT) -> list[str]:
    """Refuses training on numeric columns without usable statistics, which a policy could not undo, and on values that
    would explode.

    Args:
      source: of training samples. limit: `data.max_normalized`, the largest normalised value; None is any.

    Returns:
      Lines for the log: dimensions that are scaled otherwise, or clipped, because of values far out.

    Raises:
      UserError: names what is missing, or the dimensions with values beyond the limit, and the choices.
    """
    meta, notes = source.meta(), []
    parts = source.sources.values() if isinstance(source, Mixture) else [source]
    for part, (name, summaries) in zip(parts, statistics_of(meta).items(), strict=True):
        for column, width in part.numeric.items():
            check_statistics(summaries, column, width, f"data set '{name}'")
            mode, names = part.options.normalize, dimension_names(part.features[column], width)
            far = far_values(summaries[column], mode, names, LIMIT if limit is None else limit)
            beyond = [one for one in far if limit is not None and one.largest > limit]
            if beyond:
                named = "; ".join(one.text for one in beyond[:_SHOWN]) + ("; ..." if len(beyond) > _SHOWN else "")
                raise UserError(
                    f"data set '{name}' has values far out in {len(beyond)} dimensions of '{column}', more than "
                    f"data.max_normalized={limit:g}: {named}. {choices(mode, max(one.largest for one in beyond))}"
                )
            where = f"warning: data set '{name}', '{column}'"
            notes += [f"{where}, {one.text}. {choices(mode, one.largest)}" for one in far]
    return notes


def augmentation(data: Mapping, source) -> Augment | None:
    """The augmentation of `config.data.augment`, checked against the data; None where it is off."""
    augment = Augment.from_config(data.get("augment"))
    if augment is None:
        return None
    shapes = {name: values.shape[1:] for name, values in source.batch([]).items() if name in IMAGES}
    if not shapes:
        raise UserError(f"these samples ({', '.join(source.fields)}) have no images: set data.augment=None")
    for shape in shapes.values():
        if augment.crop_area < 1 and shape[-3] != shape[-2]:
            raise UserError(f"augment.crop_area needs square images, these are {shape[-3:-1]}: set data.image_size")
    texts_used = "text" in source.fields
    check_augment(augment, texts_used, source.instructions() if texts_used else (), source.fields)
    return augment


@functools.cache
def kinds() -> tuple[str, ...]:
    """The kinds of samples: modules of `lapa_jax.data.samples` with `Options`."""
    names = [module.name for module in pkgutil.iter_modules(samples.__path__)]
    return tuple(n for n in names if hasattr(importlib.import_module(f"{samples.__name__}.{n}"), "Options"))


def _kind(name: str) -> type:
    if name not in kinds():
        raise UserError(f"data.samples '{name}' is no kind of sample{did_you_mean(name, kinds())}")
    return importlib.import_module(f"{samples.__name__}.{name}").Options


def _part(kind: type, part: Mapping, data: Mapping, shared: Mapping) -> tuple[str, object, dict, dict]:
    """(name, weight, location, fields of the kind) of a part: its own values before those of `config.data`."""
    allowed = {*LOCATION, "name", "weight", *(field.name for field in dataclasses.fields(kind))}
    for key in part:
        if key not in allowed:
            raise UserError(f"a part of data.mixture has no field '{key}'{did_you_mean(key, allowed)}")
    for key in ("path", "weight"):
        if part.get(key) is None:
            raise UserError(f'a part of data.mixture lacks its "{key}": {dict(part)}')
    options = _with_own_gap(shared, {k: value for k, value in part.items() if k not in (*LOCATION, "name", "weight")})
    splits = {key: data.get(key) or key.removeprefix("split_") for key in ("split_train", "split_val")}
    return part.get("name") or _name(part), part["weight"], {**splits, **part}, options


def _with_own_gap(options: Mapping, part: Mapping) -> dict:
    """The values of a part before others; its own gap in seconds also before another gap in frames, which would win."""
    cleared = {"gap_frames": None} if "gap_seconds" in part and "gap_frames" not in part else {}
    return {**options, **cleared, **part}


def _open(kind: type, location: Mapping, split: str, options: Mapping, statistics: Mapping | None):
    allowed = [field.name for field in dataclasses.fields(kind)]
    for key in options:
        if key not in allowed:
            of = kind.__module__.rpartition(".")[2]
            hint = did_you_mean(key, [*allowed, *LOCATION, *GENERAL])
            raise UserError(f"config.data has no field '{key}' for samples of kind '{of}'{hint}")
    path, name = _where(location, split)
    options = dict(options)
    if split == "val" and location.get("val_path") and "labels" in allowed:
        # Labels belong to one folder, and another validation folder has its own.
        options["labels"] = location.get("val_labels")
    chosen = kind(**{key: _plain(value) for key, value in options.items()})
    if split == "val" and "tasks_val" in allowed:
        chosen = dataclasses.replace(chosen, tasks=chosen.tasks_val)
    if split == "val" and chosen.scaled_decoding:
        # Figures do not depend on how training reads.
        chosen = dataclasses.replace(chosen, scaled_decoding=False)
    if split == "val" and PAIR_ACTION in chosen.fields and chosen.action_share:
        # A few actions are learned from; all that there are judge what came of it.
        chosen = dataclasses.replace(chosen, action_share=1.0)
    if PairShards.is_one(path):
        if set(chosen.fields) - {"frames", PAIR_ACTION}:
            raise UserError(f"{path} holds ready-made pairs: they have frames only, not {', '.join(chosen.fields)}")
        return PairShards(path, name, chosen.image_size, chosen.fields, chosen.scaled_decoding)
    return chosen.open(StepShards(path, name), statistics)


def _plain(value):
    """Values of configs as options keep them."""
    if isinstance(value, (list, tuple)):
        return tuple(value)
    return dict(value) if hasattr(value, "items") else value


def _pick(statistics: Mapping[str, Mapping] | None, name: str | None, options: Mapping) -> Mapping | None:
    """The statistics of a dataset; the only ones where there is one dataset, whatever it is called today."""
    if statistics is None:
        return None
    if name in statistics or len(statistics) == 1:
        return statistics.get(name) or next(iter(statistics.values()))
    for column in (PAIR_ACTION, "action"):
        scaled = [each for each in statistics.values() if column in each]
        if column in options.get("fields", ()) and len(scaled) == 1:
            # Held-out samples of a mixture in which one data set has actions that are learned from.
            return scaled[0]
    if options.get("normalize", "none") == "none":
        return None
    raise UserError(f"normalisation needs the statistics of one of {', '.join(statistics)}; '{name or 'val_path'}' is "
                    "none of them: evaluate on the parts of the mixture")  # fmt: skip


def _name(location: Mapping) -> str | None:
    """What a dataset is called: its folder."""
    return pathlib.Path(dataset_folder(location["path"])).resolve().name if location.get("path") else None


def _where(location: Mapping, split: str) -> tuple[str, str]:
    """(folder, name of the split in it)."""
    path = location.get("path")
    if split == "val" and location.get("val_path"):
        path = location.get("val_path")
    if not path:
        raise UserError("config.data.path is not set: give a folder of step shards, --config.data.path=FOLDER")
    return str(dataset_folder(path)), str(location.get(f"split_{split}") or split)
