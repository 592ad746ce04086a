"""Make the prose that docs/accuracy.md calibrates and evaluates on, out of Debian packages.

    apt-get download debian-handbook harden-doc debian-history debian-faq developers-reference
    for file in *.deb; do dpkg -x "$file" unpacked; done
    python scripts/accuracy_text.py unpacked OUT

Writes OUT/calibration.txt and OUT/evaluation.txt, of different books, and prints their sha256.
"""

from __future__ import annotations

import hashlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

DOC = "usr/share/doc"
SOURCES = {
    "calibration.txt": (
        f"{DOC}/debian-handbook/html/en-US/*.html",
        f"{DOC}/harden-doc/html/en-US/*.html",
    ),
    "evaluation.txt": (
        f"{DOC}/debian-history/docs/*.en.html",
        f"{DOC}/debian/FAQ/*.en.html",
        "usr/share/developers-reference/*.html",
    ),
}
SHORTEST = 120
"""Characters of a paragraph that counts as prose: headings and lines of menus are shorter."""


class Paragraphs(HTMLParser):
    """The text of every <p> and <div class="para"> of a page, white space collapsed."""

    def __init__(self) -> None:
        """Start outside any paragraph."""
        super().__init__()
        self.found: list[str] = []
        self._parts: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a paragraph."""
        if tag == "p" or (tag == "div" and ("class", "para") in attrs):
            self._end()
            self._parts = []

    def handle_endtag(self, tag: str) -> None:
        """End a paragraph, also one whose own end is left out."""
        if tag in {"p", "div", "li", "td", "section"}:
            self._end()

    def handle_data(self, data: str) -> None:
        """Collect text inside a paragraph."""
        if self._parts is not None:
            self._parts.append(data)

    def _end(self) -> None:
        if self._parts:
            self.found.append(re.sub(r"\s+", " ", "".join(self._parts)).strip())
        self._parts = None


def prose(root: Path, patterns: tuple[str, ...]) -> str:
    """The paragraphs of all pages that match, in order of the file names, each once."""
    kept: dict[str, None] = {}
    for pattern in patterns:
        for page in sorted(root.glob(pattern)):
            parser = Paragraphs()
            parser.feed(page.read_text(encoding="utf-8"))
            kept.update((text, None) for text in parser.found if len(text) >= SHORTEST)
    return "\n\n".join(kept) + "\n"


def main() -> int:
    """Write both files."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    for name, patterns in SOURCES.items():
        content = prose(root, patterns).encode()
        (out / name).write_bytes(content)
        print(f"{name}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
