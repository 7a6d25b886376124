"""The HTML site of a study: its executed notebooks, its tables, and an index page. It needs neither
network nor JavaScript.
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
from rmlib.study.names import LABELS, METHOD
from rmlib.study.report import answer, completeness, groups, report
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL, NOTEBOOKS

PAGE = jinja2.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title | e }}</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem; margin: 2rem auto; padding: 0 1.2rem }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 0.5em } h1 { margin-top: 0.5em }
a { color: #1a5a96 } .anchor-link { display: none }
nav { font-size: 14px; border-bottom: 1px solid #ddd; padding-bottom: 0.6em; margin-bottom: 1.5em }
table { border-collapse: collapse; font-size: 13.5px; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: 0.25em 0.55em; border-bottom: 1px solid #e4e4e4; text-align: left; font-variant-numeric: tabular-nums; white-space: nowrap }
th { border-bottom: 2px solid #999; white-space: normal; vertical-align: bottom }
td[style*="right"], th[style*="right"] { text-align: right }
pre { font: 13px/1.45 ui-monospace, monospace; overflow-x: auto; margin: 0.5em 0; white-space: pre }
code { font-family: ui-monospace, monospace; font-size: 0.88em; background: #f4f4f4; padding: 0.1em 0.25em; border-radius: 3px }
pre code { background: none; padding: 0 } .jp-OutputArea-output pre { margin: 0 }
.jp-CodeCell { margin: 1.2em 0 } .highlight { background: #f7f7f7; border-left: 3px solid #c9d6e2; padding: 0.1em 0.8em }
.jp-OutputArea-output { padding: 0.1em 0.8em } img { max-width: 100% }
summary { font-weight: bold; cursor: pointer; margin: 0.6em 0 }
math { font-size: 1.08em } .formula { text-align: center; margin: 1em 0; overflow-x: auto } .note { color: #555; font-size: 14px }
{{ pygments }}
</style>
</head>
<body>
<nav>{% for name, target in links %}<a href="{{ target }}">{{ name | e }}</a>{{ " · " if not loop.last }}{% endfor %}</nav>
{{ body }}
</body>
</html>
""")

INDEX = jinja2.Template("""<h1>{{ title | e }}</h1>
{% for line in answers %}<p>{% if loop.first %}<b>{{ line | e }}</b>{% else %}{{ line | e }}{% endif %}</p>
{% endfor %}{% if figure %}<p class="note">A circle is a run, the bar a method's mean with its 95 % interval over seeds (Student's t). The best method was
chosen by the same accuracies, which flatters its lead. p is corrected by Holm for all other methods.</p>
<img alt="test accuracy of every run, by method" src="data:image/svg+xml;base64,{{ figure }}">{% endif %}
{{ first }}
<p class="note"><b>clean_weight</b> is the weight of the loss of the clean batch beside that of the mixed one: 1 as the paper trains, 0 for the mixed batch
alone. With "No mixing", 1 is the same batch twice (a control for the doubled loss) and 0 plain training.</p>
{% if problems %}<h2 id="left-out">Left out</h2>
<p>These files are damaged or do not belong where they lie. Nothing on these pages comes from them.</p>
<ul>{% for line in problems %}<li>{{ line | e }}</li>
{% endfor %}</ul>{% endif %}
<h2>More tables</h2>
{% for heading, body in more %}<details><summary>{{ heading | e }}</summary>
{{ body }}</details>
{% endfor %}<p class="note">The same tables as Markdown and CSV: <a href="tables/tables.md">tables/</a>. Where a number comes from: <code>rmlib explain</code>.
The paper: Saha &amp; Garain, <a href="https://arxiv.org/abs/2409.15028">Region Mixup</a>, ICLR 2024 Tiny Papers; its numbers are typed from it.</p>
{% if lessons %}<h2>Notebooks</h2>
<ul>{% for page, name, question in lessons %}<li><a href="{{ page }}">{{ name | e }}</a>: {{ question | e }}</li>
{% endfor %}</ul>{% endif %}
<h2 id="missing">What is missing</h2>
{% if missing %}<ul>{% for line in missing %}<li>{{ line | e }}</li>
{% endfor %}</ul>{% else %}<p>Nothing: what was planned, or what other runs of an experiment have, is there.</p>{% endif %}
{% if cells %}<h2 id="runs">Runs</h2>
<p class="note">Each is notebook 02_training with its own parameters.</p>
<table><tr>{% for head in heads %}<th>{{ head | e }}</th>{% endfor %}</tr>
{% for page, row in cells %}<tr>{% for value in row %}<td>{% if loop.first and page %}<a href="{{ page }}">{{ value | e }}</a>{% else %}{{ value | e }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
""")


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
    body = INDEX.render(
        title=title,
        answers=[line for line in map(answer.answer, experiments) if line],
        figure=_figure(experiments),
        first=_html(tables["accuracy"]),
        more=[
            (heading, _html(tables[kind]))
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
    return markdown2html(html.escape("\n".join(texts), quote=False))


def _figure(experiments):
    """The accuracies of all methods as SVG in base64; "" where no two can be compared."""
    panels = [(groups.title(group), answer.methods(group)) for group in experiments]
    panels = [(title, found) for title, found in panels if len(found) > 1]
    if not panels:
        return ""
    figure, file = figures.methods(panels), io.BytesIO()
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
    return PAGE.render(title=title, links=links, body=body, pygments=style)


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
        for _, method in groups.methods(group, repeated=True):
            for run in method.sort_values("config.seed").to_dict("records"):
                scores = [run["status"], ""]
                if run["status"] == "done":
                    scores = [f"{run['metrics.accuracy']:.2f}", f"{run['metrics.nll']:.3f}"]
                settings = [run[f"config.{name}"] for name in ("seed", *varying)]
                entries = [LABELS[run["config.mixer"]], *settings, *scores]
                entries += [f"{run['seconds']:.0f}", run["run_id"]]
                rows.append((pages.get(run["run_id"]), entries))
    heads = ["method", "seed", *varying, "accuracy (%)", "NLL (nats)", "seconds", "run"]
    return heads, rows
