"""SPO's two steps closed over the networks, and compiled ahead of time."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Float, Key, Params
from spo_jax.diffusion.schedule import Schedule, make_schedule
from spo_jax.methods.spo.pairs import Pairs
from spo_jax.methods.spo.resampler import draw
from spo_jax.methods.spo.settings import SPOSettings
from spo_jax.methods.spo.update import TrainState, collect, update
from spo_jax.models.stable_diffusion.functions import Conditioning, Guidance, bind_denoise, decode, denoise
from spo_jax.models.stable_diffusion.pipeline import TEXT_CHUNK, Pipeline, load_tiny_vae
from spo_jax.nn.lora import merge
from spo_jax.nn.tiny_vae import AutoencoderTiny
from spo_jax.nn.vae import AutoencoderKL
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered, over_batch, platform_in_context, replicated
from spo_jax.parallel.sharding import place, shapes_of
from spo_jax.rewards.common.clip_score import score_images, text_features
from spo_jax.rewards.common.preference_model import SPM


class Frozen(NamedTuple):
    """All weights that do not train, and the unconditional input: arguments of the programs, not constants."""

    unet: Params
    decoder: Params
    spm: Params
    unconditional: Conditioning


class Inputs(NamedTuple):
    """What is known of the prompts, computed once for all of them and kept on the host; a batch is some of the rows.

    Attributes:
      condition: the pipeline's text states. text: the preference model's unit text features.
    """

    condition: Conditioning
    text: Float[Array | np.ndarray, "b p"]


@dataclasses.dataclass(frozen=True)
class Programs:
    """The two compiled programs of a run; they cannot recompile: another shape is an error.

    Attributes:
      collect: (lora, frozen, inputs, key) to (pairs, metrics).
      update: (state, frozen, inputs, pairs, key) to (state, metrics); the state is donated.
      feed: a batch's rows of the inputs from the host to where the programs want them.
      compile_seconds: for both.
    """

    collect: Callable[..., tuple[Pairs, dict[str, Array]]]
    update: Callable[..., tuple[TrainState, dict[str, Array]]]
    feed: Callable[[Inputs], Inputs]
    compile_seconds: float


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules and settings that the programs are specialised to; hashable by identity."""

    pipeline: Pipeline
    spm: SPM
    decoder: AutoencoderKL | AutoencoderTiny
    decoder_params: Params
    schedule: Schedule
    settings: SPOSettings
    lora_scale: float
    mesh: Mesh | None = None

    @classmethod
    def build(
        cls, pipeline: Pipeline, spm: SPM, settings: SPOSettings, lora_scale: float, mesh: Mesh | None = None
    ) -> "Networks":
        """Reads the distilled decoder if one is asked for; ``mesh`` is where the weights of the others lie.

        Raises:
          UserError: the decoder cannot be read or is for other latents, or the pipeline's schedule has a step without
            likelihood.
        """
        decoder, params = pipeline.vae, pipeline.params["vae"]
        if settings.decoder != "vae":
            decoder, params = load_tiny_vae(settings.decoder, dtype=pipeline.unet.dtype, mesh=mesh)
        wanted, found = pipeline.unet.config.in_channels, decoder.config.latent_channels
        if wanted != found:
            where = f"config field spo.decoder = {settings.decoder!r}"
            raise UserError(f"{where}: decodes latents of {found} channels, but the UNet makes {wanted}")
        schedule = make_schedule(pipeline.scheduler, settings.num_steps)
        if schedule.timesteps[-1] <= 0:  # from t = 0 to t = 0: a standard deviation of 0, and everything turns NaN
            file = (pipeline.base or pipeline.folder) / "scheduler" / "scheduler_config.json"
            expected = "expected 'leading' spacing with steps_offset 1, or 'trailing'"
            raise UserError(f"{file}: the last sampling step is at t = 0 and has no likelihood; {expected}")
        return cls(pipeline, spm, decoder, params, schedule, settings, lora_scale, mesh)

    def frozen(self) -> Frozen:
        """The weights that the programs take."""
        row = self.pipeline.encode_unconditional()
        unconditional = place(row, replicated(self.mesh)) if self.mesh else jax.device_put(row)
        return Frozen(self.pipeline.params["unet"], self.decoder_params, self.spm.params, unconditional)

    def inputs(self, prompts: Sequence[str]) -> Inputs:
        """Encodes all prompts for both models, once."""
        encode = jax.jit(lambda params, ids: gathered(text_features(self.spm.clip, params, ids)))
        text = in_chunks(functools.partial(encode, self.spm.params), self.spm.tokenizer(prompts), TEXT_CHUNK)
        return Inputs(self.pipeline.encode_prompts(prompts), text)

    def feed(self, rows: Inputs) -> Inputs:
        """A batch's rows from the host to the devices, every prompt to the one that it is the work of."""
        return place(rows, over_batch(self.mesh)) if self.mesh else jax.device_put(rows)

    def collect(self, lora: Params, frozen: Frozen, inputs: Inputs, key: Key) -> tuple[Pairs, dict[str, Array]]:
        """A rollout of the policy and its pairs (see `spo_jax.methods.spo.update.collect`)."""
        settings = self.settings
        guidance = Guidance(inputs.condition, frozen.unconditional, settings.guidance_scale)
        unet, lora = self._policy(frozen.unet, lora)
        policy = bind_denoise(self.pipeline.unet, unet, lora, guidance, self.lora_scale)

        def score(latents, t, row):
            images = decode(self.decoder, frozen.decoder, latents)
            return score_images(self.spm.clip, frozen.spm, images, t, inputs.text[row])

        draws = draw(key, settings, len(inputs.text), self.pipeline.latent_shape)
        return collect(policy, score, settings, self.schedule, draws, settings.threshold, settings.decode_chunk)

    def _policy(self, unet: Params, lora: Params) -> tuple[Params, Params | None]:
        """Weights of a policy that stays as it is for a while: in one piece, where that costs no digits.

        Added to 16-bit weights the adapter's small steps would be lost; accelerators multiply float32 weights in
        fewer bits as well.
        """
        if self.pipeline.unet.dtype != jnp.float32 or platform_in_context() != "cpu":
            return unet, lora
        return merge(unet, lora, self.lora_scale), None

    def update(
        self, state: TrainState, frozen: Frozen, inputs: Inputs, pairs: Pairs, key: Key
    ) -> tuple[TrainState, dict[str, Array]]:
        """The training batches of a rollout's pairs (see `spo_jax.methods.spo.update.update`)."""

        condition = gathered(inputs.condition)  # small, and any pair may be trained on by any device

        def predict(lora, x, t, row):
            guidance = Guidance(take_rows(condition, row), frozen.unconditional, self.settings.guidance_scale)
            return denoise(self.pipeline.unet, frozen.unet, lora, guidance, x, t, self.lora_scale)

        return update(state, predict, self.schedule, self.settings, pairs, key)


def compile_programs(networks: Networks, state: TrainState, frozen: Frozen, inputs: Inputs) -> Programs:
    """Compiles both programs.

    Args:
      state, frozen: arrays, or shapes with shardings; on a mesh the programs expect both where they lie here.
      inputs: a batch of prompts, anywhere; the programs expect what `Networks.feed` makes of it.
    """
    start, mesh = time.perf_counter(), networks.mesh
    key, everywhere = jax.random.key(0), None
    if mesh:
        everywhere = replicated(mesh)
        key, inputs = shapes_of(key, everywhere), shapes_of(inputs, over_batch(mesh))
    state, frozen, inputs, key = shapes_of((state, frozen, inputs, key))
    # What comes back (pairs, metrics, the state) is whole on every device.
    collect_program = jax.jit(networks.collect, out_shardings=everywhere).lower(state.lora, frozen, inputs, key)
    pairs = shapes_of(collect_program.out_info[0], everywhere)
    update_program = jax.jit(networks.update, donate_argnums=0, out_shardings=everywhere).lower(
        state, frozen, inputs, pairs, key
    )
    compiled = collect_program.compile(), update_program.compile()
    return Programs(*compiled, networks.feed, time.perf_counter() - start)
