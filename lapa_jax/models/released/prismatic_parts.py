"""What checkpoints of Prismatic's family (Karamcheti et al. 2024, arXiv:2402.07865), OpenVLA among them, share: one or
two towers of timm, a projector and Llama, and the run that they become."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.models.released import hugging_face, timm
from lapa_jax.models.released.base import Place, prefixed, same

LLAMA = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "num_attention_heads": 32}  # fmt: skip
"""transformers' defaults, which its config files leave out. So they do with rms_norm_eps 1e-6 and rope_theta 1e4."""

PROJECTORS = {"fused-gelu-mlp": ("openvla", ("widen", "hidden", "out")), "gelu-mlp": ("gelu-mlp", ("hidden", "out")),
              "linear": ("linear", ("out",))}  # fmt: skip
"""{end of arch_specifier: (kind of `Projector`, its layers in order)}."""


class Parts(NamedTuple):
    """spec: fields of the model. places, unused: as of `base.Release`, by the names of Hugging Face's port."""

    spec: dict
    places: dict[str, tuple[Place, ...]]
    unused: str


def parts(towers: Sequence[timm.Tower], arch: str, llama: Mapping) -> Parts:
    """Puts a model together.

    Args:
      towers: in the order of their features in the projector. arch: the config's arch_specifier.
      llama: config of the language model, as of `LLAMA`, where it says something else.

    Raises:
      UserError: parts that we have not.
    """
    names = ("featurizer", "fused_featurizer")[: len(towers)]
    if len({tower.kind for tower in towers}) < len(towers):
        raise UserError(f"the model has two towers of the kind {towers[0].kind}; one of each kind can be imported")
    ending = next((ending for ending in PROJECTORS if arch.removeprefix("no-align+") == ending), None)
    if ending is None or (ending == "fused-gelu-mlp") != (len(towers) == 2):
        raise UserError(f"the projector '{arch}' of {len(towers)} towers cannot be imported; known: fused-gelu-mlp for "
                        "two, gelu-mlp and linear for one")  # fmt: skip
    plan = hugging_face.plan("llama", {**LLAMA, **llama})
    kind, layers = PROJECTORS[ending]
    spec, unused = {"projection": kind, "llm": {**plan.spec, "head": "none"}}, [rf"language_model\.({plan.unused})"]
    places = prefixed(plan.places, "language_model.", "llm/")
    if plan.spec["head"] == "own":
        places["language_model.lm_head.weight"] = (Place("lm_head/kernel", np.transpose),)
    else:
        places["language_model.model.embed_tokens.weight"] += (Place("lm_head/kernel", np.transpose),)
    for name, tower in zip(names, towers):
        spec[tower.kind] = tower.spec
        places |= prefixed(tower.places, f"vision_backbone.{name}.", f"{tower.kind}/")
        unused.append(rf"vision_backbone\.{name}\.({tower.unused})")
    # our models put SigLIP's features first
    first = towers[0].spec["dim"] if [tower.kind for tower in towers] == ["dinov2", "siglip"] else 0
    for number, ours in enumerate(layers, start=1):
        name = f"projector.fc{number}" if ending != "linear" else "projector.projector"
        change = functools.partial(_rotated, first) if number == 1 else np.transpose
        places[f"{name}.weight"] = (Place(f"projector/{ours}/kernel", change),)
        places[f"{name}.bias"] = (Place(f"projector/{ours}/bias", same),)
    return Parts(spec, places, "|".join(unused))


def _rotated(first: int, x: np.ndarray) -> np.ndarray:
    """[out, in] -> [in, out], whose first rows come last."""
    return np.roll(x.T, -first, axis=0)


VICUNA = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
          "detailed, and polite answers to the user's questions. USER: What action should the robot take to "
          "{instruction}? ASSISTANT:")  # fmt: skip
"""The prompt of openvla-v01-7b."""
SPACE = 29871
"""Llama-2's id of a blank at the end: in training the text went on with "Out: " and the action's tokens."""
STRATEGIES = {"resize-naive": "squash", "resize-crop": "shorter_side", "letterbox": "letterbox"}
"""{image_resize_strategy: mode of `PrismaticResize`}."""


def resize_mode(strategy: str) -> str:
    """The mode of `PrismaticResize` that a strategy is."""
    if strategy not in STRATEGIES:
        raise UserError(f"image_resize_strategy '{strategy}' is unknown; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[strategy]


class Chosen(NamedTuple):
    """What a user chooses about a run.

    Attributes:
      dtype: "float32" or "bfloat16", of the model's computation.
      tokenizer: a folder, or a name on the hub; None for the checkpoint's own.
      text_length: tokens that prompts are padded to.
      template: of the prompt, see `data.text.prompt`; None for the one that the language model was trained with.
      center_crop: see only the middle 0.9 of images' area, as models finetuned with augmentation are run.
      actions_only: compare the ids of actions alone, see `policies.openvla.Model.choose`.
    """

    dtype: str = "float32"
    tokenizer: str | None = None
    text_length: int = 128
    template: str | None = None
    center_crop: bool = False
    actions_only: bool = False


def run_config(
    spec: Mapping, chosen: Chosen, *, side: int, resize: Mapping, datasets: Mapping, llm_id: str, tokenizer: str,
    padding: int = 64, edges: int = 256,
) -> dict:  # fmt: skip
    """The config of a run that acts, JSON values.

    Args:
      spec: of `Parts`. chosen: by the user. side: of images, in pixels. resize: fields of `PrismaticResize`.
      datasets: see `statistics.datasets`. llm_id: Prismatic's name of the language model.
      tokenizer: where it lies, if the user names none. padding: ids at the end of the vocabulary that are none.
      edges: of the bins of actions.
    """
    vocab = spec["llm"]["vocab"]
    model = {
        "name": "policies.openvla", **spec, "image_size": side, "cameras": 1, "text_length": chosen.text_length,
        "action_dim": max((entry["features"]["action"]["shape"][0] for entry in datasets.values()), default=7),
        "action_end": vocab - padding, "edges": edges, "dtype": chosen.dtype,
        "choose": "actions" if chosen.actions_only else "all",
    }  # fmt: skip
    for name, part in spec.items():
        if isinstance(part, Mapping):
            model[name] = {**part, "dtype": chosen.dtype}
    text = {"name": chosen.tokenizer or tokenizer, "lower": True,
            "template": chosen.template or (VICUNA if "vicuna" in llm_id else "openvla")}  # fmt: skip
    if vocab > SPACE:
        text["append"] = SPACE
    data = {
        "samples": "chunks", "fields": ["image", "text", "action"], "chunk_length": 1, "camera": "image",
        "image_size": side, "resize": {**resize, **({"area": 0.9} if chosen.center_crop else {})},
        "normalize": "openvla" if datasets else "none", "text_length": chosen.text_length, "text_tokenizer": text,
    }  # fmt: skip
    return {"name": "openvla", "model": model, "data": data}
