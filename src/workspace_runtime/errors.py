"""Every refusal the product can give, in one table.

`WorkspaceError` is raised anywhere below the doors with a stable `code`. The table `PROBLEMS` says once which HTTP status
and title belong to it; the doors turn it into a problem document (RFC 9457), a WebSocket close code (4000 + status) or an
exit code. The table in the documentation is made from this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One row: the HTTP status, the short title, and what a client should do about it."""

    status: int
    title: str
    advice: str


PROBLEMS: Mapping[str, Problem] = {
    # who may connect
    "bad_host": Problem(400, "Malformed Host", "Send a Host header of the form name or name:port."),
    "host_refused": Problem(
        421, "Host not served here", "Use localhost, or add the name to WORKSPACE_RUNTIME_ALLOWED_HOSTS."
    ),
    "origin_refused": Problem(
        403,
        "Origin not allowed",
        "Call from the server's own pages, or add the origin to WORKSPACE_RUNTIME_ALLOWED_ORIGINS.",
    ),
    "peer_refused": Problem(403, "Another user's process", "Connect as the user who runs the server, or set a token."),
    "auth_required": Problem(401, "Sign-in required", "Send the token as a bearer header, a cookie or a ticket."),
    # requests
    "headers_too_large": Problem(431, "Headers too large", "Send shorter headers."),
    "malformed_request": Problem(400, "Malformed request", "Send valid HTTP/1.1."),
    "not_found": Problem(404, "Not found", "Check the path against /docs."),
    "method_not_allowed": Problem(405, "Method not allowed", "Use a method named in the Allow header."),
    "malformed_json": Problem(400, "Malformed JSON", "Send a body that is valid JSON in UTF-8."),
    "validation_failed": Problem(422, "Invalid request", "Mend the fields named in errors."),
    "body_too_large": Problem(413, "Body too large", "Send less: GET /api/v1 tells the limits."),
    "unsupported_media_type": Problem(415, "Unsupported media type", "Send the body as application/json."),
    "cursor_invalid": Problem(400, "Unknown cursor", "Use next_cursor exactly as it was given."),
    "range_not_satisfiable": Problem(416, "Range not satisfiable", "Ask for a range inside the size."),
    "internal_error": Problem(500, "Internal error", "Look for the request_id in the server's log."),
    "shutting_down": Problem(503, "The server is stopping", "Try again once it has been started again."),
    "storage_unavailable": Problem(503, "State can't be written", "Free space on the state folder's disk."),
    # workspace
    "path_invalid": Problem(
        400, "Invalid path", "Use a path relative to the workspace root, without empty or dot segments."
    ),
    "path_outside": Problem(403, "Path outside the workspace", "Only what lies below the workspace root can be used."),
    # files
    "file_not_found": Problem(404, "No such file or folder", "List the folder above it."),
    "file_exists": Problem(409, "There is one already", "Choose another name, or say that it may be replaced."),
    "is_directory": Problem(
        409, "It is a directory", "List it, download it with archive, or delete it with recursive."
    ),
    "not_a_directory": Problem(409, "It is no directory", "Name a directory."),
    "not_a_file": Problem(409, "No regular file", "FIFOs, devices and sockets are never opened."),
    "directory_not_empty": Problem(409, "The directory is not empty", "Delete it with recursive first."),
    "link_dangling": Problem(409, "A link to nothing", "Delete the link, or make what it leads to."),
    "link_loop": Problem(409, "Links in a circle", "Delete one of the links."),
    "into_itself": Problem(409, "A directory into itself", "Name a place outside of it."),
    "file_busy": Problem(409, "In use", "Try again, or end the program that uses it."),
    "permission_denied": Problem(403, "Not permitted", "Give the server's user the right to it."),
    "precondition_failed": Problem(412, "It has changed", "Read it again, and repeat with its new etag."),
    "partial_content_refused": Problem(400, "A part of a file", "Send the whole file: nothing was written."),
    "content_encoding_refused": Problem(415, "Encoded content", "Send the file's bytes without Content-Encoding."),
    "file_too_large": Problem(413, "File too large", "Read its bytes, in ranges: GET /api/v1 tells the limits."),
    "upload_invalid": Problem(400, "Malformed upload", "Send multipart/form-data whose parts have a filename."),
    "upload_refused": Problem(409, "Some files were refused", "See items: the others were written."),
    "archive_invalid": Problem(422, "Broken archive", "Send a zip or tar archive that is whole."),
    "archive_too_large": Problem(413, "Archive too large", "Unpack it elsewhere: GET /api/v1 tells the limits."),
    "disk_full": Problem(507, "The disk is full", "Free space. What was there before is unchanged."),
    "file_failed": Problem(500, "The disk failed", "Look for the request_id in the server's log."),
    "too_many_files": Problem(503, "Too many open files", "Try again, or raise the limit of open files."),
    "search_invalid": Problem(422, "Invalid search", "Mend the pattern: the detail says where."),
    "search_unavailable": Problem(503, "No ripgrep", "Install it with the server: pip install ripgrep."),
    # version control
    "workspace_not_found": Problem(404, "Unknown workspace", "GET /api/v1 tells the workspace's id."),
    "git_unavailable": Problem(503, "No git", "Install git 2.36 or newer."),
    "git_timeout": Problem(504, "git took too long", "Ask for less, or look for a disk or a program that hangs."),
    "git_output_too_large": Problem(
        413, "Too much for one answer", "Ask for less: fewer paths, fewer lines, one page."
    ),
    "git_output_invalid": Problem(500, "git's answer can't be read", "Look for the request_id in the server's log."),
    "git_failed": Problem(409, "git refused", "See its own words in output."),
    "repository_not_found": Problem(404, "No repository", "Make one with POST …/init, or get one with POST …/clone."),
    "repository_invalid": Problem(409, "Broken repository", "Mend or remove what the detail names."),
    "repository_bare": Problem(409, "No working tree", "Use a repository that is not bare, or add a working tree."),
    "repository_outside_workspace": Problem(
        409, "Repository outside the workspace", "Start the server in the repository's own folder to change it."
    ),
    "repository_not_owned": Problem(
        403, "Another user's repository", "Give it to the server's user, or set git's safe.directory for it."
    ),
    "repository_moved": Problem(409, "Another repository now", "Look at the status, and begin again."),
    "repository_busy": Problem(409, "Somebody else is writing", "Try again, or cancel the operation that is at work."),
    "repository_locked": Problem(409, "Locked", "Wait for the other git, or clear its lock with POST …/unlock."),
    "ref_invalid": Problem(422, "Not a name", "Use a name that git takes, and that does not begin with a dash."),
    "ref_not_found": Problem(404, "No such revision", "List the branches and tags, or fetch first."),
    "ref_exists": Problem(409, "There is one already", "Choose another name."),
    "branch_not_merged": Problem(409, "Not merged", "Its commits are on no other branch: merge it, or say force."),
    "branch_checked_out": Problem(409, "Checked out", "Switch that working tree to another branch first."),
    "head_detached": Problem(409, "No branch is checked out", "Name the branch, or check one out."),
    "hunk_not_found": Problem(409, "No such hunk any more", "Read the diff again, and choose from its hunks."),
    "hunk_filtered": Problem(409, "A filter changes it", "Stage or discard the whole file: its filter runs then."),
    "path_untracked": Problem(409, "Not tracked by git", "Say untracked to delete it."),
    "path_ignored": Problem(409, "Ignored by git", "Say force to stage it all the same."),
    "path_intended": Problem(409, "Only announced", "Stage the files of paths whole, or unstage them."),
    "message_missing": Problem(422, "No message", "Send a message."),
    "identity_invalid": Problem(422, "Not an author", "Send one line of text each, without < and >."),
    "identity_missing": Problem(
        409, "git does not know who you are", "Set user.name and user.email, or send an author."
    ),
    "nothing_to_commit": Problem(409, "Nothing to commit", "Stage something first, or use all or paths."),
    "nothing_to_stash": Problem(409, "Nothing to put away", "Untracked files need include_untracked."),
    "stash_not_found": Problem(404, "No such stash", "List them: places move when one goes."),
    "signing_failed": Problem(409, "It can't be signed", "Mend the key or the program that signs: see output."),
    "object_missing": Problem(409, "Not fetched yet", "Get it in a terminal: git fetch --refetch."),
    "hook_refused": Problem(409, "A hook refused", "See its words in output."),
    "filter_failed": Problem(409, "A filter failed", "Mend its program, or take the filter out of the configuration."),
    "merge_conflict": Problem(409, "Conflicts", "Resolve them and continue, or abort."),
    "conflict_not_found": Problem(404, "No such conflict", "List the conflicts."),
    "local_changes_in_way": Problem(409, "Local changes in the way", "Commit, stash or discard them first."),
    "operation_in_progress": Problem(409, "Something is under way", "Continue or abort it first."),
    "not_under_way": Problem(409, "Nothing of this kind is under way", "The status tells what is."),
    "step_not_possible": Problem(409, "No such step", "Use another: continue, skip or abort."),
    "worktree_not_found": Problem(404, "No such working tree", "List them."),
    "worktree_gone": Problem(
        409, "A working tree whose folder is gone", "Remove it with DELETE …/worktrees, or git worktree prune."
    ),
    "worktree_locked": Problem(409, "A locked working tree", "Unlock it first: git worktree unlock."),
    "worktree_not_clean": Problem(409, "Changes in the working tree", "Commit them, or say force, which loses them."),
    "remote_not_configured": Problem(404, "No such remote", "List the remotes, or add one."),
    "remote_exists": Problem(409, "There is one already", "Choose another name, or change that one."),
    "remote_url_refused": Problem(422, "Address refused", "Use https, ssh or an absolute path, without a password."),
    "remote_not_found": Problem(404, "No repository at the remote", "Check the address, and the rights to it."),
    "remote_ref_not_found": Problem(404, "Not on the remote", "Fetch, and choose another."),
    "remote_auth_failed": Problem(403, "The remote refused", "Send a token, or set up a key or a credential helper."),
    "remote_host_unknown": Problem(409, "Unknown host key", "Check it, and add it to known_hosts."),
    "remote_unreachable": Problem(502, "Remote unreachable", "Check the address and the network, then try again."),
    "credentials_invalid": Problem(
        422, "Invalid credentials", "Send one line of text; they are for HTTP remotes alone."
    ),
    "credentials_refused": Problem(409, "A token could go elsewhere", "Remove the setting that the detail names."),
    "no_upstream": Problem(409, "No upstream", "Name remote and branch, or push with set_upstream."),
    "diverged": Problem(409, "Both sides have commits", "Choose a mode: rebase or merge."),
    "push_rejected": Problem(409, "Push refused", "See refs. Pull, then push again."),
    "lease_stale": Problem(409, "The remote has moved", "Fetch, look, and push again."),
    "operation_not_found": Problem(404, "Unknown operation", "GET …/operations lists them."),
    "operation_cancelled": Problem(409, "Cancelled", "Begin it again."),
    "operation_cut": Problem(503, "The server was stopped", "Begin it again."),
    # agents and sessions
    "agent_not_found": Problem(404, "Unknown agent", "GET /api/v1/agents lists them."),
    "agent_not_installed": Problem(409, "Agent not installed", "GET /api/v1/agents says how to get it (sign_in)."),
    "model_not_found": Problem(422, "Unknown model", "GET /api/v1/agents lists the agent's models."),
    "mode_not_found": Problem(422, "Unknown permission mode", "GET /api/v1/agents lists the agent's modes."),
    "mode_refused": Problem(409, "Permission mode refused", "The detail says what the agent wants for this mode."),
    "effort_not_found": Problem(422, "Unknown effort", "GET /api/v1/agents lists the efforts of each model."),
    "not_supported": Problem(409, "Not supported by this agent", "The agent's capabilities tell what it can do."),
    "too_many_agents": Problem(
        429, "Too many running agents", "Stop a session, or raise WORKSPACE_RUNTIME_MAX_RUNNING_AGENTS."
    ),
    "session_not_found": Problem(404, "Unknown session", "GET /api/v1/agent-sessions lists them."),
    "session_terminated": Problem(409, "The session is terminated", "POST …/reopen makes it idle again."),
    "session_active": Problem(409, "The session is in use", "Wait until it is idle, or interrupt it first."),
    "queue_full": Problem(429, "The queue is full", "Wait until a turn has ended, or take a prompt back."),
    "idempotency_conflict": Problem(
        422, "Key used for another request", "Use a new client_message_id for a new prompt."
    ),
    "permission_not_found": Problem(404, "Unknown permission", "GET …/permissions lists them."),
    "permission_resolved": Problem(409, "Already answered", "The resolution says how and by whom."),
    "permission_answer_invalid": Problem(
        422, "Answer does not fit", "Use one of the options, or a decision that fits the kind."
    ),
    # reading
    "event_not_found": Problem(404, "Unknown event", "Use a seq between first_seq and last_seq."),
    "blob_not_found": Problem(404, "Unknown blob", "Use a blob_id from an event of this session."),
    "history_trimmed": Problem(410, "Older events were trimmed", "Read again from first_seq."),
    "after_beyond_end": Problem(409, "Position beyond the end", "The log was replaced: read again from 0."),
    "too_far_behind": Problem(409, "Too far behind", "Connect again with after."),
    # frames from a client
    "frame_invalid": Problem(422, "Invalid frame", "Send one JSON object with a known type and its fields."),
}


class WorkspaceError(Exception):
    """A refusal with a stable machine `code` (a key of `PROBLEMS`), a sentence for a person, and data for the client.

    `data` becomes members of the problem document, beside `code` and `detail`; its values must be JSON.
    """

    def __init__(self, code: str, detail: str, **data: Any) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.data = data

    @property
    def status(self) -> int:
        """The HTTP status that belongs to the code."""
        return PROBLEMS[self.code].status


class ConfigError(Exception):
    """A setting is wrong. The message is one sentence that names the setting and says what to do."""
