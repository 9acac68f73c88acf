"""LAPA-7B (Ye et al. 2024): continues the released model on latent actions, or finetunes it to a robot's actions.

Give the run that tools/import_weights.py lapa7b wrote, as the whole model that this one begins with, and its tokenizer:
--config.init_from.=runs/lapa7b --config.data.text_tokenizer.name=runs/lapa7b/tokenizer. The VQGAN and the heads of
texts and images stay as they are. Sizes, the rate and the batch are the authors'.

  actions     a robot's actions as tokens: bins of equally many actions, taken from the data
  tiny        a small decoder and VQGAN from scratch on bytes, on the sample and its labels: random image codes
  test        the smallest that still has every part, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common


def published() -> ml_collections.ConfigDict:
    """The released model's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "lapa"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.init_from_except = ()

    config.model = ml_collections.ConfigDict()
    config.model.name = "policies.lapa"
    config.model.llm = ml_collections.ConfigDict({
        "name": "llama", "vocab": 32000, "dim": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "hidden": 11008,
        "rotary": 5e7, "eps": 1e-6, "head": "own", "flash": True, "dtype": "bfloat16", "remat": "full",
    })  # fmt: skip
    config.model.vqgan = ml_collections.ConfigDict({
        "name": "vision.vqgan", "widths": (128, 256, 256, 512, 768), "blocks": 2, "latent": 64, "codebook_size": 8192,
        "code_width": 64,
    })  # fmt: skip
    config.model.vision_vocab, config.model.vision_end = 8448, 8193
    config.model.latent_prompt = (1533, 4924, 29958, 529, 4181, 29958)
    config.model.code_length, config.model.codebook_size = 4, 8
    config.model.lora_rank = 0
    config.model.lora_alpha = 16.0
    config.model.lora_modules = "llm/decoder/layers/.*"

    config.loss = ml_collections.ConfigDict({"latent": 1.0})

    common.vision_language_data(config, "steps", ("image", "text", "latent"), resize="lapa")
    config.data.image_size, config.data.text_length = 256, 128
    config.data.text_tokenizer.template = "lapa_7b"
    for folder_or_fingerprint in ("labels", "labels_tokenizer", "val_labels"):
        config.data[folder_or_fingerprint] = config_dict.placeholder(str)
    common.vision_language_training(config, steps=70_000, batch_size=256, micro_batches=4,
                                    best_metric="val/latent_accuracy")  # fmt: skip
    config.optim.update({"learning_rate": 2e-5, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0,
                         "groups": (("vqgan/.*|to_vision/.*|llm/to_logits/.*", None), (".*", {})),
                         "frozen_dtype": "float32"})  # fmt: skip
    return config


def actions(config: ml_collections.ConfigDict) -> None:
    """Tokens of actions, with an embedding and a head of their own that start fresh."""
    config.init_from_except = ("action_embedding|to_action/.*",)
    config.model.name = "policies.lapa_action"
    config.model.action_prompt = (1533, 4924, 29958, 529, 2467, 29958)
    config.model.bins = 256
    config.loss = ml_collections.ConfigDict({"action": 1.0})
    for name in ("labels", "labels_tokenizer", "val_labels"):
        del config.data[name]
    config.data.update({"samples": "chunks", "fields": ("image", "text", "action"), "chunk_length": 1,
                        "normalize": "none"})  # fmt: skip
    config.train.best_metric = "val/action_r2"


def tiny(config: ml_collections.ConfigDict) -> None:
    """Two blocks and a VQGAN of three levels, from scratch, on the labelled sample that comes with the package."""
    with config.ignore_type():
        config.model.llm.vocab = config_dict.placeholder(int)
    config.model.llm.update({"dim": 64, "depth": 2, "heads": 4, "kv_heads": 4, "hidden": 160, "dtype": "float32",
                             "remat": "none"})  # fmt: skip
    config.model.vqgan.update({"widths": (32, 32, 32), "blocks": 1, "latent": 4, "code_width": 4, "codebook_size": 64})
    config.model.update({"vision_vocab": 80, "vision_end": 65, "latent_prompt": (1,)})
    config.data.update({"path": "sample", "image_size": 32, "text_length": 64, "threads": 2, "eval_examples": 1024})
    config.data.text_tokenizer.template = "plain"
    if "labels" in config.data:
        config.data.labels = "sample_latents"
    else:
        config.model.action_prompt = (1,)
    config.optim.update({"learning_rate": 1e-3, "groups": ((".*", {}),)})
    config.train.update({"steps": 1500, "batch_size": 32, "micro_batches": 1, "log_every": 50, "eval_every": 500,
                         "save_every": 500, "keep_last": 2})  # fmt: skip
    config.mesh.update({"data": -1, "fsdp": 1})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block, for a few steps."""
    tiny(config)
    common.shortest(config)
    config.model.llm.update({"dim": 32, "depth": 1, "heads": 2, "kv_heads": 2, "hidden": 32})


VARIANTS = {"actions": actions, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(("tiny", "test"),))
