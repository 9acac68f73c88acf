"""The documentation agrees with the code: links, config fields with their defaults, options of commands."""

import re
import subprocess
import sys

import pytest

from lapa_jax.core import config as config_lib

COMMANDS = ("launch/train.py", "launch/eval.py", "launch/label.py", "tools/convert.py", "tools/record_sim.py",
            "tools/import_weights.py laq")  # fmt: skip


def pages(root):
    return [root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md", *sorted((root / "docs").glob("*.md"))]


def test_links_lead_somewhere(root):
    broken = []
    for page in pages(root):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []


def flat(values, prefix="") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        is_group = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return found


def test_the_config_page_lists_every_field_with_its_default(root):
    config = flat(config_lib.load(str(root / "configs/laq.py")).to_dict())
    told = {}
    for line in (root / "docs/configs.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        names = re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)*)`", cells[0])
        if not line.startswith("| `") or not names:
            continue
        values = [cells[1]] if len(names) == 1 else cells[1].split(", ")
        assert len(values) == len(names), line
        told |= {name: value.strip("`") for name, value in zip(names, values, strict=True)}
    assert told == {name: str(value) for name, value in config.items()}


def test_overrides_in_the_pages_exist(root):
    config = config_lib.load(str(root / "configs/laq.py")).to_dict()
    model = __import__("lapa_jax.models.tokenizers.laq", fromlist=["Model"]).Model.__dataclass_fields__
    known = set(flat(config)) | {f"model.{name}" for name in model}
    unknown = set()
    for page in pages(root):
        text = page.read_text()
        used = re.findall(r"--config\.([a-z_.0-9]+[a-z_0-9])", text)
        used += re.findall(r"`((?:data|train|optim|mesh|loss|model)\.[a-z_.0-9]+)[`=]", text)
        unknown |= {f"{page.name}: {name}" for name in used if name not in known and not name.startswith("a.b")}
    assert {name for name in unknown if "model.safetensors" not in name} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_options_in_the_pages_exist(root, command):
    done = subprocess.run([sys.executable, "-B", *command.split(), "--help"], cwd=root, capture_output=True, text=True,
                          env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"})  # fmt: skip
    known = set(re.findall(r"--[a-z_]+", done.stdout))
    assert "--help" in known, done.stderr
    unknown = set()
    for page in pages(root):
        for line in re.findall(rf"python {re.escape(command)}[^`\n]*", page.read_text()):
            unknown |= set(re.findall(r"--[a-z_]+", line)) - known - {"--config"}
    assert unknown == set()
