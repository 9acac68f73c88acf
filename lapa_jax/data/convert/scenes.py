"""What happens in a video, from small copies of its frames: scene cuts, still and blank stretches, and a hash.

The rules were chosen on real robot videos (Bridge V2, RT-1, robomimic, Unitree G1), Meta-World and the push-table: cuts
between demonstrations of one scene lie above the threshold there, and the fastest motion between two frames below.
"""

from collections.abc import Sequence

import numpy as np

from lapa_jax.data import images

SIDE = 64
"""Pixels a side of the small copies."""
_BLOCK = 4
"""Pixels a side of the blocks in which motion is looked for: 16 x 16 of them, so that a small object moving counts."""
_LEAST, _LARGE, _NOISE = 5.0, 20.0, 0.5
"""Mean differences of two frames, of 255: below the first it is a change of compression or of light; above the second
it is no slow motion; and that of sensors and compression."""
_EVERYWHERE = 0.5
"""Share of the blocks that a key frame changes at least."""
_TIMES, _MOTION, _COEFFICIENTS = 16, 6, 8
"""Of hashes: stretches of time that are averaged, and frequencies in time, and along each side, that are kept."""
_STILL = _COEFFICIENTS**2 - 1
"""Where in a hash the changes begin: behind the frequencies of the mean frame, but for its brightness."""


def small(image: np.ndarray) -> np.ndarray:
    """A frame uint8[H, W, 3] as uint8[SIDE, SIDE, 3]."""
    return images.resize(image, SIDE)


def cuts(frames: np.ndarray, ratio: float) -> list[int]:
    """The frames at which another scene begins.

    A cut is a transition whose mean absolute difference is `ratio` times that of the two before and of the two after
    it: fast motion lasts, a cut does not, and a flash is two such transitions in a row. Where motion follows a cut at
    once, or ends with it, a large transition that stands out even more on one side is one too, if the image does not
    come back. Slow fades are no cuts.

    Args:
      frames: uint8[T, SIDE, SIDE, 3]. ratio: how far a cut stands out.
    """
    values = frames.astype(np.int16)
    changes = np.abs(np.diff(values, axis=0)).mean((1, 2, 3))
    starts = []
    for i, change in enumerate(changes.tolist()):
        before, after = changes[max(0, i - 2) : i].tolist(), changes[i + 1 : i + 3].tolist()
        if change < _LEAST or not before + after:
            continue
        loudest = max(before + after) + _NOISE
        if not before or not after:
            # at the ends only one side is there to compare with
            if change >= max(2 * _LEAST, 2 * ratio * loudest):
                starts.append(i + 1)
        elif change >= ratio * loudest:
            starts.append(i + 1)
        elif change >= _LARGE:
            quiet = min(max(before), max(after))
            across = (np.abs(values[i + 2] - values[i]).mean(), np.abs(values[i + 1] - values[i - 1]).mean())
            # a side on which nothing at all moves is a film that was stopped in the middle of a motion
            if quiet > _NOISE and change >= 2.5 * ratio * (quiet + _NOISE) and min(across) >= change / 2:
                starts.append(i + 1)
    return starts


def still(frames: np.ndarray, least: int, level: float) -> list[tuple[int, int]]:
    """The longest stretches (first frame, end) of `least` frames or more in which nothing moves.

    Nothing moves while the mean grey of no block differs by `level` from that of the stretch's first frame, so what
    drifts slowly is not still. Since that frame may be the last that moves, or coarser than those after it, the
    borders are then set by which frames are like the middle of the stretch.
    """
    blocks = _without_pops(_blocks(frames.mean(-1)), level)
    stretches, first, border = [], 0, 0
    while first + least <= len(blocks):
        end = first + 1
        while end < len(blocks) and np.abs(blocks[end] - blocks[first]).max() < level:
            end += 1
        if end - first < least:
            first += 1
            continue
        distance = np.abs(blocks - np.median(blocks[first:end], axis=0)).max((1, 2))
        alike, unlike = distance < 0.5 * level, distance > 0.75 * level
        middle = (first + end) // 2
        while first < middle and unlike[first]:
            first += 1
        while first > border and alike[first - 1]:
            first -= 1
        while end > middle + 1 and unlike[end - 1]:
            end -= 1
        while end < len(blocks) and alike[end]:
            end += 1
        if end - first >= least:
            stretches.append((first, end))
        first = border = end
    return stretches


def _without_pops(blocks: np.ndarray, level: float) -> np.ndarray:
    """Blocks [T, B, B] without the jumps that compression makes: at a key frame a still image that was coded coarsely
    is suddenly another, a little and nearly everywhere, between frames that do not change at all."""
    jumps = np.diff(blocks, axis=0)
    means, shares = np.abs(jumps).mean((1, 2)), (np.abs(jumps) > _NOISE / 2).mean((1, 2))
    quiet = np.abs(jumps).max((1, 2)) < level / 4
    shift = np.zeros_like(blocks)
    for i in range(2, len(jumps) - 2):
        around = quiet[[i - 2, i - 1, i + 1, i + 2]].all()
        if around and not quiet[i] and means[i] < _LEAST and shares[i] > _EVERYWHERE:
            shift[i + 1 :] += jumps[i]
    return blocks - shift


def blank(frames: np.ndarray, level: float) -> list[tuple[int, int]]:
    """The stretches (first frame, end) of frames that are black, or of one colour: of no channel do two blocks differ
    by `level`."""
    blocks = _blocks(frames.astype(np.float32))
    spread = (blocks.max((1, 2)) - blocks.min((1, 2))).max(-1)
    return runs(spread < level)


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(first, end) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, np.int8), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _blocks(frames: np.ndarray) -> np.ndarray:
    """Means f32[T, B, B, ...] of the blocks of frames [T, SIDE, SIDE, ...]."""
    count = SIDE // _BLOCK
    cells = frames.astype(np.float32).reshape(len(frames), count, _BLOCK, count, _BLOCK, *frames.shape[3:])
    return cells.mean((2, 4))


def signature(frames: np.ndarray) -> bytes:
    """A perceptual hash of a video: the low frequencies of its three-dimensional cosine transform, in 8 bits each.

    After Coskun, Sankur and Memon, "Spatio-temporal transform based video hashing" (2006), but the mean over time and
    its changes are kept apart: videos of one camera share the former. Other sizes, compression, brightness and contrast
    hardly change it.

    Args:
      frames: uint8[T, SIDE, SIDE, 3].

    Returns:
      int8[448]: of the mean frame, of its changes, and whether there are none.
    """
    grey = frames.astype(np.float32).mean(-1)
    edges = np.linspace(0, len(grey), _TIMES + 1).astype(int)
    times = np.stack([grey[a : max(b, a + 1)].mean(0) for a, b in zip(edges[:-1], edges[1:])])
    in_time, in_space = _cosines(_TIMES, _MOTION + 1), _cosines(SIDE, _COEFFICIENTS)
    coefficients = np.einsum("ti,yj,xk,ijk->tyx", in_time, in_space, in_space, times, optimize=True)
    changes = coefficients[1:].ravel()
    if np.abs(times - times.mean(0)).max() < 1.0:
        changes = np.zeros_like(changes)
    parts = [_eight_bits(coefficients[0].ravel()[1:]), _eight_bits(changes), [0 if changes.any() else 127]]
    return np.concatenate(parts).astype(np.int8).tobytes()


def _eight_bits(values: np.ndarray) -> np.ndarray:
    largest = np.abs(values).max()
    return np.rint(values / largest * 127) if largest > 1e-6 else np.zeros_like(values)


def directions(bits: bytes) -> np.ndarray:
    """A `signature` as f32[448]: the mean frame and its changes, each of length 1."""
    values = np.frombuffer(bits, np.int8).astype(np.float32)
    for part in (values[:_STILL], values[_STILL:]):
        part /= max(float(np.linalg.norm(part)), 1e-6)
    return values


def distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How unlike videos are one, 0 to 2: 1 - the correlation of their mean frames or of their changes, the larger.

    Args:
      one: f32[448], `directions` of a video. others: f32[M, 448]. Returns: f32[M].
    """
    alike = np.minimum(others[:, :_STILL] @ one[:_STILL], others[:, _STILL:] @ one[_STILL:])
    return 1 - alike


def _cosines(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the orthonormal cosine transform (DCT-II) of `size` values."""
    angles = np.pi * (np.arange(size)[None] + 0.5) * np.arange(count)[:, None] / size
    return np.cos(angles) * np.sqrt(2 / size)
