"""`config.train.profile=(step, steps)`: traces of some steps, one of every host, for `tools/read_profile.py`."""

import contextlib
import gzip
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax

from lapa_jax.core.config import ConfigError
from lapa_jax.train.run import LOG

FOLDER, PROGRAM_FILE = "profile", "step.hlo.txt.gz"
STEP, WAIT = "train step", "input wait"
"""What the host does, as the trace names it."""


def check(profile: Sequence | None) -> None:
    """Refuses what is no (step, steps); None is fine.

    Raises:
      ConfigError: what it is.
    """
    if profile is None:
        return
    numbers = isinstance(profile, (tuple, list)) and len(profile) == 2 and all(type(n) is int for n in profile)
    if not numbers or min(profile) < 1:
        raise ConfigError(f"config.train.profile is {profile!r}; give (step, steps), the first step to trace, from 1 "
                          "on, and how many, or None")  # fmt: skip


class Profiler:
    """Traces the steps that the config names, into `profile/host_<number>` of the run folder.

    Args:
      profile: (step, steps), or None. folder: of the run. program: the text of the compiled step, which tells what
        operations do; asked for when the trace begins. settle: waits until the devices have nothing to do.
    """

    def __init__(
        self, profile: Sequence[int] | None, folder: pathlib.Path, program: Callable[[], str],
        settle: Callable[[], None],
    ):  # fmt: skip
        first, count = profile or (0, 0)
        self._steps = range(first, first + count)
        self._folder, self._program, self._settle = folder / FOLDER, program, settle
        self._tracing = self._traced = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around each step of the loop."""
        if number in self._steps and not self._tracing and not self._traced:
            self._start()
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number) if self._tracing else contextlib.nullcontext():
            yield
        if self._tracing and number + 1 not in self._steps:
            self._settle()
            self._stop()

    def close(self) -> None:
        """Ends a trace that is not complete, and says where none was made."""
        if self._tracing:
            self._stop()
        elif self._steps and not self._traced:
            LOG.warning("config.train.profile: step %d was not among the steps of this start; no trace was made",
                        self._steps.start)  # fmt: skip

    def _start(self) -> None:
        self._settle()  # what came before does not belong to it
        self._folder.mkdir(exist_ok=True)
        if jax.process_index() == 0:
            with gzip.open(self._folder / PROGRAM_FILE, "wt", encoding="utf-8") as file:
                file.write(self._program())
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every call of Python would be in it
        # A folder for each process: jax names files after the machine, which several may share.
        jax.profiler.start_trace(str(self._folder / f"host_{jax.process_index()}"), profiler_options=options)
        self._tracing = True

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._tracing, self._traced = False, True
        LOG.info("traced %d steps into %s: tools/read_profile.py %s", len(self._steps), self._folder,
                 self._folder.parent)  # fmt: skip
