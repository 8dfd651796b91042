"""The page of `lim-sglang inspect`, as a file and in a real headless browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import accumulate
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from lim_sglang.config import LimConfig
from lim_sglang.layer_plan import LayerPlan
from lim_sglang.tools.analysis.model import PolicyModel
from lim_sglang.tools.analysis.policies import LessIsMore
from lim_sglang.tools.inspect.data import Inspection, SelectEvent, inspect_generation
from lim_sglang.tools.inspect.page import Setting, page_data, render_page

from ..tiny_model import (
    CONFIG,
    NUM_HEADS,
    NUM_LAYERS,
    PLAN,
    SETTING,
    TOKENIZER,
    Elements,
    embedded_data,
    generate,
    page_of,
    texts_of,
)

PROMPT = "Two naïve 漢\n\tlines & <b>x</b>"
HOSTILE = (
    "</script><script>window.injected = 1</script><img src=x onerror='window.injected = 1'>@SCRIPT@@DATA@<!--<script>"
)


@pytest.fixture(scope="module")
def inspection(model: PolicyModel) -> Inspection:
    return generate(model, PROMPT, 10)


# The file


def test_the_data_hold_all_tokens_and_every_set(inspection: Inspection) -> None:
    data = embedded_data(page_of(inspection))
    assert data["tokens"] == texts_of(inspection)
    assert "".join(data["tokens"]).startswith(PROMPT)
    events = [event for step in data["steps"] for event in step]
    assert [list(accumulate(event["set"])) for event in events] == [list(e.positions) for e in inspection.events]
    assert [event["keys"] for event in events] == [list(event.keys) for event in inspection.events]
    assert [len(step) for step in data["steps"]] == [2] * (len(inspection.output_ids) - 1)


def test_within_the_budget_a_set_takes_no_room(model: PolicyModel) -> None:
    config = LimConfig(budget=200, select_layers=(1, 4))
    data = page_data(generate(model, PROMPT, 4, config), [], Setting("tiny", NUM_HEADS, config, PLAN, "given"))
    assert data["steps"] == [[{"set": None, "keys": []}] * 2] * 3


def test_the_page_refers_to_nothing_outside(inspection: Inspection) -> None:
    page = page_of(inspection)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace("// ", ""), re.IGNORECASE)
    elements = Elements(page).found
    assert {tag for tag, _ in elements} >= {"html", "style", "script", "input"}
    assert not [tag for tag, attrs in elements if tag in ("link", "img", "iframe") or {"src", "href"} & attrs.keys()]
    policy = next(attrs["content"] for tag, attrs in elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def hostile_page(model: PolicyModel) -> str:
    """A page whose first token is all of HOSTILE, and whose others are its bytes."""
    found = generate(model, HOSTILE, 3)
    return render_page(page_data(found, [HOSTILE, *texts_of(found)[1:]], SETTING))


def test_hostile_tokens_stay_text(model: PolicyModel) -> None:
    elements = Elements(hostile_page(model))
    assert [tag for tag, _ in elements.found if tag in ("script", "img")] == ["script", "script"]
    assert json.loads(elements.scripts[0])["tokens"][0] == HOSTILE
    assert elements.scripts[1] == Elements(page_of(generate(model, "plain", 3))).scripts[1]


# The browser


def browser_binaries() -> tuple[str, str] | None:
    """A Chromium or Chrome, and its driver."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    binaries = browser_binaries()
    if binaries is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = binaries[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(binaries[1]))
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """The page in the browser, as a reader sees it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def of_every_token(self, function: str, *arguments: str) -> list[Any]:
        """What a JavaScript function says of the tokens, in their order; an empty array is nothing."""
        code = f"return [...document.querySelectorAll('#tokens > span')].flatMap({function})"
        return list(self.driver.execute_script(code, *arguments))

    def positions(self, marked: str) -> list[int]:
        """Where the tokens with a class are."""
        return self.of_every_token("(span, position) => span.matches(arguments[0]) ? position : []", marked)

    def tokens(self) -> list[str]:
        return self.of_every_token("(span) => span.textContent")

    def levels(self) -> list[int]:
        """How strongly each token is shaded, 0 to 8."""
        return self.of_every_token(r"(span) => Number(span.className.match(/ f(\d)/)[1])")

    def press(self, *keys: str) -> None:
        self.find("#step").send_keys(*keys)

    def choose(self, name: str, value: str) -> None:
        self.find(f"input[name={name}][value='{value}']").click()

    def tip_at(self, position: int) -> list[str]:
        """What hovering over a token shows."""
        ActionChains(self.driver).move_to_element(self.find("h1")).perform()
        assert not self.find("#tip").is_displayed()
        ActionChains(self.driver).move_to_element(self.find(f"#tokens > span:nth-child({position + 1})")).perform()
        return self.tip()

    def tip(self) -> list[str]:
        assert self.find("#tip").is_displayed()
        return str(self.find("#tip").text).splitlines()


@pytest.fixture
def open_page(chrome: webdriver.Chrome, tmp_path: Path) -> Iterator[Any]:
    """Opens pages; at the end the console must be empty and nothing may have been fetched."""

    def opened(html: str) -> Page:
        (tmp_path / "inspect.html").write_text(html, encoding="utf-8")
        chrome.get((tmp_path / "inspect.html").as_uri())
        return Page(chrome)

    yield opened
    assert chrome.get_log("browser") == []
    assert chrome.execute_script("return performance.getEntriesByType('resource').length") == 0


@pytest.fixture
def page(open_page: Any, inspection: Inspection) -> Page:
    opened: Page = open_page(page_of(inspection))
    return opened


def event_of(inspection: Inspection, step: int, layer: int) -> SelectEvent:
    return next(event for event in inspection.events if (event.step, event.layer) == (step, layer))


def check_marks(page: Page, event: SelectEvent) -> None:
    """What is marked is exactly the event's set."""
    assert page.positions(".f8") == list(event.positions)
    assert page.positions(".sink") == list(range(event.sinks))
    assert page.positions(".chosen") == list(event.chosen)
    assert page.positions(".window") == list(range(event.window_start, event.length))
    assert page.positions(".query") == [event.length - 1]


def test_tokens_flow_as_the_text(page: Page, inspection: Inspection) -> None:
    assert page.tokens() == texts_of(inspection)
    prompt = len(inspection.prompt_ids)
    assert page.positions(".generated") == list(range(prompt, prompt + 10))
    assert "naïve 漢\n" in page.find("#tokens").get_property("textContent")
    assert not page.find("#notice").is_displayed()
    assert len(page.positions(".part")) == texts_of(inspection).count("")


def test_the_slider_and_the_layer_change_what_is_marked(page: Page, inspection: Inspection) -> None:
    assert event_of(inspection, 0, 1).positions != event_of(inspection, 1, 1).positions
    check_marks(page, event_of(inspection, 0, 1))
    assert page.positions(".later") == list(range(event_of(inspection, 0, 1).length, len(page.tokens())))
    page.press(Keys.ARROW_RIGHT)
    check_marks(page, event_of(inspection, 1, 1))
    assert page.find("#step-number").text == "2 of 9"
    page.choose("layer", "1")
    check_marks(page, event_of(inspection, 1, 4))
    page.press(Keys.END)
    check_marks(page, event_of(inspection, 8, 4))
    page.press("l", Keys.ARROW_LEFT)
    check_marks(page, event_of(inspection, 7, 1))
    said = page.find("#event").text
    assert f"24 of {event_of(inspection, 7, 1).length} tokens: 2 sinks, 18 chosen by rank, 4 recent." in said


def test_hovering_shows_ranks_and_counts(page: Page, inspection: Inspection) -> None:
    event = event_of(inspection, 0, 1)
    texts = texts_of(inspection)
    position, key = [
        (p, k)
        for p, k in zip(event.chosen, event.keys, strict=True)
        if texts[p].strip() and len({*divmod(k, NUM_HEADS)}) == 2
    ][7]
    held = [sum(position in e.positions for e in inspection.events if e.layer == layer) for layer in (1, 4)]
    choice = sorted(event.keys).index(key) + 1
    assert page.tip_at(position) == [
        f"“{texts[position]}” · position {position} · prompt",
        f"In this set: best rank {key // NUM_HEADS}, by head {key % NUM_HEADS}; choice {choice} of 18",
        f"Overall: in {sum(held)} of 18 sets",
        f"layer 1: {held[0]} of 9, layer 4: {held[1]} of 9",
    ]
    left_out = next(p for p in range(2, event.window_start) if p not in event.positions)
    assert page.tip_at(left_out)[1] == "Not in this set"
    assert page.tip_at(0)[1] == "In this set: sink"
    assert page.tip_at(event.window_start)[1] == "In this set: recency window"
    assert page.tip_at(event.length)[1] == "Not yet cached at this event"
    assert page.tip_at(len(page.tokens()) - 2)[2].endswith("of 2 sets")
    assert len(page.tip_at(len(page.tokens()) - 1)) == 2


def test_the_keyboard_reaches_every_token(page: Page, inspection: Inspection) -> None:
    page.find("#tokens > span").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.tip()[0].endswith("position 1 · prompt")
    assert page.positions("[tabindex='0'][aria-describedby='tip']") == page.positions(":focus") == [1]
    page.find("#tokens > span:nth-child(2)").send_keys(Keys.ESCAPE)
    assert not page.find("#tip").is_displayed()
    assert page.driver.switch_to.active_element.get_attribute("id") == "step"
    check_marks(page, event_of(inspection, 0, 1))


def shares(inspection: Inspection, last_step: int) -> list[int]:
    """The shading expected: of the events that saw a token, the share whose set holds it, in eighths, rounded up."""
    events = [event for event in inspection.events if event.step <= last_step]
    total = len(inspection.prompt_ids) + len(inspection.output_ids)
    held = [sum(position in event.positions for event in events) for position in range(total)]
    seen = [sum(position < event.length for event in events) for position in range(total)]
    return [ceil(h / s * 8) if s else 0 for h, s in zip(held, seen, strict=True)]


def test_shading_by_frequency(page: Page, inspection: Inspection) -> None:
    assert len(set(shares(inspection, 8))) > 2
    page.choose("shading", "overall")
    assert page.levels() == shares(inspection, 8)
    page.choose("shading", "sofar")
    page.press(Keys.HOME, *[Keys.ARROW_RIGHT] * 3)
    assert page.levels() == shares(inspection, 3)
    assert page.positions(".chosen") == list(event_of(inspection, 3, 1).chosen)


def test_the_strip_shows_where_the_set_lies(page: Page, inspection: Inspection) -> None:
    """With fewer tokens than bars, each token has one, of full height or none."""
    event = event_of(inspection, 0, 1)
    bars = re.findall(r"V([\d.]+)H", page.find("#strip-path").get_attribute("d"))
    assert [float(top) for top in bars] == [0 if p in event.positions else 100 for p in range(event.length)]


def test_marks_can_be_told_apart_in_light_and_dark(page: Page) -> None:
    def looks(scheme: str) -> list[str]:
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        code = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        wanted = [(f"#tokens .{name}", "boxShadow") for name in ("sink", "window", "chosen")]
        wanted += [("body", "backgroundColor"), ("body", "color"), ("#tokens .f8", "backgroundColor")]
        return [page.driver.execute_script(code, *pair) for pair in wanted]

    light, dark = looks("light"), looks("dark")
    assert len({*light}) == len({*dark}) == 6
    assert not {*light} & {*dark}


def test_a_page_within_the_budget_says_so(open_page: Any, model: PolicyModel) -> None:
    config = LimConfig(budget=200, select_layers=(1, 4))
    setting = Setting("tiny", NUM_HEADS, config, PLAN, "given")
    page: Page = open_page(page_of(generate(model, "short", 4, config), setting))
    assert page.find("#notice").text.startswith("Nothing is sparse here: the last step saw 8 tokens, the budget is 200")
    assert page.positions(".f8") == list(range(6))
    page.press(Keys.ARROW_RIGHT)
    assert page.positions(".f8") == list(range(7))
    assert page.tip_at(2)[1] == "In this set, as every token within the budget"
    assert page.positions(".sink, .window, .chosen") == []


def test_a_page_without_decode_steps_works(open_page: Any, model: PolicyModel) -> None:
    page: Page = open_page(page_of(generate(model, PROMPT, 1)))
    assert page.find("#notice").text.startswith("Nothing is sparse here: the prefill gave the only generated token")
    assert not page.find("#step").is_enabled()
    assert len(page.tokens()) == len(PROMPT.encode()) + 1
    assert page.tip_at(0) == ["“T” · position 0 · prompt"]


def test_a_plan_that_ends_with_its_select_layer_says_so(open_page: Any, model: PolicyModel) -> None:
    plan = LayerPlan.from_select_layers(NUM_LAYERS, (NUM_LAYERS - 1,))
    found = inspect_generation(model, TOKENIZER(PROMPT)["input_ids"], LessIsMore(plan, CONFIG.parts), 3)
    page: Page = open_page(page_of(found, Setting("tiny", NUM_HEADS, CONFIG, plan, "given")))
    assert "no layer comes after the last select layer" in page.find("#notice").text
    check_marks(page, found.events[0])


def test_hostile_tokens_run_nothing(open_page: Any, model: PolicyModel) -> None:
    page: Page = open_page(hostile_page(model))
    assert page.tokens()[0] == HOSTILE
    assert page.driver.execute_script("return window.injected") is None
    assert page.driver.execute_script("return document.querySelectorAll('script, img').length") == 2
    assert page.tip_at(0)[0] == f"“{HOSTILE}” · position 0 · prompt"
