"""Images from prompts: one compiled program per sampler."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.errors import UserError
from spo_jax.core.progress import bar
from spo_jax.core.rows import take_rows
from spo_jax.core.typing import Array, Float, Int, Params, PyTree
from spo_jax.core.words import counted
from spo_jax.diffusion.solvers import solve
from spo_jax.diffusion.steps import SolverSteps
from spo_jax.models.base import TEXT_CHUNK, Guidance, Pipeline, bind_denoise
from spo_jax.parallel.compiling import device_jit
from spo_jax.parallel.mesh import devices_in_context, gathered, spread

# Numbers of images.
Rows = Int[np.ndarray, " b"]


class Sampler:
    """Draws images with a deterministic solver; on a mesh, each device draws its share of them.

    Args:
      pipeline: the model.
      steps: number of sampling steps.
      guidance: guidance scale w.
      lora_scale: alpha / r times the strength of the adapter.
      batch: number of images drawn at a time, rounded up to a multiple of the devices of the mesh in context; a smaller
        last batch is padded, so that there is one program.
      solver: one of `spo_jax.diffusion.SOLVERS`.
      karras: whether to use Karras' noise levels.
      latent_shape: shape (h, w, c) of the latents; None is the model's own.
      prompt_options: keyword arguments of the pipeline's text encoding; None is its default for ``latent_shape``.

    Raises:
      UserError: as `spo_jax.diffusion.steps.solver_steps`; options that the model does not take.
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
        prompt_options: Mapping[str, Any] | None = None,
    ):
        self.pipeline = pipeline
        self.batch = batch + -batch % devices_in_context()
        self.latent_shape = latent_shape or pipeline.latent_shape
        if prompt_options is None:
            prompt_options = pipeline.prompt_options(self.latent_shape)
        self._options = prompt_options
        self._unconditional = pipeline.encode_unconditional(**prompt_options)
        self._guidance = guidance
        table = pipeline.solver_steps(solver, steps, karras)
        program = functools.partial(_sample, pipeline, table, lora_scale)
        self._program = device_jit(program)

    def __call__(
        self, prompts: Sequence[str], init_latents: Float[np.ndarray, "b h w c"], lora: Params | None = None
    ) -> Float[np.ndarray, "b H W 3"]:
        """Draws images near [-1, 1], which are not clipped, as float32 on the host.

        Args:
          prompts: one per image.
          init_latents: noise of unit variance, one row per prompt (see `initial_latents`).
          lora: tree of the adapter; None draws with the base model.
        """
        return self.draw(self.pipeline.encode_prompts(prompts, **self._options), init_latents, lora)

    def draw(
        self,
        condition: PyTree,
        init_latents: Float[np.ndarray, "b h w c"],
        lora: Params | None = None,
        title: str = "",
    ) -> Float[np.ndarray, "b H W 3"]:
        """Draws images as `__call__` from prompts that are already encoded with the sampler's options.

        A progress bar is shown if it is given a title.
        """
        if init_latents.shape[1:] != self.latent_shape:  # Images would be drawn, but with conditions of another size.
            raise ValueError(f"latents of {init_latents.shape[1:]} for a sampler of {self.latent_shape}")
        count = len(init_latents)
        drawn = []
        with bar(title, count, "image") if title else contextlib.nullcontext() as shown:
            for rows in self._batches(count):
                drawn.append(self._draw_rows(take_rows(condition, rows), init_latents[rows], lora))
                if shown is not None:
                    shown.update(min(self.batch, count - shown.n))
        return np.concatenate(drawn)[:count]

    def stream(
        self,
        prompts: Sequence[str],
        latents: Callable[[Rows], Float[np.ndarray, "b h w c"]],
        lora: Params | None = None,
        *,
        rows: Rows | None = None,
        guidance: float | None = None,
    ) -> Iterator[Float[np.ndarray, "b H W 3"]]:
        """Draws the images of `__call__`, to the bit, but holds one batch of them at a time.

        Args:
          prompts: one per image.
          latents: function from numbers of images to their initial latents.
          lora: as in `__call__`.
          rows: numbers of the images to draw, ascending; None draws all.
          guidance: guidance scale; None is the sampler's own. Another one needs no other program.

        Yields:
          The images of one batch.
        """
        conditions = _Conditions(lambda texts: self.pipeline.encode_prompts(texts, **self._options), prompts)
        rows = np.arange(len(prompts)) if rows is None else rows
        for batch in self._batches(len(rows)):
            numbers = rows[batch]
            images = self._draw_rows(conditions.take(numbers), latents(numbers), lora, guidance)
            yield images[: len(rows) - batch[0]]

    def _batches(self, count: int) -> Iterator[Rows]:
        """Yields the rows of each batch; the last batch is padded with copies of the last row."""
        for start in range(0, count, self.batch):
            yield np.minimum(np.arange(start, start + self.batch), count - 1)

    def _draw_rows(
        self,
        condition: PyTree,
        latents: Float[np.ndarray, "b h w c"],
        lora: Params | None,
        guidance: float | None = None,
    ) -> Float[np.ndarray, "b H W 3"]:
        scale = np.float32(self._guidance if guidance is None else guidance)
        return np.asarray(self._program(self.pipeline.params, lora, condition, self._unconditional, latents, scale))


class _Conditions:
    """Encoded prompts, of which only the chunks that the current batch needs are held.

    Chunks are those in which a pipeline encodes all prompts at once, so that rounding is the same, whichever rows are
    taken.
    """

    def __init__(self, encode: Callable[[Sequence[str]], PyTree], prompts: Sequence[str]):
        self._encode = encode
        self._prompts = prompts
        self._size = min(TEXT_CHUNK, len(prompts))
        self._chunks: dict[int, PyTree] = {}

    def take(self, rows: Rows) -> PyTree:
        """Returns the encoded prompts of ascending rows."""
        needed, which = np.unique(rows // self._size, return_inverse=True)
        held = self._chunks
        self._chunks = {number: held[number] if number in held else self._chunk(number) for number in needed.tolist()}
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *self._chunks.values())
        return take_rows(joined, which * self._size + rows % self._size)

    def _chunk(self, number: int) -> PyTree:
        start = number * self._size
        rows = np.minimum(np.arange(start, start + self._size), len(self._prompts) - 1)
        return self._encode([self._prompts[row] for row in rows])


def _sample(
    pipeline: Pipeline,
    table: SolverSteps,
    lora_scale: float,
    params: Params,
    lora: Params | None,
    condition: PyTree,
    unconditional: PyTree,
    latents: Float[Array, "b h w c"],
    guidance: Float[Array, ""],
) -> Float[Array, "b H W 3"]:
    condition, latents = spread((condition, latents))
    weights = params[pipeline.TRAINED]
    denoise = bind_denoise(pipeline, weights, lora, Guidance(condition, unconditional, guidance), lora_scale)
    clean = solve(denoise, table, latents)
    return gathered(pipeline.decode(params["vae"], clean).astype(jnp.float32))


def initial_latents(seed: int, count: int, shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Draws noise for ``count`` images; the noise of image i does not depend on the count."""
    return latents_of(seed, np.arange(count), shape)


def latents_of(seed: int, rows: Rows, shape: tuple[int, int, int]) -> Float[np.ndarray, "b h w c"]:
    """Draws the noise that `initial_latents` has in these rows."""
    keys = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(seed), index))(jnp.asarray(rows))
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


class LatentsFile:
    """Initial latents in a .npy file in torch's layout [b c h w], as diffusers' ``latents=`` takes them.

    Rows are read when they are asked for.

    Args:
      path: the file.
      count: expected number of rows.
      shape: expected shape (h, w, c) of a row.

    Raises:
      UserError: the file does not exist or is not an array of floats, its shape is not the expected one, or a value is
        not finite.
    """

    def __init__(self, path: str | os.PathLike, count: int, shape: tuple[int, int, int]):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # A damaged header raises any of a dozen types, from BadZipFile to MemoryError.
            raise UserError(f"cannot read initial latents from {path}: {error}") from error
        if not isinstance(array, np.ndarray):  # an .npz file
            raise UserError(f"{path} holds several arrays, expected one (numpy.save)")
        expected = (shape[2], shape[0], shape[1])
        if array.ndim != 4 or array.shape[1:] != expected or not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}: {array.dtype}{list(array.shape)}, expected floats [b, {expected} as c, h, w]")
        if len(array) != count:
            raise UserError(f"{path} holds {counted(len(array), 'row')} for {counted(count, 'image')}")
        self._array = array
        if not all(np.isfinite(self(np.array([row]))).all() for row in range(count)):
            raise UserError(f"{path}: holds values that are not finite, expected noise of unit variance")

    def __call__(self, rows: Rows) -> Float[np.ndarray, "b h w c"]:
        """Returns some rows in our layout."""
        return np.moveaxis(self._array[rows], 1, -1).astype(np.float32)  # [b c h w] -> [b h w c]
