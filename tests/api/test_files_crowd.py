"""Many clients at once on the same path, at every route that makes or changes something: each gets an answer that is true, one wins
where only one can, and nothing is left half done."""

import io
import itertools
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from support.asking import Answer, ask, file_url, multipart
from support.server import ServerProcess, running

CROWD = 12
FILES = "/api/v1/files"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("crowd")) as process:
        yield process


@pytest.fixture
def root(server: ServerProcess) -> Path:
    folder: Path = server.workspace / f"crowd{next(_numbers)}"
    folder.mkdir()
    return folder


def at_once(act: Callable[[int], Answer]) -> list[Answer]:
    """What each of the crowd is answered; all begin in the same instant."""
    start = threading.Barrier(CROWD)
    answers: dict[int, Answer] = {}

    def one(number: int) -> None:
        start.wait()
        answers[number] = act(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(CROWD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == CROWD
    assert not [answer for answer in answers.values() if answer.status >= 500], answers
    return [answers[number] for number in range(CROWD)]


def codes(answers: list[Answer]) -> Counter[str]:
    """How often each status, and of refusals each code, was answered."""
    return Counter(str(answer.status) if answer.status < 400 else answer.code for answer in answers)


def post(server: ServerProcess, action: str, **body: Any) -> Answer:
    names = {"source": "from", "target": "to"}
    sent = orjson.dumps({names.get(name, name): value for name, value in body.items()})
    return ask(server.url, "POST", f"{FILES}/{action}", sent, {"Content-Type": "application/json"})


def content(number: int) -> bytes:
    return b"%d" % number * 5000


def left_over(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(".workspace-runtime-*")]


@pytest.mark.parametrize("size", [10, 200_000])
def test_put(server: ServerProcess, root: Path, size: int) -> None:
    path = f"{root.name}/new/folders/file"
    answers = at_once(lambda number: ask(server.url, "PUT", file_url(path), b"%x" % number * size))
    assert codes(answers) == {"201": 1, "200": CROWD - 1}
    final = (root / "new/folders/file").read_bytes()
    assert final in [b"%x" % number * size for number in range(CROWD)]
    # the one whose content stands has the etag that stands
    etag = ask(server.url, "HEAD", file_url(path)).headers["etag"]
    winner = next(number for number in range(CROWD) if final == b"%x" % number * size)
    assert answers[winner].headers["etag"] == etag
    assert not left_over(root)


def test_put_with_conditions(server: ServerProcess, root: Path) -> None:
    url = file_url(f"{root.name}/a/b")
    made = at_once(lambda number: ask(server.url, "PUT", url, content(number), {"If-None-Match": "*"}))
    assert codes(made) == {"201": 1, "precondition_failed": CROWD - 1}
    etag = ask(server.url, "HEAD", url).headers["etag"]
    changed = at_once(lambda number: ask(server.url, "PUT", url, content(number), {"If-Match": etag}))
    assert codes(changed) == {"200": 1, "precondition_failed": CROWD - 1}
    winner = next(number for number, answer in enumerate(changed) if answer.status == 200)
    assert (root / "a/b").read_bytes() == content(winner)


def test_mkdir(server: ServerProcess, root: Path) -> None:
    answers = at_once(lambda _: post(server, "mkdir", path=f"{root.name}/a/b/c"))
    assert codes(answers) == {"201": 1, "200": CROWD - 1}
    assert (root / "a/b/c").is_dir()


def test_delete(server: ServerProcess, root: Path) -> None:
    (root / "file").write_text("x")
    answers = at_once(lambda _: ask(server.url, "DELETE", file_url(f"{root.name}/file")))
    assert codes(answers) == {"204": 1, "file_not_found": CROWD - 1}
    for number in range(30):
        (root / f"tree/{number}/deep").mkdir(parents=True)
        (root / f"tree/{number}/deep/file").touch()
    answers = at_once(lambda _: ask(server.url, "DELETE", file_url(f"{root.name}/tree") + "?recursive=true"))
    assert set(codes(answers)) <= {"204", "file_not_found"} and codes(answers)["204"] == 1
    assert not (root / "tree").exists()


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_move(server: ServerProcess, root: Path, folder: bool, overwrite: bool) -> None:
    if folder:
        (root / "from").mkdir()
    else:
        (root / "from").write_text("x")
    body = {"source": f"{root.name}/from", "target": f"{root.name}/to", "overwrite": overwrite}
    answers = at_once(lambda _: post(server, "move", **body))
    assert codes(answers)["200"] == 1
    assert set(codes(answers)) <= {"200", "file_not_found", "file_exists"}
    assert (root / "to").exists() and not (root / "from").exists()


@pytest.mark.parametrize("folder", [False, True])
def test_moves_to_one_place(server: ServerProcess, root: Path, folder: bool) -> None:
    for number in range(CROWD):
        if folder:
            (root / f"from{number}").mkdir()
            (root / f"from{number}/f").write_bytes(content(number))
        else:
            (root / f"from{number}").write_bytes(content(number))
    answers = at_once(
        lambda number: post(server, "move", source=f"{root.name}/from{number}", target=f"{root.name}/a/to")
    )
    assert codes(answers) == {"200": 1, "file_exists": CROWD - 1}
    winner = next(number for number, answer in enumerate(answers) if answer.status == 200)
    assert (root / "a/to/f" if folder else root / "a/to").read_bytes() == content(winner)
    assert len(list(root.glob("from*"))) == CROWD - 1


@pytest.mark.parametrize("folder", [False, True])
def test_copies_to_one_place(server: ServerProcess, root: Path, folder: bool) -> None:
    for number in range(CROWD):
        if folder:
            for name in ("f", "g", "sub/h"):
                (root / f"from{number}" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / f"from{number}" / name).write_bytes(content(number))
        else:
            (root / f"from{number}").write_bytes(content(number))
    answers = at_once(lambda number: post(server, "copy", source=f"{root.name}/from{number}", target=f"{root.name}/to"))
    assert codes(answers) == {"201": 1, "file_exists": CROWD - 1}
    winner = next(number for number, answer in enumerate(answers) if answer.status == 201)
    copied = [path for path in (root / "to").rglob("*") if path.is_file()] if folder else [root / "to"]
    assert len(copied) == (3 if folder else 1)
    assert {path.read_bytes() for path in copied} == {content(winner)}  # of one, and no mixture
    assert not left_over(root)


@pytest.mark.parametrize("on_conflict", ["overwrite", "rename", "reject"])
def test_upload(server: ServerProcess, root: Path, on_conflict: str) -> None:
    url = f"{FILES}/upload?path={root.name}/new&on_conflict={on_conflict}"
    answers = at_once(lambda number: ask(server.url, "POST", url, *multipart((b"sub/name.txt", content(number)))))
    items = [answer.json["items"][0] for answer in answers]
    results = Counter(item["result"] for item in items)
    others = {"overwrite": "replaced", "rename": "renamed", "reject": "refused"}[on_conflict]
    assert results == {"created": 1, others: CROWD - 1}
    written = {item["path"]: number for number, item in enumerate(items) if item["result"] != "refused"}
    if on_conflict == "rename":
        assert len(written) == CROWD
        assert {path.name for path in (root / "new/sub").iterdir()} == {
            "name.txt", *(f"name ({number}).txt" for number in range(1, CROWD))
        }  # fmt: skip
    if on_conflict != "overwrite":
        for path, number in written.items():
            assert (server.workspace / path).read_bytes() == content(number)
    assert not left_over(root)


@pytest.mark.parametrize("on_conflict", ["overwrite", "rename", "reject"])
def test_unpacking(server: ServerProcess, root: Path, on_conflict: str) -> None:
    def archive(number: int) -> bytes:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            folder = tarfile.TarInfo("top/empty")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in [f"top/f{each}" for each in range(20)]:
                info = tarfile.TarInfo(name)
                info.size = len(content(number))
                tar.addfile(info, io.BytesIO(content(number)))
        return packed.getvalue()

    url = f"{FILES}/upload?path={root.name}/into&extract=true&on_conflict={on_conflict}"
    answers = at_once(lambda number: ask(server.url, "POST", url, *multipart((b"a.tar", archive(number)))))
    results = Counter(item["result"] for answer in answers for item in answer.json["items"])
    others = {"overwrite": "replaced", "rename": "renamed", "reject": "refused"}[on_conflict]
    if on_conflict != "reject":
        assert not [item for answer in answers for item in answer.json["items"] if item["result"] == "refused"]
    assert results == {"created": 21, "kept": CROWD - 1, others: 20 * (CROWD - 1)}
    for number, answer in enumerate(answers):
        for item in answer.json["items"]:
            if on_conflict != "overwrite" and item["result"] in ("created", "renamed") and "is_dir" not in item:
                assert (server.workspace / item["path"]).read_bytes() == content(number)
    assert len(list((root / "into/top").glob("f*"))) == (20 * CROWD if on_conflict == "rename" else 20)
    assert not left_over(root)
