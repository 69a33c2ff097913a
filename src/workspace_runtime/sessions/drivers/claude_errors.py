"""How Claude Code says that something failed, as the contract's codes. Pure.

The CLI reports a failed call of the model twice: as an assistant message of its own making (`is_api_error_message`), which must
not read as a text of the model, and in the turn's result (`is_error`). Both have the HTTP status where there was one.
"""

from .base import AgentError, JsonObject, StopReason

SIGN_IN = (
    "Claude Code is not signed in. Sign in by its CLI and /login, as GET /api/v1/agents says (sign_in), or set ANTHROPIC_API_KEY "
    "for the server. The built-in agent `demo` needs no key."
)
_UNREACHABLE = ("connection", "timeout", "network")


def stop_reason(result: JsonObject) -> StopReason:
    """Why a turn ended. `error` stands for all that `failure` describes."""
    ended, subtype = str(result.get("terminal_reason") or ""), result.get("subtype")
    if ended.startswith("aborted"):
        return "interrupted"
    if subtype == "error_max_turns":
        return "max_turns"
    if result.get("api_error") == "max_output_tokens":
        return "max_tokens"
    if result.get("is_error"):
        return "refusal" if result.get("stop_reason") == "refusal" else "error"
    return {"refusal": "refusal", "max_tokens": "max_tokens"}.get(str(result.get("stop_reason")), "end_turn")  # type: ignore[return-value]


def failure(result: JsonObject, said: JsonObject | None, *, unreachable: bool) -> AgentError:
    """What failed in a turn. `said` is the CLI's own message of the failure, where there was one; `unreachable`: the turn
    saw the model's connection break."""
    said = said or {}
    status = result.get("api_error_status") or said.get("api_error_status")
    word = str(said.get("error") or "")
    detail = str(said.get("api_error") or result.get("api_error") or "")
    message = _text(result, said)
    if word in ("authentication_failed", "oauth_org_not_allowed") or status == 401:
        return AgentError("agent_auth_required", f"{SIGN_IN} ({message})" if message else SIGN_IN)
    if word == "rate_limit" or status == 429:
        return AgentError("agent_rate_limited", message or "The model's rate limit is reached.", retryable=True)
    if word in ("invalid_request", "billing_error", "model_not_found") or (isinstance(status, int) and status < 500):
        return AgentError("agent_request_refused", message or "The model refused the request.")
    if status is None and (unreachable or any(part in detail for part in _UNREACHABLE)):
        return AgentError("agent_unreachable", message or "The model can't be reached.", retryable=True)
    if word in ("server_error", "overloaded") or isinstance(status, int):
        return AgentError("agent_overloaded", message or "The model is overloaded.", retryable=True)
    return AgentError("agent_error", message or "The agent's turn failed.")


def _text(result: JsonObject, said: JsonObject) -> str:
    content = said.get("message", {}).get("content") or []
    texts = [block.get("text", "") for block in content if isinstance(block, dict)]
    errors = [error for error in result.get("errors") or [] if isinstance(error, str) and not error.startswith("[ede_")]
    return "\n".join(texts).strip() or "; ".join(errors) or str(result.get("result") or "").strip()
