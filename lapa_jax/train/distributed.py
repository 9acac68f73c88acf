"""Several processes as one run: started from Slurm's variables or from JAX's own, stopped after the same step."""

import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import Stopped, UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# The coordinator's port follows from the job's number: all processes know it, jobs on one node do not share it.
FIRST_PORT, PORTS = 61440, 4096


def initialize(stop_together: bool = True) -> None:
    """Joins the other processes, where there are any, and compares what Slurm gave with what JAX sees.

    Args:
      stop_together: whether JAX listens to SIGTERM, for `StopRequests`; without these nobody else would.

    A step of Slurm with several tasks is recognised by Slurm's own variables; elsewhere JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say who is who. On hosts with TPUs JAX asks Google Cloud's metadata.

    Raises:
      UserError: a coordinator that cannot be found; variables that contradict each other or what JAX sees; a plugin of
        the platform that JAX_PLATFORMS asks for that does not start.
      RuntimeError: that platform is not there, which `run_main` says in a line.
    """
    if not stop_together:
        jax.config.update("jax_enable_preemption_service", False)
    given = [name for name in VARIABLES if name in os.environ]
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if len(given) == len(VARIABLES):
        address, count, index = (os.environ[name] for name in VARIABLES)
        jax.distributed.initialize(address, int(count), int(index))
    elif tasks > 1:
        # All arguments are given: what JAX would guess about Slurm leaves GPUs unused.
        address, devices = coordinator(os.environ), local_gpus(os.environ)
        jax.distributed.initialize(address, tasks, int(os.environ["SLURM_PROCID"]), devices)
    elif "JAX_NUM_PROCESSES" in given:
        missing = [name for name in VARIABLES if name not in given]
        raise UserError(f"JAX_NUM_PROCESSES is set but {', '.join(missing)} is not; set all of {', '.join(VARIABLES)}")
    elif has_tpus(os.environ):
        jax.distributed.initialize()
    try:
        jax.devices()  # a platform that is not there is refused now, and not after the data were converted
    except AssertionError:
        # JAX 0.10 has no words for it where a plugin is installed and does not start.
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(f"JAX starts none of the devices of JAX_PLATFORMS={asked}, for the reason that it says above; "
                        "mend the driver, or set JAX_PLATFORMS=cpu") from None
    if "SLURM_PROCID" in os.environ:
        check_counts(os.environ, jax.process_count(), _visible_gpus())


def has_tpus(variables: Mapping[str, str], devices: str = "/dev") -> bool:
    """Whether this host has TPUs that JAX may use: libtpu is installed, the kernel shows their devices, and
    JAX_PLATFORMS does not leave them out.

    Args:
      variables: the environment. devices: the folder of the kernel's devices.
    """
    platforms = variables.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or importlib.util.find_spec("libtpu") is None:
        return False
    folder = pathlib.Path(devices)
    return any(folder.glob("accel[0-9]*")) or any(folder.glob("vfio/[0-9]*"))


def coordinator(variables: Mapping[str, str]) -> str:
    """The address at which the tasks of a Slurm step meet: "host:port" on the step's first node.

    Args:
      variables: the environment. JAX_COORDINATOR_ADDRESS in it comes first.

    Raises:
      UserError: this machine knows no address for the node. JAX itself would wait for minutes.
    """
    if "JAX_COORDINATOR_ADDRESS" in variables:
        return variables["JAX_COORDINATOR_ADDRESS"]
    nodes, port = variables["SLURM_STEP_NODELIST"], FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS
    # "node1,node3", "node[01-02,07]", "node[1-2]-gpu": the text before the first comma, range or end
    before, first, after = re.match(r"([^,\[]+)(?:\[([^],-]+)[^]]*\]([^,\[]*))?", nodes).groups(default="")
    host = f"{before}{first}{after}"
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror:
        raise UserError(f"Slurm's node name '{host}' has no address on {socket.gethostname()}; set "
                        f"JAX_COORDINATOR_ADDRESS=HOST:{port} to a name or address of that node that all nodes of the "
                        "job know") from None
    return f"{host}:{port}"


def local_gpus(variables: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this task of a Slurm step sees are its own; None where there are none.

    All tasks of a node see all of its GPUs (`--gres`) and share them evenly, or Slurm shows each its own
    (`--gpus-per-task`).

    Raises:
      UserError: they cannot be shared evenly.
    """
    shown = variables.get("CUDA_VISIBLE_DEVICES", "")
    given = int(variables.get("SLURM_GPUS_ON_NODE", "0"))
    seen = len(shown.split(",")) if shown else given
    if seen == 0:
        return None
    tasks = _tasks_here(variables)
    if seen < given and seen * tasks == given:
        return list(range(seen))
    if seen % tasks:
        raise UserError(f"{tasks} tasks on node {variables.get('SLURMD_NODENAME', '?')} cannot share {seen} GPU(s) "
                        f"evenly; start one for each: --ntasks-per-node={seen} --gres=gpu:{seen}")
    share = seen // tasks
    first = int(variables["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def check_counts(variables: Mapping[str, str], processes: int, gpus: int | None) -> None:
    """Compares the tasks and GPUs that Slurm gave with what JAX sees.

    Args:
      variables: the environment of a task or batch script of Slurm.
      processes: of this run, as JAX counts them.
      gpus: in all processes together, as JAX counts them; None where JAX was told to use something else.

    Raises:
      UserError: JAX sees other counts. All processes raise it alike, so that none waits for the others.
    """
    tasks = int(variables.get("SLURM_STEP_NUM_TASKS") or variables.get("SLURM_NTASKS") or "1")
    if tasks > 1 and tasks != processes:
        raise UserError(f"Slurm has {tasks} tasks for this run (SLURM_NTASKS), JAX sees {processes} process(es); start "
                        f"it with `srun python ...` and without {', '.join(VARIABLES[1:])}, or ask for one task")
    each = int(variables.get("SLURM_GPUS_ON_NODE", "0"))
    nodes = int(variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES") or "1")
    if gpus is None or not each or gpus == each * nodes:
        return
    if gpus == 0:
        remedy = "is JAX installed for this machine's CUDA (pip install 'jax[cuda13]')? On purpose: JAX_PLATFORMS=cpu"
    else:
        remedy = (f"start one task for each GPU and let all tasks see all of them (--ntasks-per-node={each} "
                  f"--gres=gpu:{each}), and do not set CUDA_VISIBLE_DEVICES")  # fmt: skip
    raise UserError(f"Slurm gave {nodes} node(s) with {each} GPUs each (SLURM_NNODES, SLURM_GPUS_ON_NODE), JAX sees "
                    f"{gpus} GPUs in {processes} process(es); {remedy}")


def gather(value) -> list:
    """What each process gives, JSON values, in the order of the processes: the same list in all of them."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(text.size, np.int32))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: text.size] = text
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(texts, sizes, strict=True)]


def on_first_host(function: Callable):
    """Calls a function in the first process alone; all get its result, JSON values, or the `UserError` it raised.

    No process waits for one that has stopped at an error.
    """
    answer = None
    if jax.process_index() == 0:
        try:
            answer = {"result": function()}
        except UserError as error:
            if jax.process_count() == 1:
                raise
            answer = {"error": str(error), "config": isinstance(error, ConfigError)}
    answer = gather(answer)[0]
    if "error" in answer:
        raise (ConfigError if answer["config"] else UserError)(answer["error"])
    return answer["result"]


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Ask a run to save and stop: of schedulers, of Ctrl-C, of whoever sends one, of a terminal that goes away."""


class StopRequests:
    """Signals that ask for the end, seen between steps: by every process of a run after the same step, so that they
    save together.

    Before the first step there is nothing to save: the run ends at once, by the exception `Stopped`, or by
    KeyboardInterrupt after SIGINT. A second SIGINT always ends it at once.
    """

    def __init__(self):
        """Listens from here on; with several processes JAX has listened to SIGTERM since `initialize`."""
        self._asked, self._stepped, self._interrupts, self._calls = False, False, 0, 0
        self._several = jax.process_count() > 1
        # Python has one place where signals arrive: other threads cannot listen.
        listens = threading.current_thread() is threading.main_thread()
        heard = [each for each in SIGNALS if not (self._several and each == signal.SIGTERM)] if listens else []
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup: the terminal may go away
            heard = [each for each in heard if each != signal.SIGHUP]
        self._previous = {each: signal.signal(each, self._ask) for each in heard}

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop; others may not know of it yet."""
        return self._asked

    def stepped(self) -> None:
        """A step has been made: from here on there is something to save."""
        self._stepped = True

    def reached(self) -> bool:
        """Whether to save and stop now. To be called after every step and evaluated batch, by every process.

        Raises:
          Stopped, KeyboardInterrupt: it was asked before the first step, and that has not ended the run.
        """
        self._calls += 1
        if self._several:
            # Calls are counted and not steps: JAX agrees on the count after the highest so far, which is 1 where the
            # signal came before the first step, and a resumed run has left that step behind it.
            self._asked = self._asked or multihost_utils.reached_preemption_sync_point(self._calls)
        elif self._asked:
            # What the handler raised is lost where it ran within a callback of the garbage collector.
            self._end_if_unstepped()
        return self._asked

    def close(self) -> None:
        """Leaves the signals to whoever had them before."""
        for each, handler in self._previous.items():
            signal.signal(each, handler)
        self._previous = {}

    def _ask(self, number: int, _frame) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if self._several:
            # JAX tells the other processes of SIGTERM, and of no other signal.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._asked = True
            self._end_if_unstepped()

    def _end_if_unstepped(self) -> None:
        if not self._stepped:
            raise KeyboardInterrupt if self._interrupts else Stopped


class SaveTimer:
    """Says when a checkpoint is due by the clock: to every process of a run after the same step.

    Args: minutes: between checkpoints; None: never. name: of the field of `config.train`.

    Raises:
      ConfigError: no positive number.
    """

    def __init__(self, minutes: float | None, name: str = "save_minutes"):
        number = isinstance(minutes, (int, float)) and not isinstance(minutes, bool)
        if minutes is not None and not (number and math.isfinite(minutes) and minutes > 0):
            raise ConfigError(f"config.train.{name} is {minutes!r}; give a number of minutes above 0, or None")
        self._minutes, self._saved = minutes, time.monotonic()

    def due(self, logged: bool) -> bool:
        """Whether so many minutes have passed since the last checkpoint. To be called after every step.

        Args:
          logged: whether the step has a line in the log. Clocks differ, so with several processes the first one's
            decides; to hear of it they wait for each other, which they do at such steps in any case.
        """
        several = jax.process_count() > 1
        if self._minutes is None or (several and not logged):
            return False
        passed = time.monotonic() - self._saved >= 60 * self._minutes
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(passed))) if several else passed

    def saved(self) -> None:
        """Begins to count afresh."""
        self._saved = time.monotonic()


def _visible_gpus() -> int | None:
    """The GPUs of all processes; None where another platform was asked for by name."""
    asked = jax.config.jax_platforms or ""
    if asked and not any(name in asked for name in ("cuda", "gpu", "rocm")):
        return None
    return jax.device_count() if jax.default_backend() == "gpu" else 0


def _tasks_here(variables: Mapping[str, str]) -> int:
    """The step's tasks on this node, from "4(x2),3" (two nodes with four, one with three)."""
    counts: list[int] = []
    for part in variables["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = part.rstrip(")").partition("(x")
        counts += [int(count)] * int(times or "1")
    return counts[int(variables["SLURM_NODEID"])]
