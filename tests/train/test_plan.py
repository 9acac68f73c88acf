"""Plans: reading programs, devices and meshes by name, the two compilers, and what the 7B step needs."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.errors import UserError
from lapa_jax.train import hlo, plan_devices, plan_hlo
from lapa_jax.train.plan import describe, measure
from lapa_jax.train.setup import prepare

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: bf16[], y: bf16[]) -> bf16[] {
  ROOT %sum = bf16[] add(%x, %y)
}

%inner (p: bf16[1024]) -> bf16[4096] {
  %all-gather-start = (bf16[1024]{0}, bf16[4096]{0}) all-gather-start(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %all-gather-done = bf16[4096]{0} all-gather-done(%all-gather-start)
}

%layer (state: (s32[], bf16[4096])) -> (s32[], bf16[4096]) {
  %call = bf16[4096]{0} call(%x), to_apply=%inner
  %reduce-scatter-start = ((bf16[4096]{0}, f32[8]{0}), (bf16[1024]{0}, f32[2]{0})) reduce-scatter-start(%a, %b), channel_id=2, replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}, to_apply=%add, metadata={op_name="jit(step)/transpose(jvp(Model))/layers/dot_general"}
  %reduce-scatter-done = (bf16[1024]{0}, f32[2]{0}) reduce-scatter-done(%reduce-scatter-start)
}

%condition (state: (s32[], bf16[4096])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%micro (state: (s32[], bf16[4096])) -> (s32[], bf16[4096]) {
  ROOT %while.1 = (s32[], /*index=1*/bf16[4096]{0}) while(%state), condition=%condition, body=%layer, backend_config={"known_trip_count":{"n":"32"},"known_init_step":{"init":"0","step":"1"}}
}

%endless (state: (s32[], bf16[4096])) -> (s32[], bf16[4096]) {
  %all-to-all = bf16[4096]{0} all-to-all(%x), channel_id=5, replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}
}

ENTRY %main (x: bf16[1024]) -> f32[] {
  %while.2 = (s32[], bf16[4096]{0}) while(%t), condition=%condition, body=%micro, backend_config={"known_trip_count":{"n":"3"}}
  %while.3 = (s32[], bf16[4096]{0}) while(%t), condition=%condition, body=%endless
  %all-reduce.7 = f32[100]{0} all-reduce(%g), channel_id=3, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %permute = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%h), channel_id=4, source_target_pairs={{0,1},{1,0}}
  ROOT %all-reduce.8 = f32[] all-reduce(%loss), channel_id=6, replica_groups={}, to_apply=%add
}
"""  # noqa: E501


def test_collectives_count_as_often_as_their_loops_run():
    program = plan_hlo.read(hlo.Module(PROGRAM), devices=8)
    by_kind = {kind: [c for c in program.collectives if c.kind == kind] for kind in plan_hlo.KINDS}
    (gather,), (scatter,) = by_kind["all-gather"], by_kind["reduce-scatter"]
    assert (gather.times, gather.size, gather.looped) == (96, 8192, True)
    assert (scatter.times, scatter.size) == (96, 8192 + 32)
    assert scatter.name == "jit(step)/transpose(jvp(Model))/layers/dot_general"
    assert [(c.times, c.size, c.looped) for c in by_kind["all-reduce"]] == [(1, 400, False), (1, 4, False)]
    assert [(c.times, c.size) for c in by_kind["collective-permute"]] == [(1, 16)]
    assert [(c.times, c.looped) for c in by_kind["all-to-all"]] == [(1, True)] and program.unknown_loops == 1
    runs, size, moved = plan_hlo.total(program.collectives, "all-reduce")
    assert (runs, size) == (2, 404) and moved == 2 * 400 / 2 + 2 * 4 * 7 / 8
    assert plan_hlo.total(program.collectives, "all-gather") == (96, 96 * 8192, 96 * 8192 * 3 / 4)


def test_loops_without_a_note_run_as_often_as_their_condition_says():
    """As the compiler for TPUs writes scans: layouts in the types, no trip counts."""
    condition = """%condition (state: (s32[], bf16[4096])) -> pred[] {
  %n = s32[]{:T(128)} constant(32)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT, metadata={op_name="while/cond/lt"}
}"""
    start, end = PROGRAM.index("%condition"), PROGRAM.index("%micro")
    text = PROGRAM[:start] + condition + "\n\n" + PROGRAM[end:].replace('"known_trip_count":{"n":"32"},', "")
    program = plan_hlo.read(hlo.Module(text), devices=8)
    assert {c.kind: c.times for c in program.collectives} == {
        "all-gather": 96, "reduce-scatter": 96, "all-to-all": 32, "all-reduce": 1, "collective-permute": 1}  # fmt: skip
    assert program.unknown_loops == 0


def test_groups_tell_what_leaves_a_host():
    kinds = {c.kind: c for c in plan_hlo.read(hlo.Module(PROGRAM), devices=8).collectives[:-1]}
    assert kinds["all-gather"].groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert kinds["reduce-scatter"].groups.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert kinds["all-reduce"].groups.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert {name: c.crosses(4) for name, c in kinds.items()} == {
        "all-gather": False, "reduce-scatter": False, "all-to-all": False, "all-reduce": True,
        "collective-permute": False}  # fmt: skip


@pytest.mark.parametrize("written, groups", [
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups={{0,2},{1,3}}, dimensions={0}", [[0, 2], [1, 3]]),
])  # fmt: skip
def test_groups_as_xla_writes_them(written, groups):
    line = f"ENTRY %e (x: f32[4]) -> f32[4] {{\n  %r = f32[4]{{0}} all-reduce(%x), channel_id=1, {written}\n}}"
    (only,) = plan_hlo.read(hlo.Module(line), devices=8).collectives
    assert np.sort(only.groups, axis=0).tolist() == groups


def test_meshes_and_devices_by_name():
    assert plan_devices.parse_mesh("64x4") == (64, 4)
    for wrong in ("4", "0x4", "2x4x1", "2,4", ""):
        with pytest.raises(UserError, match="hosts x GPUs per host"):
            plan_devices.parse_mesh(wrong)
    assert plan_devices.find_device("A100-80GB").memory == 80 * 10**9
    assert plan_devices.find_device("TPU-v5e").topology("16x16") == (16, 16)
    assert plan_devices.find_device("TPU-v5p").topology("2x2x4") == (2, 2, 4)
    for device, wrong in (("TPU-v5e", "2x2x4"), ("TPU-v5p", "16"), ("TPU-v6e", "0x4"), ("TPU-v6e", "")):
        with pytest.raises(UserError, match="give its topology in chips, such as"):
            plan_devices.find_device(device).topology(wrong)
    with pytest.raises(UserError, match="did you mean 'H100-94GB'"):
        plan_devices.find_device("H100-95GB")


def test_without_the_extra_the_cpu_compiler_answers_and_says_so(root):
    hidden = "import sys; sys.modules['jax_plugins.xla_cuda13'] = sys.modules['jax_plugins.xla_cuda12'] = None"
    command = "import runpy; runpy.run_path('launch/train.py', run_name='__main__')"
    options = ["--config", "configs/mstcn.py:small", "--dry_run", "--mesh", "2x4", "--device", "A100-80GB",
               "--config.model.action_dim=3", "--config.model.state_dim=0", "--config.mesh.fsdp=4",
               "--config.mesh.grad_dtype=float32"]  # fmt: skip
    run = [sys.executable, "-B", "-c", f"{hidden}; sys.argv[0] = 'train.py'; {command}", *options]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mstcn_small on 2 x 4 A100-80GB: data 2, fsdp 4, tensor 1" in done.stdout
    assert "memory and traffic are OVER-ESTIMATED" in done.stdout and "pip install jax-cuda13-plugin==" in done.stdout
    assert "batch 64 = 8 sequences a device x 8 x 1 micro-batches" in done.stdout
    assert "gradients of linear layers are sent in float32 (mesh.grad_dtype)" in done.stdout
    assert "config.data names no data" in done.stdout and "\nfits: the peak of 0.00" in done.stdout


def test_a_plan_is_asked_for_with_a_mesh_and_a_device(root):
    run = [sys.executable, "-B", "launch/train.py", "--config", "configs/fsq.py", "--mesh", "1x4"]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --mesh and --device go together and with --dry_run")


def plan_for_a_slice(root, *arguments) -> subprocess.CompletedProcess:
    """`--dry_run` of a small model for a slice of TPUs, in a process of its own."""
    if not plan_devices.has_tpu_compiler():
        pytest.skip("XLA's compiler for TPUs is not installed: pip install 'lapa_jax[plan-tpu]'")
    run = [sys.executable, "-B", "launch/train.py", "--dry_run", *arguments]
    return subprocess.run(run, cwd=root, capture_output=True, text=True)


def test_a_step_is_compiled_for_a_slice_of_tpus(root):
    done = plan_for_a_slice(root, "--config", "configs/mstcn.py:small", "--mesh", "2x2", "--device", "TPU-v5e",
                            "--config.model.action_dim=3", "--config.model.state_dim=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "mstcn_small on 1 x 4 TPU-v5e: data 4, fsdp 1, tensor 1"
    assert lines[1].startswith("compiled by XLA's TPU compiler, jax ")
    assert "batch 64 = 16 sequences a device x 4 x 1 micro-batches" in lines
    # Gradients of parameters that every chip has are summed over all chips once: 4 bytes each.
    (reduced,) = [line.split() for line in lines if line.strip().startswith("all-reduce")]
    trained = next(int(line.split()[0].replace(",", "")) for line in lines if "parameters trained" in line)
    assert float(reduced[2]) * 2**30 == pytest.approx(4 * trained, rel=0.1)
    assert lines[-1].startswith("fits: the peak of 0.0") and lines[-1].endswith("that a run may fill of one TPU-v5e")


def test_a_small_latent_action_model_is_compiled_for_tpus(root):
    """Loops over few small blocks end the compiler, with the process; and what it made is not kept, for it cannot be
    read again."""
    data = ("--config.data.path=sample", "--config.data.gap_frames=3")
    done = plan_for_a_slice(root, "--config", "configs/laq.py:tiny", "--mesh", "1x1", "--device", "TPU-v5e", *data)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("fits: ") and "compiled programs are kept" not in done.stderr


def test_a_slice_that_does_not_exist_or_is_too_small_is_refused_in_words(root):
    wrong = plan_for_a_slice(root, "--config", "configs/fsq.py:test", "--mesh", "3x5", "--device", "TPU-v5e")
    assert wrong.returncode == 2 and "error: --mesh 3x5: no slice of TPU-v5es" in wrong.stderr
    full = plan_for_a_slice(root, "--config", "configs/mstcn.py:small", "--mesh", "1x1", "--device", "TPU-v5e",
                            "--config.model.action_dim=3", "--config.model.state_dim=0",
                            "--config.train.batch_size=1048576")  # fmt: skip
    assert full.returncode == 0, full.stderr
    *_, last = full.stdout.splitlines()
    assert last.startswith("does not fit: ") and "15.75G" in last and "what helps: more micro-batches" in last


@pytest.fixture(scope="module")
def seven(root):
    """The 7B step at 16 sequences a GPU on four of them: what was compiled, for what, and what it needs."""
    if not plan_devices.has_compiler():
        pytest.skip("XLA's compiler for GPUs is not installed: pip install 'lapa_jax[plan]'")
    goal = plan_devices.target("H100-94GB", "1x4")
    # With fused attention cuDNN would be needed besides.
    config = config_lib.load(f"{root}/configs/vla_latent.py", ["--config.model.llm.flash=False"])
    setup = prepare(config, devices=goal.devices)
    return setup, goal, measure(setup, goal)


def test_seven_billion_parameters_fit_four_gpus_of_94_gb(seven):
    setup, goal, needs = seven
    lines = list(describe(setup, goal, needs))
    assert "batch 4096 = 16 sequences a device x 4 x 64 micro-batches" in lines
    assert needs.peak < 0.9 * 94e9 and lines[-1].startswith("fits: ")
    trained = sum(leaf.size for leaf in jax.tree.leaves(tree.split(params(setup), setup.optimizer.trainable)[0]))
    assert trained > 6.6e9 and needs.state["parameters, trained"] == pytest.approx(trained * 4 / 4, rel=1e-3)
    assert needs.state["optimizer state"] == pytest.approx(trained * 8 / 4, rel=1e-3)
    tokens = 16 * 64 * (1 + 256 + 192 + 4)
    # Two FLOPs a parameter and token forward, four backward, two for what full remat computes again.
    assert needs.flops == pytest.approx(8 * trained * tokens, rel=0.05)


def test_its_gradients_are_scattered_and_its_weights_gathered_layer_by_layer(seven):
    setup, _, needs = seven
    layers = tree.flatten(params(setup)["llm"]["decoder"]["layers"])
    kernels = sum(2 * leaf.size for name, leaf in layers.items() if name.endswith("/kernel"))  # bytes as bfloat16
    sent = {kind: plan_hlo.total(needs.program.collectives, kind)[1] for kind in plan_hlo.KINDS}
    assert 64 * kernels <= sent["reduce-scatter"] < 64 * 1.05 * kernels, "once a micro-batch"
    assert 64 * 2 * kernels <= sent["all-gather"] < 64 * 2.2 * kernels, "forward and backward, and the towers"
    assert sent["all-reduce"] + sent["all-to-all"] < 0.01 * sent["reduce-scatter"]
    assert max(c.size for c in needs.program.collectives) < 2 * kernels / 32, "never more than two layers at once"
    assert needs.program.unknown_loops == 0


def params(setup) -> dict:
    return setup.abstract.variables["params"]
