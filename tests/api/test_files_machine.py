"""The file API against a plain model of a folder: random steps, also by somebody else on the disk, and after each both are the same.

The model follows links as the kernel does, and says of each request what the contract answers. Names are nasty on purpose.
"""

import base64
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from support.asking import Answer, ask, multipart
from support.confined import ConfinedServer, confined

NAMES = [
    b"a", b"b", b"with space", b"q\"u'ote", b"new\nline", b"per%41cent", b"ha#sh?mark", b"\xf0\x9f\x98\x80", b"\xe9\xff", b"x.tar.gz", b".dot",
    b"&=;+", b"upload", b"..."
]  # fmt: skip
SIZES = (0, 1, 3, 17, 1000, 65536, 65537, 1_100_000)
FILES = "/api/v1/files"
MAX_LINKS = 40
_runs = itertools.count()


@dataclass(frozen=True)
class Link:
    """Where it leads, from the run's folder (`absolute`) or from where it stands."""

    target: bytes
    absolute: bool


FOLDER = None
Node = bytes | Link | None
GONE = object()


class Refused(Exception):
    """What the model says no with: status and code."""

    def __init__(self, *codes: str) -> None:
        super().__init__(*codes)
        self.codes = codes


STATUS = {
    "file_not_found": 404, "precondition_failed": 412, "is_directory": 409, "not_a_directory": 409, "link_loop": 409, "link_dangling": 409,
    "file_exists": 409, "into_itself": 409, "directory_not_empty": 409, "range_not_satisfiable": 416,
}  # fmt: skip


class Model:
    """A folder as a dictionary from path to content, link or `FOLDER`; the folder itself is `b""`."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {b"": FOLDER}

    def get(self, path: bytes) -> Any:
        return self.nodes.get(path, GONE)

    def find(self, path: bytes, *, follow: bool) -> bytes:
        """The real path, which may be of nothing yet. Raises `OSError` as the kernel does."""
        todo = [part for part in path.split(b"/") if part][::-1]
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop()
            if self.get(b"/".join(at)) is not FOLDER:
                raise NotADirectoryError
            node = self.get(b"/".join((*at, part)))
            if isinstance(node, Link) and (follow or todo):
                links += 1
                if links > MAX_LINKS:
                    raise RecursionError
                if node.absolute:
                    at = []
                todo += [part for part in node.target.split(b"/") if part][::-1]
            elif node is GONE and todo:
                raise FileNotFoundError
            else:
                at.append(part)
        return b"/".join(at)

    def existing(self, path: bytes, *, follow: bool = True) -> bytes:
        """As `find`, in the words of the API; something is there."""
        try:
            real = self.find(path, follow=follow)
        except (FileNotFoundError, NotADirectoryError):
            raise Refused("file_not_found") from None
        except RecursionError:
            raise Refused("link_loop") from None
        if self.get(real) is GONE:
            raise Refused("file_not_found")
        return real

    def folder_for(self, path: bytes) -> tuple[bytes, list[bytes]]:
        """The real folder that will hold a path, and the folders that have to be made for it."""
        above, _, _ = path.rpartition(b"/")
        missing: list[bytes] = []
        while True:
            try:
                real = self.find(above, follow=True)
                if self.get(real) is GONE:
                    raise FileNotFoundError
                break
            except FileNotFoundError:
                above, _, name = above.rpartition(b"/")
                missing.insert(0, name)
            except NotADirectoryError:
                raise Refused("not_a_directory") from None
            except RecursionError:
                raise Refused("link_loop") from None
        if self.get(real) is not FOLDER:
            raise Refused("not_a_directory")
        if missing and self.get(join(real, missing[0])) is not GONE:
            raise Refused("link_dangling")
        made = []
        for name in missing:
            real = join(real, name)
            made.append(real)
        return real, made

    def target(self, path: bytes, *, follow: bool) -> tuple[bytes, list[bytes]]:
        """Where something new will stand, and the folders to be made."""
        real, made = self.folder_for(path)
        place = join(real, path.rpartition(b"/")[2])
        if follow and isinstance(self.get(place), Link):
            try:
                place = self.find(place, follow=True)
            except FileNotFoundError:
                raise Refused("link_dangling") from None
            except NotADirectoryError:
                raise Refused("not_a_directory", "link_dangling") from None
            except RecursionError:
                raise Refused("link_loop") from None
            if self.get(place) is GONE:
                raise Refused("link_dangling")
        return place, made

    def make(self, folders: list[bytes]) -> None:
        for folder in folders:
            self.nodes[folder] = FOLDER

    def below(self, path: bytes) -> list[bytes]:
        return [each for each in self.nodes if each == path or each.startswith(path + b"/")]

    def children(self, path: bytes) -> list[bytes]:
        prefix = path + b"/" if path else b""
        return [each for each in self.nodes if each and each.startswith(prefix) and b"/" not in each[len(prefix) :]]

    def remove(self, path: bytes) -> None:
        for each in self.below(path):
            del self.nodes[each]

    def graft(self, tree: dict[bytes, Node], target: bytes) -> None:
        for path, node in tree.items():
            self.nodes[join(target, path)] = node

    def tree(self, path: bytes) -> dict[bytes, Node]:
        return {each[len(path) + 1 :]: self.nodes[each] for each in self.below(path)}


def join(above: bytes, name: bytes) -> bytes:
    return above + b"/" + name if above and name else above or name


def order(path: bytes, node: Node) -> tuple[bool, str]:
    return node is not FOLDER, os.fsdecode(path.rpartition(b"/")[2])


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
short_paths = st.lists(st.sampled_from(NAMES[:4]), min_size=1, max_size=3).map(b"/".join)
fresh_path = st.one_of(short_paths, short_paths, paths)
contents = st.builds(
    lambda size, seed: (b"%d-" % seed * (size // 2 + 1))[:size], st.sampled_from(SIZES), st.integers(0, 9999)
)
# a new path, or one that is there already, or one below it: which, the machine knows
any_path = st.tuples(st.integers(0, 5), st.integers(0, 10_000), fresh_path)
matches = st.sampled_from(["", "", "", "right", "star", "wrong", "list", "none-star", "none-right", "none-wrong"])


class Machine(RuleBasedStateMachine):
    """See the module."""

    server: ConfinedServer

    @initialize()
    def begin(self) -> None:
        self.name = b"run %d" % next(_runs)
        self.top = os.path.join(os.fsencode(self.server.workspace), self.name)
        os.mkdir(self.top)
        self.model = Model()
        self.etags: dict[bytes, str] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.top, ignore_errors=True)

    def path(self, drawn: tuple[int, int, bytes]) -> bytes:
        """The path that was drawn."""
        how, number, fresh = drawn
        known = sorted(self.model.nodes)[1:]
        if how < 2 or not known:
            return fresh
        chosen = known[number % len(known)]
        if how == 5 and chosen.count(b"/") < 5:
            return chosen + b"/" + NAMES[number % 5]
        return chosen

    # --- asking ---------------------------------------------------------------------------------------------------------

    def url(self, path: bytes) -> str:
        return f"{FILES}/{quote(self.name)}/{quote(path)}" if path else f"{FILES}/{quote(self.name)}"

    def ask(self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answer:
        answer = ask(self.server.url, method, target, body, headers)
        assert answer.status < 500, answer
        if method == "HEAD":
            assert answer.body == b""
        return answer

    def post(self, action: str, **body: Any) -> Answer:
        return self.ask("POST", f"{FILES}/{action}", orjson.dumps(body), {"Content-Type": "application/json"})

    def named(self, field: str, path: bytes) -> dict[str, str]:
        """A path in a body: as text where it is some."""
        whole = self.name + b"/" + path
        try:
            return {field: whole.decode()}
        except UnicodeDecodeError:
            return {f"{field}_bytes": quote(whole)}

    @staticmethod
    def refused(answer: Answer, fault: Refused, *, head: bool = False) -> None:
        assert answer.status == STATUS[fault.codes[0]], (fault, answer)
        if not head:
            assert answer.code in fault.codes, (fault, answer)
            assert (
                answer.json["status"] == answer.status and answer.json["request_id"] == answer.headers["x-request-id"]
            )

    def etag(self, path: bytes) -> str:
        return self.ask("HEAD", self.url(path)).headers["etag"]

    def conditions(self, how: str, path: bytes) -> tuple[dict[str, str], bool | None]:
        """Headers, and whether they hold; None: it depends on whether something is there."""
        try:
            real = self.model.find(path, follow=True)
            node = self.model.get(real)
        except (OSError, RecursionError):
            node = GONE
        there = isinstance(node, bytes)
        tag = self.etag(path) if there else '"18eb-1-1"'
        return {
            "": ({}, True), "right": ({"If-Match": tag}, there), "star": ({"If-Match": "*"}, there), "wrong": ({"If-Match": '"x"'}, False),
            "list": ({"If-Match": f'"x", W/"y",{tag}'}, there), "none-star": ({"If-None-Match": "*"}, not there),
            "none-right": ({"If-None-Match": tag}, not there), "none-wrong": ({"If-None-Match": 'W/"x", "y"'}, True),
        }[how]  # fmt: skip

    # --- writing --------------------------------------------------------------------------------------------------------

    @rule(
        path=any_path,
        content=contents,
        how=matches,
        form=st.sampled_from(["raw", "chunked", "utf-8", "base64"]),
        slash=st.booleans(),
    )
    def put(self, path: Any, content: bytes, how: str, form: str, slash: bool) -> None:
        path = self.path(path)
        headers, holds = self.conditions(how, path)
        old = self.etags.get(path)
        target = self.url(path) + ("/" if slash else "")
        if form == "raw":
            answer = self.ask("PUT", target, content, headers)
        elif form == "chunked":
            pieces = [content[at : at + 70_000] for at in range(0, len(content), 70_000)]
            answer = ask(self.server.url, "PUT", target, iter(pieces), headers)
        else:
            text = content.decode() if form == "utf-8" else base64.b64encode(content).decode()
            answer = self.ask(
                "PUT", target + "?format=json", orjson.dumps({"content": text, "encoding": form}), headers
            )
        try:
            place, made = self.model.target(path, follow=True)
            if self.model.get(place) is FOLDER:
                raise Refused("is_directory")
            if not holds:
                raise Refused("precondition_failed")
        except Refused as fault:
            if "If-Match" in headers and fault.codes[0] in ("link_dangling",):
                fault = Refused("precondition_failed") if answer.status == 412 else fault
            self.refused(answer, fault)
            return
        assert answer.status == (201 if self.model.get(place) is GONE else 200), answer
        told = answer.json
        whole = self.name + b"/" + path
        assert (
            told["path"] == whole.decode("utf-8", "replace") and told["size"] == len(content) and told["mode"] == "0644"
        )
        assert told.get("path_bytes", quote(whole)) == quote(whole)
        assert told["etag"] == answer.headers["etag"] == self.etag(path) != old
        if answer.status == 201:
            assert answer.headers["location"] == self.url(path)
        self.model.make(made)
        self.model.nodes[place] = content
        self.etags[path] = told["etag"]

    @rule(path=any_path, recursive=st.booleans(), how=matches)
    def delete(self, path: Any, recursive: bool, how: str) -> None:
        path = self.path(path)
        node: Any = GONE
        try:
            real = self.model.existing(path, follow=False)
            node = self.model.get(real)
        except Refused:
            pass
        headers, holds = self.conditions(how, path) if isinstance(node, bytes) else ({}, True)
        answer = self.ask("DELETE", self.url(path) + ("?recursive=true" if recursive else ""), headers=headers)
        try:
            real = self.model.existing(path, follow=False)
            if not holds:
                raise Refused("precondition_failed")
            if node is FOLDER and not recursive:
                raise Refused("is_directory")
        except Refused as fault:
            self.refused(answer, fault)
            return
        assert (answer.status, answer.body) == (204, b"")
        self.model.remove(real)

    @rule(path=any_path)
    def mkdir(self, path: Any) -> None:
        path = self.path(path)
        answer = self.post("mkdir", **self.named("path", path))
        try:
            place, made = self.model.target(path, follow=False)
            node = self.model.get(place)
            if isinstance(node, Link):
                try:
                    node = self.model.get(self.model.find(place, follow=True))
                except RecursionError:
                    raise Refused("link_loop") from None
                except OSError:
                    node = GONE
                if node is GONE:
                    raise Refused("link_dangling", "file_exists")
            if isinstance(node, bytes):
                raise Refused("file_exists")
        except Refused as fault:
            self.refused(answer, fault)
            return
        assert answer.status == (201 if node is GONE else 200) and answer.json["created"] is (node is GONE)
        if node is GONE:
            self.model.make([*made, place])

    def replaced(self, moved: Node, old: Any, *, overwrite: bool) -> None:
        """Refuse what can't be replaced."""
        if old is GONE:
            return
        if not overwrite:
            raise Refused("file_exists")
        if old is FOLDER and moved is not FOLDER:
            raise Refused("is_directory")
        if moved is FOLDER and old is not FOLDER:
            raise Refused("not_a_directory")

    @rule(source=any_path, to=any_path, overwrite=st.booleans())
    def move(self, source: Any, to: Any, overwrite: bool) -> None:
        source = self.path(source)
        to = self.path(to)
        answer = self.post("move", **self.named("from", source), **self.named("to", to), overwrite=overwrite)
        try:
            start = self.model.existing(source, follow=False)
            moved = self.model.get(start)
            if to.startswith(source + b"/") and not isinstance(moved, Link):
                raise Refused("into_itself")
            place, made = self.model.target(to, follow=False)
            old = self.model.get(place)
            if place == start:
                assert (answer.status, answer.json["replaced"]) == (200, False)
                return
            if place.startswith(start + b"/"):
                raise Refused("into_itself")
            self.replaced(moved, old, overwrite=overwrite)
            if old is FOLDER and self.model.children(place):
                raise Refused("directory_not_empty")
        except Refused as fault:
            self.refused(answer, fault)
            return
        assert (answer.status, answer.json["replaced"]) == (200, old is not GONE), answer
        self.model.make(made)
        tree = self.model.tree(start)
        self.model.remove(start)
        self.model.nodes.pop(place, None)
        self.model.graft(tree, place)

    @rule(source=any_path, to=any_path, overwrite=st.booleans())
    def copy(self, source: Any, to: Any, overwrite: bool) -> None:
        source = self.path(source)
        to = self.path(to)
        answer = self.post("copy", **self.named("from", source), **self.named("to", to), overwrite=overwrite)
        try:
            start = self.model.existing(source, follow=False)
            copied = self.model.get(start)
            if to.startswith(source + b"/") and not isinstance(copied, Link):
                raise Refused("into_itself")
            place, made = self.model.target(to, follow=False)
            old = self.model.get(place)
            if place.startswith(start + b"/"):
                raise Refused("into_itself")
            self.replaced(copied, old, overwrite=overwrite)
            if copied is FOLDER and old is FOLDER:
                raise Refused("file_exists")
            if isinstance(copied, bytes) and isinstance(old, Link):
                place, made = self.model.target(to, follow=True)
                if self.model.get(place) is FOLDER:
                    raise Refused("is_directory")
        except Refused as fault:
            self.refused(answer, fault)
            return
        assert answer.status == (201 if old is GONE else 200) and answer.json["replaced"] is (old is not GONE), answer
        self.model.make(made)
        self.model.graft(self.model.tree(start), place)

    @rule(
        folder=any_path,
        names=st.lists(short_paths | paths, min_size=1, max_size=3),
        content=contents,
        on_conflict=st.sampled_from(["overwrite", "rename", "reject"]),
    )
    def upload(self, folder: Any, names: list[bytes], content: bytes, on_conflict: str) -> None:
        folder = self.path(folder)
        body, headers = multipart(*((name, content + b"%d" % number) for number, name in enumerate(names)))
        query = f"path={quote(self.name + b'/' + folder)}&on_conflict={on_conflict}"
        answer = self.ask("POST", f"{FILES}/upload?{query}", body, headers)
        expected: list[tuple[str, bytes]] = []
        for number, name in enumerate(names):
            expected.append(self.uploaded(join(folder, name), content + b"%d" % number, on_conflict))
        refused = any(result not in ("created", "replaced", "renamed") for result, _ in expected)
        assert answer.status == (409 if refused else 201), (expected, answer)
        assert not refused or answer.code == "upload_refused"
        assert len(answer.json["items"]) == len(expected)
        for item, (result, path) in zip(answer.json["items"], expected, strict=True):
            whole = self.name + b"/" + path
            assert item["path"] == whole.decode("utf-8", "replace") and item.get("path_bytes", quote(whole)) == quote(
                whole
            )
            if item["result"] == "refused":
                assert item["code"] == result and item["etag"] is None, (item, result)
            else:
                assert item["result"] == result, (item, result)

    def uploaded(self, path: bytes, content: bytes, on_conflict: str) -> tuple[str, bytes]:
        """What becomes of one file of an upload, and its path."""
        try:
            place, made = self.model.target(path, follow=on_conflict == "overwrite")
            old = self.model.get(place)
            if on_conflict == "rename":
                above, made = self.model.folder_for(path)
                for number in itertools.count():
                    name = path if not number else numbered(path, number)
                    place = join(above, name.rpartition(b"/")[2])
                    if self.model.get(place) is GONE:
                        break
                self.model.make(made)
                self.model.nodes[place] = content
                return "renamed" if number else "created", name
            if old is FOLDER:
                raise Refused("is_directory")
            if old is not GONE and on_conflict == "reject":
                raise Refused("file_exists")
        except Refused as fault:
            return fault.codes[0], path
        self.model.make(made)
        self.model.nodes[place] = content
        return "created" if old is GONE else "replaced", path

    # --- reading --------------------------------------------------------------------------------------------------------

    @rule(
        path=any_path,
        start=st.integers(0, 20),
        length=st.integers(1, 70_000),
        how=st.sampled_from(["whole", "head", "range", "suffix", "json", "unchanged", "match"]),
    )
    def get(self, path: Any, start: int, length: int, how: str) -> None:
        path = self.path(path)
        url = self.url(path)
        try:
            real = self.model.existing(path)
            content = self.model.get(real)
            if content is FOLDER:
                raise Refused("is_directory")
        except Refused as fault:
            answer = self.ask("HEAD" if how == "head" else "GET", url + ("?format=json" if how == "json" else ""))
            self.refused(answer, fault, head=how == "head")
            return
        tag = self.etag(path)
        assert tag == self.etag(real)
        if how == "json":
            told = self.ask("GET", url + "?format=json").json
            data = base64.b64decode(told["content"]) if told["encoding"] == "base64" else told["content"].encode()
            assert (data, told["size"], told["etag"]) == (content, len(content), tag)
        elif how == "head":
            answer = self.ask("HEAD", url)
            assert (answer.status, answer.headers["content-length"]) == (200, str(len(content)))
        elif how == "unchanged":
            answer = self.ask("GET", url, headers={"If-None-Match": tag})
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", tag)
        elif how == "match":
            self.refused(self.ask("GET", url, headers={"If-Match": '"x"'}), Refused("precondition_failed"))
            assert self.ask("GET", url, headers={"If-Match": tag}).body == content
        elif how in ("range", "suffix"):
            asked = f"bytes={start}-{start + length - 1}" if how == "range" else f"bytes=-{length}"
            part = content[start : start + length] if how == "range" else content[max(0, len(content) - length) :]
            answer = self.ask("GET", url, headers={"Range": asked, "If-Range": tag})
            if not part:
                self.refused(answer, Refused("range_not_satisfiable"))
                assert answer.headers["content-range"] == f"bytes */{len(content)}"
            else:
                assert (answer.status, answer.body, answer.headers["etag"]) == (206, part, tag)
                assert answer.headers["content-range"].endswith(f"/{len(content)}")
        else:
            answer = self.ask("GET", url)
            assert (answer.status, answer.body, answer.headers["etag"]) == (200, content, tag)

    def listed(self, path: bytes, query: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = self.ask(
                "GET",
                f"{FILES}?path_bytes={quote(quote(self.name + b'/' + path if path else self.name))}&{query}{cursor}",
            )
            assert answer.status == 200, answer
            items += answer.json["items"]
            if answer.json["next_cursor"] is None:
                return items
            cursor = "&cursor=" + quote(answer.json["next_cursor"])

    @rule(path=st.just(b"") | any_path, recursive=st.booleans(), limit=st.sampled_from([1, 2, 3, 1000]))
    def list_folder(self, path: Any, recursive: bool, limit: int) -> None:
        path = self.path(path) if path else b""
        query = f"limit={limit}&ignored=true&recursive={str(recursive).lower()}"
        try:
            real = self.model.existing(path)
            if self.model.get(real) is not FOLDER:
                raise Refused("not_a_directory")
        except Refused as fault:
            self.refused(self.ask("GET", f"{FILES}?path={quote(self.name + b'/' + path)}&{query}"), fault)
            return
        expected = list(self.ordered(real, recursive=recursive))
        items = self.listed(path, query)
        named = [os.fsencode(item["name"]) if "path_bytes" not in item else None for item in items]
        assert [name or each.rpartition(b"/")[2] for name, each in zip(named, expected, strict=True)] == [
            each.rpartition(b"/")[2] for each in expected
        ]
        for item, each in zip(items, expected, strict=True):
            node = self.model.nodes[each]
            inner = self.name + b"/" + join(path, each[len(real) + 1 :] if real else each)
            assert item["path"] == inner.decode("utf-8", "replace") and item.get("path_bytes", quote(inner)) == quote(
                inner
            )
            if node is FOLDER:
                assert (item["type"], item["etag"], item["target"]) == ("directory", None, None)
            elif isinstance(node, Link):
                assert item["type"] == "symlink" and item["etag"] is None
                assert item["target"] == os.readlink(os.path.join(self.top, each)).decode("utf-8", "replace")
            else:
                assert (item["type"], item["size"], item["target"]) == ("file", len(node or b""), None)
                assert item["etag"] == self.etag(each)

    def ordered(self, folder: bytes, *, recursive: bool) -> Iterator[bytes]:
        for each in sorted(self.model.children(folder), key=lambda path: order(path, self.model.nodes[path])):
            yield each
            if recursive and self.model.nodes[each] is FOLDER:
                yield from self.ordered(each, recursive=True)

    # --- somebody else ----------------------------------------------------------------------------------------------------

    @rule(path=any_path, content=contents, replace=st.booleans())
    def somebody_writes(self, path: Any, content: bytes, replace: bool) -> None:
        path = self.path(path)
        try:
            real = self.model.find(path, follow=True)
        except (OSError, RecursionError):
            return
        if self.model.get(real) is FOLDER:
            return
        target = os.path.join(self.top, real)
        with open(target + b".new" if replace else target, "wb") as file:
            file.write(content)
        if replace:
            os.replace(target + b".new", target)
        os.chmod(target, 0o644)
        self.model.nodes[real] = content
        self.etags.clear()

    @precondition(lambda self: len(self.model.nodes) > 1)
    @rule(data=st.data())
    def somebody_deletes(self, data: st.DataObject) -> None:
        path = data.draw(st.sampled_from(sorted(self.model.nodes)[1:]))
        target = os.path.join(self.top, path)
        if self.model.nodes[path] is FOLDER:
            shutil.rmtree(target)
        else:
            os.unlink(target)
        self.model.remove(path)
        self.etags.clear()

    @precondition(lambda self: len(self.model.nodes) > 1)
    @rule(data=st.data(), to=any_path)
    def somebody_renames(self, data: st.DataObject, to: Any) -> None:
        to = self.path(to)
        path = data.draw(st.sampled_from(sorted(self.model.nodes)[1:]))
        above = to.rpartition(b"/")[0]
        if self.model.get(above) is not FOLDER or self.model.get(to) is not GONE or (to + b"/").startswith(path + b"/"):
            return
        os.rename(os.path.join(self.top, path), os.path.join(self.top, to))
        tree = self.model.tree(path)
        self.model.remove(path)
        self.model.graft(tree, to)
        self.etags.clear()

    @rule(path=short_paths, leads=short_paths, absolute=st.booleans())
    def somebody_links(self, path: bytes, leads: bytes, absolute: bool) -> None:
        above = path.rpartition(b"/")[0]
        if self.model.get(above) is not FOLDER or self.model.get(path) is not GONE:
            return
        os.symlink(os.path.join(self.top, leads) if absolute else leads, os.path.join(self.top, path))
        self.model.nodes[path] = Link(leads, absolute)
        self.etags.clear()

    # --- the same on both sides ---------------------------------------------------------------------------------------------

    @invariant()
    def the_disk_is_as_the_model(self) -> None:
        if not hasattr(self, "model"):
            return
        found: dict[bytes, Node] = {b"": FOLDER}
        for above, folders, files in os.walk(self.top):
            for name in (*folders, *files):
                path = os.path.join(above, name)
                inner = path[len(self.top) + 1 :]
                if os.path.islink(path):
                    known = self.model.get(inner)
                    assert isinstance(known, Link), inner
                    leads = os.path.join(self.top, known.target) if known.absolute else known.target
                    assert os.readlink(path) == leads, inner
                    found[inner] = known
                elif os.path.isdir(path):
                    found[inner] = FOLDER
                else:
                    found[inner] = Path(os.fsdecode(path)).read_bytes()
        assert found.keys() == self.model.nodes.keys()
        assert found == self.model.nodes


def numbered(path: bytes, number: int) -> bytes:
    above, separator, name = path.rpartition(b"/")
    stem, dot, suffix = name.rpartition(b".")
    if not stem:
        stem, dot, suffix = name, b"", b""
    if stem.endswith(b")") and b" (" in stem[1:]:
        before, _, digits = stem[:-1].rpartition(b" (")
        if before and digits.isdigit() and not digits.startswith(b"0"):
            stem, number = before, int(digits) + number
    return above + separator + stem + b" (%d)" % number + dot + suffix


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[type[Machine]]:
    with confined(tmp_path_factory.mktemp("machine")) as started:

        class Driven(Machine):
            server = started

        yield Driven


def run(machine: type[Machine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            print_blob=True,
            # a failure is shown as it was found: to make it smaller would take minutes
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
def test_the_api_does_what_a_plain_model_does(machine: type[Machine]) -> None:
    run(machine, 60, 50)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_api_does_what_a_plain_model_does_for_long(machine: type[Machine]) -> None:
    run(machine, 500, 60)
