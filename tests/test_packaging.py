"""What is installed: the wheel's content, the editable install, import cost and the command."""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import pytest

import slidesparse

MAPPED = {"slidesparse": "slidesparse"} | {
    f"slidesparse.{name}": name for name in ("search", "kernels", "bench")
}
"""Package -> its folder in the repository."""


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command} exited {done.returncode}:\n{done.stdout}{done.stderr}"
    return done


def python(code: str, folder: Path) -> str:
    """Output of `code` in a fresh interpreter, in an empty folder for its "" on sys.path."""
    return run(sys.executable, "-c", code, cwd=folder).stdout.strip()


def pip(*arguments: str | Path) -> None:
    run(sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments)


def modules_below(folder: Path, package: str) -> set[str]:
    """Wheel paths of every .py file in the package folders at and below `folder`."""
    found = set()
    for init in folder.rglob("__init__.py"):
        relative = init.parent.relative_to(folder)
        prefix = Path(package.replace(".", "/")) / relative
        found |= {(prefix / file.name).as_posix() for file in init.parent.glob("*.py")}
    return found


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the package is built from, so that building leaves the checkout alone."""
    pytest.importorskip("setuptools", minversion="77")
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    for name in (*MAPPED.values(), "tests"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    results = copy / "bench" / "results" / "some-gpu"
    results.mkdir(parents=True, exist_ok=True)
    (results / "planted.json").write_text("{}")
    data = copy / "slidesparse" / "data" / "tuning" / "some-gpu"
    data.mkdir(parents=True, exist_ok=True)
    (data / "planted.json").write_text("{}")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, tree)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_puts_only_slidesparse_into_site_packages(wheel: zipfile.ZipFile) -> None:
    info = f"slidesparse-{slidesparse.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"slidesparse", info}


def test_wheel_holds_every_module_of_every_package_folder(
    wheel: zipfile.ZipFile, root: Path
) -> None:
    expected = set().union(*(modules_below(root / path, name) for name, path in MAPPED.items()))
    assert {f"{name.replace('.', '/')}/__init__.py" for name in MAPPED} <= expected
    built = {name for name in wheel.namelist() if name.endswith(".py")}
    missing, surplus = expected - built, built - expected
    assert not missing, f"add their folders to packages in pyproject.toml: {sorted(missing)}"
    assert not surplus, f"in the wheel but in no package folder: {sorted(surplus)}"


def test_every_python_folder_is_a_package(root: Path) -> None:
    """A folder without __init__.py would be left out of the wheel and of the test above."""
    folders = {file.parent for path in MAPPED.values() for file in (root / path).rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]


def test_wheel_holds_data_but_neither_results_nor_tests(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "slidesparse/py.typed" in names
    assert "slidesparse/data/tuning/some-gpu/planted.json" in names
    assert "slidesparse/bench/result.schema.json" in names
    assert not [name for name in names if "/results/" in name or "/tests/" in name]


def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    info = f"slidesparse-{slidesparse.__version__}.dist-info"
    assert f"\nVersion: {slidesparse.__version__}\n" in wheel.read(f"{info}/METADATA").decode()
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(scripts["console_scripts"]) == {"slidesparse": "slidesparse.cli.main:main"}
    assert any(name.startswith(info) and name.endswith("/LICENSE") for name in wheel.namelist())


def test_editable_install_resolves_to_the_tree(tree: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    # --ignore-installed: pip would otherwise uninstall the slidesparse that runs this test.
    pip(
        *("install", "--no-deps", "--no-build-isolation", "--ignore-installed", "--no-index"),
        *("--prefix", environment, "--editable", tree),
    )
    code = """if True:
        import importlib.util, json, sys
        names = sys.argv[1:]
        found = {name: importlib.util.find_spec(name) for name in names}
        print(json.dumps({name: spec and spec.origin for name, spec in found.items()}))
    """
    interpreter = environment / "bin" / "python"
    toplevel = ["search", "kernels", "bench", "tests"]
    out = run(interpreter, "-c", code, *MAPPED, *toplevel, cwd=tmp_path, env=clean_environment())
    origins = json.loads(out.stdout)
    assert {name: origins[name] for name in MAPPED} == {
        name: str(tree / path / "__init__.py") for name, path in MAPPED.items()
    }
    assert {name: origins[name] for name in toplevel} == dict.fromkeys(toplevel)


def clean_environment() -> dict[str, str]:
    """This environment without PYTHONPATH, which scripts/gpu_check.sh points at its own install."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def test_all_packages_come_from_one_installed_place(root: Path) -> None:
    """Neither a wheel nor an editable install may be mixed with the current folder."""
    distribution = importlib.metadata.distribution("slidesparse")
    url = json.loads(distribution.read_text("direct_url.json") or "{}")
    editable = url.get("dir_info", {}).get("editable", False)
    for name, path in MAPPED.items():
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is not importable; install the package first"
        installed = distribution.locate_file(name.replace(".", "/"))
        expected = root / path if editable else Path(str(installed))
        assert Path(str(spec.origin)).parent.resolve() == expected.resolve(), name


def test_import_is_quick_and_touches_no_gpu_library(tmp_path: Path) -> None:
    heavy = ["torch", "triton", "cupy", "nvmath", "cuda", "vllm", "transformers"]
    code = f"import sys, slidesparse; print([name for name in {heavy} if name in sys.modules])"
    seconds = []
    for _ in range(3):  # The machine may be busy once.
        start = time.perf_counter()
        assert python(code, tmp_path) == "[]"
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


@pytest.fixture(scope="module")
def command() -> str:
    """The console script that belongs to the running interpreter."""
    script = Path(sysconfig.get_path("scripts")) / "slidesparse"
    if not script.exists():
        pytest.skip(f"{script} is not installed, as under scripts/gpu_check.sh")
    return str(script)


def test_help_answers_within_half_a_second(command: str) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert "search" in run(command, "--help").stdout
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5, times


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = """
import sys
from slidesparse.cli.main import cli
cli(["--help"], standalone_mode=False)
print([name for name in ("torch", "numpy", "pydantic") if name in sys.modules])
"""
    assert python(code, tmp_path).splitlines()[-1] == "[]"


def test_module_and_script_are_the_same_command(command: str, tmp_path: Path) -> None:
    script = run(command, "--version").stdout
    # Not from the repository's root, where -m would find slidesparse without slidesparse.search.
    module = run(sys.executable, "-m", "slidesparse", "--version", cwd=tmp_path).stdout
    assert script == module == f"slidesparse, version {slidesparse.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["serach"], "'search'"), (["--no-such-option"], "--no-such-option"), (["zzz"], "'zzz'")],
)
def test_usage_errors(command: str, arguments: list[str], hint: str) -> None:
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
