"""The page of a tokenizer of frame pairs: the codes of recorded pairs, and where codes lead."""

from collections.abc import Mapping

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.startup import say
from lapa_jax.data import images, pipeline
from lapa_jax.explore import fields as ask
from lapa_jax.explore.base import Explorer, chosen_data, row_of
from lapa_jax.explore.options import Options, refuse
from lapa_jax.explore.pair_index import PairIndex
from lapa_jax.inference import imagine
from lapa_jax.nn.quantizers import usage

PAIRS = 500
MOST_SHOWN = 64
"""Codes of a position that the page has buttons for."""
RECORDED = 8
"""Pairs of the recording whose codes are played one after the other."""


class LatentActions(Explorer):
    """See `Explorer`. Args: tokenizer: a `LatentActionTokenizer`. run: where it came from. options: see `Options`."""

    def __init__(self, tokenizer, run, options: Options):
        refuse(run, tokenizer.kind, options)
        if not tokenizer.discrete:
            raise UserError(f"{run} has no codes to explore (model.quantizer is 'none'): look at the gallery of "
                            f"launch/eval.py --run {run}, or explore a run with codes")  # fmt: skip
        config = chosen_data(tokenizer, run, options)
        fields = ("frames", "net_action") if pipeline.has_actions(config, "val") else ("frames",)
        self._source = pipeline.build(config, "val", image_size=tokenizer.side, fields=fields)
        super().__init__(tokenizer, run, self._source.shards, (self._source.camera,))
        self._count = PAIRS if options.pairs is None else options.pairs
        self.calls |= {"recorded": self.recorded, "rollout": self.rollout, "pairs": self.pairs}

    def prepare(self) -> None:
        """Encodes a sample of pairs, and compiles the decoder."""
        tokenizer = self._trained
        self.index = PairIndex(tokenizer, self._source, self._count)
        say(f"{len(self.index)} of {len(self._source)} pairs encoded; compiling the decoder")
        first = self.image(int(self.index.episode[0]), int(self.index.step[0]), 0)
        if tokenizer.predicts_images:
            imagine.rollout(tokenizer, first, self.index.codes[:1])
        tokenizer.encode(np.stack([first, first]))

    def about(self, fields: Mapping) -> dict:
        """As of `Explorer`, and what codes there are."""
        counts = usage.histogram(self.index.codes, self._trained.codebook_size)
        often = np.sort(np.argsort(-counts, axis=1, kind="stable")[:, :MOST_SHOWN], axis=1)
        return {
            **super().about(fields),
            "codes": {
                "size": self._trained.codebook_size,
                "shown": often.tolist(),
                "counts": np.take_along_axis(counts, often, axis=1).tolist(),
                "images": self._trained.predicts_images,
            },
            "pairs": {"encoded": len(self.index), "all": len(self._source)},
            "has_actions": self.index.names is not None,
        }

    def image(self, episode: int, step: int, camera: int) -> np.ndarray:
        """uint8 [H, W, 3], the image of a step as the tokenizer sees it."""
        stored, side = super().image(episode, step, camera), self._trained.side
        how = self.shards.features[self.cameras[camera]].get(images.RESIZE)
        return stored if side is None else images.to_side(stored, side, how, None)

    def step(self, fields: Mapping) -> dict:
        """As of `Explorer`, with the pair that begins there: "second", the step of its second frame, and "codes"; both
        None where the episode ends within the gap."""
        number, step = self.where(fields)
        second, codes = self._pair(number, step)
        return {**super().step(fields), "second": second, "codes": codes}

    def recorded(self, fields: Mapping) -> dict:
        """The codes of pairs of the recording, each of which begins where the one before ends. Fields as of `step`.

        Returns:
          "actions", their codes, and "steps" of their second frames.
        """
        number, step = self.where(fields)
        actions, steps = [], []
        for _ in range(RECORDED):
            second, codes = self._pair(number, step)
            if second is None:
                break
            actions.append(codes)
            steps.append(step := second)
        return {"actions": actions, "steps": steps}

    def rollout(self, fields: Mapping) -> dict:
        """The "frames" that latent actions lead to from a recorded frame. Fields as of `step`, and "actions"."""
        tokenizer = self._trained
        if not tokenizer.predicts_images:
            raise UserError(f"a {tokenizer.config.model.name} of features predicts no images; there is nothing to show")
        number, step = self.where(fields)
        actions = ask.actions(fields, tokenizer.code_length, tokenizer.codebook_size)
        return {"frames": ask.png_urls(imagine.rollout(tokenizer, self.image(number, step, 0), actions))}

    def pairs(self, fields: Mapping) -> dict:
        """The encoded pairs that have some codes. Fields: "codes", with null where any code will do.

        Returns:
          "count" of them; "examples", [episode, first step, second step] each; "actions", for each dimension its
          "name", "mean" net action over the gap in the units of the data, and how many "deviations" that is from the
          mean of all pairs; None without actions.
        """
        rows = self.index.matches(ask.pattern(fields, self._trained.code_length, self._trained.codebook_size))
        means = self.index.mean_action(rows)
        table = means and [
            {"name": name, "mean": mean, "deviations": away}
            for name, mean, away in zip(self.index.names, *(ask.numbers(means[key]) for key in ("mean", "deviations")))
        ]
        return {"count": len(rows), "examples": self.index.examples(rows), "actions": table}

    def _pair(self, number: int, step: int) -> tuple[int | None, list[int] | None]:
        """The step of the second frame of the pair that begins at a step, and its codes; None where there is none."""
        source = self._source
        row = row_of(source, number, step)
        if row is None:
            return None, None
        return step + int(source.gaps[number]), self._trained.encode(source[row]["frames"]).tolist()
