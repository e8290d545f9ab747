"""What a run's settings offer if memory is short: only fields that the method has and that can still be changed."""

import dataclasses

import pytest

from spo_jax.methods import load_method
from spo_jax.parallel.settings import MeshSettings
from spo_jax.run.memory import memory_advice


@pytest.mark.parametrize(
    ("method", "has", "has_not"),
    [
        (
            "spo",
            [
                "spo.decode_chunk (now as suits the platform)",
                "spo.train_chunk (now 10)",
                "prompts_per_batch (now 10)",
            ],
            [" chunk"],
        ),
        ("spm", ["chunk (now 16)", "batch_size (now 64)"], ["spo.", "prompts_per_batch"]),
        ("finetune", ["chunk (now 8)", "batch_size (now 8)", "eval.batch (now 25)"], ["spo."]),
    ],
)
def test_a_method_offers_its_own_fields(method, has, has_not):
    advice = memory_advice(load_method(method).Settings(), 8)
    for text in [*has, "remat = True", "dtype = bfloat16", "raise mesh.fsdp (now 1)"]:
        assert text in advice
    for text in has_not:
        assert text not in advice


def test_what_is_changed_already_is_not_offered():
    settings = load_method("finetune").Settings()
    changed = dataclasses.replace(
        settings, remat=True, dtype="bfloat16", chunk=1, mesh=MeshSettings(fsdp=2),
        eval=dataclasses.replace(settings.eval, batch=1),
    )  # fmt: skip
    assert memory_advice(changed, 2) == "in the config, make smaller batches with batch_size (now 8)"
    alone = dataclasses.replace(changed, batch_size=1)
    assert "use a machine with more" in memory_advice(alone, 2)
