"""Measures the loader: python tools/bench_loader.py SHARDS [options]. Prints a table in Markdown.

The floor is the bare cost of decoding (and resizing, where the size differs) the same JPEGs from memory on one thread,
measured in the same run with each decoder that is installed. The loader's figure per CPU second is set against the
floor of simplejpeg, which is what it uses: reading, batching and threads are the difference.
"""

import argparse
import os
import pathlib
import resource
import time
from collections.abc import Callable

import numpy as np

from lapa_jax.core.errors import UserError, run_main
from lapa_jax.data import images
from lapa_jax.data.loader import train_batches
from lapa_jax.data.samples.pairs import FramePairs, Gap
from lapa_jax.data.shards import StepShards


def main(argv: list[str]) -> None:
    """Runs the measurements and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS", type=pathlib.Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--gap_frames", type=int, default=1)
    parser.add_argument("--image_size", type=int, help="side in pixels; the stored size by default")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=10000, help="pairs to load, after a warm-up of a tenth")
    args = parser.parse_args(argv)
    if args.pairs < args.batch_size:
        raise UserError(f"--pairs {args.pairs} is less than one batch of {args.batch_size}")
    source = FramePairs(StepShards(args.shards, args.split), Gap(frames=args.gap_frames), image_size=args.image_size)
    loader = measure_loader(source, args.batch_size, args.threads, args.pairs)
    floors = measure_decoders(source, min(args.pairs, 2000))
    report(args, source, loader, floors)


def measure_loader(source: FramePairs, batch_size: int, threads: int, pairs: int) -> dict[str, float]:
    """Pairs per second and per CPU second, and resident memory after warm-up and its growth, in MiB."""
    batches = train_batches(source, seed=0, batch_size=batch_size, threads=threads)
    for _ in range(max(1, pairs // batch_size // 10)):
        next(batches)
    count = pairs // batch_size
    warm, wall, cpu = resident(), time.perf_counter(), time.process_time()
    for _ in range(count):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    grown = resident()
    return {
        "pairs_per_second": count * batch_size / wall,
        "pairs_per_cpu_second": count * batch_size / cpu,
        "resident": warm,
        "growth": grown - warm,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_decoders(source: FramePairs, pairs: int) -> dict[str, float]:
    """{decoder: pairs per CPU second} of decoding and resizing pictures that are in memory, on one thread."""
    steps = np.random.default_rng(0).integers(0, len(source.shards), 2 * pairs)
    jpegs = [source.shards.read(int(i), ["image.jpg"])["image.jpg"] for i in steps]
    return {name: _rate(decode, jpegs, source.image_size) for name, decode in decoders().items()}


def decoders() -> dict[str, Callable[[bytes], np.ndarray]]:
    """The decoders that are installed, each from JPEG bytes to uint8[H, W, 3]."""
    import io

    from PIL import Image

    found = {"simplejpeg": images.decode}
    found["Pillow"] = lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    try:
        import cv2
    except ImportError:
        return found
    cv2.setNumThreads(1)
    found["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    return found


def _rate(decode: Callable[[bytes], np.ndarray], jpegs: list[bytes], size: int | None) -> float:
    start = time.process_time()
    for data in jpegs:
        picture = decode(data)
        if size is not None:
            images.resize(picture, size)
    return len(jpegs) / 2 / (time.process_time() - start)


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(args: argparse.Namespace, source: FramePairs, loader: dict, floors: dict[str, float]) -> None:
    """Prints the table."""
    stored = source.shards.features["image"]["shape"]
    shape = f"{stored[0]} px stored, {args.image_size or stored[0]} px loaded"
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    print(f"{os.cpu_count()} cores, {memory:.0f} GiB; {shape}; batch {args.batch_size}, {args.threads} threads\n")
    print("| | pairs/s | pairs per CPU second | of the simplejpeg floor |\n|---|---|---|---|")
    share = loader["pairs_per_cpu_second"] / floors["simplejpeg"]
    print(f"| loader | {loader['pairs_per_second']:.0f} | {loader['pairs_per_cpu_second']:.0f} | {share:.2f} |")
    for name, rate in floors.items():
        print(f"| {name}, bare | | {rate:.0f} | {rate / floors['simplejpeg']:.2f} |")
    growth = 100 * loader["growth"] / loader["resident"]
    print(
        f"\nresident memory {loader['resident']:.0f} MiB after warm-up, {growth:+.1f} % over {args.pairs} pairs, "
        f"peak {loader['peak']:.0f} MiB"
    )


if __name__ == "__main__":
    run_main(main)
