#!/usr/bin/env bash
# The rest of what a CUDA device is needed for, after gpu.sh, in at most 560 seconds:
#     bash benchmarks/gpu_more.sh OUT.tgz
# Frames kernel by kernel against the time to read their weights, 64 streams at once, full traces, compiled layers.
archive=${1:?"usage: bash benchmarks/gpu_more.sh OUT.tgz"}
limit=${LIMIT:-560} # seconds
source "$(dirname "${BASH_SOURCE[0]}")/gpu_steps.sh"

step 15 tap bash benchmarks/build_tap.sh || exit 1
step 70 replayed-fused python3 benchmarks/replayed_frame.py --fused -o "$folder/replayed-frame-fused.md"
step 60 replayed python3 benchmarks/replayed_frame.py -o "$folder/replayed-frame.md"
step 80 streams python3 benchmarks/streams.py --rounds 2 -o "$folder/streams.md"
step 90 traces python3 benchmarks/gpu.py --presets full --repeats 1 -o "$folder"
step 50 more-tests "${on_gpu[@]}" "${parallel[@]}" tests/talker/test_{checkpoint,code2wav}.py
step 120 talker-compiled python3 benchmarks/talker.py --device cuda --kinds full:bfloat16 -o "$folder/talker.md"
step 70 replayed-compiled python3 benchmarks/replayed_frame.py --compile -o "$folder/replayed-frame-compiled.md"
exit $((failures > 0))
