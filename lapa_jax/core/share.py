"""Work that several processes share without talking to each other: each takes every n-th piece, by its number."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

from lapa_jax.core.errors import UserError
from lapa_jax.core.lock import held, locked, refusal

HELP = "I/N, this process' share of the work, I from 0 to N - 1; auto: as the task of a Slurm job array that this is"

_ONLY_TASK = {"SLURM_NTASKS": "1", "SLURM_NPROCS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1",
              "SLURM_NNODES": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
              "SLURM_NODEID": "0"}  # fmt: skip


def of_one_process(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment of a command that is one process, whatever step of Slurm this one belongs to: as a task of
    several it would wait for others that never come."""
    return {name: _ONLY_TASK.get(name, value) for name, value in variables.items()}


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


@contextlib.contextmanager
def at_work(folder: pathlib.Path, share: tuple[int, int], doing: str) -> Iterator[None]:
    """Holds a share of the work in a folder while the `with` block runs: each share once, and all of one number N,
    since shares of 2 and of 3 have pieces in common.

    Raises:
      UserError: another process has this share, or one of another number.
    """
    with locked(folder / f".{name_of(share)}.lock", doing):
        # Looked for only now: of two that start together one sees the other at least.
        others = [path for path in locks_of_shares(folder) if not path.name.endswith(f"-of-{share[1]}.lock")]
        if other := held(others):
            its_count = other.name.removesuffix(".lock").rpartition("-")[2]
            raise UserError(f"{refusal(other, doing)}, a share of {its_count}; this one is of {share[1]}: beside each "
                            "other all shares have the same N")  # fmt: skip
        yield


def name_of(share: tuple[int, int]) -> str:
    """What a share is called in the names of files."""
    return "share-{}-of-{}".format(*share)


def locks_of_shares(folder: pathlib.Path) -> list[pathlib.Path]:
    """The lock files of all shares of a folder, held or left behind."""
    return sorted(folder.glob(".share-*-of-*.lock"))
