#!/usr/bin/env bash
# The kernel tests under AddressSanitizer and UndefinedBehaviorSanitizer (GCC or Clang on Linux).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S backends/cpu -B "$work/build" -DXENT_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug -DXENT_OUTPUT="$work" \
  -DPython_EXECUTABLE="$(command -v python)" > "$work/log"
cmake --build "$work/build" -j "$(nproc)" > "$work/log" || { cat "$work/log"; exit 1; }

# The package from here with that extension in it. Python is not instrumented, so the runtime comes first, and what
# Python never frees is no leak.
cp -r xent tests pyproject.toml "$work"
mkdir -p "$work/backends/cpu"
cp backends/*.py "$work/backends"
cp backends/cpu/__init__.py "$work/backends/cpu"
mv "$work"/_native*.so "$work/backends/cpu"
cd "$work"
runtime=$(${CXX:-c++} -print-file-name=libasan.so):$(${CXX:-c++} -print-file-name=libubsan.so)
LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=$work \
  python -m pytest -q -p no:cacheprovider tests/test_native.py "$@"
