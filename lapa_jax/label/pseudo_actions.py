"""Pseudo-actions: an inverse-dynamics model learns from few demonstrations which action lies between two frames, and
predicts it for videos without actions (VPT, Baker et al. 2022, arXiv:2206.11795).

The model is `models.tokenizers.inverse_dynamics`: the encoder of LAQ with a linear head. It sees the pair (t, t + gap)
and predicts the sum of the actions in between; step t gets their mean.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from lapa_jax.core import config as config_lib
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.progress import bar
from lapa_jax.data.samples.pairs import FramePairSource, Gap
from lapa_jax.data.samples.reading import CameraImages
from lapa_jax.data.shards.step_shards import (
    ShardWriter,
    StepShards,
    array_bytes,
    read_dataset,
    write_dataset,
)
from lapa_jax.data.statistics import column_statistics
from lapa_jax.evaluate.latent_actions import reference
from lapa_jax.models.probe import r2_score
from lapa_jax.models.tokenizers.inverse_dynamics import reading
from lapa_jax.train.sharding import make_mesh
from lapa_jax.train.task import Task

SUMMARY = "pseudo_actions.json"
# The sizes of configs/laq.py:small.
TOKENIZER = {"name": "tokenizers.laq", "dim": 128, "quant_dim": 4, "code_seq_len": 4, "spatial_depth": 2,
             "temporal_depth": 1, "decoder_depth": 1, "heads": 4, "dim_head": 32, "pooling": "maps"}  # fmt: skip
AT_ONCE = 256
"""Pairs that are predicted together."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the pseudo-actions, besides the data.

    Attributes:
      gap: frames between the two of a pair. size: side of the images in pixels, a multiple of 4.
      steps: of training, 32 pairs each. seed: of training.
    """

    gap: int = 4
    size: int = 32
    steps: int = 2000
    seed: int = 0

    def __post_init__(self):
        if self.size % 4 or self.size < 16:
            raise UserError(f"--size {self.size} must be a multiple of 4, at least 16")
        for name, least in (("gap", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} must be at least {least}")


class PseudoActions:
    """An inverse-dynamics model, trained on the split "train" of step shards with actions.

    Raises:
      UserError: data without actions or with too short episodes.
    """

    def __init__(self, demonstrations, options: Options):
        gap = Gap(frames=options.gap)
        pairs = FramePairSource(StepShards(demonstrations, "train"), gap, ("frames", "net_action"), options.size)
        tokenizer = config_lib.build(config_lib.MODELS, {**TOKENIZER, "image_size": options.size,
                                                         "patch_size": options.size // 4})  # fmt: skip
        self.options, words = options, "inverse dynamics"
        self._mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.local_devices()[:1])
        encoder = reading(tokenizer, pairs.batch([])["net_action"].shape[-1])
        self._task = Task(reference.build_model(pairs, encoder), {"action": 1.0})
        with jax.set_mesh(self._mesh):
            state = reference.train(self._task, pairs, self._mesh, options.steps, words=words, seed=options.seed)
        self._variables, model = state.variables, self._task.model
        self._predict = jax.jit(lambda v, frames: model.apply(v, {"frames": frames}, method="predict")["actions"])

    def actions(self, shards: StepShards, camera: str = "image") -> np.ndarray:
        """For every step f32 [steps, A]: the mean action from it to `gap` frames later. Steps nearer the end of their
        episode get the mean over its last `gap`: a network that knows one gap only is asked of no other."""
        gap, size = self.options.gap, self.options.size
        images = CameraImages(shards, camera, size)
        begin, last = (np.concatenate([np.full(e.length, e.start + end(e.length)) for e in shards.episodes])
                       for end in (lambda length: 0, lambda length: length - 1))  # fmt: skip
        first = np.clip(np.arange(len(shards)), begin, np.maximum(last - gap, begin))
        second = np.minimum(first + gap, last)
        actions = np.zeros((len(shards), self._task.model.action_dim), np.float32)
        for start in bar(range(0, len(first), AT_ONCE), desc=f"pseudo-actions of {shards.split}", unit="batch"):
            # The last batch repeats its last pair: one shape is compiled once.
            rows = np.minimum(np.arange(start, start + AT_ONCE), len(first) - 1)
            frames = np.empty((AT_ONCE, 2, size, size, 3), np.uint8)
            steps = np.stack([first[rows], second[rows]], 1)
            images.into([view for pair in frames for view in pair], steps.ravel().tolist())
            net = np.asarray(self._predict(self._variables, frames))
            # An episode of a single frame has no pair: 1 keeps its quotient finite.
            actions[rows] = net / np.maximum(steps[:, 1] - steps[:, 0], 1)[:, None]
        return actions


def write(demonstrations, data, out, options: Options, split: str = "train") -> dict:
    """Writes a split of step shards again with pseudo-actions in place of what actions and states there are.

    Args:
      demonstrations: folder to learn from. data: whose images and instructions are taken.
      out: a new folder, or one to finish.

    Returns:
      {"labels": what made them, "steps", "action_r2": against the data's own actions, or None where it has none}.

    Raises:
      UserError: data that do not serve, or a folder that holds something else.
    """
    out, described, shards = pathlib.Path(out), read_dataset(data), StepShards(data, split)
    labels = {"demonstrations": read_dataset(demonstrations)["fingerprint"], "source": described["fingerprint"],
              **dataclasses.asdict(options)}  # fmt: skip
    existing = read_json(out / SUMMARY) if (out / SUMMARY).is_file() else None
    if existing is None and out.exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise UserError(f"{out} holds something else; choose another --out, or remove it")
    if existing is not None and existing["labels"] != labels:
        raise UserError(f"{out} holds pseudo-actions of other data or options; choose another --out, or remove it")
    if existing is not None and "steps" in existing:
        return existing
    model = PseudoActions(demonstrations, options)
    # Written before the shards, so that an interrupted run is recognised and finished; "steps" is added at the end.
    write_json(out / SUMMARY, {"labels": labels})
    actions = model.actions(shards)
    has_action = np.ones(len(shards), bool)
    # The last frame of an episode has no action, as in all step shards.
    has_action[[e.start + e.length - 1 for e in shards.episodes]] = False
    summaries, start = [], 0
    for entry in described["splits"][split]["shards"]:
        with ShardWriter(out / entry["name"]) as writer:
            for i in range(start, start + entry["samples"]):
                members = {name: value for name, value in shards.read(i).items() if name not in _REPLACED}
                members_of_action = {"action.npy": array_bytes(actions[i])} if has_action[i] else {}
                writer.add(shards.key(i), {**members, **members_of_action})
        summaries.append(writer.summary)
        start += entry["samples"]
    features = {name: about for name, about in shards.features.items() if f"{name}.npy" not in _REPLACED}
    features["action"] = {"shape": [actions.shape[1]], "dtype": "float32"}
    splits = {split: {"episodes": len(shards.episodes), "steps": len(shards), "shards": summaries}}
    write_dataset(out, features=features, fps=shards.fps, source={"pseudo_actions": labels}, splits=splits,
                  statistics={"action": column_statistics([actions[has_action]])})  # fmt: skip
    summary = {"labels": labels, "steps": int(has_action.sum()), "action_r2": _against(shards, actions, has_action)}
    write_json(out / SUMMARY, summary)
    return summary


_REPLACED = ("action.npy", "state.npy", "latent.npy", "delta.npy")
"""What the new shards do not take over."""


def _against(shards: StepShards, actions: np.ndarray, has_action: np.ndarray) -> float | None:
    if "action" not in shards.features:
        return None
    chosen = [i for i in np.flatnonzero(has_action) if shards.has(i, "action.npy")]
    return float(np.nanmean(r2_score(actions[chosen], np.stack([shards.array(i, "action") for i in chosen]))))
