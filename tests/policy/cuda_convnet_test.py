"""cuda-convnet layer-parameter files as policies."""

from __future__ import annotations

import pathlib

import pytest

from graphwd.errors import PolicyError
from graphwd.policy.rules import Mode, Policy, Rule, Semantics, load_policy
from graphwd.policy.selectors import Rank, Selectors, Subject

COUPLED = Semantics(Mode.COUPLED)

# What the files of cuda-convnet's own examples look like.
FIRST = """\
# CIFAR-10 - layer parameter file

[conv1]
epsW=0.001
epsB=0.002
momW=0.9
momB=0.9
wc=0.004

[local3]
epsW=0.001
epsB=0.002
momW=0.9
momB=0.9
wc=0.000

[fc10]
epsW=0.0001,0.001
epsB=0.002
momW=0.5,0.9
momB=0.9
wc=.03,0.03

[logprob]
coeff=1

[rnorm1]
scale=0.00005
pow=.75
"""

# And those of cuda-convnet2.
SECOND = """\
[conv1a]
epsW=dexp[base=0.02;tgtFactor=250;numSteps=4]
epsB=dexp[base=0.04;tgtFactor=25;numSteps=2]
momW=0.9
momB=0.9
wc=0.0005
wball=0.00


[fc2048ba]
epsW=dexp[base=0.02;tgtFactor=250;numSteps=4]
epsB=dexp[base=0.04;tgtFactor=25;numSteps=2]
momW=0.9,0.9
momB=0.9
wc=0.0005,0.0005
wball=0,0
updatePeriod=1

[logprob]
coeff=1
topk=5

[dropout1a]
enable=true
keep=0.5
"""


@pytest.fixture(autouse=True)
def _directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(text):
    pathlib.Path("p.cfg").write_bytes(text.encode() if isinstance(text, str) else text)
    return load_policy("p.cfg")


def error_of(text):
    with pytest.raises(PolicyError) as error:
        load(text)
    return str(error.value)


def rates(text):
    """Of each layer rule, in order: the layer's place, its rate, whether it may match nothing."""
    rules = [rule for rule in load(text).rules if rule.selectors.any_given]
    layers = [rule for rule in rules if rule.selectors.rank is None and "bias" not in str(rule.selectors.regex)]
    return [(rule.where, rule.weight_decay, rule.optional) for rule in layers]


def test_every_rule_of_a_file():
    def rules(layer, rate, where):
        bias = "(.*/)?(bias|biases|b)$"
        return (
            Rule(Selectors(regex=(f"(^|/){layer}/{bias}",)), 0.0, COUPLED, optional=True, where=where),
            Rule(
                Selectors(regex=(f"(^|/){layer}(/(?!{bias})|$)",), rank=Rank("<=", 1)),
                0.0,
                COUPLED,
                optional=True,
                where=where,
            ),
            Rule(Selectors(regex=(f"(^|/){layer}(/|$)",)), rate, COUPLED, where=where),
        )

    assert load(FIRST) == Policy(
        rules=(
            *rules("conv1", 0.004, "p.cfg:8"),
            Rule(Selectors(regex=("(^|/)local3(/|$)",)), 0.0, COUPLED, optional=True, where="p.cfg:15"),
            *rules("fc10", 0.03, "p.cfg:22"),
            Rule(Selectors(), 0.0, COUPLED, where="p.cfg"),
        ),
        where="p.cfg",
        notes=(
            "p.cfg: ignored in conv1, local3, fc10: 'epsW', 'epsB', 'momW', 'momB': "
            "learning rate and momentum are the optimizer's",
            "p.cfg: ignored in logprob: 'coeff': graphwd sets only weight decay",
            "p.cfg: ignored in rnorm1: 'scale', 'pow': graphwd sets only weight decay",
        ),
    )


def test_a_file_of_cuda_convnet2():
    assert rates(SECOND) == [("p.cfg:6", 0.0005, False), ("p.cfg:15", 0.0005, False)]
    assert load(SECOND).notes == (
        "p.cfg: ignored in conv1a, fc2048ba: 'epsW', 'epsB', 'momW', 'momB': "
        "learning rate and momentum are the optimizer's",
        "p.cfg: ignored in conv1a, fc2048ba: 'wball': graphwd sets only weight decay",
        "p.cfg: ignored in fc2048ba: 'updatePeriod': graphwd sets only weight decay",
        "p.cfg: ignored in logprob: 'coeff', 'topk': graphwd sets only weight decay",
        "p.cfg: ignored in dropout1a: 'enable', 'keep': graphwd sets only weight decay",
    )


@pytest.mark.parametrize(
    ("name", "rank", "rate"),
    [
        ("conv1/kernel", 4, 0.004),
        ("net/conv1/kernel", 4, 0.004),
        ("tower/conv1/conv/weights", 4, 0.004),
        ("conv1", 4, 0.004),
        ("net/conv1", 2, 0.004),
        ("conv1/kernel", None, 0.004),
        ("conv1/blob", 2, 0.004),
        ("conv1/bias/kernel", 2, 0.004),
        ("b/conv1/kernel", 2, 0.004),
        ("fc10/kernel", 2, 0.03),
        # No component of the name is the layer's.
        ("conv10/kernel", 4, 0),
        ("myconv1/kernel", 4, 0),
        ("Conv1/kernel", 4, 0),
        ("net/conv1_1/kernel", 4, 0),
        ("dense/kernel", 2, 0),
        # Biases, by name or by rank.
        ("conv1/bias", 1, 0),
        ("conv1/bias", 3, 0),
        ("conv1/bias", None, 0),
        ("net/conv1/conv/biases", 3, 0),
        ("conv1/b", 2, 0),
        ("conv1/conv1/bias", 3, 0),
        ("conv1/gamma", 1, 0),
        ("net/conv1/scale", 0, 0),
        ("conv1", 1, 0),
        # Not decayed by cuda-convnet.
        ("local3/kernel", 6, 0),
        ("local3/bias", 3, 0),
    ],
)
def test_the_rate_of_a_variable(name, rank, rate):
    rule = load(FIRST).decide(Subject(name, rank, "float32"))
    assert rule is not None
    assert rule.weight_decay == rate


def test_no_rule_of_a_layer_hides_another_one():
    policy = load("[conv1]\nwc=1\n")
    bias, rank_1, layer, rest = policy.rules
    for name, rank, decides in [
        ("conv1/b", 1, bias),
        ("conv1/gamma", 1, rank_1),
        ("conv1/w", 2, layer),
        ("w", 2, rest),
    ]:
        assert policy.decide(Subject(name, rank, "float32")) is decides
    # What the first of them decides is not the second one's too: the plan would call it shadowed.
    assert not rank_1.selectors.match(Subject("conv1/bias", 1, "float32"))


@pytest.mark.parametrize("layer", ["conv32-2", "a.b", "fc(1", "x+", "a|b", "tower/conv1", "wc"])
def test_a_layer_is_matched_to_the_letter(layer):
    policy = load(f"[{layer}]\nwc=1\n")

    def rate(scope):
        return policy.decide(Subject(f"net/{scope}/kernel", 2, "float32")).weight_decay

    assert rate(layer) == 1
    assert rate("a") == rate("axb") == rate("xx") == rate("conv1") == 0


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("5e-4", 5e-4),
        ("5E-4", 5e-4),
        (".004", 0.004),
        ("+0.004", 0.004),
        ("3", 3.0),
        ("1.", 1.0),
        ("0", 0.0),
        ("-0.0", 0.0),
        ("0,0.0", 0.0),
        ("0.0005 , 5e-4,.0005", 5e-4),
    ],
)
def test_numbers(value, rate):
    assert rates(f"[a]\nwc={value}\n") == [("p.cfg:2", rate, rate == 0)]


@pytest.mark.parametrize(
    "line", ["wc = 0.5", "wc: 0.5", "WC=0.5", "wc=0.5 ; but less later", "wc\t=\t0.5\t", "wc=0.5\r"]
)
def test_the_syntax_of_config_parser(line):
    assert rates(f"; a comment\n\n[a]\n  # another\n{line}\n") == [("p.cfg:5", 0.5, False)]


def test_layers_stay_in_order_and_keep_their_lines():
    text = "[b]\n\nwc=1\n[a]\nepsW=1\n; x\nwc=2\n[c]\ncoeff=1\n[d]\nwc=3"
    assert rates(text) == [("p.cfg:3", 1.0, False), ("p.cfg:7", 2.0, False), ("p.cfg:11", 3.0, False)]


def test_interpolation():
    text = "[DEFAULT]\nbase=0.5\nall=%(base)s\n[a]\nwc=%(all)s,%(BASE)s\n[b]\nbase=2\nwc=%(base)s\n[c]\nepsW=5%\n"
    assert rates(text) == [("p.cfg:5", 0.5, False), ("p.cfg:8", 2.0, False)]
    assert "p.cfg: ignored in DEFAULT, b: 'base': graphwd sets only weight decay" in load(text).notes


def test_a_default_holds_for_every_layer_that_does_not_say_otherwise():
    text = "[fc10]\nwc=2\n[DEFAULT]\nwc=0.5\nmomW=0.9\n[conv1]\nepsW=1\n[logprob]\ncoeff=1\n"
    assert rates(text) == [("p.cfg:2", 2.0, False), ("p.cfg:4", 0.5, False), ("p.cfg:4", 0.5, True)]
    assert load(text).notes[0] == (
        "p.cfg: 'wc' of [DEFAULT] for logprob: may match nothing, as no key there is of weights"
    )


def test_a_layer_with_weights_and_without_a_rate_is_noted():
    text = "[conv1]\nepsW=1\nwd=0.5\n[conv2]\nwc=1\n[logprob]\ncoeff=1\n"
    assert rates(text) == [("p.cfg:5", 1.0, False)]
    assert load(text).notes[0] == "p.cfg: no 'wc' in conv1: not decayed"


def test_a_long_list_is_cut():
    text = "".join(f"[a{i}]\nwc=1\nepsW=1\n" for i in range(8))
    assert load(text).notes == (
        "p.cfg: ignored in a0, a1, a2, a3, a4, a5 and 2 more: 'epsW': learning rate and momentum are the optimizer's",
    )


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "nothing"),
        ("0.oo4", "'0.oo4'"),
        ("nan", "'nan'"),
        ("inf", "'inf'"),
        ("1e999", "'1e999'"),
        ("-0.004", "'-0.004'"),
        ("1_0", "'1_0'"),
        ("٣", "'٣'"),
        ("0.004 # less", "'0.004 # less'"),
        ("0.004,", "nothing"),
        ("0.1,x", "'x'"),
        ("const[base=0.1]", "'const[base=0.1]'"),
        ("${rate}", "'${rate}'"),
        ('""', "'\"\"'"),
        ("9" * 50 + "x", f"'{'9' * 37}...'"),
    ],
)
def test_rates_that_are_none(value, found):
    message = f"p.cfg:3: wc of [a] must be a finite number >= 0, got {found}; write wc=0 for no decay"
    assert error_of(f"[a]\nepsW=1\nwc={value}\n") == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: the file has no section; write '[conv1]', the layer, and 'wc=0.0005' under it"),
        ("# x\n", "1: the file has no section; write '[conv1]', the layer, and 'wc=0.0005' under it"),
        ("[DEFAULT]\nwc=1\n", "1: the file has no section; write '[conv1]', the layer, and 'wc=0.0005' under it"),
        ("# x\nwc=1\n[a]\n", "2: the line is in no section; begin with a layer, as '[conv1]'"),
        ("[a]\nwc=1\n\n[b]\nwc=1\n[a]\n", "6: duplicate section [a]; keep one"),
        ("[a]\nwc=1\nmomW=1\nWC=2\n", "4: duplicate key 'wc' in [a]; keep one"),
        ("[a]\nepsW=1\nepsW=1\n", "3: duplicate key 'epsw' in [a]; keep one"),
        ("[a]\nwc=1\nwc 0.1\n", "3: neither '[layer]' nor 'key=value': 'wc 0.1'"),
        ("[a]\nwc=1\n[b\nepsW=1\n", "3: neither '[layer]' nor 'key=value': '[b'"),
        ("[a]\n=1\n", "2: neither '[layer]' nor 'key=value': '=1'"),
        ("[]\nwc=1\n", "1: the line is in no section; begin with a layer, as '[conv1]'"),
        ("\ufeff[a]\nwc=1\n", "1: the file begins with a byte order mark; save it as UTF-8 without one"),
        ("[a]\nwc=\x001\n", r"2: not text: it holds the control character '\x00'"),
        ("[a\x1b]\nwc=1\n", r"1: not text: it holds the control character '\x1b'"),
        (
            "[a]\nwc=0.1,0.2\n",
            "2: wc of [a] differs between the layer's inputs (0.1,0.2), whose weights cannot be told apart by name; "
            "write a YAML policy (see graphwd help policy)",
        ),
        *(
            (text, f"{line}: the line is indented; begin each layer and key in the first column")
            for text, line in [
                ("[a]\nepsW=1\n\n  wc=1\n[b]\nwc=1\n", 4),
                ("[a]\nwc=1\n [b]\nwc=1\n", 3),
                ("[DEFAULT]\n\twc=1\n[b]\nwc=1\n", 2),
                ("  # a comment\n [a]\nwc=1\n", 2),
            ]
        ),
        (
            "[data]\nType=data\ndataIdx=0\n\n[conv1]\ninputs=data\n",
            "2: 'Type' defines a layer, and no layer has a 'wc': this is the layer definition file; give the layer "
            "parameter file",
        ),
        (
            "[conv1]\ninitW=0.1\ninputs=data\n",
            "3: 'inputs' defines a layer, and no layer has a 'wc': this is the layer definition file; give the layer "
            "parameter file",
        ),
    ],
)
def test_malformed_files(text, message):
    assert error_of(text) == f"p.cfg:{message}"


def test_no_layer_has_a_rate():
    assert error_of("[a]\nepsW=1\n") == "p.cfg: no layer has a 'wc'; write 'wc=0' under a layer for no decay"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("wc=%(rate)s", "interpolation key 'rate'"),
        ("wc=5%", "'%' must be followed by '%' or '('"),
        ("wc=%(x", "bad interpolation variable reference '%(x'"),
        ("wc=%(wc)s", "Recursion limit exceeded"),
        (f"wc=%(x)s\nx={'%(y)s' * 10}\ny={'%(z)s' * 10}\nz=1", "more than 100 references"),
    ],
)
def test_interpolation_that_fails(text, why):
    message = error_of(f"[a]\n{text}\n")
    assert message.startswith("p.cfg:2: wc of [a] cannot be interpolated: ")
    assert why in message
    assert "\n" not in message


def test_an_interpolation_bomb_ends_in_an_error():
    lines = [f"x{i}={f'%(x{i + 1})s' * 100}" for i in range(9)]
    assert "more than 100 references" in error_of("\n".join(["[a]", "wc=%(x0)s", *lines, "x9=1"]))


def test_not_utf_8():
    assert error_of(b"[a]\n# \xff\n") == "p.cfg: not UTF-8 at byte 6; save the file as UTF-8 text"


def test_files_that_cannot_be_read():
    pathlib.Path("folder.cfg").mkdir()
    for name, why in [("missing.cfg", "No such file or directory"), ("folder.cfg", "Is a directory")]:
        with pytest.raises(PolicyError) as error:
            load_policy(name)
        assert str(error.value) == f"{name}: cannot be read: {why}"
