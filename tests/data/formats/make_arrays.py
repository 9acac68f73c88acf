"""Small npz files for tests: trajectories without pictures."""

import pathlib

import numpy as np

LENGTHS = (5, 7, 4)


def make(folder: pathlib.Path, seed: int = 0) -> dict[str, dict]:
    """Writes three npz files, a trajectory each: with as many states as actions, and with one more."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for number, length in enumerate(LENGTHS):
        action = random.normal(size=(length, 3)).astype(np.float32)
        state = random.normal(size=(length + number % 2, 2)).astype(np.float32)
        text = f"reach {number}"
        np.savez(folder / f"reach_{number}.npz", action=action, state=state, instruction=text, fps=20.0)
        made[f"reach_{number}"] = {"action": action, "state": state, "text": text, "frames": None}
    return made
