"""UniVLA's policy (Bu et al. 2025, arXiv:2505.06111): continues a released one on latent actions, or finetunes it to a
robot's actions together with them.

Give the run that tools/import_weights.py univla wrote, as the whole model that this one begins with, its tokenizer, and
labels of UniVLA's latent action model: --config.init_from.=runs/univla
--config.data.text_tokenizer.name=runs/univla/tokenizer --config.data.labels=labels/univla. Without a variant LoRA of
rank 32 on all linear layers but the head learns the codes; settings are those of the authors' finetuning.

  actions     an action decoder besides, on chunks of 12 actions; it starts fresh
  tiny        small and from scratch on the embedded sample and its labels, with bytes and ids behind them for codes
  test        the smallest that still has every part of tiny, for tests

To go on with the action decoder of an imported run: --config.init_from_except='()'.
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common

BODY = ("siglip", "dinov2", "vision", "llm", "projection", "first_code")
DECODER = "visual_pool/.*|latent_pool/.*|to_actions/.*"
ADAPTERS = ".*/lora_[ab]"
SMALL = {"decoder_dim": 64, "decoder_heads": 4, "decoder_hidden": 128}


def published() -> ml_collections.ConfigDict:
    """LoRA, with the authors' settings."""
    config = ml_collections.ConfigDict()
    config.name = "univla_policy"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.init_from_fields = BODY
    config.init_from_except = ()

    config.model = common.vision_language_model("policies.univla")
    config.model.update({"projection": "openvla", "first_code": 32001, "code_length": 4, "codebook_size": 16})
    config.model.update({"lora_rank": 32, "lora_alpha": 16.0,
                         "lora_modules": "(siglip|dinov2)/layers/.*|projector/.*|llm/decoder/.*"})  # fmt: skip

    config.loss = ml_collections.ConfigDict({"latent": 1.0})

    common.vision_language_data(config, "steps", ("image", "text", "latent"))
    common.openvla_inputs(config)
    for folder_or_fingerprint in ("labels", "labels_tokenizer", "val_labels"):
        config.data[folder_or_fingerprint] = config_dict.placeholder(str)
    common.vision_language_training(config, steps=30_000, batch_size=64, micro_batches=1,
                                    best_metric="val/latent_accuracy")  # fmt: skip
    config.optim.update({"learning_rate": 3.5e-4, "schedule": "step_decay", "warmup_steps": 0, "weight_decay": 1e-3,
                         "b2": 0.999, "groups": ((ADAPTERS, {}), (".*", None))})  # fmt: skip
    config.optim.update({"boundaries": (24_000,), "decay_factor": 0.1})
    return config


def actions(config: ml_collections.ConfigDict) -> None:
    """Chunks of actions, decoded from what the model knows when it says the codes of their first step."""
    config.init_from_except = (DECODER,)
    config.model.name = "policies.univla_action"
    config.model.update({"learns_codes": True, "state_dim": 0, "squash": True})
    for name in ("action_dim", "chunk_length"):
        config.model[name] = config_dict.placeholder(int)
    config.model.update({"decoder_dim": 512, "decoder_heads": 8, "decoder_hidden": 2048})
    config.loss.action = 1.0
    config.data.update({"samples": "chunks", "fields": ("image", "text", "action", "latent"), "chunk_length": 12,
                        "normalize": "openvla"})  # fmt: skip
    if config.model.lora_rank:
        config.optim.groups = ((f"{ADAPTERS}|{DECODER}", {}), (".*", None))
    else:
        config.model.update(SMALL)
    config.train.best_metric = "val/action_r2"


def tiny(config: ml_collections.ConfigDict) -> None:
    """Small towers and decoder, from scratch, on the labelled sample that comes with the package."""
    common.tiny_vision_language_model(config)
    config.model.update({"lora_rank": 0, "first_code": 259, "codebook_size": 8})
    config.model.llm.vocab = 259 + 8
    config.optim.schedule = "constant"
    config.data.labels = "sample_latents"
    if "decoder_dim" in config.model:
        config.model.update(SMALL)
    with config.ignore_type():
        config.data.text_tokenizer.append = None


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block everywhere and images of four patches, for a few steps."""
    tiny(config)
    common.smallest_vision_language_model(config)


VARIANTS = {"actions": actions, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(published(), variants, VARIANTS, one_of=(("tiny", "test"),))
