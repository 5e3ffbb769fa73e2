#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# /// script
# requires-python = ">=3.8"
# dependencies = ["urllib3>=1.26,<3", "PyYAML>=5.3"]
# ///
"""velero_requests: Velero's request subsystem in one file that can be read before it is trusted.

Velero keeps backups of Kubernetes clusters in object storage. Whoever wants a backup's log creates a DownloadRequest; a
controller answers it with a pre-signed URL, and the client fetches that. ServerStatusRequest does the same for the
server's version and plugins. This file is that controller, that client, and the functions of both to import. It
interoperates both ways with Velero 1.6.3 to 1.18.

    python3 velero_requests.py controller   answer requests, beside or instead of Velero's own controllers
    python3 velero_requests.py --help       everything else

Contents (a banner says what each room holds):
    1. Ground  2. Requests  3. Locations  4. Signing  5. Keys  6. Kubeconfig  7. Downloads  8. Screens  9. Manifests
    ===  the waterline: above it is arithmetic on values (`now` is an argument), below it is the world  ===
    10. Connections  11. Cluster  12. Key sources  13. Store  14. Controller  15. Client  16. Doctor  17. Command line

Read it from top to bottom: a name is defined before it is used, and nothing above the waterline touches I/O, clocks,
threads or randomness; the tests check both. Importing this file does nothing.
"""

from __future__ import annotations  # a SyntaxError here: this Python is too old, it must be 3.8 or newer
import os
import sys

if sys.version_info < (3, 8):
    sys.exit("error: velero_requests.py needs Python 3.8 or newer, this is %d.%d" % sys.version_info[:2])

if __name__ == "__main__" and __spec__ is None and sys.path[0] == os.path.dirname(os.path.realpath(__file__)):
    del sys.path[0]  # what lies beside a script is no part of it, compiled or not

import _signal  # `signal` itself imports more, which takes a moment

if __name__ == "__main__" and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C while the rest is imported needs no traceback

import base64
import bisect
import contextlib
import enum
import functools
import heapq
import itertools
import json
import logging
import math
import posixpath
import random
import re
import signal
import socket
import stat
import struct
import threading
import time
from collections import OrderedDict, defaultdict
from datetime import datetime, timedelta, timezone
from typing import (
    Any, BinaryIO, Callable, ContextManager, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence,
    Set, Tuple, Union)
from urllib.parse import quote, unquote, urlencode, urlsplit

try:
    import fcntl
except ImportError:  # Windows: two downloads of one target are not kept apart there
    fcntl = None  # type: ignore[assignment]

# What takes long to load (urllib3, yaml, ssl, hashlib) is imported where it is used: a start pays for what it does.

__version__ = "0.1.0"
PROGRAM = os.path.basename(sys.argv[0]) if __name__ == "__main__" else "velero_requests.py"  # as it was called

log = logging.getLogger("velero_requests")

# ================================================================================
# 1. Ground — exit codes, errors, text and time, untrusted documents

Document = Dict[str, Any]  # a Kubernetes object as JSON gave it, passed on untouched


def hidden_in_repr(*secrets: str) -> Callable[[type], Any]:
    """For records without these fields in repr; thirty dataclasses would add 25 ms to each start."""
    def hide(record: Any) -> Any:
        record.__repr__ = lambda self: "{}({})".format(record.__name__, ", ".join(
            f"{name}={value!r}" for name, value in self._asdict().items() if name not in secrets))
        return record

    return hide


class Exit(enum.IntEnum):
    """Exit codes of every command."""
    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3  # the object or the artifact
    TIMED_OUT = 4  # nobody answered
    NOT_ALLOWED = 5  # 401 or 403, from the cluster or the store
    UNREACHABLE = 6  # cluster or store, TLS included
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of our output left, as `head` does


EXIT_OF_STATUS = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}
MESSAGE_LIMIT = 1024  # characters; what core/v1 Event allows for a message


class Error(Exception):
    """Base of what is raised on purpose: one sentence that names the object and holds no secret. hints: cures, a line
    each; reason: the word that a controller leaves on a request; retry: whether time may mend it; status: HTTP's."""
    exit, retry, usual_reason = Exit.FAILED, True, "InternalError"

    def __init__(self, message: str, *, hints: Iterable[str] = (), reason: str = "", status: int = 0):
        super().__init__(message)
        self.hints, self.status = tuple(hints), status
        self.reason = reason or self.usual_reason
        self.exit = EXIT_OF_STATUS.get(status, self.exit)


@contextlib.contextmanager
def about(subject: str) -> Iterator[None]:
    """Let an error that passes begin with its subject."""
    try:
        yield
    except Error as error:
        if subject not in str(error):
            error.args = (f"{subject}: {error}",)
        raise


class UsageError(Error):
    """The caller asked for what cannot be."""
    exit, retry = Exit.USAGE, False


class ConfigError(Error):
    """A kubeconfig, storage location or credentials file is wrong."""


class InvalidLocation(ConfigError):
    """A storage location says what cannot be, or is not done here."""
    usual_reason = "InvalidStorageLocation"


class CredentialsError(ConfigError):
    """The keys of a store are wrong, or cannot be had."""
    usual_reason = "InvalidCredentials"


class NotFound(Error):
    """An object or an artifact does not exist."""
    exit = Exit.NOT_FOUND


class ApiError(Error):
    """The Kubernetes API refused; api_reason: its own word (NotFound, Expired …)."""

    def __init__(self, message: str, *, status: int, api_reason: str = "", hints: Iterable[str] = ()):
        reason = "Forbidden" if status in (401, 403) else "ClusterError"
        super().__init__(message, hints=hints, reason=reason, status=status)
        self.api_reason = api_reason


class Missing(ApiError):
    """The API has no such object, or not its kind: status 404."""


class RequestFailed(Error):
    """A request names what cannot exist, or a controller left a reason instead of an answer."""
    retry = False


class StoreError(Error):
    """The store refused, or (status 0) sent something else than was asked for."""
    usual_reason = "StoreError"
    skew = timedelta(0)  # how far the store's clock is ahead of ours
    retry_after: Optional[float] = None  # seconds


class Unreachable(Error):
    """No connection to cluster or store, or TLS failed."""
    exit, usual_reason = Exit.UNREACHABLE, "Unreachable"


class TimedOut(Error):
    """Nobody answered a request in time."""
    exit = Exit.TIMED_OUT


def parse_time(text: object) -> Optional[datetime]:
    """RFC 3339 (UTC without an offset) -> aware UTC datetime, or None."""
    match = re.fullmatch(
        r"(?a)(\d{4}-\d\d-\d\d)[Tt ](?!24)(\d\d:\d\d:\d\d)(?:[.,](\d{1,99}))?(?:[Zz]|([+-]\d\d):?([0-5]\d))?",
        text if isinstance(text, str) else "")
    if not match:
        return None
    day, clock, fraction, hours, minutes = match.groups("")
    try:
        return datetime.fromisoformat(
            f"{day}T{clock}.{fraction[:6]:0<6}{hours or '+00'}:{minutes or '00'}").astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


def format_time(instant: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, cut off as in Kubernetes' metav1.Time."""
    return instant.astimezone(timezone.utc).isoformat()[:19] + "Z"


def printable(text: str) -> str:
    """Untrusted text with blanks for what is invisible, but for two joiners that some scripts need."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in text)


def one_line(text: object, limit: int = 300) -> str:
    """Untrusted text in one visible line, cut at `limit`; a byte of a path that is none of the locale's is `\\xNN`."""
    line = " ".join("".join(c if c.isprintable() else f"\\x{ord(c) - 0xdc00:x}" if "\udc80" <= c <= "\udcff" else " "
                            for c in str(text)[:4 * limit]).split())
    return line if len(line) <= limit else line[:limit - 1] + "…"


_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(_DURATION_UNITS)})"


def parse_duration(text: str) -> float:
    """Go's notation (`1h2m`, `1.5s`, `250ms`, `0`) -> seconds; ValueError also beyond 292 years."""
    match = re.fullmatch(rf"[-+]?(?:0|(?:{_DURATION_PART})+)", text, re.ASCII) if len(text) <= 100 else None
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in re.findall(_DURATION_PART, text[:100]))
    if not match or seconds >= 2 ** 63 / 1e9:
        raise ValueError(f"invalid duration {one_line(text, 64)!r}")
    return -seconds if text[0] == "-" else seconds


def format_duration(seconds: float, digits: int = 3) -> str:
    """Seconds -> Go's notation, with so many digits of a second; Go has 9."""
    number = round(round(abs(seconds), digits) * 1e9)
    units = ((10 ** 9, "s"), (10 ** 6, "ms"), (10 ** 3, "µs"), (1, "ns"))
    unit, name = next((row for row in units if number >= row[0]), units[0])
    minutes, rest = divmod(number, 60 * 10 ** 9)
    whole = (f"{minutes // 60}h" if minutes >= 60 else "") + (f"{minutes % 60}m" if minutes else "")
    return "-" * (seconds < 0 < number) + whole + f"{rest / unit:.9f}".rstrip("0").rstrip(".") + name


# Parameters of signed URLs (AWS, Google, Azure), also of one inside another; tokens in headers; name and password in a
# URL, which end before the path (it may hold an `@`), unless what stands there can be no host.
_SECRETS = re.compile(
    r"((?:Signature|Credential|(?:Security-?|Session|WebIdentity)Token|AWSAccessKeyId|GoogleAccessId|sig)"
    r"(?:=|%(?:25){0,9}3D|\\u003d))(?:(?!%(?:25){0,9}26)[^&\s\"'<>])+"
    r"|(\bBearer\s+|\bAuthorization: Basic |\bx-amz-security-token:\s?)[^\s\"',&]+"
    r"|(\w://)(?:[^\s\"'<>/?#]*@"
    r"|(?!(?:[\w.-]*|\[[\w:.]*\])(?::\d{0,5})?(?:[\s\"'<>/?#]|$))[^\s\"'<>]{0,256}@)", re.IGNORECASE)
REDACTED_LIMIT = 1 << 16  # characters


def redact(text: str) -> str:
    """The text without the secrets of URLs and headers, cut at a blank, so that none is halved."""
    if len(text) > REDACTED_LIMIT:
        text = "".join(re.split(r"(\s)", text[:REDACTED_LIMIT])[:-1]) + "…"
    return _SECRETS.sub(lambda match: next(filter(None, match.groups())) + ("***@" if match[3] else "***"), text)


def add_if_new(text: str, seen: Set[str], most: int) -> bool:
    """Whether a text is new, and now seen; beyond `most` none is."""
    known = len(seen)
    if known < most:
        seen.add(text[:MESSAGE_LIMIT])
    return len(seen) > known


def decode_base64(text: str) -> Optional[bytes]:
    """Base64 as Go reads it (strict, but with line ends), else None."""
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        return None


MAX_DEPTH = 100  # levels of a document, which recursion can follow
MAX_ELEMENTS = 2_200_000  # of a JSON document; an object of etcd's 1.5 MiB has fewer
_NO_MARKS = bytes(set(range(256)) - set(b'"[]{},'))


class TooLarge(ValueError):
    """A body, or what JSON would make of it in memory, is too large."""


def parse_json(content: bytes, most: int = MAX_ELEMENTS) -> Any:
    """Untrusted JSON of at most `most` elements; ValueError, which does not quote it, when it is invalid or too deep.
    Elements and levels are counted by the marks outside of strings, before anything is built."""
    marks = bytes(content).replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS).replace(b'""', b"")
    outside = b"".join(marks.split(b'"')[::2]) if marks.count(b'"') <= 2 * most + 2 else b"," * (most + 1)
    if outside.count(b",") + outside.count(b"[") + 3 * outside.count(b"{") > most:  # a mapping takes more memory
        raise TooLarge(f"has more than {most} elements")
    steps = (1 if mark in b"[{" else -1 for mark in outside.replace(b",", b""))
    try:
        if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:
            raise ValueError
        return json.loads(str(content, "utf-8-sig", "surrogatepass"),  # long numbers, which take long, are none
                          parse_int=lambda digits: int(digits if len(digits) <= 400 else ""))
    except ValueError:
        raise ValueError("is no JSON") from None


def lines(chunks: Iterable[bytes], limit: int = 8 << 20, cut: bool = False) -> Iterator[bytes]:
    """Byte chunks -> whole lines; one of more than `limit` bytes is cut or an error. Half a last one is dropped."""
    held = bytearray()  # of the line that has not ended yet
    for chunk in chunks:
        held += chunk
        if b"\n" in chunk:
            *whole, held = held.split(b"\n")
            yield from (bytes(line[:limit] if cut else line) for line in whole)
        if len(held) > limit and not cut:
            raise Unreachable(f"a line of more than {limit} bytes in the answer")
        del held[limit:]


def _at(document: Any, *path: str) -> Any:
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document


def _text(document: Any, *path: str) -> str:
    value = _at(document, *path)
    return value if isinstance(value, str) else ""


def _name(document: Any, *path: str) -> str:
    """A name, cut behind the longest possible, for records are kept."""
    return _text(document, *path)[:254]


def is_http_url(url: str) -> bool:
    """Whether a URL is http or https and has a host and a valid port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and url.isascii()
    except ValueError:
        return False


def dns_label(text: str, source: str) -> str:
    """The text, when it can be a label of a host; else InvalidLocation."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", text, re.ASCII):
        raise InvalidLocation(f"{source} is {one_line(text, 64)!r}, no DNS label such as eu-west-1")
    return text


def header_value(text: str, what: str) -> str:
    """Text for an HTTP header; ConfigError unless it is printable ASCII."""
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{what} has characters that cannot be sent, such as a line end")
    return text


def typed(value: Any, kind: Any, place: str, refuse: Callable[[str, str, Any], None]) -> Any:
    """A value of this kind: a type, [kind] for a list of it, {str: kind} for a map. Nothing is Go's zero value, or None
    for a bool; and so is another type, unless `refuse` raises."""
    wanted = kind if isinstance(kind, type) else type(kind)
    if type(value) is not wanted or wanted is int and abs(value) >= 2 ** 63:
        if value is not None:
            names = {str: "a string", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}
            refuse(place, names[wanted], value)
        return None if wanted is bool else wanted()
    if isinstance(kind, list):
        return [typed(item, kind[0], f"{place}[{number}]", refuse) for number, item in enumerate(value)]
    if isinstance(kind, dict):
        return {str(name): typed(item, kind[str], f"{place}.{str(name)[:64]}".lstrip("."), refuse)
                for name, item in value.items()}
    return value


class Reader:
    """Typed access to a mapping that an operator wrote; another type is a ConfigError that shows no value. Relative
    paths in it start in the folder of its file."""

    def __init__(self, document: Any, where: str, file: str = "") -> None:
        self.where, self.file = where, file
        self.fields = {str(name): value for name, value in typed(document, dict, "", self.refuse).items()}

    def refuse(self, place: str, wanted: str, value: Any) -> None:
        cure = ": write it in quotes" if wanted == "a string" and isinstance(value, (int, float)) else ""
        raise ConfigError(f"{self.where}{place and ': '}{place} must be {wanted}{cure}")

    def get(self, name: str, kind: Any = str) -> Any:
        return typed(self.fields.get(name), kind, name, self.refuse)

    def need(self, name: str) -> str:
        text: str = self.get(name)
        if not text:
            raise ConfigError(f"{self.where} has no {name}")
        return text

    def path(self, name: str) -> str:
        """A path; `..` goes by the letters, as in Go's filepath.Join."""
        path = self.get(name)
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.file), path)) if path else ""

    def pem(self, name: str) -> Union[bytes, str]:
        """The PEM of `name-data`, else the path at `name`, else nothing."""
        data = decode_base64(self.get(f"{name}-data"))
        if data is None:
            raise ConfigError(f"{self.where}: {name}-data is not base64")
        return data or self.path(name) or data


def is_object_name(name: str) -> bool:
    """Whether Kubernetes could have such an object (RFC 1123): so every key stays inside `backups/` or `restores/`."""
    return len(name) <= 253 and bool(re.fullmatch(
        r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", name, re.ASCII))


def _ip_address(text: str) -> Any:
    import ipaddress
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(text)
    return None


def _in_network(address: Any, text: str) -> bool:
    import ipaddress
    with contextlib.suppress(ValueError, TypeError):
        return address in ipaddress.ip_network(text, strict=False)
    return False


def is_link_local(host: str) -> bool:
    """Whether a host is a link-local service, where clouds give keys to any process that asks; also in IPv6 forms."""
    address = _ip_address(host.partition("%")[0])
    networks = (
        "169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200/32", "192.0.0.192/32",
        "168.63.129.16/32", "::ffff:169.254.0.0/112", "::ffff:0:169.254.0.0/112", "::169.254.0.0/112",
        "64:ff9b::169.254.0.0/112", "64:ff9b:1::169.254.0.0/112", "2002:a9fe::/32")
    return host.rstrip(".").lower() in ("metadata", "metadata.google.internal") or (
        address is not None and any(_in_network(address, network) for network in networks))


def backoff(failures: int, base: float, cap: float) -> float:
    """Seconds to wait after the n-th failure in a row, n >= 1."""
    return min(cap, base * 2.0 ** min(failures - 1, 64))


def _unescaped(text: str) -> str:
    """Text of XML without entities; long ones stay, for they take long to convert."""
    import html
    return re.sub(r"&(#x?[0-9A-Fa-f]{1,7}|[a-z]{2,6});", lambda entity: html.unescape(entity[0]), text)


def xml_fields(body: bytes) -> Dict[str, str]:
    """The leaf elements of a small XML answer by name; no parser, so a DTD has no effect."""
    text = body[:65536].decode("utf-8", "replace")
    return {name: _unescaped(value) for name, value in re.findall(r"<(\w+)>([^<]*)</\1>", text)}


def parse_http_date(header: Optional[str]) -> Optional[datetime]:
    """A header's date (RFC 9110 5.6.7) -> aware UTC datetime, or None."""
    import email.utils
    try:
        return email.utils.parsedate_to_datetime((header or "")[:64]).astimezone(timezone.utc)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def retry_after_seconds(header: str, now: datetime) -> Optional[float]:
    """Retry-After (RFC 9110 10.2.3), seconds or a date -> seconds from now; None for anything else."""
    if re.fullmatch(r"\d{1,9}", header, re.ASCII):
        return float(header)
    instant = parse_http_date(header)
    return None if instant is None else max(0.0, (instant - now).total_seconds())

# ================================================================================
# 2. Requests — what can be asked for, and every policy of the controller
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
#    Whoever creates an object may fill in its status, so no time in it is trusted further than a request lives. A patch
#    carries the resourceVersion that it was decided on: a stale copy ends in a conflict and another look.

class Resource(NamedTuple):
    """A kind of Kubernetes object in v1 of a group."""
    kind: str
    group: str = "velero.io"

    @property
    def plural(self) -> str:
        return f"{self.kind.lower()}s"


DOWNLOAD_REQUESTS, STATUS_REQUESTS = Resource("DownloadRequest"), Resource("ServerStatusRequest")
REQUEST_KINDS = (DOWNLOAD_REQUESTS, STATUS_REQUESTS)
BACKUPS, RESTORES, LOCATIONS = Resource("Backup"), Resource("Restore"), Resource("BackupStorageLocation")
POD_VOLUME_BACKUPS, POD_VOLUME_RESTORES = Resource("PodVolumeBackup"), Resource("PodVolumeRestore")
DELETE_REQUESTS, DEPLOYMENTS = Resource("DeleteBackupRequest"), Resource("Deployment", group="apps")
SECRETS, EVENTS, PODS = (Resource(kind, group="") for kind in ("Secret", "Event", "Pod"))
BACKUP_CONTENTS = "BackupContents"  # the one kind of artifact that is not unpacked


def api_path(resource: Resource, namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of a namespaced collection, object or subresource."""
    root = ["apis", resource.group, "v1"] if resource.group else ["api", "v1"]
    parts = [*root, "namespaces", namespace, resource.plural, name, subresource]
    return "".join("/" + quote(part, safe="") for part in parts if part)


def rule_line(group: str, resource: str, *verbs: str, name: str = "") -> str:
    """The line of a Role that allows verbs on a resource, or on one object of it."""
    named = f'resourceNames: ["{name}"], ' if name else ""
    return f'- {{apiGroups: ["{group}"], resources: ["{resource}"], {named}verbs: {json.dumps(verbs)}}}'


def rule_for(method: str, path: str, watching: bool) -> Tuple[str, str]:
    """A call -> it in words, and the line of a Role that allows it; empty for other paths."""
    match = re.fullmatch(r"/api(?:s/([^/]+))?/v1/namespaces/([^/]+)/([^/]+)(/[^/]+)?(/[^/]+)?(/.+)?", path)
    if not match:
        return "", ""
    group, namespace, plural, name, subresource, inside = match.groups("")
    reading = "watch" if watching else "get" if name else "list"
    verb = {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method, reading)
    return (f"{verb} {plural}{subresource} in namespace {namespace}",
            rule_line(group, plural + subresource, verb, name=name[1:] if inside else ""))


# The way through the cluster: the API server's proxy leads to the controllers behind one Service, under a path that is
# spelled as the Role has it, and says nobody's name. So the caller proves by a hash that he may read the request's URL.
NAME = "velero-requests"  # of that Service, and of all else that `manifests` prints
ARTIFACTS_SERVICES = f"http:{NAME}:http", f"https:{NAME}:https"  # scheme, Service, port; it has one
MARKER, PROOF = "X-Velero-Requests", "X-Velero-Requests-Proof"  # headers: of our answers, and of the proof


def proof_of(url: str) -> str:
    """What shows that somebody has read a URL, without showing it."""
    import hashlib
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()


class Artifact(NamedTuple):
    """What a DownloadRequest can ask for: whose it is, and its key."""
    kind: str
    owner: Resource
    key: str
    releases: str = "1.18"  # those whose CustomResourceDefinition lists the kind

    @property
    def gunzip(self) -> bool:
        return self.kind != BACKUP_CONTENTS

    @property
    def right(self) -> str:  # the resource to `get`, of which only the policy of `manifests policy` knows
        return f"{self.owner.plural}/{self.kind.lower().replace('restore', '').replace('backup', '')}"


# Every spec.target.kind from Velero 1.6 to 1.18 in the order of 1.18's CRD, with its file (velero
# pkg/persistence/object_store_layout.go). RestoreVolumeInfo alone has no `restore-`; BackupItemSnapshots existed from
# 1.8 to 1.10 only.
TARGETS = {kind: Artifact(kind, owner, f"{owner.plural}/{{name}}/{file}", *more) for owner, kind, file, *more in (
    (BACKUPS, "BackupLog", "{name}-logs.gz", "1.6 1.18"),
    (BACKUPS, BACKUP_CONTENTS, "{name}.tar.gz", "1.6 1.18"),
    (BACKUPS, "BackupVolumeSnapshots", "{name}-volumesnapshots.json.gz", "1.6 1.18"),
    (BACKUPS, "BackupItemOperations", "{name}-itemoperations.json.gz"),
    (BACKUPS, "BackupResourceList", "{name}-resource-list.json.gz", "1.6 1.18"),
    (BACKUPS, "BackupResults", "{name}-results.gz"),
    (RESTORES, "RestoreLog", "restore-{name}-logs.gz", "1.6 1.18"),
    (RESTORES, "RestoreResults", "restore-{name}-results.gz", "1.6 1.18"),
    (RESTORES, "RestoreResourceList", "restore-{name}-resource-list.json.gz"),
    (RESTORES, "RestoreItemOperations", "restore-{name}-itemoperations.json.gz"),
    (BACKUPS, "CSIBackupVolumeSnapshots", "{name}-csi-volumesnapshots.json.gz"),
    (BACKUPS, "CSIBackupVolumeSnapshotContents", "{name}-csi-volumesnapshotcontents.json.gz"),
    (BACKUPS, "BackupVolumeInfos", "{name}-volumeinfo.json.gz"),
    (RESTORES, "RestoreVolumeInfo", "{name}-volumeinfo.json.gz"),
    (BACKUPS, "BackupItemSnapshots", "{name}-itemsnapshots.json.gz", ""))}


def target_of(kind: str, name: str) -> Artifact:
    """The row of TARGETS; RequestFailed for what cannot exist."""
    target = TARGETS.get(kind)
    if not target:
        raise RequestFailed(f"unknown kind {one_line(kind, 64)!r}; known are {', '.join(TARGETS)}",
                            reason="UnknownKind")
    if not is_object_name(name):
        raise RequestFailed(f"{one_line(name, 64)!r} cannot be the name of a {target.owner.kind.lower()}",
                            reason="InvalidName")
    return target


# Velero never writes New, it leaves the phase empty; Failed came after 1.18, with status.message.
NEW, PROCESSED, FAILED = "New", "Processed", "Failed"
UNANSWERED = ("", NEW)

# Velero's own times (pkg/persistence, pkg/controller, pkg/cmd).
URL_LIFE = timedelta(minutes=10)  # of a signed URL and of its DownloadRequest
STATUS_LIFE = timedelta(minutes=1)  # of a ServerStatusRequest
STATUS_LOOK_AGAIN = timedelta(minutes=5)  # when an answered one is looked at again, and deleted
URL_POLL, STATUS_POLL = 0.025, 0.25  # seconds, where a client may not watch

REASON = f"{NAME}.io/reason"  # annotation: a stable CamelCase word
MESSAGE = f"{NAME}.io/message"  # annotation: one sentence, no secrets

RETRY_BASE, RETRY_CAP = 0.005, 30.0  # seconds; client-go's base, a cap that heals within a request's life
WATCH_BASE, WATCH_CAP = 1.0, 30.0  # seconds; a failing list or watch, jitter on top
UNREACHABLE_CAP = 3.0  # seconds; while no API server is reached
PAGE_SIZE = 25  # objects; client-go's 500 could be 700 MB

OWN_PLUGINS = (("ObjectStore", "velero.io/aws"),)  # whose work this file does


class Key(NamedTuple):
    """One object in the controller's queue."""
    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


@hidden_in_repr("url")
class Request(NamedTuple):
    """What decisions need of a request; None for times that cannot be read."""
    key: Key
    uid: str
    version: str
    created: Optional[datetime]
    deleting: bool
    phase: str
    target_kind: str = ""
    target_name: str = ""
    url: str = ""
    expiration: Optional[datetime] = None  # of a DownloadRequest
    processed: Optional[datetime] = None  # when a ServerStatusRequest was answered
    reason: str = ""
    message: str = ""

    def is_older_than(self, other: Request) -> bool:  # versions of an API server count up (Kubernetes KEP-5504)
        return (len(self.version), self.version) < (len(other.version), other.version)


class Server(NamedTuple):
    """What a ServerStatusRequest is answered with."""
    version: str
    plugins: Tuple[Tuple[str, str], ...] = OWN_PLUGINS  # (kind, name)


@hidden_in_repr("body")
class Outcome(NamedTuple):
    """What one look at a request decides."""
    verb: str  # leave, patch or delete
    why: str  # the log line, without secrets
    body: Optional[Document] = None  # a merge patch (hidden for its URL), or preconditions
    again: Optional[datetime] = None  # the next look
    failed: bool = False  # look again with back-off
    reason: str = ""  # a word of ours, of a refusal


def request_from(resource: Resource, document: Document) -> Request:
    """Document -> record; reason and message are our annotations, else those of phase Failed."""
    metadata, status, phase = _at(document, "metadata"), _at(document, "status"), _name(document, "status", "phase")
    reason, message = (FAILED, _text(status, "message")) if phase == FAILED else ("", "")
    return Request(
        key=Key(resource, _name(metadata, "namespace"), _name(metadata, "name")),
        uid=_name(metadata, "uid"), version=_name(metadata, "resourceVersion"), phase=phase,
        created=parse_time(_at(metadata, "creationTimestamp")), deleting=_at(metadata, "deletionTimestamp") is not None,
        target_kind=_name(document, "spec", "target", "kind"), target_name=_name(document, "spec", "target", "name"),
        url=_text(status, "downloadURL"), expiration=parse_time(_at(status, "expiration")),
        processed=parse_time(_at(status, "processedTimestamp")),
        reason=_name(metadata, "annotations", REASON) or reason,
        message=(_text(metadata, "annotations", MESSAGE) or message)[:MESSAGE_LIMIT])


def _delete(request: Request, why: str) -> Outcome:
    return Outcome("delete", why, body={"preconditions": {"uid": request.uid, "resourceVersion": request.version}})


def _patch(request: Request, why: str, again: datetime, failed: bool = False, *, status: Document,
           annotations: Optional[Document] = None) -> Outcome:
    body = {"metadata": {"resourceVersion": request.version, **({"annotations": annotations} if annotations else {})}}
    return Outcome("patch", why, {**body, "status": status} if status else body, again, failed)


def triage_download(request: Request, now: datetime) -> Optional[Outcome]:
    """What a DownloadRequest itself decides; None when it is to be answered."""
    expires, limit = request.expiration, now + URL_LIFE
    if not expires and request.phase not in UNANSWERED:
        expires = min(request.created or now, now) + URL_LIFE
    if request.deleting:
        return Outcome("leave", "it is being deleted")
    if expires and expires <= now:
        return _delete(request, f"expired at {format_time(expires)}")
    if not expires or request.phase in UNANSWERED:
        return None
    if expires > limit:
        return _patch(request, "its expiration is further off than a URL lives; cut down", limit,
                      status={"expiration": format_time(limit)})
    return Outcome("leave", f"phase {one_line(request.phase, 64)}; it expires at {format_time(expires)}", again=expires)


def answer_download(request: Request, key: str, url: str, expires: datetime) -> Outcome:
    """The one patch that answers a DownloadRequest."""
    return _patch(request, f"{request.target_kind} of {request.target_name}: signed for {key}", expires,
                  status={"downloadURL": url, "phase": PROCESSED, "expiration": format_time(expires)},
                  annotations={REASON: None, MESSAGE: None} if request.reason else None)


def refuse_download(request: Request, error: Error, now: datetime) -> Outcome:
    """A reason, written once, and an expiration that later failures do not move."""
    limit, reason, message = now + URL_LIFE, error.reason, one_line(redact(str(error)), MESSAGE_LIMIT)
    why, again = f"{reason}: {message}", min(request.expiration or limit, limit)
    status = {} if again == request.expiration else {"expiration": format_time(limit)}
    annotations = {} if (request.reason, request.message) == (reason, message) else {REASON: reason, MESSAGE: message}
    if not status and not annotations:
        return Outcome("leave", why, again=again, failed=error.retry, reason=reason)
    return _patch(request, why, again, error.retry, status=status, annotations=annotations)._replace(reason=reason)


def fall_back_download(request: Request, outcome: Outcome, now: datetime) -> Outcome:
    """When the API takes a patch for invalid, as where annotations are full: the status alone. Without one to write, an
    object older than a request lives is deleted, so that it cannot stay for ever."""
    body = outcome.body or {}
    if "status" in body and "annotations" in body["metadata"]:
        return outcome._replace(body={**body, "metadata": {"resourceVersion": request.version}})
    if request.created and now - request.created >= URL_LIFE:
        return _delete(request, "it cannot be updated and is older than a request lives")
    return Outcome("leave", outcome.why, again=outcome.again, failed=True, reason=outcome.reason)


def decide_status(request: Request, server: Server, now: datetime) -> Outcome:
    """The policy for a ServerStatusRequest; a timestamp from the future counts as its creation."""
    again = now + STATUS_LOOK_AGAIN
    if request.deleting:
        return Outcome("leave", "it is being deleted")
    if request.phase in UNANSWERED:
        status = {"phase": PROCESSED, "processedTimestamp": format_time(now), "serverVersion": server.version,
                  "plugins": [{"kind": kind, "name": name} for kind, name in server.plugins]}
        return _patch(request, f"answered with {server.version}, plugins: {len(server.plugins)}", again, status=status)
    if request.phase != PROCESSED:
        return Outcome("leave", f"unknown phase {one_line(request.phase, 64)!r}")
    answered = request.processed if request.processed and request.processed <= now else min(request.created or now, now)
    if answered + STATUS_LIFE <= now:
        return _delete(request, f"answered at {format_time(answered)}, more than a minute ago")
    return Outcome("leave", f"answered at {format_time(answered)}", again=again)


def is_news(old: Optional[Request], new: Request) -> bool:
    """Whether a changed object is worth a look now. What failing controllers write does not count: two with different
    reasons would wake each other without end."""
    if old is None:
        return True
    expiration = new.expiration if new.phase in UNANSWERED else old.expiration
    return old._replace(version=new.version, reason=new.reason, message=new.message, expiration=expiration) != new


# All replicas of a controller work. Each request is first that of one of them, while that one answers others: else all
# of them would write an answer, of which the API server keeps the first. They know each other by their answers.
REPLICA = "velero-requests-"  # and a random word: a replica's name, which the API server writes into managedFields
REPLICA_LIMIT = 16  # others may write such a name, too
# Seconds: of silence, after which another replica answers as well; the age of a request, from which on all do, and of
# silence, after which a replica that had to be helped out is taken for gone.
REPLICA_PAUSE, REPLICA_PATIENCE = 0.075, 3.0


def replicas_in(document: Document) -> Set[str]:
    """The replicas that have written to an object."""
    entries = _at(document, "metadata", "managedFields")
    names = {_name(entry, "manager") for entry in entries[:20]} if isinstance(entries, list) else set()
    return {name for name in names if name.startswith(REPLICA)}


def replica_for(uid: str, replicas: Iterable[str]) -> str:
    """Whose an object is (rendezvous hashing): when one comes or goes, only what becomes or was its own moves."""
    import hashlib
    return max(replicas, key=lambda name: hashlib.sha256(f"{name} {uid}".encode("utf-8", "surrogatepass")).digest())


def turn_of(own: str, request: Request, others: Mapping[str, float], now: datetime) -> float:
    """The instant from which a replica may answer a request, 0 for its own. others: when each was last heard of."""
    heard = others.get(replica_for(request.uid, (own, *others)))
    age = abs((now - (request.created or now)).total_seconds())
    waits = heard is not None and request.phase in UNANSWERED and age < REPLICA_PATIENCE
    return min(heard, now.timestamp()) + REPLICA_PAUSE if waits else 0  # a clock may have been set back


def watch_pause(failures: int, lived: float, reached: bool, jitter: float) -> float:
    """Seconds until the next watch, after failures in a row (reached: a server answered) or one that lived so long."""
    cap = WATCH_CAP if reached else UNREACHABLE_CAP
    return min(cap, backoff(failures, WATCH_BASE, cap) * jitter) if failures else max(0.0, WATCH_BASE - lived)


def is_version_expired(error: Optional[Error]) -> bool:
    """Whether the API has no longer the version of a watch."""
    return isinstance(error, ApiError) and (error.status == 410 or error.api_reason in ("Expired", "Gone"))


def event_for(request: Request, reason: str, message: str, now: datetime) -> Document:
    """An Event that shows a request's reason in `kubectl describe`."""
    (resource, namespace, name), instant = request.key, format_time(now)
    return {"apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message, "count": 1,
            "metadata": {"generateName": f"{name[:40].rstrip('-.')}-", "namespace": namespace},
            "involvedObject": {"apiVersion": "velero.io/v1", "kind": resource.kind, "namespace": namespace,
                               "name": name, "uid": request.uid, "resourceVersion": request.version},
            "source": {"component": NAME}, "firstTimestamp": instant, "lastTimestamp": instant}


BUCKETS = (.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300)  # seconds; some of controller-runtime's, and 5 minutes
# Name, type, labels and help of every metric; controller-runtime's and client-go's names where they have one.
METRICS = (
    ("controller_runtime_reconcile_total", "counter", ("controller", "result"), "Looks at requests, by their result."),
    ("controller_runtime_reconcile_time_seconds", "histogram", ("controller",), "How long a look took."),
    ("workqueue_depth", "gauge", ("name", "controller"), "Requests that are to be looked at now."),
    ("workqueue_queue_duration_seconds", "histogram", ("name", "controller"), "How long a request was in the queue."),
    ("rest_client_requests_total", "counter", ("code", "method"), "Calls to the API server; <error>: no answer came."),
    ("velero_requests_answered_total", "counter", ("kind", "target_kind"), "Requests that were answered."),
    ("velero_requests_answer_seconds", "histogram", ("kind",), "Time from creation, in whole seconds, to answer."),
    ("velero_requests_refused_total", "counter", ("reason",), "Reasons written to requests."),
    ("velero_requests_oldest_unanswered_seconds", "gauge", ("kind",), "Age of the oldest unanswered request, or 0."))


def metrics_text(series: Mapping[Tuple[str, ...], Sequence[float]]) -> str:
    """Prometheus' text format 0.0.4. series: a metric's name and the values of its labels -> its value; for a histogram
    the sum of what was observed, and how often each of BUCKETS, and more than the last, was."""
    lines = []
    for metric, kind, labels, told in METRICS:
        lines += [f"# HELP {metric} {told}", f"# TYPE {metric} {kind}"]
        for (name, *values), (total, *counts) in sorted(series.items()):
            if name == metric:
                texts = [value.replace("\\", r"\\").replace('"', r'\"').replace("\n", r"\n") for value in values]
                pairs = ",".join(map('{}="{}"'.format, labels, texts))
                if kind == "histogram":
                    lines += [f'{name}_bucket{{{pairs},le="{bound}"}} {count:g}'
                              for bound, count in zip((*BUCKETS, "+Inf"), itertools.accumulate(counts))]
                    lines += [f"{name}_sum{{{pairs}}} {total}", f"{name}_count{{{pairs}}} {sum(counts)}"]
                else:
                    lines.append(f"{name}{{{pairs}}} {total}")
    return "\n".join(lines)


def new_download_request(namespace: str, kind: str, name: str, suffix: str) -> Document:
    """The DownloadRequest a client creates."""
    return {"apiVersion": "velero.io/v1", "kind": DOWNLOAD_REQUESTS.kind,
            "metadata": {"name": f"{name[:50].rstrip('-.')}-{suffix}", "namespace": namespace},
            "spec": {"target": {"kind": kind, "name": name}}}


def new_status_request(namespace: str, suffix: str) -> Document:
    """The ServerStatusRequest a client creates; `-o json` shows it as the velero CLI's."""
    return {"apiVersion": "velero.io/v1", "kind": STATUS_REQUESTS.kind,
            "metadata": {"generateName": "velero-cli-", "name": f"velero-cli-{suffix}", "namespace": namespace},
            "spec": {}}


def logs_refusal(owner: Resource, name: str, phase: str) -> str:
    """Why a backup or restore in this phase has no logs yet, else empty (velero pkg/cmd/cli/backup/logs.go)."""
    kind, waiting = owner.kind.lower(), "WaitingForPluginOperations"  # since 1.11
    if phase in ("Completed", "PartiallyFailed", "Failed", waiting, f"{waiting}PartiallyFailed"):
        return ""
    return (f"logs for {kind} \"{name}\" are not available until it's finished processing (it is {phase or NEW}); "
            f"wait until the {kind} has a phase of Completed or Failed and try again")

# ================================================================================
# 3. Locations — BackupStorageLocation -> record -> object key -> address

class Address(NamedTuple):
    """Where a store or an object is."""
    scheme: str
    host: str  # with its port unless that is the default
    path: str  # percent-encoded once
    region: str = ""  # that a signature is scoped to


def endpoint_from(url: str, source: str) -> Address:
    """The address in a store's URL, in the one form that can be compared; an error never shows it. What urlsplit drops
    is refused, for others read it and come to another host."""
    match = re.fullmatch(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{0,5}))?"
                         r"((?:/[^?#\\\x00-\x1f\x7f\ud800-\udfff]*)?)(?<!\s)",
                         url if len(url) <= 2048 else "", re.ASCII | re.IGNORECASE)
    scheme, host, port, path = match.groups("") if match else ("", "", "", "")
    scheme, address, number = scheme.lower(), str(_ip_address(host.strip("[]"))), int(port or -1)
    name = f"[{address}]" if ":" in address else host.lower().rstrip(".")
    dots = {".", ".."} & {*path.split("/")}  # clients and proxies resolve them, changing what was signed
    if not name or ("[" in name) is not (":" in address) or number == 0 or number > 65535 or dots:
        raise InvalidLocation(f"{source} is no plain http or https URL of a store (host, perhaps port and path)")
    default = number in (-1, {"http": 80, "https": 443}[scheme])
    return Address(scheme, name if default else f"{name}:{number}", quote(path.rstrip("/"), safe="/-._~%"))


def aws_host(service: str, region: str, *, fips: bool = False, dualstack: bool = False) -> str:
    """The host of an AWS service; only this function makes one."""
    dns_label(region, "the region")
    if fips and region.startswith("cn-"):
        raise InvalidLocation(f"there are no FIPS endpoints in {region}; unset AWS_USE_FIPS_ENDPOINT, or "
                              "use_fips_endpoint in the profile")
    # By the start of a region; any other or new one is in the main partition (aws-sdk-go-v2 endpoint rules).
    suffixes = {"cn-": "amazonaws.com.cn", "eusc-": "amazonaws.eu", "us-iso-": "c2s.ic.gov",
                "us-isob-": "sc2s.sgov.gov", "eu-isoe-": "cloud.adc-e.uk", "us-isof-": "csp.hci.ic.gov",
                "": "amazonaws.com"}
    suffix = next(suffix for start, suffix in suffixes.items() if region.startswith(start))
    return f"{dns_label(service, 'the service')}{'-fips' * fips}{'.dualstack' * dualstack}.{region}.{suffix}"


@hidden_in_repr("s3_url", "public_url", "ca_cert")
class Location(NamedTuple):
    """A BackupStorageLocation."""
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
    ca_secret: Tuple[str, str] = ("", "")  # name and key of the Secret that holds the authority
    secret_name: str = ""
    secret_key: str = ""
    credentials_file: str = ""
    profile: str = ""
    trusted: bool = False  # it comes from the operator, not from the cluster
    warnings: Tuple[str, ...] = ()  # what is odd about it, and does no harm

    def endpoint(self) -> Optional[Address]:
        """Its own endpoint, publicUrl or else s3Url; None for AWS's."""
        key, url = ("publicUrl", self.public_url) if self.public_url else ("s3Url", self.s3_url)
        return endpoint_from(url, key) if url else None

    def is_at_aws(self) -> bool:
        """Whether it is at S3 itself, by https: other hosts under amazonaws.com are anybody's."""
        scheme, host = (self.endpoint() or ("https", "s3.amazonaws.com"))[:2]
        match = re.fullmatch(r"s3(-fips)?(\.dualstack)?\.([a-z]+(?:-[a-z]+)+-[0-9]+)\..+", host)
        return scheme == "https" and host in (
            "s3.amazonaws.com", match and aws_host("s3", match[3], fips=bool(match[1]), dualstack=bool(match[2])))

    def is_for_own_identity(self, named: str) -> bool:
        """Whether our own identity belongs there: to AWS's endpoint, or the one that the operator named."""
        endpoint = self.endpoint()
        return self.is_at_aws() or bool(
            endpoint and named and endpoint[:2] == endpoint_from(named, "AWS_ENDPOINT_URL_S3")[:2])


FOREIGN_ENDPOINT = "ForeignEndpoint"  # reason: our own identity does not belong there
TEXT_LIMIT = 2048  # characters of a text of a location; locations are kept
CA_LIMIT = 256 << 10  # bytes; all authorities of a system are less
_GO_BOOLS = {text: text[:1] in ("1", "t", "T") for text in (
    "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False", "")}
_BOOL = tuple(_GO_BOOLS)

# Every key of spec.config that velero-plugin-for-aws 1.2 to 1.14 knows, with the values it takes; () is any text.
LOCATION_KEYS: Dict[str, Tuple[str, ...]] = {
    "region": (), "s3Url": (), "publicUrl": (), "profile": (), "credentialsFile": (),
    "s3ForcePathStyle": _BOOL, "insecureSkipTLSVerify": _BOOL, "signatureVersion": ("4", ""),
    "enableSharedConfig": _BOOL, "checksumAlgorithm": ("CRC32", "CRC32C", "SHA1", "SHA256", ""),
    "serverSideEncryption": (), "kmsKeyId": (), "customerKeyEncryptionFile": (), "customerKeyEncryptionSecret": (),
    "tagging": (), "bucket": (), "prefix": (), "caCert": (),  # Velero before 1.9.1 left the last three there
}


def _check_location(bucket: str, texts: Dict[str, str], ca_cert: Optional[bytes]) -> None:
    if bucket.startswith("arn:"):
        raise InvalidLocation("an ARN as bucket is not served here; name the access point's alias, as in NAME-s3alias")
    if bucket.endswith("--x-s3"):
        raise InvalidLocation("a directory bucket (S3 Express) needs sessions of its own, which are not made here")
    if bucket in ("", ".", "..") or "/" in bucket or " " in bucket or bucket != one_line(bucket):
        raise InvalidLocation(
            f"bucket {one_line(bucket, 64)!r} must be a name without '/'; a folder belongs into objectStorage.prefix")
    for key, text in texts.items():
        allowed = LOCATION_KEYS.get(key)
        if len(text) > TEXT_LIMIT:
            raise InvalidLocation(f"{key} has more than {TEXT_LIMIT} characters")
        if allowed and text not in allowed:
            shown = "true or false" if allowed is _BOOL else ", ".join(filter(None, allowed))
            raise InvalidLocation(f"{key} is {one_line(text, 64)!r}; allowed: {shown}")
    if texts.get("region"):
        dns_label(texts["region"], "config.region")
    if ca_cert is None or len(ca_cert) > CA_LIMIT:
        raise InvalidLocation("objectStorage.caCert is not base64, or has more than 256 KiB")


def location_from(document: Document) -> Location:
    """BackupStorageLocation -> record, as Velero's server and its AWS plugin read it."""
    name, provider = _text(document, "metadata", "name"), _text(document, "spec", "provider")
    storage, credential, fields = (_at(document, "spec", part) for part in ("objectStorage", "credential", "config"))
    bucket, prefix = (_text(storage, part).strip("/") for part in ("bucket", "prefix"))
    fields = fields if isinstance(fields, dict) else {}
    config = {key: _text(fields, key) for key in LOCATION_KEYS}
    ca_cert = decode_base64(_text(storage, "caCert"))
    with about(f"storage location {name!r}"):
        if provider not in ("aws", "velero.io/aws"):
            raise ConfigError(f"provider is {one_line(provider)!r}; only aws (any S3 store) is served here",
                              reason="UnsupportedProvider")
        _check_location(bucket, {**config, "objectStorage.prefix": prefix}, ca_cert)
    return Location(
        name=name, bucket=bucket, prefix=prefix, s3_url=config["s3Url"], public_url=config["publicUrl"],
        region="us-east-1" if config["region"] == "aws-global" else config["region"],  # an alias
        path_style=_GO_BOOLS[config["s3ForcePathStyle"]], insecure=_GO_BOOLS[config["insecureSkipTLSVerify"]],
        ca_cert=ca_cert or b"", ca_secret=(_name(storage, "caCertRef", "name"), _name(storage, "caCertRef", "key")),
        secret_name=_name(credential, "name"), secret_key=_name(credential, "key"),
        credentials_file=config["credentialsFile"], profile=config["profile"],
        warnings=tuple(f"config key {one_line(key, 64)!r} is unknown"
                       for key in sorted(set(map(str, fields)) - set(config))[:10]))  # of perhaps a megabyte


def location_trouble_from(document: Document) -> str:
    """What Velero says is wrong with a location, else empty."""
    message = _text(document, "status", "message") or "no message; see the Velero server's log"
    return one_line(message) if _text(document, "status", "phase") == "Unavailable" else ""


def object_key(prefix: str, artifact: Artifact, name: str) -> str:
    """The key of an artifact; the prefix is cleaned as by Go's path.Join."""
    root = posixpath.normpath(prefix) if prefix else ""
    if root.split("/")[0] == "..":
        raise InvalidLocation(f"the storage location's prefix {prefix!r} leads out of the bucket")
    return posixpath.join("" if root == "." else root, artifact.key.format(name=name))


def _goes_before_host(bucket: str, endpoint: Address) -> bool:
    """By AWS's rules: never of an IP address, with dots only over http."""
    labels = bucket.split(".") if endpoint.scheme == "http" else [bucket]
    is_address = any(re.fullmatch(r"(\[.*\]|\d+(\.\d+){3})(:\d+)?", text, re.ASCII) for text in (endpoint.host, bucket))
    return not is_address and all(re.fullmatch("[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", label) for label in labels)


@functools.lru_cache(maxsize=64)
def bucket_address(location: Location) -> Address:
    """Where a location's bucket is; InvalidLocation when its region or URLs cannot be used."""
    with about(f"storage location {location.name!r}"):
        region, endpoint = dns_label(location.region, "config.region"), location.endpoint()
        if endpoint and (location.fips or location.dualstack):
            raise InvalidLocation("FIPS and dual-stack endpoints are AWS's own; for a location with s3Url unset "
                                  "AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT, or in the profile "
                                  "use_fips_endpoint and use_dualstack_endpoint")
        endpoint = endpoint or Address("https", aws_host(
            "s3", region, fips=location.fips, dualstack=location.dualstack), "")
    if not location.path_style and _goes_before_host(location.bucket, endpoint):
        return endpoint._replace(host=f"{location.bucket}.{endpoint.host}", region=region)
    return endpoint._replace(path=f"{endpoint.path}/{quote(location.bucket, safe='-._~')}", region=region)


def object_address(location: Location, key: str) -> Address:
    """Where an object is: each byte of its key percent-encoded once, nothing cleaned up."""
    bucket = bucket_address(location)
    return bucket._replace(path=f"{bucket.path}/{quote(key, safe='/-._~')}")

# ================================================================================
# 4. Signing — AWS Signature Version 4
#
#    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
#    Only `host` is signed and no parameter added: most stores, proxies and clients agree on the smallest URL.

@hidden_in_repr("access_key", "secret_key", "session_token")
class Credentials(NamedTuple):
    """AWS keys."""
    access_key: str
    secret_key: str
    session_token: str = ""
    expires: Optional[datetime] = None  # None for keys that last

    def are_valid(self, instant: datetime) -> bool:
        return self.expires is None or self.expires > instant


ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"


def canonical_request(method: str, path: str, query: str, headers: Dict[str, str], payload_hash: str) -> str:
    """Method, path, query, headers (lower-case names), their names, payload hash."""
    header_lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    return f"{method}\n{path}\n{query}\n{header_lines}\n{';'.join(sorted(headers))}\n{payload_hash}"


def credential_scope(now: datetime, region: str, service: str) -> Tuple[str, str]:
    """A UTC instant as 20130524T000000Z, and what a signing key is good for: a day, a region, a service."""
    timestamp = now.strftime("%Y%m%dT%H%M%SZ")
    return timestamp, f"{timestamp[:8]}/{region}/{service}/aws4_request"


@functools.lru_cache(maxsize=16)
def signing_key(secret_key: str, scope: str) -> bytes:
    """The key derived for a scope, the same for every URL of a day."""
    import hmac
    key = b"AWS4" + secret_key.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def signature(secret_key: str, timestamp: str, scope: str, request: str) -> str:
    """The signature of a canonical request, in lower-case hex."""
    import hashlib
    import hmac
    text = f"{ALGORITHM}\n{timestamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    return hmac.digest(signing_key(secret_key, scope), text.encode(), "sha256").hex()


def sign_headers(method: str, path: str, headers: Dict[str, str], body: bytes, credentials: Credentials, region: str,
                 service: str, now: datetime) -> Dict[str, str]:
    """Headers (lower-case names, with `host`) -> with those that authorize a request."""
    import hashlib
    timestamp, scope = credential_scope(now, region, service)
    signed = {**headers, "x-amz-date": timestamp}
    if credentials.session_token:
        signed["x-amz-security-token"] = credentials.session_token
    request = canonical_request(method, path, "", signed, hashlib.sha256(body).hexdigest())
    value = signature(credentials.secret_key, timestamp, scope, request)
    return {**signed, "authorization": f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
                                       f"SignedHeaders={';'.join(sorted(signed))}, Signature={value}"}


@functools.lru_cache(maxsize=16)  # all URLs signed in one second share it
def presign_query(access_key: str, token: str, scope: str, timestamp: str, seconds: int,
                  more: Tuple[Tuple[str, str], ...]) -> str:
    """The query of a pre-signed URL, but for its signature: percent-encoded, then sorted by encoded name."""
    parameters = (
        ("X-Amz-Algorithm", ALGORITHM), ("X-Amz-Credential", f"{access_key}/{scope}"), *more, ("X-Amz-Date", timestamp),
        *([("X-Amz-Security-Token", token)] if token else []), ("X-Amz-Expires", str(seconds)),
        ("X-Amz-SignedHeaders", "host"))
    return "&".join(map("=".join, sorted(tuple(quote(text, safe="-._~") for text in pair) for pair in parameters)))


def presign(address: Address, credentials: Credentials, now: datetime, life: timedelta,
            more: Tuple[Tuple[str, str], ...] = ()) -> str:
    """A URL that anybody may GET until now (UTC) + life, so never log it; more: request parameters."""
    seconds = int(life.total_seconds())
    if not 1 <= seconds <= 604800:
        raise ValueError(f"a pre-signed URL lives 1 to 604800 s, not {seconds}")
    timestamp, scope = credential_scope(now, address.region, "s3")
    query = presign_query(credentials.access_key, credentials.session_token, scope, timestamp, seconds, more)
    request = canonical_request("GET", address.path, query, {"host": address.host}, UNSIGNED_PAYLOAD)
    signed = signature(credentials.secret_key, timestamp, scope, request)
    return f"{address.scheme}://{address.host}{address.path}?{query}&X-Amz-Signature={signed}"


def sign(location: Location, key: str, credentials: Credentials, now: datetime, skew: timedelta,
         more: Tuple[Tuple[str, str], ...] = ()) -> Tuple[str, datetime]:
    """A URL for an object, or without a key for the bucket -> with the instant, by our clock, when it ends: not after
    the credentials; expired ones sign nothing. skew: how far the store's clock is ahead."""
    life = URL_LIFE
    if credentials.expires:
        left = credentials.expires - max(now, now + skew).replace(microsecond=0)
        life = min(life, left - timedelta(microseconds=left.microseconds))
    if life < timedelta(seconds=1):
        raise ConfigError(f"the credentials of storage location {location.name!r} have expired: they end at "
                          f"{format_time(credentials.expires or now)}, and this host's clock says {format_time(now)}",
                          reason="CredentialsExpired")
    address = object_address(location, key) if key else bucket_address(location)
    return presign(address._replace(path=address.path or "/"), credentials, now + skew, life, more), now + life

# ================================================================================
# 5. Keys — AWS ini files, profiles, and the plan where keys come from
#
#    What files and profiles hold is secret: errors name them (`source`, `where`), and never show it.

Values = Mapping[str, str]  # what a profile or the environment says, by name
Profiles = Dict[str, Dict[str, str]]
KEY_NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
SMALL_FILE_LIMIT = 1 << 20  # bytes of credentials, certificates or a location; a Secret holds no more
VALUE_LIMIT = 16 << 10  # characters; session tokens have some thousands


def ini_sections(content: bytes, source: str) -> Profiles:
    """An AWS ini file -> its sections; ` #` begins a comment, a `#` inside a value stays. A line indented more than its
    key goes on with the value, as in the nested blocks of AWS (`s3 =`)."""
    text = content[:SMALL_FILE_LIMIT].decode("utf-8-sig", "replace")
    if len(content) > SMALL_FILE_LIMIT or "\ufffd" in text:
        raise CredentialsError(f"{source} is larger than {SMALL_FILE_LIMIT >> 20} MiB, or not UTF-8 text")
    found: Dict[str, Dict[str, List[str]]] = {}
    section: Any = None
    value, depth = None, 0  # that the next line may go on with; its key's indentation
    for number, line in enumerate(text.split("\n"), 1):
        entry = re.split(r"(?:^|\s)[#;]", line, maxsplit=1)[0].strip()
        indent = len(line) - len(line.lstrip())
        if entry and value is not None and indent > depth:
            value.append(entry)
            continue
        value, depth = None, indent
        key, equals, rest = map(str.strip, entry.partition("="))
        if entry[:1] == "[" and "]" in entry:
            section = found.setdefault(entry[1:].partition("]")[0].strip(), {})
        elif section is not None and key and equals:
            section[key.lower()] = value = [rest]
        elif entry:
            raise CredentialsError(f"{source}: line {number} is neither a [profile] nor key = value")
    return {name: {key: "\n".join(parts) for key, parts in values.items()} for name, values in found.items()}


def merge_profiles(credentials: Profiles, config: Profiles) -> Profiles:
    """Sections of a credentials file and of a config file -> profiles. Key by key the first wins, and `[x]` beats
    `[profile x]`, for the plugin loads one file as both. KEY_NAMES of two sections do not mix."""
    profiles: Profiles = {}
    for sections, prefix in itertools.product((config, credentials), ("profile ", "")):
        for section, values in sections.items():
            if section.startswith("profile ") == bool(prefix):
                profile = profiles.setdefault(section[len(prefix):].strip(), {})
                for key in KEY_NAMES if any(key in values for key in KEY_NAMES) else ():
                    profile.pop(key, None)
                profile.update(values)
    return profiles


# Where keys come from -> what is needed for it, by its name in a profile.
PLANS = {"keys": KEY_NAMES, "web identity": ("role_arn", "role_session_name", "web_identity_token_file"),
         "role": ("role_arn", "role_session_name", "external_id", "duration_seconds"),
         "process": ("credential_process", "profile"), "container": ("url", "token", "token_file"),
         "instance": ("endpoint",)}


@hidden_in_repr("values")
class Plan(NamedTuple):
    """Where keys come from; `fetch_credentials` carries it out."""
    how: str  # a key of PLANS
    values: Tuple[Tuple[str, str], ...]
    source: Any = None  # of a role: the plan whose keys may assume it

    @classmethod
    def of(cls, how: str, values: Values, source: Optional[Plan] = None) -> Plan:
        return cls(how, tuple((name, values[name]) for name in PLANS[how] if values.get(name)), source)


def plan_keys(values: Values, where: str) -> Optional[Plan]:
    """The static keys of a profile, where both are there."""
    if not all(map(values.get, KEY_NAMES[:2])):
        return None
    for name in KEY_NAMES:
        if any(c.isspace() or not c.isprintable() for c in values.get(name, "")):
            raise CredentialsError(f"{where}: {name} has a blank or a line end in it",
                                   hints=["a line that is indented goes on with the value above it"])
    return Plan.of("keys", values)


def _variables(environment: Values) -> Dict[str, str]:
    """What environment variables say, by its name in a profile; of two the second wins."""
    names = {"AWS_ACCESS_KEY": KEY_NAMES[0], "AWS_ACCESS_KEY_ID": KEY_NAMES[0], "AWS_SECRET_KEY": KEY_NAMES[1],
             "AWS_SECRET_ACCESS_KEY": KEY_NAMES[1], "AWS_SESSION_TOKEN": KEY_NAMES[2], "AWS_ROLE_ARN": "role_arn",
             "AWS_ROLE_SESSION_NAME": "role_session_name", "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
             "AWS_CONTAINER_AUTHORIZATION_TOKEN": "token", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "token_file"}
    return {name: environment[variable] for variable, name in names.items() if environment.get(variable)}


def plan_container(environment: Values) -> Optional[Plan]:
    """ECS and EKS Pod Identity."""
    # Plain http goes only where it never leaves the machine (aws-sdk-go-v2 config/resolve_credentials.go).
    hosts = ("169.254.170.2", "169.254.170.23", "fd00:ec2::23", "localhost", "127.0.0.1", "::1")
    relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "")
    url = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") or relative and f"http://{hosts[0]}{relative}"
    if not url:
        return None
    parts = urlsplit(url if is_http_url(url) else "")
    if parts.scheme != "https" and parts.hostname not in hosts:
        raise CredentialsError(f"AWS_CONTAINER_CREDENTIALS_FULL_URI must be https, or http to {hosts}")
    return Plan.of("container", {**_variables(environment), "url": url})


def plan_instance(environment: Values) -> Optional[Plan]:
    """The instance's metadata service (IMDS)."""
    if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254"
    if not is_http_url(endpoint):
        raise CredentialsError("AWS_EC2_METADATA_SERVICE_ENDPOINT is no http URL")
    return Plan.of("instance", {"endpoint": endpoint.rstrip("/")})


CREDENTIAL_SOURCES: Dict[str, Callable[[Values], Optional[Plan]]] = {
    "Environment": lambda environment: plan_keys(_variables(environment), "the environment"),
    "EcsContainer": plan_container, "Ec2InstanceMetadata": plan_instance}
# What only the operator may put into a profile: programs, files or identities of this host.
_OPERATORS_OWN = ("credential_process", "web_identity_token_file", "credential_source", "sso_")
# A default profile with none of these, such as one with a region alone, lets the chain go on.
_SOURCE_KEYS = (*KEY_NAMES[:2], *_OPERATORS_OWN, "role_arn", "source_profile")


def plan_profile(profiles: Profiles, name: str, source: str, environment: Values, *, untrusted: bool = False,
                 path: Tuple[str, ...] = ()) -> Plan:
    """A profile's own keys or those of the source it names, and the role that they assume, in aws-sdk-go-v2's order.
    path: the profiles that led here. untrusted: what comes from the cluster gives keys and roles only."""
    if name not in profiles:
        raise CredentialsError(f"{source} has no profile {one_line(name, 64)!r}")
    values, where, path = profiles[name], f"profile {one_line(name, 64)!r} of {source}", (*path, name)
    for key, value in values.items():
        if len(value) > VALUE_LIMIT:
            raise CredentialsError(f"{where}: {one_line(key, 64)} has more than {VALUE_LIMIT} characters")
        if untrusted and key.startswith(_OPERATORS_OWN):
            raise CredentialsError(f"{where}: {one_line(key, 64)} uses what belongs to this host, and is refused here; "
                                   "give aws_access_key_id and aws_secret_access_key, and perhaps a role_arn")
    role_arn = values.get("role_arn", "")
    origin, named, token_file = (role_arn and values.get(key, "") for key in (
        "source_profile", "credential_source", "web_identity_token_file"))
    plan = plan_keys(values, where) if origin in ("", name) else None
    if plan is None and len(path) >= 10:
        raise CredentialsError(f"{where}: source_profile leads in a circle, or too far: {one_line(' -> '.join(path))}")
    if plan is None and origin:
        plan = plan_profile(profiles, origin, source, environment, untrusted=untrusted, path=path)
    elif plan is None and named:
        plan = CREDENTIAL_SOURCES[named](environment) if named in CREDENTIAL_SOURCES else None
    elif plan is None and token_file:
        return Plan.of("web identity", values)
    elif plan is None and values.get("credential_process"):
        plan = Plan.of("process", {**values, "profile": where})
    if plan is None:
        raise CredentialsError(
            f"{where}: it needs both aws_access_key_id and aws_secret_access_key, or a role_arn and a source of keys "
            f"({', '.join(CREDENTIAL_SOURCES)} as credential_source must have some here); for SSO use what "
            "`aws configure export-credentials` prints")
    return Plan.of("role", values, plan) if role_arn else plan


def plan_chain(shared: Profiles, named: str, source: str, environment: Values) -> Plan:
    """Our own identity: environment, web identity, shared files (profile `named` or default), container, instance."""
    own = _variables(environment)
    plan = plan_keys(own, "the environment")
    if plan is None and own.get("web_identity_token_file") and own.get("role_arn"):  # IRSA, as EKS sets it up
        plan = Plan.of("web identity", own)
    if plan is None and (named or any(key.startswith(_SOURCE_KEYS) for key in shared.get("default", {}))):
        plan = plan_profile(shared, named or "default", source, environment)
    plan = plan or plan_container(environment)
    if plan is None and any(map(own.get, KEY_NAMES[:2])):  # the plugin goes on, and nobody learns of it
        raise CredentialsError("the environment has only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; set both")
    plan = plan or plan_instance(environment)
    if plan is None:
        raise ConfigError("no credentials for the store: the storage location names no Secret, and environment, "
                          f"{source}, container and instance have none", reason="CredentialsNotFound")
    return plan

# ================================================================================
# 6. Kubeconfig — documents -> cluster and identity; proxy rules

EXEC_GROUP = "client.authentication.k8s.io/"


@hidden_in_repr("authority", "proxy_url", "exec_config", "token", "password", "certificate", "key")
class Cluster(NamedTuple):
    """How to reach an API server, and as whom; PEM is bytes, or str for the path of a file."""
    server: str
    authority: Union[bytes, str] = b""
    insecure: bool = False
    server_name: str = ""  # tls-server-name: whose certificate is expected
    proxy_url: str = ""
    disable_compression: bool = False  # as exec_config, only told to exec plugins
    exec_config: Any = None
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    certificate: Union[bytes, str] = b""
    key: Union[bytes, str] = b""
    impersonate: Tuple[Tuple[str, str], ...] = ()
    exec_plugin: Optional[Reader] = None  # a program that prints our credentials


@hidden_in_repr("token", "certificate", "key")
class Identity(NamedTuple):
    """Who we are for the next calls: a token, or a certificate with its key."""
    token: str = ""
    certificate: bytes = b""
    key: bytes = b""
    expires: Optional[datetime] = None  # None for one that lasts


def _entry_named(files: List[Reader], kind: str, name: str) -> Reader:
    """The first entry of a name; a user that does not exist is anonymous, as in kubectl."""
    names = []
    for file in files:
        for item in file.get(f"{kind}s", list):
            names.append(_text(item, "name"))
            if names[-1] == name:
                return Reader(_at(item, kind), f"{file.where}, {kind} {one_line(name)!r}", file.file)
    if kind == "user":
        return Reader({}, "")
    raise ConfigError(f"kubeconfig {', '.join(file.file for file in files)} has no {kind} {one_line(name)!r}",
                      hints=[f"it has: {', '.join(map(one_line, names)) or 'none'}"])


def _impersonation_headers(user: Reader) -> Tuple[Tuple[str, str], ...]:
    """Whom a user impersonates -> request headers (client-go transport/round_trippers.go)."""
    extra = user.get("as-user-extra", {str: [str]})
    headers = [("Impersonate-User", user.get("as")), ("Impersonate-Uid", user.get("as-uid"))]
    headers = [header for header in headers if header[1]]
    headers += [("Impersonate-Group", group) for group in user.get("as-groups", [str])]
    headers += [(f"Impersonate-Extra-{quote(key.lower(), safe='-._~')}", value)
                for key in sorted(extra) for value in extra[key]]
    if (headers or extra) and not user.get("as"):
        raise ConfigError(f"{user.where} impersonates a uid, groups or extra values without a user (as)")
    if not all(value.isprintable() for _, value in headers):
        raise ConfigError(f"{user.where}: whom it impersonates has characters that cannot be sent, such as a line end")
    return tuple((header, value.encode().decode("latin-1")) for header, value in headers)  # so that UTF-8 goes out


def _identity_fields(user: Reader, login: Tuple[str, str]) -> Dict[str, Any]:
    """A user, and name and password in the server's URL, which beat its own -> fields of Cluster."""
    certificate = user.pem("client-certificate")
    fields: Dict[str, Any] = {"certificate": certificate, "key": certificate and user.pem("client-key")}
    if login[0]:
        return {**fields, "username": login[0], "password": login[1]}
    fields.update(token=header_value(user.get("token"), f"{user.where}: token"), token_file=user.path("tokenFile"),
                  username=user.get("username"), password=user.get("password"))
    if any(fields[name] for name in ("certificate", "token", "token_file", "username")):
        return fields
    if user.fields.get("exec") is not None:
        return {"exec_plugin": Reader(user.fields["exec"], f"{user.where}, exec", user.file)}
    if user.fields.get("auth-provider") is not None:
        name = one_line(_text(user.fields, "auth-provider", "name"), 64)
        raise ConfigError(f"{user.where} uses auth-provider {name!r}, which kubectl has dropped or will drop", hints=[
            "replace it by an exec plugin (gke-gcloud-auth-plugin, kubelogin) or by a token"])
    return fields


def proxy_url(text: str, what: str) -> str:
    """A proxy as a URL, http without a scheme; ConfigError, which does not show it, for one we cannot use."""
    url = text if "://" in text or not text else f"http://{text}"
    if url.lower().startswith("socks"):
        raise ConfigError(f"{what} is a SOCKS proxy, which needs a package that this file does without", hints=[
            "use an http proxy, or an ssh tunnel (ssh -L) and its local address"])
    if url and not is_http_url(url):
        raise ConfigError(f"{what} is no http or https URL")
    return url


def cluster_from_kubeconfigs(files: List[Tuple[str, Any]], context: str = "") -> Optional[Cluster]:
    """Kubeconfigs as (path, document) -> cluster and user of one context; None when none is chosen."""
    entries = [Reader(document, f"kubeconfig {path}", path) for path, document in files]
    context = context or next(filter(None, (entry.get("current-context") for entry in entries)), "")
    if not context:
        return None
    chosen = _entry_named(entries, "context", context)
    cluster, user = (_entry_named(entries, kind, chosen.get(kind)) for kind in ("cluster", "user"))
    text = cluster.need("server")
    url = text if "://" in text else f"http://{text}"  # client-go rest/url_utils.go
    if not is_http_url(url):
        raise ConfigError(f"{cluster.where}: server {one_line(redact(text))!r} is no http or https URL")
    parts = urlsplit(url)
    login = unquote(parts.username or ""), unquote(parts.password or "")
    configs = [_at(item, "extension") for item in cluster.get("extensions", list)
               if _text(item, "name") == EXEC_GROUP + "exec"]
    authority, insecure, uncompressed = cluster.pem("certificate-authority"), *(
        bool(cluster.get(name, bool)) for name in ("insecure-skip-tls-verify", "disable-compression"))
    # Tokens, passwords and certificates are never sent to a server without TLS.
    identity = _identity_fields(user, login) if parts.scheme == "https" else {}
    return Cluster(
        parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(), authority, insecure and not authority,
        cluster.get("tls-server-name"), proxy_url(cluster.get("proxy-url"), f"{cluster.where}: proxy-url"),
        uncompressed, configs[0] if configs else None, impersonate=_impersonation_headers(user), **identity)


def identity_from_exec(answer: Any, where: str, version: str) -> Identity:
    """What an exec plugin printed (client-go plugin/pkg/client/auth/exec); ConfigError never quotes it."""
    top = Reader(answer, where)
    if top.get("kind") not in ("ExecCredential", "") or top.get("apiVersion") != version:
        raise ConfigError(f"{where} is no ExecCredential of {version}", hints=[
            "the plugin may be older or newer than the kubeconfig"])
    status = Reader(top.get("status", dict), where)
    end = status.fields.get("expirationTimestamp")
    if end is not None and parse_time(end) is None:
        raise ConfigError(f"{where} has an expirationTimestamp that is no time")
    token, certificate, key = map(status.get, ("token", "clientCertificateData", "clientKeyData"))
    if bool(certificate) != bool(key) or not (token or certificate):
        raise ConfigError(f"{where} has neither a token nor a certificate with its key")
    return Identity(header_value(token, f"the token in {where}"), certificate.encode(), key.encode(), parse_time(end))


def _is_exempt(host: str, port: str, no_proxy: str) -> bool:
    """NO_PROXY names a host by `*`, CIDR, IP, name with its subdomains, .suffix or *.suffix, each with a port."""
    address = _ip_address(host)
    for entry in map(str.strip, no_proxy.lower().split(",")):
        with_port = re.fullmatch(r"(?:\[(.+)\]|([^:]+)):(\d+)", entry)
        name, number = (with_port[1] or with_port[2], with_port[3]) if with_port else (entry, port)
        suffix = name[1:] if name.startswith("*.") else name
        if entry == "*" or (address is not None and _in_network(address, entry)):
            return True
        if name and number == port and (_ip_address(name) == address if address is not None else (
                host == suffix or host.endswith(suffix if suffix.startswith(".") else f".{suffix}"))):
            return True
    return False


def proxy_for(url: str, variables: Mapping[str, str]) -> str:
    """The proxy that the environment names for a URL, else empty (Go's golang.org/x/net/http/httpproxy). Upper case
    beats lower case, an empty value falls through, ALL_PROXY is ignored; `localhost` and loopback literals are always
    exempt, names that resolve to them are not. A space in NO_PROXY separates nothing."""
    def value(name: str) -> str:
        return variables.get(name) or variables.get(name.lower()) or ""

    parts = urlsplit(url)
    host, secure = (parts.hostname or "").lower(), parts.scheme == "https"
    name, address = "HTTPS_PROXY" if secure else "HTTP_PROXY", _ip_address(host)
    if host == "localhost" or (address is not None and address.is_loopback) or _is_exempt(
            host, str(parts.port or (443 if secure else 80)), value("NO_PROXY")):
        return ""
    return proxy_url(value(name), name)

# ================================================================================
# 7. Downloads — what an answer says of an object, ranges, gzip, refusals and their cures, when to try again

def explain_signature(url: str, theirs: str) -> str:
    """Where the canonical request that was signed differs from the one that the store saw."""
    parts = urlsplit(url)
    query = "&".join(sorted(part for part in parts.query.split("&") if not part.startswith("X-Amz-Signature=")))
    ours = canonical_request("GET", parts.path, query, {"host": parts.netloc}, UNSIGNED_PAYLOAD).split("\n")
    names = ("method", "path", "query", "host header", "headers", "names of the signed headers", "payload hash")
    for name, *both in itertools.zip_longest(names, ours, theirs.split("\n"), fillvalue=""):
        if both[0] != both[1]:
            mine, other = (one_line(redact(line), 200) for line in both)
            return f"the {name or 'request'} differs: signed {mine!r}, the store saw {other!r}; does a proxy change it?"
    return "the store saw what was signed, so the secret key is not the one of this access key"


def listed_prefixes(body: bytes) -> Tuple[List[str], str]:
    """A page of ListObjectsV2 -> the prefixes that keys have in common, and the token of the next page or nothing."""
    text = body.decode("utf-8", "replace")
    found = re.findall(r"<CommonPrefixes>\s*<Prefix>([^<]*)</Prefix>\s*</CommonPrefixes>", text)
    token = re.search(r"<NextContinuationToken>([^<]+)</NextContinuationToken>", text)
    more = token and "<IsTruncated>true</IsTruncated>" in text
    return [_unescaped(prefix) for prefix in found], _unescaped(token.group(1)) if more else ""


class ObjectInfo(NamedTuple):
    """What the headers of an answer say of an object, and which of its bytes follow."""
    etag: str = ""  # as sent; empty for a weak one, which identifies no bytes
    size: Optional[int] = None  # of the whole object, where it is said
    md5: str = ""  # of the whole object, in hex
    start: int = 0  # -1 for a Content-Range that cannot be
    whole: bool = True  # answered 200, whatever was asked for
    ends: bool = True  # its end can be told from a break: it has a length or comes in chunks


def object_info(status: int, headers: Mapping[str, str]) -> ObjectInfo:
    """Status (200 or 206) and headers of an answer -> what it says of the object. An ETag may be the MD5, but not of an
    object in parts, nor of one that KMS or a customer's key encrypts."""
    etag, length, start = headers.get("ETag", ""), headers.get("Content-Length", ""), 0
    encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms") or headers.get(
        "x-amz-server-side-encryption-customer-algorithm")
    md5 = etag[1:-1] if re.fullmatch(r'"[0-9a-f]{32}"', etag, re.ASCII) and not encrypted else ""
    size = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
    ends = size is not None or "chunked" in headers.get("Transfer-Encoding", "").lower()
    if status != 200:
        part = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(?:(\d{1,18})|\*)", part, re.ASCII)
        first, last, total = map(int, match.groups("-1")) if match else (0, -1, -1)
        wrong = first > last or total not in (-1, last + 1) or size not in (None, last + 1 - first)
        start, size = (-1, None) if wrong else (first, last + 1)
    return ObjectInfo("" if etag.startswith("W/") else etag, size, md5, start, status == 200, ends)


def _changed(position: int) -> StoreError:
    return StoreError(f"the object changed after {position} bytes of it had come", reason="ObjectChanged")


def bytes_to_skip(known: ObjectInfo, info: ObjectInfo, position: int) -> int:
    """How many bytes of an answer are in hand already; StoreError when it does not go on at `position`. The last byte
    in hand is asked for again: so the range is never empty. A store that ignores Range sends it all."""
    differs = None not in (known.size, info.size) and known.size != info.size
    if position and (differs or (known.etag and known.etag != info.etag and (info.etag or info.whole))):
        raise _changed(position)
    if not info.whole and info.start != max(0, position - 1):
        raise StoreError("the store answered with another part than it was asked for", reason="WrongRange")
    return position - info.start


EXPIRED = ("UrlExpired", "ClockSkew", "CredentialsExpired", "NotProven")  # reasons that another request may cure
PASSING_STATUS = (408, 429, 500, 502, 503, 504, 522, 524)  # curl's --retry, too
MAX_DOWNLOAD_WAIT = 60.0  # seconds of waiting without a byte in between; ends endless 503 in 100 s


def download_wait(error: Error, failures: int, waited: float, moved: bool, first: float) -> Optional[float]:
    """Seconds until a broken download is continued, None when it is given up. failures: in a row, without a byte;
    `waited` seconds were spent on them. moved: bytes ever came. first: first wait."""
    broken = isinstance(error, Unreachable) and error.retry
    if not broken and getattr(error, "status", 0) not in PASSING_STATUS and error.reason != "WrongRange":
        return None
    few = error.reason == "WrongRange" or (broken and error.reason != "BrokenOff" and not moved)
    wait = max(backoff(failures, first, 10.0), getattr(error, "retry_after", None) or 0.0)
    return None if failures >= (3 if few else 10 if moved else 5) or waited + wait > MAX_DOWNLOAD_WAIT else wait


def may_be_continued(error: BaseException) -> bool:
    """Whether what came before an error is worth keeping: not when the object is wrong or gone, or the disk is full."""
    return not isinstance(error, OSError) and (
        not isinstance(error, StoreError) or error.status not in (0, 404) or error.reason == "WrongRange")


def bytes_text(count: float) -> str:
    """`17 B`, `1.5 KiB`, `3.2 GiB`."""
    power = next((power for power in range(4) if count < 1024 ** (power + 1)), 4)
    return f"{count / 1024 ** power:.1f} {'KMGT'[power - 1]}iB" if power else f"{count:.0f} B"


def progress_text(done: int, size: Optional[int], fresh: int, seconds: float) -> str:
    """Bytes, percent, rate and time left of a transfer, of which `fresh` bytes came in the last `seconds`."""
    rate = fresh / seconds if seconds > 0 else 0.0
    text = f"{bytes_text(done)} of {bytes_text(size)}, {100 * done // size}%" if size else bytes_text(done)
    left = f", {format_duration(max(0, math.ceil((size - done) / rate)))} left" if size and rate else ""
    return f"{text}, {bytes_text(rate)}/s{left}"


def _what_is(body: bytes) -> str:
    """What a body that should be something else looks like, for an error."""
    text = body[:512].decode("utf-8", "replace").rstrip("\ufffd")  # the cut may halve a character
    start = text.lstrip().lower()
    if start.startswith(("<!doctype html", "<html")):
        return "an HTML page; does the URL lead to a console or a login?"
    if start.startswith(("<?xml", "<error")):
        return "an XML document"
    if "\ufffd" in text or any(not c.isprintable() and not c.isspace() for c in text):
        return "binary data"
    return f"text: {one_line(redact(text), 80)}" if body else "nothing"


INFLATED_SIZE = 1 << 20  # bytes of content at a time, whatever the ratio
SLICE_SIZE = 16 << 10  # bytes given to zlib at a time where it would copy what it leaves over


def inflate(chunks: Iterable[bytes], *, unpack: bool = True) -> Iterator[bytes]:
    """gzip members, one after another -> their content, or without `unpack` the same bytes; in small pieces.

    StoreError, after all before the fault, when it is no gzip, breaks off, fails CRC or length, or something follows.
    """
    import zlib
    inflater, read = None, 0
    for chunk in chunks:
        rest, size = memoryview(chunk), len(chunk)
        while rest:
            piece = rest[:size]
            inflater = inflater or zlib.decompressobj(31)
            before = inflater.copy()
            try:
                content = inflater.decompress(piece, INFLATED_SIZE)
            except zlib.error as error:
                if not read and bytes(piece[:2]) not in (b"\x1f", b"\x1f\x8b"):
                    what = _what_is(chunk)
                    raise StoreError(f"the file is not gzip but {what}", hints=[
                        "correct s3Url or publicUrl of the storage location"] * what.startswith("an HTML")) from None
                if len(piece) == 1:
                    raise StoreError(f"the file is damaged after {read} bytes: {one_line(error)}") from None
                inflater, size = before, len(piece) // 2  # towards the fault
                continue
            left = len(inflater.unused_data if inflater.eof else inflater.unconsumed_tail)
            done, size = len(piece) - left, min(size, SLICE_SIZE) if left else size
            yield content if unpack else chunk if done == len(chunk) else bytes(piece[:done])
            rest, read = rest[done:], read + done
            inflater = None if inflater.eof else inflater
    if inflater is not None:
        raise StoreError(f"the file is cut short: it ends after {read} bytes in the middle of its gzip data")
    if not read:
        raise StoreError("the file is empty, not gzip")


# Reason and cure of a refusal, by S3's error code, if a GET by signed URL can meet it
# (https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html), else by its status.
REFUSALS = {code: (reason, cure) for codes, reason, cure in (
    ("AccessDenied 403", "StoreAccessDenied",
     "the credentials need s3:GetObject on it; without s3:ListBucket a missing file looks the same"),
    ("NoSuchKey 404", "ArtifactNotFound", "the backup or restore may never have written it, or it has expired"),
    ("NoSuchBucket", "BucketNotFound", "correct objectStorage.bucket of the storage location"),
    ("RequestTimeTooSkewed", "ClockSkew", "set the clock of the host that signs"),
    ("InvalidAccessKeyId XAdminUserNotFound", "InvalidCredentials",  # the second is versitygw's
     "the store does not know the access key; correct the Secret or the credentials file"),
    ("SignatureDoesNotMatch", "SignatureDoesNotMatch", "correct the secret key, s3Url or publicUrl"),
    ("ExpiredToken", "CredentialsExpired", "renew the temporary credentials in the Secret"),
    ("InvalidToken InvalidTokenId", "InvalidCredentials",  # the second is MinIO's
     "the session token does not belong to these keys"),
    ("PermanentRedirect TemporaryRedirect", "WrongEndpoint", "correct region or s3Url of the storage location"),
    ("AuthorizationHeaderMalformed AuthorizationQueryParametersError IllegalLocationConstraintException",
     "WrongRegion", "correct region of the storage location"),
    ("InvalidObjectState", "ArtifactArchived", "the object is in an archive tier; restore it there first"),
) for code in codes.split()}
OTHER_CODES = ("InternalError", "InvalidArgument", "InvalidBucketName", "InvalidRange", "InvalidRequest",
               "MethodNotAllowed", "RequestTimeout", "ServiceUnavailable", "SlowDown")
MAX_SKEW = timedelta(days=1)  # one further off would sign a URL that becomes valid only years from now


def clock_skew(headers: Mapping[str, str], now: datetime, most: timedelta = MAX_SKEW) -> timedelta:
    """How far a store's clock, by its Date header, is ahead of ours; zero when it says nothing, or more than `most`."""
    skew = (parse_http_date(headers.get("Date")) or now) - now
    return skew if abs(skew) <= most else timedelta(0)


def skew_text(whose: str, skew: timedelta) -> str:
    """How far a clock is ahead of ours or behind it, empty up to a minute."""
    if abs(skew) <= timedelta(minutes=1):
        return ""
    days, apart = round(abs(skew) / timedelta(1)), format_duration(abs(skew).total_seconds(), 0)
    return (f"{whose} clock is {f'{days} days' if days > 2 else apart} "
            f"{'ahead of' if skew > timedelta(0) else 'behind'} this host's")


def _meaning(status: int, code: str, message: str, region: str) -> Tuple[str, str]:
    """Reason and cure of a refusal: what its code says, unless something else in the answer says more."""
    if code == "AccessDenied" and "expired" in message.lower():
        return "UrlExpired", "ask for the URL again; if it is new, the clocks differ"
    if code == "AccessDenied" and re.search("not (yet valid|valid yet)", message.lower()):  # AWS's words, and MinIO's
        code = "RequestTimeTooSkewed"
    elif code not in REFUSALS and region and status in (301, 307, 400):  # whatever it complains of, it knows the region
        code = "AuthorizationHeaderMalformed" if status == 400 else "PermanentRedirect"
    return REFUSALS.get(code) or REFUSALS.get(str(status), ("StoreError", ""))


def store_refusal(status: int, body: bytes, headers: Mapping[str, str], where: str, url: str, now: datetime,
                  quoting: bool = True) -> StoreError:
    """A store's refusal -> one sentence with its cause, and the cure, without the signature. quoting: whether it may
    hold what the store has written; else of that only a known code."""
    fields = xml_fields(body) if body.lstrip()[:1] == b"<" else {}
    code, message = fields.get("Code", ""), fields.get("Message", "")
    region = one_line(fields.get("Region") or headers.get("x-amz-bucket-region") or "", 64)
    reason, cure = _meaning(status, code, message, region)
    skew, seen = (clock_skew(headers, now, most) for most in (MAX_SKEW, timedelta.max))
    detail = f"{code}: {message}" if code else _what_is(body)
    if not quoting:
        detail = code if code in REFUSALS or code in OTHER_CODES else "without a code of S3"
    elif code == "SignatureDoesNotMatch" and fields.get("CanonicalRequest"):
        detail = f"{code}: {explain_signature(url, fields['CanonicalRequest'])}"
    elif reason in ("WrongRegion", "WrongEndpoint") and region:
        detail = f"{detail} (the bucket is in region {region})"
    elif reason in ("ClockSkew", "UrlExpired"):
        drift = skew_text("the store's", seen)
        detail += f" ({drift})" if drift else ""
    lack = {"ArtifactNotFound": "file", "BucketNotFound": "bucket"}.get(reason)
    said = f"has no such {lack} ({one_line(redact(detail))})" if lack else (
        f"answered {status}: {one_line(redact(detail), 600)}")
    error = StoreError(f"{where} {said}", status=status, reason=reason, hints=filter(None, [cure]))
    error.skew, error.retry_after = skew, retry_after_seconds(headers.get("Retry-After", ""), now)
    if reason in EXPIRED:
        error.exit = Exit.FAILED  # that is no lack of rights
    elif reason == CredentialsError.usual_reason:
        error.exit = Exit.NOT_ALLOWED  # versitygw's 404 does not say that the artifact is missing
    return error

ITEM_LIMIT = 8 << 20  # bytes of one file in a backup; etcd takes objects of 1.5 MiB
TAR_HEADER = struct.Struct("100s 24x 12s 12x 8s B 100x 6s 82x 155s 12x")  # name, size, checksum, kind, magic, prefix


@functools.lru_cache(maxsize=10_000)
def _octal(field: bytes) -> Tuple[int, int]:
    """A field of a header -> its number, and the sum of its bytes; remembered, for most repeat."""
    return int(b"0" + field.strip(b" \0"), 8), sum(field)


def _tar_header(block: bytes, adler32: int) -> Tuple[int, str, int]:
    """A header -> kind and path of a member, and the size of its content; ValueError when it is damaged."""
    name, size, check, kind, magic, prefix = TAR_HEADER.unpack(block)
    # The lower half of Adler-32 is the sum of all bytes, plus 1. The checksum is that sum, its own bytes being blanks.
    checksum, own = _octal(check)
    if adler32 & 0xffff != (checksum + own - 255) % 65521:
        raise ValueError
    path = name.partition(b"\0")[0]
    if prefix[0] and magic == b"ustar\0":
        path = prefix.partition(b"\0")[0] + b"/" + path
    # Links, devices and folders have no content, whatever they say.
    return kind, path.decode("utf-8", "surrogateescape"), 0 if kind in b"123456" else _octal(size)[0]


def _tar_members(chunks: Iterator[bytes]) -> Iterator[Tuple[int, str, bytes]]:
    """An archive -> kind, path and content of its members."""
    from zlib import adler32
    path, parts, came, needed = "its beginning", [], 0, 512
    for chunk in chunks:
        parts.append(chunk)
        came += len(chunk)
        if came < needed:
            continue
        held, at, needed = b"".join(parts), 0, 512
        parts, chunk = [], b""  # each is let go of as soon as another one has its bytes
        while came - at >= 512:
            block = held[at:at + 512]
            try:
                kind, name, size = _tar_header(block, adler32(block))
            except ValueError:
                if any(block):
                    raise StoreError(f"the archive is damaged after {one_line(path)}") from None
                for _ in chunks:  # which may say that they are not whole
                    pass
                return
            if size > ITEM_LIMIT:
                raise StoreError(f"{one_line(name)} is larger than {ITEM_LIMIT >> 20} MiB")
            needed = 512 + (size + 511 & -512)
            if came - at < needed:
                break
            path = name
            yield kind, path, held[at + 512:at + 512 + size]
            at, needed = at + needed, 512
        parts, came, held = [held[at:]], came - at, b""
    if any(b"".join(parts)):
        raise StoreError(f"the archive is cut short after {one_line(path)}")


def tar_files(chunks: Iterable[bytes]) -> Iterator[Tuple[str, bytes]]:
    """A tar archive (ustar, PAX, GNU's long names) in chunks, which are all taken -> path and content of its plain
    files; StoreError where it is damaged, after what is sound. Python's own takes ten times as long."""
    long = b""  # name of the next file, by a header before its own
    for kind, path, content in _tar_members(iter(chunks)):
        if kind in b"0\0007":
            yield (long.decode("utf-8", "surrogateescape") if long else path), content
            long = b""
        elif kind in b"L":
            long = content.rstrip(b"\0")
        elif kind in b"x":
            long = b"".join(re.findall(rb"(?:^|\n)\d+ path=([^\n]*)", content)[-1:])
        elif kind not in b"Kg":
            long = b""


def final_phase(owner: Document) -> str:
    """The phase of a backup or restore that is over; empty while it goes on, as in a phase that nobody knows."""
    phase = _text(owner, "status", "phase")
    return phase if phase in ("Completed", "PartiallyFailed", "Failed", "FailedValidation", "Deleting") else ""


def is_about(owner: Key, line: bytes) -> bool:
    """Whether a line of Velero's log has the field `backup` (`restore`) with exactly this NAMESPACE/NAME. In text, as
    logrus writes it, that stands behind whole fields, so that no quoted message passes for one."""
    field, name = owner.resource.kind.lower(), f"{owner.namespace}/{owner.name}"
    with contextlib.suppress(ValueError):
        if line.startswith(b"{"):  # Velero's finalizers log a mapping in JSON
            return _at(parse_json(line), field) in (name, {"Namespace": owner.namespace, "Name": owner.name})
    return re.match(rb'(?:[^ ="]+=(?:"[^"\\]*(?:\\.[^"\\]*)*"|[^ "]*) )*%b=("?)%b\1(?: |\Z)' % (
        field.encode(), re.escape(name.encode())), line, re.DOTALL) is not None


class LogPosition:
    """How far a pod's log, with timestamps, has been read: the `time` of the last line, and the `count` of those in a
    row with this very time. A log can be asked for only from a whole second on."""

    def __init__(self, since: datetime) -> None:
        self.time, self.count = since, 0

    def fresh(self, found: Iterable[bytes]) -> Iterator[bytes]:
        """The lines behind it, without timestamps; what has none is none of the log. Behind the first of them all are
        fresh, for a clock may be set back."""
        before, seen = self.time, self.count  # type: Tuple[Optional[datetime], int]
        for line in found:
            stamp, _, text = line.partition(b" ")
            time = parse_time(stamp[:64].decode("ascii", "replace"))
            if time is None or before and (time < before or time == before and seen):
                seen -= time == before
                continue
            self.count = self.count + 1 if time == self.time else 1
            self.time, before = time, None
            yield text

# ================================================================================
# 8. Screens — tables, describe, JSON and YAML; strings and documents only

def json_text(document: Any) -> str:
    """A document as JSON with an indent of two; only what cannot be shown is escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return re.sub(r"[^\w -~\n]", lambda c: c[0] if printable(c[0]) == c[0] else json.dumps(c[0])[1:-1], text) + "\n"


# What needs no quotes: words that neither Go nor YAML 1.1 takes for anything but a string, with single blanks or signs
# between them. All other strings are written as in JSON, which YAML reads, too.
_PLAIN = re.compile(r"(?!(y|n|yes|no|on|off|true|false|null)$)[a-z_/]([-\w./+@]|[ :=,](?=[\w/]))*", re.ASCII | re.I)


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return re.sub(r"^(-?\d+)(?=e)", r"\1.0", json_text(value)[:-1])  # YAML 1.1 takes 1e+22 for a string


def _yaml_block(value: Any) -> str:
    if isinstance(value, list) and value:
        return "\n".join("- " + _yaml_block(item).replace("\n", "\n  ") for item in value)
    if not isinstance(value, dict) or not value:
        return _yaml_scalar(value)
    rows = []
    for name, item in value.items():
        if name is None:  # a comment of our own; no document of a cluster has such a name
            rows.append(f"# {item}")
            continue
        line = ("\n  " if isinstance(item, dict) else "\n") if isinstance(item, (dict, list)) and item else " "
        rows.append(f"{_yaml_scalar(name)}:{line}" + _yaml_block(item).replace("\n", line))
    return "\n".join(rows)


def yaml_text(*documents: Any) -> str:
    """Documents as YAML in block style, with `---` between them."""
    return "---\n".join(_yaml_block(document) + "\n" for document in documents)


DOCUMENT_TEXTS = {"json": json_text, "yaml": yaml_text}

Localize = Callable[[datetime], datetime]  # an instant -> the same one in the user's time zone
NONE, NONE_INCLUDED = "<none>", "<none included>"
MAX_WIDTH = 300  # characters; a longer cell, which Velero never writes, does not widen its column
TABLE = {"gap": 3, "least": 6}  # the columns of `get` in kubectl and velero


def go_time(text: str, localize: Localize, absent: str) -> str:
    """RFC 3339 -> as Go prints it, `2026-03-01 02:00:00 +0000 UTC`; `absent` for none and for Go's zero time."""
    instant = parse_time(text)
    if instant is None or instant.year == 1:
        return f"<invalid time {one_line(text, 64)!r}>" if text and instant is None else absent
    with contextlib.suppress(OverflowError, ValueError, OSError):  # of a time zone at the ends of the calendar
        instant = localize(instant)
    fraction = f".{instant.microsecond:06d}".rstrip("0") if instant.microsecond else ""
    return f"{instant.isoformat(' ')[:19]}{fraction} {instant:%z %Z}"


def age(seconds: float) -> str:
    """Seconds -> `59s`, `59m`, `23h`, `364d`, `2y`, cut off as kubectl does; Go ends at 292 years."""
    seconds = min(seconds, 2 ** 63 / 1e9)
    units = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))
    return next(f"{seconds // unit:.0f}{name}" for unit, name in units if seconds >= unit or unit == 1)


def duration(text: str) -> str:
    """A duration as Go prints it: `720h` -> `720h0m0s`, none -> `0s`."""
    try:
        return format_duration(parse_duration(text or "0"), 9)
    except ValueError:
        return f"<invalid duration {one_line(text, 64)!r}>"


def aligned(lines: Iterable[str], gap: int = 2, least: int = 0) -> str:
    """Lines with tabs -> columns so far apart, as Go's text/tabwriter makes them. Neighbouring lines with a cell at
    one position make a block as wide as the longest, or `least`; behind the last tab is no cell."""
    rows = [line.split("\t") for line in lines]
    for column in range(max(map(len, rows), default=1) - 1):
        for wide, block in itertools.groupby(rows, key=lambda row: len(row) > column + 1):
            cells = list(block) if wide else []
            width = max(least, min(MAX_WIDTH, max((len(row[column]) for row in cells), default=0)) + gap)
            for row in cells:
                row[column] = row[column].ljust(width)
    return "".join("".join(row) + "\n" for row in rows)


class Fields:
    """Typed access to an untrusted document by dotted paths. A value of another type counts as absent and is noted in
    `wrong`; without that, as for artifacts, it is an Error."""
    def __init__(self, value: Any, place: str = "", wrong: Optional[Dict[str, None]] = None) -> None:
        self.value, self.place, self.wrong = value, place, wrong

    def refuse(self, place: str, wanted: str, _value: Any) -> None:
        text = f"{place or 'the document'} must be {wanted}"
        if self.wrong is None:
            raise StoreError(f"this is not what Velero writes: {one_line(text)}")
        self.wrong[text] = None

    def part(self, path: str) -> "Fields":
        value, place = self.value, self.place
        for step in path.split(".") if path else ():
            value = (value if type(value) is dict else typed(value, dict, place, self.refuse)).get(step)
            place = f"{place}.{step}" if place else step
        return Fields(value, place, self.wrong)

    def __call__(self, path: str = "", kind: Any = str) -> Any:
        part = self.part(path)
        return typed(part.value, kind, part.place, self.refuse)

    def rows(self, path: str = "") -> "List[Fields]":
        part = self.part(path)
        return [Fields(item, f"{part.place}[{number}]", self.wrong) for number, item in enumerate(part("", [dict]))]


def label_selector(selector: Fields) -> str:
    """A label selector in one line, sorted by key: `app=web,env in (prod,stage),!legacy`."""
    forms = {"In": "{} in ({})", "NotIn": "{} notin ({})", "Exists": "{}", "DoesNotExist": "!{}"}
    terms = [(key, f"{key}={value}") for key, value in selector("matchLabels", {str: str}).items()]
    for row in selector.rows("matchExpressions"):
        form, key = forms.get(row("operator"), "<error>"), row("key")
        terms.append((key, form.format(key, ",".join(sorted(row("values", [str]))))))
    return ",".join(text for _, text in sorted(terms, key=lambda term: term[0])) or NONE


# From what is at a path, and the words after the format's name, to what is shown.
FORMATS: Dict[str, Callable[[Fields, str], Any]] = {
    "": lambda at, absent: at() or absent,
    "number": lambda at, _: at("", int),
    "map": lambda at, _: at("", {str: str}),
    "pairs": lambda at, _: [f"{key}: {value}" for key, value in sorted(at("", {str: str}).items())],
    "list": lambda at, _: at("", [str]),
    "names": lambda at, all_: all_ if all_ and at("", [str]) in ([], ["*"]) else ", ".join(at("", [str])) or NONE,
    "words": lambda at, _: " ".join(at("", [str])),
    "switch": lambda at, words: dict(zip((True, False, None), (words or "true false auto").split())).get(at("", bool)),
    "duration": lambda at, _: duration(at()),
    "selector": lambda at, _: label_selector(at),
    "selectors": lambda at, _: " or ".join(map(label_selector, at.rows())) or NONE,
    "item": lambda at, _: ".".join(filter(None, (at("Resource"), at("Group")))) + f" {at('Namespace')}/{at('Name')}",
    "items": lambda at, _: [FORMATS["item"](item, "") for item in at.rows()],
    "progress": lambda at, _: f"{at('nCompleted', int)} of {at('nTotal', int)} complete ({at('operationUnits')})"}


def formatted(fields: Fields, slot: str, localize: Localize) -> Any:
    """What is shown for `path:format words`; None where the format ends with `?` and there is nothing."""
    path, _, form = slot.partition(":")
    name, _, words = form.rstrip("?").partition(" ")
    at = fields.part(path)
    value = go_time(at(), localize, words) if name == "time" else FORMATS[name](at, words)
    return value or None if form.endswith("?") else value


# The columns of `velero backup get` and `restore get` 1.18.
_COUNTS = {"ERRORS": "status.errors:number", "WARNINGS": "status.warnings:number"}
COLUMNS = {
    BACKUPS: {"NAME": "metadata.name", "STATUS": "status.phase: New", **_COUNTS,
              "CREATED": "status.startTimestamp:time <nil>", "EXPIRES": "status.expiration",
              "STORAGE LOCATION": "spec.storageLocation", "QUEUE POSITION": "status.queuePosition:number?",
              "SELECTOR": "spec.labelSelector:selector"},
    RESTORES: {"NAME": "metadata.name", "BACKUP": "spec.backupName", "STATUS": "status.phase: New",
               "STARTED": "status.startTimestamp:time <nil>", "COMPLETED": "status.completionTimestamp:time <nil>",
               **_COUNTS, "CREATED": "metadata.creationTimestamp:time <nil>",
               "SELECTOR": "spec.labelSelector:selector"}}


def _expires(backup: Fields, now: datetime) -> str:
    """From now; of a backup that was not processed yet by its age and time to live."""
    instant, created = parse_time(backup("status.expiration")), parse_time(backup("metadata.creationTimestamp"))
    if instant is None or instant.year == 1:
        instant = None
        with contextlib.suppress(ValueError, OverflowError):
            life = parse_duration(backup("spec.ttl"))
            instant = created + timedelta(seconds=life) if created and life > 0 else None
    if instant is None:
        return "n/a"
    seconds = (instant - now).total_seconds()
    return age(abs(seconds)) + " ago" * (seconds < 0)


def backup_sort_key(name: str) -> str:
    """Sorts by name, but the backups of one schedule newest first."""
    reverse = str.maketrans("0123456789", "9876543210")
    return re.sub(r"(?<=-\d\d)\d{12}\Z", lambda match: match.group().translate(reverse), name, flags=re.ASCII)


def resource_table(resource: Resource, documents: Iterable[Document], now: datetime, *, localize: Localize,
                   label_columns: Sequence[str] = (), show_labels: bool = False) -> str:
    """What `velero backup get` or `restore get` prints; nothing for none."""
    titles = (name.rpartition("/")[2].upper() for name in label_columns)
    rows = ["\t".join((*COLUMNS[resource], *titles, *["LABELS"] * show_labels))]
    records = [Fields(document, "", {}) for document in documents]
    if resource is BACKUPS:
        records.sort(key=lambda record: backup_sort_key(record("metadata.name")))
    for record in records:
        cells = {title: formatted(record, slot, localize) for title, slot in COLUMNS[resource].items()}
        if resource is BACKUPS:
            cells["EXPIRES"] = _expires(record, now)
        if record("metadata.deletionTimestamp"):
            cells["STATUS"] = "Deleting" if resource is BACKUPS else f"{cells['STATUS']} (Deleting)"
        labels = record("metadata.labels", {str: str})
        every = ",".join(f"{key}={labels[key]}" for key in sorted(labels)) or NONE
        shown = (*cells.values(), *map(labels.get, label_columns), *[every] * show_labels)
        rows.append("\t".join("" if cell is None else printable(str(cell)) for cell in shown))
    return aligned(rows, **TABLE) if records else ""


def list_document(resource: Resource, documents: List[Document], version: str = "") -> Document:
    """What `get -o json|yaml` prints: the one document, else a list; `version` is the list's resourceVersion."""
    return documents[0] if len(documents) == 1 else {
        "kind": f"{resource.kind}List", "apiVersion": "velero.io/v1",
        "metadata": {"resourceVersion": version} if version else {}, "items": documents}


def plugin_table(document: Document) -> str:
    """What `velero plugin get` prints of an answered ServerStatusRequest; nothing for none."""
    plugins = sorted((row("kind"), row("name")) for row in Fields(document, "", {}).rows("status.plugins"))
    rows = [f"{one_line(name)}\t{one_line(kind)}" for kind, name in plugins]
    return aligned(["NAME\tKIND", *rows], **TABLE) if plugins else ""


def is_missing(value: Any) -> bool:
    """Whether it is the error of a missing artifact, or of a kind that an older server lacks."""
    return isinstance(value, Error) and value.reason in ("ArtifactNotFound", "UnknownKind")


def related_of(resource: Resource, document: Document) -> List[Tuple[Resource, str]]:
    """The related objects that describe lists, as (resource, label selector)."""
    name = _text(document, "metadata", "name")
    if len(name) > 63:  # which is what a label holds (velero pkg/label)
        import hashlib
        name = name[:57] + hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:6]
    owner = f"velero.io/{resource.kind.lower()}-name={name}"
    if resource is RESTORES:
        return [(POD_VOLUME_RESTORES, owner)]
    uid = f"velero.io/backup-uid={_text(document, 'metadata', 'uid')}"
    return [(DELETE_REQUESTS, f"{owner},{uid}"), (POD_VOLUME_BACKUPS, owner)]


def artifacts_of(resource: Resource, document: Document, *, details: bool, structured: bool = False) -> List[str]:
    """The artifacts that describe shows; velero's JSON (`structured`) of a backup has no item operations."""
    kind, status = resource.kind, Fields(document, "", {}).part("status")
    operations = details and status(f"{kind.lower()}ItemOperationsAttempted", int) > 0
    return ([f"{kind}Results"] * bool(status("warnings", int) or status("errors", int))
            + [f"{kind}ItemOperations"] * (operations and not (structured and resource is BACKUPS))
            + [f"{kind}ResourceList"] * details + ["BackupVolumeInfos" if resource is BACKUPS else "RestoreVolumeInfo"])


def legacy_artifacts_of(backup: Document) -> List[str]:
    """What describe needs in place of BackupVolumeInfos, which servers before 1.13 did not write."""
    status = Fields(backup, "", {}).part("status")
    csi = ["CSIBackupVolumeSnapshots", "CSIBackupVolumeSnapshotContents"]
    return (["BackupVolumeSnapshots"] * (status("volumeSnapshotsAttempted", int) > 0)
            + csi * (status("csiVolumeSnapshotsAttempted", int) > 0))


# What describe shows is drawn by templates, one string a row:
#   `Label:  {path:format words} > place`  Two blanks stand for a tab. The words are for the format, such as what stands
#       there for none; with `format?` the row is left out then. The place is that of the value in the JSON, ` >` alone
#       the same as the path. A row that begins with a brace is for the JSON alone.
#   `[path]` … `[]`  Drawn when something is at the path, or at one of `[path|path]`, after `[!path]` when nothing is;
#       `{.x}` is a field of what is there.
#   `@name words ! row`  Drawn by the method; when it fails, by the row after `!`, or after `!!` below an empty one.
Template = Tuple[str, ...]
RESULTS = ("@result warnings ! Warnings:  {getting warnings} > warnings/errorGettingWarnings",
           "@result errors !! Errors:  {getting errors} > errors/errorGettingErrors")
TIMES = ("", "Started:  {status.startTimestamp:time <n/a>} > status/started",
         "Completed:  {status.completionTimestamp:time <n/a>} > status/completed")
NAMESPACES = ("Namespaces:", "  Included:  {includedNamespaces:names *} > namespaces/included",
              "  Excluded:  {excludedNamespaces:names} > namespaces/excluded", "")
RESOURCES = ("Resources:", "  Included:  {includedResources:names *} > resources/included",
             "  Excluded:  {excludedResources:names} > resources/excluded")
CLUSTER_SCOPED = "{includeClusterResources:switch included excluded auto} > resources/clusterScoped"
SCOPED_RESOURCES = (
    "Resources:", "  Included cluster-scoped:  {includedClusterScopedResources:names}",
    "  Excluded cluster-scoped:  {excludedClusterScopedResources:names}",
    "  Included namespace-scoped:  {includedNamespaceScopedResources:names *}",
    "  Excluded namespace-scoped:  {excludedNamespaceScopedResources:names}",
    "{includedResources:names *} > resources/included", "{excludedResources:names} > resources/excluded",
    CLUSTER_SCOPED)
HOOK = (*NAMESPACES, *RESOURCES, "", "Label selector:  {labelSelector:selector} >")
HOOK_COMMAND = ("  Container:  {container} >", "  Command:  {command:words} >", "  On Error:  {onError} > onError:",
                "  Timeout:  {timeout:duration} >")  # `onError:` is velero's spelling
OPERATION = (
    "  Operation for {spec.resourceIdentifier:item}: > resource",
    "    Backup Item Action Plugin:  {spec.backupItemAction:?} > plugin",
    "    Restore Item Action Plugin:  {spec.restoreItemAction:?} > plugin",
    "    Operation ID:  {spec.operationID} > operationID",
    "[spec.postOperationItems]", "    Items to Update:", "      {spec.postOperationItems:items}", "[]",
    "    Phase:  {status.phase} > phase", "    Operation Error:  {status.error:?} > error",
    "[status.nTotal|status.nCompleted]", "    Progress:  {status:progress} > progress", "[]",
    "    Progress description:  {status.description:?} > description",
    *(f"    {name.title()}:  {{status.{name}:time?}} > {name}" for name in ("created", "started", "updated")))
NATIVE_SNAPSHOT = ("Snapshot ID:  {.snapshotHandle} > snapshotID", "Type:  {.volumeType} > type",
                   "Availability Zone:  {.volumeAZ} > availabilityZone", "IOPS:  {.iops} > IOPS", "Result:  {result} >")
RESTORED_SNAPSHOT = ("Snapshot Content Name: {.vscName} > snapshotContentName",
                     "Storage Snapshot ID: {.snapshotHandle} > storageSnapshotID", "CSI Driver: {.driver} > csiDriver")
CSI_SNAPSHOT = (
    "[!snapshotDataMoved]", "Operation ID: {csiSnapshotInfo.operationID:?}",
    "{csiSnapshotInfo.operationID} > operationID", "[]", *RESTORED_SNAPSHOT[:2],
    "Snapshot Size (bytes): {.size:number} > snapshotSize(bytes)", RESTORED_SNAPSHOT[2], "Result: {result} >")
DATA_MOVEMENT = (
    "Operation ID: {.operationID} >", "Data Mover: {.dataMover: velero} >", "Uploader Type: {.uploaderType} >",
    "Moved data Size (bytes): {.size:number}", "Incremental data Size (bytes): {.incrementalSize:number?}",
    "Result: {result} >", "[snapshotDataMovementInfo.size|snapshotDataMovementInfo.incrementalSize]",
    *(f"{{snapshotDataMovementInfo.{name}:number}} > {name}" for name in ("size", "incrementalSize")))
RESTORED_DATA = (DATA_MOVEMENT[0], "Data Mover: {.dataMover} >", DATA_MOVEMENT[2])
DELETION = ("{metadata.creationTimestamp:time <n/a>} > creationTimestamp", "{status.phase} > phase",
            "[status.errors]", "  Errors:", "    {status.errors:list} > errors")
VALIDATION = (
    "[status.validationErrors]", "", "Validation errors:  {status.validationErrors:list} > validationErrors", "[]")
HEAD = ("Name:  {metadata.name} >", "Namespace:  {metadata.namespace} >", "Labels:  {metadata.labels:map} >",
        "Annotations:  {metadata.annotations:map} >", "", "@phase")
BACKUP = (
    *HEAD, "[spec.resourcePolicy]", "", "Resource policies:", "  Type:  {.kind} > resourcePolicies/type",
    "  Name:  {.name} > resourcePolicies/name", "[spec.uploaderConfig.parallelFilesUpload]", "", "Uploader config:",
    "  Parallel files upload:  {spec.uploaderConfig.parallelFilesUpload:number}", "[]", *VALIDATION,
    "", *RESULTS, "", "@filters", "", "Label selector:  {spec.labelSelector:selector} >",
    "", "Or label selector:  {spec.orLabelSelectors:selectors}", "", "Storage Location:  {spec.storageLocation} >",
    "", "Velero-Native Snapshot PVs:  {spec.snapshotVolumes:switch} > spec/veleroNativeSnapshotPVs",
    "File System Backup (Default):  {spec.defaultVolumesToFsBackup:switch true false}",
    "Snapshot Move Data:  {spec.snapshotMoveData:switch} > spec/veleroSnapshotMoveData",
    "Data Mover:  {spec.datamover: velero}", "{spec.datamover: <none>} > spec/dataMover",
    "", "TTL:  {spec.ttl:duration} > spec/TTL",
    "", "CSISnapshotTimeout:  {spec.csiSnapshotTimeout:duration} > spec/CSISnapshotTimeout",
    "ItemOperationTimeout:  {spec.itemOperationTimeout:duration}", "", "@hooks",
    "[spec.orderedResources]", "", "OrderedResources:", "  {spec.orderedResources:pairs}",
    "{spec.orderedResources:map} >", "[]",
    "", "Backup Format Version:  {status.formatVersion} > status/backupFormatVersion", *TIMES,
    "", "Expiration:  {status.expiration:time <nil>} >", "", "[status.progress]", "@progress", "", "[]",
    "@operations ! Backup Item Operations:  {getting operation info}",
    "[--details]", "@resource_list ! Resource List:  {getting backup resource list} > status/errorGettingResourceList",
    "", "[]", "Backup Volumes:",
    "@snapshots NativeSnapshot !   Velero-Native Snapshots: {concluding native snapshot info}"
    " > status/backupVolumes/errorConcludeNativeSnapshot", "",
    "@snapshots CSISnapshot !   CSI Snapshots: {concluding CSI snapshot info}"
    " > status/backupVolumes/errorConcludeCSISnapshot",
    "", "@pod_volumes !   Pod Volume Backups: {getting pod volume backups} > status/backupVolumes/podVolumeBackups",
    "[status.hookStatus]", "", "HooksAttempted:  {.hooksAttempted:number} > status/hooksAttempted",
    "HooksFailed:  {.hooksFailed:number} > status/hooksFailed", "[]",
    "@deletions !! Deletion Attempts: {getting deletion attempts} > deletionAttempts/error")
RESTORE = (
    *HEAD, "[status.progress]", "@progress", "[]", *TIMES, *VALIDATION, *RESULTS,
    "", "Backup:  {spec.backupName} > spec/backup", "", "@filters",
    "", "Namespace mappings:  {spec.namespaceMapping:map} > spec/namespaceMappings",
    "", "Label selector:  {spec.labelSelector:selector} >",
    "", "Or label selector:  {spec.orLabelSelectors:selectors} > spec/orLabelSelector",
    "", "Restore PVs:  {spec.restorePVs:switch} >",
    "@pod_volumes !! Pod Volume Restores: {getting pod volume restores} > status/podVolumeRestores",
    "@csi_restores !! CSI Snapshot Restores: {getting restore volume info} > status/csiSnapshotRestores",
    "", "Existing Resource Policy: \t{spec.existingResourcePolicy: <none>} >",
    "ItemOperationTimeout:  {spec.itemOperationTimeout:duration} >",
    "", "Preserve Service NodePorts:  {spec.preserveNodePorts:switch} > spec/preserveServiceNodePorts",
    "[spec.resourceModifier]", "", "Resource modifier:", "  Type:  {.kind} > spec/resourceModifier/type",
    "  Name:  {.name} > spec/resourceModifier/name", "[spec.uploaderConfig]", "", "Uploader config:",
    "  Write Sparse Files:  {spec.uploaderConfig.writeSparseFiles:switch true} >",
    "  Parallel Restore:  {spec.uploaderConfig.parallelFilesDownload:number?} >",
    "[]", "", "@operations ! Restore Item Operations:  {getting operation info} > status/restoreItemOperations/error",
    "[status.hookStatus]", "", "HooksAttempted: \t{.hooksAttempted:number} > status/hooksAttempted",
    "HooksFailed: \t{.hooksFailed:number} > status/hooksFailed", "[--details]", "",
    "@resource_list ! Resource List:  {getting restore resource list} > status/errorGettingResourceList")

RED, GREEN, BOLD = "\x1b[31m{}\x1b[0m", "\x1b[32m{}\x1b[0m", "\x1b[1m{}\x1b[22m"
COLORS = {"Completed": GREEN, "FailedValidation": RED, "PartiallyFailed": RED, "Failed": RED,
          "Name:\t": BOLD, "Validation errors:\t": RED, "Unreadable:\t": RED}  # of a phase, and of what has a label
SEE_DETAILS = "specify --details for more information"
POD_VOLUME_PHASES = ("Completed", "Failed", "Canceled", "In Progress", "Canceling", "Prepared", "Accepted", "New")


def _pod_volume_text(volume: Fields, phase: str) -> str:
    name, total = volume("spec.volume"), volume("status.progress.totalBytes", int)
    increment = volume("status.incrementalBytes", int)  # which restores do not have
    if phase == "In Progress" and total:
        return f"{name} ({volume('status.progress.bytesDone', int) / total * 100:.2f}%)"
    if phase != "Completed" or not (total > 0 or increment > 0):
        return str(name)
    return f"{name} (size: {total}{f', incremental size: {increment}' if increment > 0 else ''})"


class Description:
    """What `velero backup|restore describe` shows of an object, as `text` and as `json`; `troubles` is what they lack.
    found: related objects by Resource, artifacts by kind. An Error in place of one is said in its place, and is a
    trouble unless velero has a text for it. The first trouble gives the exit code."""
    def __init__(self, resource: Resource, document: Document, found: Mapping[Any, Any], *, localize: Localize,
                 details: bool = False, colorized: bool = False):
        self.wrong: Dict[str, None] = {}  # what in the objects is of the wrong type
        self.document = Fields(document, "", self.wrong)
        self.spec, self.status, self.name = *map(self.document.part, ("spec", "status")), self.document("metadata.name")
        self.kind, self.is_backup, self.details, self.colorized = resource.kind, resource is BACKUPS, details, colorized
        self.found, self.localize = found, localize
        self.troubles: List[Error] = []
        self.json: Document = {}
        self.rows: List[str] = []
        self._fill(BACKUP if self.is_backup else RESTORE, self.document, into=self.json)
        if self.wrong:  # velero shows nothing at all then
            text, more = one_line(next(iter(self.wrong)), 200), len(self.wrong) - 1
            self.troubles.insert(0, Error(f"{self.kind} {one_line(self.name, 254)}: {text}" + (
                f" (and {more} more)" if more else "")))
            self.rows.append("")
            self._add("Unreadable:\t", [*self.wrong][:10], "unreadable")
        self.text = aligned(self.rows)

    def _put(self, place: str, value: Any, into: Optional[Document] = None) -> Any:
        """Set a value at a place in the JSON, or in a part of it, and return it."""
        tree, (*above, name) = self.json if into is None else into, place.split("/")
        for step in above:
            tree = tree.setdefault(step, {})
        tree[name] = value
        return value

    def _add(self, label: str, value: Any = "", place: str = "", color: str = "{}", note: str = "") -> None:
        """A row, and its value in the JSON; a list has a row for each item, a map for each pair. The label holds the
        tabs that place it. Where a list is empty, velero indents the word for that once more."""
        words = label[:4].lstrip("\t") + label[4:]  # no label has more; further tabs came from a document
        tabs, gap = label[:len(label) - len(words)], "\t" * words.endswith("\t")
        values = [f"{key}={value[key]}" for key in sorted(value)] if isinstance(value, dict) else value
        texts = [printable(text) for item in (values if isinstance(values, list) else [str(values)])
                 for text in item.rstrip("\r\n").split("\n")]
        color = COLORS.get(label, color) if self.colorized else "{}"
        first, *more = map(color.format, texts or [tabs + NONE])
        self.rows.append(tabs + printable(words.rstrip("\t")) + gap + first + printable(note))
        self.rows += [tabs + "\t" * bool(words) + text for text in more]
        if place:
            self._put(place, value)

    def _fill(self, template: Template, fields: Fields, tabs: str = "", part: str = "", into: Any = None) -> Document:
        """Draw a template -> the values at its places in the JSON; `{.x}` is a field of `part`."""
        tree, base, shown = {} if into is None else into, part, True
        for row in template:
            text, mark, place = row.partition(" >")
            label, brace, rest = text.partition("{")
            slot, _, note = rest.partition("}")
            if row == "[]":
                part, shown = base, True
            elif row.startswith("["):
                part = row[1:-1].lstrip("!")
                shown = row.startswith("[!") != any(
                    self.details if path == "--details" else fields.part(path).value not in (None, 0, [])
                    for path in part.split("|"))
            elif shown and row.startswith("@"):
                self._section(label, slot, place[1:])
            elif shown:
                value = formatted(fields, part * slot.startswith(".") + slot, self.localize) if brace else ""
                if value is not None and (label or not brace):
                    self._add(tabs * bool(label) + label.replace("  ", "\t"), value, note=note)
                if value is not None and mark:
                    place = place[1:] or slot.partition(":")[0].strip(".").replace(".", "/")
                    self._put(place, None if value == {} else value, tree)
        return tree

    def _section(self, label: str, what: str, place: str) -> None:
        """Draw `@method words ! label`; one that fails leaves the others alone."""
        call, _, instead = label.partition(" !")
        name, *words = call[1:].split()
        try:
            getattr(self, f"_{name}")(*words)
        except Error as error:
            self.troubles += [] if str(error) in map(str, self.troubles) else [error]
            why = "file not found" if is_missing(error) else one_line(error)
            self.rows += [""] * instead.startswith("!")
            self._add(instead.lstrip("!")[1:].replace("  ", "\t"), f"<error {what}: {why}>", place)

    def _lacks(self, kind: str) -> bool:
        return kind not in self.found or is_missing(self.found[kind])

    def _get(self, key: Any) -> Any:
        if isinstance(self.found[key], Error):
            raise self.found[key]
        return self.found[key]

    def _artifact(self, kind: str) -> Fields:
        return Fields(self._get(kind), kind)

    def _listed(self, resource: Resource) -> List[Fields]:
        return [Fields(item, f"{resource.kind} {_text(item, 'metadata', 'name')}", self.wrong)
                for item in self._get(resource)]

    # The sections, by their names in the templates:

    def _phase(self) -> None:
        phase, quote = self._put("phase", self.status("phase")), "`" if self.is_backup else "'"
        note = f" (run {quote}velero {self.kind.lower()} logs {self.name}{quote} for more information)"
        deleting = not self.is_backup and self._put("deleting", bool(self.document("metadata.deletionTimestamp")))
        self._add("Phase:\t", (phase or NEW) + " (Deleting)" * deleting, color=COLORS.get(phase, "{}"),
                  note=note * (phase in ("Failed", "PartiallyFailed")))
        if self.is_backup and phase == "Queued":
            self._add("Queue position:\t", self.status("queuePosition", int))

    def _progress(self) -> None:
        """An estimate while the items are being worked on."""
        verb, name = ("backed up", "BackedUp") if self.is_backup else ("restored", "Restored")
        running, progress = self.status("phase") == "InProgress", self.status.part("progress")
        total, place = ("Estimated total", "estimatedTotal") if running else ("Total", "total")
        self._add(f"{total} items to be {verb}:\t", progress("totalItems", int), f"status/{place}ItemsToBe{name}")
        self._add(f"Items {verb}{' so far' * running}:\t", progress(f"items{name}", int),
                  f"status/items{name}{'SoFar' * running}")

    def _result(self, name: str) -> None:
        """Warnings or errors; of a backup by a server before 1.11 there is no file, only the numbers."""
        counts = {name: self.status(name, int) for name in ("errors", "warnings")}
        if not any(counts.values()):
            return
        if self.is_backup and self._lacks("BackupResults"):
            for other in counts if name == "warnings" else ():
                self._add(f"{other.title()}:\t", counts[other], f"{other}/count")
            return
        result, tree = self._artifact(f"{self.kind}Results").part(name), self.json.setdefault(name, {})
        if counts[name] > 0:
            namespaces = result("namespaces", {str: [str]})
            self.rows += ["", f"{name.title()}:"]
            self._fill(("  Velero:  {velero:list} >", "  Cluster:  {cluster:list} >"), result, into=tree)
            self.rows.append("\tNamespaces:" if namespaces else f"\tNamespaces: {NONE}")
            tree["namespace"] = namespaces or []
            for namespace, texts in sorted(namespaces.items()):
                self._add(f"\t\t{namespace}:\t", texts)

    def _filters(self) -> None:
        """The JSON has the older resource filters also where the newer ones are in use."""
        older = not self.is_backup or self.spec("includeClusterResources", bool) is not None or any(
            self.spec(f"{word}Resources", [str]) for word in ("included", "excluded"))
        every = "*" if self.is_backup else "all namespaces found in the backup"
        rows = (*RESOURCES, f"  Cluster-scoped:  {CLUSTER_SCOPED}") if older else SCOPED_RESOURCES
        self._fill((*(row.replace("*", every) for row in NAMESPACES), *rows), self.spec,
                   into=self.json.setdefault("spec", {}))

    def _hooks(self) -> None:
        """Of hooks of one name the JSON has the last."""
        hooks, trees = self.spec.rows("hooks.resources"), {}
        self.rows += ["Hooks:", "\tResources:"] if hooks else [f"Hooks:\t{NONE}"]
        for hook in hooks:
            self._add(f"\t\t{hook('name')}:")
            tree = self._put("spec/hooks/resources", trees)[hook("name")] = self._fill(HOOK, hook, "\t\t\t")
            for when in ("pre", "post"):
                commands = tree[f"{when}ExecHook"] = []
                for command in (row for row in hook.rows(when) if row.part("exec").value is not None):
                    self.rows += ["", f"\t\t\t{when.title()} Exec Hook:"]
                    commands.append(self._fill(HOOK_COMMAND, command.part("exec"), "\t\t\t"))

    def _operations(self) -> None:
        """velero has no such JSON: that of restores is ours."""
        artifact = f"{self.kind}ItemOperations"
        tree: Document = {name: self.status(f"{artifact[0].lower()}{artifact[1:]}{name.title()}", int)
                          for name in ("attempted", "completed", "failed")}
        if tree["attempted"] <= 0:
            return
        if not self.is_backup:
            self._put("status/restoreItemOperations", tree)
        if self.details and artifact in self.found:
            rows = self._artifact(artifact).rows()
            self.rows.append(f"{self.kind} Item Operations:")
            tree["operations"] = [self._fill(OPERATION, row) for row in rows]
        else:
            text = "{completed} of {attempted} completed successfully, {failed} failed".format(**tree)
            self._add(f"{self.kind} Item Operations:\t", f"{text} ({SEE_DETAILS})")

    def _resource_list(self) -> None:
        artifact = f"{self.kind}ResourceList"
        if self._lacks(artifact):
            text = f"<{self.kind.lower()} resource list not found>"
            self._add("Resource List:\t", text, "status/errorGettingResourceList")
            return
        resources = self._put("status/resourceList", self._artifact(artifact)("", {str: [str]}))
        self._add("Resource List:")
        for group, names in sorted(resources.items()):
            self._add(f"\t{group}:")
            self._add("\t\t", [f"- {name}" for name in names or [""]])

    def _older_native_snapshots(self) -> Iterator[Document]:
        for row in self._artifact("BackupVolumeSnapshots").rows():  # 1.6 began one name with a capital letter
            iops, name = row.part("spec.volumeIOPS"), row("spec.persistentVolumeName")
            yield {"pvName": name or row("spec.PersistentVolumeName"), "nativeSnapshotInfo": {
                "snapshotHandle": row("status.providerSnapshotID"), "volumeType": row("spec.volumeType"),
                "volumeAZ": row("spec.volumeAZ"), "iops": "" if iops.value is None else str(iops("", int))}}

    def _older_csi_snapshots(self) -> Iterator[Document]:
        snapshots, contents = (self._artifact(f"CSIBackupVolumeSnapshot{word}").rows() for word in ("s", "Contents"))
        claim, unknown = "spec.source.persistentVolumeClaimName", {"pvcName": "<PVC name not found>"}
        claims = {row("status.boundVolumeSnapshotContentName"): {
            "pvcNamespace": row("metadata.namespace"), "pvcName": row(claim)} for row in snapshots if row(claim)}
        for row in contents:
            name, handle, size = row("metadata.name"), row("status.snapshotHandle"), row("status.restoreSize", int)
            yield {**claims.get(name, unknown), "preserveLocalSnapshot": True, "csiSnapshotInfo": {
                "vscName": name, "driver": row("spec.driver"), "snapshotHandle": handle, "size": size}}

    def _snapshots(self, method: str) -> None:
        """Of a backup; servers before 1.13 tell of them in other artifacts."""
        native, older = method == "NativeSnapshot", self._lacks("BackupVolumeInfos")
        infos = [] if older else [row for row in self._artifact("BackupVolumeInfos").rows()
                                  if row("backupMethod") == method]
        if older and self.status("volumeSnapshotsAttempted" if native else "csiVolumeSnapshotsAttempted", int) > 0:
            infos = [*map(Fields, self._older_native_snapshots() if native else self._older_csi_snapshots())]
        title, place = ("Velero-Native", "native") if native else ("CSI", "csi")
        self._volumes(f"\t{title} Snapshots", f"status/backupVolumes/{place}Snapshots", infos,
                      "<none included or not detectable>" if older and not native else NONE_INCLUDED)

    def _csi_restores(self) -> None:
        """The volumes that came from CSI snapshots, moved ones last."""
        if not self._lacks("RestoreVolumeInfo"):
            infos = [row for row in self._artifact("RestoreVolumeInfo").rows() if row("restoreMethod") == "CSISnapshot"]
            self.rows.append("")
            self._volumes("CSI Snapshot Restores", "status/csiSnapshotRestores",
                          sorted(infos, key=lambda row: bool(row("snapshotDataMoved", bool))))

    def _volumes(self, title: str, place: str, infos: List[Fields], none: str = NONE_INCLUDED) -> None:
        """Native snapshots, or claims, each with its local snapshot, the data moved away from it, or both."""
        self.rows.append(f"{title}:" if infos else f"{title}: {none}")
        volumes, tabs = self._put(place, {} if infos else none), "\t" * (1 + self.is_backup)
        snapshot, data = (CSI_SNAPSHOT, DATA_MOVEMENT) if self.is_backup else (RESTORED_SNAPSHOT, RESTORED_DATA)
        for row in infos:
            if place.endswith("nativeSnapshots"):
                name = row("pvName")
                volumes[name] = self._volume(tabs, name, NATIVE_SNAPSHOT, row, "nativeSnapshotInfo")
                continue
            name, moved = f"{row('pvcNamespace')}/{row('pvcName')}", row("snapshotDataMoved", bool)
            self._add(f"{tabs}{name}:")
            tree = volumes.setdefault(name, {})
            if row("preserveLocalSnapshot", bool) if self.is_backup else not moved:
                tree["snapshot"] = self._volume(f"{tabs}\t", "Snapshot", snapshot, row, "csiSnapshotInfo")
            if moved:
                tree["dataMovement"] = self._volume(f"{tabs}\t", "Data Movement", data, row, "snapshotDataMovementInfo")

    def _volume(self, tabs: str, title: str, template: Template, info: Fields, part: str) -> Any:
        """By its template, or without --details by words -> the same for the JSON."""
        words = f"included, {SEE_DETAILS}" if template in (CSI_SNAPSHOT, DATA_MOVEMENT) else SEE_DETAILS
        self._add(f"{tabs}{title}:" if self.details else f"{tabs}{title}: {words}")
        return self._fill(template, info, tabs + "\t", part) if self.details else words

    def _pod_volumes(self) -> None:
        """In velero's order of phases, unknown ones last, then by pod; the JSON is in the order of the API."""
        volumes = self._listed(POD_VOLUME_BACKUPS if self.is_backup else POD_VOLUME_RESTORES)
        place = "status/backupVolumes/podVolumeBackups" if self.is_backup else "status/podVolumeRestores"
        if not volumes:
            self._put(place, NONE_INCLUDED)
            self.rows += [f"\tPod Volume Backups: {NONE_INCLUDED}"] * self.is_backup
            return
        order = POD_VOLUME_PHASES if self.is_backup else ("Completed", "Canceled", *POD_VOLUME_PHASES[1:])
        phases: Dict[str, Dict[str, List[str]]] = {name: {} for name in order}
        for volume in volumes:
            phase, pod = volume("status.phase") or NEW, f"{volume('spec.pod.namespace')}/{volume('spec.pod.name')}"
            phase = "In Progress" if phase == "InProgress" else phase
            phases.setdefault(phase, {}).setdefault(pod, []).append(_pod_volume_text(volume, phase))
        uploader, shown = volumes[0]("spec.uploaderType"), {}
        self._put(place, {"uploderType": uploader, f"podVolume{self.kind}sDetails": shown})  # velero's spelling
        tabs, more = "\t" * self.is_backup, "" if self.details else f" ({SEE_DETAILS})"
        self.rows += [""] * (not self.is_backup)
        self._add(f"\tPod Volume Backups - {uploader}{more}:" if self.is_backup else f"{uploader} Restores{more}:")
        for phase, pods in phases.items():
            if pods and not self.details:
                shown[phase] = sum(map(len, pods.values()))
                self._add(f"{tabs}\t{phase}:\t", shown[phase])
            elif pods:
                shown[phase] = [{pod: ", ".join(names)} for pod, names in pods.items()]
                self._add(f"{tabs}\t{phase}:")
                self._add(f"{tabs}\t\t", [f"{pod}: {', '.join(sorted(names))}" for pod, names in sorted(pods.items())])

    def _deletions(self) -> None:
        attempts, shown = self._listed(DELETE_REQUESTS), []
        failed = sum(row("status.phase") == "Processed" and bool(row("status.errors", list)) for row in attempts)
        if attempts:
            self._put("deletionAttempts", {"deleteBackupRequests": shown, **({"failed": failed} if failed else {})})
            self.rows += ["", "Deletion Attempts" + f" ({failed} failed)" * bool(failed) + ":"]
        for row in attempts:
            self.rows += [""] * bool(shown)
            shown.append(self._fill(DELETION[:2], row))
            self._add("\t{creationTimestamp}: {phase}".format(**shown[-1]))
            self._fill(DELETION[2:], row, into=shown[-1])


def version_text(server_version: Optional[str], output: str = "") -> str:
    """What `velero version` prints, None being --client-only; also as json or yaml, which velero lacks."""
    versions = {"client": f"v{__version__}", **({} if server_version is None else {"server": server_version})}
    if output in DOCUMENT_TEXTS:
        return DOCUMENT_TEXTS[output]({program: {"version": version} for program, version in versions.items()})
    client, *server = (f"{name.title()}:\n\tVersion: {one_line(version)}\n" for name, version in versions.items())
    return f"{client}\tGit commit: -\n{''.join(server)}"  # one file, which is its own commit

# What lies in a backup: a file of JSON for each item (velero pkg/archive/filesystem.go). In the version that its API
# prefers it lies a second time, below a folder of that version; other versions lie below such folders alone.
ITEM_FILE = re.compile(r"(?:\./)?resources/(\w[^/]*)/(?:namespaces/(\w[^/]*)|cluster)/([^/]+)\.json")
Item = Tuple[str, str, str]  # plural with group (`deployments.apps`, `pods`), namespace or nothing, name
SHORT_NAMES = dict(pair.split("=") for pair in (  # kubectl's
    "cj=cronjobs cm=configmaps crd=customresourcedefinitions cs=componentstatuses csr=certificatesigningrequests "
    "deploy=deployments ds=daemonsets ep=endpoints ev=events hpa=horizontalpodautoscalers ing=ingresses "
    "limits=limitranges netpol=networkpolicies no=nodes ns=namespaces pc=priorityclasses pdb=poddisruptionbudgets "
    "po=pods psp=podsecuritypolicies pv=persistentvolumes pvc=persistentvolumeclaims quota=resourcequotas "
    "rc=replicationcontrollers rs=replicasets sa=serviceaccounts sc=storageclasses sts=statefulsets svc=services "
    "vs=volumesnapshots vsc=volumesnapshotcontents vsclass=volumesnapshotclasses").split())


@functools.lru_cache(maxsize=1000)
def is_resource(word: str, resource: str) -> bool:
    """Whether a plural, singular, kind or short name means a resource; `.group` may follow, `.` for the core group."""
    name, dot, group = word.lower().partition(".")
    plural, _, own_group = resource.partition(".")
    name = SHORT_NAMES.get(name, name)
    return plural in (name, f"{name}s", f"{name}es", re.sub("y$", "ies", name)) and (not dot or group == own_group)


def item_rows(items: Iterable[Item], output: str) -> Iterator[str]:
    """A line for each item as it comes: of JSON, `resource/name`, or in the columns of `get`, which widen with the
    rows as those of `kubectl get --watch`."""
    before, first, second = "[\n" if output == "json" else "NAMESPACE   RESOURCE   NAME\n", 9, 8
    for resource, namespace, name in items:
        if output == "json":
            yield before + json.dumps({"resource": resource, "namespace": namespace, "name": name})
            before = ",\n"
        elif output == "name":
            yield printable(f"{resource}/{name}") + "\n"
        else:
            if len(namespace) > first or len(resource) > second:
                first, second = max(first, min(len(namespace), MAX_WIDTH)), max(second, min(len(resource), MAX_WIDTH))
            yield before + printable(f"{(namespace or NONE).ljust(first)}   {resource.ljust(second)}   {name}") + "\n"
            before = ""
    if output == "json":
        yield "[]\n" if before == "[\n" else "\n]\n"


# What a restore leaves out of all objects (velero pkg/restore/restore.go, resetMetadata and resetStatus), and of some
# kinds what a cluster gave them (velero pkg/restore/actions).
LEFT_OUT = {
    "": "status metadata:generateName metadata:selfLink metadata:uid metadata:resourceVersion metadata:generation "
        "metadata:creationTimestamp metadata:deletionTimestamp metadata:deletionGracePeriodSeconds "
        "metadata:ownerReferences metadata:managedFields",
    "Job": "spec:selector:matchLabels:controller-uid spec:selector:matchLabels:batch.kubernetes.io/controller-uid "
           "spec:template:metadata:labels:controller-uid "
           "spec:template:metadata:labels:batch.kubernetes.io/controller-uid",
    "PersistentVolume": "spec:claimRef:uid spec:claimRef:resourceVersion",
    "Pod": "spec:nodeName", "Service": "spec:clusterIP spec:clusterIPs"}


def leave_out(document: Any) -> None:
    """Take from an object what a restore leaves out."""
    for path in f"{LEFT_OUT['']} {LEFT_OUT.get(_text(document, 'kind') or '-', '')}".split():
        *above, name = path.split(":")
        part = _at(document, *above)
        if isinstance(part, dict) and part.get(name) not in ("None", ["None"]):  # which make a Service headless
            part.pop(name, None)

# ================================================================================
# 9. Manifests — CustomResourceDefinitions, the controller in the cluster, Roles for people, admission policy

def crd_manifests(status_subresource: bool) -> List[Document]:
    """The CustomResourceDefinitions, as Velero 1.6 has them (with a status subresource) or 1.18 (without)."""
    def struct(*required: str, **fields: Document) -> Document:
        return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}

    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    text, time = {"type": "string"}, {"type": "string", "format": "date-time", "nullable": True}
    phase, release = {**text, "enum": [NEW, PROCESSED]}, "1.6" if status_subresource else "1.18"
    kinds = {**text, "enum": [row.kind for row in TARGETS.values() if release in row.releases.split()]}
    plugins = {"type": "array", "items": struct("kind", "name", kind=text, name=text), "nullable": True}
    requests = {
        "DownloadRequest": (struct("target", target=struct("kind", "name", kind=kinds, name=text)),
                            struct(downloadURL=text, expiration=time, phase=phase)),
        "ServerStatusRequest": ({"type": "object"}, struct(
            phase=phase, processedTimestamp=time, serverVersion=text, plugins=plugins))}
    manifests = []
    for kind, more in (("Backup", {}), ("BackupStorageLocation", {"shortNames": ["bsl"]}), ("DownloadRequest", {}),
                       ("Restore", {}), ("ServerStatusRequest", {"shortNames": ["ssr"]})):
        (spec, status), singular = requests.get(kind, (anything, anything)), kind.lower()
        version: Document = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": struct(
            apiVersion=text, kind=text, metadata={"type": "object"}, spec=spec, status=status)}}
        if status_subresource and kind not in ("Backup", "Restore"):
            version["subresources"] = {"status": {}}
        names = {"kind": kind, "listKind": f"{kind}List", "singular": singular, "plural": f"{singular}s", **more}
        manifests.append({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{singular}s.velero.io", "labels": {"component": "velero"}},
            "spec": {"group": "velero.io", "names": names, "scope": "Namespaced", "versions": [version]}})
    return manifests


LABELS = {"app.kubernetes.io/name": NAME}
PYTHON_IMAGE = "python:3.13-slim"
PORTS = {"health": 8081, "artifacts": 8082}  # the first of /healthz, /readyz and /metrics
CONFIG_MAP_LIMIT = 1 << 20  # bytes of all values without base64; Kubernetes' own
RBAC = "rbac.authorization.k8s.io"


def _object(api: str, kind: str, namespace: str = "", name: str = NAME, **fields: Any) -> Document:
    where = {"name": name, **({"namespace": namespace} if namespace else {}), "labels": LABELS}
    return {"apiVersion": api, "kind": kind, "metadata": where, **fields}


def _rule(why: str, resources: str, verbs: str, group: str = "velero.io", **more: Any) -> Document:
    return {None: why, "apiGroups": [group], "resources": resources.split(), **more, "verbs": verbs.split()}


CONTROLLER_RULES = [  # all that it may do
    _rule("list and watch find requests, get reads one that changed meanwhile, patch answers, delete ends expired ones",
          "downloadrequests serverstatusrequests", "get list watch patch delete"),
    _rule("patch answers where the CRDs have a status subresource, as Velero 1.6 to 1.8 installed them",
          "downloadrequests/status serverstatusrequests/status", "patch"),
    _rule("get leads from a request to its backup, over the restore if it is one's, and to the storage location",
          "backups restores backupstoragelocations", "get"),
    _rule("get reads the keys and certificate authorities that storage locations name", "secrets", "get", ""),
    _rule("create tells in an Event why a request cannot be answered", "events", "create", "")]


def _deployment(namespace: str, program: str, checksum: str, *, image: str, replicas: int, words: Sequence[str],
                secret: Optional[str], endpoint: Optional[str], tls: Optional[str] = None) -> Document:
    path, user, chosen = f"/program/{program}", 65532, {"matchLabels": LABELS}
    variables = {"AWS_SHARED_CREDENTIALS_FILE": secret and "/credentials/cloud", "AWS_ENDPOINT_URL_S3": endpoint}
    secrets = {name: given for name, given in (("credentials", secret), ("tls", tls)) if given}  # and where they are
    served = [f"--namespace={namespace}", *(f"--{name}-address=:{port}" for name, port in PORTS.items()),
              *["--artifacts-tls-cert=/tls/tls.crt", "--artifacts-tls-key=/tls/tls.key"] * bool(tls)]
    healthy, ready = ({"httpGet": {"path": what, "port": "health"}, "timeoutSeconds": 5} for what in (
        "/healthz", "/readyz"))
    container = {
        "name": "controller", "image": image, "command": ["python3", "-B", path, "controller"],
        "args": [*served, *words],
        "env": [{"name": name, "value": value} for name, value in variables.items() if value],
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        "startupProbe": {**healthy, "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": healthy, "readinessProbe": {**ready, "periodSeconds": 5},
        "resources": {None: "measured: 50 MiB at most, in a burst, too, which no CPU limit slows down",
                      "requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
        # By subPath: a program that changes under a running pod would break what that imports later.
        "volumeMounts": [{"name": "program", "mountPath": path, "subPath": program},
                         *({"name": name, "mountPath": f"/{name}", "readOnly": True} for name in secrets)]}
    pod = {
        "serviceAccountName": NAME, "automountServiceAccountToken": True, "terminationGracePeriodSeconds": 10,
        "securityContext": {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
                            "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                                       "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": chosen}],
        "containers": [container], "volumes": [
            {"name": "program", "configMap": {"name": NAME}},
            *({"name": name, "secret": {"secretName": given}} for name, given in secrets.items())]}
    return _object("apps/v1", "Deployment", namespace, spec={
        None: "all replicas work, without a leader", "replicas": replicas, "selector": chosen,
        "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}, "template": {"spec": pod, "metadata": {
            "labels": LABELS, "annotations": {None: "it changes with the program, and so replaces the pods",
                                              f"{NAME}.io/program": checksum}}}})


def controller_manifests(namespace: str, program: str, content: bytes, annotations: Sequence[Tuple[str, str]],
                         peers: Sequence[str] = (), **how: Any) -> List[Document]:
    """All that runs the controller in a cluster. program: the name of its file, script or archive; annotations: of its
    ServiceAccount; peers: addresses that alone may connect to its pods; how: see `_deployment`."""
    import hashlib
    if len(content) > CONFIG_MAP_LIMIT:
        raise Error(f"{program} has {len(content)} bytes, and a ConfigMap holds {CONFIG_MAP_LIMIT}", hints=[
            "an archive of this file, urllib3 and PyYAML alone has less"])
    text, checksum = program.endswith(".py"), f"sha256:{hashlib.sha256(content).hexdigest()}"
    data = {program: content.decode() if text else base64.b64encode(content).decode()}
    account = _object("v1", "ServiceAccount", namespace, automountServiceAccountToken=False)
    account["metadata"].update({"annotations": dict(annotations)} if annotations else {})
    return [
        account, _object(f"{RBAC}/v1", "Role", namespace, rules=CONTROLLER_RULES),
        _object(f"{RBAC}/v1", "RoleBinding", namespace, roleRef={"apiGroup": RBAC, "kind": "Role", "name": NAME},
                subjects=[{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}]),
        _object("v1", "ConfigMap", namespace, **{"data" if text else "binaryData": data}),
        _deployment(namespace, program, checksum, **how),
        _object("policy/v1", "PodDisruptionBudget", namespace,
                spec={"maxUnavailable": 1, "selector": {"matchLabels": LABELS}}),
        _object("v1", "Service", namespace, spec={"selector": LABELS, "ports": [
            {"name": name, "port": PORTS[port], "targetPort": port} for name, port in (
                ("health", "health"), ("https" if how.get("tls") else "http", "artifacts"))]}),
        *[_object("networking.k8s.io/v1", "NetworkPolicy", namespace, spec={
            "podSelector": {"matchLabels": LABELS}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"ipBlock": {"cidr": peer}} for peer in peers]}]})] * bool(peers)]


def _client_role(namespace: str, use: str, kinds: Iterable[str], *more: Document, requests: str = "",
                 verbs: str = "get", **names: List[str]) -> Document:
    """The Role for one use. kinds: of artifacts; requests: asked for besides DownloadRequests; verbs: on backups."""
    return _object(f"{RBAC}/v1", "Role", namespace, f"{NAME}-{use}", rules=[
        _rule("create asks, get reads the answer under its random name, delete tidies up; list and watch would show "
              "the URLs of others", f"downloadrequests {requests}", "create get delete"),
        _rule("get tells what does not exist or is not finished, list is for `get` and completion", "backups restores",
              verbs),
        _rule("get finds a store's certificate authority, and tells when the store is why nobody answers",
              "backupstoragelocations", "get"),
        _rule("get tells when Velero itself is", "deployments", "get", "apps", resourceNames=["velero"]),
        _rule("get brings what was asked for through the cluster, where the store is not reached", "services/proxy",
              "get", "", resourceNames=list(ARTIFACTS_SERVICES)), *more,
        _rule("get is for the policy of `manifests policy`, of backups that are named or of all; without that policy, "
              "create opens everything", " ".join(TARGETS[kind].right for kind in kinds), "get", **names)])


def client_manifests(namespace: str) -> List[Document]:
    """Roles for people: for logs, for every download, for `describe`."""
    logs = [kind for kind in TARGETS if kind.endswith("Log")]
    pods = [_rule("list finds Velero's pods for `logs --follow`", "pods", "list", ""),
            _rule("get reads there what Velero logs, also of other backups", "pods/log", "get", "")]
    volumes = _rule("list shows volumes, and attempts to delete a backup",
                    "podvolumebackups podvolumerestores deletebackuprequests", "list")
    return [_client_role(namespace, "logs", logs, *pods),
            _client_role(namespace, "downloads", TARGETS, requests="serverstatusrequests", verbs="get list"),
            _client_role(namespace, "describe", [kind for kind in TARGETS if kind not in (*logs, BACKUP_CONTENTS)],
                         volumes, verbs="get list")]


def policy_manifests(namespace: str) -> List[Document]:
    """Whoever creates a DownloadRequest must be allowed to `get` the artifact, a resource such as backups/log that no
    API serves (velero#1144). With UPDATE, or who may patch makes a request for a log one for the contents."""
    group, rule = "admissionregistration.k8s.io/v1", {
        "apiGroups": ["velero.io"], "apiVersions": ["*"], "resources": ["downloadrequests"],
        "operations": ["CREATE", "UPDATE"]}
    # In the Common Expression Language; `owner` and `part` are Artifact.right.
    variables = {"kind": "object.spec.target.kind.lowerAscii()",
                 "owner": "variables.kind.startsWith('restore') ? 'restores' : 'backups'",
                 "part": "variables.kind.replace('restore', '').replace('backup', '')"}
    check = ("authorizer.group('velero.io').resource(variables.owner).subresource(variables.part)"
             ".namespace(request.namespace).name(object.spec.target.name).check('get').allowed()")
    message = ("'you may not get ' + variables.owner + '/' + variables.part + ' of ' + object.spec.target.name + "
               "' in namespace ' + request.namespace + '; a Role there grants it with: - {apiGroups: [velero.io], "
               "resources: [' + variables.owner + '/' + variables.part + '], verbs: [get]}'")
    return [
        _object(group, "ValidatingAdmissionPolicy", spec={
            "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
            "matchConditions": [{"name": "names-a-target", "expression": (
                "request.operation == 'CREATE' || object.?spec != oldObject.?spec")}],
            "variables": [{"name": name, "expression": text} for name, text in variables.items()],
            "validations": [{"expression": check, "messageExpression": message, "reason": "Forbidden"}]}),
        _object(group, "ValidatingAdmissionPolicyBinding", spec={"policyName": NAME, "validationActions": ["Deny"]}),
        client_manifests(namespace)[0],
        _client_role(namespace, "one-backup", [kind for kind in TARGETS if TARGETS[kind].owner == BACKUPS],
                     resourceNames=["nightly"])]

# ================================================================================
# The waterline. Above: arithmetic on values. Below: files, sockets, threads and clocks.

# ================================================================================
# 10. Connections — TLS, deadlines, pools, sessions and their renewal

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 20.0  # seconds that a call to the API may take in all, a page of a list thrice
ERROR_LIMIT = 64 * 1024  # bytes of an error's body that are looked at
KUBECONFIG_LIMIT = 8 << 20  # bytes
MAX_YAML_NODES = 100_000  # with aliases followed; 3,000 clusters have as many
POOL_SIZE = 8  # connections: one for each worker and feeder of a controller, and twice as many for its transfers
USER_AGENT = f"velero_requests/{__version__} ({sys.platform})"


def utc_now() -> datetime:
    """The time of this host's clock."""
    return datetime.now(timezone.utc)


def read_file(path: str, purpose: str, limit: int = KUBECONFIG_LIMIT) -> bytes:
    """A file of at most `limit` bytes; ConfigError names it and its purpose."""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {purpose} {path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > limit:
        raise ConfigError(f"{purpose} {path} is larger than {limit >> 20} MiB")
    return content


@hidden_in_repr("ca_cert")
class Trust(NamedTuple):
    """Whom to trust behind an https URL: the system's authorities and `ca_cert` (PEM), or anybody."""
    ca_cert: bytes = b""
    insecure: bool = False
    source: str = "the certificate authority"  # of ca_cert, named in errors
    alone: bool = False  # ca_cert instead of the system's authorities


def tls_context(trust: Trust, hosts: Iterable[Optional[str]] = ()) -> Any:
    """A TLS client context for a host and its proxy; ConfigError for a ca_cert without a usable certificate. Without
    VERIFY_X509_STRICT, Python 3.13's default: authorities of old clusters fail it. As in Go only subject alternative
    names count, and an unreadable certificate spoils no other."""
    import ssl
    import urllib3
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if trust.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if urllib3.__version__.startswith("1.") and any(_ip_address(host or "") is not None for host in hosts):
        context.check_hostname = False  # it names no IP address to OpenSSL, and checks names itself then
    with contextlib.suppress(AttributeError):  # of an old OpenSSL
        context.hostname_checks_common_name = False
    if not trust.alone:
        context.load_default_certs()
    readable = not trust.ca_cert
    for block in re.findall("-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----",
                            trust.ca_cert.decode("ascii", "ignore"))[:1000]:  # a system trusts 150
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=block)
            readable = True
    if not readable:
        raise ConfigError(f"{trust.source} holds no PEM certificate", reason="InvalidStorageLocation")
    return context


def load_certificate(context: Any, certificate: bytes, key: bytes, what: str) -> None:
    """Show a certificate to the other side. OpenSSL reads a file: in memory, else one that only we may read."""
    import ssl
    import tempfile
    in_memory = hasattr(os, "memfd_create")
    try:
        with os.fdopen(os.memfd_create("key"), "wb") if in_memory else tempfile.NamedTemporaryFile() as file:
            file.write(certificate + b"\n" + key)
            file.flush()  # an encrypted key fails instead of prompting on the terminal
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}" if in_memory else file.name, password="")
    except ssl.SSLError:
        raise ConfigError(f"{what} are not a matching pair of PEM, or the key is encrypted") from None
    except OSError as error:
        raise ConfigError(f"{what} cannot be put into a temporary file: {error.strerror}") from error


def _proxy_headers(via: Any) -> Dict[str, str]:
    import urllib3
    return urllib3.make_headers(
        proxy_basic_auth=f"{unquote(via.username)}:{unquote(via.password or '')}" if via.username else None)


class _Thread(threading.local):
    deadline = math.inf  # when what the thread asks of the network must be over
    hosts: Any = None  # a HostLimiter, in a worker


_thread = _Thread()


def time_left() -> float:
    """Seconds until the deadline of this thread; infinite without one."""
    return _thread.deadline - time.monotonic()


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let all that this thread asks of the network be over in so many seconds, connecting and the body included. A
    response that is read after the context has only its idle limit."""
    before = _thread.deadline
    _thread.deadline = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _thread.deadline = before


@contextlib.contextmanager
def pause_time_limit() -> Iterator[None]:
    """Do not count this context against the deadline: a person may have to log in."""
    started = time.monotonic()
    try:
        yield
    finally:
        _thread.deadline += time.monotonic() - started


@functools.lru_cache(maxsize=None)
def _timed_classes() -> Dict[str, Any]:
    """What keeps the deadline of its thread: plain and TLS sockets, and urllib3's connections by scheme."""
    import http.client
    import ssl
    import urllib3

    def timed(name: str) -> Callable[..., Any]:
        def call(sock: Any, *args: Any) -> Any:
            idle, left = sock.gettimeout(), time_left()
            if left <= 0:
                raise socket.timeout("timed out")
            if left < (math.inf if idle is None else idle):
                sock.settimeout(left)
            try:
                return getattr(super(Timed, sock), name)(*args)
            finally:
                if sock.gettimeout() != idle:  # no system call, as the next line is
                    sock.settimeout(idle)

        return call

    class Timed:
        recv, recv_into, send, sendall, do_handshake = map(timed, "recv recv_into send sendall do_handshake".split())

    PlainSocket: Any = type("PlainSocket", (Timed, socket.socket), {})

    class Connection:
        def _new_conn(self) -> socket.socket:  # by which urllib3 makes each TCP connection
            made = super()._new_conn()
            idle, sock = made.gettimeout(), PlainSocket(fileno=made.detach())
            sock.settimeout(idle)
            return sock

        def response_class(self, *args: Any, **options: Any) -> Any:
            self.reply, self.peer = http.client.HTTPResponse(*args, **options), args[0]
            return self.reply

    return {
        "plain": PlainSocket, "tls": type("TlsSocket", (Timed, ssl.SSLSocket), {}),
        "http": type("Http", (Connection, urllib3.connection.HTTPConnection), {}),
        "https": type("Https", (Connection, urllib3.connection.HTTPSConnection), {})}


def _redacted(record: logging.LogRecord) -> bool:
    """A filter for urllib3's loggers, which tell every URL at DEBUG."""
    record.msg, record.args = redact(record.getMessage()), ()
    return True


def certificate_text(shown: Any) -> str:
    """Whose a certificate is, as Python decodes it."""
    names = ", ".join(value for _, value in shown.get("subjectAltName", ())) or "no name at all"
    issuer = ", ".join("=".join(pair) for part in shown.get("issuer", ()) for pair in part) or "nobody"
    return one_line(f"it is for {names}; issuer {issuer}; valid until {shown.get('notAfter')}", 1000)


def explain_certificate(url: str, server_name: str, proxy: str) -> str:
    """Whose certificate was not trusted; empty when it cannot be had, as through an https proxy. Python decodes only
    what it has verified: so a second handshake trusts the certificate of the first."""
    import http.client
    import ssl
    parts, via = urlsplit(url), urlsplit(proxy or url)
    context, shown = tls_context(Trust(insecure=True)), None
    context.verify_flags = ssl.VerifyFlags(0x80000 | 0x200000)  # PARTIAL_CHAIN, NO_CHECK_TIME: not named in Python 3.8
    try:
        for binary in (True, False):
            connection = http.client.HTTPConnection(via.hostname or "", via.port or (80 if proxy else 443),
                                                    timeout=max(0.01, min(2.0, time_left())))
            if proxy:
                connection.set_tunnel(parts.hostname or "", parts.port or 443, _proxy_headers(via))
            with contextlib.closing(connection):
                connection.connect()
                with context.wrap_socket(connection.sock, server_hostname=server_name or parts.hostname) as secured:
                    shown = secured.getpeercert(binary)
            if binary:
                context.load_verify_locations(cadata=shown)
                context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    return f"({certificate_text(shown)})"


def _tls_text(cause: BaseException) -> str:
    """What OpenSSL, of whatever version, or LibreSSL says, without codes and lines of source."""
    said = re.sub(r"\[\w+(: \w+)?\] | \(_ssl\.c:\d+\)", "", str(cause)).lower()
    if said in ("wrong version number", "unknown protocol", "http request", "record layer failure"):
        return "what answers there does not speak TLS; is it an http port?"
    return one_line(redact(said))


class Response:
    """An answer of urllib3's, whose body is read as it comes; its failures are OSErrors."""

    def __init__(self, answer: Any) -> None:  # whose own `read` waits for all, and loses what came before a break
        self.status, self.headers = answer.status, answer.headers
        self._answer, self._connection, self._reply = answer, answer.connection, answer.connection.reply
        self._left = math.inf if self._reply.length is None else self._reply.length
        self._drained, self._buffer = False, memoryview(b"")  # whether all that came with the headers was read

    def peer(self) -> str:
        """The address at the other end, perhaps a proxy's, and what a verified certificate there says."""
        sock = self._connection.peer
        shown = sock.getpeercert() if hasattr(sock, "getpeercert") else {}
        proxy = self._connection.proxy  # (host, port, …) or None
        address = getattr(sock, "socket", sock).getpeername()[0]  # with TLS within TLS it is one of urllib3's
        certificate = f"; certificate: {certificate_text(shown)}" if shown else ""
        return f"{address}{' (a proxy)' if proxy else ''}{certificate}"

    def _receive(self, size: int) -> bytes:
        """All that is there of a body with a length, at most `size` bytes; TLS alone gives 16 KiB at a time."""
        from urllib3.util import wait_for_read
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        at = count = self._connection.peer.recv_into(self._buffer[:size])
        with contextlib.suppress(OSError):  # it fails again, or has ended, when more is asked for
            while count and at < size and wait_for_read(self._connection.peer, 0):
                count = self._connection.peer.recv_into(self._buffer[at:size])
                at += count
        return bytes(self._buffer[:at])

    def read1(self, size: int = 65536) -> bytes:
        """What has come of the body, at least a byte unless it has ended."""
        import http.client
        size = int(min(size, self._left))
        try:
            piece = b"" if not size else self._receive(size) if self._drained else self._reply.read1(size)
        except http.client.HTTPException as error:
            raise ConnectionError(f"the body is cut short: {error}") from error
        self._drained = self._drained or len(piece) < size and self._left < math.inf
        self._left -= len(piece)  # http.client counts only from Python 3.12 on
        if not piece and 0 < self._left < math.inf:
            raise ConnectionError("the body is cut short")
        if not piece or not self._left:
            self._reply.close()
            self._answer.release_conn()  # for the next request
        return piece

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.read1, b"")

    def _unpacked(self, limit: int) -> Iterator[bytes]:
        """The body, inflated where it comes as gzip unasked; TooLarge behind `limit` bytes."""
        encoding, left = self.headers.get("Content-Encoding", "identity").lower(), limit
        if encoding not in ("identity", "gzip"):
            raise ValueError("is encoded in a way that nobody asked for")
        try:
            for piece in inflate(self) if encoding == "gzip" else self:
                left -= len(piece)
                yield piece
                if left < 0:
                    raise TooLarge(f"has more than {limit >> 20} MiB")
        except StoreError as error:
            raise ValueError("is no whole gzip") from error

    def read(self, limit: int) -> bytes:
        """The whole body; TooLarge behind `limit` bytes, ValueError when it cannot be unpacked."""
        return b"".join(self._unpacked(limit))

    def refusal(self) -> bytes:
        """The start of a refusal's body, which may be endless: what comes within two seconds."""
        text = b""
        with time_limit(2.0), contextlib.closing(self), contextlib.suppress(OSError, ValueError):
            for piece in self._unpacked(ERROR_LIMIT):
                text += piece
        return text[:ERROR_LIMIT]

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._answer.close()

    def interrupt(self) -> None:
        """End the body from another thread: its reader sees the stream end."""
        sock = self._connection.sock
        with contextlib.suppress(OSError, TypeError):  # it has no socket any more
            # With TLS within TLS to a proxy it is one of urllib3's, around another.
            socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)


class ConnectionPool:
    """Connections to the host of an http or https URL, perhaps through a proxy; nothing is sent yet."""

    def __init__(self, url: str, where: str, *, trust: Trust = Trust(), certificate: Tuple[bytes, bytes] = (b"", b""),
                 proxy: str = "", server_name: str = "", size: int = 1, hint: str = "", cure: str = "",
                 quoting: bool = True) -> None:
        """where: the host in errors. certificate: ours, with its key. hint: where the host's is not trusted. cure: when
        it is not reached. quoting: whether errors may hold what the host has sent."""
        import urllib3
        for name in ("connectionpool", "connection", "poolmanager", "response", "util.retry"):
            logging.getLogger(f"urllib3.{name}").addFilter(_redacted)  # again it has no effect
        self.url, self.where, self.proxy, self.server_name = url, where, proxy, server_name
        self.hint, self.hints, self.quoting = hint, list(filter(None, [cure])), quoting
        self.last_answer = time.monotonic()  # when the last answer came
        parts, via = urlsplit(url), urlsplit(proxy)
        context: Any = None
        if "https" in (parts.scheme, via.scheme):
            context = tls_context(trust, (server_name or parts.hostname, via.hostname))
            context.sslsocket_class = _timed_classes()["tls"]
            if certificate[0]:
                load_certificate(context, *certificate, "the client certificate and key of the kubeconfig or its exec "
                                 "plugin")
        options: Dict[str, Any] = {"maxsize": size}
        if parts.scheme == "https":
            options.update(ssl_context=context, cert_reqs=context.verify_mode, server_hostname=server_name or None)
        manager = urllib3.PoolManager(**options) if not proxy else urllib3.ProxyManager(
            f"{via.scheme}://{via.netloc.rpartition('@')[2]}", proxy_headers=_proxy_headers(via),
            proxy_ssl_context=context if via.scheme == "https" else None, **options)
        self.pool = manager.connection_from_host(parts.hostname, parts.port, parts.scheme)
        self.pool.ConnectionCls = _timed_classes()[parts.scheme]
        self.close = self.pool.close  # the connections that are not in use
        # A proxy is asked for plain http by the whole URL.
        self.prefix = f"http://{parts.netloc}" if proxy and parts.scheme == "http" else ""

    def request(self, method: str, target: str, headers: Mapping[str, str], body: Optional[bytes] = None, *,
                idle: float, connect: float = CONNECT_TIMEOUT) -> Response:
        """Send one request -> the response, its body unread; else Unreachable from urllib3's error. idle: seconds
        without a byte, and for all until the headers are there; connect: until there is a connection."""
        import urllib3
        try:
            with time_limit(idle):
                answer = self.pool.urlopen(
                    method, self.prefix + target, body, headers, retries=False, redirect=False, preload_content=False,
                    assert_same_host=False, timeout=urllib3.Timeout(connect=min(connect, idle), read=idle))
        except urllib3.exceptions.HTTPError as error:
            self.last_answer = -math.inf
            raise self.unreachable(error) from error
        self.last_answer = time.monotonic()
        return Response(answer)

    def unreachable(self, error: Exception) -> Unreachable:
        """What urllib3 and ssl raise -> one sentence."""
        import ssl
        from urllib3 import exceptions
        where, cause = self.where, error
        # urllib3 1.26 first asks http.client for what only Python 2 could, and hides that this failed.
        while cause.__cause__ or cause.__context__ and not cause.__suppress_context__:
            cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
        text = None if isinstance(cause, ssl.SSLError) else getattr(cause, "strerror", None)
        if isinstance(error, exceptions.ProxyError):
            return Unreachable(f"cannot reach {where} through its proxy: {text or _tls_text(cause)}", hints=[
                "HTTPS_PROXY, HTTP_PROXY or a kubeconfig's proxy-url name it; NO_PROXY names hosts that take none"])
        if isinstance(cause, ssl.SSLCertVerificationError):
            shown = explain_certificate(self.url, self.server_name, self.proxy) if self.quoting else ""
            said, hint = getattr(cause, "verify_message", cause.args[-1]), self.hint  # ssl's check of names sets none
            if getattr(cause, "verify_code", 0) in (9, 10):  # not yet valid, expired
                said += f" by this host's clock, {format_time(utc_now())}"
                hint = "set that clock, or renew the certificate"
            text = f"{where} has a certificate that is not trusted: {said} {shown}".rstrip()
            return Unreachable(text, hints=filter(None, [hint]))
        if isinstance(error, exceptions.SSLError) or isinstance(cause, ssl.SSLError):
            return Unreachable(f"no TLS with {where}: {_tls_text(cause)}", hints=self.hints)
        refused = isinstance(error, exceptions.NewConnectionError)  # a timeout to urllib3
        if isinstance(cause, socket.timeout) or isinstance(error, exceptions.TimeoutError) and not refused:
            return Unreachable(f"{where} does not answer in time", hints=self.hints)
        said = one_line(redact(str(cause))) if self.quoting else "it does not answer in HTTP"
        return Unreachable(f"cannot reach {where}: {text or said}", hints=self.hints)


@functools.lru_cache(maxsize=None)
def _yaml_loader() -> Any:
    """PyYAML's safe loader, to which a date and `=` are text as any other."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers = {
            first: [row for row in rows if not row[0].endswith((":timestamp", ":value"))]
            for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()}

    return Loader


def _check_yaml(content: bytes) -> None:
    """ValueError for a first document so deep that libyaml would crash, or that its aliases blow up."""
    import yaml
    sizes: Dict[str, int] = {}  # nodes of each anchor, its aliases followed
    open_nodes: List[Tuple[Any, int]] = []  # anchor, and nodes before it
    count = 0
    for event in yaml.parse(content, Loader=_yaml_loader()):
        if isinstance(event, yaml.DocumentEndEvent):
            return
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes[anchor] = count - before
        if isinstance(event, yaml.NodeEvent):
            count += sizes.get(event.anchor, 1) if isinstance(event, yaml.AliasEvent) else 1
        if len(open_nodes) > MAX_DEPTH or count > MAX_YAML_NODES:
            raise ValueError("too deep or too large")


def parse_yaml(content: bytes, what: str) -> Any:
    """The first document of YAML or JSON; an error names the line, and does not quote it."""
    import yaml
    if len(content) > KUBECONFIG_LIMIT:
        raise ConfigError(f"{what} is larger than {KUBECONFIG_LIMIT >> 20} MiB")
    with contextlib.suppress(ValueError):
        if content.lstrip().startswith(b"{"):  # JSON may be indented by tabs, YAML may not
            return parse_json(content, MAX_YAML_NODES)
    try:
        _check_yaml(content)
        return next(yaml.load_all(content, Loader=_yaml_loader()), None)
    except yaml.reader.ReaderError:
        raise ConfigError(f"{what} is not UTF-8 text") from None
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(f"{what} is not YAML" + (f": line {mark.line + 1} cannot be read" if mark else "")) from None


def read_pem(source: Union[bytes, str], purpose: str) -> bytes:
    """PEM that stands in the kubeconfig, or in the file that it names."""
    return source if isinstance(source, bytes) else read_file(source, purpose, SMALL_FILE_LIMIT) if source else b""


def _exec_info(cluster: Cluster, plugin: Reader, interactive: bool) -> str:
    """KUBERNETES_EXEC_INFO: what an exec plugin is told (client-go pkg/apis/clientauthentication)."""
    spec: Document = {"interactive": interactive}
    if plugin.get("provideClusterInfo", bool):
        authority = base64.b64encode(read_pem(cluster.authority, "certificate authority")).decode()
        told = {"server": cluster.server, "tls-server-name": cluster.server_name, "proxy-url": cluster.proxy_url,
                "insecure-skip-tls-verify": cluster.insecure, "disable-compression": cluster.disable_compression,
                "certificate-authority-data": authority, "config": cluster.exec_config}
        spec["cluster"] = {name: value for name, value in told.items() if value or name == "config"}
    return json.dumps({"kind": "ExecCredential", "apiVersion": plugin.get("apiVersion"), "spec": spec})


def run_exec_plugin(cluster: Cluster, plugin: Reader) -> Identity:
    """Run a kubeconfig's `exec` -> who we are (client-go plugin/pkg/client/auth/exec, validation.go). A failure is a
    ConfigError that shows nothing of its output, never an anonymous call. Its stderr is ours, and its stdin when it may
    ask on a terminal. A bare name is searched on PATH, not in the current folder (Go's os/exec)."""
    import shutil
    import subprocess
    command, version = plugin.need("command"), plugin.get("apiVersion")
    command = plugin.path("command") if "/" in command else command
    mode, who = plugin.get("interactiveMode") or "IfAvailable", f"exec plugin {one_line(command)}"
    for name, value, known in (("apiVersion", version, [EXEC_GROUP + "v1", EXEC_GROUP + "v1beta1"]),
                               ("interactiveMode", mode, ["Never", "IfAvailable", "Always"])):
        if value not in known:
            raise ConfigError(f"{plugin.where} has {name} {one_line(value, 64)!r}, not one of {', '.join(known)}",
                              hints=["a newer version of the plugin writes a newer kubeconfig"])
    hints = filter(None, [one_line(plugin.get("installHint"), 1000)])
    folders = filter(os.path.isabs, os.environ.get("PATH", "").split(os.pathsep))
    program = shutil.which(command, path=os.pathsep.join(folders))
    if not program:
        raise ConfigError(f"{who} of the kubeconfig is not installed", hints=hints)
    terminal = sys.stdin is not None and sys.stdin.isatty()
    if mode == "Always" and not terminal:
        raise ConfigError(f"{who} must ask on a terminal, and there is none")
    interactive = terminal and mode != "Never"
    variables = [Reader(item, f"{plugin.where}, env") for item in plugin.get("env", list)]
    environment = {**os.environ, **{variable.get("name"): variable.get("value") for variable in variables}}
    try:
        environment["KUBERNETES_EXEC_INFO"] = _exec_info(cluster, plugin, interactive)
        done = subprocess.run([program, *plugin.get("args", [str])], env=environment, stdout=subprocess.PIPE,
                              stdin=None if interactive else subprocess.DEVNULL, check=False)
    except (OSError, TypeError, ValueError) as error:  # such as an extension that JSON does not know
        raise ConfigError(f"{who} cannot be run: {getattr(error, 'strerror', None) or error}", hints=hints) from error
    if done.returncode:
        raise ConfigError(f"{who} failed with exit code {done.returncode}", hints=hints)
    where = f"the answer of {who}"
    return identity_from_exec(parse_yaml(done.stdout, where), where, version)


class Session:
    """Connections to one API server, and our identity there; one caller renews, the others wait."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.path = urlsplit(cluster.server).path.rstrip("/")  # of API servers behind a path
        self.warned: Set[str] = set()  # warnings that the log has already
        self.lock = threading.RLock()
        self.until = -math.inf  # time.monotonic() of the next renewal
        self.on_exchange: Callable[[str, str], Any] = lambda code, method: None  # is told the end of every exchange
        self.identity = Identity(cluster.token)
        self.pool: Any = None
        self._open(self._read_pem())

    def _read_pem(self) -> Tuple[bytes, bytes, bytes]:
        """The authority; our certificate and key, a plugin's before the kubeconfig's. All are opened, as by kubectl."""
        return (read_pem(self.cluster.authority, "certificate authority"),
                self.identity.certificate or read_pem(self.cluster.certificate, "client certificate"),
                self.identity.key or read_pem(self.cluster.key, "client key"))

    def _open(self, pem: Tuple[bytes, bytes, bytes]) -> None:
        """Go on with new connections; those in use are closed when they are given back."""
        cluster, server = self.cluster, self.cluster.server
        source = isinstance(cluster.authority, str) and cluster.authority
        trust = Trust(pem[0], cluster.insecure, source or "certificate-authority-data of the kubeconfig", bool(pem[0]))
        pool = ConnectionPool(
            server, f"the cluster at {redact(server)}", trust=trust, certificate=pem[1:], size=3 * POOL_SIZE,
            proxy=cluster.proxy_url or proxy_for(server, os.environ), server_name=cluster.server_name,
            hint="does certificate-authority in the kubeconfig belong to this cluster?",
            cure="is the server in the kubeconfig right, or does it take a VPN, or a proxy (HTTPS_PROXY)?")
        if self.pool:
            self.close()
        self.pem, self.pool = pem, pool

    def _renew(self) -> None:
        """Read identity and certificates again; a file that cannot be read keeps the old ones, a failing plugin raises.
        A connection keeps its identity: another certificate, as kubelet and cert-manager write it in place, needs new
        ones. `until` is set last: while a plugin fails, no call goes out."""
        plugin, path = self.cluster.exec_plugin, self.cluster.token_file
        try:
            if plugin:
                self.identity = run_exec_plugin(self.cluster, plugin)
            elif path:
                token = read_file(path, "token").decode("utf-8", "replace").strip()
                if not token:
                    raise ConfigError(f"the token file {path} is empty")
                self.identity = Identity(header_value(token, f"the token in {path}"))
            pem = self._read_pem()
            if pem != self.pem:
                self._open(pem)
        except ConfigError as error:
            if plugin or (path and not self.identity.token):
                raise
            log.warning("%s; what was read before stays in use", error)
        life, expires = 50.0 if path else 300.0, self.identity.expires  # seconds, as client-go's
        if plugin:
            life = (expires - utc_now()).total_seconds() - 30 if expires else math.inf
        self.until = time.monotonic() + life

    def renew(self) -> Tuple[Identity, ConnectionPool]:
        """Who we are, and connections that can be used."""
        with self.lock:
            if time.monotonic() >= self.until:
                self._renew()
            if time.monotonic() - self.pool.last_answer > 10:  # what broke while idle may not show it for minutes
                self._open(self.pem)
            return self.identity, self.pool

    def invalidate(self, identity: Identity) -> bool:
        """Forget an identity that the API no longer accepts -> whether there may be another one."""
        with self.lock:
            if self.identity is identity:
                self.until = -math.inf
        return any((self.cluster.token_file, self.cluster.exec_plugin, isinstance(self.cluster.certificate, str)))

    def close(self) -> None:
        self.pool.close()


def in_cluster() -> Optional[Cluster]:
    """The cluster of the pod this runs in, by what every pod gets; None outside of one."""
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port or not os.path.exists(f"{account}/token"):
        return None
    host = f"[{host}]" if ":" in host else host
    return Cluster(f"https://{host}:{port}", f"{account}/ca.crt", token_file=f"{account}/token")


def absolute(path: str) -> str:
    """A path from the root on; Error when the current folder is gone."""
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise Error(f"the current folder cannot be used: {error.strerror}", hints=["change into another"]) from error


def read_kubeconfigs(kubeconfig: str) -> List[Tuple[str, Any]]:
    """The kubeconfig given, else KUBECONFIG's that exist, else ~/.kube/config -> paths and documents."""
    listed = os.environ.get("KUBECONFIG", "")  # of nothing but separators it keeps ~/.kube/config out, too
    default = os.path.join(os.environ.get("HOME", ""), ".kube", "config")
    names, files = [kubeconfig] if kubeconfig else listed.split(os.pathsep) if listed else [default], []
    for path in dict.fromkeys(absolute(name) for name in names if name):
        try:
            files.append((path, parse_yaml(read_file(path, "kubeconfig"), f"kubeconfig {path}")))
        except ConfigError as error:
            if kubeconfig or not isinstance(error.__cause__, FileNotFoundError):
                raise
    if listed and not kubeconfig and not files:
        log.warning("none of the files in KUBECONFIG exists: %s", one_line(listed))
    return files


def load_cluster(kubeconfig: str = "", context: str = "") -> Cluster:
    """The cluster of the kubeconfigs, else the pod's own; ConfigError names the file and what is wrong."""
    files = read_kubeconfigs(kubeconfig)
    cluster = cluster_from_kubeconfigs(files, context) or in_cluster()
    if cluster:
        return cluster
    if files:
        raise ConfigError(f"kubeconfig {', '.join(path for path, _ in files)} has no current-context",
                          hints=["choose one with --context"])
    raise ConfigError("no kubeconfig found", hints=[
        "name one with --kubeconfig or KUBECONFIG, or put it at ~/.kube/config; in a pod its own account is used"])


def read_velero_config() -> Any:
    """~/.config/velero/config.json of the velero CLI (namespace, cacert, colorized), if it is there."""
    path = os.path.join(os.path.expanduser("~"), ".config", "velero", "config.json")
    try:
        return parse_json(read_file(path, "velero's configuration")) if os.path.exists(path) else {}
    except (ConfigError, ValueError) as error:
        log.warning("ignoring %s: %s", path, error)
        return {}

# ================================================================================
# 11. Cluster — one exchange, thin verbs over it, one event stream
#
#     urllib3 does transport, without retries and redirects of its own. What may be sent twice is retried here.

RETRY_STATUS = (429, 500, 502, 503, 504)
ANSWER_LIMIT = 48 << 20  # bytes; PAGE_SIZE objects of etcd's 1.5 MB fit in
WATCH_SECONDS = (31, 34)  # a watch ends by itself, so that silence shows; two kinds: < 4 a minute
WATCH_SILENCE = 40.0  # seconds without a byte after which a watch is dead
NO_CONTENT = {"Accept": "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"}  # only whether it is there


def api_error(status: int, body: bytes, method: str, path: str, watching: bool = False) -> ApiError:
    """A refusal in the API's own words, if any, with the cure."""
    document = None
    with contextlib.suppress(ValueError):
        document = parse_json(body)
    message = _text(document, "message") or one_line(body.decode("utf-8", "replace")) or "no text"
    if status == 404 and message.startswith("404 page not found"):
        message = f"the cluster does not serve {path.rstrip('/').rpartition('/')[2]}"
    what, rule = rule_for(method, path, watching)
    by_admission = _at(document, "details", "causes")  # its message has the cure; the call itself is allowed
    cures = {401: "the credentials of the kubeconfig are not accepted; log in again",
             403: f"you may not {what}; a Role there grants it with: {rule}" if what and not by_admission else ""}
    if path.partition("/proxy/")[1]:
        cures[404] = cures[503] = f"`{PROGRAM} manifests controller` puts one with --artifacts-address there"
    elif message.startswith(("the cluster does not serve", "the server could not find")):
        cures[404] = f"are Velero's CRDs installed? `{PROGRAM} manifests | kubectl apply -f -`"
    return (Missing if status == 404 else ApiError)(
        f"{one_line(message, MESSAGE_LIMIT)} ({method} {path}: {status})", status=status,
        api_reason=_text(document, "reason"), hints=filter(None, [cures.get(status)]))


def retry_wait(method: str, attempt: int, status: int, retry_after: Optional[float]) -> Optional[float]:
    """Seconds until a refused call may be sent again, None when it may not. 429 means that nothing was done; after 5xx
    a POST may have been. Patches and deletes carry the version they were decided on."""
    if attempt >= 3 or status not in RETRY_STATUS or (method == "POST" and status != 429):
        return None
    return min(10.0, backoff(attempt, 0.1, 2.0) if retry_after is None else retry_after)


def object_path(key: Key, subresource: str = "") -> str:
    """The path of an object or subresource; Missing for a name that no object can have. Anybody may have written it: an
    empty one would mean all objects of the kind, a `/` another path, even as %2F."""
    if not is_object_name(key.name):
        raise Missing(f'{key.resource.plural} "{one_line(key.name, 64)}" not found: no object can have this name',
                      status=404, api_reason="NotFound")
    return api_path(key.resource, key.namespace, key.name, subresource)


def watch_events(response: Response) -> Iterator[Tuple[str, Document]]:
    """The events of a watch as (type, object) until it ends or falls silent; ERROR becomes an ApiError."""
    try:
        for event in map(parse_json, lines(response)):
            kind, document = _text(event, "type"), _at(event, "object") or {}
            if kind == "ERROR":
                code = _at(document, "code")
                raise ApiError(f"the watch ended: {one_line(_text(document, 'message'))}",
                               status=code if isinstance(code, int) else 500, api_reason=_text(document, "reason"))
            yield kind, document
    except socket.timeout:
        return
    except (OSError, ValueError) as error:
        raise Unreachable(f"the watch broke off: {one_line(error)}") from error
    finally:
        response.close()


class Api(NamedTuple):
    """One Kubernetes API server: `send` and `call` make an exchange, the others are verbs over them."""
    session: Session
    timeout: float = READ_TIMEOUT  # seconds that a call may take, all its tries together
    # Shows what is waited for, and how long at most.
    waiting: Callable[[str, float], ContextManager[Any]] = lambda _what, _seconds: contextlib.nullcontext()

    def warn_once(self, *texts: str) -> None:
        for text in texts:
            if add_if_new(text, self.session.warned, 1000):
                log.warning("%s", text)

    def _tell_warnings(self, headers: Any) -> None:
        """Show each `Warning: 299 - "text"` of the API server once."""
        for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', headers.get("Warning", "")[:ERROR_LIMIT]):
            self.warn_once(f"warning of the cluster: {one_line(redact(text))}")

    def _attempt(self, method: str, target: str, body: Optional[bytes], more: Dict[str, str], idle: float
                 ) -> Tuple[Response, Identity]:
        import urllib3
        cluster = self.session.cluster
        with pause_time_limit():
            identity, pool = self.session.renew()
        headers = urllib3.response.HTTPHeaderDict({  # for Impersonate-Group may come several times
            "Accept": "application/json", "Content-Type": "application/json", "User-Agent": USER_AGENT, **more})
        if identity.token:
            headers["Authorization"] = f"Bearer {identity.token}"
        elif cluster.username:
            secret = f"{cluster.username}:{cluster.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
        for name, value in cluster.impersonate:
            headers.add(name, value)
        return pool.request(method, self.session.path + target, headers, body, idle=idle), identity

    def send(self, method: str, path: str, *, query: Optional[Dict[str, str]] = None, body: Optional[Document] = None,
             headers: Optional[Dict[str, str]] = None, idle: float = 0) -> Response:
        """One call -> a response with status below 300, or with any of a controller of ours behind the API server, its
        body unread; ApiError or Unreachable. The caller's deadline counts for all tries. query: without empty values.
        idle: seconds without a byte, for a body without deadline."""
        from urllib3 import exceptions
        target = f"{path}?{urlencode({name: value for name, value in query.items() if value})}" if query else path
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        trusted = True
        for attempt in itertools.count(1):
            try:
                response, identity = self._attempt(method, target, content, headers or {}, idle or self.timeout)
            except Unreachable as error:
                self.session.on_exchange("<error>", method)
                # Another thread has replaced the pool; or the other side closed an idle connection.
                if isinstance(error.__cause__, exceptions.ClosedPoolError) or (
                        method != "POST" and attempt == 1 and isinstance(error.__cause__, exceptions.ProtocolError)):
                    log.info("%s; trying again", error)
                    continue
                raise
            self.session.on_exchange(str(response.status), method)
            self._tell_warnings(response.headers)
            if response.status < 300 or MARKER in response.headers:
                return response
            refusal = response.refusal()
            wait = retry_wait(method, attempt, response.status,
                              retry_after_seconds(response.headers.get("Retry-After", ""), utc_now()))
            if response.status == 401 and trusted and self.session.invalidate(identity):
                trusted, wait = False, 0.0  # once more, with an identity read anew
            if wait is None or wait >= time_left():
                raise api_error(response.status, refusal, method, path, "watch" in (query or {}))
            log.info("the cluster answered %s %s with %d; trying again in %s", method, path, response.status,
                     format_duration(wait))
            time.sleep(wait)

    def call(self, method: str, path: str, limit: int = ANSWER_LIMIT, **options: Any) -> Document:
        """`send` -> the JSON object that came back, of at most `limit` bytes."""
        with time_limit(self.timeout), contextlib.closing(self.send(method, path, **options)) as response:
            try:
                document = parse_json(response.read(limit), 10_000_000)
            except (OSError, ValueError) as error:
                trouble = error if isinstance(error, TooLarge) else "broke off or is no JSON"
                raise Unreachable(f"the cluster's answer to {method} {path} {trouble}") from error
        if isinstance(document, dict):
            return document
        raise Unreachable(f"the cluster's answer to {method} {path} is no JSON object")

    def get(self, resource: Resource, namespace: str, name: str, **options: Any) -> Document:
        return self.call("GET", object_path(Key(resource, namespace, name)), **options)

    def get_referenced(self, resource: Resource, namespace: str, name: str, asked_by: str, **options: Any) -> Document:
        """`get` of what another object asks for, else NotFound with reason BackupNotFound, SecretNotFound and so on."""
        try:
            return self.get(resource, namespace, name, **options)
        except Missing:
            raise NotFound(f"{resource.kind} {namespace}/{one_line(name)} does not exist; {asked_by} asks for it",
                           reason=f"{resource.kind.replace('BackupS', 'S')}NotFound",
                           hints=["create it, or let that name another one"]) from None

    def list_pages(self, resource: Resource, namespace: str, selector: str = "", size: int = PAGE_SIZE,
                   limit: int = ANSWER_LIMIT, most: int = 10_000) -> Iterator[Document]:
        """The pages of a list, `most` at most; an expired continue token is an ApiError, and the caller lists anew.
        A page has at most `size` objects, and half as many from the first on that has more than `limit` bytes."""
        api, path, token = self._replace(timeout=3 * self.timeout), api_path(resource, namespace), ""
        for _ in range(most):
            query = {"limit": str(size), "labelSelector": selector, "continue": token}
            try:
                page = api.call("GET", path, limit if size > 1 else ANSWER_LIMIT, query=query, idle=self.timeout)
            except Unreachable as error:
                if not isinstance(error.__cause__, TooLarge) or size == 1:
                    raise
                size //= 2
                continue
            before, token = token, _text(page, "metadata", "continue")
            if token and token == before:
                break
            yield page
            del page  # before the next one is read
            if not token:
                return
        raise Unreachable(f"the cluster's list of {resource.plural} does not end")

    def create(self, resource: Resource, document: Document) -> Document:
        return self.call("POST", api_path(resource, document["metadata"]["namespace"]), body=document)

    def merge_patch(self, key: Key, body: Document, subresource: str = "", manager: str = "") -> Document:
        """RFC 7386 patch -> the object as stored; a stale resourceVersion is a 409. manager: who managedFields name."""
        return self.call("PATCH", object_path(key, subresource), body=body, query={"fieldManager": manager},
                         headers={"Content-Type": "application/merge-patch+json"})

    def delete(self, key: Key, options: Optional[Document] = None) -> bool:
        """Delete an object -> whether it was there; preconditions in `options` fail as 409."""
        try:
            self.call("DELETE", object_path(key), body=options)
        except Missing:
            return False
        return True

    def open_watch(self, resource: Resource, namespace: str, version: str, *, seconds: float, name: str = "",
                   silence: float = WATCH_SILENCE) -> Response:
        """Watch all objects or the one named after `version` -> a response for watch_events."""
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
                 "timeoutSeconds": str(max(1, math.ceil(seconds))),
                 "fieldSelector": f"metadata.name={name}" if name else ""}
        with time_limit(self.timeout):
            return self.send("GET", api_path(resource, namespace), query=query, idle=silence)


def connect(cluster: Cluster) -> Api:
    """Prepare the connection to a cluster; nothing is sent yet. ConfigError for unusable certificates."""
    return Api(Session(cluster))

# ================================================================================
# 12. Key sources — Secret, STS, files, container, instance metadata
#
#     Asked are only STS of the location's region, the container's endpoint and the instance's metadata service (these
#     never through a proxy), and S3 for the region where neither region nor s3Url are named.

STS_TIMEOUT, INSTANCE_TIMEOUT = 12.0, 3.0  # seconds for all tries
ASK_ATTEMPTS = 3
BUSY_PAUSE = timedelta(seconds=0.3)  # until who found a host busy asks again
FAILURE_PAUSE = timedelta(seconds=5)  # between tries to have keys at all, or an answer of a silent host
MAX_HOSTS = 1000  # that a HostLimiter remembers
BUSY = "another request waits for the same answer"
PASSING_CODES = ("IDPCommunicationError", "InvalidIdentityToken", "Throttling", "ThrottlingException",
                 "RequestLimitExceeded")  # which STS says with status 400


class Busy(Error):
    """Others wait for the same answer."""


class HostLimiter:
    """Limits how many workers of a controller wait for the same host, so that a silent one cannot block them all. Of n
    workers n - 1 may wait for a host that has answered before, one for any other, n - 1 for all others; one more is
    Busy. A host that was silent for more than `quick` seconds is not asked again for `pause` seconds."""
    quick = 0.3  # seconds

    def __init__(self, workers: int, pause: float) -> None:
        self.most, self.pause, self.lock = workers - 1, pause, threading.Lock()
        self.waiting: List[str] = []  # the host that each worker waits for
        self.outcomes: Dict[str, Optional[Tuple[float, Unreachable]]] = {}  # of a host: None, or not before, and why

    @contextlib.contextmanager
    def guard(self, host: str) -> Iterator[None]:
        """A context in which to ask a host; Busy or its last error when it must not be asked now."""
        with self.lock:
            silent = self.outcomes.get(host)
            if silent and time.monotonic() < silent[0]:
                raise silent[1].with_traceback(None)
            unproven = [other for other in (*self.waiting, host) if self.outcomes.get(other, other)]
            if self.waiting.count(host) >= (1 if host in unproven else self.most) or (
                    host in unproven and len(unproven) > self.most):
                raise Busy(BUSY)
            self.waiting.append(host)
        started, outcome = time.monotonic(), None
        try:
            yield
        except Unreachable as error:
            outcome = time.monotonic() + self.pause, error
            raise
        finally:
            with self.lock:
                self.waiting.remove(host)
                if len(self.outcomes) >= MAX_HOSTS:
                    self.outcomes.clear()
                if outcome is None or time.monotonic() - started > self.quick:
                    self.outcomes[host] = outcome


def host_guard(url: str) -> ContextManager[None]:
    """A context in which to ask the host of a URL: limited in a worker."""
    return _thread.hosts.guard(urlsplit(url).netloc.rpartition("@")[2]) if _thread.hosts else contextlib.nullcontext()


Reply = Tuple[int, bytes, Mapping[str, str]]  # status, body and headers


def _ask_once(method: str, url: str, headers: Dict[str, str], body: bytes, proxy: str) -> Reply:
    parts = urlsplit(url)
    who = f"the service at {parts.netloc.rpartition('@')[2]}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with contextlib.closing(ConnectionPool(url, who, proxy=proxy)) as pool, contextlib.closing(
            pool.request(method, target, {"User-Agent": USER_AGENT, **headers}, body or None,
                         idle=max(0.01, time_left()))) as response:
        try:
            return response.status, response.read(ERROR_LIMIT), response.headers
        except (OSError, ValueError):
            raise Unreachable(f"the answer of {who} cannot be read in time") from None


def ask(method: str, url: str, headers: Dict[str, str], body: bytes = b"", *, timeout: float, proxy: str = "") -> Reply:
    """A small exchange with a service of AWS, tried again after 429, 5xx, silence or a code that passes; `timeout` for
    all tries, of which one that hangs leaves some to the next."""
    with host_guard(url), time_limit(timeout):
        for attempt in range(1, ASK_ATTEMPTS):
            with contextlib.suppress(Unreachable), time_limit(timeout / ASK_ATTEMPTS):
                reply = _ask_once(method, url, headers, body, proxy)
                if reply[0] not in RETRY_STATUS and xml_fields(reply[1]).get("Code") not in PASSING_CODES:
                    return reply
            time.sleep(min(backoff(attempt, 0.1, 1.0), max(0.0, time_left())))
        return _ask_once(method, url, headers, body, proxy)


def _keys_from(status: int, body: bytes, who: str, **more: Any) -> Credentials:
    """The keys in an answer, JSON or XML; an error shows its code and message, nothing that may be half of keys."""
    said: Any = None
    with contextlib.suppress(ValueError):
        said = parse_json(body)
    said = said or xml_fields(body)
    access_key, secret_key, token, other_token = (
        _text(said, name) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Token"))
    expires = parse_time(_at(said, "Expiration"))
    if status == 200 and access_key and secret_key and (expires or not _at(said, "Expiration")):
        return Credentials(access_key, secret_key, token or other_token, expires)
    words = ["no answer" if not status else f"status {status}" if status != 200 else ""]
    words += [_text(said, name) or _text(said, name.lower()) for name in ("Code", "Message")]
    why = one_line(redact(" ".join(words))) or "there are none in its answer, or an Expiration that is no time"
    raise CredentialsError(f"{who} gives no keys: {why}", **more)


def assume_role(role: Values, source: Optional[Credentials], region: str) -> Credentials:
    """A role's keys from STS, for those of `source`, else for the token of a web identity (IRSA), read anew."""
    url = os.environ.get("AWS_ENDPOINT_URL_STS") or f"https://{aws_host('sts', region)}"
    form = {"Action": "AssumeRole", "Version": "2011-06-15", "RoleArn": role["role_arn"],
            "RoleSessionName": role.get("role_session_name") or f"velero-requests-{int(time.time())}",
            "ExternalId": role.get("external_id"), "DurationSeconds": role.get("duration_seconds")}
    if source is None:  # the token never goes into a URL
        token = read_file(role["web_identity_token_file"], "web identity token").decode("utf-8", "replace").strip()
        form.update(Action="AssumeRoleWithWebIdentity", WebIdentityToken=token)
    body = urlencode([field for field in form.items() if field[1]]).encode()
    headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8", "host": urlsplit(url).netloc}
    if source:
        headers = sign_headers("POST", "/", headers, body, source, region, "sts", utc_now())
    status, answer, _ = ask("POST", url, headers, body, timeout=STS_TIMEOUT, proxy=proxy_for(url, os.environ))
    return _keys_from(status, answer, f"STS, asked for role {role['role_arn']},")


def run_credential_process(program: Values) -> Credentials:
    """The keys that a program prints; its output is not shown."""
    import subprocess
    what = f"{program['profile']}: credential_process"
    try:
        printed = subprocess.run(program["credential_process"], shell=True, stdin=subprocess.DEVNULL, timeout=60,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        raise CredentialsError(f"{what} fails, or takes longer than a minute; run it by hand to see why") from None
    return _keys_from(200, printed, what)


def ask_container(container: Values) -> Credentials:
    """The keys of ECS and EKS Pod Identity; a token in a file is read anew."""
    token, what = container.get("token", ""), "container authorization token"
    if "token_file" in container:
        token = read_file(container["token_file"], what).decode("utf-8", "replace").strip()
    headers = {"Authorization": header_value(token, f"the {what}")} if token else {}
    status, body, _ = ask("GET", container["url"], headers, timeout=6.0)
    return _keys_from(status, body, "the container's credential endpoint")


def ask_instance(instance: Values) -> Credentials:
    """The keys of the instance's role (IMDS version 2)."""
    status, body, url = 0, b"", instance["endpoint"] + "/latest/"
    headers = {"x-aws-ec2-metadata-token-ttl-seconds": "300"}
    with contextlib.suppress(Unreachable):
        status, body, _ = ask("PUT", url + "api/token", headers, timeout=INSTANCE_TIMEOUT)
    if status == 200:
        token = header_value(body.decode("ascii", "replace").strip(), "the token of the instance metadata service")
        url, headers = url + "meta-data/iam/security-credentials/", {"x-aws-ec2-metadata-token": token}
        status, body, _ = ask("GET", url, headers, timeout=INSTANCE_TIMEOUT)
        role = body.decode("utf-8", "replace").split("\n")[0].strip()
        if status == 200 and role:
            status, body, _ = ask("GET", url + quote(role, safe=""), headers, timeout=INSTANCE_TIMEOUT)
    who = "nothing else that holds keys is configured, and the instance metadata service (has the instance a role?)"
    return _keys_from(status, body, who, reason="CredentialsNotFound", hints=[
        "name a Secret in spec.credential, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use --credentials-file"])


def fetch_credentials(plan: Plan, region: str) -> Credentials:
    """Carry out a plan -> keys, fresh ones when they are temporary."""
    values = dict(plan.values)
    if plan.how == "keys":
        return Credentials(values[KEY_NAMES[0]], values[KEY_NAMES[1]], values.get(KEY_NAMES[2], ""))
    if plan.how in ("role", "web identity"):
        return assume_role(values, plan.source and fetch_credentials(plan.source, region), region)
    return {"process": run_credential_process, "container": ask_container, "instance": ask_instance}[plan.how](values)


class CredentialCache:
    """The last keys of a plan, renewed before they expire by one caller at a time."""

    def __init__(self, plan: Plan, region: str) -> None:
        self.plan, self.region, self.lock = plan, region, threading.Lock()
        self.credentials: Optional[Credentials] = None
        self.failure: Optional[Error] = None
        self.retry_at = datetime.min.replace(tzinfo=timezone.utc)  # after a failure

    def get(self, now: datetime, *, wait: bool = True) -> Credentials:
        """Keys; when renewing fails, or while another caller does it, old ones serve to their end. Without any, wait
        for the other, or with wait=False raise Busy."""
        old, least = self.credentials, now + URL_LIFE + timedelta(minutes=1)
        alive = old is not None and old.are_valid(now)
        if old is None or not old.are_valid(least):
            if self.lock.acquire(blocking=wait and not alive):
                try:
                    if self.credentials is old:  # nobody has renewed them meanwhile
                        self._renew(now, alive)
                finally:
                    self.lock.release()
            elif not alive:
                raise Busy(BUSY)
        return self.credentials  # type: ignore[return-value]

    def _renew(self, now: datetime, alive: bool) -> None:
        if self.failure is None or now >= self.retry_at:
            try:
                self.credentials, self.failure = fetch_credentials(self.plan, self.region), None
            except Busy:
                if not alive:
                    raise
            except Error as error:
                self.failure, self.retry_at = error, now + (timedelta(minutes=1) if alive else FAILURE_PAUSE)
                if alive:
                    log.warning("%s; the keys before serve until they end", error)
        if self.failure and not alive:
            raise self.failure.with_traceback(None)


def shared_profiles() -> Tuple[Profiles, str]:
    """The profiles of the shared files, and these files' names."""
    paths = [os.environ.get(name) or os.path.join(os.path.expanduser("~"), ".aws", usual) for name, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config"))]
    files = [ini_sections(read_file(path, "credentials file", SMALL_FILE_LIMIT), f"credentials file {path}")
             if os.path.exists(path) else {} for path in paths]
    return merge_profiles(*files), " and ".join(paths)


def read_secret_key(api: Optional[Api], namespace: str, name: str, key: str, asked_by: str) -> bytes:
    """One key of a Secret; NotFound or ConfigError naming it, as without a cluster."""
    if api is None:
        raise CredentialsError(f"{asked_by} names the Secret {name!r}, and no cluster is asked")
    secret = api.get_referenced(SECRETS, namespace, name, asked_by)
    content = decode_base64(_text(secret, "data", key))
    if not content:
        raise ConfigError(f"key {key!r} of Secret {name!r} does not exist or is empty; {asked_by} asks for it",
                          reason="SecretKeyNotFound")
    return content


def own_endpoint() -> str:
    """The store's URL that the operator names, empty for AWS; ConfigError when it is none."""
    for name in filter(os.environ.get, ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")):
        endpoint_from(os.environ[name], name)
        return os.environ[name]
    return ""


def discover_region(address: Address, seconds: float = STS_TIMEOUT) -> str:
    """The region that S3 names for a bucket, by an unsigned HEAD as velero's plugin does; NotFound for no bucket."""
    url = f"{address.scheme}://{address.host}{address.path or '/'}"
    status, _, headers = ask("HEAD", url, {}, timeout=seconds, proxy=proxy_for(url, os.environ))
    if status == 404:
        raise NotFound(f"S3 at {address.host} knows no such bucket", reason="BucketNotFound", hints=[
            "correct objectStorage.bucket, or set config.region outside of the standard partition"])
    region = headers.get("x-amz-bucket-region", "")
    return region and dns_label(region, f"the region in the answer of {address.host}")


def _region_of(location: Location, profile: Values) -> str:
    """The region to sign for: the location's, else what S3 names for its bucket, else the environment's."""
    region = location.region
    if not region and not location.s3_url and not location.public_url:
        with about(f"storage location {location.name!r} names no region"):
            region = discover_region(bucket_address(location._replace(region="us-east-1")))
    others = {"AWS_REGION": os.environ.get("AWS_REGION"), "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION"),
              "region of the profile": profile.get("region"), "": "us-east-1"}  # the last is what most stores announce
    return region or next(dns_label(value, source) for source, value in others.items() if value)


def with_authority(api: Optional[Api], namespace: str, location: Location) -> Location:
    """A location with its certificate authority, where a Secret holds that."""
    if not location.ca_secret[0]:
        return location
    asked_by = f"storage location {location.name!r}"
    ca_cert = read_secret_key(api, namespace, *location.ca_secret, asked_by)
    if len(ca_cert) > CA_LIMIT:
        raise InvalidLocation(f"{asked_by}: what caCertRef names has more than {CA_LIMIT >> 10} KiB")
    return location._replace(ca_cert=ca_cert)


def find_location(api: Optional[Api], namespace: str, document: Document, *, trusted: bool = False) -> Location:
    """A storage location with its endpoint and authority; trusted: the operator's own. What the cluster says of TLS
    does not count where our own identity signs for AWS: the system's authorities vouch for those hosts."""
    location = location_from(document)
    location = location._replace(s3_url=location.s3_url or own_endpoint(), trusted=trusted)
    lax = location.insecure or location.ca_cert or location.ca_secret[0]
    with about(f"storage location {location.name!r}"):
        if not lax or trusted or location.secret_name or not location.is_at_aws():
            return with_authority(api, namespace, location)
    return location._replace(insecure=False, ca_cert=b"", ca_secret=("", ""), warnings=location.warnings + (
        "insecureSkipTLSVerify, caCert and caCertRef are not used at AWS without a Secret in spec.credential",))


def _profiles(api: Optional[Api], namespace: str, location: Location, allowed: Iterable[str]) -> Tuple[Profiles, str]:
    """The profiles in the Secret or file that a location names, and its name in errors. The cluster's file must be
    allowed by this path. Links are followed: the operator knows who sets them."""
    path, name, key = location.credentials_file, location.secret_name, location.secret_key
    if name:
        source = f"key {key!r} of Secret {name!r}"
        content = read_secret_key(api, namespace, name, key, f"storage location {location.name!r}")
    elif not location.trusted and path not in allowed:
        raise CredentialsError(
            f"credentialsFile names a file of this host, {one_line(path, 256)!r}, which is refused; name a Secret in "
            "spec.credential, or allow the file by --allow-credentials-file", reason="CredentialsFileNotAllowed")
    elif not location.trusted and not os.path.isfile(path):
        raise CredentialsError(f"credentialsFile {path} is no regular file here")
    else:
        source, content = f"credentials file {path}", read_file(path, "credentials file", SMALL_FILE_LIMIT)
    return merge_profiles(ini_sections(content, source), {}), source


def open_location(api: Optional[Api], namespace: str, location: Location, allowed: Iterable[str] = ()
                  ) -> Tuple[Location, Plan]:
    """A location with the region and hosts that environment and profile name, and the plan for its keys. Nobody is
    asked yet but S3, for a region. allowed: files of this host that the cluster may name; they say more than a Secret
    only where our own identity belongs."""
    name, named = location.profile, bool(location.secret_name or location.credentials_file)
    with about(f"storage location {location.name!r}"):
        untrusted = bool(location.secret_name) or not (location.trusted or location.is_for_own_identity(own_endpoint()))
        if untrusted and not named:
            raise CredentialsError(
                "it names no Secret, and our own credentials sign only for AWS and AWS_ENDPOINT_URL_S3, not for its "
                "s3Url or publicUrl; name a Secret in spec.credential, or set AWS_ENDPOINT_URL_S3 to that URL",
                reason=FOREIGN_ENDPOINT)
        profiles, source = _profiles(api, namespace, location, allowed) if named else shared_profiles()
    if named or name:
        plan = plan_profile(profiles, name or "default", source, os.environ, untrusted=untrusted)
    else:
        name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or ""
        plan = plan_chain(profiles, name, source, os.environ)
    profile = profiles.get(name or "default", {})
    dualstack, fips = ((os.environ.get(name) or profile.get(name[4:].lower()) or "").lower() == "true"
                       for name in ("AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT"))
    location = location._replace(region=_region_of(location, profile), dualstack=dualstack, fips=fips)
    bucket_address(location)  # before keys are fetched for it
    return location, plan

# ================================================================================
# 13. Store — receive, go on, verify, save
#
#     A source opens an object at a byte. A Download receives it, again and again where the line breaks. Receiving,
#     inflating or checking, and writing go on side by side, with a Pipe in between.

READ_SIZE = 256 << 10  # bytes that are asked of a connection or a file at a time
PIPE_SIZE = 1 << 20  # bytes that wait between two threads; what a kill -9 may cost
IDLE_LIMIT = 30.0  # seconds without a byte
VERIFY_TIMEOUT = 5.0  # seconds in which a store must have answered, to have its URL handed out


def trust_in(location: Location) -> Trust:
    """Whom a location says to trust; a client takes no `insecure` from it, for that is the caller's to say."""
    return Trust(location.ca_cert, location.insecure, f"caCert of storage location {location.name!r}")


@contextlib.contextmanager
def open_url(url: str, trust: Trust = Trust(), *, headers: Optional[Dict[str, str]] = None,
             wanted: Tuple[int, ...] = (200,), idle: float = IDLE_LIMIT, connect: float = CONNECT_TIMEOUT,
             address: str = "", quoting: bool = True) -> Iterator[Response]:
    """GET a pre-signed URL -> the response, its body unread; closed by the context. headers: unsigned. idle: seconds
    without a byte; connect: without a connection. address: the host's, if looked up. quoting: whether errors may hold
    what the host wrote. StoreError for a status not wanted, Unreachable without a connection, with no signature."""
    from urllib3 import exceptions
    if not is_http_url(url):
        raise StoreError("the answer holds no http or https URL")
    parts = urlsplit(url)
    where = f"the store at {parts.netloc.rpartition('@')[2]}"
    sent = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **(headers or {})}
    base, proxy, server_name = url, proxy_for(url, os.environ), ""
    if address:
        sent["Host"], proxy, server_name = parts.netloc, "", parts.hostname or ""
        host = f"[{address}]" if ":" in address else address
        base = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    with contextlib.closing(ConnectionPool(
            base, where, trust=trust, proxy=proxy, server_name=server_name, quoting=quoting,
            hint="name the store's certificate authority with --cacert",
            cure="is that host to be reached from here? publicUrl of the storage location may name one that is, and "
            "s3ForcePathStyle keeps the bucket out of its name")) as pool:
        try:
            answer = pool.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""), sent, idle=idle,
                                  connect=connect)
        except Unreachable as failed:
            failed.retry = not isinstance(failed.__cause__, exceptions.SSLError)
            if isinstance(failed.__cause__, (exceptions.ProtocolError, exceptions.ReadTimeoutError)):
                failed.reason = "BrokenOff"
            raise
        with contextlib.closing(answer):
            if answer.status not in wanted:
                raise store_refusal(answer.status, answer.refusal(), answer.headers, where, url, utc_now(), quoting)
            yield answer


@contextlib.contextmanager
def open_for_others(url: str, trust: Trust, **options: Any) -> Iterator[Response]:
    """`open_url` where whoever made the location may have chosen the host, and read the error, which holds status and
    known codes, no text of the host. Link-local services are not asked; what was looked up is what is asked, one
    address of each family."""
    host, found = urlsplit(url).hostname or "", []
    failed = Unreachable(f"cannot reach the store at {urlsplit(url).netloc}: it has no address here")
    with contextlib.suppress(OSError, UnicodeError):  # a proxy may know names that we do not
        found = [(row[0], str(row[4][0])) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    if any(map(is_link_local, (host, *(address for _, address in found)))):
        reason, cure = REFUSALS["PermanentRedirect"]
        raise StoreError(f"the store at {host} has the address of a link-local service, which is never asked",
                         reason=reason, hints=[cure])
    with contextlib.ExitStack() as stack:
        for address in [""] if proxy_for(url, os.environ) else [*dict(reversed(found)).values()][::-1]:
            try:
                response = stack.enter_context(open_url(url, trust, address=address, quoting=False, **options))
                break
            except Unreachable as error:
                failed = error
        else:
            raise failed
        yield response


def verify_url(url: str, trust: Trust, seconds: float = VERIFY_TIMEOUT) -> None:
    """Prove a URL by fetching one byte with it; StoreError or Unreachable when it does not work in time. Not by HEAD,
    because the method is signed; an empty object answers 416."""
    with host_guard(url), time_limit(seconds), open_for_others(
            url, trust, headers={"Range": "bytes=0-0"}, wanted=(200, 206, 416)):
        pass


def read_body(response: Response, idle: float = IDLE_LIMIT, info: ObjectInfo = ObjectInfo()) -> Iterator[bytes]:
    """A response's bytes as they come; Unreachable, which counts bytes of the object, when they break off."""
    came = max(0, info.start)
    try:
        for chunk in iter(functools.partial(response.read1, READ_SIZE), b""):
            came += len(chunk)
            yield chunk
    except OSError as error:
        total = "an unknown number of" if info.size is None else info.size
        said = f"the download broke off after {came} of {total} bytes" if not isinstance(error, socket.timeout) else (
            f"the store sent nothing for {format_duration(idle)}, after {came} bytes")
        raise Unreachable(said, reason="BrokenOff") from error


# An object opened at some byte: its info, its bytes, and what ends these from another thread.
OpenObject = Tuple[ObjectInfo, Iterator[bytes], Callable[[], None]]
Located = Tuple[str, Trust, str]  # a URL, whom to trust there, and the name of the request that it answers, if any


def object_in(response: Response, idle: float) -> OpenObject:
    """The object that an answer with status 200 or 206 brings."""
    info = object_info(response.status, response.headers)
    return info, read_body(response, idle, info), response.interrupt


def range_headers(start: int, etag: str) -> Dict[str, str]:
    """What asks for an object from a byte on, if it is still of this ETag."""
    return {"Range": f"bytes={start}-", **({"If-Match": etag} if etag else {})} if start else {}


class UrlSource:
    """The object at a URL, which `locate(skew of the store's clock)` gives, again when one has expired."""
    connect_timeout = CONNECT_TIMEOUT

    def __init__(self, locate: Callable[[timedelta], Located], idle: float = IDLE_LIMIT) -> None:
        self.locate, self.idle = locate, idle
        self.renew(timedelta(0))

    @contextlib.contextmanager
    def open(self, start: int, etag: str) -> Iterator[OpenObject]:
        with open_url(self.url, self.trust, headers=range_headers(start, etag), idle=self.idle,
                      connect=self.connect_timeout, wanted=(200, 206) if start else (200,)) as response:
            yield object_in(response, self.idle)

    def renew(self, skew: timedelta) -> None:
        """Get another URL, by the store's clock if that is far from ours."""
        self.url, self.trust, self.request = self.locate(
            skew if abs(skew) >= timedelta(minutes=1) else timedelta(0))


@contextlib.contextmanager
def reading(path: str, hints: Iterable[str]) -> Iterator[None]:
    """What cannot be read in a copied bucket becomes an error as a store's. hints: when it is not there."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", hints=hints, reason="ArtifactNotFound") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}",
                         status=403 if isinstance(error, PermissionError) else 0) from error


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o600)  # a FIFO may have no other end


class FileSource(NamedTuple):
    """The object in a file of a copied bucket, always read from its beginning."""
    path: str
    hints: Iterable[str] = ()  # what to do when it is not there

    @contextlib.contextmanager
    def open(self, _start: int, _etag: str) -> Iterator[OpenObject]:
        with reading(self.path, self.hints), open(self.path, "rb", buffering=0, opener=_open_now) as file:
            there = os.fstat(file.fileno())
            if not stat.S_ISREG(there.st_mode):
                raise NotFound(f"{self.path} is no file", reason="ArtifactNotFound")
            chunks = iter(functools.partial(file.read, READ_SIZE), b"")
            yield ObjectInfo(size=there.st_size), chunks, lambda: None


Source = Union[UrlSource, FileSource]

# aws-chunked framing that some SDK left in the object it stored (velero#7995):
# `SIZE[;chunk-signature=…]\r\n DATA \r\n` again and again, a chunk of size 0 and perhaps trailers at the end.
_FRAME = re.compile(rb"([0-9a-fA-F]{1,8})(?:;chunk-signature=[0-9a-f]{64})?\r\n")
FRAME_SIZE = 128  # bytes that the head of a frame cannot have


def decode_aws_chunked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, without the framing where the first ones show it."""
    chunks, buffer, at, left = iter(chunks), b"", 0, 0
    for chunk in chunks:
        buffer += chunk
        if len(buffer) >= FRAME_SIZE:
            break
    frame = _FRAME.match(buffer)
    if frame is None or buffer[frame.end():frame.end() + 2] != b"\x1f\x8b":
        yield from itertools.chain([buffer], chunks)
        return
    log.info("the object was stored with aws-chunked framing, which is taken off")
    for chunk in itertools.chain([b""], chunks):
        buffer, at = buffer[at:] + chunk, 0  # at: what is done; left: to come of a frame's data and line end
        while at < len(buffer):
            if not left:
                frame = _FRAME.match(buffer, at)
                if frame is None:
                    break
                at, left = frame.end(), int(frame.group(1), 16) + 2
                if left == 2:
                    return
            data = buffer[at:at + left]
            yield data[:max(0, left - 2)]
            at, left = at + len(data), left - len(data)
        if not left and len(buffer) - at > FRAME_SIZE:
            raise StoreError("the file is damaged: its aws-chunked framing breaks off")
    raise StoreError("the file is cut short: its aws-chunked framing has no end")


def write_all(writer: Any, chunk: bytes) -> None:
    """Write all, where a writer takes less than it is given, too."""
    view = memoryview(chunk)
    while view:
        count = writer.write(view)
        view = view[len(view) if count is None else count:]


_user = getattr(os, "geteuid", int)  # Windows has none


def _follow_links(path: str) -> str:
    """Where symbolic links of this user and root lead: in a shared folder another user's could redirect our bytes."""
    with contextlib.suppress(OSError):  # it is no link, or opening it will say what is wrong
        for _ in range(40):  # as many as Linux follows
            leads_to = os.readlink(path)
            if os.lstat(path).st_uid not in (0, _user()):
                raise Error(f"cannot write {path}: it is a symbolic link of another user", hints=["name its target"])
            path = os.path.join(os.path.dirname(path), leads_to)
    return path


def check_target(path: str, *, force: bool, named: bool = True) -> None:
    """Raise, before anybody is asked, when no regular file can be put here; `named` by a user, who may mean a link."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise Error(f"cannot write {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise Error(f"cannot write {path}: it is a folder", hints=["name a file in it"])
    link = os.path.islink(path) and not named
    if link or (os.path.exists(path) and not os.path.isfile(path)):
        raise Error(f"cannot write {path}: it is no regular file", hints=[
            "if it is meant, name it with --output" if link else "`-o -` writes to stdout, which may lead there"])
    if os.path.lexists(path) and not force:
        raise Error(f"{path} exists", hints=["choose another file with --output, or replace it with --force"])
    _follow_links(path)


_NAMED_BY_ETAG = re.compile(r'"([\w-]{1,64})"', re.ASCII)  # ETags that can be part of a file's name: all of S3's
_PART = ".velero-requests.part"


def _is_name_of(path: str, file: Any) -> bool:
    """Whether an open file has this path, and nothing else."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.lstat(path), os.fstat(file.fileno()))
    return False


class AtomicFile:
    """A file that gets its name once it is whole; until then its bytes are in a partial file beside it. The partial
    file's name tells target, object and ETag: another run goes on from it. Other users may make files in the folder,
    too, so each is opened once and checked through its descriptor."""

    def __init__(self, path: str, what: str, *, force: bool):
        import hashlib
        self.path, self.force, self.file, self.part, self.etag = path, force, None, "", ""
        self.target = _follow_links(path)
        folder, name = os.path.split(self.target)
        name_digest, self.digest = (hashlib.sha256(os.fsencode(text)).hexdigest()[:8] for text in (name, what))
        self.prefix = os.path.join(folder, f".{name[:32]}.{name_digest}.")

    def _lock(self, file: Any) -> None:
        """Keep other downloads of the target out, where there are locks at all."""
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"another download is writing {self.path}", hints=["wait for it, or end it"]) from None
        except OSError as error:  # such as NFS without its lock daemon
            log.info("another download of %s would not be noticed: %s", self.path, error.strerror)

    def _open_own(self, part: str, create: int = 0) -> bool:
        """Open a partial file that is new, or our own and known by no other name; locked and unbuffered."""
        with contextlib.ExitStack() as opened:
            try:
                descriptor = _open_now(part, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | create)
            except OSError as error:
                if create and not isinstance(error, FileExistsError):
                    raise
                return False
            file = opened.enter_context(open(descriptor, "r+b", buffering=0))
            there = os.fstat(descriptor)
            if create or (stat.S_ISREG(there.st_mode) and there.st_uid == _user() and there.st_nlink == 1):
                self._lock(file)
                if _is_name_of(part, file):  # else another download finished it between our calls
                    self.part, self.file = part, file
                    opened.pop_all()
        return self.file is not None

    def find_part(self) -> int:
        """Open what an earlier run left of the object -> its size or 0; what it left of others is removed."""
        import glob
        for part in glob.glob(f"{glob.escape(self.prefix)}*{_PART}"):
            if self._open_own(part):
                digest, _, etag = part[len(self.prefix):-len(_PART)].partition(".")
                size = os.fstat(self.file.fileno()).st_size
                if size and digest == self.digest and _NAMED_BY_ETAG.fullmatch(f'"{etag}"'):
                    self.etag = f'"{etag}"'
                    return size
                self.discard()
        return 0

    def open_part(self, etag: str) -> None:
        """Begin a partial file; where another user's file has its usual name, under an unpredictable one."""
        match = _NAMED_BY_ETAG.fullmatch(etag)
        for named_etag in (match[1] if match else "~", f"~{os.urandom(8).hex()}"):
            part = f"{self.prefix}{self.digest}.{named_etag}{_PART}"
            if self._open_own(part, os.O_CREAT | os.O_EXCL) or self._open_own(part):
                self.etag = "" if named_etag[0] == "~" else etag
                self.file.truncate(0)
                return
        raise OSError(f"its partial file {part} belongs to somebody else")

    def commit(self) -> None:
        """Sync the file and name it; without force by a link, which fails when that name exists by now."""
        os.fsync(self.file.fileno())
        if not self.force:
            with contextlib.suppress(OSError):  # it is there, or the file system knows no links
                os.link(self.part, self.target)
        if _is_name_of(self.target, self.file):
            os.unlink(self.part)
        else:
            check_target(self.path, force=self.force)  # for what has come meanwhile
            os.replace(self.part, self.target)
        if not _is_name_of(self.target, self.file):
            raise OSError("somebody else has put another file there")
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:  # where folders cannot be synced
            folder = os.open(os.path.dirname(self.target) or ".", os.O_RDONLY)
            opened.callback(os.close, folder)
            os.fsync(folder)

    def discard(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.part)
            self.file.close()
        self.file, self.etag = None, ""


@contextlib.contextmanager
def atomic_file(path: str, what: str, *, force: bool, named: bool = True) -> Iterator[AtomicFile]:
    """A file to fill, named when the context ends well, else kept where another run can go on from it, or removed;
    Error naming it when it cannot be written."""
    check_target(path, force=force, named=named)
    new = AtomicFile(path, what, force=force)
    try:
        yield new
        new.commit()
    except BaseException as error:
        if new.etag and os.fstat(new.file.fileno()).st_size and may_be_continued(error):
            log.warning("what has come is kept in %s, and the same command goes on from there", new.part)
        else:
            new.discard()
            if isinstance(error, KeyboardInterrupt):
                log.warning("nothing of %s is kept", what)
        if isinstance(error, OSError):
            raise Error(f"cannot write {path}: {error.strerror or one_line(error)}") from error
        raise
    finally:
        if new.file is not None:
            new.file.close()


class Pipe:
    """The chunks of a generator, which runs in a thread of its own, some chunks ahead of the reader."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.waiting, self.size = [], 0  # bytes in those that wait
        self.end: Optional[BaseException] = None  # what the reader gets after them; StopIteration when all have come
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._fill, args=(chunks, time_left()), name="download", daemon=True)
        self.thread.start()

    def _fill(self, chunks: Iterator[bytes], left: float) -> None:
        end: BaseException = StopIteration()
        try:
            with contextlib.closing(chunks), time_limit(left):  # type: ignore[type-var]
                for chunk in chunks:
                    with self.changed:
                        self.changed.wait_for(lambda: self.size < PIPE_SIZE or self.end)
                        self.waiting.append(chunk)
                        self.size += len(chunk)
                        self.changed.notify()
                    if self.end:
                        break
        except BaseException as error:  # a thread cannot raise; whoever takes the chunks does
            end = error
        with self.changed:
            self.end = self.end or end
            self.changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        end = None
        while not end:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.end)
                chunks, self.waiting, self.size, end = self.waiting, [], 0, self.end
                self.changed.notify()
            yield from chunks
        if not isinstance(end, StopIteration):
            raise end

    def close(self) -> None:
        """End the thread at its next chunk; whoever waits for one must not take what has come for whole."""
        with self.changed:
            self.end = self.end or StoreError("the download was cancelled")
            self.changed.notify_all()
        self.thread.join(1)


class Download:
    """An object that is fetched to its end although connections break; other threads may read its `position`. It goes
    on at the byte reached, by Range and If-Match, after a pause, by another URL when one has expired."""
    first_wait = 0.2  # seconds, after the first failure in a row

    def __init__(self, source: Source, what: str, *, gunzip: bool) -> None:
        """what: its name in errors. gunzip: whether the content is wanted, not the bytes as stored."""
        self.source, self.what, self.gunzip = source, what, gunzip
        self._restart(None, 0)

    def _restart(self, part: Optional[AtomicFile], size: int) -> None:
        """Begin after so many bytes, which an earlier run left in a partial file."""
        self.part, self.resumed, self.position = part, size, size
        self.info: Optional[ObjectInfo] = None  # what the store says of the object, once it has answered
        self.cancelled = threading.Event()
        self.interrupt: Callable[[], None] = lambda: None  # ends the chunks that come just now

    def _attempt(self) -> Iterator[bytes]:
        """The bytes after `position` that one connection brings; raises when the end was not reached."""
        known = self.info or ObjectInfo(self.part.etag if self.part else "")
        with self.source.open(max(0, self.position - 1), known.etag) as (info, chunks, self.interrupt):
            if self.cancelled.is_set():  # which may have come before there was something to interrupt
                raise StoreError("the download was cancelled")
            skip, came = bytes_to_skip(known, info, self.position), False
            self.info = info if self.position == self.resumed else known
            for chunk in chunks:
                fresh, skip, came = chunk[skip:], max(0, skip - len(chunk)), True
                self.position += len(fresh)
                yield fresh
            if skip or not (info.ends or came):
                raise Unreachable(f"the download broke off after {self.position} bytes", reason="BrokenOff")

    def received(self) -> Iterator[bytes]:
        """All bytes after `position`, over several connections; reason ObjectChanged when the object was replaced."""
        failures, waited, renewals, reached = 0, 0.0, 0, self.position
        while not self.cancelled.is_set():
            try:
                yield from self._attempt()
                return
            except (StoreError, Unreachable) as error:
                if error.status in (412, 416):
                    raise _changed(self.position) from error
                if self.position > reached:
                    failures, waited, renewals, reached = 0, 0.0, 0, self.position
                failures += 1
                if renewals < 2 and (error.reason in EXPIRED or (  # or a 403 without a reason, after bytes came by it
                        self.position > self.resumed and error.status == 403 and error.reason == "StoreAccessDenied")):
                    renewals += 1
                    log.info("%s; asking for another URL", error)
                    self.source.renew(error.skew)  # type: ignore[union-attr]
                    continue
                wait = download_wait(error, failures, waited, self.position > 0, self.first_wait)
                if wait is None or wait >= time_left():
                    raise
                log.info("%s; going on at byte %d in %s", error, self.position, format_duration(wait))
                waited += wait
                self.cancelled.wait(wait)
        raise StoreError("the download was cancelled")

    def _verified(self) -> Iterator[bytes]:
        """The partial file, once the store says its object is the same, and the rest; StoreError for a wrong MD5."""
        rest, kept, digest = self.received(), iter(()), None
        first = next(rest, b"")
        wanted = self.info.md5 if self.info else ""
        if wanted:
            import hashlib
            with contextlib.suppress(ValueError):  # some systems forbid MD5
                digest = hashlib.md5()
        if self.part and self.resumed:
            self.part.file.seek(0)
            kept = iter(functools.partial(self.part.file.read, READ_SIZE), b"")
        for chunk in itertools.chain(kept, [first], rest):
            if digest:
                digest.update(chunk)
            yield chunk
        if digest and digest.hexdigest() != wanted:
            raise StoreError(f"the file is damaged: its MD5 is {digest.hexdigest()}, the store's ETag is {wanted}")

    def chunks(self) -> Iterator[bytes]:
        """The content, verified to be whole; an error comes after the part that is sound. Close the generator."""
        stored = Pipe(self._verified())
        content = Pipe(inflate(decode_aws_chunked(stored), unpack=self.gunzip))
        try:
            with about(self.what):
                yield from content
        finally:
            self.cancelled.set()
            self.interrupt()
            stored.close()
            content.close()

    def write_to(self, writer: Any) -> int:
        """Write it into a writer, which stays open -> its size; StoreError after its sound part if it is not whole."""
        size = 0
        with contextlib.closing(self.chunks()) as chunks:  # type: ignore[type-var]
            for chunk in chunks:
                write_all(writer, chunk)
                size += len(chunk)
        return size

    def _fill(self, new: AtomicFile) -> int:
        """Write it into a new file, after what an earlier run left of it -> its size."""
        self._restart(new, new.find_part())
        position = flushed = 0
        with contextlib.closing(self.chunks()) as chunks:  # type: ignore[type-var]
            for chunk in chunks:
                if new.file is None:
                    new.open_part(self.info.etag if self.info and not self.gunzip else "")
                write_all(new.file, chunk[max(0, self.resumed - position):])
                position += len(chunk)
                if position - flushed >= 16 << 20 and hasattr(os, "posix_fadvise"):  # so that fsync finds little
                    os.posix_fadvise(new.file.fileno(), flushed, position - flushed, os.POSIX_FADV_DONTNEED)
                    flushed = position
        return position

    def save(self, path: str, *, force: bool = False, named: bool = True) -> int:
        """Put it into a new regular file, whole or not at all -> its size; what an earlier run left is continued when
        it fits. An object that changes meanwhile is fetched anew, three times. Error naming the file, StoreError for an
        object not whole, Unreachable for a broken line."""
        with atomic_file(path, self.what, force=force, named=named) as new:
            for retries in itertools.count(-3):
                try:
                    return self._fill(new)
                except StoreError as error:
                    changed = error.reason == "ObjectChanged"
                    if not retries or not (changed or (self.resumed and not may_be_continued(error))):
                        raise
                    log.warning("%s; starting over", error if changed else "what an earlier run left is damaged")
                    new.discard()


# ================================================================================
# 14. Controller — queue, pages for probes and scrapers, feeders, workers, and how a decision is carried out
#
#     client-go's work queue (util/workqueue): a key that waits is there once; one added while it is worked on comes
#     again afterwards, so no two workers hold it. Delays are instants of the wall clock, as expirations are; a waiting
#     worker looks at it once a minute, so setting it does no lasting harm.

class Queue:
    """Keys to look at, now or at an instant (seconds since the epoch, as `clock` gives them)."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._changed, self._closed = clock, threading.Condition(), False
        self.ready: OrderedDict = OrderedDict()  # keys to look at, in order, and since when (time.monotonic)
        self.working: Dict[Any, Tuple[float, float]] = {}  # keys that workers hold: since when ready, and held
        self._due: Dict[Any, float] = {}  # key -> the one instant that counts for it
        self._heap: List[Tuple[float, Any]] = []  # (instant, key); outdated entries are skipped

    def add(self, key: Any) -> None:
        """Look at this key now; an instant set earlier still counts."""
        with self._changed:
            self.ready.setdefault(key, time.monotonic())
            self._changed.notify()

    def add_at(self, key: Any, instant: float) -> None:
        """Look at this key at an instant, or never for infinity, instead of one set earlier."""
        with self._changed:
            if instant == math.inf:
                self._due.pop(key, None)
            elif self._due.get(key) != instant:
                self._due[key] = instant
                heapq.heappush(self._heap, (instant, key))
                if self._heap[0][1] == key:  # else whoever waits wakes before
                    self._changed.notify()

    def take(self, wait: bool = True) -> Any:
        """The next key, the caller's until `done`; None when closed or, without `wait`, when none is ready."""
        with self._changed:
            while not self._closed:
                pause = self._promote()
                key = next((key for key in self.ready if key not in self.working), None)
                if key is not None:
                    self.working[key] = self.ready.pop(key), time.monotonic()
                    self._due.pop(key, None)
                    self._changed.notify()  # another one must know the next instant
                if key is not None or not wait:
                    return key
                self._changed.wait(pause)
            return None

    def done(self, key: Any, again: float = math.inf) -> None:
        """Let go of a key, to be looked at again at an instant, or at an earlier one that was set meanwhile."""
        with self._changed:
            self.add_at(key, min(again, self._due.get(key, math.inf)))
            self.working.pop(key, None)
            if key in self.ready:
                self._changed.notify()

    def wake(self) -> None:
        """Let waiting workers read the clock again."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        self._closed = True
        self.wake()

    def _promote(self) -> float:
        """Make keys ready whose instant has come -> seconds to wait for the next."""
        now = self._clock()
        while self._heap:
            instant, key = self._heap[0]
            if self._due.get(key) == instant:
                if instant > now:
                    break
                del self._due[key]
                self.ready.setdefault(key, time.monotonic())
            heapq.heappop(self._heap)
        return min([60.0] + [instant - now for instant, _ in self._heap[:1]])


TRANSFERS = 16  # artifacts that a controller hands on at a time; others can still be refused
Page = Tuple[int, Dict[str, str], Iterable[bytes]]  # status, headers and the pieces of the body


def text_page(status: int, text: str, **headers: str) -> Page:
    """A page of text; its type is that of Prometheus' format, which no other reader minds."""
    body = f"{text.rstrip()}\n".encode()
    return status, {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Content-Length": str(len(body)),
                    **headers}, [body]


class HttpServer:
    """Pages for few readers, of whom each may be hostile: one GET or HEAD a connection. answer: method, target and
    headers (names in lower case) -> a Page. A request must come, and each piece of its page be taken, within `seconds`;
    of more than `most` connections the one that did not move for longest gives way."""
    most, seconds, head_limit = 2 * TRANSFERS, IDLE_LIMIT, 8192

    def __init__(self, address: str, answer: Callable[[str, str, Dict[str, str]], Page],
                 tls: Sequence[str] = ()) -> None:
        """address: HOST:PORT; without a host all of IPv4 and IPv6, one of IPv6 in brackets. tls: the files of a
        certificate and its key; of files that are replaced connections begin with what is there then."""
        self.tls, self.pem, self.begin = tls, [], lambda sock, **_: sock  # type: Any, List[bytes], Any
        self._read_tls()
        host, _, port = address.rpartition(":")
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or host[:1] == "[" else socket.AF_INET
        try:
            self.listener = socket.create_server((host.strip("[]"), int(port)), family=family, dualstack_ipv6=both)
        except (OSError, OverflowError, UnicodeError) as error:
            why = str(getattr(error, "strerror", "") or error).partition(" (while")[0]
            raise Error(f"cannot listen on {address}: {why}") from error
        self.answer, self.connections = answer, OrderedDict()  # type: Any, OrderedDict[socket.socket, None]
        self.closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _read_tls(self) -> None:
        pem = [read_file(path, what) for path, what in zip(self.tls, ("the certificate", "the certificate's key"))]
        if pem != self.pem:
            import ssl
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.minimum_version, context.sslsocket_class = ssl.TLSVersion.TLSv1_2, _timed_classes()["tls"]
            load_certificate(context, *pem, " and ".join(self.tls))
            self.pem, self.begin = pem, context.wrap_socket

    def close(self) -> None:
        """Listen no more; what is being answered goes on. The thread that waits there wakes and closes the socket: were
        it closed here, its number might soon mean another one to that thread."""
        self.closing = True
        self.listener.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        logged = ""
        while not self.closing:
            try:
                sock = _timed_classes()["plain"](fileno=self.listener.accept()[0].detach())
                trouble = ""
                try:
                    self._read_tls()
                except ConfigError as error:
                    trouble = str(error)
                if trouble not in ("", logged):
                    log.warning("%s; what was read before stays in use", trouble)
                logged = trouble
                with contextlib.suppress(OSError):  # this one has left, or the one to give way
                    sock = self.begin(sock, server_side=True, do_handshake_on_connect=False)  # its own thread makes it
                    self.connections[sock] = None
                    threading.Thread(target=self._converse, args=(sock,), daemon=True).start()
                    if len(self.connections) > self.most:
                        # TLS's own `shutdown` would let its thread go on in plain text.
                        socket.socket.shutdown(self.connections.popitem(last=False)[0], socket.SHUT_RDWR)
            except (OSError, RuntimeError):  # no descriptor or thread is left
                time.sleep(0.1)
        self.listener.close()

    def _reply(self, head: bytes) -> Iterator[bytes]:
        head, end, _ = head.partition(b"\r\n\r\n")
        line, *rows = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"([A-Z]+) (/[!-~]*) HTTP/1\.[01]", line)
        if not match or not end:
            status, headers, body = text_page(
                400, f"speak HTTP/1.1, and send a request within {self.seconds:g} seconds and {self.head_limit} bytes")
        elif match[1] not in ("GET", "HEAD"):
            status, headers, body = text_page(405, "only GET and HEAD are answered here", Allow="GET, HEAD")
        else:
            fields = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
            status, headers, body = self.answer(match[1], match[2], fields)
        lines = (f"{name}: {value}\r\n" for name, value in {**headers, "Connection": "close"}.items())
        yield f"HTTP/1.1 {status} \r\n{''.join(lines)}\r\n".encode("latin-1")
        if not match or match[1] != "HEAD":
            yield from body

    def _converse(self, sock: socket.socket) -> None:
        head = b""
        with sock, contextlib.suppress(OSError, KeyError):  # it left, or had to give way
            with contextlib.suppress(socket.timeout), time_limit(self.seconds):
                while b"\r\n\r\n" not in head and len(head) < self.head_limit:
                    head += sock.recv(self.head_limit - len(head)) or b"\r\n\r\n"  # that was all
            for piece in self._reply(head):
                self.connections.move_to_end(sock)
                with time_limit(self.seconds):
                    sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
            with time_limit(self.seconds):  # who still sends would lose the answer if it were closed now
                all(sock.recv(65536) for _ in range(128))
        self.connections.pop(sock, None)


TRANSFER_SIZE = 60 << 10  # bytes of each in memory; of more, `give_large_blocks_back` would make pages at every read
# What is handed on of a caller's headers, and of a store's. The type is not: nobody shall see a page in an artifact.
ASKED = {"Range": r"bytes=(\d{1,18}-\d{0,18}|-\d{1,18})", "If-Match": r'\*|"[!#-~]{0,1024}"'}
HANDED_ON = re.compile("etag|content-range|content-length|accept-ranges|last-modified|x-amz-checksum-[a-z0-9]+"
                       "|x-amz-server-side-encryption(-customer-algorithm)?", re.IGNORECASE)

WORKERS = 4
STUCK = 15 * READ_TIMEOUT  # seconds; a pass makes at most 11 calls, and asks STS and store for as long as two more take
SHORT_WATCH = 3.0  # seconds; a watch that ends sooner and brought nothing is a failure
CACHE_LIFE, CACHE_SIZE = 5.0, 200  # seconds and entries; backups, locations, Secrets after a success

GONE = Outcome("leave", "it is gone")
CONFLICT = Outcome("leave", "it changed meanwhile", failed=True)


class Controller:
    """The state of a controller for one namespace; all of it can be lost without harm. now: its only clock. dry_run:
    `run_once` prints and changes nothing. verify_urls: fetch a byte with every URL before it is handed out. allowed:
    files of this host that a location may name."""
    watch_seconds, silence = WATCH_SECONDS, WATCH_SILENCE
    stop_time = 1.5  # seconds for passes in hand in the end, so that SIGTERM ends it within two

    def __init__(self, api: Api, namespace: str, server: Server, *, now: Callable[[], datetime] = utc_now,
                 dry_run: bool = False, verify_urls: bool = False, allowed: Sequence[str] = ()) -> None:
        self.api, self.namespace, self.server, self.now = api, namespace, server, now
        self.dry_run, self.verify_urls, self.allowed = dry_run, verify_urls, allowed
        self.queue = Queue(lambda: now().timestamp())
        self.stop = threading.Event()
        self.records: Dict[Key, Request] = {}  # newest copies, without their URLs
        self.name = f"{REPLICA}{random.getrandbits(40):010x}"
        self.others: Dict[str, float] = {}  # replicas that answer, and when the last answer of each was seen
        self.versions: Dict[Resource, str] = {}  # where each watch goes on; absent: list anew
        self.with_subresource: Set[Resource] = set()  # kinds whose status is written to /status
        self.cache: Dict[Any, Tuple[datetime, Any]] = {}  # what was looked up lately, and until when
        self.streams: Dict[Resource, Response] = {}  # open watches, to be interrupted
        self.failures: Dict[Key, Tuple[int, str]] = {}  # how many looks in a row failed, and what was logged
        self.credentials = functools.lru_cache(CACHE_SIZE)(CredentialCache)  # by plan and region
        self.transfers = threading.BoundedSemaphore(TRANSFERS)
        self.hosts = HostLimiter(WORKERS, FAILURE_PAUSE.total_seconds())
        self.events = dict.fromkeys(REQUEST_KINDS, 0)  # how many the watches have brought
        self.progress = dict.fromkeys(REQUEST_KINDS, time.monotonic())  # when a feeder last got on
        self.listed: Set[Resource] = set()  # kinds that have been listed once
        self.lock = threading.Lock()
        self.series: Dict[Tuple[str, ...], List[float]] = defaultdict(lambda: [0] * (len(BUCKETS) + 2))
        for resource, result in itertools.product(REQUEST_KINDS, ("success", "error", "requeue", "requeue_after")):
            self.count((("controller_runtime_reconcile_total", resource.kind.lower(), result), 0))
        api.session.on_exchange = lambda code, method: self.count((("rest_client_requests_total", code, method), 1))

    def count(self, *observed: Tuple[Tuple[str, ...], float]) -> None:
        """Add each value to its counter or histogram, which is a metric and the values of its labels."""
        with self.lock:
            for series, value in observed:
                numbers = self.series[series]
                numbers[0] += value
                numbers[1 + bisect.bisect_left(BUCKETS, value)] += 1

    def note(self, error: Exception) -> Error:
        """Log once the line of a Role that grants a missing right -> the error as one of the module. A bug must end
        neither a worker nor a feeder: the controller would look healthy and see nothing."""
        if isinstance(error, ApiError) and error.status == 403:
            self.api.warn_once(*error.hints)
        if isinstance(error, Error):
            return error
        log.debug("a bug", exc_info=error)
        return Error(f"unexpected {type(error).__name__}")

    def cached(self, name: Tuple[str, ...], read: Callable[[], Any]) -> Any:
        now = self.now()
        until, value = self.cache.get(name, (now, None))
        if until > now:
            return value
        value = read()
        if len(self.cache) >= CACHE_SIZE:
            self.cache.clear()
        self.cache[name] = now + timedelta(seconds=CACHE_LIFE), value
        return value

    def read_spec(self, resource: Resource, name: str, field: str, asked_by: str) -> str:
        return self.cached((resource.kind, name), lambda: _name(self.api.get_referenced(
            resource, self.namespace, name, asked_by), "spec", field))

    def open_location(self, name: str, asked_by: str) -> Tuple[Location, Plan]:
        document = self.api.get_referenced(LOCATIONS, self.namespace, name, asked_by)
        location = find_location(self.api, self.namespace, document)
        self.api.warn_once(*(f"storage location {location.name!r}: {warning}" for warning in location.warnings))
        return open_location(self.api, self.namespace, location, self.allowed)

    def sign(self, request: Request, own: bool = False) -> Tuple[Location, str, str, datetime]:
        """Artifact -> backup, for a restore the one it came from -> storage location -> keys -> location, key, signed
        URL and its end. own: for ourselves, who are no worker, and not for those to whom publicUrl leads."""
        artifact = target_of(request.target_kind, request.target_name)
        backup, asked_by = request.target_name, "the request"
        if artifact.owner == RESTORES:
            backup, asked_by = self.read_spec(RESTORES, backup, "backupName", asked_by), f"restore {backup!r}"
        name = self.read_spec(BACKUPS, backup, "storageLocation", asked_by)
        location, plan = self.cached(("location", name), lambda: self.open_location(name, f"backup {backup!r}"))
        location = location._replace(public_url="") if own else location
        credentials = self.credentials(plan, location.region).get(self.now(), wait=own)
        key = object_key(location.prefix, artifact, request.target_name)
        return (location, key, *sign(location, key, credentials, self.now(), timedelta(0)))

    def answer(self, request: Request) -> Outcome:
        location, key, url, expires = self.sign(request)
        if self.verify_urls:
            verify_url(url, trust_in(location))
        return answer_download(request, key, url, expires)

    def proven(self, name: str, proof: str) -> Request:
        """The request whose URL a caller has read, as the API says now. Whatever is wrong, the error is the same: so it
        tells nobody which requests there are."""
        import hmac
        with contextlib.suppress(Missing):
            request = request_from(DOWNLOAD_REQUESTS, self.api.get(DOWNLOAD_REQUESTS, self.namespace, name))
            if request.url and request.phase == PROCESSED and hmac.compare_digest(
                    proof_of(request.url).encode(), proof.encode()):
                outcome = triage_download(request, self.now())
                if request.deleting or (outcome and outcome.verb == "delete"):
                    raise Error(f"{request.key} has expired", reason="UrlExpired", status=410)
                return request
        raise Error("no answered DownloadRequest has this name and a URL of this proof", reason="NotProven", status=403)

    def transfer(self, target: str, headers: Dict[str, str]) -> Iterator[Any]:
        """Status and headers for an artifact, then its bytes. Others may have written the URL in the status, which is
        never asked: the location of the request's target is, by a URL that is signed for that."""
        path = re.fullmatch(r"/artifacts/([a-z0-9.-]{1,253})", target)
        asked = {name: headers[name.lower()] for name in ASKED if name.lower() in headers}
        if not path or not all(re.fullmatch(ASKED[name], value, re.ASCII) for name, value in asked.items()):
            raise Error("only /artifacts/NAME is here, by one Range and If-Match", reason="NotServed", status=404)
        if not self.transfers.acquire(blocking=False):
            raise Error(f"{TRANSFERS} transfers are running", reason="Busy", status=503)
        try:
            request = self.proven(path[1], headers.get(PROOF.lower(), ""))
            location, key, url, _ = self.sign(request, own=True)
            log.info("%s: handing on %s", request.key, key)
            with open_for_others(url, trust_in(location), headers=asked, wanted=(200, 206)) as response:
                fields = {name: value for name, value in response.headers.items()
                          if HANDED_ON.fullmatch(name) and value.isascii() and value.isprintable()}
                yield response.status, {**fields, "Content-Type": "application/octet-stream"}
                yield from iter(functools.partial(response.read1, TRANSFER_SIZE), b"")
        finally:
            self.transfers.release()

    def artifact_page(self, _method: str, target: str, headers: Dict[str, str]) -> Page:
        """/artifacts/NAME, the artifact that an answered DownloadRequest asks for, or in JSON why not. A transfer ends
        when nobody holds its pieces any more."""
        pieces = self.transfer(target, headers)
        try:
            status, fields = next(pieces)
            return status, {**fields, MARKER: "1"}, pieces
        except Exception as caught:
            error = self.note(caught)
        status = 502 if isinstance(error, (ApiError, Unreachable)) else error.status or (
            404 if isinstance(error, NotFound) else 409)
        later = {"Retry-After": f"{getattr(error, 'retry_after', None) or 2:.0f}"} if status == 503 else {}
        message = one_line(redact("; ".join([str(error), *error.hints])), MESSAGE_LIMIT)
        return text_page(status, json.dumps({"reason": error.reason, "message": message}), **{
            "Content-Type": "application/json", MARKER: "1", **later})

    def remember(self, resource: Resource, document: Document, late: bool = False) -> Tuple[Key, bool]:
        """Keep the newest copy of a request -> its key, and whether to look at it now. late: the watch may have brought
        a newer one meanwhile."""
        record = request_from(resource, document)._replace(url="")
        if record.key.namespace != self.namespace:
            return record.key, False  # not ours, whoever sent it
        with self.lock:
            old = self.records.get(record.key)
            if late and old and record.is_older_than(old):
                return record.key, False
            self.records[record.key] = record
        return record.key, is_news(old, record)

    def note_replicas(self, replicas: Set[str]) -> None:
        for name in replicas - {self.name}:
            if name in self.others or len(self.others) < REPLICA_LIMIT:
                self.others[name] = self.now().timestamp()

    def schedule(self, key: Key) -> None:
        """Look at a request that has changed: when an answered one expires, or when another replica should have
        answered it, else now."""
        request, now = self.records.get(key), self.now()
        outcome = triage_download(request, now) if request and key.resource == DOWNLOAD_REQUESTS else None
        if outcome and outcome.verb == "leave" and outcome.again:
            self.queue.add_at(key, outcome.again.timestamp())
        elif request and turn_of(self.name, request, dict(self.others), now):
            self.queue.add_at(key, now.timestamp() + REPLICA_PAUSE)
        else:
            self.queue.add(key)

    def write_status(self, key: Key, body: Document) -> None:
        """Patch the status, and perhaps annotations, where the live CRD takes them: those of Velero 1.6 to 1.8 have a
        status subresource, later ones do not, and upgrades leave them alone. With one, a patch of the object silently
        drops the status; without one, /status is a 404."""
        to_object = "annotations" in body["metadata"] or key.resource not in self.with_subresource
        for subresource in ("", "status") if to_object else ("status",):
            try:
                stored = self.api.merge_patch(key, body, subresource, self.name)
            except Missing:
                if subresource:  # the object is gone, or the CRD was replaced
                    self.with_subresource.discard(key.resource)
                raise
            if request_from(key.resource, stored).key != key:
                break  # no API server answers so
            if key in self.records:  # else the watch has reported its deletion
                self.remember(key.resource, stored, late=True)
            status = body.get("status", {})
            if all(_at(stored, "status", name) == value for name, value in status.items()):
                return
            self.with_subresource.add(key.resource)
            body = {"metadata": {"resourceVersion": _text(stored, "metadata", "resourceVersion")}, "status": status}
        raise Error(f"the API server does not keep the status of {key}")

    def apply(self, request: Request, outcome: Outcome) -> None:
        """Carry out an outcome, unless in a dry run; a new reason becomes an Event, too, with the right to."""
        annotations: Document = {}
        if outcome.verb == "delete" and not self.dry_run:
            self.api.delete(request.key, outcome.body)
        elif outcome.body and not self.dry_run:
            self.write_status(request.key, outcome.body)
            annotations = outcome.body["metadata"].get("annotations", {})
        if annotations.get(REASON):
            try:
                self.api.create(EVENTS, event_for(request, annotations[REASON], annotations[MESSAGE], self.now()))
            except Error as error:
                log.debug("no Event for %s: %s", request.key, self.note(error))

    def reconcile_download_request(self, request: Request) -> Outcome:
        try:
            outcome = triage_download(request, self.now()) or self.answer(request)
        except Busy as error:
            return Outcome("leave", str(error), again=self.now() + BUSY_PAUSE)
        except Exception as error:  # also a bug must leave a reason and an expiration
            outcome = refuse_download(request, self.note(error), self.now())
        try:
            self.apply(request, outcome)
        except ApiError as error:
            if error.status != 422:
                raise
            outcome = fall_back_download(request, outcome, self.now())
            self.apply(request, outcome)
        return outcome

    def reconcile_server_status_request(self, request: Request) -> Outcome:
        outcome = decide_status(request, self.server, self.now())
        self.apply(request, outcome)
        return outcome

    def look_at(self, key: Key) -> Outcome:
        """One look at a key; whatever goes wrong becomes an outcome, so no object can stop a worker."""
        request, _thread.hosts = self.records.get(key), self.hosts
        is_download = key.resource == DOWNLOAD_REQUESTS
        reconcile = self.reconcile_download_request if is_download else self.reconcile_server_status_request
        try:
            try:
                turn = turn_of(self.name, request, dict(self.others), self.now()) if request else 0
                if turn > self.now().timestamp():
                    again = datetime.fromtimestamp(turn, timezone.utc)
                    return Outcome("leave", "another replica is at work", again=again)
                return reconcile(request) if request else GONE
            except ApiError as error:
                if error.status not in (404, 409):
                    raise
            # Its copy was stale, and the event of the newer one may be over.
            self.remember(key.resource, self.api.get(*key), late=True)
            return CONFLICT
        except Missing:
            self.records.pop(key, None)
            return GONE
        except Exception as error:
            return Outcome("leave", str(self.note(error)), failed=True)
        finally:
            _thread.hosts = None

    def handle(self, key: Key) -> Outcome:
        """Look at a key, and count and log what came of it."""
        request, (ready, held) = self.records.get(key), self.queue.working[key]
        outcome = self.look_at(key)
        seconds, kind = time.monotonic() - held, key.resource.kind
        controller = kind.lower()
        observed = [(("controller_runtime_reconcile_total", controller, "requeue" if outcome is CONFLICT else "error" if
                      outcome.failed else "requeue_after" if outcome.again else "success"), 1.0),
                    (("controller_runtime_reconcile_time_seconds", controller), seconds),
                    (("workqueue_queue_duration_seconds", controller, controller), held - ready)]
        if outcome.reason and outcome.body:
            observed.append((("velero_requests_refused_total", outcome.reason), 1.0))
        elif request and _at(outcome.body, "status", "phase") == PROCESSED:
            now, target = self.now(), request.target_kind if request.target_kind in TARGETS else ""
            helped = replica_for(request.uid, (self.name, *dict(self.others)))
            if abs(self.others.get(helped, now.timestamp()) - now.timestamp()) > REPLICA_PATIENCE:
                self.others.pop(helped, None)
            observed += [(("velero_requests_answered_total", kind, target), 1.0), (
                ("velero_requests_answer_seconds", kind), max(0.0, (now - (request.created or now)).total_seconds()))]
        self.count(*observed)
        self.log_outcome(key, request, outcome, seconds)
        return outcome

    def log_outcome(self, key: Key, request: Optional[Request], outcome: Outcome, seconds: float) -> None:
        """Log an outcome, a failure only when it is another than the last; a dry run prints it."""
        text = printable(redact(f"{key}: {outcome.verb}: {outcome.why}"))
        if self.dry_run and outcome is not GONE:
            print(text, flush=True)
            return
        level = logging.DEBUG if outcome.verb == "leave" else logging.INFO
        if outcome.failed:
            failures, logged = self.failures.get(key, (0, ""))
            why = logged if outcome.why == CONFLICT.why else outcome.why[:MESSAGE_LIMIT]
            level = logging.WARNING if why != logged else logging.DEBUG
            self.failures[key] = failures + 1, why
        elif outcome.why != BUSY:
            self.failures.pop(key, None)
        log.log(level, "%s", text, extra={"look": (key, request, outcome, seconds)})  # for JSON

    def work(self) -> None:
        """The next look is after a failure with back-off, but not beyond `again`; else then, or never."""
        for key in iter(self.queue.take, None):
            outcome = self.handle(key)
            instant = outcome.again.timestamp() if outcome.again else math.inf
            if outcome.failed:
                failures, _ = self.failures.get(key, (1, ""))  # none of one that a feeder has just seen deleted
                instant = min(instant, self.now().timestamp() + backoff(failures, RETRY_BASE, RETRY_CAP))
            self.queue.done(key, instant)

    def relist(self, resource: Resource) -> None:
        """List all requests of a kind: each gets a look, those that no longer exist are dropped."""
        found, version = set(), ""
        for page in self.api.list_pages(resource, self.namespace, limit=1 << 20):
            if not isinstance(_at(page, "items"), list):
                raise Unreachable(f"the cluster's answer is no list of {resource.plural}")
            version, self.progress[resource] = _text(page, "metadata", "resourceVersion"), time.monotonic()
            found.update(self.remember(resource, document)[0] for document in page["items"])
            del page  # before the next one is read
        for key in found.union(key for key in list(self.records) if key.resource == resource):
            if key not in found:
                self.records.pop(key, None)
            self.queue.add(key)
        self.versions[resource] = version
        self.listed.add(resource)

    def follow(self, resource: Resource) -> None:
        """Watch a kind until the watch ends, or its time is long over; one that falls silent is no progress."""
        response = self.api.open_watch(resource, self.namespace, self.versions[resource],
                                       seconds=random.uniform(*self.watch_seconds), silence=self.silence)
        self.streams[resource], heard = response, time.monotonic()
        if self.stop.is_set():
            response.interrupt()
        with time_limit(self.watch_seconds[1] + self.silence):
            for kind, document in watch_events(response):
                self.events[resource] += 1
                self.progress[resource] = heard = time.monotonic()
                if kind in ("ADDED", "MODIFIED"):
                    key, news = self.remember(resource, document)
                    self.note_replicas(replicas_in(document))
                    if news:
                        self.schedule(key)
                elif kind == "DELETED":
                    key = request_from(resource, document).key
                    self.records.pop(key, None)
                    self.failures.pop(key, None)
                    self.queue.add_at(key, math.inf)
                self.versions[resource] = _text(document, "metadata", "resourceVersion")
        if time.monotonic() - heard < self.silence:
            self.progress[resource] = time.monotonic()

    def feed(self, resource: Resource) -> None:
        """List once, then watch; list again when the API no longer has the version; never give up. A watch that ended
        before it had lived or brought something is a failure, followed by a back-off."""
        failures, logged = 0, ""
        while not self.stop.is_set():
            started, before, error = time.monotonic(), self.events[resource], None
            try:
                if resource not in self.versions:
                    self.relist(resource)
                self.follow(resource)
            except Exception as caught:
                error, self.progress[resource] = self.note(caught), time.monotonic()  # it knows, and tries again
                if isinstance(error, (Unreachable, Missing)) or is_version_expired(error):
                    self.versions.pop(resource, None)  # who knows what the API server is now
            lived = time.monotonic() - started
            failures = 0 if self.events[resource] > before or lived > SHORT_WATCH else failures + 1
            if failures == 1 and is_version_expired(error):
                continue  # nothing is wrong, only the version is too old
            cures = error.hints if error and error.status != 403 else ()
            trouble = "; ".join([str(error or "the watch ended at once"), *cures]) if failures else ""
            if trouble not in ("", logged) and not self.stop.is_set():
                log.warning("%s: %s; trying again", resource.plural, redact(trouble))
            logged = trouble
            self.stop.wait(watch_pause(failures, lived, not isinstance(error, Unreachable), random.uniform(1, 2)))

    def trouble(self, now: float) -> str:
        """Why a new process may help (now: time.monotonic): a feeder heard nothing, not even an error, for as long as a
        silent watch, the next one and a back-off last; or a worker holds a key for longer than is possible."""
        limit = self.silence + self.watch_seconds[1] + WATCH_CAP
        late = [f"nothing was heard of {resource.plural} for {format_duration(now - instant, 0)}"
                for resource, instant in self.progress.items() if now - instant > limit]
        late += [f"a worker has held one request for {format_duration(now - held, 0)}"
                 for _, held in list(self.queue.working.values()) if now - held > STUCK]
        return "; ".join(late)

    def metrics(self) -> str:
        with self.lock:
            series = {name: list(numbers) for name, numbers in self.series.items()}
        for resource in REQUEST_KINDS:
            name, now, records = resource.kind.lower(), self.now(), list(self.records.values())
            created = min([now, *(record.created or now for record in records if record.key.resource == resource
                                  and record.phase in UNANSWERED)])
            series["velero_requests_oldest_unanswered_seconds", resource.kind] = [(now - created).total_seconds()]
            series["workqueue_depth", name, name] = [sum(key.resource == resource for key in list(self.queue.ready))]
        return metrics_text(series)

    def page(self, paths: Sequence[str], target: str) -> Page:
        """/healthz, /readyz and /metrics, as far as they are among `paths`."""
        path = target.partition("?")[0]
        missing = " and ".join(resource.plural for resource in REQUEST_KINDS if resource not in self.listed)
        waiting = "stopping" if self.stop.is_set() else missing and f"waiting for the API server's list of {missing}"
        if path not in paths:
            return text_page(404, f"here are only {', '.join(paths)}")
        if path == "/metrics":
            return text_page(200, self.metrics())
        trouble = waiting if path == "/readyz" else self.trouble(time.monotonic())
        return text_page(503 if trouble else 200, trouble or waiting or "ok")

    def run_once(self) -> None:
        """Look once at every request that is there, again where another writer came in between."""
        for resource in REQUEST_KINDS:
            self.relist(resource)
        for key in iter(lambda: self.queue.take(wait=False), None):
            outcome = self.handle(key)
            self.queue.done(key)
            if outcome is CONFLICT and self.failures[key][0] < 5:
                self.queue.add(key)


def give_large_blocks_back() -> None:
    """Let glibc return memory of large objects at once; its threads would keep some MiB each."""
    import ctypes
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).mallopt(-3, 64 << 10)  # M_MMAP_THRESHOLD, which otherwise grows


def run_controller(controller: Controller) -> None:
    """Serve both kinds until `controller.stop` is set; a pass in hand is finished, if soon."""
    threads = [threading.Thread(target=controller.work, daemon=True) for _ in range(WORKERS)]
    threads += [threading.Thread(target=controller.feed, args=(resource,), daemon=True) for resource in REQUEST_KINDS]
    for thread in threads:
        thread.start()
    controller.stop.wait()
    deadline = time.monotonic() + controller.stop_time
    controller.queue.close()
    for response in list(controller.streams.values()):
        response.interrupt()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    controller.api.session.close()

# ================================================================================
# 15. Client — create, wait, stream, tidy up; or do without a controller

LIST_SIZE = 500  # objects a page of a client's list
JSON_LIMIT = 16 << 20  # bytes of a JSON artifact on a screen, of a velero-backup.json, or of a page of a listing
SCREEN_ELEMENTS = 200_000  # and its elements; each may become several lines
SHORT_TIMEOUT = 5.0  # seconds for a call that only tidies up or explains
AUTO_CONNECT_TIMEOUT = 3.0  # seconds for a connection to the store, when there is another way
MAX_POLL = 1.0  # seconds between two reads of a request, when it takes long


@contextlib.contextmanager
def adding_hints(cures: Callable[[Error], Iterable[str]]) -> Iterator[None]:
    """Give an error that passes further hints."""
    try:
        yield
    except Error as error:
        error.hints += tuple(cures(error))
        raise


def get_existing(api: Api, resource: Resource, namespace: str, name: str) -> Document:
    """An object that the user named; NotFound when it does not exist."""
    try:
        return api.get(resource, namespace, name)
    except Missing as error:
        if error.api_reason != "NotFound":  # the kind itself is not served
            raise
        raise NotFound(f"{resource.kind.lower()} \"{one_line(name, 64)}\" does not exist", hints=[
            f"looked in namespace {namespace}; -n chooses another"]) from None


def side_by_side(tasks: Iterable[Callable[[], Any]], seconds: float = math.inf) -> List[Any]:
    """Run a few tasks in threads -> what each returned or the Error that it raised, in their order. A task that takes
    longer than so many seconds, as a login or a name server may, is left to itself."""
    def work(number: int, task: Callable[[], Any]) -> None:
        try:
            with time_limit(seconds):
                results[number] = task()
        except Exception as error:  # whoever reads the results sees it
            log.debug("raised at:", exc_info=True)
            results[number] = error if isinstance(error, Error) else Error(
                f"unexpected {type(error).__name__}: {one_line(error)}")

    threads = [threading.Thread(target=work, args=row, daemon=True) for row in enumerate(tasks)]
    results, end = [None] * len(threads), time.monotonic() + seconds  # type: Tuple[List[Any], float]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(min(max(0.0, end - time.monotonic()), threading.TIMEOUT_MAX))
    return [Unreachable(f"there is no end of it within {format_duration(round(seconds, 1))}") if thread.is_alive() else
            result for thread, result in zip(threads, results)]


def list_all(api: Api, resource: Resource, namespace: str, selector: str = "") -> Tuple[List[Document], str]:
    """The objects that a selector chooses, in the API's order, and the version of the list."""
    try:
        pages = list(api.list_pages(resource, namespace, selector, LIST_SIZE))
    except ApiError as error:
        if error.status != 400 or not selector:
            raise
        raise UsageError(f"the cluster does not understand the selector {one_line(selector, 200)!r}: {error}") from None
    items = itertools.chain(*(found for found in (_at(page, "items") for page in pages) if isinstance(found, list)))
    return [item for item in items if isinstance(item, dict)], _text(pages[0], "metadata", "resourceVersion")


def find_documents(api: Api, resource: Resource, namespace: str, names: List[str], selector: str
                   ) -> Tuple[List[Document], str]:
    """Objects in the order named, else those that a selector chooses, and the version of the list."""
    if not names:
        return list_all(api, resource, namespace, selector)
    return [get_existing(api, resource, namespace, name) for name in names], ""


def unknown_kind(kind: str, why: str) -> Error:
    """The error for a kind of artifact that the cluster's CRD does not list."""
    return NotFound(f"the cluster does not know DownloadRequests of kind {kind}: {why}", reason="UnknownKind", hints=[
        "its CRDs are of a version of Velero with other kinds, which are named above; CRDs are not upgraded with the "
        "server: `velero install --crds-only --dry-run -o yaml | kubectl apply -f -` does it"])


@contextlib.contextmanager
def created(api: Api, resource: Resource, document: Document) -> Iterator[Document]:
    """Create a request for as long as the context lasts. It is deleted also on failure, on Ctrl-C, and when no answer
    to the create came, for its name is known before."""
    key, kind = request_from(resource, document).key, _text(document, "spec", "target", "kind")

    def delete() -> None:
        try:
            if api._replace(timeout=SHORT_TIMEOUT).delete(key):
                log.info("deleted %s", key)
        except Error as error:  # the controller will delete it
            log.info("%s stays until it expires: %s", key, error)

    with contextlib.ExitStack() as end:
        end.callback(delete)
        try:
            stored = api.create(resource, document)
        except ApiError as error:
            if error.status < 500:
                end.pop_all()  # it was refused, so there is nothing to delete
            if error.status != 422 or not kind:
                raise
            raise unknown_kind(kind, str(error)) from None
        if _text(stored, "metadata", "name") != key.name:
            raise Unreachable(f"the cluster answered the creation of {key} with something else")
        log.info("created %s", key)
        yield stored


def _copies(api: Api, key: Key, document: Document, seconds: float, poll: float) -> Iterator[Document]:
    """The copy in hand, then newer ones: from a watch, and by polling when that ends or fails."""
    yield document
    deleted = Error(f"{key} was deleted by somebody else before it was answered")
    left, deadline = max(0.1, seconds), time.monotonic() + seconds
    try:
        response = api.open_watch(key.resource, key.namespace, _text(document, "metadata", "resourceVersion"),
                                  seconds=left, name=key.name, silence=left)
        with time_limit(left), contextlib.closing(watch_events(response)) as events:
            for kind, copy in events:
                if _text(copy, "metadata", "name") != key.name:  # a bookmark, for instance
                    continue
                if kind == "DELETED":
                    raise deleted
                yield copy
    except (ApiError, Unreachable) as error:
        log.info("reading every %s instead of watching: %s", format_duration(poll), error)
    for attempt in itertools.count(1):
        left = deadline - time.monotonic()
        time.sleep(max(0.0, min(left, backoff(attempt, poll, MAX_POLL))))
        try:  # once more after the deadline: a watch may have been silent
            yield api.get(*key)
        except Missing:
            raise deleted from None
        except (ApiError, Unreachable) as error:
            if error.status not in (0, *RETRY_STATUS):
                raise
            log.info("%s", error)
        if left <= 0:
            return


def wait_for(api: Api, key: Key, document: Document, what: str, answer: Callable[[Document], Any], seconds: float,
             poll: float) -> Any:
    """What `answer` finds in an object at last; TimedOut after so many seconds. what: shown meanwhile. poll: seconds
    between the first two looks, where it may not be watched."""
    with api.waiting(what, seconds), contextlib.closing(_copies(api, key, document, seconds, poll)) as copies:
        for found in filter(None, map(answer, copies)):
            return found
    raise TimedOut(f"nobody answered {key} within {format_duration(seconds)}")


def answered_url(api: Api, stored: Document, timeout: float) -> str:
    """The URL that answers a DownloadRequest; a reason that a controller left ends the waiting."""
    request = request_from(DOWNLOAD_REQUESTS, stored)
    what = f"{request.target_kind} of {request.target_name}"

    def answer(document: Document) -> str:
        now = request_from(DOWNLOAD_REQUESTS, document)
        if not now.url and now.reason:
            why = one_line(redact(now.message or now.reason))
            cures = [cure for reason, cure in REFUSALS.values() if reason == now.reason]
            raise RequestFailed(f"{what}: {why}", reason=one_line(now.reason, 64), hints=cures[:1],
                                status=404 if now.reason.endswith("NotFound") else 0)
        return now.url  # whatever the phase: the velero CLI's own test

    url = wait_for(api, request.key, stored, f"the URL of {what}", answer, timeout, URL_POLL)
    log.info("%s is answered; the store is %s", request.key, one_line(redact("/".join(url.split("/", 3)[:3]))))
    return str(url)


def read_location(api: Api, namespace: str, artifact: Artifact, name: str) -> Document:
    """The storage location of an artifact: a restore's is that of the backup it came from."""
    owner = get_existing(api, artifact.owner, namespace, name)
    if artifact.owner == RESTORES:
        owner = get_existing(api, BACKUPS, namespace, _name(owner, "spec", "backupName"))
    return api.get_referenced(LOCATIONS, namespace, _name(owner, "spec", "storageLocation"),
                              f"{artifact.owner.kind.lower()} {name!r}")


def find_trust(api: Api, namespace: str, artifact: Artifact, name: str) -> Trust:
    """Whom to trust for a store: the location's caCert, as the velero CLI since 1.17, else the system."""
    try:
        location = location_from(read_location(api, namespace, artifact, name))
        return trust_in(with_authority(api, namespace, location))._replace(insecure=False)
    except Error as error:
        log.info("the storage location's caCert is not used: %s", error)
        return Trust()


def proxy_refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Error:
    """Why a controller did not hand on an artifact, from its JSON."""
    document = None
    with contextlib.suppress(ValueError):
        document = parse_json(body)
    said, reason = _text(document, "message") or f"it answered {status}", one_line(_text(document, "reason"), 64)
    message = f"the controller in the cluster hands on nothing: {one_line(redact(said), MESSAGE_LIMIT)}"
    if status == 502:
        return Unreachable(message, reason=reason)
    error = StoreError(message, status=status, reason=reason)
    error.retry_after = retry_after_seconds(headers.get("Retry-After", ""), utc_now())
    if reason in EXPIRED:
        error.exit = Exit.FAILED  # that is no lack of rights
    return error


class Way:
    """How the artifacts of a command come: via the store or the cluster, or auto until one of them has worked; by which
    services, until one has; none: why there is no way through the cluster."""

    def __init__(self, via: str) -> None:
        self.via, self.services, self.none = via, ARTIFACTS_SERVICES, ""


class AnsweredSource(UrlSource):
    """An artifact by the answer to a request: from the store, or through the cluster, where a controller signs for
    itself."""

    def __init__(self, api: Api, namespace: str, way: Way, locate: Callable[[timedelta], Located],
                 idle: float = IDLE_LIMIT) -> None:
        self.api, self.namespace, self.way = api, namespace, way
        super().__init__(locate, idle)

    @contextlib.contextmanager
    def _open_proxied(self, start: int, etag: str) -> Iterator[OpenObject]:
        """The object through the API server's proxy, else an error of a controller, or an ApiError when there is none.
        It must be asked for `identity`, as http.client does: of gzip the API server would lose the length. Who may not
        read the Service tries both names that its port may have; the first refusal counts."""
        failed, headers = None, {PROOF: proof_of(self.url), **range_headers(start, etag)}  # type: Any, Dict[str, str]
        for service in self.way.services:
            path = f"/api/v1/namespaces/{self.namespace}/services/{service}/proxy/artifacts/{self.request}"
            try:
                response = self.api.send("GET", path, headers=headers, idle=self.idle)
                break
            except ApiError as error:
                failed = failed or error
        else:
            raise failed
        with contextlib.closing(response):
            if MARKER not in response.headers:
                raise ApiError(f"behind {service} is no controller that hands on artifacts", status=502)
            self.way.services = service,
            if response.status not in ((200, 206) if start else (200,)):
                raise proxy_refusal(response.status, response.refusal(), response.headers)
            yield object_in(response, self.idle)

    def _open_other_way(self, failed: Unreachable, start: int, etag: str, stack: contextlib.ExitStack) -> OpenObject:
        """Open it through the cluster because the store was not reached, else raise that, with why not."""
        way = self.way
        try:
            if not way.none:
                opened, way.via = stack.enter_context(self._open_proxied(start, etag)), "cluster"
                log.info("%s; going through the cluster", failed)
                return opened
        except ApiError as error:
            way.none = "; ".join([str(error), *error.hints])
        except Unreachable as error:
            failed.args, failed.hints = (f"{failed}; through the cluster: {error}",), failed.hints + error.hints
        except StoreError as error:  # so there is a controller
            way.via = "cluster"
            error.hints += (f"through the cluster, because {failed}",)
            raise
        failed.hints += (f"there is no way through the cluster: {way.none}",) if way.none else ()
        raise failed from failed.__cause__

    @contextlib.contextmanager
    def open(self, start: int, etag: str) -> Iterator[OpenObject]:
        with contextlib.ExitStack() as stack:
            try:
                if self.way.via == "cluster":
                    opened = stack.enter_context(self._open_proxied(start, etag))
                else:
                    self.connect_timeout = AUTO_CONNECT_TIMEOUT if self.way.via == "auto" else CONNECT_TIMEOUT
                    opened = stack.enter_context(super().open(start, etag))
                    self.way.via = "store"
            except Unreachable as error:
                if self.way.via != "auto":
                    raise
                opened = self._open_other_way(error, start, etag, stack)
            except ApiError as error:
                if error.status not in RETRY_STATUS:
                    raise
                raise Unreachable(str(error), hints=error.hints) from error  # may pass, as any break
            yield opened


@contextlib.contextmanager
def requested_source(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0,
                     trust: Optional[Trust] = None, idle: float = IDLE_LIMIT, via: str = "auto"
                     ) -> Iterator[AnsweredSource]:
    """An artifact by a DownloadRequest, and another one when its URL has expired; arguments as `read_artifact`."""
    artifact = target_of(kind, name)
    with contextlib.ExitStack() as requests:
        def locate(_skew: timedelta) -> Located:
            requests.close()
            document = new_download_request(namespace, kind, name, os.urandom(4).hex())
            url = answered_url(api, requests.enter_context(created(api, DOWNLOAD_REQUESTS, document)), timeout)
            asks = url.startswith("https:") and way.via != "cluster"
            return (url, trust or (find_trust(api, namespace, artifact, name) if asks else Trust()),
                    document["metadata"]["name"])

        way = Way(via)
        yield AnsweredSource(api, namespace, way, locate, idle)


def get_download_url(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0) -> str:
    """A URL that anybody may GET for about ten minutes: a bearer token. Raises as `read_artifact`."""
    with requested_source(api, namespace, kind, name, timeout=timeout, trust=Trust()) as source:
        return source.url


def read_artifact(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0,
                  trust: Optional[Trust] = None, idle: float = IDLE_LIMIT, via: str = "auto") -> Iterator[bytes]:
    """The content of an artifact in chunks: BackupContents as stored and proven whole gzip, all others inflated. Where
    the line breaks, it goes on at the same byte. timeout: seconds to wait for the URL; idle: between two chunks, while
    all may take as long as it does. trust: None asks the location. via: store, cluster (a controller there, through the
    API server), or auto. Close the generator (`contextlib.closing`) to tidy up early. Raises RequestFailed for a target
    that cannot exist or with the controller's reason, TimedOut, ApiError, StoreError or Unreachable."""
    with requested_source(api, namespace, kind, name, timeout=timeout, trust=trust, idle=idle, via=via) as source:
        yield from Download(source, f"{kind} of {name}", gunzip=TARGETS[kind].gunzip).chunks()


def stream(api: Api, namespace: str, kind: str, name: str, writer: BinaryIO, **how: Any) -> None:
    """`read_artifact` into a writer, which stays open and whose errors come out as they are."""
    with requested_source(api, namespace, kind, name, **how) as source:
        Download(source, f"{kind} of {name}", gunzip=TARGETS[kind].gunzip).write_to(writer)


SMALL_TIME = 120.0  # seconds for what a screen is made of; 16 MiB at 1.1 Mbit/s
LISTING_PAGES = 1000  # of 1,000 names each
BACKUPS_LIMIT = 256 << 20  # bytes of all velero-backup.json; in memory an element is some more
ELEMENT_WEIGHT = 32  # bytes


def collected(chunks: Iterable[bytes], more: str = "", hints: Iterable[str] = ()) -> bytearray:
    """All chunks in one; StoreError when they are more than JSON_LIMIT."""
    found = bytearray()
    for chunk in chunks:
        found += chunk
        if len(found) > JSON_LIMIT:
            raise StoreError(f"it is larger than {JSON_LIMIT >> 20} MiB{more}", hints=hints)
    return found


class Bucket:
    """A location's bucket, read without a controller; keys include the location's prefix."""

    def __init__(self, location: Location, plan: Plan, trust: Trust, idle: float = IDLE_LIMIT):
        self.location, self.trust, self.idle = location, trust, idle
        self.prefix, self.cache = location.prefix, CredentialCache(plan, location.region)

    def source(self, key: str, query: Tuple[Tuple[str, str], ...] = ()) -> Source:
        """An object, or with a query a listing."""
        def locate(skew: timedelta) -> Located:
            now = utc_now()
            return sign(self.location, key, self.cache.get(now), now, skew, query)[0], self.trust, ""
        return UrlSource(locate, self.idle)

    def read_small(self, key: str, what: str, query: Tuple[Tuple[str, str], ...] = ()) -> bytes:
        """The whole of an object, in bounded time; StoreError when it is not small."""
        with about(what), time_limit(SMALL_TIME):
            return bytes(collected(Download(self.source(key, query), what, gunzip=False).received()))

    def folders(self, key: str) -> List[str]:
        """The names directly under a key that ends in a slash."""
        names: List[str] = []
        query = {"list-type": "2", "delimiter": "/", "prefix": key}
        what = f"the listing of bucket {self.location.bucket!r}"
        for _ in range(LISTING_PAGES):
            page = self.read_small("", what, tuple(query.items()))
            if b"<ListBucketResult" not in page or b"</ListBucketResult>" not in page:
                raise StoreError(f"{what} is not one but {_what_is(page[:512])}")
            found, token = listed_prefixes(page)
            names += [name[len(key):].rstrip("/") for name in found if name.startswith(key)]
            if not token:
                return names
            if token == query.get("continuation-token") or len(names) > LISTING_PAGES * 1000:
                break
            query["continuation-token"] = token
        raise StoreError(f"{what} has no end")

    def backups(self, where: str, wanted: Iterable[str], troubles: List[Error], left: int = BACKUPS_LIMIT
                ) -> Iterator[Document]:
        """The Backups in it, all or those wanted, named as their folders. where: the bucket in errors. troubles: gets
        why some cannot be read. left: the bytes that may be read."""
        folder = object_key(self.prefix, Artifact("", BACKUPS, "backups/"), "")
        rows = [(name, f"backup {one_line(name, 64)!r} in {where}") for name in self.folders(folder)
                if is_object_name(name) and (not wanted or name in wanted)]
        tasks = [functools.partial(self.read_small, f"{folder}{name}/velero-backup.json", what) for name, what in rows]
        contents = (content for start in range(0, len(tasks), POOL_SIZE)  # some at a time, to save memory
                    for content in side_by_side(tasks[start:start + POOL_SIZE]))
        for (name, what), content in zip(rows, contents):
            if isinstance(content, bytes):
                left -= len(content) + ELEMENT_WEIGHT * sum(map(content.count, (b",", b"[", b"{")))
                if left < 0:
                    troubles.append(StoreError(f"the backups in {where} are too large to be listed, from {what} on"))
                    return
                with contextlib.suppress(ValueError):  # it is something else
                    document = parse_json(content)
                    if isinstance(_at(document, "metadata"), dict):
                        yield {**document, "metadata": {**document["metadata"], "name": name}}
            elif content.exit == Exit.NOT_FOUND:
                log.info("%s is passed over: %s", what, content)
            elif isinstance(content, StoreError):
                troubles.append(content)
            else:  # who cannot be reached is not asked again
                raise content


class FolderBucket(Bucket):
    """A folder that holds a copied bucket: `backups` and `restores` are in it."""

    def __init__(self, path: str):  # pylint: disable=super-init-not-called
        self.path, self.prefix = path, ""
        self.hints = [] if os.path.isdir(os.path.join(path, "backups")) else [
            "name the folder that holds the folder backups"]

    def source(self, key: str, *_: Any) -> Source:
        return FileSource(os.path.join(self.path, key), self.hints)

    def folders(self, key: str) -> List[str]:
        folder = os.path.join(self.path, key)
        with reading(folder, self.hints):
            return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def location_of_file(path: str) -> Location:
    """A storage location from a file of YAML or JSON: the whole object, or its spec alone."""
    what = f"storage location file {path}"
    document = Reader(parse_yaml(read_file(path, "storage location file", SMALL_FILE_LIMIT), what), what).fields
    kind = _text(document, "kind") or LOCATIONS.kind
    if kind != LOCATIONS.kind:
        raise ConfigError(f"{what} is of kind {one_line(kind, 64)!r}, not a BackupStorageLocation or the spec of one",
                          hints=["`kubectl -n velero get backupstoragelocation NAME -o yaml` prints one"])
    spec = Reader(document.get("spec", document), f"{what}: spec")
    spec.get("provider")
    for group, fields in (("objectStorage", "bucket prefix caCert"), ("credential", "name key"), ("config", "")):
        entry = Reader(spec.get(group, dict), f"{what}: spec.{group}")
        for field in fields.split() or entry.fields:
            entry.get(field)  # an unquoted `true` or number would be passed over
    name = _text(document, "metadata", "name") or os.path.basename(path)
    return find_location(None, "", {"metadata": {"name": name}, "spec": spec.fields}, trusted=True)


def damage_cures(download: Download, kind: str, name: str, error: Error) -> List[str]:
    """What to do about an artifact that came and is damaged."""
    if not download.info or error.status or error.hints or error.reason != "StoreError":
        return []
    if isinstance(download.source, FileSource):
        return [f"copy {download.source.path} from the bucket again"]
    return [f"fetch it again; if it is damaged then, the stored object is, and `curl -o FILE \"$({PROGRAM} download "
            f"{name} --kind {kind} --url-only)\"`, with the flags of this command, gets it as it is"]


def decode_json(chunks: Iterable[bytes]) -> Any:
    """The JSON in an artifact; StoreError for what is none, or too large for the memory."""
    hints = [f"`{PROGRAM} download NAME --kind KIND -o FILE` fetches it into a file"]
    found = collected(chunks, ", too large to be shown", hints)
    try:
        return parse_json(found, SCREEN_ELEMENTS)
    except TooLarge as error:
        raise StoreError(f"it {error}, too large to be shown", hints=hints) from None
    except ValueError:
        raise StoreError(f"it is not JSON but {_what_is(bytes(found[:512]))}") from None


def read_screen(api: Api, namespace: str, resource: Resource, document: Document, kinds: List[str], timeout: float,
                trust: Optional[Trust], way: Way) -> Dict[Any, Any]:
    """What a screen shows besides an object: related objects, and artifacts by kind, or the Error why not. This thread
    alone makes and deletes the requests, so Ctrl-C leaves none; that ends threads that still wait for an answer."""
    name, artifact = _text(document, "metadata", "name"), next(row for row in TARGETS.values() if row.owner == resource)
    asking = threading.Lock()  # or all threads would ask for the location's authority at once
    location_trust = functools.lru_cache(maxsize=1)(functools.partial(find_trust, api, namespace, artifact, name))

    def related(resource: Resource, selector: str) -> List[Document]:
        with contextlib.suppress(Missing):  # the kind is not served
            return list_all(api, resource, namespace, selector)[0]
        return []

    def fetch(kind: str, stored: Document) -> Any:
        url = answered_url(api, stored, timeout)
        with asking:
            whom = trust or (location_trust() if url.startswith("https:") and way.via != "cluster" else Trust())
        located = url, whom, _text(stored, "metadata", "name")
        source = AnsweredSource(api, namespace, way, lambda _skew: located)
        download = Download(source, f"{kind} of {name}", gunzip=True)
        with about(download.what), time_limit(SMALL_TIME), contextlib.closing(download.chunks()) as chunks:
            return decode_json(chunks)

    def read(kinds: List[str], tasks: Dict[Any, Callable[[], Any]]) -> Dict[Any, Any]:
        found: Dict[Any, Any] = {}
        with contextlib.ExitStack() as requests:
            for kind in kinds:
                wanted = new_download_request(namespace, kind, name, os.urandom(4).hex())
                try:
                    tasks[kind] = functools.partial(
                        fetch, kind, requests.enter_context(created(api, DOWNLOAD_REQUESTS, wanted)))
                except Error as error:
                    found[kind] = error
            return {**found, **dict(zip(tasks, side_by_side(tasks.values())))}

    found = read(kinds, {row[0]: functools.partial(related, *row) for row in related_of(resource, document)})
    if is_missing(found.get("BackupVolumeInfos")):
        found.update(read(legacy_artifacts_of(document), {}))
    return found


def get_server_status(api: Api, namespace: str, *, timeout: float = 5.0) -> Document:
    """The answered ServerStatusRequest: status.serverVersion and status.plugins. Raises TimedOut or ApiError."""
    with created(api, STATUS_REQUESTS, new_status_request(namespace, os.urandom(4).hex())) as stored:
        return wait_for(api, request_from(STATUS_REQUESTS, stored).key, stored, "the server's status", lambda copy: (
            copy if _text(copy, "status", "phase") == PROCESSED else None), timeout, STATUS_POLL)


MOST_PODS = 8  # that are read, the newest: evicted ones may lie about by the hundred
FOLLOW_TIME = 3.0  # seconds that the log of a pod is followed between two looks at the phase and at the pods
LOG_LINE_LIMIT = 16 << 20  # bytes


def _in_time(found: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    """The first of them whenever it comes, what follows within so many seconds, and as many as it took to get there: a
    second may hold much that is read anew. Whoever takes them is not hurried."""
    began = time.monotonic()
    yield from itertools.islice(found, 1)
    with time_limit(seconds + time.monotonic() - began):
        for line in found:
            with pause_time_limit():
                yield line


def read_pod_log(api: Api, pod: Document, owner: Key, position: LogPosition, seconds: float) -> Iterator[bytes]:
    """What a pod logs about a backup or restore behind a position: for so many seconds, or, with none, what is there.
    A log that ends, breaks or cannot be read just now is read on the next time."""
    name, containers = _text(pod, "metadata", "name"), Fields(pod, "", {}).rows("spec.containers")
    query = {"follow": "true" * bool(seconds), "timestamps": "true", "sinceTime": format_time(position.time),
             "container": "velero" * any(row("name") == "velero" for row in containers)}
    path = object_path(Key(PODS, owner.namespace, name), "log")
    try:
        with contextlib.closing(api.send("GET", path, query=query, idle=seconds)) as response:
            for line in _in_time(position.fresh(lines(response, LOG_LINE_LIMIT, cut=True)), seconds or SMALL_TIME):
                if is_about(owner, line):
                    yield line + b"\n"
    except (ApiError, Unreachable, OSError) as error:  # mostly silence: a kubelet answers with the first line only
        if getattr(error, "status", 0) in (401, 403):
            raise
        if isinstance(error, ApiError):
            api.warn_once(f"the log of pod {name}: {error}")


def follow_pod_logs(api: Api, owner: Key, selector: str, since: datetime) -> Iterator[bytes]:
    """What Velero's pods log about a backup or restore, until its phase is final; Error when that is not Completed. The
    pods take turns, for there is one, or two while it is replaced: so nobody has to end another's stream."""
    positions: Dict[str, LogPosition] = {}  # by pod
    phase, rounds, due = "", 0, 0.0
    while rounds < 2:  # after the end; the second one brings what came late, or was cut off
        time.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + 1.0  # so long a round takes at least
        try:
            phase = phase or final_phase(get_existing(api, *owner))
            pods = find_documents(api, PODS, owner.namespace, [], selector)[0]
        except (ApiError, Unreachable) as error:
            if error.status not in (0, *RETRY_STATUS):
                raise
            api.warn_once(f"{error}; trying again")
            continue
        if not pods and not positions:
            raise NotFound(f"no pod in namespace {owner.namespace} has the labels {one_line(selector, 200)}", hints=[
                "is Velero running there? --selector finds its pods by other labels"])
        for pod in sorted(pods, key=lambda pod: _text(pod, "metadata", "creationTimestamp"))[-MOST_PODS:]:
            position = positions.setdefault(_text(pod, "metadata", "name"), LogPosition(since))
            yield from read_pod_log(api, pod, owner, position, 0 if phase else FOLLOW_TIME)
        rounds += bool(phase)
    if phase != "Completed":
        raise Error(f"{owner} ended in phase {phase}")

# ================================================================================
# 16. Doctor — checks, each one finding with its cure: why nobody answered, which hop to the bytes is broken

HOP_TIME, ANSWER_TIME, TIDY_TIME = 5.0, 10.0, 3.0  # seconds: of a hop; for a URL; kept to delete a request
RIGHTS = {DOWNLOAD_REQUESTS: "create get watch delete", STATUS_REQUESTS: "create get watch delete",
          BACKUPS: "get list", RESTORES: "get list", LOCATIONS: "get list", DEPLOYMENTS: "get"}  # what commands use
CLOCK_CURE = "set the clock that is wrong, by NTP"
KIND_ENUM = "schema.openAPIV3Schema.properties.spec.properties.target.properties.kind.enum"


def check_server(api: Api, namespace: str) -> str:
    """The Deployments of Velero and of this controller; Error when there is none, or none has a ready pod."""
    said, ready = [], 0
    for name in ("velero", NAME):
        with contextlib.suppress(Missing):
            deployment = Fields(api.get(DEPLOYMENTS, namespace, name), "", {})
            images = [row("image") for row in deployment.rows("spec.template.spec.containers")]
            ready += deployment("status.readyReplicas", int)
            said.append(f"Deployment {name} of {', '.join(images[:1])} has {ready or 'no'} ready pods")
    if not said:
        raise NotFound(f"there is no Deployment velero in namespace {namespace}", hints=[
            f"is Velero in another namespace (-n)? or start `{PROGRAM} controller`"])
    if not ready:
        raise Error(f"the Deployment {namespace}/velero has no ready pod", hints=[
            f"see `kubectl -n {namespace} get pods` and `kubectl -n {namespace} logs deployment/velero`"])
    return ", ".join(said)


def check_location(api: Api, namespace: str, document: Document) -> str:
    """What a storage location comes to; Error when that cannot be, or its Secret is gone, of which no content is read.
    Last, because it may follow from these: when Velero says that it is not available (reason Unavailable)."""
    secret, trouble = _name(document, "spec", "credential", "name"), location_trouble_from(document)
    named = f"storage location {_name(document, 'metadata', 'name')!r}"
    try:
        location = location_from(document)
        where = bucket_address(location._replace(region=location.region or "us-east-1"))
        style = "virtual-hosted" if where.host.startswith(location.bucket + ".") else "path"
        text = (f"bucket {location.bucket} at {where.scheme}://{where.host}{where.path} in {style} style, region "
                f"{location.region or 'not named'}")
    except ConfigError as error:
        if error.reason != "UnsupportedProvider":  # for which Velero may answer
            raise
        text = str(error)
    try:
        if secret:
            api.get_referenced(SECRETS, namespace, secret, named, headers=NO_CONTENT)
    except ApiError as error:
        secret += f", which cannot be seen ({error.status})"
    if trouble:
        raise Error(f"{named} is not available: {trouble}", reason="Unavailable", hints=[
            f"see `kubectl -n {namespace} describe backupstoragelocation`"])
    return f"{text}, keys in {secret or 'no Secret of its own'}"


def timeout_hints(api: Api, namespace: str, kind: str = "", name: str = "") -> List[str]:
    """Why a request got no answer, as far as one's rights let it be seen; at least one sentence."""
    api, found, blind = api._replace(timeout=SHORT_TIMEOUT), [], False
    direct = ["--direct needs no controller: it reads location and Secret with your own rights"] * bool(kind)
    for check in (lambda: check_server(api, namespace), lambda: kind and check_location(
            api, namespace, read_location(api, namespace, TARGETS[kind], name))):
        try:
            check()
        except Unreachable as error:
            return [f"{error}: try again when the cluster is less busy", *direct]
        except ApiError as error:
            log.info("a check could not be made: %s", error)
            blind = True
        except Error as error:
            found.append(": ".join((str(error), *error.hints)))
    usual = ("the reason cannot be seen with your rights: -v says what could not be looked at" if blind else
             "the server is there but did not take up the request: see its log "
             f"(`kubectl -n {namespace} logs deployment/velero`) or wait longer with --timeout")
    return [*(found or [usual]), *direct]


def explaining_timeouts(api: Api, namespace: str, *artifact: str) -> ContextManager[None]:
    """Give the error that nobody has answered its `timeout_hints`. artifact: kind and name, if one was asked for."""
    return adding_hints(lambda error: timeout_hints(api, namespace, *artifact) if isinstance(error, TimedOut) else ())


def version_of_program(verbose: int) -> str:
    """What --version prints: this file's version; verbose: also those of Python, OpenSSL and the packages, and where
    these are from."""
    text = f"{PROGRAM} {__version__}\n"
    if verbose:
        import ssl
        import urllib3
        import yaml
        text += (f"Python {sys.version.split()[0]}: {sys.executable}\n{ssl.OPENSSL_VERSION}\n"
                 f"urllib3 {urllib3.__version__}: {os.path.dirname(urllib3.__file__)}\n"
                 f"PyYAML {yaml.__version__}: {os.path.dirname(yaml.__file__)}\n")
    return text


class Hop(NamedTuple):
    """A hop between this host and the bytes, or one of the ways to them."""
    hop: str
    state: str  # ok, note, broken or skipped
    seconds: float
    text: str
    cure: str = ""

    def line(self, colorized: bool) -> str:
        color = {"ok": GREEN, "note": BOLD, "broken": RED}.get(self.state, "{}") if colorized else "{}"
        state = color.format(self.state) + " " * (8 - len(self.state))
        cure = f"{'':29}cure: {self.cure}\n" if self.cure else ""
        return f"{self.hop:<13}{state}{self.seconds:6.3f}  {self.text}\n{cure}"


Finding = Tuple[str, str]  # what a check says, and a cure, which makes it a note; what is broken raises


class NothingToCheck(Error):
    """A hop is skipped, for this reason."""


class Doctor:
    """Walks from this host to the bytes of an artifact. A check raises what a command would."""

    def __init__(self, options: Any) -> None:
        """options: the command line's `Options`."""
        self.options, self.trust, self.end = options, options.trust(), time.monotonic() + options.timeout
        self.namespace, self.artifact, self.name = options.namespace, TARGETS[options.kind], options.name or ""
        self.passed = {""}  # the hops whose followers are looked at
        self.errors: List[Error] = []  # of what is broken
        self.api = self.location = self.source = None  # type: Any  # what the checks find

    def hops(self) -> Iterator[Hop]:
        """All hops. What makes requests has no thread of its own (0), so that Ctrl-C leaves none."""
        edit = f"correct it: `kubectl -n {self.namespace} edit backupstoragelocation`"
        for hop, needs, seconds, check, cure in (
                ("program", "", HOP_TIME, self.describe_program, "use another Python"),
                ("kubeconfig", "", 2 * HOP_TIME, self.read_kubeconfig, "correct it, or name another (--kubeconfig)"),
                ("API server", "kubeconfig", HOP_TIME, self.ask_version, "is the server in the kubeconfig right?"),
                ("rights", "API server", HOP_TIME, self.review_rights, "see the API server's log"),
                ("CRDs", "rights", HOP_TIME, self.read_crds, "see the API server's log"),
                ("server", "CRDs", 0, self.ask_status, f"see `kubectl -n {self.namespace} logs deployment/velero`"),
                ("backup", "CRDs", HOP_TIME, self.find_owner, "name another one"),
                ("location", "backup", HOP_TIME, self.find_location, edit),
                ("request", "location", 0, self.ask_url, "mend what it names"),
                ("store", "request", HOP_TIME, self.ask_store, edit),
                ("object", "store", HOP_TIME, lambda: self.look_at(self.source), "see the store's log")):
            yield self._do(hop, needs, seconds, check, cure)

    def ways(self) -> Iterator[Hop]:
        """The ways to the bytes, after the hops."""
        sound = "object" in self.passed
        yield Hop("way: store", "ok" if sound else "broken" if self.errors else "skipped", 0.0,
                  "by the URL of a request" if sound else "see above")
        yield self._do("way: direct", "", HOP_TIME, self.go_direct)
        yield self._do("way: cluster", "request", 0, self.go_through_cluster)

    def _do(self, hop: str, needs: str, seconds: float, check: Callable[[], Finding], cure: str = "") -> Hop:
        """One hop in bounded time. cure: where an error has none."""
        began, left = time.monotonic(), self.end - time.monotonic()
        try:
            if needs not in self.passed:
                raise NothingToCheck(f"it needs: {needs}")
            if left <= 0:
                self.errors.append(TimedOut(f"there was no time left for: {hop}", hints=["give it more by --timeout"]))
                raise NothingToCheck("no time was left")
            with time_limit(left):
                result = side_by_side([check], min(seconds, left))[0] if seconds else check()
            if isinstance(result, Error):
                raise result
            text, cure = result
            state = "note" if cure else "ok"
        except NothingToCheck as why:
            state, text, cure = "skipped", str(why), ""
        except Error as error:
            unseen = error.status == 403 and hop in ("CRDs", "server", "location", "backup" if self.name else "")
            error.hints = error.hints or (cure,)
            state, text, cure = "note" if unseen else "broken", str(error), "; ".join(error.hints)
            if not unseen:
                error.args = (f"{hop}: {error}",)  # for it is also said alone
                self.errors.append(error)
            if error.reason == "Unavailable":  # what follows may show why
                self.passed.add(hop)
        if state in ("ok", "note"):
            self.passed.add(hop)
        text, cure = (one_line(redact(part), 2000) for part in (text, cure))
        return Hop(hop, state, round(time.monotonic() - began, 3), text, cure)

    def describe_program(self) -> Finding:
        import ssl
        found = " and ".join(filter(None, ssl.get_default_verify_paths()[:2]))
        return (f"{', '.join(version_of_program(True).splitlines())}; authorities: {found or 'none'}",
                "" if found or self.trust else "for https name a file with authorities: SSL_CERT_FILE or --cacert")

    def read_kubeconfig(self) -> Finding:
        path, context = self.options.kubeconfig, self.options.context
        files, cluster = read_kubeconfigs(path), load_cluster(path, context)
        self.api = connect(cluster)._replace(timeout=HOP_TIME)
        self.api.session.renew()  # which runs an exec plugin
        context = context or next(filter(None, (_text(row, "current-context") for _, row in files)), "")
        where = f"{', '.join(path for path, _ in files)}, context {context}" if context else "a pod's own account"
        who = [field.replace("_", " ") for field in ("exec_plugin", "token", "token_file", "username", "certificate")
               if getattr(cluster, field)] + [f"as {name}" for _, name in cluster.impersonate[:1]]
        return f"{where}: server {cluster.server}, logged in by {', '.join(who) or 'nothing'}", ""

    def ask_version(self) -> Finding:
        try:
            with contextlib.closing(self.api.send("GET", "/version")) as response:
                skew, peer = clock_skew(response.headers, utc_now(), timedelta.max), response.peer()
                version = _text(parse_json(response.read(ERROR_LIMIT)), "gitVersion") or "no version"
        except ApiError as error:
            if error.status not in (401, 403):
                raise
            return f"it answers, and tells {error.status} instead of its version", ""  # so `rights` is broken
        except (OSError, ValueError):
            raise Unreachable(f"what answers at {self.api.session.cluster.server} is no Kubernetes API") from None
        clock = skew_text("its", skew)
        return f"{version} at {peer}{clock and '; '}{clock}", clock and CLOCK_CURE

    def review_rights(self) -> Finding:
        group, rights = "authorization.k8s.io/v1", {**RIGHTS, **({SECRETS: "get"} if self.options.direct else {})}
        rows = [(resource, verb) for resource, verbs in rights.items() for verb in verbs.split()]
        tasks = [functools.partial(self.api.call, "POST", f"/apis/{group}/selfsubjectaccessreviews", body={
            "apiVersion": group, "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": {
                "namespace": self.namespace, "verb": verb, "group": resource.group, "resource": resource.plural}}})
                 for resource, verb in rows]
        answers = [answer for start in range(0, len(tasks), POOL_SIZE)  # some at a time, to spare the API server
                   for answer in side_by_side(tasks[start:start + POOL_SIZE], HOP_TIME)]
        missing: Dict[Resource, List[str]] = {}
        for (resource, verb), answer in zip(rows, answers):
            if isinstance(answer, Error) and answer.status not in (403, 404):
                raise answer
            if _at(answer, "status", "allowed") is False:
                missing.setdefault(resource, []).append(verb)
        words = ", ".join(f"{' '.join(verbs)} {resource.plural}" for resource, verbs in missing.items())
        lines = "; ".join(rule_line(resource.group, resource.plural, *verbs) for resource, verbs in missing.items())
        return (f"missing: {words}" if words else "all that commands here use, in as far as they can be asked for",
                lines and f"a Role in namespace {self.namespace} grants them with: {lines}")

    def read_crds(self) -> Finding:
        """Which kinds are served, in which dialect, and which artifacts they do not know."""
        served, known, kind = set(), [], self.artifact.kind  # type: Tuple[Set[str], List[str], str]
        with contextlib.suppress(Missing):
            rows = Fields(self.api.call("GET", "/apis/velero.io/v1"), "", {}).rows("resources")
            served = {row("name") for row in rows}
        for resource in (DOWNLOAD_REQUESTS, STATUS_REQUESTS, self.artifact.owner, BACKUPS, LOCATIONS):
            if resource.plural not in served:
                raise api_error(404, b"404 page not found", "GET", api_path(resource, self.namespace))
        with contextlib.suppress(ApiError):
            crd = self.api.call("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
                                f"{DOWNLOAD_REQUESTS.plural}.{DOWNLOAD_REQUESTS.group}")
            known = [row for version in Fields(crd, "", {}).rows("spec.versions") for row in version(KIND_ENUM, [str])]
        if known and kind not in known:
            raise unknown_kind(kind, f"known are {', '.join(known)}")
        status = f"{DOWNLOAD_REQUESTS.plural}/status" in served
        unknown = [kind for kind, row in TARGETS.items() if row.releases and known and kind not in known]
        return (f"served as by Velero {'1.6 to 1.8, with' if status else '1.9 and newer, without'} status subresource; "
                f"artifacts they do not know: {', '.join(unknown) or 'none' if known else 'cannot be seen'}"), ""

    def timeout(self, seconds: float) -> float:
        return max(0.1, min(seconds, time_left() - TIDY_TIME))

    def ask_status(self) -> Finding:
        began = time.monotonic()
        with explaining_timeouts(self.api, self.namespace):
            document = get_server_status(self.api, self.namespace, timeout=self.timeout(HOP_TIME))
        passed = format_duration(time.monotonic() - began)
        running, = side_by_side([functools.partial(check_server, self.api, self.namespace)], TIDY_TIME)  # or an Error
        return f"{_text(document, 'status', 'serverVersion')} answers in {passed}; {running}", ""

    def find_owner(self) -> Finding:
        resource, noun = self.artifact.owner, self.artifact.owner.kind.lower()
        document = get_existing(self.api, resource, self.namespace, self.name) if self.name else max(
            filter(lambda row: _text(row, "status", "phase") == "Completed", list_all(
                self.api, resource, self.namespace)[0]),
            key=lambda row: _text(row, "status", "completionTimestamp"), default=None)
        if document is None:
            raise NothingToCheck(f"there is no completed {noun} here; name one, or another namespace (-n)")
        self.name, phase = _name(document, "metadata", "name"), _text(document, "status", "phase")
        refusal = self.artifact.kind.endswith("Log") and logs_refusal(resource, self.name, phase)
        if refusal:
            raise Error(refusal)
        return f"{noun} {self.name}: {phase or NEW}", ""

    def find_location(self) -> Finding:
        self.location = read_location(self.api, self.namespace, self.artifact, self.name)
        return check_location(self.api, self.namespace, self.location), ""

    def ask_url(self) -> Finding:
        if "server" not in self.passed:
            raise NothingToCheck("it needs: server")
        kind, name, began = self.artifact.kind, self.name, time.monotonic()
        with explaining_timeouts(self.api, self.namespace, kind, name), requested_source(
                self.api, self.namespace, kind, name, trust=self.trust,
                timeout=self.timeout(ANSWER_TIME)) as source:
            self.source = UrlSource(lambda _skew: (source.url, source.trust, ""))  # which makes no other request
            return f"{kind} of {name}: answered in {format_duration(time.monotonic() - began)}", ""

    def ask_store(self) -> Finding:
        """The URL's host; whatever it says of the object is the next hop's."""
        url, trust = self.source.url, self.source.trust
        with open_url(url, trust, headers={"Range": "bytes=0-0"}, wanted=tuple(range(100, 600))) as response:
            skew, peer = clock_skew(response.headers, utc_now(), timedelta.max), response.peer()
        by = "nobody" if trust.insecure else trust.source if trust.ca_cert else "the system's authorities"
        clock = skew_text("its", skew)
        return (f"{urlsplit(url).netloc.rpartition('@')[2]} at {peer}"
                f"{f', vouched for by {by}' * url.startswith('https:')}{clock and '; '}{clock}", clock and CLOCK_CURE)

    def look_at(self, source: Any) -> Finding:
        """How an object begins, and a small one ends; as any download."""
        kind, name = self.artifact.kind, self.name
        download = Download(source, f"{kind} of {name}", gunzip=True)
        with adding_hints(functools.partial(damage_cures, download, kind, name)), contextlib.closing(
                download.chunks()) as chunks:  # type: ignore[type-var]
            for _ in chunks:
                if download.position > READ_SIZE:
                    break
        info = download.info or ObjectInfo()
        return f"{download.what}: {info.size} bytes, ETag {info.etag}, gzip that begins well", ""

    def go_direct(self) -> Finding:
        if not self.options.direct or not self.location:
            raise NothingToCheck("it needs: location" if self.options.direct else "not asked for (--direct)")
        bucket = self.options.open_bucket(self.api, self.location)
        return self.look_at(bucket.source(object_key(bucket.prefix, self.artifact, self.name)))

    def go_through_cluster(self) -> Finding:
        """The way through the API server to a controller that hands on artifacts, where there is one."""
        with contextlib.suppress(Missing), requested_source(
                self.api, self.namespace, self.artifact.kind, self.name, via="cluster",
                timeout=self.timeout(ANSWER_TIME)) as source:
            return self.look_at(source)
        raise NothingToCheck(f"nobody has deployed it: there is no Service {NAME}")

# ================================================================================
# 17. Command line — the COMMANDS table, the parser made from it, main

MAX_TIMEOUT = 366 * 86400.0  # seconds; sockets take no more than a few years
NEXT_SCREEN_TIMEOUT = 1.0  # seconds for further screens once a request was not answered
PROGRESS_DELAY = 1.0  # seconds before it is shown what is waited for
PROGRESS_REDRAW, PROGRESS_PLAIN = 0.2, 10.0  # seconds between lines, on a terminal and elsewhere
COMPLETION_TIMEOUT = 1.0  # seconds for names that a shell completes


def find_namespace() -> str:
    """Velero's namespace by VELERO_NAMESPACE, else the velero CLI's configuration, else velero."""
    name = os.environ.get("VELERO_NAMESPACE") or _text(read_velero_config(), "namespace") or "velero"
    if not is_object_name(name):
        raise ConfigError(f"{one_line(name, 64)!r} cannot be the name of a namespace", hints=[
            "VELERO_NAMESPACE or ~/.config/velero/config.json names it; -n chooses another"])
    return name


def say(text: str, end: str = "\n") -> None:
    """Write to stderr; when that cannot take it, the exit code has to do."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + end)
        sys.stderr.flush()


def report(*errors: Error) -> int:
    """Say what went wrong on stderr, and what cures it -> the exit code of the first error."""
    for error in errors:
        for line in (f"error: {error}", *(f"hint: {hint}" for hint in error.hints)):
            say(one_line(redact(line), 4096))
    return errors[0].exit if errors else Exit.DONE


@contextlib.contextmanager
def progress(text: Callable[[float], str]) -> Iterator[None]:
    """A line on stderr, redrawn on a terminal, while the context lasts; `text` makes it, or nothing, of the seconds
    that have passed."""
    began, terminal, over = time.monotonic(), sys.stderr.isatty(), threading.Event()

    def draw() -> None:
        drawn = False
        while not over.wait(PROGRESS_REDRAW if terminal else PROGRESS_PLAIN):
            line, width = text(time.monotonic() - began), 80
            with contextlib.suppress(OSError, ValueError):
                width = os.get_terminal_size(sys.stderr.fileno()).columns or width
            if line:
                say(*((f"\r{line[:width - 1]}\x1b[K", "") if terminal else (line,)))
                drawn = terminal
        if drawn:
            say("\r\x1b[K", "")

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def show_waiting(what: str, seconds: float) -> ContextManager[Any]:
    """Show, after a while, what is waited for and how long it may still take."""
    return progress(lambda passed: "" if passed < PROGRESS_DELAY else f"waiting for {one_line(what)}, at most "
                    f"{format_duration(max(0, round(seconds - passed)))} more")


# Where `completions` finds nothing, files complete. `--flag=value` is three words in bash; zsh and fish complete the
# value alone.
COMPLETION_SCRIPTS = {
    "bash": """_velero_requests() {
    local IFS=$'\\n'
    COMPREPLY=($("${1/#\\~/$HOME}" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null </dev/null))
}
complete -o default -F _velero_requests PROGRAM
""",
    "zsh": """#compdef PROGRAM
_velero_requests() {
    local -a found
    compset -P '--*='
    found=(${(f)"$(${~words[1]} __complete "${(@)words[2,CURRENT-1]}" "$IPREFIX$PREFIX" 2>/dev/null </dev/null)"})
    compadd -a found || _files
}
compdef _velero_requests PROGRAM
(( ! $+compstate )) || _velero_requests
""",
    "fish": """function __velero_requests
    set -l words (commandline -opc) (commandline -ct)
    set -l flag (string match -r -- '^--[^=]*=' $words[-1])
    set -g __velero_requests_found "$flag"(
        eval $words[1] __complete (string escape -- $words[2..-1]) 2>/dev/null </dev/null)
    set -q __velero_requests_found[1]
end
complete -c PROGRAM -n __velero_requests -f -a '$__velero_requests_found'
"""}


class Options:
    """What the command line says, set by argparse, and the commands (`Command.run`)."""

    def api(self) -> Api:
        api = connect(load_cluster(self.kubeconfig, self.context))
        log.info("the cluster is %s, the namespace %s", redact(one_line(api.session.cluster.server)), self.namespace)
        return api._replace(waiting=show_waiting) if sys.stderr.isatty() and not self.quiet else api

    def trust(self) -> Optional[Trust]:
        """Whom to trust for a store, as flags or velero's configuration say; None leaves it to the location."""
        if self.insecure_skip_tls_verify:
            return Trust(insecure=True)
        path = self.cacert or _text(read_velero_config(), "cacert")
        if not path:
            return None
        trust = Trust(read_pem(path, "certificate authority"), source=f"the certificate authority {path}")
        tls_context(trust._replace(alone=True))  # to fail before anybody is asked
        return trust

    def run_controller(self) -> None:
        pair = list(filter(None, (self.artifacts_tls_cert, self.artifacts_tls_key)))
        if len(pair) == 1 or pair and not self.artifacts_address:
            raise UsageError("--artifacts-tls-cert and --artifacts-tls-key need each other, and --artifacts-address")
        api, server = self.api(), Server(self.server_version, tuple(dict.fromkeys((*OWN_PLUGINS, *self.plugin))))
        controller = Controller(api, self.namespace, server, dry_run=self.dry_run, verify_urls=self.verify_urls,
                                allowed=self.allow_credentials_file)
        if self.once or self.dry_run:
            controller.run_once()
            return
        health, metrics = self.health_address, self.metrics_address or self.health_address
        for address in filter(None, {health, metrics}):
            paths = ["/healthz", "/readyz"] * (address == health) + ["/metrics"] * (address == metrics)
            HttpServer(address, lambda _method, target, _headers, paths=paths: controller.page(paths, target))
        if self.artifacts_address:
            HttpServer(self.artifacts_address, controller.artifact_page, pair)

        def stop(number: int, _frame: Any) -> None:
            signal.signal(number, signal.SIG_DFL)  # a second one leaves at once
            controller.stop.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        give_large_blocks_back()  # a library would do so to somebody else's process
        log.info("serving DownloadRequests and ServerStatusRequests of namespace %s at %s", self.namespace,
                 redact(api.session.cluster.server))
        run_controller(controller)
        log.info("stopped")

    def open_bucket(self, api: Optional[Api] = None, document: Optional[Document] = None) -> Bucket:
        """The bucket of a storage location, without one that of --location; --credentials-file opens it, else its
        Secret, else the environment."""
        if document is None and os.path.isdir(self.location):
            return FolderBucket(self.location)
        location = find_location(api, self.namespace, document) if document else location_of_file(self.location)
        trust, given = self.trust() or trust_in(location)._replace(insecure=False), self.credentials_file
        if given:
            location = location._replace(secret_name="", credentials_file=given, trusted=True)
        keyless = (ApiError, CredentialsError) if location.secret_name else ()
        with adding_hints(lambda error: ["name a file with what the Secret holds: --credentials-file FILE"] * (
                isinstance(error, keyless) or error.reason == FOREIGN_ENDPOINT)):
            location, plan = open_location(api, self.namespace, location, self.allow_credentials_file)
        log.info("the store is %s, the bucket %s", *map(one_line, (bucket_address(location).host, location.bucket)))
        return Bucket(location, plan, trust, self.idle_timeout)

    def find_owner(self, artifact: Artifact) -> Api:
        """The cluster; the artifact's owner exists there and, for a log, has finished."""
        api = self.api()
        with adding_hints(lambda error: ["--location FILE and --credentials-file FILE need no cluster"] * isinstance(
                error, Unreachable)):
            try:
                owner = get_existing(api, artifact.owner, self.namespace, self.name)
                refusal = self.is_log and logs_refusal(artifact.owner, self.name, _text(owner, "status", "phase"))
                if refusal:
                    raise Error(refusal, hints=["--follow shows what Velero's pods log about it"] * (
                        not final_phase(owner)))
            except ApiError as error:
                if error.status != 403:  # without the right to see it, it may still be there
                    raise
                log.info("%s", error)
        return api

    @contextlib.contextmanager
    def open_source(self) -> Iterator[Source]:
        """An artifact, by a controller's answer or from its bucket."""
        trust, artifact = self.trust(), TARGETS[self.kind]
        if self.location and not is_object_name(self.name):
            raise NotFound(f"{artifact.owner.kind.lower()} {one_line(self.name, 64)!r} cannot exist")
        api = None if self.location else self.find_owner(artifact)
        log.info("the way: %s", "the storage location, signed for here" if self.direct else "a controller's answer")
        with adding_hints(lambda error: ["`--follow --since 2h` shows what Velero's pods still have of it"] * bool(
                self.is_log and api and (is_missing(error) or error.exit == Exit.UNREACHABLE))):
            if api and not self.direct:
                with explaining_timeouts(api, self.namespace, self.kind, self.name), requested_source(
                        api, self.namespace, self.kind, self.name, timeout=self.timeout, trust=trust,
                        idle=self.idle_timeout, via=self.via) as source:
                    yield source
            else:
                bucket = self.open_bucket(api, read_location(api, self.namespace, artifact, self.name) if api else None)
                yield bucket.source(object_key(bucket.prefix, artifact, self.name))

    def fetch(self, source: Source, output: str) -> None:
        """Download one artifact to a file or stdout (`-`); progress is shown unless it mixes with the output."""
        hidden = self.quiet or (output == "-" and (sys.stdout.isatty() or not sys.stderr.isatty()))
        download = Download(source, f"{self.kind} of {self.name}", gunzip=TARGETS[self.kind].gunzip)
        began = time.monotonic()

        def text(seconds: float) -> str:
            if hidden or not download.info:
                return ""
            fresh = max(0, download.position - download.resumed)
            return progress_text(download.position, download.info.size, fresh, seconds)

        with adding_hints(functools.partial(damage_cures, download, self.kind, self.name)), progress(text):
            size = download.write_to(sys.stdout.buffer) if output == "-" else download.save(
                output, force=self.force, named=bool(self.output))
        seconds = time.monotonic() - began
        if not hidden and (sys.stderr.isatty() or seconds >= PROGRESS_PLAIN):
            say(f"{bytes_text(size)} in {format_duration(round(seconds, 1))}")

    def run_download(self) -> Optional[str]:
        """BackupContents go into a file, others to stdout unless -o names a file."""
        kind, name = self.kind, self.name
        if self.url_only:
            if self.output or self.force:
                raise UsageError("--url-only prints the URL and makes no file; leave out --output and --force")
            with self.open_source() as source:
                if not isinstance(source, UrlSource):
                    raise UsageError(f"there is no URL of what lies in the folder {self.location}")
                if not is_http_url(source.url) or re.search("[^!-~]", source.url):  # whoever may patch it wrote it
                    raise StoreError("the answer holds no printable http or https URL")
                return source.url + "\n"
        output = self.output or (absolute(f"{name}-data.tar.gz") if kind == BACKUP_CONTENTS else "-")
        if output != "-":
            check_target(output, force=self.force, named=bool(self.output))
        elif not TARGETS[kind].gunzip and sys.stdout.isatty() and not self.force:
            raise UsageError(f"{kind} is binary, and stdout is a terminal", hints=[
                "name a file with --output, or add --force"])
        with self.open_source() as source:
            self.fetch(source, output)
        what = "Backup" if kind == BACKUP_CONTENTS else f"{kind} of"
        return None if self.quiet or output == "-" else f"{what} {name} has been successfully downloaded to {output}\n"

    def run_logs(self) -> Optional[str]:
        """The log from the store; with --follow from Velero's pods, as long as it runs, or as --since says."""
        if self.location if self.follow else self.since or self.selector:
            raise UsageError("--follow needs the cluster, so not --location; --since and --selector need --follow")
        if not self.follow:
            return self.run_download()
        api, owner = self.api(), Key(self.resource, self.namespace, self.name)
        document, selector, line = get_existing(api, *owner), self.selector, b""
        if final_phase(document) and not self.since:
            return self.run_download()
        if not selector:
            with adding_hints(lambda _: ["--selector finds Velero's pods by other labels, without a Deployment"]):
                deployment = get_existing(api, DEPLOYMENTS, self.namespace, "velero")
            selector = label_selector(Fields(deployment, "", {}).part("spec.selector"))
        created = parse_time(_text(document, "metadata", "creationTimestamp")) or utc_now()
        since = utc_now() - timedelta(seconds=self.since) if self.since else created - timedelta(minutes=1)  # of skew
        for line in follow_pod_logs(api, owner, selector, since):
            write_all(sys.stdout.buffer, line)
            sys.stdout.flush()
        if not line:
            say(f"No line about {owner} found in the logs of Velero's pods.")
        return None

    def items(self) -> Iterator[Tuple[Item, bytes]]:
        """The chosen items of a backup, or of the archive that --file names, with their content, until none can
        follow; NotFound at the end when a word has chosen nothing."""
        if not (self.name or self.file):
            raise UsageError("name a backup, or an archive with --file")
        words = [(word, *word.partition("/")[::2]) for word in [self.file and self.name, *self.words] if word]
        missing = {word for word, *_ in words}
        to_come = {(word, namespace) for word in missing for namespace in self.namespaces or [""]}
        what, found = self.file or f"backup {one_line(self.name, 64)}", False
        opened = contextlib.nullcontext(FileSource(self.file)) if self.file else self.open_source()
        with opened as source, contextlib.closing(Download(source, what, gunzip=True).chunks()) as chunks, about(what):
            # What has been made of a chunk is seen before the next one is waited for.
            for path, content in tar_files(iter(lambda: sys.stdout.flush() or next(chunks, None), None)):
                match = ITEM_FILE.fullmatch(path)
                if not match or (self.namespaces and (match[2] or "") not in self.namespaces):
                    continue
                resource, namespace, name = item = match.groups("")
                chosen_by = [(word, chosen) for word, meant, chosen in words
                             if chosen in ("", name) and is_resource(meant, resource)]
                if words and not chosen_by:
                    continue
                yield item, content
                found = True
                for word, chosen in chosen_by:
                    missing.discard(word)
                    if chosen and "." in word.partition("/")[0]:  # with group, namespace and name there is but one
                        to_come.discard((word, namespace))
                if words and not to_come:
                    return
        if missing:
            inside = f" in namespace {' or '.join(self.namespaces)}" * bool(self.namespaces)
            raise NotFound(f"there is no {one_line(', '.join(sorted(missing)))}{inside} in {what}", hints=[
                f"`{PROGRAM} backup ls` tells what there is"])
        if not found:
            say(f"No items found in {what}.")

    def run_ls(self) -> None:
        with contextlib.closing(self.items()) as items:
            sys.stdout.writelines(item_rows((item for item, _ in items), self.output))

    def run_show(self) -> None:
        """Each object when its item has come; those that do not hold the text of --grep are passed over."""
        if not (self.words or self.grep or (self.file and self.name)):
            raise UsageError("name what to show, such as deployments/web, or a text with --grep")
        text, before, secret = self.grep or "", "", False
        by_go = re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}",
                       json.dumps(text, ensure_ascii=False)[1:-1])
        with contextlib.closing(self.items()) as items:
            for (resource, *_, name), content in items:
                if text.encode() not in content and by_go.encode() not in content:
                    continue
                with about(one_line(f"{resource}/{name}")):
                    document = decode_json([content])
                if self.clean:
                    leave_out(document)
                if resource == "secrets" and not secret:
                    say("Secrets are shown as they are stored: base64 hides nothing.")
                    secret = True
                sys.stdout.write(before + DOCUMENT_TEXTS[self.output](document))
                before = "---\n" if self.output == "yaml" else "\n"
        if not before and self.grep:
            raise Error(f"no item holds {one_line(self.grep, 64)!r}")

    def find_backups(self, troubles: List[Error]) -> List[Document]:
        """The Backups in --location, else in every location of the cluster, by name, also several of one; their
        location is called as it is here, as by Velero's sync. troubles: gets what is missing."""
        if self.selector:
            raise UsageError("--selector needs the cluster: a bucket is not searched by labels")
        self.trust()  # fails once, not for each location
        api = None if self.location else self.api()
        backups: Dict[str, List[Document]] = {name: [] for name in self.names}
        for location in list_all(api, LOCATIONS, self.namespace)[0] if api else [None]:
            name = _text(location, "metadata", "name")
            where = f"storage location {name!r}" if api else self.location
            found: List[Document] = []
            try:
                with about(where):
                    found = list(self.open_bucket(api, location).backups(where, self.names, troubles))
            except Error as error:
                troubles.append(error)
            for backup in found:
                if api and isinstance(backup.setdefault("spec", {}), dict):
                    backup["spec"]["storageLocation"] = name
                backups.setdefault(backup["metadata"]["name"], []).append(backup)
        troubles += [NotFound(f"backup \"{one_line(name, 64)}\" does not exist in any bucket that was listed")
                     for name in self.names if not backups[name]]
        return [backup for name in self.names or sorted(backups) for backup in backups[name]]

    def run_get(self) -> List[Error]:
        """What cannot be listed is said on stderr, and decides the exit code."""
        version, troubles = "", []  # type: Tuple[str, List[Error]]
        if self.direct:
            documents = self.find_backups(troubles)
        else:
            documents, version = find_documents(self.api(), self.resource, self.namespace, self.names, self.selector)
        if self.output in DOCUMENT_TEXTS and (documents or not troubles):  # no list at all is not an empty list
            sys.stdout.write(DOCUMENT_TEXTS[self.output](list_document(self.resource, documents, version)))
        elif documents:
            columns = [name for text in self.label_columns for name in text.split(",") if name]
            sys.stdout.write(resource_table(self.resource, documents, utc_now(), label_columns=columns,
                                            show_labels=self.show_labels, localize=datetime.astimezone))
        elif not troubles:
            say(f"No resources found in {self.location or self.namespace + ' namespace'}.")
        return troubles

    def is_colorized(self) -> bool:
        wanted = self.colorized
        if wanted is None:
            wanted = sys.stdout.isatty() and str(_at(read_velero_config(), "colorized")).lower() != "false"
        return wanted and self.output != "json" and not os.environ.get("NO_COLOR")

    def run_describe(self) -> List[Error]:
        """What is missing on a screen is also said on stderr, and decides the exit code."""
        api, resource, trust, timeout, way = self.api(), self.resource, self.trust(), self.timeout, Way(self.via)
        structured, screens, troubles = self.output == "json", [], []  # type: Tuple[bool, List[Any], List[Error]]
        for document in find_documents(api, resource, self.namespace, self.names, self.selector)[0]:
            kinds = artifacts_of(resource, document, details=self.details, structured=structured)
            with api.waiting(f"what belongs to {resource.kind.lower()} {_text(document, 'metadata', 'name')}", timeout):
                found = read_screen(  # by an Api that shows nothing of its own
                    Api(api.session), self.namespace, resource, document, kinds, timeout, trust, way)
            screen = Description(resource, document, found, localize=datetime.astimezone, details=self.details,
                                 colorized=self.is_colorized())
            if not structured:
                sys.stdout.write("\n\n" * bool(screens) + screen.text)
            screens.append(screen.json)
            troubles += screen.troubles
            if any(isinstance(value, TimedOut) for value in found.values()):
                timeout = min(timeout, NEXT_SCREEN_TIMEOUT)
        if structured:
            sys.stdout.write(json_text(screens[0] if len(screens) == 1 else screens))
        for trouble in [trouble for trouble in troubles if isinstance(trouble, TimedOut)][-1:]:
            trouble.hints += tuple(timeout_hints(api, self.namespace))
        return troubles

    def run_doctor(self) -> List[Error]:
        """Each hop is shown when it is over; the first broken one is also said on stderr."""
        doctor = Doctor(self)

        def shown(hop: Hop) -> Hop:
            sys.stdout.write("" if self.output == "json" else hop.line(self.is_colorized()))
            sys.stdout.flush()
            return hop

        hops = [shown(hop) for hop in doctor.hops()]
        errors = doctor.errors[:1]  # those of the ways do not count
        ways = [shown(way) for way in doctor.ways()]
        if self.output == "json":
            sys.stdout.write(json_text({"hops": [hop._asdict() for hop in hops], "ways": [
                {"way": way.hop[5:], "state": way.state, "text": f"{way.text}: {way.cure}".rstrip(": ")}
                for way in ways]}))
        return errors

    def server_status(self) -> Document:
        api = self.api()
        with explaining_timeouts(api, self.namespace):
            return get_server_status(api, self.namespace, timeout=self.timeout)

    def run_plugin_get(self) -> str:
        document = self.server_status()
        return DOCUMENT_TEXTS.get(self.output, plugin_table)(document)

    def run_version(self) -> str:
        version = None if self.client_only else _text(self.server_status(), "status", "serverVersion")
        return version_text(version, self.output)


TYPES: Dict[str, Tuple[Callable[[str], Any], str]] = {  # what a flag takes -> its value, None or a ValueError if wrong
    "NAMESPACE": (lambda text: text if is_object_name(text) else None, "{!r} cannot be the name of a namespace"),
    "CIDR": (lambda text: text if "/" in text and _in_network(_ip_address(text.split("/")[0]), text) else None,
             "{!r} is no network, such as 10.0.0.1/32"),
    "BOOL": (lambda text: _GO_BOOLS.get(text or "-"), "{!r} is neither true nor false"),
    "FILE": (lambda text: text or None, "it is empty; was a variable not set?"),
    "DURATION": (lambda text: min(max(0.0, parse_duration(text)), MAX_TIMEOUT) or None,
                 "{!r} is no time to wait; write for example 30s, 5m or 1h30m"),
    "HOST:PORT": (lambda text: text if re.fullmatch(r"(\[[\w.:%]+\]|[^][:\s]*):[0-9]{1,5}", text) else None,
                  "{!r} is not HOST:PORT, such as 127.0.0.1:8081, [::1]:8081 or :8081"),
    "KIND=NAME": (lambda text: tuple(text.split("=", 1)) if re.fullmatch("[^=]+=.+", text) else None,
                  "{!r} is not KIND=NAME, such as RestoreItemAction=velero.io/pod"),
    "KEY=VALUE": (lambda text: tuple(text.split("=", 1)) if re.fullmatch("[^=]+=.+", text) else None, "{!r} has no ="),
    "NUMBER": (lambda text: int(text) if re.fullmatch("[0-9]{1,4}", text) else None, "{!r} is no number of pods"),
    "SECRET": (lambda text: text if is_object_name(text) else None, "{!r} cannot be the name of a Secret"),
    "URL": (lambda text: text if is_http_url(text) else None, "{!r} is no http or https URL")}
Argument = Tuple[Tuple[str, ...], Dict[str, Any]]  # flags or the name of a positional, and argparse's keywords


def argument(usage: str, shown: Optional[str], **keywords: Any) -> Argument:
    """A row of an argument table, `-o --output FILE` or `name BACKUP`; what it takes decides its type, else it is a
    switch as velero's: `--flag`, `--flag=false`. shown: what --help says; None hides it."""
    *names, takes = usage.split()
    if takes[0] == "-":
        names, takes = [*names, takes], "BOOL"
        keywords = {"nargs": "?", "const": True, "default": False, **keywords}

    def read(text: str) -> Any:
        import argparse
        convert, complaint = TYPES.get(takes.partition("|")[0], (str, ""))
        with contextlib.suppress(ValueError):
            value = convert(text)
            if value is not None:
                return value
        raise argparse.ArgumentTypeError(complaint.format(one_line(text, 64)))

    return tuple(names), {"metavar": takes, "type": read, **keywords, **({"help": shown} if shown else {}),
                          **({"default": []} if "action" in keywords else {})}


class Command(NamedTuple):
    """One command."""
    words: str
    summary: str  # for --help
    run: Callable[[Options], Union[str, List[Error], None]]  # -> what it prints, or what else went wrong
    arguments: Tuple[Argument, ...] = ()
    fixed: Dict[str, Any] = {}  # options that it always has
    aliases: Tuple[str, ...] = ()  # further words for it, as the velero CLI has them


COMMON = (
    argument("-n --namespace NAMESPACE", "Velero's namespace (default: $VELERO_NAMESPACE, the velero CLI's "
             "configuration, or velero)"),
    argument("--kubeconfig PATH", "default: $KUBECONFIG or ~/.kube/config", default=""),
    argument("--context --kubecontext CONTEXT", "default: the kubeconfig's current one", default=""),
    argument("--timeout DURATION", "how long to wait for an answer, not for a transfer (default: 1m, 5s for plugin get "
             "and version, 30s for all of doctor)"),
    argument("--colorized", "colors (default: on a terminal without NO_COLOR)", default=None),
    argument("--features NAMES", None),  # velero's; nothing here depends on one
    (("-v", "--verbose"), {"action": "count", "default": 0, "help": "say more on stderr"}),
    argument("--version", "the version of this file; with -v also of what it uses"))
OPTION_DEFAULTS = {  # for commands that have no such argument
    "timeout": 60.0, "quiet": False, "direct": False, "location": None, "credentials_file": None, "is_log": False,
    "output": None, "url_only": False, "via": "auto"}
TLS = (argument("--cacert FILE", "certificate authority of the store (PEM)"),
       argument("--insecure-skip-tls-verify", "trust any certificate of the store"))
ALLOWED_FILE = argument("--allow-credentials-file FILE", "a file of this host that credentialsFile of a storage "
                        "location may name; repeatable", action="append")
SOURCE = (
    argument("--idle-timeout DURATION", "how long the store may send nothing before the transfer is taken up anew "
             "(default: 30s)", default=IDLE_LIMIT),
    argument("--direct", "ask no controller: read storage location and Secret with your own rights, and sign here"),
    argument("--location FILE|DIR", "ask no cluster: the storage location in a file, or a folder that holds a copied "
             "bucket"),
    argument("--credentials-file FILE", "AWS credentials file that opens the location's bucket, for --direct and "
             "--location"),
    ALLOWED_FILE, *TLS)
VIA = argument("--via WAY", "store; cluster: through its API server, from a controller there; auto (default): through "
               "the cluster where the store is not reached", choices=("auto", "store", "cluster"), default="auto")
QUIET = argument("--quiet", "say nothing of a success")
FETCH = (argument("-o --output FILE", "file to write, - for stdout (default for contents: ./NAME-data.tar.gz)"),
         argument("--force", "replace the file if it exists, once the download succeeded"), QUIET)
INSIDE = (argument("name BACKUP", "name of the backup; leave it out with --file", nargs="?"),
          argument("--file FILE", "an archive that was downloaded, in place of BACKUP"),
          argument("--in NAMESPACE", "only items in this namespace; repeatable", action="append", dest="namespaces"))
OUTPUT_FORMAT = argument("-o --output FORMAT", "table, json or yaml", choices=("table", "json", "yaml"))


def owner_commands(resource: Resource) -> Tuple[Command, ...]:
    """Commands for backups or restores, with velero's verb-first aliases."""
    noun, is_backup = resource.kind.lower(), resource is BACKUPS
    one = argument(f"name {noun.upper()}", f"name of the {noun}")
    many = (argument(f"names {noun.upper()}", f"names of {noun}s (default: all)", nargs="*"),
            argument("-l --selector SELECTOR", "only objects with these labels", default=""))
    rows = [
        ("get", f"list {noun}s", Options.run_get, {}, (
            *many, OUTPUT_FORMAT, argument("--show-labels", "show labels in the last column"),
            argument("-L --label-columns LABELS", "labels to show as columns, separated by commas; repeatable",
                     action="append"), *(SOURCE if is_backup else ()))),
        ("describe", f"tell all about {noun}s", Options.run_describe, {}, (
            *many, argument("--details", "show more, from more files of the store"), VIA, *TLS,
            argument("-o --output FORMAT", "plaintext or json", choices=("plaintext", "json")))),
        ("logs", f"print the log of a {noun}", Options.run_logs, {"kind": f"{resource.kind}Log", "is_log": True}, (
            one, argument("-f --follow", f"while the {noun} runs, what Velero's pods log about it"),
            argument("--since DURATION", "with --follow: what the pods have of this time, also of a finished one"),
            argument("--selector SELECTOR", "with --follow: labels of Velero's pods (default: by its Deployment)"),
            QUIET, VIA, *SOURCE)),
        ("download", "fetch the contents of a backup into a file", Options.run_download, {"kind": BACKUP_CONTENTS},
         (one, *FETCH, VIA, *SOURCE)),
        ("ls", "list the items in a backup", Options.run_ls, {"kind": BACKUP_CONTENTS}, (
            *INSIDE, argument("words RESOURCE", "such as deployments, deploy, Deployment, deployments.apps", nargs="*"),
            argument("-o --output FORMAT", "table, name or json", choices=("table", "name", "json")), VIA, *SOURCE)),
        ("show", "print items of a backup", Options.run_show, {"kind": BACKUP_CONTENTS}, (
            *INSIDE, argument("words RESOURCE/ITEM", "items, or all of a RESOURCE", nargs="*"),
            argument("--grep TEXT", "only items that hold this text"),
            argument("--clean", "without what a restore leaves out, for `kubectl apply -f -`"),
            argument("-o --output FORMAT", "yaml or json", choices=("yaml", "json"), default="yaml"), VIA, *SOURCE))]
    return tuple(Command(f"{noun} {verb}", summary, run, arguments, {"resource": resource, **fixed},
                         (f"{verb} {noun}s", f"{verb} {noun}"))
                 for verb, summary, run, fixed, arguments in rows[:6 if is_backup else 3])


# Flags of the controller that `manifests controller` hands on; in a pod the others have no use.
SERVING = (
    argument("--log-format FORMAT", "text, or json: an object per line", choices=("text", "json"), default="text"),
    argument("--verify-urls", "fetch one byte with every URL before handing it out"),
    ALLOWED_FILE,
    argument("--server-version VERSION", "version to report (default: our own)", default=f"v{__version__}"),
    argument("--plugin KIND=NAME", "plugin to report; repeatable", action="append"))
def given_words(options: Options, arguments: Iterable[Argument]) -> List[str]:
    """Those of these flags that do not have their default, as words of a command line."""
    words = []
    for flags, keywords in arguments:
        value, default = getattr(options, flags[-1][2:].replace("-", "_")), keywords.get("default")
        for item in value if isinstance(default, list) else [value] * (value != default):
            text = "=".join(item) if isinstance(item, tuple) else str(item)
            words.append(flags[-1] if item is True else f"{flags[-1]}={text}")
    return words


def controller_text(options: Options) -> str:
    """The controller's manifests; they hold this very program, which an archive or a script is."""
    archive = getattr(__loader__, "archive", "")
    if options.image == PYTHON_IMAGE and not archive:
        log.warning("this script needs urllib3 and PyYAML, which the image %s lacks: name one that has them with "
                    "--image, or print these manifests with the archive velero_requests.pyz", PYTHON_IMAGE)
    return yaml_text(*controller_manifests(
        options.namespace, f"velero_requests.py{'z' * bool(archive)}",
        read_file(archive or __file__, "program", 64 << 20), options.service_account_annotation,
        options.network_policy, words=given_words(options, SERVING), image=options.image, replicas=options.replicas,
        secret=options.secret, endpoint=options.endpoint,
        tls=options.artifacts_tls_secret))


COMMANDS = (
    Command("controller", "answer DownloadRequests and ServerStatusRequests", Options.run_controller, (
        argument("--once", "look once at every request that is there, then exit"),
        argument("--dry-run", "print what would be done and change nothing"),
        argument("--health-address HOST:PORT", "serve /healthz, /readyz and /metrics there", default=None),
        argument("--metrics-address HOST:PORT", "serve /metrics there instead", default=None),
        argument("--artifacts-address HOST:PORT", "serve artifacts there, to clients that come through the API server",
                 default=None),
        argument("--artifacts-tls-cert FILE", "serve them by TLS; files that are replaced are read again"),
        argument("--artifacts-tls-key FILE", "the key of that certificate"), *SERVING)),
    Command("download", "fetch any artifact of a backup or restore", Options.run_download, (
        argument("name NAME", "name of the backup or restore"),
        argument("--kind KIND", f"which artifact (default {BACKUP_CONTENTS}): {', '.join(TARGETS)}",
                 choices=tuple(TARGETS), default=BACKUP_CONTENTS),
        *FETCH, argument("--url-only", "print the pre-signed URL, which is a bearer token"), VIA, *SOURCE)),
    *owner_commands(BACKUPS),
    *owner_commands(RESTORES),
    Command("doctor", "walk from this host to the bytes of a backup and say which hop is broken, and the cure",
            Options.run_doctor, (
                argument("name NAME", "name of the backup or restore (default: the newest completed one)", nargs="?"),
                argument("--kind KIND", "which artifact (default BackupLog)", default="BackupLog",
                         choices=tuple(TARGETS)),
                argument("-o --output FORMAT", "plaintext or json", choices=("plaintext", "json")),
                *(row for row in SOURCE if row[0][0] not in ("--idle-timeout", "--location"))),
            {"timeout": 30.0, "idle_timeout": HOP_TIME}),
    Command("plugin get", "list the plugins of the server", Options.run_plugin_get, (OUTPUT_FORMAT,), {"timeout": 5.0},
            ("get plugins", "get plugin")),
    Command("version", "print the versions of client and server", Options.run_version, (
        argument("--client-only", "do not ask the server"), OUTPUT_FORMAT), {"timeout": 5.0}),
    Command("manifests", "print CRDs for a cluster without Velero, for `kubectl apply --server-side -f -`",
            lambda options: yaml_text(*crd_manifests(options.status_subresource)),
            (argument("--status-subresource", "as Velero 1.6 to 1.8 installed them"),), aliases=("manifests crds",)),
    Command("manifests controller", "print the controller in a cluster", controller_text, (
        argument("--image IMAGE", f"image with Python 3.8 or newer (default: {PYTHON_IMAGE})", default=PYTHON_IMAGE),
        argument("--replicas NUMBER", "how many pods (default: 2)", default=2),
        argument("--secret SECRET", "whose key `cloud` is a credentials file for locations that name no Secret, such "
                 "as Velero's cloud-credentials"),
        argument("--endpoint URL", "AWS_ENDPOINT_URL_S3, the store of locations without s3Url"),
        argument("--service-account-annotation KEY=VALUE", "such as eks.amazonaws.com/role-arn=ARN; repeatable",
                 action="append"),
        argument("--artifacts-tls-secret SECRET", "serve artifacts by TLS with this one of type kubernetes.io/tls"),
        argument("--network-policy CIDR", "let only these addresses connect to its pods, the API servers' and "
                 "Prometheus'; repeatable", action="append"), *SERVING)),
    Command("manifests client", "print Roles for people", lambda options: yaml_text(
        *client_manifests(options.namespace))),
    Command("manifests policy", "print rights per kind of artifact", lambda options: yaml_text(
        *policy_manifests(options.namespace))),
    Command("completion", "print a script that lets a shell complete commands, flags and names",
            lambda options: COMPLETION_SCRIPTS[options.shell].replace("PROGRAM", PROGRAM), (argument(
                "shell SHELL", f"bash, zsh or fish; load it with `source <({PROGRAM} completion bash)`, in fish with "
                f"`{PROGRAM} completion fish | source`", choices=tuple(COMPLETION_SCRIPTS)),)))
COMMAND_OF = {words: command for command in COMMANDS for words in (command.words, *command.aliases)}
KEYWORDS = {flag: keywords for command in COMMANDS for flags, keywords in (*COMMON, *command.arguments)
            for flag in flags}

DESCRIPTION = "Fetch logs and contents of Velero backups, and answer such requests in place of Velero's server."
EPILOG = """exit codes:
  0 done   1 any other failure   2 usage   3 does not exist   4 nobody answered in time
  5 not allowed   6 cluster or store unreachable   130 interrupted   141 the reader of the output left"""


def build_parser(words: str = "") -> Any:
    """The parser of one command; for a group, or none, one that only lists commands."""
    import argparse

    class Parser(argparse.ArgumentParser):
        """Here a wrong command line is an Error, and help that cannot be written an OSError."""

        def error(self, message: str) -> Any:
            raise UsageError(message, hints=[f"see `{self.prog} --help`"])

        def _print_message(self, message: str, file: Any = None) -> None:
            sys.stdout.write(message)

    command = COMMAND_OF.get(words)
    prog = f"{PROGRAM} {command.words if command else words}".rstrip()
    if command:
        further = ", ".join(name for name in COMMAND_OF if name.startswith(f"{command.words} "))
        parser = Parser(prog=prog, description=command.summary, allow_abbrev=False,
                        epilog=further and f"further commands: {further}")
    else:
        rows = [f"  {name[len(words):].strip():<21} {row.summary}" for name, row in COMMAND_OF.items()
                if (name.startswith(words + " ") if words else name == row.words)]
        parser = Parser(prog=prog, description="\n".join([DESCRIPTION, "", "commands:", *rows]), epilog=EPILOG,
                        usage=f"{prog} COMMAND ...", allow_abbrev=False,
                        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**{**OPTION_DEFAULTS, **(command.fixed if command else {})})
    for flags, keywords in (*(command.arguments if command else ()), *COMMON):
        parser.add_argument(*flags, **{"help": argparse.SUPPRESS, **keywords})
    return parser


def value_of(flag: str) -> Optional[Dict[str, Any]]:
    """The keywords of a flag that takes the next word as its value, else None."""
    keywords = KEYWORDS.get(re.sub("^-v+(?=[a-zA-Z]$)", "-", flag), {"nargs": 0})  # -vn is -v -n
    return keywords if "nargs" not in keywords and keywords.get("action", "append") == "append" else None


def split_words(argv: Iterable[str]) -> Tuple[str, List[str], List[str]]:
    """A command line -> the words of its command, other words (all when they name none), and the flags with their
    values, which may stand anywhere."""
    words, flags, rest = [], [], iter(argv)
    for word in rest:
        if word == "--":
            words += rest
        elif word == "-" or not word.startswith("-"):
            words.append(word)
        else:
            flags += [word, *itertools.islice(rest, 0 if value_of(word) is None else 1)]
    count = next((count for count in (2, 1) if " ".join(words[:count]) in COMMAND_OF), 0)
    return " ".join(words[:count]), words[count:], flags


def parse(argv: Iterable[str]) -> Tuple[Command, Options]:
    """The command of a command line, and its options; UsageError in the words that were typed."""
    name, rest, flags = split_words(argv)
    if "--version" in flags:
        name, rest = "", []  # whatever else is there
    group = "" if name else " ".join(rest)
    if group and not any(known.startswith(group + " ") for known in COMMAND_OF):
        first = one_line(" ".join(rest[:2]), 64)
        raise UsageError(f"there is no command `{first}` here", hints=[
            f"see `{PROGRAM} --help`; what only Velero itself does is done by its own command line: `velero {first}`"])
    parser = build_parser(name or group)
    options, unknown = parser.parse_known_args([*flags, *(["--", *rest] if name and rest else [])], Options())
    if options.version:
        return Command("", "", lambda _: version_of_program(options.verbose)), options
    unknown = [word for word in unknown if word != "--"]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.namespace, options.direct = options.namespace or find_namespace(), options.direct or bool(options.location)
    if options.credentials_file and not options.direct:
        raise UsageError("--credentials-file says nothing without --direct or --location", hints=["add --direct"])
    if options.direct and options.via == "cluster":
        raise UsageError("--via cluster asks a controller, --direct and --location ask none; leave one of them out")
    return COMMAND_OF.get(name) or Command(group, "", lambda _: parser.format_help()), options


def known_names(name: str, flags: List[str]) -> List[str]:
    """The names of backups or restores for a command; none when the cluster does not tell them in time."""
    def ask() -> List[str]:
        given = [flag for flag in flags if flag not in ("-h", "--help")]  # which would print
        _, options = parse([*name.split(), *given, "--", "name"])
        resource = getattr(options, "resource", None) or TARGETS[options.kind].owner
        documents, _ = list_all(options.api(), resource, options.namespace)
        return [*filter(is_object_name, (_text(row, "metadata", "name") for row in documents))]

    found, = side_by_side([ask], COMPLETION_TIMEOUT)
    return [] if isinstance(found, Error) else found


def completions(argv: List[str]) -> List[str]:
    """What the last word of a command line may become; of `--flag=value` the value."""
    *before, current = "\0".join(argv).replace("\0=\0", "=").replace("\0=", "=").split("\0")
    name, rest, flags = split_words(before)
    arguments = (*(COMMAND_OF[name].arguments if name else ()), *COMMON)
    place = next((keywords for names, keywords in arguments if names[0][0] != "-"), {})
    flag, equals, value = current.partition("=")
    valued = value_of(flag if equals else flags[-1] if flags else "")
    found: Iterable[str] = ["--help", *(name for names, keywords in arguments if "help" in keywords
                                        for name in names if name[0] == "-")]
    if equals or valued is not None:
        found, current = (valued or {}).get("choices", ()), value if equals else current
    elif not current.startswith("-"):
        typed = [*name.split(), *rest]
        further = [known.split()[len(typed):] for known in COMMAND_OF if known.split()[:len(typed)] == typed]
        if place and (not rest or place.get("nargs") == "*"):
            found = place.get("choices") or known_names(name, flags)
        elif not name or any(further) and not place:
            found = {words[0] for words in further if words}
    return sorted(word for word in found if word.startswith(current))


class RedactingFormatter(logging.Formatter):
    """No secrets and control characters; on a terminal, lines go over that of progress."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return ("\r\x1b[K" if sys.stderr.isatty() else "") + redact(printable(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:  # its last line may hold untrusted text
        return "\n".join(redact(printable(line)) for line in super().formatException(ei).split("\n"))


class JsonFormatter(RedactingFormatter):
    """An object per line, also without secrets; of a look at a request it has the parts."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
                  "level": record.levelname.lower(), "message": record.getMessage(),
                  **({"error": self.formatException(record.exc_info)} if record.exc_info else {})}
        if hasattr(record, "look"):
            key, request, outcome, seconds = record.look
            fields.update(controller=key.resource.kind.lower(), namespace=key.namespace, name=key.name,
                          kind=key.resource.kind, reason=outcome.reason, duration=round(seconds, 6),
                          target=f"{request.target_kind} {request.target_name}".strip() if request else "")
        return json.dumps({name: redact(printable(value)) if isinstance(value, str) else value
                           for name, value in fields.items()})


def configure_logging(serving: bool, verbose: int, as_json: bool = False) -> None:
    """Log to stderr: a controller with time and level, a client only warnings without -v."""
    import warnings
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else RedactingFormatter(
        "%(asctime)s %(levelname)s %(message)s" if serving else "%(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(max(logging.DEBUG, (logging.INFO if serving else logging.WARNING) - 10 * verbose))
    warnings.filterwarnings("ignore", module="urllib3")  # on every call, that nothing is verified


def terminate(number: int, _frame: Any) -> None:
    """End a client as Ctrl-C does: its request and its temporary file are removed first."""
    raise KeyboardInterrupt(number)


def run(argv: List[str]) -> int:
    """Parse and run one command -> its exit code."""
    with contextlib.ExitStack() as end:
        end.callback(sys.stdout.flush)
        with contextlib.suppress(AttributeError):  # of a stand-in for stdout
            sys.stdout.reconfigure(errors="backslashreplace")  # for names where the locale has no UTF-8
        if argv[:1] == ["__complete"]:
            sys.stdout.write("".join(f"{word}\n" for word in completions(argv[1:])))
            return Exit.DONE
        command, options = parse(argv)
        serving = command.run is Options.run_controller
        configure_logging(serving, options.verbose, serving and options.log_format == "json")
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                end.callback(signal.signal, number, signal.signal(number, terminate))
        result = command.run(options)
        sys.stdout.write(result if isinstance(result, str) else "")
        sys.stdout.flush()
        return report(*(result if isinstance(result, list) else []))


MISSING_PACKAGE = (
    "`apt-get install python3-urllib3 python3-yaml`, `dnf install python3-urllib3 python3-pyyaml` or "
    "`apk add py3-urllib3 py3-yaml`",
    "or in a venv: `python3 -m venv venv && venv/bin/pip install 'urllib3>=1.26,<3' 'PyYAML>=5.3'`; without a network "
    "see Install in README.md")


def main(argv: Optional[List[str]] = None) -> int:
    """The command line -> exit code; no other place makes one of an error. An OSError comes from stdout: files, sockets
    and the cluster turn theirs into an Error."""
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        if sys.stdout is None:
            raise Error("stdout is closed", hints=["let it lead somewhere, such as >/dev/null"])
        return run(sys.argv[1:] if argv is None else argv)
    except Error as error:
        log.debug("raised at:", exc_info=True)
        return report(error)
    except KeyboardInterrupt as error:
        number = signal.Signals(*error.args or (signal.SIGINT,))
        say(f"interrupted by {number.name}")
        return 128 + number
    except BrokenPipeError:
        return Exit.BROKEN_PIPE
    except Exception as error:
        module = (error.name or "").lstrip("_") if isinstance(error, ImportError) else ""
        if module in ("urllib3", "yaml"):
            return report(Error(f"the package {module} is missing", hints=MISSING_PACKAGE))
        if module:
            return report(Error(f"this Python has no {module}", hints=["use another one, which was built with it"]))
        log.info("raised at:", exc_info=True)
        if isinstance(error, OSError):
            return report(Error(f"cannot write the output: {error.strerror or one_line(error)}"))
        return report(Error(f"unexpected {type(error).__name__}: {one_line(error)}",
                            hints=["this is a bug; run again with -v and report what it says"]))
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):  # the interpreter's own flush at its exit must not fail
                with contextlib.suppress(OSError, ValueError):  # of no descriptor
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    stoppable = signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)
    if stoppable:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main())
    finally:
        if stoppable:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback for Ctrl-C while the interpreter ends
