"""Which checkpoint a run goes on from: the newest whole one, as all hosts find it together."""

import pathlib
from typing import NamedTuple

import jax

from lapa_jax.core import integrity
from lapa_jax.core.files import read_json
from lapa_jax.train.checkpoint_folder import (
    META_FILE,
    folder_of,
    metrics_of,
    move_aside,
    move_incomplete_aside,
    steps,
)
from lapa_jax.train.distributed import gather, on_first_host
from lapa_jax.train.fast_checkpoints import FastCheckpoints


class Recovered(NamedTuple):
    """Where a run goes on.

    Attributes:
      step: None: at the beginning. meta: the metadata of that checkpoint. lines: for the log. evaluated: whether the
      run had evaluated that step. fast: whether it is a fast checkpoint.
    """

    step: int | None = None
    meta: dict | None = None
    lines: tuple[str, ...] = ()
    evaluated: bool = False
    fast: bool = False


def newest(workdir: pathlib.Path) -> Recovered:
    """The newest checkpoint by name, unread and unchanged: for what only looks."""
    whole = steps(workdir)
    return Recovered(whole[-1], read_json(folder_of(workdir, whole[-1]) / META_FILE)) if whole else Recovered()


def recover(workdir: pathlib.Path, fast: FastCheckpoints | None = None) -> Recovered:
    """Finds the newest checkpoint of any level that all hosts have whole; damaged ones are moved aside.

    All hosts call it together and share the reading. The run folder must be locked.
    """
    lines = on_first_host(lambda: move_incomplete_aside(workdir))
    own, own_lines = fast.whole() if fast is not None else ([], [])
    everywhere = set.intersection(*map(set, gather(own)))
    lines += [line for some in gather(own_lines) for line in some]
    share = (jax.process_index(), jax.process_count())
    while True:
        step = on_first_host(lambda: max(steps(workdir), default=-1))
        if everywhere and max(everywhere) > step:
            step = max(everywhere)
            return Recovered(step, fast.meta(step), tuple(lines), fast.evaluated(step), fast=True)
        if step < 0:
            return Recovered(lines=tuple(lines))
        folder = folder_of(workdir, step)
        faults = [fault for some in gather(integrity.faults(folder, share=share)) for fault in some]
        if not faults:
            return Recovered(step, read_json(folder / META_FILE), tuple(lines), bool(metrics_of(folder)))
        aside = on_first_host(lambda folder=folder: move_aside(folder).name)
        lines.append(f"checkpoint {folder} is damaged ({'; '.join(faults[:3])}): moved aside to {aside}")
