"""The vision tower of SigLIP (Zhai et al. 2023), by default so400m with patches of 14 pixels, positions for 224."""

from typing import ClassVar

from lapa_jax.core.fields import Count
from lapa_jax.models import base
from lapa_jax.nn.vit import VisionTower


class Model(VisionTower, base.Part):
    """Features of patches, 1152 each by default; without the pooling head and the text tower. Fields: `VisionTower`."""

    image_size: Count = 224
    patch: Count = 14
    dim: Count = 1152
    depth: Count = 27
    heads: Count = 16
    hidden: Count = 4304

    MEAN: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    STD: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    GELU_KIND: ClassVar[str] = "tanh"
    LAYER_SCALE: ClassVar[bool] = False
    CLASS_TOKEN: ClassVar[bool] = False
