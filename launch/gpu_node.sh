#!/usr/bin/env bash
# Trains on all GPUs of this machine with one process: bash launch/gpu_node.sh --out=FOLDER [flags]
#   bash launch/gpu_node.sh --out=runs/sd15
#
#   --out=FOLDER           write the results here; if the folder holds a run that stopped, resume it
#   --config=FILE          read the settings from this file (configs/sd15.py)
#   --config.FIELD=VALUE   override a field of the config; put other flags of spo_jax.train after --
#   --extra=NAMES          install these extras: gpu for CUDA 12 (the default), or several, such as gpu,data to train a
#                          preference model, or gpu,wandb
#   --install-only         install the package into .venv and do not train (a login node has no GPU)
#   --no-install           use the active environment as it is
#   --dry-run              print the commands and run none of them
#
# If training ends with status 75 (it received SIGTERM and has saved), it is started again. SIGTERM and Ctrl-C are
# passed on to it, and then the script ends with it. Any other status becomes the status of the script.
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
  need nvidia-smi "the NVIDIA driver is not installed, or this machine has no GPU (--install-only needs none)"
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

# keep_running COMMAND...: starts the command again as long as it ends with status 75 and this script has received no
# signal.
keep_running() {
  local status signals=0 before child=
  # The command runs in the background, because bash handles signals only between commands and during `wait`.
  trap 'signals=$((signals + 1)); [[ ! $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT
  while :; do
    "$@" &
    child=$!
    while :; do
      before=$signals status=0
      wait "$child" || status=$?
      ((signals > before)) || break # otherwise the signal ended `wait`, and the child is still saving
    done
    child=
    if ((status != 75 || signals)); then return "$status"; fi
    echo "Training received SIGTERM and has saved; starting it again" >&2
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
# With this setting JAX stops if it finds no GPU, instead of training on the CPU for weeks (as with "cuda,cpu").
run export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
if [[ $dry_run ]]; then
  shown "${train[@]}"
  echo "# and again as long as it ends with status 75"
else
  keep_running "${train[@]}"
fi
