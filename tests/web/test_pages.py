"""The pages in a real Chromium: they draw themselves, ask for nothing, and answer to pointer and keys.

Needs Chromium of the system (`apt-get install chromium`) or of CHROMIUM=PATH; no browser is downloaded.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from selfpatch.commands.report.evaluation_report import comparison_page, evaluation_page
from selfpatch.commands.report.run_report import run_page
from selfpatch.commands.report.study_report import study_page
from selfpatch.commands.report.watch import Server, Source
from selfpatch.evaluation.comparison import compare
from selfpatch.pretraining.run_folder import RunFolder
from selfpatch.visualization.report.page import write_page
from tests.visualization.made_pages import EVIL, made_result, made_run, made_study

try:
    from playwright import sync_api as playwright
except ImportError:
    playwright = None

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"),
    pytest.mark.skipif(playwright is None, reason="playwright is not installed"),
]

KINDS = ("run", "evaluation", "comparison", "study", "evil")
PHONE, DESK = 400, 1280


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> dict[str, Path]:
    """One file of each kind, by its name; "evil" is a run whose names attack it."""
    folder = tmp_path_factory.mktemp("pages")
    results = [(name, made_result(name, score)) for name, score in (("a.pth", 0.41), ("b.pth", 0.52))]
    many = tuple(f"class {i}" for i in range(40))
    made = {
        "run": run_page(RunFolder(made_run(folder / "run")), state="finished"),
        "evaluation": evaluation_page(folder / "run", made_result("a.pth", 0.41, classes=many)),
        "comparison": comparison_page(compare([(Path(name), result) for name, result in results]), results),
        "study": study_page(folder / "study", made_study(folder / "study")),
        "evil": run_page(RunFolder(made_run(folder / "evil", name=EVIL)), state=EVIL)._replace(title=EVIL, badge=EVIL),
    }
    files = {name: folder / name / "report.html" for name in made}
    for name, page in made.items():
        write_page(page, files[name])
    return files


@pytest.fixture(scope="session")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser, pages):
    """Opens a file; at the end nothing may have been asked for but the file, nor any complaint have been made."""
    opened, trouble, asked = [], [], []

    def call(kind: str, *, scheme: str = "light", address: str | None = None):
        context = browser.new_context(viewport={"width": DESK, "height": 900}, color_scheme=scheme)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address or pages[kind].as_uri())
        page.wait_for_selector("main section")
        return page

    call.asked = asked
    yield call
    for context in opened:
        context.close()
    assert trouble == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "http://127.0.0.1:"))] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_page_at_every_width_and_scheme(kind, open_page, pages):
    page = open_page(kind)
    for details in page.query_selector_all("details > summary"):
        details.click()
    for width in (DESK, PHONE):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(150)  # charts are drawn once their width is known
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (sum(paper) < 150) == (scheme == "dark")
    assert page.locator("h1").count() == 1 and page.locator("h2").count() >= 2
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plot svg')].map((svg) => [svg.querySelectorAll('path.line').length, svg.clientWidth])"
    )
    assert all(lines > 0 and 150 < width < PHONE for lines, width in drawn) and (
        drawn or kind not in ("run", "study", "evil")
    )
    assert [url for url in open_page.asked if not url.startswith("data:")] == [pages[kind].as_uri()]


def test_names_are_shown_as_they_are(open_page):
    page = open_page("evil")
    assert "</script><img src=x onerror=alert(1)>'\"&<!--\\u2028\\x1b[2J\\u202e" in page.locator("h1").inner_text()
    assert page.locator("h1 img, .subtitle img, td img").count() == 0
    assert "<img src=x" in page.locator(".maps figcaption").first.inner_text()


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_than_eyes_need(kind, open_page):
    """Alternative texts, labels, one order of headings, and contrast enough of text on its card."""
    page = open_page(kind)
    assert page.evaluate("[...document.images].every((image) => image.alt.length > 0)")
    unnamed = """[...document.querySelectorAll('button, input, canvas, svg[role=img], [role=region]')].filter((e) =>
        !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length || e.closest('[aria-hidden]')))
        .map((e) => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(unnamed) == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme, open_page):
    page = open_page("run", scheme=scheme)
    ratios = page.evaluate("""() => {
        const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (e) => { for (; e; e = e.parentElement) {
            const found = getComputedStyle(e).backgroundColor;
            if (!found.endsWith(', 0)')) return found;
        } return 'rgb(255, 255, 255)'; };
        return [...document.querySelectorAll('p, dt, dd span, th button, td, nav a, h1, h2, h3, button .value, output')].filter((e) => e.textContent.trim())
            .map((e) => { const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
                return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.textContent.slice(0, 30)]; });
    }""")
    assert len(ratios) > 40
    assert [text for ratio, text in ratios if ratio < 4.5] == []


def test_hover_shows_values_and_dragging_zooms(open_page):
    page = open_page("run")
    chart = page.locator("figure.chart").first
    plot = chart.locator(".plot svg")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 12, box["y"] + 60)
    tip = chart.locator(".tip")
    words = tip.inner_text().split()
    assert words[:2] == ["step", "60"] and "dino" in words and len(tip.locator(".value").all()) == 3
    shown = float(words[words.index("dino") + 1])
    assert shown == pytest.approx(3.4848, abs=0.01)
    page.mouse.move(box["x"] + 150, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 80)
    page.mouse.up()
    second = page.locator("figure.chart").nth(1)
    assert chart.locator(".reset").is_visible() and second.locator(".reset").is_visible()  # all charts zoom
    assert "60" not in chart.locator("svg .tick").all_text_contents()
    chart.locator(".reset").click()
    assert "60" in chart.locator("svg .tick").all_text_contents() and not chart.locator(".reset").is_visible()
    chart.get_by_role("button", name="selfpatch").click()
    assert chart.locator("path.line").count() == 2
    page.locator("figure.chart").first.locator(".plot svg").focus()
    page.keyboard.press("Home")
    assert tip.inner_text().startswith("step 1")
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("step 2")
    page.keyboard.press("+")
    assert chart.locator(".reset").is_visible()
    page.keyboard.press("0")
    assert not chart.locator(".reset").is_visible()


def test_tables_sort_by_their_headers(open_page):
    page = open_page("comparison")
    column = page.locator("tbody td.numeric")
    head = page.locator("thead th").nth(1)
    head.get_by_role("button").click()
    assert column.all_inner_texts() == ["52.00", "41.00"] and head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").click()
    assert column.all_inner_texts() == ["41.00", "52.00"] and head.get_attribute("aria-sort") == "ascending"
    page.locator("thead th").first.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "none"
    page = open_page("run")
    field = page.locator("input[type=search]").first
    field.scroll_into_view_if_needed()
    field.fill("optim.batch")
    rows = field.locator("xpath=..").locator("tbody tr")
    assert rows.count() == 1 and "no GPU, and at least four" in rows.inner_text()


def test_the_slider_goes_through_the_steps(open_page):
    page = open_page("run")
    image, slider = page.locator("img.sheet"), page.get_by_label("Step", exact=True)
    newest = image.get_attribute("src")
    assert slider.evaluate("(e) => [e.value, e.max]") == ["3", "3"] and "step 60" in image.get_attribute("alt")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert "step 40" in image.get_attribute("alt") and image.get_attribute("src") != newest
    page.keyboard.press("Home")
    assert "step 0" in image.get_attribute("alt") and slider.get_attribute("aria-valuetext") == "step 0"
    assert page.evaluate("(i) => i.decode().then(() => i.naturalWidth)", image.element_handle()) == 640
    page.get_by_role("button", name="Predictions 1").click()
    assert "Predictions 1" in image.get_attribute("alt") and "step 0" in image.get_attribute("alt")


def test_a_click_on_a_patch_changes_the_map(open_page):
    page = open_page("run")
    canvas = page.locator(".patches canvas").first
    canvas.scroll_into_view_if_needed()
    pixels = "(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].join()"
    brightness = """(c) => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const at = (x, y) => d.slice(4 * (y * c.width + x)).slice(0, 3).reduce((a, b) => a + b);
        return [at(1, 1), at(c.width - 2, 1)]; }"""
    before = canvas.evaluate(pixels)
    box = canvas.bounding_box()
    cell = box["width"] / 12
    page.mouse.click(box["x"] + 1.5 * cell, box["y"] + 1.5 * cell)
    left = canvas.evaluate(brightness)
    assert canvas.evaluate(pixels) != before and left[0] > left[1] + 100  # like its own half
    page.mouse.move(0, 0)
    assert "row 2, column 2 of scene_1.jpg" in page.locator(".said").inner_text()
    page.mouse.click(box["x"] + 10.5 * cell, box["y"] + 1.5 * cell)
    right = canvas.evaluate(brightness)
    assert right[1] > right[0] + 100
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.mouse.move(0, 0)
    assert "row 3, column 11 of scene_1.jpg" in page.locator(".said").inner_text()
    page.mouse.move(box["x"] + 1.5 * cell, box["y"] + 1.5 * cell)
    assert page.locator(".said").inner_text().startswith("Cosine ")


def test_a_study_shows_dots_whiskers_and_links(open_page):
    page = open_page("study")
    rows = page.locator(".interval-row[role=listitem]")
    assert rows.count() == 4 and rows.first.locator(".seed").count() == 3
    assert "better" in rows.first.get_attribute("class") and rows.first.locator(".whisker").count() == 3
    label = rows.first.locator("svg").nth(1).get_attribute("aria-label")
    assert label.startswith("+") and "[" in label and label.endswith("better")
    page.get_by_role("link", name="continue-dino").nth(1).click()
    assert page.url.endswith("study/runs/continue-dino-1/report.html")


def test_many_classes_are_shown_when_asked_for(open_page):
    page = open_page("evaluation")
    assert page.locator(".bar-group").count() == 24
    page.get_by_role("button", name="Show all 40").click()
    assert page.locator(".bar-group").count() == 40


def test_a_live_page_renews_itself_and_keeps_what_was_chosen(open_page, tmp_path):
    run = made_run(tmp_path / "live")
    with Server(Source(run), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            page = open_page("live", address=f"http://127.0.0.1:{server.server_address[1]}/")
            page.locator("thead th").first.get_by_role("button").click()
            page.get_by_label("Step", exact=True).press("Home")
            with (run / "metrics.jsonl").open("a") as file:
                file.write('{"step": 75, "loss": 1.125}\n')
            playwright.expect(page.locator(".tiles")).to_contain_text("1.125", timeout=20_000)
            assert page.locator("thead th").first.get_attribute("aria-sort") == "ascending"
            assert "step 0" in page.locator("img.sheet").get_attribute("alt")
            assert page.evaluate("document.activeElement.type") == "range"  # the focus stays
        finally:
            server.shutdown()
            thread.join()
