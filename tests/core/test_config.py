import textwrap

import pytest

from lapa_jax.core import config as config_lib
from lapa_jax.core import config_files, config_keys
from lapa_jax.core.config import ConfigError

CONFIG = """
import ml_collections

from lapa_jax.core.config import with_variants

from . import neighbour

def base():
    config = ml_collections.ConfigDict()
    config.name = "toy"
    config.steps = 100
    config.rate = neighbour.RATE
    config.on = True
    config.gap = ml_collections.config_dict.placeholder(int)
    config.sizes = (1, 2)
    config.best = "loss"
    config.model = ml_collections.ConfigDict({"name": "tokenizers.laq", "image_size": 64, "dim": 8})
    config.data = ml_collections.ConfigDict({"samples": "pairs", "path": "sample", "gap_seconds": 0.6})
    config.data.gap_frames = ml_collections.config_dict.placeholder(int)
    config.data.mixture = ml_collections.config_dict.placeholder(object)
    config.data.image_size = config.model.get_ref("image_size")
    config.data.more = ml_collections.ConfigDict({"a": 1, "b": 2})
    return config

def tiny(config):
    config.steps = 10
    config.data.gap_frames = 3

def fast(config):
    config.steps *= 2
    config.rate = 1.0

def get_config(variants=""):
    return with_variants(base(), variants, {"tiny": tiny, "fast": fast, "huge": fast}, one_of=[("tiny", "huge")])
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "neighbour.py").write_text("RATE = 1e-3\n")
    file = tmp_path / "toy.py"
    file.write_text(CONFIG)
    return str(file)


@pytest.fixture
def file(tmp_path):
    """A function that writes a file of overrides and returns its path."""

    def write(text: str, name: str = "site.yaml") -> str:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return str(tmp_path / name)

    return write


def test_overrides_keep_types(path):
    given = ["steps=1e1", "rate=2", "on=False", "gap=7", "sizes=[3, 4]", "name=9", "best=None"]
    config = config_lib.load(path, [f"--config.{item}" for item in given])
    assert (config.name, config.steps, config.rate, config.on, config.gap) == ("9", 10, 2.0, False, 7)
    assert config.sizes == (3, 4) and isinstance(config.rate, float) and config.best is None


def test_override_reaches_references(path):
    assert config_lib.load(path, ["--config.model.image_size=96"]).data.image_size == 96


@pytest.mark.parametrize(
    ("variants", "name", "steps", "rate"),
    [("", "toy", 100, 1e-3), ("tiny", "toy_tiny", 10, 1e-3), ("tiny+fast", "toy_tiny_fast", 20, 1.0),
     ("fast+tiny", "toy_fast_tiny", 10, 1.0)],
)  # fmt: skip
def test_variants_combine_from_left_to_right(path, variants, name, steps, rate):
    config = config_lib.load(f"{path}:{variants}" if variants else path)
    assert (config.name, config.steps, config.rate) == (name, steps, rate)


@pytest.mark.parametrize(
    ("variants", "words"),
    [("tyni", "toy has no variant 'tyni'; it has tiny, fast, huge"), ("tiny+", "no variant ''"),
     ("fast+tiny+huge", "the variants tiny and huge of toy exclude each other")],
)  # fmt: skip
def test_wrong_variants_are_told_what_there_is(path, variants, words):
    with pytest.raises(ConfigError) as error:
        config_lib.load(f"{path}:{variants}")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override, words",
    [
        ("--config.stepz=3", "no key 'stepz'; did you mean 'steps'"),
        ("--config.model.imagesize=3", "model.imagesize'; did you mean 'image_size'"),
        ("--config.model.normalisation=none", "model.normalisation'; did you mean 'normalization'"),
        ("--config.modle.dim=3", "no key 'modle'; did you mean 'model'"),
        ("--config.data.camerra=3", "no key 'data.camerra'; did you mean 'camera'"),
        ("--config.model.tower.dim=3", "config.model.tower is a value (None), it has no key 'dim'; set it to a group"),
        ("--config.steps=many", "config.steps is int (now 100), 'many' is str"),
        ("--config.steps=1.5", "config.steps is int"),
        ("--config.model.motion_threshold=high", "motion_threshold is float (now 0.04), 'high' is str"),
        ("--config.on=1", "config.on is bool"),
        ("--config.model=3", "is a group"),
        ("--config.data.more=3", "is a group; set one of its keys: --config.data.more.a=, --config.data.more.b="),
        ("--config.steps.x=3", "is a value"),
        ("--steps=3", "overrides look like"),
    ],
)
def test_wrong_overrides_name_the_remedy(path, override, words):
    with pytest.raises(ConfigError) as error:
        config_lib.load(path, [override])
    assert words in str(error.value)


def test_fields_that_the_config_does_not_list_can_be_set(path):
    config = config_lib.load(path, ["--config.model.normalization=imagenet", "--config.model.motion_threshold=1",
                                    "--config.data.camera=image_wrist"])  # fmt: skip
    assert (config.model.normalization, config.data.camera) == ("imagenet", "image_wrist")
    assert config.model.motion_threshold == 1 and isinstance(config.model.motion_threshold, float)


def test_a_field_set_to_the_value_that_it_has_anyway_leaves_the_config_as_it_is(path):
    config = config_lib.load(path, ["--config.model.normalization=none", "--config.model.heads=16"])
    assert config.to_dict() == config_lib.load(path).to_dict()


def test_a_field_takes_all_types_that_its_class_declares(path):
    config = config_lib.load(path, ["--config.model.image_size=(64, 96)", "--config.data.camera=('a', 'b')"])
    assert config.model.image_size == config.data.image_size == (64, 96)
    with pytest.raises(ConfigError, match="dim is int"):
        config_lib.load(path, ["--config.model.dim=(64, 96)"])
    with pytest.raises(ConfigError, match="config.data.gap_seconds is float"):
        config_lib.load(path, ["--config.data.gap_seconds='0.6 s'"])
    chunks = config_lib.load(path, ["--config.data.samples=chunks", "--config.data.camera=('a', 'b')"])
    assert chunks.data.camera == ("a", "b") and config.data.camera == "('a', 'b')", "pairs are of one camera"


def test_groups_within_groups_can_be_switched_off_or_replaced(path):
    assert config_lib.load(path, ["--config.data.more=None"]).data.more is None
    assert config_lib.load(path, ["--config.data.more={'c': 3}"]).data.more.to_dict() == {"c": 3}
    tower = config_lib.load(path, ["--config.model.tower={'name': 'vision.dinov2', 'depth': 2}",
                                   "--config.model.tower.registers=4"]).model.tower  # fmt: skip
    assert tower["depth"] == 2 and tower["registers"] == 4


def test_files_lie_between_variants_and_the_command_line(path, file):
    site = file("{steps: 1, rate: 1e-2, model: {dim: 16}, data: {more: {a: 5}}}")
    other = file("steps: 2\nsizes: [[1, 2], [3]]\nbest: null", "other.yaml")
    config = config_lib.load(f"{path}:tiny", ["--config.rate=3"], [site, other])
    assert (config.steps, config.rate, config.model.dim, config.best) == (2, 3.0, 16, None)
    assert config.sizes == ((1, 2), (3,)) and config.data.more.to_dict() == {"a": 5, "b": 2}
    assert config_lib.load(path, [], [other, site]).steps == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", "site.yaml: config has no key 'stepz'; did you mean 'steps'"),
        ("model: {imagesize: 3}", "site.yaml: config has no key 'model.imagesize'; did you mean 'image_size'"),
        ("steps: many", "site.yaml: config.steps is int (now 100), 'many' is str"),
        ("best: 7", "site.yaml: config.best is str (now 'loss'), '7' is int"),
        ("model: 3", "site.yaml: config.model is a group"),
        ("steps: {a: 3}", "config.steps is int"),
        ("- steps", "holds no keys"),
        ("steps: 1\nsteps: 2", "site.yaml line 2 is no YAML: the key 'steps' stands twice"),
        ("steps: [1", "is no YAML"),
        ("roots: 3", "'roots' is 3; it must be a group"),
        ("data: {path: '${roots.data}/x'}", "data.path is '${roots.data}/x', and no --config_file names roots.data"),
    ],
)
def test_wrong_files_name_file_key_and_remedy(path, file, text, words):
    with pytest.raises(ConfigError) as error:
        config_lib.load(path, [], [file(text)])
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_does_not_exist_suggests_its_neighbour(path, file):
    with pytest.raises(ConfigError, match="did you mean '.*site.yaml'"):
        config_lib.load(path, [], [file("steps: 1").replace("site", "cite")])


def test_roots_of_all_files_are_put_in(path, file):
    data = file("data: {path: '${roots.data}/a', mixture: [{path: '${roots.data}/b', weight: 1}]}", "data.yaml")
    site = file("roots: {data: /d, runs: /r}\nslurm: {time: 24:00:00}")
    files = config_files.read([data, site])
    assert files.roots == {"data": "/d", "runs": "/r"} and files.files[1].slurm == {"time": "24:00:00"}
    assert files.files[0].values["data"] == {"path": "/d/a", "mixture": ({"path": "/d/b", "weight": 1},)}


def test_optional_keys_are_for_configs_that_have_them(path, file):
    site = file("""\
        data:
          labels?: x
          gap_seconds?: 2.5
        model:
          normalization?: imagenet
          pacing?: 2
        eval?:
          a: 1
    """)
    config = config_lib.load(path, [], [site])
    assert config.data.gap_seconds == 2.5 and config.model.normalization == "imagenet"
    assert "labels" not in config.data and "pacing" not in config.model and "eval" not in config


@pytest.mark.parametrize(
    ("variant", "files", "overrides", "words"),
    [
        (":tiny", [], ["data.gap_seconds=60"], "config.data.gap_seconds=60 has no effect: config.data.gap_frames is 3"),
        ("", [], ["data.gap_seconds=60", "data.gap_frames=2"], "config.data.gap_frames is 2"),
        ("", ["data: {gap_frames: 2}"], ["data.gap_seconds=60"], "config.data.gap_frames is 2"),
        (":tiny", ["data: {gap_seconds: 2.4}"], [], "0.yaml: config.data.gap_seconds=2.4 has no effect"),
        ("", [], ["data.mixture=({'path': 'a', 'weight': 1},)", "data.path=b"], "config.data.mixture names the data"),
        (":tiny", [], ["data.gap_seconds=60", "data.gap_frames=None"], None),
        ("", ["data: {gap_seconds: 2.4}"], ["data.gap_frames=3"], None),
        ("", ["data: {path: a}"], ["data.mixture=({'path': 'a', 'weight': 1},)"], None),
        (":tiny", [], ["data.mixture=({'path': 'a', 'weight': 1},)", "data.path=None"], None),
    ],
)
def test_a_key_that_another_one_silently_overrides_is_refused(path, file, variant, files, overrides, words):
    files = [file(text, f"{i}.yaml") for i, text in enumerate(files)]
    overrides = [f"--config.{o}" for o in overrides]
    if words is None:
        config_lib.load(path + variant, overrides, files)
        return
    with pytest.raises(ConfigError) as error:
        config_lib.load(path + variant, overrides, files)
    assert words in str(error.value)


LABELS = {"fields": ("image", "latent"), "labels": "a", "val_labels": None, "val_path": None, "labels_tokenizer": None}


@pytest.mark.parametrize(
    ("config", "keys"),
    [
        ({"data": {"gap_frames": None, "mixture": None, "shuffle": "window", "val_path": "b"}}, set()),
        ({"data": {**LABELS, "shuffle": "full"}}, {"data.window", "data.val_labels"}),
        ({"data": {**LABELS, "fields": ("image", "action"), "val_path": "b"}},
         {"data.labels", "data.labels_tokenizer", "data.val_labels"}),
        ({"data": {"mixture": ({"path": "a", "weight": 1, "camera": "x", "gap_frames": 1}, {"path": "b", "weight": 1,
                                                                                          "camera": "y"})}},
         {"data.path", "data.camera", "data.val_labels"}),
        ({"data": {"mixture": ({"path": "a", "camera": "x"},), "val_path": "v"}}, {"data.path"}),
        ({"data": {"mixture": "wrong", "val_path": "v"}}, {"data.path"}),
        ({"optim": {"schedule": "constant", "final_learning_rate": 0.0, "boundaries": (5,), "groups": ((".*", {}),)}},
         {"optim.final_learning_rate", "optim.boundaries", "optim.frozen_dtype"}),
        ({"optim": {"schedule": "constant", "groups": (("a", {"schedule": "cosine"}), (".*", None))}},
         {"optim.schedule"}),
        ({"optim": {"schedule": "cosine", "groups": (("a", {"b1": 0.5, "b2": 0.5}), ("b", {"b1": 0.1}), (".*", None))}},
         {"optim.b1"}),
        ({"optim": {"schedule": "cosine", "groups": ("a", "b")}}, {"optim.frozen_dtype"}),
        ({"train": {"patience": 3}}, set()),
        ({"model": {"quantizer": "vq"}}, {"model.delta_noise"}),
        ({"model": {"consistency": "none"}}, {"model.consistency_views", "model.consistency_decay"}),
        ({"model": {"consistency": "beside"}}, set()),
        ({"model": {"quantizer": "none"}},
         {f"model.{kind}" for kind in ("codebook_size", "codebook_init", "codebook_update", "codebook_decay")}
         | {f"model.replacement{kind}" for kind in ("", "_schedule", "_min_hits", "_min_share")}),
    ],
)  # fmt: skip
def test_which_keys_count_for_nothing(config, keys):
    quiet = {"data": {"val_path": "v"}, "optim": {"groups": ((".*", None),)}, "train": {"patience": 1}}
    # Of data without the actions of pairs, which these are, two more.
    few = {"data.action_share", "data.action_draws"}
    assert config_keys.overruled({**quiet, **config}).keys() == keys | few


def test_keys_of_few_actions_count_where_pairs_have_actions():
    config = {"data": {"val_path": "v", "fields": ("image", "pair_action", "latent")}, "optim": {"groups": ()}}
    assert not {"data.action_share", "data.action_draws"} & config_keys.overruled(config).keys()


def test_missing_file_suggests_its_neighbour(path):
    with pytest.raises(ConfigError, match="did you mean .*toy.py"):
        config_lib.load(path.replace("toy", "toi"))


def test_neighbours_are_those_that_lie_beside_the_file_now(path, tmp_path):
    assert config_lib.load(path).rate == 1e-3
    (tmp_path / "neighbour.py").write_text("RATE = 2e-3  # longer than before\n")
    assert config_lib.load(path).rate == 2e-3
    (tmp_path / "neighbour.py").unlink()
    with pytest.raises(ConfigError, match="toy.py imports a neighbour that .* lacks; copy it there"):
        config_lib.load(path)


def test_every_key_is_explained_with_its_value(path):
    lines = list(config_lib.explain(f"{path}:tiny", ["--config.rate=0.5"]))
    rows = {line.split("=")[0].strip(): line for line in lines if line.startswith("  --config.")}
    assert "--config.rate=0.5" in rows["--config.rate"]
    assert rows["--config.model.dim"].split("  ")[1] == "--config.model.dim=8"
    assert "ImageNet" in rows["--config.model.normalization"], "fields that the config does not list are there too"
    assert rows["--config.data.gap_seconds"].endswith("time between the two frames of a pair")
    assert all("\n" not in line for line in rows.values())


def test_json_round_trip(path):
    config = config_lib.load(path)
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


def test_build_refuses_unknown_names_and_fields():
    with pytest.raises(ConfigError, match="did you mean 'tokenizers.laq'"):
        config_lib.build("lapa_jax.models", {"name": "tokenizers.laqq"})
    with pytest.raises(ConfigError, match="no field 'dimm'; did you mean 'dim'"):
        config_lib.build("lapa_jax.models", {"name": "tokenizers.laq", "dimm": 3})
    for helper in ("base", "tokenizers.laq.metrics", "policies.vision_language"):
        with pytest.raises(ConfigError, match=f"'{helper}' is no model of lapa_jax.models") as error:
            config_lib.build("lapa_jax.models", {"name": helper})
        assert "metrics'" not in str(error.value).partition(";")[2] and "base" not in str(error.value).partition(";")[2]
