#!/bin/sh
# Makes .venv and installs Opsin into it. `make setup` and `make setup-test` call this; a stamp keeps them from doing
# it twice.
#
#   deploy/setup.sh run|test      test: also what only the checks and benchmarks need
#
# PYTHON            which Python makes .venv (default: python3, else the newest python3.N)
# TORCH_CPU_INDEX   where CPU builds of torch are, asked first where there is no NVIDIA GPU; empty: not asked
set -eu

MODE=${1:-run}
PINS=constraints.txt
VENV=.venv
LOG=$VENV/setup.log
TORCH_CPU_INDEX=${TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}
INDEX_SECONDS=${INDEX_SECONDS:-5}
NVIDIA_DEVICE=${NVIDIA_DEVICE:-/dev/nvidia0}

cd "$(dirname "$0")/.."
ROOT=$(pwd -P)

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# ------------------------------------------------------------------------------------------------ what is here

version_of() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# Sets PYTHON.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        found=$(version_of "$PYTHON") || fail "PYTHON=$PYTHON does not run; name a Python 3.11 or newer."
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is Python $found; Opsin needs 3.11 or newer."
        return
    fi
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$PYTHON"; then return; fi
    done
    found=$(version_of python3) || fail "there is no python3 here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3."
    fail "python3 is Python $found and Opsin needs 3.11 or newer; install one and name it: make PYTHON=python3.12."
}

check_venv_module() {
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null && return
    short=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    fail "Python $short comes without its venv module; on Debian and Ubuntu: apt install python$short-venv."
}

has_nvidia() { [ -e "$NVIDIA_DEVICE" ] || nvidia-smi -L >/dev/null 2>&1; }

pinned_torch() { sed -n 's/^torch==//p' "$PINS"; }

has_pinned_torch() {
    for folder in "$VENV"/lib/python3*/site-packages/torch-"$(pinned_torch)"*.dist-info; do
        [ -d "$folder" ] && return
    done
    return 1
}

free_kib() { df -Pk . | awk 'NR == 2 {print $4}'; }

check_disk() {
    if has_pinned_torch; then need=1; elif has_nvidia; then need=8; else need=3; fi
    [ "$MODE" = run ] || need=$((need + 1))
    free=$(free_kib)
    case $free in '' | *[!0-9]*) return ;; esac
    [ "$free" -ge $((need * 1000 * 1000)) ] ||
        fail "too little disk: about $need GB are needed in $ROOT, $((free / 1000)) MB are free."
}

# ------------------------------------------------------------------------------------------------ installing

pip_install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input "$@" >"$LOG" 2>&1
}

# The last resort of every pip failure: one sentence that says what to do.
explain() {
    [ -z "${CI:-}" ] || tail -n 40 "$LOG" >&2
    if grep -q 'No space left on device' "$LOG"; then
        fail "the disk filled up while installing; $(($(free_kib) / 1000)) MB are free (details: $LOG)."
    elif grep -Eq 'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Network is unreachable' "$LOG"; then
        fail "the package index cannot be reached; check the network, or set PIP_INDEX_URL or HTTPS_PROXY (details: $LOG)."
    fi
    reason=$(grep '^ERROR:' "$LOG" | tail -n 1)
    fail "pip failed: ${reason:-no reason given} (details: $LOG)."
}

# Prints why not. A look-up that hangs in the resolver obeys no socket timeout, so a thread does it.
answers() {
    "$VENV/bin/python" - "$1" "$INDEX_SECONDS" <<'PY'
import os, sys, threading, urllib.request

url, seconds = sys.argv[1], float(sys.argv[2])


def ask():
    try:
        urllib.request.urlopen(url).read(1)
    except Exception as error:
        print(getattr(error, "reason", error), flush=True)
        os._exit(1)
    os._exit(0)


threading.Thread(target=ask, daemon=True).start()
threading.Event().wait(seconds)
print(f"nothing within {seconds:g} s", flush=True)
os._exit(1)
PY
}

# Elsewhere than on Linux pip's default is a CPU build. With an NVIDIA GPU the default is the build wanted.
install_cpu_torch() {
    if has_pinned_torch || has_nvidia || [ -z "$TORCH_CPU_INDEX" ] || [ "$(uname -s)" != Linux ]; then return; fi
    if why=$(answers "${TORCH_CPU_INDEX%/}/torch/"); then
        say "no NVIDIA GPU: torch $(pinned_torch) for the CPU, from $TORCH_CPU_INDEX"
        # --no-deps: what torch needs comes from the usual index, with the rest
        pip_install --no-deps --index-url "$TORCH_CPU_INDEX" -c "$PINS" torch && return
        why="it has none for this machine"
    fi
    say "no NVIDIA GPU, but no CPU build of torch from $TORCH_CPU_INDEX ($why):"
    say "pip's default torch $(pinned_torch) instead, which may be a CUDA build of several GB"
    pip_install -c "$PINS" torch || explain
}

# What `venv --clear` empties would be the other checkout's.
check_link() {
    [ ! -L "$VENV" ] || fail "$VENV is a link to $(readlink "$VENV"), which is another checkout's to keep; remove the link first: rm $VENV."
}

make_venv() {
    if is_new_enough "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1 &&
        [ "$(cat "$VENV/.where" 2>/dev/null || echo "$ROOT")" = "$ROOT" ]; then :; else
        "$PYTHON" -m venv --clear "$VENV" || fail "$PYTHON -m venv $VENV failed."
    fi
    printf '%s\n' "$ROOT" >"$VENV/.where" # a .venv that was copied elsewhere still runs the code it came from
}

case $MODE in
run) what=. ;;
test) what='.[test]' ;;
*) fail "say run or test, not $MODE." ;;
esac
choose_python
check_venv_module
check_link
check_disk
say "$VENV with Python $(version_of "$PYTHON"); the first time takes some minutes"
make_venv
install_cpu_torch
say "opsin and what it needs$([ "$MODE" = run ] || echo ', and the tools of the checks')"
pip_install -c "$PINS" -e "$what" || explain
say "the C kernels for this processor"
"$VENV/bin/python" -c 'from opsin_kernels.cpu.native import native; native()' || true # (opsin doctor says why not)
touch "$VENV/.setup-run" "$VENV/.setup-$MODE"
say "ready"
