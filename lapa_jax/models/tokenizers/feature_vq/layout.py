"""Which feature goes where in the network, and how long the vectors and how large the codebooks of a category are."""

import dataclasses
import functools
import math

import numpy as np

from lapa_jax.core.errors import UserError

TOPO_WEIGHTS = (0.3, 0.7)
"""Of the two parts of the topographic loss: from features to latents, and from latents to codes."""

LEVELS = 3
AUTO = "auto"
AUTO_SHARES = (0.8, 0.95, 0.99)
"""Of "auto": the share of a category's variance whose principal components a level has room for."""


def parse_ratios(text: str) -> tuple[float, ...] | None:
    """"0.5:1:1.5" as numbers, one a level; None for "auto"."""
    if text == AUTO:
        return None
    try:
        ratios = tuple(float(part) for part in text.split(":"))
    except ValueError:
        ratios = ()
    if len(ratios) != LEVELS or not all(0 < ratio < math.inf for ratio in ratios):
        raise UserError(f"compression_ratios is '{text}'; give {LEVELS} positive numbers like '0.5:1:1.5', or 'auto'")
    return ratios


def auto_ratios(correlation: np.ndarray) -> tuple[float, ...]:
    """Ratios of a category from the correlations f64[n, n] of its features.

    A level gets as many components as explain its share of the variance (`AUTO_SHARES`), relative to n: features that
    all say the same are compressed more than features that each say something of their own.
    """
    spectrum = np.sort(np.maximum(np.linalg.eigvalsh(correlation), 0))[::-1]
    explained = np.cumsum(spectrum) / spectrum.sum()
    # 1e-9 for the rounding of the sum: components that explain 0.95 exactly shall count as enough.
    return tuple(float(np.searchsorted(explained, share - 1e-9) + 1) / len(spectrum) for share in AUTO_SHARES)


def latent_dims(features: int, ratios) -> tuple[int, ...]:
    """Widths of the levels' vectors: features x ratio, rounded up to a multiple of 4, at least 4."""
    # round() first: a product a rounding error above a whole number would be given 4 more.
    return tuple(max(4, 4 * math.ceil(round(features * ratio / 4, 9))) for ratio in ratios)


def codebook_sizes(features: int, rows: int) -> tuple[int, ...]:
    """Codes of the levels' codebooks.

    With base = int(7 log2(features)) the first level has 4 (base // 4) codes, and at least int(4.8 sqrt(rows / 1000)),
    itself kept within 5 to 28; the others have base / 2 and base / 4, and at least 6.

    Args:
      features: of the category.
      rows: of the training data.
    """
    base = int(7 * math.log2(features)) if features > 1 else 0
    least = min(28, max(5, int(4.8 * math.sqrt(rows / 1000))))
    return max(4 * (base // 4), least), max(int(base / 2), 6), max(int(base / 4), 6)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Features, categories and codes of a feature tokenizer.

    Attributes:
      features: F. groups, constants, duplicates: as of `feature_vq.categories.Categories`.
      dims, sizes: per category, the width of the vectors and the number of codes of each level.
    """

    features: int
    groups: tuple[tuple[int, ...], ...]
    constants: tuple[int, ...]
    duplicates: tuple[tuple[int, int, int], ...]
    dims: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def varying(self) -> list[int]:
        """Features that are not constant."""
        return [i for i in range(self.features) if i not in set(self.constants)]

    @functools.cached_property
    def singles(self) -> list[int]:
        """Features that the network sees: they vary and copy no other."""
        copies = {feature for feature, _, _ in self.duplicates}
        return [i for i in self.varying if i not in copies]

    @functools.cached_property
    def inputs(self) -> list[list[int]]:
        """The features of each category that the network sees."""
        seen = set(self.singles)
        return [[i for i in group if i in seen] for group in self.groups]

    @property
    def flat_dims(self) -> tuple[int, ...]:
        """Widths of the vectors, category after category, the levels of each."""
        return tuple(width for widths in self.dims for width in widths)

    @property
    def flat_sizes(self) -> tuple[int, ...]:
        """Sizes of the codebooks in the same order."""
        return tuple(size for sizes in self.sizes for size in sizes)

    @functools.cached_property
    def spans(self) -> list[tuple[int, int]]:
        """(start, end) of every category-level in the joined vectors."""
        ends = np.cumsum(self.flat_dims).tolist()
        return list(zip([0, *ends[:-1]], ends))

    @functools.cached_property
    def padded_positions(self) -> np.ndarray:
        """int[D]: index of each number of the joined vectors among the padded ones, flattened."""
        width = max(self.flat_dims)
        return np.concatenate([np.arange(dim) + i * width for i, dim in enumerate(self.flat_dims)])

    @functools.cached_property
    def owner(self) -> np.ndarray:
        """int[D]: the category of each number of the joined vectors."""
        return np.repeat(np.arange(len(self.dims)), [sum(widths) for widths in self.dims])

    def check(self) -> None:
        """Raises UserError where the parts contradict each other."""
        listed = sorted(i for group in self.groups for i in group)
        if listed != self.varying:
            raise UserError(f"groups and constants must hold each of the {self.features} features once; groups have "
                            f"{len(listed)} entries and constants {len(self.constants)}")
        if not all(self.inputs):
            raise UserError("a category holds nothing but duplicates of features elsewhere; put copies into one group")
        for name, values in (("latent_dims", self.dims), ("codebook_sizes", self.sizes)):
            if len(values) != len(self.groups) or any(len(v) != LEVELS or min(v) < 2 for v in values):
                raise UserError(f"{name} must give {LEVELS} numbers, 2 or more, for each of {len(self.groups)} groups")
