"""What `launch/explore.py` is told besides the run. Imports little, so that a wrong option is told at once."""

import dataclasses

from lapa_jax.core.errors import UserError
from lapa_jax.inference.kinds import Kind


@dataclasses.dataclass(frozen=True)
class Options:
    """What is explored besides the run.

    Attributes:
      data: a folder of step shards; the run's own if None. split: of it; the run's own ("val") if None.
      pairs: of a tokenizer of frame pairs: how many pairs at most are encoded, so that codes can be looked up.
      tokenizer: of a policy of latent actions: the run of the tokenizer whose codes it predicts.
      dataset: of a policy of several datasets: the one whose scaling applies to `data`; the one that they are if None.
    """

    data: str | None = None
    split: str | None = None
    pairs: int | None = None
    tokenizer: str | None = None
    dataset: str | None = None


def refuse(run, kind: Kind, options: Options) -> None:
    """Refuses options that are nothing to a run of this kind.

    Raises:
      UserError: which one.
    """
    for name in ("pairs", "tokenizer", "dataset"):
        value = getattr(options, name)
        if value is not None and name not in kind.explorer_options:
            raise UserError(f"--{name} {value} is nothing to {run}, a {kind.noun}; leave it out")
