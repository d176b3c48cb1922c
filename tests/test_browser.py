"""The browser of latents: its bytes, and how it behaves in headless Chromium, which ``make test-all`` alone runs."""

import base64
import gzip
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lib.latents import browser

NEEDS = (
    "needs Chromium, its driver and selenium: apt-get install chromium chromium-driver, and pip install -e '.[browse]', "
    "which make test-all does"
)
SCRIPT = "<script>document.title='pwned'</script>"
IMAGE = '"><img src=x onerror="document.title=\'pwned\'">'
LONG = "x" * 10_000
LENGTHY = f"{SCRIPT} {IMAGE} {LONG}"
PLAIN = [" how", " to", " bake", " bread", " kidnap", "\n", " fly"]
HOSTILE = [SCRIPT, IMAGE, "nul\x00", "half\ud800", LONG, "</script>"]
BAKING = [[0, 1, 2, 3], [0, 0, 3, 9]]
KIDNAP = [[0, 1, 4, 5], [0, 2, 8, 0]]


def latent(number: int, **more: Any) -> dict[str, Any]:
    found = {"sae": 0, "latent": number, "explanation": "", "score": None, "frequency": 0.005, "fires": [0.1, 0.1]}
    found |= {"histogram": [512, 64, 8, 1, 0, 0, 0, 0, 0, 1], "max": 3.21, "up": [4, 2], "down": [6]}
    return found | {"contexts": [[], [[[0, 1, 6], [0, 0, 9]]]]} | more


def payload() -> dict[str, Any]:
    special = [
        latent(7, explanation="Requests about crime", score=0.71, fires=[0.59, 0.0], contexts=[[KIDNAP], []]),
        latent(8, explanation="Recipes", score=0.43, frequency=0.2, fires=[0.0, 0.59], contexts=[[], [BAKING]]),
        latent(9, explanation=LENGTHY, contexts=[[[[7, 8, 9, 10, 11, 12, 5], [1] * 6 + [9]]], []], up=[7, 8, 12, 11]),
        latent(10, frequency=0.0, histogram=[0] * 10, max=0.0, contexts=[[], []], up=[], down=[]),
        latent(7, sae=1, explanation="Greetings", score=-0.2, frequency=0.0004),
    ]
    sizes = {"tokens": 40_000, "harmful": 200, "harmless": 600}
    return {
        "title": "Latents", "note": f"Harmful requests are shown. {IMAGE}",
        "saes": [{"id": "finetuned", "name": "finetuned on chat", **sizes}, {"id": "chat", "name": f"chat {SCRIPT}", **sizes}],
        "vocabulary": PLAIN + HOSTILE, "latents": special + [latent(number) for number in range(100, 195)],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ its bytes


def test_page_is_the_same_bytes_and_gives_back_what_it_holds() -> None:
    text = browser.page(payload())
    assert text == browser.page(payload()) and "__DATA__" not in text
    (data,) = re.findall(r'<script type="application/octet-stream" id="data">([A-Za-z0-9+/=]+)</script>', text)
    assert json.loads(gzip.decompress(base64.b64decode(data))) == payload()


def test_no_text_of_data_is_markup_and_nothing_is_loaded() -> None:
    template = Path(browser.__file__).with_name("browser.html").read_text()
    before, after = template.split("__DATA__")
    text = browser.page(payload())
    assert text.startswith(before) and text.endswith(after) and not re.search("pwned|onerror", text)
    assert "default-src 'none'" in template and "innerHTML" not in template
    assert not re.search(r"\b(src|@import|url)\b\s*[=(]|<link", template)
    assert set(re.findall(r"https?://[^\"'\s]+", template)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_numbers_that_json_has_not_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        browser.page({"latents": [float("nan")]})


# ---------------------------------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None or importlib.util.find_spec("selenium") is None:
        pytest.skip(NEEDS)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.add_argument("--headless=new")
    options.add_argument("--disable-dev-shm-usage")  # containers have little of it
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # which root cannot have
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def visit(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., "Shown"]]:
    """Opens the page from a file. At the end, nothing was complained of in the console, and nothing loaded."""
    path = tmp_path / "latents.html"
    path.write_text(browser.page(payload()), encoding="utf-8")

    def go(link: str = "", width: int = 1280, mode: str = "light") -> Shown:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": mode}]
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        chromium.get("about:blank")  # so that another link is another load
        chromium.get(f"{path.as_uri()}{link}")
        shown = Shown(chromium)
        shown.wait(lambda: not shown.script("return document.querySelector('main').hidden"))
        return shown

    yield go
    assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert chromium.get_log("browser") == []


class Shown:
    """The page in the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver, self.script = driver, driver.execute_script

    def wait(self, fact: Callable[[], Any]) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 10, 0.02).until(lambda _: fact())

    def __getitem__(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        return self.driver.find_elements("css selector", css)

    @property
    def rows(self) -> list[str]:
        """The links of the list."""
        return self.script("return [...document.querySelectorAll('#list a')].map(a => a.hash.slice(1))")

    @property
    def focused(self) -> Any:
        return self.driver.switch_to.active_element

    @property
    def hash(self) -> str:
        return self.script("return location.hash")

    def colour(self, css: str, what: str) -> list[float]:
        said = self.script("return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", css, what)
        return [float(x) for x in re.findall(r"[\d.]+", said)]

    def choose(self, name: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self[f"#{name}"]).select_by_visible_text(text)

    def search(self, text: str, rows: list[str]) -> None:
        self["#search"].clear()
        self["#search"].send_keys(text)
        self.wait(lambda: self.rows == rows)

    def press(self, *names: str) -> None:
        """Keys, to whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys

        for name in names:
            ActionChains(self.driver).send_keys(getattr(Keys, name, name)).perform()


@pytest.mark.all
def test_search_finds_explanations_texts_and_numbers(visit: Callable[..., Shown]) -> None:
    page = visit()
    assert page["#count"].text == "100 of 100 latents" and page["#count"].get_attribute("aria-live") == "polite"
    page.search("reCIPES", ["finetuned-8"])  # explanation
    page.search('"to kidnap"', ["finetuned-7"])  # text of a context, across tokens
    assert page["#count"].text == "1 of 100 latents"
    page.search("bread bake", ["finetuned-8"])  # words in any order
    page.search('"bread bake"', [])
    assert page["#count"].text == "None of 100 latents matches."
    page.search("7", ["finetuned-7", "chat-7"])
    page.search("<script>", ["finetuned-9"])
    page["button[type=reset]"].click()
    page.wait(lambda: page["#count"].text == "100 of 100 latents")


@pytest.mark.all
def test_filters_and_orders(visit: Callable[..., Shown]) -> None:
    page = visit()
    for name, text, rows in (
        ("frequency", "never fires", ["finetuned-10"]),
        ("frequency", "< 0.1 %", ["finetuned-10", "chat-7"]),
        ("frequency", "1–10 %", []),
        ("frequency", "≥ 10 %", ["finetuned-8"]),
        ("score", "≥ 0.3", ["finetuned-7", "finetuned-8"]),
        ("score", "≥ 0.6", ["finetuned-7"]),
        ("class", "fires more on harmful", ["finetuned-7"]),
        ("class", "fires more on harmless", ["finetuned-8"]),
        ("sae", f"chat {SCRIPT}", ["chat-7"]),
    ):
        page.choose(name, text)
        assert page.rows == rows, text
        page.choose(name, "any")
    page.choose("score", "unscored")
    assert page["#count"].text == "97 of 100 latents"
    page.choose("class", "fires more on harmful")  # filters narrow one another
    assert page.rows == []
    page["button[type=reset]"].click()
    page.wait(lambda: len(page.rows) == 60)
    for order, first in (
        ("frequency", ["finetuned-8", "finetuned-7"]),
        ("score", ["finetuned-7", "finetuned-8", "chat-7"]),
        ("difference between classes", ["finetuned-7", "finetuned-8", "finetuned-9"]),
        ("number", ["finetuned-7", "finetuned-8", "finetuned-9", "finetuned-10", "finetuned-100"]),
    ):
        page.choose("sort", order)
        assert page.rows[: len(first)] == first


@pytest.mark.all
def test_more_of_a_long_list_is_shown_when_asked_for(visit: Callable[..., Shown]) -> None:
    page = visit()
    assert len(page.rows) == 60 and page["#more"].text == "Show 40 more"
    page["#more"].click()
    assert len(page.rows) == 100 and not page["#more"].is_displayed()
    assert page.focused.get_attribute("hash") == f"#{page.rows[60]}"  # the first of the new ones


@pytest.mark.all
def test_links_open_their_cards(visit: Callable[..., Shown]) -> None:
    page = visit("#finetuned-7")
    assert page["#card h2"].text == "Latent 7 of finetuned on chat"
    for said in ("Requests about crime", "0.71", "0.5 % of 40,000 tokens", "59 % of 200", "0 % of 600", "never fires"):
        assert said in page["#card"].text, said
    assert "max 3.21" in page["#card svg"].text and "n = 586;" in page["#card figcaption"].text
    assert "how to kidnap⏎…" in page[".context"].text and "␣bake" in page["#card"].text
    assert page["#list [aria-current]"].get_attribute("hash") == "#finetuned-7"
    page.script("location.hash = '#chat-7'")
    page.wait(lambda: page["#card h2"].text == f"Latent 7 of chat {SCRIPT}")
    page["#list a"].click()
    assert page.hash == "#finetuned-7" and page["#card h2"].text == "Latent 7 of finetuned on chat"
    page.driver.back()
    page.wait(lambda: page["#card h2"].text == f"Latent 7 of chat {SCRIPT}")
    assert "It never fired on held-out chat." in visit("#finetuned-10")["#card"].text


@pytest.mark.all
@pytest.mark.parametrize("link", ["#finetuned-999999", "#%", "#%3Cimg%20src=x%3E", "#constructor"])
def test_unknown_links_are_told_in_one_line(visit: Callable[..., Shown], link: str) -> None:
    page = visit(link)
    assert re.fullmatch("There is no latent “.+” on this page.", page["#unknown"].text)
    assert len(page.rows) == 60 and not page.all("img")
    page["#list a"].click()
    assert page["#card h2"].text == "Latent 7 of finetuned on chat"


@pytest.mark.all
@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_texts_are_texts(visit: Callable[..., Shown], width: int) -> None:
    count = "return document.querySelectorAll('script, img, iframe, object, [onerror]').length"
    page = visit(width=width)
    assert page.script(count) == 2 and IMAGE in page["#note"].text and SCRIPT in page["#list"].text
    page.script("location.hash = '#finetuned-9'")
    page.wait(lambda: page.all("#card h2"))
    assert page["#explanation"].text == LENGTHY
    shown = page[".context"].get_attribute("textContent")
    assert shown == f"…{SCRIPT}{IMAGE}nul␀half\\ud800{LONG}</script>⏎…"
    assert SCRIPT in page[".context"].text and IMAGE in page[".context"].text and "half\\ud800" in page[".context"].text
    assert [x.text for x in page.all(".chip")][:3] == [SCRIPT, IMAGE, "</script>"]
    for token in page.all(".context span"):
        page.script("arguments[0].focus()", token)
        assert page["#spoken"].text.startswith("“")
    assert page.script(count) == 2 and page.driver.title == "Latents"
    assert page.script("return document.documentElement.scrollWidth") <= width


@pytest.mark.all
def test_the_keyboard_is_enough(visit: Callable[..., Shown]) -> None:
    page = visit()
    page.press("/")
    assert page.focused.get_attribute("id") == "search" and page.focused.get_property("value") == ""
    page.press("ARROW_DOWN", "ARROW_DOWN")
    assert page.focused.get_attribute("hash") == "#finetuned-8"
    page.press("ENTER")
    assert page.hash == "#finetuned-8" and page.focused.text == "Latent 8 of finetuned on chat"
    page.press("ESCAPE")
    assert page.focused.get_attribute("hash") == "#finetuned-8"
    page.press("ARROW_UP", "ARROW_UP")
    assert page.focused.get_attribute("id") == "search"
    page.press("ARROW_DOWN", "END", "ARROW_DOWN")  # past the last row shown there are more
    assert len(page.rows) == 100 and page.focused.get_attribute("hash") == f"#{page.rows[60]}"
    assert len(page.all("#list [tabindex='0']")) == 1  # one stop of the Tab key


@pytest.mark.all
def test_activations_are_told_on_hover_and_on_focus(visit: Callable[..., Shown]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = visit("#finetuned-7")
    how, to, kidnap, end = page.all(".context span")
    ActionChains(page.driver).move_to_element(kidnap).perform()
    page.wait(lambda: page["#spoken"].text == "“ kidnap” 2.85")
    ActionChains(page.driver).move_to_element(how).perform()
    page.wait(lambda: page["#spoken"].text == "“ how” 0")
    stops = [x.get_attribute("tabindex") for x in (how, to, kidnap, end)]
    assert stops == ["-1", "-1", "0", "-1"]  # a context is entered at its strongest token
    assert page[".context"].get_attribute("aria-label") == "strongest at “ kidnap” 2.85"
    page.script("arguments[0].focus()", kidnap)
    assert page["#spoken"].text == "“ kidnap” 2.85"
    page.press("ARROW_LEFT")
    assert page.focused == to and page["#spoken"].text == "“ to” 0.713"
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")  # and no further than the end
    assert page.focused == end and page["#spoken"].text == "“⏎” 0"


@pytest.mark.all
def test_on_a_phone_the_card_takes_the_place_of_the_list(visit: Callable[..., Shown]) -> None:
    wide = "return document.documentElement.scrollWidth"
    page = visit(width=390)
    assert page.script(wide) <= 390 and page["#list"].is_displayed() and not page["#card"].is_displayed()
    page.all("#list a")[30].click()
    assert page["#card"].is_displayed() and not page["#list"].is_displayed() and page.script(wide) <= 390
    assert page.hash == f"#{page.rows[30]}" and page.script("return scrollY") == 0
    page["#back"].click()
    assert page["#list"].is_displayed() and not page["#card"].is_displayed() and page.hash == ""
    assert (
        page.focused.get_attribute("hash") == f"#{page.rows[30]}" and page.script("return scrollY") > 800
    )  # where it was
    page.driver.back()
    page.wait(lambda: page["#card"].is_displayed())
    page.press("ESCAPE")
    assert page["#list"].is_displayed()
    for link in ("#finetuned-7", "#finetuned-8", "#nowhere-1"):
        page = visit(link, width=390)
        assert page["#card"].is_displayed() and page.script(wide) <= 390


def contrast(text: list[float], ground: list[float]) -> float:
    """By WCAG 2."""

    def luminance(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in rgb)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(text), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.all
def test_both_modes_are_legible(visit: Callable[..., Shown]) -> None:
    grounds = []
    for mode in ("light", "dark"):
        page = visit("#finetuned-8", mode=mode)
        ground = page.colour("body", "backgroundColor")
        grounds.append(ground)
        assert contrast(page.colour("body", "color"), ground) > 7
        for css in ("#note", "#list small", "#list .name", "#card dt", "#card a"):
            assert contrast(page.colour(css, "color"), ground) > 4.5, (mode, css)
        *orange, share = page.colour(".strongest", "backgroundColor")
        under = page.colour(".context", "backgroundColor")
        blended = [share * a + (1 - share) * b for a, b in zip(orange, under, strict=True)]
        assert share > 0.4 and contrast(page.colour(".strongest", "color"), blended) > 4.5
        assert contrast(page.colour(".strongest", "borderBottomColor"), under) > 3  # what fires is underlined, too
    assert grounds[0] != grounds[1]


@pytest.mark.all
def test_every_control_has_a_label(visit: Callable[..., Shown]) -> None:
    page = visit("#finetuned-7")
    controls = page.all("input, select, button")
    assert len(controls) == 9 and all(x.accessible_name for x in controls if x.is_displayed())


@pytest.mark.all
def test_what_cannot_be_unpacked_is_told_in_one_line(chromium: Any, tmp_path: Path) -> None:
    path, old = tmp_path / "latents.html", {"source": "delete window.DecompressionStream"}
    path.write_text(browser.page(payload()), encoding="utf-8")
    added = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", old)
    chromium.get(path.as_uri())
    shown = Shown(chromium)
    shown.wait(lambda: shown["#told"].text.startswith("This browser cannot unpack the latents"))
    chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    path.write_text(re.sub('id="data">[^<]+', 'id="data">AAAA', path.read_text()))
    chromium.get(path.as_uri())
    shown.wait(lambda: shown["#told"].text.startswith("The latents in this page could not be read"))
