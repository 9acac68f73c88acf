"""What a host and its accelerators are doing: memory, utilisation, disk and network, from Linux, jax and NVML.

What cannot be told here (another system, no GPU, no NVML) is left out.
"""

import contextlib
import os
import pathlib
import shutil
import time

GIB = 2**30
NAMES = ("cpu_utilization", "host_memory", "host_memory_share", "process_memory", "disk_free", "disk_used_share",
         "disk_read", "disk_written", "network_received", "network_sent", "gpu_memory", "gpu_memory_peak",
         "gpu_memory_share", "gpu_utilization", "gpu_memory_used_share")  # fmt: skip
"""All that `System.read` may give; see there."""


class System:
    """Reads what this host does; rates are means since the last reading.

    Args: folder: whose disk is looked at.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = folder
        self._counters = _counters()
        self._handles = _nvml_handles()

    def read(self) -> dict[str, float]:
        """The figures of now: memory and free disk in GiB, rates in MiB a second, shares and utilisation in 0 to 1.

        Of the devices of this host the fullest and the mean utilisation: "gpu_memory" in use now by this process,
        "gpu_memory_peak" since it began, "gpu_memory_share" the peak's of what jax may take, "gpu_utilization" the
        share of the last moment in which a program ran, and "gpu_memory_used_share" of all memory, by all processes.
        """
        return {**self._rates(), **_host_memory(), **self._disk(), **_jax_memory(), **self._nvml()}

    def _rates(self) -> dict[str, float]:
        before, now = self._counters, _counters()
        self._counters = now
        seconds = max(now["time"] - before["time"], 1e-9)
        rates = {name: (now[name] - before[name]) / seconds / 2**20
                 for name in ("disk_read", "disk_written", "network_received", "network_sent")
                 if name in now and name in before}  # fmt: skip
        if "all" in now and now["all"] > before.get("all", now["all"]):
            rates["cpu_utilization"] = 1 - (now["idle"] - before["idle"]) / (now["all"] - before["all"])
        return rates

    def _disk(self) -> dict[str, float]:
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(self._folder)
            # As df has it: without what is kept for root, which is neither used nor free.
            return {"disk_free": usage.free / GIB, "disk_used_share": usage.used / max(usage.used + usage.free, 1)}
        return {}

    def _nvml(self) -> dict[str, float]:
        if not self._handles:
            return {}
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            rates = [pynvml.nvmlDeviceGetUtilizationRates(handle).gpu for handle in self._handles]
            memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in self._handles]
            return {"gpu_utilization": sum(rates) / len(rates) / 100,
                    "gpu_memory_used_share": max(info.used / info.total for info in memory)}  # fmt: skip
        return {}


def peak_memory(pid: int) -> float:
    """MB (10**6 bytes) that a process of this machine has held at most."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def _counters() -> dict[str, float]:
    """What only grows: seconds, bytes that this process has read from and written to disks (what lay in memory left
    out), bytes over the network (the loopback left out), ticks of all cores and idle ones."""
    counters = {"time": time.monotonic()}
    with contextlib.suppress(OSError, ValueError):
        lines = pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]
        fields = [line.partition(":")[2].split() for line in lines if line.split(":")[0].strip() != "lo"]
        counters["network_received"] = sum(int(field[0]) for field in fields)
        counters["network_sent"] = sum(int(field[8]) for field in fields)
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = dict(line.split(": ") for line in pathlib.Path("/proc/self/io").read_text().splitlines())
        counters |= {"disk_read": int(told["read_bytes"]), "disk_written": int(told["write_bytes"])}
    with contextlib.suppress(OSError, ValueError):
        ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        counters["all"], counters["idle"] = sum(ticks), ticks[3] + ticks[4]  # waiting for a disk is idle too
    return counters


def _host_memory() -> dict[str, float]:
    figures = {}
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        used = kib["MemTotal"] - kib["MemAvailable"]
        figures = {"host_memory": used / 2**20, "host_memory_share": used / kib["MemTotal"]}
    with contextlib.suppress(OSError, ValueError):
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        figures["process_memory"] = pages * os.sysconf("SC_PAGE_SIZE") / GIB
    return figures


def _jax_memory() -> dict[str, float]:
    """Of the fullest local device; empty where the backend keeps no account, as that of CPUs."""
    import jax

    stats = [given for device in jax.local_devices() if (given := device.memory_stats())]
    if not stats:
        return {}
    figures = {"gpu_memory": max(given.get("bytes_in_use", 0) for given in stats) / GIB,
               "gpu_memory_peak": max(given.get("peak_bytes_in_use", 0) for given in stats) / GIB}  # fmt: skip
    if all(given.get("bytes_limit") for given in stats):
        figures["gpu_memory_share"] = max(given["peak_bytes_in_use"] / given["bytes_limit"] for given in stats)
    return figures


def _nvml_handles() -> list:
    """NVML's handles of the GPUs that CUDA_VISIBLE_DEVICES shows; empty without a driver, or the extra "nvml"."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        if shown is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        names = [name.strip() for name in shown.split(",") if name.strip()]
        return [pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit()
                else pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]  # fmt: skip
    except pynvml.NVMLError:
        return []
