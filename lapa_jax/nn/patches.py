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


def to_patches(frames: jax.Array, patch_size: int) -> jax.Array:
    """[..., H, W, C] -> [..., H/p * W/p, C*p*p], patches in row-major order."""
    sides = {"p": patch_size, "q": patch_size}
    return einops.rearrange(frames, "... (rows p) (columns q) c -> ... (rows columns) (c p q)", **sides)


def from_patches(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """[..., rows*columns, C*p*p] -> [..., rows*p, columns*p, C]; the inverse of `to_patches`."""
    sides = {"rows": grid[0], "columns": grid[1], "p": patch_size, "q": patch_size}
    return einops.rearrange(patches, "... (rows columns) (c p q) -> ... (rows p) (columns q) c", **sides)
