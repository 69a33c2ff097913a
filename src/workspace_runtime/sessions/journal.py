"""How a session's events come to be: numbered, made once, committed with the state they tell of, then published.

Only the session's actor writes to its journal, on the event loop. `emit` numbers events and keeps them until `commit` hands
them, with whatever else belongs to the same instant, to the log. Live deltas keep their place among the stored events: while
some of those are still on their way to the disk, a delta waits behind them.
"""

import base64
import binascii
from collections.abc import Callable, Sequence

from workspace_runtime.events.blocks import OpenBlock, cut, delta_json, utf16_length
from workspace_runtime.events.hub import Stream
from workspace_runtime.events.log import Batch, EventLog, Statement, StreamBroken
from workspace_runtime.events.model import Event, make_event, new_id

from .drivers.base import BlockKind, ImagePart, PromptPart
from .model import JsonObject, SessionRecord, prompt_json
from .store import save_session


class Journal:
    """The writing side of one session's stream."""

    def __init__(
        self,
        log: EventLog,
        stream: Stream,
        record: SessionRecord,
        published: Callable[[], None] = lambda: None,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        self.log = log
        self.stream = stream
        self.record = record
        # the record as of the last published commit, and what changes without being written: durable before visible
        self.shown = record.dump()
        self.shown_message = record.last_message
        self.shown_tool: str | None = None
        self.broken = False
        self._on_published = published
        self._on_refused = refused
        self._seq = stream.head
        self._events: list[Event] = []
        self._statements: list[Statement] = []
        self._ended_blocks: list[str] = []
        self._outstanding = 0
        self._blocks: dict[str, OpenBlock] = {}

    @property
    def last_seq(self) -> int:
        """The last `seq` given out, durable or not."""
        return self._seq

    def emit(
        self,
        type: str,
        fields: JsonObject,
        *,
        turn_id: str | None = None,
        parent: str | None = None,
        event_id: str | None = None,
    ) -> None:
        """Number an event and keep it for the next `commit`."""
        self._seq += 1
        self._events.append(
            make_event(
                seq=self._seq,
                event_id=event_id or new_id("evt"),
                type=type,
                session_id=self.record.id,
                turn_id=turn_id,
                parent_tool_use_id=parent,
                fields=fields,
            )
        )

    def also(self, *statements: Statement) -> None:
        """Add statements to the next `commit`."""
        self._statements += statements

    def blob(self, mime_type: str, data: bytes) -> JsonObject:
        """Keep an image of the event that is emitted next; what that says of it."""
        blob_id, statement = EventLog.put_blob(self.record.stream, self._seq + 1, mime_type, data)
        self._statements.append(statement)
        return {"type": "image", "blob_id": blob_id, "mime_type": mime_type, "bytes": len(data)}

    def prompt_blocks(self, parts: Sequence[PromptPart]) -> str | list[JsonObject]:
        """A prompt as its `user_message` says it: a string if it is text alone, images by their blobs."""
        blocks = prompt_json(parts)
        if len(blocks) == 1 and blocks[0]["type"] == "text":
            return str(blocks[0]["text"])
        for index, part in enumerate(parts):
            if isinstance(part, ImagePart):
                try:
                    data = base64.b64decode(part.data, validate=True)
                except (binascii.Error, ValueError):  # checked at the door; kept from an older state it may be anything
                    data = b""
                blocks[index] = self.blob(part.mime_type, data)
        return blocks

    def commit(self, *, state: bool = False, waited: bool = False) -> Batch:
        """Hand over all that was emitted and added since the last commit. `state` writes the session's record along;
        `waited` gives the batch a future, for `EventLog.settled`."""
        record = self.record
        shown = record.dump() if state else None
        if shown is not None:
            self._statements.append(save_session(record, shown))
        ended = record.status == "terminated"
        message, tool = record.last_message, record.active_turn["tool"] if record.active_turn else None
        events, statements, ended_blocks = self._events, self._statements, self._ended_blocks
        self._events, self._statements, self._ended_blocks = [], [], []

        def show() -> None:
            if shown is not None:
                self.stream.ended = ended
            for block_id in ended_blocks:
                self.stream.blocks.pop(block_id, None)
            self.shown = shown or self.shown
            self.shown_message, self.shown_tool = message, tool
            self._on_published()

        def published() -> None:
            self._outstanding -= 1
            self.stream.publish(events, show, at_once=waited)

        done = self.log.future() if waited else None
        batch = Batch(record.stream, events, statements, published, done, self._refused)
        self._submit(batch)
        return batch

    def refresh(self) -> None:
        """Something that is answered of the session changed without an event."""
        self._on_published()

    def _submit(self, batch: Batch) -> None:
        if self.broken:
            batch.fault = StreamBroken()
            if batch.done is not None:
                batch.done.set_exception(batch.fault)
                batch.done.exception()  # nobody need be waiting
            return
        self._outstanding += 1
        try:
            self.log.submit(batch)
        except BaseException:
            self._outstanding -= 1
            raise

    def _refused(self, fault: BaseException) -> None:
        self._outstanding -= 1
        if not self.broken:
            self.broken = True
            self._on_refused()

    # --- blocks that are still being written --------------------------------------------------------------------------

    def delta(self, block_id: str, kind: BlockKind, text: str, *, turn_id: str | None, parent: str | None) -> None:
        """More of a block: seen live, and kept in memory until `end_block`."""
        block = self._blocks.get(block_id)
        if block is None:
            block = self._blocks[block_id] = OpenBlock(f"{kind}_delta", turn_id, parent)
        offset = block.units
        block.add(text)
        for piece in cut(text):
            self._show_delta(block_id, block, offset, piece)
            offset += utf16_length(piece)

    def _show_delta(self, block_id: str, block: OpenBlock, offset: int, text: str) -> None:
        data = delta_json(self.record.id, block_id, block, offset, text)
        event = Event(0, block.type, block.turn_id, block.parent_tool_use_id, data)

        def show() -> None:
            block.shown += len(text)
            self.stream.blocks[block_id] = block

        if self._outstanding:

            def published() -> None:
                self._outstanding -= 1
                if not self.broken:
                    self.stream.publish((event,), show)

            self._submit(Batch(published=published, refused=self._refused))
        elif not self.broken:
            self.stream.publish((event,), show)

    def end_block(self, block_id: str) -> None:
        """The block's event was emitted: its deltas are done with."""
        if self._blocks.pop(block_id, None) is not None:
            self._ended_blocks.append(block_id)

    def open_blocks(self) -> list[tuple[str, OpenBlock]]:
        """Blocks that have deltas and no event yet, in the order they began."""
        return list(self._blocks.items())
