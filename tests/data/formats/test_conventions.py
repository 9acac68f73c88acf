import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapa_jax.core.errors import UserError
from lapa_jax.data.formats import rlds
from lapa_jax.data.formats.rlds import conventions
from lapa_jax.data.formats.rlds.conventions import GRIPPERS, Convention, Field, openness
from lapa_jax.data.formats.rlds.oxe import CONVENTIONS
from tests.data.formats import make_rlds
from tests.data.formats.test_rlds import edit, options

FIELDS = {
    "action": Field("number", (7,)),
    "observation/front": Field("image", (16, 16, 3)),
    "observation/state": Field("number", (3,)),
    "observation/matrix": Field("number", (2, 2)),
    "observation/ragged": Field("number", (None,)),
    "instruction": Field("text"),
}
GOOD = {"cameras": ["observation/front"], "action": ["action"], "language": ["instruction"]}


def load(tmp_path, values):
    path = tmp_path / "own.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return conventions.load(str(path), "own", FIELDS, CONVENTIONS)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=30))
def test_openness_from_movements(commands):
    """Against a plain loop that keeps the gripper's state."""
    state, expected = None, []
    for command in commands:
        if abs(command) > np.float32(0.1):
            state = 0 if command > 0 else 1
        expected.append(state)
    first = next((s for s in expected if s is not None), 0)
    expected = [1 - first if s is None else s for s in expected]
    assert conventions.relative(np.array(commands, np.float32)).tolist() == expected


@pytest.mark.parametrize(
    ("means", "values", "message"),
    [
        ("closed", [-1, 1, 1], "holds -1 to 1, gripper_means 'closed' is for 0 to 1; 'closed_signed' is for -1 to 1"),
        ("open", [0, 0, -0.9], "holds -0.9 to 0, gripper_means 'open' is for 0 to 1; 'open_signed' is"),
        ("open", [0, 255], "holds 0 to 255, .*; no meaning is for widths and counts"),
        ("open_signed", [0, 1000], "holds 0 to 1000, gripper_means 'open_signed' is for -1 to 1; no meaning"),
        ("closed_signed", [-3, 3], "holds -3 to 3, .*; 'closing' is for commands of any size"),
    ],
)
def test_values_beyond_what_the_convention_declares_are_refused(means, values, message):
    with pytest.raises(ValueError, match=message):
        openness(np.array(values, np.float32), means)


def test_sensors_may_lead_a_little_beyond():
    values = np.array([-0.02, 0.0, 0.5, 1.02], np.float32)
    np.testing.assert_allclose(openness(values, "closed"), 1 - values)
    np.testing.assert_allclose(openness(np.array([-40.0, 40.0]), "closing"), [1, 0])


def test_every_kind_of_gripper_ends_up_open_or_closed():
    opened = {"open": 1, "closed": 0, "open_signed": 1, "closed_signed": -1, "closing": -1}
    closed = {"open": 0, "closed": 1, "open_signed": -1, "closed_signed": 1, "closing": 1}
    assert set(GRIPPERS) == set(opened)
    for kind, convert in GRIPPERS.items():
        stored = np.array([opened[kind], closed[kind], opened[kind]], np.float32)
        assert convert(stored).tolist() == [1, 0, 1], kind


def test_a_file_of_ones_own(tmp_path):
    values = GOOD | {"state": ["observation/state[1:3]", "observation/matrix"], "fps": 12, "gripper": 6}
    name, convention = load(tmp_path, values | {"gripper_means": "closed"})
    assert name == "own.json" and convention.fps == 12 and convention.cameras == ("observation/front",)
    assert sum(conventions.width(key, FIELDS) for key in convention.state) == 6


@pytest.mark.parametrize(
    "values, message",
    [
        ("[]", "must hold a JSON object"),
        ("{", "not valid JSON"),
        ({}, "'cameras' is missing"),
        (GOOD | {"gripper_mean": "open"}, "there is no field 'gripper_mean'; did you mean 'gripper_means'"),
        (GOOD | {"gripper_means": "shut"}, "'gripper_means' must be one of open, closed"),
        (GOOD | {"gripper": 7}, "'gripper' is dimension 7, the action has 7"),
        (GOOD | {"gripper": -1}, "'gripper' must be a dimension counted from 0"),
        (GOOD | {"gripper": True}, "'gripper' must be a dimension"),
        (GOOD | {"fps": 0}, "'fps' must be a frequency"),
        ('{"cameras": [], "fps": NaN}', "'fps' must be a frequency"),
        (GOOD | {"drop_first": 1}, "'drop_first' must be true or false"),
        (GOOD | {"action": "action"}, "'action' must be a list of strings"),
        (GOOD | {"action": ["actoin"]}, "action: it has no number field 'actoin'; did you mean 'action'"),
        (GOOD | {"action": ["action[3:9]"]}, "is outside of its 7 values"),
        (GOOD | {"action": ["action[3:3]"]}, "is outside of its 7 values"),
        (GOOD | {"action_names": ["x"]}, "'action_names' has 1 entries for 7 dimensions"),
        (GOOD | {"action_units": ["m"]}, "'action_units' has 1 entries for 7 dimensions"),
        (GOOD | {"state": ["observation/ragged"]}, "the length of 'observation/ragged' varies"),
        (GOOD | {"cameras": ["observation/fron"]}, "no picture field 'observation/fron'; did you mean"),
        (GOOD | {"cameras": ["action"]}, "no picture field 'action'"),
        (GOOD | {"language": ["text"]}, "no text field 'text'"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, values, message):
    with pytest.raises(UserError, match="own.json") as error:
        load(tmp_path, values)
    assert message in str(error.value)


def test_names_that_are_not_known():
    with pytest.raises(UserError, match="unknown convention 'brigde'; did you mean 'bridge'"):
        conventions.load("brigde", "own", FIELDS, CONVENTIONS)


def test_the_template_of_an_unknown_dataset_works_as_it_is(tmp_path):
    content = make_rlds.make(tmp_path / "data")
    folder = tmp_path / "data/1.0.0"
    for path in list(folder.glob("bridge_dataset-*")):
        path.rename(folder / path.name.replace("bridge_dataset", "my_robot"))
    edit(folder / "dataset_info.json", lambda info: info.update(name="my_robot"))
    with pytest.raises(UserError, match="'my_robot'.*pass --convention FILE.json") as error:
        rlds.find(folder, options())
    message = str(error.value)
    template = message[message.index("{\n") : message.index("\n}\n") + 2]
    assert "observation/state [7]" in message and json.loads(template)["cameras"][0] == "observation/image_0"
    assert set(json.loads(template)) == {f for f in Convention.__dataclass_fields__ if f != "covers"}
    (tmp_path / "own.json").write_text(template)
    with_file = options(convention=str(tmp_path / "own.json"))
    listing = rlds.find(folder, with_file)
    episode = rlds.standardize(folder, listing.items[0], with_file)
    expected = content["train-00000-00000"]
    np.testing.assert_array_equal(episode.columns["action"][1:], expected["action"])
    np.testing.assert_array_equal(episode.columns["state"][1:], expected["state"])
    assert (episode.text, episode.fps, episode.dropped) == (expected["text"], None, {})

    edit(tmp_path / "own.json", lambda c: c.update(gripper=6, gripper_means="closed", drop_first=True, fps=7))
    episode = rlds.standardize(folder, listing.items[0], with_file)
    np.testing.assert_array_equal(episode.columns["action"][:, 6], 1 - expected["action"][:, 6])
    assert episode.fps == 7 and len(episode.columns["action"]) == len(expected["action"])


def test_names_of_states_by_option():
    convention = Convention((), state=("observation/state",), state_names=("a", "b", "c"))
    assert conventions.choose_state(convention, FIELDS, "all") == (convention.state, convention.state_names)
    keys, names = conventions.choose_state(convention, FIELDS, "matrix, state[1:2]")
    assert keys == ("observation/matrix", "observation/state[1:2]")
    assert names == ("matrix_0", "matrix_1", "matrix_2", "matrix_3", "state[1:2]")
