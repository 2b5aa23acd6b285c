#!/usr/bin/env bash
# Sets up, builds and runs the main job: a personalization experiment on a base model that ships with the project. Some
# six minutes on two cores after the build. The last line is the path of its report. Arguments go to `thimble lab run`.
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

look_at_the_world() {
  stage "a synthetic population whose best possible scores are known"
  show data world --out "$out/world" --tasks LaMP_2,LaMP_3,LaMP_4 --people 12 --history 32
  show data check "$out/world/LaMP_3/time/test_questions.json"
}

tune_to_a_person() {
  stage "one person by hand: four bits per weight, and an adapter on top of them"
  show quantize --model models/zoo/llama-0.4m --out "$out/packed" --method gptq --spec int4-g32-asym
  show generate --model "$out/packed" --prompt $'Write a headline. article: tarvin of brentton showed a tiny boat and the wave\nanswer: "' \
    --max-tokens 12
}

experiment() {
  stage "the experiment: methods, difficulty, time, history, rank, retrieval, compression, memory"
  show lab run plans/quick.yaml --out "$out/quick" "$@"
}

scripts/build.sh thimble
mkdir -p "$out"
SECONDS=0
look_at_the_machine
compare_with_the_reference
rm -rf "$out/world" "$out/packed"
look_at_the_world
tune_to_a_person
experiment "$@"
