"""How much memory a run of SPO takes on each device: a formula that needs neither jax nor weights.

The weights, the state and the pairs are counted. What the programs need beside them was fitted to the programs that
`benchmarks.aot` compiled for TPUs (`benchmarks/results/aot.md`), with bfloat16 and `remat`: a test holds the formula to
these, and `benchmarks.machines` prints how far it is off. It is an extrapolation for GPUs, for float32, without
`remat`, and where another part is the largest than in any of those programs: distilled decoders above all.

A judge of noisy latents (LPO) is taken for a latent reward model: the first half of a UNet like the model's own, with
text encoders like its own. Nothing is decoded then, and no pool is predicted from, unless a second judge sees what is
predicted from the last pools.
"""

import dataclasses
import math

from spo_jax.core.memory import GIB
from spo_jax.methods.spo.plan import make_plan
from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings

_FLOAT32 = 4
_DECODED = 4  # images at a time where the settings leave that open


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the formula knows of the models of one architecture: counts, and as floats the bytes of temporaries.

    Attributes:
      network: parameters of the UNet, which is trained through its adapter.
      vae: parameters of the autoencoder.
      text: parameters of the text encoders.
      judge: parameters of the preference model, CLIP-H.
      latent_judge: parameters of the latent reward model.
      adapter: parameters of an adapter for every unit of its rank.
      latent: numbers in the latents of an image.
      guided: bytes of temporaries for every candidate in a pool, with and without its prompt, in the UNet.
      decoded: bytes of temporaries for every image that is decoded and judged at a time.
      distilled: the same with a distilled decoder.
      judged: bytes of temporaries for every noisy latent that is judged at a time, with and without its prompt, in the
        first half of the UNet.
      trained: bytes of temporaries for every latent of a pair that is trained on at a time.
      costly: bytes more if `remat` keeps what is costly, by what `benchmarks.activations` counts.
      products: the same if it keeps all products.
      kept: bytes of temporaries without `remat`, in the same way.
    """

    network: int
    vae: int
    text: int
    judge: int
    latent_judge: int
    adapter: int
    latent: int
    guided: float
    decoded: float
    distilled: float
    judged: float
    trained: float
    costly: float
    products: float
    kept: float

    def grown(self, factor: float) -> "Sizes":
        """Returns the sizes of an architecture with the same counts and ``factor`` times the temporaries."""
        temporaries = {name: value for name, value in vars(self).items() if isinstance(value, float)}
        return dataclasses.replace(self, **{name: factor * value for name, value in temporaries.items()})


SD15 = Sizes(
    network=859_520_964,
    vae=83_653_863,
    text=123_060_480,
    judge=1_306_176_001,
    latent_judge=476_049_665,
    adapter=199_296,
    latent=64 * 64 * 4,
    guided=0.123 * GIB,
    decoded=0.875 * GIB,  # a fourth of SDXL's, by area
    distilled=0.15 * GIB,
    judged=0.123 * GIB,
    trained=0.63 * GIB,
    costly=0.09 * GIB,
    products=0.72 * GIB,
    kept=5.2 * GIB,
)
SDXL = Sizes(
    network=2_567_463_684,
    vae=83_653_863,
    text=817_720_320,
    judge=1_306_176_001,
    latent_judge=2_065_592_961,
    adapter=1_451_520,
    latent=128 * 128 * 4,
    guided=0.5 * GIB,  # four times SD 1.5's, by area
    decoded=3.5 * GIB,
    distilled=0.6 * GIB,
    judged=0.5 * GIB,
    trained=1.5 * GIB,
    costly=0.55 * GIB,
    products=6.3 * GIB,
    kept=32.0 * GIB,
)
DISTILLED = 2_445_063  # parameters of a distilled decoder, TAESD or TAESDXL
# An update for a single chip was compiled to 1.4 times the temporaries of the same update on one of several chips; with
# half the pairs at a time it was only 1.1 times. The formula takes the larger factor, so that it rather says too much.
_ALONE = 1.4
_GATHERED = 0.2  # share of the UNet's weights that a device holds for a moment if they are cut over devices


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
      weights: frozen weights that the programs take.
      idle: frozen weights that none of them takes: text encoders, and the autoencoder beside a distilled decoder.
      state: adapter and optimizer.
      pairs: pairs of a rollout, those of all devices.
      rollout: temporaries of the program that makes pairs.
      update: temporaries of the program that trains on them.
    """

    weights: int
    idle: int
    state: int
    pairs: int
    rollout: int
    update: int

    @property
    def of_rollout(self) -> int:
        """All memory while pairs are made."""
        return self._resident + self.rollout

    @property
    def of_update(self) -> int:
        """All memory while the policy is trained on pairs, of which the program makes two copies."""
        return self._resident + 2 * self.pairs + self.update

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.of_rollout, self.of_update)

    @property
    def _resident(self) -> int:
        return self.weights + self.idle + self.state + self.pairs


def estimate(settings: SPOTrainSettings, sizes: Sizes, devices: int = 1) -> Memory:
    """Estimates the memory of a run.

    Args:
      settings: settings of the run. Its model and judge are not looked at; ``sizes`` says what they are.
      sizes: sizes of the model, `SD15` or `SDXL`, or one of these with other counts.
      devices: number of devices.
    """
    bytes_each = 2 if settings.dtype == "bfloat16" else 4
    share = settings.mesh.fsdp if settings.mesh.fsdp != -1 else devices // settings.mesh.data
    taken, idle = (bytes_each * count / share for count in _weights(settings.spo, sizes))
    # The adapter, Adam's two moments, with accumulation the mean gradient, and the adapter's running mean.
    copies = 3 + (settings.optimizer.gradient_accumulation_steps > 1) + (settings.spo.ema_decay > 0)
    state = _FLOAT32 * copies * sizes.adapter * settings.lora.rank

    rollout = _rollout(settings, sizes, devices) * bytes_each / 2
    trained = settings.spo.chunk(devices) / devices * _parents(settings.spo)
    more = {"inputs": 0.0, "costly": sizes.costly, "products": sizes.products}[settings.remat_keeps]
    alone = _ALONE if devices == 1 else 1
    latent = sizes.trained * alone + more if settings.remat else sizes.kept * alone
    update = trained * latent * bytes_each / 2
    if share > 1:
        rollout += _GATHERED * bytes_each * sizes.network
        update += _GATHERED * bytes_each * sizes.network
    return Memory(*map(int, (taken, idle, state, _pairs(settings, sizes), rollout, update)))


def _decodes(spo: SPOSettings) -> bool:
    """Whether a judge sees images."""
    return spo.judged != "noisy" or bool(spo.second_reward)


def _weights(spo: SPOSettings, sizes: Sizes) -> tuple[int, int]:
    """Returns the parameters that programs take, those of the judges as a whole, and those that none of them takes."""
    taken, idle = sizes.network, sizes.text
    distilled = spo.decoder != "vae"
    if spo.judged == "noisy":
        taken += sizes.latent_judge
    if _decodes(spo):
        taken += sizes.judge + (DISTILLED if distilled else sizes.vae)
    if distilled or not _decodes(spo):
        idle += sizes.vae
    return taken, idle


def _judgements(spo: SPOSettings) -> int:
    """Returns the number of pools that are judged."""
    return len(make_plan(spo).judged_at) + 1


def _parents(spo: SPOSettings) -> int:
    """Returns the number of latents from which the steps of winner and loser are taken."""
    return 1 if spo.objective == "gradspo" or make_plan(spo).shares_parent else 2


def _pairs(settings: SPOTrainSettings, sizes: Sizes) -> int:
    """Returns the bytes of a rollout's pairs."""
    spo = settings.spo
    latents = (spo.num_steps - spo.divert_start_step) * (2 + _parents(spo))
    if spo.objective == "gradspo":  # a pair for each judgement: its x_t and one noise
        latents = 2 * _judgements(spo)
    return _FLOAT32 * settings.prompts_per_batch * latents * sizes.latent


def _rollout(settings: SPOTrainSettings, sizes: Sizes, devices: int) -> float:
    """Returns the bytes of a rollout's temporaries in bfloat16: its network's, or those of a judge."""
    spo = settings.spo
    prompts = math.ceil(settings.prompts_per_batch / devices)
    # Where noisy candidates are judged, a step evaluates the network for one of a pool, but for the last pools if a
    # second judge sees what is predicted from all of them.
    from_all = spo.judged != "noisy" or (_decodes(spo) and spo.second_steps > 1)
    parts = [prompts * (spo.num_candidates if from_all else 1) * sizes.guided]
    # Eight at a time on TPUs take less than four do anywhere (`spo_jax/methods/common/decoding.py`).
    at_a_time = spo.decode_chunk or _DECODED
    candidates = prompts * spo.num_candidates
    if spo.judged == "noisy":
        parts.append(min(at_a_time, candidates * _judgements(spo)) * sizes.judged)
    if _decodes(spo):
        pools = spo.second_steps if spo.second_reward else _judgements(spo)
        image = sizes.decoded if spo.decoder == "vae" else sizes.distilled
        parts.append(min(at_a_time, candidates * pools) * image)
    return max(parts)
