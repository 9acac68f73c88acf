"""Git LFS pointers and pages of servers in place of a user's files are named as what they are, whatever the format."""

import importlib

import pytest

from lapa_jax.core.errors import UserError
from lapa_jax.core.files import placeholder, read_json
from lapa_jax.data import formats
from lapa_jax.data.convert.options import Options
from lapa_jax.data.convert.run import convert
from lapa_jax.data.samples.pair_shards import PairShards
from lapa_jax.data.shards.step_shards import StepShards
from lapa_jax.data.text import build
from tests.data.formats import make_webdataset

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a2146" * 8 + b"\nsize 12345\n"
PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html lang=en><head><title>Sign in \n to the hub</title></head></html>"
STANDS = {
    "pointer": (POINTER, "is a Git LFS pointer of a file of 12,345 bytes and not the file: run `git lfs pull`"),
    "page": (PAGE, r'is an HTML page \("Sign in to the hub"\) and not the file: download it again'),
    "html": (b"<HTML><body>403</body></HTML>", "is an HTML page and not the file"),
    "xhtml": (b"<?xml version='1.0'?>\n<!-- x -->\n<!DOCTYPE html PUBLIC 'x'>", "is an HTML page and not"),
    "answer": (b'{"error": "Repository not found"}', "is a server's answer"),
    "bucket": (b"<?xml version='1.0'?>\n<Error><Code>NoAccess</Code></Error>", r"is a server's error \(NoAccess\)"),
    "hub": (b"Entry not found", r'is a server\'s answer \("Entry not found"\)'),
    "raw": (b"404: Not Found\n", r'is a server\'s answer \("404: Not Found"\)'),
}


@pytest.mark.parametrize("kind", STANDS)
@pytest.mark.parametrize("name", formats.NAMES)
def test_any_file_of_any_format(tmp_path, name, kind):
    source = tmp_path / "source"
    importlib.import_module(f"tests.data.formats.make_{name}").make(source)
    options = Options(size=16, format=name, captions=str(source / "episodes.jsonl") if name == "video" else None)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    chosen = {path.suffix: path for path in files}.values() if kind == "pointer" else [largest]
    for number, path in enumerate(chosen):
        whole = path.read_bytes()
        path.write_bytes(STANDS[kind][0])
        with pytest.raises(UserError, match=rf"({path.name}|it) {STANDS[kind][1]}"):
            convert(source, tmp_path / f"out{number}", options)
        path.write_bytes(whole)


@pytest.mark.parametrize("ending", ["mp4", "tar", "hdf5", "npz", "jsonl", "parquet"])
def test_files_alone(tmp_path, ending):
    """Where nothing is left to tell the format by, the reason is still told."""
    (tmp_path / "source").mkdir()
    (tmp_path / f"source/x.{ending}").write_bytes(POINTER)
    with pytest.raises(UserError, match=f"x.{ending} is a Git LFS pointer"):
        convert(tmp_path / "source", tmp_path / "out", Options(size=16))


def test_shards_tokenizers_and_what_is_itself(tmp_path, root):
    assert not any(map(placeholder, (root / "README.md", b"", tmp_path, tmp_path / "absent")))
    assert placeholder(b"<html>").startswith("it is an HTML page")
    make_webdataset.make_pairs(tmp_path / "pairs")
    (tmp_path / "pairs/pairs-0.tar").write_bytes(POINTER)
    with pytest.raises(UserError, match="Git LFS pointer"):
        PairShards(tmp_path / "pairs")
    make_webdataset.make(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "shards", Options(size=16, split="train"))
    (tmp_path / "shards/train-00000.tar").write_bytes(POINTER)
    with pytest.raises(UserError, match="train-00000.tar is a Git LFS pointer"):
        StepShards(tmp_path / "shards", "train")
    (tmp_path / "shards/dataset.json").write_bytes(PAGE)
    with pytest.raises(UserError, match="dataset.json is an HTML page"):
        read_json(tmp_path / "shards/dataset.json")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama/tokenizer.json").write_bytes(POINTER)
    with pytest.raises(UserError, match="tokenizer.json is a Git LFS pointer"):
        build({"name": str(tmp_path / "llama")})
