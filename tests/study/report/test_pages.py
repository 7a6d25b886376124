"""The HTML pages of a report."""

import re
import subprocess
from html.parser import HTMLParser

import nbformat
import pytest
from browser import BROWSER, needs_browser
from made import make_record, save

from rmlib.study.report import pages

BAD = "<script>document.body.title = 'run'</script>"
HOSTILE = f"x{BAD}{{math}}`x` $x$ [a](b)"
LESSON = (
    "# 1. The method: a lesson\n\n**Question.** What is $x^2 < 3$?\n\n$$\\sum_{j=1}^{k^2}"
    " \\lambda_j$$\n\n$\\left( x$\n\n`$HOME` and [next](02_training.ipynb)"
)


class Links(HTMLParser):
    """Targets of all links, and what a page would load."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded = [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        loaded = attributes.get("href") if tag == "link" else attributes.get("src")
        if loaded and not loaded.startswith("data:"):
            self.loaded.append(loaded)


def notebook(path, text, source="print(6 * 7)", outputs=(), **metadata):
    """A notebook with a Markdown cell, and a code cell with outputs."""
    code = nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)
    cells = [nbformat.v4.new_markdown_cell(text), code]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def display(data, **metadata):
    return nbformat.v4.new_output("display_data", data, metadata=metadata)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a report: runs of two methods whose dataset and machine have hostile names, two
    executed notebooks with all kinds of outputs, and one that was cut off.
    """
    root = tmp_path_factory.mktemp("site") / "quick"
    hardware = {"device": "cpu", "cpu": HOSTILE, "cores": 2}
    for seed, mixer in enumerate(("mixup", "cutmix")):
        record = make_record(81.25 + seed, mixer=mixer, dataset=f"folder:{HOSTILE}")
        save(root, record.model_copy(update={"hardware": hardware}))
    outputs = [
        nbformat.v4.new_output("stream", text="42 <b>\n"),
        display({"text/markdown": "| a | b |\n|---|---|\n| 1 | 2 |"}),
        display({"image/png": "AAAA"}, **{"image/png": {"alt": "two <curves>", "width": 40}}),
        display({"text/html": f"<p>shown</p><img src='data:,' onerror='run()'>{BAD}"}),
    ]
    notebook(root / "01_method.ipynb", LESSON, outputs=outputs)
    secret = root.parent / "secret.txt"
    secret.write_text("a word of the machine")
    included = f"```{{include}} {'../' * 12}{secret}\n```\n\n```{{raw}} html\n:file: {secret}\n```"
    text = f"# 2. Training\n\n[back](01_method.ipynb)\n\n{included}"
    notebook(root / record.run_id / "02_training.ipynb", text)
    (root / "04_cam.ipynb").write_text('{"cells": [')
    pages.build(root, root / "report")
    return root / "report", f"notebooks/run-{record.run_id}.html"


def test_every_page_is_reached_and_every_link_leads_somewhere(site):
    folder, run = site
    reached, left = {}, ["index.html"]
    while left:
        name = left.pop()
        reached[name] = Links(folder / name)
        for link in reached[name].links + reached[name].loaded:
            target = link.split("#")[0].split("?")[0]
            if target and not target.startswith("https://"):
                path = ((folder / name).parent / target).resolve()
                assert path.exists(), (name, link)
                inside = path.relative_to(folder.resolve()).as_posix()
                if inside.endswith(".html") and inside not in [*reached, *left]:
                    left.append(inside)
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.html")}
    assert made == set(reached)
    assert {run, "notebooks/01_method.html", "notebooks/playground.html", "runs.html"} <= made
    assert "tables/tables.md" in reached["index.html"].links
    for page in reached.values():
        assert not [link for link in page.loaded if "//" in link], "no other host"


def test_a_notebook_comes_with_formulas_outputs_and_words_of_its_figures(site):
    folder, run = site
    text = (folder / "notebooks" / "01_method.html").read_text()
    assert "<code>\\left( x</code>" in text, "what is no formula stays as it was written"
    assert text.count("<math") == 2 and "$$" not in text and "$HOME" in text
    assert "42 &lt;b&gt;" in text and re.search(r"<td[^>]*>(<p>)?2(</p>)?</td>", text)
    assert re.search(r'<img alt="two &lt;curves&gt;" width="40" src="data:image/png;', text)
    assert 'href="01_method.html"' in (folder / run).read_text(), "a link between two notebooks"
    index = (folder / "index.html").read_text()
    assert "82.25" in index and "not run" not in index
    assert "04_cam.ipynb is damaged: it has no page" in index


def test_names_are_text_and_no_page_brings_in_a_file_of_the_machine(site):
    folder, run = site
    for path in (folder / "index.html", folder / "tables" / "accuracy.html"):
        text = path.read_text()
        assert BAD not in text and "&lt;script&gt;document.body" in text and "<math" not in text
        # of the caption; the answer shows the name of the folder alone
        assert "{math}x $x$ [a](b)" in re.sub("<[^>]*>", "", text)
    assert "a word of the machine" not in (folder / run).read_text()


def seen(path):
    """The document of a page after a browser has run what it may."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    return subprocess.run([*command, path.as_uri()], capture_output=True, text=True).stdout


@needs_browser
def test_what_a_notebook_brings_along_does_not_run(site):
    """The same output does run in a page without the policy, so the test can tell."""
    page = site[0] / "notebooks" / "01_method.html"
    dom = seen(page)
    assert "shown" in dom and 'title="run"' not in dom
    assert "data-theme" in dom, "the theme's own script runs"
    policy = re.search(r"<meta http-equiv=[^>]*>", page.read_text())[0]
    free = page.with_name("free.html")
    free.write_text(page.read_text().replace(policy, ""))
    try:
        assert 'title="run"' in seen(free)
    finally:
        free.unlink()
