"""Reading a small file with all checks on, against a bare ASGI application that opens, reads and answers it; and lists.

CPU per request of the server process, over keep-alive connections; both servers take turns, and the ratio is of medians. The
bare list is a `scandir` with a `stat` each, encoded as JSON with the same fields, in the bare application.
"""

import sys
from pathlib import Path

from common import median, python, report, server
from request_cost import cost_us

ROUNDS = 5

BARE = """
import asyncio, datetime, os, stat, sys, orjson, uvicorn
root = sys.argv[1]
def listing():
    items = []
    with os.scandir(root + "/thousand") as found:
        for item in found:
            status = item.stat(follow_symlinks=False)
            items.append({"name": item.name, "path": "thousand/" + item.name,
                "type": "directory" if stat.S_ISDIR(status.st_mode) else "file", "size": status.st_size,
                "modified_at": datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC),
                "mode": f"{status.st_mode & 0o7777:04o}", "target": None,
                "etag": f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'})
    items.sort(key=lambda item: item["name"])
    return orjson.dumps({"path": "", "items": items, "next_cursor": None}, option=orjson.OPT_UTC_Z)
async def app(scope, receive, send):
    if scope["type"] != "http": return
    if scope["path"].startswith("/api/v1/files/"):
        with open(root + "/" + scope["path"][14:], "rb") as file:
            body = file.read()
        kind = b"text/plain"
    else:
        body, kind = listing(), b"application/json"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind), (b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)
Server(uvicorn.Config(app, port=0, http="httptools", loop="uvloop", lifespan="off", log_level="warning", access_log=False)).run()
"""


def main() -> int:
    """Measure and print."""
    ok = True
    with server() as ours:
        Path(ours.workspace, "ten.txt").write_bytes(b"x" * 10_240)
        Path(ours.workspace, "thousand").mkdir()
        for number in range(1000):
            Path(ours.workspace, "thousand", f"file_{number:04d}.py").write_bytes(b"x" * number)
        bare = python("-c", BARE, str(ours.workspace))
        try:
            assert bare.stdout is not None
            port, own_port = int(bare.stdout.readline()), int(ours.url.rpartition(":")[2])
            for name, path, requests, bar in (
                ("10 KB", "/api/v1/files/ten.txt", 20_000, 1.5),
                ("list of 1,000", "/api/v1/files?path=thousand&limit=1000", 800, 1.3),
            ):
                figures: dict[str, list[float]] = {"ours": [], "bare": []}
                for _ in range(ROUNDS):
                    figures["ours"].append(cost_us(ours.server_pid, own_port, path, requests))
                    figures["bare"].append(cost_us(bare.pid, port, path, requests))
                print(f"      {name}: ours {median(figures['ours']):.1f} µs, bare {median(figures['bare']):.1f} µs")
                ok &= report(f"{name} against bare ASGI", median(figures["ours"]) / median(figures["bare"]), "×", bar)
        finally:
            bare.terminate()
            bare.wait()
            assert bare.stdout is not None
            bare.stdout.close()
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
