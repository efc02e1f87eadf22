"""The reader of sweep files: YAML 1.2 scalars, lines, and refusal of all that could hurt."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spec.strict_yaml import MAX_BYTES, YamlFault, parse, read_text, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-5", -5),
        ("1_000_000", 1_000_000),
        ("64.0", 64.0),
        ("1e-3", 1e-3),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "off",
        "0o7",
        "0x1F",
        "007",
        "1:30",
        "e5",
        ".e3",
        "._1",
        "-",
        ".",
        "1_",
        ".inf",
        ".nan",
        "1e999",
        "2020-01-01",
        "1e5x",
        "٣",
    ],
)
def test_what_is_no_number_is_text(text: str) -> None:
    assert scalar(text) == text


@given(st.text(max_size=40))
def test_a_scalar_is_never_an_error_nor_infinite(text: str) -> None:
    value = scalar(text)
    assert not isinstance(value, float) or math.isfinite(value)


def test_every_place_has_its_line() -> None:
    document = parse("name: x\nmeasure:\n  seq_len:\n  - 64\n  - 128\n")
    assert document.data == {"name": "x", "measure": {"seq_len": [64, 128]}}
    assert document.lines["measure",] == 2
    assert document.lines["measure", "seq_len", 1] == 5


def test_quoted_words_stay_text() -> None:
    assert parse("a: '64'\nb: \"true\"\nc: |\n  1\n").data == {"a": "64", "b": "true", "c": "1\n"}


def test_a_key_given_twice_is_a_fault_and_reading_goes_on() -> None:
    document = parse("a: 1\nb: 2\na: 3\nb: 4\n")
    assert document.data == {"a": 1, "b": 2}
    assert document.faults == [
        (3, ("a",), "is given twice, first on line 1"),
        (4, ("b",), "is given twice, first on line 2"),
    ]


BOMB = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("~", "is empty"),
        (BOMB, "line 1: anchors and aliases are not read; write the value out"),
        ("b: *a", "line 1: anchors and aliases are not read; write the value out"),
        ("a: !!python/name:os.system x", "line 1: tags (tag:yaml.org,2002:python/name:os.system)"),
        ("a: 1\n---\nb: 2\n", "line 2: a second document begins; one file is one sweep"),
        ("a: " + "[" * 5000, "line 1: is nested deeper than 20 levels"),
        ("? " * 5000, "line 1: a key must be a word"),
        ("? [a]\n: b\n", "line 1: a key must be a word"),
        ("a: b: c", "line 1: is not YAML: mapping values are not allowed here"),
        ("a: 1\nb: [1, 2", "line 2: is not YAML: "),
        ("a: 1\n\tb: 2", "line 2: is not YAML: found character '\\t'"),
        ("a: 1\nb: \x07", "line 2: is not YAML: the character '\\x07' is not allowed"),
        ("a: '", "line 1: is not YAML: "),
    ],
)
def test_what_a_sweep_never_needs_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(YamlFault) as caught:
        parse(text)
    assert str(caught.value).startswith(message)


@settings(max_examples=300)
@given(
    st.text(alphabet=st.sampled_from("ab:,[]{}-?&*!|>'\"#%@` \n\t\\~1.e_é\x00\u2028"), max_size=60)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text)
    except YamlFault as fault:
        assert "\n" not in str(fault)


# YAML 1.1, which PyYAML writes, has no number without a point: it leaves `1e3` bare as a word.
WORDS = st.text(max_size=8).filter(lambda text: not isinstance(scalar(text), float))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(PLAIN.filter(lambda value: value is not None))
def test_what_yaml_writes_is_read_back(value: object) -> None:
    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    assert parse(yaml.dump(value, Dumper=NoAliases)).data == value


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    loop, pipe, large, bytes_ = (tmp_path / name for name in ("loop", "pipe", "large", "bytes"))
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    large.write_bytes(b"#" * 10_000_000)
    bytes_.write_bytes(b"name: \xff\xfe")
    messages = {
        tmp_path / "missing.yaml": "there is no such file",
        tmp_path: "is a directory, not a sweep file",
        loop: "cannot be read (Too many levels of symbolic links)",
        bytes_ / "below": "cannot be read (Not a directory)",
        Path("a\0b"): "cannot be read (embedded null byte)",
        pipe: "is not a regular file",
        Path("/dev/zero"): "is not a regular file",
        large: f"is larger than {MAX_BYTES:,} bytes; a sweep file is a page of text",
        bytes_: "is not UTF-8 text (byte 6: invalid start byte)",
    }
    for path, message in messages.items():
        with pytest.raises(YamlFault) as caught:
            read_text(path)
        assert str(caught.value) == message
