"""From a config to a source of samples: what training and the launchers call."""

from collections.abc import Mapping, Sequence

from lapa_jax.core.errors import UserError
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.samples.pairs import FramePairs, Gap
from lapa_jax.data.shards import StepShards, dataset_folder, read_dataset
from lapa_jax.data.transforms import Augment, check_augment


def build(data: Mapping, split: str, *, image_size: int | None = None, fields: Sequence[str] = ("frames",)):
    """The source of frame pairs of `config.data`.

    Args:
      data: with "path", "gap_seconds" or "gap_frames", and optionally "image_size", "val_path", "split_train",
        "split_val".
      split: "train" or "val". For "val", `val_path` (another folder) and `split_val` apply where they are set.
      image_size: side in pixels that the model takes; `data.image_size` where None.
      fields: see `FramePairs`; "net_action" needs data with actions, see `has_actions`.

    Returns:
      `FramePairs` over step shards, or `PairShards` for a folder of ready-made pairs.
    """
    path, name = _where(data, split)
    size = image_size or data.get("image_size")
    if PairShards.is_one(path):
        if tuple(fields) != ("frames",):
            raise UserError(f"{path} holds ready-made pairs: they have frames only, not {tuple(fields)}")
        return PairShards(path, name, size)
    shards = StepShards(path, name)
    gap = Gap.from_config(data.get("gap_seconds"), data.get("gap_frames"))
    return FramePairs(shards, gap, fields, size)


def has_actions(data: Mapping, split: str) -> bool:
    """Whether the folder behind `split` stores actions."""
    path, _ = _where(data, split)
    return not PairShards.is_one(path) and "action" in read_dataset(path)["features"]


def meta(source) -> dict:
    """What a checkpoint keeps of its training data: statistics, features, fingerprint, frame rate and gap in frames."""
    return source.meta()


def augmentation(data: Mapping, source, *, texts_used: bool) -> Augment | None:
    """The augmentation of `config.data.augment`, checked against the data; None where it is off."""
    augment = Augment.from_config(data.get("augment"))
    instructions = source.shards.instructions() if texts_used and hasattr(source, "shards") else ()
    check_augment(augment, texts_used, instructions, getattr(source, "fields", ()))
    return augment


def _where(data: Mapping, split: str) -> tuple[str, str]:
    if split not in ("train", "val"):
        raise UserError(f"split '{split}' is not 'train' or 'val'")
    path = data.get("path")
    if split == "val" and data.get("val_path"):
        path = data.get("val_path")
    if not path:
        raise UserError("config.data.path is not set: give a folder of step shards, --config.data.path=FOLDER")
    return str(dataset_folder(path)), str(data.get(f"split_{split}") or split)
