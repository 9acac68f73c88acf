"""A small folder of videos with the table of episodes that recordings carry."""

import json
import pathlib

import numpy as np

from tests.data import videos


def make(folder: pathlib.Path, seed: int = 0) -> dict:
    """Writes three videos of 5 to 7 frames with actions and states; returns what is in them, but for the frames."""
    rng = np.random.default_rng(seed)
    rows, content = [], {}
    for k in range(3):
        name, frames = f"task/v{k}.mp4", 5 + k
        videos.write(folder / name, frames)
        arrays = {"action": rng.normal(size=(frames - 1, 2)).astype(np.float32)}
        arrays["state"] = rng.normal(size=(frames, 3)).astype(np.float32)
        np.savez(folder / f"task/v{k}.npz", **arrays)
        rows.append({"video": name, "instruction": f"push block {k}", "arrays": f"task/v{k}.npz"})
        content[name] = {**arrays, "text": f"push block {k}", "frames": None}
    (folder / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return content
