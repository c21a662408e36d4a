#!/usr/bin/env bash
# What only a GPU can show, in one go: kernels against references, the engine's equalities, figures.
# usage: loadtest/gpu_suite.sh [kernels] [engine] [bench] [images] [parallel]     (the first three without arguments)
# parallel: as many GPUs as there are, in powers of two.
# Logs and figures land in ${OUT:-gpu-results}. Exits non-zero if anything failed; runs everything all the same.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-gpu-results}
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "torch sees no NVIDIA GPU"; exit 1; }
failed=0
step() { # NAME COMMAND...
    local name=$1 began=$SECONDS
    shift
    echo "== $name: $*"
    if "$@" >"$out/$name.log" 2>&1; then echo "   passed in $((SECONDS - began)) s"; else
        echo "   FAILED in $((SECONDS - began)) s"
        failed=1
    fi
    tail -n "${TAIL:-15}" "$out/$name.log"
}
wanted=" ${*:-kernels engine bench} "
if [[ $wanted == *" kernels "* ]]; then
    step kernels-check "$python" -m quire.kernels.bench.check_gpu
    step kernels-time "$python" -m quire.kernels.bench.time_gpu
fi
if [[ $wanted == *" engine "* ]]; then
    step engine "$python" -m pytest -o addopts= -W default -p no:cacheprovider -q -s -m gpu tests/gpu
fi
if [[ $wanted == *" bench "* ]]; then
    for model in ${MODELS:-qwen2.5-0.5b qwen2.5-7b llama-7b}; do
        step "bench-$model" "$python" -m quire bench throughput --model "loadtest/models/$model" --load-format dummy \
            --dtype bfloat16 --max-model-len 4096 --gpu-memory-utilization 0.85 \
            --workload "${WORKLOADS:-all}" --compare loadtest/peers/h200.json --json "$out/bench-$model.json"
    done
fi
if [[ $wanted == *" images "* ]]; then
    for model in qwen2-vl-2b qwen3-vl-4b; do
        step "images-$model" env OUT="$out" "$python" -m quire bench images --model "loadtest/models/$model" \
            --dtype bfloat16 --max-model-len 16384 --gpu-memory-utilization 0.85
    done
fi
if [[ $wanted == *" parallel "* ]]; then
    num_gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
    step parallel "$python" -m pytest -o addopts= -W default -p no:cacheprovider -q -s -m gpu tests/gpu/test_parallel_on_gpu.py
    for ((size = 2; size <= num_gpus; size *= 2)); do
        step "all-reduce-$size" "$python" -m quire.loadtest.all_reduce --size "$size"
    done
    for ((size = 1; size <= num_gpus; size *= 2)); do
        step "bench-llama-13b-tp$size" "$python" -m quire bench throughput --model loadtest/models/llama-13b \
            --load-format dummy --dtype bfloat16 --max-model-len 4096 --gpu-memory-utilization 0.85 \
            --tensor-parallel-size "$size" --workload "${WORKLOADS:-single,sharegpt,decode}" \
            --compare loadtest/peers/h200.json --peer-shape "llama-13b, tensor parallel 2 (NVLink)" \
            --json "$out/bench-llama-13b-tp$size.json"
    done
fi
exit "$failed"
