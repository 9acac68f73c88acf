"""Work that several processes share without talking to each other: each takes every n-th piece, by its number."""

import os
import re
from collections.abc import Mapping

from lapa_jax.core.errors import UserError

HELP = "I/N, this process' share of the work, I from 0 to N - 1; auto: as the task of a Slurm job array that this is"


def parse_share(text: str | None, variables: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """(i, n) of "i/n", or of "auto" from the variables of a job array; None of None.

    Raises:
      UserError: no such share, or no job array.
    """
    if text is None:
        return None
    if text == "auto":
        return _of_array(os.environ if variables is None else variables)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--share {text}: give I/N with I from 0 to N - 1, such as 0/8 to 7/8, or auto")
    return int(match[1]), int(match[2])


def _of_array(variables: Mapping[str, str]) -> tuple[int, int]:
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    if missing := [name for name in names if name not in variables]:
        raise UserError(f"--share auto: this is no task of a Slurm job array ({missing[0]} is not set); submit with "
                        "sbatch --array=0-7, or give I/N")  # fmt: skip
    number, first, last, count = (int(variables[name]) for name in names)
    if last - first + 1 != count:
        raise UserError(f"--share auto: the job array has {count} tasks with numbers {first} to {last}; submit one "
                        f"without gaps: sbatch --array=0-{count - 1}")  # fmt: skip
    return number - first, count
