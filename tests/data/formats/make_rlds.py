"""Small RLDS datasets, written with TFDS' own serialisation into our own framing; TensorFlow is not needed for that."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from lapa_jax.data.formats.rlds import tfrecord

SIZE = 16


def make(folder: pathlib.Path, seed: int = 0) -> dict:
    """Writes three Bridge episodes of 4 to 6 steps, two for training and one held out, into `folder`/1.0.0.

    Returns:
      What the reader is to give: the first step, whose action is zero, is not in it. "frames" are those of image_0.
    """
    rng = np.random.default_rng(seed)
    episodes = [[_step(rng, t, length, f"task {length}") for t in range(length)] for length in (4, 5, 6)]
    features = bridge_features()
    write(folder / "1.0.0", "bridge_dataset", features, {"train": [episodes[:2]], "val": [episodes[2:]]})
    names = ("train-00000-00000", "train-00000-00001", "val-00000-00000")
    return {name: _content(steps[1:]) for name, steps in zip(names, episodes)}


def bridge_features() -> Mapping:
    """The fields of BridgeData V2, with the embedding shortened."""
    observation = {f"image_{i}": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="jpeg") for i in range(4)}
    observation["state"] = tfds.features.Tensor(shape=(7,), dtype=np.float32)
    return {
        "observation": observation,
        "action": tfds.features.Tensor(shape=(7,), dtype=np.float32),
        "language_instruction": tfds.features.Text(),
        "language_embedding": tfds.features.Tensor(shape=(4,), dtype=np.float32),
        "is_first": tfds.features.Scalar(np.bool_),
        "is_last": tfds.features.Scalar(np.bool_),
    }


def _step(rng: np.random.Generator, t: int, length: int, text: str) -> dict:
    action = rng.normal(size=7).astype(np.float32) * (t > 0)
    action[6] = rng.integers(2)
    observation = {f"image_{i}": picture(rng) for i in range(3)} | {"image_3": picture(rng, blank=True)}
    observation["state"] = rng.normal(size=7).astype(np.float32)
    embedding = np.zeros(4, np.float32)
    step = {"observation": observation, "action": action, "language_instruction": text}
    return {**step, "language_embedding": embedding, "is_first": t == 0, "is_last": t == length - 1}


def _content(steps: Sequence[Mapping]) -> dict:
    frames = [np.asarray(Image.open(io.BytesIO(step["observation"]["image_0"]))) for step in steps]
    action, state = [s["action"] for s in steps], [s["observation"]["state"] for s in steps]
    text = steps[0]["language_instruction"]
    return {"action": np.stack(action), "state": np.stack(state), "text": text, "frames": np.stack(frames)}


def picture(rng: np.random.Generator, blank: bool = False, kind: str = "JPEG") -> bytes:
    """The bytes of a picture of 16 px; a blank one is black."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    if not blank:
        pixels[:] = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(
    folder: pathlib.Path,
    name: str,
    step: Mapping,
    splits: Mapping[str, Sequence[Sequence[Sequence[Mapping]]]],
    beside: Mapping | None = None,
    values: Mapping | None = None,
    kind: str = "tfrecord",
) -> None:
    """Writes a dataset: features.json, dataset_info.json and shards.

    Args:
      folder: of this version. name: of the dataset.
      step: {field: feature} of a step. splits: {split: [shard: [episode: [step: values]]]}, pictures as encoded bytes.
      beside, values: features of the episode beside the steps, and their values, the same for every episode.
      kind: "tfrecord" or "array_record".
    """
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step), **(beside or {})})
    folder.mkdir(parents=True)
    features.save_config(str(folder))
    for split, shards in splits.items():
        for number, episodes in enumerate(shards):
            path = folder / f"{name}-{split}.{kind}-{number:05d}-of-{len(shards):05d}"
            payloads = [serialize(features, {"steps": episode, **(values or {})}) for episode in episodes]
            _write_shard(path, payloads, kind)
    info = {"name": name, "version": "1.0.0", "fileFormat": kind, "moduleName": "x", "releaseNotes": {}}
    info["splits"] = [
        {
            "name": split,
            "shardLengths": [str(len(episodes)) for episodes in shards],
            "numBytes": "1",
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        }
        for split, shards in splits.items()
    ]
    (folder / "dataset_info.json").write_text(json.dumps(info))


def serialize(features: tfds.features.FeaturesDict, episode: Mapping) -> bytes:
    """One record. Pictures go in as open files: TFDS wants TensorFlow to encode arrays."""

    def opened(value):
        if isinstance(value, Mapping):
            return {key: opened(v) for key, v in value.items()}
        return io.BytesIO(value) if isinstance(value, bytes) and value[:2] in (b"\xff\xd8", b"\x89P") else value

    steps = [opened(step) for step in episode["steps"]]
    return features.serialize_example({**episode, "steps": steps})


def _write_shard(path: pathlib.Path, payloads: Sequence[bytes], kind: str) -> None:
    if kind == "tfrecord":
        tfrecord.write(path, payloads)
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for payload in payloads:
        writer.write(payload)
    writer.close()
