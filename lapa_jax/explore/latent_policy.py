"""The page of a policy of latent actions: which codes it predicts for an instruction, and where these lead."""

from collections.abc import Mapping

import jax
import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.startup import say
from lapa_jax.data.samples.pairs import Gap
from lapa_jax.explore import fields as ask
from lapa_jax.explore.base import Explorer, cameras, chosen_data, raw_source, row_of
from lapa_jax.explore.options import Options, refuse
from lapa_jax.inference import imagine
from lapa_jax.inference.load import load

LIKELY = 3
"""Codes of each position that are shown."""
IMAGINED = 4
"""Latent actions of an imagined rollout."""


class LatentPolicy(Explorer):
    """See `Explorer`. Args: policy: an `inference.policies.LatentPolicy`. run: where it came from. options: see
    `Options`."""

    def __init__(self, policy, run, options: Options):
        refuse(run, policy.kind, options)
        self._decoder = None
        if options.tokenizer is not None:
            if policy.model.cameras > 1:
                raise UserError(f"--tokenizer {options.tokenizer} draws frames of one camera, and {run} sees "
                                f"{policy.model.cameras}; leave it out")  # fmt: skip
            self._decoder = load(options.tokenizer)
            imagine.check(policy, self._decoder)
        config = chosen_data(policy, run, options)
        # Other data need no labels: the policy is asked, and not measured.
        wanted = ("image", "latent") if options.data is None else ("image",)
        self._source = raw_source(config, wanted)
        super().__init__(policy, run, self._source.shards, cameras(config))
        same = [name for name, about in policy.datasets.items() if about.get("fingerprint") == self.shards.fingerprint]
        self._dataset = options.dataset or next(iter(same), None)
        self.calls |= {"predict": self.predict}

    def prepare(self) -> None:
        """Compiles."""
        say("compiling the policy" + (" and the decoder" if self._decoder else ""))
        number, step = self._source.locate(0)
        self.predict({"episode": number, "step": step, "instruction": ""})

    def about(self, fields: Mapping) -> dict:
        """As of `Explorer`, and what is predicted."""
        return {**super().about(fields), "predicts": "codes", "tokenizer": self._decoder is not None}

    def predict(self, fields: Mapping) -> dict:
        """What the policy predicts. Fields: "episode", "step" and "instruction".

        Returns:
          "likely", for each code position its most likely codes, [code, probability] each. In a model that predicts
          one code after the other these are conditioned on the most likely codes before.
          "recorded", the labelled codes of the step; None where the data have none.
          With the tokenizer: "imagined", {"codes", "frame"} for each of the latent actions that the policy predicts
          when it is shown what the decoder draws; "by_recorded", the frame that the recorded codes lead to; and
          "second", the step of the recorded frame that both stand for, None beyond the end of the episode.
        """
        number, step = self.where(fields)
        instruction, images = ask.instruction(fields), self.observed(number, step)
        probabilities = np.asarray(jax.nn.softmax(self._logits(images, instruction)))
        likely = np.argsort(-probabilities, axis=1, kind="stable")[:, :LIKELY]
        chances = np.take_along_axis(probabilities, likely, axis=1)
        row = row_of(self._source, number, step) if "latent" in self._source.fields else None
        recorded = None if row is None else self._source[row]["latent"].tolist()
        answer = {
            "likely": [list(zip(*pair)) for pair in zip(likely.tolist(), ask.numbers(chances))],
            "recorded": recorded,
        }
        if self._decoder is None:
            return answer
        by_recorded = recorded and ask.png_urls([imagine.frames(self._decoder, images, np.array(recorded))])[0]
        imagined = self._imagine(images, instruction)
        return {**answer, "imagined": imagined, "by_recorded": by_recorded, "second": self._second(number, step)}

    def _logits(self, images: np.ndarray, instruction: str) -> np.ndarray:
        return self._trained.logits(images, instruction, dataset=self._dataset)

    def _imagine(self, image: np.ndarray, instruction: str) -> list[dict]:
        """The policy acts in the frames that the decoder draws of its own codes."""
        shown = []
        for _ in range(IMAGINED):
            codes = self._logits(image, instruction).argmax(-1).astype(np.int32)
            frame = imagine.frames(self._decoder, image, codes)
            # A policy sees 8-bit images.
            image = np.rint(frame * 255).astype(np.uint8)
            shown.append({"codes": codes.tolist(), "frame": ask.png_urls([image])[0]})
        return shown

    def _second(self, number: int, step: int) -> int | None:
        """The step that lies the gap of the labels after a step."""
        labels = self._trained.labels or {}
        gap = labels.get("gap") or {"frames": labels.get("gap_frames")}
        if not any(gap.values()):
            return None
        second = step + int(Gap.from_config(**gap).of_episodes(self.shards)[number])
        return second if second < self.shards.episodes[number].length else None
