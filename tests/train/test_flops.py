import functools

import jax
import jax.numpy as jnp
import pytest

from lapa_jax.models import llama
from lapa_jax.nn import attention
from lapa_jax.train.flops import count_flops, peak_flops, trace_step


def test_products_and_convolutions_count_a_multiply_add_as_two():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    assert count_flops(lambda x, y: jnp.tanh(x @ y), a, b) == 2 * 4 * 8 * 16
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=numbers)  # noqa: E731
    assert count_flops(conv, images, kernel) == 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)


def test_a_scan_counts_its_length_and_a_gradient_three_times_its_product():
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))

    def chain(x, w):
        return jax.lax.scan(lambda carry, _: (carry @ w, None), x, None, length=5)[0].sum()

    one = 2 * 4 * 8 * 8
    assert count_flops(chain, x, w) == 5 * one
    assert count_flops(jax.jit(jax.checkpoint(chain)), x, w) == 5 * one
    # Forward, the gradient of the weights, and the gradient of the carry.
    assert count_flops(jax.grad(chain, argnums=1), x, w) == 15 * one


@functools.cache
def decoder(remat: str):
    """Its forward pass, and parameters and embeddings, as shapes."""
    model = llama.Model(vocab=64, dim=32, depth=3, heads=2, hidden=48, head="none", remat=remat)
    embeddings = jax.ShapeDtypeStruct((2, 16, 32), jnp.float32)
    params = jax.eval_shape(lambda e: model.init(jax.random.key(0), embeddings=e), embeddings)
    return lambda p, e: model.apply(p, embeddings=e).sum(), params, embeddings


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_what_is_computed_again_is_no_work_of_the_model(remat):
    """Of parameters and embeddings that are trained the model needs three forward passes, whatever is kept of them."""
    forward, params, embeddings = decoder(remat)
    once = count_flops(forward, params, embeddings)
    _, flops = trace_step(jax.grad(forward, (0, 1)), params, embeddings)
    assert flops.model == 3 * once
    assert (flops.hardware > flops.model) == (remat != "none")
    if remat == "full":
        assert flops.hardware > 3.5 * once


def test_what_is_frozen_counts_once():
    forward, params, embeddings = decoder("full")
    frozen = jax.grad(lambda e, p: e.sum() * forward(jax.lax.stop_gradient(p), jax.lax.stop_gradient(e)))
    assert trace_step(frozen, embeddings, params)[1].model == count_flops(forward, params, embeddings)


def test_fused_kernels_are_counted_as_what_they_compute(monkeypatch):
    """Their operations do not show in a trace: the plain ones take their place while it is counted."""
    monkeypatch.setattr(attention, "fused_attention_runs", lambda dtype, features: True)
    monkeypatch.setattr(attention, "in_whole_tiles", lambda *args, **kwargs: pytest.fail("a kernel in a counted trace"))
    model = llama.Model(vocab=64, dim=32, depth=1, heads=2, hidden=48, head="none", dtype="bfloat16", flash=True)
    plain = model.clone(flash=False)
    embeddings = jax.ShapeDtypeStruct((2, 5, 32), jnp.float32)
    params = jax.eval_shape(lambda e: plain.init(jax.random.key(0), embeddings=e), embeddings)
    counted = [count_flops(lambda p, e, m=m: m.apply(p, embeddings=e), params, embeddings) for m in (model, plain)]
    assert counted[0] == counted[1] > 0


@pytest.mark.parametrize(("kind", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("TPU v5 lite", 197e12), ("TPU v5", 459e12),
    ("TPU v5p", 459e12), ("TPU v6 lite", 918e12), ("cpu", None),
])  # fmt: skip
def test_peaks_go_by_the_longest_name(kind, peak):
    assert peak_flops(kind) == peak


def test_a_trace_for_counting_leaves_the_next_one_alone():
    forward, params, embeddings = decoder("full")
    gradient = jax.grad(forward)
    count_flops(gradient, params, embeddings)
    assert "remat" in str(jax.make_jaxpr(gradient)(params, embeddings)) or "checkpoint" in str(
        jax.make_jaxpr(gradient)(params, embeddings))  # fmt: skip


@pytest.mark.parametrize("remat, traces", [("none", 1), ("dots", 2)])
def test_a_step_is_traced_again_only_where_that_counts_otherwise(remat, traces):
    forward, params, embeddings = decoder(remat)
    calls = []

    def step(params, embeddings):
        calls.append(remat)
        return jax.grad(forward)(params, embeddings)

    traced, flops = trace_step(step, params, embeddings)
    assert len(calls) == traces
    assert flops.hardware == count_flops(step, params, embeddings, recomputation=True)
    assert flops.model == count_flops(step, params, embeddings)
    assert ("remat" in str(traced.jaxpr) or "checkpoint" in str(traced.jaxpr)) == (remat != "none"), "what runs"
