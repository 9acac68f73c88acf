"""Stage 2: a vision-language model that predicts the latent action of an image and an instruction.

Without a variant: the specification's recipe (SigLIP so400m and DINOv2 large, frozen; Llama-2 7B; AdamW at 1e-5 with a
cosine to 1e-6, effective batch 4096 as 64 micro-batches). Resolved where the specification is in doubt:

  - 224 pixels are 256 tokens from both towers (the specification counts 576, which is 336 pixels: set data.image_size)
  - towers give the features before their last block, as OpenVLA takes them
  - instructions in OpenVLA's words; "bytes" stands for the tokenizer until data.text_tokenizer names Llama's

Weights come from tools/import_weights.py, as init_from.siglip, init_from.dinov2 and init_from.llm. Or all of them come
from an imported OpenVLA or Prismatic, with the empty name: --config.init_from.=runs/openvla. Its towers, projector and
decoder then are the model's, whatever their sizes; the queries and the head of codes are new.

  openvla     images and prompts as OpenVLA knows them, for a run that begins with one
  lapa        the paper's schedule: 2e-5 constant, batch 256, 70,000 steps, codes one after the other
  continuous  the deltas of launch/label.py --continuous in place of codes, by L1 regression; data.labels must be given
  1b          a decoder of the size of TinyLlama, 1.1 B parameters
  tiny        small towers and decoder from scratch on bytes, on the sample and its labels; two CPU cores, minutes
  small       tiny with convolutions that see the instruction in place of the towers, 64 pixels: learns faster
  test        the smallest that still has every part of tiny, for tests
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common

# Of a whole model that the run begins with these parts are taken, whatever their sizes.
BODY = ("siglip", "dinov2", "vision", "llm", "projection")
# What is new then, and what is not used of it: OpenVLA's matrix of logits, or what acts in a run of stage 3.
NEW = "queries|code_embedding|codes_norm/.*|to_codes/.*"
# The same of deltas: that head is new, and the head of codes is not used.
NEW_OF_DELTAS = "action_queries|act/.*"
OF_ANOTHER = "lm_head/.*|action_queries|act/.*|see_state/.*"


def published() -> ml_collections.ConfigDict:
    """The specification's sizes."""
    config = ml_collections.ConfigDict()
    config.name = "vla_latent"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({part: config_dict.placeholder(str)
                                                  for part in ("", "siglip", "dinov2", "llm")})  # fmt: skip
    config.init_from_fields = BODY
    config.init_from_except = (NEW, OF_ANOTHER)

    config.model = common.vision_language_model("policies.vla")
    config.model.code_length = 4
    config.model.codebook_size = 8
    config.model.decode = "parallel"

    config.loss = ml_collections.ConfigDict({"latent": 1.0})

    common.vision_language_data(config, "steps", ("image", "text", "latent"))
    for folder_or_fingerprint in ("labels", "labels_tokenizer", "val_labels"):
        config.data[folder_or_fingerprint] = config_dict.placeholder(str)
    common.vision_language_training(config, steps=20_000, batch_size=4096, micro_batches=64,
                                    best_metric="val/latent_accuracy")  # fmt: skip
    return config


def lapa(config: ml_collections.ConfigDict) -> None:
    """The paper's schedule and decoding (Ye et al. 2024), on this model."""
    config.model.decode = "autoregressive"
    config.optim.update({"learning_rate": 2e-5, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0})
    config.train.update({"steps": 70_000, "batch_size": 256, "micro_batches": 4})


def openvla(config: ml_collections.ConfigDict) -> None:
    """Images squashed bicubically, and prompts that end as those that OpenVLA's actions follow."""
    common.openvla_inputs(config)


def one_billion(config: ml_collections.ConfigDict) -> None:
    """Decoder of TinyLlama's shape, with grouped queries."""
    config.model.llm.update({"dim": 2048, "depth": 22, "heads": 32, "kv_heads": 4, "hidden": 5632})


def continuous(config: ml_collections.ConfigDict) -> None:
    """Deltas in place of codes, scaled and regressed as actions are (GR00T, LAOM)."""
    for name in ("code_length", "codebook_size", "decode"):
        del config.model[name]
    config.model.name = "policies.vla_continuous"
    for taken_from_the_data in ("action_dim", "chunk_length", "state_dim", "constant", "binary"):
        config.model[taken_from_the_data] = config_dict.placeholder(object)
    config.model.head = ml_collections.ConfigDict({"name": "policies.heads.chunk", "width": 1024})
    config.init_from_except = (f"{NEW_OF_DELTAS}|{NEW}|lm_head/.*|see_state/.*",)
    with config.ignore_type():
        config.data.labels = None  # those of the sample are codes
    config.data.update({"fields": ("image", "text", "delta"), "normalize": "q01_q99"})
    config.train.best_metric = "val/latent_r2"


def tiny(config: ml_collections.ConfigDict) -> None:
    """Small towers and decoder, from scratch, on the labelled sample that comes with the package."""
    common.tiny_vision_language_model(config)
    _labels_of_sample(config)


def small(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels."""
    common.small_vision_language_model(config)
    _labels_of_sample(config)


def _labels_of_sample(config: ml_collections.ConfigDict) -> None:
    if "latent" in config.data.fields:  # see continuous
        config.data.labels = "sample_latents"


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block everywhere and images of four patches, for a few steps."""
    tiny(config)
    common.smallest_vision_language_model(config)


VARIANTS = {"lapa": lapa, "openvla": openvla, "continuous": continuous, "1b": one_billion, "small": small,
            "tiny": tiny, "test": test}  # fmt: skip
HEAD_WIDTHS = {"tiny": 128, "small": 128, "test": 32}
"""Of the head of `continuous`, whichever variant comes first."""


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    one_of = (("1b", *common.SIZES), ("lapa", "continuous"))
    config = with_variants(published(), variants, VARIANTS, one_of=one_of)
    for size in HEAD_WIDTHS.keys() & set(variants.split("+")) if "head" in config.model else ():
        config.model.head.width = HEAD_WIDTHS[size]
    return config
