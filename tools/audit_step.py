"""Audits a compiled program for GPUs or TPUs that are not here: python tools/audit_step.py --config configs/laq.py

Compiles the training step of a config for --mesh and --device, or with --act one prediction (of a tokenizer the codes
that label frame pairs), as `launch/train.py --dry_run` does, and reads the program: which products run on tensor cores
and in which type, what moves how many bytes, whether attention is fused, which collectives nothing hides, what talks to
the host within a loop. A roofline gives the time that this takes at best, and the last line says whether it fits. Needs
the extra `plan`, of TPUs `plan-tpu`; other arguments are those of launch/train.py.
"""

import argparse
from collections.abc import Iterator

from lapa_jax.core import config as config_lib
from lapa_jax.core import startup
from lapa_jax.core.arguments import Parser, check_options
from lapa_jax.core.errors import UserError, run_main
from lapa_jax.core.escape import say

ROWS = 12
LESS = "--weights int8 or bfloat16, fewer --rows, a device with more memory"


def main(argv: list[str]) -> None:
    """Compiles, reads and prints."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config", required=True, help="config file and optional variants, configs/vla_latent.py")
    parser.add_argument("--mesh", default="1x1", help="hosts x GPUs per host, or the topology of a slice of TPUs (1x1)")
    parser.add_argument("--device", default="H100-94GB", help="which GPUs or TPUs")
    parser.add_argument("--act", action="store_true", help="a prediction on one device, not a step")
    parser.add_argument("--rows", type=int, help="with --act: observations or frame pairs at once (1)")
    parser.add_argument("--weights", choices=("float32", "bfloat16", "int8"),
                        help="with --act: how kernels of linear layers are stored (bfloat16)")  # fmt: skip
    args, overrides = parser.parse_known_args(argv)
    check_options(parser, overrides)
    if args.act and args.mesh != "1x1":
        raise UserError(f"--act --mesh {args.mesh}: a prediction is audited on one device; leave --mesh out")
    for option in ("rows", "weights"):
        if getattr(args, option) is not None and not args.act:
            raise UserError(f"--{option} is of predictions; give it with --act")
    rows, weights = 1 if args.rows is None else args.rows, args.weights or "bfloat16"
    if rows < 1:
        raise UserError(f"--rows {rows}: give 1 or more")
    config = config_lib.load(args.config, overrides)

    startup.say(f"compiling {config.name} for {args.device}")
    from lapa_jax.train import plan_devices
    from lapa_jax.train.audit import audit
    from lapa_jax.train.plan import CUDNN, REMEDY, peak_of, verdict

    device = plan_devices.find_device(args.device)
    is_tpu = isinstance(device, plan_devices.Tpu)
    if not is_tpu:
        plan_devices.parse_mesh(args.mesh)
    if not (plan_devices.has_tpu_compiler() if is_tpu else plan_devices.has_compiler()):
        raise UserError(f"an audit needs the device's compiler: {plan_devices.how_to_install(device)}")
    goal = plan_devices.target(args.device, args.mesh)
    prediction = f"one prediction of {config.name} with {weights} kernels, {rows} at once"
    name = prediction if args.act else f"a training step of {config.name}"
    try:
        lowered, flops = _prediction(config, goal, weights, rows) if args.act else _step(config, goal)
        say(f"{name}, {goal.hosts} x {goal.per_host} {device.name}")
        compiled = lowered.compile(compiler_options=dict(goal.options))
    except RuntimeError as error:
        if "cudnn" in str(error).lower() and "llm" in config.model:
            raise UserError(f"{config.name} has fused attention, and {CUDNN}; --config.model.llm.flash=False leaves it "
                            "out") from None  # fmt: skip
        if not (full := plan_devices.HBM_FULL.search(str(error))):
            raise
        say(f"does not fit: {full[1].rstrip('.')} (the compiler's words); what helps: {LESS if args.act else REMEDY}")
        return
    say("\n".join(describe(audit(compiled.as_text(), goal), flops, goal)))
    say(verdict(goal, peak_of(compiled, goal), LESS if args.act else REMEDY))


def _step(config, goal) -> tuple:
    """(a training step as `jax.stages.Lowered`, the FLOPs of its products a device)."""
    from lapa_jax.train.setup import lower_step, on_mesh, prepare

    setup = prepare(config, devices=goal.devices)
    with on_mesh(setup.mesh):
        lowered, flops = lower_step(setup)
        return lowered, flops.hardware / setup.mesh.size


def _prediction(config, goal, stored: str, rows: int) -> tuple:
    """(a prediction for so many observations as `jax.stages.Lowered`, the FLOPs of its products)."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from lapa_jax.export.variants import stored_shapes
    from lapa_jax.train.flops import count_flops
    from lapa_jax.train.setup import on_mesh, prepare

    setup = prepare(config, devices=goal.devices)
    model = setup.task.model
    variables = {**setup.abstract.variables, "params": stored_shapes(model, setup.abstract.variables["params"], stored)}
    place = NamedSharding(setup.mesh, PartitionSpec())
    placed = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)  # fmt: skip
    variables, batch = placed(variables), placed(dict(model.example(rows)))

    def predict(variables, batch):
        # A tokenizer's prediction holds images besides, which labels do without.
        predicted = model.apply(variables, batch, method="predict")
        if model.kind != "frame_pair_tokenizer":
            return predicted
        return predicted["codes" if model.discrete else "delta"]

    with on_mesh(setup.mesh):
        return jax.jit(predict).lower(variables, batch), count_flops(predict, variables, batch)


def describe(findings, flops: float, goal) -> Iterator[str]:
    """The lines of the report.

    Args:
      findings: an `Audit`. flops: of the products of a device, as counted on the traced function.
    """
    from lapa_jax.train.audit import RELATIVE_RATE, estimate

    in_tensor_cores = {*RELATIVE_RATE, "f32"}

    seen = sum(findings.flops.values())
    yield ""
    yield f"products: {seen / 1e12:.4g} TFLOP in the program, {flops / 1e12:.4g} in the traced function"
    for dtype, count in sorted(findings.flops.items(), key=lambda item: -item[1]):
        where = "" if dtype in in_tensor_cores else ", outside of the tensor cores"
        yield f"  {dtype:12s}{count / seen:8.1%}{where}"
    yield (f"attention: {findings.fused} fused kernels, {findings.scores} products of attention outside of them")
    total = sum(findings.traffic.values())
    yield f"memory: {total / 1e9:.4g} GB read and written, of it {findings.float32 / total:.0%} by what gives float32"
    for kind, size in sorted(findings.traffic.items(), key=lambda item: -item[1]):
        yield f"  {kind:18s}{size / 1e9:12.4g} GB{size / total:8.1%}"
    within, between = findings.sent
    if within + between:
        yield (f"links: {within / 1e9:.4g} GB sent within a host, {between / 1e9:.4g} GB to others, of both "
               f"{findings.exposed / (within + between):.0%} with no product beside it")  # fmt: skip
    for kind, (instructions, runs, moved) in findings.collectives.items():
        yield f"  {kind:18s}{moved / 1e9:12.4g} GB sent, {instructions} instructions that run {runs:,} times in all"
    names = ": " + ", ".join(findings.host[:3]) if findings.host else ""
    yield f"host: {len(findings.host)} exchanges within loops{names}"
    if findings.unknown_loops:
        yield f"{findings.unknown_loops} loops do not say how often they run and are counted once"
    if findings.largest:
        yield "beside products, over 1 % of the bytes:"
    for size, kind, opcode, source in findings.largest[:ROWS]:
        yield f"  {size / total:6.1%}  {kind}, {opcode}  {_short(source)}"
    times = estimate(findings, flops, goal)
    yield ""
    yield (f"roofline: products {_ms(times.products)}, memory {_ms(times.memory)}, links {_ms(times.links)}; "
           f"at best {_ms(times.step)} where all overlap")  # fmt: skip
    yield f"that is {flops / times.step / goal.device.rate:.0%} of {goal.device.rate / 1e12:.0f} TFLOP/s"


def _short(source: str) -> str:
    """The end of a name, where the layer stands."""
    return source if len(source) <= 90 else "..." + source[-87:]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    run_main(main)
