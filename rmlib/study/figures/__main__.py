"""The picture of the README: ``python -m rmlib.study.figures results/mixers.png``."""

import sys

from rmlib.study.figures.method import overview
from rmlib.study.figures.style import use_style

if __name__ == "__main__":
    use_style()
    overview().savefig(sys.argv[1], dpi=110, metadata={"Software": None})
