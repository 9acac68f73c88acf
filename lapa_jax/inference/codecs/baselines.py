"""The codecs without a network that trained tokenizers are compared with, at many settings: a curve of each family."""

from lapa_jax.inference.codecs.base import Codec
from lapa_jax.inference.codecs.bins import FAMILIES, Bins
from lapa_jax.inference.codecs.dct_bpe import DctBpe
from lapa_jax.inference.codecs.spline import Spline

BIN_COUNTS = (2, 4, 8, 16, 32, 64, 128, 256)
SCALES = (0.5, 1, 2, 5, 10, 20, 40)
VOCABULARIES = (256, 1024, 4096)
POINT_BINS = (4, 8, 16, 32, 64, 256)


def baselines(length: int) -> list[Codec]:
    """All of them, not yet fitted, for chunks of `length` steps."""
    found: list[Codec] = [Bins(kind, bins) for kind in FAMILIES for bins in BIN_COUNTS]
    found += [DctBpe(scale, vocabulary) for scale in SCALES for vocabulary in VOCABULARIES]
    half = max(1, length // 2)
    counts = sorted({n for n in (2, 4, 6, 8, half, 3 * length // 4, length) if 1 <= n <= length})
    return found + [Spline(n, bins, usual=(n, bins) == (half, 256)) for n in counts for bins in POINT_BINS]
