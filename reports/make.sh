#!/usr/bin/env bash
# Make lite-cpu/, full-cpu/ and ranks/ again: `reports/make.sh`, from anywhere. talkerviz must be on the path, 8 GB be free, and
# the machine be quiet. Takes about five minutes; the traces themselves are not kept.
set -euo pipefail
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

rm -rf lite-cpu full-cpu ranks
talkerviz doctor --measure --device cpu -o "$work/peaks.json" > "$work/doctor.txt"
for preset in lite full; do
  # There, as the trace notes the command.
  (cd "$work" && talkerviz trace --preset $preset --device cpu --warmup 1 --cost --peaks peaks.json -o $preset.parquet > run.txt)
  talkerviz report "$work/$preset.parquet" -o "$preset-cpu"
  cp "$work/doctor.txt" "$work/run.txt" "$preset-cpu"
  sed -i '/-> .*parquet$/d' "$preset-cpu/run.txt"
  talkerviz tree "$work/$preset.parquet" > "$preset-cpu/tree.txt"
  for by in module class phase part layer frame; do
    talkerviz show "$work/$preset.parquet" --by "$by" --top 40 > "$preset-cpu/by-$by.txt"
  done
  talkerviz show "$work/$preset.parquet" --across phase --top 40 > "$preset-cpu/prefill-against-decode.txt"
  # Too large to keep, and made by the same command.
  rm -rf "$preset-cpu/calls.csv" "$preset-cpu/trace.json" "$preset-cpu/.talkerviz-report"
done

# The same with its layers compiled, and what that changes.
compiled=$work/compiled.parquet
talkerviz trace --preset full --device cpu --compile --warmup 1 -o "$compiled" > full-cpu/compiled.txt
sed -i '/-> .*parquet$/d' full-cpu/compiled.txt
talkerviz show "$compiled" --by part >> full-cpu/compiled.txt
talkerviz diff "$work/full.parquet" "$compiled" --by phase -f markdown -o full-cpu/compiled-diff.md

# The whole talker, one decoder layer in full, one frame in full.
trace=$work/lite.parquet
talkerviz render "$trace" -f svg -o lite-cpu/talker.svg
talkerviz render "$trace" -f png -o lite-cpu/talker.png
talkerviz render "$trace" -f mermaid -o lite-cpu/talker.mmd
talkerviz render "$trace" -f svg --module talker.model.layers.0 --phase decode --max-nodes 200 -o lite-cpu/layer.svg
talkerviz render "$trace" -f svg --frame 1 --max-nodes 200 -o lite-cpu/frame.svg
talkerviz render "$trace" -f mermaid --style source -o lite-cpu/source.md
# transformers' own talker, and what differs.
theirs=$work/transformers.parquet
talkerviz trace --preset lite --device cpu --impl transformers --warmup 1 -o "$theirs" > /dev/null
talkerviz render "$theirs" -f svg -o lite-cpu/transformers-talker.svg
talkerviz render "$theirs" -f svg --module talker.model.layers.0 --phase decode --max-nodes 200 -o lite-cpu/transformers-layer.svg
talkerviz render "$theirs" -f svg --frame 1 --max-nodes 200 -o lite-cpu/transformers-frame.svg
talkerviz diff "$trace" "$theirs" -f svg -o lite-cpu/transformers-diff.svg
talkerviz diff "$trace" "$theirs" -f markdown -o lite-cpu/transformers-diff.md
# Other models.
for model in llama whisper vit; do
  (cd .. && talkerviz trace --warmup 1 -o "$work/$model.parquet" "examples.transformers_models:$model" > /dev/null)
  talkerviz render "$work/$model.parquet" -f svg -o "lite-cpu/$model.svg"
done
# Two processes of which one has more to do, and a pipeline of four.
mkdir -p ranks
for of in "2 tensor_parallel:uneven" "4 pipeline:stage"; do
  read -r count target <<< "$of"
  name=${target%%:*}
  trace=$work/$name.parquet
  (cd "$work" && PYTHONPATH=$OLDPWD/.. OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node "$count" \
    -m talkerviz trace --warmup 1 -o "$name.parquet" "examples.$target" > /dev/null)
  talkerviz merge "$work/$name".rank*.parquet -o "$trace" > /dev/null
  talkerviz show "$trace" --ranks > "ranks/$name.txt"
  talkerviz render "$trace" -f timeline -o "ranks/$name.svg"
  talkerviz render "$trace" -f perfetto -o "ranks/$name.json"
done
sed -i 's/ *$//' ./*-cpu/*.txt ranks/*.txt
# The notebooks, as GitHub shows them.
cd ../examples
jupyter nbconvert --log-level WARN --to notebook --inplace --execute --ExecutePreprocessor.record_timing=False \
  --ExecutePreprocessor.store_widget_state=False ./*.ipynb
rm -f vocoder.parquet
