"""Supervised inverse dynamics: the encoder of a latent action tokenizer with a linear head that predicts true actions.

How much of the action does a network of this size see in two frames when it is told? This is the reference for codes,
which are learned without actions. It has no codes itself, so codes that are scored by another probe may pass it.
"""

from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.fields import Count, Range
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.probe import r2_score
from lapa_jax.models.tokenizers.laq.frame_pair_model import FramePairModel
from lapa_jax.models.tokenizers.laq.modules import image_shape
from lapa_jax.nn import losses
from lapa_jax.nn.linear import Linear


class Model(base.Model):
    """Frame pairs to the net action between them.

    Batches hold "frames" as LAQ's and "net_action" f32 [B, A]. Loss: "action", the mean squared error in units of
    `action_std`, the same weight for every dimension.

    Attributes:
      tokenizer: the tokenizer whose encoder this is, {"name": "tokenizers.laq", ...}; see `reading`.
      action_dim: A.
      action_mean, action_std: per dimension, of the actions in the training data; empty for 0 and 1.
    """

    tokenizer: FramePairModel
    action_dim: Count = 7
    action_mean: tuple[float, ...] = ()
    action_std: tuple[Annotated[float, Range(above=0)], ...] = ()

    def setup(self):
        self.head = Linear(self.action_dim)

    @nn.nowrap
    def check(self) -> None:
        """Raises UserError for fields that cannot work, with what to change."""
        for field in ("action_mean", "action_std"):
            if len(getattr(self, field)) not in (0, self.action_dim):
                raise UserError(f"{field} has {len(getattr(self, field))} values for {self.action_dim} dimensions")

    @property
    def without_gradient(self) -> tuple[str, ...]:
        return () if getattr(self.tokenizer, "tower", None) is None else ("tokenizer/tower/.*",)

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes."""
        return {
            "frames": np.zeros((batch_size, 2, *image_shape(self.tokenizer.image_size), 3), np.uint8),
            "net_action": np.zeros((batch_size, self.action_dim), np.float32),
        }

    def __call__(self, batch, *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        target = (batch["net_action"] - self._mean()) / self._std()
        return Output(losses={"action": losses.mean_squared_error(self._standardized(batch), target)}, metrics={})

    def predict(self, batch) -> dict[str, jax.Array]:
        """The "actions" f32 [B, A], in the data's units."""
        return {"actions": self._standardized(batch) * self._std() + self._mean()}

    def evaluate(self, batch) -> dict[str, jax.Array]:
        """Per example: "prediction" and "net_action" f32 [B, A]; of which pair, where the batch says it."""
        arrays = {"prediction": self.predict(batch)["actions"], "net_action": batch["net_action"]}
        return arrays | {name: batch[name] for name in ("episode_id", "step", "dataset_id") if name in batch}

    @nn.nowrap
    def summarize(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """The "action_r2_<i>" per dimension that varies, their mean "action_r2", and "action_mse" in data units."""
        prediction, target = arrays["prediction"].astype(np.float64), arrays["net_action"].astype(np.float64)
        r2 = {f"action_r2_{i}": float(v) for i, v in enumerate(r2_score(prediction, target)) if np.isfinite(v)}
        mean = {"action_r2": float(np.mean(list(r2.values())))} if r2 else {}
        return {"action_mse": float(np.mean((prediction - target) ** 2)), **r2, **mean}

    def _standardized(self, batch) -> jax.Array:
        delta = self.tokenizer.unscaled(batch["frames"])
        # All codes' numbers side by side: the head may use each by itself, as the probe of codes does.
        return self.head(delta.reshape(delta.shape[0], -1))

    def _mean(self) -> jax.Array:
        return jnp.asarray(self.action_mean or (0.0,) * self.action_dim, jnp.float32)

    def _std(self) -> jax.Array:
        return jnp.asarray(self.action_std or (1.0,) * self.action_dim, jnp.float32)


def reading(tokenizer: FramePairModel, action_dim: int) -> FramePairModel:
    """A tokenizer with the same encoder and no bottleneck: each of its vectors has at least as many features as an
    action has numbers, and none is quantised."""
    return tokenizer.clone(parent=None, name=None, quant_dim=max(tokenizer.quant_dim, action_dim), quantizer="none",
                           levels=(), replacement="none", delta_norm="none", consistency="none", action_dim=0,
                           horizons=False, flow=False)  # fmt: skip
