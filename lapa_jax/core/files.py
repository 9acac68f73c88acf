"""Files that are either whole or absent: written under a temporary name, flushed to disk, then renamed."""

import contextlib
import glob
import itertools
import json
import math
import mmap
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError, naming

_HEAD = 1024
_REFUSALS = re.compile(
    r"(\d{3}: )?(Entry not found|Repository not found|Revision not found|Not Found\s*$|Invalid username or password|"
    r"Access to \w+ .* is restricted|Access denied|Too Many Requests)",
    re.IGNORECASE,
)
"""What the Hugging Face hub and GitHub answer in place of a file."""
PAGE = mmap.ALLOCATIONGRANULARITY  # bytes: only at multiples of it may a mapping begin


RANDOM = 8
"""Hexadecimal digits in a temporary name, random."""


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(RANDOM // 2)}.tmp")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling of `path`; a clean exit puts it in place of `path`, an error removes it.

    The temporary name starts with a dot and carries random characters, so that two writers never share one, on whatever
    host, and nothing that lists `*.tar` or `*.json` ever sees it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_can_write(path: str | os.PathLike) -> None:
    """A `UserError` where a folder cannot be written: it is a file, lies in one, may not be written or made, or has too
    long a name."""
    path = pathlib.Path(path).absolute()
    existing = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not existing.is_dir():
        raise UserError(f"{path} cannot be written: {existing} is no folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission to write in {existing}")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise UserError(f"{path} cannot be written: {existing} lies on a read-only file system")
    longest = os.pathconf(existing, "PC_NAME_MAX")
    if long := [part for part in path.relative_to(existing).parts if len(os.fsencode(part)) > longest]:
        raise UserError(f"{path} cannot be written: '{long[0][:20]}...' has {len(os.fsencode(long[0]))} bytes, and "
                        f"names in {existing} at most {longest}")  # fmt: skip


def file_to_write(text: str) -> pathlib.Path:
    """The path of a file that a command writes when it is done, as a type of arguments; a `UserError` at once where it
    could not be written then."""
    path = pathlib.Path(text)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it")
    check_can_write(path.absolute().parent)
    return path


def check_room(folder: str | os.PathLike, size: int) -> None:
    """A `UserError` where a file system has less than `size` bytes left; quotas are not seen."""
    path = pathlib.Path(folder).absolute()
    existing = next(each for each in (path, *path.parents) if each.exists())
    if (free := shutil.disk_usage(existing).free) < size:
        raise UserError(f"{folder}: {size / 1e9:.3g} GB will be written, and the disk has room for {free / 1e9:.3g} "
                        "GB; make room, or choose another folder")  # fmt: skip


def check_new_folder(path: str | os.PathLike) -> None:
    """A `UserError` where something lies in the way of a new folder; an empty folder does not."""
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty folder; name a new one as --out, or remove it first")
    check_can_write(path)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary sibling folder, named as by `atomic_path`; a clean exit makes it `path`, an error removes it.

    Raises:
      UserError: as `check_new_folder`.
    """
    path = pathlib.Path(path)
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_leftovers(path: str | os.PathLike) -> None:
    """Removes what killed writers of `atomic_folder(path)` have left beside it. Hold a lock: a living one loses its
    work."""
    path = pathlib.Path(path)
    # The random part exactly: ".out.*.tmp" would also be what a living writer of "out.2" is at.
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * RANDOM}.tmp"):
        shutil.rmtree(left, ignore_errors=True)


class DiskArrays(dict[str, np.ndarray]):
    """{name: array} of arrays that lie in a file and are mapped into memory."""

    def __init__(self, maps: Mapping[str, mmap.mmap], shapes: Mapping[str, Sequence[int]], dtypes: Mapping):
        super().__init__()
        self._maps = list(maps.values())
        for name, shape in shapes.items():
            self[name] = np.frombuffer(maps[name], dtypes[name], math.prod(shape)).reshape(tuple(shape))

    def forget(self) -> None:
        """Gives back the memory in which parts of the file are held, at any time; what is used again comes back."""
        for each in self._maps:
            each.madvise(mmap.MADV_DONTNEED)


@contextlib.contextmanager
def arrays_on_disk(
    folder: str | os.PathLike, shapes: Mapping[str, Sequence[int]], dtype
) -> Iterator[DiskArrays]:
    """Yields `{name: array}` to write to and read from, which lie in a file without a name, and not in memory.

    Args:
      folder: made if absent, and after an error removed again where nothing else lies in it; the file goes with the
        arrays, whatever happens. shapes: of the arrays. dtype: of all, or {name: dtype}.

    Raises:
      UserError: the disk has no room for them.
    """
    aligned = lambda size: -(-size // PAGE) * PAGE  # noqa: E731
    dtypes = {name: np.dtype(dtype[name] if isinstance(dtype, Mapping) else dtype) for name in shapes}
    sizes = {name: aligned(math.prod(shape) * dtypes[name].itemsize) for name, shape in shapes.items()}
    absent = not pathlib.Path(folder).exists()
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    with _removed_if_empty(folder if absent else None), tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, sum(sizes.values()))
        except OSError as error:
            raise UserError(f"{folder}: no room for {sum(sizes.values()) / 1e9:.1f} GB ({error.strerror})") from None
        starts = dict(zip(sizes, itertools.accumulate(sizes.values(), initial=0)))
        maps = {name: mmap.mmap(file.fileno(), size, offset=starts[name]) for name, size in sizes.items()}
        yield DiskArrays(maps, shapes, dtypes)


@contextlib.contextmanager
def _removed_if_empty(folder: str | os.PathLike | None) -> Iterator[None]:
    """Where the `with` block fails, a folder that it left empty goes."""
    try:
        yield
    except BaseException:
        if folder is not None:
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        raise


def placeholder(source: str | os.PathLike | bytes) -> str:
    """What stands in place of a file that was not really downloaded, with the remedy; "" where a file is itself.

    A clone without Git LFS leaves pointers, and a failed download leaves the server's page or its error.

    Args:
      source: a path, whose beginning is read, or the bytes of a file.
    """
    path = "it" if isinstance(source, bytes) else os.fspath(source)
    try:
        head = source[:_HEAD] if isinstance(source, bytes) else _beginning(path)
    except OSError:
        return ""
    size = len(source) if isinstance(source, bytes) else os.path.getsize(path)
    text = head.decode("latin-1").removeprefix("\xef\xbb\xbf").lstrip()
    if text.startswith("version https://git-lfs.github.com/spec/"):
        real = re.search(r"^size (\d+)", text, re.MULTILINE)
        what = f"of a file of {int(real[1]):,} bytes " if real else ""
        return f"{path} is a Git LFS pointer {what}and not the file: run `git lfs pull` in its repository"
    if re.match(r"(<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b", text, re.IGNORECASE | re.DOTALL):
        title = re.search(r"<title[^>]*>\s*([^<]{1,80})", text, re.IGNORECASE)
        named = f' ("{" ".join(title[1].split())}")' if title else ""
        return f"{path} is an HTML page{named} and not the file: download it again, from the link to the file itself"
    if re.match(r"(<\?xml[^>]*>\s*)?<Error>", text):
        code = re.search(r"<Code>([^<]{1,40})", text)
        return f"{path} is a server's error{f' ({code[1]})' if code else ''} and not the file: download it again"
    if size < _HEAD and (_REFUSALS.match(text) or re.match(r'\{\s*"error"\s*:\s*"', text)):
        return f'{path} is a server\'s answer ("{" ".join(text.split())[:80]}") and not the file: download it again'
    return ""


def _beginning(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD)


def write_json(path: str | os.PathLike, value) -> None:
    """Writes `value` as JSON, atomically, with sorted keys: equal values give equal bytes. NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def parse_json(text: str | bytes):
    """`json.loads`, of which lists within lists by the thousand are a `json.JSONDecodeError` too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("it nests too deeply", "", 0) from None


def read_json(path: str | os.PathLike):
    """Reads JSON, with or without a byte order mark; a missing or damaged file is a `UserError` that names it."""
    try:
        return parse_json(pathlib.Path(path).read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        why = placeholder(path) or f"{path} is not valid JSON ({error}); restore it or write it again"
        raise UserError(why) from None


def read_json_object(path: str | os.PathLike) -> dict:
    """The same of a file that holds an object, {"name": value, ...}; anything else is a `UserError` too."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} and not an object, {{...}}; restore it, or write it "
                        "again")  # fmt: skip
    return content
