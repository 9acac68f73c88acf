"""Writes the embedded videos into a folder, as users have them: mp4 files with instructions and actions beside them.

python tools/sample_videos.py FOLDER
"""

import argparse
import json
import pathlib
import shutil
import tarfile
import tempfile

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say
from lapa_jax.core.files import check_can_write
from lapa_jax.sample import VIDEOS


def main(argv: list[str]) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="a folder that does not exist yet")
    folder = parser.parse_args(argv).folder
    if folder.exists():
        raise UserError(f"{folder} exists; give another folder, or move it away")
    check_can_write(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside it and renamed: the folder is whole or absent.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        with tarfile.open(VIDEOS) as archive:
            # Pythons before 3.11.4 (Debian 12 has 3.11.2) know no filters; they take all members, and these are ours.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(f"{temporary}/whole")
        _forget_splits(pathlib.Path(f"{temporary}/whole/episodes.jsonl"))
        shutil.move(f"{temporary}/whole", folder)
    videos = sum(1 for _ in folder.rglob("*.mp4"))
    say(f"{folder}: {videos} videos of 64 px, 10 frames a second, with instructions and actions")


def _forget_splits(table: pathlib.Path) -> None:
    """Takes the column `split` out of the recorder's table: users' own videos have none either."""
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [{name: value for name, value in row.items() if name != "split"} for row in rows]
    table.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
