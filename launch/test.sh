#!/usr/bin/env bash
# Lint, import ladder and tests on the CPU: bash launch/test.sh [pytest arguments]
#   bash launch/test.sh -k unet      some of the tests
#   bash launch/test.sh -m full      the tests at true model sizes (24 GB of memory)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

# Python 3.11 first: its torch 2.13.0 has a CPU build, while newer Pythons get one with gigabytes of CUDA libraries.
activate python3.11 python3.12 python3.13 python3 python
if [[ $(python --version) == "Python 3.11."* ]]; then
  # Ahead of the rest: pip's choice among torch's versions would not stop at the one with a CPU build.
  install_package test,dev torch==2.13.0
else
  install_package test,dev
fi

echo "== ruff: style"
ruff check .
echo "== import-linter: the ladder of modules"
lint-imports
echo "== pytest"
# PASSIVE: torch's OpenMP threads sleep instead of spinning while JAX computes.
export OMP_WAIT_POLICY=PASSIVE JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# All of them two at a time, a file to one process, the long ones first; what is asked for by name, one after the other.
(($#)) || set -- -n 2 --dist loadfile --no-loadscope-reorder --durations=30 tests/e2e tests
exec python -m pytest "$@"
