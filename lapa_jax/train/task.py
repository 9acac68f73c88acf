"""The seam between the loop and a model: pure functions over `variables`. The loop knows a Task, not a model."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import did_you_mean
from lapa_jax.train.ema import averaged

Variables = Mapping[str, object]
Metrics = dict[str, jax.Array]


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

    def loss(self, variables: Variables, batch, rng: jax.Array) -> tuple[jax.Array, tuple[dict, Metrics]]:
        """The training loss of a batch.

        Returns:
          The scalar f32 loss (mean over the batch of the weighted sum of the named losses), the updated collections
          other than "params", and scalar metrics ("loss_<term>" and the model's own).
        """
        mutable = [name for name in variables if name != "params"]
        rngs = {name: jax.random.fold_in(rng, i) for i, name in enumerate(("noise", "dropout"))}
        output, updated = self.model.apply(variables, batch, train=True, mutable=mutable, rngs=rngs)
        self._check_losses(output.losses)
        # One loss an example, whatever the model does within: else a mean over the batch would weigh them otherwise.
        rows = jax.tree.leaves(batch)[0].shape[0]
        chex.assert_shape(list(output.losses.values()), (rows,))
        means = {name: value.astype(jnp.float32).mean() for name, value in output.losses.items()}
        total = sum(self.loss_weights[name] * means[name] for name in means if self.loss_weights.get(name))
        metrics = {f"loss_{name}": value for name, value in means.items()}
        metrics |= {name: jnp.mean(value) for name, value in output.metrics.items()}
        return total, (dict(updated), metrics)

    def evaluate(self, variables: Variables, batch) -> dict[str, jax.Array]:
        """Per-example arrays `[B, ...]`, without noise and without updates."""
        arrays = self.model.apply(averaged(variables), batch, method="evaluate")
        chex.assert_tree_shape_prefix(arrays, jax.tree.leaves(batch)[0].shape[:1])
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
        for name in self.loss_weights:
            if name not in losses:
                raise ConfigError(f"config.loss weighs '{name}', which the model does not have"
                                  f"{did_you_mean(name, losses)}")
        if not any(self.loss_weights.get(name) for name in losses):
            raise ConfigError(f"config.loss gives every loss the weight 0; losses of the model: {sorted(losses)}")
