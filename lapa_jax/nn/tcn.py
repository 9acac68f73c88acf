"""Multi-stage temporal convolutional networks (MS-TCN, Abu Farha and Gall, CVPR 2019) over sequences with masks.

A dilated residual layer is x + conv1(relu(conv3(x))), where conv3 has kernel 3 and layer i of a stage the dilation 2^i.
Every layer multiplies its result by the mask: what a step that does not exist would hold never reaches another step.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core.errors import UserError
from lapa_jax.nn.linear import fan_in_uniform

KERNEL = 3


def reach(layers: int, stages: int = 1, *, causal: bool = False) -> tuple[int, int]:
    """How many steps (back, ahead) of a step its output depends on: 2^L - 1 a stage to each side; causal: all back."""
    side = stages * (2**layers - 1)
    return (2 * side, 0) if causal else (side, side)


def receptive_field(layers: int, stages: int = 1) -> int:
    """Steps that an output depends on, its own included: 1 + 2 (2^L - 1) per stage, causal or not."""
    return 1 + sum(reach(layers, stages))


def check_context(layers: int, stages: int, context: int) -> None:
    """Bounds the receptive field by the context: no layer may reach past it from every step.

    The output of a step depends on `receptive_field(layers, stages)` steps or on the whole window of `context` steps,
    whichever is less. A layer whose dilation is the context or more sees zero padding on both sides of every step; it
    is a waste, and behaves differently on longer sequences, which the training never saw.

    Raises:
      UserError: such layers exist; the message says which, and how many the context allows.
    """
    most = max(1, (context - 1).bit_length())
    if layers > most:
        raise UserError(
            f"layers {layers} with a context of {context} steps: the receptive field is {receptive_field(layers)} "
            f"steps a stage ({receptive_field(layers, stages)} over {stages}), and the dilations {2**most} to "
            f"{2 ** (layers - 1)} of layers {most + 1} to {layers} see padding only; set layers to {most} or less, or "
            f"a context of more than {2 ** (layers - 1)}"
        )


def _conv(features: int, kernel: int, dtype: jnp.dtype, name: str, **how) -> nn.Conv:
    # The initial scale of the published MS-TCN: with Flax's, three times its variance, every layer would double that
    # of its input, and a stack of two stages start with outputs a hundred times too large.
    return nn.Conv(features, (kernel,), kernel_init=fan_in_uniform, dtype=dtype, name=name, **how)


class DilatedResidualLayer(nn.Module):
    """x + dropout(conv1(relu(conv3(x)))), masked.

    Attributes:
      dilation: distance of the three taps of conv3.
      causal: the taps are the step itself and two earlier ones (padding on the left only), else one on each side.
      dropout: rate, in training (rng stream "dropout").
      dtype: of the computation; parameters ("dilated/kernel" [3, F, F], "mix/kernel" [1, F, F], biases) are float32.
    """

    dilation: int
    causal: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, T, F], mask: f32 [B, T, 1] -> [B, T, F]."""
        sides = ((KERNEL - 1) * self.dilation, 0) if self.causal else (self.dilation, self.dilation)
        width = x.shape[-1]
        y = _conv(width, KERNEL, self.dtype, "dilated", padding=(sides,), kernel_dilation=self.dilation)(x)
        y = _conv(width, 1, self.dtype, "mix")(nn.relu(y))
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return (x + y) * mask.astype(x.dtype)


class Stage(nn.Module):
    """conv1 to `width`, `layers` dilated residual layers with dilations 1, 2, 4, ..., conv1 to `features`.

    Attributes:
      layers, width, features: see above. causal, dropout: as of `DilatedResidualLayer`.
      dtype: of the dilated layers. The two outer convolutions are float32: they read and write actions, which bfloat16
        rounds to steps of 0.004 near 1.
    """

    layers: int
    width: int
    features: int
    causal: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """x: f32 [B, T, in], mask: f32 [B, T, 1] -> f32 [B, T, features], 0 where the mask is."""
        x = (_conv(self.width, 1, jnp.float32, "inwards")(x * mask) * mask).astype(self.dtype)
        for index in range(self.layers):
            layer = DilatedResidualLayer(2**index, self.causal, self.dropout, self.dtype, name=f"layer_{index}")
            x = layer(x, mask, train=train)
        return _conv(self.features, 1, jnp.float32, "outwards")(x) * mask


class MultiStage(nn.Module):
    """Stages one after the other. Features pass between them as they are: the softmax of MS-TCN is for class scores.

    Attributes:
      stages: how many.
      features: width of the result of the last stage; the others give `width`.
      layers, width, causal, dropout, dtype: as of `Stage`.
    """

    stages: int
    layers: int
    width: int
    features: int
    causal: bool = False
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, T, in], mask: f32 [B, T], 1 for steps that exist -> f32 [B, T, features], 0 elsewhere."""
        for index in range(self.stages):
            features = self.features if index == self.stages - 1 else self.width
            stage = Stage(self.layers, self.width, features, self.causal, self.dropout, self.dtype,
                          name=f"stage_{index}")  # fmt: skip
            x = stage(x, mask[..., None], train=train)
        return x
