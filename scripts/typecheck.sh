#!/usr/bin/env bash
# mypy --strict over slidesparse as it is installed, search, kernels and bench under their real names.
# Checks the working tree, not what .venv holds; arguments go to mypy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

# A fixed place, so that mypy's cache stays valid. MYPYPATH goes before the current folder, in which
# mypy would find slidesparse without slidesparse.search.
tree=.mypy_cache/installed
rm -rf "$tree"
build_wheel "$tree/wheel"
"$VENV/bin/python" -m zipfile -e "$tree"/wheel/*.whl "$tree"
MYPYPATH="$tree" "$VENV/bin/mypy" -p slidesparse "$@" |
    sed -E "s#^$tree/slidesparse/(search|kernels|bench)/#\1/#; s#^$tree/##"
