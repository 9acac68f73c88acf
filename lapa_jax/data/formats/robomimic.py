"""robomimic's HDF5 files: a group `data/demo_N` for each demonstration, with `actions` and a group `obs`.

LIBERO's and RoboCasa's files are of this kind too; their instructions are found.
"""

import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from lapa_jax.core.files import parse_json
from lapa_jax.data.formats import array_images, hdf5
from lapa_jax.data.formats.base import (
    Episode,
    Item,
    Listing,
    choose_cameras,
    choose_vectors,
    folder_of,
    parse_key,
    take_part,
)
from lapa_jax.data.formats.instructions import as_instruction, like_instruction
from lapa_jax.data.formats.reading import natural_key, numeric_rows, reading, walk, whole_source

FEATURES = {
    "image": "obs/<camera>_image or obs/<camera>_rgb, RGB: agentview where there is one, or what --cameras names",
    "action": "f32[A] actions, or those that --action names, in the controller's units, mostly -1 to 1",
    "state": "f32[S] the vectors of obs by name (or those of --state in their order), concatenated, in SI units",
    "instruction": "attribute instruction or language_instruction, or what LIBERO and RoboCasa write",
}
_HELD_OUT = ("valid", "val", "validation", "test")
_RAW = (
    "it holds the simulator's states and no observations (a raw robosuite file): run robomimic's "
    "dataset_states_to_obs.py on it, which renders them, and convert what it writes"
)


def detect(source: pathlib.Path) -> bool:
    """Whether an HDF5 file, or the first in a folder, has groups `data/demo_N`."""
    paths = [source] if source.is_file() else (source / name for name in _walk(source, None, {}))
    for path in paths:
        if path.suffix.lower() in hdf5.ENDINGS:
            return is_robomimic(path)
    return False


def is_robomimic(path: pathlib.Path) -> bool:
    """Whether a file has groups `data/demo_N`; False where it cannot be opened."""
    try:
        with hdf5.open_hdf5(path) as file:
            data = hdf5.subgroup(file, "data")
            return data is not None and any(name.startswith("demo") for name in data)
    except (ValueError, KeyError, RuntimeError):
        return False


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """All demonstrations of a file, or of the files in a folder; of each file in natural order.

    Raises:
      UserError: a file that is damaged or holds no observations, masks that contradict each other, a camera or a
        state that is not there.
    """
    others: dict[str, int] = {}
    names = [source.name] if source.is_file() else list(_walk(source, exclude, others))
    listing = Listing([], left_out=dict(sorted(others.items())))
    stems = [pathlib.PurePath(name).with_suffix("").as_posix() for name in names]
    counts = Counter(stems)
    for name, stem in zip(names, stems):
        path = folder_of(source) / name
        with whole_source(path), reading(), hdf5.open_hdf5(path) as file:
            items, missing, notes = _find_in(file, path, name, stem if counts[stem] == 1 else name, options)
        listing.items += items
        listing.missing += missing
        for note, count in notes.items():
            listing.notes[note] = listing.notes.get(note, 0) + count
    if any(item.split for item in listing.items):
        listing.items = [item._replace(split=item.split or "train") for item in listing.items]
    return listing


def _walk(root: pathlib.Path, exclude: pathlib.Path | None, others: dict[str, int]) -> Iterator[str]:
    """The HDF5 files under a folder, sorted; other files are counted."""
    for here, names in walk(root, exclude):
        for name in names:
            ending = pathlib.PurePath(name).suffix.lower()
            if ending in hdf5.ENDINGS:
                yield (here / name).relative_to(root).as_posix()
            else:
                what = f"files {ending or 'without ending'}"
                others[what] = others.get(what, 0) + 1


def _find_in(file, path: pathlib.Path, name: str, stem: str, options: Mapping) -> tuple[list, list, dict]:
    """Items, missing demonstrations and notes of one file."""
    data = hdf5.subgroup(file, "data")
    demos = sorted(hdf5.members(data), key=natural_key) if data is not None else []
    demos = [demo for demo in demos if hdf5.subgroup(data, demo) is not None]
    if not demos:
        raise ValueError("it has no groups data/demo_N, so it is no robomimic file")
    groups = [hdf5.subgroup(data, demo) for demo in demos]
    if not any("obs" in group for group in groups):
        raise ValueError(_RAW)
    first = next(group for group in groups if "obs" in group)
    cameras, vectors, _ = _observations(first)
    choose_cameras(list(cameras), options["cameras"])
    choose_vectors(list(vectors), options["state"], "--state", list(vectors))
    _actions(first, options)
    splits, missing, outside = _splits(file, demos)
    size = path.stat().st_size
    items = [Item(f"{stem}/{demo}", name, {"demo": demo}, size, splits.get(demo, "")) for demo in demos]
    notes = {"demonstrations in no mask, taken for training": outside} if outside else {}
    return items, [(name, why) for why in missing], notes


def _splits(file, demos: list[str]) -> tuple[dict[str, str], list[str], int]:
    """{demo: split} from the masks, the demonstrations that only a mask has, and how many are in neither mask."""
    masks, missing = {}, []
    group = hdf5.subgroup(file, "mask")
    members = hdf5.datasets(group) if group is not None else {}
    for name in ("train", *_HELD_OUT):
        if name in members:
            listed = [hdf5.text(value) for value in np.atleast_1d(members[name][()])]
            missing += [f"mask '{name}' lists {demo}, the file does not have it" for demo in set(listed) - set(demos)]
            masks[name] = set(listed) & set(demos)
    train = masks.pop("train", None)
    held = set().union(*masks.values()) if masks else None
    both = sorted((train or set()) & (held or set()), key=natural_key)
    if both:
        raise ValueError(f"its masks put {both[0]} ({len(both)} in all) both into training and into what is held out")
    if held is None:
        held = set(demos) - train if train is not None else set()
    outside = len(set(demos) - train - held) if train is not None and held else 0
    if not held:
        return {}, sorted(missing), 0
    return {demo: "val" if demo in held else "train" for demo in demos}, sorted(missing), outside


def _observations(demo) -> tuple[dict, dict, list[str]]:
    """{camera: dataset} and {vector: dataset} of a demonstration, by name, and the images that cannot be read."""
    cameras, vectors, unread = {}, {}, []
    group = hdf5.subgroup(demo, "obs")
    if group is None:
        raise ValueError(_RAW if "states" in demo else "it has no group obs")
    for name, dataset in hdf5.walk(group).items():
        if array_images.layout(name, dataset):
            if problem := array_images.problem(dataset):
                unread.append(f"{array_images.describe(f'obs/{name}', dataset)} with {problem}")
            else:
                cameras[name.removesuffix("_image").removesuffix("_rgb")] = dataset
        elif array_images.like_images(name, dataset):
            unread.append(array_images.describe(f"obs/{name}", dataset))
        elif dataset.ndim in (1, 2) and dataset.dtype.kind in "fiub" and "/" not in name:
            vectors[name] = dataset  # groups within hold calibrations and the like, which have no row a step
    return cameras, vectors, unread


def _actions(demo, options: Mapping) -> dict:
    """{name: dataset} of what makes up the action."""
    arrays = {name: data for name, data in hdf5.walk(demo).items() if not name.startswith(("obs/", "next_obs/"))}
    fields = {name: data for name, data in arrays.items() if data.ndim in (1, 2)}
    if options["action"] == "all" and "actions" not in fields:
        like = [array_images.describe(name, data) for name, data in arrays.items() if "action" in name]
        raise ValueError(f"it has no actions{f', but {like[0]}: name them with --action' if like else ''}")
    chosen = choose_vectors(list(fields), options["action"], "--action", ["actions"])
    return {key: fields[parse_key(key)[0]] for key in chosen}


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One demonstration: its vectors at once, its pictures as they are asked for."""
    path, name = folder_of(source) / item.path, item.at["demo"]
    with reading(f"data/{name}"), hdf5.open_hdf5(path) as file:
        data = hdf5.subgroup(file, "data")
        demo = hdf5.subgroup(data, name) if data is not None else None
        if demo is None:
            raise ValueError("there is no such demonstration")
        cameras, vectors, not_read = _observations(demo)
        members = choose_cameras(list(cameras), options["cameras"], main="agentview")
        chosen = {"action": _actions(demo, options)}
        states = choose_vectors(list(vectors), options["state"], "--state", list(vectors))
        chosen["state"] = {key: vectors[parse_key(key)[0]] for key in states}
        _check_lengths(demo, [*chosen["action"].values(), *chosen["state"].values(), *(cameras[c] for c in members)])
        columns, names = {}, {}
        for column, datasets in chosen.items():
            rows = {key: take_part(_rows(dataset), key) for key, dataset in datasets.items()}
            if rows:
                columns[column] = np.concatenate(list(rows.values()), axis=1)
            if column == "state" or len(rows) > 1:
                names[column] = [f"{parse_key(key)[0]}.{i + (parse_key(key)[1].start or 0)}"
                                 for key, values in rows.items() for i in range(values.shape[1])]  # fmt: skip
        text, task, fps = _about(data, demo)
        images = {members[camera]: _Images(path, cameras[camera].name) for camera in members}
        used = {cameras[camera].name for camera in members} | {data.name for data in chosen["state"].values()}
        left_out = [f"obs/{name}" for name, data in hdf5.walk(demo["obs"]).items() if data.name not in used]
        acts = {data.name for data in chosen["action"].values()}
        left_out += [field for field in demo if field != "obs" and f"{demo.name}/{field}" not in acts]
        unread = _unread(data, demo, not_read)
    names = {column: listed for column, listed in names.items() if listed}
    return Episode(images, columns, text, task, fps, names, sorted(left_out), unread=unread)


def _unread(data, demo, images: list[str]) -> dict[str, str]:
    """What a demonstration holds in places and forms that are not read; see `Episode.unread`."""
    unread = {}
    beside = {name: array for name, array in hdf5.walk(demo).items() if not name.startswith(("obs/", "next_obs/"))}
    shown = [array_images.describe(name, array) for name, array in beside.items() if array_images.layout(name, array)]
    if images or shown:
        unread["images"] = f"{', '.join(images + shown)}; images are uint8, or floats of 0 to 1, in the group obs"
    for where in (demo.attrs, data.attrs):
        for name in where:
            if like_instruction(name) and hdf5.instruction(where[name]):
                unread["instructions"] = f"the attribute {name}; write it as the attribute instruction of each demo_N"
    return unread


def _rows(dataset) -> np.ndarray:
    """float32[T, A] of a dataset [T, A], or [T] where a row is a single number."""
    values = hdf5.read_values(dataset)
    return numeric_rows(values[:, None] if values.ndim == 1 else values, dataset.name)


def _check_lengths(demo, datasets: list) -> None:
    """All have as many rows as the first, mostly the actions, and as many as the demonstration says."""
    if not datasets:
        raise ValueError("nothing of it is wanted: --cameras, --action and --state leave everything out")
    what = "actions" if "action" in datasets[0].name else f"rows of {datasets[0].name}"
    count = datasets[0].shape[0] if datasets[0].ndim else 0
    recorded = demo.attrs.get("num_samples", count)
    if int(recorded) != count or not count:
        raise ValueError(f"it has {count} {what}, num_samples says {int(recorded)}")
    for dataset in datasets[1:]:
        if dataset.shape[0] != count:
            raise ValueError(f"{dataset.name} has {dataset.shape[0]} rows, there are {count} {what}")


def _about(data, demo) -> tuple[str, str, float | None]:
    """Instruction, task and steps per second, from the attributes."""
    arguments = _json(data, "env_args")
    text = ""
    for name in ("instruction", "language_instruction"):
        if name in demo.attrs and not text:
            text = hdf5.instruction(demo.attrs[name])
    text = text or as_instruction(_json(demo, "ep_meta").get("lang"))  # RoboCasa
    text = text or as_instruction(_json(data, "problem_info").get("language_instruction"))  # LIBERO
    # the environment tells tasks apart only where instructions do not
    task = "" if text else str(arguments.get("env_name") or "")
    if "task" in demo.attrs:
        task = hdf5.text(demo.attrs["task"])
    settings = arguments.get("env_kwargs")
    rate = settings.get("control_freq") if isinstance(settings, dict) else None
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < 1e6):
        raise ValueError(f"env_args: control_freq is {rate!r}")
    return text, task, None if rate is None else float(rate)


def _json(group, name: str) -> dict:
    """An attribute that holds JSON; {} where it is not there."""
    if name not in group.attrs:
        return {}
    with reading(f"attribute {name}"):
        value = parse_json(hdf5.text(group.attrs[name]))
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        return value


class _Images:
    """The images of one camera; the file is opened for each reading."""

    def __init__(self, path: pathlib.Path, name: str):
        self.path, self.name = path, name

    def __iter__(self) -> Iterator[np.ndarray | bytes]:
        with reading(self.name), hdf5.open_hdf5(self.path) as file:
            yield from hdf5.read_images(file[self.name])
