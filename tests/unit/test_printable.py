"""What others sent is shown whole, and works nothing: characters as escapes, edits as diffs, no field left out."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace_runtime.cli.proposals import proposal
from workspace_runtime.cli.text import printable, printable_json, shell_word

HIDING = [
    "\x00", "\x07", "\x08", "\x1b", "\x7f", "\x9b", "\x85", "\u00ad", "\u061c", "\u200b", "\u200d", "\u200e", "\u2028", "\u202a",
    "\u202e", "\u2060", "\u2066", "\u2069", "\ufeff", "\ufe0f", "\u3164", "\u2800", "\u00a0", "\u3000", "\U000e0041", "\U000e0100",
    "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("character", HIDING, ids=ascii)
def test_what_hides_or_reorders_is_shown_as_an_escape(character: str) -> None:
    shown = printable(f"rm{character} -rf")
    assert character not in shown and shown.startswith("rm\\") and shown.endswith(" -rf")


def test_lines_and_tabs_stay_where_there_may_be_some() -> None:
    assert printable("a\tb\nc\r\n", lines=True) == "a\tb\nc\\r\n"
    assert printable("a\tb\nc\r\n", lines=True, prose=True) == "a\tb\nc\n"
    assert printable("a\tb\nc\r") == "a\\tb\\nc\\r"


def test_prose_keeps_what_writes_emoji_and_other_scripts() -> None:
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f می\u200cخواهم naïve 日本\u3000語 x\u00a0y"
    assert printable(family, lines=True, prose=True) == family
    for character in "\u202e\u2066\u200b\u2028\x9b\x1b":
        assert character not in printable(character, prose=True)


@given(st.text())
def test_no_control_character_reaches_the_terminal(text: str) -> None:
    for prose in (False, True):
        shown = printable(text, lines=True, prose=prose)
        assert not {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"} & {
            "Cc",
            "Cf",
            "Cs",
            "Zl",
            "Zp",
        }
    assert "\n" not in printable(text)
    assert json.loads(printable_json(json.dumps(text, ensure_ascii=False))) == text


def test_words_for_a_shell_are_printable() -> None:
    assert shell_word("/a b/c'd") == "'/a b/c'\"'\"'d'"
    assert shell_word("/a\x1bb") == "$'/a\\x1bb'"


def nothing(path: str) -> str | None:
    return ""


def test_a_command_is_shown_whole_and_first_things_are_not_all() -> None:
    lines = proposal("Bash", {"command": "echo a\ntouch b", "timeout": 5, "more": {"x": [1]}}, nothing)
    assert lines[:3] == ["command: echo a", "         touch b", "timeout: 5"] and '"x"' in "\n".join(lines)


def test_a_write_is_a_diff_against_what_is_there() -> None:
    lines = proposal("Write", {"file_path": "/w/a", "content": "one\nTWO\n"}, lambda path: "one\ntwo\n")
    assert lines == ["/w/a", "@@ -1,2 +1,2 @@", " one", "-two", "+TWO"]


def test_what_is_no_part_of_a_diff_is_shown_beside_it() -> None:
    lines = proposal("Write", {"file_path": "/w/a", "path": "/etc/passwd", "content": "x", "mode": 5}, nothing)
    assert lines[0].startswith("/w/a (new") and {"+x", "path: /etc/passwd", "mode: 5"} <= set(lines)


def test_edits_are_a_diff_in_the_file() -> None:
    text = "".join(f"{n}\n" for n in range(20))
    edit = {"file_path": "a", "old_string": "7\n", "new_string": "seven\n"}
    lines = proposal("Edit", edit, lambda path: text)
    assert "@@ -5,7 +5,7 @@" in lines and "-7" in lines and "+seven" in lines and "-17" not in lines
    assert "-17" in proposal("Edit", {**edit, "replace_all": True}, lambda path: text)
    many = {
        "file_path": "a",
        "edits": [{"old_string": "7\n", "new_string": "seven\n"}, {"old_string": "seven\n", "new_string": "VII\n"}],
    }
    assert "+VII" in proposal("MultiEdit", many, lambda path: text)


@pytest.mark.parametrize("now", [None, "something else"], ids=["unreadable", "not in it"])
def test_edits_that_do_not_fit_the_file_are_shown_as_they_were_asked(now: str | None) -> None:
    lines = proposal("Edit", {"file_path": "a", "old_string": "x", "new_string": "y\u202e"}, lambda path: now)
    assert "-x" in lines and "+y\\u202e" in lines


@pytest.mark.parametrize(
    ("old", "new", "sign"), [("a\n", "a", "\\ No newline"), ("a\r\n", "a\n", "-a\\r"), ("a\u2028b", "ab", "-a\\u2028b")]
)
def test_a_change_of_ends_and_of_unseen_characters_is_seen(old: str, new: str, sign: str) -> None:
    assert any(line.startswith(sign) for line in proposal("Write", {"path": "f", "content": new}, lambda path: old))


@pytest.mark.parametrize(
    "input", [{"file_path": "a"}, {"file_path": "a", "edits": [{"old_string": 1}]}, {"file_path": 5}]
)
def test_an_input_of_another_form_is_shown_field_by_field(input: dict[str, object]) -> None:
    for tool in ("Write", "Edit", "MultiEdit", "mcp__x__y"):
        lines = proposal(tool, input, nothing)
        assert all(any(line.startswith(f"{name}: ") for line in lines) for name in input)
