#!/usr/bin/env bash
# All that a CUDA device is needed for, in some twelve minutes, the most telling first:
#     bash benchmarks/gpu.sh [FOLDER [ARCHIVE]]
# Each step has its own time, so that one which hangs or fails leaves the rest; what they wrote is in the folder, with a
# log of each, and after each step also in the archive. `STEPS="tests sizes"` runs these alone. It needs no installed
# talkerviz.
set -u
folder=${1:-reports/h200}
archive=${2:-}
mkdir -p "$folder/log"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

step() { # seconds, name, command
    local seconds=$1 name=$2 began=$SECONDS
    shift 2
    [[ -n ${STEPS:-} && " $STEPS " != *" $name "* ]] && return
    timeout -k 5 "$seconds" "$@" >"$folder/log/$name.txt" 2>&1
    local code=$?
    echo "$name: exit $code after $((SECONDS - began)) s"
    tail -n 12 "$folder/log/$name.txt"
    [[ -n $archive ]] && tar -czf "$archive" -C "$(dirname "$folder")" "$(basename "$folder")"
    return $code
}

on_gpu="python3 -m pytest -m gpu -q -p no:cacheprovider"
step 90 tests $on_gpu -n 3 tests/talker/test_{kernels,cuda_graphs,moe,checkpoint,code2wav}.py
without=()
step 110 sizes python3 benchmarks/fused_sizes.py -o "$folder/fused-sizes.md"
# What kernels spoil, they spoil for a whole process.
[[ $? == 1 ]] && without=(fused)
step 120 talker python3 benchmarks/talker.py --device cuda --kinds full:bfloat16 --without compile "${without[@]}" \
    -o "$folder/talker.md"
step 90 replayed-fused python3 benchmarks/replayed_frame.py --fused -o "$folder/replayed-frame-fused.md"
step 50 clock-tests $on_gpu tests/recorder/test_record_cuda.py # alone: they are about time
step 70 replayed python3 benchmarks/replayed_frame.py -o "$folder/replayed-frame.md"
step 80 streams python3 benchmarks/streams.py --rounds 2 -o "$folder/streams.md"
step 100 gpu python3 benchmarks/gpu.py --presets full lite --repeats 2 -o "$folder"
# Written over what the same step without it wrote, once it is done.
step 180 talker-compiled python3 benchmarks/talker.py --device cuda --kinds full:bfloat16 --without "${without[@]}" \
    -o "$folder/talker.md"
step 80 replayed-compiled python3 benchmarks/replayed_frame.py --compile -o "$folder/replayed-frame-compiled.md"
