"""The scripted expert of the push-table: go behind the block, round the others, and push it along the line to its goal.

NumPy only, from positions in metres; it keeps no state but its random numbers and the count of its actions.
"""

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.sim.push_table_tasks import Task, unit

STEP = 0.02  # metres an action
STANDOFF = 0.058  # where a push starts, behind the block's centre
ALIGNED = 0.011  # lateral error with which a push may go on
ROUND = 0.055  # metres between the centres when a block is pushed past another
PATIENCE = 60  # actions after which a plan that is hardly noisy is thought to go in circles about the other block ...
WIDE = 0.075  # ... which it then passes at this distance,
SHAKE = 0.01  # with noise of this standard deviation in metres
CLEARANCE = 0.05  # metres from a block's centre within which a path costs more
PENALTY = 12.0  # how many times more, at the centre: finite, so that a blocked way is cleared by pushing

GRID = np.linspace(-0.26, 0.26, 33)
SPACING = GRID[1] - GRID[0]
CELLS = np.stack(np.meshgrid(GRID, GRID, indexing="ij"), axis=-1)
NEIGHBOURS = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]
HEADINGS = np.stack([f(np.arange(32) * np.pi / 16) for f in (np.cos, np.sin)], axis=1)


class Expert:
    """Solves every family; `noise` is the standard deviation, in metres, of what is added to each action."""

    def __init__(self, seed: int, noise: float = 0.0):
        if not 0 <= noise < 0.1:
            raise UserError(f"expert noise {noise} is not a standard deviation in metres between 0 and 0.1")
        self._rng, self._noise, self._acted = np.random.default_rng(seed), noise, 0

    def act(self, pusher: np.ndarray, blocks: np.ndarray, task: Task) -> np.ndarray:
        """The next displacement of the pusher, f64[2] in metres, not yet clipped.

        Args:
          pusher: its position, f64[2].
          blocks: theirs, f64[8, 2].
          task: what to do.
        """
        circling = self._acted >= PATIENCE and task.offset is not None and self._noise < SHAKE
        self._acted += 1
        move = plan(pusher, blocks, task, WIDE if circling else ROUND)
        noise = max(self._noise, SHAKE if circling else 0.0)
        return move + self._rng.normal(0.0, noise, 2) if noise else move


def plan(pusher: np.ndarray, blocks: np.ndarray, task: Task, margin: float = ROUND) -> np.ndarray:
    """The noiseless displacement f64[2]: a push when the pusher stands behind the block, else a step to get there.

    A block that goes to the far side of another passes that one with `margin` metres between their centres.
    """
    block, target = blocks[task.block], task.target(blocks)
    if task.offset is not None:
        target = _way_round(block, target, blocks[task.other], margin)
    line, left = unit(target - block), float(np.linalg.norm(target - block))
    offset = pusher - block
    behind = -float(offset @ line)
    lateral = offset + behind * line
    if behind > 0.015 and np.linalg.norm(lateral) < ALIGNED and np.linalg.norm(offset) < STANDOFF + 0.02:
        return min(STEP, left + 0.01) * line - 0.6 * lateral
    return _approach(pusher, np.clip(block - STANDOFF * line, GRID[0], GRID[-1]), blocks)


def _way_round(block: np.ndarray, target: np.ndarray, other: np.ndarray, margin: float) -> np.ndarray:
    """Where to push the block first, so that on its way to the far side of `other` it does not take that along."""
    way = target - block
    along = np.clip((other - block) @ way / (way @ way + 1e-9), 0.0, 1.0)
    miss = block + along * way - other
    if np.linalg.norm(miss) >= margin:
        return target
    side = np.array([-way[1], way[0]]) / (np.linalg.norm(way) + 1e-9)
    ways = [other + sign * (margin + 0.025) * side for sign in (1, -1)]
    on_table = [place for place in ways if np.abs(place).max() < 0.2] or ways
    return min(on_table, key=lambda place: np.linalg.norm(place - block) + np.linalg.norm(place - target))


def _approach(pusher: np.ndarray, goal: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """A step along the cheapest path to `goal`."""
    to_goal = goal - pusher
    distance = float(np.linalg.norm(to_goal))
    if distance < 1.5 * SPACING or _clear(pusher, goal, blocks):
        return min(STEP, distance) * unit(to_goal)
    costs = _costs_to(goal, blocks)
    ahead = np.clip(pusher + 2 * SPACING * HEADINGS, GRID[0], GRID[-1])
    return STEP * HEADINGS[int(np.argmin(_interpolate(costs, ahead)))]


def _clear(start: np.ndarray, end: np.ndarray, blocks: np.ndarray) -> bool:
    """Whether the straight way keeps clear of all blocks."""
    way = end - start
    along = np.clip((blocks - start) @ way / (way @ way), 0.0, 1.0)
    return bool(np.linalg.norm(start + along[:, None] * way - blocks, axis=1).min() > CLEARANCE)


def _costs_to(goal: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Cost of the cheapest path from each grid cell to `goal`, f64[33, 33], by relaxing until nothing changes."""
    nearest = np.linalg.norm(CELLS[:, :, None] - blocks, axis=-1).min(axis=-1)
    price = 1.0 + PENALTY * np.clip(1.0 - nearest / CLEARANCE, 0.0, None)
    distance = np.linalg.norm(CELLS - goal, axis=-1)
    costs = np.where(distance < 1.5 * SPACING, distance, np.inf)
    while True:
        padded = np.pad(costs, 1, constant_values=np.inf)
        best = costs
        for dx, dy in NEIGHBOURS:
            step = SPACING * np.hypot(dx, dy) * price
            best = np.minimum(best, padded[1 + dx : len(GRID) + 1 + dx, 1 + dy : len(GRID) + 1 + dy] + step)
        if np.array_equal(best, costs):
            return costs
        costs = best


def _interpolate(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of grid `values` f64[33, 33] at `points` f64[n, 2] in metres."""
    place = (points - GRID[0]) / SPACING
    low = np.clip(np.floor(place).astype(int), 0, len(GRID) - 2)
    x, y = (place - low).T
    i, j = low.T
    lower = (1 - x) * values[i, j] + x * values[i + 1, j]
    upper = (1 - x) * values[i, j + 1] + x * values[i + 1, j + 1]
    return (1 - y) * lower + y * upper
