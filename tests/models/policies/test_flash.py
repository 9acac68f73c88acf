"""Every head trains with fused attention, with and without a state: traced as for a GPU, with odd lengths and all."""

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from lapa_jax.core import config as config_lib
from lapa_jax.nn import attention
from lapa_jax.train.task import Task

LLM = {"name": "llama", "vocab": 40, "dim": 16, "depth": 1, "heads": 2, "hidden": 16, "head": "none",
       "dtype": "bfloat16", "remat": "full"}  # fmt: skip
VISION = {"name": "vision.film_conv", "widths": (4,), "condition": 4, "tokens": 3, "dim": 8}
BODY = {"vision": VISION, "llm": LLM, "image_size": 8, "cameras": 1, "text_length": 5}
ACTION = {"name": "policies.vla_action", **BODY, "action_dim": 2, "chunk_length": 4, "constant": (), "binary": ()}
HEADS = {
    "bins": {"name": "policies.heads.bins", "bins": 8},
    "chunk": {"name": "policies.heads.chunk", "width": 8},
    "latent": {"name": "policies.heads.latent", "width": 8, "heads": 2},
    "flow": {"name": "policies.heads.flow", "width": 8, "heads": 2, "depth": 1, "steps": 2},
}
MODELS = {
    **{f"{head}, state of {size}": ({**ACTION, "head": spec, "state_dim": size}, "action")
       for head, spec in HEADS.items() for size in (0, 3)},
    **{decode: ({"name": "policies.vla", **BODY, "code_length": 2, "codebook_size": 4, "decode": decode}, "latent")
       for decode in ("parallel", "autoregressive")},
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_gradients_can_be_traced(name, monkeypatch):
    # The one thing that tracing asks the machine for is cuDNN's version.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    monkeypatch.setattr(attention, "fused_attention_runs", lambda dtype, features: str(dtype) == "bfloat16")
    spec, loss = MODELS[name]
    task = Task(config_lib.build("lapa_jax.models", spec), {loss: 1.0})
    batch = task.model.example(2)
    variables = jax.eval_shape(lambda: task.init(jax.random.key(0), batch))
    gradient = jax.grad(lambda variables, batch: task.loss(variables, batch, jax.random.key(0))[0])
    trace = str(jax.make_jaxpr(gradient)(variables, batch))
    assert "dot_product_attention_fwd" in trace and "dot_product_attention_bwd" in trace
