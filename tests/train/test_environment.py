"""What `env.json` says of the source."""

import subprocess

from lapa_jax.train.run import commit_of, environment


def git(folder, *command) -> str:
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *name, *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_and_whether_files_differ_from_it(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "-q")
    (source / "a.py").write_text("1")
    git(source, "add", "a.py")
    git(source, "commit", "-q", "-m", "first")
    (source / "notes.txt").write_text("not part of it")
    assert commit_of(source) == {"commit": git(source, "rev-parse", "HEAD"), "changed": False}
    (source / "a.py").write_text("2")
    assert commit_of(source)["changed"]
    (source / "within").mkdir()
    assert commit_of(source / "within") is None, "a package installed within another project"


def test_without_git_there_is_none(tmp_path, monkeypatch):
    assert commit_of(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(tmp_path) is None and environment()["git"] is None
