"""Settings of all tests: CPU with 8 simulated devices, no network, strict shapes, and the folder of golden arrays."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before anything imports jax, torch or transformers. A value that is set already wins, such as JAX_PLATFORMS=cuda.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# torch reads its number of threads from here. Its reference networks are small; more threads would compete with JAX's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests compile far more than they compute, so most optimisations cost more than they save. Children inherit this.
QUICK_TO_COMPILE = (
    "--xla_backend_optimization_level=0",  # those of LLVM
    "--xla_cpu_use_fusion_emitters=false",  # the emitters of fused operations go through MLIR
    "--xla_cpu_parallel_codegen_split_count=1",  # one part: cutting takes longer than a second core would save
    # Each of these passes, which make loops faster, runs fifteen times over a program.
    "--xla_disable_hlo_passes=simplify-while-loops,while-loop-invariant-code-motion,while-loop-constant-sinking",
)
# Each once: workers of xdist inherit what a process has set, and only equal flags find the same compiled programs.
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys((*QUICK_TO_COMPILE, *os.environ.get("XLA_FLAGS", "").split())))

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_GOLDEN = ROOT.parent / "shared" / "golden"

jax.config.update("jax_num_cpu_devices", 8)
# A [d] array that meets a [b d] array is more often a mistake than an intention; write out the missing axis.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs are kept between runs, the many small ones too: tests spend most of their time in XLA.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--golden-dir``."""
    parser.addoption(
        "--golden-dir",
        default=None,
        help=f"folder with the arrays of the PyTorch reference (default: {DEFAULT_GOLDEN})",
    )


@pytest.fixture(scope="session")
def golden_dir(request: pytest.FixtureRequest) -> Path:
    """The folder with the reference's arrays; tests are skipped without the default, and fail without another."""
    given = request.config.getoption("--golden-dir")
    folder = Path(given or DEFAULT_GOLDEN)
    if not folder.is_dir():
        if given:
            pytest.fail(f"--golden-dir: no folder {folder}")
        pytest.skip(f"no reference arrays in {folder}; name a folder with --golden-dir")
    return folder


@pytest.fixture(scope="session")
def toy() -> Any:
    """The pipeline and the preference model shipped in the package."""
    from spo_jax.models import open_pipeline
    from spo_jax.rewards.common.preference_model import load_spm

    return SimpleNamespace(pipeline=open_pipeline("toy"), spm=load_spm("toy"))


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small SDXL pipeline with random weights (see `tests/support/sdxl.py`); tests only read it."""
    from tests.support.sdxl import write_tiny_sdxl

    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny_sdxl")


@pytest.fixture(scope="session")
def toy_settings() -> Any:
    """Settings of a run of seconds on the toy pipeline; shared by all tests, so that its programs are compiled once.

    With a threshold of 0 every pair is valid, however the shipped weights were trained.
    """
    from spo_jax.methods.common.settings import EvalSettings, OptimizerSettings
    from spo_jax.methods.spo.settings import SPOSettings, SPOTrainSettings
    from spo_jax.parallel.mesh import MeshSettings
    from spo_jax.run.settings import LogSettings

    return SPOTrainSettings(
        prompts_per_batch=2,
        max_batches=3,
        mesh=MeshSettings(data=1),
        spo=SPOSettings(
            num_steps=5,
            divert_start_step=2,
            num_candidates=2,
            threshold=0.0,
            decode_chunk=12,
            train_batch_size=4,
        ),
        optimizer=OptimizerSettings(learning_rate=1e-2),  # so that a few steps are visible in the images
        log=LogSettings(eval_every=2, checkpoint_every=2),
        eval=EvalSettings(images=4, batch=4, steps=3, grid_images=4),
    )


@pytest.fixture(scope="session")
def diffusers_images() -> Callable[..., Any]:
    """Draws images [b H W 3] in [0, 1] with diffusers from a pipeline's folder and, if given, a LoRA file.

    The sampler is DDIM, whichever sampler the pipeline ships.
    """
    import torch
    from diffusers import DDIMScheduler, DiffusionPipeline

    @functools.cache
    def load(folder: Path) -> Any:
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(
        folder: Path, prompts: Sequence[str], init_latents: Any, steps: int, guidance: float, lora: Path | None = None
    ) -> Any:
        pipe = load(folder)
        latents = torch.from_numpy(init_latents.transpose(0, 3, 1, 2).copy())
        settings = dict(num_inference_steps=steps, guidance_scale=guidance, eta=0.0, output_type="np")
        if lora is not None:
            pipe.load_lora_weights(lora.parent, weight_name=lora.name)
        try:
            return pipe(prompt=list(prompts), latents=latents, **settings).images
        finally:
            if lora is not None:
                pipe.unload_lora_weights()

    return draw
