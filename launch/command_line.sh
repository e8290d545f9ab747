# shellcheck shell=bash
# Sourced by the scripts that start runs on other machines. It parses their flags, prints their dry runs, and reports a
# mistake in one line. A script defines own_flag FLAG, which returns 1 for a flag that is not its own, and then calls
# parse_flags "$@".

out=
config=configs/sd15.py
dry_run=
train_flags=() # flags to pass to spo_jax.train
train=()       # the training command, one element per word; set by set_train

# refuse MESSAGE: ends the script with status 2, as spo_jax.train does after a user's mistake.
refuse() {
  echo "error: $*" >&2
  exit 2
}

# usage: prints the comment at the head of the script.
usage() {
  sed -n '2,${/^#\( \|$\)/!q;s/^# \{0,1\}//p}' "$0"
}

parse_flags() {
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit
        ;;
      --dry-run) dry_run=yes ;;
      --out=*) out=${1#*=} ;;
      --config=*) config=${1#*=} ;;
      --config.*=*) train_flags+=("$1") ;;
      --)
        shift
        train_flags+=("$@")
        return
        ;;
      *) own_flag "$1" || refuse "unknown flag $1 (see --help; put other flags of spo_jax.train after --)" ;;
    esac
    shift
  done
}

# check_run EXAMPLE: checks the flags that every run needs. EXAMPLE is a valid --out, for the message.
check_run() {
  [[ $out ]] || refuse "--out is missing: expected the folder of the run, such as --out=$1"
  # Curves, images and the report are plain files, and spo_jax.train would take the address for a local folder.
  [[ $out != *://* ]] || refuse "--out=$out: a bucket does not work; use a folder on a disk that all hosts share"
  # spo_jax.train takes the name of a shipped config too, such as sd15. The scripts need the file.
  if [[ ! -f ${config%%:*} && -f configs/$config.py ]]; then config=configs/$config.py; fi
  [[ -f ${config%%:*} ]] || refuse "--config=$config: no such file in $PWD"
}

# need TOOL ADVICE: refuses to continue if TOOL cannot be run. A dry run needs no tools.
need() {
  [[ $dry_run ]] || command -v "$1" >/dev/null || refuse "$1 is missing: $2"
}

# run COMMAND...: runs the command, or prints it in a dry run.
run() {
  if [[ $dry_run ]]; then shown "$@"; else "$@"; fi
}

# shown WORD...: prints a line that a shell reads as these words.
shown() {
  local word line=
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      line+="$word "
    elif [[ $word == *\'* ]]; then
      line+="$(printf '%q' "$word") "
    else
      line+="'$word' "
    fi
  done
  echo "${line% }"
}

# set_train PYTHON FLAG...: sets the training command.
set_train() {
  local python=$1
  shift
  train=("$python" -m spo_jax.train "--config=$config" "--out=$out" --auto-resume "$@")
  if ((${#train_flags[@]})); then train+=("${train_flags[@]}"); fi
}
