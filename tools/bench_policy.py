"""Times a policy from a JPEG to actions and back through a socket: python tools/bench_policy.py --run RUN.

Prints a Markdown table for each batch size, in milliseconds. The stages are pieces that are compiled and called one by
one, warm, in turns with the whole policy; a whole is compiled as one program, so the stages' sum and it may differ. Of
policies that decode tokens (OpenVLA, LAPA-7B, UniVLA) images and prompt are timed up to the first token; what the whole
program takes longer is the other tokens.
The round trip is that of as many clients at once over the loopback, each with its own JPEG, through the server of
launch/serve.py; transport is what of it the server did not spend on answering.
"""

import argparse
import concurrent.futures
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lapa_jax.core.arguments import Parser
from lapa_jax.core.checkpoint_step import parse_step
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say, table
from lapa_jax.core.files import file_to_write

WARM = 5
PERCENTILES = (50, 95, 99)
BEFORE, AFTER = ("decode image", "text and state", "to the device"), ("un-normalise",)
STAGES = (*BEFORE, "vision", "prefill", "head", *AFTER)
FIRST, FURTHER, A_TOKEN = "images, prompt and first token", "further tokens", "each further token"
TOKEN_STAGES = (*BEFORE, FIRST, FURTHER, *AFTER)
TOKEN_KINDS = ("token_policy", "coded_policy")
SUM, WHOLE, TRIP, TRANSPORT = "sum of these", "policy as a whole", "round trip", "transport"


def main(argv: list[str]) -> None:
    """Measures and prints."""
    args = _parser().parse_args(argv)
    sizes = [int(size) if size.isdecimal() else 0 for size in args.batch.split(",")]
    if min(sizes) < 1 or args.rounds < 1 or args.side < 1:
        raise UserError(f"--batch {args.batch} --rounds {args.rounds} --side {args.side}: sizes like 1,8, numbers of "
                        "at least 1 are needed")  # fmt: skip

    import jax

    import lapa_jax
    from lapa_jax.serve.service import Service

    policy = lapa_jax.load(args.run, step=args.step)
    Service(policy, args.run).close()  # refuses what cannot be served
    if policy.model.lora_rank:
        raise UserError(f"{args.run} has low-rank adapters beside its weights; export it, which merges them")
    device, megabytes = jax.devices()[0].device_kind, sum(x.nbytes for x in jax.tree.leaves(policy.variables)) / 1e6
    say(f"{policy.config.name}, step {policy.step}, {policy.model.llm.dtype}, parameters of {megabytes:.1f} MB, on "
          f"{policy.mesh.size} × {device}, {os.cpu_count()} CPU cores; JPEGs of {args.side} × {args.side}, "
          f"{args.rounds} rounds\n")  # fmt: skip
    rows = []
    for size in sizes:
        measured = rows_of(size, measure(policy, args.run, size, args.rounds, args.side))
        say("\n".join([*lines(measured), ""]))
        rows += measured
    if args.json:
        from tools.benchmarks import records

        records.write(args.json, "tools/bench_policy.py", argv, rows)


def measure(policy, run: str, size: int, rounds: int, side: int) -> dict[str, np.ndarray]:
    """{what: milliseconds f[rounds]} of a batch size."""
    from lapa_jax.serve.background import background
    from lapa_jax.serve.service import Limits, Options, Service

    # The same JPEGs for all: decoding takes as long in each.
    jpegs = jpegs_for(policy, size, side)
    stages, whole = stages_of(policy, jpegs), Whole(policy, jpegs)
    options = Options(batch=size, limits=Limits(rate=1e6, message_bytes=2**26))
    with background(lambda: Service(policy, run, options)) as server, Clients(server.address, policy, jpegs) as clients:
        return in_turns((stages, whole, clients), rounds)


def in_turns(turns: Sequence[Callable[[], Iterator[tuple[str, float]]]], rounds: int) -> dict[str, np.ndarray]:
    """{what: milliseconds f[rounds]} of what the turns yield, (what, seconds), after a few rounds that do not count."""
    milliseconds: dict[str, list[float]] = {}
    for number in range(WARM + rounds):
        # the other way round every second time: what comes first finds colder caches
        for turn in turns[:: -1 if number % 2 else 1]:
            for name, seconds in turn():
                if number >= WARM:
                    milliseconds.setdefault(name, []).append(1000 * seconds)
    return {name: np.array(values) for name, values in milliseconds.items()}


def stages_of(policy, jpegs: list[list[bytes]]) -> Callable[[], Iterator[tuple[str, float]]]:
    """The pieces of a policy, one by one."""
    return (TokenStages if policy.kind.name in TOKEN_KINDS else Stages)(policy, jpegs)


def rows_of(size: int, milliseconds: dict[str, np.ndarray]) -> list[dict]:
    """A row of percentiles for each piece of a batch size, for their sum, and for the whole."""
    names = TOKEN_STAGES if FIRST in milliseconds else STAGES
    stages = {stage: milliseconds[stage] for stage in names}
    total = np.sum(list(stages.values()), axis=0)
    if A_TOKEN in milliseconds:
        stages[A_TOKEN] = milliseconds[A_TOKEN]
    rest = {name: milliseconds[name] for name in (WHOLE, TRANSPORT, TRIP)}
    return [{"batch": size, "what": name, **{f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES}}
            for name, values in {**stages, SUM: total, **rest}.items()]  # fmt: skip


def lines(rows: list[dict]) -> list[str]:
    """A table in Markdown for each batch size, of rows as of `rows_of` or of a record."""
    told = []
    for size, of_size in itertools.groupby(rows, key=lambda row: row["batch"]):
        of_size = list(of_size)
        told += ["", *table((f"batch {size}, ms", *(f"p{p}" for p in PERCENTILES)), [
            (row["what"], *(f"{row[f'p{p}']:.2f}" for p in PERCENTILES)) for row in of_size])]  # fmt: skip
        medians = {row["what"]: row["p50"] for row in of_size}
        told += ["", f"The stages' sum is {medians[SUM] / medians[WHOLE]:.0%} of the policy as a whole (medians)."]
    return told[1:]


class Stages:
    """The pieces one by one. Called, it yields (stage, seconds)."""

    def __init__(self, policy, jpegs: list[list[bytes]]):
        import jax

        self._policy, self._jpegs = policy, jpegs
        piece = lambda method: jax.jit(lambda v, *inputs: policy.model.apply(v, *inputs, method=method))  # noqa: E731
        self._encode, self._backbone, self._head = map(piece, ("encode_images", "backbone_states", "apply_head"))

    def __call__(self) -> Iterator[tuple[str, float]]:
        import jax

        from lapa_jax.train.sharding import batch_sharding

        policy, sharding, variables = self._policy, batch_sharding(self._policy.mesh), self._policy.variables
        seconds, image = _timed(lambda: _decoded(policy, self._jpegs))
        yield "decode image", seconds
        seconds, batch = _timed(lambda: _prepared(policy, image))
        yield "text and state", seconds
        seconds, batch = _timed(lambda: jax.block_until_ready(jax.device_put(_padded(policy, batch), sharding)))
        yield "to the device", seconds
        seconds, seen = _timed(lambda: jax.block_until_ready(self._encode(variables, batch)))
        yield "vision", seconds
        seconds, states = _timed(lambda: jax.block_until_ready(self._backbone(variables, batch, seen)))
        yield "prefill", seconds
        seconds, actions = _timed(lambda: np.asarray(self._head(variables, *states)))
        yield "head", seconds
        yield "un-normalise", _timed(lambda: policy.to_units(actions, _dataset(policy)))[0]


class TokenStages:
    """The same for a policy that decodes one token after the other, in one program. Called, it yields (stage, seconds).

    Its model has `tokens`, their number, and `first_token_only()`, itself up to the first one.
    """

    def __init__(self, policy, jpegs: list[list[bytes]]):
        import jax

        self._policy, self._jpegs = policy, jpegs
        predict = lambda model: jax.jit(lambda v, batch: model.apply(v, batch, method="predict"))  # noqa: E731
        self._first, self._all = predict(policy.model.first_token_only()), predict(policy.model)

    def __call__(self) -> Iterator[tuple[str, float]]:
        import jax

        from lapa_jax.train.sharding import batch_sharding

        policy, sharding, variables = self._policy, batch_sharding(self._policy.mesh), self._policy.variables
        seconds, image = _timed(lambda: _decoded(policy, self._jpegs))
        yield BEFORE[0], seconds
        seconds, batch = _timed(lambda: _prepared(policy, image))
        yield BEFORE[1], seconds
        seconds, batch = _timed(lambda: jax.block_until_ready(jax.device_put(_padded(policy, batch), sharding)))
        yield BEFORE[2], seconds
        first, _ = _timed(lambda: jax.block_until_ready(self._first(variables, batch)))
        yield FIRST, first
        seconds, predicted = _timed(lambda: jax.block_until_ready(self._all(variables, batch)))
        yield FURTHER, seconds - first
        if policy.model.tokens > 1:
            yield A_TOKEN, (seconds - first) / (policy.model.tokens - 1)
        actions = np.asarray(predicted["action"])
        yield AFTER[0], _timed(lambda: policy.to_units(actions, _dataset(policy)))[0]


class Whole:
    """JPEGs to actions as the server does it. Called, it yields (what, seconds)."""

    def __init__(self, policy, jpegs: list[list[bytes]]):
        self._policy, self._jpegs = policy, jpegs

    def __call__(self) -> Iterator[tuple[str, float]]:
        policy = self._policy

        def act():
            batch = _prepared(policy, _decoded(policy, self._jpegs))
            return policy.to_units(policy.predict(batch), _dataset(policy))

        yield WHOLE, _timed(act)[0]


class Clients:
    """As many clients as images, which ask at once. Called, it yields (what, seconds) of the slowest one."""

    def __init__(self, address: str, policy, jpegs: list[list[bytes]]):
        from lapa_jax.serve.client import Client

        self._pool = concurrent.futures.ThreadPoolExecutor(len(jpegs))
        self._clients = [Client(address, timeout=600) for _ in jpegs]
        names = self._clients[0].metadata["cameras"]
        images = [dict(zip(names, views, strict=True)) for views in jpegs]
        self._asked = [{"image": views, "instruction": _TEXT, "state": _state(policy), "dataset": _dataset(policy)}
                       for views in images]  # fmt: skip

    def __call__(self) -> Iterator[tuple[str, float]]:
        list(self._pool.map(lambda client, asked: client.chunk(**asked), self._clients, self._asked))
        slowest = max((client.timing for client in self._clients), key=lambda timing: timing["round_trip_ms"])
        yield TRIP, slowest["round_trip_ms"] / 1000
        yield TRANSPORT, (slowest["round_trip_ms"] - slowest["total_ms"]) / 1000

    def __enter__(self) -> "Clients":
        return self

    def __exit__(self, *error) -> None:
        for client in self._clients:
            client.close()
        self._pool.shutdown()


_TEXT = "push it"


def _timed(function: Callable):
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def jpegs_for(policy, size: int, side: int) -> list[list[bytes]]:
    """[size][cameras] JPEGs: smooth images with some noise, which take about as many bytes as those of a camera."""
    from lapa_jax.data import images

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side

    def picture() -> bytes:
        waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in rng.uniform(0, 3, (3, 3))]
        values = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 6, (side, side, 3))
        return images.encode(np.clip(values, 0, 255).astype(np.uint8))

    return [[picture() for _ in range(policy.model.cameras)] for _ in range(size)]


def _decoded(policy, jpegs: list[list[bytes]]) -> np.ndarray:
    """uint8 [B, (V,) side, side, 3]."""
    from lapa_jax.data import images

    side = policy.model.image_size
    views = np.stack([[images.resize(images.decode(data), side) for data in row] for row in jpegs])
    return views if policy.model.cameras > 1 else views[:, 0]


def _prepared(policy, images: np.ndarray) -> dict[str, np.ndarray]:
    state = _state(policy)
    states = None if state is None else np.stack([state] * len(images))
    return policy.prepare(images, _TEXT, states, dataset=_dataset(policy))[0]


def _padded(policy, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch as the policy pads it to a number of rows that is spread over its devices."""
    rows = len(batch["text"])
    size = policy.mesh.size
    while size < rows:
        size *= 2
    return {name: values[np.minimum(np.arange(size), rows - 1)] for name, values in batch.items()}


def _dataset(policy) -> str | None:
    return next(iter(policy.datasets), None)


def _state(policy) -> np.ndarray | None:
    return np.zeros(policy.width_of(_dataset(policy), "state")) if policy.model.state_dim else None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--run", required=True, help="run folder, checkpoint folder or exported folder of a policy")
    parser.add_argument("--batch", default="1,8", help="batch sizes: 1,8")
    parser.add_argument("--rounds", type=int, default=200, help="measurements of each stage")
    parser.add_argument("--side", type=int, default=256, help="pixels of the images' sides")
    parser.add_argument("--step", type=parse_step, help="checkpoint step, or best; the newest by default")
    parser.add_argument("--json", type=file_to_write, help="file to write the figures to")
    return parser


if __name__ == "__main__":
    # What benchmarks share lies in a package, which is found as tests find it.
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    run_main(main)
