"""Text for a terminal: what others sent is shown as it is, and works nothing.

A terminal obeys control characters, and some characters are not seen, or reorder what is. In what an agent, a server or a file
name brings they are shown as escapes, so that nobody allows anything other than what they read. Only line ends, where a text
may have several lines, and tabs stay what they are.
"""

import functools
import json
import re
import shlex
import unicodedata

# All but visible ASCII: the rest is looked at character by character.
_SUSPECT = re.compile(r"[^\x20-\x7e]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
# Unseen by design, though Unicode counts them among letters, marks and symbols.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\uffa0\ufff0-\ufff8\U000e0080-\U000e0fff]"
)
_VARIATIONS = re.compile("[\ufe00-\ufe0f]")
# What joins emoji and letters of some scripts, and spaces of typography: right in a text, out of place in what is to be allowed.
_JOINERS = "\u200c\u200d"


def printable(text: str, *, lines: bool = False, prose: bool = False) -> str:
    """`text` with every character that is unseen, reorders others or is obeyed by a terminal shown as an escape.

    `lines`: it may have several lines, and tabs. `prose`: it is read and not allowed: what writes emoji and other scripts stays.
    """
    if lines:
        text = text.replace("\r\n", "\n") if prose else text
    if not _SUSPECT.search(text):
        return text

    def shown(match: re.Match[str]) -> str:
        character = match[0]
        return character if lines and character in "\n\t" else _shown(character, prose)

    return _SUSPECT.sub(shown, text)


@functools.lru_cache(maxsize=4096)
def _shown(character: str, prose: bool) -> str:
    category = unicodedata.category(character)
    if prose and (character in _JOINERS or category == "Zs" or _VARIATIONS.match(character)):
        return character
    unseen = (
        category in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") or _UNSEEN.match(character) or _VARIATIONS.match(character)
    )
    return escape(character) if unseen else character


def escape(character: str) -> str:
    """A character as Python and most shells would write it."""
    code = ord(character)
    if character in _NAMED:
        return _NAMED[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable_json(frame: str) -> str:
    """A JSON text that means the same, with such characters written as JSON's own escapes."""
    return _SUSPECT.sub(
        lambda match: json.dumps(match[0])[1:-1] if _shown(match[0], True) != match[0] else match[0], frame
    )


def shortened(text: str, characters: int) -> str:
    """The beginning of a line, with a mark where it was cut: for what is read in passing, and never for what is allowed."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def shell_word(text: str) -> str:
    """A word of a command line for bash and zsh, whatever it holds; printable too."""
    if printable(text) == text:
        return shlex.quote(text)
    raw = text.encode(errors="surrogateescape")
    return "$'" + "".join(chr(b) if 0x20 <= b < 0x7F and b not in b"'\\" else f"\\x{b:02x}" for b in raw) + "'"
