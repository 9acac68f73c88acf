"""Feature tokenizer: discovered categories of features x three levels of codes.

Without a variant: the production values of the specification. It counts epochs; here everything counts steps, and an
epoch is the 49 batches of 1024 of its larger data set (50,000 rows): 410 epochs are 20,090 steps, an evaluation every 5
epochs is one every 245 steps, and a patience of 250 epochs is one of 50 evaluations. For other data multiply by
rows / 50,000.

  small       a recipe that one CPU core trains in a few minutes; set data.path, and data.fields=('state',) for robots
  tiny        the same on planted features that come with the package
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant


def production() -> ml_collections.ConfigDict:
    """The specification's sizes, weights and optimizer."""
    config = ml_collections.ConfigDict()
    config.name = "feature_vq"
    config.seed = 0

    config.model = ml_collections.ConfigDict()
    config.model.name = "tokenizers.feature_vq"
    config.model.feature_dim = config_dict.placeholder(int)
    config.model.groups = config_dict.placeholder(object)
    config.model.latent_dims = config_dict.placeholder(object)
    config.model.codebook_sizes = config_dict.placeholder(object)
    config.model.compression_ratios = "0.5:1:1.5"
    config.model.num_categories = config_dict.placeholder(int)
    config.model.max_clusters = 50
    config.model.min_features = 3
    config.model.discovery_rows = 20_000
    config.model.orthogonality_target = 0.25
    config.model.hidden_dim = 256
    config.model.embedding_dim = 126
    config.model.decoder_dim = 256
    config.model.partial_dim = 128
    config.model.dropout = 0.1
    config.model.clip = 10.0
    config.model.ema_decay = 0.995
    config.model.dead_share = 0.1
    config.model.dead_age = 10_000
    config.model.topo_samples = 1024

    config.loss = ml_collections.ConfigDict()
    config.loss.update({"reconstruction": 1.0, "commitment": 0.5, "orthogonality": 0.1, "informativeness": 0.1,
                        "topographic": 0.45})  # fmt: skip

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.mixture = config_dict.placeholder(object)
    config.data.samples = "steps"
    config.data.fields = ("feature",)
    config.data.normalize = "none"
    config.data.eval_examples = 4096
    config.data.shuffle = "full"
    config.data.window = 16384
    config.data.threads = 4
    config.data.workers = 0
    config.data.prefetch = 16
    config.data.max_bad_samples = 0

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 7e-4
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.final_learning_rate = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.optim.groups = ((".*", {}),)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 20_090
    config.train.batch_size = 1024
    config.train.micro_batches = 1
    config.train.eval_batch_size = 1024
    config.train.log_every = 49
    config.train.eval_every = 245
    config.train.save_every = 245
    config.train.keep_last = 2
    config.train.best_metric = "val/composite"
    config.train.patience = 50
    config.train.min_delta = 0.001
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "rules": ()})
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Smaller batches, a faster schedule, codebooks that follow it."""
    config.name = "feature_vq_small"
    config.model.update({"ema_decay": 0.98, "dead_share": 0.3, "dead_age": 50, "topo_samples": 96})
    config.data.update({"threads": 2, "prefetch": 4, "eval_examples": 2048})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 2000, "batch_size": 256, "eval_batch_size": 256, "log_every": 50, "eval_every": 250,
                         "save_every": 250, "patience": None})  # fmt: skip
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` on the embedded planted features, for a minute."""
    config = small(config)
    config.name = "feature_vq_tiny"
    config.model.update({"hidden_dim": 64, "decoder_dim": 128, "partial_dim": 64, "topo_samples": 64})
    config.data.path = "sample_features"
    config.train.update({"steps": 600, "batch_size": 128, "eval_batch_size": 128, "eval_every": 100,
                         "save_every": 100})  # fmt: skip
    return config


VARIANTS = {"": lambda config: config, "small": small, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(production())
