#!/usr/bin/env python3
# /// script
# requires-python = ">=3.8"
# dependencies = ["urllib3>=1.26,<3", "PyYAML>=5.3"]
# ///
"""velero_requests: Velero's request subsystem in one file that can be read before it is trusted.

Velero keeps backups of Kubernetes clusters in object storage. Nobody who wants a backup's log touches the bucket: a
DownloadRequest object is created, a controller answers it with a pre-signed URL, the client fetches that URL.
ServerStatusRequest does the same for the server's version and plugins. This file is that controller, that client, and
the functions of both to import. It speaks the Kubernetes REST API and signs S3 URLs itself, and it interoperates both
ways with Velero 1.6.3 to 1.18.

    python3 velero_requests.py controller                answer requests, beside or instead of Velero's own controllers
    python3 velero_requests.py backup logs NAME          print a backup's log, or say why there is none
    python3 velero_requests.py --help                    everything else

Contents
     1  Ground          exit codes, the error family, text and time, typed access to strangers' documents
     2  Requests        the kinds, what can be asked for, and every policy of the controller
     3  Locations       BackupStorageLocation -> record -> object key -> address
     4  Signing         AWS Signature Version 4, one function per noun of the specification
     5  Keys            AWS ini files, profiles, and the plan where keys come from
     6  Kubeconfig      documents -> cluster and identity; proxy rules
     7  Downloads       what an answer says of an object, ranges, refusals and their cures, when to try again
     8  Screens         tables, describe, JSON and YAML
     9  Manifests       the CustomResourceDefinitions
    ===  the waterline: above it is arithmetic on values (`now` is an argument), below it is the world
    10  Connections     TLS, deadlines, pools, sessions and their renewal
    11  Cluster         one exchange, thin verbs over it, one event stream
    12  Key sources     Secret, STS, files, container, instance metadata
    13  Store           receive, go on, verify, save
    14  Controller      queue, feeders, workers, gather, apply, run
    15  Client          create, wait, stream, tidy up; or do without a controller
    16  Doctor          why nobody answered: checks, each one finding with its cure
    17  Command line    the COMMANDS table, the parser made from it, main

How to read it: from top to bottom. A name is explained before it is used, and nothing above the waterline touches I/O,
clocks, threads or randomness; both are checked by test_velero_requests.py. Importing this file does nothing.
"""

from __future__ import annotations
import os
import sys

if sys.version_info < (3, 8):
    sys.exit("error: velero_requests.py needs Python 3.8 or newer, this is %d.%d" % sys.version_info[:2])

if __name__ == "__main__" and __spec__ is None and sys.path[0] == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]                          # what lies beside a script is no part of it, compiled or not

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C while the rest is imported needs no traceback

import argparse
import base64
import contextlib
import difflib
import email.utils
import enum
import errno
import functools
import hashlib
import heapq
import hmac
import http.client
import io
import ipaddress
import itertools
import json
import logging
import math
import posixpath
import queue
import random
import re
import select
import shutil
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
import zlib
from collections import OrderedDict, deque
from datetime import datetime, timedelta, timezone
from typing import (
    Any, BinaryIO, Callable, ContextManager, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence,
    Set, Tuple, Union)
from urllib.parse import quote, unquote, urlencode, urlsplit

try:
    import fcntl
except ImportError:                          # Windows: two downloads of one target are not kept apart there
    fcntl = None  # type: ignore[assignment]

try:
    import urllib3
    import yaml
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit(f"error: the package {missing.name} is missing\n"
             "hint: `apt-get install python3-urllib3 python3-yaml`, `dnf install python3-urllib3 python3-pyyaml` or "
             "`apk add py3-urllib3 py3-yaml`\n"
             "hint: or in a venv: `python3 -m venv venv && venv/bin/pip install 'urllib3>=1.26,<3' 'PyYAML>=5.3'`; "
             "without a network see Install in README.md")

__version__ = "0.1.0"

log = logging.getLogger("velero_requests")

# ====================================================================================================
# 1. Ground — exit codes, the error family, text and time, typed access to strangers' documents
# ====================================================================================================

Document = Dict[str, Any]  # a Kubernetes object as JSON gave it, passed on untouched


def hides(*secrets: str) -> Callable[[type], Any]:
    """A record whose repr leaves these fields out.

    All records are NamedTuples: thirty dataclasses take 25 ms of each start, for each is source to be compiled then.
    """
    def show(record: Any) -> str:
        shown = [f"{name}={value!r}" for name, value in zip(record._fields, record) if name not in secrets]
        return f"{type(record).__name__}({', '.join(shown)})"

    def hide(record: type) -> type:
        record.__repr__ = show  # type: ignore[assignment]
        return record

    return hide


class Exit(enum.IntEnum):
    """Exit codes of every command; treat a code that is not listed as a failure."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3      # the object or the artifact does not exist
    TIMED_OUT = 4      # nobody answered in time
    NOT_ALLOWED = 5    # 401 or 403, from the cluster or the store
    UNREACHABLE = 6    # cluster or store, TLS included
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output left, as in `backup logs NAME | head`


DEFAULT_NAMESPACE = "velero"
PROGRAM = "velero_requests.py"

MESSAGE_LIMIT = 1024                         # characters; what core/v1 Event allows for a message


class Error(Exception):
    """Base of everything this module raises on purpose.

    The text is one sentence that names the object and holds no secret. `hints` are cures, one line each. `reason` is
    the stable word a controller leaves on a request. `retry` says whether time alone may mend it.
    """

    exit = Exit.FAILED
    retry = True
    usual_reason = "InternalError"

    def __init__(self, message: str, *, hints: Iterable[str] = (), reason: str = ""):
        super().__init__(message)
        self.hints = tuple(hints)
        self.reason = reason or self.usual_reason


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Let an error that passes begin with what it is about, unless it names that itself."""
    try:
        yield
    except Error as error:
        if subject not in str(error):
            error.args = (f"{subject}: {error}",)
        raise


class UsageError(Error):
    """The caller asked for something that cannot be: wrong flag, wrong value."""

    exit = Exit.USAGE
    retry = False


class ConfigError(Error):
    """A kubeconfig, storage location or credentials file is wrong."""


class CredentialsError(ConfigError):
    """The keys that open a store are wrong, or cannot be had."""

    usual_reason = "InvalidCredentials"


class InvalidRequest(Error):
    """A request that no retry can mend: unknown kind, impossible name."""

    retry = False


class NotFound(Error):
    """An object or an artifact does not exist."""

    exit = Exit.NOT_FOUND


class ApiError(Error):
    """The Kubernetes API refused: `status` is the HTTP code, `api_reason` the API's own word (NotFound, Expired …)."""

    def __init__(self, message: str, *, status: int, api_reason: str = "", hints: Iterable[str] = ()):
        super().__init__(message, hints=hints, reason="Forbidden" if status in (401, 403) else "ClusterError")
        self.status = status
        self.api_reason = api_reason
        self.exit = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}.get(status, Exit.FAILED)


class RequestFailed(Error):
    """A controller answered a request with a reason instead of an answer."""

    def __init__(self, message: str, *, reason: str):
        super().__init__(message, reason=reason)
        if reason.endswith("NotFound"):
            self.exit = Exit.NOT_FOUND


class StoreError(Error):
    """The object store refused, or sent something else than was asked for; `status` is the HTTP code, 0 after a 200."""

    def __init__(self, message: str, *, status: int = 0, hints: Iterable[str] = (), reason: str = "StoreError"):
        super().__init__(message, hints=hints, reason=reason)
        self.status = status
        self.skew = timedelta(0)
        self.retry_after: Optional[float] = None  # seconds that the store asks to wait
        self.exit = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}.get(status, Exit.FAILED)


class Unreachable(Error):
    """No connection to the cluster or the store, or TLS failed."""

    exit = Exit.UNREACHABLE
    usual_reason = "Unreachable"


class TimedOut(Error):
    """Nobody answered a request in time."""

    exit = Exit.TIMED_OUT


_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,99}))?([Zz]|[+-]\d\d:?\d\d)?",
                   re.ASCII)


def parse_time(text: object) -> Optional[datetime]:
    """RFC 3339 -> aware UTC datetime, or None for anything that is no instant Python can hold.

    Anyone may fill in a status, so this never raises; a missing offset is read as UTC.
    """
    match = _TIME.fullmatch(text) if isinstance(text, str) else None
    if not match:
        return None
    *numbers, fraction, offset = match.groups()
    zone = timezone.utc
    try:
        if offset and offset not in "Zz":
            minutes = int(offset[1:3]) * 60 + int(offset[-2:])
            zone = timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes))
        microsecond = int((fraction or "0")[:6].ljust(6, "0"))
        return datetime(*map(int, numbers), microsecond, tzinfo=zone).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def format_time(instant: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, cut off and not rounded, as Kubernetes' metav1.Time writes it."""
    return instant.astimezone(timezone.utc).isoformat()[:19] + "Z"


JOINERS = "\u200c\u200d"                      # which some scripts need inside of words; they drive nothing


def printable(text: str) -> str:
    """A stranger's text, with blanks for what would drive a terminal, turn the direction of writing or hide."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in JOINERS else " " for c in text)


def one_line(text: object, limit: int = 300) -> str:
    """Foreign text made fit for a terminal or an annotation: one line, nothing invisible, cut at `limit`."""
    start = str(text)[:4 * limit]  # a stranger's text may be megabytes
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= limit else line[:limit - 1] + "…"


_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_DURATION = re.compile(rf"[-+]?(?:0|(?:{_DURATION_PART})+)", re.ASCII)
DURATION_LIMIT = 100                         # characters; nobody means more of them


def parse_duration(text: str) -> float:
    """Go's duration notation (`1h2m`, `1.5s`, `250ms`, `0`) -> seconds; ValueError for anything else."""
    if len(text) > DURATION_LIMIT or not _DURATION.fullmatch(text):
        raise ValueError(f"invalid duration {one_line(text, 64)!r}")
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in re.findall(_DURATION_PART, text))
    if seconds >= 2 ** 63 / 1e9:
        raise ValueError(f"invalid duration {one_line(text, 64)!r}: Go's end at 292 years")
    return -seconds if text[0] == "-" else seconds


def format_duration(seconds: float, digits: int = 3) -> str:
    """Seconds -> Go's notation (`1m0s`, `1.5s`, `250ms`), with so many digits of a second; 9 are all that Go has."""
    number = round(round(abs(seconds), digits) * 1e9)
    sign = "-" if seconds < 0 < number else ""
    if 0 < number < 10 ** 9:
        unit, name = next(row for row in ((10 ** 6, "ms"), (10 ** 3, "µs"), (1, "ns")) if number >= row[0])
        return f"{sign}{number / unit:.6f}".rstrip("0").rstrip(".") + name
    minutes, rest = divmod(number, 60 * 10 ** 9)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1e9:.9f}".rstrip("0").rstrip(".") + "s"
    return sign + (f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text)


# The parameters of a pre-signed URL that make it a bearer token (AWS SigV4 and SigV2, Google, Azure), also where the
# URL is itself a parameter of another; a bearer token in a header; name and password in a URL. These end before the
# path, which may hold an `@`, unless what stands there can be no host: then it is a password with a slash in it.
_SECRETS = re.compile(
    r"((?:Signature|Credential|(?:Security-?|Session|WebIdentity)Token|AWSAccessKeyId|GoogleAccessId|sig)"
    r"(?:=|%(?:25){0,9}3D|\\u003d))(?:(?!%(?:25){0,9}26)[^&\s\"'<>])+"
    r"|(\bBearer\s+|\bAuthorization: Basic )[^\s\"',&]+"
    r"|(\w://)(?:[^\s\"'<>/?#]*@"
    r"|(?!(?:[\w.-]*|\[[\w:.]*\])(?::\d{0,5})?(?:[\s\"'<>/?#]|$))[^\s\"'<>]{0,256}@)", re.IGNORECASE)
REDACTED_LIMIT = 1 << 16                     # characters; longer text is cut, at a blank so that no secret is halved


def redact(text: str) -> str:
    """The text, cut, with signatures, credentials, bearer tokens and passwords in URLs blanked."""
    if len(text) > REDACTED_LIMIT:
        text = "".join(re.split(r"(\s)", text[:REDACTED_LIMIT])[:-1]) + "…"
    return _SECRETS.sub(lambda match: next(filter(None, match.groups())) + ("***@" if match.group(3) else "***"), text)


class SaidOnce:
    """Texts that were said already; no more of them, and no longer ones, than memory has room for."""

    def __init__(self, most: int) -> None:
        self.texts: Set[str] = set()
        self.most = most

    def is_news(self, text: str) -> bool:
        """Whether a text was not said yet; beyond the limit none is news."""
        text = text[:MESSAGE_LIMIT]
        if text in self.texts or len(self.texts) >= self.most:
            return False
        self.texts.add(text)
        return True


def decode_base64(text: str) -> Optional[bytes]:
    """Base64 as Go reads it, strict but for line ends; None when it is none."""
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        return None


DEEPEST = 100                                # levels of a document; whatever walks it later can follow as many
MOST_ELEMENTS = 2_200_000                    # of a JSON document; an object of etcd's 1.5 MiB cannot have more
MAPPING_WEIGHT = 3                           # elements that a mapping counts for, for it takes more memory
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{},'))


class TooMuch(ValueError):
    """JSON that a few bytes of text would make too deep, or too large in memory."""


def _integer(digits: str) -> int:
    if len(digits) > 400:  # Python's own limit is missing in old ones, where long numbers take long
        raise ValueError("a number of more than 400 digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def parse_json(content: bytes, most: int = MOST_ELEMENTS) -> Any:
    """A stranger's JSON, of at most `most` elements; ValueError, with no word of it, when it is none.

    What is TooMuch is told by the marks outside of strings, before anything is built of it.
    """
    marks = bytes(content).replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS).replace(b'""', b"")
    outside = marks.split(b'"')[::2] if marks.count(b'"') <= 2 * most + 2 else []
    marks = b"".join(outside)
    if not outside or marks.count(b",") + marks.count(b"[") + MAPPING_WEIGHT * marks.count(b"{") > most:
        raise TooMuch(f"has more than {most} elements")
    marks = marks.translate(None, b",")
    for _ in range(DEEPEST if marks else 0):
        marks = marks.replace(b"[]", b"").replace(b"{}", b"")
    if marks and marks.count(b"[") == marks.count(b"]") and marks.count(b"{") == marks.count(b"}"):
        raise TooMuch(f"is nested more than {DEEPEST} levels deep")
    try:
        if marks:
            raise ValueError("a bracket too many or too few")
        return _DECODER.decode(str(content, "utf-8-sig", "surrogatepass"))
    except ValueError:
        raise ValueError("is no JSON") from None


def lines(chunks: Iterable[bytes], limit: int = 8 << 20) -> Iterator[bytes]:
    """Byte chunks -> whole lines without their newline.

    Splitting bytes and never text keeps a character that two chunks share in one piece. A last line without a newline
    was cut off and is dropped; one that grows beyond `limit` bytes is an error.
    """
    held: List[bytes] = []                   # pieces of the line that has not ended yet
    size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            yield b"".join([*held, piece])
            held, size = [], 0
        held.append(rest)
        size += len(rest)
        if size > limit:
            raise Unreachable(f"a line of more than {limit} bytes in the answer")


def _at(document: Any, *path: str) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _text(document: Any, *path: str) -> str:
    value = _at(document, *path)
    return value if isinstance(value, str) else ""


def _name(document: Any, *path: str) -> str:
    """A name of an object, cut where no name can go on: strangers may write megabytes, and records are kept."""
    return _text(document, *path)[:254]


def has_dot_segment(path: str) -> bool:
    """Whether a path has a `.` or `..` between slashes, which clients and proxies resolve, changing what was signed."""
    return any(segment in (".", "..") for segment in path.split("/"))


def is_http_url(url: str) -> bool:
    """Whether a URL has a scheme we speak, a host, and a port that can be."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        return False


_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


def dns_label(text: str, source: str) -> str:
    """A text that can be a label of a host name, such as a region; ConfigError that names its source for any other."""
    if not _DNS_LABEL.fullmatch(text):
        raise ConfigError(f"{source} is {one_line(text, 64)!r}, no DNS label such as eu-west-1",
                          reason="InvalidStorageLocation")
    return text


_GO_BOOLS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
             **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False", ""), False)}


def header_value(text: str, what: str) -> str:
    """Text that may go into an HTTP header; ConfigError, without the text, when it has other than printable ASCII."""
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{what} has characters that cannot be sent, such as a line end")
    return text


_TYPE_NAMES = {str: "a string", bool: "true or false", list: "a list", dict: "a mapping"}

# A Kubernetes object name (RFC 1123 subdomain). Backups and restores are objects, so no other name can exist; holding a
# target to this rule keeps every key inside `backups/` or `restores/`.
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)


def is_object_name(name: str) -> bool:
    """Whether Kubernetes could have an object of this name."""
    return len(name) <= 253 and _OBJECT_NAME.fullmatch(name) is not None


def _ip_address(text: str) -> Any:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _in_network(address: Any, text: str) -> bool:
    with contextlib.suppress(ValueError, TypeError):
        return address in ipaddress.ip_network(text, strict=False)
    return False


# Where clouds give keys to whoever asks: link-local addresses, addresses of their own, and IPv6 forms of IPv4's.
_LINK_LOCAL = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200/32", "192.0.0.192/32",
               "::ffff:169.254.0.0/112", "::169.254.0.0/112", "64:ff9b::169.254.0.0/112", "2002:a9fe::/32")


def is_link_local(address: str) -> bool:
    """Whether an address is one of link-local services, such as the metadata of an instance."""
    value = _ip_address(address.partition("%")[0])
    return value is not None and any(_in_network(value, network) for network in _LINK_LOCAL)


def backoff(failures: int, base: float, cap: float) -> float:
    """Seconds to wait after the n-th failure in a row (n >= 1): base * 2**(n-1), at most cap."""
    return min(cap, base * 2.0 ** min(failures - 1, 64))


_ENTITIES = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


def _character(entity: Any) -> str:
    """What a match of an XML entity stands for; one that stands for nothing stays as it is."""
    name = entity.group(1)
    if name[0] != "#":
        return _ENTITIES.get(name, entity.group())
    code = int("0" + name[1:], 16) if name[1] == "x" else int(name[1:])
    return chr(code) if code < 0x110000 else entity.group()


def _unescaped(text: str) -> str:
    return re.sub(r"&(#x[0-9A-Fa-f]{1,6}|#[0-9]{1,7}|[a-z]+);", _character, text)


def xml_fields(body: bytes) -> Dict[str, str]:
    """The leaf elements of a small XML answer, by name and unescaped; no parser, so nothing in it is carried out."""
    text = body[:65536].decode("utf-8", "replace")
    return {name: _unescaped(value) for name, value in re.findall(r"<(\w+)>([^<]*)</\1>", text)}


def retry_after_seconds(header: str, now: datetime) -> Optional[float]:
    """Retry-After, seconds or an HTTP date (RFC 9110 10.2.3) -> seconds from now; None when it says neither."""
    if re.fullmatch(r"\d{1,9}", header, re.ASCII):
        return float(header)
    try:
        instant = email.utils.parsedate_to_datetime(header[:64])
        return max(0.0, (instant.astimezone(timezone.utc) - now).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None

# ====================================================================================================
# 2. Requests — the kinds, what can be asked for, and every policy of the controller: values in, an Outcome out
#
#    DownloadRequest                                          ServerStatusRequest
#      being deleted                -> leave                    being deleted                     -> leave
#      past its expiration          -> delete, any phase        empty or New                      -> patch: Processed
#      empty or New                 -> look up, sign,           Processed, older than 1 min       -> delete
#                                      patch: Processed         Processed                         -> leave for 5 min
#                                      or patch: reason           (without timestamp: its creation counts)
#      any other phase,                                         any other phase                   -> leave, look never
#        expiration beyond now + 10 min -> patch: cut down
#        otherwise                      -> leave until then (creation + 10 min if it does not say)
#
#    Whoever may create an object may have filled in its status, so no time in it is trusted further than a request
#    lives. Every patch carries the resourceVersion that it was decided on: a stale copy ends in a conflict and another
#    look.
# ====================================================================================================

class Resource(NamedTuple):
    """A kind of Kubernetes object and where the API serves it."""

    kind: str
    plural: str
    group: str = "velero.io"
    version: str = "v1"


DOWNLOAD_REQUESTS = Resource("DownloadRequest", "downloadrequests")
STATUS_REQUESTS = Resource("ServerStatusRequest", "serverstatusrequests")
REQUEST_KINDS = (DOWNLOAD_REQUESTS, STATUS_REQUESTS)
BACKUPS = Resource("Backup", "backups")
RESTORES = Resource("Restore", "restores")
LOCATIONS = Resource("BackupStorageLocation", "backupstoragelocations")
POD_VOLUME_BACKUPS = Resource("PodVolumeBackup", "podvolumebackups")
POD_VOLUME_RESTORES = Resource("PodVolumeRestore", "podvolumerestores")
DELETE_REQUESTS = Resource("DeleteBackupRequest", "deletebackuprequests")
SECRETS = Resource("Secret", "secrets", group="")
EVENTS = Resource("Event", "events", group="")
DEPLOYMENTS = Resource("Deployment", "deployments", group="apps")


def api_path(resource: Resource, namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of a namespaced collection, object or subresource in the Kubernetes REST API."""
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    parts = ["namespaces", namespace, resource.plural, name, subresource]
    return root + "".join("/" + quote(part, safe="") for part in parts if part)


def rule_for(method: str, path: str, watching: bool) -> Tuple[str, str]:
    """A call to the API -> (what it is in words, the line of a Role that allows it); empty for non-resource paths."""
    match = re.fullmatch(r"/api(?:s/([^/]+))?/v1/namespaces/([^/]+)/([^/]+)(/[^/]+)?(/[^/]+)?", path)
    if not match:
        return "", ""
    group, namespace, plural, name, subresource = match.groups()
    reading = "watch" if watching else "get" if name else "list"
    verb = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}.get(method, reading)
    resource = plural + (subresource or "")
    return (f"{verb} {resource} in namespace {namespace}",
            f'- {{apiGroups: ["{group or ""}"], resources: ["{resource}"], verbs: ["{verb}"]}}')


class Artifact(NamedTuple):
    """What a DownloadRequest can ask for: whose it is, under which key, and whether the client inflates it."""

    kind: str
    owner: Resource
    key: str
    gunzip: bool = True
    releases: str = "1.18"                   # those whose CustomResourceDefinition lists the kind


BACKUP_CONTENTS = "BackupContents"

# Every spec.target.kind from Velero 1.6 to 1.18, in the order of 1.18's CRD, with the keys of velero
# pkg/persistence/object_store_layout.go. Two rows surprise: RestoreResults has no `.json` in its name, and
# RestoreVolumeInfo alone has no `restore-` prefix. BackupItemSnapshots existed from 1.8 to 1.10 only.
TARGETS = {row.kind: row for row in (
    Artifact("BackupLog", BACKUPS, "backups/{name}/{name}-logs.gz", releases="1.6 1.18"),
    Artifact(BACKUP_CONTENTS, BACKUPS, "backups/{name}/{name}.tar.gz", gunzip=False, releases="1.6 1.18"),
    Artifact("BackupVolumeSnapshots", BACKUPS, "backups/{name}/{name}-volumesnapshots.json.gz", releases="1.6 1.18"),
    Artifact("BackupItemOperations", BACKUPS, "backups/{name}/{name}-itemoperations.json.gz"),
    Artifact("BackupResourceList", BACKUPS, "backups/{name}/{name}-resource-list.json.gz", releases="1.6 1.18"),
    Artifact("BackupResults", BACKUPS, "backups/{name}/{name}-results.gz"),
    Artifact("RestoreLog", RESTORES, "restores/{name}/restore-{name}-logs.gz", releases="1.6 1.18"),
    Artifact("RestoreResults", RESTORES, "restores/{name}/restore-{name}-results.gz", releases="1.6 1.18"),
    Artifact("RestoreResourceList", RESTORES, "restores/{name}/restore-{name}-resource-list.json.gz"),
    Artifact("RestoreItemOperations", RESTORES, "restores/{name}/restore-{name}-itemoperations.json.gz"),
    Artifact("CSIBackupVolumeSnapshots", BACKUPS, "backups/{name}/{name}-csi-volumesnapshots.json.gz"),
    Artifact("CSIBackupVolumeSnapshotContents", BACKUPS, "backups/{name}/{name}-csi-volumesnapshotcontents.json.gz"),
    Artifact("BackupVolumeInfos", BACKUPS, "backups/{name}/{name}-volumeinfo.json.gz"),
    Artifact("RestoreVolumeInfo", RESTORES, "restores/{name}/{name}-volumeinfo.json.gz"),
    Artifact("BackupItemSnapshots", BACKUPS, "backups/{name}/{name}-itemsnapshots.json.gz", releases=""),
)}


def target_of(kind: str, name: str) -> Artifact:
    """The row of TARGETS for a request's target; InvalidRequest for a kind or a name that cannot exist."""
    if kind not in TARGETS:
        raise InvalidRequest(f"unknown kind {one_line(kind, 64)!r}; known are {', '.join(TARGETS)}",
                             reason="UnknownKind")
    if not is_object_name(name):
        owner = TARGETS[kind].owner.kind.lower()
        raise InvalidRequest(f"{one_line(name, 64)!r} cannot be the name of a {owner}", reason="InvalidName")
    return TARGETS[kind]


# Phases of both kinds of request. Velero 1.6 to 1.18 never write New (it is the empty phase in practice); Failed came
# after 1.18 and carries status.message.
NEW, PROCESSED, FAILED = "New", "Processed", "Failed"
UNANSWERED = ("", NEW)

URL_LIFE = timedelta(minutes=10)             # of a signed URL and of its DownloadRequest (velero pkg/persistence)
STATUS_LIFE = timedelta(minutes=1)           # of a ServerStatusRequest (velero pkg/controller)
STATUS_LOOK_AGAIN = timedelta(minutes=5)     # an answered one is looked at again, and deleted, only after this
URL_POLL, STATUS_POLL = 0.025, 0.25          # seconds between reads where a client may not watch (velero's CLI, too)

REASON = "velero-requests.io/reason"         # annotation: a stable CamelCase word
MESSAGE = "velero-requests.io/message"       # annotation: one sentence, no secrets

RETRY_BASE, RETRY_CAP = 0.005, 30.0          # seconds; client-go's base, a cap that heals within the request's life
WATCH_BASE, WATCH_CAP = 1.0, 30.0            # seconds; a failing list or watch, jitter on top
LINE_CAP = 3.0                               # seconds; the same where no API server is reached, which no retry burdens
PAGE_SIZE = 25                               # objects; client-go's 500 may be 700 MB of hostile ones

OWN_PLUGINS = (("ObjectStore", "velero.io/aws"),)  # (kind, name): all that this file does of a Velero server's plugins


class Key(NamedTuple):
    """One object in the controller's queue."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


@hides("url")
class Request(NamedTuple):
    """A DownloadRequest or ServerStatusRequest as far as decisions need it; times that cannot be read are None."""

    key: Key
    uid: str
    version: str
    created: Optional[datetime]
    deleting: bool
    phase: str
    target_kind: str = ""
    target_name: str = ""
    url: str = ""
    expiration: Optional[datetime] = None    # of a DownloadRequest
    processed: Optional[datetime] = None     # when a ServerStatusRequest was answered
    reason: str = ""
    message: str = ""


class Server(NamedTuple):
    """What a ServerStatusRequest is answered with; plugins are (kind, name)."""

    version: str
    plugins: Tuple[Tuple[str, str], ...] = OWN_PLUGINS


@hides("body")
class Outcome(NamedTuple):
    """What one look at a request comes to.

    `verb` is leave, patch or delete; `body` the merge patch or the preconditions; `again` the instant of the next look;
    `failed` asks for another look with back-off; `why` is the log line, without secrets.
    """

    verb: str
    why: str
    body: Optional[Document] = None  # may hold a signed URL
    again: Optional[datetime] = None
    failed: bool = False


def request_from(resource: Resource, document: Document) -> Request:
    """Document -> record; `reason` and `message` are our annotations, else phase Failed and its status.message."""
    phase = _name(document, "status", "phase")
    return Request(
        key=Key(resource, _name(document, "metadata", "namespace"), _name(document, "metadata", "name")),
        uid=_name(document, "metadata", "uid"),
        version=_name(document, "metadata", "resourceVersion"),
        created=parse_time(_at(document, "metadata", "creationTimestamp")),
        deleting=_at(document, "metadata", "deletionTimestamp") is not None,
        phase=phase,
        target_kind=_name(document, "spec", "target", "kind"),
        target_name=_name(document, "spec", "target", "name"),
        url=_text(document, "status", "downloadURL"),
        expiration=parse_time(_at(document, "status", "expiration")),
        processed=parse_time(_at(document, "status", "processedTimestamp")),
        reason=_name(document, "metadata", "annotations", REASON) or (FAILED if phase == FAILED else ""),
        message=(_text(document, "metadata", "annotations", MESSAGE) or (
            _text(document, "status", "message") if phase == FAILED else ""))[:MESSAGE_LIMIT])


def plugins_from(document: Document) -> List[Tuple[str, str]]:
    """ServerStatusRequest document -> its plugins as (kind, name), sorted as the velero CLI sorts them."""
    plugins = _at(document, "status", "plugins")
    plugins = plugins if isinstance(plugins, list) else []
    return sorted((_text(plugin, "kind"), _text(plugin, "name")) for plugin in plugins)


def _delete(request: Request, why: str) -> Outcome:
    return Outcome("delete", why, body={"preconditions": {"uid": request.uid, "resourceVersion": request.version}})


def _patch(request: Request, why: str, *, status: Document, annotations: Optional[Document] = None,
           again: Optional[datetime] = None, failed: bool = False) -> Outcome:
    metadata = {"resourceVersion": request.version, **({"annotations": annotations} if annotations else {})}
    body = {"metadata": metadata, **({"status": status} if status else {})}
    return Outcome("patch", why, body, again, failed)


def triage_download(request: Request, now: datetime) -> Optional[Outcome]:
    """What can be decided about a DownloadRequest without looking anything up; None when it is to be answered."""
    if request.deleting:
        return Outcome("leave", "it is being deleted")
    limit = now + URL_LIFE
    if request.expiration and request.expiration <= now:
        return _delete(request, f"expired at {format_time(request.expiration)}")
    if request.phase in UNANSWERED:
        return None
    if request.expiration and request.expiration > limit:
        return _patch(request, "its expiration is further off than a URL lives; cut down",
                      status={"expiration": format_time(limit)}, again=limit)
    expires = request.expiration or min(request.created or now, now) + URL_LIFE
    if expires <= now:
        return _delete(request, "it says no expiration and is older than a URL lives")
    return Outcome("leave", f"phase {one_line(request.phase, 64)}; it expires at {format_time(expires)}", again=expires)


def answer_download(request: Request, key: str, url: str, expires: datetime) -> Outcome:
    """The patch that answers a DownloadRequest with the URL signed for a key: URL, phase and expiration in one."""
    return _patch(
        request, f"{request.target_kind} of {request.target_name}: signed for {key}",
        status={"downloadURL": url, "phase": PROCESSED, "expiration": format_time(expires)},
        annotations={REASON: None, MESSAGE: None} if request.reason else None,
        again=expires)


def refuse_download(request: Request, error: Error, now: datetime) -> Outcome:
    """What a failed look leaves behind: the reason, once, and an expiration that later failures do not push further."""
    limit = now + URL_LIFE
    message = one_line(redact(str(error)), MESSAGE_LIMIT)
    expires = request.expiration if request.expiration and request.expiration <= limit else None
    status = {} if expires else {"expiration": format_time(limit)}
    is_known = (request.reason, request.message) == (error.reason, message)
    annotations = {} if is_known else {REASON: error.reason, MESSAGE: message}
    why, again = f"{error.reason}: {message}", expires or limit
    if not status and not annotations:
        return Outcome("leave", why, again=again, failed=error.retry)
    return _patch(request, why, status=status, annotations=annotations, again=again, failed=error.retry)


def fall_back_download(request: Request, outcome: Outcome, now: datetime) -> Outcome:
    """What to do when the API takes a patch for invalid, as for an object whose annotations are full: the status alone.

    Without one to write, the object is deleted once it is older than a request lives, so that it cannot stay for ever.
    """
    body = outcome.body or {}
    if "status" in body and "annotations" in body["metadata"]:
        return _patch(request, outcome.why, status=body["status"], again=outcome.again, failed=outcome.failed)
    if request.created and now - request.created >= URL_LIFE:
        return _delete(request, "it cannot be updated and is older than a request lives")
    return Outcome("leave", outcome.why, again=outcome.again, failed=True)


def decide_status(request: Request, server: Server, now: datetime) -> Outcome:
    """The whole policy for a ServerStatusRequest; a timestamp from the future counts as its creation."""
    if request.deleting:
        return Outcome("leave", "it is being deleted")
    if request.phase in UNANSWERED:
        plugins = [{"kind": kind, "name": name} for kind, name in server.plugins]
        return _patch(request, f"answered with {server.version}, plugins: {len(plugins)}",
                      status={"phase": PROCESSED, "processedTimestamp": format_time(now),
                              "serverVersion": server.version, "plugins": plugins},
                      again=now + STATUS_LOOK_AGAIN)
    if request.phase != PROCESSED:
        return Outcome("leave", f"unknown phase {one_line(request.phase, 64)!r}")
    answered = request.processed if request.processed and request.processed <= now else min(request.created or now, now)
    if answered + STATUS_LIFE <= now:
        return _delete(request, f"answered at {format_time(answered)}, more than a minute ago")
    return Outcome("leave", f"answered at {format_time(answered)}", again=now + STATUS_LOOK_AGAIN)


def is_news(old: Optional[Request], new: Request) -> bool:
    """Whether a changed object is worth a look now.

    A reason, a message and the expiration of an unanswered request are what controllers write when they fail: were they
    news, two controllers that fail for different reasons would wake each other without end.
    """
    if old is None:
        return True
    expiration = new.expiration if new.phase in UNANSWERED else old.expiration
    return old._replace(version=new.version, reason=new.reason, message=new.message, expiration=expiration) != new


def watch_pause(failures: int, lived: float, reached: bool, jitter: float) -> float:
    """Seconds until the next watch, after failures in a row or one that lived so long; jitter is 1 to 2.

    reached: whether an API server refused, or no answer came at all.
    """
    if not failures:
        return max(0.0, WATCH_BASE - lived)
    cap = WATCH_CAP if reached else LINE_CAP
    return min(cap, backoff(failures, WATCH_BASE, cap) * jitter)


def is_version_expired(error: Optional[Error]) -> bool:
    """Whether the API no longer has the version a list or watch asked for, in any of its forms: list anew."""
    return isinstance(error, ApiError) and (error.status == 410 or error.api_reason in ("Expired", "Gone"))


def event_for(request: Request, reason: str, message: str, now: datetime) -> Document:
    """A core/v1 Event that shows a request's reason in `kubectl describe` and `kubectl get events`."""
    key, instant = request.key, format_time(now)
    return {
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message,
        "metadata": {"generateName": f"{key.name[:40].rstrip('-.')}-", "namespace": key.namespace},
        "involvedObject": {"apiVersion": "velero.io/v1", "kind": key.resource.kind, "namespace": key.namespace,
                           "name": key.name, "uid": request.uid, "resourceVersion": request.version},
        "source": {"component": "velero-requests"}, "count": 1, "firstTimestamp": instant, "lastTimestamp": instant}


def new_download_request(namespace: str, kind: str, name: str, suffix: str) -> Document:
    """The DownloadRequest a client creates; the suffix keeps two of them apart."""
    return {"apiVersion": "velero.io/v1", "kind": DOWNLOAD_REQUESTS.kind,
            "metadata": {"name": f"{name[:50].rstrip('-.')}-{suffix}", "namespace": namespace},
            "spec": {"target": {"kind": kind, "name": name}}}


def new_status_request(namespace: str, suffix: str) -> Document:
    """The ServerStatusRequest a client creates; with `-o json` it looks as the one of the velero CLI."""
    return {"apiVersion": "velero.io/v1", "kind": STATUS_REQUESTS.kind,
            "metadata": {"generateName": "velero-cli-", "name": f"velero-cli-{suffix}", "namespace": namespace},
            "spec": {}}


def logs_refusal(owner: Resource, name: str, phase: str) -> str:
    """Why a backup or restore in this phase has no logs yet, empty when it has (velero pkg/cmd/cli/backup/logs.go)."""
    # Velero 1.11 added the two phases in which only plugins still work.
    if phase in ("Completed", "PartiallyFailed", "Failed", "WaitingForPluginOperations",
                 "WaitingForPluginOperationsPartiallyFailed"):
        return ""
    kind = owner.kind.lower()
    return (f"logs for {kind} \"{name}\" are not available until it's finished processing (it is {phase or NEW}); "
            f"wait until the {kind} has a phase of Completed or Failed and try again")

# ====================================================================================================
# 3. Locations — BackupStorageLocation -> record -> object key -> address
# ====================================================================================================

@hides("s3_url", "public_url", "ca_cert")
class Location(NamedTuple):
    """A BackupStorageLocation: which bucket, at which endpoint, opened by which Secret."""

    name: str
    bucket: str
    prefix: str = ""
    region: str = ""
    s3_url: str = ""
    public_url: str = ""
    path_style: bool = False
    dualstack: bool = False
    fips: bool = False
    insecure: bool = False
    ca_cert: bytes = b""
    ca_secret: Tuple[str, str] = ("", "")    # name and key of the Secret that holds the authority
    secret_name: str = ""
    secret_key: str = ""
    credentials_file: str = ""
    profile: str = ""
    trusted: bool = False                    # the operator's word, not the cluster's
    warnings: Tuple[str, ...] = ()           # what is odd about it, and does no harm


_BOOL = tuple(_GO_BOOLS)
_PROVIDERS = ("aws", "velero.io/aws")
MOST_WARNINGS = 10                           # about one location; its config may hold a megabyte of keys
CA_LIMIT = 256 << 10                         # bytes; all authorities of a system are less, and locations are kept

# Every key of spec.config that velero-plugin-for-aws 1.2 to 1.14 knows, with the values it takes; none means any text.
# The upper half says what a GET is, the lower half is without effect on one.
LOCATION_KEYS: Dict[str, Tuple[str, ...]] = {
    "region": (), "s3Url": (), "publicUrl": (), "profile": (), "credentialsFile": (),
    "s3ForcePathStyle": _BOOL, "insecureSkipTLSVerify": _BOOL, "signatureVersion": ("4", ""),
    "enableSharedConfig": _BOOL, "checksumAlgorithm": ("CRC32", "CRC32C", "SHA1", "SHA256", ""),
    "serverSideEncryption": (), "kmsKeyId": (), "customerKeyEncryptionFile": (), "customerKeyEncryptionSecret": (),
    "tagging": (), "bucket": (), "prefix": (), "caCert": (),  # Velero before 1.9.1 left the last three there
}


def _check_config(config: Dict[str, str], wrong: Callable[[str], ConfigError]) -> Tuple[str, ...]:
    """Raise for a value that cannot be -> a warning for each key that nobody knows, with the nearest that is known."""
    for key, allowed in LOCATION_KEYS.items():
        value = config.get(key, "")
        if allowed and value not in allowed:
            shown = "true or false" if allowed is _BOOL else ", ".join(filter(None, allowed))
            more = "; signature version 2 and older are not made here" if key == "signatureVersion" else ""
            raise wrong(f"{key} is {one_line(value, 64)!r}; allowed: {shown}{more}")
    warnings = []
    for key in sorted(set(config) - set(LOCATION_KEYS))[:MOST_WARNINGS]:
        near = difflib.get_close_matches(key[:64], LOCATION_KEYS, 1, 0.5)
        meant = f"; {near[0]} may be meant" if near else ""
        warnings.append(f"config key {one_line(key, 64)!r} is unknown{meant}")
    return tuple(warnings)


def location_from(document: Document) -> Location:
    """BackupStorageLocation document -> record, as Velero's server and its AWS plugin read it.

    Slashes around bucket and prefix are dropped (velero object_store.go). Raises ConfigError naming location, key and
    what is allowed.
    """
    name = _text(document, "metadata", "name")
    config = _at(document, "spec", "config")
    config = {str(key): _text(config, key) for key in config} if isinstance(config, dict) else {}

    def wrong(what: str) -> ConfigError:
        return ConfigError(f"storage location {name!r}: {what}", reason="InvalidStorageLocation")

    provider = _text(document, "spec", "provider")
    if provider not in _PROVIDERS:
        raise ConfigError(f"storage location {name!r} has provider {one_line(provider)!r}; only aws (any S3 store) is "
                          "served here", reason="UnsupportedProvider")
    bucket = _text(document, "spec", "objectStorage", "bucket").strip("/")
    if not bucket or "/" in bucket or has_dot_segment(bucket) or bucket != one_line(bucket) or " " in bucket:
        raise wrong(f"bucket {one_line(bucket, 64)!r} must be a name without '/'; a folder belongs into "
                    "objectStorage.prefix")
    warnings, region = _check_config(config, wrong), config.get("region", "")
    ca_cert = decode_base64(_text(document, "spec", "objectStorage", "caCert"))
    if ca_cert is None:
        raise wrong("objectStorage.caCert is not base64")
    if len(ca_cert) > CA_LIMIT:
        raise wrong(f"objectStorage.caCert has more than {CA_LIMIT >> 10} KiB")
    ca_reference = _at(document, "spec", "objectStorage", "caCertRef")
    if ca_cert and ca_reference:
        raise wrong("objectStorage.caCert and caCertRef exclude each other")
    return Location(
        name=name, bucket=bucket,
        prefix=_text(document, "spec", "objectStorage", "prefix").strip("/"),
        region=region and dns_label(region, f"storage location {name!r}: config.region"),
        s3_url=config.get("s3Url", ""), public_url=config.get("publicUrl", ""),
        path_style=_GO_BOOLS[config.get("s3ForcePathStyle", "")],
        insecure=_GO_BOOLS[config.get("insecureSkipTLSVerify", "")],
        ca_cert=ca_cert, ca_secret=(_name(ca_reference, "name"), _name(ca_reference, "key")),
        secret_name=_name(document, "spec", "credential", "name"),
        secret_key=_name(document, "spec", "credential", "key"),
        credentials_file=config.get("credentialsFile", ""), profile=config.get("profile", ""), warnings=warnings)


def location_trouble_from(document: Document) -> str:
    """BackupStorageLocation document -> what Velero says is wrong with it, empty when it is Available or unchecked."""
    if _text(document, "status", "phase") != "Unavailable":
        return ""
    return one_line(_text(document, "status", "message") or "no message; see the Velero server's log")


_VIRTUAL_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)
_IP_ADDRESS = re.compile(r"\[.*\]|\d+(\.\d+){3}", re.ASCII)
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.ASCII)


def object_key(prefix: str, artifact: Artifact, name: str) -> str:
    """The key of an artifact in its bucket; the prefix is cleaned as Go's path.Join does in Velero's layout."""
    root = posixpath.normpath(prefix) if prefix else ""
    if root.split("/")[0] == "..":
        raise ConfigError(f"the storage location's prefix {prefix!r} leads out of the bucket",
                          reason="InvalidStorageLocation")
    key = artifact.key.format(name=name)
    return f"{root}/{key}" if root not in ("", ".") else key


class Address(NamedTuple):
    """Where an object is: `host` with its port unless that is the default, `path` percent-encoded once; and what a
    signature for it is scoped to."""

    scheme: str
    host: str
    path: str
    region: str = ""
    service: str = "s3"


class Partition(NamedTuple):
    """A separate AWS: its regions begin with `prefix`, its hosts end in `suffix`."""

    prefix: str
    name: str
    suffix: str
    dualstack: bool = True


# Whatever matches none is in partition `aws`, as an unknown new region most likely is (aws-sdk-go-v2 endpoint rules).
PARTITIONS = (
    Partition("cn-", "aws-cn", "amazonaws.com.cn"),
    Partition("us-gov-", "aws-us-gov", "amazonaws.com"),
    Partition("us-iso-", "aws-iso", "c2s.ic.gov", dualstack=False),
    Partition("us-isob-", "aws-iso-b", "sc2s.sgov.gov", dualstack=False),
    Partition("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk", dualstack=False),
    Partition("us-isof-", "aws-iso-f", "csp.hci.ic.gov", dualstack=False),
    Partition("eusc-", "aws-eusc", "amazonaws.eu"),
    Partition("", "aws", "amazonaws.com"),
)


def partition_of(region: str) -> Partition:
    """The partition a region lies in."""
    return next(partition for partition in PARTITIONS if region.startswith(partition.prefix))


FOREIGN_ENDPOINT = "ForeignEndpoint"          # reason: our own identity does not belong to a location's endpoint


def _wrong(location: Location, what: str) -> ConfigError:
    return ConfigError(f"storage location {location.name!r}: {what}", reason="InvalidStorageLocation")


def _is_virtual_host(bucket: str, scheme: str, host: str, custom: bool) -> bool:
    """Whether the bucket goes in front of the host, by the AWS rule set as the plugin applies it (upstream 8.4).

    A dot in the bucket breaks the certificate's wildcard, so it needs plain http, a custom endpoint, and labels of
    three or more characters; an IP address takes no label in front.
    """
    if _IP_ADDRESS.fullmatch(host):
        return False
    if _VIRTUAL_BUCKET.fullmatch(bucket):
        return True
    labels = bucket.split(".")
    if _IP_ADDRESS.fullmatch(bucket):
        return False
    return custom and scheme == "http" and len(labels) > 1 and all(
        len(label) >= 3 and _VIRTUAL_BUCKET.fullmatch(label) for label in labels)


class Endpoint(NamedTuple):
    """Where a store is; `port` is `:PORT`, or empty for the scheme's own."""

    scheme: str
    host: str                                # an IPv6 address is in brackets
    port: str
    base: str                                # path in front of every key


def endpoint_from(url: str, source: str) -> Endpoint:
    """The endpoint in a URL. A ConfigError names the source and never the URL, which may hold a password.

    Whatever urlsplit drops is refused, for others read it and come to another host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    bracketed = f"[{host}]" if ":" in host else host
    if (len(url) > 2048 or not _HOST.fullmatch(host) or parts.scheme not in ("http", "https") or port == 0
            or not re.fullmatch(re.escape(bracketed) + "(:[0-9]*)?", parts.netloc.lower())
            or (":" in host and _ip_address(host) is None) or re.search(r"^\s|\s$|[\\\x00-\x1f\x7f]", url)
            or parts.query or parts.fragment or has_dot_segment(parts.path)):
        raise ConfigError(f"{source} is no plain http or https URL of a store (host, perhaps port and path, nothing "
                          "else)", reason="InvalidStorageLocation")
    default = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    return Endpoint(parts.scheme, bracketed, "" if default else f":{port}",
                    quote(parts.path.rstrip("/"), safe="/-._~%"))


def _endpoint_of(location: Location) -> Optional[Endpoint]:
    """A location's own endpoint: publicUrl, else s3Url; None for AWS's."""
    key, url = ("publicUrl", location.public_url) if location.public_url else ("s3Url", location.s3_url)
    return endpoint_from(url, f"storage location {location.name!r}: {key}") if url else None


def _origin(endpoint: Endpoint) -> Tuple[str, Any, str]:
    """Scheme, host and port in the one form that can be compared."""
    host = endpoint.host[:-1] if endpoint.host.endswith(".") else endpoint.host
    return endpoint.scheme, _ip_address(host[1:-1]) if host.startswith("[") else host, endpoint.port


def is_aws_endpoint(location: Location) -> bool:
    """Whether a location is at S3 itself, named or not, by https.

    Only the hosts that `aws_host` makes count: under amazonaws.com there are machines of all the world.
    """
    endpoint = _endpoint_of(location)
    if endpoint is None:
        return True
    scheme, host, port = _origin(endpoint)
    match = re.fullmatch(r"s3(?:-fips)?(?:\.dualstack)?\.([a-z]+(?:-[a-z]+)+-[0-9]+)\.(.+)", str(host))
    return (scheme, port) == ("https", "") and (
        host == "s3.amazonaws.com" or (match is not None and match[2] == partition_of(match[1]).suffix))


def is_own_endpoint(location: Location, endpoint: str) -> bool:
    """Whether our own identity belongs to a location's endpoint: AWS's, or the one whose URL the operator named."""
    theirs = _endpoint_of(location)
    return theirs is None or is_aws_endpoint(location) or bool(
        endpoint and _origin(theirs) == _origin(endpoint_from(endpoint, "AWS_ENDPOINT_URL_S3")))


def aws_host(service: str, region: str, *, fips: bool = False, dualstack: bool = False) -> str:
    """The host of a service of AWS, `SERVICE[-fips][.dualstack].REGION.SUFFIX`; no other place makes one."""
    partition = partition_of(dns_label(region, "the region"))
    for wanted, absent, what, name in (
            (fips, partition.name == "aws-cn", "FIPS", "use_fips_endpoint"),
            (dualstack, not partition.dualstack, "dual-stack", "use_dualstack_endpoint")):
        if wanted and absent:
            raise ConfigError(f"there are no {what} endpoints in {region}; unset AWS_{name.upper()}, or {name} in the "
                              "profile", reason="InvalidStorageLocation")
    return f"{dns_label(service, 'the service')}{'-fips' * fips}{'.dualstack' * dualstack}.{region}.{partition.suffix}"


def _arn_address(location: Location) -> Address:
    """The address of an access point: `arn:aws:s3:REGION:ACCOUNT:accesspoint:NAME` or one on Outposts."""
    parts = location.bucket.split(":", 5)
    _, partition, service, region, account, resource = parts if len(parts) == 6 else [""] * 6
    words = re.split("[:/]", resource)
    if location.path_style:
        raise _wrong(location, "an ARN as bucket and s3ForcePathStyle exclude each other")
    if service == "s3" and words[0] == "accesspoint" and (not region or words[-1].endswith(".mrap")):
        raise _wrong(location, "multi-region access points need SigV4A signatures, which are not made here; name the "
                     "access point of one region")
    if region != location.region or partition != partition_of(region).name:
        raise _wrong(location, f"the bucket's ARN is for region {one_line(region, 64)!r} of "
                     f"{one_line(partition, 64)!r}, config.region is {location.region!r}")
    if service == "s3" and len(words) == 2 and words[0] == "accesspoint":
        front, host_service = f"{words[1]}-{account}", "s3-accesspoint"
    elif service == "s3-outposts" and len(words) == 4 and (words[0], words[2]) == ("outpost", "accesspoint"):
        if location.fips or location.dualstack:
            raise _wrong(location, "there are no FIPS and no dual-stack endpoints of Outposts")
        front, host_service = f"{words[3]}-{account}.{words[1]}", "s3-outposts"
    else:
        raise _wrong(location, "the bucket's ARN is neither an access point nor one on Outposts")
    if not all(_DNS_LABEL.fullmatch(label) for label in (account, *words[1:])):
        raise _wrong(location, "the bucket's ARN has a part that cannot be in a host name")
    scheme, host, port, base = _endpoint_of(location) or Endpoint(
        "https", aws_host(host_service, region, fips=location.fips, dualstack=location.dualstack), "", "")
    return Address(scheme, f"{front}.{host}{port}", base, region, "s3-outposts" if service == "s3-outposts" else "s3")


def _bucket_address(location: Location) -> Address:
    endpoint, region = _endpoint_of(location), location.region
    custom = endpoint is not None
    if endpoint and (location.fips or location.dualstack):
        raise _wrong(location, "FIPS and dual-stack endpoints are AWS's own; unset AWS_USE_FIPS_ENDPOINT and "
                     "AWS_USE_DUALSTACK_ENDPOINT, or use_fips_endpoint and use_dualstack_endpoint in the profile, for "
                     "a location with s3Url")
    if location.bucket.startswith("arn:"):
        return _arn_address(location)
    if location.bucket.endswith("--x-s3"):
        raise _wrong(location, "a directory bucket (S3 Express) needs sessions of its own, which are not made here")
    if region == "aws-global":
        region = "us-east-1"
    if endpoint is None:
        plain = location.region == "aws-global" and not location.fips and not location.dualstack
        endpoint = Endpoint("https", "s3.amazonaws.com" if plain else aws_host(
            "s3", region, fips=location.fips, dualstack=location.dualstack), "", "")
    scheme, host, port, base = endpoint
    if not location.path_style and _is_virtual_host(location.bucket, scheme, host, custom=custom):
        return Address(scheme, f"{location.bucket}.{host}{port}", base, region)
    return Address(scheme, host + port, f"{base}/{quote(location.bucket, safe='-._~')}", region)


@functools.lru_cache(maxsize=64)
def bucket_address(location: Location) -> Address:
    """Where a location's bucket is; ConfigError when its region or its URLs cannot be used."""
    with about(f"storage location {location.name!r}"):
        dns_label(location.region, "config.region")
        return _bucket_address(location)


def object_address(location: Location, key: str) -> Address:
    """Where an object of a location is: each byte of the key percent-encoded once, slashes kept, nothing cleaned up."""
    bucket = bucket_address(location)
    return bucket._replace(path=f"{bucket.path}/{quote(key, safe='/-._~')}")

# ====================================================================================================
# 4. Signing — AWS Signature Version 4, one function per noun of the specification
#
#    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html. Only `host` is signed and no
#    parameter is added: the smallest URL is the one that most stores, proxies and clients agree on.
# ====================================================================================================

@hides("access_key", "secret_key", "session_token")
class Credentials(NamedTuple):
    """AWS keys; `expires` is None for keys that last."""

    access_key: str
    secret_key: str
    session_token: str = ""
    expires: Optional[datetime] = None


ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


def canonical_query(parameters: Dict[str, str]) -> str:
    """Parameters percent-encoded, then sorted by encoded name."""
    encoded = sorted((quote(name, safe="-._~"), quote(value, safe="-._~")) for name, value in parameters.items())
    return "&".join(f"{name}={value}" for name, value in encoded)


def canonical_request(method: str, path: str, query: str, headers: Dict[str, str], payload_hash: str) -> str:
    """Method, path, query, headers (lower-case names), their names, payload hash: one a line."""
    names = sorted(headers)
    header_lines = "".join(f"{name}:{headers[name]}\n" for name in names)
    return f"{method}\n{path}\n{query}\n{header_lines}\n{';'.join(names)}\n{payload_hash}"


def amz_date(now: datetime) -> str:
    """A UTC instant as X-Amz-Date: 20130524T000000Z."""
    return now.isoformat()[:19].replace("-", "").replace(":", "") + "Z"


def credential_scope(date: str, region: str, service: str) -> str:
    """What a signing key is good for: one day (YYYYMMDD), region and service."""
    return f"{date}/{region}/{service}/aws4_request"


def string_to_sign(timestamp: str, scope: str, request: str) -> str:
    """The text under the signature: algorithm, time, scope, and the hash of the canonical request."""
    return f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")


@functools.lru_cache(maxsize=16)
def signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The key derived for one day, region and service; it is the same for every URL of that day, so it is kept."""
    key = _hmac(b"AWS4" + secret_key.encode(), date)
    for part in (region, service, "aws4_request"):
        key = _hmac(key, part)
    return key


def signature(key: bytes, text: str) -> str:
    """HMAC-SHA256 in lower-case hex."""
    return _hmac(key, text).hex()


@functools.lru_cache(maxsize=16)
def presign_query(access_key: str, session_token: str, scope: str, timestamp: str, seconds: int,
                  more: Tuple[Tuple[str, str], ...] = ()) -> str:
    """The query of a pre-signed URL but for its signature; all URLs signed in one second share it, so it is kept."""
    parameters = {
        **dict(more),
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{access_key}/{scope}",
        "X-Amz-Date": timestamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
    }
    if session_token:
        parameters["X-Amz-Security-Token"] = session_token
    return canonical_query(parameters)


def sign_headers(method: str, path: str, headers: Dict[str, str], body: bytes, credentials: Credentials, region: str,
                 service: str, now: datetime) -> Dict[str, str]:
    """Headers (lower-case names, `host` among them) -> with those that authorize a request; all of them are signed."""
    timestamp = amz_date(now)
    scope = credential_scope(timestamp[:8], region, service)
    signed = {**headers, "x-amz-date": timestamp}
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    request = canonical_request(method, path, "", signed, hashlib.sha256(body).hexdigest())
    key = signing_key(credentials.secret_key, timestamp[:8], region, service)
    signed["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(sorted(signed))}, "
        f"Signature={signature(key, string_to_sign(timestamp, scope, request))}")
    return signed


def presign(address: Address, credentials: Credentials, region: str, now: datetime, life: timedelta,
            service: str = "s3", more: Tuple[Tuple[str, str], ...] = ()) -> str:
    """A URL that anybody may GET until now (UTC) + life (1 second to 7 days); a bearer token, so never log it.

    more: parameters of the request itself, such as those of a listing.
    """
    seconds = int(life.total_seconds())
    if not 1 <= seconds <= 604800:
        raise ValueError(f"a pre-signed URL lives 1 to 604800 seconds, not {seconds}")
    timestamp = amz_date(now)
    date = timestamp[:8]
    scope = credential_scope(date, region, service)
    query = presign_query(credentials.access_key, credentials.session_token, scope, timestamp, seconds, more)
    request = canonical_request("GET", address.path, query, {"host": address.host}, UNSIGNED_PAYLOAD)
    key = signing_key(credentials.secret_key, date, region, service)
    signed = signature(key, string_to_sign(timestamp, scope, request))
    return f"{address.scheme}://{address.host}{address.path}?{query}&X-Amz-Signature={signed}"


def url_life(credentials: Credentials, signed: datetime) -> timedelta:
    """How long a URL signed at an instant may live, in whole seconds: no longer than its keys; none when they ended."""
    if credentials.expires is None:
        return URL_LIFE
    return min(URL_LIFE, (credentials.expires - signed.replace(microsecond=0)) // timedelta(seconds=1)
               * timedelta(seconds=1))


def sign(location: Location, key: str, credentials: Credentials, now: datetime, skew: timedelta,
         more: Tuple[Tuple[str, str], ...] = ()) -> Tuple[str, datetime]:
    """A URL for an object, or without a key for the bucket itself -> with the instant, by our clock, when it ends.

    A URL dies with the credentials that signed it, so its life is clipped to theirs; expired ones sign nothing.
    skew: how far the store's clock is ahead of ours.
    """
    life = url_life(credentials, max(now, now + skew))
    if life < timedelta(seconds=1):
        raise ConfigError(f"the credentials of storage location {location.name!r} have expired",
                          reason="CredentialsExpired")
    address = object_address(location, key) if key else bucket_address(location)
    address = address._replace(path=address.path or "/")
    return presign(address, credentials, address.region, now + skew, life, address.service, more), now + life

# ====================================================================================================
# 5. Keys — AWS ini files, profiles, and the plan where keys come from
# ====================================================================================================

Profiles = Dict[str, Dict[str, str]]
KEY_NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
INI_LIMIT = 1 << 20                          # characters


def ini_sections(text: str, source: str) -> Profiles:
    """An AWS ini file -> its sections; ` #` after a value begins a comment, a `#` inside one stays.

    A line that is indented more than its key goes on with that key's value, as in the nested blocks of AWS (`s3 =`).
    `source` names the file in errors; what the file says never shows in one, for it holds secrets.
    """
    if len(text) > INI_LIMIT:
        raise CredentialsError(f"{source} is larger than {INI_LIMIT >> 20} MiB")
    found: Dict[str, Dict[str, List[str]]] = {}
    values: Optional[Dict[str, List[str]]] = None  # of the section
    value: Optional[List[str]] = None        # of the key that the next line may go on with, and its indentation
    depth = 0
    for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1):
        content = re.split(r"(?:^|\s)[#;]", line, maxsplit=1)[0].strip()
        indent = len(line) - len(line.lstrip())
        key, equals, rest = map(str.strip, content.partition("="))
        if not content:
            value = None
        elif value is not None and indent > depth:
            value.append(content)
        elif content[0] == "[" and "]" in content:
            values, value = found.setdefault(content[1:].partition("]")[0].strip(), {}), None
        elif values is None or not key or not equals:
            raise CredentialsError(f"{source} is no AWS credentials file: line {number} is neither a [profile] nor "
                                   "key = value")
        else:
            values[key.lower()] = value = [rest]
            depth = indent
    return {name: {key: "\n".join(parts) for key, parts in section.items()} for name, section in found.items()}


def merge_profiles(credentials: Profiles, config: Profiles) -> Profiles:
    """The sections of a credentials file and of a config file -> profiles; key by key the credentials file wins.

    `[x]` beats `[profile x]`, and both are read in either file, as the plugin loads one file as both. Keys of a store
    belong together: a section that has one of them takes none from another.
    """
    profiles: Profiles = {}
    for sections in (config, credentials):
        for prefixed in (True, False):
            for section, values in sections.items():
                name = section[8:].strip() if section.startswith("profile ") else section
                if prefixed == section.startswith("profile "):
                    old = profiles.get(name, {})
                    if any(key in values for key in KEY_NAMES):
                        old = {key: value for key, value in old.items() if key not in KEY_NAMES}
                    profiles[name] = {**old, **values}
    return profiles


def own_profiles_from(content: bytes, source: str) -> Profiles:
    """What a location's own Secret or file holds, which is read as both kinds of file."""
    try:
        return merge_profiles(ini_sections(content.decode("utf-8"), source), {})
    except UnicodeDecodeError:
        raise CredentialsError(f"{source} is not UTF-8 text") from None


def secret_value(secret: Document, name: str, key: str, asked_by: str) -> bytes:
    """One key of a Secret; ConfigError when it is not there or no base64."""
    source = f"key {key!r} of Secret {name!r}"
    content = decode_base64(_text(secret, "data", key))
    if content is None:
        raise CredentialsError(f"{source} is not base64")
    if not content:
        raise ConfigError(f"{source} does not exist or is empty; {asked_by} asks for it", reason="SecretKeyNotFound")
    return content


class WebIdentity(NamedTuple):
    """A token file that STS exchanges for the keys of a role (IRSA)."""

    role_arn: str
    token_file: str
    session_name: str = ""


@hides("command")
class Process(NamedTuple):
    """A program that prints keys (credential_process)."""

    command: str
    profile: str = ""


@hides("token")
class Container(NamedTuple):
    """An endpoint beside the container: ECS, or EKS Pod Identity."""

    url: str
    token: str = ""
    token_file: str = ""


class Instance(NamedTuple):
    """The metadata service of the machine (IMDS); version 1 of it only when told."""

    endpoint: str
    allow_v1: bool = False


@hides("external_id")
class AssumedRole(NamedTuple):
    """The keys of another plan, exchanged at STS for those of a role."""

    source: Any
    role_arn: str
    session_name: str = ""
    external_id: str = ""
    duration: int = 0


Plan = Union[Credentials, WebIdentity, Process, Container, Instance, AssumedRole]

SOURCE_PROFILES = 10                         # profiles that may hang together by source_profile
ECS_HOST = "http://169.254.170.2"

# Plain http goes only to addresses that never leave the machine (aws-sdk-go-v2 config/resolve_credentials.go).
CONTAINER_HOSTS = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost")
IMDS_ENDPOINTS = {"ipv4": "http://169.254.169.254", "ipv6": "http://[fd00:ec2::254]"}


def _where(name: str, source: str) -> str:
    return f"profile {one_line(name, 64)!r} of {source}"


def _pair(values: Mapping[str, str], where: str) -> Optional[Credentials]:
    """The static keys of a profile; half a pair is an error."""
    access_key, secret_key, token = (values.get(name, "") for name in KEY_NAMES)
    if bool(access_key) != bool(secret_key):
        raise CredentialsError(f"{where}: it needs both aws_access_key_id and aws_secret_access_key")
    for name in KEY_NAMES:
        if any(c.isspace() or not c.isprintable() for c in values.get(name, "")):
            raise CredentialsError(f"{where}: {name} has a blank or a line end in it", hints=[
                "a line that is indented goes on with the value above it"])
    return Credentials(access_key, secret_key, token) if access_key else None


ENVIRONMENT_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY")


def environment_profile(environment: Mapping[str, str]) -> str:
    """The profile that the environment names, if any."""
    return environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or ""


def plan_environment(environment: Mapping[str, str]) -> Optional[Credentials]:
    """Keys in environment variables."""
    access_key, other_access, secret_key, other_secret = (environment.get(name, "") for name in ENVIRONMENT_KEYS)
    access_key, secret_key = access_key or other_access, secret_key or other_secret
    if not access_key or not secret_key:
        return None
    return Credentials(access_key, secret_key, environment.get("AWS_SESSION_TOKEN", ""))


def plan_web_identity(environment: Mapping[str, str]) -> Optional[WebIdentity]:
    """IRSA, as EKS puts it into a pod's environment."""
    token_file, role_arn = environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN")
    if not token_file or not role_arn:
        return None
    return WebIdentity(role_arn, token_file, environment.get("AWS_ROLE_SESSION_NAME", ""))


def plan_container(environment: Mapping[str, str]) -> Optional[Container]:
    """ECS and EKS Pod Identity, by the variables they set; plain http only to a host on this machine."""
    url = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")
    relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "")
    if not url and not relative:
        return None
    url = url or ECS_HOST + relative
    host = (urlsplit(url).hostname or "").lower() if is_http_url(url) else ""
    address = _ip_address(host)
    local = host in CONTAINER_HOSTS or (address is not None and address.is_loopback)
    if not host or (urlsplit(url).scheme == "http" and not local):
        raise CredentialsError("AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or http to this machine "
                          f"({', '.join(CONTAINER_HOSTS)} or loopback)")
    return Container(url, environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", ""),
                     environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", ""))


def plan_instance(environment: Mapping[str, str]) -> Optional[Instance]:
    """Instance metadata, unless disabled; its version 1 only with AWS_EC2_METADATA_V1_DISABLED=false."""
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    mode = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "").lower() or "ipv4"
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or IMDS_ENDPOINTS.get(mode, "")
    if not is_http_url(endpoint):
        raise CredentialsError("AWS_EC2_METADATA_SERVICE_ENDPOINT is no http URL, or its mode neither IPv4 nor IPv6")
    return Instance(endpoint.rstrip("/"), environment.get("AWS_EC2_METADATA_V1_DISABLED", "").lower() == "false")


def _plan_source(source: str, environment: Mapping[str, str], where: str) -> Plan:
    """What `credential_source` names."""
    if source == "Environment":
        plan: Optional[Plan] = plan_environment(environment)
    elif source == "EcsContainer":
        plan = plan_container(environment)
    elif source == "Ec2InstanceMetadata":
        plan = plan_instance(environment)
    else:
        raise CredentialsError(f"{where}: credential_source is {one_line(source, 64)!r}; allowed: Environment, "
                               "EcsContainer, Ec2InstanceMetadata")
    if plan is None:
        raise CredentialsError(f"{where}: credential_source {source} has nothing to give here")
    return plan


def _plan_own(values: Mapping[str, str], environment: Mapping[str, str], where: str) -> Plan:
    """Where a profile's own keys come from (aws-sdk-go-v2 config/resolve_credentials.go, resolveCredsFromProfile)."""
    pair = _pair(values, where)
    if pair:
        return pair
    if values.get("credential_source"):
        return _plan_source(values["credential_source"], environment, where)
    if values.get("web_identity_token_file"):
        return WebIdentity(values["role_arn"], values["web_identity_token_file"], values.get("role_session_name", ""))
    if any(key.startswith("sso_") for key in values):
        raise CredentialsError(f"{where}: logging in by SSO needs a browser; run `aws configure export-credentials` "
                               "where one is, and use the keys it prints")
    if values.get("credential_process"):
        return Process(values["credential_process"], where)
    raise CredentialsError(f"{where}: it needs both aws_access_key_id and aws_secret_access_key, or another source of "
                           "keys")


# What the operator alone may put into a profile, and what it would do in one of the cluster.
_OPERATORS_OWN = {"credential_process": "runs a program", "web_identity_token_file": "reads a file of this host",
                  "credential_source": "uses the identity of this host", "sso_": "uses a login of this host"}


def _check_profile(profiles: Profiles, name: str, source: str, theirs: bool) -> Dict[str, str]:
    """The values of a profile; CredentialsError when it does not exist, contradicts itself or needs a person.

    theirs: it is the cluster's, which gives keys and the roles on top of them, and nothing that acts here.
    """
    if name not in profiles:
        raise CredentialsError(f"{source} has no profile {one_line(name, 64)!r}")
    values, where = profiles[name], _where(name, source)
    for start, act in _OPERATORS_OWN.items() if theirs else ():
        for key in values:
            if key.startswith(start):
                raise CredentialsError(f"{where}: {one_line(key, 64)} is refused here, for it {act}; put "
                                       "aws_access_key_id and aws_secret_access_key there, and perhaps a role_arn that "
                                       "is assumed with them")
    role_arn, duration = values.get("role_arn"), values.get("duration_seconds", "0")
    for key in () if role_arn else ("source_profile", "credential_source", "web_identity_token_file"):
        if values.get(key):
            raise CredentialsError(f"{where}: {key} needs a role_arn")
    if values.get("source_profile") and values.get("credential_source"):
        raise CredentialsError(f"{where}: source_profile and credential_source exclude each other")
    if role_arn and values.get("mfa_serial"):
        raise CredentialsError(f"{where}: mfa_serial needs somebody who types a code; use a profile without it")
    if role_arn and not re.fullmatch(r"[0-9]{1,6}", duration):
        raise CredentialsError(f"{where}: duration_seconds is {one_line(duration, 64)!r}; allowed: a number of seconds")
    return values


def _source_chain(profiles: Profiles, name: str, source: str, theirs: bool) -> List[str]:
    """The profiles that hang together by source_profile, from the one named to the one that has the keys."""
    chain = [name]
    while True:
        values = _check_profile(profiles, chain[-1], source, theirs)
        origin = values.get("source_profile", "")
        if not origin or (origin == chain[-1] and _pair(values, _where(origin, source))):
            return chain
        if origin in chain or len(chain) >= SOURCE_PROFILES:
            how = "in a circle" if origin in chain else "too far"
            raise CredentialsError(f"{_where(chain[-1], source)}: source_profile leads {how}: "
                                   f"{one_line(' -> '.join(chain + [origin]))}")
        chain.append(origin)


def plan_profile(profiles: Profiles, name: str, source: str, environment: Mapping[str, str], *, theirs: bool = False
                 ) -> Plan:
    """What one profile of an ini file comes to, or why not: a source of keys, and the roles assumed one after another.

    source: names the file in errors. theirs: it may say no more than the cluster may.
    """
    chain = _source_chain(profiles, name, source, theirs)
    plan = _plan_own(profiles[chain[-1]], environment, _where(chain[-1], source))
    for link in chain[::-1]:
        values = profiles[link]
        if values.get("role_arn") and not (link == chain[-1] and isinstance(plan, WebIdentity)):  # has the role already
            plan = AssumedRole(plan, values["role_arn"], values.get("role_session_name", ""),
                               values.get("external_id", ""), int(values.get("duration_seconds", "0")))
    return plan


# A default profile with none of these (one with a region alone is common) lets the chain go on.
_SOURCE_KEYS = KEY_NAMES[:2] + ("role_arn", "source_profile", "credential_", "web_identity_token_file", "sso_")


def plan_credentials(profile: str, own: Optional[Profiles], shared: Profiles, source: str,
                     environment: Mapping[str, str], *, theirs: bool = False) -> Plan:
    """The whole chain: a location's own file, else profile named, environment, web identity, shared files, container,
    instance.

    profile: of the location's config. own: what its Secret or credentialsFile holds, None when it names none; `theirs`:
    it may say no more than the cluster may. It comes first: in the plugin, keys of the environment beat it.
    """
    if own is not None:
        return plan_profile(own, profile or "default", source, environment, theirs=theirs)
    if profile:
        return plan_profile(shared, profile, source, environment)
    named = environment_profile(environment)
    plan: Optional[Plan] = plan_environment(environment) or plan_web_identity(environment)
    if plan is None and (named or any(key.startswith(_SOURCE_KEYS) for key in shared.get("default", {}))):
        plan = plan_profile(shared, named or "default", source, environment)
    plan = plan or plan_container(environment)
    half = any(environment.get(name) for name in ENVIRONMENT_KEYS)
    if plan is None and half:                # the plugin goes on to the instance, and nobody learns of the typing error
        raise CredentialsError("the environment has only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and "
                               "nothing else that holds keys is configured; set both")
    plan = plan or plan_instance(environment)
    if plan is None:
        raise ConfigError("no credentials for the store: the storage location names no Secret, and there are none in "
                          f"the environment, in {source}, of a container or of an instance",
                          reason="CredentialsNotFound")
    return plan


def is_fresh(credentials: Credentials, now: datetime) -> bool:
    """Whether credentials live long enough to sign with: they need not be renewed yet."""
    return credentials.expires is None or credentials.expires - now >= URL_LIFE + timedelta(seconds=60)

# ====================================================================================================
# 6. Kubeconfig — documents -> cluster and identity; proxy rules
# ====================================================================================================

EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
INTERACTIVE_MODES = ("Never", "IfAvailable", "Always")


@hides("arguments", "environment")
class ExecPlugin(NamedTuple):
    """A program of the kubeconfig that prints who we are."""

    command: str
    arguments: Tuple[str, ...]
    environment: Tuple[Tuple[str, str], ...]
    api_version: str
    install_hint: str
    provide_cluster_info: bool
    interactive_mode: str


@hides("authority", "proxy_url", "exec_config", "token", "password", "certificate", "key")
class Cluster(NamedTuple):
    """How to reach one Kubernetes API server, and as whom; PEM stands here itself (bytes) or is the path of a file."""

    server: str
    authority: Union[bytes, str] = b""
    insecure: bool = False
    server_name: str = ""                    # tls-server-name: whose certificate is expected
    proxy_url: str = ""
    disable_compression: bool = False        # only told to exec plugins
    exec_config: Any = None  # what the cluster has to say to exec plugins
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    certificate: Union[bytes, str] = b""
    key: Union[bytes, str] = b""
    impersonate: Tuple[Tuple[str, str], ...] = ()
    exec_plugin: Optional[ExecPlugin] = None


@hides("token", "certificate", "key")
class Identity(NamedTuple):
    """Who we are for the next calls: a token, or a certificate with its key; `expires` is None when it lasts."""

    token: str = ""
    certificate: bytes = b""
    key: bytes = b""
    expires: Optional[datetime] = None


class Entry:
    """One mapping of a kubeconfig or of a plugin's answer; a wrong type is a ConfigError without the value."""

    def __init__(self, fields: Any, file: str, where: str) -> None:
        """Keep the fields; file: where relative paths start, where: the place for errors."""
        if fields is not None and not isinstance(fields, dict):
            raise ConfigError(f"{where} must be a mapping")
        self.fields = {str(name): value for name, value in (fields or {}).items()}
        self.file, self.where = file, where

    def get(self, name: str, kind: type = str) -> Any:
        """A field; what is absent or null is empty, as in Go."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, kind):
            cure = ": write it in quotes" if kind is str and isinstance(value, (int, float)) else ""
            raise ConfigError(f"{self.where}: {name} must be {_TYPE_NAMES[kind]}{cure}")
        return kind() if value is None else value

    def need(self, name: str) -> str:
        """A text that must be there."""
        text: str = self.get(name)
        if not text:
            raise ConfigError(f"{self.where} has no {name}")
        return text

    def texts(self, name: str) -> List[str]:
        """A list of texts."""
        values = self.get(name, list)
        if not all(value is None or isinstance(value, str) for value in values):
            raise ConfigError(f"{self.where}: {name} must be a list of strings")
        return [value or "" for value in values]

    def path(self, name: str) -> str:
        """A path, seen from the folder of the file; `..` goes by the letters, as Go's filepath.Join."""
        path = self.get(name)
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.file), path)) if path else ""

    def pem(self, name: str) -> Union[bytes, str]:
        """The PEM of `name-data`, else the path of the file that `name` says, else nothing."""
        data = decode_base64(self.get(f"{name}-data"))
        if data is None:
            raise ConfigError(f"{self.where}: {name}-data is not base64")
        return data or self.path(name) or data


def _entry_named(files: List[Entry], kind: str, name: str) -> Entry:
    """The first entry of a name, which counts whole."""
    names = []
    for file in files:
        for item in file.get(f"{kind}s", list):
            names.append(_text(item, "name"))
            if names[-1] == name:
                return Entry(_at(item, kind), file.file, f"{file.where}, {kind} {one_line(name)!r}")
    if kind == "user":  # one that is not there is nobody, as in kubectl
        return Entry({}, "", "")
    raise ConfigError(f"kubeconfig {', '.join(file.file for file in files)} has no {kind} {one_line(name)!r}",
                      hints=[f"it has: {', '.join(map(one_line, names)) or 'none'}"])


def exec_plugin_from(entry: Entry) -> ExecPlugin:
    """A user's `exec` -> record (client-go validation.go, plugin/pkg/client/auth/exec)."""
    command, version = entry.need("command"), entry.get("apiVersion")
    mode = entry.get("interactiveMode") or INTERACTIVE_MODES[1]
    if version not in EXEC_VERSIONS:
        raise ConfigError(f"{entry.where} has apiVersion {one_line(version, 64)!r}, not {' or '.join(EXEC_VERSIONS)}",
                          hints=["a newer version of the plugin writes a newer kubeconfig"])
    if mode not in INTERACTIVE_MODES:
        raise ConfigError(f"{entry.where} has interactiveMode {one_line(mode, 64)!r}, not one of "
                          f"{', '.join(INTERACTIVE_MODES)}")
    variables = [Entry(item, "", f"{entry.where}, env") for item in entry.get("env", list)]
    return ExecPlugin(
        command=entry.path("command") if "/" in command else command, arguments=tuple(entry.texts("args")),
        environment=tuple((variable.get("name"), variable.get("value")) for variable in variables),
        api_version=version, install_hint=entry.get("installHint"),
        provide_cluster_info=entry.get("provideClusterInfo", bool), interactive_mode=mode)


def _impersonation_headers(user: Entry) -> Tuple[Tuple[str, str], ...]:
    """A user's as, as-uid, as-groups, as-user-extra -> request headers (client-go transport/round_trippers.go)."""
    name, uid, groups = user.get("as"), user.get("as-uid"), user.texts("as-groups")
    extra = Entry(user.get("as-user-extra", dict), "", f"{user.where}, as-user-extra")
    if not name and (uid or groups or extra.fields):
        raise ConfigError(f"{user.where} impersonates a uid, groups or extra values without a user (as)")
    headers = [("Impersonate-User", name)] if name else []
    headers += [("Impersonate-Uid", uid)] if uid else []
    headers += [("Impersonate-Group", group) for group in groups]
    headers += [(f"Impersonate-Extra-{quote(key.lower(), safe='-._~')}", value)
                for key in sorted(extra.fields) for value in extra.texts(key)]
    if not all(value.isprintable() for _, value in headers):
        raise ConfigError(f"{user.where}: whom it impersonates has characters that cannot be sent, such as a line end")
    return tuple((header, value.encode().decode("latin-1")) for header, value in headers)  # so that UTF-8 goes out


def _identity_fields(user: Entry, login: Tuple[str, str]) -> Dict[str, Any]:
    """A user, and the name and password in the server's URL, which beat its own -> how Cluster proves who we are."""
    certificate = user.pem("client-certificate")
    fields = {"certificate": certificate, "key": certificate and user.pem("client-key")}
    if login[0]:
        return {**fields, "username": login[0], "password": login[1]}
    fields.update(token=header_value(user.get("token"), f"{user.where}: token"), token_file=user.path("tokenFile"),
                  username=user.get("username"), password=user.get("password"))
    if certificate or fields["token"] or fields["token_file"] or fields["username"]:
        return fields
    if user.fields.get("exec") is not None:
        return {"exec_plugin": exec_plugin_from(Entry(user.fields["exec"], user.file, f"{user.where}, exec"))}
    if user.fields.get("auth-provider") is not None:
        name = _text(user.fields, "auth-provider", "name")
        raise ConfigError(
            f"{user.where} uses auth-provider {one_line(name, 64)!r}, which kubectl has dropped or will drop",
            hints=["replace it by an exec plugin (gke-gcloud-auth-plugin, kubelogin) or by a token"])
    return fields


def proxy_url(text: str, what: str) -> str:
    """A proxy as a URL, http when it has no scheme; ConfigError, without showing it, when we cannot use it."""
    url = text if "://" in text or not text else f"http://{text}"
    if url.lower().startswith("socks"):
        raise ConfigError(f"{what} is a SOCKS proxy, which needs a package that this file does without", hints=[
            "use an http proxy, or an ssh tunnel (ssh -L) and its local address"])
    if url and not is_http_url(url):
        raise ConfigError(f"{what} is no http or https URL")
    return url


def cluster_from_kubeconfigs(files: List[Tuple[str, Any]], context: str = "") -> Optional[Cluster]:
    """Kubeconfigs as (path, document) -> cluster and user of one context; None when no context is chosen anywhere."""
    entries = [Entry(document, path, f"kubeconfig {path}") for path, document in files]
    context = context or next(filter(None, (entry.get("current-context") for entry in entries)), "")
    if not context:
        return None
    chosen = _entry_named(entries, "context", context)
    cluster = _entry_named(entries, "cluster", chosen.get("cluster"))
    user = _entry_named(entries, "user", chosen.get("user"))
    text = cluster.need("server")
    url = text if "://" in text else f"http://{text}"  # client-go rest/url_utils.go
    if not is_http_url(url):
        raise ConfigError(f"{cluster.where}: server {one_line(redact(text))!r} is no http or https URL")
    parts = urlsplit(url)
    login = unquote(parts.username or ""), unquote(parts.password or "")
    configs = [_at(item, "extension") for item in cluster.get("extensions", list)
               if _text(item, "name") == "client.authentication.k8s.io/exec"]
    authority = cluster.pem("certificate-authority")
    # What would prove who we are is never sent where anybody can read it.
    identity = _identity_fields(user, login) if parts.scheme == "https" else {}
    return Cluster(
        server=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), authority=authority,
        insecure=cluster.get("insecure-skip-tls-verify", bool) and not authority,
        server_name=cluster.get("tls-server-name"),
        proxy_url=proxy_url(cluster.get("proxy-url"), f"{cluster.where}: proxy-url"),
        disable_compression=cluster.get("disable-compression", bool), exec_config=configs[0] if configs else None,
        impersonate=_impersonation_headers(user), **identity)


def identity_from_exec(answer: Any, plugin: ExecPlugin) -> Identity:
    """What an exec plugin printed -> identity (client-go plugin/pkg/client/auth/exec); ConfigError never quotes it."""
    where = f"the answer of exec plugin {plugin.command}"
    top = Entry(answer, "", where)
    if top.get("kind") not in ("ExecCredential", "") or top.get("apiVersion") != plugin.api_version:
        raise ConfigError(f"{where} is no ExecCredential of {plugin.api_version}", hints=[
            "the plugin may be older or newer than the kubeconfig"])
    status = Entry(top.get("status", dict), "", where)
    expires = parse_time(status.fields.get("expirationTimestamp"))
    if expires is None and status.fields.get("expirationTimestamp") is not None:
        raise ConfigError(f"{where} has an expirationTimestamp that is no time")
    token, certificate, key = map(status.get, ("token", "clientCertificateData", "clientKeyData"))
    if bool(certificate) != bool(key) or not (token or certificate):
        raise ConfigError(f"{where} has neither a token nor a certificate with its key")
    return Identity(header_value(token, f"the token in {where}"), certificate.encode(), key.encode(), expires)


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host: `*`, CIDR, IP, name with its subdomains, .suffix or *.suffix, each with a port."""
    address = _ip_address(host)
    for entry in map(str.strip, no_proxy.lower().split(",")):
        with_port = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):(\d+)", entry)
        name, number = (with_port[1] or with_port[2], with_port[3]) if with_port else (entry, str(port))
        suffix = name[1:] if name.startswith("*.") else name
        if entry == "*" or (address is not None and _in_network(address, entry)):
            return True
        if name and number == str(port) and (_ip_address(name) == address if address is not None else (
                host == suffix or host.endswith(suffix if suffix.startswith(".") else f".{suffix}"))):
            return True
    return False


def proxy_for(url: str, variables: Mapping[str, str]) -> str:
    """The proxy that the environment names for a URL, empty for none (Go's golang.org/x/net/http/httpproxy).

    Upper case beats lower case and an empty value falls through; ALL_PROXY is ignored; `localhost` and loopback
    literals are always exempt, names that resolve to them are not. A space in NO_PROXY separates nothing.
    """
    parts = urlsplit(url)
    host, secure = (parts.hostname or "").lower(), parts.scheme == "https"
    name, no_proxy = "HTTPS_PROXY" if secure else "HTTP_PROXY", variables.get("NO_PROXY") or variables.get("no_proxy")
    address = _ip_address(host)
    if host == "localhost" or (address is not None and address.is_loopback) or _is_exempt(
            host, parts.port or (443 if secure else 80), no_proxy or ""):
        return ""
    return proxy_url(variables.get(name) or variables.get(name.lower()) or "", name)

# ====================================================================================================
# 7. Downloads — what an answer says of an object, ranges, refusals and their cures, when to try again
# ====================================================================================================

def explain_signature(url: str, theirs: str) -> str:
    """Which element of the canonical request a store sees otherwise than we signed it."""
    parts = urlsplit(url)
    query = "&".join(sorted(part for part in parts.query.split("&") if not part.startswith("X-Amz-Signature=")))
    ours = canonical_request("GET", parts.path, query, {"host": parts.netloc}, UNSIGNED_PAYLOAD).split("\n")
    names = ("method", "path", "query", "host header", "headers", "names of the signed headers", "payload hash")
    for name, mine, other in itertools.zip_longest(names, ours, theirs.split("\n"), fillvalue=""):
        if mine != other:
            return (f"the {name or 'request'} differs: signed {one_line(redact(mine), 200)!r}, the store saw "
                    f"{one_line(redact(other), 200)!r}; does a proxy in between change it?")
    return "the store saw what was signed, so the secret key is not the one of this access key"


def listed_prefixes(body: bytes) -> Tuple[List[str], str]:
    """A page of ListObjectsV2 -> the prefixes that keys have in common, and the token of the next page or nothing."""
    text = body.decode("utf-8", "replace")
    found = re.findall(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>\s*</CommonPrefixes>", text)
    token = re.search(r"<NextContinuationToken>([^<]+)</NextContinuationToken>", text)
    more = token and "<IsTruncated>true</IsTruncated>" in text
    return [_unescaped(prefix) for prefix in found], _unescaped(token.group(1)) if more else ""


DOWNLOAD_TRIES, FIRST_TRIES, FEW_TRIES = 10, 5, 3  # failures in a row: after bytes had come, before, not worth more
DOWNLOAD_WAIT = 60.0                         # seconds of waiting in a row; settles that endless 503 end within 100 s
PASSING_STATUS = (408, 429, 500, 502, 503, 504, 522, 524)  # curl's --retry, too
EXPIRED = ("UrlExpired", "ClockSkew", "CredentialsExpired")  # reasons that another signature may cure
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", re.ASCII)
_MD5_ETAG = re.compile(r'"[0-9a-f]{32}"', re.ASCII)


class Head(NamedTuple):
    """What an answer says of an object, and which of its bytes follow; None is what it does not say."""

    etag: str = ""                           # as sent; empty for a weak one, which identifies no bytes
    size: Optional[int] = None               # of the whole object
    md5: str = ""                            # of the whole object, in hex
    start: int = 0                           # -1 for a Content-Range that cannot be
    end: Optional[int] = None
    whole: bool = True                       # answered 200, whatever was asked for
    ends: bool = True                        # its end can be told from a break: it has a length or comes in chunks


def md5_from(headers: Mapping[str, str], etag: str) -> str:
    """The MD5 of the whole object where the ETag is one: of objects in parts, and of those that KMS or a customer's key
    encrypts, it is something else."""
    encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms") or headers.get(
        "x-amz-server-side-encryption-customer-algorithm")
    return etag.strip('"') if _MD5_ETAG.fullmatch(etag) and not encrypted else ""


def head_from(status: int, headers: Mapping[str, str]) -> Head:
    """Status (200 or 206) and headers of an answer -> what it says of the object."""
    etag = headers.get("ETag", "")
    etag = "" if etag.startswith("W/") else etag
    length = headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
    chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    common = {"etag": etag, "md5": md5_from(headers, etag), "ends": size is not None or chunked}
    if status == 200:
        return Head(size=size, end=size, **common)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    first, last, total = (text and int(text) for text in match.groups()) if match else (None, None, None)
    if first is None or last is None or last < first or size not in (None, last + 1 - first) or (
            total is not None and last >= total):
        return Head(size=total, start=-1, whole=False, **common)
    return Head(size=total, start=first, end=last + 1, whole=False, **common)


def range_headers(start: int, etag: str) -> Dict[str, str]:
    """The headers that ask for the rest of an object, if it is still the same."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    return {**headers, "If-Match": etag} if start and etag else headers


def changed_object(position: int) -> StoreError:
    """The error for an object that is no longer the one of which bytes are in hand."""
    return StoreError(f"the object changed after {position} bytes of it had come", reason="ObjectChanged")


def bytes_to_skip(held: Head, head: Head, position: int) -> int:
    """How many bytes of an answer are in hand already; StoreError when it does not go on where `held` stopped.

    One byte in hand is asked for again, so that behind the last one, too, there is something to ask for. A store that
    ignores Range sends the object from its beginning: nothing is lost but time.
    """
    if head.whole and not (head.ends or head.etag):
        raise Unreachable("the store's answer has neither length nor ETag: it was cut short", reason="BrokenOff")
    asked = max(0, position - 1)
    differs = None not in (held.size, head.size) and held.size != head.size
    if position and (differs or (held.etag and held.etag != head.etag and (head.etag or head.whole))):
        raise changed_object(position)
    if head.whole:
        return position
    size = held.size if head.size is None else head.size
    if head.start != asked or (size is not None and head.end != size):
        raise StoreError("the store answered with another part of the object than it was asked for",
                         reason="WrongRange")
    return position - asked


def is_for_a_new_url(error: Error, moved: bool) -> bool:
    """Whether another URL may get on; a 403 without a reason, after bytes had come, is taken for an expired one."""
    return isinstance(error, StoreError) and (
        error.reason in EXPIRED or (moved and error.status == 403 and error.reason == "StoreAccessDenied"))


def download_wait(error: Error, failures: int, waited: float, moved: bool) -> Optional[float]:
    """Seconds until a broken download is continued, None when it is given up.

    failures: in a row, without a byte between them. waited: seconds spent on them. moved: whether bytes ever came.
    """
    broken = isinstance(error, Unreachable) and error.retry
    status = error.status if isinstance(error, StoreError) else 0
    if not broken and status not in PASSING_STATUS and error.reason != "WrongRange":
        return None
    few = error.reason == "WrongRange" or (broken and error.reason != "BrokenOff" and not moved)
    tries = FEW_TRIES if few else DOWNLOAD_TRIES if moved else FIRST_TRIES
    wait = max(backoff(failures, 0.2, 10.0), getattr(error, "retry_after", None) or 0.0)
    return None if failures >= tries or waited + wait > DOWNLOAD_WAIT else wait


def may_be_continued(error: BaseException) -> bool:
    """Whether what came before an error is worth keeping: not when the object is wrong or gone, or the disk is full."""
    if isinstance(error, StoreError):
        return error.status not in (0, 404) or error.reason == "WrongRange"
    return not isinstance(error, OSError)


def bytes_text(count: float) -> str:
    """A number of bytes for people: `17 B`, `1.5 KiB`, `3.2 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def progress_text(done: int, size: Optional[int], fresh: int, seconds: float) -> str:
    """How far a transfer is: bytes, percent, rate, time left; `fresh` bytes of it came in the last `seconds`."""
    rate = fresh / seconds if seconds > 0 else 0.0
    parts = [bytes_text(done)]
    if size:
        parts = [f"{bytes_text(done)} of {bytes_text(size)}", f"{100 * done // size}%"]
    parts.append(f"{bytes_text(rate)}/s")
    if size and rate:
        parts.append(f"{format_duration(max(0, math.ceil((size - done) / rate)))} left")
    return ", ".join(parts)


def saved_text(size: int, seconds: float) -> str:
    """The last line of a download."""
    return f"{bytes_text(size)} in {format_duration(round(seconds, 1))}"


MOST_SKEW = timedelta(days=1)


def _what_is(body: bytes) -> str:
    """What a body that should be something else looks like, for an error."""
    start = body[:512].lstrip().lower()
    if not body:
        return "nothing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page; does the URL lead to a console or a login?"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    text = body[:200].decode("utf-8", "replace").rstrip("\ufffd")  # the cut may halve a character
    if "\ufffd" in text or any(not c.isprintable() and not c.isspace() for c in text):
        return "binary data"
    return "text: " + one_line(redact(text), 80)


class Refusal(NamedTuple):
    """What a store's error code means: the word for a request, and the cure."""

    reason: str
    cure: str


WRONG_ENDPOINT = Refusal("WrongEndpoint", "correct region or s3Url of the storage location")
WRONG_REGION = Refusal("WrongRegion", "correct region of the storage location")
CLOCK_SKEW = Refusal("ClockSkew", "set the clock of the host that signs")
URL_EXPIRED = Refusal("UrlExpired", "ask for the URL again; if it is new, the clocks differ")

# S3's error codes that a GET by signed URL can meet
# (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
REFUSALS = {
    "NoSuchKey": Refusal("ArtifactNotFound", "the backup or restore may never have written it, or it has expired"),
    "NoSuchBucket": Refusal("BucketNotFound", "correct objectStorage.bucket of the storage location"),
    "AccessDenied": Refusal("StoreAccessDenied", "the credentials need s3:GetObject on it; without s3:ListBucket a "
                                                 "missing file looks the same"),
    **dict.fromkeys(("InvalidAccessKeyId", "XAdminUserNotFound"), Refusal(  # the second is versitygw's
        "InvalidCredentials", "the store does not know the access key; correct the Secret")),
    "SignatureDoesNotMatch": Refusal("SignatureDoesNotMatch", "correct the secret key, s3Url or publicUrl"),
    "ExpiredToken": Refusal("CredentialsExpired", "renew the temporary credentials in the Secret"),
    **dict.fromkeys(("InvalidToken", "InvalidTokenId"), Refusal(  # the second is MinIO's
        "InvalidCredentials", "the session token does not belong to these keys")),
    "RequestTimeTooSkewed": CLOCK_SKEW,
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect"), WRONG_ENDPOINT),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "AuthorizationQueryParametersError",
                     "IllegalLocationConstraintException"), WRONG_REGION),
    "InvalidObjectState": Refusal("ArtifactArchived", "the object is in an archive tier; restore it there first"),
}

OTHER_CODES = ("InternalError", "InvalidArgument", "InvalidBucketName", "InvalidRange", "InvalidRequest",
               "MethodNotAllowed", "RequestTimeout", "ServiceUnavailable", "SlowDown")


def clock_skew(headers: Mapping[str, str], now: datetime) -> timedelta:
    """How far a store's clock, by its Date header, is ahead of ours; zero when it does not say, or nothing credible.

    By a date that is too far off we would sign what is good only years from now.
    """
    try:
        theirs = email.utils.parsedate_to_datetime((headers.get("Date") or "")[:64])
        skew = theirs.astimezone(timezone.utc) - now
    except (TypeError, ValueError, IndexError, OverflowError):
        return timedelta(0)
    return skew if abs(skew) <= MOST_SKEW else timedelta(0)


def _meaning(status: int, code: str, message: str, region: str) -> Optional[Refusal]:
    """What a refusal means: what its code says, unless something else in the answer says more."""
    known = REFUSALS.get(code)
    if code == "AccessDenied" and "expired" in message.lower():
        return URL_EXPIRED
    if code == "AccessDenied" and re.search("not (yet valid|valid yet)", message.lower()):  # AWS's words, and MinIO's
        return CLOCK_SKEW
    if known is None and region:  # whatever it complains of, it knows the right region
        known = {301: WRONG_ENDPOINT, 307: WRONG_ENDPOINT, 400: WRONG_REGION}.get(status)
    return known or {403: REFUSALS["AccessDenied"], 404: REFUSALS["NoSuchKey"]}.get(status)


def store_refusal(status: int, body: bytes, headers: Mapping[str, str], where: str, url: str, now: datetime,
                  *, quoting: bool = True) -> StoreError:
    """A store's refusal -> one sentence with its cause, and the cure; nothing of the signature shows.

    quoting: whether it may hold what the store has written; else it holds no more than a code that is known.
    """
    fields = xml_fields(body) if body.lstrip()[:1] == b"<" else {}
    code, message = fields.get("Code", ""), fields.get("Message", "")
    region = one_line(fields.get("Region") or headers.get("x-amz-bucket-region") or "", 64)
    meaning = _meaning(status, code, message, region) or Refusal("StoreError", "")
    skew = clock_skew(headers, now)
    detail = f"{code}: {message}" if code else _what_is(body)
    if not quoting:
        detail = code if code in REFUSALS or code in OTHER_CODES else "without a code of S3"
    elif code == "SignatureDoesNotMatch" and fields.get("CanonicalRequest"):
        detail = f"{code}: {explain_signature(url, fields['CanonicalRequest'])}"
    elif meaning.reason in ("WrongRegion", "WrongEndpoint") and region:
        detail = f"{detail} (the bucket is in region {region})"
    elif meaning.reason in ("ClockSkew", "UrlExpired") and abs(skew) > timedelta(minutes=1):
        detail += (f" (the store's clock is {format_duration(abs(skew) // timedelta(seconds=1))} "
                   f"{'ahead of' if skew > timedelta(0) else 'behind'} this host's)")
    said = {"ArtifactNotFound": "has no such file", "BucketNotFound": "has no such bucket"}.get(meaning.reason)
    said = f"{said} ({one_line(redact(detail))})" if said else f"answered {status}: {one_line(redact(detail), 600)}"
    error = StoreError(f"{where} {said}", status=status, reason=meaning.reason, hints=filter(None, [meaning.cure]))
    error.skew = skew
    error.retry_after = retry_after_seconds(headers.get("Retry-After", ""), now)
    if meaning.reason in EXPIRED:
        error.exit = Exit.FAILED             # that is no lack of rights
    return error

# ====================================================================================================
# 8. Screens — tables, describe, JSON and YAML; strings and documents only
# ====================================================================================================

def json_text(document: Any) -> str:
    """A document as JSON with an indent of two and every character that can be shown; the others are escaped."""
    lines = json.dumps(document, indent=2, ensure_ascii=False).split("\n")
    return "".join((line if line.isprintable() else "".join(
        c if c.isprintable() or c in JOINERS else json.dumps(c)[1:-1] for c in line)) + "\n" for line in lines)


# What needs no quotes: words that neither Go nor YAML 1.1 reads as anything but a string, with single blanks or signs
# between them. All other strings are written as in JSON, whose strings are YAML's, too.
_PLAIN = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z_/]([-\w./+@]|[ :=,](?=[\w/]))*",
                    re.ASCII | re.IGNORECASE)


def _yaml_scalar(value: Any) -> str:
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json_text(value)[:-1]


def _yaml_lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            nested = isinstance(item, (dict, list)) and item
            yield f"{_yaml_scalar(name)}:{'' if nested else ' ' + _yaml_scalar(item)}"
            indent = "  " if isinstance(item, dict) else ""
            yield from (indent + line for line in (_yaml_lines(item) if nested else ()))
    elif isinstance(value, list) and value:
        for item in value:
            first, *rest = _yaml_lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _yaml_scalar(value)


def yaml_text(*documents: Any) -> str:
    """Documents as YAML in block style, separated by `---` when there are several."""
    return "---\n".join("".join(f"{line}\n" for line in _yaml_lines(document)) for document in documents)


DOCUMENT_TEXTS = {"json": json_text, "yaml": yaml_text}

Localize = Callable[[datetime], datetime]          # an instant -> the same one in the user's time zone
NONE, NONE_INCLUDED = "<none>", "<none included>"
WIDEST = 300  # characters; a longer cell, which only a stranger can have written, widens no column


def go_time(text: str, localize: Localize, absent: str) -> str:
    """RFC 3339 -> as Go prints a time, `2026-03-01 02:00:00 +0000 UTC`; `absent` for none and for Go's zero time."""
    instant = parse_time(text)
    if instant is None or instant.year == 1:
        return f"<invalid time {one_line(text, 64)!r}>" if text and instant is None else absent
    try:
        local = localize(instant)
    except (OverflowError, ValueError, OSError):  # of a time zone at the ends of the calendar
        local = instant
    fraction = f".{local.microsecond:06d}".rstrip("0") if local.microsecond else ""
    return f"{local.isoformat(' ')[:19]}{fraction} {local:%z %Z}"


def age(seconds: float) -> str:
    """Seconds -> `59s`, `59m`, `23h`, `364d`, `2y`, cut off as kubectl does; Go counts no further than 292 years."""
    seconds = int(min(seconds, (2 ** 63 - 1) / 1e9))
    units = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    unit, name = next((row for row in units if seconds >= row[0]), units[-1])
    return f"{seconds // unit}{name}"


def table(rows: List[Tuple[str, ...]]) -> str:
    """Rows of cells in the columns of kubectl and velero: at least 6 wide, 3 apart, the last one unpadded."""
    widths = [max(6, 3 + min(WIDEST, max(map(len, column)))) for column in zip(*rows)]
    return "".join("".join(cell.ljust(width) for cell, width in zip(row, widths[:-1])) + row[-1] + "\n" for row in rows)


def aligned(lines: Iterable[str]) -> str:
    """Lines with tabs -> text in columns, by the rules of Go's text/tabwriter with a padding of two blanks.

    A cell ends with a tab; what follows the last tab of a line is none. Neighbouring lines that have a cell at the same
    position make a block, as wide as its longest cell. That a line of a block has the cells left of it follows.
    """
    rows = [line.split("\t") for line in lines]
    for column in range(max(map(len, rows), default=1) - 1):
        for wide, block in itertools.groupby(rows, key=lambda row: len(row) > column + 1):
            cells = list(block) if wide else []
            width = min(WIDEST, max((len(row[column]) for row in cells), default=0)) + 2
            for row in cells:
                row[column] = row[column].ljust(width)
    return "".join("".join(row) + "\n" for row in rows)


class Fields:
    """Typed access to a stranger's document by dotted paths, with Go's zero value for what is absent.

    What has another type counts as absent, and is noted in `wrong`. Artifacts have no such list: there it is an Error.
    """

    TYPES = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}

    def __init__(self, document: Any, place: str = "", wrong: Optional[Dict[str, None]] = None) -> None:
        self.document, self.place, self.wrong = document, place, wrong

    def typed(self, value: Any, kind: Any, *path: str) -> Any:
        """A value of this kind: a type, [kind] for a list of it, {str: kind} for a map; an absent bool is None."""
        wanted = kind if isinstance(kind, type) else type(kind)
        fits = isinstance(value, wanted) and isinstance(value, bool) is (wanted is bool) and not (
            wanted is int and abs(value) >= 2 ** 63)
        if value is not None and not fits:
            place = ".".join(filter(None, (self.place, *path))).replace(".[", "[") or "the document"
            text = f"{place} must be {self.TYPES[wanted]}"
            if self.wrong is None:
                raise StoreError(f"this is not what Velero writes: {one_line(text)}")
            self.wrong[text] = None
        if not fits:
            return None if wanted is bool else wanted()
        if isinstance(kind, list):
            return [self.typed(item, kind[0], *path, f"[{number}]") for number, item in enumerate(value)]
        if isinstance(kind, dict):
            return {str(name): self.typed(item, kind[str], *path, str(name)[:64]) for name, item in value.items()}
        return value

    def found(self, path: str) -> Any:
        """The value at a path, of whatever type."""
        value, steps = self.document, path.split(".") if path else []
        for number, step in enumerate(steps):
            value = self.typed(value, dict, *steps[:number]).get(step)
        return value

    def __call__(self, path: str, kind: Any = str) -> Any:
        return self.typed(self.found(path), kind, path)

    def part(self, path: str) -> "Optional[Fields]":
        """The struct at a path, or None."""
        value, place = self.found(path), ".".join(filter(None, (self.place, path)))
        return None if value is None else Fields(self.typed(value, dict, path), place, self.wrong)

    def rows(self, path: str = "") -> "List[Fields]":
        """The items of the list at a path."""
        place = ".".join(filter(None, (self.place, path)))
        return [Fields(self.typed(item, dict, path, f"[{number}]"), f"{place}[{number}]", self.wrong)
                for number, item in enumerate(self(path, list))]

    def joined(self, path: str, otherwise: str) -> str:
        """A list of names in one line."""
        return ", ".join(self(path, [str])) or otherwise

    def switch(self, path: str, false: str = "false", true: str = "true", absent: Optional[str] = "auto"
               ) -> Optional[str]:
        """A word for each state of a truth value."""
        value = self(path, bool)
        return absent if value is None else true if value else false

    def duration(self, path: str) -> str:
        """A duration as Go prints it: `720h` -> `720h0m0s`; an absent one is Go's zero, `0s`."""
        text = self(path)
        try:
            return format_duration(parse_duration(text or "0"), 9)
        except ValueError:
            return f"<invalid duration {one_line(text, 64)!r}>"

    def pairs(self, path: str) -> List[str]:
        """A map of strings as `key=value`, sorted."""
        return [f"{key}={value}" for key, value in sorted(self(path, {str: str}).items())]

    def selector(self, path: str = "") -> str:
        """A label selector in one line, sorted by key: `app=web,env in (prod,stage),!legacy`."""
        selector = self.part(path)
        if selector is None:
            return NONE
        forms = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}
        terms = [(key, f"{key}={value}") for key, value in selector("matchLabels", {str: str}).items()]
        for row in selector.rows("matchExpressions"):
            form, key, values = forms.get(row("operator"), "<error>"), row("key"), sorted(row("values", [str]))
            terms.append((key, form.format(key, ",".join(values))))
        return ",".join(text for _, text in sorted(terms, key=lambda term: term[0])) or NONE


def _expires(backup: Fields, now: datetime) -> str:
    """When a backup expires, from now; one that was not processed yet by its age and its time to live."""
    instant, created = parse_time(backup("status.expiration")), parse_time(backup("metadata.creationTimestamp"))
    try:
        if created and not (instant and instant.year > 1):
            life = parse_duration(backup("spec.ttl"))
            instant = created + timedelta(seconds=life) if life > 0 else None
    except (ValueError, OverflowError):
        instant = None
    if instant is None:
        return "n/a"
    seconds = (instant - now).total_seconds()
    return age(seconds) if seconds >= 0 else age(-seconds) + " ago"


def _columns(resource: Resource, row: Fields, now: datetime, localize: Localize) -> Dict[str, str]:
    """The titles and cells of 1.18."""
    def time(path: str) -> str:
        return go_time(row(path), localize, "<nil>")

    name, phase, deleting = row("metadata.name"), row("status.phase") or "New", row("metadata.deletionTimestamp")
    counts = {"ERRORS": str(row("status.errors", int)), "WARNINGS": str(row("status.warnings", int))}
    if resource is BACKUPS:
        return {"NAME": name, "STATUS": "Deleting" if deleting else phase, **counts,
                "CREATED": time("status.startTimestamp"), "EXPIRES": _expires(row, now),
                "STORAGE LOCATION": row("spec.storageLocation"),
                "QUEUE POSITION": str(row("status.queuePosition", int) or ""),
                "SELECTOR": row.selector("spec.labelSelector")}
    return {"NAME": name, "BACKUP": row("spec.backupName"), "STATUS": phase + (" (Deleting)" if deleting else ""),
            "STARTED": time("status.startTimestamp"), "COMPLETED": time("status.completionTimestamp"), **counts,
            "CREATED": time("metadata.creationTimestamp"), "SELECTOR": row.selector("spec.labelSelector")}


def by_schedule(name: str) -> str:
    """A key that sorts backups by name, but those of one schedule, whose names end with a time, newest first."""
    reverse = str.maketrans("0123456789", "9876543210")
    return re.sub(r"(?<=-\d\d)\d{12}\Z", lambda match: match.group().translate(reverse), name, flags=re.ASCII)


def resource_table(resource: Resource, documents: Iterable[Document], now: datetime, *, localize: Localize,
                   label_columns: Sequence[str] = (), show_labels: bool = False) -> str:
    """Backups or restores as `velero backup get` and `restore get` print them; nothing at all for none."""
    titles, rows = [], []
    records = [Fields(document, "", {}) for document in documents]
    if resource is BACKUPS:
        records.sort(key=lambda record: by_schedule(record("metadata.name")))
    for record in records:
        columns, labels = _columns(resource, record, now, localize), record("metadata.labels", {str: str})
        titles = [*columns, *(name.rpartition("/")[2].upper() for name in label_columns), *["LABELS"] * show_labels]
        every = [",".join(record.pairs("metadata.labels")) or NONE] if show_labels else []
        cells = [*columns.values(), *(labels.get(name, "") for name in label_columns), *every]
        rows.append(tuple(map(printable, cells)))
    return table([tuple(titles), *rows]) if rows else ""


def list_document(resource: Resource, documents: List[Document], version: str = "") -> Document:
    """What `get -o json|yaml` prints: the one document, else a list; `version` is the list's resourceVersion."""
    if len(documents) == 1:
        return documents[0]
    return {"kind": resource.kind + "List", "apiVersion": "velero.io/v1",
            "metadata": {"resourceVersion": version} if version else {}, "items": documents}


def plugin_table(plugins: List[Tuple[str, str]]) -> str:
    """(kind, name) pairs as `velero plugin get` prints them; nothing at all for no plugins."""
    return table([("NAME", "KIND")] + [(one_line(name), one_line(kind)) for kind, name in plugins]) if plugins else ""


# The reasons of errors that mean there is no such artifact: a store's 404 for a key, met by a client or a controller,
# and a kind that the CRDs of an older server do not know.
ARTIFACT_NOT_FOUND, UNKNOWN_KIND = "ArtifactNotFound", "UnknownKind"


def is_missing(value: Any) -> bool:
    """Whether there is no such artifact; that its bucket or the owner is gone is another matter."""
    return isinstance(value, Error) and value.reason in (ARTIFACT_NOT_FOUND, UNKNOWN_KIND)


def label_value(name: str) -> str:
    """A name as Velero puts it into a label, which holds 63 characters (velero pkg/label)."""
    return name if len(name) <= 63 else name[:57] + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:6]


def related_of(resource: Resource, document: Document) -> List[Tuple[Resource, str]]:
    """What else describe lists, as (resource, label selector)."""
    name = label_value(_text(document, "metadata", "name"))
    if resource is RESTORES:
        return [(POD_VOLUME_RESTORES, f"velero.io/restore-name={name}")]
    of_backup, uid = f"velero.io/backup-name={name}", _text(document, "metadata", "uid")
    return [(DELETE_REQUESTS, f"{of_backup},velero.io/backup-uid={uid}"), (POD_VOLUME_BACKUPS, of_backup)]


def artifacts_of(resource: Resource, document: Document, *, details: bool, structured: bool = False) -> List[str]:
    """The artifacts that describe shows; velero's JSON (`structured`) of a backup has no item operations."""
    kind, status = resource.kind, Fields(document, "", {})
    operations = status(f"status.{kind.lower()}ItemOperationsAttempted", int) > 0
    wanted = ((f"{kind}Results", status("status.warnings", int) or status("status.errors", int)),
              (f"{kind}ItemOperations", details and operations and not (structured and resource is BACKUPS)),
              (f"{kind}ResourceList", details),
              ("BackupVolumeInfos" if resource is BACKUPS else "RestoreVolumeInfo", True))
    return [name for name, needed in wanted if needed]


def legacy_artifacts_of(backup: Document) -> List[str]:
    """What describe needs besides when there is no BackupVolumeInfos, which servers before 1.13 did not write."""
    status, csi = Fields(backup, "", {}), ["CSIBackupVolumeSnapshots", "CSIBackupVolumeSnapshotContents"]
    return (["BackupVolumeSnapshots"] if status("status.volumeSnapshotsAttempted", int) > 0 else []) + (
        csi if status("status.csiVolumeSnapshotsAttempted", int) > 0 else [])


Path = Union[str, Tuple[Union[str, int], ...]]


class Line(NamedTuple):
    """One line of the text and one value of the JSON.

    The label holds the tabs that place it, as velero writes them; None is for the JSON only. A list is one line for
    each item, in the column of the first. The path leads to the value in the JSON, with numbers as places in lists; an
    empty one is for the text only. The note follows the value, uncolored. A labelled line without a value is left out.
    """

    label: Optional[str]
    value: Any = ""
    path: Path = ""
    color: str = "{}"
    note: str = ""

    def text(self, colorized: bool) -> Iterator[str]:
        """What `aligned` lays out; where a list is empty, velero indents the word for that once more."""
        words = (self.label or "").lstrip("\t")
        tabs, gap = "\t" * (len(self.label or "") - len(words)), "\t" if words.endswith("\t") else ""
        values = self.value if isinstance(self.value, list) else [str(self.value)]
        texts = [printable(text) for value in values for text in value.rstrip("\r\n").split("\n")]
        first, *more = [self.color.format(text) if colorized else text for text in texts] or [tabs + NONE]
        yield tabs + printable(words.rstrip("\t")) + gap + first + printable(self.note)
        for text in more:
            yield f"{tabs}\t{text}"


Lines = Iterator[Line]
BLANK = Line("")
RED, GREEN, BOLD = "\x1b[31m{}\x1b[0m", "\x1b[32m{}\x1b[0m", "\x1b[1m{}\x1b[22m"
PHASE_COLORS = {"Completed": GREEN, "FailedValidation": RED, "PartiallyFailed": RED, "Failed": RED}
SEE_DETAILS = "specify --details for more information"
POD_VOLUME_PHASES = {
    POD_VOLUME_BACKUPS: ("Completed", "Failed", "Canceled", "In Progress", "Canceling", "Prepared", "Accepted", "New"),
    POD_VOLUME_RESTORES: ("Completed", "Canceled", "Failed", "In Progress", "Canceling", "Prepared", "Accepted", "New")}
Rows = List[Tuple[Optional[str], str, Any]]        # label (None: JSON only), key of the JSON ("": text only), value


def _filter(spec: Fields, what: str, path: Tuple[str, ...], indent: str = "", every: str = "*") -> Lines:
    """Which namespaces or resources are included and excluded."""
    title, included = what.title(), spec.joined(f"included{what.title()}", "*")
    yield Line(f"{indent}{title}:")
    yield Line(f"{indent}\tIncluded:\t", every if included == "*" else included, (*path, what, "included"))
    yield Line(f"{indent}\tExcluded:\t", spec.joined(f"excluded{title}", NONE), (*path, what, "excluded"))


def _item_text(item: Fields) -> str:
    group = f".{item('Group')}" if item("Group") else ""
    return f"{item('Resource')}{group} {item('Namespace')}/{item('Name')}"


def _pod_volume_text(volume: Fields, phase: str) -> str:
    """A volume with what is known of its size; pod volume restores have no incremental one."""
    name, total = volume("spec.volume"), volume("status.progress.totalBytes", int)
    increment = volume("status.incrementalBytes", int)
    if phase == "In Progress" and total:
        return f"{name} ({volume('status.progress.bytesDone', int) / total * 100:.2f}%)"
    if phase == "Completed" and increment > 0:
        return f"{name} (size: {total}, incremental size: {increment})"
    return f"{name} (size: {total})" if phase == "Completed" and total > 0 else name


def _native_snapshot(info: Fields, details: bool, at: Path) -> Lines:
    name = info("pvName")
    if not details:
        yield from (Line(f"\t\t{name}: {SEE_DETAILS}"), Line(None, SEE_DETAILS, (*at, name)))
        return
    yield Line(f"\t\t{name}:")
    for title, key, path in (
            ("Snapshot ID", "snapshotID", "nativeSnapshotInfo.snapshotHandle"),
            ("Type", "type", "nativeSnapshotInfo.volumeType"),
            ("Availability Zone", "availabilityZone", "nativeSnapshotInfo.volumeAZ"),
            ("IOPS", "IOPS", "nativeSnapshotInfo.iops"), ("Result", "result", "result")):
        yield Line(f"\t\t\t{title}:\t", info(path), (*at, name, key))


def _local_snapshot(info: Fields, restored: bool = False) -> Rows:
    csi = info.part("csiSnapshotInfo") or Fields({})
    operation, driver = csi("operationID"), ("CSI Driver", "csiDriver", csi("driver"))
    ids = [("Snapshot Content Name", "snapshotContentName", csi("vscName")),
           ("Storage Snapshot ID", "storageSnapshotID", csi("snapshotHandle"))]
    if restored:
        return [*ids, driver]
    first = [("Operation ID" if operation else None, "operationID", operation)] * (not info("snapshotDataMoved", bool))
    return [*first, *ids, ("Snapshot Size (bytes)", "snapshotSize(bytes)", csi("size", int)), driver,
            ("Result", "result", info("result"))]


def _data_movement(info: Fields, restored: bool = False) -> Rows:
    moved = info.part("snapshotDataMovementInfo") or Fields({})
    mover, size, increment = moved("dataMover"), moved("size", int), moved("incrementalSize", int)
    known = size > 0 or increment > 0
    rows = [("Operation ID", "operationID", moved("operationID")),
            ("Data Mover", "dataMover", mover if restored else mover or "velero"),
            ("Uploader Type", "uploaderType", moved("uploaderType"))]
    return rows if restored else [
        *rows, ("Moved data Size (bytes)", "size" if known else "", size),
        ("Incremental data Size (bytes)" if increment > 0 else None, "incrementalSize" if known else "", increment),
        ("Result", "result", info("result"))]


def _csi_snapshot(info: Fields, details: bool, at: Path) -> Lines:
    """A claim, with its local snapshot, the data moved away from it, or both."""
    path = (*at, f"{info('pvcNamespace')}/{info('pvcName')}")
    yield from (Line(f"\t\t{path[-1]}:"), Line(None, {}, path))
    for title, name, kept, rows_of in (
            ("Snapshot", "snapshot", "preserveLocalSnapshot", _local_snapshot),
            ("Data Movement", "dataMovement", "snapshotDataMoved", _data_movement)):
        if info(kept, bool) and not details:
            yield Line(f"\t\t\t{title}: ", f"included, {SEE_DETAILS}", (*path, name))
        elif info(kept, bool):
            yield Line(f"\t\t\t{title}:")
            for label, key, value in rows_of(info):
                yield Line(label and f"\t\t\t\t{label}: ", value, (*path, name, key) if key else "")


class Description:
    """What `velero backup|restore describe` shows of an object; what could not be had is said where it would stand.

    An Error stands in place of a list or artifact that could not be read. What the screen lacks is in `troubles`, but
    for what velero itself has words for.
    """

    def __init__(self, resource: Resource, document: Document, related: Mapping[Resource, Any],
                 artifacts: Mapping[str, Any], *, localize: Localize, details: bool = False) -> None:
        self.wrong: Dict[str, None] = {}
        self.document = Fields(document, "", self.wrong)
        self.spec, self.status = (Fields(self.document(part, dict), part, self.wrong) for part in ("spec", "status"))
        self.kind, self.is_backup, self.details = resource.kind, resource is BACKUPS, details
        self.related, self.artifacts, self.localize = related, artifacts, localize
        self.errors: List[Error] = []
        lines = self._backup() if self.is_backup else self._restore()
        self.lines = [line for line in lines if line.label is None or line.value is not None]

    def text(self, colorized: bool = False) -> str:
        """The screen."""
        return aligned(text for line in self.lines if line.label is not None for text in line.text(colorized))

    def json(self) -> Document:
        """The same as a document for -o json; a mapping whose keys are numbers is a list."""
        def listed(tree: Any) -> Any:
            if not isinstance(tree, dict):
                return tree
            values = {key: listed(value) for key, value in tree.items()}
            return list(values.values()) if values and all(isinstance(key, int) for key in values) else values

        result: Document = {}
        for line in self.lines:
            target, path = result, line.path.split("/") if isinstance(line.path, str) else line.path
            for step in path[:-1]:
                target = target.setdefault(step, {})
            if line.path:
                target[path[-1]] = line.value
        return listed(result)

    @property
    def troubles(self) -> List[Error]:
        """What the screen lacks; the exit code of a command is that of the first."""
        name = f"{self.kind} {one_line(self.document('metadata.name'), 254)}"
        more = f" (and {len(self.wrong) - 1} more)" if len(self.wrong) > 1 else ""
        return [Error(f"{name}: {one_line(text, 200)}{more}") for text in list(self.wrong)[:1]] + self.errors

    def _artifact(self, kind: str) -> Fields:
        """An artifact; one that nobody fetched is not there."""
        value = self.artifacts.get(kind, StoreError("file not found", status=404, reason=ARTIFACT_NOT_FOUND))
        if isinstance(value, Error):
            raise value
        return Fields(value, kind)

    def _lacks(self, kind: str) -> bool:
        """Whether an artifact is missing, and the server is one that has a word for that."""
        return is_missing(self.artifacts.get(kind, StoreError("", reason=ARTIFACT_NOT_FOUND)))

    def _listed(self, resource: Resource) -> List[Fields]:
        """The related objects of a kind."""
        items = self.related[resource]
        if isinstance(items, Error):
            raise items
        return [Fields(item, f"{resource.kind} {_text(item, 'metadata', 'name')}", self.wrong) for item in items]

    def _guarded(self, lines: Lines, *instead: Line) -> List[Line]:
        """The lines of a section, or those that say, in place of {}, why it cannot be shown."""
        try:
            return list(lines)
        except Error as error:
            self.errors += [] if error in self.errors else [error]
            why = "file not found" if is_missing(error) else one_line(error)
            return [line._replace(value=line.value.format(why)) for line in instead]

    def _time(self, text: str, absent: str = "<n/a>") -> str:
        return go_time(text, self.localize, absent)

    # -- what backups and restores have in common ----------------------------------------------------

    def _row(self, label: str, value: Any, key: str = "") -> Line:
        return Line(f"{label}\t", value, f"spec/{key}" if key else "")

    def _head(self) -> Lines:
        name, phase, deleting = self.document("metadata.name"), self.status("phase"), ""
        if not self.is_backup and self.document("metadata.deletionTimestamp"):
            deleting = " (Deleting)"
        quote = "`" if self.is_backup else "'"
        note = f" (run {quote}velero {self.kind.lower()} logs {name}{quote} for more information)"
        yield Line("Name:\t", name, "metadata/name", BOLD)
        yield Line("Namespace:\t", self.document("metadata.namespace"), "metadata/namespace")
        for field in ("labels", "annotations"):
            yield Line(f"{field.title()}:\t", self.document.pairs(f"metadata.{field}"))
            yield Line(None, self.document(f"metadata.{field}", {str: str}) or None, f"metadata/{field}")
        yield from (BLANK, Line(None, phase, "phase"))
        yield Line("Phase:\t", (phase or "New") + deleting, "", PHASE_COLORS.get(phase, "{}"),
                   note if phase in ("Failed", "PartiallyFailed") else "")

    def _validation(self) -> Lines:
        """Velero's validation errors, and what in the objects cannot be read, where velero shows nothing at all."""
        texts, wrong = self.status("validationErrors", [str]), list(self.wrong)
        shown = wrong[:10] + ([f"and {len(wrong) - 10} more"] if len(wrong) > 10 else [])
        for title, name, values in (("Validation errors:\t", "validationErrors", texts),
                                    ("Unreadable:\t", "unreadable", shown)):
            if values:
                yield from (BLANK, Line(title, values, name, RED))

    def _times(self) -> Lines:
        for title, name in (("Started:\t", "start"), ("Completed:\t", "completion")):
            yield Line(title, self._time(self.status(name + "Timestamp")), f"status/{title[:-2].lower()}")

    def _progress(self) -> Lines:
        """The lines about items: an estimate while they are being worked on."""
        progress = self.status.part("progress")
        if progress is None:
            return
        verb, name = ("backed up", "BackedUp") if self.is_backup else ("restored", "Restored")
        total, done = f"Total items to be {verb}", f"Items {verb}"
        paths = f"status/totalItemsToBe{name}", f"status/items{name}"
        if self.status("phase") == "InProgress":
            total, done = f"Estimated total items to be {verb}", f"Items {verb} so far"
            paths = f"status/estimatedTotalItemsToBe{name}", f"status/items{name}SoFar"
        yield Line(f"{total}:\t", progress("totalItems", int), paths[0])
        yield Line(f"{done}:\t", progress(f"items{name}", int), paths[1])

    def _reference(self, title: str, part: str, path: str) -> Lines:
        """The kind and name of a ConfigMap that the spec names."""
        reference = self.spec.part(part)
        if reference is not None:
            yield from (BLANK, Line(title), Line("\tType:\t", reference("kind"), f"{path}/type"),
                        Line("\tName:\t", reference("name"), f"{path}/name"))

    def _result(self, name: str, count: int) -> Lines:
        results = self._artifact(f"{self.kind}Results")
        if count <= 0:
            yield Line(None, {}, name)
            return
        result = results.part(name) or Fields({})
        namespaces = result("namespaces", {str: [str]})
        yield from (BLANK, Line(f"{name.title()}:"), Line("\tVelero:\t", result("velero", [str]), f"{name}/velero"),
                    Line("\tCluster:\t", result("cluster", [str]), f"{name}/cluster"),
                    Line("\tNamespaces:" if namespaces else f"\tNamespaces: {NONE}"),
                    Line(None, namespaces or [], f"{name}/namespace"))
        yield from (Line(f"\t\t{namespace}:\t", texts) for namespace, texts in sorted(namespaces.items()))

    def _results(self) -> Lines:
        """Warnings and errors; of a backup by a server before 1.11 there is no file, only the numbers."""
        counts = {name: self.status(name, int) for name in ("errors", "warnings")}
        if any(counts.values()) and self.is_backup and self._lacks("BackupResults"):
            yield from (Line(f"{name.title()}:\t", count, f"{name}/count") for name, count in counts.items())
        elif any(counts.values()):
            for name, before in (("warnings", ()), ("errors", (BLANK,))):
                yield from self._guarded(self._result(name, counts[name]), *before, Line(
                    f"{name.title()}:\t", f"<error getting {name}: {{}}>", f"{name}/errorGetting{name.title()}"))

    def _resource_list(self) -> Lines:
        """The names of all resources by kind."""
        what, path = f"{self.kind.lower()} resource list", "status/errorGettingResourceList"
        if self._lacks(f"{self.kind}ResourceList"):
            yield Line("Resource List:\t", f"<{what} not found>", path)
        else:
            yield from self._guarded(self._resources(), Line("Resource List:\t", f"<error getting {what}: {{}}>", path))

    def _resources(self) -> Lines:
        resources = self._artifact(f"{self.kind}ResourceList")("", {str: [str]})
        yield from (Line(None, resources, "status/resourceList"), Line("Resource List:"))
        for group, names in sorted(resources.items()):
            yield from (Line(f"\t{group}:"), *(Line(f"\t\t- {name}") for name in names or [""]))

    def _operation(self, operation: Fields, at: Path) -> Lines:
        status = operation.part("status") or Fields({})
        item = _item_text(operation.part("spec.resourceIdentifier") or Fields({}))
        yield from (Line(f"\tOperation for {item}:"), Line(None, item, (*at, "resource")))
        yield Line(f"\t\t{self.kind} Item Action Plugin:\t", operation(f"spec.{self.kind.lower()}ItemAction"),
                   (*at, "plugin"))
        yield Line("\t\tOperation ID:\t", operation("spec.operationID"), (*at, "operationID"))
        items = [Line(f"\t\t\t{_item_text(row)}") for row in operation.rows("spec.postOperationItems")]
        yield from [Line("\t\tItems to Update:"), *items] if items else []
        yield Line("\t\tPhase:\t", status("phase"), (*at, "phase"))
        done, total = status("nCompleted", int), status("nTotal", int)
        progress = f"{done} of {total} complete ({status('operationUnits')})" if total > 0 or done > 0 else ""
        for title, name, value in (
                ("Operation Error", "error", status("error")), ("Progress", "progress", progress),
                ("Progress description", "description", status("description")),
                *((name.title(), name, self._time(status(name), "")) for name in ("created", "started", "updated"))):
            if value:
                yield Line(f"\t\t{title}:\t", value, (*at, name))

    def _operations(self) -> Lines:
        """What plugins go on with after the items were handled. velero has no such JSON: that of restores is ours."""
        title, at = f"{self.kind} Item Operations:", "status/restoreItemOperations"
        counts = {name.lower(): self.status(f"{self.kind.lower()}ItemOperations{name}", int)
                  for name in ("Attempted", "Completed", "Failed")}
        if counts["attempted"] <= 0:
            return
        yield from (Line(None, count, f"{at}/{name}") for name, count in counts.items())
        if not self.details or f"{self.kind}ItemOperations" not in self.artifacts:
            text = "{completed} of {attempted} completed successfully, {failed} failed".format(**counts)
            yield Line(f"{title}\t", f"{text} ({SEE_DETAILS})")
        else:
            yield from self._guarded(self._operation_list(title, at), Line(
                f"{title}\t", "<error getting operation info: {}>", f"{at}/error"))

    def _operation_list(self, title: str, at: str) -> Lines:
        rows = self._artifact(f"{self.kind}ItemOperations").rows()
        yield Line(title)
        for number, row in enumerate(rows):
            yield from self._operation(row, (*at.split("/"), "operations", number))

    def _hook_status(self, gap: str = "") -> Lines:
        hooks = self.status.part("hookStatus")
        if hooks is not None:
            yield BLANK
            yield Line(f"HooksAttempted:{gap}\t", hooks("hooksAttempted", int), "status/hooksAttempted")
            yield Line(f"HooksFailed:{gap}\t", hooks("hooksFailed", int), "status/hooksFailed")

    def _pod_volumes(self) -> Lines:
        """Volumes whose files were copied, or why they cannot be shown."""
        path = ("status", "backupVolumes", "podVolumeBackups") if self.is_backup else ("status", "podVolumeRestores")
        title = "\tPod Volume Backups: " if self.is_backup else "Pod Volume Restores: "
        yield from self._guarded(self._pod_volumes_by_phase(title, path), *[BLANK] * (not self.is_backup), Line(
            title, f"<error getting {title.strip().lower()} {{}}>", path))

    def _pod_volumes_by_phase(self, title: str, path: Tuple[str, ...]) -> Lines:
        """In velero's order, with phases it does not know last, then by pod; the JSON is in the order of the API."""
        resource = POD_VOLUME_BACKUPS if self.is_backup else POD_VOLUME_RESTORES
        volumes, indent = self._listed(resource), "\t\t" if self.is_backup else "\t"
        if not volumes:
            yield Line(title if self.is_backup else None, NONE_INCLUDED, path)
            return
        uploader, more = volumes[0]("spec.uploaderType"), "" if self.details else f" ({SEE_DETAILS})"
        yield from [Line(f"\tPod Volume Backups - {uploader}{more}:")] if self.is_backup else [
            BLANK, Line(f"{uploader} Restores{more}:")]
        yield Line(None, uploader, (*path, "uploderType"))  # velero's spelling
        phases: Dict[str, Dict[str, List[str]]] = {name: {} for name in POD_VOLUME_PHASES[resource]}
        for volume in volumes:
            phase = {"": "New", "InProgress": "In Progress"}.get(volume("status.phase"), volume("status.phase"))
            pod = f"{volume('spec.pod.namespace')}/{volume('spec.pod.name')}"
            phases.setdefault(phase, {}).setdefault(pod, []).append(_pod_volume_text(volume, phase))
        for phase, pods in phases.items():
            at = (*path, f"{path[-1]}Details", phase)
            if pods and not self.details:
                yield Line(f"{indent}{phase}:\t", sum(map(len, pods.values())), at)
            elif pods:
                yield Line(None, [{pod: ", ".join(names)} for pod, names in pods.items()], at)
                yield Line(f"{indent}{phase}:")
                yield from (Line(f"{indent}\t{pod}: {', '.join(sorted(names))}") for pod, names in sorted(pods.items()))

    # -- backups -------------------------------------------------------------------------------------

    def _backup(self) -> Lines:
        """`backup describe` in 1.18's order."""
        rest = [*self._results(), *self._backup_spec(), *self._backup_status()]  # first, for what in them is wrong
        uploads = self.spec("uploaderConfig.parallelFilesUpload", int)
        yield from self._head()
        if self.status("phase") == "Queued":
            yield Line("Queue position:\t", self.status("queuePosition", int))
        yield from self._reference("Resource policies:", "resourcePolicy", "resourcePolicies")
        if uploads > 0:
            yield from (BLANK, Line("Uploader config:"), Line("\tParallel files upload:\t", uploads))
        yield from (*self._validation(), BLANK, *rest)

    def _older_filters(self) -> List[Line]:
        return [*_filter(self.spec, "resources", ("spec",)), self._row(
            "\tCluster-scoped:", self.spec.switch("includeClusterResources", "excluded", "included"),
            "resources/clusterScoped")]

    def _backup_filters(self) -> Lines:
        """Namespaces and resources; the JSON has the older resource filters also where the newer ones are in use."""
        yield from (BLANK, *_filter(self.spec, "namespaces", ("spec",)), BLANK)
        older = any(self.spec(f"{word}Resources", [str]) for word in ("included", "excluded"))
        if older or self.spec("includeClusterResources", bool) is not None:
            yield from self._older_filters()
            return
        yield Line("Resources:")
        for scope, every in (("cluster", NONE), ("namespace", "*")):
            for word, otherwise in (("Included", every), ("Excluded", NONE)):
                names = self.spec.joined(f"{word.lower()}{scope.title()}ScopedResources", otherwise)
                yield Line(f"\t{word} {scope}-scoped:\t", names)
        yield from (line._replace(label=None) for line in self._older_filters() if line.path)

    def _selectors(self, path: str = "") -> Lines:
        either = " or ".join(row.selector() for row in self.spec.rows("orLabelSelectors")) or NONE
        yield from (BLANK, self._row("Label selector:", self.spec.selector("labelSelector"), "labelSelector"),
                    BLANK, self._row("Or label selector:", either, path), BLANK)

    def _backup_spec(self) -> Lines:
        spec, row = self.spec, self._row
        yield from (
            *self._backup_filters(), *self._selectors(),
            row("Storage Location:", spec("storageLocation"), "storageLocation"), BLANK,
            row("Velero-Native Snapshot PVs:", spec.switch("snapshotVolumes"), "veleroNativeSnapshotPVs"),
            row("File System Backup (Default):", spec.switch("defaultVolumesToFsBackup", absent=None)),
            row("Snapshot Move Data:", spec.switch("snapshotMoveData"), "veleroSnapshotMoveData"),
            row("Data Mover:", spec("datamover") or "velero"), Line(None, spec("datamover") or NONE, "spec/dataMover"),
            BLANK, row("TTL:", spec.duration("ttl"), "TTL"),
            BLANK, row("CSISnapshotTimeout:", spec.duration("csiSnapshotTimeout"), "CSISnapshotTimeout"),
            row("ItemOperationTimeout:", spec.duration("itemOperationTimeout")), BLANK, *self._hooks())
        if spec.part("orderedResources") is not None:
            ordered = spec("orderedResources", {str: str})
            yield from (BLANK, Line("OrderedResources:"), Line(None, ordered, "spec/orderedResources"))
            yield from (Line(f"\t{key}: {value}") for key, value in sorted(ordered.items()))

    def _hooks(self) -> Lines:
        """Commands in pods, before and after; `onError:` is velero's spelling."""
        hooks = self.spec.rows("hooks.resources")
        yield from (Line("Hooks:"), Line("\tResources:")) if hooks else (Line("Hooks:\t", NONE),)
        for hook in hooks:
            at = ("spec", "hooks", "resources", hook("name"))
            yield from (Line(f"\t\t{hook('name')}:"), Line(None, {}, at), *_filter(hook, "namespaces", at, "\t\t\t"),
                        BLANK, *_filter(hook, "resources", at, "\t\t\t"), BLANK,
                        Line("\t\t\tLabel selector:\t", hook.selector("labelSelector"), (*at, "labelSelector")))
            for name in ("pre", "post"):
                commands = list(filter(None, (row.part("exec") for row in hook.rows(name))))
                yield from [] if commands else [Line(None, [], (*at, f"{name}ExecHook"))]
                for number, command in enumerate(commands):
                    path = (*at, f"{name}ExecHook", number)
                    yield from (BLANK, Line(f"\t\t\t{name.title()} Exec Hook:"))
                    yield Line("\t\t\t\tContainer:\t", command("container"), (*path, "container"))
                    yield Line("\t\t\t\tCommand:\t", " ".join(command("command", [str])), (*path, "command"))
                    yield Line("\t\t\t\tOn Error:\t", command("onError"), (*path, "onError:"))
                    yield Line("\t\t\t\tTimeout:\t", command.duration("timeout"), (*path, "timeout"))

    def _backup_status(self) -> Lines:
        yield from (BLANK, Line("Backup Format Version:\t", self.status("formatVersion"), "status/backupFormatVersion"))
        yield from (BLANK, *self._times(), BLANK)
        yield from (Line("Expiration:\t", self._time(self.status("expiration"), "<nil>"), "status/expiration"), BLANK)
        progress = list(self._progress())
        yield from (*progress, BLANK) if progress else ()
        yield from (line._replace(path="") for line in self._operations())
        yield from (*self._resource_list(), BLANK) if self.details else ()
        yield Line("Backup Volumes:")
        yield from self._guarded(self._snapshots(), Line("\t", "<error getting backup volume info: {}>"), Line(
            None, "error getting backup volume info: {}", "status/backupVolumes/errorGetBackupVolumeInfo"))
        yield BLANK
        yield from (*self._pod_volumes(), *self._hook_status())
        yield from self._guarded(self._deletions(), BLANK, Line(
            "Deletion Attempts: ", "<error getting deletion attempts: {}>", "deletionAttempts/error"))

    def _snapshots(self) -> Lines:
        """Native and CSI snapshots, of which servers before 1.13 tell in other artifacts."""
        older, none = self._lacks("BackupVolumeInfos"), NONE_INCLUDED
        infos = [] if older else self._artifact("BackupVolumeInfos").rows()
        native, csi = ([row for row in infos if row("backupMethod") == f"{name}Snapshot"] for name in ("Native", "CSI"))
        if older:
            native, csi, none = self._legacy_native(), self._legacy_csi(), "<none included or not detectable>"
        yield from self._snapshots_of("native", "Velero-Native Snapshots", native, NONE_INCLUDED)
        yield from (BLANK, *self._snapshots_of("CSI", "CSI Snapshots", csi, none))

    def _snapshots_of(self, word: str, title: str, infos: Iterable[Fields], none: str) -> Lines:
        """The snapshots of one sort, or why they cannot be shown."""
        path = ("status", "backupVolumes", f"{word.lower()}Snapshots")

        def lines() -> Lines:
            show = _csi_snapshot if word == "CSI" else _native_snapshot
            found = [line for info in infos for line in show(info, self.details, path)]
            yield from (Line(f"\t{title}:"), *found) if found else (Line(f"\t{title}: ", none, path),)

        text, upper = f"error concluding {word} snapshot info: {{}}", word[0].upper() + word[1:]
        yield from self._guarded(lines(), Line(f"\t{title}: ", f"<{text}>"),
                                Line(None, text, (*path[:2], f"errorConclude{upper}Snapshot")))

    def _legacy_native(self) -> Iterator[Fields]:
        """The snapshots of a server before 1.13, as volume infos; 1.6 began one name with a capital letter."""
        if self.status("volumeSnapshotsAttempted", int) <= 0:
            return
        for row in self._artifact("BackupVolumeSnapshots").rows():
            iops = "" if row.found("spec.volumeIOPS") is None else str(row("spec.volumeIOPS", int))
            yield Fields({
                "pvName": row("spec.persistentVolumeName") or row("spec.PersistentVolumeName"), "nativeSnapshotInfo": {
                    "snapshotHandle": row("status.providerSnapshotID"), "volumeType": row("spec.volumeType"),
                    "volumeAZ": row("spec.volumeAZ"), "iops": iops}})

    def _legacy_csi(self) -> Iterator[Fields]:
        """The CSI snapshots of such a server: the contents, with the claims of their snapshots."""
        if self.status("csiVolumeSnapshotsAttempted", int) <= 0:
            return
        snapshots, contents = (self._artifact(kind).rows() for kind in (
            "CSIBackupVolumeSnapshots", "CSIBackupVolumeSnapshotContents"))
        claim = "spec.source.persistentVolumeClaimName"
        claims = {row("status.boundVolumeSnapshotContentName"): {
            "pvcNamespace": row("metadata.namespace"), "pvcName": row(claim)} for row in snapshots if row(claim)}
        for row in contents:
            name = row("metadata.name")
            yield Fields({"preserveLocalSnapshot": True, **claims.get(name, {"pvcName": "<PVC name not found>"}),
                          "csiSnapshotInfo": {"vscName": name, "driver": row("spec.driver"), "snapshotHandle": row(
                              "status.snapshotHandle"), "size": row("status.restoreSize", int)}})

    def _deletions(self) -> Lines:
        """The requests to delete a backup, and what they failed by."""
        attempts = self._listed(DELETE_REQUESTS)
        failed = sum(row("status.phase") == "Processed" and bool(row("status.errors", list)) for row in attempts)
        yield from [Line(None, failed, "deletionAttempts/failed")] if failed else []
        for number, row in enumerate(attempts):
            path, created = ("deletionAttempts", "deleteBackupRequests", number), self._time(
                row("metadata.creationTimestamp"))
            phase, errors = row("status.phase"), row("status.errors", [str])
            yield BLANK
            if not number:
                yield Line("Deletion Attempts" + (f" ({failed} failed)" if failed else "") + ":")
            yield from (Line(None, created, (*path, "creationTimestamp")), Line(None, phase, (*path, "phase")))
            yield Line(f"\t{created}: {phase}")
            if errors:
                yield from (Line(None, errors, (*path, "errors")), Line("\tErrors:"))
                yield from (Line("\t\t", part) for text in errors for part in text.rstrip("\r\n").split("\n"))

    # -- restores ------------------------------------------------------------------------------------

    def _restore(self) -> Lines:
        """`restore describe` in 1.18's order; the JSON has the same shape as that of a backup."""
        # What is wrong in the rest is said above it, so the rest is read first.
        rest = [*self._results(), *self._restore_spec(), BLANK, *self._operations(), *self._hook_status(" ")]
        yield from self._head()
        yield Line(None, bool(self.document("metadata.deletionTimestamp")), "deleting")
        more = [BLANK, *self._resource_list()] if self.details else []
        yield from (*self._progress(), BLANK, *self._times(), *self._validation(), *rest, *more)

    def _restore_spec(self) -> Lines:
        """What was asked for, and between it the volumes."""
        spec, row = self.spec, self._row
        yield from (
            BLANK, row("Backup:", spec("backupName"), "backup"), BLANK,
            *_filter(spec, "namespaces", ("spec",), every="all namespaces found in the backup"), BLANK,
            *self._older_filters(), BLANK, row("Namespace mappings:", spec.pairs("namespaceMapping")),
            Line(None, spec("namespaceMapping", {str: str}), "spec/namespaceMappings"),
            *self._selectors("orLabelSelector"), row("Restore PVs:", spec.switch("restorePVs"), "restorePVs"),
            *self._pod_volumes())
        if not self._lacks("RestoreVolumeInfo"):
            yield from (BLANK, *self._guarded(self._csi_restores(), Line(
                "CSI Snapshot Restores: ", "<error getting restore volume info: {}>", "status/csiSnapshotRestores")))
        yield from (
            BLANK,
            row("Existing Resource Policy: ", spec("existingResourcePolicy") or NONE, "existingResourcePolicy"),
            row("ItemOperationTimeout:", spec.duration("itemOperationTimeout"), "itemOperationTimeout"),
            BLANK, row("Preserve Service NodePorts:", spec.switch("preserveNodePorts"), "preserveServiceNodePorts"),
            *self._reference("Resource modifier:", "resourceModifier", "spec/resourceModifier"))
        uploads = spec.part("uploaderConfig")
        if uploads is not None:
            sparse, parallel = uploads("writeSparseFiles", bool), uploads("parallelFilesDownload", int)
            yield from (BLANK, Line("Uploader config:"),
                        row("\tWrite Sparse Files:", "true" if sparse else None, "uploaderConfig/writeSparseFiles"),
                        row("\tParallel Restore:", str(parallel) if parallel else None,
                            "uploaderConfig/parallelFilesDownload"))

    def _csi_restores(self) -> Lines:
        """The volumes that came from CSI snapshots, moved ones last."""
        infos = [row for row in self._artifact("RestoreVolumeInfo").rows() if row("restoreMethod") == "CSISnapshot"]
        title, at = "CSI Snapshot Restores:", ("status", "csiSnapshotRestores")
        yield Line(title) if infos else Line(f"{title} ", NONE_INCLUDED, at)
        for info in sorted(infos, key=lambda row: bool(row("snapshotDataMoved", bool))):
            moved, path = info("snapshotDataMoved", bool), (*at, f"{info('pvcNamespace')}/{info('pvcName')}")
            word, name = ("Data Movement", "dataMovement") if moved else ("Snapshot", "snapshot")
            yield Line(f"\t{path[-1]}:")
            if not self.details:
                yield Line(f"\t\t{word}: ", SEE_DETAILS, (*path, name))
                continue
            yield Line(f"\t\t{word}:")
            for label, key, value in (_data_movement if moved else _local_snapshot)(info, restored=True):
                yield Line(f"\t\t\t{label}: ", value, (*path, name, key))


def version_text(server_version: Optional[str], source: str = "") -> str:
    """The text of `velero version`; None for --client-only. This one file is its own commit, so it names none.

    `source` says where the server's version comes from when no server answered.
    """
    text = f"Client:\n\tVersion: v{__version__}\n\tGit commit: -\n"
    origin = f" ({one_line(source)})" if source else ""
    return text if server_version is None else f"{text}Server:\n\tVersion: {one_line(server_version)}{origin}\n"


def version_document(server_version: Optional[str], source: str = "") -> Document:
    """The same for -o json|yaml, which velero lacks."""
    client = {"client": {"version": f"v{__version__}"}}
    server = {"version": server_version, **({"source": source} if source else {})}
    return client if server_version is None else {**client, "server": server}

# ====================================================================================================
# 9. Manifests — the CustomResourceDefinitions
# ====================================================================================================

def _struct(*required: str, **fields: Document) -> Document:
    return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}


def _request_schemas(status_subresource: bool) -> Dict[str, Tuple[Document, Document]]:
    """Kind -> the schemas of spec and status."""
    text, time = {"type": "string"}, {"type": "string", "format": "date-time", "nullable": True}
    phase, release = {"type": "string", "enum": [NEW, PROCESSED]}, "1.6" if status_subresource else "1.18"
    kinds = {"type": "string", "enum": [row.kind for row in TARGETS.values() if release in row.releases.split()]}
    plugins = {"type": "array", "items": _struct("kind", "name", kind=text, name=text), "nullable": True}
    return {
        "DownloadRequest": (_struct("target", target=_struct("kind", "name", kind=kinds, name=text)),
                            _struct(downloadURL=text, expiration=time, phase=phase)),
        "ServerStatusRequest": ({"type": "object"}, _struct(
            phase=phase, processedTimestamp=time, serverVersion=text, plugins=plugins))}


def crd_manifests(status_subresource: bool) -> List[Document]:
    """The CustomResourceDefinitions, as Velero 1.6 has them (with a status subresource) or 1.18 (without)."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schemas, manifests = _request_schemas(status_subresource), []
    for kind, *short_names in (("Backup",), ("BackupStorageLocation", "bsl"), ("DownloadRequest",), ("Restore",),
                               ("ServerStatusRequest", "ssr")):
        spec, status = schemas.get(kind, (anything, anything))
        names = {"kind": kind, "listKind": f"{kind}List", "singular": kind.lower(), "plural": f"{kind.lower()}s"}
        version: Document = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": _struct(
            apiVersion={"type": "string"}, kind={"type": "string"}, metadata={"type": "object"}, spec=spec,
            status=status)}}
        if status_subresource and kind not in ("Backup", "Restore"):
            version["subresources"] = {"status": {}}
        if kind == "BackupStorageLocation":
            version["additionalPrinterColumns"] = [
                {"name": name, "type": column_type, "jsonPath": path} for name, column_type, path in (
                    ("Phase", "string", ".status.phase"), ("Last Validated", "date", ".status.lastValidationTime"),
                    ("Age", "date", ".metadata.creationTimestamp"), ("Default", "boolean", ".spec.default"))]
        manifests.append({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{names['plural']}.velero.io", "labels": {"component": "velero"}},
            "spec": {"group": "velero.io", "names": {**names, **({"shortNames": short_names} if short_names else {})},
                     "scope": "Namespaced", "versions": [version]}})
    return manifests

# ════════════════════════════════════════════════════════════════════════════════════════════════════
# The waterline. Above: arithmetic on values. Below: files, sockets, threads and clocks.
# ════════════════════════════════════════════════════════════════════════════════════════════════════

# ====================================================================================================
# 10. Connections — TLS, deadlines, pools, sessions and their renewal
# ====================================================================================================

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CONNECT_TIMEOUT = 10.0                       # seconds
READ_TIMEOUT = 20.0                          # seconds that a call to the API may take in all, a page of a list thrice
FIFO_TIMEOUT = 0.5                           # seconds until somebody writes to it
FIFO_PATIENCE = 30.0                         # seconds until its writer has ended, as in <(command)
PROBE_TIMEOUT = 5.0                          # seconds, for a second look at a certificate that was not trusted
TOKEN_LIFE = 50.0                            # seconds; client-go transport/token_source.go: a minute less 10 s
FILES_LIFE = 300.0                           # seconds; client-go reads certificate files again every 5 minutes
EXEC_LEEWAY = 30.0                           # seconds before its end that an exec plugin's answer is renewed
ERROR_LIMIT = 64 * 1024                      # bytes of an error's body that are looked at
REFUSAL_TIME = 2.0                           # seconds that the text of a refusal is read; it may have no end
IDLE_DOOR = 10.0                             # seconds without an answer, after which no old connection is relied upon
TOO_LARGE = "TooLarge"                       # reason of an error; asking for less may help
KUBECONFIG_LIMIT = 8 << 20                   # bytes
LARGEST_YAML = 100_000                       # nodes with aliases followed; 3,000 clusters have as many
POOL_SIZE = 8                                # workers and feeders of a controller, each with a connection of its own
USER_AGENT = f"velero_requests/{__version__} ({sys.platform})"


def utc_now() -> datetime:
    """The clock of the world; tests bring their own."""
    return datetime.now(timezone.utc)


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a FIFO may have nobody who writes to it


def _read_fifo(file: Any, limit: int) -> bytes:
    """What a FIFO brings until its writer ends; OSError when nobody writes to it, or does not come to an end."""
    content, deadline = b"", time.monotonic() + FIFO_PATIENCE
    while limit < 0 or len(content) < limit:
        readable = select.select([file], [], [], FIFO_TIMEOUT)[0]
        piece = file.raw.read(select.PIPE_BUF)  # None: its writer has not gone on yet; empty: there is no writer
        if readable and piece == b"":
            break
        if piece == b"":
            raise OSError(errno.ETIMEDOUT, "it is a FIFO that nobody writes to")
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"it is a FIFO whose writer does not end within {FIFO_PATIENCE:.0f} s")
        content += piece or b""
    return content


def read_file(path: str, purpose: str, limit: int = -1) -> bytes:
    """The content of a file, at most `limit` bytes and one more; ConfigError that names the file and what it is for."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            read = functools.partial(_read_fifo, file) if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode) else file.read
            return read(limit if limit < 0 else limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {purpose} {path}: {getattr(error, 'strerror', None) or error}") from error


BUNDLE_LIMIT, MOST_CERTIFICATES = 1 << 20, 1000  # bytes, and how many; a system trusts 150 in 220 KB


def _trust_each(context: ssl.SSLContext, pem: str) -> int:
    """Trust the certificates of a bundle -> how many; one that cannot be read spoils no other, as in Go."""
    begin, end, count = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----", 0
    for block in pem.split(begin, MOST_CERTIFICATES)[1:]:
        body, ended, _ = block.partition(end)
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=begin + (body if ended else "") + end)
            count += 1
    return count


def tls_context(ca_cert: bytes = b"", *, insecure: bool = False, system: bool = True,
                source: str = "the certificate authority", hosts: Sequence[Optional[str]] = ()) -> ssl.SSLContext:
    """A TLS client context for a host and its proxy; ConfigError naming `source` when ca_cert is unusable.

    ca_cert: PEM that is trusted; with `system` in addition to the system's authorities, without it instead of them.
    Python 3.13 sets VERIFY_X509_STRICT, which private authorities of old clusters fail; for a pinned one it is cleared.
    A name counts only as a subject alternative name, as in Go.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if urllib3.__version__.startswith("1.") and any(_ip_address(host or "") is not None for host in hosts):
        context.check_hostname = False  # it names no IP address to OpenSSL, and checks every name itself then
    with contextlib.suppress(AttributeError):  # an OpenSSL too old to be asked
        context.hostname_checks_common_name = False
    if system:
        context.load_default_certs()
    if ca_cert:
        if len(ca_cert) > BUNDLE_LIMIT:
            raise ConfigError(f"{source} is larger than {BUNDLE_LIMIT >> 20} MiB", reason="InvalidStorageLocation")
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        if not _trust_each(context, ca_cert.decode("ascii", "ignore")):  # comments may be in any language
            raise ConfigError(f"{source} holds no PEM certificate", reason="InvalidStorageLocation")
    return context


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """A path to content that must not stay on disk: anonymous memory on Linux, else a 0600 file removed at once."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("velero_requests")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        yield file.name


def load_client_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes, source: str) -> None:
    """Show this certificate to servers that ask; ConfigError when the key is another's, or locked."""
    with _as_path(certificate + b"\n" + key) as path:
        try:
            context.load_cert_chain(path, password="")  # an encrypted key fails instead of prompting on the terminal
        except (ssl.SSLError, OSError):
            raise ConfigError(f"the client certificate and key of {source} are not a matching pair of PEM, or the key "
                              "is encrypted") from None


# Flags of OpenSSL's x509_vfy.h that the ssl module of Python 3.8 does not name.
X509_PARTIAL_CHAIN, X509_NO_CHECK_TIME = 0x80000, 0x200000


def _peer_certificate(url: str, server_name: str, proxy: str, until: float, context: ssl.SSLContext, binary: bool
                      ) -> Any:
    parts, gate = urlsplit(url), urlsplit(proxy or url)
    connection = http.client.HTTPConnection(gate.hostname or "", gate.port or (80 if proxy else 443),
                                            timeout=max(0.01, until - time.monotonic()))
    if proxy:
        login = f"{unquote(gate.username)}:{unquote(gate.password or '')}" if gate.username else None
        connection.set_tunnel(parts.hostname or "", parts.port or 443, urllib3.make_headers(proxy_basic_auth=login))
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.settimeout(max(0.01, until - time.monotonic()))
        with context.wrap_socket(connection.sock, server_hostname=server_name or parts.hostname) as secured:
            return secured.getpeercert(binary_form=binary)


def explain_certificate(url: str, server_name: str, proxy: str) -> str:
    """Whose certificate a server shows that was not trusted; empty when it cannot be had, as through an https proxy.

    Python decodes only what it has verified, so a second handshake trusts exactly the certificate of the first.
    """
    look = functools.partial(_peer_certificate, url, server_name, proxy, time.monotonic() + PROBE_TIMEOUT)
    exact = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    exact.check_hostname = False
    exact.verify_flags = ssl.VerifyFlags(X509_PARTIAL_CHAIN | X509_NO_CHECK_TIME)
    try:
        exact.load_verify_locations(cadata=look(tls_context(insecure=True), True))
        shown = look(exact, False)
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    names = ", ".join(value for _, value in shown.get("subjectAltName", ())) or "no name at all"
    subject, issuer = (", ".join(f"{key}={value}" for part in shown.get(field, ()) for key, value in part)
                       for field in ("subject", "issuer"))
    return one_line(f"(it is for {names}; subject {subject or 'nobody'}; issuer {issuer or 'nobody'}; valid until "
                    f"{shown.get('notAfter')})", 1000)


def _tls_text(cause: BaseException) -> str:
    reason = getattr(cause, "reason", None) or str(cause)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "what answers there does not speak TLS; is it an http port?"
    return one_line(redact(str(reason).replace("_", " ").lower()))


def unreachable(error: Exception, where: str, url: str, server_name: str = "", hint: str = "", proxy: str = ""
                ) -> Unreachable:
    """What urllib3 and ssl raise -> one sentence: name resolution, refused, timeout, proxy, or why TLS failed.

    url: where to look at the certificate; empty where the sentence may hold nothing that the peer has sent.
    """
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if isinstance(error, urllib3.exceptions.ProxyError):
        text = getattr(cause, "strerror", None) or _tls_text(cause)
        return Unreachable(f"cannot reach {where} through its proxy: {text}")
    if isinstance(cause, ssl.SSLCertVerificationError):
        shown = explain_certificate(url, server_name, proxy) if url else ""
        problem = f"{cause.verify_message} {shown}".rstrip()
        return Unreachable(f"{where} has a certificate that is not trusted: {problem}", hints=[hint] if hint else [])
    if isinstance(error, urllib3.exceptions.SSLError) or isinstance(cause, ssl.SSLError):
        return Unreachable(f"no TLS with {where}: {_tls_text(cause)}")
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # which urllib3 counts among the timeouts
    if isinstance(cause, socket.timeout) or isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
        return Unreachable(f"{where} does not answer in time")
    text = getattr(cause, "strerror", None) or (one_line(redact(str(cause))) if url else "it does not answer in HTTP")
    return Unreachable(f"cannot reach {where}: {text}")


_thread = threading.local()                  # its `deadline`: when what the thread asks of the network must be over


def time_left() -> float:
    """Seconds until the deadline of this thread; infinite without one."""
    return getattr(_thread, "deadline", math.inf) - time.monotonic()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let everything that this thread asks of the network be over in so many seconds, however little comes at a time.

    Connecting, TLS, a proxy's CONNECT, sending, headers and body count together. What is read of a response after the
    context has no deadline, but the idle limit that it was asked for with.
    """
    before = getattr(_thread, "deadline", math.inf)
    _thread.deadline = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _thread.deadline = before


@contextlib.contextmanager
def off_the_clock() -> Iterator[None]:
    """Do not count what happens here against the deadline, such as a person who logs in."""
    started = time.monotonic()
    try:
        yield
    finally:
        _thread.deadline = getattr(_thread, "deadline", math.inf) + time.monotonic() - started


def _limit(sock: Any, idle: Optional[float]) -> None:
    """Give the next call of a socket its idle limit, or less when the deadline comes before that."""
    left = min(time_left(), math.inf if idle is None else idle)
    if left <= 0:
        raise socket.timeout("timed out")
    wanted = None if left == math.inf else left
    if sock.gettimeout() != wanted:          # which is no system call, but the next line is one
        sock.settimeout(wanted)


class _TimedReader(io.RawIOBase):
    """The bytes of a socket; each reading waits no longer than `_limit` says."""

    def __init__(self, sock: Any) -> None:
        self._socket, self._idle = sock, sock.gettimeout()
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> Optional[int]:
        _limit(self._socket, self._idle)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    """A response, to a request or to a proxy's CONNECT, that is read by a _TimedReader."""

    def __init__(self, sock: Any, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock), 65536)


class _TimedTls(ssl.SSLSocket):
    """TLS with a proxy; a second TLS within it reads record by record, and each could take its time."""

    def recv(self, *args: Any) -> bytes:
        _limit(self, self.gettimeout())
        return super().recv(*args)


class _Timed:
    """What makes a connection of urllib3 keep the deadline."""

    response_class = _TimedResponse

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()  # type: ignore[misc]
        _limit(sock, sock.gettimeout())  # for the handshake of TLS, which has all of a socket's timeout
        return sock


class _TimedHttp(_Timed, urllib3.connection.HTTPConnection):
    pass


class _TimedHttps(_Timed, urllib3.connection.HTTPSConnection):
    pass


def _socket_options() -> List[Tuple[int, int, int]]:
    """Keepalive after 30 s, so that a peer that vanished is noticed; named options where the platform has them."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class RedactingFilter(logging.Filter):
    """Lets a line pass without signatures and tokens."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact a line with its arguments filled in."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_REDACTING = RedactingFilter()


def redact_transport_logs() -> None:
    """Let urllib3's own loggers, which at DEBUG tell every URL that is asked for, tell none that is a secret."""
    for name in ("connectionpool", "connection", "poolmanager", "response", "util.retry"):
        logging.getLogger(f"urllib3.{name}").addFilter(_REDACTING)  # the same one again has no effect


class Door(NamedTuple):
    """A pool of connections to one host; `prefix` goes in front of every path."""

    pool: urllib3.HTTPConnectionPool
    prefix: str = ""


def open_door(url: str, context: Optional[ssl.SSLContext], *, proxy: str = "", server_name: str = "", size: int = 1
              ) -> Door:
    """A door to the host of an http or https URL; nothing is sent yet. context: for https, and for an https proxy.

    Through a proxy https is tunnelled; plain http is asked for with the whole URL, as proxies want it.
    """
    redact_transport_logs()
    parts = urlsplit(url)
    options: Dict[str, Any] = {"maxsize": size, "socket_options": _socket_options(),
                               "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)}
    secure = {} if context is None else {"ssl_context": context, "cert_reqs": context.verify_mode}
    if server_name:
        secure.update(server_hostname=server_name)
    if not proxy:
        kind = urllib3.HTTPConnectionPool if parts.scheme == "http" else urllib3.HTTPSConnectionPool
        pool = kind(parts.hostname, parts.port, **options, **({} if parts.scheme == "http" else secure))
        pool.ConnectionCls = _TimedHttp if parts.scheme == "http" else _TimedHttps
        return Door(pool)
    gate = urlsplit(proxy)
    if gate.scheme == "https" and context is not None:
        context.sslsocket_class = _TimedTls
    password = f"{unquote(gate.username)}:{unquote(gate.password or '')}" if gate.username else None
    manager = urllib3.ProxyManager(
        f"{gate.scheme}://{gate.netloc.rpartition('@')[2]}",
        proxy_ssl_context=context if gate.scheme == "https" else None,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=password) if password else None,
        **options, **(secure if parts.scheme == "https" else {}))
    pool = manager.connection_from_host(parts.hostname, parts.port, parts.scheme)
    pool.ConnectionCls = _TimedHttp if parts.scheme == "http" else _TimedHttps
    return Door(pool, "" if parts.scheme == "https" else f"http://{parts.netloc}")


Response = urllib3.response.BaseHTTPResponse if hasattr(urllib3.response, "BaseHTTPResponse") else urllib3.HTTPResponse
BREAKS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)  # what ends the reading of a body


@hides("body", "headers")
class Reply(NamedTuple):
    """What a small exchange brought."""

    status: int
    body: bytes
    headers: Mapping[str, str]


def send_request(door: Door, method: str, target: str, headers: Mapping[str, str], body: Optional[bytes] = None, *,
            idle: float) -> Response:
    """Send one request -> the response, its body unread; what urllib3 raises is for the caller to word.

    idle: seconds without a byte. Until the headers are there, all of it together has no more than that.
    """
    with within(idle):
        return door.pool.urlopen(
            method, door.prefix + target, body=body, headers=headers, retries=False, redirect=False,
            preload_content=False, assert_same_host=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, idle), read=idle))


def read_more(response: Response, size: int) -> bytes:
    """What has come of a body, at most `size` bytes; the first of them is waited for, there is none at the end.

    `read` would wait for all, and lose those that came before a break. urllib3 before 2.1 has no `read1` of its own.
    """
    if hasattr(response, "read1"):
        return response.read1(size, decode_content=False)
    return response._fp.read1(size)


def read_refusal(response: Response) -> bytes:
    """The text of a refusal as far as it comes soon; the connection is not used again."""
    text = bytearray()
    with within(REFUSAL_TIME), contextlib.closing(response), contextlib.suppress(*BREAKS):
        while len(text) < ERROR_LIMIT:
            piece = read_more(response, ERROR_LIMIT - len(text))
            if not piece:
                break
            text += piece
    return bytes(text)


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """A body that came compressed though nobody asked for that; ValueError unless by gzip, once, and in bounds."""
    if encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "x-gzip"):
        raise ValueError("it is encoded in a way that nobody asked for")
    machine = zlib.decompressobj(31)
    try:
        content = machine.decompress(body, limit + 1)
    except zlib.error:
        raise ValueError("it is no gzip") from None
    if not machine.eof or len(content) > limit:
        raise ValueError("it is cut short or too large")
    return content


def read_answer(response: Response, limit: int) -> bytes:
    """A whole body, of which urllib3 decodes nothing; TooMuch when it has more than `limit` bytes."""
    encoding = response.headers.pop("Content-Encoding", "")
    body = response.read(limit + 1, decode_content=False)
    if len(body) > limit:
        response.close()
        raise TooMuch(f"has more than {limit >> 20} MiB")
    response.release_conn()
    return inflated(body, encoding, limit)


class GoLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with the scalars of Go's parser: no dates, no base 60, `y` and `n` are bools, `1e3` is a number."""

    yaml_implicit_resolvers: Dict[str, Any] = {}


def _number(text: str) -> Union[int, float]:
    """A number as Go reads it; what only Go can read is 0, for nobody asks more than that it is a number."""
    digits = text.replace("_", "").lower()[:400]
    for read in (lambda: int(digits, 0), lambda: int(digits, 8), lambda: float(digits.replace(".inf", "inf"))):
        with contextlib.suppress(ValueError):
            return read()
    return 0


def _prepare_loader() -> None:
    for tag, pattern, first in (
            ("bool", "|".join(f"{word.lower()}|{word}|{word.upper()}" for word in ("Yes", "No", "True", "False", "On",
                                                                                   "Off", "Y", "N")), "yYnNtTfFoO"),
            ("int", r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
            ("float", r"[-+]?(\.[0-9_]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)"
             r"|\.(nan|NaN|NAN)", "-+.0123456789"),
            ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
            ("merge", r"<<", "<")):
        GoLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"(?:{pattern})$"), list(first))
    for tag in ("int", "float"):
        GoLoader.add_constructor(f"tag:yaml.org,2002:{tag}", lambda loader, node: _number(str(node.value)))
    GoLoader.add_constructor("tag:yaml.org,2002:bool",
                             lambda loader, node: str(node.value).lower() in ("y", "yes", "true", "on"))
    GoLoader.add_constructor("tag:yaml.org,2002:binary",
                             lambda loader, node: (decode_base64(str(node.value)) or b"").decode("utf-8", "replace"))
    for tag in ("tag:yaml.org,2002:merge", None):  # `<<` as a value, and tags that nobody knows
        GoLoader.add_constructor(tag, lambda loader, node: node.value if isinstance(node.value, str) else None)


_prepare_loader()


def _refuse_bombs(text: str) -> None:
    """Raise YAMLError for a first document that is too deep, for libyaml would crash, or that its aliases blow up.

    The size of every anchor is counted with its aliases followed, without following them.
    """
    sizes: Dict[str, int] = {}
    open_nodes: List[Tuple[Any, int]] = []  # anchor, and nodes before the parent went on
    count = 0
    for event in yaml.parse(text, Loader=GoLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
        elif isinstance(event, yaml.AliasEvent):
            count += sizes.get(event.anchor, 0)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = count - before + 1
        elif isinstance(event, yaml.ScalarEvent):
            sizes[event.anchor] = 1
        count += isinstance(event, yaml.NodeEvent)
        if len(open_nodes) > DEEPEST or count > LARGEST_YAML:
            raise yaml.composer.ComposerError(None, None, "too deep or too large", event.start_mark)
        if isinstance(event, yaml.DocumentEndEvent):
            return


def parse_yaml(content: bytes, what: str, limit: int = KUBECONFIG_LIMIT) -> Any:
    """The first document of YAML or JSON, read as Go reads it; an error names the line and never quotes it."""
    if len(content) > limit:
        raise ConfigError(f"{what} is larger than {limit >> 20} MiB")
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except ValueError:
        raise ConfigError(f"{what} is not UTF-8 text") from None
    with contextlib.suppress(ValueError):
        if text.lstrip().startswith("{"):  # JSON may be indented by tabs, YAML may not
            return parse_json(text.encode(), LARGEST_YAML)
    text = re.sub(r"(?m)^([ ]*(?:- )*[A-Za-z-]+:)\t+", r"\1 ", text)  # Go takes a tab after the colon
    try:
        _refuse_bombs(text)
        loader = GoLoader(text)
        try:
            return loader.get_data() if loader.check_data() else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{what} is not YAML" + (f": line {mark.line + 1} cannot be read" if mark else "")) from None


def read_pem(source: Union[bytes, str], purpose: str) -> bytes:
    """PEM that stands in the kubeconfig, or in a file that it names, as it is now."""
    return source if isinstance(source, bytes) else read_file(source, purpose) if source else b""


def _exec_info(cluster: Cluster, plugin: ExecPlugin, interactive: bool) -> str:
    """KUBERNETES_EXEC_INFO: what an exec plugin is told (client-go pkg/apis/clientauthentication)."""
    spec: Document = {"interactive": interactive}
    if plugin.provide_cluster_info:
        authority = base64.b64encode(read_pem(cluster.authority, "certificate authority")).decode()
        told = {"server": cluster.server, "tls-server-name": cluster.server_name,
                "insecure-skip-tls-verify": cluster.insecure, "proxy-url": cluster.proxy_url,
                "certificate-authority-data": authority,
                "disable-compression": cluster.disable_compression, "config": cluster.exec_config}
        spec["cluster"] = {name: value for name, value in told.items() if value or name == "config"}
    try:
        return json.dumps({"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec})
    except (ValueError, TypeError, RecursionError):
        raise ConfigError("the kubeconfig's extension for exec plugins cannot be written as JSON") from None


def run_exec_plugin(cluster: Cluster, plugin: ExecPlugin) -> Identity:
    """Run the kubeconfig's credential plugin -> who we are. Every failure is a ConfigError, never an anonymous call.

    Its stderr is ours; its stdin too, when it may ask and there is a terminal. What it printed never shows in an error.
    A name without a slash is looked for on our own PATH, and never in the current folder (Go's os/exec).
    """
    hints = [one_line(plugin.install_hint, 1000)] if plugin.install_hint else []
    folders = filter(os.path.isabs, os.environ.get("PATH", "").split(os.pathsep))
    program = shutil.which(plugin.command, path=os.pathsep.join(folders))
    if not program:
        raise ConfigError(f"exec plugin {plugin.command} of the kubeconfig is not installed", hints=hints)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if plugin.interactive_mode == "Always" and not terminal:
        raise ConfigError(f"exec plugin {plugin.command} must ask on a terminal, and there is none")
    interactive = terminal and plugin.interactive_mode != "Never"
    environment = {**os.environ, **dict(plugin.environment),
                   "KUBERNETES_EXEC_INFO": _exec_info(cluster, plugin, interactive)}
    try:
        done = subprocess.run([program, *plugin.arguments], env=environment, stdout=subprocess.PIPE, check=False,
                              stdin=None if interactive else subprocess.DEVNULL)
    except (OSError, ValueError) as error:
        raise ConfigError(f"exec plugin {plugin.command} cannot be run: {getattr(error, 'strerror', None) or error}",
                          hints=hints) from error
    if done.returncode:
        raise ConfigError(f"exec plugin {plugin.command} failed with exit code {done.returncode}", hints=hints)
    return identity_from_exec(parse_yaml(done.stdout, f"the answer of exec plugin {plugin.command}"), plugin)


class Session:
    """Connections to one API server, and as whom they are made; renewed by one caller while the others wait."""

    def __init__(self, cluster: Cluster) -> None:
        """Open the pool, which sends nothing; ConfigError for unusable certificates."""
        self.cluster = cluster
        self.path = urlsplit(cluster.server).path.rstrip("/")  # for API servers behind a path
        self.proxy = cluster.proxy_url or proxy_for(cluster.server, os.environ)
        self.warned = SaidOnce(100)          # what the API server warned of and was shown
        self.lock = threading.RLock()
        self.heard = time.monotonic()        # when the last answer came
        self.until = -math.inf               # time.monotonic() of the next renewal
        self.identity = Identity(cluster.token)
        self.pem = self._read_pem(Identity())
        self.door = self._open(self.pem)

    def _read_pem(self, identity: Identity) -> Tuple[bytes, bytes, bytes]:
        """The authority, and our certificate with its key: an exec plugin's, else the kubeconfig's.

        Every file is opened, also where it is not needed: kubectl refuses a kubeconfig that names an absent one.
        """
        return (read_pem(self.cluster.authority, "certificate authority"),
                identity.certificate or read_pem(self.cluster.certificate, "client certificate"),
                identity.key or read_pem(self.cluster.key, "client key"))

    def _open(self, pem: Tuple[bytes, bytes, bytes]) -> Door:
        cluster, context, (authority, certificate, key) = self.cluster, None, pem
        if "https:" in (cluster.server[:6], self.proxy[:6]):
            source = cluster.authority if isinstance(cluster.authority, str) else ""
            context = tls_context(authority, insecure=cluster.insecure, system=not authority,
                                  source=source or "certificate-authority-data of the kubeconfig",
                                  hosts=(cluster.server_name or urlsplit(cluster.server).hostname,
                                         urlsplit(self.proxy).hostname))
            if certificate:
                load_client_certificate(context, certificate, key, "the kubeconfig or its exec plugin")
        return open_door(cluster.server, context, proxy=self.proxy, server_name=cluster.server_name, size=POOL_SIZE)

    def _identify(self) -> None:
        """Take the identity of the exec plugin or the token file; without either it stays the kubeconfig's own."""
        if self.cluster.exec_plugin:
            self.identity = run_exec_plugin(self.cluster, self.cluster.exec_plugin)
        elif self.cluster.token_file:
            path = self.cluster.token_file
            token = read_file(path, "token").decode("utf-8", "replace").strip()
            if not token:
                raise ConfigError(f"the token file {path} is empty")
            self.identity = Identity(header_value(token, f"the token in {path}"))

    def _reopen(self, pem: Tuple[bytes, bytes, bytes]) -> None:
        """Go on with new connections; those in use are closed when they are given back."""
        door = self._open(pem)
        self.close()
        self.pem, self.door, self.heard = pem, door, time.monotonic()

    def _read_again(self) -> None:
        """Read certificate files again, as kubelet, kubeadm and cert-manager replace them in place.

        When something changed there are new connections, for a connection goes on as whom it was opened for.
        """
        pem = self._read_pem(self.identity)
        if pem != self.pem:
            self._reopen(pem)

    def _renew(self) -> None:
        """Find out anew who we are. What cannot be read leaves the old in use, but an exec plugin must not fail.

        `until` is set last: while a plugin fails, every call fails, and none goes out as nobody.
        """
        cluster = self.cluster
        for step, known in ((self._identify, self.identity.token), (self._read_again, True)):
            try:
                step()
            except ConfigError as error:
                if cluster.exec_plugin or not known:
                    raise
                log.warning("%s; what was read before stays in use", error)
        life = TOKEN_LIFE if cluster.token_file else FILES_LIFE
        if cluster.exec_plugin:
            expires = self.identity.expires
            life = (expires - utc_now()).total_seconds() - EXEC_LEEWAY if expires else math.inf
        self.until = time.monotonic() + life

    def renew(self) -> Tuple[Identity, Door]:
        """Who we are now, and connections that are fit for use; one caller renews, the others wait for it."""
        with self.lock:
            if time.monotonic() >= self.until:
                self._renew()
            if time.monotonic() - self.heard > IDLE_DOOR:  # a line that died meanwhile says nothing, for minutes
                self._reopen(self.pem)
            return self.identity, self.door

    def distrust(self, identity: Identity) -> bool:
        """The API no longer accepts an identity -> whether another one can be had, which the next call then uses."""
        with self.lock:
            if self.identity is identity:
                self.until = -math.inf
        cluster = self.cluster
        return bool(cluster.token_file or cluster.exec_plugin or isinstance(cluster.certificate, str))

    def close(self) -> None:
        """Close the connections that nobody uses at the moment."""
        self.door.pool.close()


def in_cluster() -> Optional[Cluster]:
    """The cluster of the pod this runs in, by the environment and files every pod gets; None outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port or not os.path.exists(f"{SERVICE_ACCOUNT}/token"):
        return None
    return Cluster(server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
                   authority=f"{SERVICE_ACCOUNT}/ca.crt", token_file=f"{SERVICE_ACCOUNT}/token")


def absolute(path: str) -> str:
    """A path from the root on; Error when there is no current folder at which a relative one could start."""
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise Error(f"the current folder cannot be used: {error.strerror}", hints=[
            "it may have been deleted; change into another one"]) from error


def read_kubeconfigs(kubeconfig: str) -> List[Tuple[str, Any]]:
    """The kubeconfig given, else those of KUBECONFIG that exist, else ~/.kube/config -> absolute paths and documents.

    A KUBECONFIG that is set, even to nothing but separators, keeps ~/.kube/config out.
    """
    listed = os.environ.get("KUBECONFIG", "")
    default = os.path.join(os.environ.get("HOME", ""), ".kube", "config")
    names = [kubeconfig] if kubeconfig else listed.split(os.pathsep) if listed else [default]
    files = []
    for path in dict.fromkeys(absolute(name) for name in names if name):
        try:
            files.append((path, parse_yaml(read_file(path, "kubeconfig", KUBECONFIG_LIMIT), f"kubeconfig {path}")))
        except ConfigError as error:
            if kubeconfig or not isinstance(error.__cause__, FileNotFoundError):
                raise
    if listed and not kubeconfig and not files:
        log.warning("none of the files in KUBECONFIG exists: %s", one_line(listed))
    return files


def load_cluster(kubeconfig: str = "", context: str = "") -> Cluster:
    """The cluster to talk to: of the kubeconfigs, else the pod's own; ConfigError names the file and what is wrong."""
    files = read_kubeconfigs(kubeconfig)
    cluster = cluster_from_kubeconfigs(files, context) or in_cluster()
    if cluster is None and files:
        paths = ", ".join(path for path, _ in files)
        raise ConfigError(f"kubeconfig {paths} has no current-context", hints=["choose one with --context"])
    if cluster is None:
        raise ConfigError("no kubeconfig found", hints=[
            "name one with --kubeconfig or KUBECONFIG, or put it at ~/.kube/config; in a pod its own account is used"])
    return cluster


def read_velero_config() -> Document:
    """~/.config/velero/config.json of the velero CLI (namespace, cacert, colorized); empty when it is not there."""
    path = os.path.join(os.path.expanduser("~"), ".config", "velero", "config.json")
    try:
        config = parse_json(read_file(path, "velero's configuration", ERROR_LIMIT)) if os.path.exists(path) else {}
    except (ConfigError, ValueError) as error:
        log.warning("ignoring %s: %s", path, error)
        return {}
    return config if isinstance(config, dict) else {}

# ====================================================================================================
# 11. Cluster — one exchange, thin verbs over it, one event stream
#
#     urllib3 does transport and this section policy: its own retries and redirects are switched off on every call. What
#     may be sent twice is retried here, a POST never.
# ====================================================================================================

def unseen(_what: str, _seconds: float) -> ContextManager[None]:
    """How a library waits: nobody is told."""
    return contextlib.nullcontext()


RETRY_STATUS = (429, 500, 502, 503, 504)
RETRIES = 3
RETRY_AFTER_CAP = 10.0                       # seconds
ANSWER_LIMIT = 48 << 20                      # bytes; a page of PAGE_SIZE objects of etcd's 1.5 MB fits in
ANSWER_ELEMENTS = 10_000_000                 # of such a page
SLOW_LIST = 3                                # times the patience for a page that keeps coming, over a slow line
PAGE_LIMIT = 2 << 20                         # bytes of a page of a controller's list, before it asks for fewer objects
WATCH_SECONDS = (31, 34)                     # a watch ends by itself, so that silence shows; two kinds: < 4 a minute
WATCH_SILENCE = 40.0                         # seconds without a byte after which a watch is dead


def api_error(status: int, body: bytes, method: str, path: str, watching: bool = False) -> ApiError:
    """A refusal of the API in its own words, when it found some, and what grants the missing right."""
    try:
        document = parse_json(body)
    except ValueError:
        document = None
    message = _text(document, "message") or one_line(body.decode("utf-8", "replace")) or "no text"
    if status == 404 and message.startswith("404 page not found"):
        message = f"the cluster does not serve {path.rstrip('/').rpartition('/')[2]}"
    hints = []
    what, rule = rule_for(method, path, watching)
    if status == 401:
        hints = ["the credentials of the kubeconfig are not accepted; log in again"]
    if status == 403 and what:
        hints = [f"you may not {what}; a Role there grants it with: {rule}"]
    if status == 404 and message.startswith(("the cluster does not serve", "the server could not find")):
        hints = ["are Velero's CRDs installed? `velero_requests.py manifests | kubectl apply -f -`"]
    return ApiError(f"{one_line(message, MESSAGE_LIMIT)} ({method} {path}: {status})", status=status,
                    api_reason=_text(document, "reason"), hints=hints)


def retry_wait(method: str, attempt: int, status: int, retry_after: Optional[float]) -> Optional[float]:
    """Seconds until a refused call may be sent again, None when it may not.

    429 means that nothing was done. After 5xx a POST may have been carried out, so it is not sent again; every other
    call of ours comes to the same when it is repeated, for patches and deletes carry the version they were decided on.
    """
    if attempt >= RETRIES or status not in RETRY_STATUS or (method == "POST" and status != 429):
        return None
    return min(RETRY_AFTER_CAP, backoff(attempt, 0.1, 2.0) if retry_after is None else retry_after)


def object_path(key: Key, subresource: str = "") -> str:
    """The path of one object, or of its subresource; ApiError with status 404 for a name that no object can have.

    Names come from documents that anybody may have written. An empty one would lead to all objects of the kind, and a
    `/` in it to another path, for API servers decode %2F.
    """
    if not is_object_name(key.name):
        raise ApiError(f'{key.resource.plural} "{one_line(key.name, 64)}" not found: no object can have this name',
                       status=404, api_reason="NotFound")
    return api_path(key.resource, key.namespace, key.name, subresource)


def watch_events(response: Response) -> Iterator[Tuple[str, Document]]:
    """The events of a watch as (type, object) until it ends, by itself or by silence; ERROR is raised as ApiError."""
    try:
        for line in lines(iter(lambda: read_more(response, 65536), b"")):
            event = parse_json(line)
            document = _at(event, "object") or {}
            if _text(event, "type") == "ERROR":
                code = _at(document, "code")
                raise ApiError(f"the watch ended: {one_line(_text(document, 'message'))}",
                               status=code if isinstance(code, int) else 500, api_reason=_text(document, "reason"))
            yield _text(event, "type"), document
    except (urllib3.exceptions.ReadTimeoutError, socket.timeout):
        return
    except (*BREAKS, ValueError) as error:
        raise Unreachable(f"the watch broke off: {one_line(error)}") from error
    finally:
        response.close()


def interrupt(response: Response) -> None:
    """End a response from another thread, a watch or a transfer: its reader sees the stream end."""
    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    while sock is not None and not isinstance(sock, socket.socket):  # TLS within TLS with a proxy
        sock = getattr(sock, "socket", None)
    with contextlib.suppress(OSError):
        if sock is not None:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


HASTE = 5.0                                  # seconds


class Api(NamedTuple):
    """One Kubernetes API server, as the verbs see it."""

    session: Session
    patience: float = READ_TIMEOUT           # seconds that a call may take, tries again and all
    waiting: Callable[[str, float], ContextManager[None]] = unseen  # shows for what it waits, and how many seconds

    def _tell_warnings(self, headers: Any) -> None:
        """Show what the API server warns of (`Warning: 299 - "text"`), each text once."""
        for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', headers.get("Warning", "")[:ERROR_LIMIT]):
            if self.session.warned.is_news(text):
                log.warning("warning of the cluster: %s", one_line(redact(text)))

    def _attempt(self, method: str, target: str, body: Optional[bytes], content_type: str, idle: float
                 ) -> Tuple[Response, Identity]:
        """One exchange; a connection that breaks is Unreachable."""
        session, cluster = self.session, self.session.cluster
        with off_the_clock():
            identity, door = session.renew()
        # Impersonate-Group may come several times, which a dict cannot hold.
        headers = urllib3.response.HTTPHeaderDict({"Accept": "application/json", "User-Agent": USER_AGENT})
        if identity.token:
            headers["Authorization"] = f"Bearer {identity.token}"
        elif cluster.username:
            secret = f"{cluster.username}:{cluster.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        for name, value in cluster.impersonate:
            headers.add(name, value)
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            response = send_request(door, method, session.path + target, headers, body, idle=idle)
        except urllib3.exceptions.HTTPError as error:
            if isinstance(error, urllib3.exceptions.TimeoutError):
                session.heard = -math.inf
            raise unreachable(error, f"the cluster at {redact(cluster.server)}", cluster.server, cluster.server_name,
                              "does certificate-authority in the kubeconfig belong to this cluster?",
                              session.proxy) from error
        session.heard = time.monotonic()
        return response, identity

    def send(self, method: str, path: str, *, query: Optional[Dict[str, str]] = None, body: Optional[Document] = None,
             content_type: str = "application/json", idle: float = 0) -> Response:
        """One call to the API -> a response with status below 300, its body unread; the one place that tries again.

        The caller's deadline counts for all tries together, and nobody waits for a try that would come after it. idle:
        seconds without a byte, for a body without deadline. Raises ApiError with the API's own message, Unreachable
        when there is no connection.
        """
        target = f"{path}?{urlencode(query)}" if query else path
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        attempt, trusted = 0, True
        while True:
            attempt += 1
            try:
                response, identity = self._attempt(method, target, content, content_type, idle or self.patience)
            except Unreachable as error:
                if isinstance(error.__cause__, urllib3.exceptions.ClosedPoolError):
                    continue  # another thread has just replaced the door; nothing was sent
                if method != "POST" and attempt == 1 and isinstance(error.__cause__, urllib3.exceptions.ProtocolError):
                    log.info("%s; trying again", error)  # an idle connection that the other side had closed
                    continue
                raise
            self._tell_warnings(response.headers)
            if response.status < 300:
                return response
            refusal = read_refusal(response)
            if response.status == 401 and trusted and self.session.distrust(identity):
                log.info("the cluster does not accept who we are; trying again with a new identity")
                trusted = False
                continue
            wait = retry_wait(method, attempt, response.status,
                              retry_after_seconds(response.headers.get("Retry-After", ""), utc_now()))
            if wait is None or wait >= time_left():
                raise api_error(response.status, refusal, method, path, "watch" in (query or {}))
            log.info("the cluster answered %s %s with %d; trying again in %s", method, path, response.status,
                     format_duration(wait))
            time.sleep(wait)

    def call(self, method: str, path: str, limit: int = ANSWER_LIMIT, times: int = 1, **options: Any) -> Document:
        """`send`, and the JSON object that came back; Unreachable when it is none, broke off or is larger than `limit`.

        times: how often the Api's patience may pass before all of it is there.
        """
        with within(times * self.patience):
            response = self.send(method, path, **options)
            try:
                document = parse_json(read_answer(response, limit), ANSWER_ELEMENTS)
            except TooMuch as error:
                response.close()
                raise Unreachable(f"the cluster's answer to {method} {path} {error}", reason=TOO_LARGE) from None
            except (urllib3.exceptions.HTTPError, ValueError) as error:
                response.close()
                raise Unreachable(f"the cluster's answer to {method} {path} broke off or is no JSON") from error
        if not isinstance(document, dict):
            raise Unreachable(f"the cluster's answer to {method} {path} is no JSON object")
        return document

    def get(self, resource: Resource, namespace: str, name: str) -> Document:
        """One object; ApiError with status 404 when there is none."""
        return self.call("GET", object_path(Key(resource, namespace, name)))

    def get_wanted(self, resource: Resource, namespace: str, name: str, reason: str, asked_by: str) -> Document:
        """`get` of what another object asks for; NotFound with a stable reason when there is none."""
        try:
            return self.get(resource, namespace, name)
        except ApiError as error:
            if error.status != 404:
                raise
            raise NotFound(f"{resource.kind} {namespace}/{one_line(name)} does not exist; {asked_by} asks for it",
                           reason=reason) from None

    def list_pages(self, resource: Resource, namespace: str, selector: str = "", size: int = PAGE_SIZE,
                   limit: int = ANSWER_LIMIT) -> Iterator[Document]:
        """The pages of a list; a continue token that expired is an ApiError (list anew).

        A page has at most `size` objects, and half as many from the first on that has more than `limit` bytes.
        """
        path, token = api_path(resource, namespace), ""
        while True:
            query = {"limit": str(size), "labelSelector": selector, "continue": token}
            try:
                page = self.call("GET", path, limit if size > 1 else ANSWER_LIMIT, SLOW_LIST,
                            query={name: value for name, value in query.items() if value})
            except Unreachable as error:
                if error.reason != TOO_LARGE or size == 1:
                    raise
                size //= 2
                continue
            before, token = token, _text(page, "metadata", "continue")
            if token and token == before:
                raise Unreachable(f"the cluster's list of {resource.plural} does not end")
            yield page
            del page  # before the next one is read
            if not token:
                return

    def create(self, resource: Resource, document: Document) -> Document:
        """Create an object in the namespace it names -> the object as stored."""
        return self.call("POST", api_path(resource, document["metadata"]["namespace"]), body=document)

    def merge_patch(self, key: Key, body: Document, subresource: str = "") -> Document:
        """RFC 7386 patch of an object or its status -> the object as stored; a stale resourceVersion is a 409."""
        return self.call("PATCH", object_path(key, subresource), body=body,
                    content_type="application/merge-patch+json")

    def delete(self, key: Key, options: Optional[Document] = None) -> bool:
        """Delete an object -> whether it was there; `options` may hold preconditions, which fail as 409."""
        try:
            self.call("DELETE", object_path(key), body=options)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def served_resources(self, group_version: str) -> List[str]:
        """The names discovery lists for a group, such as `downloadrequests/status`; empty when it has no such group."""
        try:
            document = self.call("GET", f"/apis/{group_version}")
        except ApiError as error:
            if error.status != 404:
                raise
            return []
        entries = _at(document, "resources")
        return [_text(entry, "name") for entry in entries] if isinstance(entries, list) else []

    def open_watch(self, resource: Resource, namespace: str, version: str, *, seconds: float, name: str = "",
                   silence: float = WATCH_SILENCE) -> Response:
        """Start a watch after `version`, of all objects or of the one named -> a response for watch_events.

        seconds: the API ends the watch after so long. silence: seconds without a byte after which it counts as broken.
        """
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
                 "timeoutSeconds": str(max(1, math.ceil(seconds)))}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        with within(self.patience):
            return self.send("GET", api_path(resource, namespace), query=query, idle=silence)

    def hasty(self) -> Api:
        """The same door for calls that only tidy up or explain: nobody should wait long for them."""
        return self._replace(patience=HASTE)


def connect(cluster: Cluster) -> Api:
    """Prepare the connection to a cluster; nothing is sent yet. Raises ConfigError for unusable certificates."""
    return Api(Session(cluster))

# ====================================================================================================
# 12. Key sources — Secret, STS, files, container, instance metadata
#
#     No host is asked but those that the chain defines: STS of the location's region, the container's endpoint, the
#     instance's metadata service (these two never through a proxy), and S3 itself for the region of a location that
#     names neither region nor s3Url.
# ====================================================================================================

STS_VERSION = "2011-06-15"
STS_TIMEOUT, CONTAINER_TIMEOUT, INSTANCE_TIMEOUT, PROCESS_TIMEOUT = 12.0, 6.0, 3.0, 60.0  # seconds for all tries
ASK_ATTEMPTS = 3
CREDENTIALS_LIMIT = 1 << 20                  # bytes of a file that a location names; a Secret holds no more
RENEWAL_PAUSE = timedelta(seconds=60)        # between tries to renew keys that still live
FAILURE_PAUSE = timedelta(seconds=5)         # between tries to have keys at all, or an answer of a silent host
QUICK_FAILURE = 0.3                          # seconds; a failure that took no longer may be asked for again at once
HOSTS_KEPT = 1000
BUSY = "another request waits for the same answer"
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded")  # which STS says with status 400
INSTANCE_TOKEN_LIFE = 300                    # seconds; aws-sdk-go-v2
NO_KEYS_CURE = ("name a Secret in spec.credential of the storage location, set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give a client --credentials-file")
INSTANCE_PATH = "/latest/meta-data/iam/security-credentials/"


class Busy(Error):
    """Another worker is waiting for the same answer; to be tried again in a moment."""


class Hosts:
    """The hosts of strangers that the workers of a controller ask, so that a silent one costs one worker one deadline.

    One that has answered may be asked by all workers but one at a time, any other by one, and all but one may wait for
    such; who would be one too many is Busy. After a time-out a host is not asked for a while: the error is the same.
    """

    def __init__(self, workers: int, memory: float) -> None:
        self._workers, self._memory = workers, memory
        self._lock = threading.Lock()
        self._asked: Dict[str, int] = {}                     # host -> by how many workers
        self._known: Dict[str, None] = {}                    # those that have answered
        self._silent: Dict[str, Tuple[float, Unreachable]] = {}  # until when, with which error

    @contextlib.contextmanager
    def asking(self, host: str) -> Iterator[None]:
        """Ask a host within this context; Busy or the error of a moment ago instead."""
        with self._lock:
            self._enter(host)
        started, silent = time.monotonic(), None
        try:
            yield
        except Unreachable as error:
            silent = error
            raise
        finally:
            with self._lock:
                self._leave(host, silent, time.monotonic() - started)

    def _enter(self, host: str) -> None:
        until, error = self._silent.get(host, (-math.inf, None))
        if error and time.monotonic() < until:
            raise error.with_traceback(None)
        known = host in self._known
        strange = sum(other not in self._known for other in self._asked)
        if self._asked.get(host, 0) >= (self._workers - 1 if known else 1) or (
                not known and strange >= self._workers - 1):
            raise Busy(BUSY)
        self._asked[host] = self._asked.get(host, 0) + 1

    def _leave(self, host: str, silent: Optional[Unreachable], seconds: float) -> None:
        self._asked[host] -= 1
        if not self._asked[host]:
            del self._asked[host]
        for memory in self._known, self._silent:
            if len(memory) >= HOSTS_KEPT:
                memory.clear()  # type: ignore[attr-defined]
        if silent is None:
            self._known[host] = None
        elif seconds > QUICK_FAILURE:
            self._known.pop(host, None)
            self._silent[host] = time.monotonic() + self._memory, silent


def asking(url: str) -> ContextManager[None]:
    """Ask the host of a URL as the Hosts of this thread allow; anybody but a worker just asks."""
    hosts = getattr(_thread, "hosts", None)
    return hosts.asking(urlsplit(url).netloc.rpartition("@")[2]) if hosts else contextlib.nullcontext()


def ask(method: str, url: str, headers: Dict[str, str], body: bytes = b"", *, proxy: str = "") -> Reply:
    """One small exchange with a service of AWS, within the caller's deadline; Unreachable when it does not answer."""
    parts = urlsplit(url)
    context = tls_context() if "https:" in (url[:6], proxy[:6]) else None
    door = open_door(url, context, proxy=proxy)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        with contextlib.closing(send_request(door, method, target, {"User-Agent": USER_AGENT, **headers}, body or None,
                                             idle=max(0.01, time_left()))) as response:
            return Reply(response.status, read_answer(response, ERROR_LIMIT), response.headers)
    except ValueError:
        raise Unreachable(f"the answer of the service at {parts.netloc.rpartition('@')[2]} cannot be read") from None
    except urllib3.exceptions.HTTPError as error:
        raise unreachable(error, f"the service at {parts.netloc.rpartition('@')[2]}", url, proxy=proxy) from error
    finally:
        door.pool.close()


def ask_again(method: str, url: str, headers: Callable[[], Dict[str, str]], body: Callable[[], bytes], *,
              timeout: float, proxy: str = "", passing: Tuple[str, ...] = ()) -> Reply:
    """`ask`, again after 429, 5xx, no answer, or an error code in `passing`, with new headers and body each time.

    timeout: seconds for all tries together; a try that hangs leaves some to the next.
    """
    with asking(url), within(timeout):
        for attempt in range(1, ASK_ATTEMPTS):
            with contextlib.suppress(Unreachable), within(timeout / ASK_ATTEMPTS):
                reply = ask(method, url, headers(), body(), proxy=proxy)
                if reply.status not in RETRY_STATUS and xml_fields(reply.body).get("Code", "") not in passing:
                    return reply
            time.sleep(min(backoff(attempt, 0.1, 1.0), max(0.0, time_left())))
        return ask(method, url, headers(), body(), proxy=proxy)


def _keys_from(values: Dict[str, Any], token: str, who: str) -> Credentials:
    """The keys in an answer; ConfigError, without its text, when they are not all there."""
    access_key, secret_key = values.get("AccessKeyId"), values.get("SecretAccessKey")
    session, expires = values.get(token) or "", parse_time(values.get("Expiration"))
    if not isinstance(access_key, str) or not isinstance(secret_key, str) or not access_key or not secret_key:
        raise CredentialsError(f"the answer of {who} holds no keys")
    if values.get("Expiration") and expires is None:
        raise CredentialsError(f"the answer of {who} has an Expiration that is no time")
    return Credentials(access_key, secret_key, session if isinstance(session, str) else "", expires)


def _json_object(body: bytes) -> Dict[str, Any]:
    try:
        values = parse_json(body)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _sts(region: str, parameters: Callable[[], Dict[str, str]], signer: Optional[Credentials], who: str) -> Credentials:
    """One call to the Security Token Service of a region -> temporary keys; signed when there is a signer."""
    url = os.environ.get("AWS_ENDPOINT_URL_STS") or f"https://{aws_host('sts', region)}"

    def body() -> bytes:
        return urlencode({**parameters(), "Version": STS_VERSION}).encode()

    def headers() -> Dict[str, str]:
        plain = {"content-type": "application/x-www-form-urlencoded; charset=utf-8", "host": urlsplit(url).netloc}
        return sign_headers("POST", "/", plain, body(), signer, region, "sts", utc_now()) if signer else plain

    status, answer, _ = ask_again("POST", url, headers, body, timeout=STS_TIMEOUT, proxy=proxy_for(url, os.environ),
                               passing=("IDPCommunicationError", "InvalidIdentityToken") + THROTTLED)
    fields = xml_fields(answer)
    if status != 200:
        code, message = fields.get("Code", f"status {status}"), fields.get("Message", "")
        raise CredentialsError(f"STS refuses {who}: {one_line(redact(f'{code}: {message}'))}")
    return _keys_from(fields, "SessionToken", f"STS to {who}")


def _session_name(name: str) -> str:
    return name or f"velero-requests-{int(time.time())}"


def assume_with_web_identity(plan: WebIdentity, region: str) -> Credentials:
    """IRSA: the token file, read anew each time, exchanged for the keys of the role; never in a URL."""

    def parameters() -> Dict[str, str]:
        token = read_file(plan.token_file, "web identity token").decode("utf-8", "replace").strip()
        return {"Action": "AssumeRoleWithWebIdentity", "RoleArn": plan.role_arn, "WebIdentityToken": token,
                "RoleSessionName": _session_name(plan.session_name)}

    return _sts(region, parameters, None, f"the web identity of role {plan.role_arn}")


def assume_role(plan: AssumedRole, source: Credentials, region: str) -> Credentials:
    """The keys of the plan's source, exchanged for those of the role."""
    parameters = {"Action": "AssumeRole", "RoleArn": plan.role_arn, "RoleSessionName": _session_name(plan.session_name)}
    if plan.external_id:
        parameters["ExternalId"] = plan.external_id
    if plan.duration > 900:  # as aws-sdk-go-v2: the shortest life is what STS gives anyway
        parameters["DurationSeconds"] = str(plan.duration)
    return _sts(region, lambda: parameters, source, f"role {plan.role_arn}")


def run_credential_process(plan: Process, _region: str) -> Credentials:
    """The keys that a program prints, within a minute; nothing it says is shown, for either stream may hold them."""
    try:
        done = subprocess.run(plan.command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=PROCESS_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise CredentialsError(f"{plan.profile}: credential_process cannot be run or takes longer than a minute"
                               ) from None
    if done.returncode:
        raise CredentialsError(f"{plan.profile}: credential_process failed with exit code {done.returncode}; "
                               "run it by hand to see why")
    values = _json_object(done.stdout)
    if values.get("Version") != 1:
        raise CredentialsError(f"{plan.profile}: credential_process printed no JSON of Version 1")
    return _keys_from(values, "SessionToken", f"credential_process of {plan.profile}")


def ask_container(plan: Container, _region: str) -> Credentials:
    """ECS and EKS Pod Identity; the authorization token is read anew each time."""

    def headers() -> Dict[str, str]:
        token = plan.token
        if plan.token_file:
            token = read_file(plan.token_file, "container authorization token").decode("utf-8", "replace").strip()
        return {"Authorization": header_value(token, "the container authorization token")} if token else {}

    status, answer, _ = ask_again("GET", plan.url, headers, lambda: b"", timeout=CONTAINER_TIMEOUT)
    if status != 200:
        values = _json_object(answer)
        raise CredentialsError(f"the container's credential endpoint answered {status}: "
                          f"{one_line(redact(str(values.get('message') or values.get('code') or 'no reason')))}")
    return _keys_from(_json_object(answer), "Token", "the container's credential endpoint")


def _instance_token(plan: Instance) -> str:
    """The token of IMDS version 2, empty for version 1 where that is allowed and the service knows no other."""
    try:
        status, answer, _ = ask_again("PUT", f"{plan.endpoint}/latest/api/token",
                                   lambda: {"x-aws-ec2-metadata-token-ttl-seconds": str(INSTANCE_TOKEN_LIFE)},
                                   lambda: b"", timeout=INSTANCE_TIMEOUT)
    except Unreachable:
        status, answer = 0, b""
    if status == 200:
        return header_value(answer.decode("ascii", "replace").strip(), "the token of the instance metadata service")
    if plan.allow_v1 and status in (0, 404, 405):
        return ""
    raise CredentialsError(
        f"the instance metadata service gives no token ({f'status {status}' if status else 'no answer'}), and nothing "
        "else that holds keys is configured", reason="CredentialsNotFound", hints=[NO_KEYS_CURE])


def ask_instance(plan: Instance, _region: str) -> Credentials:
    """The keys of the instance's role; a token that the service has forgotten is asked for once more."""
    for last in (False, True):
        token = _instance_token(plan)
        headers = {"x-aws-ec2-metadata-token": token} if token else {}
        status, answer, _ = ask_again("GET", plan.endpoint + INSTANCE_PATH, lambda: headers, lambda: b"",
                                   timeout=INSTANCE_TIMEOUT)
        role = answer.decode("utf-8", "replace").split("\n")[0].strip()
        if status == 200 and role:
            status, answer, _ = ask_again("GET", plan.endpoint + INSTANCE_PATH + quote(role, safe=""), lambda: headers,
                                       lambda: b"", timeout=INSTANCE_TIMEOUT)
        if status != 401 or last:
            break
    values = _json_object(answer)
    if status != 200 or values.get("Code") != "Success":
        raise CredentialsError(f"the instance metadata service has no keys (status {status}, code "
                               f"{one_line(values.get('Code', 'none'), 64)}); does the instance have a role?",
                               reason="CredentialsNotFound", hints=[NO_KEYS_CURE])
    return _keys_from(values, "Token", "the instance metadata service")


def fetch_credentials(plan: Plan, region: str) -> Credentials:
    """Carry out a plan -> keys, fresh ones when they are temporary."""
    if isinstance(plan, Credentials):
        return plan
    if isinstance(plan, AssumedRole):
        return assume_role(plan, fetch_credentials(plan.source, region), region)
    carry_out: Dict[type, Callable[[Any, str], Credentials]] = {
        WebIdentity: assume_with_web_identity, Process: run_credential_process,
        Container: ask_container, Instance: ask_instance}
    return carry_out[type(plan)](plan, region)


class Purse:
    """The keys last had for a plan, and when the next try to have some may be made; one caller renews at a time."""

    def __init__(self) -> None:
        self.credentials: Optional[Credentials] = None
        self.failure: Optional[Error] = None
        self.patient_until = datetime.min.replace(tzinfo=timezone.utc)  # after a failure, when to try again
        self.lock = threading.Lock()


def keys_from_purse(purse: Purse, plan: Plan, region: str, now: datetime, wait: bool = True) -> Credentials:
    """Keys that are fresh, renewed if need be; when that fails the old ones serve as long as they live.

    While another caller renews, the old ones serve, too; when there are none its keys are waited for, or it is Busy.
    """
    old = purse.credentials
    alive = old is not None and (old.expires is None or old.expires > now)
    if old is not None and is_fresh(old, now):
        return old
    if not purse.lock.acquire(blocking=wait and not alive):
        if old is not None and alive:
            return old
        raise Busy(BUSY)
    try:
        if purse.credentials is not old:  # another caller has renewed them meanwhile
            return purse.credentials  # type: ignore[return-value]
        if purse.failure is None or now >= purse.patient_until:
            try:
                purse.credentials, purse.failure = fetch_credentials(plan, region), None
                return purse.credentials
            except Busy:
                if not alive:
                    raise
            except Error as error:
                purse.failure, purse.patient_until = error, now + (RENEWAL_PAUSE if alive else FAILURE_PAUSE)
                if alive:
                    log.warning("%s; the keys before serve until they end", error)
    finally:
        purse.lock.release()
    if old is not None and alive:
        return old
    raise purse.failure.with_traceback(None)  # type: ignore[union-attr]


def _read_ini(path: str) -> Profiles:
    if not path or not os.path.exists(path):
        return {}
    content = read_file(path, "credentials file", INI_LIMIT)
    return ini_sections(content.decode("utf-8", "replace"), f"credentials file {path}")


def _home(*names: str) -> str:
    return os.path.join(os.path.expanduser("~"), *names)


def shared_profiles() -> Tuple[Profiles, str]:
    """The profiles of the shared files -> with the names of the files."""
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or _home(".aws", "credentials")
    config = os.environ.get("AWS_CONFIG_FILE") or _home(".aws", "config")
    return merge_profiles(_read_ini(credentials), _read_ini(config)), f"{credentials} and {config}"


def read_secret_key(api: Optional[Api], namespace: str, name: str, key: str, asked_by: str) -> bytes:
    """One key of a Secret in Velero's namespace; NotFound or ConfigError naming it, as without a cluster."""
    if api is None:
        raise CredentialsError(f"{asked_by} names the Secret {name!r}, and no cluster is asked")
    return secret_value(api.get_wanted(SECRETS, namespace, name, "SecretNotFound", asked_by), name, key, asked_by)


def read_allowed_file(location: Location, allowed: Iterable[str]) -> bytes:
    """The file that a location of the cluster names, when the operator has allowed this very path.

    Links are followed: who may change what lies there is the operator's to know. What is opened is looked at through
    its descriptor, so that it cannot be changed for a device meanwhile.
    """
    path = location.credentials_file
    if path not in allowed:
        raise CredentialsError(
            f"storage location {location.name!r}: credentialsFile names a file of this host, {one_line(path, 256)!r}, "
            "which is refused; put the keys into a Secret and name that in spec.credential, or allow the file by "
            "--allow-credentials-file", reason="CredentialsFileNotAllowed")
    try:
        with open(path, "rb", opener=_open_now) as file:
            content = file.read(CREDENTIALS_LIMIT + 1) if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, ValueError) as error:
        raise CredentialsError(f"cannot read credentials file {path}: {getattr(error, 'strerror', None) or error}"
                               ) from error
    if content is None or len(content) > CREDENTIALS_LIMIT:
        raise CredentialsError(f"credentials file {path} is no regular file of at most {CREDENTIALS_LIMIT >> 20} MiB")
    return content


def read_own_profiles(api: Optional[Api], namespace: str, location: Location, allowed: Iterable[str]
                      ) -> Tuple[Optional[Profiles], str]:
    """What a location's own Secret or credentialsFile holds -> with its name; None when it names neither."""
    source = f"credentials file {location.credentials_file}"
    if location.secret_name:
        source = f"key {location.secret_key!r} of Secret {location.secret_name!r}"
        content = read_secret_key(api, namespace, location.secret_name, location.secret_key,
                                  f"storage location {location.name!r}")
    elif location.credentials_file and location.trusted:
        content = read_file(location.credentials_file, "credentials file")
    elif location.credentials_file:
        content = read_allowed_file(location, allowed)
    else:
        return None, ""
    return own_profiles_from(content, source), source


def own_endpoint() -> str:
    """The URL of the store that the operator names, empty for AWS; ConfigError naming the variable when it is none."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            endpoint_from(os.environ[name], name)
            return os.environ[name]
    return ""


def discover_region(address: Address, seconds: float = STS_TIMEOUT) -> str:
    """The region that S3 itself names for a bucket, asked as velero-plugin-for-aws does: whatever the status, unsigned.

    Empty when it names none. Raises NotFound when there is no such bucket, Unreachable.
    """
    url = f"{address.scheme}://{address.host}{address.path or '/'}"
    with asking(url), within(seconds):
        answer = ask("HEAD", url, {}, proxy=proxy_for(url, os.environ))
    if answer.status == 404:
        raise NotFound(f"S3 at {address.host} knows no such bucket", reason="BucketNotFound", hints=[
            "correct objectStorage.bucket, or set config.region outside of the standard partition"])
    region = answer.headers.get("x-amz-bucket-region", "")
    return region and dns_label(region, f"the region in the answer of {address.host}")


def _region_of(location: Location, profile: Mapping[str, str]) -> str:
    """The region to sign for: the location's own, else the one AWS names for its bucket, else the environment's."""
    region = location.region
    if not region and not location.s3_url and not location.public_url:
        with about(f"storage location {location.name!r} names no region"):
            region = discover_region(bucket_address(location._replace(region="us-east-1")))
    others = {"AWS_REGION": os.environ.get("AWS_REGION"), "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION"),
              "region of the profile": profile.get("region"), "": "us-east-1"}  # the last is what most stores announce
    return region or next(dns_label(value, source) for source, value in others.items() if value)


def _is_on(name: str, profile: Mapping[str, str], key: str) -> bool:
    return (os.environ.get(name) or profile.get(key) or "").lower() == "true"


def with_authority(api: Optional[Api], namespace: str, location: Location) -> Location:
    """A location with its certificate authority, where a Secret holds that."""
    if not location.ca_secret[0]:
        return location
    return location._replace(ca_cert=read_secret_key(
        api, namespace, *location.ca_secret, f"storage location {location.name!r}"))


def find_location(api: Optional[Api], namespace: str, document: Document, *, trusted: bool = False) -> Location:
    """A storage location with its endpoint and authority.

    trusted: it is the operator's own word. What a location of the cluster says of TLS does not count where our own
    identity signs for AWS: the system's authorities vouch for those hosts.
    """
    location = location_from(document)
    location = location._replace(s3_url=location.s3_url or own_endpoint(), trusted=trusted)
    lax = location.insecure or location.ca_cert or location.ca_secret[0]
    if lax and not (trusted or location.secret_name) and is_aws_endpoint(location):
        return location._replace(insecure=False, ca_cert=b"", ca_secret=("", ""), warnings=location.warnings + (
            "insecureSkipTLSVerify, caCert and caCertRef are not used at AWS without a Secret in spec.credential",))
    return with_authority(api, namespace, location)


def open_location(api: Optional[Api], namespace: str, location: Location, allowed: Iterable[str] = ()
                  ) -> Tuple[Location, Plan]:
    """A location with the region and hosts that environment and profile name -> with the plan for its keys.

    Files and Secret are read now; no service is asked yet but S3, for a region that nobody names. allowed: files of
    this host that a location of the cluster may name; they say more than a Secret only where our own identity belongs.
    """
    given = bool(location.secret_name)
    at_home = location.trusted or given or is_own_endpoint(location, own_endpoint())
    own, source = read_own_profiles(api, namespace, location, allowed)
    if own is None and not at_home:
        raise CredentialsError(
            f"storage location {location.name!r} names no Secret, and the credentials of this process sign only for "
            "AWS and for the endpoint in AWS_ENDPOINT_URL_S3, not for its s3Url or publicUrl; name a Secret in "
            "spec.credential, or set AWS_ENDPOINT_URL_S3 to that URL", reason=FOREIGN_ENDPOINT)
    shared, files = ({}, "") if own is not None else shared_profiles()
    plan = plan_credentials(location.profile, own, shared, source or files, os.environ, theirs=given or not at_home)
    named = location.profile or ("" if own is not None else environment_profile(os.environ)) or "default"
    profile = (shared if own is None else own).get(named, {})
    location = location._replace(
        region=_region_of(location, profile),
        dualstack=_is_on("AWS_USE_DUALSTACK_ENDPOINT", profile, "use_dualstack_endpoint"),
        fips=_is_on("AWS_USE_FIPS_ENDPOINT", profile, "use_fips_endpoint"))
    bucket_address(location)                 # before keys are fetched for it
    return location, plan

# ====================================================================================================
# 13. Store — receive, go on, verify, save
#
#     A download is a chain of generators of bytes, each with one job:
#     received (a source, whatever breaks) -> proven (MD5) -> unframed -> inflate or checked (gzip) -> a writer.
#     `ahead` puts what comes before it into a thread of its own; receiving, proving, inflating and writing go on side
#     by side.
# ====================================================================================================

CHUNK = 508 * 1024                           # bytes at a time; handing over and writing larger ones is less work
AHEAD = 2                                    # chunks that wait between two threads; what a kill -9 may cost
SLOW = 0.1                                   # seconds after which a chunk that is not full goes on
IDLE_LIMIT = 30.0                            # seconds without a byte
VERIFY_TIMEOUT = 5.0                         # seconds in which a store must have answered, to have its URL handed out
FLUSH = 16 << 20                             # bytes after which the disk begins to write, so that fsync finds little
RESTARTS = 3                                 # times that an object may change while it is downloaded
SKEW_WORTH = timedelta(seconds=60)           # of the store's clock, from which on it is signed by that clock


@hides("ca_cert")
class Trust(NamedTuple):
    """Whom to trust behind a store's https URL: the system's authorities and `ca_cert` (PEM), or anybody."""

    ca_cert: bytes = b""
    insecure: bool = False
    source: str = "the certificate authority"  # named in errors


# aws-chunked framing that some SDK left in the object it stored (velero#7995):
# `SIZE[;chunk-signature=…]\r\n DATA \r\n` again and again, a chunk of size 0 and perhaps trailers at the end.
_FRAME = re.compile(rb"([0-9a-fA-F]{1,8})(?:;chunk-signature=[0-9a-f]{64})?\r\n")


def _without_frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest, at, left = b"", 0, 0  # bytes at hand, how many are done with; bytes of a chunk to come, its line end included
    for piece in chunks:
        rest, at = rest[at:] + piece, 0
        while at < len(rest):
            if left > 2:
                data = rest[at:at + left - 2]
                at, left = at + len(data), left - len(data)
                yield data
                continue
            if left:
                at, left = min(at + left, len(rest)), max(0, left - len(rest) + at)
                continue
            frame = _FRAME.match(rest, at)
            if frame is None:
                if len(rest) - at > 128:
                    raise StoreError("the file is damaged: its aws-chunked framing breaks off")
                break
            size = int(frame.group(1), 16)
            if size == 0:
                return
            at, left = frame.end(), size + 2
    raise StoreError("the file is cut short: its aws-chunked framing has no end")


@contextlib.contextmanager
def open_url(url: str, trust: Trust = Trust(), *, headers: Optional[Dict[str, str]] = None,
             wanted: Tuple[int, ...] = (200,), idle: float = IDLE_LIMIT, address: str = "", quoting: bool = True
             ) -> Iterator[Response]:
    """GET a pre-signed URL -> the response, its body unread; closed by the context.

    idle: seconds without a byte. address: of the host, where it has been looked up. quoting: whether an error may hold
    what the host has written. Raises StoreError for any status that is not wanted, Unreachable without a connection;
    neither shows the URL's signature. Further headers need no signature, for only `host` is signed.
    """
    if not is_http_url(url):
        raise StoreError("the answer holds no http or https URL")
    parts = urlsplit(url)
    where = f"the store at {parts.netloc.rpartition('@')[2]}"
    proxy = proxy_for(url, os.environ)
    context = None
    if "https" in (parts.scheme, urlsplit(proxy).scheme):
        context = tls_context(trust.ca_cert, insecure=trust.insecure, source=trust.source,
                              hosts=(parts.hostname, urlsplit(proxy).hostname))
    if address:
        headers = {"Host": parts.netloc, **(headers or {})}
        netloc = (f"[{address}]" if ":" in address else address) + (f":{parts.port}" if parts.port else "")
        door = open_door(f"{parts.scheme}://{netloc}", context, server_name=parts.hostname or "")
    else:
        door = open_door(url, context, proxy=proxy)
    try:
        try:
            response = send_request(door, "GET", parts.path + (f"?{parts.query}" if parts.query else ""), {
                "Accept-Encoding": "identity", "User-Agent": USER_AGENT, **(headers or {})}, idle=idle)
        except urllib3.exceptions.HTTPError as error:
            failed = unreachable(error, where, url if quoting else "", proxy=proxy,
                                 hint="name the store's certificate authority with --cacert")
            failed.retry = not isinstance(error, urllib3.exceptions.SSLError)
            if isinstance(error, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError)):
                failed.reason = "BrokenOff"
            raise failed from error
        with contextlib.closing(response):
            if response.status not in wanted:
                raise store_refusal(response.status, read_refusal(response), response.headers, where, url, utc_now(),
                                    quoting=quoting)
            yield response
    finally:
        door.pool.close()


def trust_in(location: Location) -> Trust:
    """Whom a location says to trust."""
    return Trust(location.ca_cert, location.insecure, f"caCert of storage location {location.name!r}")


def client_trust(location: Location) -> Trust:
    """The same for a client, where to skip verification is the caller's to say."""
    return trust_in(location)._replace(insecure=False)


def trust_for(url: str, trust: Optional[Trust], ask: Callable[[], Trust]) -> Trust:
    """Whom to trust behind a URL: whom the caller said; else whom `ask` finds, which only https is worth."""
    return trust or (ask() if url.startswith("https:") else Trust())


def store_addresses(host: str) -> List[str]:
    """The addresses at which to ask a store, one of each family; StoreError when one is of a link-local service."""
    found: Dict[int, str] = {}
    try:
        for family, _, _, _, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM):
            if is_link_local(str(address[0])):
                raise StoreError(f"the store at {host} has the address of a link-local service, which is never asked",
                                 reason="WrongEndpoint", hints=[WRONG_ENDPOINT.cure])
            found.setdefault(family, str(address[0]))
    except (OSError, UnicodeError) as error:
        log.debug("no address of %s: %s", host, error)
    return list(found.values())


def verify_url(url: str, trust: Trust, seconds: float = VERIFY_TIMEOUT) -> None:
    """Prove a URL by fetching one byte with it; StoreError or Unreachable when it does not work in time.

    A signed GET cannot be tried by HEAD, for the method is signed; 416 is what an empty object answers. A stranger may
    have chosen the host and read the error, so that has status and known codes, and nothing that the host has written.
    """
    parts = urlsplit(url)
    headers, wanted = {"Range": "bytes=0-0"}, (200, 206, 416)
    failed = Unreachable(f"cannot reach the store at {parts.netloc}: it has no address here")
    with asking(url), within(seconds):
        addresses = store_addresses(parts.hostname or "")
        for address in [""] if proxy_for(url, os.environ) else addresses:
            try:
                with open_url(url, trust, headers=headers, wanted=wanted, address=address, quoting=False):
                    return
            except Unreachable as error:
                failed = error
        raise failed


def _pieces(response: Response) -> Iterator[bytes]:
    """A body in chunks of CHUNK bytes, smaller ones where the line is slow; those that came before a break, too."""
    held: List[bytes] = []
    size, due = 0, time.monotonic() + SLOW
    try:
        while True:
            piece = read_more(response, CHUNK - size)
            if not piece:
                break
            held.append(piece)
            size += len(piece)
            if size == CHUNK or time.monotonic() > due:
                yield b"".join(held)
                held.clear()
                size, due = 0, time.monotonic() + SLOW
    except BREAKS:
        yield b"".join(held)
        raise
    yield b"".join(held)


def read_body(response: Response, idle: float = IDLE_LIMIT, before: int = 0) -> Iterator[bytes]:
    """The bytes of a response in chunks; Unreachable when fewer than announced come, or none for `idle` seconds.

    before: bytes of the object that the response does not have, for errors.
    """
    announced = response.headers.get("Content-Length", "")
    expected = before + int(announced) if re.fullmatch(r"\d{1,18}", announced, re.ASCII) else None
    came, fault = before, None
    try:
        for chunk in filter(None, _pieces(response)):
            came += len(chunk)
            yield chunk
    except (urllib3.exceptions.ReadTimeoutError, socket.timeout) as error:
        raise Unreachable(f"the store sent nothing for {format_duration(idle)}, after {came} bytes",
                          reason="BrokenOff") from error
    except BREAKS as error:
        fault = error
    if fault or expected not in (None, came):
        total = "an unknown number of" if expected is None else expected
        raise Unreachable(f"the download broke off after {came} of {total} bytes", reason="BrokenOff") from fault


class Transfer:
    """A download as it goes on, for those who look on, and for those who end it from another thread."""

    def __init__(self) -> None:
        self.done = 0                        # bytes of the object in hand, those of an earlier run included
        self.kept = 0                        # bytes that an earlier run left
        self.head: Optional[Head] = None     # what the store says of the object, once a byte has come
        self.stop = threading.Event()
        self.failure: Optional[BaseException] = None  # why one of its threads ended it
        self.abort: Callable[[], None] = lambda: None  # ends the chunks that come just now


class Answer(NamedTuple):
    """An object opened at some byte; `abort` ends the chunks from another thread."""

    head: Head
    chunks: Iterator[bytes]
    abort: Callable[[], None]


class Source(NamedTuple):
    """Where an object can be had, again and again.

    `open(start, etag)` gives its bytes from start on if it is still of this ETag; `renew(error)` gets another URL after
    a refusal.
    """

    open: Callable[[int, str], ContextManager[Answer]]
    renew: Callable[[StoreError], None]


def url_source(locate: Callable[[timedelta], Tuple[str, Trust]], *, idle: float = IDLE_LIMIT) -> Source:
    """The object behind a URL. `locate(skew)` signs or requests it, now and when it has expired; skew: how far the
    store's clock is ahead."""
    current = [locate(timedelta(0))]

    @contextlib.contextmanager
    def open_rest(start: int, etag: str) -> Iterator[Answer]:
        url, trust = current[0]
        headers = range_headers(start, etag)
        wanted = (200, 206) if headers else (200,)
        with open_url(url, trust, headers=headers, wanted=wanted, idle=idle) as response:
            head = head_from(response.status, response.headers)
            yield Answer(head, read_body(response, idle, max(0, head.start)), lambda: interrupt(response))

    def renew_url(error: StoreError) -> None:
        current[0] = locate(error.skew if abs(error.skew) >= SKEW_WORTH else timedelta(0))

    return Source(open_rest, renew_url)


def unreadable(path: str, error: OSError) -> StoreError:
    """The error for a file or folder of a copied bucket that cannot be read, as a store would refuse it."""
    return StoreError(f"cannot read {path}: {error.strerror}", status=403 if isinstance(error, PermissionError) else 0)


def file_source(path: str, hints: Iterable[str] = ()) -> Source:
    """The object in a file of a folder that holds a copied bucket; its ETag is made of size and time.

    hints: what to do when it is not there.
    """

    @contextlib.contextmanager
    def open_rest(start: int, etag: str) -> Iterator[Answer]:
        try:
            with open(path, "rb", buffering=0, opener=_open_now) as file:
                about_it = os.fstat(file.fileno())
                if not stat.S_ISREG(about_it.st_mode):
                    raise NotFound(f"{path} is no file", reason="ArtifactNotFound")
                head = Head(f'"{about_it.st_mtime_ns}-{about_it.st_size}"', about_it.st_size, "", start,
                            about_it.st_size, whole=False)
                if etag not in ("", head.etag):
                    raise changed_object(start)
                file.seek(start)
                yield Answer(head, iter(lambda: file.read(CHUNK), b""), lambda: None)
        except FileNotFoundError:
            raise NotFound(f"there is no file {path}", hints=hints, reason="ArtifactNotFound") from None
        except OSError as error:
            raise unreadable(path, error) from error

    def renew_nothing(error: StoreError) -> None:
        raise error

    return Source(open_rest, renew_nothing)


def halt(transfer: Transfer) -> None:
    """End a transfer: its threads see their connections end, and leave."""
    transfer.stop.set()
    transfer.abort()


def _rest(source: Source, transfer: Transfer, held: Head, position: int) -> Iterator[Tuple[Head, bytes]]:
    """One attempt: what comes of an object behind `position`, with what is said of it; raises when it is not all."""
    with source.open(max(0, position - 1), held.etag) as answer:
        transfer.abort = answer.abort
        if transfer.stop.is_set():           # `halt` may have come before there was something to abort
            raise StoreError("the transfer was ended")
        head = answer.head
        skip = bytes_to_skip(held, head, position)
        came = 0
        for chunk in answer.chunks:
            came += len(chunk)
            fresh, skip = chunk[skip:], max(0, skip - len(chunk))
            if fresh:
                yield head, fresh
        if skip or not (head.ends or came):
            raise Unreachable(f"the download broke off after {position} bytes", reason="BrokenOff")
        yield head, b""


def received(source: Source, transfer: Transfer, start: int = 0, etag: str = "") -> Iterator[bytes]:
    """The bytes of an object from `start` on, whatever breaks meanwhile.

    Goes on at the byte reached, by Range and If-Match, with back-off, and with another URL when one has expired.
    etag: of the object that the bytes before `start` are of. Raises StoreError with reason ObjectChanged when it is
    another one by now, else what the store said last.
    """
    position, held, known, failures, waited, renewals = start, Head(etag=etag), False, 0, 0.0, 0
    while not transfer.stop.is_set():
        try:
            for head, chunk in _rest(source, transfer, held, position):
                held, known = held if known else head, True
                transfer.head = transfer.head or held
                failures, waited, renewals = 0, 0.0, 0
                position += len(chunk)
                transfer.done = position
                yield chunk
            return
        except (StoreError, Unreachable) as error:
            if isinstance(error, StoreError) and error.status in (412, 416):
                raise changed_object(position) from error
            failures += 1
            if is_for_a_new_url(error, position > start) and renewals < 2:
                renewals += 1
                log.info("%s; asking for another URL", error)
                source.renew(error)  # type: ignore[arg-type]
                continue
            wait = download_wait(error, failures, waited, position > 0)
            if wait is None:
                raise
            log.info("%s; going on at byte %d in %s", error, position, format_duration(wait))
            waited += wait
            transfer.stop.wait(wait)
    raise transfer.failure or StoreError("the transfer was ended")  # and no piece of it may pass for whole


def ahead(chunks: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    """The same chunks, made by a thread of their own which is a few ahead; what is raised there is raised here.

    Closing it ends the whole transfer, and waits a second for the thread.
    """
    box: Any = queue.Queue(AHEAD)
    left = threading.Event()                 # nobody takes any more; `stop` may also tell of an error still on its way

    def make() -> None:
        last: Any = None
        try:
            for chunk in chunks:
                box.put(chunk)
                if left.is_set():
                    break
        except BaseException as error:
            last = error
            transfer.failure = transfer.failure or error
        finally:
            try:
                chunks.close()  # type: ignore[attr-defined]
            finally:
                box.put(last)                # whoever waits must not wait for ever

    def take() -> Iterator[bytes]:
        try:
            while True:
                item = box.get()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        except BaseException:
            left.set()
            halt(transfer)
            deadline = time.monotonic() + 1
            while thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(queue.Empty):
                    box.get_nowait()
                thread.join(0.01)
            raise

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    return take()


def _rejoin(first: List[bytes], chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from first
    yield from chunks


def _peek(chunks: Iterator[bytes], size: int) -> Tuple[bytes, Iterator[bytes]]:
    """The first bytes, and all chunks, those bytes included."""
    first: List[bytes] = []
    while sum(map(len, first)) < size:
        chunk = next(chunks, None)
        if chunk is None:
            break
        first.append(chunk)
    return b"".join(first)[:size], _rejoin(first, chunks)


def proven(chunks: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    """The same chunks; StoreError at their end when the store's ETag is an MD5, and another one than theirs."""
    wanted, digest = None, None
    for chunk in chunks:
        if wanted is None:                   # with the first chunk comes what the store says of the object
            wanted = transfer.head.md5 if transfer.head else ""
            with contextlib.suppress(ValueError):  # some systems forbid MD5
                digest = hashlib.new("md5") if wanted else None
        if digest:
            digest.update(chunk)
        yield chunk
    if digest and digest.hexdigest() != wanted:
        raise StoreError(f"the file is damaged: its MD5 is {digest.hexdigest()}, the store's ETag is {wanted}")


def unframed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, without aws-chunked framing where an object was stored with it, as its first bytes tell."""
    head, pieces = _peek(iter(chunks), 128)
    frame = _FRAME.match(head)
    if frame is None or head[frame.end():frame.end() + 2] != b"\x1f\x8b":
        yield from pieces
        return
    log.info("the object was stored with aws-chunked framing, which is taken off")
    yield from _without_frames(pieces)


def _salvage(inflater: Any, chunk: bytes) -> Iterator[bytes]:
    """What a chunk with a fault in it holds before the fault, in pieces of any size."""
    with contextlib.suppress(zlib.error):
        for value in chunk:
            yield inflater.decompress(bytes([value]))


def inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """gzip members, one after another -> their content in pieces of at most CHUNK bytes, whatever the ratio.

    StoreError when it is no gzip, breaks off, fails its CRC or length, or something else follows the last member; all
    that comes before the fault is yielded first.
    """
    inflater, read = None, 0
    for chunk in chunks:
        while chunk and not (inflater is None and read and not chunk.strip(b"\0")):  # zeros after the end are padding
            inflater = inflater or zlib.decompressobj(31)
            before = inflater.copy()
            try:
                yield inflater.decompress(chunk, CHUNK)
            except zlib.error as error:
                if read == 0 and not chunk.startswith(b"\x1f\x8b"):
                    raise StoreError(f"the file is not gzip but {_what_is(chunk)}") from None
                yield from _salvage(before, chunk)
                raise StoreError(f"the file is damaged after {read} bytes: {one_line(error)}") from None
            rest = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            read += len(chunk) - len(rest)
            inflater = None if inflater.eof else inflater
            chunk = rest
    if inflater is not None:
        raise StoreError(f"the file is cut short: it ends after {read} bytes in the middle of its gzip data")
    if not read:
        raise StoreError("the file is empty, not gzip")


def checked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks, proven on the way to be whole gzip; StoreError as `inflate`."""
    passed: deque = deque()

    def tap() -> Iterator[bytes]:
        for chunk in chunks:
            passed.append(chunk)
            yield chunk

    for _ in inflate(tap()):
        while passed:
            yield passed.popleft()
    yield from passed


def content(chunks: Iterator[bytes], transfer: Transfer, what: str, *, gunzip: bool) -> Iterator[bytes]:
    """What a person wants of a stored object: inflated, or as it is stored, and proven either way. Close it.

    what: its name, in errors.
    """
    with about(what):
        stored = unframed(ahead(proven(ahead(chunks, transfer), transfer), transfer))
        yield from ahead(inflate(stored) if gunzip else checked(stored), transfer)


def write_all(writer: Any, chunk: bytes) -> None:
    """Write, again and again where a writer takes less than it is given."""
    view = memoryview(chunk)
    while view:
        count = writer.write(view)
        view = view[len(view) if count is None else count:]


def is_special(path: str) -> bool:
    """Whether a path is there and neither file nor folder: a device, a FIFO, a terminal."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _is_trusted(there: os.stat_result) -> bool:
    """Whether we or root made something: in a shared folder anybody makes what leads or sends our bytes elsewhere."""
    return there.st_uid in (0, getattr(os, "geteuid", int)())


def _followed(path: str) -> str:
    """Where symbolic links lead that can be trusted."""
    for _ in range(40):                      # as many as Linux follows
        try:
            there = os.lstat(path)
            if not stat.S_ISLNK(there.st_mode):
                return path
            if not _is_trusted(there):
                raise Error(f"cannot write {path}: it is a symbolic link of another user", hints=[
                    "name the file that it leads to, if that is meant"])
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:                      # what is wrong with it, opening it will say
            return path
    raise Error(f"cannot write {path}: too many symbolic links")


def _exists(path: str) -> Error:
    return Error(f"{path} exists", hints=["choose another file with --output, or replace it with --force"])


def check_target(path: str, *, force: bool, named: bool = True) -> None:
    """Raise, before anything is asked of anybody, when a file cannot be put at this path.

    named: whether the user named it, who may mean a device, a FIFO or a link; else it must be a regular file.
    """
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise Error(f"cannot write {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise Error(f"cannot write {path}: it is a folder", hints=["name a file in it"])
    if not named and os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise Error(f"cannot write {path}: it is no regular file", hints=["if it is meant, name it with --output"])
    if os.path.lexists(path) and not force and not is_special(path):
        raise _exists(path)
    _followed(path)


_NAMED_BY_ETAG = re.compile(r'"([\w-]{1,64})"', re.ASCII)  # ETags that can be part of a file's name: all of S3's
_PART = ".velero-requests.part"


class NewFile:
    """A file that gets its name once it is whole, and beside it till then its partial file.

    The partial file's name tells target, object and ETag, so that another run can go on from it. In a shared folder
    anybody makes files: so the folder is opened once, and a file in it is looked at through its descriptor.
    """

    def __init__(self, path: str, what: str, *, force: bool, named: bool):
        self.path, self.force, self.file, self.etag = path, force, None, ""
        self.where, self.name = os.path.split(_followed(path) if named else path)
        self.where = self.where or "."
        self.folder = os.open(self.where, os.O_RDONLY | os.O_DIRECTORY) if os.open in os.supports_dir_fd else None
        name_mark, self.mark = (hashlib.sha256(os.fsencode(text)).hexdigest()[:8] for text in (self.name, what))
        self.part, self.stem = "", f".{self.name[:32]}.{name_mark}."

    def at(self, name: str) -> str:
        """A file of the folder, for calls with `dir_fd`."""
        return name if self.folder is not None else os.path.join(self.where, name)

    def _is(self, name: str, file: Any) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.at(name), dir_fd=self.folder, follow_symlinks=False),
                                    os.fstat(file.fileno()))
        return False

    def _lock(self, file: Any) -> None:
        """Keep other downloads of the target out, where there are locks at all."""
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"another download is writing {self.path}", hints=["wait for it, or end it"]) from None
        except OSError as error:             # such as NFS without its lock daemon
            log.info("another download of %s would not be noticed: %s", self.path, error.strerror)

    def _take(self, name: str, create: int = 0) -> bool:
        """Open a partial file that is new, or our own and known by no other name; locked and unbuffered."""
        flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | create
        try:
            file = open(os.open(self.at(name), flags, 0o600, dir_fd=self.folder), "r+b", buffering=0)
        except OSError as error:
            if create and not isinstance(error, FileExistsError):
                raise
            return False
        with contextlib.ExitStack() as unless_taken:
            unless_taken.callback(file.close)
            there = os.fstat(file.fileno())
            ours = stat.S_ISREG(there.st_mode) and there.st_uid == getattr(os, "geteuid", int)()
            if not create and not (ours and there.st_nlink == 1):
                return False
            self._lock(file)
            if not self._is(name, file):     # another download finished it between our calls
                return False
            unless_taken.pop_all()
        self.part, self.file = name, file
        return True

    def find_part(self) -> int:
        """Open what an earlier run left of the object -> its size, 0 for nothing; what it left of others is removed."""
        for name in os.listdir(self.where if self.folder is None else self.folder):
            if not (name.startswith(self.stem) and name.endswith(_PART) and self._take(name)):
                continue
            mark, _, etag = name[len(self.stem):-len(_PART)].partition(".")
            size = os.fstat(self.file.fileno()).st_size
            if size and mark == self.mark and _NAMED_BY_ETAG.fullmatch(f'"{etag}"'):
                self.etag = f'"{etag}"'
                return size
            self.discard()
        return 0

    def open_part(self, etag: str) -> None:
        """Begin a partial file; under a name that nobody can foresee where somebody else's file has the usual one."""
        match = _NAMED_BY_ETAG.fullmatch(etag)
        for named_etag in (match.group(1) if match else "~", f"~{os.urandom(8).hex()}"):
            name = f"{self.stem}{self.mark}.{named_etag}{_PART}"
            if self._take(name, os.O_CREAT | os.O_EXCL) or self._take(name):
                self.etag = etag if named_etag[0] != "~" else ""
                self.file.truncate(0)
                return
        raise OSError(f"its partial file {name} belongs to somebody else")

    def give_name(self) -> None:
        """Put everything on disk, then name it; without force by a link, which fails where a file came meanwhile."""
        os.fsync(self.file.fileno())
        part, name, linked = self.at(self.part), self.at(self.name), False
        folders = {"src_dir_fd": self.folder, "dst_dir_fd": self.folder}
        with contextlib.suppress(OSError):   # it is there, or the file system knows no links
            if not self.force:
                os.link(part, name, **folders)
                linked = True
                os.unlink(part, dir_fd=self.folder)
        if not linked:
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(name, dir_fd=self.folder, follow_symlinks=False).st_mode
                if not self.force:
                    raise _exists(self.path)
                if not stat.S_ISREG(mode):
                    raise OSError("something that is no regular file has come in its place")
            os.replace(part, name, **folders)
        if not self._is(self.name, self.file):
            raise OSError("somebody else has put another file there")
        if self.folder is not None:
            with contextlib.suppress(OSError):  # where folders cannot be synced
                os.fsync(self.folder)

    def discard(self) -> None:
        """Remove the partial file."""
        if self.file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.at(self.part), dir_fd=self.folder)
            self.file.close()
        self.file, self.etag = None, ""

    def leave(self, error: BaseException) -> None:
        """After an error: keep what another run can go on from, and say so; else remove it."""
        if not self.etag or not os.fstat(self.file.fileno()).st_size or not may_be_continued(error):
            self.discard()
            return
        part = os.path.join(self.where, self.part)
        kept = f"what has come is kept in {part}, and the same command goes on from there"
        if isinstance(error, KeyboardInterrupt):
            error.args = (kept,)
        if isinstance(error, Error):
            error.hints += (kept,)

    def close(self) -> None:
        """Let go of file and folder."""
        if self.file is not None:
            self.file.close()
        if self.folder is not None:
            os.close(self.folder)


@contextlib.contextmanager
def new_file(path: str, what: str, *, force: bool, named: bool = True) -> Iterator[NewFile]:
    """A file to fill, which gets its name when the context ends well; Error naming it when it cannot be written."""
    try:
        with contextlib.closing(NewFile(path, what, force=force, named=named)) as new:
            try:
                yield new
                new.give_name()
            except BaseException as error:
                new.leave(error)
                raise
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or one_line(error)}") from error


@contextlib.contextmanager
def _special_file(path: str) -> Iterator[Any]:
    """A device to write to, or a FIFO of our own; opening that waits for a reader."""
    try:
        _followed(path)
        there = os.stat(path)
        if stat.S_ISREG(there.st_mode) or (stat.S_ISFIFO(there.st_mode) and not _is_trusted(there)):
            raise OSError("it is a file by now, or a FIFO of another user")
        with open(os.open(path, os.O_WRONLY), "wb", buffering=0) as file:
            if not os.path.samestat(there, os.fstat(file.fileno())):
                raise OSError("it was exchanged meanwhile")
            yield file
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or one_line(error)}") from error


def write_object(source: Source, writer: Any, transfer: Transfer, what: str, *, gunzip: bool) -> int:
    """Write an object into a writer, which stays open -> the bytes; StoreError when it is not whole, after its sound
    part."""
    size = 0
    raw = received(source, transfer)
    with contextlib.closing(content(raw, transfer, what, gunzip=gunzip)) as chunks:
        for chunk in chunks:
            write_all(writer, chunk)
            size += len(chunk)
    return size


def _behind(file: Any, start: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The `start` bytes of a file, then the chunks; the first of which is waited for, as it may be refused."""
    _, chunks = _peek(chunks, 1)
    file.seek(0)
    while start > 0:
        chunk = file.read(min(CHUNK, start))
        if not chunk:
            raise StoreError("the partial file has become shorter")
        start -= len(chunk)
        yield chunk
    yield from chunks


def _flush(file: Any, start: int, stop: int) -> None:
    """Let the disk write a part of a file now, without waiting for it; where that can be said."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def _fill(new: NewFile, source: Source, transfer: Transfer, what: str, gunzip: bool) -> int:
    """Put an object into a new file, behind what an earlier run left of it, and prove all of it -> its bytes."""
    start = transfer.kept = new.find_part()
    position, flushed = 0, start
    raw = received(source, transfer, start, new.etag)
    raw = _behind(new.file, start, raw) if start else raw
    with contextlib.closing(content(raw, transfer, what, gunzip=gunzip)) as chunks:
        for chunk in chunks:
            if new.file is None:
                new.open_part(transfer.head.etag if transfer.head and not gunzip else "")
            write_all(new.file, chunk[max(0, start - position):] if position < start else chunk)
            position += len(chunk)
            if position - flushed >= FLUSH:
                _flush(new.file, flushed, position)
                flushed = position
    return position


def save_object(path: str, source: Source, transfer: Transfer, what: str, *, gunzip: bool, force: bool = False,
                named: bool = True) -> int:
    """Download an object into a new file -> its bytes; what an earlier run left is continued when it fits.

    The file appears whole or not at all; what a symbolic link points to is replaced, not the link. A device or FIFO
    that the user named is written to as it is. An object that changes meanwhile is begun anew. Raises Error naming the
    file, StoreError when the object is not whole, Unreachable when the line stays broken.
    """
    if named and is_special(path):
        with _special_file(path) as file:
            return write_object(source, file, transfer, what, gunzip=gunzip)
    restarts = 0
    with new_file(path, what, force=force, named=named) as new:
        while True:
            try:
                return _fill(new, source, transfer, what, gunzip)
            except StoreError as error:
                damaged = transfer.kept > 0 and not may_be_continued(error) and error.reason != "ObjectChanged"
                restarts += 1
                if restarts > RESTARTS or not (damaged or error.reason == "ObjectChanged"):
                    raise
                log.warning("%s; starting over", "what an earlier run left is damaged" if damaged else error)
            new.discard()
            transfer.head = transfer.failure = None
            transfer.stop.clear()

# ====================================================================================================
# 14. Controller — queue, feeders, workers, and how a decision is carried out
#
#     client-go's work queue (util/workqueue): a key that is added while it waits is there once; one added while it is
#     worked on comes again afterwards, so no two workers hold the same key. Delays are instants of the wall clock, for
#     they come from expirations; a waiting worker looks at it once a minute, so setting it does no lasting harm.
# ====================================================================================================

class Queue:
    """Keys to look at, now or at an instant (seconds since the epoch, as `clock` gives them)."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: OrderedDict = OrderedDict()           # keys to look at, in order
        self._working: Set[Any] = set()                    # keys that a worker holds; they may be in _ready again
        self._due: Dict[Any, float] = {}                   # key -> the one instant that counts for it
        self._heap: List[Tuple[float, Any]] = []           # (instant, key); outdated entries are skipped
        self._closed = False

    def add(self, key: Any) -> None:
        """Look at this key as soon as a worker is free; an instant said before still counts."""
        with self._changed:
            self._ready[key] = None
            self._changed.notify()

    def add_at(self, key: Any, instant: float) -> None:
        """Look at this key at an instant, infinity is never; of several instants the last one said counts."""
        with self._changed:
            if instant == math.inf:
                self._due.pop(key, None)
            elif self._due.get(key) != instant:
                self._due[key] = instant
                heapq.heappush(self._heap, (instant, key))
                self._changed.notify()

    def take(self, wait: bool = True) -> Any:
        """The next key, which is the caller's until `done`; None when closed or, without `wait`, when none is ready."""
        with self._changed:
            while not self._closed:
                pause = self._promote()
                key = next((key for key in self._ready if key not in self._working), None)
                if key is not None:
                    del self._ready[key]
                    self._working.add(key)
                    self._changed.notify()  # this worker may be long; another one must know the next instant
                if key is not None or not wait:
                    return key
                self._changed.wait(pause)
            return None

    def done(self, key: Any) -> None:
        """The caller has finished with a key that it took."""
        with self._changed:
            self._working.discard(key)
            self._changed.notify()

    def wake(self) -> None:
        """Look at the clock again, for whoever turned it."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Hand out nothing more; every waiting `take` returns None."""
        self._closed = True
        self.wake()

    def _promote(self) -> float:
        """Make the keys ready whose instant has come -> seconds until the next."""
        now, longest = self._clock(), 60.0
        while self._heap:
            instant, key = self._heap[0]
            counts = self._due.get(key) == instant
            if counts and instant > now:
                return min(instant - now, longest)
            heapq.heappop(self._heap)
            if counts:
                del self._due[key]
                self._ready[key] = None
        return longest


WORKERS = 4
SHORT_WATCH = 3.0                            # seconds; a watch that ends sooner and brought nothing counts as a failure
CACHE_LIFE, CACHE_SIZE = 5.0, 200            # seconds and entries; backups, locations, Secrets after a success

GONE = Outcome("leave", "it is gone")
CONFLICT = Outcome("leave", "it changed meanwhile", failed=True)


class Controller:
    """The state of one running controller for one namespace; everything in it can be lost without harm.

    `now` is its only clock; dry_run makes `run_once` print and change nothing, verify_urls fetches one byte with every
    URL before it is handed out; `allowed` are the files of this host that a location may name.
    """

    def __init__(self, api: Api, namespace: str, server: Server, *, now: Callable[[], datetime] = utc_now,
                 dry_run: bool = False, verify_urls: bool = False, allowed: Sequence[str] = ()) -> None:
        self.api, self.namespace, self.server, self.now = api, namespace, server, now
        self.dry_run, self.verify_urls, self.allowed = dry_run, verify_urls, allowed
        self.queue = Queue(lambda: now().timestamp())
        self.records: Dict[Key, Request] = {}             # newest copies, without their URLs
        self.versions: Dict[Resource, str] = {}           # where each watch goes on; absent: list anew
        self.with_subresource: Set[Resource] = set()      # kinds whose status is written to /status
        self.cache: Dict[Any, Tuple[datetime, Any]] = {}  # what was looked up lately, and until when
        self.streams: Dict[Resource, Response] = {}       # open watches, to be interrupted
        self.failures: Dict[Key, int] = {}                # how many looks in a row failed
        self.logged: Dict[Key, str] = {}                  # failures that the log has already
        self.warned = SaidOnce(1000)                      # rights and oddities that the log has already
        self.purses: Dict[Any, Purse] = {}                # keys had, by kind of plan, plan and region
        self.hosts = Hosts(WORKERS, FAILURE_PAUSE.total_seconds())
        self.events = dict.fromkeys(REQUEST_KINDS, 0)     # how many the watches have brought
        self.silence, self.stop_time = WATCH_SILENCE, 3.0  # seconds of a watch; of passes in hand in the end
        self.stop = threading.Event()

    def warn_once(self, texts: Iterable[str]) -> None:
        """Warn, unless the log has a sentence already."""
        for text in filter(self.warned.is_news, texts):
            log.warning("%s", text)

    def warn_of_missing_right(self, error: Error) -> None:
        """Say once which right is missing and which line of a Role grants it."""
        self.warn_once(error.hints if isinstance(error, ApiError) and error.status == 403 else ())

    def cached(self, name: Tuple[str, ...], read: Callable[[], Any]) -> Any:
        """What `read` gives, remembered for a few seconds after a success and never after a failure."""
        now = self.now()
        until, value = self.cache.get(name, (now, None))
        if until > now:
            return value
        value = read()
        if len(self.cache) >= CACHE_SIZE:
            self.cache.clear()
        self.cache[name] = (now + timedelta(seconds=CACHE_LIFE), value)
        return value

    def read_spec(self, resource: Resource, name: str, field: str, asked_by: str) -> str:
        """A name in the spec of a backup or restore; NotFound when there is no such object."""
        return self.cached((resource.kind, name), lambda: _name(self.api.get_wanted(
            resource, self.namespace, name, f"{resource.kind}NotFound", asked_by), "spec", field))

    def open_location(self, name: str, asked_by: str) -> Tuple[Location, Plan]:
        """A storage location, and where its keys come from; oddities are told once."""
        location = find_location(self.api, self.namespace, self.api.get_wanted(
            LOCATIONS, self.namespace, name, "StorageLocationNotFound", asked_by))
        self.warn_once(f"storage location {location.name!r}: {warning}" for warning in location.warnings)
        return open_location(self.api, self.namespace, location, self.allowed)

    def answer(self, request: Request) -> Outcome:
        """Artifact -> backup, for a restore the one it came from -> storage location -> keys -> signed URL.

        Raises InvalidRequest, NotFound or ConfigError with the reason that belongs on the request.
        """
        artifact = target_of(request.target_kind, request.target_name)
        backup, asked_by = request.target_name, "the request"
        if artifact.owner == RESTORES:
            backup, asked_by = self.read_spec(RESTORES, backup, "backupName", asked_by), f"restore {backup!r}"
        name = self.read_spec(BACKUPS, backup, "storageLocation", asked_by)
        location, plan = self.cached(("location", name), lambda: self.open_location(name, f"backup {backup!r}"))
        if len(self.purses) > CACHE_SIZE:
            self.purses.clear()
        purse = self.purses.setdefault((type(plan), plan, location.region), Purse())
        credentials = keys_from_purse(purse, plan, location.region, self.now(), wait=False)
        key = object_key(location.prefix, artifact, request.target_name)
        url, expires = sign(location, key, credentials, self.now(), timedelta(0))
        if self.verify_urls:
            verify_url(url, trust_in(location))
        return answer_download(request, key, url, expires)

    def answer_or_refuse(self, request: Request) -> Outcome:
        """Look up what is needed and sign, or say why not."""
        try:
            return self.answer(request)
        except Busy as error:
            return Outcome("leave", str(error), failed=True)
        except Error as error:
            self.warn_of_missing_right(error)
            return refuse_download(request, error, self.now())
        except Exception as error:  # a bug, too, must leave a reason and an end on the request that brings it out
            log.debug("answering %s", request.key, exc_info=True)
            return refuse_download(request, Error(f"unexpected {type(error).__name__}"), self.now())

    def remember(self, resource: Resource, document: Document) -> Tuple[Key, bool]:
        """Keep the newest copy of a request, without its URL -> its key, and whether it is worth a look now."""
        record = request_from(resource, document)._replace(url="")
        if record.key.namespace != self.namespace:
            return record.key, False  # not ours, whoever sent it
        old = self.records.get(record.key)
        self.records[record.key] = record
        return record.key, is_news(old, record)

    def write_status(self, key: Key, body: Document) -> None:
        """Send a merge patch of status and perhaps annotations to where the live CRD takes them.

        CRDs of Velero 1.6 to 1.8 have a status subresource, later ones do not, and upgrades leave them as they are.
        With one, a patch of the object drops the status without a word; without one, /status is a 404.
        """
        to_object = "annotations" in body["metadata"] or key.resource not in self.with_subresource
        for subresource in ("", "status") if to_object else ("status",):
            try:
                stored = self.api.merge_patch(key, body, subresource)
            except ApiError as error:
                if subresource and error.status == 404:  # the object is gone, or the CRD was replaced
                    self.with_subresource.discard(key.resource)
                raise
            if request_from(key.resource, stored).key != key:
                break  # whatever has answered, it was no API server
            if key in self.records:  # else the watch has brought its end already
                self.remember(key.resource, stored)
            status = body.get("status", {})
            if all(_at(stored, "status", name) == value for name, value in status.items()):
                return
            self.with_subresource.add(key.resource)
            body = {"metadata": {"resourceVersion": _text(stored, "metadata", "resourceVersion")}, "status": status}
        raise Error(f"the API server does not keep the status of {key}")

    def write_event(self, request: Request, outcome: Outcome) -> None:
        """Leave a core/v1 Event when an outcome puts a new reason on a request; without the right to, do without."""
        annotations = (outcome.body or {}).get("metadata", {}).get("annotations", {})
        if not annotations.get(REASON):
            return
        try:
            self.api.create(EVENTS, event_for(request, annotations[REASON], annotations[MESSAGE], self.now()))
        except Error as error:
            self.warn_of_missing_right(error)
            log.debug("no Event for %s: %s", request.key, error)

    def apply(self, request: Request, outcome: Outcome) -> None:
        """Carry out an outcome, unless in a dry run; a copy that was stale is an ApiError with status 409."""
        if outcome.verb == "patch" and not self.dry_run:
            self.write_status(request.key, outcome.body or {})
            self.write_event(request, outcome)
        elif outcome.verb == "delete" and not self.dry_run:
            self.api.delete(request.key, outcome.body)

    def reconcile_download_request(self, request: Request) -> Outcome:
        """One look at a DownloadRequest -> what was decided and done."""
        outcome = triage_download(request, self.now()) or self.answer_or_refuse(request)
        try:
            self.apply(request, outcome)
        except ApiError as error:
            if error.status != 422:
                raise
            outcome = fall_back_download(request, outcome, self.now())
            self.apply(request, outcome)
        return outcome

    def reconcile_server_status_request(self, request: Request) -> Outcome:
        """One look at a ServerStatusRequest -> what was decided and done."""
        outcome = decide_status(request, self.server, self.now())
        self.apply(request, outcome)
        return outcome

    def refresh(self, key: Key) -> Outcome:
        """Read an object whose copy turned out stale, for the event that brings a newer one may have come already."""
        try:
            self.remember(key.resource, self.api.get(key.resource, key.namespace, key.name))
            return CONFLICT
        except Error as error:
            if isinstance(error, ApiError) and error.status == 404:
                self.records.pop(key, None)
                return GONE
            return Outcome("leave", str(error), failed=True)

    def look_at(self, key: Key) -> Outcome:
        """One look at a key; whatever goes wrong becomes an outcome, so no object can stop a worker."""
        request = self.records.get(key)
        if request is None:
            return GONE
        _thread.hosts = self.hosts
        try:
            if key.resource == DOWNLOAD_REQUESTS:
                return self.reconcile_download_request(request)
            return self.reconcile_server_status_request(request)
        except Error as error:
            self.warn_of_missing_right(error)
            if isinstance(error, ApiError) and error.status in (404, 409):
                return self.refresh(key)
            return Outcome("leave", str(error), failed=True)
        except Exception as error:  # the fence: a bug that one object triggers must not cost the others their answer
            log.debug("looking at %s", key, exc_info=True)
            return Outcome("leave", f"unexpected {type(error).__name__}: {one_line(error)}", failed=True)
        finally:
            _thread.hosts = None

    def settle(self, key: Key, outcome: Outcome) -> None:
        """Turn an outcome into the next look: failed -> back-off, but not beyond `again`; again -> then; else never."""
        instant = outcome.again.timestamp() if outcome.again else math.inf
        failures = self.failures.pop(key, 0) + 1
        if outcome.failed:
            self.failures[key] = failures
            instant = min(instant, self.now().timestamp() + backoff(failures, RETRY_BASE, RETRY_CAP))
        self.queue.add_at(key, instant)

    def log_outcome(self, key: Key, outcome: Outcome) -> None:
        """Log an outcome, a failure only when it is another than last time; a dry run prints it instead."""
        text = redact(f"{key}: {outcome.verb}: {outcome.why}")
        if self.dry_run and outcome is not GONE:
            print(text, flush=True)
            return
        level = logging.DEBUG if outcome.verb == "leave" else logging.INFO
        if outcome.failed and outcome.why not in (CONFLICT.why, BUSY):
            why = outcome.why[:MESSAGE_LIMIT]
            level = logging.DEBUG if self.logged.get(key) == why else logging.WARNING
            self.logged[key] = why
        elif not outcome.failed:
            self.logged.pop(key, None)
        log.log(level, "%s", text)

    def work(self) -> None:
        """A worker: take a key, look at it, settle it, until the queue closes."""
        for key in iter(self.queue.take, None):
            outcome = self.look_at(key)
            self.log_outcome(key, outcome)
            self.settle(key, outcome)
            self.queue.done(key)

    def relist(self, resource: Resource) -> None:
        """List all requests of a kind anew: every one is looked at, one that is no longer there is dropped."""
        found, version = set(), ""
        for page in self.api.list_pages(resource, self.namespace, limit=PAGE_LIMIT):
            if not isinstance(_at(page, "items"), list):
                raise Unreachable(f"the cluster's answer is no list of {resource.plural}")
            version = _text(page, "metadata", "resourceVersion")
            found.update(self.remember(resource, document)[0] for document in page["items"])
            del page  # before the next one is read
        known = {key for key in list(self.records) if key.resource == resource}
        for key in known | found:
            if key not in found:
                self.records.pop(key, None)
            self.queue.add(key)
        self.versions[resource] = version

    def follow(self, resource: Resource) -> None:
        """Watch a kind until the watch ends."""
        response = self.api.open_watch(resource, self.namespace, self.versions[resource],
                                       seconds=random.uniform(*WATCH_SECONDS), silence=self.silence)
        self.streams[resource] = response
        if self.stop.is_set():
            interrupt(response)
        for kind, document in watch_events(response):
            self.events[resource] += 1
            if kind in ("ADDED", "MODIFIED"):
                key, news = self.remember(resource, document)
                if news:
                    self.queue.add(key)
            elif kind == "DELETED":
                key = request_from(resource, document).key
                self.records.pop(key, None)
                self.queue.add(key)
            self.versions[resource] = _text(document, "metadata", "resourceVersion")

    def feed_once(self, resource: Resource) -> Optional[Error]:
        """List if need be, then watch until the watch ends -> why, unless it ended by itself."""
        try:
            if resource not in self.versions:
                self.relist(resource)
            self.follow(resource)
            return None
        except Error as error:
            self.warn_of_missing_right(error)
            if isinstance(error, Unreachable) or is_version_expired(error) or getattr(error, "status", 0) == 404:
                self.versions.pop(resource, None)  # start from a list: who knows what the API server is now
            return error
        except Exception as error:  # the fence: without its feeder a controller looks healthy and is deaf
            log.debug("feeding %s", resource.plural, exc_info=True)
            return Error(f"unexpected {type(error).__name__}: {one_line(error)}")

    def feed(self, resource: Resource) -> None:
        """A feeder: list once, watch for ever, list anew when the API no longer has the version; never gives up.

        A watch that ended before it had lived or brought something is a failure, and followed by a back-off; only a
        version that expired is answered by a list at once, the first time.
        """
        failures, logged = 0, ""
        while not self.stop.is_set():
            started, before = time.monotonic(), self.events[resource]
            error = self.feed_once(resource)
            lived = time.monotonic() - started
            failures = 0 if self.events[resource] > before or lived > SHORT_WATCH else failures + 1
            if failures == 1 and is_version_expired(error):
                continue  # nothing is wrong, only the version is too old
            cures = error.hints if error and getattr(error, "status", 0) != 403 else ()
            trouble = "; ".join([str(error or "the watch ended at once"), *cures]) if failures else ""
            if trouble not in ("", logged) and not self.stop.is_set():
                log.warning("%s: %s; trying again", resource.plural, redact(trouble))
            logged = trouble
            self.stop.wait(watch_pause(failures, lived, not isinstance(error, Unreachable), random.uniform(1, 2)))

    def run_once(self) -> None:
        """Look once at every request that is there, again where another writer came in between."""
        for _ in range(5):
            for resource in REQUEST_KINDS:
                self.relist(resource)
            outcomes = []
            for key in iter(lambda: self.queue.take(wait=False), None):
                outcomes.append(self.look_at(key))
                self.log_outcome(key, outcomes[-1])
                self.queue.done(key)
            if CONFLICT not in outcomes:
                return


def run_controller(controller: Controller) -> None:
    """Serve both kinds of request until `controller.stop` is set; a pass in hand is finished, if it can be soon."""
    threads = [threading.Thread(target=controller.work, daemon=True) for _ in range(WORKERS)]
    threads += [threading.Thread(target=controller.feed, args=(resource,), daemon=True) for resource in REQUEST_KINDS]
    for thread in threads:
        thread.start()
    controller.stop.wait()
    deadline = time.monotonic() + controller.stop_time
    controller.queue.close()
    for response in list(controller.streams.values()):
        interrupt(response)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    controller.api.session.close()

# ====================================================================================================
# 15. Client — create, wait, stream, tidy up; or do without a controller
# ====================================================================================================

LIST_SIZE = 500                              # objects a page; Velero's own, not everybody's, are listed by a client
JSON_LIMIT = 16 << 20                        # bytes of a JSON artifact that a screen is made of
SCREEN_ELEMENTS = 200_000                    # and its elements, for each may become some lines
GIVE_UP_TIME = 1.0                           # seconds
NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # of Kubernetes' own random names, which spell no words


def get_owner(api: Api, owner: Resource, namespace: str, name: str) -> Document:
    """A backup or restore; NotFound when there is none."""
    try:
        return api.get(owner, namespace, name)
    except ApiError as error:
        if error.status != 404 or error.api_reason != "NotFound":
            raise
        raise NotFound(f"{owner.kind.lower()} \"{one_line(name, 64)}\" does not exist",
                       hints=[f"looked in namespace {namespace}; -n chooses another"]) from None


def require_owner(api: Api, owner: Resource, namespace: str, name: str) -> Document:
    """The backup or restore that a download is about, empty when it may not be read; NotFound when there is none."""
    try:
        return get_owner(api, owner, namespace, name)
    except ApiError as error:
        if error.status != 403:
            raise
        log.info("%s", error)
        return {}


def _work_off(todo: Any, results: List[Any]) -> None:
    """Run the tasks of a deque until it is empty."""
    while True:
        try:
            number, task = todo.popleft()
        except IndexError:
            return
        try:
            results[number] = task()
        except Error as error:
            results[number] = error
        except Exception as error:  # a thread cannot raise; whoever reads the results sees it
            log.info("raised at:", exc_info=True)
            results[number] = Error(f"unexpected {type(error).__name__}: {one_line(error)}")


def side_by_side(tasks: Iterable[Callable[[], Any]], give_up: Callable[[], None] = lambda: None) -> List[Any]:
    """Run tasks in at most POOL_SIZE threads -> what each returned or the Error that it raised, in their order.

    When the caller is interrupted, no further task begins and `give_up` shall end those that run.
    """
    todo = deque(enumerate(tasks))
    results: List[Any] = [None] * len(todo)
    threads = [threading.Thread(target=_work_off, args=(todo, results), daemon=True)
               for _ in range(min(len(todo), POOL_SIZE))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        todo.clear()
        give_up()
        deadline = time.monotonic() + GIVE_UP_TIME
        for thread in [thread for thread in threads if thread.is_alive()]:  # not each need have begun
            thread.join(max(0.0, deadline - time.monotonic()))
        raise
    return results


def list_all(api: Api, resource: Resource, namespace: str, selector: str = "") -> Tuple[List[Document], str]:
    """The objects that a label selector chooses, in the API's order, and the version of the list."""
    documents: List[Document] = []
    version = ""
    for page in api.list_pages(resource, namespace, selector, LIST_SIZE):
        items = _at(page, "items")
        documents += [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        version = version or _text(page, "metadata", "resourceVersion")
    return documents, version


def find_documents(api: Api, resource: Resource, namespace: str, names: List[str], selector: str
                   ) -> Tuple[List[Document], str]:
    """Backups or restores in the order named, else those that a selector chooses, and the version of the list."""
    if not names:
        try:
            return list_all(api, resource, namespace, selector)
        except ApiError as error:
            if error.status != 400 or not selector:
                raise
            raise UsageError(f"the cluster does not understand the selector {one_line(selector, 200)!r}: {error}"
                             ) from None
    documents = side_by_side(functools.partial(get_owner, api, resource, namespace, name) for name in names)
    for document in documents:
        if isinstance(document, Error):
            raise document
    return documents, ""


def random_suffix() -> str:
    """What no other request's name ends with, as API servers make it up for a generateName."""
    return "".join(NAME_LETTERS[byte % len(NAME_LETTERS)] for byte in os.urandom(5))


def refused_request(error: ApiError, document: Document) -> Error:
    """Why a request was not created, with a cure when the cluster's CRDs do not know what is asked for."""
    kind = _text(document, "spec", "target", "kind")
    if error.status != 422 or not kind:
        return error
    return Error(f"the cluster does not know {document['kind']}s of kind {kind}: {error}", reason="UnknownKind", hints=[
        "its CRDs are of another version of Velero than that kind; the kinds they know are named above"])


def tidy_away(api: Api, key: Key) -> None:
    """Delete a request; without the right to it is left to the controller, which deletes it when it expires."""
    try:
        if api.hasty().delete(key):
            log.info("deleted %s", key)
    except Error as error:
        log.info("%s stays until it expires: %s", key, error)


@contextlib.contextmanager
def created(api: Api, resource: Resource, document: Document) -> Iterator[Document]:
    """Create a request for as long as the context lasts; it is deleted in the end, also on failure and Ctrl-C.

    Its name is known before, so a create whose answer never came is tidied up after, too.
    """
    key = Key(resource, document["metadata"]["namespace"], document["metadata"]["name"])
    with contextlib.ExitStack() as end:
        end.callback(tidy_away, api, key)
        try:
            stored = api.create(resource, document)
        except ApiError as error:
            if error.status < 500:
                end.pop_all()                # it was refused, so there is nothing to delete
            raise refused_request(error, document) from None
        if _text(stored, "metadata", "name") != key.name:
            raise Unreachable(f"the cluster answered the creation of {key} with something else")
        log.info("created %s", key)
        yield stored


def _deleted(key: Key) -> Error:
    return Error(f"{key} was deleted by somebody else before it was answered")


def _watch_until(api: Api, key: Key, version: str, is_done: Callable[[Document], bool], seconds: float
                 ) -> Optional[Document]:
    """Follow one object after a version -> its first copy that is done, None when the watch ended before."""
    deadline = time.monotonic() + seconds
    response = api.open_watch(key.resource, key.namespace, version, seconds=seconds, name=key.name, silence=seconds)
    with contextlib.closing(watch_events(response)) as events:
        for kind, document in events:
            if _text(document, "metadata", "name") != key.name:
                continue
            if kind == "DELETED":
                raise _deleted(key)
            if kind in ("ADDED", "MODIFIED") and is_done(document):
                return document
            if time.monotonic() > deadline:
                break
    return None


def _read_again(api: Api, key: Key, document: Document) -> Document:
    """The object as it is now, or the copy in hand when the cluster has only a passing trouble."""
    try:
        return api.get(key.resource, key.namespace, key.name)
    except ApiError as error:
        if error.status == 404:
            raise _deleted(key) from None
        if error.status not in RETRY_STATUS:
            raise
        log.info("%s", error)
    except Unreachable as error:
        log.info("%s", error)
    return document


def wait_for(api: Api, resource: Resource, document: Document, is_done: Callable[[Document], bool], *,
             seconds: float, poll: float) -> Document:
    """Wait until an object is done -> its newest copy.

    A watch tells without delay; where it is not allowed or breaks off, the object is read every `poll` seconds.
    `is_done` may raise to end the waiting. Raises TimedOut after `seconds`.
    """
    deadline = time.monotonic() + seconds
    key = Key(resource, _text(document, "metadata", "namespace"), _text(document, "metadata", "name"))
    may_watch = True
    while not is_done(document):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimedOut(f"nobody answered {key} within {format_duration(seconds)}")
        try:
            version = _text(document, "metadata", "resourceVersion")
            answered = _watch_until(api, key, version, is_done, left) if may_watch else None
            if answered is not None:
                return answered
        except (ApiError, Unreachable) as error:
            log.info("reading every %s instead of watching: %s", format_duration(poll), error)
        may_watch = False  # the watch was refused, broke off, or ended before its time
        time.sleep(max(0.0, min(poll, deadline - time.monotonic())))
        document = _read_again(api, key, document)
    return document


def _has_url(document: Document) -> bool:
    """Whether a DownloadRequest is answered; a reason that a controller left is raised, for waiting is in vain."""
    request = request_from(DOWNLOAD_REQUESTS, document)
    if not request.url and request.reason:
        message = one_line(redact(request.message or request.reason))
        raise RequestFailed(f"{request.target_kind} of {request.target_name}: {message}",
                            reason=one_line(request.reason, 64))
    return bool(request.url)  # whatever the phase: the velero CLI's own test


def answered_url(api: Api, stored: Document, timeout: float) -> str:
    """The pre-signed URL that a DownloadRequest is answered with."""
    asked = request_from(DOWNLOAD_REQUESTS, stored)
    with api.waiting(f"the URL of {asked.target_kind} of {asked.target_name}", timeout):
        document = wait_for(api, DOWNLOAD_REQUESTS, stored, _has_url, seconds=timeout, poll=URL_POLL)
    url = request_from(DOWNLOAD_REQUESTS, document).url
    log.info("%s is answered; the store is %s", asked.key, one_line(redact("/".join(url.split("/", 3)[:3]))))
    return url


def get_download_url(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0) -> str:
    """A URL that anybody may GET for about ten minutes: a bearer token. Raises as `read_artifact`."""
    target_of(kind, name)
    with created(api, DOWNLOAD_REQUESTS, new_download_request(namespace, kind, name, random_suffix())) as stored:
        return answered_url(api, stored, timeout)


def read_location_name(api: Api, namespace: str, artifact: Artifact, name: str) -> str:
    """The storage location that an artifact lies in: that of its backup, for a restore's of the one it came from."""
    owner = get_owner(api, artifact.owner, namespace, name)
    backup = get_owner(api, BACKUPS, namespace, _name(owner, "spec", "backupName")
                       ) if artifact.owner == RESTORES else owner
    return _name(backup, "spec", "storageLocation")


def find_trust(api: Api, namespace: str, artifact: Artifact, name: str) -> Trust:
    """Whom to trust for a store: the location's own caCert, as the velero CLI does since 1.17; else only the system."""
    try:
        location = location_from(api.get(LOCATIONS, namespace, read_location_name(api, namespace, artifact, name)))
        return client_trust(with_authority(api, namespace, location))
    except Error as error:
        log.info("the storage location's caCert is not used: %s", error)
        return Trust()


@contextlib.contextmanager
def requested_source(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0,
                     trust: Optional[Trust] = None, idle: float = IDLE_LIMIT) -> Iterator[Source]:
    """An artifact by way of a DownloadRequest, and of another one when its URL has expired.

    The last request lives as long as the context. Arguments and errors as `read_artifact`.
    """
    artifact = target_of(kind, name)
    with contextlib.ExitStack() as requests:

        def locate(_skew: timedelta) -> Tuple[str, Trust]:
            requests.close()
            stored = requests.enter_context(
                created(api, DOWNLOAD_REQUESTS, new_download_request(namespace, kind, name, random_suffix())))
            url = answered_url(api, stored, timeout)
            return url, trust_for(url, trust, lambda: find_trust(api, namespace, artifact, name))

        yield url_source(locate, idle=idle)


def read_artifact(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0,
                  trust: Optional[Trust] = None, idle: float = IDLE_LIMIT) -> Iterator[bytes]:
    """The content of an artifact in chunks: BackupContents as stored and proven whole gzip, all others inflated.

    timeout: seconds to wait for the URL; the transfer may take as long as bytes come, with no more than `idle` seconds
    between them. A line that breaks is taken up again at the same byte. trust: None asks the location. Close the
    generator (`contextlib.closing`) to tidy up early. Raises InvalidRequest for a target that cannot exist,
    RequestFailed with the controller's reason, TimedOut, ApiError, StoreError or Unreachable.
    """
    transfer, gunzip = Transfer(), target_of(kind, name).gunzip
    with requested_source(api, namespace, kind, name, timeout=timeout, trust=trust, idle=idle) as source:
        yield from content(received(source, transfer), transfer, f"{kind} of {name}", gunzip=gunzip)


def stream(api: Api, namespace: str, kind: str, name: str, writer: BinaryIO, *, timeout: float = 60.0,
           trust: Optional[Trust] = None, idle: float = IDLE_LIMIT) -> None:
    """Write an artifact into a writer, which stays open; arguments and errors as `read_artifact`.

    What the writer raises comes out as it is.
    """
    how = {"timeout": timeout, "trust": trust, "idle": idle}
    with contextlib.closing(read_artifact(api, namespace, kind, name, **how)) as chunks:
        for chunk in chunks:
            write_all(writer, chunk)


class Bucket(NamedTuple):
    """A bucket that is read without anybody's help; keys are whole, Velero's prefix in it included."""

    prefix: str
    source: Callable[[str], Source]
    url: Callable[[str], str]
    folders: Callable[[str], List[str]]      # the names directly under a key that ends in a slash


LISTING_PAGES = 1000                         # of 1,000 names each
LISTING_LIMIT = 16 << 20                     # bytes of a page, or of a velero-backup.json


def collected(chunks: Iterable[bytes], limit: int, more: str = "", hints: Iterable[str] = ()) -> bytearray:
    """All chunks in one; StoreError when they are more than `limit` bytes."""
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if len(found) > limit:
            raise StoreError(f"it is larger than {limit >> 20} MiB{more}", hints=hints)
    return found


def read_small(source: Source, what: str) -> bytearray:
    """The whole of a small object; StoreError when it is not small."""
    with about(what):
        return collected(received(source, Transfer()), LISTING_LIMIT)


def store_bucket(location: Location, plan: Plan, trust: Trust, *, idle: float = IDLE_LIMIT) -> Bucket:
    """A location's bucket in its store; keys are had from the plan when they are needed, and renewed."""
    purse = Purse()

    def url(key: str, skew: timedelta = timedelta(0), more: Tuple[Tuple[str, str], ...] = ()) -> str:
        now = utc_now()
        return sign(location, key, keys_from_purse(purse, plan, location.region, now), now, skew, more)[0]

    def source(key: str, more: Tuple[Tuple[str, str], ...] = ()) -> Source:
        return url_source(lambda skew: (url(key, skew, more), trust), idle=idle)

    def folders(key: str) -> List[str]:
        names, token, what = [], "", f"the listing of bucket {location.bucket!r}"
        for _ in range(LISTING_PAGES):
            more = {"list-type": "2", "delimiter": "/", "prefix": key, "continuation-token": token}
            page = read_small(source("", tuple(item for item in more.items() if item[1])), what)
            if b"<ListBucketResult" not in page or b"</ListBucketResult>" not in page:
                raise StoreError(f"{what} is not one but {_what_is(bytes(page[:512]))}")
            found, following = listed_prefixes(page)
            names += [name[len(key):].rstrip("/") for name in found if name.startswith(key)]
            if not following:
                return names
            if following == token:
                break
            token = following
        raise StoreError(f"{what} has no end")

    return Bucket(location.prefix, source, url, folders)


def folder_bucket(path: str) -> Bucket:
    """A folder that holds a copied bucket: `backups` and `restores` are in it."""
    hints = () if os.path.isdir(os.path.join(path, "backups")) else ("name the folder that holds the folder backups",)

    def refuse_url(_key: str) -> str:
        raise UsageError(f"there is no URL of what lies in the folder {path}")

    def folders(key: str) -> List[str]:
        folder = os.path.join(path, key)
        try:
            return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        except PermissionError as error:
            raise unreadable(folder, error) from error
        except OSError as error:
            raise NotFound(f"cannot read the folder {folder}: {error.strerror}", hints=hints) from error

    return Bucket("", lambda key: file_source(os.path.join(path, key), hints), refuse_url, folders)


LOCATION_LIMIT = 1 << 20                     # bytes
_LOCATION_TEXTS = {"": ("provider",), "objectStorage": ("bucket", "prefix", "caCert"), "credential": ("name", "key")}


def check_location_texts(spec: Any, where: str) -> None:
    """Raise ConfigError for a value of a storage location's spec that is no text, such as an unquoted `true`."""
    spec = Entry(spec, "", f"{where}: spec")
    config = Entry(spec.get("config", dict), "", f"{where}: spec.config")
    for name, fields in (*_LOCATION_TEXTS.items(), ("config", config.fields)):
        entry = Entry(spec.get(name, dict), "", f"{where}: spec.{name}") if name else spec
        for field in fields:
            entry.get(field)


def location_of_file(path: str, *, opened: bool) -> Location:
    """A storage location from a file of YAML or JSON: the whole object, or its spec alone.

    opened: whether the caller has credentials for it; a Secret is not to be had, and that is said before AWS is asked.
    """
    what = f"storage location file {path}"
    document = parse_yaml(read_file(path, "storage location file", LOCATION_LIMIT), what, LOCATION_LIMIT)
    if not isinstance(document, dict):
        raise ConfigError(f"storage location file {path} is no BackupStorageLocation and no spec of one")
    kind = _text(document, "kind") or LOCATIONS.kind
    if kind != LOCATIONS.kind:
        raise ConfigError(f"storage location file {path} holds an object of kind {one_line(kind, 64)!r}; expected is a "
                          "BackupStorageLocation, or its spec", hints=[
                              "`kubectl -n velero get backupstoragelocation NAME -o yaml` prints one"])
    document = document if "spec" in document else {"spec": document}
    document = {**document, "metadata": {"name": _text(document, "metadata", "name") or os.path.basename(path)}}
    check_location_texts(document["spec"], what)
    if _at(document, "spec", "objectStorage", "caCertRef"):
        raise ConfigError(f"storage location file {path} names a Secret in caCertRef, and no cluster is asked",
                          hints=["put the certificate into objectStorage.caCert, or name a file with --cacert"])
    secret = "" if opened else location_from(document).secret_name
    if secret:
        raise CredentialsError(f"storage location file {path} names the Secret {secret!r}, and no cluster is asked",
                               hints=["name a file with what the Secret holds: --credentials-file FILE"])
    return find_location(None, "", document, trusted=True)


def location_of_artifact(api: Api, namespace: str, artifact: Artifact, name: str) -> Location:
    """The storage location that an artifact lies in, read with the caller's own rights."""
    location = read_location_name(api, namespace, artifact, name)
    try:
        document = api.get(LOCATIONS, namespace, location)
    except ApiError as error:
        if error.status != 404:
            raise
        raise NotFound(f"storage location {location!r} does not exist; {artifact.owner.kind.lower()} {name!r} is in it",
                       hints=["--location FILE says where the bucket is"]) from None
    return find_location(api, namespace, document)


def read_backups(bucket: Bucket, where: str, troubles: List[Error]) -> List[Document]:
    """The Backups in a bucket, as Velero left them there in velero-backup.json; what is none is passed over.

    `where` names the bucket in errors; one that hides a single backup is left in `troubles`.
    """
    root = object_key(bucket.prefix, Artifact("", BACKUPS, "backups/"), "")
    backups = []
    for name in filter(is_object_name, bucket.folders(root)):
        what = f"backup {one_line(name, 64)!r} in {where}"
        try:
            document = parse_json(read_small(bucket.source(f"{root}{name}/velero-backup.json"), what))
        except (NotFound, ValueError, StoreError) as error:
            if isinstance(error, StoreError) and error.status != 404:
                troubles.append(error)
            else:
                log.info("%s is passed over: %s", what, one_line(error))
            continue
        if isinstance(_at(document, "metadata"), dict):
            backups.append({**document, "metadata": {**document["metadata"], "name": name}})
    return backups


class Reading(NamedTuple):
    """How JSON artifacts are read, and which requests are in the cluster for them meanwhile."""

    api: Api
    namespace: str
    timeout: float
    trusted: Callable[[str], Trust]          # whom to trust behind a URL
    opened: Dict[str, Key]
    given_up: threading.Event


def new_reading(api: Api, namespace: str, resource: Resource, name: str, timeout: float, trust: Optional[Trust]
                ) -> Reading:
    """The reading of one object's artifacts; the location is asked for its authority once, and only for https."""
    artifact = next(row for row in TARGETS.values() if row.owner == resource)
    asking = threading.Lock()                # a cache alone lets all threads ask at once

    @functools.lru_cache(maxsize=None)
    def location_trust() -> Trust:
        return find_trust(api, namespace, artifact, name)

    def ask() -> Trust:
        with asking:
            return location_trust()

    return Reading(api, namespace, timeout, lambda url: trust_for(url, trust, ask), {}, threading.Event())


def give_up(reading: Reading) -> None:
    """Delete the requests that are open, which ends whoever waits for an answer to them."""
    reading.given_up.set()
    for key in list(reading.opened.values()):
        tidy_away(reading.api, key)


def decode_json(chunks: Iterable[bytes]) -> Any:
    """The JSON in an artifact; StoreError for what is none, or too large to be held in memory."""
    hints = [f"`{PROGRAM} download NAME --kind KIND -o FILE` fetches it into a file"]
    found = collected(chunks, JSON_LIMIT, ", too large to be shown", hints)
    try:
        return parse_json(found, SCREEN_ELEMENTS)
    except TooMuch as error:
        raise StoreError(f"it {error}, too large to be shown", hints=hints) from None
    except ValueError:
        raise StoreError(f"it is not JSON but {_what_is(bytes(found[:512]))}") from None


def _read_json(reading: Reading, kind: str, name: str) -> Any:
    api, request = reading.api, new_download_request(
        reading.namespace, target_of(kind, name).kind, name, random_suffix())
    with created(api, DOWNLOAD_REQUESTS, request) as stored:
        key = Key(DOWNLOAD_REQUESTS, reading.namespace, _text(stored, "metadata", "name"))
        reading.opened[key.name] = key
        try:
            if reading.given_up.is_set():
                raise Error(f"{kind} of {name}: interrupted")
            url = answered_url(api, stored, reading.timeout)
            with about(f"{kind} of {name}"), open_url(url, reading.trusted(url)) as response:
                return decode_json(inflate(unframed(read_body(response))))
        finally:
            del reading.opened[key.name]


def read_json(reading: Reading, kind: str, name: str) -> Any:
    """The decoded content of a JSON artifact; errors as `read_artifact`, a kind the cluster does not know is absent."""
    try:
        return _read_json(reading, kind, name)
    except Error as error:
        if error.reason != "UnknownKind":
            raise
        raise NotFound(str(error), reason=error.reason) from None


def _read_related(api: Api, namespace: str, resource: Resource, selector: str) -> List[Document]:
    """Objects that belong to another one; a kind that the cluster does not serve has none."""
    try:
        return list_all(api, resource, namespace, selector)[0]
    except ApiError as error:
        if error.status != 404:
            raise
        log.info("%s", error)
        return []


def read_screen(reading: Reading, resource: Resource, document: Document, kinds: List[str]
                ) -> Tuple[Dict[Resource, Any], Dict[str, Any]]:
    """What a screen shows of an object besides itself, all read at once: related objects and artifacts by kind.

    An Error stands in the place of what could not be read.
    """
    name, related = _text(document, "metadata", "name"), related_of(resource, document)
    lists = [functools.partial(_read_related, reading.api, reading.namespace, *row) for row in related]
    end = functools.partial(give_up, reading)
    found = side_by_side([*(functools.partial(read_json, reading, kind, name) for kind in kinds), *lists], end)
    artifacts = dict(zip(kinds, found))
    if is_missing(artifacts.get("BackupVolumeInfos")):
        older = legacy_artifacts_of(document)
        artifacts.update(zip(older, side_by_side(
            (functools.partial(read_json, reading, kind, name) for kind in older), end)))
    return {row: items for (row, _), items in zip(related, found[len(kinds):])}, artifacts


def get_server_status(api: Api, namespace: str, *, timeout: float = 5.0) -> Document:
    """The answered ServerStatusRequest: status.serverVersion and status.plugins. Raises TimedOut or ApiError."""
    with created(api, STATUS_REQUESTS, new_status_request(namespace, random_suffix())) as stored:
        with api.waiting("the server's status", timeout):
            return wait_for(api, STATUS_REQUESTS, stored, seconds=timeout, poll=STATUS_POLL,
                            is_done=lambda document: _text(document, "status", "phase") == PROCESSED)

# ====================================================================================================
# 16. Doctor — why nobody answered: checks, each one sentence with its cure
# ====================================================================================================

def check_server(api: Api, namespace: str) -> str:
    """What is wrong with Velero's Deployment; empty when it has a ready pod."""
    try:
        deployment = api.get_wanted(DEPLOYMENTS, namespace, "velero", "DeploymentNotFound", "the server")
    except NotFound:
        return (f"there is no Deployment velero in namespace {namespace}: is Velero in another namespace (-n)? "
                "or start `velero_requests.py controller`")
    if _at(deployment, "status", "readyReplicas"):
        return ""
    return (f"the Deployment {namespace}/velero has no ready pod: "
            f"see `kubectl -n {namespace} get pods` and `kubectl -n {namespace} logs deployment/velero`")


def check_location(api: Api, namespace: str, artifact: Artifact, name: str) -> str:
    """What is wrong with the storage location behind an artifact; empty when it is available."""
    location = read_location_name(api, namespace, artifact, name)
    try:
        trouble = location_trouble_from(api.get_wanted(
            LOCATIONS, namespace, location, "StorageLocationNotFound", f"the backup of {name!r}"))
    except NotFound:
        trouble = "it does not exist"
    return trouble and (f"storage location {location!r} is not available: {trouble}: "
                        f"see `kubectl -n {namespace} describe backupstoragelocation`")


def silence_hints(api: Api, namespace: str, artifact: Optional[Artifact] = None, name: str = "") -> List[str]:
    """Why a request got no answer, as far as the caller's rights let it be seen; at least one sentence."""
    api, found, blind = api.hasty(), [], False
    for check in [lambda: check_server(api, namespace),
                  lambda: check_location(api, namespace, artifact, name) if artifact else ""]:
        try:
            found.append(check())
        except Unreachable as error:
            return [f"{error}: try again when the cluster is less busy"]
        except Error as error:
            log.info("a check could not be made: %s", error)
            blind = True
    if blind and not any(found):
        return ["the reason cannot be seen with your rights: -v says what could not be looked at"]
    return list(filter(None, found)) or [
        "the server is there but did not take up the request: "
        f"see its log (`kubectl -n {namespace} logs deployment/velero`) or wait longer with --timeout"]

# ====================================================================================================
# 17. Command line — the COMMANDS table, the parser made from it, main
# ====================================================================================================

Options = argparse.Namespace
LONGEST_WAIT = 366 * 86400.0                 # seconds; sockets take no more than a few years
SECOND_WAIT = 1.0                            # seconds for further screens once nobody has answered
WAIT_UNSEEN = 1.0                            # seconds that nobody needs an explanation for
PROGRESS_REDRAW, PROGRESS_PLAIN = 0.2, 10.0  # seconds between two tellings of progress, on a terminal and elsewhere


def find_namespace() -> str:
    """Velero's namespace when -n does not say: VELERO_NAMESPACE, else the velero CLI's configuration, else velero."""
    return os.environ.get("VELERO_NAMESPACE") or _text(read_velero_config(), "namespace") or DEFAULT_NAMESPACE


def say(text: str, end: str = "\n") -> None:
    """Write to stderr; when that cannot take it, such as on a full disk, the exit code has to do."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + end)
        sys.stderr.flush()


class Meter:
    """A line on stderr about what goes on: redrawn on a terminal, else written anew now and then.

    `text` makes it of the seconds that have passed; while it is empty, nothing is shown.
    """

    def __init__(self, text: Callable[[float], str]):
        self.text, self.began = text, time.monotonic()
        self.terminal, self.drawn = sys.stderr.isatty(), False
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.draw, daemon=True)

    def draw(self) -> None:
        """Show it until it is over."""
        while not self.over.wait(PROGRESS_REDRAW if self.terminal else PROGRESS_PLAIN):
            text = self.text(self.seconds())
            if text:
                self.drawn = True
                say(*((f"\r{text[:self.columns() - 1]}\x1b[K", "") if self.terminal else (text,)))

    def columns(self) -> int:
        """How wide the terminal is."""
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(sys.stderr.fileno()).columns or 80
        return 80

    def seconds(self) -> float:
        """How long it has been going on."""
        return time.monotonic() - self.began

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self.over.set()
        self.thread.join()
        if self.terminal and self.drawn:
            say("\r\x1b[K", "")


@contextlib.contextmanager
def shown(what: str, seconds: float) -> Iterator[None]:
    """On a terminal, say from the second second on for what we wait and for how long still."""
    if not sys.stderr.isatty():
        yield
        return
    meter = Meter(lambda passed: "" if passed < WAIT_UNSEEN else
                  f"waiting for {one_line(what)}, at most {format_duration(max(0, round(seconds - passed)))} more")
    meter.thread.start()
    try:
        yield
    finally:
        meter.stop()


def api_of(options: Options) -> Api:
    """The cluster that the flags name."""
    api = connect(load_cluster(options.kubeconfig, options.context))
    log.info("the cluster is %s, the namespace %s", redact(one_line(api.session.cluster.server)), options.namespace)
    return api if getattr(options, "quiet", False) else api._replace(waiting=shown)


def trust_of(options: Options) -> Optional[Trust]:
    """What --insecure-skip-tls-verify and --cacert or velero's configuration say; None leaves it to the location."""
    if options.insecure_skip_tls_verify:
        return Trust(insecure=True)
    path = options.cacert or _text(read_velero_config(), "cacert")
    if not path:
        return None
    trust = Trust(read_file(path, "certificate authority"), source=f"the certificate authority {path}")
    tls_context(trust.ca_cert, system=False, source=trust.source)  # to fail before anything is asked of anybody
    return trust


@contextlib.contextmanager
def explained(api: Api, namespace: str, artifact: Optional[Artifact] = None, name: str = "") -> Iterator[None]:
    """When nobody answers, say why as far as it can be seen."""
    try:
        yield
    except TimedOut as error:
        hints = silence_hints(api, namespace, artifact, name)
        if artifact:
            hints.append("--direct needs no controller: it reads location and Secret with your own rights")
        raise TimedOut(str(error), hints=hints) from None


def write_text(text: str) -> None:
    """A command's result, and nothing else, goes to stdout."""
    sys.stdout.write(text)


def report(error: Error) -> int:
    """Say what went wrong, on stderr -> the exit code."""
    for line in [f"error: {error}", *(f"hint: {hint}" for hint in error.hints)]:
        say(one_line(redact(line), 4096))
    return error.exit


def stop_on_signals(controller: Controller) -> None:
    """SIGTERM and SIGINT finish the passes in hand and leave; a second one leaves at once."""

    def stop(number: int, _frame: Any) -> None:
        signal.signal(number, signal.SIG_DFL)
        controller.stop.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def read_plugins_file(path: str) -> Tuple[Tuple[str, str], ...]:
    """A YAML list of name and kind, as in status.plugins -> (kind, name) pairs."""
    if not path:
        return ()
    entries = parse_yaml(read_file(path, "plugins file", KUBECONFIG_LIMIT), f"plugins file {path}")
    if not isinstance(entries, list) or not all(_text(entry, "kind") and _text(entry, "name") for entry in entries):
        raise ConfigError(f"plugins file {path} is no YAML list of entries with name and kind")
    return tuple((_text(entry, "kind"), _text(entry, "name")) for entry in entries)


def cmd_controller(options: Options) -> int:
    """Serve until told to stop, or once."""
    declared = tuple(options.plugin or ()) + read_plugins_file(options.plugins_file)
    own = tuple(plugin for plugin in OWN_PLUGINS if plugin not in declared)
    server = Server(options.server_version or f"v{__version__}", own + declared)
    api, namespace = api_of(options), options.namespace
    missing = {resource.plural for resource in REQUEST_KINDS} - set(api.served_resources("velero.io/v1"))
    if missing:
        log.warning("the cluster does not serve %s yet; `%s manifests | kubectl apply -f -` installs the CRDs",
                    " and ".join(sorted(missing)), PROGRAM)
    controller = Controller(api, namespace, server, dry_run=options.dry_run, verify_urls=options.verify_urls,
                            allowed=options.allow_credentials_file)
    if options.once or options.dry_run:
        controller.run_once()
        return Exit.DONE
    stop_on_signals(controller)
    log.info("serving DownloadRequests and ServerStatusRequests of namespace %s at %s", namespace,
             redact(api.session.cluster.server))
    run_controller(controller)
    log.info("stopped")
    return Exit.DONE


def without_controller(options: Options) -> bool:
    """Whether the command line asks for the store itself; UsageError for keys that nobody would use."""
    direct = options.direct or bool(options.location)
    if options.credentials_file and not direct:
        raise UsageError("--credentials-file says nothing without --direct or --location", hints=["add --direct"])
    return direct


def bucket_of(options: Options, location: Location, api: Optional[Api]) -> Bucket:
    """A location's bucket, opened by --credentials-file, else by the location's Secret, else by the environment."""
    trust = trust_of(options) or client_trust(location)
    if options.credentials_file:
        location = location._replace(secret_name="", credentials_file=options.credentials_file, trusted=True)
    try:
        location, plan = open_location(api, options.namespace, location, options.allow_credentials_file)
    except Error as error:
        if isinstance(error, ApiError) or error.reason == FOREIGN_ENDPOINT:
            error.hints += ("name a file with what the Secret holds: --credentials-file FILE",)
        raise
    log.info("the store is %s, the bucket %s", one_line(redact(bucket_address(location).host)),
             one_line(location.bucket))
    return store_bucket(location, plan, trust, idle=options.idle_timeout)


def bucket_of_file(options: Options) -> Optional[Bucket]:
    """The bucket that --location says; None without it."""
    if not options.location:
        return None
    if os.path.isdir(options.location):
        return folder_bucket(options.location)
    return bucket_of(options, location_of_file(options.location, opened=bool(options.credentials_file)), None)


def bucket_of_artifact(options: Options, artifact: Artifact, api: Optional[Api]) -> Bucket:
    """The bucket that an artifact lies in, found without a controller, and without a cluster when there is no `api`."""
    if not is_object_name(options.name):
        raise NotFound(f"{artifact.owner.kind.lower()} {one_line(options.name, 64)!r} cannot exist")
    if api is None:
        bucket = bucket_of_file(options)
        assert bucket, "without a cluster there is --location"
        return bucket
    return bucket_of(options, location_of_artifact(api, options.namespace, artifact, options.name), api)


def owner_of(options: Options, kind: str) -> Optional[Api]:
    """The way to the cluster, where the owner of an artifact exists and has what is asked for; None with --location."""
    artifact, name = TARGETS[kind], options.name
    if options.location:
        return None
    api = api_of(options)
    try:
        document = require_owner(api, artifact.owner, options.namespace, name)
    except Unreachable as error:
        error.hints += ("--location FILE and --credentials-file FILE need no cluster",)
        raise
    phase = _text(document, "status", "phase")
    refusal = logs_refusal(artifact.owner, name, phase) if options.is_log and document else ""
    if refusal:
        raise Error(refusal)
    return api


def way_to(options: Options, kind: str) -> Tuple[Optional[Api], Optional[Bucket]]:
    """The cluster in which to ask for an artifact, or without a controller the bucket it lies in."""
    direct, api = without_controller(options), owner_of(options, kind)
    log.info("the way: %s", "the storage location, signed for here" if direct else "a controller's answer")
    return (None, bucket_of_artifact(options, TARGETS[kind], api)) if direct else (api, None)


@contextlib.contextmanager
def source_of(options: Options, kind: str) -> Iterator[Source]:
    """An artifact as the command line wants it had: by a controller's help or without."""
    artifact, namespace, name, trust = TARGETS[kind], options.namespace, options.name, trust_of(options)
    api, bucket = way_to(options, kind)
    if bucket:
        yield bucket.source(object_key(bucket.prefix, artifact, name))
        return
    with explained(api, namespace, artifact, name), requested_source(
            api, namespace, kind, name, timeout=options.timeout, trust=trust, idle=options.idle_timeout) as source:
        yield source


@contextlib.contextmanager
def metered(options: Options, transfer: Transfer, output: str) -> Iterator[Callable[[int], None]]:
    """Show a transfer as it goes on, unless nobody wants to see it -> what tells its end."""
    if options.quiet or (output == "-" and (sys.stdout.isatty() or not sys.stderr.isatty())):
        yield lambda size: None
        return
    meter = Meter(lambda seconds: progress_text(
        transfer.done, transfer.head.size, max(0, transfer.done - transfer.kept), seconds) if transfer.head else "")

    def tell_end(size: int) -> None:
        if meter.terminal or meter.seconds() >= PROGRESS_PLAIN:
            ends.append(saved_text(size, meter.seconds()))

    ends: List[str] = []
    meter.thread.start()
    try:
        yield tell_end
    finally:
        meter.stop()
    for end in ends:
        say(end)


def damage_cure(options: Options, kind: str) -> str:
    """What to do about an artifact that is damaged."""
    if options.location and os.path.isdir(options.location):
        path = os.path.join(options.location, object_key("", TARGETS[kind], options.name))
        return f"copy {path} from the bucket again"
    return (f"fetch it again; if it is damaged then, the stored object is, and `curl -o FILE \"$({PROGRAM} download "
            f"{options.name} --kind {kind} --url-only)\"`, with the flags of this command, gets it as it is")


def fetch_to(options: Options, kind: str, output: str) -> None:
    """Download one artifact to a file, or to stdout for `-`."""
    transfer, what, gunzip = Transfer(), f"{kind} of {options.name}", TARGETS[kind].gunzip
    try:
        with source_of(options, kind) as source, metered(options, transfer, output) as tell_end:
            if output == "-":
                tell_end(write_object(source, sys.stdout.buffer, transfer, what, gunzip=gunzip))
            else:
                tell_end(save_object(output, source, transfer, what, gunzip=gunzip, force=options.force,
                                     named=bool(options.output)))
    except KeyboardInterrupt as error:
        error.args = error.args or (("nothing of it is kept",) if output != "-" else ())
        raise
    except StoreError as error:
        if transfer.head and not error.status and error.reason == "StoreError":  # it came, and is not what it should be
            error.hints += (damage_cure(options, kind),)
        raise


def url_of(options: Options, kind: str) -> str:
    """The pre-signed URL of an artifact, by a controller or signed here."""
    artifact, namespace, name = TARGETS[kind], options.namespace, options.name
    api, bucket = way_to(options, kind)
    if bucket:
        return bucket.url(object_key(bucket.prefix, artifact, name))
    with explained(api, namespace, artifact, name):
        return get_download_url(api, namespace, kind, name, timeout=options.timeout)


def cmd_download(options: Options) -> int:
    """Any artifact: BackupContents into a file as `backup download`, the others to stdout unless -o names a file."""
    kind, name = options.kind, options.name
    if options.url_only:
        idle = [flag for flag, given in (("--output", options.output), ("--force", options.force)) if given]
        if idle:
            raise UsageError(f"--url-only prints the URL and makes no file; leave out {' and '.join(idle)}")
        trust_of(options)
        url = url_of(options, kind)
        if not is_http_url(url) or re.search("[^!-~]", url):  # whoever may write the status may have made it up
            raise StoreError("the answer holds no printable http or https URL")
        write_text(url + "\n")
        return Exit.DONE
    output = options.output or (absolute(f"{name}-data.tar.gz") if kind == BACKUP_CONTENTS else "-")
    if output != "-":
        check_target(output, force=options.force, named=bool(options.output))
    elif not TARGETS[kind].gunzip and sys.stdout.isatty() and not options.force:
        raise UsageError(f"{kind} is binary, and stdout is a terminal", hints=[
            "name a file with --output, or add --force"])
    fetch_to(options, kind, output)
    if output != "-" and not options.quiet:
        subject = "Backup" if kind == BACKUP_CONTENTS else f"{kind} of"
        write_text(f"{subject} {name} has been successfully downloaded to {output}\n")
    return Exit.DONE


def cmd_backup_download(options: Options) -> int:
    """`download` with the velero CLI's name."""
    options.kind, options.url_only = BACKUP_CONTENTS, False
    return cmd_download(options)


def cmd_logs(options: Options, kind: str) -> int:
    """The log of a finished backup or restore, to stdout."""
    options.is_log = True
    fetch_to(options, kind, "-")
    return Exit.DONE


def backups_in(options: Options, api: Optional[Api], location: Document, troubles: List[Error]) -> List[Document]:
    """The Backups in a storage location of the cluster, or without one in --location; what fails is left in `troubles`.

    The location is called as it is here, and not as where a backup was made, which is how Velero's sync does it, too.
    """
    name = _text(location, "metadata", "name")
    where = f"storage location {name!r}" if api else options.location
    try:
        with about(where):
            bucket = bucket_of_file(options) or bucket_of(options, find_location(api, options.namespace, location), api)
            found = read_backups(bucket, where, troubles)
    except Error as error:
        troubles.append(error)
        return []
    for backup in found if api else []:
        if isinstance(backup.setdefault("spec", {}), dict):
            backup["spec"]["storageLocation"] = name
    return found


def backups_without_cluster(options: Options, troubles: List[Error]) -> List[Document]:
    """The Backups that --location holds, else with --direct every location in the cluster, by name.

    Locations may hold backups of one name; each is shown. Why some cannot be is left in `troubles`.
    """
    if options.selector:
        raise UsageError("--selector needs the cluster: a bucket is not searched by labels")
    trust_of(options)  # what is wrong with it is said once, not for each location
    api = None if options.location else api_of(options)
    backups: Dict[str, List[Document]] = {name: [] for name in options.names}
    for location in list_all(api, LOCATIONS, options.namespace)[0] if api else [{}]:
        for backup in backups_in(options, api, location, troubles):
            backups.setdefault(_text(backup, "metadata", "name"), []).append(backup)
    for name in options.names:
        if not backups[name]:
            troubles.append(NotFound(f"backup \"{one_line(name, 64)}\" does not exist in any bucket that was listed"))
    return [backup for name in options.names or sorted(backups) for backup in backups[name]]


def local_time(instant: datetime) -> datetime:
    """An instant in the zone of this host (TZ), as velero shows times."""
    return instant.astimezone()


def write_list(options: Options, resource: Resource, documents: List[Document], version: str) -> None:
    """Backups or restores as a table, JSON or YAML."""
    if options.output in ("json", "yaml"):
        write_text(DOCUMENT_TEXTS[options.output](list_document(resource, documents, version)))
    elif not documents:
        say(f"No resources found in {options.location or options.namespace + ' namespace'}.")
    else:
        columns = [name for text in options.label_columns or () for name in text.split(",") if name]
        write_text(resource_table(resource, documents, utc_now(), label_columns=columns,
                                  show_labels=options.show_labels, localize=local_time))


def report_all(troubles: List[Error]) -> int:
    """Say what was missing, below what there was -> the exit code, which is that of the first trouble."""
    sys.stdout.flush()
    for trouble in troubles:
        report(trouble)
    return troubles[0].exit if troubles else Exit.DONE


def cmd_get(options: Options, resource: Resource) -> int:
    """Backups or restores; what cannot be listed is said on stderr, and decides the exit code."""
    troubles: List[Error] = []
    if without_controller(options):
        documents, version = backups_without_cluster(options, troubles), ""
    else:
        documents, version = find_documents(api_of(options), resource, options.namespace, options.names,
                                            options.selector)
    if documents or not troubles:            # no list at all is not an empty list
        write_list(options, resource, documents, version)
    return report_all(troubles)


def is_colorized(options: Options) -> bool:
    """Whether to use colors: never with NO_COLOR, else as --colorized says, else on a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if options.colorized is not None:
        return options.colorized
    return sys.stdout.isatty() and str(_at(read_velero_config(), "colorized")).lower() != "false"


def describe(options: Options, api: Api, resource: Resource, documents: List[Document]) -> Iterator[Description]:
    """One screen after the other; once nobody answered, the next ones are not waited for as long again."""
    trust, structured, timeout = trust_of(options), options.output == "json", options.timeout
    for document in documents:
        kinds = artifacts_of(resource, document, details=options.details, structured=structured)
        reading = new_reading(api._replace(waiting=unseen), options.namespace, resource,
                              _text(document, "metadata", "name"), timeout, trust)
        with api.waiting(f"what belongs to {resource.kind.lower()} {_text(document, 'metadata', 'name')}", timeout):
            related, artifacts = read_screen(reading, resource, document, kinds)
        if any(isinstance(value, TimedOut) for value in artifacts.values()):
            timeout = min(timeout, SECOND_WAIT)
        yield Description(resource, document, related, artifacts, localize=local_time, details=options.details)


def cmd_describe(options: Options, resource: Resource) -> int:
    """Screens or JSON; what is missing on them is said on stderr too, and decides the exit code."""
    api, troubles = api_of(options), []
    documents, _ = find_documents(api, resource, options.namespace, options.names, options.selector)
    screens, colorized = [], options.output != "json" and is_colorized(options)
    for number, screen in enumerate(describe(options, api, resource, documents)):
        troubles += screen.troubles
        if options.output == "json":
            screens.append(screen.json())
        else:
            write_text("\n\n" * bool(number) + screen.text(colorized))
    if options.output == "json":
        write_text(json_text(screens[0] if len(screens) == 1 else screens))
    silent = [trouble for trouble in troubles if isinstance(trouble, TimedOut)]
    for trouble in silent[-1:]:
        trouble.hints += tuple(silence_hints(api, options.namespace))
    return report_all(troubles)


def cmd_plugin_get(options: Options) -> int:
    """The plugins of the server."""
    api = api_of(options)
    with explained(api, options.namespace):
        document = get_server_status(api, options.namespace, timeout=options.timeout)
    render = DOCUMENT_TEXTS.get(options.output)
    write_text(render(document) if render else plugin_table(plugins_from(document)))
    return Exit.DONE


def write_version(options: Options, version: Optional[str], source: str = "") -> None:
    """The versions as text, JSON or YAML."""
    render = DOCUMENT_TEXTS.get(options.output)
    write_text(render(version_document(version, source)) if render else version_text(version, source))


def cmd_version(options: Options) -> int:
    """The versions of this file and of the server."""
    if options.client_only:
        write_version(options, None)
        return Exit.DONE
    api = api_of(options)
    with explained(api, options.namespace):
        document = get_server_status(api, options.namespace, timeout=options.timeout)
    write_version(options, _text(document, "status", "serverVersion"))
    return Exit.DONE


def cmd_manifests(options: Options) -> int:
    """The CRDs as YAML."""
    write_text(yaml_text(*crd_manifests(options.status_subresource)))
    return Exit.DONE


def cmd_completion(options: Options) -> int:
    """A completion script, which only what stands below the table of commands can make."""
    write_text(options.completion_script(options.shell))
    return Exit.DONE


def duration_argument(text: str) -> float:
    """A positive Go duration on the command line."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write for example 30s, 5m or 1h30m") from None
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait; write for example 30s or 5m")
    return min(seconds, LONGEST_WAIT)


def path_argument(text: str) -> str:
    """A file or folder on the command line."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; was a variable not set?")
    return text


def namespace_argument(text: str) -> str:
    """The name of a namespace on the command line."""
    if not is_object_name(text):
        raise argparse.ArgumentTypeError(f"{one_line(text, 64)!r} cannot be the name of a namespace")
    return text


def plugin_argument(text: str) -> Tuple[str, str]:
    """KIND=NAME on the command line."""
    kind, _, name = text.partition("=")
    if not kind or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not KIND=NAME, such as RestoreItemAction=velero.io/pod")
    return kind, name


def bool_argument(text: str) -> bool:
    """A truth value as Go's flags read it."""
    if not text or text not in _GO_BOOLS:
        raise argparse.ArgumentTypeError(f"{one_line(text, 64)!r} is neither true nor false")
    return _GO_BOOLS[text]


class Argument(NamedTuple):
    """One row of an argument table: flags or the name of a positional, and argparse's keywords."""

    flags: Tuple[str, ...]
    keywords: Dict[str, Any]


def argument(*flags: str, **keywords: Any) -> Argument:
    """A row of an argument table."""
    return Argument(flags, keywords)


def switch(*flags: str, **keywords: Any) -> Argument:
    """A row for a flag that is on or off: `--flag`, `--flag=true` or `--flag=false`, as velero takes them."""
    return Argument(flags, {"type": bool_argument, "nargs": "?", "const": True, "default": False, "metavar": "BOOL",
                            **keywords})


class Command(NamedTuple):
    """One command: its words, what --help says, its arguments, and the function that runs it -> exit code.

    `aliases` are further words for it, as the velero CLI has them.
    """

    words: str
    summary: str
    arguments: Tuple[Argument, ...]
    run: Callable[[Options], int]
    timeout: float = 60.0
    aliases: Tuple[str, ...] = ()


COMMON = (
    argument("-n", "--namespace", type=namespace_argument, metavar="NAME",
             help="Velero's namespace (default: $VELERO_NAMESPACE, the velero CLI's configuration, or velero)"),
    argument("--kubeconfig", metavar="FILE", help="kubeconfig to use (default: $KUBECONFIG or ~/.kube/config)"),
    argument("--context", "--kubecontext", metavar="NAME", help="context of the kubeconfig (default: its current one)"),
    argument("--timeout", type=duration_argument, metavar="DURATION",
             help="how long to wait for an answer (default: 1m, 5s for plugin get and version); a transfer may "
                  "take longer"),
    switch("--colorized", help="colors, also where stdout is no terminal (default: on a terminal without NO_COLOR)"),
    argument("--features", metavar="NAMES", help=argparse.SUPPRESS),  # velero's; nothing here depends on one
    argument("-v", "--verbose", action="count", help="say more on stderr"),
)
VERSION_FLAG = argument("--version", action="version", version=f"{PROGRAM} {__version__}")
DEFAULTS = {"is_log": False, "direct": False, "location": "", "credentials_file": "", "allow_credentials_file": (),
            "namespace": "",
            "kubeconfig": "", "context": "", "timeout": None, "colorized": None, "features": "", "verbose": 0}

BACKUP_NAME = argument("name", metavar="BACKUP", help="name of the backup")
RESTORE_NAME = argument("name", metavar="RESTORE", help="name of the restore")
TLS = (
    argument("--cacert", type=path_argument, metavar="FILE", help="certificate authority of the store (PEM)"),
    switch("--insecure-skip-tls-verify", help="trust any certificate of the store"),
)
ALLOWED_FILE = argument("--allow-credentials-file", type=path_argument, action="append", default=[], metavar="FILE",
                        help="a file of this host that credentialsFile of a storage location may name; repeatable")
TO_FILE = (
    argument("-o", "--output", metavar="FILE", default="",
             help="file to write, - for stdout (default for contents: ./NAME-data.tar.gz)"),
    switch("--force", help="replace the file if it exists, once the download succeeded"),
)
SOURCE = (
    argument("--idle-timeout", type=duration_argument, metavar="DURATION", default=IDLE_LIMIT,
             help="how long the store may send nothing before the transfer is taken up anew (default: 30s)"),
    argument("--direct", action="store_true",
             help="ask no controller: read storage location and Secret with your own rights, and sign here"),
    argument("--location", type=path_argument, metavar="FILE|DIR",
             help="ask no cluster: the storage location in a file, or a folder that holds a copied bucket"),
    argument("--credentials-file", type=path_argument, metavar="FILE",
             help="AWS credentials file that opens the location's bucket, for --direct and --location"),
    ALLOWED_FILE, *TLS)
QUIET = argument("--quiet", action="store_true", help="say nothing of a success")
FETCH = (*TO_FILE, QUIET)
OUTPUT_FORMAT = argument("-o", "--output", choices=("table", "json", "yaml"), default="", help="output format")
SELECTOR_FLAG = argument("-l", "--selector", metavar="SELECTOR", default="", help="only objects with these labels")
LABEL_FLAGS = (
    switch("--show-labels", help="show labels in the last column"),
    argument("-L", "--label-columns", metavar="LABELS", action="append",
             help="labels to show as columns, separated by commas; repeatable"),
)
DETAILS = (
    switch("--details", help="show more, from more files of the store"),
    argument("-o", "--output", choices=("plaintext", "json"), default="", help="output format"),
)


def names_argument(owner: str) -> Argument:
    """The names of backups or restores; none stands for all."""
    return argument("names", nargs="*", metavar=owner, help=f"names of {owner.lower()}s (default: all)")


def owner_commands(resource: Resource) -> Tuple[Command, ...]:
    """What can be done to backups and restores alike, each with velero's verb-first aliases."""
    noun = resource.kind.lower()
    names, nouns = names_argument(resource.kind.upper()), (noun + "s", noun)
    return (
        Command(f"{noun} get", f"list {noun}s", (
            names, SELECTOR_FLAG, *LABEL_FLAGS, OUTPUT_FORMAT, *(SOURCE if resource is BACKUPS else ())),
                lambda options: cmd_get(options, resource), aliases=tuple(f"get {word}" for word in nouns)),
        Command(f"{noun} describe", f"tell all about {noun}s", (names, SELECTOR_FLAG, *DETAILS, *TLS),
                lambda options: cmd_describe(options, resource), aliases=tuple(f"describe {word}" for word in nouns)),
        Command(f"{noun} logs", f"print the log of a {noun}",
                (BACKUP_NAME if resource is BACKUPS else RESTORE_NAME, QUIET, *SOURCE),
                lambda options: cmd_logs(options, f"{resource.kind}Log"),
                aliases=tuple(f"logs {word}" for word in reversed(nouns))))


COMMANDS = (
    Command("controller", "answer DownloadRequests and ServerStatusRequests", (
        argument("--once", action="store_true", help="look once at every request that is there, then exit"),
        argument("--dry-run", action="store_true", help="print what would be done and change nothing"),
        argument("--verify-urls", action="store_true", help="fetch one byte with every URL before handing it out"),
        ALLOWED_FILE,
        argument("--server-version", default="", metavar="VERSION", help="version to report (default: our own)"),
        argument("--plugin", action="append", type=plugin_argument, metavar="KIND=NAME",
                 help="plugin to report; repeatable"),
        argument("--plugins-file", default="", metavar="FILE", help="YAML list of name and kind of plugins to report"),
    ), cmd_controller),
    Command("download", "fetch any artifact of a backup or restore", (
        argument("name", metavar="NAME", help="name of the backup or restore"),
        argument("--kind", choices=tuple(TARGETS), default=BACKUP_CONTENTS, metavar="KIND",
                 help=f"which artifact (default {BACKUP_CONTENTS}): {', '.join(TARGETS)}"),
        *FETCH,
        argument("--url-only", action="store_true", help="print the pre-signed URL, which is a bearer token"),
        *SOURCE), cmd_download),
    *owner_commands(BACKUPS),
    Command("backup download", "fetch the contents of a backup into a file", (BACKUP_NAME, *FETCH, *SOURCE),
            cmd_backup_download),
    *owner_commands(RESTORES),
    Command("plugin get", "list the plugins of the server", (OUTPUT_FORMAT,), cmd_plugin_get, timeout=5.0,
            aliases=("get plugins", "get plugin")),
    Command("version", "print the versions of client and server", (
        switch("--client-only", help="do not ask the server"), OUTPUT_FORMAT), cmd_version, timeout=5.0),
    Command("manifests", "print the CustomResourceDefinitions, for clusters where Velero has not installed its own", (
        argument("--status-subresource", action="store_true", help="as Velero 1.6 to 1.8 installed them"),),
        cmd_manifests),
    Command("completion", "print a script that lets a shell complete commands and flags", (
        argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL",
                 help=f"bash, zsh or fish; load it with `source <({PROGRAM} completion bash)`, "
                      f"in fish with `{PROGRAM} completion fish | source`"),),
        cmd_completion),
)

# Commands of the velero CLI, by their first words, that are no business of this file.
VELERO_WORDS = {
    "backup-location", "bug", "client", "create", "debug", "delete", "install", "plugin add", "plugin remove", "repo",
    "schedule", "snapshot-location", "uninstall",
    *(f"{noun} {verb}" for noun in ("backup", "restore") for verb in ("create", "delete")),
    *(f"{verb} {noun}{end}" for verb in ("get", "describe") for end in ("", "s")
      for noun in ("backup-location", "repo", "schedule", "snapshot-location"))}

DESCRIPTION = "Fetch logs and contents of Velero backups, and answer such requests in place of Velero's server."
EPILOG = """exit codes:
  0 done   1 any other failure   2 usage   3 does not exist   4 nobody answered in time
  5 not allowed   6 cluster or store unreachable   130 interrupted   141 the reader of the output left"""


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an Error like any other."""

    def error(self, message: str) -> Any:
        raise UsageError(message, hints=[f"see `{self.prog} --help`"])

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help; argparse itself would hide that it cannot be written."""
        write_text(message)


def add_arguments(parser: argparse.ArgumentParser, arguments: Iterable[Argument]) -> None:
    """Put rows of an argument table into a parser."""
    for flags, keywords in arguments:
        parser.add_argument(*flags, **keywords)


def command_words() -> Iterator[Tuple[str, Command]]:
    """Every way to name a command, and the command."""
    for command in COMMANDS:
        for words in (command.words, *command.aliases):
            yield words, command


def build_parser(argv: Optional[List[str]] = None) -> Parser:
    """The parser of the COMMANDS table; the common flags are understood before and after the command.

    With a command line, what it does not name is left out as far as no help shows it: to make all takes as long as a
    call.
    """
    common = [argument(*row.flags, **{**row.keywords, "default": argparse.SUPPRESS}) for row in COMMON]
    options = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
    top = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG, **options)
    add_arguments(top, [VERSION_FLAG, *common])
    groups = {"": top.add_subparsers(title="commands", metavar="COMMAND", required=True)}
    for words, command in command_words():
        group, _, word = words.rpartition(" ")
        if group not in groups:
            summary = "; ".join(dict.fromkeys(
                row.summary for other, row in command_words() if other.startswith(group + " ")))
            parser = groups[""].add_parser(group, help=summary, description=summary, **options)
            add_arguments(parser, common)
            groups[group] = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        if argv is not None and group and group not in argv:
            continue
        parser = groups[group].add_parser(word, help=command.summary, description=command.summary, **options)
        if argv is None or set(words.split()) <= set(argv):
            add_arguments(parser, [*command.arguments, *common])
        parser.set_defaults(command=command)
    return top


def command_places(argv: List[str], takers: Set[str]) -> List[int]:
    """Where the words of a command line stand that are neither flags nor the values of flags."""
    end = argv.index("--") if "--" in argv else len(argv)
    before = ["", *(re.sub("^-v+(?=[a-zA-Z]$)", "-", word) for word in argv)]  # -vn is -v -n
    return [place for place in range(end) if not argv[place].startswith("-") and before[place] not in takers]


def spelled_out(argv: List[str]) -> List[str]:
    """velero's spellings -> those that argparse can tell apart; UsageError for what only velero's CLI does.

    A switch without a value gets one, so that it takes none from what follows; `download backup NAME` is turned round.
    """
    rows = [*COMMON, *(row for command in COMMANDS for row in command.arguments)]
    switches = {flag for flags, keywords in rows if keywords.get("type") is bool_argument for flag in flags}
    takers = {flag for flags, keywords in rows if "nargs" not in keywords
              and keywords.get("action", "append") == "append" for flag in flags if flag.startswith("-")}
    end = argv.index("--") if "--" in argv else len(argv)
    words = [f"{word}=true" if word in switches else word for word in argv[:end]] + argv[end:]
    places = command_places(argv, takers)
    named = [argv[place] for place in places[:2]]
    if VELERO_WORDS & {" ".join(named), *named[:1]}:
        raise UsageError(f"`{' '.join(named)}` is not done here but by Velero itself",
                         hints=[f"use its own command line: `velero {' '.join(named)}`"])
    if named == ["download", "backup"] and len(places) > 2:
        words[places[0]:places[0] + 1] = ["backup", "download"]
        del words[places[1] + 1]
    return words


class Completion(NamedTuple):
    """What may follow some words: further words, flags, and values by flag."""

    words: Tuple[str, ...]
    flags: Tuple[str, ...]
    values: Dict[str, Tuple[str, ...]]


def completion_of(arguments: Iterable[Argument]) -> Completion:
    """What rows of an argument table let follow.

    A flag whose values are not listed takes any, and shells offer files then.
    """
    words: Tuple[str, ...] = ()
    flags: Tuple[str, ...] = ()
    values: Dict[str, Tuple[str, ...]] = {}
    for names, keywords in arguments:
        choices = keywords.get("choices", ())
        if not names[0].startswith("-"):
            words += choices
            continue
        if "nargs" not in keywords and {"choices", "metavar"} & set(keywords):
            values.update(dict.fromkeys(names, choices))
        if keywords.get("help") != argparse.SUPPRESS:
            flags += names
    return Completion(words, (*flags, "--help"), values)


def completions() -> Dict[str, Completion]:
    """Words of the command line, each after a blank -> what may follow them; the same table as the parser's."""
    found = {"": completion_of((VERSION_FLAG, *COMMON))}
    for words, command in command_words():
        at = ""
        for word in words.split():
            group = found.setdefault(at, completion_of(COMMON))
            found[at] = group._replace(words=tuple(dict.fromkeys((*group.words, word))))
            at = f"{at} {word}"
        found[at] = completion_of((*command.arguments, *COMMON))
    return found


# bash and zsh walk along the words of the line as far as they name a command, past the values of common flags; `found`
# is what may come next. Flags are offered where one is begun, as fish does of itself, and where there is nothing else.
CASES = """    for word in {given}; do
        case "$word" in "=") continue ;; esac
        case "$before" in {takers}) word="" ;; esac
        case "$at $word" in {paths}) at="$at $word" ;; esac
        before="$word"
    done
    case "$at $before" in
{values}
    *) case "$at" in
{words}
        esac ;;
    esac
    case "$current" in -*) found="" ;; esac
"""
SHELLS = {
    "bash": """_velero_requests() {{
    local IFS=$' \\t\\n' word at="" before="" found="" flags="" current="${{COMP_WORDS[COMP_CWORD]#=}}"
{cases}    COMPREPLY=($(compgen -W "${{found:-$flags}}" -- "$current"))
}}
complete -o default -F _velero_requests {program}
""",
    "zsh": """#compdef {program}
_velero_requests() {{
    compset -P '--*='
    local word at="" before="" found="" flags="" current="$PREFIX"
{cases}    compadd -- ${{=found:-$flags}} || _files
}}
compdef _velero_requests {program}
(( ! $+compstate )) || _velero_requests
""",
    "fish": """function __velero_requests_at
    set -l at ""
    set -l before ""
    for word in (commandline -opc)[2..-1]
        contains -- "$before" {takers}; and set word ""
        switch "$at $word"
            case {paths}
                set at "$at $word"
        end
        set before "$word"
    end
    test "$at" = "$argv[1]"
end
complete -c {program} -f
{lines}
"""}

# The words before the one at the cursor; `--flag=value` is three of them in bash, and zsh has set `--flag=` apart.
GIVEN = {"bash": '"${COMP_WORDS[@]:1:COMP_CWORD-1}"', "zsh": '"${(@)words[2,CURRENT-1]}" ${IPREFIX%=}'}


def _fish_lines(table: Mapping[str, Completion]) -> Iterator[str]:
    for at, (words, flags, values) in table.items():
        rule = f"complete -c {PROGRAM} -n \"__velero_requests_at '{at}'\""
        yield f"{rule} -a '{' '.join(words)}'"
        for flag in flags:
            option = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            value = f"-x -a '{' '.join(values[flag])}'" if values.get(flag) else "-r -F" if flag in values else ""
            yield f"{rule} {option} {value}".rstrip()


def completion_script(shell: str) -> str:
    """The script that makes a shell complete our commands, flags and their values."""
    table = completions()
    paths, takers = [f"'{at}'" for at in table if at], table[""].values
    if shell == "fish":
        return SHELLS[shell].format(paths=" ".join(paths), takers=" ".join(takers), program=PROGRAM,
                                    lines="\n".join(_fish_lines(table)))
    values = [f"    '{at} {flag}') found='{' '.join(choices)}' ;;"
              for at, row in table.items() for flag, choices in row.values.items()]
    words = [f"        '{at}') found='{' '.join(row.words)}' flags='{' '.join(row.flags)}' ;;"
             for at, row in table.items()]
    cases = CASES.format(given=GIVEN[shell], takers="|".join(takers), paths="|".join(paths), values="\n".join(values),
                         words="\n".join(words))
    return SHELLS[shell].format(cases=cases, program=PROGRAM)


class RedactingFormatter(logging.Formatter):
    """Log lines without signatures, tokens and control characters, whatever was put into them.

    On a terminal they go over a line of progress.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line itself."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """A traceback, whose last line may hold a stranger's text."""
        return "\n".join(map(printable, super().formatException(ei).split("\n")))

    def format(self, record: logging.LogRecord) -> str:
        """Both together."""
        return ("\r\x1b[K" if sys.stderr.isatty() else "") + redact(super().format(record))


def configure_logging(options: Options) -> None:
    """Talk on stderr: a controller with time and level, a client only what goes wrong unless -v is given."""
    serving = options.command.run is cmd_controller
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(message)s" if serving else "%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(max(logging.DEBUG, (logging.INFO if serving else logging.WARNING) - 10 * options.verbose))
    urllib3.disable_warnings()  # of its own it would repeat on every call that verification was switched off


class Terminated(KeyboardInterrupt):
    """A signal that ends a client as Ctrl-C does."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a client as Ctrl-C does: its request and its temporary file are removed first."""

    def leave(number: int, _frame: Any) -> None:
        raise Terminated(number)

    previous = [(number, signal.signal(number, leave))
                for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
                if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
    try:
        yield
    finally:
        for number, handler in reversed(previous):
            signal.signal(number, handler)


def parse(argv: List[str]) -> Options:
    """The options of a command line; UsageError in the words that were typed."""
    words = spelled_out(argv)
    options, unknown = build_parser(words).parse_known_args(words)
    if unknown:
        typed = " ".join(word if word in argv else word.rpartition("=")[0] for word in unknown)
        raise UsageError(f"unrecognized arguments: {typed}", hints=[f"see `{PROGRAM} {options.command.words} --help`"])
    for name, value in DEFAULTS.items():
        setattr(options, name, getattr(options, name, value))
    options.timeout = options.timeout or options.command.timeout
    return options


def run(argv: List[str]) -> int:
    """Parse and run one command -> its exit code."""
    with contextlib.suppress(AttributeError):  # a stand-in for stdout need not have it
        sys.stdout.reconfigure(errors="backslashreplace")  # names in any script, also where the locale has no UTF-8
    try:
        options = parse(argv)
        configure_logging(options)
        options.namespace = options.namespace or find_namespace()
        options.completion_script = completion_script
        with tidy_when_terminated():
            return options.command.run(options)
    finally:
        sys.stdout.flush()


def let_go(stream: Any) -> None:
    """Flush a stream that may be broken, so that the interpreter's own flush at its exit has nothing to fail with."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # it need not have a descriptor
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def ended(argv: Optional[List[str]]) -> int:
    """Run a command line -> exit code; the only place that turns errors into exit codes.

    Files, sockets and the cluster turn their own OSErrors into an Error, so what is left comes from stdout.
    """
    try:
        if sys.stdout is None:
            raise Error("stdout is closed", hints=["let it lead somewhere, such as >/dev/null"])
        return run(sys.argv[1:] if argv is None else argv)
    except Error as error:
        log.debug("raised at:", exc_info=True)
        return report(error)
    except KeyboardInterrupt as error:
        number = getattr(error, "number", signal.SIGINT)
        say(one_line("; ".join([f"interrupted by {signal.Signals(number).name}", *map(str, error.args)]), 4096))
        return 128 + number
    except BrokenPipeError:
        return Exit.BROKEN_PIPE
    except OSError as error:
        log.info("raised at:", exc_info=True)
        return report(Error(f"cannot write the output: {error.strerror or one_line(error)}"))
    except Exception as error:
        log.info("raised at:", exc_info=True)
        return report(Error(f"unexpected {type(error).__name__}: {one_line(error)}",
                            hints=["this is a bug; run again with -v and report what it says"]))


def main(argv: Optional[List[str]] = None) -> int:
    """The command line -> exit code, and no word from the interpreter about streams that are full or closed."""
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        return ended(argv)
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            let_go(stream)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
