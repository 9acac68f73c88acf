"""System metrics of a run, of all hosts together, and what they warn of."""

import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from lapa_jax.core.system import NAMES, System
from lapa_jax.train.run import LOG

FULL = 0.95
"""Memory or a disk of which more than this is used is nearly full."""
WAIT = 0.05
"""Share of the time that devices may wait for data, and that hosts may differ by."""
IN_A_ROW = 2
"""Intervals after which waiting is more than the caches being empty."""
INPUT_WAIT = "input_wait"

_FULL = {
    "gpu_memory_share": "the devices' memory has been {:.0%} full; a larger batch will not fit",
    "host_memory_share": "the host's memory is {:.0%} full; lower config.data.prefetch or config.data.workers",
    "disk_used_share": "the disk of the run folder is {:.0%} full; make room before the next checkpoint",
}


class Monitor:
    """Reads every host's system metrics at each line of the log. Each warning is given once a run."""

    def __init__(self, folder: pathlib.Path):
        self._system = System(folder)
        self._warned: set[str] = set()
        self._waits: dict[str, int] = {}

    def read(self, input_wait: float) -> dict[str, float]:
        """This interval's metrics, "system/<name>"; to be called by every process of a run after the same step.

        Args:
          input_wait: share of the time in which this host's devices waited for data.

        Returns:
          Of several hosts "system/<name>_smallest" and "..._largest" in place of each.
        """
        hosts = gather({**self._system.read(), INPUT_WAIT: input_wait})
        for text in self.warnings(hosts):
            LOG.warning("%s", text)
        return {f"system/{name}": value for name, value in over_hosts(hosts).items()
                if name != INPUT_WAIT or len(hosts) > 1}  # fmt: skip

    def warnings(self, hosts: Sequence[Mapping[str, float]]) -> list[str]:
        """What is new to say about the figures of all hosts."""
        found = {}
        for name, text in _FULL.items():
            values = {i: host[name] for i, host in enumerate(hosts) if name in host}
            if values and (most := max(values.values())) > FULL:
                found[name] = text.format(most) + _host(max(values, key=values.get), hosts)
        waits = [host.get(INPUT_WAIT, 0.0) for host in hosts]
        slowest = int(np.argmax(waits))
        if self._lasting("wait", waits[slowest] > WAIT):
            found["wait"] = (f"the devices wait {waits[slowest]:.0%} of the time for data{_host(slowest, hosts)}; see "
                             "docs/howto/troubleshooting.md")  # fmt: skip
        if self._lasting("slow", waits[slowest] - min(waits) > WAIT):
            found["slow"] = (f"host {slowest} is slower than the others: it waits {waits[slowest]:.0%} of the time for "
                             f"data, others {min(waits):.0%}; look at its disk and other processes")  # fmt: skip
        new = {name: text for name, text in found.items() if name not in self._warned}
        self._warned |= new.keys()
        return list(new.values())

    def _lasting(self, name: str, now: bool) -> bool:
        self._waits[name] = self._waits.get(name, 0) + 1 if now else 0
        return self._waits[name] >= IN_A_ROW


def gather(figures: Mapping[str, float]) -> list[dict[str, float]]:
    """The figures of all hosts, in their order."""
    names = (*NAMES, INPUT_WAIT)
    if jax.process_count() == 1:
        return [dict(figures)]
    mine = np.array([figures.get(name, np.nan) for name in names], np.float32)
    rows = np.asarray(multihost_utils.process_allgather(mine))
    return [{name: float(value) for name, value in zip(names, row) if not np.isnan(value)} for row in rows]


def over_hosts(hosts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of one host as they are; of several, "_smallest" and "_largest" of each that any host has."""
    if len(hosts) == 1:
        return dict(hosts[0])
    names = dict.fromkeys(name for host in hosts for name in host)
    values = {name: [host[name] for host in hosts if name in host] for name in names}
    return {f"{name}_{end}": choose(of) for name, of in values.items()
            for end, choose in (("smallest", min), ("largest", max))}  # fmt: skip


def _host(number: int, hosts: Sequence) -> str:
    return f" (host {number})" if len(hosts) > 1 else ""
