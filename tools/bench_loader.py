"""Measures the loader: python tools/bench_loader.py SHARDS [options]. Prints tables in Markdown.

The floor is the bare cost of decoding (and resizing, where the size differs) the same JPEGs from memory on one thread,
with each decoder that is installed; with --scaled_decoding that of simplejpeg decodes at a smaller size too. Loader
and decoders take turns, several rounds in one run, because machines are noisy; what is printed is the median over the
rounds. The loader's figure per CPU second, that of its workers included, is set against the floor of simplejpeg, which
is what it uses: reading, batching, threads and processes are the difference. With --memory the loader runs over that
many pairs and the growth of the memory after a warm-up is printed.
"""

import argparse
import io
import itertools
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

from lapa_jax.core.arguments import Parser
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write
from lapa_jax.data import images
from lapa_jax.data.loader import orders
from lapa_jax.data.loader.loader import train_batches
from lapa_jax.data.samples.pairs import FramePairSource, Gap
from lapa_jax.data.shards.step_shards import StepShards

ROUNDS = 5
PREFETCH = 8


def main(argv: list[str]) -> None:
    """Runs the measurements and prints them."""
    args = parse(argv)
    shards, gap = StepShards(args.shards, args.split), Gap(frames=args.gap_frames)
    source = FramePairSource(shards, gap, image_size=args.image_size, scaled_decoding=args.scaled_decoding)
    batches = train_batches(source, seed=0, batch_size=args.batch_size, threads=args.threads, workers=args.workers,
                            shuffle=args.shuffle, window=args.window, prefetch=PREFETCH)  # fmt: skip
    say(describe(args, source) + "\n")
    if args.memory:
        say(memory_table(batches, args.memory, args.batch_size))
    else:
        smallest = args.image_size if args.scaled_decoding else None
        rows = speeds(source, batches, args.batch_size, args.pairs // args.batch_size // ROUNDS, smallest)
        say("\n".join(lines(rows)))
        if args.json:
            from tools.benchmarks import records

            records.write(args.json, "tools/bench_loader.py", argv, rows, about=describe(args, source))


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; a wrong one is a `UserError`."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", metavar="SHARDS", type=pathlib.Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--gap_frames", type=int, default=1)
    parser.add_argument("--image_size", type=int, help="side in pixels; the stored size by default")
    parser.add_argument("--scaled_decoding", action="store_true", help="as data.scaled_decoding; needs --image_size")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=4, help="readers in this process, where there are no workers")
    parser.add_argument("--workers", type=int, default=0, help="reader processes; 0 reads in this process")
    parser.add_argument("--shuffle", default="full", help="full or window")
    parser.add_argument("--window", type=int, default=orders.WINDOW, help="samples of a window")
    parser.add_argument("--pairs", type=int, default=10000, help="pairs to load, besides the warm-up")
    parser.add_argument("--memory", type=int, metavar="PAIRS", help="measure the memory over so many pairs instead")
    parser.add_argument("--json", type=file_to_write, help="file to write the speeds to")
    args = parser.parse_args(argv)
    if args.scaled_decoding and args.image_size is None:
        raise UserError("--scaled_decoding needs --image_size, the size that images are decoded for")
    pairs, least = (args.memory or args.pairs), args.batch_size * (20 if args.memory else ROUNDS)
    if pairs < least:
        raise UserError(f"{pairs} pairs are too few to measure with batches of {args.batch_size}: {least} at least")
    return args


def describe(args: argparse.Namespace, source: FramePairSource) -> str:
    """What is measured, in a line."""
    stored, loaded = source.shards.features["image"]["shape"][0], args.image_size
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    readers = f"{args.workers} workers" if args.workers else f"{args.threads} threads"
    sizes = f"{stored} px stored, {loaded or stored} px loaded"
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB"
    return f"{machine}; {sizes}; batch {args.batch_size}, {readers}, {args.shuffle} shuffle"


def speeds(
    source: FramePairSource, batches: Iterator, batch_size: int, count: int, smallest: int | None
) -> list[dict]:  # fmt: skip
    """Loader and decoders in turns: rows of medians of pairs per second (of the loader alone), of pairs per CPU second,
    and of the share of the floor, with its range.

    smallest: see `images.decode`; how the loader decodes.
    """
    jpegs, rates, walls = jpegs_of(source, 1000), {}, []
    decode_by_name = decoders(smallest)
    if source.image_size is None:
        rows = np.empty((2 * PREFETCH * batch_size, *source.shards.features[source.camera]["shape"]), np.uint8)
        decode_by_name["simplejpeg, into batches"] = into(itertools.cycle(rows))
    skip(batches, 4 * PREFETCH)
    for _ in range(ROUNDS):
        for name, decode in decode_by_name.items():
            rates.setdefault(name, []).append(decoder_rate(decode, jpegs, source.image_size))
        skip(batches, 2 * PREFETCH)  # so that what was prepared in the meantime counts for nothing
        wall, cpu = loader_rate(batches, batch_size, count)
        walls.append(wall)
        rates.setdefault("loader", []).append(cpu)
    # Ratios round by round: what slows the machine down slows both sides.
    floor, rows = np.array(rates["simplejpeg"]), []
    for name in ("loader", *decode_by_name):
        share = np.array(rates[name]) / floor
        rows.append({"what": name if name == "loader" else f"{name}, bare",
                     "clock": float(np.median(walls)) if name == "loader" else None,
                     "cpu": float(np.median(rates[name])),
                     "share": [float(np.median(share)), float(share.min()), float(share.max())]})  # fmt: skip
    return rows


def lines(rows: list[dict]) -> list[str]:
    """The table in Markdown, of rows as of `speeds` or of a record."""
    head = ("", "pairs/s", "pairs per CPU second", "of the simplejpeg floor")
    return table(head, [
        (row["what"], f"{row['clock']:.0f}" if row["clock"] else "", f"{row['cpu']:.0f}",
         "{:.2f} ({:.2f} to {:.2f})".format(*row["share"])) for row in rows])  # fmt: skip


def skip(batches: Iterator, count: int) -> None:
    """Takes batches and drops them."""
    for _ in range(count):
        next(batches)


def loader_rate(batches: Iterator, batch_size: int, count: int) -> tuple[float, float]:
    """Pairs per second and per CPU second of all processes."""
    from tools.benchmarks.rates import timed

    taken = timed(lambda: skip(batches, count) or count * batch_size)
    return taken.samples / taken.wall, taken.samples / taken.cpu


def jpegs_of(source: FramePairSource, pairs: int) -> list[bytes]:
    """JPEGs of random steps, two for a pair."""
    steps = np.random.default_rng(0).integers(0, len(source.shards), 2 * pairs)
    return [source.shards.read(int(i), ["image.jpg"])["image.jpg"] for i in steps]


def decoders(smallest: int | None = None) -> dict[str, Callable[[bytes], np.ndarray]]:
    """The decoders that are installed, each from JPEG bytes to uint8[H, W, 3]; the first one as the loader decodes."""
    from PIL import Image

    decoders_by_name = {"simplejpeg": lambda data: images.decode(data, smallest)}
    if smallest is not None:
        decoders_by_name["simplejpeg, all pixels"] = images.decode
    decoders_by_name["Pillow"] = lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    try:
        import cv2
    except ImportError:
        return decoders_by_name
    cv2.setNumThreads(1)
    decoders_by_name["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return decoders_by_name


def into(places: Iterator[np.ndarray]) -> Callable[[bytes], np.ndarray]:
    """The decoder of the loader, which writes to the memory of batches and not always to the same place, which the
    CPU's cache would hold."""

    def decode(data: bytes) -> np.ndarray:
        place = next(places)
        images.decode_into(data, place)
        return place

    return decode


def decoder_rate(decode: Callable[[bytes], np.ndarray], jpegs: list[bytes], size: int | None) -> float:
    """Pairs per CPU second of this thread alone: the loader's may still be at work."""
    start = time.thread_time()
    for data in jpegs:
        image = decode(data)
        if size is not None:
            images.resize(image, size)
    return len(jpegs) / 2 / (time.thread_time() - start)


def memory_table(batches: Iterator, pairs: int, batch_size: int) -> str:
    """Memory after a tenth of the pairs and at nine later moments, and its growth in percent."""
    part = pairs // batch_size // 10
    rows = ["| pairs | resident memory, MiB |", "|---|---|"]
    measured = []
    for number in range(1, 11):
        skip(batches, part)
        measured.append(resident())
        rows.append(f"| {number * part * batch_size} | {measured[-1]:.1f} |")
    growth = 100 * (measured[-1] / measured[0] - 1)
    return "\n".join([*rows, f"\ngrowth after the warm-up: {growth:+.2f} %"])


def resident() -> float:
    """Resident memory of this process and its workers in MiB; shared pages count once."""
    total = 0
    for pid in ("self", *(worker.pid for worker in multiprocessing.active_children())):
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
