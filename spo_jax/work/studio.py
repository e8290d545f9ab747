"""A model that stays open to be looked at: it draws step by step, and shows and scores what it predicts on the way.

`spo_jax.sample` compiles its whole loop into one program, once per number of steps, guidance and strength. A page and a
notebook change these all the time, want to see progress, and to stop. So here the host runs the loop, and the program
of one step takes everything that a person changes as an argument: it is compiled once for a number of images, a size
and a rank of LoRA. The numbers are those of `sample`, because the step is the same function.
"""

import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.drawing_limits import check_limits, check_prompt
from spo_jax.core.errors import UserError
from spo_jax.core.progress import stage
from spo_jax.core.typing import Array, Float, Int, Num, Params, PyTree
from spo_jax.diffusion.solvers import solver_step
from spo_jax.diffusion.steps import SolverRow, SolverSteps
from spo_jax.models import check_model, open_pipeline
from spo_jax.models.base import Guidance, Pipeline, bind_denoise
from spo_jax.models.drawing import check_pixels, read_adapter, warn_of_cuts
from spo_jax.models.sampler import initial_latents
from spo_jax.parallel.compiling import device_jit
from spo_jax.rewards import check_reads, check_reward, load_reward, no_judge
from spo_jax.rewards.base import Context, DeviceReward, Reward
from spo_jax.rewards.common.own import check_reward_object
from spo_jax.weights.lora import find_lora

DTYPES = ("float32", "bfloat16")
_JUDGE = "--judge"  # where messages say that the judge is named
_NOT_FINITE = (
    "an image has values that are not finite: check the guidance, the LoRA and its strength, and try --dtype=float32"
)
_MOST_ADAPTERS = 8  # that are kept in memory


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA that a studio has read.

    Attributes:
      source: how the user named it.
      path: its file.
      tree: its halves, on the device.
      scale: alpha / r, which a strength multiplies.
    """

    source: str
    path: Path
    tree: Params
    scale: float


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is known after a denoising step.

    Images are float32 on the host, near [-1, 1] and not clipped.

    Attributes:
      number: number of the step, from 1.
      count: number of steps.
      timestep: timestep t at which the step began.
      prediction: clean images that the network predicted at t, decoded; None if predictions are not asked for.
      scores: the judge's scores of them at t, as it judges a rollout; None without a judge or without predictions.
      images: finished images; None before the last step.
      image_scores: the judge's scores of them at t = 0; None without a judge, and before the last step.
    """

    number: int
    count: int
    timestep: int | float
    prediction: Float[np.ndarray, "b H W 3"] | None
    scores: Float[np.ndarray, " b"] | None
    images: Float[np.ndarray, "b H W 3"] | None = None
    image_scores: Float[np.ndarray, " b"] | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Images, and what was predicted on the way to them.

    Images are float32 on the host, near [-1, 1] and not clipped; `spo_jax.to_uint8` makes bytes of them.

    Attributes:
      images: finished images.
      image_scores: the judge's scores of them, at t = 0; None without a judge.
      timesteps: timestep of each of the s steps, descending.
      predictions: clean images that the network predicted at each timestep, decoded; None if not asked for.
      scores: the judge's scores of the predictions, each at its timestep; None without a judge or predictions.
    """

    images: Float[np.ndarray, "b H W 3"]
    image_scores: Float[np.ndarray, " b"] | None
    timesteps: Num[np.ndarray, " s"]
    predictions: Float[np.ndarray, "s b H W 3"] | None
    scores: Float[np.ndarray, "s b"] | None


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What is the same at every step of a drawing: arguments of the programs."""

    adapter: Params | None
    scale: Float[np.ndarray, ""]
    guidance: Guidance
    features: PyTree


class Studio:
    """A model that stays open, perhaps with a judge; `open_studio` makes one.

    Args:
      pipeline: the model, on the first device.
      judge: reward that scores predictions and images; None for none.

    Attributes:
      pipeline: the model.
      judge: the judge.
    """

    def __init__(self, pipeline: Pipeline, judge: DeviceReward | None = None):
        self.pipeline = pipeline
        self.judge = judge
        self._adapters: dict[tuple[Path, int, int], Adapter] = {}
        self._reading = threading.Lock()  # a page reads LoRAs in several threads
        self._unconditional: dict[tuple[int, ...], PyTree] = {}
        self._step = device_jit(functools.partial(_step, pipeline), static_argnums=0)
        self._look = device_jit(functools.partial(_look, pipeline, judge))

    def lora(self, source: str | os.PathLike = "") -> Adapter | None:
        """Reads a LoRA; one that was read before is read again only if its file has changed.

        Args:
          source: a run's folder, a file, or an id on the hub, as ``sample --lora`` takes it; empty for none.

        Raises:
          UserError: there is no LoRA there, or it belongs to another model.
        """
        if not os.fspath(source):
            return None
        path = find_lora(source)
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        with self._reading:
            if key not in self._adapters:
                while len(self._adapters) >= _MOST_ADAPTERS:
                    del self._adapters[next(iter(self._adapters))]
                self._adapters[key] = Adapter(os.fspath(source), path, *read_adapter(self.pipeline, path))
            return self._adapters[key]

    def draw(self, prompts: Sequence[str], **how: Any) -> Drawn:
        """Draws images; the arguments are those of `frames`."""
        frames = list(self.frames(prompts, **how))
        last = frames[-1]

        def over_time(name: str) -> np.ndarray | None:
            return None if getattr(last, name) is None else np.stack([getattr(frame, name) for frame in frames])

        timesteps = np.asarray([frame.timestep for frame in frames])
        return Drawn(last.images, last.image_scores, timesteps, over_time("prediction"), over_time("scores"))

    def frames(
        self,
        prompts: Sequence[str],
        *,
        seed: int = 0,
        steps: int = 20,
        guidance: float = 5.0,
        lora: Adapter | str | os.PathLike | None = None,
        strength: float = 1.0,
        size: tuple[int, int] | None = None,
        predictions: bool = True,
    ) -> Iterator[Frame]:
        """Draws images with DDIM, all at a time, one denoising step for each frame.

        Whoever stops asking for frames stops the drawing. Strength, guidance, seed and number of steps compile nothing.

        Args:
          prompts: one per image.
          seed: seed of the initial noise: that of image i is the noise of image i in ``sample --seed``.
          steps: number of denoising steps.
          guidance: classifier-free guidance scale w.
          lora: what `lora` takes, or what it returned; None draws with the base model.
          strength: factor of the LoRA; 0 draws what the base model draws.
          size: (height, width) in pixels; None is the model's own.
          predictions: whether to decode and score what is predicted at every step, which costs a decoding each.

        Raises:
          UserError: there is no prompt, or a number is out of range or does not suit the model. The last frame raises
            one if an image has values that are not finite.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts or ())
        if not prompts:
            raise UserError("expected at least one prompt")
        for prompt in prompts:
            check_prompt(prompt)
        height, width = _checked_size(size)
        check_limits(seed=seed, steps=steps, guidance=guidance, height=height, width=width)
        if not (isinstance(strength, Real) and np.isfinite(strength)):
            raise UserError(f"--lora-scale={strength}: expected a finite number")
        lora = self.lora(lora) if isinstance(lora, str | os.PathLike) else lora
        if not isinstance(lora, Adapter | None):
            raise UserError(f"lora is {lora!r}: expected a run's folder, a file, or what studio.lora returned")
        table = self.pipeline.solver_steps("ddim", steps)
        shape = self.pipeline.latent_shape_of(height, width)
        pixels = (shape[0] * self.pipeline.downscale, shape[1] * self.pipeline.downscale)
        check_pixels(str(len(prompts)), len(prompts), pixels)
        warn_of_cuts(self.pipeline, prompts)
        latents = table.initial_scale * initial_latents(seed, len(prompts), shape)
        inputs = self._inputs(prompts, shape, guidance, lora, strength)
        return self._frames(table, latents, inputs, predictions)

    def _inputs(
        self,
        prompts: Sequence[str],
        shape: tuple[int, int, int],
        guidance: float,
        lora: Adapter | None,
        strength: float,
    ) -> _Inputs:
        """Encodes prompts, and makes arrays of the numbers that a person changes: no program depends on them."""
        options = self.pipeline.prompt_options(shape)
        if shape not in self._unconditional:
            self._unconditional[shape] = self.pipeline.encode_unconditional(**options)
        condition = self.pipeline.encode_prompts(prompts, **options)
        scale = np.float32(strength * (lora.scale if lora else 1.0))
        return _Inputs(
            adapter=lora and lora.tree,
            scale=np.asarray(scale),
            guidance=Guidance(condition, self._unconditional[shape], np.asarray(guidance, np.float32)),
            features=self.judge and self.judge.features(prompts),
        )

    def _frames(
        self, table: SolverSteps, x: Float[np.ndarray, "b h w c"], inputs: _Inputs, predictions: bool
    ) -> Iterator[Frame]:
        params = self.pipeline.params
        x = jnp.asarray(x)
        x0 = jnp.zeros_like(x)
        count = len(table.timesteps)
        for index, t in enumerate(table.timesteps):
            row = jax.tree.map(lambda column, index=index: column[index], table.rows)
            adapter = (inputs.adapter, inputs.scale, inputs.guidance)
            x, x0 = jax.block_until_ready(self._step(table.prediction_type, params, *adapter, row, x, x0))
            seen = self._seen(x0, inputs.features, int(t)) if predictions else (None, None)
            final = (None, None)
            if index == count - 1:
                final = self._seen(x, inputs.features, 0)
                if not np.isfinite(final[0]).all():
                    raise UserError(_NOT_FINITE)
            yield Frame(index + 1, count, t.item(), *seen, *final)

    def _seen(
        self, latents: Float[Array, "b h w c"], features: PyTree, t: int
    ) -> tuple[Float[np.ndarray, "b H W 3"], Float[np.ndarray, " b"] | None]:
        """Returns decoded latents and the judge's scores of them, on the host."""
        judge = self.judge.params if self.judge else {}
        return jax.device_get(self._look(self.pipeline.params["vae"], judge, latents, features, np.int32(t)))


def _checked_size(size: tuple[int, int] | None) -> tuple[int | None, int | None]:
    """Returns the height and the width; None for the model's own."""
    if size is None:
        return None, None
    if not (isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2):
        raise UserError(f"size={size!r}: expected (height, width) in pixels, or None for the model's own")
    return size[0], size[1]


def _step(
    pipeline: Pipeline,
    prediction_type: str,
    params: Params,
    adapter: Params | None,
    scale: Float[Array, ""],
    guidance: Guidance,
    row: SolverRow,
    x: Float[Array, "b h w c"],
    previous_x0: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """Takes one step; see `spo_jax.diffusion.solvers.solver_step`."""
    denoise = bind_denoise(pipeline, params[pipeline.TRAINED], adapter, guidance, scale)
    return solver_step(denoise, prediction_type, row, x, previous_x0)


def _look(
    pipeline: Pipeline,
    judge: DeviceReward | None,
    vae: Params,
    judge_params: Params,
    latents: Float[Array, "b h w c"],
    features: PyTree,
    t: Int[Array, ""],
) -> tuple[Float[Array, "b H W 3"], Float[Array, " b"] | None]:
    """Decodes latents, and scores them as `spo_jax.methods.common.judge.Judge` does, but decodes them once for both."""
    images = pipeline.decode(vae, latents)
    if judge is None:
        return images.astype(jnp.float32), None
    seen = latents if judge.READS == "latents" else images
    scores = judge.score(judge_params, seen, features, jnp.broadcast_to(t, len(latents)))
    return images.astype(jnp.float32), scores.astype(jnp.float32)


def open_studio(
    model: str | os.PathLike,
    *,
    judge: str | DeviceReward = "",
    revision: str = "",
    base: str | os.PathLike = "",
    vae: str | os.PathLike = "",
    dtype: str = "float32",
) -> Studio:
    """Opens a model to look at, and perhaps a judge.

    Args:
      model: folder, hub id, single file, or ``toy``, as ``sample --model`` takes it.
      judge: ``spm:FOLDER_OR_ID``, ``spm:toy``, the name of another reward that is computed on the devices, or such a
        reward itself; empty for none.
      revision: revision of the hub id; empty for none.
      base: where a single file's tokenizers and scheduler come from; empty for the default.
      vae: an autoencoder instead of the model's own; empty for none.
      dtype: ``float32`` or ``bfloat16``.

    Raises:
      UserError: the model or the judge does not exist or cannot be read, or they do not fit; or the judge is computed
        on the host, or reads noisy latents.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype}: expected one of {', '.join(DTYPES)}")
    model, base, vae = os.fspath(model), os.fspath(base), os.fspath(vae)
    check_model(model, base, vae)
    named = isinstance(judge, str)
    if named and judge:
        check_reward(judge, Context(field=_JUDGE), judges=True)
    elif not named:
        judge = checked_judge(judge)
    with stage(f"reading {model}"):
        pipeline = open_pipeline(model, revision=revision or None, base=base, vae=vae, dtype=jnp.dtype(dtype))
    if not named:
        return Studio(pipeline, judge)
    return Studio(pipeline, _read_judge(judge, pipeline) if judge else None)


def checked_judge(judge: Any) -> DeviceReward | None:
    """Returns a judge that was given as an object; None stands for none.

    Raises:
      UserError: it is something else, is computed on the host, or reads noisy latents.
    """
    if judge is None:
        return None
    check_reward_object(judge, "judge", "is")
    return _usable(judge, type(judge).__name__, "judge")


def _read_judge(spec: str, pipeline: Pipeline) -> DeviceReward:
    with stage(f"reading the judge {spec}"):
        judge = load_reward(spec, Context(pipeline.kind, pipeline.dtype, field=_JUDGE))
    return _usable(judge, spec, _JUDGE)


def _usable(judge: Reward, name: str, where: str) -> DeviceReward:
    """Refuses a reward that cannot score decoded or clean latents on the devices."""
    if not isinstance(judge, DeviceReward):
        raise no_judge(name, where)
    check_reads(name, judge.READS, noisy=False, where=where)
    return judge
