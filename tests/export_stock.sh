#!/usr/bin/env bash
# One real model's exports in real engines (minutes, so no part of the suite): MLATHE_PYTHON (or
# python3) with transformers, MLATHE_LLAMACPP_PYTHON (or the same) with cyllama.
# usage: export_stock.sh PROGRAM SOURCE_FOLDER MODEL [CONVERSION [hf|gguf|fp8 ...]]
set -u
[[ $# -ge 3 ]] || {
    echo "usage: export_stock.sh PROGRAM SOURCE_FOLDER MODEL [CONVERSION [hf|gguf|fp8 ...]]" >&2
    exit 2
}
python=${MLATHE_PYTHON:-$(command -v python3)} || python=
[[ -n $python ]] || {
    echo "skipped: no python3"
    exit 77
}
exec "$python" "$2/tests/export_stock.py" "$@"
