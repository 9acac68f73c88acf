"""What a report says at its top: what was evaluated on what, how it was trained, and how its config differs from the
published one."""

import pathlib
import shlex
import time
from collections.abc import Mapping

from lapa_jax.core import config as config_lib
from lapa_jax.core import shipped
from lapa_jax.core.errors import UserError
from lapa_jax.core.files import read_json
from lapa_jax.plots import runs

Rows = tuple[tuple[str, str], ...]
LONG = 12
"""Of a fingerprint, the digits that are shown."""


def rows(run: pathlib.Path, about: Mapping) -> Rows:
    """(what, its value) of an evaluation.

    Args:
      run: what was evaluated: a run folder tells most, other folders hardly anything.
      about: the head of `metrics.json`, see `BaseEvaluation.about`; in closed loop there are no data.
    """
    env = _read(run / "env.json")
    devices, git = env.get("devices") or {}, env.get("git") or {}
    commit = f"{git.get('commit')}{', with changes' if git.get('changed') else ''}" if git else ""
    machine = f"{devices.get('count')} × {devices.get('kind')}, {devices.get('hosts')} host(s)" if devices else ""
    versions = ", ".join(f"{name} {version}" for name, version in (env.get("packages") or {}).items())
    model = about.get("tokenizer") or about.get("policy")
    pairs = {
        "run": f"{run}, step {about.get('step')}",
        "weights": str(model or "")[:LONG],
        "data": f"{about['data']}, split {about.get('split')}" if about.get("data") else "",
        "data fingerprint": str(about.get("data_fingerprint") or "")[:LONG],
        "trained by": shlex.join(map(str, env.get("command") or ())),
        "commit": commit,
        "machine": machine,
        "versions": versions,
        "last trained": _time(run / "metrics.jsonl"),
        "evaluated": time.strftime("%Y-%m-%d %H:%M"),
    }
    return tuple((name, value) for name, value in pairs.items() if value)


def config_differences(run: pathlib.Path) -> tuple[str, Rows]:
    """What a run's config is compared with, "configs/laq.py", and (key, "published -> the run's") of what differs; ""
    and nothing where it was not trained by a config that comes with the package."""
    command = list(map(str, _read(run / "env.json").get("command") or ()))
    given = next((b for a, b in zip(command, command[1:]) if a == "--config"), "")
    name = pathlib.Path(given.partition(":")[0]).stem
    # Of this package alone: a config is a program, and what a run folder says is not to be run.
    if name not in shipped.names(".py"):
        return "", ()
    try:
        published = config_lib.to_json(config_lib.load(str(shipped.folder("configs") / f"{name}.py")))
        both = [runs.flat(published), runs.flat(read_json(run / "config.json"))]
    except UserError:
        return "", ()
    differing = tuple((key, f"{before} -> {after}") for key, (before, after) in runs.differences(both))
    return f"configs/{name}.py", differing


def _read(path: pathlib.Path) -> dict:
    """A JSON file of a run folder; {} where it is absent or damaged: a report does without it."""
    try:
        values = read_json(path)
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}


def _time(path: pathlib.Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime)) if path.is_file() else ""
