"""Convolutional LAQ: discrete latent actions by a VQ-VAE of strided and transposed convolutions.

Without a variant: the sizes of the specification (224 px, channels 64 to 512, codes of width 256, AdamW with warm-up
and cosine decay), with what cannot work in it put right: the decoder knows the first frame, pixels are linear in
[0, 1] (tanh cannot reach ImageNet-normalised targets), the commitment weight enters once, codes follow the data as
moving averages or by gradient and never both, all positions share one codebook (one each is an option), and frames are
flipped in pairs but never erased.

  small       a model and recipe that two CPU cores train in minutes; set data.path and the gap
  tiny        the same on the embedded sample
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant


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
    config.model.output = "linear"
    config.model.dtype = "float32"

    config.loss = ml_collections.ConfigDict({"reconstruction": 1.0, "motion": 0.0, "coarse": 0.0,
                                             "codebook": 1.0, "commitment": 0.25})  # fmt: skip

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.mixture = config_dict.placeholder(object)
    config.data.samples = "pairs"
    config.data.camera = "image"
    config.data.image_size = config.model.get_ref("image_size")
    config.data.gap_seconds = 0.6
    config.data.gap_frames = config_dict.placeholder(int)
    config.data.augment = config_dict.placeholder(object)
    config.data.eval_examples = 2048
    config.data.shuffle = "full"
    config.data.window = 16384
    config.data.threads = 8
    config.data.workers = 0
    config.data.prefetch = 16
    config.data.max_bad_samples = 0

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 1000
    config.optim.final_learning_rate = 1e-6
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.optim.groups = ((".*", {}),)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 100_000
    config.train.batch_size = 256
    config.train.micro_batches = 1
    config.train.eval_batch_size = 64
    config.train.log_every = 50
    config.train.eval_every = 2500
    config.train.save_every = 2500
    config.train.keep_last = 2
    config.train.best_metric = "val/swap_gap"
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "rules": ()})
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Four hundred thousand parameters at 32 px; docs/results/results.md has what comes out."""
    config.name = "laq_conv_small"
    config.model.update({"image_size": 32, "channels": (16, 32, 64), "blocks": 1, "groups": 8, "embed": 64})
    # Narrow codes: eight of them cover a plane, and what one position rounds off another one can tell.
    config.model.update({"quant_dim": 2})
    # Codes that say how things move: they serve the pair and a shifted copy of it.
    config.model.update({"view_shift": 8, "view_share": 0.7, "output": "residual"})
    # Small moving things in a busy scene: plain squared error hardly sees them.
    config.loss.update({"motion": 0.1, "coarse": 0.1})
    # Deltas of unit size, next to which the errors of pixels are small: with 0.25 they say nothing but a code's number.
    config.loss.update({"commitment": 0.005})
    config.data.update({"augment": {"flip": 0.5}, "threads": 2, "prefetch": 4})
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 50, "final_learning_rate": 1e-4, "weight_decay": 0.0})
    config.train.update({"steps": 400, "batch_size": 32, "eval_every": 200, "save_every": 200})
    config.mesh.update({"data": -1, "fsdp": 1})
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` on the sample that comes with the package, for a few minutes."""
    config = small(config)
    config.name = "laq_conv_tiny"
    config.data.update({"path": "sample", "gap_frames": 3})
    config.model.update({"view_share": 0.5})
    return config


VARIANTS = {"": lambda config: config, "small": small, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(full())
