"""A stranger's `dataset.json` leads nobody out of its folder, and nests no deeper than a reader bears."""

import json

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import parse_json, read_json
from lapa_jax.data.shards.step_shards import DATASET, StepShards, read_dataset
from tests.inference import step_shards

NAMES = ("../escaped.tar", "/tmp/absolute.tar", "a/b.tar", "..", ".", "", ".hidden.tar", "a\\b", "a\nb.tar", 7, None)


@pytest.fixture
def folder(tmp_path):
    return step_shards.write(tmp_path / "shards")


def change(folder, edit) -> None:
    dataset = json.loads((folder / DATASET).read_text())
    edit(dataset)
    (folder / DATASET).write_text(json.dumps(dataset))


@pytest.mark.parametrize("name", NAMES)
def test_shards_lie_in_the_folder(folder, name):
    change(folder, lambda dataset: dataset["splits"]["train"]["shards"][0].update(name=name))
    for read in (read_dataset, StepShards):
        with pytest.raises(UserError, match="names a shard .* no plain name"):
            read(folder)


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(name, str)])
def test_splits_and_features_become_names_of_files_too(folder, name):
    change(folder, lambda dataset: dataset["splits"].update({name: dataset["splits"]["val"]}))
    with pytest.raises(UserError, match="names a split"):
        read_dataset(folder)
    change(folder, lambda dataset: dataset["splits"].pop(name))
    change(folder, lambda dataset: dataset["features"].update({name: {"shape": [1], "dtype": "float32"}}))
    with pytest.raises(UserError, match="names a feature"):
        read_dataset(folder)


EDITS = (
    lambda dataset: dataset.pop("splits"),
    lambda dataset: dataset.update(splits=[1]),
    lambda dataset: dataset.update(features=3),
    lambda dataset: dataset["splits"]["train"].pop("shards"),
    lambda dataset: dataset["splits"]["train"].update(shards=[1]),
)


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_no_table_of_shards_is_one_line(folder, edit):
    change(folder, edit)
    with pytest.raises(UserError, match="lacks splits, their shards or features"):
        read_dataset(folder)


def test_nothing_is_written_outside_of_out(folder, tmp_path):
    """Whoever writes shards under the names of those that it reads, reads the names by `read_dataset`."""
    from lapa_jax.label.labeller import Labeller
    from lapa_jax.label.pseudo_actions import Options, write

    change(folder, lambda dataset: dataset["splits"]["train"]["shards"][0].update(name="../escaped.tar"))
    before = sorted(path.name for path in tmp_path.iterdir())
    for run in (lambda: Labeller(None, folder, tmp_path / "out" / "labels"),
                lambda: write(folder, folder, tmp_path / "out" / "pseudo", Options())):  # fmt: skip
        with pytest.raises(UserError, match="escaped.tar"):
            run()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_depth_is_one_line(tmp_path, opening):
    (tmp_path / "deep.json").write_text(100_000 * opening)
    with pytest.raises(UserError, match="nests too deeply") as refusal:
        read_json(tmp_path / "deep.json")
    assert "\n" not in str(refusal.value)
    with pytest.raises(json.JSONDecodeError):
        parse_json(100_000 * opening)
