"""The same trained model with other parameters: adapters merged, kernels in bfloat16 or as 8-bit integers."""

import re
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.inference.base import TrainedModel
from lapa_jax.nn import int8, lora

MODELS = "lapa_jax.models"
EMBEDDING = re.compile(r"(.*/)?embedding")


def merged(trained: TrainedModel) -> TrainedModel:
    """The model without low-rank adapters: their products are added to the kernels, and its config has `lora_rank` 0.

    Outputs are those of the model with adapters but for rounding: to about 1e-5 of their size in float32, and in
    bfloat16 to that of its 8 bits, since the product then goes through one rounding in place of three.
    """
    fields = trained.config.model
    if not fields.get("lora_rank"):
        return trained
    values = config_lib.to_json(trained.config)
    values["model"]["lora_rank"] = 0
    params = lora.merge(trained.variables["params"], fields.get("lora_alpha", trained.model.lora_alpha))
    return with_parameters(trained, params, config_lib.from_json(values))


def in_bfloat16(trained: TrainedModel) -> TrainedModel:
    """The model with kernels of linear layers and the embedding of tokens in bfloat16, all else as it is.

    A model that computes in bfloat16 rounds just these before it uses them: its outputs stay the same to the bit. Its
    layers that compute in float32 all the same, the last ones of heads, keep their kernels.
    """
    return with_parameters(trained, _rounded(trained.model, trained.variables["params"]), trained.config)


def stored_shapes(model: nn.Module, params: Mapping, stored: str) -> Mapping:
    """Shapes and dtypes of parameters as an export stores them; nothing is computed.

    Args:
      model: their model, without adapters. params: shapes and dtypes of what was trained.
      stored: "float32" for what they are, "bfloat16" as by `in_bfloat16`, "int8" for `in_int8` of all layers of `llm`
        with all else in bfloat16.
    """
    if stored == "float32":
        return params
    rounded = jax.eval_shape(lambda params: _rounded(model, params), params)
    if stored == "bfloat16":
        return rounded
    layers = int8.choose(int8.linear_layers(model), "llm/.*")
    return jax.eval_shape(lambda params: int8.quantize_layers(params, layers), rounded)


def _rounded(model: nn.Module, params: Mapping) -> dict:
    layers = int8.linear_layers(model)
    rounded = [name for name, dtype in layers.items() if dtype == jnp.bfloat16]
    # A model that computes in float32 throughout has no layer in bfloat16: then all kernels are stored in half the
    # room.
    kernels = {name + int8.KERNEL for name in rounded or layers}

    def store(name: str, leaf):
        return leaf.astype(jnp.bfloat16) if name in kernels or EMBEDDING.fullmatch(name) else leaf

    return tree.map_named(store, params)


def in_int8(trained: TrainedModel, modules: str) -> TrainedModel:
    """The model with the kernels of linear layers as 8-bit integers, see `nn/int8.py`.

    Args:
      trained: without adapters. modules: regular expression of whole paths, as of `lora_modules`.

    Raises:
      UserError: it holds such kernels already, or `modules` matches no layer.
    """
    if int8.is_int8(trained.variables):
        raise UserError("this model's kernels are 8-bit integers already; give the run that it was made from")
    layers = int8.choose(int8.linear_layers(trained.model), modules)
    return with_parameters(trained, int8.quantize_layers(trained.variables["params"], layers), trained.config)


def parameter_bytes(trained: TrainedModel) -> int:
    """What the parameters take in memory."""
    return sum(leaf.nbytes for leaf in tree.flatten(trained.variables["params"]).values())


def with_parameters(trained: TrainedModel, params: Mapping, config: ml_collections.ConfigDict) -> TrainedModel:
    """The model of `config` with these parameters, on the same devices; all else is as of `trained`."""
    model = config_lib.build(MODELS, config.model)
    return type(trained)(model, {**trained.variables, "params": params}, config=config, datasets=trained.datasets,
                         step=trained.step, devices=list(trained.mesh.devices.flat))  # fmt: skip
