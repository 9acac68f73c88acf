"""Every convention of the table reads a small dataset laid out as published; its actions are worked out here."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lapa_jax.core.errors import UserError
from lapa_jax.data import image_files
from lapa_jax.data.formats import rlds
from lapa_jax.data.formats.rlds import conventions
from lapa_jax.data.formats.rlds.oxe import CONVENTIONS
from tests.data.formats import make_rlds
from tests.data.formats.test_rlds import options

STEPS = 6
COMMANDS = np.array([0.0, 0.05, 1.0, -0.05, -1.0, 0.0], np.float32)
"""Of a gripper that starts open, closes at step 2, and opens at step 4."""
OPENNESS = [1, 1, 0, 0, 1, 1]
CLOSED = np.array([0, 0, 1, 1, 0.25, 0], np.float32)


def vector(*shape, dtype=np.float32, **encoding):
    return tfds.features.Tensor(shape=shape, dtype=dtype, **encoding)


PICTURE = tfds.features.Image(shape=(make_rlds.SIZE, make_rlds.SIZE, 3))
STRING = vector(dtype=np.object_)
FLAGS = {"is_first": vector(dtype=np.bool_), "is_last": vector(dtype=np.bool_), "reward": vector()}
RT1_ACTION = {
    "base_displacement_vector": vector(2),
    "gripper_closedness_action": vector(1),
    "rotation_delta": vector(3),
    "terminate_episode": vector(3, dtype=np.int32),
    "world_vector": vector(3),
}

# {convention: (published name, features of a step as the catalogue or features.json of the publication has them)}
PUBLISHED = {
    "bridge": ("bridge_orig", {**make_rlds.bridge_features()}),
    "bridge_oxe": (
        "bridge",
        {
            "action": {
                "open_gripper": vector(dtype=np.bool_),
                "rotation_delta": vector(3),
                "terminate_episode": vector(),
                "world_vector": vector(3),
            },
            "observation": {"image": PICTURE, "natural_language_instruction": STRING, "state": vector(7)},
        },
    ),
    "fractal": (
        "fractal20220817_data",
        {
            "action": RT1_ACTION,
            "observation": {
                "base_pose_tool_reached": vector(7),
                "gripper_closed": vector(1),
                "image": PICTURE,
                "natural_language_instruction": STRING,
                "workspace_bounds": vector(3, 3),
            },
        },
    ),
    "kuka": (
        "kuka",
        {
            "action": RT1_ACTION,
            "observation": {
                "clip_function_input/base_pose_tool_reached": vector(7, encoding="zlib"),
                "gripper_closed": vector(1, encoding="zlib"),
                "image": PICTURE,
                "natural_language_instruction": STRING,
                "task_id": vector(1, encoding="zlib"),
            },
        },
    ),
    "droid": (
        "droid",
        {
            "action": vector(7, dtype=np.float64),
            "action_dict": {
                "cartesian_velocity": vector(6, dtype=np.float64),
                "gripper_position": vector(1, dtype=np.float64),
                "joint_velocity": vector(7, dtype=np.float64),
            },
            "language_instruction": tfds.features.Text(),
            "language_instruction_2": tfds.features.Text(),
            "language_instruction_3": tfds.features.Text(),
            "observation": {
                "cartesian_position": vector(6, dtype=np.float64),
                "exterior_image_1_left": PICTURE,
                "exterior_image_2_left": PICTURE,
                "gripper_position": vector(1, dtype=np.float64),
                "joint_position": vector(7, dtype=np.float64),
                "wrist_image_left": PICTURE,
            },
        },
    ),
    "language_table": (
        "language_table_blocktoblock_sim",
        {
            "action": vector(2),
            "observation": {
                "effector_target_translation": vector(2),
                "effector_translation": vector(2),
                "instruction": vector(512, dtype=np.int32),
                "rgb": PICTURE,
            },
        },
    ),
    "taco_play": (
        "taco_play",
        {
            "action": {"actions": vector(7), "rel_actions_gripper": vector(7), "rel_actions_world": vector(7)},
            "observation": {
                "depth_static": vector(15, 20),
                "natural_language_instruction": STRING,
                "rgb_gripper": PICTURE,
                "rgb_static": PICTURE,
                "robot_obs": vector(15),
            },
        },
    ),
    "bc_z": (
        "bc_z",
        {
            "action": {
                "future/axis_angle_residual": vector(30),
                "future/target_close": vector(10, dtype=np.int64),
                "future/xyz_residual": vector(30),
            },
            "observation": {
                "image": PICTURE,
                "natural_language_instruction": STRING,
                "present/axis_angle": vector(3),
                "present/sensed_close": vector(1),
                "present/xyz": vector(3),
            },
        },
    ),
}


def values_for(features, rng):
    """Random values for a tree of features."""
    if isinstance(features, dict):
        return {name: values_for(feature, rng) for name, feature in features.items()}
    if isinstance(features, tfds.features.Image):
        return make_rlds.picture(rng, kind="PNG")
    dtype = np.dtype(features.np_dtype)
    if isinstance(features, tfds.features.Text) or dtype.kind in "OSU":
        return ""
    value = np.asarray(rng.normal(size=features.shape) * (1 if dtype.kind == "f" else 50)).astype(dtype)
    return value if features.shape else dtype.type(value)


def instruct(name, step, text):
    """Puts the instruction where the dataset has it."""
    if name == "droid":
        step["language_instruction_2"] = text
    elif name == "bridge":
        step["language_instruction"] = text
    elif name == "language_table":
        encoded = text.encode()
        step["observation"]["instruction"] = np.array([*encoded, *bytes(512 - len(encoded))], np.int32)
    else:
        step["observation"]["natural_language_instruction"] = text


def grip(name, step, t):
    """Puts the gripper's action of step t, of the same movement for every dataset but in its own convention."""
    action = step["action"]
    if name in ("fractal", "kuka"):
        action["gripper_closedness_action"][:] = COMMANDS[t]
    elif name == "bridge":
        action[6] = 1 - CLOSED[t]
    elif name == "bridge_oxe":
        action["open_gripper"] = np.bool_(CLOSED[t] < 0.5)
    elif name == "droid":
        step["action_dict"]["gripper_position"][:] = CLOSED[t]
    elif name == "taco_play":
        action["rel_actions_world"][6] = 1 - 2 * CLOSED[t]
    elif name == "bc_z":
        action["future/target_close"][:] = [CLOSED[t] > 0.5] + [1 - (CLOSED[t] > 0.5)] * 9


# {convention: (movement and state of a step, from its values)}
ROWS = {
    "bridge": lambda s: (s["action"][:6], s["observation"]["state"]),
    "bridge_oxe": lambda s: (arm(s), s["observation"]["state"]),
    "fractal": lambda s: (arm(s), seen(s, "base_pose_tool_reached", "gripper_closed")),
    "kuka": lambda s: (arm(s), seen(s, "clip_function_input/base_pose_tool_reached", "gripper_closed")),
    "droid": lambda s: (s["action_dict"]["cartesian_velocity"], seen(s, "cartesian_position", "gripper_position")),
    "language_table": lambda s: (s["action"], s["observation"]["effector_translation"]),
    "taco_play": lambda s: (s["action"]["rel_actions_world"][:6], s["observation"]["robot_obs"][:7]),
    "bc_z": lambda s: (
        np.r_[s["action"]["future/xyz_residual"][:3], s["action"]["future/axis_angle_residual"][:3]],
        seen(s, "present/xyz", "present/axis_angle", "present/sensed_close"),
    ),
}
OPEN = dict.fromkeys(ROWS, 1 - CLOSED) | {"fractal": OPENNESS, "kuka": OPENNESS}
OPEN |= {name: (CLOSED < 0.5).astype(float) for name in ("bridge_oxe", "bc_z")}
RATES = {"bridge": 5, "bridge_oxe": 5, "fractal": 3, "kuka": 10, "droid": 15, "language_table": 10, "taco_play": 15}
RATES["bc_z"] = 10
CAMERAS = {name: ["image"] for name in ROWS} | {"taco_play": ["image", "image_rgb_gripper"]}
CAMERAS["bridge"] = ["image", "image_1", "image_2", "image_3"]
CAMERAS["droid"] = ["image", "image_exterior_image_2_left", "image_wrist_image_left"]
MAIN = dict.fromkeys(ROWS, "image") | {"bridge": "image_0", "droid": "exterior_image_1_left"}
MAIN |= {"taco_play": "rgb_static", "language_table": "rgb"}


def arm(step):
    return np.r_[step["action"]["world_vector"], step["action"]["rotation_delta"]]


def seen(step, *names):
    return np.concatenate([step["observation"][name] for name in names])


def dataset(folder, name, still=()):
    """A dataset of one episode as published; returns its steps. Steps in `still` do not move."""
    published, features = PUBLISHED[name]
    features, rng, steps = features | FLAGS, np.random.default_rng(1), []
    for t in range(STEPS):
        step = values_for(features, rng) | {"is_first": t == 0, "is_last": t == STEPS - 1}
        if t in still:
            step["action"] = (
                np.zeros(7, np.float32) if name == "bridge" else {k: v * 0 for k, v in step["action"].items()}
            )
        grip(name, step, t)
        instruct(name, step, "push the münze")
        steps.append(step)
    make_rlds.write(folder, published, features, {"train": [[steps]]})
    return steps


@pytest.mark.parametrize("name", CONVENTIONS)
def test_every_convention(tmp_path, name):
    steps = dataset(tmp_path / "1.0.0", name, still=[0] if name.startswith("bridge") else [])
    dropped = int(name.startswith("bridge"))
    listing = rlds.find(tmp_path, options())
    assert listing.notes["convention"]["name"] == name, "it is found by the published name"
    episode = rlds.standardize(tmp_path, listing.items[0], options())
    moves, states = (np.stack(rows).astype(np.float32) for rows in zip(*map(ROWS[name], steps)))
    action, gripper = episode.columns["action"], CONVENTIONS[name].gripper
    if gripper is None:
        np.testing.assert_array_equal(action, moves)
    else:
        np.testing.assert_array_equal(action[:, :gripper], moves[dropped:])
        np.testing.assert_allclose(action[:, gripper], np.asarray(OPEN[name])[dropped:], atol=1e-7)
    np.testing.assert_array_equal(episode.columns["state"], states[dropped:])
    assert episode.text == "push the münze" and episode.fps == RATES[name] and sum(episode.dropped.values()) == dropped
    assert {k: len(v) for k, v in episode.names.items()} == {k: v.shape[1] for k, v in episode.columns.items()}
    units = CONVENTIONS[name].action_units
    assert len(units) == action.shape[1] and (gripper is None or episode.names["action"][gripper] == "gripper")
    assert list(episode.cameras) == CAMERAS[name]
    frames = [image_files.open_frame(frame) for frame in episode.cameras["image"]]
    stored = [image_files.open_frame(step["observation"][MAIN[name]]) for step in steps[dropped:]]
    np.testing.assert_array_equal(frames, stored)


def test_the_table_covers_what_is_asked_for():
    assert set(PUBLISHED) == set(CONVENTIONS) and all(c.covers for c in CONVENTIONS.values())
    for convention in CONVENTIONS.values():
        assert convention.gripper_means in conventions.GRIPPERS and convention.fps > 0
        text = dataclasses.asdict(convention)
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in text.items()}
        assert conventions.from_json(values, "x") == convention, "the table can be written as JSON files"


@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_convention_is_not_taken_for_another_layout(tmp_path, name):
    """Two releases are named bridge: the fields decide. Anything else that does not fit is refused."""
    dataset(tmp_path / "1.0.0", name)
    published, _ = PUBLISHED[name]
    fields = rlds.rlds_features.Features(tmp_path / "1.0.0").step
    assert conventions.load(None, published, fields, CONVENTIONS)[0] == name
    for other in CONVENTIONS:
        if other == name:
            assert conventions.load(other, "anything", fields, CONVENTIONS)[0] == name
            continue
        with pytest.raises(UserError, match=f"convention '{other}' does not fit"):
            conventions.load(other, "anything", fields, CONVENTIONS)
