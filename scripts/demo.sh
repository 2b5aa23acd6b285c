#!/usr/bin/env bash
# Sets up, builds and shows the main job on generated text: train a small model, then tune it to one person.
# About two minutes on two cores after the build. Everything it makes lies in build/demo.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

out=build/demo
thimble() { build/release/bin/thimble "$@" </dev/null; }

stage() { printf '\n== %s\n' "$*"; }
show() {  # prints a command as one would type it, then runs it
  printf '$ thimble'
  printf ' %q' "$@"
  printf '\n'
  thimble "$@"
}

look_at_the_machine() {
  stage "the machine, its kernels and libraries"
  echo "$ thimble doctor --no-roofline  (without its table of kernels)"
  thimble doctor --no-roofline | sed '/^Kernels/,$d'
}

compare_with_the_reference() {
  stage "the engine against numbers of a reference implementation: logits, loss and every gradient"
  show parity tests/data/oracle/llama_gqa_untied
  show parity tests/data/oracle/gptq4_g32_asym
}

write_text() {
  stage "text from a grammar: stories for everybody, and rows in the manner of one person"
  local write=(awk -f scripts/make_text.awk)
  "${write[@]}" -v seed=1 -v bytes=600000 >"$out/stories.txt"
  "${write[@]}" -v seed=2 -v bytes=20000 >"$out/stories_eval.txt"
  "${write[@]}" -v mode=person -v seed=3 -v rows=300 >"$out/person.jsonl"
  "${write[@]}" -v mode=person -v seed=4 -v rows=60 >"$out/person_eval.jsonl"
  wc -c "$out"/stories*.txt "$out"/person*.jsonl
  cat >"$out/config.json" <<'JSON'
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 512, "hidden_size": 128,
 "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
 "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
 "tie_word_embeddings": true, "torch_dtype": "float32"}
JSON
}

train_a_model() {
  stage "a tokenizer of 512 pieces and a model of 0.8 million weights, from nothing"
  show pretrain --config "$out/config.json" --text "$out/stories.txt" --eval-text "$out/stories_eval.txt" \
    --vocab-size 512 --steps 800 --batch 8 --ctx 128 --lr 3e-3 --warmup 20 --schedule cosine --out "$out/model"
  show model info "$out/model"
  show generate --model "$out/model" --prompt "One morning, Mira went to the" --max-tokens 80
  show eval --model "$out/model" --ppl "$out/stories_eval.txt" --ctx 128
}

tune_to_a_person() {
  stage "an adapter for one person; the model itself stays as it is"
  local begin="On Sunday, Ravi went to the mill with his cat. He was looking for a red kite."
  show tune --model "$out/model" --method lora --rank 16 --alpha 32 --targets all-linear \
    --data "$out/person.jsonl" --eval-data "$out/person_eval.jsonl" --steps 400 --batch 8 --ctx 192 --lr 1e-2 \
    --warmup 10 --schedule cosine --out "$out/adapter"
  echo "Without the adapter:"
  show generate --model "$out/model" --prompt "$begin" --max-tokens 40
  echo "With it:"
  show generate --model "$out/model" --adapter "$out/adapter" --prompt "$begin" --max-tokens 40
}

scripts/build.sh thimble
rm -rf "$out"
mkdir -p "$out"
SECONDS=0
look_at_the_machine
compare_with_the_reference
write_text
train_a_model
tune_to_a_person
stage "done in $SECONDS s; the files are in $PWD/$out"
