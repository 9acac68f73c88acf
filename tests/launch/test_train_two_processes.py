"""Processes on this machine train as one, and one, two or four go on with what two have saved."""

import shutil

import jax
import numpy as np
import pytest

from lapa_jax.core.metrics import read_metrics
from lapa_jax.train.checkpoint import load_for_inference, steps
from tests.launch.several_processes import train

NAMES = ("train/loss", "train/grad_norm", "val/latent_accuracy")


def figures(run) -> dict[tuple[int, str], float]:
    return {(line["step"], name): line[name] for line in read_metrics(run) for name in NAMES if name in line}


def agreement(a, b, step: int) -> float:
    """The share of the saved numbers that agree; Adam makes steps of full size of gradients that are rounding alone."""
    a, b = (jax.tree.leaves(load_for_inference(run, step).variables) for run in (a, b))
    return float(np.mean(np.concatenate([np.abs(x - y).ravel() < 1e-5 for x, y in zip(a, b, strict=True)])))


@pytest.fixture(scope="module")
def one(root, tmp_path_factory):
    """Six steps in one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    train(root, run, "train.steps=6", "train.save_every=3", devices=2)
    return run


@pytest.fixture(scope="module")
def two(root, tmp_path_factory):
    """The first three of them in two processes."""
    run = tmp_path_factory.mktemp("two") / "run"
    train(root, run, "train.steps=3", "train.save_every=3", processes=2)
    return run


def test_two_processes_train_as_one(one, two):
    found, expected = figures(two), figures(one)
    assert {step for step, _ in found} == {0, 1, 2, 3} and len(found) == 1 + 3 * 2 + 1
    for key, value in found.items():
        if key != (3, "val/latent_accuracy"):  # one goes on, and is evaluated later
            np.testing.assert_allclose(value, expected[key], rtol=1e-5, err_msg=str(key))
    assert agreement(two, one, 3) > 0.99


@pytest.mark.parametrize("processes", [1, 4])
def test_what_two_saved_others_go_on_with(root, one, two, tmp_path, processes):
    run = tmp_path / "run"
    shutil.copytree(two, run)
    train(root, run, "train.steps=6", "train.save_every=3", processes=processes, devices=max(1, 2 // processes))
    found, expected = figures(run), figures(one)
    assert steps(run) == [3, 6]
    for step in (4, 5, 6):
        for name in NAMES[:2]:
            np.testing.assert_allclose(found[step, name], expected[step, name], rtol=1e-5, err_msg=f"{name} at {step}")
    assert found[6, "val/latent_accuracy"] == expected[6, "val/latent_accuracy"]
    assert agreement(run, one, 6) > 0.95
