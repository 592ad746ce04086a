#!/usr/bin/env bash
# Run tests/gpu, then the other tests, on a machine with a GPU; arguments go to pytest. Installs
# nothing for good: it uses the Python that has torch, and the package from a temporary folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/common.sh

python=""
for candidate in ${PYTHON:-"$VENV/bin/python" python3}; do
    if "$candidate" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || die "no Python here has a torch that sees a GPU (tried ${PYTHON:-$VENV and python3});" \
    "run scripts/quickstart.sh first or set PYTHON"
for module in pip setuptools pytest hypothesis click filelock platformdirs pydantic rich; do
    can_import "$python" "$module" || die "$python has no $module; install it or set PYTHON"
done

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
# VENV is only asked for its python, which is the one found above.
venv_pip() { "$python" -m pip --disable-pip-version-check "$@"; }
build_wheel "$site/wheel"
venv_pip install -q --no-deps --no-compile --no-index --target "$site" "$site"/wheel/*.whl
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
# Keeps `python -m pytest` from putting this folder, with its bare slidesparse/, first on sys.path.
export PYTHONSAFEPATH=1

section "pytest tests/gpu"
"$python" -m pytest tests/gpu "$@"

section "pytest tests without tests/gpu"
"$python" -m pytest tests --ignore=tests/gpu "$@"
