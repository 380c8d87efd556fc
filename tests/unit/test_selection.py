"""The `patches=` grammar: no input gives anything but a selection or one clear error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolo_patches.errors import PatchesError
from yolo_patches.selection import Option, Spec, parse, spell

KNOWN = {
    "val-batch": Spec(True, {"batch": Option(int, "", minimum=1)}),
    "linear-lr": Spec(
        True,
        {
            "max_scale": Option(float, "", default=8.0, minimum=1),
            "rule": Option(str, "", default="linear", choices=("linear", "sqrt")),
        },
    ),
    "torchrun": Spec(False),
}
DEVICES = {"async-val": Spec(False, {"device": Option(str, ""), "more": Option(int, "")})}


def chosen(spec):
    return {name: dict(options) for name, options in parse(spec, KNOWN).chosen.items()}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", {"val-batch": {}, "linear-lr": {}, "torchrun": {}}),
        ("default", {"val-batch": {}, "linear-lr": {}}),
        ("none", {}),
        ("val-batch", {"val-batch": {}}),
        ("all,-linear-lr", {"val-batch": {}, "torchrun": {}}),
        (" all , -linear-lr ", {"val-batch": {}, "torchrun": {}}),
        ("default,torchrun,-val-batch", {"linear-lr": {}, "torchrun": {}}),
        ("none,val-batch:batch=4", {"val-batch": {"batch": 4}}),
        ("linear-lr:max_scale=4:rule=sqrt", {"linear-lr": {"max_scale": 4.0, "rule": "sqrt"}}),
        ("val-batch:batch=4,val-batch:batch=8", {"val-batch": {"batch": 8}}),
        ("val-batch:batch=4,val-batch", {"val-batch": {}}),
        ("val-batch:batch=4,none", {}),
        ("val-batch:strict=True", {"val-batch": {"strict": True}}),
        (["all", "-linear-lr,-torchrun"], {"val-batch": {}}),
        ([], {}),
        ({}, {}),
        ({"val-batch": {"batch": 4, "strict": False}}, {"val-batch": {"batch": 4, "strict": False}}),
        ({"default": True, "val-batch": False, "linear-lr": {"max_scale": 2}}, {"linear-lr": {"max_scale": 2}}),
        (None, {}),
        (False, {}),
        (True, {"val-batch": {}, "linear-lr": {}}),
    ],
)  # fmt: skip
def test_valid(spec, expected):
    assert chosen(spec) == expected


@pytest.mark.parametrize("spec", ["all,-torchrun", {"val-batch": {"batch": 4, "strict": True}}, ["default"], None])
def test_text_says_the_same_again(spec):
    first = parse(spec, KNOWN)
    again = parse(first.text, KNOWN)
    assert (again.text, again.chosen) == (first.text, first.chosen)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("al", ["unknown patch 'al'", "did you mean 'all'", "val-batch", "none"]),
        ("vall-batch", ["unknown patch 'vall-batch'", "did you mean 'val-batch'"]),
        ("", ["empty item"]),
        ("all,", ["empty item"]),
        ("all,,none", ["empty item"]),
        ("-val-batch", ["'-val-batch'", "not selected", "nothing"]),
        ("torchrun,-val-batch", ["'-val-batch'", "not selected", "torchrun"]),
        ("all,-nope", ["unknown patch 'nope'"]),
        ("-all", ["unknown patch 'all'"]),
        ("all:batch=3", ["unknown patch 'all'"]),
        ("val-batch:size=3", ["unknown option 'size'", "batch", "strict"]),
        ("val-batch:batc=3", ["did you mean 'batch'"]),
        ("val-batch:batch", ["not of the form option=value"]),
        ("val-batch:", ["not of the form option=value"]),
        ("val-batch:batch=", ["'' is not valid for val-batch:batch", "an int of at least 1"]),
        ("val-batch:batch=0", ["'0'", "an int of at least 1"]),
        ("val-batch:batch=1.5", ["'1.5'", "an int of at least 1"]),
        ("val-batch:strict=maybe", ["true or false"]),
        ("linear-lr:max_scale=nan", ["a number of at least 1"]),
        ("linear-lr:max_scale=inf", ["a number of at least 1"]),
        ("linear-lr:rule=cubic", ["one of linear, sqrt"]),
        (3, ["3 is a int", "give a string"]),
        ([3], ["item 3 is a int"]),
        ({3: True}, ["item 3 is a int"]),
        ({"val-batch": 3}, ["'val-batch': 3 is not valid"]),
        ({"val-batch": {"batch": None}}, ["'None'", "an int of at least 1"]),
    ],
)
def test_bad_input(spec, words):
    with pytest.raises(PatchesError) as error:
        parse(spec, KNOWN, "patches")
    message = str(error.value)
    assert message.startswith("patches: ")
    for word in words:
        assert word in message


names = st.sampled_from(["all", "default", "none", "val-batch", "linear-lr", "-val-batch", "-torchrun"])
pieces = st.sampled_from(["batch=4", "batch=x", "max_scale=2", "rule=sqrt", "strict=true", "=", ":", "", "x=y"])
items = st.one_of(
    names,
    st.builds(lambda name, options: ":".join([name, *options]), names, st.lists(pieces, max_size=3)),
    st.text(max_size=12),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=3), names),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.integers(), inner, max_size=3),
)  # fmt: skip


@given(st.one_of(st.lists(items, max_size=5).map(",".join), st.lists(items, max_size=5), values))
@settings(max_examples=1500, deadline=None)
def test_any_input_gives_a_selection_or_the_error(spec):
    try:
        selection = parse(spec, KNOWN)
    except PatchesError as error:
        assert str(error)
        return
    assert set(selection.chosen) <= set(KNOWN)
    assert parse(selection.text, KNOWN).chosen == selection.chosen
    assert parse(",".join(spell(selection.chosen)) or "none", KNOWN).chosen == selection.chosen


def test_a_device_has_a_colon_of_its_own():
    for spec, options in {
        "async-val:device=cuda:1": {"device": "cuda:1"},
        "async-val:device=cuda:12:more=3": {"device": "cuda:12", "more": 3},
        "async-val:more=3:device=cpu": {"device": "cpu", "more": 3},
    }.items():
        found = parse(spec, DEVICES).chosen
        assert found == {"async-val": options}
        assert parse(",".join(spell(found)), DEVICES).chosen == found
    for spec in ("async-val:device=cuda:x", "async-val:more=3:1", "async-val:device=cuda:"):
        with pytest.raises(PatchesError, match="is not of the form option=value"):
            parse(spec, DEVICES)
