"""How commands begin: a line at once, then jax, whose import takes seconds, and the cache of compiled programs."""

import hashlib
import logging
import os
import pathlib
import sys
import time

from lapa_jax.core import escape
from lapa_jax.core.errors import UserError

NVIDIA = ("nvidia*", "nvhost*", "nvgpu*", "dxg")
"""What the kernel calls NVIDIA's GPUs in /dev: cards, two kinds of Jetson, Windows' subsystem for Linux."""
OFF = "JAX_ENABLE_COMPILATION_CACHE"
SMALL = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
KEPT_FROM = 0.1
"""Seconds of compiling from which a program is kept. JAX keeps those of a second, and a start has dozens of smaller
ones, which are a tenth of a start that finds the large ones."""
MAX_BYTES = 4 << 30
"""Of the compiled programs that are kept; jax removes those that were not used for longest."""


def say(text: str) -> None:
    """A line on stderr, with the time of the log; of several processes the first one's alone."""
    # Known before jax is: by these `train.distributed.initialize` tells who is who.
    if os.environ.get("JAX_PROCESS_ID", os.environ.get("SLURM_PROCID", "0")) == "0":
        escape.say(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def begin(text: str, keep: bool = True) -> None:
    """Says what the command does, before it imports jax, and turns on the cache of compiled programs.

    To be called by commands when everything that needs no jax is checked.

    Args:
      text: what it does.
      keep: whether programs are kept. Those for devices that are not here cannot be read again, JAX 0.10.

    Raises:
      UserError: see `check_platform`.
    """
    check_platform()
    say(text)
    if keep:
        say(keep_compiled())
    else:
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
    # What JAX says of a plugin that it cannot start is a line; the traceback below it is the plugin's own affair.
    logging.getLogger("jax._src.xla_bridge").addFilter(_without_traceback)


def check_platform(devices: str = "/dev") -> None:
    """Refuses JAX_PLATFORMS=cuda where the kernel shows no GPU of NVIDIA, in the first second: JAX itself is asked when
    it is imported. Linux alone is sure of it.

    Args:
      devices: the folder of the kernel's devices.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked != "cuda" or sys.platform != "linux":
        return
    if not any(next(pathlib.Path(devices).glob(name), None) for name in NVIDIA):
        raise UserError(f"JAX_PLATFORMS={asked} asks for a GPU of NVIDIA, and {devices} shows none (no nvidia*); "
                        "load its driver, ask for a machine or a container with a GPU, or set JAX_PLATFORMS=cpu")


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = record.exc_text = None
    return True


def keep_compiled() -> str:
    """Keeps compiled programs between runs, so that the second start of a config takes seconds; a line that says where.

    `JAX_COMPILATION_CACHE_DIR` names another folder (then without a limit, or with `JAX_COMPILATION_CACHE_MAX_SIZE`
    bytes), `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return f"compiled programs are not kept ({OFF})"
    if jax.config.jax_compilation_cache_dir is None:
        if jax.config.jax_platforms == "cpu" and _processes() > 1:
            # They wait 30 seconds for each other; one that finds its programs would be too far ahead of the others.
            return "compiled programs are not kept: several processes on CPUs have to compile at the same time"
        folder = cache_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"compiled programs are not kept: {folder} cannot be made ({error.strerror})"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
        if SMALL not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_FROM)
    return f"compiled programs are kept in {jax.config.jax_compilation_cache_dir} ({OFF}=false turns that off)"


def _processes() -> int:
    """How many processes this run has, by the variables that `train.distributed.initialize` reads."""
    return int(os.environ.get("JAX_NUM_PROCESSES", os.environ.get("SLURM_STEP_NUM_TASKS", "1")))


def cache_folder() -> pathlib.Path:
    """The user's folder of programs compiled for processors like this one."""
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    # Machines of a cluster share a home and not a processor, and programs for a CPU use its instructions.
    return base / "lapa_jax" / f"compiled-{hashlib.sha256(_instructions()).hexdigest()[:8]}"


def _instructions() -> bytes:
    """What Linux says of the processor's instructions; b"" elsewhere."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return b""
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")
