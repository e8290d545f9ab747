"""The objectives of SPO: what a pair holds, and how likely an adapter makes its winner and its loser.

All objectives share the rollout, the verdicts and the loss of likelihood ratios (`spo_jax.methods.spo.objective`).

SPO compares the log-probabilities of the drawn steps. While policy and reference agree, their gradient follows the
difference of both members' noises. Later it does not: what the noises have in common enters where one member is clipped
and the other is not, and the steps that were drawn by the policy are ever less those of the reference.

GradSPO (Tee et al., A Gradient Guidance Perspective on Stepwise Preference Optimization, NeurIPS 2025) replaces them by
how well a prediction ε_θ of the noise matches a target that the pair's noise n has moved,

    ℓ(θ, n) = - mean over pixels and channels of (ε_θ - T(n))²,    T(n) = stop_gradient(ε_mean - g √(1-ᾱ_t) n),

for n_w, half the difference of both members' noises, and for n_l = -n_w. ε_mean is the prediction of a running mean of
the trained adapter. Winner and loser share x_t, so that policy, reference and mean are evaluated once for each pair.
For a fresh adapter the gradient is SPO's but for a factor of the timestep; `benchmarks.gradient_noise` compares them.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from spo_jax.core.typing import Array, Float, Int, Params
from spo_jax.diffusion.process import Process
from spo_jax.methods.common.policy import Pairs, Predict, pair_log_probs
from spo_jax.methods.spo.judging import JudgedRollout
from spo_jax.methods.spo.pairs import NoisePairs, make_noise_pairs, make_pairs
from spo_jax.methods.spo.plan import Plan
from spo_jax.methods.spo.resampler import Draws
from spo_jax.methods.spo.settings import UpdateSettings


class Likelihoods(NamedTuple):
    """Log-likelihoods of the winners and of the losers, in this order, in float32.

    Attributes:
      policy: those that the trained adapter gives them.
      reference: those that the reference gives them.
    """

    policy: Float[Array, "n 2"]
    reference: Float[Array, "n 2"]


@runtime_checkable
class Objective(Protocol):
    """What an objective adds to SPO."""

    def pairs(self, judged: JudgedRollout, draws: Draws, plan: Plan) -> Pairs | NoisePairs:
        """Makes the pairs of a rollout, valid or not; they have at least ``t``, ``row`` and ``valid``."""
        ...

    def count(self, plan: Plan) -> int:
        """Returns the number of pairs that `pairs` makes of each prompt."""
        ...

    def likelihoods(
        self,
        lora: Params,
        mean: Params | None,
        predict: Predict,
        process: Process,
        settings: UpdateSettings,
        batch: Pairs | NoisePairs,
    ) -> Likelihoods:
        """Computes the log-likelihoods of a batch's pairs.

        Args:
          lora: the trained adapter.
          mean: its running mean; None if there is none.
          predict: guided prediction with an adapter, and of the reference with None.
          process: the diffusion process, divided into the rollout's steps.
          settings: settings of SPO.
          batch: the pairs.
        """
        ...


class StepObjective:
    """SPO: a member of a pair is as likely as the step that made it."""

    def pairs(self, judged: JudgedRollout, draws: Draws, plan: Plan) -> Pairs:
        """See `Objective`."""
        del draws
        return make_pairs(judged.trajectory, judged.verdict, plan)

    def count(self, plan: Plan) -> int:
        """Returns the number of transitions."""
        return len(plan.segment)

    def likelihoods(
        self,
        lora: Params,
        mean: Params | None,
        predict: Predict,
        process: Process,
        settings: UpdateSettings,
        batch: Pairs,
    ) -> Likelihoods:
        """See `Objective`."""
        del mean

        def of(adapter: Params | None) -> Float[Array, "n 2"]:
            return pair_log_probs(lambda *x: predict(adapter, *x), process, settings.eta, batch)

        return Likelihoods(of(lora), of(None))


class ScoreObjective:
    """GradSPO: a member of a pair is as likely as a prediction is close to the target that its noise has moved."""

    def pairs(self, judged: JudgedRollout, draws: Draws, plan: Plan) -> NoisePairs:
        """See `Objective`."""
        return make_noise_pairs(judged.trajectory, draws.pool, judged.verdict, plan)

    def count(self, plan: Plan) -> int:
        """Returns the number of judgements."""
        return len(plan.branched)

    def likelihoods(
        self,
        lora: Params,
        mean: Params | None,
        predict: Predict,
        process: Process,
        settings: UpdateSettings,
        batch: NoisePairs,
    ) -> Likelihoods:
        """See `Objective`."""

        def noise_of(adapter: Params | None) -> Float[Array, "n h w c"]:
            return process.split(batch.x_t, predict(adapter, batch.x_t, batch.t, batch.row), batch.t)[1]

        policy, reference = noise_of(lora), noise_of(None)
        center = policy if mean is None else noise_of(mean)
        targets = noise_targets(center, batch.noise, batch.t, process, settings.grad_scale)
        return Likelihoods(score_likelihoods(policy, targets), score_likelihoods(reference, targets))


def noise_targets(
    center: Float[Array, "n h w c"],
    noise: Float[Array, "n h w c"],
    t: Int[Array, " n"],
    process: Process,
    grad_scale: float,
) -> Float[Array, "n 2 h w c"]:
    """Computes T(n) for the winner's noise n and for the loser's, -n; no gradient passes.

    Args:
      center: the noise that the running mean predicts, under guidance.
      noise: the winner's noise.
      t: timestep of each pair.
      process: the diffusion process.
      grad_scale: g.
    """
    moved = grad_scale * process.add_noise(jnp.zeros_like(noise), noise, t)  # g √(1-ᾱ) n
    return jax.lax.stop_gradient(jnp.stack([center - moved, center + moved], axis=1))


def score_likelihoods(prediction: Float[Array, "n h w c"], targets: Float[Array, "n 2 h w c"]) -> Float[Array, "n 2"]:
    """Computes ℓ: minus the mean squared distance of predicted noise from each target."""
    return -jnp.square(prediction[:, None] - targets).mean((-3, -2, -1))


_OBJECTIVES = {"spo": StepObjective(), "gradspo": ScoreObjective()}


def objective_of(settings: UpdateSettings) -> Objective:
    """Returns the objective that the settings name."""
    return _OBJECTIVES[settings.objective]
