"""YAML text and Python mappings to located values."""

from __future__ import annotations

import math

import pytest

from graphwd.errors import PolicyError
from graphwd.policy.mistakes import Mistakes
from graphwd.policy.yaml_source import Located, from_mapping, read_yaml


def plain(item):
    if isinstance(item.value, dict):
        return {key: plain(value) for key, value in item.value.items()}
    return [plain(each) for each in item.value] if isinstance(item.value, tuple) else item.value


def read(text, source="policy.yaml"):
    found = read_yaml(text, source)
    mistakes = Mistakes()
    found.tell(mistakes)
    mistakes.check()
    return found.document


def read_scalar(text):
    value = read(f"key: {text}\n").value["key"].value
    return type(value), value


def error_of(text):
    with pytest.raises(PolicyError) as error:
        read(text, "policy.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("5E-4", 5e-4),
        ("+5e-4", 5e-4),
        ("5.e-4", 5e-4),
        ("5.0e-4", 5e-4),
        (".5", 0.5),
        (".5e1", 5.0),
        ("1e3", 1000.0),
        ("1e400", math.inf),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("-1e-3", -1e-3),
        ("0.004", 0.004),
        ("7", 7),
        ("0x10", 16),
        ("true", True),
        ("TRUE", True),
        ("False", False),
        ("'no'", "no"),
        ("!!str no", "no"),
        ("y", "y"),
        ("0", 0),
        ("-0", 0),
        ("+7", 7),
        ("0xfF", 255),
        ("0.0", 0.0),
        ("00.5", 0.5),
        (".Inf", math.inf),
        ("+.inf", math.inf),
        ("'010'", "010"),
        ('"1:30"', "1:30"),
        ("!!str 1_000", "1_000"),
        ("1_a", "1_a"),
        ("a:30", "a:30"),
        ("2001-01-01 10:00:00", "2001-01-01 10:00:00"),
        ("=", "="),
        ("~", None),
        ("", None),
        ('"5e-4"', "5e-4"),
        ("'5'", "5"),
        ("5e", "5e"),
        (".", "."),
        ("nan", "nan"),
        ("2001-01-01", "2001-01-01"),
        ("a b", "a b"),
        ("!!str 5", "5"),
        ("!!int '5'", 5),
        ("!!float 5", 5.0),
    ],
)
def test_scalar(text, value):
    assert read_scalar(text) == (type(value), value)


def test_nan_is_read_as_nan():
    kind, value = read_scalar(".nan")
    assert kind is float
    assert math.isnan(value)


def test_every_value_knows_the_line_of_its_key():
    text = "a: 1\n\n# comment\nb:\n  - c: x\n\n    d:\n      2\n  -\n    3\n"
    assert read(text, "p.yaml") == Located(
        {
            "a": Located(1, "p.yaml:1", 1),
            "b": Located(
                (
                    Located({"c": Located("x", "p.yaml:5", 5), "d": Located(2, "p.yaml:7", 7)}, "p.yaml:5", 5),
                    Located(3, "p.yaml:10", 10),
                ),
                "p.yaml:4",
                4,
            ),
        },
        "p.yaml:1",
        1,
    )


def test_an_alias_repeats_its_anchor():
    assert plain(read("a: &x [1, 2]\nb: *x\n", "p.yaml")) == {"a": [1, 2], "b": [1, 2]}


def test_windows_line_ends_and_a_byte_order_mark():
    item = read("\ufeffa: 1\r\nb: 2\r\n", "p.yaml")
    assert plain(item) == {"a": 1, "b": 2}
    assert item.value["b"].line == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy.yaml:1: the policy is empty; write at least 'version: 1' and 'rules:'"),
        ("# nothing\n", "policy.yaml:1: the policy is empty; write at least 'version: 1' and 'rules:'"),
        ("a: 1\nb: 2\na: 3\n", "policy.yaml:3: duplicate key 'a', first given on line 1; keep one"),
        ("r:\n- a: 1\n  'a': 1\n", "policy.yaml:3: duplicate key 'a', first given on line 2; keep one"),
        ("a: 1\n? [b]\n: 2\n", "policy.yaml:2: keys must be text; quote the key if it is meant literally"),
        ("a: 1\nb: *nope\n", "policy.yaml:2: not YAML: found undefined alias 'nope'"),
        ("a: 1\nb: [1\n", "policy.yaml:3: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- 1\n", "policy.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 1\n", "policy.yaml:2: not YAML: but found another document"),
        ("a: 1\nb: !!int x\n", "policy.yaml:2: 'x' is not of type int"),
        ("a: !!bool maybe\n", "policy.yaml:1: 'maybe' is not of type bool"),
        (f"a: {'1' * 5000}\n", f"policy.yaml:1: '{'1' * 37}...' is not of type int"),
        ("b: 0\na: &x\n  - 1\n  - *x\n", "policy.yaml:2: this alias contains itself; write the values out"),
        ("&x {a: *x}\n", "policy.yaml:1: this alias contains itself; write the values out"),
    ],
)
def test_malformed(text, message):
    assert error_of(text) == message


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("!!python/object:os.system {}", "tag:yaml.org,2002:python/object:os.system"),
        ("!!python/object/apply:os.getcwd []", "tag:yaml.org,2002:python/object/apply:os.getcwd"),
        ("!!python/name:os.system ''", "tag:yaml.org,2002:python/name:os.system"),
        ("!!binary aGk=", "tag:yaml.org,2002:binary"),
        ("!!set {a}", "tag:yaml.org,2002:set"),
        ("!custom x", "!custom"),
    ],
)
def test_tags_that_name_types_are_refused(tag, name):
    message = f"policy.yaml:2: the tag '{name}' is not allowed; a policy holds plain values only"
    assert error_of(f"a: 1\nb: {tag}\n") == message


@pytest.mark.parametrize("value", ['!!int ""', '!!float ""', '!!float "_"'])
def test_a_tagged_number_without_digits(value):
    assert error_of(f"a: 1\nb: {value}\n").startswith("policy.yaml:2: ")


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("010", "an octal number to some readers of YAML, not to others; write it in decimal"),
        ("-010", "an octal number to some readers of YAML, not to others; write it in decimal"),
        ("09", "an octal number to some readers of YAML, not to others; write it in decimal"),
        ("0o10", "an octal number to some readers of YAML, not to others; write it in decimal"),
        ("1:30", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("1:30.5", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("1_000", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("1_0.5", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("0b101", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("0x_1f", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("+0x1f", "a number to YAML 1.1 and text to YAML 1.2; write it in decimal"),
        ("no", "true or false to YAML 1.1 and text to YAML 1.2; write true or false"),
        ("YES", "true or false to YAML 1.1 and text to YAML 1.2; write true or false"),
        ("On", "true or false to YAML 1.1 and text to YAML 1.2; write true or false"),
        ("off", "true or false to YAML 1.1 and text to YAML 1.2; write true or false"),
    ],
)
def test_what_the_versions_of_yaml_read_differently_is_refused(text, reading):
    assert error_of(f"a: 1\nb: {text}\n") == f"policy.yaml:2: {text} is {reading}, or put it in quotes if it is text"


@pytest.mark.parametrize(
    "value", ["!!bool yes", "!!int 010", "!!int 1:30", "!!float 1_0.5", "!!int 1_000", "!!float '٣'"]
)
def test_a_tag_does_not_bring_yaml_1_1_back(value):
    assert error_of(f"a: 1\nb: {value}\n").startswith("policy.yaml:2: ")


def test_a_sexagesimal_number_too_large_for_a_float():
    assert error_of(f"a: {':'.join(['1'] * 250)}.0\n").startswith("policy.yaml:1: ")


@pytest.mark.parametrize("character", ["\x07", "\x00", "\ufffe"])
def test_a_character_that_yaml_forbids(character):
    assert error_of(f"a: 1\nb: {character}\n").startswith("policy.yaml:2: not YAML: ")


@pytest.mark.parametrize("text", ["[" * 5000, "[" * 5000 + "]" * 5000, "a: " + "{a: " * 5000 + "}" * 5000])
def test_deep_nesting(text):
    assert error_of(text) == "policy.yaml:1: nested too deeply to be a policy"


def test_an_alias_bomb_is_converted_once_a_node():
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    root = read("\n".join(lines), "policy.yaml").value
    assert len(root) == 60
    first, second, third = root["a59"].value
    assert first is second is third
    assert first.value is root["a58"].value


def test_all_that_is_no_value_of_a_policy_is_told_at_once():
    text = "a: 010\nb:\n- !x 1\n- [1:30, 2]\na: &c [*c, no]\n? [d]\n: &e !y 1\nf: *e\n"
    assert [line.split(";")[0] for line in error_of(text).splitlines()] == [
        "policy.yaml:1: 010 is an octal number to some readers of YAML, not to others",
        "policy.yaml:3: the tag '!x' is not allowed",
        "policy.yaml:4: 1:30 is a number to YAML 1.1 and text to YAML 1.2",
        "policy.yaml:5: duplicate key 'a', first given on line 1",
        "policy.yaml:6: keys must be text",
        "policy.yaml:7: the tag '!y' is not allowed",
    ]


def test_from_mapping():
    mapping = {"a": [1, {"b": None}], "c": (True, 0.5, "x")}
    assert from_mapping(mapping, "policy") == Located(
        {
            "a": Located(
                (
                    Located(1, "policy: a[0]"),
                    Located({"b": Located(None, "policy: a[1].b")}, "policy: a[1]"),
                ),
                "policy: a",
            ),
            "c": Located(
                (Located(True, "policy: c[0]"), Located(0.5, "policy: c[1]"), Located("x", "policy: c[2]")),
                "policy: c",
            ),
        },
        "policy",
    )


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": [{1: 2}]}, "policy: a[0]: keys must be text, got 1"),
        ({"a": [{1}]}, "policy: a[0]: a policy cannot hold a set; use text, numbers, lists and mappings"),
        ({"a": b"x"}, "policy: a: a policy cannot hold a bytes; use text, numbers, lists and mappings"),
    ],
)
def test_from_mapping_refuses(mapping, message):
    with pytest.raises(PolicyError) as error:
        from_mapping(mapping, "policy")
    assert str(error.value) == message


def test_a_mapping_that_contains_itself_is_refused():
    mapping = {}
    mapping["a"] = mapping
    with pytest.raises(PolicyError, match=r"^policy: "):
        from_mapping(mapping, "policy")
