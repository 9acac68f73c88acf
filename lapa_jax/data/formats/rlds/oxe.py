"""The table of conventions of Open X-Embodiment datasets.

Sources: the dataset configs and transforms of octo and OpenVLA, the TensorFlow Datasets catalogue, and the datasets'
own documentation, which wins where they differ. Known differences: the catalogue has TACO-Play's gripper the wrong way
round, octo takes TACO-Play's first joint for the gripper's width, and the descriptions in Bridge's features.json are of
another robot. Actions are kept as published; they are not computed again from the states, as octo does for Bridge.
"""

from lapa_jax.data.formats.rlds.conventions import Convention

_XYZ, _RPY = ("x", "y", "z"), ("roll", "pitch", "yaw")
_AXIS_ANGLE, _QUATERNION = ("rx", "ry", "rz"), ("qx", "qy", "qz", "qw")
_ARM = (*_XYZ, *_RPY, "gripper")
_METRES = ("m",) * 3 + ("rad",) * 3 + ("open",)
_GOOGLE = ("action/world_vector", "action/rotation_delta", "action/gripper_closedness_action")
_INSTRUCTION = ("observation/natural_language_instruction",)
_LANGUAGE_TABLES = ("sim", "blocktoblock_sim", "blocktoblock_4block_sim", "blocktoblock_oracle_sim")
_LANGUAGE_TABLES += ("blocktoblockrelative_oracle_sim", "blocktoabsolute_oracle_sim", "blocktorelative_oracle_sim")
_LANGUAGE_TABLES += ("separate_oracle_sim",)

CONVENTIONS = {
    # BridgeData V2 as its authors publish it: in most episodes the first action is zero
    "bridge": Convention(
        cameras=("observation/image_0", "observation/image_1", "observation/image_2", "observation/image_3"),
        action=("action",),
        action_names=_ARM,
        action_units=_METRES,
        gripper=6,
        gripper_means="open",
        state=("observation/state",),
        state_names=_ARM,
        language=("language_instruction",),
        fps=5.0,
        drop_first=True,
        covers=("bridge_dataset", "bridge_orig", "bridge_data_v2", "bridge"),
    ),
    # the older copy of Bridge in Open X-Embodiment
    "bridge_oxe": Convention(
        cameras=("observation/image",),
        action=("action/world_vector", "action/rotation_delta", "action/open_gripper"),
        action_names=_ARM,
        action_units=_METRES,
        gripper=6,
        gripper_means="open",
        state=("observation/state",),
        state_names=_ARM,
        language=_INSTRUCTION,
        fps=5.0,
        drop_first=True,
        covers=("bridge", "bridge_oxe"),
    ),
    # RT-1: the gripper's action is a movement, 1 closes, -1 opens
    "fractal": Convention(
        cameras=("observation/image",),
        action=_GOOGLE,
        action_names=_ARM,
        action_units=_METRES,
        gripper=6,
        gripper_means="closing",
        state=("observation/base_pose_tool_reached", "observation/gripper_closed"),
        state_names=(*_XYZ, *_QUATERNION, "gripper_closed"),
        language=_INSTRUCTION,
        fps=3.0,
        covers=("fractal20220817_data", "fractal", "rt_1", "rt1"),
    ),
    # QT-Opt: holds failed grasps too; its instruction says little
    "kuka": Convention(
        cameras=("observation/image",),
        action=_GOOGLE,
        action_names=_ARM,
        action_units=_METRES,
        gripper=6,
        gripper_means="closing",
        state=("observation/clip_function_input/base_pose_tool_reached", "observation/gripper_closed"),
        state_names=(*_XYZ, *_QUATERNION, "gripper_closed"),
        language=_INSTRUCTION,
        fps=10.0,
        covers=("kuka",),
    ),
    # commanded velocity in the base frame, as a share of the largest step of the controller (75 mm, 0.15 rad)
    "droid": Convention(
        cameras=(
            "observation/exterior_image_1_left",
            "observation/exterior_image_2_left",
            "observation/wrist_image_left",
        ),
        action=("action_dict/cartesian_velocity", "action_dict/gripper_position"),
        action_names=_ARM,
        action_units=("75 mm/step",) * 3 + ("0.15 rad/step",) * 3 + ("open",),
        gripper=6,
        gripper_means="closed",
        state=("observation/cartesian_position", "observation/gripper_position"),
        state_names=(*_XYZ, *_RPY, "gripper_closed"),
        language=("language_instruction", "language_instruction_2", "language_instruction_3"),
        fps=15.0,
        covers=("droid", "droid_100"),
    ),
    # a pusher on a table: no gripper, two dimensions; the instruction is UTF-8 as a vector of integers
    "language_table": Convention(
        cameras=("observation/rgb",),
        action=("action",),
        action_names=("x", "y"),
        action_units=("m", "m"),
        state=("observation/effector_translation",),
        state_names=("x", "y"),
        language=("observation/instruction",),
        fps=10.0,
        covers=("language_table", *(f"language_table_{kind}" for kind in _LANGUAGE_TABLES)),
    ),
    # displacement in the world frame, scaled by 50 (m) and 20 (rad) and clipped to [-1, 1], as in CALVIN
    "taco_play": Convention(
        cameras=("observation/rgb_static", "observation/rgb_gripper"),
        action=("action/rel_actions_world",),
        action_names=_ARM,
        action_units=("20 mm",) * 3 + ("0.05 rad",) * 3 + ("open",),
        gripper=6,
        gripper_means="open_signed",
        state=("observation/robot_obs[0:7]",),
        state_names=(*_XYZ, *_RPY, "gripper_width"),
        language=_INSTRUCTION,
        fps=15.0,
        covers=("taco_play",),
    ),
    # each step holds the next ten actions; the first of them is taken. Rotation is in axis-angle form.
    "bc_z": Convention(
        cameras=("observation/image",),
        action=(
            "action/future/xyz_residual[0:3]",
            "action/future/axis_angle_residual[0:3]",
            "action/future/target_close[0:1]",
        ),
        action_names=(*_XYZ, *_AXIS_ANGLE, "gripper"),
        action_units=_METRES,
        gripper=6,
        gripper_means="closed",
        state=("observation/present/xyz", "observation/present/axis_angle", "observation/present/sensed_close"),
        state_names=(*_XYZ, *_AXIS_ANGLE, "gripper_closed"),
        language=_INSTRUCTION,
        fps=10.0,
        covers=("bc_z",),
    ),
}
