"""Records of benchmarks: a file of JSON with the command and its rows, from which the page of results is written."""

import json
import os
import pathlib
import platform
import shlex
from collections.abc import Sequence

from lapa_jax.core.files import write_json


def machine() -> str:
    """The processor and the memory, in words."""
    lines = pathlib.Path("/proc/cpuinfo")
    lines = lines.read_text("utf-8").splitlines() if lines.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores ({name}), {memory:.0f} GiB"


def write(path: pathlib.Path, script: str, argv: Sequence[str], rows: Sequence[dict], **more) -> None:
    """Writes a record. rows: of numbers and texts, as measured. more: what else the page says of them."""
    arguments = [text for k, text in enumerate(argv) if "--json" not in (text.partition("=")[0], *argv[k - 1 : k])]
    path.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", script, *arguments])
    write_json(path, {"command": command, "machine": machine(), **more, "rows": [_rounded(row) for row in rows]})


def read(path: pathlib.Path) -> dict:
    """A record."""
    return json.loads(path.read_text("utf-8"))


def _rounded(value):
    """With numbers of four digits: what is beyond them is noise."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
