"""Settings of every test: CPU with 8 simulated devices, no network, strict shapes, and where the golden arrays are."""

import os
from pathlib import Path

# Before anything imports jax, torch or transformers. A value that is set already wins: JAX_PLATFORMS=cuda.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# torch takes its number of threads from here: its reference networks are tiny, and its threads would fight with JAX's.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax  # noqa: E402
import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_GOLDEN = ROOT.parent / "shared" / "golden"

jax.config.update("jax_num_cpu_devices", 8)
# A [d] array meeting a [b d] one is more often a slip than a wish; write the missing axis out.
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs are kept from run to run, the many small ones too: most of a test's seconds are XLA's.
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
    """Folder with the reference's arrays: the default one may be absent (skip), one that was asked for may not."""
    given = request.config.getoption("--golden-dir")
    folder = Path(given or DEFAULT_GOLDEN)
    if not folder.is_dir():
        if given:
            pytest.fail(f"--golden-dir: no folder {folder}")
        pytest.skip(f"no reference arrays in {folder}; name a folder with --golden-dir")
    return folder
