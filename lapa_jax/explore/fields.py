"""What the page asks with: the fields of its requests, each checked before anything is computed."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError

MOST_ACTIONS = 32
"""Latent actions of one rollout: each is a run of the decoder, and what it predicts so far ahead is a blur."""
MOST_CHARACTERS = 1000
"""Of an instruction."""


def whole(fields: Mapping, name: str, end: int) -> int:
    """The field `name`, one of 0..end-1."""
    return _whole(fields.get(name), name, end)


def instruction(fields: Mapping) -> str:
    """The field "instruction"."""
    value = fields.get("instruction")
    if not isinstance(value, str):
        raise UserError("instruction must be a text")
    if len(value) > MOST_CHARACTERS:
        raise UserError(f"the instruction has {len(value)} characters; {MOST_CHARACTERS} are allowed")
    return value


def actions(fields: Mapping, length: int, size: int) -> list[list[int]]:
    """The field "actions": latent actions, each of `length` codes 0..size-1."""
    value = fields.get("actions")
    if not isinstance(value, list) or len(value) > MOST_ACTIONS:
        raise UserError(f"actions must be a list of at most {MOST_ACTIONS} latent actions")
    return [_codes(codes, length, size, open_positions=False) for codes in value]


def pattern(fields: Mapping, length: int, size: int) -> list[int | None]:
    """The field "codes": one code for each position, None where any code will do."""
    return _codes(fields.get("codes"), length, size, open_positions=True)


def _codes(value, length: int, size: int, open_positions: bool) -> list:
    if not isinstance(value, list) or len(value) != length:
        raise UserError(f"a latent action is a list of {length} codes")
    return [None if code is None and open_positions else _whole(code, "a code", size) for code in value]


def _whole(value, name: str, end: int) -> int:
    # In JSON true is no number; in Python it is 1.
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
        raise UserError(f"{name} is {str(value)[:40]}; give a whole number, 0 to {end - 1}")
    return value


def numbers(values: np.ndarray) -> list:
    """Numbers of any shape as JSON has them; what is not finite becomes null."""
    values = np.asarray(values, np.float64)
    return np.where(np.isfinite(values), values.astype(object), None).tolist()


def png(image: np.ndarray) -> bytes:
    """An image [H, W, 3], uint8 or float in [0, 1], as PNG."""
    from PIL import Image

    if image.dtype != np.uint8:
        image = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(image).save(data, "PNG")
    return data.getvalue()


def png_urls(images: Sequence[np.ndarray]) -> list[str]:
    """Images as addresses that hold them, for the page's <img>."""
    return [f"data:image/png;base64,{base64.b64encode(png(image)).decode()}" for image in images]
