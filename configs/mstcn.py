"""MS-TCN: two-level discrete codes of action sequences (subclusters and clusters), one pair per step.

Without a variant: the specification's sizes for in-context imitation (128 subclusters, 32 clusters, windows of 10
steps, two stages of width 512, decay 0.8, AdamW at 1e-4), with what does not work there set right:

  - 4 layers a stage for 10: in a window of 10 steps the other 6 would see nothing but padding
  - a dead code is one with under a tenth of the mean use, N / K, for at least 20 steps: the specification's absolute
    thresholds of 3 and 1 would replace every code at every step of a batch of 16 windows
  - codes start as k-means centres of the first batch's embeddings
  - the decoder reads z, the finer code; from q alone, 5 bits a step, it could not rebuild 7 numbers
  - reconstruction has the weight 1 and dominates (HVQ has 0.002, to cluster video features): a tokenizer must decode

  small       a model and recipe that a CPU core trains in minutes; set data.path
  lift        the same for robomimic's Lift as keyboards record it: longer windows, few codes
  tiny        the small recipe on the embedded sample
  test        the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def published() -> ml_collections.ConfigDict:
    """The specification's sizes, mended."""
    config = ml_collections.ConfigDict()
    config.name = "mstcn"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.mstcn"
    config.model.action_dim = config_dict.placeholder(int)
    config.model.state_dim = config_dict.placeholder(int)
    config.model.context = 10
    config.model.embed_dim = 512
    config.model.width = 512
    config.model.layers = 4
    config.model.stages = 2
    config.model.causal = False
    config.model.dropout = 0.0
    config.model.subclusters = 128
    config.model.clusters = 32
    config.model.decoder_input = "z"
    config.model.decay = 0.8
    config.model.dead_share = 0.1
    config.model.dead_age = 20
    config.model.codebook_init = "data"
    config.model.dtype = "float32"

    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0, "commitment_z": 0.02, "commitment_q": 0.0})

    config.data = common.data("chunks", fields=("action",), chunk_length=config.model.get_ref("context"),
                              normalize="q01_q99", threads=2)  # fmt: skip
    config.optim = common.adam(1e-4, weight_decay=1e-4)
    config.train = common.training(steps=20_000, batch_size=128, eval_batch_size=128, every=1000, best_metric="val/r2")
    config.mesh = common.mesh(data=-1, fsdp=1)
    return config


def small(config: ml_collections.ConfigDict) -> None:
    """A model of 0.2 M parameters, 128 and 32 codes of 32 numbers."""
    config.model.update({"embed_dim": 32, "width": 48, "decay": 0.95})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 2000, "batch_size": 64, "eval_every": 500, "save_every": 500})


def lift(config: ml_collections.ConfigDict) -> None:
    """`small` with a second of context and 16 codes: two demonstrations by keyboard have ten different actions, and
    three quarters of their steps stand still."""
    small(config)
    config.model.update({"context": 20, "subclusters": 16, "clusters": 4, "dead_share": 0.3, "decay": 0.98})


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the sample that comes with the package, with fewer codes: it has few steps."""
    small(config)
    config.data.path = "sample"
    config.model.update({"subclusters": 48, "clusters": 12})
    config.train.update({"steps": 600, "eval_every": 200, "save_every": 200})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with two layers a stage and random codes to begin with, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"embed_dim": 16, "width": 16, "layers": 2, "subclusters": 12, "clusters": 4,
                         "codebook_init": "normal"})  # fmt: skip


VARIANTS = {"small": small, "lift": lift, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(("lift", *common.SIZES),))
