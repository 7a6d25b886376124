"""The HTML site of a study."""

import re
import subprocess
from html.parser import HTMLParser

import nbformat
from browser import BROWSER, needs_browser
from made import make_record, save

from rmlib.study.report import pages


class Links(HTMLParser):
    """Targets of all links, and everything that a page would load from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loaded, self.headings = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "a":
            self.links.append(attributes.get("href", ""))
        if tag in ("script", "link", "iframe") or (
            tag == "img" and not attributes["src"].startswith("data:")
        ):
            self.loaded.append(str(attributes))


def write_notebook(path, text):
    """A notebook with a Markdown cell, and code with two outputs."""
    table = {"text/markdown": "| a | b |\n|---|---|\n| 1 | 2 |"}
    outputs = [
        nbformat.v4.new_output("stream", text="42 <b>\n"),
        nbformat.v4.new_output("display_data", table),
    ]
    code = nbformat.v4.new_code_cell("print(6 * 7)", outputs=outputs)
    cells = [nbformat.v4.new_markdown_cell(text), code]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def test_the_site_is_whole(tmp_path):
    """Every page is linked from the index, every link leads somewhere, nothing is loaded from
    elsewhere, formulas are MathML.
    """
    root = tmp_path / "quick"
    record = make_record(81.25)
    save(root, record)
    lesson = (
        "# 1. The method: a lesson\n\n**Question.** What is $x^2 < 3$?\n\n$$\\sum_{j=1}^{k^2}"
        " \\lambda_j$$\n\n`$HOME` and [next](02_training.ipynb)"
    )
    for path, text in (
        (root / "01_method.ipynb", lesson),
        (root / record.run_id / "02_training.ipynb", "# 2. Training\n\n[back](01_method.ipynb)"),
    ):
        write_notebook(path, text)
    index = pages.build(root, root / "report")
    found = {path.name: Links(path.read_text()) for path in (root / "report").glob("*.html")}
    # tests/study/test_playground.py sees that it loads nothing
    del found["playground.html"]
    assert set(found) == {"index.html", "01_method.html", f"{record.run_id}-02_training.html"}
    for page in found.values():
        assert not page.loaded
        for link in page.links:
            assert (
                link.startswith(("https://", "#"))
                or (root / "report" / link.split("#")[0]).exists()
            ), link
    linked = set(found["index.html"].links)
    assert {"01_method.html", f"{record.run_id}-02_training.html", "tables/tables.md"} <= linked
    assert "playground.html" in linked & set(found["01_method.html"].links)
    text, method = index.read_text(), (root / "report" / "01_method.html").read_text()
    assert "81.25" in text and "not run" not in text and "What is $x^2 &lt; 3$?" in text
    assert (
        method.count("<math") == 2
        and "$$" not in method
        and "$HOME" in method
        and "42 &lt;b&gt;" in method
        and "<td>2</td>" in method
    )
    assert "01_method.html" in found[f"{record.run_id}-02_training.html"].links, (
        "links between notebooks lead to their pages"
    )
    assert (
        pages.build(root, root / "report") == index
        and len(list((root / "report").glob("*.html"))) == 4
    ), "made again, nothing piles up"
    whole = next(root.rglob("02_training.ipynb"))
    whole.write_text(whole.read_text()[:500])  # its process was killed while it was written
    assert (
        "02_training.ipynb is damaged: it has no page"
        in pages.build(root, root / "report").read_text()
    )


def seen(path):
    """The document of a page after a browser has run what it may."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    return subprocess.run([*command, path.as_uri()], capture_output=True, text=True).stdout


@needs_browser
def test_what_a_notebook_brings_along_does_not_run(tmp_path):
    """The same output does run in a page without the policy, so the test can tell."""
    root = tmp_path / "quick"
    save(root, make_record(81.25))
    script = "<img src='data:,' onerror=\"document.body.title = 'run'\">"
    script += "<script>document.body.title = 'run'</script>"
    output = nbformat.v4.new_output("display_data", {"text/html": f"<p>shown</p>{script}"})
    cells = [nbformat.v4.new_markdown_cell("# 1. A"), nbformat.v4.new_code_cell(outputs=[output])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "01_method.ipynb")
    page = pages.build(root, root / "report").with_name("01_method.html")
    dom = seen(page)
    assert "shown" in dom and 'title="run"' not in dom
    policy = re.search(r"<meta http-equiv=[^>]*>\n", page.read_text())[0]
    page.write_text(page.read_text().replace(policy, ""))
    assert 'title="run"' in seen(page)


def test_a_figure_keeps_its_words_and_its_size():
    look = {"alt": "two <curves>", "width": 40, "height": 30}
    output = nbformat.v4.new_output(
        "display_data", {"image/png": "AAAA"}, metadata={"image/png": look}
    )
    cell = nbformat.v4.new_code_cell("show()", outputs=[output])
    text = pages.notebook_html(nbformat.v4.new_notebook(cells=[cell]))
    (picture,) = re.findall(r"<img[^>]*>", text)
    assert 'alt="two &lt;curves&gt;"' in picture and 'width="40"' in " ".join(picture.split())
