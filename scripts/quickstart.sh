#!/usr/bin/env bash
# From a fresh Debian or Ubuntu machine to the first result table: .venv, an editable install and one
# search, on the GPU if there is one, else on the CPU with small defaults.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

section "Environment"
ensure_venv
ensure_torch

section "SlideSparse"
extras=""
if has_gpu; then
    extras="cuda$(cuda_major)"
    note "Installing with the libraries of the extra $extras."
fi
venv_pip install -q --no-build-isolation --editable ".${extras:+[$extras]}"
note "Installed $("$VENV/bin/slidesparse" --version) from this folder into $VENV."

section "slidesparse doctor"
# Exit code 1 says that a part is missing, which the search below works without or names itself.
"$VENV/bin/slidesparse" doctor || [ $? -eq 1 ]

section "slidesparse search --model qwen2.5-7b --dtype fp8"
"$VENV/bin/slidesparse" search --model qwen2.5-7b --dtype fp8
