"""Small step shards that hold actions only, for tests of codecs."""

import numpy as np

from lapa_jax.data.shards.step_shards import ShardWriter, array_bytes, json_bytes, step_key, write_dataset
from lapa_jax.data.statistics import column_statistics


def write(folder, train, val, *, fps=10.0, names=None):
    """Writes episodes of actions (lists of f32[n, A]) as shards whose last step of an episode has no action."""
    splits, number = {}, 0
    for split, episodes in (("train", train), ("val", val)):
        with ShardWriter(folder / f"{split}-00000.tar") as writer:
            for actions in episodes:
                for step in range(len(actions) + 1):
                    meta = {"episode": f"ep{number}", "step": step, "length": len(actions) + 1, "fps": fps}
                    members = {"json": json_bytes(meta)}
                    if step < len(actions):
                        members["action.npy"] = array_bytes(np.asarray(actions[step], np.float32))
                    writer.add(step_key(f"ep{number}", step), members)
                number += 1
        steps = sum(len(actions) + 1 for actions in episodes)
        splits[split] = {"episodes": len(episodes), "steps": steps, "shards": [writer.summary]}
    feature = {"shape": [train[0].shape[1]], "dtype": "float32"} | ({"names": names} if names else {})
    write_dataset(
        folder, features={"action": feature}, fps=fps, source={"made": "test"}, splits=splits,
        statistics={"action": column_statistics([np.concatenate(train)])},
    )  # fmt: skip
    return folder


def episodes(rng, lengths, *, width=3):
    """Random walks with a gripper of two values (the last dimension) and a constant (the one before)."""
    found = []
    for length in lengths:
        actions = np.cumsum(rng.normal(size=(length, width)), axis=0).astype(np.float32)
        actions[:, -2] = 0.25
        actions[:, -1] = np.where(np.arange(length) < length // 2, -1.0, 1.0)
        found.append(actions)
    return found
