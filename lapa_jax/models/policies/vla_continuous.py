"""Stage 2 without codes: the vision-language model regresses the delta of an image and an instruction, as GR00T (arXiv
2503.14734) and LAOM (arXiv 2502.00379) learn from continuous latents.

A delta takes the place of a chunk of actions: its N vectors that of the steps, its Q features that of the numbers of an
action. So the heads are those of actions, `policies.heads`: "chunk", L1 regression, or "flow", flow matching.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.output import Output
from lapa_jax.models import base
from lapa_jax.models.policies import action_measures, vision_language, vla_action


def from_data(spec: dict, source, seed: int) -> dict:
    """Fills in what is None and only the data tell, see `vision_language`; `seed` is not needed."""
    batch = source.batch([])
    if "delta" not in batch:
        raise UserError(f"{spec['name']} learns deltas; name 'delta' in data.fields and set data.labels to what "
                        "launch/label.py --continuous wrote")
    # Constant or two-valued features are learned as any other: normalisation makes them harmless.
    sizes = {"chunk_length": batch["delta"].shape[1], "action_dim": batch["delta"].shape[2], "state_dim": 0,
             "constant": [], "binary": []}  # fmt: skip
    filled = vision_language.body_from_data(spec, source)
    given = {name: None if spec.get(name) is None else spec[name] for name in sizes}
    return {**filled, **vision_language.agree(given, sizes)}


class Model(base.DeltaPolicy, vla_action.Model):
    """The delta of a latent action, from images and an instruction.

    Batches are those of `data.samples = "steps"` with the fields "image", "text" and "delta", normalised. The loss is
    "latent", that of the head: a mean over the N * Q features.

    Attributes: those of `vla_action.Model`; chunk_length: N. action_dim: Q.
    """

    @nn.nowrap
    def example(self, batch_size: int) -> dict[str, np.ndarray]:
        """A batch of zeros with the right shapes and dtypes, with all masks 1."""
        batch = super().example(batch_size)
        return {**{name: value for name, value in batch.items() if name not in ("action", "action_mask")},
                "delta": batch["action"], "latent_mask": np.ones(batch_size, np.float32)}  # fmt: skip

    def __call__(self, batch: Mapping[str, jax.Array], *, train: bool) -> Output:
        """The loss of a batch; nothing differs in training."""
        output = super().__call__(_as_chunks(batch), train=train)
        return Output(losses=_named(output.losses), metrics=_named(output.metrics))

    @nn.nowrap
    def weights(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """1 or 0 for each number of the deltas of pairs that are whole or cut short."""
        return _named(super().weights(_as_chunks(batch)))

    def predict(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{"delta": f32 [B, N, Q]}, normalised."""
        return {"delta": super().predict(batch)["action"]}

    def evaluate(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example f32 [B, N, Q]: "action", the true deltas, "prediction", "loss" and "weight", 0 for pairs that are
        cut short."""
        return super().evaluate(_as_chunks(batch))

    @nn.nowrap
    def summarize(self, arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Scalars of the arrays of `evaluate` over a data set, in normalised units.

        Returns:
          What `action_measures.summarize` gives, feature by feature, "latent_" for "action_": "latent_r2" is over
          always giving these data's mean delta, which has 0; "latent_mse_mean" is the error of that, beside
          "latent_mse".
        """
        flat = {name: value.reshape(len(value), -1) for name, value in arrays.items() if value.ndim == 3}
        metrics = _named(action_measures.summarize(flat, ()))
        if (kept := flat["weight"].max(1) > 0).any():
            metrics["latent_mse_mean"] = float(flat["action"][kept].var(0).mean())
        return metrics


def _as_chunks(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch in the words of `vla_action`."""
    mask = jnp.broadcast_to(batch["latent_mask"][:, None], batch["delta"].shape[:2])
    return {**batch, "action": batch["delta"], "action_mask": mask}


def _named(values: Mapping) -> dict:
    return {"latent" + name.removeprefix("action") if name.startswith("action") else name: value
            for name, value in values.items()}  # fmt: skip
