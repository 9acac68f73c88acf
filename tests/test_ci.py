"""Both hosts' CI run the same script on the same versions, and what is cited is this package."""

import re

import pytest
import yaml

import lapa_jax


@pytest.fixture(scope="module")
def workflows(root):
    paths = ".github/workflows/ci.yml", ".gitlab-ci.yml"
    return [yaml.safe_load((root / path).read_text()) for path in paths]


def test_both_hosts_run_the_script_on_the_same_versions_and_ruff(root, workflows):
    github, gitlab = workflows
    steps = [step.get("run", "") for step in github["jobs"]["tests"]["steps"]]
    assert gitlab["tests"]["script"] == [steps[-1]] == ["bash .ci/run --cov --cov-report=term --cov-fail-under=85"]
    versions = github["jobs"]["tests"]["strategy"]["matrix"]["python-version"]
    assert [entry["PYTHON_VERSION"] for entry in gitlab["tests"]["parallel"]["matrix"]] == [versions]
    assert versions == ["3.11", "3.12"]
    ruff = [step["run"] for step in github["jobs"]["ruff"]["steps"] if "run" in step]
    assert ruff == gitlab["ruff"]["script"] and ruff[-1] == "ruff check ."
    trackers = [step["run"] for step in github["jobs"]["trackers"]["steps"] if "run" in step]
    assert trackers == gitlab["trackers"]["script"] and "wandb,clearml" in trackers[0]
    torture = [step["run"] for step in github["jobs"]["torture"]["steps"] if "run" in step]
    assert torture[-2:] == gitlab["torture"]["script"] and torture[-1].startswith("python tools/torture.py --scale")
    script = (root / ".ci/run").read_text()
    assert 'exec bash launch/test.sh "$@"' in script and (root / ".ci/run").stat().st_mode & 0o100
    total = re.compile(gitlab["tests"]["coverage"].strip("/"), re.MULTILINE)
    assert total.search("TOTAL        21345   2134    90%")[1] == "90"
    assert "pytest-cov" in (root / "setup.py").read_text()


def test_coverage_is_of_what_is_shipped(root):
    settings = (root / "pyproject.toml").read_text()
    assert '[tool.coverage.run]\nsource = ["lapa_jax", "configs", "launch", "tools"]' in settings


def test_templates_have_what_their_host_reads_and_both_ask_the_same(root):
    github = sorted((root / ".github/ISSUE_TEMPLATE").glob("*.md"))
    gitlab = root / ".gitlab/issue_templates"
    assert {path.name for path in gitlab.iterdir()} == {path.name for path in github} == {"bug.md", "idea.md"}
    for path in github:
        _, head, body = path.read_text().split("---\n", maxsplit=2)
        assert {"name", "about", "labels"} == set(yaml.safe_load(head))
        assert (gitlab / path.name).read_text() == body.lstrip("\n"), path.name
    request = (root / ".github/pull_request_template.md").read_text()
    assert "- [ ] a test that fails" in request
    assert (root / ".gitlab/merge_request_templates/Default.md").read_text() == request


def test_the_citation_names_this_version_and_licence(root):
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    assert cited["version"] == lapa_jax.__version__ and cited["license"] in (root / "setup.py").read_text()
    assert {"cff-version", "title", "message", "authors"} <= cited.keys()
    assert cited["references"][0]["url"].rpartition("/")[2] in (root / "README.md").read_text()
