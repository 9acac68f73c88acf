"""What every model's forward pass returns."""

import flax.struct
import jax

COLLAPSED = 0.9
"""A code position whose most frequent code takes more than this share of all examples has collapsed."""


@flax.struct.dataclass
class Output:
    """The result of `Model.__call__`.

    Attributes:
      losses: named per-example losses, each f32 `[B]`; the config weighs and sums them. Of an example of which only a
        part counts they are the mean over that part, and `Model.weights` says how much that is.
      metrics: named training metrics, f32, scalar or `[B]`; logged, never differentiated. Of `[B]` as of losses.
      codes: int32 codes, `[B, N]` or `[B, T]`; None where the model has none.
    """

    losses: dict[str, jax.Array]
    metrics: dict[str, jax.Array]
    codes: jax.Array | None = None
