"""Tiny models for tests of the loop and of inference: the contract of a model file, and little more."""

from collections.abc import Mapping

import ml_collections
import pytest

from lapa_jax.inference import load
from lapa_jax.train import setup

KINDS = {"chunks": ("chunks", "action"), "steps": ("chunks", "action"), "rows": ("steps", "feature")}
"""{toy that is a tokenizer: (the kind of samples that it learns from, their field)}."""

OTHERS = {"policy": ("chunks", "action")}
"""The same of toys that need another run to begin from."""

OPTIM = {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0, "final_learning_rate": 0.0, "b1": 0.9,
         "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "clip_norm": None, "groups": ((".*", {}),)}  # fmt: skip
TRAIN = {"steps": 6, "batch_size": 16, "micro_batches": 1, "eval_batch_size": 16, "log_every": 2, "eval_every": 3,
         "save_every": 3, "keep_last": 3, "best_metric": None, "trackers": ()}  # fmt: skip
DATA = {"val_path": None, "split_train": "train", "split_val": "val", "mixture": None, "augment": None,
        "normalize": "q01_q99", "eval_examples": 64, "shuffle": "full", "window": 64, "threads": 2, "workers": 0,
        "prefetch": 2, "max_bad_samples": 0}  # fmt: skip
LENGTHS = {"train": [[12, 10], [11]], "val": [[9, 6]]}


def use(patch: pytest.MonkeyPatch) -> None:
    """Makes training and loading look for models here."""
    patch.setattr(setup, "MODELS", __name__)
    patch.setattr(load, "MODELS", __name__)


def config(toy: str, data: Mapping | str, *, model: Mapping = {}, mesh: Mapping = {}, **train):
    """The config of a run of a toy; `data`: a folder, or fields of `config.data`."""
    samples, field = {**KINDS, **OTHERS}[toy]
    length = {"chunk_length": 4 if toy in ("chunks", "policy") else 8} if samples == "chunks" else {}
    places = {"path": str(data)} if not isinstance(data, Mapping) else {"path": None, **data}
    found = ml_collections.ConfigDict({
        "name": toy, "seed": 0, "model": {"name": toy, **model}, "loss": {"reconstruction": 1.0},
        "data": {**DATA, "samples": samples, "fields": (field,), **length, **places}, "optim": OPTIM,
        "train": {**TRAIN, **train}, "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "rules": (), **mesh},
    })  # fmt: skip
    return found.lock()
