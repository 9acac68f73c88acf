"""Feature tokenizers at inference: rows of features to codes, and codes back to rows."""

import numpy as np

from lapa_jax.inference.columns import ColumnTokenizer
from lapa_jax.inference.units import finite


class FeatureTokenizer(ColumnTokenizer):
    """A trained tokenizer of feature vectors. Attributes as of `ColumnTokenizer`."""

    COLUMNS = ("feature", "state")

    def encode(self, features, *, dataset: str | None = None) -> np.ndarray:
        """Codes of rows of features.

        Args:
          features: numbers `[B, F]` or `[F]`, in the units of the data.
          dataset: whose units; needed for a tokenizer of several datasets.

        Returns:
          int32 `[B, N]`, or `[N]` for a single row; place i holds 0..codebook_sizes[i]-1.

        Raises:
          UserError: another shape or type, or numbers that are not finite.
        """
        rows = finite(self.check_rows(features, "features", (1, 2), self.width_of(dataset)), "features")
        batch = {"feature": self.to_model(rows.reshape(-1, rows.shape[-1]), dataset)}
        codes = self.run(self._encode, batch)
        return codes if rows.ndim == 2 else codes[0]

    def decode(self, codes, *, dataset: str | None = None) -> np.ndarray:
        """The rows that codes stand for, float32 `[B, F]` or `[F]`, in the units of the data.

        Args:
          codes: integers `[B, N]` or `[N]`.
          dataset: as for `encode`.

        Raises:
          UserError: another shape or type, or codes that do not exist.
        """
        codes = self.check_codes(codes, (1, 2))
        rows = self.to_units(self.run(self._decode, codes.reshape(-1, codes.shape[-1])), dataset)
        return rows if codes.ndim == 2 else rows[0]
