"""Stage 2: a vision-language model that predicts the latent action of a picture and an instruction.

Without a variant: the plan's recipe (SigLIP so400m and DINOv2 large, frozen; Llama-2 7B; AdamW at 1e-5 with a cosine to
1e-6, effective batch 4096 as 64 micro-batches). Resolved where the plan is in doubt:

  - 224 pixels are 256 tokens from both towers (the plan counts 576, which is 336 pixels: set data.image_size)
  - towers give the features before their last block, as OpenVLA takes them
  - instructions in OpenVLA's words; "bytes" stands for the tokenizer until data.text_tokenizer names Llama's

Weights come from tools/import_weights.py, as init_from.siglip, init_from.dinov2 and init_from.llm.

  lapa        the paper's schedule: 2e-5 constant, batch 256, 70,000 steps, codes one after the other
  1b          a decoder of the size of TinyLlama, 1.1 B parameters
  tiny        small towers and decoder from scratch on bytes, on the sample and its labels; two CPU cores, minutes
  small       tiny with convolutions that see the instruction in place of the towers, 64 pixels: learns faster
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant
from lapa_jax.models.llama import MESH_RULES


def plan() -> ml_collections.ConfigDict:
    """The plan's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "vla_latent"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({part: config_dict.placeholder(str)
                                                  for part in ("siglip", "dinov2", "llm")})  # fmt: skip

    config.model = ml_collections.ConfigDict()
    config.model.name = "policies.vla"
    config.model.dtype = "bfloat16"
    dtype = config.model.get_ref("dtype")
    config.model.siglip = ml_collections.ConfigDict({
        "name": "vision.siglip", "image_size": 224, "patch": 14, "dim": 1152, "depth": 27, "heads": 16, "hidden": 4304,
        "layer": -2, "dtype": dtype, "remat": "none",
    })  # fmt: skip
    config.model.dinov2 = ml_collections.ConfigDict({
        "name": "vision.dinov2", "image_size": 518, "patch": 14, "dim": 1024, "depth": 24, "heads": 16, "hidden": 4096,
        "registers": 4, "layer": -2, "dtype": dtype, "remat": "none",
    })  # fmt: skip
    config.model.llm = ml_collections.ConfigDict({
        "name": "llama", "vocab": 32000, "dim": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "hidden": 11008,
        "rotary": 10000.0, "eps": 1e-5, "head": "none", "flash": False, "dtype": dtype, "remat": "full",
    })  # fmt: skip
    config.model.vision = config_dict.placeholder(ml_collections.ConfigDict)
    config.model.cameras = 1
    config.model.projection = "layernorm"
    config.model.image_attention = "causal"
    config.model.code_length = 4
    config.model.codebook_size = 8
    config.model.decode = "parallel"
    config.model.lora_rank = 0
    config.model.lora_alpha = 16.0
    config.model.lora_modules = "llm/decoder/layers/.*"

    config.loss = ml_collections.ConfigDict({"latent": 1.0})

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.labels = config_dict.placeholder(str)
    config.data.labels_tokenizer = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.val_labels = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.samples = "steps"
    config.data.fields = ("image", "text", "latent")
    config.data.camera = "image"
    config.data.image_size = 224
    config.data.text_tokenizer = ml_collections.ConfigDict({"name": "bytes", "template": "openvla"})
    config.data.text_length = 192
    config.data.augment = config_dict.placeholder(object)
    config.data.eval_examples = 4096
    config.data.shuffle = "full"
    config.data.window = 16384
    config.data.threads = 8
    config.data.workers = 0
    config.data.prefetch = 16
    config.data.max_bad_samples = 0
    config.model.image_size = config.data.get_ref("image_size")
    config.model.text_length = config.data.get_ref("text_length")

    config.optim = ml_collections.ConfigDict()
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 2000
    config.optim.final_learning_rate = 1e-6
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.optim.groups = (("(siglip|dinov2)/.*", None), (".*", {}))
    config.optim.frozen_dtype = "bfloat16"
    config.optim.ema_decay = config_dict.placeholder(float)

    config.train = ml_collections.ConfigDict()
    config.train.steps = 20_000
    config.train.batch_size = 4096
    config.train.micro_batches = 64
    config.train.eval_batch_size = 64
    config.train.log_every = 10
    config.train.eval_every = 1000
    config.train.save_every = 1000
    config.train.keep_last = 5
    config.train.best_metric = "val/latent_accuracy"
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "rules": MESH_RULES})
    return config


def lapa(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The paper's schedule and decoding (Ye et al. 2024), on this model."""
    config.name = "vla_latent_lapa"
    config.model.decode = "autoregressive"
    config.optim.update({"learning_rate": 2e-5, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0})
    config.train.update({"steps": 70_000, "batch_size": 256, "micro_batches": 4})
    return config


def one_billion(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Decoder of TinyLlama's shape, with grouped queries."""
    config.name = "vla_latent_1b"
    config.model.llm.update({"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "hidden": 5632})
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Everything small and trained from scratch, on pictures of 56 pixels: 16 patches."""
    config.name = "vla_latent_tiny"
    config.model.dtype = "float32"
    config.model.siglip.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144})
    config.model.dinov2.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144, "registers": 0})
    with config.ignore_type():
        config.model.llm.vocab = config_dict.placeholder(int)
    config.model.llm.update({"dim": 96, "depth": 3, "heads": 4, "kv_heads": 2, "hidden": 256, "remat": "none"})
    config.data.update({"path": "sample", "labels": "sample_latents", "image_size": 56, "text_length": 64, "threads": 2,
                        "eval_examples": 1024})  # fmt: skip
    config.data.text_tokenizer.template = "plain"
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 100, "final_learning_rate": 1e-5,
                         "groups": ((".*", {}),), "frozen_dtype": "float32"})  # fmt: skip
    config.train.update({"steps": 1500, "batch_size": 32, "micro_batches": 1, "log_every": 50, "eval_every": 500,
                         "save_every": 500, "keep_last": 2})  # fmt: skip
    config.mesh.update({"data": -1, "fsdp": 1})
    return config


def small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`tiny` with one tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels."""
    config = tiny(config)
    config.name = "vla_latent_small"
    with config.ignore_type():
        config.model.siglip = config.model.dinov2 = None
        config.model.vision = ml_collections.ConfigDict({"name": "vision.film_conv", "widths": (24, 48, 64),
                                                         "condition": 128, "tokens": 8, "dim": 64})  # fmt: skip
    config.model.llm.update({"dim": 64, "depth": 2, "hidden": 160})
    config.data.image_size = 64
    return config


VARIANTS = {"": lambda config: config, "lapa": lapa, "1b": one_billion, "tiny": tiny, "small": small}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(plan())
