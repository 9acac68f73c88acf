"""What policies of latent actions mean to do, as images: codes through their tokenizer's decoder, and the report."""

import json

import numpy as np
import pytest

import lapa_jax
from lapa_jax.core.errors import UserError
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.inference.imagine import frames, imagine
from launch import eval as evaluate
from launch import label
from tests import jitted
from tests.golden import released_lapa as released
from tests.inference import small_run
from tools import import_weights

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """(run of a LAPA of random numbers with 8 codes on bytes, run of a LAQ of random numbers with 8 codes)."""
    folder = tmp_path_factory.mktemp("imagine")
    params = released.write_params(folder / "params", released.lapa_params(0, codes=8))
    vqgan = released.write_vqgan(folder / "vqgan", released.vqgan_arrays(0))
    import_weights.main(["lapa7b", "--input", str(params), "--vqgan", str(vqgan), "--out", str(folder / "lapa"),
                         "--heads", "2", "--image_size", "16", "--tokenizer", "bytes", "--text_length", "160"])
    return folder / "lapa", small_run.write(folder / "laq", root, "sample")


@pytest.fixture(scope="module")
def loaded(runs):
    return tuple(map(lapa_jax.load, runs))


@pytest.fixture(scope="module")
def images():
    shards = StepShards("sample", "val")
    return np.stack([shards.image(i, "image") for i in (0, 40)])


def test_the_frames_are_those_of_the_predicted_codes(loaded, images):
    policy, laq = loaded
    codes, shown = imagine(policy, laq, images, ["push the red cube", "go left"])
    np.testing.assert_array_equal(codes, policy.predict(images, ["push the red cube", "go left"]))
    np.testing.assert_array_equal(shown, np.clip(laq.decode(images, codes), 0, 1))
    one_codes, one = imagine(policy, laq, images[0], "push the red cube")
    assert one_codes.shape == (4,) and one.shape == (32, 32, 3)
    np.testing.assert_allclose(one, shown[0], atol=1e-5)
    other = frames(laq, images[0], (codes[0] + 1) % 8)
    assert np.abs(other - one).max() > 1e-3, "other codes lead elsewhere"


def test_what_a_policy_sees_is_its_codes_drawn_again(loaded, images):
    policy, _ = loaded
    seen = policy.seen(images)
    assert seen.shape == (2, 16, 16, 3) and 0 <= seen.min() and seen.max() <= 1
    codes = jitted.apply(policy.model, policy.variables, policy.observed(images, "x")[0]["image"], method="image_codes")
    drawn = jitted.apply(policy.model, policy.variables, codes, method=lambda model, codes: model.vqgan.decode(codes))
    np.testing.assert_allclose(seen, (drawn + 1) / 2, atol=1e-5)
    np.testing.assert_allclose(policy.seen(images[0]), seen[0], atol=1e-5)


def test_tokenizers_of_other_codes_are_refused(runs, loaded, root, tmp_path, images):
    policy, laq = loaded
    with pytest.raises(UserError, match="is no tokenizer of frame pairs"):
        imagine(policy, policy, images[0], "go")
    params = released.write_params(tmp_path / "params", released.lapa_params(0, codes=9))
    import_weights.main(["lapa7b", "--input", str(params), "--vqgan", str(runs[0].parent / "vqgan"), "--out",
                         str(tmp_path / "nine"), "--heads", "2", "--image_size", "16"])  # fmt: skip
    with pytest.raises(UserError, match="predicts 4 of 9 codes, the tokenizer has 4 of 8"):
        imagine(lapa_jax.load(tmp_path / "nine"), laq, images[0], "go")


def test_the_report_shows_where_the_codes_lead(runs, tmp_path, capsys):
    lapa, laq = map(str, runs)
    label.main(["--run", laq, "--data", "sample", "--out", str(tmp_path / "labels"), "--split", "val"])
    out = tmp_path / "eval"
    evaluate.main(["--run", lapa, "--data", "sample", "--labels", str(tmp_path / "labels"), "--pairs", "24",
                   "--tokenizer", laq, "--out", str(out)])  # fmt: skip
    assert (out / "imagined.png").stat().st_size > 10_000
    assert "Where the codes lead" in (out / "report.html").read_text()
    assert 0 <= json.loads((out / "metrics.json").read_text())["metrics"]["latent_accuracy"] <= 1
    capsys.readouterr()
    with pytest.raises(UserError, match="decodes latent actions, which .* does not predict"):
        evaluate.main(["--run", laq, "--data", "sample", "--tokenizer", laq, "--out", str(tmp_path / "other")])


def test_instructions_are_found_in_prompts(loaded):
    policy, _ = loaded
    for words in ("push the red cube", "go"):
        ids = policy.observed(np.zeros((16, 16, 3), np.uint8), words)[0]["text"][0]
        assert policy.tokenizer.instruction(ids) == words
