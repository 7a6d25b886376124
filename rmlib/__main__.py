"""``python -m rmlib``: the command line."""

from rmlib.study.cli import console

if __name__ == "__main__":
    console()
