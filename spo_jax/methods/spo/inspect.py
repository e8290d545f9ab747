"""One rollout of SPO opened up, for people who want to see what the method sees.

Everything here is computed by the functions that training runs; they only return more than a batch needs.
"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.drawing_limits import check_limits, check_prompt
from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Array, Bool, Float, Int, Params
from spo_jax.methods.common.decoding import images_at_a_time
from spo_jax.methods.common.judge import Judge
from spo_jax.methods.common.model import open_model
from spo_jax.methods.spo.checks import check
from spo_jax.methods.spo.judging import JudgedRollout
from spo_jax.methods.spo.pairs import certainty
from spo_jax.methods.spo.plan import Plan, make_plan
from spo_jax.methods.spo.programs import SPO, open_rollout_judge
from spo_jax.methods.spo.resampler import Draws
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
from spo_jax.methods.spo.thresholds import threshold_at
from spo_jax.models.base import Decoder, Pipeline
from spo_jax.models.lora import read_lora
from spo_jax.nn.lora import init_lora, scaled
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.compiling import device_jit
from spo_jax.run.settings import check_settings
from spo_jax.weights.lora import find_lora


@dataclasses.dataclass(frozen=True)
class RolloutView:
    """The s judged pools of a rollout, each with k candidates for each of b prompts; everything is on the host.

    Attributes:
      prompts: the prompts.
      timesteps: timestep of each judgement, descending; the last judges finished images, at 0. Noisy candidates are
        judged at the timestep of the step that drew them.
      images: what is judged: the clean images that the network predicts for each candidate at this timestep, as the
        judge's decoder shows them; float32 near [-1, 1], not clipped. With ``spo.judged = "noisy"`` they are the
        candidates themselves, decoded with their noise.
      scores: the judge's scores.
      win: candidate with the highest score.
      lose: candidate with the lowest score.
      certainty: difference of the two probabilities in the softmax over the winner's and the loser's score.
      valid: whether a pair is made of the two: their certainty is above the threshold.
      chosen: candidate that the rollout continues from, drawn at random unless ``spo.next_parent`` is the best; no one
        continues from the last pool, and all candidates (-1) from any if ``spo.shared_parent`` is False.
      threshold: what the certainty has to exceed: ``spo.threshold``, or one number for each judgement.
      shares_parent: whether the candidates of a pool are children of one parent, and differ by one step's noise only.
    """

    prompts: tuple[str, ...]
    timesteps: Int[np.ndarray, " s"]
    images: Float[np.ndarray, "s k b H W 3"]
    scores: Float[np.ndarray, "s k b"]
    win: Int[np.ndarray, "s b"]
    lose: Int[np.ndarray, "s b"]
    certainty: Float[np.ndarray, "s b"]
    valid: Bool[np.ndarray, "s b"]
    chosen: Int[np.ndarray, "s-1 b"]
    threshold: float | Float[np.ndarray, " s"]
    shares_parent: bool


def inspect_rollout(
    settings: SPOTrainSettings, prompts: Sequence[str], *, seed: int = 0, lora: str | os.PathLike = ""
) -> RolloutView:
    """Runs one rollout on the first device and returns its pools, scores, pairs and choices.

    Args:
      settings: settings of SPO; of its fields, those of the model, the judge and the group ``spo`` matter here.
      prompts: one per trajectory; a prompt that is given twice has two independent trajectories.
      seed: seed of all randomness of the rollout, which is not that of a run's batches.
      lora: the policy, as ``sample --lora`` takes it; empty for a fresh adapter, which is the base model.

    Raises:
      UserError: the settings are not of SPO, there is no prompt, the seed is out of range, or model, judge or LoRA
        cannot be used.
    """
    check_settings(settings, SPOTrainSettings, "configs/toy.py")
    if isinstance(prompts, str) or not prompts:
        raise UserError("expected a list of prompts with at least one in it")
    for prompt in prompts:
        check_prompt(prompt)
    check_limits(seed=seed)
    check(settings)
    file = find_lora(lora) if os.fspath(lora) else None
    pipeline = open_model(settings, None, trained=False)
    judge = open_rollout_judge(settings, pipeline)
    adapter = open_adapter(settings, pipeline, file)
    return _roll(SPO(settings, pipeline, judge), adapter, tuple(prompts), seed)


def open_adapter(settings: SPOTrainSettings, pipeline: Pipeline, file: os.PathLike | None) -> Params:
    """Returns the adapter of a LoRA file with the scale of the settings, or a fresh one.

    Raises:
      UserError: the file is not a LoRA of this model.
    """
    network = pipeline.params[pipeline.TRAINED]
    if file is None:
        return init_lora(jax.random.key(0), network, settings.lora.rank)
    lora = read_lora(file, network)
    return scaled(jax.tree.map(jnp.asarray, lora.tree), lora.alpha / lora.rank / settings.lora.scale)


def _roll(spo: SPO, adapter: Params, prompts: tuple[str, ...], seed: int) -> RolloutView:
    """Runs the rollout, and makes the view of it."""
    inputs = spo.feed(spo.features(prompts))
    settings = spo.settings.spo
    with stage("rolling out, and judging"):
        key = jax.random.key(seed)
        judged, draws = device_jit(spo.judged_rollout)(adapter, spo.frozen(), inputs, key)
        images = _decoded(spo.judge, spo.pipeline, judged.trajectory.judged, settings.decode_chunk)
    return view(settings, prompts, judged, draws, images)


def view(
    settings: SPOSettings,
    prompts: tuple[str, ...],
    judged: JudgedRollout,
    draws: Draws,
    images: Float[np.ndarray, "s k b H W 3"],
) -> RolloutView:
    """Makes the view of a rollout that was judged.

    Args:
      settings: settings of SPO.
      prompts: the prompts.
      judged: the rollout, and what the judge says of it.
      draws: its randomness.
      images: what was judged, decoded.
    """
    plan = make_plan(settings)
    trajectory, scores, verdict, _ = jax.device_get(judged)
    return RolloutView(
        prompts=prompts,
        timesteps=trajectory.judged_timesteps,
        images=images,
        scores=scores,
        win=verdict.win,
        lose=verdict.lose,
        certainty=np.asarray(certainty(scores.max(1), scores.min(1))),
        valid=verdict.valid,
        chosen=_chosen(settings, plan, draws, verdict.win),
        threshold=threshold_at(settings, trajectory.judged_timesteps),
        shares_parent=plan.shares_parent,
    )


def _chosen(settings: SPOSettings, plan: Plan, draws: Draws, win: Int[np.ndarray, "s b"]) -> Int[np.ndarray, "s-1 b"]:
    if not settings.shared_parent:
        return np.full_like(win[:-1], -1)
    # Where a step branches, it has just evaluated a judged pool.
    return win[:-1] if settings.next_parent == "best" else np.asarray(draws.choice)[plan.branches]


def _decoded(
    judge: Judge, pipeline: Pipeline, latents: Float[Array, "s k b h w c"], chunk: int
) -> Float[np.ndarray, "s k b H W 3"]:
    """Decodes latents as the judge does, or by the model's autoencoder for a judge that reads latents."""
    decoder = judge.decoder or Decoder(pipeline.params["vae"], pipeline.decode)
    decode = device_jit(decoder.apply)
    flat = latents.reshape(-1, *latents.shape[3:])
    chunk = images_at_a_time(chunk, latents.shape)
    images = in_chunks(lambda rows: decode(decoder.params, flat[rows]), np.arange(len(flat)), chunk)
    return images.astype(np.float32).reshape(*latents.shape[:3], *images.shape[1:])
