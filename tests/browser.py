"""A headless Chromium, driven over its debugging protocol; tests that need one skip without it."""

import base64
import itertools
import json
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser")


class Browser:
    """A browser with one page. ``errors``: what its console and its scripts complained of;
    ``requests``: every address that it asked for.
    """

    def __init__(self, folder):
        from websocket import create_connection

        command = [BROWSER, *OPTIONS, f"--user-data-dir={folder}", "--remote-debugging-port=0"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*command, "about:blank"], **quiet)
        place = folder / "DevToolsActivePort"
        while not (place.exists() and place.read_text().count("\n")):
            assert self.process.poll() is None, "the browser ended"
            time.sleep(0.02)
        port, path = place.read_text().split()
        address = f"ws://127.0.0.1:{port}{path}"
        self.socket = create_connection(address, suppress_origin=True, timeout=60)
        self.ids, self.session, self.errors, self.requests = itertools.count(), {}, [], []
        self.loads = 0  # pages loaded so far
        target = self("Target.createTarget", url="about:blank")["targetId"]
        session = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        """One command; its result."""
        own = next(self.ids)
        message = {"id": own, "method": method, "params": params, **self.session}
        self.socket.send(json.dumps(message))
        while True:
            answer = self._receive()
            if answer.get("id") == own:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self):
        message = json.loads(self.socket.recv())
        event, params = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        if event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        if event == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(params["args"])
        self.loads += event == "Page.loadEventFired"
        if event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def open(self, address, width=1280, height=900):
        """Load a page in a window of that size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 700}
        self("Emulation.setDeviceMetricsOverride", **size)
        # another fragment alone would load nothing
        for target in ("about:blank", address):
            # the page may be loaded before the command is answered
            loads, begun = self.loads, time.monotonic()
            self("Page.navigate", url=target)
            while self.loads == loads:
                self._receive()
                assert time.monotonic() < begun + 120, f"{target} was not loaded"

    def js(self, expression):
        """The value of an expression on the page."""
        asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """Press and release a key where the focus is."""
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def drag(self, start, way, touch=False):
        """Press at (x, y), move by (x, y) and release: with the mouse, or a finger."""
        end = [a + b for a, b in zip(start, way)]
        if touch:
            for kind, points in (("Start", [start]), ("Move", [end]), ("End", [])):
                places = [{"x": x, "y": y} for x, y in points]
                self("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=places)
            return
        for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
            pressed = {"button": "left", "buttons": 1, "clickCount": 1}
            self("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **pressed)

    def screenshot(self, path):
        """Save the whole page as PNG."""
        shot = self("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(shot))

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for the tests of a file."""
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
