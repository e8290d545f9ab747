"""Groups of settings that methods share: derived numbers, and values that are refused."""

import numpy as np
import pytest

from spo_jax.core.errors import UserError
from spo_jax.methods.common.settings import (
    AdapterSettings,
    EvalSettings,
    LoRASettings,
    ModelSettings,
    OptimizerSettings,
    PromptSettings,
)
from spo_jax.run.settings import LogSettings


@pytest.mark.parametrize(
    ("fields", "prompts", "expected"),
    [
        (dict(prompts_per_batch=8, num_epochs=5), 46, 28),
        (dict(prompts_per_batch=8, num_epochs=1), 8, 1),
        (dict(prompts_per_batch=8, num_epochs=1), 3, 1),  # fewer prompts than a batch holds: they repeat
        (dict(prompts_per_batch=8, num_epochs=5, max_batches=3), 46, 3),
        (dict(prompts_per_batch=8, num_epochs=1, max_batches=3), 8, 1),
    ],
)
def test_total_batches(fields, prompts, expected):
    assert PromptSettings(**fields).total_batches(prompts) == expected


def test_an_alpha_of_zero_means_the_rank():
    assert LoRASettings(8).scale == 1.0
    assert LoRASettings(8, 4.0).scale == 0.5


def test_a_trained_adapter_carries_alpha_and_rank():
    adapter = LoRASettings(8, 4.0).adapter({"to_q": {"lora_A": np.ones((3, 8)), "lora_B": np.zeros((8, 3))}})
    assert (adapter.alpha, adapter.rank) == (4.0, 8)
    assert adapter.tree["to_q"]["lora_A"].shape == (3, 8)


def test_rewards_are_separated_by_commas():
    assert EvalSettings(rewards="toy").reward_names == ("toy",)
    assert EvalSettings(rewards=" spm:folder , my.reward,").reward_names == ("spm:folder", "my.reward")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LoRASettings(0), "lora.rank = 0: expected 1 to "),
        (lambda: LoRASettings(4, -1.0), "lora.alpha = -1.0: expected 0 to "),
        (lambda: LoRASettings(4, float("nan")), "lora.alpha = nan: expected 0 to "),
        (lambda: LogSettings(checkpoint_every=-1), "log.checkpoint_every = -1: expected 0 to "),
        (lambda: LogSettings(eval_every=-1), "log.eval_every = -1: expected 0 to "),
        (lambda: LogSettings(keep_checkpoints=0), "log.keep_checkpoints = 0: expected 1 to "),
        (lambda: LogSettings(keep_every=-1), "log.keep_every = -1: expected 0 to "),
        (lambda: EvalSettings(rewards=" , "), "eval.rewards = ' , ': expected at least one reward, such as 'spm'"),
        (
            lambda: EvalSettings(rewards="toy,spm", weights="1"),
            r"eval.weights = '1': 1 weight for 2 rewards \(toy, spm\)",
        ),
        (lambda: EvalSettings(images=0), "eval.images = 0: expected 1 to "),
        (lambda: EvalSettings(grid_images=0), "eval.grid_images = 0: expected 1 to "),
        (lambda: EvalSettings(batch=0), "eval.batch = 0: expected 1 to "),
        (lambda: EvalSettings(seed=-1), "eval.seed = -1: expected 0 to 4294967295"),
        (lambda: EvalSettings(steps=0), "eval.steps = 0: expected 1 to "),
        (lambda: EvalSettings(guidance_scale=float("nan")), "eval.guidance_scale = nan: expected -1000 to 1000"),
        (lambda: ModelSettings(dtype="float16"), "dtype = 'float16': expected 'float32' or 'bfloat16'"),
        (lambda: PromptSettings(prompts_per_batch=0), "prompts_per_batch = 0: expected 1 to "),
        (lambda: PromptSettings(num_epochs=0), "num_epochs = 0: expected 1 to "),
        (lambda: PromptSettings(max_batches=-1), "max_batches = -1: expected 0 to "),
        (lambda: AdapterSettings(seed=-1), "seed = -1: expected 0 to 4294967295"),
        (lambda: AdapterSettings(seed=2**32), "seed = 4294967296: expected 0 to 4294967295"),
        (lambda: OptimizerSettings(learning_rate=-1e-4), "optimizer.learning_rate = -0.0001: expected more than 0"),
        (lambda: OptimizerSettings(learning_rate=float("inf")), "optimizer.learning_rate = inf: expected more than 0,"),
        (
            lambda: OptimizerSettings(schedule="cosine"),
            "optimizer.schedule = 'cosine': expected 'constant' or 'linear'",
        ),
        (lambda: OptimizerSettings(warmup_steps=-1), "optimizer.warmup_steps = -1: expected 0 to "),
        (lambda: OptimizerSettings(adam_beta1=-0.1), "optimizer.adam_beta1 = -0.1: expected 0 to below 1"),
        (lambda: OptimizerSettings(adam_beta2=1.0), "optimizer.adam_beta2 = 1.0: expected 0 to below 1"),
        (lambda: OptimizerSettings(adam_epsilon=0.0), "optimizer.adam_epsilon = 0.0: expected more than 0, at most "),
        (lambda: OptimizerSettings(weight_decay=-1.0), "optimizer.weight_decay = -1.0: expected 0 to "),
        (
            lambda: OptimizerSettings(max_grad_norm=0.0),
            "optimizer.max_grad_norm = 0.0: expected more than 0 and finite",
        ),
        (
            lambda: OptimizerSettings(gradient_accumulation_steps=0),
            "optimizer.gradient_accumulation_steps = 0: expected 1 to ",
        ),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(UserError, match=f"^config field {message}"):
        build()
