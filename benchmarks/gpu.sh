#!/usr/bin/env bash
# The test matrix on the GPU, then the benchmark: bash benchmarks/gpu.sh FOLDER
# For a CUDA machine with torch, jax or both, pytest, and the packages of xent's extras `cli` and `plot`; TensorFlow is
# not needed. Ends within 9 minutes: what is not measured by then is left out, and FOLDER holds the rest.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:?expected a folder for the results}
mkdir -p "$folder"

frameworks=$(python3 - <<'PY'
import sys
from xent import _live
names = [name for name in ("torch", "jax") if name in _live.available()]
able = [name for name in names if _live.device(_live.live(name).devices(), "cuda")]
if not able:
    sys.exit(f"gpu.sh: expected a GPU that torch or jax can use, found none (installed: {', '.join(names) or 'neither'})")
print(*able)
PY
) || exit 2
export XLA_PYTHON_CLIENT_PREALLOCATE=false

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
matrix() { # what pytest is to run; side by side, as it is kernels' compilation on the host that takes long
  local name="$*"
  timeout -k 10 200 python3 -m pytest tests/test_matrix.py -q -p no:cacheprovider --show-capture no --device cuda "$@" \
    > "$logs/${name// /_}" 2>&1
}
running=()
for framework in $frameworks; do
  for part in options "not options"; do
    matrix --backend "$framework" -k "$part" & running+=($!)
  done
  matrix --backend "$framework" --compiled & running+=($!)
done
status=0
for one in "${running[@]}"; do wait "$one" || status=1; done
(cd "$logs" && tail -n +1 -- *) | tee "$folder/tests.txt"

only=()
for framework in $frameworks; do only+=(--backend "$framework"); done
left=$((500 - SECONDS)) # of 9 minutes, with time to end in
timeout -k 30 "$left" python3 -m xent bench --device cuda --rounds 7 "${only[@]}" \
  --json "$folder/gpu.json" --html "$folder/gpu.html" --png "$folder/gpu.png" 2>&1 | tee "$folder/gpu.txt"
bench=${PIPESTATUS[0]}
# 124 and 130: out of time, with what was finished on disk
[ "$bench" = 0 ] || [ "$bench" = 124 ] || [ "$bench" = 130 ] || status=1
exit "$status"
