"""Stage 3: the model of stage 2, taught the actions of a robot by a few demonstrations.

Give the stage-2 run as the whole model that this one begins with, an empty name: --config.init_from.=runs/vla. Without
a variant head A, the plan's: 256 bins of each dimension, read off at one query.

  latent      head B: the latent action of stage 2, and a small decoder that also sees pictures and proprioception
  chunk       head C: chunks of eight actions by L1 regression
  tiny        small and from scratch on the embedded sample, or from a run of configs/vla_latent.py:tiny: head A;
              tiny+latent and tiny+chunk are the same with the heads B and C
  small       the same with convolutions that see the instruction in place of the towers, 64 pixels: learns in minutes
              what tiny does not; small+latent, small+chunk
  test        the smallest that still has every part of tiny, for tests

Llama is trained in full; for LoRA set model.lora_rank and optim.groups as in docs/tutorials/stage2_vla.md, for the
head alone optim.groups=(("act/.*|action_queries|see_state/.*", {}), (".*", None)).
"""

import ml_collections
from ml_collections import config_dict

from lapa_jax.core.config import with_variants

from . import common

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

    config.model = common.vision_language_model("policies.vla_action")
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

    config.loss = ml_collections.ConfigDict({"action": 1.0})

    common.vision_language_data(config, "chunks", ("image", "text", "action"), chunk_length=1, normalize="q01_q99")
    config.model.chunk_length = config.data.get_ref("chunk_length")
    common.vision_language_training(config, steps=5000, batch_size=128, micro_batches=2, best_metric="val/action_r2")
    return config


def latent(config: ml_collections.ConfigDict) -> None:
    """Head B: goes on with the codes of stage 2, and a decoder of actions that also sees what the model sees."""
    config.model.head = "latent"
    config.init_from_except = ADDED


def chunk(config: ml_collections.ConfigDict) -> None:
    """Head C: eight steps at once by L1 regression (OpenVLA-OFT)."""
    config.model.head = "chunk"
    config.data.chunk_length = 8


def tiny(config: ml_collections.ConfigDict) -> None:
    """Small towers and decoder, from scratch, on the sample that comes with the package."""
    common.tiny_vision_language_model(config)
    config.model.update({"head_width": 128, "head_heads": 4})


def small(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one tower that sees the instruction in place of the two, and two layers of decoder: 64 pixels."""
    common.small_vision_language_model(config)
    config.model.update({"head_width": 128, "head_heads": 4, "bins_decode": "median"})


def test(config: ml_collections.ConfigDict) -> None:
    """`tiny` with one block everywhere and images of four patches, for a few steps."""
    tiny(config)
    common.smallest_vision_language_model(config)
    config.model.update({"head_width": 32, "head_heads": 2, "bins": 16})


VARIANTS = {"latent": latent, "chunk": chunk, "small": small, "tiny": tiny, "test": test}


def get_config(variants: str = "") -> ml_collections.ConfigDict:
    return with_variants(plan(), variants, VARIANTS, one_of=(("latent", "chunk"), common.SIZES))
