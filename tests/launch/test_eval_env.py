"""`launch/eval.py --env` as a user runs it, with a policy of random weights."""

import json

import pytest

from lapa_jax.core.errors import UserError
from launch import eval as command
from tests.inference import random_policy, small_policy
from tests.sim.conftest import gl, mujoco  # noqa: F401

pytestmark = pytest.mark.usefixtures("gl")
SHORT = ["--env", "push_table", "--episodes", "2", "--num_envs", "2"]


@pytest.fixture(scope="module")
def policy(root, tmp_path_factory):
    """An exported policy."""
    folder = tmp_path_factory.mktemp("run") / "policy"
    small_policy.make(root).save_pretrained(folder)
    return folder


@pytest.fixture
def brief(monkeypatch):
    """Episodes that end after 12 steps."""
    from lapa_jax.sim import push_table

    monkeypatch.setattr(push_table.Env, "max_steps", 12)


def episodes(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("episodes/*.json"))]


def test_a_policy_acts_beside_its_controls_and_goes_on_where_it_stopped(policy, brief, capsys):
    command.main([*SHORT, "--run", str(policy), "--videos", "1"])
    out = policy / "eval_push_table"
    told = json.loads((out / "metrics.json").read_text())
    assert list(told["policies"]) == ["expert", "policy", "random", "repeat"] and told["options"] == {"size": 32}
    assert "success_rate" in capsys.readouterr().out and (out / "policy/videos/000000.mp4").exists()
    first = episodes(out / "policy")
    (out / "policy/episodes/000001.json").unlink()
    command.main([*SHORT, "--run", str(policy), "--videos", "1"])
    assert episodes(out / "policy") == first and len({line["trace"] for line in first}) == 2
    with pytest.raises(UserError, match="choose another --out"):
        command.main([*SHORT, "--run", str(policy), "--videos", "1", "--execute", "1"])


def test_a_policy_drives_an_environment_of_gymnasium(policy, tmp_path, capsys):
    pytest.importorskip("gymnasium")
    path = tmp_path / "map.yaml"
    path.write_text("{make: {shape: [2]}, success: {reward: 2}, max_steps: 6, fps: 10}")
    env = "gym:tests.sim.tiny_env:lapa_jax_tests/Tiny-v0"
    given = ["--env", env, "--env_map", str(path), "--run", str(policy), "--episodes", "2", "--num_envs", "2"]
    command.main([*given, "--videos", "1"])
    out = policy / "eval_gym_tests_sim_tiny_env_lapa_jax_tests_Tiny-v0"
    result = json.loads((out / "metrics.json").read_text())
    assert list(result["policies"]) == ["policy", "random"]
    assert [line["steps"] for line in episodes(out / "policy")] == [6, 6]
    assert f"note: {env} is read by the mapping map; the image is render" in capsys.readouterr().out
    path.write_text("{success: {reward: 2}}")
    with pytest.raises(UserError, match="this policy gives actions of 2 numbers, gym:.* takes 1"):
        command.main([*given[:2], "--env_map", str(path.rename(tmp_path / "other.yaml")), *given[4:]])


def test_a_policy_whose_data_name_no_frame_rate_is_told_of(root, brief, tmp_path, capsys):
    small_policy.make(root, fps=None).save_pretrained(tmp_path / "policy")
    command.main([*SHORT, "--run", str(tmp_path / "policy"), "--videos", "0", "--episodes", "1", "--num_envs", "1"])
    assert "name no frame rate; it acts as often as push_table takes actions" in capsys.readouterr().out


def test_demonstrations_need_an_expert(tmp_path, monkeypatch):
    pytest.importorskip("gymnasium")
    about = {"table": {"statistics": random_policy.statistics(0), "features": {}, "fps": 10.0}}
    random_policy.make(about=about).save_pretrained(tmp_path / "icl")
    env = "gym:tests.sim.tiny_env:lapa_jax_tests/Tiny-v0"
    with pytest.raises(UserError, match="needs . demonstrations of each task, and gym:.* has no scripted expert"):
        command.main(["--env", env, "--run", str(tmp_path / "icl"), "--size", "32", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_an_in_context_policy_is_shown_what_the_expert_does(tmp_path, monkeypatch):
    monkeypatch.setattr(random_policy, "A", 2)
    monkeypatch.setattr(random_policy, "S", 2)
    about = {"table": {"statistics": random_policy.statistics(0), "features": {}, "fps": 10.0}}
    made = random_policy.make(action_dim=2, state_dim=2, about=about)
    made.save_pretrained(tmp_path / "icl")
    command.main([*SHORT, "--run", str(tmp_path / "icl"), "--task", "separate", "--size", "32", "--videos", "0",
                  "--out", str(tmp_path / "out"), "--episodes", "1", "--num_envs", "1"])  # fmt: skip
    assert [line["task"] for line in episodes(tmp_path / "out/policy")] == ["separate"]
    assert not (tmp_path / "out/policy/strips").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--env", "push_table"], "--run, or with --env a scripted"),
        (["--env", "push_table", "--policy", "expert"], "give --out"),
        (["--env", "gym:Pendulum-v1", "--policy", "oracle", "--out", "OUT"], "needs a scripted expert"),
        (["--env", "push_tabel", "--policy", "random", "--out", "OUT"], "did you mean 'push_table'"),
        (["--env", "push_table", "--policy", "exper", "--out", "OUT"], "did you mean 'expert'"),
        (["--env", "push_table", "--policy", "expert", "--out", "OUT", "--data", "d"], "--data is for recorded steps"),
        (["--env", "push_table", "--policy", "expert", "--out", "OUT", "--videos", "-1"], "--videos"),
        (["--run", "x", "--execute", "2"], "give --env"),
        (["--policy", "expert"], "give --env"),
        (["--run", "x", "--episodes", "10"], "--episodes is for policies that act in an environment"),
        ([*SHORT, "--run", "RUN", "--out", "OUT", "--pairs", "10"], "--pairs is for recorded steps"),
        ([], "give --run"),
        ([*SHORT, "--run", "RUN", "--out", "OUT", "--execute", "2", "--ensemble", "0.1"], "give one of them"),
        ([*SHORT, "--run", "RUN", "--out", "OUT", "--execute", "9"], "give 1 to 4"),
        ([*SHORT, "--run", "RUN", "--out", "OUT", "--task", "separat"], "did you mean 'separate'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(policy, tmp_path, arguments, told):
    given = [{"RUN": str(policy), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments]
    with pytest.raises(UserError, match=told):
        command.main(given)
    assert not (tmp_path / "out").exists()
