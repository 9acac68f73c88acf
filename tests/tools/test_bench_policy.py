"""tools/bench_policy.py: its pieces are the policy, its table adds up, what it refuses."""

import importlib.util
import json
import re

import jax
import ml_collections
import numpy as np
import pytest

from lapa_jax.core.errors import UserError
from tests.golden import released
from tests.serve import served

CAMERAS = ("image", "image_wrist")


@pytest.fixture(scope="module")
def bench(root):
    spec = importlib.util.spec_from_file_location("bench_policy", root / "tools" / "bench_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HEAD = ml_collections.FrozenConfigDict({"name": "policies.heads.latent", "width": 16, "heads": 2})


def test_the_pieces_one_by_one_are_the_policy():
    policy = served.policy(CAMERAS, True, head=HEAD)
    batch = policy.model.example(2)
    batch["image"] = np.random.default_rng(0).integers(0, 256, batch["image"].shape).astype(np.uint8)
    piece = lambda method: jax.jit(lambda v, *given: policy.model.apply(v, *given, method=method))  # noqa: E731
    visual = piece("encode_images")(policy.variables, batch)
    states = piece("backbone_states")(policy.variables, batch, visual)
    actions = piece("apply_head")(policy.variables, *states)
    np.testing.assert_allclose(actions, policy.predict(batch), rtol=1e-4, atol=1e-5)


def test_it_prints_every_stage_and_their_sum(bench, tmp_path, capsys):
    served.policy(CAMERAS, True).save_pretrained(tmp_path / "policy")
    bench.main(["--run", str(tmp_path / "policy"), "--batch", "2", "--rounds", "3", "--side", "40", "--json",
                str(tmp_path / "latency.json")])  # fmt: skip
    told = capsys.readouterr().out
    rows = dict(re.findall(r"^\| ([a-z -]+) \| ([0-9.]+) \|", told, re.M))
    assert list(rows) == [*bench.STAGES, "sum of these", bench.WHOLE, bench.TRANSPORT, bench.TRIP]
    assert float(rows[bench.TRIP]) >= float(rows[bench.TRANSPORT]) > 0 and "| batch 2, ms | p50 | p95 | p99 |" in told
    record = json.loads((tmp_path / "latency.json").read_text())["rows"]
    assert [row["what"] for row in record] == list(rows) and {row["batch"] for row in record} == {2}
    assert [row["p50"] for row in record] == pytest.approx([float(p50) for p50 in rows.values()], rel=1e-3, abs=0.006)
    share = int(re.search(r"sum is (\d+)%", told).group(1))
    assert share == pytest.approx(100 * float(rows["sum of these"]) / float(rows[bench.WHOLE]), abs=2)


def test_tokens_are_timed_apart_from_images_and_prompt(bench, shared, tmp_path, capsys):
    stats = released.copy_openvla(shared, tmp_path / "source") / "dataset_statistics.json"
    stats.write_text(json.dumps({"bridge_orig": json.loads(stats.read_text())["bridge_orig"]}))
    model, _, _ = released.import_("openvla", tmp_path / "source", tmp_path / "run", "--actions_only")
    assert model.choose == "actions" and model.first_token_only().tokens == 1
    bench.main(["--run", str(tmp_path / "run"), "--batch", "1", "--rounds", "3", "--side", "40"])
    told = capsys.readouterr().out
    rows = dict(re.findall(r"^\| ([a-z, -]+) \| (-?[0-9.]+) \|", told, re.M))
    assert list(rows) == [*bench.TOKEN_STAGES, bench.A_TOKEN, "sum of these", bench.WHOLE, bench.TRANSPORT, bench.TRIP]
    assert float(rows[bench.FURTHER]) == pytest.approx(6 * float(rows[bench.A_TOKEN]), abs=0.05)


def test_bad_arguments_are_told(bench):
    for sizes in ("0", "1,x", ""):
        with pytest.raises(UserError, match="sizes like 1,8"):
            bench.main(["--run", "x", "--batch", sizes])
    with pytest.raises(UserError, match="does not exist"):
        bench.main(["--run", "nowhere"])
