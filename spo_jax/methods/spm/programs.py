"""The preference model's training step and its scores, closed over the networks and compiled ahead of time.

Everything from pictures to the update is one program: encode, noise, guided prediction, decode, resize, score, loss,
gradients, optimiser. The frozen part is outside of what is differentiated.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Array, Float, Int, Key, Params, UInt8
from spo_jax.diffusion.schedule import Schedule, make_schedule
from spo_jax.methods.common.latents import encode_pairs, model_range
from spo_jax.methods.spm.inputs import Draws, draw, predictions, training_pixels
from spo_jax.methods.spm.loss import PairBatch, pair_scores
from spo_jax.methods.spm.settings import SPMTrainSettings
from spo_jax.methods.spm.update import SPMState, apply_gradients, chunk_size, cut, gradients, joined, state_shardings
from spo_jax.models.stable_diffusion.functions import Conditioning, Guidance, SizeConditions, bind_denoise, decode
from spo_jax.models.stable_diffusion.pipeline import Pipeline, encode_text
from spo_jax.nn.clip import CLIPModel
from spo_jax.parallel.mesh import gathered, replicated, spread
from spo_jax.parallel.multihost import join_parts
from spo_jax.parallel.sharding import place, shapes_of


class Frozen(NamedTuple):
    """The diffusion model's weights and the unconditional input: arguments of the programs, not constants."""

    unet: Params
    vae: Params
    text: tuple[Params, ...]
    unconditional: Conditioning


class Rows(NamedTuple):
    """A batch as it is fed.

    Attributes:
      images: pixels; or what `spo_jax.methods.common.latents.LatentCache` holds of them.
      prompt_ids: tokens for the diffusion model's e text encoders. ids: for the preference model.
      labels: (1, 0), (0, 1), or (½, ½) for a tie. weights: 1 / (number of pairs of that prompt); in any unit.
    """

    images: UInt8[Array | np.ndarray, "n 2 s s 3"] | Float[Array | np.ndarray, "n 2 h w c"]
    prompt_ids: Int[Array | np.ndarray, "n e l"]
    ids: Int[Array | np.ndarray, "n l2"]
    labels: Float[Array | np.ndarray, "n 2"]
    weights: Float[Array | np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The modules and settings that the programs are specialised to."""

    pipeline: Pipeline
    clip: CLIPModel
    settings: SPMTrainSettings
    mesh: Mesh | None = None

    def __post_init__(self):
        side, downscale = self.side, self.pipeline.vae.config.downscale
        if side % downscale:
            raise UserError(f"config field resolution = {side}: expected a multiple of the autoencoder's {downscale}")
        height, width = self.pipeline.image_size
        if height != width and not self.settings.resolution:
            raise UserError(
                f"config field resolution = 0: the model's own {height} x {width} is no square; name a side"
            )

    @property
    def side(self) -> int:
        """Of the pictures, in pixels."""
        return self.settings.resolution or self.pipeline.image_size[0]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of a picture's latents."""
        side = self.side // self.pipeline.vae.config.downscale
        return side, side, self.pipeline.latent_shape[2]

    @property
    def schedule(self) -> Schedule:
        """The diffusion model's noises; how many steps a sampler takes plays no part."""
        return make_schedule(self.pipeline.scheduler, 20)

    @property
    def timesteps(self) -> int:
        """How many there are."""
        return self.pipeline.scheduler.num_train_timesteps

    def check_timesteps(self, timesteps: Sequence[int]) -> None:
        """Raises a `UserError` where the diffusion model has no such timestep."""
        for t in timesteps:
            if t >= self.timesteps:
                raise UserError(f"config field eval.timesteps: {t} is not below the model's {self.timesteps}")

    def frozen(self) -> Frozen:
        """The weights that the programs take."""
        size = SizeConditions.uncropped((self.side, self.side)) if self.pipeline.kind == "sdxl" else None
        row = self.pipeline.encode_unconditional(size)
        row = place(row, replicated(self.mesh)) if self.mesh else jax.device_put(row)
        params = self.pipeline.params
        text = tuple(params[name] for name in ("text_encoder", "text_encoder_2") if name in params)
        return Frozen(params["unet"], params["vae"], text, row)

    def feed(self, rows: Rows) -> Rows:
        """This process's part of a batch, from the host to its devices."""
        return join_parts(rows) if self.mesh else jax.device_put(rows)

    def step(self, state: SPMState, frozen: Frozen, rows: Rows, key: Key) -> tuple[SPMState, dict[str, Array]]:
        """An optimiser step; all that it draws follows from the run's ``key`` and the step's number alone."""
        settings, count = self.settings, len(rows.labels)
        draws = spread(self._draw(jax.random.fold_in(key, state.step), count, settings.timestep_power, settings.flip))
        rows = rows._replace(weights=rows.weights / rows.weights.sum())
        gradient, metrics = gradients(
            self.clip,
            state.params,
            lambda chunk: self.batch(frozen, *chunk),
            cut((rows, draws), self._chunk(count)),
            self.timesteps,
            self._beside_weights,
        )
        state, more = apply_gradients(state, gradient, settings)
        return state, {**metrics, **more}

    def scores(
        self, params: Params, frozen: Frozen, rows: Rows, t: Int[Array, ""], number: Int[Array, ""], key: Key
    ) -> Float[Array, "n 2"]:
        """Scores of pairs noised to ``t`` as in training; what is drawn follows from ``key``, ``number`` and ``t``."""
        count = len(rows.labels)
        draws = self._draw(jax.random.fold_in(jax.random.fold_in(key, number), t), count, power=1.0, flip=False)
        draws = spread(draws._replace(t=jnp.full(count, t, jnp.int32)))
        return self._in_chunks(params, lambda chunk: self.batch(frozen, *chunk), (rows, draws), count)

    def clean_scores(self, params: Params, rows: Rows) -> Float[Array, "n 2"]:
        """Scores of the pictures themselves at t = 0: no autoencoder, no noise."""

        def batch(rows: Rows) -> PairBatch:
            t = jnp.zeros(len(rows.labels), jnp.int32)
            return self._pair_batch(model_range(rows.images), t, rows)

        return self._in_chunks(params, batch, rows, len(rows.labels))

    def batch(self, frozen: Frozen, rows: Rows, draws: Draws) -> PairBatch:
        """Clean predictions of noised pictures, as the preference model sees them."""
        latents = self._latents(frozen, rows.images, draws)
        pipeline, guidance_scale = self.pipeline, self.settings.guidance_scale
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2)[: len(frozen.text)]
        condition = spread(encode_text(encoders, frozen.text, rows.prompt_ids))
        if frozen.unconditional.time_ids is not None:
            time_ids = jnp.broadcast_to(frozen.unconditional.time_ids, (len(rows.labels), 6))
            condition = condition._replace(time_ids=time_ids)
        guidance = Guidance(condition.repeated(2), frozen.unconditional, guidance_scale)
        denoise = bind_denoise(pipeline.unet, frozen.unet, None, guidance)
        images = predictions(
            draws.noise, self.schedule, denoise, lambda x: decode(pipeline.vae, frozen.vae, x), latents, draws.t
        )
        return self._pair_batch(images, draws.t, rows)

    def _latents(self, frozen: Frozen, images: Array, draws: Draws) -> Float[Array, "n 2 h w c"]:
        channels = self.latent_shape[2]
        if images.dtype == jnp.uint8:
            if draws.flip is not None:
                images = jnp.where(draws.flip[:, None, None, None, None], images[:, :, :, ::-1], images)
            mean, logvar = encode_pairs(self.pipeline.vae, frozen.vae, images)
        else:
            mean, logvar = images[..., :channels], images[..., channels:]
        mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
        latents = mean if draws.posterior is None else mean + jnp.exp(0.5 * logvar) * draws.posterior
        return latents * self.pipeline.vae.config.scaling_factor

    def _pair_batch(self, images: Float[Array, "n 2 H W 3"], t: Int[Array, " n"], rows: Rows) -> PairBatch:
        pixels = training_pixels(images.reshape(-1, *images.shape[2:]), self.clip.config.vision.image_size)
        return PairBatch(pixels.reshape(len(t), 2, *pixels.shape[1:]), t, rows.ids, rows.labels, rows.weights)

    def _in_chunks(
        self, params: Params, batch: Callable[[Any], PairBatch], inputs: Any, count: int
    ) -> Float[Array, "n 2"]:
        score = lambda chunk: pair_scores(self.clip, params, batch(chunk))  # noqa: E731
        return gathered(joined(jax.lax.map(score, cut(inputs, self._chunk(count)))))

    def _draw(self, key: Key, count: int, power: float, flip: bool) -> Draws:
        sample = self.settings.posterior == "sample"
        return draw(key, count, self.latent_shape, self.timesteps, power, sample, flip)

    def _chunk(self, count: int) -> int:
        return chunk_size(count, self.settings.chunk, self.mesh.size if self.mesh else 1)

    def _beside_weights(self, gradient: Params) -> Params:
        if self.mesh is None:
            return gradient
        return jax.lax.with_sharding_constraint(gradient, state_shardings(gradient, self.mesh))


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled step; it cannot recompile: another shape is an error.

    Attributes:
      step: (state, frozen, rows, key) to (state, metrics); the state is donated.
      compile_seconds: for it.
    """

    step: Callable[..., tuple[SPMState, dict[str, Array]]]
    compile_seconds: float


def compile_programs(networks: Networks, state: SPMState, frozen: Frozen, rows: Rows) -> Programs:
    """Compiles the training step.

    Args:
      state, frozen, rows: arrays, or shapes with shardings; on a mesh the program expects them where they lie here,
        and the state comes back where it lay.
    """
    start = time.perf_counter()
    compiled = lower(networks, step_arguments(networks, state, frozen, rows)).compile()
    return Programs(compiled, time.perf_counter() - start)


def step_arguments(networks: Networks, state: SPMState, frozen: Frozen, rows: Rows) -> tuple[Any, ...]:
    """The shapes of all that `Networks.step` takes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return *shapes_of((state, frozen, rows)), shapes_of(key, replicated(networks.mesh) if networks.mesh else None)


def lower(networks: Networks, arguments: tuple[Any, ...], keep_unused: bool = False) -> Lowered:
    """The training step for `step_arguments`, not compiled yet; the state is donated and comes back where it lay."""
    mesh, out = networks.mesh, None
    if mesh:
        out = (state_shardings(arguments[0], mesh), replicated(mesh))
    return jax.jit(networks.step, donate_argnums=0, out_shardings=out, keep_unused=keep_unused).lower(*arguments)
