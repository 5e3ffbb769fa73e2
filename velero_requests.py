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
     1  Vocabulary                       constants, tables and records the rest is written in
     2  Errors                           whose fault it is, whether to try again, the exit code, the cure
     3  Text and time                    RFC 3339, Go durations, redaction, byte lines
     4  Documents into records           the only place that digs in dicts
     5  Object keys and URLs             artifact -> key -> address in the store
     6  Signing                          AWS Signature Version 4, one function per noun of the specification
     7  Decisions                        every policy, as functions from values to an Outcome
     8  Text for people and machines     tables, version, manifests: strings and documents only
    ===  the waterline: above it is arithmetic on values (`now` is an argument), below it is the world
     9  Connections                      TLS, proxies, pools, kubeconfig and in-cluster loading, identities renewed
    10  Kubernetes verbs                 one `send`, thin verbs over it, one event stream
    11  Credentials                      Secret, environment, shared credentials file
    12  Object store                     fetch, go on after a break, inflate, verify, save
    13  Queue                            dedupe, delays and back-off; the one class with behaviour
    14  Controller                       feeders, gather, apply, reconcile, run
    15  Client helpers                   create a request, wait for the answer, tidy up; or do without a controller
    16  Doctor                           why nobody answered: checks, each one finding with its cure
    17  Command line                     the COMMANDS table, the parser made from it, main

How to read it: from top to bottom. A name is explained before it is used, and nothing above the waterline touches I/O,
clocks, threads or randomness; both are checked by test_velero_requests.py. Importing this file does nothing.
"""
from __future__ import annotations

import os
import sys

if sys.version_info < (3, 8):
    sys.exit("error: velero_requests.py needs Python 3.8 or newer, this is %d.%d" % sys.version_info[:2])

# Python keeps the syntax tree of a script while it runs, a quarter of all memory here, and that of a module not.
# So commands that may run long replace this process, before anything else is done, by one that imports this file.
_AS_MODULE = ("import sys; sys.path[0] = sys.argv.pop(1); import velero_requests as itself; itself.return_memory(); "
              "sys.exit(itself.main())")
if (__name__ == "__main__" and {"controller", "download", "logs"}.intersection(sys.argv) and hasattr(sys, "orig_argv")
        and sys.modules["__main__"].__spec__ is None  # under -m it is a module already
        and os.name == "posix" and os.path.basename(__file__) == "velero_requests.py" and sys.executable
        and not sys.flags.isolated and not getattr(sys.flags, "safe_path", False)):
    _options = sys.orig_argv[1:len(sys.orig_argv) - len(sys.argv)]  # Python's own, such as -u
    os.execv(sys.executable, [sys.executable, *_options, "-c", _AS_MODULE, os.path.dirname(os.path.abspath(__file__)),
                              *sys.argv[1:]])

import argparse
import base64
import configparser
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
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import threading
import time
import zlib
from collections import deque
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
    sys.exit(f"error: the package {missing.name} is missing\nhint: install urllib3 and PyYAML, for example with "
             f"`pip install 'urllib3>=1.26,<3' 'PyYAML>=5.3'`; without a network see Install in README.md")

__version__ = "0.1.0"

log = logging.getLogger("velero_requests")

# ====================================================================================================
# 1. Vocabulary — all constants, tables and records the rest is written in; no behaviour
#    discreet, Exit, Resource, Artifact, TARGETS, Key, DownloadRequest, StatusRequest, Location, Credentials,
#    Cluster, Facts, Server, Outcome, Finding
# ====================================================================================================

Document = Dict[str, Any]  # a Kubernetes object as JSON gave it, passed on untouched


def discreet(record: Any, *secrets: str) -> str:
    """The repr of a record without these fields.

    All records are NamedTuples: thirty dataclasses take 25 ms of each start, for each is source to be compiled then.
    """
    shown = [f"{name}={value!r}" for name, value in zip(record._fields, record) if name not in secrets]
    return f"{type(record).__name__}({', '.join(shown)})"


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


class Resource(NamedTuple):
    """A kind of Kubernetes object and where the API serves it."""

    kind: str
    plural: str
    group: str = "velero.io"
    version: str = "v1"


BACKUPS = Resource("Backup", "backups")
RESTORES = Resource("Restore", "restores")
LOCATIONS = Resource("BackupStorageLocation", "backupstoragelocations")
DOWNLOAD_REQUESTS = Resource("DownloadRequest", "downloadrequests")
STATUS_REQUESTS = Resource("ServerStatusRequest", "serverstatusrequests")
SECRETS = Resource("Secret", "secrets", group="")
EVENTS = Resource("Event", "events", group="")
DEPLOYMENTS = Resource("Deployment", "deployments", group="apps")

DEFAULT_NAMESPACE = "velero"
PROGRAM = "velero_requests.py"

# Phases of both request kinds. Velero 1.6 to 1.18 never write New (it is the empty phase in practice); Failed came
# after 1.18 and carries status.message.
NEW, PROCESSED, FAILED = "New", "Processed", "Failed"
UNANSWERED = ("", NEW)

URL_LIFE = timedelta(minutes=10)             # of a signed URL and of its DownloadRequest (velero pkg/persistence)
STATUS_LIFE = timedelta(minutes=1)           # of a ServerStatusRequest (velero pkg/controller)
STATUS_LOOK_AGAIN = timedelta(minutes=5)     # an answered one is looked at again, and deleted, only after this
URL_POLL = 0.025                             # seconds between reads where watching is not allowed (velero's CLI, too)
STATUS_POLL = 0.25

REASON = "velero-requests.io/reason"         # annotation: a stable CamelCase word
MESSAGE = "velero-requests.io/message"       # annotation: one sentence, no secrets
MESSAGE_LIMIT = 1024                         # characters; what core/v1 Event allows for a message

RETRY_BASE, RETRY_CAP = 0.005, 30.0          # seconds; client-go's base, a cap that heals within the request's life
WATCH_BASE, WATCH_CAP = 1.0, 30.0            # seconds; a failing list or watch, jitter on top
FACTS_LIFE = 5.0                             # seconds that a backup, location or Secret is remembered after a success
PAGE_SIZE = 25                               # objects; client-go's 500 may be 700 MB of hostile ones

# Logs exist once a backup or restore has finished; 1.11 added the two phases in which only plugins still work.
PHASES_WITH_LOGS = ("Completed", "PartiallyFailed", "Failed", "WaitingForPluginOperations",
                    "WaitingForPluginOperationsPartiallyFailed")


OWN_PLUGINS = (("ObjectStore", "velero.io/aws"),)  # (kind, name): all that this file does of a Velero server's plugins


class Artifact(NamedTuple):
    """What a DownloadRequest can ask for: whose it is, under which key, and whether the client inflates it.

    `releases` are those whose CustomResourceDefinition lists the kind.
    """

    kind: str
    owner: Resource
    key: str
    gunzip: bool = True
    releases: str = "1.18"


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

class Key(NamedTuple):
    """One object in the controller's queue."""

    resource: Resource
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.resource.kind} {self.namespace}/{self.name}"


class DownloadRequest(NamedTuple):
    """A DownloadRequest as far as decisions need it; times that cannot be read are None."""

    key: Key
    uid: str
    version: str
    created: Optional[datetime]
    deleting: bool
    target_kind: str
    target_name: str
    phase: str
    url: str
    expiration: Optional[datetime]
    reason: str
    message: str

    def __repr__(self) -> str:
        return discreet(self, "url")


class StatusRequest(NamedTuple):
    """A ServerStatusRequest as far as decisions need it."""

    key: Key
    uid: str
    version: str
    created: Optional[datetime]
    deleting: bool
    phase: str
    processed: Optional[datetime]


Request = Union[DownloadRequest, StatusRequest]


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
    warnings: Tuple[str, ...] = ()           # what is odd about it, and does no harm

    def __repr__(self) -> str:
        return discreet(self, "ca_cert")


class Credentials(NamedTuple):
    """AWS keys; `expires` is None for keys that last."""

    access_key: str
    secret_key: str
    session_token: str = ""
    expires: Optional[datetime] = None

    def __repr__(self) -> str:
        return discreet(self, "access_key", "secret_key", "session_token")


EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")
INTERACTIVE_MODES = ("Never", "IfAvailable", "Always")


class ExecPlugin(NamedTuple):
    """A program of the kubeconfig that prints who we are."""

    command: str
    arguments: Tuple[str, ...]
    environment: Tuple[Tuple[str, str], ...]
    api_version: str
    install_hint: str
    provide_cluster_info: bool
    interactive_mode: str

    def __repr__(self) -> str:
        return discreet(self, "environment")


class Cluster(NamedTuple):
    """How to reach one Kubernetes API server, and as whom; of each pair of data and file at most one is set."""

    server: str
    ca_data: bytes = b""
    ca_file: str = ""
    insecure: bool = False
    server_name: str = ""                    # tls-server-name: whose certificate is expected
    proxy_url: str = ""
    disable_compression: bool = False        # only told to exec plugins
    exec_config: Any = None  # what the cluster has to say to exec plugins
    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    certificate_data: bytes = b""
    certificate_file: str = ""
    key_data: bytes = b""
    key_file: str = ""
    impersonate: Tuple[Tuple[str, str], ...] = ()
    exec_plugin: Optional[ExecPlugin] = None

    def __repr__(self) -> str:
        return discreet(self, "ca_data", "proxy_url", "exec_config", "token", "password", "certificate_data",
                        "key_data")


class Identity(NamedTuple):
    """Who we are for the next calls: a token, or a certificate with its key; `expires` is None when it lasts."""

    token: str = ""
    certificate: bytes = b""
    key: bytes = b""
    expires: Optional[datetime] = None

    def __repr__(self) -> str:
        return discreet(self, "token", "certificate", "key")


class Facts(NamedTuple):
    """What had to be looked up to answer a DownloadRequest."""

    location: Location
    credentials: Credentials
    skew: timedelta = timedelta(0)           # how far the store's clock is ahead of ours, when that matters


class Server(NamedTuple):
    """What a ServerStatusRequest is answered with; plugins are (kind, name)."""

    version: str
    plugins: Tuple[Tuple[str, str], ...] = OWN_PLUGINS


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

    def __repr__(self) -> str:
        return discreet(self, "body")


class Finding(NamedTuple):
    """One likely reason why nobody answered, and its cure."""

    text: str
    cure: str

POD_VOLUME_BACKUPS = Resource("PodVolumeBackup", "podvolumebackups")
POD_VOLUME_RESTORES = Resource("PodVolumeRestore", "podvolumerestores")
DELETE_REQUESTS = Resource("DeleteBackupRequest", "deletebackuprequests")

BACKUP_NAME_LABEL, BACKUP_UID_LABEL = "velero.io/backup-name", "velero.io/backup-uid"
RESTORE_NAME_LABEL = "velero.io/restore-name"

# ====================================================================================================
# 2. Errors — one family: whose fault, try again or not, exit code, hints
#    Error, about, UsageError, ConfigError, CredentialsError, InvalidRequest, NotFound, ApiError, RequestFailed,
#    StoreError, Unreachable, TimedOut
# ====================================================================================================


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

# ====================================================================================================
# 3. Text and time — RFC 3339, Go durations, redaction, byte lines
#    parse_time, format_time, one_line, parse_duration, format_duration, redact, decode_base64, lines
# ====================================================================================================

_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)


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


def one_line(text: object, limit: int = 300) -> str:
    """Foreign text made fit for a terminal or an annotation: one line, no control characters, cut at `limit`."""
    start = str(text)[:4 * limit]  # a stranger's text may be megabytes
    line = " ".join("".join(c if c.isprintable() else " " for c in start).split())
    return line if len(line) <= limit else line[:limit - 1] + "…"


_DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def parse_duration(text: str) -> float:
    """Go's duration notation (`1h2m`, `1.5s`, `250ms`, `0`) -> seconds; ValueError for anything else."""
    digits = text[1:] if text[:1] in ("-", "+") else text
    if digits == "0":
        return 0.0
    parts = _DURATION_PART.findall(digits)
    if not parts or "".join(number + unit for number, unit in parts) != digits:
        raise ValueError(f"invalid duration {one_line(text, 64)!r}")
    seconds = sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)
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


# The parameters of a pre-signed URL that make it a bearer token (AWS SigV4 and SigV2, Google, Azure), a bearer token
# in a header, and a password in a URL.
_SECRETS = re.compile(
    r"((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|SecurityToken|GoogleAccessId"
    r"|sig)=)"
    r"[^&\s\"'<>]+"
    r"|(\bBearer\s+|\bAuthorization: Basic |\bCredential=|\bX-Amz-Signature%3D)[^\s\"',&]+"
    r"|(\w://)[^\s\"'<>]*@", re.IGNORECASE)


def redact(text: str) -> str:
    """The text with signatures, credentials, bearer tokens and passwords in URLs blanked."""
    return _SECRETS.sub(lambda match: next(filter(None, match.groups())) + ("***@" if match.group(3) else "***"), text)


def decode_base64(text: str) -> Optional[bytes]:
    """Base64 as Go reads it, strict but for line ends; None when it is none."""
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        return None


def lines(chunks: Iterable[bytes], limit: int = 8 << 20) -> Iterator[bytes]:
    """Byte chunks -> whole lines without their newline.

    Splitting bytes and never text keeps a character that two chunks share in one piece. A last line without a newline
    was cut off and is dropped; one that grows beyond `limit` bytes is an error.
    """
    rest = b""
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        rest += first
        for line in more:
            yield rest
            rest = line
        if len(rest) > limit:
            raise Unreachable(f"a line of more than {limit} bytes in the answer")


# ====================================================================================================
# 4. Documents into records — the only place that digs in dicts
#    download_request_from, status_request_from, plugins_from, location_from, ini_sections, merge_profiles,
#    own_profiles_from, secret_value, Kubeconfig, kubeconfig_from, cluster_from_kubeconfig, identity_from_exec
#
#    Documents come from strangers: any field may be missing or of another type. Reading never raises on an object of
#    the cluster that somebody may have filled in by hand; it raises ConfigError on configuration, naming what is wrong.
# ====================================================================================================


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


def _identity(resource: Resource, document: Document) -> Dict[str, Any]:
    return {
        "key": Key(resource, _text(document, "metadata", "namespace"), _text(document, "metadata", "name")),
        "uid": _text(document, "metadata", "uid"),
        "version": _text(document, "metadata", "resourceVersion"),
        "created": parse_time(_at(document, "metadata", "creationTimestamp")),
        "deleting": _at(document, "metadata", "deletionTimestamp") is not None,
        "phase": _text(document, "status", "phase"),
    }


def download_request_from(document: Document) -> DownloadRequest:
    """DownloadRequest document -> record; `reason` and `message` are ours, else phase Failed and its status.message."""
    identity = _identity(DOWNLOAD_REQUESTS, document)
    failed = identity["phase"] == FAILED
    return DownloadRequest(
        target_kind=_name(document, "spec", "target", "kind"),
        target_name=_name(document, "spec", "target", "name"),
        url=_text(document, "status", "downloadURL"),
        expiration=parse_time(_at(document, "status", "expiration")),
        reason=_name(document, "metadata", "annotations", REASON) or (FAILED if failed else ""),
        message=(_text(document, "metadata", "annotations", MESSAGE) or (
            _text(document, "status", "message") if failed else ""))[:MESSAGE_LIMIT],
        **identity)


def status_request_from(document: Document) -> StatusRequest:
    """ServerStatusRequest document -> record."""
    return StatusRequest(processed=parse_time(_at(document, "status", "processedTimestamp")),
                         **_identity(STATUS_REQUESTS, document))


REQUEST_FROM: Dict[Resource, Callable[[Document], Request]] = {
    DOWNLOAD_REQUESTS: download_request_from, STATUS_REQUESTS: status_request_from}


def plugins_from(document: Document) -> List[Tuple[str, str]]:
    """ServerStatusRequest document -> its plugins as (kind, name), sorted as the velero CLI sorts them."""
    plugins = _at(document, "status", "plugins")
    plugins = plugins if isinstance(plugins, list) else []
    return sorted((_text(plugin, "kind"), _text(plugin, "name")) for plugin in plugins)


def server_version_from(document: Document) -> str:
    """ServerStatusRequest document -> the server's version, such as `v1.18.1`."""
    return _text(document, "status", "serverVersion")


def backup_name_from(restore: Document) -> str:
    """Restore document -> the backup it came from; empty while a schedule's newest backup is not resolved yet."""
    return _name(restore, "spec", "backupName")


def storage_location_from(backup: Document) -> str:
    """Backup document -> the name of the storage location that holds it."""
    return _name(backup, "spec", "storageLocation")


def phase_from(document: Document) -> str:
    """Any Velero document -> status.phase."""
    return _text(document, "status", "phase")


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


_GO_BOOLS = {**dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
             **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False", ""), False)}
_BOOL = tuple(_GO_BOOLS)
_PROVIDERS = ("aws", "velero.io/aws")
MOST_WARNINGS = 10                           # about one location; its config may hold a megabyte of keys

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
        near = difflib.get_close_matches(key, LOCATION_KEYS, 1, 0.5)
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
    config = {key: _text(config, key) for key in config} if isinstance(config, dict) else {}

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
    warnings = _check_config(config, wrong)
    ca_cert = decode_base64(_text(document, "spec", "objectStorage", "caCert"))
    if ca_cert is None:
        raise wrong("objectStorage.caCert is not base64")
    ca_reference = _at(document, "spec", "objectStorage", "caCertRef")
    if ca_cert and ca_reference:
        raise wrong("objectStorage.caCert and caCertRef exclude each other")
    return Location(
        name=name, bucket=bucket,
        prefix=_text(document, "spec", "objectStorage", "prefix").strip("/"),
        region=config.get("region", ""),
        s3_url=config.get("s3Url", ""), public_url=config.get("publicUrl", ""),
        path_style=_GO_BOOLS[config.get("s3ForcePathStyle", "")],
        insecure=_GO_BOOLS[config.get("insecureSkipTLSVerify", "")],
        ca_cert=ca_cert, ca_secret=(_name(ca_reference, "name"), _name(ca_reference, "key")),
        secret_name=_name(document, "spec", "credential", "name"),
        secret_key=_name(document, "spec", "credential", "key"),
        credentials_file=config.get("credentialsFile", ""), profile=config.get("profile", ""), warnings=warnings)


def location_trouble_from(document: Document) -> str:
    """BackupStorageLocation document -> what Velero says is wrong with it, empty when it is Available or unchecked."""
    if phase_from(document) != "Unavailable":
        return ""
    return one_line(_text(document, "status", "message") or "no message; see the Velero server's log")


Profiles = Dict[str, Dict[str, str]]
KEY_NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


def ini_sections(text: str, source: str) -> Profiles:
    """An AWS ini file -> its sections; ` #` after a value begins a comment, a `#` inside one stays.

    `source` names the file in errors; what the file says never shows in one, for it holds secrets.
    """
    parser = configparser.RawConfigParser(
        default_section="", strict=False, delimiters=("=",), comment_prefixes=("#", ";"),
        inline_comment_prefixes=("#", ";"), empty_lines_in_values=False)
    try:
        parser.read_string(text.lstrip("\ufeff"))
    except configparser.Error as error:
        line = getattr(error, "lineno", 0) or (getattr(error, "errors", None) or [(1, "")])[0][0]
        raise CredentialsError(f"{source} is no AWS credentials file: line {line} is neither a [profile] nor "
                               "key = value") from None
    return {name: dict(parser.items(name)) for name in parser.sections()}


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


def header_value(text: str, what: str) -> str:
    """Text that may go into an HTTP header; ConfigError, without the text, when it has other than printable ASCII."""
    if not text.isascii() or not text.isprintable():
        raise ConfigError(f"{what} has characters that cannot be sent, such as a line end")
    return text


# What kubectl does with odd kubeconfigs, and so do we (client-go tools/clientcmd loader.go, validation.go; run against
# kubectl 1.33 and 1.34):
#   --kubeconfig X                   that one file, which must exist; KUBECONFIG: a list, absent members are skipped
#   the same name in two files       the first file owns the whole entry; twice in one file is an error
#   a relative path                  starts at the folder of the file that says it (of a symlink, not of its target)
#   a value of a wrong type          fails the whole file, also in an entry that is not used
#   any other mistake                counts only in the entries that are used
#   no current-context               never guessed from the only context there is
#   token and tokenFile              the file wins while it can be read
#   token or password or certificate with exec: the plugin is not run
#   an http server                   gets no token, password or plugin credential; an absent scheme means http

_STRINGS = {"*": str}
_EXTENSIONS = [{"name": str, "extension": object}]
_EXEC_FIELDS = {
    "command": str, "args": [str], "env": [{"name": str, "value": str}], "apiVersion": str, "installHint": str,
    "provideClusterInfo": bool, "interactiveMode": str}
_KUBECONFIG_FIELDS = {
    "apiVersion": str, "kind": str, "current-context": str, "extensions": _EXTENSIONS,
    "preferences": {"colors": bool, "extensions": _EXTENSIONS},
    "clusters": [{"name": str, "cluster": {
        "server": str, "tls-server-name": str, "insecure-skip-tls-verify": bool, "certificate-authority": str,
        "certificate-authority-data": str, "proxy-url": str, "disable-compression": bool, "extensions": _EXTENSIONS}}],
    "users": [{"name": str, "user": {
        "client-certificate": str, "client-certificate-data": str, "client-key": str, "client-key-data": str,
        "token": str, "tokenFile": str, "username": str, "password": str, "as": str, "as-uid": str, "as-groups": [str],
        "as-user-extra": {"*": [str]}, "auth-provider": {"name": str, "config": _STRINGS}, "exec": _EXEC_FIELDS,
        "extensions": _EXTENSIONS}}],
    "contexts": [{"name": str, "context": {
        "cluster": str, "user": str, "namespace": str, "extensions": _EXTENSIONS}}],
}
_TYPE_NAMES = {str: "a string", bool: "true or false", list: "a list", dict: "a mapping"}


def check_types(value: Any, fields: Any, where: str) -> None:
    """Raise ConfigError, naming the place and never the value, unless a document has the types of a field table.

    fields: a type, `[T]` for a list, a dict for a mapping. Null counts as absent and unknown fields are let through, as
    in Go.
    """
    if value is None or fields is object:
        return
    wanted = fields if isinstance(fields, type) else type(fields)
    if not isinstance(value, wanted):
        raise ConfigError(f"{where} must be {_TYPE_NAMES[wanted]}")
    if isinstance(fields, list):
        names = [_text(item, "name") for item in value]
        if fields is _EXTENSIONS and len(set(names)) < len(names):
            raise ConfigError(f"{where} has two entries of one name")
        for number, item in enumerate(value):
            check_types(item, fields[0], f"{where}[{number}]")
    elif isinstance(fields, dict):
        for name, item in value.items():
            check_types(item, fields.get(name, fields.get("*", object)), f"{where}.{name}" if where else str(name))


class Kubeconfig(NamedTuple):
    """Several kubeconfig files seen as one: each entry with the file that it comes from."""

    clusters: Dict[str, Tuple[Document, str]]
    users: Dict[str, Tuple[Document, str]]
    contexts: Dict[str, Tuple[Document, str]]
    current_context: str
    source: str                              # the files, for errors

    def __repr__(self) -> str:
        return discreet(self, "clusters", "users", "contexts")


def check_kubeconfig(document: Any, path: str) -> None:
    """Raise unless a document has the shape of a kubeconfig; an empty one has."""
    if document is not None and not isinstance(document, dict):
        raise ConfigError(f"kubeconfig {path} is no mapping, so it is no kubeconfig")
    for name, allowed in (("apiVersion", ("v1", "")), ("kind", ("Config", ""))):
        if isinstance(_at(document, name), str) and _text(document, name) not in allowed:
            raise ConfigError(f"kubeconfig {path} has {name} {one_line(_text(document, name), 64)!r}, not {allowed[0]}")
    try:
        check_types(document, _KUBECONFIG_FIELDS, "")
    except ConfigError as error:
        raise ConfigError(f"kubeconfig {path}: {error}") from None


def kubeconfig_from(files: List[Tuple[str, Any]]) -> Kubeconfig:
    """Kubeconfig documents with their paths, first one first -> one view of them; ConfigError names file and place."""
    sections: Dict[str, Dict[str, Tuple[Document, str]]] = {"clusters": {}, "users": {}, "contexts": {}}
    current = ""
    for path, document in files:
        check_kubeconfig(document, path)
        current = current or _text(document, "current-context")
        for section, entries in sections.items():
            own: Dict[str, Tuple[Document, str]] = {}
            for entry in _at(document, section) or ():
                name = _text(entry, "name")
                if name in own:
                    raise ConfigError(f"kubeconfig {path} has two {section} named {one_line(name)!r}")
                own[name] = (_at(entry, section[:-1]) or {}, path)
            sections[section] = {**own, **entries}
    return Kubeconfig(current_context=current, source=", ".join(path for path, _ in files), **sections)


def _chosen(entries: Dict[str, Tuple[Document, str]], kind: str, name: str, source: str) -> Tuple[Document, str]:
    if name not in entries:
        raise ConfigError(f"kubeconfig {source} has no {kind} {one_line(name)!r}",
                          hints=[f"it has: {', '.join(map(one_line, entries)) or 'none'}"])
    return entries[name]


def _relative(path: str, file: str) -> str:
    """A path of a kubeconfig, seen from the folder of its file; `..` goes by the letters, as Go's filepath.Join."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(file), path)) if path else ""


def _data_or_file(entry: Document, name: str, file: str, where: str) -> Tuple[bytes, str]:
    """The two forms of a field: inline base64 (`name-data`), or a path."""
    data, path = _text(entry, f"{name}-data"), _text(entry, name)
    if data and path:
        raise ConfigError(f"{where} has both {name}-data and {name}; one of them must go")
    content = decode_base64(data)
    if content is None:
        raise ConfigError(f"{where}: {name}-data is not base64")
    return content, _relative(path, file)


def exec_plugin_from(entry: Document, file: str, where: str) -> ExecPlugin:
    """A user's `exec` -> record (client-go validation.go, plugin/pkg/client/auth/exec)."""
    command, version, mode = (_text(entry, name) for name in ("command", "apiVersion", "interactiveMode"))
    if not command:
        raise ConfigError(f"{where}: exec has no command")
    if version not in EXEC_VERSIONS:
        raise ConfigError(f"{where}: exec has apiVersion {one_line(version, 64)!r}, not {' or '.join(EXEC_VERSIONS)}",
                          hints=["a newer version of the plugin writes a newer kubeconfig"])
    if not mode and version == EXEC_VERSIONS[0]:
        raise ConfigError(f"{where}: exec needs interactiveMode with {version}: {', '.join(INTERACTIVE_MODES)}")
    if mode and mode not in INTERACTIVE_MODES:
        raise ConfigError(f"{where}: exec has interactiveMode {one_line(mode, 64)!r}, not one of "
                          f"{', '.join(INTERACTIVE_MODES)}")
    variables = _at(entry, "env") or ()
    if not all(_text(variable, "name") for variable in variables):
        raise ConfigError(f"{where}: exec has an env entry without a name")
    return ExecPlugin(
        command=_relative(command, file) if "/" in command else command,
        arguments=tuple(_at(entry, "args") or ()),
        environment=tuple((_text(variable, "name"), _text(variable, "value")) for variable in variables),
        api_version=version, install_hint=_text(entry, "installHint"),
        provide_cluster_info=_at(entry, "provideClusterInfo") is True, interactive_mode=mode or "IfAvailable")


def _impersonation_from(user: Document, where: str) -> Tuple[Tuple[str, str], ...]:
    """A user's as, as-uid, as-groups, as-user-extra -> request headers (client-go transport/round_trippers.go)."""
    name, uid = _text(user, "as"), _text(user, "as-uid")
    groups, extra = _at(user, "as-groups") or (), _at(user, "as-user-extra") or {}
    if (uid or groups or extra) and not name:
        raise ConfigError(f"{where} impersonates a uid, groups or extra values without a user (as)")
    headers = [("Impersonate-User", name)] if name else []
    headers += [("Impersonate-Uid", uid)] if uid else []
    headers += [("Impersonate-Group", group) for group in groups]
    headers += [(f"Impersonate-Extra-{quote(key.lower(), safe='-._~')}", value)
                for key, values in sorted(extra.items()) for value in values or ()]
    if not all(value.isprintable() for _, value in headers):
        raise ConfigError(f"{where}: whom it impersonates has characters that cannot be sent, such as a line end")
    return tuple((header, value.encode().decode("latin-1")) for header, value in headers)  # so that UTF-8 goes out


def _identity_fields(user: Document, file: str, where: str) -> Dict[str, Any]:
    """A user entry -> the fields of Cluster that say who we are."""
    if _at(user, "auth-provider") is not None:
        name = _text(user, "auth-provider", "name")
        raise ConfigError(f"{where} uses auth-provider {one_line(name, 64)!r}, which kubectl has dropped or will drop",
                          hints=["replace it by an exec plugin (gke-gcloud-auth-plugin, kubelogin) or by a token"])
    certificate_data, certificate_file = _data_or_file(user, "client-certificate", file, where)
    key_data, key_file = _data_or_file(user, "client-key", file, where)
    if not certificate_data and not certificate_file:
        key_data, key_file = b"", ""  # a key alone is ignored
    elif not key_data and not key_file:
        raise ConfigError(f"{where} has a client-certificate without its client-key")
    token, token_file = _text(user, "token"), _relative(_text(user, "tokenFile"), file)
    username, password = _text(user, "username"), _text(user, "password")
    if (token or token_file) and (username or password):
        raise ConfigError(f"{where} has both a token and a username; one of them must go")
    plugin = exec_plugin_from(_at(user, "exec"), file, where) if _at(user, "exec") is not None else None
    return {"certificate_data": certificate_data, "certificate_file": certificate_file,
            "key_data": key_data, "key_file": key_file, "token": header_value(token, f"{where}: token"),
            "token_file": token_file, "username": username, "password": password,
            "impersonate": _impersonation_from(user, where),
            "exec_plugin": None if token or token_file or username or certificate_data or certificate_file else plugin}


def _server_url(text: str, where: str) -> str:
    """The server of a cluster entry as a URL; without a scheme it is http (client-go rest/url_utils.go)."""
    if not text:
        raise ConfigError(f"{where} has no server")
    url = text if "://" in text else f"http://{text}"
    if not is_http_url(url) or ("://" not in text and "/" in text):
        raise ConfigError(f"{where}: server {one_line(redact(text))!r} is no http or https URL")
    scheme, _, rest = url.partition("://")
    return f"{scheme.lower()}://{rest}"


def check_proxy(url: str, what: str) -> None:
    """Raise ConfigError, without showing the URL, unless a proxy is none or one that we can use."""
    scheme = url.partition("://")[0].lower() if "://" in url else "http"
    if scheme.startswith("socks"):
        raise ConfigError(f"{what} is a SOCKS proxy, which needs a package that this file does without", hints=[
            "use an http proxy, or an ssh tunnel (ssh -L) and its local address"])
    if url and (scheme not in ("http", "https") or not is_http_url(url if "://" in url else f"http://{url}")):
        raise ConfigError(f"{what} is no http or https URL")


def _cluster_fields(cluster: Document, file: str, where: str) -> Dict[str, Any]:
    """A cluster entry -> the fields of Cluster that say where to go and whom to trust."""
    ca_data, ca_file = _data_or_file(cluster, "certificate-authority", file, where)
    insecure = _at(cluster, "insecure-skip-tls-verify") is True
    if insecure and (ca_data or ca_file):
        raise ConfigError(f"{where}: certificate-authority and insecure-skip-tls-verify exclude each other")
    proxy_url = _text(cluster, "proxy-url")
    check_proxy(proxy_url, f"{where}: proxy-url")
    if proxy_url and "://" not in proxy_url:
        raise ConfigError(f"{where}: proxy-url has no scheme; write http:// in front")
    configs = [_at(entry, "extension") for entry in _at(cluster, "extensions") or ()
               if _text(entry, "name") == "client.authentication.k8s.io/exec"]
    return {"server": _server_url(_text(cluster, "server"), where), "ca_data": ca_data, "ca_file": ca_file,
            "insecure": insecure, "server_name": _text(cluster, "tls-server-name"), "proxy_url": proxy_url,
            "disable_compression": _at(cluster, "disable-compression") is True,
            "exec_config": configs[0] if configs else None}


def _without_login(url: str) -> Tuple[str, Tuple[str, str]]:
    """A server URL -> without user and password, and these, which kubectl sends when nothing else says who we are."""
    parts = urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return bare, (unquote(parts.username or ""), unquote(parts.password or ""))


def cluster_from_kubeconfig(config: Kubeconfig, context: str) -> Optional[Cluster]:
    """The cluster and user of one context; None when neither the caller nor the files choose one."""
    name = context or config.current_context
    if not name:
        return None
    chosen, _ = _chosen(config.contexts, "context", name, config.source)
    cluster_name, user_name = _text(chosen, "cluster"), _text(chosen, "user")
    cluster, cluster_file = _chosen(config.clusters, "cluster", cluster_name, config.source)
    user, user_file = config.users.get(user_name, ({}, ""))  # one that is not there is nobody, as in kubectl
    fields = _cluster_fields(cluster, cluster_file, f"kubeconfig {cluster_file}, cluster {one_line(cluster_name)!r}")
    identity = _identity_fields(user, user_file, f"kubeconfig {user_file}, user {one_line(user_name)!r}")
    fields["server"], login = _without_login(fields["server"])
    if login[0] and not any(identity[name] for name in ("token", "token_file", "username")):
        identity["username"], identity["password"] = login
    if fields["server"].startswith("http:"):  # what would prove who we are is never sent where anybody can read it
        identity.update(token="", token_file="", username="", password="", exec_plugin=None)
    return Cluster(**fields, **identity)


_EXEC_ANSWER = {"apiVersion": str, "kind": str, "status": {
    "token": str, "clientCertificateData": str, "clientKeyData": str, "expirationTimestamp": str}}


def identity_from_exec(answer: Any, plugin: ExecPlugin) -> Identity:
    """What an exec plugin printed -> identity (client-go plugin/pkg/client/auth/exec); ConfigError never quotes it."""
    where = f"the answer of exec plugin {plugin.command}"
    if _text(answer, "kind") not in ("ExecCredential", "") or _text(answer, "apiVersion") != plugin.api_version:
        raise ConfigError(f"{where} is no ExecCredential of {plugin.api_version}", hints=[
            "the plugin may be older or newer than the kubeconfig"])
    check_types(answer, _EXEC_ANSWER, where)
    status = _at(answer, "status")
    expires = parse_time(_at(status, "expirationTimestamp"))
    if _at(status, "expirationTimestamp") is not None and (
            expires is None or not re.search(r"([Zz]|[+-]\d\d:\d\d)$", status["expirationTimestamp"], re.ASCII)):
        raise ConfigError(f"{where} has an expirationTimestamp that is no time")
    token = _text(status, "token")
    certificate, key = _text(status, "clientCertificateData"), _text(status, "clientKeyData")
    if bool(certificate) != bool(key) or not (token or certificate):
        raise ConfigError(f"{where} has neither a token nor a certificate with its key")
    return Identity(token=header_value(token, f"the token in {where}"), certificate=certificate.encode(),
                    key=key.encode(), expires=expires)


# ====================================================================================================
# 5. Object keys and URLs — artifact -> key -> endpoint, path or virtual-host style
#    is_object_name, target_of, object_key, Address, partition_of, bucket_address, object_address, proxy_for, api_path,
#    rule_for
# ====================================================================================================

# A Kubernetes object name (RFC 1123 subdomain). Backups and restores are objects, so no other name can exist; holding a
# target to this rule keeps every key inside `backups/` or `restores/`.
_OBJECT_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_VIRTUAL_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", re.ASCII)
_IP_ADDRESS = re.compile(r"\[.*\]|\d+(\.\d+){3}", re.ASCII)
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.ASCII)


def is_object_name(name: str) -> bool:
    """Whether Kubernetes could have an object of this name."""
    return len(name) <= 253 and _OBJECT_NAME.fullmatch(name) is not None


def target_of(kind: str, name: str) -> Artifact:
    """The row of TARGETS for a request's target; InvalidRequest for a kind or a name that cannot exist."""
    if kind not in TARGETS:
        raise InvalidRequest(f"unknown kind {one_line(kind, 64)!r}; known are {', '.join(TARGETS)}",
                             reason="UnknownKind")
    if not is_object_name(name):
        owner = TARGETS[kind].owner.kind.lower()
        raise InvalidRequest(f"{one_line(name, 64)!r} cannot be the name of a {owner}", reason="InvalidName")
    return TARGETS[kind]


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


def _endpoint_of(location: Location) -> Tuple[str, str, str, str]:
    """(scheme, host, port part, base path) of a location's own endpoint: publicUrl, else s3Url, else all empty.

    An error names the key and never the URL, which may hold a password.
    """
    key, url = ("publicUrl", location.public_url) if location.public_url else ("s3Url", location.s3_url)
    if not url:
        return "", "", "", ""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if (not _HOST.fullmatch(host) or parts.scheme not in ("http", "https") or port == 0
            or ("[" in parts.netloc) != (":" in host)  # Python before 3.11 takes any text in brackets
            or "@" in parts.netloc or parts.query or parts.fragment or has_dot_segment(parts.path)):
        raise ConfigError(f"storage location {location.name!r}: {key} is no plain http or https URL of a store "
                          "(host, perhaps port and path, nothing else)", reason="InvalidStorageLocation")
    default = port is None or port == {"http": 80, "https": 443}[parts.scheme]
    bracketed = f"[{host}]" if ":" in host else host
    return parts.scheme, bracketed, "" if default else f":{port}", quote(parts.path.rstrip("/"), safe="/-._~%")


def _aws_host(location: Location, region: str, service: str) -> str:
    """The host of S3, or of a part of it, in a region: `s3[-fips][.dualstack].REGION.SUFFIX`."""
    partition = partition_of(region)
    if location.fips and partition.name == "aws-cn":
        raise _wrong(location, f"there are no FIPS endpoints in {region}; unset AWS_USE_FIPS_ENDPOINT")
    if location.dualstack and not partition.dualstack:
        raise _wrong(location, f"there are no dual-stack endpoints in {region}; unset AWS_USE_DUALSTACK_ENDPOINT")
    return f"{service}{'-fips' * location.fips}{'.dualstack' * location.dualstack}.{region}.{partition.suffix}"


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
    scheme, host, port, base = _endpoint_of(location)
    if not host:
        scheme, host = "https", _aws_host(location, region, host_service)
    return Address(scheme, f"{front}.{host}{port}", base, region, "s3-outposts" if service == "s3-outposts" else "s3")


@functools.lru_cache(maxsize=64)
def bucket_address(location: Location) -> Address:
    """Where a location's bucket is; ConfigError when its region or its URLs cannot be used."""
    if not _DNS_LABEL.fullmatch(location.region):
        raise _wrong(location, f"region {one_line(location.region, 64)!r} is no DNS label; correct config.region")
    scheme, host, port, base = _endpoint_of(location)
    custom, region = bool(host), location.region
    if custom and (location.fips or location.dualstack):
        raise _wrong(location, "FIPS and dual-stack endpoints are AWS's own; unset AWS_USE_FIPS_ENDPOINT and "
                     "AWS_USE_DUALSTACK_ENDPOINT for a location with s3Url")
    if location.bucket.startswith("arn:"):
        return _arn_address(location)
    if location.bucket.endswith("--x-s3"):
        raise _wrong(location, "a directory bucket (S3 Express) needs sessions of its own, which are not made here")
    if region == "aws-global":
        region = "us-east-1"
    if not custom:
        plain = location.region == "aws-global" and not location.fips and not location.dualstack
        scheme, host = "https", "s3.amazonaws.com" if plain else _aws_host(location, region, "s3")
    if not location.path_style and _is_virtual_host(location.bucket, scheme, host, custom=custom):
        return Address(scheme, f"{location.bucket}.{host}{port}", base, region)
    return Address(scheme, host + port, f"{base}/{quote(location.bucket, safe='-._~')}", region)


def object_address(location: Location, key: str) -> Address:
    """Where an object of a location is: each byte of the key percent-encoded once, slashes kept, nothing cleaned up."""
    bucket = bucket_address(location)
    return bucket._replace(path=f"{bucket.path}/{quote(key, safe='/-._~')}")


def _ip_address(text: str) -> Any:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_ip_address(host: str) -> bool:
    """Whether a host is an address and not a name."""
    return _ip_address(host) is not None


def _in_network(address: Any, text: str) -> bool:
    try:
        return address in ipaddress.ip_network(text, strict=False)
    except (ValueError, TypeError):
        return False


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names a host: `*`, CIDR, IP, name with its subdomains, .suffix or *.suffix, each with a port."""
    address = _ip_address(host)
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        if entry == "*":
            return True
        if "/" in entry and address is not None and _in_network(address, entry):
            return True
        name, colon, number = entry.rpartition(":")
        if not colon or _ip_address(entry) is not None or not number.isdecimal():
            name, number = entry, ""
        elif name.startswith("[") and name.endswith("]"):
            name = name[1:-1]
        if not name or number not in ("", str(port)):
            continue
        if address is not None:
            if _ip_address(name) == address:
                return True
            continue
        suffix = name[1:] if name.startswith("*.") else name
        if host.endswith(suffix if suffix.startswith(".") else f".{suffix}") or host == suffix:
            return True
    return False


def proxy_for(url: str, variables: Mapping[str, str]) -> str:
    """The proxy that the environment names for a URL, empty for none (Go's golang.org/x/net/http/httpproxy).

    Upper case beats lower case and an empty value falls through; ALL_PROXY is ignored; `localhost` and loopback
    literals are always exempt, names that resolve to them are not. A space in NO_PROXY separates nothing.
    """
    parts = urlsplit(url)
    host, secure = (parts.hostname or "").lower(), parts.scheme == "https"
    name, no_name = ("HTTPS_PROXY" if secure else "HTTP_PROXY"), "NO_PROXY"
    proxy = variables.get(name) or variables.get(name.lower()) or ""
    address = _ip_address(host)
    if not proxy or host == "localhost" or (address is not None and address.is_loopback):
        return ""
    port = parts.port or (443 if secure else 80)
    if _is_exempt(host, port, variables.get(no_name) or variables.get(no_name.lower()) or ""):
        return ""
    check_proxy(proxy, name)
    return proxy if "://" in proxy else f"http://{proxy}"


VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


def rule_for(method: str, path: str, watching: bool) -> Tuple[str, str]:
    """A call to the API -> (what it is in words, the line of a Role that allows it); empty for non-resource paths."""
    match = re.fullmatch(r"/api(?:s/([^/]+))?/v1/namespaces/([^/]+)/([^/]+)(/[^/]+)?(/[^/]+)?", path)
    if not match:
        return "", ""
    group, namespace, plural, name, subresource = match.groups()
    verb = VERBS.get(method) or ("watch" if watching else "get" if name else "list")
    resource = plural + (subresource or "")
    return (f"{verb} {resource} in namespace {namespace}",
            f'- {{apiGroups: ["{group or ""}"], resources: ["{resource}"], verbs: ["{verb}"]}}')


def api_path(resource: Resource, namespace: str, name: str = "", subresource: str = "") -> str:
    """The path of a namespaced collection, object or subresource in the Kubernetes REST API."""
    root = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    parts = ["namespaces", namespace, resource.plural, name, subresource]
    return root + "".join("/" + quote(part, safe="") for part in parts if part)

# ====================================================================================================
# 6. Signing — AWS Signature Version 4 for the query string, one function per noun of the specification
#    canonical_query, canonical_request, credential_scope, string_to_sign, signing_key, signature, presign_query,
#    presign, sign_headers
#
#    https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html. Only `host` is signed and no
#    parameter is added: the smallest URL is the one that most stores, proxies and clients agree on.
# ====================================================================================================

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

# ====================================================================================================
# 7. Decisions — every policy, as functions from values to an Outcome
#    triage_download, answer_download, refuse_download, fall_back_download, is_news, decide_status, backoff,
#    is_version_expired, is_answered, logs_refusal, event_for, new_download_request, new_status_request, head_from,
#    bytes_to_skip, download_wait, resume_point
#
#    DownloadRequest                                          ServerStatusRequest
#      being deleted                -> leave                    being deleted                     -> leave
#      past its expiration          -> delete, any phase        empty or New                      -> patch: Processed
#      empty or New                 -> facts needed, then       Processed, older than 1 min       -> delete
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


def _leave(why: str, again: Optional[datetime] = None) -> Outcome:
    return Outcome("leave", why, again=again)


def _delete(request: Request, why: str) -> Outcome:
    return Outcome("delete", why, body={"preconditions": {"uid": request.uid, "resourceVersion": request.version}})


def _patch(request: Request, why: str, *, status: Document, annotations: Optional[Document] = None,
           again: Optional[datetime] = None, failed: bool = False) -> Outcome:
    metadata: Document = {"resourceVersion": request.version}
    if annotations:
        metadata["annotations"] = annotations
    body = {"metadata": metadata, "status": status} if status else {"metadata": metadata}
    return Outcome("patch", why, body=body, again=again, failed=failed)


def triage_download(request: DownloadRequest, now: datetime) -> Optional[Outcome]:
    """What can be decided about a DownloadRequest without looking anything up; None when facts are needed."""
    if request.deleting:
        return _leave("it is being deleted")
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
    return _leave(f"phase {one_line(request.phase, 64)}; it expires at {format_time(expires)}", again=expires)


def url_life(credentials: Credentials, signed: datetime) -> timedelta:
    """How long a URL signed at an instant may live, in whole seconds: no longer than its keys; none when they ended."""
    if credentials.expires is None:
        return URL_LIFE
    return min(URL_LIFE, (credentials.expires - signed.replace(microsecond=0)) // timedelta(seconds=1)
               * timedelta(seconds=1))


def answer_download(request: DownloadRequest, facts: Facts, now: datetime) -> Outcome:
    """The patch that answers a DownloadRequest: URL, phase and expiration in one.

    A URL dies with the credentials that signed it, so its life is clipped to theirs and the expiration says so. Raises
    InvalidRequest or ConfigError when there can be no answer.
    """
    artifact = target_of(request.target_kind, request.target_name)
    key = object_key(facts.location.prefix, artifact, request.target_name)
    life = url_life(facts.credentials, max(now, now + facts.skew))
    if life < timedelta(seconds=1):
        raise ConfigError(f"the credentials of storage location {facts.location.name!r} have expired",
                          reason="CredentialsExpired")
    address = object_address(facts.location, key)
    url = presign(address, facts.credentials, address.region, now + facts.skew, life, address.service)
    return _patch(
        request, f"{request.target_kind} of {request.target_name}: signed for {key}",
        status={"downloadURL": url, "phase": PROCESSED, "expiration": format_time(now + life)},
        annotations={REASON: None, MESSAGE: None} if request.reason else None,
        again=now + life)


def refuse_download(request: DownloadRequest, error: Error, now: datetime) -> Outcome:
    """What a failed look leaves behind: the reason, once, and an expiration that later failures do not push further."""
    limit = now + URL_LIFE
    message = one_line(redact(str(error)), MESSAGE_LIMIT)
    expires = request.expiration if request.expiration and request.expiration <= limit else None
    status = {} if expires else {"expiration": format_time(limit)}
    annotations = {REASON: error.reason, MESSAGE: message}
    if (request.reason, request.message) == (error.reason, message):
        annotations = {}
    why, again = f"{error.reason}: {message}", expires or limit
    if not status and not annotations:
        return Outcome("leave", why, again=again, failed=error.retry)
    return _patch(request, why, status=status, annotations=annotations, again=again, failed=error.retry)


def fall_back_download(request: DownloadRequest, outcome: Outcome, now: datetime) -> Outcome:
    """What to do when the API takes a patch for invalid, as for an object whose annotations are full: the status alone.

    Without one to write, the object is deleted once it is older than a request lives, so that it cannot stay for ever.
    """
    body = outcome.body or {}
    if "status" in body and "annotations" in body["metadata"]:
        return _patch(request, outcome.why, status=body["status"], again=outcome.again, failed=outcome.failed)
    if request.created and now - request.created >= URL_LIFE:
        return _delete(request, "it cannot be updated and is older than a request lives")
    return Outcome("leave", outcome.why, again=outcome.again, failed=True)


def is_news(old: Optional[Request], new: Request) -> bool:
    """Whether a changed object is worth a look now.

    A reason, a message and the expiration of an unanswered request are what controllers write when they fail: were they
    news, two controllers that fail for different reasons would wake each other without end.
    """
    if old is None or type(old) is not type(new):
        return True
    same: Dict[str, Any] = {"version": new.version}
    if isinstance(new, DownloadRequest):
        same.update(reason=new.reason, message=new.message)
        if new.phase in UNANSWERED:
            same.update(expiration=new.expiration)
    return old._replace(**same) != new


def decide_status(request: StatusRequest, server: Server, now: datetime) -> Outcome:
    """The whole policy for a ServerStatusRequest; a timestamp from the future counts as its creation."""
    if request.deleting:
        return _leave("it is being deleted")
    if request.phase in UNANSWERED:
        plugins = [{"kind": kind, "name": name} for kind, name in server.plugins]
        return _patch(request, f"answered with {server.version}, plugins: {len(plugins)}",
                      status={"phase": PROCESSED, "processedTimestamp": format_time(now),
                              "serverVersion": server.version, "plugins": plugins},
                      again=now + STATUS_LOOK_AGAIN)
    if request.phase != PROCESSED:
        return _leave(f"unknown phase {one_line(request.phase, 64)!r}")
    answered = request.processed if request.processed and request.processed <= now else min(request.created or now, now)
    if answered + STATUS_LIFE <= now:
        return _delete(request, f"answered at {format_time(answered)}, more than a minute ago")
    return _leave(f"answered at {format_time(answered)}", again=now + STATUS_LOOK_AGAIN)


def backoff(failures: int, base: float, cap: float) -> float:
    """Seconds to wait after the n-th failure in a row (n >= 1): base * 2**(n-1), at most cap."""
    return min(cap, base * 2.0 ** min(failures - 1, 64))


def is_version_expired(error: ApiError) -> bool:
    """Whether the API no longer has the version a list or watch asked for, in any of its forms: list anew."""
    return error.status == 410 or error.api_reason in ("Expired", "Gone")


def is_answered(request: DownloadRequest) -> bool:
    """Whether a client may stop waiting: there is a URL, whatever the phase (the velero CLI's own test)."""
    return bool(request.url)


def logs_refusal(owner: Resource, name: str, phase: str) -> str:
    """Why a backup or restore in this phase has no logs yet, empty when it has (velero pkg/cmd/cli/backup/logs.go)."""
    if phase in PHASES_WITH_LOGS:
        return ""
    kind = owner.kind.lower()
    return (f"logs for {kind} \"{name}\" are not available until it's finished processing (it is {phase or NEW}); "
            f"wait until the {kind} has a phase of Completed or Failed and try again")


def event_for(request: DownloadRequest, reason: str, message: str, now: datetime) -> Document:
    """A core/v1 Event that shows a request's reason in `kubectl describe` and `kubectl get events`."""
    key, instant = request.key, format_time(now)
    return {
        "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": reason, "message": message,
        "metadata": {"generateName": f"{key.name[:40].rstrip('-.')}-", "namespace": key.namespace},
        "involvedObject": {"apiVersion": "velero.io/v1", "kind": key.resource.kind, "namespace": key.namespace,
                           "name": key.name, "uid": request.uid, "resourceVersion": request.version},
        "source": {"component": "velero-requests"}, "count": 1,
        "firstTimestamp": instant, "lastTimestamp": instant,
    }


def new_download_request(namespace: str, kind: str, name: str) -> Document:
    """The DownloadRequest a client creates; the API server completes the name, so two never collide."""
    return {"apiVersion": "velero.io/v1", "kind": DOWNLOAD_REQUESTS.kind,
            "metadata": {"generateName": f"{name[:50].rstrip('-.')}-", "namespace": namespace},
            "spec": {"target": {"kind": kind, "name": name}}}


def new_status_request(namespace: str) -> Document:
    """The ServerStatusRequest a client creates, named as the velero CLI names its own."""
    return {"apiVersion": "velero.io/v1", "kind": STATUS_REQUESTS.kind,
            "metadata": {"generateName": "velero-cli-", "namespace": namespace}, "spec": {}}

# Where credentials come from. A plan is made of values alone, so the whole chain can be seen and tested without a
# network.


class WebIdentity(NamedTuple):
    """A token file that STS exchanges for the keys of a role (IRSA)."""

    role_arn: str
    token_file: str
    session_name: str = ""


class Process(NamedTuple):
    """A program that prints keys (credential_process)."""

    command: str
    profile: str = ""

    def __repr__(self) -> str:
        return discreet(self, "command")


class Container(NamedTuple):
    """An endpoint beside the container: ECS, or EKS Pod Identity."""

    url: str
    token: str = ""
    token_file: str = ""

    def __repr__(self) -> str:
        return discreet(self, "token")


class Instance(NamedTuple):
    """The metadata service of the machine (IMDS); version 1 of it only when told."""

    endpoint: str
    allow_v1: bool = False


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
    return Credentials(access_key, secret_key, token) if access_key else None


def plan_environment(environment: Mapping[str, str]) -> Optional[Credentials]:
    """Keys in environment variables."""
    access_key = environment.get("AWS_ACCESS_KEY_ID") or environment.get("AWS_ACCESS_KEY") or ""
    secret_key = environment.get("AWS_SECRET_ACCESS_KEY") or environment.get("AWS_SECRET_KEY") or ""
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


def _check_profile(profiles: Profiles, name: str, source: str) -> Dict[str, str]:
    """The values of a profile; CredentialsError when it does not exist, contradicts itself or needs a person."""
    if name not in profiles:
        raise CredentialsError(f"{source} has no profile {one_line(name, 64)!r}")
    values, where = profiles[name], _where(name, source)
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


def _source_chain(profiles: Profiles, name: str, source: str) -> List[str]:
    """The profiles that hang together by source_profile, from the one named to the one that has the keys."""
    chain = [name]
    while True:
        values = _check_profile(profiles, chain[-1], source)
        origin = values.get("source_profile", "")
        if not origin or (origin == chain[-1] and _pair(values, _where(origin, source))):
            return chain
        if origin in chain or len(chain) >= SOURCE_PROFILES:
            how = "in a circle" if origin in chain else "too far"
            raise CredentialsError(f"{_where(chain[-1], source)}: source_profile leads {how}: "
                                   f"{one_line(' -> '.join(chain + [origin]))}")
        chain.append(origin)


def plan_profile(profiles: Profiles, name: str, source: str, environment: Mapping[str, str]) -> Plan:
    """What one profile of an ini file comes to, or why not: a source of keys, and the roles assumed one after another.

    source: names the file in errors.
    """
    chain = _source_chain(profiles, name, source)
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
                     environment: Mapping[str, str]) -> Plan:
    """The whole chain: a location's own file, else profile named, environment, web identity, shared files, container,
    instance.

    profile: of the location's config. own: what its Secret or credentialsFile holds, None when it names none. The
    location's own comes first: in the plugin, keys in the environment beat it.
    """
    if own is not None:
        return plan_profile(own, profile or "default", source, environment)
    if profile:
        return plan_profile(shared, profile, source, environment)
    named = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or ""
    plan: Optional[Plan] = plan_environment(environment) or plan_web_identity(environment)
    if plan is None and (named or any(key.startswith(_SOURCE_KEYS) for key in shared.get("default", {}))):
        plan = plan_profile(shared, named or "default", source, environment)
    plan = plan or plan_container(environment) or plan_instance(environment)
    if plan is None:
        raise ConfigError("no credentials for the store: the storage location names no Secret, and there are none in "
                          f"the environment, in {source}, of a container or of an instance",
                          reason="CredentialsNotFound")
    return plan


def is_fresh(credentials: Credentials, now: datetime) -> bool:
    """Whether credentials live long enough to sign with: they need not be renewed yet."""
    return credentials.expires is None or credentials.expires - now >= URL_LIFE + timedelta(seconds=60)


# -- a store's refusals


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


# -- downloads: what an answer says of an object, and whether to try again

DOWNLOAD_TRIES, FIRST_TRIES, FEW_TRIES = 10, 5, 3  # failures in a row: after bytes had come, before, not worth more
DOWNLOAD_WAIT = 60.0                         # seconds of waiting in a row; settles that endless 503 end within 100 s
PASSING_STATUS = (408, 429, 500, 502, 503, 504, 522, 524)  # curl's --retry, too
EXPIRED = ("UrlExpired", "ClockSkew", "CredentialsExpired")  # reasons that another signature may cure
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", re.ASCII)
_MD5_ETAG = re.compile(r'"[0-9a-f]{32}"', re.ASCII)
CHECKSUM_SIZES = {"crc32": 4, "sha1": 20, "sha256": 32}  # bytes; the standard library has no CRC32C and no CRC64NVME


class Head(NamedTuple):
    """What an answer says of an object, and which of its bytes follow; None is what it does not say."""

    etag: str = ""                           # as sent; empty for a weak one, which identifies no bytes
    size: Optional[int] = None               # of the whole object
    checksums: Tuple[Tuple[str, bytes], ...] = ()  # algorithm and digest of the whole object
    start: int = 0                           # -1 for a Content-Range that cannot be
    end: Optional[int] = None
    whole: bool = True                       # answered 200, whatever was asked for
    ends: bool = True                        # its end can be told from a break: it has a length or comes in chunks
    encoded: bool = False                    # says Content-Encoding: gzip


def checksums_from(headers: Mapping[str, str], etag: str) -> Tuple[Tuple[str, bytes], ...]:
    """The digests of the whole object that can be computed here: S3's headers, and an ETag where it is an MD5.

    Checksums over parts (`…-3`), and ETags of parts or of what KMS or the customer's keys encrypt, are none.
    """
    found = []
    for name, size in CHECKSUM_SIZES.items():
        digest = decode_base64(headers.get(f"x-amz-checksum-{name}", ""))
        if digest is not None and len(digest) == size:
            found.append((name, digest))
    encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    if _MD5_ETAG.fullmatch(etag) and not encrypted and not headers.get(
            "x-amz-server-side-encryption-customer-algorithm"):
        found.append(("md5", bytes.fromhex(etag.strip('"'))))
    return tuple(found)


def head_from(status: int, headers: Mapping[str, str]) -> Head:
    """Status (200 or 206) and headers of an answer -> what it says of the object."""
    etag = headers.get("ETag", "")
    etag = "" if etag.startswith("W/") else etag
    length = headers.get("Content-Length", "")
    size = int(length) if re.fullmatch(r"\d{1,18}", length, re.ASCII) else None
    chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
    common = {"etag": etag, "checksums": checksums_from(headers, etag), "ends": size is not None or chunked,
              "encoded": headers.get("Content-Encoding", "").lower() == "gzip"}
    if status == 200:
        return Head(size=size, end=size, **common)
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    first, last, total = (text and int(text) for text in match.groups()) if match else (None, None, None)
    if first is None or last is None or last < first or size not in (None, last + 1 - first) or (
            total is not None and last >= total):
        return Head(size=total, start=-1, whole=False, **common)
    return Head(size=total, start=first, end=last + 1, whole=False, **common)


def range_headers(start: int, stop: Optional[int], etag: str) -> Dict[str, str]:
    """The headers that ask for a part of an object, if it is still the same."""
    if not start and stop is None:
        return {}
    headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
    return {**headers, "If-Match": etag} if etag else headers


def changed_object(position: int) -> StoreError:
    """The error for an object that is no longer the one of which bytes are in hand."""
    return StoreError(f"the object changed after {position} bytes of it had come", reason="ObjectChanged")


def bytes_to_skip(held: Head, head: Head, position: int, stop: Optional[int]) -> int:
    """How many bytes of an answer are in hand already; StoreError when it does not go on where `held` stopped.

    One byte in hand is asked for again, so that behind the last one, too, there is something to ask for. A store that
    ignores Range sends the object from its beginning: nothing is lost but time.
    """
    if head.whole and not (head.ends or head.etag or head.checksums):
        raise Unreachable("the store's answer has no length, no ETag and no checksum: it was cut short",
                          reason="BrokenOff")
    asked = max(0, position - 1)
    differs = None not in (held.size, head.size) and held.size != head.size
    if position and (differs or (held.etag and held.etag != head.etag and (head.etag or head.whole))):
        raise changed_object(position)
    if head.whole:
        return position
    size = held.size if head.size is None else head.size
    expected_end = size if stop is None or size is None else min(stop, size)
    if head.start != asked or (expected_end is not None and head.end != expected_end):
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


def resume_point(record: Any, size: int, what: str) -> Tuple[int, str]:
    """The record beside a partial file of `size` bytes -> from which byte to go on, and the ETag; (0, "") for anew."""
    etag, done = _text(record, "etag"), _at(record, "done")
    start = min(size, done) if isinstance(done, int) and done >= 0 else size
    known = etag == one_line(etag) and etag.isascii() and len(etag) > 2 and _text(record, "object") == what
    return (start, etag) if known and start else (0, "")


def may_be_continued(error: BaseException) -> bool:
    """Whether what came before an error is worth keeping: not when the object is wrong or gone, or the disk is full."""
    if isinstance(error, StoreError):
        return error.status not in (0, 404) or error.reason == "WrongRange"
    return not isinstance(error, OSError)

# ====================================================================================================
# 8. Text for people and machines — strings and documents only, nothing is printed here
#    bytes_text, progress_text, saved_text, json_text, yaml_text, Fields, resource_table, plugin_table, Description,
#    version_text, version_document, crd_manifests
# ====================================================================================================


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


def saved_text(size: int, seconds: float, sha256: str) -> str:
    """The last line of a download."""
    return f"{bytes_text(size)} in {format_duration(round(seconds, 1))}" + (f", sha256 {sha256}" if sha256 else "")


# In JSON everything else that `printable` takes away is escaped already.
_UNESCAPED = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


def json_text(document: Any) -> str:
    """A document as JSON with an indent of two and every character that can be shown; the others are escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _UNESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", text) + "\n"


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


# ---- words of Go and kubectl ----

Localize = Callable[[datetime], datetime]          # an instant -> the same one in the user's time zone
NONE, NONE_INCLUDED = "<none>", "<none included>"
WIDEST = 300  # characters; a longer cell, which only a stranger can have written, widens no column
# Control characters, line separators, marks that turn the direction of writing, halves of characters.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A stranger's text, with blanks for what would drive a terminal or break a column."""
    return text if text.isprintable() else _CONTROLS.sub(" ", text)


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


# ---- typed access ----

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
            return {str(name): self.typed(item, kind[str], *path, str(name)) for name, item in value.items()}
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


# ---- get ----

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


# ---- describe: what it needs ----

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
        return [(POD_VOLUME_RESTORES, f"{RESTORE_NAME_LABEL}={name}")]
    of_backup, uid = f"{BACKUP_NAME_LABEL}={name}", _text(document, "metadata", "uid")
    return [(DELETE_REQUESTS, f"{of_backup},{BACKUP_UID_LABEL}={uid}"), (POD_VOLUME_BACKUPS, of_backup)]


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


# ---- describe: one stream of lines makes both the text and the JSON ----

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


# Strict are the two kinds that are requests to a controller: every field and value that Velero's own definitions have.
# The others are Velero's to define, and take what its servers, old and new, write into them.

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
# 9. Connections — TLS, proxies, pools, kubeconfig and in-cluster loading, identities renewed
#    Api, connect, load_cluster, identity_of, run_exec_plugin, tls_context, Door, open_door, unreachable
# ====================================================================================================

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
CONNECT_TIMEOUT = 10.0                       # seconds
READ_TIMEOUT = 20.0                          # seconds without a byte; less than the 30 s a pod has to stop
FIFO_TIMEOUT = 0.5                           # seconds
PROBE_TIMEOUT = 5.0                          # seconds, for a second look at a certificate that was not trusted
TOKEN_LIFE = 50.0                            # seconds; client-go transport/token_source.go: a minute less 10 s
FILES_LIFE = 300.0                           # seconds; client-go reads certificate files again every 5 minutes
EXEC_LEEWAY = 30.0                           # seconds before its end that an exec plugin's answer is renewed
ERROR_LIMIT = 64 * 1024                      # bytes of an error's body that are looked at
KUBECONFIG_LIMIT = 8 << 20                   # bytes
DEEPEST_YAML, LARGEST_YAML = 100, 200_000    # levels, and nodes with aliases followed; 10,000 clusters have as many
POOL_SIZE = 8                                # workers and feeders of a controller, each with a connection of its own
USER_AGENT = f"velero_requests/{__version__} ({sys.platform})"


def utc_now() -> datetime:
    """The clock of the world; tests bring their own."""
    return datetime.now(timezone.utc)


def _open_now(path: str, flags: int) -> int:
    """Open, but do not wait for ever on a FIFO that nobody writes to."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        readable = select.select([descriptor], [], [], FIFO_TIMEOUT)[0]
        os.set_blocking(descriptor, True)
        if not readable:
            os.close(descriptor)
            raise OSError(errno.ETIMEDOUT, "it is a FIFO that nobody writes to", path)
    return descriptor


def read_file(path: str, purpose: str, limit: int = -1) -> bytes:
    """The content of a file, at most `limit` bytes and one more; ConfigError that names the file and what it is for."""
    try:
        with open(path, "rb", opener=_open_now) as file:
            return file.read(limit if limit < 0 else limit + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {purpose} {path}: {getattr(error, 'strerror', None) or error}") from error


# -- TLS


def _trust_each(context: ssl.SSLContext, pem: str) -> int:
    """Trust the certificates of a bundle -> how many; one that cannot be read spoils no other, as in Go."""
    count = 0
    for block in re.findall("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", pem, re.DOTALL):
        with contextlib.suppress(ssl.SSLError, ValueError):
            context.load_verify_locations(cadata=block)
            count += 1
    return count


def tls_context(ca_cert: bytes = b"", *, insecure: bool = False, system: bool = True,
                source: str = "the certificate authority", host: str = "") -> ssl.SSLContext:
    """A TLS client context for a host; ConfigError naming `source` when ca_cert is unusable.

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
    if urllib3.__version__.startswith("1.") and is_ip_address(host):
        context.check_hostname = False  # it names no IP address to OpenSSL, and checks it itself instead
    with contextlib.suppress(AttributeError):  # an OpenSSL too old to be asked
        context.hostname_checks_common_name = False
    if system:
        context.load_default_certs()
    if ca_cert:
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


def _handshake(url: str, server_name: str, context: ssl.SSLContext, binary: bool) -> Any:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 443), PROBE_TIMEOUT) as plain:
        with context.wrap_socket(plain, server_hostname=server_name or parts.hostname) as secured:
            return secured.getpeercert(binary_form=binary)


def presented_certificate(url: str, server_name: str) -> Dict[str, Any]:
    """The certificate that a server shows, decoded and not trusted; empty when it cannot be had.

    Python decodes only what it has verified, so a second handshake trusts exactly the certificate of the first.
    """
    exact = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    exact.check_hostname = False
    exact.verify_flags = ssl.VerifyFlags(X509_PARTIAL_CHAIN | X509_NO_CHECK_TIME)
    try:
        exact.load_verify_locations(cadata=_handshake(url, server_name, tls_context(insecure=True), True))
        return _handshake(url, server_name, exact, False)
    except (OSError, ValueError):
        return {}


def _distinguished(name: Any) -> str:
    """A certificate's subject or issuer as ssl gives it -> `CN=…, O=…`."""
    return ", ".join(f"{key}={value}" for part in name or () for key, value in part) or "nobody"


def explain_certificate(url: str, server_name: str, problem: str) -> str:
    """What is wrong with a server's certificate, with the names that let a person see it."""
    shown = presented_certificate(url, server_name)
    if not shown:
        return problem
    names = ", ".join(value for _, value in shown.get("subjectAltName", ())) or "no name at all"
    return one_line(f"{problem} (it is for {names}; subject {_distinguished(shown.get('subject'))}; issuer "
                    f"{_distinguished(shown.get('issuer'))}; valid until {shown.get('notAfter')})", 1000)


def _tls_text(cause: BaseException) -> str:
    reason = getattr(cause, "reason", None) or str(cause)
    if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "what answers there does not speak TLS; is it an http port?"
    return redact(one_line(str(reason).replace("_", " ").lower()))


def unreachable(error: Exception, where: str, url: str, server_name: str = "", hint: str = "") -> Unreachable:
    """What urllib3 and ssl raise -> one sentence: name resolution, refused, timeout, proxy, or why TLS failed."""
    cause: BaseException = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    if isinstance(error, urllib3.exceptions.ProxyError):
        text = getattr(cause, "strerror", None) or _tls_text(cause)
        return Unreachable(f"cannot reach {where} through its proxy: {text}")
    if isinstance(cause, ssl.SSLCertVerificationError):
        problem = explain_certificate(url, server_name, cause.verify_message)
        return Unreachable(f"{where} has a certificate that is not trusted: {problem}", hints=[hint] if hint else [])
    if isinstance(error, urllib3.exceptions.SSLError) or isinstance(cause, ssl.SSLError):
        return Unreachable(f"no TLS with {where}: {_tls_text(cause)}")
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # which urllib3 counts among the timeouts
    if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
        return Unreachable(f"{where} does not answer in time")
    return Unreachable(f"cannot reach {where}: {getattr(cause, 'strerror', None) or redact(one_line(cause))}")


# -- pools


def _socket_options() -> List[Tuple[int, int, int]]:
    """Keepalive after 30 s, so that a peer that vanished is noticed; named options where the platform has them."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 60_000)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options


class Door(NamedTuple):
    """A pool of connections to one host; `prefix` goes in front of every path."""

    pool: urllib3.HTTPConnectionPool
    prefix: str = ""


def open_door(url: str, context: Optional[ssl.SSLContext], *, proxy: str = "", server_name: str = "", size: int = 1
              ) -> Door:
    """A door to the host of an http or https URL; nothing is sent yet. context: for https, and for an https proxy.

    Through a proxy https is tunnelled; plain http is asked for with the whole URL, as proxies want it.
    """
    parts = urlsplit(url)
    options: Dict[str, Any] = {"maxsize": size, "socket_options": _socket_options(),
                               "timeout": urllib3.Timeout(connect=CONNECT_TIMEOUT, read=READ_TIMEOUT)}
    secure = {} if context is None else {"ssl_context": context, "cert_reqs": context.verify_mode}
    if server_name:
        secure.update(server_hostname=server_name)
    if not proxy:
        kind = urllib3.HTTPConnectionPool if parts.scheme == "http" else urllib3.HTTPSConnectionPool
        return Door(kind(parts.hostname, parts.port, **options, **({} if parts.scheme == "http" else secure)))
    gate = urlsplit(proxy)
    password = f"{unquote(gate.username)}:{unquote(gate.password or '')}" if gate.username else None
    manager = urllib3.ProxyManager(
        f"{gate.scheme}://{gate.netloc.rpartition('@')[2]}",
        proxy_ssl_context=context if gate.scheme == "https" else None,
        proxy_headers=urllib3.make_headers(proxy_basic_auth=password) if password else None,
        **options, **(secure if parts.scheme == "https" else {}))
    pool = manager.connection_from_host(parts.hostname, parts.port, parts.scheme)
    return Door(pool, "" if parts.scheme == "https" else f"http://{parts.netloc}")


# -- YAML


class GoLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML with the scalars of Go's parser: no dates, no base 60, `y` and `n` are bools, `1e3` is a number."""

    yaml_implicit_resolvers: Dict[str, Any] = {}


def _number(text: str) -> Union[int, float]:
    """A number as Go reads it; what only Go can read is 0, for nobody asks more than that it is a number."""
    digits = text.replace("_", "").lower()
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
        if len(open_nodes) > DEEPEST_YAML or count > LARGEST_YAML:
            raise yaml.composer.ComposerError(None, None, "too deep or too large", event.start_mark)
        if isinstance(event, yaml.DocumentEndEvent):
            return


def parse_yaml(content: bytes, what: str) -> Any:
    """The first document of YAML or JSON, read as Go reads it; an error names the line and never quotes it."""
    if len(content) > KUBECONFIG_LIMIT:
        raise ConfigError(f"{what} is larger than {KUBECONFIG_LIMIT >> 20} MiB")
    try:
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except ValueError:
        raise ConfigError(f"{what} is not UTF-8 text") from None
    with contextlib.suppress(ValueError, RecursionError):
        if text.lstrip().startswith("{"):  # JSON may be indented by tabs, YAML may not
            return json.loads(text)
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


# -- who we are


class Material(NamedTuple):
    """What a door to a cluster is made of: PEM of the authority, and of our certificate with its key."""

    ca_cert: bytes
    certificate: bytes
    key: bytes


class Login:
    """The identity in use, renewed under its lock; `until` and `files_until` are time.monotonic() instants."""

    def __init__(self, door: Door, material: Material, files_until: float) -> None:
        self.door, self.material, self.files_until = door, material, files_until
        self.identity, self.until = Identity(), -math.inf
        self.lock = threading.RLock()
        self.warned: Set[str] = set()        # warnings of the API server that were shown


class Api(NamedTuple):
    """An open door to one Kubernetes API server."""

    cluster: Cluster
    login: Login
    path: str                                # of the server URL, for API servers behind a path
    patience: float = READ_TIMEOUT           # seconds without a byte, for calls that do not say


def authority_of(cluster: Cluster) -> bytes:
    """PEM of the cluster's own authority as it is now, empty when the system's are to be trusted."""
    return cluster.ca_data or (read_file(cluster.ca_file, "certificate authority") if cluster.ca_file else b"")


def material_of(cluster: Cluster, identity: Identity) -> Material:
    """The authority and certificate in use now: an exec plugin's, else the kubeconfig's, whose files are read.

    Every file is opened, also where it is not needed: kubectl refuses a kubeconfig that names an absent one.
    """
    ca_cert = authority_of(cluster)
    if identity.certificate or not (cluster.certificate_data or cluster.certificate_file):
        return Material(ca_cert, identity.certificate, identity.key)
    return Material(ca_cert, cluster.certificate_data or read_file(cluster.certificate_file, "client certificate"),
                    cluster.key_data or read_file(cluster.key_file, "client key"))


def cluster_door(cluster: Cluster, material: Material) -> Door:
    """A door to a cluster through its proxy."""
    context = None
    proxy = cluster.proxy_url or proxy_for(cluster.server, os.environ)
    if cluster.server.startswith("https:") or proxy.startswith("https:"):
        context = tls_context(material.ca_cert, insecure=cluster.insecure, system=not material.ca_cert,
                              source=cluster.ca_file or "certificate-authority-data of the kubeconfig",
                              host=cluster.server_name or urlsplit(cluster.server).hostname or "")
        if material.certificate:
            load_client_certificate(context, material.certificate, material.key, "the kubeconfig or its exec plugin")
    return open_door(cluster.server, context, proxy=proxy, server_name=cluster.server_name, size=POOL_SIZE)


def connect(cluster: Cluster) -> Api:
    """Prepare the connection to a cluster; nothing is sent yet. Raises ConfigError for unusable certificates."""
    material = material_of(cluster, Identity())
    login = Login(cluster_door(cluster, material), material, time.monotonic() + FILES_LIFE)
    return Api(cluster, login, urlsplit(cluster.server).path.rstrip("/"))


def _find_program(name: str) -> str:
    """The file of an exec plugin's command, from our own PATH; never from the current folder (Go's os/exec)."""
    folders = [""] if "/" in name else [part for part in os.environ.get("PATH", "").split(os.pathsep)
                                        if os.path.isabs(part)]
    for path in (os.path.join(folder, name) for folder in folders):
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def _exec_info(cluster: Cluster, plugin: ExecPlugin, interactive: bool) -> str:
    """KUBERNETES_EXEC_INFO: what an exec plugin is told (client-go pkg/apis/clientauthentication)."""
    spec: Document = {"interactive": interactive}
    if plugin.provide_cluster_info:
        told = {"server": cluster.server, "tls-server-name": cluster.server_name,
                "insecure-skip-tls-verify": cluster.insecure, "proxy-url": cluster.proxy_url,
                "certificate-authority-data": base64.b64encode(authority_of(cluster)).decode(),
                "disable-compression": cluster.disable_compression, "config": cluster.exec_config}
        spec["cluster"] = {name: value for name, value in told.items() if value or name == "config"}
    try:
        return json.dumps({"kind": "ExecCredential", "apiVersion": plugin.api_version, "spec": spec})
    except (ValueError, TypeError, RecursionError):
        raise ConfigError("the kubeconfig's extension for exec plugins cannot be written as JSON") from None


def run_exec_plugin(cluster: Cluster, plugin: ExecPlugin) -> Identity:
    """Run the kubeconfig's credential plugin -> who we are. Every failure is a ConfigError, never an anonymous call.

    Its stderr is ours; its stdin too, when it may ask and there is a terminal. What it printed never shows in an error.
    """
    hints = [one_line(plugin.install_hint, 1000)] if plugin.install_hint else []
    program = _find_program(plugin.command)
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


def read_token(cluster: Cluster, old: str) -> str:
    """The token of a token file, else the token in use, else the kubeconfig's own."""
    try:
        content = read_file(cluster.token_file, "token").decode("utf-8", "replace").strip()
        if not content:
            raise ConfigError(f"the token file {cluster.token_file} is empty")
        return header_value(content, f"the token in {cluster.token_file}")
    except ConfigError as error:
        if not old and not cluster.token:
            raise
        log.warning("%s; the token before stays in use", error)
        return old or cluster.token


def renew(api: Api) -> None:
    """Find out anew who we are, under the login's lock: token file, exec plugin, or what the kubeconfig says.

    `until` is set last: while it fails, every call fails, and none goes out as nobody.
    """
    cluster, login, until = api.cluster, api.login, math.inf
    if cluster.token_file:
        login.identity = Identity(token=read_token(cluster, login.identity.token))
        until = time.monotonic() + TOKEN_LIFE
    elif cluster.exec_plugin:
        login.identity = run_exec_plugin(cluster, cluster.exec_plugin)
        if login.identity.expires:
            until = time.monotonic() + (login.identity.expires - utc_now()).total_seconds() - EXEC_LEEWAY
        login.files_until = -math.inf
    else:
        login.identity = Identity(token=cluster.token)
    login.until = until


def renew_door(api: Api) -> None:
    """Read certificate files again, under the login's lock, as kubelet, kubeadm and cert-manager replace them in place.

    When something changed, the old connections are closed, for a connection goes on as whom it was opened for.
    """
    login = api.login
    try:
        material = material_of(api.cluster, login.identity)
        if material != login.material:
            old, login.door = login.door, cluster_door(api.cluster, material)
            login.material = material
            old.pool.close()
    except ConfigError as error:
        if api.cluster.exec_plugin:
            login.until = -math.inf
            raise
        log.warning("%s; the certificates before stay in use", error)
    login.files_until = time.monotonic() + FILES_LIFE


def identity_of(api: Api) -> Identity:
    """Who we are now; one caller renews, the others wait for it."""
    with api.login.lock:
        if time.monotonic() >= api.login.until:
            renew(api)
        if time.monotonic() >= api.login.files_until:
            renew_door(api)
        return api.login.identity


def distrust(api: Api, identity: Identity) -> bool:
    """The API no longer accepts an identity -> whether another one can be had, which the next call then uses."""
    with api.login.lock:
        if api.login.identity is identity:
            api.login.until = api.login.files_until = -math.inf
    return bool(api.cluster.token_file or api.cluster.exec_plugin or api.cluster.certificate_file)


# -- configuration


def in_cluster() -> Optional[Cluster]:
    """The cluster of the pod this runs in, by the environment and files every pod gets; None outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port or not os.path.exists(f"{SERVICE_ACCOUNT}/token"):
        return None
    return Cluster(server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
                   ca_file=f"{SERVICE_ACCOUNT}/ca.crt", token_file=f"{SERVICE_ACCOUNT}/token")


def _is_absent(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # to be opened, and refused with its own words
    return False


def absolute(path: str) -> str:
    """A path from the root on; Error when there is no current folder at which a relative one could start."""
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise Error(f"the current folder cannot be used: {error.strerror}", hints=[
            "it may have been deleted; change into another one"]) from error


def kubeconfig_paths(kubeconfig: str) -> List[str]:
    """The kubeconfig files that count, absolute: the one given, else those of KUBECONFIG, else ~/.kube/config.

    A KUBECONFIG that is set, even to nothing but separators, keeps ~/.kube/config out. Only absent files are skipped.
    """
    if kubeconfig:
        return [absolute(kubeconfig)]
    listed = os.environ.get("KUBECONFIG", "")
    default = os.path.join(os.environ.get("HOME", ""), ".kube", "config")
    names = listed.split(os.pathsep) if listed else [default]
    paths = list(dict.fromkeys(absolute(name) for name in names if name))
    there = [path for path in paths if os.path.lexists(path) or not _is_absent(path)]
    if listed and not there:
        log.warning("none of the files in KUBECONFIG exists: %s", one_line(listed))
    return there


def load_cluster(kubeconfig: str = "", context: str = "") -> Cluster:
    """The cluster to talk to: of the kubeconfigs (see kubeconfig_paths), else the pod's own.

    Raises ConfigError naming the file and what is wrong with it.
    """
    paths = kubeconfig_paths(kubeconfig)
    config = kubeconfig_from([
        (path, parse_yaml(read_file(path, "kubeconfig", KUBECONFIG_LIMIT), f"kubeconfig {path}")) for path in paths])
    cluster = cluster_from_kubeconfig(config, context) or in_cluster()
    if cluster is None and paths:
        raise ConfigError(f"kubeconfig {config.source} has no current-context", hints=["choose one with --context"])
    if cluster is None:
        raise ConfigError("no kubeconfig found", hints=[
            "name one with --kubeconfig or KUBECONFIG, or put it at ~/.kube/config; in a pod its own account is used"])
    return cluster


def read_velero_config() -> Document:
    """~/.config/velero/config.json of the velero CLI (namespace, cacert, colorized); empty when it is not there."""
    path = os.path.join(os.path.expanduser("~"), ".config", "velero", "config.json")
    try:
        config = json.loads(read_file(path, "velero's configuration")) if os.path.exists(path) else {}
    except (ConfigError, ValueError, RecursionError) as error:
        log.warning("ignoring %s: %s", path, error)
        return {}
    return config if isinstance(config, dict) else {}

# ====================================================================================================
# 10. Kubernetes verbs — one `send`, thin verbs over it, one event stream
#     get, get_wanted, list_pages, create, merge_patch, delete, open_watch, watch_events, interrupt, served_resources
#
#     urllib3 does transport and this section policy: its own retries and redirects are switched off on every call. What
#     may be sent twice is retried here, a POST never.
# ====================================================================================================

RETRY_STATUS = (429, 500, 502, 503, 504)
RETRIES = 3
RETRY_AFTER_CAP = 10.0                       # seconds
WARNINGS_KEPT = 100                          # texts; whatever an API server warns of beyond that is not shown
ANSWER_LIMIT = 48 << 20                      # bytes; a page of PAGE_SIZE objects of etcd's 1.5 MB fits in
WATCH_SECONDS = (300, 600)                   # client-go: a watch ends by itself after a random time in between
WATCH_SILENCE = 90.0                         # seconds without a byte; a quiet kind has no bookmarks either

Response = urllib3.response.BaseHTTPResponse if hasattr(urllib3.response, "BaseHTTPResponse") else urllib3.HTTPResponse


def api_error(status: int, body: bytes, method: str, path: str, watching: bool = False) -> ApiError:
    """A refusal of the API in its own words, when it found some, and what grants the missing right."""
    try:
        document = json.loads(body)
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


def retry_after_seconds(header: str, now: datetime) -> Optional[float]:
    """Retry-After, seconds or an HTTP date (RFC 9110 10.2.3) -> seconds from now; None when it says neither."""
    if re.fullmatch(r"\d{1,9}", header, re.ASCII):
        return float(header)
    try:
        instant = email.utils.parsedate_to_datetime(header)
        return max(0.0, (instant.astimezone(timezone.utc) - now).total_seconds())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def retry_wait(method: str, attempt: int, status: int, retry_after: Optional[float]) -> Optional[float]:
    """Seconds until a refused call may be sent again, None when it may not.

    429 means that nothing was done. After 5xx a POST may have been carried out, so it is not sent again; every other
    call of ours comes to the same when it is repeated, for patches and deletes carry the version they were decided on.
    """
    if attempt >= RETRIES or status not in RETRY_STATUS or (method == "POST" and status != 429):
        return None
    return min(RETRY_AFTER_CAP, backoff(attempt, 0.1, 2.0) if retry_after is None else retry_after)


def _tell_warnings(api: Api, headers: Any) -> None:
    """Show what the API server warns of (`Warning: 299 - "text"`), each text once."""
    for text in re.findall(r'299 \S+ "((?:[^"\\]|\\.)*)"', headers.get("Warning", "")):
        if text not in api.login.warned and len(api.login.warned) < WARNINGS_KEPT:
            api.login.warned.add(text)
            log.warning("warning of the cluster: %s", redact(one_line(text)))


def _read_refusal(response: Response) -> bytes:
    """The body of a refusal as far as it comes; the connection is not used again."""
    try:
        return response.read(ERROR_LIMIT)
    except urllib3.exceptions.HTTPError:
        return b""
    finally:
        response.close()


def _exchange(api: Api, identity: Identity, method: str, target: str, body: Optional[bytes], content_type: str,
              read: float) -> Response:
    # Several Impersonate-Group headers need a multi-dict; urllib3 1.26 has it in this private place only.
    headers = urllib3._collections.HTTPHeaderDict({"Accept": "application/json", "User-Agent": USER_AGENT})
    if identity.token:
        headers["Authorization"] = f"Bearer {identity.token}"
    elif api.cluster.username:
        secret = f"{api.cluster.username}:{api.cluster.password}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(secret).decode()}"
    for name, value in api.cluster.impersonate:
        headers.add(name, value)
    if body is not None:
        headers["Content-Type"] = content_type
    door = api.login.door
    return door.pool.urlopen(method, door.prefix + api.path + target, body=body, headers=headers, retries=False,
                             redirect=False, preload_content=False, assert_same_host=False,
                             timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, read), read=read))


def _attempt(api: Api, method: str, target: str, body: Optional[bytes], content_type: str, read: float
             ) -> Tuple[Response, Identity]:
    """One exchange; a connection that breaks is Unreachable."""
    identity = identity_of(api)
    try:
        return _exchange(api, identity, method, target, body, content_type, read), identity
    except urllib3.exceptions.HTTPError as error:
        raise unreachable(error, f"the cluster at {redact(api.cluster.server)}", api.cluster.server,
                          api.cluster.server_name,
                          "does certificate-authority in the kubeconfig belong to this cluster?") from error


def send(api: Api, method: str, path: str, *, query: Optional[Dict[str, str]] = None, body: Optional[Document] = None,
         content_type: str = "application/json", read: float = 0) -> Response:
    """One call to the API -> a response with status below 300, its body unread; the one place that tries again.

    read: seconds without a byte, 0 for the Api's own. Raises ApiError with the API's own message, Unreachable when
    there is no connection.
    """
    target = f"{path}?{urlencode(query)}" if query else path
    content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
    attempt, trusted = 0, True
    while True:
        attempt += 1
        try:
            response, identity = _attempt(api, method, target, content, content_type, read or api.patience)
        except Unreachable as error:
            if method != "POST" and attempt < RETRIES and isinstance(error.__cause__, urllib3.exceptions.ProtocolError):
                continue  # an idle connection that the other side had closed
            raise
        _tell_warnings(api, response.headers)
        if response.status < 300:
            return response
        refusal = _read_refusal(response)
        if response.status == 401 and trusted and distrust(api, identity):
            trusted = False
            continue
        wait = retry_wait(method, attempt, response.status,
                          retry_after_seconds(response.headers.get("Retry-After", ""), utc_now()))
        if wait is None:
            raise api_error(response.status, refusal, method, path, "watch" in (query or {}))
        time.sleep(wait)


def call(api: Api, method: str, path: str, **options: Any) -> Document:
    """`send`, and the JSON object that came back; Unreachable when it is none or broke off."""
    response = send(api, method, path, **options)
    try:
        content = response.read(ANSWER_LIMIT)
        document = json.loads(content)
    except (urllib3.exceptions.HTTPError, ValueError, RecursionError) as error:
        response.close()
        raise Unreachable(f"the cluster's answer to {method} {path} broke off or is no JSON") from error
    response.release_conn()
    if not isinstance(document, dict):
        raise Unreachable(f"the cluster's answer to {method} {path} is no JSON object")
    return document


def get(api: Api, resource: Resource, namespace: str, name: str) -> Document:
    """One object; ApiError with status 404 when there is none.

    Names come from documents that anybody may have written. One that no object can have is not asked for: a `/` in it
    would lead to another path, for API servers decode %2F.
    """
    if not is_object_name(name):
        raise ApiError(f'{resource.plural} "{one_line(name, 64)}" not found: no object can have this name', status=404,
                       api_reason="NotFound")
    return call(api, "GET", api_path(resource, namespace, name))


def get_wanted(api: Api, resource: Resource, namespace: str, name: str, reason: str, asked_by: str) -> Document:
    """`get` of what another object asks for; NotFound with a stable reason when there is none."""
    try:
        return get(api, resource, namespace, name)
    except ApiError as error:
        if error.status != 404:
            raise
        raise NotFound(f"{resource.kind} {namespace}/{one_line(name)} does not exist; {asked_by} asks for it",
                       reason=reason) from None


def list_pages(api: Api, resource: Resource, namespace: str, selector: str = "", size: int = PAGE_SIZE
               ) -> Iterator[Document]:
    """The pages of a list, at most `size` objects each; a continue token that expired is an ApiError (list anew)."""
    query = start = {"limit": str(size), **({"labelSelector": selector} if selector else {})}
    while True:
        page = call(api, "GET", api_path(resource, namespace), query=query)
        yield page
        token = _text(page, "metadata", "continue")
        if not token:
            return
        if token == query.get("continue"):
            raise Unreachable(f"the cluster's list of {resource.plural} does not end")
        query = {**start, "continue": token}


def create(api: Api, resource: Resource, document: Document) -> Document:
    """Create an object in the namespace it names -> the object as stored."""
    return call(api, "POST", api_path(resource, document["metadata"]["namespace"]), body=document)


def merge_patch(api: Api, key: Key, body: Document, subresource: str = "") -> Document:
    """RFC 7386 patch of an object or its status -> the object as stored; with a resourceVersion a conflict is 409."""
    return call(api, "PATCH", api_path(key.resource, key.namespace, key.name, subresource), body=body,
                content_type="application/merge-patch+json")


def delete(api: Api, key: Key, options: Optional[Document] = None) -> bool:
    """Delete an object -> whether it was there; `options` may hold preconditions, which fail as 409."""
    try:
        call(api, "DELETE", api_path(key.resource, key.namespace, key.name), body=options)
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


def served_resources(api: Api, group_version: str) -> List[str]:
    """The names discovery lists for a group, such as `downloadrequests/status`; empty when it has no such group."""
    try:
        document = call(api, "GET", f"/apis/{group_version}")
    except ApiError as error:
        if error.status != 404:
            raise
        return []
    entries = _at(document, "resources")
    return [_text(entry, "name") for entry in entries] if isinstance(entries, list) else []


def open_watch(api: Api, resource: Resource, namespace: str, version: str, *, seconds: float, name: str = "",
               silence: float = WATCH_SILENCE) -> Response:
    """Start a watch after `version`, of all objects or of the one named -> a response for watch_events.

    seconds: the API ends the watch after so long. silence: seconds without a byte after which it counts as broken.
    """
    query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true",
             "timeoutSeconds": str(max(1, math.ceil(seconds)))}
    if name:
        query["fieldSelector"] = f"metadata.name={name}"
    return send(api, "GET", api_path(resource, namespace), query=query, read=silence)


def watch_events(response: Response) -> Iterator[Tuple[str, Document]]:
    """The events of a watch as (type, object) until it ends, by itself or by silence; ERROR is raised as ApiError."""
    try:
        for line in lines(response.stream(65536, decode_content=False)):
            event = json.loads(line)
            document = _at(event, "object") or {}
            if _text(event, "type") == "ERROR":
                code = _at(document, "code")
                raise ApiError(f"the watch ended: {one_line(_text(document, 'message'))}",
                               status=code if isinstance(code, int) else 500, api_reason=_text(document, "reason"))
            yield _text(event, "type"), document
    except urllib3.exceptions.ReadTimeoutError:
        return
    except (urllib3.exceptions.HTTPError, OSError, ValueError, RecursionError) as error:
        raise Unreachable(f"the watch broke off: {one_line(error)}") from error
    finally:
        response.close()


def interrupt(response: Response) -> None:
    """End a response from another thread, a watch or a transfer: its reader sees the stream end."""
    connection = getattr(response, "connection", None) or getattr(response, "_connection", None)
    with contextlib.suppress(OSError):
        if connection is not None and connection.sock is not None:
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

# ====================================================================================================
# 11. Credentials — carry out the plan of section 7: Secret, environment, STS, files, container, instance metadata
#     fetch_credentials, Purse, keys_from_purse, plan_for, discover_region, find_location, read_secret_key
#
#     No host is asked but those that the chain defines: STS of the location's region, the container's endpoint, the
#     instance's metadata service (these two never through a proxy), and S3 itself for the region of a location that
#     names neither region nor s3Url.
# ====================================================================================================

STS_VERSION = "2011-06-15"
STS_TIMEOUT, CONTAINER_TIMEOUT, INSTANCE_TIMEOUT, PROCESS_TIMEOUT = 10.0, 2.0, 1.0, 60.0  # seconds
ASK_ATTEMPTS = 3
RENEWAL_PAUSE = timedelta(seconds=60)        # between tries to renew keys that still live
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded")  # which STS says with status 400
INSTANCE_TOKEN_LIFE = 300                    # seconds; aws-sdk-go-v2
NO_KEYS_CURE = ("name a Secret in spec.credential of the storage location, set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give a client --credentials-file")
INSTANCE_PATH = "/latest/meta-data/iam/security-credentials/"


class Reply(NamedTuple):
    """What a small exchange brought."""

    status: int
    body: bytes
    headers: Mapping[str, str]


def ask(method: str, url: str, headers: Dict[str, str], body: bytes = b"", *, timeout: float, proxy: str = ""
        ) -> Reply:
    """One small exchange with a service of AWS; Unreachable when it does not answer."""
    parts = urlsplit(url)
    context = tls_context() if "https:" in (url[:6], proxy[:6]) else None
    door = open_door(url, context, proxy=proxy)
    try:
        response = door.pool.urlopen(
            method, door.prefix + (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body=body or None,
            headers={"User-Agent": USER_AGENT, **headers}, retries=False, redirect=False, preload_content=False,
            timeout=urllib3.Timeout(connect=timeout, read=timeout))
        return Reply(response.status, response.read(ERROR_LIMIT), response.headers)
    except urllib3.exceptions.HTTPError as error:
        raise unreachable(error, f"the service at {parts.netloc.rpartition('@')[2]}", url) from error
    finally:
        door.pool.close()


def ask_again(method: str, url: str, headers: Callable[[], Dict[str, str]], body: Callable[[], bytes], *,
              timeout: float, proxy: str = "", passing: Tuple[str, ...] = ()) -> Tuple[int, bytes]:
    """`ask`, again after 429, 5xx, no answer, or an error code in `passing`, with new headers and body each time."""
    for attempt in range(1, ASK_ATTEMPTS + 1):
        try:
            status, answer, _ = ask(method, url, headers(), body(), timeout=timeout, proxy=proxy)
        except Unreachable:
            if attempt == ASK_ATTEMPTS:
                raise
            status, answer = 0, b""
        code = xml_fields(answer).get("Code", "")
        if attempt == ASK_ATTEMPTS or (status and status not in RETRY_STATUS and code not in passing):
            return status, answer
        time.sleep(backoff(attempt, 0.1, 1.0))
    raise AssertionError("unreachable")


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
        values = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _sts(region: str, parameters: Callable[[], Dict[str, str]], signer: Optional[Credentials], who: str) -> Credentials:
    """One call to the Security Token Service of a region -> temporary keys; signed when there is a signer."""
    partition = partition_of(region)
    url = os.environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{partition.suffix}"

    def body() -> bytes:
        return urlencode({**parameters(), "Version": STS_VERSION}).encode()

    def headers() -> Dict[str, str]:
        plain = {"content-type": "application/x-www-form-urlencoded; charset=utf-8", "host": urlsplit(url).netloc}
        return sign_headers("POST", "/", plain, body(), signer, region, "sts", utc_now()) if signer else plain

    status, answer = ask_again("POST", url, headers, body, timeout=STS_TIMEOUT, proxy=proxy_for(url, os.environ),
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
    """The keys that a program prints, within a minute; its stderr is shown when it fails, its stdout never."""
    try:
        done = subprocess.run(plan.command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=PROCESS_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        raise CredentialsError(f"{plan.profile}: credential_process cannot be run or takes longer than a minute"
                               ) from None
    if done.returncode:
        said = one_line(redact(done.stderr.decode("utf-8", "replace")))
        raise CredentialsError(f"{plan.profile}: credential_process failed with exit code {done.returncode}: {said}")
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

    status, answer = ask_again("GET", plan.url, headers, lambda: b"", timeout=CONTAINER_TIMEOUT)
    if status != 200:
        values = _json_object(answer)
        raise CredentialsError(f"the container's credential endpoint answered {status}: "
                          f"{one_line(redact(str(values.get('message') or values.get('code') or 'no reason')))}")
    return _keys_from(_json_object(answer), "Token", "the container's credential endpoint")


def _instance_token(plan: Instance) -> str:
    """The token of IMDS version 2, empty for version 1 where that is allowed and the service knows no other."""
    try:
        status, answer = ask_again("PUT", f"{plan.endpoint}/latest/api/token",
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
        status, answer = ask_again("GET", plan.endpoint + INSTANCE_PATH, lambda: headers, lambda: b"",
                                   timeout=INSTANCE_TIMEOUT)
        role = answer.decode("utf-8", "replace").split("\n")[0].strip()
        if status == 200 and role:
            status, answer = ask_again("GET", plan.endpoint + INSTANCE_PATH + quote(role, safe=""), lambda: headers,
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
    """The keys last had for a plan; one caller renews them, the others wait for it."""

    def __init__(self) -> None:
        self.credentials: Optional[Credentials] = None
        self.patient_until: Optional[datetime] = None  # after a renewal that failed, when to try the next
        self.lock = threading.Lock()


def keys_from_purse(purse: Purse, plan: Plan, region: str, now: datetime) -> Credentials:
    """Keys that are fresh, renewed if need be; when that fails the old ones serve as long as they live."""
    with purse.lock:
        old = purse.credentials
        alive = old is not None and (old.expires is None or old.expires > now)
        if old is not None and (is_fresh(old, now) or (alive and purse.patient_until and now < purse.patient_until)):
            return old
        try:
            purse.credentials = fetch_credentials(plan, region)
            return purse.credentials
        except Error as error:
            if old is None or not alive:
                raise
            purse.patient_until = now + RENEWAL_PAUSE
            log.warning("%s; the keys before serve until they end", error)
            return old


def _read_ini(path: str) -> Profiles:
    if not path or not os.path.exists(path):
        return {}
    return ini_sections(read_file(path, "credentials file").decode("utf-8", "replace"), f"credentials file {path}")


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
    return secret_value(get_wanted(api, SECRETS, namespace, name, "SecretNotFound", asked_by), name, key, asked_by)


def read_own_profiles(api: Optional[Api], namespace: str, location: Location) -> Tuple[Optional[Profiles], str]:
    """What a location's own Secret or credentialsFile holds -> with its name; None when it names neither."""
    if location.secret_name:
        source = f"key {location.secret_key!r} of Secret {location.secret_name!r}"
        content = read_secret_key(api, namespace, location.secret_name, location.secret_key,
                                  f"storage location {location.name!r}")
    elif location.credentials_file:
        source = f"credentials file {location.credentials_file}"
        content = read_file(location.credentials_file, "credentials file")
    else:
        return None, ""
    return own_profiles_from(content, source), source


def plan_for(api: Optional[Api], namespace: str, location: Location) -> Plan:
    """The plan for a location; files and Secret are read now, no service is asked yet."""
    own, source = read_own_profiles(api, namespace, location)
    shared, files = ({}, "") if own is not None else shared_profiles()
    return plan_credentials(location.profile, own, shared, source or files, os.environ)


def discover_region(address: Address) -> str:
    """The region that S3 itself names for a bucket, asked as velero-plugin-for-aws does: whatever the status, unsigned.

    Empty when it names none. Raises NotFound when there is no such bucket, Unreachable.
    """
    url = f"{address.scheme}://{address.host}{address.path or '/'}"
    answer = ask("HEAD", url, {}, timeout=STS_TIMEOUT, proxy=proxy_for(url, os.environ))
    if answer.status == 404:
        raise NotFound(f"S3 at {address.host} knows no such bucket", reason="BucketNotFound", hints=[
            "correct objectStorage.bucket, or set config.region outside of the standard partition"])
    return answer.headers.get("x-amz-bucket-region", "")


def _region_of(location: Location, profile: Mapping[str, str]) -> str:
    """The region to sign for: the location's own, else the one AWS names for its bucket, else the environment's."""
    region = location.region
    if not region and not location.s3_url and not location.public_url:
        with about(f"storage location {location.name!r} names no region"):
            region = discover_region(bucket_address(location._replace(region="us-east-1")))
    return (region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile.get("region")
            or "us-east-1")  # which stores that know no regions announce themselves


def _is_on(name: str, profile: Mapping[str, str], key: str) -> bool:
    return (os.environ.get(name) or profile.get(key) or "").lower() == "true"


def with_authority(api: Optional[Api], namespace: str, location: Location) -> Location:
    """A location with its certificate authority, where a Secret holds that."""
    if not location.ca_secret[0]:
        return location
    return location._replace(ca_cert=read_secret_key(
        api, namespace, *location.ca_secret, f"storage location {location.name!r}"))


def find_location(api: Optional[Api], namespace: str, document: Document) -> Location:
    """A storage location, completed by what environment, profile and Secret say: endpoint, region, hosts, authority."""
    location = location_from(document)
    profiles, _ = shared_profiles()
    profile = profiles.get(location.profile or os.environ.get("AWS_PROFILE") or "default", {})
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    location = location._replace(s3_url=location.s3_url or endpoint)
    return with_authority(api, namespace, location)._replace(
        region=_region_of(location, profile),
        dualstack=_is_on("AWS_USE_DUALSTACK_ENDPOINT", profile, "use_dualstack_endpoint"),
        fips=_is_on("AWS_USE_FIPS_ENDPOINT", profile, "use_fips_endpoint"))

# ====================================================================================================
# 12. Object store — fetch a URL or a file, go on after a break, inflate, verify, save
#     Trust, open_url, read_body, Transfer, Source, url_source, file_source, received, ahead, content, inflate, checked,
#     walked, check_target, save, save_object
#
#     A download is a chain of generators of bytes, each with one job:
#     received (a source, whatever breaks) -> proven (checksums) -> unframed -> inflate or checked (gzip) -> a writer.
#     `ahead` puts what comes before it into a thread of its own; receiving, proving, inflating and writing go on side
#     by side.
# ====================================================================================================

CHUNK = 508 * 1024                           # bytes at a time; handing over and writing larger ones is less work
AHEAD = 2                                    # chunks that wait between two threads; what a kill -9 may cost
SLOW = 0.1                                   # seconds after which a chunk that is not full goes on
IDLE_LIMIT = 30.0                            # seconds without a byte
REFUSAL_TIME = 2.0                           # seconds that the text of a refusal is read; it may have no end
FLUSH = 16 << 20                             # bytes after which the disk begins to write, so that fsync finds little
PIECE = 8 << 20                              # bytes that one of several connections fetches at a time
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # such as NFS without its lock daemon
RESTARTS = 3                                 # times that an object may change while it is downloaded
SKEW_WORTH = timedelta(seconds=60)           # of the store's clock, from which on it is signed by that clock


class Trust(NamedTuple):
    """Whom to trust behind a store's https URL: the system's authorities and `ca_cert` (PEM), or anybody."""

    ca_cert: bytes = b""
    insecure: bool = False
    source: str = "the certificate authority"  # named in errors

    def __repr__(self) -> str:
        return discreet(self, "ca_cert")


def _what_is(body: bytes) -> str:
    """What a body that should be something else looks like, for an error."""
    start = body[:512].lstrip().lower()
    if not body:
        return "nothing"
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page; does the URL lead to a console or a login?"
    if start.startswith((b"<?xml", b"<error")):
        return "an XML document"
    if b"\0" in start or start.startswith(b"\x1f\x8b"):
        return "binary data"
    return "text: " + redact(one_line(body[:200].decode("utf-8", "replace"), 80))


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


def clock_skew(headers: Mapping[str, str], now: datetime) -> timedelta:
    """How far a store's clock, by its Date header, is ahead of ours; zero when it does not say."""
    try:
        theirs = email.utils.parsedate_to_datetime(headers.get("Date") or "")
        return theirs.astimezone(timezone.utc) - now
    except (TypeError, ValueError, IndexError, OverflowError):
        return timedelta(0)


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


def store_refusal(status: int, body: bytes, headers: Mapping[str, str], where: str, url: str, now: datetime
                  ) -> StoreError:
    """A store's refusal -> one sentence with its cause, and the cure; nothing of the signature shows."""
    fields = xml_fields(body) if body.lstrip()[:1] == b"<" else {}
    code, message = fields.get("Code", ""), fields.get("Message", "")
    region = one_line(fields.get("Region") or headers.get("x-amz-bucket-region") or "", 64)
    meaning = _meaning(status, code, message, region) or Refusal("StoreError", "")
    skew = clock_skew(headers, now)
    detail = f"{code}: {message}" if code else _what_is(body)
    if code == "SignatureDoesNotMatch" and fields.get("CanonicalRequest"):
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


def _read_some(response: Response) -> bytes:
    """The text of a refusal as far as it comes soon."""
    timer = threading.Timer(REFUSAL_TIME, interrupt, [response])
    timer.daemon = True
    timer.start()
    try:
        return response.read(ERROR_LIMIT, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError):
        return b""
    finally:
        timer.cancel()


def _exchange_with_store(door: Door, url: str, headers: Optional[Dict[str, str]], idle: float) -> Response:
    parts = urlsplit(url)
    return door.pool.urlopen(
        "GET", door.prefix + parts.path + (f"?{parts.query}" if parts.query else ""), retries=False,
        redirect=False, preload_content=False, assert_same_host=False,
        headers={"Accept-Encoding": "identity", "User-Agent": USER_AGENT, **(headers or {})},
        timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, idle), read=idle))


@contextlib.contextmanager
def open_url(url: str, trust: Trust = Trust(), *, headers: Optional[Dict[str, str]] = None,
             wanted: Tuple[int, ...] = (200,), idle: float = IDLE_LIMIT) -> Iterator[Response]:
    """GET a pre-signed URL -> the response, its body unread; closed by the context.

    idle: seconds without a byte. Raises StoreError for any status that is not wanted, Unreachable without a connection;
    neither shows the URL's signature. Further headers need no signature, for only `host` is signed.
    """
    if not is_http_url(url):
        raise StoreError("the answer holds no http or https URL")
    parts = urlsplit(url)
    where = f"the store at {parts.netloc.rpartition('@')[2]}"
    proxy = proxy_for(url, os.environ)
    context = None
    if "https" in (parts.scheme, urlsplit(proxy).scheme):
        context = tls_context(trust.ca_cert, insecure=trust.insecure, source=trust.source, host=parts.hostname or "")
    door = open_door(url, context, proxy=proxy)
    try:
        try:
            response = _exchange_with_store(door, url, headers, idle)
        except urllib3.exceptions.HTTPError as error:
            failed = unreachable(error, where, url, hint="name the store's certificate authority with --cacert")
            failed.retry = not isinstance(error, urllib3.exceptions.SSLError)
            if isinstance(error, (urllib3.exceptions.ProtocolError, urllib3.exceptions.ReadTimeoutError)):
                failed.reason = "BrokenOff"
            raise failed from error
        with contextlib.closing(response):
            if response.status not in wanted:
                raise store_refusal(response.status, _read_some(response), response.headers, where, url, utc_now())
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


def verify_url(url: str, trust: Trust) -> None:
    """Prove a URL by fetching one byte with it; StoreError or Unreachable when it does not work.

    A signed GET cannot be tried by HEAD, for the method is signed; 416 is what an empty object answers.
    """
    with open_url(url, trust, headers={"Range": "bytes=0-0"}, wanted=(200, 206, 416)):
        return


def _read_more(response: Response, size: int) -> bytes:
    """What has come of a body, at most `size` bytes; the first of them is waited for, there is none at the end.

    `read` would wait for all, and lose those that came before a break. urllib3 before 2.1 has no `read1` of its own.
    """
    if hasattr(response, "read1"):
        return response.read1(size, decode_content=False)
    return response._fp.read1(size)


BREAKS = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)  # what ends the reading of a body


def _pieces(response: Response) -> Iterator[bytes]:
    """A body in chunks of CHUNK bytes, smaller ones where the line is slow; those that came before a break, too."""
    held: List[bytes] = []
    size, due = 0, time.monotonic() + SLOW
    try:
        while True:
            piece = _read_more(response, CHUNK - size)
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


# -- one object, whatever breaks


class Transfer:
    """A download as it goes on, for those who look on, and for those who end it from another thread."""

    def __init__(self) -> None:
        self.done = 0                        # bytes of the object in hand, those of an earlier run included
        self.kept = 0                        # bytes that an earlier run left
        self.head: Optional[Head] = None     # what the store says of the object, once a byte has come
        self.stop = threading.Event()
        self.failure: Optional[BaseException] = None  # why one of its threads ended it
        self.aborts: Set[Callable[[], None]] = set()


class Answer(NamedTuple):
    """An object opened at some byte; `abort` ends the chunks from another thread."""

    head: Head
    chunks: Iterator[bytes]
    abort: Callable[[], None]


class Source(NamedTuple):
    """Where an object can be had, again and again.

    `open(start, stop, etag)` gives its bytes from start to before stop (None: to the end) if it is still of this ETag.
    `renew(error)` gets another URL after a refusal.
    """

    open: Callable[[int, Optional[int], str], ContextManager[Answer]]
    renew: Callable[[StoreError], None]


def url_source(locate: Callable[[timedelta], Tuple[str, Trust]], *, idle: float = IDLE_LIMIT) -> Source:
    """The object behind a URL. `locate(skew)` signs or requests it, now and when it has expired; skew: how far the
    store's clock is ahead."""
    current = [locate(timedelta(0))]

    @contextlib.contextmanager
    def open_part(start: int, stop: Optional[int], etag: str) -> Iterator[Answer]:
        url, trust = current[0]
        headers = range_headers(start, stop, etag)
        wanted = (200, 206) if headers else (200,)
        with open_url(url, trust, headers=headers, wanted=wanted, idle=idle) as response:
            head = head_from(response.status, response.headers)
            yield Answer(head, read_body(response, idle, max(0, head.start)), lambda: interrupt(response))

    def renew_url(error: StoreError) -> None:
        current[0] = locate(error.skew if abs(error.skew) >= SKEW_WORTH else timedelta(0))

    return Source(open_part, renew_url)


def unreadable(path: str, error: OSError) -> StoreError:
    """The error for a file or folder of a copied bucket that cannot be read, as a store would refuse it."""
    return StoreError(f"cannot read {path}: {error.strerror}", status=403 if isinstance(error, PermissionError) else 0)


def file_source(path: str, hints: Iterable[str] = ()) -> Source:
    """The object in a file of a folder that holds a copied bucket; its ETag is made of size and time.

    hints: what to do when it is not there.
    """

    @contextlib.contextmanager
    def open_part(start: int, stop: Optional[int], etag: str) -> Iterator[Answer]:
        try:
            with open(path, "rb", buffering=0, opener=_open_now) as file:
                about_it = os.fstat(file.fileno())
                if not stat.S_ISREG(about_it.st_mode):
                    raise NotFound(f"{path} is no file", reason="ArtifactNotFound")
                head = Head(f'"{about_it.st_mtime_ns}-{about_it.st_size}"', about_it.st_size, (), start,
                            about_it.st_size if stop is None else min(stop, about_it.st_size), whole=False)
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

    return Source(open_part, renew_nothing)


def halt(transfer: Transfer) -> None:
    """End a transfer: its threads see their connections end, and leave."""
    transfer.stop.set()
    for abort in list(transfer.aborts):
        abort()


@contextlib.contextmanager
def _registered(transfer: Transfer, answer: Answer) -> Iterator[Iterator[bytes]]:
    """The chunks of an answer, for as long as `halt` may end them."""
    transfer.aborts.add(answer.abort)
    try:
        if not transfer.stop.is_set():
            yield answer.chunks
        else:
            yield iter(())
    finally:
        transfer.aborts.discard(answer.abort)


def _rest(source: Source, transfer: Transfer, held: Head, position: int, stop: Optional[int]
          ) -> Iterator[Tuple[Head, bytes]]:
    """One attempt: what comes of an object behind `position`, with what is said of it; raises when it is not all."""
    with source.open(max(0, position - 1), stop, held.etag) as answer, _registered(transfer, answer) as chunks:
        head = answer.head
        skip = bytes_to_skip(held, head, position, stop)
        came = 0
        for chunk in chunks:
            came += len(chunk)
            fresh, skip = chunk[skip:], max(0, skip - len(chunk))
            if fresh:
                yield head, fresh
        if skip or not (head.ends or came):
            raise Unreachable(f"the download broke off after {position} bytes", reason="BrokenOff")
        yield head, b""


def received(source: Source, transfer: Transfer, start: int = 0, stop: Optional[int] = None, etag: str = ""
             ) -> Iterator[bytes]:
    """The bytes of an object from `start` to before `stop`, whatever breaks meanwhile.

    Goes on at the byte reached, by Range and If-Match, with back-off, and with another URL when one has expired.
    etag: of the object that the bytes before `start` are of. Raises StoreError with reason ObjectChanged when it is
    another one by now, else what the store said last.
    """
    position, held, known, failures, waited, renewals = start, Head(etag=etag), False, 0, 0.0, 0
    while not transfer.stop.is_set():
        try:
            for head, chunk in _rest(source, transfer, held, position, stop):
                held, known = held if known else head, True
                transfer.head = transfer.head or held
                failures, waited, renewals = 0, 0.0, 0
                position += len(chunk)
                yield chunk
            return
        except (StoreError, Unreachable) as error:
            if isinstance(error, StoreError) and error.status in (412, 416):
                if error.status == 412 or position or stop is None:
                    raise changed_object(position) from error
                stop = None                  # an empty object has no range, and can be asked for as a whole
                continue
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


# -- whether it is the object


class _Crc32:
    """zlib's CRC32 as hashlib's objects are."""

    def __init__(self) -> None:
        self.value = 0

    def update(self, data: bytes) -> None:
        """Take more bytes."""
        self.value = zlib.crc32(data, self.value)

    def digest(self) -> bytes:
        """Four bytes, big end first, as S3 writes them."""
        return self.value.to_bytes(4, "big")


def _new_digest(name: str) -> Any:
    """An object that computes a digest; None for MD5 where the system forbids it."""
    try:
        return _Crc32() if name == "crc32" else hashlib.new(name)
    except ValueError:
        log.info("the ETag is not checked: this system has no %s", name)
        return None


def proven(chunks: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    """The same chunks; StoreError at their end when they have not the checksums that the store has for the object."""
    digests: Optional[List[Tuple[str, bytes, Any]]] = None
    for chunk in chunks:
        if digests is None:
            digests = [(name, wanted, _new_digest(name)) for name, wanted in transfer.head.checksums]
        for _, _, digest in digests:
            if digest:
                digest.update(chunk)
        yield chunk
    for name, wanted, digest in digests or ():
        if digest and digest.digest() != wanted:
            raise StoreError(f"the file is damaged: its {name} checksum is {digest.digest().hex()}, the store has "
                             f"{wanted.hex()}")


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


def _tar_size(header: bytes, extended: bytes) -> int:
    """The bytes of content behind a tar header; an extended header before it may say more than the field can hold."""
    match = re.search(rb"\d+ size=(\d{1,18})\n", extended)
    size = header[124:136]
    try:
        if sum(header[:148]) + 8 * 32 + sum(header[156:]) != int(header[148:156].strip(b"\0 "), 8):
            raise ValueError
        if match or size[0] < 128:
            return int(match.group(1)) if match else int(size.strip(b"\0 ") or b"0", 8)
        return int.from_bytes(size[1:], "big")  # GNU's way to write what takes more than 11 octal digits
    except ValueError:
        raise StoreError("the archive is damaged: a header in it is none") from None


def walked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same pieces, proven on the way to be a whole tar: each header sound, each content there, an end mark.

    The tarfile module takes a damaged header for the end, and keeps a record of each file.
    """
    rest, skip, ended, extended = b"", 0, False, b""
    for piece in pieces:
        taken = min(skip, len(piece))
        rest, skip = rest + piece[taken:], skip - taken
        while len(rest) >= 512 and not ended:
            header = rest[:512]
            if not header.strip(b"\0"):
                ended = True
                break
            size = _tar_size(header, extended)
            behind = 512 + (size + 511) // 512 * 512
            if header[156:157] == b"x" and size < 1 << 20:
                if len(rest) < behind:
                    break
                extended = rest[512:512 + size]
            else:
                extended = b""
            rest, skip = rest[behind:], max(0, behind - len(rest))
        rest = b"" if ended else rest
        yield piece
    if not ended:
        raise StoreError("the archive is cut short: it has no end")


def checked(chunks: Iterable[bytes], look: Callable[[Iterator[bytes]], Iterable[bytes]] = iter) -> Iterator[bytes]:
    """The same chunks, proven on the way to be whole gzip; StoreError as `inflate`. look: sees what is inside."""
    passed: deque = deque()

    def tap() -> Iterator[bytes]:
        for chunk in chunks:
            passed.append(chunk)
            yield chunk

    for _ in look(inflate(tap())):
        while passed:
            yield passed.popleft()
    yield from passed


def unwrapped(chunks: Iterator[bytes], transfer: Transfer) -> Iterator[bytes]:
    """The stored bytes, where a proxy on the way has compressed once more what is gzip already."""
    head, pieces = _peek(chunks, 1024)
    try:
        doubled = zlib.decompressobj(31).decompress(head)[:2] == b"\x1f\x8b"
    except zlib.error:
        doubled = False
    said = transfer.head is not None and transfer.head.encoded
    yield from inflate(pieces) if said and doubled else pieces


class Saved(NamedTuple):
    """A finished download: its bytes and their SHA-256 in hex, empty when it was not asked for."""

    size: int
    sha256: str


class Wish(NamedTuple):
    """How an object is to be had: inflated, walked as a tar, with this SHA-256 (None: not computed), over so many
    connections.

    `what` names it in errors, and in the record of a partial file, which is not continued with another object.
    """

    what: str
    gunzip: bool = False
    check: bool = False
    sha256: Optional[str] = None
    connections: int = 1


def hashed(chunks: Iterator[bytes], wish: Wish, digests: List[str]) -> Iterator[bytes]:
    """The same chunks, their SHA-256 in hex left in `digests`; StoreError at the end when another was demanded."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    digests.append(digest.hexdigest())
    if wish.sha256 and wish.sha256.lower() != digests[0]:
        raise StoreError(f"the sha256 is {digests[0]}, not {wish.sha256.lower()} as demanded")


def content(chunks: Iterator[bytes], transfer: Transfer, wish: Wish, digests: List[str]) -> Iterator[bytes]:
    """What a person wants of a stored object: as it is stored, or inflated, and proven either way. Close it."""
    with about(wish.what):
        stored = unframed(ahead(proven(ahead(unwrapped(chunks, transfer), transfer), transfer), transfer))
        wanted = inflate(stored) if wish.gunzip else checked(stored, walked if wish.check else iter)
        yield from ahead(wanted if wish.sha256 is None else hashed(wanted, wish, digests), transfer)


def write_all(writer: Any, chunk: bytes) -> None:
    """Write, again and again where a writer takes less than it is given."""
    view = memoryview(chunk)
    while view:
        count = writer.write(view)
        view = view[len(view) if count is None else count:]


# -- into a file


def is_special(path: str) -> bool:
    """Whether a path is there and neither file nor folder: a device, a FIFO, a terminal."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_target(path: str, *, force: bool) -> None:
    """Raise, before anything is asked of anybody, when a file cannot be put at this path."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise Error(f"cannot write {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise Error(f"cannot write {path}: it is a folder", hints=["name a file in it"])
    if os.path.lexists(path) and not force and not is_special(path):
        raise Error(f"{path} exists", hints=["choose another file with --output, or replace it with --force"])


def _give_name(temporary: str, path: str, *, force: bool) -> None:
    """Rename; without `force` link first, which fails on a file that came meanwhile, where there are links at all."""
    if not force:
        try:
            os.link(temporary, path)
            return
        except FileExistsError:
            check_target(path, force=False)
            raise
        except OSError:
            check_target(path, force=force)
    os.replace(temporary, path)


class Place(NamedTuple):
    """Where a download is put: the target, and beside it what is there while it comes, its record included."""

    path: str
    part: str
    record: str


def place_of(path: str) -> Place:
    """The names beside a target; a name that leaves no room for more is replaced by its hash."""
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    if len(os.fsencode(name)) > 200:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    stem = os.path.join(folder, f".{name}.velero-requests.")
    return Place(path, stem + "part", stem + "json")


def _clear_the_way(path: str) -> None:
    """Remove what is no plain file of our own from a partial file's name: a link would lead elsewhere."""
    with contextlib.suppress(FileNotFoundError):
        there = os.lstat(path)
        if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1 or there.st_uid != getattr(os, "geteuid", int)():
            os.unlink(path)


def _lock(file: Any, path: str) -> None:
    """Keep other downloads of a target out, where there are locks at all; BlockingIOError when one has it."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.info("another download of %s would not be noticed: %s", path, error.strerror)


def _open_part(place: Place) -> Any:
    """The partial file, locked and unbuffered; Error when another download has it."""
    while True:
        _clear_the_way(place.part)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        file = open(os.open(place.part, flags, 0o600), "r+b", buffering=0)
        try:
            _lock(file, place.path)
            if os.path.exists(place.part) and os.path.samestat(os.stat(place.part), os.fstat(file.fileno())):
                return file
            file.close()                     # it was finished and renamed between our two calls
        except BlockingIOError:
            file.close()
            raise Error(f"another download is writing {place.path}", hints=["wait for it, or end it"]) from None


def _read_record(place: Place) -> Any:
    """The record of a partial file; None when there is none, or anything else in its place."""
    _clear_the_way(place.record)
    try:
        return json.loads(read_file(place.record, "record", ERROR_LIMIT))
    except (ConfigError, ValueError, RecursionError):
        return None


def _write_record(place: Place, record: Document) -> None:
    descriptor = os.open(place.record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(record, file)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _sync_folder(path: str) -> None:
    """Put a new name on disk, where folders can be synced at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _new_file(path: str, *, force: bool) -> Iterator[Tuple[Place, Any]]:
    """A partial file to fill, which gets its name on disk when the context ends well.

    When it does not, the file and its record stay only if there is a record, and the error lets it be continued.
    """
    try:
        place = place_of(path)
        with _open_part(place) as file:
            try:
                yield place, file
                os.fsync(file.fileno())
                _give_name(place.part, place.path, force=force)
            except BaseException as error:
                empty = not os.fstat(file.fileno()).st_size
                if empty or not os.path.exists(place.record) or not may_be_continued(error):
                    _remove(place.part, place.record)
                    raise
                kept = f"what has come is kept in {place.part}, and the same command goes on from there"
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt(kept) from None
                if isinstance(error, Error):
                    error.hints += (kept,)
                raise
            _remove(place.part, place.record)
        _sync_folder(place.path)
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror or one_line(error)}") from error


@contextlib.contextmanager
def _special_file(path: str) -> Iterator[Tuple[None, Any]]:
    """A device or a FIFO to write to."""
    try:
        with open(path, "wb", buffering=0) as file:
            yield None, file
    except OSError as error:
        raise Error(f"cannot write {path}: {error.strerror}") from error


def save(path: str, chunks: Iterable[bytes], *, force: bool = False) -> int:
    """Write chunks into a new file -> its size in bytes; the file appears whole or not at all.

    They go to a partial file beside the target, which gets its name once everything is on disk. An existing file is
    replaced only with `force`, and only then; what a symbolic link points to is replaced, not the link. A device or a
    FIFO is written to as it is. Raises Error naming the file.
    """
    size = 0
    with _special_file(path) if is_special(path) else _new_file(path, force=force) as (place, file):
        if place:
            file.truncate(0)
        for chunk in chunks:
            write_all(file, chunk)
            size += len(chunk)
    return size


def counted(transfer: Transfer, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same chunks, with `transfer.done` keeping count of them."""
    transfer.done = 0
    for chunk in chunks:
        transfer.done += len(chunk)
        yield chunk


def write_object(source: Source, writer: Any, transfer: Transfer, wish: Wish) -> Saved:
    """Write an object into a writer, which stays open; StoreError when it is not whole, after its sound part."""
    size, digests = 0, []
    raw = counted(transfer, received(source, transfer))
    with contextlib.closing(content(raw, transfer, wish, digests)) as chunks:
        for chunk in chunks:
            write_all(writer, chunk)
            size += len(chunk)
    return Saved(size, "".join(digests))


def _read_range(path: str, start: int, stop: int) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            chunk = file.read(min(CHUNK, stop - start))
            if not chunk:
                raise StoreError(f"{path} has become shorter")
            start += len(chunk)
            yield chunk


def _behind(path: str, start: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The first `start` bytes from a file, then the chunks; the first of which is waited for, as it may be refused."""
    _, chunks = _peek(chunks, 1)
    yield from _read_range(path, 0, start)
    yield from chunks


def _fetch_piece(source: Source, transfer: Transfer, path: str, start: int, stop: int) -> Iterator[bytes]:
    """Put a piece of an object into its place in a file; yields nothing."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(start)
        for chunk in received(source, transfer, start, stop, transfer.head.etag):
            write_all(file, chunk[:stop - start])
            start += len(chunk)
            if start >= stop:                # a store that ignores Range sends more
                return
    yield from ()


def by_connections(source: Source, transfer: Transfer, path: str, start: int, etag: str, connections: int
                 ) -> Iterator[bytes]:
    """The bytes of an object from `start` on in order, fetched in pieces by several connections into a file.

    The first piece comes alone: it tells how large the object is, and whether the store knows Range at all.
    """
    position = start
    for chunk in received(source, transfer, start, start + PIECE, etag):
        position += len(chunk)
        yield chunk
    size = transfer.head.size or 0
    starts, running = iter(range(position, size, PIECE)), deque()
    for begin in itertools.chain(itertools.islice(starts, connections), starts, [size] * connections):
        if begin < size:
            stop = min(begin + PIECE, size)
            running.append((begin, stop, ahead(_fetch_piece(source, transfer, path, begin, stop), transfer)))
        if running and (len(running) >= connections or begin >= size):
            begin, stop, fetching = running.popleft()
            for _ in fetching:
                pass
            yield from _read_range(path, begin, stop)


def _flush(file: Any, start: int, stop: int) -> None:
    """Let the disk write a part of a file now, without waiting for it; where that can be said."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), start, stop - start, os.POSIX_FADV_DONTNEED)


def _fill(place: Place, file: Any, source: Source, transfer: Transfer, wish: Wish, start: int, etag: str) -> Saved:
    """Put an object into a partial file of which the first `start` bytes are there, and prove all of it."""
    position, recorded, flushed, digests = 0, -PIECE, start, []
    wide = wish.connections > 1 and not wish.gunzip
    transfer.kept = start
    raw = by_connections(source, transfer, place.part, start, etag, wish.connections) if wide else received(
        source, transfer, start, None, etag)
    raw = counted(transfer, _behind(place.part, start, raw) if start else raw)
    file.truncate(start)
    file.seek(start)
    try:
        with contextlib.closing(content(raw, transfer, wish, digests)) as chunks:
            for chunk in chunks:
                write_all(file, chunk[max(0, start - position):] if position < start else chunk)
                position += len(chunk)
                if position - flushed >= FLUSH:
                    _flush(file, flushed, position)
                    flushed = position
                if transfer.head.etag and not wish.gunzip and position - recorded >= PIECE and (wide or recorded < 0):
                    recorded = position
                    _write_record(place, {"object": wish.what, "etag": transfer.head.etag,
                                          **({"done": max(start, position)} if wide else {})})
    finally:
        file.truncate(max(start, position))
    return Saved(position, "".join(digests))


def save_object(path: str, source: Source, transfer: Transfer, wish: Wish, *, force: bool = False) -> Saved:
    """Download an object into a new file, as `save`; a partial file of an earlier run is continued when it fits.

    An object that changes meanwhile is begun anew. Raises StoreError when it is not whole, Unreachable when the line
    stays broken.
    """
    if is_special(path):
        with _special_file(path) as (_, file):
            return write_object(source, file, transfer, wish)
    with _new_file(path, force=force) as (place, file):
        start, etag = resume_point(_read_record(place), os.fstat(file.fileno()).st_size, wish.what)
        start, etag = (0, "") if wish.gunzip else (start, etag)
        for attempt in itertools.count(1):
            try:
                return _fill(place, file, source, transfer, wish, start, etag)
            except StoreError as error:
                kept = start > 0 and not may_be_continued(error) and error.reason != "ObjectChanged"
                if attempt > RESTARTS or not (kept or error.reason == "ObjectChanged"):
                    raise
                log.warning("%s; starting over", "what an earlier run left is damaged" if kept else error)
            start, etag = 0, ""
            transfer.head = transfer.failure = None
            transfer.stop.clear()
    raise AssertionError("unreachable")

# ====================================================================================================
# 13. Queue — dedupe, delays and back-off; the one class with behaviour
#     Queue
#
#     client-go's work queue (util/workqueue): a key that is added while it waits is there once; one that is added while
#     it is worked on comes again afterwards, so no two workers ever hold the same key. Delays are instants of the wall
#     clock, for they come from expirations; a waiting worker looks at the clock at least once a minute, so a clock that
#     is set does no lasting harm.
# ====================================================================================================

LONGEST_NAP = 60.0                           # seconds


class Queue:
    """Keys to look at, now or at an instant (seconds since the epoch, as `clock` gives them)."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._changed = threading.Condition()
        self._ready: deque = deque()                       # keys to hand out, in order
        self._dirty: set = set()                           # keys that wait, in _ready or behind their own work
        self._working: set = set()                         # keys that a worker holds
        self._due: Dict[Any, float] = {}                   # key -> the one instant that counts for it
        self._heap: List[Tuple[float, int, Any]] = []      # (instant, tie-break, key); outdated entries are skipped
        self._failures: Dict[Any, int] = {}                # key -> failures in a row
        self._counter = 0
        self._closed = False

    def add(self, key: Any) -> None:
        """Look at this key as soon as a worker is free; an instant said before still counts."""
        with self._changed:
            self._make_ready(key)

    def add_at(self, key: Any, instant: float) -> None:
        """Look at this key at an instant; of several the last one said counts."""
        with self._changed:
            if self._due.get(key) == instant:
                return
            self._due[key] = instant
            self._counter += 1
            heapq.heappush(self._heap, (instant, self._counter, key))
            self._changed.notify()

    def fail(self, key: Any) -> int:
        """Count one more failure -> how many in a row."""
        with self._changed:
            self._failures[key] = self._failures.get(key, 0) + 1
            return self._failures[key]

    def forget(self, key: Any) -> None:
        """The key's last look went well: its failures are gone."""
        with self._changed:
            self._failures.pop(key, None)

    def cancel(self, key: Any) -> None:
        """There is nothing to look at later: the key's instant is gone."""
        with self._changed:
            self._due.pop(key, None)

    def take(self, wait: bool = True) -> Any:
        """The next key, which is the caller's until `done`; None when closed or, without `wait`, when none is ready."""
        with self._changed:
            while not self._closed:
                nap = self._promote()
                if self._ready:
                    key = self._ready.popleft()
                    self._dirty.discard(key)
                    self._working.add(key)
                    self._changed.notify()  # this worker may be long; another one must know the next instant
                    return key
                if not wait:
                    return None
                self._changed.wait(nap)
            return None

    def done(self, key: Any) -> None:
        """The caller has finished with a key that it took."""
        with self._changed:
            self._working.discard(key)
            if key in self._dirty:
                self._ready.append(key)
                self._changed.notify()

    def wake(self) -> None:
        """Look at the clock again, for whoever turned it."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Hand out nothing more; every waiting `take` returns None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make_ready(self, key: Any) -> None:
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._changed.notify()

    def _promote(self) -> float:
        """Move the keys whose instant has come to the ready ones -> seconds until the next."""
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._due.get(self._heap[0][2]) != self._heap[0][0]):
            instant, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == instant:
                del self._due[key]
                self._make_ready(key)
        return min(self._heap[0][0] - now, LONGEST_NAP) if self._heap else LONGEST_NAP

# ====================================================================================================
# 14. Controller — feeders list and watch, workers gather, decide and apply, one place settles the queue
#     Controller, gather, write_status, apply, reconcile_download_request,
#     reconcile_server_status_request, look_at, settle, feed, run_once, run_controller
#
#     feed(resource) keeps the newest copy of every request and puts its key into the queue -> a worker takes the key:
#     newest copy -> decide -> if facts are needed gather them -> decide -> apply -> settle the queue. Work starts from
#     the newest copy and never from the event that woke it, so a lost, doubled or reordered event changes nothing.
# ====================================================================================================

WORKERS = 4
SHORT_WATCH = 10.0                           # seconds; a watch that ends sooner and brought nothing counts as a failure
SKEW_LIMIT = timedelta(minutes=5)            # S3 tolerates 15; from here on URLs are signed by the store's clock
FACTS_KEPT = 1000                            # entries; more backups than that at once are looked up again


class Controller:
    """The state of one running controller for one namespace; everything in it can be lost without harm.

    `now` is its only clock; dry_run makes it decide and change nothing, verify_urls fetch one byte with every URL
    before it is handed out.
    """

    def __init__(self, api: Api, namespace: str, server: Server, *, now: Callable[[], datetime] = utc_now,
                 dry_run: bool = False, verify_urls: bool = False) -> None:
        self.api, self.namespace, self.server, self.now = api, namespace, server, now
        self.dry_run, self.verify_urls = dry_run, verify_urls
        self.queue = Queue(lambda: now().timestamp())
        self.records: Dict[Key, Request] = {}             # newest copies, without their URLs
        self.versions: Dict[Resource, str] = {}           # where each watch goes on; absent: list anew
        self.status_paths: Dict[Resource, str] = {}       # "status" or "": what a status is written to
        self.facts: Dict[Any, Tuple[datetime, Any]] = {}  # what was looked up lately, and until when
        self.streams: Dict[Resource, Response] = {}       # open watches, to be interrupted
        self.told: Dict[Key, str] = {}                    # failures that the log has already
        self.once_told: Set[str] = set()                  # rights and oddities that the log has already
        self.purses: Dict[Any, Purse] = {}                # keys had, by kind of plan, plan and region
        self.skews: Dict[str, timedelta] = {}             # stores whose clock is far from ours
        self.stop = threading.Event()
        self.broken: Optional[OSError] = None             # why a dry run cannot print any more


def tell_once(controller: Controller, text: str) -> None:
    """Warn, unless the log has that sentence already."""
    if text not in controller.once_told:
        controller.once_told.add(text)
        log.warning("%s", text)


def tell_missing_right(controller: Controller, error: Error) -> None:
    """Say once which right is missing and which line of a Role grants it."""
    for hint in error.hints if isinstance(error, ApiError) and error.status == 403 else ():
        tell_once(controller, hint)


def recall(controller: Controller, name: Tuple[str, ...], read: Callable[[], Any]) -> Any:
    """What `read` gives, remembered for a few seconds after a success and never after a failure."""
    now = controller.now()
    until, value = controller.facts.get(name, (now, None))
    if until > now:
        return value
    value = read()
    if len(controller.facts) >= FACTS_KEPT:
        controller.facts.clear()
    controller.facts[name] = (now + timedelta(seconds=FACTS_LIFE), value)
    return value


def look_up(controller: Controller, resource: Resource, name: str, reason: str, asked_by: str) -> Document:
    """One object of the controller's namespace; NotFound with a stable reason when there is none."""
    if not name:
        raise NotFound(f"{asked_by} names no {resource.kind}", reason=reason)
    return get_wanted(controller.api, resource, controller.namespace, name, reason, asked_by)


def tell_oddities(controller: Controller, location: Location) -> None:
    """Say once what is odd about a storage location."""
    for warning in location.warnings:
        tell_once(controller, f"storage location {location.name!r}: {warning}")


def gather(controller: Controller, request: DownloadRequest) -> Facts:
    """Artifact -> backup, for a restore the one it came from -> storage location -> credentials.

    Raises InvalidRequest, NotFound or ConfigError with the reason that belongs on the request.
    """
    artifact = target_of(request.target_kind, request.target_name)
    backup = request.target_name
    if artifact.owner == RESTORES:
        backup = recall(controller, ("restore", backup), lambda: backup_name_from(look_up(
            controller, RESTORES, request.target_name, "RestoreNotFound", "the request")))
    asked_by = "the request" if artifact.owner == BACKUPS else f"restore {request.target_name!r}"
    name = recall(controller, ("backup", backup), lambda: storage_location_from(look_up(
        controller, BACKUPS, backup, "BackupNotFound", asked_by)))
    location = recall(controller, ("location", name), lambda: find_location(
        controller.api, controller.namespace,
        look_up(controller, LOCATIONS, name, "StorageLocationNotFound", f"backup {backup!r}")))
    tell_oddities(controller, location)
    plan = recall(controller, ("plan", name), lambda: plan_for(controller.api, controller.namespace, location))
    if len(controller.purses) > FACTS_KEPT:
        controller.purses.clear()
    purse = controller.purses.setdefault((type(plan), plan, location.region), Purse())
    credentials = keys_from_purse(purse, plan, location.region, controller.now())
    return Facts(location, credentials, controller.skews.get(name, timedelta(0)))


def status_path(controller: Controller, resource: Resource) -> str:
    """`status` when the live CRD has a status subresource, else empty; found out by discovery, never from a version.

    Velero 1.6 to 1.8 installed CRDs with it, 1.9 and later without, and CRDs are not upgraded with the server.
    """
    if resource not in controller.status_paths:
        served = served_resources(controller.api, f"{resource.group}/{resource.version}")
        controller.status_paths[resource] = "status" if f"{resource.plural}/status" in served else ""
    return controller.status_paths[resource]


def remember(controller: Controller, resource: Resource, document: Document) -> Tuple[Key, bool]:
    """Keep the newest copy of a request as a record, without its URL -> its key, and whether it is worth a look now."""
    record = REQUEST_FROM[resource](document)
    if record.key.namespace != controller.namespace:
        return record.key, False  # not ours, whoever sent it
    if isinstance(record, DownloadRequest):
        record = record._replace(url="")
    old = controller.records.get(record.key)
    controller.records[record.key] = record
    return record.key, is_news(old, record)


def write_status(controller: Controller, key: Key, body: Document) -> None:
    """Send a merge patch with status and perhaps annotations, in the way the live CRD takes it.

    With a status subresource each half goes its own way, the second on the version that the first made. When the answer
    shows that the CRD was replaced meanwhile, what is known of it is forgotten and the pass fails, to be tried again.
    """
    path = status_path(controller, key.resource)
    parts = [(path, body)]
    if path:
        parts = [(path, {"status": body["status"]})] if "status" in body else []
        if "annotations" in body["metadata"]:
            parts.append(("", {"metadata": {"annotations": body["metadata"]["annotations"]}}))
    version = body["metadata"]["resourceVersion"]
    try:
        for subresource, part in parts:
            part = {**part, "metadata": {**part.get("metadata", {}), "resourceVersion": version}}
            stored = merge_patch(controller.api, key, part, subresource)
            version = _text(stored, "metadata", "resourceVersion")
            written = _at(stored, "status") or {}
            if any(written.get(name) != value for name, value in part.get("status", {}).items()):
                raise Error(f"the API server dropped the status of {key}: its CRD was replaced")
            remember(controller, key.resource, stored)
    except Error as error:
        if not isinstance(error, ApiError) or error.status == 404:  # gone, or the CRD has no /status any more
            controller.status_paths.pop(key.resource, None)
        raise


def tell_event(controller: Controller, request: DownloadRequest, outcome: Outcome) -> None:
    """Leave a core/v1 Event when an outcome puts a new reason on a request; without the right to, do without."""
    annotations = (outcome.body or {}).get("metadata", {}).get("annotations", {})
    if not annotations.get(REASON):
        return
    try:
        create(controller.api, EVENTS,
               event_for(request, annotations[REASON], annotations[MESSAGE], controller.now()))
    except Error as error:
        tell_missing_right(controller, error)
        log.debug("no Event for %s: %s", request.key, error)


def apply(controller: Controller, request: Request, outcome: Outcome) -> None:
    """Carry out an outcome; a copy that was stale is an ApiError with status 409."""
    if controller.dry_run or outcome.verb == "leave":
        return
    if outcome.verb == "patch":
        write_status(controller, request.key, outcome.body or {})
    else:
        delete(controller.api, request.key, outcome.body)
    if isinstance(request, DownloadRequest):
        tell_event(controller, request, outcome)


def verified(controller: Controller, request: DownloadRequest, facts: Facts, outcome: Outcome) -> Outcome:
    """The outcome, once its URL has been tried; signed anew, once, when the store's clock is far from ours."""
    trust = trust_in(facts.location)
    try:
        verify_url(outcome.body["status"]["downloadURL"], trust)  # type: ignore[index]
        return outcome
    except StoreError as error:
        if abs(error.skew - facts.skew) < SKEW_LIMIT or error.reason not in (
                "ClockSkew", "UrlExpired", "StoreAccessDenied"):
            raise
        log.warning("the clock of storage location %r differs by %s; signing by that clock", facts.location.name,
                    format_duration(abs(error.skew.total_seconds())))
        controller.skews[facts.location.name] = error.skew
        again = answer_download(request, facts._replace(skew=error.skew), controller.now())
        verify_url(again.body["status"]["downloadURL"], trust)  # type: ignore[index]
        return again


def answer_or_refuse(controller: Controller, request: DownloadRequest) -> Outcome:
    """Look up what is needed and sign, or say why not."""
    try:
        facts = gather(controller, request)
        outcome = answer_download(request, facts, controller.now())
        return verified(controller, request, facts, outcome) if controller.verify_urls else outcome
    except Error as error:
        tell_missing_right(controller, error)
        return refuse_download(request, error, controller.now())
    except Exception as error:  # a bug, too, must leave a reason and an end on the request that brings it out
        log.debug("answering %s", request.key, exc_info=True)
        return refuse_download(request, Error(f"unexpected {type(error).__name__}"), controller.now())


def reconcile_download_request(controller: Controller, request: DownloadRequest) -> Outcome:
    """One look at a DownloadRequest -> what was decided and done."""
    outcome = triage_download(request, controller.now())
    if outcome is None:
        outcome = answer_or_refuse(controller, request)
    try:
        apply(controller, request, outcome)
    except ApiError as error:
        if error.status != 422:
            raise
        outcome = fall_back_download(request, outcome, controller.now())
        apply(controller, request, outcome)
    return outcome


def reconcile_server_status_request(controller: Controller, request: StatusRequest) -> Outcome:
    """One look at a ServerStatusRequest -> what was decided and done."""
    outcome = decide_status(request, controller.server, controller.now())
    apply(controller, request, outcome)
    return outcome


RECONCILE: Dict[Resource, Callable[[Controller, Any], Outcome]] = {
    DOWNLOAD_REQUESTS: reconcile_download_request, STATUS_REQUESTS: reconcile_server_status_request}

GONE = Outcome("leave", "it is gone")
CONFLICT = Outcome("leave", "it changed meanwhile", failed=True)


def refresh(controller: Controller, key: Key) -> Outcome:
    """Read an object whose copy turned out stale, for the event that would bring a newer one may have come already."""
    try:
        remember(controller, key.resource, get(controller.api, key.resource, key.namespace, key.name))
    except ApiError as error:
        if error.status == 404:
            controller.records.pop(key, None)
            return GONE
        return Outcome("leave", str(error), failed=True)
    except Error as error:
        return Outcome("leave", str(error), failed=True)
    return CONFLICT


def look_at(controller: Controller, key: Key) -> Outcome:
    """One look at a key; whatever goes wrong becomes an outcome, so no object can stop a worker."""
    request = controller.records.get(key)
    if request is None:
        return GONE
    try:
        return RECONCILE[key.resource](controller, request)
    except ApiError as error:
        tell_missing_right(controller, error)
        if error.status not in (404, 409):
            return Outcome("leave", str(error), failed=True)
        return refresh(controller, key)
    except Error as error:
        return Outcome("leave", str(error), failed=True)
    except Exception as error:  # the fence: a bug that one object triggers must not cost the others their answer
        log.debug("looking at %s", key, exc_info=True)
        return Outcome("leave", f"unexpected {type(error).__name__}: {one_line(error)}", failed=True)


def settle(controller: Controller, key: Key, outcome: Outcome) -> None:
    """Turn an outcome into the next look: failed -> back-off, but not beyond `again`; again -> then; else never."""
    instant = outcome.again.timestamp() if outcome.again else math.inf
    if controller.dry_run and outcome.verb != "leave":
        instant = math.inf
    elif outcome.failed:
        wait = backoff(controller.queue.fail(key), RETRY_BASE, RETRY_CAP)
        instant = min(instant, controller.now().timestamp() + wait)
    else:
        controller.queue.forget(key)
    if instant < math.inf:
        controller.queue.add_at(key, instant)
    else:
        controller.queue.cancel(key)


def tell_outcome(controller: Controller, key: Key, outcome: Outcome) -> None:
    """Log an outcome, a failure only when it is another than last time; a dry run prints it instead."""
    text = redact(f"{key}: {outcome.verb}: {outcome.why}")
    if controller.dry_run and outcome is not GONE:
        print(text, flush=True)
        return
    level = logging.DEBUG if outcome.verb == "leave" else logging.INFO
    if outcome.failed and outcome is not CONFLICT:
        level = logging.WARNING if controller.told.get(key) != outcome.why else logging.DEBUG
        controller.told[key] = outcome.why
    else:
        controller.told.pop(key, None)
    log.log(level, "%s", text)


def work(controller: Controller) -> None:
    """A worker: take a key, look at it, settle it, until the queue closes."""
    while True:
        key = controller.queue.take()
        if key is None:
            return
        outcome = look_at(controller, key)
        try:
            tell_outcome(controller, key, outcome)
        except OSError as error:
            controller.broken = error
            controller.stop.set()
            return
        settle(controller, key, outcome)
        controller.queue.done(key)


def relist(controller: Controller, resource: Resource) -> None:
    """List all requests of a kind anew: every one is looked at, one that is no longer there is dropped."""
    found = set()
    version = ""
    for page in list_pages(controller.api, resource, controller.namespace):
        if not isinstance(_at(page, "items"), list):
            raise Unreachable(f"the cluster's answer is no list of {resource.plural}")
        version = _text(page, "metadata", "resourceVersion")
        found.update(remember(controller, resource, document)[0] for document in page["items"])
    for key in list(controller.records):  # a copy, for the other feeder and the workers go on meanwhile
        if key.resource == resource and key not in found:
            controller.records.pop(key, None)
            controller.queue.add(key)
    for key in found:
        controller.queue.add(key)
    controller.versions[resource] = version


def follow(controller: Controller, resource: Resource) -> int:
    """Watch a kind until the watch ends -> how many events it brought."""
    count = 0
    response = open_watch(controller.api, resource, controller.namespace, controller.versions[resource],
                          seconds=random.uniform(*WATCH_SECONDS))
    controller.streams[resource] = response
    if controller.stop.is_set():
        interrupt(response)
    for kind, document in watch_events(response):
        count += 1
        if kind in ("ADDED", "MODIFIED"):
            key, news = remember(controller, resource, document)
            if news:
                controller.queue.add(key)
        elif kind == "DELETED":
            key = REQUEST_FROM[resource](document).key
            controller.records.pop(key, None)
            controller.queue.add(key)
        controller.versions[resource] = _text(document, "metadata", "resourceVersion")
    return count


def feed_once(controller: Controller, resource: Resource) -> int:
    """List if need be, then watch until the watch ends -> how many events came."""
    try:
        if resource not in controller.versions:
            relist(controller, resource)
        return follow(controller, resource)
    except (ApiError, Unreachable) as error:
        if isinstance(error, Unreachable) or is_version_expired(error) or error.status == 404:
            controller.versions.pop(resource, None)  # start from a list: who knows what the API server is now
            controller.status_paths.pop(resource, None)
        raise


def feed(controller: Controller, resource: Resource) -> None:
    """A feeder: list once, watch for ever, list anew when the API no longer has the version; never gives up.

    A watch that fails or ends at once is followed by a back-off, and no two are opened within a second; only a version
    that expired is answered by a list at once, the first time.
    """
    failures, told = 0, ""
    while not controller.stop.is_set():
        started, count, trouble, expired = time.monotonic(), 0, "the watch ended at once", False
        try:
            count = feed_once(controller, resource)
        except Error as error:
            tell_missing_right(controller, error)
            cures = error.hints if getattr(error, "status", 0) != 403 else ()
            trouble = "; ".join([str(error), *cures])
            expired = isinstance(error, ApiError) and is_version_expired(error)
        except Exception as error:  # the fence: without its feeder a controller would look healthy and answer nothing
            log.debug("feeding %s", resource.plural, exc_info=True)
            trouble = f"unexpected {type(error).__name__}: {one_line(error)}"
        lived = time.monotonic() - started
        failures = 0 if count or lived > SHORT_WATCH else failures + 1
        if expired and failures == 1:
            continue  # nothing is wrong, only the version is too old
        if failures and trouble != told and not controller.stop.is_set():
            log.warning("%s: %s; trying again", resource.plural, redact(trouble))
        told = trouble if failures else ""
        pause = min(WATCH_CAP, backoff(failures, WATCH_BASE, WATCH_CAP) * random.uniform(1, 2))
        controller.stop.wait(pause if failures else max(0.0, WATCH_BASE - lived))


def run_once(controller: Controller) -> None:
    """Look once at every request that is there, again where another writer came in between."""
    for _ in range(5):
        for resource in RECONCILE:
            relist(controller, resource)
        outcomes = []
        for key in iter(lambda: controller.queue.take(wait=False), None):
            outcomes.append(look_at(controller, key))
            tell_outcome(controller, key, outcomes[-1])
            controller.queue.done(key)
        if CONFLICT not in outcomes:
            return


def run_controller(controller: Controller) -> None:
    """Serve both kinds of request until `controller.stop` is set; every pass in hand is finished first.

    Raises OSError only for a dry run whose stdout is gone.
    """
    workers = [threading.Thread(target=work, args=(controller,), daemon=True) for _ in range(WORKERS)]
    feeders = [threading.Thread(target=feed, args=(controller, resource), daemon=True) for resource in RECONCILE]
    for thread in workers + feeders:
        thread.start()
    controller.stop.wait()
    controller.queue.close()
    for thread in workers:
        thread.join()
    for response in list(controller.streams.values()):
        interrupt(response)
    for thread in feeders:
        thread.join(timeout=1)
    controller.api.login.door.pool.close()
    if controller.broken:
        raise controller.broken

# ====================================================================================================
# 15. Client helpers — create a request, wait for the answer, tidy up; or do without a controller
#     find_documents, require_owner, get_download_url, requested_source, read_artifact, stream, read_screen, Bucket,
#     store_bucket, folder_bucket, read_backups, get_server_status
# ====================================================================================================

LIST_SIZE = 500                              # objects a page; Velero's own, not everybody's, are listed by a client
JSON_LIMIT = 32 << 20                        # bytes of a JSON artifact that a screen is made of
GIVE_UP_TIME = 1.0                           # seconds
TERMINATORS = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))


def get_owner(api: Api, owner: Resource, namespace: str, name: str) -> Document:
    """A backup or restore; NotFound when there is none."""
    try:
        return get(api, owner, namespace, name)
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
    for page in list_pages(api, resource, namespace, selector, LIST_SIZE):
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


HASTE = 5.0                                  # seconds


def hasty(api: Api) -> Api:
    """The same door for calls that only tidy up or explain: nobody should wait long for them."""
    return api._replace(patience=HASTE)


@contextlib.contextmanager
def interrupted_later() -> Iterator[None]:
    """Hold signals that end us back until the context ends, so that what is created can be deleted.

    A second one comes at once. Those that nobody has a handler for stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: List[int] = []
    handlers = ((number, signal.getsignal(number)) for number in (signal.SIGINT, *TERMINATORS))
    previous = {number: handler for number, handler in handlers if callable(handler)}

    def hold(number: int, frame: Any) -> None:
        if held:
            previous[number](number, frame)
        held.append(number)

    for number in previous:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in held:
        previous[number](number, None)


def create_request(api: Api, resource: Resource, document: Document) -> Document:
    """`create`, with a cure when the cluster's CRDs do not know what is asked for."""
    try:
        return create(api, resource, document)
    except ApiError as error:
        if error.status != 422:
            raise
        kind = _text(document, "spec", "target", "kind")
        raise Error(f"the cluster does not know {resource.kind}s of kind {kind}: {error}", reason="UnknownKind", hints=[
            "its CRDs are of another version of Velero than that kind; the kinds they know are named above"]) from None


def tidy_away(api: Api, key: Key) -> None:
    """Delete a request; without the right to it is left to the controller, which deletes it when it expires."""
    try:
        delete(hasty(api), key)
    except Error as error:
        log.info("%s stays until it expires: %s", key, error)


@contextlib.contextmanager
def created(api: Api, resource: Resource, document: Document) -> Iterator[Document]:
    """Create a request for as long as the context lasts; it is deleted in the end, also on failure and Ctrl-C."""
    key = None
    try:
        with interrupted_later():
            stored = create_request(api, resource, document)
            key = Key(resource, document["metadata"]["namespace"], _text(stored, "metadata", "name"))
        yield stored
    finally:
        if key:
            tidy_away(api, key)


def _deleted(key: Key) -> Error:
    return Error(f"{key} was deleted by somebody else before it was answered")


def _watch_until(api: Api, key: Key, version: str, is_done: Callable[[Document], bool], seconds: float
                 ) -> Optional[Document]:
    """Follow one object after a version -> its first copy that is done, None when the watch ended before."""
    deadline = time.monotonic() + seconds
    response = open_watch(api, key.resource, key.namespace, version, seconds=seconds, name=key.name, silence=seconds)
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
        return get(api, key.resource, key.namespace, key.name)
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
    request = download_request_from(document)
    if not is_answered(request) and request.reason:
        message = one_line(redact(request.message or request.reason))
        raise RequestFailed(f"{request.target_kind} of {request.target_name}: {message}",
                            reason=one_line(request.reason, 64))
    return is_answered(request)


def answered_url(api: Api, stored: Document, timeout: float) -> str:
    """The pre-signed URL that a DownloadRequest is answered with."""
    document = wait_for(api, DOWNLOAD_REQUESTS, stored, _has_url, seconds=timeout, poll=URL_POLL)
    return download_request_from(document).url


def get_download_url(api: Api, namespace: str, kind: str, name: str, *, timeout: float = 60.0) -> str:
    """A URL that anybody may GET for about ten minutes: a bearer token. Raises as `read_artifact`."""
    target_of(kind, name)
    with created(api, DOWNLOAD_REQUESTS, new_download_request(namespace, kind, name)) as stored:
        return answered_url(api, stored, timeout)


def read_location_name(api: Api, namespace: str, artifact: Artifact, name: str) -> str:
    """The storage location that an artifact lies in: that of its backup, for a restore's of the one it came from."""
    owner = get_owner(api, artifact.owner, namespace, name)
    backup = get_owner(api, BACKUPS, namespace, backup_name_from(owner)) if artifact.owner == RESTORES else owner
    return storage_location_from(backup)


def find_trust(api: Api, namespace: str, artifact: Artifact, name: str) -> Trust:
    """Whom to trust for a store: the location's own caCert, as the velero CLI does since 1.17; else only the system."""
    try:
        location = location_from(get(api, LOCATIONS, namespace, read_location_name(api, namespace, artifact, name)))
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
                created(api, DOWNLOAD_REQUESTS, new_download_request(namespace, kind, name)))
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
    transfer, wish = Transfer(), Wish(f"{kind} of {name}", target_of(kind, name).gunzip)
    with requested_source(api, namespace, kind, name, timeout=timeout, trust=trust, idle=idle) as source:
        yield from content(received(source, transfer), transfer, wish, [])


def stream(api: Api, namespace: str, kind: str, name: str, writer: BinaryIO, *, timeout: float = 60.0,
           trust: Optional[Trust] = None, idle: float = IDLE_LIMIT) -> None:
    """Write an artifact into a writer, which stays open; arguments and errors as `read_artifact`.

    What the writer raises comes out as it is.
    """
    how = {"timeout": timeout, "trust": trust, "idle": idle}
    with contextlib.closing(read_artifact(api, namespace, kind, name, **how)) as chunks:
        for chunk in chunks:
            write_all(writer, chunk)


# -- without a controller: the caller's own rights, and signatures made here


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

    def sign(key: str, skew: timedelta, more: Tuple[Tuple[str, str], ...] = ()) -> str:
        now = utc_now()
        credentials = keys_from_purse(purse, plan, location.region, now)
        address = object_address(location, key) if key else bucket_address(location)
        address = address._replace(path=address.path or "/")
        return presign(address, credentials, address.region, now + skew, URL_LIFE, address.service, more)

    def source(key: str, more: Tuple[Tuple[str, str], ...] = ()) -> Source:
        return url_source(lambda skew: (sign(key, skew, more), trust), idle=idle)

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

    return Bucket(location.prefix, source, lambda key: sign(key, timedelta(0)), folders)


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


def location_of_file(path: str) -> Location:
    """A storage location from a file of YAML or JSON: the whole object, or its spec alone."""
    document = parse_yaml(read_file(path, "storage location file", KUBECONFIG_LIMIT), f"storage location file {path}")
    if not isinstance(document, dict):
        raise ConfigError(f"storage location file {path} is no BackupStorageLocation and no spec of one")
    kind = _text(document, "kind") or LOCATIONS.kind
    if kind != LOCATIONS.kind:
        raise ConfigError(f"storage location file {path} holds an object of kind {one_line(kind, 64)!r}; expected is a "
                          "BackupStorageLocation, or its spec", hints=[
                              "`kubectl -n velero get backupstoragelocation NAME -o yaml` prints one"])
    document = document if "spec" in document else {"spec": document}
    document = {**document, "metadata": {"name": _text(document, "metadata", "name") or os.path.basename(path)}}
    if _at(document, "spec", "objectStorage", "caCertRef"):
        raise ConfigError(f"storage location file {path} names a Secret in caCertRef, and no cluster is asked",
                          hints=["put the certificate into objectStorage.caCert, or name a file with --cacert"])
    return find_location(None, "", document)


def location_of_artifact(api: Api, namespace: str, artifact: Artifact, name: str) -> Location:
    """The storage location that an artifact lies in, read with the caller's own rights."""
    location = read_location_name(api, namespace, artifact, name)
    try:
        document = get(api, LOCATIONS, namespace, location)
    except ApiError as error:
        if error.status != 404:
            raise
        raise NotFound(f"storage location {location!r} does not exist; {artifact.owner.kind.lower()} {name!r} is in it",
                       hints=["--location FILE says where the bucket is"]) from None
    return find_location(api, namespace, document)


def is_too_deep(value: Any) -> bool:
    """Whether JSON is nested deeper than what walks it later can follow; no Backup is."""
    level = [value]
    for _ in range(DEEPEST_YAML):
        level = [child for row in level if isinstance(row, (dict, list))
                 for child in (row.values() if isinstance(row, dict) else row)]
    return bool(level)


def read_backups(bucket: Bucket, where: str, troubles: List[Error]) -> List[Document]:
    """The Backups in a bucket, as Velero left them there in velero-backup.json; what is none is passed over.

    `where` names the bucket in errors; one that hides a single backup is left in `troubles`.
    """
    root = object_key(bucket.prefix, Artifact("", BACKUPS, "backups/"), "")
    backups = []
    for name in filter(is_object_name, bucket.folders(root)):
        what = f"backup {one_line(name, 64)!r} in {where}"
        try:
            document = json.loads(read_small(bucket.source(f"{root}{name}/velero-backup.json"), what))
            if is_too_deep(document):
                raise ValueError("it is nested too deeply")
        except (NotFound, ValueError, RecursionError, StoreError) as error:
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
    found = collected(chunks, JSON_LIMIT, ", too large to be shown", [
        f"`{PROGRAM} download NAME --kind KIND -o FILE` fetches it into a file"])
    try:
        return json.loads(found)
    except (ValueError, RecursionError):
        raise StoreError(f"it is not JSON but {_what_is(bytes(found[:512]))}") from None


def _read_json(reading: Reading, kind: str, name: str) -> Any:
    api, request = reading.api, new_download_request(reading.namespace, target_of(kind, name).kind, name)
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
    with created(api, STATUS_REQUESTS, new_status_request(namespace)) as stored:
        return wait_for(api, STATUS_REQUESTS, stored, lambda document: phase_from(document) == PROCESSED,
                        seconds=timeout, poll=STATUS_POLL)

# ====================================================================================================
# 16. Doctor — why nobody answered: checks, each one finding with its cure
#     explain_silence, check_server, check_location, server_image, version_of_image
# ====================================================================================================


def server_image(api: Api, namespace: str) -> str:
    """The image of Velero's Deployment, which tells the server's version when it does not; empty when unseen."""
    try:
        containers = _at(get(hasty(api), DEPLOYMENTS, namespace, "velero"), "spec", "template", "spec", "containers")
    except Error as error:
        log.info("the image of the Deployment cannot be seen: %s", error)
        return ""
    found = [container for container in containers if _text(container, "image")] if isinstance(containers, list) else []
    named = [container for container in found if _text(container, "name") == "velero"]
    return one_line(_text((named or found or [{}])[0], "image"))


def version_of_image(image: str) -> str:
    """The tag of an image, which is Velero's version; without one the image itself."""
    return image.partition("@")[0].rpartition("/")[2].partition(":")[2] or image


def check_server(api: Api, namespace: str) -> Optional[Finding]:
    """Whether Velero's Deployment is there and has a ready pod."""
    try:
        deployment = get(api, DEPLOYMENTS, namespace, "velero")
    except ApiError as error:
        if error.status != 404:
            raise
        return Finding(f"there is no Deployment velero in namespace {namespace}",
                       "is Velero in another namespace (-n)? or start `velero_requests.py controller`")
    if not _at(deployment, "status", "readyReplicas"):
        return Finding(f"the Deployment {namespace}/velero has no ready pod",
                       f"see `kubectl -n {namespace} get pods` and `kubectl -n {namespace} logs deployment/velero`")
    return None


def check_location(api: Api, namespace: str, artifact: Artifact, name: str) -> Optional[Finding]:
    """Whether the storage location behind an artifact exists and is available."""
    location = read_location_name(api, namespace, artifact, name)
    try:
        trouble = location_trouble_from(get(api, LOCATIONS, namespace, location))
    except ApiError as error:
        if error.status != 404:
            raise
        trouble = "it does not exist"
    if not trouble:
        return None
    return Finding(f"storage location {location!r} is not available: {trouble}",
                   f"see `kubectl -n {namespace} describe backupstoragelocation`")


def explain_silence(api: Api, namespace: str, artifact: Optional[Artifact] = None, name: str = "") -> List[Finding]:
    """Why a request got no answer, as far as the caller's rights let it be seen; at least one finding."""
    checks: List[Callable[[], Optional[Finding]]] = [lambda: check_server(hasty(api), namespace)]
    if artifact:
        checks.append(lambda: check_location(hasty(api), namespace, artifact, name))
    findings, blind = [], False
    for check in checks:
        try:
            findings.append(check())
        except Unreachable as error:
            return [Finding(str(error), "try again when the cluster is less busy")]
        except Error as error:
            log.info("a check could not be made: %s", error)
            blind = True
    found = [finding for finding in findings if finding]
    if not found and blind:
        found = [Finding("the reason cannot be seen with your rights", "-v says what could not be looked at")]
    return found or [Finding(
        "the server is there but did not take up the request",
        f"see its log (`kubectl -n {namespace} logs deployment/velero`) or wait longer with --timeout")]

# ====================================================================================================
# 17. Command line — the COMMANDS table, the parser made from it, main
#     cmd_*, COMMANDS, build_parser, main
# ====================================================================================================

Options = argparse.Namespace
LONGEST_WAIT = 366 * 86400.0                 # seconds; sockets take no more than a few years
SECOND_WAIT = 1.0                            # seconds for further screens once nobody has answered
PROGRESS_REDRAW, PROGRESS_PLAIN = 0.2, 10.0  # seconds between two tellings of progress, on a terminal and elsewhere


def find_namespace() -> str:
    """Velero's namespace when -n does not say: VELERO_NAMESPACE, else the velero CLI's configuration, else velero."""
    return os.environ.get("VELERO_NAMESPACE") or _text(read_velero_config(), "namespace") or DEFAULT_NAMESPACE


def api_of(options: Options) -> Api:
    """The cluster that the flags name."""
    return connect(load_cluster(options.kubeconfig, options.context))


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


def silence_hints(api: Api, namespace: str, artifact: Optional[Artifact] = None, name: str = "") -> List[str]:
    """Why nobody answered, one hint per finding."""
    return [f"{finding.text}: {finding.cure}" for finding in explain_silence(api, namespace, artifact, name)]


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


def return_memory() -> None:
    """Give back to the system what compiling this file needed, about 10 MiB that glibc would keep; elsewhere nothing.

    For commands that may run long; others do without the few milliseconds.
    """
    import ctypes  # pylint: disable=import-outside-toplevel
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or Windows
        ctypes.CDLL(None).malloc_trim(0)


def report(error: Error) -> int:
    """Say what went wrong, on stderr -> the exit code."""
    for line in [f"error: {error}", *(f"hint: {hint}" for hint in error.hints)]:
        print(one_line(redact(line), 4096), file=sys.stderr)
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
    missing = {resource.plural for resource in RECONCILE} - set(served_resources(api, "velero.io/v1"))
    if missing:
        log.warning("the cluster does not serve %s yet; `%s manifests | kubectl apply -f -` installs the CRDs",
                    " and ".join(sorted(missing)), PROGRAM)
    controller = Controller(api, namespace, server, dry_run=options.dry_run, verify_urls=options.verify_urls)
    if options.once:
        run_once(controller)
        return Exit.DONE
    stop_on_signals(controller)
    log.info("serving DownloadRequests and ServerStatusRequests of namespace %s at %s", namespace,
             redact(api.cluster.server))
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
        location = location._replace(secret_name="", credentials_file=options.credentials_file)
    try:
        plan = plan_for(api, options.namespace, location)
    except Error as error:
        if isinstance(error, ApiError) or (location.secret_name and api is None):
            error.hints += ("name a file with what the Secret holds: --credentials-file FILE",)
        raise
    return store_bucket(location, plan, trust, idle=options.idle_timeout)


def bucket_of_file(options: Options) -> Optional[Bucket]:
    """The bucket that --location says; None without it."""
    if not options.location:
        return None
    if os.path.isdir(options.location):
        return folder_bucket(options.location)
    return bucket_of(options, location_of_file(options.location), None)


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
    refusal = logs_refusal(artifact.owner, name, phase_from(document)) if options.is_log and document else ""
    if refusal:
        raise Error(refusal)
    return api


def way_to(options: Options, kind: str) -> Tuple[Optional[Api], Optional[Bucket]]:
    """The cluster in which to ask for an artifact, or without a controller the bucket it lies in."""
    direct, api = without_controller(options), owner_of(options, kind)
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


class Meter:
    """The progress of a transfer on stderr: one line redrawn on a terminal, else a plain line now and then."""

    def __init__(self, transfer: Transfer):
        self.transfer, self.began = transfer, time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.draw, daemon=True)

    def draw(self) -> None:
        """Tell how far it is, until it is over."""
        while not self.over.wait(PROGRESS_REDRAW if self.terminal else PROGRESS_PLAIN):
            done, head = self.transfer.done, self.transfer.head
            if not head:
                continue
            text = progress_text(done, head.size, max(0, done - self.transfer.kept), self.seconds())
            sys.stderr.write(f"\r{text[:self.columns() - 1]}\x1b[K" if self.terminal else text + "\n")
            sys.stderr.flush()

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
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextlib.contextmanager
def metered(options: Options, transfer: Transfer, output: str) -> Iterator[Callable[[Saved], None]]:
    """Show a transfer as it goes on, unless nobody wants to see it -> what tells its end."""
    if options.quiet or (output == "-" and (sys.stdout.isatty() or not sys.stderr.isatty())):
        yield lambda saved: None
        return
    meter = Meter(transfer)

    def tell_end(saved: Saved) -> None:
        if meter.terminal or meter.seconds() >= PROGRESS_PLAIN:
            ends.append(saved_text(saved.size, meter.seconds(), saved.sha256))

    ends: List[str] = []
    meter.thread.start()
    try:
        yield tell_end
    finally:
        meter.stop()
    print(*ends, sep="\n", end="\n" if ends else "", file=sys.stderr)


def damage_cure(options: Options, kind: str) -> str:
    """What to do about an artifact that is damaged."""
    if options.location and os.path.isdir(options.location):
        path = os.path.join(options.location, object_key("", TARGETS[kind], options.name))
        return f"copy {path} from the bucket again"
    return (f"fetch it again; if it is damaged then, the stored object is, and `curl -o FILE \"$({PROGRAM} download "
            f"{options.name} --kind {kind} --url-only)\"`, with the flags of this command, gets it as it is")


def fetch_to(options: Options, kind: str, output: str) -> None:
    """Download one artifact to a file, or to stdout for `-`."""
    transfer = Transfer()
    shown = "" if sys.stderr.isatty() and not options.quiet else None  # a hash that nobody sees costs a quarter more
    wish = Wish(f"{kind} of {options.name}", TARGETS[kind].gunzip, options.check, options.sha256 or shown,
                options.connections)
    try:
        with source_of(options, kind) as source, metered(options, transfer, output) as tell_end:
            if output == "-":
                tell_end(write_object(source, sys.stdout.buffer, transfer, wish))
            else:
                tell_end(save_object(output, source, transfer, wish, force=options.force))
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
        idle = [flag for flag, given in (
            ("--output", options.output), ("--force", options.force), ("--sha256", options.sha256),
            ("--check", options.check), ("--connections", options.connections > 1)) if given]
        if idle:
            raise UsageError(f"--url-only prints the URL and makes no file; leave out {' and '.join(idle)}")
        trust_of(options)
        write_text(url_of(options, kind) + "\n")
        return Exit.DONE
    output = options.output or (absolute(f"{name}-data.tar.gz") if kind == BACKUP_CONTENTS else "-")
    if options.check and kind != BACKUP_CONTENTS:
        raise UsageError(f"--check looks into {BACKUP_CONTENTS}, and {kind} is no archive")
    if output != "-":
        check_target(output, force=options.force)
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
    options.is_log, options.check, options.sha256, options.connections = True, False, None, 1
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
        reading = new_reading(api, options.namespace, resource, _text(document, "metadata", "name"), timeout, trust)
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
    """The versions of this file and of the server; without an answer, what the Deployment's image says of it."""
    if options.client_only:
        write_version(options, None)
        return Exit.DONE
    api = api_of(options)
    try:
        with explained(api, options.namespace):
            document = get_server_status(api, options.namespace, timeout=options.timeout)
    except TimedOut:
        image = server_image(api, options.namespace)
        if image:
            write_version(options, version_of_image(image), f"by the image {image} of the Deployment; nobody answered")
        raise
    write_version(options, server_version_from(document))
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


def sha256_argument(text: str) -> str:
    """A SHA-256 in hex on the command line."""
    if not re.fullmatch("[0-9a-fA-F]{64}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{one_line(text, 80)!r} is no sha256: 64 hex digits")
    return text


def connections_argument(text: str) -> int:
    """A number of connections on the command line."""
    if not re.fullmatch("[1-9][0-9]?", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{one_line(text, 64)!r} is no number of connections, from 1 to 99")
    return int(text)


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
DEFAULTS = {"is_log": False, "direct": False, "location": "", "credentials_file": "", "namespace": "",
            "kubeconfig": "", "context": "", "timeout": None, "colorized": None, "features": "", "verbose": 0}

BACKUP_NAME = argument("name", metavar="BACKUP", help="name of the backup")
RESTORE_NAME = argument("name", metavar="RESTORE", help="name of the restore")
TLS = (
    argument("--cacert", type=path_argument, metavar="FILE", help="certificate authority of the store (PEM)"),
    switch("--insecure-skip-tls-verify", help="trust any certificate of the store"),
)
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
    *TLS)
QUIET = argument("--quiet", action="store_true", help="say nothing of a success")
FETCH = (
    *TO_FILE,
    argument("--connections", type=connections_argument, metavar="N", default=1,
             help="fetch contents into the file over N connections, for stores where one is slow"),
    argument("--sha256", type=sha256_argument, metavar="HEX", help="what the file must have"),
    argument("--check", action="store_true", help="walk the contents as a tar archive, too"),
    QUIET)
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

DESCRIPTION = "Fetch logs and contents of Velero backups, and answer such requests in place of Velero's server."
EPILOG = """exit codes:
  0 done   1 any other failure   2 usage   3 does not exist   4 nobody answered in time
  5 not allowed   6 cluster or store unreachable   130 interrupted   141 the reader of the output left"""


class Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is an Error like any other."""

    def error(self, message: str) -> Any:
        raise UsageError(message, hints=[f"see `{self.prog} --help`"])


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


def spelled_out(argv: List[str]) -> List[str]:
    """velero's spellings -> those that argparse can tell apart.

    A switch without a value gets one, so that it takes none from what follows; `download backup NAME` is turned round.
    """
    rows = [*COMMON, *(row for command in COMMANDS for row in command.arguments)]
    switches = {flag for flags, keywords in rows if keywords.get("type") is bool_argument for flag in flags}
    end = argv.index("--") if "--" in argv else len(argv)
    words = [f"{word}=true" if word in switches else word for word in argv[:end]] + argv[end:]
    for place in range(len(words) - 2):
        if words[place:place + 2] == ["download", "backup"] and not words[place + 2].startswith("-"):
            words[place:place + 2] = ["backup", "download"]
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
    """Log lines without signatures and tokens, whatever was put into them; on a terminal over a line of progress."""

    def format(self, record: logging.LogRecord) -> str:
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


@contextlib.contextmanager
def tidy_when_terminated() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a client as Ctrl-C does: its request and its temporary file are removed first."""

    def leave(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    previous = [(number, signal.signal(number, leave)) for number in TERMINATORS  # but under nohup
                if signal.getsignal(number) != signal.SIG_IGN]
    try:
        yield
    finally:
        for number, handler in reversed(previous):
            signal.signal(number, handler)


def run(argv: Optional[List[str]]) -> int:
    """Parse and run one command -> its exit code."""
    with contextlib.suppress(AttributeError):  # a stand-in for stdout need not have it
        sys.stdout.reconfigure(errors="backslashreplace")  # names in any script, also where the locale has no UTF-8
    words = spelled_out(sys.argv[1:] if argv is None else argv)
    options, unknown = build_parser(words).parse_known_args(words)
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}",
                         hints=[f"see `{PROGRAM} {options.command.words} --help`"])
    for name, value in DEFAULTS.items():
        setattr(options, name, getattr(options, name, value))
    options.timeout = options.timeout or options.command.timeout
    configure_logging(options)
    options.namespace = options.namespace or find_namespace()
    options.completion_script = completion_script
    with tidy_when_terminated():
        code = options.command.run(options)
        sys.stdout.flush()
    return code


def main(argv: Optional[List[str]] = None) -> int:
    """The command line -> exit code; the only place that turns errors into exit codes.

    Files, sockets and the cluster turn their own OSErrors into an Error, so what is left comes from stdout.
    """
    sys.stderr = sys.stderr or open(os.devnull, "w")
    try:
        if sys.stdout is None:
            raise Error("stdout is closed", hints=["let it lead somewhere, such as >/dev/null"])
        return run(argv)
    except Error as error:
        log.debug("raised at:", exc_info=True)
        return report(error)
    except KeyboardInterrupt as error:
        print(one_line(f"interrupted; {error}" if error.args else "interrupted", 4096), file=sys.stderr)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # so that the interpreter's own flush at exit does not fail
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.BROKEN_PIPE
    except OSError as error:
        log.info("raised at:", exc_info=True)
        return report(Error(f"cannot write the output: {error.strerror or one_line(error)}"))
    except Exception as error:
        log.info("raised at:", exc_info=True)
        return report(Error(f"unexpected {type(error).__name__}: {one_line(error)}",
                            hints=["this is a bug; run again with -v and report what it says"]))


if __name__ == "__main__":
    sys.exit(main())
