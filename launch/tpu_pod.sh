#!/usr/bin/env bash
# Trains on a TPU pod, taken as a queued resource: bash launch/tpu_pod.sh ACTION --zone=ZONE [flags]
#   pod=(--zone=europe-west4-b --spot --nfs=10.0.0.2:/share --out=/mnt/spo_jax/sd15 --file=prompts.json)
#   bash launch/tpu_pod.sh create "${pod[@]}"
#   bash launch/tpu_pod.sh watch "${pod[@]}"
#   bash launch/tpu_pod.sh delete "${pod[@]}"
#
# Actions:
#   create    ask for the pod, which may wait in the queue for long
#   watch     wait for it, install, train; when it was preempted, ask for another and go on; ends when the run is done
#   install   copy this checkout to all workers and install it        (watch does it)
#   train     start the run on all workers                            (watch does it)
#   log       what worker 0 prints, as it comes
#   stop      SIGTERM to the run on all workers: it finishes the batch and saves (end watch first, it would go on)
#   delete    give the pod back; nothing else does, and it costs until then
#
#   --zone=ZONE              where the pod is; required
#   --name=NAME              its name (spo-jax)
#   --project=PROJECT        the one gcloud is set to
#   --accelerator-type=TYPE  v5p-16, that is 8 chips on 2 hosts
#   --runtime-version=NAME   what goes with the type, for v4, v5e, v5p and v6e
#   --spot                   cheaper, and may be preempted
#   --create-flag=FLAG       a further flag of `gcloud compute tpus queued-resources create`; again for more
#   --nfs=HOST:/SHARE        a share that all workers mount (Filestore, say); required, for preemption deletes disks.
#                            none: --out is on a disk that the workers share already, or there is one worker only
#   --mount=FOLDER           where (/mnt/spo_jax)
#   --out=FOLDER             what the run leaves behind, below --mount; required by train and watch
#   --config=FILE            the config, below this checkout (configs/sd15.py)
#   --config.FIELD=VALUE     a field of it; further flags of spo_jax.train follow after --
#   --file=FILE              a file that the run reads (prompts), copied beside the package; again for more
#   --poll=SECONDS           between two looks of watch (60)
#   --retries=N              how often watch starts a run again that failed, not counting preemption (3)
#   --dry-run                print the commands, run nothing
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/command_line.sh

unit=spo_jax # of systemd, on the workers
name=spo-jax
zone=
project=
type=v5p-16
runtime=
create_flags=()
nfs=
mount=/mnt/spo_jax
files=()
poll=60
retries=3
failures=0

own_flag() {
  case $1 in
    --zone=*) zone=${1#*=} ;;
    --name=*) name=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --accelerator-type=*) type=${1#*=} ;;
    --runtime-version=*) runtime=${1#*=} ;;
    --spot) create_flags+=(--spot) ;;
    --create-flag=*) create_flags+=("${1#*=}") ;;
    --nfs=*) nfs=${1#*=} ;;
    --mount=*) mount=${1#*=} ;;
    --file=*) files+=("${1#*=}") ;;
    --poll=*) poll=${1#*=} ;;
    --retries=*) retries=${1#*=} ;;
    *) return 1 ;;
  esac
}

set_runtime() {
  case $type in
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    *) refuse "--accelerator-type=$type: which --runtime-version goes with it is not known here, name it" ;;
  esac
}

check_pod_run() {
  local file
  check_run "$mount/sd15"
  [[ $config != /* ]] || refuse "--config=$config: expected a path relative to $PWD"
  [[ $nfs ]] || refuse "--nfs is missing: a share for --out, such as --nfs=10.0.0.2:/share, or --nfs=none (see --help)"
  [[ $nfs == none || $out == "$mount"/?* ]] || refuse "--out=$out: expected a folder below $mount, where the share is"
  [[ $out == /* ]] || refuse "--out=$out: expected an absolute path"
  for file in ${files[@]+"${files[@]}"}; do [[ -f $file ]] || refuse "--file=$file: no such file in $PWD"; done
}

say() {
  echo "$(date +%H:%M:%S) $*" >&2
}

tpus() {
  run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"} --quiet
}

# on WORKER COMMAND: a shell command on one worker (its number) or on all, as the user who has logged in.
on() {
  tpus tpu-vm ssh "$name" "--worker=$1" "--command=$2"
}

create() {
  [[ $runtime ]] || set_runtime
  tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime" \
    ${create_flags[@]+"${create_flags[@]}"}
}

delete() {
  tpus queued-resources delete "$name" --force
}

# install: packed from the working tree, so that the workers have what is here, committed or not. The images of TPU VMs
# have a Python that is too old; uv brings one.
install() {
  local archive="${TMPDIR:-/tmp}/$name.tar.gz" file pack steps
  pack=(--exclude=__pycache__ spo_jax configs launch setup.py pyproject.toml README.md LICENSE "${config%%:*}")
  for file in ${files[@]+"${files[@]}"}; do pack+=(-C "$(cd "$(dirname "$file")" && pwd)" "$(basename "$file")"); done
  run tar -czf "$archive" "${pack[@]}"
  tpus tpu-vm scp "$archive" "$name:spo_jax.tar.gz" --worker=all
  steps="mkdir -p spo_jax && tar -xzf spo_jax.tar.gz -C spo_jax && cd spo_jax"
  steps+=" && python3 -m pip install --quiet --user uv"
  steps+=" && { test -x .venv/bin/python || python3 -m uv venv --quiet --python=3.12 .venv; }"
  steps+=" && python3 -m uv pip install --quiet --python=.venv/bin/python --editable=.[tpu]"
  on all "$steps"
  on 0 "touch spo_jax/.installed" # on all of them, or this line is not reached
  run rm -f "$archive"
}

# folder: shell command that makes --out, on the share if there is one.
folder() {
  local at
  at=$(printf '%q' "$mount")
  if [[ $nfs != none ]]; then
    echo -n "{ mountpoint -q $at || { sudo apt-get -qq -o DPkg::Lock::Timeout=600 update"
    echo -n " && sudo apt-get -qq -o DPkg::Lock::Timeout=600 install nfs-common"
    echo -n " && sudo mkdir -p $at && sudo mount -t nfs $(printf '%q' "$nfs") $at; }; } && "
  fi
  # The root of a share belongs to root as a rule.
  echo "sudo install -d -o \$USER $(printf '%q' "$out")"
}

# train_on_all: as a unit of systemd, which outlives the connection, sends SIGTERM and waits when the machine goes down,
# starts the run again after status 75, and remembers how it ended. LimitMEMLOCK: the TPU driver pins host memory.
# The cache of compiled programs lies beside the checkpoints, for the next machine is a new one.
train_on_all() {
  local steps words
  set_train python --multihost
  words=$(printf ' %q' "${train[@]:1}")
  steps="$(folder) && { sudo systemctl stop $unit; sudo systemctl reset-failed $unit; true; } 2>/dev/null"
  steps+=" && sudo systemd-run --quiet --unit=$unit --uid=\$USER --working-directory=\$HOME/spo_jax"
  steps+=" --remain-after-exit --property=RestartForceExitStatus=75 --property=RestartSec=10"
  steps+=" --property=TimeoutStopSec=300 --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576"
  steps+=" --setenv=JAX_PLATFORMS=tpu,cpu --setenv=JAX_COMPILATION_CACHE_DIR=$(printf '%q' "$out/xla")"
  on all "$steps \$HOME/spo_jax/.venv/bin/python$words"
}

log() {
  on 0 "sudo journalctl --unit=$unit --output=cat --lines=100 ${1:-}"
}

# pod_state: of the queued resource, in the cloud's words; ABSENT where there is none, UNKNOWN where gcloud fails.
pod_state() {
  local errors answer
  errors=$(mktemp)
  if answer=$(tpus queued-resources describe "$name" "--format=value(state.state)" 2>"$errors"); then
    echo "$answer"
  elif grep -q NOT_FOUND "$errors"; then
    echo ABSENT
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}

run_state() {
  local question="systemctl show $unit --property=ActiveState,SubState,ExecMainStatus"
  on 0 "$question; test ! -e spo_jax/.installed || echo Installed=yes"
}

# again ACTION: in a bash of its own, so that it stops at its first error while this one goes on.
again() {
  bash launch/tpu_pod.sh "$1" "${given[@]}" || { say "$1 failed; looking again in $poll s" && return 1; }
}

# look_after_run: takes the next step of the run on an active pod, or ends the script with the run's status.
look_after_run() {
  local answer status
  answer=$(run_state) || { say "worker 0 does not answer" && return 0; }
  status=$(sed -n 's/^ExecMainStatus=//p' <<<"$answer")
  case $(sed -n 's/^ActiveState=//p' <<<"$answer")/$(sed -n 's/^SubState=//p' <<<"$answer") in
    active/exited)
      say "the run is done: see $out; the pod is still there, and costs, until you delete it"
      exit 0
      ;;
    failed/*)
      log || true
      if ((status == 2)); then say "the flags or files are wrong, see above" && exit 2; fi
      failures=$((failures + 1))
      if ((failures > retries)); then say "the run failed with status $status, see above" && exit 1; fi
      say "the run failed with status $status; starting it again ($failures of $retries)"
      again train || true
      ;;
    inactive/*)
      if [[ $answer != *Installed=yes* ]]; then again install || return 0; fi
      again train || true
      ;;
  esac
}

watch_pod() {
  local state seen=
  while :; do
    state=$(pod_state)
    [[ $state == "$seen" ]] || say "pod $name: $state"
    seen=$state
    case $state in
      ACTIVE) look_after_run ;;
      SUSPENDED)
        say "preempted; asking for another pod"
        failures=0
        if again delete; then again create || true; fi
        ;;
      # FAILED is about the request (quota, zone, type), which would fail again.
      ABSENT) say "there is no queued resource $name in $zone: create it first" && exit 1 ;;
      FAILED | DELETING) say "see: gcloud compute tpus queued-resources describe $name --zone=$zone" && exit 1 ;;
    esac
    sleep "$poll"
  done
}

watch_dry() {
  echo "# every $poll s:"
  tpus queued-resources describe "$name" "--format=value(state.state)"
  echo "# while it is ACTIVE, how the run is:"
  run_state
  echo "# where nothing is installed:"
  install
  echo "# where it does not run:"
  train_on_all
  echo "# when it is SUSPENDED, that is preempted:"
  delete
  create
}

action=${1:-}
case $action in
  create | watch | install | train | log | stop | delete) shift ;;
  --help | -h) usage && exit ;;
  *) refuse "the first word is ${action:-missing}: expected create, watch, install, train, log, stop or delete" ;;
esac
given=("$@")
parse_flags "$@"
case $action in
  train | watch) check_pod_run ;;
esac
[[ $zone ]] || refuse "--zone is missing: where the pod is, such as --zone=europe-west4-b"
need gcloud "install the Google Cloud CLI and log in"

case $action in
  train) train_on_all ;;
  watch) if [[ $dry_run ]]; then watch_dry; else watch_pod; fi ;;
  log) log --follow ;;
  stop) on all "sudo systemctl stop $unit" ;;
  *) "$action" ;;
esac
