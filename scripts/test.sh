#!/usr/bin/env bash
# Sets up, builds everything and runs every test. Arguments go to ctest: scripts/test.sh -L core
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/build.sh
ctest --test-dir build/release --parallel "$(nproc)" --output-on-failure --no-tests=error "$@" </dev/null
