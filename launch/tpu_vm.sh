#!/usr/bin/env bash
# A Cloud TPU slice from a queued resource, all of its workers, until the run is done.
#
#   launch/tpu_vm.sh [--dry-run] NAME COMMAND [flags]
#   launch/tpu_vm.sh [--dry-run] --delete NAME
#
#   PROJECT=p ZONE=us-west4-a MOUNT='sudo mount 10.0.0.2:/runs /mnt/runs' \
#     launch/tpu_vm.sh first train --config configs/tiny/grpo.py --workdir /mnt/runs/first
#
# Needs  gcloud, logged in; TPU quota for ACCELERATOR in ZONE; a --workdir that every
#        worker sees (Filestore, or a bucket through gcsfuse): MOUNT is run on each.
# Costs  what the slice costs while it exists; the cheapest to try with is ACCELERATOR=
#        v5litepod-4, one worker, some US$ 5 an hour on demand and less with SPOT=1.
#        The slice is deleted when the run ends, unless KEEP=1.
#
# The loop: get the slice, install this checkout, run COMMAND on every worker, look at
# the exit status. 0: done. 2: bad input, given up. 75: stopped on request with a
# checkpoint; anything else: a crash, a watchdog or a lost machine. After either the
# same command goes on from the newest checkpoint, on a new slice if the old one is
# gone, at most RETRIES times without having got to 75.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
accelerator=${ACCELERATOR:-v5litepod-4}
runtime=${RUNTIME:-v2-alpha-tpuv5-lite} # v5p: v2-alpha-tpuv5; v6e: v2-alpha-tpuv6e
retries=${RETRIES:-10}
wait_s=${WAIT:-60} # seconds between looks at the queue, and before another try

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
say() { printf 'tpu_vm.sh: %s\n' "$*" >&2; }
fail() {
  printf 'tpu_vm.sh: error: %s\n' "$*" >&2
  exit 2
}

dry='' delete=''
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) dry=1 ;;
    --delete) delete=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ $# -ge 1 ]] || fail 'want a NAME for the slice; see --help'
name=$1
shift
[[ $# -ge 1 || $delete ]] || fail 'want a COMMAND of vlmrl after NAME; see --help'
place=(--project "${PROJECT:?the Google Cloud project}" --zone "${ZONE:?the zone}")

run() { # runs a command, or prints it
  if [[ $dry ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

queue() { run gcloud compute tpus queued-resources "$@" "${place[@]}" --quiet; }
on_all() { # a command line on every worker at once
  run gcloud compute tpus tpu-vm ssh "$name" --worker all --command "$1" "${place[@]}" --quiet
}

state() { # of the queued resource; nothing if there is none
  queue describe "$name" --format 'value(state.state)' 2>/dev/null || true
}

remove() { queue delete "$name" --force; }

acquire() {
  local now='' spot=()
  [[ ${SPOT:-} ]] && spot=(--spot)
  [[ $dry ]] || now=$(state)
  case $now in
    ACTIVE | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES | CREATING) ;;
    *)
      [[ -z $now ]] || remove
      queue create "$name" --node-id "$name" --accelerator-type "$accelerator" \
        --runtime-version "$runtime" "${spot[@]}"
      ;;
  esac
  if [[ $dry ]]; then
    queue describe "$name" --format 'value(state.state)'
    return
  fi
  until now=$(state) && [[ $now == ACTIVE ]]; do
    [[ $now != FAILED && $now != SUSPENDED && -n $now ]] || return 1
    say "$name is $now"
    sleep "$wait_s"
  done
}

install() {
  local archive=/tmp/vlmrl-$name.tar.gz
  run tar -C "$root" --exclude .git --exclude .venv --exclude .cache --exclude runs \
    -czf "$archive" .
  run gcloud compute tpus tpu-vm scp "$archive" "$name:/tmp/vlmrl.tar.gz" --worker all \
    "${place[@]}" --quiet
  on_all "mkdir -p vlmrl && tar -C vlmrl -xzf /tmp/vlmrl.tar.gz && cd vlmrl &&
 python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
  [[ -z ${MOUNT:-} ]] || on_all "$MOUNT"
}

command_line() { # the same on every worker: JAX finds the others by itself
  printf 'cd vlmrl && exec .venv/bin/vlmrl'
  printf ' %q' "$@"
}

if [[ $delete ]]; then
  remove
  exit
fi
tries=0
while ((tries <= retries)); do
  status=1
  if acquire && install; then
    status=0
    on_all "$(command_line "$@")" || status=$?
  fi
  [[ $dry ]] && break
  case $status in
    0 | 2) break ;;
    75) tries=0 ;;
    *) tries=$((tries + 1)) ;;
  esac
  say "ended with status $status; going on in $wait_s s"
  sleep "$wait_s"
done
[[ ${KEEP:-} ]] || remove
exit "$status"
