"""The playground: a page on which a reader mixes a batch by hand.

``mixing.js`` is the formula; the other scripts keep, show and change the state of ``page.html``.
All lie in one file, without network; ``make readme`` writes it to notebooks/playground.html.
"""

import base64
import hashlib
import io
import json
import re
from functools import cache
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import torch

from rmlib.data import to_float
from rmlib.datasets.shapes import CLASSES, SIZE, draw_image
from rmlib.mixers import CutMix, Mixup, RegionMixup
from rmlib.study import figures
from rmlib.study.names import LABELS

# of the built-in test images: five classes on five backgrounds
IMAGES = (38, 5, 34, 62, 67)


@cache
def page() -> str:
    """The whole page. Its policy allows the scripts and styles written here, and nothing else."""
    folder = Path(__file__).parent
    text = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.js")}
    template = jinja2.Template((folder / "page.html").read_text(encoding="utf-8"))
    drawn = [draw_image("test", index) for index in IMAGES]
    html = template.render(data=json.dumps(_data(drawn)), still=_still(drawn), **text)
    for kind in ("script", "style"):
        parts = re.findall(f"<{kind}>(.*?)</{kind}>", html, re.DOTALL)
        html = html.replace(f"'hash of {kind}'", " ".join(map(hashed, parts)))
    return html


def _data(drawn):
    """Images as bytes in base64 (32 x 32 x 3), and what the figures call the methods."""
    images = []
    for pixels, _, label in drawn:
        code = base64.b64encode(pixels.tobytes()).decode()
        images.append({"name": CLASSES[label], "pixels": code})
    methods = {name: {"label": LABELS[name], "colour": figures.COLOURS[name]} for name in LABELS}
    return {"size": SIZE, "images": images, "methods": methods}


def _still(drawn):
    """The picture of a page without scripts: WebP in base64."""
    images = to_float(torch.stack([torch.tensor(pixels) for pixels, _, _ in drawn]))
    images = images.permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, _, label in drawn])
    mixers = {"mixup": Mixup(10), "cutmix": CutMix(10), "region_mixup": RegionMixup(10)}
    plans = {name: figures.clear_plan(mixer, images.shape, 0) for name, mixer in mixers.items()}
    figure = figures.mixing_table(images, labels, CLASSES, plans, mixers)
    file = io.BytesIO()
    figure.savefig(file, format="webp", dpi=80, pil_kwargs={"quality": 75})
    plt.close(figure)
    return base64.b64encode(file.getvalue()).decode()


def hashed(text: str) -> str:
    """How a content policy names a script or a style that may be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
