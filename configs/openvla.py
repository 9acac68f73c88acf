"""Finetunes OpenVLA, or makes one of a Prismatic, on the actions of a robot: the model and the loss of its own code.

Give the run that tools/import_weights.py wrote, as the whole model that this one begins with, and its tokenizer:
--config.init_from.=runs/openvla --config.data.text_tokenizer.name=runs/openvla/tokenizer. Without a variant LoRA of
rank 32 on all linear layers but the head, as the authors finetune on one GPU (Kim et al. 2024, section 5.3).

  full        all parameters, at 2e-5: of a 7B model that takes a node of eight GPUs
  tiny        small and from scratch on the embedded sample, with bytes and 256 ids behind them for actions
  small       the same with convolutions that see the instruction in place of the towers, 64 pixels
  test        the smallest that still has every part of tiny, for tests

The official code crops images to a random 0.9 of their area and changes colours (image_aug); data.augment does so here,
and policies are then run on the middle 0.9: data.resize.area.
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common

BODY = ("siglip", "dinov2", "vision", "llm", "projection", "action_end", "edges")


def plan() -> ml_collections.ConfigDict:
    """LoRA, with the authors' settings."""
    config = ml_collections.ConfigDict()
    config.name = "openvla"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.init_from_fields = BODY
    config.init_from_except = ()

    config.model = common.vision_language_model("policies.openvla")
    config.model.action_dim = config_dict.placeholder(int)
    config.model.update({"projection": "openvla", "action_end": 32000, "edges": 256})
    config.model.update({"lora_rank": 32, "lora_alpha": 16.0,
                         "lora_modules": "(siglip|dinov2)/layers/.*|projector/.*|llm/decoder/.*"})  # fmt: skip

    config.loss = ml_collections.ConfigDict({"action": 1.0})

    common.vision_language_data(config, "chunks", ("image", "text", "action"), chunk_length=1, normalize="openvla")
    common.openvla_inputs(config)
    common.vision_language_training(config, steps=20_000, batch_size=16, micro_batches=1,
                                    best_metric="val/action_r2")  # fmt: skip
    config.optim.update({"learning_rate": 5e-4, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01,
                         "b2": 0.999, "groups": ((".*/lora_[ab]", {}), (".*", None))})  # fmt: skip
    return config


def full(config: ml_collections.ConfigDict) -> None:
    """All parameters, as OpenVLA itself was trained on Prismatic."""
    config.model.lora_rank = 0
    config.optim.update({"learning_rate": 2e-5, "weight_decay": 0.0, "groups": ((".*", {}),),
                         "frozen_dtype": "float32"})  # fmt: skip
    config.train.update({"batch_size": 256, "micro_batches": 4})


def tiny(config: ml_collections.ConfigDict) -> None:
    """Small towers and decoder, from scratch, on the sample that comes with the package."""
    common.tiny_vision_language_model(config)
    _with_bytes(config)


def small(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels."""
    common.small_vision_language_model(config)
    _with_bytes(config)


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block everywhere and images of four patches, for a few steps."""
    tiny(config)
    common.smallest_vision_language_model(config)


def _with_bytes(config: ml_collections.ConfigDict) -> None:
    config.model.lora_rank = 0
    config.model.action_end = config.model.llm.vocab = 259 + 256
    with config.ignore_type():
        config.data.text_tokenizer.append = None


VARIANTS = {"full": full, "small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(plan(), variants, VARIANTS, one_of=(common.SIZES,))
