"The site: every link holds, nothing is fetched from elsewhere, and a real browser shows it in light and in dark."

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import urlopen

import pytest
from copies import ROOT, copy_project, environment, shell
from hypothesis import given
from hypothesis import strategies as st

from hrm.tools.api import api_markdown, parameter_rows
from hrm.tools.pages import SiteLinks, anchor, page_name, relink, site_link
from hrm.tools.site import chapter_page, executed_chapter, machine_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Reader(HTMLParser):
    "What a page offers to links, and what it asks for."

    FETCHED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched, self.pictures = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, pairs):
        values = dict(pairs)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        self.fetched += [values[key] for name, key in self.FETCHED if tag == name and values.get(key)]
        if tag == "img":
            self.pictures.append(values.get("src"))


@pytest.fixture(scope="module")
def site(tmp_path_factory, executed):
    "The site of a clean copy; outputs that were computed before for the same code are used again."
    project = copy_project(tmp_path_factory.mktemp("site"))
    for folder in (ROOT / "_build" / "executed", executed):
        if folder.is_dir():
            shutil.copytree(
                folder, project / "_build" / "executed", ignore=shutil.ignore_patterns("*.part"), dirs_exist_ok=True
            )
    done = shell(sys.executable, "-m", "hrm.tools.site", cwd=project)
    html = project / "_build" / "html"
    pages = {file.relative_to(html).as_posix(): Reader(file.read_text()) for file in sorted(html.rglob("*.html"))}
    return SimpleNamespace(project=project, html=html, pages=pages, printed=done.stdout)


def test_the_build_has_nothing_to_complain_about(site):
    assert (site.project / "_build" / "warnings.txt").read_text() == ""
    assert f"{len(site.pages) - 1} pages" in site.printed  # the search page is Sphinx's own


def test_every_notebook_has_a_page_in_the_sidebar(site):
    nbs = site.project / "nbs"
    names = [page_name(file.relative_to(nbs)) for file in sorted(nbs.rglob("*.ipynb")) if file.name != "index.ipynb"]
    assert len(set(names)) == len(names)
    front = {link.split("#")[0] for link in site.pages["index.html"].links}
    for name in names:
        assert f"{name}.html" in site.pages and f"{name}.html" in front, name


def test_no_link_anchor_or_picture_is_missing(site):
    broken = []
    for name, page in site.pages.items():
        for target in page.links + page.fetched:
            parts = urlsplit(urljoin(f"/{name}", target))
            if urlsplit(target).scheme:
                continue
            path = unquote(parts.path).lstrip("/") or "index.html"
            fragment = unquote(parts.fragment)
            if not (site.html / path).is_file() or (
                fragment and path in site.pages and fragment not in site.pages[path].ids
            ):
                broken.append(f"{name}: {target}")
    assert not broken


def test_no_page_asks_for_anything_from_elsewhere(site):
    outside = [
        f"{name}: {target}"
        for name, page in site.pages.items()
        for target in page.fetched
        if urlsplit(target).netloc or urlsplit(target).scheme not in ("", "data")
    ]
    for sheet in site.html.rglob("*.css"):
        outside += [
            f"{sheet.name}: {found}"
            for found in re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", sheet.read_text())
        ]
    assert not outside


def test_the_search_index_knows_functions(site):
    index = (site.html / "searchindex.js").read_text()
    for name in ("load_params", "short_type", "executed_chapter"):
        assert name in index, name


def test_api_tables_show_parameters_and_source(site):
    text = (site.html / "tools" / "pages.html").read_text()
    assert f'id="{anchor("tools/pages", "page_name")}"' in text
    assert "path below <code" in text and "Source of page_name" in text
    assert f'href="#{anchor("tools/pages", "relink")}"' in text  # a name in the prose became a link


def test_the_site_can_be_served(site):
    "`--serve` shows what is built, on this machine alone, until it is told to stop."
    line = [sys.executable, "-m", "hrm.tools.site", "--serve", "--port", "0"]
    heard = lambda: signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a test run in the background ignores it, and so would the server
    with subprocess.Popen(
        line,
        cwd=site.project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heard,
    ) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())[0]
            with urlopen(f"{address}/core/config.html", timeout=20) as reply:
                assert "load_params" in reply.read().decode()
        finally:
            server.send_signal(signal.SIGINT)
            try:
                status = server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()  # leaving the block would wait for it for ever
                raise
        assert status == 0


def test_readme_is_what_the_front_page_says(site):
    assert (site.project / "README.md").read_text() == (ROOT / "README.md").read_text(), (
        "run: python -m hrm.tools.site --readme"
    )


def test_readme_can_be_read_in_a_minute():
    "A picture and two commands at once, eight rows, and everything else in guides."
    text = (ROOT / "README.md").read_text()
    words = lambda part: len(part.split())
    assert words(text) <= 700
    assert words(text[: text.index("![")]) <= 60 and words(text[: text.index("```sh")]) <= 150
    what_came = text[text.index("## What came of it") : text.index("## Where to go")]
    assert 2 < sum(line.startswith("| ") for line in what_came.splitlines()) <= 8 + 1, "and the head of the table"
    guides = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "nbs" / "guides").glob("*.ipynb"))
    assert len(guides) >= 10 and [guide for guide in guides if guide not in text] == []


def test_readme_links_lead_to_files():
    for target in re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text()):
        if not urlsplit(target).scheme:
            assert (ROOT / target).exists(), target


def test_no_figure_in_the_readme_is_typed_by_hand():
    "What has a unit of measurement comes from `reports/` through a code cell, never from the prose."
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text())["cells"]
    units = r"\d\s*(?:%|minutes?\b|min\b|seconds?\b|s\b|hours?\b|h\b|TFLOP|FLOP|samples|steps\b|[MG]i?B\b|parameters\b|tokens?\b)"
    for cell in cells:
        if cell["cell_type"] == "markdown":
            assert not re.search(units, "".join(cell["source"])), "".join(cell["source"])


# The machinery on small examples


@given(st.text(alphabet="ab []()`!\n#.", max_size=60))
def test_relink_changes_links_and_nothing_else(text):
    assert relink(text, lambda shown, target, image: f"{'!' * image}[{shown}]({target})") == text


def test_code_is_never_taken_for_a_link():
    text = "`table[key](call)` and\n```\n[a](b)\n```\n"
    assert relink(text, lambda *_: "X") == text


def test_links_to_pictures_carry_them_along(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "a.png").write_bytes(b"")
    links = SiteLinks(tmp_path, {}, set())
    page = SimpleNamespace(source=tmp_path / "nbs" / "index.ipynb", name="index")
    assert site_link(links, page, "curve", "../reports/a.png", True) == "![curve](/reports/a.png)"
    assert links.images == {Path("reports/a.png")}


def test_documented_fields_and_parameters():
    from pydantic import BaseModel

    class Settings(BaseModel):
        "A section."

        rate: float  # learning rate
        steps: int = 3  # how many

    def work(
        a: int,  # [B, S] first | second
        *,
        b: list[str] | None = None,  # a < b
    ) -> bool:  # whether
        "Do it."

    assert parameter_rows(work) == [
        ["`a`", "`int`", "", "[B, S] first | second"],
        ["`b`", "`list[str] | None`", "`None`", "a < b"],
        ["returns", "`bool`", "", "whether"],
    ]
    assert parameter_rows(Settings)[1][:3] == ["`steps`", "`int`", "`3`"]
    text = api_markdown(work, "work")
    assert "work(a, *, b=None)" in text and r"first \| second" in text and r"a \< b" in text


def chapter(folder, cells):
    "A notebook file of (id, tags, source, outputs)."
    folder.parent.mkdir(parents=True, exist_ok=True)
    layout = [{"cell_type": "markdown", "id": "t", "metadata": {}, "source": "# Toy\n\n> For a test"}]
    layout += [
        {
            "cell_type": "code",
            "id": i,
            "metadata": {"tags": tags},
            "source": source,
            "outputs": outputs,
            "execution_count": None,
        }
        for i, tags, source, outputs in cells
    ]
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    folder.write_text(json.dumps({"cells": layout, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return folder


def test_an_executed_chapter_lies_over_its_source(tmp_path):
    source = chapter(
        tmp_path / "nbs/chapters/05_toy.ipynb",
        [("p", ["parameters"], 'profile = "smoke"', []), ("w", [], "work()", [])],
    )
    assert "has not been run" in chapter_page(source, tmp_path).cells[1]["source"]

    stream = [{"output_type": "stream", "name": "stdout", "text": "done"}]
    ran = [
        ("p", ["parameters"], 'profile = "smoke"', []),
        ("i", ["injected-parameters"], '# Parameters\nprofile = "{}"\n', []),
        ("w", [], "work()", stream),
    ]
    for profile in ("smoke", "gpu", "laptop"):
        cells = [(i, tags, text.format(profile), outputs) for i, tags, text, outputs in ran]
        copy = chapter(tmp_path / "reports" / profile / "toy" / "toy.ipynb", cells)
        copy.with_name("timings.json").write_text(json.dumps({"machine": {"cpu": "Acme 1", "cores": 2, "gpus": []}}))
        assert executed_chapter(tmp_path, "toy") == (profile, copy)
        page = chapter_page(source, tmp_path)
        note = page.cells[1]["source"]
        assert f"`{profile}` profile on Acme 1, 2 cores" in note
        assert ("mean nothing" in note) == (profile == "smoke") and "has changed" not in note
        assert page.cells[2]["source"].strip() == f'profile = "{profile}"' and page.cells[3]["outputs"] == stream

    chapter(source, [("p", ["parameters"], 'profile = "smoke"', []), ("w", [], "work(2)", [])])
    assert "has changed" in chapter_page(source, tmp_path).cells[1]["source"]


def test_machines_in_a_few_words():
    assert machine_text({"cpu": "Acme 1", "cores": 2, "gpus": [{"name": "H200"}]}) == "H200"
    assert machine_text(None) == ""


# In a browser


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(site):
    "Where the site is served while the tests run."

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site.html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def visits(site, browser, address):
    "Every page, loaded once: what it asked for, what it complained about, what it shows."
    seen, tab = {}, browser.new_page(viewport={"width": 1280, "height": 900})
    requests, complaints = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    for name in site.pages:
        requests.clear()
        complaints.clear()
        tab.goto(f"{address}/{name}", wait_until="load")
        tab.wait_for_function(
            "window.MathJax === undefined || (window.MathJax.startup && window.MathJax.startup.promise"
            " && window.MathJax.startup.promise.then(() => true))"
        )
        tab.evaluate("for (const picture of document.images) picture.loading = 'eager'")  # those that wait to be seen
        tab.wait_for_function("[...document.images].every(picture => picture.complete)")
        seen[name] = SimpleNamespace(
            requests=list(requests),
            complaints=list(complaints),
            **tab.evaluate("""() => ({
            title: document.querySelector("h1")?.innerText ?? "",
            formulas: document.querySelectorAll(".math").length,
            drawn: document.querySelectorAll("mjx-container svg").length,
            formula_errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
            pictures: [...document.images].map(i => [i.getAttribute("src"), i.complete && i.naturalWidth > 0,
                                                     getComputedStyle(i).backgroundColor]),
            wide: document.documentElement.scrollWidth - document.documentElement.clientWidth})"""),
        )
    tab.close()
    return seen


def test_pages_load_without_complaints(visits):
    assert {name: visit.complaints for name, visit in visits.items() if visit.complaints} == {}
    assert all(visit.title for name, visit in visits.items() if name != "search.html")


def test_no_request_leaves_the_machine(visits, address):
    allowed = (address, "data:", "blob:")
    assert [url for visit in visits.values() for url in visit.requests if not url.startswith(allowed)] == []


def test_mathematics_is_drawn(visits):
    assert sum(visit.formulas for visit in visits.values()) > 0
    for name, visit in visits.items():
        assert visit.drawn >= visit.formulas and visit.formula_errors == 0, name


def test_figures_are_drawn_without_a_card_behind_them(visits, site):
    from PIL import Image

    shown = [(name, *picture) for name, visit in visits.items() for picture in visit.pictures]
    assert shown and all(drawn for _, _, drawn, _ in shown)
    for name, source, _, background in shown:
        assert background == "rgba(0, 0, 0, 0)", name
        if (
            source.endswith(".png") and name != "core/plots.html"
        ):  # that one pastes a figure onto both backgrounds to compare
            with Image.open(site.html / Path(name).parent / source) as picture:
                assert picture.convert("RGBA").getpixel((0, 0))[3] == 0, f"{name}: {source} is not transparent"


def test_nothing_is_wider_than_the_page(visits, browser, address):
    assert [name for name, visit in visits.items() if visit.wide > 0] == []
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    for name in visits:
        tab.goto(f"{address}/{name}")
        assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, name
    tab.close()


def test_the_front_page_solves_a_sudoku(site, browser, address):
    "Below its first sentence, on the site alone; `test_page.py` looks at it closely."
    tab = browser.new_page(viewport={"width": 360, "height": 780})
    tab.goto(address)
    tab.wait_for_selector(".lead ~ #sudoku .told.good", timeout=60_000)
    assert "Solved" in tab.inner_text("#sudoku .told")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    order = """() => [...document.querySelectorAll("article :is(p, img, pre, #sudoku):not(#sudoku *)")].slice(0, 2).map(
        (one) => one.id || one.className)"""
    assert tab.evaluate(order) == ["lead", "sudoku"]
    tab.close()
    assert "sudoku.html" not in (site.project / "README.md").read_text()


def test_a_maze_can_be_drawn(site, browser, address):
    "On a page of its own; where its model has not been made, page and build say so. `test_page.py` looks at it closely."
    there = (site.project / "hrm" / "weights" / "maze").is_dir()
    assert ("hrm/weights/maze is not there" in site.printed) != there and "maze.html" in site.pages["index.html"].links
    tab = browser.new_page(viewport={"width": 360, "height": 780})
    tab.goto(f"{address}/maze.html")
    if there:
        tab.wait_for_function("document.querySelector('#maze .detail').textContent.startsWith('Segment')")
    else:
        assert "has not been made yet: there is no hrm/weights/maze" in tab.inner_text(".note")
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    tab.close()


def test_search_finds_a_function(browser, address):
    tab = browser.new_page()
    tab.goto(address)
    tab.fill("input.sidebar-search", "load_params")
    tab.press("input.sidebar-search", "Enter")
    link = tab.locator("#search-results li a", has_text="load_params").first
    link.wait_for(timeout=20_000)
    link.click()
    tab.wait_for_url(re.compile(r"/core/config\.html"))
    assert tab.locator(f"#{anchor('core/config', 'load_params')}").count() == 1
    tab.close()


COLOURS = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const behind = node => { for (; node; node = node.parentElement) {
        const c = rgb(getComputedStyle(node).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
    const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
    const contrast = node => { const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
        return (a + .05) / (b + .05); };
    const worst = selector => Math.min(...[...document.querySelectorAll(selector)].filter(n => n.innerText).map(contrast));
    return {background: behind(document.body), prose: worst("article p"), headings: worst("h1, h2, h3"), links: worst("article p a"),
            sidebar: worst(".sidebar-tree a"), code: worst("div.highlight pre"), tables: worst("article td"),
            folded: worst("details.hide > summary > p")};
}"""


@pytest.mark.parametrize("page", ["core/config.html", "tools/pages.html"])
def test_light_and_dark_read_well(browser, address, page):
    seen = {}
    for scheme in ("light", "dark"):
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(f"{address}/{page}")
        seen[scheme] = tab.evaluate(COLOURS)
        tab.close()
    assert sum(seen["light"].pop("background")[:3]) > 600 and sum(seen["dark"].pop("background")[:3]) < 150
    for scheme, values in seen.items():
        assert all(value is None or value >= 4.5 for value in values.values()), (scheme, values)


def test_the_switch_changes_the_theme(browser, address):
    tab = browser.new_page(color_scheme="light")
    tab.goto(address)
    themes, backgrounds = [], []
    for _ in range(3):
        tab.locator("button.theme-toggle:visible").first.click()
        themes.append(tab.evaluate("document.body.dataset.theme"))
        backgrounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert sorted(themes) == ["auto", "dark", "light"]
    assert backgrounds[themes.index("dark")] != backgrounds[themes.index("light")]
    tab.close()


def test_pages_are_comfortable(browser, address):
    "Copy buttons on code, a way to the next page and the one before, folded source that opens."
    tab = browser.new_page()
    tab.goto(f"{address}/tools/pages.html")
    assert tab.locator("button.copybtn").count() > 5
    assert tab.locator("a.next-page").count() == 1 and tab.locator("a.prev-page").count() == 1
    summary = tab.locator("details.hide > summary", has_text="Source of page_name").first
    code = tab.locator("details.hide", has_text="Source of page_name").locator("pre").first
    assert not code.is_visible()
    summary.click()
    assert code.is_visible() and "with_name" in code.inner_text()
    tab.close()
