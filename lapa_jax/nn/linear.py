"""The linear layer that everything here uses, and its initialisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core import counting, gradients
from lapa_jax.nn.placement import device_in_use, split_over_batch

# Uniform in ±1/sqrt(fan_in): what the official LAQ starts from. Its smaller scale (a third of the variance of Flax's
# default) decides how large the first deltas are beside the codebook, and thereby how training starts.
fan_in_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


INT8_KERNEL, INT8_SCALE = "kernel_int8", "kernel_scale"
"""What an exported model may have in place of a "kernel"; see `nn/int8.py`."""


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [N, in] times a kernel [in, out] of any type -> [N, out] in the type of `x`; see `core.gradients`."""
    if _is_one_row_on_gpu(x):
        return _weighted_sum(x, kernel).astype(x.dtype)
    if gradients.in_float32() and x.dtype != kernel.dtype and not counting.counted():
        return _product_with_float32_gradient(x, kernel)
    return x @ kernel.astype(x.dtype)


def _is_one_row_on_gpu(x: jax.Array) -> bool:
    # Of programs that are exported the number of rows is a symbol, which is not 1.
    return x.shape[0] == 1 and device_in_use().platform == "gpu" and not counting.counted()


def _weighted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [1, in] times a kernel [in, out] of any type -> f32 [1, out], as the sum of the kernel's weighted rows.

    A product of one row takes as long as reading its kernel. XLA hands products to libraries, for which it first copies
    a layer out of the stack of all layers, and integers into floats: each kernel would be read, written and read again.
    A sum is a kernel of XLA's own, which reads them where they lie. (`tools/audit_step.py --act` shows the difference.)
    """
    return jnp.sum(x[0, :, None].astype(jnp.float32) * kernel.astype(x.dtype).astype(jnp.float32), axis=0)[None]


@jax.custom_vjp
def _product_with_float32_gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel.astype(x.dtype)


def _forward(x, kernel):
    return _product_with_float32_gradient(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    # Each device sums over its own examples. The sum is rounded after all devices' sums are added up, and not before.
    kernel_grad = jnp.matmul(x.T, grad, preferred_element_type=jnp.float32)
    return grad @ kernel.astype(grad.dtype).T, kernel_grad.astype(kernel.dtype)


_product_with_float32_gradient.defvjp(_forward, _backward)


class Linear(nn.Module):
    """A dense layer over the last axis; the bias starts at 0.

    The leading axes are merged into one for the product: on a CPU the products of the backward pass are then 1.7 times
    faster (measured with XLA in jax 0.10), elsewhere it makes no difference.

    Attributes:
      features: width of the output.
      use_bias: whether a bias is added.
      scale: factor on the initial kernel.
      dtype: dtype of the computation; parameters ("kernel" [in, out], "bias" [out]) are float32.
    """

    features: int
    use_bias: bool = True
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., in] -> [..., features] in `dtype`."""
        y = self._product(x.astype(self.dtype).reshape(-1, x.shape[-1]))
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return split_over_batch(y.reshape(*x.shape[:-1], self.features))

    def _product(self, x: jax.Array) -> jax.Array:
        """x: [N, in] times the kernel -> [N, features] in `dtype`.

        A kernel of integers is only converted where it is used, to `dtype`, which holds them exactly; the scales are
        those of the columns, so the sum is multiplied by them, in float32.
        """
        if self.has_variable("params", INT8_KERNEL):
            kernel, scale = (self.get_variable("params", name) for name in (INT8_KERNEL, INT8_SCALE))
            if _is_one_row_on_gpu(x):
                y = _weighted_sum(x, kernel)
            else:
                y = jnp.matmul(x, kernel.astype(self.dtype), preferred_element_type=jnp.float32)
            return (y * scale).astype(self.dtype)
        init = lambda *args: self.scale * fan_in_uniform(*args)  # noqa: E731
        return product(x, self.param("kernel", init, (x.shape[-1], self.features)))
