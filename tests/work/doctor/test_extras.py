"""What is installed for which feature, and how what is missing is installed."""

import re

from spo_jax.work.doctor import extras
from tests.support.commands import ROOT


def test_extras_are_those_of_setup_py():
    """What developers install is not listed."""
    text = (ROOT / "setup.py").read_text()
    scope: dict = {}
    exec(text[text.index("BASE = [") : text.index("# train_spm is")], scope)
    named = {name for name, extra in extras.EXTRAS.items() if not extra.is_package}
    assert named == scope["EXTRAS"].keys() - {"docs", "test", "dev"}
    for name in named - {"gpu", "tpu"}:
        packages = {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in scope["EXTRAS"][name]}
        assert packages == set(extras.EXTRAS[name].modules)


def test_what_is_missing_is_named_with_its_line(monkeypatch):
    monkeypatch.setattr(extras, "has_module", lambda name: name in ("grain", "jax_cuda13_plugin"))
    assert extras.EXTRAS["data"].missing == ["array_record", "importlib_resources", "pyarrow", "tensorflow_datasets"]
    assert extras.EXTRAS["gpu"].missing == []  # one of the two plugins suffices
    assert extras.pip_line("tensorboard") == "pip install tensorboard"
    monkeypatch.chdir(ROOT)
    assert extras.pip_line("data") == 'pip install -e ".[data]"'
    monkeypatch.chdir("/")
    assert extras.pip_line("data") == f'pip install -e "{ROOT}[data]"'


def test_requirements_that_are_not_met(monkeypatch):
    wanted = ["numpy>=99", "absent>=1", "jax>=0.1", 'torch>=99; extra == "interop"']
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda name: wanted)
    first, second = extras.unmet()
    assert first.startswith("numpy>=99 is required, and ") and second == "absent>=1 is not installed"
