"""LAQ: discrete latent actions from frame pairs of unlabelled video (LAPA, stage 1).

Without a variant: the paper's sizes and optimizer (LAPA, arXiv 2410.11758, and its released training script).

  tiny        learns on the embedded sample in minutes on two CPU cores
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant


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

    # Weights of the named losses; the paper's is the first alone.
    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0, "motion": 0.0, "coarse": 0.0})

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.image_size = config.model.get_ref("image_size")
    config.data.gap_seconds = 0.6
    config.data.gap_frames = config_dict.placeholder(int)
    config.data.augment = config_dict.placeholder(object)
    config.data.eval_examples = 2048
    config.data.threads = 8
    config.data.prefetch = 16

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 0
    config.optim.final_learning_rate = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.99
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 0.5
    config.optim.groups = ((".*", {}),)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 100_000
    config.train.batch_size = 64
    config.train.micro_batches = 1
    config.train.eval_batch_size = 64
    config.train.log_every = 50
    config.train.eval_every = 2500
    config.train.save_every = 2500
    config.train.keep_last = 2
    config.train.best_metric = "val/swap_gap"
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "rules": ()})
    return config


def cpu(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A model that two CPU cores can train."""
    config.model.update({"image_size": 64, "patch_size": 16, "dim": 128, "heads": 4, "dim_head": 32,
                         "spatial_depth": 2, "temporal_depth": 2, "decoder_depth": 2})  # fmt: skip
    config.optim.learning_rate = 1e-3
    config.train.update({"steps": 1500, "batch_size": 32, "eval_every": 500, "save_every": 500})
    config.data.update({"threads": 2, "prefetch": 4})
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Minutes on two cores, on the sample that comes with the package."""
    cpu(config).data.path = "sample"
    config.name = "laq_tiny"
    return config


VARIANTS = {"": lambda config: config, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(paper())
