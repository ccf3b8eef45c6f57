#!/usr/bin/env bash
# Make this folder's files again. talkerviz must be on the path; the trace itself is not kept here.
set -euo pipefail
cd "$(dirname "$0")"
trace=$(mktemp --suffix=.parquet)
peaks=$(mktemp --suffix=.json)
trap 'rm -f "$trace" "$peaks"' EXIT
talkerviz doctor --measure --device cpu -o "$peaks" > doctor.txt
talkerviz trace --preset lite --device cpu --cost --peaks "$peaks" -o "$trace" > run.txt
sed -i '/-> .*parquet$/d' run.txt
talkerviz render "$trace" -f mermaid --style source -o source.md
talkerviz render "$trace" -f mermaid --frame 1 --depth 2 -o frame-1.mmd
talkerviz render "$trace" -f svg --frame 1 --depth 2 -o frame-1.svg
talkerviz render "$trace" -f svg --phase decode --frame 1 --depth 2 -o decode.svg
talkerviz tree "$trace" > tree.txt
for by in module class phase layer frame; do
  talkerviz show "$trace" --by "$by" --top 40 > "by-$by.txt"
done
sed -i 's/ *$//' ./*.txt
