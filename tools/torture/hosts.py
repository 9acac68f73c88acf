"""The data of 64 hosts of one run, in simulation: each sample once an epoch, with the memory and time that takes.

The index has ten million steps at scale 1. Every host opens the data in a process of its own, a few at a time, and
tells which samples its rows of one epoch's batches are.
"""

import json
import pathlib
import random
import subprocess
import sys
import time

import numpy as np

from tools import bench_open
from tools.torture.tally import Kind, Tally
from tools.torture.workshop import ROOT, Workshop

HOSTS, AT_ONCE, BATCH = 64, 2, 4096
HOST = """
import json, pathlib, sys, time
begin = time.perf_counter()
import numpy as np
from lapa_jax.data import pipeline
from lapa_jax.data.loader import orders
from lapa_jax.data.loader.batches import Plan
folder, host, hosts, batch, out = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
imported = time.perf_counter()
data = {"path": folder, "samples": "chunks", "fields": ("text", "state", "action"), "chunk_length": 8,
        "normalize": "q01_q99", "text_tokenizer": {"name": "bytes"}, "text_length": 64}
source = pipeline.build(data, "train")
plan = Plan(orders.train_order(source, 0), len(source), batch, (host, hosts))
first = plan[0]
source.batch(first.samples.tolist())
opened = time.perf_counter()
batches = -(-len(source) // batch)
rows = [plan[k] for k in range(batches)]
positions = np.concatenate([each.positions for each in rows])
samples = np.concatenate([each.samples for each in rows])
np.save(out, samples[positions < len(source)])
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
kb = lambda name: int(status[name].split()[0]) / 1000
json.dump({"length": len(source), "import": imported - begin, "open": opened - imported,
           "epoch": time.perf_counter() - opened, "own": kb("VmRSS") - kb("RssFile"), "peak": kb("VmHWM")}, sys.stdout)
"""


def run(workshop: Workshop, count: int, rng: random.Random, tally: Tally) -> None:
    """Splits one epoch of an index of `count` steps among 64 hosts and counts how often each sample comes."""
    folder = workshop.new("hosts")
    folder.mkdir()
    steps = max(count, 2 * BATCH)
    begin = time.monotonic()
    bench_open.make(folder, steps)
    workshop.log(f"made an index of {steps:,} steps in {time.monotonic() - begin:.1f} s")
    waiting, running, told, seen = list(range(HOSTS)), {}, [], None
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            host = waiting.pop(0)
            out = folder / f"host{host}.npy"
            command = [sys.executable, "-B", "-c", HOST, str(folder), str(host), str(HOSTS), str(BATCH), str(out)]
            running[host] = subprocess.Popen(command, env=workshop.environment, stdout=subprocess.PIPE, text=True,
                                             cwd=ROOT)  # fmt: skip
        for host, process in list(running.items()):
            text, _ = process.communicate()
            del running[host]
            if process.returncode:
                tally.ended("a host", [f"host {host} ended with {process.returncode}"])
                continue
            told.append(json.loads(text.splitlines()[-1]))
            samples = np.load(folder / f"host{host}.npy")
            seen = np.zeros(told[-1]["length"], np.uint8) if seen is None else seen
            np.add.at(seen, samples, 1)
            pathlib.Path(folder / f"host{host}.npy").unlink()
            workshop.log(f"host {host}: {len(samples):,} samples, opened in {told[-1]['open']:.2f} s")
    missing, double = int((seen == 0).sum()), int((seen > 1).sum())
    if missing or double:
        tally.ended("samples", [f"{missing:,} never, {double:,} more than once"])
    tally.ended("samples that come once", times=int((seen == 1).sum()))
    worst = {name: max(each[name] for each in told) for name in ("import", "open", "epoch", "own", "peak")}
    tally.figures += [f"{HOSTS} hosts, an index of {steps:,} steps",
                      f"opened and first batch read in {worst['open']:.2f} s at most, after {worst['import']:.1f} s of "
                      "imports", f"{worst['own']:.0f} MB of its own a host at most, {worst['peak']:.0f} MB with mapped "
                      "files", f"the order of an epoch takes {worst['epoch']:.1f} s"]  # fmt: skip


KINDS = {"epoch": Kind(run, 10_000_000, 240)}
