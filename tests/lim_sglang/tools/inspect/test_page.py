"""The page of `lim-sglang inspect` in a real headless browser."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
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
from lim_sglang.tools.inspect.data import Inspection, SelectEvent
from lim_sglang.tools.inspect.page import page_data, render_page

from ..tiny_model import CONFIG, NUM_HEADS, NUM_LAYERS, SETTING, generate, page_of, texts_of

SPLIT = CONFIG.parts
PROMPT = "Two naïve 漢\n\tlines & <b>x</b>"
HOSTILE = (
    "</script><script>window.injected = 1</script><img src=x onerror='window.injected = 1'>@SCRIPT@@DATA@<!--<script>"
)


@pytest.fixture(scope="module")
def inspection(model: PolicyModel) -> Inspection:
    return generate(model, PROMPT, 10)


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as running:
            yield running


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
        return str(self.find("#tip").text).splitlines()


@pytest.fixture
def open_page(chrome: webdriver.Chrome, tmp_path: Path) -> Iterator[Any]:
    """Opens pages; at the end the console must be empty and nothing may have been fetched."""

    def opened(html: str) -> Page:
        assert "default-src 'none'" in html
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


def event_of(inspection: Inspection, step: int, column: int) -> SelectEvent:
    return inspection.events[2 * step + column]


def check_marks(page: Page, event: SelectEvent) -> None:
    """What is marked is exactly the event's set."""
    assert page.positions(".f8") == list(event.positions)
    assert page.positions(".sink") == list(range(SPLIT.sinks))
    assert page.positions(".chosen") == list(event.positions[SPLIT.sinks : -SPLIT.recent])
    assert page.positions(".window") == list(range(event.length - SPLIT.recent, event.length))
    assert page.positions(".query") == [event.length - 1]


def test_tokens_flow_as_the_text(page: Page, inspection: Inspection) -> None:
    """In the strip there are fewer tokens than bars: each has one, of full height or none."""
    texts, prompt, event = texts_of(inspection), len(inspection.prompt_ids), event_of(inspection, 0, 0)
    assert page.tokens() == texts
    assert page.positions(".generated") == list(range(prompt, prompt + 10))
    assert page.positions(".part") == [position for position, text in enumerate(texts) if text == ""]
    assert page.positions(".later") == list(range(event.length, len(texts)))
    assert not page.find("#notice").is_displayed()
    bars = re.findall(r"V([\d.]+)H", page.find("#strip-path").get_attribute("d"))
    assert [float(top) for top in bars] == [0 if p in event.positions else 100 for p in range(event.length)]


def test_the_slider_and_the_layer_change_what_is_marked(page: Page, inspection: Inspection) -> None:
    assert event_of(inspection, 0, 0).positions != event_of(inspection, 1, 0).positions
    check_marks(page, event_of(inspection, 0, 0))
    page.press(Keys.ARROW_RIGHT)
    check_marks(page, event_of(inspection, 1, 0))
    assert page.find("#step-number").text == "2 of 9"
    page.choose("layer", "1")
    check_marks(page, event_of(inspection, 1, 1))
    page.press(Keys.END)
    check_marks(page, event_of(inspection, 8, 1))
    page.press("l", Keys.ARROW_LEFT)
    event = event_of(inspection, 7, 0)
    check_marks(page, event)
    assert f"24 of {event.length} tokens: 2 sinks, 18 chosen by rank, 4 recent." in page.find("#event").text


def test_hovering_shows_ranks_and_counts(page: Page, inspection: Inspection) -> None:
    event, texts, last = event_of(inspection, 0, 0), texts_of(inspection), len(texts_of(inspection)) - 1
    chosen = zip(event.positions[SPLIT.sinks :], event.keys, strict=False)
    position, key = [(p, k) for p, k in chosen if texts[p].strip() and len({*divmod(k, NUM_HEADS)}) == 2][7]
    held = [sum(position in event.positions for event in inspection.events[column::2]) for column in (0, 1)]
    assert page.tip_at(position) == [
        f"“{texts[position]}” · position {position} · prompt",
        f"In this set: best rank {key // NUM_HEADS}, by head {key % NUM_HEADS}; "
        f"choice {sorted(event.keys).index(key) + 1} of 18",
        f"Overall: in {sum(held)} of 18 sets",
        f"layer 1: {held[0]} of 9, layer 4: {held[1]} of 9",
    ]
    left_out = next(p for p in range(event.length) if p not in event.positions)
    assert page.tip_at(left_out)[1] == "Not in this set"
    assert page.tip_at(0)[1] == "In this set: sink"
    assert page.tip_at(event.length - SPLIT.recent)[1] == "In this set: recency window"
    latest = page.tip_at(last - 1)
    assert latest[1] == "Not yet cached at this event"
    assert latest[2].endswith("of 2 sets")
    assert len(page.tip_at(last)) == 2


def test_the_keyboard_reaches_every_token(page: Page, inspection: Inspection) -> None:
    page.find("#tokens > span").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert "position 1 · prompt" in page.find("#tip").text
    assert page.positions("[tabindex='0'][aria-describedby='tip']") == page.positions(":focus") == [1]
    page.find("#tokens > span:nth-child(2)").send_keys(Keys.ESCAPE)
    assert not page.find("#tip").is_displayed()
    assert page.driver.switch_to.active_element.get_attribute("id") == "step"
    check_marks(page, event_of(inspection, 0, 0))


def shares(inspection: Inspection, last_step: int) -> list[int]:
    """The shading expected: of the events that saw a token, the share whose set holds it, in eighths, rounded up."""
    events = inspection.events[: 2 * (last_step + 1)]
    positions = range(len(inspection.prompt_ids) + len(inspection.output_ids))
    seen = [[event for event in events if position < event.length] for position in positions]
    return [ceil(sum(p in e.positions for e in saw) / len(saw) * 8) if saw else 0 for p, saw in enumerate(seen)]


def test_shading_by_frequency(page: Page, inspection: Inspection) -> None:
    assert len(set(shares(inspection, 8))) > 2
    page.choose("shading", "overall")
    assert page.levels() == shares(inspection, 8)
    page.choose("shading", "sofar")
    page.press(Keys.HOME, *[Keys.ARROW_RIGHT] * 3)
    assert page.levels() == shares(inspection, 3)


def test_a_page_within_the_budget_says_so(open_page: Any, model: PolicyModel) -> None:
    config = LimConfig(budget=200, select_layers=(1, 4))
    page: Page = open_page(page_of(generate(model, "short", 4, config), replace(SETTING, config=config)))
    assert page.find("#notice").text.startswith("Nothing is sparse here: the last step saw 8 tokens, the budget is 200")
    page.press(Keys.ARROW_RIGHT)
    assert page.positions(".f8") == list(range(7))
    assert page.tip_at(2)[1] == "In this set, as every token within the budget"
    assert page.positions(".sink, .window, .chosen") == []


def test_a_page_without_decode_steps_works(open_page: Any, model: PolicyModel) -> None:
    page: Page = open_page(page_of(generate(model, PROMPT, 1)))
    assert page.find("#notice").text.startswith("Nothing is sparse here: the prefill gave the only generated token")
    assert not page.find("#step").is_enabled()
    assert page.tip_at(0) == ["“T” · position 0 · prompt"]


def test_a_plan_without_a_sparse_layer_says_so(open_page: Any, inspection: Inspection) -> None:
    plan = LayerPlan.from_select_layers(NUM_LAYERS, (NUM_LAYERS - 2, NUM_LAYERS - 1))
    page: Page = open_page(page_of(inspection, replace(SETTING, plan=plan)))
    assert "no layer comes after the last select layer" in page.find("#notice").text


def test_layers_that_do_not_attend_are_told(open_page: Any, page: Page, inspection: Inspection) -> None:
    assert "1, 4 of 6 (given)" in page.find("#facts").text
    plan = SETTING.plan.limited_to((1, 4, 5), 0, NUM_LAYERS)
    hybrid: Page = open_page(page_of(inspection, replace(SETTING, plan=plan)))
    assert "1, 4 of 6, 3 of which attend (given)" in hybrid.find("#facts").text


def test_hostile_tokens_run_nothing(open_page: Any, model: PolicyModel) -> None:
    found = generate(model, HOSTILE, 3)
    page: Page = open_page(render_page(page_data(found, [HOSTILE, *texts_of(found)[1:]], SETTING)))
    assert page.tokens()[0] == HOSTILE
    assert page.driver.execute_script("return window.injected") is None
    assert page.driver.execute_script("return document.querySelectorAll('script, img').length") == 2
    assert page.tip_at(0)[0] == f"“{HOSTILE}” · position 0 · prompt"
