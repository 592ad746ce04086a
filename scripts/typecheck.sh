#!/usr/bin/env bash
# mypy --strict over slidesparse as it is installed, search, kernels and bench under their real names;
# then, loosely, over the tests that need a GPU: where none is, nothing else notices that a name they
# use is gone. Checks the working tree, not what .venv holds; arguments go to mypy.
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

# Not what a strict reading of untyped tests would find: unpacked arguments, None, lambdas.
loose=(--explicit-package-bases --check-untyped-defs --allow-untyped-defs --allow-incomplete-defs
    --allow-untyped-calls --allow-untyped-decorators --allow-any-generics --allow-subclassing-any
    --implicit-reexport --no-warn-return-any --no-warn-unused-ignores --no-warn-unreachable)
for noise in arg-type func-returns-value misc union-attr; do loose+=(--disable-error-code "$noise"); done
MYPYPATH="$tree:tests/support" "$VENV/bin/mypy" "${loose[@]}" "$@" tests/gpu tests/support/vllm_probe.py
