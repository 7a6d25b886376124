"""Make the page: ``python -m rmlib.study.playground notebooks/playground.html``."""

import sys
from pathlib import Path

from rmlib.study.playground import page

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
