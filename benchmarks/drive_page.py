"""Drive the published page in headless Chromium: `python benchmarks/drive_page.py leaderboard/index.html`.

Sorts by every column, filters, opens a run and closes it with the keyboard; prints what each took, how wide
the page is, and whether it logged an error or asked for anything. With `--shots DIR` takes pictures at 390
and 1440 px in both colour schemes. Needs a Chromium on the path, such as Debian's package.
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
        loaded = "document.readyState === 'complete' ? done() : addEventListener('load', done)"
        self.run(f"new Promise((done) => {loaded})")

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
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]


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


# Clicks and waits until what it changed is laid out, then painted: what a person waits for.
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
FILTER = """
(() => {
  const start = performance.now(), box = document.getElementById('filter');
  box.value = %s;
  box.dispatchEvent(new Event('input'));
  document.body.getBoundingClientRect();
  return [performance.now() - start, document.getElementById('status').textContent];
})()
"""
PANEL = "document.querySelector('.panel:not([hidden])')"
LONGEST = """
go('#' + [...document.querySelectorAll('.panel')].sort((a, b) =>
  b.querySelectorAll('tbody tr').length - a.querySelectorAll('tbody tr').length)[0].id)
"""


def time_sorting(page: Page) -> list[tuple[str, float, float, float]]:
    """Click each header of the longest table.

    Returns:
        Header, milliseconds until laid out, until painted, and of CPU in the page's own thread.
    """
    page.call("Performance.enable")
    page.run(LONGEST)
    heads = page.run(f"{PANEL}.querySelectorAll('table.runs th button').length")
    found = []
    for at in range(heads):
        button = f"{PANEL}.querySelectorAll('table.runs th button')[{at}]"
        before = _thread_seconds(page)
        script, painted = page.run(CLICK % button)
        spent = 1000 * (_thread_seconds(page) - before)
        found.append((page.run(f"{button}.textContent"), script, painted, spent))
    return found


def _thread_seconds(page: Page) -> float:
    metrics = page.call("Performance.getMetrics")["metrics"]
    return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")


def drive(page: Page, address: str) -> None:
    """Do what a reader does, and print what it took and what it said."""
    rows = page.run(f"{LONGEST}; {PANEL}.querySelectorAll('table.runs tbody tr').length")
    print(f"{rows} rows in the longest tab; loaded after {page.run('Math.round(performance.now())')} ms")
    times = time_sorting(page)
    for name, script, painted, spent in times:
        print(f"  {name:<18} {script:6.1f} ms laid out, {painted:6.1f} ms painted, {spent:6.1f} ms CPU")
    laid_out, spent = ([time[at] for time in times] for at in (1, 3))
    print(f"  laid out: median {statistics.median(laid_out):.1f} ms, most {max(laid_out):.1f} ms")
    print(f"  CPU:      median {statistics.median(spent):.1f} ms, most {max(spent):.1f} ms")
    took, said = page.run(FILTER % "'adamw'")
    print(f"filter 'adamw': {took:.1f} ms; {said}")
    page.run(f"location.hash = {PANEL}.querySelector('tbody tr:not([hidden]) a').hash")
    page.run("new Promise((done) => setTimeout(done, 200))")
    heads = page.run("[...document.querySelectorAll('#run h3')].map((head) => head.textContent)")
    print(f"run open: {page.run('document.getElementById(`run`).open')}, {', '.join(heads)}")
    page.press("Escape", 27)
    page.run("new Promise((done) => setTimeout(done, 100))")
    print(f"closed by Escape: {page.run('!document.getElementById(`run`).open')}")
    for width in WIDTHS:
        page.resize(width, 900)
        print(f"window of {width} px: page of {page.run('document.documentElement.scrollWidth')} px")
    beyond = [url for url in page.requests() if not url.startswith((address, "about:", "data:"))]
    print(f"complaints: {page.complaints() or 'none'}; requests beyond the page: {beyond or 'none'}")


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
        drive(page, address)
        if options.shots:
            take_pictures(page, address, options.shots)


if __name__ == "__main__":
    main()
