"""Files that are either whole or absent: written under a temporary name, flushed to disk, then renamed."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator

from lapa_jax.core.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path`; a clean exit puts it in place of `path`, an error removes it.

    The temporary name starts with a dot and carries random characters, so that two writers never share one, on whatever
    host, and nothing that lists `*.tar` or `*.json` ever sees it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes `value` as JSON, atomically, with sorted keys: equal values give equal bytes. NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def read_json(path: str | os.PathLike):
    """Reads JSON; a missing or damaged file is a `UserError` that names it."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or write it again") from None
