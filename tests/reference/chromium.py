"""Headless Chromium over its debugging pipe: no driver, no port, no Python package. For tests of the audit's page."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# fmt: off
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
]
# fmt: on

# The browser reads commands from descriptor 3 and answers on 4; messages end with a zero byte.
SHIM = """import fcntl, os, sys
for fd, wanted in [(fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10), k) for k, fd in enumerate(sys.argv[1:3], 3)]:
    os.dup2(fd, wanted)
os.execv(sys.argv[3], sys.argv[3:])"""


def started():
    """A browser; the test is skipped where there is none, or it does not start."""
    path = find()
    if path is None:
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    try:
        return Chromium(path)
    except (AssertionError, OSError) as error:
        pytest.skip(f"{path} does not start: {error}")


def find():
    """The browser's path, or None."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Chromium:
    """One browser, one tab. `events` are what the page did: console messages, exceptions, requests."""

    def __init__(self, path):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read, self.to_browser = os.pipe()
        self.from_browser, write = os.pipe()
        command = [path, *FLAGS, f"--user-data-dir={self.folder.name}", "about:blank"]
        shim = [sys.executable, "-c", SHIM, str(read), str(write), *command]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(shim, pass_fds=(read, write), **quiet)
        os.close(read)
        os.close(write)
        self.events, self.buffer, self.number, self.session = [], b"", 0, None
        tab = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=tab["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def read(self, seconds=60):
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.from_browser], [], [], max(0, deadline - time.monotonic()))
            chunk = os.read(self.from_browser, 1 << 20) if ready else b""
            assert chunk, f"the browser said nothing for {seconds} seconds or is gone"
            self.buffer += chunk
        text, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def open(self, url, width=1280, height=900, dark=False):
        self.events.clear()
        mobile = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=url)
        deadline = time.monotonic() + 30
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            assert time.monotonic() < deadline, f"{url} did not load"
            time.sleep(0.02)

    def run(self, expression):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, code=None):
        text = {"Enter": "\r", " ": " "}.get(key)
        number = {"Enter": 13, " ": 32, "Escape": 27, "Tab": 9}[key]
        names = dict(key=key, code=code or key, windowsVirtualKeyCode=number, **({"text": text} if text else {}))
        self.send("Input.dispatchKeyEvent", type="keyDown", **names)
        self.send("Input.dispatchKeyEvent", type="keyUp", **names)

    def click(self, selector):
        box = self.run(
            f"(() => {{ const n = document.querySelector({json.dumps(selector)}); n.scrollIntoView({{block: 'center'}});"
            " const b = n.getBoundingClientRect(); return [b.left + Math.min(b.width / 2, 40), b.top + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, whole=False):
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def complaints(self):
        """Console errors and warnings, exceptions, and addresses asked for other than the file itself."""
        self.run("0")  # what was said so far has arrived
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"].get("exception", params["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(params["args"])
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            elif event["method"] == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [] if url.startswith(("file:", "about:", "data:,")) else [url]
        return found

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self.send("Browser.close")
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.to_browser)
        os.close(self.from_browser)
        self.folder.cleanup()
