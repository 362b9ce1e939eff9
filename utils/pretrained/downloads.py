"""Download one file from one of several addresses, whole or not at all.

`requests` does the transfer, with proxies and certificates of the environment; its retries cover
failures before the first byte. Own code does what no library does together: a transfer that broke
off goes on in this run or the next, from mirrors, if the server still has the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from utils.base.errors import UserError
from utils.base.locks import FileLock
from utils.base.progress import progress

CHUNK = 1 << 20  # bytes
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses that are worth another try
ZIP_MAGIC = b"PK\x03\x04"
LONGEST_WAIT = 30.0  # seconds between two tries


class Interrupted(Exception):
    """A transfer that broke off or cannot be continued; it may be tried again."""


class Unavailable(Exception):
    """An address that does not give the file; another may."""


@dataclass(frozen=True)
class Patience:
    """Number and length of the attempts at an address that fails."""

    attempts: int = 5  # tries in a row that bring nothing new
    backoff: float = 1.0  # seconds before the second try, doubled each time
    timeout: float = 30.0  # seconds without an answer or a byte


@dataclass(frozen=True)
class Origin:
    """The source of a partial file's bytes."""

    address: str  # SHA-256 of the URL, which may hold a password
    validator: str | None  # ETag or date that the server gave for the file
    total: int | None  # bytes that the server announced


class PartialFile:
    """`.<name>.part` beside the target; `.<name>.part.json` beside it records the origin.

    A lock, `.<name>.part.lock`, keeps other processes from fetching the target meanwhile.
    """

    def __init__(self, target: Path) -> None:
        """Take the lock and open the file; raise UserError if another process holds it."""
        self.target = target
        self.path = target.with_name(f".{target.name}.part")
        self.about = target.with_name(f".{target.name}.part.json")
        lock = target.with_name(f".{target.name}.part.lock")
        with contextlib.ExitStack() as opened:
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(FileLock(lock, f"{target}: is being fetched"))
                self.file = opened.enter_context(open(self.path, "a+b"))
            except OSError as fault:
                raise UserError(f"{target}: cannot be written ({fault.strerror})") from fault
            self._opened = opened.pop_all()

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.size == 0:
            self.path.unlink(missing_ok=True)
            self.about.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a full disk was reported when writing
            self._opened.close()

    @property
    def size(self) -> int:
        """Return the number of bytes that have arrived."""
        return os.fstat(self.file.fileno()).st_size

    @property
    def origin(self) -> Origin | None:
        """Return the source of the bytes, or None if it is not known."""
        try:
            return Origin(**json.loads(self.about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, origin: Origin, keep: int) -> None:
        """Keep the first `keep` bytes; what is written next comes from `origin`."""
        self.file.truncate(keep)
        self.about.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def discard(self) -> None:
        """Drop everything that has arrived."""
        self.file.truncate(0)
        self.about.unlink(missing_ok=True)

    def sha256(self) -> str:
        """Return the hexadecimal checksum of what has arrived."""
        self.file.flush()
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def finish(self) -> None:
        """Bring the file to disk, then give it the target's name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.path, self.target)
        self.about.unlink(missing_ok=True)


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str = "",
    patience: Patience = Patience(),
) -> None:
    """Fetch `target` from the first of `urls` that gives it.

    sha256: hexadecimal checksum of the file, or its first digits; empty = not known.

    Raises UserError with the answer of each address. `target` is then not there. The bytes that
    arrived are kept for the next call, after Ctrl-C too.
    """
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise UserError(f"{url}: not an address; it should begin with https:// or http://")
    answers = []
    with PartialFile(target) as part, _session(patience) as session:
        for url in urls:
            try:
                _fetch(session, url, part, sha256, patience)
                part.finish()
                return
            except Unavailable as fault:
                answers.append(f"{_shown(url)}: {fault}")
            except OSError as fault:
                # The errors of requests are OSErrors too, but _fetch has replaced those.
                reason = fault.strerror or fault
                raise UserError(f"{target}: cannot be written ({reason})") from fault
    raise UserError("; ".join(answers))


def _session(patience: Patience) -> requests.Session:
    """Open a session that retries passing errors."""
    session = requests.Session()
    retry = Retry(
        total=patience.attempts,
        connect=min(2, patience.attempts),  # fewer, to report a missing network soon
        status_forcelist=PASSING,
        backoff_factor=patience.backoff,
        backoff_max=LONGEST_WAIT,
        retry_after_max=int(2 * LONGEST_WAIT),
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # With compression, sizes and ranges would not be those of the file.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _fetch(
    session: requests.Session, url: str, part: PartialFile, sha256: str, patience: Patience
) -> None:
    """Fill `part` from one address and check it; raise Unavailable if the address fails."""
    failures, furthest, faults = 0, 0, 0
    while True:
        try:
            _transfer(session, url, part, patience.timeout)
        except Interrupted as interruption:
            failures = 0 if part.size > furthest else failures + 1
            furthest = max(furthest, part.size)
            if failures < patience.attempts:
                wait = patience.backoff * 2 ** max(failures - 1, 0)
                time.sleep(min(wait, LONGEST_WAIT))
                continue
            # A server may announce more bytes than there are: then the checksum decides.
            if not (len(sha256) == 64 and part.sha256() == sha256):
                raise Unavailable(interruption) from interruption
        fault = download_fault(part.path, sha256)
        if fault is None:
            return
        part.discard()
        faults += 1
        if faults == 2:
            raise Unavailable(fault)


def _transfer(session: requests.Session, url: str, part: PartialFile, timeout: float) -> None:
    """Request the bytes that are not there yet; raise Interrupted if fewer arrive."""
    address = hashlib.sha256(url.encode()).hexdigest()
    origin = part.origin
    if origin is not None and origin.address != address:
        origin = None  # the bytes come from elsewhere, and cannot be continued here
    done = part.size if origin else 0
    headers = {}
    if done:
        headers["Range"] = f"bytes={done}-"
    if done and origin and origin.validator:
        headers["If-Range"] = origin.validator
    try:
        answer = session.get(url, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException as fault:
        raise Unavailable(_reason(fault)) from fault
    with answer:
        start, total = _range_of(answer, done)
        if done and answer.status_code == 416:  # there is nothing after the bytes that are there
            if total == done:
                return
            part.discard()
            raise Interrupted("the server cannot go on where it broke off")
        validator = _validator(answer)
        if start and not (origin and start == done and _is_same_file(origin, validator, total)):
            part.discard()
            raise Interrupted("the file has changed on the server since it broke off")
        _check_space(part, start, total)
        part.begin(Origin(address, validator, total), start)
        bar = progress(None, part.target.name, total, "B", start, scale=True)
        try:
            with bar:
                # A failing read loses no bytes that arrived: each is written before the next read.
                while block := answer.raw.read1(CHUNK, decode_content=False):
                    part.file.write(block)
                    bar.update(len(block))
        except HTTPError as fault:
            part.file.flush()
            whole = "its" if total is None else total
            raise Interrupted(f"breaks off after {part.size} of {whole} bytes") from fault
    part.file.flush()
    if total is not None and part.size != total:
        raise Interrupted(f"sends {part.size} of {total} bytes")


def _range_of(answer: requests.Response, done: int) -> tuple[int, int | None]:
    """Return the first byte that an answer holds, and the size of the whole file if stated.

    Raises Unavailable if the answer is not the file.
    """
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", answer.headers.get("Content-Range", "")
    )
    stated = int(match[2]) if match and match[2] != "*" else None
    if done and answer.status_code == 416:
        return 0, stated
    if done and answer.status_code == 206 and match and match[1]:
        return int(match[1]), stated
    if answer.status_code != 200:
        raise Unavailable(f"{answer.status_code} {answer.reason}")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Unavailable("sends a web page, not the file")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable("sends the file in another encoding")
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(answer: requests.Response) -> str | None:
    """Return the value that changes with the file on the server: a strong ETag, or its date."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")


def _is_same_file(origin: Origin, validator: str | None, total: int | None) -> bool:
    """Return True if an answer comes from the file that the partial file began with.

    Every value that both state has to agree: the validator, the size. At least one must be stated.
    """
    pairs = [(origin.validator, validator), (origin.total, total)]
    stated = [(before, now) for before, now in pairs if None not in (before, now)]
    return bool(stated) and all(before == now for before, now in stated)


def _check_space(part: PartialFile, start: int, total: int | None) -> None:
    """Raise UserError if the disk has no room for the bytes from `start` on."""
    room = shutil.disk_usage(part.path.parent).free + part.size - start
    if total is not None and total - start > room:
        raise UserError(
            f"{part.target.parent}: {part.target.name} takes {(total - start) / 1e9:.2f} GB more, "
            f"but there is room for {room / 1e9:.2f} GB"
        )


def download_fault(path: Path, sha256: str = "") -> str | None:
    """Return the reason why a file is not the wanted one, or None.

    `sha256`: checksum or its first digits. Without it, only three faults are found: an empty file,
    a web page, and a truncated zip archive (.pt and .npz files are zip archives).
    """
    if sha256:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(sha256):
            return f"is not the published file: its SHA-256 is {found}, not {sha256}"
        return None
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "is empty"
    if head.startswith(ZIP_MAGIC) and not zipfile.is_zipfile(path):
        return "is truncated"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file"
    return None


def _shown(url: str) -> str:
    """Return a URL without password and signature."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _reason(fault: requests.RequestException) -> str:
    """Return the cause of a failed request in a few words."""
    for kind, words in (
        (requests.exceptions.SSLError, "its certificate is not accepted"),
        (requests.exceptions.ProxyError, "the proxy does not answer"),
        (requests.exceptions.Timeout, "no answer in time"),
        (requests.exceptions.TooManyRedirects, "redirects without end"),
    ):
        if isinstance(fault, kind):
            return words
    if "NameResolution" in repr(fault):
        return "the name is not known (no network?)"
    return "cannot be reached" if isinstance(fault, requests.ConnectionError) else str(fault)
