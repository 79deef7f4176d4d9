"""What the page of a plan says, and that it is one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import tensorflow as tf

import graphwd
from graphwd.planning.page import as_html, decays_as_html, overview_as_html

EVIL = "</script><script>alert('{{ 7 * 7 }}')</script>"


class Parsed(html.parser.HTMLParser):
    """A page, taken apart: its tags with their attributes, and the text in each element with a class or a tag."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str, str]] = []  # tag, class, text
        self._open: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "img", "rect", "path", "line", "wbr"):
            self._open.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((*self._open[-1], data))

    def of(self, tag: str, kind: str = "") -> list[str]:
        """The texts of the elements of one tag, and one class."""
        return [text for name, classes, text in self.texts if name == tag and (not kind or kind in classes.split())]


def variables(**shapes: tuple[int | None, ...]) -> list[tf.Variable]:
    return [
        tf.Variable(tf.ones([size or 2 for size in shape]), shape=shape, name=name) for name, shape in shapes.items()
    ]


def sgd(weights: list[tf.Variable], *, apply: bool = False) -> Any:
    """A step that lessens each weight by half of its gradient; the last one by an op of an optimizer if asked for."""

    @tf.function(input_signature=[tf.TensorSpec([])])
    def step(x: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = x * tf.add_n([tf.reduce_sum(weight) for weight in weights])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            if apply and weight is weights[-1]:
                tf.raw_ops.ResourceApplyGradientDescent(var=weight.handle, alpha=0.5, delta=gradient)
            else:
                weight.assign_sub(0.5 * gradient)

    return step


def policy(*rules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": 1, "rules": list(rules), **more}


def test_it_is_one_file_whose_own_code_alone_runs():
    page = graphwd.plan(sgd(variables(a=(2,))), policy({"weight_decay": 0.1})).to_html()
    parsed = Parsed(page)
    links = [attributes[name] for _, attributes in parsed.tags for name in ("src", "href") if name in attributes]
    assert links == ["#variables"]
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") or name == "style" for _, attributes in parsed.tags for name in attributes)
    assert "url(" not in page
    assert "@import" not in page
    (allowed,) = (a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    (style,), (script,) = (
        re.findall("<style>(.*?)</style>", page, re.S),
        re.findall("<script>(.*?)</script>", page, re.S),
    )
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("style", style), ("script", script))
    }
    assert allowed == (
        f"default-src 'none'; style-src 'sha256-{hashes['style']}'; script-src 'sha256-{hashes['script']}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_of_a_plan_is_markup():
    weights = [tf.Variable(tf.ones([2]), name=EVIL)]
    plan = graphwd.plan(
        sgd(weights), policy({"name": f"{EVIL}*", "weight_decay": 0.1, "optional": True}, {"weight_decay": 1e-3})
    )
    page = replace(plan, notes=(EVIL,)).to_html()
    parsed = Parsed(page)
    assert [tag for tag, _ in parsed.tags].count("script") == 2
    assert "alert('" not in page
    assert "49" not in "".join(parsed.of("li", "note"))
    assert parsed.of("li", "note") == [EVIL]
    assert parsed.of("p", "selectors") == [f"name: {EVIL}*", "every variable"]
    assert "".join(parsed.of("button", "open")) == EVIL
    (data,) = re.findall('<script type="application/json" id="details">(.*?)</script>', page, re.S)
    assert EVIL in json.loads(data)["texts"]


def test_problems_come_first_and_nothing_is_drawn():
    plan = graphwd.plan(sgd(variables(a=(2,), b=(3,))), policy(*({"name": n, "weight_decay": 0.1} for n in "bc")))
    page = plan.to_html()
    parsed = Parsed(page)
    assert plan.injections  # b could be decayed
    first, second = parsed.of("li", "problem")
    assert first.startswith("policy: no rule matches 'a';")
    assert second.startswith("policy: rules[1]: the rule 'name: c' matches no trainable variable")
    assert page.index('class="messages problems"') < page.index('class="cards"')
    assert parsed.of("h2")[0] == "2 problems: the step would not be rewritten"
    assert "template" not in [tag for tag, _ in parsed.tags]


def test_a_structure_is_drawn_once():
    def templates(step: Any) -> int:
        page = graphwd.plan(step, policy({"weight_decay": 0.1})).to_html()
        return [tag for tag, _ in Parsed(page).tags].count("template")

    assert templates(sgd(variables(a=(2,), b=(3,), c=(4, 5)))) == 1
    assert templates(sgd(variables(a=(2,), b=(3,), c=(4, 5)), apply=True)) == 2


def test_parameters_of_unknown_shape_are_not_counted_but_said():
    step = sgd(variables(a=(2, 3), b=(None, 4)))
    page = graphwd.plan(step, policy({"name": "a", "weight_decay": 0.1}, {"weight_decay": 0})).to_html()
    parsed = Parsed(page)
    assert parsed.of("strong") == ["6"]
    titles = [attributes["title"] for tag, attributes in parsed.tags if tag == "span" and attributes.get("title")]
    assert "0 parameters, and 1 variable of unknown shape" in titles
    assert "6 parameters, and 1 variable of unknown shape" in titles
    assert parsed.of("td", "number") == ["6", "?"]


def test_a_shape_that_no_tensor_has_is_unknown():
    record = graphwd.plan(sgd(variables(a=(2,), b=(3,))), policy({"weight_decay": 0})).record()
    record["variables"][0]["shape"] = [2**40] * 400
    record["variables"][1]["shape"] = [-3]
    assert Parsed(overview_as_html(record)).of("td", "number") == ["?", "?"]


def test_a_variable_of_two_traces_is_counted_once():
    first, second = variables(a=(2,), b=(3,))

    @tf.function
    def step(x: tf.Tensor, both: bool) -> None:
        weights = [first, second] if both else [first]
        with tf.GradientTape() as tape:
            loss = x * tf.add_n([tf.reduce_sum(weight) for weight in (first, second)])
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.5 * gradient)

    for both in (True, False):
        step.get_concrete_function(tf.TensorSpec([]), both)
    page = graphwd.plan(step, policy({"weight_decay": 0.1})).to_html()
    assert len(Parsed(page).of("button", "open")) == 3  # what is done to b differs
    assert '<strong title="5 parameters">5</strong> of <span title="5 parameters">5</span>' in page


def test_the_curve_of_a_schedule():
    rule = {"weight_decay": {"schedule": "linear", "from": 0.1, "to": 0.3, "steps": 100}}
    page = graphwd.plan(sgd(variables(a=(2,))), policy(rule)).to_html()
    (path,) = (attributes["d"] for _, attributes in Parsed(page).tags if attributes.get("class") == "rate")
    points = [tuple(map(float, point.split())) for point in str(path)[1:].split("L")]
    # From 48 to 546 for 112 steps, a tenth more than 101, the first after the last turn; from 120 up by 104 for 0.3.
    assert points[0] == (48, 85.3)
    assert points[-1] == (546, 16)
    assert (round(48 + 498 * 100 / 112, 1), 16) in points
    assert (round(48 + 498 * 50 / 112, 1), round(120 - 104 * 0.2 / 0.3, 1)) in points
    assert "0.1 at step 0, 0.3 at step 112" in page
    assert Parsed(page).of("text", "tick") == ["0", "0.15", "0.3", "0", "20", "40", "60", "80", "100"]


def test_the_marks_of_a_long_schedule_are_short():
    rule = {"weight_decay": {"schedule": "linear", "from": 0.1, "to": 0.3, "steps": 100_000}}
    page = graphwd.plan(sgd(variables(a=(2,))), policy(rule)).to_html()
    assert Parsed(page).of("text", "tick")[3:] == ["0", "20k", "40k", "60k", "80k", "100k"]


def test_fused_drawings_are_said_to_be_of_before():
    step = sgd(variables(a=(2,)))
    sentence = "before XLA compiles them together (fuse: xla)"
    assert sentence in graphwd.plan(step, policy({"weight_decay": 0.1}, fuse="xla")).to_html()
    assert sentence not in graphwd.plan(step, policy({"weight_decay": 0.1})).to_html()


def test_a_record_alone_makes_a_page():
    record = graphwd.plan(
        sgd(variables(a=(2,), b=(3,))), policy({"name": "a", "weight_decay": 0.1}, {"weight_decay": 0})
    ).record()
    parsed = Parsed(as_html(record))
    assert parsed.of("strong") == ["2"]
    assert parsed.of("p", "selectors") == ["policy: rules[0]", "policy: rules[1]"]


def test_the_variables_without_a_policy():
    record = graphwd.plan(sgd(variables(a=(2,), b=(3,))), policy({"weight_decay": 0})).record()
    parsed = Parsed(overview_as_html(record))
    assert parsed.of("strong") == ["5"]
    assert parsed.of("button", "open") == ["a", "b"]
    assert "outcome" not in [attributes.get("id") for _, attributes in parsed.tags]


def test_the_decays_of_a_model():
    decay = {"variable": EVIL, "rate": 0.1, "learning_rate": None, "power": 1, "formula": "l2", "where": "after",
             "rows": False, "at": "write"}  # fmt: skip
    parsed = Parsed(decays_as_html([decay]))
    assert parsed.of("td") == [EVIL, "0.1", "after the update", "write"]
    assert parsed.of("p", "lead") == ["rewritten by graphwd: 1 way to a decay, by function or signature"]


def test_a_notebook_shows_the_page_in_a_frame_that_can_reach_nothing():
    plan = graphwd.plan(sgd(variables(a=(2,))), policy({"weight_decay": 0.1}))
    ((tag, attributes),) = Parsed(plan._repr_html_()).tags
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == plan.to_html()
    assert len(repr(plan)) < 100


def test_planning_does_not_wait_for_what_makes_pages():
    program = (
        "import sys, tensorflow as tf, graphwd\n"
        "w = tf.Variable([1.0], name='w')\n"
        "step = tf.function(lambda x: w.assign_sub(x), input_signature=[tf.TensorSpec([1])])\n"
        "str(graphwd.plan(step, {'version': 1, 'weight_decay': 0.1}))\n"
        "print([name for name in ('jinja2', 'grandalf', 'graphwd.planning.page') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
