#!/bin/sh
# What only a GPU can tell, the most important first. Where opsin is installed (pip install '.[test]'):
#
#   sh bench/gpu.sh OUT [tests] [kernels] [engine] [tune]      all four without names; each ends within 9 minutes
#
# Every part writes to OUT as soon as it is done, and one that fails does not keep the others from running.
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.." || exit
[ $# -gt 0 ] || set -- tests kernels engine tune
failed=0
for part; do
  case $part in
    tests) python -m pytest -q -p no:cacheprovider tests/kernels/interpreted ;;
    kernels) python bench/kernels.py --out "$out/kernels.json" ;;
    engine) python bench/engine.py --out "$out/engine.json" ;;
    tune) python bench/tune.py --out "$out" ;;
    *) echo "no part $part" >&2 && exit 2 ;;
  esac >"$out/$part.txt" 2>&1 || { echo "$part failed: see $out/$part.txt" >&2 && failed=1; }
done
exit $failed
