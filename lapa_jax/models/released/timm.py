"""Vision transformers with timm's names of tensors, as timm's files and everything of Prismatic's family have them.

Sizes are read off the tensors. How many heads share a width stands in no file: it follows from the model's name. timm
0.9.10, which Prismatic, OpenVLA and UniVLA pin, gives SigLIP the exact GELU, although it was trained with the tanh
approximation, and is what these models were trained and are run with.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean
from lapa_jax.models.released.base import Place, patches_kernel, same, without_batch
from lapa_jax.nn.vit import resize_positions

HEADS = {
    "vit_small_patch14_dinov2": 6, "vit_small_patch14_reg4_dinov2": 6,
    "vit_base_patch14_dinov2": 12, "vit_base_patch14_reg4_dinov2": 12,
    "vit_large_patch14_dinov2": 16, "vit_large_patch14_reg4_dinov2": 16,
    "vit_base_patch16_siglip_224": 12, "vit_base_patch16_siglip_256": 12, "vit_base_patch16_siglip_384": 12,
    "vit_base_patch16_siglip_512": 12, "vit_large_patch16_siglip_256": 16, "vit_large_patch16_siglip_384": 16,
    "vit_so400m_patch14_siglip_224": 16, "vit_so400m_patch14_siglip_384": 16,
}  # fmt: skip
"""{timm's name without the part behind the dot, which says what it was trained on: heads}."""

MEANS = {"dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}
"""{kind: (mean, standard deviation) of the channels of its images}."""

BLOCK = {"norm1": "attention_norm", "norm2": "feedforward_norm", "attn.proj": "attention/out", "mlp.fc1": "up",
         "mlp.fc2": "down"}  # fmt: skip
UNUSED = r"norm\..*|fc_norm\..*|attn_pool\..*|head\..*|mask_token"
"""What stands behind the blocks, of which the second-to-last one's features are taken."""


class Tower(NamedTuple):
    """kind: "dinov2" or "siglip". spec, places, unused: as of `base.Release`, without prefixes."""

    kind: str
    spec: dict
    places: dict[str, tuple[Place, ...]]
    unused: str


def kind_of(timm_id: str) -> str:
    """Which of our towers a model of timm is, "dinov2" or "siglip"; `UserError` for others."""
    name = timm_id.partition(".")[0]
    if name not in HEADS:
        raise UserError(f"the vision tower '{timm_id}' cannot be imported{did_you_mean(name, HEADS)}")
    return "siglip" if "siglip" in name else "dinov2"


def tower(
    timm_id: str, shapes: Mapping[str, tuple[int, ...]], image_size: int | None = None, heads: int | None = None
) -> Tower:  # fmt: skip
    """Plans a tower that gives the features of its second-to-last block.

    Args:
      timm_id: timm's name. shapes: {name: shape} of its tensors, without prefix.
      image_size: of the images that it will see. Positions of another grid are resampled to theirs once and for all,
        as timm does on loading (bicubic, antialiased). None: the positions are of the right grid.
      heads: None for those that the name stands for.

    Raises:
      UserError: an unknown name, or tensors that sizes cannot be read off.
    """
    kind = kind_of(timm_id)
    depth = 1 + max((int(m[1]) for n in shapes if (m := re.match(r"blocks\.(\d+)\.", n))), default=-1)
    dim, _, patch, _ = _shape(shapes, "patch_embed.proj.weight", 4, timm_id)
    hidden = _shape(shapes, "blocks.0.mlp.fc1.bias", 1, timm_id)[0]
    rows = _shape(shapes, "pos_embed", 3, timm_id)[1]
    with_class = int(kind == "dinov2" and math.isqrt(rows) ** 2 != rows)  # a position of the class token comes first
    side = math.isqrt(rows - with_class)
    grid = side if image_size is None else image_size // patch
    if side**2 + with_class != rows:
        raise UserError(f"pos_embed of '{timm_id}' has {rows} positions, which are no square grid")
    spec = {
        "name": f"vision.{kind}", "image_size": grid * patch, "patch": patch, "dim": dim, "depth": depth,
        "heads": HEADS[timm_id.partition(".")[0]] if heads is None else heads, "hidden": hidden, "eps": 1e-6,
        "layer": -2, "gelu": "exact",
    }  # fmt: skip
    places = {
        "patch_embed.proj.weight": (Place("embed/kernel", patches_kernel),),
        "patch_embed.proj.bias": (Place("embed/bias", same),),
        "pos_embed": (Place("positions", functools.partial(_positions, kind, with_class, grid)),),
    }
    if kind == "dinov2":
        spec["registers"] = shapes["reg_token"][1] if "reg_token" in shapes else 0
        places["cls_token"] = (Place("class_token", without_batch),)
        if spec["registers"]:
            places["reg_token"] = (Place("registers", without_batch),)
    # transformers renames every "gamma" on loading, so OpenVLA's port has another name for what timm calls so
    scale = "scale_factor" if any(name.endswith(".scale_factor") for name in shapes) else "gamma"
    for layer in range(depth - 1):
        places |= block(f"blocks.{layer}", layer, scale if kind == "dinov2" else None)
    return Tower(kind, spec, places, rf"{UNUSED}|blocks\.{depth - 1}\..*")


def block(name: str, layer: int, scale: str | None) -> dict[str, tuple[Place, ...]]:
    """The places of the block `name`, as layer `layer`. scale: what its factors of layer scale are called, if any."""
    places = {}
    for theirs, ours in BLOCK.items():
        weight = (f"{ours}/scale", same) if ours.endswith("norm") else (f"{ours}/kernel", np.transpose)
        places[f"{name}.{theirs}.weight"] = (Place(f"layers/{weight[0]}", weight[1], layer),)
        places[f"{name}.{theirs}.bias"] = (Place(f"layers/{ours}/bias", same, layer),)
    for what, change in (("weight", np.transpose), ("bias", same)):
        places[f"{name}.attn.qkv.{what}"] = tuple(
            Place(f"layers/attention/{ours}/{'kernel' if what == 'weight' else what}",
                  functools.partial(_third, number, change), layer)
            for number, ours in enumerate(("query", "key", "value"))
        )  # fmt: skip
    if scale is not None:
        for number, ours in ((1, "attention_scale"), (2, "feedforward_scale")):
            places[f"{name}.ls{number}.{scale}"] = (Place(f"layers/{ours}", same, layer),)
    return places


def _third(number: int, change, x: np.ndarray) -> np.ndarray:
    """Queries, keys or values of a tensor that holds all three, one below the other."""
    return change(np.split(x, 3)[number])


def _positions(kind: str, with_class: int, grid: int, x: np.ndarray) -> np.ndarray:
    """[1, N, D] as our table: for DINOv2 behind a row for the class token, which is zeros where it has none of its own
    (timm adds it to the token itself when it converts the file)."""
    first, patches = x[0, :with_class], x[0, with_class:]
    if len(patches) != grid**2:
        patches = np.asarray(resize_positions(jnp.asarray(patches), (grid, grid), antialias=True))
    if kind == "dinov2" and not with_class:
        first = np.zeros((1, x.shape[-1]), np.float32)
    return np.concatenate([first, patches])


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, axes: int, timm_id: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"a tensor that every '{timm_id}' has is missing: {name}")
    if len(shapes[name]) != axes:
        raise UserError(f"{name} of '{timm_id}' has shape {shapes[name]}; {axes} axes are expected")
    return shapes[name]
