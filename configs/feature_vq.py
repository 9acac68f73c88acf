"""Feature tokenizer: discovered categories of features x three levels of codes.

Without a variant: the production values of the specification. It counts epochs; here everything counts steps, and an
epoch is the 49 batches of 1024 of its larger data set (50,000 rows): 410 epochs are 20,090 steps, an evaluation every 5
epochs is one every 245 steps, and a patience of 250 epochs is one of 50 evaluations. For other data multiply by
rows / 50,000.

  small       a recipe that one CPU core trains in a few minutes; set data.path, and data.fields=('state',) for robots
  tiny        the same on planted features that come with the package
  test        the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


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
    config.model.composite_loss = -1.0
    config.model.composite_topo_post = 0.5
    config.model.composite_quality = 0.5

    config.loss = ml_collections.ConfigDict()
    config.loss.update({"reconstruction": 1.0, "commitment": 0.5, "orthogonality": 0.1, "informativeness": 0.1,
                        "topographic": 0.45})  # fmt: skip

    config.data = common.data("steps", fields=("feature",), normalize="none", eval_examples=4096, threads=4)
    config.optim = common.adam(7e-4)
    config.train = common.training(steps=20_090, batch_size=1024, eval_batch_size=1024, every=245, log_every=49,
                                   best_metric="val/composite", patience=50, min_delta=0.001)  # fmt: skip
    config.mesh = common.mesh(data=-1, fsdp=1)
    return config


def small(config: ml_collections.ConfigDict) -> None:
    """Smaller batches, a faster schedule, codebooks that follow it."""
    config.model.update({"ema_decay": 0.98, "dead_share": 0.3, "dead_age": 50, "topo_samples": 96})
    config.data.update({"threads": 2, "prefetch": 4, "eval_examples": 2048})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 2000, "batch_size": 256, "eval_batch_size": 256, "log_every": 50, "eval_every": 250,
                         "save_every": 250, "patience": None})  # fmt: skip


def tiny(config: ml_collections.ConfigDict) -> None:
    """`small` on the embedded planted features, for a minute."""
    small(config)
    config.model.update({"hidden_dim": 64, "decoder_dim": 128, "partial_dim": 64, "topo_samples": 64})
    config.data.path = "sample_features"
    config.train.update({"steps": 600, "batch_size": 128, "eval_batch_size": 128, "eval_every": 100,
                         "save_every": 100})  # fmt: skip


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with a few hundred rows to find categories from and narrow networks, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.update({"hidden_dim": 16, "embedding_dim": 16, "decoder_dim": 16, "partial_dim": 16,
                         "topo_samples": 8, "discovery_rows": 400, "max_clusters": 2})  # fmt: skip


VARIANTS = {"small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(production(), variants, VARIANTS, one_of=(common.SIZES,))
