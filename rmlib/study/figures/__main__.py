"""The pictures of the documents: ``python -m rmlib.study.figures results`` writes them there."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt

from rmlib.study import figures
from rmlib.study.batch.notebooks import save_figure

if __name__ == "__main__":
    figures.use_style()
    folder = Path(sys.argv[1])
    figures.overview().savefig(folder / "mixers.png", dpi=110, metadata={"Software": None})
    plt.rcParams["figure.dpi"] = 180
    curves = figures.reference_curves([folder / "quick", folder / "cifar10-small"])
    save_figure(curves, folder / "curves.png")
