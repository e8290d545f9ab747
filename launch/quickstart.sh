#!/usr/bin/env bash
# Installs the package and runs SPO on the toy pipeline: bash launch/quickstart.sh [flags of spo_jax.train]
#   bash launch/quickstart.sh --config.seed=1
#   bash launch/quickstart.sh --config=configs/toy_sdxl.py    SDXL's structure, with random weights
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

active_before=${VIRTUAL_ENV:-}
activate python3.13 python3.12 python3.11 python3 python
install_package ""

out=runs/quickstart
if [[ -d $out && " $* " != *" --resume"* && " $* " != *" --auto-resume"* ]]; then
  older="$out-$(date -r "$out" +%Y%m%d-%H%M%S)"
  echo "Keeping the earlier run as $older"
  mv "$out" "$older"
fi

config=(--config=configs/toy.py)
if [[ " $* " == *" --config="* ]]; then config=(); fi
if [[ " $* " =~ \ --config=(configs/toy_sdxl\.py|toy_sdxl)\  && ! -d build/toy_sdxl ]]; then
  python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl
fi

echo "Training: about two minutes on two cores"
python -m spo_jax.train "${config[@]}" "$@" --out="$out"

echo
echo "Done. Open $out/report.html for images, scores and curves before and after training;"
echo "$out/before_after.png shows the images alone, $out/lora.safetensors is the LoRA (diffusers loads it),"
echo "and $out/summary.json holds the numbers."
if [[ -z $active_before ]]; then
  echo "To use the package from this shell: source .venv/bin/activate"
fi
