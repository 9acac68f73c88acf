"""Small step shards with whatever a test wants in them, and a reading of them that shares no code with the project."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from lapa_jax.data import images
from lapa_jax.data.shards.step_shards import ShardWriter, array_bytes, json_bytes, step_key, write_dataset
from lapa_jax.data.statistics import column_statistics

SIZE = 16
WIDTHS = {"action": 3, "state": 2, "feature": 5}


def write(folder, lengths, *, cameras=("image",), widths=None, texts=None, tasks=None, drop=(), size=SIZE, fps=10.0,
          latents=0, seed=0, change=None):  # fmt: skip
    """Writes a data set; returns its folder.

    Args:
      lengths: {split: [[frames of each episode], ...]}, a list for each shard; or a list of frames, one shard "train".
      cameras: members; of each the pictures are noise of `size`. widths: {column: dimensions}.
      texts, tasks: by episode number, None for none; a list of texts has one for each step.
      drop: (episode, step, member) that are left out.
      latents: codes a step, 0 for none. change: what becomes of the noise of a row, `change(column, row)`.
    """
    rng = np.random.default_rng(seed)
    widths = WIDTHS if widths is None else widths
    lengths = lengths if isinstance(lengths, dict) else {"train": [lengths]}
    splits, rows, number = {}, {name: [] for name in widths}, 0
    for split, shards in lengths.items():
        entries = []
        for k, episodes in enumerate(shards):
            with ShardWriter(folder / f"{split}-{k:05d}.tar") as writer:
                for length in episodes:
                    for step in range(length):
                        meta = {"episode": f"ep{number}", "step": step, "length": length}
                        meta["fps"] = fps or 5.0 + 5 * number
                        meta |= {"task": tasks[number]} if tasks and tasks[number] else {}
                        members = {"json": json_bytes(meta)}
                        for camera in cameras:
                            noise = rng.integers(0, 256, (2, 2, 3), np.uint8).repeat(size // 2, 0).repeat(size // 2, 1)
                            members[f"{camera}.jpg"] = images.encode(noise)
                        for name, width in widths.items():
                            row = rng.normal(size=width).astype(np.float32)
                            row = row if change is None else change(name, row)
                            if name != "action" or step < length - 1:
                                members[f"{name}.npy"] = array_bytes(row)
                                rows[name].append(row)
                        if latents:
                            members["latent.npy"] = array_bytes(rng.integers(0, 8, latents).astype(np.int32))
                        if texts and texts[number]:
                            text = texts[number] if isinstance(texts[number], str) else texts[number][step]
                            members["txt"] = text.encode()
                        members = {m: data for m, data in members.items() if (number, step, m) not in drop}
                        writer.add(step_key(f"ep{number}", step), members)
                    number += 1
            entries.append(writer.summary)
        flat = [length for episodes in shards for length in episodes]
        splits[split] = {"episodes": len(flat), "steps": sum(flat), "shards": entries}
    features = {camera: {"shape": [size, size, 3], "codec": "jpeg"} for camera in cameras}
    features |= {name: {"shape": [width], "dtype": "float32"} for name, width in widths.items()}
    features |= {"latent": {"shape": [latents], "dtype": "int32"}} if latents else {}
    statistics = {name: column_statistics([np.stack(found)]) for name, found in rows.items()}
    write_dataset(folder, features=features, fps=fps, source={}, splits=splits, statistics=statistics)
    return folder


def decoded(folder, split="train"):
    """The episodes of a split, each a list of {member: value}, by tarfile, numpy and Pillow alone."""
    episodes = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            for info in archive:
                key, _, member = info.name.partition(".")
                name, _, step = key.rpartition("_")
                data = archive.extractfile(info).read()
                steps = episodes.setdefault(name, {})
                steps.setdefault(int(step), {})[member] = _decode(member, data)
    return [[steps[t] for t in sorted(steps)] for steps in episodes.values()]


def _decode(member, data):
    if member.endswith(".npy"):
        return np.load(io.BytesIO(data))
    if member.endswith(".jpg"):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return json.loads(data) if member == "json" else data.decode()


def close(one, two):
    """Whether two decodings of the same JPEG agree: libraries round differently."""
    return np.abs(np.asarray(one, int) - np.asarray(two, int)).max(initial=0) <= 3
