#!/usr/bin/env bash
# The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer (GCC or Clang on Linux): by themselves, and
# behind the public API on NumPy and PyTorch. Arguments go to pytest, in the place of the selection below.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S backends/cpu -B "$work/build" -DXENT_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug -DXENT_OUTPUT="$work/built" \
  -DPython_EXECUTABLE="$(command -v python)" > "$work/log"
cmake --build "$work/build" -j "$(nproc)" > "$work/log" || { cat "$work/log"; exit 1; }

# The package from here with that extension in it. Python is not instrumented, so the runtime comes first, and what
# Python never frees is no leak.
cp -r xent backends tests pyproject.toml "$work"
rm -f "$work"/backends/cpu/*.so
mv "$work"/built/_native*.so "$work/backends/cpu"
cd "$work"
runtime=$(${CXX:-c++} -print-file-name=libasan.so):$(${CXX:-c++} -print-file-name=libubsan.so)
[ $# -gt 0 ] || set -- -k "not other and not bound and not tensorflow and not jax and not array_api and not toy"
LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONPATH=$work \
  python -m pytest -q -p no:cacheprovider tests/test_native.py tests/test_native_entropy.py tests/test_native_memory.py tests/test_boundary.py "$@"
