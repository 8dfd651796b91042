#!/usr/bin/env bash
# Checks, then measures, on one NVIDIA GPU: kernel tests, memcheck, the engine with real weights, the speed benchmarks.
#   bench/on_gpu.sh FOLDER MODEL [check|measure|long]   results go to FOLDER; MODEL holds a config.json, weights are dummies
# Without the last word all three run; ATTENTION, ENGINE and LONG add options to the benchmarks.
# Needs an environment with SGLang, this project and pytest; pytest-xdist shortens compilation, compute-sanitizer checks.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:?the folder for results}
model=${2:?a folder with config.json}
what=${3:-all}
python=${PYTHON:-python3}
mkdir -p "$out"

if [[ "$what" == @(all|check) ]]; then
  workers=()
  $python -c 'import xdist' 2>/dev/null && workers=(-n 14 --dist worksteal)
  $python -m pytest tests/kernels -q -p no:cacheprovider "${workers[@]}" --ignore tests/kernels/test_select_reference.py \
    2>&1 | tail -15 | tee "$out/kernel_tests.txt"
  # The kernels are compiled by now. Without torch's caching allocator, a read beyond a tensor is a read beyond a block.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  memcheck=(compute-sanitizer --tool memcheck --error-exitcode 9 "$python")
  if "${memcheck[@]}" tests/kernels/memcheck_canary.py > "$out/canary.txt" 2>&1 ||
    ! grep -q 'Invalid __global__ read' "$out/canary.txt"; then
    echo 'memcheck does not see a wild read: see canary.txt' >&2
    exit 1
  fi
  "${memcheck[@]}" -m pytest -q \
    -p no:cacheprovider tests/kernels -k "ragged or some_requests or fp16 or complete or time" 2>&1 |
    tail -8 | tee "$out/memcheck.txt"
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
  $python -m pytest tests/e2e/test_cuda_engine.py tests/e2e/test_cuda_many_requests.py \
    tests/e2e/test_cuda_lossless.py -q -s -p no:cacheprovider 2>&1 |
    tail -20 | tee "$out/cuda_engine.txt"
fi
if [[ "$what" == @(all|measure) ]]; then
  $python -m bench.speed.decode_attention --out "$out" ${ATTENTION:-}
  $python -m bench.speed.verify_attention --out "$out"
  $python -m bench.speed.lossless --model "$model" --out "$out"
  $python -m bench.speed.decode_engine --model "$model" --out "$out" --profile 8x32000 16x16000 ${ENGINE:-}
fi
if [[ "$what" == @(all|long) ]]; then
  $python -m bench.speed.long_decode --model "$model" --out "$out" ${LONG:-}
fi
