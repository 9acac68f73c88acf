"""What policies are given to see: checks, and bringing it to the size that they were trained with."""

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data import images


def pictures(
    values, name: str, lead: tuple[int, ...], cameras: int, side: int, mode: str = "squash"
) -> np.ndarray:  # fmt: skip
    """Pictures as a model takes them, resized as in training.

    Args:
      values: uint8 [*lead, (V,) H, W, 3], any H and W. name: for messages. lead: sizes of the first axes.
      cameras: V; with 1 there is no such axis. side: of the result, in pixels. mode: see `images.resize`.

    Returns:
      uint8 [*lead, (V,) side, side, 3].

    Raises:
      UserError: another type or shape.
    """
    values = np.asarray(values)
    views = (cameras,) if cameras > 1 else ()
    axes = len(lead) + len(views)
    fits = values.ndim == axes + 3 and values.shape[-1] == 3 and values.shape[len(lead) : axes] == views
    if values.dtype != np.uint8 or not fits or 0 in values.shape:
        shape = ", ".join([*("N" for _ in lead), *map(str, views), "H", "W", "3"])
        raise UserError(f"{name} is {values.dtype} {values.shape}; uint8 [{shape}] is expected")
    check_lead(values, name, lead)
    if values.shape[-3:-1] == (side, side):
        return values
    flat = values.reshape(-1, *values.shape[-3:])
    return np.stack([images.resize(one, side, mode) for one in flat]).reshape(*values.shape[:-3], side, side, 3)


def check_lead(values: np.ndarray, name: str, lead: tuple[int, ...]) -> None:
    """Refuses values whose first axes have other sizes than `lead`."""
    if values.shape[: len(lead)] != lead:
        raise UserError(f"{name} has shape {values.shape}; {lead[0]} rows are expected")
