import jax
import jax.numpy as jnp

from lapa_jax.train.flops import count_flops


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
