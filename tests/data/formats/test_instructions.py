import json

import h5py
import numpy as np
import pytest

from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.formats.instructions import as_instruction, like_instruction
from lapa_jax.data.shards.step_shards import StepShards
from tests.data.formats import make_robomimic, make_webdataset
from tests.data.formats.make_webdataset import write_tar

PLATE = "put the bowl on the plate"


@pytest.mark.parametrize(
    "stored, expected",
    [
        (PLATE, PLATE),
        (f'"{PLATE}"', PLATE),
        (f" '{PLATE}' ", PLATE),
        (f"\u201c{PLATE}\u201d", PLATE),
        ([PLATE], PLATE),
        ([f'"{PLATE}"'], PLATE),
        (PLATE.split(), PLATE),
        (list(PLATE), PLATE),
        (list(f'"{PLATE}"'), PLATE),
        (["", PLATE, "move the bowl to the plate"], PLATE),
        ('say "hi"', 'say "hi"'),
        ('"hi" and "ho"', '"hi" and "ho"'),
        ("it's", "it's"),
        ('"', '"'),
        ('""', '""'),
        ("push", "push"),
        (["push"], "push"),
        ("a\nb", "a\nb"),
        (None, ""),
        ([], ""),
        (7, ""),
        ([7], ""),
    ],
)
def test_dresses_of_an_instruction(stored, expected):
    assert as_instruction(stored) == expected


def test_names_of_fields():
    for name in ("language_instruction", "prompt", "annotation.human.action_caption", "lang", "TASK_DESCRIPTION"):
        assert like_instruction(name), name
    for name in ("language_embedding", "lang_tokens", "prompt_id", "action", "task_index", "instruction_mask"):
        assert not like_instruction(name), name


@pytest.mark.parametrize("stored", [f'"{PLATE}"', [PLATE], [f'"{PLATE}"'], PLATE.split()])
def test_libero_and_webdataset_through_the_converter(tmp_path, stored):
    make_robomimic.make(tmp_path / "libero")
    with h5py.File(tmp_path / "libero/demos.hdf5", "r+") as file:
        for demo in file["data"].values():
            del demo.attrs["instruction"]
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": stored})
    image = make_webdataset.jpeg(np.zeros((16, 16, 3), np.uint8))
    about = json.dumps({"instruction": stored}).encode()
    (tmp_path / "tars").mkdir()
    members = [(f"e_{i:03d}.{field}", data) for i in range(3) for field, data in (("jpg", image), ("json", about))]
    write_tar(tmp_path / "tars/a.tar", members)
    for source in ("libero", "tars"):
        convert(tmp_path / source, tmp_path / f"{source}_out", Options(size=16, split="train"))
        shards = StepShards(tmp_path / f"{source}_out", "train")
        assert {shards.text(i) for i in range(len(shards))} == {PLATE}
