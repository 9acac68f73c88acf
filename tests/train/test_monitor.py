"""System metrics: what Linux tells, smallest and largest over hosts, and warnings that come once."""

import os
import resource
import sys
import time
import types

import pytest

from lapa_jax.core import system
from lapa_jax.train import monitor

CALM = {"gpu_memory_share": 0.5, "host_memory_share": 0.5, "disk_used_share": 0.5, "input_wait": 0.01}


def test_a_host_is_read(tmp_path):
    reader = system.System(tmp_path)
    sum(i * i for i in range(200_000))  # ticks pass
    figures = reader.read()
    assert figures.keys() <= set(system.NAMES)
    assert 0.05 < figures["process_memory"] < figures["host_memory"]
    assert 0 < figures["host_memory_share"] < 1 and 0 <= figures["disk_used_share"] <= 1 and figures["disk_free"] > 0
    assert figures["network_received"] >= 0 and figures["network_sent"] >= 0
    assert -0.01 <= figures.get("cpu_utilization", 0.0) <= 1.01
    assert "gpu_memory" not in figures, "the CPU's backend keeps no account"


def test_what_goes_to_the_disk_is_what_getrusage_counts(tmp_path):
    def written() -> float:  # MiB; Linux counts blocks of 512 bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_oublock / 2**11

    before, early = written(), time.monotonic()
    reader, late = system.System(tmp_path), time.monotonic()
    with open(tmp_path / "file", "wb") as file:
        file.write(os.urandom(2**22))
        os.fsync(file.fileno())
    least = time.monotonic() - late
    figures, most = reader.read(), time.monotonic() - early
    # Nothing where the folder is in memory.
    assert figures["disk_written"] * least <= written() - before <= figures["disk_written"] * most + 1e-6
    assert figures["disk_read"] >= 0


def test_the_peak_of_a_process_s_memory_is_that_of_getrusage():
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert system.peak_memory(os.getpid()) == pytest.approx(kib * 1024 / 1e6, rel=0.05)


def test_the_fullest_device_counts(monkeypatch):
    stats = [{"bytes_in_use": 2 * system.GIB, "peak_bytes_in_use": 3 * system.GIB, "bytes_limit": 4 * system.GIB},
             {"bytes_in_use": system.GIB, "peak_bytes_in_use": 3.9 * system.GIB, "bytes_limit": 4 * system.GIB}]
    devices = [types.SimpleNamespace(memory_stats=lambda given=given: given) for given in stats]  # fmt: skip
    monkeypatch.setattr("jax.local_devices", lambda: devices)
    figures = system._jax_memory()
    assert figures == {"gpu_memory": 2.0, "gpu_memory_peak": 3.9, "gpu_memory_share": pytest.approx(0.975)}


def test_utilisation_by_nvml(tmp_path, monkeypatch):
    """Of the GPUs that the process is shown, by their number or name."""
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = lambda i: i
    nvml.nvmlDeviceGetHandleByUUID = lambda name: {"GPU-abc": 7}[name]
    nvml.nvmlDeviceGetUtilizationRates = lambda i: types.SimpleNamespace(gpu=10 * i)
    nvml.nvmlDeviceGetMemoryInfo = lambda i: types.SimpleNamespace(used=i, total=10)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    figures = system.System(tmp_path).read()
    assert figures["gpu_utilization"] == pytest.approx(0.5) and figures["gpu_memory_used_share"] == pytest.approx(0.7)

    def away():
        raise nvml.NVMLError("driver not loaded")

    nvml.nvmlInit = away
    assert "gpu_utilization" not in system.System(tmp_path).read()


def test_one_host_s_figures_stay_and_several_become_smallest_and_largest():
    assert monitor.over_hosts([{"a": 1.0}]) == {"a": 1.0}
    assert monitor.over_hosts([{"a": 1.0, "b": 2.0}, {"a": 3.0}]) == {
        "a_smallest": 1.0, "a_largest": 3.0, "b_smallest": 2.0, "b_largest": 2.0}  # fmt: skip


def test_warnings_come_once_and_name_the_host(tmp_path):
    watch = monitor.Monitor(tmp_path)
    assert watch.warnings([CALM]) == []
    (text,) = watch.warnings([CALM | {"gpu_memory_share": 0.96}])
    assert text == "the devices' memory has been 96% full; a larger batch will not fit"
    assert watch.warnings([CALM | {"gpu_memory_share": 0.97}]) == []
    (text,) = watch.warnings([CALM, CALM | {"host_memory_share": 0.99}, CALM])
    assert "99% full" in text and text.endswith("(host 1)")
    (text,) = watch.warnings([CALM | {"disk_used_share": 0.951}])
    assert text.startswith("the disk of the run folder is 95% full")


def test_waiting_is_warned_of_when_it_lasts(tmp_path):
    watch = monitor.Monitor(tmp_path)
    wait = CALM | {"input_wait": 0.3}
    assert watch.warnings([wait]) == [] and watch.warnings([CALM]) == [] and watch.warnings([wait]) == []
    (text,) = watch.warnings([wait])
    assert text.startswith("the devices wait 30% of the time for data; see docs/")


def test_a_slow_host_is_named(tmp_path):
    watch = monitor.Monitor(tmp_path)
    hosts = [CALM, CALM, CALM | {"input_wait": 0.2}]
    assert watch.warnings(hosts) == []
    wait, slow = watch.warnings(hosts)
    assert "(host 2)" in wait and slow.startswith("host 2 is slower than the others: it waits 20% of the time")
    assert watch.warnings(hosts) == []
