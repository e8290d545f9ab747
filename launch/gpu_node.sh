#!/usr/bin/env bash
# Trains on all GPUs of this machine with one process: bash launch/gpu_node.sh --out=FOLDER [flags]
#   bash launch/gpu_node.sh --out=runs/sd15 --config.prompts=prompts.json --config.eval.prompts=prompts.json
#
#   --out=FOLDER           what the run leaves behind; where a run has stopped there, it goes on
#   --config=FILE          the config (configs/sd15.py)
#   --config.FIELD=VALUE   a field of it; further flags of spo_jax.train follow after --
#   --extra=NAME           what is installed: gpu for CUDA 12 (the default), log, interop, or several: gpu,log
#   --install-only         make .venv with the package, train nothing (a login node has no GPU)
#   --no-install           take the environment that is active as it is
#   --dry-run              print the commands, run nothing
#
# Training that ends with status 75 (somebody sent it SIGTERM: it has saved) is started again. SIGTERM or Ctrl-C to
# this script reaches it too, and then the script ends with it. Any other status is the script's own.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/command_line.sh

extra=gpu
install=yes
only=

own_flag() {
  case $1 in
    --extra=*) extra=${1#*=} ;;
    --install-only) only=yes ;;
    --no-install) install= ;;
    *) return 1 ;;
  esac
}

check_gpus() {
  need nvidia-smi "the NVIDIA driver is not installed, or this machine has no GPU (--install-only does without)"
  [[ $dry_run || $(nvidia-smi --list-gpus) ]] || refuse "nvidia-smi lists no GPU"
}

install_here() {
  if [[ $dry_run ]]; then
    if [[ ! ${VIRTUAL_ENV:-} ]]; then
      shown python3 -m venv .venv
      shown source .venv/bin/activate
    fi
    shown python -m pip install --editable ".[$extra]"
  else
    activate python3.13 python3.12 python3.11 python3 python
    install_package "$extra"
  fi
}

# keep_running COMMAND...: starts it again while it ends with status 75 and this script has got no signal.
keep_running() {
  local status signals=0 before child=
  # In the background and waited for: bash looks at signals only between commands, and during `wait`.
  trap 'signals=$((signals + 1)); [[ ! $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  while :; do
    "$@" &
    child=$!
    while :; do
      before=$signals status=0
      wait "$child" || status=$?
      ((signals > before)) || break # else it was the signal that ended `wait`, and the child is still saving
    done
    child=
    if ((status != 75 || signals)); then return "$status"; fi
    echo "Training was stopped by SIGTERM and has saved; starting it again" >&2
  done
}

parse_flags "$@"
if [[ ! $only ]]; then
  check_run runs/sd15
  check_gpus
fi
if [[ $install ]]; then install_here; fi
if [[ $only ]]; then exit; fi

set_train python
# Named, so that JAX stops where it finds no GPU instead of training on the CPU for weeks ("cuda,cpu" would not stop it).
run export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
if [[ $dry_run ]]; then
  shown "${train[@]}"
  echo "# again while it ends with status 75"
else
  keep_running "${train[@]}"
fi
