#!/usr/bin/env bash
# Lints, checks the layers of imports, builds the site and runs the tests on the CPU: bash launch/test.sh [arguments]
#   bash launch/test.sh -k unet      some of the tests
#   bash launch/test.sh -m full      the tests at the models' real sizes (24 GB of memory)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/command_line.sh

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  usage
  exit
fi

# Python 3.11 comes first because torch 2.13.0 has a CPU build for it; the builds for newer versions of Python bring
# gigabytes of CUDA libraries.
activate python3.11 python3.12 python3.13 python3 python
if [[ $(python --version) == "Python 3.11."* ]] && ! python -c "import torch" 2>/dev/null; then
  # torch is installed first, because pip on its own would not choose the version that has a CPU build.
  install_package test,dev torch==2.13.0
else
  install_package test,dev
fi

echo "== ruff: style"
ruff check .
echo "== import-linter: layers of modules"
lint-imports
echo "== mkdocs: the site of the documents"
NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet
echo "== pytest"
# PASSIVE makes torch's OpenMP threads sleep instead of spin while JAX computes.
export OMP_WAIT_POLICY=PASSIVE JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# Without arguments, all tests run in two processes, each file in one of them. With arguments, one process runs the
# requested tests.
(($#)) || set -- -n 2 --dist loadfile --no-loadscope-reorder --durations=30 tests
exec python -m pytest "$@"
