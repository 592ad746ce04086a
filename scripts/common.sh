# Shell functions that the scripts share. Sourced from the repository root, never run.
#
# Environment:
#   PYTHON            interpreter that makes the virtual environment (default: the first fit one)
#   SLIDESPARSE_VENV  the virtual environment (default: .venv)
#   TORCH_SPEC        what pip installs as torch, for example a wheel file or "torch==2.10.0"

VENV="${SLIDESPARSE_VENV:-.venv}"
TORCH_CPU_SPEC="torch==2.13.0+cpu"
# From 2.11 on, torch's default wheels are built for CUDA 13, which a CUDA 12 driver does not run.
TORCH_CUDA12_SPEC="torch>=2.9,<2.11"

section() { printf '\n== %s\n' "$*"; }
note() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

venv_pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# can_import PYTHON MODULE...: whether all of them are installed, without importing them.
can_import() {
    "$1" - "${@:2}" 2>/dev/null <<'PY'
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))
PY
}

# The CUDA major to install libraries for: torch's own, else the driver's.
cuda_major() {
    local major
    major=$("$VENV/bin/python" -c 'import torch; print((torch.version.cuda or "").split(".")[0])')
    [ -n "$major" ] || major=$(driver_cuda_major)
    printf '%s' "$major"
}

driver_cuda_major() { nvidia-smi | sed -nE 's/.*CUDA[^:]*Version: *([0-9]+)\..*/\1/p' | head -n 1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    die "no Python >= 3.10 found (tried ${PYTHON:-python3 and python3.10 to python3.13});" \
        "install one (apt-get install python3) or name it: PYTHON=/path/to/python3 bash $0"
}

# Debian and Ubuntu ship ensurepip in a package of its own, without which venv makes no pip.
require_venv_module() {
    can_import "$1" venv ensurepip && return
    local package
    package="$(basename "$1")-venv"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        note "Installing $package, which Python needs to make a virtual environment."
        apt-get update -qq && apt-get install -y -qq "$package" && can_import "$1" venv ensurepip \
            && return
    fi
    die "$1 cannot make virtual environments; run: sudo apt-get install $package"
}

# Pages of reports are tested in a browser, which pip does not bring. Without one these tests are
# skipped, and say so.
ensure_browser() {
    "$VENV/bin/python" tests/support/browsers.py && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        note "Installing chromium-headless-shell, in which pages are tested."
        timeout 60 apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -y -qq \
            --no-install-recommends chromium-headless-shell >/dev/null || true
        "$VENV/bin/python" tests/support/browsers.py && return
    fi
    note "warning: no browser was found, so the tests that open pages in one are skipped;"
    note "to run them: sudo apt-get install chromium-headless-shell (or chromium)"
}

# Make the virtual environment unless a working one is there. An importable torch is shared.
ensure_venv() {
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        note "Using $VENV ($("$VENV/bin/python" --version))."
        return
    fi
    local python flags=(--clear)
    python=$(find_python)
    require_venv_module "$python"
    can_import "$python" torch && flags+=(--system-site-packages)
    note "Making $VENV with $("$python" --version)."
    "$python" -m venv "${flags[@]}" "$VENV"
    # --system-site-packages skips the environment that $python itself may be part of.
    if can_import "$python" torch && ! can_import "$VENV/bin/python" torch; then
        "$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
            >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/outer.pth"
    fi
    venv_pip install -q --upgrade "setuptools>=77"
}

# Install torch before anything can pull in a build that this machine has no use for. Order: one that
# is importable, TORCH_SPEC, without a GPU a CPU wheel that pip knows of, then the default build.
ensure_torch() {
    if can_import "$VENV/bin/python" torch; then
        note "Using the torch that is installed."
    elif [ -n "${TORCH_SPEC:-}" ]; then
        venv_pip install "$TORCH_SPEC"
    elif has_gpu; then
        [ "$(driver_cuda_major)" = 12 ] && TORCH_SPEC="$TORCH_CUDA12_SPEC"
        venv_pip install "${TORCH_SPEC:-torch}"
    elif venv_pip install -q --no-index --no-deps torch 2>/dev/null ||
        venv_pip install -q --no-deps "$TORCH_CPU_SPEC" 2>/dev/null; then
        note "Installed a CPU build of torch."
    else
        note "warning: pip knows of no CPU build of torch; this downloads the default build, on x86-64"
        note "with its CUDA libraries (gigabytes). To avoid it: TORCH_SPEC=/path/to/torch-cpu.whl"
        venv_pip install torch
    fi
}

# build_wheel FOLDER: from a copy, so that no stale build/ of an earlier tree gets into it.
build_wheel() {
    local copy
    copy=$(mktemp -d)
    tar -cf - --exclude=__pycache__ --exclude=bench/results \
        pyproject.toml README.md LICENSE slidesparse search kernels bench | tar -xf - -C "$copy"
    venv_pip wheel -q --no-deps --no-build-isolation --wheel-dir "$1" "$copy"
    rm -rf "$copy"
}
