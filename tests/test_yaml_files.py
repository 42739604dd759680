"""YAML files are read strictly, and every failure is one line that says where."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import yaml

from fxfault.config.yaml_files import load_yaml, parse_yaml
from fxfault.errors import ConfigError, InvalidConfigError


def read(text: str) -> object:
    return parse_yaml(f"key: {text}".encode(), "test.yaml")["key"]


def problem(data: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(data.encode() if isinstance(data, str) else data, "test.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("test.yaml: ")
    return message.removeprefix("test.yaml: ")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1e3),
        ("-2e+1", -20.0),
        ("+1e0", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("0.01", 0.01),
        ("1.5e3", 1500.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
    ],
)
def test_floats_are_read_as_yaml_1_2_has_them(text: str, number: float) -> None:
    value = read(text)

    assert isinstance(value, float)
    assert value == number


def test_nan_is_a_float() -> None:
    assert str(read(".nan")) == "nan"


@pytest.mark.parametrize("text", ["5", "0", "-7", "+3", "1_000", "0x10"])
def test_integers_stay_integers(text: str) -> None:
    assert type(read(text)) is int


@pytest.mark.parametrize("text", ['"1e-3"', "1e", "e5", "1.2.3", ".", "1e-3x", "-.", "+e1"])
def test_text_that_only_resembles_a_number_stays_text(text: str) -> None:
    assert read(text) == text.strip('"')


def test_the_loader_of_pyyaml_itself_is_left_as_it_was() -> None:
    assert yaml.safe_load("1e-3") == "1e-3"


def test_repeated_key_is_refused_with_both_lines() -> None:
    text = "# head\nprobability: 1\nmode: layer\nprobability: 2\n"

    assert problem(text) == "key 'probability' is given twice, on lines 2 and 4"


def test_repeated_key_is_found_in_nested_mappings_and_lists() -> None:
    assert "key 'b' is given twice, on lines 2 and 3" in problem("a:\n  - b: 1\n    b: 2\n")


def test_repeated_key_is_found_in_one_line_and_in_quotes() -> None:
    assert "key 'a' is given twice, on lines 1 and 1" in problem("{a: 1, 'a': 2}")


def test_all_repeated_keys_are_told_at_once() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        parse_yaml(b"a: 1\na: 2\nb: {c: 1, c: 2}\nb: 3\na: 4\n", "test.yaml")

    assert sorted(caught.value.problems) == [
        "key 'a' is given twice, on lines 1 and 2",
        "key 'a' is given twice, on lines 1 and 5",
        "key 'b' is given twice, on lines 3 and 4",
        "key 'c' is given twice, on lines 3 and 3",
    ]


def test_equal_keys_of_different_mappings_are_fine() -> None:
    assert parse_yaml(b"a: {name: x}\nb: {name: y}", "t") == {
        "a": {"name": "x"},
        "b": {"name": "y"},
    }


def test_key_that_overrides_a_merged_one_is_no_repetition() -> None:
    text = (
        b"base: &base {a: 1, b: 1}\nsecond: &second {<<: *base, b: 2}\nthird: {<<: *second, b: 3}"
    )

    assert parse_yaml(text, "t")["third"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "line 3, column 2"),
        ("a: 1\n\tb: 2\n", "line 2, column 1"),
        ("a: b: c\n", "line 1, column 5"),
        ("a: 'open\n", "line 2, column 1"),
        ("a: *nowhere\n", "line 1, column 4"),
        ("a: !!python/object:os.system x\n", "line 1, column 4"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("? [a]\n: 1\n? {b: 1}\n: 2\n", "line 1, column 3"),
    ],
)
def test_syntax_error_is_told_with_line_and_column(text: str, place: str) -> None:
    assert problem(text).startswith(f"not valid YAML: {place}: ")


@pytest.mark.parametrize("data", [b"", b"\n", b"# only a comment\n", b"---\n", b"null\n"])
def test_empty_file_is_refused(data: bytes) -> None:
    assert problem(data).startswith("the file is empty, expected a mapping")


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b\n", "list"), ("just text\n", "str"), ("5\n", "int")]
)
def test_top_level_that_is_no_mapping_is_refused(text: str, kind: str) -> None:
    expected = f"the top level is a {kind}, expected a mapping of keys to values"

    assert problem(text) == expected


@pytest.mark.parametrize(
    "data", [b"\x80\x02}q\x00.", b"a: \xff\n", b"PK\x03\x04\x00\x01", b"a: \x00"]
)
def test_binary_file_is_refused(data: bytes) -> None:
    assert problem(data).startswith("not a YAML text file: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-13-45", "'2024-13-45' is no !!timestamp (month must be in 1..12)"),
        ("9" * 5000, "'999999999999...9999999999999' is no !!int (Exceeds the limit"),
        ("!!bool maybe", "'maybe' is no !!bool"),
        ("!!int ''", "'' is no !!int"),
        ("!!float x", "'x' is no !!float (could not convert string to float: 'x')"),
        ("!!timestamp x", "'x' is no !!timestamp"),
    ],
)
def test_value_that_cannot_be_made_is_refused(text: str, expected: str) -> None:
    for data, column in ((f"a: {text}", 4), (f"a: [{text}]", 5), (f"? {text}\n: 3", 3)):
        start = f"a value cannot be read: line 1, column {column}: {expected}"
        assert problem(data).startswith(start)


def test_endless_nesting_is_refused() -> None:
    assert problem("a: " + "[" * 5000) == "not usable: nested too deeply"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_with_a_byte_order_mark_is_read(encoding: str) -> None:
    assert parse_yaml("a: é".encode(encoding), "t") == {"a": "é"}


def test_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, {b: null}]\n", encoding="utf-8")

    assert load_yaml(path) == load_yaml(str(path)) == {"a": [1, {"b": None}]}


def test_missing_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"

    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(caught.value) == f"{path}: there is no such file"


def test_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder, expected a YAML file"


def test_path_with_a_nul_byte_is_told() -> None:
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load_yaml("a\0b.yaml")


def test_unreadable_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("fxfault.config.yaml_files.read_limited", refuse)

    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("problems", "source", "text"),
    [
        (["a: bad"], None, "a: bad"),
        (["a: bad"], "f.yaml", "f.yaml: a: bad"),
        (["a: bad", "b: bad"], None, "2 problems: a: bad; b: bad"),
        (["a: bad", "b: bad"], "f.yaml", "f.yaml: 2 problems: a: bad; b: bad"),
    ],
)
def test_error_is_one_line(problems: list[str], source: str | None, text: str) -> None:
    assert str(InvalidConfigError(problems, source)) == text


def test_error_survives_pickling() -> None:
    error = InvalidConfigError(["a: bad", "b: bad"], "f.yaml")

    copy = pickle.loads(pickle.dumps(error))

    assert (copy.problems, copy.source, str(copy)) == (error.problems, error.source, str(error))


# -- what is not read -----------------------------------------------------------------------


def bomb(depth: int) -> str:
    """Lists of ten aliases each, of which the last stands for 10**depth values."""
    lists = ["&a0 [x,x,x,x,x,x,x,x,x,x]"]
    lists += [f"&a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return f"key: [{','.join(lists)}]"


def test_aliases_may_repeat_but_not_without_end() -> None:
    assert len(parse_yaml(bomb(3).encode(), "x.yaml")["key"]) == 3
    with pytest.raises(InvalidConfigError, match=r"x\.yaml: line 1, .*more than 100000 values"):
        parse_yaml(bomb(10).encode(), "x.yaml")
    merged = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10)
    )
    with pytest.raises(InvalidConfigError, match="more than 100000 values"):
        parse_yaml(merged.encode(), "x.yaml")


def test_an_alias_within_itself_is_refused() -> None:
    with pytest.raises(InvalidConfigError, match="line 1, column 4: an alias is part of the value"):
        parse_yaml(b"a: &a [1, *a]", "x.yaml")


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large.yaml"
    os.mkfifo(pipe)
    with open(large, "wb") as file:
        file.truncate(100 * 2**20)
    for path, problem in (
        (pipe, "is a pipe, expected a regular file"),
        ("/dev/zero", "is a device, expected a regular file"),
        (large, r"has 100\.0 MiB, allowed: up to 1\.0 MiB"),
    ):
        with pytest.raises(InvalidConfigError, match=rf"{path}: {problem}"):
            load_yaml(path)
    with pytest.raises(InvalidConfigError, match=r"has 1\.0 MiB, allowed"):
        parse_yaml(b" " * (2**20 + 1), "x.yaml")
