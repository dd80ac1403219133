#!/usr/bin/env bash
# Installs vlmrl into .venv beside this checkout's pyproject.toml and runs it there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
torch='torch==2.13.0' # exact: a newer one may bring a CUDA toolkit that no test needs
serving=(fastapi uvicorn openai accelerate) # what `transformers serve` runs on
axe='axe-core@4.14.1' # finds what a page hides from readers by keyboard and ear
debian=(chromium fonts-dejavu-core shellcheck slurm-wlm munge)

usage() {
  cat <<'TEXT'
usage: launch/local.sh demo [flags]                the main job in small, from start to end
       launch/local.sh test [--all] [pytest flags] the tests
       launch/local.sh COMMAND [flags]             any other command of vlmrl
       launch/local.sh --processes N COMMAND [flags]   the same as N processes
       launch/local.sh --help

Needs Python 3.11 or newer with its venv module. Makes .venv, installs what
pyproject.toml asks for if it changed, then runs. Safe to run again at any time.

`test` runs what is quick and needs pip alone, and lists by name what did not run.
`test --all` runs the slow tests too, for which it installs PyTorch and what serves its
models, vLLM's CPU build below ~/.cache/vlmrl, TPU's compiler, Debian's chromium,
shellcheck and slurm-wlm, and npm's axe-core, and fails if any test was left out that
could have run.

`--processes N` starts COMMAND N times with the addresses that make them one run, as on
N hosts (train and eval know how): 127.0.0.1 and PORT, 8476 by default. Process 0 speaks;
what the others say is in .cache/process-I.log. SIGTERM goes to all of them. With
DEVICES=D each has D CPU devices. --dry-run after N prints the commands.

Exit status of a run: 0 done; 2 bad input; 70 ended by the watchdog; 75 stopped on
request with a checkpoint, the same command goes on.

PYTHON=/path/to/python3 chooses the Python that .venv is made from.
VLMRL_CONSTRAINTS=FILE pins what is installed into it to a pip constraints file, as
.ci/constraints.txt is; vLLM's own environment has pins of its own.
TEXT
}

say() { printf 'local.sh: %s\n' "$*"; }
fail() {
  printf 'local.sh: error: %s\n' "$*" >&2
  exit 1
}

find_python() { # prints the first Python that is new enough and can make environments
  local python newest=''
  for python in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
    newest=${newest:-$python}
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      printf '%s' "$python"
      return
    fi
  done
  if [[ -n $newest ]]; then
    fail "$newest has no venv; bring it with: apt-get install -y python3-venv"
  fi
  fail "needs Python 3.11 or newer; bring it with: apt-get install -y python3 python3-venv"
}

make_venv() {
  local python
  if [[ -e $venv/.installing ]]; then
    say "the last installation was cut short: starting anew"
    rm -rf "$venv"
  elif [[ -e $venv ]] && ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "$venv is unfinished or broken: starting anew"
    rm -rf "$venv"
  fi
  if [[ ! -e $venv ]]; then
    python=$(find_python)
    say "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
  fi
}

pip_install() { # pip install, leaving a mark behind only if it was killed
  local status=0 pins=()
  [[ ! ${VLMRL_CONSTRAINTS:-} ]] || pins=(--constraint "$VLMRL_CONSTRAINTS")
  touch "$venv/.installing"
  "$venv/bin/python" -m pip install --disable-pip-version-check \
    ${pins[@]+"${pins[@]}"} "$@" ||
    status=$?
  rm "$venv/.installing"
  return "$status"
}

install() { # install EXTRA...: the checkout in editable form, unless that was done
  make_venv
  local extras stamp wanted
  extras=$(IFS=, && printf '%s' "$*")
  stamp=$venv/.installed${extras:+-$extras}
  wanted="$root $(cksum <"$root/pyproject.toml")"
  if [[ ${VLMRL_CONSTRAINTS:-} ]]; then
    [[ -r $VLMRL_CONSTRAINTS ]] || fail "VLMRL_CONSTRAINTS: no file $VLMRL_CONSTRAINTS"
    wanted+=" $(cksum <"$VLMRL_CONSTRAINTS")"
  fi
  if [[ -e $stamp && $(<"$stamp") == "$wanted" ]]; then
    return
  fi
  say "installing vlmrl${extras:+ with $extras} into $venv"
  pip_install --editable "$root${extras:+[$extras]}" ||
    fail "pip could not install vlmrl; run this again to go on"
  printf '%s' "$wanted" >"$venv/.installed" # every extra includes the core
  printf '%s' "$wanted" >"$stamp"
}

install_torch() {
  local all
  all=$(IFS=, && printf '%s' "torch,${serving[*]}")
  if "$venv/bin/python" -c "import $all" 2>/dev/null; then
    return
  fi
  say "installing $torch and ${serving[*]}"
  pip_install "${serving[@]}" "$torch" || fail "pip could not install $torch"
}

install_debian() {
  local package missing=()
  command -v npm >/dev/null || debian+=(npm)
  for package in "${debian[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
  done
  if ((${#missing[@]} == 0)); then
    return
  fi
  if ((EUID != 0)); then
    fail "test --all needs: sudo apt-get install -y ${missing[*]}"
  fi
  say "installing Debian's ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${missing[@]}" >/dev/null || fail "apt-get could not install ${missing[*]}"
}

install_axe() {
  if grep -q "\"${axe#*@}\"" "$venv/axe/node_modules/axe-core/package.json" 2>/dev/null; then
    return
  fi
  say "installing $axe"
  npm install --silent --no-save --no-audit --no-fund --prefix "$venv/axe" "$axe" \
    >/dev/null || fail "npm could not install $axe"
}

install_vllm() { # in an environment of its own: it asks for another torch's companions
  "$venv/bin/python" "$root/third_party/peers/vllm_generate.py" --prepare ||
    fail "pip could not install vLLM's CPU build"
}

run_tests() {
  local flags=() workers
  if [[ ${1:-} == --all ]]; then
    shift
    install dev tpu
    install_torch
    install_debian
    install_axe
    install_vllm
    flags=(--durations=30 --all-must-run)
  else
    install dev
    flags=(--quick)
  fi
  # Compiling takes one core, so a worker per core halves the time; each wants a GiB or
  # two of memory. A file stays with one worker, which loads its models once. Files are
  # taken in the order of collection, which has the long ones first (tests/conftest.py).
  workers=$(nproc 2>/dev/null || echo 2)
  workers=$((workers < 4 ? workers : 4))
  say "running the tests with $workers workers"
  cd "$root"
  exec "$venv/bin/python" -m pytest -n "$workers" --dist loadfile \
    --no-loadscope-reorder "${flags[@]}" "$@"
}

run_processes() { # run_processes N [--dry-run] COMMAND [flags]
  [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail "--processes: want a number, not '${1:-}'"
  local count=$1 i pids=() status=0 one dry='' words log
  shift
  if [[ ${1:-} == --dry-run ]]; then
    dry=1
    shift
  fi
  [[ $# -ge 1 ]] || fail '--processes: want a COMMAND after the number'
  if [[ ${DEVICES:-} ]]; then
    XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$DEVICES"
    export XLA_FLAGS JAX_PLATFORMS=cpu
  fi
  [[ $dry ]] || install
  for ((i = 0; i < count; i++)); do
    words=("$venv/bin/python" -m vlmrl.main.cli "$@"
      --coordinator "127.0.0.1:${PORT:-8476}" --processes "$count" --process "$i")
    if [[ $dry ]]; then
      printf '%q ' "${words[@]}" | sed 's/ $//'
      echo
    elif ((i == 0)); then
      "${words[@]}" &
      pids+=("$!")
    else
      log=$root/.cache/process-$i.log
      mkdir -p "$root/.cache"
      "${words[@]}" >"$log" 2>&1 &
      pids+=("$!")
    fi
  done
  [[ $dry ]] && return
  trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
  for i in "${!pids[@]}"; do
    while :; do
      one=0
      wait "${pids[i]}" || one=$?
      # A signal that was passed on ends `wait` as well, above 128.
      if ((one <= 128)) || ! kill -0 "${pids[i]}" 2>/dev/null; then break; fi
    done
    ((one == 0)) || say "process $i ended with status $one"
    ((status != 0)) || status=$one
  done
  return "$status"
}

case ${1:---help} in
  -h | --help) usage ;;
  test)
    shift
    run_tests "$@"
    ;;
  --processes)
    shift
    run_processes "$@"
    ;;
  *)
    install
    exec "$venv/bin/python" -m vlmrl.main.cli "$@"
    ;;
esac
