"""FSQ: chunks of actions as a few codes, by a transformer auto-encoder with finite scalar quantisation.

Without a variant: the sizes of the plan (width 512, 6 layers in each half, levels 9 9 9 9, 20,000 steps of 256 chunks).
What the plan leaves open was decided so:

  - chunks of 16 steps become 8 codes, 101 bits; model.tokens and model.levels trade error for bits
  - actions are scaled by their percentiles, q01..q99 to -1..1, and the statistics stay with the run
  - the reconstruction is judged by its squared error: with the absolute one, as in QueST, the same training ends with
    a mean square that is 1.7 times as large, and a mean only 7 % smaller (Meta-World); grippers by cross-entropy
  - encoding trusts the encoder; "small" also searches, see below
  - AdamW at 3e-4, warm-up over 500 steps, cosine decay

  small       a model and recipe that one CPU core trains in minutes; set data.path
  tiny        the same on the embedded sample

Several data sets: data.mixture in place of data.path, each part with a name; validation tells them apart.
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant


def plan() -> ml_collections.ConfigDict:
    """The plan's sizes."""
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

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.mixture = config_dict.placeholder(object)
    config.data.samples = "chunks"
    config.data.fields = ("action",)
    config.data.chunk_length = config.model.get_ref("chunk_length")
    config.data.normalize = "q01_q99"
    config.data.eval_examples = 2048
    config.data.shuffle = "full"
    config.data.window = 16384
    config.data.threads = 2
    config.data.workers = 0
    config.data.prefetch = 16
    config.data.max_bad_samples = 0

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 3e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 500
    config.optim.final_learning_rate = 1e-6
    config.optim.b1 = 0.9
    config.optim.b2 = 0.99
    config.optim.eps = 1e-8
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.groups = ((".*", {}),)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 20_000
    config.train.batch_size = 256
    config.train.micro_batches = 1
    config.train.eval_batch_size = 256
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.save_every = 1000
    config.train.keep_last = 2
    config.train.best_metric = "val/action_r2"
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "rules": ()})
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Half a million parameters; four steps are one token of the transformers, so that sequences are short.

    An encoder that has seen little data is a worse judge of what its decoder will make of a code than the decoder
    itself: two sweeps over the codes' features lower the squared error of held-out chunks by a third and more.
    """
    config.name = "fsq_small"
    config.model.update({"tokens": 4, "levels": (8, 5, 5, 5), "patch": 4, "dim": 96, "encoder_depth": 2,
                         "decoder_depth": 2, "heads": 3, "dim_head": 32, "search": 2})  # fmt: skip
    config.optim.update({"learning_rate": 3e-3, "warmup_steps": 50, "final_learning_rate": 6e-5, "weight_decay": 0.0})
    config.train.update({"steps": 4000, "batch_size": 64, "eval_every": 1000, "save_every": 1000})
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` on the sample that comes with the package."""
    config = small(config)
    config.name = "fsq_tiny"
    config.data.path = "sample"
    config.model.update({"chunk_length": 8, "tokens": 2})
    config.train.update({"steps": 1000, "eval_every": 250, "save_every": 250})
    return config


VARIANTS = {"": lambda config: config, "small": small, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(plan())
