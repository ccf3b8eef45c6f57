#!/usr/bin/env bash
# All that a CUDA device is needed for, in ten minutes, the most telling first: `bash benchmarks/gpu.sh [FOLDER]`.
# Each step has its own time, so that one which hangs or fails leaves the rest; what they wrote is in the folder, with
# a log of each. It needs no installed talkerviz.
set -u
folder=${1:-reports/h200}
mkdir -p "$folder/log"
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

step() { # seconds, name, command
    local seconds=$1 name=$2 began=$SECONDS
    shift 2
    timeout "$seconds" "$@" >"$folder/log/$name.txt" 2>&1
    local code=$?
    echo "$name: exit $code after $((SECONDS - began)) s"
    tail -n 12 "$folder/log/$name.txt"
    return $code
}

step 100 tests python3 -m pytest -m gpu -q -p no:cacheprovider -n 4 tests
without=()
# What a kernel spoils, it spoils for a whole process.
step 60 replayed-fused python3 benchmarks/replayed_frame.py --fused -o "$folder/replayed-frame-fused.md" ||
    without=(--without fused)
step 160 talker python3 benchmarks/talker.py --device cuda --kinds full:bfloat16 "${without[@]}" -o "$folder/talker.md"
step 110 sizes python3 benchmarks/fused_sizes.py -o "$folder/fused-sizes.md"
step 45 replayed python3 benchmarks/replayed_frame.py -o "$folder/replayed-frame.md"
step 60 streams python3 benchmarks/streams.py -o "$folder/streams.md"
step 100 gpu python3 benchmarks/gpu.py --repeats 3 -o "$folder"
step 60 replayed-compiled python3 benchmarks/replayed_frame.py --compile -o "$folder/replayed-frame-compiled.md"
