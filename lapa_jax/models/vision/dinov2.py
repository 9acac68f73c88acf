"""DINOv2 (Oquab et al. 2023), by default the large one with patches of 14 pixels and positions for 518; with registers
(Darcet et al. 2023) where `registers` says how many, 4 in the released models."""

from typing import ClassVar

from lapa_jax.core.fields import Count
from lapa_jax.models import base
from lapa_jax.nn.vit import VisionTower


class Model(VisionTower, base.Part):
    """Features of patches, 1024 each by default; class token and registers are dropped. Fields: `VisionTower`."""

    image_size: Count = 518
    patch: Count = 14
    dim: Count = 1024
    depth: Count = 24
    heads: Count = 16
    hidden: Count = 4096

    MEAN: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    STD: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    GELU_KIND: ClassVar[str] = "exact"
    LAYER_SCALE: ClassVar[bool] = True
    CLASS_TOKEN: ClassVar[bool] = True
