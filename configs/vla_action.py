"""Stage 3: the model of stage 2, taught the actions of a robot by a few demonstrations.

Give the stage-2 run as the whole model that this one begins with, an empty name: --config.init_from.=runs/vla. Without
a variant head A, the plan's: 256 bins of each dimension, read off at one query.

  latent      head B: the latent action of stage 2, and a small decoder that also sees pictures and proprioception
  chunk       head C: chunks of eight actions by L1 regression
  tiny        small and from scratch on the embedded sample, or from a run of configs/vla_latent.py:tiny: head A;
              tiny_latent and tiny_chunk are the same with the heads B and C
  small       the same with convolutions that see the instruction in place of the towers, 64 pixels: learns in minutes
              what tiny does not; small_latent, small_chunk

Llama is trained in full; for LoRA set model.lora_rank and optim.groups as in docs/tutorials/stage2_vla.md, for the
head alone optim.groups=(("act/.*|action_queries|see_state/.*", {}), (".*", None)).
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import choose_variant
from lapa_jax.models.llama import MESH_RULES

# Of a stage-2 run the head of codes and its queries are not used, and what acts begins afresh.
SWAPPED = ("action_queries|act/.*|see_state/.*", "queries|code_embedding|codes_norm/.*|to_codes/.*")
# With the latent head both stay, and only what acts is new.
ADDED = ("act/.*|see_state/.*",)


def plan() -> ml_collections.ConfigDict:
    """The plan's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "vla_action"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.init_from_except = SWAPPED

    config.model = ml_collections.ConfigDict()
    config.model.name = "policies.vla_action"
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
    for taken_from_the_data in ("action_dim", "state_dim", "constant", "binary"):
        config.model[taken_from_the_data] = config_dict.placeholder(object)
    config.model.head = "bins"
    config.model.bins = 256
    config.model.bins_decode = "argmax"
    config.model.head_width = 1024
    config.model.head_heads = 8
    config.model.code_length = 4
    config.model.codebook_size = 8
    config.model.latent_context = True
    config.model.lora_rank = 0
    config.model.lora_alpha = 16.0
    config.model.lora_modules = "llm/decoder/layers/.*"

    config.loss = ml_collections.ConfigDict({"action": 1.0})

    config.data = ml_collections.ConfigDict()
    config.data.path = config_dict.placeholder(str)
    config.data.val_path = config_dict.placeholder(str)
    config.data.split_train = "train"
    config.data.split_val = "val"
    config.data.samples = "chunks"
    config.data.fields = ("image", "text", "action")
    config.data.chunk_length = 1
    config.data.normalize = "q01_q99"
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
    config.model.chunk_length = config.data.get_ref("chunk_length")

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
    config.train.steps = 5000
    config.train.batch_size = 128
    config.train.micro_batches = 2
    config.train.eval_batch_size = 64
    config.train.log_every = 10
    config.train.eval_every = 1000
    config.train.save_every = 1000
    config.train.keep_last = 5
    config.train.best_metric = "val/action_r2"
    config.train.patience = config_dict.placeholder(int)
    config.train.min_delta = 0.0
    config.train.tensorboard = True

    config.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "rules": MESH_RULES})
    return config


def latent(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Head B: goes on with the codes of stage 2, and a decoder of actions that also sees what the model sees."""
    config.name = "vla_action_latent"
    config.model.head = "latent"
    config.init_from_except = ADDED
    return config


def chunk(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Head C: eight steps at once by L1 regression (OpenVLA-OFT)."""
    config.name = "vla_action_chunk"
    config.model.head = "chunk"
    config.data.chunk_length = 8
    return config


def tiny(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Everything small and trained from scratch, on pictures of 56 pixels: 16 patches."""
    config.name = "vla_action_tiny"
    config.model.dtype = "float32"
    config.model.siglip.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144})
    config.model.dinov2.update({"image_size": 56, "dim": 48, "depth": 2, "heads": 4, "hidden": 144, "registers": 0})
    with config.ignore_type():
        config.model.llm.vocab = config_dict.placeholder(int)
    config.model.llm.update({"dim": 96, "depth": 3, "heads": 4, "kv_heads": 2, "hidden": 256, "remat": "none"})
    config.model.update({"head_width": 128, "head_heads": 4})
    config.data.update({"path": "sample", "image_size": 56, "text_length": 64, "threads": 2, "eval_examples": 1024})
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
    config.name = "vla_action_small"
    with config.ignore_type():
        config.model.siglip = config.model.dinov2 = None
        config.model.vision = ml_collections.ConfigDict({"name": "vision.film_conv", "widths": (24, 48, 64),
                                                         "condition": 128, "tokens": 8, "dim": 64})  # fmt: skip
    config.model.llm.update({"dim": 64, "depth": 2, "hidden": 160})
    config.model.bins_decode = "median"
    config.data.image_size = 64
    return config


def _with(size, head):
    def variant(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        config = size(head(config))
        config.name = f"{config.name}_{head.__name__}"
        return config

    return variant


VARIANTS = {"": lambda config: config, "latent": latent, "chunk": chunk, "tiny": tiny,
            "tiny_latent": _with(tiny, latent), "tiny_chunk": _with(tiny, chunk), "small": small,
            "small_latent": _with(small, latent), "small_chunk": _with(small, chunk)}  # fmt: skip


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    return choose_variant(variant, VARIANTS)(plan())
