"""Latent labels on disk: what a labelled set says about itself, and the checks that keep it with what it belongs to.

A labelled set is step shards whose `dataset.json` has, under "source", a "labels" entry:
  {"tokenizer": fingerprint, "source": fingerprint of the labelled data, "gap_frames": of frame pairs an int, None where
   episodes differ and for other codes, "codebook_size": K, or N numbers where code positions differ, or None where
   there are no codes, "code_length": N, "format": "sidecar" | "full", "splits": [...]}
and of frame pairs "camera" and "gap": {"seconds", "frames"}; of other codes "column", what was encoded, and "dataset",
whose scaling was applied; of actions "chunk_length", None where each step has codes of its own. With deltas
"delta_shape": [N, Q].
A sidecar set holds `.latent.npy` (int32 `[N]`), or `.delta.npy` (float32 `[N, Q]`, what the codes are rounded from), or
both, and a small `.json` under the same keys, in the same shards and order, as the data it labels; a full set holds the
frames and texts as well.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import DATASET, StepShards, read_dataset

FORMATS = ("sidecar", "full")
TABLES = ("npz", "hdf5")
"""Formats of labels for readers that know no step shards; see `lapa_jax.label.tables`."""

SETTINGS_FILE = "labelling.json"
"""In a folder of labels: which labelling it holds or begins to hold."""

_ENTRIES = {"tokenizer", "source", "gap_frames", "codebook_size", "code_length", "format"}


def check_out(data, out) -> None:
    """Refuses a folder for labels that holds something else, as far as that shows without the tokenizer.

    Args: data: the folder that is labelled. out: the folder to write.
    """
    out = pathlib.Path(out)
    if out.resolve() == pathlib.Path(data).resolve():
        raise UserError(f"--out {out} is the data folder itself; name another folder")
    if out.is_dir() and not (out / SETTINGS_FILE).is_file() and any(p.name[0] != "." for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no labelling; name a new folder as --out")


def read_label_info(folder) -> dict:
    """The "labels" entry of a labelled set; a folder without one is a `UserError` that says how to make one."""
    info = read_dataset(folder)["source"].get("labels")
    if info is None:
        raise UserError(f"{folder} holds no latent labels; make them with launch/label.py --run RUN --data {folder}")
    if missing := sorted(_ENTRIES - set(info)):
        raise UserError(f'{pathlib.Path(folder) / DATASET}: "labels" lacks {", ".join(missing)}; label the data again')
    return info


def check_labels(folder, tokenizer, *, source=None) -> dict:
    """Checks that labels come from the tokenizer, and label the data, that they are used with.

    Codes of two tokenizers are both small integers: mixing them trains without an error and means nothing.

    Args:
      folder: a labelled set.
      tokenizer: the expected fingerprint, or an object with a `fingerprint`; None takes any.
      source: the data the labels are used with (an object with a `fingerprint`), or None for a full set.

    Returns:
      The "labels" entry.

    Raises:
      UserError: for labels of another tokenizer or of other data.
    """
    info = read_label_info(folder)
    expected = getattr(tokenizer, "fingerprint", tokenizer)
    if tokenizer is not None and info["tokenizer"] != expected:
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


LACKING = {
    "latent": "has deltas and no codes, and this model learns codes: train one that learns deltas, such as "
              "configs/vla_latent.py:continuous, or label with a run that has codes",
    "delta": "has codes and no deltas, which this model learns: label the data again with launch/label.py --continuous",
}  # fmt: skip
"""What to do about a labelled set that lacks a field."""


def open_labels(
    folder, source: StepShards, tokenizer=None, fields: Sequence[str] = ("latent",)
) -> tuple[StepShards, dict | None]:  # fmt: skip
    """The shards that hold the latents of `source`: a labelled set, or `source` itself.

    Args:
      folder: a labelled set, or None for latents that lie beside the images.
      source: the opened split.
      tokenizer: the fingerprint of the tokenizer that must have made them; None takes any.
      fields: that they must hold, of "latent" and "delta".

    Returns:
      The shards, step by step those of `source`, and the "labels" entry; None for latents of unknown origin.

    Raises:
      UserError: there are no labels, or labels of another tokenizer, of other data or of other steps.
    """
    if folder is None and not {"latent", "delta"} & set(source.features):
        words = "label it with launch/label.py and name what that wrote: data.labels to train, --labels to evaluate"
        raise UserError(f"{source.folder} holds no latent labels; {words}")
    if folder is None:
        labels, has_labels = source, "labels" in read_dataset(source.folder)["source"]
        info = check_labels(source.folder, tokenizer) if has_labels or tokenizer else None
    else:
        info = check_labels(folder, tokenizer, source=source)
        labels = StepShards(folder, source.split)
        check_same_steps(labels, source)
    for name in fields:
        if name not in labels.features:
            raise UserError(f"{labels.folder} {LACKING[name]}")
    return labels, info


def read_codes(labels: StepShards, source: StepShards) -> np.ndarray:
    """Reads the codes of every step of `source` from its sidecar.

    Args:
      labels: the opened sidecar split.
      source: the opened split that was labelled.

    Returns:
      int32 `[len(source), N]`; row i belongs to step i of `source`.

    Raises:
      UserError: where the two do not hold the same steps in the same order.
    """
    check_same_steps(labels, source)
    return np.concatenate(list(labels.column("latent")))


def check_same_steps(labels: StepShards, source: StepShards) -> None:
    """Raises a `UserError` where labels and data do not hold the same steps in the same order."""
    if labels.episodes != source.episodes:
        wrong = next((a.id for a, b in zip(labels.episodes, source.episodes) if a != b), "their number")
        raise UserError(f"labels {labels!r} and data {source!r} differ in their episodes (first: {wrong}); label again")


def _short(fingerprint: str) -> str:
    return str(fingerprint)[:12]
