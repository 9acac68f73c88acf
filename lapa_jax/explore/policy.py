"""The page of a policy of actions: what it does at a recorded step when it is told an instruction."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.startup import say
from lapa_jax.data.samples.meta import dimension_names
from lapa_jax.explore import fields as ask
from lapa_jax.explore.base import Explorer, cameras, chosen_data, raw_source, row_of
from lapa_jax.explore.options import Options, refuse


class Policy(Explorer):
    """See `Explorer`. Args: policy: an `inference.policies.Policy`. run: where it came from. options: see `Options`."""

    def __init__(self, policy, run, options: Options):
        refuse(run, policy.kind, options)
        config = chosen_data(policy, run, options)
        self._source = raw_source(config, ("image", "action", "state"))
        super().__init__(policy, run, self._source.shards, cameras(config))
        self._dataset = policy.dataset_of(self.shards.fingerprint, options.dataset)
        feature, width = self.shards.features["action"], policy.width_of(self._dataset)
        if feature["shape"][0] != width:
            raise UserError(f"{self.shards.folder} has actions of {feature['shape'][0]} numbers, {run} gives {width}; "
                            "give data of the same robot with --data")  # fmt: skip
        self._names = dimension_names(feature, width)
        # Released weights may come without statistics, with the bins of their actions alone.
        about = policy.datasets.get(self._dataset, {}).get("statistics", {}).get("action")
        self._ranges = np.stack([about["q01"], about["q99"]], axis=1) if about else np.full((width, 2), np.nan)
        self.calls |= {"predict": self.predict}

    def prepare(self) -> None:
        """Compiles."""
        say("compiling the policy")
        number, step = self._source.locate(0)
        self.predict({"episode": number, "step": step, "instruction": ""})

    def about(self, fields: Mapping) -> dict:
        """As of `Explorer`, and what is predicted."""
        return {**super().about(fields), "predicts": "actions"}

    def predict(self, fields: Mapping) -> dict:
        """What the policy would do. Fields: "episode", "step" and "instruction".

        Returns:
          "names" of the dimensions, and "ranges" f[A, 2], between which 98 % of the data lie; "predicted" f[T, A], the
          action chunk in the units of the data; "recorded" f[T, A], with null where the episode has no action; "fps" of
          the episode, None where it has no clock.
        """
        number, step = self.where(fields)
        instruction = ask.instruction(fields)
        row = row_of(self._source, number, step)
        sample = None if row is None else self._source[row]
        if self._trained.model.state_dim and sample is None:
            raise UserError("this step has no action or no state, which the policy needs to see; choose another one")
        state = sample["state"] if self._trained.model.state_dim else None
        predicted = self._trained.chunk(self.observed(number, step), instruction, state, dataset=self._dataset)
        recorded = np.full(predicted.shape, np.nan)
        if sample is not None:
            rows = np.flatnonzero(sample["action_mask"][: len(recorded)] > 0)
            recorded[rows] = sample["action"][rows, : recorded.shape[1]]
        fps = float(self.shards.episode_fps()[number])
        return {
            "names": self._names,
            "ranges": ask.numbers(self._ranges),
            "predicted": ask.numbers(predicted),
            "recorded": ask.numbers(recorded),
            "fps": fps if np.isfinite(fps) else None,
        }
