#!/usr/bin/env bash
# Make this folder's files again. talkerviz must be on the path; the traces themselves are not kept here.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trace=$work/lite.parquet
talkerviz doctor --measure --device cpu -o "$work/peaks.json" > doctor.txt
talkerviz trace --preset lite --device cpu --cost --peaks "$work/peaks.json" -o "$trace" > run.txt
sed -i '/-> .*parquet$/d' run.txt
# The whole talker, one decoder layer in full, one frame in full.
talkerviz render "$trace" -f svg -o talker.svg
talkerviz render "$trace" -f png -o talker.png
talkerviz render "$trace" -f mermaid -o talker.mmd
talkerviz render "$trace" -f svg --module talker.model.layers.0 --phase decode --max-nodes 200 -o layer.svg
talkerviz render "$trace" -f svg --frame 1 --max-nodes 200 -o frame.svg
talkerviz render "$trace" -f mermaid --style source -o source.md
talkerviz tree "$trace" > tree.txt
for by in module class phase layer frame; do
  talkerviz show "$trace" --by "$by" --top 40 > "by-$by.txt"
done
# transformers' own talker, and what differs.
theirs=$work/transformers.parquet
talkerviz trace --preset lite --device cpu --impl transformers -o "$theirs" > /dev/null
talkerviz render "$theirs" -f svg -o transformers-talker.svg
talkerviz render "$theirs" -f svg --module talker.model.layers.0 --phase decode --max-nodes 200 -o transformers-layer.svg
talkerviz render "$theirs" -f svg --frame 1 --max-nodes 200 -o transformers-frame.svg
talkerviz diff "$trace" "$theirs" -f svg -o transformers-diff.svg
# Other models.
for model in llama whisper vit; do
  (cd ../.. && talkerviz trace "examples.transformers_models:$model" -o "$work/$model.parquet" > /dev/null)
  talkerviz render "$work/$model.parquet" -f svg -o "$model.svg"
done
sed -i 's/ *$//' ./*.txt
