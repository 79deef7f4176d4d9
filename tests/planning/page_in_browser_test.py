"""The page of a plan in a browser: Debian's Chromium, driven by selenium."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

import graphwd

HOSTILE = "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'>"
POLICY = {
    "version": 1,
    "rules": [
        {"name": "net/bias", "weight_decay": 0},
        {"name": "net/kernel", "weight_decay": 0.01},
        {"weight_decay": 0.5},
    ],
}
SHAPES = {"net/kernel": (3, 4), "net/bias": (4,), HOSTILE: (2, 50)}  # 12, 4 and 100 parameters


def step() -> Any:
    """A step that updates its kernel in a function of its own, and the others where they stand."""
    kernel, bias, hostile = (tf.Variable(tf.ones(shape), name=name) for name, shape in SHAPES.items())
    move = tf.function(lambda gradient: kernel.assign_sub(0.5 * gradient))

    @tf.function(input_signature=[tf.TensorSpec([2, 3])])
    def train(inputs: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs = tf.nn.relu(inputs @ kernel + bias) @ tf.ones([4, 2])
            loss = tf.reduce_sum(outputs @ hostile)
        kernels, biases, others = tape.gradient(loss, [kernel, bias, hostile])
        move(kernels)
        bias.assign_sub(0.5 * biases)
        hostile.assign_sub(0.5 * others)

    return train


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a short path, for the names of sockets have no room for a long one."""
    with tempfile.TemporaryDirectory(prefix="graphwd", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for switch in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage", "--window-size=1280,1000", f"--user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "no_proxy": "localhost,127.0.0.1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        service = webdriver.ChromeService("/usr/bin/chromedriver", env=environment)
        driver = webdriver.Chrome(options, service)
        yield driver
        driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    path.write_text(graphwd.plan(step(), POLICY).to_html(), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Page:
    """The page, opened anew."""

    browser: webdriver.Chrome

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def names(self) -> list[str]:
        """The names in the rows that are shown, in their order."""
        return [row.get_dom_attribute("data-name") or "" for row in self.all("tr.variable") if row.is_displayed()]

    def opener(self, name: str) -> WebElement:
        return next(button for button in self.all("button.open") if button.text == name)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)


@pytest.fixture
def page(browser: webdriver.Chrome, file: Path) -> Iterator[Page]:
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(file.as_uri())
    yield Page(browser)
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    assert requests == [file.as_uri()]


def test_what_is_asked_first_stands_on_top(page):
    assert page.one("h1").text == "112 of 116 parameters are decayed"
    assert page.one(".card.decayed").text.splitlines() == [
        "Decayed",
        "112 parameters, 2 variables",
        "policy: rules[1]",
        "12 1 variable",
        "policy: rules[2]",
        "100 1 variable",
    ]
    assert page.one(".card.others").text.splitlines() == [
        "Not decayed",
        "4 parameters, 1 variable",
        "exempt, policy: rules[0]",
        "4 1 variable",
    ]
    assert [rule.text.splitlines() for rule in page.all(".rule")] == [
        ["name: net/bias", "policy: rules[0]", "not decayed", "4 1 variable"],
        ["name: net/kernel", "policy: rules[1]", "0.01 after update", "12 1 variable"],
        ["every variable", "policy: rules[2]", "0.5 after update", "100 1 variable"],
    ]


def test_filters_and_search(page):
    assert page.names() == ["net/kernel", "net/bias", HOSTILE]
    Select(page.one("#outcome")).select_by_visible_text("exempt")
    assert page.names() == ["net/bias"]
    assert page.one("#shown").text == "1 of 3 rows"
    Select(page.one("#outcome")).select_by_visible_text("decayed")
    Select(page.one("#rule")).select_by_visible_text("policy: rules[1] – name: net/kernel")
    assert page.names() == ["net/kernel"]
    page.one(".clear").click()
    page.one("#search").send_keys("net 3×4")
    assert page.names() == ["net/kernel"]
    page.one("#search").clear()
    page.one("#search").send_keys("ONERROR")
    assert page.names() == [HOSTILE]
    page.one("#search").clear()
    page.one("#search").send_keys(Keys.ENTER)  # which sends no form
    Select(page.one("#role")).select_by_visible_text("bias")
    assert page.names() == ["net/bias"]


def test_sorting_says_what_it_sorted_by(page):
    def sorted_by():
        return [head.get_dom_attribute("aria-sort") for head in page.all("th")]

    assert sorted_by() == ["none"] * 7
    button = page.one("button.sort[data-key=size]")
    button.click()  # the largest first
    assert page.names() == [HOSTILE, "net/kernel", "net/bias"]
    assert sorted_by() == ["none", "none", "descending", "none", "none", "none", "none"]
    button.send_keys(Keys.ENTER)
    assert page.names() == ["net/bias", "net/kernel", HOSTILE]
    assert sorted_by() == ["none", "none", "ascending", "none", "none", "none", "none"]
    page.one("button.sort[data-key=name]").click()
    assert page.names() == [HOSTILE, "net/bias", "net/kernel"]
    assert sorted_by() == ["ascending", "none", "none", "none", "none", "none", "none"]


def shown(page: Page) -> list[tuple[str, str]]:
    """The op and the title of each box that is seen."""
    boxes = [box for box in page.all(".detail .box") if box.is_displayed()]
    return sorted(
        (
            str(page.run("return arguments[0].querySelector('.op').textContent", box)),
            str(page.run("return arguments[0].querySelector('title').textContent", box)),
        )
        for box in boxes
    )


def test_an_update_is_drawn_before_and_after_within_its_functions(page):
    page.opener("net/kernel").click()
    assert page.opener("net/kernel").get_dom_attribute("aria-expanded") == "true"
    nests = [each.text for each in page.all(".detail .nest > p")]
    assert nests[0] == "the step"
    assert nests[1].startswith("StatefulPartitionedCall [f] runs __inference_")
    assert len(nests) == 2
    injected = [
        ("AssignVariableOp", "graphwd/decay_AssignSubVariableOp"),
        ("Mul", "graphwd/scaled_AssignSubVariableOp"),
        ("ReadVariableOp", "graphwd/read_AssignSubVariableOp"),
        ("constant", "0.99"),
    ]
    after = shown(page)
    assert set(injected) <= set(after)
    assert ("weight", "net/kernel") in after
    assert ("constant", "0.5") in after
    page.one(".switch input[value=before]").send_keys(Keys.SPACE)
    assert shown(page) == sorted(set(after) - set(injected))
    page.one(".switch input[value=before]").send_keys(Keys.ARROW_RIGHT)
    assert shown(page) == after


def test_rows_open_and_close_by_keyboard(page):
    def focused():
        return page.browser.switch_to.active_element

    page.run("arguments[0].focus()", page.all("button.sort")[-1])
    focused().send_keys(Keys.TAB)
    assert focused() == page.opener("net/kernel")
    focused().send_keys(Keys.TAB)
    button = page.opener("net/bias")
    assert focused() == button
    assert page.run("return getComputedStyle(arguments[0]).outlineStyle", button) == "solid"
    button.send_keys(Keys.ENTER)
    assert button.get_dom_attribute("aria-expanded") == "true"
    detail = page.one(f"#{button.get_dom_attribute('aria-controls')}")
    assert detail.is_displayed()
    assert "AssignSubVariableOp" in detail.text
    assert page.all(".detail .drawing") == []  # it is not decayed
    button.send_keys(Keys.ENTER)
    assert not detail.is_displayed()
    assert button.get_dom_attribute("aria-expanded") == "false"


def test_a_hostile_name_is_shown_and_does_nothing(page):
    page.opener(HOSTILE).click()
    assert ("weight", HOSTILE) in shown(page)
    assert page.run("return window.ran") is None
    assert page.all("img") == []
    assert len(page.all("script")) == 2  # the data and the code


def test_the_policy_of_the_page_forbids_other_scripts(page):
    page.run("const s = document.createElement('script'); s.textContent = 'window.ran = 3'; document.body.append(s)")
    assert page.run("return window.ran") is None
    (entry,) = page.browser.get_log("browser")
    assert "Content Security Policy" in entry["message"]


@pytest.mark.parametrize("width", [320, 640, 1280])
def test_nothing_lies_beside_the_screen(page, width):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        for name in ("net/kernel", HOSTILE):
            page.opener(name).click()
        assert page.run("return innerWidth") == width
        root = "document.documentElement"
        assert page.run(f"return {root}.scrollWidth <= {root}.clientWidth")
        assert page.run("return document.querySelector('.scroll').scrollWidth") >= 180  # the drawing scrolls in itself
        assert all(button.is_displayed() for button in page.all("button.sort"))
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_frame_of_a_notebook_works_and_reaches_nothing_around_it(browser, tmp_path):
    notebook = tmp_path / "notebook.html"
    frame = graphwd.plan(step(), POLICY)._repr_html_()
    notebook.write_text(f"<!doctype html><title>notebook</title><h1>A cell</h1>{frame}", encoding="utf-8")
    browser.get(notebook.as_uri())
    browser.switch_to.frame(0)
    try:
        inside = Page(browser)
        inside.opener("net/kernel").click()
        assert inside.one(".detail .drawing").is_displayed()
        reach = "try { return parent.document.title } catch (error) { return error.name }"
        assert inside.run(reach) == "SecurityError"
    finally:
        browser.switch_to.default_content()


def luminance(colour: str) -> float:
    """The relative luminance of a colour as WCAG defines it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.opener("net/kernel").click()
    ground = luminance(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert (ground > 0.5) == (scheme == "light")
    for text, behind in [
        ("h1", "body"),
        ("main .soft", ".card"),
        (".box .op", ".box rect"),
        (".box .name", ".box rect"),
        (".injected .op", ".injected rect"),
        (".kicker", "body"),
    ]:
        texts, grounds = ("fill", "fill") if text.startswith((".box", ".inj")) else ("color", "backgroundColor")
        front, back = (
            luminance(page.run(f"return getComputedStyle(document.querySelector(arguments[0])).{name}", selector))
            for selector, name in ((text, texts), (behind, grounds))
        )
        contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
        assert contrast >= 4.5, (text, contrast)
