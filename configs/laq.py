"""LAQ: discrete latent actions from frame pairs of unlabelled video (LAPA, stage 1).

Without a variant: the paper's sizes and optimizer (LAPA, arXiv 2410.11758, and its released training script).

  features    DINOv2's features of the frames instead of their pixels, on both sides (as in UniVLA, arXiv 2505.06111);
              weights by tools/import_weights.py, as init_from.tower
  cosine      the optimizer of most later work: AdamW, warm-up, cosine decay, batches of 256
  small       a model and recipe that two CPU cores train in minutes; set data.path and the gap
  tiny        the same on the embedded sample
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
    config.model.layout = "fixed"
    config.model.decoder_context = "patch_embedding"
    config.model.view_shift = 0
    config.model.view_share = 0.5
    config.model.pooling = "conv"
    config.model.quantizer = "nsvq"
    config.model.codebook_update = "ema"
    config.model.codebook_decay = 0.99
    config.model.levels = ()
    config.model.codebook_init = "normal"
    config.model.delta_norm = "none"
    config.model.replacement = "official"
    config.model.replacement_schedule = ((100, 10), (1000, 100), (5000, 500))
    config.model.output = "linear"
    config.model.dtype = "float32"
    config.model.remat = "none"

    # Weights of the named losses; the paper's is the first alone. NSVQ has none of the last two, which are then 0.
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
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "rules": ()})
    return config


def cosine(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """AdamW with warm-up and cosine decay, large batches."""
    config.name = "laq_cosine"
    config.optim.update({"schedule": "cosine", "warmup_steps": 1000, "final_learning_rate": 1e-6, "b2": 0.999,
                         "weight_decay": 0.01, "clip_norm": 1.0})  # fmt: skip
    config.train.batch_size = 256
    return config


def features(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """DINOv2 large at 224 px, 256 patches, frozen; the encoder and decoder are those of the paper's size."""
    config.name = "laq_features"
    config.init_from = ml_collections.ConfigDict({"tower": config_dict.placeholder(str)})
    config.model.update({"image_size": 224, "patch_size": 14, "target": "features", "output": "residual"})
    config.model.dtype = "bfloat16"
    config.model.tower = ml_collections.ConfigDict({
        "name": "vision.dinov2", "image_size": 518, "patch": 14, "dim": 1024, "depth": 24, "heads": 16, "hidden": 4096,
        "registers": 4, "layer": -1, "dtype": "bfloat16", "remat": "none",
    })  # fmt: skip
    # Those left out compare pixels.
    del config.loss.motion, config.loss.coarse
    config.optim.groups = (("tower/.*", None), (".*", {}))
    config.optim.frozen_dtype = "bfloat16"
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """One million parameters at 32 px; what each departure from the paper buys stands in docs/results/results.md."""
    config.name = "laq_small"
    config.model.update({"image_size": 32, "patch_size": 8, "dim": 128, "heads": 4, "dim_head": 32, "quant_dim": 4,
                         "spatial_depth": 2, "temporal_depth": 1, "decoder_depth": 2})  # fmt: skip
    # Codes that say how things move: each sees the whole picture, and they serve the pair and a shifted copy of it.
    config.model.update({"pooling": "maps", "view_shift": 8, "view_share": 0.7})
    # Codes that are in use from the first step on: deltas of unit size, codes among them.
    config.model.update({"delta_norm": "running", "codebook_init": "data", "output": "residual"})
    config.model.update({"replacement": "share", "replacement_schedule": ((800, 20),)})
    # Small moving things in a busy scene: plain squared error hardly sees them.
    config.loss.update({"motion": 0.1, "coarse": 0.1})
    config.data.update({"augment": {"flip": 0.5}, "threads": 2, "prefetch": 4})
    config.optim.update({"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 50,
                         "final_learning_rate": 1e-4})  # fmt: skip
    config.train.update({"steps": 1000, "batch_size": 32, "eval_every": 500, "save_every": 500})
    config.mesh.update({"data": -1, "fsdp": 1})
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`small` on the sample that comes with the package, for a few minutes."""
    config = small(config)
    config.name = "laq_tiny"
    config.data.update({"path": "sample", "gap_frames": 3})
    config.model.update({"view_share": 0.5, "replacement_schedule": ((600, 20),)})
    config.train.update({"steps": 800, "eval_every": 200, "save_every": 200})
    return config


VARIANTS = {"": lambda config: config, "features": features, "cosine": cosine, "small": small, "tiny": tiny}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(paper())
