"""What each key of a policy may hold."""

from __future__ import annotations

import pytest

from graphwd.errors import PolicyError
from graphwd.policy.schema import DEFAULT_FIELDS, POLICY_FIELDS, RULE_FIELDS, SELECTOR_FIELDS, all_fields
from graphwd.policy.selectors import Rank
from graphwd.policy.yaml_source import read_yaml

RANK_HINT = 'rank must be a number of dimensions, or one after >= <= == != > <; got {}; write ">=2"'
RATE_HINT = "weight_decay must be a finite number >= 0, got {}; write 0 for no decay"
PRESETS = "semantics must be one of decoupled, adamw, tfa, l2, cuda-convnet"
EXEMPT = "exempt takes roles, kernel, depthwise, embedding, bias, norm, other, or selectors"
ROLES = "role must be one of kernel, depthwise, embedding, bias, norm, other"
DTYPE_HINT = (
    "dtype must be one of bfloat16, complex128, complex64, float16, float32, float64, float8_e4m3fn, float8_e5m2"
)
NUMBER_HINT = "weight_decay must be a number, got {}; write a number, such as 5e-4"


def read(text, schema=RULE_FIELDS):
    return all_fields(read_yaml(text, "policy.yaml").document, schema, "a rule")


def error_of(text, schema=RULE_FIELDS):
    with pytest.raises(PolicyError) as error:
        read(f"# a comment\n{text}", schema)
    where, _, message = str(error.value).partition(": ")
    assert where == "policy.yaml:2"
    return message


def test_keys():
    assert set(POLICY_FIELDS) == {
        "version",
        "defaults",
        "exempt",
        "rules",
        "weight_decay",
        "unmatched",
        "fuse",
        "not_updated",
        "writers",
    }
    assert set(SELECTOR_FIELDS) == {
        "name",
        "regex",
        "path",
        "rank",
        "dtype",
        "used_by",
        "role",
        "followed_by",
        "variables",
    }
    assert set(DEFAULT_FIELDS) == {
        "weight_decay",
        "mode",
        "order",
        "scale",
        "formula",
        "peak_learning_rate",
        "tunable",
        "step",
        "semantics",
        "sparse",
        "learning_rate",
        "update",
        "gradient",
        "updates",
        "double_decay",
        "optional",
    }
    assert set(RULE_FIELDS) == {*SELECTOR_FIELDS, *DEFAULT_FIELDS}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name: '*/bias'", ("*/bias",)),
        ("name: ['*/bias', b, a]", ("*/bias", "b", "a")),
        ("regex: (gamma|beta)$", ("(gamma|beta)$",)),
        ("regex: [gamma$, beta$]", ("gamma$", "beta$")),
        ("path: layers/*", "layers/*"),
        ("rank: 2", Rank("==", 2)),
        ("rank: 0", Rank("==", 0)),
        ("rank: '2'", Rank("==", 2)),
        ("rank: '== 1'", Rank("==", 1)),
        ("rank: ' >=2 '", Rank(">=", 2)),
        ('rank: ">=2"', Rank(">=", 2)),
        ("rank: '<=2'", Rank("<=", 2)),
        ("rank: '!=2'", Rank("!=", 2)),
        ("rank: <2", Rank("<", 2)),
        ("rank: '>2'", Rank(">", 2)),
        ("dtype: bfloat16", frozenset({"bfloat16"})),
        ("dtype: [bfloat16, float16]", frozenset({"bfloat16", "float16"})),
        ("used_by: MatMul", frozenset({"MatMul"})),
        ("used_by: [MatMul, Conv2D, MatMul]", frozenset({"MatMul", "Conv2D"})),
        ("weight_decay: 0", 0.0),
        ("weight_decay: 5e-4", 5e-4),
        ("weight_decay: 5E-4", 5e-4),
        ("weight_decay: 1e3", 1000.0),
        ("weight_decay: .5", 0.5),
        ("weight_decay: 5.e-4", 5e-4),
        ("mode: decoupled", "decoupled"),
        ("mode: coupled", "coupled"),
        ("order: after", "after"),
        ("order: before", "before"),
        ("scale: none", "none"),
        ("scale: lr", "lr"),
        ("semantics: decoupled", "decoupled"),
        ("semantics: adamw", "adamw"),
        ("semantics: tfa", "tfa"),
        ("semantics: l2", "l2"),
        ("semantics: cuda-convnet", "cuda-convnet"),
        ("sparse: touched", "touched"),
        ("sparse: all", "all"),
        ("learning_rate: schedule/lr", "schedule/lr"),
        ("updates: each", "each"),
        ("updates: last", "last"),
        ("updates: first", "first"),
        ("double_decay: allow", "allow"),
        ("optional: true", True),
        ("optional: false", False),
    ],
)
def test_value(text, value):
    ((_, found),) = read(text).items()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight_decay: .nan", RATE_HINT.format("nan")),
        ("weight_decay: .inf", RATE_HINT.format("inf")),
        ("weight_decay: -.inf", RATE_HINT.format("-inf")),
        ("weight_decay: 1e400", RATE_HINT.format("inf")),
        (f"weight_decay: {'9' * 400}", RATE_HINT.format("inf")),
        ("weight_decay: -1", RATE_HINT.format("-1.0")),
        ("weight_decay: -5e-4", RATE_HINT.format("-0.0005")),
        ("weight_decay: '5e-4'", "weight_decay must be a number, got '5e-4'; write 5e-4 without quotes"),
        ("weight_decay: nan", NUMBER_HINT.format("'nan'")),
        ("weight_decay: true", NUMBER_HINT.format("True")),
        ("weight_decay:", NUMBER_HINT.format("nothing")),
        ("weight_decay: [0]", NUMBER_HINT.format("a list")),
        ("weight_decay: [0.1]", NUMBER_HINT.format("a list")),
        (f"weight_decay: {'x' * 99}", NUMBER_HINT.format("'" + "x" * 56 + "...")),
        ("name: 5", "name must be text, got 5; put it in quotes"),
        ("name:", "name must be text, got nothing; put it in quotes"),
        ("name: ''", "name must be text, got ''; put it in quotes"),
        ("path: [a]", "path must be text, got a list; put it in quotes"),
        ("regex: 1e3", "regex must be text, got 1000.0; put it in quotes"),
        ("learning_rate: 0.1", "learning_rate must be text, got 0.1; put it in quotes"),
        (
            "regex: (gamma",
            "regex '(gamma' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("regex: '*/bias'", "regex '*/bias' is not a regular expression: nothing to repeat at position 0"),
        (f"regex: {'(' * 5000}", "regex is nested too deeply to be compiled"),
        ("rank: '2..'", RANK_HINT.format("'2..'")),
        ("rank: -1", RANK_HINT.format("-1")),
        ("rank: 2.0", RANK_HINT.format("2.0")),
        ("rank: true", RANK_HINT.format("True")),
        ("rank: '=>2'", RANK_HINT.format("'=>2'")),
        ("rank: '>='", RANK_HINT.format("'>='")),
        ("rank: [2]", RANK_HINT.format("a list")),
        ("used_by: []", "used_by must name at least one op type, such as MatMul"),
        ("name: []", "name must name at least one glob, such as '*/bias'"),
        ("regex: []", "regex must name at least one regular expression, such as 'bias$'"),
        ("dtype: []", "dtype must name at least one dtype, such as float32"),
        ("role: []", "role must name at least one role, such as kernel"),
        ("name: [a, 5]", "name must be text, got 5; put it in quotes"),
        ("name: [[a]]", "name must be text, got a list; put it in quotes"),
        ("regex: [a, '[']", "regex '[' is not a regular expression: unterminated character set at position 0"),
        ("used_by: [MatMul, 1]", "used_by must be text, got 1; put it in quotes"),
        ("used_by: {MatMul: 1}", "used_by must be text, got a mapping; put it in quotes"),
        ("mode: l2", "mode must be one of decoupled, coupled; got 'l2'"),
        ("mode: [coupled]", "mode must be one of decoupled, coupled; got a list"),
        ("order: between", "order must be one of after, before; got 'between'"),
        ("scale: learning_rate", "scale must be one of none, lr, relative, corrected; got 'learning_rate'"),
        ("scale:", "scale must be one of none, lr, relative, corrected; got nothing"),
        (
            "semantics: AdamW",
            f"{PRESETS}; got 'AdamW'; did you mean 'adamw'?",
        ),
        ("semantics: cuda_convnet", f"{PRESETS}; got 'cuda_convnet'; did you mean 'cuda-convnet'?"),
        ("mode: couple", "mode must be one of decoupled, coupled; got 'couple'; did you mean 'coupled'?"),
        ("sparse: touch", "sparse must be one of touched, all; got 'touch'; did you mean 'touched'?"),
        ("role: biases", f"{ROLES}; got 'biases'; did you mean 'bias'?"),
        ("role: [kernel, 'layer norm']", f"{ROLES}; got 'layer norm'; did you mean 'norm'?"),
        ("role: everything", f"{ROLES}; got 'everything'"),
        ("dtype: fp32", f"{DTYPE_HINT}; got 'fp32'; did you mean 'float32'?"),
        ("dtype: [float32, Float16]", f"{DTYPE_HINT}; got 'Float16'; did you mean 'float16'?"),
        ("sparse: some", "sparse must be one of touched, all; got 'some'"),
        ("updates: one", "updates must be one of each, last, first; got 'one'"),
        ("double_decay: true", "double_decay must be one of allow; got True"),
        ("optional: 1", "optional must be true or false, got 1"),
        ("optional: 'true'", "optional must be true or false, got 'true'"),
        ("dtype: float", f"{DTYPE_HINT}; got 'float'"),
    ],
)
def test_refused(text, message):
    assert error_of(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2", "version must be 1, got 2"),
        ("version: true", "version must be 1, got True"),
        ("version: '1'", "version must be 1, got '1'"),
        ("version:", "version must be 1, got nothing"),
        ("rules: {name: x}", "rules must be a list, got a mapping; begin each rule with '- '"),
        ("rules:", "rules must be a list, got nothing; begin each rule with '- '"),
        ("unmatched: ignore", "unmatched must be one of error, skip; got 'ignore'"),
        ("exempt: []", "exempt must name at least one role, such as bias"),
        ("exempt: biases", f"{EXEMPT}; got 'biases'; did you mean 'bias'?"),
        ("exempt: [bias, Norms]", f"{EXEMPT}; got 'Norms'; did you mean 'norm'?"),
        ("exempt: ['*/x']", f"{EXEMPT}; got '*/x'; write {{name: \"*/x\"}} for variables by name"),
        ("exempt: [bias, 3]", f"{EXEMPT}; got 3"),
        ("exempt: [{rnak: 1}]", "unknown key 'rnak' in an exemption; did you mean 'rank'?"),
        (
            "exempt: [{}]",
            "an exemption without selectors would be of every variable; write 'weight_decay: 0' for that",
        ),
        ("weight_decay: [0.1]", NUMBER_HINT.format("a list")),
        ("defaults: 0.1", "'defaults' must be a mapping of keys to values, got 0.1"),
        ("wd: 0.1", "unknown key 'wd' in a rule; did you mean 'weight_decay'?"),
        ("exclude: [bias]", "unknown key 'exclude' in a rule; did you mean 'exempt'?"),
        ("param_groups: []", "unknown key 'param_groups' in a rule; did you mean 'rules'?"),
        (
            "lr: adam/lr",
            "unknown key 'lr' in a rule; did you mean 'learning_rate'? A field of all rules stands under 'defaults'",
        ),
        ("exempt: [{layer: head}]", "unknown key 'layer' in an exemption; did you mean 'name'?"),
        ("defaults: {weightdecay: 0}", "unknown key 'weightdecay' in 'defaults'; did you mean 'weight_decay'?"),
        (
            "defaults: {name: x}",
            "unknown key 'name' in 'defaults'; the keys here are double_decay, formula, gradient, "
            "learning_rate, mode, optional, order, peak_learning_rate, scale, semantics, sparse, step, tunable, "
            "update, updates, weight_decay",
        ),
    ],
)
def test_refused_in_a_policy(text, message):
    assert error_of(text, POLICY_FIELDS) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight-decay: 0", "unknown key 'weight-decay' in a rule; did you mean 'weight_decay'?"),
        ("Name: x", "unknown key 'Name' in a rule; did you mean 'name'?"),
        ("dytpe: float32", "unknown key 'dytpe' in a rule; did you mean 'dtype'?"),
        ("layer: dense", "unknown key 'layer' in a rule; did you mean 'name'?"),
        ("param: dense", "unknown key 'param' in a rule; did you mean 'name'?"),
        ("lambda: 0.1", "unknown key 'lambda' in a rule; did you mean 'weight_decay'?"),
        ("WD: 0.1", "unknown key 'WD' in a rule; did you mean 'weight_decay'?"),
        ("decay: 0.1", "unknown key 'decay' in a rule; did you mean 'weight_decay'?"),
        ("weight-decay-rate: 0.1", "unknown key 'weight-decay-rate' in a rule; did you mean 'weight_decay'?"),
        ("lr: adam/lr", "unknown key 'lr' in a rule; did you mean 'learning_rate'?"),
        ("ndim: 2", "unknown key 'ndim' in a rule; did you mean 'rank'?"),
        ("exclude: bias", f"unknown key 'exclude' in a rule; the keys here are {', '.join(sorted(RULE_FIELDS))}"),
        ("<<: {weight_decay: 0}", f"unknown key '<<' in a rule; the keys here are {', '.join(sorted(RULE_FIELDS))}"),
        ("- x", "a rule must be a mapping of keys to values, got a list"),
        ("x", "a rule must be a mapping of keys to values, got 'x'"),
        ("~", "a rule must be a mapping of keys to values, got nothing"),
    ],
)
def test_unknown_keys(text, message):
    assert error_of(text) == message


def test_an_error_stands_at_the_line_of_its_key():
    with pytest.raises(PolicyError, match=r"^policy\.yaml:3: optional must be"):
        read("name: x\nweight_decay: 0\noptional:\n  maybe\n")


def test_a_repetition_that_re_cannot_hold():
    assert error_of("regex: 'a{99999999999999}'").startswith("regex 'a{99999999999999}' is not a regular expression: ")


@pytest.mark.parametrize("key", ["rank", "name", "mode", "optional"])
def test_a_number_too_long_to_print(key):
    assert error_of(f"{key}: 0x{'f' * 5000}").startswith(f"{key} must be ")


def test_a_pattern_whose_meaning_will_change_is_refused():
    message = "regex '[[a]' is not a regular expression: Possible nested set at position 1"
    assert error_of("regex: '[[a]'") == message
