"""Stage 3 begins with a run of stage 2: what is taken, what is new, what is trained, for each head."""

import re

import jax
import numpy as np
import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.models import pretrained
from lapa_jax.train.setup import prepare

CODES = {"queries", "codes_norm/scale", "codes_norm/bias", "to_codes/kernel", "to_codes/bias"}
HEAD = re.compile("act/.*|action_queries")


@pytest.fixture(scope="module")
def stage_two(root, tmp_path_factory):
    """Writes runs of stage 2, with random weights: `stage_two(overrides) -> (folder, {name: parameter})`."""
    known = {}

    def write(*overrides):
        if overrides not in known:
            config = config_lib.load(f"{root}/configs/vla_latent.py:tiny",
                                     ["--config.model.llm.vocab=259", *overrides])  # fmt: skip
            rng = np.random.default_rng(0)
            shapes = pretrained.expected_variables(config_lib.build("lapa_jax.models", config.model))
            variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
            values, folder = config_lib.to_json(config), tmp_path_factory.mktemp("vla") / "run"
            pretrained.save_pretrained(folder, values["model"], variables, {"config": values, "step": 5})
            known[overrides] = str(folder), tree.flatten(variables["params"])
        return known[overrides]

    return write


def setup_of(root, variant, folder, *overrides):
    given = [] if folder is None else [f"--config.init_from.={folder}"]
    return prepare(config_lib.load(f"{root}/configs/vla_action.py:{variant}", [*given, *overrides]))


def fresh(setup) -> set[str]:
    return {name.removeprefix("params/") for name in tree.flatten(setup.abstract.variables)
            if name not in setup.loaded.names}  # fmt: skip


@pytest.mark.parametrize(("variant", "kept"), [("tiny", False), ("tiny+chunk", False), ("tiny+latent", True)])
def test_the_body_goes_on_and_the_head_is_new(root, stage_two, variant, kept):
    folder, theirs = stage_two()
    setup = setup_of(root, variant, folder)
    ours = tree.flatten(setup.abstract.variables["params"])
    new = {name for name in ours if HEAD.fullmatch(name)}
    assert fresh(setup) == new and (CODES <= set(ours)) == kept
    read = setup.loaded.read(tree.flatten(setup.abstract.variables))
    for name in ("siglip/patches/kernel", "projector/out/kernel", *(CODES if kept else ())):
        assert f"params/{name}" in read or name not in ours, name
    for name, value in read.items():
        np.testing.assert_array_equal(value, theirs[name.removeprefix("params/")], err_msg=name)
    told = "\n".join(setup.notes)
    assert all(f"stays fresh: params/{name}" in told for name in new)
    assert all((f"not used of that run: params/{name}" in told) != kept for name in CODES)


def test_a_head_alone_and_adapters_alone_can_be_trained(root, stage_two):
    folder, _ = stage_two()
    trained = lambda setup: {name for name in tree.flatten(setup.abstract.variables["params"])  # noqa: E731
                             if re.fullmatch(setup.optimizer.trainable, name)}  # fmt: skip
    alone = '--config.optim.groups=(("act/.*|action_queries|see_state/.*", {}), (".*", None))'
    setup = setup_of(root, "tiny", folder, alone)
    assert trained(setup) == fresh(setup) != set()
    adapters = ('--config.optim.groups=(("(siglip|dinov2)/.*", None), (".*/lora_[ab]", {}), ("llm/.*", None), '
                '(".*", {}))')  # fmt: skip
    setup = setup_of(root, "tiny+chunk", folder, adapters, "--config.model.lora_rank=4")
    names = trained(setup)
    assert any(name.endswith("lora_a") for name in names) and any(name.startswith("act/") for name in names)
    assert not [name for name in names if name.startswith(("siglip", "dinov2"))]
    assert not [name for name in names if name.startswith("llm/") and "lora" not in name]


def test_what_cannot_begin_so_is_refused(root, stage_two):
    one_by_one, _ = stage_two("--config.model.decode=autoregressive")
    assert fresh(setup_of(root, "tiny", one_by_one))
    with pytest.raises(UserError, match="code_embedding|queries"):
        setup_of(root, "tiny+latent", one_by_one)
    wider, _ = stage_two("--config.model.llm.dim=48")
    with pytest.raises(UserError, match="does not fit the model"):
        setup_of(root, "tiny", wider)
    with pytest.raises(ConfigError, match="freezes .* parameters at their random values"):
        setup_of(root, "tiny", None, '--config.optim.groups=(("siglip/.*", None), (".*", {}))')
    with pytest.raises(ConfigError, match=r"'siglp/\.\*' matches no parameter; did you mean 'siglip'"):
        setup_of(root, "tiny", None, '--config.optim.groups=(("siglp/.*", None), (".*", {}))')
    with pytest.raises(ConfigError, match="freezes .* parameters at their random values .llm/decoder/layers/"):
        setup_of(root, "tiny", None, '--config.optim.groups=(("llm/.*", {"freeze_layers": 1}), (".*", {}))')
