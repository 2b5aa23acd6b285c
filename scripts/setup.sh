#!/usr/bin/env bash
# Installs the Debian 12 packages that the build needs and that are missing. Does nothing when none is missing.
#   scripts/setup.sh                what building, testing and the demo need
#   scripts/setup.sh --sanitizers   also the run-time libraries of the presets asan-ubsan and tsan
#   scripts/setup.sh --check        only say what is missing (exit status 1 when something is)
set -euo pipefail

packages=(
  clang lld g++ binutils libomp-dev cmake ninja-build pkg-config ccache git mawk
  libopenblas-pthread-dev libxsimd-dev libfmt-dev nlohmann-json3-dev libcli11-dev libyaml-cpp-dev libssl-dev
  libpcre2-dev libutf8proc-dev libbenchmark-dev libgtest-dev
)
check_only=no
for argument in "$@"; do
  case $argument in
    --sanitizers) packages+=(libclang-rt-14-dev) ;;
    --check) check_only=yes ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "setup: unknown option $argument; known are --sanitizers, --check and --help" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  echo "setup: this is not a Debian system; the packages of a Debian 12 would be: ${packages[*]}" >&2
  exit 0  # the build itself says what it does not find
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi
if [[ $check_only == yes ]]; then
  echo "setup: missing: ${missing[*]}"
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "setup: missing: ${missing[*]}" >&2
    echo "setup: neither root nor sudo; as root run: apt-get update && apt-get install -y ${missing[*]}" >&2
    exit 1
  fi
  # -n: fail instead of waiting for a password where nobody can type one.
  if [[ -t 0 ]]; then as_root=(sudo); else as_root=(sudo -n); fi
fi
echo "setup: installing ${missing[*]}"
as_root+=(env DEBIAN_FRONTEND=noninteractive)
"${as_root[@]}" apt-get -qq update </dev/null
"${as_root[@]}" apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null
echo "setup: done"
