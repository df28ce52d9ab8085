#!/bin/sh
# The first minutes on a GPU. bench/README.md says how to prepare and read them.
#
#   sh bench/gpu.sh OUT                 7 minutes: correctness, ceilings, steps of whole models, operations
#   sh bench/gpu.sh OUT --second        4 minutes: what failed or is missing, then tiles
#   sh bench/gpu.sh OUT --train         3 minutes: training against transformers + PEFT
#   sh bench/gpu.sh OUT --tiny          the same on a CPU with small models: a rehearsal
#
# Every row goes to OUT/rows.jsonl as it comes. PYTHON: the interpreter with torch (default: python3).
set -eu
OPSIN_BENCH_BEGAN=$(date +%s.%N)
[ $# -gt 0 ] || { echo "say where the results go: sh bench/gpu.sh OUT" >&2 && exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
root=$(pwd)
python=${PYTHON:-python3}
state=$root/build/gpu
site=$state/site
mkdir -p "$state"

export OPSIN_BENCH_BEGAN PYTHONUNBUFFERED=1
export PYTHONPATH="$site:$root/kernels:$root/plugins:$root/server:$root/clients:$root/bench"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 # others' plugins know nothing of these tests
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$state/triton}"

case " $* " in
*" --tiny "*) # kernels are interpreted; OPSIN_KERNELS=torch takes their definitions instead
    export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=
    [ "${OPSIN_KERNELS:-interpret}" != interpret ] || export OPSIN_KERNELS=interpret TRITON_INTERPRET=1
    ;;
esac

# What was carried along: wheels, and the kernels that an earlier command compiled.
if [ -d build/wheels ] && [ ! -e "$site/.installed" ]; then
    if "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
        --upgrade --target "$site" build/wheels/*.whl; then
        : >"$site/.installed"
    else
        echo "the wheels of build/wheels could not be installed; what is there already may do" >&2
    fi
fi
"$python" bench/entry_points.py "$site"
if [ -f "$state/triton.tar.xz" ] && [ ! -d "$TRITON_CACHE_DIR" ]; then
    mkdir -p "$TRITON_CACHE_DIR"
    tar -C "$TRITON_CACHE_DIR" -xJf "$state/triton.tar.xz" || echo "the compiled kernels were not unpacked" >&2
fi
case " $* " in
*" --train "*--tiny* | *" --tiny "*--train*) OPSIN_KERNELS=torch exec "$python" bench/train.py --quick --out "$out/train.md" ;;
*" --train "*) exec "$python" bench/train.py --device cuda --dtype bfloat16 --models 2b --out "$out/train.md" ;;
esac
exec "$python" bench/gpu.py "$out" "$@"
