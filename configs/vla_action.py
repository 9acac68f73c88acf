"""Stage 3: the model of stage 2, taught the actions of a robot by a few demonstrations.

Give the stage-2 run as the whole model that this one begins with, an empty name: --config.init_from.=runs/vla. Without
a variant head A: 256 bins of each dimension, read off at one query.

  bins        head A
  latent      head B: the latent action of stage 2, and a small decoder that also sees images and proprioception
  chunk       head C: chunks of eight actions by L1 regression
  flow        head D: chunks of eight actions by flow matching
  cotrained   with one of the heads bins, chunk and flow: predicts the codes of latent actions besides, of a mixture of
              demonstrations and video; docs/tutorials/stage3_actions.md
  tiny        small and from scratch on the embedded sample, or from a run of configs/vla_latent.py:tiny; tiny+latent,
              tiny+chunk and tiny+flow have the other heads
  small       the same with convolutions that see the instruction in place of the towers, 64 pixels: learns in minutes
              what tiny does not; small+latent, small+chunk, small+flow
  test        the smallest that still has every part of tiny, for tests

Llama is trained in full; for LoRA set model.lora_rank and optim.groups as in docs/tutorials/stage2_vla.md, for the
head alone optim.groups=(("act/.*|action_queries|see_state/.*", {}), (".*", None)).
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common

# Of a stage-2 run the head of codes and its queries are not used, and what acts begins afresh. One expression: a run of
# continuous latents has no codes, and each expression must match something.
SWAPPED = ("action_queries|act/.*|see_state/.*|queries|code_embedding|codes_norm/.*|to_codes/.*",)
# With the latent head both stay, and only what acts is new.
ADDED = ("act/.*|see_state/.*",)


def published() -> ml_collections.ConfigDict:
    """The published sizes."""
    config = ml_collections.ConfigDict()
    config.name = "vla_action"
    config.seed = 0
    config.init_from = ml_collections.ConfigDict({"": config_dict.placeholder(str)})
    config.init_from_except = SWAPPED
    config.init_from_fields = ()

    config.model = common.vision_language_model("policies.vla_action")
    for taken_from_the_data in ("action_dim", "state_dim", "constant", "binary"):
        config.model[taken_from_the_data] = config_dict.placeholder(object)
    config.model.head = head("bins", bins=256, decode="argmax")

    config.loss = ml_collections.ConfigDict({"action": 1.0})

    common.vision_language_data(config, "chunks", ("image", "text", "action"), chunk_length=1, normalize="q01_q99")
    config.model.chunk_length = config.data.get_ref("chunk_length")
    common.vision_language_training(config, steps=5000, batch_size=128, micro_batches=2, best_metric="val/action_r2")
    return config


def head(name: str, **fields) -> ml_collections.ConfigDict:
    """A module of `lapa_jax.models.policies.heads`."""
    return ml_collections.ConfigDict({"name": f"policies.heads.{name}", **fields})


def bins(config: ml_collections.ConfigDict) -> None:
    """Head A, which is also the one without a variant: 256 bins of each dimension, read off at one query."""


def latent(config: ml_collections.ConfigDict) -> None:
    """Head B: goes on with the codes of stage 2, and a decoder of actions that also sees what the model sees."""
    config.model.head = head("latent", code_length=4, codebook_size=8, width=1024, heads=8, context=True)
    config.init_from_except = ADDED


def chunk(config: ml_collections.ConfigDict) -> None:
    """Head C: eight steps at once by L1 regression (OpenVLA-OFT)."""
    config.model.head = head("chunk", width=1024)
    config.data.chunk_length = 8


def flow(config: ml_collections.ConfigDict) -> None:
    """Head D: eight steps at once, denoised from noise by flow matching (pi0)."""
    config.model.head = head("flow", width=1024, heads=8, depth=4, steps=10, samples=1)
    config.data.chunk_length = 8


def cotrained(config: ml_collections.ConfigDict) -> None:
    """Actions and latent actions together (GR00T N1), instead of stage 2 before stage 3."""
    config.model.name = "policies.vla_cotrained"
    for taken_from_the_labels in ("code_length", "codebook_size"):
        config.model[taken_from_the_labels] = config_dict.placeholder(int)
    config.loss.latent = 1.0
    config.data.fields = ("image", "text", "action", "latent")
    for folder_or_fingerprint in ("labels", "labels_tokenizer", "val_labels"):
        config.data[folder_or_fingerprint] = config_dict.placeholder(str)


def tiny(config: ml_collections.ConfigDict) -> None:
    """Small towers and decoder, from scratch, on the sample that comes with the package."""
    common.tiny_vision_language_model(config)


def small(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels."""
    common.small_vision_language_model(config)


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block everywhere and images of four patches, for a few steps."""
    tiny(config)
    common.smallest_vision_language_model(config)


HEADS = {"bins": bins, "latent": latent, "chunk": chunk, "flow": flow}
VARIANTS = {**HEADS, "cotrained": cotrained, "small": small, "tiny": tiny, "test": test}
SIZES = {
    "tiny": {"width": 128, "heads": 4, "depth": 2},
    "small": {"width": 128, "heads": 4, "depth": 2, "decode": "median"},
    "test": {"width": 32, "heads": 2, "depth": 1, "bins": 16, "steps": 2},
}
"""{size: fields of heads}, which those that have them take, whichever variant comes first."""


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    config = with_variants(published(), variants, VARIANTS, one_of=(tuple(HEADS), common.SIZES))
    for size in SIZES.keys() & set(variants.split("+")):
        config.model.head.update({name: value for name, value in SIZES[size].items() if name in config.model.head})
    return config
