"""What Claude Code's turns cost, in tokens and dollars. Pure.

The CLI tells a call's tokens while it streams, and with a turn's result the tokens and dollars of all models since the result
before, sub-agents included. A CLI that does not tell that yet tells dollars for the whole process: then the difference counts.
"""

from .base import JsonObject, Usage


class Spending:
    """The running turn's usage, and what is needed to tell the next one's from it."""

    def __init__(self) -> None:
        self._turn = Usage()
        self._call = Usage()
        self._total_usd = 0.0
        self._window: int | None = None

    def call_began(self, told: JsonObject) -> None:
        """A call of the model began, with this usage so far."""
        self._call = _usage(told)

    def call_ended(self, told: JsonObject) -> Usage:
        """A call of the model ended, with this usage at last. Returns what the turn has used so far."""
        call, turn = self._call, self._turn
        output = int(told.get("output_tokens") or call.output_tokens)
        self._call = Usage()
        self._turn = Usage(
            input_tokens=turn.input_tokens + call.input_tokens,
            output_tokens=turn.output_tokens + output,
            cache_read_tokens=turn.cache_read_tokens + call.cache_read_tokens,
            cache_write_tokens=turn.cache_write_tokens + call.cache_write_tokens,
            context_used_tokens=call.input_tokens + call.cache_read_tokens + call.cache_write_tokens + output,
            context_window_tokens=self._window,
        )
        return self._turn

    def turn_ended(self, result: JsonObject) -> tuple[Usage, float | None]:
        """The turn's own usage and cost, by the CLI's result."""
        windows = [int(used.get("contextWindow") or 0) for used in (result.get("modelUsage") or {}).values()]
        self._window = max(windows, default=0) or self._window
        cost = self._cost(result.get("total_cost_usd"))
        models = result.get("model_usage_since_last_result")
        if isinstance(models, dict) and models:
            spent = list(models.values())
            cost = sum(float(used.get("costUSD") or 0) for used in spent)
            usage = Usage(
                input_tokens=_sum(spent, "inputTokens"),
                output_tokens=_sum(spent, "outputTokens"),
                cache_read_tokens=_sum(spent, "cacheReadInputTokens"),
                cache_write_tokens=_sum(spent, "cacheCreationInputTokens"),
                context_used_tokens=self._turn.context_used_tokens,
                context_window_tokens=self._window,
            )
        else:
            usage = _usage(result.get("usage") or {}, self._turn.context_used_tokens, self._window)
        self._turn = self._call = Usage()
        return usage, None if cost is None else round(cost, 9)

    def _cost(self, total: object) -> float | None:
        """Of the process's total, what is new; a conversation begun anew counts from nothing."""
        if not isinstance(total, int | float):
            return None
        before, self._total_usd = self._total_usd, float(total)
        return self._total_usd - before if self._total_usd >= before else self._total_usd


def _usage(told: JsonObject, context: int | None = None, window: int | None = None) -> Usage:
    return Usage(
        input_tokens=int(told.get("input_tokens") or 0),
        output_tokens=int(told.get("output_tokens") or 0),
        cache_read_tokens=int(told.get("cache_read_input_tokens") or 0),
        cache_write_tokens=int(told.get("cache_creation_input_tokens") or 0),
        context_used_tokens=context,
        context_window_tokens=window,
    )


def _sum(spent: list[JsonObject], name: str) -> int:
    return sum(int(used.get(name) or 0) for used in spent)
