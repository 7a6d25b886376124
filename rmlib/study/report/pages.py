"""The pages of a report: its answer, tables, runs and executed notebooks. As a book it also has
what the project offers to readers, teachers and practitioners.
"""

import html
import re
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd

from rmlib import paths
from rmlib.study import figures, playground
from rmlib.study.names import METHOD
from rmlib.study.report import answer, book, classes, completeness, groups, report
from rmlib.study.runs import collection, records
from rmlib.study.settings import CELL, NOTEBOOKS

CIRCLES = (
    "A circle is a run, the bar a method's mean with its 95 % interval over seeds (Student's t)."
    " The best method was chosen by the same accuracies, which flatters its lead. p is corrected by"
    " Holm for the comparisons of the table of differences."
)
CLEAN_WEIGHT = (
    "**clean_weight** is the weight of the loss of the clean batch beside that of the mixed one: 1"
    " as the paper trains, 0 for the mixed batch alone. Without mixing, 0 is plain training, and 1"
    " the same batch twice, a control for the doubled loss."
)
TABLES = (
    'The same tables as Markdown and CSV: <a href="tables/tables.md">tables/</a>. Where a number'
    " comes from: `rmlib explain`."
)
PAPER = (
    "The paper: Saha & Garain, [Region Mixup](https://arxiv.org/abs/2409.15028), ICLR 2024 Tiny"
    " Papers. Its numbers are typed from it."
)
DAMAGED = (
    "These files are damaged or do not belong where they lie. Nothing on these pages comes from"
    " them."
)
VERBS = ("show", "hide")
NOTHING = "Nothing: what was planned, or what other runs of an experiment have, is there."
# files of the project that a book has, by their headings
PROJECT = {
    "Lessons": [f"notebooks/{name}.ipynb" for name in NOTEBOOKS],
    "Exercises": ["notebooks/exercises/*.ipynb"],
    "Teaching": ["notebooks/*.md"],
    "Reference": [
        "README.md",
        "rmlib/**/README.md",
        "notebooks/batches/README.md",
        "results/*.md",
        "results/*/README.md",
    ],
    "Pictures": ["results/*.png", "results/*/*.png"],
}
BEGIN = (
    "Begin with [lesson 1](notebooks/01_method.ipynb), the [playground](notebooks/playground.md),"
    " or [the mixer in your own loop](rmlib/README.md#use-it-in-your-loop). Teachers find plans and"
    " a work sheet in the [teaching guide](notebooks/teaching.md)."
)


def build(root, folder: Path, tables=None, missing=None, whole: bool = False) -> Path:
    """Write the pages of everything below ``root`` (a folder, or a
    :class:`rmlib.study.runs.collection.Collection` of it) into ``folder``; returns the index page.
    Beside them lies tables/ (see :func:`rmlib.study.report.report.write_tables`).

    Args:
        tables, missing: of :func:`rmlib.study.report.report.tables` and
            :func:`rmlib.study.report.completeness.missing`, if they were made already.
        whole: a book, with the lessons, exercises, guide and cards of the project.

    Raises:
        UserError: there is no record below root, or the folder cannot be written.
    """
    found = collection.gather(root)
    tables = report.tables(found) if tables is None else tables
    missing = completeness.missing(found) if missing is None else missing
    report.write_tables(tables, found, folder / "tables")
    title = "Region Mixup, studied" if whole else f"Report: {found.folder.resolve().name}"
    with tempfile.TemporaryDirectory() as made:
        write_sources(Path(made), found, title, tables, missing, whole)
        book.build(Path(made), folder, title)
    back = '<p><a href="../index.html">Back to the book</a></p><h1>'
    page = playground.page().replace("<h1>", back, 1)
    records.atomic_write(folder / "notebooks" / "playground.html", page.encode())
    return folder / "index.html"


def write_sources(sources: Path, found, title: str, tables, missing, whole: bool) -> None:
    """Write what the pages are made from into a folder, with index.md in front.

    Files lie there as in the project, so that the links between them hold.
    """
    # no machine path where it can be helped
    problems = [line.replace(f"{found.folder}/", "") for line in found.problems]
    experiments = groups.experiments(groups.runs_below(found))
    parts = _project(sources, problems) if whole else {}
    cells = _executed(sources, found.folder, problems)
    # the playground itself takes the place of this page
    _write(sources / "notebooks" / "playground.md", "# Playground")
    lessons = [f"notebooks/{name}.ipynb" for name in NOTEBOOKS]
    lessons = [name for name in lessons if (sources / name).exists()]
    parts["Lessons"] = [*lessons, "notebooks/playground.md"]
    parts["Results"] = [f"tables/{kind}.md" for kind in report.HEADINGS if tables[kind]]
    for name in parts["Results"]:
        kind = Path(name).stem
        more = [PAPER] if kind in ("paper", "claims") else []
        if kind == "confusions":
            more = _confusions(sources / "tables", found, experiments)
        _write(sources / name, f"# {report.HEADINGS[kind]}", *map(_table, tables[kind]), *more)
    _write(sources / "runs.md", "# Runs", *_runs(experiments, cells))
    parts["Results"].append("runs.md")

    body = [f"# {_literal(title)}"]
    if (sources / "README.md").exists():
        # from its title to its commands: what the method is, with the picture
        words = (sources / "README.md").read_text(encoding="utf-8").partition("```")[0]
        body += [words.partition("\n")[2].strip(), BEGIN, "## What the runs say so far"]
    body += [
        *_answer(sources, found, experiments),
        *map(_table, tables["accuracy"]),
        CLEAN_WEIGHT,
        TABLES,
    ]
    body += ["## Left out", DAMAGED, _bullets(problems)] if problems else []
    body += ["## What is missing", _bullets(missing) if missing else NOTHING]
    order = ("Lessons", "Exercises", "Teaching", "Results", "Reference")
    body += [_contents(parts[each], f":caption: {each}") for each in order if each in parts]
    _write(sources / "index.md", *body)


def _write(path, *paragraphs):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


def _contents(names, *options):
    """A table of contents that stands in the sidebar alone."""
    return "\n".join(["```{toctree}", ":hidden:", *options, "", *names, "```"])


def _literal(text):
    """Text in which nothing is Markdown."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", str(text))


def _bullets(lines):
    return "\n".join(f"- {_literal(line)}" for line in lines)


def _table(table):
    """A table under its caption; what a record or a folder is called is text, never markup."""
    text = f"{table.caption}:\n\n{table.markdown()}"
    return re.sub(r"[&<>${*_[\]]", lambda found: f"&#{ord(found[0])};", text)


def _answer(sources, found, experiments):
    """What the index begins with: the answer in sentences, and its figure."""
    first, *more = map(_literal, [*answer.answers(found), *answer.networks(found), ""])
    told = [f"**{first}**", *more] if first else []
    panels = [(groups.title(group), answer.methods(group)) for group in experiments]
    panels = [(title, methods) for title, methods in panels if len(methods) > 1]
    if panels:
        _save(figures.methods(panels), sources / "accuracy.svg")
        told += ["![accuracy of every run, by method](accuracy.svg)", CIRCLES]
    return told


def _confusions(sources, found, experiments):
    """For each experiment whose records count classes: what its best method takes for what."""
    images: list[str] = []
    for group in experiments:
        for method, runs in classes.counted(found, group)[:1]:
            title = f"{groups.title(group)}; {method}, n = {len(runs)}, summed"
            name = f"confusions-{len(images)}.svg"
            _save(figures.confusion(*classes.matrix(list(runs.values())), title), sources / name)
            images.append(f"![confusions of the classes, {_literal(title)}]({name})")
    return images


def _save(figure, path):
    figure.savefig(path, format="svg", metadata={"Date": None})
    plt.close(figure)


def _runs(experiments, cells):
    """The table of single runs, and the list of their notebooks. ``cells``: see _executed."""
    runs = pd.concat(experiments)
    names = ("dataset", "width", "epochs", *METHOD[1:])
    varying = [name for name in names if runs[f"config.{name}"].map(str).nunique() > 1]
    heads = ["method", "seed", *varying, "accuracy (%)", "NLL (nats)", "seconds", "run"]
    rows, pages = [heads, ["---"] * len(heads)], []
    for group in experiments:
        for columns, method in groups.methods(group, repeated=True):
            for run in method.sort_values("config.seed").to_dict("records"):
                scores = [run["status"], ""]
                if run["status"] == "done":
                    scores = [f"{run['metrics.accuracy']:.2f}", f"{run['metrics.nll']:.3f}"]
                first, *more = [
                    columns["method"],
                    *(run[f"config.{x}"] for x in ("seed", *varying)),
                ]
                row = [first, *more, *scores, f"{run['seconds']:.0f}", run["run_id"]]
                row = list(map(_literal, row))
                if page := cells.get(run["run_id"]):
                    pages.append(f"{first}, seed {run['config.seed']} <{page}>")
                    row[0] = f"[{row[0]}]({page}.ipynb)"
                rows.append(row)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return ["Each is notebook 02_training with its own parameters.", table, _contents(pages)]


def _project(sources, problems):
    """Copy what a book has of the project; its files by their headings."""
    root, parts = paths.project_root(), {}
    for heading, patterns in PROJECT.items():
        files = [path for pattern in patterns for path in sorted(root.glob(pattern))]
        names = [path.relative_to(root).as_posix() for path in files]
        parts[heading] = [name for name in names if _copied(root, name, sources / name, problems)]
    return parts


def _executed(sources, root, problems):
    """Copy every executed notebook below a folder; returns the pages of single runs by run id."""
    cells = {}
    for path in paths.below(root, "*.ipynb"):
        if path.stem in NOTEBOOKS:
            own = path.stem == CELL
            page = f"notebooks/run-{path.parent.name}" if own else f"notebooks/{path.stem}"
            inside = path.relative_to(root)
            if _copied(root, inside, sources / f"{page}.ipynb", problems) and own:
                cells[path.parent.name] = page
    return cells


def _copied(root, inside, target, problems):
    """Copy a file, and say whether it can be shown; else it gets a line in ``problems``."""
    try:
        _copy(root / inside, target)
    except (*records.DAMAGE, OSError, nbformat.ValidationError):
        # its process was killed while it was written, or it is no notebook
        problems.append(
            f"{inside} is damaged: it has no page; its record, if any, counts all the same"
        )
        return False
    return True


def _copy(path, target):
    """Copy a file; in a notebook solutions are folded, and figures keep their words and size."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        shutil.copy(path, target)
        return
    # a link to a page leads through its source
    text = path.read_text(encoding="utf-8").replace("](playground.html", "](playground.md")
    if path.suffix == ".md":
        target.write_text(text, encoding="utf-8")
        return
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells = [c for c in notebook.cells if "source" not in c.metadata.get("tags", [])]
    for cell in notebook.cells:
        _fold(cell)
        for output in cell.get("outputs", ()):
            look = output.get("metadata", {}).get("image/png", {})
            if "alt" in look:
                known = [key for key in ("alt", "width") if key in look]
                named = [f'{key}="{html.escape(str(look[key]))}"' for key in known]
                source = f"data:image/png;base64,{output.data.pop('image/png')}"
                output.data["text/html"] = f'<img {" ".join(named)} src="{source}">'
    nbformat.write(notebook, target)


def _fold(cell):
    """Fold away what an exercise asks for: the solution, and what its check says of it."""
    for part in {"solution", "check"}.intersection(cell.metadata.get("tags", [])):
        if cell.cell_type == "code":
            cell.metadata["tags"] += ["hide-cell"]
            prompts = {f"code_prompt_{verb}": f"{verb.title()} the {part}" for verb in VERBS}
            cell.metadata["mystnb"] = prompts
        else:
            head = f"<details><summary>Show the {part}</summary>"
            cell.source = f"{head}\n\n{cell.source}\n\n</details>"
