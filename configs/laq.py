"""LAQ: discrete latent actions from frame pairs of unlabelled video (LAPA, stage 1).

Without a variant: the paper's sizes and optimizer (LAPA, arXiv 2410.11758, and its released training script). Trained
from scratch it may collapse to few codes, or compress images instead of saying what happens (a small one trained in
the plain way on the push-table: R² near 0.1, docs/results/results.md): take `recommended`.

  features     DINOv2's features of the frames instead of their pixels, on both sides (as in UniVLA, arXiv 2505.06111);
               weights by tools/import_weights.py, as init_from.tower
  own_features `small` on features of a tower of your own, at 64 px: a run of configs/mae.py:small, as init_from.tower
  cosine       the optimizer of most later work: AdamW, warm-up, cosine decay, batches of 256
  recommended  codes that say how things move, where camera and background stand still; with each of the sizes
  actions      the codes must tell the actions of a few episodes besides, data.action_share of them
  consistency  the codes say how learned features of the frames change, instead of their pixels
  small        a model and recipe that two CPU cores train in minutes; set data.path and the gap
  tiny         the same on the embedded sample
  test         the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def paper() -> ml_collections.ConfigDict:
    """The published recipe: 344 M parameters, Adam at a constant 1e-4, 100,000 steps of 64 pairs."""
    config = ml_collections.ConfigDict()
    config.name = "laq"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.laq"
    config.model.image_size = 256
    config.model.patch_size = 32
    config.model.dim = 1024
    config.model.quant_dim = 32
    config.model.codebook_size = 8
    config.model.code_seq_len = 4
    config.model.spatial_depth = 8
    config.model.temporal_depth = 8
    config.model.decoder_depth = 8
    config.model.heads = 16
    config.model.dim_head = 64
    config.model.layout = "fixed"
    config.model.stem = "patches"
    config.model.decoder_context = "patch_embedding"
    config.model.view_shift = 0
    config.model.view_share = 0.5
    config.model.view_deltas = False
    config.model.consistency = "none"
    config.model.pooling = "conv"
    config.model.quantizer = "nsvq"
    config.model.codebook_update = "ema"
    config.model.codebook_decay = 0.99
    config.model.levels = ()
    config.model.codebook_init = "normal"
    config.model.delta_norm = "none"
    config.model.replacement = "official"
    config.model.replacement_schedule = ((100, 10), (1000, 100), (5000, 500))
    config.model.output = "linear"
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.loss = common.frame_pair_losses()
    config.data = common.frame_pair_data(config)
    config.optim = common.adam(1e-4, b2=0.99, clip_norm=0.5)
    config.train = common.training(steps=100_000, batch_size=64, eval_batch_size=64, every=2500,
                                   best_metric="val/swap_gap")  # fmt: skip
    config.mesh = common.mesh(data=1, fsdp=-1)
    return config


def cosine(config: ml_collections.ConfigDict) -> None:
    """AdamW with warm-up and cosine decay, large batches."""
    config.optim.update({"schedule": "cosine", "warmup_steps": 1000, "final_learning_rate": 1e-6, "b2": 0.999,
                         "weight_decay": 0.01, "clip_norm": 1.0})  # fmt: skip
    config.train.batch_size = 256


def features(config: ml_collections.ConfigDict) -> None:
    """DINOv2 large at 224 px, 256 patches, frozen; the encoder and decoder are those of the paper's size."""
    _features_of(config, 224, common.dinov2_large("bfloat16", layer=-1))
    config.model.dtype = "bfloat16"
    config.optim.frozen_dtype = "bfloat16"


def own_features(config: ml_collections.ConfigDict) -> None:
    """The same tokenizer as `small`, of 64 patches, over the tower that configs/mae.py:small learned."""
    small(config)
    _features_of(config, 64, common.small_tower())


def _features_of(config: ml_collections.ConfigDict, image_size: int, tower: ml_collections.ConfigDict) -> None:
    """Features of a frozen tower in the place of pixels."""
    config.init_from = ml_collections.ConfigDict({"tower": config_dict.placeholder(str)})
    config.model.update({"image_size": image_size, "patch_size": tower.patch, "stem": "patches", "target": "features",
                         "output": "residual"})  # fmt: skip
    config.model.tower = tower
    if config.model.view_shift:
        config.model.view_shift = image_size // 4
    # Those left out compare pixels.
    for name in ("motion", "coarse"):
        del config.loss[name]
    config.optim.groups = (("tower/.*", None), (".*", {}))


def recommended(config: ml_collections.ConfigDict) -> None:
    """The recommended parts, and convolutions in front of both stacks: with linear patches it learns what moves
    more slowly (docs/results/latent_actions.md, "The transformer")."""
    common.recommended(config)
    # Each code sees the whole image.
    config.model.update({"decoder_context": "own", "pooling": "maps"})
    if "tower" not in config.model:  # whose features have no stem
        config.model.stem = "conv"


def small(config: ml_collections.ConfigDict) -> None:
    """One million parameters at 32 px; what each departure from the paper buys stands in docs/results/results.md."""
    common.frame_pairs_at_32_pixels(config)
    config.model.update({"patch_size": 8, "dim": 128, "heads": 4, "dim_head": 32, "spatial_depth": 2,
                         "temporal_depth": 1, "decoder_depth": 2})  # fmt: skip
    # Each code sees the whole image.
    config.model.pooling = "maps"
    if not config.loss.view:  # see common.recommended
        # Codes that are in use from the first step on: deltas of unit size, codes among them.
        config.model.update({"quant_dim": 4, "delta_norm": "running", "codebook_init": "data"})
    config.model.update({"replacement": "share", "replacement_schedule": ((800, 20),)})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 1000, "eval_every": 500, "save_every": 500})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample that comes with the package, for a few minutes."""
    small(config)
    config.data.update({"path": "sample", "gap_frames": 3})
    config.model.update({"view_share": 0.5, "replacement_schedule": ((600, 20),)})
    config.train.update({"steps": 800, "eval_every": 200, "save_every": 200})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block a stack, one view and random codes to begin with, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"dim": 32, "heads": 2, "dim_head": 16, "spatial_depth": 1, "decoder_depth": 1,
                         "view_shift": 0, "codebook_init": "normal", "replacement_schedule": ((4, 2),)})  # fmt: skip


VARIANTS = {"features": features, "own_features": own_features, "cosine": cosine, "recommended": recommended,
            "actions": common.few_actions, "consistency": common.consistency, "small": small, "tiny": tiny,
            "test": test}  # fmt: skip
ONE_OF = (("features", "own_features", *common.SIZES), ("features", "consistency"), ("own_features", "consistency"))
"""The features are those of images of 224 or 64 pixels, the sizes have 32; only images can be recoloured."""


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(paper(), variants, VARIANTS, ONE_OF)
