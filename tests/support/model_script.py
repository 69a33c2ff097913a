"""The script language of the model server: what the model says in a turn, carried by the prompt itself.

`script(step, step, …)` makes a prompt. Each step is one answer of the model, a list of items; after an answer that calls tools
the agent asks again, which is the next step. Behind the last step the model says "Done.". The items:

    think("…")                       a thinking block
    text("…", chunks=3)              a text block, streamed in three pieces
    text("…", chunks=2, hold="name") the same, held in its middle until the test calls `server.release("name")`
    tool("Bash", command="ls")       a tool call; several in one step are parallel calls
    plan_file("…")                   a Write of the plan file that the agent names in plan mode
    wait("name")                     hold the stream here until the test calls `server.release("name")`
    stall()                          hold the stream here for ever (until the agent hangs up); as the first item, the whole
                                     answer, its head too
    drop()                           cut the connection here
    error(529)                       answer with this HTTP status; `times=2`: only the first two requests of this step
    stop("max_tokens")               end the answer with this stop reason
    usage(input_tokens=7)            what the answer costs
    recall()                         a text: all texts of the user that the model was sent, one a line
    images()                         a text: the images that the model was sent, as "image/png 68" lines
    results()                        a text: the tool results that the model was sent last, one a line

`delay_ms` of `text`, `think` is waited before each piece. A tool whose input is a prompt (the sub-agent's) carries a script of
its own: `tool("Agent", description="…", prompt=script([text("inner")]))`.
"""

import json
from typing import Any

MARK = "model-script:"

Item = dict[str, Any]


def script(*steps: list[Item], say: str = "Do as the script says.") -> str:
    """A prompt that makes the model server answer by these steps. `say` is the human part of the prompt."""
    return f"{say}\n{MARK} {json.dumps({'steps': list(steps)})}"


def think(thought: str, *, chunks: int = 1, delay_ms: int = 0) -> Item:
    """A thinking block."""
    return {"think": thought, "chunks": chunks, "delay_ms": delay_ms}


def text(content: str, *, chunks: int = 1, delay_ms: int = 0, repeat: int = 1, hold: str | None = None) -> Item:
    """A text block; `repeat` makes it long without making the prompt long, `hold` waits at this gate in its middle."""
    return {"text": content, "chunks": chunks, "delay_ms": delay_ms, "repeat": repeat} | (
        {"hold": hold} if hold else {}
    )


def tool(name: str, /, **input: Any) -> Item:
    """A tool call."""
    return {"tool": name, "input": input}


def plan_file(content: str) -> Item:
    """A Write tool call for the plan file that the agent named in its request."""
    return {"plan_file": content}


def wait(gate: str) -> Item:
    """Hold the stream until the test releases the gate."""
    return {"wait": gate}


def stall() -> Item:
    """Hold the stream for ever."""
    return {"stall": True}


def drop(*, times: int = 1_000_000) -> Item:
    """Cut the connection, for the first `times` requests of this step."""
    return {"drop": True, "times": times}


def error(status: int, *, times: int = 1_000_000, message: str = "scripted") -> Item:
    """Answer with an HTTP error, for the first `times` requests of this step."""
    return {"error": status, "times": times, "message": message}


def stop(reason: str) -> Item:
    """The stop reason of this answer."""
    return {"stop": reason}


def usage(**tokens: int) -> Item:
    """The token usage of this answer, by the names of the Messages API."""
    return {"usage": tokens}


def recall() -> Item:
    """A text block with every text of the user in the request, scripts left out."""
    return {"recall": True}


def images() -> Item:
    """A text block that tells the images in the request."""
    return {"images": True}


def results() -> Item:
    """A text block with the tool results of the last user message."""
    return {"results": True}


def find(messages: list[dict[str, Any]]) -> tuple[list[list[Item]], int] | None:
    """The script in force in a request's messages, and the step that is next; None for an unscripted request.

    In force is the newest one in a text of the user. A step has been done for each answer of the model behind it.
    """
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message["role"] == "assistant":  # what is said in mid-turn comes as a message of the system
            continue
        for block in reversed(blocks(message)):
            if block.get("type") == "text" and MARK in block["text"]:
                start = block["text"].index(MARK) + len(MARK) + 1
                found = json.JSONDecoder().raw_decode(block["text"], start)[0]
                done = sum(1 for later in messages[index + 1 :] if later["role"] == "assistant")
                return found["steps"], done
    return None


def blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A message's content as blocks."""
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def user_texts(messages: list[dict[str, Any]]) -> list[str]:
    """The user's own texts in a request: without scripts and the agent's reminders."""
    found = []
    for message in messages:
        for block in blocks(message) if message["role"] == "user" else ():
            if block.get("type") == "text" and not block["text"].lstrip().startswith("<"):
                found.append(block["text"].split(MARK)[0].strip())
    return found


def sent_images(messages: list[dict[str, Any]]) -> list[str]:
    """The images in a request, as "media type, length of the base64 text"."""
    found = []
    for message in messages:
        for block in blocks(message) if message["role"] == "user" else ():
            inner = block.get("content") if block.get("type") == "tool_result" else None
            for part in [block, *(inner if isinstance(inner, list) else [])]:
                if part.get("type") == "image" and part["source"].get("type") == "base64":
                    found.append(f"{part['source']['media_type']} {len(part['source']['data'])}")
    return found


def last_results(messages: list[dict[str, Any]]) -> list[str]:
    """The texts of the tool results behind the model's last answer."""
    found: list[str] = []
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        texts = []
        for block in blocks(message):
            if block.get("type") == "tool_result":
                content = block.get("content", "")
                texts.append(content if isinstance(content, str) else "".join(part.get("text", "") for part in content))
        found = texts + found
    return found
