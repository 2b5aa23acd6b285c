#!/usr/bin/env bash
# Packages, configuration and build of the release preset in build/release. Arguments are targets; default: everything.
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
cmake --preset release </dev/null
targets=()
if (($# > 0)); then targets=(--target "$@"); fi
cmake --build build/release --parallel "$(nproc)" "${targets[@]}" </dev/null
