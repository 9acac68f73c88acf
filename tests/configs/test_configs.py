"""The config files that come with the project, in all their variants, and the files of overrides beside them."""

import itertools
import pathlib
import shutil

import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.config import ConfigError

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "common")
VARIANTS = {name: tuple(config_lib.import_file(f"{FOLDER}/{name}.py").VARIANTS) for name in CONFIGS}
SITES, DATA = (sorted(folder.glob("*.yaml")) for folder in (FOLDER / "site", FOLDER / "data"))


def load(config: str, *overrides: str, files=()):
    return config_lib.load(f"{FOLDER}/{config}", [f"--config.{o}" for o in overrides], [str(file) for file in files])


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_has_its_variants_and_each_names_the_run(name):
    assert load(f"{name}.py").name == name and {"tiny", "test"} <= set(VARIANTS[name])
    for variant in VARIANTS[name]:
        assert load(f"{name}.py:{variant}").name == f"{name}_{variant}"
    with pytest.raises(ConfigError, match=f"{name} has no variant 'no'; it has {', '.join(VARIANTS[name])}"):
        load(f"{name}.py:no")


@pytest.mark.parametrize("name", CONFIGS)
def test_any_two_variants_combine_or_say_that_they_exclude_each_other(name):
    combined = 0
    for one, two in itertools.permutations(VARIANTS[name], 2):
        try:
            config = load(f"{name}.py:{one}+{two}")
        except ConfigError as error:
            assert f"{one} and {two} of {name} exclude each other" in str(error)
            continue
        combined += 1
        assert config.name == f"{name}_{one}_{two}"
        if name in ("laq", "laq_conv"):  # whose models are all there without data
            config_lib.build(config_lib.MODELS, config.model)
    assert combined or set(VARIANTS[name]) <= {"small", "tiny", "test", "lift", "released"}


def test_features_and_cosine_keep_what_each_sets():
    both = load("laq.py:features+cosine")
    assert both.model.to_dict() == load("laq.py:features").model.to_dict()
    assert both.train.to_dict() == load("laq.py:cosine").train.to_dict()
    assert both.optim.schedule == "cosine" and both.optim.groups[0] == ("tower/.*", None)


@pytest.mark.parametrize("name", ["laq", "laq_conv"])
def test_the_recommended_parts_combine_with_a_size_in_any_order(name):
    one, other = (load(f"{name}.py:{variants}") for variants in ("small+recommended", "recommended+small"))
    assert {**one.to_dict(), "name": ""} == {**other.to_dict(), "name": ""}
    assert (one.model.delta_norm, one.model.quant_dim, one.loss.view, one.model.view_shift) == ("whitened", 1, 0.05, 8)


@pytest.mark.parametrize("name", ["laq", "laq_conv"])
def test_the_recommended_recipe_is_the_same_at_every_size(name):
    """What was measured of the small one is what the large one gets: how deltas and codes are made, and all losses."""
    small, large = load(f"{name}.py:small+recommended"), load(f"{name}.py:recommended")
    of_codes = ("pooling", "quantizer", "quant_dim", "codebook_size", "code_seq_len", "codebook_init", "delta_norm",
                "replacement", "view_share", "view_deltas", "output")  # fmt: skip
    assert {key: small.model[key] for key in of_codes} == {key: large.model[key] for key in of_codes}
    assert small.loss.to_dict() == large.loss.to_dict()
    assert small.model.view_shift / small.model.image_size == large.model.view_shift / large.model.image_size


def test_heads_and_sizes_of_a_policy_combine_in_any_order():
    for head, size in itertools.product(("bins", "latent", "chunk", "flow"), ("tiny", "small", "test")):
        one, two = load(f"vla_action.py:{head}+{size}"), load(f"vla_action.py:{size}+{head}")
        assert {**one.to_dict(), "name": ""} == {**two.to_dict(), "name": ""}
        assert one.model.head.name == f"policies.heads.{head}"
        assert one.model.chunk_length == (8 if head in ("chunk", "flow") else 1)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("variant", ["", ":tiny"])
def test_every_key_has_a_line(name, variant):
    lines = [line for line in config_lib.explain(f"{FOLDER}/{name}.py{variant}") if line.startswith("  --config.")]
    assert len(lines) > 50
    assert [line for line in lines if len(line) < 54] == [], "no explanation"
    assert [line for line in lines if len(line) > 220] == []


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
@pytest.mark.parametrize("data", DATA, ids=lambda path: path.stem)
def test_site_and_data_files_go_with_every_config(name, site, data):
    config = load(f"{name}.py", files=[site, data])
    named = [config.data.path] if config.data.path else [part["path"] for part in config.data.mixture]
    assert all(path.startswith("data/" if site.stem == "local_dev" else "/dss/") for path in named)
    if config.data.samples == "pairs":
        assert config.data.gap_seconds == (2.4 if data.stem == "sthv2" else 0.6) and config.data.gap_frames is None


def test_a_data_file_needs_a_site():
    with pytest.raises(ConfigError, match="no --config_file names roots.data"):
        load("laq.py", files=[FOLDER / "data/bridge.yaml"])


def test_a_config_can_be_copied_with_what_it_imports(tmp_path):
    shutil.copy(FOLDER / "laq.py", tmp_path / "mine.py")
    with pytest.raises(ConfigError, match="imports a neighbour"):
        config_lib.load(f"{tmp_path}/mine.py")
    shutil.copy(FOLDER / "common.py", tmp_path)
    assert config_lib.load(f"{tmp_path}/mine.py:tiny").to_dict() == load("laq.py:tiny").to_dict()
