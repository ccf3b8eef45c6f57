#!/usr/bin/env bash
# Run the tests of the C tap with the extension built for AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   bash tests/sanitize.sh                     the selection that .ci/run runs
#   bash tests/sanitize.sh PYTEST ARGUMENTS    other tests
#   bash tests/sanitize.sh python PROGRAM ...  a program of your own
#
# Builds into a temporary folder; the extension in the working tree is left alone. Exits with the status of what was run,
# 1 after any sanitizer report, 77 where nothing could be run.
#
# Environment:
#   PYTHON  interpreter with the `dev` dependencies installed (default: python). A debug interpreter works too, such as
#           Debian's python3.11-dbg with PYTHONPATH naming the site-packages of a virtual environment of Python 3.11.
#   CC      gcc or clang (default: the first one found)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(command -v "${PYTHON:-python}")

skip() {
  echo "SKIPPED: tests/sanitize.sh: $1; the C tap was not run under AddressSanitizer" >&2
  exit 77
}

[ "$(uname -s)" = Linux ] || skip "needs Linux for LD_PRELOAD"
cc=${CC:-$(command -v gcc || command -v clang || true)}
command -v "${cc%% *}" >/dev/null || skip "no C compiler"
# clang finds gcc's runtime as well, which lacks some of what it calls. Each prints the bare name of a file it does not have.
names=(libasan.so) link=()
if $cc --version | grep -qi clang; then
  names=(libclang_rt.asan-"$(uname -m)".so libclang_rt.asan.so) link=(-shared-libasan)
fi
for name in "${names[@]}"; do
  runtime=$($cc -print-file-name="$name")
  [ -f "$runtime" ] && break
done
[ -f "$runtime" ] || skip "$cc has no AddressSanitizer runtime"
# Without it ASan finds no __cxa_throw to intercept: the interpreter is no C++ program, and torch throws.
stdcxx=$($cc -print-file-name=libstdc++.so.6)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/reports"
(cd "$root" && find talkerviz -name '*.so' -prune -o -name __pycache__ -prune -o -type f -print0 | xargs -0 cp --parents -t "$work/source")
cp "$root/_talkerviz_pytest.py" "$work/source"
cd "$work/source"

# Sources and flags are those of pyproject.toml.
"$python" - "$root" >"$work/build" <<'PYTHON'
import shlex
import sys
import sysconfig
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

root = Path(sys.argv[1])
(extension,) = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
include = [f"-I{sysconfig.get_path(name)}" for name in ("include", "platinclude")]
flags = [*extension.get("extra-compile-args", []), *(f"-I{path}" for path in extension.get("include-dirs", []))]
output = Path(*extension["name"].split(".")).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
print(shlex.join([*include, *flags, *extension["sources"], "-o", str(output)]))
PYTHON
eval "$cc -shared -fPIC -std=c11 -g -O1 -fwrapv -fno-omit-frame-pointer -Wall -Wextra -Wno-unused-parameter \
  -Wno-missing-field-initializers -Wno-cast-function-type -fsanitize=address,undefined -fno-sanitize-recover=all ${link[*]:-} $(cat "$work/build")"

export PYTHONPATH="$work/source${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
# Python's own allocator would hide from ASan what becomes of small objects.
export PYTHONMALLOC=malloc
# torch leaks at exit. pytest's faulthandler must not take SIGSEGV from ASan.
export ASAN_OPTIONS="detect_leaks=0:halt_on_error=1:handle_segv=2:handle_abort=2:detect_odr_violation=0:allocator_may_return_null=1:max_free_fill_size=4096:free_fill_byte=221:log_path=$work/reports/asan"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:log_path=$work/reports/ubsan"
export LD_PRELOAD="$runtime:$stdcxx"

# Without torch, which takes seconds to import under ASan.
"$python" -c '
import importlib.util, sys
assert importlib.util.find_spec("talkerviz").origin.startswith(sys.argv[1])
spec = importlib.util.spec_from_file_location("talkerviz.recorder._tap", sys.argv[2])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
' "$work/source" "$work"/source/talkerviz/recorder/_tap.*.so

status=0
if [ "${1:-}" = python ]; then
  shift
  "$python" "$@" || status=$?
else
  if [ $# = 0 ]; then
    # Whatever exercises the tap, except what takes long: compiled regions, killed processes, random models and Ctrl-C at
    # each moment of a call. Variants that go through Python alone are left out. Nothing is known not to run under ASan.
    for name in tap_fuzz contexts tensor_signatures record record_calls record_values record_several record_failures \
      device_clock device_runtime; do
      set -- "$@" "$root/tests/recorder/test_$name.py"
    done
    # After a crash xdist may wait for its new workers for ever.
    set -- -n 2 --max-worker-restart 0 --hypothesis-profile=ci -k 'not python] and not hooks] and not ctrl_c' "$@"
    set -- "$@" "$root/tests/recorder/test_record_compilers.py::test_functional_transforms"
    set -- "$@" "$root/tests/recorder/test_record_compilers.py::test_torch_s_own_tracers_make_the_same_of_a_watched_model"
  fi
  "$python" -m pytest -q -p no:cacheprovider --rootdir "$root" -c "$root/pyproject.toml" "$@" || status=$?
fi
unset LD_PRELOAD
for report in "$work"/reports/*; do
  [ -e "$report" ] || break
  cat "$report" >&2
  status=1
done
exit "$status"
