"""Vision-language models of Prismatic's family (Karamcheti et al. 2024, arXiv:2402.07865): one or two towers of timm, a
projector and Llama. OpenVLA is one of them, with Hugging Face's names (`released/openvla.py`).

Here are the parts that they share, and the native layout: `config.json` and `checkpoints/*.pt`, which holds the parts
that were trained; towers that were frozen come from timm's files.
"""

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
