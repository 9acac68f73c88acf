"""Convolutional LAQ: discrete latent actions by a VQ-VAE of strided and transposed convolutions.

Without a variant: the sizes of the specification (224 px, channels 64 to 512, codes of width 256, AdamW with warm-up
and cosine decay), with what cannot work in it put right: the decoder knows the first frame, pixels are linear in
[0, 1] (tanh cannot reach ImageNet-normalised targets), the commitment weight enters once, codes follow the data as
moving averages or by gradient and never both, all positions share one codebook (one each is an option), and frames are
flipped in pairs but never erased.

  recommended codes that say how things move, where camera and background stand still; with each of the sizes
  actions     the codes must tell the actions of a few episodes besides, data.action_share of them
  consistency the codes say how learned features of the frames change, instead of their pixels
  small       a model and recipe that two CPU cores train in minutes; set data.path and the gap
  tiny        the same on the embedded sample
  test        the smallest that still has every part, for tests
"""

import ml_collections

from lapa_jax.core.config import with_variants

from . import common


def full() -> ml_collections.ConfigDict:
    """The specification's sizes and optimizer."""
    config = ml_collections.ConfigDict()
    config.name = "laq_conv"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.laq_conv"
    config.model.image_size = 224
    config.model.channels = (64, 128, 256, 512)
    config.model.blocks = 2
    config.model.groups = 32
    config.model.embed = 512
    config.model.pooling = "projection"
    config.model.quant_dim = 256
    config.model.codebook_size = 8
    config.model.code_seq_len = 4
    config.model.quantizer = "vq"
    config.model.codebook_update = "ema"
    config.model.codebook_decay = 0.99
    config.model.codebook_per_position = False
    config.model.levels = ()
    config.model.codebook_init = "data"
    config.model.delta_norm = "running"
    config.model.replacement = "share"
    config.model.replacement_min_share = 0.01
    config.model.view_shift = 0
    config.model.view_share = 0.5
    config.model.view_deltas = False
    config.model.consistency = "none"
    config.model.output = "linear"
    config.model.dtype = "float32"

    config.loss = common.frame_pair_losses()
    config.data = common.frame_pair_data(config)
    config.optim = common.adam(1e-4, schedule="cosine", warmup_steps=1000, final_learning_rate=1e-6,
                               weight_decay=0.01)  # fmt: skip
    config.train = common.training(steps=100_000, batch_size=256, eval_batch_size=64, every=2500,
                                   best_metric="val/swap_gap")  # fmt: skip
    config.mesh = common.mesh(data=1, fsdp=-1)
    return config


def small(config: ml_collections.ConfigDict) -> None:
    """Four hundred thousand parameters at 32 px; docs/results/results.md has what comes out."""
    common.frame_pairs_at_32_pixels(config)
    config.model.update({"channels": (16, 32, 64), "blocks": 1, "groups": 8, "embed": 64})
    if not config.loss.view:  # see common.recommended
        # Narrow codes: eight of them cover a plane, and what one position rounds off another one can tell.
        config.model.quant_dim = 2
    config.loss.commitment = common.COMMITMENT
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 50, "final_learning_rate": 1e-4, "weight_decay": 0.0})
    config.train.update({"steps": 400, "eval_every": 200, "save_every": 200})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample that comes with the package, for a few minutes."""
    small(config)
    config.data.update({"path": "sample", "gap_frames": 3})
    config.model.view_share = 0.5


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with two halvings, one view and random codes to begin with, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"channels": (8, 16), "groups": 4, "embed": 16, "view_shift": 0, "codebook_init": "normal"})


VARIANTS = {"recommended": common.recommended, "actions": common.few_actions, "consistency": common.consistency,
            "small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(full(), variants, VARIANTS, one_of=(common.SIZES,))
