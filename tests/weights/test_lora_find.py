"""LoRA files are found where users name them, and what is no LoRA is named for what it is."""

from pathlib import Path
from typing import Any

import pytest

from spo_jax.core.errors import UserError
from spo_jax.weights import store
from spo_jax.weights.lora import find
from spo_jax.weights.lora.find import find_lora
from tests.weights.loras import PAIR


@pytest.mark.parametrize(
    "names", [["a"], ["a", "adapter_model"], ["adapter_model", "lora"], ["lora", "pytorch_lora_weights", "a"]]
)
def test_a_folder_or_a_run_is_searched_for_its_lora(tmp_path: Path, names: list[str]) -> None:
    """The last file is that of diffusers, if there is one, or else that of a run, or else PEFT's."""
    for name in names:
        store.write_state(tmp_path / f"{name}.safetensors", PAIR)
    expected = max(names, key=["a", "adapter_model", "lora", "pytorch_lora_weights"].index)
    assert find_lora(tmp_path) == tmp_path / f"{expected}.safetensors"
    assert find_lora(tmp_path / "a.safetensors" if "a" in names else tmp_path).is_file()


def test_a_folder_without_one_lora_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected pytorch_lora_weights.safetensors, found no safetensors file; name"):
        find_lora(tmp_path)
    for name in ("a", "b"):
        store.write_state(tmp_path / f"{name}.safetensors", PAIR)
    with pytest.raises(UserError, match=r"found a.safetensors, b.safetensors; name the LoRA file itself"):
        find_lora(tmp_path)


def test_a_whole_model_and_a_run_without_lora_are_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"model is a whole model \(a pipeline's folder\), not a LoRA: name it with --mod"
    ):
        find_lora(tmp_path / "model")
    (tmp_path / "run" / "checkpoints" / "4").mkdir(parents=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    for folder in (tmp_path / "run", checkpoints / "4", checkpoints / "best"):
        with pytest.raises(UserError, match=f"{folder} has no lora.safetensors: .* spo_jax.export --run={folder} "):
            find_lora(folder)


def test_what_a_run_without_a_lora_is_decides_about_the_advice(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=r"my run is a run without a checkpoint; lora.safetensors is written with the"):
        find_lora(run)
    (run / "checkpoints" / "4").mkdir()
    with pytest.raises(UserError, match=r"spo_jax.export --run='\S+my run' --out=exports/lora.safetensors$"):
        find_lora(run)
    (run / "spm").mkdir()
    with pytest.raises(UserError, match=r"trained a preference model: use it as --config.spm.model=\S+my run/spm$"):
        find_lora(run)


@pytest.mark.parametrize(
    "name",
    ["absent.safetensors", "./x/y", "/x/y", "runs/absent", "runs/a/lora.safetensors", "absent/lora.safetensors", "~/x"],
)
def test_a_path_with_a_slip_is_not_looked_up_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find.hub, "resolve", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=f"^no such file or folder: {name} .a LoRA on the hub is owner/name or owner/"):
        find_lora(name)


def _repository(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> list[Any]:
    """Simulates a repository on the hub; returns the list of what is fetched."""
    fetched: list[Any] = []

    def resolve(repo: str, select: Any, kept: Any) -> Path:
        fetched.append((repo, select(names)))
        for name in fetched[-1][1]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)
        return folder

    monkeypatch.setattr(find.hub, "resolve", resolve)
    return fetched


def test_only_the_lora_of_a_repository_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("README.md", "model.bin", "adapter_config.json", "pytorch_lora_weights.safetensors", "b.safetensors")
    fetched = _repository(monkeypatch, tmp_path, *names, "sub/c.safetensors", "sub/adapter_config.json")
    assert find_lora("acme/lora") == tmp_path / "pytorch_lora_weights.safetensors"
    assert find_lora("acme/lora/b.safetensors") == tmp_path / "b.safetensors"
    assert find_lora("acme/lora/sub/c.safetensors") == tmp_path / "sub" / "c.safetensors"
    assert find_lora("acme/lora/sub") == tmp_path / "sub" / "c.safetensors"
    assert fetched == [
        ("acme/lora", ["pytorch_lora_weights.safetensors", "adapter_config.json"]),
        ("acme/lora", ["b.safetensors", "adapter_config.json"]),
        ("acme/lora", ["sub/c.safetensors", "sub/adapter_config.json"]),
        ("acme/lora", ["sub/c.safetensors", "sub/adapter_config.json"]),
    ]


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        (
            "acme/x",
            ["a.safetensors", "b.safetensors"],
            "expected one LoRA, found a.safetensors, b.safetensors; name its",
        ),
        ("acme/x", ["README.md"], "expected one LoRA, found no weights; name its file: acme/x/FILE.safetensors"),
        (
            "acme/x",
            ["model_index.json", "a.safetensors"],
            "acme/x on the hub is a whole model, not a LoRA: name it with",
        ),
        (
            "acme/x/sub",
            ["sub/a.safetensors", "sub/b.safetensors"],
            "expected one LoRA in sub, found sub/a.safetensors, ",
        ),
        ("acme/x/sub", ["a.safetensors"], "acme/x on the hub: expected one LoRA in sub, found a.safetensors; name its"),
        ("acme/x/sub", ["sub/model_index.json"], "acme/x/sub on the hub is a whole model, not a LoRA"),
        ("acme/x/c.ckpt", ["a.safetensors"], "acme/x on the hub has no c.ckpt: found a.safetensors"),
        ("acme/x/c.safetensors", ["a.safetensors"], "acme/x on the hub has no c.safetensors: found a.safetensors"),
    ],
)
def test_a_repository_without_one_lora_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, names: list[str], message: str
) -> None:
    _repository(monkeypatch, tmp_path, *names)
    with pytest.raises(UserError, match=message):
        find_lora(source)
