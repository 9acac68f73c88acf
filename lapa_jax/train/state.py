"""The state of a training run: everything that the next step depends on, besides the seed and the data."""

import flax.struct
import jax
import jax.numpy as jnp

from lapa_jax.core import tree
from lapa_jax.train import ema
from lapa_jax.train.optim import Optimizer
from lapa_jax.train.task import Task


@flax.struct.dataclass
class State:
    """Attributes: step: int32 scalar, steps done. variables: all collections, "ema" among them where the run averages
    (see `ema`). opt_state: the optimizer's state."""

    step: jax.Array
    variables: dict
    opt_state: object


def init_state(task: Task, make_optimizer, seed: int, batch) -> State:
    """Fresh state; `make_optimizer(params)` gives the optimizer whose slots cover trainable parameters only."""
    variables = task.init(jax.random.key(seed), batch)
    optimizer: Optimizer = make_optimizer(variables["params"])
    trainable, frozen = tree.split(variables["params"], optimizer.trainable)
    variables["params"] = tree.merge(trainable, _stored(frozen, optimizer.frozen_dtype))
    if optimizer.ema_decay is not None:
        variables[ema.COLLECTION] = ema.start(trainable)
    trained, _ = optimizer.split(variables["params"])
    return State(jnp.zeros((), jnp.int32), variables, optimizer.transform.init(trained))


def _stored(params: dict, dtype: str) -> dict:
    """With floating-point numbers as `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)
