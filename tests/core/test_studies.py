"""Tables of studies: metrics that are absent or not finite, and numbers of seeds."""

import pytest

from lapa_jax.core import studies
from lapa_jax.core.errors import UserError

COLUMNS = {"R²": ("r2", "{:.2f}"), "right": ("accuracy", "{:.0%}")}


def test_what_diverged_is_nan_in_the_table_and_not_the_end_of_it():
    group = [{"r2": 0.5, "accuracy": 0.25}, {"r2": None, "accuracy": 0.75}]
    assert studies.cells(group[1], COLUMNS) == ["nan", "75%"] and studies.cells({}, COLUMNS) == ["", ""]
    assert studies.ranges(group, COLUMNS)[0].startswith("nan")
    assert studies.ranges(group, COLUMNS)[1] == "50% (25% to 75%)"
    assert studies.cells(studies.mean(group, COLUMNS), COLUMNS) == ["nan", "50%"]


def test_recipes_train_at_least_one_seed():
    assert studies.recipe_and_seeds("a=3", "ab") == ("a", 3) and studies.recipe_and_seeds("b", "ab", 2) == ("b", 2)
    for text, usual, words in (("a=0", 1, "1 seed at least"), ("a", 0, "--seeds 0"), ("c", 1, "unknown recipe 'c'")):
        with pytest.raises(UserError, match=words):
            studies.recipe_and_seeds(text, "ab", usual)


@pytest.mark.parametrize("arguments", [("--jobs", "0"), ("--jobs", "-1"), ("--seeds", "0"), ("--seeds", "two")])
def test_numbers_of_jobs_and_seeds_are_checked_on_the_command_line(arguments, capsys):
    parser = studies.parser("what it does", "DATA", ["a"], ["a"], 2)
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "x", "--out", "y", *arguments])
    assert f"{arguments[0]}: {arguments[1]} is no number of at least 1" in capsys.readouterr().err
