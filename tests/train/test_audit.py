"""Audits: what a program moves and multiplies, by hand on a small text, and on one that XLA compiles for a GPU."""

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lapa_jax.core.errors import UserError
from lapa_jax.nn.linear import _weighted_sum
from lapa_jax.train import hlo, plan_devices
from lapa_jax.train.audit import _positions, audit, estimate, products
from tools import audit_step

PROGRAM = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%sliced (stack: bf16[32,64,128], i: s32[]) -> bf16[128,64] {
  %stack = bf16[32,64,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,64,128]{2,1,0} dynamic-slice(%stack, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
  %flat = bf16[64,128]{1,0} bitcast(%slice)
  ROOT %transpose = bf16[128,64]{1,0} transpose(%flat), dimensions={1,0}
}

%written (stack: f32[32,16,64], row: f32[16,64], i: s32[]) -> f32[32,16,64] {
  %stack = f32[32,16,64]{2,1,0} parameter(0)
  %row = f32[16,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %double = f32[16,64]{1,0} add(%row, %row)
  %one = f32[1,16,64]{2,1,0} bitcast(%double)
  ROOT %update = f32[32,16,64]{2,1,0} dynamic-update-slice(%stack, %one, %i, %zero, %zero)
}

%body (state: (s32[], bf16[32,64,128], f32[32,16,64], bf16[16,128])) -> (s32[], bf16[32,64,128], f32[32,16,64], bf16[16,128]) {
  %state = (s32[], bf16[32,64,128]{2,1,0}, f32[32,16,64]{2,1,0}, bf16[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %stack = bf16[32,64,128]{2,1,0} get-tuple-element(%state), index=1
  %kept = f32[32,16,64]{2,1,0} get-tuple-element(%state), index=2
  %x = bf16[16,128]{1,0} get-tuple-element(%state), index=3
  %gather-start = (bf16[16,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %kernel = bf16[128,64]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced
  %product = (f32[16,64]{1,0}, s8[4194304]{0}) custom-call(%x, %kernel), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %gather-done = bf16[64,128]{1,0} all-gather-done(%gather-start)
  %row = f32[16,64]{1,0} get-tuple-element(%product), index=0
  %reduced = f32[16,64]{1,0} all-reduce(%row), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  %kept.2 = f32[32,16,64]{2,1,0} fusion(%kept, %reduced, %i), kind=kLoop, calls=%written
  ROOT %next = (s32[], bf16[32,64,128]{2,1,0}, f32[32,16,64]{2,1,0}, bf16[16,128]{1,0}) tuple(%i, %stack, %kept.2, %x)
}

%condition (state: (s32[], bf16[32,64,128], f32[32,16,64], bf16[16,128])) -> pred[] {
  %state = (s32[], bf16[32,64,128]{2,1,0}, f32[32,16,64]{2,1,0}, bf16[16,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %n = s32[] constant(32)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[32,64,128], b: f32[32,16,64], c: bf16[16,128]) -> f32[8,8,16] {
  %a = bf16[32,64,128]{2,1,0} parameter(0)
  %b = f32[32,16,64]{2,1,0} parameter(1)
  %c = bf16[16,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %state = (s32[], bf16[32,64,128]{2,1,0}, f32[32,16,64]{2,1,0}, bf16[16,128]{1,0}) tuple(%zero, %a, %b, %c)
  %loop = (s32[], bf16[32,64,128]{2,1,0}, f32[32,16,64]{2,1,0}, bf16[16,128]{1,0}) while(%state), condition=%condition, body=%body
  %images = f32[8,32,32,3]{3,2,1,0} constant({...})
  %patches = f32[4,4,3,16]{3,2,1,0} constant({...})
  %conv = (f32[8,8,8,16]{3,2,1,0}, u8[100]{0}) custom-call(%images, %patches), custom_call_target="__cudnn$convForward", window={size=4x4 stride=4x4}, dim_labels=b01f_01io->b01f
  ROOT %out = f32[8,8,16]{2,1,0} copy(%conv)
}
"""  # noqa: E501
FOR_TPU = """HloModule jit_predict, is_scheduled=true

%relaid (stack: s8[32,64,128]) -> s8[32,64,128] {
  %stack = s8[32,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[32,64,128]{2,1,0:T(8,128)(4,1)} copy(%stack)
}

%layer (stack: s8[32,64,128], i: s32[]) -> s8[64,128] {
  %stack = s8[32,64,128]{2,1,0:T(32,128)(4,1)} parameter(0)
  %same = s8[32,64,128]{2,1,0:T(8,128)(4,1)} fusion(%stack), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%relaid
  %i = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = s8[1,64,128]{2,1,0:T(8,128)(4,1)} dynamic-slice(%same, %i, %zero, %zero), dynamic_slice_sizes={1,64,128}
  ROOT %flat = s8[64,128]{1,0:T(8,128)(4,1)} bitcast(%slice)
}

%multiplied (x: bf16[16,64], stack: s8[32,64,128], i: s32[]) -> bf16[16,128] {
  %i = s32[]{:T(128)} parameter(2)
  %x = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %stack = s8[32,64,128]{2,1,0:T(32,128)(4,1)} parameter(1)
  %kernel = s8[64,128]{1,0:T(8,128)(4,1)} fusion(%stack, %i), kind=kLoop, calls=%layer
  ROOT %out = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %kernel), dim_labels=bf_io->bf
}

ENTRY %main (a: bf16[16,64], b: s8[32,64,128], i: s32[]) -> f32[4,16,16] {
  %a = bf16[16,64]{1,0:T(8,128)(2,1)} parameter(0)
  %b = s8[32,64,128]{2,1,0:T(32,128)(4,1)} parameter(1)
  %i = s32[]{:T(128)} parameter(2)
  %near = (bf16[16,64]{1,0:T(8,128)(2,1)S(1)}, bf16[16,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %x = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %product = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %b, %i), kind=kOutput, calls=%multiplied
  %q = bf16[16,4,32]{2,1,0:T(8,128)(2,1)S(1)} bitcast(%product)
  ROOT %scores = f32[4,16,16]{2,1,0:T(8,128)S(1)} convolution(%q, %q), window={size=4 stride=3 lhs_dilate=4}, dim_labels=b0f_o0i->0bf, metadata={op_name="attention/vmap(BTNH,BSNH->BNTS)/dot_general"}
}
"""  # noqa: E501
GPU = plan_devices.find_device("H100-94GB")
GOAL = plan_devices.Target(GPU, 2, 4, (), {}, True)


def test_products_count_as_often_as_they_run_and_by_their_type():
    findings = audit(PROGRAM, GOAL)
    images, patches = 8 * 8 * 8, 4 * 4 * 3
    assert findings.flops == {"bf16": 32 * 2 * 16 * 64 * 128, "f32": 2 * images * patches * 16}
    assert findings.unknown_loops == 0 and findings.host == [] and findings.fused == 0


def test_a_loop_moves_what_it_takes_of_a_stack_and_not_the_stack():
    module = hlo.Module(PROGRAM)
    moved = {run.instruction.name: module.traffic(run) for run in module.runs()}
    layer, row = 2 * 64 * 128, 4 * 16 * 64
    assert moved["kernel"] == 4 + 2 * layer, "a layer is read and written, and the loop's counter read"
    assert moved["kept.2"] == 4 + 2 * row, "a row is read and written, the rest of the stack stays"
    assert moved["product"] == 2 * 16 * 128 + layer + row, "without the workspace"
    assert moved["loop"] == moved["state"] == moved["gather-done"] == 0
    findings = audit(PROGRAM, GOAL)
    assert findings.traffic["rearranging"] == pytest.approx(32 * moved["kernel"] + moved["out"])
    assert sum(findings.traffic.values()) == pytest.approx(sum(
        run.times * module.traffic(run) for run in module.runs()))  # fmt: skip


def test_collectives_with_a_product_beside_them_are_hidden():
    findings = audit(PROGRAM, GOAL)
    gathered, reduced = 32 * 2 * 64 * 128 * 3 / 4, 32 * 2 * 4 * 16 * 64 * 7 / 8
    assert findings.sent == (gathered, reduced), "groups of four within a host, of eight across two"
    assert findings.exposed == reduced
    assert findings.collectives == {"all-gather": (1, 32, gathered), "all-reduce": (1, 32, reduced)}


def test_the_slowest_resource_gives_the_time():
    findings = audit(PROGRAM, GOAL)
    hidden = 1e9  # FLOPs of kernels that the program does not show
    times = estimate(findings, sum(findings.flops.values()) + hidden, GOAL)
    flops = findings.flops["bf16"] + 2 * findings.flops["f32"] + hidden
    assert times.products == pytest.approx(flops / (0.8 * 790e12))
    assert times.memory == pytest.approx(sum(findings.traffic.values()) / 3.94e12)
    assert times.links == pytest.approx(findings.sent[0] / 450e9 + findings.sent[1] / 50e9)
    assert times.step == max(times)


def test_programs_for_tpus_have_fusions_in_fusions_and_memory_on_the_chip():
    module = hlo.Module(FOR_TPU)
    moved = {run.instruction.name: module.traffic(run) for run in module.runs()}
    assert moved["near"] == 2 * 16 * 64 + 4, "read from memory, and a flag; what is written lies on the chip"
    assert moved["product"] == 64 * 128 + 4, "a layer's integers, however deep its slice lies, and the loop's counter"
    assert moved["scores"] == 0
    tpu = plan_devices.Target(plan_devices.find_device("TPU-v6e"), 1, 1, (), {}, True)
    findings = audit(FOR_TPU, tpu)
    # Products of heads are written as a convolution along the axis of heads, of which each result sees one position.
    assert findings.flops == {"bf16": 2 * 16 * 64 * 128 + 2 * 4 * 16 * 16 * 32}
    assert findings.scores == 1 and findings.traffic["products"] == moved["product"]
    assert audit(PROGRAM, tpu).flops == audit(PROGRAM, GOAL).flops


@pytest.mark.parametrize("window, sizes", [
    ("size=4 stride=4", (32, 4, 8)), ("size=3 pad=1_1", (8, 3, 8)), ("size=5 pad=4_4 rhs_reversal=1", (1, 5, 5)),
    ("size=4 stride=3 lhs_dilate=4", (4, 4, 4)), ("size=3 pad=2_2 rhs_dilate=2", (8, 3, 8)),
])  # fmt: skip
def test_positions_of_a_window_are_those_that_a_convolution_of_ones_counts(window, sizes):
    given = dict(part.split("=") for part in window.split())
    inputs, kernel, outputs = sizes
    ones = lambda size: jnp.ones((1, size, 1))  # noqa: E731
    out = jax.lax.conv_general_dilated(
        ones(inputs), jnp.ones((kernel, 1, 1)), (int(given.get("stride", 1)),),
        [tuple(map(int, given.get("pad", "0_0").split("_")))], lhs_dilation=(int(given.get("lhs_dilate", 1)),),
        rhs_dilation=(int(given.get("rhs_dilate", 1)),), dimension_numbers=("NWC", "WIO", "NWC"))  # fmt: skip
    assert out.shape[1] == outputs
    assert _positions(f"window={{{window}}}", 0, *sizes) == round(float(out.sum()))


@pytest.mark.parametrize("option", [("--rows", "4"), ("--weights", "int8")])
def test_what_only_predictions_have_is_refused_of_a_step(option):
    with pytest.raises(UserError, match=f"{option[0]} is of predictions; give it with --act"):
        audit_step.main(["--config", "configs/laq.py:test", *option])


def test_the_command_audits_a_prediction_for_a_tpu(root):
    if not plan_devices.has_tpu_compiler():
        pytest.skip("XLA's compiler for TPUs is not installed: pip install 'lapa_jax[plan-tpu]'")
    run = [sys.executable, "-B", "tools/audit_step.py", "--config", "configs/laq.py:test", "--act", "--rows", "8",
           "--device", "TPU-v6e", "--weights", "float32"]  # fmt: skip
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "one prediction of laq_test with float32 kernels, 8 at once, 1 x 1 TPU-v6e"
    assert "918 TFLOP/s" in lines[-2] and lines[-1].startswith("fits: the peak of 0.00")


@pytest.fixture(scope="module")
def goal():
    if not plan_devices.has_compiler():
        pytest.skip("XLA's compiler for GPUs is not installed: pip install 'lapa_jax[plan]'")
    return plan_devices.target("H100-94GB", "1x1")


def test_what_xla_compiles_is_read_as_it_was_written(goal):
    """A scan of bfloat16 products: their FLOPs, and at least its weights and activations are moved."""
    layers, rows, width = 6, 256, 512

    def forward(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jax.nn.gelu(x @ kernel), None), x, kernels)[0]

    place = NamedSharding(Mesh(goal.devices, "d"), PartitionSpec())
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=place)  # noqa: E731
    lowered = jax.jit(forward).lower(shape(layers, width, width), shape(rows, width))
    text = lowered.compile(compiler_options=dict(goal.options)).as_text()
    module = hlo.Module(text)
    assert sum(p.flops * p.run.times for p in products(module)) == 2 * layers * rows * width * width
    moved = sum(run.times * module.traffic(run) for run in module.runs())
    least = 2 * layers * (width * width + 2 * rows * width)
    # Beside the product, a layer's kernel may be copied out of the stack, and the activation is a kernel of its own.
    assert least <= moved <= 2 * layers * (3 * width * width + 6 * rows * width)
    assert math.isclose(audit(text, goal).flops["bf16"], 2 * layers * rows * width * width)


@pytest.mark.parametrize("stored", [jnp.bfloat16, jnp.int8])
def test_a_token_reads_each_kernel_once_where_it_lies(goal, stored):
    """Products of one row with the layers of a scan: no copy out of the stack, no floats made of integers."""
    layers, width = 6, 4096  # of Llama 7B; of small kernels XLA does it in two steps

    def decode(kernels, x):
        return jax.lax.scan(lambda x, kernel: (_weighted_sum(x, kernel).astype(x.dtype), None), x, kernels)[0]

    place = NamedSharding(Mesh(goal.devices, "d"), PartitionSpec())
    kernels = jax.ShapeDtypeStruct((layers, width, width), stored, sharding=place)
    x = jax.ShapeDtypeStruct((1, width), jnp.bfloat16, sharding=place)
    text = jax.jit(decode).lower(kernels, x).compile(compiler_options=dict(goal.options)).as_text()
    module = hlo.Module(text)
    moved = sum(run.times * module.traffic(run) for run in module.runs())
    weights = layers * width * width * jnp.dtype(stored).itemsize
    assert weights <= moved < 1.1 * weights


def test_fused_attention_without_cudnn_is_one_line(root, goal):
    run = [sys.executable, "-B", "tools/audit_step.py", "--config", "configs/openvla.py:test",
           "--config.model.llm.dtype=bfloat16", "--config.model.llm.heads=2"]  # fmt: skip
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip("cuDNN is here")
    assert done.returncode == 2 and "needs cuDNN for it (pip install" in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].endswith("--config.model.llm.flash=False leaves it out")


def test_the_command_audits_a_prediction(root, goal):
    run = [sys.executable, "-B", "tools/audit_step.py", "--config", "configs/vla_action.py:test", "--act",
           "--weights", "int8"]  # fmt: skip
    done = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "one prediction of vla_action_test with int8 kernels, 1 at once, 1 x 1 H100-94GB"
    assert any(line.startswith("roofline: products ") for line in lines) and "790 TFLOP/s" in lines[-2]
    assert lines[-1].startswith("fits: the peak of ")
    wrong = subprocess.run([*run, "--mesh", "1x4"], cwd=root, capture_output=True, text=True)
    assert wrong.returncode == 2 and "a prediction is audited on one device" in wrong.stderr
