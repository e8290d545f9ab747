"""SPO and LPO for Stable Diffusion 1.5 in PyTorch, diffusers, transformers and peft, computed as their references do.

`benchmarks.against_torch` measures ours against this peer. It is a plain Python loop: the reference is a deep copy of
the UNet, winner and loser are evaluated separately although they share x_t, the judge's text features are recomputed
for every candidate at every step, prompts are encoded for every batch, and every pool is judged at once. Nothing else
is wasted: no gradients where none are needed; torch's own fused attention, AdamW and norm clip; 16-bit weights with a
float32 LoRA under autocast; where nothing is decoded, no decoder. It computes the same as ours: given the same draws
and order, latents, scores and losses agree (tests/benchmarks/test_torch_peer.py). Only the recipes of SD 1.5 are
implemented, in which every pool shares one parent.

Layouts are torch's: latents [b c h w], pools [k b c h w].
"""

import copy
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig
from torch import Tensor, nn

from benchmarks.torch_judges import ImageJudge, LatentJudge
from spo_jax.core.errors import UserError

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclasses.dataclass(frozen=True)
class Draws:
    """All randomness of a rollout.

    Attributes:
      init_latents: x_T [b ...].
      shared: noises [d b ...] of the steps before the first diverted one.
      pool: noises [r k b ...] of the pools.
      choice: the candidates [r-1 b] that continue.
    """

    init_latents: Tensor
    shared: Tensor
    pool: Tensor
    choice: Tensor


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The valid pairs of a rollout.

    Attributes:
      x_t: the parents.
      win: the winners.
      lose: the losers.
      t: timesteps of the transitions.
      states: text states of the prompts.
    """

    x_t: Tensor
    win: Tensor
    lose: Tensor
    t: Tensor
    states: Tensor

    def rows(self, index: Tensor) -> "Pairs":
        """Returns the pairs of these rows."""
        return Pairs(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


class Peer:
    """Models, adapter and optimizer of a run.

    Args:
      folder: folder that `benchmarks.contender.write_models` wrote.
      device: ``cpu`` or ``cuda``.
      checkpointing: whether the policy uses gradient checkpointing.

    Raises:
      UserError: the settings are those of a recipe that is not implemented.
    """

    def __init__(self, folder: Path, device: str, checkpointing: bool = False):
        settings = _read(folder / "settings.json")
        _check_recipe(settings)
        self.spo = SimpleNamespace(**settings["spo"])
        self.max_grad_norm = settings["optimizer"]["max_grad_norm"]
        self.device = device
        self.dtype = getattr(torch, settings["dtype"])

        # The models.
        load = {"torch_dtype": self.dtype, "local_files_only": True}
        self.unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **load)
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=self.dtype, local_files_only=True
        )
        self.judge = (LatentJudge if self.spo.judged == "noisy" else ImageJudge)(folder, self.dtype)
        for module in (self.unet, self.text_encoder, self.judge):
            module.to(device).eval().requires_grad_(False)
        self.reference = copy.deepcopy(self.unet)

        # The adapter and its optimizer.
        self.lora = self._add_lora(folder / "lora.safetensors", **settings["lora"])
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
        optimizer = settings["optimizer"]
        self.optimizer = torch.optim.AdamW(
            self.lora.values(),
            lr=optimizer["learning_rate"],
            betas=(optimizer["adam_beta1"], optimizer["adam_beta2"]),
            eps=optimizer["adam_epsilon"],
            weight_decay=optimizer["weight_decay"],
        )

        # The schedule.
        scheduler = diffusers.DDIMScheduler.from_config(_read(folder / "scheduler" / "scheduler_config.json"))
        scheduler.set_timesteps(self.spo.num_steps)
        self.timesteps = [int(t) for t in scheduler.timesteps]
        self.velocity = scheduler.config.prediction_type == "v_prediction"
        self.alphas = scheduler.alphas_cumprod.to(device)
        self.stride = scheduler.config.num_train_timesteps // self.spo.num_steps

        # The prompts.
        ids = np.load(folder / "ids.npz")
        self.ids, self.empty, self.judge_ids = (
            torch.from_numpy(ids[name]).long().to(device) for name in ("text", "empty", "judge")
        )
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)

    def _add_lora(self, file: Path, rank: int, alpha: float) -> dict[str, nn.Parameter]:
        """Adds the adapter with the weights of a LoRA file; returns its parameters by their names in the file."""
        self.unet.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS))
        halves = {"lora_A.default": "lora.down", "lora_B.default": "lora.up"}
        lora = {
            "unet." + re.sub(r"lora_[AB]\.default", lambda found: halves[found[0]], name): parameter
            for name, parameter in self.unet.named_parameters()
            if parameter.requires_grad
        }
        stored = safetensors.torch.load_file(file)
        if stored.keys() != lora.keys():
            raise ValueError(f"{file} and peft name different weights: {sorted(stored.keys() ^ lora.keys())[:4]}")
        for name, parameter in lora.items():
            # The file has alpha / r in its up weights, and peft multiplies by it.
            weight = stored[name] * (rank / alpha) if ".lora.up." in name else stored[name]
            parameter.data = weight.to(self.device)  # float32; peft would take the dtype of the frozen weights
        return lora

    def draw(self, generator: torch.Generator) -> Draws:
        """Draws the randomness of a rollout."""
        b = len(self.ids)
        k = self.spo.num_candidates
        first = self.spo.divert_start_step
        records = self.spo.num_steps - first

        def normal(*axes: int) -> Tensor:
            return torch.randn((*axes, b, *self.latent_shape), generator=generator, device=self.device)

        choice = torch.randint(0, k, (records - 1, b), generator=generator, device=self.device)
        return Draws(normal(), normal(first), normal(records, k), choice)

    @torch.no_grad()
    def sample(self, draws: Draws) -> tuple[Pairs, Tensor, Tensor]:
        """Rolls the policy out.

        Returns:
          Valid pairs, scores [s k b] and final latents [k b ...].
        """
        states, empty = (self.text_encoder(input_ids=ids).last_hidden_state for ids in (self.ids, self.empty))
        roll = self._sample_noisy if self.spo.judged == "noisy" else self._sample_clean
        found, scores, pool = roll(draws, states, empty)
        pairs = Pairs(*(torch.cat([getattr(p, field.name) for p in found]) for field in dataclasses.fields(Pairs)))
        return pairs, torch.stack(scores), pool

    def _sample_clean(self, draws: Draws, states: Tensor, empty: Tensor) -> tuple[list[Pairs], list[Tensor], Tensor]:
        """Predicts clean latents from every candidate and judges those, as SPO does."""
        k = self.spo.num_candidates
        first = self.spo.divert_start_step
        b = len(states)
        x = draws.init_latents
        found = []
        scores = []
        pool = None
        parent = None
        for i, t in enumerate(self.timesteps):
            copies = 1 if pool is None else k
            x0, mean, std = self._moments(self.unet, x, t, states.repeat(copies, 1, 1), empty)
            if i < first:
                x = mean + std * draws.shared[i]
                continue
            if pool is not None:
                scores.append(self._scores(x0, t))
                found.append(self._pairs(parent, pool, scores[-1], self.timesteps[i - 1], states))
                picked = draws.choice[i - first - 1], torch.arange(b, device=self.device)
                parent = pool[picked]
                mean = mean.view_as(pool)[picked]
            else:
                parent = x
            pool = mean[None] + std * draws.pool[i - first]
            x = pool.flatten(0, 1)
        scores.append(self._scores(x, 0))
        found.append(self._pairs(parent, pool, scores[-1], self.timesteps[-1], states))
        return found, scores, pool

    def _sample_noisy(self, draws: Draws, states: Tensor, empty: Tensor) -> tuple[list[Pairs], list[Tensor], Tensor]:
        """Judges candidates as they are and predicts from the picked one alone, as LPO does."""
        first = self.spo.divert_start_step
        prompts = torch.arange(len(states), device=self.device)
        x = draws.init_latents
        found = []
        scores = []
        for i, t in enumerate(self.timesteps):
            _, mean, std = self._moments(self.unet, x, t, states, empty)
            if i < first:
                x = mean + std * draws.shared[i]
                continue
            pool = mean[None] + std * draws.pool[i - first]
            scores.append(self._scores(pool.flatten(0, 1), t))
            found.append(self._pairs(x, pool, scores[-1], t, states))
            if i + 1 < len(self.timesteps):
                x = pool[draws.choice[i - first], prompts]
        return found, scores, pool

    def _scores(self, latents: Tensor, t: int) -> Tensor:
        """Returns scores [k b] of latents [k·b ...]."""
        prompts = len(self.judge_ids)
        return self.judge(latents, t, self.judge_ids.repeat(len(latents) // prompts, 1)).view(-1, prompts)

    def _pairs(self, parent: Tensor, pool: Tensor, scores: Tensor, t: int, states: Tensor) -> Pairs:
        order = scores.argsort(dim=0, descending=True, stable=True)
        row = torch.arange(len(states), device=self.device)
        win = order[0]
        lose = order[-1]
        valid = torch.tanh((scores[win, row] - scores[lose, row]) / 2) > self._threshold(t)
        kept = torch.full((len(states),), t, device=self.device)
        return Pairs(parent[valid], pool[win, row][valid], pool[lose, row][valid], kept[valid], states[valid])

    def _threshold(self, t: int) -> float:
        """Returns the threshold for pairs of a step: constant, or rising with the standard deviation of its noise."""
        if self.spo.threshold_rule == "constant":
            return self.spo.threshold
        steps = torch.tensor([t, self.timesteps[-1], self.timesteps[0]], device=self.device)
        here, low, high = _step_deviation(self.alphas[steps], self.alphas[(steps - self.stride).clamp(min=0)]).tolist()
        return self.spo.threshold + (self.spo.threshold_high - self.spo.threshold) * (here - low) / (high - low)

    def train(self, pairs: Pairs, order: Tensor) -> list[Tensor]:
        """Takes an optimizer step on every training batch of the pairs in this order; returns the losses."""
        with torch.no_grad():
            empty = self.text_encoder(input_ids=self.empty).last_hidden_state
        losses = []
        for index in order.split(self.spo.train_batch_size):
            loss = self.loss(pairs.rows(index), empty)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.lora.values(), self.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        return losses

    def loss(self, batch: Pairs, empty: Tensor) -> Tensor:
        """Returns the mean of -log σ(β (log r_w - log r_l)).

        Winner and loser each take a pass of policy and reference.
        """
        log_ratios = []
        for member in (batch.win, batch.lose):
            with torch.no_grad():
                reference = self._log_prob(self.reference, batch, member, empty)
            ratio = torch.exp(self._log_prob(self.unet, batch, member, empty) - reference)
            log_ratios.append(torch.log(ratio.clamp(1 - self.spo.eps, 1 + self.spo.eps)))
        return -F.logsigmoid(self.spo.beta * (log_ratios[0] - log_ratios[1])).mean()

    def _log_prob(self, unet: nn.Module, batch: Pairs, member: Tensor, empty: Tensor) -> Tensor:
        _, mean, std = self._moments(unet, batch.x_t, batch.t, batch.states, empty)
        log_prob = -((member - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return log_prob.mean(dim=(1, 2, 3))

    def _moments(
        self, unet: nn.Module, x: Tensor, t: Tensor | int, states: Tensor, empty: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns x0, mean and standard deviation of the step from ``t`` under guidance, in float32."""
        autocast = torch.autocast(self.device, dtype=self.dtype, enabled=self.dtype != torch.float32)
        t = torch.as_tensor(t, device=self.device)
        with autocast:
            both = unet(
                torch.cat([x, x]).to(self.dtype),
                t.expand(len(x)).repeat(2),
                encoder_hidden_states=torch.cat([empty.expand_as(states), states]),
            ).sample.float()
        without, with_text = both.chunk(2)
        prediction = without + self.spo.guidance_scale * (with_text - without)

        def column(values: Tensor) -> Tensor:  # one timestep for all rows, or one for each
            return values.view(-1, 1, 1, 1)

        a_t = column(self.alphas[t])
        a_prev = column(self.alphas[(t - self.stride).clamp(min=0)])
        if self.velocity:
            x0 = a_t.sqrt() * x - (1 - a_t).sqrt() * prediction
            eps = a_t.sqrt() * prediction + (1 - a_t).sqrt() * x
        else:
            x0 = (x - (1 - a_t).sqrt() * prediction) / a_t.sqrt()
            eps = prediction
        std = self.spo.eta * _step_deviation(a_t, a_prev)
        return x0, a_prev.sqrt() * x0 + (1 - a_prev - std**2).sqrt() * eps, std


def _step_deviation(a_t: Tensor, a_prev: Tensor) -> Tensor:
    """Returns the standard deviation of the noise of a step of DDPM."""
    return ((1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev)).sqrt()


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def _check_recipe(settings: Mapping[str, Any]) -> None:
    fixed = {
        ("spo", "num_inner_step"): 0,
        ("spo", "branch_at_last_step"): True,
        ("spo", "next_parent"): "random",
        ("spo", "objective"): "spo",
        ("optimizer", "gradient_accumulation_steps"): 1,
    }
    if settings["spo"].get("threshold_rule", "constant") != "constant":
        fixed |= {("spo", "threshold_rule"): "sigma", ("spo", "num_steps"): 20}  # for which LPO's table was made
    for (group, field), value in fixed.items():
        found = settings[group][field]
        if found != value:
            raise UserError(
                f"--set={group}.{field}={found}: the peer in PyTorch implements only the recipe of SD 1.5: expected "
                f"{value}"
            )
