"""The playground: a page on which a reader mixes a batch by hand.

``mixing.js`` is the formula; the other scripts keep, show and change the state of ``page.html``. All
lie in one file, without network: ``python -m rmlib.study.playground notebooks/playground.html``.
"""

import base64
import hashlib
import io
import json
import re
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt

from rmlib.datasets.shapes import CLASSES, SIZE, draw_image
from rmlib.study import figures
from rmlib.study.names import LABELS

# of the built-in test images: five classes on five backgrounds
IMAGES = (38, 5, 34, 62, 67)


def page() -> str:
    """The whole page. Its policy allows the scripts and styles written here, and nothing else."""
    folder = Path(__file__).parent
    text = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.js")}
    template = jinja2.Template((folder / "page.html").read_text(encoding="utf-8"))
    html = template.render(data=json.dumps(_data()), still=_still(), **text)
    for kind in ("script", "style"):
        parts = re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        html = html.replace(f"'hash of {kind}'", " ".join(map(_hash, parts)))
    return html


def _data():
    """Images as bytes in base64 (32 x 32 x 3), and what the figures call the methods."""
    images = []
    for index in IMAGES:
        pixels, _, label = draw_image("test", index)
        code = base64.b64encode(pixels.tobytes()).decode()
        images.append({"name": CLASSES[label], "pixels": code})
    methods = {name: {"label": LABELS[name], "colour": figures.COLOURS[name]} for name in LABELS}
    return {"size": SIZE, "images": images, "methods": methods}


def _still():
    """The picture of a page without scripts: WebP in base64."""
    file = io.BytesIO()
    figure = figures.overview()
    figure.savefig(file, format="webp", dpi=80, pil_kwargs={"quality": 75})
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def _hash(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
