"""robomimic's HDF5 files in place of step shards: a run that is given some converts them, once, into its own folder.

`<workdir>/shards/<name of the file>` is then an ordinary folder of step shards, which `config.data` of the run names;
beside it `<name>.json` tells which file it was made from. Pictures keep their size, the splits are those of the file or
a tenth is held out, and a file that is given as a `val_path` is held out whole.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import ml_collections

from lapa_jax.core.errors import UserError
from lapa_jax.core.escape import say
from lapa_jax.core.files import read_json, write_json
from lapa_jax.data import formats
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.shards.step_shards import DATASET

FOLDER = "shards"
"""In the run folder."""
FORMAT = "robomimic"
MANY = 64 << 20
"""Bytes of a file from which on starting processes to convert it pays."""


class File(NamedTuple):
    """A file to convert. Attributes: path: of the file. folder: of its shards. split: "auto", or "val" for all."""

    path: pathlib.Path
    folder: pathlib.Path
    split: str


@contextlib.contextmanager
def as_shards(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike, check: Callable, *, dry_run: bool = False
) -> Iterator[ml_collections.ConfigDict]:
    """The config with folders of shards in place of HDF5 files, which exist while the `with` block runs, and after it.

    Args:
      config: a run's. Paths that are no HDF5 file of robomimic's stay what they are.
      workdir: the run folder.
      check: `check(workdir, config)` refuses run folders of something else; called before anything is written.
      dry_run: what is not converted yet is converted into a temporary folder that goes with the `with` block.

    Raises:
      UserError: a file that cannot be converted, or that has changed since it was.
    """
    workdir = pathlib.Path(os.path.abspath(workdir))
    with contextlib.ExitStack() as stack:
        root, files = workdir, _files(config.data, workdir)
        if dry_run and not all(_finished(file) for file in files):
            root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lapa_jax_")))
            files = _files(config.data, root)
        if files:
            config = _with_folders(config, files)
            if root == workdir:
                check(workdir, config)
            _convert_once(files, root != workdir)
        yield config


def is_raw(path: object) -> bool:
    """Whether a value of `data.path` is a file that is converted as a run begins."""
    if not isinstance(path, str) or not pathlib.Path(path).is_file():
        return False
    try:
        return formats.detect(pathlib.Path(path)) == FORMAT
    except UserError:
        return False


def _files(data: Mapping, root: pathlib.Path) -> list[File]:
    """The files that `config.data` names, each once, in the order in which they are named."""
    parts = [part for part in data.get("mixture") or () if hasattr(part, "get")]
    named = [(part.get("path"), "auto") for part in parts or [data]]
    named += [(part.get("val_path"), "val") for part in [data, *parts]]
    files: dict[pathlib.Path, File] = {}
    for path, split in named:
        if is_raw(path) and (place := pathlib.Path(path).resolve()) not in files:
            same = sum(file.path.stem == place.stem for file in files.values())
            name = f"{place.stem}-{same + 1}" if same else place.stem
            files[place] = File(place, root / FOLDER / name, split)
    return list(files.values())


def _with_folders(config: ml_collections.ConfigDict, files: list[File]) -> ml_collections.ConfigDict:
    folders = {file.path: str(file.folder) for file in files}

    def places(part: Mapping) -> dict[str, str]:
        given = {key: part.get(key) for key in ("path", "val_path") if isinstance(part.get(key), str)}
        new = {key: folders.get(pathlib.Path(path).resolve()) for key, path in given.items()}
        return {key: folder for key, folder in new.items() if folder}

    config = config.copy_and_resolve_references()
    with config.unlocked(), config.ignore_type():
        if config.data.get("mixture"):
            config.data.mixture = tuple({**dict(part), **places(part)} for part in config.data.mixture)
        for key, folder in places(config.data).items():
            config.data[key] = folder
    return config


def _convert_once(files: list[File], temporary: bool) -> None:
    """Converts what is not there yet: every process for itself into temporary folders, else one for all of them."""
    import jax
    from jax.experimental import multihost_utils

    if temporary or jax.process_index() == 0:
        for file in files:
            _convert(file, temporary)
    if not temporary and jax.process_count() > 1:
        multihost_utils.sync_global_devices("shards")


def _convert(file: File, temporary: bool) -> None:
    if _finished(file):
        say(f"{file.path} is converted already, in {file.folder}", file=sys.stderr)
        return
    where = "a temporary folder, for this dry run" if temporary else file.folder
    say(f"converting {file.path} to step shards in {where} ...", file=sys.stderr)
    if not temporary and not _record(file).exists():
        # before the shards: whatever they are made from is known, also when this process is killed
        write_json(_record(file), _describe(file))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = cores if file.path.stat().st_size > MANY else 0
    try:
        report = convert(file.path, file.folder, Options(format=FORMAT, size=None, split=file.split), workers)
    except UserError as error:
        hint = " (an option of tools/convert.py, with which you can convert it yourself)" if "--" in str(error) else ""
        raise UserError(f"{error}{hint}") from None
    say(f"converted {report['episodes']} episodes, {report['steps']} steps", file=sys.stderr)


def _finished(file: File) -> bool:
    """Whether the shards are there, whole. A file that has changed since their conversion began is a `UserError`."""
    record = _record(file)
    if not record.exists():
        return False
    recorded = read_json(record)
    stamp = file.path.stat()
    same = (recorded.get("size"), recorded.get("modified")) == (stamp.st_size, stamp.st_mtime_ns)
    if recorded.get("split") != file.split or not (same or recorded.get("sha256") == _describe(file)["sha256"]):
        raise UserError(f"{file.path} is not what {file.folder} was made from, or it is held out otherwise; restore "
                        f"it, choose another --workdir, or remove {file.folder} and {record} to convert it again")
    return (file.folder / DATASET).exists()


def _record(file: File) -> pathlib.Path:
    return file.folder.with_name(file.folder.name + ".json")


def _describe(file: File) -> dict:
    stamp = file.path.stat()
    with open(file.path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"source": str(file.path), "split": file.split, "size": stamp.st_size, "modified": stamp.st_mtime_ns,
            "sha256": digest}  # fmt: skip
