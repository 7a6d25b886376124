"""Small stand-ins for the notebooks: they write records without training, and fail, die or hang
where a test needs it.
"""

import nbformat
import yaml

from rmlib.study.batch import batch as batches

STAND_IN = """
import os, time
from rmlib.study import settings
settings = settings.check("02_training", globals())
"""
RECORD = """
import sys
sys.path.insert(0, {tests!r})
from made import make_record
with open("began.txt", "a") as file:
    print(settings.seed, os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), os.getppid(), file=file)
assert settings.seed != 1 or os.path.exists({mended!r}), "seed 1 does not work"
if settings.seed == 2 and not os.path.exists({mended!r}):
    os.kill(os.getpid(), 9)
if settings.seed == 3:
    try:
        time.sleep(0 if os.path.exists({mended!r}) else 100)
    except KeyboardInterrupt:
        open("interrupted.txt", "w").close()
        raise
if settings.seed == 6 and not os.path.exists({mended!r}):  # deaf to everything but SIGKILL
    import signal
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        with open("beat.txt", "a") as file:
            print("beat", file=file)
        time.sleep(0.1)
if settings.seed == 7 and not os.path.exists({mended!r}):  # no room for a record
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
if settings.seed == 8 and not os.path.exists({mended!r}):  # no room for the notebook
    import resource
    resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE, (100, 100))
if settings.seed == 9 and not os.path.exists({mended!r}):
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    b"x" * 2**33
if settings.seed >= 20:  # takes its time
    print("half of it", flush=True)
    time.sleep(1)
from rmlib.datasets import sources
from rmlib.study.runs import records
checksum = str(sources.arrays(settings.dataset)["checksum"])
if not (settings.folder / records.RECORD).exists():  # as a training does
    record = make_record(80.0 + settings.seed % 20, checksum=checksum, **settings.config)
    with open("recorded.txt", "a") as file:
        print(settings.seed, file=file)
    records.write(record, settings.folder)
assert settings.seed != 5, "out of memory"
"""


def stand_in(root, name, *cells):
    """A notebook whose first cell is the one of parameters."""
    cells = [nbformat.v4.new_code_cell(text) for text in cells]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), root / "notebooks" / f"{name}.ipynb"
    )


def run_batch(batch, log=print, **options):
    """Run a batch with options given by name."""
    return batches.run_batch(batch, batches.Options(**options), log)


def grid(folder, notebooks=None, **block):
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump({"grid": [block]} | ({"notebooks": notebooks} if notebooks else {}))
    )
    return path


def write(tmp_path, text):
    path = tmp_path / "b.yaml"
    path.write_text(text)
    return path
