"""Drive the published page in headless Chromium: `python benchmarks/drive_page.py leaderboard/index.html`.

Sorts, filters, switches the ranked metric, opens and closes a run with the keyboard, and follows a link to a
run; prints what each took and whether the page logged an error or asked for anything. Takes pictures at 390 and
1440 px in both colour schemes with `--shots DIR`. Needs a Chromium on the path, such as Debian's package.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = (390, 1440)


def find_chromium() -> str | None:
    """Return the program, or None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Page:
    """A page in headless Chromium, over the DevTools protocol on two pipes."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._buffer = b""
        self._number = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come in between are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            part = os.read(self._receive, 1 << 20)
            if not part:
                raise RuntimeError("Chromium went away")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def attach(self) -> None:
        """Open a tab that reports errors, log entries and requests."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, address: str) -> None:
        """Go to an address and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """Return what a script gives, once it is settled."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", script))
        return answer["result"].get("value")

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text
            )

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the view and the preferred colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, *, full: bool = False) -> None:
        """Store what the page looks like."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Return console errors, exceptions and log entries since the page was opened."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"]["exception"].get("description", "exception"))
            elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
                found.append(str(params["args"]))
            elif event.get("method") == "Log.entryAdded":
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the page was opened."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]


@contextlib.contextmanager
def chromium(program: str) -> Iterator[Page]:
    """Start a headless Chromium without network and yield a page in it."""
    to_read, send = os.pipe()
    receive, to_write = os.pipe()

    def take_pipes() -> None:
        # Chromium reads from 3 and writes to 4; ours may have these very numbers.
        one, other = os.dup(to_read), os.dup(to_write)
        os.dup2(one, 3)
        os.dup2(other, 4)

    with tempfile.TemporaryDirectory() as profile:
        process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            preexec_fn=take_pipes,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        page = Page(send, receive)
        try:
            page.attach()
            yield page
        finally:
            with contextlib.suppress(RuntimeError, OSError):
                page._session = ""
                page.call("Browser.close")
            process.wait(timeout=30)
            os.close(send)
            os.close(receive)


# Clicks and waits until what it changed is laid out and painted: what a person waits for.
CLICK = """
(async (element) => {
  const start = performance.now();
  element.click();
  document.body.getBoundingClientRect();
  const script = performance.now() - start;
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return [script, performance.now() - start];
})(%s)
"""
PANEL = "document.querySelector('.panel:not([hidden])')"


def time_sorting(page: Page) -> list[tuple[str, float, float]]:
    """Click each header of the longest table: (header, ms until laid out, ms until painted)."""
    page.run(
        "go('#' + [...document.querySelectorAll('.panel')].sort((a, b) => "
        "b.querySelectorAll('tbody tr').length - a.querySelectorAll('tbody tr').length)[0].id)"
    )
    heads = page.run(f"{PANEL}.querySelectorAll('table.runs th button').length")
    found = []
    for at in range(heads):
        button = f"{PANEL}.querySelectorAll('table.runs th button')[{at}]"
        script, painted = page.run(CLICK % button)
        found.append((page.run(f"{button}.textContent"), script, painted))
    return found


def take_pictures(page: Page, address: str, folder: Path) -> None:
    """Store the overview, the tables and a run, at both widths and in both colours."""
    folder.mkdir(parents=True, exist_ok=True)
    tabs = None
    for width in WIDTHS:
        for dark in (False, True):
            page.resize(width, 900, dark=dark)
            page.open(address)
            tabs = tabs or page.run("[...document.querySelectorAll('#tabs a')].map((tab) => tab.hash)")
            name = f"{width}-{'dark' if dark else 'light'}"
            for at, tab in enumerate(tabs[:3]):
                page.run(f"go({json.dumps(tab)})")
                page.picture(folder / f"{name}-tab{at}.png")
            page.run("location.hash = document.querySelector('.panel:not([hidden]) tbody a').hash")
            page.run("new Promise((done) => setTimeout(done, 100))")
            page.picture(folder / f"{name}-run.png")
            for at in (1, 2):
                page.run("document.getElementById('run').scrollTop += 800")
                page.picture(folder / f"{name}-run{at}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--shots", type=Path, help="folder of pictures")
    options = parser.parse_args()
    program = find_chromium()
    if program is None:
        raise SystemExit("there is no Chromium on the path")
    address = options.page.resolve().as_uri()
    with chromium(program) as page:
        page.resize(1440, 900)
        page.open(address)
        if page.complaints():
            raise SystemExit("\n".join(page.complaints()))
        rows = page.run("Math.max(...[...document.querySelectorAll('table.runs')].map((t) => t.tBodies[0].rows.length))")
        print(f"{rows} rows in the longest table; loaded in {page.run('Math.round(performance.now())')} ms")
        times = time_sorting(page)
        for name, script, painted in times:
            print(f"  sort by {name:<18} {script:6.1f} ms laid out, {painted:6.1f} ms painted")
        print(f"  median {statistics.median(t for _, t, _ in times):.1f} ms, most {max(t for _, t, _ in times):.1f} ms laid out")
        filtered = page.run(
            "(() => { const box = document.getElementById('filter'); const start = performance.now(); box.value = 'adamw';"
            "box.dispatchEvent(new Event('input')); document.body.getBoundingClientRect();"
            "return [performance.now() - start, document.getElementById('status').textContent]; })()"
        )
        print(f"  filter 'adamw': {filtered[0]:.1f} ms, {filtered[1]}")
        page.run("location.hash = document.querySelector('.panel:not([hidden]) tbody a').hash")
        page.run("new Promise((done) => setTimeout(done, 200))")
        print(f"  run open: {page.run('document.getElementById(`run`).open')}")
        page.press("Escape", 27)
        page.run("new Promise((done) => setTimeout(done, 100))")
        print(f"  closed by Escape: {page.run('!document.getElementById(`run`).open')}")
        wide = {}
        for width in WIDTHS:
            page.resize(width, 900)
            wide[width] = page.run("document.documentElement.scrollWidth")
        print(f"  width of the page at {WIDTHS}: {tuple(wide.values())}")
        print(f"complaints: {page.complaints() or 'none'}")
        print(f"requests beyond the page: {[one for one in page.requests() if not one.startswith((address, 'about:', 'data:'))] or 'none'}")
        if options.shots:
            take_pictures(page, address, options.shots)


if __name__ == "__main__":
    main()
