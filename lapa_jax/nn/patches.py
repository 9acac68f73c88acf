"""Frames to patches and back. The features of a patch are ordered channel, row, column, as in official weights."""

import einops
import jax

from lapa_jax.core.errors import UserError


def patch_grid(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The grid (rows, columns) of square patches of an image (height, width).

    Raises:
      UserError: the patch size does not divide both sides; the message names the nearest sizes that work.
    """
    if any(side % patch_size for side in image_size):
        near = [max(1, round(side / patch_size)) * patch_size for side in image_size]
        both = [p for p in range(1, min(image_size) + 1) if not any(side % p for side in image_size)]
        raise UserError(
            f"patch_size {patch_size} does not divide the image of {image_size[0]}x{image_size[1]} pixels; use an "
            f"image_size of {near[0]}x{near[1]} or a patch_size among {', '.join(map(str, both))}"
        )
    return image_size[0] // patch_size, image_size[1] // patch_size


def whole_patches(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """The same of any image that holds a patch, as a convolution without padding counts them.

    What is left over at the right and at the bottom is seen by no patch: 384 pixels are 27 patches of 14, and 6 pixels
    of border. For what only looks at images; what predicts them needs `patch_grid`.

    Raises:
      UserError: the image is smaller than a patch.
    """
    if min(image_size) < patch_size:
        raise UserError(f"an image of {image_size[0]}x{image_size[1]} pixels is smaller than a patch of {patch_size}; "
                        f"use an image_size of at least {patch_size}")  # fmt: skip
    return image_size[0] // patch_size, image_size[1] // patch_size


def to_patches(frames: jax.Array, patch_size: int) -> jax.Array:
    """[..., H, W, C] -> [..., H//p * W//p, C*p*p], the `whole_patches` in row-major order."""
    rows, columns = whole_patches(frames.shape[-3:-1], patch_size)
    whole = frames[..., : rows * patch_size, : columns * patch_size, :]
    sides = {"p": patch_size, "q": patch_size}
    return einops.rearrange(whole, "... (rows p) (columns q) c -> ... (rows columns) (c p q)", **sides)


def from_patches(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """[..., rows*columns, C*p*p] -> [..., rows*p, columns*p, C]; the inverse of `to_patches`, without its border."""
    sides = {"rows": grid[0], "columns": grid[1], "p": patch_size, "q": patch_size}
    return einops.rearrange(patches, "... (rows columns) (c p q) -> ... (rows p) (columns q) c", **sides)
