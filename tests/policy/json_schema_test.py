"""The JSON schema of a policy: it is that of the table, and takes what the reader takes."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import pytest

import graphwd
from graphwd.policy.json_schema import schema_text, written_schema
from graphwd.policy.kinds import Kind
from graphwd.policy.schema import POLICY_FIELDS, RULE_FIELDS
from graphwd.policy.yaml_source import read_yaml
from tests.helpers.pages import policies_in

SCHEMA = json.loads(written_schema())
FILES = (resources.files("graphwd") / "docs").iterdir()
PAGES = sorted(file.name.removesuffix(".md") for file in FILES if file.name.endswith(".md"))
DOCUMENTED = [
    # A part of a policy is shown where the rest does not matter.
    text if text.startswith(("version:", "#")) else f"version: 1\n{text}"
    for page in PAGES
    for text in policies_in(page, None)
]


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


TYPES = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "number": is_number,
    "integer": lambda value: is_number(value) and value == int(value),
}


def same(value, constant):
    return value == constant and isinstance(value, bool) is isinstance(constant, bool)


# Each keyword says whether a value of the type that it is about is right; of another type any value is.
KEYWORDS = {
    "type": lambda value, name, _: TYPES[name](value),
    "enum": lambda value, words, _: any(same(value, word) for word in words),
    "const": lambda value, word, _: same(value, word),
    "minimum": lambda value, least, _: not is_number(value) or value >= least,
    "exclusiveMinimum": lambda value, bound, _: not is_number(value) or value > bound,
    "maximum": lambda value, most, _: not is_number(value) or value <= most,
    "minLength": lambda value, least, _: not isinstance(value, str) or len(value) >= least,
    "pattern": lambda value, pattern, _: not isinstance(value, str) or re.search(pattern, value) is not None,
    "minItems": lambda value, least, _: not isinstance(value, list) or len(value) >= least,
    "items": lambda value, schema, _: not isinstance(value, list) or all(valid(item, schema) for item in value),
    "minProperties": lambda value, least, _: not isinstance(value, dict) or len(value) >= least,
    "required": lambda value, keys, _: not isinstance(value, dict) or set(keys) <= set(value),
    "properties": lambda value, schemas, _: (
        not isinstance(value, dict) or all(valid(value[key], schemas[key]) for key in schemas if key in value)
    ),
    "additionalProperties": lambda value, _, schema: (
        not isinstance(value, dict) or set(value) <= {*schema["properties"]}
    ),
    "anyOf": lambda value, schemas, _: any(valid(value, schema) for schema in schemas),
    "$ref": lambda value, name, _: valid(value, SCHEMA["$defs"][name.removeprefix("#/$defs/")]),
    "if": lambda value, schema, whole: valid(value, schema) or valid(value, whole["else"]),
}
IGNORED = {"$schema", "$defs", "title", "description", "else"}


def valid(value, schema=SCHEMA):
    """Whether a value is right by the keywords that graphwd uses; another keyword is an error."""
    return all(KEYWORDS[key](value, schema[key], schema) for key in schema if key not in IGNORED)


def parsed(text):
    """The document as an editor has it, which reads YAML 1.2."""

    def plain(item):
        if isinstance(item.value, tuple):
            return [plain(each) for each in item.value]
        return {key: plain(each) for key, each in item.value.items()} if hasattr(item.value, "items") else item.value

    return plain(read_yaml(text, "policy.yaml").document)


def loaded(text, tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    return graphwd.load_policy(path)


def test_the_file_is_what_the_table_gives():
    assert written_schema() == schema_text(), "run tools/write_policy_schema.py"


def test_every_field_is_described_in_one_sentence():
    for field in (*POLICY_FIELDS.values(), *RULE_FIELDS.values()):
        assert isinstance(field.kind, Kind)
        assert re.fullmatch(r"[A-Z].*\.", field.about)
        assert ". " not in field.about
    assert set(SCHEMA["properties"]) == set(POLICY_FIELDS)
    assert set(SCHEMA["$defs"]["rule"]["properties"]) == set(RULE_FIELDS) - {"variables"}


@pytest.mark.parametrize("text", DOCUMENTED)
def test_the_policies_of_the_documentation(text, tmp_path):
    assert loaded(text, tmp_path).rules
    assert valid(parsed(text))


def test_the_policy_of_the_example(tmp_path):
    text = (Path(__file__).parents[2] / "tools" / "examples" / "digits" / "policy.yaml").read_text(encoding="utf-8")
    assert loaded(text, tmp_path).rules
    assert valid(parsed(text))


RULES = "version: 1\nrules: [{}]\n"


@pytest.mark.parametrize(
    "text",
    [
        "weight_decay: 0.05",
        "weight_decay: {schedule: piecewise, boundaries: [1, 2], values: [0.1, 0, 0.2]}\nexempt: bias",
        "weight_decay: {schedule: exponential, from: 0.1, to: 0.2, steps: 5, warmup_steps: 0}",
        "exempt: [bias, norm, {name: '*/x'}, {regex: [a, b], rank: '>= 2'}]\nweight_decay: 0",
        "defaults: {weight_decay: 0.1}\nrules: [{name: x}, {}]",
        "rules: []",
        "rules: [{weight_decay: 1e-3, name: [a, b], dtype: [float32, bfloat16], role: [kernel], used_by: MatMul}]",
        "rules: [{weight_decay: 0, rank: 2}, {weight_decay: 0, rank: <2}, {weight_decay: 0, rank: '!= 1'}]",
        "rules: [{weight_decay: 0, formula: {name: huber, delta: 0.1}}, {weight_decay: 0, formula: {name: l1}}]",
        "rules: [{weight_decay: 0.1, tunable: größe, followed_by: norm, optional: true, double_decay: allow}]",
        "rules: [{weight_decay: 1, scale: corrected, peak_learning_rate: 1e-3}]\nunmatched: skip\nfuse: xla",
    ],
)
def test_right(text, tmp_path):
    text = f"version: 1\n{text}\n"
    loaded(text, tmp_path)
    assert valid(parsed(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight_decay: 0.1", "'version' is missing"),
        ("version: 2\nweight_decay: 0.1", "version must be 1"),
        ("version: true\nweight_decay: 0.1", "version must be 1"),
        ("version: 1", "there is neither 'weight_decay' nor 'rules'"),
        ("version: 1\nexempt: [bias]", "there is neither 'weight_decay' nor 'rules'"),
        ("version: 1\nweight_decay: '0.1'", "weight_decay must be a number"),
        ("version: 1\nweight_decay: -1", "weight_decay must be a finite number >= 0"),
        ("version: 1\nweight_decay: true", "weight_decay must be a number"),
        ("version: 1\nweight_decay: 0.1\nexempt: []", "exempt must name at least one role"),
        ("version: 1\nweight_decay: 0.1\nexempt: [biases]", "exempt takes roles"),
        ("version: 1\nweight_decay: 0.1\nexempt: [{}]", "an exemption without selectors"),
        ("version: 1\nweight_decay: 0.1\nexempt: [{optional: true}]", "unknown key 'optional' in an exemption"),
        ("version: 1\nweight_decay: 0.1\nsemantics: adamw", "unknown key 'semantics' in a policy"),
        ("version: 1\nweight_decay: {schedule: cosine, from: 1, to: 0}", "the schedule cosine needs 'steps'"),
        ("version: 1\nweight_decay: {schedule: cosin, from: 1, to: 0, steps: 1}", "schedule must be one of"),
        ("version: 1\nweight_decay: {schedule: linear, from: 1, to: 0, steps: 0}", "steps must be a whole number >= 1"),
        (
            "version: 1\nweight_decay: {schedule: exponential, from: 0, to: 1, steps: 9}",
            "from must be a finite number > 0",
        ),
        ("version: 1\nrules: {weight_decay: 0}", "rules must be a list"),
        ("version: 1\nrules: [{name: x}]", "the rule has no 'weight_decay'"),
        ("version: 1\ndefaults: {sparse: all}\nrules: [{name: x}]", "the rule has no 'weight_decay'"),
        ("version: 1\ndefaults: {name: x}\nrules: []", "unknown key 'name' in 'defaults'"),
        ("version: 1\nrules: [x]", "a rule must be a mapping"),
        (RULES.format("{weight_decay: 0, weightdecay: 1}"), "unknown key 'weightdecay' in a rule"),
        (RULES.format("{weight_decay: 0, name: 5}"), "name must be text"),
        (RULES.format("{weight_decay: 0, name: ''}"), "name must be text"),
        (RULES.format("{weight_decay: 0, name: []}"), "name must name at least one glob"),
        (RULES.format("{weight_decay: 0, name: [[a]]}"), "name must be text"),
        (RULES.format("{weight_decay: 0, path: [a]}"), "path must be text"),
        (RULES.format("{weight_decay: 0, rank: '=>2'}"), "rank must be a number of dimensions"),
        (RULES.format("{weight_decay: 0, rank: -1}"), "rank must be a number of dimensions"),
        (RULES.format("{weight_decay: 0, rank: 1000}"), "rank must be a number of dimensions"),
        (RULES.format("{weight_decay: 0, dtype: fp32}"), "dtype must be one of"),
        (RULES.format("{weight_decay: 0, role: [bias, biases]}"), "role must be one of"),
        (RULES.format("{weight_decay: 0, mode: couple}"), "mode must be one of"),
        (RULES.format("{weight_decay: 0, optional: 1}"), "optional must be true or false"),
        (RULES.format("{weight_decay: 0, tunable: a b}"), "tunable must be a name"),
        (RULES.format("{weight_decay: 0, formula: hubr}"), "formula must be one of"),
        (RULES.format("{weight_decay: 0, formula: huber}"), "the formula huber needs 'delta'"),
        (RULES.format("{weight_decay: 0, formula: {name: l1, delta: 1}}"), "the formula l1 has no option 'delta'"),
        (RULES.format("{weight_decay: 0, formula: {name: norm, target: 0}}"), "target must be a finite number > 0"),
        (
            RULES.format("{weight_decay: 0, peak_learning_rate: 0, scale: relative}"),
            "peak_learning_rate must be above 0",
        ),
        (RULES.format("{weight_decay: 0, variables: [v]}"), "variables lists the variables themselves"),
        ("[]", "a policy must be a mapping"),
    ],
)
def test_malformed(text, message, tmp_path):
    with pytest.raises(graphwd.PolicyError, match=re.escape(f": {message}")):
        loaded(text, tmp_path)
    assert not valid(parsed(text))
