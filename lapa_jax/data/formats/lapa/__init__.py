"""The json files of LAPA: latent actions of stage 2 (jsonl), and finetuning data (json, and its preprocessed jsonl).

Each record is one step: {"image": path, "instruction", "delta": ["3", "0", ...], ...} in stage 2; {"id", "image",
"conversations": [question, {"raw_actions", "states"}]} for finetuning. Paths of pictures are relative to the file.
Steps are grouped to episodes by their id `<episode>_<step>`, else by the path of the picture,
`<episode>/img_<step>.jpg`. The frame folders of stage 1 are plain folders of pictures: format video.
"""

import pathlib
import re
import stat
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats.base import MAIN, Episode, Item, Listing, choose_cameras, folder_of
from lapa_jax.data.formats.lapa import records as lapa_records
from lapa_jax.data.formats.lapa.records import answer_of, instruction_of, is_lapa, place_of, text_of, turns_of
from lapa_jax.data.formats.reading import find_file, join_names
from lapa_jax.data.formats.webdataset.members import rows_of

FEATURES = {
    "image": "the file that `image` names",
    "latent": "i32[N] from `delta`: codes of a tokenizer that the file does not name",
    "action": "f32[A] from `raw_actions`; where A is 7: displacement (m), rotation (rad), gripper",
    "state": "f32[S] from `states`, its vectors one after another",
    "instruction": "from `instruction` or the question, taken out of LAPA's prompt",
}

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

_KNOWN = {"id", "image", "instruction", "delta", "fields", "conversations", "raw_actions", "states"}
_OF_TURNS = {"from", "value", "raw_actions", "states"}
_LEFT = {"vision": "vision (VQGAN ids)", "action": "action (bins)"}
_HELD_OUT = re.compile(r"(^|[-_.])(val|valid|validation|test)([-_.]|$)")


def detect(source: pathlib.Path) -> bool:
    """Whether a file is LAPA's, or a folder directly holds one that is; the beginning of each is looked at."""
    return any(map(is_lapa, _json_files(source)))


def find(source: pathlib.Path, options: Mapping, exclude: pathlib.Path | None = None) -> Listing:
    """The episodes of one file, or of all LAPA files that lie directly in a folder.

    Every record is read and every picture looked up. An episode some of whose pictures are not there is listed as
    missing. Files named `val...` or `..._test` are held out.

    Raises:
      UserError: a file is damaged, a record has no place in an episode, a step occurs twice, or no episode is whole.
    """
    files = _json_files(source)
    tables = [path for path in files if is_lapa(path)]
    if not tables:
        raise UserError(
            f"{source} holds no json or jsonl file of LAPA (records with image and delta or raw_actions); "
            "for stage-1 folders of frames use --format video"
        )
    listing = Listing([], notes={"instructions_outside_the_prompt": 0})
    episodes: dict[tuple[bool, str], tuple[pathlib.Path, _Steps]] = {}
    for table in tables:
        held_out = bool(_HELD_OUT.search(table.stem.lower()))
        for episode, steps in _episodes(table, listing).items():
            if (held_out, episode) in episodes:
                other = episodes[held_out, episode][0].name
                raise UserError(
                    f"episode '{episode}' is in {other} and in {table.name} of {source}; give one of the files"
                )
            episodes[held_out, episode] = (table, steps)
    names = Counter(episode for _, episode in episodes)
    splits = ("train", "val") if any(held_out for held_out, _ in episodes) else ("", "")
    for (held_out, episode), (table, steps) in episodes.items():
        name = episode if names[episode] == 1 else f"{table.stem}/{episode}"
        _add(listing, name, table, steps, splits[held_out])
    if not listing.items:
        path, why = listing.missing[0] if listing.missing else (tables[0].name, "it holds no records")
        raise UserError(f"{source} holds no whole episode: {path}: {why}; paths are relative to the json file")
    if len(files) > len(tables):
        listing.left_out["json files of another kind"] = len(files) - len(tables)
    return listing


def _json_files(source: pathlib.Path) -> list[pathlib.Path]:
    paths = [source] if source.is_file() else sorted(source.iterdir()) if source.is_dir() else []
    return [p for p in paths if p.suffix.lower() in (".json", ".jsonl") and p.name[0] != "." and p.is_file()]


class _Steps:
    """The steps of an episode while a file is read, as rows of whole numbers: compact where there are millions.

    A row is (step, number of the record, its first byte, its end, bytes of the picture or -1, folder of the picture).
    """

    def __init__(self):
        self.values, self.first_missing = array("q"), ""

    def rows(self) -> np.ndarray:
        """int64[T, 6], in the order of the steps."""
        rows = np.array(self.values, np.int64).reshape(-1, 6)
        return rows[np.lexsort((rows[:, 1], rows[:, 0]))]

    def in_folder(self, folder: int) -> "_Steps":
        """The steps whose pictures lie in one folder."""
        chosen, rows = _Steps(), self.rows()
        chosen.values.extend(rows[rows[:, 5] == folder].ravel().tolist())
        chosen.first_missing = self.first_missing
        return chosen


def _episodes(table: pathlib.Path, listing: Listing) -> dict[str, _Steps]:
    """The steps of each episode of a file; counts what is noted and left out into the listing."""
    episodes: dict[str, _Steps] = {}
    folders: dict[str, int] = {}
    for number, start, end, record in lapa_records.records(table):
        place = place_of(record, table.stem)
        if place is None:
            raise UserError(
                f"{table}, record {number}: neither its id ({record.get('id')!r}) nor its image ('{record['image']}') "
                "ends with the number of the step; name ids <episode>_<step>, or pictures <episode>/img_<step>.jpg"
            )
        steps = episodes.setdefault(place[0], _Steps())
        size = _size_of(table.parent / record["image"])
        size = size if size >= 0 else _size_of(find_file(table.parent / record["image"]))
        if size < 0 and not steps.first_missing:
            steps.first_missing = record["image"]
        folder = folders.setdefault(record["image"].rpartition("/")[0], len(folders))
        steps.values.extend((place[1], number, start, end, size, folder))
        listing.notes["instructions_outside_the_prompt"] += not instruction_of(text_of(record))[1]
        for field in set(record) & set(_LEFT):
            listing.left_out[_LEFT[field]] = listing.left_out.get(_LEFT[field], 0) + 1
    return _by_folder(table, episodes, list(folders), listing)


def _size_of(path: pathlib.Path) -> int:
    """Bytes of a regular file, -1 where there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return -1
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def _by_folder(
    table: pathlib.Path, episodes: dict[str, _Steps], folders: list[str], listing: Listing
) -> dict[str, _Steps]:
    """Parts ids that merely count through the file: one name, but several folders, one after another.

    A folder for each step is one episode. Anything between the two is refused: a guess would mix or tear episodes.
    """
    parted = {}
    for episode, steps in episodes.items():
        order = steps.rows()[:, 5]
        used, counts = np.unique(order, return_counts=True)
        if len(used) == 1 or counts.max() == 1:
            parted[episode] = steps
            continue
        changes = np.count_nonzero(np.diff(order))
        if changes >= len(used) or counts.min() == 1:
            fewest = f"{counts.min()} in '{folders[int(used[counts.argmin()])]}'"
            raise UserError(
                f"{table}: the steps of '{episode}' have their pictures in {len(used)} folders, {fewest}: mend that "
                "path, or give each episode a name of its own in the ids"
            )
        listing.notes["ids_that_run_over_folders"] = listing.notes.get("ids_that_run_over_folders", 0) + 1
        parted |= {f"{episode}/{folders[folder]}": steps.in_folder(folder) for folder in used.tolist()}
    return parted


def _add(listing: Listing, name: str, table: pathlib.Path, steps: _Steps, split: str) -> None:
    """Puts an episode into the listing, where its pictures are there."""
    rows = steps.rows()
    step, size = rows[:, 0], rows[:, 4]
    if len(twice := step[1:][np.diff(step) == 0]):
        raise UserError(f"{table}: step {twice[0]} of episode '{name}' occurs twice")
    if lost := int((size < 0).sum()):
        why = f"{lost} of its {len(rows)} pictures are not there, the first is {steps.first_missing}"
        listing.missing.append((f"{table.name}: {name}", why))
        return
    if (np.diff(step) != 1).any():
        gaps = "episodes_with_gaps_in_their_numbers"
        listing.notes[gaps] = listing.notes.get(gaps, 0) + 1
    spans: list[list[int]] = []
    last = -2
    for number, start, end in rows[:, 1:4].tolist():
        if number == last + 1:
            spans[-1][1:] = [end, spans[-1][2] + 1]
        else:
            spans.append([start, end, 1])
        last = number
    total = int(size.sum()) + sum(end - start for start, end, _ in spans)
    listing.items.append(Item(name, table.name, {"spans": spans}, total, split))


def standardize(source: pathlib.Path, item: Item, options: Mapping) -> Episode:
    """One episode: its records are read again, its pictures as they are asked for."""
    choose_cameras([MAIN], options["cameras"])
    table = folder_of(source) / item.path
    try:
        records = lapa_records.read_spans(table, item.at["spans"], lapa_records.is_list(table))
    except OSError as error:
        raise ValueError(f"{table.name} cannot be read ({error.strerror})") from None
    columns, names = _columns(records, options)
    texts = [instruction_of(text_of(record))[0] for record in records]
    left = {_LEFT.get(field, field) for record in records for field in set(record) - _KNOWN}
    left |= {f"{field} (conversations)" for r in records for turn in turns_of(r) for field in set(turn) - _OF_TURNS}
    pictures = _Pictures(table.parent, [record["image"] for record in records])
    text = texts[0] if len(set(texts)) == 1 else texts
    return Episode({MAIN: pictures}, columns, text, names=names, left_out=sorted(left))


class _Pictures:
    """The files of an episode's pictures, as bytes, one at a time."""

    def __init__(self, folder: pathlib.Path, names: Sequence[str]):
        self._folder, self._names = folder, names

    def __iter__(self) -> Iterator[bytes]:
        for name in self._names:
            try:
                yield find_file(self._folder / name).read_bytes()
            except OSError as error:
                raise ValueError(f"picture {name}: {error.strerror}") from None


def _columns(records: Sequence[Mapping], options: Mapping) -> tuple[dict[str, np.ndarray], dict[str, Sequence[str]]]:
    """The numbers of an episode, and the names of their dimensions."""
    columns, names = {}, {}
    answers = [answer_of(record) or {} for record in records]
    states = [answer.get("states", record.get("states")) for answer, record in zip(answers, records)]
    if _any(codes := [_codes(record.get("delta")) for record in records]):
        columns["latent"] = _stack(records, "latent", codes)
    if _any(actions := [answer.get("raw_actions") for answer in answers]):
        columns["action"] = _stack(records, "action", actions)
        if columns["action"].shape[1] == len(ACTION_NAMES):
            names["action"] = ACTION_NAMES
    if _any(states):
        vectors = _vectors(records, states, options["state"])
        columns["state"] = _stack(records, "state", [v and sum(v.values(), []) for v in vectors])
        names["state"] = join_names({name: (len(values), []) for name, values in (vectors[0] or {}).items()})
    return columns, {name: given for name, given in names.items() if given}


def _any(values: Sequence) -> bool:
    return any(value is not None for value in values)


def _stack(records: Sequence[Mapping], name: str, rows: Sequence) -> np.ndarray:
    """The rows of a column; a step without one, or with another number of values, is a ValueError that names it."""
    stacked = []
    for record, row in zip(records, rows):
        if row is None:
            raise ValueError(f"the record of {record['image']} has no {name}, while others of its episode have one")
        try:
            stacked.append(rows_of(name, row, 1))
        except ValueError as error:
            raise ValueError(f"the record of {record['image']}: {error}") from None
        if stacked[-1].shape != stacked[0].shape:
            counts = f"{len(stacked[-1])} values of '{name}', the first of its episode has {len(stacked[0])}"
            raise ValueError(f"the record of {record['image']} has {counts}")
    return np.stack(stacked)


def _codes(delta: object) -> object:
    """Codes as numbers: LAPA writes each as a string."""
    if not isinstance(delta, list):
        return delta
    return [int(code) if isinstance(code, str) and re.fullmatch("[0-9]{1,9}", code) else code for code in delta]


def _vectors(records: Sequence[Mapping], states: Sequence, wanted: str) -> list[dict[str, list] | None]:
    """{name: numbers} of each step's state vectors: those that `--state` names, or all, in one order throughout."""
    steps, chosen = [], [] if wanted == "all" else [name.strip() for name in wanted.split(",")]
    for record, state in zip(records, states):
        if state is None:
            steps.append(None)
            continue
        named = state if isinstance(state, dict) else {"states": state}
        chosen = chosen or list(named)
        if not set(chosen) <= set(named) or (wanted == "all" and len(named) > len(chosen)):
            wrong = f"has the states {', '.join(named)}, expected {', '.join(chosen)}"
            raise ValueError(f"the record of {record['image']} {wrong}")
        steps.append({name: value if isinstance(value := named[name], list) else [value] for name in chosen})
    return steps
