# @title Installs spo_jax, if it is not here: run this first
# On Colab and Kaggle the jax, numpy and torch that are there stay as they are, as long as spo_jax can use that jax.
import glob
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile

SOURCE = os.environ.get("SPO_JAX_SOURCE", "git+https://github.com/spo-jax/spo_jax")
JAX_FROM, JAX_BELOW = (0, 10), (0, 13)
OF_JAX = ["jax", "jaxlib", "libtpu", *(f"jax-cuda{n}-{part}" for n in (12, 13) for part in ("plugin", "pjrt"))]


def installed(names):
    found = {distribution.metadata["Name"]: distribution.version for distribution in importlib.metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def device_extra():
    """The extra of spo_jax that brings jax for this machine's device: "tpu", "gpu", or "" for none."""
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"):
        return "tpu"
    return "gpu" if os.path.exists("/dev/nvidia0") else ""


def install():
    here = installed([*OF_JAX, "numpy", "torch", "torchvision"])
    jax = here.get("jax", "")
    suits = JAX_FROM <= tuple(int(part) for part in jax.split(".")[:3] if part.isdigit()) < JAX_BELOW
    extra = "" if suits else device_extra()
    if not suits:
        print(f"jax {jax or 'is missing'}: installing one that spo_jax can use, for {extra or 'the CPU'}")
        here = {name: version for name, version in here.items() if name not in OF_JAX}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as constraints:
        constraints.write("".join(f"{name}=={version}\n" for name, version in here.items()))
    package = f"spo_jax[{extra}] @ {SOURCE}" if extra else f"spo_jax @ {SOURCE}"
    before = installed(LOADED)
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name, package]).returncode:
        raise SystemExit(f"pip could not install {package}: the lines above say why")
    importlib.invalidate_caches()
    after = installed(LOADED)
    stale = [name for name, module in LOADED.items() if module in sys.modules and before.get(name) != after.get(name)]
    if stale:
        raise SystemExit(f"installed. Now restart the runtime: other versions were loaded of {', '.join(stale)}")
    print("installed spo_jax", installed(["spo_jax"])["spo_jax"])


# Packages that may have been loaded before, and the names of their modules.
LOADED = {"jax": "jax", "numpy": "numpy", "pillow": "PIL", "filelock": "filelock", "flax": "flax"}

if importlib.util.find_spec("spo_jax") is None:
    if "SPO_JAX_SOURCE" in os.environ or os.path.isdir("/content") or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        install()
    else:
        raise SystemExit('install the package first: pip install -e ".[interop]" in its folder')
