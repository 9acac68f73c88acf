"""The run folder: who may write into it, its config, its log, and the record of the environment."""

import contextlib
import dataclasses
import importlib.metadata
import logging
import os
import pathlib
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
import ml_collections

from lapa_jax.core import checkpoint_step, escape
from lapa_jax.core import config as config_lib
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json, write_json
from lapa_jax.core.lock import locked
from lapa_jax.core.metrics import DAMAGED_FILE, METRICS_FILE, read_metrics
from lapa_jax.core.trackers import RUNS_FILE
from lapa_jax.data.convert.raw import FOLDER as SHARDS
from lapa_jax.train.checkpoint_folder import CONFIG_FILE, check_not_lost, steps
from lapa_jax.train.distributed import on_first_host

LOG = logging.getLogger("lapa_jax")
LOG_FILE, ENV_FILE, UNTRAINED_FILE, LOCK_FILE = "log.txt", "env.json", "untrained.json", ".lock"
BEGINNINGS = {CONFIG_FILE, LOG_FILE, ENV_FILE, UNTRAINED_FILE, METRICS_FILE, DAMAGED_FILE, SHARDS,
              checkpoint_step.FOLDER, "tensorboard", "wandb", "profile", "plots", RUNS_FILE}  # fmt: skip
"""What lies in the folder of a run before its first checkpoint."""
_SAVED = re.compile(r"^\S+ saved step (\d+):", re.MULTILINE)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# What a resumed run may change: how long and how often, where and how fast, never what is learned from what.
MAY_CHANGE = ("train.steps", "train.log_every", "train.eval_every", "train.save_every", "train.save_minutes",
              "train.keep_", "train.fast_", "train.hang_minutes", "train.on_spike", "train.spike_factor",
              "train.best_metric", "train.best_mode", "train.patience", "train.min_delta", "train.trackers",
              "train.profile", "train.images", "mesh.", "data.threads", "data.workers", "data.prefetch",
              "data.max_bad_samples", "data.max_normalized")  # fmt: skip


def check_config(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Refuses a folder of something else, or that holds a run of another config, as far as that shows before the data
    are opened.

    What a model takes from its data is not in the given config yet, so the model is left to `open_run`. A run that
    never reached a checkpoint has nothing to go on from: its folder may be used for another one. One that has lost its
    checkpoints is refused.
    """
    path = workdir / CONFIG_FILE
    if not config.train.get("fast_dir"):
        check_kept(workdir)  # else it may go on from a fast checkpoint, which all hosts look for later
    if _is_beginning(workdir):
        return
    if path.is_file():
        old, new = ({**values, "model": {}} for values in (read_json(path), config_lib.to_json(config)))
        if "data" in new and new["data"].get("text_length", 0) is None:  # the data say it, and the old config holds it
            old = {**old, "data": {**old.get("data", {}), "text_length": None}}
        _check_same(old, new, workdir)
    elif workdir.is_dir() and any(p for p in workdir.iterdir() if not p.name.startswith(".") and p.name != SHARDS):
        raise ConfigError(f"{workdir} is not empty and holds no run; choose another --workdir")


def check_kept(workdir: pathlib.Path, moved: Sequence[str] = ()) -> None:
    """Refuses a run that had checkpoints where no whole one is left.

    Args:
      moved: a line about each that was just moved aside.

    Raises:
      UserError: what was found, and what to do.
    """
    log = workdir / LOG_FILE
    saved = _SAVED.findall(log.read_text("utf-8", errors="replace")) if log.is_file() else ()
    logged = [line["step"] for line in read_metrics(workdir)]
    check_not_lost(workdir, logged, [int(step) for step in saved], moved)


def _is_beginning(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run that never reached a checkpoint, and nothing besides."""
    names = {p.name for p in workdir.iterdir() if not p.name.startswith(".")} if workdir.is_dir() else set()
    return CONFIG_FILE in names and names <= BEGINNINGS and not steps(workdir)


def hold(stack: contextlib.ExitStack, workdir: pathlib.Path, make: bool = False) -> bool:
    """Keeps other processes from training in a run folder until `stack` closes; the first host does so for all.

    Args:
      make: whether to make the folder.

    Returns:
      Whether it is locked: an absent folder is not.

    Raises:
      UserError: another process is training there.
    """

    def lock() -> bool:
        if make:
            workdir.mkdir(parents=True, exist_ok=True)
        if workdir.is_dir():
            stack.enter_context(locked(workdir / LOCK_FILE, f"training in {workdir}"))
        return workdir.is_dir()

    return on_first_host(lock)


def run_id(workdir: pathlib.Path) -> str | None:
    """What tells a run from another one that had its folder before; None where there is no run."""
    try:
        return read_json(workdir / ENV_FILE).get("run")
    except UserError:
        return None


def open_run(workdir: pathlib.Path, config: ml_collections.ConfigDict, begins: bool) -> str:
    """Writes the run's config, or checks that an existing one belongs to it. The folder is locked.

    Args:
      begins: whether it has no checkpoint to go on from.

    Returns:
      The id of the run, another one whenever it begins.

    Raises:
      ConfigError: the folder holds a run of another config (which keys differ) that has reached a checkpoint.
    """
    # One host looks and writes; the others must not find a folder that is half made.
    return on_first_host(lambda: _claim(workdir, config_lib.to_json(config), begins))


def _claim(workdir: pathlib.Path, values: dict, begins: bool) -> str:
    path = workdir / CONFIG_FILE
    if path.is_file() and not _is_beginning(workdir):
        _check_same(read_json(path), values, workdir)
    write_json(path, values)
    run = None if begins else run_id(workdir)
    run = run or secrets.token_hex(8)
    write_json(workdir / ENV_FILE, {**environment(), "run": run})
    return run


def environment() -> dict:
    """Versions and devices, for the record."""
    devices = jax.devices()
    return {
        "command": sys.argv,
        "git": commit_of(pathlib.Path(__file__).parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": {"kind": devices[0].device_kind, "count": len(devices), "hosts": jax.process_count()},
    }


def commit_of(source: pathlib.Path) -> dict | None:
    """Which commit the source is at, {"commit": sha1, "changed": whether files differ from it}; None where the folder
    is no working tree of git, or there is no git."""

    def git(*command: str) -> str:
        command = ["git", "-C", str(source), *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

    try:
        # An installed package may lie within another project, whose commit would say nothing.
        if pathlib.Path(git("rev-parse", "--show-toplevel")) != source.resolve():
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


@contextlib.contextmanager
def logging_to(workdir: pathlib.Path | None) -> Iterator[None]:
    """Sends the log to the terminal and, with a run folder, to its log.txt; host 0 only."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if jax.process_index() == 0 else []
    if workdir is not None and jax.process_index() == 0:
        handlers.append(logging.FileHandler(workdir / LOG_FILE, encoding="utf-8"))
    for handler in handlers:
        handler.handleError = lambda record: None  # a full disk ends no run for want of a line in the log
        handler.setFormatter(escape.LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    level, propagate = LOG.level, LOG.propagate
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.setLevel(level)
        LOG.propagate = propagate
        for handler in handlers:
            LOG.removeHandler(handler)
            handler.close()


def _check_same(old: Mapping, new: Mapping, workdir: pathlib.Path) -> None:
    a, b = _flat(old), _flat(new)
    keys = sorted(a | b)
    # Keys that came after the run began: a loss has the weight 0, a field of the model its default.
    absent = {**{key: 0.0 for key in keys if key.startswith("loss.")}, **model_defaults(new)}
    a, b = ({key: flat.get(key, absent.get(key)) for key in keys} for flat in (a, b))
    changed = [key for key in keys if not _same(a[key], b[key], workdir)]
    forbidden = [key for key in changed if not key.startswith(MAY_CHANGE)]
    if forbidden:
        shown = ", ".join(f"{key}: {a[key]!r} -> {b[key]!r}" for key in forbidden[:5])
        raise ConfigError(f"{workdir} holds a run with another config ({shown}); resume it with its own config or "
                          "choose another --workdir")


def model_defaults(values: Mapping) -> dict:
    """{"model.field": what it is where a config does not name it}, as JSON has it; of a config as JSON has it."""
    try:
        fields = config_lib.schema(config_lib.from_json(values), "model").items() if values.get("model") else ()
    except ConfigError:
        return {}  # a model that is not the package's own
    defaults = {f"model.{name}": field.default for name, field in fields if field.default is not dataclasses.MISSING}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}


def _same(old, new, workdir: pathlib.Path) -> bool:
    """Whether two values agree. Paths to the run's own shards do when it was moved: their content is checked later."""
    if isinstance(old, str) and isinstance(new, str):
        folder, name = os.path.split(new)
        own = folder == os.path.join(os.path.abspath(workdir), SHARDS)
        return old == new or (own and old.endswith(f"/{SHARDS}/{name}"))
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(_same(a, b, workdir) for a, b in zip(old, new, strict=True))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(_same(old[key], new[key], workdir) for key in old)
    return old == new


def _flat(values: Mapping, prefix: str = "") -> dict:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
