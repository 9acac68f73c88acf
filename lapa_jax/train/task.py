"""The seam between the loop and a model: pure functions over `variables`. The loop knows a Task, not a model."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean
from lapa_jax.train.ema import averaged

Variables = Mapping[str, object]
Metrics = dict[str, jax.Array]


class Totals(NamedTuple):
    """Of a whole batch. examples: how many. weights: {loss or metric that the model weighs: the sum of the weights}."""

    examples: int
    weights: dict[str, jax.Array]


class Task:
    """Wraps a model into the functions that training needs.

    `variables` is `{"params": ..., "codebook": ...}`: "params" is differentiated, every other collection is state that
    the forward pass updates in training. In a run that averages its parameters `evaluate` and `predict` take averages.
    """

    def __init__(self, model, loss_weights: Mapping[str, float]):
        """Args: model: a `models.base.Model`. loss_weights: named loss -> weight; 0 leaves a term out."""
        self.model = model
        self.loss_weights = dict(loss_weights)

    def init(self, rng: jax.Array, batch) -> dict:
        """Initial variables; the batch gives shapes and, to a data-dependent initialisation, values."""
        rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(("params", "noise", "dropout"))}
        return dict(self.model.init(rngs, batch, train=True))

    def totals(self, batch) -> Totals:
        """What losses and metrics of a batch are divided by; see `loss`."""
        weights = self.model.weights(batch)
        sums = {name: jnp.sum(value.astype(jnp.float32)) for name, value in weights.items()}
        return Totals(_size(batch), {name: jnp.where(total > 0, total, 1) for name, total in sums.items()})

    def loss(
        self, variables: Variables, batch, rng: jax.Array, totals: Totals | None = None
    ) -> tuple[jax.Array, tuple[dict, Metrics]]:
        """The training loss of a batch, or the part that some of its examples have in it.

        Every named loss is a mean over the examples, weighed by `Model.weights`. Its sum over the given examples is
        divided by the weight of the whole batch, so that the parts of micro-batches add up to the batch's loss, its
        gradient and metrics, however unevenly masks are spread over them.

        Args:
          totals: of the whole batch; those of `batch` if None.

        Returns:
          The scalar f32 loss (the weighted sum of the named losses), the updated collections other than "params", and
          scalar metrics ("loss_<term>" and the model's own).
        """
        weights, totals = self.model.weights(batch), self.totals(batch) if totals is None else totals

        def part(name: str, values: jax.Array) -> jax.Array:
            """Of a mean over the whole batch; a scalar counts as that of each example."""
            values = values.astype(jnp.float32)
            if values.ndim == 0:
                return values * (_size(batch) / totals.examples)
            if name in weights:
                return jnp.sum(values * weights[name]) / totals.weights[name]
            return jnp.sum(values) / totals.examples

        mutable = [name for name in variables if name != "params"]
        rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(("noise", "dropout"))}
        output, updated = self.model.apply(variables, batch, train=True, mutable=mutable, rngs=rngs)
        self._check_losses(output.losses)
        # One loss an example, whatever the model does within: else a mean over the batch would weigh them otherwise.
        chex.assert_shape([*output.losses.values(), *weights.values()], (_size(batch),))
        if unknown := weights.keys() - output.losses.keys() - output.metrics.keys():
            raise ValueError(f"{type(self.model).__module__} weighs {sorted(unknown)}, which it does not give")
        terms = {name: part(name, value) for name, value in output.losses.items()}
        total = sum(self.loss_weights[name] * terms[name] for name in terms if self.loss_weights.get(name))
        metrics = {f"loss_{name}": value for name, value in terms.items()}
        metrics |= {name: part(name, value) for name, value in output.metrics.items()}
        return total, (dict(updated), metrics)

    def evaluate(self, variables: Variables, batch) -> dict[str, jax.Array]:
        """Per-example arrays `[B, ...]`, without noise and without updates."""
        arrays = self.model.apply(averaged(variables), batch, method="evaluate")
        chex.assert_tree_shape_prefix(arrays, (_size(batch),))
        return arrays

    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars from the arrays of `evaluate` over a whole data set; see the model's `summarize`."""
        return self.model.summarize(arrays)

    def predict(self, variables: Variables, batch) -> dict[str, jax.Array]:
        """The model's predictions, e.g. codes and reconstructions."""
        return self.model.apply(averaged(variables), batch, method="predict")

    def after_update(self, variables: Variables, step: jax.Array, rng: jax.Array) -> tuple[Variables, dict]:
        """What happens after an optimizer step, e.g. dead-code replacement.

        Returns:
          The new variables, and a mask per parameter name of the entries whose optimizer moments start afresh.
        """
        return self.model.after_update(variables, step=step, rng=rng)

    def _check_losses(self, losses: Mapping[str, jax.Array]) -> None:
        for name, weight in self.loss_weights.items():
            if name in losses:
                continue
            why = self.model.absent_losses.get(name)
            if why is None:
                raise ConfigError(f"config.loss weighs '{name}', which the model does not have"
                                  f"{did_you_mean(name, losses)}")
            if weight:
                raise ConfigError(f"config.loss.{name} is {weight:g}, and {why}, or set config.loss.{name}=0")
        if not any(self.loss_weights.get(name) for name in losses):
            raise ConfigError(f"config.loss gives every loss the weight 0; losses of the model: {sorted(losses)}")


def _size(batch) -> int:
    """How many examples a batch has."""
    return jax.tree.leaves(batch)[0].shape[0]
