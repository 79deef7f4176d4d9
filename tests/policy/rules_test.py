"""Policies from files and from mappings."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import pytest

from graphwd.errors import PolicyError
from graphwd.policy.roles import Role
from graphwd.policy.rules import Mode, Order, Policy, Rule, Scale, Semantics, Sparse, Updates, as_policy, load_policy
from graphwd.policy.schema import RULE_FIELDS
from graphwd.policy.selectors import Rank, Selectors, Subject

AFTER = Semantics(Mode.DECOUPLED, Order.AFTER, Scale.NONE)
ADAMW = Semantics(Mode.DECOUPLED, Order.BEFORE, Scale.LR)
TFA = Semantics(Mode.DECOUPLED, Order.BEFORE, Scale.NONE)
AFTER_LR = Semantics(Mode.DECOUPLED, Order.AFTER, Scale.LR)
COUPLED = Semantics(Mode.COUPLED, Order.AFTER, Scale.NONE)

FULL = """\
version: 1
defaults:
  semantics: adamw
  sparse: all
rules:
  - name: "*/bias"
    weight_decay: 0
  - regex: "(gamma|beta)$"
    path: layers/*
    rank: ">=2"
    dtype: float32
    used_by: [MatMul, Conv2D]
    weight_decay: 5e-4
    semantics: tfa
    sparse: touched
    learning_rate: schedule
    updates: last
    double_decay: allow
    optional: true
  - weight_decay: 0.004
unmatched: skip
"""


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text):
    pathlib.Path("policy.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_policy("policy.yaml")


def error_of(read, argument):
    with pytest.raises(PolicyError) as error:
        read(argument)
    return str(error.value)


def meaning_of(defaults, rule):
    mapping = {"version": 1, "defaults": defaults, "rules": [{"weight_decay": 0.1, **rule}]}
    return Policy.from_dict(mapping).rules[0].semantics


def test_every_field():
    assert load(FULL) == Policy(
        rules=(
            Rule(Selectors(name=("*/bias",)), 0.0, ADAMW, Sparse.ALL, where="policy.yaml:6"),
            Rule(
                Selectors(
                    regex=("(gamma|beta)$",),
                    path="layers/*",
                    rank=Rank(">=", 2),
                    dtype=frozenset({"float32"}),
                    used_by=frozenset({"MatMul", "Conv2D"}),
                ),
                5e-4,
                TFA,
                Sparse.TOUCHED,
                learning_rate="schedule",
                updates=Updates.LAST,
                allow_double_decay=True,
                optional=True,
                where="policy.yaml:8",
            ),
            Rule(Selectors(), 0.004, ADAMW, Sparse.ALL, where="policy.yaml:20"),
        ),
        skip_unmatched=True,
        where="policy.yaml",
    )


def test_what_is_not_given():
    policy = load("version: 1\nrules:\n  - weight_decay: 0.1\n")
    rule = Rule(Selectors(), 0.1, AFTER, Sparse.TOUCHED, None, Updates.ONE, False, False, "policy.yaml:3")
    assert policy == Policy((rule,), False, "policy.yaml")


def test_no_rules():
    assert load("version: 1\nrules: []\n") == Policy((), False, "policy.yaml")


def test_the_short_form():
    text = """\
version: 1
defaults: {semantics: adamw, tunable: rate, sparse: all}
exempt:
  - bias
  - {name: ["*/x", "*/y"], rank: 2}
rules:
  - {name: z, weight_decay: 0.1, tunable: other}
weight_decay: 0.05
"""
    policy = load(text)
    assert policy.rules == (
        Rule(Selectors(role=frozenset({Role.BIAS})), 0.0, ADAMW, optional=True, where="policy.yaml:4"),
        Rule(Selectors(name=("*/x", "*/y"), rank=Rank("==", 2)), 0.0, ADAMW, optional=True, where="policy.yaml:5"),
        Rule(Selectors(name=("z",)), 0.1, ADAMW, Sparse.ALL, tunable="other", where="policy.yaml:7"),
        Rule(Selectors(), 0.05, ADAMW, Sparse.ALL, tunable="rate", where="policy.yaml:8"),
    )
    assert [rule.exempts for rule in policy.rules] == [True, True, False, False]


def test_the_short_form_from_a_mapping():
    held = type("Variable", (), {"assign": None, "name": "v", "dtype": None, "handle": None})()
    mapping = {"version": 1, "exempt": ["bias", {"variables": [held]}], "weight_decay": lambda step: 0.1}
    bias, listed, rest = Policy.from_dict(mapping).rules
    assert bias == Rule(Selectors(role=frozenset({Role.BIAS})), 0.0, optional=True, where="policy: exempt[0]")
    assert (listed.where, str(listed.selectors), listed.weight_decay) == ("policy: exempt[1]", "variables: v", 0.0)
    assert (rest.where, rest.selectors, rest.schedule is None) == ("policy: weight_decay", Selectors(), False)


@pytest.mark.parametrize("key", ["exempt: bias", "exempt: [bias]", "exempt: {role: bias}", "exempt: [{role: [bias]}]"])
def test_one_exemption(key):
    rule, last = load(f"version: 1\n{key}\nweight_decay: 5e-4\n").rules
    assert rule == Rule(Selectors(role=frozenset({Role.BIAS})), 0.0, optional=True, where="policy.yaml:2")
    assert last == Rule(Selectors(), 5e-4, where="policy.yaml:3")


@pytest.mark.parametrize("text", ["version: 1\n", "version: 1\nexempt: [bias]\n", "version: 1\nunmatched: skip\n"])
def test_a_policy_that_decays_nothing(text):
    message = "policy.yaml:1: there is neither 'weight_decay' nor 'rules'; write 'weight_decay: 0.05'"
    assert error_of(load, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight_decay: 1.5", "3: weight_decay must be below 1 where it multiplies the weight by 1 - weight_decay"),
        ("weight_decay: 0.1\nexempt: [biases]", "4: exempt takes roles"),
        ("weight_decay: much\nexempt: norm", "3: weight_decay must be a number, got 'much'"),
        ("weight_decay: {schedule: cosin}", "3: schedule must be one of"),
        ("weight_decay: 0.1\ndefaults: {scale: relative}", "3: 'scale: relative' needs the largest learning rate"),
        (
            "weight_decay: 0.1\ndefaults: {tunable: t}\nrules: [{name: x, weight_decay: 0.2}]",
            "3: the rule shares 'tunable: t' with policy.yaml:5, but not its weight_decay",
        ),
    ],
)
def test_malformed_short_forms(text, message):
    told = error_of(load, f"# short\nversion: 1\n{text}\n")
    assert told.startswith(f"policy.yaml:{message}")
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(("writers", "several"), [("one", False), ("several", True)])
def test_writers(writers, several):
    assert load(f"version: 1\nrules: []\nwriters: {writers}\n").several_writers is several
    assert not load("version: 1\nrules: []\n").several_writers


@pytest.mark.parametrize(("unmatched", "skip"), [("error", False), ("skip", True)])
def test_unmatched(unmatched, skip):
    assert load(f"version: 1\nrules: []\nunmatched: {unmatched}\n").skip_unmatched is skip


@pytest.mark.parametrize("name", ["policy.yaml", "policy.yml"])
def test_file_and_mapping_give_equal_policies_but_for_where(name):
    rules = "rules:\n  - {name: a/*, rank: '>=2', weight_decay: 5e-4}\n  - weight_decay: 0\n"
    pathlib.Path(name).write_text(f"version: 1\n{rules}unmatched: skip\n", encoding="utf-8")
    mapping = {
        "version": 1,
        "rules": [{"name": "a/*", "rank": ">=2", "weight_decay": 5e-4}, {"weight_decay": 0}],
        "unmatched": "skip",
    }
    read, given = load_policy(pathlib.Path(name)), Policy.from_dict(mapping)
    assert [rule.where for rule in read.rules] == [f"{name}:3", f"{name}:4"]
    assert [rule.where for rule in given.rules] == ["policy: rules[0]", "policy: rules[1]"]
    assert (read.where, given.where) == (name, "policy")

    def without_where(policy):
        rules = tuple(dataclasses.replace(rule, where="") for rule in policy.rules)
        return dataclasses.replace(policy, rules=rules, where="")

    assert without_where(read) == without_where(given)


@pytest.mark.parametrize(
    ("preset", "meaning"),
    [("decoupled", AFTER), ("adamw", ADAMW), ("tfa", TFA), ("l2", COUPLED), ("cuda-convnet", COUPLED)],
)
def test_presets(preset, meaning):
    assert meaning_of({}, {"semantics": preset}) == meaning
    assert meaning_of({"semantics": preset}, {}) == meaning


@pytest.mark.parametrize(
    ("defaults", "rule", "meaning"),
    [
        ({}, {}, AFTER),
        ({}, {"mode": "coupled"}, COUPLED),
        ({}, {"order": "before"}, TFA),
        ({}, {"scale": "lr"}, AFTER_LR),
        ({}, {"order": "before", "scale": "lr"}, ADAMW),
        ({"order": "before"}, {"scale": "lr"}, ADAMW),
        ({"order": "before"}, {"order": "after"}, AFTER),
        ({"semantics": "adamw"}, {"order": "after"}, AFTER_LR),
        ({"semantics": "adamw"}, {"scale": "none"}, TFA),
        ({"semantics": "adamw"}, {"mode": "coupled"}, COUPLED),
        ({"semantics": "adamw"}, {"mode": "decoupled"}, ADAMW),
        ({"semantics": "l2"}, {"mode": "decoupled"}, AFTER),
        ({"semantics": "l2"}, {"mode": "decoupled", "order": "before"}, TFA),
        ({"semantics": "l2"}, {"semantics": "adamw"}, ADAMW),
        ({"semantics": "adamw"}, {"semantics": "tfa"}, TFA),
        ({"order": "before", "scale": "lr"}, {"semantics": "decoupled"}, AFTER),
        ({"order": "before", "scale": "lr"}, {"semantics": "l2"}, COUPLED),
        ({"order": "before"}, {"mode": "coupled"}, COUPLED),
        ({"mode": "coupled"}, {"semantics": "adamw"}, ADAMW),
    ],
)
def test_a_rule_overrides_the_meaning_in_the_defaults(defaults, rule, meaning):
    assert meaning_of(defaults, rule) == meaning


def test_a_rule_overrides_every_other_field_of_the_defaults():
    defaults = {
        "weight_decay": 0.1,
        "sparse": "all",
        "learning_rate": "a",
        "updates": "each",
        "double_decay": "allow",
        "optional": True,
    }
    own = {"weight_decay": 0, "sparse": "touched", "learning_rate": "b", "updates": "first", "optional": False}
    policy = Policy.from_dict({"version": 1, "defaults": defaults, "rules": [{"name": "x"}, own]})
    assert policy.rules == (
        Rule(Selectors(name=("x",)), 0.1, AFTER, Sparse.ALL, "a", Updates.EACH, True, True, where="policy: rules[0]"),
        Rule(Selectors(), 0.0, AFTER, Sparse.TOUCHED, "b", Updates.FIRST, True, False, where="policy: rules[1]"),
    )


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("name: x", "the rule has no 'weight_decay'; write 'weight_decay: 0' for none"),
        ("{}", "the rule has no 'weight_decay'; write 'weight_decay: 0' for none"),
        (
            "weight_decay: 1",
            "weight_decay must be below 1 where it multiplies the weight by 1 - weight_decay, got 1; "
            "write 0.01 for 1 %",
        ),
        (
            "{weight_decay: 4, semantics: tfa}",
            "weight_decay must be below 1 where it multiplies the weight by 1 - weight_decay, got 4; "
            "write 0.01 for 1 %",
        ),
        (
            "{weight_decay: 0, semantics: l2, mode: coupled}",
            "'semantics' already says mode; give the preset or the fields, not both",
        ),
        (
            "{weight_decay: 0, semantics: tfa, scale: lr, order: after}",
            "'semantics' already says order, scale; give the preset or the fields, not both",
        ),
        (
            "{weight_decay: 0, mode: coupled, order: before}",
            "'order' says nothing where mode is coupled; leave it out",
        ),
        (
            "{weight_decay: 0, mode: coupled, scale: none}",
            "'scale' says nothing where mode is coupled; leave it out",
        ),
        ("{weight_decay: '5e-4'}", "weight_decay must be a number, got '5e-4'; write 5e-4 without quotes"),
        ("{weight_decay: .nan}", "weight_decay must be a finite number >= 0, got nan; write 0 for no decay"),
        ("{weight_dcay: 0}", "unknown key 'weight_dcay' in a rule; did you mean 'weight_decay'?"),
        ("x", "a rule must be a mapping of keys to values, got 'x'"),
    ],
)
def test_malformed_rules(rule, message):
    text = f"version: 1\nrules:\n  - weight_decay: 0\n  - {rule}\nunmatched: skip\n"
    assert error_of(load, text) == f"policy.yaml:4: {message}"


@pytest.mark.parametrize("meaning", [{}, {"semantics": "tfa"}, {"order": "before"}])
def test_a_rate_below_1_is_allowed_unscaled(meaning):
    policy = Policy.from_dict({"version": 1, "rules": [{"weight_decay": 0.999, **meaning}]})
    assert policy.rules[0].weight_decay == 0.999


@pytest.mark.parametrize(
    "meaning", [{"mode": "coupled"}, {"semantics": "cuda-convnet"}, {"scale": "lr"}, {"semantics": "adamw"}]
)
def test_a_rate_of_1_or_more_is_allowed_where_something_scales_it(meaning):
    rule = {"weight_decay": 2, **meaning}
    assert Policy.from_dict({"version": 1, "rules": [rule]}).rules[0].weight_decay == 2.0
    policy = Policy.from_dict({"version": 1, "defaults": meaning, "rules": [{"weight_decay": 2}]})
    assert policy.rules[0].weight_decay == 2.0


def test_a_rate_that_the_defaults_scale_is_refused_where_the_rule_does_not():
    mapping = {"version": 1, "defaults": {"semantics": "adamw"}, "rules": [{"weight_decay": 2, "scale": "none"}]}
    assert "weight_decay must be below 1" in error_of(Policy.from_dict, mapping)


def test_a_coupled_preset_in_the_defaults_refuses_an_order_in_a_rule():
    text = "version: 1\ndefaults: {semantics: l2}\nrules:\n  - {weight_decay: 0, order: before}\n"
    message = "policy.yaml:4: 'order' says nothing where mode is coupled; leave it out"
    assert error_of(load, text) == message


@pytest.mark.parametrize("rules", ["[]", "\n  - weight_decay: 0"])
@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ("{mode: coupled, order: before}", "'order' says nothing where mode is coupled; leave it out"),
        ("{semantics: l2, order: before}", "'semantics' already says order; give the preset or the fields, not both"),
    ],
)
def test_contradictory_defaults_are_refused_where_they_stand(defaults, message, rules):
    text = f"version: 1\ndefaults: {defaults}\nrules: {rules}\n"
    assert error_of(load, text) == f"policy.yaml:2: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: the policy is empty; write at least 'version: 1' and 'rules:'"),
        ("\n---\n", "3: a policy must be a mapping of keys to values, got nothing"),
        ("- weight_decay: 0\n", "1: a policy must be a mapping of keys to values, got a list"),
        ("# no version\nrules: []\n", "2: 'version' is missing; write 'version: 1'"),
        ("version: 2\n", "1: version must be 1, got 2"),
        ("version: true\n", "1: version must be 1, got True"),
        ("version: 1\nrule: []\n", "2: unknown key 'rule' in a policy; did you mean 'rules'?"),
        (
            "version: 1\nsemantics: l2\n",
            "2: unknown key 'semantics' in a policy; a field of all rules stands under 'defaults'",
        ),
        ("version: 1\nrules: []\nversion: 1\n", "3: duplicate key 'version', first given on line 1; keep one"),
        ("version: 1\nrules:\n- {weight_decay: 0\n", "4: not YAML: expected ',' or '}', but got '<stream end>'"),
        ("version: 1\nrules:\n\t- x\n", "3: not YAML: found character '\\t' that cannot start any token"),
        ("version: 1\n---\nversion: 1\n", "2: not YAML: but found another document"),
        ("version: 1\nrules: &r\n  - *r\n", "2: this alias contains itself; write the values out"),
        (
            "version: 1\nrules: !!python/object/apply:os.mkdir [ran]\n",
            "2: the tag 'tag:yaml.org,2002:python/object/apply:os.mkdir' is not allowed; "
            "a policy holds plain values only",
        ),
        (
            "version: 1\nrules:\n  - regex: '['\n    weight_decay: 0\n",
            "3: regex '[' is not a regular expression: unterminated character set at position 0",
        ),
        (
            "version: 1\nrules:\n  - name: x\n    weight_decay: -1\n",
            "4: weight_decay must be a finite number >= 0, got -1.0; write 0 for no decay",
        ),
    ],
)
def test_malformed_files(text, message):
    assert error_of(load, text) == f"policy.yaml:{message}"
    assert [path.name for path in pathlib.Path().iterdir()] == ["policy.yaml"]


def test_an_alias_bomb_ends_in_an_error():
    lines = ["version: 1", "rules:", "  - &a0 [x]", *(f"  - &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    told = error_of(load, "\n".join(lines)).splitlines()
    assert told == [f"policy.yaml:{i}: a rule must be a mapping of keys to values, got a list" for i in range(3, 63)]


def test_all_mistakes_of_a_file_are_told_in_the_order_of_its_lines():
    text = """\
version: 1
unmatched: skipp
defaults:
  spares: all
  updates: {all: true}
rules:
  - name: [a, 3]
    regex: ["(", b, ")"]
    weight_decay: 0.1
  - weigth_decay: 0.1
    mode: couple
  - x
  - name: "*/bias"
    weight_decay: 0
fuse: true
"""
    with pytest.raises(PolicyError) as error:
        load(text)
    assert str(error.value).splitlines() == [
        "policy.yaml:2: unmatched must be one of error, skip; got 'skipp'; did you mean 'skip'?",
        "policy.yaml:4: unknown key 'spares' in 'defaults'; did you mean 'sparse'?",
        "policy.yaml:5: updates must be one of each, last, first; got a mapping",
        "policy.yaml:7: name must be text, got 3; put it in quotes",
        "policy.yaml:8: regex '(' is not a regular expression: missing ), unterminated subpattern at position 0",
        "policy.yaml:8: regex ')' is not a regular expression: unbalanced parenthesis at position 0",
        "policy.yaml:10: unknown key 'weigth_decay' in a rule; did you mean 'weight_decay'?",
        "policy.yaml:11: mode must be one of decoupled, coupled; got 'couple'; did you mean 'coupled'?",
        "policy.yaml:12: a rule must be a mapping of keys to values, got 'x'",
        "policy.yaml:15: fuse must be one of none, xla; got True",
    ]
    assert [line for line, _ in error.value.mistakes] == [2, 4, 5, 7, 8, 8, 10, 11, 12, 15]


def test_what_fields_say_together_is_told_of_every_rule_that_can_be_read():
    text = """\
version: 1
rules:
  - {weight_decay: 0, nmae: x}
  - name: x
  - peak_learning_rate: 1
    weight_decay: 3
    step: x
  - {weight_decay: 0.1, tunable: t}
  - {weight_decay: 0, semantics: l2, mode: coupled}
  - {weight_decay: 0.2, tunable: t}
"""
    assert [line.split(";")[0] for line in error_of(load, text).splitlines()] == [
        "policy.yaml:3: unknown key 'nmae' in a rule",
        "policy.yaml:4: the rule has no 'weight_decay'",
        "policy.yaml:5: 'peak_learning_rate' says nothing without 'scale: relative' or 'scale: corrected'",
        "policy.yaml:6: weight_decay must be below 1 where it multiplies the weight by 1 - weight_decay, got 3",
        "policy.yaml:7: 'step' says nothing where weight_decay is no schedule",
        "policy.yaml:9: 'semantics' already says mode",
        "policy.yaml:10: the rule shares 'tunable: t' with policy.yaml:8, but not its weight_decay",
    ]


def test_what_wrong_defaults_would_say_is_not_guessed():
    text = "version: 1\ndefaults: {weight_decay: x}\nrules:\n  - name: a\n  - {name: b, optional: 1}\n"
    assert error_of(load, text).splitlines() == [
        "policy.yaml:2: weight_decay must be a number, got 'x'; write a number, such as 5e-4",
        "policy.yaml:5: optional must be true or false, got 1",
    ]


def test_what_an_alias_repeats_is_told_once():
    text = "version: 1\nrules:\n  - &r {name: 1, weight_decay: 0}\n  - *r\n"
    assert error_of(load, text) == "policy.yaml:3: name must be text, got 1; put it in quotes"


def test_what_is_wrong_with_the_yaml_hides_no_other_mistake():
    text = """\
version: 1
exempt: [no, biass]
rules:
  - weight_decay: yes
    nmae: x
    optional: on
  - name: y
    weight_decay: {schedule: linear, from: 010, to: 0, steps: 1_000}
    name: z
  - {rank: 1:30, weight_decay: -1}
  - {formula: {name: huber, delta: off}, weight_decay: !x 1}
  - {nmae: 0x_1, weight_decay: 0}
unmatched: skipp
weight_decay: no
"""
    with pytest.raises(PolicyError) as error:
        load(text)
    words, number = "true or false to YAML 1.1 and text to YAML 1.2", "a number to YAML 1.1 and text to YAML 1.2"
    octal = "an octal number to some readers of YAML, not to others"
    ranks = "rank must be a number of dimensions, or one after >= <= == != > <"
    assert str(error.value).splitlines() == [
        f"policy.yaml:2: no is {words}; write true or false, or put it in quotes if it is text",
        "policy.yaml:2: exempt takes roles, kernel, depthwise, embedding, bias, norm, other, or selectors; got 'biass'"
        "; did you mean 'bias'?",
        f"policy.yaml:4: weight_decay must be a number, but yes is {words}; write a number in digits",
        "policy.yaml:5: unknown key 'nmae' in a rule; did you mean 'name'?",
        f"policy.yaml:6: on is {words}; write true or false, or put it in quotes if it is text",
        f"policy.yaml:8: from must be a number, but 010 is {octal}; write it in decimal",
        f"policy.yaml:8: 1_000 is {number}; write it in decimal, or put it in quotes if it is text",
        "policy.yaml:9: duplicate key 'name', first given on line 7; keep one",
        f"policy.yaml:10: {ranks}, but 1:30 is {number}; write it in decimal",
        "policy.yaml:10: weight_decay must be a finite number >= 0, got -1.0; write 0 for no decay",
        f"policy.yaml:11: delta must be a number, but off is {words}; write a number in digits",
        "policy.yaml:11: the tag '!x' is not allowed; a policy holds plain values only",
        "policy.yaml:12: unknown key 'nmae' in a rule; did you mean 'name'?",
        f"policy.yaml:12: 0x_1 is {number}; write it in decimal, or put it in quotes if it is text",
        "policy.yaml:13: unmatched must be one of error, skip; got 'skipp'; did you mean 'skip'?",
        f"policy.yaml:14: weight_decay must be a number, but no is {words}; write a number in digits",
    ]


def test_no_more_mistakes_than_anyone_reads():
    told = error_of(load, "version: 1\nrules:\n" + "  - x\n" * 10**4).splitlines()
    assert told[99:] == [
        "policy.yaml:102: a rule must be a mapping of keys to values, got 'x'",
        "these are the first 100 mistakes; there may be more",
    ]


def test_no_more_mistakes_in_one_rule_than_anyone_reads():
    keys = "".join(f"    x{i}: 0\n" for i in range(10**4))
    told = error_of(load, f"version: 1\nrules:\n  -\n{keys}").splitlines()
    assert told[99].startswith("policy.yaml:103: unknown key 'x99' in a rule; ")
    assert told[100:] == ["these are the first 100 mistakes; there may be more"]


def test_a_mapping_with_several_mistakes():
    mapping = {"rules": [{"name": 1, "weight_decay": 0}, {"weight_decay": -1, "x\ny": 1}]}
    keys = ", ".join(sorted(RULE_FIELDS))
    assert error_of(Policy.from_dict, mapping).splitlines() == [
        "policy: 'version' is missing; write 'version: 1'",
        "policy: rules[0].name: name must be text, got 1; put it in quotes",
        "policy: rules[1].weight_decay: weight_decay must be a finite number >= 0, got -1.0; write 0 for no decay",
        f"policy: rules[1].'x\\ny': unknown key 'x\\ny' in a rule; the keys here are {keys}",
    ]


def test_not_utf_8():
    message = "policy.yaml: not UTF-8 at byte 13; save the file as UTF-8 text"
    assert error_of(load, b"version: 1\n# \xff\n") == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.yaml", "missing.yaml: cannot be read: No such file or directory"),
        ("folder.yaml", "folder.yaml: cannot be read: Is a directory"),
        ("policy.json", "policy.json: not a policy file; its name must end in .yaml, .yml or .cfg"),
        ("yaml", "yaml: not a policy file; its name must end in .yaml, .yml or .cfg"),
        (
            "version: 1\nweight_decay: 0.1\n",
            "a text of 2 lines is no path of a policy file; write it to a .yaml file, or give what yaml.safe_load "
            "makes of it",
        ),
    ],
)
def test_files_that_cannot_be_read(name, message):
    pathlib.Path("folder.yaml").mkdir()
    assert error_of(load_policy, name) == message


def test_what_may_never_end_is_not_read():
    os.mkfifo("pipe.yaml")
    os.symlink("/dev/zero", "zero.cfg")
    with open("large.yaml", "wb") as file:
        file.truncate(2**40)
    for name in ("pipe.yaml", "zero.cfg"):
        assert error_of(load_policy, name) == f"{name}: is a pipe or a device; save the policy as a file"
    message = "large.yaml: is larger than 16 MiB, which no policy is; name the policy file"
    assert error_of(load_policy, "large.yaml") == message


def test_a_path_that_no_file_can_have():
    assert error_of(load_policy, "a\0.yaml").startswith(r"'a\x00.yaml': cannot be read")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"version": 1, "rules": [{"weight_decay": 0}, {"weight_decay": "0"}]},
            "policy: rules[1].weight_decay: weight_decay must be a number, got '0'; write 0 without quotes",
        ),
        (
            {"version": 1, "rules": [{"used_by": ["MatMul", 1], "weight_decay": 0}]},
            "policy: rules[0].used_by[1]: used_by must be text, got 1; put it in quotes",
        ),
        (
            {"version": 1, "rules": [{"weight_decay": 0}, {"name": "x"}]},
            "policy: rules[1]: the rule has no 'weight_decay'; write 'weight_decay: 0' for none",
        ),
        (
            {"version": 1, "rules": [{"weight_decay": 10**400}]},
            "policy: rules[0].weight_decay: weight_decay must be a finite number >= 0, got inf; write 0 for no decay",
        ),
        ({"version": 2}, "policy: version: version must be 1, got 2"),
        (
            {"version": 1, "defaults": {"sparse": 1}},
            "policy: defaults.sparse: sparse must be one of touched, all; got 1",
        ),
        ({"version": 1, "rulez": []}, "policy: rulez: unknown key 'rulez' in a policy; did you mean 'rules'?"),
        ({}, "policy: 'version' is missing; write 'version: 1'"),
        ({1: 2}, "policy: keys must be text, got 1"),
        ([], "policy: a policy must be a mapping of keys to values, got a list"),
    ],
)
def test_malformed_mappings(mapping, message):
    assert error_of(Policy.from_dict, mapping) == message


def test_the_first_rule_that_matches_decides():
    policy = Policy.from_dict(
        {
            "version": 1,
            "rules": [
                {"name": "*/bias", "weight_decay": 0},
                {"regex": "conv", "weight_decay": 0.1},
                {"name": "*", "rank": ">=2", "weight_decay": 0.2},
            ],
        }
    )
    names = {"a/conv/bias": 1, "a/conv/kernel": 4, "a/b/dense/kernel": 2, "scale": 1}
    decided = {name: policy.decide(Subject(name, rank, "float32")) for name, rank in names.items()}
    assert {name: rule and rule.where for name, rule in decided.items()} == {
        "a/conv/bias": "policy: rules[0]",
        "a/conv/kernel": "policy: rules[1]",
        "a/b/dense/kernel": "policy: rules[2]",
        "scale": None,
    }


def test_as_policy():
    policy = load("version: 1\nrules: []\n")
    assert as_policy(policy) is policy
    assert as_policy("policy.yaml") == as_policy(pathlib.Path("policy.yaml")) == policy
    assert as_policy({"version": 1, "rules": []}) == Policy((), where="policy")
    assert error_of(as_policy, 5) == "a policy must be a Policy, a path or a mapping, got a int"
