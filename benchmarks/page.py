"""The Sudoku of the site's front page in a headless browser: from opening the page to a solved board, and what is loaded.

    python benchmarks/page.py [--site _build/html] [--visits 5] [--out reports/benchmarks/page.json]

The site has to be there (`make docs`), and a Chromium. Each visit starts with an empty cache and ends when the page says
that it has solved its first puzzle; the seconds are those of the quickest, since what disturbs a visit only makes it longer.
"""

import functools
import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from hrm.core.config import root
from hrm.core.device import machine, machine_name
from hrm.core.files import write_atomic

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, dict[str, int]]]:  # address, and what was sent: path -> bytes
    "A folder over HTTP, on this machine alone."
    sent = {}

    class Counting(SimpleHTTPRequestHandler):
        def copyfile(self, source, outputfile):
            content = source.read()
            sent[self.path.partition("?")[0]] = len(content)
            outputfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", sent
        finally:
            server.shutdown()


@contextmanager
def chromium(program: str):
    "A headless browser without a network of its own."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=list(FLAGS))
        yield running
        running.close()


def visit(browser, address: str, sent: dict[str, int]) -> dict:
    "Open the page with an empty cache and wait for the end of its first puzzle."
    context, asked = browser.new_context(viewport={"width": 1280, "height": 900}), []
    context.on("request", lambda request: asked.append(request.url))
    tab = context.new_page()
    sent.clear()
    began = time.perf_counter()
    tab.goto(address, wait_until="commit")
    tab.wait_for_selector("#sudoku .told.good, #sudoku .told.bad", timeout=120_000)
    seconds, told = time.perf_counter() - began, tab.inner_text("#sudoku .told")
    context.close()
    return {
        "seconds": seconds,
        "kilobytes": sum(sent.values()) / 1000,
        "told": told,
        "asked": asked,
        "sent": dict(sent),
    }


def record(visits: list[dict]) -> dict:
    "What is stored. Raises SystemExit where a visit ended without a solved board."
    if unsolved := [one["told"] for one in visits if not one["told"].startswith("Solved")]:
        raise SystemExit(f"page: {unsolved[0]}")
    about = {
        "low": None,
        "high": None,
        "n": len(visits),
        "stage": "benchmarks/page",
        "profile": "laptop",
        "machine": machine_name(),
    }
    seconds, kilobytes = ([one[name] for one in visits] for name in ("seconds", "kilobytes"))
    return {
        "machine": machine(),
        "seconds": seconds,
        "sent": visits[0]["sent"],
        "figures": {
            "page.seconds": about | {"value": min(seconds), "unit": "s"},
            "page.kilobytes": about | {"value": max(kilobytes), "unit": "kB"},
        },
    }


def main(
    site: Annotated[Path, typer.Option(help="the built site")] = Path("_build/html"),
    visits: Annotated[int, typer.Option(min=1, help="how often the page is opened")] = 5,
    out: Annotated[str, typer.Option(help="where the record goes")] = "reports/benchmarks/page.json",
) -> None:
    "Time the front page's Sudoku in a browser."
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise SystemExit(f"page: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    if not (root() / site / "index.html").is_file():
        raise SystemExit(f"page: no site in {site}; `make docs` builds it")
    with served(root() / site) as (address, sent), chromium(program) as browser:
        found = record([visit(browser, address, sent) for _ in range(visits)])
    for name, figure in found["figures"].items():
        print(f"{name:16} {figure['value']:8.2f} {figure['unit']}")
    print(write_atomic(root() / out, json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n"))


if __name__ == "__main__":
    typer.run(main)
