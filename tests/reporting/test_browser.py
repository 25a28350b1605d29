"""The pages in a browser: what a person who opens them meets."""

import base64
import json
import shutil
import time

import pytest
from reporting.fixtures import STUDIES, study

from arnas.reporting.study import page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Chromium: apt-get install chromium chromium-driver"
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync"""


PAGES = ["report", *STUDIES]


@pytest.fixture(scope="module")
def pages(reported, tmp_path_factory):
    """Addresses of a report and of each study."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(reported / "report.html", folder / "report.html")
    for name in STUDIES:
        (folder / f"{name}.html").write_text(page(study(name)), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in PAGES}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    driver.downloads = downloads
    yield driver
    driver.quit()


@pytest.fixture(params=PAGES)
def opened(request, browser, pages):
    """The browser with one of the pages, at a desk's width, in the light, with scripts."""
    show(browser, pages[request.param])
    return browser


def show(browser, address, *, width=1280, height=800, dark=False, scripts=True):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    browser.get_log("performance"), browser.get_log("browser")  # what was before is of no interest
    browser.get(address)


def column(browser, place):
    """Texts of one column of the first table, from top to bottom."""
    return browser.execute_script(
        "return [...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[arguments[0]].innerText)",
        place,
    )


def test_a_page_asks_for_nothing_but_itself_and_nothing_in_it_is_refused(opened):
    asked = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    addresses = [event["params"]["request"]["url"] for event in asked if event["method"] == "Network.requestWillBeSent"]
    assert opened.current_url in addresses
    assert all(address == opened.current_url or address.startswith("data:image/png") for address in addresses)
    assert opened.get_log("browser") == []


def test_the_policy_lets_no_other_script_run(opened):
    opened.execute_cdp_cmd("Log.enable", {})
    opened.execute_script(
        "const other = document.createElement('script'); other.textContent = 'window.intruded = true';"
        "document.body.append(other)"
    )
    assert opened.execute_script("return window.intruded") is None
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


def test_a_click_on_a_header_sorts_by_figures_and_a_second_one_turns_it_round(opened):
    def headers():
        return opened.execute_script(
            "return [...document.querySelectorAll('table')[0].tHead.rows[0].cells].map((cell) => cell.ariaSort)"
        )

    buttons = opened.find_element("css selector", "table").find_elements("css selector", "thead button")
    figures = [float(text.split("%")[0]) for text in column(opened, 1)]
    names = column(opened, 0)
    assert set(headers()) == {None}
    buttons[1].click()
    assert [float(text.split("%")[0]) for text in column(opened, 1)] == sorted(figures, reverse=True)
    assert headers()[1] == "descending" and headers().count(None) == len(headers()) - 1
    buttons[1].click()
    assert [float(text.split("%")[0]) for text in column(opened, 1)] == sorted(figures)
    assert headers()[1] == "ascending"
    buttons[0].send_keys("\ue007")  # Enter, for those without a mouse
    assert column(opened, 0) == sorted(names) and headers()[:2] == ["ascending", None]


@pytest.mark.parametrize("name", PAGES)
def test_without_scripts_the_page_is_whole_and_promises_no_sorting(browser, pages, name):
    show(browser, pages[name], scripts=False)
    assert browser.find_elements("css selector", "button") == []
    rows = browser.find_element("css selector", "table").find_elements("css selector", "tbody tr")
    assert len(rows) == len(STUDIES.get(name, "abc")) and all(row.is_displayed() for row in rows)
    assert browser.find_elements("css selector", "a[download]")[0].is_displayed()


def test_claim_alarms_and_the_first_row_of_figures_lie_in_the_first_screen(opened):
    lowest = opened.execute_script("""
        const first = ["h1", "[aria-label='Violated checks']", "table tbody tr"];
        return first.map((which) => document.querySelector(which).getBoundingClientRect().bottom);
    """)
    assert lowest == sorted(lowest) and lowest[-1] <= opened.execute_script("return innerHeight") == 800


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_narrow_screen_but_what_scrolls_by_itself(browser, pages, width):
    for address in pages.values():
        show(browser, address, width=width)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, address


def contrast(first, second):
    """Of two colours "rgb(r, g, b)" (WCAG 2.2, relative luminance)."""

    def luminance(colour):
        levels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_every_letter_of_a_figure_stands_out_from_what_it_is_drawn_on(browser, pages, dark):
    weak = set()
    for address in pages.values():
        show(browser, address, height=20_000, dark=dark)  # what is outside of the window is not found by its place
        found = browser.execute_script("""
            const ground = ({ x, y, width, height }) => {
              for (const element of document.elementsFromPoint(x + width / 2, y + height / 2)) {
                const { fill, fillOpacity, opacity, backgroundColor } = getComputedStyle(element);
                const drawn = element instanceof SVGGeometryElement;
                if (drawn && fill !== "none" && fillOpacity * opacity === 1) return fill;
                if (!(element instanceof SVGElement) && !backgroundColor.startsWith("rgba")) return backgroundColor;
              }
            };
            return [...document.querySelectorAll("svg text")]
              .map((text) => [text, text.getBoundingClientRect()])
              .filter(([, box]) => box.width > 0)
              .map(([text, box]) => [getComputedStyle(text).fill, ground(box), text.textContent]);
        """)
        assert len(found) > 10
        weak |= {(ink, ground, what) for ink, ground, what in found if contrast(ink, ground) < 4.5}
    assert weak == set()


@pytest.mark.parametrize("dark", [False, True])
def test_every_word_stands_out_from_its_ground_by_day_and_by_night(browser, pages, dark):
    grounds = set()
    for address in pages.values():
        show(browser, address, dark=dark)
        found = browser.execute_script("""
            const opaque = (element) => {
              for (; element; element = element.parentElement) {
                const ground = getComputedStyle(element).backgroundColor;
                if (!ground.startsWith("rgba")) return ground;
              }
            };
            return [...document.querySelectorAll("h1, h2, p, li, th, td, small, a, figcaption, summary, b, code")]
              .map((element) => [getComputedStyle(element).color, opaque(element), element.outerHTML.slice(0, 80)]);
        """)
        grounds |= {ground for _, ground, _ in found}
        weak = [(ink, ground, what) for ink, ground, what in found if contrast(ink, ground) < 4.5]
        assert weak == []
    white = "rgb(255, 255, 255)"
    assert (white in grounds) != dark


def test_the_links_give_the_files_that_they_name(opened, reported):
    links = opened.find_elements("css selector", "a[download]")
    assert len(links) == 3
    for link in links:
        link.click()
        held = base64.b64decode(link.get_attribute("href").partition("base64,")[2])
        file = opened.downloads / link.get_attribute("download")
        wait(lambda file=file, held=held: file.exists() and file.read_bytes() == held)
    if "report" in opened.current_url:
        assert (opened.downloads / "arnas-digits.json").read_bytes() == (reported / "scores.json").read_bytes()


def wait(done):
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end, "the download did not come"
        time.sleep(0.02)


def test_on_paper_nothing_is_cut_and_nothing_asks_to_be_clicked(opened):
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 688, "height": 1000, "deviceScaleFactor": 1, "mobile": False},  # A4 less its margins
    )
    wide = opened.execute_script(
        "return [...document.querySelectorAll('table')].filter((table) => table.offsetWidth > innerWidth)"
        ".map((table) => table.ariaLabel)"
    )
    assert wide == []
    assert [
        link for link in opened.find_elements("css selector", "a, details:not([open]) summary") if link.is_displayed()
    ] == []
    printed = base64.b64decode(opened.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert printed.startswith(b"%PDF")
