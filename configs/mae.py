"""A masked autoencoder: a vision tower from your own video, for a tokenizer of features (He et al. 2021, arXiv
2111.06377). A run of it is the config.init_from.tower of configs/laq.py:own_features.

Without a variant: ViT-Base at 224 px and the published recipe, on frame pairs, of which both frames count.

  small       a tower of 0.8 million parameters at 64 px that a CPU core trains in minutes; set data.path and the gap
  tiny        the same on the embedded sample
  test        the smallest that still has every part, for tests
"""

import ml_collections

from lapa_jax.core.config import with_variants

from . import common


def paper() -> ml_collections.ConfigDict:
    """The published sizes and optimizer, in batches of 1024 images."""
    config = ml_collections.ConfigDict()
    config.name = "mae"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "vision.mae"
    config.model.image_size = 224
    config.model.dtype = "bfloat16"
    config.model.tower = common.plain_tower(config.model.get_ref("dtype"), image_size=224, patch=16, dim=768, depth=12)
    config.model.update({"mask_ratio": 0.75, "decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16,
                         "remat": "none"})  # fmt: skip

    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0})
    config.data = common.frame_pair_data(config)
    config.data.augment = {"crop_area": 0.5, "flip": 0.5}
    # 1.5e-4 for each 256 images, of which a pair has two
    config.optim = common.adam(6e-4, b2=0.95, schedule="cosine", warmup_steps=5000, weight_decay=0.05)
    config.train = common.training(steps=100_000, batch_size=512, eval_batch_size=64, every=2500,
                                   best_metric="val/masked_r2")  # fmt: skip
    config.mesh = common.mesh(data=1, fsdp=-1)
    return config


def small(config: ml_collections.ConfigDict) -> None:
    """64 patches of 8 pixels: on what is small in the image a patch of 16 pixels would have little to say."""
    config.model.update({"image_size": 64, "dtype": "float32", "decoder_dim": 64, "decoder_depth": 2,
                         "decoder_heads": 4})  # fmt: skip
    config.model.tower = common.small_tower()
    config.data.update({"threads": 2, "prefetch": 4})
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 100})
    config.train.update({"steps": 2000, "batch_size": 64, "eval_every": 500, "save_every": 500})
    config.mesh.update({"data": -1, "fsdp": 1})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample that comes with the package."""
    small(config)
    config.data.update({"path": "sample", "gap_frames": 3})
    config.train.update({"steps": 800, "eval_every": 200, "save_every": 200})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block on either side, 32 pixels, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"image_size": 32, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2})
    config.model.tower.update({"image_size": 32, "dim": 16, "depth": 1, "heads": 2, "hidden": 32})


VARIANTS = {"small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(paper(), variants, VARIANTS, (common.SIZES,))
