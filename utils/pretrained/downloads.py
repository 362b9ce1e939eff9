"""One file from one of several addresses, whole or not at all.

`requests` does the transfer, so proxies and certificates come from the environment as usual
(HTTPS_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE), and its retries cover what fails before the first byte.
What arrives is kept in `.<name>.part` beside the target; a transfer that broke off goes on there,
in this run or the next, if the server can resume and still has the same file.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from utils.base.errors import UserError
from utils.base.progress import progress
from utils.pretrained.partial_file import Origin, PartialFile

CHUNK = 1 << 20  # bytes
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses that are worth another try
ZIP_MAGIC = b"PK\x03\x04"
LONGEST_WAIT = 30.0  # seconds between two tries


class Interrupted(Exception):
    """The transfer broke off or its beginning was of no use; it may be tried again."""


class Unavailable(Exception):
    """This address does not give the file; another may."""


@dataclass(frozen=True)
class Patience:
    """How long to go on with an address that fails."""

    attempts: int = 5  # tries in a row that bring nothing new
    backoff: float = 1.0  # seconds before the second try, doubled each time
    timeout: float = 30.0  # seconds without an answer or a byte


def download(
    urls: Sequence[str],
    target: Path,
    *,
    sha256: str = "",
    patience: Patience = Patience(),
) -> None:
    """Fetch `target` from the first of `urls` that gives it.

    sha256: hexadecimal checksum of the file, or the first digits of it; empty = not known.

    Raises UserError with what each address answered. `target` is then not there, and what arrived
    is kept for the next call. Interruptions (Ctrl-C) keep it too.
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
                # requests' own errors are OSErrors too, and were dealt with in _fetch.
                reason = fault.strerror or fault
                raise UserError(f"{target}: cannot be written ({reason})") from fault
    raise UserError("; ".join(answers))


def _session(patience: Patience) -> requests.Session:
    session = requests.Session()
    retry = Retry(
        total=patience.attempts,
        connect=min(2, patience.attempts),  # a machine without network should say so soon
        status_forcelist=PASSING,
        backoff_factor=patience.backoff,
        backoff_max=LONGEST_WAIT,
        retry_after_max=int(2 * LONGEST_WAIT),
        raise_on_status=False,
    )
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    # Compressed on the way, sizes and ranges would not be those of the file.
    session.headers["Accept-Encoding"] = "identity"
    return session


def _fetch(
    session: requests.Session, url: str, part: PartialFile, sha256: str, patience: Patience
) -> None:
    """Fill `part` from one address and check it; raises Unavailable if that cannot be done."""
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
            # A server may announce more than there is: the checksum knows better.
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
    """One request, for the bytes that are not there yet."""
    address = hashlib.sha256(url.encode()).hexdigest()
    origin = part.origin
    done = part.size if origin and origin.address == address else 0
    headers = {}
    if done:
        headers["Range"] = f"bytes={done}-"
        if origin.validator:
            headers["If-Range"] = origin.validator
    try:
        answer = session.get(url, headers=headers, stream=True, timeout=timeout)
    except requests.RequestException as fault:
        raise Unavailable(_reason(fault)) from fault
    with answer:
        start, total = _what_follows(answer, done)
        if done and answer.status_code == 416:
            if total == done:
                return  # it was whole already
            part.discard()
            raise Interrupted("the server cannot go on where it broke off")
        validator = _validator(answer)
        if done and start and not (start == done and _is_same(origin, validator, total)):
            part.discard()
            raise Interrupted("the file has changed on the server since it broke off")
        _check_space(part, start, total)
        part.begin(Origin(address, validator, total), start)
        bar = progress(None, part.target.name, total, "B", start, scale=True)
        try:
            with bar:
                # One read at a time, so that nothing which arrived is lost when the next one fails.
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


def _what_follows(answer: requests.Response, done: int) -> tuple[int, int | None]:
    """First byte that an answer holds and size of the whole file, where stated."""
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
    """What tells whether the file is still the same: a strong ETag, or its date."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")


def _is_same(origin: Origin, validator: str | None, total: int | None) -> bool:
    """Whether an answer continues what is there: whatever both state agrees, and something is."""
    pairs = [(origin.validator, validator), (origin.total, total)]
    stated = [(before, now) for before, now in pairs if None not in (before, now)]
    return bool(stated) and all(before == now for before, now in stated)


def _check_space(part: PartialFile, start: int, total: int | None) -> None:
    room = shutil.disk_usage(part.path.parent).free + part.size - start
    if total is not None and total - start > room:
        raise UserError(
            f"{part.target.parent}: {part.target.name} takes {(total - start) / 1e9:.2f} GB more, "
            f"but there is room for {room / 1e9:.2f} GB"
        )


def download_fault(path: Path, sha256: str = "") -> str | None:
    """What shows that a file is not what it should be, or None.

    `sha256`: checksum or its first digits. Without one, only files are found out that begin as a
    web page, or begin as a zip archive (as .pt and .npz files do) and do not end as one.
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
    """A URL without password and signature."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"


def _reason(fault: requests.RequestException) -> str:
    """What a failed request comes down to, in a few words."""
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
