"""The documentation agrees with the code: links, config fields with their defaults, options of commands."""

import ast
import contextlib
import dataclasses
import importlib
import pathlib
import pkgutil
import re
import runpy
import sys

import pytest

from lapa_jax import commands as shipped_commands
from lapa_jax.core import config as config_lib
from lapa_jax.data import pipeline
from lapa_jax.inference import kinds
from lapa_jax.models.policies import heads
from tests import docs_code, test_floors


def pages(root):
    return [root / "README.md", root / "CONTRIBUTING.md", root / "CHANGELOG.md", *sorted((root / "docs").rglob("*.md"))]


COMMAND = re.compile(r"python ((?:launch|tools)/[\w/]+\.py)( [a-z]\w*\b(?!/))?([^`\n#]*)")


def commands(root) -> dict[str, set[str]]:
    """{script, with its subcommand: options} of all commands on the pages; continued lines are joined."""
    found: dict[str, set[str]] = {}
    for page in pages(root):
        text = page.read_text().replace("\\\n", " ")
        for script, subcommand, rest in COMMAND.findall(text):
            name = script + (subcommand if script == "tools/import_weights.py" else "")
            found.setdefault(name, set()).update(re.findall(r"(?<!\S)--[a-z_]+", subcommand + rest))
    return found


COMMANDS = commands(pathlib.Path(__file__).parents[1])


def headings(page) -> set[str]:
    """The anchors of a page: those that GitHub makes of headings (lower case, no punctuation, hyphens) and `<a id>`."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    named = re.findall(r'<a id="([^"]+)">', text)
    return {*named, *(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)}


@pytest.mark.parametrize("page", ["README.md", "docs/results/results.md"])
def test_the_headline_stands_beside_its_limits(root, page):
    """71 % against 64 % is of one comparison; whoever reads the one shall read how far it goes."""
    text = re.sub(r"\s+", " ", (root / page).read_text())
    assert re.search(r"\b71 ?%", text) and re.search(r"\b64 ?%", text)
    limits = ("Five seeds", "50 starts", "7 points", "five seeds do not prove", "-7 to 22", "tower",
              "20 validation", "othing was chosen on the starts", "ten tasks of Meta-World",
              "nothing that two seeds can show", "-5 to 13", "two seeds", "15 to 39", "35 to 61", "ive families",
              "one seed")  # fmt: skip
    for limit in limits:
        assert re.search(limit, text), f"{page} leaves out: {limit}"


def test_links_lead_somewhere(root):
    broken = []
    for page in pages(root):
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            if "://" in target:
                continue
            path = page.parent / target if target else page
            if not path.exists() or (anchor and anchor not in headings(path)):
                broken.append(f"{page.relative_to(root)}: {target}#{anchor}")
    assert broken == []


def test_every_page_is_in_the_index(root):
    index = (root / "docs/index.md").read_text()
    names = [str(page.relative_to(root / "docs")) for page in (root / "docs").rglob("*.md")]
    assert [name for name in names if name != "index.md" and f"({name})" not in index] == []


def test_pages_that_the_code_names_exist(root):
    """In error messages, docstrings and comments."""
    missing = []
    for folder in ("lapa_jax", "configs", "launch", "tools"):
        for path in (p for p in (root / folder).rglob("*") if p.suffix in (".py", ".sh", ".sbatch")):
            named = re.findall(r"docs/[\w/]+\.md", path.read_text())
            missing += [f"{path.relative_to(root)}: {name}" for name in named if not (root / name).exists()]
    assert missing == []


FOLDERS = "(?:lapa_jax|configs|launch|tools|tests|docs)"


def living_pages(root):
    """All but the changelog, which also names what is gone."""
    return [page for page in pages(root) if page.name != "CHANGELOG.md"]


def test_paths_in_the_pages_exist(root):
    """`lapa_jax/...`, `launch/...` and so on, anywhere in the text; `{a,b}` stands for each of them."""
    missing = set()
    for page in living_pages(root):
        made = {block.file for block in docs_code.blocks(page)}  # by following the page
        for name in re.findall(rf"(?<![\w/.])({FOLDERS}/[\w./{{}},-]*[\w/}}])", page.read_text()):
            head, brace, rest = name.partition("{")
            inside, _, tail = rest.partition("}")
            names = {head + part + tail for part in inside.split(",")} if brace else {name}
            missing |= {f"{page.relative_to(root)}: {n}" for n in names - made if not (root / n).exists()}
    assert missing == set()


def test_names_in_the_pages_exist(root):
    """`lapa_jax.a.b.Name`, and the imports of code blocks."""
    missing = set()
    for page in living_pages(root):
        text = page.read_text()
        named = set(re.findall(r"(?<![\w./])lapa_jax(?:\.\w+)+", text))
        for module, names in re.findall(r"^from (lapa_jax[\w.]*) import ([\w, ]+)$", text, flags=re.MULTILINE):
            named |= {f"{module}.{name.strip()}" for name in names.split(",")}
        missing |= {f"{page.relative_to(root)}: {name}" for name in named if not resolves(name)}
    assert missing == set()


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


NOT_OURS = ("DEADLINE_EXCEEDED", "Terminating process because", "Gloo context")
"""Messages of JAX that the troubleshooting page explains."""


def test_the_messages_that_are_explained_are_ours(root):
    """Between their placeholders (`'...'`, `(...)`, capitals, numbers), messages are pieces of strings of the code."""
    strings = [(root / "launch/venv.sh").read_text()]
    for folder in ("lapa_jax", "launch", "tools"):
        for path in (root / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            strings += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    page = (root / "docs/howto/troubleshooting.md").read_text().partition("## Symptoms")[0]
    messages = re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE)
    assert len(messages) > 20
    gone = []
    for message in (m for m in messages if not m.startswith(NOT_OURS)):
        parts = re.split(r"'[^']*'|\([^)]*\)|\.\.\.|\b\d[\d.]*|\b[A-Z]+\b", message)
        longest = max((part.strip(" :") for part in parts), key=len)
        if not any(longest in text for text in strings):
            gone.append(f"{message}: {longest}")
    assert gone == []


def test_the_maps_show_the_house(root):
    """README's map has every room, and the table of floors is that of test_floors.py."""
    rooms = {path.name for path in (root / "lapa_jax").iterdir() if (path / "__init__.py").exists()}
    map_ = (root / "README.md").read_text().partition("## Map")[2]
    assert {room for room in rooms if f"{room}/`" not in map_} == set()
    page = (root / "docs/explanation/architecture.md").read_text()
    floors = {room: int(number) for number, room in re.findall(r"^\| (\d) \| `(\w+)` \|", page, flags=re.MULTILINE)}
    assert floors == test_floors.FLOORS
    assert rooms == set(test_floors.FLOORS)


def flat(values, prefix="") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        is_group = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if is_group else {f"{prefix}{key}": value}
    return found


def configs(root) -> list[str]:
    return sorted(path.name for path in (root / "configs").glob("*.py") if path.stem != "common")


def fields_of(root, config: str) -> dict[str, object]:
    """{name: default} of a config, and {"model.x": None} for the fields of its model that it does not set."""
    values = flat(config_lib.load(str(root / "configs" / config)).to_dict())
    model = importlib.import_module(f"lapa_jax.models.{values['model.name']}").Model
    return {f"model.{name}": None for name in model.__dataclass_fields__} | values


def test_every_config_has_its_section(root):
    page = (root / "docs/reference/configs.md").read_text()
    assert [name for name in configs(root) if f"## `configs/{name}`" not in page] == []


def test_the_config_page_lists_every_field_with_its_default(root):
    """In its section; fields that it shares with laq.py, or the config that the section names, may be in theirs."""
    page = (root / "docs/reference/configs.md").read_text()
    sections = {name: page.partition(f"## `configs/{name}`")[2].partition("\n## ")[0] for name in configs(root)}
    told = {name: table(section) for name, section in sections.items()}
    for name in configs(root):
        config = flat(config_lib.load(str(root / "configs" / name)).to_dict())
        others = ["laq.py", *re.findall(r"are as in `configs/(\w+\.py)`", sections[name])]
        shared = {k: v for other in others for k, v in told[other].items() if k in config}
        listed = {**shared, **told[name]}
        assert listed == {k: str(v) for k, v in config.items()}, name


def table(section: str) -> dict[str, str]:
    """{field: default} of the rows of a section's tables."""
    told = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.split(" | ")]
        names = re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]*)*)`", cells[0])
        if not line.startswith("| `") or not names:
            continue
        values = [cells[1]] if len(names) == 1 else cells[1].split(", ")
        assert len(values) == len(names), line
        told |= {name: value.strip("`") for name, value in zip(names, values, strict=True)}
    return told


def test_overrides_in_the_pages_exist(root):
    known = set().union(*(fields_of(root, name) for name in [*configs(root), "laq.py:features"]))
    for kind in pipeline.kinds():
        options = importlib.import_module(f"lapa_jax.data.samples.{kind}").Options
        known |= {f"data.{field.name}" for field in dataclasses.fields(options)}
    for module in pkgutil.iter_modules(heads.__path__, f"{heads.__name__}."):  # of which a config names one
        head = getattr(importlib.import_module(module.name), "Model", None)
        known |= {f"model.head.{field}" for field in getattr(head, "__dataclass_fields__", ())}
    unknown = set()
    # The page of all keys is written from the configs: tests/docs/test_site.py.
    for page in (page for page in pages(root) if page.name != "config_keys.md"):
        text = page.read_text()
        used = re.findall(r"--config\.([a-z_.0-9]+[a-z_0-9](?:\.(?==))?)", text)
        used += re.findall(r"`(?:config\.)?((?:data|train|optim|mesh|loss|model)\.[a-z_.0-9]+)[`= ]", text)
        unknown |= {f"{page.name}: {name}" for name in used if name not in known and not name.startswith("a.b")}
    assert {name for name in unknown if "model.safetensors" not in name} == set()


def test_the_quickstart_without_a_clone_trains_as_the_script_does(root):
    texts = [(root / path).read_text() for path in ("launch/quickstart.sh", "docs/howto/install.md")]
    setting = re.compile(r"--(?:config\.(?!data\.path)[\w.]+=|reference_steps )[\w.]+")
    script, page = (set(setting.findall(text)) for text in texts)
    assert script == page and len(script) == 5
    variants = [re.findall(r"--config (?:configs/)?laq_conv(?:\.py)?:([\w+]+)", text) for text in texts]
    assert variants[0] == variants[1] and len(variants[0]) == 1


def test_tutorials_say_what_an_installation_calls_their_commands(root):
    known = shipped_commands.scripts()
    for page in sorted((root / "docs/tutorials").glob("*.md")):
        text = page.read_text()
        assert "`lapa-train`" in text and "(../howto/install.md#commands)" in text, page.name
        assert {script for script, _, _ in COMMAND.findall(text)} - set(known.values()) == set(), page.name
    named = {name for page in pages(root) for name in re.findall(r"python -m lapa_jax ([a-z]\w+)", page.read_text())}
    assert "choose_gap" in named and named - set(known) == set()


def test_the_readme_lists_the_extras_of_setup_py(root):
    source = ast.parse((root / "setup.py").read_text())
    keywords = [node for node in ast.walk(source) if isinstance(node, ast.keyword)]
    (extras,) = [node.value for node in keywords if node.arg == "extras_require"]
    table = (root / "README.md").read_text().partition("| extra | for |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`\.\[([\w-]+)\]`", table)) == sorted(key.value for key in extras.keys)


def test_commands_are_found_on_the_pages():
    assert "--config" in COMMANDS["launch/train.py"] and "--layer" in COMMANDS["tools/import_weights.py siglip"]
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_options_in_the_pages_exist(root, command, capsys, monkeypatch):
    """Within this process: most of a command's time are its imports."""
    script, *subcommand = command.split()
    monkeypatch.setattr(sys, "argv", [script, *subcommand, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(root / script), run_name="__main__")
    known = set(re.findall(r"--[a-z_]+", capsys.readouterr().out))
    assert "--help" in known
    assert COMMANDS[command] - known - {"--config"} == set()


def test_the_architecture_page_has_the_methods_of_models(root):
    page = (root / "docs/explanation/architecture.md").read_text().partition("| method | called by | gives |")[2]
    listed = set(re.findall(r"^\| `(\w+)\(", page.partition("\n\n")[0], flags=re.MULTILINE))
    source = ast.parse((root / "lapa_jax/models/base.py").read_text())
    classes = [node for node in source.body if isinstance(node, ast.ClassDef) and node.name in ("Part", "Model")]
    assert listed == {node.name for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}


def test_the_architecture_page_has_the_kinds_of_models(root):
    page = (root / "docs/explanation/architecture.md").read_text()
    rows = [tuple(cell.strip(" `") for cell in line.strip("|").split("|"))
            for line in page.partition("| kind |")[2].partition("\n\n")[0].splitlines()[2:]]  # fmt: skip
    yes = {True: "yes", False: ""}
    assert rows == [(kind.name, kind.trained.partition(":")[2], yes[kind.codes is not None],
                     yes[kind.controller is not None], yes[kind.not_served is None], yes[kind.program])
                    for kind in kinds.KINDS.values()]  # fmt: skip
