"""A headless Chromium, driven through chromedriver's own protocol (W3C WebDriver) without another package."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

__all__ = ["Browser", "browser", "is_installed"]

_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def is_installed() -> bool:
    return bool(shutil.which("chromedriver")) and bool(shutil.which("chromium"))


class Browser:
    """One session; a page is opened with :meth:`open` and asked with :meth:`script`."""

    def __init__(self, address: str, profile: str) -> None:
        options = {"binary": shutil.which("chromium"), "args": [*_ARGUMENTS, f"--user-data-dir={profile}"]}
        capabilities = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        self._address = address
        self._address += f"/session/{self._post('/session', capabilities=capabilities)['sessionId']}"

    def open(self, page: Path, width: int, scheme: str = "light", height: int = 900) -> None:
        """Show a file on a screen of so many pixels, light or dark."""
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._devtools("Emulation.setEmulatedMedia", features=[feature])
        self._post("/url", url=page.as_uri())

    def script(self, text: str) -> Any:
        """What the body of a function returns on the page."""
        return self._post("/execute/sync", script=text, args=[])

    def complaints(self) -> list[str]:
        """What the page's console holds."""
        return [entry["message"] for entry in self._post("/se/log", type="browser")]

    def screenshot(self, target: Path, whole: bool = True) -> None:
        """The page as a PNG, below what fits on the screen too where it is to be ``whole``."""
        taken = self._devtools("Page.captureScreenshot", captureBeyondViewport=whole, **self._clip(whole))
        target.write_bytes(base64.b64decode(taken["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        width, height = self.script(
            "const e = document.documentElement; return [e.clientWidth, e.scrollHeight]"
        )
        return {"clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}

    def close(self) -> None:
        self._call(Request(self._address, method="DELETE"))

    def _devtools(self, command: str, **params: Any) -> Any:
        return self._post("/goog/cdp/execute", cmd=command, params=params)

    def _post(self, path: str, **body: Any) -> Any:
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._call(Request(self._address + path, data, headers))

    def _call(self, request: Request) -> Any:
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def browser() -> Iterator[Browser]:
    """A session with a profile of its own; everything that was started ends with it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
        try:
            _wait(f"http://127.0.0.1:{port}/status")
            session = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield session
            finally:
                session.close()
        finally:
            driver.terminate()
            driver.wait()


def _wait(address: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urlopen(address, timeout=5).close()
        except (URLError, ConnectionError):
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
        else:
            return
