"""Traces of steps on the CPU, and the shares of the time that are read from them."""

import pathlib
import time

import jax
import jax.numpy as jnp
import pytest

from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.train import profile_report, profiler
from lapa_jax.train.profile_report import COLLECTIVE, IDLE, INPUT, MATRIX, OTHER, _Event
from tools import read_profile

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused (p0: f32[8,8], p1: f32[8,8]) -> f32[8,8] {
  %p0 = f32[8,8]{1,0} parameter(0)
  %p1 = f32[8,8]{1,0} parameter(1)
  ROOT %dot.3 = f32[8,8]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (f32[8,8], s32[])) -> (f32[8,8], s32[]) {
  %add.1 = f32[8,8]{1,0} add(%a, %b)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %my_fusion = f32[8,8]{1,0} fusion(%x, %x), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/layer/dot"}
  %while.2 = (f32[8,8]{1,0}, s32[]) while(%tuple), condition=%cond, body=%body
  %all-reduce-start.1 = f32[8,8]{1,0} all-reduce-start(%x), to_apply=%add
  %call.7 = f32[8,8]{1,0} custom-call(%x, %x), custom_call_target="__cublas$gemm"
  %topk = f32[8]{0} custom-call(%x), custom_call_target="TopK"
  ROOT %tanh.9 = f32[8,8]{1,0} tanh(%my_fusion)
}
"""


def test_a_program_says_what_operations_do():
    operations = profile_report.parse(PROGRAM)
    kinds = {name: operation.kind for name, operation in operations.items()}
    assert kinds["my_fusion"] == kinds["dot.3"] == kinds["call.7"] == MATRIX
    assert kinds["tanh.9"] == kinds["topk"] == kinds["add.1"] == OTHER
    assert kinds["all-reduce-start.1"] == COLLECTIVE and kinds["while.2"] == ""
    assert operations["my_fusion"].of == "jit(step)/layer/dot"


def test_each_moment_counts_once():
    operations = profile_report.parse(PROGRAM)
    gpu = "/device:GPU:0 0"
    events = [
        _Event(gpu, "Stream 1", "while.2", 0, 30),  # holds the next two
        _Event(gpu, "Stream 1", "my_fusion", 0, 20),
        _Event(gpu, "Stream 1", "tanh.9", 20, 30),
        _Event(gpu, "Stream 2", "all-reduce-start.1", 10, 40),  # 10 of 30 that nothing hides
    ]
    report = profile_report.summarize((events, [(0, 50), (50, 100)], [(60, 80)]), operations)
    assert report.steps == 2 and report.seconds == pytest.approx(100e-9)
    assert report.shares == pytest.approx({MATRIX: 0.2, OTHER: 0.1, COLLECTIVE: 0.1, INPUT: 0.2, IDLE: 0.4})
    assert report.all_collectives == pytest.approx(0.3)
    assert [(total.name, total.count) for total in report.longest][0] == ("all-reduce-start.1", 1)
    assert {total.name: round(1e9 * total.seconds) for total in report.longest}["while.2"] == 0


def test_several_devices_share_the_time():
    events = [_Event(f"/device:GPU:{i} 0", "Stream 1", "my_fusion", 0, 10 * (i + 1)) for i in range(2)]
    shares = profile_report.summarize((events, [(0, 20)], []), profile_report.parse(PROGRAM)).shares
    assert shares[MATRIX] == pytest.approx(0.75) and shares[IDLE] == pytest.approx(0.25)


def test_steps_are_traced_and_read(tmp_path, capsys):
    with jax.default_device(jax.devices()[0]):
        x = jnp.ones((400, 400))
        step = jax.jit(lambda x: jnp.tanh(x @ x)).lower(x).compile()
        step(x).block_until_ready()
        traced = profiler.Profiler((2, 3), tmp_path, step.as_text, lambda: None)
        for number in range(1, 7):
            with traced.step(number):
                step(x).block_until_ready()
                with jax.profiler.TraceAnnotation(profiler.WAIT):
                    time.sleep(0.02)
        traced.close()
    assert [path.name for path in (tmp_path / "profile").iterdir() if path.is_dir()] == ["host_0"]
    (report,) = profile_report.read(tmp_path).values()
    assert report.steps == 3 and 0.06 < report.seconds < 5
    assert report.shares[MATRIX] > 0.005 and report.shares[INPUT] > 0.03
    assert sum(report.shares.values()) == pytest.approx(1)
    product = next(total for total in report.longest if total.operation.kind == MATRIX)
    assert product.count == 3 and "dot_general" in product.operation.of
    read_profile.main([str(tmp_path), "--longest", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("host_0: 3 steps in ") and printed[1].endswith("matrix products") and len(printed) == 9


def test_what_was_not_traced_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(profiler.LOG, "propagate", True)
    none = profiler.Profiler((2, 3), tmp_path, str, lambda: None)
    with none.step(9):
        pass
    none.close()
    assert "step 2 was not among the steps of this start" in caplog.text
    with pytest.raises(UserError, match="has no trace; train with --config.train.profile"):
        profile_report.read(tmp_path)
    off = profiler.Profiler(None, pathlib.Path("/nowhere"), str, lambda: None)
    with off.step(1):
        pass
    off.close()


@pytest.mark.parametrize("value", [5, (5,), (0, 3), (3, 0), (1.5, 2), "20", (True, 2)])
def test_a_wrong_range_is_refused(value):
    with pytest.raises(ConfigError, match="give \\(step, steps\\)"):
        profiler.check(value)
