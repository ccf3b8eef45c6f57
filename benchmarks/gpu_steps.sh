# Functions of gpu.sh and gpu_more.sh, which source this file after setting `archive` and `limit`.
#
# Each step has its own time, and all have `limit` seconds together. A step that hangs (exit 124 or 137) has failed, as
# one with any other exit code but 0. After each step the archive holds everything that was written until then: the log
# of each step in log/, and steps.md, a line for each. STEPS="tests sizes" runs these steps alone.
set -u
export PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
KILL_AFTER=5 # seconds that a step has to end when its time is over
folder=$(mktemp -d)/gpu
failures=0
mkdir -p "$folder/log"
printf '| step | exit code | seconds |\n| --- | ---: | ---: |\n' >"$folder/steps.md"

step() { # seconds, name, command
    local seconds=$1 name=$2 began=$SECONDS left=$((limit - SECONDS - KILL_AFTER)) code
    shift 2
    [[ -n ${STEPS:-} && " $STEPS " != *" $name "* ]] && return 0
    ((seconds > left)) && seconds=$left
    if ((seconds > 0)); then
        timeout -k "$KILL_AFTER" "$seconds" "$@" >"$folder/log/$name.txt" 2>&1
        code=$?
    else
        echo "no time was left" >"$folder/log/$name.txt"
        code=124
    fi
    ((code == 0)) || ((failures += 1))
    echo "$name: exit $code after $((SECONDS - began)) s"
    tail -n 12 "$folder/log/$name.txt"
    echo "| $name | $code | $((SECONDS - began)) |" >>"$folder/steps.md"
    tar -czf "$archive.new" -C "$(dirname "$folder")" gpu && mv "$archive.new" "$archive"
    return $code
}

on_gpu=(python3 -m pytest -m gpu -q -p no:cacheprovider)
parallel=()
python3 -c "import xdist" 2>/dev/null && parallel=(-n 3)
