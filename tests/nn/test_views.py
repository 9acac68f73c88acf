import jax
import numpy as np

from lapa_jax.nn.views import change_colours, shift_clips, swap_backgrounds


def test_every_clip_is_a_cut_of_its_edge_padded_self():
    frames = np.random.default_rng(0).random((16, 2, 6, 5, 3)).astype(np.float32)
    shifted = np.asarray(shift_clips(frames, jax.random.key(1), 2))
    padded = np.pad(frames, ((0, 0), (0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    found = []
    for clip, source in zip(shifted, padded, strict=True):
        cuts = {(y, x): source[:, y : y + 6, x : x + 5] for y in range(5) for x in range(5)}
        found += [at for at, cut in cuts.items() if np.array_equal(cut, clip)]
    assert len(found) == 16, "each clip is exactly one cut, the same for both of its frames"
    assert len(set(found)) > 6, "clips are shifted independently"


def test_colours_change_by_one_line_for_each_channel_of_a_clip():
    frames = 0.4 + 0.2 * np.random.default_rng(0).random((8, 2, 6, 5, 3))
    changed = np.asarray(change_colours(frames.astype(np.float32), jax.random.key(1)))
    lines = []
    for clip, source in zip(changed, frames, strict=True):
        for channel in range(3):
            # The line is that of the first frame, and the second one is on it.
            line = np.polyfit(source[0, ..., channel].ravel(), clip[0, ..., channel].ravel(), 1)
            np.testing.assert_allclose(np.polyval(line, source[1, ..., channel]), clip[1, ..., channel], atol=1e-5)
            lines.append(line)
    assert np.std(lines, axis=0).min() > 0.02, "each clip and channel has its own"
    dark_and_bright = np.random.default_rng(0).integers(0, 2, (8, 2, 6, 5, 3)).astype(np.float32)
    changed = np.asarray(change_colours(dark_and_bright, jax.random.key(1)))
    assert changed.min() == 0 and changed.max() == 1


def test_what_moves_stays_before_the_background_of_another_clip():
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.random((2, 1, 12, 12, 3), np.float32), 2, axis=1)
    frames[0, 1, 3, 4:6] += 0.3  # two pixels of the first clip, nothing of the second
    frames[0, 1, 9, 9] += 0.05  # too little to count
    others = rng.random(frames.shape, np.float32)
    swapped = np.asarray(swap_backgrounds(frames, others, threshold=0.1, margin=2))
    stays = np.zeros((12, 12), bool)
    stays[1:6, 2:8] = True
    for frame in range(2):
        np.testing.assert_array_equal(swapped[0, frame][stays], frames[0, frame][stays])
        np.testing.assert_array_equal(swapped[0, frame][~stays], others[0, 0][~stays])
        np.testing.assert_array_equal(swapped[1, frame], others[1, 0])
