"""The site of the documents: its links, and what its pages of the Python face name. ``launch/test.sh`` builds it."""

import json
import logging
import re
import subprocess
import sys

import pytest

import spo_jax
from tests.support.commands import ROOT

MKDOCS = f"""
site_name: small
hooks: [{ROOT / "docs/site/hooks.py"}]
theme: {{name: null, custom_dir: theme}}
plugins: []
validation: {{anchors: warn}}
"""
README = """# Home

[data](docs/data.md#pairs) [code](code/a.py) [folder](code) [far](https://example.com/a.md) <img src="docs/a.png">
[![badge](https://example.com/a.svg)](https://example.com/a)

```
[kept](code/a.py)
```
"""
DATA = "# Data\n\n[home](../README.md) [code](../code/a.py#L3) [own](#pairs)\n\n## Pairs\n"


@pytest.fixture
def build(tmp_path):
    """Builds a small repository with the hooks of the site; returns its two pages and the warnings."""
    mkdocs = pytest.importorskip("mkdocs.commands.build")
    from mkdocs.config import load_config

    def build(readme: str, data: str) -> tuple[str, str, list[str]]:
        files = {
            "README.md": readme,
            "docs/data.md": data,
            "docs/a.png": "",
            "code/a.py": "",
            "setup.py": 'url="https://github.com/owner/name",',
            "mkdocs.yml": MKDOCS,
            "theme/main.html": "{{ page.content }}",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        warnings: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: warnings.append(record.getMessage())
        logging.getLogger("mkdocs").addHandler(handler)
        try:
            config = load_config(str(tmp_path / "mkdocs.yml"))
            config.plugins.on_startup(command="build", dirty=False)
            mkdocs.build(config)
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
        home, page = (tmp_path / "site" / name for name in ("index.html", "data/index.html"))
        return home.read_text(), page.read_text(), warnings

    return build


def test_links_work_on_the_site_as_in_the_repository(build):
    home, data, warnings = build(README, DATA)
    assert warnings == []
    code = "https://github.com/owner/name/blob/main/code/a.py"
    folder = "https://github.com/owner/name/tree/main/code"
    expected = ["data/#pairs", code, folder, "https://example.com/a.md", "a.png", "https://example.com/a"]
    assert re.findall(r'(?:href|src)="([^"]+)"', home) == expected
    assert "[kept](code/a.py)" in home
    assert re.findall(r'href="([^"]+)"', data) == ["../", f"{code}#L3", "#pairs"]


@pytest.mark.parametrize(
    "link", ["[a](nowhere.md)", "[a](../code/b.py)", "[a](../README.md#nowhere)", "[a](#nowhere)", '<img src="b.png">']
)
def test_a_link_that_leads_nowhere_is_a_warning(build, link):
    _, _, warnings = build(README, f"{DATA}\n{link}\n")
    assert len(warnings) == 1, warnings


def test_every_public_name_has_a_place_in_the_api_pages():
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: \S+\n    options: \{heading: spo_jax\.(\w+),", text, re.MULTILINE)
    assert sorted(named) == sorted(set(spo_jax.__all__) - {"__version__"})


def test_the_figures_of_the_guide_are_drawn_from_the_curves_of_runs(tmp_path):
    """Of a run that has only begun as well, in which no pair was valid and nothing was evaluated."""
    row = {"judge_score/t0001": 3.0, "judge_score/t0000": 4.0, "valid_share_at/t0001": 0.5, "clip_fraction/win": 0.0}
    rows = [{"step": 0, "eval_aesthetic": 0.3}, *({"step": step} | row for step in range(1, 8))]
    begun = [{"step": 1, "spm_score/t0000": 4.0, "valid_share_at/t0001": 0.0}]
    names = ["lr_too_high", "weak_judge", "threshold_too_high", "too_long"]
    for name in ["healthy", *names]:
        (tmp_path / name).mkdir()
        lines = [json.dumps(row) for row in (begun if name == "too_long" else rows)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(lines))
    script = [sys.executable, ROOT / "docs/site/curves.py", f"--runs={tmp_path}", f"--out={tmp_path}"]
    subprocess.run(script, check=True, capture_output=True)
    absent = subprocess.run([*script, f"--runs={tmp_path}/absent"], capture_output=True, text=True)
    assert absent.returncode == 2 and len(absent.stderr.splitlines()) == 1
    assert re.search(
        r"^error: .*/absent lacks the curves of healthy, lr_too_high, .*: docs/guide.md has", absent.stderr
    )
    for name in names:
        assert "share of valid pairs" in (tmp_path / f"curves_{name}.svg").read_text()
        assert f"(images/curves_{name}.svg)" in (ROOT / "docs/guide.md").read_text(encoding="utf-8")
