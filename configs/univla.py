"""UniVLA's latent action model (Bu et al. 2025, arXiv:2505.06111), its second stage: codes of the task and codes of the
background, over DINOv2's features of a pair of frames.

Without a variant: the released model's sizes and recipe. It begins with DINOv2 base (config.init_from.tower, from
tools/import_weights.py dinov2 --layer -1), or, with `released`, with the released latent action model.

  released    continues a run that tools/import_weights.py univla_lam wrote, whose background codes stay as they are
  tiny        a small tower and blocks from scratch, on the embedded sample
  test        the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def published() -> ml_collections.ConfigDict:
    """Sizes, losses and optimizer of the released model's second stage."""
    config = ml_collections.ConfigDict()
    config.name = "univla"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"tower": config_dict.placeholder(str)})

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.univla"
    config.model.image_size = 224
    config.model.dtype = "bfloat16"
    config.model.tower = common.dinov2_large(config.model.get_ref("dtype"), layer=-1)
    config.model.tower.update({"dim": 768, "depth": 12, "heads": 12, "hidden": 3072})
    config.model.update({"dim": 768, "heads": 12, "encoder_depth": 12, "decoder_depth": 12, "quant_dim": 128,
                         "code_seq_len": 4, "codebook_size": 16, "background_size": 16, "remat": "none"})  # fmt: skip

    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0, "codebook": 0.25, "commitment": 1.0,
                                             "background_codebook": 0.25, "background_commitment": 1.0})  # fmt: skip
    config.data = common.frame_pair_data(config)
    config.data.gap_seconds = 1.0
    config.optim = common.adam(1e-4, weight_decay=0.01)
    config.optim.groups = (("tower/.*", None), (".*", {}))
    config.train = common.training(steps=100_000, batch_size=512, eval_batch_size=64, every=2500,
                                   best_metric="val/swap_gap")  # fmt: skip
    config.mesh = common.mesh(data=1, fsdp=-1)
    return config


def released(config: ml_collections.ConfigDict) -> None:
    """From the released model: besides DINOv2 the background's codebook is frozen, as in the authors' second stage."""
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.optim.groups = (("(tower|background)/.*", None), (".*", {}))


def tiny(config: ml_collections.ConfigDict) -> None:
    """Two blocks each and a random tower, 28 pixels: four patches."""
    config.init_from = ml_collections.ConfigDict({})
    config.model.update({"image_size": 28, "dtype": "float32", "dim": 32, "heads": 2, "encoder_depth": 2,
                         "decoder_depth": 2, "quant_dim": 8, "codebook_size": 8, "background_size": 8})  # fmt: skip
    config.model.tower.update({"image_size": 28, "patch": 7, "dim": 32, "depth": 1, "heads": 2, "hidden": 64,
                               "registers": 0})  # fmt: skip
    config.data.update({"path": "sample", "threads": 2, "prefetch": 4, "eval_examples": 1024})
    # a random tower cannot be frozen; no gradient reaches it, and without decay it stays as it was drawn
    config.optim.update({"learning_rate": 1e-3, "groups": (("tower/.*", {"weight_decay": 0.0}), (".*", {}))})
    config.train.update({"steps": 1500, "batch_size": 32, "log_every": 50, "eval_every": 500, "save_every": 500})
    config.mesh.update({"data": -1, "fsdp": 1})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block each, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"encoder_depth": 1, "decoder_depth": 1})


VARIANTS = {"released": released, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(("released", "tiny", "test"),))
