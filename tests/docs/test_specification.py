"""The table of what the specification asks for: every row says where a capability is, and it is there."""

import pathlib
import re
from typing import NamedTuple

import pytest

STATES = ("yes", "replaced", "partly", "no")


class Row(NamedTuple):
    """One line of the tables under the page's headings."""

    capability: str
    source: str
    state: str
    where: str


@pytest.fixture(scope="module")
def rows(root) -> list[Row]:
    """All rows; the page's first table, of the documents, has two columns."""
    lines = (root / "docs/explanation/specification.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    return [Row(*row) for row in cells if len(row) == 4 and row[0] != "capability"]


def test_all_five_documents_are_covered(rows):
    named = {name for row in rows for name in re.findall(r"S\d", row.source)}
    assert named == {"S0", "S1", "S2", "S3", "S4"}
    assert len(rows) > 150


def test_states_are_known(rows):
    assert [row for row in rows if row.state not in STATES] == []


def test_what_is_there_has_a_place(rows):
    """A path, a page, a public name or a setting; those are checked one by one below and in test_docs.py."""
    assert [row for row in rows if row.state != "no" and not re.search(r"`[^`]+`|\]\(", row.where)] == []


def test_what_is_not_there_has_a_reason(rows):
    assert [row.capability for row in rows if row.state == "no" and not row.where] == []


def test_paths_exist(root, rows):
    paths = {name.split()[0] for row in rows for name in re.findall(r"`(\.?[\w/.-]+/[\w/. -]*)`", row.where)}
    assert len(paths) > 80
    assert {path for path in paths if not (root / path).exists() and not path.startswith(("train/", "val/"))} == set()


def test_options_belong_to_the_commands_of_their_row(root, rows):
    unknown = []
    for row in rows:
        scripts = re.findall(r"(?<![\w/])(?:launch|tools)/\w+\.py", row.where)
        text = "".join((root / script).read_text() for script in scripts)
        for option in re.findall(r"(?<=[` ])--[a-z_]+", row.where):
            if f'"{option}"' not in text and f"'{option}'" not in text:
                unknown.append(f"{row.capability}: {option} is no option of {scripts}")
    assert unknown == []


def test_metrics_are_written_by_the_code(root, rows):
    """`train/x` and `val/x`: their names occur in the package."""
    source = "".join(path.read_text() for path in pathlib.Path(root / "lapa_jax").rglob("*.py"))
    named = {name for row in rows for name in re.findall(r"`(?:train|val)/(\w+)`", row.where)}
    assert {name for name in named if f'"{name}"' not in source} == set()
