"""A lesson in JupyterLab, opened and run as a reader would."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest
from browser import browser, needs_browser  # noqa: F401

from rmlib.paths import project_root

OPTIONS = ("--no-browser", "--allow-root", "--ServerApp.port=0", "--IdentityProvider.token=")
OPTIONS += ("--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None")
# opens the notebook, runs all its cells, and keeps what came of it in `told`
RUN = """
(async () => {
  const app = window.jupyterapp
  await app.restored
  const opened = await app.commands.execute('docmanager:open', {path: 'lesson.ipynb'})
  await opened.context.ready
  await opened.sessionContext.ready
  app.shell.activateById(opened.id)
  await app.commands.execute('notebook:run-all-cells')
  window.told = opened.content.model.toJSON().cells
})().catch(error => { window.told = String(error) })
"""


@pytest.fixture
def lab(tmp_path):
    """The address of a server whose folder holds a copy of a lesson without outputs."""
    book = nbformat.read(project_root() / "notebooks" / "01_method.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace("draws = 2000", "draws = 100")
    nbformat.write(book, tmp_path / "lesson.ipynb")
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--ServerApp.root_dir={tmp_path}"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(command, env=os.environ | folders, stdout=log, stderr=log)
    place = tmp_path / "JUPYTER_RUNTIME_DIR" / f"jpserver-{server.pid}.json"
    while not (place.exists() and place.read_text().endswith("}")):
        assert server.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    yield json.loads(place.read_text())["url"]
    server.terminate()
    server.wait()


@needs_browser
def test_a_lesson_runs_whole(lab, browser):  # noqa: F811
    browser.open(f"{lab}lab?reset")
    while not browser.js("!!window.jupyterapp"):
        time.sleep(0.1)
    browser.js(f"void {RUN.strip()}")
    while not browser.js("!!window.told"):
        time.sleep(0.2)
    cells = browser.js("window.told")
    assert isinstance(cells, list), cells
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert "error" not in kinds and kinds.count("display_data") >= 5
    assert not browser.errors
