#!/usr/bin/env bash
# Exports in real engines, where they are installed: MLATHE_PYTHON (or python3) with transformers,
# MLATHE_LLAMACPP_PYTHON (or the same) with cyllama. usage: test_export_engines.sh PROGRAM SOURCE_FOLDER
set -u
python=${MLATHE_PYTHON:-$(command -v python3)} || python=
[[ -n $python ]] || {
    echo "skipped: no python3"
    exit 77
}
exec "$python" "$2/tests/export_engines.py" "$@"
