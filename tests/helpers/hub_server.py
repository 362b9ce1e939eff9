"""A small Hugging Face hub for tests: it takes uploads of models and Spaces, and serves models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: name -> path -> content. A change gives a repository a new commit."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.tokens: set[str] = set()  # that requests came with
        self.fetched: list[str] = []  # files that were downloaded
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> HubServer:
        """Start to serve in a thread."""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving and close the socket."""
        self.shutdown()
        self.server_close()

    def commit(self, name: str) -> str:
        """Return the hash of a repository's state."""
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of `huggingface_hub` that pushing and loading a model need."""

    server: HubServer

    def do_GET(self) -> None:
        """Describe a repository, list its files, or serve a file."""
        self._note_token()
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/[^/]+)?", path):
            name, kind = match.groups()
            files = self.server.repositories.get(name)
            if files is None:
                self._answer({"error": "Repository not found"}, 404, code="RepoNotFound")
            elif kind == "tree":
                self._answer([_entry(file, content) for file, content in files.items()])
            else:
                siblings = [{"rfilename": file} for file in files]
                sha = self.server.commit(name)
                self._answer({"id": name, "modelId": name, "sha": sha, "siblings": siblings})
            return
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.+)", path)
        content = self.server.repositories.get(match[1], {}).get(match[2]) if match else None
        if match is None or content is None:
            self._answer({"error": "Entry not found"}, 404, code="EntryNotFound")
            return
        if self.command == "GET":
            self.server.fetched.append(match[2])
        self.send_response(200)
        self.send_header("ETag", f'"{_blob(content)}"')
        self.send_header("X-Repo-Commit", self.server.commit(match[1]))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Make a repository, say how each file is to be uploaded, or take a commit."""
        self._note_token()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._answer({"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/(?:models|spaces)/(.+)/preupload/main", path):
            paths = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]
            self._answer({"files": files})
        elif match := re.fullmatch(r"/api/(?:models|spaces)/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[match[1]][line["value"]["path"]] = content
            oid = self.server.commit(match[1])
            url = f"{self.server.url}/{match[1]}/commit/{oid}"
            self._answer({"success": True, "commitOid": oid, "commitUrl": url})
        else:
            self._answer({"error": f"unknown request {path}"}, 404)

    def _note_token(self) -> None:
        if (sent := self.headers.get("Authorization", "")).startswith("Bearer "):
            self.server.tokens.add(sent.removeprefix("Bearer "))

    def _answer(self, value: Any, status: int = 200, code: str = "") -> None:
        """Send JSON."""
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _blob(content: bytes) -> str:
    """Return the name that git gives a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """Return a file as the hub lists it."""
    return {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
