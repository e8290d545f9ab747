#!/usr/bin/env bash
# Trains on a TPU pod, taken as a queued resource: bash launch/tpu_pod.sh ACTION --zone=ZONE [flags]
#   pod=(--zone=europe-west4-b --spot --nfs=10.0.0.2:/share --out=/mnt/spo_jax/sd15)
#   pod+=(--file=data/prompts/4k_training_prompts.json --file=data/prompts/validation_unique.json)
#   bash launch/tpu_pod.sh create "${pod[@]}"
#   bash launch/tpu_pod.sh watch "${pod[@]}"
#   bash launch/tpu_pod.sh delete "${pod[@]}"
#
# Actions:
#   create    request the pod, which may wait in the queue for a long time
#   watch     wait for the pod, install, train; after a preemption, request another pod and resume; end with the run
#   install   copy this checkout to all workers and install it        (watch does this)
#   train     start the run on all workers                            (watch does this)
#   log       show what worker 0 prints, as it is printed
#   stop      send SIGTERM to the run on all workers: it finishes the batch and saves (end watch first, or it restarts)
#   delete    give the pod back; nothing else does, and the pod costs money until then
#
#   --zone=ZONE              use a pod in this zone; required
#   --name=NAME              give the pod this name (spo-jax)
#   --project=PROJECT        use this project (the one that gcloud is set to)
#   --accelerator-type=TYPE  request this type (v5p-16: 8 chips on 2 hosts)
#   --runtime-version=NAME   use this runtime (for v4, v5e, v5p and v6e: the one that belongs to the type)
#   --spot                   request Spot capacity, which is cheaper and may be preempted
#   --create-flag=FLAG       pass this flag to `gcloud compute tpus queued-resources create`; may be repeated
#   --nfs=HOST:/SHARE        mount this share (Filestore, for example) on all workers; required, because preemption
#                            deletes disks. none: --out is on a disk that the workers share already, or there is only
#                            one worker
#   --mount=FOLDER           mount the share here (/mnt/spo_jax)
#   --out=FOLDER             write the results here, below --mount; required by train and watch
#   --config=FILE            read the settings from this file, below this checkout (configs/sd15.py)
#   --config.FIELD=VALUE     override a field of the config; put other flags of spo_jax.train after --
#   --file=FILE              copy this file, which the run reads (prompts), to the same path below the package's folder
#                            (if it is not below this checkout, into that folder itself); may be repeated
#   --extra=NAMES            install these extras: tpu (the default), or several, such as tpu,data to train a preference
#                            model
#   --poll=SECONDS           let watch look at the pod at this interval (60)
#   --retries=N              let watch restart a run that fails at most N times, not counting preemption (3)
#   --dry-run                print the commands and run none of them
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
extra=tpu
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
    --extra=*) extra=${1#*=} ;;
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
    *) refuse "--accelerator-type=$type: the runtime of this type is not known; set --runtime-version" ;;
  esac
}

check_pod_run() {
  local file
  check_run "$mount/sd15"
  [[ $config != /* ]] || refuse "--config=$config: expected a path relative to $PWD"
  [[ $nfs ]] || refuse "--nfs is missing: expected a share such as --nfs=10.0.0.2:/share, or --nfs=none (see --help)"
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

# on WORKER COMMAND: runs a shell command on one worker (its number) or on all workers, as the user who has logged in.
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

# install: packs the working tree, so that the workers get the files as they are here, committed or not. The images of
# TPU VMs have a Python that is too old; uv installs a newer one.
install() {
  local archive="${TMPDIR:-/tmp}/$name.tar.gz" file pack steps
  pack=(--exclude=__pycache__ spo_jax configs launch setup.py pyproject.toml README.md LICENSE "${config%%:*}")
  for file in ${files[@]+"${files[@]}"}; do
    case $file in
      /* | ..*) pack+=(-C "$(cd "$(dirname "$file")" && pwd)" "$(basename "$file")") ;;
      *) pack+=(-C "$PWD" "$file") ;;
    esac
  done
  run tar -czf "$archive" "${pack[@]}"
  tpus tpu-vm scp "$archive" "$name:spo_jax.tar.gz" --worker=all
  steps="mkdir -p spo_jax && tar -xzf spo_jax.tar.gz -C spo_jax && cd spo_jax"
  steps+=" && python3 -m pip install --quiet --user uv"
  steps+=" && { test -x .venv/bin/python || python3 -m uv venv --quiet --python=3.12 .venv; }"
  steps+=" && python3 -m uv pip install --quiet --python=.venv/bin/python --editable=$(printf '%q' ".[$extra]")"
  on all "$steps"
  on 0 "touch spo_jax/.installed" # reached only if the installation succeeded on all workers
  run rm -f "$archive"
}

# folder: prints a shell command that makes --out, on the share if there is one.
folder() {
  local at
  at=$(printf '%q' "$mount")
  if [[ $nfs != none ]]; then
    echo -n "{ mountpoint -q $at || { sudo apt-get -qq -o DPkg::Lock::Timeout=600 update"
    echo -n " && sudo apt-get -qq -o DPkg::Lock::Timeout=600 install nfs-common"
    echo -n " && sudo mkdir -p $at && sudo mount -t nfs $(printf '%q' "$nfs") $at; }; } && "
  fi
  # The root folder of a share usually belongs to root.
  echo "sudo install -d -o \$USER $(printf '%q' "$out")"
}

# train_on_all: starts the run on all workers as a unit of systemd, which outlives the connection, sends SIGTERM and
# waits when the machine shuts down, starts the run again after status 75, and keeps the status with which it ended.
# LimitMEMLOCK is infinite because the TPU driver pins host memory. The cache of compiled programs is next to the
# checkpoints, because the next machine has a new disk.
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

# pod_state: prints the state of the queued resource as gcloud reports it, ABSENT if there is none, or UNKNOWN if gcloud
# fails.
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

# run_state: prints the state of the unit on worker 0, and whether the package is installed.
run_state() {
  local question="systemctl show $unit --property=ActiveState,SubState,ExecMainStatus"
  on 0 "$question; test ! -e spo_jax/.installed || echo Installed=yes"
}

# again ACTION: runs the action in another bash, which stops at the first error, while this one continues.
again() {
  bash launch/tpu_pod.sh "$1" "${given[@]}" || { say "$1 failed; looking again in $poll s" && return 1; }
}

# look_after_run: installs, starts or restarts the run on an active pod if necessary, or ends the script with the run's
# status.
look_after_run() {
  local answer status
  answer=$(run_state) || { say "worker 0 does not answer" && return 0; }
  status=$(sed -n 's/^ExecMainStatus=//p' <<<"$answer")
  case $(sed -n 's/^ActiveState=//p' <<<"$answer")/$(sed -n 's/^SubState=//p' <<<"$answer") in
    active/exited)
      say "the run is done: see $out; the pod still exists, and costs money until you delete it"
      exit 0
      ;;
    failed/*)
      log || true
      if ((status == 2)); then say "the flags or files are wrong, see above" && exit 2; fi
      if ((status == 130)); then say "the run was interrupted (SIGINT) and has saved; train resumes it" && exit 130; fi
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
        say "preempted; requesting another pod"
        failures=0
        if again delete; then again create || true; fi
        ;;
      # FAILED refers to the request (quota, zone, type), which would fail again.
      ABSENT) say "there is no queued resource $name in $zone: create it first" && exit 1 ;;
      FAILED | DELETING) say "see: gcloud compute tpus queued-resources describe $name --zone=$zone" && exit 1 ;;
    esac
    sleep "$poll"
  done
}

watch_dry() {
  echo "# every $poll s:"
  tpus queued-resources describe "$name" "--format=value(state.state)"
  echo "# if the pod is ACTIVE, look at the run:"
  run_state
  echo "# if nothing is installed:"
  install
  echo "# if the run has not started:"
  train_on_all
  echo "# if the pod is SUSPENDED, that is preempted:"
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
[[ $zone ]] || refuse "--zone is missing: expected the zone of the pod, such as --zone=europe-west4-b"
need gcloud "install the Google Cloud CLI and log in"

case $action in
  train) train_on_all ;;
  watch) if [[ $dry_run ]]; then watch_dry; else watch_pod; fi ;;
  log) log --follow ;;
  stop) on all "sudo systemctl stop $unit" ;;
  *) "$action" ;;
esac
