"""Low-rank adapters (LoRA, Hu et al. 2021): linear layers learn a product of two thin matrices beside their kernel.

A model offers them by running its forward pass within `adapters`; its layers know nothing of it:

  def __call__(self, batch, *, train):
      with lora.adapters(self.lora_rank, self.lora_alpha, self.lora_modules):
          ...   # everything that calls the adapted layers, in training, evaluation and prediction alike

Every method that calls adapted layers needs the same `with`: without it a layer works as if it had no adapter, and says
nothing. A rank of 0 does nothing. Only the adapters are trained with
`config.optim.groups = ((r".*/lora_[ab]", {}), (".*", None))`, and `config.init_from` takes weights that have none: the
adapters then stay fresh. For export `merge` gives the plain model's parameters, of the same model with rank 0.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.nn.linear import Linear, fan_in_uniform, product
from lapa_jax.nn.placement import split_over_batch

A, B, KERNEL = (tree.SEPARATOR + name for name in ("lora_a", "lora_b", "kernel"))


@contextlib.contextmanager
def adapters(rank: int, alpha: float, modules: str) -> Iterator[None]:
    """Within it every `Linear` whose path matches adds alpha / rank * (x @ lora_a) @ lora_b to what it gives.

    Both are parameters of the layer, f32: "lora_a" [in, rank], which starts like a kernel, and "lora_b" [rank, out],
    which starts at 0, so that a fresh adapter changes nothing; in stacks of layers they are stacked too. The product is
    computed in the layer's dtype.

    Args:
      rank: of the product; 0 for no adapters.
      alpha: the product's weight times the rank: another rank then needs no other learning rate.
      modules: regular expression of whole paths from the outermost module, "llm/decoder/layers/attention/query".

    Raises:
      UserError: a rank below 0, a regular expression that cannot be read, or that matches none of the layers called.
    """
    if not isinstance(rank, int) or rank < 0:
        raise UserError(f"lora_rank is {rank!r}; it must be a whole number, 0 for no adapters")
    if not rank:
        yield
        return
    try:
        wanted = re.compile(modules)
    except re.error as error:
        raise UserError(f"lora_modules '{modules}' is no regular expression ({error})") from None
    met: dict[str, bool] = {}

    def add(call, args, kwargs, context):
        y, module = call(*args, **kwargs), context.module
        if not isinstance(module, Linear) or context.method_name != "__call__":
            return y
        path = tree.SEPARATOR.join(module.path)
        met[path] = wanted.fullmatch(path) is not None
        return y + _product(module, rank, alpha, *args) if met[path] else y

    with nn.intercept_methods(add):
        yield
    if met and not any(met.values()):  # where no layer is called there is nothing to be adapted
        raise UserError(f"lora_modules '{modules}' matches no linear layer; there are {', '.join(sorted(met))}")


def _product(module: Linear, rank: int, alpha: float, x: jax.Array) -> jax.Array:
    """[..., in] -> [..., features] in the layer's dtype; makes the parameters where there are none."""
    a = module.param("lora_a", fan_in_uniform, (x.shape[-1], rank))
    b = module.param("lora_b", nn.initializers.zeros, (rank, module.features))
    thin = product(x.astype(module.dtype).reshape(-1, x.shape[-1]), a)
    thin = split_over_batch(thin.reshape(*x.shape[:-1], rank))
    y = product(thin.reshape(-1, rank), b) * (alpha / rank)
    return y.reshape(*x.shape[:-1], module.features)


def merge(params: Mapping, alpha: float) -> dict:
    """Parameters without adapters that give the same outputs: kernels + alpha / rank * lora_a @ lora_b.

    Args:
      params: the parameters, nested; arrays of numpy or JAX. alpha: as of `adapters`.

    Returns:
      The parameters of the model with rank 0. Kernels that had an adapter are f32, in whatever type they were stored:
      the product is often smaller than what bfloat16 resolves beside them.
    """
    flat = tree.flatten(params)
    plain = {name: leaf for name, leaf in flat.items() if not name.endswith((A, B))}
    for name in flat:
        if name.endswith(A):
            layer = name.removesuffix(A)
            a, b = (jnp.asarray(flat[part], jnp.float32) for part in (name, layer + B))
            change = jnp.matmul(a, b, precision="highest") * (alpha / a.shape[-1])
            plain[layer + KERNEL] = jnp.asarray(flat[layer + KERNEL], jnp.float32) + change
    return tree.unflatten(plain)
