#!/usr/bin/env bash
# What launch/tpu_vm.sh runs on each worker of a TPU slice; the source is in
# ~/vit_jax there:
#
#   tpu_worker.sh install      Python and the packages, into ~/vit_jax_venv
#   tpu_worker.sh run FLAG...  starts python -m vit_jax.main in the background
#   tpu_worker.sh doctor FLAG...
#   tpu_worker.sh state        one line: running | done | stopped | failed CODE
#                              | new
#   tpu_worker.sh stop         sends SIGTERM: the run saves its state and ends
set -euo pipefail

SOURCE="$HOME/vit_jax"
PYTHON="$HOME/vit_jax_venv/bin/python"
LOG="$HOME/vit_jax.log"
PID="$HOME/.vit_jax.pid"
STATUS="$HOME/.vit_jax.status"
# What vit_jax.main exits with when it was told to stop and has saved its state
# (EX_TEMPFAIL of sysexits.h: the same command goes on).
STOPPED=75

is_running() {
  # After a reboot the number may belong to another process.
  [[ -f "$PID" ]] && grep -qs vit_jax.main "/proc/$(cat "$PID")/cmdline"
}

install() {
  if is_running; then
    echo "$(hostname): a run is going on; stop it first." >&2
    exit 1
  fi
  # tpu_vm.sh has put the new source, and this script, beside the old one.
  if [[ -d "$SOURCE.new" ]]; then
    rm -rf "$SOURCE"
    mv "$SOURCE.new" "$SOURCE"
  fi
  # The image's own Python is 3.10, which JAX no longer supports.
  python3 -m pip install --quiet --user --upgrade uv
  local uv="$HOME/.local/bin/uv"
  [[ -x "$PYTHON" ]] || "$uv" venv --quiet --python 3.11 "$HOME/vit_jax_venv"
  (cd "$SOURCE" && "$uv" pip install --quiet --python "$PYTHON" \
    --editable '.[tpu,data,gcs]')
  echo "$(hostname): installed"
}

run() {
  if is_running; then
    echo "$(hostname): already running, see tpu_vm.sh logs" >&2
    exit 1
  fi
  rm -f "$STATUS"
  cd "$SOURCE"
  # Shards are files, and all are kept open.
  ulimit -n "$(ulimit -H -n)"
  # A session of its own, without a terminal: it outlives the ssh connection.
  # The shell that waits for it ignores SIGTERM, which a machine that shuts
  # down sends to all processes: it has to write down how the run ended.
  # shellcheck disable=SC2016  # expanded by that shell
  nohup setsid bash -c '
    status_file=$1; shift
    trap : TERM
    "$@" & child=$!
    while kill -0 "$child" 2>/dev/null; do
      wait "$child" || true  # a signal interrupts it
    done
    code=0; wait "$child" || code=$?  # the shell remembers how it ended
    echo "$code" > "$status_file"
  ' run "$STATUS" "$PYTHON" -u -m vit_jax.main "$@" \
    >> "$LOG" 2>&1 < /dev/null &
  echo "$!" > "$PID"
  echo "$(hostname): started, output in $LOG"
}

state() {
  if is_running; then
    echo running
    return
  fi
  [[ -f "$STATUS" ]] || { [[ -f "$PID" ]] && echo stopped || echo new; return; }
  case "$(cat "$STATUS")" in
    0) echo 'done' ;;
    "$STOPPED") echo stopped ;;
    *) echo "failed $(cat "$STATUS")" ;;
  esac
}

stop() {
  is_running || { echo "$(hostname): not running"; return; }
  pkill -TERM -P "$(cat "$PID")"  # its children: the run
  echo "$(hostname): told to save and stop"
}

case "${1:-}" in
  install) install ;;
  run) shift; run "$@" ;;
  doctor) shift; cd "$SOURCE"; exec "$PYTHON" -m vit_jax.doctor "$@" ;;
  state) echo "state: $(state)" ;;
  stop) stop ;;
  *) echo "usage: $0 install | run | doctor | state | stop" >&2; exit 2 ;;
esac
