"""scripts/accuracy_text.py: prose out of pages, each paragraph once, nothing but paragraphs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

BOOK = "usr/share/doc/debian-handbook/html/en-US"
OTHER = "usr/share/developers-reference"
LONG = (
    "These words go on until the paragraph is long enough to be counted as prose and not menu. " * 2
)


def page(root: Path, place: str, body: str) -> None:
    path = root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")


def make(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = root / "scripts" / "accuracy_text.py"
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_paragraphs_become_text(root: Path, tmp_path: Path) -> None:
    menu = "<p>Next</p><pre>" + LONG + "</pre><div class='nav'>" + LONG + "</div>"
    first = f"<p>One.\n  <b>{LONG}</b>&amp; more</p>{menu}<p>Open. {LONG}<p>Last. {LONG}</p>"
    page(tmp_path, f"{BOOK}/b.html", f"<div class='para'>Second. {LONG}</div>")
    page(tmp_path, f"{BOOK}/a.html", first)
    page(tmp_path, f"{BOOK}/c.html", f"<p>Last. {LONG}</p>")
    page(tmp_path, f"{OTHER}/x.html", f"<p>Other. {LONG}</p>")
    done = make(root, str(tmp_path), str(tmp_path))
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "calibration.txt").read_text().rstrip("\n").split("\n\n")
    assert [text.split(".")[0] for text in made] == ["One", "Open", "Last", "Second"]
    assert made[0] == f"One. {LONG.strip()} & more"
    other = (tmp_path / "evaluation.txt").read_bytes()
    assert other.decode() == f"Other. {LONG.strip()}\n"
    checksum = hashlib.sha256(other).hexdigest()
    assert f"evaluation.txt: {len(other):,} bytes, sha256 {checksum}" in done.stdout


def test_usage(root: Path) -> None:
    done = make(root)
    assert done.returncode == 2
    assert "apt-get download debian-handbook" in done.stderr
