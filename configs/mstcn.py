"""MS-TCN: two-level discrete codes of action sequences (subclusters and clusters), one pair per step.

Without a variant: the sizes of the plan for in-context imitation (128 subclusters, 32 clusters, windows of 10 steps,
two stages of width 512, decay 0.8, AdamW at 1e-4), with what does not work there set right:

  - 4 layers a stage for 10: in a window of 10 steps the other 6 would see nothing but padding
  - a dead code is one with under a tenth of the mean use, N / K, for at least 20 steps: the plan's absolute
    thresholds of 3 and 1 would replace every code at every step of a batch of 16 windows
  - codes start as k-means centres of the first batch's embeddings
  - the decoder reads z, the finer code; from q alone, 5 bits a step, it could not rebuild 7 numbers
  - reconstruction has the weight 1 and dominates (HVQ has 0.002, to cluster video features): a tokenizer must decode

  small       a model and recipe that a CPU core trains in minutes; set data.path
  lift        the same for robomimic's Lift as keyboards record it: longer windows, few codes
  tiny        the small recipe on the embedded sample
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant


def plan() -> ml_collections.ConfigDict:
    """The plan's sizes, mended."""
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

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.mixture = config_dict.placeholder(object)
    config.data.samples = "chunks"
    config.data.fields = ("action",)
    config.data.chunk_length = config.model.get_ref("context")
    config.data.normalize = "q01_q99"
    config.data.eval_examples = 2048
    config.data.shuffle = "full"
    config.data.window = 16384
    config.data.threads = 2
    config.data.workers = 0
    config.data.prefetch = 16
    config.data.max_bad_samples = 0

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.final_learning_rate = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 1e-4
    config.optim.clip_norm = 1.0
    config.optim.groups = ((".*", {}),)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 20_000
    config.train.batch_size = 128
    config.train.micro_batches = 1
    config.train.eval_batch_size = 128
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.save_every = 1000
    config.train.keep_last = 2
    config.train.best_metric = "val/r2"
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "rules": ()})
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A model of 0.2 M parameters, 128 and 32 codes of 32 numbers."""
    config.name = "mstcn_small"
    config.model.update({"embed_dim": 32, "width": 48, "decay": 0.95})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 2000, "batch_size": 64, "eval_every": 500, "save_every": 500})
    return config


def lift(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` with a second of context and 16 codes: two demonstrations by keyboard have ten different actions, and
    three quarters of their steps stand still."""
    config = small(config)
    config.name = "mstcn_lift"
    config.model.update({"context": 20, "subclusters": 16, "clusters": 4, "dead_share": 0.3, "decay": 0.98})
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` on the sample that comes with the package, with fewer codes: it has few steps."""
    config = small(config)
    config.name = "mstcn_tiny"
    config.data.path = "sample"
    config.model.update({"subclusters": 48, "clusters": 12})
    config.train.update({"steps": 600, "eval_every": 200, "save_every": 200})
    return config


VARIANTS = {"": lambda config: config, "small": small, "lift": lift, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(plan())
