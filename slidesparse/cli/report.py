"""`slidesparse report`: result files as one page for a browser, or as Markdown, with figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from slidesparse.cli.options import check_writable
from slidesparse.errors import UsageError

if TYPE_CHECKING:
    from slidesparse.bench.report.draw import Drawing
    from slidesparse.bench.report.view import Report
    from slidesparse.bench.rows import ResultFile

HTML, MARKDOWN = "html", "md"
STDOUT = Path("-")
_STDOUT_TOO = Path("/dev/stdout")
"""Another name of it, which is no file that could be replaced."""

TITLE = "SlideSparse report"
_SUFFIXES = {".html": HTML, ".htm": HTML, ".md": MARKDOWN, ".markdown": MARKDOWN}


@click.command("report")
@click.argument(
    "results", nargs=-1, required=True, metavar="RESULTS...", type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, - for standard output.  [default: report.html or report.md]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([HTML, MARKDOWN]),
    help="A page or Markdown.  [default: as the name of --output ends]",
)
@click.option("--title", default=TITLE, show_default=True, help="Of the page.")
@click.option(
    "--figures",
    type=click.Path(path_type=Path),
    help="Folder of the PNG files.  [default: beside --output, report_figures]",
)
@click.option("--no-figures", is_flag=True, help="Write no PNG files.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
def command(
    results: tuple[Path, ...],
    output: Path | None,
    form: str | None,
    title: str,
    figures: Path | None,
    no_figures: bool,
    quiet: bool,
) -> None:
    """Show result files RESULTS, or all in the folders RESULTS, in one self-contained page.

    It has the speedups over M with their bounds, a roofline, what fills a step, the GPU's
    utilisation, accuracy against speed, and where every figure is from, as far as the files go.
    """
    if figures is not None and no_figures:
        raise UsageError("--figures and --no-figures contradict each other; leave one out")
    if not title.strip():
        raise UsageError("--title is empty; name the report")
    form = form or _SUFFIXES.get(output.suffix.lower() if output else "", HTML)
    output = STDOUT if output == _STDOUT_TOO else output or Path(f"report.{form}")
    folder = None if no_figures else _figure_folder(figures, output)
    paths = _paths(results)
    _check_output(output, folder, form, paths)
    _check_libraries(form, folder)

    from slidesparse.bench.report.assemble import build_report

    files = _read(paths, results)
    report = build_report(files, title)
    _write(report, form, output, folder)
    if not quiet and output != STDOUT:
        click.echo(_written(report, output, folder))


def _figure_folder(given: Path | None, output: Path) -> Path | None:
    """Where PNG files go; nowhere where the report itself goes to no file."""
    if given is not None:
        return given
    if output == STDOUT or (output.exists() and not output.is_file()):
        return None
    return output.with_name(f"{output.stem}_figures")


def _paths(results: Sequence[Path]) -> list[Path]:
    """Every file once, folders searched.

    Raises:
        UsageError: there is no such file or folder, or a folder without any JSON file.
    """
    found: dict[Path, Path] = {}
    for path in results:
        if not path.exists():
            raise UsageError(f"cannot read {path}: No such file or directory")
        inside = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise UsageError(f"the folder {path} holds no .json file; name result files")
        for file in inside:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _check_output(output: Path, folder: Path | None, form: str, paths: Sequence[Path]) -> None:
    """Refuse, before anything is read, what could not be written or would destroy a result.

    Raises:
        UsageError: it is so.
    """
    told = _SUFFIXES.get(output.suffix.lower(), form)
    if told != form:
        raise UsageError(f"--format {form} does not go with -o {output}; name one of the two anew")
    if output != STDOUT:
        check_writable(output)
        if output.resolve() in {path.resolve() for path in paths}:
            raise UsageError(f"-o {output} is one of the result files; name another file")
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"cannot write figures into {folder}: it is a file; use --figures FOLDER")
    if not folder.exists():
        check_writable(folder)
    elif not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write figures into {folder}: permission denied")


def _check_libraries(form: str, folder: Path | None) -> None:
    """Refuse to begin without the libraries that draw and lay out.

    Raises:
        UsageError: one is missing, with the remedy.
    """
    needed = {"jinja2": form == HTML, "matplotlib": form == HTML or folder is not None}
    missing = [name for name, wanted in needed.items() if wanted and find_spec(name) is None]
    if missing:
        raise UsageError(
            f"a report needs {' and '.join(missing)}; pip install 'slidesparse[report]'"
        )


def _read(paths: Sequence[Path], named: Sequence[Path]) -> list[ResultFile]:
    """The result files; in folders others are passed over, and said.

    Raises:
        UsageError: a file that was named is no result file, or none in the folders is one.
    """
    from slidesparse.bench.kinds import read_results

    files, reasons = [], []
    for path in paths:
        try:
            files.append(read_results(path))
        except UsageError as error:
            if path in named:
                raise
            reasons.append(str(error))
            click.echo(f"left out: {error}", err=True)
    if not files:
        raise UsageError(f"nothing to show: no result file among {len(paths)}; {reasons[0]}")
    return files


def _write(report: Report, form: str, output: Path, folder: Path | None) -> None:
    from slidesparse.bench.report.markdown import to_markdown
    from slidesparse.bench.result_file import write_text

    drawings = _draw(report) if form == HTML or folder is not None else {}
    if folder is not None and drawings:
        _write_figures(drawings, folder)
    if form == HTML:
        from slidesparse.bench.report.page import to_html

        text = to_html(report, drawings)
    else:
        here = Path() if output == STDOUT else output.resolve().parent
        link = None if folder is None else Path(os.path.relpath(folder, here)).as_posix()
        text = to_markdown(report, link)
    if output == STDOUT:
        click.echo(text, nl=False)
    else:
        write_text(output, text)


def _draw(report: Report) -> dict[str, Drawing]:
    """All charts by their keys."""
    from slidesparse.bench.report.draw import Drawing

    return {chart.key: Drawing(chart) for chart in report.charts}


def _write_figures(drawings: Mapping[str, Drawing], folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}") from error
    for key, drawing in drawings.items():
        drawing.write_png(folder / f"{key}.png")


def _written(report: Report, output: Path, folder: Path | None) -> str:
    tables = sum(len(g.tables) for s in (*report.sections, report.sources) for g in s.groups)
    figures = f" (PNG files in {folder})" if folder is not None and report.charts else ""
    missing = f"; no data for: {', '.join(it.title for it in report.absent)}"
    return (
        f"{output}: {len(report.sections)} sections, {len(report.charts)} figures{figures}, "
        f"{tables} tables{missing if report.absent else ''}"
    )
