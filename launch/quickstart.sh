#!/usr/bin/env bash
# Installs the package and runs SPO on the toy pipeline: bash launch/quickstart.sh [flags]
#   bash launch/quickstart.sh                                 about two minutes on two cores
#   bash launch/quickstart.sh --config.seed=1                 with another seed
#   bash launch/quickstart.sh --config=configs/toy_sdxl.py    SDXL's structure, with random weights
#
#   --out=FOLDER           write the run here; by default to runs/quickstart (with configs/toy_sdxl.py, to
#                          runs/quickstart_sdxl), where an earlier run is kept under a name with its date
#   --resume               continue the run in the folder
#   --config=FILE          read the settings from this file (configs/toy.py)
#   --config.FIELD=VALUE   override a field of the config
#   --help-config          list all fields of the config
#
# Other flags are passed to spo_jax.train.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
source launch/command_line.sh

# Other flags of spo_jax.train, which are checked here because installing takes minutes.
TRAIN_FLAGS="resume|auto-resume|resume-with-changes|help-config|multihost|coordinator-address|num-processes|process-id"
config=configs/toy.py
resume=
fields=
for flag in "$@"; do
  case $flag in
    --help | -h)
      usage
      exit
      ;;
    --out=?*) out=${flag#*=} ;;
    --config=?*) config=${flag#*=} ;;
    --out | --config | --out= | --config=) refuse "$flag: expected ${flag%=}=VALUE" ;;
    *)
      name=${flag#--}
      if [[ $flag == --* && ! ${name%%=*} =~ ^(config\..+|$TRAIN_FLAGS)$ ]]; then
        refuse "unknown flag ${flag%%=*}: expected --out, --config, --config.FIELD, --${TRAIN_FLAGS//|/, --}"
      fi
      if [[ $flag == --help-config ]]; then fields=yes; fi
      if [[ $flag =~ ^--(auto-)?resume ]]; then resume=yes; fi
      train_flags+=("$flag")
      ;;
  esac
done

if [[ ! -f $config && ! -f configs/$config.py ]]; then
  refuse "--config=$config: no such file, nor a config in configs/"
fi

name=$(basename "$config" .py)
default=runs/quickstart
if [[ $name != toy ]]; then default+=_${name#toy_}; fi

active_before=${VIRTUAL_ENV:-}
activate python3.13 python3.12 python3.11 python3 python
install_package ""

train=(python -m spo_jax.train "--config=$config")
if ((${#train_flags[@]})); then train+=("${train_flags[@]}"); fi
if [[ $fields ]]; then exec "${train[@]}"; fi

earlier=
if [[ ! $out && -d $default && ! $resume ]]; then
  earlier="$default-$(date -r "$default" +%Y%m%d-%H%M%S)"
  echo "Keeping the earlier run as $earlier"
  mv "$default" "$earlier"
fi
out=${out:-$default}
if [[ $config == configs/toy_sdxl.py || $config == toy_sdxl ]] && [[ ! -d build/toy_sdxl ]]; then
  python -m spo_jax.build_toy.toy_sdxl --out=build/toy_sdxl
fi

if [[ $name == toy || $name == toy_sdxl ]]; then echo "Training: about two minutes on two cores"; fi
status=0
"${train[@]}" "--out=$out" || status=$?
if ((status)); then
  if [[ $earlier && ! -e $out ]]; then
    mv "$earlier" "$out"
    echo "Nothing was trained, so $out is the earlier run again" >&2
  elif ((status == 75 || status == 130)) && [[ -d $out/checkpoints ]]; then
    if [[ ! $resume ]]; then set -- "$@" --resume; fi
    echo "or: $(shown bash launch/quickstart.sh "$@")" >&2
  fi
  exit "$status"
fi

echo
echo "Done. Open $out/report.html for images, scores and curves before and after training;"
echo "$out/before_after.png shows the images alone, $out/lora.safetensors is the LoRA (diffusers loads it),"
echo "and $out/summary.json holds the numbers."
if [[ $name == toy_sdxl ]]; then
  echo "The weights are random, so the images are noise: this run shows that the machine can run SDXL's structure."
fi
if [[ -z $active_before ]]; then
  echo "To use the package from this shell: source .venv/bin/activate"
fi
