#!/usr/bin/env bash
# Installs the package and runs SPO on the embedded pipeline: bash launch/quickstart.sh [flags of spo_jax.train]
#   bash launch/quickstart.sh --config.seed=1
#   bash launch/quickstart.sh --config=configs/tiny_sdxl.py    SDXL's structure, with random weights
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

config=(--config=configs/tiny.py)
if [[ " $* " == *" --config="* ]]; then config=(); fi
if [[ " $* " == *" --config=configs/tiny_sdxl.py "* && ! -d build/tiny_sdxl ]]; then
  python -m spo_jax.build_toy.tiny_sdxl --out=build/tiny_sdxl
fi

echo "Training: about two minutes on two cores"
python -m spo_jax.train "${config[@]}" "$@" --out="$out"

echo
echo "Done. Open $out/report.html for pictures, scores and curves before and after;"
echo "$out/lora.safetensors is the LoRA (diffusers loads it), $out/summary.json holds the numbers."
if [[ -z $active_before ]]; then
  echo "For commands of your own: source .venv/bin/activate"
fi
