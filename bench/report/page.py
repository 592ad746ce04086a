"""A report as one HTML page that needs nothing but itself: no other file, no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib import resources

from slidesparse.bench.report.draw import Drawing
from slidesparse.bench.report.format import cleaned
from slidesparse.bench.report.view import Chart, Report

_TEMPLATES = "templates"
_SCRIPT = "report.js"
_STYLE = "report.css"
_PAGE = "report.html.j2"


def to_html(report: Report, drawings: Mapping[str, Drawing]) -> str:
    """The whole page.

    Whatever comes from files is escaped, and the page's own policy forbids any script but its
    own and any request, so that a name in a result file can do nothing.

    Args:
        report: to show.
        drawings: of its charts, by their keys.
    """
    from jinja2 import BaseLoader, Environment, StrictUndefined
    from markupsafe import Markup

    script, style = _text(_SCRIPT), _text(_STYLE)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=BaseLoader(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def figure(chart: Chart) -> Markup:
        # Drawn by this package, which escapes what it takes from files.
        return Markup(drawings[chart.key].svg())

    page = environment.from_string(_text(_PAGE))
    rendered: str = page.render(
        report=report,
        figure=figure,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
    )
    return cleaned(rendered)


def _text(name: str) -> str:
    folder = resources.files("slidesparse.bench.report") / _TEMPLATES
    return (folder / name).read_text(encoding="utf-8")
