"""Which tensors of Hugging Face checkpoints become which parameters of our towers: names, and the change of layout.

A plan says it for one checkpoint from its `config.json` alone; reading and writing are `tools/import_weights.py`'s.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.models.released.base import Place, patches_kernel, same, without_batch


@dataclasses.dataclass(frozen=True)
class Plan:
    """The import of one checkpoint.

    Attributes:
      spec: of the model, `{"name": ..., fields}`; options that change no parameter keep their defaults.
      places: {name in the checkpoint: the one place where it goes}.
      unused: regular expression of names that may be there and are left out.
    """

    spec: dict
    places: Mapping[str, tuple[Place, ...]]
    unused: str


def plan(kind: str, config: Mapping, layer: int = -1, head: bool = True) -> Plan:
    """Plans the import of a checkpoint.

    Args:
      kind: "llama", "siglip" or "dinov2".
      config: its `config.json`.
      layer: of the vision towers, see `VisionTower`.
      head: of Llama; False leaves the matrix of the logits out.

    Raises:
      UserError: a checkpoint of another kind, or with a part that our model has not.
    """
    if kind == "llama":
        return _llama(config, head)
    return _siglip(config, layer) if kind == "siglip" else _dinov2(config, layer)


def shapes(spec: Mapping) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the parameters of the model that `Plan.spec` says; none is computed."""
    model = config_lib.build("lapa_jax.models", spec)
    given = jnp.zeros((1, 1), jnp.int32) if spec["name"] == "llama" else jnp.zeros((1, model.patch, model.patch, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), given)
    return {path: leaf.shape for path, leaf in tree.flatten(variables["params"]).items()}


def _llama(config: Mapping, head: bool) -> Plan:
    _want(config, "model_type", "llama")
    _want(config, "hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        _want(config, name, False)
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0  # what Hugging Face takes for what is unsaid
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise UserError(f"config.json asks for scaled rotary positions, {rope}; only plain ones (rope_type "
                        "'default') can be imported")
    source = "none" if not head else "tied" if config.get("tie_word_embeddings") else "own"
    heads = _size(config, "num_attention_heads")
    spec = {
        "name": "llama", "vocab": _size(config, "vocab_size"), "dim": _size(config, "hidden_size"),
        "depth": _size(config, "num_hidden_layers"), "heads": heads, "hidden": _size(config, "intermediate_size"),
        "kv_heads": config.get("num_key_value_heads") or heads,
        "dim_head": config.get("head_dim") or _size(config, "hidden_size") // heads,
        "rotary": float(theta), "eps": float(config.get("rms_norm_eps", 1e-6)), "head": source,
    }  # fmt: skip
    places = {"model.embed_tokens.weight": (Place("embedding", same),),
               "model.norm.weight": (Place("decoder/norm_out/scale", same),)}  # fmt: skip
    if source == "own":
        places["lm_head.weight"] = (Place("to_logits/kernel", np.transpose),)
    names = {"input_layernorm": "attention_norm/scale", "post_attention_layernorm": "feedforward_norm/scale"}
    attention = {"q": "query", "k": "key", "v": "value", "o": "out"}
    names |= {f"self_attn.{theirs}_proj": f"attention/{ours}/kernel" for theirs, ours in attention.items()}
    names |= {f"mlp.{name}_proj": f"feedforward/{name}/kernel" for name in ("gate", "up", "down")}
    for layer in range(spec["depth"]):
        for theirs, ours in names.items():
            change = np.transpose if ours.endswith("kernel") else same
            places[f"model.layers.{layer}.{theirs}.weight"] = (Place(f"decoder/layers/{ours}", change, layer),)
    unused = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return Plan(spec, places, unused if source == "own" else rf"{unused}|lm_head\.weight")


def _siglip(config: Mapping, layer: int) -> Plan:
    config = config.get("vision_config") or config
    _want(config, "model_type", "siglip_vision_model")
    _want(config, "hidden_act", "gelu_pytorch_tanh")
    spec = _vision_spec("vision.siglip", config, layer, {"image_size": 224, "patch_size": 16, "num_hidden_layers": 12,
                                                        "intermediate_size": 3072})  # fmt: skip
    places = {"embeddings.position_embedding.weight": (Place("positions", same),)}
    _embed(places, "embeddings.patch_embedding")
    block = {"layer_norm1": "attention_norm", "layer_norm2": "feedforward_norm", "mlp.fc1": "up", "mlp.fc2": "down"}
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    block |= {f"self_attn.{theirs}": f"attention/{ours}" for theirs, ours in attention.items()}
    _blocks(places, spec, "encoder.layers", block)
    unused = r"head\..*|embeddings\.position_ids|text_model\..*|logit_scale|logit_bias"
    return _vision_plan(spec, places, "post_layernorm", "encoder.layers", unused)


def _dinov2(config: Mapping, layer: int) -> Plan:
    with_registers = config.get("model_type") == "dinov2_with_registers"
    if not with_registers:
        _want(config, "model_type", "dinov2")
    for name, value in (("hidden_act", "gelu"), ("qkv_bias", True), ("use_swiglu_ffn", False)):
        _want(config, name, value)
    registers = config.get("num_register_tokens", 4) if with_registers else 0
    width = int(_size(config, "hidden_size") * config.get("mlp_ratio", 4))
    spec = _vision_spec("vision.dinov2", {**config, "intermediate_size": width}, layer,
                        {"image_size": 224, "patch_size": 16 if with_registers else 14})  # fmt: skip
    spec["registers"] = registers
    places = {"embeddings.cls_token": (Place("class_token", without_batch),),
               "embeddings.position_embeddings": (Place("positions", without_batch),)}  # fmt: skip
    if registers:
        places["embeddings.register_tokens"] = (Place("registers", without_batch),)
    _embed(places, "embeddings.patch_embeddings.projection")
    block = {"norm1": "attention_norm", "norm2": "feedforward_norm", "mlp.fc1": "up", "mlp.fc2": "down",
             "attention.output.dense": "attention/out"}  # fmt: skip
    block |= {f"attention.attention.{name}": f"attention/{name}" for name in ("query", "key", "value")}
    _blocks(places, spec, "encoder.layer", block)
    for index in range(_used(spec)):
        for number, ours in ((1, "attention_scale"), (2, "feedforward_scale")):
            name = f"encoder.layer.{index}.layer_scale{number}.lambda1"
            places[name] = (Place(f"layers/{ours}", same, index),)
    return _vision_plan(spec, places, "layernorm", "encoder.layer", r"embeddings\.mask_token")


def _vision_spec(name: str, config: Mapping, layer: int, defaults: Mapping[str, int]) -> dict:
    """defaults: of Hugging Face, for what `config.json` may leave out because it equals them."""
    config = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, **defaults, **config}
    return {
        "name": name, "image_size": _size(config, "image_size"), "patch": _size(config, "patch_size"),
        "dim": _size(config, "hidden_size"), "depth": _size(config, "num_hidden_layers"),
        "heads": _size(config, "num_attention_heads"), "hidden": _size(config, "intermediate_size"),
        "eps": float(config.get("layer_norm_eps", 1e-6)), "layer": layer,
    }  # fmt: skip


def _used(spec: Mapping) -> int:
    return spec["depth"] + 1 + spec["layer"]


def _embed(places: dict[str, tuple[Place, ...]], name: str) -> None:
    """The convolution over patches: [D, 3, p, p] is [3*p*p, D] to `to_patches`."""
    places[f"{name}.weight"] = (Place("embed/kernel", patches_kernel),)
    places[f"{name}.bias"] = (Place("embed/bias", same),)


def _blocks(places: dict[str, tuple[Place, ...]], spec: Mapping, stack: str, names: Mapping[str, str]) -> None:
    for index in range(_used(spec)):
        for theirs, ours in names.items():
            weight = (f"{ours}/scale", same) if ours.endswith("norm") else (f"{ours}/kernel", np.transpose)
            places[f"{stack}.{index}.{theirs}.weight"] = (Place(f"layers/{weight[0]}", weight[1], index),)
            places[f"{stack}.{index}.{theirs}.bias"] = (Place(f"layers/{ours}/bias", same, index),)


def _vision_plan(spec, places, norm: str, stack: str, unused: str) -> Plan:
    """With the final norm; or where the output comes before it, without it and without the last block."""
    if spec["layer"] == -1:
        places |= {f"{norm}.weight": (Place("norm_out/scale", same),), f"{norm}.bias": (Place("norm_out/bias", same),)}
    else:
        unused += rf"|({re.escape(norm)}|{re.escape(stack)}\.{spec['depth'] - 1})\..*"
    return Plan(spec, places, unused)


def _want(config: Mapping, name: str, value) -> None:
    """A key of config.json that may be absent, but must not say otherwise."""
    if config.get(name, value) != value:
        raise UserError(f"config.json has {name} {config[name]!r}; what can be imported has {value!r}")


def _size(config: Mapping, name: str) -> int:
    if not isinstance(config.get(name), int) or config[name] < 1:
        raise UserError(f"config.json has {name} {config.get(name)!r}; a whole number, at least 1, is needed")
    return config[name]
