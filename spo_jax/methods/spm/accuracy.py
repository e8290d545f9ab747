"""Pair accuracy of a preference model at several timesteps."""

import contextlib
import hashlib
import json
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spo_jax.core.errors import UserError
from spo_jax.core.typing import Float, Params
from spo_jax.data.preferences.format.loading import batches
from spo_jax.methods.spm.programs import Frozen, Networks
from spo_jax.methods.spm.split import Split
from spo_jax.parallel.multihost import is_writer, join_parts, local_positions
from spo_jax.parallel.sharding import make, to_host

# Timestep to 1, ½ or 0 of every pair.
Agreement = Mapping[int, Float[np.ndarray, " n"]]


def agreement(scores: Float[np.ndarray, "n 2"], labels: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """(s₀ > s₁) · label₀ + (s₀ < s₁) · label₁, the reference's rule: a tie counts a half, unless the scores are equal,
    which count nothing."""
    first, second = scores[:, 0] > scores[:, 1], scores[:, 0] < scores[:, 1]
    return (first * labels[:, 0] + second * labels[:, 1]).astype(np.float32)


def mean_and_error(values: Float[np.ndarray, " n"]) -> tuple[float, float | None]:
    """With the mean's standard error, which a single value does not have."""
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return float(values.mean(dtype=np.float64)), error


def summarised(measured: Agreement) -> dict[str, dict[str, float | int | None]]:
    """For JSON: timestep to accuracy, its standard error, and the number of pairs."""
    out = {}
    for t, values in measured.items():
        accuracy, error = mean_and_error(values)
        out[str(t)] = {"accuracy": accuracy, "standard_error": error, "pairs": len(values)}
    return out


class Evaluator:
    """The same pairs and noises every time, for weights of one network."""

    def __init__(self, networks: Networks, frozen: Frozen, split: Split, mesh: Mesh):
        """
        Raises:
          UserError: no pair of the split is decided; a timestep that the diffusion model does not have.
        """
        config = networks.settings.eval
        networks.check_timesteps(config.timesteps)
        self.rows = split.decided(config.pairs)
        self._networks, self._frozen, self._split = networks, frozen, split
        self._key = make(lambda: jax.random.key(config.seed), mesh)
        self._noised, self._clean = jax.jit(networks.scores), jax.jit(networks.clean_scores)

    @property
    def told(self) -> str:
        """What two measurements have to share to be compared pair by pair."""
        settings = self._networks.settings
        config, labels = settings.eval, self._split.labels[self.rows]
        fields = {"timesteps": config.timesteps, "pairs": config.pairs, "batch": config.batch, "seed": config.seed}
        # What decides the pictures that are judged; `dtype` the judge's rounding too.
        names = ("model", "revision", "base", "vae", "dtype", "posterior", "guidance_scale", "resolution")
        fields |= {name: getattr(settings, name) for name in names}
        fields["labels"] = hashlib.sha256(self.rows.tobytes() + labels.tobytes()).hexdigest()
        return json.dumps({"digest": self._split.pairs.digest, **fields})

    def measure(self, params: Params) -> dict[int, Float[np.ndarray, " n"]]:
        """`agreement` of every pair at every timestep; at 0 of the picture itself, else noised as in training.

        Raises:
          UserError: a score that is not finite.
        """
        settings = self._networks.settings
        config, loading = settings.eval, settings.loading
        scores = {t: np.full((len(self._split.pairs), 2), np.nan, np.float32) for t in config.timesteps}
        loaded = batches(
            self._split.pairs,
            self.rows,
            side=self._networks.side,
            batch_size=config.batch,
            shuffle=False,
            endless=False,
            positions=local_positions(config.batch),
            threads=loading.threads,
            workers=loading.workers,
        )
        count, silent = -(-len(self.rows) // config.batch), not is_writer()
        with contextlib.closing(loaded):
            for number, batch in enumerate(tqdm(loaded, "accuracy", count, unit="batch", disable=silent)):
                numbers, rows = to_host(join_parts(batch.rows)), self._networks.feed(self._split.feed(batch))
                for t in config.timesteps:
                    scores[t][numbers] = to_host(self._score(params, rows, t, number))
        for t, values in scores.items():
            if not np.isfinite(values[self.rows]).all():
                raise UserError(f"scores at t = {t} are not finite: the preference model is damaged; or use float32")
        labels = self._split.labels[self.rows]
        return {t: agreement(values[self.rows], labels) for t, values in scores.items()}

    def _score(self, params: Params, rows, t: int, number: int) -> jax.Array:
        if t == 0:
            return self._clean(params, rows)
        return self._noised(params, self._frozen, rows, np.int32(t), np.int32(number), self._key)
