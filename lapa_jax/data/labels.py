"""Latent labels on disk: what a labelled set says about itself, and the checks that keep it with its tokenizer and frames.

A labelled set is step shards whose `dataset.json` has a "labels" entry:
  {"tokenizer": fingerprint, "source": fingerprint of the labelled data, "gap_frames": int, "codebook_size": K,
   "code_length": N, "format": "sidecar" | "full"}
A sidecar set holds `.latent.npy` (int32 `[N]`) and a small `.json` under the same keys, in the same shards and order, as the
data it labels; a full set holds the frames and texts as well. No jax here: the data loader of the next stage calls this.
"""

import pathlib

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json

FORMATS = ("sidecar", "full")
_ENTRIES = {"tokenizer", "source", "gap_frames", "codebook_size", "code_length", "format"}


def read_label_info(folder) -> dict:
    """The "labels" entry of a labelled set; a folder without one is a `UserError` that says how to make one."""
    path = pathlib.Path(folder) / "dataset.json"
    info = read_json(path).get("labels")
    if info is None:
        raise UserError(f"{folder} holds no latent labels; make them with launch/label.py --run RUN --data {folder}")
    if missing := sorted(_ENTRIES - set(info)):
        raise UserError(f'{path}: "labels" lacks {", ".join(missing)}; label the data again')
    return info


def check_labels(folder, tokenizer, *, source=None) -> dict:
    """Checks that labels come from the tokenizer, and label the data, that they are used with.

    Codes of two tokenizers are both small integers: mixing them trains without an error and means nothing.

    Args:
      folder: a labelled set.
      tokenizer: the expected fingerprint, or an object with a `fingerprint`.
      source: the data the labels are used with (an object with a `fingerprint`), or None for a full set.

    Returns:
      The "labels" entry.

    Raises:
      UserError: for labels of another tokenizer or of other data.
    """
    info = read_label_info(folder)
    expected = getattr(tokenizer, "fingerprint", tokenizer)
    if info["tokenizer"] != expected:
        raise UserError(
            f"labels in {folder} were made by tokenizer {_short(info['tokenizer'])}, not by {_short(expected)}; "
            "label the data again with the tokenizer in use, or use the one that made them"
        )
    if source is not None and info["source"] != source.fingerprint:
        raise UserError(
            f"labels in {folder} belong to data {_short(info['source'])}, not to {_short(source.fingerprint)}; "
            "label this data, or give the data that was labelled"
        )
    return info


def read_codes(labels, source) -> np.ndarray:
    """Reads the codes of every step of `source` from its sidecar.

    Args:
      labels: the opened sidecar split (`StepShards`).
      source: the opened split that was labelled (`StepShards`).

    Returns:
      int32 `[len(source), N]`; row i belongs to step i of `source`.

    Raises:
      UserError: where the two do not hold the same steps in the same order.
    """
    theirs, ours = ([tuple(map(str, e)) for e in shards.episodes] for shards in (labels, source))
    if theirs != ours:
        wrong = next((a for a, b in zip(theirs, ours, strict=False) if a != b), "their number")
        raise UserError(f"labels {labels!r} and data {source!r} differ in their episodes (first: {wrong}); label again")
    return np.stack([labels.array(i, "latent") for i in range(len(labels))]).astype(np.int32)


def _short(fingerprint: str) -> str:
    return str(fingerprint)[:12]
