"""The HTML site of a study: its executed notebooks, its tables, and an index page. It needs neither
network nor, but for the playground, JavaScript.
"""

import base64
import copy
import html
import io
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from rmlib.paths import below
from rmlib.study import figures
from rmlib.study.names import METHOD
from rmlib.study.playground import page as playground
from rmlib.study.report import answer, classes, completeness, groups, report
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL, NOTEBOOKS


def _template(name):
    return jinja2.Template(Path(__file__).with_name(f"{name}.html").read_text(encoding="utf-8"))


def build(root, folder: Path, tables: dict | None = None, missing: list[str] | None = None) -> Path:
    """Write the site of everything below ``root`` (a folder, or a
    :class:`rmlib.study.runs.collection.Collection` of it) into ``folder``; returns the index page.
    ``tables`` and ``missing``: of :func:`rmlib.study.report.report.tables` and
    :func:`rmlib.study.report.completeness.missing`, if they were made already.

    The folder gets index.html, a page for each executed notebook and tables/ (see
    :func:`rmlib.study.report.report.write_tables`). Formulas become MathML, figures lie in the
    pages: a page can be mailed or opened from a disk.

    Raises:
        UserError: there is no record below root, or the folder cannot be written.
    """
    found = collection.gather(root)
    root, runs = found.folder, groups.runs_below(found)
    experiments = groups.experiments(runs)
    tables = report.tables(found) if tables is None else tables
    report.write_tables(tables, found, folder / "tables")
    # no machine path where it can be helped
    problems = [line.replace(f"{root}/", "") for line in found.problems]
    books = _books(root, problems)
    lessons = {path: book for path, book in books.items() if path.stem != CELL}
    links = [("report", "index.html"), *((book.title, book.page) for book in lessons.values())]
    links.append(("playground", "playground.html"))
    records.atomic_write(folder / "playground.html", playground().encode())
    targets = {f"{path.stem}.ipynb": book.page for path, book in lessons.items()}
    targets[f"{CELL}.ipynb"] = "index.html#runs"
    for book in books.values():
        body = book.body
        for file, target in targets.items():
            body = body.replace(f'href="{file}"', f'href="{target}"')
        records.atomic_write(folder / book.page, _page(book.title, links, body).encode())
    pages = {path.parent.name: book.page for path, book in books.items() if path.stem == CELL}
    heads, rows = _runs(runs, pages)
    title = f"Report: {root.resolve().name}"
    extra = {"confusions": _confusions(found, experiments)}
    body = _template("index").render(
        title=title,
        answers=answer.answers(found),
        networks=answer.networks(found),
        figure=_figure(experiments),
        first=_html(tables["accuracy"]),
        of_paper=bool(tables["paper"]),
        more=[
            (heading, _html(tables[kind]) + extra.get(kind, ""))
            for kind, heading in report.HEADINGS.items()
            if tables[kind] and kind != "accuracy"
        ],
        problems=problems,
        missing=completeness.missing(found) if missing is None else missing,
        lessons=[(book.page, path.stem, book.question) for path, book in lessons.items()],
        heads=heads,
        cells=rows,
    )
    records.atomic_write(folder / "index.html", _page(title, links, body).encode())
    return folder / "index.html"


@dataclass
class Book:
    """An executed notebook and its page."""

    title: str
    question: str
    body: str  # HTML
    page: str  # name of the file


def _books(root, problems):
    """Every executed notebook below a folder: path -> :class:`Book`. What cannot be shown gets a
    line in ``problems``.
    """
    books = {}
    for path in below(root, "*.ipynb"):
        if path.stem not in NOTEBOOKS:
            continue
        inside = path.relative_to(root)
        try:
            book = nbformat.read(path, as_version=4)
            page = "-".join(inside.with_suffix(".html").parts)
            books[path] = Book(_title(path, book), _question(book), notebook_html(book), page)
        except (*records.DAMAGE, OSError, nbformat.ValidationError):
            # its process was killed while it was written, or it is no notebook
            problems.append(
                f"{inside} is damaged: it has no page; its record, if any, counts all the same"
            )
    return books


def _html(tables):
    """Tables under their captions; what a record or a folder is called is text, never HTML."""
    texts = [f"{table.caption}:\n\n{table.markdown()}" for table in tables]
    # a dollar sign in a name begins no formula
    return markdown2html(html.escape("\n".join(texts), quote=False).replace("$", "&#36;"))


def _figure(experiments):
    """The accuracies of all methods as SVG in base64; "" where no two can be compared."""
    panels = [(groups.title(group), answer.methods(group)) for group in experiments]
    panels = [(title, found) for title, found in panels if len(found) > 1]
    return _svg(figures.methods(panels)) if panels else ""


def _confusions(found, experiments):
    """For each experiment whose records count classes: what its best method takes for what."""
    images = []
    for group in experiments:
        for method, runs in classes.counted(found, group)[:1]:
            title = f"{groups.title(group)}; {method}, n = {len(runs)}, summed"
            figure = figures.confusion(*classes.matrix(list(runs.values())), title)
            alt = html.escape(f"confusions of the classes, {title}")
            images.append(f'<img alt="{alt}" src="data:image/svg+xml;base64,{_svg(figure)}">')
    return "\n".join(images)


def _svg(figure):
    """A figure as SVG in base64."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def notebook_html(notebook) -> str:
    """The body of a notebook's page: Markdown with MathML, code, outputs with their figures."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _with_mathml(cell.source)
    prompts = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    return HTMLExporter(template_name="basic", **prompts).from_notebook_node(notebook)[0]


def _with_mathml(text):
    """Markdown whose $formulas$ are MathML, which browsers show without any script; code spans stay
    as they are.
    """

    def formula(match):
        if match["code"]:
            return match["code"]
        if match["block"]:
            return f'<div class="formula">{convert(match["block"], display="block")}</div>'
        return convert(match["inline"])

    pattern = r"(?P<code>`[^`]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$"
    return re.sub(pattern, formula, text, flags=re.DOTALL)


def _page(title, links, body):
    style = HtmlFormatter(style="default").get_style_defs(".highlight")
    return _template("page").render(title=title, links=links, body=body, pygments=style)


def _title(path, notebook):
    """'1. The method' of a notebook's first heading, cut at the colon, or its name."""
    first = notebook.cells[0].source
    heading = re.match(r"# (.+)", first)
    return heading[1].split(":")[0] if heading else path.stem


def _question(notebook):
    found = re.search(r"\*\*Question\.\*\* (.+)", notebook.cells[0].source)
    return found[1] if found else ""


def _runs(runs, pages):
    """Headings and rows (page or None, values) of the table of single runs. ``pages``: run_id ->
    page of its notebook.
    """
    names = ("dataset", "width", "epochs", *METHOD[1:])
    varying = [name for name in names if runs[f"config.{name}"].map(str).nunique() > 1]
    rows = []
    for group in groups.experiments(runs):
        for columns, method in groups.methods(group, repeated=True):
            for run in method.sort_values("config.seed").to_dict("records"):
                scores = [run["status"], ""]
                if run["status"] == "done":
                    scores = [f"{run['metrics.accuracy']:.2f}", f"{run['metrics.nll']:.3f}"]
                settings = [run[f"config.{name}"] for name in ("seed", *varying)]
                entries = [columns["method"], *settings, *scores]
                entries += [f"{run['seconds']:.0f}", run["run_id"]]
                rows.append((pages.get(run["run_id"]), entries))
    heads = ["method", "seed", *varying, "accuracy (%)", "NLL (nats)", "seconds", "run"]
    return heads, rows
