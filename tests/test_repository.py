"""Rules of the repository that a reviewer would otherwise have to remember."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

TOP_LEVEL = {
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "slidesparse",
    "search",
    "kernels",
    "bench",
    "tests",
    "scripts",
    "docs",
}
NOT_OURS = {".venv", ".git", "build", "dist", "__pycache__"}
LONGEST_FILE = 500
SECONDS_OF_GIT = 30
# Joined here, so that this file does not hold what it looks for.
PACKAGE_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("pypi.nvidia", "com"),
        ("conda.anaconda", "org"),
        ("registry.npmjs", "org"),
    )
]
MACHINE_PATH = re.compile(r"(?<![\w.\-/])/(?:work|root|home/\w+|Users/\w+|opt/\w+)/")


@pytest.fixture(scope="module")
def files(root: Path) -> list[Path]:
    """Paths, relative to the root, of the files that git tracks or would track."""
    if (root / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(
            command, cwd=root, check=True, capture_output=True, text=True, timeout=SECONDS_OF_GIT
        ).stdout
        names = [Path(name) for name in listed.split("\0") if name]
        return sorted(path for path in names if (root / path).is_file())
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path
        for path in found
        if not NOT_OURS & set(path.parts)
        and not any(part.endswith(("_cache", ".egg-info", ".hypothesis")) for part in path.parts)
    )


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", errors="replace")


def test_the_list_of_files_is_not_empty(files: list[Path]) -> None:
    assert {Path("pyproject.toml"), Path("slidesparse/__init__.py")} <= set(files)


def test_top_level_holds_only_what_was_agreed(files: list[Path]) -> None:
    found = {path.parts[0] for path in files}
    assert not {name for name in found - TOP_LEVEL if not name.startswith(".")}


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"])
def test_documents_are_there(root: Path, name: str) -> None:
    assert (root / name).stat().st_size > 0


def test_changelog_names_the_version(root: Path) -> None:
    from slidesparse import __version__

    assert f"\n## {__version__}" in text_of(root / "CHANGELOG.md")


def test_no_python_file_is_too_long(root: Path, files: list[Path]) -> None:
    lengths = {
        str(path): text_of(root / path).count("\n") for path in files if path.suffix == ".py"
    }
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_package_hosts(root: Path, files: list[Path]) -> None:
    found = {
        str(path): host for path in files for host in PACKAGE_HOSTS if host in text_of(root / path)
    }
    assert not found, "name a package, not the place it comes from"


def test_no_paths_of_one_machine(root: Path, files: list[Path]) -> None:
    found = {
        str(path): hit[0] for path in files if (hit := MACHINE_PATH.search(text_of(root / path)))
    }
    assert not found


def test_no_sys_path_tricks(root: Path, files: list[Path]) -> None:
    trick = re.compile(r"sys\.path\.(?:insert|append)")
    sources = [path for path in files if path.suffix == ".py"]
    assert not [str(path) for path in sources if trick.search(text_of(root / path))]


@pytest.mark.parametrize("package", ["slidesparse", "search", "kernels", "bench"])
def test_tests_are_named_after_what_they_test(root: Path, files: list[Path], package: str) -> None:
    """tests/<package>/test_<module>[_<aspect>].py, and the same below tests/gpu."""
    sources = [path for path in files if path.parts[0] == package and path.suffix == ".py"]
    modules = {part for path in sources for part in (*path.parts[1:-1], path.stem)}
    places = [Path("tests") / package, Path("tests/gpu") / package]
    tests = [path for path in files if path.name.startswith("test_")]
    orphans = [
        str(path)
        for path in tests
        if any(place in path.parents for place in places)
        and not any(
            path.stem == f"test_{name}" or path.stem.startswith(f"test_{name}_") for name in modules
        )
    ]
    assert not orphans, f"no module in {package}/ has these names"
