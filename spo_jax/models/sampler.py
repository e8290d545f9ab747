"""Pictures from prompts: one compiled program per sampler."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.trees import take_rows
from spo_jax.core.typing import Array, Float, Params
from spo_jax.diffusion.solvers import solve
from spo_jax.diffusion.steps import SolverSteps, solver_steps
from spo_jax.models.stable_diffusion.functions import Conditioning, Guidance, SizeConditions, bind_denoise, decode
from spo_jax.models.stable_diffusion.pipeline import Pipeline
from spo_jax.parallel.mesh import devices_in_context, gathered, spread


class Sampler:
    """Draws pictures with a deterministic solver; on a mesh, every device its part of them.

    Args:
      steps: sampling steps. guidance: scale w. lora_scale: alpha / r times the strength of the adapter.
      batch: pictures at a time; fewer are padded, so that there is one program. Rounded up to a multiple of the
        devices of the mesh in context.
      solver, karras: see `solver_steps`.
      latent_shape: (h, w, c) of the pictures; None is the model's own.
      size: SDXL's size conditions; None is the pictures' size, uncropped, as in diffusers' pipeline.

    Raises:
      UserError: as `solver_steps`; size conditions for a model without.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        steps: int,
        guidance: float,
        lora_scale: float = 1.0,
        batch: int = 16,
        solver: str = "ddim",
        karras: bool = False,
        latent_shape: tuple[int, int, int] | None = None,
        size: SizeConditions | None = None,
    ):
        self.pipeline, self.batch = pipeline, batch + -batch % devices_in_context()
        self.latent_shape = latent_shape or pipeline.latent_shape
        if size is None and pipeline.kind == "sdxl":
            size = SizeConditions.uncropped(pipeline.pixels(self.latent_shape))
        self._size = size
        self._unconditional = pipeline.encode_unconditional(size)
        table = solver_steps(pipeline.scheduler, solver, steps, karras)
        self._program = jax.jit(functools.partial(_sample, pipeline, table, guidance, lora_scale))

    def __call__(
        self, prompts: Sequence[str], init_latents: Float[np.ndarray, "b h w c"], lora: Params | None = None
    ) -> Float[np.ndarray, "b H W 3"]:
        """Pictures near [-1, 1], not clipped, float32 on the host.

        Args:
          init_latents: noise of unit variance, a row per prompt (see `initial_latents`).
          lora: adapter tree; None is the base model.
        """
        return self.draw(self.pipeline.encode_prompts(prompts, self._size), init_latents, lora)

    def draw(
        self, condition: Conditioning, init_latents: Float[np.ndarray, "b h w c"], lora: Params | None = None
    ) -> Float[np.ndarray, "b H W 3"]:
        """The same from prompts that are encoded already, with the same size conditions."""
        if init_latents.shape[1:] != self.latent_shape:  # they would be drawn, under the conditions of another size
            raise ValueError(f"latents of {init_latents.shape[1:]} for a sampler of {self.latent_shape}")
        count, out = len(init_latents), []
        for start in range(0, count, self.batch):
            rows = np.minimum(np.arange(start, start + self.batch), count - 1)
            arguments = (take_rows(condition, rows), self._unconditional, init_latents[rows])
            images = self._program(self.pipeline.params, lora, *arguments)
            out.append(np.asarray(images)[: count - start])
        return np.concatenate(out)


def _sample(
    pipeline: Pipeline, table: SolverSteps, guidance: float, lora_scale: float, params, lora, condition, unconditional,
    latents,
) -> Float[Array, "b H W 3"]:  # fmt: skip
    condition, latents = spread((condition, latents))
    denoise = bind_denoise(
        pipeline.unet, params["unet"], lora, Guidance(condition, unconditional, guidance), lora_scale
    )
    return gathered(decode(pipeline.vae, params["vae"], solve(denoise, table, latents)).astype(jnp.float32))


def shape_of_latents(pipeline: Pipeline, height: int | None, width: int | None) -> tuple[int, int, int]:
    """(h, w, c) of pictures of that size in pixels; None is the model's own.

    Raises:
      UserError: a side that autoencoder and UNet cannot halve as often as they do.
    """
    pixels, factor = pipeline.vae.config.downscale, 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    shape = list(pipeline.latent_shape)
    for axis, (name, side) in enumerate((("height", height), ("width", width))):
        if side is None:
            continue
        whole, near = pixels * factor, side // (pixels * factor) * (pixels * factor)
        if near != side or side < 1:
            choice = f"{near} or {near + whole}" if near > 0 else str(whole)
            raise UserError(f"--{name}={side}: expected a multiple of {whole}, as the model halves it; try {choice}")
        shape[axis] = side // pixels
    return tuple(shape)


def initial_latents(seed: int, count: int, shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Noise for ``count`` pictures; picture i has the same noise whatever the count is."""
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.arange(count))
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def read_latents(path: str, shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Initial latents from a .npy file, in torch's layout [b c h w] as diffusers' ``latents=`` takes them.

    Raises:
      UserError: no such file, not an array of numbers, another shape than the model's, or numbers not finite.
    """
    try:
        latents = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged header ends in any of a dozen, from BadZipFile to MemoryError
        raise UserError(f"cannot read initial latents from {path}: {error}") from error
    if not isinstance(latents, np.ndarray):  # an .npz file
        raise UserError(f"{path} holds several arrays, expected one (numpy.save)")
    expected = (shape[2], shape[0], shape[1])
    if latents.ndim != 4 or latents.shape[1:] != expected or not np.issubdtype(latents.dtype, np.floating):
        raise UserError(f"{path}: {latents.dtype}{list(latents.shape)}, expected floats [b, {expected} as c, h, w]")
    latents = np.moveaxis(latents, 1, -1).astype(np.float32)
    if not np.isfinite(latents).all():
        raise UserError(f"{path}: holds numbers that are not finite, expected noise of unit variance")
    return latents
