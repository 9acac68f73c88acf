"""Runs that begin with the weights of other runs."""

import json
import re
import shutil

import jax
import ml_collections
import numpy as np
import pytest

from lapa_jax.core import pretrained, tree
from lapa_jax.core.config import ConfigError
from lapa_jax.core.errors import UserError
from lapa_jax.core.metrics import read_metrics
from lapa_jax.inference import load as restore
from lapa_jax.train import pretrained_init
from lapa_jax.train.checkpoint import load_for_inference
from lapa_jax.train.loop import train
from lapa_jax.train.pretrained_init import InitSource
from lapa_jax.train.pretrained_init import match as match_sources
from lapa_jax.train.setup import prepare
from lapa_jax.train.sharding import shard_batch
from tests import toys
from tests.data.samples import make

FROZEN = {"groups": (("tokenizer/.*", None), (".*", {}))}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    toys.use(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make.write(tmp_path_factory.mktemp("data") / "arm", toys.LENGTHS, cameras=())


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory):
    """A trained tokenizer, of other sizes than the default ones."""
    with pytest.MonkeyPatch.context() as patch:
        toys.use(patch)
        run = tmp_path_factory.mktemp("tokenizer") / "run"
        train(toys.config("chunks", data, model={"size": 5, "width": 4}), run)
    return run


def policy(data, init_from=None, *, model=None, optim=None, excepted=None, **more):
    """The config of a policy whose tokenizer is left to `init_from`."""
    config = toys.config("policy", data, model={"tokenizer": None, **(model or {})}, **more)
    with config.unlocked():
        config.init_from = ml_collections.ConfigDict({"tokenizer": None, **(init_from or {})})
        if excepted is not None:
            config.init_from_except = excepted
        config.optim = ml_collections.ConfigDict({**config.optim.to_dict(), **(optim or {})})
    return config


def start(setup):
    """The state that a run begins with."""
    with jax.set_mesh(setup.mesh):
        return setup.init(shard_batch(setup.mesh, next(setup.train_batches(0))))


def assert_same(got, want):
    assert tree.diff(want, got) == ""
    assert jax.tree.all(jax.tree.map(np.array_equal, dict(got), dict(want)))


def part(variables, name="tokenizer"):
    return {collection: values[name] for collection, values in variables.items() if name in values}


def test_a_part_begins_as_that_run_and_the_rest_afresh(tokenizer, data):
    setup = prepare(policy(data, {"tokenizer": str(tokenizer)}))
    want = load_for_inference(tokenizer)
    assert setup.config.model.tokenizer.to_dict() == want.config.model.to_dict() and setup.config.is_locked
    state = start(setup)
    assert_same(part(state.variables), want.variables)
    spec = setup.config.model.tokenizer.to_dict()
    fresh = start(prepare(policy(data, model={"tokenizer": spec})))
    assert_same({"params": {"head": state.variables["params"]["head"]}},
                {"params": {"head": fresh.variables["params"]["head"]}})  # fmt: skip
    assert not np.array_equal(fresh.variables["params"]["tokenizer"]["encoder"]["kernel"],
                              state.variables["params"]["tokenizer"]["encoder"]["kernel"])  # fmt: skip
    assert_same(tree.unflatten({str(i): x for i, x in enumerate(jax.tree.leaves(state.opt_state))}),
                tree.unflatten({str(i): x for i, x in enumerate(jax.tree.leaves(fresh.opt_state))}))  # fmt: skip
    assert jax.tree.structure(state) == jax.tree.structure(setup.abstract)
    assert all(x.sharding == y.sharding for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(setup.abstract)))


def test_only_what_is_taken_is_read_and_it_is_sharded_as_the_state(tokenizer, data, monkeypatch):
    read = []
    load = pretrained_init.load_some
    record = lambda folder, wanted: read.append(tree.flatten(wanted)) or load(folder, wanted)  # noqa: E731
    monkeypatch.setattr(pretrained_init, "load_some", record)
    rules = ((r"params/tokenizer/encoder/kernel", (None, "fsdp")),)
    config = policy(data, {"tokenizer": str(tokenizer)}, mesh={"data": 2, "fsdp": 4, "rules": rules})
    kernel = start(prepare(config)).variables["params"]["tokenizer"]["encoder"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "fsdp") and len(kernel.addressable_shards[0].data[0]) == 2
    assert sorted(read[0]) == sorted(tree.flatten(load_for_inference(tokenizer).variables))


@pytest.mark.parametrize("kind", ["checkpoint", "exported"])
def test_a_checkpoint_or_an_exported_folder_serves_as_well(tokenizer, data, tmp_path, kind):
    step = 3 if kind == "checkpoint" else 6
    place = tokenizer / "checkpoints/3"
    if kind == "exported":
        place = tmp_path / "exported"
        restore.load(tokenizer).save_pretrained(place)
    setup = prepare(policy(data, {"tokenizer": str(place)}, optim=FROZEN))
    assert setup.meta()["init_from"] == {"tokenizer": {"path": str(place), "step": step}}
    want = load_for_inference(tokenizer, step).variables
    assert_same(part(start(setup).variables), want)
    run = tmp_path / "run"
    train(policy(data, {"tokenizer": str(place)}, optim=FROZEN, steps=2), run)
    assert_same(part(load_for_inference(run).variables)["params"], want["params"])


def test_the_part_of_that_name_of_a_larger_model_serves_as_well(tokenizer, data, tmp_path):
    first = tmp_path / "first"
    train(policy(data, {"tokenizer": str(tokenizer)}, optim=FROZEN, steps=2), first)
    setup = prepare(policy(data, {"tokenizer": str(first)}, optim=FROZEN))
    assert_same(part(start(setup).variables), part(load_for_inference(first).variables))
    assert f"of the tokenizer of {first}/checkpoints/2 (step 2)" in "\n".join(setup.notes)


def test_a_run_resumes_and_is_used_without_the_other_run(tokenizer, data, tmp_path):
    other, whole, cut = tmp_path / "other", tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(tokenizer, other)
    config = lambda **more: policy(data, {"tokenizer": str(other)}, optim=FROZEN, **more)  # noqa: E731
    train(config(), whole)
    train(config(steps=3), cut)
    shutil.rmtree(other)
    train(config(), cut)
    a, b = (load_for_inference(run) for run in (whole, cut))
    assert_same(a.variables, b.variables)
    # The lines that were logged, whose checksum it has, hold times.
    metas = [{key: value for key, value in each.meta.items() if key != "metrics"} for each in (a, b)]
    assert metas[0] == metas[1] and a.meta["init_from"]["tokenizer"]["step"] == 6
    saved = json.loads((cut / "config.json").read_text())["model"]["tokenizer"]
    assert saved["size"] == 5 and saved["action_dim"] == 3
    log = (whole / "log.txt").read_text()
    assert re.search(r"'tokenizer' begins with 7 variables \(\d+ numbers\) of .*other/checkpoints/6 \(step 6\)", log)
    assert "model.tokenizer = {" in log
    evaluated = [line["val/action_mse"] for line in read_metrics(whole) if "val/action_mse" in line]
    assert len(evaluated) == 3
    with pytest.raises(UserError, match="init_from.tokenizer: .*other does not exist; give a run folder"):
        train(config(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_dry_run_says_where_weights_come_from(tokenizer, data, tmp_path, capsys):
    train(policy(data, {"tokenizer": str(tokenizer)}), tmp_path / "run", dry_run=True)
    out = capsys.readouterr().out
    assert "'tokenizer' begins with 7 variables" in out and "model.tokenizer = {'" in out
    assert not (tmp_path / "run").exists()


def test_a_whole_model_begins_as_that_run_but_for_named_exceptions(tokenizer, data, tmp_path):
    first = tmp_path / "first"
    train(policy(data, {"tokenizer": str(tokenizer)}), first)
    want = load_for_inference(first).variables
    spec = load_for_inference(tokenizer).config.model.to_dict()
    whole = {"tokenizer": None, "": str(first)}
    assert_same(start(prepare(policy(data, whole, model={"tokenizer": spec}))).variables, want)
    other = {"tokenizer": spec, "head": "second_head"}
    with pytest.raises(UserError, match="missing: params/second_head/bias.*unexpected: params/head/bias.*except names"):
        prepare(policy(data, whole, model=other))
    setup = prepare(policy(data, whole, model=other, excepted=("second_head/.*", "head/.*")))
    assert_same(part(start(setup).variables), part(want))
    assert "  stays fresh: params/second_head/bias" in setup.notes
    assert "  not used of that run: params/head/kernel" in setup.notes
    with pytest.raises(UserError, match="'heads/.*' matches no variable.*excepts nothing; did you mean .*'head'"):
        prepare(policy(data, whole, model=other, excepted=("second_head/.*", "head/.*", "heads/.*")))
    frozen = {"groups": (("second_head/.*", None), (".*", {}))}
    with pytest.raises(ConfigError, match=r"2 parameters at their random values \(second_head/bias"):
        prepare(policy(data, whole, model=other, optim=frozen, excepted=("second_head/.*", "head/.*")))


def test_refusals(tokenizer, data, tmp_path):
    run = {"tokenizer": str(tokenizer)}
    spec = load_for_inference(tokenizer).config.model.to_dict()
    (tmp_path / "empty").mkdir()
    for config, words in (
        (policy(data, run, model={"tokenizer": {**spec, "size": 6}}), r"model.tokenizer.size is 6, .* has 5; leave"),
        (policy(data, run, model={"tokenizer": "runs/tokenizer"}), "leave it None: config.init_from.tokenizer fills"),
        (policy(data, {"tokeniser": str(tokenizer)}, model={"tokenizer": spec}), "did you mean 'tokenizer'"),
        (policy(data, {"tokenizer": 3}), "is 3; give the folder of a run"),
        (policy(data, {"tokenizer": str(tmp_path / "empty")}), "init_from.tokenizer: .*no run folder"),
        (policy(data, {"tokenizer": "a", "tokenizer/encoder": "b"}), "'tokenizer/encoder' twice: .*within 'tokenizer'"),
        (policy(data, {"tokenizer": "a", "": "b"}), "'tokenizer' twice: .*within the whole model"),
        (policy(data, run, excepted=("a",)), "goes with a whole model"),
        (policy(data, {"": None}, excepted=("(",)), r"'\(' is no regular expression"),
        (policy(data, {"": None}, excepted="a"), "give regular expressions"),
        (policy(data, model={"tokenizer": spec}, optim=FROZEN), "freezes 4 parameters at their random values"),
    ):
        with pytest.raises(UserError, match=words):
            train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_type_is_a_difference(tokenizer, data, tmp_path):
    saved = load_for_inference(tokenizer)
    variables = jax.tree.map(lambda x: x, saved.variables)
    variables["params"]["decoder"]["bias"] = variables["params"]["decoder"]["bias"].astype(np.float16)
    spec = json.loads((tokenizer / "config.json").read_text())["model"]
    pretrained.save_pretrained(tmp_path / "half", spec, variables, saved.meta)
    with pytest.raises(UserError, match="params/decoder/bias is float16 where float32 is expected"):
        prepare(policy(data, {"tokenizer": str(tmp_path / "half")}))


def test_a_part_computes_as_the_config_says_and_is_what_the_other_run_says():
    given = {"name": "llama", "dim": 8, "dtype": "bfloat16", "remat": "full", "heads": None}
    config = ml_collections.ConfigDict({"model": {"name": "policy", "llm": given}})
    spec = {"name": "llama", "dim": 8, "heads": 2, "remat": "none", "sizes": [1, 2]}
    found, lines = pretrained_init.fill_model(config, {"llm": ("weights/llama", spec)})
    want = {**spec, "dtype": "bfloat16", "remat": "full", "sizes": (1, 2)}
    assert found.model.llm.to_dict() == want and len(lines) == 1
    with pytest.raises(ConfigError, match="config.model.llm.dim is 8, weights/llama has 16"):
        pretrained_init.fill_model(config, {"llm": ("weights/llama", {**spec, "dim": 16})})


def shape(*sizes, dtype="float32"):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_adapters_stay_fresh_where_the_other_run_has_none(tmp_path):
    theirs = {"llm": {"query": {"kernel": shape(4, 4)}, "out": {"kernel": shape(4, 4, dtype="bfloat16")}}}
    ours = {"llm": {**theirs["llm"], "query": {"kernel": shape(4, 4, dtype="bfloat16"), "lora_a": shape(4, 2)}}}
    match = lambda own, other: match_sources((InitSource("", tmp_path, 3, {}, {"params": other}),),  # noqa: E731
                                             {"params": own, "ema": {"llm": own["llm"]}}, ())  # fmt: skip
    taken = match(ours, theirs)
    assert sorted(taken.names) == ["params/llm/out/kernel", "params/llm/query/kernel"]
    assert taken.lines[1:] == ("  1 of them are float32 there and bfloat16 here",
                               "  stays fresh: params/llm/query/lora_a")  # fmt: skip
    assert len(match(ours, ours).names) == 3, "a run that has them gives them too"
    with pytest.raises(UserError, match="adapters that the model lacks, such as params/llm/query/lora_a; give.*export"):
        match(theirs, ours)


def test_a_part_that_takes_actions_was_trained_on_the_same_scale(tokenizer, data, tmp_path):
    run = {"tokenizer": str(tokenizer)}
    other = make.write(tmp_path / "other", toys.LENGTHS, cameras=(), seed=1)
    with pytest.raises(UserError, match=r"scale of 'action' than data set 'other' has: dimension 0 has offset \S+, "
                                        r"there \S+ \(q01_q99\); train it on the same data"):  # fmt: skip
        prepare(policy(other, run))
    with pytest.raises(UserError, match="data.normalize is 'min_max', there 'q01_q99'"):
        prepare(policy({"path": str(data), "normalize": "min_max"}, run))
    copy = shutil.copytree(data, tmp_path / "copy")
    assert prepare(policy(copy, run)).loaded.names, "the same data under another name"
    both = ({"path": str(data), "weight": 1.0}, {"path": str(other), "weight": 1.0})
    with pytest.raises(UserError, match="data set 'other'"):
        prepare(policy({"mixture": both}, run))


def test_without_statistics_the_scale_is_not_checked_and_that_is_said(tokenizer, data, tmp_path):
    saved = load_for_inference(tokenizer)
    spec = json.loads((tokenizer / "config.json").read_text())["model"]
    pretrained.save_pretrained(tmp_path / "bare", spec, saved.variables, {})
    setup = prepare(policy(data, {"tokenizer": str(tmp_path / "bare")}))
    assert any("does not know how its 'action' was scaled" in line for line in setup.notes)
