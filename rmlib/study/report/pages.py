"""The HTML site of a study: its executed notebooks, its tables, and an index page. It needs neither
network nor JavaScript.
"""

import re
from pathlib import Path

import jinja2
import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments.formatters import HtmlFormatter

from rmlib.study.report import completeness, report
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL, NOTEBOOKS

PAGE = jinja2.Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
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
<p>Region Mixup, studied. Our numbers on these pages come from the records of {{ runs }} run{{ "s" if runs != 1 }}; n, mean and sample standard
deviation stand beside each, what was run on which hardware above each table. The paper's numbers are typed from the paper: Saha &amp; Garain,
<a href="https://arxiv.org/abs/2409.15028">Region Mixup</a>, ICLR 2024 Tiny Papers.</p>
<p><b>clean_weight</b> is the weight of the loss of the clean batch beside that of the mixed one: 1 as the paper trains, 0 for the mixed batch alone. With
"No mixing", 1 is the same batch twice (a control for the doubled loss) and 0 plain training.</p>
{% if lessons %}<h2>Notebooks</h2>
<table><tr><th>notebook</th><th>question</th></tr>
{% for page, name, question in lessons %}<tr><td><a href="{{ page }}">{{ name | e }}</a></td><td style="white-space: normal">{{ question | e }}</td></tr>
{% endfor %}{% if cells %}<tr><td><a href="#runs">02_training</a></td><td style="white-space: normal">How is a network trained on mixed batches? One page for each run.</td></tr>{% endif %}
</table>{% endif %}
{% if problems %}<h2 id="left-out">Left out</h2>
<p>These files are damaged or do not belong where they lie. Nothing on these pages comes from them.</p>
<ul>{% for line in problems %}<li>{{ line | e }}</li>
{% endfor %}</ul>{% endif %}
<h2 id="missing">What is missing</h2>
{% if missing %}<ul>{% for line in missing %}<li>{{ line | e }}</li>
{% endfor %}</ul>{% else %}<p>Nothing: what was planned, or what other runs of an experiment have, is there.</p>{% endif %}
{{ tables }}
{% if cells %}<h2 id="runs">Runs</h2>
<p class="note">Each is notebook 02_training with its own parameters.</p>
<table><tr>{% for head in heads %}<th>{{ head | e }}</th>{% endfor %}</tr>
{% for page, row in cells %}<tr>{% for value in row %}<td>{% if loop.first and page %}<a href="{{ page }}">{{ value | e }}</a>{% else %}{{ value | e }}{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
<p class="note">The same tables as Markdown and CSV, all runs as Parquet: <a href="tables/tables.md">tables/</a>. Where a number comes from: <code>rmlib explain</code>.</p>
""")

HEADINGS = {
    "accuracy": "What was run",
    "differences": "Differences with their intervals",
    "networks": "Two networks at a time (McNemar)",
    "robustness": "Under attack and under corruptions",
    "checks": "Can FGSM be believed?",
    "corrupted": "Under each corruption",
    "localization": "Where the networks look",
    "faithfulness": "Do the maps tell what the networks look at?",
    "sanity": "Maps of shuffled networks",
    "guard": "The eps of Grad-CAM++",
    "looks": "Differences in where they look",
    "precision": "bfloat16 beside float32",
    "paper": "The paper's tables, and ours",
    "eps": "Which eps did the paper use?",
    "claims": "The claims",
    "small": "The claims of the small-data study",
    "costs": "What it cost",
}


def build(
    root: Path, folder: Path, tables: dict | None = None, missing: list[str] | None = None
) -> Path:
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
    root, folder, runs = found.folder, Path(folder), report.runs_below(found)
    tables = report.tables(found) if tables is None else tables
    report.write_tables(tables, found, folder / "tables")
    problems = [
        line.replace(f"{root}/", "") for line in found.problems
    ]  # no machine path where it can be helped

    def opened(path):
        """(title, question, HTML) of an executed notebook, or None if it cannot be shown."""
        try:
            book = nbformat.read(path, as_version=4)
            return _title(path, book), _question(book), notebook_html(book)
        except (
            *records.DAMAGE,
            OSError,
            nbformat.ValidationError,
        ):  # its process was killed while it was written, or it is no notebook
            problems.append(
                f"{path.relative_to(root)} is damaged: it has no page; its record, if there is one,"
                " counts all the same"
            )

    paths = [
        path
        for path in sorted(root.rglob("*.ipynb"))
        if path.stem in NOTEBOOKS and ".ipynb_checkpoints" not in path.parts
    ]
    name = {path: "-".join(path.relative_to(root).with_suffix(".html").parts) for path in paths}
    lessons = {path: book for path in paths if path.stem != CELL for book in [opened(path)] if book}
    links = [("report", "index.html"), *((of, name[path]) for path, (of, _, _) in lessons.items())]
    targets = {f"{path.stem}.ipynb": name[path] for path in lessons} | {
        f"{CELL}.ipynb": "index.html#runs"
    }
    shown = set()
    for path in paths:
        book = opened(path) if path.stem == CELL else lessons.get(path)
        if book:
            of, _, body = book
            for file, target in targets.items():
                body = body.replace(f'href="{file}"', f'href="{target}"')
            records.atomic_write(folder / name[path], _page(of, links, body).encode())
            shown.add(path)
    title = f"Report: {root.resolve().name}"
    text = "\n".join(
        f"## {HEADINGS[kind]}\n\n"
        + "\n".join(f"{words}:\n\n{report.render(table)}" for words, table in several)
        for kind, several in tables.items()
        if several
    )
    heads, cells = _cells(
        runs, {path.parent.name: name[path] for path in shown if path.stem == CELL}
    )
    body = INDEX.render(
        title=title,
        runs=len(runs),
        problems=problems,
        missing=completeness.missing(found) if missing is None else missing,
        lessons=[(name[path], path.stem, question) for path, (_, question, _) in lessons.items()],
        tables=markdown2html(text),
        heads=heads,
        cells=cells,
    )
    records.atomic_write(folder / "index.html", _page(title, links, body).encode())
    return folder / "index.html"


def notebook_html(notebook) -> str:
    """The body of a notebook's page: Markdown with MathML, code, outputs with their figures."""
    notebook = notebook.copy()
    notebook.cells = [
        (
            nbformat.from_dict({**cell, "source": _with_mathml(cell.source)})
            if cell.cell_type == "markdown"
            else cell
        )
        for cell in notebook.cells
    ]
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    return exporter.from_notebook_node(notebook)[0]


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

    return re.sub(
        r"(?P<code>`[^`]*`)|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$",
        formula,
        text,
        flags=re.DOTALL,
    )


def _page(title, links, body):
    return PAGE.render(
        title=title,
        links=links,
        body=body,
        pygments=HtmlFormatter(style="default").get_style_defs(".highlight"),
    )


def _title(path, notebook):
    """'1. The method' of a notebook's first heading, cut at the colon, or its name."""
    first = notebook.cells[0].source
    heading = re.match(r"# (.+)", first)
    return heading[1].split(":")[0] if heading else path.stem


def _question(notebook):
    found = re.search(r"\*\*Question\.\*\* (.+)", notebook.cells[0].source)
    return found[1] if found else ""


def _cells(runs, pages):
    """Headings and rows (page or None, values) of the table of single runs."""
    varying = [
        name
        for name in ("dataset", "width", "epochs", *report.METHOD[1:])
        if runs[f"config.{name}"].map(str).nunique() > 1
    ]
    rows, shown = (
        [],
        [
            "run_id",
            "status",
            "seconds",
            "metrics.accuracy",
            "metrics.nll",
            "config.mixer",
            "config.seed",
            *(f"config.{name}" for name in varying),
        ],
    )
    for group in report.experiments(runs):
        for _, method in report.methods(group, repeated=True):
            for run in (
                method[[name for name in shown if name in method]]
                .sort_values("config.seed")
                .to_dict("records")
            ):
                numbers = (
                    [f"{run['metrics.accuracy']:.2f}", f"{run['metrics.nll']:.3f}"]
                    if run["status"] == "done"
                    else [run["status"], ""]
                )
                rows.append(
                    (
                        pages.get(run["run_id"]),
                        [
                            report.LABELS[run["config.mixer"]],
                            run["config.seed"],
                            *(run[f"config.{name}"] for name in varying),
                            *numbers,
                            f"{run['seconds']:.0f}",
                            run["run_id"],
                        ],
                    )
                )
    return ["method", "seed", *varying, "accuracy (%)", "NLL (nats)", "seconds", "run"], rows
