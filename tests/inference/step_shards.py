"""Small step shards for tests of this floor, in which each picture tells which step of which episode it is."""

import numpy as np

from lapa_jax.data import images
from lapa_jax.data.shards.step_shards import ShardWriter, array_bytes, json_bytes, step_key, write_dataset

SIZE = 32
LEVELS = 32
LENGTHS = {"train": [[7, 4], [9, 3]], "val": [[6, 5]]}
"""Frames of each episode, by split and shard."""


def picture(episode: int, step: int) -> np.ndarray:
    """A flat grey picture: brightness says which step (8 levels apart, more than JPEG changes a flat picture)."""
    return np.full((SIZE, SIZE, 3), 8 * (5 * episode + step) % 256, np.uint8)


def write(folder, *, actions: bool = True, fps: float | None = 10.0, lengths=None, draw=picture, seed: int = 0):
    """Writes shards with pictures by `draw(episode number, step)`, 2-d actions, texts; returns the folder."""
    rng = np.random.default_rng(seed)
    splits, number, drawn = {}, 0, []
    for split, shards in (lengths or LENGTHS).items():
        entries = []
        for k, episodes in enumerate(shards):
            with ShardWriter(folder / f"{split}-{k:05d}.tar") as writer:
                for length in episodes:
                    drawn += _episode(writer, number, length, actions, draw, rng)
                    number += 1
            entries.append(writer.summary)
        flat = [length for episodes in shards for length in episodes]
        splits[split] = {"episodes": len(flat), "steps": sum(flat), "shards": entries}
    features = {"image": {"shape": [SIZE, SIZE, 3], "codec": "jpeg"}}
    statistics = {}
    if actions:
        features["action"] = {"shape": [2], "dtype": "float32"}
        statistics["action"] = {"count": len(drawn), "mean": np.mean(drawn, axis=0).tolist()}
    write_dataset(folder, features=features, fps=fps, source={"made": "test"}, splits=splits, statistics=statistics)
    return folder


def _episode(writer: ShardWriter, number: int, length: int, actions: bool, draw, rng) -> list[np.ndarray]:
    drawn = []
    for step in range(length):
        meta = {"episode": f"ep{number}", "step": step, "length": length, "fps": 10.0, "source": "test"}
        members = {"image.jpg": images.encode(draw(number, step)), "txt": b"push it", "json": json_bytes(meta)}
        if actions and step < length - 1:
            drawn.append(rng.normal(size=2).astype(np.float32))
            members["action.npy"] = array_bytes(drawn[-1])
        writer.add(step_key(f"ep{number}", step), members)
    return drawn
