"""What models are given to see: checks, and bringing it to the size that they were trained with, as in training."""

import warnings
from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images


def model_images(
    values, name: str, lead: tuple[int, ...], cameras: int, side: int, trained=None, dataset: str | None = None
) -> np.ndarray:
    """Images as a model takes them, resized as in training.

    Args:
      values: uint8 [*lead, (V,) H, W, 3], any H and W. name: for messages. lead: sizes of the first axes.
      cameras: V; with 1 there is no such axis. side: of the result, in pixels.
      trained, dataset: see `resized`.

    Returns:
      uint8 [*lead, (V,) side, side, 3].

    Raises:
      UserError: another type or shape; see also `resized`.
    """
    values = np.asarray(values)
    views = (cameras,) if cameras > 1 else ()
    axes = len(lead) + len(views)
    fits = values.ndim == axes + 3 and values.shape[-1] == 3 and values.shape[len(lead) : axes] == views
    if values.dtype != np.uint8 or not fits or 0 in values.shape:
        shape = ", ".join([*("N" for _ in lead), *map(str, views), "H", "W", "3"])
        raise UserError(f"{name} is {values.dtype} {values.shape}; uint8 [{shape}] is expected")
    check_lead(values, name, lead)
    return resized(values, name, side, trained, dataset)


def resized(values: np.ndarray, name: str, side: int, trained=None, dataset: str | None = None) -> np.ndarray:
    """Images uint8 [..., H, W, 3] as uint8 [..., side, side, 3], squashed or cropped as those of a dataset were.

    Args:
      values: the images. name: for messages. side: in pixels.
      trained: the `TrainedModel`, whose `datasets` and `config` say how; None: nothing is known.
      dataset: as whose images they are resized; None: as those of any, where all became square in the same way.

    Raises:
      UserError: the dataset is unknown, or not given although datasets were resized in different ways.
    """
    height, width = values.shape[-3:-1]
    mode = trained.config.get("data", {}).get("resize") if trained else None
    if height == width == side and images.keeps_size(mode):
        return values
    # Squashing and cropping do the same to an image that is square already.
    stored = None if height == width else _stored_mode(trained, dataset, mode, f"{name} is {width} x {height} pixels")
    flat = values.reshape(-1, *values.shape[-3:])
    small = [images.to_side(one, side, stored, mode) for one in flat]
    return np.stack(small).reshape(*values.shape[:-3], side, side, 3)


def _stored_mode(trained, dataset: str | None, mode: str | None, what: str) -> str | None:
    """How the images of a dataset became square; None where it does not say."""
    datasets = trained.datasets if trained else {}
    if dataset is not None and dataset not in datasets:
        raise UserError(f"unknown dataset '{dataset}'; this model was trained on: {', '.join(datasets) or 'none'}")
    chosen = datasets if dataset is None else {dataset: datasets[dataset]}
    modes = {key: images.stored_mode(entry.get("features") or {}) for key, entry in chosen.items()}
    if len(set(modes.values())) > 1:
        list_of_modes = ", ".join(f"{key}: {stored or 'not named'}" for key, stored in modes.items())
        raise UserError(f"{what}, and those of the datasets of this model became square in different ways "
                        f"({list_of_modes}); say whose images these are with dataset=...")  # fmt: skip
    stored = next(iter(modes.values()), None)
    if stored is None and mode is None:
        warnings.warn(f"{what} and is squashed to a square: the data that this model was trained on do not say "
                      "whether theirs were squashed or cropped", stacklevel=4)  # fmt: skip
    return stored


def chosen_dataset(datasets: Mapping[str, Mapping], name: str | None) -> str | None:
    """The name of the dataset whose units are meant: the given one, or the only one there is; None: unknown."""
    if name is None and len(datasets) > 1:
        raise UserError("this model was trained on several datasets, each with its own scaling; say whose units are "
                        f"meant with dataset=... (--dataset; one of {', '.join(datasets)})")  # fmt: skip
    if name is not None and name not in datasets:
        raise UserError(f"unknown dataset '{name}'; this model was trained on: {', '.join(datasets) or 'none'}")
    return name or next(iter(datasets), None)


def check_lead(values: np.ndarray, name: str, lead: tuple[int, ...]) -> None:
    """Refuses values whose first axes have other sizes than `lead`."""
    if values.shape[: len(lead)] != lead:
        raise UserError(f"{name} has shape {values.shape}; {lead[0]} rows are expected")
