import jax
import numpy as np

from lapa_jax.nn.views import shift_clips


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
