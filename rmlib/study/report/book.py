"""The book: a folder of Markdown and executed notebooks as HTML, by Sphinx, MyST-NB and Furo.

Nothing is loaded from another host. Formulas are MathML, search works without a server, and
scripts run only where they are the theme's.
"""

import html
import io
import re
import shutil
import tempfile
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from rmlib.study.playground import hashed
from rmlib.study.runs import records

CONF = {
    "extensions": ["myst_nb", __name__],
    "html_math_renderer": "mathml",
    "html_theme": "furo",
    "html_css_files": ["book.css"],
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_use_index": False,
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_render_markdown_format": "myst",
    "smartquotes": False,
    # where a page points at a file that the book leaves out, its words stay
    "suppress_warnings": ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type"],
}
# of the theme's scripts those alone that stand in files of the book or have one of these hashes
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; img-src 'self' data:;"
    " style-src 'self' 'unsafe-inline'; font-src 'self'; script-src 'self' {hashes}"
)


def build(sources: Path, folder: Path, title: str) -> list[str]:
    """Make the pages of a folder of sources, whose first is index.md; returns Sphinx's warnings."""
    said = io.StringIO()
    # no page may bring in a file of the machine
    (sources / "docutils.conf").write_text("[general]\nfile_insertion_enabled: false\n")
    shutil.copy(Path(__file__).with_name("book.css"), sources)
    more = {"project": title, "html_title": title, "html_static_path": [str(sources / "book.css")]}
    with (
        tempfile.TemporaryDirectory() as parsed,
        patch_docutils(sources),
        docutils_namespace(),
    ):
        made = Sphinx(sources, None, folder, parsed, "html", CONF | more, None, said)
        made.build()
    _guard(folder, [f"{name}.html" for name in sorted(made.env.found_docs)])
    return said.getvalue().splitlines()


def _guard(folder, names):
    """Put the policy into the pages. The search page holds the theme's own scripts and nothing of
    the sources, so what stands there may run elsewhere.
    """
    own = re.findall(r"<script>(.*?)</script>", (folder / "search.html").read_text(), re.DOTALL)
    policy = POLICY.format(hashes=" ".join(map(hashed, own)))
    meta = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    for name in [*names, "search.html"]:
        text = (folder / name).read_text(encoding="utf-8")
        start = '<meta charset="utf-8">'
        records.atomic_write(folder / name, text.replace(start, start + meta, 1).encode())


def setup(app):
    """Formulas as MathML, which browsers show without a script."""

    def inline(writer, node):
        writer.body.append(_mathml(node.astext(), "inline"))
        raise nodes.SkipNode

    def block(writer, node):
        writer.body.append(f'<div class="math">{_mathml(node.astext(), "block")}</div>\n')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}


def _mathml(formula, display):
    try:
        return convert(formula, display=display)
    except Exception:  # of many kinds: no formula may cost the book
        return f"<code>{html.escape(formula)}</code>"
