"""Options that the simulators of this package share: which tasks, in which words, and how they look.

  split: "all", or "seen" or "unseen": whether an episode asks for what is never asked for in training.
  wordings: "one" (the first for each task), "seen" (a training paraphrase), "unseen" (a held-out paraphrase).
  varied: colours, light and camera differ from episode to episode. moving: patches of colour drift over the background.

Which layout a seed gives does not depend on wordings and looks: they have random numbers of their own.
"""

from typing import NamedTuple

import numpy as np

from lapa_jax.core.errors import UserError, did_you_mean

SPLITS = {"all": None, "seen": False, "unseen": True}
"""Name -> whether tasks are held out; None: no matter."""

WORDINGS = ("one", "seen", "unseen")
HELP = {
    "size": "edge of the images in pixels",
    "split": "all (default), seen or unseen: tasks of training, or tasks that are held out",
    "wordings": "instruction paraphrases: one (default), seen (training paraphrases) or unseen (held-out paraphrases)",
    "varied": "colours, light, camera and table differ from episode to episode",
    "moving": "patches of colour drift over the background",
}
MAX_SIZE = 1024  # pixels
WORDS, LOOKS = 1, 2
"""Streams of random numbers beside the one of the layout."""


class Wordings(NamedTuple):
    """Instructions of one task: `seen` for training, the first of them the default; `unseen` are held out."""

    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def check_size(size: int) -> None:
    """Refuses images that are too small or too large."""
    if not 16 <= size <= MAX_SIZE:
        raise UserError(f"image size {size} is outside 16 to {MAX_SIZE} pixels")


def check_options(size: int, split: str, wordings: str) -> None:
    """Refuses what no environment takes."""
    check_size(size)
    if split not in SPLITS:
        raise UserError(f"split '{split}' does not exist{did_you_mean(split, SPLITS)}")
    if wordings not in WORDINGS:
        raise UserError(f"wordings '{wordings}' do not exist{did_you_mean(wordings, WORDINGS)}")


def pick_wording(wordings: str, words: Wordings, seed: int) -> str:
    """One of a task's wordings for the episode of `seed`; `wordings` is one of `WORDINGS`."""
    if wordings == "one":
        return words.seen[0]
    choices = words.seen if wordings == "seen" else words.unseen
    return choices[np.random.default_rng([seed, WORDS]).integers(len(choices))]
