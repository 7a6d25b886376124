"""Rules every notebook keeps; nbval runs them, this file looks at what is committed."""

import base64
import re
import struct

import nbformat
import papermill
import pytest

from rmlib.paths import project_root
from rmlib.study.batch.notebooks import FRESH, source_hash
from rmlib.study.settings import NOTEBOOKS

PATHS = sorted((project_root() / "notebooks").glob("*.ipynb"))
# lessons by hand, with figures of their own
# the lesson of a training is shorter than the default run of `rmlib train`
SHORTER = {"02_training": {"epochs": 4}}
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_table_of_parameters_knows_every_notebook():
    assert {path.stem for path in PATHS} == set(NOTEBOOKS)


@each_notebook
def test_outputs_belong_to_the_source(path):
    notebook = read(path)
    assert notebook.metadata["rmlib"][FRESH] == source_hash(notebook), (
        "outputs are older than the source: run `make notebooks`"
    )
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is not None and not any(
                output.output_type == "error" for output in cell.outputs
            )


@each_notebook
def test_nbval_has_something_to_compare(path):
    checked = tagged(read(path), "nbval-check-output")
    assert len(checked) >= 3 and all(cell.outputs for cell in checked)


@each_notebook
def test_parameters_are_literals_with_help_and_the_defaults_of_the_table(path):
    notebook, model = read(path), NOTEBOOKS[path.stem]
    (cell,) = tagged(notebook, "parameters")
    namespace = {}
    exec(cell.source, {"__builtins__": {}}, namespace)  # literals need no builtins
    defaults = {name: field.default for name, field in model.model_fields.items()}
    expected = defaults | SHORTER.get(path.stem, {})
    assert all(expected[name] == value for name, value in namespace.items())
    if path.stem == "02_training":
        assert len(cell.source.splitlines()) <= 20, "those that a reader changes"
    else:
        assert set(namespace) == set(defaults)
    assert set(papermill.inspect_notebook(str(path))) == set(namespace)
    above = re.findall(r"^# \S.*\n(\w+) = ", cell.source, flags=re.MULTILINE)
    behind = re.findall(r"^(\w+) = .*  # \S", cell.source, flags=re.MULTILINE)
    assert {*above, *behind} == set(namespace), "every parameter has its comment"
    following = notebook.cells[notebook.cells.index(cell) + 1].source
    assert f'params.check("{path.stem}", globals())' in following


@each_notebook
def test_files_are_clean(path):
    text, notebook = path.read_text(), read(path)
    assert notebook.metadata.kernelspec.name == "python3" and path.stat().st_size < 1_000_000
    assert "widget" not in str(notebook.metadata) and "papermill" not in notebook.metadata
    assert not re.search(r"(?:/(?:home|root|Users|tmp|work)/|[A-Z]:\\\\)", text), (
        "a path of a machine"
    )
    assert not [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and re.search(r"^\s*class ", cell.source, flags=re.MULTILINE)
    ]
    stderr = [
        o
        for cell in notebook.cells
        if cell.cell_type == "code"
        for o in cell.outputs
        if o.output_type == "stream" and o.name == "stderr"
    ]
    assert not stderr


@each_notebook
def test_it_is_a_lesson(path):
    first, last = (read(path).cells[i].source for i in (0, -1))
    for word in ("**Question.**", "**Goals.**", "**Before:**", "**Cost:**"):
        assert word in first
    for word in ("## What we saw", "**What this does not show:**", "**Exercises.**", "**Next:**"):
        assert word in last
    words = re.findall(
        r"\b(obviously|simply|just)\b",
        " ".join(c.source for c in read(path).cells if c.cell_type == "markdown"),
    )
    assert (
        set(words) <= {"just"} and len([w for w in words if w == "just"]) <= 4
    )  # the paper's own "just a few lines" is quoted


@each_notebook
def test_figures_have_words_and_twice_the_pixels_and_code_is_narrow(path):
    figures = 0
    for cell in read(path).cells:
        wide = [line for line in cell.source.splitlines() if len(line) > 100]
        assert cell.cell_type != "code" or not wide
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                look, figures = output.metadata["image/png"], figures + 1
                pixels = struct.unpack(">2I", base64.b64decode(output.data["image/png"])[16:24])
                assert abs(pixels[0] - 2 * look["width"]) <= 1
                # as wide as a page of JupyterLab or of the report
                assert look["width"] <= 850 and len(look["alt"]) > 20 and "\n" not in look["alt"]
    assert figures >= 2


def test_refresh_stores_outputs_and_nothing_of_the_machine(tmp_path, monkeypatch):
    from rmlib.study.batch import notebooks

    path = tmp_path / "lesson.ipynb"
    cell = nbformat.v4.new_code_cell("print(6 * 7)", metadata={"tags": ["kept"], "collapsed": True})
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[cell], metadata={"kernelspec": notebooks.KERNEL, "editor": str(tmp_path)}
        ),
        path,
    )
    monkeypatch.setenv("RMLIB_RUNS", "restored")
    notebooks.refresh([path])
    stored = read(path)
    assert stored.cells[0].outputs[0].text == "42\n" and stored.cells[0].execution_count == 1
    assert stored.cells[0].metadata == {"tags": ["kept"]} and stored.metadata["rmlib"][
        FRESH
    ] == source_hash(stored)
    assert str(tmp_path) not in path.read_text()
    stored.cells[0].source = "print(41)"
    assert stored.metadata["rmlib"][FRESH] != source_hash(stored), "an edit is noticed"


@pytest.mark.parametrize("name, dpi", [("mixers.png", 110), ("curves.png", 180)])
def test_the_pictures_of_the_documents_are_made_by_the_code(name, dpi):
    import io

    import matplotlib
    import numpy as np
    from PIL import Image

    matplotlib.use("agg")
    from rmlib.study import figures

    results = project_root() / "results"
    with matplotlib.rc_context():
        figures.use_style()
        if name == "mixers.png":
            figure = figures.overview()
        else:
            figure = figures.reference_curves([results / "quick", results / "cifar10-small"])
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=dpi)
    committed, made = (
        np.asarray(Image.open(file).convert("RGB"), dtype=float)
        for file in (results / name, buffer)
    )
    assert committed.shape == made.shape and np.abs(committed - made).mean() < 2, (
        "run `make readme`"
    )


def test_stored_figures_are_small_and_keep_the_colours_of_the_methods():
    import io

    import matplotlib
    import numpy as np
    from PIL import Image

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from rmlib.study import figures
    from rmlib.study.batch.notebooks import in_few_colours

    figure, axes = plt.subplots(1, 2, dpi=90)
    axes[0].imshow(np.random.default_rng(0).random((60, 60, 3)))  # many colours
    for place, colour in enumerate(figures.COLOURS.values()):
        axes[1].barh(place, 1, color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    stored = in_few_colours(buffer.getvalue())
    assert len(stored) < 0.5 * len(buffer.getvalue())
    colours = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")).reshape(-1, 3).astype(int)
    for wanted in (*figures.COLOURS.values(), "#ffffff"):
        assert (
            np.abs(colours - [int(wanted[i : i + 2], 16) for i in (1, 3, 5)]).max(1).min() <= 8
        ), wanted
