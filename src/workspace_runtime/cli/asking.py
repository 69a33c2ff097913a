"""A permission, question or plan on the terminal: shown whole, and answered by a number or in words."""

import asyncio
from collections.abc import Sequence
from typing import Any

from .keyboard import Keyboard
from .proposals import Reader, proposal
from .text import printable

JsonObject = dict[str, Any]

# What is shown at once. More than that would push its own beginning off the screen: a key shows it.
MAX_LINES = 60
MAX_CHARACTERS = 6000
_BAR = "  │ "


async def ask(keyboard: Keyboard, event: JsonObject, read: Reader) -> JsonObject:
    """Ask until the answer fits; gives the fields of a permission's answer. The end of the input denies. Can be cancelled.

    `read` tells what a file holds now, for the diff of an edit.
    """
    if event["kind"] == "question":
        return await _ask_questions(keyboard, event["questions"])
    keyboard.say(f"\n? {_label(event['title'] or event['tool'])}\n")
    if event["kind"] == "plan" and event["plan"]:
        lines = printable(event["plan"], lines=True).split("\n")
    else:
        lines = await asyncio.to_thread(proposal, event["tool"], event["input"], read)
    for option in event["options"]:
        if len(option["label"]) > 200:
            lines.append(printable(f"{option['id']}: {option['label']}"))
    return await _choose(keyboard, lines, event["options"])


async def _choose(keyboard: Keyboard, lines: Sequence[str], options: Sequence[JsonObject]) -> JsonObject:
    beginning = _beginning(lines)
    hidden = sum(map(len, lines)) - sum(map(len, beginning))
    _show(keyboard, beginning)
    if hidden:
        keyboard.say(f"{_BAR}… NOT SHOWN: {hidden} more characters of {len(lines)} lines. Type m to see all.\n")
    for number, option in enumerate(options, 1):
        where = f" ({printable(option['writes_to'])})" if option.get("writes_to") else ""
        keyboard.say(f"  {number}. {_label(option['label'])}{where}\n")
    keys = "number, or m for all of it: " if hidden else "number: "
    while True:
        keyboard.say(f"  {keys}")
        line = await keyboard.line()
        if line is None:
            return {"decision": "deny", "message": "The keyboard was closed."}
        if hidden and line.lower() == "m":
            _show(keyboard, lines)
        elif (place := _number(line, len(options))) is not None:
            return {"option_id": options[place]["id"]}


def _beginning(lines: Sequence[str]) -> list[str]:
    """The first lines, as far as they are shown at once; the last of them may be cut."""
    found, left = [], MAX_CHARACTERS
    for line in lines[:MAX_LINES]:
        found.append(line[:left])
        left -= len(line)
        if left <= 0:
            break
    return found


def _show(keyboard: Keyboard, lines: Sequence[str]) -> None:
    """Behind a bar, so that nothing in it passes for a line of ours."""
    keyboard.say("".join(f"{_BAR}{line}\n" for line in lines))


def _label(label: str) -> str:
    shown = printable(label)
    return shown if len(shown) <= 200 else f"{shown[:200]}… ({len(shown) - 200} more characters)"


def _number(text: str, count: int) -> int | None:
    """The place that a typed number from 1 to `count` names, from 0; None where it names none."""
    return int(text) - 1 if text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) <= count else None


async def _ask_questions(keyboard: Keyboard, questions: Sequence[JsonObject]) -> JsonObject:
    answers: JsonObject = {}
    for question in questions:
        keyboard.say(f"\n? {printable(question['question'], lines=True).replace(chr(10), chr(10) + '  ')}\n")
        for number, option in enumerate(question["options"], 1):
            description = f"  {printable(option['description'])}" if option["description"] else ""
            keyboard.say(f"  {number}. {printable(option['label'])}{description}\n")
        answer = None
        while answer is None:
            several = " (several: 1,2)" if question["multi_select"] else ""
            keyboard.say(f"  number{several}, or your own words: ")
            line = await keyboard.line()
            if not line:
                return {"decision": "deny", "message": "The person did not answer."}
            answer = _answer(question, line)
        answers[question["id"]] = answer
    return {"answers": answers}


def _answer(question: JsonObject, line: str) -> list[str] | str | None:
    """The labels that a line chooses, else its words; None where it names a number that is not there."""
    labels = [option["label"] for option in question["options"]]
    if not question["multi_select"]:
        place = _number(line, len(labels))
        return line if place is None else [labels[place]]
    parts = line.replace(",", " ").split()
    if not all(part.isascii() and part.isdigit() for part in parts):
        return line
    places = [_number(part, len(labels)) for part in parts]
    chosen = dict.fromkeys(labels[place] for place in places if place is not None)
    return list(chosen) if chosen and None not in places else None
