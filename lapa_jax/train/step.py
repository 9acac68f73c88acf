"""One training step: gradients, accumulation, update, and what the model does after it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lapa_jax.core import gradients, layers
from lapa_jax.train import ema
from lapa_jax.train.optim import Optimizer, join, reset_moments
from lapa_jax.train.state import State
from lapa_jax.train.task import Task


def make_train_step(
    task: Task, optimizer: Optimizer, *, seed: int, micro_batches: int = 1, grad_dtype: str | None = None
) -> Callable:  # fmt: skip
    """Builds `step(state, batch) -> (state, metrics)`, a pure function of its arguments and the seed.

    Args:
      task: what is trained.
      optimizer: its optimizer; parameters outside `optimizer.trainable` are neither differentiated nor updated.
      seed: the run's seed; the step's noise is `fold_in(key(seed), step)`, so a resumed run draws the same.
      micro_batches: gradients of that many slices of the batch are added up before the update: they are those of the
        whole batch, but for what examples of a slice see of each other.
      grad_dtype: "float32", or None for the type of the computation; see `core.gradients`.

    Returns:
      The step function. Its metrics are f32 scalars, with "loss", "grad_norm" and "learning_rate" among them; of a run
      with several groups of parameters also "grad_norm_<number>" of each.
    """

    def step(state: State, batch) -> tuple[State, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        params, averages = state.variables["params"], state.variables.get(ema.COLLECTION)
        collections = {name: x for name, x in state.variables.items() if name not in ("params", ema.COLLECTION)}
        trained, frozen = optimizer.split(params)
        with layers.frozen(optimizer.frozen_stacks(params)), gradients.in_dtype(grad_dtype):
            grads, collections, metrics = _gradients(task, trained, frozen, collections, batch, rng, micro_batches)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, trained)
        params = join(optax.apply_updates(trained, updates), frozen)
        after_rng = jax.random.fold_in(rng, micro_batches)
        variables, reset = task.after_update({"params": params, **collections}, state.step + 1, after_rng)
        if averages is not None:
            variables = {**variables, ema.COLLECTION: ema.follow(averages, variables["params"], optimizer.ema_decay)}
        metrics |= optimizer.grad_norms(grads)
        metrics["learning_rate"] = jnp.asarray(optimizer.learning_rate(state.step), jnp.float32)
        return State(state.step + 1, variables, reset_moments(opt_state, reset)), metrics

    return step


def _gradients(task: Task, trained, frozen, collections, batch, rng, micro_batches: int):
    """Gradients w.r.t. what is trained, updated collections and metrics, added up over micro-batches."""
    totals = task.totals(batch)

    def loss(trained, collections, batch, rng):
        variables = {"params": join(trained, frozen), **collections}
        total, (updated, metrics) = task.loss(variables, batch, rng, totals)
        return total, (updated, {"loss": total, **metrics})

    grad = jax.grad(loss, has_aux=True)
    if micro_batches == 1:
        grads, (collections, metrics) = grad(trained, collections, batch, jax.random.fold_in(rng, 0))
        return grads, collections, metrics

    def accumulate(carry, slice_and_index):
        (sums, collections), (micro, index) = carry, slice_and_index
        grads, (collections, metrics) = grad(trained, collections, micro, jax.random.fold_in(rng, index))
        return (jax.tree.map(jnp.add, sums, grads), collections), metrics

    # Strided slices: with the batch sharded over devices, every device holds its share of every micro-batch.
    slices = jax.tree.map(lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(jnp.zeros_like, trained)
    (grads, collections), parts = jax.lax.scan(accumulate, (zeros, collections), (slices, jnp.arange(micro_batches)))
    return grads, collections, jax.tree.map(lambda part: part.sum(0), parts)
