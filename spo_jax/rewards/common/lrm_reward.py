"""The score of a latent reward model as a reward."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.parallel.chunks import in_chunks
from spo_jax.parallel.mesh import gathered
from spo_jax.rewards.base import DeviceReward
from spo_jax.rewards.common.clip_score import unit_norm
from spo_jax.rewards.common.latent_model import LatentModel, LatentTexts
from spo_jax.rewards.common.latent_weights import ReadModel, empty_row
from spo_jax.rewards.common.lrm_files import describe_config
from spo_jax.rewards.common.protocol import NOISY

_CHUNK = 64  # prompts that are encoded at a time, in one compiled shape


class LatentReward(DeviceReward):
    """Scores noisy latents by exp(logit_scale) · cos(latents, text) at their timestep.

    Args:
      read: the model.
      name: its name, for the meaning of the score.
      variant: the variant, which is part of the score's name; empty for the published computation.
    """

    READS: ClassVar[str] = NOISY

    def __init__(self, read: ReadModel, name: str = "", variant: str = ""):
        score = f"lrm_score_{variant}" if variant else "lrm_score"
        self.meanings = {score: f"score of the latent reward model {name} for noisy latents".replace("  ", " ")}
        self.read = read
        self.params = {"model": read.params, "empty": empty_row(read)}

    @property
    def model(self) -> LatentModel:
        """The networks."""
        return self.read.model

    def describe(self) -> Mapping[str, Any]:
        """Returns the networks' configs, the guidance and the tokenizers' digests."""
        guidance = {"guidance_scale": self.model.guidance_scale, "guides_all": self.model.guides_all}
        digests = [tokenizer.digest for tokenizer in self.read.tokenizers]
        return {**describe_config(self.read.config), **guidance, "tokenizers": digests}

    def features(self, prompts: Sequence[str]) -> LatentTexts:
        """Encodes prompts; text features have length 1."""
        encode = functools.partial(_encode, self.model, self.params["model"])
        return in_chunks(encode, self.read.tokenize(prompts), _CHUNK)

    def feature_shapes(self) -> LatentTexts:
        """Returns the shapes of one row of `features`."""
        tokenizers = self.read.tokenizers
        ids = jax.ShapeDtypeStruct((1, len(tokenizers), tokenizers[0].length), jnp.int32)
        return jax.eval_shape(functools.partial(_encode, self.model), self.params["model"], ids)

    def score(
        self, params: Params, x: Float[Array, "b h w c"], features: LatentTexts, t: Int[Array, " b"]
    ) -> Float[Array, " b"]:
        """Scores noisy latents at the timestep ``t`` that the model is told.

        Args:
          params: the attribute `params`.
          x: noisy latents, as the diffusion model sees them.
          features: rows of `features`.
          t: timesteps.
        """
        image = self.model.image_features(params["model"], x, t, features.condition, params["empty"])
        scale = jnp.exp(params["model"]["logit_scale"].astype(jnp.float32))
        return scale * jnp.sum(unit_norm(image) * features.features, axis=-1)


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: LatentModel, params: Params, ids: Int[Array | np.ndarray, "b e l"]) -> LatentTexts:
    # Texts are encoded once, so these products are in float32 on every device (see `docs/parity.md`).
    with jax.default_matmul_precision("highest"):
        texts = model.encode_text(params, ids)
        return gathered(texts._replace(features=unit_norm(texts.features)))
