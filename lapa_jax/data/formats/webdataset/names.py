"""Names of members that tools write and WebDataset reads otherwise: a key ends at the first dot of a name.

`000000_t.jpg` is then a sample of its own, and `22.05.jpg` is a camera "05" of the sample "22".
"""

import re

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.webdataset.tar_samples import NONE, Tar, camera_of
from lapa_jax.data.image_files import ENDINGS as IMAGES
from lapa_jax.data.shards.index import TarIndex
from lapa_jax.data.video import ENDINGS as VIDEOS

_CLASSIC = re.compile(r"(.+)_(t|t1|image(?:_[A-Za-z]\w*?)?|action|state|latent|feature)", re.DOTALL)
_SUSPICIOUS = re.compile(r"^[0-9]+$|[_-][0-9]{3,}$|\.")
_CAMERAS = 8
"""More cameras of numbered names are no cameras."""


def join_classic(index: TarIndex) -> tuple[TarIndex, int]:
    """An index in which `000000_t.jpg` and `000000_t1.jpg` are members of the sample 000000, as `000000.t.jpg` are.

    WebDataset takes them for two samples, since its keys end at the first dot; tools that write tars by hand often name
    members so. Applies where every sample of such a name has that one member only; else the index comes back as it is.

    Returns:
      The index, and how many members were joined so.
    """
    keys = [key.decode() for key in index.keys]
    matches = [_CLASSIC.fullmatch(key) for key in keys]
    classic = [i for i, match in enumerate(matches) if match]
    if not classic or (index.offsets[classic] >= 0).sum(axis=1).max() > 1:
        return index, 0
    rows: dict[str, dict[str, tuple[int, int]]] = {}
    for i, (key, match) in enumerate(zip(keys, matches)):
        members = rows.setdefault(match[1] if match else key, {})
        for column in np.flatnonzero(index.offsets[i] >= 0).tolist():
            field = f"{match[2]}.{index.fields[column]}" if match else index.fields[column]
            if field in members:
                return index, 0  # the sample has such a member already: names are not what they seem
            members[field] = (i, column)
    fields = tuple(sorted({field for members in rows.values() for field in members}))
    places = {field: number for number, field in enumerate(fields)}
    tables = [np.full((len(rows), len(fields)), -1, np.int64) for _ in range(3)]
    for row, members in enumerate(rows.values()):
        for field, place in members.items():
            for table, old in zip(tables, (index.offsets, index.sizes, index.checksums)):
                table[row, places[field]] = old[place]
    joined = TarIndex(np.array([key.encode() for key in rows], np.bytes_), fields, *tables, index.ignored)
    return joined, len(classic)


def check_dots(source: Tar, kind: np.ndarray) -> None:
    """Refuses keys with dots: the images of many steps would become as many cameras of one step.

    A camera's name is suspicious where it is a number, ends in a long one, or has a dot itself. Numbers are cameras
    only where the key is one of leading zeros; the others where no more of them occur than samples that have them.
    """
    fields = [f for f in source.index.fields if _SUSPICIOUS.search(camera_of(f, VIDEOS + IMAGES) or "")]
    if not fields:
        return
    columns = [source.index.fields.index(field) for field in fields]
    rows = np.flatnonzero((source.index.offsets[:, columns] >= 0).any(axis=1) & (kind != NONE))
    if not len(rows):
        return
    key, field = source.key(rows[0]), next(f for f in source.fields(rows[0]) if f in fields)
    number = re.search(r"([0-9]*)$", key)[1]
    counted = len(number) >= 4 and number.startswith("0")
    cameras = {f: camera_of(f, VIDEOS + IMAGES) for f in fields}
    if (any(name.isdigit() for name in cameras.values()) and not counted) or len(fields) > min(len(rows), _CAMERAS):
        raise UserError(
            f"{source.path}: '{key}.{field}' would be camera '{cameras[field]}' of sample '{key}', "
            f"one of {len(fields)}: a key ends at the first dot, what follows is the member. Name samples without "
            f"further dots, such as {key}_{field}"
        )
