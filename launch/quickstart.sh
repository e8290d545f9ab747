#!/usr/bin/env bash
# Installs the package and runs SPO on the embedded pipeline: bash launch/quickstart.sh [flags of spo_jax.train]
#   bash launch/quickstart.sh --config.seed=1
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

active_before=${VIRTUAL_ENV:-}
activate python3.13 python3.12 python3.11 python3 python
install_package ""

out=runs/quickstart
if [[ -d $out && " $* " != *" --resume"* ]]; then
  older="$out-$(date -r "$out" +%Y%m%d-%H%M%S)"
  echo "Keeping the earlier run as $older"
  mv "$out" "$older"
fi

echo "Training: SPO on the embedded pipeline, about two minutes on two cores"
python -m spo_jax.train --config=configs/tiny.py "$@" --out="$out"

echo
echo "Done. Open $out/report.html for pictures, scores and curves before and after;"
echo "$out/lora.safetensors is the LoRA (diffusers loads it), $out/summary.json holds the numbers."
if [[ -z $active_before ]]; then
  echo "For commands of your own: source .venv/bin/activate"
fi
