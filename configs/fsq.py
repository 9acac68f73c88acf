"""FSQ: chunks of actions as a few codes, by a transformer auto-encoder with finite scalar quantisation.

Without a variant: the specification's sizes (width 512, 6 layers in each half, levels 9 9 9 9, 20,000 steps of 256
chunks).
What the specification leaves open was decided so:

  - chunks of 16 steps become 8 codes, 101 bits; model.tokens and model.levels trade error for bits
  - actions are scaled by their percentiles, q01..q99 to -1..1, and the statistics stay with the run
  - the reconstruction is judged by its squared error: with the absolute one, as in QueST, the same training ends with
    a mean square that is 1.7 times as large, and a mean only 7 % smaller (Meta-World); grippers by cross-entropy
  - encoding trusts the encoder; "small" also searches, see below
  - AdamW at 3e-4, warm-up over 500 steps, cosine decay

  small       a model and recipe that one CPU core trains in minutes; set data.path
  tiny        the same on the embedded sample
  test        the smallest that still has every part, for tests

Several data sets: data.mixture in place of data.path, each part with a name; validation tells them apart.
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def published() -> ml_collections.ConfigDict:
    """The specification's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "fsq"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.fsq"
    config.model.action_dim = config_dict.placeholder(int)
    config.model.grippers = config_dict.placeholder(object)
    config.model.chunk_length = 16
    config.model.tokens = 8
    config.model.levels = (9, 9, 9, 9)
    config.model.patch = 1
    config.model.dim = 512
    config.model.encoder_depth = 6
    config.model.decoder_depth = 6
    config.model.heads = 8
    config.model.dim_head = 64
    config.model.error = "squared"
    config.model.search = 0
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0, "gripper": 0.1})

    config.data = common.data("chunks", fields=("action",), chunk_length=config.model.get_ref("chunk_length"),
                              normalize="q01_q99", threads=2)  # fmt: skip
    config.optim = common.adam(3e-4, schedule="cosine", warmup_steps=500, final_learning_rate=1e-6, b2=0.99,
                               weight_decay=1e-4)  # fmt: skip
    config.train = common.training(steps=20_000, batch_size=256, eval_batch_size=256, every=1000,
                                   best_metric="val/action_r2")  # fmt: skip
    config.mesh = common.mesh(data=-1, fsdp=1)
    return config


def small(config: ml_collections.ConfigDict) -> None:
    """Half a million parameters; four steps are one token of the transformers, so that sequences are short.

    An encoder that has seen little data is a worse judge of what its decoder will make of a code than the decoder
    itself: two sweeps over the codes' features lower the squared error of held-out chunks by a third and more.
    """
    config.model.update({"tokens": 4, "levels": (8, 5, 5, 5), "patch": 4, "dim": 96, "encoder_depth": 2,
                         "decoder_depth": 2, "heads": 3, "dim_head": 32, "search": 2})  # fmt: skip
    config.optim.update({"learning_rate": 3e-3, "warmup_steps": 50, "final_learning_rate": 6e-5, "weight_decay": 0.0})
    config.train.update({"steps": 4000, "batch_size": 64, "eval_every": 1000, "save_every": 1000})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample that comes with the package."""
    small(config)
    config.data.path = "sample"
    config.model.update({"chunk_length": 8, "tokens": 2})
    config.train.update({"steps": 1000, "eval_every": 250, "save_every": 250})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block a half and one sweep of the search, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"dim": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2, "dim_head": 16, "search": 1})


VARIANTS = {"small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(common.SIZES,))
