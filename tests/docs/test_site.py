"""The documentation site, built strictly where its extra is installed, and the page of all keys of configs."""

import html
import importlib.util
import os
import re
import subprocess
import sys

import pytest
import yaml

from tools import write_config_reference


def test_the_page_of_all_keys_is_what_the_configs_give():
    page = write_config_reference.PAGE.read_text()
    assert page == write_config_reference.written(), "run tools/write_config_reference.py"
    assert page.count("\n## `configs/") == len(list(write_config_reference.PAGE.parents[2].glob("configs/[!c]*.py")))


def test_every_page_is_in_the_navigation(root):
    text = (root / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w/]+\.md", text.partition("\nnav:")[2])) - {"readme.md"}
    assert listed == {path.relative_to(root / "docs").as_posix() for path in (root / "docs").rglob("*.md")}
    assert yaml.safe_load(text)["strict"] is True


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    """The built site; mkdocs ends with an error where a link or a name in the API leads nowhere."""
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-B", "-m", "mkdocs", "build", "--site-dir", folder], cwd=root, text=True,
                          capture_output=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_builds_strictly_and_has_the_readme_and_the_api(site):
    assert "Quickstart" in (site / "readme.html").read_text()
    api = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference/api.html").read_text()))
    for name in ("lapa_jax.inference.load.load", "LatentActionTokenizer", "UserError", "Latent action codes of frame"):
        assert name in api
    assert "search_index.json" in {path.name for path in (site / "search").iterdir()}


def test_numbered_steps_go_on_after_their_commands(site):
    """Python-Markdown ends a list where a command below it is indented by less than four spaces."""
    text = (site / "tutorials/stage1_laq.html").read_text()
    steps = re.search(r"<ol>(.*?)</ol>", text, re.DOTALL)[1]
    assert [f"<strong>{word}" in steps for word in ("Convert", "Choose", "Train", "Judge", "Label")] == [True] * 5


def test_the_site_needs_no_network(site):
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?)[^"]*)"', (site / "index.html").read_text())
    assert loaded == []


@pytest.mark.parametrize("name", ["index.html", "readme.html", "results/results.html", "reference/api.html"])
def test_pages_of_the_site_hold_in_a_browser(browser, site, name):
    page = browser.check(site / name)
    assert [url for url in page.requests() if not url.startswith("file:")] == []
