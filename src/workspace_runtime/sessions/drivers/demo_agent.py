"""The demo agent: a process that plays an agent by a small script language. It is no AI, and needs no key and no network.

It stands alone (standard library only) and speaks JSON lines: orders on standard input (`prompt`, `steer`, `interrupt`, `answer`,
`configure`), events on standard output; `demo_events.py` maps these to the product's own. The conversation is kept in a file
named by the conversation's id, so that a new process can go on with it.

HELP is the language's documentation: what the agent answers to words it does not know.
"""

import base64
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from typing import Any

HELP = """I am the demo agent: no AI, just a small script player, so that you can try everything without a key.
Write one command a line; I play them in order:

  say TEXT              answer, streamed word by word
  think TEXT            think, streamed
  read PATH             read a file of my folder (tool Read)
  write PATH TEXT       write a file of my folder (tool Write, asks first)
  run COMMAND           run a shell command (tool Bash, asks first)
  ask TEXT              ask a permission, and tell how it was answered
  question TEXT | A | B ask a question with answers to choose from
  plan A | B | C        show a to-do list, and work it off
  propose TEXT          present a plan, and ask to go ahead
  sub-agent TEXT        let a sub-agent say something (tool Task)
  image                 take a picture (a tool result with an image)
  wait SECONDS          do nothing for a while
  later SECONDS TEXT    begin a turn by myself, some time after this one
  recall                tell what you have asked before
  big BYTES             a tool result of so many bytes
  flood N [BYTES [RATE]] answer N blocks, at once or RATE a second, each with its number and the
                        monotonic time in ns
  fail [CODE]           end the turn with an error
  crash [SIGNAL]        end my process (9 by default)
  help                  this text

I ask before I write or run in the mode `ask`; in the mode `auto` I don't."""

# one pixel
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WORD_DELAY_S = float(os.environ.get("DEMO_WORD_DELAY_S", "0.01"))

Json = dict[str, Any]


class Stopped(Exception):
    """The turn was interrupted."""


class Failed(Exception):
    """The turn fails with this code."""


class DemoAgent:
    """One conversation. `folder` holds the conversations' files, `rules` is the file of the rules that were always allowed."""

    def __init__(self, folder: str, conversation: str, rules: str, mode: str, session_rules: list[str]) -> None:
        self.conversation = conversation
        self.path = os.path.join(folder, f"{conversation}.jsonl")
        self.rules_path = rules
        self.mode = mode
        self.session_rules = set(session_rules)
        self.orders: queue.Queue[Json | None] = queue.Queue()
        self.answers: dict[str, Json] = {}
        self.steered: queue.Queue[str] = queue.Queue()
        self.stop = threading.Event()
        self.wake = threading.Condition()
        self.process: subprocess.Popen[bytes] | None = None
        self.words = 0
        self.parent: str | None = None
        self.out = sys.stdout.buffer
        self.lock = threading.Lock()
        self.past = self._load()

    def _load(self) -> list[str]:
        try:
            with open(self.path, encoding="utf-8") as file:
                return [json.loads(line)["prompt"] for line in file]
        except (OSError, ValueError):
            return []

    # --- talking ------------------------------------------------------------------------------------------------------

    def emit(self, type: str, **fields: Any) -> None:
        if self.parent is not None:
            fields["parent"] = self.parent
        line = json.dumps({"type": type, **fields}).encode() + b"\n"
        with self.lock:
            self.out.write(line)
            self.out.flush()

    def listen(self) -> None:
        """Read orders until the end of the input; then the process ends."""
        for line in sys.stdin.buffer:
            order = json.loads(line)
            if order["op"] == "interrupt":
                self.interrupt()
            elif order["op"] == "answer":
                with self.wake:
                    self.answers[order["request"]] = order
                    self.wake.notify_all()
            elif order["op"] == "configure":
                self.mode = order.get("permission_mode") or self.mode
            elif order["op"] == "steer":
                self.steered.put(text_of(order["parts"]))
            else:
                self.orders.put(order)
        os._exit(0)

    def interrupt(self) -> None:
        self.stop.set()
        process = self.process
        if process is not None:
            kill_group(process)
        with self.wake:
            self.wake.notify_all()

    def pause(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise Stopped

    # --- turns --------------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        self.emit("session", id=self.conversation, mode=self.mode)
        threading.Thread(target=self.listen, daemon=True).start()
        while True:
            order = self.orders.get()
            if order is None:
                return
            if order["op"] == "later":
                self.emit("turn_started", reason="later")
            self.turn(order["parts"])

    def turn(self, parts: list[Json]) -> None:
        text = text_of(parts)
        self.stop.clear()
        self.words = 0
        self.parent = None
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"prompt": text}) + "\n")
        reason = "end_turn"
        try:
            images = [part for part in parts if part["type"] == "image"]
            for image in images:
                size = len(base64.b64decode(image["data"]))
                self.say(f"I see an image of {size} bytes ({image['mime_type']}).")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if not lines and not images:
                lines = ["help"]
            for line in lines:
                self.play(line)
                while not self.steered.empty():
                    for steered in self.steered.get().splitlines():
                        self.play(steered.strip())
            while not self.steered.empty():
                self.play(self.steered.get())
        except Stopped:
            reason = "interrupted"
        except Failed as fault:
            self.emit("error", code=fault.args[0], message=fault.args[1])
            reason = "error"
        self.parent = None
        self.past.append(text)
        usage = {"input": len(text.split()), "output": self.words, "context": sum(len(p.split()) for p in self.past)}
        self.emit("turn_ended", reason=reason, usage=usage)

    def play(self, line: str) -> None:
        """One line of a script."""
        self.pause(0)
        word, _, rest = line.partition(" ")
        command = getattr(self, "do_" + word.lower().replace("-", "_"), None)
        if command is None:
            self.say(f"I don't know the word {word!r}. " + HELP)
        else:
            command(rest.strip())

    # --- the words ----------------------------------------------------------------------------------------------------

    def block(self, kind: str, text: str) -> None:
        block = uuid.uuid4().hex[:12]
        pieces = text.split(" ")
        for number, piece in enumerate(pieces):
            self.words += 1
            self.emit("delta", kind=kind, block=block, text=piece if number == 0 else " " + piece)
            self.pause(WORD_DELAY_S)
        self.emit("block", kind=kind, block=block, text=text)

    def say(self, text: str) -> None:
        self.block("text", text)

    do_say = say

    def do_think(self, text: str) -> None:
        self.block("thinking", text)

    def do_help(self, text: str) -> None:
        self.say(HELP)

    def do_wait(self, text: str) -> None:
        self.pause(number(text, 1.0))

    def do_fail(self, text: str) -> None:
        raise Failed(text or "agent_error", "You asked me to fail.")

    def do_crash(self, text: str) -> None:
        self.out.flush()
        os.kill(os.getpid(), int(number(text, 9)))
        self.pause(5)

    def do_recall(self, text: str) -> None:
        self.say(
            "You asked me before: " + "; ".join(repr(prompt) for prompt in self.past) if self.past else "Nothing yet."
        )

    def do_later(self, text: str) -> None:
        seconds, _, rest = text.partition(" ")
        order = {"op": "later", "parts": [{"type": "text", "text": f"say {rest or 'It is later.'}"}]}
        timer = threading.Timer(number(seconds, 1.0), self.orders.put, (order,))
        timer.daemon = True
        timer.start()
        self.say("I come back to that.")

    def do_flood(self, text: str) -> None:
        count, size, rate = [*text.split(), "", "", ""][:3]
        filling = "x" * int(number(size, 100))
        per_second = number(rate, 0)
        began = time.monotonic()
        lines: list[bytes] = []
        for index in range(int(number(count, 1000))):
            words = f"{index} {time.monotonic_ns()} {filling}"
            lines.append(b'{"type":"block","kind":"text","text":"%b"}\n' % words.encode())
            ahead = began + index / per_second - time.monotonic() if per_second else 0.0
            if ahead > 0 or len(lines) == 64:
                with self.lock:
                    self.out.write(b"".join(lines))
                    self.out.flush()
                lines = []
                self.pause(ahead)
        with self.lock:
            self.out.write(b"".join(lines))
            self.out.flush()

    # --- tools --------------------------------------------------------------------------------------------------------

    def tool(self, name: str, kind: str, title: str, input: Json, path: str | None = None) -> str:
        tool_use_id = "demo_" + uuid.uuid4().hex[:12]
        self.emit("tool", id=tool_use_id, tool=name, kind=kind, title=title, input=input, path=path)
        return tool_use_id

    def ended(self, tool_use_id: str, output: str, status: str = "completed", **more: Any) -> None:
        self.emit("tool_ended", id=tool_use_id, output=output, status=status, **more)

    def do_read(self, text: str) -> None:
        tool_use_id = self.tool("Read", "read", f"Read {text}", {"path": text}, text)
        try:
            with open(inside(text), encoding="utf-8", errors="replace") as file:
                self.ended(tool_use_id, file.read())
        except OSError as fault:
            self.ended(tool_use_id, f"{text}: {fault.strerror}", "failed")

    def do_write(self, text: str) -> None:
        path, _, content = text.partition(" ")
        input = {"path": path, "content": content}
        tool_use_id = self.tool("Write", "edit", f"Write {path}", input, path)
        allowed = self.allowed(tool_use_id, "Write", f"Write {path}", input, f"Write({path})")
        if allowed is None:
            return
        try:
            with open(inside(str(allowed["path"])), "w", encoding="utf-8") as file:
                file.write(str(allowed["content"]) + "\n")
            self.ended(tool_use_id, f"Wrote {allowed['path']}.")
        except OSError as fault:
            self.ended(tool_use_id, f"{allowed['path']}: {fault.strerror}", "failed")

    def do_run(self, text: str) -> None:
        tool_use_id = self.tool("Bash", "execute", text, {"command": text})
        allowed = self.allowed(tool_use_id, "Bash", text, {"command": text}, f"Bash({text})")
        if allowed is None:
            return
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", str(allowed["command"])],  # running a command is what this tool is for
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if self.stop.is_set():
                kill_group(self.process)
            output = self.process.communicate()[0].decode(errors="replace")
            code = self.process.returncode
        finally:
            self.process = None
        if self.stop.is_set():
            self.ended(tool_use_id, output, "cancelled")
            raise Stopped
        self.ended(
            tool_use_id,
            output if code == 0 else f"{output}(exit status {code})",
            "completed" if code == 0 else "failed",
        )

    def do_big(self, text: str) -> None:
        tool_use_id = self.tool("Big", "other", f"{text} bytes", {"bytes": text})
        line = "0123456789abcdef" * 4 + "\n"
        size = int(number(text, 1_000_000))
        self.ended(tool_use_id, (line * (size // len(line) + 1))[:size])

    def do_image(self, text: str) -> None:
        tool_use_id = self.tool("Picture", "other", "Take a picture", {})
        self.ended(tool_use_id, "A picture of one pixel.", images=[{"mime_type": "image/png", "data": PICTURE}])

    def do_sub_agent(self, text: str) -> None:
        tool_use_id = self.tool("Task", "sub_agent", text[:60], {"prompt": text})
        self.parent = tool_use_id
        try:
            self.block("text", text or "Here I am.")
        finally:
            self.parent = None
        self.ended(tool_use_id, f"The sub-agent said: {text}")

    def do_plan(self, text: str) -> None:
        entries = [entry.strip() for entry in text.split("|") if entry.strip()] or ["Think", "Act", "Rest"]
        for done in range(len(entries) + 1):
            states = [
                "completed" if i < done else "in_progress" if i == done else "pending" for i in range(len(entries))
            ]
            self.emit(
                "plan", entries=[{"id": str(i + 1), "content": e, "status": states[i]} for i, e in enumerate(entries)]
            )
            self.pause(WORD_DELAY_S)

    # --- asking -------------------------------------------------------------------------------------------------------

    def request(self, **fields: Any) -> Json:
        """Ask, and wait for the answer."""
        request = uuid.uuid4().hex[:12]
        self.emit("permission", request=request, **fields)
        with self.wake:
            while request not in self.answers:
                if self.stop.is_set():
                    break
                self.wake.wait(1.0)
            answer = self.answers.pop(request, None)
        if answer is None:
            self.emit("withdrawn", request=request)
            raise Stopped
        if answer.get("interrupt"):
            raise Stopped
        return answer

    def allowed(self, tool_use_id: str, tool: str, title: str, input: Json, rule: str) -> Json | None:
        """Whether a tool may run: with which input. None when it may not; its result is then told."""
        if self.mode == "auto" or rule in self.session_rules or rule in self.rules():
            return input
        try:
            answer = self.request(
                kind="tool",
                tool=tool,
                title=title,
                input=input,
                tool_use_id=tool_use_id,
                rule=rule,
                writes_to=self.rules_path,
            )
        except Stopped:
            self.ended(tool_use_id, "", "cancelled")
            raise
        if answer["decision"] != "allow":
            self.ended(tool_use_id, answer.get("message") or "Not allowed.", "denied")
            return None
        if answer.get("scope") == "session":
            self.session_rules.add(rule)
        elif answer.get("scope") == "always":
            self.add_rule(rule)
        return {**input, **(answer.get("updated_input") or {})}

    def rules(self) -> list[str]:
        try:
            with open(self.rules_path, encoding="utf-8") as file:
                rules = json.load(file)["allow"]
                return rules if isinstance(rules, list) else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def add_rule(self, rule: str) -> None:
        os.makedirs(os.path.dirname(self.rules_path), exist_ok=True)
        temporary = f"{self.rules_path}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"allow": sorted({*self.rules(), rule})}, file, indent=2)
        os.replace(temporary, self.rules_path)

    def do_ask(self, text: str) -> None:
        tool_use_id = self.tool("Ask", "other", text, {"text": text})
        allowed = self.allowed(tool_use_id, "Ask", text, {"text": text}, f"Ask({text})")
        if allowed is not None:
            self.ended(tool_use_id, f"Allowed: {allowed['text']}")

    def do_question(self, text: str) -> None:
        parts = [part.strip() for part in text.split("|")]
        options = [{"label": label} for label in parts[1:] if label]
        tool_use_id = self.tool("Question", "question", parts[0], {"question": parts[0], "options": parts[1:]})
        question = {"id": "q1", "question": parts[0] or "Well?", "options": options}
        try:
            answer = self.request(
                kind="question",
                tool="Question",
                title=parts[0],
                input={},
                tool_use_id=tool_use_id,
                questions=[question],
            )
        except Stopped:
            self.ended(tool_use_id, "", "cancelled")
            raise
        if answer["decision"] != "allow":
            self.ended(tool_use_id, answer.get("message") or "Not answered.", "denied")
            return
        said = (answer.get("answers") or {}).get("q1", "")
        self.ended(tool_use_id, said if isinstance(said, str) else ", ".join(said))

    def do_propose(self, text: str) -> None:
        tool_use_id = self.tool("Plan", "plan", "Go ahead?", {"plan": text})
        try:
            answer = self.request(
                kind="plan", tool="Plan", title="Go ahead?", input={"plan": text}, tool_use_id=tool_use_id, plan=text
            )
        except Stopped:
            self.ended(tool_use_id, "", "cancelled")
            raise
        if answer["decision"] == "allow":
            self.ended(tool_use_id, "The plan was accepted.")
        else:
            self.ended(tool_use_id, answer.get("message") or "The plan was refused.", "denied")


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except OSError:
        return


def inside(path: str) -> str:
    """A path of the agent's own folder. Raises `PermissionError` for one that leads out."""
    here = os.path.realpath(".")
    real = os.path.realpath(path)
    if os.path.commonpath([here, real]) != here:
        raise PermissionError(1, "outside of my folder")
    return real


def text_of(parts: list[Json]) -> str:
    """A prompt's text; files by their paths."""
    return "\n".join(
        part["text"] if part["type"] == "text" else f"read {part['path']}" for part in parts if part["type"] != "image"
    )


def number(text: str, otherwise: float) -> float:
    """A number of a script, not negative."""
    try:
        return max(0.0, float(text))
    except ValueError:
        return otherwise


def main() -> None:
    """Start with the settings in the first argument, as JSON."""
    given = json.loads(sys.argv[1])
    conversation = given.get("conversation") or str(uuid.uuid4())
    folder = given["folder"]
    if given.get("fork"):
        source, conversation = conversation, str(uuid.uuid4())
        try:
            with open(os.path.join(folder, f"{source}.jsonl"), "rb") as file:
                past = file.read()
        except OSError:
            past = b""
        with open(os.path.join(folder, f"{conversation}.jsonl"), "wb") as file:
            file.write(past)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    DemoAgent(
        folder, conversation, given["rules"], given.get("mode") or "ask", given.get("session_rules") or []
    ).serve()


if __name__ == "__main__":
    main()
