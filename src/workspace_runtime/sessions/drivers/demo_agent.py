"""The demo agent: a process of its own that does what its prompt says, word by word. It is no AI.

It stands in for a coding agent wherever one is needed without a key or a network: to try the product, and to test a client
against everything an agent can do. `HELP` documents its language, and is what it answers to words it does not know.

It speaks JSON lines on its standard streams; `demo_events` maps them. The first line it gets is `start`, it answers `started`
or `refused`. One thread reads what it is told, another works through the turns, so that an interrupt is heard at any time. A
conversation is a file of JSON lines in the folder named by `start`, written before anything is done, so it outlives a SIGKILL.
Only the standard library is used: it also runs by its path alone.
"""

import json
import os
import queue
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

JsonObject = dict[str, Any]

HELP = """\
I am the demo agent. I am no AI: I do what each line of your prompt says, in order.

  say TEXT                      I answer TEXT, streamed word by word (\\n begins a new line)
  think TEXT                    the same as thinking
  read PATH                     I read a file
  write PATH TEXT               I write a file of that text and a line's end, and ask first
  run COMMAND                   I run a shell command, and ask first
  ask TEXT                      I ask for a permission, and do nothing with it
  question TEXT | A | B         I ask you to choose one (questions: one or more)
  plan A | [~] B | [x] C        I show a to-do list: open, begun and done entries
  propose TEXT                  I present a plan for you to accept
  image                         I draw a picture
  big BYTES                     a tool gives so many bytes
  sub-agent NAME                a sub-agent does the indented lines that follow
  repeat N COMMAND              I do a command N times
  later SECONDS COMMAND         I begin a turn by myself, once this one has ended
  wait SECONDS                  I do nothing for a while
  pace MILLISECONDS             how long I take for a word from now on
  recall                        I tell what you asked earlier in this conversation
  title TEXT                    I name the conversation
  usage                         I tell how many words went in and out
  flood N [BYTES [RATE]]        I say N texts, RATE a second or as fast as I can: each its number,
                                the monotonic time in ns, and BYTES bytes
  stream N [BYTES [RATE]]       I say one text in N pieces of BYTES bytes, RATE a second or as fast as I can
  fail [CODE]                   the turn fails (agent_error, agent_rate_limited, agent_overloaded, ...)
  end REASON                    the turn ends early: max_tokens, max_turns or refusal
  crash [SIGNAL]                my process dies (KILL, TERM, SEGV, ...), or hangs (STOP)
  help                          I say this
  # TEXT                        I do nothing

In the mode `ask` I ask before I write or run something; in `auto` I don't. I touch no file outside my folder. What you
allow "always" stands, for that folder, in $XDG_CONFIG_HOME/workspace-runtime-demo/rules.json. I measure the images in a
prompt and read the files. DEMO_WORD_DELAY_S in my environment sets how long I take for a word."""

CODES = (
    "agent_error", "agent_auth_required", "agent_rate_limited", "agent_overloaded", "agent_unreachable",
    "agent_request_refused", "agent_died",
)  # fmt: skip
# Seconds for a word.
PACE_S = {"demo-fast": 0.005, "demo-slow": 0.08}
CONTEXT_WINDOW = 100_000
_TOOL_MARK = "WORKSPACE_RUNTIME_DEMO_TOOL"
_ID = re.compile(r"[0-9a-f]{32}")


class Interrupted(Exception):
    """The turn was stopped."""


class Ended(Exception):
    """The turn ends early; the argument is its stop reason."""


class Turn:
    """A running turn: the lines still to do, and whether it was stopped."""

    def __init__(self, lines: list[str], later: str | None = None, prompt: str | None = None) -> None:
        self.lines = lines
        self.later = later  # the timer that began it, where no prompt did
        self.prompt = prompt  # steered, too late for a turn: this one is its own
        self.held: list[tuple[str, list[str], list[JsonObject]]] = []  # steered, and not taken in yet
        self.stop = threading.Event()
        self.words_in = 0
        self.words_out = 0
        self.helped = False


class Agent:
    """The whole state of one conversation. `hear` is called by the reading thread, `work` runs in the other."""

    def __init__(self, say: Callable[[JsonObject], None], start: JsonObject) -> None:
        self.say = say
        self.mode: str = start.get("mode") or "ask"
        self.model: str = start.get("model") or "demo-fast"
        self.root: str = start.get("root") or "."
        self.rules: set[str] = set(start.get("rules") or ())
        self.pace_s = _seconds(os.environ.get("DEMO_WORD_DELAY_S") or str(PACE_S[self.model]))
        self.lock = threading.Lock()
        self.turn: Turn | None = None
        self.turns: queue.SimpleQueue[tuple[Turn, list[JsonObject]]] = queue.SimpleQueue()
        self.waiting: dict[str, tuple[threading.Event, list[JsonObject]]] = {}
        self.timers: dict[str, tuple[threading.Timer, str]] = {}  # with their lines; until their turns begin
        self.tool_mark: str | None = None
        self.id, self.file, self.memory = _open_conversation(start)

    # --- the reading thread

    def hear(self, message: JsonObject) -> None:
        """Take one line of the driver's."""
        kind = message["type"]
        if kind in ("prompt", "steer"):
            parts: list[JsonObject] = message["parts"]
            lines = [line for part in parts if part["type"] == "text" for line in _lines(part["text"])]
            with self.lock:
                running = self.turn is not None and not self.turn.stop.is_set()
                if self.turn is not None and kind == "steer":
                    if running:
                        self.turn.held.append((message["prompt"], lines, parts))
                    else:
                        self.say({"type": "returned", "prompt": message["prompt"]})
                elif (
                    self.turn is not None and running
                ):  # a turn of our own: the prompt joins it, so that it has one end
                    self._take_in(self.turn, lines)
                else:
                    self._begin(Turn(lines, prompt=message.get("prompt")), parts)
        elif kind == "interrupt":
            with self.lock:
                if self.turn is not None:
                    self._stop(self.turn)
                self._stop_timers()
        elif kind == "answer":
            waiting = self.waiting.get(message["request"])
            if waiting is not None:
                waiting[1].append(message)
                waiting[0].set()
        elif kind == "configure":
            if message.get("mode"):
                self.mode = message["mode"]
            if message.get("model"):
                self.model = message["model"]
                self.pace_s = PACE_S[self.model]
            self.say({"type": "session", "model": self.model, "mode": self.mode})

    def _take_in(self, turn: Turn, lines: list[str]) -> None:
        self._remember(lines)
        turn.words_in += _words(lines)
        turn.lines += lines

    def _begin(self, turn: Turn, parts: list[JsonObject]) -> None:
        self.turn = turn if self.turn is None else self.turn
        self.turns.put((turn, parts))

    def _stop(self, turn: Turn) -> None:
        turn.stop.set()
        for event, _ in list(self.waiting.values()):
            event.set()
        if self.tool_mark is not None:
            _kill_marked(self.tool_mark)

    def _stop_timers(self) -> None:
        stopped, self.timers = self.timers, {}
        for timer, _ in stopped.values():
            timer.cancel()
        if stopped:
            self.tell_timers(dict.fromkeys(stopped, "stopped"))

    def tell_timers(self, ended: dict[str, str] | None = None) -> None:
        """Say what is to begin by itself later, and what no longer is."""
        tasks = [{"id": name, "kind": "timer", "title": line} for name, (_, line) in self.timers.items()]
        self.say({"type": "background", "tasks": tasks, "ended": ended or {}})

    def _remember(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        self.memory.append(text)
        os.write(self.file, json.dumps({"prompt": text}).encode() + b"\n")

    # --- the working thread

    def work(self) -> None:
        """Do one turn after the other, for ever."""
        while True:
            turn, parts = self.turns.get()
            with self.lock:
                if turn.later is not None and self.timers.pop(turn.later, None) is None:  # stopped meanwhile
                    self.turn = None if self.turn is turn else self.turn
                    continue
                if turn.later is not None and self.turn not in (
                    None,
                    turn,
                ):  # a prompt came meanwhile: one turn for both
                    self.turn.lines[:0] = turn.lines
                    self.tell_timers({turn.later: "completed"})
                    continue
                if turn.prompt is not None and turn.stop.is_set():
                    self.turn = None
                    self.say({"type": "returned", "prompt": turn.prompt})
                    continue
                self.turn = turn
                self._remember(list(turn.lines))
            if turn.prompt is not None:
                self.say({"type": "taken", "prompt": turn.prompt})
            turn.words_in += _words(turn.lines)
            if turn.later is not None:
                self.say({"type": "began", "reason": "It was asked to begin by itself."})
                self.tell_timers({turn.later: "completed"})
            try:
                if not "".join(turn.lines).strip() and all(part["type"] == "text" for part in parts):
                    turn.lines.append("help")
                self._look_at(turn, parts)
                self._do_all(turn)
                reason = "end_turn"
            except Interrupted:
                reason = "interrupted"
            except Ended as ended:
                reason = ended.args[0]
            with self.lock:
                if self.turn is turn:
                    self.turn = None
                returned, turn.held = turn.held, []
            for prompt, _, _ in returned:
                self.say({"type": "returned", "prompt": prompt})
            usage = self._usage(turn)
            self.say({"type": "usage", "usage": usage})
            self.say({"type": "ended", "stop_reason": reason, "usage": usage})

    def _do_all(self, turn: Turn) -> None:
        while True:
            with self.lock:
                if turn.stop.is_set():
                    raise Interrupted
                steered, turn.held = turn.held, []
                for prompt, lines, _ in steered:
                    self.say({"type": "taken", "prompt": prompt})
                    self._take_in(turn, lines)
                if not turn.lines and not steered:
                    self.turn = None  # from here on a prompt is a turn of its own
                    return
                line = turn.lines.pop(0) if turn.lines else ""
                nested = _take_nested(line, turn.lines)
            for _, _, parts in steered:
                self._look_at(turn, parts)
            self._do(turn, line, nested, None)

    def _do(self, turn: Turn, line: str, nested: list[str], parent: str | None) -> None:
        if turn.stop.is_set():
            raise Interrupted
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            return
        rest = rest.strip()
        if word.lower() == "sub-agent":
            self._sub_agent(turn, rest or "helper", nested, parent)
            return
        command = COMMANDS.get(word.lower())
        if command is not None:
            try:
                command(self, turn, rest, parent)
                return
            except ValueError:  # not a number where one is needed
                word = line.strip()
        if not turn.helped:
            turn.helped = True
            self._stream(turn, "text", f"I don't know what to do with {word[:60]!r}.\n\n{HELP}", parent, lines=True)

    def _look_at(self, turn: Turn, parts: list[JsonObject]) -> None:
        for part in parts:
            if part["type"] == "image":
                size = _base64_size(part["data"])
                self._stream(turn, "text", f"I see an image of {size} bytes ({part['mime_type']}).", None)
            elif part["type"] == "file":
                self._show_file(turn, part["path"], part["text"])

    def _show_file(self, turn: Turn, path: str, text: str) -> None:
        """Tell a file that came with the prompt as if it had been read."""

        def act(input: JsonObject) -> JsonObject:
            return {"status": "completed", "output": text}

        self._tool(turn, "Read", "read", {"path": path}, act, title=f"Read {path}", parent=None)

    def _stream(self, turn: Turn, kind: str, text: str, parent: str | None, *, lines: bool = False) -> None:
        """Say a block, word by word or line by line; cut short by an interrupt it is said as partial."""
        block, said = uuid.uuid4().hex[:12], ""
        for piece in re.findall(r"[^\n]*\n|[^\n]+", text) if lines else re.findall(r"\s*\S+|\s+", text):
            if turn.stop.wait(self.pace_s):
                self._block(turn, kind, said, block, parent, partial=True)
                raise Interrupted
            said += piece
            self.say({"type": "delta", "block": block, "kind": kind, "text": piece, "parent": parent})
        self._block(turn, kind, said, block, parent)

    def _block(
        self, turn: Turn, kind: str, content: str, block: str | None, parent: str | None, partial: bool = False
    ) -> None:
        turn.words_out += len(content.split())
        if content:
            message = {"type": "block", "kind": kind, "content": content, "block": block, "parent": parent}
            self.say(message | ({"partial": True} if partial else {}))

    def _usage(self, turn: Turn) -> JsonObject:
        used = _words(self.memory) + turn.words_out
        return {
            "input_tokens": turn.words_in, "output_tokens": turn.words_out,
            "context_used_tokens": used, "context_window_tokens": CONTEXT_WINDOW,
        }  # fmt: skip

    # --- tools and permissions

    def _tool(
        self,
        turn: Turn,
        name: str,
        kind: str,
        input: JsonObject,
        act: Callable[[JsonObject], JsonObject],
        *,
        title: str,
        parent: str | None,
        rule: str | None = None,
        permission: JsonObject | None = None,
    ) -> None:
        """Call a tool: ask where that is needed, `act` on the input that was allowed, tell the result."""
        tool_id = "tool_" + uuid.uuid4().hex[:16]
        places = [{"path": input["path"]}] if "path" in input else []
        self.say({
            "type": "tool", "id": tool_id, "name": name, "kind": kind, "input": input, "title": title,
            "locations": places, "parent": parent,
        })  # fmt: skip
        result: JsonObject = {"status": "cancelled", "output": ""}
        try:
            if permission is not None or (rule is not None and not self._allowed(rule, kind)):
                question = {"tool": name, "input": input, "title": title, "tool_use_id": tool_id, "parent": parent}
                answer = self._ask(turn, question | (permission or {"kind": "tool", "options": _options(rule)}))
                if answer["decision"] == "deny":
                    result = {"status": "denied", "output": answer.get("message") or "You did not allow it."}
                    if answer.get("interrupt"):
                        turn.stop.set()
                        raise Interrupted
                    return
                if rule is not None and answer.get("scope") in ("session", "always"):
                    self.rules.add(rule)
                    if answer["scope"] == "always":
                        self._keep_rule(turn, rule, parent)
                input = {**input, **(answer.get("updated_input") or {}), "answers": answer.get("answers")}
            if turn.stop.is_set():
                raise Interrupted
            result = act(input)
            if turn.stop.is_set():
                result["status"] = "cancelled"
        finally:
            self.say({"type": "result", "id": tool_id, "parent": parent, **result})

    def _allowed(self, rule: str, kind: str) -> bool:
        if self.mode == "auto" and kind != "other":
            return True
        return rule in self.rules or rule in _kept_rules()

    def _keep_rule(self, turn: Turn, rule: str, parent: str | None) -> None:
        try:
            _keep_rule(rule)
        except (OSError, ValueError) as fault:
            self._stream(turn, "text", f"I can't keep that rule in {_rules_file()}: {fault}", parent)

    def _ask(self, turn: Turn, permission: JsonObject) -> JsonObject:
        request = uuid.uuid4().hex[:16]
        event: threading.Event = threading.Event()
        answers: list[JsonObject] = []
        self.waiting[request] = event, answers
        try:
            self.say({"type": "permission", "request": request, **permission})
            while not answers:
                if turn.stop.is_set():
                    self.say({"type": "withdrawn", "request": request})
                    raise Interrupted
                event.wait()
        finally:
            del self.waiting[request]
        return answers[0]

    def _sub_agent(self, turn: Turn, name: str, nested: list[str], parent: str | None) -> None:
        tool_id = "tool_" + uuid.uuid4().hex[:16]
        input = {"description": name, "prompt": "\n".join(line.strip() for line in nested)}
        self.say({
            "type": "tool", "id": tool_id, "name": "Agent", "kind": "sub_agent", "input": input, "title": name,
            "locations": [], "parent": parent,
        })  # fmt: skip
        status, output = "cancelled", ""
        try:
            lines = list(nested)
            while lines:
                line = lines.pop(0)
                self._do(turn, line, _take_nested(line, lines), tool_id)
            status, output = "completed", f"{name} is done."
        except Ended:
            status = "failed"
            raise
        finally:
            self.say({"type": "result", "id": tool_id, "status": status, "output": output, "parent": parent})


# --- the commands -----------------------------------------------------------------------------------------------------


def _say(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    agent._stream(turn, "text", _unescape(rest), parent)


def _think(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    agent._stream(turn, "thinking", _unescape(rest), parent)


def _help(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    turn.helped = True
    agent._stream(turn, "text", HELP, parent, lines=True)


def _read(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    def act(input: JsonObject) -> JsonObject:
        def read() -> str:
            target = _inside(input["path"])
            # non-blocking: a FIFO must not hold us
            with open(os.open(target, os.O_RDONLY | os.O_NONBLOCK), encoding="utf-8", errors="replace") as file:
                if not os.path.isfile(target):
                    raise OSError(f"{input['path']} is not a file.")
                return file.read()

        return _outcome(read)

    agent._tool(turn, "Read", "read", {"path": rest}, act, title=f"Read {rest}", parent=parent)


def _write(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    path, _, text = rest.partition(" ")

    def act(input: JsonObject) -> JsonObject:
        def write() -> str:
            target = _inside(input["path"])
            os.makedirs(os.path.dirname(target), exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            with open(os.open(target, flags, 0o666), "w", encoding="utf-8") as file:
                file.write(input["content"] if input["content"].endswith("\n") else input["content"] + "\n")
            return f"Wrote {input['path']}."

        return _outcome(write)

    content = _unescape(text)
    title, rule = f"Write {path}", f"write {path}"
    agent._tool(turn, "Write", "edit", {"path": path, "content": content}, act, title=title, parent=parent, rule=rule)


def _run(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    def act(input: JsonObject) -> JsonObject:
        return _outcome(lambda: _run_command(agent, turn, input["command"]))

    title, rule = f"Run {rest}", f"run {rest}"
    agent._tool(turn, "Run", "execute", {"command": rest}, act, title=title, parent=parent, rule=rule)


def _run_command(agent: Agent, turn: Turn, command: str) -> str:
    import subprocess  # not before it is needed: it costs 10 ms
    import tempfile

    mark = uuid.uuid4().hex
    # a file, because something left in the background would hold a pipe open
    with tempfile.TemporaryFile() as output:
        with agent.lock:
            if turn.stop.is_set():
                raise Interrupted
            agent.tool_mark = mark
            process = subprocess.Popen(
                ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, _TOOL_MARK: mark}, process_group=0,
            )  # fmt: skip
        try:
            status = process.wait()
        finally:
            agent.tool_mark = None
        if turn.stop.is_set():
            _kill_marked(mark)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if status:
        raise OSError(f"{text}\n[{f'signal {-status}' if status < 0 else f'exit status {status}'}]".lstrip())
    return text


def _ask(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    def act(input: JsonObject) -> JsonObject:
        return {"status": "completed", "output": f"Allowed: {input['text']}"}

    agent._tool(turn, "Ask", "other", {"text": rest}, act, title=rest, parent=parent, rule=f"ask {rest}")


def _question(agent: Agent, turn: Turn, rest: str, parent: str | None, multi: bool = False) -> None:
    text, *labels = _split(rest)
    options = [{"label": label} for label in labels]
    question = {"id": "q1", "header": "Question", "question": text, "multi_select": multi, "options": options}

    def act(input: JsonObject) -> JsonObject:
        answer = (input.get("answers") or {}).get("q1", "")
        return {"status": "completed", "output": answer if isinstance(answer, str) else ", ".join(answer)}

    permission = {"kind": "question", "questions": [question], "options": []}
    input = {"question": text, "options": labels}
    agent._tool(turn, "Question", "question", input, act, title=text, parent=parent, permission=permission)


def _questions(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    _question(agent, turn, rest, parent, multi=True)


def _propose(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    text = _unescape(rest)
    options = [
        {"id": "allow", "decision": "allow", "scope": "once", "label": "Accept the plan"},
        {"id": "deny", "decision": "deny", "scope": "once", "label": "Keep planning"},
    ]

    def act(input: JsonObject) -> JsonObject:
        return {"status": "completed", "output": "The plan was accepted."}

    permission = {"kind": "plan", "plan": text, "options": options}
    agent._tool(turn, "Plan", "plan", {"plan": text}, act, title="A plan", parent=parent, permission=permission)


def _plan(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    marks = {"[x]": "completed", "[~]": "in_progress", "[ ]": "pending"}
    entries = []
    for number, text in enumerate(_split(rest), 1):
        status = marks.get(text[:3].lower())
        content = text[3:].strip() if status else text
        entries.append({"id": str(number), "content": content, "status": status or "pending"})
    agent.say({"type": "plan", "entries": entries})


def _image(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    def act(input: JsonObject) -> JsonObject:
        return {
            "status": "completed", "output": "A picture of 16 by 16 dots.",
            "images": [{"mime_type": "image/png", "data": _picture()}],
        }  # fmt: skip

    agent._tool(turn, "Draw", "other", {}, act, title="Draw a picture", parent=parent)


def _big(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    size = int(rest)
    if size < 0:
        raise ValueError
    line = "0123456789abcdef" * 4 + "\n"

    def act(input: JsonObject) -> JsonObject:
        return {"status": "completed", "output": (line * (size // len(line) + 1))[:size]}

    agent._tool(turn, "Big", "other", {"bytes": size}, act, title=f"Give {size} bytes", parent=parent)


def _repeat(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    number, _, line = rest.partition(" ")
    for _ in range(int(number)):
        agent._do(turn, line, [], parent)


def _later(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    seconds, _, line = rest.partition(" ")
    name = f"timer-{uuid.uuid4().hex[:12]}"

    def begin() -> None:
        with agent.lock:
            if name in agent.timers:
                agent._begin(Turn([line], later=name), [])

    timer = threading.Timer(_seconds(seconds), begin)
    timer.daemon = True
    with agent.lock:
        if turn.stop.is_set():
            raise Interrupted
        agent.timers[name] = timer, line
        agent.tell_timers()
    timer.start()


def _wait(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    if turn.stop.wait(_seconds(rest)):
        raise Interrupted


def _pace(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    agent.pace_s = _seconds(rest) / 1000


def _recall(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    earlier = agent.memory[:-1]
    told = "".join(f"\n{number}. {text}" for number, text in enumerate(earlier, 1))
    agent._stream(turn, "text", f"You asked me before:{told}" if earlier else "You asked me nothing before.", parent)


def _title(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    agent.say({"type": "session", "title": rest})


def _tell_usage(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    usage = agent._usage(turn)
    agent.say({"type": "usage", "usage": usage})
    words = f"{_count(usage['input_tokens'], 'word')} in, {_count(usage['output_tokens'], 'word')} out."
    agent._stream(turn, "text", words, parent)


def _flood(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    """The number and the clock let a test find what is lost, and time the way through the system."""
    number, size, rate = _numbers(rest, 1000, 100, 0)
    filling = "x" * size
    started = time.monotonic()
    for index in range(number):
        _keep_pace(turn, started, index, rate)
        if turn.stop.is_set():
            raise Interrupted
        agent._block(turn, "text", f"{index} {time.monotonic_ns()} {filling}", None, parent)


def _keep_pace(turn: Turn, started: float, index: int, rate: int) -> None:
    if rate and (ahead := started + index / rate - time.monotonic()) > 0:
        turn.stop.wait(ahead)


def _stream_pieces(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    number, size, rate = _numbers(rest, 1000, 20, 0)
    block = uuid.uuid4().hex[:12]
    piece = "x" * (max(size, 1) - 1) + " "
    started = time.monotonic()
    for index in range(number):
        _keep_pace(turn, started, index, rate)
        if turn.stop.is_set():
            agent._block(turn, "text", piece * index, block, parent, partial=True)
            raise Interrupted
        agent.say({"type": "delta", "block": block, "kind": "text", "text": piece, "parent": parent})
    agent._block(turn, "text", piece * number, block, parent)


def _fail(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    code, _, text = rest.partition(" ")
    code = code if code in CODES else "agent_error"
    retryable = code in ("agent_rate_limited", "agent_overloaded", "agent_unreachable")
    message = text or "The prompt told the demo agent to fail."
    agent.say({"type": "error", "code": code, "message": message, "retryable": retryable})
    raise Ended("error")


def _end(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    if rest not in ("max_tokens", "max_turns", "refusal"):
        raise ValueError
    raise Ended(rest)


def _crash(agent: Agent, turn: Turn, rest: str, parent: str | None) -> None:
    name = rest.upper().removeprefix("SIG") or "KILL"
    signo = signal.Signals(int(name)) if name.isdigit() else getattr(signal, "SIG" + name, None)
    if not isinstance(signo, signal.Signals):
        raise ValueError
    os.kill(os.getpid(), signo)
    time.sleep(1)


COMMANDS: dict[str, Callable[[Agent, Turn, str, str | None], None]] = {
    "say": _say, "think": _think, "read": _read, "write": _write, "run": _run, "ask": _ask, "question": _question,
    "questions": _questions, "plan": _plan, "propose": _propose, "image": _image, "big": _big, "repeat": _repeat,
    "later": _later, "wait": _wait, "pace": _pace, "recall": _recall, "title": _title, "usage": _tell_usage, "flood": _flood,
    "stream": _stream_pieces, "fail": _fail, "end": _end, "crash": _crash, "help": _help,
}  # fmt: skip


# --- helpers ----------------------------------------------------------------------------------------------------------


def _lines(text: str) -> list[str]:
    """A script's lines. They end as a text field or a file ends them; whatever else counts as a line's end is text."""
    return re.split(r"\r\n|\n|\r", text)


def _take_nested(line: str, lines: list[str]) -> list[str]:
    """Take from `lines` what belongs to the sub-agent that `line` begins: all that is indented more than it."""
    nested: list[str] = []
    if line.split(maxsplit=1)[:1] == ["sub-agent"]:
        while lines and lines[0].strip() and _depth(lines[0]) > _depth(line):
            nested.append(lines.pop(0))
    return nested


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def _words(lines: list[str]) -> int:
    return sum(len(line.split()) for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def _unescape(text: str) -> str:
    return re.sub(r"\\([nt\\])", lambda match: {"n": "\n", "t": "\t", "\\": "\\"}[match[1]], text)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86_400:
        raise ValueError
    return seconds


def _numbers(text: str, *defaults: int) -> Iterator[int]:
    given = [int(word) for word in text.split()]
    if any(number < 0 for number in given):
        raise ValueError
    return iter((given + list(defaults[len(given) :]))[: len(defaults)])


def _base64_size(data: str) -> int:
    return len(data) * 3 // 4 - data[-2:].count("=")


def _inside(path: str) -> str:
    """The real path of a file of our folder. Raises `OSError` for one that lies outside."""
    root = os.path.realpath(".")
    target = os.path.realpath(os.path.join(root, path))
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        raise OSError(f"{path} lies outside my folder.")
    return target


def _outcome(act: Callable[[], str]) -> JsonObject:
    try:
        return {"status": "completed", "output": act()}
    except (OSError, KeyError, ValueError, TypeError) as fault:
        return {"status": "failed", "output": str(fault)}


def _options(rule: str | None) -> list[JsonObject]:
    return [
        {"id": "allow", "decision": "allow", "scope": "once", "label": "Allow"},
        {"id": "session", "decision": "allow", "scope": "session", "label": "Allow in this session", "rule": rule},
        {
            "id": "always", "decision": "allow", "scope": "always", "label": "Always allow", "rule": rule,
            "writes_to": _rules_file(),
        },
        {"id": "deny", "decision": "deny", "scope": "once", "label": "Deny"},
    ]  # fmt: skip


def _rules_file() -> str:
    home = os.environ.get("XDG_CONFIG_HOME") or ""
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(home, "workspace-runtime-demo", "rules.json")


def _all_rules() -> dict[str, list[str]]:
    """The rules that were allowed for always, by folder. Raises `ValueError` for a file that is not ours."""
    try:
        with open(_rules_file(), encoding="utf-8") as file:
            found = json.load(file)["allow"]
            return {str(folder): list(rules) for folder, rules in found.items()}
    except FileNotFoundError:
        return {}
    except (AttributeError, KeyError, TypeError):
        raise ValueError('it is not of the form {"allow": {"/folder": ["run make"]}}') from None


def _kept_rules() -> list[str]:
    try:
        return _all_rules().get(os.getcwd(), [])
    except (OSError, ValueError):
        return []


def _keep_rule(rule: str) -> None:
    allowed, path = _all_rules(), _rules_file()
    allowed[os.getcwd()] = sorted({*allowed.get(os.getcwd(), []), rule})
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
        json.dump({"allow": allowed}, file, indent=2)
        file.write("\n")
    os.replace(file.name, path)


def _picture() -> str:
    """A small PNG in base64."""
    import base64
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(v for x in range(16) for v in (x * 16, y * 16, 160)) for y in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(png).decode()


def _kill_marked(mark: str) -> None:
    """Kill every process of a tool, also what left its group or session: each has the mark in its environment."""
    sought = f"{_TOOL_MARK}={mark}".encode()
    for look in range(100):
        found, unclear = [], False
        for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
            try:
                if entry.isdigit():
                    with open(f"/proc/{entry}/environ", "rb") as file:
                        environ = file.read()
                    if sought in environ.split(b"\0"):
                        found.append(int(entry))
                    elif not environ:  # in the middle of an exec, as `processes` says
                        os.readlink(f"/proc/{entry}/exe")
                        unclear = True
            except OSError:
                continue
        for signo in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                try:
                    os.kill(pid, signo)
                except OSError:
                    continue
        if not found and (not unclear or look >= 50):
            return
        time.sleep(0.002)


def _open_conversation(start: JsonObject) -> tuple[str, int, list[str]]:
    """A conversation's id, its file and what was said in it. Raises `LookupError` when it is unknown."""
    folder, earlier = start["folder"], start.get("resume")
    memory: list[str] = []
    lines = b""
    if earlier:
        if not _ID.fullmatch(earlier):
            raise LookupError(f"{earlier!r} is no id of a demo conversation.")
        try:
            with open(os.path.join(folder, earlier + ".jsonl"), "rb") as file:
                lines = file.read()
        except FileNotFoundError:
            raise LookupError(f"There is no demo conversation {earlier}.") from None
        lines = lines[: lines.rfind(b"\n") + 1]  # a last line that was cut was never acted on
        memory = [json.loads(line)["prompt"] for line in lines.splitlines()]
    name = earlier if earlier and not start.get("fork") else uuid.uuid4().hex
    os.makedirs(folder, mode=0o700, exist_ok=True)
    descriptor = os.open(os.path.join(folder, name + ".jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if name != earlier:
        os.write(descriptor, lines)
    else:
        os.ftruncate(descriptor, len(lines))
    return name, descriptor, memory


def main() -> None:
    """Speak on the standard streams until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lock = threading.Lock()
    output = sys.stdout.buffer

    def say(message: JsonObject) -> None:
        line = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        with lock:
            output.write(line)
            output.flush()

    source = iter(sys.stdin.buffer)
    start = json.loads(next(source, b"null"))
    if not isinstance(start, dict) or start.get("type") != "start":
        print(HELP)
        print("\nI speak JSON lines with the server: use me through it.")
        return
    try:
        agent = Agent(say, start)
    except (OSError, LookupError) as fault:
        say({"type": "refused", "code": "agent_error", "message": str(fault)})
        return
    say({"type": "started", "id": agent.id, "model": agent.model, "mode": agent.mode})

    def work() -> None:
        try:
            agent.work()
        except BrokenPipeError:
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=work, daemon=True).start()
    for line in source:
        agent.hear(json.loads(line))
    if agent.tool_mark is not None:
        _kill_marked(agent.tool_mark)
    os._exit(0)


if __name__ == "__main__":
    main()
