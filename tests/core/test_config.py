import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core.config import ConfigError

CONFIG = """
import ml_collections

def get_config(variant=""):
    config = ml_collections.ConfigDict()
    config.name = "toy" + variant
    config.steps = 100
    config.rate = 1e-3
    config.on = True
    config.gap = ml_collections.config_dict.placeholder(int)
    config.sizes = (1, 2)
    config.model = ml_collections.ConfigDict({"image_size": 64})
    config.data = ml_collections.ConfigDict()
    config.data.image_size = config.model.get_ref("image_size")
    return config
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "toy.py"
    file.write_text(CONFIG)
    return str(file)


def test_variant_and_overrides_keep_types(path):
    given = ["steps=1e1", "rate=2", "on=False", "gap=7", "sizes=[3, 4]", "name=9"]
    config = config_lib.load(path + ":tiny", [f"--config.{item}" for item in given])
    assert (config.name, config.steps, config.rate, config.on, config.gap) == ("9", 10, 2.0, False, 7)
    assert config.sizes == (3, 4) and isinstance(config.rate, float)


def test_override_reaches_references(path):
    assert config_lib.load(path, ["--config.model.image_size=96"]).data.image_size == 96


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.stepz=3", "no key 'stepz'; did you mean 'steps'"),
        ("--config.model.imagesize=3", "model.imagesize'; did you mean 'image_size'"),
        ("--config.steps=many", "config.steps is int (now 100), 'many' is str"),
        ("--config.steps=1.5", "config.steps is int"),
        ("--config.on=1", "config.on is bool"),
        ("--config.model=3", "is a group"),
        ("--config.steps.x=3", "is a value"),
        ("--steps=3", "overrides look like"),
    ],
)
def test_wrong_overrides_name_the_remedy(path, override, words):
    with pytest.raises(ConfigError) as error:
        config_lib.load(path, [override])
    assert words in str(error.value)


def test_missing_file_suggests_its_neighbour(path):
    with pytest.raises(ConfigError, match="did you mean .*toy.py"):
        config_lib.load(path.replace("toy", "toi"))


def test_json_round_trip(path):
    config = config_lib.load(path)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


def test_build_refuses_unknown_names_and_fields():
    with pytest.raises(ConfigError, match="did you mean 'tokenizers.laq'"):
        config_lib.build("lapa_jax.models", {"name": "tokenizers.laqq"})
    with pytest.raises(ConfigError, match="no field 'dimm'; did you mean 'dim'"):
        config_lib.build("lapa_jax.models", {"name": "tokenizers.laq", "dimm": 3})
