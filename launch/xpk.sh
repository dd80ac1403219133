#!/usr/bin/env bash
# One workload on a GKE cluster that XPK made (github.com/AI-Hypercomputer/xpk).
#
#   launch/xpk.sh [--dry-run] NAME COMMAND [flags]
#
#   PROJECT=p ZONE=us-west4-a CLUSTER=c IMAGE=i \
#     launch/xpk.sh first train --config configs/tiny/grpo.py --workdir /mnt/runs/first
#
# Needs  xpk and kubectl; a cluster (`xpk cluster create --cluster $CLUSTER --tpu-type
#        $TPU_TYPE --num-slices 1`); IMAGE with vlmrl in it, see gke_jobset.yaml; a
#        storage that XPK mounts into the pods (`xpk storage attach`) for --workdir.
# Costs  the cluster's nodes while they exist, whether a workload runs or not: TPU_TYPE=
#        v5litepod-4 is the cheapest, some US$ 5 an hour on demand.
#
# XPK writes a JobSet. It starts the run again after a crash and after a preemption (75),
# RESTARTS times in all; the grace period is the time a run has to save.
set -euo pipefail

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
fail() {
  printf 'xpk.sh: error: %s\n' "$*" >&2
  exit 2
}

dry=''
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dry-run) dry=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown option $1" ;;
  esac
  shift
done
[[ $# -ge 2 ]] || fail 'want a NAME and a COMMAND of vlmrl; see --help'
name=$1
shift
inside=$(printf '%q ' vlmrl "$@")
words=(
  xpk workload create
  --project "${PROJECT:?the Google Cloud project}"
  --zone "${ZONE:?the zone}"
  --cluster "${CLUSTER:?the cluster}"
  --workload "$name"
  --tpu-type "${TPU_TYPE:-v5litepod-4}"
  --num-slices "${SLICES:-1}"
  --docker-image "${IMAGE:?a container image with vlmrl in it}"
  --max-restarts "${RESTARTS:-50}"
  --restart-on-exit-codes '1,70,75'
  --termination-grace-period-seconds "${GRACE:-300}"
  --command "exec ${inside% }"
)
if [[ $dry ]]; then
  printf '%q ' "${words[@]}" | sed 's/ $//'
  echo
else
  exec "${words[@]}"
fi
