#!/usr/bin/env bash
# Everything that needs a GPU, in one command that ends within ten minutes: `make gpu`.
#
# versions -> build -> tests -> compute-sanitizer -> benchmarks. A step that fails is named at the end and
# doesn't keep the later ones from running; the exit status is then 1. Needs torch, triton, nvcc and pytest; installs
# nothing from the network. Everything is written flat into $OUT (build/gpu by default), eight files at most:
#   versions.log build.log tests.log sanitizer.log benchmarks.log benchmarks.json summary.txt, and tune.log if asked for
#
# PYTHON      the interpreter that has torch (python3)
# GPU_BUDGET  seconds for all of it (570); the benchmarks take what the steps before them leave
# GPU_STEPS   which steps to run ("build tests sanitizer benchmarks"; "tune", the sweep over launch shapes, is extra)
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/gpu}
BUDGET=${GPU_BUDGET:-570}
STEPS=${GPU_STEPS:-build tests sanitizer benchmarks}
STARTED=$SECONDS
FAILED=()

mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1 CI2V_REQUIRE_CUDA=1
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

left() { echo $((BUDGET - (SECONDS - STARTED))); }

say() { echo "make gpu: $*" | tee -a "$OUT/summary.txt"; }

# step NAME SECONDS FUNCTION: runs it with a limit and a log of its own, and keeps its outcome for the end
step() {
  local name=$1 limit=$2 function=$3 status=0 begun=$SECONDS
  [[ " $STEPS " == *" $name "* ]] || return 0
  ((limit <= $(left))) || limit=$(left)
  if ((limit < 5)); then
    say "$name: not run, the time is up"
    FAILED+=("$name")
    return 0
  fi
  # its own process group, so that a limit ends what it started as well
  timeout --kill-after=5 "$limit" bash -euo pipefail -c "$function" >"$OUT/$name.log" 2>&1 </dev/null || status=$?
  case $status in
    0) say "$name: ok, $((SECONDS - begun)) s" ;;
    124 | 137) say "$name: FAILED, stopped at its limit of $limit s"; FAILED+=("$name") ;;
    *) say "$name: FAILED with status $status, $((SECONDS - begun)) s"; FAILED+=("$name") ;;
  esac
  tail -n 25 "$OUT/$name.log" | sed "s/^/  $name| /"
}

has() { "$PYTHON" -c "import $1" 2>/dev/null; }

versions() {
  "$PYTHON" --version
  command -v nvidia-smi >/dev/null && nvidia-smi || echo "nvidia-smi: not found"
  command -v nvcc >/dev/null && nvcc --version || echo "nvcc: not found"
  "$PYTHON" -u - <<'PYTHON'
import importlib.metadata as metadata
import torch
print("torch", torch.__version__, "cuda", torch.version.cuda)
for index in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(index))
for name in ("triton", "pytest", "cmake", "ninja", "pybind11", "setuptools", "diffusers", "transformers", "matplotlib"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "is not installed")
PYTHON
}

# An editable install. Where the CUDA code doesn't compile, one without it, so that the Triton kernels still get their
# turn. Where pip or setuptools can't make one at all (setuptools older than 77), CMake alone, with the kernels folder
# linked to where the package would have it until this script ends.
build() {
  local install=("$PYTHON" -m pip install --no-index --no-build-isolation --no-deps -v -e .)
  export CI2V_BUILD_EXT=1 CI2V_BUILD_CUDA=1
  "${install[@]}" && return
  echo "== the build failed; the rest runs without the C++ extension"
  CI2V_BUILD_EXT=0 "${install[@]}" && return 1
  echo "== pip cannot install the package; building in place"
  ln -sfn ../kernels contrastive_i2v/kernels
  cmake -S . -B build/gpu-cmake -G Ninja -DPython_EXECUTABLE="$(command -v "$PYTHON")" -DCI2V_CUDA=ON \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/contrastive_i2v" -DCMAKE_CUDA_ARCHITECTURES="$CMAKE_CUDA_ARCHITECTURES" \
    -DCI2V_VERSION="$(sed -n 's/^__version__ = "\(.*\)"/\1/p' contrastive_i2v/__init__.py)"
  cmake --build build/gpu-cmake
}

tests() {
  has pytest || { echo "pytest is missing: pip install pytest, or put its wheels on PYTHONPATH"; return 1; }
  "$PYTHON" -c 'from contrastive_i2v.ops import available_backends as all; print(all())'
  local folders=() options=(-q -p no:cacheprovider --durations=5)
  for folder in tests/ops tests/kernels tests/csrc; do
    [[ ! -d $folder ]] || folders+=("$folder")
  done
  # most of the time goes into compiling kernels
  ! has xdist || options+=(-n "$(($(nproc) < 6 ? $(nproc) : 6))")
  "$PYTHON" -m pytest "${folders[@]}" "${options[@]}"
}

sanitizer() {
  local tool status=0
  if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is missing: it comes with the CUDA toolkit"
    return 1
  fi
  # without torch's caching allocator a read past the end of one tensor doesn't land in another
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck; do
    echo "== $tool"
    timeout 42 compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20 \
      "$PYTHON" -m benchmarks.sanitize || { echo "$tool: status $?"; status=1; }
  done
  return $status
}

benchmarks() {
  rm -f "$OUT/benchmarks.json"
  "$PYTHON" -m benchmarks --preset gpu --json "$OUT/benchmarks.json" --budget "$BENCHMARK_SECONDS"
}

tune() {
  "$PYTHON" -c 'import importlib.util as u; raise SystemExit(u.find_spec("contrastive_i2v.kernels.tune") is None)' ||
    { echo "this version has no tuning sweep"; return 0; }
  "$PYTHON" -m contrastive_i2v.kernels.tune
}

: >"$OUT/summary.txt"
trap '[[ ! -L contrastive_i2v/kernels ]] || rm contrastive_i2v/kernels' EXIT
# the architecture to build for, or why there is nothing to do
FOUND=$("$PYTHON" - <<'PYTHON'
try:
    import torch
except ImportError as error:
    print(f"refused: torch cannot be imported ({error}): set PYTHON to an interpreter that has it")
else:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        print(f"{major}{minor}" + "a" * (major >= 9))
    else:
        print(
            f"refused: no CUDA device is visible to torch {torch.__version__}: "
            "this needs a GPU, its driver and a torch built for CUDA"
        )
PYTHON
) || FOUND="refused: $PYTHON cannot run"
if [[ $FOUND == refused:* ]]; then
  say "${FOUND#refused: }"
  exit 1
fi
CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES:-$FOUND}
export PYTHON OUT CMAKE_CUDA_ARCHITECTURES
export -f has versions build tests sanitizer benchmarks tune

STEPS="versions $STEPS"
step versions 30 versions
step build 150 build
step tests 130 tests
step sanitizer 90 sanitizer
BENCHMARK_LIMIT=$(($(left) - 20))
BENCHMARK_SECONDS=$((BENCHMARK_LIMIT - 45)) # the case that is running then still ends
export BENCHMARK_SECONDS
step benchmarks "$BENCHMARK_LIMIT" benchmarks
step tune "$(left)" tune

say "files in $OUT: $(cd "$OUT" && echo *)"
if ((${#FAILED[@]})); then
  say "FAILED: ${FAILED[*]}"
  exit 1
fi
say "all steps passed in $((SECONDS - STARTED)) s"
