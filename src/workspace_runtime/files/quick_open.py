"""Quick open: the paths that fit what somebody types, the likeliest first.

A word fits a path when its letters occur in it in order. How well is a matter of where: letters in a row, at the starts of
words and in the base name count more, gaps count less (the scores are fzf's, with a bonus for the base name). A base name
that is the query comes first, then one whose part before the extension is, then one that begins with it.

Only the few thousand likeliest paths are scored; finding them is left to regular expressions over the index's texts, a folder
at a time, so that the interpreter's lock is never held for long. The letters a folder's path takes are counted once for all that
lies in it. Where too many fit, those found by the better way stay: the name begins with the query, holds it, holds its letters;
then the whole path does. Within one way the shorter paths stay.
"""

import heapq
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from workspace_runtime.files.index import Names, Piece, Snapshot, fold, normalised

Kind = Literal["file", "directory", "any"]

MAX_QUERY = 4096  # no path is longer
_SCORED = 1500  # paths that get a score; three times the limit where that is more

# What a letter counts by its place, as in fzf: at the start of a path's part, of a word, of a camelCase word, in a row.
_LETTER = 16
_AT_PART, _AT_WORD, _AT_CAMEL, _IN_ROW = 10, 8, 7, 4
_IN_BASE = 4
_RIGHT_CASE = 4
_GAP, _GAP_MORE = 3, 1
# The whole base name, all before its extension, its beginning; a little more where the beginning ends with a word.
_IS_BASE, _IS_STEM, _BEGINS_BASE, _ENDS_WORD = 300, 200, 100, 10
_SEPARATORS = frozenset("_-. ")

# A folder's names of one kind, and whether they are folders.
_Block = tuple[Piece, Names, bool]
# For one letter of a word: where it can lie, the best score up to there, and which place of the letter before led to it.
_Row = tuple[list[int], list[int], list[int]]


@dataclass(frozen=True, slots=True)
class Match:
    """A path that fits. `positions`: the code points of `path` that the query's letters fell on, in order."""

    path: str
    is_dir: bool
    score: float
    positions: list[int]


def search(snapshot: Snapshot, query: str, *, kind: Kind, limit: int) -> list[Match]:
    """The `limit` paths that fit `query` best, best first; of equal ones the shorter, then by alphabet.

    All words of the query (parted by spaces) must fit, in any order. Letters fit in any case; a word with a capital letter
    prefers paths in its own case. A `/` fits a `/`. An empty query gives the topmost and shortest paths. Paths that are
    not UTF-8 have surrogates. Query and paths are compared normalised (NFC), and told as they are. Takes some 10 ms of CPU time: call it in a thread.
    """
    query = normalised(query)
    words = [word.removeprefix("./").lstrip("/") for word in query.split()]
    words = list(dict.fromkeys(word for word in words if word))
    blocks = _blocks(snapshot, kind)
    if not words:
        return _as_written(snapshot, _topmost(blocks, limit))[:limit]
    if len(query) > MAX_QUERY or "\0" in query:
        return []
    wanted = [_Word(word, alone=len(words) == 1) for word in words]
    found = _candidates(blocks, [word.folded for word in wanted], max(_SCORED, 3 * limit))
    ranked = []
    for path, is_dir in found.items():
        target = _Target(path)
        ranked.append((-sum(word.score(target) for word in wanted), len(path), path, is_dir))
    best = heapq.nsmallest(limit, ranked)
    matches = [Match(path, is_dir, float(-score), _positions(wanted, path)) for score, _, path, is_dir in best]
    return _as_written(snapshot, matches)[:limit]


def _as_written(snapshot: Snapshot, matches: list[Match]) -> list[Match]:
    """The matches with their paths as they are on the disk; one may stand for two that differ in how a letter is written."""
    if not any(piece.is_odd for piece in snapshot.pieces):
        return matches
    pieces: dict[str, list[Piece]] = {}
    for piece in snapshot.pieces:
        pieces.setdefault(piece.above, []).append(piece)
    written = []
    for match in matches:
        name = match.path.rpartition("/")[2]
        for piece in pieces[match.path[: len(match.path) - len(name)]]:
            for names in piece.folders if match.is_dir else piece.files:
                if f"\0{name}\0" in names.text:
                    for path in (piece.prefix + real for real in names.real(name)):
                        places = _places(path) if match.positions and path != match.path else None
                        moved = [places[at] for at in match.positions] if places else match.positions
                        written.append(Match(path, match.is_dir, match.score, moved))
    return written


def _places(path: str) -> list[int]:
    """For each code point of the normalised path the place in `path` where it begins."""
    places: list[int] = []
    start = 0
    for end in range(1, len(path) + 1):
        # a mark, or a part of a Hangul syllable, belongs to the letter before
        if end < len(path) and (unicodedata.combining(path[end]) or "\u1160" <= path[end] <= "\u11ff"):
            continue
        places += [start] * len(normalised(path[start:end]))
        start = end
    return places


def _blocks(snapshot: Snapshot, kind: Kind) -> list[_Block]:
    blocks: list[_Block] = []
    for piece in snapshot.pieces:
        if kind != "directory":
            blocks += [(piece, names, False) for names in piece.files]
        if kind != "file":
            blocks += [(piece, names, True) for names in piece.folders]
    return blocks


def _topmost(blocks: list[_Block], limit: int) -> list[Match]:
    """The paths that lie least deep, of these the shortest."""
    by_depth: dict[int, list[_Block]] = {}
    for block in blocks:
        by_depth.setdefault(block[0].above.count("/"), []).append(block)
    best: list[Match] = []
    for depth in sorted(by_depth):
        paths = (
            (len(piece.above) + len(name), piece.above + name, is_dir)
            for piece, names, is_dir in by_depth[depth]
            for name in names.text[1:-1].split("\0")
        )
        best += [Match(path, is_dir, 0.0, []) for _, path, is_dir in heapq.nsmallest(limit - len(best), paths)]
        if len(best) >= limit:
            break
    return best


# --- which paths are worth a score ------------------------------------------------------------------------------------


def _candidates(blocks: list[_Block], words: list[str], enough: int) -> dict[str, bool]:
    """Paths that fit, and whether each is a folder: all, or about `enough` of the likeliest."""
    found: dict[str, bool] = {}
    for way in _ways(blocks, words, enough):
        new = {path: is_dir for path, is_dir in way if path not in found}
        if len(new) > enough:
            key = len if len(words) == 1 else _likely(words)
            new = {path: new[path] for path in heapq.nsmallest(enough, new, key=key)}
        found |= new
        if len(found) >= enough:
            break
    return found


def _likely(words: list[str]) -> Callable[[str], int]:
    """A key: paths that hold more of the words as they are first, of these the shorter."""

    def key(path: str) -> int:
        folded = path.lower()
        return len(path) - MAX_QUERY * sum([word in folded for word in words])

    return key


def _ways(blocks: list[_Block], words: list[str], enough: int) -> Iterator[Iterator[tuple[str, bool]]]:
    """The ways to find paths, the likeliest first. Each finds all that it can, the last about `enough`."""
    if len(words) == 1:
        head, slash, tail = words[0].rpartition("/")
        if tail:
            above = head + slash
            inside = [block for block in blocks if _taken(above, block[0].folded) == len(above)] if above else blocks
            yield _by_name(inside, "\0" + tail, re.escape("\0" + tail))
            yield _by_name(inside, tail, re.escape(tail))
            yield _by_name(inside, "", _in_order(tail))
    by_folder: list[_Block] = []
    yield _by_path(blocks, words, by_folder)
    yield _all_names(by_folder, enough)


def _by_name(blocks: list[_Block], needed: str, pattern: str) -> Iterator[tuple[str, bool]]:
    """The paths whose base name has what `pattern` finds; none has it where the text does not hold `needed`."""
    search = re.compile(pattern + "[^\0]*+").finditer
    for piece, names, is_dir in blocks:
        if needed in names.folded:
            for match in search(names.folded):
                start = names.folded.rfind("\0", 0, match.start() + 1) + 1
                yield piece.above + names.text[start : match.end()], is_dir


def _by_path(blocks: list[_Block], words: list[str], by_folder: list[_Block]) -> Iterator[tuple[str, bool]]:
    """The paths that fit as a whole, by what each folder's path leaves to the name. Where it leaves nothing: `by_folder`."""
    compiled: dict[str, re.Pattern[str]] = {}
    for block in blocks:
        piece, names, is_dir = block
        rests = [rest for word in words if (rest := word[_taken(word, piece.folded) :])]
        if not rests:
            by_folder.append(block)
        elif not any("/" in rest for rest in rests):
            for start, end in _fitting(names.folded, rests, compiled).items():
                yield piece.above + names.text[start:end], is_dir


def _fitting(text: str, rests: list[str], compiled: dict[str, re.Pattern[str]]) -> dict[int, int]:
    """Where the names start and end that fit all of `rests`."""
    fitting: dict[int, int] | None = None
    for rest in rests:
        if rest not in compiled:
            compiled[rest] = re.compile(_in_order(rest) + "[^\0]*+")
        spans = {text.rfind("\0", 0, match.start() + 1) + 1: match.end() for match in compiled[rest].finditer(text)}
        fitting = spans if fitting is None else {start: end for start, end in spans.items() if start in fitting}
        if not fitting:
            break
    return fitting or {}


def _all_names(blocks: list[_Block], enough: int) -> Iterator[tuple[str, bool]]:
    """All names, those in the shortest paths' folders first, until there are enough."""
    count = 0
    for piece, names, is_dir in sorted(blocks, key=lambda block: len(block[0].above)):
        for name in names.text[1:-1].split("\0"):
            yield piece.above + name, is_dir
            count += 1
        if count >= enough:
            return


def _taken(word: str, text: str) -> int:
    """How many letters of `word`, from its start, occur in `text` in order."""
    position = 0
    for index, letter in enumerate(word):
        position = text.find(letter, position) + 1
        if not position:
            return index
    return len(word)


def _in_order(word: str) -> str:
    """A pattern for the letters of `word`, in order, within one name. It never goes back, so it takes linear time."""
    first, *others = (re.escape(letter) for letter in word)
    return first + "".join(f"[^\0{letter}]*+{letter}" for letter in others)


# --- how well one path fits -------------------------------------------------------------------------------------------


class _Target:
    """A path to be scored."""

    __slots__ = ("base", "folded", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self.folded = fold(path)
        self.base = path.rfind("/") + 1


class _Word:
    """A word of the query. `alone`: the only one, so that a base name it begins counts before all others."""

    def __init__(self, word: str, *, alone: bool) -> None:
        self.word = word
        self.folded = fold(word)
        self._name = self.folded.rpartition("/")[2]
        self._cased = self.folded != word
        self._weight = 1.0 if alone else 0.1

    def score(self, target: _Target) -> float:
        """How well a path fits that is known to."""
        return max(self.rows(target)[-1][1]) + self._weight * self._whole(target)

    def _whole(self, target: _Target) -> int:
        """What it counts that the base name begins with the word, or is it."""
        name, folded, base = self._name, target.folded, target.base
        if not name or not folded.startswith(name, base):
            return 0
        if len(self.folded) > len(name):
            above = self.folded[: -len(name)]
            if _taken(above, folded[:base]) < len(above):
                return 0
        end = base + len(name)
        if end == len(folded):
            return _IS_BASE
        if folded[end] == "." and folded.rfind(".") == end:
            return _IS_STEM
        return _BEGINS_BASE + (_ENDS_WORD if folded[end] in _SEPARATORS or _place(target.path, end) else 0)

    def rows(self, target: _Target) -> list[_Row]:
        """The best score for every place of every letter, letter by letter (Smith-Waterman, over the places alone).

        A row of letters counts as much for each as for the one that it started with.
        """
        path, folded, base = target.path, target.folded, target.base
        rows: list[_Row] = []
        before: list[int] = []
        scores_before: list[int] = []
        runs_before: list[int] = []
        for index, letter in enumerate(self.folded):
            places: list[int] = []
            scores: list[int] = []
            backs: list[int] = []
            runs: list[int] = []
            reached = 0  # places of the letter before that lie left of this one
            best, best_back = -1_000_000, -1  # the best of them, as if its gap reached from the path's start
            place = folded.find(letter, before[0] + 1 if before else 0)
            while place >= 0:
                bonus = _place(path, place)
                run, score, back = bonus, bonus, -1
                if index:
                    while reached < len(before) and before[reached] < place:
                        value = scores_before[reached] + before[reached] * _GAP_MORE
                        if value >= best:
                            best, best_back = value, reached
                        reached += 1
                    back = best_back
                    if before[reached - 1] == place - 1:
                        together = max(bonus, runs_before[reached - 1], _IN_ROW)
                        row_score = scores_before[reached - 1] + together
                        run = together
                    else:
                        row_score = -1_000_000
                    gap = place - before[back] - 1
                    score = best - (place - 1) * _GAP_MORE - (_GAP - _GAP_MORE) + bonus if gap else row_score
                    if row_score >= score:
                        score, back = row_score, reached - 1
                    else:
                        run = bonus
                score += _LETTER + (_IN_BASE if place >= base else 0)
                if self._cased and path[place] == self.word[index]:
                    score += _RIGHT_CASE
                places.append(place)
                scores.append(score)
                backs.append(back)
                runs.append(run)
                place = folded.find(letter, place + 1)
            rows.append((places, scores, backs))
            before, scores_before, runs_before = places, scores, runs
        return rows

    def positions(self, target: _Target) -> list[int]:
        """Where the letters lie in the best way to fit."""
        rows = self.rows(target)
        scores = rows[-1][1]
        at = scores.index(max(scores))
        positions = []
        for places, _, backs in reversed(rows):
            positions.append(places[at])
            at = backs[at]
        return positions


def _place(path: str, index: int) -> int:
    """What it counts that a letter lies here: at the start of a part, of a word, or of a camelCase word."""
    before = path[index - 1] if index else "/"
    if before == "/":
        return _AT_PART
    if before in _SEPARATORS:
        return _AT_WORD
    here = path[index]
    if (here.isupper() and before.islower()) or (here.isdigit() and not before.isdigit()):
        return _AT_CAMEL
    return 0


def _positions(words: Sequence[_Word], path: str) -> list[int]:
    target = _Target(path)
    return sorted({position for word in words for position in word.positions(target)})
