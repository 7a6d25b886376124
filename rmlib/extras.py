"""What an extra of the package installs, and the line that says that it is missing."""

import importlib.util

from rmlib import UserError

# of the extra "study": what tables and figures, pages, and runs need
_TABLES = ("matplotlib", "pandas", "scipy", "seaborn", "statsmodels")
_PAGES = ("furo", "jinja2", "latex2mathml", "myst_nb", "sphinx")
_RUNS = ("filelock", "ipykernel", "nbformat", "papermill", "psutil", "safetensors")
# what an extra of pyproject.toml installs, as the names that are imported
EXTRAS = {
    "datasets": ("PIL", "joblib", "pooch", "torchvision", "tqdm"),
    "robustness": ("PIL", "matplotlib", "scipy", "torchattacks"),
    "maps": ("pytorch_grad_cam", "scipy", "torchvision"),
    "study": (*_TABLES, *_PAGES, *_RUNS, "typing_extensions", "yaml"),
    "ray": ("ray",),
}


class MissingExtra(UserError, ImportError):
    """What an extra installs is not there; ``except ImportError`` catches it, too."""


def needs(*extras: str) -> None:
    """Refuse what wants modules that only an extra installs, before anything starts.

    Raises:
        MissingExtra: some of them are not installed.
    """
    for extra in extras:
        missing = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
        if missing:
            remedy = f"pip install '.[{extra}]' in the folder of the project, or its WHEEL[{extra}]"
            raise MissingExtra(f"not installed: {', '.join(missing)}; {remedy}")
