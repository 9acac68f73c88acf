"""The data of a training run: what it learns from, what it is judged by, and how its samples are varied."""

import dataclasses
from collections.abc import Mapping

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.data import pipeline, text
from lapa_jax.data.far_values import LIMIT
from lapa_jax.data.samples import pair_actions
from lapa_jax.data.samples.meta import statistics_of
from lapa_jax.data.samples.padded import as_wide_as
from lapa_jax.data.samples.pairs import TRAINING_ONLY
from lapa_jax.data.shards.step_shards import dataset_folder, read_dataset
from lapa_jax.data.transforms import Augment


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The opened data of a run.

    Attributes:
      train, validation: sources of samples (random access), alike in fields and shapes.
      augment: the random change of a training sample; None where there is none.
      meta: what a checkpoint must carry of the data: "data_fingerprint", and per dataset normalisation and features.
      notes: lines for the log.
      text_length: tokens that instructions are padded to where `data.text_length` is None and the data tell it.
    """

    train: object
    validation: object
    augment: Augment | None
    meta: Mapping
    notes: tuple[str, ...] = ()
    text_length: int | None = None


def check_folders(data: Mapping) -> None:
    """Refuses folders of `config.data` that do not exist, and a tokenizer of instructions that cannot be had, before
    jax is imported and anything is opened."""
    parts = [part for part in data.get("mixture") or () if hasattr(part, "get")]
    for part, names in [(data, ("val_path",) if parts else ("path", "val_path")), *((p, ("path",)) for p in parts)]:
        for name in names:
            if isinstance(part.get(name), str) and not dataset_folder(part[name]).exists():
                read_dataset(part[name])  # says so
    if data.get("text_tokenizer"):
        text.check_name(data["text_tokenizer"])


def open_training(data: Mapping, *, batch_size: int, saved: Mapping | None = None) -> TrainingData:
    """Opens `config.data` for a run, and refuses data that it cannot train on or cannot be judged by.

    Args:
      data: `config.data`. batch_size: of training, all devices together.
      saved: the metadata of the checkpoint that the run goes on from: numbers are scaled as they were then, and the
        data must still be the same. None for a new run.

    Raises:
      UserError: data that do not exist, have changed since the run began, have no usable statistics, or too few
        samples; held-out samples of another kind.
    """
    train = pipeline.build(data, "train", statistics=statistics_of(saved) if saved else None)
    notes = pipeline.check_trainable(train, data.get("max_normalized", LIMIT)) + pair_actions.describe(train)
    meta = train.meta()
    before = (saved or {}).get("data_fingerprint")
    if before is not None and meta["data_fingerprint"] != before:
        raise UserError(f"the data at {data.path} changed since this run began (fingerprint "
                        f"{meta['data_fingerprint'][:12]}, was {before[:12]}); restore it or start another run")
    if len(train) < batch_size:
        raise ConfigError(f"the training split has {len(train)} examples, fewer than one batch of {batch_size}; give "
                        "more data or a smaller config.train.batch_size")
    # Held-out samples are scaled by the statistics of training, or a policy would be judged in other units.
    fields = pipeline.eval_fields(data)
    validation = pipeline.build(data, "val", fields=fields, statistics=statistics_of(meta))
    text_length = _agree_on_texts(data, train, validation, notes)
    validation = _like_training(train, validation)
    return TrainingData(train, validation, pipeline.augmentation(data, train), meta, tuple(notes), text_length)


def _agree_on_texts(data: Mapping, train, validation, notes: list[str]) -> int | None:
    """Pads training and held-out instructions alike where the data say to which length; notes this length, or that
    most of a given one is padding."""
    (length, longest), (length_val, longest_val) = train.text_lengths, validation.text_lengths
    length, longest = max(length, length_val), max(longest, longest_val)
    if not length:
        return None
    if data.get("text_length", 0) is None:
        train.widen_texts(length)
        validation.widen_texts(length)
        notes.append(f"from the data: data.text_length = {length}; the longest instruction takes {longest} tokens")
        return length
    if length >= 2 * longest:
        notes.append(f"data.text_length={length}, and the longest instruction takes {longest} tokens: the rest is "
                     "padding, which costs as much; data.text_length=None takes what is needed")  # fmt: skip
    return None


def names_data(data: Mapping) -> bool:
    """Whether `config.data` says where data lie; a plan can do without."""
    return bool(data.get("path") or data.get("mixture"))


def _like_training(train, validation):
    """The held-out samples with rows as wide as those of a mixture; refused where the model could not take them."""
    train_batch = train.batch([])
    validation = as_wide_as(validation, {name: values.shape[1:] for name, values in train_batch.items()})
    batch = validation.batch([])
    for name in train_batch.keys() - {"dataset_id", *TRAINING_ONLY}:
        if name not in batch:
            raise ConfigError(f"the held-out samples lack '{name}', which those of training have; give other data")
        if train_batch[name].shape[1:] != batch[name].shape[1:]:
            raise ConfigError(f"'{name}' has shape {list(train_batch[name].shape[1:])} in training and "
                            f"{list(batch[name].shape[1:])} in the held-out data; evaluate on data of the same kind")
    made = [(getattr(source, "label_info", None) or {}).get("tokenizer") for source in (train, validation)]
    if None not in made and made[0] != made[1]:
        raise ConfigError(f"the held-out latents are of tokenizer {made[1][:12]}, those of training of {made[0][:12]}: "
                        "label both with one; codes of two tokenizers mean different things")
    return validation
