#!/usr/bin/env bash
# Build the wheel, install it into .venv and run every check against it; arguments go to pytest.
# Needs no GPU. Replaces an editable install in .venv; scripts/quickstart.sh brings it back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

section "Environment"
ensure_venv
ensure_torch

section "Wheel"
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
build_wheel "$wheels"
wheel=$(echo "$wheels"/*.whl)
# The first call brings missing dependencies and asks no index when there are none; the second
# replaces the package itself, which has the same version as the one before.
venv_pip install -q "$wheel[dev]"
venv_pip install -q --force-reinstall --no-deps "$wheel"
note "Installed $(basename "$wheel")."
ensure_browser

section "ruff check"
"$VENV/bin/ruff" check .

section "ruff format"
"$VENV/bin/ruff" format --check .

section "mypy --strict"
bash scripts/typecheck.sh

section "pytest"
"$VENV/bin/pytest" --timeout=600 "$@"
