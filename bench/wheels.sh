#!/bin/sh
# Fetches the wheels of bench/wheels.txt into build/wheels, for a machine that reaches no package index.
#
#   sh bench/wheels.sh [3.12]       for that Python, on x86-64 Linux (default: 3.12)
#
# build/ is ignored by git: a machine that gets a copy of the working tree must be given build/wheels as well.
set -eu
version=${1:-3.12}
cd "$(dirname "$0")/.."
rm -rf build/wheels
platforms=$(for n in 28 27 17; do printf -- '--platform manylinux_2_%s_x86_64 ' "$n"; done)
# shellcheck disable=SC2086  # words
"${PYTHON:-python3}" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --implementation cp --python-version "$version" $platforms --platform manylinux2014_x86_64 \
    --dest build/wheels --requirement bench/wheels.txt
du -sk build/wheels | awk '{printf "build/wheels: %.1f MiB\n", $1 / 1024}'
