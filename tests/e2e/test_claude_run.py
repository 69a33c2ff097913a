"""`run` with the real Claude Code in a terminal: what it wants to do is seen, and answered. Only the model is scripted."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.claude_home import ClaudeHome
from support.model_script import results, script, text, tool
from support.model_server import threaded
from support.terminal import COMMAND, Terminal, environment, terminal

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[ClaudeHome]:
    with threaded() as model:
        yield ClaudeHome.make(tmp_path, model.url)


def ask(home: ClaudeHome, prompt: str, *answers: tuple[str, str]) -> Terminal:
    env = {**environment(home.home), **home.clean(environment(home.home))}
    with terminal([*COMMAND, "run", prompt], cwd=home.workspace, env=env) as person:
        for words, keys in answers:
            person.until(words)
            person.type(keys)
        assert person.end() == 0, person.text
    return person


def test_an_edit_is_shown_as_a_diff_in_its_file(home: ClaudeHome) -> None:
    path = home.workspace / "story.txt"
    path.write_text("".join(f"line {number}\n" for number in range(30)))
    edit = tool("Edit", file_path=str(path), old_string="line 20\n", new_string="line twenty\u202e\n")
    person = ask(home, script([tool("Read", file_path=str(path))], [edit], [text("Edited.")]), ("number:", "1\n"))
    assert "│ @@ -18,7 +18,7 @@" in person.text and "│ -line 20\n" in person.text
    assert "│ +line twenty\\u202e\n" in person.text and "\u202e" not in person.text
    assert "line twenty" in path.read_text() and "Edited." in person.text


def test_a_new_file_and_a_command_are_shown_whole(home: ClaudeHome) -> None:
    path = home.workspace / "new.txt"
    write = tool("Write", file_path=str(path), content="first\nlast\n")
    command = tool("Bash", command=f"echo {'a' * 1500}\\\n; touch HIDDEN_TAIL", description="Say a")
    person = ask(home, script([write], [command], [text("Done.")]), ("number:", "1\n"), ("number:", "4\n"))
    assert "(new, or empty until now)" in person.text and "│ +last\n" in person.text
    assert "; touch HIDDEN_TAIL\n" in person.text and not (home.workspace / "HIDDEN_TAIL").exists()
    assert path.read_text() == "first\nlast\n"


def test_several_labels_answer_one_question(home: ClaudeHome) -> None:
    options = [{"label": label, "description": label} for label in ("Red", "Blue", "Green")]
    question = {"question": "Which?", "header": "Colour", "multiSelect": True, "options": options}
    asked = script([tool("AskUserQuestion", questions=[question])], [results()])
    assert "Red, Green" in ask(home, asked, ("own words:", "1,3\n")).text


def test_who_is_not_signed_in_is_told_a_command_that_is_there(home: ClaudeHome) -> None:
    env = {**environment(home.home), **home.clean(environment(home.home))}
    del env["ANTHROPIC_API_KEY"]
    with terminal([*COMMAND, "run", script([text("never")])], cwd=home.workspace, env=env) as person:
        assert person.end() == 1
    command = person.text.split("Run `")[1].split("`")[0]
    assert os.access(shlex.split(command)[0], os.X_OK)
