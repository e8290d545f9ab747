"""What the Markdown files name: paths that exist, modules that can be run, and the layers that are checked."""

import importlib.util
import itertools
import re
import tomllib
from pathlib import Path

import pytest

from spo_jax.core.lookup import module_names
from spo_jax.methods import rules_of
from spo_jax.run.guard.rule import limit
from spo_jax.work.export import page
from tests.support.commands import ROOT

DOCUMENTS = sorted(
    file for pattern in ("*.md", "docs/**/*.md", "launch/*.md", "benchmarks/**/*.md") for file in ROOT.glob(pattern)
)
FOLDERS = "spo_jax|configs|examples|launch|tests|docs|benchmarks"
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)|src=\"([^\"]+)\"")
QUOTED = re.compile(rf"`((?:{FOLDERS})/[^`\s]*)`")
IN_COMMANDS = re.compile(rf"(?:^|[\s=])((?:{FOLDERS})/[\w./-]*\w)", re.MULTILINE)
MODULE = re.compile(r"python -m ((?:spo_jax|benchmarks)[\w.]*)")
WRITTEN = re.compile(r"""(?:--(?:out|data-dir|work-dir)=|out=")([^\s"`]+)""")
DOTTED = re.compile(r"`(spo_jax(?:\.\w+)+)`")
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b")  # such as spo_jax/methods/NAME/


def _missing(document: Path) -> list[str]:
    text = document.read_text(encoding="utf-8")
    links = [one or other for one, other in LINK.findall(text)]
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    blocks = "".join(re.findall(r"```.*?```", text, re.DOTALL))
    for path in [*QUOTED.findall(text), *IN_COMMANDS.findall(blocks)]:
        if not PLACEHOLDER.search(path) and not list(ROOT.glob(path.rstrip("/"))):
            missing.append(path)
    for module in MODULE.findall(text):
        if not PLACEHOLDER.search(module) and importlib.util.find_spec(module) is None:
            missing.append(module)
    return missing + [name for name in DOTTED.findall(text) if not _is_there(name)]


def _is_there(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    file = ROOT / name.replace(".", "/")
    if file.is_dir() or file.with_suffix(".py").is_file():
        return True
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_document_names_exists(document):
    assert _missing(document) == []


def test_a_name_that_does_not_exist_is_found(tmp_path):
    text = "[a](b.md) `spo_jax/nothing.py` `spo_jax/NAME/` `spo_jax.core.errors.UserError` `spo_jax.core.Nothing`\n"
    (tmp_path / "a.md").write_text(text + "```\npython -m spo_jax.nothing --config=configs/nothing.py\n```\n")
    expected = ["b.md", "spo_jax/nothing.py", "configs/nothing.py", "spo_jax.nothing", "spo_jax.core.Nothing"]
    assert _missing(tmp_path / "a.md") == expected


def test_the_layers_in_the_documents_are_those_that_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert "\n".join(layers) in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_folder_of_the_package_is_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.relative_to(ROOT).as_posix() for file in (ROOT / "spo_jax").rglob("__init__.py")}
    assert [folder for folder in sorted(folders) if f"`{folder}/`" not in text] == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *sorted(ROOT.glob("configs/*.py"))], ids=lambda file: file.name)
def test_examples_write_where_git_does_not_look(document):
    """A user who gives the commands as they stand has no new files in `git status`."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")]
    paths = [path for path in WRITTEN.findall(document.read_text(encoding="utf-8")) if not path.startswith(("/", "…"))]
    assert [path for path in paths if not PLACEHOLDER.search(path) and path.split("/")[0] not in ignored] == []


def test_the_list_of_methods_is_whole():
    """Every method is in the sentence that lists them; those with the same rules stand together in the doctor's."""
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    named = re.search(r"field `method` says how to train: (.*?), or the dotted path", text, re.DOTALL)[1]
    names = set(module_names("spo_jax.methods"))
    assert set(re.findall(r"`(\w+)`", named)) == names
    rows = [set(row.lower().split(", ")) for row in re.findall(r"^\| [\w ]+ \(([\w, ]+)\) \|", text, re.MULTILINE)]
    assert set().union(*rows) == names
    for name, other in itertools.combinations(names, 2):
        if rules_of(name) == rules_of(other):
            assert [row for row in rows if (name in row) != (other in row)] == []


def test_the_limits_of_the_guard_are_those_of_its_rule():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sentence = r"\((\S+) standard errors for 25 images and\s+10 looks, (\S+) for 100 looks\)"
    expected = (f"{limit(25, 10):.1f}", f"{limit(25, 100):.1f}")
    assert re.findall(sentence, text) == [expected]
    assert f"such as {expected[0]} for 25 images and 10 looks" in limit.__doc__


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_addresses_of_the_repository_are_that_of_setup():
    """The address is decided in setup.py; cards of published LoRAs and badges have to follow it."""
    address = re.search(r'url="https://github\.com/(.+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))[1]
    assert page.URL == f"https://github.com/{address}"
    badges = re.compile(r"colab\.research\.google\.com/github/([^/]+/[^/]+)/blob")
    found = {name for document in DOCUMENTS for name in badges.findall(document.read_text(encoding="utf-8"))}
    assert found == {address}
