#!/usr/bin/env bash
# Trains on a Cloud TPU slice; see --help and launch/README.md.
set -euo pipefail

usage() {
  cat <<'HELP'
Trains on a Cloud TPU slice, from one host to a pod.

  launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE [FLAG...] [--config.x=y...]

Commands
  create   creates the TPU now, or fails if there is none to be had
  queue    asks for the TPU as a queued resource, and returns
  install  copies this working copy to all workers and installs it
  doctor   checks all workers: python -m vit_jax.doctor --require=tpu
  run      starts the training on all workers, in the background
  logs     follows the log of --worker (0)
  stop     tells the run to save its state and end; the TPU stays. End `resume`
           first: it would start the run again
  resume   does all of the above until the run is done: queues the TPU if there
           is none, waits, installs, runs; after a preemption all over again
  status   prints the state of the TPU and of the run on each worker
  delete   deletes the TPU, with --yes; what is in the bucket stays

Flags
  --name=NAME         of the TPU and of its queued resource
  --zone=ZONE         such as us-central1-a
  --project=PROJECT   default: that of gcloud config
  --type=TYPE         of create, queue, resume: v3-128, v5litepod-256, ...
  --version=VERSION   of the TPU's image; by default what suits the type
  --spot              cheaper, and may be taken away at any time
  --config=FILE       of run, resume: the config, in this working copy
  --workdir=gs://...  of run, resume, doctor: the folder of the run
  --config.x=y        changes a field of the config
  --env=NAME=VALUE    of run, resume: a variable of its environment
  --worker=N          of logs: 0, 1, ... or all
  --poll=SECONDS      of resume: between two looks, default 60
  --yes               of delete: yes, delete it
  --dry_run           prints the commands and runs none

Examples
  launch/tpu_vm.sh queue --name=vit --zone=us-central1-a --type=v3-128 --spot
  launch/tpu_vm.sh install --name=vit --zone=us-central1-a
  launch/tpu_vm.sh run --name=vit --zone=us-central1-a \
    --config=configs/vit_i1k.py --workdir=gs://BUCKET/vit_i1k \
    --env=TFDS_DATA_DIR=gs://BUCKET/tfds \
    '--config.train.preprocess=inception_crop(224)|flip_lr'
  launch/tpu_vm.sh logs --name=vit --zone=us-central1-a
  launch/tpu_vm.sh resume --name=vit --zone=us-central1-a --type=v3-128 --spot \
    --config=configs/vit_i1k.py --workdir=gs://BUCKET/vit_i1k \
    --env=TFDS_DATA_DIR=gs://BUCKET/tfds
  launch/tpu_vm.sh delete --name=vit --zone=us-central1-a --yes
HELP
}

die() {
  echo "Error: $*" >&2
  exit 1
}

quoted() {  # its arguments as words that a shell reads back as they were
  local word space='' quote="'\\''"
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/$quote}'" ;;
    esac
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

g() {  # gcloud compute tpus ..., in our zone
  local command=(gcloud compute tpus "$@" --zone="$zone")
  [[ -z "$project" ]] || command+=(--project="$project")
  if [[ -n "$dry_run" ]]; then
    { quoted "${command[@]}" && echo; } >&3
    return
  fi
  "${command[@]}"
}

on_workers() {  # on_workers WORKER 'COMMAND...': runs it in a shell there
  g tpu-vm ssh "$name" --worker="$1" --command="$2"
}

WORKER='bash vit_jax/launch/tpu_worker.sh'  # from the home folder on

need() {
  local flag
  for flag in "$@"; do
    [[ -n "${!flag}" ]] || die "$action needs --$flag=...; see --help."
  done
}

needs_run() {
  need config workdir
  [[ -f "$here/${config%%:*}" ]] ||
    die "--config=$config: no such file in $here."
  if [[ "$workdir" == gs://?* ]]; then return; fi
  [[ "$action" == run && "$type" =~ -(1|4|8)$ ]] ||
    die "--workdir=$workdir is local. Each worker has a disk of its own, and" \
      "a TPU that is taken away takes it along: use --workdir=gs://BUCKET/RUN" \
      '(run alone also takes a local one, with a --type of one host like v3-8).'
}

image() {  # the version of the TPU's image
  if [[ -n "$version" ]]; then echo "$version"; return; fi
  case "$type" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "--type=$type: unknown; give its --version too." ;;
  esac
}

create() {
  need type
  local image
  image="$(image)"
  g tpu-vm create "$name" --accelerator-type="$type" --version="$image" \
    ${spot:+--spot}
}

queue() {
  need type
  local image
  image="$(image)"
  g queued-resources create "$name" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$image" ${spot:+--spot}
}

pack() {  # pack ARCHIVE: what git knows or could be told of, as it is now
  (cd "$here" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
      [[ ! -e "$file" ]] || printf '%s\0' "$file"  # else: deleted here
    done | tar -c -z --null -T - -f "$1")
}

install() {
  local folder=. status=0
  if [[ -n "$dry_run" ]]; then
    echo "git -C $(quoted "$here") ls-files -z --cached --others" \
      "--exclude-standard | tar -C $(quoted "$here") -c -z --null -T -" \
      '-f - > vit_jax.tar.gz' >&3
  else
    folder="$(mktemp -d)"
    pack "$folder/vit_jax.tar.gz" || return 1
  fi
  g tpu-vm scp "$folder/vit_jax.tar.gz" "$name:" --worker=all || status=$?
  [[ -n "$dry_run" ]] || rm -r "$folder"
  (( status == 0 )) || return "$status"
  on_workers all 'rm -rf vit_jax.new && mkdir vit_jax.new &&
    tar -xzf vit_jax.tar.gz -C vit_jax.new &&
    bash vit_jax.new/launch/tpu_worker.sh install'
}

run() {
  needs_run
  on_workers all "$(quoted env ${env[@]+"${env[@]}"}) $WORKER run $(quoted \
    --config="$config" --workdir="$workdir" ${fields[@]+"${fields[@]}"})"
}

doctor() {
  on_workers all \
    "$WORKER doctor --require=tpu $(quoted ${workdir:+--workdir="$workdir"})"
}

describe() {  # describe KIND: prints the state of our resource, or MISSING
  local errors
  errors="$(mktemp)"
  local field=state
  [[ "$1" != queued-resources ]] || field=state.state
  if ! g "$1" describe "$name" --format="value($field)" 2> "$errors"; then
    grep -q NOT_FOUND "$errors" ||
      { cat "$errors" >&2; rm "$errors"; exit 1; }
    echo MISSING
  fi
  rm "$errors"
}

runs() {  # the states of the run on the workers, one a line
  on_workers all "$WORKER state 2>/dev/null || echo state: new" |
    sed -n 's/.*state: //p'
}

status() {
  local state
  state="$(describe queued-resources)"  # here, for its failure to end us
  echo "queued resource: $state"
  state="$(describe tpu-vm)"
  echo "TPU: $state"
  [[ "$state" == MISSING ]] || on_workers all "$WORKER state"
}

delete() {
  [[ -n "$yes" || -n "$dry_run" ]] ||
    die "delete removes the TPU $name and all that is on its disks; say --yes."
  remove
}

say() {
  echo "$(date +%H:%M:%S) $*"
}

resume_dry() {
  echo '# look' >&3 && describe queued-resources && describe tpu-vm
  echo '# if it was taken away, or failed' >&3 && remove
  echo '# if there is none' >&3 && queue
  echo '# when it is there, and new' >&3 && install && run
  echo "# every $poll s, until it is done on all workers" >&3 && runs
}

resume() {
  need type
  needs_run
  if [[ -n "$dry_run" ]]; then resume_dry; return; fi
  image > /dev/null  # a type that is unknown ends it now
  failures=0 looks=0 refusals=0
  local state last=''
  while true; do
    state="$(look)" || state='no answer'
    [[ "$state" == "$last" ]] || say "$name: $state"
    last="$state"
    case "$state" in
      READY) if look_after_run; then return; fi ;;
      MISSING | SUSPENDED | FAILED | PREEMPTED | TERMINATED | STOPPED)
        remove || say "$name: could not delete what is left of it"
        if queue; then refusals=0; else refused; fi
        ;;
    esac
    sleep "$poll"
  done
}

look() {  # the state of the TPU, or of our request for one
  local state
  state="$(describe queued-resources)" || return 1
  # A TPU that `create` made has no queued resource; one that was taken away
  # may be gone before its queued resource says so.
  case "$state" in
    ACTIVE | MISSING) describe tpu-vm ;;
    *) echo "$state" ;;
  esac
}

remove() {  # what is left of a TPU that was taken away
  local state
  state="$(describe queued-resources)" || return 1
  if [[ "$state" != MISSING ]]; then
    g queued-resources delete "$name" --force --quiet  # and its TPU with it
    return
  fi
  state="$(describe tpu-vm)" || return 1
  [[ "$state" == MISSING ]] || g tpu-vm delete "$name" --quiet
}

refused() {  # an outage, or no quota: ten times in a row are enough
  refusals=$((refusals + 1))
  say "$name: could not ask for a TPU ($refusals of 10)"
  (( refusals < 10 )) || die 'gave up. Why is above; if it is quota, see step' \
    '3 of launch/README.md.'
  # 2, 4, 8, 16, 16, ... times --poll, of which `resume` itself sleeps one.
  local i rounds=$((refusals < 4 ? 1 << refusals : 16))
  for (( i = 1; i < rounds; i++ )); do sleep "$poll"; done
}

failed() {  # three times without ten quiet looks in between are enough
  failures=$((failures + 1)) looks=0
  say "$name: $*"
  (( failures < 3 )) || die "gave up. What the workers said:" \
    "launch/tpu_vm.sh logs --name=$name --zone=$zone --worker=all"
}

look_after_run() {  # 0 if the run is done on all workers
  local states
  if ! states="$(runs)" || [[ -z "$states" ]]; then
    say "$name: the workers do not answer"
    return 1
  fi
  if grep -q running <<< "$states"; then
    looks=$((looks + 1))
    (( looks < 10 )) || failures=0
    return 1
  fi
  if ! grep -qvx 'done' <<< "$states"; then
    say "$name: the run is done. Now: launch/tpu_vm.sh delete --name=$name" \
      "--zone=$zone --yes"
    return 0
  fi
  if grep -q failed <<< "$states"; then failed 'the run failed'; fi
  # A new TPU has nothing; a worker that was repaired has nothing either.
  if grep -q new <<< "$states"; then
    say "$name: installing"
    install || { failed 'could not install'; return 1; }
  fi
  say "$name: starting the run"
  run || failed 'could not start the run'
  return 1
}

action="${1:-}"
case "$action" in
  '' | -h | --help | help) usage; exit 0 ;;
esac
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
name='' zone='' project='' type='' version='' config='' workdir=''
spot='' yes='' dry_run='' worker=0 poll=60 fields=() env=()
for argument in "$@"; do
  case "$argument" in
    --help) usage; exit 0 ;;
    --name=* | --zone=* | --project=* | --type=* | --version=* | --config=* | \
      --workdir=* | --worker=* | --poll=*)
      flag="${argument%%=*}"
      printf -v "${flag#--}" '%s' "${argument#*=}"
      ;;
    --spot) spot=1 ;;
    --yes) yes=1 ;;
    --dry_run) dry_run=1 ;;
    --config.?*=*) fields+=("$argument") ;;
    --env=?*=*) env+=("${argument#--env=}") ;;
    *) die "$argument is no flag of this script; see --help." ;;
  esac
done
# A dry run prints commands, inside of $(...) too, and nothing else.
exec 3>&1
[[ -z "$dry_run" ]] || exec > /dev/null

case "$action" in
  create | queue | install | doctor | run | resume | status | delete)
    need name zone
    "$action"
    ;;
  logs)
    need name zone
    on_workers "$worker" 'tail -n 100 -F vit_jax.log'
    ;;
  stop)
    need name zone
    on_workers all "$WORKER stop"
    ;;
  *) die "$action is no command of this script; see --help." ;;
esac
