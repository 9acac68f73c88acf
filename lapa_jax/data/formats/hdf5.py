"""HDF5 files, read with distrust: nothing outside of the file, nothing that was never written."""

import contextlib
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from lapa_jax.core.files import placeholder
from lapa_jax.data.formats import array_images
from lapa_jax.data.formats.instructions import as_instruction
from lapa_jax.data.formats.reading import check_kind, reading

ENDINGS = (".hdf5", ".h5", ".hdf")


@contextlib.contextmanager
def open_hdf5(path: pathlib.Path) -> Iterator:
    """The root group of a file, open for reading.

    Raises:
      ValueError: it cannot be opened; the message does not say where it lies.
    """
    import h5py

    try:
        file = h5py.File(path, "r", locking="best-effort")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).split("(", 1)[-1].rstrip(")").replace(str(path), path.name)
        why = placeholder(path).replace(str(path), path.name)
        raise ValueError(why or f"it cannot be opened as HDF5 ({reason}); copy it again") from None
    with file:
        yield file


def members(group) -> list[str]:
    """The names in a group. Links are refused: they may lead out of the file, or nowhere."""
    import h5py

    names = list(group)
    for name in names:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            place = f"{group.name.rstrip('/')}/{name}"
            raise ValueError(f"{place} is a link to somewhere else, which is not followed: write the data themselves")
    return names


def subgroup(group, name: str):
    """A group in a group, None where there is none of the name."""
    import h5py

    if name not in members(group):
        return None
    member = group[name]
    return member if isinstance(member, h5py.Group) else None


def datasets(group) -> dict:
    """{name: dataset} of what lies directly in a group, by name; those that read other files are refused."""
    import h5py

    by_name = {}
    for name in sorted(members(group)):
        member = group[name]
        if isinstance(member, h5py.Dataset):
            if member.external or member.is_virtual:
                raise ValueError(f"{member.name} keeps its data in other files, which are not opened")
            by_name[name] = member
    return by_name


def walk(group, prefix: str = "", above: tuple[int, ...] = ()) -> dict:
    """{path: dataset} of all that lies in a group and in the groups within.

    Args:
      group: where to begin. prefix, above: paths begin with; addresses of the groups above; leave both out.

    Raises:
      ValueError: a link, data in other files, or a group that is contained in itself.
    """
    import h5py

    above = (*above, h5py.h5o.get_info(group.id).addr)
    if above[-1] in above[:-1]:
        raise ValueError(f"group {group.name} is contained in itself")
    names = {f"{prefix}{name}": dataset for name, dataset in datasets(group).items()}
    for name in members(group):
        if (inner := subgroup(group, name)) is not None:
            names |= walk(inner, f"{prefix}{name}/", above)
    return names


def check_written(dataset) -> None:
    """A dataset whose data were never written in full reads as zeros: that is a ValueError."""
    if dataset.shape is None or not dataset.size:
        return
    stored = dataset.id.get_storage_size()
    if dataset.chunks is None:
        missing = int(stored == 0)
        total = 1
    else:
        total = math.prod(math.ceil(n / chunk) for n, chunk in zip(dataset.shape, dataset.chunks))
        missing = total - dataset.id.get_num_chunks()
    if missing:
        raise ValueError(f"{dataset.name}: {missing} of {total} parts were never written: its writer was stopped")


def read_values(dataset, start: int = 0, end: int | None = None) -> np.ndarray:
    """Rows `start` to `end` of a dataset of real numbers, as they are stored."""
    check_kind(dataset.dtype, dataset.name)
    check_written(dataset)
    with reading(dataset.name):
        return dataset[start:end]


def read_images(dataset) -> Iterator[np.ndarray | bytes]:
    """The images of a dataset, one by one; see `array_images.frames`."""
    check_written(dataset)
    yield from array_images.frames(base_name(dataset), dataset)


def base_name(dataset) -> str:
    """The last part of a dataset's name."""
    return dataset.name.rpartition("/")[2]


def text(value: object) -> str:
    """An attribute as text; bytes, numpy's strings and arrays of one of them are text too."""
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise ValueError(f"it should be one text, it is an array of shape {list(value.shape)}")
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if not isinstance(value, str):
        raise ValueError(f"it should be text, it is {value!r:.40}")
    return str(value)


def instruction(value: object) -> str:
    """An attribute or a dataset's value as an instruction: one text, or of several the first; "" of anything else."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    parts = value if isinstance(value, list) else [value]
    with reading("an instruction"):
        return as_instruction([part.decode("utf-8") if isinstance(part, bytes) else part for part in parts])
