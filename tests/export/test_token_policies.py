"""Imported policies that decode tokens, exported: a program, weights, 8-bit kernels."""

import json

import jax
import numpy as np
import pytest

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.export import program
from launch import export
from tests.core import torch_writer
from tests.data.samples import make
from tests.golden import released
from tests.tools.test_import_univla import decoder
from tools import import_weights

INSTRUCTION = released.INSTRUCTIONS[0]
KINDS = ("openvla", "lapa", "univla")


@pytest.fixture(scope="module")
def runs(shared, tmp_path_factory):
    """{kind: run folder}"""
    folder = tmp_path_factory.mktemp("runs")
    source, lapa = released.copy_openvla(shared, folder / "source"), shared / "golden" / "released" / "lapa7b_small"
    released.import_("openvla", source, folder / "openvla")
    width = released.tensors_of(source)["language_model.lm_head.weight"].shape[1]
    torch_writer.save(folder / "decoder.pt", decoder(1, width))
    stats = source / "dataset_statistics.json"
    stats.write_text(json.dumps({"bridge_orig": json.loads(stats.read_text())["bridge_orig"]}))
    released.import_("univla", source, folder / "univla", "--action_decoder", folder / "decoder.pt",
                     "--decoder_heads", 2)  # fmt: skip
    import_weights.main(["lapa7b", "--input", str(lapa / "params_action"), "--vqgan", str(lapa / "vqgan"), "--bins",
                         str(lapa / "action_bins.csv"), "--tokenizer", "bytes", "--text_length", "160", "--out",
                         str(folder / "lapa")])  # fmt: skip
    return {kind: folder / kind for kind in KINDS}


@pytest.fixture(scope="module")
def policies(runs):
    return {kind: lapa_jax.load(folder) for kind, folder in runs.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_acts_as_the_run(runs, policies, tmp_path, kind):
    images, policy = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8), policies[kind]
    dataset = next(iter(policy.datasets), None)
    expected = policy.chunk(images, INSTRUCTION, dataset=dataset)
    export.main(["--run", str(runs[kind]), "--out", str(tmp_path / "program"), "--format", "stablehlo", "--platform",
                 "cpu"])  # fmt: skip
    got = program.load(tmp_path / "program").chunk(images, INSTRUCTION, dataset=dataset)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (got.dtype, expected.dtype) == (np.float32, np.float32 if kind == "univla" else np.float64)


def test_weights_alone_are_those_of_the_run(runs, policies, tmp_path):
    for kind, policy in policies.items():
        export.main(["--run", str(runs[kind]), "--out", str(tmp_path / kind)])
        plain = lapa_jax.load(tmp_path / kind)
        assert plain.kind is policy.kind and plain.datasets == policy.datasets
        jax.tree.map(np.testing.assert_array_equal, plain.variables, policy.variables)


def test_8_bit_kernels_of_openvla_are_measured_on_recorded_steps(runs, tmp_path, capsys):
    data = make.write(tmp_path / "arm", {"val": [[5, 4]]}, size=40, widths={"action": 4},
                      texts=list(released.INSTRUCTIONS))  # fmt: skip
    export.main(["--run", str(runs["openvla"]), "--out", str(tmp_path / "int8"), "--format", "int8", "--data",
                 str(data), "--dataset", "toy_4d", "--samples", "8", "--max_error", "1000"])  # fmt: skip
    report = json.loads((tmp_path / "int8" / "int8.json").read_text())
    assert report["bytes"]["int8"] < 0.8 * report["bytes"]["float"] and np.isfinite(report["error"])
    policy = lapa_jax.load(tmp_path / "int8")
    assert policy.act(np.zeros((40, 40, 3), np.uint8), INSTRUCTION, dataset="toy_4d").shape == (4,)


def test_without_statistics_the_error_of_8_bit_kernels_cannot_be_measured(runs, tmp_path):
    data = make.write(tmp_path / "arm", {"val": [[5, 4]]}, size=40, widths={"action": 7}, texts=["push", "pull"])
    with pytest.raises(UserError, match="keeps no statistics of actions"):
        export.main(["--run", str(runs["lapa"]), "--out", str(tmp_path / "int8"), "--format", "int8", "--data",
                     str(data), "--samples", "4"])  # fmt: skip
    assert not (tmp_path / "int8").exists()
