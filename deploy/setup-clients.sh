#!/bin/sh
# What `make test-clients` needs beside .venv: other projects' clients in .venv-clients and tests/real_clients/node_modules,
# Playwright in .venv, and a Chromium. A stamp in .venv-clients keeps it from doing it twice.
set -eu

HERE=tests/real_clients
VENV=.venv-clients
LOG=$VENV/setup.log
NODE_MAJOR=20

cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# The first argument says what fails if the command after it does.
logged() {
    what=$1
    shift
    "$@" >"$LOG" 2>&1 && return
    tail -n 40 "$LOG" >&2
    fail "$what (details: $LOG)."
}

check_node() {
    found=$(node --version 2>/dev/null) || fail "there is no node here; install Node.js $NODE_MAJOR or newer."
    major=${found#v}
    [ "${major%%.*}" -ge "$NODE_MAJOR" ] || fail "node is $found and the clients need $NODE_MAJOR or newer."
    npm --version >/dev/null 2>&1 || fail "there is no npm here; it comes with Node.js."
}

check_chromium() {
    command -v chromium >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        fail "there is no chromium here; install it (on Debian: apt-get install chromium)."
    fi
    say "Chromium, from Debian"
    logged "apt-get update failed" apt-get update
    logged "Chromium could not be installed" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium
}

[ -x .venv/bin/python ] || fail "there is no .venv here; make setup-test makes it."
check_node
mkdir -p "$VENV"
check_chromium
say "Playwright in .venv"
logged "Playwright could not be installed" .venv/bin/python -m pip install --no-input -c constraints.txt playwright
say "Python's clients in $VENV"
logged "$VENV could not be made" .venv/bin/python -m venv "$VENV"
logged "Python's clients could not be installed" "$VENV/bin/python" -m pip install --no-input -r "$HERE/requirements.txt"
say "Node's clients in $HERE/node_modules"
logged "Node's clients could not be installed" npm ci --prefix "$HERE" --no-audit --no-fund
touch "$VENV/.setup"
say "the clients are ready"
