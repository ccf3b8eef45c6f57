#!/usr/bin/env bash
# Build the compiled tap for the `python3` of the path, in place, and fail unless this Python can load it.
set -eu
cd "$(dirname "${BASH_SOURCE[0]}")/../talkerviz/recorder"
include=$(python3 -c "import sysconfig; print(sysconfig.get_paths()['include'])")
suffix=$(python3 -c "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))")
"${CC:-cc}" -O3 -fPIC -shared -I"$include" native/*.c -o "_tap$suffix" -lm
# By its path: importing the package would import torch, which takes long on a machine that has just started.
python3 - "_tap$suffix" <<'EOF'
import importlib.util
import sys

spec = importlib.util.spec_from_file_location("talkerviz.recorder._tap", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.Tap, module.DeviceStamps)
EOF
