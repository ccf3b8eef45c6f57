#!/usr/bin/env bash
# What a CUDA device is needed for, in at most 560 seconds, the most telling first:
#     bash benchmarks/gpu.sh OUT.tgz
# docs/explanation/gpu-figures.md says what each figure means. It needs torch and a C compiler, and no installed talkerviz.
archive=${1:?"usage: bash benchmarks/gpu.sh OUT.tgz"}
limit=${LIMIT:-560} # seconds
source "$(dirname "${BASH_SOURCE[0]}")/gpu_steps.sh"

# Without the compiled tap every figure would be of another recorder.
step 15 tap bash benchmarks/build_tap.sh || exit 1
step 40 events python3 benchmarks/device_events.py -o "$folder/events.md"
step 50 clock "${on_gpu[@]}" tests/recorder/test_record_cuda.py # alone: they are about time
step 110 overhead python3 benchmarks/gpu.py --presets full --repeats 5 --overhead-only -o "$folder"
step 40 replays python3 benchmarks/recorded_replays.py -o "$folder/recorded-replays.md"
step 70 tests "${on_gpu[@]}" "${parallel[@]}" tests/talker/test_{kernels,cuda_graphs,moe}.py
without=()
# What kernels spoil, they spoil for a whole process.
step 110 sizes python3 benchmarks/fused_sizes.py -o "$folder/fused-sizes.md" || without=(fused)
step 110 talker python3 benchmarks/talker.py --device cuda --kinds full:bfloat16 --without compile "${without[@]}" \
    -o "$folder/talker.md"
exit $((failures > 0))
