"""Tests of velero_requests.py: `python3 test_velero_requests.py` with urllib3 and PyYAML, `make test` for all of them.

    python3 test_velero_requests.py TestQueue          one class; add .test_name for one test
    python3 test_velero_requests.py --demo             the main job on a machine without a cluster
    python3 test_velero_requests.py --bench            a table of speed and memory

No mocks and no patching: pure functions are given values, everything else talks to a server on loopback. FakeCluster and
FakeStore stand in for the Kubernetes API and an S3 store; the same contract tests run against a real kube-apiserver and a
real S3 server when KUBEBUILDER_ASSETS names the folder with etcd, kube-apiserver and versitygw. VELERO_CRDS names a folder
with Velero's own CRDs. No test sleeps: it waits for a condition with a deadline, or turns the clock.

Contents
    Laws and units       the file itself, every function above the waterline, the queue, inflate, save
    Servers              FakeCluster, FakeStore, RealCluster, RealStore, and the checks that keep the fakes true
    Contract             what the README promises, seen from outside, on fake and real servers alike
    Kubeconfig           as kubectl reads it, exec plugins, proxies, TLS
    Endurance            retries, identities that rotate, watches that survive, rights, a soak
    Object stores        locations, endpoints, signatures beside botocore's, sources of keys, what a store answers
    Demo and benchmark
"""
from __future__ import annotations

import __future__
import ast
import atexit
import base64
import contextlib
import dataclasses
import dis
import functools
import gzip
import hashlib
import hmac
import http.client
import io
import itertools
import json
import logging
import os
import posixpath
import queue
import random
import re
import select
import shlex
import shutil
import signal
import site
import socket
import ssl
import stat
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import unittest
import uuid
import warnings
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from types import CodeType
from typing import (
    Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, TYPE_CHECKING, Tuple, Union)
from urllib.parse import parse_qs, parse_qsl, quote, unquote, unquote_to_bytes, urlencode, urlsplit

import urllib3
import yaml

import velero_requests


try:
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials
    import botocore.session
    HAS_BOTOCORE = True
except ImportError:
    HAS_BOTOCORE = False

try:
    import hypothesis
    from hypothesis import strategies
    HAS_HYPOTHESIS = True
except ImportError:
    HAS_HYPOTHESIS = False

NO_HYPOTHESIS = "hypothesis is not installed, so these properties were not tried on random values"
NO_BOTOCORE = "botocore is not installed, so the signatures were not compared with its own"
NO_CRDS = "VELERO_CRDS names no folder, so the manifests were not compared with Velero's own"

vr = velero_requests
NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=timezone.utc)
FAR_OFF = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
LONG_AGO = datetime(1, 1, 1, tzinfo=timezone.utc)


def after(**delta: float) -> datetime:
    """NOW plus a timedelta."""
    return NOW + timedelta(**delta)


def a_key(resource: Any = vr.DOWNLOAD_REQUESTS, name: str = "nightly-x7k2p") -> Any:
    """A key of an object in namespace velero."""
    return vr.Key(resource, "velero", name)


def a_download(**over: Any) -> Any:
    """A DownloadRequest record, unanswered and one second old unless said otherwise."""
    fields: Dict[str, Any] = dict(
        key=a_key(), uid="uid-1", version="41", created=after(seconds=-1), deleting=False,
        target_kind="BackupLog",
        target_name="nightly", phase="", url="", expiration=None, reason="", message="")
    return vr.DownloadRequest(**{**fields, **over})


def a_status(**over: Any) -> Any:
    """A ServerStatusRequest record, unanswered and one second old unless said otherwise."""
    fields: Dict[str, Any] = dict(key=a_key(vr.STATUS_REQUESTS, "velero-cli-5tn8q"), uid="uid-2",
                                  version="42",
                                  created=after(seconds=-1), deleting=False, phase="", processed=None)
    return vr.StatusRequest(**{**fields, **over})


def a_location(**over: Any) -> Any:
    """A storage location on AWS in eu-west-1 unless said otherwise."""
    return vr.Location(**{**dict(name="default", bucket="bkt", region="eu-west-1"), **over})


def a_location_document(config: Any = None, **spec: Any) -> Dict[str, Any]:
    """A BackupStorageLocation document; `spec` replaces fields of its spec."""
    return {"metadata": {"name": "default", "namespace": "velero"}, "spec": {
        "provider": "aws", "objectStorage": {"bucket": "bkt"}, "config": config or {"region": "eu-west-1"},
        **spec}}


def some_credentials(**over: Any) -> Any:
    """The key pair of the AWS documentation."""
    return vr.Credentials(**{**dict(access_key="AKIAIOSFODNN7EXAMPLE",
                                    secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), **over})


def some_facts(expires: Optional[datetime] = None, **over: Any) -> Any:
    """A location and credentials, which expire when `expires` says so."""
    return vr.Facts(a_location(**over), some_credentials(expires=expires))


def a_secret(text: str, key: str = "cloud") -> Dict[str, Any]:
    """A Secret document with one key."""
    return {"metadata": {"name": "keys"}, "data": {key: base64.b64encode(text.encode()).decode()}}


# Values that a stranger may put where text is expected.
HOSTILE: Tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, "", " ", "\0", "x" * 10000, "../../etc", "\n\x1b[2J", "\ud800", [], [[]],
    [None],
    {}, {"a": {"b": []}}, {"": ""}, [{"name": 5}], "9999-12-31T23:59:59-12:00")

# Names that no backup or restore can have.
BAD_NAMES: Tuple[str, ...] = (
    "", ".", "..", "/", "a/b", "../x", "a/../../x", "a\\b", "a..b", ".a", "a.", "-a", "a-", "a.-b", "a-.b",
    "A", "a_b", "a b", " a", "a ", "a\n", "a\0b", "\x1b[2J", "a\u2028b", "é", "a\u0301", "%2e%2e", "a%2Fb",
    "{name}", "a?b", "a#b",
    "a:b", "a" * 254, "x" * 10000, "\ud800", "１")
GOOD_NAMES: Tuple[str, ...] = ("a", "0", "nightly", "nightly-20240501", "a.b.c", "1.2-3.x", "a--b", "a" * 253)

if HAS_HYPOTHESIS:
    scalars = (strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
               | strategies.text() | strategies.sampled_from(("New", "Processed", "Failed"))
               | strategies.datetimes().map(lambda instant: instant.isoformat() + "Z"))
    json_values = strategies.recursive(
        scalars, lambda inner: strategies.lists(inner, max_size=4)
        | strategies.dictionaries(strategies.text(max_size=8), inner, max_size=4), max_leaves=12)


def shaped(**fields: Any) -> Any:
    """A hypothesis strategy: an object with these fields, any of which may be missing or of another type."""
    return strategies.fixed_dictionaries({}, optional={
        name: json_values | value for name, value in fields.items()})


def hostile_documents() -> Any:
    """A hypothesis strategy: documents shaped like the two request kinds, wrong in any place."""
    metadata = shaped(name=scalars, namespace=scalars, uid=scalars, resourceVersion=scalars,
                      creationTimestamp=scalars, deletionTimestamp=scalars,
                      annotations=shaped(**{vr.REASON: scalars, vr.MESSAGE: scalars}))
    status = shaped(phase=scalars, downloadURL=scalars, expiration=scalars, processedTimestamp=scalars,
                    serverVersion=scalars, plugins=strategies.lists(json_values, max_size=3), message=scalars)
    return json_values | shaped(metadata=metadata, spec=shaped(target=shaped(kind=scalars, name=scalars)),
                                status=status)


# ------------------------------------------------------------------------------------------------------------
# The laws of the file
# ------------------------------------------------------------------------------------------------------------

MODULE = os.path.abspath(velero_requests.__file__)
with open(MODULE, encoding="utf-8") as module_file:
    SOURCE = module_file.read()
STATEMENTS = ast.parse(SOURCE).body

# What arithmetic on values may import; everything else is the world.
PURE = {"base64", "binascii", "configparser", "contextlib", "dataclass", "dataclasses", "datetime", "deque", "difflib",
        "enum", "field", "functools", "hashlib", "hmac", "itertools", "json", "math", "posixpath", "quote",
        "re", "timedelta",
        "timezone", "urlencode", "urlsplit", "yaml", "Any", "BinaryIO", "Callable", "Dict", "Iterable",
        "Iterator", "List", "NamedTuple", "Optional", "Tuple", "Union", "unquote", "parse_qsl", "urljoin",
        "struct", "ipaddress",
        "textwrap", "string", "collections", "Set", "Mapping", "Sequence"}
WORLDLY_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "log", "breakpoint"}
WORLDLY_ATTRIBUTES = {"now", "today", "utcnow", "localtime", "gmtime", "urandom", "environ", "getenv",
                      "getLogger", "sleep", "monotonic", "uuid4",
                      "token_hex"}


def code_of(statement: ast.stmt) -> CodeType:
    """One module-level statement compiled by itself, annotations as text: scopes are the compiler's own."""
    module = ast.Module([statement], [])
    return compile(module, MODULE, "exec", __future__.annotations.compiler_flag, dont_inherit=True)


LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def mentioned(code: CodeType) -> Iterator[str]:
    """The module-level and built-in names that a code object and those in it read."""
    stored = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_NAME"}
    for step in dis.get_instructions(code):
        if step.opname in LOADS and step.argval not in stored:
            yield step.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from mentioned(constant)


def bound(statement: ast.stmt) -> Set[str]:
    """The names that a module-level statement binds."""
    return {step.argval for step in dis.get_instructions(code_of(statement)) if step.opname == "STORE_NAME"}


def line_of(pattern: str) -> int:
    """The number of the one line of the source that begins so."""
    found = [number for number, line in enumerate(SOURCE.splitlines(), 1) if re.match(pattern, line)]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} lines of {MODULE} match {pattern!r}")
    return found[0]


def above_the_waterline() -> List[ast.stmt]:
    """The statements between the banner of section 1 and the waterline."""
    first, last = line_of(r"# 1\. "), line_of(r"# The waterline\b")
    return [statement for statement in STATEMENTS if first < statement.lineno < last]


class Banner(NamedTuple):
    """A section of the source: number, title, and the public names that its banner lists."""

    number: str
    title: str
    names: List[str]
    line: int


def banners() -> List[Banner]:
    """The banners of all sections, in order."""
    found = []
    lines = SOURCE.splitlines()
    for index, line in enumerate(lines):
        match = re.match(r"# (\d+)\. (.+?) — ", line)
        if match:
            listed = itertools.takewhile(lambda text: re.match(r"# {3,}\w", text), lines[index + 1:])
            names = [name for text in listed for name in re.findall(r"\b\w+\b(?!\*)", text[1:])]
            found.append(Banner(match[1], match[2], names, index + 1))
    return found


class TestLawsOfTheFile(unittest.TestCase):
    """Tests for `velero_requests.py` as a text."""

    def test_no_name_is_used_before_it_is_defined(self) -> None:
        """No module-level statement, function bodies included, mentions a name that a later one binds."""
        first: Dict[str, int] = {}
        for index, statement in enumerate(STATEMENTS):
            for name in bound(statement):
                first.setdefault(name, index)
        for index, statement in enumerate(STATEMENTS):
            later = {name for name in mentioned(code_of(statement)) if first.get(name, -1) > index}
            with self.subTest(line=statement.lineno):
                self.assertFalse(later, "a name that is defined later")

    def test_the_law_finds_a_forward_reference(self) -> None:
        """The check sees a global read in a nested function, and no local, attribute or annotation."""
        source = "def f(a: Later) -> Later:\n    b = a.x(y=1)\n    def g():\n        return h(a, b)"
        self.assertEqual({"h"}, set(mentioned(code_of(ast.parse(source).body[0]))))

    def test_only_pure_modules_are_used_above_the_waterline(self) -> None:
        """Above the waterline only imports that know no world are read."""
        imports = [node for node in STATEMENTS if isinstance(node, (ast.Import, ast.ImportFrom, ast.Try))]
        imported = {name for node in imports for name in bound(node)}
        for statement in above_the_waterline():
            used = set(mentioned(code_of(statement)))
            self.assertFalse(used & imported - PURE, f"line {statement.lineno}")
            self.assertFalse(used & WORLDLY_NAMES, f"line {statement.lineno}")

    def test_no_clock_is_asked_above_the_waterline(self) -> None:
        """Above the waterline no attribute that asks a clock, the environment or chance is read."""
        for statement in above_the_waterline():
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute):
                    self.assertNotIn(node.attr, WORLDLY_ATTRIBUTES, f"line {node.lineno}")

    def test_nothing_above_the_waterline_mentions_what_is_below(self) -> None:
        """No statement above the waterline reads a name that is bound below it."""
        waterline = line_of(r"# The waterline\b")
        below = {name for node in STATEMENTS if node.lineno > waterline for name in bound(node)}
        for statement in above_the_waterline():
            self.assertFalse(below & set(mentioned(code_of(statement))), f"line {statement.lineno}")

    def test_contents_equal_the_banners(self) -> None:
        """The contents in the module's docstring are the banners, in order, numbered from 1."""
        contents = re.findall(r"^ {4,}(\d+)  (\S.*?) {2,}\S", velero_requests.__doc__ or "", re.MULTILINE)
        self.assertEqual([(banner.number, banner.title) for banner in banners()], contents)
        self.assertEqual([str(number) for number in range(1, 18)], [number for number, _ in contents])

    def test_the_contents_show_where_the_waterline_is(self) -> None:
        """The waterline stands between sections 8 and 9, in the docstring and in the source."""
        order = re.findall(r"^ +(\d+|===)  ", velero_requests.__doc__ or "", re.MULTILINE)
        self.assertEqual(["8", "===", "9"], order[7:10])
        self.assertTrue(line_of(r"# 8\. ") < line_of(r"# The waterline\b") < line_of(r"# 9\. "))

    def test_banners_list_what_their_section_defines(self) -> None:
        """Every name in a banner is defined between it and the next one."""
        sections = banners()
        ends = [banner.line for banner in sections[1:]] + [len(SOURCE.splitlines()) + 1]
        for banner, end in zip(sections, ends):
            inside = {name for node in STATEMENTS if banner.line < node.lineno < end for name in bound(node)}
            self.assertFalse(set(banner.names) - inside, f"banner of section {banner.number}")
            self.assertTrue(banner.names, f"banner of section {banner.number} lists no names")

    def test_every_public_function_and_class_says_what_it_is(self) -> None:
        """Public functions and classes of the module have docstrings."""
        for node in STATEMENTS:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                self.assertTrue(ast.get_docstring(node), f"{node.name} in line {node.lineno}")

    def test_inline_metadata_names_the_imports(self) -> None:
        """The PEP 723 block names exactly the imported packages that are not of the standard library."""
        standard = getattr(sys, "stdlib_module_names", None)
        if standard is None:
            self.skipTest("this Python does not know the names of its own library")
        nodes = list(ast.walk(ast.parse(SOURCE)))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        packages = {"yaml": "PyYAML", "urllib3": "urllib3"}
        foreign = {packages[name] for name in imported if name.split(".")[0] not in standard}
        block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", SOURCE)
        self.assertEqual(foreign, set(re.findall(r'"(\w+)[<>=]', block["content"].split("dependencies")[1])))

    def test_the_oldest_python_is_the_same_everywhere(self) -> None:
        """`requires-python`, the version guard and the README name the same oldest Python."""
        self.assertIn('# requires-python = ">=3.8"\n', SOURCE)
        self.assertIn("if sys.version_info < (3, 8):\n", SOURCE)
        ast.parse(SOURCE, feature_version=(3, 8))

    def test_importing_does_nothing(self) -> None:
        """Importing starts no thread, opens no file descriptor, configures no logging and prints nothing."""
        script = ("import logging, os, sys, threading, urllib3, yaml\n"
                  "before = os.listdir('/dev/fd'), list(logging.root.handlers)\n"
                  "import velero_requests\n"
                  "assert (os.listdir('/dev/fd'), list(logging.root.handlers)) == before\n"
                  "assert threading.active_count() == 1\n"
                  "assert not logging.getLogger('velero_requests').handlers\n")
        done = subprocess.run([sys.executable, "-B", "-c", script], cwd=os.path.dirname(MODULE), timeout=60,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              check=False)
        self.assertEqual((0, b""), (done.returncode, done.stdout))

    def test_no_line_is_too_long(self) -> None:
        """No line has more than 120 characters, a tab, or blanks at its end."""
        for number, line in enumerate(SOURCE.splitlines(), 1):
            self.assertLessEqual(len(line), 120, f"line {number}")
            self.assertEqual(line, line.rstrip().expandtabs(), f"line {number}")

    def test_exit_codes_are_documented_alike(self) -> None:
        """The epilog of --help and the table of the README list the members of Exit, no more and no fewer."""
        codes = [int(member) for member in vr.Exit]
        self.assertIn(vr.EPILOG, vr.build_parser().format_help())
        self.assertEqual(codes, [int(code) for code in re.findall(r"(?m)(?:^| ) (\d+) ", vr.EPILOG)])
        with open(os.path.join(os.path.dirname(MODULE), "README.md"), encoding="utf-8") as readme:
            self.assertEqual(codes, [int(code) for code in re.findall(r"(?m)^\| (\d+) \|", readme.read())])

    def test_the_checkout_shows_four_files(self) -> None:
        """At its top level the repository holds the four files, and else only names that begin with a dot."""
        try:
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=os.path.dirname(MODULE), check=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                    timeout=60).stdout.decode()
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("there is no git here, or this is no checkout")
        top = {path.split("/")[0] for path in listed.split("\0") if path}
        self.assertLessEqual({name for name in top if not name.startswith(".")},
                             {"velero_requests.py", "test_velero_requests.py", "README.md", "Makefile"})


# ------------------------------------------------------------------------------------------------------------
# Section 2: errors
# ------------------------------------------------------------------------------------------------------------


class TestErrors(unittest.TestCase):
    """Tests for `Error` and its family."""

    def test_exit_codes(self) -> None:
        """Every kind of failure has the exit code that the contract gives it."""
        for expected, error in (
                (1, vr.Error("x")), (2, vr.UsageError("x")), (1, vr.ConfigError("x")),
                (1, vr.InvalidRequest("x")),
                (3, vr.NotFound("x")), (4, vr.TimedOut("x")), (6, vr.Unreachable("x")),
                (5, vr.ApiError("x", status=401)), (5, vr.ApiError("x", status=403)),
                (3, vr.ApiError("x", status=404)), (1, vr.ApiError("x", status=500)),
                (5, vr.StoreError("x", status=403)), (3, vr.StoreError("x", status=404)),
                (1, vr.StoreError("x")),
                (3, vr.RequestFailed("x", reason="BackupNotFound")),
                (1, vr.RequestFailed("x", reason="Failed"))):
            with self.subTest(error=repr(error), expected=expected):
                self.assertEqual(expected, error.exit)
                self.assertIsInstance(error, vr.Error)

    def test_only_time_may_mend_what_is_retried(self) -> None:
        """A missing object is tried again, an impossible request is not."""
        self.assertTrue(vr.NotFound("x").retry and vr.ConfigError("x").retry and vr.Unreachable("x").retry)
        self.assertFalse(vr.InvalidRequest("x").retry or vr.UsageError("x").retry)

    def test_records_show_no_secret(self) -> None:
        """The `repr` of records holds neither keys nor tokens nor signed URLs."""
        secret = "s3cr3t-value"
        for record in (some_credentials(access_key=secret, secret_key=secret, session_token=secret),
                       a_download(url=secret), vr.Cluster("https://h", token=secret,
                                                          key_data=secret.encode()),
                       vr.Outcome("patch", "why", body={"status": {"downloadURL": secret}}),
                       vr.Facts(a_location(), some_credentials(secret_key=secret))):
            self.assertNotIn(secret, repr(record))


# ------------------------------------------------------------------------------------------------------------
# Section 3: text and time
# ------------------------------------------------------------------------------------------------------------


class TestParseTime(unittest.TestCase):
    """Tests for `parse_time`."""

    def test_instants(self) -> None:
        """Every notation of RFC 3339 becomes an aware instant in UTC; a missing offset is UTC."""
        for text, expected in (
                ("2026-05-04T12:00:00Z", NOW), ("2026-05-04t12:00:00z", NOW), ("2026-05-04 12:00:00Z", NOW),
                ("2026-05-04T12:00:00", NOW), ("2026-05-04T12:00:00+00:00", NOW),
                ("2026-05-04T12:00:00-00:00", NOW),
                ("2026-05-04T14:00:00+02:00", NOW), ("2026-05-04T06:30:00-05:30", NOW),
                ("2026-05-05T00:00:00+12:00", NOW), ("2026-05-04T12:00:00.5Z", after(seconds=.5)),
                ("2026-05-04T12:00:00.000001Z", after(microseconds=1)),
                ("2026-05-04T12:00:00.123456789Z", after(microseconds=123456)),
                ("2026-05-04T12:00:00." + "0" * 9999 + "Z", NOW), ("2024-02-29T00:00:00Z", datetime(
                    2024, 2, 29, tzinfo=timezone.utc)),
                ("9999-12-31T23:59:59Z", FAR_OFF), ("0001-01-01T00:00:00Z", LONG_AGO)):
            with self.subTest(text=text[:40]):
                parsed = vr.parse_time(text)
                self.assertEqual(expected, parsed)
                self.assertEqual(timedelta(0), parsed.utcoffset())

    def test_what_is_no_instant(self) -> None:
        """What is no text, no date, or no instant that Python can hold is None."""
        for text in (None, 5, 1.5, True, [], {}, b"2026-05-04T12:00:00Z", NOW, "", " ", "tomorrow",
                     "2026-05-04", "12:00:00Z", "2026-05-04T12:00Z", "2026-05-04T12:00:00Z\n",
                     " 2026-05-04T12:00:00Z", "2026-05-04T12:00:00Z2026-05-04T12:00:00Z",
                     "2026-02-30T12:00:00Z", "2026-13-01T12:00:00Z",
                     "2026-05-04T25:00:00Z", "2026-05-04T12:60:00Z", "0000-01-01T00:00:00Z",
                     "-2026-05-04T12:00:00Z", "10000-01-01T00:00:00Z", "2026-05-04T12:00:00+99:99",
                     "２０２６-05-04T12:00:00Z", "2026-05-04T12:00:00.Z", "1e400", "9" * 10000,
                     *HOSTILE):
            with self.subTest(text=ascii(text)[:40]):
                self.assertIsNone(vr.parse_time(text))

    def test_an_offset_that_leaves_the_calendar(self) -> None:
        """An offset that pushes an instant out of the years 1 to 9999 makes it None, not an error."""
        for text in ("9999-12-31T23:59:59-00:01", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+00:01"):
            with self.subTest(text=text):
                self.assertIsNone(vr.parse_time(text))


class TestFormatTime(unittest.TestCase):
    """Tests for `format_time`."""

    def test_whole_seconds_in_utc(self) -> None:
        """Instants are written in UTC and cut off at the second, four digits for the year."""
        two_hours_east = timezone(timedelta(hours=2))
        for instant, expected in (
                (NOW, "2026-05-04T12:00:00Z"), (after(microseconds=999999), "2026-05-04T12:00:00Z"),
                (NOW.astimezone(two_hours_east), "2026-05-04T12:00:00Z"), (FAR_OFF, "9999-12-31T23:59:59Z"),
                (LONG_AGO, "0001-01-01T00:00:00Z")):
            with self.subTest(expected=expected):
                self.assertEqual(expected, vr.format_time(instant))

    def test_there_and_back(self) -> None:
        """What is written is read again as the same second."""
        chance = random.Random(1)
        for _ in range(200):
            instant = datetime(2000, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.randrange(10**10))
            self.assertEqual(instant, vr.parse_time(vr.format_time(instant)))


class TestParseDuration(unittest.TestCase):
    """Tests for `parse_duration`."""

    def test_what_go_accepts(self) -> None:
        """Everything that Go's time.ParseDuration accepts becomes seconds."""
        for text, expected in (
                ("0", 0), ("+0", 0), ("-0", 0), ("0s", 0), ("30s", 30), ("5m", 300), ("1h30m", 5400),
                ("1h2m3s", 3723),
                ("1.5s", 1.5), (".5s", .5), ("5.s", 5), ("250ms", .25), ("1us", 1e-6), ("1µs", 1e-6),
                ("1μs", 1e-6),
                ("1ns", 1e-9), ("-1.5h", -5400), ("+5s", 5), ("1m1m", 120), ("72h", 259200), ("007s", 7),
                ("0.000000001h", 3.6e-6)):
            with self.subTest(text=text):
                self.assertAlmostEqual(expected, vr.parse_duration(text), places=12)

    def test_what_go_refuses(self) -> None:
        """Everything else is a ValueError, numbers beyond Go's 290 years included."""
        for text in ("", "-", "+", ".", "s", ".s", "5", "00", "1.5", "1x", "1d", "1 s", " 1s", "1s ", "1s\n",
                     "1h 2m", "--1s", "+-1s", "1e3s", "1,5s", "inf", "nan", "∞s", "１s", "1S", "2562048h",
                     "9" * 400 + "h"):
            with self.subTest(text=text[:40]):
                with self.assertRaises(ValueError) as caught:
                    vr.parse_duration(text)
                self.assertLess(len(str(caught.exception)), 120)


class TestFormatDuration(unittest.TestCase):
    """Tests for `format_duration`."""

    def test_go_notation(self) -> None:
        """Seconds are written as Go writes them, milliseconds being the finest."""
        for seconds, expected in (
                (0, "0s"), (.025, "25ms"), (.25, "250ms"), (.999, "999ms"), (.9996, "1s"), (1, "1s"),
                (1.5, "1.5s"),
                (30, "30s"), (59.9996, "1m0s"), (60, "1m0s"), (90, "1m30s"), (300, "5m0s"), (3600, "1h0m0s"),
                (5400.25, "1h30m0.25s"), (86400, "24h0m0s")):
            with self.subTest(seconds=seconds):
                self.assertEqual(expected, vr.format_duration(seconds))

    def test_there_and_back(self) -> None:
        """What is written is read again as the same number of milliseconds."""
        chance = random.Random(2)
        for milliseconds in [chance.randrange(10 ** chance.randint(1, 9)) for _ in range(300)]:
            text = vr.format_duration(milliseconds / 1000)
            self.assertAlmostEqual(milliseconds / 1000, vr.parse_duration(text), places=6, msg=text)


class TestOneLine(unittest.TestCase):
    """Tests for `one_line`."""

    def test_foreign_text_becomes_harmless(self) -> None:
        """Line ends, tabs, escape sequences, direction marks and lone surrogates become single blanks."""
        for text, expected in (
                ("", ""), ("plain", "plain"), ("  a \t b\r\nc  ", "a b c"), ("a\x1b[31mb", "a [31mb"),
                ("a\0b", "a b"), ("a\u2028b\u2029c", "a b c"), ("a\u202eb", "a b"), ("a\ud800b", "a b"),
                ("grün ✓", "grün ✓"), (None, "None"), (ValueError("x\ny"), "x y"), ("\x7f\x9b", "")):
            with self.subTest(expected=expected):
                self.assertEqual(expected, vr.one_line(text))

    def test_the_cut(self) -> None:
        """Longer text is cut at the limit, with a mark that counts."""
        self.assertEqual("x" * 300, vr.one_line("x" * 300))
        self.assertEqual("x" * 299 + "…", vr.one_line("x" * 301))
        self.assertEqual("abcd…", vr.one_line("abcdefgh", 5))


# What a log line must never hold, and the sentence around it.
SECRET_SHAPES: Tuple[Tuple[str, str], ...] = (
    ("X-Amz-Signature", "https://s3/k?X-Amz-Date=20260504T120000Z&X-Amz-Signature={}"),
    ("X-Amz-Credential", "https://s3/k?X-Amz-Credential={}&X-Amz-Date=20260504T120000Z"),
    ("X-Amz-Security-Token", "https://s3/k?a=b&X-Amz-Security-Token={}&x=y"),
    ("lower case", "https://s3/k?x-amz-signature={}&x-amz-expires=600"),
    ("SigV2 signature", "https://s3/k?Expires=600&Signature={}"),
    ("SigV2 key", "https://s3/k?AWSAccessKeyId={}&Expires=600"),
    ("SigV2 token", "https://s3/k?SecurityToken={}&Expires=600"),
    ("Google signature", "https://storage.googleapis.com/k?X-Goog-Signature={}&x=y"),
    ("Google credential", "https://storage.googleapis.com/k?X-Goog-Credential={}"),
    ("Azure", "https://a.blob.core.windows.net/c/k?sv=2020&sig={}&se=2026"),
    ("bearer token", "Authorization: Bearer {}"), ("lower-case bearer token",
                                                   "authorization: bearer {}, next"),
    ("password in a URL", "cannot reach https://user:{}@proxy.example:3128/"),
    ("name in a URL", "cannot reach http://{}@proxy.example"),
    ("in a Python tuple", "('https://s3/k?X-Amz-Signature={}', 443)"),
    ("in JSON", '{{"url": "https://s3/k?X-Amz-Signature={}"}}'))


class TestRedact(unittest.TestCase):
    """Tests for `redact`."""

    def test_every_shape_of_a_secret(self) -> None:
        """Signatures, credentials, tokens and passwords are blanked wherever they stand."""
        secret = "AKIAsecret%2F20260504/eu-west-1+~_-.abc=="
        for shape, sentence in SECRET_SHAPES:
            with self.subTest(shape=shape):
                redacted = vr.redact(sentence.format(secret))
                self.assertNotIn("secret", redacted)
                self.assertNotIn("abc", redacted)
                start = sentence.split("{}")[0].replace("{{", "{").replace("user:", "")
                self.assertEqual(start, redacted[:redacted.index("***")])

    def test_a_second_time_changes_nothing(self) -> None:
        """What has been redacted stays as it is when it is redacted again."""
        for shape, sentence in SECRET_SHAPES:
            with self.subTest(shape=shape):
                once = vr.redact(sentence.format("s3cr3t"))
                self.assertEqual(once, vr.redact(once))

    def test_what_is_no_secret_stays(self) -> None:
        """Hosts, keys, dates, and words that only sound like secrets stay readable."""
        for text in ("", "Backup velero/nightly does not exist",
                     "https://bkt.s3.eu-west-1.amazonaws.com/backups/b.gz",
                     "X-Amz-Date=20260504T120000Z&X-Amz-Expires=600", "the signature does not match",
                     "mail to ops@example.com", "https://h/a and ops@example.com", "the bearer of bad news"):
            with self.subTest(text=text):
                self.assertEqual(text.replace("bearer of", "bearer ***"),
                                 vr.redact(text).replace("bearer of", "bearer ***"))

    def test_our_own_urls(self) -> None:
        """Of a URL signed here, with a token, nothing that opens the store is left."""
        credentials = some_credentials(session_token="AQoDYXdzEPT//wEXAMPLE+token=")
        url = vr.presign(vr.Address("https", "h", "/k"), credentials, "eu-west-1", NOW, vr.URL_LIFE)
        parameters = dict(parse_qsl(urlsplit(vr.redact(url)).query))
        self.assertEqual({"***"}, {parameters[f"X-Amz-{name}"] for name in ("Signature", "Credential",
                                                                          "Security-Token")})

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_any_text(self) -> None:
        """Redacting twice is redacting once, for any text."""
        words = strategies.lists(strategies.sampled_from((
            "Bearer ", "sig=", "X-Amz-Signature=", "https://", "@", "&", " ", "***", "a", '"', "Signature=")))

        @hypothesis.given(words.map("".join) | strategies.text())
        def check(text: str) -> None:
            self.assertEqual(vr.redact(text), vr.redact(vr.redact(text)))
        check()


class TestLines(unittest.TestCase):
    """Tests for `lines`."""

    def test_any_cut_gives_the_same_lines(self) -> None:
        """However the bytes are cut, also within a character, the lines are the same."""
        data = '{"a":1}\n\n{"b":"grün ✓"}\nend\n'.encode()
        expected = data.split(b"\n")[:-1]
        for size in range(1, len(data) + 1):
            chunks = [data[start:start + size] for start in range(0, len(data), size)]
            self.assertEqual(expected, list(vr.lines(chunks)), f"chunks of {size}")

    def test_what_was_cut_off_is_dropped(self) -> None:
        """A last line without its newline is not handed out."""
        self.assertEqual([b"whole"], list(vr.lines([b"whole\nha", b"lf"])))
        self.assertEqual([], list(vr.lines([])))
        self.assertEqual([], list(vr.lines([b"", b"half"])))

    def test_a_line_without_end(self) -> None:
        """A line that grows beyond the limit is an error, and the lines before it are handed out."""
        endless = itertools.chain([b"first\n"], itertools.repeat(b"xxxx"))
        lines = vr.lines(endless, limit=1000)
        self.assertEqual(b"first", next(lines))
        with self.assertRaisesRegex(vr.Error, "1000 bytes"):
            next(lines)

    def test_a_line_as_long_as_the_limit(self) -> None:
        """A line that just fits is no error."""
        self.assertEqual([b"x" * 8], list(vr.lines([b"xxxx", b"xxxx", b"\n"], limit=8)))


# ------------------------------------------------------------------------------------------------------------
# Section 4: documents into records
# ------------------------------------------------------------------------------------------------------------

DOWNLOAD_DOCUMENT: Dict[str, Any] = {
    "metadata": {"name": "nightly-x7k2p", "namespace": "velero", "uid": "uid-1", "resourceVersion": "41",
                 "creationTimestamp": "2026-05-04T11:59:59Z"},
    "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}}


def with_places_filled(document: Dict[str, Any], value: Any) -> Iterator[Dict[str, Any]]:
    """Copies of a document with one field after the other, at any depth, replaced by a value."""
    for name, inner in document.items():
        yield {**document, name: value}
        if isinstance(inner, dict):
            for changed in with_places_filled(inner, value):
                yield {**document, name: changed}


class TestDownloadRequestFrom(unittest.TestCase):
    """Tests for `download_request_from`."""

    def test_a_new_request(self) -> None:
        """A request that nobody has answered has empty text and no expiration."""
        self.assertEqual(a_download(), vr.download_request_from(DOWNLOAD_DOCUMENT))

    def test_an_answered_request(self) -> None:
        """URL, phase and expiration are read from the status."""
        status = {"phase": "Processed", "downloadURL": "https://h/k", "expiration": "2026-05-04T12:10:00Z"}
        self.assertEqual(a_download(phase="Processed", url="https://h/k", expiration=after(minutes=10)),
                         vr.download_request_from({**DOWNLOAD_DOCUMENT, "status": status}))

    def test_reasons(self) -> None:
        """A reason is our annotation, else a newer Velero's phase Failed with its message."""
        ours = {vr.REASON: "BackupNotFound", vr.MESSAGE: "no such backup"}
        theirs = {"phase": "Failed", "message": "m"}
        for annotations, status, expected in (
                (None, None, ("", "")), (ours, None, ("BackupNotFound", "no such backup")),
                (None, theirs, ("Failed", "m")), (ours, theirs, ("BackupNotFound", "no such backup")),
                (None, {"phase": "Failed"}, ("Failed", "")),
                (None, {"phase": "New", "message": "m"}, ("", ""))):
            with self.subTest(expected=expected):
                request = vr.download_request_from({"metadata": {"annotations": annotations},
                                                    "status": status})
                self.assertEqual(expected, (request.reason, request.message))

    def test_being_deleted(self) -> None:
        """A deletion timestamp, even an unreadable one, means that the object is going."""
        self.assertTrue(vr.download_request_from({"metadata": {"deletionTimestamp": "x"}}).deleting)
        self.assertFalse(vr.download_request_from({"metadata": {"deletionTimestamp": None}}).deleting)

    def test_any_field_may_be_wrong(self) -> None:
        """A value of another type, at any depth, gives a record all the same."""
        full = {**DOWNLOAD_DOCUMENT, "status": {"phase": "New", "downloadURL": "u", "expiration": "e",
                                                "message": "m"}}
        for value in HOSTILE:
            for document in with_places_filled(full, value):
                request = vr.download_request_from(document)
                texts = (request.uid, request.version, request.target_kind, request.phase, request.url,
                         request.reason)
                self.assertTrue(all(isinstance(text, str) for text in texts), document)

    def test_what_is_no_document(self) -> None:
        """Not even a document that is no object is an error."""
        for value in HOSTILE:
            self.assertEqual("", vr.download_request_from(value).target_name)

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_random_documents(self) -> None:
        """No JSON value at all makes reading fail."""
        @hypothesis.given(hostile_documents())
        def check(document: Any) -> None:
            hash(vr.download_request_from(document))
            hash(vr.status_request_from(document))
            vr.server_version_from(document)
            vr.plugins_from(document)
        check()


class TestStatusRequestFrom(unittest.TestCase):
    """Tests for `status_request_from` and what reads single fields."""

    def test_records(self) -> None:
        """Phase and timestamp are read from the status, and are empty without one."""
        metadata = {"name": "velero-cli-5tn8q", "namespace": "velero", "uid": "uid-2",
                    "resourceVersion": "42",
                    "creationTimestamp": "2026-05-04T11:59:59Z"}
        status = {"phase": "Processed", "processedTimestamp": "2026-05-04T12:00:00Z"}
        self.assertEqual(a_status(), vr.status_request_from({"metadata": metadata, "spec": {}}))
        self.assertEqual(a_status(phase="Processed", processed=NOW),
                         vr.status_request_from({"metadata": metadata, "status": status}))

    def test_any_field_may_be_wrong(self) -> None:
        """A value of another type, at any depth, gives a record all the same."""
        full = {"metadata": {"name": "n", "creationTimestamp": "x"},
                "status": {"phase": "", "processedTimestamp": ""}}
        for value in HOSTILE:
            for document in with_places_filled(full, value):
                self.assertIsInstance(vr.status_request_from(document).phase, str)

    def test_plugins(self) -> None:
        """Plugins are sorted by kind, then by name, as the velero CLI sorts them."""
        pairs = [("RestoreItemAction", "velero.io/pod"), ("BackupItemAction", "velero.io/pv"),
                 ("BackupItemAction", "velero.io/pod")]
        document = {"status": {"plugins": [{"kind": kind, "name": name} for kind, name in pairs]}}
        self.assertEqual(sorted(pairs), vr.plugins_from(document))
        self.assertEqual([], vr.plugins_from({}))

    def test_wrong_plugins(self) -> None:
        """Whatever a stranger put where the plugins belong is no error."""
        for value in HOSTILE:
            with self.subTest(value=repr(value)[:40]):
                self.assertIsInstance(vr.plugins_from({"status": {"plugins": value}}), list)

    def test_single_fields(self) -> None:
        """Names and phases of other documents are text, empty when they are missing or no text."""
        for function, document in (
                (vr.server_version_from, {"status": {"serverVersion": "x"}}),
                (vr.backup_name_from, {"spec": {"backupName": "x"}}),
                (vr.phase_from, {"status": {"phase": "x"}}),
                (vr.storage_location_from, {"spec": {"storageLocation": "x"}})):
            with self.subTest(function=function.__name__):
                self.assertEqual("x", function(document))
                self.assertEqual(["", ""], [function({}), function({"spec": 5, "status": {"phase": []}})])


class TestLocationFrom(unittest.TestCase):
    """Tests for `location_from`."""

    def test_everything_that_is_read(self) -> None:
        """Bucket, prefix, config, authority and credential come from their places."""
        config = {"region": "eu-west-1", "s3Url": "http://minio:9000", "publicUrl": "https://s3.example",
                  "s3ForcePathStyle": "true", "profile": "backup", "bucket": "stale", "prefix": "stale"}
        document = a_location_document(
            config, objectStorage={"bucket": "bkt", "prefix": "p/q",
                                   "caCert": base64.b64encode(b"PEM").decode()},
            credential={"name": "keys", "key": "cloud"})
        self.assertEqual(a_location(
            prefix="p/q", s3_url="http://minio:9000", public_url="https://s3.example", path_style=True,
            ca_cert=b"PEM",
            secret_name="keys", secret_key="cloud", profile="backup"), vr.location_from(document))

    def test_slashes_around_bucket_and_prefix(self) -> None:
        """All slashes around bucket and prefix are dropped, as Velero drops them."""
        location = vr.location_from(a_location_document(objectStorage={"bucket": "//bkt/",
                                                                       "prefix": "//a/b//"}))
        self.assertEqual(("bkt", "a/b"), (location.bucket, location.prefix))

    def test_providers(self) -> None:
        """`aws` is short for `velero.io/aws`; any other provider is refused with a reason of its own."""
        for provider in ("aws", "velero.io/aws"):
            self.assertEqual("bkt", vr.location_from(a_location_document(provider=provider)).bucket)
        for provider in ("", None, "gcp", "azure", "AWS", "velero.io/gcp", "example.com/aws"):
            with self.subTest(provider=provider), self.assertRaises(vr.ConfigError) as caught:
                vr.location_from(a_location_document(provider=provider))
            self.assertEqual("UnsupportedProvider", caught.exception.reason)

    def test_path_style(self) -> None:
        """s3ForcePathStyle takes what Go takes for a bool, and nothing else."""
        for text, expected in ((None, False), ("", False),
                               *((word, True) for word in "1 t T TRUE true True".split()),
                               *((word, False) for word in "0 f F FALSE false False".split())):
            config = {"region": "x"} if text is None else {"region": "x", "s3ForcePathStyle": text}
            self.assertEqual(expected, vr.location_from(a_location_document(config)).path_style, text)
        for text in ("yes", "on", " true", "tRUE", "2"):
            with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError,
                                                                 "'default'.*s3ForcePathStyle"):
                vr.location_from(a_location_document({"s3ForcePathStyle": text}))

    def test_buckets_that_cannot_be(self) -> None:
        """A bucket that is missing, has a folder in it, or would change the path is refused with a reason."""
        for bucket in (None, "", "/", "a/b", ".", "..", "a b", "a\nb", "a\0", 5, ["a"]):
            with self.subTest(bucket=bucket), self.assertRaises(vr.ConfigError) as caught:
                vr.location_from(a_location_document(objectStorage={"bucket": bucket}))
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)
            self.assertIn("'default'", str(caught.exception))

    def test_authorities(self) -> None:
        """caCert is base64, with line ends or without, as Go's decoder takes it; anything else is refused."""
        encoded = base64.encodebytes(b"PEM" * 50).decode()
        for text in (encoded, encoded.replace("\n", "\r\n"), encoded.replace("\n", "")):
            document = a_location_document(objectStorage={"bucket": "bkt", "caCert": text})
            with self.subTest(text=text[:3] + repr(text[-2:])):
                self.assertEqual(b"PEM" * 50, vr.location_from(document).ca_cert)
        for text in ("-----BEGIN CERTIFICATE-----", "UEVN!", "UEV", "ü"):
            with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError, "caCert"):
                vr.location_from(a_location_document(objectStorage={"bucket": "bkt", "caCert": text}))

    def test_any_field_may_be_wrong(self) -> None:
        """A value of another type, at any depth, is a ConfigError or no error, never another one."""
        full = a_location_document({"region": "r", "s3Url": "u"}, credential={"name": "n", "key": "k"})
        for value in HOSTILE:
            for document in with_places_filled(full, value):
                with self.subTest(value=repr(value)[:40], config=repr(document.get("spec"))[:200]):
                    try:
                        vr.location_from(document)
                    except vr.ConfigError as error:
                        self.assertLess(len(str(error)), 11000)

    def test_trouble(self) -> None:
        """Velero's own complaint about a location is handed on in one line when it is Unavailable."""
        for status, expected in (
                (None, ""), ({"phase": "Available", "message": "m"}, ""),
                ({"phase": "Unavailable", "message": "a\nb"},
                                                                         "a b")):
            self.assertEqual(expected, vr.location_trouble_from({"status": status}))
        self.assertTrue(vr.location_trouble_from({"status": {"phase": "Unavailable"}}))


KEYS_FILE = "[default]\naws_access_key_id = AKIA1\naws_secret_access_key = abc/+==%d%(x)s\n"
OTHER_PROFILES = "[backup]\naws_access_key_id=AKIA2\naws_secret_access_key=s2\naws_session_token=t=2\n" \
                 "[profile ops]\naws_access_key_id=AKIA3\naws_secret_access_key=s3\n"


def keys_of_ini(text: str, profile: str, source: str) -> Any:
    """The keys of one profile of an ini file."""
    return vr.plan_profile(vr.merge_profiles(vr.ini_sections(text, source), {}), profile, source, {})


def keys_of_secret(secret: Any, location: Any) -> Any:
    """The keys in the Secret that a location names."""
    source = f"key {location.secret_key!r} of Secret {location.secret_name!r}"
    content = vr.secret_value(secret, location.secret_name, location.secret_key, f"storage location {location.name!r}")
    return vr.plan_profile(vr.own_profiles_from(content, source), location.profile or "default", source, {})


class TestCredentialsFromIni(unittest.TestCase):
    """Tests for `credentials_from_ini`."""

    def test_ways_to_write_a_file(self) -> None:
        """Line ends, byte order mark, comments, blocks, blanks and capitals make no difference."""
        commented = "# a comment\n; another\n\n" + KEYS_FILE.replace("\n", "\n# aws_access_key_id = no\n\n")
        nested = KEYS_FILE.replace("\naws_secret",
                                   "\nregion = x\ns3 =\n  max_concurrent_requests = 20\n  y = 1\naws_secret")
        for name, text in (
                ("plain", KEYS_FILE), ("CRLF", KEYS_FILE.replace("\n", "\r\n")),
                ("BOM", "\ufeff" + KEYS_FILE),
                ("comments", commented), ("nested block", nested),
                ("no blanks", KEYS_FILE.replace(" = ", "=")),
                ("wide", KEYS_FILE.replace(" = ", "   =\t ")),
                ("capitals", KEYS_FILE.replace("key_id", "Key_ID")),
                ("no line end", KEYS_FILE.rstrip()), ("indented", KEYS_FILE.replace("\naws", "\n  aws")),
                ("among others", OTHER_PROFILES + KEYS_FILE), ("blank lines", "\n\n" + KEYS_FILE + "\n\n"),
                ("said twice", KEYS_FILE.replace("AKIA1", "old") + KEYS_FILE)):
            with self.subTest(name=name):
                self.assertEqual(vr.Credentials("AKIA1", "abc/+==%d%(x)s"),
                                 keys_of_ini(text, "default", "file"))

    def test_profiles(self) -> None:
        """A profile is found as `[name]` and as `[profile name]`; values may hold an equals sign."""
        self.assertEqual(vr.Credentials("AKIA2", "s2", "t=2"),
                         keys_of_ini(OTHER_PROFILES, "backup", "f"))
        self.assertEqual(vr.Credentials("AKIA3", "s3"), keys_of_ini(OTHER_PROFILES, "ops", "f"))

    def test_no_such_profile(self) -> None:
        """A missing profile is named together with the file; `default` is not read in its place."""
        with self.assertRaisesRegex(vr.ConfigError, "the file.*'gone'") as caught:
            keys_of_ini(KEYS_FILE, "gone", "the file")
        self.assertEqual("InvalidCredentials", caught.exception.reason)

    def test_half_a_pair(self) -> None:
        """One key without the other is an error that says what is missing."""
        for text in ("[default]\n", KEYS_FILE.replace("aws_secret_access_key", "other"),
                     "[default]\naws_access_key_id =\naws_secret_access_key = x\n"):
            with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError, "both"):
                keys_of_ini(text, "default", "file")

    def test_errors_quote_nothing(self) -> None:
        """What does not parse is refused with the number of the line, never with what stands there."""
        secret = "wJalrXUtnFEMI"
        for text in (secret, f"aws_secret_access_key = {secret}\n", f"[default]\n{secret}\n",
                     f"[default]\n\n{secret}", f"[default\naws_secret_access_key = {secret}\n",
                     f"[default]\naws_access_key_id: {secret}\n", f"{{\"key\": \"{secret}\"}}",
                     f"[default]\n= {secret}\n", f"[]\n{secret} = x\n"):
            with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError, "the file") as caught:
                keys_of_ini(text, "default", "the file")
            self.assertNotIn(secret, str(caught.exception))
            self.assertIsNone(caught.exception.__cause__)
            self.assertEqual("InvalidCredentials", caught.exception.reason)

    def test_any_text(self) -> None:
        """Any text at all gives keys or a ConfigError."""
        chance = random.Random(3)
        pieces = ["[", "]", "default", "\n", "=", " ", "\t", "\r", "#", ";", ":", "aws_access_key_id", "%",
                  "\0", "x", "\ufeff", "\x0c", "\u2028", "[default]\n",
                  "aws_secret_access_key"]
        for _ in range(2000):
            text = "".join(chance.choice(pieces) for _ in range(chance.randrange(14)))
            try:
                keys_of_ini(text, "default", "file")
            except vr.ConfigError:
                pass


class TestCredentialsFromSecret(unittest.TestCase):
    """Tests for `credentials_from_secret`."""

    location = a_location(secret_name="keys", secret_key="cloud")

    def test_keys_of_a_secret(self) -> None:
        """The named key holds a credentials file, of which the location's profile counts, else `default`."""
        both = KEYS_FILE + OTHER_PROFILES
        for profile, expected in (("", "AKIA1"), ("default", "AKIA1"), ("backup", "AKIA2"), ("ops", "AKIA3")):
            location = dataclasses.replace(self.location, profile=profile)
            self.assertEqual(expected, keys_of_secret(a_secret(both), location).access_key)

    def test_a_key_that_is_not_there(self) -> None:
        """A missing or empty key is a reason of its own, naming Secret, key and location."""
        for secret in ({}, {"data": None}, {"data": {}}, {"data": {"cloud": ""}}, {"data": {"cloud": 5}},
                       {"data": []},
                       a_secret(KEYS_FILE, key="other")):
            with self.subTest(secret=secret), self.assertRaisesRegex(vr.ConfigError,
                                                                     "'cloud'.*'keys'.*'default'") as e:
                keys_of_secret(secret, self.location)
            self.assertEqual("SecretKeyNotFound", e.exception.reason)

    def test_data_that_is_no_text(self) -> None:
        """What is neither base64 nor UTF-8 is refused without showing it."""
        for data in ("!", "ü", "YWJj=", base64.b64encode(b"\xff\xfe\0a").decode()):
            with self.subTest(data=data), self.assertRaises(vr.ConfigError) as caught:
                keys_of_secret({"data": {"cloud": data}}, self.location)
            self.assertEqual("InvalidCredentials", caught.exception.reason)

    def test_errors_name_the_secret_and_not_its_content(self) -> None:
        """A Secret that does not parse is named, and its content is not."""
        with self.assertRaisesRegex(vr.ConfigError, "key 'cloud' of Secret 'keys'") as caught:
            keys_of_secret(a_secret("AKIA1 wJalrXUtnFEMI"), self.location)
        self.assertNotIn("wJalr", str(caught.exception))


# ------------------------------------------------------------------------------------------------------------
# Section 5: object keys and URLs
# ------------------------------------------------------------------------------------------------------------

# Velero's pkg/persistence/object_store_layout.go: kind, key of object X, whether the client inflates it.
LAYOUT: Tuple[Tuple[str, str, bool], ...] = (
    ("BackupLog", "backups/X/X-logs.gz", True),
    ("BackupContents", "backups/X/X.tar.gz", False),
    ("BackupVolumeSnapshots", "backups/X/X-volumesnapshots.json.gz", True),
    ("BackupItemOperations", "backups/X/X-itemoperations.json.gz", True),
    ("BackupResourceList", "backups/X/X-resource-list.json.gz", True),
    ("BackupResults", "backups/X/X-results.gz", True),
    ("RestoreLog", "restores/X/restore-X-logs.gz", True),
    ("RestoreResults", "restores/X/restore-X-results.gz", True),
    ("RestoreResourceList", "restores/X/restore-X-resource-list.json.gz", True),
    ("RestoreItemOperations", "restores/X/restore-X-itemoperations.json.gz", True),
    ("CSIBackupVolumeSnapshots", "backups/X/X-csi-volumesnapshots.json.gz", True),
    ("CSIBackupVolumeSnapshotContents", "backups/X/X-csi-volumesnapshotcontents.json.gz", True),
    ("BackupVolumeInfos", "backups/X/X-volumeinfo.json.gz", True),
    ("RestoreVolumeInfo", "restores/X/X-volumeinfo.json.gz", True),
    ("BackupItemSnapshots", "backups/X/X-itemsnapshots.json.gz", True))

class TestTargets(unittest.TestCase):
    """Tests for `TARGETS`."""

    def test_all_kinds(self) -> None:
        """Every kind of Velero 1.6 to 1.18 is there with its key, and no other."""
        self.assertEqual({(kind, key, gunzip) for kind, key, gunzip in LAYOUT}, {
            (kind, row.key.format(name="X"), row.gunzip) for kind, row in vr.TARGETS.items()})

    def test_owners(self) -> None:
        """What lies under restores/ belongs to a restore, everything else to a backup."""
        for kind, row in vr.TARGETS.items():
            self.assertEqual(kind, row.kind)
            self.assertEqual(vr.RESTORES if row.key.startswith("restores/") else vr.BACKUPS, row.owner, kind)


class TestTargetOf(unittest.TestCase):
    """Tests for `target_of` and `is_object_name`."""

    def test_names_that_can_exist(self) -> None:
        """Every name that Kubernetes allows has its row, for every kind."""
        for name in GOOD_NAMES:
            self.assertTrue(vr.is_object_name(name), name)
            for kind in vr.TARGETS:
                self.assertEqual(kind, vr.target_of(kind, name).kind)

    def test_names_that_cannot_exist(self) -> None:
        """Any other name is refused with a reason, in one short line, and never tried again."""
        for name in BAD_NAMES:
            with self.subTest(name=ascii(name)[:40]):
                self.assertFalse(vr.is_object_name(name))
                with self.assertRaises(vr.InvalidRequest) as caught:
                    vr.target_of("RestoreLog", name)
                self.assertEqual(("InvalidName", False), (caught.exception.reason, caught.exception.retry))
                self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 200)

    def test_kinds_that_do_not_exist(self) -> None:
        """An unknown kind is refused with a reason that names the known ones."""
        for kind in ("", "backuplog", "Backup", "BackupLog ", "BackupLog\n", "x" * 10000, "\ud800"):
            with self.subTest(kind=ascii(kind)[:40]), self.assertRaises(vr.InvalidRequest) as caught:
                vr.target_of(kind, "nightly")
            self.assertEqual("UnknownKind", caught.exception.reason)
            self.assertIn("RestoreVolumeInfo", str(caught.exception))
            self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 600)


class TestObjectKey(unittest.TestCase):
    """Tests for `object_key`."""

    def test_prefixes(self) -> None:
        """A prefix is cleaned as Go's path.Join cleans it."""
        for prefix, expected in (("", ""), (".", ""), ("p", "p/"), ("p/q", "p/q/"), ("p//q", "p/q/"),
                                 ("p/./q", "p/q/"),
                                 ("p/../q", "q/"), ("./p", "p/"), ("a b/ü", "a b/ü/"), ("p/..", ""),
                                 ("...", ".../")):
            with self.subTest(prefix=prefix):
                self.assertEqual(f"{expected}backups/n/n-logs.gz",
                                 vr.object_key(prefix, vr.TARGETS["BackupLog"], "n"))

    def test_prefixes_that_lead_out(self) -> None:
        """A prefix that leads out of the bucket is the location's fault."""
        for prefix in ("..", "../x", "a/../..", "a/../../b"):
            with self.subTest(prefix=prefix), self.assertRaises(vr.ConfigError) as caught:
                vr.object_key(prefix, vr.TARGETS["BackupLog"], "n")
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_never_outside(self) -> None:
        """Whatever the name, a key lies in its own folder of backups/ or restores/, or there is none."""
        for kind, name in itertools.product(vr.TARGETS, BAD_NAMES + GOOD_NAMES):
            try:
                artifact = vr.target_of(kind, name)
            except vr.InvalidRequest:
                continue
            key = vr.object_key("p", artifact, name)
            self.assertTrue(key.startswith(f"p/{artifact.owner.plural}/{name}/") and ".." not
                            in key.split("/"), key)

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_random_names(self) -> None:
        """No text as a name makes a key of other segments than four."""
        @hypothesis.given(strategies.sampled_from(sorted(vr.TARGETS)), strategies.text()
                          | strategies.text("a0-./%A\\ \n{}", max_size=12))
        def check(kind: str, name: str) -> None:
            if vr.is_object_name(name):
                segments = vr.object_key("", vr.target_of(kind, name), name).split("/")
                self.assertEqual([vr.TARGETS[kind].owner.plural, name], segments[:2])
                self.assertEqual(3, len(segments))
            else:
                self.assertRaises(vr.InvalidRequest, vr.target_of, kind, name)
        check()


class TestBucketAddress(unittest.TestCase):
    """Tests for `bucket_address`."""

    def check(self, cases: Iterable[Tuple[Dict[str, Any], str]]) -> None:
        """Compare the URL of every location's bucket with the one expected."""
        for fields, expected in cases:
            with self.subTest(**fields):
                self.assertEqual(expected, "{}://{}{}".format(*vr.bucket_address(a_location(**fields))))

    def test_partitions(self) -> None:
        """On AWS the region says under which domain the bucket is."""
        self.check([(dict(region=region), f"https://bkt.s3.{region}.{suffix}") for region, suffix in (
            ("us-east-1", "amazonaws.com"), ("eu-west-1", "amazonaws.com"),
            ("us-gov-west-1", "amazonaws.com"),
            ("cn-north-1", "amazonaws.com.cn"), ("us-iso-east-1", "c2s.ic.gov"),
            ("us-isob-east-1", "sc2s.sgov.gov"),
            ("eu-isoe-west-1", "cloud.adc-e.uk"), ("us-isof-south-1", "csp.hci.ic.gov"),
            ("eusc-de-east-1", "amazonaws.eu"), ("mx-central-1", "amazonaws.com"))])

    def test_styles_on_aws(self) -> None:
        """A bucket goes in front of the host when that makes a host, and is not forced into the path."""
        self.check([(dict(bucket=bucket), f"https://s3.eu-west-1.amazonaws.com/{path}") for bucket, path in (
            ("my.dotted.bucket", "my.dotted.bucket"), ("Bucket", "Bucket"), ("a_b", "a_b"), ("ab", "ab"),
            ("-ab", "-ab"), ("ab-", "ab-"), ("bkt!", "bkt%21"), ("a" * 64, "a" * 64), ("ü", "%C3%BC"))])
        self.check([(dict(path_style=True), "https://s3.eu-west-1.amazonaws.com/bkt"),
                    (dict(bucket="a" * 63), f"https://{'a' * 63}.s3.eu-west-1.amazonaws.com")])

    def test_styles_at_an_endpoint(self) -> None:
        """A bucket goes in front of a custom endpoint, with dots only over http, never of IP addresses."""
        self.check(((dict(s3_url="http://minio:9000"), "http://bkt.minio:9000"),
                    (dict(s3_url="http://minio:9000", path_style=True), "http://minio:9000/bkt"),
                    (dict(s3_url="http://minio", bucket="team.bucket"), "http://team.bucket.minio"),
                    (dict(s3_url="http://minio", bucket="my.bucket"), "http://minio/my.bucket"),
                    (dict(s3_url="https://minio", bucket="team.bucket"), "https://minio/team.bucket"),
                    (dict(s3_url="http://minio", bucket="192.168.100.100"), "http://minio/192.168.100.100"),
                    (dict(s3_url="http://minio", bucket="Team"), "http://minio/Team"),
                    (dict(s3_url="http://10.0.0.1:9000"), "http://10.0.0.1:9000/bkt"),
                    (dict(s3_url="http://[fd00::1]:9000"), "http://[fd00::1]:9000/bkt"),
                    (dict(s3_url="https://[FD00::1]"), "https://[fd00::1]/bkt")))

    def test_ports(self) -> None:
        """The default port of the scheme is dropped, any other one is kept."""
        self.check([(dict(s3_url=url, path_style=True), expected + "/bkt") for url, expected in (
            ("http://h:80", "http://h"), ("https://h:443", "https://h"), ("https://h:80", "https://h:80"),
            ("http://h:443", "http://h:443"), ("https://h:8443/", "https://h:8443"),
            ("http://h:", "http://h"),
            ("http://[::1]:80", "http://[::1]"))])

    def test_base_paths_and_public_urls(self) -> None:
        """publicUrl goes before s3Url, and a path in either stays in front, percent escapes as they are."""
        self.check(((dict(s3_url="http://in:9000", public_url="https://out"), "https://bkt.out"),
                    (dict(s3_url="http://h/base/", path_style=True), "http://h/base/bkt"),
                    (dict(s3_url="http://h/base"), "http://bkt.h/base"), (dict(s3_url="http://H.Example"),
                                                                       "http://bkt.h.example"),
                    (dict(s3_url="http://h/a%20b", path_style=True), "http://h/a%20b/bkt"),
                    (dict(s3_url="http://h/a b", path_style=True), "http://h/a%20b/bkt")))

    def test_urls_that_cannot_be_used(self) -> None:
        """An URL that is none, or holds more than host, port and path, is refused without being shown."""
        for url in ("minio:9000", "minio", "ftp://h", "//h", "http://", "https://:9000", "http://h:0",
                    "http://h:99999", "http://h:x", "http://[::1", "http://user:s3cr3t@h", "http://s3cr3t@h",
                    "http://h?s3cr3t=1", "http://h#s3cr3t", "http://h/../x", "http://h/./x", "http://a b",
                    "http://h\\x",
                    "http://ü"):
            for field in ("s3_url", "public_url"):
                with self.subTest(url=url, field=field), self.assertRaises(vr.ConfigError) as caught:
                    vr.bucket_address(a_location(**{field: url}))
                self.assertEqual("InvalidStorageLocation", caught.exception.reason)
                self.assertIn("s3Url" if field == "s3_url" else "publicUrl", str(caught.exception))
                self.assertNotIn("s3cr3t", str(caught.exception))

    def test_regions_that_cannot_be(self) -> None:
        """On AWS a region that is no DNS label is refused, so that no stranger chooses the host."""
        for region in ("", "eu west", "a.b", "-x", "x-", "a/b", "x" * 64, "eu-west-1.evil.example/", "a\n",
                       "é"):
            with self.subTest(region=region), self.assertRaisesRegex(vr.ConfigError, "region") as caught:
                vr.bucket_address(a_location(region=region))
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)


class TestObjectAddress(unittest.TestCase):
    """Tests for `object_address`."""

    def test_encoding(self) -> None:
        """Each byte of a key is percent-encoded once, slashes are kept, nothing is cleaned up."""
        for key, path in (("a/b.gz", "/a/b.gz"), ("a b+c/ü~$%.txt", "/a%20b%2Bc/%C3%BC~%24%25.txt"),
                          ("a//b", "/a//b"), ("%20", "/%2520"), ("-._~AZaz09", "/-._~AZaz09"),
                          ("a:b@c=d&e", "/a%3Ab%40c%3Dd%26e")):
            with self.subTest(key=key):
                self.assertEqual(path, vr.object_address(a_location(), key).path)

    def test_behind_the_bucket(self) -> None:
        """The key comes behind base path and bucket."""
        self.assertEqual(("http", "h:9000", "/base/bkt/k"), vr.object_address(
            a_location(s3_url="http://h:9000/base", path_style=True), "k")[:3])


class TestApiPath(unittest.TestCase):
    """Tests for `api_path`."""

    def test_paths(self) -> None:
        """Collections, objects and subresources are where Kubernetes serves them."""
        root = "/apis/velero.io/v1/namespaces/velero/downloadrequests"
        for arguments, expected in (
                ((vr.DOWNLOAD_REQUESTS, "velero"), root),
                ((vr.DOWNLOAD_REQUESTS, "velero", "n"), root + "/n"),
                ((vr.DOWNLOAD_REQUESTS, "velero", "n", "status"), root + "/n/status"),
                ((vr.SECRETS, "ns", "keys"), "/api/v1/namespaces/ns/secrets/keys"),
                ((vr.DEPLOYMENTS, "ns", "velero"), "/apis/apps/v1/namespaces/ns/deployments/velero"),
                ((vr.BACKUPS, "a/b", "c?d#e"), "/apis/velero.io/v1/namespaces/a%2Fb/backups/c%3Fd%23e")):
            with self.subTest(expected=expected):
                self.assertEqual(expected, vr.api_path(*arguments))


# ------------------------------------------------------------------------------------------------------------
# Section 6: signing
# ------------------------------------------------------------------------------------------------------------

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
FORM_SHA256 = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"  # of Param1=value1
DOC_TIME = datetime(2013, 5, 24, tzinfo=timezone.utc)
SUITE_SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


def header_signature(method: str, target: str, headers: Dict[str, str], payload_hash: str) -> Tuple[str, str]:
    """Hash of the canonical request, and signature, of a request that the AWS documentation signs."""
    path, _, query = target.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    request = vr.canonical_request(method, path, vr.canonical_query(parameters), headers, payload_hash)
    text = vr.string_to_sign("20130524T000000Z", vr.credential_scope("20130524", "us-east-1", "s3"), request)
    key = vr.signing_key(some_credentials().secret_key, "20130524", "us-east-1", "s3")
    return text.rpartition("\n")[2], vr.signature(key, text)


class Signer(NamedTuple):
    """Who signs a query, when and for what, where that is not what `presign` does."""

    access_key: str
    secret_key: str
    timestamp: str
    region: str
    service: str
    seconds: int
    payload_hash: str


DOC_SIGNER = Signer(some_credentials().access_key, some_credentials().secret_key, "20130524T000000Z",
                    "us-east-1", "s3", 600,
                    vr.UNSIGNED_PAYLOAD)
SUITE_SIGNER = Signer("AKIDEXAMPLE", SUITE_SECRET, "20150830T123600Z", "us-east-1", "service", 3600,
                      EMPTY_SHA256)


def query_signature(signer: Signer, path: str, headers: Dict[str, str], extra: Dict[str, str],
                    method: str = "GET") -> str:
    """The signature in the query of a request, put together from the nouns of the specification."""
    date = signer.timestamp[:8]
    scope = vr.credential_scope(date, signer.region, signer.service)
    query = vr.canonical_query({
        "X-Amz-Algorithm": vr.ALGORITHM, "X-Amz-Credential": f"{signer.access_key}/{scope}",
        "X-Amz-Date": signer.timestamp, "X-Amz-Expires": str(signer.seconds),
        "X-Amz-SignedHeaders": ";".join(sorted(headers)), **extra})
    request = vr.canonical_request(method, path, query, headers, signer.payload_hash)
    key = vr.signing_key(signer.secret_key, date, signer.region, signer.service)
    return vr.signature(key, vr.string_to_sign(signer.timestamp, scope, request))


def presigned(host: str, key: str, region: str, seconds: int, token: str = "") -> str:
    """The signature of a URL that `presign` makes with keys and time of the AWS documentation."""
    scheme, _, host = host.rpartition("://")
    address = vr.Address(scheme or "https", host, quote(key, safe="/-._~"))
    credentials = some_credentials(session_token=token)
    url = vr.presign(address, credentials, region, DOC_TIME, timedelta(seconds=seconds))
    return url.rpartition("&X-Amz-Signature=")[2]


class TestSigningVectors(unittest.TestCase):
    """Tests for `canonical_request`, `string_to_sign`, `signing_key`, `signature` with published vectors."""

    def test_presigning_in_the_aws_documentation(self) -> None:
        """Vector A: the documentation's own pre-signed URL."""
        self.assertEqual("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
                         presigned("examplebucket.s3.amazonaws.com", "/test.txt", "us-east-1", 86400))

    def test_headers_in_the_aws_documentation(self) -> None:
        """Vector A: canonical requests and signatures of the documentation's signed headers."""
        put = {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"}
        put_hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
        for method, target, headers, payload_hash, request_hash, signed in (
                ("GET", "/test.txt", {"range": "bytes=0-9"}, EMPTY_SHA256,
                 "7344ae5b7ee6c3e7e6b0fe0640412a37625d1fbfff95c48bbb2dc43964946972",
                 "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
                ("GET", "/?lifecycle", {}, EMPTY_SHA256,
                 "9766c798316ff2757b517bc739a67f6213b4ab36dd5da2f94eaebf79c77395ca",
                 "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
                ("GET", "/?max-keys=2&prefix=J", {}, EMPTY_SHA256,
                 "df57d21db20da04d7fa30298dd4488ba3a2b47ca3a489c74750e0f1e7df1b9b7",
                 "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
                ("PUT", "/test%24file.text", put, put_hash,
                 "9e0e90d9c76de8fa5b200d8c849cd5b8dc7a3be3951ddb7f6a76b4158342019d",
                 "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")):
            with self.subTest(target=target):
                headers = {"host": "examplebucket.s3.amazonaws.com", "x-amz-content-sha256": payload_hash,
                           "x-amz-date": "20130524T000000Z", **headers}
                self.assertEqual((request_hash, signed),
                                 header_signature(method, target, headers, payload_hash))

    def test_signing_keys(self) -> None:
        """Vector B: the keys derived for two days."""
        for date, expected in (
                ("20120215", "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"),
                ("20150830", "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9")):
            self.assertEqual(expected, vr.signing_key(SUITE_SECRET, date, "us-east-1", "iam").hex())

    def test_more_presigned_urls(self) -> None:
        """Vector C: hosts, regions, encodings, ports, a token and the longest life."""
        log, ireland = "/backups/b1/b1-logs.gz", "bkt.s3.eu-west-1.amazonaws.com"
        for host, key, region, seconds, token, expected in (
                (ireland, log, "eu-west-1", 600, "",
                 "4f31eaa635bc19b72ed08931fc3f3e10c72cbcae10a6353bd7f43807cc215058"),
                (ireland, log, "eu-west-1", 600, "AQoDYXdzEPT//////////wEXAMPLE+token=",
                 "64d07eb96c4fcb2d264e378b1f95f8da62b08d610325102125ba8424578465ee"),
                ("s3.eu-west-1.amazonaws.com", "/my.dotted.bucket/a b+c/ü~$%.txt", "eu-west-1", 600, "",
                 "8259c85cf5c1f58732c3aba775205f67b67cec765d4e209bf4ec26493eac951f"),
                ("bkt.s3.cn-north-1.amazonaws.com.cn", "/k", "cn-north-1", 600, "",
                 "1e92dca82039dd899832fc7e65ce9fccac708476273e892ac437ba22a66810c5"),
                ("bkt.s3.us-gov-west-1.amazonaws.com", "/k", "us-gov-west-1", 600, "",
                 "c8cb76af21c60e9a274c6e16b13d0fd0f7b19c77a0de2a0bba3b0ed871e36922"),
                ("bkt.s3.dualstack.eu-west-1.amazonaws.com", "/k", "eu-west-1", 600, "",
                 "8dee9b4f1c124d27df381ea320d4b1c3100fe2d5bf16725f77f0f484b8889b45"),
                ("http://minio.velero.svc:9000", "/bkt/k", "minio", 600, "",
                 "306735beca18cdd846c3c10af63eb315d5e52b3fe8981f58e8821f5e994713ef"),
                ("bkt.s3.us-east-1.amazonaws.com", "/k", "us-east-1", 604800, "",
                 "41df2da33bc5b7759795654f79d84f2c1603e358e12005709bfea8c46af415f5"),
                ("http://[fd00::1]:9000", "/bkt/k", "us-east-1", 600, "",
                 "dea7ac5d1992d560fa9d743860b3d44eeb962584bc2af2153cec55daef48b900")):
            with self.subTest(host=host, key=key, seconds=seconds, token=token):
                self.assertEqual(expected, presigned(host, key, region, seconds, token))

    def test_more_parameters_and_headers(self) -> None:
        """Vector C: one more parameter, and one more signed header."""
        host = {"host": "bkt.s3.us-east-1.amazonaws.com"}
        self.assertEqual("327b1d2805a698ec1a6d7cff5adaea746663378fe9518148744ea7225468a88e",
                         query_signature(DOC_SIGNER, "/k", host, {"x-id": "GetObject"}))
        host["x-amz-server-side-encryption-customer-algorithm"] = "AES256"
        self.assertEqual("65ccd282a92aae92289ab0420a50b5bdb1114a8fde94b5ce19e39a1564650bea",
                         query_signature(DOC_SIGNER, "/k", host, {}))

    def test_the_cases_of_botocore(self) -> None:
        """Vector D: the case of botocore's own tests in which paths are not cleaned up."""
        signer = Signer("access_key", "secret_key", "20140101T000000Z", "myregion", "myservice", 60,
                        vr.UNSIGNED_PAYLOAD)
        self.assertEqual("ac1b8b9e47e8685c5c963d75e35e8741d55251cd955239cc1efad4dc7201db66",
                         query_signature(signer, "/mybucket/keyname/.bar",
                                         {"host": "s3.us-west-2.amazonaws.com"}, {}))


# Vector E, the cases of the AWS suite that mean something to a signer for S3: name, target, query signature.
# Left out are get-slashes-normalized, get-slash-pointless-dot-normalized and the second case of D, because
# other services than S3 clean paths up and encode them twice; and get-header-*, because folding and trimming
# is for signers that sign headers they were given, and here only `host` is signed.
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SUITE: Tuple[Tuple[str, str, str], ...] = (
    ("get-vanilla", "/", "e93c787ed7f371d5c6b165c1b38ede9550f4dce4144713e844b25b7192d3865d"),
    ("get-utf8", "/ሴ", "10eae3f14a260bd3911cc6d008d3c576d143b05b62f09782a7a4b37f52178e44"),
    ("get-space", "/example space/", "7a1f416954786484c9824d93c1f26ef64acb9b1b6c9154d08c9f07d0e394abf6"),
    ("get-unreserved", f"/{UNRESERVED}", "95968482db1b9e0fadef6efc1bd24689f77c77d9ef56919c96a28cc92e0d6005"),
    ("get-slash-unnormalized", "//", "b2a9542809db687769200f56a844a03f2bd0291d6eb90232d5101c6a579446cd"),
    ("get-slashes-unnormalized", "//example//",
     "822a5a9ba28072c5ab2bb4a6307d0c88276d40e49fec6b724c03fb4d4ba60fc2"),
    ("get-slash-dot-slash-unnormalized", "/./",
     "a9b13e8f3484d9505bf1a6f347219f8f35b0fe8f128ceea597efc146a3dfe90c"),
    ("get-slash-pointless-dot-unnormalized", "/./example",
     "72b11f16d9530b18204bfb71f2d6ab085894c0ed8d352730a6e76234c58b5e10"),
    ("get-relative-unnormalized", "/example/..",
     "cbcb213b928a077e43275df47b500f1dfaa864ab3f5a18f6b95f4ff0938167ee"),
    ("get-relative-relative-unnormalized", "/example1/example2/../..",
     "b45db0bfd1cf15003493b733e33aa208dd981bd0e63037a6ed953f71d2118a16"),
    ("get-vanilla-empty-query-key", "/?Param1=value1",
     "49096700cbbaa5753443850f40df10f904fc2fdb544dc9512203cc77c471a9de"),
    ("get-vanilla-query-order-encoded", "/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
     "c5f1848ceec943ac2ca68ee720460c23aaae30a2300586597ada94c4a65e4787"),
    ("get-vanilla-query-order-key-case", "/?Param2=value2&Param1=value1",
     "86012e2c9ad4d77369f5d81c11f75158aae4f895a085212cc6d3f923d300bed5"),
    ("get-vanilla-query-unreserved", f"/?{UNRESERVED}={UNRESERVED}",
     "8e76a88a7433637b12778d5592799b29ad21ecd6cf6325051c21d86f0acda2bf"),
    ("get-vanilla-utf8-query", "/?ሴ=bar", "0bdd809b1519ac4f0c1dc3540e2cc46bd0c7f778eda408b2ebf3b913d21ff600"))


class TestSigningSuite(unittest.TestCase):
    """Tests for `canonical_query` and the other nouns with the AWS test suite (vector E)."""

    host = {"host": "example.amazonaws.com"}

    def test_targets(self) -> None:
        """Paths are encoded once and not cleaned up; parameters are encoded, then sorted."""
        for name, target, expected in SUITE:
            with self.subTest(name=name):
                path, _, query = target.partition("?")
                extra = dict(parse_qsl(query))
                self.assertEqual(expected, query_signature(SUITE_SIGNER, quote(path, safe="/-._~"), self.host,
                                                           extra))

    def test_session_token(self) -> None:
        """get-vanilla-with-session-token: the token is one of the signed parameters."""
        token = {"X-Amz-Security-Token": "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"}
        self.assertEqual("7ff2b50b376cb4d151970630573d6291dc128cc5c2a12ffb237f73cc53f67b6c",
                         query_signature(SUITE_SIGNER, "/", self.host, token))

    def test_post(self) -> None:
        """post-vanilla and post-x-www-form-urlencoded: the method, and a body that is signed."""
        self.assertEqual("2ce6e6d2e0cf2f9d1b55fafec88cd20574c31dc2e7631979f71ba2310083e95b",
                         query_signature(SUITE_SIGNER, "/", self.host, {}, "POST"))
        headers = {**self.host, "content-type": "application/x-www-form-urlencoded", "content-length": "13"}
        signer = SUITE_SIGNER._replace(payload_hash=FORM_SHA256)
        self.assertEqual("89a40deed0f26f9461242825a082d2222717248abc7ab41f552ad84a94ad46e9",
                         query_signature(signer, "/", headers, {}, "POST"))


class TestCanonicalQuery(unittest.TestCase):
    """Tests for `canonical_query`."""

    def test_encoding_and_order(self) -> None:
        """Blanks are %20, an empty value keeps its sign, and the order is that of the encoded names."""
        for parameters, expected in (
                ({}, ""), ({"a": ""}, "a="), ({"b": "1", "a": "2"}, "a=2&b=1"),
                ({"a": "x y+z/~*"}, "a=x%20y%2Bz%2F~%2A"),
                ({"a-b": "1", "a": "2"}, "a-b=1&a=2"), ({"é": "1", "z": "2", "B": "3"}, "%C3%A9=1&B=3&z=2")):
            with self.subTest(expected=expected):
                self.assertEqual(sorted(expected.split("&")),
                                 sorted(vr.canonical_query(parameters).split("&")))
                self.assertEqual(sorted(parameters, key=lambda name: quote(name, safe="-._~")),
                                 [name for name, _ in parse_qsl(vr.canonical_query(parameters), True)])


class TestPresign(unittest.TestCase):
    """Tests for `presign`."""

    def sign(self, life: timedelta = vr.URL_LIFE, **over: Any) -> str:
        """A URL signed at NOW."""
        return vr.presign(vr.Address("https", "h", "/k"), some_credentials(**over), "eu-west-1", NOW, life)

    def test_the_smallest_url(self) -> None:
        """A URL has the parameters of the specification, signs `host` alone, and ends with its signature."""
        names = ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"]
        pairs = parse_qsl(urlsplit(self.sign()).query, strict_parsing=True)
        self.assertEqual([f"X-Amz-{name}" for name in names], [name for name, _ in pairs])
        self.assertEqual(["AWS4-HMAC-SHA256", "AKIAIOSFODNN7EXAMPLE/20260504/eu-west-1/s3/aws4_request",
                          "20260504T120000Z", "600", "host"], [value for _, value in pairs[:-1]])
        self.assertIn("%2F20260504%2Feu-west-1%2Fs3%2F", self.sign())

    def test_limits(self) -> None:
        """A URL lives from one second to seven days, in whole seconds cut off."""
        for seconds, expected in ((1, "1"), (1.9, "1"), (600, "600"), (604800, "604800")):
            self.assertIn(f"X-Amz-Expires={expected}&", self.sign(timedelta(seconds=seconds)))
        for seconds in (0, .9, -1, 604801, 1e9):
            with self.subTest(seconds=seconds), self.assertRaises(ValueError):
                self.sign(timedelta(seconds=seconds))

    def test_the_second_counts(self) -> None:
        """Fractions of the second are cut off, and another second, key, token or region signs differently."""
        address, life = vr.Address("https", "h", "/k"), vr.URL_LIFE
        urls = [vr.presign(address, some_credentials(**over), region, now, life) for now, region, over in (
            (NOW, "eu-west-1", {}), (after(microseconds=999999), "eu-west-1", {}),
            (after(seconds=1), "eu-west-1", {}),
            (NOW, "eu-west-2", {}), (NOW, "eu-west-1", dict(secret_key="x")),
            (NOW, "eu-west-1", dict(session_token="x")),
            (NOW, "eu-west-1", dict(access_key="x")))]
        self.assertEqual(urls[0], urls[1])
        self.assertEqual(6, len({url.rpartition("=")[2] for url in urls}))

    def test_the_day_of_the_scope(self) -> None:
        """Scope and date come from the same instant, also around midnight."""
        for second, day in ((-1, "20260504"), (0, "20260505")):
            midnight = datetime(2026, 5, 5, tzinfo=timezone.utc) + timedelta(seconds=second)
            url = vr.presign(vr.Address("https", "h", "/k"), some_credentials(), "r", midnight, vr.URL_LIFE)
            self.assertTrue(f"%2F{day}%2Fr" in url and f"X-Amz-Date={day}T" in url, url)


@unittest.skipUnless(HAS_BOTOCORE, NO_BOTOCORE)
class TestPresignLikeBotocore(unittest.TestCase):
    """Tests for `presign` with botocore as oracle."""

    def test_random_values(self) -> None:
        """Random keys, tokens, regions and times are signed as botocore signs them."""
        chance = random.Random(4)
        letters = "abcXYZ019-._~ /+=%&?$ü✓:@!*'()"
        for _ in range(200):
            word, token = ("".join(chance.choices(letters, k=chance.randint(1, 30))) for _ in range(2))
            token, region = chance.choice(["", token]), chance.choice(["us-east-1", "cn-north-1", "minio"])
            now = datetime(2001, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.randrange(10**9))
            seconds = chance.randint(1, 604800)
            address = vr.object_address(a_location(region=region), word)
            ours = vr.presign(address, some_credentials(session_token=token), region, now,
                              timedelta(seconds=seconds))
            self.assertEqual(self.signed_by_botocore(address, token, region, now, seconds),
                             ours.rpartition("=")[2])

    @staticmethod
    def signed_by_botocore(address: Any, token: str, region: str, now: datetime, seconds: int) -> str:
        """The signature of botocore's signer, led through its steps so that the time can be chosen."""
        keys = some_credentials()
        signer = botocore.auth.S3SigV4QueryAuth(
            botocore.credentials.Credentials(keys.access_key, keys.secret_key, token or None), "s3", region,
            seconds)
        request = botocore.awsrequest.AWSRequest("GET", f"{address.scheme}://{address.host}{address.path}")
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        signer._modify_request_before_signing(request)  # pylint: disable=protected-access
        return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)

    def test_whole_urls(self) -> None:
        """A client of botocore with the same settings makes the same URL, in the second of its clock."""
        for style, over in (("virtual", {}), ("path", dict(path_style=True)), ("path", dict(bucket="a.b.c")),
                            ("path", dict(s3_url="http://minio:9000", path_style=True)),
                            ("virtual", dict(s3_url="http://minio:9000/base")),
                            ("virtual", dict(region="cn-north-1")),
                            ("virtual", dict(region="us-gov-west-1"))):
            with self.subTest(style=style, **over):
                location = a_location(**over)
                theirs = self.url_of_botocore(location, style, "backups/n/ü a+b.gz")
                stamp = parse_qs(urlsplit(theirs).query)["X-Amz-Date"][0]
                now = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
                ours = vr.presign(vr.object_address(location, "backups/n/ü a+b.gz"), some_credentials(),
                                  location.region, now, vr.URL_LIFE)
                self.assertEqual(theirs.partition("?")[0], ours.partition("?")[0])
                self.assertEqual(sorted(theirs.partition("?")[2].split("&")),
                                 sorted(ours.partition("?")[2].split("&")))

    @staticmethod
    def url_of_botocore(location: Any, style: str, key: str) -> str:
        """The URL that a client of botocore signs for an object of a location."""
        keys = some_credentials()
        config = botocore.config.Config(signature_version="s3v4", s3={"addressing_style": style})
        client = botocore.session.Session().create_client(
            "s3", region_name=location.region, endpoint_url=location.s3_url or None, config=config,
            aws_access_key_id=keys.access_key, aws_secret_access_key=keys.secret_key)
        return client.generate_presigned_url("get_object", Params={"Bucket": location.bucket, "Key": key},
                                             ExpiresIn=600)


# ------------------------------------------------------------------------------------------------------------
# Section 7: decisions
# ------------------------------------------------------------------------------------------------------------

def status_of_patch(outcome: Any) -> Dict[str, Any]:
    """The status that an outcome writes, empty when it writes none."""
    return (outcome.body or {}).get("status", {})


class TestTriageDownload(unittest.TestCase):
    """Tests for `triage_download`."""

    def test_policy(self) -> None:
        """Expiry comes first; what is answered stays until it expires; the rest needs facts."""
        ten = after(minutes=10)
        for fields, verb, again in (
                (dict(), "facts", None),
                (dict(phase="New"), "facts", None),
                (dict(expiration=after(minutes=5)), "facts", None),
                (dict(phase="New", expiration=ten), "facts", None),
                (dict(expiration=FAR_OFF), "facts", None),
                (dict(phase="New", url="https://stranger/"), "facts", None),
                (dict(expiration=after(seconds=-1)), "delete", None),
                (dict(expiration=NOW), "delete", None),
                (dict(expiration=LONG_AGO), "delete", None),
                (dict(phase="New", expiration=after(minutes=-1)), "delete", None),
                (dict(phase="Processed", expiration=after(seconds=-1)), "delete", None),
                (dict(phase="Failed", expiration=after(seconds=-1)), "delete", None),
                (dict(phase="Weird", expiration=after(days=-900)), "delete", None),
                (dict(phase="Processed", expiration=after(seconds=1)), "leave", after(seconds=1)),
                (dict(phase="Processed", expiration=ten), "leave", ten),
                (dict(phase="Processed", url="", expiration=ten), "leave", ten),
                (dict(phase="Failed", expiration=after(minutes=3)), "leave", after(minutes=3)),
                (dict(phase="Weird", expiration=after(minutes=3)), "leave", after(minutes=3)),
                (dict(phase="Processed", expiration=after(minutes=10, seconds=1)), "patch", ten),
                (dict(phase="Processed", expiration=FAR_OFF), "patch", ten),
                (dict(phase="Weird", expiration=FAR_OFF), "patch", ten),
                (dict(phase="Processed", created=NOW), "leave", ten),
                (dict(phase="Processed", created=after(minutes=-9)), "leave", after(minutes=1)),
                (dict(phase="Processed", created=after(minutes=-10)), "delete", None),
                (dict(phase="Failed", created=after(minutes=-11)), "delete", None),
                (dict(phase="Weird", created=LONG_AGO), "delete", None),
                (dict(phase="Processed", created=FAR_OFF), "leave", ten),
                (dict(phase="Processed", created=None), "leave", ten),
                (dict(deleting=True), "leave", None),
                (dict(deleting=True, phase="Processed", expiration=after(minutes=-1)), "leave", None)):
            with self.subTest(**{name: str(value) for name, value in fields.items()}):
                outcome = vr.triage_download(a_download(**fields), NOW)
                self.assertEqual((verb, again), (outcome.verb, outcome.again) if outcome else ("facts", None))
                self.assertFalse(outcome and outcome.failed)

    def test_the_cut(self) -> None:
        """An expiration too far off is patched to ten minutes from now, on the version that was seen."""
        outcome = vr.triage_download(a_download(phase="Processed", expiration=FAR_OFF), NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"},
                          "status": {"expiration": "2026-05-04T12:10:00Z"}},
                         outcome.body)

    def test_what_was_cut_stays_cut(self) -> None:
        """After the cut has been written there is nothing more to patch."""
        outcome = vr.triage_download(a_download(phase="Processed", expiration=after(minutes=10)), NOW)
        self.assertEqual("leave", outcome.verb)

    def test_deleting_hits_one_object_only(self) -> None:
        """A deletion names uid and version, so that no newer or changed object is hit."""
        outcome = vr.triage_download(a_download(expiration=NOW), NOW)
        self.assertEqual({"preconditions": {"uid": "uid-1", "resourceVersion": "41"}}, outcome.body)

    def test_a_look_at_the_said_instant_decides(self) -> None:
        """Looking again exactly when an outcome says so deletes the object, so that no look is wasted."""
        request = a_download(phase="Processed", expiration=after(minutes=3))
        again = vr.triage_download(request, NOW).again
        self.assertEqual("delete", vr.triage_download(request, again).verb)


class TestAnswerDownload(unittest.TestCase):
    """Tests for `answer_download`."""

    def test_one_patch(self) -> None:
        """URL, phase and expiration come in one patch, on the version that was seen."""
        outcome = vr.answer_download(a_download(), some_facts(), NOW)
        url = outcome.body["status"].pop("downloadURL")
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": {
            "phase": "Processed", "expiration": "2026-05-04T12:10:00Z"}}, outcome.body)
        self.assertEqual(("patch", after(minutes=10), False), (outcome.verb, outcome.again, outcome.failed))
        self.assertEqual("https://bkt.s3.eu-west-1.amazonaws.com/backups/nightly/nightly-logs.gz",
                         url.split("?")[0])

    def test_the_key_of_every_kind(self) -> None:
        """Every kind leads to its own key, behind the location's prefix."""
        for kind, key, _ in LAYOUT:
            outcome = vr.answer_download(a_download(target_kind=kind), some_facts(prefix="p/q"), NOW)
            path = urlsplit(outcome.body["status"]["downloadURL"]).path
            self.assertEqual("/p/q/" + key.replace("X", "nightly"), path)

    def test_a_reason_is_taken_back(self) -> None:
        """The annotations of an earlier failure are removed by the same patch."""
        outcome = vr.answer_download(a_download(reason="BackupNotFound", message="m"), some_facts(), NOW)
        self.assertEqual({vr.REASON: None, vr.MESSAGE: None}, outcome.body["metadata"]["annotations"])

    def test_credentials_clip_the_life(self) -> None:
        """A URL never outlives the credentials that signed it, and the expiration says so."""
        for left, seconds in ((timedelta(days=1), 600), (timedelta(minutes=10), 600),
                              (timedelta(minutes=5), 300),
                              (timedelta(seconds=1), 1)):
            with self.subTest(left=left):
                outcome = vr.answer_download(a_download(), some_facts(expires=NOW + left), NOW)
                status = outcome.body["status"]
                self.assertIn(f"X-Amz-Expires={seconds}&", status["downloadURL"])
                self.assertEqual(after(seconds=seconds), vr.parse_time(status["expiration"]))
                self.assertEqual(after(seconds=seconds), outcome.again)

    def test_expired_credentials(self) -> None:
        """Credentials that have expired sign nothing, and that is the reason."""
        for expires in (NOW, after(seconds=.5), after(days=-1), LONG_AGO):
            with self.subTest(expires=expires), self.assertRaisesRegex(vr.ConfigError, "'default'") as caught:
                vr.answer_download(a_download(), some_facts(expires=expires), NOW)
            self.assertEqual("CredentialsExpired", caught.exception.reason)

    def test_what_has_no_answer(self) -> None:
        """An impossible target, prefix or endpoint is an error of the right kind, never a URL."""
        for fields, location, error in (
                (dict(target_kind="Nothing"), {}, vr.InvalidRequest),
                (dict(target_name="../x"), {}, vr.InvalidRequest),
                ({}, dict(prefix="../x"), vr.ConfigError), ({}, dict(region=""), vr.ConfigError),
                ({}, dict(s3_url="nonsense"), vr.ConfigError)):
            with self.subTest(fields=fields, location=location), self.assertRaises(error):
                vr.answer_download(a_download(**fields), some_facts(**location), NOW)

    def test_the_url_is_in_the_body_only(self) -> None:
        """Neither the log line nor the `repr` of the outcome holds the URL."""
        outcome = vr.answer_download(a_download(), some_facts(), NOW)
        self.assertNotIn("X-Amz", repr(outcome) + outcome.why)
        self.assertIn("nightly", outcome.why)


class TestRefuseDownload(unittest.TestCase):
    """Tests for `refuse_download`."""

    error = vr.NotFound("backup velero/nightly does not exist", reason="BackupNotFound")
    said = dict(reason="BackupNotFound", message="backup velero/nightly does not exist")

    def test_the_first_failure(self) -> None:
        """The first failure leaves reason, message and expiration in one patch, and asks for another try."""
        outcome = vr.refuse_download(a_download(), self.error, NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41", "annotations": {
            vr.REASON: "BackupNotFound", vr.MESSAGE: self.said["message"]}},
            "status": {"expiration": "2026-05-04T12:10:00Z"}}, outcome.body)
        self.assertEqual(("patch", after(minutes=10), True), (outcome.verb, outcome.again, outcome.failed))

    def test_the_same_failure_again(self) -> None:
        """Nothing is written when nothing changes, and the expiration is not pushed further."""
        outcome = vr.refuse_download(a_download(**self.said, expiration=after(minutes=4)), self.error, NOW)
        self.assertEqual(("leave", None, after(minutes=4), True),
                         (outcome.verb, outcome.body, outcome.again, outcome.failed))

    def test_another_failure(self) -> None:
        """Another reason or message is written without touching the expiration."""
        for said in (dict(reason="SecretNotFound", message=self.said["message"]),
                     {**self.said, "message": "other"}):
            outcome = vr.refuse_download(a_download(**said, expiration=after(minutes=4)), self.error, NOW)
            self.assertEqual(("patch", after(minutes=4)), (outcome.verb, outcome.again))
            self.assertNotIn("status", outcome.body)

    def test_a_strangers_expiration(self) -> None:
        """An expiration too far off is cut down, also when the reason is there already."""
        for said in ({}, self.said):
            outcome = vr.refuse_download(a_download(**said, expiration=FAR_OFF), self.error, NOW)
            self.assertEqual({"expiration": "2026-05-04T12:10:00Z"}, outcome.body["status"])

    def test_what_time_cannot_mend(self) -> None:
        """An impossible request gets its reason but is not tried again."""
        error = vr.InvalidRequest("'..' cannot be the name of a backup", reason="InvalidName")
        outcome = vr.refuse_download(a_download(), error, NOW)
        self.assertEqual(("patch", False, after(minutes=10)), (outcome.verb, outcome.failed, outcome.again))

    def test_messages_are_harmless(self) -> None:
        """A message is one line of at most 1024 characters without secrets, and so is the log line."""
        for shape, sentence in SECRET_SHAPES:
            error = vr.Error("a\nb " + sentence.format("s3cr3t") + " x" * 2000, reason="ClusterError")
            outcome = vr.refuse_download(a_download(), error, NOW)
            message = outcome.body["metadata"]["annotations"][vr.MESSAGE]
            with self.subTest(shape=shape):
                self.assertTrue(message.isprintable() and len(message) <= 1024)
                self.assertNotIn("s3cr3t", message + outcome.why)

    def test_a_cut_message_is_recognised(self) -> None:
        """A message that had to be cut or redacted counts as the same at the next failure."""
        error = vr.Error("https://h/k?X-Amz-Signature=abc " + "x" * 3000)
        first = vr.refuse_download(a_download(), error, NOW)
        annotations = first.body["metadata"]["annotations"]
        request = a_download(reason=annotations[vr.REASON], message=annotations[vr.MESSAGE],
                             expiration=after(minutes=10))
        self.assertEqual("leave", vr.refuse_download(request, error, NOW).verb)


class TestFallBackDownload(unittest.TestCase):
    """Tests for `fall_back_download`."""

    refusal = vr.refuse_download(a_download(), vr.NotFound("x"), NOW)

    def test_the_status_alone(self) -> None:
        """When annotations cannot be written, the status is, on the same version."""
        outcome = vr.fall_back_download(a_download(), self.refusal, NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": self.refusal.body["status"]},
                         outcome.body)
        self.assertEqual((after(minutes=10), True), (outcome.again, outcome.failed))

    def test_what_cannot_be_written_at_all(self) -> None:
        """Without a smaller patch the object is tried again until its life is over, then deleted."""
        smaller = vr.fall_back_download(a_download(), self.refusal, NOW)
        for created, verb in ((NOW, "leave"), (after(minutes=-9), "leave"), (after(minutes=-10), "delete"),
                              (after(days=-1), "delete"), (LONG_AGO, "delete"), (None, "leave")):
            with self.subTest(created=created):
                outcome = vr.fall_back_download(a_download(created=created), smaller, NOW)
                self.assertEqual((verb, verb == "leave"), (outcome.verb, outcome.failed))

    def test_a_clock_from_the_end_of_time(self) -> None:
        """A creation in year 9999 is no crash."""
        smaller = vr.fall_back_download(a_download(), self.refusal, NOW)
        self.assertEqual("leave", vr.fall_back_download(a_download(created=FAR_OFF), smaller, NOW).verb)


class TestIsNews(unittest.TestCase):
    """Tests for `is_news`."""

    def test_download_requests(self) -> None:
        """What failing controllers write is no news, everything else is."""
        for old, new, expected in (
                ({}, dict(version="42"), False), ({}, dict(version="42", reason="A", message="b"), False),
                ({}, dict(version="42", expiration=NOW), False),
                (dict(phase="New"), dict(phase="New"), False),
                (dict(reason="A", message="b"), dict(reason="B", message="c", version="43"), False),
                ({}, dict(phase="Processed"), True), ({}, dict(url="u"), True),
                ({}, dict(deleting=True), True),
                ({}, dict(target_name="other"), True), ({}, dict(uid="uid-9"), True),
                (dict(phase="Processed"), dict(phase="Processed", expiration=NOW), True)):
            with self.subTest(old=old, new=new):
                self.assertEqual(expected, vr.is_news(a_download(**old), a_download(**new)))

    def test_status_requests(self) -> None:
        """A new version alone is no news, another phase or timestamp is."""
        for new, expected in ((dict(version="43"), False), (dict(phase="Processed"), True),
                              (dict(processed=NOW), True),
                              (dict(deleting=True), True), (dict(uid="uid-9"), True)):
            with self.subTest(new=new):
                self.assertEqual(expected, vr.is_news(a_status(), a_status(**new)))

    def test_what_was_not_there(self) -> None:
        """An object seen for the first time, or of another kind than before, is news."""
        self.assertTrue(vr.is_news(None, a_download()))
        self.assertTrue(vr.is_news(a_status(), a_download()))


class TestDecideStatus(unittest.TestCase):
    """Tests for `decide_status`."""

    server = vr.Server("v1.18.1", (("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod")))

    def test_policy(self) -> None:
        """New ones are answered, answered ones live a minute, others are left."""
        five = after(minutes=5)
        for fields, verb, again in (
                (dict(), "patch", five),
                (dict(phase="New"), "patch", five),
                (dict(phase="New", processed=LONG_AGO), "patch", five),
                (dict(phase="Processed", processed=NOW), "leave", five),
                (dict(phase="Processed", processed=after(seconds=-59)), "leave", five),
                (dict(phase="Processed", processed=after(seconds=-61)), "delete", None),
                (dict(phase="Processed", processed=LONG_AGO), "delete", None),
                (dict(phase="Processed", created=after(seconds=-30)), "leave", five),
                (dict(phase="Processed", created=after(seconds=-61)), "delete", None),
                (dict(phase="Processed", created=after(minutes=-2), processed=FAR_OFF), "delete", None),
                (dict(phase="Processed", created=after(seconds=-9), processed=FAR_OFF), "leave", five),
                (dict(phase="Processed", created=FAR_OFF, processed=FAR_OFF), "leave", five),
                (dict(phase="Processed", created=None), "leave", five),
                (dict(phase="Failed", created=after(days=-1)), "leave", None),
                (dict(phase="\x1b[2J" * 100), "leave", None),
                (dict(deleting=True), "leave", None),
                (dict(deleting=True, phase="Processed", processed=LONG_AGO), "leave", None)):
            with self.subTest(**{name: str(value)[:40] for name, value in fields.items()}):
                outcome = vr.decide_status(a_status(**fields), self.server, NOW)
                self.assertEqual((verb, again, False), (outcome.verb, outcome.again, outcome.failed))
                self.assertTrue(outcome.why.isprintable() and len(outcome.why) < 200)

    def test_the_answer(self) -> None:
        """Phase, timestamp, version and plugins come in one patch on the version that was seen."""
        self.assertEqual({"metadata": {"resourceVersion": "42"}, "status": {
            "phase": "Processed", "processedTimestamp": "2026-05-04T12:00:00Z", "serverVersion": "v1.18.1",
            "plugins": [{"kind": "ObjectStore", "name": "velero.io/aws"},
                        {"kind": "BackupItemAction", "name": "velero.io/pod"}]}},
            vr.decide_status(a_status(), self.server, NOW).body)

    def test_what_this_file_serves(self) -> None:
        """Undeclared, the plugin list is honest: the one object store."""
        plugins = vr.decide_status(a_status(), vr.Server("v0"), NOW).body["status"]["plugins"]
        self.assertEqual([{"kind": "ObjectStore", "name": "velero.io/aws"}], plugins)

    def test_deleting_hits_one_object_only(self) -> None:
        """A deletion names uid and version."""
        outcome = vr.decide_status(a_status(phase="Processed", processed=LONG_AGO), self.server, NOW)
        self.assertEqual({"preconditions": {"uid": "uid-2", "resourceVersion": "42"}}, outcome.body)


class TestHostileStatus(unittest.TestCase):
    """Tests for `triage_download`, `refuse_download`, `decide_status` on what strangers filled in."""

    server = vr.Server("v1")

    def check(self, document: Any, now: datetime = NOW) -> None:
        """No decision raises; an object is looked at again in time, deleted, or left for a reason."""
        download = vr.download_request_from(document)
        outcome = vr.triage_download(download, now) or vr.refuse_download(download, vr.NotFound("x"), now)
        self.check_outcome(download, outcome, now, timedelta(minutes=10))
        status = vr.status_request_from(document)
        outcome = vr.decide_status(status, self.server, now)
        self.check_outcome(status, outcome, now, timedelta(minutes=5), ends=("", "New", "Processed"))

    def check_outcome(self, request: Any, outcome: Any, now: datetime, limit: timedelta,
                      ends: Optional[Tuple[str, ...]] = None) -> None:
        """Judge one outcome."""
        self.assertTrue(outcome.why and outcome.why.isprintable())
        if outcome.verb == "delete":
            self.assertEqual({"uid": request.uid, "resourceVersion": request.version},
                             outcome.body["preconditions"])
        elif outcome.again is None:
            self.assertTrue(request.deleting or (ends and request.phase not in ends), outcome)
        else:
            self.assertTrue(now < outcome.again <= now + limit, outcome)
        if outcome.verb == "patch":
            self.assertEqual(request.version, outcome.body["metadata"]["resourceVersion"])

    def test_every_combination(self) -> None:
        """All combinations of odd phases, times and marks of deletion keep the promises."""
        times = (None, "x", 5, "0001-01-01T00:00:00Z", "2026-05-04T11:00:00Z", "2026-05-04T12:00:00Z",
                 "2026-05-04T12:05:00Z", "2026-05-04T12:10:00.9Z", "2026-05-04T23:00:00Z",
                 "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00",
                 "0001-01-01T00:00:00+12:00")
        for phase, created, filled, deletion in itertools.product(
                (None, "", "New", "Processed", "Failed", "\n", 5, []), times, times,
                (None, "2026-05-04T12:00:00Z")):
            self.check({"metadata": {"creationTimestamp": created, "deletionTimestamp": deletion}, "status": {
                "phase": phase, "expiration": filled, "processedTimestamp": filled}})

    def test_every_wrong_place(self) -> None:
        """A value of another type, at any depth, keeps the promises."""
        full = {**DOWNLOAD_DOCUMENT, "status": {"phase": "Processed", "expiration": "x",
                                                "processedTimestamp": "x"}}
        for value in HOSTILE:
            self.check(value)
            for document in with_places_filled(full, value):
                self.check(document)

    def test_no_object_is_immortal(self) -> None:
        """A clock that goes from look to look sees every download request deleted within two of its lives."""
        for phase, filled in itertools.product(("", "Processed", "Failed", "x"),
                                               (None, NOW, after(minutes=5), FAR_OFF)):
            request, now = a_download(phase=phase, expiration=filled, created=NOW), after(seconds=1)
            for _ in range(5):
                outcome = vr.triage_download(request, now) or vr.refuse_download(request, vr.NotFound("x"),
                                                                                 now)
                if outcome.verb == "delete":
                    break
                written = vr.parse_time(status_of_patch(outcome).get("expiration"))
                request, now = dataclasses.replace(request,
                                                   expiration=written or request.expiration), outcome.again
            self.assertEqual("delete", outcome.verb, (phase, filled))
            self.assertLessEqual(now, after(minutes=20))

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_random_documents(self) -> None:
        """Random documents at random times keep the promises."""
        instants = strategies.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1),
                                        timezones=strategies.just(timezone.utc))

        @hypothesis.given(hostile_documents(), instants)
        def check(document: Any, now: datetime) -> None:
            self.check(document, now)
        check()


class TestBackoff(unittest.TestCase):
    """Tests for `backoff`."""

    def test_growth(self) -> None:
        """The wait doubles with every failure up to the cap, however many there were."""
        for failures, expected in ((1, .005), (2, .01), (3, .02), (11, 5.12), (13, 20.48), (14, 30), (64, 30),
                                   (10**6, 30)):
            with self.subTest(failures=failures):
                self.assertAlmostEqual(expected, vr.backoff(failures, vr.RETRY_BASE, vr.RETRY_CAP))

    def test_healing_within_a_life(self) -> None:
        """The longest wait leaves many tries within the life of a request."""
        self.assertGreater(vr.URL_LIFE.total_seconds() / vr.RETRY_CAP, 10)


class TestIsVersionExpired(unittest.TestCase):
    """Tests for `is_version_expired` and `is_answered`."""

    def test_expired_versions(self) -> None:
        """Status 410 and the reasons Expired and Gone mean a new list, nothing else does."""
        for status, reason, expected in ((410, "", True), (410, "Expired", True), (200, "Expired", True),
                                         (500, "Gone", True), (404, "NotFound", False), (403, "", False),
                                         (500, "", False)):
            with self.subTest(status=status, reason=reason):
                self.assertEqual(expected, vr.is_version_expired(vr.ApiError("x", status=status,
                                                                             api_reason=reason)))

    def test_answers(self) -> None:
        """A URL ends the waiting, whatever the phase, and a phase alone does not."""
        self.assertTrue(vr.is_answered(a_download(url="u")) and vr.is_answered(a_download(url="u",
                                                                                          phase="Processed")))
        self.assertFalse(vr.is_answered(a_download()) or vr.is_answered(a_download(phase="Processed")))


class TestLogsRefusal(unittest.TestCase):
    """Tests for `logs_refusal`."""

    def test_phases_with_logs(self) -> None:
        """Finished backups and restores have logs, and so have those that only wait for plugins."""
        for phase in ("Completed", "PartiallyFailed", "Failed", "WaitingForPluginOperations",
                      "WaitingForPluginOperationsPartiallyFailed"):
            self.assertEqual("", vr.logs_refusal(vr.BACKUPS, "nightly", phase))

    def test_phases_without_logs(self) -> None:
        """Every other phase is refused with kind, name and what to wait for."""
        for phase in ("", "New", "FailedValidation", "InProgress", "Queued", "ReadyToStart", "Deleting",
                      "Finalizing", "FinalizingPartiallyFailed",
                      "completed"):
            with self.subTest(phase=phase):
                text = vr.logs_refusal(vr.RESTORES, "r1", phase)
                self.assertRegex(text,
                                 r'(?i)logs for restore "r1" are not available until .*Completed or Failed')


# What the API server accepts as a name (RFC 1123 subdomain) of at most 253 characters.
VALID_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")
AWKWARD_NAMES = GOOD_NAMES + tuple(
    ("a" * length + mark + "b" * 200)[:253] for length in range(35, 60) for mark in (".", "-", "--",
                                                                                     "-" * 30)) + (
        "a." * 126 + "a", "a-" * 126 + "a", "0" * 253)


class TestEventFor(unittest.TestCase):
    """Tests for `event_for`."""

    def test_what_it_says(self) -> None:
        """The event is a warning about the request, in its namespace, at this instant."""
        event = vr.event_for(a_download(), "BackupNotFound", "m", NOW)
        self.assertEqual(("v1", "Event", "Warning", "BackupNotFound", "m"), tuple(
            event[name] for name in ("apiVersion", "kind", "type", "reason", "message")))
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "DownloadRequest", "namespace": "velero",
                          "name": "nightly-x7k2p", "uid": "uid-1", "resourceVersion": "41"},
                         event["involvedObject"])
        self.assertEqual(["2026-05-04T12:00:00Z"] * 2, [event["firstTimestamp"], event["lastTimestamp"]])
        self.assertEqual("velero", event["metadata"]["namespace"])

    def test_names(self) -> None:
        """The name it gets is valid for every name of a request."""
        for name in AWKWARD_NAMES:
            start = vr.event_for(a_download(key=a_key(name=name)), "R", "m", NOW)["metadata"]["generateName"]
            self.assertTrue(VALID_NAME.match(start + "x7k2p") and len(start) <= 58, start)


class TestNewDownloadRequest(unittest.TestCase):
    """Tests for `new_download_request`."""

    def test_document(self) -> None:
        """The object names its target and lets the API server complete its name."""
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "DownloadRequest",
                          "metadata": {"generateName": "nightly-", "namespace": "velero"},
                          "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}},
                         vr.new_download_request("velero", "BackupLog", "nightly"))

    def test_names(self) -> None:
        """The completed name is valid and uncut for every name of a backup, 253 characters included."""
        for name in AWKWARD_NAMES:
            start = vr.new_download_request("velero", "BackupLog", name)["metadata"]["generateName"]
            self.assertTrue(VALID_NAME.match(start + "x7k2p") and len(start) <= 58, start)

    def test_it_is_read_back(self) -> None:
        """What is created is what the controller reads."""
        request = vr.download_request_from(vr.new_download_request("velero", "RestoreLog", "r"))
        self.assertEqual(("RestoreLog", "r", ""), (request.target_kind, request.target_name, request.phase))

    def test_status_requests(self) -> None:
        """A ServerStatusRequest is named as the velero CLI names its own."""
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {},
                          "metadata": {"generateName": "velero-cli-", "namespace": "ns"}},
                         vr.new_status_request("ns"))


# ------------------------------------------------------------------------------------------------------------
# Section 8: text for people and machines
# ------------------------------------------------------------------------------------------------------------


class TestTable(unittest.TestCase):
    """Tests for `table`."""

    def test_layout(self) -> None:
        """Columns are at least 6 wide and 3 apart, the last one is not padded."""
        self.assertEqual("A     B     C\n1     2     3\n", vr.table([("A", "B", "C"), ("1", "2", "3")]))
        self.assertEqual("NAME     X\nabcdef   y\n", vr.table([("NAME", "X"), ("abcdef", "y")]))
        self.assertEqual("ONE\n", vr.table([("ONE",)]))

    def test_plugins(self) -> None:
        """Plugins look as `velero plugin get` prints them."""
        self.assertEqual("NAME                          KIND\n"
                         "velero.io/crd-remap-version   BackupItemAction\n"
                         "velero.io/aws                 ObjectStore\n", vr.plugin_table(
                             [("BackupItemAction", "velero.io/crd-remap-version"),
                              ("ObjectStore", "velero.io/aws")]))

    def test_no_plugins(self) -> None:
        """Without plugins there is not even a header."""
        self.assertEqual("", vr.plugin_table([]))

    def test_hostile_plugins(self) -> None:
        """A plugin's name cannot add lines or colours to the table."""
        text = vr.plugin_table([("Object\nStore", "velero.io/\x1b[31maws")])
        self.assertEqual((2, False), (text.count("\n"), "\x1b" in text))


class TestVersionText(unittest.TestCase):
    """Tests for `version_text`."""

    def test_layout(self) -> None:
        """The two blocks look as `velero version` prints them."""
        client, server = vr.version_text("v1.18.1").split("Server:\n")
        self.assertRegex(client, r"\AClient:\n\tVersion: v\d+\.\d+\.\d+\S*\n\tGit commit: \S+\n\Z")
        self.assertEqual("\tVersion: v1.18.1\n", server)

    def test_client_only(self) -> None:
        """Without a server there is no second block."""
        self.assertNotIn("Server", vr.version_text(None))

    def test_hostile_version(self) -> None:
        """A server's version cannot add lines."""
        self.assertEqual(vr.version_text("v1").count("\n"), vr.version_text("v1\nServer:\x1b[2J").count("\n"))


class TestJsonText(unittest.TestCase):
    """Tests for `json_text` and `yaml_text`."""

    documents = ({"b": [1, None, True], "a": {"ü": "✓ x: y", "n": "no", "t": "2026-05-04T12:00:00Z"}},
                 {"x": []})

    def test_json(self) -> None:
        """JSON has two blanks of indent, no ASCII escapes, the order of the document and a last line end."""
        self.assertEqual('{\n  "b": [\n    1\n  ],\n  "a": "ü"\n}\n', vr.json_text({"b": [1], "a": "ü"}))

    def test_yaml(self) -> None:
        """YAML is read back as what it was, several documents as several."""
        self.assertEqual(list(self.documents), list(yaml.safe_load_all(vr.yaml_text(*self.documents))))
        self.assertEqual(self.documents[0], yaml.safe_load(vr.yaml_text(self.documents[0])))
        self.assertEqual("a: ü\nb:\n- 1\n", vr.yaml_text({"b": [1], "a": "ü"}))


def without_descriptions(value: Any) -> Any:
    """A manifest without the descriptions of its fields and the annotation of the program that made it."""
    if isinstance(value, list):
        return [without_descriptions(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: without_descriptions(item) for name, item in value.items()
            if not (name == "description" and isinstance(item, str))}
    annotations = kept.get("annotations")
    if isinstance(annotations, dict) and annotations.pop("controller-gen.kubebuilder.io/version",
                                                         None) and not annotations:
        del kept["annotations"]
    return kept


class TestCrdManifests(unittest.TestCase):
    """Tests for `crd_manifests`."""

    @unittest.skipUnless(os.path.isdir(os.environ.get("VELERO_CRDS", "")), NO_CRDS)
    def test_veleros_own(self) -> None:
        """But for descriptions the manifests are those of Velero 1.6.3 and 1.18.1."""
        for release, status_subresource in (("1.6.3", True), ("1.18.1", False)):
            with open(os.path.join(os.environ["VELERO_CRDS"], f"velero-{release}.yaml"),
                      encoding="utf-8") as file:
                theirs = [without_descriptions(document) for document in yaml.safe_load_all(file) if document]
            ours = vr.crd_manifests(status_subresource)
            self.assertEqual([crd["metadata"]["name"] for crd in theirs],
                             [crd["metadata"]["name"] for crd in ours])
            for expected, crd in zip(theirs, ours):
                with self.subTest(release=release, name=crd["metadata"]["name"]):
                    self.assertEqual(expected, crd)

    def test_dialects(self) -> None:
        """Only the older dialect has a status subresource on the two request kinds."""
        for status_subresource in (True, False):
            for crd in vr.crd_manifests(status_subresource):
                if crd["spec"]["names"]["kind"] in ("DownloadRequest", "ServerStatusRequest"):
                    subresources = crd["spec"]["versions"][0].get("subresources") or {}
                    self.assertEqual(status_subresource, "status" in subresources)

    def test_kinds_of_each_dialect(self) -> None:
        """The newer dialect lists all kinds but BackupItemSnapshots, the older one those of Velero 1.6."""
        for status_subresource, expected in ((False,
                                              {kind for kind, _, _ in LAYOUT} - {"BackupItemSnapshots"}), (
                True, {"BackupLog", "BackupContents", "BackupVolumeSnapshots", "BackupResourceList",
                       "RestoreLog",
                       "RestoreResults"})):
            crd = next(crd for crd in vr.crd_manifests(status_subresource)
                       if crd["spec"]["names"]["kind"] == "DownloadRequest")
            schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
            self.assertEqual(expected, set(schema["properties"]["target"]["properties"]["kind"]["enum"]))

    def test_they_share_nothing(self) -> None:
        """Each call gives documents of its own, and their YAML has no anchors."""
        vr.crd_manifests(False)[0]["spec"].clear()
        self.assertTrue(all(crd["spec"] for crd in vr.crd_manifests(False)))
        self.assertNotRegex(vr.yaml_text(*vr.crd_manifests(False)), r"(?m)[:-] [&*]\w")


# ------------------------------------------------------------------------------------------------------------
# Section 12: inflate, checked, check_target, save
# ------------------------------------------------------------------------------------------------------------

CONTENT = b"".join(b"line %d of a log\n" % number for number in range(20))
PACKED = gzip.compress(CONTENT)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """Data in chunks of a size."""
    return (data[start:start + size] for start in range(0, len(data), size))


class TestInflate(unittest.TestCase):
    """Tests for `inflate`."""

    def test_any_cut(self) -> None:
        """However the bytes are cut, and with empty chunks between them, the content is the same."""
        for size in range(1, len(PACKED) + 1):
            chunks = itertools.chain.from_iterable((chunk, b"") for chunk in cut(PACKED, size))
            self.assertEqual(CONTENT, b"".join(vr.inflate(chunks)), f"chunks of {size}")

    def test_members(self) -> None:
        """Several members give their contents one after another, wherever the cuts fall."""
        data = PACKED + gzip.compress(b"") + gzip.compress(b"second")
        for size in (1, 7, len(PACKED), len(data)):
            self.assertEqual(CONTENT + b"second", b"".join(vr.inflate(cut(data, size))))
        self.assertEqual(b"", b"".join(vr.inflate([gzip.compress(b"")])))

    def test_padding(self) -> None:
        """Zeros behind the last member are padding."""
        for zeros, size in itertools.product((1, 512, 10000), (1, 100, 100000)):
            self.assertEqual(CONTENT, b"".join(vr.inflate(cut(PACKED + b"\0" * zeros, size))))

    def test_junk(self) -> None:
        """Anything else behind the last member is an error, also behind padding."""
        for junk in (b"x", b"\x1f", b"\0\0x", b"<html>", PACKED[:5], b"\n"):
            for size in (1, 100000):
                with self.subTest(junk=junk, size=size), self.assertRaises(vr.StoreError):
                    list(vr.inflate(cut(PACKED + junk, size)))

    def test_every_truncation(self) -> None:
        """A file cut short at any byte is an error."""
        for length in range(len(PACKED)):
            with self.assertRaises(vr.StoreError, msg=f"{length} bytes") as caught:
                list(vr.inflate([PACKED[:length]]))
            self.assertRegex(str(caught.exception), "short" if length else "empty")
        self.assertRaises(vr.StoreError, list, vr.inflate([]))

    def test_every_flipped_bit(self) -> None:
        """A flipped bit anywhere is an error, or lies where gzip keeps no content and changes none."""
        for position in range(8 * len(PACKED)):
            damaged = bytearray(PACKED)
            damaged[position // 8] ^= 1 << position % 8
            try:
                content = b"".join(vr.inflate([bytes(damaged)]))
            except vr.StoreError:
                continue
            self.assertEqual(CONTENT, content)
            spare = [*range(3, 10), len(PACKED) - 9]  # flags, time and system, and bits behind the last block
            self.assertIn(position // 8, spare)

    def test_bomb(self) -> None:
        """Whatever the ratio, the pieces stay small."""
        bomb = gzip.compress(b"\0" * (16 << 20))
        sizes = [len(piece) for piece in vr.inflate([bomb])]
        self.assertEqual(16 << 20, sum(sizes))
        self.assertLessEqual(max(sizes), vr.CHUNK)

    def test_what_it_is_instead(self) -> None:
        """An error says what the file is when it is no gzip, and never shows a signature."""
        for data, word in ((b"<!DOCTYPE html><html>", "HTML"), (b"  <HTML>", "HTML"),
                           (b"<?xml version='1'?>", "XML"),
                           (b"<Error><Code>x</Code>", "XML"), (b"PK\x03\x04\0\0", "binary"),
                           (b"plain words", "plain"),
                           (b"see X-Amz-Signature=s3cr3t", "text")):
            with self.subTest(data=data), self.assertRaisesRegex(vr.StoreError,
                                                                 f"not gzip.*{word}") as caught:
                list(vr.inflate([data]))
            self.assertNotIn("s3cr3t", str(caught.exception))


class TestChecked(unittest.TestCase):
    """Tests for `checked`."""

    def test_the_same_bytes(self) -> None:
        """What is whole passes unchanged, members and padding included."""
        for data in (PACKED, PACKED + PACKED, PACKED + b"\0" * 600, gzip.compress(b"\0" * (1 << 20))):
            for size in (1 if len(data) < 2000 else 500, 1000, 1 << 20):
                self.assertEqual(data, b"".join(vr.checked(cut(data, size))))

    def test_what_is_not_whole(self) -> None:
        """What is cut short, damaged, empty or followed by junk is an error as with `inflate`."""
        flipped = PACKED[:-5] + bytes([PACKED[-5] ^ 1]) + PACKED[-4:]
        for data in (b"", PACKED[:-1], flipped, PACKED + b"x", b"plain"):
            for size in (1, 1000):
                with self.subTest(data=data[-8:], size=size), self.assertRaises(vr.StoreError):
                    list(vr.checked(cut(data, size)))

    def test_nothing_is_held_back(self) -> None:
        """Chunks are handed on as they come, not at the end."""
        chance = random.Random(5)
        chunks = list(cut(gzip.compress(bytes(chance.randrange(256) for _ in range(10000))), 1000))
        read: List[bytes] = []
        passing = vr.checked(read.append(chunk) or chunk for chunk in chunks)
        for number, _ in enumerate(passing, 1):
            self.assertLessEqual(len(read) - number, 2)
        self.assertEqual(chunks, read)


class FolderCase(unittest.TestCase):
    """A temporary folder for each test, and a look at what is in it."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name
        self.path = os.path.join(self.folder, "out.gz")

    def write(self, content: bytes) -> None:
        """Put a file at `path`."""
        with open(self.path, "wb") as file:
            file.write(content)

    def found(self) -> Dict[str, bytes]:
        """Name and content of each file in the folder."""
        contents = {}
        for name in os.listdir(self.folder):
            with open(os.path.join(self.folder, name), "rb") as file:
                contents[name] = file.read()
        return contents


class TestCheckTarget(FolderCase):
    """Tests for `check_target`."""

    def test_new_files(self) -> None:
        """A name that is free in a folder that is there is fine, with and without force."""
        for force in (False, True):
            vr.check_target(self.path, force=force)
        vr.check_target("surely-no-such-file-in-this-folder.gz", force=False)

    def test_existing_files(self) -> None:
        """A file that is there, or a link that leads nowhere, needs force, and the hint says so."""
        self.write(b"old")
        link = os.path.join(self.folder, "link")
        os.symlink("nowhere", link)
        for path in (self.path, link):
            with self.assertRaises(vr.Error) as caught:
                vr.check_target(path, force=False)
            self.assertIn(path, str(caught.exception))
            self.assertIn("--force", " ".join(caught.exception.hints))
        vr.check_target(self.path, force=True)

    def test_no_folder(self) -> None:
        """A missing folder, or a file in its place, is named."""
        self.write(b"old")
        for path in (os.path.join(self.folder, "gone", "x"), os.path.join(self.path, "x")):
            for force in (False, True):
                with self.subTest(path=path, force=force), self.assertRaisesRegex(vr.Error, re.escape(path)):
                    vr.check_target(path, force=force)

    def test_a_folder_as_target(self) -> None:
        """A folder is not a file, even with force."""
        for force in (False, True):
            with self.assertRaisesRegex(vr.Error, "folder"):
                vr.check_target(self.folder, force=force)


class TestSave(FolderCase):
    """Tests for `save`."""

    def test_a_new_file(self) -> None:
        """The file has the chunks in order, its size is returned, and only its owner may read it."""
        self.assertEqual(5, vr.save(self.path, [b"ab", b"", b"cde"]))
        self.assertEqual({"out.gz": b"abcde"}, self.found())
        self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))

    def test_an_existing_file(self) -> None:
        """An existing file is untouched without force and replaced with it."""
        self.write(b"old")
        with self.assertRaisesRegex(vr.Error, re.escape(self.path)):
            vr.save(self.path, [b"new"])
        self.assertEqual({"out.gz": b"old"}, self.found())
        vr.save(self.path, [b"new"], force=True)
        self.assertEqual({"out.gz": b"new"}, self.found())

    def test_an_error_half_way(self) -> None:
        """When the chunks break off nothing is left, and an existing file is untouched, even with force."""
        def broken(error: BaseException) -> Iterator[bytes]:
            yield b"half"
            raise error
        for error in (vr.StoreError("cut short"), KeyboardInterrupt(), OSError(5, "Input/output error"),
                      SystemExit(1)):
            for before in ({}, {"out.gz": b"old"}):
                if before:
                    self.write(b"old")
                with self.subTest(error=repr(error)), self.assertRaises((vr.Error, type(error))):
                    vr.save(self.path, broken(error), force=bool(before))
                self.assertEqual(before, self.found())
            os.unlink(self.path)

    def test_a_race(self) -> None:
        """A file that comes while the chunks do is not replaced without force."""
        def chunks() -> Iterator[bytes]:
            yield b"ours"
            self.write(b"theirs")
        with self.assertRaisesRegex(vr.Error, re.escape(self.path)):
            vr.save(self.path, chunks())
        self.assertEqual({"out.gz": b"theirs"}, self.found())

    def test_nothing_is_there_before_the_end(self) -> None:
        """While the chunks come the target does not exist, and the old file keeps its content."""
        def chunks() -> Iterator[bytes]:
            yield b"new"
            self.assertEqual(before, self.found().get("out.gz"))
        for before in (None, b"new"):
            vr.save(self.path, chunks(), force=True)

    def test_no_folder(self) -> None:
        """A missing folder is an Error that names the file."""
        path = os.path.join(self.folder, "gone", "x")
        with self.assertRaisesRegex(vr.Error, re.escape(path)):
            vr.save(path, [b"x"])

    def test_a_folder_as_target(self) -> None:
        """A folder in the target's place is an Error, with force and without, and nothing is left."""
        os.mkdir(self.path)
        for force in (False, True):
            with self.subTest(force=force), self.assertRaisesRegex(vr.Error, re.escape(self.path)):
                vr.save(self.path, [b"x"], force=force)
            self.assertEqual(["out.gz"], os.listdir(self.folder))

    def test_long_names(self) -> None:
        """A name as long as the file system allows is no problem, whatever its letters."""
        for name in ("a" * 255, "€" * 85, "." + "b" * 254):
            with self.subTest(name=name[:3]):
                self.assertEqual(1, vr.save(os.path.join(self.folder, name), [b"x"]))


# ------------------------------------------------------------------------------------------------------------
# Section 13: the queue
# ------------------------------------------------------------------------------------------------------------


class HandClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestQueue(unittest.TestCase):
    """Tests for `Queue`."""

    def setUp(self) -> None:
        self.clock = HandClock()
        self.queue = vr.Queue(self.clock)

    def take_all(self) -> List[Any]:
        """Take and finish keys until none is ready."""
        taken = []
        while True:
            key = self.queue.take(wait=False)
            if key is None:
                return taken
            taken.append(key)
            self.queue.done(key)

    def at(self, now: float) -> List[Any]:
        """Turn the clock and take all that is ready then."""
        self.clock.now = now
        return self.take_all()

    def test_order_and_dedupe(self) -> None:
        """Keys come in the order they were added, each once however often it was added."""
        for key in "abacab":
            self.queue.add(key)
        self.assertEqual(["a", "b", "c"], self.take_all())
        self.assertEqual([], self.take_all())

    def test_dirty_while_working(self) -> None:
        """A key added while it is worked on comes again afterwards, once, and not before."""
        self.queue.add("a")
        self.assertEqual("a", self.queue.take(wait=False))
        self.queue.add("a")
        self.queue.add("a")
        self.assertIsNone(self.queue.take(wait=False))
        self.queue.done("a")
        self.assertEqual(["a"], self.take_all())

    def test_delays(self) -> None:
        """A key comes at its instant, not before, and once; several come in the order of their instants."""
        for key, instant in (("late", 1030), ("soon", 1010), ("next", 1020), ("past", 5)):
            self.queue.add_at(key, instant)
        self.assertEqual([["past"], [], ["soon"], [], ["next", "late"], []],
                         [self.at(now) for now in (1000, 1009.9, 1010, 1019, 1030, 9999)])

    def test_the_last_instant_counts(self) -> None:
        """Another instant replaces the one before, earlier or later."""
        for first, second in ((1010, 1020), (1020, 1010)):
            self.clock.now = 1000.0
            self.queue.add_at("a", first)
            self.queue.add_at("a", second)
            with self.subTest(first=first, second=second):
                self.assertEqual([[], ["a"], []], [self.at(now) for now in (second - 1, second, 1100)])

    def test_back_and_forth(self) -> None:
        """An instant that is said again after another one fires once."""
        for instant in (1010, 1020, 1010):
            self.queue.add_at("a", instant)
        self.assertEqual([["a"], []], [self.at(1010), self.at(1100)])

    def test_cancel(self) -> None:
        """A cancelled instant never comes, and one said afterwards does."""
        self.queue.add_at("a", 1010)
        self.queue.cancel("a")
        self.queue.cancel("never there")
        self.assertEqual([], self.at(1010))
        self.queue.add_at("a", 1020)
        self.assertEqual(["a"], self.at(1020))

    def test_adding_keeps_the_instant(self) -> None:
        """A look now does not cancel the look that was said for later."""
        self.queue.add_at("a", 1010)
        self.queue.add("a")
        self.assertEqual([["a"], ["a"]], [self.at(1000), self.at(1010)])

    def test_due_while_working(self) -> None:
        """An instant that comes while the key is worked on counts afterwards."""
        self.queue.add("a")
        self.queue.take(wait=False)
        self.queue.add_at("a", 1010)
        self.clock.now = 1010.0
        self.assertIsNone(self.queue.take(wait=False))
        self.queue.done("a")
        self.assertEqual(["a"], self.take_all())

    def test_failures(self) -> None:
        """Failures in a row are counted for each key until it is forgotten."""
        self.assertEqual([1, 2, 1, 3], [self.queue.fail(key) for key in "aaba"])
        self.queue.forget("a")
        self.queue.forget("never there")
        self.assertEqual([1, 2], [self.queue.fail("a"), self.queue.fail("b")])

    def test_close_wakes(self) -> None:
        """Closing ends every waiting `take`, and nothing more is handed out."""
        answers: List[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(self.queue.take()),
                                    daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        self.queue.close()
        self.queue.add("a")
        for thread in threads:
            thread.join(10)
        self.assertEqual(([None] * 3, None), (answers, self.queue.take()))

    def test_turning_the_clock_wakes(self) -> None:
        """A worker that waits for an instant gets the key when the clock is turned there and it is woken."""
        self.queue.add_at("a", 5000)
        answers: List[Any] = []
        thread = threading.Thread(target=lambda: answers.append(self.queue.take()), daemon=True)
        thread.start()
        self.clock.now = 5000.0
        self.queue.wake()
        thread.join(10)
        self.assertEqual(["a"], answers)

    def test_threads_never_share_a_key(self) -> None:
        """Many threads work on few keys, no two on the same one, and no key is lost."""
        held: Dict[int, int] = dict.fromkeys(range(4), 0)
        trouble: List[int] = []
        worked: Dict[int, int] = dict.fromkeys(range(4), 0)

        def work() -> None:
            for key in iter(self.queue.take, None):
                held[key] += 1
                if held[key] > 1:
                    trouble.append(key)
                worked[key] += 1
                if worked[key] < 200:
                    self.queue.add(key)
                held[key] -= 1
                self.queue.done(key)
                if min(worked.values()) >= 200:
                    self.queue.close()
        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for key in held:
            self.queue.add(key)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        self.assertEqual(([], dict.fromkeys(range(4), 200)), (trouble, worked))


Document = Dict[str, Any]

# Who may talk to either cluster.  The token is derived from the name, so that a test can write it down.
USERS = ("admin", "limited", "reader", "controller", "stranger")


def token_of(user: str) -> str:
    """Return the bearer token of a test user."""
    return "token-of-" + user


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Return the first true value of condition(), or fail after a deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        pause.wait(0.005)


# ------------------------------------------------------------------------------------------------------------
# Certificates
# ------------------------------------------------------------------------------------------------------------

class Certificate(NamedTuple):
    """The files of a server certificate for 127.0.0.1 and localhost, and of the authority that signed it."""

    ca: str
    cert: str
    key: str


_certificates: List[Certificate] = []
_certificate_lock = threading.Lock()


def run_openssl(*arguments: str) -> None:
    """Run openssl and fail with what it said."""
    done = subprocess.run(("openssl",) + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stdout.decode(errors='replace')}")


def make_certificate(folder: str) -> Certificate:
    """Make an authority and a server certificate signed by it in folder."""
    made = Certificate(*(os.path.join(folder, name) for name in ("ca.crt", "tls.crt", "tls.key")))
    ca_key, request, extensions = (os.path.join(folder, name) for name in ("ca.key", "tls.csr", "tls.ext"))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run_openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", made.ca, "-days", "30", "-subj",
                "/CN=test-ca",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run_openssl("req", *new_key, "-keyout", made.key, "-out", request, "-subj", "/CN=loopback")
    with open(extensions, "w", encoding="ascii") as file:
        # Python 3.13 verifies strictly: without the two key identifiers it refuses the certificate.
        file.write("subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
                   "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    run_openssl("x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-days",
                "30",
                "-out", made.cert, "-extfile", extensions)
    return made


def shared_certificate() -> Certificate:
    """Return the one certificate of this process, made at the first call and removed at exit."""
    with _certificate_lock:
        if not _certificates:
            folder = tempfile.mkdtemp(prefix="velero-requests-tls-")
            atexit.register(shutil.rmtree, folder, True)
            _certificates.append(make_certificate(folder))
        return _certificates[0]


# ------------------------------------------------------------------------------------------------------------
# What both clusters share: the administrator's client, kubeconfig files, CRDs, namespaces
# ------------------------------------------------------------------------------------------------------------

GROUPS = {
    "downloadrequests": "velero.io/v1", "serverstatusrequests": "velero.io/v1", "backups": "velero.io/v1",
    "restores": "velero.io/v1", "backupstoragelocations": "velero.io/v1",
    "secrets": "v1", "events": "v1", "namespaces": "v1", "configmaps": "v1", "pods": "v1", "services": "v1",
    "serviceaccounts": "v1", "deployments": "apps/v1", "leases": "coordination.k8s.io/v1",
    "customresourcedefinitions": "apiextensions.k8s.io/v1",
    "roles": "rbac.authorization.k8s.io/v1", "rolebindings": "rbac.authorization.k8s.io/v1",
    "clusterroles": "rbac.authorization.k8s.io/v1", "clusterrolebindings": "rbac.authorization.k8s.io/v1",
    "subjectaccessreviews": "authorization.k8s.io/v1",
}


def resource_path(resource: str, namespace: Optional[str] = None, name: Optional[str] = None) -> str:
    """Return the API path of a resource that GROUPS knows; a slash in resource names a subresource."""
    plural, _, subresource = resource.partition("/")
    group = GROUPS[plural]
    parts = ["/api/v1" if group == "v1" else "/apis/" + group]
    parts += ["namespaces", namespace] if namespace else []
    parts += [plural] + ([quote(name, safe="")] if name else []) + ([subresource] if subresource else [])
    return "/".join(parts)


class Refused(Exception):
    """The server answered a call of the administrator with an error status."""

    def __init__(self, status: int, body: bytes) -> None:
        """Keep the status, the body and, when it is JSON, the document in it."""
        super().__init__(f"{status}: {body[:500].decode(errors='replace')}")
        self.status = status
        self.body = body
        try:
            self.document: Document = json.loads(body)
        except ValueError:
            self.document = {}

    @property
    def message(self) -> str:
        """Return the message of the Status document."""
        return str(self.document.get("message", ""))


class Admin:
    """A small Kubernetes client for tests that shares no line with the module under test."""

    def __init__(self, url: str, token: Optional[str], ca: Optional[str] = None) -> None:
        """Remember where the API is and who calls."""
        self.url = url
        self.headers = {"Authorization": "Bearer " + token} if token else {}
        options: Document = {"ca_certs": ca, "cert_reqs": "CERT_REQUIRED"} if url.startswith("https") else {}
        self.pool = urllib3.connection_from_url(url, maxsize=8, timeout=urllib3.Timeout(connect=5, read=150),
                                                retries=False, **options)

    def raw(self, method: str, path: str, body: Any = None, content_type: str = "application/json",
            query: Optional[Document] = None, stream: bool = False) -> Any:
        """Send one request and return urllib3's response, whatever its status."""
        headers = dict(self.headers)
        if body is not None:
            headers["Content-Type"] = content_type
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        target = path + ("?" + urlencode(query) if query else "")
        return self.pool.urlopen(method, target, body=body, headers=headers, preload_content=not stream,
                                 redirect=False)

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json",
             query: Optional[Document] = None) -> Document:
        """Send one request and return the document answered, or raise Refused."""
        response = self.raw(method, path, body, content_type, query)
        if response.status >= 300:
            raise Refused(response.status, response.data)
        return json.loads(response.data)

    def get(self, resource: str, name: str, namespace: Optional[str] = None) -> Document:
        """Return one object."""
        return self.call("GET", resource_path(resource, namespace, name))

    def list(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Document:
        """Return the list document; the query names the API's parameters, as in limit=2."""
        return self.call("GET", resource_path(resource, namespace), query=query)

    def create(self, resource: str, document: Document, namespace: Optional[str] = None) -> Document:
        """Create an object; apiVersion is filled in when it is missing."""
        return self.call("POST", resource_path(resource, namespace), {"apiVersion": GROUPS[resource],
                                                                      **document})

    def put(self, resource: str, document: Document, namespace: Optional[str] = None) -> Document:
        """Replace an object (resource may name a subresource, as in downloadrequests/status)."""
        return self.call("PUT", resource_path(resource, namespace, document["metadata"]["name"]), document)

    def merge_patch(self, resource: str, name: str, patch: Document,
                    namespace: Optional[str] = None) -> Document:
        """Apply an RFC 7386 patch to the object or to the subresource named behind a slash."""
        return self.call("PATCH", resource_path(resource, namespace, name), patch,
                         "application/merge-patch+json")

    def patch_status(self, resource: str, name: str, status: Any,
                     namespace: Optional[str] = None) -> Document:
        """Set fields of the status through the status subresource."""
        return self.merge_patch(resource + "/status", name, {"status": status}, namespace)

    def delete(self, resource: str, name: str, namespace: Optional[str] = None,
               **preconditions: str) -> Document:
        """Delete an object, optionally only with this uid= or resourceVersion=."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions",
                "preconditions": preconditions} if preconditions else None
        return self.call("DELETE", resource_path(resource, namespace, name), body)

    def watch(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Iterator[Document]:
        """Yield the events of a watch until the server ends it."""
        response = self.raw("GET", resource_path(resource, namespace), query={"watch": "1", **query},
                            stream=True)
        try:
            if response.status >= 300:
                raise Refused(response.status, response.read())
            pending = b""
            for part in response.stream(65536):
                *lines, pending = (pending + part).split(b"\n")
                for line in lines:
                    yield json.loads(line)
        finally:
            response.close()

    def close(self) -> None:
        """Close the connections."""
        self.pool.close()


class Cluster:
    """What a test may ask of either cluster."""

    kind = "abstract"
    url = ""
    ca: Optional[str] = None
    admin: Admin

    def client(self, user: Optional[str]) -> Admin:
        """Return a client that calls as this user; None calls without a token."""
        return Admin(self.url, token_of(user) if user else None, self.ca)

    def kubeconfig(self, folder: str, user: str = "admin", namespace: Optional[str] = None) -> str:
        """Write a kubeconfig file with inline CA data and a token, and return its path."""
        cluster: Document = {"server": self.url}
        if self.ca:
            with open(self.ca, "rb") as file:
                cluster["certificate-authority-data"] = base64.b64encode(file.read()).decode()
        context = {"cluster": "test", "user": user, **({"namespace": namespace} if namespace else {})}
        document = {"apiVersion": "v1", "kind": "Config", "current-context": "test",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": user, "user": {"token": token_of(user)}}],
                    "contexts": [{"name": "test", "context": context}]}
        path = os.path.join(folder, f"kubeconfig-{user}-{namespace or 'none'}-{uuid.uuid4().hex[:6]}")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        os.chmod(path, 0o600)
        return path

    def install_crds(self, documents: Iterable[Document]) -> None:
        """Make the cluster serve these CRDs, whatever dialect of them it served before."""
        wanted = [document for document in documents if document]
        for document in wanted:
            self._replace_crd(document)
        for document in wanted:
            what = "the CRD " + document["metadata"]["name"]
            wait_until(functools.partial(self._serves, document), 30, what)

    def _replace_crd(self, document: Document) -> None:
        name = document["metadata"]["name"]
        body = {key: value for key, value in document.items() if key != "status"}
        try:
            current = self.admin.get("customresourcedefinitions", name)
        except Refused as refused:
            if refused.status != 404:
                raise
            self.admin.create("customresourcedefinitions", body)
            return
        body["metadata"] = {**body["metadata"], "resourceVersion": current["metadata"]["resourceVersion"]}
        self.admin.put("customresourcedefinitions", body)

    def _serves(self, crd: Document) -> bool:
        """Say whether discovery shows the CRD's dialect and the server really answers in it."""
        spec = crd["spec"]
        group, plural, version = spec["group"], spec["names"]["plural"], spec["versions"][0]
        wanted = "status" in (version.get("subresources") or {})
        base = f"/apis/{group}/{version['name']}"
        found = self.admin.raw("GET", base)
        if found.status != 200:
            return False
        names = [entry["name"] for entry in json.loads(found.data)["resources"]]
        if plural not in names or (plural + "/status" in names) != wanted:
            return False
        if self.admin.raw("GET", f"{base}/{plural}", query={"limit": 1}).status != 200:
            return False
        # Discovery may run ahead of the handler.  A method that no status knows tells: 405 where there is a
        # status subresource, 404 where there is none.
        probe = self.admin.raw("POST", f"{base}/namespaces/default/{plural}/none/status")
        if probe.status != (405 if wanted else 404):
            return False
        if self.kind == "fake":
            return True
        # A watch may still be refused with 429 while the server's cache of the kind is made anew.
        version = json.loads(self.admin.raw("GET", f"{base}/{plural}").data)["metadata"]["resourceVersion"]
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": 1}
        watch = self.admin.raw("GET", f"{base}/namespaces/default/{plural}", query=query, stream=True)
        watch.close()
        return watch.status == 200

    def new_namespace(self, name: Optional[str] = None) -> str:
        """Create a namespace, with a fresh name unless one is given, and return its name."""
        name = name or "ns-" + uuid.uuid4().hex[:10]
        try:
            self.admin.create("namespaces", {"kind": "Namespace", "metadata": {"name": name}})
        except Refused as refused:
            if refused.status != 409:
                raise
        return name

    def clear(self, namespace: str) -> None:
        """Delete every object that a test can have left in the namespace."""
        for resource in ("downloadrequests", "serverstatusrequests", "backups", "restores",
                         "backupstoragelocations",
                         "secrets", "events", "leases", "deployments"):
            response = self.admin.raw("GET", resource_path(resource, namespace))
            for item in json.loads(response.data).get("items", []) if response.status == 200 else []:
                self._remove(resource, item["metadata"], namespace)

    def _remove(self, resource: str, metadata: Document, namespace: str) -> None:
        path = resource_path(resource, namespace, metadata["name"])
        if metadata.get("finalizers"):
            self.admin.raw("PATCH", path, {"metadata": {"finalizers": None}}, "application/merge-patch+json")
        self.admin.raw("DELETE", path)

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Allow what these RBAC PolicyRules say to the user in the namespace."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the server and remove its files."""
        raise NotImplementedError

# ------------------------------------------------------------------------------------------------------------
# HTTP/1.1 over loopback: what both fakes are built on
# ------------------------------------------------------------------------------------------------------------

class Request:
    """One request as it came over the wire; target is the raw request line's, unfolded and undecoded."""

    def __init__(self, method: str, target: str, headers: List[Tuple[str, str]], body: bytes) -> None:
        """Split the target, and index the headers by lower-case name."""
        self.method = method
        self.target = target
        self.raw_path, _, self.raw_query = target.partition("?")
        self.header_list = headers
        self.headers = {name.lower(): value for name, value in headers}
        self.body = body
        self.user: Optional[str] = None
        self.parsed: Any = None
        self.status = 0
        self.at = time.monotonic()

    @property
    def path(self) -> str:
        """Return the decoded path."""
        return unquote(self.raw_path)

    @property
    def query(self) -> Dict[str, str]:
        """Return the decoded query."""
        return dict(parse_qsl(self.raw_query, keep_blank_values=True))

    @property
    def content_type(self) -> str:
        """Return the media type without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip()

    def __repr__(self) -> str:
        """Show what a failing test needs to see."""
        return f"<{self.method} {self.target} by {self.user} -> {self.status}>"


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: Tuple[Tuple[str, str], ...] = (("Content-Type", "application/json"),)


# Stands for the answer to a watch, which is no single answer.
STREAM = Answer(0, b"")


class Fault:
    """A scripted misbehaviour, used up after some times; `hits` counts how often it struck."""

    def __init__(self, method: Optional[str], path_part: str, times: int, options: Document) -> None:
        """Remember what to match and what to do."""
        self.method = method
        self.path_part = path_part
        self.left = times
        self.hits = 0
        self.options = options

    def matches(self, request: Request) -> bool:
        """Say whether this fault strikes the request."""
        return self.left > 0 and self.method in (None, request.method) and self.path_part in request.target


class Connection:
    """The server's side of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Wrap the accepted socket."""
        self.socket = sock
        self.reader = sock.makefile("rb")

    def receive(self) -> Optional[Request]:
        """Read the next request, or return None at the end of the connection."""
        line = self.reader.readline(65537)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        headers = []
        while True:
            line = self.reader.readline(65537)
            if line in (b"\r\n", b"\n", b""):
                break
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        request = Request(method, target, headers, b"")
        if request.headers.get("expect", "").lower() == "100-continue":
            self.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = self._body(request)
        return request

    def _body(self, request: Request) -> bytes:
        if request.headers.get("transfer-encoding", "").lower() != "chunked":
            length = int(request.headers.get("content-length", "0"))
            return self.reader.read(length) if length else b""
        parts = []
        while True:
            size = int(self.reader.readline().split(b";")[0], 16)
            parts.append(self.reader.read(size))
            self.reader.readline()
            if not size:
                return b"".join(parts)

    def peer_has_left(self) -> bool:
        """Say whether the client closed its side; nobody pipelines, so anything to read means the end."""
        try:
            return bool(select.select([self.socket], [], [], 0)[0])
        except (OSError, ValueError):  # cut_connections has closed it meanwhile
            return True

    def close(self) -> None:
        """Close the connection for good, also for a thread that still reads from it."""
        for close in (lambda: self.socket.shutdown(socket.SHUT_RDWR), self.reader.close, self.socket.close):
            try:
                close()
            except OSError:
                pass


def head(status: int, headers: Iterable[Tuple[str, str]]) -> bytes:
    """Return the status line and the headers, blank line included."""
    reason = http.client.responses.get(status, "Unknown")
    lines = [f"HTTP/1.1 {status} {reason}"] + [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class LoopbackServer:
    """A threaded HTTP/1.1 server on 127.0.0.1 with scripted faults and a request log."""

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None) -> None:
        """Listen on a free port and serve at once."""
        self.requests: List[Request] = []
        self.bugs: List[str] = []
        self.faults: List[Fault] = []
        self.closing = threading.Event()
        self._connections: Dict[Connection, None] = {}
        self._log_lock = threading.Lock()
        self._context = self._tls_context(tls, certificate)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(512)
        self.port = int(self._listener.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self.url = ("https://" if tls else "http://") + self.host
        self._thread = threading.Thread(target=self._accept, name="loopback-accept", daemon=True)

    def _tls_context(self, tls: bool, certificate: Optional[Certificate]) -> Optional[ssl.SSLContext]:
        self.ca: Optional[str] = None
        if not tls:
            return None
        made = certificate or shared_certificate()
        self.ca = made.ca
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert, made.key)
        return context

    def start(self) -> None:
        """Begin to accept connections."""
        self._thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(accepted,), name="loopback", daemon=True).start()

    def _converse(self, accepted: socket.socket) -> None:
        """Answer the requests of one connection until either side ends it."""
        connection = None
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._context:
                accepted = self._context.wrap_socket(accepted, server_side=True)
            connection = Connection(accepted)
            with self._log_lock:
                self._connections[connection] = None
            while not self.closing.is_set():
                request = connection.receive()
                if request is None or not self._respond(request, connection):
                    return
        except (OSError, ValueError):
            pass  # the client went away, or does not speak HTTP or TLS: that is its own business
        finally:
            with self._log_lock:
                self._connections.pop(connection, None)  # type: ignore[arg-type]
            if connection:
                connection.close()
            else:
                accepted.close()

    def _respond(self, request: Request, connection: Connection) -> bool:
        """Log the request and answer it, and say whether the connection goes on."""
        self.identify(request)
        fault = None
        with self._log_lock:
            self.requests.append(request)
            for candidate in self.faults:
                if candidate.matches(request):
                    fault = candidate
                    fault.left -= 1
                    fault.hits += 1
                    break
        goes_on = request.headers.get("connection", "").lower() != "close"
        try:
            if fault:
                return self._misbehave(fault.options, request, connection) and goes_on
            return self.answer(request, connection) and goes_on
        except OSError:
            raise
        except Exception:  # pylint: disable=broad-except
            return self._own_up(request, connection)

    def _own_up(self, request: Request, connection: Connection) -> bool:
        """Answer 500 for a mistake of the fake's own, and keep the traceback where a test can see it."""
        self.bugs.append(traceback.format_exc())
        return self.send(request, connection, Answer(500, self.bugs[-1].encode(),
                                                     (("Content-Type", "text/plain"),)))

    def _misbehave(self, options: Document, request: Request, connection: Connection) -> bool:
        """Carry out a scripted fault."""
        gate = options.get("hang")
        if gate:
            self._wait(gate, connection)
        if options.get("chunks") is not None:
            return self._send_chunks(options, request, connection)
        scripted = options.get("status") is not None
        # With apply the request has its effect and only its answer is lost.
        true = self.handle(request) if options.get("apply") or not (scripted or options.get("drop")) else None
        if options.get("drop"):
            return False
        if true is STREAM:
            return self.answer(request, connection)
        answer = self._scripted(options) if scripted or true is None else true
        if options.get("body") is not None and not scripted:
            answer = answer._replace(body=self._scripted({"status": 200, **options}).body)
        extra = () if scripted else tuple((options.get("headers") or {}).items())
        return self.send(request, connection, answer._replace(headers=answer.headers + extra), options)

    def _scripted(self, options: Document) -> Answer:
        body = options.get("body")
        body = b"" if body is None else body
        headers = dict(options.get("headers") or {})
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        elif isinstance(body, str):
            body = body.encode()
        headers.setdefault("Content-Type", "text/plain")
        return Answer(options["status"], body, tuple(headers.items()))

    def _send_chunks(self, options: Document, request: Request, connection: Connection) -> bool:
        """Send a chunked body in pieces exactly as given; cut=True ends it without the last chunk."""
        request.status = options.get("status") or 200
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked",
                   **(options.get("headers") or {})}
        connection.socket.sendall(head(request.status, headers.items()))
        for piece in options["chunks"]:
            if isinstance(piece, threading.Event):
                self._wait(piece, connection)
            else:
                connection.socket.sendall(chunk(piece if isinstance(piece, bytes)
                                                else json.dumps(piece).encode() + b"\n"))
        if options.get("cut"):
            return False
        connection.socket.sendall(b"0\r\n\r\n")
        return True

    def send(self, request: Request, connection: Connection, answer: Answer,
             options: Optional[Document] = None) -> bool:
        """Send a complete answer in one go, and say whether the connection goes on."""
        request.status, options = answer.status, options or {}
        headers = list(answer.headers)
        cut_after, pause_after = options.get("cut_after"), options.get("pause_after")
        length = options.get("content_length", len(answer.body))
        bodiless = answer.status in (204, 304)
        if not bodiless and not any(name.lower() == "content-length" for name, _ in headers):
            headers.append(("Content-Length", str(length)))
        headers.append(("Date", formatdate(usegmt=True)))
        body = b"" if bodiless or request.method == "HEAD" else answer.body[:cut_after]
        data = head(answer.status, headers)
        if pause_after is not None:
            connection.socket.sendall(data + body[:pause_after])
            self._wait(options["gate"], connection)
            data, body = b"", body[pause_after:]
        connection.socket.sendall(data + body)
        return cut_after is None and "content_length" not in options

    def _wait(self, gate: threading.Event, connection: Connection) -> None:
        """Wait until the test opens the gate, the client leaves, or the server closes."""
        while not (gate.wait(0.02) or self.closing.is_set() or connection.peer_has_left()):
            pass

    # -- what a fake fills in --------------------------------------------------------------------------------

    def identify(self, request: Request) -> None:
        """Fill in who calls, for the log."""

    def answer(self, request: Request, connection: Connection) -> bool:
        """Answer one request, and say whether the connection goes on."""
        return self.send(request, connection, self.handle(request))

    def handle(self, request: Request) -> Answer:
        """Return the answer to a request."""
        raise NotImplementedError

    # -- what a test uses ------------------------------------------------------------------------------------

    def script(self, method: Optional[str] = None, path_part: str = "", times: int = 1,
               **options: Any) -> Fault:
        """Make the next matching requests go wrong, as the options say.

        status, headers, body (bytes, str or a document): this answer instead of the true one.
        Without status the true answer is given, with headers added to it.
        apply=True: the request has its effect first, and then the scripted answer (or the true one) is sent.
        drop=True: the connection is closed without an answer; cut_after=N: after N bytes of body.
        body without status: another body under the true headers.  content_length=N: lie about the length.
        hang=Event: wait for it first.  pause_after=N, gate=Event: wait for it after N bytes of body.
        chunks=[bytes | document | Event, ...], cut=True: a chunked body in these pieces, maybe unfinished.
        """
        fault = Fault(method, path_part, times, options)
        with self._log_lock:
            self.faults.append(fault)
        return fault

    def unscript(self) -> None:
        """Forget all scripted faults."""
        with self._log_lock:
            self.faults.clear()

    def seen(self, method: Optional[str] = None, path_part: str = "", user: Optional[str] = None,
             status: Optional[int] = None) -> List[Request]:
        """Return the logged requests that match."""
        with self._log_lock:
            return [request for request in self.requests
                    if method in (None, request.method) and path_part in request.target
                    and user in (None, request.user) and status in (None, request.status)]

    def count(self, method: Optional[str] = None, path_part: str = "", user: Optional[str] = None,
              status: Optional[int] = None) -> int:
        """Return how many logged requests match."""
        return len(self.seen(method, path_part, user, status))

    def forget(self) -> None:
        """Empty the request log."""
        with self._log_lock:
            self.requests.clear()

    def cut_connections(self) -> None:
        """Close every open connection, as a restart of the server would."""
        with self._log_lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def close(self) -> None:
        """Stop serving and close every connection."""
        self.closing.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self.cut_connections()
        if self._thread.is_alive():
            self._thread.join(5)

# ------------------------------------------------------------------------------------------------------------
# FakeCluster, part 1: values (schemas, selectors, patches, Status documents)
# ------------------------------------------------------------------------------------------------------------

class Failure(Exception):
    """A request that ends in a Status document."""

    def __init__(self, code: int, message: str, reason: str = "", details: Optional[Document] = None,
                 metadata: Optional[Document] = None) -> None:
        """Build the document with the fields in the order of the real server."""
        super().__init__(message)
        self.code = code
        self.document: Document = {"kind": "Status", "apiVersion": "v1", "metadata": metadata or {},
                                   "status": "Failure", "message": message}
        if reason:
            self.document["reason"] = reason
        if details is not None:
            self.document["details"] = details
        self.document["code"] = code


class Unreadable(Exception):
    """A document that cannot be decoded into its Go type; a POST answers that with 400, a PATCH with 422."""


class Kind(NamedTuple):
    """One resource of the fake API."""

    group: str
    version: str
    plural: str
    kind: str
    list_kind: str
    singular: str
    short_names: Tuple[str, ...] = ()
    namespaced: bool = True
    schema: Optional[Document] = None
    status: bool = False
    unconditional: bool = True

    @property
    def api_version(self) -> str:
        """Return group/version, or the version alone for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """Return plural.group, the name that messages use."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def kind_name(self) -> str:
        """Return Kind.group, the name that validation messages use."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    def details(self, name: str = "", kind: str = "", **more: Any) -> Document:
        """Return the details of a Status about an object of this kind."""
        named = {"name": name} if name else {}
        grouped = {"group": self.group} if self.group else {}
        return {**named, **grouped, "kind": kind or self.plural, **more}


def built_in(group: str, version: str, kind: str, plural: str, *, namespaced: bool = True,
             unconditional: bool = True) -> Kind:
    """Return a resource that every cluster has."""
    return Kind(group, version, plural, kind, kind + "List", kind.lower(), (), namespaced, None, False,
                unconditional)


CRDS = built_in("apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions",
                namespaced=False, unconditional=False)
NAMESPACES = built_in("", "v1", "Namespace", "namespaces", namespaced=False)
BUILT_IN = (CRDS, NAMESPACES, built_in("", "v1", "Secret", "secrets"), built_in("", "v1", "Event", "events"),
            built_in("", "v1", "ConfigMap", "configmaps"), built_in("", "v1", "Pod", "pods"),
            built_in("", "v1", "Service", "services"), built_in("", "v1", "ServiceAccount",
                                                                "serviceaccounts"),
            built_in("apps", "v1", "Deployment", "deployments"),
            built_in("coordination.k8s.io", "v1", "Lease", "leases", unconditional=False))

METADATA_FIELDS = {"annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp",
                   "finalizers",
                   "generateName", "generation", "labels", "managedFields", "name", "namespace",
                   "ownerReferences",
                   "resourceVersion", "selfLink", "uid"}
DATE_TIME = re.compile(r"^(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)([.,]\d+)?([Zz]|[+-]\d\d:\d\d)$")
BASE64 = re.compile(r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$")
MICRO_TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)$")
NAME = re.compile(r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
NAME_MESSAGE = ("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
                "'.', and must "
                "start and end with an alphanumeric character (e.g. 'example.com', regex used for "
                "validation is "
                "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')")
LABEL_MESSAGE = ("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
                 "'.', and must "
                 "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or "
                 "'12345', regex used "
                 "for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')")
INCONSISTENT = ("The provided continue parameter is too old to display a consistent list result. You can "
                "start a new list "
                "without the continue parameter, or use the continue token in this response to retrieve the "
                "remainder of "
                "the results. Continuing with the provided token results in an inconsistent list - objects "
                "that were "
                "created, modified, or deleted between the time the first chunk was returned and now may "
                "show up in the "
                "list.")
MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def now_text() -> str:
    """Return the time of day as the API server writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def packed(document: Any) -> bytes:
    """Return a document as compact JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def quoted(value: Any) -> str:
    """Return a value as Go's field errors print it."""
    return json.dumps(value, ensure_ascii=False)


def merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch as RFC 7386 section 2 says, without touching target."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def prune(value: Any, schema: Document, root: bool = False) -> Any:
    """Drop what a structural schema does not know, and nulls where null is not allowed; fill in defaults."""
    if isinstance(value, list):
        return [prune(item, schema.get("items", {})) for item in value] if "items" in schema else value
    if not isinstance(value, dict):
        return value
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    kept = {}
    for name, item in value.items():
        if name in known:
            rule = known[name]
        elif isinstance(others, dict):
            rule = others
        elif others is True or schema.get("x-kubernetes-preserve-unknown-fields") or not schema or \
                (root and name in ("apiVersion", "kind", "metadata")):
            rule = {}
        else:
            continue
        if item is None and rule and not rule.get("nullable"):
            continue
        kept[name] = item if root and name == "metadata" else prune(item, rule)
    for name, rule in known.items():
        if "default" in rule and name not in kept:
            kept[name] = rule["default"]
    return kept


class Cause(NamedTuple):
    """One violation of a schema."""

    reason: str
    message: str
    field: str


def type_of(value: Any) -> str:
    """Return the JSON schema type of a value as the real validator names it."""
    if isinstance(value, bool):
        return "boolean"
    names = ((dict, "object"), (list, "array"), (str, "string"), (int, "integer"), (float, "number"))
    return next((name for kind, name in names if isinstance(value, kind)), "null")


def has_type(value: Any, wanted: str) -> bool:
    """Say whether a value is of a JSON schema type; an integer is also a number."""
    found = type_of(value)
    return found == wanted or (wanted == "number" and found == "integer") or \
        (wanted == "integer" and found == "number" and float(value).is_integer())


def violations(value: Any, schema: Document, path: str = "", text: Optional[str] = None) -> List[Cause]:
    """Return how a value violates a structural schema; text is the path as sentences show it."""
    shown = path if text is None else text
    if value is None:
        return [] if schema.get("nullable") or "type" not in schema else \
            [Cause("FieldValueTypeInvalid", f'Invalid value: "null": {shown} in body must be of type '
                   f'{schema["type"]}: "null"', path)]
    if schema.get("x-kubernetes-int-or-string"):
        return []
    found = _scalar_violations(value, schema, path, shown)
    if isinstance(value, dict) and schema.get("type", "object") == "object":
        found += _object_violations(value, schema, path, shown)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += violations(item, schema["items"], f"{path}[{index}]", f"{shown}[{index}]")
    return found


def _scalar_violations(value: Any, schema: Document, path: str, shown: str) -> List[Cause]:
    found, wanted = [], schema.get("type")
    if schema.get("format") == "date-time" and not is_date_time(value):
        seen = value if isinstance(value, str) else {"integer": "int64",
                                                     "number": "float64"}.get(type_of(value), "")
        found.append(Cause("FieldValueTypeInvalid", f"Invalid value: {quoted(seen)}: {shown} in body must "
                                                    f"be of type "
                           f"date-time: {quoted(seen)}", path))
    elif schema.get("format") == "byte" and isinstance(value, str) and not BASE64.match(value):
        found.append(Cause("FieldValueTypeInvalid", f"Invalid value: {quoted(value)}: {shown} in body must "
                                                    f"be of type "
                           f"byte: {quoted(value)}", path))
    elif wanted and schema.get("format") != "date-time" and not has_type(value, wanted):
        seen = type_of(value)
        found.append(Cause("FieldValueTypeInvalid", f'Invalid value: "{seen}": {shown} in body must be of '
                                                    f'type {wanted}: '
                           f'"{seen}"', path))
    if "enum" in schema and value not in schema["enum"]:
        found.append(Cause("FieldValueNotSupported", f"Unsupported value: {quoted(value)}: supported values: "
                           + ", ".join(quoted(item) for item in schema["enum"]), path))
    if isinstance(value, str) and "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(Cause("FieldValueInvalid", f"Invalid value: {quoted(value)}: {shown} in body should "
                                                f"match "
                           f"'{schema['pattern']}'", path))
    if isinstance(value, list) and len(value) < schema.get("minItems", 0):
        found.append(Cause("FieldValueInvalid", f"Invalid value: {len(value)}: {shown} in body should have "
                                                f"at least "
                           f"{schema['minItems']} items", path))
    return found


def _object_violations(value: Document, schema: Document, path: str, shown: str) -> List[Cause]:
    found = []
    prefix, shown_prefix = (path + "." if path else ""), (shown + "." if shown else "")
    for name in schema.get("required", ()):
        if name not in value:
            found.append(Cause("FieldValueRequired", "Required value", prefix + name))
    for name in sorted(value):
        rule = schema.get("properties", {}).get(name)
        if rule is None and isinstance(schema.get("additionalProperties"), dict):
            rule = schema["additionalProperties"]
        if rule is not None and (path or name not in ("apiVersion", "kind", "metadata")):
            found += violations(value[name], rule, prefix + name, shown_prefix + name)
    return found


def is_date_time(value: Any) -> bool:
    """Say whether a value is a time by the leniency of the real server, which also takes any list for one."""
    if isinstance(value, list):
        return True
    match = DATE_TIME.match(value) if isinstance(value, str) else None
    if not match:
        return False
    year, month, day, hour, minute, second = (int(match.group(index)) for index in range(1, 7))
    try:
        datetime(year or 4, month, day, hour, minute, second)
    except ValueError:
        return False
    return True


def look_up(document: Any, path: str) -> Any:
    """Return what stands at a path such as status.plugins[0].kind, or None."""
    for part in re.findall(r"[^.\[\]]+", path):
        if isinstance(document, list):
            document = document[int(part)] if int(part) < len(document) else None
        else:
            document = document.get(part) if isinstance(document, dict) else None
    return document


def invalid(kind: Kind, name: str, causes: List[Cause], subject: str = "", detail_kind: str = "") -> Failure:
    """Return the 422 that the real server makes of these violations."""
    texts = list(dict.fromkeys(f"{cause.field}: {cause.message}" for cause in causes))
    text = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    rows = [{"reason": cause.reason, "message": cause.message, "field": cause.field} for cause in causes]
    details = kind.details(name, detail_kind or kind.kind, causes=rows)
    return Failure(422, f"{subject or kind.kind_name} {quoted(name)} is invalid: {text}", "Invalid", details)


def not_found(kind: Kind, name: str) -> Failure:
    """Return the 404 for an absent object, or for a subresource that does not exist."""
    return Failure(404, f"{kind.full_name} {quoted(name)} not found", "NotFound", kind.details(name))


def conflict(kind: Kind, name: str, why: str, subject: str = "", detail_kind: str = "") -> Failure:
    """Return the 409 of a lost race."""
    return Failure(409, f"Operation cannot be fulfilled on {subject or kind.full_name} {quoted(name)}: {why}",
                   "Conflict", kind.details(name, detail_kind))


def bad_request(message: str) -> Failure:
    """Return a 400."""
    return Failure(400, message, "BadRequest")


Matcher = Callable[[Document], bool]
LABEL_TERM = re.compile(r"^\s*(?:(?P<set>[\w./-]+)\s+(?P<how>in|notin)\s*\((?P<values>[^)]*)\)"
                        r"|(?P<key>[\w./-]+)\s*(?P<op>==|=|!=)\s*(?P<value>[\w.-]*)"
                        r"|(?P<not>!?)\s*(?P<exists>[\w./-]+))\s*$")


def label_matcher(text: str) -> Matcher:
    """Return a test on documents for a label selector."""
    tests = [_label_test(term) for term in re.split(r",(?![^(]*\))", text) if term.strip()]
    return lambda document: all(test(document["metadata"].get("labels") or {}) for test in tests)


def _label_test(term: str) -> Callable[[Dict[str, str]], bool]:
    match = LABEL_TERM.match(term)
    if not match:
        raise bad_request(f"unable to parse requirement: {term}")
    part = match.groupdict()
    if part["set"]:
        values, wanted = {value.strip() for value in part["values"].split(",")}, part["how"] == "in"
        return lambda labels: (labels.get(part["set"]) in values) == wanted
    if part["key"]:
        return lambda labels: (labels.get(part["key"]) == part["value"]) == (part["op"] != "!=")
    return lambda labels: (part["exists"] in labels) != bool(part["not"])


def field_matcher(kind: Kind, text: str) -> Matcher:
    """Return a test on documents for a field selector."""
    tests = []
    for term in filter(None, text.split(",")):
        match = re.match(r"^([^=!]+)(==|=|!=)(.*)$", term)
        if not match:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        name, op, value = match.groups()
        free = kind.plural == "events" and not name.startswith("metadata.")
        if name not in ("metadata.name", "metadata.namespace") and not free:
            raise bad_request(f"field label not supported: {name}")
        tests.append((name, op != "!=", value))
    return lambda document: all(((look_up(document, name) or "") == value) == equal for name, equal,
                                value in tests)


def name_of_fields(text: str) -> str:
    """Return the name that a field selector pins, as RBAC sees it, or an empty string."""
    match = re.search(r"(?:^|,)metadata\.name==?([^,]+)", text)
    return match.group(1) if match else ""


def field_tree(value: Any) -> Document:
    """Return the managed fields of a value."""
    if not isinstance(value, dict):
        return {}
    return {".": {}, **{"f:" + name: field_tree(item) for name, item in value.items()}}


# ------------------------------------------------------------------------------------------------------------
# FakeCluster, part 2: the store with its history
# ------------------------------------------------------------------------------------------------------------

class Change(NamedTuple):
    """One write: what was and what is, None for absence; raw is the document as JSON."""

    version: int
    namespace: str
    name: str
    before: Optional[Document]
    after: Optional[Document]
    raw: bytes


class Watcher:
    """One open watch."""

    def __init__(self, user: str, path: str, namespace: str, matches: Matcher, bookmarks: bool) -> None:
        """Start with an empty queue."""
        self.user = user
        self.path = path
        self.namespace = namespace
        self.matches = matches
        self.bookmarks = bookmarks
        self.queue: "queue.SimpleQueue[Optional[bytes]]" = queue.SimpleQueue()

    def line(self, change: Change) -> Optional[bytes]:
        """Return the event that this watch sees of a change, if any."""
        if self.namespace and change.namespace != self.namespace:
            return None
        was = change.before is not None and self.matches(change.before)
        is_now = change.after is not None and self.matches(change.after)
        if not (was or is_now):
            return None
        kind = b"MODIFIED" if was and is_now else b"ADDED" if is_now else b"DELETED"
        raw = change.raw
        if was and not is_now and change.after is not None:
            # What leaves a selector is shown as it was, with the version of the change.
            shown = dict(change.before or {})
            shown["metadata"] = {**shown["metadata"], "resourceVersion": str(change.version)}
            raw = packed(shown)
        return b'{"type":"%b","object":%b}\n' % (kind, raw)


class Shelf:
    """All objects of one resource, their history and the watches on them."""

    def __init__(self, kind: Kind, version: int) -> None:
        """Start empty, with a history that begins at version."""
        self.kind = kind
        self.objects: Dict[Tuple[str, str], Document] = {}
        self.raw: Dict[Tuple[str, str], bytes] = {}
        self.history: List[Change] = []
        self.oldest = version
        self.watchers: List[Watcher] = []

    def write(self, version: int, key: Tuple[str, str], after: Optional[Document]) -> bytes:
        """Store or remove an object and tell the watches; return its JSON."""
        before = self.objects.get(key)
        if after is not None:
            raw = packed(after)
            self.objects[key], self.raw[key] = after, raw
        else:
            gone = dict(before or {})
            gone["metadata"] = {**gone["metadata"], "resourceVersion": str(version)}
            raw = packed(gone)
            del self.objects[key], self.raw[key]
        change = Change(version, key[0], key[1], before, after, raw)
        self.history.append(change)
        for watcher in self.watchers:
            line = watcher.line(change)
            if line:
                watcher.queue.put(line)
        return raw

    def at(self, version: int) -> Dict[Tuple[str, str], Document]:
        """Return the objects as they were at an earlier version."""
        objects = dict(self.objects)
        for change in reversed(self.history):
            if change.version <= version:
                break
            if change.before is None:
                objects.pop((change.namespace, change.name), None)
            else:
                objects[(change.namespace, change.name)] = change.before
        return objects

    def end_watches(self) -> None:
        """End every watch as the server does, without an error."""
        for watcher in self.watchers:
            watcher.queue.put(None)
        self.watchers = []


class Target(NamedTuple):
    """What a path means."""

    kind: Kind
    namespace: str
    name: str
    subresource: str


class Denial(NamedTuple):
    """One rule of limit()."""

    user: str
    verbs: Tuple[str, ...]
    resource: str
    namespace: Optional[str]


NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
VERBS = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
METHODS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch",
           "DELETE": "delete"}
OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")


# ------------------------------------------------------------------------------------------------------------
# FakeCluster, part 3: the API
# ------------------------------------------------------------------------------------------------------------

class FakeCluster(LoopbackServer, Cluster):
    """A loopback Kubernetes API that behaves like kube-apiserver 1.34 for what Velero's requests need."""

    kind = "fake"

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None) -> None:
        """Start serving, with the usual namespaces and no CRD."""
        super().__init__(tls, certificate)
        self.bookmark_seconds = 60.0
        self.tokens = {token_of(user): user for user in USERS}
        self._lock = threading.RLock()
        self._version = 100
        self._kinds: Dict[Tuple[str, str, str], Kind] = {}
        self._shelves: Dict[Tuple[str, str], Shelf] = {}
        self._grants: Dict[str, List[Tuple[str, Document]]] = {}
        self._denials: List[Denial] = []
        self._random = random.Random()
        for kind in BUILT_IN:
            self._add_kind(kind)
        self.start()
        self.admin = self.client("admin")
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self._create(Target(NAMESPACES, "", "", ""), {"metadata": {"name": name}}, "kube-apiserver", {})

    def close(self) -> None:
        """Stop serving and end every watch."""
        with self._lock:
            for shelf in self._shelves.values():
                shelf.end_watches()
        self.admin.close()
        super().close()

    # -- what a test uses ------------------------------------------------------------------------------------

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Allow what these RBAC PolicyRules say to the user in the namespace ("" means everywhere)."""
        with self._lock:
            self._grants.setdefault(user, []).extend((namespace, rule) for rule in rules)

    def limit(self, user: str, *verbs: str, resource: str = "*", namespace: Optional[str] = None) -> None:
        """Forbid verbs (none means all) on a resource, such as downloadrequests/status, even to the admin."""
        with self._lock:
            self._denials.append(Denial(user, verbs, resource, namespace))

    def unlimit(self, user: Optional[str] = None) -> None:
        """Take back what limit() forbade."""
        with self._lock:
            self._denials = [denial for denial in self._denials if user not in (None, denial.user)]

    def compact(self) -> str:
        """Make all versions but the newest too old for a watch and for a continue token."""
        with self._lock:
            self._version += 1
            for shelf in self._shelves.values():
                shelf.oldest = self._version
                shelf.history = []
            return str(self._version)

    def cut_watches(self, path_part: str = "") -> int:
        """End the open watches in good order, as at their timeout, and return how many there were."""
        ended = 0
        with self._lock:
            for shelf in self._shelves.values():
                for watcher in [watcher for watcher in shelf.watchers if path_part in watcher.path]:
                    shelf.watchers.remove(watcher)
                    watcher.queue.put(None)
                    ended += 1
        return ended

    def push(self, event: Union[Document, bytes], path_part: str = "") -> None:
        """Send an event of the test's own (a document, or raw bytes) down the open watches."""
        line = event if isinstance(event, bytes) else packed(event) + b"\n"
        with self._lock:
            for shelf in self._shelves.values():
                for watcher in shelf.watchers:
                    if path_part in watcher.path:
                        watcher.queue.put(line)

    def send_bookmarks(self) -> None:
        """Send a bookmark with the newest version down every watch that asked for bookmarks."""
        with self._lock:
            for shelf in self._shelves.values():
                for watcher in shelf.watchers:
                    if watcher.bookmarks:
                        watcher.queue.put(self._bookmark(shelf.kind))

    def watches(self, path_part: str = "") -> List[str]:
        """Return the paths of the open watches."""
        with self._lock:
            return [watcher.path for shelf in self._shelves.values() for watcher in shelf.watchers
                    if path_part in watcher.path]

    @property
    def version(self) -> str:
        """Return the newest resourceVersion."""
        with self._lock:
            return str(self._version)

    # -- who, and may they -----------------------------------------------------------------------------------

    def identify(self, request: Request) -> None:
        """Find the user of the bearer token, and parse the body for the log."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        request.user = self.tokens.get(token.strip()) if scheme.lower() == "bearer" else "system:anonymous"
        if request.body:
            try:
                request.parsed = json.loads(request.body)
            except ValueError:
                request.parsed = None

    def _authorize(self, request: Request, target: Optional[Target], verb: str, path: str) -> None:
        if request.user is None:
            raise Failure(401, "Unauthorized", "Unauthorized")
        user = request.user
        if target is None:
            if user == "system:anonymous" and path not in OPEN_PATHS:
                raise Failure(403, f'forbidden: User "{user}" cannot get path "{path}"', "Forbidden", {})
            return
        resource = target.kind.plural + ("/" + target.subresource if target.subresource else "")
        namespace = target.name if target.kind is NAMESPACES else target.namespace
        name = target.name or name_of_fields(request.query.get("fieldSelector", ""))
        if self._denied(user, verb, resource, namespace) or not self._granted(user, verb, target, resource,
                                                                              namespace, name):
            named = f" {quoted(target.name)}" if target.name else ""
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            raise Failure(403, f'{target.kind.full_name}{named} is forbidden: User "{user}" cannot {verb} '
                               f'resource '
                          f'"{resource}" in API group "{target.kind.group}" {where}', "Forbidden",
                          target.kind.details(target.name))

    def _denied(self, user: str, verb: str, resource: str, namespace: str) -> bool:
        return any(denial.user == user and (not denial.verbs or verb in denial.verbs)
                   and denial.resource in ("*", resource) and denial.namespace in (None, namespace)
                   for denial in self._denials)

    def _granted(self, user: str, verb: str, target: Target, resource: str, namespace: str,
                 name: str) -> bool:
        if user == "admin":
            return True
        for where, rule in self._grants.get(user, ()):
            if where in ("", namespace) and {verb, "*"} & set(rule.get("verbs", ())) \
                    and {target.kind.group, "*"} & set(rule.get("apiGroups", ())) \
                    and {resource, "*"} & set(rule.get("resources", ())) \
                    and (not rule.get("resourceNames") or name in rule["resourceNames"]):
                return True
        return False

    # -- paths -----------------------------------------------------------------------------------------------

    def answer(self, request: Request, connection: Connection) -> bool:
        """Answer one request; a watch streams until it ends."""
        answer = self.handle(request)
        if answer is STREAM:
            return self._watch(request, connection)
        return self.send(request, connection, answer)

    def handle(self, request: Request) -> Answer:
        """Return the answer to one request, or STREAM for a watch that may start."""
        try:
            return self._route(request)
        except Failure as failure:
            return Answer(failure.code, packed(failure.document) + b"\n")
        except Unreadable as error:
            refusal = self._unreadable(request, str(error))
            return Answer(refusal.code, packed(refusal.document) + b"\n")

    def _unreadable(self, request: Request, why: str) -> Failure:
        target = self._target(request.path)
        kind = target.kind if target else CRDS
        if request.method != "PATCH":
            return bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a '
                               f'{kind.kind}: {why}')
        old = self._old(target) if target else {}
        message = f"Invalid value: {quoted(packed(merge(old, request.parsed)).decode())}: {why}"
        cause = {"reason": "FieldValueInvalid", "message": message, "field": "patch"}
        return Failure(422, f' "" is invalid: patch: {message}', "Invalid", {"causes": [cause]})

    def _route(self, request: Request) -> Answer:
        path = request.path
        target = self._target(path)
        if len(request.body) > 3145728:
            raise Failure(413, "Request entity too large: limit is 3145728", "RequestEntityTooLarge")
        if target is not None:
            verb = self._verb(request, target)
            with self._lock:
                self._authorize(request, target, verb, path)
                known = self._known(target)
                return self._act(request, target, verb) if known else self._page_not_found(target)
        with self._lock:
            self._authorize(request, None, "get", path)
            return self._discover(path)

    def _target(self, path: str) -> Optional[Target]:
        """Take a path apart; the kind of a target may be one that nobody serves."""
        parts = path.strip("/").split("/")
        if len(parts) >= 3 and parts[0] == "api":
            group, version, rest = "", parts[1], parts[2:]
        elif len(parts) >= 4 and parts[0] == "apis":
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        rest += [""] * (3 - len(rest))
        with self._lock:
            kind = self._kinds.get((group, version, rest[0]))
        return Target(kind or built_in(group, version, "", rest[0]), namespace, rest[1], rest[2])

    def _known(self, target: Target) -> bool:
        kind = target.kind
        return (kind.group, kind.version, kind.plural) in self._kinds

    def _page_not_found(self, target: Target) -> Answer:
        if target.kind.group:
            return Answer(404, b"404 page not found\n", (("Content-Type", "text/plain; charset=utf-8"),))
        raise Failure(404, "the server could not find the requested resource", "NotFound", {})

    def _verb(self, request: Request, target: Target) -> str:
        if request.method == "GET" and not target.name:
            return "watch" if request.query.get("watch", "0").lower() not in ("0", "false", "") else "list"
        if request.method == "DELETE" and not target.name:
            return "deletecollection"
        return METHODS.get(request.method, "")

    def _act(self, request: Request, target: Target, verb: str) -> Answer:
        kind = target.kind
        if target.subresource and not (target.subresource == "status" and kind.status):
            raise not_found(kind, target.name)
        if verb == "create" and kind.namespaced and not target.namespace:
            return Answer(404, b"404 page not found\n", (("Content-Type", "text/plain; charset=utf-8"),))
        if (verb == "create" and target.subresource) or request.method not in METHODS:
            shown = verb if verb == "create" else ""
            raise Failure(405, f'{shown} is not supported on resources of kind "{kind.full_name}"',
                          "MethodNotAllowed",
                          kind.details())
        if not target.name and verb in ("update", "patch"):
            raise bad_request("name must be provided")
        act = {"get": self._get, "list": self._list, "watch": self._check_watch, "create": self._post,
               "update": self._put, "patch": self._patch, "delete": self._delete,
               "deletecollection": self._delete_all}[verb]
        return act(request, target)

    def _discover(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        if path in ("/healthz", "/livez", "/readyz"):
            return Answer(200, b"ok", (("Content-Type", "text/plain; charset=utf-8"),))
        if path == "/version":
            return self._json({"major": "1", "minor": "34", "gitVersion": "v1.34.2",
                               "platform": "linux/amd64"})
        groups = {kind.group: kind.version for kind in self._kinds.values()}
        if parts == ["api"]:
            return self._json({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
        if parts == ["apis"]:
            rows = [self._group(group, version) for group, version in groups.items() if group]
            return self._json({"kind": "APIGroupList", "apiVersion": "v1", "groups": rows})
        if len(parts) == 2 and parts[0] == "apis" and parts[1] in groups:
            group = self._group(parts[1], groups[parts[1]])
            return self._json({"kind": "APIGroup", "apiVersion": "v1", **group})
        core = parts[0] == "api" and len(parts) == 2
        group_name, version = ("", parts[1]) if core else (parts + ["", ""])[1:3]
        rows = [row for kind in self._kinds.values() if (kind.group, kind.version) == (group_name, version)
                for row in self._resource_rows(kind)]
        if not rows or parts[0] not in ("api", "apis"):
            return Answer(404, b"404 page not found\n", (("Content-Type", "text/plain; charset=utf-8"),))
        name = f"{group_name}/{version}" if group_name else version
        return self._json({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
                           "resources": rows})

    def _group(self, group: str, version: str) -> Document:
        entry = {"groupVersion": f"{group}/{version}", "version": version}
        return {"name": group, "versions": [entry], "preferredVersion": entry}

    def _resource_rows(self, kind: Kind) -> List[Document]:
        row: Document = {"name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
                         "kind": kind.kind, "verbs": VERBS}
        if kind.short_names:
            row["shortNames"] = list(kind.short_names)
        status = {"name": kind.plural + "/status", "singularName": "", "namespaced": kind.namespaced,
                  "kind": kind.kind,
                  "verbs": ["get", "patch", "update"]}
        return [row, status] if kind.status else [row]

    def _json(self, document: Document, status: int = 200) -> Answer:
        return Answer(status, packed(document) + b"\n")

    # -- reading ---------------------------------------------------------------------------------------------

    def _shelf(self, kind: Kind) -> Shelf:
        return self._shelves[(kind.group, kind.plural)]

    def _get(self, request: Request, target: Target) -> Answer:
        raw = self._shelf(target.kind).raw.get((target.namespace, target.name))
        if raw is None:
            raise not_found(target.kind, target.name)
        return Answer(200, raw + b"\n")

    def _number(self, query: Dict[str, str], name: str) -> int:
        text = query.get(name, "") or "0"
        if not re.match(r"^-?\d+$", text):
            raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text)

    def _selectors(self, request: Request, target: Target) -> Matcher:
        query = request.query
        labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
        tests = ([label_matcher(labels)] if labels else []) + ([field_matcher(target.kind, fields)] if fields
                                                               else [])
        return lambda document: all(test(document) for test in tests)

    def _list(self, request: Request, target: Target) -> Answer:
        query, shelf = request.query, self._shelf(target.kind)
        limit, matches = self._number(query, "limit"), self._selectors(request, target)
        version, start, inconsistent = self._list_position(query, shelf, target)
        objects = shelf.objects if version >= self._version or inconsistent else shelf.at(version)
        keys = sorted(key for key in objects if target.namespace in ("", key[0]) and key > start
                      and matches(objects[key]))
        if query.get("resourceVersion") == "0":
            limit = 0  # the real server answers this from its cache, whole
        page = keys[:limit] if limit > 0 else keys
        metadata: Document = {"continue": "", "resourceVersion": str(version)}
        if len(page) < len(keys):
            metadata["continue"] = self._token(version, page[-1], target)
            if not (query.get("labelSelector") or query.get("fieldSelector")):
                metadata["remainingItemCount"] = len(keys) - len(page)
        items = b",".join(shelf.raw[key] if objects is shelf.objects else packed(objects[key])
                          for key in page)
        return Answer(200, b'{"apiVersion":"%b","items":[%b],"kind":"%b","metadata":%b}\n' % (
            target.kind.api_version.encode(), items, target.kind.list_kind.encode(), packed(metadata)))

    def _token(self, version: int, last: Tuple[str, str], target: Target) -> str:
        start = last[1] if target.namespace else "/".join(last)
        document = {"v": "meta.k8s.io/v1", "rv": version, "start": start + "\0"}
        return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")

    def _list_position(self, query: Dict[str, str], shelf: Shelf,
                       target: Target) -> Tuple[int, Tuple[str, str], bool]:
        """Return the version to list, the key to start behind, and whether consistency is given up."""
        asked, token = query.get("resourceVersion", ""), query.get("continue", "")
        if asked and not asked.isdigit():
            raise bad_request(f'invalid resource version: resourceVersion: Invalid value: {quoted(asked)}: '
                              f'strconv.ParseUint: parsing {quoted(asked)}: invalid syntax')
        if token:
            resumed = self._resume(token, shelf, target)
            if asked and asked != "0":
                raise bad_request("specifying resource version is not allowed when using continue")
            return resumed
        self._refuse_future(int(asked or 0))
        exact = query.get("resourceVersionMatch") == "Exact" or ("limit" in query and asked not in ("", "0"))
        if asked and exact and query.get("resourceVersionMatch") != "NotOlderThan":
            if int(asked) < shelf.oldest:
                raise Failure(410, "The resourceVersion for the provided list is too old.", "Expired")
            return int(asked), ("", ""), False
        return self._version, ("", ""), False

    def _refuse_future(self, version: int) -> None:
        if version > self._version:
            cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            raise Failure(504, f"Timeout: Too large resource version: {version}, current: {self._version}",
                          "Timeout",
                          {"causes": [cause], "retryAfterSeconds": 1})

    def _resume(self, token: str, shelf: Shelf, target: Target) -> Tuple[int, Tuple[str, str], bool]:
        try:
            document = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
            if document.get("v") != "meta.k8s.io/v1":
                raise bad_request("invalid continue token: continue key is not valid: server does not "
                                  "recognize this "
                                  f"encoded version {document.get('v', '')}")
            version, start = int(document["rv"]), document["start"].rstrip("\0")
        except (ValueError, KeyError, TypeError):
            raise bad_request("invalid continue token: continue key is not valid") from None
        namespace, _, name = start.rpartition("/")
        key = (target.namespace or namespace, name)
        if version == -1:
            return self._version, key, True
        if version < shelf.oldest:
            raise Failure(410, INCONSISTENT, "Expired", None, {"continue": self._token(-1, key, target)})
        return version, key, False

    # -- watching --------------------------------------------------------------------------------------------

    def _check_watch(self, request: Request, target: Target) -> Answer:
        self._number(request.query, "timeoutSeconds")
        self._selectors(request, target)
        asked = request.query.get("resourceVersion", "")
        if asked and not asked.isdigit():
            raise Failure(500, f"resourceVersion: Invalid value: {quoted(asked)}: strconv.ParseUint: parsing "
                          f"{quoted(asked)}: invalid syntax")
        return STREAM

    def _watch(self, request: Request, connection: Connection) -> bool:
        """Send the events of a watch until it ends, and say that the connection may go on."""
        request.status = 200
        target = self._target(request.path)
        assert target is not None
        seconds = self._number(request.query, "timeoutSeconds") or 1800
        with self._lock:
            shelf = self._shelf(target.kind)
            bookmarks = request.query.get("allowWatchBookmarks", "0").lower() in ("1", "true")
            watcher = Watcher(request.user or "", request.target, target.namespace,
                              self._selectors(request, target), bookmarks)
            first = self._first_lines(request.query.get("resourceVersion", ""), shelf, watcher)
            shelf.watchers.append(watcher)
        headers = (("Content-Type", "application/json"), ("Cache-Control", "no-cache, private"),
                   ("Transfer-Encoding", "chunked"), ("Date", formatdate(usegmt=True)))
        try:
            connection.socket.sendall(head(200, headers) + b"".join(chunk(line) for line in first if line))
            if None not in first:
                self._pump(connection, shelf, watcher, time.monotonic() + seconds)
            connection.socket.sendall(b"0\r\n\r\n")
            return True
        finally:
            with self._lock:
                if watcher in shelf.watchers:
                    shelf.watchers.remove(watcher)

    def _first_lines(self, asked: str, shelf: Shelf, watcher: Watcher) -> List[Optional[bytes]]:
        """Return what a watch sends at once; None at the end closes it."""
        if asked in ("", "0"):
            return [b'{"type":"ADDED","object":%b}\n' % shelf.raw[key] for key in sorted(shelf.objects)
                    if watcher.namespace in ("", key[0]) and watcher.matches(shelf.objects[key])]
        version = int(asked)
        if version < shelf.oldest:
            gone = Failure(410, f"too old resource version: {version} ({shelf.oldest})", "Expired")
            return [packed({"type": "ERROR", "object": gone.document}) + b"\n", None]
        lines = (watcher.line(change) for change in shelf.history if change.version > version)
        return [line for line in lines if line]

    def _pump(self, connection: Connection, shelf: Shelf, watcher: Watcher, deadline: float) -> None:
        """Send what comes until the deadline, the end of the watch or the client's."""
        # Like the real server's: one a minute, and one two seconds before the end of the watch.
        due = [deadline - 2.0] if deadline - 2.0 > time.monotonic() else []
        due += [time.monotonic() + self.bookmark_seconds]
        next_bookmark = min(due) if watcher.bookmarks else deadline + 1.0
        while not self.closing.is_set():
            left = min(deadline, next_bookmark) - time.monotonic()
            try:
                lines = [watcher.queue.get(timeout=max(0.0, min(left, 0.5)))]
                while not watcher.queue.empty():
                    lines.append(watcher.queue.get())
            except queue.Empty:
                lines = []
            if not lines and connection.peer_has_left():
                raise ConnectionResetError("the client has left its watch")
            if time.monotonic() >= next_bookmark:
                lines.append(self._bookmark(shelf.kind))
                last, following = deadline - 2.0, time.monotonic() + self.bookmark_seconds
                next_bookmark = min(following, last) if next_bookmark < last else following
            sent = b"".join(chunk(line) for line in lines if line)
            if sent:
                connection.socket.sendall(sent)
            if None in lines or time.monotonic() >= deadline:
                return

    def _bookmark(self, kind: Kind) -> bytes:
        metadata = {"resourceVersion": self.version}
        return packed({"type": "BOOKMARK", "object": {"apiVersion": kind.api_version, "kind": kind.kind,
                                                      "metadata": metadata}}) + b"\n"

    # -- writing ---------------------------------------------------------------------------------------------

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def _manager(self, request: Request) -> str:
        return request.headers.get("user-agent", "unknown").partition("/")[0] or "unknown"

    def _body_document(self, request: Request, kind: Kind) -> Document:
        """Parse the body of a POST or PUT with the real server's complaints."""
        if request.content_type not in ("application/json", "", "application/yaml"):
            raise Failure(415, "the body of the request was in an unknown format - accepted media types "
                               "include: "
                          "application/json, application/yaml, application/vnd.kubernetes.protobuf",
                          "UnsupportedMediaType")
        document = request.parsed
        must = f"the object provided is unrecognized (must be of type {kind.kind}): "
        if not isinstance(document, dict):
            raise bad_request(must + "couldn't get version/kind; json parse error")
        document = dict(document)
        if kind.schema is None:
            document.setdefault("kind", kind.kind)
            document.setdefault("apiVersion", kind.api_version)
        if not document.get("kind"):
            raise bad_request(must + "Object 'Kind' is missing in '" + request.body.decode(errors="replace")
                              + "'")
        if document.get("apiVersion") != kind.api_version:
            raise bad_request(f"the API version in the data ({document.get('apiVersion')}) does not match "
                              f"the expected "
                              f"API version ({kind.api_version})")
        return document

    def _clean(self, document: Document, kind: Kind) -> Document:
        """Return the document with decoded metadata, in the field order of the real server."""
        metadata = document.get("metadata") or {}
        for name in ("labels", "annotations"):
            for value in (metadata.get(name) or {}).values():
                if not isinstance(value, str):
                    found = type_of(value).replace("integer", "number").replace("boolean", "bool")
                    raise Unreadable(f"json: cannot unmarshal {found} into Go struct field "
                                     f"ObjectMeta.{name} of type "
                                     "string")
        kept = {name: value for name, value in sorted(metadata.items())
                if name in METADATA_FIELDS and value not in (None, "", {}, [])}
        return {**document, "metadata": kept}

    def _check_meta(self, document: Document, kind: Kind, name: str) -> List[Cause]:
        causes = []
        if document.get("kind") != kind.kind:
            wrong = str(document.get("kind"))
            subject = f"{wrong}.{kind.group}" if kind.group else wrong
            raise invalid(kind, name, [Cause("FieldValueInvalid", f"Invalid value: {quoted(wrong)}: must be "
                                                                  f"{kind.kind}",
                                             "kind")], subject, wrong)
        if not NAME.match(name) or len(name) > 253:
            causes.append(Cause("FieldValueInvalid", f"Invalid value: {quoted(name)}: {NAME_MESSAGE}",
                                "metadata.name"))
        notes = document["metadata"].get("annotations") or {}
        if sum(len(note.encode()) + len(value.encode()) for note, value in notes.items()) > 262144:
            causes.append(Cause("FieldValueTooLong", "Too long: may not be more than 262144 bytes",
                                "metadata.annotations"))
        for value in (document["metadata"].get("labels") or {}).values():
            if not LABEL_VALUE.match(value) or len(value) > 63:
                causes.append(Cause("FieldValueInvalid", f"Invalid value: {quoted(value)}: {LABEL_MESSAGE}",
                                    "metadata.labels"))
        return causes

    def _validate(self, document: Document, kind: Kind, old: Optional[Document], part: str = "") -> Document:
        """Return the pruned document or raise a 422; what an update leaves alone may stay wrong."""
        if kind.schema is None:
            return self._validate_built_in(document, kind)
        pruned: Document = prune(document, kind.schema, root=True)
        name = pruned["metadata"]["name"]
        causes = [] if part else self._check_meta(pruned, kind, name)
        if part:
            causes += violations(pruned.get(part), kind.schema.get("properties", {}).get(part, {}), part, "") \
                if part in pruned else []
        else:
            causes += violations(pruned, kind.schema)
        if old is not None:
            causes = [cause for cause in causes if self._new_fault(cause, old, pruned)]
        if causes:
            raise invalid(kind, name, causes)
        return pruned

    def _new_fault(self, cause: Cause, old: Document, new: Document) -> bool:
        """Say whether an update brought this violation about; the server tolerates older ones."""
        path = cause.field
        if cause.reason == "FieldValueRequired":
            path = path.rpartition(".")[0]
        return bool(look_up(old, path) != look_up(new, path))

    def _validate_built_in(self, document: Document, kind: Kind) -> Document:
        name = document["metadata"]["name"]
        if kind is CRDS:
            wanted = f"{document['spec']['names']['plural']}.{document['spec']['group']}"
            if name != wanted:
                raise invalid(kind, name, [Cause("FieldValueInvalid", f"Invalid value: {quoted(name)}: must "
                                                                      f"be spec.names."
                                                 "plural+\".\"+spec.group", "metadata.name")])
        causes = self._check_meta(document, kind, name)
        if kind.plural == "leases":
            causes += self._lease_faults(document, kind)
        if kind.plural == "secrets":
            document = self._secret(document)
        if kind.plural == "events":
            there = (document.get("involvedObject") or {}).get("namespace", "")
            if there != document["metadata"].get("namespace"):
                causes.append(Cause("FieldValueInvalid", f"Invalid value: {quoted(there)}: does not match "
                                                         f"event.namespace",
                                    "involvedObject.namespace"))
        if causes:
            raise invalid(kind, name, causes)
        return document

    def _lease_faults(self, document: Document, kind: Kind) -> List[Cause]:
        spec, causes = document.get("spec") or {}, []
        for name in ("acquireTime", "renewTime"):
            if spec.get(name) is not None and not MICRO_TIME.match(str(spec[name])):
                raise Unreadable(f'parsing time {quoted(spec[name])} as "2006-01-02T15:04:05.000000Z07:00"')
        for name, least in (("leaseDurationSeconds", 1), ("leaseTransitions", 0)):
            if spec.get(name) is not None and spec[name] < least:
                need = "must be greater than 0" if least else "must be greater than or equal to 0"
                causes.append(Cause("FieldValueInvalid", f"Invalid value: {spec[name]}: {need}", "spec."
                                    + name))
        return causes

    def _secret(self, document: Document) -> Document:
        data = dict(document.get("data") or {})
        for value in data.values():
            try:
                base64.b64decode(value, validate=True)
            except ValueError:
                raise Unreadable("illegal base64 data at input byte 0") from None
        plain = document.get("stringData") or {}
        data.update({name: base64.b64encode(value.encode()).decode() for name, value in plain.items()})
        kept = {name: value for name, value in document.items() if name in ("kind", "apiVersion", "metadata",
                                                                            "immutable")}
        return {**kept, **({"data": data} if data else {}), "type": document.get("type") or "Opaque"}

    def _own_fields(self, document: Document, kind: Kind, manager: str, part: str) -> Document:
        """Add the managedFields entry of the last writer."""
        fields = {"f:" + name: field_tree(value) for name, value in document.items()
                  if name not in ("apiVersion", "kind", "metadata")}
        metadata = dict(document["metadata"])
        if fields:
            entry = {"apiVersion": kind.api_version, "fieldsType": "FieldsV1", "fieldsV1": fields,
                     "manager": manager,
                     "operation": "Update", **({"subresource": part} if part else {}), "time": now_text()}
            metadata["managedFields"] = [entry]
        return {**document, "metadata": dict(sorted(metadata.items()))}

    def _post(self, request: Request, target: Target) -> Answer:
        kind = target.kind
        if kind.namespaced:
            self._refuse_absent_namespace(target, request)
        document = self._body_document(request, kind)
        return Answer(201, self._create(target, document, self._manager(request), request.query) + b"\n")

    def _refuse_absent_namespace(self, target: Target, request: Request) -> None:
        namespace = self._shelf(NAMESPACES).objects.get(("", target.namespace))
        if namespace is None:
            raise not_found(NAMESPACES, target.namespace)
        if "deletionTimestamp" in namespace["metadata"]:
            name = ((request.parsed or {}).get("metadata") or {}).get("name", "")
            cause = {"reason": "NamespaceTerminating", "message": f"namespace {target.namespace} is being "
                                                                  f"terminated",
                     "field": "metadata.namespace"}
            raise Failure(403, f"{target.kind.full_name} {quoted(name)} is forbidden: unable to create new "
                               f"content in "
                          f"namespace {target.namespace} because it is being terminated", "Forbidden",
                          target.kind.details(name, causes=[cause]))

    def _create(self, target: Target, body: Document, manager: str, query: Dict[str, str]) -> bytes:
        kind = target.kind
        document = self._clean({"apiVersion": kind.api_version, "kind": kind.kind, **body}, kind)
        metadata = document["metadata"]
        self._check_namespace(metadata, target)
        if metadata.pop("resourceVersion", "0") != "0":
            raise Failure(500, "resourceVersion should not be set on objects to be created")
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"):
            metadata.pop(name, None)
        if "name" not in metadata:
            metadata["name"] = self._new_name(metadata, kind)
        if kind.status:
            document.pop("status", None)
        metadata.update(uid=str(uuid.UUID(int=self._random.getrandbits(128), version=4)),
                        creationTimestamp=now_text())
        if kind.schema is not None or kind is CRDS or kind.plural == "deployments":
            metadata["generation"] = 1
        else:
            metadata.pop("generation", None)
        if kind.namespaced:
            metadata["namespace"] = target.namespace
        document = self._validate(document, kind, None)
        shelf, key = self._shelf(kind), (target.namespace, metadata["name"])
        if key in shelf.objects:
            dying = "deletionTimestamp" in shelf.objects[key]["metadata"]
            prefix = "object is being deleted: " if dying else ""
            raise Failure(409, f"{prefix}{kind.full_name} {quoted(key[1])} already exists", "AlreadyExists",
                          kind.details(key[1]))
        document = self._dress(document, kind)
        document = self._own_fields(document, kind, manager, "")
        if "dryRun" in query:
            return packed(document)
        return self._store(shelf, key, document)

    def _dress(self, document: Document, kind: Kind) -> Document:
        """Add what the server itself adds to some kinds."""
        if kind is NAMESPACES:
            name = document["metadata"]["name"]
            labels = {"kubernetes.io/metadata.name": name, **(document["metadata"].get("labels") or {})}
            return {**document, "metadata": {**document["metadata"], "labels": labels},
                    "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
        if kind is CRDS:
            names = document["spec"]["names"]
            conditions = [{"type": name, "status": "True"} for name in ("NamesAccepted", "Established")]
            return {**document, "status": {"conditions": conditions, "acceptedNames": names,
                                           "storedVersions": [document["spec"]["versions"][0]["name"]]}}
        return document

    def _check_namespace(self, metadata: Document, target: Target) -> None:
        if metadata.get("namespace", target.namespace) != target.namespace:
            raise bad_request("the namespace of the provided object does not match the namespace sent on "
                              "the request")

    def _new_name(self, metadata: Document, kind: Kind) -> str:
        if "generateName" not in metadata:
            raise invalid(kind, "", [Cause("FieldValueRequired",
                                           "Required value: name or generateName is required",
                                           "metadata.name")])
        return str(metadata["generateName"])[:58] + "".join(self._random.choice(NAME_LETTERS)
                                                            for _ in range(5))

    def _store(self, shelf: Shelf, key: Tuple[str, str], document: Document) -> bytes:
        version = self._next_version()
        document["metadata"]["resourceVersion"] = str(version)
        document["metadata"] = dict(sorted(document["metadata"].items()))
        raw = shelf.write(version, key, document)
        if shelf.kind is CRDS:
            self._serve_crd(document)
        return raw

    def _put(self, request: Request, target: Target) -> Answer:
        old = self._old(target)
        document = self._clean(self._body_document(request, target.kind), target.kind)
        wrong_uid = document["metadata"].get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]
        if wrong_uid:
            raise conflict(target.kind, target.name, f"Precondition failed: UID in precondition: "
                           f"{document['metadata']['uid']}, UID in object meta: {old['metadata']['uid']}")
        return self._update(request, target, old, document)

    def _patch(self, request: Request, target: Target) -> Answer:
        kind, patch = target.kind, request.parsed
        media = ["application/json-patch+json", "application/merge-patch+json"]
        media += ["application/strategic-merge-patch+json"] if kind.schema is None else []
        if request.content_type not in media[1:]:
            accepted = media + ["application/apply-patch+yaml"]
            raise Failure(415, "the body of the request was in an unknown format - accepted media types "
                               "include: "
                          + ", ".join(accepted), "UnsupportedMediaType")
        old = self._old(target)
        if not isinstance(patch, dict):
            what = "invalid character" if patch is None else \
                f"json: cannot unmarshal {type_of(patch)} into Go value of type map[string]interface {{}}"
            raise bad_request("error decoding patch: " + what)
        merged = self._clean(merge(old, patch), kind)
        if merged["metadata"].get("name") and merged["metadata"].get("uid") != old["metadata"]["uid"]:
            wrong = merged["metadata"].get("uid", "")
            cause = Cause("FieldValueInvalid", f"Invalid value: {quoted(wrong)}: field is immutable",
                          "metadata.uid")
            raise invalid(kind, target.name, [cause, cause])
        return self._update(request, target, old, merged)

    def _old(self, target: Target) -> Document:
        old = self._shelf(target.kind).objects.get((target.namespace, target.name))
        if old is None:
            raise not_found(target.kind, target.name)
        return old

    def _update(self, request: Request, target: Target, old: Document, document: Document) -> Answer:
        """Carry out a PUT or PATCH whose outcome is document."""
        kind, key = target.kind, (target.namespace, target.name)
        metadata, was = document["metadata"], old["metadata"]
        if not metadata.get("name"):
            raise bad_request(f"the name of the object ({target.name} based on URL) was undeterminable: "
                              f"name must be "
                              "provided")
        if metadata["name"] != target.name:
            raise bad_request(f"the name of the object ({metadata.get('name', '')}) does not match the name "
                              f"on the URL "
                              f"({target.name})")
        self._check_namespace(metadata, target)
        self._check_version(metadata, was, target)
        document = self._confine(document, old, target)
        metadata = document["metadata"]
        for name in ("uid", "creationTimestamp", "generation", "deletionTimestamp",
                     "deletionGracePeriodSeconds",
                     "managedFields", "namespace", "resourceVersion", "selfLink"):
            metadata.pop(name, None)
            if name in was:
                metadata[name] = was[name]
        self._refuse_new_finalizers(metadata, was, kind, target.name)
        document = self._validate(document, kind, old, target.subresource)
        metadata = document["metadata"]
        raw = self._shelf(kind).raw[key]
        if self._same(document, old):
            return Answer(200, raw + b"\n")
        if "generation" in was and self._content(document, kind) != self._content(old, kind):
            metadata["generation"] = was["generation"] + 1
        document = self._own_fields(document, kind, self._manager(request), target.subresource)
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._shelf(kind).write(self._next_version(), key, None)
            return self._json(document)
        if "dryRun" in request.query:
            return self._json(document)
        return Answer(200, self._store(self._shelf(kind), key, document) + b"\n")

    def _check_version(self, metadata: Document, was: Document, target: Target) -> None:
        version = metadata.get("resourceVersion")
        if version is None and not target.kind.unconditional:
            cause = Cause("FieldValueInvalid", "Invalid value: 0: must be specified for an update",
                          "metadata.resourceVersion")
            raise invalid(target.kind, target.name, [cause], target.kind.full_name, target.kind.plural)
        if version is not None and not str(version).isdigit():
            raise Failure(500, f"strconv.ParseUint: parsing {quoted(version)}: invalid syntax")
        if version is not None and str(version) != was["resourceVersion"]:
            raise conflict(target.kind, target.name, MODIFIED)

    def _confine(self, document: Document, old: Document, target: Target) -> Document:
        """Keep a write to the object off its status and a write to the status off everything else."""
        if target.subresource:
            confined = {name: value for name, value in old.items() if name != "status"}
            if document.get("status") is not None:
                confined["status"] = document["status"]
            return {**confined, "metadata": dict(old["metadata"])}
        if target.kind.status:
            document = {name: value for name, value in document.items() if name != "status"}
            if "status" in old:
                document["status"] = old["status"]
        return {**document, "metadata": dict(document["metadata"])}

    def _refuse_new_finalizers(self, metadata: Document, was: Document, kind: Kind, name: str) -> None:
        new = [item for item in metadata.get("finalizers") or [] if item not in (was.get("finalizers") or [])]
        if new and "deletionTimestamp" in was:
            listed = "[]string{" + ", ".join(quoted(item) for item in new) + "}"
            cause = Cause("FieldValueForbidden", "Forbidden: no new finalizers can be added if the object "
                                                 "is being "
                          f"deleted, found new finalizers {listed}", "metadata.finalizers")
            raise invalid(kind, name, [cause, cause])

    def _same(self, one: Document, other: Document) -> bool:
        """Say whether two documents are equal but for their managed fields."""
        def bare(document: Document) -> Document:
            metadata = {name: value for name, value in document["metadata"].items()
                        if name != "managedFields"}
            return {**document, "metadata": metadata}
        return bare(one) == bare(other)

    def _content(self, document: Document, kind: Kind) -> Document:
        """Return the part of a document whose change counts as a new generation."""
        hidden = ("metadata", "status") if kind.status or kind.schema is None else ("metadata",)
        return {name: value for name, value in document.items() if name not in hidden}

    def _delete(self, request: Request, target: Target) -> Answer:
        old, kind = self._old(target), target.kind
        wanted = (request.parsed or {}).get("preconditions") or {}
        checks = (("uid", "UID", "The object might have been deleted and then recreated"),
                  ("resourceVersion", "ResourceVersion", "The object might have been modified"))
        for field, shown, then in checks:
            if wanted.get(field) is not None and wanted[field] != old["metadata"][field]:
                raise conflict(kind, target.name, f"the {shown} in the precondition ({wanted[field]}) does "
                                                  f"not match the "
                               f"{shown} in record ({old['metadata'][field]}). {then}", kind.kind_name,
                               kind.kind)
        if "dryRun" in request.query:
            return self._json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})
        return self._remove_object(kind, (target.namespace, target.name))

    def _remove_object(self, kind: Kind, key: Tuple[str, str]) -> Answer:
        shelf = self._shelf(kind)
        old = shelf.objects[key]
        if kind is NAMESPACES or old["metadata"].get("finalizers"):
            return self._mark_deleted(shelf, key, old)
        if kind is CRDS:
            self._unserve_crd(old)
        shelf.write(self._next_version(), key, None)
        if kind is CRDS:
            return self._json(old)
        details = kind.details(key[1], uid=old["metadata"]["uid"])
        return self._json({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                           "details": details})

    def _mark_deleted(self, shelf: Shelf, key: Tuple[str, str], old: Document) -> Answer:
        if "deletionTimestamp" in old["metadata"]:
            return Answer(200, shelf.raw[key] + b"\n")
        metadata = {**old["metadata"], "deletionTimestamp": now_text()}
        if shelf.kind is not NAMESPACES:
            metadata["deletionGracePeriodSeconds"] = 0
        if "generation" in metadata:
            metadata["generation"] += 1
        document = {**old, "metadata": metadata}
        if shelf.kind is NAMESPACES:
            document["status"] = {"phase": "Terminating"}
        return Answer(200, self._store(shelf, key, document) + b"\n")

    def _delete_all(self, request: Request, target: Target) -> Answer:
        matches = self._selectors(request, target)
        shelf = self._shelf(target.kind)
        doomed = [key for key in sorted(shelf.objects) if target.namespace in ("", key[0])
                  and matches(shelf.objects[key])]
        items = [shelf.objects[key] for key in doomed]
        for key in doomed:
            self._remove_object(target.kind, key)
        return self._json({"apiVersion": target.kind.api_version, "items": items,
                           "kind": target.kind.list_kind,
                           "metadata": {"continue": "", "resourceVersion": str(self._version)}})

    # -- CRDs ------------------------------------------------------------------------------------------------

    def _add_kind(self, kind: Kind) -> None:
        self._kinds[(kind.group, kind.version, kind.plural)] = kind
        shelf = self._shelves.get((kind.group, kind.plural))
        if shelf is None:
            self._shelves[(kind.group, kind.plural)] = Shelf(kind, self._version)
            return
        shelf.kind = kind
        # A new definition comes with a new cache, which knows nothing of earlier versions.
        shelf.oldest = self._version
        shelf.end_watches()

    def _serve_crd(self, document: Document) -> None:
        spec, names = document["spec"], document["spec"]["names"]
        for version in spec["versions"]:
            schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
            kind = Kind(spec["group"], version["name"], names["plural"], names["kind"],
                        names.get("listKind") or names["kind"] + "List", names.get("singular")
                        or names["kind"].lower(),
                        tuple(names.get("shortNames") or ()), spec.get("scope") == "Namespaced", schema,
                        "status" in (version.get("subresources") or {}), False)
            if self._kinds.get((kind.group, kind.version, kind.plural)) != kind:
                self._add_kind(kind)

    def _unserve_crd(self, document: Document) -> None:
        """Remove every object of a definition, end its watches and serve it no longer."""
        spec = document["spec"]
        key = (spec["group"], spec["names"]["plural"])
        shelf = self._shelves[key]
        for name in sorted(shelf.objects):
            shelf.write(self._next_version(), name, None)
        shelf.end_watches()
        del self._shelves[key]
        for version in spec["versions"]:
            self._kinds.pop((spec["group"], version["name"], spec["names"]["plural"]), None)

# ------------------------------------------------------------------------------------------------------------
# Signature Version 4, written from the AWS specification alone, so that it can judge the module's
# ------------------------------------------------------------------------------------------------------------

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_HASH = hashlib.sha256(b"").hexdigest()
SIGNED_QUERY = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders",
                "X-Amz-Expires")


def uri_encode(data: bytes, keep: bytes = b"") -> str:
    """Encode every byte but the unreserved ones (and those to keep) as %XX."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~" + keep
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in data)


def uri_decode(text: str) -> bytes:
    """Undo percent-encoding and nothing else; text holds one character for each byte, as the wire did."""
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match.group(1), 16)]),
                  text.encode("latin-1"))


def query_pairs(raw_query: str) -> List[Tuple[str, str]]:
    """Return the pairs of a raw query, encoded the canonical way."""
    pairs = []
    for part in raw_query.split("&") if raw_query else []:
        name, _, value = part.partition("=")
        pairs.append(tuple(uri_encode(uri_decode(text.replace("+", " "))) for text in (name, value)))
    return pairs  # type: ignore[return-value]


def canonical_request(method: str, raw_path: str, raw_query: str, headers: Iterable[Tuple[str, str]],
                      signed: Iterable[str], payload: str) -> str:
    """Return the canonical request; S3 neither normalises the path nor encodes it twice."""
    values: Dict[str, List[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(signed)
    query = "&".join(f"{name}={value}" for name, value in sorted(query_pairs(raw_query))
                     if name != "X-Amz-Signature")
    lines = [method, uri_encode(uri_decode(raw_path), b"/") or "/", query]
    lines += [f"{name}:{','.join(values.get(name, ['']))}" for name in names]
    return "\n".join(lines + ["", ";".join(names), payload])


def string_to_sign(when: str, scope: str, request: str) -> str:
    """Return the string to sign for a canonical request."""
    return "\n".join((ALGORITHM, when, scope, hashlib.sha256(request.encode("utf-8")).hexdigest()))


def signature_of(secret: str, scope: str, text: str) -> str:
    """Return the signature of the string to sign."""
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def stamp(at: float) -> str:
    """Return an instant in the basic ISO 8601 form of X-Amz-Date."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


def presigned_url(url: str, access_key: str, secret_key: str, region: str, at: Optional[float] = None,
                  expires: int = 600, token: str = "", method: str = "GET", extra: str = "") -> str:
    """Sign a URL whose path is already encoded; extra is more raw query that is to be signed."""
    base, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    when = stamp(time.time() if at is None else at)
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    query = {"X-Amz-Algorithm": ALGORITHM, "X-Amz-Credential": f"{access_key}/{scope}", "X-Amz-Date": when,
             "X-Amz-Expires": str(expires), "X-Amz-SignedHeaders": "host"}
    if token:
        query["X-Amz-Security-Token"] = token
    raw = "&".join(f"{name}={uri_encode(value.encode())}" for name, value in query.items()) + (extra and "&"
                                                                                               + extra)
    request = canonical_request(method, "/" + path, raw, [("host", host)], ["host"], UNSIGNED)
    return f"{base}://{rest}?{raw}&X-Amz-Signature=" + signature_of(secret_key, scope,
                                                                    string_to_sign(when, scope, request))


def signed_headers(method: str, host: str, target: str, body: bytes, access_key: str, secret_key: str,
                   region: str,
                   at: Optional[float] = None, token: str = "") -> Dict[str, str]:
    """Return the headers of a request signed in its Authorization header."""
    when = stamp(time.time() if at is None else at)
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    payload = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": when}
    if token:
        headers["x-amz-security-token"] = token
    path, _, query = target.partition("?")
    request = canonical_request(method, path, query, headers.items(), headers, payload)
    signature = signature_of(secret_key, scope, string_to_sign(when, scope, request))
    headers["authorization"] = (f"{ALGORITHM} Credential={access_key}/{scope}, "
                                f"SignedHeaders={';'.join(sorted(headers))}, "
                                f"Signature={signature}")
    return headers


# ------------------------------------------------------------------------------------------------------------
# FakeStore
# ------------------------------------------------------------------------------------------------------------

class StoreError(Exception):
    """A request that ends in an S3 error document."""

    def __init__(self, status: int, code: str, message: str, **elements: Any) -> None:
        """Keep what the XML is to say."""
        super().__init__(message)
        self.status = status
        self.elements = {"Code": code, "Message": message, **elements}

    def answer(self, resource: str) -> Answer:
        """Return the error as AWS sends it."""
        rows = {**self.elements, "Resource": resource, "RequestId": "FAKE0123456789AB",
                "HostId": "fake-store"}
        body = '<?xml version="1.0" encoding="UTF-8"?>\n<Error>' + "".join(
            f"<{name}>{xml_text(str(value))}</{name}>" for name, value in rows.items()) + "</Error>"
        return Answer(self.status, body.encode(), (("Content-Type", "application/xml"),))


def xml_text(text: str) -> str:
    """Escape text for XML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class StoredObject(NamedTuple):
    """One object with what a HEAD would say of it."""

    body: bytes
    etag: str
    modified: str
    headers: Tuple[Tuple[str, str], ...]


class Claim(NamedTuple):
    """What a request says about its signature, wherever it says it."""

    access_key: str
    scope: str
    when: str
    signed: List[str]
    signature: str
    payload: str
    token: str


class FakeStore(LoopbackServer):
    """A loopback S3 server that believes no signature it has not recomputed itself."""

    kind = "fake"

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None,
                 region: str = "us-east-1") -> None:
        """Start serving, empty, with one key pair."""
        super().__init__(tls, certificate)
        self.access_key, self.secret_key, self.region = "AKIAFAKESTORE", "fake-store-secret/+", region
        # More keys may be added: access key -> (secret, session token that must come with it or "").
        self.keys: Dict[str, Tuple[str, str]] = {self.access_key: (self.secret_key, "")}
        self.clock: Callable[[], float] = time.time
        # Without the right to list a bucket AWS answers 403 instead of 404 for an absent key.
        self.hide_missing = False
        self.buckets: Dict[str, Dict[str, StoredObject]] = {}
        self.path_hosts = {"127.0.0.1", "localhost"}
        self.start()

    def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket."""
        self.buckets.setdefault(bucket, {})

    def put(self, bucket: str, key: str, body: bytes, **headers: str) -> None:
        """Store an object, its bucket too if need be; a header such as Content_Type is given back with it."""
        self.create_bucket(bucket)
        extra = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        etag = '"' + hashlib.md5(body).hexdigest() + '"'
        self.buckets[bucket][key] = StoredObject(body, etag, formatdate(self.clock(), usegmt=True), extra)

    def url_of(self, bucket: str, key: str, **options: Any) -> str:
        """Return a valid pre-signed path-style URL of our own making."""
        url = f"{self.url}/{bucket}/" + uri_encode(key.encode(), b"/")
        return presigned_url(url, self.access_key, self.secret_key, self.region,
                             **{"at": self.clock(), **options})

    # -- requests --------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Answer:
        """Return the answer to one request."""
        bucket, key = self._locate(request)
        try:
            region = (("x-amz-bucket-region", self.region),) if request.method == "HEAD" and not key else ()
            try:
                self._verify(request)
                answer = self._serve(request, bucket, key)
            except StoreError as error:
                answer = error.answer(request.raw_path)
            return answer._replace(headers=answer.headers + region
                                   + (("x-amz-request-id", "FAKE0123456789AB"),
                                                                      ("Server", "AmazonS3")))
        except UnicodeDecodeError:
            return StoreError(400, "InvalidURI", "Couldn't parse the specified URI.").answer(request.raw_path)

    def _locate(self, request: Request) -> Tuple[str, str]:
        """Return bucket and key, from the path alone or with the bucket from the Host header."""
        name = re.sub(r":\d+$", "", request.headers.get("host", ""))
        path = uri_decode(request.raw_path).decode("utf-8", "surrogateescape")[1:]
        if name in self.path_hosts or name.startswith(("s3.", "s3-", "[")):
            bucket, _, key = path.partition("/")
            return bucket, key
        known = [bucket for bucket in self.buckets if name.startswith(bucket + ".")]
        return max(known, key=len, default=name.split(".")[0]), path

    def _serve(self, request: Request, bucket: str, key: str) -> Answer:
        if not bucket:
            return self._xml("<ListAllMyBucketsResult><Buckets>" + "".join(
                f"<Bucket><Name>{name}</Name></Bucket>" for name in sorted(self.buckets))
                + "</Buckets></ListAllMyBucketsResult>")
        if bucket not in self.buckets:
            raise StoreError(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=bucket)
        if not key:
            return Answer(200, b"", ()) if request.method == "HEAD" else self._list(request, bucket)
        if request.method == "PUT":
            self.put(bucket, key, request.body)
            return Answer(200, b"", (("ETag", self.buckets[bucket][key].etag),))
        if request.method == "DELETE":
            self.buckets[bucket].pop(key, None)
            return Answer(204, b"", ())
        if request.method not in ("GET", "HEAD"):
            raise StoreError(405, "MethodNotAllowed", "The specified method is not allowed against this "
                                                      "resource.",
                             Method=request.method, ResourceType="OBJECT")
        return self._object(request, bucket, key)

    def _xml(self, text: str) -> Answer:
        return Answer(200, ('<?xml version="1.0" encoding="UTF-8"?>\n' + text).encode(),
                      (("Content-Type", "application/xml"),))

    def _list(self, request: Request, bucket: str) -> Answer:
        prefix = request.query.get("prefix", "")
        rows = [f"<Contents><Key>{xml_text(key)}</Key><ETag>{xml_text(stored.etag)}</ETag>"
                f"<Size>{len(stored.body)}</Size>"
                "</Contents>" for key, stored in sorted(self.buckets[bucket].items())
                if key.startswith(prefix)]
        limit = int(request.query.get("max-keys", "1000"))
        more = "true" if len(rows) > limit else "false"
        return self._xml(f"<ListBucketResult><Name>{bucket}</Name><Prefix>{xml_text(prefix)}</Prefix>"
                         f"<KeyCount>{len(rows[:limit])}</KeyCount><MaxKeys>{limit}</MaxKeys>"
                         f"<IsTruncated>{more}</IsTruncated>"
                         + "".join(rows[:limit]) + "</ListBucketResult>")

    def _object(self, request: Request, bucket: str, key: str) -> Answer:
        stored = self.buckets[bucket].get(key)
        if stored is None:
            if self.hide_missing:
                raise StoreError(403, "AccessDenied", "Access Denied")
            raise StoreError(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        self._check_conditions(request, stored)
        headers = (("ETag", stored.etag), ("Last-Modified", stored.modified), ("Accept-Ranges", "bytes"))
        kinds = tuple(pair for pair in stored.headers) or (("Content-Type", "binary/octet-stream"),)
        if request.headers.get("if-none-match") == stored.etag:
            return Answer(304, b"", headers)
        if "range" in request.headers:
            span = self._span(request.headers["range"], len(stored.body))
            if span:
                part = stored.body[span[0]:span[1] + 1]
                place = (("Content-Range", f"bytes {span[0]}-{span[1]}/{len(stored.body)}"),)
                return Answer(206, part, headers + kinds + place)
        answer = Answer(200, stored.body, headers + kinds)
        if request.method == "HEAD":
            return answer._replace(headers=answer.headers + (("Content-Length", str(len(stored.body))),))
        return answer

    def _check_conditions(self, request: Request, stored: StoredObject) -> None:
        wanted = request.headers.get("if-match")
        if wanted not in (None, "*", stored.etag, stored.etag.strip('"')):
            raise StoreError(412, "PreconditionFailed", "At least one of the pre-conditions you specified "
                                                        "did not hold",
                             Condition="If-Match")

    def _span(self, text: str, size: int) -> Optional[Tuple[int, int]]:
        """Return first and last byte of a Range header, or None when the header is to be ignored."""
        match = re.match(r"^bytes=(\d*)-(\d*)$", text)
        if not match or not (match.group(1) or match.group(2)):
            return None
        first, last = match.groups()
        if first:
            begin, end = int(first), min(int(last), size - 1) if last else size - 1
        else:
            begin, end = max(0, size - int(last)), size - 1
        if begin >= size or (not first and int(last) == 0):
            raise StoreError(416, "InvalidRange", "The requested range is not satisfiable",
                             RangeRequested=text,
                             ActualObjectSize=size)
        return (begin, end) if begin <= end else None

    # -- signatures ------------------------------------------------------------------------------------------

    def _verify(self, request: Request) -> None:
        """Refuse the request unless its signature is right, in time and in scope."""
        in_query, in_header = "X-Amz-Algorithm=" in request.raw_query, "authorization" in request.headers
        if in_query and in_header:
            raise StoreError(400, "InvalidArgument", "Only one auth mechanism allowed; only the "
                                                     "X-Amz-Algorithm query "
                             "parameter, Signature query string parameter or the Authorization header "
                             "should be specified",
                             ArgumentName="Authorization", ArgumentValue=request.headers["authorization"])
        if not in_query and not in_header:
            raise StoreError(403, "AccessDenied", "Access Denied")
        claim = self._query_claim(request) if in_query else self._header_claim(request)
        request.user = claim.access_key
        secret = self._secret_of(claim)
        unsigned = [name for name in request.headers if (name.startswith("x-amz-") or name == "host")
                    and name not in claim.signed and not (in_query and name == "x-amz-content-sha256")]
        if unsigned:
            raise StoreError(403, "AccessDenied", "There were headers present in the request which were not "
                                                  "signed",
                             HeadersNotSigned=", ".join(unsigned))
        self._compare(request, claim, secret)

    def _secret_of(self, claim: Claim) -> str:
        if claim.access_key not in self.keys:
            raise StoreError(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist "
                                                        "in our records.",
                             AWSAccessKeyId=claim.access_key)
        secret, token = self.keys[claim.access_key]
        if token != claim.token:
            raise StoreError(400, "InvalidToken", "The provided token is malformed or otherwise invalid.",
                             **{"Token-0": claim.token})
        return secret

    def _compare(self, request: Request, claim: Claim, secret: str) -> None:
        canonical = canonical_request(request.method, request.raw_path, request.raw_query,
                                      request.header_list,
                                      claim.signed, claim.payload)
        text = string_to_sign(claim.when, claim.scope, canonical)
        if not hmac.compare_digest(signature_of(secret, claim.scope, text), claim.signature):
            raise StoreError(403, "SignatureDoesNotMatch", "The request signature we calculated does not "
                                                           "match the signature "
                             "you provided. Check your key and signing method.",
                             AWSAccessKeyId=claim.access_key,
                             StringToSign=text, SignatureProvided=claim.signature,
                             StringToSignBytes=text.encode().hex(" "), CanonicalRequest=canonical,
                             CanonicalRequestBytes=canonical.encode().hex(" "))

    def _query_claim(self, request: Request) -> Claim:
        """Read a pre-signed URL and check its time."""
        def wrong(message: str, **elements: Any) -> StoreError:
            return StoreError(400, "AuthorizationQueryParametersError", message, **elements)
        given = {unquote(name): unquote(value) for name, value in query_pairs(request.raw_query)}
        if any(not given.get(name) for name in SIGNED_QUERY):
            raise wrong("Query-string authentication version 4 requires the X-Amz-Algorithm, "
                        "X-Amz-Credential, "
                        "X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
        if given["X-Amz-Algorithm"] != ALGORITHM:
            raise wrong('X-Amz-Algorithm only supports "AWS4-HMAC-SHA256 and AWS4-ECDSA-P256-SHA256"')
        if not re.match(r"^-?\d+$", given["X-Amz-Expires"]):
            raise wrong("X-Amz-Expires should be a number")
        expires = int(given["X-Amz-Expires"])
        if expires < 0:
            raise wrong("X-Amz-Expires must be non-negative")
        if expires > 604800:
            raise wrong("X-Amz-Expires must be less than a week (in seconds); that is, the given "
                        "X-Amz-Expires must be "
                        "less than 604800 seconds")
        access_key, scope = self._scope(given["X-Amz-Credential"], given["X-Amz-Date"],
                                        "Error parsing the X-Amz-Credential parameter; ", wrong)
        self._check_life(given["X-Amz-Date"], expires)
        payload = request.headers.get("x-amz-content-sha256") or given.get("X-Amz-Content-Sha256") or UNSIGNED
        return Claim(access_key, scope, given["X-Amz-Date"], given["X-Amz-SignedHeaders"].split(";"),
                     given["X-Amz-Signature"], payload, given.get("X-Amz-Security-Token", ""))

    def _check_life(self, when: str, expires: int) -> None:
        begin, now = self._instant(when), self.clock()
        if begin > now + 900:
            raise StoreError(403, "AccessDenied", "Request is not yet valid")
        if now > begin + expires:
            def shown(at: float) -> str:
                return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
            raise StoreError(403, "AccessDenied", "Request has expired", **{
                "X-Amz-Expires": expires, "Expires": shown(begin + expires), "ServerTime": shown(now)})

    def _instant(self, when: str) -> float:
        try:
            parsed = datetime.strptime(when, "%Y%m%dT%H%M%SZ")
        except ValueError:
            raise StoreError(400, "AuthorizationQueryParametersError",
                             'X-Amz-Date must be in the ISO8601 Long Format '
                             '"yyyyMMdd\'T\'HHmmss\'Z\'"') from None
        return parsed.replace(tzinfo=timezone.utc).timestamp()

    def _scope(self, credential: str, when: str, prefix: str,
               wrong: Callable[..., StoreError]) -> Tuple[str, str]:
        """Return access key and scope of a credential that fits this store."""
        parts = credential.split("/")
        if len(parts) < 5 or parts[-1] != "aws4_request":
            raise wrong(prefix + 'the Credential is mal-formed; expecting '
                                 '"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/'
                        'aws4_request".')
        date, region, service = parts[-4:-1]
        if region != self.region:
            raise wrong(f"{prefix}the region '{region}' is wrong; expecting '{self.region}'",
                        Region=self.region)
        if service != "s3":
            raise wrong(f'{prefix}incorrect service "{service}". This endpoint belongs to "s3".')
        if date != when[:8]:
            raise wrong(f'{prefix}incorrect date format "{date}". This date in the credential must be in '
                        f'the format '
                        '"yyyyMMdd" and the same as that of the request.')
        return "/".join(parts[:-4]), "/".join(parts[-4:])

    def _header_claim(self, request: Request) -> Claim:
        """Read an Authorization header and check the time and the body's hash."""
        def wrong(message: str, **elements: Any) -> StoreError:
            return StoreError(400, "AuthorizationHeaderMalformed", message, **elements)
        match = re.match(ALGORITHM + r"\s+Credential=([^,\s]+),\s*SignedHeaders=([^,\s]+),"
                         r"\s*Signature=([0-9a-f]+)\s*$",
                         request.headers["authorization"])
        if not match:
            raise wrong("The authorization header is malformed; it requires Credential, SignedHeaders and "
                        "Signature.")
        when, payload = request.headers.get("x-amz-date", ""), request.headers.get("x-amz-content-sha256", "")
        access_key, scope = self._scope(match.group(1), when, "The authorization header is malformed; ",
                                        wrong)
        if abs(self._instant(when) - self.clock()) > 900:
            raise StoreError(403, "RequestTimeTooSkewed", "The difference between the request time and the "
                                                          "current time is "
                             "too large.", RequestTime=when, ServerTime=stamp(self.clock()),
                             MaxAllowedSkewMilliseconds=900000)
        if not payload:
            raise StoreError(400, "InvalidRequest", "Missing required header for this request: "
                                                    "x-amz-content-sha256")
        if payload != UNSIGNED and payload != hashlib.sha256(request.body).hexdigest():
            raise StoreError(400, "XAmzContentSHA256Mismatch",
                             "The provided 'x-amz-content-sha256' header does not match "
                             "what was computed.", ClientComputedContentSHA256=payload)
        return Claim(access_key, scope, when, match.group(2).split(";"), match.group(3), payload,
                     request.headers.get("x-amz-security-token", ""))

# ------------------------------------------------------------------------------------------------------------
# The real servers
# ------------------------------------------------------------------------------------------------------------

def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def assets_folder() -> Optional[str]:
    """Return the folder of the real servers (KUBEBUILDER_ASSETS), or None when there is none."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    return folder if folder and os.path.exists(os.path.join(folder, "kube-apiserver")) else None


class Child:
    """A server process of ours with its log, stopped by its own pid."""

    def __init__(self, folder: str, program: str, *arguments: str) -> None:
        """Start the program with its output in a log file of the folder."""
        self.name = os.path.basename(program)
        self.log = os.path.join(folder, self.name + ".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen((program,) + arguments, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log,
                                            cwd=folder)

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ready() is true, and fail with the end of the log when that does not happen."""
        def settled() -> bool:
            return self.process.poll() is not None or ready()
        try:
            wait_until(settled, seconds, self.name + " to be ready")
        except AssertionError as error:
            raise RuntimeError(f"{error}; its log ends:\n{self.tail()}") from None
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}; its log "
                               f"ends:\n{self.tail()}")

    def tail(self) -> str:
        """Return the last lines of the log."""
        with open(self.log, "rb") as log:
            return log.read()[-3000:].decode(errors="replace")

    def stop(self) -> None:
        """End the process, first kindly."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def answers(url: str, expected: bytes, **options: Any) -> bool:
    """Say whether a GET of the URL succeeds with a body that contains this."""
    with urllib3.PoolManager(**options) as pool:
        try:
            response = pool.request("GET", url, retries=False, timeout=2.0)
        except urllib3.exceptions.HTTPError:
            return False
        return response.status == 200 and expected in response.data


class RealCluster(Cluster):
    """etcd and the real kube-apiserver over loopback https, in a temporary folder."""

    kind = "real"

    def __init__(self, assets: str) -> None:
        """Start both servers and wait until they are ready."""
        self.folder = tempfile.mkdtemp(prefix="velero-requests-real-")
        self.children: List[Child] = []
        try:
            self._start(assets)
        except BaseException:
            self.close()
            raise

    def _start(self, assets: str) -> None:
        made = make_certificate(self.folder)
        self.ca = made.ca
        etcd = self._start_etcd(os.path.join(assets, "etcd"))
        port = free_port()
        child = Child(self.folder, os.path.join(assets, "kube-apiserver"), *self._flags(made, etcd, port))
        self.children.append(child)
        self.url = f"https://127.0.0.1:{port}"
        self.admin = self.client("admin")
        headers = {"Authorization": "Bearer " + token_of("admin")}
        child.wait_ready(lambda: answers(self.url + "/readyz", b"ok", ca_certs=made.ca, headers=headers), 60)
        wait_until(lambda: self.admin.raw("GET", "/api/v1/namespaces/default").status == 200, 30,
                   "the namespaces")

    def _start_etcd(self, program: str) -> str:
        url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        child = Child(self.folder, program, "--data-dir", os.path.join(self.folder, "etcd"),
                      "--listen-client-urls", url,
                      "--advertise-client-urls", url, "--listen-peer-urls", peer, "--unsafe-no-fsync")
        self.children.append(child)
        child.wait_ready(lambda: answers(url + "/health", b"true"), 30)
        self.etcd_url = url
        return url

    def _flags(self, made: Certificate, etcd: str, port: int) -> List[str]:
        private, public, tokens = (os.path.join(self.folder, name) for name in ("sa.key", "sa.pub",
                                                                                "tokens.csv"))
        run_openssl("genrsa", "-out", private, "2048")
        run_openssl("rsa", "-in", private, "-pubout", "-out", public)
        with open(tokens, "w", encoding="ascii") as file:
            for user in USERS:
                file.write(f"{token_of(user)},{user},{user}" + (',"system:masters"\n' if user == "admin"
                                                                else "\n"))
        flags = {"etcd-servers": etcd, "bind-address": "127.0.0.1", "advertise-address": "127.0.0.1",
                 "secure-port": str(port), "cert-dir": self.folder, "tls-cert-file": made.cert,
                 "tls-private-key-file": made.key, "client-ca-file": made.ca,
                 "service-account-issuer": "https://kubernetes.default.svc",
                 "service-account-key-file": public,
                 "service-account-signing-key-file": private, "token-auth-file": tokens,
                 "authorization-mode": "RBAC", "disable-admission-plugins": "ServiceAccount",
                 "service-cluster-ip-range": "10.0.0.0/24"}
        return [f"--{name}={value}" for name, value in flags.items()]

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Create a Role and its binding, and wait until the authorizer has seen them."""
        name = f"{user}-{uuid.uuid4().hex[:6]}"
        api = "rbac.authorization.k8s.io"
        self.admin.create("roles", {"kind": "Role", "metadata": {"name": name}, "rules": list(rules)},
                          namespace)
        self.admin.create("rolebindings", {
            "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": api, "kind": "User", "name": user}]}, namespace)
        wait_until(lambda: all(self._allows(user, rule, namespace) for rule in rules), 10, "the grant")

    def _allows(self, user: str, rule: Document, namespace: str) -> bool:
        resource, _, subresource = rule["resources"][0].partition("/")
        attributes = {"namespace": namespace, "verb": rule["verbs"][0], "group": rule["apiGroups"][0],
                      "resource": resource, "subresource": subresource, "name": rule.get("resourceNames",
                                                                                         [""])[0]}
        review = {"kind": "SubjectAccessReview", "spec": {"user": user, "resourceAttributes": attributes}}
        return bool(self.admin.create("subjectaccessreviews", review)["status"]["allowed"])

    def compact(self) -> str:
        """Make etcd forget all versions but the newest, and return the revision compacted to."""
        revision = self._etcd("range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
        self._etcd("compaction", {"revision": revision, "physical": True})
        return str(revision)

    def _etcd(self, call: str, body: Document) -> Document:
        with urllib3.PoolManager() as pool:
            response = pool.request("POST", f"{self.etcd_url}/v3/kv/{call}", body=json.dumps(body))
            return json.loads(response.data)

    def close(self) -> None:
        """Stop both processes, the API server first, and remove the folder."""
        if hasattr(self, "admin"):
            self.admin.close()
        for child in reversed(self.children):
            child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


_real_clusters: List[RealCluster] = []
_real_lock = threading.Lock()


def real_cluster() -> RealCluster:
    """Return the one real cluster of this process, started at the first call and stopped at exit."""
    assets = assets_folder()
    if not assets:
        raise unittest.SkipTest("no real kube-apiserver: KUBEBUILDER_ASSETS is not set")
    with _real_lock:
        if not _real_clusters:
            _real_clusters.append(RealCluster(assets))
            atexit.register(close_real_cluster)
        return _real_clusters[0]


def close_real_cluster() -> None:
    """Stop the real cluster of this process, if it was started."""
    with _real_lock:
        while _real_clusters:
            _real_clusters.pop().close()


class RealStore:
    """versitygw over a temporary folder: a bucket is a folder, an object a file."""

    kind = "real"
    access_key, secret_key, region = "AKIAREALSTORE", "real-store-secret", "us-east-1"
    ca: Optional[str] = None

    def __init__(self, assets: str) -> None:
        """Start the server and wait until it answers."""
        self.folder = tempfile.mkdtemp(prefix="velero-requests-store-")
        self.data = os.path.join(self.folder, "data")
        os.mkdir(self.data)
        self.host = f"127.0.0.1:{free_port()}"
        self.url = "http://" + self.host
        self.child = Child(self.folder, os.path.join(assets, "versitygw"), "--port", self.host, "--access",
                           self.access_key, "--secret", self.secret_key, "--region", self.region, "posix",
                           self.data)
        try:
            self.child.wait_ready(self._listens, 30)
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.host.rpartition(":")[2]))) == 0

    def create_bucket(self, bucket: str) -> None:
        """Make an empty bucket."""
        os.makedirs(os.path.join(self.data, bucket), exist_ok=True)

    def put(self, bucket: str, key: str, body: bytes) -> None:
        """Store an object, making the bucket if need be, with an ETag as a PUT would have left it."""
        self.create_bucket(bucket)
        target = f"/{bucket}/" + quote(key, safe="/-._~")
        headers = signed_headers("PUT", self.host, target, body, self.access_key, self.secret_key,
                                 self.region)
        with urllib3.PoolManager() as pool:
            response = pool.request("PUT", self.url + target, body=body, headers=headers, retries=False)
        if response.status != 200:
            raise RuntimeError(f"versitygw answered {response.status}: "
                               f"{response.data.decode(errors='replace')}")

    def close(self) -> None:
        """Stop the process and remove its folder."""
        self.child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


_real_stores: List[RealStore] = []


def real_store() -> RealStore:
    """Return the one real store of this process, started at the first call and stopped at exit."""
    assets = assets_folder()
    if not assets or not os.path.exists(os.path.join(assets, "versitygw")):
        raise unittest.SkipTest("no real S3 server: KUBEBUILDER_ASSETS is not set or has no versitygw")
    with _real_lock:
        if not _real_stores:
            _real_stores.append(RealStore(assets))
            atexit.register(close_real_store)
        return _real_stores[0]


def close_real_store() -> None:
    """Stop the real store of this process, if it was started."""
    with _real_lock:
        while _real_stores:
            _real_stores.pop().close()

# ------------------------------------------------------------------------------------------------------------
# Proof that the fakes agree with the real servers
# ------------------------------------------------------------------------------------------------------------

MERGE = "application/merge-patch+json"


def load_crds(release: str) -> List[Document]:
    """Return the CRDs of a Velero release from the folder VELERO_CRDS, or skip the test."""
    folder = os.environ.get("VELERO_CRDS")
    if not folder:
        raise unittest.SkipTest("no CRDs of Velero: VELERO_CRDS is not set")
    with open(os.path.join(folder, f"velero-{release}.yaml"), encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def download_request(name: Optional[str] = None, kind: str = "BackupLog", **more: Any) -> Document:
    """Return a DownloadRequest to create."""
    metadata = {"name": name} if name else {"generateName": "made-"}
    return {"apiVersion": "velero.io/v1", "kind": "DownloadRequest", "metadata": metadata,
            "spec": {"target": {"kind": kind, "name": "b1"}}, **more}


if TYPE_CHECKING:
    Mixin = unittest.TestCase
else:
    Mixin = object  # unittest must not run the checks without a cluster


class ServerChecks(Mixin):
    """The checks themselves; a class below says which cluster and which dialect they run against."""

    release = ""
    cluster: Any

    @classmethod
    def start_cluster(cls) -> Cluster:
        """Return the cluster to check."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls) -> None:
        """Start the cluster with the dialect's CRDs."""
        crds = load_crds(cls.release)
        cls.cluster = cls.start_cluster()
        cls.cluster.install_crds(crds)

    def setUp(self) -> None:
        """Give every test a namespace of its own."""
        self.admin: Admin = self.cluster.admin
        self.namespace: str = self.cluster.new_namespace()
        self.has_status = self.release == "1.6.3"

    def make(self, name: Optional[str] = None, **more: Any) -> Document:
        """Create a DownloadRequest in this test's namespace."""
        return self.admin.create("downloadrequests", download_request(name, **more), self.namespace)

    def set_status(self, name: str, status: Any) -> Document:
        """Write a status the way of the dialect."""
        resource = "downloadrequests" + ("/status" if self.has_status else "")
        return self.admin.merge_patch(resource, name, {"status": status}, self.namespace)

    def refused(self, status: int, act: Callable[..., Any], *arguments: Any, **more: Any) -> Refused:
        """Check that a call is refused with a status, and return how."""
        with self.assertRaises(Refused) as caught:
            act(*arguments, **more)
        self.assertEqual(caught.exception.status, status, caught.exception)
        return caught.exception

    # -- creating --

    def test_create_fills_in_what_the_server_owns(self) -> None:
        """A created object has uid, version, generation and time, and nothing the schema does not know."""
        made = self.make("a", junk=1, status={"phase": "New", "junk": 1})
        self.assertEqual(made["metadata"]["generation"], 1)
        self.assertTrue(made["metadata"]["uid"] and made["metadata"]["resourceVersion"].isdigit())
        self.assertTrue(is_date_time(made["metadata"]["creationTimestamp"]))
        self.assertNotIn("junk", made)
        self.assertEqual(made.get("status"), None if self.has_status else {"phase": "New"})
        self.assertEqual(made, self.admin.get("downloadrequests", "a", self.namespace))
        refused = self.refused(409, self.make, "a")
        self.assertEqual(refused.document["reason"], "AlreadyExists")
        self.assertEqual(refused.message, 'downloadrequests.velero.io "a" already exists')

    def test_generated_names_end_in_five_characters(self) -> None:
        """The name is generateName plus five characters, and resourceVersion 0 does no harm."""
        body = {"kind": "ServerStatusRequest", "metadata": {"generateName": "velero-cli-",
                                                            "resourceVersion": "0"}}
        made = self.admin.create("serverstatusrequests", body, self.namespace)
        self.assertRegex(made["metadata"]["name"], "^velero-cli-[bcdfghjklmnpqrstvwxz2456789]{5}$")

    def test_schema_violations_are_named(self) -> None:
        """A 422 names the field, the value and what is allowed."""
        refused = self.refused(422, self.make, "x", kind="Foo")
        self.assertIn('DownloadRequest.velero.io "x" is invalid: spec.target.kind: Unsupported value: '
                      '"Foo": supported '
                      'values: "BackupLog", "BackupContents", ', refused.message)
        self.assertEqual(refused.document["details"]["causes"][0]["field"], "spec.target.kind")
        self.refused(422, self.make, "x", spec={})
        self.refused(404, self.admin.create, "downloadrequests", download_request("x"), "no-such-namespace")

    # -- status --

    def test_status_goes_the_way_of_the_dialect(self) -> None:
        """With a status subresource only /status changes the status; without it there is no /status."""
        before = self.make("a")
        if self.has_status:
            same = self.admin.merge_patch("downloadrequests", "a", {"status": {"phase": "New"}},
                                          self.namespace)
            self.assertEqual(same, before)
        else:
            refused = self.refused(404, self.admin.patch_status, "downloadrequests", "a", {}, self.namespace)
            self.assertEqual(refused.message, 'downloadrequests.velero.io "a" not found')
        after = self.set_status("a", {"phase": "Processed", "downloadURL": "u"})
        self.assertEqual(after["status"], {"phase": "Processed", "downloadURL": "u"})
        self.assertEqual(after["metadata"]["generation"], 1 if self.has_status else 2)

    def test_a_status_patch_changes_nothing_else(self) -> None:
        """Labels, annotations, finalizers and spec in a patch of /status are dropped without a word."""
        if not self.has_status:
            return  # the other dialect has no such path at all, which a test of its own shows
        self.make("a")
        patch = {"metadata": {"labels": {"a": "b"}, "annotations": {"a": "b"}, "finalizers": ["x/y"]},
                 "spec": {"target": {"name": "other"}}, "status": {"phase": "New"}}
        after = self.admin.merge_patch("downloadrequests/status", "a", patch, self.namespace)
        self.assertEqual(after["spec"]["target"]["name"], "b1")
        self.assertFalse({"labels", "annotations", "finalizers"} & set(after["metadata"]))

    def test_nulls_and_times_in_a_status(self) -> None:
        """A null removes a field; a time has to be one."""
        self.make("a")
        self.set_status("a", {"phase": "New", "expiration": "2026-01-02t03:14:05.5+01:00"})
        self.assertEqual(self.set_status("a", {"expiration": None})["status"], {"phase": "New"})
        for value in ("", "garbage", "2026-13-02T03:14:05Z", "2026-01-02T03:14:05", 5):
            self.refused(422, self.set_status, "a", {"expiration": value})
        self.refused(422, self.set_status, "a", {"phase": "Failed"})

    # -- changing --

    def test_patches_conflict_or_do_nothing_or_count(self) -> None:
        """A stale version is a conflict, even if nothing would change; a no-op keeps the version."""
        made = self.make("a")
        patch: Document = {"metadata": {"resourceVersion": "1", "annotations": {"a": "b"}}}
        refused = self.refused(409, self.admin.merge_patch, "downloadrequests", "a", patch, self.namespace)
        self.assertEqual(refused.document["reason"], "Conflict")
        self.assertEqual(refused.message, f'Operation cannot be fulfilled on downloadrequests.velero.io '
                                          f'"a": {MODIFIED}')
        patch["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
        after = self.admin.merge_patch("downloadrequests", "a", patch, self.namespace)
        self.assertGreater(int(after["metadata"]["resourceVersion"]),
                           int(made["metadata"]["resourceVersion"]))
        self.assertEqual(after["metadata"]["generation"], 1)
        patch["metadata"].pop("resourceVersion")
        self.assertEqual(self.admin.merge_patch("downloadrequests", "a", patch, self.namespace), after)

    def test_put_needs_the_version(self) -> None:
        """A PUT without resourceVersion is invalid, with an old one a conflict."""
        made = self.make("a")
        self.refused(422, self.admin.put, "downloadrequests", download_request("a"), self.namespace)
        stale = {**made, "metadata": {**made["metadata"], "resourceVersion": "1"}}
        self.refused(409, self.admin.put, "downloadrequests", stale, self.namespace)
        made["spec"]["target"]["name"] = "b2"
        self.assertEqual(self.admin.put("downloadrequests", made, self.namespace)["metadata"]["generation"],
                         2)

    def test_deletes_obey_preconditions_and_finalizers(self) -> None:
        """A wrong uid or version is a conflict; a finalizer keeps the object until it is removed."""
        made = self.make("a", metadata={"name": "a", "finalizers": ["x/y"]})
        for wrong in ({"uid": "x"}, {"resourceVersion": "1"}):
            refused = self.refused(409, self.admin.delete, "downloadrequests", "a", self.namespace, **wrong)
            self.assertIn("in the precondition", refused.message)
        marked = self.admin.delete("downloadrequests", "a", self.namespace, uid=made["metadata"]["uid"])
        self.assertIn("deletionTimestamp", marked["metadata"])
        self.assertIn("object is being deleted", self.refused(409, self.make, "a").message)
        self.admin.merge_patch("downloadrequests", "a", {"metadata": {"finalizers": None}}, self.namespace)
        self.refused(404, self.admin.get, "downloadrequests", "a", self.namespace)
        self.make("b")
        status = self.admin.delete("downloadrequests", "b", self.namespace)
        self.assertEqual((status["kind"], status["status"]), ("Status", "Success"))

    # -- listing and watching --

    def test_lists_come_in_pages_of_one_moment(self) -> None:
        """All pages show the state of the first, whatever is created meanwhile."""
        for name in "abc":
            self.make(name)
        first = self.admin.list("downloadrequests", self.namespace, limit=2)
        self.assertEqual(first["metadata"]["remainingItemCount"], 1)
        self.make("d")
        token = {"continue": first["metadata"]["continue"]}
        second = self.admin.list("downloadrequests", self.namespace, limit=2, **token)
        self.assertEqual([item["metadata"]["name"] for item in second["items"]], ["c"])
        self.assertEqual(second["metadata"],
                         {"continue": "", "resourceVersion": first["metadata"]["resourceVersion"]})
        one = self.admin.list("downloadrequests", self.namespace, fieldSelector="metadata.name=b")
        self.assertEqual([item["metadata"]["name"] for item in one["items"]], ["b"])
        self.refused(400, self.admin.list, "downloadrequests", self.namespace,
                     fieldSelector="status.phase=New")

    def test_watch_tells_every_change_in_order(self) -> None:
        """From the version of a list a watch shows each change once, deletions with their own version."""
        version = self.admin.list("downloadrequests", self.namespace)["metadata"]["resourceVersion"]
        self.make("a")
        self.make("b")
        self.set_status("a", {"phase": "Processed"})
        self.admin.delete("downloadrequests", "a", self.namespace)
        events = list(self.admin.watch("downloadrequests", self.namespace, resourceVersion=version,
                                       timeoutSeconds=1))
        self.assertEqual([(event["type"], event["object"]["metadata"]["name"]) for event in events],
                         [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "a")])
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
        self.assertEqual(versions, sorted(set(versions)))
        last = events[-1]["object"]["metadata"]["resourceVersion"]
        one = list(self.admin.watch("downloadrequests", self.namespace, resourceVersion=version,
                                    timeoutSeconds=1,
                                    fieldSelector="metadata.name=b"))
        self.assertEqual([event["type"] for event in one], ["ADDED"])
        self.assertEqual(list(self.admin.watch("downloadrequests", self.namespace, resourceVersion=last,
                                               timeoutSeconds=1)), [])

    def test_watch_of_labels_shows_what_enters_and_leaves(self) -> None:
        """An object that stops to match is DELETED for the watch, one that begins to match ADDED."""
        self.make("a", metadata={"name": "a", "labels": {"x": "1"}})
        version = self.make("b")["metadata"]["resourceVersion"]
        self.admin.merge_patch("downloadrequests", "a", {"metadata": {"labels": None}}, self.namespace)
        self.admin.merge_patch("downloadrequests", "b", {"metadata": {"labels": {"x": "1"}}}, self.namespace)
        events = list(self.admin.watch("downloadrequests", self.namespace, resourceVersion=version,
                                       timeoutSeconds=1,
                                       labelSelector="x=1"))
        self.assertEqual([(event["type"], event["object"]["metadata"]["name"]) for event in events],
                         [("DELETED", "a"), ("ADDED", "b")])
        self.assertEqual(events[0]["object"]["metadata"]["labels"], {"x": "1"})

    def test_a_bookmark_comes_before_the_end(self) -> None:
        """A watch that wants bookmarks gets one shortly before its timeout, if anything has happened."""
        version = self.admin.list("downloadrequests", self.namespace)["metadata"]["resourceVersion"]
        self.make("a")
        types, last = [], "0"
        for event in self.admin.watch("downloadrequests", self.namespace, resourceVersion=version,
                                      timeoutSeconds=6, allowWatchBookmarks="true"):
            types.append(event["type"])
            if types == ["ADDED"]:
                last = self.make("b")["metadata"]["resourceVersion"]
        self.assertEqual(types, ["ADDED", "ADDED", "BOOKMARK"])
        self.assertEqual(set(event["object"]), {"apiVersion", "kind", "metadata"})
        self.assertGreaterEqual(int(event["object"]["metadata"]["resourceVersion"]), int(last))

    def test_an_old_version_is_an_error_event(self) -> None:
        """A watch from a version long gone answers 200 with one ERROR event that holds a Status 410."""
        self.make("a")
        events = list(self.admin.watch("downloadrequests", self.namespace, resourceVersion="1",
                                       timeoutSeconds=5))
        self.assertEqual([event["type"] for event in events], ["ERROR"])
        status = events[0]["object"]
        self.assertEqual((status["code"], status["reason"]), (410, "Expired"))
        self.assertRegex(status["message"], r"^too old resource version: 1 \(\d+\)$")

    # -- who may what --

    def test_what_is_forbidden_says_what_is_missing(self) -> None:
        """A 403 names user, verb, resource, group and namespace; a grant takes effect."""
        user = "limited"
        client = self.cluster.client(user)
        cases: Tuple[Tuple[str, Callable[[], Any]], ...] = (
            ("list", lambda: client.list("downloadrequests", self.namespace)),
            ("watch", lambda: list(client.watch("downloadrequests", self.namespace))),
            ("create", lambda: client.create("downloadrequests", download_request("a"), self.namespace)))
        for verb, act in cases:
            message = (f'downloadrequests.velero.io is forbidden: User "{user}" cannot {verb} resource '
                       f'"downloadrequests" '
                       f'in API group "velero.io" in the namespace "{self.namespace}"')
            self.assertEqual(self.refused(403, act).message, message)
        rule = {"verbs": ["get"], "apiGroups": ["velero.io"], "resources": ["downloadrequests"],
                "resourceNames": ["a"]}
        self.cluster.grant(user, rule, namespace=self.namespace)
        self.refused(404, client.get, "downloadrequests", "a", self.namespace)
        self.refused(403, client.get, "downloadrequests", "b", self.namespace)
        self.refused(401, Admin(self.cluster.url, "no-such-token", self.cluster.ca).list, "secrets",
                     self.namespace)
        self.refused(403, self.cluster.client(None).list, "secrets", self.namespace)

    def test_other_kinds(self) -> None:
        """Secrets, events and leases are stored; a lease wants microseconds."""
        secret = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"cloud": "x"}}
        self.assertEqual(self.admin.create("secrets", secret, self.namespace)["data"], {"cloud": "eA=="})
        lease = {"kind": "Lease", "metadata": {"name": "l"},
                 "spec": {"renewTime": "2026-01-02T03:14:05.000001Z", "leaseDurationSeconds": 15}}
        made = self.admin.create("leases", lease, self.namespace)
        self.refused(422, self.admin.merge_patch, "leases", "l",
                     {"spec": {"renewTime": "2026-01-02T03:14:05Z"}},
                     self.namespace)
        stale = {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": "me"}}
        self.refused(409, self.admin.merge_patch, "leases", "l", stale, self.namespace)
        stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
        self.admin.merge_patch("leases", "l", stale, self.namespace)
        event = {"kind": "Event", "metadata": {"generateName": "e."}, "reason": "R", "type": "Warning",
                 "involvedObject": {"kind": "DownloadRequest", "namespace": self.namespace, "name": "a"}}
        self.admin.create("events", event, self.namespace)
        found = self.admin.list("events", self.namespace, fieldSelector="involvedObject.name=a,reason=R")
        self.assertEqual(len(found["items"]), 1)

    def test_discovery(self) -> None:
        """Discovery shows the dialect; a group that nobody serves is a plain 404 page."""
        listed = self.admin.call("GET", "/apis/velero.io/v1")
        names = [row["name"] for row in listed["resources"]]
        self.assertEqual("downloadrequests/status" in names, self.has_status)
        answer = self.admin.raw("GET", "/apis/nobody.example/v1")
        self.assertEqual((answer.status, answer.data), (404, b"404 page not found\n"))
        self.assertEqual(self.admin.call("GET", "/version")["minor"], "34")
        self.assertEqual(self.admin.raw("GET", "/readyz").data, b"ok")

    def test_an_update_may_leave_wrong_what_was_wrong(self) -> None:
        """After a downgrade of the CRD an object with a kind too new can still be annotated and deleted."""
        newer = load_crds("1.18.1")
        try:
            self.cluster.install_crds(newer)
            self.admin.create("downloadrequests", download_request("a", "RestoreVolumeInfo"), self.namespace)
            self.cluster.install_crds(load_crds("1.6.3"))
            patch = {"metadata": {"annotations": {"a": "b"}}}
            self.admin.merge_patch("downloadrequests", "a", patch, self.namespace)
            patch = {"spec": {"target": {"kind": "BackupResults"}}}
            self.refused(422, self.admin.merge_patch, "downloadrequests", "a", patch, self.namespace)
        finally:
            self.cluster.install_crds(load_crds(self.release))

    def test_a_new_dialect_ends_the_watches(self) -> None:
        """When a CRD is replaced its watches end, and versions from before are too old."""
        version = self.make("a")["metadata"]["resourceVersion"]
        other = "1.18.1" if self.has_status else "1.6.3"
        ended: List[List[Document]] = []
        query = {"resourceVersion": version, "timeoutSeconds": 30}

        def follow() -> None:
            ended.append(list(self.admin.watch("downloadrequests", self.namespace, **query)))
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            begun = time.monotonic()
            self.cluster.install_crds(load_crds(other))
            thread.join(20)
            self.assertTrue(ended and time.monotonic() - begun < 20)
            events = list(self.admin.watch("downloadrequests", self.namespace, **query))
            self.assertEqual([event["object"].get("code") for event in events], [410])
        finally:
            self.cluster.install_crds(load_crds(self.release))


class FakeChecks(ServerChecks):
    """The checks against the fake."""

    @classmethod
    def start_cluster(cls) -> Cluster:
        """Start a fake of this class's own."""
        return FakeCluster()

    @classmethod
    def tearDownClass(cls) -> None:
        """Stop the fake, which must not have failed in itself."""
        cls.cluster.close()
        assert not cls.cluster.bugs, cls.cluster.bugs[0]


class RealChecks(ServerChecks):
    """The checks against the real kube-apiserver."""

    @classmethod
    def start_cluster(cls) -> Cluster:
        """Return the one real cluster."""
        return real_cluster()


class TestServersFakeNew(FakeChecks, unittest.TestCase):
    """The fake with the CRDs of 1.18.1."""

    release = "1.18.1"


class TestServersFakeOld(FakeChecks, unittest.TestCase):
    """The fake with the CRDs of 1.6.3."""

    release = "1.6.3"


class TestServersRealNew(RealChecks, unittest.TestCase):
    """The real server with the CRDs of 1.18.1."""

    release = "1.18.1"


class TestServersRealOld(RealChecks, unittest.TestCase):
    """The real server with the CRDs of 1.6.3."""

    release = "1.6.3"


def neutral(data: bytes, namespace: str) -> Any:
    """Return an answer without what differs from run to run, such as times, ids and versions."""
    text = data.decode().replace(namespace, "NS")
    for pattern, put in ((r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}", "UID"),
                         (r"20(?!26-0)\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ|2026-(?!0)\d\d-\d\dT\d\d:\d\d:\d\dZ",
                          "TIME"),
                         (r'("resourceVersion": ?"|resource version: |in record \()\d+', r"\1N"),
                         (r'"(velero-cli-|e\.)\w{5}"', r'"\1XXXXX"'),
                         (r'"continue":"[^"]+"', '"continue":"TOKEN"'),
                         (r"error decoding patch: [^\"]*", "error decoding patch: WHY"),
                         (r"patch: Invalid value: .*? cannot unmarshal", "patch: Invalid value: DOCUMENT")):
        text = re.sub(pattern, put, text)
    try:
        document = json.loads(text)
    except ValueError:
        return text
    for item in [document] + document.get("items", []):
        item.get("metadata", {}).pop("managedFields", None)
    causes = (document.get("details") or {}).get("causes", []) if document.get("kind") == "Status" else []
    if causes:
        causes = sorted({str(cause) for cause in causes} if "DOCUMENT" not in text else [])
        document["details"]["causes"] = causes
        document["message"] = sorted(re.split(r"[\[\],]\s*", document["message"])) if len(causes) > 1 \
            else document["message"]
    return document


def request_script(base: str, has_status: bool) -> Iterator[Tuple[str, str, Any, str]]:
    """Yield requests (method, path, body, media type) whose answers have to be the same on both clusters."""
    plain, one = "application/json", base + "/downloadrequests"
    status = one + "/a" + ("/status" if has_status else "")

    def request(**target: Any) -> Document:
        return {**download_request("bad"), "spec": {"target": target}}

    yield "GET", "/apis/velero.io", None, plain
    yield "GET", "/apis/velero.io/v2", None, plain
    yield "GET", "/api/v1/foos", None, plain
    yield "GET", base + "/foos", None, plain
    yield "POST", one, {**download_request("a", status={"phase": "New", "junk": 1}), "junk": 2}, plain
    yield "POST", one, download_request("a"), plain
    for target in ({"kind": "Foo", "name": "x"}, {"name": "x"}, {"kind": 7, "name": 7},
                   {"kind": None, "name": None},
                   {"kind": "BackupLog", "name": [1]}, {"kind": "BackupLog", "name": 1.5},
                   {"kind": "BackupLog", "name": True}, {"kind": "BackupLog", "name": {}}):
        yield "POST", one, request(**target), plain
    specs: Tuple[Document, ...] = ({}, {"target": "s"}, {"target": None}, {"target": []})
    for spec in specs:
        yield "POST", one, {**download_request("bad"), "spec": spec}, plain
    yield "POST", one, {**download_request("nothing"), "spec": None}, plain
    for metadata in ({"name": "Bad_Name"}, {}, {"name": "x", "namespace": "other"},
                     {"name": "x", "resourceVersion": "5"},
                     {"name": "x", "labels": {"a": "b c"}}, {"name": "x", "labels": {"a": 1}},
                     {"name": "own", "uid": "5", "generation": 9, "creationTimestamp": "2020-01-01T00:00:00Z",
                      "deletionTimestamp": "2020-01-01T00:00:00Z", "selfLink": "x", "junk": 1}):
        yield "POST", one, {**download_request(), "metadata": metadata}, plain
    yield "POST", one, {**download_request("x"), "kind": "Wrong"}, plain
    yield "POST", one, {**download_request("x"), "apiVersion": "velero.io/v2"}, plain
    yield "POST", one, b"{}", "text/plain"
    yield "POST", "/apis/velero.io/v1/downloadrequests", download_request("x"), plain
    yield "POST", "/apis/velero.io/v1/namespaces/nobody/downloadrequests", download_request("x"), plain
    yield "POST", one + "/a/status", download_request("a"), plain
    yield "PUT", one, download_request("a"), plain
    yield "POST", one, download_request("bad-status", status={"phase": "Failed"}), plain
    yield "POST", one, download_request("null-status", status={"phase": "New", "expiration": None,
                                                               "downloadURL": None}), plain
    yield "POST", base + "/serverstatusrequests", {
        "apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {}, "status": {},
        "metadata": {"generateName": "velero-cli-", "resourceVersion": "0", "creationTimestamp": None}}, plain
    yield "GET", one + "/a", None, plain
    for path in ("/none", "/a/status", "/none/status", "/a/scale"):
        yield "GET", one + path, None, plain
        yield "PATCH", one + path, {}, MERGE
    yield "PATCH", status, {"status": {"phase": "Processed", "downloadURL": "u",
                                       "expiration": "2026-01-02T03:14:05Z",
                                       "junk": 1}}, MERGE
    yield "PATCH", status, {"status": {"phase": "Processed"}}, MERGE
    for value in (None, "", "2026-01-02", "2026-01-02T03:14:05.123456789+01:00", "2026-01-02t03:14:05z",
                  "garbage", 5, [],
                  "2026-13-02T03:14:05Z", "2026-01-02 03:14:05Z", "2026-01-02T03:14:05",
                  "2026-01-02T24:00:00Z", True,
                  "2026-02-31T03:14:05Z", [1], {"a": 1}, 1.5, "2026-01-02T03:14:05,5Z",
                  "0000-01-02T03:14:05Z", "2026-01-02T03:14:60Z", "2026-01-02T03:14:05.Z"):
        yield "PATCH", status, {"status": {"expiration": value}}, MERGE
    for value in (None, "", "Failed", 3):
        yield "PATCH", status, {"status": {"phase": value}}, MERGE
    yield "PATCH", status, {"status": "x"}, MERGE
    yield "PATCH", status, {"status": None}, MERGE
    patches: Tuple[Any, ...] = (
        {"metadata": {"annotations": {"an": "2"}}, "spec": {"target": {"name": "b2"}}}, {},
        {"metadata": {"annotations": {"an": "2"}}}, {"metadata": {"resourceVersion": "1"}},
        {"metadata": {"resourceVersion": "abc"}}, {"metadata": {"uid": "1"}}, {"metadata": {"name": "other"}},
        {"metadata": {"namespace": "other"}}, {"metadata": {"resourceVersion": None}}, {"kind": "Other"},
        {"metadata": {"generation": 77, "creationTimestamp": None, "selfLink": "x"}},
        {"metadata": {"labels": {"a": "?"}}},
        {"metadata": {"labels": {"a": 1}}}, {"metadata": None}, {"spec": None}, {"status": {"phase": "New"}},
        [], "s")
    for patch in patches:
        yield "PATCH", one + "/own", patch, MERGE
    yield "PATCH", one + "/own", b"{nope", MERGE
    yield "PATCH", one + "/own", {}, "application/strategic-merge-patch+json"
    yield "PATCH", one + "/own", {}, plain
    yield "PUT", one + "/own", download_request("own"), plain
    yield "PUT", one + "/none", download_request("none"), plain
    yield "PUT", one + "/own", download_request("b"), plain
    for wanted in ({"uid": "xx"}, {"resourceVersion": "1"}):
        yield "DELETE", one + "/own", {"apiVersion": "v1", "kind": "DeleteOptions",
                                       "preconditions": wanted}, plain
    yield "PATCH", one + "/own", {"metadata": {"finalizers": ["a/b"]}}, MERGE
    yield "DELETE", one + "/own", None, plain
    yield "DELETE", one + "/own", None, plain
    yield "POST", one, download_request("own"), plain
    yield "PATCH", one + "/own", {"metadata": {"finalizers": ["a/b", "c/d"]}}, MERGE
    yield "PATCH", one + "/own", {"metadata": {"annotations": {"q": "r"}}}, MERGE
    yield "PATCH", one + "/own", {"metadata": {"finalizers": None}}, MERGE
    yield "GET", one + "/own", None, plain
    yield "DELETE", one + "/null-status", None, plain
    yield "DELETE", one + "/null-status", None, plain
    for query in ("limit=x", "limit=1", "labelSelector=a%3D1", "fieldSelector=status.phase%3Dx",
                  "fieldSelector=xx",
                  "resourceVersion=abc", "resourceVersion=0&limit=1", "watch=0", "watch=1&timeoutSeconds=x",
                  "watch=1&resourceVersion=abc", "limit=2&continue=e30&resourceVersion=7"):
        yield "GET", one + "?" + query, None, plain
    location = {"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation",
                "metadata": {"name": "default"}}
    for spec in ({"accessMode": "Foo", "provider": "aws", "objectStorage": {"bucket": "b"}},
                 {"provider": "aws", "objectStorage": {"bucket": "b", "caCert": "!"}, "config": {"a": 1}},
                 {"provider": "aws"},
                 {"provider": "aws", "objectStorage": {"bucket": "b", "caCert": "aGk="},
                  "config": {"a": "1", "b": None}}):
        yield "POST", base + "/backupstoragelocations", {**location, "spec": spec}, plain
    yield "POST", base + "/backups", {
        "apiVersion": "velero.io/v1", "kind": "Backup", "metadata": {"name": "b1"},
        "spec": {"ttl": "1h", "labelSelector": None, "hooks": {"resources": None},
                 "includedNamespaces": ["*"]},
        "status": {"phase": "Completed", "expiration": None, "progress": {"totalItems": "x"}}}, plain
    core = base.replace("/apis/velero.io/v1", "/api/v1")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    yield "POST", core + "/secrets", {**secret, "junk": 1, "data": {"cloud": "aGk="},
                                      "stringData": {"b": "x"}}, plain
    yield "PATCH", core + "/secrets/s", {"data": {"cloud": None}}, MERGE
    yield "POST", core + "/secrets", {**secret, "data": {"cloud": "*"}}, plain
    yield "DELETE", core + "/secrets/s", None, plain
    yield "GET", core + "/secrets/s", None, plain


class TestServersAgree(unittest.TestCase):
    """The same requests to the fake and the real server get the same answers, to the letter."""

    def compare(self, release: str) -> None:
        """Send the script to both and compare what differs in nothing but ids, times and versions."""
        crds, real, fake = load_crds(release), real_cluster(), FakeCluster()
        self.addCleanup(fake.close)
        clusters: Tuple[Cluster, ...] = (real, fake)
        for cluster in clusters:
            cluster.install_crds(crds)
        spaces = [cluster.new_namespace() for cluster in clusters]
        bases = [f"/apis/velero.io/v1/namespaces/{space}" for space in spaces]
        scripts = [request_script(base, release == "1.6.3") for base in bases]
        for steps in zip(*scripts):
            answers_of = []
            for cluster, space, (method, path, body, media) in zip(clusters, spaces, steps):
                got = cluster.admin.raw(method, path, body, media)
                answers_of.append((got.status, neutral(got.data, space)))
            with self.subTest(method=steps[0][0], path=steps[0][1].replace(spaces[0], "NS"),
                              body=steps[0][2]):
                self.assertEqual(answers_of[1], answers_of[0])
        self.assertEqual(fake.bugs, [])

    def test_with_the_new_dialect(self) -> None:
        """CRDs of 1.18.1."""
        self.compare("1.18.1")

    def test_with_the_old_dialect(self) -> None:
        """CRDs of 1.6.3."""
        self.compare("1.6.3")


class TestServersFaults(unittest.TestCase):
    """What only the fake cluster can do."""

    def setUp(self) -> None:
        """Start a fake over https."""
        self.cluster = FakeCluster(tls=True)
        self.addCleanup(self.cluster.close)
        self.cluster.install_crds([document for document in load_crds("1.18.1")])
        self.namespace = self.cluster.new_namespace()
        self.admin = self.cluster.admin

    def test_scripted_answers(self) -> None:
        """A fault strikes as often as told, and the log and its counts show it."""
        path = resource_path("secrets", self.namespace)
        self.cluster.script("GET", path, 2, status=429, headers={"Retry-After": "1"}, body="slow down")
        for wanted in (429, 429, 200):
            self.assertEqual(self.admin.raw("GET", path).status, wanted)
        self.assertEqual((self.cluster.count("GET", path), self.cluster.count("GET", path, status=429)),
                         (3, 2))
        self.cluster.script("GET", path, cut_after=5)
        with self.assertRaises(urllib3.exceptions.HTTPError):
            self.admin.raw("GET", path)
        self.cluster.script("GET", path, drop=True)
        with self.assertRaises(urllib3.exceptions.HTTPError):
            self.admin.raw("GET", path)

    def test_an_answer_lost_after_the_effect(self) -> None:
        """With apply the object is there although nobody said so."""
        self.cluster.script("POST", "downloadrequests", drop=True, apply=True)
        with self.assertRaises(urllib3.exceptions.HTTPError):
            self.admin.create("downloadrequests", download_request("a"), self.namespace)
        self.assertEqual(self.admin.get("downloadrequests", "a", self.namespace)["metadata"]["name"], "a")

    def test_compaction_and_cut_watches(self) -> None:
        """After compaction a watch and a continue token are too old; cut watches end in good order."""
        version = self.admin.create("downloadrequests", download_request("a"),
                                    self.namespace)["metadata"]["resourceVersion"]
        self.admin.create("downloadrequests", download_request("b"), self.namespace)
        token = self.admin.list("downloadrequests", self.namespace, limit=1)["metadata"]["continue"]
        self.cluster.compact()
        events = list(self.admin.watch("downloadrequests", self.namespace, resourceVersion=version))
        self.assertEqual([event["object"]["code"] for event in events], [410])
        with self.assertRaises(Refused) as caught:
            self.admin.list("downloadrequests", self.namespace, limit=1, **{"continue": token})
        self.assertEqual((caught.exception.status, caught.exception.document["reason"]), (410, "Expired"))
        again = {"continue": caught.exception.document["metadata"]["continue"]}
        rest = self.admin.list("downloadrequests", self.namespace, limit=1, **again)
        self.assertEqual([item["metadata"]["name"] for item in rest["items"]], ["b"])
        got: List[List[Document]] = []
        query = {"resourceVersion": self.cluster.version, "allowWatchBookmarks": "true"}

        def follow() -> None:
            got.append(list(self.admin.watch("downloadrequests", self.namespace, **query)))
        thread = threading.Thread(target=follow)
        thread.start()
        wait_until(lambda: self.cluster.watches("downloadrequests"))
        self.cluster.send_bookmarks()
        self.assertEqual(self.cluster.cut_watches(), 1)
        thread.join(10)
        self.assertEqual([event["type"] for event in got[0]], ["BOOKMARK"])

    def test_limits_hold_for_the_admin_too(self) -> None:
        """limit() takes a verb from anybody, and unlimit() gives it back."""
        self.cluster.limit("admin", "watch", resource="downloadrequests")
        with self.assertRaises(Refused) as caught:
            list(self.admin.watch("downloadrequests", self.namespace))
        self.assertEqual(caught.exception.status, 403)
        self.admin.list("downloadrequests", self.namespace)
        self.cluster.unlimit("admin")
        self.assertEqual(list(self.admin.watch("downloadrequests", self.namespace, timeoutSeconds=1)), [])


class TestServersSignature(unittest.TestCase):
    """The verifier against the examples of the AWS documentation."""

    KEYS = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    AT = 1369353600.0  # 20130524T000000Z

    def test_presigned_url_of_the_documentation(self) -> None:
        """The example of a pre-signed GET."""
        url = presigned_url("https://examplebucket.s3.amazonaws.com/test.txt", *self.KEYS, "us-east-1",
                            self.AT, 86400)
        self.assertTrue(url.endswith("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"), url)

    def test_more_presigned_urls(self) -> None:
        """Sub-set C of the collected vectors: a token, odd characters, a port, IPv6, an extra parameter."""
        token = "AQoDYXdzEPT//////////wEXAMPLE+token="
        odd = "my.dotted.bucket/" + uri_encode("a b+c/ü~$%.txt".encode(), b"/")
        cases: Tuple[Tuple[str, str, Document, str], ...] = (
            ("https://bkt.s3.eu-west-1.amazonaws.com/backups/b1/b1-logs.gz", "eu-west-1", {},
             "4f31eaa635bc19b7"),
            ("https://bkt.s3.eu-west-1.amazonaws.com/backups/b1/b1-logs.gz", "eu-west-1", {"token": token},
             "64d07eb96c4fcb2d"),
            ("https://s3.eu-west-1.amazonaws.com/" + odd, "eu-west-1", {}, "8259c85cf5c1f587"),
            ("http://minio.velero.svc:9000/bkt/k", "minio", {}, "306735beca18cdd8"),
            ("https://bkt.s3.us-east-1.amazonaws.com/k", "us-east-1", {"extra": "x-id=GetObject"},
             "327b1d2805a698ec"),
            ("http://[fd00::1]:9000/bkt/k", "us-east-1", {}, "dea7ac5d1992d560"))
        for url, region, more, wanted in cases:
            with self.subTest(url=url, **more):
                signed = presigned_url(url, *self.KEYS, region, self.AT, **more)
                self.assertEqual(signed.rpartition("=")[2][:16], wanted)

    def test_authorization_header_of_the_documentation(self) -> None:
        """The examples of a GET with query in its Authorization header."""
        host = "examplebucket.s3.amazonaws.com"
        for target, wanted in (("/?lifecycle",
                                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
                               ("/?max-keys=2&prefix=J",
                                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")):
            headers = signed_headers("GET", host, target, b"", *self.KEYS, "us-east-1", self.AT)
            self.assertTrue(headers["authorization"].endswith(wanted), headers)


def fetch(url: str, headers: Optional[Dict[str, str]] = None, ca: Optional[str] = None) -> Any:
    """GET exactly this target; a PoolManager would tidy up the path first."""
    parts = urllib3.util.parse_url(url)
    base = f"{parts.scheme}://{parts.netloc}"
    options: Document = {"ca_certs": ca} if ca else {}
    with urllib3.connection_from_url(base, timeout=20, retries=False, **options) as pool:
        return pool.urlopen("GET", url[len(base):], headers=headers, redirect=False)


class StoreChecks(Mixin):
    """What the fake and the real store have in common."""

    store: Any
    unknown_key = (403, "InvalidAccessKeyId")

    def signed(self, key: str, **options: Any) -> str:
        """Return a pre-signed URL of an object in the bucket."""
        url = f"{self.store.url}/bucket/" + uri_encode(key.encode(), b"/")
        given = {"access_key": self.store.access_key, "secret_key": self.store.secret_key,
                 "region": self.store.region}
        return presigned_url(url, **{**given, **options})

    def code(self, status: int, url: str, **headers: str) -> str:
        """Check that a GET fails with a status, and return the code in the XML."""
        answer = fetch(url, {name.replace("_", "-"): value for name, value in headers.items()})
        self.assertEqual(answer.status, status, answer.data)
        found = re.search(rb"<Code>(.*?)</Code>", answer.data)
        return found.group(1).decode() if found else ""

    def test_objects_are_given_back(self) -> None:
        """A signed GET gives the body, its length and an ETag; ranges and conditions work."""
        for key in ("a/b.gz", "a b+c/ü~$%.txt", "a&b=c?d#e"):
            self.store.put("bucket", key, b"0123456789")
            answer = fetch(self.signed(key))
            self.assertEqual((answer.status, answer.data), (200, b"0123456789"), key)
        etag = answer.headers["ETag"]
        part = fetch(self.signed(key), {"Range": "bytes=4-", "If-Match": etag})
        self.assertEqual((part.status, part.data, part.headers["Content-Range"]),
                         (206, b"456789", "bytes 4-9/10"))
        self.assertEqual(fetch(self.signed(key), {"Range": "bytes=0-0"}).data, b"0")
        self.assertEqual(self.code(412, self.signed(key), If_Match='"other"'), "PreconditionFailed")
        self.assertEqual(self.code(416, self.signed(key), Range="bytes=10-"), "InvalidRange")

    def test_what_is_wrong_is_named(self) -> None:
        """Every kind of wrong URL has its own code."""
        self.store.put("bucket", "k", b"x")
        self.assertEqual(self.code(404, self.signed("none")), "NoSuchKey")
        self.assertEqual(self.code(403, self.signed("k", secret_key="wrong")), "SignatureDoesNotMatch")
        self.assertEqual(self.code(403, self.signed("k") + "0"), "SignatureDoesNotMatch")
        self.assertEqual(self.code(403, self.signed("k").replace("/k?", "/other?")), "SignatureDoesNotMatch")
        status, code = self.unknown_key
        self.assertEqual(self.code(status, self.signed("k", access_key="NOBODY")), code)
        self.assertEqual(self.code(403, self.signed("k", at=time.time() - 700)), "AccessDenied")
        self.assertEqual(self.code(400, self.signed("k", expires=604801)),
                         "AuthorizationQueryParametersError")
        self.assertEqual(self.code(400, self.signed("k", region="nowhere")),
                         "AuthorizationQueryParametersError")
        self.assertEqual(self.code(403, f"{self.store.url}/bucket/k"), "AccessDenied")


class TestServersFakeStore(StoreChecks, unittest.TestCase):
    """The checks against the fake store, and what only the fake can do."""

    def setUp(self) -> None:
        """Start a store."""
        self.store = FakeStore()
        self.addCleanup(self.store.close)

    def test_the_target_is_taken_as_it_came(self) -> None:
        """Double slashes and dots belong to the key."""
        for key in ("/a//b", "a/../b", "./a"):
            self.store.put("bucket", key, key.encode())
            self.assertEqual(fetch(self.signed(key)).data, key.encode())

    def test_virtual_hosts(self) -> None:
        """The bucket may come from the Host header, which is signed."""
        self.store.put("bucket", "k", b"x")
        host = f"bucket.s3.local:{self.store.port}"
        url = presigned_url(f"http://{host}/k", self.store.access_key, self.store.secret_key,
                            self.store.region)
        self.assertEqual(fetch(url.replace(host, self.store.host), {"Host": host}).data, b"x")
        self.assertEqual(self.code(403, url.replace(host, self.store.host), Host="bucket.other"),
                         "SignatureDoesNotMatch")

    def test_the_clock_decides(self) -> None:
        """A URL dies when the store's clock says so, and says when."""
        self.store.put("bucket", "k", b"x")
        url = self.store.url_of("bucket", "k")
        now = time.time()
        self.store.clock = lambda: now + 599
        self.assertEqual(fetch(url).status, 200)
        self.store.clock = lambda: now + 602
        self.assertIn(b"<Message>Request has expired</Message><X-Amz-Expires>600<", fetch(url).data)

    def test_tokens_and_missing_keys(self) -> None:
        """A key pair may need its session token; an absent key may look like a forbidden one."""
        self.store.put("bucket", "k", b"x")
        self.store.keys["ASIA"] = ("secret", "to+ken/=")
        good = {"access_key": "ASIA", "secret_key": "secret", "token": "to+ken/="}
        self.assertEqual(fetch(self.signed("k", **good)).status, 200)
        self.assertEqual(self.code(400, self.signed("k", **{**good, "token": "x"})), "InvalidToken")
        self.store.hide_missing = True
        self.assertEqual(self.code(403, self.signed("none")), "AccessDenied")
        answer = fetch(self.signed("k", secret_key="wrong"))
        self.assertIn(b"<StringToSign>AWS4-HMAC-SHA256\n", answer.data)
        self.assertIn(b"<CanonicalRequest>GET\n/bucket/k\n", answer.data)

    def test_a_body_that_breaks_off(self) -> None:
        """Cut, lied about, held up or replaced: each as scripted."""
        self.store.put("bucket", "k", b"0123456789")
        self.store.script(cut_after=4)
        with self.assertRaises(urllib3.exceptions.HTTPError):
            fetch(self.signed("k"))
        self.store.script(cut_after=4, content_length=4)
        self.assertEqual(fetch(self.signed("k")).data, b"0123")
        self.store.script(headers={"Content-Encoding": "identity"}, body=b"<html>")
        self.assertEqual(fetch(self.signed("k")).data, b"<html>")
        gate = threading.Event()
        fault = self.store.script(pause_after=4, gate=gate)
        got: List[bytes] = []
        thread = threading.Thread(target=lambda: got.append(fetch(self.signed("k")).data))
        thread.start()
        wait_until(lambda: fault.hits)
        self.assertEqual(got, [])
        gate.set()
        thread.join(10)
        self.assertEqual(got, [b"0123456789"])

    def test_over_tls(self) -> None:
        """With tls only its own authority vouches for the store."""
        store = FakeStore(tls=True)
        self.addCleanup(store.close)
        store.put("bucket", "k", b"x")
        self.assertEqual(fetch(store.url_of("bucket", "k"), ca=store.ca).data, b"x")
        with self.assertRaises(urllib3.exceptions.HTTPError):
            fetch(store.url_of("bucket", "k"))


class TestServersRealStore(StoreChecks, unittest.TestCase):
    """The checks against versitygw."""

    unknown_key = (404, "XAdminUserNotFound")  # here it differs from AWS, and the fake follows AWS

    def setUp(self) -> None:
        """Use the one real store."""
        self.store = real_store()


# ------------------------------------------------------------------------------------------------------------
# Contract: the tools
# ------------------------------------------------------------------------------------------------------------

FAR = "9999-12-31T23:59:59Z"
SSR = "serverstatusrequests"
REASON = "velero-requests.io/reason"
MESSAGE = "velero-requests.io/message"
BEARER = re.compile("X-Amz-(Signature|Credential|Security-Token)=[0-9A-Za-z]{8}")
LOG = b"".join(b'time="2026-01-02T03:04:05Z" level=info msg="line %d"\n' % number for number in range(200))

# Where each kind of Velero 1.6 to 1.18 lies in the bucket; the first six are all that 1.6 knows.
KEYS = {
    "BackupLog": "backups/b1/b1-logs.gz",
    "BackupContents": "backups/b1/b1.tar.gz",
    "BackupVolumeSnapshots": "backups/b1/b1-volumesnapshots.json.gz",
    "BackupResourceList": "backups/b1/b1-resource-list.json.gz",
    "RestoreLog": "restores/r1/restore-r1-logs.gz",
    "RestoreResults": "restores/r1/restore-r1-results.gz",
    "BackupItemOperations": "backups/b1/b1-itemoperations.json.gz",
    "BackupResults": "backups/b1/b1-results.gz",
    "RestoreResourceList": "restores/r1/restore-r1-resource-list.json.gz",
    "RestoreItemOperations": "restores/r1/restore-r1-itemoperations.json.gz",
    "CSIBackupVolumeSnapshots": "backups/b1/b1-csi-volumesnapshots.json.gz",
    "CSIBackupVolumeSnapshotContents": "backups/b1/b1-csi-volumesnapshotcontents.json.gz",
    "BackupVolumeInfos": "backups/b1/b1-volumeinfo.json.gz",
    "RestoreVolumeInfo": "restores/r1/r1-volumeinfo.json.gz",
    "BackupItemSnapshots": "backups/b1/b1-itemsnapshots.json.gz"}

if TYPE_CHECKING:
    Mixin = unittest.TestCase
else:
    Mixin = object


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: bytes
    err: str


def set_environment(values: Dict[str, Optional[str]]) -> None:
    """Set environment variables; None takes one away."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def environment(changes: Dict[str, Optional[str]]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in changes}
    set_environment(changes)
    try:
        yield
    finally:
        set_environment(before)


def run(*argv: str, env: Optional[Dict[str, Optional[str]]] = None) -> Result:
    """Run the command line in this process, with streams of its own, and return how it ended."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    logger = logging.getLogger("velero_requests")
    kept = (logger.handlers[:], logger.level, logger.propagate)
    with environment(env or {}), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = int(velero_requests.main(list(argv)))
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logger.handlers[:], logger.level, logger.propagate = kept
    return Result(code, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


class Program:
    """The command line as a process of its own, its output in files, ended by its own pid."""

    def __init__(self, folder: str, *argv: str, stdout: Any = None,
                 env: Optional[Dict[str, str]] = None) -> None:
        """Start it."""
        base = os.path.join(folder, "program-" + uuid.uuid4().hex[:6])
        self.out_path, self.err_path = base + ".out", base + ".err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen([sys.executable, velero_requests.__file__, *argv], cwd=folder,
                                            stdin=subprocess.DEVNULL,
                                            stdout=out if stdout is None else stdout,
                                            stderr=err, env={**os.environ, **(env or {})})

    def text(self) -> str:
        """Return all that it has said so far."""
        parts = []
        for path in (self.out_path, self.err_path):
            with open(path, encoding="utf-8", errors="replace") as file:
                parts.append(file.read())
        return "".join(parts)

    def end(self, number: Optional[int] = None, seconds: float = 15) -> Result:
        """Send it a signal, if one is given, and wait until it has ended."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        with open(self.out_path, "rb") as out, open(self.err_path, encoding="utf-8") as err:
            return Result(code, out.read(), err.read())

    def kill(self) -> None:
        """End it for good, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        """Start with the right time."""
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Return what it shows."""
        return datetime.now(timezone.utc) + self.ahead

    def text(self, **later: float) -> str:
        """Return in RFC 3339 what it will show after this timedelta."""
        return (self() + timedelta(**later)).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(text: str) -> datetime:
    """Return the instant of an RFC 3339 text with seconds and Z."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def keys_file(access_key: str, secret_key: str) -> str:
    """Return a credentials file with one profile."""
    return f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key={secret_key}\n"


def reason_of(document: Optional[Document]) -> str:
    """Return the reason annotated to a request, or an empty text."""
    return str(((document or {}).get("metadata", {}).get("annotations") or {}).get(REASON, ""))


class World(Mixin):
    """A cluster in one dialect, a store, and for each test a namespace with a backup and a restore in it."""

    status_subresource = False
    cluster: Any
    store: Any

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Return the cluster and the store."""
        raise NotImplementedError

    @classmethod
    def crds(cls) -> List[Document]:
        """Return the CRDs of this world."""
        return velero_requests.crd_manifests(cls.status_subresource)

    @classmethod
    def setUpClass(cls) -> None:
        """Start the servers and install the CRDs."""
        crds = cls.crds()
        cls.cluster, cls.store = cls.start()
        cls.cluster.install_crds(crds)

    def setUp(self) -> None:
        """Make a folder, a namespace, a clock, a log, and what the requests of the tests are about."""
        self.folder = tempfile.mkdtemp(prefix="velero-requests-test-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        hidden = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        hidden += ["KUBECONFIG", "VELERO_NAMESPACE"]
        stack.enter_context(environment({**dict.fromkeys(hidden), "HOME": self.folder}))
        self.admin: Admin = self.cluster.admin
        self.namespace: str = self.cluster.new_namespace()
        self.kubeconfig: str = self.cluster.kubeconfig(self.folder)
        self.clock = Clock()
        self.controllers: List[Any] = []
        self.listen()
        self.seed()

    def listen(self) -> None:
        """Keep every word that the module logs in this process."""
        logger = logging.getLogger("velero_requests")
        self.log = io.StringIO()
        handler = logging.StreamHandler(self.log)
        kept = (logger.handlers[:], logger.level, logger.propagate)
        logger.handlers[:], logger.propagate = [handler], False
        logger.setLevel(logging.DEBUG)

        def restore() -> None:
            logger.handlers[:], logger.level, logger.propagate = kept
        self.addCleanup(restore)

    def seed(self) -> None:
        """Make a Secret, a location, a finished backup and a finished restore."""
        self.make_secret("cloud")
        self.make_location("default")
        self.make_backup("b1")
        self.make_restore("r1", "b1")

    # -- things in the cluster and the store --

    def make(self, resource: str, kind: str, name: str, **more: Any) -> Document:
        """Create an object in the test's namespace."""
        return self.admin.create(resource, {"kind": kind, "metadata": {"name": name}, **more}, self.namespace)

    def make_secret(self, name: str, key: str = "keys", text: Optional[str] = None) -> None:
        """Create a Secret with a credentials file that fits the store, or with this text."""
        text = keys_file(self.store.access_key, self.store.secret_key) if text is None else text
        self.make("secrets", "Secret", name, data={key: base64.b64encode(text.encode()).decode()})

    def make_location(self, name: str, config: Optional[Document] = None, secret: Optional[str] = "cloud",
                      **storage: Any) -> None:
        """Create a location in the test's own bucket."""
        where = {"region": self.store.region, "s3Url": self.store.url, "s3ForcePathStyle": "true"}
        spec: Document = {"provider": "aws", "config": {**where, **(config or {})},
                          "objectStorage": {"bucket": self.namespace, **storage}}
        if secret:
            spec["credential"] = {"name": secret, "key": "keys"}
        self.make("backupstoragelocations", "BackupStorageLocation", name, spec=spec)

    def make_backup(self, name: str, location: str = "default", phase: str = "Completed") -> None:
        """Create a backup."""
        self.make("backups", "Backup", name, spec={"storageLocation": location}, status={"phase": phase})

    def make_restore(self, name: str, backup: str, phase: str = "Completed") -> None:
        """Create a restore."""
        self.make("restores", "Restore", name, spec={"backupName": backup}, status={"phase": phase})

    def put(self, kind: str = "BackupLog", body: bytes = LOG, prefix: str = "", **headers: str) -> bytes:
        """Store the artifact of b1 or r1, compressed as Velero does, and return what lies in the bucket."""
        stored = gzip.compress(body)
        self.store.put(self.namespace, prefix + KEYS[kind], stored, **headers)
        return stored

    def ask(self, kind: str = "BackupLog", name: str = "b1", **more: Any) -> str:
        """Create a DownloadRequest as the velero CLI does, and return its name."""
        document = download_request(None, kind, **more)
        document["spec"]["target"]["name"] = name
        return str(self.admin.create("downloadrequests", document, self.namespace)["metadata"]["name"])

    def ask_status(self, **more: Any) -> str:
        """Create a ServerStatusRequest and return its name."""
        document = {"kind": "ServerStatusRequest", "metadata": {"generateName": "velero-cli-"}, "spec": {},
                    **more}
        return str(self.admin.create(SSR, document, self.namespace)["metadata"]["name"])

    def fill(self, name: str, resource: str = "downloadrequests", **status: Any) -> str:
        """Fill in a status the way of the dialect, as a stranger may, and return the name."""
        subresource = "/status" if self.status_subresource else ""
        self.admin.merge_patch(resource + subresource, name, {"status": status}, self.namespace)
        return name

    def look(self, name: str, resource: str = "downloadrequests") -> Optional[Document]:
        """Return an object, or None when it is gone."""
        try:
            return self.admin.get(resource, name, self.namespace)
        except Refused as refused:
            if refused.status != 404:
                raise
            return None

    def names(self, resource: str = "downloadrequests") -> List[str]:
        """Return the names of the requests that are there."""
        return [item["metadata"]["name"] for item in self.admin.list(resource, self.namespace)["items"]]

    # -- the controller --

    def serve(self, user: str = "admin", plugins: Tuple[Tuple[str, str], ...] = ()) -> Any:
        """Run a controller on the test's clock until the test ends."""
        api = velero_requests.connect(velero_requests.load_cluster(self.cluster.kubeconfig(self.folder,
                                                                                           user)))
        server = velero_requests.Server("v1.18.1", plugins or velero_requests.Server("").plugins)
        controller = velero_requests.new_controller(api, self.namespace, server, now=self.clock)
        thread = threading.Thread(target=velero_requests.run_controller, args=(controller,), daemon=True)
        thread.start()
        self.controllers.append(controller)
        self.addCleanup(self.halt, controller, thread)
        return controller

    def halt(self, controller: Any, thread: threading.Thread) -> None:
        """Stop a controller, which must leave at once."""
        controller.stop.set()
        thread.join(10)
        self.assertFalse(thread.is_alive(), "the controller does not stop")

    def turn(self, **later: float) -> None:
        """Turn the clock on by a timedelta."""
        self.clock.ahead += timedelta(**later)
        for controller in self.controllers:
            controller.queue.wake()

    def answered(self, name: str, resource: str = "downloadrequests") -> Document:
        """Return the request once it is Processed."""
        def done() -> Optional[Document]:
            document = self.look(name, resource)
            is_done = document and (document.get("status") or {}).get("phase") == "Processed"
            return document if is_done else None
        return wait_until(done, 15, f"an answer to {name}")

    def failed(self, name: str) -> Document:
        """Return the request once it bears a reason."""
        def done() -> Optional[Document]:
            document = self.look(name)
            return document if reason_of(document) else None
        return wait_until(done, 15, f"a reason on {name}")

    def healed(self, name: str) -> Document:
        """Return the request once it is Processed without a reason; the clock passes the back-off."""
        def done() -> Optional[Document]:
            self.turn(seconds=1)
            document = self.look(name)
            is_done = document and (document.get("status") or {}).get("phase") == "Processed"
            return document if is_done and not reason_of(document) else None
        return wait_until(done, 15, f"{name} to heal")

    def gone(self, name: str, resource: str = "downloadrequests") -> None:
        """Wait until the controller has deleted a request."""
        wait_until(lambda: self.look(name, resource) is None, 15, f"{name} to be deleted")

    def settle(self) -> None:
        """Return when a request made now has been answered: whatever was due before has been looked at."""
        name = self.ask()
        self.answered(name)
        self.admin.delete("downloadrequests", name, self.namespace)

    # -- the command line --

    def cli(self, *argv: str, user: str = "admin", env: Optional[Dict[str, Optional[str]]] = None) -> Result:
        """Run a command against this world."""
        kubeconfig = self.kubeconfig if user == "admin" else self.cluster.kubeconfig(self.folder, user)
        return run("--kubeconfig", kubeconfig, "-n", self.namespace, *argv, env=env)

    def program(self, *argv: str, **more: Any) -> Program:
        """Start a command against this world as a process of its own."""
        program = Program(self.folder, *argv, "--kubeconfig", self.kubeconfig, "-n", self.namespace, **more)
        self.addCleanup(program.kill)
        return program

    def assert_failed(self, result: Result, code: int, *words: str) -> None:
        """Check the code, one `error:` line with these words in it, and a stdout without anything."""
        self.assertEqual((result.code, result.out), (code, b""), result.err)
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, result.err)
        for word in words:
            self.assertIn(word.lower(), errors[0].lower())
        self.assertNotIn("Traceback", result.err)
        self.assert_clean(result.err)

    def assert_clean(self, *texts: Any) -> None:
        """Check that texts betray no signature, token or value of a Secret."""
        for text in texts:
            for secret in (self.store.secret_key, self.store.access_key, *map(token_of, USERS)):
                self.assertNotIn(secret, str(text))
            self.assertIsNone(BEARER.search(str(text)), text)

    def assert_soon(self, text: str, minutes: float = 0, slack: float = 30) -> None:
        """Check that a time lies this far ahead of the clock, give or take some seconds."""
        away = (instant(text) - self.clock()).total_seconds() - 60 * minutes
        self.assertLess(abs(away), slack, text)


class FakeWorld(World):
    """Both servers on loopback, started for this class."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Start both fakes."""
        return FakeCluster(tls=True), FakeStore()

    @classmethod
    def tearDownClass(cls) -> None:
        """Stop them; they must not have failed in themselves."""
        cls.cluster.close()
        cls.store.close()
        assert not cls.cluster.bugs + cls.store.bugs, (cls.cluster.bugs + cls.store.bugs)[0]


class RealWorld(World):
    """The real kube-apiserver and versitygw, one pair for the whole process."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Return them, or skip the class."""
        return real_cluster(), real_store()


class VeleroWorld(World):
    """The CRDs as Velero itself installs them, on the real servers when there, otherwise on the fakes."""

    release = ""

    @classmethod
    def crds(cls) -> List[Document]:
        """Read them from the folder VELERO_CRDS, or skip the class."""
        return load_crds(cls.release)

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Return the best servers there are."""
        if assets_folder():
            return real_cluster(), real_store()
        servers = FakeCluster(tls=True), FakeStore()
        for server in servers:
            cls.addClassCleanup(server.close)
        return servers


# ------------------------------------------------------------------------------------------------------------
# Contract: the main job, in every world
# ------------------------------------------------------------------------------------------------------------

class CoreTests(World):
    """The main job from end to end, for every world."""

    def known_kinds(self) -> List[str]:
        """Return the kinds that this world's CRD accepts."""
        crd = next(crd for crd in self.crds() if crd["spec"]["names"]["kind"] == "DownloadRequest")
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        return list(schema["target"]["properties"]["kind"]["enum"])

    def test_every_kind_from_request_to_bytes(self) -> None:
        """Each kind that the CRD knows comes as its bytes, inflated unless it is the contents."""
        self.serve()
        known = self.known_kinds()
        self.assertEqual(set(known), set(list(KEYS)[:6] if self.status_subresource else list(KEYS)[:-1]))
        for kind in known:
            with self.subTest(kind=kind):
                stored = self.put(kind, kind.encode() * 100)
                result = self.cli("download", KEYS[kind].split("/")[1], "--kind", kind, "-o", "-")
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual(result.out, stored if kind == "BackupContents" else kind.encode() * 100)
        self.assertEqual(self.names(), [])

    def test_a_kind_unknown_to_the_cluster_is_one_clear_error(self) -> None:
        """A kind that the CRD does not list is refused by the API with 422, and the user is told so."""
        self.serve()
        for kind in sorted(set(KEYS) - set(self.known_kinds())):
            with self.subTest(kind=kind):
                result = self.cli("download", KEYS[kind].split("/")[1], "--kind", kind, "-o", "-")
                self.assert_failed(result, 1, kind)
                self.assertIn("hint: ", result.err)

    def test_an_answer_has_url_phase_and_expiration(self) -> None:
        """A request gets a URL that works at once, and lives ten minutes from its signing."""
        self.serve()
        stored = self.put()
        status = self.answered(self.ask())["status"]
        self.assertEqual(set(status), {"phase", "downloadURL", "expiration"})
        self.assert_soon(status["expiration"], minutes=10)
        self.assertIn("X-Amz-Expires=600", status["downloadURL"])
        self.assertIn("X-Amz-SignedHeaders=host&", status["downloadURL"] + "&")
        self.assertEqual(fetch(status["downloadURL"]).data, stored)

    def test_logs_contents_plugins_and_version(self) -> None:
        """The commands of the velero CLI do their job and leave no request behind."""
        self.serve()
        self.put("BackupLog")
        self.put("RestoreLog", LOG[:100])
        stored = self.put("BackupContents")
        self.assertEqual(self.cli("backup", "logs", "b1"), (0, LOG, ""))
        self.assertEqual(self.cli("restore", "logs", "r1"), (0, LOG[:100], ""))
        path = os.path.join(self.folder, "x.tar.gz")
        self.assertEqual(self.cli("backup", "download", "b1", "-o", path).code, 0)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), stored)
        self.assertIn(b"velero.io/aws   ObjectStore\n", self.cli("plugin", "get").out)
        self.assertIn(b"\nServer:\n\tVersion: v1.18.1\n", self.cli("version").out)
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_a_failure_gets_a_reason_and_heals(self) -> None:
        """A missing backup is told as a reason, and forgotten once the backup is there."""
        self.serve()
        name = self.ask(name="late")
        failed = self.failed(name)
        self.assertIn("late", failed["metadata"]["annotations"][MESSAGE])
        self.assertNotIn("downloadURL", failed.get("status") or {})
        self.make_backup("late")
        healed = self.healed(name)
        self.assertFalse({REASON, MESSAGE} & set(healed["metadata"].get("annotations") or {}), healed)

    def test_expired_requests_are_deleted(self) -> None:
        """Ten minutes after its answer a request is deleted, five after its own a status request."""
        self.serve()
        name, status_name = self.ask(), self.ask_status()
        self.answered(name)
        self.answered(status_name, SSR)
        self.turn(minutes=10, seconds=2)
        self.gone(name)
        self.gone(status_name, SSR)


# ------------------------------------------------------------------------------------------------------------
# Contract: everything that both kinds of servers can show
# ------------------------------------------------------------------------------------------------------------

class ContractTests(CoreTests):
    """The whole contract, on the CRDs that `manifests` prints."""

    # -- row 2: which bytes --

    def test_a_restore_lies_in_the_location_of_its_backup(self) -> None:
        """The artifacts of a restore are looked for where its backup is."""
        self.make_location("second", prefix="second")
        self.make_backup("b2", "second")
        self.make_restore("r2", "b2")
        self.serve()
        for kind in [kind for kind in self.known_kinds() if kind.startswith("Restore")]:
            with self.subTest(kind=kind):
                url = self.answered(self.ask(kind, "r2"))["status"]["downloadURL"]
                key = KEYS[kind].replace("r1", "r2")
                self.assertTrue(url.startswith(f"{self.store.url}/{self.namespace}/second/{key}?"), key)

    def test_slashes_around_bucket_and_prefix_are_trimmed(self) -> None:
        """Bucket and prefix may be written with slashes around them."""
        self.make_location("slashes", prefix="//deep/er//", bucket=f"/{self.namespace}/")
        self.make_backup("b2", "slashes")
        self.serve()
        url = self.answered(self.ask(name="b2"))["status"]["downloadURL"]
        self.assertTrue(url.startswith(f"{self.store.url}/{self.namespace}/deep/er/backups/b2/b2-logs.gz?"))

    def test_public_url_is_what_gets_signed(self) -> None:
        """With a publicUrl the URL leads there, and its signature holds for that host."""
        public = self.store.url.replace("127.0.0.1", "localhost")
        self.make_location("public", {"s3Url": "http://127.0.0.1:1", "publicUrl": public})
        self.make_backup("b2", "public")
        self.store.put(self.namespace, "backups/b2/b2-logs.gz", b"x")
        self.serve()
        url = self.answered(self.ask(name="b2"))["status"]["downloadURL"]
        self.assertTrue(url.startswith(public + "/"))
        self.assertEqual(fetch(url).data, b"x")

    def test_keys_come_from_environment_or_file_when_there_is_no_secret(self) -> None:
        """A location without a Secret is opened with the two variables, else with the shared file."""
        self.make_location("bare", secret=None)
        self.make_backup("b2", "bare")
        self.store.put(self.namespace, "backups/b2/b2-logs.gz", b"x")
        path = os.path.join(self.folder, "credentials")
        with open(path, "w", encoding="utf-8") as file:
            file.write(keys_file(self.store.access_key, self.store.secret_key))
        worlds: Tuple[Dict[str, Optional[str]], ...] = (
            {"AWS_SHARED_CREDENTIALS_FILE": path},
            {"AWS_ACCESS_KEY_ID": self.store.access_key, "AWS_SECRET_ACCESS_KEY": self.store.secret_key})
        for env in worlds:
            with self.subTest(env=list(env)), environment(env):
                name = self.ask(name="b2")
                self.assertEqual(self.cli("controller", "--once").code, 0)
                self.assertEqual(fetch(self.answered(name)["status"]["downloadURL"]).data, b"x")

    # -- row 2: expiry --

    def test_past_requests_are_deleted_whatever_their_phase(self) -> None:
        """An expiration in the past is the end of a request, new or answered."""
        past = self.clock.text(minutes=-1)
        names = [self.fill(self.ask(), expiration=past)]
        names += [self.fill(self.ask(), expiration=past, phase=phase) for phase in ("New", "Processed")]
        self.serve()
        for name in names:
            self.gone(name)

    def test_an_answered_request_is_left_until_exactly_then(self) -> None:
        """A Processed request stays as it is up to its expiration, and not a second longer."""
        name = self.fill(self.ask(), phase="Processed", downloadURL="http://x/",
                         expiration=self.clock.text(minutes=5))
        before = self.look(name)
        self.serve()
        self.settle()
        self.turn(minutes=4, seconds=55)
        self.settle()
        self.assertEqual(self.look(name), before)
        self.turn(seconds=6)
        self.gone(name)

    def test_a_far_future_is_cut_down_to_ten_minutes(self) -> None:
        """An expiration further off than ten minutes does not hold."""
        far = (FAR, "2999-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", self.clock.text(minutes=20))
        names = [self.fill(self.ask(), phase="Processed", downloadURL="http://x/", expiration=text)
                 for text in far]
        self.serve()
        self.settle()
        self.turn(minutes=10, seconds=5)
        for name in names:
            self.gone(name)

    def test_a_new_request_of_a_stranger_gets_the_usual_life(self) -> None:
        """A far future or a URL filled in before the answer is overwritten by it."""
        name = self.fill(self.ask(), phase="New", downloadURL="http://evil/", expiration=FAR)
        self.serve()
        status = self.answered(name)["status"]
        self.assertNotIn("evil", status["downloadURL"])
        self.assert_soon(status["expiration"], minutes=10)

    def test_unusual_times_are_read_or_harmless(self) -> None:
        """Whatever time the schema lets through neither crashes a worker nor makes a request immortal."""
        names = []
        for text in ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2026-01-01T00:00:00.123456789Z",
                     "1990-12-31T23:59:60Z", "2026-01-01t00:00:00z", "9999-12-31T23:59:59.999999999-23:59"):
            with contextlib.suppress(Refused):
                names.append(self.fill(self.ask(), phase="Processed", downloadURL="http://x/",
                                       expiration=text))
        self.assertGreater(len(names), 3)
        self.serve()
        self.settle()
        self.turn(minutes=10, seconds=5)
        for name in names:
            self.gone(name)

    def test_processed_without_the_rest_lives_ten_minutes(self) -> None:
        """Processed without URL or expiration is nobody's promise for ever: creation counts."""
        names = [self.fill(self.ask(), phase="Processed"),
                 self.fill(self.ask(), phase="Processed", downloadURL="http://x/"),
                 self.fill(self.ask(), phase="Processed", expiration=self.clock.text(minutes=3))]
        self.serve()
        self.settle()
        self.assertEqual(set(names) - set(self.names()), set())
        self.turn(minutes=10, seconds=5)
        for name in names:
            self.gone(name)

    def test_a_status_given_at_creation_follows_the_dialect(self) -> None:
        """With a status subresource a status given at creation is dropped; without it counts."""
        status = {"phase": "Processed", "downloadURL": "http://x/", "expiration": self.clock.text(minutes=3)}
        name = self.ask(status=status)
        self.serve()
        self.settle()
        is_dropped = self.answered(name)["status"]["downloadURL"] != "http://x/"
        self.assertEqual(is_dropped, self.status_subresource)
        self.turn(minutes=10, seconds=5)
        self.gone(name)

    def test_a_failing_request_ends_too(self) -> None:
        """The first failure sets the end of a request, retries do not push it, and then it is deleted."""
        self.serve()
        name = self.ask(name="none")
        self.failed(name)

        def end() -> str:
            return str(((self.look(name) or {}).get("status") or {}).get("expiration", ""))
        first = wait_until(end, 10, "an expiration")
        self.assert_soon(first, minutes=10)
        for _ in range(5):
            self.turn(minutes=1)
            self.settle()
        self.assertEqual(end(), first)
        self.turn(minutes=5, seconds=5)
        self.gone(name)

    # -- row 2: failures --

    def failures(self) -> Dict[str, Tuple[str, str, Callable[[], Any]]]:
        """Return name -> (kind, target, cure) for what is missing or broken, after making what is there."""
        good = base64.b64encode(keys_file(self.store.access_key, self.store.secret_key).encode()).decode()

        def fix_secret(name: str) -> Callable[[], Any]:
            return lambda: self.admin.merge_patch("secrets", name, {"data": {"keys": good}}, self.namespace)
        for name, secret in (("no-secret", "absent"), ("no-key", "keyless"), ("no-sense", "senseless"),
                             ("half", "halved"), ("binary", "bytes")):
            self.make_location(name, secret=secret)
            self.make_backup(name, name)
        self.make_secret("keyless", key="other")
        self.make_secret("senseless", text="aws_secret_access_key = hush-hush-1\n[[[")
        self.make_secret("halved", text="[default]\naws_access_key_id = hush-hush-2\n")
        self.make("secrets", "Secret", "bytes", data={"keys": base64.b64encode(b"\xff\xfe\x00hush").decode()})
        self.make_backup("no-location", "nowhere")
        self.make_restore("no-backup", "later")
        return {
            "no backup": ("BackupLog", "nobody", lambda: self.make_backup("nobody")),
            "no restore": ("RestoreLog", "nothing", lambda: self.make_restore("nothing", "b1")),
            "backup of restore": ("RestoreLog", "no-backup", lambda: self.make_backup("later")),
            "no location": ("BackupLog", "no-location", lambda: self.make_location("nowhere")),
            "no Secret": ("BackupLog", "no-secret", lambda: self.make_secret("absent")),
            "Secret without key": ("BackupLog", "no-key", fix_secret("keyless")),
            "no credentials file": ("BackupLog", "no-sense", fix_secret("senseless")),
            "half a pair": ("BackupLog", "half", fix_secret("halved")),
            "not even text": ("BackupLog", "binary", fix_secret("bytes"))}

    def test_every_failure_has_a_reason_and_heals(self) -> None:
        """What is missing or broken is named on the object, and served as soon as it is cured."""
        self.serve()
        for case, (kind, target, cure) in self.failures().items():
            with self.subTest(case):
                name = self.ask(kind, target)
                failed = self.failed(name)["metadata"]["annotations"]
                self.assertRegex(failed[REASON], r"\A[A-Z][A-Za-z]+\Z")
                self.assertRegex(failed[MESSAGE], r"\A[^\n]{10,1024}\Z")
                self.assertNotIn("hush", failed[MESSAGE] + self.log.getvalue())
                cure()
                healed = self.healed(name)
                self.assertNotIn(MESSAGE, healed["metadata"].get("annotations") or {})

    def test_every_failure_is_an_event_too(self) -> None:
        """A failing request gets a core Event with the same reason, about the request."""
        self.serve()
        request = self.failed(self.ask(name="nobody"))

        def events() -> List[Document]:
            return self.admin.list("events", self.namespace)["items"]
        event = wait_until(events, 10, "an Event")[0]
        about = {field: event["involvedObject"].get(field) for field in ("kind", "name", "uid")}
        self.assertEqual(about, {"kind": "DownloadRequest", "name": request["metadata"]["name"],
                                 "uid": request["metadata"]["uid"]})
        self.assertEqual((event["reason"], event["type"]), (reason_of(request), "Warning"))
        self.assertIn("nobody", event["message"])

    def test_reasons_are_few_and_differ(self) -> None:
        """A missing backup, location, Secret and a broken Secret are told apart by their reasons."""
        self.serve()
        cases = self.failures()
        reasons = {case: reason_of(self.failed(self.ask(*cases[case][:2])))
                   for case in ("no backup", "no restore", "no location", "no Secret", "no credentials file")}
        self.assertEqual(len(set(reasons.values())), len(reasons), reasons)

    def test_a_stale_reason_goes_with_the_answer(self) -> None:
        """A reason that a stranger or an earlier try left is taken away by the answer."""
        name = "stale-1"
        document = download_request(name)
        document["metadata"]["annotations"] = {REASON: "Stale", MESSAGE: "long ago", "other": "stays"}
        self.admin.create("downloadrequests", document, self.namespace)
        self.serve()
        self.assertEqual(self.healed(name)["metadata"]["annotations"], {"other": "stays"})

    def test_hostile_names_are_refused(self) -> None:
        """A name that is none gets a reason, never a URL, and delays nobody."""
        self.serve()
        hostile = ["", "a/b", "../../other", "..", ".", "/", "b1/../b1", "b1\n", "b1\x00", "b1\x1b[31m", "B1",
                   "b 1", "b1?x=y", "%2e%2e", "x" * 10000, "\u0131\u202e", "b1/"]
        for name in hostile:
            for kind in ("BackupLog", "RestoreLog"):
                with self.subTest(name=name[:20], kind=kind):
                    failed = self.failed(self.ask(kind, name))
                    self.assertNotIn("downloadURL", failed.get("status") or {})
                    self.assertRegex(failed["metadata"]["annotations"][MESSAGE],
                                     r"\A[ -~\u00a0-\uffff]{5,1024}\Z")
        self.settle()

    def test_locations_of_another_kind_are_refused(self) -> None:
        """A provider, bucket or setting that cannot be served is named as such, without a URL."""
        cases: Dict[str, Document] = {"bucket": {"bucket": "a/b"},
                                      "style": {"config": {"s3ForcePathStyle": "maybe"}},
                                      "address": {"config": {"s3Url": "ftp://x"}}}
        for name, options in cases.items():
            self.make_location(name, **options)
            self.make_backup(name, name)
        self.make("backupstoragelocations", "BackupStorageLocation", "gcp",
                  spec={"provider": "gcp", "objectStorage": {"bucket": "x"}})
        self.make_backup("provider", "gcp")
        self.serve()
        for name in (*cases, "provider"):
            with self.subTest(name):
                failed = self.failed(self.ask(name=name))
                self.assertNotIn("downloadURL", failed.get("status") or {})

    # -- beyond the seed: the controller --

    def test_other_namespaces_are_left_alone(self) -> None:
        """Only the namespace told is served, whatever lies in others."""
        other = self.cluster.new_namespace()
        kept = [self.admin.create("downloadrequests", download_request("theirs"), other),
                self.admin.create(SSR, {"kind": "ServerStatusRequest", "spec": {},
                                                           "metadata": {"name": "theirs"}}, other)]
        self.serve()
        self.settle()
        self.turn(minutes=11)
        self.settle()
        for resource, document in zip(("downloadrequests", SSR), kept):
            self.assertEqual(self.admin.get(resource, "theirs", other), document)

    def test_the_crd_is_replaced_under_the_running_controller(self) -> None:
        """The controller follows the dialect of the live API, there and back."""
        self.addCleanup(self.cluster.install_crds, self.crds())
        self.serve()
        self.settle()
        for dialect in (not self.status_subresource, self.status_subresource):
            self.cluster.install_crds(velero_requests.crd_manifests(dialect))
            with self.subTest(status_subresource=dialect):
                self.answered(self.ask())
                self.answered(self.ask_status(), SSR)
                self.failed(self.ask(name="nobody"))

    def test_requests_from_before_the_start_are_answered(self) -> None:
        """What was created while no controller ran is answered when one starts."""
        names, status_name = [self.ask() for _ in range(20)], self.ask_status()
        self.serve()
        for name in names:
            self.answered(name)
        self.answered(status_name, SSR)

    def test_two_controllers_come_to_one_answer(self) -> None:
        """Two replicas answer the same requests without harm."""
        self.serve()
        self.serve()
        for name in [self.ask() for _ in range(20)]:
            document = self.answered(name)
            self.assertEqual(reason_of(document), "")
            self.assertTrue(document["status"]["downloadURL"])

    def test_a_request_on_its_way_out_is_forgotten(self) -> None:
        """A request that is being deleted is not answered, and nobody waits for it."""
        document = download_request("leaving")
        document["metadata"]["finalizers"] = ["example.com/wait"]
        self.admin.create("downloadrequests", document, self.namespace)
        self.admin.delete("downloadrequests", "leaving", self.namespace)
        self.serve()
        self.settle()
        self.assertNotIn("phase", (self.look("leaving") or {}).get("status") or {})
        self.admin.merge_patch("downloadrequests", "leaving", {"metadata": {"finalizers": None}},
                               self.namespace)
        self.gone("leaving")

    def test_least_rights_are_enough(self) -> None:
        """The controller needs its two kinds, read access to four others, and no right to write Events."""
        own = ["downloadrequests", SSR]
        velero = ["backups", "restores", "backupstoragelocations"]
        rules = [{"apiGroups": ["velero.io"], "resources": own,
                  "verbs": ["get", "list", "watch", "patch", "delete"]},
                 {"apiGroups": ["velero.io"], "resources": [name + "/status" for name in own],
                  "verbs": ["patch"]},
                 {"apiGroups": ["velero.io"], "resources": velero, "verbs": ["get"]},
                 {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
        self.cluster.grant("controller", *rules, namespace=self.namespace)
        self.serve(user="controller")
        self.answered(self.ask())
        self.answered(self.ask_status(), SSR)
        self.failed(self.ask(name="nobody"))
        self.settle()

    def test_a_controller_without_rights_to_the_secret_says_so(self) -> None:
        """A Secret that may not be read is a reason on the object, and cured by the right to read it."""
        velero = {"apiGroups": ["velero.io"], "resources": ["*"], "verbs": ["*"]}
        self.cluster.grant("limited", velero, namespace=self.namespace)
        self.serve(user="limited")
        name = self.ask()
        self.assertIn("cloud", self.failed(name)["metadata"]["annotations"][MESSAGE])
        self.cluster.grant("limited", {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
                           namespace=self.namespace)
        self.healed(name)

    def test_nothing_secret_is_told(self) -> None:
        """No signature, token or value of a Secret is in a log, an Event or an annotation."""
        self.serve()
        for case, (kind, target, _) in self.failures().items():
            with self.subTest(case):
                self.failed(self.ask(kind, target))
        self.answered(self.ask())
        self.assert_clean(self.log.getvalue())
        self.assert_clean(self.admin.list("events", self.namespace))
        for item in self.admin.list("downloadrequests", self.namespace)["items"]:
            self.assert_clean(item["metadata"])

    def test_full_annotations_neither_crash_nor_last(self) -> None:
        """A request whose annotations leave no room for a reason delays nobody and ends all the same."""
        document = download_request("full")
        document["spec"]["target"]["name"] = "nobody"
        document["metadata"]["annotations"] = {"stuff": "x" * 262100}
        self.admin.create("downloadrequests", document, self.namespace)
        self.serve()
        self.settle()
        self.turn(minutes=10, seconds=5)
        self.settle()
        self.turn(minutes=10, seconds=5)
        self.gone("full")

    # -- row 4: ServerStatusRequest --

    def test_a_status_request_is_answered(self) -> None:
        """Empty or New becomes Processed with a time, the version and the plugins."""
        plugins = (("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod"))
        self.serve(plugins=plugins)
        names = [self.ask_status(), self.fill(self.ask_status(), SSR, phase="New")]
        for name in names:
            status = self.answered(name, SSR)["status"]
            self.assert_soon(status["processedTimestamp"])
            self.assertEqual(status["serverVersion"], "v1.18.1")
            self.assertEqual({(entry["kind"], entry["name"]) for entry in status["plugins"]}, set(plugins))

    def test_a_status_request_goes_at_the_five_minute_look(self) -> None:
        """An answered status request is not looked at before five minutes are over, and then deleted."""
        self.serve()
        name = self.ask_status()
        self.answered(name, SSR)
        self.answered(self.ask_status(), SSR)  # by now the controller has seen its own answer to the first
        self.turn(minutes=4, seconds=50)
        self.settle()
        self.assertIsNotNone(self.look(name, SSR))
        self.turn(seconds=15)
        self.gone(name, SSR)

    def test_an_old_status_request_goes_at_the_first_look(self) -> None:
        """At the start a Processed one older than a minute is deleted, a younger one is left."""
        old, young = (self.fill(self.ask_status(), SSR, phase="Processed",
                                processedTimestamp=self.clock.text(seconds=ago)) for ago in (-65, -30))
        self.serve()
        self.gone(old, SSR)
        self.assertIsNotNone(self.look(young, SSR))

    def test_hostile_status_requests_crash_nobody_and_die(self) -> None:
        """Processed with no time, an ancient one or a far future is deleted in the end."""
        times = (FAR, "9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00",
                 "2999-01-01T00:00:00.5Z", None)
        names = [self.fill(self.ask_status(), SSR, phase="Processed",
                           **({"processedTimestamp": text} if text else {})) for text in times]
        self.serve()
        self.answered(self.ask_status(), SSR)
        for _ in range(3):
            self.turn(minutes=5, seconds=5)
            self.settle()
        for name in names:
            self.gone(name, SSR)

    # -- rows 3 and 5: the library --

    def test_stream_writes_and_tidies_up(self) -> None:
        """stream writes the inflated artifact into a writer and deletes its request."""
        self.serve()
        self.put()
        api = velero_requests.connect(velero_requests.load_cluster(self.kubeconfig))
        writer = io.BytesIO()
        velero_requests.stream(api, self.namespace, "BackupLog", "b1", writer)
        self.assertEqual(writer.getvalue(), LOG)
        self.assertEqual(self.names(), [])
        self.assert_clean(self.log.getvalue())

    def test_the_library_gives_url_and_status(self) -> None:
        """get_download_url returns a URL that works, get_server_status the answered object."""
        self.serve()
        stored = self.put()
        api = velero_requests.connect(velero_requests.load_cluster(self.kubeconfig))
        url = velero_requests.get_download_url(api, self.namespace, "BackupLog", "b1")
        self.assertEqual(fetch(url).data, stored)
        status = velero_requests.get_server_status(api, self.namespace)
        self.assertEqual((status["kind"], status["status"]["phase"]), ("ServerStatusRequest", "Processed"))
        self.assertTrue(status["metadata"]["name"].startswith("velero-cli-"))
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_a_client_that_may_not_watch_polls(self) -> None:
        """Without the right to watch, list or delete a client still gets its artifact and the status."""
        rules = [{"apiGroups": ["velero.io"], "resources": ["downloadrequests", SSR],
                  "verbs": ["create", "get"]}]
        self.cluster.grant("reader", *rules, namespace=self.namespace)
        self.serve()
        self.put()
        result = self.cli("backup", "logs", "b1", user="reader")
        self.assertEqual((result.code, result.out), (0, LOG), result.err)
        result = self.cli("plugin", "get", user="reader")
        self.assertEqual(result.code, 0, result.err)

    # -- row 6: the commands --

    def test_plugin_get_prints_a_table_or_the_object(self) -> None:
        """plugin get prints kubectl's table, sorted by kind and name, or the whole object."""
        self.serve(plugins=(("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod"),
                            ("BackupItemAction", "velero.io/crd-remap-version")))
        self.assertEqual(self.cli("plugin", "get").out.decode(),
                         "NAME                          KIND\n"
                         "velero.io/crd-remap-version   BackupItemAction\n"
                         "velero.io/pod                 BackupItemAction\n"
                         "velero.io/aws                 ObjectStore\n")
        for name, parse in (("json", json.loads), ("yaml", yaml.safe_load)):
            with self.subTest(output=name):
                document = parse(self.cli("plugin", "get", "-o", name).out)
                self.assertEqual((document["kind"], document["apiVersion"]),
                                 ("ServerStatusRequest", "velero.io/v1"))
                self.assertEqual(len(document["status"]["plugins"]), 3)

    def test_version_prints_client_and_server(self) -> None:
        """version prints both versions; --client-only needs no cluster at all."""
        self.serve()
        both = self.cli("version")
        self.assertEqual(both.code, 0, both.err)
        self.assertRegex(both.out.decode(), r"\AClient:\n\tVersion: v[0-9.]+\n(\tGit commit: .*\n)?Server:\n"
                                            r"\tVersion: v1\.18\.1\n(# WARNING: .*\n)?\Z")
        alone = run("version", "--client-only", "--kubeconfig", "/nowhere")
        self.assertEqual((alone.code, b"Server" in alone.out), (0, False))

    def test_logs_are_refused_until_the_work_has_finished(self) -> None:
        """Only finished phases have logs; the others are an error before any request is created."""
        self.put()
        for phase in ("New", "InProgress", "FailedValidation", "Deleting"):
            with self.subTest(phase):
                self.admin.merge_patch("backups", "b1", {"status": {"phase": phase}}, self.namespace)
                self.assert_failed(self.cli("backup", "logs", "b1"), 1, "backup", "b1", "not available")
        self.admin.merge_patch("restores", "r1", {"status": {"phase": "InProgress"}}, self.namespace)
        self.assert_failed(self.cli("restore", "logs", "r1"), 1, "restore", "r1", "not available")
        self.serve()
        for phase in ("Completed", "PartiallyFailed", "Failed"):
            self.admin.merge_patch("backups", "b1", {"status": {"phase": phase}}, self.namespace)
            self.assertEqual(self.cli("backup", "logs", "b1").out, LOG, phase)

    def test_backup_download_writes_beside_itself(self) -> None:
        """Without -o the contents land in NAME-data.tar.gz of the current folder, for the owner only."""
        self.serve()
        stored = self.put("BackupContents")
        before = os.getcwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.folder)
        result = self.cli("backup", "download", "b1")
        path = os.path.join(os.getcwd(), "b1-data.tar.gz")
        self.assertEqual(result, (0, f"Backup b1 has been successfully downloaded to {path}\n".encode(), ""))
        with open(path, "rb") as file:
            self.assertEqual(file.read(), stored)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)

    def test_url_only_prints_a_url_that_works(self) -> None:
        """download --url-only prints the URL and nothing else."""
        self.serve()
        stored = self.put("BackupContents")
        result = self.cli("download", "b1", "--url-only")
        self.assertEqual((result.code, result.err), (0, ""))
        self.assertEqual(fetch(result.out.decode().rstrip("\n")).data, stored)

    def test_manifests_can_be_installed(self) -> None:
        """What manifests prints are the five CRDs, in the dialect asked for."""
        flags = ["--status-subresource"] if self.status_subresource else []
        result = run("manifests", *flags)
        self.assertEqual((result.code, result.err), (0, ""))
        documents = list(yaml.safe_load_all(result.out))
        self.assertEqual({document["metadata"]["name"] for document in documents},
                         {name + ".velero.io" for name in ("backups", "restores", "backupstoragelocations",
                                                           "downloadrequests", SSR)})
        self.cluster.install_crds(documents)
        self.serve()
        self.settle()

    # -- command line contract --

    def test_common_flags_work_before_and_after_the_command(self) -> None:
        """-n, --kubeconfig, --context, --timeout and -v are understood on both sides."""
        self.serve()
        self.put()
        flags = {"-n": self.namespace, "--kubeconfig": self.kubeconfig, "--context": "test",
                 "--timeout": "1m0s"}
        pairs = [part for pair in flags.items() for part in pair]
        equal = [f"--namespace={self.namespace}", f"--kubeconfig={self.kubeconfig}", "--timeout=90s"]
        for argv in (pairs + ["-v", "backup", "logs", "b1"], ["backup", "logs"] + pairs + ["b1", "-v"],
                     ["backup", "logs", "b1"] + pairs,
                     pairs[:4] + ["backup", "logs", "b1"] + pairs[4:], equal + ["backup", "logs", "b1"],
                     ["backup", "logs", "b1"] + equal,
                     ["-n", "nowhere", "--timeout", "1s"] + ["backup", "logs", "b1"] + pairs):
            with self.subTest(argv=" ".join(argv)):
                result = run(*argv)
                self.assertEqual((result.code, result.out), (0, LOG), result.err)

    def test_the_namespace_comes_from_flag_variable_or_file(self) -> None:
        """-n wins over VELERO_NAMESPACE, that over the velero CLI's configuration."""
        self.serve()
        self.put()
        os.makedirs(os.path.join(self.folder, ".config", "velero"))

        def logs(*argv: str, variable: Optional[str], configured: str) -> int:
            with open(os.path.join(self.folder, ".config", "velero", "config.json"), "w",
                      encoding="utf-8") as file:
                json.dump({"namespace": configured}, file)
            return run("backup", "logs", "b1", "--kubeconfig", self.kubeconfig, *argv,
                       env={"VELERO_NAMESPACE": variable}).code
        self.assertEqual(logs("-n", self.namespace, variable="default", configured="default"), 0)
        self.assertEqual(logs(variable=self.namespace, configured="default"), 0)
        self.assertEqual(logs(variable=None, configured=self.namespace), 0)
        self.assertEqual(logs("-n", "default", variable=self.namespace, configured=self.namespace), 3)

    def test_a_broken_velero_configuration_stops_nobody(self) -> None:
        """Whatever lies in the velero CLI's configuration, flags are enough."""
        self.serve()
        self.put()
        os.makedirs(os.path.join(self.folder, ".config", "velero"))
        for content in ("", "nonsense", "[]", "5", '{"namespace": 5, "cacert": []}', "\x00",
                        '{"namespace": null}'):
            with self.subTest(content):
                path = os.path.join(self.folder, ".config", "velero", "config.json")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(content)
                self.assertEqual(self.cli("backup", "logs", "b1").out, LOG)

    def test_long_names_and_long_waits_work(self) -> None:
        """A backup's name may be as long as a file name in the bucket, and a budget 292 years."""
        name = ".".join(["b" * 59] * 4)
        self.make_backup(name)
        self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(LOG))
        self.serve()
        for argv in (("backup", "logs", name), ("plugin", "get")):
            result = self.cli(*argv, "--timeout", "2562047h47m16.8s")
            self.assertEqual(result.code, 0, result.err)

    def test_kubeconfig_comes_from_the_variable_too(self) -> None:
        """KUBECONFIG or ~/.kube/config serves when there is no flag."""
        self.serve()
        self.put()
        argv = ("backup", "logs", "b1", "-n", self.namespace)
        self.assertEqual(run(*argv, env={"KUBECONFIG": self.kubeconfig}).out, LOG)
        os.makedirs(os.path.join(self.folder, ".kube"))
        shutil.copy(self.kubeconfig, os.path.join(self.folder, ".kube", "config"))
        self.assertEqual(run(*argv).out, LOG)

    def test_wrong_usage_is_code_2(self) -> None:
        """What cannot be understood is an error line, code 2 and an empty stdout, and asks no cluster."""
        for argv in (["nonsense"], ["backup"], ["backup", "logs"], ["backup", "logs", "b1", "b2"], [],
                     ["download", "b1", "--kind", "Nonsense"], ["download"], ["plugin", "get", "-o", "xml"],
                     ["backup", "logs", "b1", "--timeout", "5"],
                     ["backup", "logs", "b1", "--timeout", "soon"],
                     ["backup", "logs", "b1", "--timeout", ""], ["backup", "logs", "b1", "--nonsense"],
                     ["controller", "--plugin", "no-equals-sign"], ["backup", "nonsense", "b1"]):
            with self.subTest(argv=" ".join(argv)):
                self.assert_failed(run(*argv), 2)

    def test_go_durations_are_understood(self) -> None:
        """--timeout takes whatever Go's ParseDuration takes."""
        for text in ("1m30s", "500ms", "1.5h", "2h45m", "100000us", "100000µs", "10s", ".5m", "1m0.5s"):
            with self.subTest(text):
                result = self.cli("backup", "logs", "nobody", "--timeout", text)
                self.assert_failed(result, 3, "nobody", "does not exist")

    def test_what_does_not_exist_is_code_3(self) -> None:
        """A backup, restore or artifact that is not there is named, and nothing is left behind."""
        self.serve()
        self.store.create_bucket(self.namespace)
        for argv, words in ((("backup", "logs", "nobody"), ("backup", "nobody")),
                            (("restore", "logs", "nobody"), ("restore", "nobody")),
                            (("backup", "download", "nobody", "-o", self.folder + "/x"),
                             ("backup", "nobody")),
                            (("download", "nobody", "--kind", "RestoreLog", "-o", "-"),
                             ("restore", "nobody")),
                            (("backup", "logs", ""), ("backup",)),
                            (("download", "../../secrets/cloud", "-o", "-"), ("secrets/cloud",)),
                            (("backup", "logs", "b1"), ("b1",)),
                            (("download", "b1", "-o", self.folder + "/x"), ("b1",))):
            with self.subTest(argv=argv):
                self.assert_failed(self.cli(*argv), 3, *words)
        self.assertFalse(os.path.exists(self.folder + "/x"))
        self.assertEqual(self.names(), [])

    def test_a_reason_ends_the_waiting_at_once(self) -> None:
        """The client tells the reason on its request instead of waiting, and deletes the request."""
        self.make_backup("b2", "nowhere")
        self.serve()
        began = time.monotonic()
        result = self.cli("download", "b2", "-o", "-", "--timeout", "60s")
        self.assertLess(time.monotonic() - began, 20)
        self.assertIn(result.code, (1, 3))
        self.assert_failed(result, result.code, "nowhere")
        self.assertEqual(self.names(), [])

    def test_when_nobody_answers_it_is_code_4(self) -> None:
        """Without a controller the budget runs out, with a hint, and the request is deleted."""
        for argv in (("backup", "logs", "b1"), ("download", "b1", "-o", "-"), ("plugin", "get"),
                     ("version",)):
            with self.subTest(argv=argv):
                result = self.cli(*argv, "--timeout", "200ms")
                self.assert_failed(result, 4)
                self.assertIn("\nhint: ", result.err)
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_what_is_forbidden_is_code_5(self) -> None:
        """A user without rights and a token without a user are told so."""
        bad = self.cluster.kubeconfig(self.folder, "nobody-knows-me")
        for argv in (("backup", "logs", "b1"), ("download", "b1", "-o", "-"), ("plugin", "get")):
            with self.subTest(argv=argv):
                self.assert_failed(self.cli(*argv, user="stranger"), 5)
                self.assert_failed(run("--kubeconfig", bad, "-n", self.namespace, *argv), 5)

    def test_a_store_that_is_unreachable_is_code_6(self) -> None:
        """A URL that leads nowhere is an error that names the store's host, not the signature."""
        self.make_location("dead", {"s3Url": "http://127.0.0.1:1"})
        self.make_backup("b2", "dead")
        self.serve()
        path = os.path.join(self.folder, "x")
        self.assert_failed(self.cli("download", "b2", "-o", path), 6, "127.0.0.1:1")
        self.assertFalse(os.path.exists(path))

    def test_bad_kubeconfigs_are_one_error_each(self) -> None:
        """Whatever is wrong with the way to the cluster is told before any request is created."""
        with open(self.kubeconfig, encoding="utf-8") as file:
            good = file.read()
        document = yaml.safe_load(good)
        dead = {**document, "clusters": [{"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}]}
        cases: Tuple[Tuple[str, Any, Tuple[str, ...], int], ...] = (
            ("absent", None, (), 1), ("no YAML", "a: [b\n\t- {", (), 1),
            ("no mapping", "- just\n- a list", (), 1),
            ("binary", "\x00\x01", (), 1), ("empty", "", (), 1),
            ("unknown context", good, ("--context", "elsewhere"), 1),
            ("context without cluster", {**document, "clusters": []}, (), 1),
            ("refused", dead, (), 6), ("no current context", {**document, "current-context": ""}, (), 1))
        for name, content, flags, code in cases:
            with self.subTest(name):
                path = os.path.join(self.folder, "broken-" + name.replace(" ", "-"))
                if content is not None:
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(content if isinstance(content, str) else json.dumps(content))
                argv = ("--kubeconfig", path, *flags, "-n", self.namespace, "download", "b1", "-o", "-")
                self.assert_failed(run(*argv), code)
        self.assertEqual(self.names(), [])

    def test_a_controller_with_a_bad_kubeconfig_ends(self) -> None:
        """The controller too tells what is wrong with its kubeconfig or its rights and does not start."""
        self.assert_failed(self.cli("controller", "--once", user="stranger"), 5, "stranger")
        self.assert_failed(run("controller", "--once", "--kubeconfig", "/nowhere/config"), 1,
                           "/nowhere/config")
        self.assert_failed(run("backup", "logs", "b1"), 1)

    # -- files --

    def test_existing_files_are_kept_unless_forced(self) -> None:
        """A file that exists is an error and untouched; --force replaces it after success only."""
        self.serve()
        path = os.path.join(self.folder, "precious")
        with open(path, "wb") as file:
            file.write(b"precious")

        def content() -> bytes:
            with open(path, "rb") as file:
                return file.read()
        stored = self.put("BackupContents")
        for command in (("download", "b1"), ("backup", "download", "b1")):
            self.assert_failed(self.cli(*command, "-o", path), 1, path)
            self.assertEqual(content(), b"precious")
        self.assert_failed(self.cli("download", "b1", "--kind", "BackupLog", "-o", path, "--force"), 3)
        self.assertEqual(content(), b"precious")
        self.assertEqual(self.cli("download", "b1", "-o", path, "--force").code, 0)
        self.assertEqual(content(), stored)

    def test_bad_bodies_leave_no_file(self) -> None:
        """What is not gzip, ends early or is damaged is one error, for every kind, and no file."""
        self.serve()
        whole = gzip.compress(os.urandom(3000))
        bodies = {"not gzip": b"<html>sorry</html>", "empty": b"", "short": whole[:-200],
                  "no end": whole[:-4],
                  "damaged": whole[:100] + b"\x00\x00" + whole[102:], "tail": whole + b"garbage"}
        target = os.path.join(self.folder, "out")
        os.mkdir(target)
        for kind in ("BackupContents", "BackupLog"):
            for name, body in bodies.items():
                with self.subTest(name, kind=kind):
                    self.store.put(self.namespace, KEYS[kind], body)
                    result = self.cli("download", "b1", "--kind", kind, "-o", os.path.join(target, "x"))
                    self.assert_failed(result, 1)
                    self.assertEqual(os.listdir(target), [])
        self.assertEqual(self.names(), [])

    def test_keys_that_the_store_refuses_are_code_5(self) -> None:
        """A signature that the store does not accept is an error without a file, and tells no secret."""
        self.make_secret("wrong", text=keys_file(self.store.access_key, "not-the-secret"))
        self.make_location("wrong", secret="wrong")
        self.make_backup("b2", "wrong")
        self.store.put(self.namespace, "backups/b2/b2.tar.gz", gzip.compress(b"x"))
        self.serve()
        path = os.path.join(self.folder, "x")
        result = self.cli("download", "b2", "-o", path, "-v", "-v")
        self.assertEqual((result.code, result.out), (5, b""), result.err)
        self.assertNotIn("not-the-secret", result.err)
        self.assert_clean(result.err)
        self.assertFalse(os.path.exists(path))

    def test_a_target_that_cannot_be_written_is_told_first(self) -> None:
        """A folder that is not there, or a folder as the file, is one error, and no request stays."""
        self.serve()
        self.put("BackupContents")
        for path in (os.path.join(self.folder, "no", "such", "x"), self.folder):
            with self.subTest(path):
                self.assert_failed(self.cli("download", "b1", "-o", path), 1, path)
        self.assertEqual(self.names(), [])

    def test_several_gzip_members_are_one_log(self) -> None:
        """A log of several gzip members comes whole."""
        self.serve()
        self.store.put(self.namespace, KEYS["BackupLog"], gzip.compress(b"one\n") + gzip.compress(b"two\n"))
        self.assertEqual(self.cli("backup", "logs", "b1").out, b"one\ntwo\n")

    # -- processes --

    def test_ctrl_c_while_waiting_deletes_the_request(self) -> None:
        """A client that is interrupted leaves with 130, an empty stdout and no request behind."""
        for resource, argv in (("downloadrequests", ("backup", "logs", "b1")),
                               (SSR, ("plugin", "get", "--timeout", "1m"))):
            with self.subTest(argv=argv):
                program = self.program(*argv)
                wait_until(lambda resource=resource: self.names(resource), 15, "the request")
                result = program.end(signal.SIGINT)
                self.assertEqual((result.code, result.out), (130, b""), result.err)
                self.assertNotIn("Traceback", result.err)
                self.assertEqual(self.names(resource), [])

    def test_a_full_disk_is_one_error(self) -> None:
        """A stdout that takes nothing is one error line, and the request is deleted."""
        self.serve()
        self.put(body=os.urandom(200000))
        for argv in (("backup", "logs", "b1"), ("plugin", "get")):
            with self.subTest(argv=argv), open("/dev/full", "wb") as full:
                result = self.program(*argv, stdout=full).end()
                self.assert_failed(result, 1)
        self.assertEqual(self.names(), [])

    def test_a_reader_that_leaves_ends_the_log_quietly(self) -> None:
        """`backup logs | head` ends without a word, and the request is deleted."""
        self.serve()
        self.put(body=os.urandom(4 << 20).hex().encode())
        reading, writing = os.pipe()
        program = self.program("backup", "logs", "b1", stdout=writing)
        os.close(writing)
        self.assertEqual(len(os.read(reading, 10)), 10)
        os.close(reading)
        result = program.end()
        self.assertIn(result.code, (0, 141))
        self.assertEqual(result.err, "")
        self.assertEqual(self.names(), [])

    def test_the_controller_process_serves_and_leaves_on_signals(self) -> None:
        """As its own process the controller declares what it was told, and a signal ends it with 0."""
        path = os.path.join(self.folder, "plugins.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("- {kind: RestoreItemAction, name: velero.io/job}\n"
                       "- {name: velero.io/aws, kind: VolumeSnapshotter}\n")
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                program = self.program("controller", "--plugin", "BackupItemAction=velero.io/pod",
                                       "--plugins-file", path, "--server-version", "v1.16.2", "-v", "-v")
                self.answered(self.ask())
                table = self.cli("plugin", "get").out.decode()
                self.assertEqual([line.split() for line in table.splitlines()[1:]],
                                 [["velero.io/pod", "BackupItemAction"], ["velero.io/aws", "ObjectStore"],
                                  ["velero.io/job", "RestoreItemAction"],
                                  ["velero.io/aws", "VolumeSnapshotter"]])
                self.assertIn(b"Server:\n\tVersion: v1.16.2\n", self.cli("version").out)
                result = program.end(number)
                self.assertEqual((result.code, result.out), (0, b""), result.err)
                self.assertNotIn("Traceback", result.err)
                self.assert_clean(result.err)

    def test_bad_plugins_files_are_refused(self) -> None:
        """A plugins file that is none is one error, before the controller starts."""
        for content in (None, "- [", "name: x", "- name: x", "- 5", "- {name: x, kind: 7}", "\x00"):
            with self.subTest(content):
                path = os.path.join(self.folder, "plugins-" + uuid.uuid4().hex[:6])
                if content is not None:
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(content)
                self.assert_failed(self.cli("controller", "--once", "--plugins-file", path), 1, path)

    def test_once_drains_what_is_there(self) -> None:
        """controller --once looks at everything, answers, refuses and deletes, and exits with 0."""
        name, failing, status_name = self.ask(), self.ask(name="nobody"), self.ask_status()
        past = self.fill(self.ask(), expiration=self.clock.text(minutes=-1))
        result = self.program("controller", "--once").end()
        self.assertEqual((result.code, result.out), (0, b""), result.err)
        self.assertEqual((self.look(name) or {})["status"]["phase"], "Processed")
        status = (self.look(status_name, SSR) or {})["status"]
        self.assertEqual(status["phase"], "Processed")
        self.assertRegex(status["serverVersion"], r"\Av[0-9]")  # without the v every velero CLI warns
        self.assertTrue(reason_of(self.look(failing)))
        self.assertIsNone(self.look(past))
        self.assertNotIn("Traceback", result.err)

    def test_dry_run_tells_and_changes_nothing(self) -> None:
        """controller --once --dry-run prints an outcome for each request and leaves all as it was."""
        names = [self.ask(), self.ask(name="nobody"),
                 self.fill(self.ask(), expiration=self.clock.text(minutes=-1))]
        status_name = self.ask_status()
        before = [self.look(name) for name in names] + [self.look(status_name, SSR)]
        result = self.program("controller", "--once", "--dry-run").end()
        self.assertEqual(result.code, 0, result.err)
        for name in names + [status_name]:
            self.assertIn(name, result.out.decode() + result.err)
        after = [self.look(name) for name in names] + [self.look(status_name, SSR)]
        self.assertEqual(after, before)
        self.assertEqual(self.admin.list("events", self.namespace)["items"], [])
        self.assert_clean(result.out, result.err)


# ------------------------------------------------------------------------------------------------------------
# Contract: what only a fake can show, by its request log or by a scripted fault
# ------------------------------------------------------------------------------------------------------------

class FaultTests(FakeWorld):
    """Requests counted, answers lost, bodies cut."""

    def setUp(self) -> None:
        """Start with an empty log and no faults."""
        super().setUp()
        for server in (self.cluster, self.store):
            server.unscript()
            server.forget()
        self.addCleanup(self.cluster.unlimit)
        self.cluster.grant("controller", {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                           namespace=self.namespace)

    def serve(self, user: str = "controller", plugins: Tuple[Tuple[str, str], ...] = ()) -> Any:
        """Run a controller as a user of its own, so that the log tells its requests from the test's."""
        return super().serve(user, plugins)

    def patches(self, name: str = "") -> List[Request]:
        """Return the patches of one request, or of all."""
        return self.cluster.seen("PATCH", f"/namespaces/{self.namespace}/downloadrequests/{name}")

    # -- the controller's requests --

    def test_an_answer_is_one_patch_with_a_version(self) -> None:
        """One merge patch carries URL, phase and expiration, and the version that it was decided on."""
        self.serve()
        name = self.ask()
        version = (self.look(name) or {})["metadata"]["resourceVersion"]
        self.answered(name)
        self.settle()
        patch, = self.patches(name)
        self.assertEqual(patch.content_type, "application/merge-patch+json")
        self.assertEqual(patch.path.endswith("/status"), self.status_subresource)
        self.assertEqual(set(patch.parsed["status"]), {"phase", "downloadURL", "expiration"})
        self.assertLessEqual(int(patch.parsed["metadata"]["resourceVersion"]), int(version) + 1)

    def test_every_patch_carries_a_version(self) -> None:
        """No patch of the controller can overwrite what it has not seen."""
        self.fill(self.ask(), phase="Processed", downloadURL="http://x/", expiration=FAR)
        self.serve()
        self.answered(self.ask_status(), SSR)
        name = self.ask(name="late")
        self.failed(name)
        self.make_backup("late")
        self.healed(name)
        mine = self.cluster.seen("PATCH", user="controller")
        self.assertGreater(len(mine), 3)
        for request in mine:
            self.assertTrue(request.parsed["metadata"]["resourceVersion"], request.parsed)

    def test_a_failing_request_is_patched_once(self) -> None:
        """However often a request is tried again, its reason is written once and told in one Event."""
        self.serve()
        name = self.ask(name="nobody")
        self.failed(name)
        tries = self.cluster.count("GET", "/backups/nobody")
        for _ in range(8):
            self.turn(minutes=1)
            self.settle()
        wait_until(lambda: self.cluster.count("GET", "/backups/nobody") > tries + 3, 15, "more tries")
        self.assertLessEqual(len(self.patches(name)), 2 if self.status_subresource else 1)
        self.assertEqual(len([event for event in self.admin.list("events", self.namespace)["items"]
                              if event["involvedObject"]["name"] == name]), 1)

    def test_retries_back_off(self) -> None:
        """A failing request is not tried again and again on a clock that stands still in effect."""
        self.serve()
        names = [self.ask(name=f"nobody-{number}") for number in range(5)]
        for name in names:
            self.failed(name)
        for _ in range(30):
            self.settle()
        self.assertLess(self.cluster.count("GET", "/backups/nobody-"), 60)

    def test_a_burst_costs_one_request_each(self) -> None:
        """Backup, location and Secret are read once for many requests that come together."""
        self.serve()
        names = [self.ask() for _ in range(100)]
        for name in names:
            self.answered(name)
        self.assertEqual(len(self.patches()), 100)
        for part in ("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"):
            self.assertLess(self.cluster.count("GET", part), 20)

    def test_failures_are_not_remembered(self) -> None:
        """What was missing a moment ago is looked up again for the next request."""
        self.serve()
        self.failed(self.ask(name="b2"))
        self.make_backup("b2")
        self.assertEqual(reason_of(self.answered(self.ask(name="b2"))), "")

    def test_an_idle_controller_makes_no_requests(self) -> None:
        """Besides its watches a controller asks for nothing, however long, until there is a request."""
        self.serve()
        wait_until(lambda: len(self.cluster.watches(self.namespace)) == 2, 10, "two watches")
        self.cluster.forget()
        for _ in range(30):
            self.turn(minutes=3)
        self.assertEqual(self.cluster.seen(user="controller"), [])
        self.settle()
        made = self.cluster.seen(user="controller")
        self.assertEqual([request for request in made if request.query], [])
        self.assertEqual((len(made), self.cluster.count("PATCH")), (5, 1), made)

    def test_an_idle_process_makes_no_requests(self) -> None:
        """As a process of its own too: an answer costs one patch, and nothing else is asked for."""
        path = self.cluster.kubeconfig(self.folder, "controller")
        program = Program(self.folder, "controller", "--kubeconfig", path, "-n", self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        wait_until(lambda: len(self.cluster.watches(self.namespace)) == 2, 10, "two watches")
        self.cluster.forget()
        self.settle()
        self.assertEqual([request.method for request in self.cluster.seen(user="controller")], ["PATCH"])

    def test_other_namespaces_are_never_asked_for(self) -> None:
        """The controller's requests stay in its namespace."""
        self.serve()
        self.settle()
        for request in self.cluster.seen(user="controller"):
            if request.path not in ("/apis/velero.io/v1", "/api/v1", "/version"):
                self.assertIn(f"/namespaces/{self.namespace}/", request.path)

    def test_hostile_names_never_reach_a_path(self) -> None:
        """A name that is none is refused before anything is looked up with it."""
        self.serve()
        for name in ("../../secrets/cloud", "a/b", "..", "b1?x", "\x00", ""):
            self.failed(self.ask(name=name))
        self.assertEqual(self.cluster.count("GET", "/backups/"), 0)

    # -- the controller and faults --

    def test_answers_that_go_wrong_are_made_up_for(self) -> None:
        """A conflict, an error, a throttled or a lost answer to the patch delays an answer and no more."""
        stale = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict",
                    "code": 409}
        for options in ({"status": 409, "body": stale}, {"status": 500, "body": "oops"},
                        {"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503, "body": "<html>"},
                        {"drop": True}, {"drop": True, "apply": True}, {"cut_after": 5}):
            with self.subTest(**{key: str(value) for key, value in options.items()}):
                controller = self.serve()
                fault = self.cluster.script("PATCH", "/downloadrequests/", **options)
                name = self.ask()
                self.assertTrue(self.healed(name)["status"]["downloadURL"])
                self.assertEqual(fault.hits, 1)
                controller.stop.set()

    def test_facts_that_cannot_be_read_are_asked_for_again(self) -> None:
        """A backup, location or Secret that the API fails to give is a reason, and heals."""
        for path in ("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"):
            for options in ({"status": 500, "body": "oops"}, {"status": 200, "body": "no JSON"},
                            {"status": 200, "body": "[]"}, {"status": 200, "body": "{}"}):
                with self.subTest(path=path, **options):
                    controller = self.serve()
                    self.cluster.script("GET", path, times=4, **options)
                    self.healed(self.ask())
                    self.cluster.unscript()
                    controller.stop.set()

    def test_watches_that_end_or_are_too_old_lose_nothing(self) -> None:
        """Cut watches, compaction, a restarted server, garbage in the stream: new requests are answered."""
        self.serve()
        self.settle()
        garbage: Tuple[Any, ...] = (b"garbage\n", {"type": "ADDED", "object": None}, {"type": "ADDED"}, {},
                                    {"type": "ADDED", "object": {"metadata": 7}},
                                    {"type": "NEW", "object": {}},
                                    {"type": "ERROR", "object": {"kind": "Status", "code": 410}})
        for trouble in (self.cluster.cut_connections, self.cluster.compact, self.cluster.send_bookmarks,
                        lambda: [self.cluster.push(line) for line in garbage]):
            with self.subTest(str(trouble)[:60]):
                trouble()
                self.cluster.cut_watches()
                self.answered(self.ask())

    def test_a_request_changed_in_between_is_looked_at_again(self) -> None:
        """When somebody changes the request during the pass, the patch conflicts and the next look counts."""
        gate = threading.Event()
        self.cluster.script("GET", "/secrets/cloud", hang=gate)
        self.serve()
        name = self.ask()
        wait_until(lambda: self.cluster.count("GET", "/secrets/cloud"), 10, "the pass")
        self.admin.merge_patch("downloadrequests", name, {"metadata": {"labels": {"by": "them"}}},
                               self.namespace)
        gate.set()
        document = self.healed(name)
        self.assertEqual(document["metadata"]["labels"], {"by": "them"})
        self.assertEqual(self.cluster.count("PATCH", name, status=409), 1)

    def test_a_signal_lets_the_pass_in_hand_finish(self) -> None:
        """SIGTERM in the middle of a pass: the answer is still written, then the controller leaves with 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gate = threading.Event()
            fault = self.cluster.script("GET", "/secrets/cloud", hang=gate)
            program = self.program("controller")
            name = self.ask()
            wait_until(lambda fault=fault: fault.hits, 15, "the pass")
            program.process.send_signal(number)
            with self.assertRaises(AssertionError):  # it must not leave while the pass is under way
                wait_until(lambda program=program: program.process.poll() is not None, 0.3)
            gate.set()
            self.assertEqual(program.end().code, 0)
            self.assertEqual((self.look(name) or {})["status"]["phase"], "Processed")

    def test_a_slow_request_does_not_hold_up_the_others(self) -> None:
        """While one Secret hangs, requests to another location are answered."""
        self.make_secret("slow")
        self.make_location("slow", secret="slow")
        self.make_backup("b2", "slow")
        gate = threading.Event()
        self.addCleanup(gate.set)
        fault = self.cluster.script("GET", "/secrets/slow", hang=gate)
        self.serve()
        slow = self.ask(name="b2")
        wait_until(lambda: fault.hits, 10, "the slow pass")
        self.settle()
        gate.set()
        self.healed(slow)

    def test_dry_run_only_reads(self) -> None:
        """--dry-run sends nothing but GET."""
        self.ask()
        self.ask_status()
        self.cluster.forget()
        self.assertEqual(self.cli("controller", "--once", "--dry-run").code, 0)
        self.assertEqual({request.method for request in self.cluster.seen()}, {"GET"})

    # -- the client's requests --

    def test_the_client_polls_where_it_may_not_watch(self) -> None:
        """A watch that is forbidden is tried once, and then the request is asked for."""
        self.cluster.limit("admin", "watch", resource="downloadrequests")
        self.serve()
        self.put()
        self.assertEqual(self.cli("backup", "logs", "b1"), (0, LOG, ""))
        self.assertEqual(self.cluster.count("GET", "watch=", user="admin"), 1)
        self.assertEqual(self.names(), [])

    def test_a_client_that_watches_does_not_poll(self) -> None:
        """Where watching is allowed the URL comes by the watch."""
        self.serve()
        self.put()
        self.cluster.forget()
        self.cli("backup", "logs", "b1")
        name = next(request for request in self.cluster.seen("DELETE")).path.rpartition("/")[2]
        self.assertLessEqual(self.cluster.count("GET", "/downloadrequests/" + name), 1)

    def test_a_client_outlives_its_watch(self) -> None:
        """A watch that breaks off, or brings garbage, does not end the waiting."""
        for options in ({"drop": True}, {"status": 500, "body": "x"}, {"chunks": [b"garbage\n"], "cut": True},
                        {"chunks": []}, {"status": 410, "body": "{}"},
                        {"chunks": [{"type": "ERROR", "object": {"kind": "Status", "code": 410}}]}):
            with self.subTest(str(options)):
                controller = self.serve()
                self.put()
                self.cluster.script("GET", "fieldSelector", **options)
                result = self.cli("backup", "logs", "b1", "--timeout", "20s")
                self.assertEqual((result.code, result.out), (0, LOG), result.err)
                controller.stop.set()

    def test_a_request_that_vanishes_is_an_error(self) -> None:
        """When somebody deletes the request that the client waits for, the client says so at once."""
        program = self.program("backup", "logs", "b1", "--timeout", "60s")
        name = wait_until(self.names, 15, "the request")[0]
        wait_until(lambda: self.cluster.watches(), 15, "the watch")
        self.admin.delete("downloadrequests", name, self.namespace)
        result = program.end()
        self.assertEqual(result.out, b"")
        self.assertIn(result.code, (1, 3))
        self.assertIn("error: ", result.err)

    def test_a_bad_way_to_the_cluster_creates_nothing(self) -> None:
        """With a wrong authority there is one error with code 6, and no request arrives."""
        cluster = FakeCluster(tls=True)
        self.addCleanup(cluster.close)
        other = make_certificate(self.folder).ca
        path = cluster.kubeconfig(self.folder)
        with open(path, encoding="utf-8") as file, open(other, "rb") as ca:
            document = yaml.safe_load(file)
            wrong = base64.b64encode(ca.read()).decode()
        for name, entry in (("wrong", {"certificate-authority-data": wrong}), ("none", {}),
                            ("file", {"certificate-authority": other})):
            with self.subTest(name):
                document["clusters"][0]["cluster"] = {"server": cluster.url, **entry}
                with open(path, "w", encoding="utf-8") as file:
                    yaml.safe_dump(document, file)
                self.assert_failed(run("--kubeconfig", path, "download", "b1", "-o", "-"), 6)
        self.assertEqual(cluster.seen(), [])

    def test_kubeconfig_files_may_be_named_relatively(self) -> None:
        """An authority and a token in files are found relative to the kubeconfig."""
        cluster = FakeCluster(tls=True)
        self.addCleanup(cluster.close)
        cluster.install_crds(self.crds())
        shutil.copy(str(cluster.ca), os.path.join(self.folder, "ca.pem"))
        with open(os.path.join(self.folder, "token"), "w", encoding="utf-8") as file:
            file.write(token_of("admin") + "\n")
        path = cluster.kubeconfig(self.folder)
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
        document["clusters"][0]["cluster"] = {"server": cluster.url, "certificate-authority": "ca.pem"}
        document["users"][0]["user"] = {"tokenFile": "token"}
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        self.assert_failed(run("--kubeconfig", path, "-n", "default", "backup", "logs", "b1"), 3, "b1")
        self.assertEqual({request.user for request in cluster.seen()[-1:]}, {"admin"})

    # -- the client and the store --

    def test_bad_answers_of_the_store_leave_no_file(self) -> None:
        """Each status has its code; a file that was there stays, and none is left where there was none."""
        self.serve()
        target = os.path.join(self.folder, "target")
        os.mkdir(target)
        with open(os.path.join(target, "old"), "wb") as file:
            file.write(b"old")
        for status, code in ((401, 5), (403, 5), (404, 3), (500, 1), (503, 1), (302, 1), (204, 1)):
            for name in ("new", "old"):
                with self.subTest(status=status, name=name):
                    self.store.unscript()
                    self.put("BackupContents")
                    self.store.script("GET", times=20, status=status,
                                      headers={"Location": "http://127.0.0.1:1/"})
                    path = os.path.join(target, name)
                    self.assert_failed(self.cli("download", "b1", "-o", path, "--force"), code, "b1")
                    self.assertEqual(os.listdir(target), ["old"])
        with open(os.path.join(target, "old"), "rb") as file:
            self.assertEqual(file.read(), b"old")

    def test_a_body_cut_short_is_one_error_or_made_up_for(self) -> None:
        """A body that ends too early every time, told or untold, leaves no file and the right code."""
        self.serve()
        target = os.path.join(self.folder, "target")
        os.mkdir(target)
        for kind in ("BackupContents", "BackupLog"):
            for options in ({"cut_after": 40}, {"cut_after": 40, "content_length": 40}, {"cut_after": 0},
                            {"drop": True}):
                with self.subTest(kind=kind, **options):
                    self.store.unscript()
                    self.put(kind)
                    self.store.script("GET", times=50, **options)
                    result = self.cli("download", "b1", "--kind", kind, "-o", os.path.join(target, "x"))
                    self.assertIn(result.code, (1, 6))
                    self.assert_failed(result, result.code)
                    self.assertEqual(os.listdir(target), [])

    def test_the_waiting_budget_does_not_end_a_transfer(self) -> None:
        """A transfer that takes longer than --timeout goes on."""
        self.serve()
        self.put(body=os.urandom(5000))
        gate = threading.Event()
        fault = self.store.script("GET", pause_after=100, gate=gate)
        program = self.program("download", "b1", "--kind", "BackupLog", "-o", "-", "--timeout", "1s")
        wait_until(lambda: fault.hits, 15, "the transfer")
        end = time.monotonic() + 1.2
        wait_until(lambda: time.monotonic() > end or program.process.poll() is not None, 5)
        gate.set()
        self.assertEqual(program.end().code, 0, program.text())

    def test_ctrl_c_while_creating_leaves_nothing(self) -> None:
        """Ctrl-C between the request's creation and the answer to it leaves no request behind either."""
        for resource, argv in (("downloadrequests", ("backup", "logs", "b1")), (SSR, ("plugin", "get"))):
            with self.subTest(argv=argv):
                gate = threading.Event()
                self.cluster.script("POST", "/" + resource, pause_after=0, gate=gate)
                program = self.program(*argv)
                wait_until(lambda resource=resource: self.names(resource), 15, "the request")
                program.process.send_signal(signal.SIGINT)
                gate.set()
                result = program.end()
                self.assertEqual((result.code, result.out, self.names(resource)), (130, b"", []), result.err)

    def test_ctrl_c_during_a_transfer_leaves_nothing(self) -> None:
        """An interrupted download leaves neither a file nor a request, and exits with 130."""
        self.serve()
        self.put("BackupContents", os.urandom(5000))
        fault = self.store.script("GET", pause_after=100, gate=threading.Event())
        target = os.path.join(self.folder, "target")
        os.mkdir(target)
        program = self.program("download", "b1", "-o", os.path.join(target, "x"))
        wait_until(lambda: fault.hits and os.listdir(target), 15, "the transfer")
        result = program.end(signal.SIGINT)
        self.assertEqual((result.code, result.out, os.listdir(target)), (130, b"", []), result.err)
        self.assertEqual(self.names(), [])
        self.assertNotIn("Traceback", result.err)

    def test_content_encoding_does_not_confuse(self) -> None:
        """A store that declares the compression gets its artifacts through all the same."""
        self.serve()
        stored = self.put("BackupContents", Content_Encoding="gzip")
        self.put("BackupLog", Content_Encoding="gzip")
        self.assertEqual(self.cli("download", "b1", "-o", "-").out, stored)
        self.assertEqual(self.cli("backup", "logs", "b1").out, LOG)

    def test_the_location_s_authority_is_trusted(self) -> None:
        """A store with an authority of its own needs the location's caCert, --cacert or --insecure-…."""
        store = FakeStore(tls=True)
        self.addCleanup(store.close)
        store.put(self.namespace, "backups/b2/b2-logs.gz", gzip.compress(LOG))
        with open(str(store.ca), "rb") as file:
            authority = base64.b64encode(file.read()).decode()
        for name, options in (("b2", {}), ("b3", {"caCert": authority})):
            self.make_location(name, {"s3Url": store.url}, **options)
            self.make_backup(name, name)
        store.put(self.namespace, "backups/b3/b3-logs.gz", gzip.compress(LOG))
        self.serve()
        self.assert_failed(self.cli("backup", "logs", "b2"), 6)
        for argv in (("b3",), ("b2", "--cacert", str(store.ca)), ("b2", "--insecure-skip-tls-verify")):
            with self.subTest(argv=argv):
                result = self.cli("backup", "logs", *argv)
                self.assertEqual((result.code, result.out), (0, LOG), result.err)

    def test_verbose_failures_tell_no_secret(self) -> None:
        """Even -v -v prints no signature or token, whatever goes wrong on the way."""
        self.serve()
        self.put()
        self.assert_clean(self.cli("-v", "-v", "backup", "logs", "b1").err)
        for options in ({"status": 403, "body": "AWSAccessKeyId"}, {"drop": True}, {"cut_after": 3},
                        {"status": 500}):
            with self.subTest(**options):
                self.store.unscript()
                self.store.script("GET", times=20, **options)
                result = self.cli("-v", "-v", "backup", "logs", "b1", "-v")
                self.assertNotEqual(result.code, 0)
                self.assert_clean(result.err)

    def test_what_servers_echo_is_blanked(self) -> None:
        """A signature or token that the store or the cluster repeats in an error is not passed on."""
        self.serve()
        self.put()
        told = (f"Bearer {token_of('admin')} X-Amz-Credential={self.store.access_key}"
                f"&X-Amz-Signature={'0f' * 32}")
        for body in (told, f"<Error><Code>Odd</Code><Message>{told}</Message></Error>"):
            self.store.script("GET", times=5, status=500, body=body)
            self.assert_failed(self.cli("backup", "logs", "b1"), 1)
            self.store.unscript()
        refusal = {"message": told, "code": 403}
        self.cluster.script("POST", "/downloadrequests", times=5, status=403, body=refusal)
        self.assert_failed(self.cli("backup", "logs", "b1"), 5)

    def test_the_store_s_words_cannot_steer_a_terminal(self) -> None:
        """Control characters in an answer of the store or the cluster do not reach the terminal raw."""
        self.serve()
        self.put()
        hostile = "<Error><Code>X\x1b[31m</Code><Message>a\nerror: forged\r\x07</Message></Error>"
        self.store.script("GET", times=20, status=500, body=hostile)
        result = self.cli("backup", "logs", "b1")
        self.assert_failed(result, 1)
        self.assertNotRegex(result.err, "[\x00-\x09\x0b-\x1f]")

    def test_an_answer_lost_after_create_is_survived(self) -> None:
        """When the answer to create is lost, the client does its job or says so, with one stray at most."""
        self.serve()
        self.put()
        self.cluster.script("POST", "/downloadrequests", drop=True, apply=True)
        result = self.cli("backup", "logs", "b1")
        self.assertIn(result.code, (0, 6), result.err)
        self.assertLessEqual(len(self.names()), 1)


class TestContractFaultsNew(FaultTests, unittest.TestCase):
    """Faults without a status subresource."""


class TestContractFaultsOld(FaultTests, unittest.TestCase):
    """Faults with a status subresource."""

    status_subresource = True


# ------------------------------------------------------------------------------------------------------------
# Contract: CRDs that check nothing, as strangers and old clusters have them
# ------------------------------------------------------------------------------------------------------------

class LooseTests(World):
    """What the schema usually keeps out, let in."""

    @classmethod
    def crds(cls) -> List[Document]:
        """Return CRDs whose two request kinds accept anything."""
        crds = velero_requests.crd_manifests(cls.status_subresource)
        for crd in crds:
            if crd["spec"]["names"]["kind"] in ("DownloadRequest", "ServerStatusRequest"):
                anything = {"x-kubernetes-preserve-unknown-fields": True}
                loose = {"type": "object", "properties": {"spec": anything, "status": anything}}
                crd["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": loose}
        return crds

    def invent(self, resource: str, document: Document) -> str:
        """Create a request that need not make sense, and return its name."""
        kind = {"downloadrequests": "DownloadRequest", SSR: "ServerStatusRequest"}[resource]
        document = {"kind": kind, "metadata": {"generateName": "odd-"}, **document}
        name = str(self.admin.create(resource, document, self.namespace)["metadata"]["name"])
        if self.status_subresource and document.get("status") is not None:
            self.admin.patch_status(resource, name, document["status"], self.namespace)
        return name

    def test_unknown_kinds_get_a_reason(self) -> None:
        """A target that cannot be read is refused with a reason and delays nobody."""
        targets = ({"kind": "Nonsense", "name": "b1"}, {"kind": "", "name": "b1"}, {"kind": 5, "name": "b1"},
                   {"kind": "BackupLog", "name": 7}, {"kind": "BackupLog", "name": ["b1"]},
                   {"kind": "BackupLog"}, {},
                   [], "b1", None, {"kind": {"a": 1}, "name": {"b": 2}}, {"kind": "backuplog", "name": "b1"})
        self.serve()
        for target in targets:
            with self.subTest(target=str(target)):
                failed = self.failed(self.invent("downloadrequests", {"spec": {"target": target}}))
                self.assertNotIn("downloadURL", failed.get("status") or {})
        self.failed(self.invent("downloadrequests", {}))
        self.failed(self.invent("downloadrequests", {"spec": []}))
        self.settle()

    def test_no_status_makes_a_request_immortal(self) -> None:
        """Unknown phases, expirations that are no dates, statuses that are no objects: all end."""
        good = {"target": {"kind": "BackupLog", "name": "b1"}}
        statuses: Tuple[Any, ...] = (
            {"phase": "Weird"}, {"phase": 7}, {"phase": None},
            {"phase": "Processed", "expiration": "tomorrow"},
            {"phase": "Processed", "expiration": 12345}, {"phase": "Processed", "expiration": {"a": []}},
            {"phase": "Processed", "expiration": "", "downloadURL": 5},
            {"phase": "Failed", "message": "upstream"},
            {"phase": "Processed", "expiration": "99999-01-01T00:00:00Z"}, {"phase": ["New"]}, "text", [],
            None, 5)
        names = [self.invent("downloadrequests", {"spec": good, "status": status}) for status in statuses]
        self.serve()
        self.settle()
        self.turn(minutes=10, seconds=5)
        self.settle()
        self.turn(minutes=10, seconds=5)
        for name, status in zip(names, statuses):
            with self.subTest(status=str(status)):
                self.gone(name)

    def test_no_status_request_crashes_the_controller(self) -> None:
        """Whatever stands in the status of a ServerStatusRequest, the others are answered and it ends."""
        statuses: Tuple[Any, ...] = (
            {"phase": "Processed", "processedTimestamp": "then"},
            {"phase": "Processed", "processedTimestamp": 5},
            {"phase": "Processed", "processedTimestamp": [], "plugins": 5}, {"phase": ["x"]},
            {"phase": "Weird"},
            "text", 5, [])
        names = [self.invent(SSR, {"status": status}) for status in statuses]
        self.serve()
        self.answered(self.ask_status(), SSR)
        for _ in range(3):
            self.turn(minutes=5, seconds=5)
            self.settle()
        for name in names[:3]:
            self.gone(name, SSR)

    def test_the_client_understands_failed_and_nonsense(self) -> None:
        """Phase Failed with a message ends the waiting with it; a status of nonsense ends in time."""
        for status, words in (({"phase": "Failed", "message": "no such thing"}, ("no such thing",)),
                              ({"phase": "Processed", "downloadURL": 5}, ()), ({"phase": ["x"]}, ()),
                              ({"downloadURL": "nonsense"}, ()), ({"downloadURL": "ftp://x/"}, ()),
                              ({"downloadURL": "file:///etc/passwd"}, ())):
            with self.subTest(status=status):
                program = self.program("backup", "logs", "b1", "--timeout", "1s")
                name = wait_until(self.names, 15, "the request")[0]
                self.fill(name, **status)
                result = program.end()
                self.assert_failed(result, result.code, *words)
                self.assertIn(result.code, (1, 3, 4, 6))
                self.assertEqual(self.names(), [])

    def test_a_server_s_plugins_may_be_nonsense(self) -> None:
        """plugin get and version take what a stranger answered without a traceback."""
        plugin_get, version = ("plugin", "get"), ("version",)
        for command, status in (
                (plugin_get, {"plugins": None}), (plugin_get, {"plugins": "x"}), (plugin_get, {}),
                (version, {}),
                (plugin_get, {"plugins": [5, {"name": 7}, {"name": "a\x1b[1m", "kind": "b"}]}),
                (version, {"serverVersion": 5}), (version, {"serverVersion": "v1\x1b[31m\n"})):
            with self.subTest(status=str(status), command=command):
                program = self.program(*command, "--timeout", "20s")
                name = wait_until(lambda: self.names(SSR), 15, "the request")[0]
                self.fill(name, SSR, phase="Processed", **status)
                result = program.end()
                self.assertIn(result.code, (0, 1))
                self.assertNotIn("Traceback", result.err)
                self.assertNotIn(b"\x1b", result.out)


class TestContractLooseFake(LooseTests, FakeWorld, unittest.TestCase):
    """Loose CRDs on the fakes."""


class TestContractLooseReal(LooseTests, RealWorld, unittest.TestCase):
    """Loose CRDs on the real servers."""


class TestContractLooseOld(LooseTests, FakeWorld, unittest.TestCase):
    """Loose CRDs with a status subresource."""

    status_subresource = True


class TestContractRealCluster(RealWorld, unittest.TestCase):
    """What only a real API server has: client certificates."""

    def kubeconfig_with(self, cluster: Document, user: Document) -> str:
        """Write a kubeconfig of these two entries."""
        path = os.path.join(self.folder, "with-certificate-" + uuid.uuid4().hex[:6])
        document = {"apiVersion": "v1", "kind": "Config", "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                    "clusters": [{"name": "k", "cluster": {"server": self.cluster.url, **cluster}}],
                    "users": [{"name": "u", "user": user}]}
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        return path

    def test_client_certificates_open_the_cluster(self) -> None:
        """A client certificate works inline and as files, also named relative to the kubeconfig."""
        names = [os.path.join(self.folder, name) for name in ("client.key", "client.csr", "client.crt",
                                                              "ca.crt")]
        run_openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", names[0], "-out", names[1], "-subj",
                    "/O=system:masters/CN=certified")
        run_openssl("x509", "-req", "-in", names[1], "-CA", self.cluster.ca, "-CAkey",
                    os.path.join(self.cluster.folder, "ca.key"), "-CAcreateserial", "-days", "1", "-out",
                    names[2])
        shutil.copy(self.cluster.ca, names[3])
        data = {}
        for name in names:
            with open(name, "rb") as file:
                data[name] = base64.b64encode(file.read()).decode()
        inline = self.kubeconfig_with({"certificate-authority-data": data[names[3]]},
                                      {"client-certificate-data": data[names[2]],
                                       "client-key-data": data[names[0]]})
        relative = self.kubeconfig_with({"certificate-authority": "ca.crt"},
                                        {"client-certificate": "client.crt", "client-key": "client.key"})
        for path in (inline, relative):
            self.assert_failed(run("--kubeconfig", path, "-n", self.namespace, "backup", "logs", "none"), 3,
                               "none")

    def test_a_wrong_authority_is_code_6(self) -> None:
        """A cluster whose authority is not the kubeconfig's is not talked to."""
        path = self.kubeconfig_with({"certificate-authority": make_certificate(self.folder).ca},
                                    {"token": token_of("admin")})
        self.assert_failed(run("--kubeconfig", path, "-n", self.namespace, "download", "b1", "-o", "-"), 6)
        self.assertEqual(self.names(), [])

    def test_compaction_loses_nothing(self) -> None:
        """After etcd has forgotten the past, new requests are answered."""
        self.serve()
        self.settle()
        self.cluster.compact()
        self.settle()


class TestContractFakeNew(ContractTests, FakeWorld, unittest.TestCase):
    """Fakes, no status subresource, as Velero 1.9 to 1.18."""


class TestContractFakeOld(ContractTests, FakeWorld, unittest.TestCase):
    """Fakes with a status subresource, as Velero 1.6 to 1.8."""

    status_subresource = True


class TestContractRealNew(ContractTests, RealWorld, unittest.TestCase):
    """Real servers, no status subresource."""


class TestContractRealOld(ContractTests, RealWorld, unittest.TestCase):
    """Real servers with a status subresource."""

    status_subresource = True


class TestContractVeleroNew(VeleroWorld, CoreTests, unittest.TestCase):
    """The main job on the CRDs of Velero 1.18.1."""

    release = "1.18.1"


class TestContractVeleroOld(VeleroWorld, CoreTests, unittest.TestCase):
    """The main job on the CRDs of Velero 1.6.3."""

    release = "1.6.3"
    status_subresource = True


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: certificates, servers that remember who called, and the files of the tests
# ------------------------------------------------------------------------------------------------------------

KUBECTL = shutil.which("kubectl")
NO_KUBECTL = "kubectl is not on the PATH, so what it makes of the kubeconfigs was not compared with ours"
KUBE_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
KUBE_CA_CONFIG = """[ca]
default_ca = own
[own]
database = {0}/index.txt
serial = {0}/serial
new_certs_dir = {0}
certificate = {0}/ca.crt
private_key = {0}/ca.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


def kube_issue(folder: str, name: str, extensions: str = "", first: str = "20200101000000Z",
               last: str = "20490101000000Z", subject: str = "") -> None:
    """Have the authority in folder sign a certificate: {name}.crt and {name}.key."""
    where = functools.partial(os.path.join, folder)
    for file, text in (("index.txt", ""), ("serial", f"{len(os.listdir(folder)) + 4096:x}\n"),
                       ("ca.conf", KUBE_CA_CONFIG.format(folder)),
                       ("own.ext", extensions + "\nbasicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\n"
                                                "authorityKeyIdentifier=keyid\n")):
        with open(where(file), "w", encoding="ascii") as opened:
            opened.write(text)
    run_openssl("req", *KUBE_NEW_KEY, "-keyout", where(f"{name}.key"), "-out", where(f"{name}.csr"), "-subj",
                f"/CN={subject or name}")
    run_openssl("ca", "-batch", "-notext", "-config", where("ca.conf"), "-extfile", where("own.ext"),
                "-startdate",
                first, "-enddate", last, "-in", where(f"{name}.csr"), "-out", where(f"{name}.crt"))


@functools.lru_cache(maxsize=None)
def kube_pki() -> str:
    """The folder with the authority, the server certificates and the client certificates of these tests."""
    folder = tempfile.mkdtemp(prefix="velero-requests-pki-")
    atexit.register(shutil.rmtree, folder, True)
    make_certificate(folder)  # ca.crt; tls.crt for localhost and 127.0.0.1
    for name in ("alice", "bob"):
        kube_issue(folder, name)
    kube_issue(folder, "named", "subjectAltName=DNS:kubernetes.default.svc,DNS:*.example.com")
    kube_issue(folder, "nameless", subject="localhost")
    kube_issue(folder, "expired", "subjectAltName=DNS:localhost,IP:127.0.0.1", last="20200201000000Z")
    return folder


def kube_bytes(name: str) -> bytes:
    """The content of one file of kube_pki."""
    with open(os.path.join(kube_pki(), name), "rb") as file:
        return file.read()


def kube_base64(name: str) -> str:
    """The same in base64, as the -data fields have it."""
    return base64.b64encode(kube_bytes(name)).decode()


def kube_server_context(name: str = "tls", versions: Tuple[int, ...] = ()) -> ssl.SSLContext:
    """TLS of a server that asks for client certificates and notes the name that it is called by."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(os.path.join(kube_pki(), f"{name}.crt"), os.path.join(kube_pki(), f"{name}.key"))
    context.load_verify_locations(os.path.join(kube_pki(), "ca.crt"))
    context.verify_mode = ssl.CERT_OPTIONAL

    def note(secured: Any, server_name: Optional[str], _context: Any) -> None:
        secured.kube_name = server_name

    context.sni_callback = note
    return context


class KubeServer(LoopbackServer):
    """Answers every call like /version, and remembers who called, by certificate and by which name."""

    def __init__(self, certificate_name: str = "") -> None:
        """Serve https with a certificate of kube_pki, or http without one."""
        self._own = kube_server_context(certificate_name) if certificate_name else None
        super().__init__(tls=bool(certificate_name))
        self.start()

    def _tls_context(self, tls: bool, certificate: Any) -> Optional[ssl.SSLContext]:
        self.ca = None
        return self._own

    def answer(self, request: Any, connection: Any) -> bool:
        """Note the caller before the answer goes out."""
        subject = (connection.socket.getpeercert() or {}).get("subject", ()) if self._own else ()
        request.user = dict(pair for part in subject for pair in part).get("commonName")
        request.parsed = {"name": getattr(connection.socket, "kube_name", None),
                          "connection": connection.socket.getpeername()[1]}
        return super().answer(request, connection)

    def handle(self, request: Any) -> Answer:
        """A version, whatever was asked for."""
        return Answer(200, b'{"major":"1","minor":"34","gitVersion":"v1.34.2"}')


class KubeProxy(KubeServer):
    """A forward proxy that looks for every host on loopback, and answers plain requests itself."""

    def __init__(self, certificate_name: str = "", user: str = "") -> None:
        """Let through whoever shows user, which is name:password, or everybody."""
        self._wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        super().__init__(certificate_name)

    def answer(self, request: Any, connection: Any) -> bool:
        """Check who asks, then tunnel or answer."""
        if self._wanted and request.headers.get("proxy-authorization") != self._wanted:
            return self.send(request, connection, Answer(407, b"", (("Proxy-Authenticate", "Basic"),)))
        if request.method != "CONNECT":
            return super().answer(request, connection)
        with socket.create_connection(("127.0.0.1", int(request.target.rpartition(":")[2]))) as target:
            connection.socket.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            self._pump(connection.socket, target)
        return False

    def _pump(self, one: Any, other: Any) -> None:
        while not self.closing.is_set():
            ready = select.select([one, other], [], [], 0.2)[0]
            for source, sink in ((one, other), (other, one)):
                if source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    sink.sendall(data)


@functools.lru_cache(maxsize=None)
def kube_server(certificate_name: str) -> KubeServer:
    """A server that all tests share; closed at exit."""
    server = KubeServer(certificate_name)
    atexit.register(server.close)
    return server


@functools.lru_cache(maxsize=None)
def kube_proxy(certificate_name: str = "", user: str = "") -> KubeProxy:
    """A proxy that all tests share; closed at exit."""
    proxy = KubeProxy(certificate_name, user)
    atexit.register(proxy.close)
    return proxy


def kube_servers() -> Dict[str, KubeServer]:
    """Every shared server and proxy by the name that verdicts use."""
    return {"https": kube_server("tls"), "http": kube_server(""), "named": kube_server("named"),
            "expired": kube_server("expired"), "nameless": kube_server("nameless"), "proxy": kube_proxy(),
            "guarded": kube_proxy("", "me:p@ss:w"), "secure": kube_proxy("tls")}


def kube_fill(text: str, folder: str) -> str:
    """Text with what differs from run to run: @HTTPS@ is a server's host and port, @CA@ a file in base64 …"""
    values = {f"@{name.upper()}@": server.host for name, server in kube_servers().items()}
    values.update({f"@{name.upper()}@": kube_base64(file) for name, file in (
        ("ca", "ca.crt"), ("cert", "alice.crt"), ("key", "alice.key"), ("bobkey", "bob.key"))})
    values.update({"@DIR@": folder, "@PKI@": kube_pki(), "@PORT@": str(kube_server("tls").port),
                   "@PATH@": os.environ["PATH"],
                   "@NAMEDPORT@": str(kube_server("named").port)})
    text = re.sub(r"@TEXT:(\S+?)@", lambda match: json.dumps(kube_bytes(match.group(1)).decode())[1:-1], text)
    return re.sub(r"@[A-Z]+@", lambda match: values[match.group()], text)


def kube_write(folder: str, name: str, content: Any) -> str:
    """Write a file of a case and return its path: bytes as they are, text filled in, documents as YAML."""
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not isinstance(content, (bytes, str)):
        content = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else kube_fill(content, folder).encode())
    return path


def kube_config(user: Any = None, cluster: Any = None, context: Any = None, **top: Any) -> Document:
    """A kubeconfig for the https server: entries `c`, with what is given in place of token and CA."""
    cluster = {"certificate-authority-data": "@CA@"} if cluster is None else cluster
    return {"current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://@HTTPS@", **cluster}}],
            "users": [{"name": "c", "user": {"token": "t"} if user is None else user}],
            "contexts": [{"name": "c", "context": {"cluster": "c",
                                                   "user": "c"} if context is None else context}],
            **{name.replace("_", "-"): value for name, value in top.items()}}


class kube_environment:  # pylint: disable=invalid-name
    """Set variables of the process, None removes one, and put everything back."""

    def __init__(self, **values: Optional[str]) -> None:
        """Remember what to set; the variables of proxies and kubeconfigs start empty."""
        absent = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy",
                                "https_proxy",
                                "no_proxy", "all_proxy", "KUBECONFIG", "KUBERNETES_SERVICE_HOST",
                                "KUBERNETES_MASTER"))
        self.values: Dict[str, Optional[str]] = {**absent, **values}

    def __enter__(self) -> None:
        """Set them."""
        self.before = dict(os.environ)
        for name, value in self.values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    def __exit__(self, *_: Any) -> None:
        """Put them back."""
        os.environ.clear()
        os.environ.update(self.before)


class KubeCase(NamedTuple):
    """One way to be configured, and what kubectl makes of it: server, caller, and whom it impersonates."""

    what: str
    expected: str
    files: Dict[str, Any]
    context: str = ""
    kubeconfig: str = "@DIR@/config"
    environment: Dict[str, Optional[str]] = {}


def kube_verdict(failed: bool) -> str:
    """What the servers saw since they were told to forget, in words; `error` when nothing came."""
    for name, server in kube_servers().items():
        calls = [request for request in server.seen() if request.method != "CONNECT"]
        if calls and name != "proxy":
            request = calls[-1]
            scheme, _, secret = request.headers.get("authorization", "").partition(" ")
            who = f"certificate {request.user}" if request.user else "nobody"
            if scheme:
                who = f"basic {base64.b64decode(secret).decode()}" if scheme == "Basic" else f"token {secret}"
            ways = [way for way in ("proxy", "guarded", "secure") if kube_servers()[way].seen("CONNECT")]
            prefix = request.path[:request.path.rindex("/")]
            known = f" as {request.parsed['name']}" if (request.parsed or {}).get("name") else ""
            where = f"{name}{prefix}{known}{''.join(f' by {way}' for way in ways)}"
            return f"{where}: {who}{kube_impersonated(request)}{' but failed' if failed else ''}"
    return "error" if failed else "no call"


def kube_impersonated(request: Any) -> str:
    """The impersonation headers of a request, sorted; extra keys decoded, as the API server does."""
    pairs = sorted((unquote(name.lower()[12:]), value.encode("latin-1").decode("utf-8", "replace"))
                   for name, value in request.header_list if name.lower().startswith("impersonate-"))
    return "".join(f", {name}={value}" for name, value in pairs)


def kube_forget() -> None:
    """Empty the logs of all servers."""
    for server in kube_servers().values():
        server.forget()


def kube_call(kubeconfig: str = "", context: str = "") -> Document:
    """One call of ours, as the commands make it."""
    api = velero_requests.connect(velero_requests.load_cluster(kubeconfig, context))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # it was asked for
        try:
            return velero_requests.call(api, "GET", "/version")
        finally:
            api.login.door.pool.close()


class KubeFolder(unittest.TestCase):
    """A test with a folder of its own, and servers that have seen nothing."""

    def setUp(self) -> None:
        """Make the folder, and the empty one that stands for HOME."""
        self.folder = tempfile.mkdtemp(prefix="velero-requests-kube-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.home = os.path.join(self.folder, "home")
        os.mkdir(self.home)
        kube_forget()

    def write(self, content: Any, name: str = "config") -> str:
        """Write a file and return its path."""
        return kube_write(self.folder, name, content)

    def cluster(self, document: Any, context: str = "") -> Any:
        """The cluster that a kubeconfig leads to."""
        return velero_requests.load_cluster(self.write(document), context)


KUBE_EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
             "command": "./plugin"}
KUBE_TOKEN_PLUGIN = """#!/bin/sh
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "p"}}'
"""
KUBE_CA = {"certificate-authority-data": "@CA@"}
KUBE_CERT = {"client-certificate-data": "@CERT@", "client-key-data": "@KEY@"}
KUBE_PLAIN = {"server": "http://@HTTP@"}


def kube_case(what: str, expected: str, user: Any = None, cluster: Any = None, context: Any = None, *,
              files: Any = None, choose: str = "", **top: Any) -> KubeCase:
    """A case with one kubeconfig file and whatever other files it speaks of."""
    return KubeCase(what, expected, {"config": kube_config(user, cluster, context, **top), **(files or {})},
                    choose)


def kube_list(what: str, expected: str, listed: str, **files: Any) -> KubeCase:
    """A case with a KUBECONFIG list; each file is named by a letter."""
    return KubeCase(what, expected, files, "", "", {"KUBECONFIG": listed})


def kube_yaml(what: str, expected: str, token: str) -> KubeCase:
    """A case whose token is written so, unquoted, in YAML."""
    text = yaml.safe_dump(kube_config({"token": "TOKEN"}), sort_keys=False)
    return KubeCase(what, expected, {"config": text.replace("TOKEN", token)})


def kube_text(what: str, expected: str, change: Callable[[str], str]) -> KubeCase:
    """A case whose file is the text of a good one, changed."""
    return KubeCase(what, expected, {"config": change(yaml.safe_dump(kube_config(), sort_keys=False))})


def kube_answer(what: str, expected: str, answer: Any, version: str = "v1", ending: str = "") -> KubeCase:
    """A case with a plugin that prints an answer: a status, or a text as it is."""
    api_version = f"client.authentication.k8s.io/{version}"
    if isinstance(answer, dict):
        answer = json.dumps({"apiVersion": api_version, "kind": "ExecCredential", **answer}, indent=1)
    return kube_case(what, expected, {"exec": {**KUBE_EXEC, "apiVersion": api_version}},
                     files={"plugin": f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n{ending}"})


def kube_status(**status: Any) -> Document:
    """The answer of a plugin with this status."""
    return {"status": status}


KUBE_PAIR = {"clientCertificateData": "@TEXT:alice.crt@", "clientKeyData": "@TEXT:alice.key@"}
KUBE_ANSWERS: Tuple[KubeCase, ...] = (
    kube_answer("a token", "https: token p", kube_status(token="p")),
    kube_answer("a token of v1beta1", "https: token p", kube_status(token="p"), "v1beta1"),
    kube_answer("a certificate", "https: certificate alice", kube_status(**KUBE_PAIR)),
    kube_answer("both", "https: token p", kube_status(token="p", **KUBE_PAIR)),
    kube_answer("a certificate without key", "error",
                kube_status(token="p", clientCertificateData=KUBE_PAIR["clientCertificateData"])),
    kube_answer("a key without certificate", "error",
                kube_status(token="p", clientKeyData=KUBE_PAIR["clientKeyData"])),
    kube_answer("a certificate that is none", "error",
                kube_status(clientCertificateData="x", clientKeyData="y")),
    kube_answer("a certificate with another's key", "error",
                kube_status(clientCertificateData=KUBE_PAIR["clientCertificateData"],
                            clientKeyData="@TEXT:bob.key@")),
    kube_answer("an empty status", "error", kube_status()),
    kube_answer("no status", "error", {}),
    kube_answer("a null status", "error", {"status": None}),
    kube_answer("an empty token", "error", kube_status(token="")),
    kube_answer("a token that is a number", "error", kube_status(token=5)),
    kube_answer("a token with a line end", "error", kube_status(token="p\n")),
    kube_answer("a certificate that is a number", "error", kube_status(token="p", clientCertificateData=5)),
    kube_answer("an end in the past", "https: token p",
                kube_status(token="p", expirationTimestamp="2020-01-01T00:00:00Z")),
    kube_answer("an end in the future", "https: token p",
                kube_status(token="p", expirationTimestamp="2199-01-01T00:00:00.5+02:00")),
    kube_answer("no end", "https: token p", kube_status(token="p", expirationTimestamp=None)),
    kube_answer("an end in words", "error", kube_status(token="p", expirationTimestamp="tomorrow")),
    kube_answer("an empty end", "error", kube_status(token="p", expirationTimestamp="")),
    kube_answer("an end in seconds", "error", kube_status(token="p", expirationTimestamp=1900000000)),
    kube_answer("an end without a zone", "error",
                kube_status(token="p", expirationTimestamp="2199-01-01T00:00:00")),
    kube_answer("another version", "error",
                {"apiVersion": "client.authentication.k8s.io/v1beta1", **kube_status(token="p")}),
    kube_answer("no version", "error", {"apiVersion": "", **kube_status(token="p")}),
    kube_answer("no kind", "https: token p", {"kind": "", **kube_status(token="p")}),
    kube_answer("another kind", "error", {"kind": "Secret", **kube_status(token="p")}),
    kube_answer("fields that nobody knows", "https: token p",
                {"more": 1, "status": {"token": "p", "Token": 5}}),
    kube_answer("YAML", "https: token p",
                "apiVersion: client.authentication.k8s.io/v1\nkind: ExecCredential\nstatus: {token: p}"),
    kube_answer("nothing", "error", ""),
    kube_answer("rubbish", "error", "@@ [ {"),
    kube_answer("a page", "error", "<html></html>"),
    kube_answer("a list", "error", "[]"),
    kube_answer("an exit code", "error", kube_status(token="p"), ending="exit 3"),
    kube_answer("a signal", "error", kube_status(token="p"), ending="kill -9 $$"),
)


def kube_plugin_case(what: str, expected: str, where: str, path: str = "@PATH@",
                     text: str = KUBE_TOKEN_PLUGIN,
                     **fields: Any) -> KubeCase:
    """A case with a plugin at a place below the folder, and the PATH to look on."""
    user = {"exec": {**KUBE_EXEC, **fields}}
    return KubeCase(what, expected, {"config": kube_config(user), where: text}, "", "@DIR@/config",
                    {"PATH": path})


KUBE_PLACES: Tuple[KubeCase, ...] = (
    kube_plugin_case("a bare name on the PATH", "https: token p", "bin/kube-plugin", "@DIR@/bin:@PATH@",
                     command="kube-plugin"),
    kube_plugin_case("a bare name beside the file", "error", "kube-plugin", command="kube-plugin"),
    kube_plugin_case("the plugin's own PATH", "error", "bin/kube-plugin", command="kube-plugin",
                     env=[{"name": "PATH", "value": "@DIR@/bin"}]),
    kube_plugin_case("an absolute path", "https: token p", "bin/kube-plugin",
                     command="@DIR@/bin/kube-plugin"),
    kube_plugin_case("a relative path", "https: token p", "bin/kube-plugin",
                     command="bin/../bin/kube-plugin"),
    kube_plugin_case("a file that may not be run", "error", "bin/other", command="bin/other"),
    kube_plugin_case("a folder", "error", "bin/kube-plugin", command="./bin"),
    kube_plugin_case("a file without an interpreter", "error", "kube-plugin", command="./kube-plugin",
                     text="rubbish"),
    kube_plugin_case("a variable of its own", "https: token v", "plugin", env=[{"name": "OWN", "value": "v"}],
                     text=KUBE_TOKEN_PLUGIN.replace('"p"', '"\'$OWN\'"')),
    kube_plugin_case("arguments as they are", "https: token a b$x", "plugin", args=["a b$x"],
                     text=KUBE_TOKEN_PLUGIN.replace('"p"', '"\'"$1"\'"')),
    kube_plugin_case("no terminal to ask on", "error", "plugin", interactiveMode="Always"),
    kube_plugin_case("a terminal if there is one", "https: token p", "plugin", interactiveMode="IfAvailable"),
)

KUBE_CASES: Tuple[KubeCase, ...] = (
    # who calls
    kube_case("a token", "https: token t"),
    kube_case("a token file", "https: token f", {"tokenFile": "token"}, files={"token": "f"}),
    kube_case("a token file with a line end", "https: token f", {"tokenFile": "token"},
              files={"token": "f\n"}),
    kube_case("a token file beats a token", "https: token f", {"token": "t", "tokenFile": "token"},
              files={"token": "f"}),
    kube_case("a missing token file leaves the token", "https: token t", {"token": "t", "tokenFile": "gone"}),
    kube_case("an empty token file leaves the token", "https: token t", {"token": "t", "tokenFile": "token"},
              files={"token": ""}),
    kube_case("a missing token file", "error", {"tokenFile": "gone"}),
    kube_case("a password", "https: basic u:p", {"username": "u", "password": "p"}),
    kube_case("a password of all letters", "https: basic jü:ß", {"username": "jü", "password": "ß"}),
    kube_case("a user without password", "https: basic u:", {"username": "u"}),
    kube_case("nobody", "https: nobody", {}),
    kube_case("a certificate", "https: certificate alice", KUBE_CERT),
    kube_case("a certificate in files", "https: certificate alice",
              {"client-certificate": "pki/a.crt", "client-key": "@DIR@/a.key"},
              files={"pki/a.crt": kube_bytes("alice.crt"), "a.key": kube_bytes("alice.key")}),
    kube_case("a certificate in a file, its key inline", "https: certificate alice",
              {"client-certificate": "a.crt", "client-key-data": "@KEY@"},
              files={"a.crt": kube_bytes("alice.crt")}),
    kube_case("a certificate and a token", "https: token t", {**KUBE_CERT, "token": "t"}),
    kube_case("a certificate with another's key", "error", {**KUBE_CERT, "client-key-data": "@BOBKEY@"}),
    kube_case("a certificate without key", "error", {"client-certificate-data": "@CERT@"}),
    kube_case("a key without certificate, and a token", "https: token t",
              {"client-key-data": "@KEY@", "token": "t"}),
    kube_case("a certificate both ways", "error", {**KUBE_CERT, "client-certificate": "@PKI@/alice.crt"}),
    kube_case("a key both ways", "error", {**KUBE_CERT, "client-key": "@PKI@/alice.key"}),
    kube_case("a missing certificate file", "error",
              {"client-certificate": "gone", "client-key-data": "@KEY@"}),
    kube_case("a token and a password", "error", {"token": "t", "username": "u"}),
    kube_case("a token and only a password", "error", {"token": "t", "password": "p"}),
    kube_case("a token file and a password", "error", {"tokenFile": "token", "username": "u"},
              files={"token": "f"}),
    kube_case("a password without user", "https: nobody", {"password": "p"}),
    kube_case("a token with a line end", "error", {"token": "t\n"}),
    kube_case("base64 with line ends", "https: certificate alice",
              {"client-certificate-data": "@CERT@\n", "client-key-data": "\r\n@KEY@"}),
    kube_case("base64 with a blank", "error", {**KUBE_CERT, "client-key-data": "@KEY@ "}),
    kube_case("base64 without its end", "error", {**KUBE_CERT, "client-key-data": "QUI"}),
    # impersonation
    kube_case("as a user", "https: token t, user=jane", {"token": "t", "as": "jane"}),
    kube_case("as somebody with everything",
              "https: token t, extra-a/b=1, extra-a/b=2, group=g, group=h, uid=7, user=j",
              {"token": "t", "as": "j", "as-uid": "7", "as-groups": ["g", "h"],
               "as-user-extra": {"A/b": ["1", "2"]}}),
    kube_case("as somebody, extra keys with signs", "https: token t, extra-a!b+c%é=1, user=j",
              {"token": "t", "as": "j", "as-user-extra": {"a!b+c%é": ["1"]}}),
    kube_case("as somebody of other letters", "https: token t, user=jürgen", {"token": "t", "as": "jürgen"}),
    kube_case("as somebody of far letters", "https: token t, user=名", {"token": "t", "as": "名"}),
    kube_case("as two lines", "error", {"token": "t", "as": "a\nb"}),
    kube_case("groups without a user", "error", {"token": "t", "as-groups": ["g"]}),
    kube_case("a uid without a user", "error", {"token": "t", "as-uid": "1"}),
    kube_case("extra without a user", "error", {"token": "t", "as-user-extra": {"a": ["b"]}}),
    kube_case("an extra key without values", "https: token t, user=j",
              {"token": "t", "as": "j", "as-user-extra": {"a": []}}),
    # plugins
    kube_case("a plugin", "https: token p", {"exec": KUBE_EXEC}, files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin and a token", "https: token t", {"token": "t", "exec": KUBE_EXEC},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin and a certificate", "https: certificate alice", {**KUBE_CERT, "exec": KUBE_EXEC},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin and a user name", "https: basic u:", {"username": "u", "exec": KUBE_EXEC},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin and a password without user", "https: token p", {"password": "p", "exec": KUBE_EXEC},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin and a key without certificate", "https: token p", {"client-key-data": "@KEY@",
                                                                          "exec": KUBE_EXEC},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin that is not there", "error", {"exec": KUBE_EXEC}),
    kube_case("a plugin without interactiveMode", "error", {"exec": {**KUBE_EXEC, "interactiveMode": None}},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin with an odd interactiveMode", "error",
              {"exec": {**KUBE_EXEC, "interactiveMode": "never"}},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin of an old version", "error",
              {"exec": {**KUBE_EXEC, "apiVersion": "client.authentication.k8s.io/v1alpha1"}},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin of no version", "error", {"exec": {**KUBE_EXEC, "apiVersion": ""}},
              files={"plugin": KUBE_TOKEN_PLUGIN}),
    kube_case("a plugin without command", "error", {"token": "t", "exec": {**KUBE_EXEC, "command": ""}}),
    kube_case("a plugin that is an empty mapping", "error", {"token": "t", "exec": {}}),
    kube_case("a plugin that is null", "https: token t", {"token": "t", "exec": None}),
    kube_case("a plugin with a nameless variable", "error",
              {"token": "t", "exec": {**KUBE_EXEC, "env": [{"value": "x"}]}}),
    kube_case("a plugin with a null variable", "error", {"token": "t", "exec": {**KUBE_EXEC, "env": [None]}}),
    kube_case("a plugin and an auth-provider", "error",
              {"token": "t", "exec": KUBE_EXEC, "auth-provider": {"name": "gcp"}}),
    kube_case("an auth-provider that is gone", "error", {"auth-provider": {"name": "gcp"}}),
    kube_case("an auth-provider without a name", "error", {"token": "t", "auth-provider": {}}),
    # where to, and whom to trust
    kube_case("an authority in a file", "https: token t", None, {"certificate-authority": "pki/ca"},
              files={"pki/ca": kube_bytes("ca.crt")}),
    kube_case("a missing authority", "error", None, {"certificate-authority": "gone"}),
    kube_case("an authority both ways", "error", None, {**KUBE_CA, "certificate-authority": "@PKI@/ca.crt"}),
    kube_case("no authority", "error", None, {}),
    kube_case("an authority that is no PEM", "error", None, {"certificate-authority-data": "QUJD"}),
    kube_case("an empty authority file", "error", None, {"certificate-authority": "ca"}, files={"ca": ""}),
    kube_case("an authority with a bad block before it", "https: token t", None,
              {"certificate-authority": "ca"},
              files={"ca": kube_bytes("ca.crt").replace(b"MII", b"QUJD", 1) + kube_bytes("ca.crt")}),
    kube_case("an authority after a comment", "https: token t", None, {"certificate-authority": "ca"},
              files={"ca": "# é\n".encode() + kube_bytes("ca.crt")}),
    kube_case("another authority", "error", None, {"certificate-authority": "@PKI@/alice.crt"}),
    kube_case("insecure", "https: token t", None, {"insecure-skip-tls-verify": True}),
    kube_case("insecure with an authority", "error", None, {**KUBE_CA, "insecure-skip-tls-verify": True}),
    kube_case("insecure with an expired certificate", "expired: token t", None,
              {"server": "https://@EXPIRED@", "insecure-skip-tls-verify": True}),
    kube_case("an expired certificate", "error", None, {**KUBE_CA, "server": "https://@EXPIRED@"}),
    kube_case("a certificate of another name", "error", None, {**KUBE_CA, "server": "https://@NAMED@"}),
    kube_case("tls-server-name", "named as kubernetes.default.svc: token t", None,
              {**KUBE_CA, "server": "https://@NAMED@", "tls-server-name": "kubernetes.default.svc"}),
    kube_case("tls-server-name with a wildcard", "named as a.example.com: token t", None,
              {**KUBE_CA, "server": "https://@NAMED@", "tls-server-name": "a.example.com"}),
    kube_case("a wrong tls-server-name", "error", None,
              {**KUBE_CA, "server": "https://@NAMED@", "tls-server-name": "b.a.example.com"}),
    kube_case("tls-server-name and insecure", "named as x.y: token t", None,
              {"server": "https://@NAMED@", "tls-server-name": "x.y", "insecure-skip-tls-verify": True}),
    kube_case("a certificate with nothing but a common name", "error", None,
              {**KUBE_CA, "server": "https://@NAMELESS@", "tls-server-name": "localhost"}),
    kube_case("an http server gets no token", "http: nobody", None, KUBE_PLAIN),
    kube_case("an http server in capitals gets no token", "http: nobody", None, {"server": "HTTP://@HTTP@"}),
    kube_case("an http server gets no password", "http: nobody", {"username": "u", "password": "p"},
              KUBE_PLAIN),
    kube_case("an http server runs no plugin", "http: nobody", {"exec": KUBE_EXEC}, KUBE_PLAIN),
    kube_case("an http server needs no token file", "http: nobody", {"tokenFile": "gone"}, KUBE_PLAIN),
    kube_case("an http server and a clash", "error", {"token": "t", "username": "u"}, KUBE_PLAIN),
    kube_case("an http server and a missing certificate", "error",
              {"client-certificate": "gone", "client-key": "gone"}, KUBE_PLAIN),
    kube_case("an http server and a missing authority", "error", None,
              {**KUBE_PLAIN, "certificate-authority": "gone"}),
    kube_case("an http server is told whom to be", "http: nobody, user=j", {"token": "t", "as": "j"},
              KUBE_PLAIN),
    kube_case("https in capitals", "https: token t", None, {**KUBE_CA, "server": "HTTPS://@HTTPS@"}),
    kube_case("a server without a scheme", "http: nobody", None, {"server": "@HTTP@"}),
    kube_case("a server without a scheme, with a path", "error", None, {"server": "@HTTP@/x"}),
    kube_case("a server without a scheme, with an authority", "http: nobody", None,
              {**KUBE_CA, "server": "@HTTP@"}),
    kube_case("a server of another scheme", "error", None, {"server": "ftp://@HTTP@"}),
    kube_case("no server", "error", None, {"server": ""}),
    kube_case("a server with a slash", "https: token t", None, {**KUBE_CA, "server": "https://@HTTPS@/"}),
    kube_case("a server with a path", "https/k8s/c-1: token t", None,
              {**KUBE_CA, "server": "https://@HTTPS@/k8s/c-1/"}),
    kube_case("a server with a query", "https/k8s: token t", None,
              {**KUBE_CA, "server": "https://@HTTPS@/k8s?a=b#c"}),
    kube_case("a server with a password", "https: basic u:p", KUBE_CERT,
              {**KUBE_CA, "server": "https://u:p@@HTTPS@"}),
    kube_case("a server by name", "https as localhost: token t", None,
              {**KUBE_CA, "server": "https://localhost:@PORT@"}),
    # proxies
    kube_case("a proxy", "https by proxy: token t", None, {**KUBE_CA, "proxy-url": "http://@PROXY@"}),
    kube_case("a proxy with a password", "https by guarded: token t", None,
              {**KUBE_CA, "proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}),
    kube_case("a proxy with a wrong password", "error", None,
              {**KUBE_CA, "proxy-url": "http://me:no@@GUARDED@"}),
    kube_case("an https proxy", "https by secure: token t", None,
              {**KUBE_CA, "proxy-url": "https://@SECURE@"}),
    kube_case("an https proxy that is not trusted", "error", None, {"proxy-url": "https://@SECURE@"}),
    kube_case("a proxy that is not there", "error", None, {**KUBE_CA, "proxy-url": "http://127.0.0.1:1"}),
    kube_case("a proxy without a scheme", "error", None, {**KUBE_CA, "proxy-url": "@PROXY@"}),
    kube_case("a proxy of another scheme", "error", None, {**KUBE_CA, "proxy-url": "ftp://@PROXY@"}),
    # contexts and names
    kube_case("no current-context", "error", current_context=""),
    kube_case("an unknown current-context", "error", current_context="gone"),
    kube_case("an unknown context", "error", choose="gone"),
    kube_case("a chosen context", "https: token t", current_context="gone", choose="c"),
    kube_case("a context with an unknown cluster", "error", context={"cluster": "gone", "user": "c"}),
    kube_case("a context with an unknown user", "https: nobody", context={"cluster": "c", "user": "gone"}),
    kube_case("a context without a user", "https: nobody", context={"cluster": "c"}),
    kube_case("a context that is null", "error", contexts=[{"name": "c"}]),
    kube_case("a user without a name", "https: token t", context={"cluster": "c"},
              users=[{"user": {"token": "t"}}]),
    kube_case("a user without a name beside the one in use", "https: token t",
              users=[{"user": {"token": "x"}}, {"name": "c", "user": {"token": "t"}}]),
    kube_case("a user without content", "https: nobody", users=[{"name": "c"}]),
    kube_case("two users of one name", "error", users=[{"name": "c", "user": {"token": "t"}}, {"name": "c"}]),
    kube_case("two clusters of one name, unused", "error",
              clusters=[{"name": "c", "cluster": {**KUBE_CA, "server": "https://@HTTPS@"}}, {"name": "d"},
                        {"name": "d"}]),
    kube_case("two users without names", "error", users=[{"name": "c", "user": {"token": "t"}}, {}, {}]),
    kube_case("null users", "error", users=[{"name": "c", "user": {"token": "t"}}, None, None]),
    # types
    kube_case("insecure as text", "error", None, {"insecure-skip-tls-verify": "true"}),
    kube_case("insecure as a number", "error", None, {"insecure-skip-tls-verify": 1}),
    kube_case("groups as text", "error", {"token": "t", "as": "j", "as-groups": "g"}),
    kube_case("a token that is a number", "error", {"token": 12345}),
    kube_case("a token that is null", "https: nobody", {"token": None}),
    kube_case("a wrong type in an entry not in use", "error",
              users=[{"name": "c", "user": {"token": "t"}}, {"name": "d", "user": {"token": 5}}]),
    kube_case("a mistake in an entry not in use", "https: token t",
              users=[{"name": "c", "user": {"token": "t"}},
                     {"name": "d", "user": {"token": "t", "username": "u"}}]),
    kube_case("users as a mapping", "error", users={"c": {"token": "t"}}),
    kube_case("users null", "https: nobody", users=None),
    kube_case("preferences of a wrong type", "error", preferences="dark"),
    kube_case("preferences", "https: token t", preferences={"colors": True}),
    kube_case("preferences with a wrong type", "error", preferences={"colors": "yes"}),
    kube_case("extensions at the top", "https: token t", extensions=[{"name": "x", "extension": {"a": 1}}]),
    kube_case("extensions at the top of a wrong type", "error", extensions="x"),
    kube_case("two extensions of one name", "error", None,
              {**KUBE_CA, "extensions": [{"name": "x", "extension": {}}, {"name": "x", "extension": {}}]}),
    kube_case("an extension that is a text", "https: token t", None,
              {**KUBE_CA, "extensions": [{"name": "x", "extension": "y"}]}),
    kube_case("unknown fields", "https: token t", {"token": "t", "tokenfile": "gone", "Token": "x"},
              more=[1]),
    kube_case("a key that is a number", "https: token t", {"token": "t", 1: 2}),
    kube_case("another apiVersion", "error", apiVersion="v2"),
    kube_case("another kind", "error", kind="Secret"),
    kube_case("apiVersion and kind", "https: token t", apiVersion="v1", kind="Config"),
    kube_case("apiVersion that is empty", "https: token t", apiVersion="", kind=""),
    # scalars
    kube_yaml("a token that looks like a float", "error", "1e3"),
    kube_yaml("a token that looks octal", "error", "0o17"),
    kube_yaml("a token of digits with a wrong octal", "error", "0899"),
    kube_yaml("a token with an underscore", "error", "1_000"),
    kube_yaml("a token with an underscore in a float", "error", "1_000.5"),
    kube_yaml("a token that is y", "error", "y"),
    kube_yaml("a token that is off", "error", "off"),
    kube_yaml("a token like a time", "https: token 12:30:45", "12:30:45"),
    kube_yaml("a token like a date", "https: token 2026-11-22", "2026-11-22"),
    kube_yaml("a token like a moment", "https: token 2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
    kube_yaml("a token that is =", "https: token =", "="),
    kube_yaml("a token that is infinite", "error", ".inf"),
    kube_yaml("a token that is no number", "error", ".NaN"),
    kube_yaml("a token in base 16", "error", "0x1F"),
    kube_yaml("a token that ends like a float", "error", "1."),
    kube_yaml("a token with a tag", "https: token 12", "!!str 12"),
    kube_yaml("a binary token", "https: token hello", "!!binary aGVsbG8="),
    kube_yaml("a token with a tag of its own", "https: token x", "!own x"),
    kube_yaml("a token that is <<", "https: token <<", "<<"),
    kube_yaml("a token with a float and a sign", "error", "+.5e-3"),
    kube_yaml("a token like an address", "https: token 1.2.3", "1.2.3"),
    # the text
    kube_text("a byte order mark", "https: token t", lambda text: "\ufeff" + text),
    kube_text("a beginning and an end", "https: token t", lambda text: f"---\n{text}...\n"),
    kube_text("a second document", "https: token t", lambda text: f"{text}---\ncurrent-context: gone\n"),
    kube_text("rubbish in a second document", "https: token t", lambda text: f"{text}---\n@@ [\n"),
    kube_text("an empty first document", "error", lambda text: f"---\n---\n{text}"),
    kube_text("a directive", "https: token t", lambda text: f"%YAML 1.1\n---\n{text}"),
    kube_text("carriage returns", "https: token t", lambda text: text.replace("\n", "\r\n")),
    kube_text("a tab after a colon", "https: token t", lambda text: text.replace("token: ", "token:\t")),
    kube_text("a tab before a comment", "https: token t",
              lambda text: text.replace("token: t", "token: t\t# x")),
    kube_text("a tab that indents", "error", lambda text: text.replace("    token", "\ttoken")),
    kube_text("a tab on a blank line", "error", lambda text: text.replace("users:\n", "users:\n\t\n")),
    kube_text("a tab after a dash", "error",
              lambda text: text.replace("- name: c\n  user", "-\tname: c\n  user")),
    kube_text("a key twice", "https: token t",
              lambda text: text.replace("token: t", "token: x\n    token: t")),
    kube_text("an alias", "https: token t", lambda text: text.replace("token: t", "token: *x").replace(
        "current-context: c", "other: &x t\ncurrent-context: c")),
    kube_text("an unknown alias", "error", lambda text: text.replace("token: t", "token: *x")),
    kube_text("a merge key", "https: token t", lambda text: text.replace("token: t", "<<: *x").replace(
        "current-context: c", "other: &x {token: t}\ncurrent-context: c")),
    kube_text("JSON", "https: token t", lambda text: json.dumps(yaml.safe_load(text))),
    kube_text("JSON with tabs", "https: token t", lambda text: json.dumps(yaml.safe_load(text), indent="\t")),
    kube_text("JSON with something after it", "https: token t",
              lambda text: json.dumps(yaml.safe_load(text)) + " x"),
    kube_text("JSON with a comma too many", "https: token t",
              lambda text: json.dumps(yaml.safe_load(text))[:-1] + ",}"),
    kube_text("JSON with tabs and a comma too many", "https: token t",
              lambda text: json.dumps(yaml.safe_load(text), indent="\t")[:-1] + ",}"),
    kube_text("two JSON documents", "https: token t", lambda text: json.dumps(yaml.safe_load(text)) * 2),
    kube_text("a list", "error", lambda text: "[1]"),
    kube_text("a number", "error", lambda text: "5"),
    kube_text("a text", "error", lambda text: "hello"),
    kube_text("nothing", "error", lambda text: ""),
    kube_text("a comment", "error", lambda text: "# x\n"),
    KubeCase("Latin-1", "error", {"config": kube_fill("", "").encode() + b"token: \xe9\n"}),
    KubeCase("UTF-16", "https: token t", {"config": "utf16"}),
    # files
    KubeCase("a file that is not there", "error", {}),
    KubeCase("a folder", "error", {"config/x": "x"}),
    KubeCase("a relative path", "https: token f", {"config": kube_config({"tokenFile": "a/../b/token"}),
                                                   "b/token": "f"}),
    KubeCase("a path with a tilde", "error",
             {"config": kube_config({"tokenFile": "~/token"}), "home/token": "f"}),
    KubeCase("a path with a variable", "error", {"config": kube_config({"tokenFile": "$HOME/token"}),
                                                 "home/token": "f"}),
    KubeCase("the file at home", "https: token t", {"home/.kube/config": kube_config()}, "", ""),
    KubeCase("no file at home", "error", {}, "", ""),
    kube_list("one member", "https: token t", "@DIR@/a", a=kube_config()),
    kube_list("an absent member", "https: token t", "@DIR@/gone:@DIR@/a", a=kube_config()),
    kube_list("empty and repeated members", "https: token t", ":@DIR@/a::@DIR@/a:", a=kube_config()),
    kube_list("an empty file", "https: token t", "@DIR@/b:@DIR@/a", a=kube_config(), b=""),
    kube_list("the first file's user", "https: token b", "@DIR@/b:@DIR@/a", a=kube_config(),
              b={"users": [{"name": "c", "user": {"token": "b"}}]}),
    kube_list("no fields of the second file's user", "https: token b", "@DIR@/b:@DIR@/a",
              a=kube_config({"username": "u"}), b={"users": [{"name": "c", "user": {"token": "b"}}]}),
    kube_list("an empty entry of the first file", "https: nobody", "@DIR@/b:@DIR@/a", a=kube_config(),
              b={"users": [{"name": "c"}]}),
    kube_list("the first current-context", "https: token b", "@DIR@/b:@DIR@/a",
              a=kube_config(current_context="gone"),
              b={"current-context": "d", "users": [{"name": "d", "user": {"token": "b"}}],
                 "contexts": [{"name": "d", "context": {"cluster": "c", "user": "d"}}]}),
    kube_list("an empty first current-context", "https: token t", "@DIR@/b:@DIR@/a", a=kube_config(),
              b={"current-context": ""}),
    kube_list("a broken second file", "error", "@DIR@/a:@DIR@/b", a=kube_config(), b="[1"),
    kube_list("a wrong type in a second file", "error", "@DIR@/a:@DIR@/b", a=kube_config(), b={"users": 5}),
    kube_list("a wrong kind of a second file", "error", "@DIR@/a:@DIR@/b", a=kube_config(),
              b={"kind": "Pod"}),
    kube_list("relative paths of each file", "https: token f", "@DIR@/b/c:@DIR@/a", a=kube_config(
        {"tokenFile": "gone"}), **{"b/c": {"users": [{"name": "c", "user": {"tokenFile": "token"}}]},
                                   "b/token": "f"}),
    kube_list("a folder as a member", "error", "@DIR@/a:@DIR@/home", a=kube_config()),
    kube_list("a member below a file", "error", "@DIR@/a:@DIR@/a/b", a=kube_config()),
    KubeCase("absent members keep the file at home out", "error", {"home/.kube/config": kube_config()}, "",
             "",
             {"KUBECONFIG": "@DIR@/gone"}),
    KubeCase("a colon keeps the file at home out", "error", {"home/.kube/config": kube_config()}, "", "",
             {"KUBECONFIG": ":"}),
    KubeCase("an empty KUBECONFIG is none", "https: token t", {"home/.kube/config": kube_config()}, "", "",
             {"KUBECONFIG": ""}),
    KubeCase("a flag beats KUBECONFIG", "https: token t",
             {"config": kube_config(), "b": kube_config({"token": "b"})},
             "", "@DIR@/config", {"KUBECONFIG": "@DIR@/b"}),
    KubeCase("a proxy of the environment is not for loopback", "https: token t", {"config": kube_config()},
             "",
             "@DIR@/config", {"HTTPS_PROXY": "http://@PROXY@"}),
    KubeCase("a proxy of the environment", "named as a.example.com by proxy: token t",
             {"config": kube_config(None, {**KUBE_CA, "server": "https://a.example.com:@NAMEDPORT@"})}, "",
             "@DIR@/config", {"HTTPS_PROXY": "http://@PROXY@"}),
    KubeCase("a proxy of the environment without a scheme", "named as a.example.com by proxy: token t",
             {"config": kube_config(None, {**KUBE_CA, "server": "https://a.example.com:@NAMEDPORT@"})}, "",
             "@DIR@/config", {"https_proxy": "@PROXY@"}),
)


class KubeCases(KubeFolder):
    """What the tests of the table share."""

    def lay_out(self, case: KubeCase, folder: str) -> Tuple[str, Dict[str, Optional[str]]]:
        """Write the files of a case; its kubeconfig flag and its environment."""
        os.makedirs(os.path.join(folder, "home"))
        for name, content in case.files.items():
            if content == "utf16":
                content = kube_fill(yaml.safe_dump(kube_config(), sort_keys=False), folder).encode("utf-16")
            os.chmod(kube_write(folder, name, content), 0o755 if name.endswith("plugin") else 0o644)
        variables = {name: kube_fill(value or "", folder) for name, value in case.environment.items()}
        return kube_fill(case.kubeconfig, folder), {"HOME": os.path.join(folder, "home"), **variables}

    def check(self, resolve: Callable[[str, str], str]) -> None:
        """Compare what a resolver makes of each case with what the tables say."""
        for number, case in enumerate(KUBE_CASES + KUBE_ANSWERS + KUBE_PLACES):
            folder = os.path.join(self.folder, str(number))
            path, variables = self.lay_out(case, folder)
            kube_forget()
            with self.subTest(case.what), kube_environment(**variables):
                self.assertEqual(resolve(path, case.context), case.expected)


class TestKubeconfigLikeKubectl(KubeCases):
    """One table of kubeconfigs: kubectl does what it says, and so do we."""

    def test_we_do_what_the_table_says(self) -> None:
        """Each kubeconfig leads to the server and the caller of the table, or to an Error and no call."""

        def ours(path: str, context: str) -> str:
            try:
                kube_call(path, context)
            except velero_requests.Error:
                return kube_verdict(True)
            return kube_verdict(False)

        self.check(ours)

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_does_what_the_table_says(self) -> None:
        """The table is what kubectl does; where it would ask for a name, we go on as nobody."""

        def theirs(path: str, context: str) -> str:
            command = [str(KUBECTL), "version", "-o", "json", *(["--kubeconfig", path] if path else []),
                       *(["--context", context] if context else [])]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False,
                                  stderr=subprocess.STDOUT, timeout=20)
            if b"Please enter Username" in done.stdout:
                return "https: nobody"
            return kube_verdict(bool(done.returncode))

        self.check(theirs)


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: exec plugins, with a real program
# ------------------------------------------------------------------------------------------------------------

KUBE_STUB = """#!/bin/sh
cd "$(dirname "$0")"
printf '%s' "$KUBERNETES_EXEC_INFO" > info
printf '%s|' "$@" > arguments
env > environment
cat > stdin
echo run >> runs
test -f code && exit "$(cat code)"
cat answer
"""


class KubePlugins(KubeFolder):
    """Tests with a plugin that notes what it is told, and prints what the test wants."""

    def setUp(self) -> None:
        """Write the program; it answers with a token that lasts."""
        super().setUp()
        os.chmod(self.write(KUBE_STUB, "plugin"), 0o755)
        self.answer(token="p")

    def answer(self, version: str = "v1", **status: Any) -> None:
        """What the program prints from now on."""
        self.write(json.dumps({"apiVersion": f"client.authentication.k8s.io/{version}",
                               "kind": "ExecCredential",
                               "status": status}), "answer")

    def said(self, name: str) -> str:
        """What the program noted."""
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read()

    def runs(self) -> int:
        """How often it ran."""
        return len(self.said("runs").split()) if os.path.exists(os.path.join(self.folder, "runs")) else 0

    def config(self, cluster: Any = None, **fields: Any) -> str:
        """A kubeconfig with this plugin."""
        return self.write(kube_config({"exec": {**KUBE_EXEC, **fields}}, cluster))

    def connect(self, cluster: Any = None, **fields: Any) -> Any:
        """An Api with this plugin; its connections are closed in the end."""
        api = velero_requests.connect(velero_requests.load_cluster(self.config(cluster, **fields)))
        self.addCleanup(lambda: api.login.door.pool.close())  # pylint: disable=unnecessary-lambda
        return api

    def call(self, api: Any, method: str = "GET", **more: Any) -> Document:
        """One call."""
        return velero_requests.call(api, method, "/version", **more)

    def seen(self) -> List[str]:
        """What the server saw of the callers, in order."""
        calls = kube_server("tls").seen()
        return [request.headers.get("authorization") or str(request.user) for request in calls]


class TestExecPluginIsTold(KubePlugins):
    """What a plugin is told: KUBERNETES_EXEC_INFO, environment, arguments, stdin."""

    EXTENSION = {"name": "client.authentication.k8s.io/exec", "extension": {
        "port": 8443, "float": 1.5, "text": "x", "on": True, "none": None, "list": [1, "2"],
        "big": 12345678901}}
    CLUSTERS: Tuple[Tuple[str, Document], ...] = (
        ("an authority", KUBE_CA),
        ("an authority in a file", {"certificate-authority": "@PKI@/ca.crt"}),
        ("a path and a slash", {**KUBE_CA, "server": "https://@HTTPS@/k8s/"}),
        ("a slash", {**KUBE_CA, "server": "https://@HTTPS@/"}),
        ("insecure", {"insecure-skip-tls-verify": True}),
        ("a name", {**KUBE_CA, "server": "https://@NAMED@", "tls-server-name": "a.example.com"}),
        ("a proxy", {**KUBE_CA, "proxy-url": "http://@PROXY@"}),
        ("a proxy with a password", {**KUBE_CA, "proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}),
        ("no compression", {**KUBE_CA, "disable-compression": True}),
        ("an extension", {**KUBE_CA, "extensions": [{"name": "other", "extension": {"a": 1}}, EXTENSION]}),
        ("an empty extension", {**KUBE_CA, "extensions": [{"name": EXTENSION["name"]}]}),
        ("a text as extension", {**KUBE_CA, "extensions": [{"name": EXTENSION["name"], "extension": "x"}]}),
        ("other extensions", {**KUBE_CA, "extensions": [{"name": "other", "extension": {"a": 1}}]}))

    def told(self, how: Callable[[str], Any], cluster: Document, version: str, **fields: Any) -> Any:
        """What the plugin hears when a call is made somehow."""
        self.answer(version, token="p")
        how(self.config(cluster, apiVersion=f"client.authentication.k8s.io/{version}", **fields))
        return json.loads(self.said("info"))

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_the_same_as_by_kubectl(self) -> None:
        """A plugin hears from us, to the letter of the JSON, what it hears from kubectl."""

        def kubectl(path: str) -> Any:
            return subprocess.run([str(KUBECTL), "--kubeconfig", path, "version"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True, timeout=20)

        for what, cluster in self.CLUSTERS:
            for version, more in (("v1", {"provideClusterInfo": True}),
                                  ("v1beta1", {"provideClusterInfo": True}),
                                  ("v1", {}), ("v1beta1", {"interactiveMode": None})):
                if more.get("provideClusterInfo") and version == "v1" or what == "an authority":
                    with self.subTest(what, version=version, more=more):
                        self.assertEqual(self.told(kube_call, cluster, version, **more),
                                         self.told(kubectl, cluster, version, **more))

    def test_cluster_info(self) -> None:
        """With provideClusterInfo the plugin hears where it logs in, and what the cluster tells plugins."""
        cluster = {**KUBE_CA, "server": "https://@NAMED@", "tls-server-name": "a.example.com",
                   "extensions": [self.EXTENSION]}
        told = self.told(kube_call, cluster, "v1beta1", provideClusterInfo=True)
        self.assertEqual(told, {
            "apiVersion": "client.authentication.k8s.io/v1beta1", "kind": "ExecCredential",
            "spec": {"interactive": False, "cluster": {
                "server": kube_fill("https://@NAMED@", ""), "tls-server-name": "a.example.com",
                "certificate-authority-data": kube_base64("ca.crt"), "config": self.EXTENSION["extension"]}}})

    def test_no_cluster_info(self) -> None:
        """Without provideClusterInfo the plugin hears nothing of the cluster."""
        for version in ("v1", "v1beta1"):
            told = self.told(kube_call, KUBE_CA, version)
            self.assertEqual(told, {"apiVersion": f"client.authentication.k8s.io/{version}",
                                    "kind": "ExecCredential", "spec": {"interactive": False}})

    def test_arguments_and_environment(self) -> None:
        """Arguments go through no shell; listed variables beat our own, KUBERNETES_EXEC_INFO beats all."""
        with kube_environment(KUBE_OURS="ours", KUBE_BOTH="ours"):
            kube_call(self.config(args=["$HOME", "a b", "*"], env=[
                {"name": "KUBE_BOTH", "value": "x"}, {"name": "KUBE_BOTH", "value": "theirs"},
                {"name": "KUBE_EMPTY"},
                {"name": "KUBERNETES_EXEC_INFO", "value": "no"}]))
        self.assertEqual(self.said("arguments"), "$HOME|a b|*|")
        lines = self.said("environment").split("\n")
        for line in ("KUBE_OURS=ours", "KUBE_BOTH=theirs", "KUBE_EMPTY="):
            self.assertIn(line, lines)
        self.assertEqual(json.loads(self.said("info"))["kind"], "ExecCredential")

    def test_nothing_to_read(self) -> None:
        """Without a terminal the plugin's stdin is empty, whatever ours holds."""
        kube_program(["-n", "v", "backup", "logs", "b", "--kubeconfig",
                      self.config(interactiveMode="IfAvailable")],
                     stdin=b"ours")
        self.assertEqual((self.said("stdin"), self.runs() > 0), ("", True))

    def test_a_terminal(self) -> None:
        """With a terminal and a mode that allows it the plugin may ask, and hears so."""
        self.write(KUBE_STUB.replace("cat > stdin", "read -r line; echo $line > stdin"), "plugin")
        for mode, interactive in (("Always", True), ("IfAvailable", True), ("Never", False)):
            with self.subTest(mode):
                ours, theirs = os.openpty()
                os.write(ours, b"typed\n")
                try:
                    kube_program(["-n", "v", "backup", "logs", "b", "--kubeconfig",
                                  self.config(interactiveMode=mode)],
                                 stdin=theirs)
                finally:
                    os.close(ours)
                    os.close(theirs)
                self.assertEqual(self.said("stdin").strip(), "typed" if interactive else "")
                self.assertIs(json.loads(self.said("info"))["spec"]["interactive"], interactive)

    def test_stderr_is_ours(self) -> None:
        """What the plugin says on stderr is seen; what it prints on stdout is not."""
        self.write(KUBE_STUB.replace("cat answer", "echo please log in >&2; echo s3cr3t; exit 1"), "plugin")
        done = kube_program(["-n", "v", "backup", "logs", "b", "--kubeconfig", self.config()])
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertIn("please log in\n", done.stderr.decode())
        self.assertNotIn("s3cr3t", done.stderr.decode())


class TestExecPluginLife(KubePlugins):
    """How long an answer is used, who runs the plugin, and what follows from a refusal."""

    def expiring(self, seconds: float, **status: Any) -> None:
        """Answer with something that ends so many seconds from now."""
        end = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        self.answer(expirationTimestamp=end.strftime("%Y-%m-%dT%H:%M:%SZ"), **(status or {"token": "p"}))

    def test_the_answer_is_kept(self) -> None:
        """An answer that ends in more than 30 s, or never, is used again; another is asked for anew."""
        for seconds, runs in ((None, 1), (45, 1), (20, 2), (-60, 2)):
            with self.subTest(seconds=seconds):
                self.write("", "runs")
                if seconds is None:
                    self.answer(token="p")
                else:
                    self.expiring(seconds)
                api = self.connect()
                self.call(api)
                self.call(api)
                self.assertEqual(self.runs(), runs)

    def test_one_run_at_a_time(self) -> None:
        """Eight threads that call at once share one run, also after all of them were refused."""
        api = self.connect()
        kube_together(8, lambda: self.call(api))
        self.assertEqual((self.runs(), self.seen()), (1, ["Bearer p"] * 8))
        self.answer(token="q")
        kube_server("tls").script(status=401, times=1)
        kube_together(8, lambda: self.call(api))
        self.assertEqual(self.runs(), 2)
        self.assertEqual(self.seen()[-1], "Bearer q")

    def test_again_after_a_refusal(self) -> None:
        """After a 401 the plugin runs again and the call is made again; a POST too, for it did nothing."""
        for method in ("GET", "POST", "PATCH", "DELETE"):
            with self.subTest(method):
                kube_forget()
                self.answer(token="old")
                api = self.connect()
                self.call(api)
                self.answer(token="new")
                kube_server("tls").script(status=401, times=1)
                self.call(api, method)
                self.assertEqual(self.seen(), ["Bearer old", "Bearer old", "Bearer new"])

    def test_only_once_more(self) -> None:
        """A second 401 is an error, and the next call may try its own luck."""
        api = self.connect()
        self.addCleanup(kube_server("tls").unscript)
        kube_server("tls").script(status=401, times=2)
        with self.assertRaises(velero_requests.ApiError) as caught:
            self.call(api)
        self.assertEqual((caught.exception.status, caught.exception.exit, self.runs()), (401, 5, 2))
        self.call(api)
        self.assertEqual(len(self.seen()), 3)

    def test_not_after_other_refusals(self) -> None:
        """A 403 is no reason to ask the plugin again."""
        api = self.connect()
        self.addCleanup(kube_server("tls").unscript)
        kube_server("tls").script(status=403, times=1)
        with self.assertRaises(velero_requests.ApiError):
            self.call(api)
        self.assertEqual((self.runs(), len(self.seen())), (1, 1))

    def test_a_new_certificate_opens_new_connections(self) -> None:
        """A certificate is what the server sees; the next one comes with a connection of its own."""
        self.answer(**kube_pair("alice"))
        api = self.connect()
        self.call(api)
        self.call(api)
        self.answer(**kube_pair("bob"))
        velero_requests.distrust(api, velero_requests.identity_of(api))
        self.call(api)
        calls = kube_server("tls").seen()
        self.assertEqual([request.user for request in calls], ["alice", "alice", "bob"])
        connections = [request.parsed["connection"] for request in calls]
        self.assertEqual(connections[0], connections[1])
        self.assertNotEqual(connections[1], connections[2])

    def test_the_same_certificate_keeps_its_connections(self) -> None:
        """A renewed answer with the same certificate goes on over the same connection."""
        self.expiring(5, token="p", **kube_pair("alice"))
        api = self.connect()
        self.call(api)
        self.call(api)
        self.assertEqual(self.runs(), 2)
        self.assertEqual(len({request.parsed["connection"] for request in kube_server("tls").seen()}), 1)

    def test_from_certificate_to_token(self) -> None:
        """When the plugin changes from a certificate to a token, the certificate is shown no more."""
        self.answer(**kube_pair("alice"))
        api = self.connect()
        self.call(api)
        self.answer(token="p")
        velero_requests.distrust(api, velero_requests.identity_of(api))
        self.call(api)
        self.assertEqual([request.user for request in kube_server("tls").seen()], ["alice", None])
        self.assertEqual(self.seen(), ["alice", "Bearer p"])


class TestExecPluginFails(KubePlugins):
    """Whatever goes wrong with a plugin is an error every time, and nothing is sent."""

    def assert_fails(self, api: Any, *words: str) -> None:
        """Two calls fail with ConfigError that has the words and no secret, and the server sees neither."""
        for _ in range(2):
            with self.assertRaises(velero_requests.ConfigError) as caught:
                self.call(api)
            for word in words + ("plugin",):
                self.assertIn(word, str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception) + "".join(caught.exception.hints))
        self.assertEqual(self.seen(), [])

    def test_exit_code(self) -> None:
        """The exit code is named."""
        self.write("3", "code")
        self.assert_fails(self.connect(), "3")

    def test_answers(self) -> None:
        """Answers that are none are refused without being quoted."""
        good = {"apiVersion": KUBE_EXEC["apiVersion"], "kind": "ExecCredential",
                "status": {"token": "s3cr3t"}}
        for what, answer in (
                ("nothing", ""), ("rubbish", "s3cr3t @ [ {"), ("a list", "[s3cr3t]"),
            ("Latin-1", b"s3cr3t \xe9"),
                ("a tab", "status:\n\ttoken: s3cr3t"), ("no status", {**good, "status": None}),
                ("a text as status", {**good, "status": "s3cr3t"}),
            ("another kind", {**good, "kind": "Secret"}),
                ("another version", {**good, "apiVersion": "client.authentication.k8s.io/v1beta1"}),
                ("a line end", {**good, "status": {"token": "s3cr3t\n"}}), ("big", b"s3cr3t" * (2 << 20)),
                ("deep", "[" * 100000), ("half a pair", {**good, "status": {"clientKeyData": "s3cr3t"}}),
                ("no pair", {**good, "status": {"clientKeyData": "s3cr3t",
                                                "clientCertificateData": "s3cr3t"}})):
            with self.subTest(what):
                self.write(json.dumps(answer) if isinstance(answer, dict) else answer, "answer")
                self.assert_fails(self.connect())

    def test_after_it_worked(self) -> None:
        """A plugin that fails after a refusal leaves no way to go on, and heals by itself."""
        api = self.connect()
        self.call(api)
        self.write("1", "code")
        velero_requests.distrust(api, velero_requests.identity_of(api))
        kube_forget()
        self.assert_fails(api)
        os.remove(os.path.join(self.folder, "code"))
        self.call(api)
        self.assertEqual(self.seen(), ["Bearer p"])

    def test_a_broken_certificate_after_it_worked(self) -> None:
        """A pair that does not match stops the calls and does not change who we are."""
        self.answer(**kube_pair("alice"))
        api = self.connect()
        self.call(api)
        self.answer(**{**kube_pair("bob"), "clientKeyData": kube_bytes("alice.key").decode()})
        velero_requests.distrust(api, velero_requests.identity_of(api))
        kube_forget()
        self.assert_fails(api)

    def test_not_installed(self) -> None:
        """A program that is not there shows the install hint, without the control characters in it."""
        api = self.connect(command="kube-plugin-of-nobody",
                           installHint="get it\x1b[31m at\x07 https://x\r\n\x1b]0;title\x07 or\u202e "
                                       "\x9b2J elsewhere")
        self.assert_fails(api, "kube-plugin-of-nobody", "not installed")
        with self.assertRaises(velero_requests.ConfigError) as caught:
            self.call(api)
        hint = "".join(caught.exception.hints)
        self.assertTrue(hint.isprintable(), ascii(hint))
        for word in ("get it", "https://x", "elsewhere"):
            self.assertIn(word, hint)

    def test_must_ask_without_a_terminal(self) -> None:
        """interactiveMode Always without a terminal is an error, and the plugin does not run."""
        done = kube_program(["-n", "v", "backup", "logs", "b", "--kubeconfig",
                             self.config(interactiveMode="Always")])
        self.assertEqual((done.returncode, self.runs(), self.seen()), (1, 0, []))
        self.assertIn("terminal", done.stderr.decode())

    def test_only_us_from_the_current_folder(self) -> None:
        """A bare command is not found through empty or relative members of PATH."""
        path = self.config(command="plugin")
        before = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        for listed in (":/usr/bin:/bin", ".:/usr/bin:/bin", "/usr/bin:/bin:", "home/..:/usr/bin:/bin"):
            with self.subTest(listed), kube_environment(PATH=listed):
                with self.assertRaises(velero_requests.ConfigError):
                    kube_call(path)
        self.assertEqual(self.runs(), 0)

    def test_odd_names(self) -> None:
        """Arguments and variables that no program can get are an error too."""
        for fields in ({"args": ["a\0b"]}, {"env": [{"name": "A=B", "value": "x"}]},
                       {"env": [{"name": "A", "value": "x\0"}]}, {"command": "a\0b"}):
            with self.subTest(fields):
                path = self.write(json.dumps(kube_config({"exec": {**KUBE_EXEC, "command": "./plugin",
                                                                   **fields}})))
                with self.assertRaises(velero_requests.ConfigError):
                    kube_call(path)


def kube_pair(name: str) -> Dict[str, str]:
    """A certificate and its key, as a plugin prints them."""
    return {"clientCertificateData": kube_bytes(f"{name}.crt").decode(),
            "clientKeyData": kube_bytes(f"{name}.key").decode()}


def kube_together(count: int, act: Callable[[], Any]) -> None:
    """Do something in so many threads at once, and raise what one of them raised."""
    barrier, errors = threading.Barrier(count), []

    def one() -> None:
        barrier.wait(10)
        try:
            act()
        except Exception as error:  # pylint: disable=broad-except
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if errors:
        raise errors[0]


def kube_program(arguments: List[str], stdin: Any = b"", seconds: float = 30, **environment: str) -> Any:
    """Run the program -> the finished process with its output."""
    feed = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
    with kube_environment(HOME="/nonexistent", **environment):
        return subprocess.run([sys.executable, str(velero_requests.__file__), *arguments],
                              stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False, timeout=seconds, **feed)


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: proxies
# ------------------------------------------------------------------------------------------------------------

KUBE_HTTPS_PROXY = {"HTTPS_PROXY": "http://@P@"}


def kube_exempt(no_proxy: str, url: str = "https://k8s.example:6443") -> Tuple[str, Dict[str, str], bool]:
    """A row for a NO_PROXY that exempts a URL."""
    return url, {**KUBE_HTTPS_PROXY, "NO_PROXY": no_proxy}, False


def kube_not_exempt(no_proxy: str, url: str = "https://k8s.example:6443") -> Tuple[str, Dict[str, str], bool]:
    """A row for a NO_PROXY that does not."""
    return url, {**KUBE_HTTPS_PROXY, "NO_PROXY": no_proxy}, True


# A URL, the environment (@P@ is the proxy), and whether kubectl goes through the proxy.
KUBE_PROXY_ROWS: Tuple[Tuple[str, Dict[str, str], bool], ...] = (
    ("https://k8s.example:6443", {}, False),
    ("https://k8s.example:6443", KUBE_HTTPS_PROXY, True),
    ("https://k8s.example:6443", {"https_proxy": "http://@P@"}, True),
    ("https://k8s.example:6443", {"https_proxy": "@P@"}, True),
    ("https://k8s.example:6443", {"HTTPS_PROXY": "http://@P@", "https_proxy": "http://127.0.0.1:1"}, True),
    ("https://k8s.example:6443", {"HTTPS_PROXY": "", "https_proxy": "http://@P@"}, True),
    ("https://k8s.example:6443", {"HTTP_PROXY": "http://@P@"}, False),
    ("https://k8s.example:6443", {"ALL_PROXY": "http://@P@", "all_proxy": "http://@P@"}, False),
    ("http://k8s.example:6443", {"HTTP_PROXY": "http://@P@"}, True),
    ("http://k8s.example:6443", {"http_proxy": "@P@"}, True),
    ("http://k8s.example:6443", {"HTTPS_PROXY": "http://@P@"}, False),
    ("https://localhost:1", KUBE_HTTPS_PROXY, False),
    ("https://127.9.9.9:1", KUBE_HTTPS_PROXY, False),
    ("https://[::1]:1", KUBE_HTTPS_PROXY, False),
    ("https://kube.localhost:1", KUBE_HTTPS_PROXY, True),
    ("https://10.1.2.3:6443", KUBE_HTTPS_PROXY, True),
    ("https://[fd00::1]:6443", KUBE_HTTPS_PROXY, True),
    ("https://k8s.example:6443", {**KUBE_HTTPS_PROXY, "no_proxy": "k8s.example"}, False),
    ("https://k8s.example:6443", {**KUBE_HTTPS_PROXY, "NO_PROXY": "x", "no_proxy": "k8s.example"}, True),
    ("https://k8s.example:6443", {**KUBE_HTTPS_PROXY, "NO_PROXY": "", "no_proxy": "k8s.example"}, False),
    *(kube_exempt(text) for text in (
        "*", " * ", "x,*", "k8s.example", "K8S.Example", "example", ".example", "*.example",
        "k8s.example:6443",
        ".example:6443", "x, k8s.example ,y", ",,k8s.example", "example,10.0.0.0/8")),
    *(kube_not_exempt(text) for text in (
        "", ",", ".k8s.example", "*.k8s.example", "k8s.example:443", "x k8s.example", "8s.example", "ample",
        "a.k8s.example",
        "*example", "*.*", "https://k8s.example", "k8s.example/", "10.0.0.0/8", "0.0.0.0/0", "k8s.*",
        "k8s.example:*")),
    *(kube_exempt(text, "https://10.1.2.3:6443") for text in (
        "10.1.2.3", "10.0.0.0/8", "10.1.2.3/8", "10.1.2.3/32", "10.1.2.3:6443", "0.0.0.0/0",
        "x, 10.0.0.0/8")),
    *(kube_not_exempt(text, "https://10.1.2.3:6443") for text in (
        "10.1.2.4", "10.1.2.3:443", "1.2.3", ".2.3", "3", "10.0.0.0/33", "11.0.0.0/8", "10.", "10.*",
        "::/0")),
    *(kube_exempt(text, "https://[fd00::1]:6443") for text in ("fd00::1", "fd00::/8", "[fd00::1]:6443",
                                                               "FD00:0::1", "::/0")),
    *(kube_not_exempt(text, "https://[fd00::1]:6443") for text in ("fd00::2", "fe00::/8", "[fd00::1]",
                                                                   "[fd00::1]:443", "0.0.0.0/0")),
    *(kube_exempt(text, "https://k8s.example") for text in ("k8s.example:443", "k8s.example")),
    *(kube_exempt(text, "https://K8S.Example:6443") for text in ("k8s.example", ".example")),
)


class TestProxyOfTheEnvironment(KubeFolder):
    """Which URLs go through the proxy that the environment names, as Go decides it."""

    def test_the_table(self) -> None:
        """proxy_for says what the table says."""
        for url, variables, proxied in KUBE_PROXY_ROWS:
            with self.subTest(url, **variables):
                filled = {name: value.replace("@P@", "proxy:3128") for name, value in variables.items()}
                self.assertEqual(velero_requests.proxy_for(url, filled),
                                 "http://proxy:3128" if proxied else "")

    def went(self, url: str, variables: Dict[str, str], name: str) -> bool:
        """Whether kubectl asks a proxy for a URL."""
        proxy = KubeProxy()
        path = self.write(kube_config(None, {"server": url, "insecure-skip-tls-verify": True}),
                          f"config-{name}")
        absent = [flag for word in ("http", "https", "no", "all") for flag in (f"{word}_proxy",
                                                                               f"{word}_proxy".upper())]
        own = {**{name: value for name, value in os.environ.items() if name not in absent}, "HOME": self.home,
               **{name: value.replace("@P@", proxy.host) for name, value in variables.items()}}
        try:
            subprocess.run([str(KUBECTL), "--kubeconfig", path, "get", "--raw", "/", "--request-timeout",
                            "1s"], env=own,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           check=False)
            return bool(proxy.seen())
        finally:
            proxy.close()

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_does_what_the_table_says(self) -> None:
        """The table is what kubectl does."""
        found: Dict[int, bool] = {}
        rows = list(enumerate(KUBE_PROXY_ROWS))

        def work() -> None:
            while True:
                try:
                    number, (url, variables, _) = rows.pop()
                except IndexError:
                    return
                found[number] = self.went(url, variables, str(number))

        kube_together(6, work)
        for number, (url, variables, proxied) in enumerate(KUBE_PROXY_ROWS):
            with self.subTest(url, **variables):
                self.assertEqual(found[number], proxied)

    def test_what_is_no_proxy(self) -> None:
        """A proxy that we cannot use is an error with the variable, not the password; SOCKS has a hint."""
        for proxy in ("socks5://me:s3cr3t@h:1", "socks5h://h", "SOCKS4://h", "ftp://me:s3cr3t@h", "http://",
                      "http://h:x",
                      "http://me:s3cr3t@h:99999", "http://me:s3cr3t@[::1"):
            with self.subTest(proxy), self.assertRaises(velero_requests.ConfigError) as caught:
                velero_requests.proxy_for("https://k8s.example", {"HTTPS_PROXY": proxy})
            self.assertIn("HTTPS_PROXY", str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))
            self.assertEqual(bool(caught.exception.hints), "socks" in proxy.lower())

    def test_what_is_a_proxy(self) -> None:
        """Schemes may be in capitals or missing; an empty URL is no proxy."""
        for proxy in ("", "http://h", "HTTP://h:1", "https://me:p%40ss@h:1/", "h:3128", "h", "[::1]:3128",
                      "me:x@h:1"):
            with self.subTest(proxy):
                velero_requests.check_proxy(proxy, "proxy-url")


class TestProxyOnTheWire(KubeFolder):
    """Calls to cluster and store through real proxies on loopback."""

    NAMED = {"server": "https://a.example.com:@NAMEDPORT@", **KUBE_CA}

    def read_store(self, url: str, **more: Any) -> bytes:
        """What the store answers, trusting the test's authority."""
        with velero_requests.open_url(url, velero_requests.Trust(kube_bytes("ca.crt"), **more)) as response:
            return b"".join(velero_requests.read_body(response))

    def test_store(self) -> None:
        """A store is reached through the same proxies: tunnelled for https, by its whole URL for http."""
        secure = f"https://a.example.com:{kube_server('named').port}/b/k?s=1"
        for proxy, server in (("proxy", "http://@PROXY@"), ("guarded", "http://me:p%40ss%3Aw@@GUARDED@")):
            for name, url in (("HTTPS_PROXY", secure), ("HTTP_PROXY", "http://a.example.com:81/b/k?s=1")):
                kube_forget()
                with self.subTest(proxy, url=url), kube_environment(**{name: kube_fill(server, "")}):
                    self.assertIn(b"gitVersion", self.read_store(url))
                    asked = kube_servers()[proxy].seen()[0]
                    self.assertEqual((asked.method, asked.target), ("GET", url) if name == "HTTP_PROXY" else
                                     ("CONNECT", urlsplit(url).netloc))

    def test_store_by_an_https_proxy(self) -> None:
        """An https proxy is verified with the store's own trust, and sees nothing of an https store."""
        url = f"https://a.example.com:{kube_server('named').port}/b/k"
        with kube_environment(HTTPS_PROXY=kube_fill("https://@SECURE@", "")):
            self.assertIn(b"gitVersion", self.read_store(url))
            self.assertEqual([request.method for request in kube_servers()["secure"].seen()], ["CONNECT"])
            with self.assertRaises(velero_requests.Unreachable):
                with velero_requests.open_url(url):
                    pass

    def test_plain_http_cluster(self) -> None:
        """A plain http cluster is asked for with its whole URL, and the proxy gets no token."""
        proxy = {"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}
        kube_call(self.write(kube_config(None, {"server": "http://a.example.com:81/k8s", **proxy})))
        asked = kube_servers()["guarded"].seen()[0]
        self.assertEqual(asked.target, "http://a.example.com:81/k8s/version")
        self.assertNotIn("authorization", asked.headers)

    def test_the_tunnel_hears_nothing(self) -> None:
        """An https cluster's proxy sees neither token nor impersonation, the cluster no proxy password."""
        kube_call(self.write(kube_config({"token": "t", "as": "j"}, {
            **self.NAMED, "proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"})))
        asked = kube_servers()["guarded"].seen()[0]
        self.assertEqual(set(asked.headers) & {"authorization", "impersonate-user"}, set())
        self.assertNotIn("proxy-authorization", kube_server("named").seen()[0].headers)

    def test_proxy_url_beats_the_environment(self) -> None:
        """proxy-url counts for loopback and in spite of NO_PROXY; the environment's proxy is not asked."""
        path = self.write(kube_config(None, {**KUBE_CA, "proxy-url": "http://@PROXY@"}))
        with kube_environment(HTTPS_PROXY=kube_fill("http://@GUARDED@", ""), NO_PROXY="*"):
            kube_call(path)
        self.assertEqual([len(kube_servers()[name].seen()) for name in ("proxy", "guarded")], [1, 0])

    def test_the_password_is_never_shown(self) -> None:
        """When a proxy fails not even -v shows its password; the exit code is 6, or 1 for bad URLs."""
        gone = f"127.0.0.1:{free_port()}"
        for proxy, code in ((f"http://me:s3cr3t@{gone}", 6), (f"https://me:s3cr3t@{gone}", 6),
                            ("http://me:s3cr3t@@GUARDED@", 6), ("https://me:s3cr3t@@PROXY@", 6),
                            ("https://me:s3cr3t@@EXPIRED@", 6), ("ftp://me:s3cr3t@h", 1),
                            ("socks5://me:s3cr3t@h", 1),
                            ("http://me:s3cr3t@h:99999", 1), ("http://me:s3cr3t@[::1", 1)):
            path = self.write(kube_config(None, {**self.NAMED, "proxy-url": proxy}))
            with self.subTest(proxy):
                done = kube_program(["-v", "-n", "v", "--kubeconfig", path, "backup", "logs", "b"])
                self.assertEqual((done.returncode, done.stdout), (code, b""), done.stderr)
                self.assertNotIn(b"s3cr3t", done.stderr)
                self.assertNotIn(base64.b64encode(b"me:s3cr3t"), done.stderr)
                self.assertNotIn(b"bug", done.stderr)

    def test_the_proxy_is_named_as_the_culprit(self) -> None:
        """A proxy that refuses or is not there is told apart from the cluster."""
        for proxy, words in (("http://@GUARDED@", ("proxy", "407")),
                             (f"http://127.0.0.1:{free_port()}", ("proxy", "refused"))):
            path = self.write(kube_config(None, {**self.NAMED, "proxy-url": proxy}))
            with self.subTest(proxy), self.assertRaises(velero_requests.Unreachable) as caught:
                kube_call(path)
            for word in words:
                self.assertIn(word, str(caught.exception).lower())


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: what TLS errors say
# ------------------------------------------------------------------------------------------------------------

class TestTlsErrors(KubeFolder):
    """What is said when TLS with cluster or store fails: what is wrong, with the names to see it."""

    def fails(self, cluster: Document, *words: str) -> str:
        """A call to a cluster is Unreachable, with these words, and nothing is sent."""
        with self.assertRaises(velero_requests.Unreachable) as caught:
            kube_call(self.write(kube_config(None, cluster)))
        text = str(caught.exception)
        for word in words:
            self.assertIn(word, text)
        self.assertEqual(int(caught.exception.exit), 6)
        self.assertEqual(kube_verdict(True), "error")
        return text

    def test_expired(self) -> None:
        """An expired certificate is called so, with its last day."""
        self.fails({**KUBE_CA, "server": "https://@EXPIRED@"}, "expired", "2020")

    def test_unknown_issuer(self) -> None:
        """A certificate of somebody unknown shows its subject and issuer."""
        self.fails({}, "loopback", "test-ca")
        self.fails({"certificate-authority": "@PKI@/alice.crt"}, "loopback", "test-ca")

    def test_another_name(self) -> None:
        """A certificate for other names shows them, and the name that was wanted."""
        self.fails({**KUBE_CA, "server": "https://@NAMED@"}, "kubernetes.default.svc", "*.example.com",
                   "127.0.0.1")
        self.fails({**KUBE_CA, "tls-server-name": "b.a.example.com"}, "b.a.example.com", "localhost")

    def test_common_name_only(self) -> None:
        """A certificate with nothing but a common name is not accepted, though the name is right."""
        self.fails({**KUBE_CA, "server": "https://@NAMELESS@", "tls-server-name": "localhost"}, "'localhost'")

    def test_no_tls(self) -> None:
        """A port that does not speak TLS is called so; one that only hangs up is Unreachable too."""
        for greeting, words in ((b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
                                (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak TLS"), (b"", "127.0.0.1")):
            with self.subTest(greeting):
                self.fails({**KUBE_CA, "server": f"https://127.0.0.1:{self.greeter(greeting)}"}, words)

    def greeter(self, greeting: bytes) -> int:
        """The port of a server that says one thing to everybody and hangs up."""
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listener.accept()
                except OSError:
                    return
                with accepted:
                    accepted.recv(5)  # so that the greeting is not the first to come
                    accepted.sendall(greeting)
                    accepted.shutdown(socket.SHUT_WR)
                    while accepted.recv(4096):
                        pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 5)
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        return int(listener.getsockname()[1])

    def test_nobody_there(self) -> None:
        """A port where nobody listens, and a name that nobody has, are told apart from TLS."""
        self.fails({**KUBE_CA, "server": f"https://127.0.0.1:{free_port()}"}, "refused")
        self.assertNotIn("certificate", self.fails({**KUBE_CA, "server": "https://kube.invalid:6443"}))

    def test_a_client_certificate_is_missing(self) -> None:
        """A server that insists on a client certificate is Unreachable without one, and answers with one."""
        server = KubeServer("tls")
        self.addCleanup(server.close)
        server._own.verify_mode = ssl.CERT_REQUIRED  # pylint: disable=protected-access
        self.fails({**KUBE_CA, "server": server.url}, server.host)
        path = self.write(kube_config(KUBE_CERT, {**KUBE_CA, "server": server.url}))
        self.assertIn("gitVersion", kube_call(path))

    def test_tls_server_name(self) -> None:
        """tls-server-name is asked for and must be shown; insecure asks too and checks nothing."""
        for cluster, name in (({**KUBE_CA, "tls-server-name": "a.example.com"}, "a.example.com"),
                              ({"insecure-skip-tls-verify": True, "tls-server-name": "no.such"}, "no.such")):
            with self.subTest(name):
                kube_call(self.write(kube_config(None, {**cluster, "server": "https://@NAMED@"})))
                self.assertEqual(kube_server("named").seen()[-1].parsed["name"], name)

    def test_insecure_accepts_everybody(self) -> None:
        """insecure-skip-tls-verify goes on in spite of every mistake of a certificate."""
        for name in ("expired", "nameless", "named", "tls"):
            with self.subTest(name):
                cluster = {"server": kube_server(name).url, "insecure-skip-tls-verify": True}
                self.assertIn("gitVersion", kube_call(self.write(kube_config(None, cluster))))

    def test_the_system_counts_only_without_an_authority(self) -> None:
        """SSL_CERT_FILE is trusted when the kubeconfig names no authority, and not when it names another."""
        with kube_environment(SSL_CERT_FILE=os.path.join(kube_pki(), "ca.crt")):
            self.assertIn("gitVersion", kube_call(self.write(kube_config(None, {}))))
            kube_forget()
            self.fails({"certificate-authority": "@PKI@/alice.crt"})

    def test_old_authorities(self) -> None:
        """An authority without key identifiers, as old clusters have, is accepted by every Python."""
        folder = tempfile.mkdtemp(dir=self.folder)
        made = [os.path.join(folder, name) for name in ("ca.crt", "ca.key", "tls.crt", "tls.key", "tls.csr",
                                                        "ext")]
        with open(made[5], "w", encoding="ascii") as file:
            file.write("[old]\nbasicConstraints=CA:TRUE\n[san]\nsubjectAltName=IP:127.0.0.1\n[req]\n"
                       "distinguished_name=name\n[name]\n")
        run_openssl("req", "-x509", *KUBE_NEW_KEY, "-keyout", made[1], "-out", made[0], "-days", "30",
                    "-subj",
                    "/CN=old", "-config", made[5], "-extensions", "old")
        run_openssl("req", *KUBE_NEW_KEY, "-keyout", made[3], "-out", made[4], "-subj", "/CN=x")
        run_openssl("x509", "-req", "-in", made[4], "-CA", made[0], "-CAkey", made[1], "-CAcreateserial",
                    "-days", "30",
                    "-out", made[2], "-extfile", made[5], "-extensions", "san")
        cluster = FakeCluster(tls=True, certificate=Certificate(made[0], made[2], made[3]))
        self.addCleanup(cluster.close)
        self.assertIn("major", kube_call(cluster.kubeconfig(self.folder)))

    def test_store(self) -> None:
        """A store's certificate is explained the same way; with its authority or insecure it is accepted."""
        for name, words in (("expired", ("expired", "2020")), ("named", ("*.example.com",)),
                            ("nameless", ("localhost",))):
            with self.subTest(name), self.assertRaises(velero_requests.Unreachable) as caught:
                with velero_requests.open_url(kube_server(name).url + "/k?X-Amz-Signature=s3cr3t",
                                              velero_requests.Trust(kube_bytes("ca.crt"))):
                    pass
            for word in words:
                self.assertIn(word, str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))
        for trust in (velero_requests.Trust(insecure=True), velero_requests.Trust(kube_bytes("ca.crt"))):
            with velero_requests.open_url(kube_server("tls").url + "/k", trust) as response:
                self.assertEqual(response.status, 200)
        with self.assertRaisesRegex(velero_requests.Unreachable, "test-ca"):
            with velero_requests.open_url(kube_server("tls").url + "/k"):
                pass


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: bad input
# ------------------------------------------------------------------------------------------------------------

KUBE_EXTENSION = """extensions:
    - name: client.authentication.k8s.io/exec
      extension: {}
    certificate-authority-data"""


def kube_bombs() -> Iterator[Tuple[str, str]]:
    """Short kubeconfigs that grow into millions of entries."""
    good = yaml.safe_dump(kube_config(), sort_keys=False)
    doubling = "x0: &x0 [a, a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))
    yield "lists", doubling + good
    merging = "m0: &m0 {a: b}\n" + "".join(
        f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]\n  k{n}: v\n" for n in range(1, 40))
    yield "merge keys", merging + good
    plugin = json.dumps({**KUBE_EXEC, "command": "true", "provideClusterInfo": True})
    yield "an extension", doubling + good.replace("token: t", f"exec: {plugin}").replace(
        "certificate-authority-data", KUBE_EXTENSION.format("*x39"))
    many = "values: &values [" + "a, " * 200_000 + "a]\n"
    yield "extra values", many + good.replace("token: t",
                                              "token: t\n    as: j\n    as-user-extra:\n" + "".join(
        f"      k{n}: *values\n" for n in range(20_000)))
    yield "merged wide maps", "w: &w {" + ", ".join(f"k{n}: 1" for n in range(9_000)) + "}\n" + "".join(
        f"v{n}: {{<<: *w}}\n" for n in range(5_000)) + good


class TestKubeconfigBadInput(KubeFolder):
    """What is no kubeconfig: one sentence with the file, the line where YAML gives one, exit 1, at once."""

    def refused(self, path: str, *words: str, seconds: float = 5, extra: Tuple[str, ...] = ()) -> str:
        """The program ends with code 1, one error line that names the file, and no secret."""
        began = time.monotonic()
        done = kube_program(["-n", "v", "--kubeconfig", path, *extra, "backup", "logs", "b"],
                            seconds=seconds + 3)
        text = done.stderr.decode()
        self.assertEqual((done.returncode, done.stdout), (1, b""), text[:400])
        self.assertRegex(text, r"\Aerror: [^\n]*\n(hint: [^\n]*\n)*\Z")
        self.assertLess(time.monotonic() - began, seconds)
        self.assertNotIn("s3cr3t", text)
        self.assertNotIn("bug", text)
        for word in words:
            self.assertIn(word, text)
        self.assertLess(len(text), 1500)
        return text

    def test_other_documents(self) -> None:
        """Lists, numbers, texts and nothing are no kubeconfig."""
        for what, content, words in (
                ("a list", "- s3cr3t\n", ("mapping",)), ("a number", "5", ("mapping",)),
            ("a text", "s3cr3t", ("mapping",)),
                ("nothing", "", ("current-context",)), ("null", "null", ("current-context",)),
                ("users as a text", "users: s3cr3t", ("users",)),
            ("users of numbers", "users: [5]", ("users[0]",)),
                ("a token as a list", "users: [{name: c, user: {token: [s3cr3t]}}]",
                 ("users[0].user.token", "string")),
                ("a list as groups", "users: [{user: {as-groups: [[x]]}}]", ("users[0].user.as-groups[0]",)),
                ("a page", "<!DOCTYPE html>\n<html><body>s3cr3t</body></html>", ()),
                ("NUL", b"\0\0\0\0", ()), ("gzip", b"\x1f\x8b\x08\0s3cr3t\xff", ("UTF-8",))):
            with self.subTest(what):
                path = self.write(content)
                self.refused(path, path, *words)

    def test_lines(self) -> None:
        """Where YAML knows the line it is named, and what stands there is not quoted."""
        for what, content, line in (
                ("a tab", "users:\n- name: c\n  user:\n\ttoken: s3cr3t\n", 4),
                ("no end of a quote", "a: b\nusers:\n- token: \"s3cr3t\n", 4),
                ("no colon", "a: b\ns3cr3t s3cr3t\nc: d\n", 3),
                ("two colons", "a: b\ntoken: s3cr3t: x\n", 2),
                ("an unknown alias", "a: b\n\ntoken: *s3cr3t\n", 3)):
            with self.subTest(what):
                path = self.write(content)
                self.refused(path, path, f"line {line}")

    def test_latin_1(self) -> None:
        """Latin-1 is said to be no UTF-8."""
        path = self.write("users:\n- name: é s3cr3t\n".encode("latin-1"))
        self.refused(path, path, "UTF-8")

    def test_big(self) -> None:
        """Fifty megabytes are refused by their size, without being parsed."""
        path = self.write("")
        os.truncate(path, 50 << 20)
        self.refused(path, path, "larger")
        self.write(b"- s3cr3t\n" * (50 << 17))
        self.refused(path, path, "larger")

    def test_bombs(self) -> None:
        """A few lines that grow into millions neither hang nor eat memory; the good ones behind may count."""
        for what, text in kube_bombs():
            with self.subTest(what):
                path = self.write(text)
                done = kube_limited(path, 10)
                self.assertIn(done.returncode, (1, 3), done.stderr[-400:])
                self.assertNotIn(b"bug", done.stderr)

    def test_deep(self) -> None:
        """Nesting without end is an error, not a crash."""
        for what, content in (("dashes", "- " * 100_000), ("brackets", "[" * 100_000),
                              ("braces", "{a: " * 100_000),
                              ("JSON", '{"a":' * 100_000), ("JSON lists", '{"a":' + "[" * 100_000),
                              ("a second document", "a: b\n---\n" + "[" * 100_000),
                              ("closed", "{\"a\": " + "[" * 100_000 + "]" * 100_000 + "}")):
            with self.subTest(what):
                path = self.write(content)
                self.refused(path, path)

    def test_recursive(self) -> None:
        """An alias within its own anchor is an error, or stands where nobody looks."""
        good = yaml.safe_dump(kube_config(), sort_keys=False)
        for text in ("clusters: &a [*a]\n", "users: &a\n- name: c\n  user: {as-groups: *a}\n",
                     "a: &a\n  <<: *a\n"):
            with self.subTest(text), self.assertRaises(velero_requests.ConfigError):
                velero_requests.load_cluster(self.write(text))
        plugin = json.dumps({**KUBE_EXEC, "command": "true", "provideClusterInfo": True})
        path = self.write(good.replace("token: t", f"exec: {plugin}").replace(
            "certificate-authority-data",
            KUBE_EXTENSION.format("&a [*a]")))
        with self.assertRaises(velero_requests.ConfigError):
            kube_call(path)

    def test_users_without_a_name(self) -> None:
        """Two users without a name are two of one name; one of them is nobody's business."""
        path = self.write(kube_config(users=[{"user": {"token": "s3cr3t"}}, {"user": {"token": "s3cr3t"}}]))
        self.refused(path, path, "users")
        with self.assertRaises(velero_requests.Error) as caught:
            kube_call(self.write("users: [{user: {token: s3cr3t}}]"))
        self.assertNotIn("s3cr3t", str(caught.exception))

    def test_not_a_file(self) -> None:
        """A folder, a file that is not there and one below a file are named with the system's own words."""
        path = self.write(kube_config())
        for name, word in ((self.home, "directory"), (self.folder + "/gone", "No such file"),
                           (path + "/x", "ot a directory")):
            with self.subTest(name):
                self.refused(name, name, word)

    def test_a_fifo(self) -> None:
        """A FIFO that nobody writes to does not hang the program."""
        path = os.path.join(self.folder, "fifo")
        os.mkfifo(path)
        self.refused(path, path)

    def test_a_pipe(self) -> None:
        """A pipe that somebody writes to, as the shell's <(…) makes them, is read to its end."""
        with open(self.write(kube_config()), "rb") as file:
            content = file.read()
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        try:
            self.assertEqual(velero_requests.load_cluster(f"/dev/fd/{reader}").token, "t")
        finally:
            os.close(reader)

    def test_names_with_control_characters(self) -> None:
        """Names from the file come to the terminal without control characters."""
        path = self.write(json.dumps(kube_config(current_context="\x1b]0;x\x07\u202ec")))
        text = self.refused(path, path)
        self.assertTrue(text.replace("\n", "").isprintable(), ascii(text))

    def test_every_mistake_through_main(self) -> None:
        """Each case of the tables that fails is one error line, with exit code 1 or 6."""
        for number, case in enumerate(KUBE_CASES + KUBE_PLACES):
            if case.expected != "error":
                continue
            folder = os.path.join(self.folder, str(number))
            path, variables = KubeCases.lay_out(self, case, folder)  # type: ignore[arg-type]
            flags = [*(["--kubeconfig", path] if path else []),
                     *(["--context", case.context] if case.context else [])]
            with self.subTest(case.what), kube_environment(**variables):
                code, text = kube_main(["-n", "v", *flags, "backup", "logs", "b"])
                self.assertIn(code, (1, 6), text)
                self.assertRegex(text, r"(\A|\n)error: [^\n]*\n(hint: [^\n]*\n)*\Z")
                self.assertNotIn("this is a bug", text)


def kube_main(arguments: List[str]) -> Tuple[int, str]:
    """Run main here -> exit code and what went to stderr."""
    with tempfile.TemporaryFile("w+") as out, contextlib.redirect_stderr(out), \
            contextlib.redirect_stdout(out):
        code = velero_requests.main(arguments)
        out.seek(0)
        return int(code), out.read()


def kube_limited(path: str, seconds: float) -> Any:
    """Run the program with at most two gigabytes of memory and some seconds of time; a hang is a failure."""
    command = ["/bin/sh", "-c", "ulimit -v 2000000; exec \"$@\"", "sh", sys.executable,
               str(velero_requests.__file__),
               "-n", "v", "--kubeconfig", path, "backup", "logs", "b"]
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE,
                              check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 99, b"", f"still busy after {seconds} s".encode())


@unittest.skipUnless(hasattr(os, "memfd_create"),
                     "this platform has no anonymous files, so keys pass through one on disk")
class TestTlsKeysNeverOnDisk(KubeFolder):
    """The key of a client certificate given inline never becomes a file."""

    def test_no_file_is_made(self) -> None:
        """A call with an inline key leaves nothing in TMPDIR and opens no file for writing."""
        temporary = os.path.join(self.folder, "tmp")
        os.mkdir(temporary)
        before = tempfile.tempdir
        self.addCleanup(setattr, tempfile, "tempdir", before)
        tempfile.tempdir = None
        opened: List[str] = []
        watching = [True]
        writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def hook(event: str, arguments: Any) -> None:
            if watching and event == "open" and isinstance(arguments[0], str) and (
                    isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
                    or isinstance(arguments[2], int) and arguments[2] & writing):
                opened.append(arguments[0])

        path = self.write(kube_config(KUBE_CERT))
        sys.addaudithook(hook)
        try:
            with kube_environment(TMPDIR=temporary):
                kube_call(path)
        finally:
            watching.clear()
        self.assertEqual((opened, os.listdir(temporary)), ([], []))
        self.assertEqual(kube_server("tls").seen()[0].user, "alice")

    def test_no_descriptor_is_left(self) -> None:
        """The anonymous file of the key is closed again, also when it is no key."""
        before = len(os.listdir("/proc/self/fd"))
        velero_requests.connect(self.cluster(kube_config(KUBE_CERT)))
        for key in ("@BOBKEY@", "QUJD"):
            with self.assertRaises(velero_requests.ConfigError):
                velero_requests.connect(self.cluster(kube_config({**KUBE_CERT, "client-key-data": key})))
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_an_encrypted_key(self) -> None:
        """A key behind a passphrase is an error, and nobody is asked for it."""
        path = os.path.join(self.folder, "locked.key")
        run_openssl("ec", "-in", os.path.join(kube_pki(), "alice.key"), "-aes256", "-passout", "pass:x",
                    "-out", path)
        with self.assertRaisesRegex(velero_requests.ConfigError, "encrypted"):
            velero_requests.connect(self.cluster(kube_config({"client-certificate-data": "@CERT@",
                                                              "client-key": path})))


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: the functions above the waterline
# ------------------------------------------------------------------------------------------------------------

def kube_record(document: Any, context: str = "", path: str = "/kube/config") -> Any:
    """The Cluster of one document."""
    config = velero_requests.kubeconfig_from([(path, document)])
    return velero_requests.cluster_from_kubeconfig(config, context)


def kube_plain(user: Any = None, **cluster: Any) -> Document:
    """A kubeconfig for https://k8s:6443 with nothing to be filled in."""
    return kube_config(user, {"server": "https://k8s:6443", **cluster})


class TestKubeconfigParseYaml(unittest.TestCase):
    """Tests for `parse_yaml`."""

    def test_scalars(self) -> None:
        """Scalars have the types that Go's parser gives them; a string stays as it is written."""
        for text, kind in (
                *((text, str) for text in (
                    "12:30:45", "2026-11-22", "2026-11-22T10:00:00Z", "=", "1.2.3", "0x", "0o8", "1e", "tRUE",
                    "nil", "1,5",
                    "yes!", "'1'", '"true"', "!!str 1", "+", "e3", "_1", "0b2", "a<<b", "~x", "nULL")),
                *((text, bool) for text in ("y", "Y", "n", "N", "yes", "No", "ON", "off", "true", "False",
                                            "TRUE")),
                *((text, (int, float)) for text in (
                    "1", "-1", "+1", "0", "017", "0o17", "0x1F", "0b101", "1_000", "1e3", "1.", ".5",
                    "-.5e-3", "+1.5", "08")),
                *((text, type(None)) for text in ("", "~", "null", "Null", "NULL"))):
            with self.subTest(text):
                value = velero_requests.parse_yaml(f"a: {text}\n".encode(), "X")["a"]
                self.assertIsInstance(value, kind)
                self.assertEqual(isinstance(value, bool), kind is bool)
                if kind is str and text[0] not in "'\"!":
                    self.assertEqual(value, text)

    def test_bools(self) -> None:
        """Each way to write a bool has its value."""
        for text, value in (("y", True), ("on", True), ("YES", True), ("true", True), ("n", False),
                            ("Off", False),
                            ("no", False), ("FALSE", False)):
            self.assertIs(velero_requests.parse_yaml(f"a: {text}".encode(), "X")["a"], value)

    def test_numbers(self) -> None:
        """Numbers have their value, for plugins are told of them."""
        for text, value in (("8443", 8443), ("-1", -1), ("1.5", 1.5), ("0x1F", 31), ("017", 15), ("0o17", 15),
                            ("1_000", 1000),
                            ("1e3", 1000), ("12345678901", 12345678901)):
            with self.subTest(text):
                self.assertEqual(velero_requests.parse_yaml(f"a: {text}".encode(), "X"), {"a": value})

    def test_the_first_document(self) -> None:
        """Only the first document counts, whatever comes after it."""
        for text in ("a: b", "---\na: b\n", "a: b\n---\nc: d\n", "a: b\n---\n@ [", "a: b\n...\n",
                     "%YAML 1.1\n---\na: b",
                     "\ufeffa: b", "{a: b}", '{"a": "b"}', '{\n\t"a":\t"b"\n}', "a:\tb", "# c\na: b\r\n"):
            with self.subTest(text):
                self.assertEqual(velero_requests.parse_yaml(text.encode(), "X"), {"a": "b"})
        for text in ("", "\n", "# x", "---\n", "---\n---\na: b", "null"):
            with self.subTest(text):
                self.assertIsNone(velero_requests.parse_yaml(text.encode(), "X"))

    def test_errors(self) -> None:
        """What is no YAML is one ConfigError that names the source and the line, and quotes nothing."""
        for content, words in (
                (b"a: b\n\tc: s3cr3t", "line 2"), (b"s3cr3t: [", "line"),
            (b"\xff\xfe s3cr3t"[2:] + b"\xe9", "UTF-8"),
                (b"a: *s3cr3t", "line 1"), (b"? [s3cr3t]\n: b", "X"),
                (b"a: s3cr3t\0", "X"), (b" " * ((8 << 20) + 1), "8 MiB"), (b"&a [*a, *b]", "line 1")):
            with self.subTest(content[:30]), self.assertRaises(velero_requests.ConfigError) as caught:
                velero_requests.parse_yaml(content, "X")
            self.assertIn("X", str(caught.exception))
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))


class TestKubeconfigTypes(unittest.TestCase):
    """Tests for `check_types`."""

    FIELDS = {"text": str, "flag": bool, "list": [str], "map": {"*": [str]}, "any": object,
              "deep": [{"name": str}]}

    def test_what_passes(self) -> None:
        """The types of the table pass, null counts as absent, unknown fields are let through."""
        for document in (None, {}, {"text": "x", "flag": False, "list": [], "map": {}, "any": 5, "deep": []},
                         {"text": None, "list": [None, "x"], "map": {"a": None, "b": [None]},
                          "deep": [None, {"name": None}]},
                         {"unknown": {"text": 5}, "any": {"text": 5}}, {"deep": [{"name": "x", "text": 5}]}):
            with self.subTest(document):
                velero_requests.check_types(document, self.FIELDS, "")

    def test_what_does_not(self) -> None:
        """A wrong type names its place and what must stand there, never the value."""
        for document, words in (
                ([], "mapping"), ("s3cr3t", "mapping"), ({"text": 5}, "text must be a string"),
            ({"text": True}, "text"),
                ({"text": ["s3cr3t"]}, "text must be a string"),
            ({"flag": "true"}, "flag must be true or false"),
                ({"flag": 1}, "flag"), ({"list": "s3cr3t"}, "list must be a list"),
            ({"list": ["a", 5]}, "list[1] must be a string"),
                ({"map": []}, "map must be a mapping"), ({"map": {"a": "s3cr3t"}}, "map.a must be a list"),
                ({"map": {"a": ["x", {}]}}, "map.a[1]"),
            ({"deep": [{}, {"name": 5}]}, "deep[1].name must be a string"),
                ({"deep": {}}, "deep must be a list")):
            with self.subTest(document), self.assertRaises(velero_requests.ConfigError) as caught:
                velero_requests.check_types(document, self.FIELDS, "")
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))


class TestKubeconfigFrom(unittest.TestCase):
    """Tests for `kubeconfig_from`."""

    def test_the_first_file_wins(self) -> None:
        """The first file owns a name, whole; the first current-context that is not empty counts."""
        one = {"current-context": "", "users": [{"name": "a", "user": {"token": "1"}}]}
        two = {"current-context": "x", "users": [{"name": "a", "user": {"as": "2"}},
                                                 {"name": "b", "user": {}}]}
        three = {"current-context": "y", "clusters": [{"name": "a", "cluster": {"server": "s"}}],
                 "contexts": None}
        config = velero_requests.kubeconfig_from([("/1", one), ("/2", two), ("/3", three), ("/4", None),
                                                  ("/5", {})])
        self.assertEqual(config.users, {"a": ({"token": "1"}, "/1"), "b": ({}, "/2")})
        self.assertEqual((config.clusters, config.contexts), ({"a": ({"server": "s"}, "/3")}, {}))
        self.assertEqual(config.current_context, "x")
        self.assertIn("/1", config.source)

    def test_nothing(self) -> None:
        """No file and empty files are an empty view."""
        for files in ([], [("/1", None)], [("/1", {"users": None, "kind": None})]):
            config = velero_requests.kubeconfig_from(files)
            self.assertEqual((config.users, config.clusters, config.contexts, config.current_context),
                             ({}, {}, {}, ""))

    def test_errors_name_the_file(self) -> None:
        """Wrong types, kinds and double names in any file are an error that names that file."""
        for document in (5, [], "x", {"kind": "Pod"}, {"apiVersion": "v2"}, {"kind": 5}, {"users": 5},
                         {"users": {"a": {}}},
                         {"users": [5]}, {"users": [{"name": 5}]}, {"users": [{"user": {"token": 5}}]},
                         {"users": [{"name": "a"}, {"name": "a"}]}, {"users": [{}, None]},
                         {"contexts": [{"name": "a"}] * 2},
                         {"clusters": [{"name": "a"}] * 2}, {"current-context": ["a"]},
                         {"contexts": [{"context": {"namespace": 5}}]},
                         {"clusters": [{"cluster": {"extensions": [5]}}]}):
            with self.subTest(document), self.assertRaisesRegex(velero_requests.ConfigError, "/2"):
                velero_requests.kubeconfig_from([("/1", {}), ("/2", document), ("/3", {})])

    def test_secrets_are_not_shown(self) -> None:
        """The view and the record hide tokens, passwords, keys and the variables of plugins."""
        user = {"username": "u", "password": "s3cr3t"}
        plugin = {"exec": {**KUBE_EXEC, "env": [{"name": "A", "value": "s3cr3t"}]}}
        for entry in (user, {"token": "s3cr3t"}, plugin,
                      {"client-key-data": "czNjcjN0", "client-certificate": "c"}):
            document = kube_plain(entry, **{"proxy-url": "http://u:s3cr3t@h"})
            shown = repr(kube_record(document)) + repr(velero_requests.kubeconfig_from([("/1", document)]))
            self.assertNotIn("s3cr3t", shown)
            self.assertNotIn("czNjcjN0", shown)


class TestKubeconfigRecord(unittest.TestCase):
    """Tests for `cluster_from_kubeconfig`."""

    def test_fields(self) -> None:
        """Each field has its place in the record; paths start at the folder of the file."""
        data = base64.b64encode(b"PEM").decode()
        for user, cluster, expected in (
                (None, {}, {"token": "t"}), ({}, {}, {}),
                ({"tokenFile": "t"}, {}, {"token_file": "/kube/t"}),
            ({"tokenFile": "../t"}, {}, {"token_file": "/t"}),
                ({"tokenFile": "/abs/../t"}, {}, {"token_file": "/t"}),
            ({"tokenFile": "~/t"}, {}, {"token_file": "/kube/~/t"}),
                ({"username": "u", "password": "p"}, {}, {"username": "u", "password": "p"}),
                ({"client-certificate": "c", "client-key-data": data}, {},
                 {"certificate_file": "/kube/c", "key_data": b"PEM"}),
                ({"client-certificate-data": data, "client-key": "k"}, {},
                 {"certificate_data": b"PEM", "key_file": "/kube/k"}),
                ({}, {"certificate-authority": "ca"}, {"ca_file": "/kube/ca"}),
                ({}, {"certificate-authority-data": data}, {"ca_data": b"PEM"}),
                ({}, {"insecure-skip-tls-verify": True}, {"insecure": True}),
            ({}, {"tls-server-name": "n"}, {"server_name": "n"}),
                ({}, {"proxy-url": "http://h:1"}, {"proxy_url": "http://h:1"}),
                ({"as": "j", "as-groups": ["g", "h"]}, {},
                 {"impersonate": (("Impersonate-User", "j"), ("Impersonate-Group", "g"),
                                  ("Impersonate-Group", "h"))})):
            with self.subTest(user=user, cluster=cluster):
                record = kube_record(kube_plain(user, **cluster))
                wanted = velero_requests.Cluster(server="https://k8s:6443", **expected)
                self.assertEqual(record, wanted)

    def test_paths_of_two_files(self) -> None:
        """Cluster and user each start from the file that they stand in."""
        one = {**kube_plain(**{"certificate-authority": "ca"}), "users": None}
        two = {"users": [{"name": "c", "user": {"tokenFile": "t"}}]}
        config = velero_requests.kubeconfig_from([("/one/config", one), ("/two/x/config", two)])
        record = velero_requests.cluster_from_kubeconfig(config, "")
        self.assertEqual((record.ca_file, record.token_file), ("/one/ca", "/two/x/t"))

    def test_over_http(self) -> None:
        """Over plain http nothing that proves who we are is kept, only whom we want to be."""
        for server in ("http://h:1", "HTTP://h:1", "h:1", "h"):
            for user in ({"token": "t"}, {"tokenFile": "t"}, {"username": "u", "password": "p"},
                         {"exec": KUBE_EXEC}):
                with self.subTest(server, user=user):
                    record = kube_record(kube_plain({**user, "as": "j"}, server=server))
                    self.assertEqual((record.token, record.token_file, record.username, record.password,
                                      record.exec_plugin),
                                     ("", "", "", "", None))
                    self.assertEqual(record.impersonate, (("Impersonate-User", "j"),))
                    self.assertTrue(record.server.startswith("http://h"))

    def test_who_beats_whom(self) -> None:
        """A token, token file, user name or certificate keeps the plugin from being run."""
        for user in ({"token": "t"}, {"tokenFile": "t"}, {"username": "u"},
                     {"client-certificate": "c", "client-key": "k"}):
            with self.subTest(user):
                self.assertIsNone(kube_record(kube_plain({**user, "exec": KUBE_EXEC})).exec_plugin)
        self.assertIsNotNone(kube_record(kube_plain({"exec": KUBE_EXEC})).exec_plugin)

    def test_no_choice(self) -> None:
        """Without a context nothing is chosen, not even the only one there is."""
        self.assertIsNone(kube_record({**kube_plain(), "current-context": ""}))
        self.assertIsNone(kube_record(None))
        self.assertEqual(kube_record({**kube_plain(), "current-context": ""}, "c").token, "t")

    def test_refusals(self) -> None:
        """What cannot be is an error that names the file and the cure where there is one, and no secret."""
        for document, words in (
                (kube_plain({"auth-provider": {"name": "gcp"}}), "gcp"),
                (kube_plain(**{"proxy-url": "socks5://me:s3cr3t@h"}), "SOCKS"),
                (kube_plain(server="ftp://me:s3cr3t@h"), "/kube/config"), (kube_plain(server=""), "server"),
                (kube_plain({"token": "s3cr3t\n"}), "token"),
            (kube_plain({"token": "s3cr3t", "username": "u"}), "token"),
                (kube_plain({"client-certificate-data": "s3cr3t!"}), "/kube/config"),
                (kube_plain({"as-uid": "1", "token": "s3cr3t"}), "/kube/config"),
                ({**kube_plain(), "current-context": "gone"}, "gone"),
            ({**kube_plain(), "clusters": []}, "/kube/config")):
            with self.subTest(document), self.assertRaises(velero_requests.ConfigError) as caught:
                kube_record(document)
            self.assertIn(words, str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception) + "".join(caught.exception.hints))
        with self.assertRaises(velero_requests.ConfigError) as caught:
            kube_record(kube_plain(), "gone")
        self.assertIn("it has: c", caught.exception.hints)


class TestKubeconfigExec(unittest.TestCase):
    """Tests for `exec_plugin_from` and `identity_from_exec`."""

    def plugin(self, **fields: Any) -> Any:
        """The record of an exec entry."""
        return velero_requests.exec_plugin_from({**KUBE_EXEC, **fields}, "/kube/config", "user c")

    def test_fields(self) -> None:
        """Only a command with a separator is a path; v1beta1 asks when there is a terminal."""
        for fields, name, value in (
                ({"command": "x"}, "command", "x"), ({"command": "./x"}, "command", "/kube/x"),
                ({"command": "a/../b"}, "command", "/kube/b"), ({"command": "/x"}, "command", "/x"),
                ({"args": ["a", "b"]}, "arguments", ("a", "b")), ({"args": None}, "arguments", ()),
                ({"env": [{"name": "A", "value": "1"}, {"name": "B"}]}, "environment",
                 (("A", "1"), ("B", ""))),
                ({"installHint": "i"}, "install_hint", "i"),
            ({"provideClusterInfo": True}, "provide_cluster_info", True),
                ({"interactiveMode": "Always"}, "interactive_mode", "Always"),
                ({"apiVersion": "client.authentication.k8s.io/v1beta1", "interactiveMode": None},
                 "interactive_mode",
                 "IfAvailable")):
            with self.subTest(fields):
                self.assertEqual(getattr(self.plugin(**fields), name), value)

    def test_refusals(self) -> None:
        """What kubectl would not run is an error that names the user."""
        for fields, words in (({"command": ""}, "command"), ({"command": None}, "command"),
                              ({"apiVersion": ""}, "apiVersion"),
                              ({"apiVersion": "client.authentication.k8s.io/v1alpha1"}, "v1alpha1"),
                              ({"interactiveMode": None}, "interactiveMode"),
                              ({"interactiveMode": "never"}, "never"),
                              ({"env": [{"value": "s3cr3t"}]}, "env"), ({"env": [None]}, "env")):
            with self.subTest(fields), self.assertRaises(velero_requests.ConfigError) as caught:
                self.plugin(**fields)
            self.assertIn(words, str(caught.exception))
            self.assertIn("user c", str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))

    def test_identities(self) -> None:
        """A token, a certificate or both, with an end or without one."""
        good = {"apiVersion": KUBE_EXEC["apiVersion"]}
        end = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
        pair = {"clientCertificateData": "c", "clientKeyData": "k"}
        for status, expected in (
                ({"token": "t"}, {"token": "t"}), (pair, {"certificate": b"c", "key": b"k"}),
                ({"token": "t", **pair}, {"token": "t", "certificate": b"c", "key": b"k"}),
                ({"token": "t", "expirationTimestamp": "2030-01-02T03:04:05Z"},
                 {"token": "t", "expires": end}),
                ({"token": "t", "expirationTimestamp": "2030-01-02T05:04:05+02:00"},
                 {"token": "t", "expires": end}),
                ({"token": "t", "expirationTimestamp": None}, {"token": "t"})):
            for kind in ({}, {"kind": None}, {"kind": "ExecCredential"}):
                with self.subTest(status, kind=kind):
                    identity = velero_requests.identity_from_exec({**good, **kind, "status": status},
                                                                  self.plugin())
                    self.assertEqual(identity, velero_requests.Identity(**expected))

    def test_no_identities(self) -> None:
        """Anything else is an error that names the plugin and quotes nothing."""
        good = {"apiVersion": KUBE_EXEC["apiVersion"], "status": {"token": "s3cr3t"}}
        for answer in (None, [], "s3cr3t", 5, {}, {**good, "status": None}, {**good, "status": "s3cr3t"},
                       {**good, "apiVersion": None}, {**good,
                                                      "apiVersion": "client.authentication.k8s.io/v1beta1"},
                       {**good, "kind": "Pod"}, {**good, "status": {"token": ""}},
                       {**good, "status": {"token": ["s3cr3t"]}},
                       {**good, "status": {"token": "s3cr3t\n"}},
                       {**good, "status": {"clientKeyData": "s3cr3t"}},
                       {**good, "status": {"token": "s3cr3t", "clientCertificateData": "s3cr3t"}},
                       {**good, "status": {"token": "s3cr3t", "expirationTimestamp": "s3cr3t"}}):
            with self.subTest(answer), self.assertRaises(velero_requests.ConfigError) as caught:
                velero_requests.identity_from_exec(answer, self.plugin())
            self.assertIn("plugin", str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))


class TestKubeconfigRuleFor(unittest.TestCase):
    """Tests for `rule_for`."""

    def test_what_grants_a_call(self) -> None:
        """A refused call is told as verb, resource and namespace, and the line of a Role that grants it."""
        root = "/apis/velero.io/v1/namespaces/v/downloadrequests"
        for method, path, watching, verb, resource, group in (
                ("POST", root, False, "create", "downloadrequests", "velero.io"),
                ("GET", root, False, "list", "downloadrequests", "velero.io"),
                ("GET", root, True, "watch", "downloadrequests", "velero.io"),
                ("GET", f"{root}/x", False, "get", "downloadrequests", "velero.io"),
                ("PATCH", f"{root}/x", False, "patch", "downloadrequests", "velero.io"),
                ("PATCH", f"{root}/x/status", False, "patch", "downloadrequests/status", "velero.io"),
                ("DELETE", f"{root}/x", False, "delete", "downloadrequests", "velero.io"),
                ("GET", "/api/v1/namespaces/v/secrets/s", False, "get", "secrets", "")):
            with self.subTest(method, path=path):
                words, rule = velero_requests.rule_for(method, path, watching)
                self.assertEqual(words, f"{verb} {resource} in namespace v")
                self.assertEqual(yaml.safe_load(rule),
                                 [{"apiGroups": [group], "resources": [resource], "verbs": [verb]}])

    def test_what_no_role_grants(self) -> None:
        """Paths that are no resources have no rule."""
        for path in ("/version", "/apis/velero.io/v1", "/api/v1/namespaces", "", "/api/v1/namespaces/v"):
            self.assertEqual(velero_requests.rule_for("GET", path, False), ("", ""))


# ------------------------------------------------------------------------------------------------------------
# Endurance: the tools
# ------------------------------------------------------------------------------------------------------------

SOAK = float(os.environ.get("VELERO_SOAK", "20"))
LONG = SOAK >= 120
ALWAYS = 1 << 30
EVERYTHING: Document = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}


def spend(seconds: float) -> None:
    """Let time pass where time itself is what is tested: rates, silences, outages."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5)


class RestartableCluster(FakeCluster):
    """A fake cluster that can be away for a while and comes back on its port with all it kept."""

    def cut_connections(self) -> None:
        """Cut every open connection; the threads that serve them close them."""
        with self._log_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)

    def shut(self) -> None:
        """Refuse and cut every connection, as while an API server restarts."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        self.cut_connections()

    def reopen(self) -> None:
        """Serve again."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(512)
        self._thread = threading.Thread(target=self._accept, name="loopback-accept", daemon=True)
        self._thread.start()


class TokenFiles(World):
    """Tokens in a file, as the kubelet gives them to a pod."""

    def write_token(self, token: str) -> str:
        """Put a token into the file of token_kubeconfig the way the kubelet does, and return the path."""
        path = os.path.join(self.folder, "token")
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(token + "\n")
        os.replace(path + ".new", path)
        return path

    def token_kubeconfig(self, token: str) -> str:
        """Write a kubeconfig that takes its token from a file, with this in it."""
        with open(self.kubeconfig, encoding="utf-8") as file:
            document = yaml.safe_load(file)
        document["users"][0]["user"] = {"tokenFile": self.write_token(token)}
        path = os.path.join(self.folder, "with-token-file")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        return path


class EnduranceWorld(TokenFiles, FakeWorld):
    """A cluster over TLS that fails in scripted ways; the controller is a user of its own."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Start both fakes."""
        return RestartableCluster(tls=True), FakeStore()

    def setUp(self) -> None:
        """Start with an empty log and no faults."""
        super().setUp()
        logging.getLogger("velero_requests").setLevel(logging.INFO)
        self.cluster.forget()
        self.addCleanup(self.cluster.unlimit)
        self.addCleanup(self.cluster.unscript)
        self.addCleanup(lambda: [controller.stop.set() for controller in self.controllers])

    def seed(self) -> None:
        """Let the controller do everything in the test's namespace."""
        super().seed()
        self.cluster.grant("controller", EVERYTHING, namespace=self.namespace)

    def move(self, namespace: str = "") -> str:
        """Go on in this namespace, or in a new one with all that a request needs."""
        self.namespace = namespace or self.cluster.new_namespace()
        if not namespace:
            self.seed()
        return self.namespace

    def serve(self, user: str = "controller", plugins: Tuple[Tuple[str, str], ...] = ()) -> Any:
        """Run a controller as a user of its own, so that the log tells its requests from the test's."""
        return super().serve(user, plugins)

    def path(self, rest: str = "downloadrequests") -> str:
        """Return a part of the path of what lies in the test's namespace."""
        return f"/namespaces/{self.namespace}/{rest}"

    def api(self, kubeconfig: str = "", patience: float = 20.0) -> Any:
        """Return a connection of the module's own."""
        api = velero_requests.connect(velero_requests.load_cluster(kubeconfig or self.kubeconfig))
        self.addCleanup(lambda: api.login.door.pool.close())
        return dataclasses.replace(api, patience=patience)

    def new_token(self, user: str = "admin") -> str:
        """Return one more token of a user."""
        token = "more-" + uuid.uuid4().hex
        self.cluster.tokens[token] = user
        return token

    def said(self, *words: str) -> int:
        """Return how many lines of the log have all these words in them."""
        return sum(all(word in line for word in words) for line in self.log.getvalue().splitlines())

    def watched(self) -> None:
        """Wait until both watches of the test's namespace are open."""
        wait_until(lambda: len(self.cluster.watches(self.path(""))) == 2, 40, "two watches")


# ------------------------------------------------------------------------------------------------------------
# Endurance: one request
# ------------------------------------------------------------------------------------------------------------

class TestRetryTables(unittest.TestCase):
    """When a call may be sent again, and when."""

    def test_retry_after_is_seconds_or_a_date(self) -> None:
        """Seconds and HTTP dates become seconds from now, the past becomes zero and all else nothing."""
        now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=timezone.utc)
        for header, wanted in (("0", 0.0), ("1", 1.0), ("120", 120.0), ("999999999", 999999999.0), ("", None),
                               ("Wed, 21 Oct 2015 07:28:07 GMT", 7.0), ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
                               ("Wednesday, 21-Oct-15 07:28:07 GMT", 7.0), ("Wed Oct 21 07:28:07 2015", 7.0),
                               ("Wed, 21 Oct 2015 09:28:07 +0200", 7.0), ("1.5", None), ("-1", None),
                               ("\xb2", None), ("\u0661", None), ("soon", None), ("9" * 400, None),
                               ("1e3", None),
                               ("Wed, 99 Oct 2015 07:28:07 GMT", None), (" ", None), ("NaN", None)):
            with self.subTest(header=header):
                self.assertEqual(velero_requests.retry_after_seconds(header, now), wanted)

    def test_what_may_be_sent_again(self) -> None:
        """429 may always, 5xx never for POST, other statuses never, and nothing more than three times."""
        for method in ("GET", "PATCH", "DELETE", "PUT", "POST"):
            for status in (429, 500, 502, 503, 504, 400, 401, 403, 404, 409, 410, 422, 501, 301):
                again = status == 429 or (method != "POST" and status in (500, 502, 503, 504))
                with self.subTest(method=method, status=status):
                    waits = [velero_requests.retry_wait(method, attempt, status, None) is not None
                             for attempt in (1, 2, 3)]
                    self.assertEqual(waits, [again, again, False])

    def test_how_long_to_wait(self) -> None:
        """Retry-After counts up to ten seconds, without one the wait grows from a tenth of a second."""
        for attempt, asked, wanted in ((1, 0.0, 0.0), (1, 3.0, 3.0), (2, 3.0, 3.0), (1, 3600.0, 10.0),
                                       (1, None, 0.1), (2, None, 0.2)):
            with self.subTest(attempt=attempt, asked=asked):
                self.assertEqual(velero_requests.retry_wait("GET", attempt, 503, asked), wanted)


def http_date(seconds: float) -> str:
    """Return an HTTP date this far from now."""
    return formatdate(time.time() + seconds, usegmt=True)


# A way to call each verb of the module: method, part of the target, the call itself.
CALLS: Dict[str, Tuple[str, str, Callable[[Any, str], Any]]] = {
    "get": ("GET", "/backups/b1", lambda api, space: velero_requests.get(
        api, velero_requests.BACKUPS, space, "b1")),
    "list": ("GET", "/backups?", lambda api, space: list(velero_requests.list_pages(
        api, velero_requests.BACKUPS, space))),
    "watch": ("GET", "watch=true", lambda api, space: velero_requests.open_watch(
        api, velero_requests.BACKUPS, space, "0", seconds=1, silence=api.patience).close()),
    "discovery": ("GET", "/apis/velero.io/v1", lambda api, space: velero_requests.served_resources(
        api, "velero.io/v1")),
    "patch": ("PATCH", "/backups/b1", lambda api, space: velero_requests.merge_patch(
        api, velero_requests.Key(velero_requests.BACKUPS, space, "b1"),
        {"metadata": {"labels": {"a": "b"}}})),
    "delete": ("DELETE", "/backups/b2", lambda api, space: velero_requests.delete(
        api, velero_requests.Key(velero_requests.BACKUPS, space, "b2"))),
    "create": ("POST", "/downloadrequests", lambda api, space: velero_requests.create(
        api, velero_requests.DOWNLOAD_REQUESTS,
        velero_requests.new_download_request(space, "BackupLog", "b1"))),
}
REPEATABLE = [name for name in CALLS if name != "create"]


class TestRequestFaults(EnduranceWorld, unittest.TestCase):
    """Row 6: one call and what can happen to it."""

    def statuses(self, method: str, part: str) -> List[Optional[int]]:
        """Return the statuses of the matching requests."""
        return [request.status for request in self.cluster.seen(method, part, user="admin")]

    def test_what_may_be_repeated_is_repeated(self) -> None:
        """Throttled, failed or cut off, every call but a POST is made again and succeeds."""
        api = self.api()
        for options in ({"status": 429, "headers": {"Retry-After": "0"}}, {"status": 500, "body": "oops"},
                        {"status": 502, "body": "<html>"}, {"status": 504}, {"drop": True},
                        {"status": 503, "headers": {"Retry-After": http_date(-5)}}):
            for name in REPEATABLE:
                method, part, call = CALLS[name]
                with self.subTest(call=name, **{key: str(value) for key, value in options.items()}):
                    fault = self.cluster.script(method, part, **options)
                    call(api, self.namespace)
                    self.assertEqual(fault.hits, 1)

    def test_retry_after_is_kept(self) -> None:
        """A call waits as long as the server says, in seconds or until a date."""
        api = self.api()
        for header, least in (("1", 1.0), (http_date(3), 1.0)):
            with self.subTest(header=header):
                self.cluster.script("GET", "/backups/b1", status=429, headers={"Retry-After": header})
                started = time.monotonic()
                CALLS["get"][2](api, self.namespace)
                self.assertGreaterEqual(time.monotonic() - started, least)

    def test_nothing_is_repeated_without_end(self) -> None:
        """A server that fails every time is asked three times, and its own words are the error."""
        api = self.api()
        for status in (429, 503):
            for name in REPEATABLE:
                method, part, call = CALLS[name]
                with self.subTest(call=name, status=status):
                    self.cluster.unscript()
                    fault = self.cluster.script(method, part, ALWAYS, status=status,
                                                body={"message": "the disk is on fire"})
                    with self.assertRaisesRegex(velero_requests.ApiError, "the disk is on fire.*" + method):
                        call(api, self.namespace)
                    self.assertEqual(fault.hits, 3)

    def test_a_post_is_never_sent_twice(self) -> None:
        """Whatever happens to it, a POST that may have had its effect is not sent again."""
        api = self.api(patience=0.4)
        for options in ({"status": 500}, {"status": 502}, {"status": 503, "headers": {"Retry-After": "0"}},
                        {"status": 504}, {"drop": True}, {"drop": True, "apply": True}, {"cut_after": 5},
                        {"status": 500, "apply": True}, {"hang": threading.Event()},
                        {"pause_after": 3, "gate": threading.Event()}, {"body": "<html>"}):
            with self.subTest(**{key: str(value) for key, value in options.items()}):
                before = self.cluster.count("POST", self.path())
                self.cluster.script("POST", self.path(), **options)
                with self.assertRaises((velero_requests.ApiError, velero_requests.Unreachable)):
                    CALLS["create"][2](api, self.namespace)
                self.assertEqual(self.cluster.count("POST", self.path()) - before, 1)

    def test_a_throttled_post_is_sent_again(self) -> None:
        """429 says that nothing was done, so a POST is sent again and makes one object."""
        self.cluster.script("POST", self.path(), 2, status=429, headers={"Retry-After": "0"})
        CALLS["create"][2](self.api(), self.namespace)
        self.assertEqual((self.statuses("POST", self.path()), len(self.names())), ([429, 429, 201], 1))

    def test_idle_connections_that_were_closed_are_replaced(self) -> None:
        """After the server closed all connections every call works, a POST too."""
        api = self.api()
        for name, (_, _, call) in CALLS.items():
            with self.subTest(call=name):
                call(api, self.namespace)
                self.cluster.cut_connections()
                call(api, self.namespace)

    def test_every_call_has_a_read_timeout(self) -> None:
        """A server that takes a request and says nothing is given up after the Api's patience."""
        api = self.api(patience=0.3)
        for name, (method, part, call) in CALLS.items():
            with self.subTest(call=name):
                self.cluster.unscript()
                fault = self.cluster.script(method, part, ALWAYS, hang=threading.Event())
                started = time.monotonic()
                with self.assertRaisesRegex(velero_requests.Unreachable, "does not answer in time"):
                    call(api, self.namespace)
                self.assertLess(time.monotonic() - started, 3)
                self.assertEqual(fault.hits, 1)

    def test_an_answer_that_stops_has_a_timeout(self) -> None:
        """A body that stops half-way is an error after the Api's patience, also that of an error."""
        api = self.api(patience=0.15)
        for name in ("get", "list", "patch", "create", "discovery"):
            method, part, call = CALLS[name]
            for options in ({}, {"status": 500, "body": "x" * 100}, {"status": 409, "body": "x" * 100}):
                with self.subTest(call=name, **options):
                    self.cluster.unscript()
                    self.cluster.script(method, part, ALWAYS, pause_after=5, gate=threading.Event(),
                                        **options)
                    with self.assertRaises(velero_requests.Error):
                        call(api, self.namespace)

    def test_connecting_has_a_timeout(self) -> None:
        """A host that accepts a connection and never speaks TLS is given up, as is one that accepts none."""
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        cluster = velero_requests.Cluster(server=f"https://127.0.0.1:{listener.getsockname()[1]}")
        api = dataclasses.replace(velero_requests.connect(cluster), patience=0.3)
        for _ in range(4):  # the first ones fill the listener's queue
            started = time.monotonic()
            with self.assertRaises(velero_requests.Unreachable):
                CALLS["get"][2](api, self.namespace)
            self.assertLess(time.monotonic() - started, 3)

    def test_bodies_that_break_off_are_one_error(self) -> None:
        """A cut answer, whole or refusal, is an error of the module's own and no other exception."""
        api = self.api()
        for options in ({"cut_after": 5}, {"status": 500, "body": "x" * 100, "cut_after": 5},
                        {"status": 403, "body": {"message": "no" * 50}, "cut_after": 9},
                        {"status": 200, "body": b"no gzip", "headers": {"Content-Encoding": "gzip"}},
                        {"status": 500, "body": b"no gzip", "headers": {"Content-Encoding": "gzip"}},
                        {"chunks": [b'{"kind": ', b'"Back'], "cut": True}, {"chunks": [b"{}"], "status": 500,
                                                                             "cut": True}):
            for name in ("get", "list", "create", "patch", "discovery"):
                method, part, call = CALLS[name]
                with self.subTest(call=name, **{key: str(value) for key, value in options.items()}):
                    self.cluster.unscript()
                    self.cluster.script(method, part, ALWAYS, **options)
                    with self.assertRaises(velero_requests.Error):
                        call(api, self.namespace)

    def test_answers_of_the_wrong_shape_are_one_error_or_none(self) -> None:
        """HTML, half of a document or a document that is no object is an error that names the call."""
        api = self.api()
        for body in ("<html><body>Sign in</body></html>", '{"kind": "Backup", "meta', "[]", "5", "null",
                     '"x"', "", "[" * 100_000, b"\xff\xfe", b"\x00"):
            for name in ("get", "list", "create", "patch", "discovery"):
                method, part, call = CALLS[name]
                with self.subTest(call=name, body=str(body)[:40]):
                    self.cluster.script(method, part, status=200, body=body)
                    with self.assertRaisesRegex(velero_requests.Unreachable, method):
                        call(api, self.namespace)

    def test_discovery_of_the_wrong_shape_is_no_bug(self) -> None:
        """A discovery document with nonsense in it lists nothing, or is an error of the module's own."""
        api = self.api()
        for resources in (5, True, "abc", {"a": 1}, [5, None, {"name": 7}], [[]], None):
            with self.subTest(resources=resources):
                self.cluster.script("GET", "/apis/velero.io/v1", status=200, body={"resources": resources})
                try:
                    listed = CALLS["discovery"][2](api, self.namespace)
                except velero_requests.Error:
                    continue
                self.assertNotIn("downloadrequests", listed)

    def test_answers_that_are_compressed_or_large(self) -> None:
        """A gzip answer is read, one of 50 MB is refused with an error that names the call."""
        api = self.api()
        body = gzip.compress(json.dumps({"metadata": {"name": "b1"}}).encode())
        self.cluster.script("GET", "/backups/b1", status=200, body=body, headers={"Content-Encoding": "gzip"})
        self.assertEqual(CALLS["get"][2](api, self.namespace)["metadata"]["name"], "b1")
        for whole in (b'{"items": ["' + b"x" * (50 << 20) + b'"]}', b"x" * (50 << 20)):
            self.cluster.script("GET", "/backups?", status=200, body=whole)
            with self.assertRaisesRegex(velero_requests.Unreachable, "GET .*/backups"):
                CALLS["list"][2](api, self.namespace)
        self.assertEqual(len(CALLS["list"][2](api, self.namespace)), 1)

    def test_a_padded_answer_does_not_spoil_the_next_call(self) -> None:
        """What is left unread of one answer is never taken for the next one."""
        api = self.api()
        self.cluster.script("GET", "/backups/b1", status=200, body=b"{}" + b" " * (50 << 20))
        with contextlib.suppress(velero_requests.Error):
            CALLS["get"][2](api, self.namespace)
        CALLS["create"][2](api, self.namespace)
        self.assertEqual(len(self.names()), 1)

    def test_warnings_of_the_cluster_are_shown_once(self) -> None:
        """Each text of a Warning header is shown once, in one line, whatever else the header has."""
        api = self.api()
        header = '299 - "v1 is \\"old\\"", 299 - "use v2\tnow", 199 - "misc", nonsense'
        self.cluster.script("GET", "/backups/b1", 5, headers={"Warning": header})
        for _ in range(5):
            CALLS["get"][2](api, self.namespace)
        self.assertEqual((self.said("v1 is"), self.said("use v2"), self.said("misc")), (1, 1, 0))

    def test_warnings_of_refusals_are_shown_too(self) -> None:
        """A Warning header is shown when the call fails, without tokens, and stdout stays empty."""
        told = f'299 - "ask the admin, Bearer {token_of("admin")}"'
        self.cluster.script("GET", "/backups/b1", status=404, headers={"Warning": told},
                            body={"reason": "NotFound", "message": "gone"})
        result = self.cli("backup", "logs", "b1")
        self.assert_failed(result, 3)
        self.assertEqual(result.err.count("ask the admin"), 1)

    def test_errors_quote_the_api(self) -> None:
        """An error has the API's own message, the method, the path and the status; a long one is cut."""
        api = self.api()
        for body, words in (({"message": "admission webhook says no"}, "admission webhook says no"),
                            ("<html>gateway</html>", "gateway"), ("", "no text"), ({}, "{}"),
                            ({"message": "x" * 100_000}, "xxx"), ({"message": 5}, "5"), ("[]", "[]")):
            with self.subTest(body=str(body)[:40]):
                self.cluster.script("GET", "/backups/b1", status=418, body=body)
                with self.assertRaises(velero_requests.ApiError) as caught:
                    CALLS["get"][2](api, self.namespace)
                text = str(caught.exception)
                self.assertIn(words, text)
                self.assertRegex(text, r"GET /apis/.*/backups/b1: 418")
                self.assertLess(len(text), 2048)

    def test_a_refused_call_names_the_missing_right(self) -> None:
        """403 says verb, resource and namespace, and the line of a Role that grants it, for every call."""
        wanted = {"get": ("velero.io", "backups", "get"), "list": ("velero.io", "backups", "list"),
                  "watch": ("velero.io", "backups", "watch"), "patch": ("velero.io", "backups", "patch"),
                  "delete": ("velero.io", "backups", "delete"),
                  "create": ("velero.io", "downloadrequests", "create")}
        self.cluster.limit("admin", "get", "list", "watch", "patch", "delete", resource="backups")
        self.cluster.limit("admin", "create", resource="downloadrequests")
        api = self.api()
        for name, (group, resource, verb) in wanted.items():
            with self.subTest(call=name):
                with self.assertRaises(velero_requests.ApiError) as caught:
                    CALLS[name][2](api, self.namespace)
                hints = " ".join(caught.exception.hints)
                self.assertEqual(int(caught.exception.exit), 5)
                self.assertIn(f"{verb} {resource} in namespace {self.namespace}", hints)
                self.assertIn(f'apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]', hints)

    def test_a_conflict_is_looked_at_again(self) -> None:
        """After 409 the controller reads the object again and answers what it finds."""
        self.serve()
        self.settle()
        self.cluster.script("PATCH", self.path("downloadrequests/"), status=409,
                            body={"reason": "Conflict", "code": 409, "message": "they differ"})
        name = self.ask()
        self.answered(name)
        self.assertEqual(self.cluster.count("GET", self.path("downloadrequests/" + name), "controller"), 1)
        self.assertEqual(self.said("they differ"), 0)


# ------------------------------------------------------------------------------------------------------------
# Endurance: who we are
# ------------------------------------------------------------------------------------------------------------

class TestRotation(EnduranceWorld, unittest.TestCase):
    """Rows 3 and 6: tokens that are replaced while somebody works with them."""

    def users(self, part: str) -> List[Optional[str]]:
        """Return who made the matching requests; None stands for a token that nobody knows."""
        return [request.user for request in self.cluster.seen(None, part)
                if request.headers.get("user-agent", "").startswith("velero_requests")]

    def test_a_refused_token_is_read_again_at_once(self) -> None:
        """When the file has another token, a call that met 401 is made once more, a POST too."""
        for name, (method, part, call) in CALLS.items():
            with self.subTest(call=name):
                old = self.new_token()
                api = self.api(self.token_kubeconfig(old))
                velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")
                self.write_token(self.new_token())
                del self.cluster.tokens[old]
                self.cluster.forget()
                call(api, self.namespace)
                self.assertEqual([request.status == 401 for request in self.cluster.seen(method, part)],
                                 [True, False])

    def test_a_token_that_stays_refused_is_tried_twice(self) -> None:
        """When the file has no better token, the second 401 is the error, and says what to do."""
        old = self.new_token()
        api = self.api(self.token_kubeconfig(old))
        del self.cluster.tokens[old]
        for name, (method, part, call) in CALLS.items():
            with self.subTest(call=name):
                self.cluster.forget()
                with self.assertRaises(velero_requests.ApiError) as caught:
                    call(api, self.namespace)
                self.assertEqual((caught.exception.status, self.cluster.count()), (401, 2))
                self.assertIn("log in again", " ".join(caught.exception.hints))

    def test_a_fixed_token_is_tried_once(self) -> None:
        """A token of the kubeconfig itself cannot be renewed, so its 401 is the error at once."""
        self.cluster.script("GET", "/backups/b1", ALWAYS, status=401, body={"message": "Unauthorized"})
        result = self.cli("backup", "logs", "b1")
        self.assert_failed(result, 5, "Unauthorized")
        self.assertEqual(self.cluster.count("GET", "/backups/b1"), 1)
        self.assertIn("log in again", result.err)

    def test_a_read_that_fails_keeps_the_old_token(self) -> None:
        """While the file is gone, empty, half-written, a folder or unreadable, the old token is used."""
        api = self.api(self.token_kubeconfig(self.new_token()))
        path = os.path.join(self.folder, "token")

        def write(content: bytes) -> None:
            with open(path, "wb") as file:
                file.write(content)
        for name, spoil in (("empty", lambda: write(b"")), ("blank", lambda: write(b" \n")),
                            ("two lines", lambda: write(b"a\nb")), ("binary", lambda: write(b"\xff\x00\x80")),
                            ("gone", lambda: os.remove(path)), ("folder", lambda: os.mkdir(path))):
            with self.subTest(name):
                velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")
                spoil()
                self.cluster.script("GET", "/backups/b1", status=401, body={})
                self.cluster.forget()
                velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")
                self.assertEqual(self.users("/backups/b1"), ["admin", "admin"])

    def test_without_a_token_nothing_is_sent(self) -> None:
        """An empty or absent token file and a failing plugin are errors each time, nothing anonymous."""
        path = self.token_kubeconfig("")
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
        plugin = {"exec": {"apiVersion": "client.authentication.k8s.io/v1beta1", "command": "/bin/false"}}
        absent = {"tokenFile": os.path.join(self.folder, "absent")}
        for name, user in (("empty", document["users"][0]["user"]), ("absent", absent), ("plugin", plugin)):
            document["users"][0]["user"] = user
            with open(path, "w", encoding="utf-8") as file:
                yaml.safe_dump(document, file)
            api = self.api(path)
            for attempt in range(3):
                with self.subTest(name, attempt=attempt):
                    self.cluster.forget()
                    with self.assertRaises(velero_requests.ConfigError):
                        velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")
                    self.assertEqual(self.cluster.seen(), [])

    def test_a_token_rotates_under_a_running_controller(self) -> None:
        """Old token out, new one in the file: no request notices, and nobody is told of trouble."""
        tokens = [self.new_token("controller")]
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(tokens[0]), "-n",
                          self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        for _ in range(5):
            tokens.append(self.new_token("controller"))
            self.write_token(tokens[-1])
            del self.cluster.tokens[tokens[-2]]
            self.settle()
            self.cluster.cut_watches()
        self.watched()
        self.assertNotIn("nauthorized", program.text())
        self.assert_clean(*tokens, program.text())
        self.assertEqual(program.end(signal.SIGTERM).code, 0)

    def test_a_revoked_token_is_waited_for(self) -> None:
        """Between the end of the old token and the new one the controller waits and says so once."""
        old = self.new_token("controller")
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(old), "-n",
                          self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        del self.cluster.tokens[old]
        self.cluster.cut_watches()
        wait_until(lambda: self.cluster.count("GET", "watch=", status=401) >= 4, 15, "some refusals")
        name = self.ask()
        self.write_token(self.new_token("controller"))
        self.answered(name)
        lines = [line for line in program.text().splitlines() if "downloadrequests: " in line]
        self.assertEqual(len(lines), 1, program.text())


# ------------------------------------------------------------------------------------------------------------
# Endurance: what is not allowed
# ------------------------------------------------------------------------------------------------------------

def words_of(verb: str, group: str, resource: str, namespace: str) -> Tuple[str, ...]:
    """Return what a sentence about a missing right has to have in it."""
    return (f"{verb} {resource} in namespace {namespace}",
            f'apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]')


RIGHTS = (("list", "velero.io", "downloadrequests"), ("watch", "velero.io", "downloadrequests"),
          ("patch", "velero.io", "downloadrequests"), ("get", "velero.io", "backups"),
          ("get", "velero.io", "backupstoragelocations"), ("get", "", "secrets"),
          ("list", "velero.io", "serverstatusrequests"), ("watch", "velero.io", "serverstatusrequests"),
          ("patch", "velero.io", "serverstatusrequests"))


class TestRights(EnduranceWorld, unittest.TestCase):
    """Row 8: what is not allowed is said once, with the cure."""

    def rob(self, verb: str, resource: str, user: str = "controller") -> None:
        """Take a right in the test's namespace away."""
        self.cluster.limit(user, verb, resource=resource, namespace=self.namespace)

    def test_a_controller_says_once_what_it_may_not(self) -> None:
        """Each missing right is one line with verb, resource, namespace and rule, however many tries."""
        spaces = []
        for verb, _, resource in RIGHTS:
            spaces.append(self.move())
            self.rob(verb, resource)
            self.serve()
            self.ask()
            self.ask_status()
        for (verb, group, resource), space in zip(RIGHTS, spaces):
            with self.subTest(verb=verb, resource=resource):
                wait_until(lambda space=space, resource=resource: self.cluster.count(
                    None, f"/{space}/{resource}", "controller", 403) > 2 or self.turn(seconds=5), 20, "tries")
                self.assertEqual(self.said(*words_of(verb, group, resource, space)), 1)

    def test_many_requests_say_it_once(self) -> None:
        """One missing right that fails twenty requests is one line."""
        self.rob("get", "secrets")
        self.serve()
        for name in [self.ask() for _ in range(20)]:
            self.failed(name)
        self.assertEqual(self.said(*words_of("get", "", "secrets", self.namespace)), 1)

    def test_a_right_given_back_heals(self) -> None:
        """What failed for want of a right is answered once the right is there, and may be missed again."""
        self.serve()
        self.settle()
        for verb, resource in (("list", "downloadrequests"), ("watch", "downloadrequests"),
                               ("patch", "downloadrequests"), ("get", "secrets"), ("get", "backups")):
            with self.subTest(verb=verb, resource=resource):
                self.turn(minutes=1)
                self.cluster.forget()
                self.rob(verb, resource)
                self.cluster.compact()
                self.cluster.cut_watches(self.path())
                name = self.ask()
                wait_until(lambda: self.cluster.count(user="controller", status=403), 10, "a refusal")
                self.cluster.unlimit()
                self.healed(name)

    def test_a_controller_without_events_says_so(self) -> None:
        """Without the right to create events requests get their reason, and the log says so once."""
        self.rob("create", "events")
        self.serve()
        for name in [self.ask(name=f"nobody-{number}") for number in range(5)]:
            self.assertEqual(reason_of(self.failed(name)), "BackupNotFound")
        wait_until(lambda: self.cluster.count("POST", "events", "controller", 403) == 5, 10, "the events")
        self.assertEqual(self.said(*words_of("create", "", "events", self.namespace)), 1)

    def test_a_controller_that_may_not_delete_goes_on(self) -> None:
        """An expired request that may not be deleted is tried with back-off, and others are answered."""
        self.rob("delete", "downloadrequests")
        self.serve()
        self.answered(self.ask())
        self.turn(minutes=11)
        wait_until(lambda: self.cluster.count("DELETE", self.path(), "controller", 403) > 2, 10, "tries")
        self.answered(self.ask())
        self.assertEqual(self.said(*words_of("delete", "velero.io", "downloadrequests", self.namespace)), 1)
        self.assertLess(self.cluster.count("DELETE", self.path(), "controller"), 20)

    def test_a_client_names_what_it_may_not(self) -> None:
        """A command that is refused exits with 5 and names verb, resource, namespace and rule."""
        self.rob("create", "downloadrequests", "admin")
        self.rob("create", SSR, "admin")
        for resource, argv in (("downloadrequests", ("backup", "logs", "b1")), (SSR, ("plugin", "get"))):
            with self.subTest(argv=argv):
                result = self.cli(*argv)
                self.assert_failed(result, 5, "forbidden")
                for words in words_of("create", "velero.io", resource, self.namespace):
                    self.assertEqual(result.err.count(words), 1, result.err)

    def test_a_client_that_may_not_watch_polls(self) -> None:
        """Without watch the request is read until it is answered, which -v tells with the reason."""
        self.rob("watch", "downloadrequests", "admin")
        self.serve()
        self.put()
        for flags, told in (((), 0), (("-v",), 1)):
            with self.subTest(flags=flags):
                self.cluster.forget()
                result = self.cli(*flags, "backup", "logs", "b1")
                self.assertEqual((result.code, result.out), (0, LOG), result.err)
                self.assertEqual(result.err.count("cannot watch resource"), told, result.err)
                self.assertEqual(self.cluster.count("GET", "watch=", "admin"), 1)

    def test_a_client_that_may_not_delete_says_so_with_v(self) -> None:
        """Without delete the request stays until it expires; only -v says so, and the job is done."""
        self.rob("delete", "downloadrequests", "admin")
        self.serve()
        self.put()
        for flags, told in (((), 0), (("-v",), 1)):
            with self.subTest(flags=flags):
                result = self.cli(*flags, "backup", "logs", "b1")
                self.assertEqual((result.code, result.out), (0, LOG), result.err)
                self.assertEqual(result.err.count("until it expires"), told, result.err)
        self.assertEqual(len(self.names()), 2)
        self.turn(minutes=11)
        wait_until(lambda: not self.names(), 15, "the controller to delete them")

    def test_a_client_that_may_not_read_is_told(self) -> None:
        """A client that may neither watch nor get its request cannot wait, and ends with 5 and the rule."""
        for verb in ("watch", "get"):
            self.rob(verb, "downloadrequests", "admin")
        result = self.cli("backup", "logs", "b1", "--timeout", "10s")
        self.assert_failed(result, 5)
        self.assertIn(words_of("get", "velero.io", "downloadrequests", self.namespace)[1], result.err)


# ------------------------------------------------------------------------------------------------------------
# Endurance: watches
# ------------------------------------------------------------------------------------------------------------

def status_event(code: Any, reason: str = "") -> Document:
    """Return an ERROR event of a watch."""
    return {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                                        "message": "made up", "code": code, "reason": reason}}


def bookmark(version: str) -> Document:
    """Return a bookmark."""
    return {"type": "BOOKMARK", "object": {"kind": "DownloadRequest", "apiVersion": "velero.io/v1",
                                           "metadata": {"resourceVersion": version}}}


EXPIRED: Document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                     "reason": "Expired", "message": "too old resource version"}
GZIP = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
HTML = "<html>\n<body>\nSign in, please\n</body>\n</html>\n"

# What may become of any GET, by name.
GET_FAULTS: Dict[str, Document] = {
    "HTTP 401": {"status": 401, "body": {"message": "Unauthorized"}},
    "HTTP 403": {"status": 403, "body": {"message": "forbidden"}},
    "HTTP 404": {"status": 404, "body": "404 page not found"},
    "HTTP 410": {"status": 410, "body": EXPIRED},
    "HTTP 410 of a proxy": {"status": 410, "body": HTML},
    "reason Expired without 410": {"status": 400, "body": {**EXPIRED, "code": 400}},
    "HTTP 429": {"status": 429, "headers": {"Retry-After": "1"}, "body": "slow down"},
    "HTTP 500": {"status": 500, "body": {"message": "etcd leader changed"}},
    "HTTP 503 without a word": {"status": 503},
    "HTTP 302": {"status": 302, "headers": {"Location": "https://127.0.0.1:1/"}},
    "connection reset": {"drop": True},
    "an error that breaks off": {"status": 500, "body": "x" * 99, "cut_after": 5},
    "HTML": {"status": 200, "body": HTML},
    "an empty body": {"status": 200, "body": ""},
    "truncated JSON": {"status": 200, "body": '{"kind": "DownloadRequestList", "items": [{"meta'},
    "JSON of the wrong shape": {"status": 200, "body": '[1, null, "x"]\n5\nnull\n{"items": 5}\n'},
    "JSON too deep": {"status": 200, "body": "[" * 100_000 + "\n"},
    "no JSON but gzip": {"status": 200, "headers": GZIP, "body": gzip.compress(HTML.encode())},
    "broken gzip": {"status": 200, "headers": GZIP, "body": b"\x1f\x8b\x08nonsense"},
    "NUL bytes": {"status": 200, "body": b"\0" * 1000},
}

# What may become of a watch, by name.
WATCH_FAULTS: Dict[str, Document] = {
    **GET_FAULTS,
    "a stream that ends at once": {"chunks": []},
    "a bookmark and the end": {"chunks": [bookmark("1")]},
    "a bookmark without version": {"chunks": [{"type": "BOOKMARK", "object": {}}]},
    "410 as ERROR event": {"chunks": [status_event(410, "Expired")]},
    "ERROR with reason Expired alone": {"chunks": [status_event(None, "Expired")]},
    "ERROR with reason Gone alone": {"chunks": [status_event("410", "Gone")]},
    "ERROR 429": {"chunks": [status_event(429, "TooManyRequests")]},
    "ERROR 500": {"chunks": [status_event(500, "InternalError")]},
    "ERROR 504": {"chunks": [status_event(504, "Timeout")]},
    "ERROR without an object": {"chunks": [{"type": "ERROR"}]},
    "cut in a line": {"chunks": [b'{"type":"ADDED","object":{"meta'], "cut": True},
    "ended in a line": {"chunks": [b'{"type":"ADDED","object":{"meta']},
    "cut in a character": {"chunks": ['{"type":"ADDED","object":{"x":"ü'.encode()[:-1]], "cut": True},
    "bytes that are no UTF-8": {"chunks": [b'{"type":"ADDED","object":{"x":"\xff"}}\n']},
    "events of nonsense": {"chunks": [{"type": "ADDED", "object": 5}, {"type": 5}, {"type": "MODIFIED"},
                                      {"type": "DELETED", "object": []}, {"type": "NEW", "object": {}}]},
    "events for other objects": {"chunks": [
        {"type": kind, "object": {"kind": "Pod", "metadata": {"name": "p", "namespace": space,
                                                              "resourceVersion": "1"}}}
        for kind in ("ADDED", "MODIFIED", "DELETED") for space in ("", "kube-system")]},
}


class TestWatchFaults(EnduranceWorld, unittest.TestCase):
    """Row 7: whatever a list or a watch comes to, the controller goes on, at leisure, and misses nothing."""

    def besiege(self, faults: Dict[str, Document], query: str, times: int) -> Dict[str, Tuple[str, Fault]]:
        """Start a controller in a namespace of its own for each fault -> name -> namespace and fault."""
        sieges = {}
        for name, options in faults.items():
            space = self.move()
            fault = self.cluster.script("GET", self.path("downloadrequests" + query), times, **options)
            sieges[name] = space, fault
            self.serve()
        return sieges

    def check_once(self, faults: Dict[str, Document], query: str) -> None:
        """Let each fault strike once; a request made meanwhile is answered within the first back-off."""
        asked = []
        for name, (space, fault) in self.besiege(faults, query, 1).items():
            wait_until(lambda fault=fault: fault.hits, 15, name)
            self.move(space)
            asked.append((name, space, self.ask()))
        for name, space, request in asked:
            with self.subTest(fault=name):
                self.move(space)
                self.answered(request)
                self.watched()

    def rates(self, sieges: Dict[str, Tuple[str, Fault]], seconds: float) -> Dict[str, int]:
        """Count for so long how often each controller makes the call that fails."""
        for name, (_, fault) in sieges.items():
            wait_until(lambda fault=fault: fault.hits, 15, name)
        first = {name: fault.hits for name, (_, fault) in sieges.items()}
        spend(seconds)
        return {name: fault.hits - first[name] for name, (_, fault) in sieges.items()}

    def test_a_watch_that_fails_once(self) -> None:
        """Every fault of a watch delays an answer by the back-off and no more."""
        self.check_once(WATCH_FAULTS, "?watch=true")

    def test_a_list_that_fails_once(self) -> None:
        """Every fault of a list delays an answer by the back-off and no more."""
        self.check_once(GET_FAULTS, "?limit=")

    def test_what_fails_always_is_tried_at_leisure(self) -> None:
        """No fault makes the controller spin: a call a second at most, and afterwards an answer."""
        sieges = self.besiege(WATCH_FAULTS, "?watch=true", ALWAYS)
        lists = self.besiege(GET_FAULTS, "?limit=", ALWAYS)
        sieges.update((f"{name}, listing", siege) for name, siege in lists.items())
        counts = self.rates(sieges, 7.0)
        asked = {name: (self.move(space), self.ask()) for name, (space, _) in sieges.items()}
        self.cluster.unscript()
        for name, (space, request) in asked.items():
            with self.subTest(fault=name):
                self.assertLessEqual(counts[name], 8)
                self.move(space)
                wait_until(lambda request=request: (self.look(request) or {}).get("status"), 40, "an answer")

    def test_a_continue_token_that_expires(self) -> None:
        """When the next page of a list is gone the list starts anew, and every request is answered."""
        token = {**EXPIRED, "message": "The provided continue parameter is too old",
                 "metadata": {"continue": "inconsistent"}}
        fault = self.cluster.script("GET", self.path("downloadrequests?limit=25&continue="), 2, status=410,
                                    body=token)
        names = [self.ask() for _ in range(60)]
        self.serve()
        for name in names:
            self.answered(name)
        self.assertEqual(fault.hits, 2)

    def test_a_list_whose_pages_never_end(self) -> None:
        """A server that gives the same continue token for ever is not asked without pause."""
        page = {"kind": "DownloadRequestList", "items": [],
                "metadata": {"resourceVersion": "1", "continue": "x"}}
        self.cluster.script("GET", self.path("downloadrequests?limit="), ALWAYS, status=200, body=page)
        self.serve()
        spend(2)
        self.assertLess(self.cluster.count("GET", self.path("downloadrequests?limit=")), 100)
        self.cluster.unscript()

    def test_a_bookmark_moves_the_start(self) -> None:
        """The next watch starts where the last bookmark was, so that compaction costs no list."""
        self.serve()
        self.watched()
        self.cluster.compact()
        self.cluster.send_bookmarks()
        version = self.cluster.version
        self.cluster.forget()
        self.cluster.cut_watches(self.path())
        self.answered(self.ask())
        lists = self.cluster.count("GET", self.path("downloadrequests?limit="))
        first = self.cluster.seen("GET", self.path("downloadrequests?watch="))[0]
        self.assertEqual((first.query["resourceVersion"], lists), (version, 0))

    def test_a_bookmark_that_repeats_is_no_hot_loop(self) -> None:
        """Streams of one event each are opened once a second, however long."""
        self.cluster.script("GET", self.path("downloadrequests?watch="), ALWAYS, chunks=[bookmark("1")])
        self.serve()
        wait_until(lambda: self.cluster.count("GET", self.path("downloadrequests?watch=")) > 3, 15, "watches")
        seen = self.cluster.count("GET", self.path("downloadrequests?watch="))
        spend(3)
        self.assertLessEqual(self.cluster.count("GET", self.path("downloadrequests?watch=")) - seen, 4)

    def test_doubled_and_reordered_events(self) -> None:
        """An old copy that comes again, even the newest thing said, changes nothing for long."""
        self.serve()
        name = self.ask(name="late")
        old = dict(self.look(name) or {})
        self.failed(name)
        for kind in ("MODIFIED", "ADDED", "MODIFIED"):
            self.cluster.push({"type": kind, "object": old}, self.path("downloadrequests"))
        self.make_backup("late")
        self.healed(name)
        self.cluster.push({"type": "ADDED", "object": old}, self.path("downloadrequests"))
        self.settle()
        patches = self.cluster.count("PATCH", "/downloadrequests/" + name)
        self.settle()
        self.assertEqual(self.cluster.count("PATCH", "/downloadrequests/" + name), patches)

    def test_a_deletion_that_never_was(self) -> None:
        """A false DELETED event costs a request its answer until the next list, and nobody else."""
        self.serve()
        self.watched()
        name = self.ask(name="late")
        self.failed(name)
        self.cluster.push({"type": "DELETED", "object": self.look(name)}, self.path("downloadrequests"))
        self.settle()
        self.make_backup("late")
        self.cluster.cut_connections()
        self.healed(name)

    def test_events_of_another_namespace_are_not_acted_on(self) -> None:
        """An object of another namespace that a watch brings, or a list, is left alone."""
        other = self.cluster.new_namespace()
        stray = self.admin.create("downloadrequests", download_request("stray"), other)
        self.cluster.grant("controller", EVERYTHING, namespace=other)
        self.serve()
        self.watched()
        self.cluster.push({"type": "ADDED", "object": stray}, self.path("downloadrequests"))
        self.settle()
        self.settle()
        self.assertEqual(self.cluster.seen(None, f"/{other}/downloadrequests/stray", "controller"), [])

    def test_a_silent_watch_ends(self) -> None:
        """A connection that stays open and says nothing is given up after the silence asked for."""
        gate = threading.Event()
        self.cluster.script("GET", "watch=true", chunks=[bookmark("7"), gate])
        api, started = self.api(), time.monotonic()
        response = velero_requests.open_watch(api, velero_requests.BACKUPS, self.namespace, "1", seconds=300,
                                              silence=0.5)
        self.assertEqual([kind for kind, _ in velero_requests.watch_events(response)], ["BOOKMARK"])
        self.assertLess(time.monotonic() - started, 5)

    def test_a_watch_that_trickles_stays(self) -> None:
        """Progress counts, not the whole: a stream with an event now and then outlives the silence."""
        api = self.api()
        response = velero_requests.open_watch(api, velero_requests.BACKUPS, self.namespace,
                                              self.cluster.version, seconds=4, silence=1.5)
        names = [f"t{number}" for number in range(4)]

        def trickle() -> None:
            for name in names:
                spend(0.7)
                self.make_backup(name)
        thread = threading.Thread(target=trickle)
        thread.start()
        got = [document["metadata"].get("name") for kind, document in velero_requests.watch_events(response)
               if kind == "ADDED"]
        thread.join(10)
        self.assertEqual(got, names)

    @unittest.skipUnless(LONG, "takes 90 s; set VELERO_SOAK=120")
    def test_a_controller_notices_silence(self) -> None:
        """A watch whose other end has vanished is replaced after 90 s, and nothing is lost."""
        gates = [self.cluster.script("GET", self.path(f"{kind}?watch="), chunks=[threading.Event()])
                 for kind in ("downloadrequests", SSR)]
        self.serve()
        wait_until(lambda: all(gate.hits for gate in gates), 10, "the watches")
        name = self.ask()
        wait_until(lambda: (self.look(name) or {}).get("status"), 100, "an answer")

    def test_the_server_restarts(self) -> None:
        """Away for a while, then there again: a request made at once is answered within the back-off."""
        self.serve()
        self.settle()
        for _ in range(2):
            self.cluster.shut()
            wait_until(lambda: self.said("cannot reach"), 10, "the log to say so")
            self.cluster.reopen()
            self.answered(self.ask())
            self.watched()
        self.assertLessEqual(self.said("cannot reach"), 8)

    def test_a_crd_that_is_deleted_comes_back(self) -> None:
        """Without its CRD the controller waits and says so once; with it, in another dialect, it answers."""
        self.addCleanup(self.cluster.install_crds, self.crds())
        self.serve()
        self.settle()
        self.admin.delete("customresourcedefinitions", "downloadrequests.velero.io")
        wait_until(lambda: self.cluster.count("GET", self.path(), "controller", 404) > 1, 15, "refusals")
        self.cluster.install_crds(velero_requests.crd_manifests(True))
        self.answered(self.ask())
        self.watched()
        self.assertEqual(self.said("downloadrequests: ", "404"), 1)

    def test_a_namespace_that_is_deleted(self) -> None:
        """Requests that go with their namespace are forgotten; what comes later is answered as ever."""
        controller = self.serve()
        self.settle()
        late = self.ask(name="late")
        self.failed(late)
        self.admin.call("DELETE", resource_path("downloadrequests", self.namespace))
        self.admin.call("DELETE", resource_path("backups", self.namespace))
        wait_until(lambda: not controller.records, 10, "the records to go")
        self.make_backup("b1")
        self.turn(minutes=1)
        self.answered(self.ask())

    def test_fifty_megabytes(self) -> None:
        """A line or a list of 50 MB is given up with one sentence, and the next watch works."""
        self.cluster.script("GET", self.path("downloadrequests?limit="), status=200, body=b" " * (50 << 20))
        self.cluster.script("GET", self.path("downloadrequests?watch="), chunks=[b"x" * (1 << 20)] * 50)
        self.serve()
        wait_until(lambda: self.said("more than", "bytes"), 20, "the watch to be given up")
        self.answered(self.ask())

    def test_a_client_survives_what_a_watch_comes_to(self) -> None:
        """Every fault of its watch leaves a client with the log and no request behind, without a hot loop."""
        self.serve()
        self.put()
        gone = {"HTTP 401", "HTTP 403"}
        for name, options in {**WATCH_FAULTS, "50 MB": {"chunks": [b"x" * (1 << 20)] * 50}}.items():
            with self.subTest(fault=name):
                self.cluster.unscript()
                self.cluster.forget()
                self.cluster.script("GET", "fieldSelector", ALWAYS, **options)
                result = self.cli("backup", "logs", "b1", "--timeout", "15s")
                self.assertEqual((result.code, result.out), (0, LOG), result.err)
                self.assertLessEqual(self.cluster.count("GET", "fieldSelector"), 1 if name in gone else 3)
                self.assertEqual(self.names(), [])

    def test_a_client_with_a_silent_watch_looks_once_more(self) -> None:
        """An answer that a half-open watch kept back is found when the waiting is over."""
        self.serve()
        self.put()
        self.cluster.script("GET", "fieldSelector", chunks=[threading.Event()])
        result = self.cli("backup", "logs", "b1", "--timeout", "2s")
        self.assertEqual((result.code, result.out), (0, LOG), result.err)


# ------------------------------------------------------------------------------------------------------------
# Endurance: what is used up
# ------------------------------------------------------------------------------------------------------------

class Usage(NamedTuple):
    """What a process holds, and the processor time it took so far."""

    threads: int
    sockets: int
    megabytes: float
    seconds: float


def usage_of(pid: int) -> Usage:
    """Read it from /proc."""
    sockets = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            sockets += os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("socket:")
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        ticks = sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    return Usage(len(os.listdir(f"/proc/{pid}/task")), sockets, pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                 ticks / os.sysconf("SC_CLK_TCK"))


# A connection pool may keep this many idle connections; a leak of one a fault is far above.
IDLE = 8


class UsageWorld(EnduranceWorld):
    """A controller as a process of its own, which is measured."""

    def start_controller(self) -> Program:
        """Start a controller with its token in a file, and let it do some work."""
        self.token = self.new_token("controller")
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(self.token), "-n",
                          self.namespace)
        self.addCleanup(program.kill)
        for name in [self.ask() for _ in range(50)] + [self.ask(name="nobody")]:
            self.looked_at(name)
        self.watched()
        return program

    def looked_at(self, name: str) -> None:
        """Wait until a request has a status, answered or not."""
        wait_until(lambda: (self.look(name) or {}).get("status"), 60, f"a status of {name}")

    def compare(self, program: Program, before: Usage, megabytes: float) -> Usage:
        """Check that a process holds no more than before, when it has come to rest."""
        pid = program.process.pid
        wait_until(lambda: usage_of(pid).threads <= before.threads, 15, "threads to end")
        wait_until(lambda: usage_of(pid).sockets <= before.sockets + IDLE, 15, "sockets to go")
        after = usage_of(pid)
        self.assertLess(after.megabytes - before.megabytes, megabytes, (before, after))
        return after


@unittest.skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
class TestLeaks(UsageWorld, unittest.TestCase):
    """What a controller holds after many faults."""

    def round_of_faults(self, number: int) -> List[Fault]:
        """Let both watches and eight calls go wrong, and wait until that is over."""
        watches, gets = sorted(WATCH_FAULTS), sorted(GET_FAULTS)
        struck = [self.cluster.script("GET", self.path(f"{kind}?watch="), **WATCH_FAULTS[name])
                  for kind, name in zip(("downloadrequests", SSR), watches[7 * number:])]
        self.cluster.cut_watches(self.path(""))
        names = [f"b-{number}-{call}" for call in range(8)]
        for call, name in enumerate(names):
            self.make_backup(name)
            fault = GET_FAULTS[gets[(8 * number + call) % len(gets)]]
            struck.append(self.cluster.script("GET", "/backups/" + name, **fault))
        for request in [self.ask(name=name) for name in names]:
            self.looked_at(request)
        self.watched()
        self.answered(self.ask_status(), SSR)  # an event ends the back-off of the watch
        self.settle()
        return struck

    def test_fifty_faults_leak_nothing(self) -> None:
        """After fifty faults of watches, lists and calls, threads, sockets and memory are those of before."""
        program = self.start_controller()
        before = usage_of(program.process.pid)
        struck = [fault for number in range(5) for fault in self.round_of_faults(number)]
        self.assertEqual([fault.hits for fault in struck], [1] * 50)
        after = self.compare(program, before, 10)
        self.assertLess(after.seconds - before.seconds, 10)
        self.assertEqual(program.end(signal.SIGTERM).code, 0)


@unittest.skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
class TestSoak(UsageWorld, unittest.TestCase):
    """Faults at random under load, for VELERO_SOAK seconds."""

    def strike(self, dice: random.Random) -> str:
        """Let one fault happen, and return its name."""
        kind = dice.choice(("downloadrequests", SSR))
        deed = dice.choice(("watch", "watch", "list", "call", "patch", "cut", "end", "compact", "restart",
                            "token", "rights", "nonsense"))
        if deed in ("watch", "list", "call"):
            faults = WATCH_FAULTS if deed == "watch" else GET_FAULTS
            part = {"watch": f"{kind}?watch=", "list": f"{kind}?limit=", "call": "backups/b1"}[deed]
            name = dice.choice(sorted(faults))
            self.cluster.script("GET", self.path(part), **faults[name])
            self.cluster.cut_watches(self.path(kind)) if deed == "watch" else self.cluster.compact()
            return f"{deed}: {name}"
        options = dice.choice(({"drop": True}, {"drop": True, "apply": True}, {"status": 500},
                               {"status": 409, "body": {"reason": "Conflict"}}, {"cut_after": 5},
                               {"status": 200, "body": HTML}))
        token = self.token
        if deed == "token":
            self.token = self.new_token("controller")
        {"patch": lambda: self.cluster.script("PATCH", self.path(""), **options),
         "cut": self.cluster.cut_connections, "end": lambda: self.cluster.cut_watches(self.path(kind)),
         "compact": self.cluster.compact,
         "restart": lambda: (self.cluster.shut(), spend(dice.uniform(0, 0.5)),
                             self.cluster.reopen()),
         "token": lambda: (self.write_token(self.token), self.cluster.tokens.pop(token)),
         "rights": lambda: (self.cluster.unlimit(), dice.random() < 0.5 or self.cluster.limit(
             "controller", dice.choice(("list", "watch", "get", "patch")), namespace=self.namespace)),
         "nonsense": lambda: self.cluster.push(dice.choice((b"\xff\n", b'{"type": "ADDED"}\n', b"[]\n")),
                                               self.path(kind))}[deed]()
        return deed

    def test_soak(self) -> None:
        """Under faults at random every request is answered, and in the end no more is held than at first."""
        seed = int(os.environ.get("VELERO_SEED", "0")) or random.SystemRandom().randrange(1, 10**9)
        print(f"\nsoak of {SOAK:g} s, VELERO_SEED={seed}", file=sys.stderr)
        dice, program, deeds, names = random.Random(seed), self.start_controller(), [], []
        before, end = usage_of(program.process.pid), time.monotonic() + SOAK
        while time.monotonic() < end:
            deeds.append(self.strike(dice))
            names += [self.ask() for _ in range(dice.randrange(5))]
            self.ask_status()
            spend(dice.uniform(0, 0.6))
            self.assertIsNone(program.process.poll(), (seed, deeds[-5:], program.text()[-2000:]))
        self.cluster.unscript()
        self.cluster.unlimit()
        try:
            for name in names:
                self.looked_at(name)
            self.watched()
            after = self.compare(program, before, 15)
        except AssertionError as error:
            raise AssertionError(f"VELERO_SEED={seed}: {error}\n{deeds}\n{program.text()[-3000:]}") from error
        self.assertLess(after.seconds - before.seconds, SOAK / 2, seed)
        self.assertNotIn("Traceback", program.text())
        self.assert_clean(program.text())


# ------------------------------------------------------------------------------------------------------------
# Endurance: the real API server
# ------------------------------------------------------------------------------------------------------------

# What README.md asks for, and nothing more.
BOTH_KINDS = ["downloadrequests", "serverstatusrequests"]
LEAST: List[Document] = [
    {"apiGroups": ["velero.io"], "resources": BOTH_KINDS,
     "verbs": ["get", "list", "watch", "patch", "delete"]},
    {"apiGroups": ["velero.io"], "resources": [f"{name}/status" for name in BOTH_KINDS], "verbs": ["patch"]},
    {"apiGroups": ["velero.io"], "resources": ["backups", "restores", "backupstoragelocations"],
     "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
# What a client needs for the log of a backup.
CLIENT: List[Document] = [
    {"apiGroups": ["velero.io"], "resources": ["downloadrequests"],
     "verbs": ["create", "get", "watch", "delete"]},
    {"apiGroups": ["velero.io"], "resources": ["backups"], "verbs": ["get"]}]


class LeastRightsTests(World):
    """A controller with the rights of README.md and no other."""

    def test_the_least_rights_are_enough(self) -> None:
        """Answer, refuse with an Event, answer a status, delete what expired: nothing is forbidden."""
        self.cluster.grant("controller", *LEAST, namespace=self.namespace)
        path = self.cluster.kubeconfig(self.folder, "controller")
        program = Program(self.folder, "controller", "--kubeconfig", path, "-n", self.namespace, "-v")
        self.addCleanup(program.kill)
        self.answered(self.ask())
        self.answered(self.ask("RestoreLog", "r1"))
        self.answered(self.ask_status(), SSR)
        name = self.ask(name="nobody")
        self.failed(name)
        wait_until(lambda: self.admin.list("events", self.namespace)["items"], 10, "the Event")
        self.fill(self.ask(), phase="Processed", downloadURL="http://x/", expiration="2020-01-01T00:00:00Z")
        wait_until(lambda: len(self.names()) == 3, 15, "the expired request to go")
        self.assertNotIn("forbidden", program.text())

    def test_a_client_s_least_rights_are_enough(self) -> None:
        """With create, get, watch and delete of requests and get of backups, a log arrives."""
        self.cluster.grant("limited", *CLIENT, namespace=self.namespace)
        self.serve()
        self.put()
        result = self.cli("backup", "logs", "b1", user="limited")
        self.assertEqual(result, (0, LOG, ""))
        self.assertEqual(self.names(), [])


class TestLeastRightsRealNew(LeastRightsTests, RealWorld, unittest.TestCase):
    """Without a status subresource."""


class TestLeastRightsRealOld(LeastRightsTests, RealWorld, unittest.TestCase):
    """With a status subresource."""

    status_subresource = True


class TestIdentityReal(TokenFiles, RealWorld, unittest.TestCase):
    """Identities that change under a running controller, and borrowed ones."""

    def account(self, name: str) -> str:
        """Make a ServiceAccount, and return a token of it that the API server accepts."""
        self.make("serviceaccounts", "ServiceAccount", name)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        made = self.admin.call("POST", resource_path("serviceaccounts/token", self.namespace, name), review)
        token = str(made["status"]["token"])
        wait_until(lambda: self.status(token) != 401, 15, "the token to be known")
        return token

    def status(self, token: str) -> int:
        """Return how the API server answers who calls with this token."""
        client = Admin(self.cluster.url, token, self.cluster.ca)
        try:
            return int(client.raw("GET", resource_path("backups", self.namespace)).status)
        finally:
            client.close()

    def test_a_token_is_revoked_and_replaced(self) -> None:
        """With its account gone the controller waits; with a new token in the file it goes on."""
        self.cluster.grant(f"system:serviceaccount:{self.namespace}:runner", *LEAST, namespace=self.namespace)
        old = self.account("runner")
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(old), "-n",
                          self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        self.admin.delete("serviceaccounts", "runner", self.namespace)
        wait_until(lambda: self.status(old) == 401, 30, "the token to be refused")
        name = self.ask()
        wait_until(lambda: "nauthorized" in program.text(), 15, "the controller to notice")
        new = self.account("runner")
        self.write_token(new)
        self.answered(name)
        self.settle()
        self.assertEqual(program.end(signal.SIGTERM).code, 0)
        self.assert_clean(program.text())
        for token in (old, new):
            self.assertNotIn(token, program.text())

    def test_a_token_that_is_replaced_in_time_is_no_event(self) -> None:
        """A new token in the file before the old one ends: the first refusal is made up for, and not told."""
        self.cluster.grant(f"system:serviceaccount:{self.namespace}:one", *LEAST, namespace=self.namespace)
        self.cluster.grant(f"system:serviceaccount:{self.namespace}:two", *LEAST, namespace=self.namespace)
        old = self.account("one")
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(old), "-n",
                          self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        self.write_token(self.account("two"))
        self.admin.delete("serviceaccounts", "one", self.namespace)
        wait_until(lambda: self.status(old) == 401, 30, "the token to be refused")
        self.settle()
        self.assertNotIn("WARNING", program.text())

    def sign(self, user: str, days: int) -> None:
        """Put a client certificate of the administrators' group and its key into the test's folder."""
        base = os.path.join(self.folder, "client")
        run_openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", base + ".key", "-out", base + ".csr",
                    "-subj", "/O=system:masters/CN=" + user)
        run_openssl("x509", "-req", "-in", base + ".csr", "-CA", self.cluster.ca, "-CAkey",
                    os.path.join(self.cluster.folder, "ca.key"), "-CAcreateserial", "-days", str(days),
                    "-out", base + ".crt")

    def test_a_certificate_is_replaced_on_disk(self) -> None:
        """When the API no longer takes a client certificate, the files are read again at once."""
        self.sign("expired", -1)
        path = self.borrowed(**{"client-certificate": "client.crt", "client-key": "client.key",
                                "token": None})
        api = velero_requests.connect(velero_requests.load_cluster(path))
        self.addCleanup(lambda: api.login.door.pool.close())
        with self.assertRaises(velero_requests.ApiError) as caught:
            velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")
        self.assertEqual(caught.exception.status, 401)
        self.sign("fresh", 1)
        velero_requests.get(api, velero_requests.BACKUPS, self.namespace, "b1")

    def borrowed(self, **user: Any) -> str:
        """Write a kubeconfig of the administrator that acts as somebody else."""
        with open(self.kubeconfig, encoding="utf-8") as file:
            document = yaml.safe_load(file)
        entry = {**document["users"][0]["user"], **user}
        document["users"][0]["user"] = {name: value for name, value in entry.items() if value is not None}
        path = os.path.join(self.folder, "borrowed")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        return path

    def test_an_identity_is_borrowed_with_all_its_parts(self) -> None:
        """The API server sees user, uid, groups and extra of the kubeconfig."""
        extra = {"example.com/reason": ["two words", "50%"], "Scope": ["x"]}
        path = self.borrowed(**{"as": "jane", "as-uid": "42", "as-groups": ["dev", "ops"],
                                "as-user-extra": extra})
        api = velero_requests.connect(velero_requests.load_cluster(path))
        self.addCleanup(lambda: api.login.door.pool.close())
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        answer = velero_requests.call(api, "POST", path, body=kind)
        seen = answer["status"]["userInfo"]
        self.assertEqual((seen["username"], seen["uid"]), ("jane", "42"))
        self.assertEqual(seen["groups"], ["dev", "ops", "system:authenticated"])
        self.assertEqual(seen["extra"], {"example.com/reason": ["two words", "50%"], "scope": ["x"]})

    def test_a_borrowed_identity_has_its_own_rights_only(self) -> None:
        """An administrator who acts as somebody is refused what that one may not, and no more."""
        self.serve()
        self.put()
        argv = ("--kubeconfig", self.borrowed(**{"as": "stranger"}), "-n", self.namespace, "backup", "logs",
                "b1")
        self.assert_failed(run(*argv), 5, "stranger", "downloadrequests")
        self.cluster.grant("stranger", *CLIENT, namespace=self.namespace)
        self.assertEqual(run(*argv), (0, LOG, ""))


class TestOutageReal(RealWorld, unittest.TestCase):
    """An API server of its own, which is stopped and started."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Start it, or skip the class."""
        assets = assets_folder()
        if not assets:
            raise unittest.SkipTest("no real kube-apiserver: KUBEBUILDER_ASSETS is not set")
        cluster = RealCluster(assets)
        cls.addClassCleanup(cluster.close)
        return cluster, real_store()

    def restart(self, seconds: float) -> None:
        """Stop the API server for so long, and start it again as it was."""
        child = self.cluster.children.pop()
        child.stop()
        spend(seconds)
        child = Child(self.cluster.folder, *child.process.args)
        self.cluster.children.append(child)
        headers = {"Authorization": "Bearer " + token_of("admin")}
        child.wait_ready(lambda: answers(self.cluster.url + "/readyz", b"ok", ca_certs=self.cluster.ca,
                                         headers=headers), 60)

    def test_ten_seconds_without_an_api_server(self) -> None:
        """Under load no request is lost over the outage, and each is answered once."""
        program = self.program("controller")
        self.settle()
        made: List[str] = []
        done = threading.Event()

        def load() -> None:
            while not done.wait(0.05):
                with contextlib.suppress(Refused, urllib3.exceptions.HTTPError):
                    made.append(self.ask())
        thread = threading.Thread(target=load)
        thread.start()
        self.addCleanup(done.set)
        wait_until(lambda: len(made) > 20, 15, "some load")
        self.restart(10.0)
        before = len(made)
        wait_until(lambda: len(made) > before + 20, 30, "some more load")
        done.set()
        thread.join(15)
        for name in made:
            wait_until(lambda name=name: (self.look(name) or {}).get("status"), 45, name)
            document = self.answered(name)
            self.assertEqual(document["metadata"]["generation"], 2)  # the create and one patch
        self.assertIsNone(program.process.poll())
        self.assertLess(len(program.text().splitlines()), len(made) + 60)


# ============================================================================================================
# Demo and benchmark: the stage of both is an API, a store, a folder with a copy of the module, a kubeconfig
# ============================================================================================================

NAMESPACE = "velero"
BUCKET = "velero-backups"
BACKUP_LOG = "".join(f'time="2024-05-01T03:00:0{second}Z" level=info msg="{said}" backup=velero/nightly\n'
                     for second, said in enumerate((
                         "Setting up backup log", "Backing up item shop/settings", "Backed up 1 item")))
BACKUP_FILES = {"metadata/version": b"1.1.0\n",
                "resources/configmaps/namespaces/shop/settings.json": b'{"kind": "ConfigMap"}\n'}


class Stage(NamedTuple):
    """Where commands run: the servers, the working folder, and the environment a user would have set."""

    cluster: Cluster
    store: Any
    folder: str
    environment: Dict[str, str]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a command in the folder, without a terminal."""
        return subprocess.Popen(command, cwd=self.folder, env=self.environment,
                                **{"stdin": subprocess.DEVNULL, **options})

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command in the folder to its end, which must come within a minute."""
        return subprocess.run(command, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL,
                              timeout=60, check=False, **options)

    def servers(self) -> str:
        """Say which servers these are."""
        names = {"real": ("the real kube-apiserver", "the real versitygw"),
                 "fake": ("a stand-in for the Kubernetes API", "a stand-in for the S3 store")}
        return f"{names[self.cluster.kind][0]}, {names[self.store.kind][1]}"


def open_cluster() -> Cluster:
    """Start the real API server when KUBEBUILDER_ASSETS names one, else the stand-in."""
    assets = assets_folder()
    return RealCluster(assets) if assets else FakeCluster(tls=True)


def open_store() -> Any:
    """Start the real S3 server when KUBEBUILDER_ASSETS has one, else the stand-in."""
    assets = assets_folder()
    return RealStore(assets) if assets and os.path.exists(os.path.join(assets, "versitygw")) else FakeStore()


def user_environment(folder: str) -> Dict[str, str]:
    """Return our environment without anything that could lead a command to another cluster or store."""
    leading = ("AWS_", "KUBE", "VELERO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(leading)}
    return {**kept, "HOME": folder, "KUBECONFIG": "kubeconfig",
            "PATH": os.path.join(folder, "bin") + os.pathsep + kept.get("PATH", os.defpath),
            "PYTHONUSERBASE": site.getuserbase()}  # HOME would hide packages that were installed with --user


def furnish(folder: str, cluster: Cluster) -> None:
    """Put into the folder what a user would have there: the module, a kubeconfig, `python` on the PATH."""
    import velero_requests
    shutil.copy(str(velero_requests.__file__), folder)
    os.rename(cluster.kubeconfig(folder), os.path.join(folder, "kubeconfig"))
    python = os.path.join(folder, "bin", "python")
    os.mkdir(os.path.dirname(python))
    with open(python, "w", encoding="utf-8") as file:  # a link would lose the virtual environment
        file.write(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    os.chmod(python, 0o755)


@contextlib.contextmanager
def set_stage() -> Iterator[Stage]:
    """Start the servers and furnish a folder; stop and remove everything afterwards."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="velero-requests-"))
        cluster = stack.enter_context(contextlib.closing(open_cluster()))
        store = stack.enter_context(contextlib.closing(open_store()))
        furnish(folder, cluster)
        yield Stage(cluster, store, folder, user_environment(folder))


@contextlib.contextmanager
def serving(stage: Stage, *command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the controller as a process of its own, and end it as an init system would."""
    process = stage.start(*command, **options)
    try:
        yield process
    finally:
        stop_process(process)


def stop_process(process: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM, wait, and return the exit code; ten seconds are more than a pass in hand can need."""
    process.terminate()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def tar_of(files: Dict[str, bytes]) -> bytes:
    """Return a .tar.gz with these files."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def add_backup(stage: Stage, name: str, log: bytes, location: str = "default") -> None:
    """Leave a finished backup as Velero does: its object in the cluster, its artifacts in the store."""
    folder = f"backups/{name}/{name}"
    stage.store.put(BUCKET, folder + "-logs.gz", gzip.compress(log))
    stage.store.put(BUCKET, folder + ".tar.gz", tar_of(BACKUP_FILES))
    stage.cluster.admin.create("backups", {
        "kind": "Backup", "metadata": {"name": name}, "spec": {"storageLocation": location},
        "status": {"phase": "Completed"}}, NAMESPACE)


def add_location(stage: Stage) -> None:
    """Create the namespace, the storage location `default`, and the Secret that opens it."""
    stage.cluster.new_namespace(NAMESPACE)
    store, admin = stage.store, stage.cluster.admin
    keys = f"[default]\naws_access_key_id = {store.access_key}\naws_secret_access_key = {store.secret_key}\n"
    admin.create("secrets", {"kind": "Secret", "metadata": {"name": "cloud-credentials"},
                             "stringData": {"cloud": keys}}, NAMESPACE)
    config = {"region": store.region, "s3Url": store.url, "s3ForcePathStyle": "true"}
    admin.create("backupstoragelocations", {
        "kind": "BackupStorageLocation", "metadata": {"name": "default"},
        "spec": {"provider": "aws", "objectStorage": {"bucket": BUCKET}, "config": config,
                 "credential": {"name": "cloud-credentials", "key": "cloud"}}}, NAMESPACE)


# ------------------------------------------------------------------------------------------------------------
# Object stores: locations, endpoints, signatures and the plan of credentials, as values
# ------------------------------------------------------------------------------------------------------------

# Every key that velero-plugin-for-aws has ever known: how it is used, and an example of what it takes.
CONFIG_USED: Dict[str, Tuple[str, str, Any]] = {
    "region": ("region", "us-gov-west-1", "us-gov-west-1"),
    "s3Url": ("s3_url", "http://minio:9000", "http://minio:9000"),
    "publicUrl": ("public_url", "https://s3.example", "https://s3.example"),
    "profile": ("profile", "backup", "backup"),
    "credentialsFile": ("credentials_file", "/credentials/other", "/credentials/other"),
    "s3ForcePathStyle": ("path_style", "True", True), "insecureSkipTLSVerify": ("insecure", "t", True)}
CONFIG_WITHOUT_EFFECT: Dict[str, Tuple[str, ...]] = {
    "signatureVersion": ("4", ""), "enableSharedConfig": ("true", "0", ""),
    "checksumAlgorithm": ("CRC32", "CRC32C", "SHA1", "SHA256", ""), "serverSideEncryption": ("AES256", "any"),
    "kmsKeyId": ("alias/velero",), "customerKeyEncryptionFile": ("/not/here",),
    "customerKeyEncryptionSecret": ("name/key",), "tagging": ("a=b&c=d", "nonsense"),
    "bucket": ("stale",), "prefix": ("stale",), "caCert": ("stale",)}
CONFIG_WRONG: Tuple[Tuple[str, str, str], ...] = (
    ("s3ForcePathStyle", "yes", "true or false"), ("insecureSkipTLSVerify", "on", "true or false"),
    ("enableSharedConfig", "2", "true or false"), ("signatureVersion", "1", "4"),
    ("signatureVersion", "2", "4"),
    ("signatureVersion", "s3v4", "4"), ("checksumAlgorithm", "MD5", "CRC32, CRC32C, SHA1, SHA256"),
    ("checksumAlgorithm", "crc32", "CRC32, CRC32C, SHA1, SHA256"))

ACCESS_POINT = "arn:aws:s3:us-west-2:123456789012:accesspoint:reports"
OUTPOST = "arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-01234567890123456:accesspoint:reports"

# Keys as S3 allows them, and the path they are signed with.
AWKWARD_OBJECT_KEYS: Tuple[Tuple[str, str], ...] = (
    ("a b", "a%20b"), ("a+b", "a%2Bb"), ("100%", "100%25"), ("%2F", "%252F"), ("%zz", "%25zz"),
    ("~tilde~", "~tilde~"), ("a//b", "a//b"), ("/a", "/a"), ("a/", "a/"), ("é", "%C3%A9"),
    ("e\u0301", "e%CC%81"),
    ("✓", "%E2%9C%93"), ("😀", "%F0%9F%98%80"), ("?x=1", "%3Fx%3D1"), ("#x", "%23x"), ("a&b;c", "a%26b%3Bc"),
    ("a:b@c", "a%3Ab%40c"), ("!*'()", "%21%2A%27%28%29"), ("a\\b", "a%5Cb"), ("\x01\x7f\n", "%01%7F%0A"),
    ("a..b", "a..b"), ("...", "..."), ("\"<>^`{|}", "%22%3C%3E%5E%60%7B%7C%7D"), ("$,[]", "%24%2C%5B%5D"))


class TestStoreLocation(unittest.TestCase):
    """Every key of a location's config, its authorities and its prefix."""

    def test_the_table_is_whole(self) -> None:
        """These tests know every key that the module knows, and no other."""
        self.assertEqual(set(vr.LOCATION_KEYS), set(CONFIG_USED) | set(CONFIG_WITHOUT_EFFECT))

    def test_keys_that_are_used(self) -> None:
        """Each key of the upper half changes its own field and nothing else."""
        plain = vr.location_from(a_location_document({"bucket": "x"}))
        for key, (field, text, value) in CONFIG_USED.items():
            with self.subTest(key=key):
                self.assertEqual(dataclasses.replace(plain, **{field: value}),
                                 vr.location_from(a_location_document({key: text})))

    def test_keys_without_effect(self) -> None:
        """Each key of the lower half is accepted without a warning and changes nothing of a GET."""
        plain = vr.location_from(a_location_document())
        for key, values in CONFIG_WITHOUT_EFFECT.items():
            for value in values:
                with self.subTest(key=key, value=value):
                    config = {"region": "eu-west-1", key: value}
                    self.assertEqual(plain, vr.location_from(a_location_document(config)))

    def test_values_that_cannot_be(self) -> None:
        """A wrong value is an error that names location, key, value and what is allowed."""
        for key, value, allowed in CONFIG_WRONG:
            with self.subTest(key=key, value=value), self.assertRaises(vr.ConfigError) as caught:
                vr.location_from(a_location_document({key: value}))
            for part in ("'default'", key, repr(value), f"allowed: {allowed}"):
                self.assertIn(part, str(caught.exception))
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_old_signatures(self) -> None:
        """Signature version 1 is refused in a sentence that says it is not made here."""
        with self.assertRaisesRegex(vr.ConfigError, "signature version 2 and older are not made here"):
            vr.location_from(a_location_document({"signatureVersion": "1"}))

    def test_long_values(self) -> None:
        """A wrong value of any length, and with line ends, is one short line in the error."""
        for value in ("x" * 100000, "a\nb", "\x1b[2J"):
            with self.assertRaises(vr.ConfigError) as caught:
                vr.location_from(a_location_document({"signatureVersion": value}))
            self.assertLess(len(str(caught.exception)), 300)
            self.assertTrue(str(caught.exception).isprintable())

    def test_unknown_keys(self) -> None:
        """An unknown key is a warning with the nearest known one, if any is near; the rest is read."""
        for key, near in (("s3url", "s3Url"), ("s3URL", "s3Url"), ("publicURL", "publicUrl"),
                          ("Region", "region"),
                          ("s3ForcePathstyle", "s3ForcePathStyle"), ("insecureSkipTlsVerify",
                                                                     "insecureSkipTLSVerify"),
                          ("checksumAlgoritm", "checksumAlgorithm"), ("zzzz", ""), ("", "")):
            with self.subTest(key=key):
                location = vr.location_from(a_location_document({"region": "r-1", key: "x"}))
                self.assertEqual("r-1", location.region)
                self.assertEqual(1, len(location.warnings))
                self.assertIn(repr(key), location.warnings[0])
                self.assertEqual(bool(near), "may be meant" in location.warnings[0])
                self.assertIn(near, location.warnings[0])

    def test_a_flood_of_unknown_keys(self) -> None:
        """Ten warnings are enough for anybody."""
        found = vr.location_from(a_location_document({f"key{number}": "x" for number in range(5000)})).warnings
        self.assertEqual(10, len(found))

    def test_several_unknown_keys(self) -> None:
        """Warnings come in the order of their keys, so that the record is the same at every look."""
        first, second = (vr.location_from(a_location_document(dict.fromkeys(keys, "x"))).warnings
                         for keys in (("zz", "aa", "mm"), ("mm", "zz", "aa")))
        self.assertEqual(first, second)
        self.assertEqual(["aa", "mm", "zz"], [warning.split("'")[1] for warning in first])

    def test_authorities(self) -> None:
        """caCert and a reference to a Secret are both read, and exclude each other."""
        pem = base64.b64encode(b"PEM").decode()
        for storage, content, reference in (
                ({}, b"", ("", "")), ({"caCert": pem}, b"PEM", ("", "")), ({"caCert": ""}, b"", ("", "")),
                ({"caCertRef": {"name": "n", "key": "k"}}, b"", ("n", "k")),
                ({"caCert": "", "caCertRef": {"name": "n", "key": "k"}}, b"", ("n", "k")),
                ({"caCert": pem, "caCertRef": None}, b"PEM", ("", "")), ({"caCertRef": "n"}, b"", ("", ""))):
            with self.subTest(storage=storage):
                location = vr.location_from(a_location_document(objectStorage={"bucket": "bkt", **storage}))
                self.assertEqual((content, reference), (location.ca_cert, location.ca_secret))
        with self.assertRaisesRegex(vr.ConfigError, "caCert and caCertRef exclude each other"):
            vr.location_from(a_location_document(
                objectStorage={"bucket": "bkt", "caCert": pem, "caCertRef": {"name": "n", "key": "k"}}))

    def test_access_mode(self) -> None:
        """A read-only location is read like any other."""
        self.assertEqual(vr.location_from(a_location_document()),
                         vr.location_from(a_location_document(accessMode="ReadOnly")))

    def test_prefixes(self) -> None:
        """A prefix is joined as Go's path.Join does, and one that leaves the bucket is an error."""
        artifact = vr.target_of("BackupLog", "b")
        for prefix, root in (("", ""), ("p", "p/"), ("/p/", "p/"), ("p/q", "p/q/"), ("a//b", "a/b/"),
                             ("a/./b", "a/b/"), ("a/../b", "b/"), (".", ""), ("./", ""), ("a/..", ""),
                             ("//", ""),
                             ("..a", "..a/"), ("a b", "a b/"), ("a/b/../../c", "c/"), ("%2e%2e", "%2e%2e/")):
            with self.subTest(prefix=prefix):
                location = vr.location_from(a_location_document(
                    objectStorage={"bucket": "bkt", "prefix": prefix}))
                self.assertEqual(f"{root}backups/b/b-logs.gz", vr.object_key(location.prefix, artifact, "b"))
        for prefix in ("..", "../a", "a/../..", "a/../../b", "./.."):
            with self.subTest(prefix=prefix), self.assertRaisesRegex(vr.ConfigError,
                                                                     "leads out of the bucket"):
                vr.object_key(prefix, artifact, "b")

    def test_random_prefixes(self) -> None:
        """No prefix gives a key with a segment that a client would resolve."""
        chance = random.Random(11)
        artifact = vr.target_of("BackupLog", "b")
        for _ in range(3000):
            prefix = "".join(chance.choice(("a", ".", "..", "/", "//",
                                            " ")) for _ in range(chance.randrange(8)))
            location = vr.location_from(a_location_document(objectStorage={"bucket": "bkt",
                                                                           "prefix": prefix}))
            try:
                key = vr.object_key(location.prefix, artifact, "b")
            except vr.ConfigError:
                continue
            self.assertFalse(vr.has_dot_segment(key), prefix)
            self.assertEqual(posixpath.normpath(key), key, prefix)


class TestStoreEndpoints(unittest.TestCase):
    """Where a bucket is: partitions, styles, ARNs, ports and base paths."""

    def check(self, cases: Iterable[Tuple[Dict[str, Any], str]]) -> None:
        """Compare the URL of every location's bucket with the one expected."""
        for fields, expected in cases:
            with self.subTest(**fields):
                self.assertEqual(expected, "{}://{}{}".format(*vr.bucket_address(a_location(**fields))[:3]))

    def test_partition_of(self) -> None:
        """The prefix of a region says its partition; an unknown region belongs to partition aws."""
        for region, name, suffix in (
                ("eu-west-1", "aws", "amazonaws.com"), ("il-central-1", "aws", "amazonaws.com"),
                ("mars-north-7", "aws", "amazonaws.com"), ("aws-global", "aws", "amazonaws.com"),
                ("minio", "aws", "amazonaws.com"), ("us-gov-east-1", "aws-us-gov", "amazonaws.com"),
                ("cn-northwest-1", "aws-cn", "amazonaws.com.cn"), ("us-iso-west-1", "aws-iso", "c2s.ic.gov"),
                ("us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov"),
                ("eu-isoe-west-1", "aws-iso-e", "cloud.adc-e.uk"),
                ("us-isof-south-1", "aws-iso-f", "csp.hci.ic.gov"),
                ("eusc-de-east-1", "aws-eusc", "amazonaws.eu"),
                ("eu-south-1", "aws", "amazonaws.com"), ("us-isolated", "aws", "amazonaws.com")):
            with self.subTest(region=region):
                self.assertEqual((name, suffix), vr.partition_of(region)[1:3])

    def test_hosts_on_aws(self) -> None:
        """Region, FIPS, dual-stack and style together make the host of AWS."""
        self.check((
            (dict(region="eu-west-1", dualstack=True), "https://bkt.s3.dualstack.eu-west-1.amazonaws.com"),
            (dict(region="us-east-2", fips=True), "https://bkt.s3-fips.us-east-2.amazonaws.com"),
            (dict(region="us-east-2", fips=True, dualstack=True),
             "https://bkt.s3-fips.dualstack.us-east-2.amazonaws.com"),
            (dict(region="us-gov-west-1", fips=True, path_style=True),
             "https://s3-fips.us-gov-west-1.amazonaws.com/bkt"),
            (dict(region="us-iso-east-1", fips=True), "https://bkt.s3-fips.us-iso-east-1.c2s.ic.gov"),
            (dict(region="cn-north-1", dualstack=True),
             "https://bkt.s3.dualstack.cn-north-1.amazonaws.com.cn"),
            (dict(region="eusc-de-east-1", dualstack=True),
             "https://bkt.s3.dualstack.eusc-de-east-1.amazonaws.eu"),
            (dict(region="mars-north-7"), "https://bkt.s3.mars-north-7.amazonaws.com"),
            (dict(region="us-east-1", bucket="a.b"), "https://s3.us-east-1.amazonaws.com/a.b"),
            (dict(region="us-east-1", bucket="abc.def", dualstack=True),
             "https://s3.dualstack.us-east-1.amazonaws.com/abc.def"),
            (dict(region="us-east-1", bucket="ab"), "https://s3.us-east-1.amazonaws.com/ab"),
            (dict(region="us-east-1", bucket="a" * 63), f"https://{'a' * 63}.s3.us-east-1.amazonaws.com"),
            (dict(region="us-east-1", bucket="a" * 64), f"https://s3.us-east-1.amazonaws.com/{'a' * 64}"),
            (dict(region="us-east-1", bucket="Bkt"), "https://s3.us-east-1.amazonaws.com/Bkt"),
            (dict(region="us-east-1", bucket="b_t"), "https://s3.us-east-1.amazonaws.com/b_t"),
            (dict(region="us-east-1", bucket="bkt!"), "https://s3.us-east-1.amazonaws.com/bkt%21"),
            (dict(region="us-east-1", bucket="-bkt"), "https://s3.us-east-1.amazonaws.com/-bkt"),
            (dict(region="us-east-1", bucket="1.2.3.4"), "https://s3.us-east-1.amazonaws.com/1.2.3.4")))

    def test_aws_global(self) -> None:
        """aws-global is the old host, or us-east-1 with FIPS or dual-stack, signed for us-east-1."""
        for over, host in ((dict(), "s3.amazonaws.com"), (dict(fips=True), "s3-fips.us-east-1.amazonaws.com"),
                           (dict(dualstack=True), "s3.dualstack.us-east-1.amazonaws.com"),
                           (dict(s3_url="http://minio"), "minio")):
            with self.subTest(**over):
                address = vr.bucket_address(a_location(region="aws-global", **over))
                self.assertEqual((f"bkt.{host}", "us-east-1", "s3"), (address.host, *address[3:]))

    def test_what_aws_has_not(self) -> None:
        """FIPS in China, dual-stack in closed partitions, and either with s3Url are errors."""
        for over, words in (
                (dict(region="cn-north-1", fips=True), "FIPS.*cn-north-1"),
                (dict(region="cn-north-1", fips=True, dualstack=True), "FIPS.*cn-north-1"),
                *((dict(region=region, dualstack=True), f"dual-stack.*{region}") for region in (
                    "us-iso-east-1", "us-isob-east-1", "eu-isoe-west-1", "us-isof-south-1")),
                (dict(s3_url="http://minio", fips=True), "FIPS.*s3Url"),
                (dict(s3_url="http://minio", dualstack=True), "AWS_USE_DUALSTACK_ENDPOINT"),
                (dict(public_url="http://minio", fips=True, path_style=True), "AWS_USE_FIPS_ENDPOINT")):
            with self.subTest(**over), self.assertRaisesRegex(vr.ConfigError, words) as caught:
                vr.bucket_address(a_location(**over))
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_regions_that_cannot_be(self) -> None:
        """A region that is no DNS label is an error that shows it, with an endpoint of one's own too."""
        for region in ("", "eu west", "a.b", "-a", "a-", "a/b", "x" * 64, "a_b", "é", "a\n"):
            for url in ("", "http://minio"):
                with self.subTest(region=region, url=url), self.assertRaises(vr.ConfigError) as caught:
                    vr.bucket_address(a_location(region=region, s3_url=url))
                self.assertIn("config.region", str(caught.exception))
                self.assertIn(repr(vr.one_line(region, 64)), str(caught.exception))

    def test_hosts_are_lower_case(self) -> None:
        """Capitals never get into a host, as clients send hosts in lower case."""
        for over in (dict(region="EU-WEST-1"), dict(region="CN-North-1"), dict(s3_url="http://MinIO:9000"),
                     dict(s3_url="HTTP://minio"), dict(s3_url="https://[FD00::A]:9000"),
                     dict(region="us-west-2", bucket=ACCESS_POINT.replace("reports", "Reports"))):
            with self.subTest(**over):
                try:
                    address = vr.bucket_address(a_location(**over))
                except vr.ConfigError:
                    continue
                self.assertEqual(address.host.lower(), address.host)
                self.assertIn(address.scheme, ("http", "https"))

    def test_endpoints_of_ones_own(self) -> None:
        """Ports, default ports, IPv6, base paths and style of an endpoint."""
        self.check([(dict(s3_url=url, path_style=style), expected) for url, style, expected in (
            ("http://h:80", False, "http://bkt.h"), ("https://h:443/", False, "https://bkt.h"),
            ("http://h:443", True, "http://h:443/bkt"), ("https://h:80", True, "https://h:80/bkt"),
            ("https://h:", True, "https://h/bkt"), ("https://h:65535", False, "https://bkt.h:65535"),
            ("https://h:0443", True, "https://h/bkt"), ("http://[::1]", False, "http://[::1]/bkt"),
            ("http://[::1]:80", False, "http://[::1]/bkt"),
            ("https://[::1]:80", False, "https://[::1]:80/bkt"),
            ("https://[2001:DB8::1]:8443/x", False, "https://[2001:db8::1]:8443/x/bkt"),
            ("http://10.0.0.1", False, "http://10.0.0.1/bkt"), ("http://10.0.0.1.nip.io", False,
                                                                "http://bkt.10.0.0.1.nip.io"),
            ("http://h/base", False, "http://bkt.h/base"), ("http://h/base//", True, "http://h/base/bkt"),
            ("http://h//a//b", True, "http://h//a//b/bkt"), ("http://h/a%20b", True, "http://h/a%20b/bkt"),
            ("http://h/ü", True, "http://h/%C3%BC/bkt"), ("http://h/a+b", True, "http://h/a%2Bb/bkt"),
            ("http://h/~x", True, "http://h/~x/bkt"),
            ("http://my_minio.svc", False, "http://bkt.my_minio.svc"))])

    def test_urls_that_cannot_be(self) -> None:
        """An endpoint with query, fragment, password, no host or a wrong port is an error without it."""
        for url in ("http://h?s3cr3t", "http://h/#s3cr3t", "http://me:s3cr3t@h", "http://s3cr3t@h", "http://",
                    "http:///s3cr3t", "http://h:65536", "http://h:-1", "http://h:0", "http://h:s3cr3t",
                    "s3://s3cr3t", "h:9000", "http://[::1", "http://[::1%25eth0]", "http://[s3cr3t]",
                    "http://h/../s3cr3t", "http://h/.", "http://*.s3cr3t", "http://h|x"):
            for field, key in (("s3_url", "s3Url"), ("public_url", "publicUrl")):
                for bucket in ("bkt", ACCESS_POINT):
                    with self.subTest(url=url, bucket=bucket), self.assertRaises(vr.ConfigError) as caught:
                        vr.bucket_address(a_location(bucket=bucket, region="us-west-2", **{field: url}))
                    self.assertIn(key, str(caught.exception))
                    self.assertNotIn("s3cr3t", str(caught.exception))

    def test_dots_in_buckets(self) -> None:
        """A bucket with dots goes in front of an http endpoint when each label has three letters."""
        self.check([(dict(s3_url=url, bucket=bucket), expected) for url, bucket, expected in (
            ("http://h", "abc.def", "http://abc.def.h"), ("http://h", "abc.de", "http://h/abc.de"),
            ("https://h", "abc.def", "https://h/abc.def"), ("http://h", "abc..def", "http://h/abc..def"),
            ("http://h", ".abc", "http://h/.abc"), ("http://h", "abc.", "http://h/abc."),
            ("http://h", "abc.-de", "http://h/abc.-de"), ("http://h", "111.222.111.222",
                                                          "http://h/111.222.111.222"))])

    def test_arns(self) -> None:
        """Access points and those on Outposts have hosts, and Outposts a service, of their own."""
        for over, host, service in (
                (dict(), "reports-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "s3"),
                (dict(bucket=ACCESS_POINT.replace("point:", "point/")),
                 "reports-123456789012.s3-accesspoint.us-west-2.amazonaws.com", "s3"),
                (dict(fips=True), "reports-123456789012.s3-accesspoint-fips.us-west-2.amazonaws.com", "s3"),
                (dict(dualstack=True),
                 "reports-123456789012.s3-accesspoint.dualstack.us-west-2.amazonaws.com", "s3"),
                (dict(s3_url="https://vpce.example:8443"), "reports-123456789012.vpce.example:8443", "s3"),
                (dict(bucket=OUTPOST),
                 "reports-123456789012.op-01234567890123456.s3-outposts.us-west-2.amazonaws.com",
                 "s3-outposts"),
                (dict(bucket=OUTPOST, s3_url="https://beta.example"),
                 "reports-123456789012.op-01234567890123456.beta.example", "s3-outposts")):
            with self.subTest(**over):
                address = vr.object_address(a_location(**{**dict(region="us-west-2", bucket=ACCESS_POINT),
                                                          **over}),
                                            "k")
                self.assertEqual(("https", host, "/k", "us-west-2", service), tuple(address))

    def test_arns_of_china(self) -> None:
        """The partition of an ARN is that of its region."""
        bucket = ACCESS_POINT.replace("arn:aws:", "arn:aws-cn:").replace("us-west-2", "cn-north-1")
        self.assertEqual("reports-123456789012.s3-accesspoint.cn-north-1.amazonaws.com.cn",
                         vr.bucket_address(a_location(bucket=bucket, region="cn-north-1")).host)

    def test_arns_as_velero_reads_them(self) -> None:
        """A location takes an ARN with colons; one with a slash is refused, as Velero refuses it."""
        self.assertEqual(ACCESS_POINT, vr.location_from(a_location_document(
            objectStorage={"bucket": ACCESS_POINT})).bucket)
        with self.assertRaisesRegex(vr.ConfigError, "without '/'"):
            vr.location_from(a_location_document(objectStorage={"bucket": ACCESS_POINT.replace("point:",
                                                                                               "point/")}))

    def test_arns_that_cannot_be(self) -> None:
        """An ARN that no URL can be signed for is refused with the reason."""
        for over, words in (
                (dict(bucket="arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap"), "SigV4A"),
                (dict(bucket="arn:aws:s3:us-west-2:123456789012:accesspoint:mfzwi23gnjvgw.mrap"), "SigV4A"),
                (dict(path_style=True), "s3ForcePathStyle"),
                (dict(bucket=OUTPOST, path_style=True), "PathStyle"),
                (dict(region="eu-west-1"), "'us-west-2'.*'eu-west-1'"),
                (dict(bucket=ACCESS_POINT.replace("arn:aws:", "arn:aws-cn:")), "'aws-cn'"),
                (dict(bucket="arn:aws:s3:us-west-2:123456789012:bucket:x"), "neither"),
                (dict(bucket="arn:aws:sqs:us-west-2:123456789012:accesspoint:x"), "neither"),
                (dict(bucket="arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint:x"), "neither"),
                (dict(bucket="arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-1:bucket:x"), "neither"),
                (dict(bucket="arn:aws:s3:us-west-2:123456789012:accesspoint:a:b"), "neither"),
                (dict(bucket="arn:aws:s3:us-west-2:123456789012:accesspoint:"), "host name"),
                (dict(bucket="arn:aws:s3:us-west-2:123456789012:accesspoint:a.b"), "host name|neither"),
                (dict(bucket="arn:aws:s3:us-west-2:evil.example:accesspoint:a"), "host name"),
                (dict(bucket="arn:aws:s3:us-west-2:1#:accesspoint:a"), "host name"),
                (dict(bucket=OUTPOST.replace("op-", "op_")), "host name"),
                (dict(bucket="arn:"), "."), (dict(bucket="arn:aws:s3:us-west-2"), "."),
                (dict(s3_url="https://h", fips=True), "FIPS"),
                (dict(s3_url="https://h", dualstack=True), "(?i)dual-?stack"),
                (dict(bucket=OUTPOST, fips=True), "FIPS"),
                (dict(bucket=OUTPOST, dualstack=True), "(?i)dual-?stack")):
            with self.subTest(**over):
                with self.assertRaisesRegex(vr.ConfigError, words) as caught:
                    vr.bucket_address(a_location(**{**dict(region="us-west-2", bucket=ACCESS_POINT), **over}))
                self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_awkward_keys(self) -> None:
        """Each byte of a key is encoded once, slashes are kept, and nothing is cleaned up."""
        for key, path in AWKWARD_OBJECT_KEYS:
            for over, base in ((dict(), "/"), (dict(path_style=True), "/bkt/"),
                               (dict(s3_url="http://h/a%20b", path_style=True), "/a%20b/bkt/")):
                with self.subTest(key=key, **over):
                    self.assertEqual(base + path, vr.object_address(a_location(**over), key).path)

    def test_every_byte(self) -> None:
        """Every character comes back from the path as it went in, written as a URL may."""
        for first in range(0, 0xD800, 256):
            key = "".join(map(chr, range(first, first + 256)))
            path = vr.object_address(a_location(), key).path
            self.assertEqual("/" + key, unquote_to_bytes(path).decode())
            self.assertRegex(path, r"\A(?:[A-Za-z0-9\-._~/]|%[0-9A-F]{2})*\Z")


# What botocore is asked for where it is the oracle. Regions of each partition and beside them; endpoints.
ORACLE_REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-5", "us-gov-west-1", "cn-north-1", "us-iso-east-1",
                  "us-isob-east-1", "eu-isoe-west-1", "us-isof-south-1", "eusc-de-east-1", "mars-north-7",
                  "minio",
                  "aws-global")
ORACLE_ENDPOINTS = ("", "", "", "http://minio:9000", "https://s3.example", "http://10.0.0.1:9000",
                    "https://[fd00::1]",
                    "http://store.example/base", "https://h:443", "http://h:80", "https://h:8443/a/b")
ORACLE_BUCKETS = ("bkt", "my-bucket-1", "a.b", "abc.def", "Bkt", "b_t", "b", "1.2.3.4", "bkt!", "x" * 63,
                  "x" * 64,
                  "-bkt", "a..b")
KEY_LETTERS = "abcXYZ019-._~ /+=%&?$ü✓😀:@!*'()#\\|^`\"<>{}[];,\t"


def a_random_location(chance: random.Random) -> Any:
    """A location with region, endpoint, style, bucket, FIPS and dual-stack at random."""
    url = chance.choice(ORACLE_ENDPOINTS)
    return a_location(region=chance.choice(ORACLE_REGIONS), bucket=chance.choice(ORACLE_BUCKETS), s3_url=url,
                      path_style=chance.random() < 0.4, fips=not url and chance.random() < 0.2,
                      dualstack=not url and chance.random() < 0.2)


def a_random_key(chance: random.Random) -> str:
    """A key without a segment that clients would resolve, and without a slash in front or doubled."""
    parts = ("".join(chance.choices(KEY_LETTERS.replace("/", ""), k=chance.randint(1, 12))) for _ in range(3))
    return "/".join(part if part.strip(".") else "x" for part in itertools.islice(parts,
                                                                                  chance.randint(1, 3)))


@unittest.skipUnless(HAS_BOTOCORE, NO_BOTOCORE)
class TestStoreLikeBotocore(unittest.TestCase):
    """Addresses and URLs with botocore as oracle; where we differ on purpose, a rule here says how."""

    session: Any = None
    provider: Any = None
    clients: Dict[Any, Any] = {}

    @classmethod
    def setUpClass(cls) -> None:
        """Load the rule set and the partitions of AWS once."""
        endpoint_provider = __import__("botocore.endpoint_provider", fromlist=["EndpointProvider"])
        cls.session = botocore.session.Session()
        loader = cls.session.get_component("data_loader")
        cls.provider = endpoint_provider.EndpointProvider(
            loader.load_service_model("s3", "endpoint-rule-set-1"), loader.load_data("partitions"))

    def by_the_rules(self, location: Any) -> Tuple[str, str, str]:
        """URL, region and service by the rule set of AWS, ours where we differ on purpose."""
        if location.dualstack and "-iso" in location.region:
            return "", "", ""  # rule 1: the closed partitions have no dual-stack endpoints
        if location.bucket.startswith("arn:aws:") and location.region.startswith("us-gov-"):
            return "", "", ""  # rule 7: the partition of an ARN must be that of its region
        # Rule 8: no label goes before an IP address, and dots need three letters between them.
        dotted = "." in location.bucket and (location.s3_url.startswith("http://10.") or
                                             min(map(len, location.bucket.split("."))) < 3)
        try:
            endpoint = self.provider.resolve_endpoint(
                Bucket=location.bucket, Region=location.region, UseFIPS=location.fips, Accelerate=False,
                UseDualStack=location.dualstack, ForcePathStyle=location.path_style or dotted,
                UseArnRegion=False,
                UseGlobalEndpoint=False, DisableMultiRegionAccessPoints=False,
                **{"Endpoint": location.s3_url} if location.s3_url else {})
        except Exception as error:  # pylint: disable=broad-except
            self.assertIn("Endpoint", type(error).__name__)
            return "", "", ""
        scheme = [scheme for scheme in endpoint.properties["authSchemes"] if scheme["name"] == "sigv4"][0]
        # Rule 9: aws-global signs for us-east-1 at all endpoints.
        region = "us-east-1" if location.region == "aws-global" else scheme["signingRegion"]
        url = self.as_ours(endpoint.url)
        if location.s3_url and scheme["signingName"] == "s3-outposts":
            # Rule 10: the rule set drops scheme and path of an endpoint for Outposts, we keep them.
            own = urlsplit(location.s3_url)
            url = urlsplit(url)._replace(scheme=own.scheme, path=own.path).geturl()
        return url, region, scheme["signingName"]

    @staticmethod
    def as_ours(url: str) -> str:
        """A URL of botocore's without the default port, which we leave out of URL and signature (rule 2)."""
        parts = urlsplit(url)
        ends = {"http": ":80", "https": ":443"}[parts.scheme]
        host = parts.netloc[:-len(ends)] if parts.netloc.endswith(ends) else parts.netloc
        return parts._replace(netloc=host).geturl()

    @staticmethod
    def by_us(location: Any) -> Tuple[str, str, str]:
        """URL, region and service of a location's bucket as the module says, empty when it refuses."""
        try:
            address = vr.bucket_address(location)
        except vr.ConfigError:
            return "", "", ""
        return "{}://{}{}".format(*address[:3]), address.region, address.service

    def test_addresses(self) -> None:
        """Random locations are where the rule set of AWS says, or are refused by both."""
        chance = random.Random(12)
        for _ in range(1500):
            location = a_random_location(chance)
            with self.subTest(location=repr(location)):
                self.assertEqual(self.by_the_rules(location), self.by_us(location))

    def test_arns(self) -> None:
        """Access points and Outposts are where the rule set says, or are refused by both."""
        for arn, url, fips, dualstack, style in itertools.product(
                (ACCESS_POINT, OUTPOST, ACCESS_POINT.replace("us-west-2", "us-gov-west-1"),
                 ACCESS_POINT.replace("arn:aws:", "arn:aws-us-gov:").replace("us-west-2", "us-gov-west-1")),
                ("", "https://beta.example:8443", "http://beta.example/base"), (False, True), (False, True),
                (False, True)):
            for region in ("us-west-2", "us-gov-west-1"):
                location = a_location(bucket=arn, region=region, s3_url=url, fips=fips, dualstack=dualstack,
                                      path_style=style)
                with self.subTest(location=repr(location)):
                    self.assertEqual(self.by_the_rules(location), self.by_us(location))

    def client(self, location: Any) -> Any:
        """A client of botocore with the settings of a location; one for each, as they are slow to make."""
        # Rule 6: "virtual" puts any bucket in front of any host; we ask the rule set, as the plugin does.
        behind = urlsplit(self.by_the_rules(location)[0]).path.endswith("/" + quote(location.bucket))
        settings = (location.region, location.s3_url, behind, location.fips, location.dualstack)
        if settings not in self.clients:
            config = botocore.config.Config(
                signature_version="s3v4", use_fips_endpoint=location.fips,
                use_dualstack_endpoint=location.dualstack,
                s3={"addressing_style": "path" if behind else "virtual"})
            self.clients[settings] = self.session.create_client(
                "s3", region_name=location.region, endpoint_url=location.s3_url or None, config=config,
                aws_access_key_id="AKIA", aws_secret_access_key="x")
        return self.clients[settings]

    def url_of_botocore(self, location: Any, key: str, credentials: Any, now: datetime, seconds: int) -> str:
        """What a client of botocore would hand out at that time: its own URL, signed by its own signer."""
        client = self.client(location)
        unsigned = client.generate_presigned_url("get_object", Params={"Bucket": location.bucket, "Key": key},
                                                 ExpiresIn=seconds).partition("?")[0]
        signer = botocore.auth.S3SigV4QueryAuth(
            botocore.credentials.Credentials(credentials.access_key, credentials.secret_key,
                                             credentials.session_token or None), "s3", location.region,
                                             seconds)
        request = botocore.awsrequest.AWSRequest("GET", self.as_ours(unsigned))
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        # pylint: disable=protected-access
        signer._modify_request_before_signing(request)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        signer._inject_signature_to_request(request, signer.signature(text, request))
        url, _, query = request.url.partition("?")
        # Rule 3: we send the parameters in the order in which they are signed, botocore puts the token last.
        *parameters, signature = query.split("&")
        return f"{url}?{'&'.join(sorted(parameters))}&{signature}"

    def test_whole_urls(self) -> None:
        """Random region, endpoint, style, bucket, key, token, time and life give the identical URL."""
        chance = random.Random(13)
        settings = [a_random_location(chance) for _ in range(24)]
        compared = 0
        for _ in range(500):
            location = dataclasses.replace(chance.choice(settings), bucket=chance.choice(ORACLE_BUCKETS))
            key, token = a_random_key(chance), chance.choice(("", a_random_key(chance) * 9))
            if location.region == "aws-global" or not self.by_us(location)[0]:
                continue  # rule 4: for aws-global the client needs a region, `test_addresses` covers it
            if not botocore.handlers.VALID_BUCKET.search(location.bucket):
                continue  # rule 5: botocore's client refuses some buckets; `test_addresses` covers it
            now = datetime(2001, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.randrange(10**9))
            seconds = chance.choice((1, 600, 604800, chance.randint(1, 604800)))
            credentials = vr.Credentials("AKIA" + str(chance.randrange(10**9)), a_random_key(chance), token)
            address = vr.object_address(location, key)
            with self.subTest(location=repr(location), key=key, token=token, now=now, seconds=seconds):
                self.assertEqual(self.url_of_botocore(location, key, credentials, now, seconds),
                                 vr.presign(address, credentials, address.region, now,
                                            timedelta(seconds=seconds),
                                            address.service))
                compared += 1
        self.assertGreater(compared, 200)


# Header signatures that were published: the AWS suite (secret with a plus), and the documentation of S3.
SUITE_KEYS = vr.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=timezone.utc)
SUITE_TOKEN = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"
SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestStoreSignHeaders(unittest.TestCase):
    """Tests for `sign_headers` with published signatures."""

    @staticmethod
    def suite(method: str = "GET", headers: Optional[Dict[str, str]] = None, body: bytes = b"",
              token: str = "") -> Dict[str, str]:
        """Headers signed as the AWS suite signs them."""
        credentials = dataclasses.replace(SUITE_KEYS, session_token=token)
        return vr.sign_headers(method, "/", {"host": "example.amazonaws.com", **(headers or {})}, body,
                               credentials,
                               "us-east-1", "service", SUITE_TIME)

    def test_suite(self) -> None:
        """get-vanilla, with-session-token, post-vanilla and post-x-www-form-urlencoded of the AWS suite."""
        form = {"content-type": "application/x-www-form-urlencoded", "content-length": "13",
                "x-amz-content-sha256": FORM_SHA256}
        for name, signed, expected in (
                ("get-vanilla", self.suite(),
                 "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
                ("get-vanilla-with-session-token", self.suite(token=SUITE_TOKEN),
                 "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
                ("post-vanilla", self.suite("POST"),
                 "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
                ("post-x-www-form-urlencoded", self.suite("POST", form, b"Param1=value1"),
                 "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b")):
            with self.subTest(name=name):
                self.assertEqual(expected, signed["authorization"].rpartition("Signature=")[2])

    def test_documentation_of_s3(self) -> None:
        """GET with a range and PUT with a body, as the documentation of S3 signs them."""
        put_hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"
        for method, path, headers, body, expected in (
                ("GET", "/test.txt", {"range": "bytes=0-9", "x-amz-content-sha256": SHA256_OF_NOTHING}, b"",
                 "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
                ("PUT", "/test%24file.text", {"date": "Fri, 24 May 2013 00:00:00 GMT",
                                              "x-amz-storage-class": "REDUCED_REDUNDANCY",
                                              "x-amz-content-sha256": put_hash}, b"Welcome to Amazon S3.",
                 "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd")):
            with self.subTest(method=method):
                signed = vr.sign_headers(method, path, {"host": "examplebucket.s3.amazonaws.com", **headers},
                                         body,
                                         some_credentials(), "us-east-1", "s3", DOC_TIME)
                self.assertEqual(expected, signed["authorization"].rpartition("Signature=")[2])

    def test_shape(self) -> None:
        """All headers are named sorted, the token is one of them, and those given stay as they are."""
        given = {"host": "h", "content-type": "x"}
        signed = vr.sign_headers("POST", "/", given, b"", some_credentials(session_token="t"), "r-1", "sts",
                                 NOW)
        self.assertEqual({"host": "h", "content-type": "x"}, given)
        self.assertEqual({"host", "content-type", "x-amz-date", "x-amz-security-token", "authorization"},
                         set(signed))
        self.assertRegex(signed["authorization"],
                         r"\AAWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260504/r-1/"
                         r"sts/aws4_request, SignedHeaders=content-type;host;x-amz-date;"
                         r"x-amz-security-token, "
                         r"Signature=[0-9a-f]{64}\Z")
        self.assertNotIn("x-amz-security-token",
                         vr.sign_headers("POST", "/", given, b"", some_credentials(), "r",
                                                                 "sts", NOW))

    @unittest.skipUnless(HAS_BOTOCORE, NO_BOTOCORE)
    def test_like_botocore(self) -> None:
        """Random bodies, tokens, regions and times of an STS call are signed as botocore signs them."""
        chance = random.Random(14)
        for _ in range(100):
            now = datetime(2001, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.randrange(10**9))
            credentials = vr.Credentials("AKIA", a_random_key(chance), chance.choice(("", "t" * 40)))
            body, region = a_random_key(chance).encode(), chance.choice(ORACLE_REGIONS)
            headers = {"host": f"sts.{region}.amazonaws.com",
                       "content-type": "application/x-www-form-urlencoded"}
            signer = botocore.auth.SigV4Auth(botocore.credentials.Credentials(
                credentials.access_key, credentials.secret_key, credentials.session_token or None), "sts",
                region)
            request = botocore.awsrequest.AWSRequest(
                "POST", f"https://{headers['host']}/", data=body,
                headers={"Content-Type": headers["content-type"]})
            request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
            # pylint: disable=protected-access
            signer._modify_request_before_signing(request)
            text = signer.string_to_sign(request, signer.canonical_request(request))
            signer._inject_signature_to_request(request, signer.signature(text, request))
            ours = vr.sign_headers("POST", "/", headers, body, credentials, region, "sts", now)
            self.assertEqual(request.headers["Authorization"], ours["authorization"])


PAIR = {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "s1"}
ROLE = "arn:aws:iam::123456789012:role/r"
KEYS_1 = vr.Credentials("AKIA1", "s1")


def sections(text: str) -> Any:
    """The sections of an ini file."""
    return vr.ini_sections(text, "the file")


class TestStoreIni(unittest.TestCase):
    """Tests for `ini_sections` and `merge_profiles`."""

    def test_values(self) -> None:
        """Blank and `#` after a value end it, a `#` inside stays, and nothing is interpolated."""
        for line, value in (
                ("k = v # comment", "v"), ("k = v\t# comment", "v"), ("k = a#b", "a#b"),
                ("k = a#b #c", "a#b"),
                ("k = a;b", "a;b"), ("k = a==", "a=="), ("k = a%b%(c)s", "a%b%(c)s"), ("k=v", "v"),
                ("k =", ""),
                ("K = v", "v"), ("k = \"v\"", "\"v\""), ("k = a b", "a b"), ("k = a:b", "a:b"),
                ("k = a+/b=", "a+/b="),
                ("k = $HOME", "$HOME"), ("k = \\n", "\\n"), ("k = ü", "ü")):
            with self.subTest(line=line):
                self.assertEqual({"x": {"k": value}}, sections(f"[x]\n{line}\n"))

    def test_shapes(self) -> None:
        """Comments, blank lines, nested blocks and doubled sections are read as AWS reads them."""
        for text, expected in (
                ("", {}), ("\n\n", {}), ("# c\n; c\n", {}), ("[x]\n", {"x": {}}),
                ("[x] # c\nk=v", {"x": {"k": "v"}}),
                ("[x]\n# k = no\nk = v\n  # c\nl = w", {"x": {"k": "v", "l": "w"}}),
                ("[x]\nk = 1\nk = 2", {"x": {"k": "2"}}),
                ("[x]\nk = 1\n[y]\nk = 2\n[x]\nl = 3", {"x": {"k": "1", "l": "3"}, "y": {"k": "2"}}),
                ("[DEFAULT]\nk = 1\n[x]\n", {"DEFAULT": {"k": "1"}, "x": {}}),
                ("[profile a b]\nk = 1", {"profile a b": {"k": "1"}}), ("\ufeff[x]\nk=v", {"x": {"k": "v"}})):
            with self.subTest(text=text):
                self.assertEqual(expected, sections(text))

    def test_nested_blocks(self) -> None:
        """What is indented under a key belongs to that key, so keys in it are not those of the profile."""
        text = "[x]\ns3 =\n  aws_access_key_id = nested\n  endpoint_url = y\naws_secret_access_key = s\n"
        self.assertEqual({"s3", "aws_secret_access_key"}, set(sections(text)["x"]))

    def test_merging(self) -> None:
        """Key by key the credentials file wins, and `[x]` beats `[profile x]`, whichever comes first."""
        for credentials, config, expected in (
                ({"x": {"a": "1"}}, {"profile x": {"a": "2", "b": "3"}}, {"x": {"a": "1", "b": "3"}}),
                ({"x": {"a": "1"}, "profile x": {"a": "2"}}, {}, {"x": {"a": "1"}}),
                ({"profile x": {"a": "2"}, "x": {"a": "1"}}, {}, {"x": {"a": "1"}}),
                ({"profile x": {"a": "2"}}, {}, {"x": {"a": "2"}}),
                ({}, {"x": {"a": "2"}}, {"x": {"a": "2"}}),
                ({}, {"profile  x": {"a": "2"}}, {"x": {"a": "2"}}), ({}, {"profilex": {"a": "2"}},
                                                                      {"profilex": {"a": "2"}}),
                ({}, {"default": {"a": "1"}, "profile default": {"a": "2"}}, {"default": {"a": "1"}}),
                ({}, {}, {})):
            with self.subTest(credentials=credentials, config=config):
                self.assertEqual(expected, vr.merge_profiles(credentials, config))

    def test_merging_leaves_its_arguments(self) -> None:
        """The sections that are merged stay as they are."""
        credentials, config = {"x": {"a": "1"}}, {"profile x": {"b": "2"}}
        vr.merge_profiles(credentials, config)["x"]["c"] = "3"
        self.assertEqual(({"x": {"a": "1"}}, {"profile x": {"b": "2"}}), (credentials, config))

    def test_pairs_are_not_mixed(self) -> None:
        """Half a pair is not made whole with the other half from another section: it is an error."""
        for half in ({"aws_access_key_id": "C"}, {"aws_secret_access_key": "C"}):
            with self.subTest(half=half), self.assertRaisesRegex(vr.ConfigError, "needs both"):
                vr.plan_profile(vr.merge_profiles({"x": half}, {"profile x": PAIR}), "x", "f", {})
        token = {"profile x": {**PAIR, "aws_session_token": "old"}}
        pair = {"aws_access_key_id": "C", "aws_secret_access_key": "D"}
        self.assertEqual(vr.Credentials("C", "D"),
                         vr.plan_profile(vr.merge_profiles({"x": pair}, token), "x", "f", {}))

    def test_the_own_file(self) -> None:
        """A Secret is read as both kinds of file, and must be UTF-8."""
        self.assertEqual({"a": {"k": "1"}, "b": {"k": "2"}},
                         vr.own_profiles_from(b"[a]\nk=1\n[profile b]\nk=2\n", "the Secret"))
        with self.assertRaisesRegex(vr.ConfigError, "the Secret is not UTF-8") as caught:
            vr.own_profiles_from(b"[a]\nk=\xff", "the Secret")
        self.assertIsNone(caught.exception.__cause__)


class TestStoreProfile(unittest.TestCase):
    """Tests for `plan_profile`."""

    @staticmethod
    def plan(profiles: Dict[str, Dict[str, str]], name: str = "a", **environment: str) -> Any:
        """What a profile comes to."""
        return vr.plan_profile(profiles, name, "the file", environment)

    def test_sources(self) -> None:
        """Each source of a profile, and a role on top of those that need one."""
        role, other = {"role_arn": ROLE}, {"b": {"aws_access_key_id": "AKIA2", "aws_secret_access_key": "s2"}}
        keys_2 = vr.Credentials("AKIA2", "s2")
        for profile, expected in (
                (PAIR, KEYS_1), ({**PAIR, "aws_session_token": "t"}, vr.Credentials("AKIA1", "s1", "t")),
                ({**PAIR, **role}, vr.AssumedRole(KEYS_1, ROLE)),
                ({**role, "source_profile": "b"}, vr.AssumedRole(keys_2, ROLE)),
                ({**role, **PAIR, "source_profile": "b"}, vr.AssumedRole(keys_2, ROLE)),
                ({**role, **PAIR, "source_profile": "a"}, vr.AssumedRole(KEYS_1, ROLE)),
                ({**role, "source_profile": "b", "role_session_name": "n", "external_id": "e",
                  "duration_seconds": "3600"}, vr.AssumedRole(keys_2, ROLE, "n", "e", 3600)),
                ({**role, "credential_source": "Environment"},
                 vr.AssumedRole(vr.Credentials("E", "e", "t"), ROLE)),
                ({**role, "credential_source": "EcsContainer"},
                 vr.AssumedRole(vr.Container("http://169.254.170.2/c"), ROLE)),
                ({**role, "credential_source": "Ec2InstanceMetadata"},
                 vr.AssumedRole(vr.Instance("http://169.254.169.254"), ROLE)),
                ({**role, "web_identity_token_file": "/t"}, vr.WebIdentity(ROLE, "/t")),
                ({**role, "web_identity_token_file": "/t", "role_session_name": "n"},
                 vr.WebIdentity(ROLE, "/t", "n")),
                ({"credential_process": "x y"}, vr.Process("x y", "profile 'a' of the file")),
                ({**role, "credential_process": "x"},
                 vr.AssumedRole(vr.Process("x", "profile 'a' of the file"), ROLE)),
                ({**PAIR, "credential_process": "x"}, KEYS_1),
                ({**PAIR, "region": "x", "output": "json"}, KEYS_1)):
            with self.subTest(profile=profile):
                self.assertEqual(expected, self.plan(
                    {"a": dict(profile), **other}, AWS_ACCESS_KEY_ID="E", AWS_SECRET_ACCESS_KEY="e",
                    AWS_SESSION_TOKEN="t", AWS_CONTAINER_CREDENTIALS_RELATIVE_URI="/c"))

    def test_chains(self) -> None:
        """A source may itself have a role, a web identity or a process; each role is assumed on top."""
        profiles = {"a": {"role_arn": "r1", "source_profile": "b"},
                    "b": {"role_arn": "r2", "source_profile": "c"},
                    "c": {"role_arn": "r3", "source_profile": "c", **PAIR},
                    "d": {"role_arn": "r4", "source_profile": "e"},
                    "e": {"role_arn": "r5", "web_identity_token_file": "/t"},
                    "f": {"role_arn": "r6", "source_profile": "g"}, "g": {"credential_process": "x"}}
        assumed = vr.AssumedRole
        self.assertEqual(assumed(assumed(assumed(KEYS_1, "r3"), "r2"), "r1"), self.plan(profiles, "a"))
        self.assertEqual(assumed(vr.WebIdentity("r5", "/t"), "r4"), self.plan(profiles, "d"))
        self.assertEqual(assumed(vr.Process("x", "profile 'g' of the file"), "r6"), self.plan(profiles, "f"))

    def test_errors(self) -> None:
        """Every profile that comes to nothing says so, naming profile and file, and shows no secret."""
        role, secret = {"role_arn": ROLE}, {"aws_secret_access_key": "s3cr3t"}
        for profile, words in (
                ({}, "needs both"), ({"region": "x"}, "needs both"), (role, "needs both"),
                (secret, "needs both"),
                ({"aws_access_key_id": "AKIA"}, "needs both"),
                ({**secret, "aws_access_key_id": ""}, "needs both"),
                ({**role, "source_profile": "gone"}, "no profile 'gone'"),
                ({**role, "source_profile": "half"}, "'half'.*needs both"),
                ({**role, "source_profile": "a"}, "circle: a -> a"),
                ({**role, "source_profile": "b"}, "circle: a -> b -> a"),
                ({**role, "source_profile": "c"}, "circle: a -> c -> d -> c"),
                ({"source_profile": "b"}, "needs a role_arn"),
                ({"credential_source": "Environment"}, "needs a role_arn"),
                ({**PAIR, "source_profile": "b"}, "needs a role_arn"),
                ({**role, "source_profile": "b", "credential_source": "Environment"}, "exclude each other"),
                ({**role, "credential_source": "environment"},
                 "'environment'; allowed: Environment, EcsContainer, "
                                                               "Ec2InstanceMetadata"),
                ({**role, "credential_source": "Environment"}, "Environment has nothing"),
                ({**role, "credential_source": "EcsContainer"}, "EcsContainer has nothing"),
                ({**role, "credential_source": "Ec2InstanceMetadata"}, "Ec2InstanceMetadata has nothing"),
                ({"web_identity_token_file": "/t"}, "web_identity_token_file needs a role_arn"),
                ({"sso_session": "x"}, "SSO.*aws configure export-credentials"),
                ({"sso_start_url": "x", "sso_account_id": "1"}, "SSO"),
                ({**role, "source_profile": "sso"}, "'sso'.*SSO"),
                ({**role, "source_profile": "b", "mfa_serial": "arn:aws:iam::1:mfa/me"}, "mfa_serial")):
            with self.subTest(profile=profile), self.assertRaisesRegex(vr.ConfigError, words) as caught:
                self.plan({"a": dict(profile), "b": {**role, "source_profile": "a"}, "half": secret,
                           "c": {**role, "source_profile": "d"}, "d": {**role, "source_profile": "c"},
                           "sso": {"sso_session": "x"}}, AWS_EC2_METADATA_DISABLED="TRUE")
            self.assertEqual("InvalidCredentials", caught.exception.reason)
            self.assertIn("the file", str(caught.exception))
            self.assertNotIn("s3cr3t", str(caught.exception))

    def test_a_missing_profile(self) -> None:
        """A profile that is not there is named, whatever its name, in one line."""
        for name in ("gone", "", "a\nb", "x" * 10000):
            with self.assertRaisesRegex(vr.ConfigError, "the file has no profile") as caught:
                self.plan({"a": PAIR}, name)
            self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 200)

    def test_keys_beside_sso(self) -> None:
        """Keys of a profile that also logs in by SSO are used, as the plugin uses them."""
        self.assertEqual(KEYS_1, self.plan({"a": {**PAIR, "sso_account_id": "1", "sso_session": "x"}}))

    def test_keys_beside_mfa(self) -> None:
        """mfa_serial without a role to assume is without effect, as in the plugin."""
        self.assertEqual(KEYS_1, self.plan({"a": {**PAIR, "mfa_serial": "arn:aws:iam::1:mfa/me"}}))

    def test_durations(self) -> None:
        """duration_seconds is a number; what is none is an error that names key and value."""
        profile = {**PAIR, "role_arn": ROLE}
        self.assertEqual(0, self.plan({"a": profile}).duration)
        self.assertEqual(900, self.plan({"a": {**profile, "duration_seconds": "900"}}).duration)
        for text in ("1h", "-1", "3600.0", "٣"):
            with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError, f"duration_seconds.*{text}"):
                self.plan({"a": {**profile, "duration_seconds": text}})

    def test_any_profile(self) -> None:
        """Long chains and long numbers come to a plan or a ConfigError, like everything a Secret may say."""
        chain = {f"p{number}": {"role_arn": "r",
                                "source_profile": f"p{number + 1}"} for number in range(5000)}
        for profiles, name in ((chain, "p0"),
                               ({"a": {**PAIR, "role_arn": "r", "duration_seconds": "9" * 5000}}, "a")):
            with self.subTest(name=name):
                try:
                    self.plan(profiles, name)
                except vr.ConfigError as error:
                    self.assertLess(len(str(error)), 1000)

    def test_random_profiles(self) -> None:
        """Any mixture of keys in three profiles comes to a plan or a ConfigError."""
        chance = random.Random(15)
        keys = ("aws_access_key_id", "aws_secret_access_key", "role_arn", "source_profile",
                "credential_source",
                "web_identity_token_file", "credential_process", "mfa_serial", "sso_session",
                "duration_seconds")
        plans = 0
        for _ in range(5000):
            profiles = {name: {key: chance.choice(("a", "b", "c", "Environment", "")) for key in
                               chance.sample(keys, chance.randrange(5))} for name in "abc"}
            try:
                plans += bool(self.plan(profiles, AWS_ACCESS_KEY_ID="E", AWS_SECRET_ACCESS_KEY="e"))
            except vr.ConfigError as error:
                self.assertIn("the file", str(error))
        self.assertGreater(plans, 100)

    def test_nothing_secret_is_shown(self) -> None:
        """The text of a plan, as a log would show it, holds no key, token or command."""
        for plan in (self.plan({"a": {"aws_access_key_id": "s3cr3t", "aws_secret_access_key": "s3cr3t",
                                      "aws_session_token": "s3cr3t", "role_arn": "r"}}),
                     self.plan({"a": {"credential_process": "s3cr3t"}}),
                     vr.plan_container({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/c",
                                        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "s3cr3t"})):
            self.assertNotIn("s3cr3t", repr(plan))


# Every source of the chain in its order: what makes it there, and what the plan is then.
OWN = {"default": {"aws_access_key_id": "OWN", "aws_secret_access_key": "o"},
       "p": {"aws_access_key_id": "OWNP", "aws_secret_access_key": "o"}}
SHARED = {"default": {"aws_access_key_id": "SHARED", "aws_secret_access_key": "s"},
          "p": {"aws_access_key_id": "SHAREDP", "aws_secret_access_key": "s"}}
CHAIN: Tuple[Tuple[str, Dict[str, Any], Any], ...] = (
    ("own", {"own": OWN}, vr.Credentials("OWN", "o")),
    ("environment", {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "e"}, vr.Credentials("ENV", "e")),
    ("web identity", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": ROLE}, vr.WebIdentity(ROLE, "/t")),
    ("shared files", {"shared": SHARED}, vr.Credentials("SHARED", "s")),
    ("full container", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"},
     vr.Container("http://169.254.170.23/v1/credentials")),
    ("relative container", {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/c"},
     vr.Container("http://169.254.170.2/v2/c")),
    ("instance", {}, vr.Instance("http://169.254.169.254")))


def chain_plan(present: Dict[str, Any], profile: str = "") -> Any:
    """The plan when that is there: `own` and `shared` are files, all else the environment."""
    environment = {name: value for name, value in present.items() if name.isupper()}
    return vr.plan_credentials(profile, present.get("own"), present.get("shared", {}), "the files",
                               environment)


class TestStoreChain(unittest.TestCase):
    """Tests for `plan_credentials` and its sources."""

    def test_order(self) -> None:
        """Of any set of sources the first in the list wins."""
        for chosen in itertools.product((False, True), repeat=len(CHAIN) - 1):
            names = [name for (name, _, _), there in zip(CHAIN, (*chosen, True)) if there]
            present: Dict[str, Any] = {}
            for name, what, _ in CHAIN:
                present.update(what if name in names else {})
            with self.subTest(names=names):
                self.assertEqual(next(plan for name, _, plan in CHAIN if name == names[0]),
                                 chain_plan(present))

    def test_a_profile_that_is_named(self) -> None:
        """A profile in the location's config is sought in its own file, else goes before all others."""
        everything: Dict[str, Any] = {}
        for _, what, _ in CHAIN:
            everything.update(what)
        self.assertEqual("OWNP", chain_plan(everything, "p").access_key)
        everything.pop("own")
        self.assertEqual("SHAREDP", chain_plan(everything, "p").access_key)
        for present in (everything, {**everything, "own": OWN}):
            with self.assertRaisesRegex(vr.ConfigError, "the files has no profile 'gone'"):
                chain_plan(present, "gone")

    def test_profiles_of_the_environment(self) -> None:
        """AWS_PROFILE, then AWS_DEFAULT_PROFILE, names the shared profile; a missing one is an error."""
        for environment, expected in (
                ({}, "SHARED"), ({"AWS_PROFILE": "p"}, "SHAREDP"), ({"AWS_DEFAULT_PROFILE": "p"}, "SHAREDP"),
                ({"AWS_PROFILE": "default", "AWS_DEFAULT_PROFILE": "p"}, "SHARED"),
                ({"AWS_PROFILE": ""}, "SHARED")):
            with self.subTest(environment=environment):
                self.assertEqual(expected, chain_plan({"shared": SHARED, **environment}).access_key)
        for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
            with self.assertRaisesRegex(vr.ConfigError, "no profile 'gone'"):
                chain_plan({"shared": SHARED, variable: "gone"})
            self.assertEqual("ENV", chain_plan({**CHAIN[1][1], variable: "gone"}).access_key)

    def test_own_files_that_are_wrong(self) -> None:
        """A location's own file that has no keys is an error; nothing else is used in its place."""
        for own in ({}, {"default": {}}, {"default": {"region": "x"}}, {"other": PAIR}):
            with self.subTest(own=own), self.assertRaises(vr.ConfigError):
                chain_plan({"own": own, "shared": SHARED, **CHAIN[1][1]})

    def test_default_without_keys(self) -> None:
        """A default profile that only says region or output does not end the chain."""
        shared = {"default": {"region": "eu-west-1", "output": "json"}}
        self.assertEqual(CHAIN[6][2], chain_plan({"shared": shared}))
        self.assertEqual(CHAIN[5][2], chain_plan({"shared": shared, **CHAIN[5][1]}))

    def test_default_that_is_wrong(self) -> None:
        """A default profile with half a pair, or one that needs a browser, ends the chain with an error."""
        for shared in ({"default": {"aws_access_key_id": "x"}}, {"default": {"sso_session": "x"}}):
            with self.subTest(shared=shared), self.assertRaises(vr.ConfigError):
                chain_plan({"shared": shared})

    def test_no_source_at_all(self) -> None:
        """Without any source the error says where was looked, with a reason of its own."""
        with self.assertRaisesRegex(vr.ConfigError,
                                    "names no Secret.*environment.*the files.*container.*inst") as e:
            chain_plan({"AWS_EC2_METADATA_DISABLED": "true"})
        self.assertEqual("CredentialsNotFound", e.exception.reason)

    def test_environment(self) -> None:
        """Keys of the environment need both halves, by either of their names; half of them is none."""
        for environment, expected in (
                ({}, None), ({"AWS_ACCESS_KEY_ID": "a"}, None), ({"AWS_SECRET_ACCESS_KEY": "b"}, None),
                ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "b"}, None),
                ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, vr.Credentials("a", "b")),
                ({"AWS_ACCESS_KEY": "a", "AWS_SECRET_KEY": "b"}, vr.Credentials("a", "b")),
                ({"AWS_ACCESS_KEY_ID": "a", "AWS_ACCESS_KEY": "x", "AWS_SECRET_KEY": "b"},
                 vr.Credentials("a", "b")),
                ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": "t"},
                 vr.Credentials("a", "b", "t"))):
            with self.subTest(environment=environment):
                self.assertEqual(expected, vr.plan_environment(environment))

    def test_web_identity(self) -> None:
        """IRSA needs token file and role; the name of the session may be given."""
        for environment, expected in (
                ({}, None), ({"AWS_ROLE_ARN": "r"}, None), ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, None),
                ({"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": ""}, None),
                ({"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, vr.WebIdentity("r", "/t")),
                ({"AWS_ROLE_ARN": "r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_SESSION_NAME": "n"},
                 vr.WebIdentity("r", "/t", "n"))):
            with self.subTest(environment=environment):
                self.assertEqual(expected, vr.plan_web_identity(environment))

    def test_hosts_of_containers(self) -> None:
        """Plain http goes only to hosts on this machine, https anywhere; all else is an error."""
        for url in ("http://169.254.170.2/x", "http://169.254.170.23/v1/credentials",
                    "http://[fd00:ec2::23]/v1",
                    "http://localhost:8080/x", "http://127.0.0.1/x", "http://127.9.9.9:81/x",
                    "http://[::1]:80/x",
                    "http://LOCALHOST/x", "https://vault.example/x", "https://10.0.0.1:8443/x"):
            with self.subTest(url=url):
                self.assertEqual(vr.Container(url),
                                 vr.plan_container({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url}))
        for url in ("http://evil.example/x", "HTTP://evil.example/x", "hTTp://10.0.0.1/", "http://10.0.0.1/x",
                    "http://169.254.169.254/x", "http://169.254.170.2.evil.example/",
                    "http://127.0.0.1.evil.example",
                    "http://169.254.170.2@evil.example/x", "http://localhost.evil.example",
                    "http://[fd00:ec2::24]/",
                    "ftp://localhost/x", "localhost/x", "/x", "http://", "http:///x",
                    "http://localhost:99999/",
                    "http://0.0.0.0/x", "http://[::1"):
            with self.subTest(url=url):
                with self.assertRaisesRegex(vr.ConfigError, "AWS_CONTAINER_CREDENTIALS") as caught:
                    vr.plan_container({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url})
                self.assertEqual("InvalidCredentials", caught.exception.reason)

    def test_relative_uris(self) -> None:
        """A relative URI stays on the host of ECS, whatever it says; a full one goes before it."""
        for relative in ("@evil.example/x", ".evil.example/x", "x", ":99999/x"):
            with self.subTest(relative=relative), self.assertRaises(vr.ConfigError):
                vr.plan_container({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": relative})
        self.assertEqual("http://169.254.170.2//evil.example", vr.plan_container(
            {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "//evil.example"}).url)
        self.assertEqual("http://localhost/y", vr.plan_container(
            {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x",
             "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://localhost/y"}).url)
        self.assertIsNone(vr.plan_container({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": ""}))

    def test_tokens_of_containers(self) -> None:
        """The token and the file that holds one are both handed on."""
        self.assertEqual(vr.Container("http://localhost/x", "t", "/f"), vr.plan_container(
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://localhost/x",
             "AWS_CONTAINER_AUTHORIZATION_TOKEN": "t",
             "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/f"}))

    def test_instances(self) -> None:
        """Instance metadata can be off, elsewhere or on IPv6; version 1 is used only when told."""
        prefix = "AWS_EC2_METADATA_"
        for variables, expected in (
                ({}, vr.Instance("http://169.254.169.254")), ({"DISABLED": "true"}, None),
                ({"DISABLED": "True"}, None),
                ({"DISABLED": "false"}, vr.Instance("http://169.254.169.254")),
                ({"SERVICE_ENDPOINT_MODE": "IPv6"}, vr.Instance("http://[fd00:ec2::254]")),
                ({"SERVICE_ENDPOINT_MODE": "ipv4"}, vr.Instance("http://169.254.169.254")),
                ({"SERVICE_ENDPOINT": "http://127.0.0.1:1338/"}, vr.Instance("http://127.0.0.1:1338")),
                ({"SERVICE_ENDPOINT": "http://h", "SERVICE_ENDPOINT_MODE": "IPv6"}, vr.Instance("http://h")),
                ({"V1_DISABLED": "false"}, vr.Instance("http://169.254.169.254", True)),
                ({"V1_DISABLED": "FALSE"}, vr.Instance("http://169.254.169.254", True)),
                *(({"V1_DISABLED": text}, vr.Instance("http://169.254.169.254")) for text in ("true", "", "0",
                                                                                              "no"))):
            with self.subTest(**variables):
                self.assertEqual(expected, vr.plan_instance({prefix + name: text
                                                             for name, text in variables.items()}))
        for variables in ({"SERVICE_ENDPOINT": "h"}, {"SERVICE_ENDPOINT": "ftp://h"},
                          {"SERVICE_ENDPOINT_MODE": "5"},
                          {"SERVICE_ENDPOINT": "http://"}):
            with self.subTest(**variables), self.assertRaisesRegex(vr.ConfigError,
                                                                   "METADATA_SERVICE_ENDPOINT"):
                vr.plan_instance({prefix + name: text for name, text in variables.items()})

    def test_empty_variables(self) -> None:
        """A variable that is set to nothing counts as not set."""
        names = {name for _, what, _ in CHAIN for name in what if name.isupper()}
        names |= {"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_EC2_METADATA_DISABLED",
                  "AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"}
        self.assertEqual(CHAIN[-1][2], chain_plan(dict.fromkeys(names, "")))


class TestStoreLife(unittest.TestCase):
    """A URL never outlives the credentials that signed it, and the answer says when it ends."""

    @staticmethod
    def answer(now: datetime, expires: Optional[datetime], skew: timedelta = timedelta(0)) -> Tuple[Any, Any]:
        """(end of the URL in the store's time, expiration that the answer says)."""
        facts = dataclasses.replace(some_facts(expires=expires), skew=skew)
        status = vr.answer_download(a_download(), facts, now).body["status"]
        query = parse_qs(urlsplit(status["downloadURL"]).query)
        signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
        return (signed + timedelta(seconds=int(query["X-Amz-Expires"][0])),
                vr.parse_time(status["expiration"]))

    def test_clipping(self) -> None:
        """Credentials that last leave 600 s; those that end before clip it, by 70 s of margin at most."""
        for seconds, least, most in ((None, 600, 600), (100000, 600, 600), (671, 600, 600), (600, 530, 600),
                                     (300, 230, 300), (90, 20, 90)):
            with self.subTest(seconds=seconds):
                ends, says = self.answer(NOW, after(seconds=seconds) if seconds else None)
                self.assertEqual(ends, says)
                self.assertTrue(after(seconds=least) <= ends <= after(seconds=most), ends)

    def test_credentials_that_have_ended(self) -> None:
        """Expired credentials are an error with a reason of its own that names the location."""
        for seconds in (0.5, 0, -1, -100000):
            with self.subTest(seconds=seconds), self.assertRaisesRegex(vr.ConfigError,
                                                                       "'default'.*expired") as caught:
                self.answer(NOW, after(seconds=seconds))
            self.assertEqual("CredentialsExpired", caught.exception.reason)

    def test_clipping_with_fractions(self) -> None:
        """With fractions of seconds too, neither URL nor expiration goes beyond the credentials."""
        chance = random.Random(16)
        for _ in range(500):
            now = after(microseconds=chance.randrange(10**6))
            expires = now + timedelta(seconds=chance.uniform(120, 700))
            ends, says = self.answer(now, expires)
            self.assertLessEqual(ends, expires)
            self.assertLessEqual(says, ends)
            self.assertLess(min(expires, now + vr.URL_LIFE) - ends, timedelta(seconds=72))

    def test_clipping_with_skew(self) -> None:
        """Whether the store's clock is ahead or behind, the URL ends before the credentials do."""
        for minutes in (-30, -4, 0, 4):
            with self.subTest(minutes=minutes):
                ends, _ = self.answer(NOW, after(seconds=300), timedelta(minutes=minutes))
                self.assertLessEqual(ends, after(seconds=300))

    def test_skew(self) -> None:
        """A URL begins in the store's time and its expiration is in ours."""
        ends, says = self.answer(NOW, None, timedelta(hours=1))
        self.assertEqual((after(seconds=4200), after(seconds=600)), (ends, says))

    def test_the_region_and_service_of_the_address(self) -> None:
        """An answer signs for the region and the service of the address, not for those of the config."""
        for over, scope in ((dict(region="aws-global"), "us-east-1/s3"),
                            (dict(region="eu-west-1"), "eu-west-1/s3"),
                            (dict(region="us-west-2", bucket=OUTPOST), "us-west-2/s3-outposts")):
            with self.subTest(**over):
                url = vr.answer_download(a_download(), some_facts(**over), NOW).body["status"]["downloadURL"]
                self.assertIn(f"/{scope}/aws4_request", parse_qs(urlsplit(url).query)["X-Amz-Credential"][0])

    def test_is_fresh(self) -> None:
        """Credentials are fresh while they last for a whole URL and a minute more."""
        for seconds, expected in ((None, True), (10**6, True), (660, True), (659, False), (0, False),
                                  (-1, False)):
            with self.subTest(seconds=seconds):
                expires = None if seconds is None else after(seconds=seconds)
                self.assertEqual(expected, vr.is_fresh(some_credentials(expires=expires), NOW))


class TestStoreAnswers(unittest.TestCase):
    """Tests for `xml_fields` and `explain_signature`."""

    def test_xml(self) -> None:
        """The leaves of an answer come by name, unescaped, whatever is around them."""
        for body, expected in (
                (b"<Error><Code>NoSuchKey</Code><Message>a &amp; b &lt;c&gt;</Message></Error>",
                 {"Code": "NoSuchKey", "Message": "a & b <c>"}),
                (b"<?xml version=\"1.0\"?>\n<E xmlns=\"x\">\n  <Code>A</Code>\n</E>", {"Code": "A"}),
                (b"<Error><Code></Code></Error>", {"Code": ""}), (b"<C>a&#10;b</C>", {"C": "a\nb"}),
                (b"<C>&#34;a&#39;&#x9;&#xA;</C>", {"C": "\"a'\t\n"}), (b"<C>&amp;lt;</C>", {"C": "&lt;"}),
                (b"<C>a\nb</C>", {"C": "a\nb"}), (b"<C>\xff</C>", {"C": "\ufffd"}),
                ("<C>ü✓</C>".encode(), {"C": "ü✓"}),
                (b"<A>x</B>", {}), (b"<A>x", {}), (b"", {}), (b"plain", {}),
                (b"<html><p>503</p></html>", {"p": "503"}),
                (b"<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><C>&e;</C>", {"C": "&e;"})):
            with self.subTest(body=body):
                self.assertEqual(expected, vr.xml_fields(body))

    def test_large_xml(self) -> None:
        """Only the beginning of a huge answer is read, and nothing in it takes long."""
        self.assertEqual({}, vr.xml_fields(b" " * 70000 + b"<Code>x</Code>"))
        for piece in (b"<a>", b"<", b"<a", b"<a></", b"&lt;", b"<a>b</a"):
            self.assertEqual({}, vr.xml_fields(piece * (65536 // len(piece))))

    @staticmethod
    def canonical(url: str, **changed: str) -> str:
        """What a store returns as CanonicalRequest for a URL, with some lines changed."""
        parts = urlsplit(url)
        lines = {"method": "GET", "path": parts.path, "query": parts.query.rpartition("&")[0],
                 "host": f"host:{parts.netloc}", "empty": "", "names": "host", "payload": "UNSIGNED-PAYLOAD"}
        return "\n".join({**lines, **changed}.values())

    def test_differences(self) -> None:
        """The element that the store saw otherwise is named, with both sides."""
        url = vr.presign(vr.Address("https", "h:9000", "/bkt/a%20b"), some_credentials(), "eu-west-1", NOW,
                         vr.URL_LIFE)
        for changed, words in (
                ({"method": "HEAD"}, "the method differs: signed 'GET', the store saw 'HEAD'"),
                ({"path": "/bkt/a+b"}, "the path differs: signed '/bkt/a%20b', the store saw '/bkt/a\\+b'"),
                ({"query": "x=1"}, "the query differs"),
                ({"host": "host:internal"}, "the host header differs: signed 'host:h:9000', the store saw "
                                            "'host:internal'"),
                ({"names": "host;range"}, "the names of the signed headers differs"),
                ({"payload": SHA256_OF_NOTHING}, "the payload hash differs"),
                ({"path": "/x", "host": "host:y"}, "the path differs")):
            with self.subTest(**changed):
                text = vr.explain_signature(url, self.canonical(url, **changed))
                self.assertRegex(text, words)
                self.assertTrue(text.isprintable() and len(text) < 600)

    def test_no_difference(self) -> None:
        """When the store saw what was signed, it is the secret key that is wrong."""
        url = vr.presign(vr.Address("https", "h", "/k"), some_credentials(session_token="t+/="), "r", NOW,
                         vr.URL_LIFE)
        self.assertIn("secret key", vr.explain_signature(url, self.canonical(url)))

    def test_no_secret_is_shown(self) -> None:
        """Token and signature stay out of the sentence when the query differs."""
        url = vr.presign(vr.Address("https", "h", "/k"), some_credentials(session_token="s3cr3t"), "r", NOW,
                         vr.URL_LIFE)
        text = vr.explain_signature(url,
                                    self.canonical(url,
                                                   query="X-Amz-Security-Token=s3cr3t&X-Amz-Signature=ab12"))
        self.assertNotIn("s3cr3t", text)
        self.assertNotIn("ab12", text)

    def test_any_answer(self) -> None:
        """Whatever a store says it saw, the explanation is one short line."""
        url = vr.presign(vr.Address("https", "h", "/k"), some_credentials(), "r", NOW, vr.URL_LIFE)
        for theirs in ("", "\n" * 50, "GET", "x" * 100000, "GET\r\n/k\r\n", self.canonical(url) + "\nmore",
                       self.canonical(url, method="\x1b[2J")):
            text = vr.explain_signature(url, theirs)
            self.assertTrue(text.isprintable() and len(text) < 600, text[:99])


# ------------------------------------------------------------------------------------------------------------
# Stores: the services that hand out temporary keys
# ------------------------------------------------------------------------------------------------------------

STORE_ROLE = "arn:aws:iam::123456789012:role/velero"
STORE_IMDS_TOKEN = "/latest/api/token"
STORE_IMDS_KEYS = "/latest/meta-data/iam/security-credentials/"


def store_date(instant_: datetime) -> str:
    """Return an instant in RFC 3339."""
    return instant_.strftime("%Y-%m-%dT%H:%M:%SZ")


def store_now() -> datetime:
    """Return the time."""
    return datetime.now(timezone.utc)


class KeyServices(LoopbackServer):
    """STS, the container's endpoint and the instance metadata service behind one port."""

    def __init__(self) -> None:
        """Start serving; every set of keys handed out is new and kept in `issued`."""
        super().__init__()
        self.life = 3600.0                              # seconds that keys live
        self.issued: Dict[str, Tuple[str, str]] = {}    # access key -> (secret key, session token)
        self.ends: List[str] = []                       # when they end
        self.web_token = "web-identity-of-the-pod"
        self.signers: Dict[str, Tuple[str, str]] = {}   # who may call AssumeRole
        self.container_token = "container-token"
        self.imds_tokens: List[str] = []
        self.imds_forbidden = False                     # PUT of a token is answered with 403
        self.imds_old = False                           # version 1 alone: PUT is answered with 405
        self.imds_code = "Success"
        self.start()

    def new_keys(self) -> Tuple[str, str, str, str]:
        """Return access key, secret key, token and end of new keys."""
        number = len(self.ends) + 1
        access_key, secret_key = f"ASIATEMP{number:08}", f"temp-secret/+{number}"
        token = f"temp-token/+={number}"
        self.ends.append(store_date(store_now() + timedelta(seconds=self.life)))
        self.issued[access_key] = (secret_key, token)
        return access_key, secret_key, token, self.ends[-1]

    def handle(self, request: Request) -> Answer:
        """Return the answer to one request."""
        if request.method == "POST" and request.raw_path == "/":
            return self._sts(request)
        if request.raw_path == "/container":
            return self._container(request)
        if request.raw_path.startswith("/latest/"):
            return self._imds(request)
        return Answer(404, b"", ())

    def _document(self, token: str, **more: str) -> Answer:
        access_key, secret_key, session, end = self.new_keys()
        return Answer(200, json.dumps({"AccessKeyId": access_key, "SecretAccessKey": secret_key,
                                       token: session,
                                       "Expiration": end, **more}).encode())

    def _sts(self, request: Request) -> Answer:
        form = dict(parse_qsl(request.body.decode()))
        action = form.get("Action", "")
        trouble = ""
        if request.raw_query or request.content_type != "application/x-www-form-urlencoded" or \
                form.get("Version") != "2011-06-15" or not form.get("RoleSessionName"):
            trouble = "ValidationError"
        elif action == "AssumeRoleWithWebIdentity":
            known = form.get("WebIdentityToken") == self.web_token
            trouble = "" if known and "authorization" not in request.headers else "InvalidIdentityToken"
        elif action == "AssumeRole":
            trouble = self._signature_trouble(request)
        else:
            trouble = "InvalidAction"
        if trouble or form.get("RoleArn") != STORE_ROLE:
            return self.sts_refusal(403, trouble or "AccessDenied", "no keys for you")
        access_key, secret_key, token, end = self.new_keys()
        return Answer(200, (f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/">'
                            f"<{action}Result>"
                            f"<AssumedRoleUser><Arn>{STORE_ROLE}/x</Arn><AssumedRoleId>AROA:x</AssumedRoleId>"
                            f"</AssumedRoleUser><Credentials><AccessKeyId>{access_key}</AccessKeyId>"
                            f"<SecretAccessKey>{secret_key}</SecretAccessKey>"
                            f"<SessionToken>{token}</SessionToken>"
                            f"<Expiration>{end}</Expiration></Credentials></{action}Result>"
                            f"</{action}Response>").encode(), (("Content-Type", "text/xml"),))

    @staticmethod
    def sts_refusal(status: int, code: str, message: str) -> Answer:
        """Return an error as STS words it."""
        return Answer(status, (f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code>"
                               f"<Message>{message}</Message></Error></ErrorResponse>").encode(),
                      (("Content-Type", "text/xml"),))

    def _signature_trouble(self, request: Request) -> str:
        """Return what is wrong with a signature in the Authorization header, worked out anew from the
        request."""
        match = re.match(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[\w-]+/sts/aws4_request), "
                         r"SignedHeaders=([\w;-]+), Signature=([0-9a-f]{64})$",
                         request.headers.get("authorization", ""))
        if not match:
            return "IncompleteSignature"
        access_key, scope, names, given = match.groups()
        secret, token = self.signers.get(access_key, ("", ""))
        when = request.headers.get("x-amz-date", "")
        if not secret or request.headers.get("x-amz-security-token", "") != token:
            return "InvalidClientTokenId"
        if not {"host", "x-amz-date"} <= set(names.split(";")) or scope[:8] != when[:8]:
            return "SignatureDoesNotMatch"
        canonical = canonical_request(request.method, request.raw_path, "", request.header_list,
                                      names.split(";"),
                                      hashlib.sha256(request.body).hexdigest())
        right = signature_of(secret, scope, string_to_sign(when, scope, canonical))
        return "" if right == given else "SignatureDoesNotMatch"

    def _container(self, request: Request) -> Answer:
        if request.headers.get("authorization") != self.container_token:
            return Answer(401, b'{"code": "401", "message": "the token is missing or stale"}')
        return self._document("Token")

    def _imds(self, request: Request) -> Answer:
        if request.raw_path == STORE_IMDS_TOKEN:
            if self.imds_old or request.method != "PUT":
                return Answer(405, b"", ())
            life = request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            if self.imds_forbidden or not life.isdigit():
                return Answer(403, b"", ())
            self.imds_tokens.append(f"imds-token-{len(self.seen('PUT'))}")
            return Answer(200, self.imds_tokens[-1].encode(), (("Content-Type", "text/plain"),))
        if not self.imds_old and request.headers.get("x-aws-ec2-metadata-token") not in self.imds_tokens:
            return Answer(401, b"", ())
        if request.raw_path == STORE_IMDS_KEYS:
            return Answer(200, b"node-role\n", (("Content-Type", "text/plain"),))
        if request.raw_path != STORE_IMDS_KEYS + "node-role":
            return Answer(404, b"", ())
        return self._document("Token", Code=self.imds_code, Type="AWS-HMAC")


class KeyTests(Mixin):
    """The services, a folder, and an environment without any AWS in it."""

    services: KeyServices
    folder: str

    def setUp(self) -> None:
        """Start the services."""
        self.folder = tempfile.mkdtemp(prefix="velero-requests-keys-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.start_services()

    def start_services(self) -> None:
        """Start the services for one test."""
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        hidden = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        self.services = KeyServices()
        stack.callback(self.services.close)
        stack.enter_context(environment({**dict.fromkeys(hidden), "HOME": self.folder,
                                         "AWS_ENDPOINT_URL_STS": self.services.url}))

    def tearDown(self) -> None:
        """The services must not have failed in themselves."""
        self.assertEqual(self.services.bugs, [])

    def write(self, name: str, text: str) -> str:
        """Write a file into the folder and return its path."""
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def web_identity(self) -> Any:
        """Return the plan of a pod with a token that STS knows."""
        return velero_requests.WebIdentity(STORE_ROLE, self.write("token", self.services.web_token + "\n"))

    def container(self, **more: str) -> Any:
        """Return the plan of a container."""
        return velero_requests.Container(self.services.url + "/container", **more)

    def fetch(self, plan: Any, region: str = "eu-north-1") -> Any:
        """Return the keys that a plan comes to."""
        return velero_requests.fetch_credentials(plan, region)

    def assert_keys(self, keys: Any) -> None:
        """Check that these are keys that the services have handed out last."""
        self.assertEqual(self.services.issued.get(keys.access_key), (keys.secret_key, keys.session_token))
        self.assertEqual(store_date(keys.expires), self.services.ends[-1])

    def assert_no_keys(self, plan: Any, *words: str, reason: str = "InvalidCredentials") -> str:
        """Check that a plan fails with one sentence with these words and no secret in it, and return it."""
        with self.assertRaises(velero_requests.Error) as caught:
            self.fetch(plan)
        text = str(caught.exception)
        for word in words:
            self.assertIn(word, text)
        self.assertEqual(caught.exception.reason, reason, text)
        self.assertNotIn("\n", text)
        for access_key, others in self.services.issued.items():
            for secret in (access_key, *others):
                self.assertNotIn(secret, text)
        for secret in (self.services.web_token, self.services.container_token, *self.services.imds_tokens):
            self.assertNotIn(secret, text)
        return text


# ------------------------------------------------------------------------------------------------------------
# Stores: keys from STS
# ------------------------------------------------------------------------------------------------------------

class TestStoreTokenService(KeyTests, unittest.TestCase):
    """Web identity and assumed roles."""

    def test_a_web_identity_is_exchanged_unsigned(self) -> None:
        """The pod's token goes in the body of an unsigned POST and never in a URL or a header."""
        self.assert_keys(self.fetch(self.web_identity()))
        request, = self.services.seen()
        form = dict(parse_qsl(request.body.decode()))
        self.assertEqual((request.target, form["WebIdentityToken"]), ("/", self.services.web_token))
        self.assertNotIn("authorization", request.headers)
        self.assertNotIn(self.services.web_token, str(request.header_list))

    def test_the_token_file_is_read_anew(self) -> None:
        """A token that kubelet has rotated is the one that is sent next."""
        plan = self.web_identity()
        self.fetch(plan)
        self.services.web_token = "the-rotated-token"
        self.write("token", self.services.web_token)
        self.assert_keys(self.fetch(plan))

    def test_the_session_has_the_name_asked_for(self) -> None:
        """AWS_ROLE_SESSION_NAME names the session; without it there is some name."""
        path = self.write("token", self.services.web_token)
        self.fetch(velero_requests.WebIdentity(STORE_ROLE, path, "backup-pod"))
        self.fetch(velero_requests.WebIdentity(STORE_ROLE, path))
        names = [dict(parse_qsl(request.body.decode()))["RoleSessionName"]
                 for request in self.services.seen()]
        self.assertEqual(names[0], "backup-pod")
        self.assertRegex(names[1], r"^[\w+=,.@-]{2,64}$")

    def test_an_assumed_role_is_signed(self) -> None:
        """AssumeRole bears a signature that a second implementation works out alike, with and without a
        token."""
        for token in ("", "session-token/+="):
            with self.subTest(token=token):
                self.services.signers = {"AKIASOURCE": ("source-secret/+", token)}
                source = velero_requests.Credentials("AKIASOURCE", "source-secret/+", token)
                plan = velero_requests.AssumedRole(source, STORE_ROLE, "me", "ext/ id&=ü", 3600)
                self.assert_keys(self.fetch(plan))
                form = dict(parse_qsl(self.services.seen()[-1].body.decode()))
                self.assertEqual((form["ExternalId"], form["DurationSeconds"], form["RoleSessionName"]),
                                 ("ext/ id&=ü", "3600", "me"))

    def test_a_wrong_secret_is_one_sentence(self) -> None:
        """STS's refusal of a signature shows its code and neither key."""
        self.services.signers = {"AKIASOURCE": ("source-secret", "")}
        plan = velero_requests.AssumedRole(velero_requests.Credentials("AKIASOURCE", "wrong-secret"),
                                           STORE_ROLE)
        text = self.assert_no_keys(plan, "SignatureDoesNotMatch", STORE_ROLE)
        self.assertNotIn("AKIASOURCE", text)
        self.assertNotIn("wrong-secret", text)
        self.assertEqual(len(self.services.seen()), 1, "a refusal is final")

    def test_a_role_may_be_assumed_with_keys_of_another_role(self) -> None:
        """The keys of a web identity open the way to a role beyond it."""
        services = self.services
        plan = velero_requests.AssumedRole(self.web_identity(), STORE_ROLE)
        services.signers = services.issued
        self.assert_keys(self.fetch(plan))
        self.assertEqual(len(services.issued), 2)

    def test_what_passes_is_asked_again(self) -> None:
        """5xx, 429, a closed connection and IDPCommunicationError are tried again, and the third try may be
        right."""
        passing = KeyServices.sts_refusal(400, "IDPCommunicationError", "the issuer did not answer").body
        for name, fault in {"500": {"status": 500}, "503": {"status": 503}, "429": {"status": 429},
                            "closed": {"drop": True},
                            "IDPCommunicationError": {"status": 400, "body": passing}}.items():
            with self.subTest(name):
                before = len(self.services.seen())
                self.services.script("POST", times=2, **fault)
                self.assert_keys(self.fetch(self.web_identity()))
                self.assertEqual(len(self.services.seen()) - before, 3)

    def test_throttling_is_asked_again(self) -> None:
        """STS answers 400 with the code Throttling when it is asked too often, which passes."""
        body = KeyServices.sts_refusal(400, "Throttling", "Rate exceeded").body
        self.services.script("POST", status=400, body=body)
        self.assert_keys(self.fetch(self.web_identity()))

    def test_what_does_not_pass_ends_after_three_tries(self) -> None:
        """A service that stays down is an error with its status, after three tries."""
        self.services.script("POST", times=9, status=503)
        self.assert_no_keys(self.web_identity(), "503")
        self.assertEqual(len(self.services.seen()), 3)

    def test_a_refusal_is_final(self) -> None:
        """AccessDenied is not asked again and its sentence names the role, not the token."""
        plan = velero_requests.WebIdentity(STORE_ROLE + "-other",
                                           self.write("token", self.services.web_token))
        self.assert_no_keys(plan, "AccessDenied", STORE_ROLE + "-other")
        self.assertEqual(len(self.services.seen()), 1)

    def test_answers_without_keys_are_errors(self) -> None:
        """An answer that is no XML, is cut off or lacks the secret is an error that does not show it."""
        for body in (b"", b"<html>login</html>", b"{}", b"\xff\xfe\0",
                     b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey></SecretAccessKey>",
                     b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey>cut-sec"):
            with self.subTest(body):
                self.services.script("POST", status=200, body=body)
                text = self.assert_no_keys(self.web_identity(), "holds no keys")
                self.assertNotIn("ASIASHOWN", text)

    def test_a_token_file_that_is_missing_is_named(self) -> None:
        """Without its token file a web identity fails before anybody is asked."""
        plan = velero_requests.WebIdentity(STORE_ROLE, os.path.join(self.folder, "absent"))
        with self.assertRaisesRegex(velero_requests.Error, "absent"):
            self.fetch(plan)
        self.assertEqual(self.services.seen(), [])

    def test_an_endpoint_may_end_in_a_slash(self) -> None:
        """AWS_ENDPOINT_URL_STS with a slash at its end is the same endpoint, for a signed call too."""
        self.services.signers = {"AKIASOURCE": ("source-secret", "")}
        with environment({"AWS_ENDPOINT_URL_STS": self.services.url + "/"}):
            source = velero_requests.Credentials("AKIASOURCE", "source-secret")
            self.assert_keys(self.fetch(velero_requests.AssumedRole(source, STORE_ROLE)))


# ------------------------------------------------------------------------------------------------------------
# Stores: keys from a container, an instance, a program
# ------------------------------------------------------------------------------------------------------------

class TestStoreContainer(KeyTests, unittest.TestCase):
    """ECS and EKS Pod Identity."""

    def test_the_token_opens_the_endpoint(self) -> None:
        """The authorization token goes as it is into the header, from the variable or from the file."""
        path = self.write("container-token", self.services.container_token + "\n")
        for more in ({"token": self.services.container_token}, {"token_file": path},
                     {"token": "the file comes first", "token_file": path}):
            with self.subTest(more):
                self.assert_keys(self.fetch(self.container(**more)))

    def test_a_missing_or_stale_token_is_an_error(self) -> None:
        """401 is final, and the service's own words are shown."""
        for more in ({}, {"token": "stale"}):
            with self.subTest(more):
                before = len(self.services.seen())
                self.assert_no_keys(self.container(**more), "401", "missing or stale")
                self.assertEqual(len(self.services.seen()) - before, 1)

    def test_a_rotated_token_file_is_read_anew(self) -> None:
        """A token rotated on disk opens the endpoint again."""
        plan = self.container(token_file=self.write("container-token", "stale"))
        self.assert_no_keys(plan, "401")
        self.write("container-token", self.services.container_token)
        self.assert_keys(self.fetch(plan))

    def test_a_token_cannot_add_headers(self) -> None:
        """A token with a line end in it is refused before it is sent."""
        for text in ("one\r\nX-Evil: 1", "one\ntwo"):
            with self.subTest(text):
                with self.assertRaises(velero_requests.Error):
                    self.fetch(self.container(token=text))
        self.assertEqual(self.services.seen(), [])

    def test_what_passes_is_asked_again(self) -> None:
        """A 500, a closed connection and a delay beyond two seconds are followed by another try."""
        never = threading.Event()
        self.addCleanup(never.set)
        faults: Tuple[Document, ...] = ({"status": 500}, {"drop": True}, {"hang": never})
        for fault in faults:
            with self.subTest(list(fault)):
                self.services.script("GET", "/container", **fault)
                self.assert_keys(self.fetch(self.container(token=self.services.container_token)))

    def test_wrong_json_is_an_error(self) -> None:
        """Answers that are no JSON object with keys in it are one error each, without their text."""
        for body in (b"", b"[]", b"null", b"not json", b'{"AccessKeyId": "ASIASHOWN"}', b"\xff",
                     b'{"AccessKeyId": 7, "SecretAccessKey": ["ASIASHOWN"]}',
                     b'{"AccessKeyId": "ASIASHOWN", "Sec',
                     b"[" * 60000):
            with self.subTest(body[:40]):
                self.services.script("GET", "/container", status=200, body=body)
                text = self.assert_no_keys(self.container(token=self.services.container_token),
                                           "holds no keys")
                self.assertNotIn("ASIASHOWN", text)

    def test_no_proxy_is_asked(self) -> None:
        """The container's and the instance's endpoints are asked directly, whatever proxy the environment
        names."""
        proxies = {name: "http://127.0.0.1:1"
                   for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
        with environment({**proxies, "NO_PROXY": None, "no_proxy": None}):
            self.assert_keys(self.fetch(self.container(token=self.services.container_token)))
            self.assert_keys(self.fetch(velero_requests.Instance(self.services.url)))


class TestStoreInstance(KeyTests, unittest.TestCase):
    """The instance metadata service."""

    def instance(self, allow_v1: bool = False) -> Any:
        """Return the plan of an instance."""
        return velero_requests.Instance(self.services.url, allow_v1)

    def test_version_two_is_spoken(self) -> None:
        """A token is fetched by PUT with a life, and both GETs carry it."""
        self.assert_keys(self.fetch(self.instance()))
        self.assertEqual([(request.method, request.target) for request in self.services.seen()],
                         [("PUT", STORE_IMDS_TOKEN), ("GET", STORE_IMDS_KEYS),
                          ("GET", STORE_IMDS_KEYS + "node-role")])
        for request in self.services.seen("GET"):
            self.assertEqual(request.headers["x-aws-ec2-metadata-token"], self.services.imds_tokens[0])

    def test_forbidden_never_leads_to_version_one(self) -> None:
        """403 on the PUT is the end, also where version 1 is allowed."""
        self.services.imds_forbidden = True
        for allow in (False, True):
            with self.subTest(allow=allow):
                self.assert_no_keys(self.instance(allow), "403", reason="CredentialsNotFound")
        self.assertEqual(self.services.seen("GET"), [])

    def test_version_one_only_when_it_is_allowed(self) -> None:
        """Where there is no PUT, version 1 is spoken with AWS_EC2_METADATA_V1_DISABLED=false and not
        otherwise."""
        self.services.imds_old = True
        for value, allowed in ((None, False), ("true", False), ("false", True), ("FALSE", True), ("", False)):
            with self.subTest(value=value), environment({
                    "AWS_EC2_METADATA_V1_DISABLED": value,
                    "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.services.url + "/"}):
                plan = velero_requests.plan_instance(os.environ)
                if allowed:
                    self.assert_keys(self.fetch(plan))
                else:
                    self.assert_no_keys(plan, "405", reason="CredentialsNotFound")
        self.assertFalse(any("x-aws-ec2-metadata-token" in request.headers
                             for request in self.services.seen("GET")))

    def test_a_forgotten_token_is_replaced_once(self) -> None:
        """A 401 at either GET brings a new token; a second 401 is the end."""
        for part in (STORE_IMDS_KEYS, STORE_IMDS_KEYS + "node-role"):
            with self.subTest(part):
                before = len(self.services.seen("PUT"))
                self.services.script("GET", part, status=401)
                self.assert_keys(self.fetch(self.instance()))
                self.assertEqual(len(self.services.seen("PUT")) - before, 2)
        self.services.script("GET", STORE_IMDS_KEYS, times=9, status=401)
        self.assert_no_keys(self.instance(), "401", reason="CredentialsNotFound")

    def test_a_code_other_than_success_is_an_error(self) -> None:
        """Keys that come with another code are no keys, and the code is shown."""
        self.services.imds_code = "AssumeRoleUnauthorizedAccess"
        self.assert_no_keys(self.instance(), "AssumeRoleUnauthorizedAccess", reason="CredentialsNotFound")

    def test_an_instance_without_a_role_is_an_error(self) -> None:
        """404 or nothing at all in the list of roles asks whether there is a role."""
        for fault in ({"status": 404}, {"status": 200, "body": b""}, {"status": 200, "body": b"\n"}):
            with self.subTest(fault):
                self.services.script("GET", STORE_IMDS_KEYS, **fault)
                self.assert_no_keys(self.instance(), "have a role?", reason="CredentialsNotFound")

    def test_wrong_json_is_an_error(self) -> None:
        """A second answer that is no JSON object is one error without its text."""
        for body in (b"", b"<html>", b'["Success"]', b'{"Code": "Success", "AccessKeyId": "ASIASHOWN"'):
            with self.subTest(body):
                self.services.script("GET", STORE_IMDS_KEYS + "node-role", status=200, body=body)
                text = self.assert_no_keys(self.instance(), reason="CredentialsNotFound")
                self.assertNotIn("ASIASHOWN", text)

    def test_a_token_cannot_add_headers(self) -> None:
        """A token with a line end in its middle is refused before it is sent."""
        self.services.script("PUT", status=200, body=b"one\r\nX-Evil: 1")
        with self.assertRaises(velero_requests.Error):
            self.fetch(self.instance())
        self.assertEqual(self.services.seen("GET"), [])

    def test_a_role_name_stays_one_segment(self) -> None:
        """What the service calls the role never leaves its place in the path."""
        self.services.script("GET", STORE_IMDS_KEYS, status=200, body=b"../../../user-data?x=1#y")
        with self.assertRaises(velero_requests.Error):
            self.fetch(self.instance())
        self.assertEqual(self.services.seen("GET")[-1].target,
                         STORE_IMDS_KEYS + "..%2F..%2F..%2Fuser-data%3Fx%3D1%23y")

    def test_silence_is_an_error_after_a_second(self) -> None:
        """A service that does not answer the PUT gives no keys."""
        never = threading.Event()
        self.addCleanup(never.set)
        self.services.script("PUT", times=9, hang=never)
        self.assert_no_keys(self.instance(), "no answer", reason="CredentialsNotFound")

    def test_what_passes_is_asked_again(self) -> None:
        """A 503 at any of the three steps is followed by another try."""
        for method, part in (("PUT", STORE_IMDS_TOKEN), ("GET", STORE_IMDS_KEYS), ("GET", "node-role")):
            with self.subTest(part):
                self.services.script(method, part, status=503)
                self.assert_keys(self.fetch(self.instance()))
                self.services.unscript()


class TestStoreProcess(KeyTests, unittest.TestCase):
    """credential_process."""

    def process(self, script: str) -> Any:
        """Return the plan that runs a shell script."""
        return velero_requests.Process("sh " + shlex.quote(self.write("keys.sh", script)),
                                       "profile 'p' of file f")

    def print_keys(self, **more: Any) -> Any:
        """Return the plan of a program that prints keys."""
        document = {"Version": 1, "AccessKeyId": "ASIASHOWN", "SecretAccessKey": "shown-secret", **more}
        path = self.write("keys.json", json.dumps(document))
        return self.process(f"cat {shlex.quote(path)}\necho chatter >&2\n")

    def test_keys_that_last_or_end(self) -> None:
        """With an Expiration the keys end then, without one they last."""
        keys = self.fetch(self.print_keys(SessionToken="shown-token", Expiration="2040-01-02T03:04:05Z"))
        self.assertEqual((keys.access_key, keys.secret_key, keys.session_token),
                         ("ASIASHOWN", "shown-secret", "shown-token"))
        self.assertEqual(keys.expires, datetime(2040, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
        self.assertIsNone(self.fetch(self.print_keys()).expires)

    def test_stderr_is_shown_and_stdout_never(self) -> None:
        """A program that fails is quoted from its stderr, on one line and without its stdout."""
        text = self.assert_no_keys(self.process("echo shown-secret\nprintf 'log in\\nfirst' >&2\nexit 3\n"),
                                   "exit code 3", "log in", "first", "profile 'p' of file f")
        self.assertNotIn("shown-secret", text)

    def test_wrong_output_is_an_error_that_does_not_show_it(self) -> None:
        """What is no JSON of Version 1 with both keys is refused unseen."""
        for output in ("", "shown-secret", "[]",
                       '{"Version": 2, "AccessKeyId": "a", "SecretAccessKey": "shown-secret"}',
                       '{"AccessKeyId": "a", "SecretAccessKey": "shown-secret"}', "\udcff",
                       '{"Version": 1, "SecretAccessKey": "shown-secret"}'):
            with self.subTest(output):
                path = os.path.join(self.folder, "output")
                with open(path, "wb") as file:
                    file.write(output.encode("utf-8", "surrogateescape"))
                text = self.assert_no_keys(self.process(f"cat {shlex.quote(path)}"), "profile 'p'")
                self.assertNotIn("shown-secret", text)

    def test_an_end_that_cannot_be_read_is_not_forever(self) -> None:
        """Keys whose Expiration is no time are refused, for they would be kept for good."""
        self.assert_no_keys(self.print_keys(Expiration="soon"))

    def test_stdin_is_empty(self) -> None:
        """A program that asks for a password meets the end of its input and does not hang."""
        self.assert_no_keys(self.process("read answer || { echo no terminal >&2; exit 1; }\n"), "no terminal")


# ------------------------------------------------------------------------------------------------------------
# Stores: renewing in time
# ------------------------------------------------------------------------------------------------------------

class TestStorePurse(KeyTests, unittest.TestCase):
    """Keys are renewed before their end, by one caller at a time."""

    def take(self, purse: Any, plan: Any, **later: float) -> Any:
        """Return what the purse gives at a time from now."""
        return velero_requests.keys_from_purse(purse, plan, "us-east-1", store_now() + timedelta(**later))

    def test_keys_are_kept_until_shortly_before_their_end(self) -> None:
        """Keys that outlive a URL are used again; those that do not are renewed."""
        purse, plan = velero_requests.Purse(), self.web_identity()
        first = self.take(purse, plan)
        self.assertEqual(self.take(purse, plan, minutes=40), first)
        self.assertEqual(len(self.services.seen()), 1)
        self.assertNotEqual(self.take(purse, plan, minutes=51), first)
        self.assertEqual(len(self.services.seen()), 2)

    def test_eight_threads_cost_one_exchange(self) -> None:
        """While one thread renews, the others wait for its keys."""
        purse, plan = velero_requests.Purse(), self.web_identity()
        gate, taken = threading.Event(), []
        self.services.script("POST", hang=gate)
        threads = [threading.Thread(target=lambda: taken.append(self.take(purse, plan))) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(self.services.seen, 5, "the exchange")
        gate.set()
        for thread in threads:
            thread.join(10)
        self.assertEqual((len(taken), len(set(taken)), len(self.services.seen())), (8, 1, 1))

    def test_old_keys_serve_while_they_live(self) -> None:
        """When renewing fails the keys at hand are used up to their end; beyond it there is an error."""
        purse, plan = velero_requests.Purse(), self.web_identity()
        first = self.take(purse, plan)
        self.services.script("POST", times=99, status=403,
                             body=KeyServices.sts_refusal(403, "AccessDenied", "no").body)
        with self.assertLogs("velero_requests", "WARNING") as logs:
            self.assertEqual(self.take(purse, plan, minutes=59), first)
        self.assertNotIn(first.secret_key, str(logs.output))
        with self.assertRaisesRegex(velero_requests.ConfigError, "AccessDenied"):
            self.take(purse, plan, minutes=61)
        self.services.unscript()
        self.assertNotEqual(self.take(purse, plan, minutes=61), first)

    def test_a_service_that_is_down_is_not_asked_for_every_request(self) -> None:
        """While old keys serve, a burst of requests costs few exchanges, for each may take half a minute."""
        purse, plan = velero_requests.Purse(), self.web_identity()
        self.take(purse, plan)
        self.services.script("POST", times=99, status=403,
                             body=KeyServices.sts_refusal(403, "AccessDenied", "no").body)
        with self.assertLogs("velero_requests", "WARNING"):
            for _ in range(10):
                self.take(purse, plan, minutes=55)
        self.assertLessEqual(len(self.services.seen()) - 1, 2)

    def test_keys_that_last_cost_nothing(self) -> None:
        """Static keys are given as they are and nobody is asked."""
        keys = velero_requests.Credentials("AKIASOURCE", "source-secret")
        self.assertEqual(self.take(velero_requests.Purse(), keys, days=365), keys)
        self.assertEqual(self.services.seen(), [])


# ------------------------------------------------------------------------------------------------------------
# Stores: from a request to its URL, with keys from the network
# ------------------------------------------------------------------------------------------------------------

class TimelyStore(FakeStore):
    """A store whose Date header follows its clock."""

    def send(self, request: Request, connection: Connection, answer: Answer,
             options: Optional[Document] = None) -> bool:
        """Send a complete answer under the store's own time."""
        request.status = answer.status
        headers = [(name, value) for name, value in answer.headers if name.lower() != "content-length"]
        headers += [("Content-Length", str(len(answer.body))),
                    ("Date", formatdate(self.clock(), usegmt=True))]
        connection.socket.sendall(head(answer.status, headers)
                                  + (b"" if request.method == "HEAD" else answer.body))
        return True


class StoreWorld(FakeWorld):
    """A cluster and a store with a clock, asked by `controller --once` in this process."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Start both."""
        return FakeCluster(tls=True), TimelyStore()

    def tearDown(self) -> None:
        """Let the store be as it was."""
        self.store.clock, self.store.hide_missing = time.time, False
        self.store.unscript()

    def once(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None) -> Result:
        """Run the controller once over what is there."""
        result = self.cli("controller", "--once", *argv, env=env)
        self.assert_clean(result.err, result.out)
        self.assertNotIn("Traceback", result.err)
        return result

    def answer_to(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None, kind: str = "BackupLog",
                  name: str = "b1") -> Document:
        """Return a new request once the controller has looked at it."""
        asked = self.ask(kind, name)
        self.once(*argv, env=env)
        return self.admin.get("downloadrequests", asked, self.namespace)

    def url_in(self, document: Document) -> str:
        """Return the URL in an answer, which must be Processed and bear no reason."""
        self.assertEqual((document.get("status", {}).get("phase"), reason_of(document)), ("Processed", ""),
                         document["metadata"].get("annotations"))
        return str(document["status"]["downloadURL"])

    def assert_reason(self, document: Document, reason: str, *words: str) -> None:
        """Check that a request bears this reason, a sentence with these words, and no URL."""
        notes = document["metadata"].get("annotations") or {}
        self.assertEqual(notes.get(REASON), reason, notes)
        for word in words:
            self.assertIn(word, notes[MESSAGE])
        self.assertNotIn("\n", notes[MESSAGE])
        self.assertFalse((document.get("status") or {}).get("downloadURL"))
        self.assertNotEqual((document.get("status") or {}).get("phase"), "Processed")
        self.assert_clean(notes)


class TestStoreWholePath(KeyTests, StoreWorld, unittest.TestCase):
    """Requests answered with temporary keys."""

    def setUp(self) -> None:
        """Let the location do without a Secret, and the store know the keys that the services hand out."""
        StoreWorld.setUp(self)
        self.start_services()
        self.store.keys = self.services.issued
        self.addCleanup(setattr, self.store, "keys", {self.store.access_key: (self.store.secret_key, "")})
        self.admin.merge_patch("backupstoragelocations", "default", {"spec": {"credential": None}},
                               self.namespace)

    def tearDown(self) -> None:
        """No server has failed in itself."""
        StoreWorld.tearDown(self)
        self.assertEqual(self.services.bugs, [])

    def pod(self, **more: Optional[str]) -> Dict[str, Optional[str]]:
        """Return the environment of a pod with a web identity."""
        return {"AWS_ROLE_ARN": STORE_ROLE, "AWS_ENDPOINT_URL_STS": self.services.url,
                "AWS_WEB_IDENTITY_TOKEN_FILE": self.write("token", self.services.web_token), **more}

    def test_a_web_identity_signs_the_url(self) -> None:
        """The URL made with keys of STS opens the object, token and all, and lives its ten minutes."""
        stored = self.put()
        document = self.answer_to(env=self.pod())
        url = self.url_in(document)
        with velero_requests.open_url(url) as response:
            self.assertEqual(b"".join(velero_requests.read_body(response)), stored)
        query = dict(parse_qsl(urlsplit(url).query))
        self.assertEqual(query["X-Amz-Expires"], "600")
        access_key = query["X-Amz-Credential"].split("/")[0]
        self.assertEqual(query["X-Amz-Security-Token"], self.services.issued[access_key][1])
        self.assert_soon(document["status"]["expiration"], 10)
        self.assertEqual(self.store.seen(status=403), [])

    def test_url_and_expiration_end_with_the_keys(self) -> None:
        """Keys that end before ten minutes cut the URL's life and the request's expiration down to theirs."""
        self.put()
        self.services.life = 200
        document = self.answer_to("--verify-urls", env=self.pod())
        query = dict(parse_qsl(urlsplit(self.url_in(document)).query))
        self.assertLessEqual(int(query["X-Amz-Expires"]), 200)
        self.assertGreater(int(query["X-Amz-Expires"]), 180)
        self.assertLess(abs((instant(document["status"]["expiration"])
                             - instant(self.services.ends[-1])).total_seconds()), 2)

    def test_keys_that_have_ended_are_a_reason(self) -> None:
        """Keys that come expired sign nothing."""
        self.put()
        self.services.life = -5
        self.assert_reason(self.answer_to(env=self.pod()), "CredentialsExpired", "expired")

    def test_a_refusal_of_sts_is_a_reason_that_heals(self) -> None:
        """What STS refuses is told on the request, and answered when STS has changed its mind."""
        self.put()
        asked, self.services.web_token = self.ask(), "the right one"
        self.once(env={**self.pod(), "AWS_WEB_IDENTITY_TOKEN_FILE": self.write("other", "a wrong token")})
        self.assert_reason(self.admin.get("downloadrequests", asked, self.namespace),
                           "InvalidCredentials", "STS")
        self.once(env=self.pod())
        self.url_in(self.admin.get("downloadrequests", asked, self.namespace))

    def test_every_network_source_signs(self) -> None:
        """Container, instance and credential_process lead to a URL that works, through the whole
        controller."""
        self.put()
        services = self.services
        keys = services.new_keys()
        names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        printed = json.dumps({"Version": 1, **dict(zip(names, keys))})
        config = self.write("config", "[default]\ncredential_process = cat "
                            + shlex.quote(self.write("printed.json", printed)) + "\n")
        sources = {"container": {"AWS_CONTAINER_CREDENTIALS_FULL_URI": services.url + "/container",
                                 "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": self.write(
                                     "c", services.container_token)},
                   "instance": {"AWS_EC2_METADATA_SERVICE_ENDPOINT": services.url},
                   "process": {"AWS_CONFIG_FILE": config}}
        for name, source in sources.items():
            with self.subTest(name):
                document = self.answer_to("--verify-urls", env={"AWS_EC2_METADATA_DISABLED": None, **source})
                self.url_in(document)

    def test_the_location_s_own_secret_comes_first(self) -> None:
        """Neither keys nor a web identity in the environment beat the Secret that the location names."""
        self.put()
        self.store.keys = {self.store.access_key: (self.store.secret_key, "")}
        self.make_location("own")
        self.make_backup("b2", "own")
        self.store.put(self.namespace, "backups/b2/b2-logs.gz", gzip.compress(LOG))
        document = self.answer_to("--verify-urls", name="b2", env=self.pod(
            AWS_ACCESS_KEY_ID="AKIAOTHER", AWS_SECRET_ACCESS_KEY="other-secret",
            AWS_SESSION_TOKEN="other-token"))
        url = self.url_in(document)
        self.assertIn(self.store.access_key, url)
        self.assertNotIn("Security-Token", url)
        self.assertEqual(self.services.seen(), [])

    def test_one_exchange_serves_many_requests(self) -> None:
        """A burst of requests costs one exchange."""
        self.put()
        for _ in range(8):
            self.ask()
        self.once(env=self.pod())
        self.assertEqual(len(self.services.seen()), 1)


class TestStoreAuthority(FakeWorld, unittest.TestCase):
    """A store behind TLS with an authority of its own, kept in a Secret."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        """Start both, the store with TLS."""
        return FakeCluster(tls=True), FakeStore(tls=True)

    def test_the_authority_may_lie_in_a_secret(self) -> None:
        """caCertRef names the Secret that makes the store trusted; without it, or with another, the reason
        says so."""
        self.put()
        with open(self.store.ca, encoding="ascii") as file:
            authority = file.read()
        self.make_secret("authority", "ca.crt", authority)
        rows = (("good", {"caCertRef": {"name": "authority", "key": "ca.crt"}}, ""),
                ("none", {}, None),
                ("lost", {"caCertRef": {"name": "absent", "key": "ca.crt"}}, "SecretNotFound"))
        for name, more, reason in rows:
            with self.subTest(name):
                self.make_location(name, **more)
                self.make_backup("b-" + name, name)
                self.store.put(self.namespace, f"backups/b-{name}/b-{name}-logs.gz", gzip.compress(LOG))
                asked = self.ask(name="b-" + name)
                self.cli("controller", "--once", "--verify-urls")
                document = self.admin.get("downloadrequests", asked, self.namespace)
                found = reason_of(document)
                if reason is None:  # any word, and a sentence about certificates
                    self.assertIn("certificate", document["metadata"]["annotations"][MESSAGE])
                else:
                    self.assertEqual(found, reason, document["metadata"].get("annotations"))
                self.assertEqual(bool(document.get("status", {}).get("downloadURL")), not found)


# ------------------------------------------------------------------------------------------------------------
# Stores: what a store answers
# ------------------------------------------------------------------------------------------------------------

class StoreRelay(LoopbackServer):
    """A proxy in front of a store that changes requests on their way."""

    def __init__(self, store: FakeStore, change: Callable[[Request], Request]) -> None:
        """Start serving."""
        super().__init__()
        self.store, self.change = store, change
        self.start()

    def handle(self, request: Request) -> Answer:
        """Return what the store answers to the changed request."""
        return self.store.handle(self.change(request))


class RegionService(LoopbackServer):
    """S3's front door, as somebody sees it who only asks where a bucket is."""

    def __init__(self) -> None:
        """Start serving."""
        super().__init__()
        self.chosen = Answer(200, b"", ())
        self.start()

    def handle(self, request: Request) -> Answer:
        """Return the answer that the test chose."""
        return self.chosen


class TestStoreRegion(unittest.TestCase):
    """A location at AWS that names no region: S3 says where the bucket is, whatever else it says."""

    def setUp(self) -> None:
        """Start the service."""
        self.service = RegionService()
        self.addCleanup(self.service.close)
        self.address = velero_requests.Address("http", self.service.host, "/bucket", "us-east-1")

    def test_the_region_is_in_a_header_of_any_answer(self) -> None:
        """The request is a HEAD without a signature; a refusal names the region too."""
        for status in (200, 301, 400, 403):
            with self.subTest(status=status):
                self.service.chosen = Answer(status, b"", (("x-amz-bucket-region", "eu-central-1"),))
                self.assertEqual("eu-central-1", velero_requests.discover_region(self.address))
        for request in self.service.requests:
            self.assertEqual(("HEAD", "/bucket"), (request.method, request.path))
            self.assertNotIn("authorization", {name.lower() for name in request.headers})

    def test_no_region_and_no_bucket(self) -> None:
        """An answer without the header is no region; 404 is an error with the cure."""
        self.assertEqual("", velero_requests.discover_region(self.address))
        self.service.chosen = Answer(404, b"", ())
        with self.assertRaisesRegex(velero_requests.NotFound, "no such bucket") as caught:
            velero_requests.discover_region(self.address)
        self.assertEqual("BucketNotFound", caught.exception.reason)
        self.assertIn("objectStorage.bucket", caught.exception.hints[0])


class TestStoreRefusals(unittest.TestCase):
    """Each refusal of a store is one sentence, a reason and a cure, and tells nothing of the signature."""

    def setUp(self) -> None:
        """Start a store with one object."""
        self.store = TimelyStore(region="eu-north-1")
        self.addCleanup(self.store.close)
        self.store.put("bucket", "a", b"x" * 10)
        self.url = self.store.url_of("bucket", "a")

    def refusal(self, url: str, reason: str, *words: str) -> Any:
        """Check how a URL is refused, and return the error."""
        with self.assertRaises(velero_requests.StoreError) as caught:
            velero_requests.verify_url(url, velero_requests.Trust())
        error = caught.exception
        text = "\n".join((str(error), *error.hints))
        self.assertEqual(error.reason, reason, text)
        self.assertNotIn("\n", str(error))
        self.assertIn(urlsplit(url).netloc, str(error))
        for word in words:
            self.assertIn(word, text)
        query = dict(parse_qsl(urlsplit(url).query))
        for name in ("X-Amz-Signature", "X-Amz-Security-Token"):
            if query.get(name):
                self.assertNotIn(query[name], text)
        for secret in (self.store.access_key, self.store.secret_key, "ASIATEMP", "temp-token"):
            self.assertNotIn(secret, text)
        return error

    def test_what_the_store_finds_itself(self) -> None:
        """Missing files and buckets, foreign keys, old URLs and other regions have a reason each."""
        store = self.store
        rows: Tuple[Tuple[str, str, Tuple[str, ...]], ...] = (
            (store.url_of("bucket", "none"), "ArtifactNotFound", ("no such file",)),
            (store.url_of("no-bucket", "a"), "BucketNotFound", ("objectStorage.bucket",)),
            (self.signed(access_key="AKIAOTHER"), "InvalidCredentials", ("correct the Secret",)),
            (self.signed(secret_key="wrong"), "SignatureDoesNotMatch", ("the secret key is not the one",)),
            (store.url_of("bucket", "a", at=time.time() - 700), "UrlExpired", ()),
            (store.url_of("bucket", "a", token="temp-token"), "InvalidCredentials", ("session token",)))
        for url, reason, words in rows:
            with self.subTest(reason, words=words):
                error = self.refusal(url, reason, *words)
                self.assertTrue(error.hints)
        store.hide_missing = True
        self.refusal(store.url_of("bucket", "none"), "StoreAccessDenied", "s3:ListBucket")

    def signed(self, **changes: str) -> str:
        """Return a URL signed otherwise."""
        values = {"access_key": self.store.access_key, "secret_key": self.store.secret_key,
                  "region": self.store.region, **changes}
        return presigned_url(f"{self.store.url}/bucket/a", **values)

    def test_a_wrong_region_is_told_the_right_one(self) -> None:
        """The region that the store names is in the sentence, and the reason is the region."""
        self.refusal(self.signed(region="us-east-1"), "WrongRegion", "eu-north-1",
                     "region of the storage location")

    def test_what_other_stores_answer(self) -> None:
        """Codes that our store cannot give, and answers that are no S3 at all."""
        rows: Tuple[Tuple[int, str, Dict[str, str], str, Tuple[str, ...]], ...] = (
            (400, "ExpiredToken", {}, "CredentialsExpired", ("renew",)),
            (403, "RequestTimeTooSkewed", {}, "ClockSkew", ("clock",)),
            (403, "InvalidObjectState", {}, "ArtifactArchived", ("archive",)),
            (403, "AccessDenied", {}, "StoreAccessDenied", ("s3:GetObject",)),
            (301, "PermanentRedirect", {"x-amz-bucket-region": "eu-west-3"}, "WrongEndpoint", ("eu-west-3",)),
            (307, "TemporaryRedirect", {}, "WrongEndpoint", ("s3Url",)),
            (301, "", {"x-amz-bucket-region": "eu-west-3"}, "WrongEndpoint", ("eu-west-3",)),
            (403, "", {}, "StoreAccessDenied", ()),
            (503, "SlowDown", {}, "StoreError", ("SlowDown",)),
            (500, "", {}, "StoreError", ("500",)))
        for status, code, headers, reason, words in rows:
            with self.subTest(status=status, code=code):
                body = (f"<?xml version='1.0'?><Error><Code>{code}</Code>"
                        "<Message>Some &lt;words&gt;</Message></Error>")
                self.store.unscript()
                self.store.script("GET", status=status, body=body if code else b"", headers=headers)
                self.refusal(self.url, reason, *words)

    def test_a_login_page_is_seen_as_one(self) -> None:
        """A redirect or a refusal in HTML is told as HTML, and nobody follows it."""
        for status in (302, 403, 404):
            with self.subTest(status=status):
                self.store.script("GET", status=status, body=b"<!DOCTYPE html><html>login</html>",
                                  headers={"Location": self.store.url + "/login"})
                with self.assertRaisesRegex(velero_requests.StoreError, "HTML"):
                    velero_requests.verify_url(self.url, velero_requests.Trust())
        self.assertEqual(self.store.seen(path_part="/login"), [])

    def test_what_a_proxy_changes_is_named(self) -> None:
        """A signature that fails because of a proxy names the element that it changed, with both values."""
        def with_host(request: Request) -> Request:
            pairs = [(name, "inner.example" if name.lower() == "host" else value)
                     for name, value in request.header_list]
            return Request(request.method, request.target, pairs, b"")

        def with_path(request: Request) -> Request:
            return Request(request.method, request.target.replace("/pub/", "/", 1), request.header_list, b"")

        def with_query(request: Request) -> Request:
            return Request(request.method, request.target + "&tracking=1", request.header_list, b"")

        def with_method(request: Request) -> Request:
            return Request("HEAD", request.target, request.header_list, b"")

        self.store.keys["ASIATEMP1"] = ("temp-secret", "temp-token/+=")
        self.store.path_hosts.add("inner.example")
        rows = ((with_host, "host", "inner.example"), (with_path, "path", "/bucket/a"),
                (with_query, "query", "tracking=1"), (with_method, "method", "HEAD"))
        for change, element, seen in rows:
            for key, secret, token in ((self.store.access_key, self.store.secret_key, ""),
                                       ("ASIATEMP1", "temp-secret", "temp-token/+=")):
                with self.subTest(element, token=token):
                    relay = StoreRelay(self.store, change)
                    self.addCleanup(relay.close)
                    address = velero_requests.object_address(velero_requests.Location(
                        "l", "bucket", region=self.store.region, path_style=True,
                        s3_url=relay.url + ("/pub" if element == "path" else "")), "a")
                    keys = velero_requests.Credentials(key, secret, token)
                    url = velero_requests.presign(address, keys, self.store.region, store_now(),
                                                  timedelta(minutes=5))
                    self.refusal(url, "SignatureDoesNotMatch", f"the {element}", "differs",
                                 *(() if element == "query" else (seen,)))
                    self.assertEqual(relay.bugs, [])

    def test_the_order_of_parameters_is_no_difference(self) -> None:
        """A URL whose parameters are in another order is told the element that really differs."""
        def with_host(request: Request) -> Request:
            pairs = [(name, "inner.example" if name.lower() == "host" else value)
                     for name, value in request.header_list]
            return Request(request.method, request.target, pairs, b"")

        self.store.keys["ASIATEMP1"] = ("temp-secret", "temp-token")
        self.store.path_hosts.add("inner.example")
        relay = StoreRelay(self.store, with_host)
        self.addCleanup(relay.close)
        url = presigned_url(relay.url + "/bucket/a", "ASIATEMP1", "temp-secret", self.store.region,
                            token="temp-token")
        self.refusal(url, "SignatureDoesNotMatch", "the host", "inner.example")

    def test_a_store_cannot_forge_lines(self) -> None:
        """Line ends and escapes in a store's words stay within one printable line."""
        body = "<Error><Code>AccessDenied</Code><Message>a&#10;error: forged&#27;[2Jb\nc</Message></Error>"
        self.store.script("GET", status=403, body=body)
        error = self.refusal(self.url, "StoreAccessDenied")
        self.assertNotIn("\x1b", str(error))

    def test_what_a_store_echoes_is_blanked(self) -> None:
        """A store that repeats the URL in its words betrays nothing of it."""
        body = f"<Error><Code>AccessDenied</Code><Message>{self.url.replace('&', '&amp;')}</Message></Error>"
        self.store.script("GET", status=403, body=body)
        self.refusal(self.url, "StoreAccessDenied")


# ------------------------------------------------------------------------------------------------------------
# Stores: controller --verify-urls
# ------------------------------------------------------------------------------------------------------------

class TestStoreVerify(StoreWorld, unittest.TestCase):
    """A URL is tried before it is handed out, when that is asked for."""

    def gets(self) -> List[Request]:
        """Return the GETs of this test's bucket."""
        return self.store.seen("GET", f"/{self.namespace}/")

    def test_a_good_url_costs_one_byte(self) -> None:
        """An object that is there is asked for one byte, once, and the URL is handed out."""
        stored = self.put()
        url = self.url_in(self.answer_to("--verify-urls"))
        request, = self.gets()
        self.assertEqual((request.status, request.headers["range"]), (206, "bytes=0-0"))
        with velero_requests.open_url(url) as response:
            self.assertEqual(b"".join(velero_requests.read_body(response)), stored)

    def test_an_empty_object_is_there(self) -> None:
        """416 is how a store answers for one byte of nothing, and proves the URL all the same."""
        self.store.put(self.namespace, KEYS["BackupLog"], b"")
        self.url_in(self.answer_to("--verify-urls"))
        self.assertEqual([request.status for request in self.gets()], [416])

    def test_a_store_without_ranges_is_read_no_further(self) -> None:
        """A store that answers 200 with the whole object proves the URL too."""
        self.put()
        self.store.script("GET", self.namespace, status=200, body=b"x" * 100000)
        self.url_in(self.answer_to("--verify-urls"))

    def test_nothing_is_tried_without_the_flag(self) -> None:
        """Without --verify-urls the store is not asked, and a missing artifact gets a URL as Velero would
        give it."""
        self.url_in(self.answer_to())
        self.assertEqual(self.gets(), [])

    def test_what_is_wrong_is_left_on_the_request(self) -> None:
        """The reason and the store's sentence stand on the request, and no URL."""
        def forget() -> None:
            self.store.buckets.pop(self.namespace, None)

        def hide() -> None:
            self.store.create_bucket(self.namespace)
            self.store.hide_missing = True

        def other_secret() -> None:
            text = keys_file(self.store.access_key, "a-wrong-secret")
            self.admin.merge_patch("secrets", "cloud", {"data": {"keys": base64.b64encode(
                text.encode()).decode()}}, self.namespace)

        rows: Tuple[Tuple[Callable[[], None], str, str], ...] = (
            (forget, "BucketNotFound", "no such bucket"),
            (lambda: self.store.create_bucket(self.namespace), "ArtifactNotFound", "no such file"),
            (hide, "StoreAccessDenied", "AccessDenied"),
            (other_secret, "SignatureDoesNotMatch", "secret key"))
        for prepare, reason, words in rows:
            with self.subTest(reason):
                prepare()
                document = self.answer_to("--verify-urls")
                self.assert_reason(document, reason, words)
                self.assertTrue(document["status"]["expiration"])

    def test_a_reason_heals(self) -> None:
        """Once the artifact is there the next look leaves a URL and takes the reason away."""
        self.store.create_bucket(self.namespace)
        asked = self.ask()
        self.once("--verify-urls")
        self.assert_reason(self.admin.get("downloadrequests", asked, self.namespace), "ArtifactNotFound")
        self.put()
        self.once("--verify-urls")
        self.url_in(self.admin.get("downloadrequests", asked, self.namespace))

    def test_a_store_that_is_away_is_a_reason(self) -> None:
        """Without a connection there is a reason and no URL."""
        self.make_location("away", {"s3Url": f"http://127.0.0.1:{free_port()}"})
        self.make_backup("b2", "away")
        document = self.answer_to("--verify-urls", name="b2")
        self.assertTrue(reason_of(document))
        self.assertFalse((document.get("status") or {}).get("downloadURL"))

    def test_a_store_with_another_time_is_signed_for_anew(self) -> None:
        """A store whose clock is 20 minutes off is tried twice and gets a URL by its own time; we keep
        ours."""
        stored = self.put()
        for minutes in (20, -20, 26 * 60):
            with self.subTest(minutes=minutes):
                self.store.clock = lambda minutes=minutes: time.time() + 60 * minutes
                before = len(self.gets())
                document = self.answer_to("--verify-urls")
                self.assertEqual([request.status for request in self.gets()[before:]], [403, 206])
                with velero_requests.open_url(self.url_in(document)) as response:
                    self.assertEqual(b"".join(velero_requests.read_body(response)), stored)
                self.assert_soon(document["status"]["expiration"], 10)

    def test_the_difference_is_remembered_and_forgotten(self) -> None:
        """The next request is signed right at once, and a clock put right is noticed as well."""
        self.put()
        api = velero_requests.connect(velero_requests.load_cluster(self.kubeconfig))
        controller = velero_requests.new_controller(api, self.namespace, velero_requests.Server("v1"),
                                                    verify_urls=True)
        for minutes, statuses in ((20, [403, 206]), (20, [206]), (0, [403, 206]), (0, [206])):
            with self.subTest(minutes=minutes, statuses=statuses):
                self.store.clock = lambda minutes=minutes: time.time() + 60 * minutes
                before, asked = len(self.gets()), self.ask()
                velero_requests.run_once(controller)
                self.assertEqual([request.status for request in self.gets()[before:]], statuses)
                self.url_in(self.admin.get("downloadrequests", asked, self.namespace))

    def test_a_store_that_refuses_twice_is_a_reason(self) -> None:
        """Signing anew happens once; what fails then is told and not tried a third time."""
        self.put()
        self.store.clock = lambda: time.time() + 1200
        later = formatdate(time.time() + 1200, usegmt=True)
        body = "<Error><Code>RequestTimeTooSkewed</Code><Message>clock</Message></Error>"
        fault = self.store.script("GET", self.namespace, times=9, status=403, body=body,
                                  headers={"Date": later})
        self.assert_reason(self.answer_to("--verify-urls"), "ClockSkew", "RequestTimeTooSkewed")
        self.assertEqual(fault.hits, 2)

    def test_a_slight_difference_is_no_reason_to_sign_anew(self) -> None:
        """Access that is denied by a store whose clock is right is tried once."""
        self.store.create_bucket(self.namespace)
        self.store.hide_missing = True
        self.assert_reason(self.answer_to("--verify-urls"), "StoreAccessDenied")
        self.assertEqual(len(self.gets()), 1)

    def test_a_dry_run_tries_too_and_writes_nothing(self) -> None:
        """With --dry-run the finding is printed and the request stays as it is."""
        self.store.create_bucket(self.namespace)
        document = self.answer_to("--verify-urls", "--dry-run")
        self.assertEqual(reason_of(document), "")
        self.assertFalse(document.get("status"))


class TestStoreRealVerify(RealWorld, unittest.TestCase):
    """--verify-urls on the real servers."""

    def test_existing_empty_and_missing_artifacts(self) -> None:
        """What is there gets a URL that works, what is not gets ArtifactNotFound or BucketNotFound."""
        rows: Tuple[Tuple[str, Callable[[], Any], str], ...] = (
            ("no bucket", lambda: None, "BucketNotFound"),
            ("missing", lambda: self.store.create_bucket(self.namespace), "ArtifactNotFound"),
            ("existing", self.put, ""),
            ("empty", lambda: self.store.put(self.namespace, KEYS["BackupLog"], b""), ""))
        for name, prepare, reason in rows:
            with self.subTest(name):
                prepare()
                asked = self.ask()
                result = self.cli("controller", "--once", "--verify-urls")
                document = self.admin.get("downloadrequests", asked, self.namespace)
                notes = document["metadata"].get("annotations") or {}
                self.assertEqual(notes.get(REASON, ""), reason, notes)
                self.assert_clean(result.err, notes)
                url = document["status"].get("downloadURL", "")
                self.assertEqual(bool(url), not reason)
                if name == "existing":
                    with velero_requests.open_url(url) as response:
                        self.assertEqual(gzip.decompress(b"".join(velero_requests.read_body(response))), LOG)

    def test_a_wrong_secret_is_told(self) -> None:
        """versitygw's refusal of a signature has its reason and shows no key."""
        self.assert_reason_with(keys_file(self.store.access_key, "a-wrong-secret"), "SignatureDoesNotMatch")

    def test_an_unknown_access_key_is_told(self) -> None:
        """An access key that versitygw does not know is no missing file, though it answers 404."""
        self.assert_reason_with(keys_file("AKIAUNKNOWN", "a-wrong-secret"), "InvalidCredentials")

    def assert_reason_with(self, keys: str, reason: str) -> None:
        """Check the reason that a location with these keys comes to."""
        self.put()
        self.make_secret("wrong", text=keys)
        self.make_location("wrong", secret="wrong")
        self.make_backup("b2", "wrong")
        asked = self.ask(name="b2")
        self.cli("controller", "--once", "--verify-urls")
        document = self.admin.get("downloadrequests", asked, self.namespace)
        self.assertEqual(reason_of(document), reason, document["metadata"].get("annotations"))
        self.assert_clean(document["metadata"]["annotations"])


# ------------------------------------------------------------------------------------------------------------
# Stores: awkward keys on a real store
# ------------------------------------------------------------------------------------------------------------

AWKWARD_KEYS = ("plain", "a b", "a+b", "a%b", "a%20b", "a%2Fb", "~a~", "a//b", "ünï/コード", "it's",
                'say "x"', "a&b=c",
                "a?b", "a#b", "a;b", "a,b:c@d$e", "(a)[b]{c}", "a*b!", "a|b^c`d", "<a>", "a\\b",
                "e\u0301", "😀",
                "backups/b1/b1-logs.gz")


def store_get(url: str) -> Tuple[int, bytes]:
    """GET a URL byte for byte as it stands -> status and body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.putrequest("GET", url.partition(parts.netloc)[2])
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class TestStoreRealKeys(unittest.TestCase):
    """Signed URLs on versitygw."""

    @classmethod
    def setUpClass(cls) -> None:
        """Use the one store there is, or skip."""
        cls.store = real_store()
        cls.bucket = "keys-" + uuid.uuid4().hex[:8]
        cls.store.create_bucket(cls.bucket)

    def url_of(self, key: str) -> str:
        """Return the module's URL of a key."""
        location = velero_requests.Location("l", self.bucket, region=self.store.region, s3_url=self.store.url,
                                            path_style=True)
        address = velero_requests.object_address(location, key)
        keys = velero_requests.Credentials(self.store.access_key, self.store.secret_key)
        return str(velero_requests.presign(address, keys, address.region, store_now(), timedelta(minutes=10)))

    def test_every_awkward_key_is_fetched(self) -> None:
        """What was put under a key comes by its signed URL, raw and through the module's own client."""
        for key in AWKWARD_KEYS:
            with self.subTest(key):
                body = ("the object " + key).encode()
                self.store.put(self.bucket, key, body)
                url = self.url_of(key)
                self.assertTrue(url.isascii())
                self.assertEqual(store_get(url), (200, body))
                with velero_requests.open_url(url) as response:
                    self.assertEqual(b"".join(velero_requests.read_body(response)), body)
                velero_requests.verify_url(url, velero_requests.Trust())

    def test_one_changed_character_spoils_the_url(self) -> None:
        """A change of any part of the URL that is signed, or of the signature, gets 403."""
        self.store.put(self.bucket, "dir/a b", b"secret")
        url = self.url_of("dir/a b")
        self.assertEqual(store_get(url), (200, b"secret"))
        begin = url.index(self.store.host) + len(self.store.host) + 1
        fixed = set()
        for name in ("X-Amz-Algorithm=", "X-Amz-Credential=", "X-Amz-Date=", "X-Amz-Expires=",
                     "X-Amz-SignedHeaders=", "X-Amz-Signature="):
            at = url.index(name)
            fixed.update(range(at - 1, at + len(name)))
        name_at = url.index("X-Amz-Credential=") + len("X-Amz-Credential=")
        places = [place for place in range(begin, len(url)) if place not in fixed and url[place] not in "%"]
        for place in places:
            old = url[place]
            new = "1" if old == "0" else "0" if old.isdigit() else "b" if old in "aA" else "a"
            changed = url[:place] + new + url[place + 1:]
            with self.subTest(place=place, part=url[max(begin, place - 12):place + 1], new=new):
                status, body = store_get(changed)
                unknown_key = name_at <= place < name_at + len(self.store.access_key)
                # An access key that it does not know is versitygw's 404, an element of no sense its 400.
                self.assertIn(status, (404,) if unknown_key else (400, 403))
                self.assertNotIn(b"secret", body)
                if place < url.index("?") or place >= url.index("X-Amz-Signature="):
                    self.assertEqual(status, 403)

    def test_other_methods_and_additions_are_refused(self) -> None:
        """A parameter more, one less, or another order of the path's letters gets no object."""
        self.store.put(self.bucket, "dir/c", b"secret")
        url = self.url_of("dir/c")
        for changed in (url + "&x=1", url.replace("&X-Amz-Expires=600", ""), url.replace("dir/c", "dir//c"),
                        url.replace("dir/c", "dir/../dir/c"), url.replace("dir/c", "dir/./c"), url + "0"):
            with self.subTest(changed.replace(url, "URL")[:40]):
                status, body = store_get(changed)
                self.assertIn(status, (400, 403))
                self.assertNotIn(b"secret", body)


# ------------------------------------------------------------------------------------------------------------
# Stores: aws-chunked objects
# ------------------------------------------------------------------------------------------------------------

def aws_chunked(data: bytes, size: int = 64, signed: bool = True, trailers: bytes = b"") -> bytes:
    """Return data in aws-chunked framing."""
    extra = b";chunk-signature=" + b"0a" * 32 if signed else b""
    pieces = [data[at:at + size] for at in range(0, len(data), size)] + [b""]
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extra, piece) for piece in pieces)
    return framed[:-2] + trailers + b"\r\n" if trailers else framed


class TestStoreClock(unittest.TestCase):
    """What a refusal says about clocks, from the Date that every answer carries."""

    def refusal(self, code: str, minutes: float) -> velero_requests.StoreError:
        """Return the error for a store whose clock is ahead of ours by some minutes."""
        body = f"<Error><Code>{code}</Code><Message>Request has expired</Message></Error>".encode()
        now = datetime(2024, 5, 1, 12, 0, tzinfo=timezone.utc)
        theirs = formatdate((now + timedelta(minutes=minutes)).timestamp(), usegmt=True)
        return velero_requests.store_refusal(403, body, {"Date": theirs}, "the store", "https://s/k", now)

    def test_the_skew_is_in_the_sentence(self) -> None:
        """Ahead or behind, in words; a minute or less is not worth one."""
        rows = (("RequestTimeTooSkewed", 17, "ClockSkew", "17m0s ahead of this host's"),
                ("RequestTimeTooSkewed", -90, "ClockSkew", "1h30m0s behind this host's"),
                ("AccessDenied", 11, "UrlExpired", "11m0s ahead"))
        for code, minutes, reason, words in rows:
            with self.subTest(code=code, minutes=minutes):
                error = self.refusal(code, minutes)
                self.assertEqual((reason, timedelta(minutes=minutes)), (error.reason, error.skew))
                self.assertIn(words, str(error))
        self.assertNotIn("clock is", str(self.refusal("AccessDenied", 0.5)))

    def test_a_date_that_is_none(self) -> None:
        """An absent or broken Date header is no skew."""
        now = datetime(2024, 5, 1, tzinfo=timezone.utc)
        for date in ("", "yesterday", "Wed, 99 May 2024 12:00:00 GMT", "Wed, 01 May 99999 12:00:00 GMT"):
            with self.subTest(date=date):
                self.assertEqual(timedelta(0), velero_requests.clock_skew({"Date": date}, now))


class TestStoreChunked(unittest.TestCase):
    """Objects that some SDK stored with its framing."""

    def setUp(self) -> None:
        """Make what Velero stores."""
        self.packed = gzip.compress(os.urandom(700) + LOG)
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            entry = tarfile.TarInfo("metadata/version")
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"1.1.0"))
        self.archive = file.getvalue()

    def read(self, stored: bytes, step: int) -> bytes:
        """Return what is read of an object that comes in pieces of this size."""
        pieces = (stored[at:at + step] for at in range(0, len(stored), step))
        return b"".join(velero_requests.unframed(pieces))

    def framings(self) -> Iterator[Tuple[str, bytes]]:
        """Yield the ways of framing."""
        crc = b"x-amz-checksum-crc32:AAAAAA==\r\n"
        sealed = crc + b"x-amz-trailer-signature:" + b"0b" * 32 + b"\r\n"
        for size in (16, 100, 65536):
            yield f"signed {size}", aws_chunked(self.packed, size)
            yield f"unsigned {size}", aws_chunked(self.packed, size, signed=False)
            yield f"trailers {size}", aws_chunked(self.packed, size, signed=False, trailers=crc)
            yield f"signed trailers {size}", aws_chunked(self.packed, size, trailers=sealed)

    def test_framing_is_taken_off(self) -> None:
        """Signed, unsigned and with trailers, in pieces of any size, the object inside is read."""
        for name, framed in self.framings():
            for step in (1, 2, 7, 100, len(framed)):
                with self.subTest(name, step=step):
                    self.assertEqual(self.read(framed, step), self.packed)

    def test_a_framed_object_that_is_cut_is_an_error(self) -> None:
        """Wherever a framed object ends before its last chunk, it is told as cut or damaged, never as
        whole."""
        for signed in (True, False):
            framed = aws_chunked(self.packed, 100, signed)
            last = framed.rindex(b"\r\n0") + 2
            for cut in sorted({140, 141, 150, 400, len(framed) // 2, last - 3, last - 2, last - 1,
                               last, last + 1}):
                with self.subTest(signed=signed, cut=cut):
                    with self.assertRaises(velero_requests.StoreError):
                        self.read(framed[:cut], 50)

    def test_a_damaged_frame_is_an_error(self) -> None:
        """A size that is none, or that does not fit, breaks off with one error."""
        framed = aws_chunked(self.packed, 100, signed=False)
        second = framed.index(b"\r\n64\r\n") + 2
        for wrong in (b"zz", b"6", b"-1", b"65", b"63"):
            with self.subTest(wrong):
                with self.assertRaises(velero_requests.StoreError):
                    self.read(framed[:second] + wrong + framed[second + 2:], 50)

    def test_ordinary_objects_are_not_touched(self) -> None:
        """gzip, tar.gz, text, nothing, and text that begins like a frame come out as they went in."""
        for stored in (self.packed, self.archive, b"", b"1", b"text\r\n", b"10\r\nabcdef",
                       b"10\r\n" + b"x" * 300,
                       b"0\r\n\r\n", b"a" * 1000, b"\x1f", b"\x1f\x8b", b"<html>\r\n",
                       self.packed + self.packed,
                       b"1f\r\n\x1f\x8c" + b"x" * 200):
            for step in (1, 50, 1000):
                with self.subTest(stored[:12], step=step):
                    self.assertEqual(self.read(stored, step), stored)


class TestStoreChunkedDownload(StoreWorld, unittest.TestCase):
    """Framed objects through the whole path."""

    def test_framed_objects_are_downloaded(self) -> None:
        """A framed log prints its text, and a framed tar.gz is saved without its framing."""
        self.serve()
        self.store.put(self.namespace, KEYS["BackupLog"], aws_chunked(gzip.compress(LOG), 1000))
        result = self.cli("download", "b1", "--kind", "BackupLog")
        self.assertEqual((result.code, result.out), (0, LOG), result.err)
        archive = gzip.compress(os.urandom(5000))
        framed = aws_chunked(archive, 1000, signed=False, trailers=b"x-amz-checksum-crc32:A==\r\n")
        self.store.put(self.namespace, KEYS["BackupContents"], framed)
        path = os.path.join(self.folder, "b1.tar.gz")
        result = self.cli("backup", "download", "b1", "--output", path)
        self.assertEqual(result.code, 0, result.err)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), archive)

    def test_a_framed_object_that_is_cut_leaves_no_file(self) -> None:
        """A framed tar.gz that ends too soon is one error and no file."""
        self.serve()
        framed = aws_chunked(gzip.compress(os.urandom(5000)), 1000)
        self.store.put(self.namespace, KEYS["BackupContents"], framed[:3000])
        path = os.path.join(self.folder, "b1.tar.gz")
        result = self.cli("backup", "download", "b1", "--output", path)
        self.assert_failed(result, 1, "cut short")
        self.assertFalse(os.path.exists(path))


# ------------------------------------------------------------------------------------------------------------
# Demo: the main job on a machine without a cluster
# ------------------------------------------------------------------------------------------------------------

class DemoFailed(Exception):
    """A step of the demo did not do what it should."""


def tell(text: str) -> None:
    """Print at once: the reader follows along, and a pipe must not reorder what the commands say."""
    print(text, flush=True)


def step(stage: Stage, command: str, *expected: str) -> None:
    """Show a command, run exactly that, show its output, and insist on success and on these texts in it."""
    tell("$ " + command)
    done = stage.run("/bin/sh", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    tell(output)
    absent = [text for text in expected if text not in output]
    if done.returncode or absent:
        raise DemoFailed(f"`{command}` ended with exit code {done.returncode}"
                         + "".join(f"; its output lacks {text!r}" for text in absent))


def install_printed_crds(stage: Stage) -> None:
    """Do what `kubectl apply -f crds.yaml` does, with what the module printed."""
    with open(os.path.join(stage.folder, "crds.yaml"), encoding="utf-8") as file:
        stage.cluster.install_crds(yaml.safe_load_all(file))


def demo_set_up(stage: Stage) -> None:
    """Bring the cluster into the state in which Velero leaves it after a backup."""
    tell(f"# On loopback: {stage.servers()}.")
    step(stage, "python velero_requests.py manifests > crds.yaml")
    install_printed_crds(stage)
    add_location(stage)
    add_backup(stage, "nightly", BACKUP_LOG.encode())
    add_backup(stage, "orphan", BACKUP_LOG.encode(), location="gone")
    tell("# The demo has applied crds.yaml and added what Velero leaves behind: a storage location with its\n"
         "# Secret, the backup nightly, and the backup orphan, whose storage location does not exist.\n")


def demo_commands(stage: Stage) -> None:
    """Do the main job with the controller that is running, and show one failure."""
    step(stage, "python velero_requests.py backup logs nightly", BACKUP_LOG)
    step(stage, "python velero_requests.py backup download nightly", "nightly-data.tar.gz")
    step(stage, "python -m tarfile --list nightly-data.tar.gz", *BACKUP_FILES)
    step(stage, "python velero_requests.py plugin get", "velero.io/aws")
    step(stage, "python velero_requests.py version", "Client:", "Server:")
    step(stage, 'python velero_requests.py backup logs orphan; echo "exit code $?"', "error: ", "/gone ",
         "exit code 3")


def demo_requests_left(stage: Stage) -> None:
    """Insist that every client deleted its DownloadRequest; those for the server's status live a minute."""
    left = stage.cluster.admin.list("downloadrequests", NAMESPACE)["items"]
    if left:
        raise DemoFailed(f"{len(left)} DownloadRequests were left behind")


def play_demo() -> None:
    """Run all steps of the demo, or raise at the first that fails."""
    command = "python velero_requests.py controller 2> controller.log"
    with set_stage() as stage:
        demo_set_up(stage)
        tell(f"$ {command} &\n")
        with serving(stage, "/bin/sh", "-c", "exec " + command) as controller:
            demo_commands(stage)
            demo_requests_left(stage)
            tell("$ kill %1")
            code = stop_process(controller)
        step(stage, "cat controller.log", "serving", "stopped")
        if code:
            raise DemoFailed(f"the controller left with exit code {code}")


def demo() -> int:
    """Show the main job on loopback, and return 0 only when every step did what it should."""
    try:
        play_demo()
    except (DemoFailed, AssertionError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    tell("# Every step did what it should; all of it is stopped and removed.")
    return 0


class TestStart(unittest.TestCase):
    """Commands that may run long start anew as a module; nobody else's code gets in by that."""

    def run_beside_strangers(self, *options: str) -> str:
        """Run `download` without a name in a folder of hostile modules, and return stderr."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("velero_requests", "json", "argparse", "ctypes"):
                with open(os.path.join(folder, name + ".py"), "w", encoding="ascii") as file:
                    file.write("raise SystemExit('a stranger was imported')")
            done = subprocess.run([sys.executable, *options, os.path.abspath(velero_requests.__file__), "download"],
                                  cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
        self.assertEqual((2, b""), (done.returncode, done.stdout), done.stderr)
        return done.stderr.decode()

    def test_nothing_in_the_current_folder_is_imported(self) -> None:
        """The module comes from beside the script, the standard library from where it is."""
        for options in ((), ("-I",), ("-u", "-W", "error::ResourceWarning")):
            with self.subTest(options=options):
                self.assertIn("NAME", self.run_beside_strangers(*options))

    def test_it_starts_anew(self) -> None:
        """The import log tells the script from the module; isolated Python is left as it is."""
        for options, anew in (((), hasattr(sys, "orig_argv") and os.name == "posix"), (("-I",), False)):
            with self.subTest(options=options):
                said = self.run_beside_strangers(*options, "-X", "importtime")
                self.assertEqual(anew, " velero_requests\n" in said)


class TestDemo(unittest.TestCase):
    """What the README shows first, as a newcomer runs it."""

    def test_it_plays(self) -> None:
        """`--demo` ends well; `make demo` runs the same."""
        environment = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "--demo"], stdout=subprocess.PIPE, timeout=120,
                              stderr=subprocess.STDOUT, check=False, env=environment)
        self.assertEqual(0, done.returncode, done.stdout.decode())
        self.assertIn(b"Every step did what it should", done.stdout)


# ------------------------------------------------------------------------------------------------------------
# Benchmark: figures beside what is expected and what Velero 1.18.1 does on the same kind of machine (2 cores)
# ------------------------------------------------------------------------------------------------------------

class Figure(NamedTuple):
    """One line of the table; `limit` is the most (or with `at_least` the least) that is expected."""

    name: str
    measured: float
    unit: str
    limit: Optional[float] = None
    velero: str = "-"
    at_least: bool = False

    def columns(self) -> Tuple[str, ...]:
        """Return the texts of the line."""
        if self.limit is None:
            return self.name, amount(self.measured, self.unit), "-", self.velero, "-"
        good = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        expected = (">= " if self.at_least else "<= ") + amount(self.limit, self.unit)
        return (self.name, amount(self.measured, self.unit), expected, self.velero,
                "ok" if good else "falls short")


def amount(value: float, unit: str) -> str:
    """Return a number in three digits or so with its unit."""
    return f"{value:,.{0 if value >= 100 or value == int(value) else 1}f} {unit}".rstrip()


def tell_row(columns: Iterable[str]) -> None:
    """Print a line of the table; lines come one by one, since the whole takes minutes."""
    name, measured, expected, velero, verdict = columns
    tell(f"{name:<46}{measured:>12}{expected:>13}{velero:>12}  {verdict}")


LOG_REQUEST = {"kind": "DownloadRequest", "metadata": {"generateName": "bench-"},
               "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}}
REQUESTS, BURST, WRITERS, PATIENCE = 200, 1000, 4, 60  # the last one in seconds: the end of every wait


def create_request(client: Admin) -> str:
    """Create one DownloadRequest and return its name."""
    return str(client.create("downloadrequests", LOG_REQUEST, NAMESPACE)["metadata"]["name"])


def watch_answers(client: Admin, version: str) -> Iterator[Tuple[str, float]]:
    """Yield name and instant when a request has got its URL, for events after this resource version."""
    known = set()
    events = client.watch("downloadrequests", NAMESPACE, resourceVersion=version, timeoutSeconds=PATIENCE)
    for event in events:
        name = event["object"]["metadata"].get("name")
        if (event["object"].get("status") or {}).get("downloadURL") and name not in known:
            known.add(name)
            yield name, time.time()


def newest_version(client: Admin) -> str:
    """Return the resource version to watch from."""
    return str(client.list("downloadrequests", NAMESPACE, limit=1)["metadata"]["resourceVersion"])


def response_times(stage: Stage, count: int) -> List[Tuple[float, float]]:
    """Return milliseconds until a watch shows the URL, one request at a time: since created, since sent."""
    client = stage.cluster.client("admin")
    answers = watch_answers(client, newest_version(client))
    times = []
    for _ in range(count):
        sent = time.time()
        name = create_request(client)
        created = time.time()
        at = next(at for answered, at in answers if answered == name)
        times.append((1000 * (at - created), 1000 * (at - sent)))
    answers.close()  # type: ignore[attr-defined]
    client.close()
    return times


def remove_requests(stage: Stage) -> None:
    """Delete the DownloadRequests of a measurement, so that the next one starts from nothing."""
    admin = stage.cluster.admin
    admin.call("DELETE", resource_path("downloadrequests", NAMESPACE))
    wait_until(lambda: not admin.list("downloadrequests", NAMESPACE, limit=1)["items"], PATIENCE, "deletion")


def write_requests(stage: Stage, count: int, ended: List[float]) -> None:
    """Create requests over a connection of its own, and note the instant of the last one."""
    client = stage.cluster.client("admin")
    for _ in range(count):
        create_request(client)
    ended.append(time.time())
    client.close()


def burst_times(stage: Stage) -> Tuple[float, float]:
    """Return the seconds until the writers had created all requests, and until all were answered.

    The writers are threads: four processes on two cores took longer to create the same, not shorter.
    """
    client = stage.cluster.client("admin")
    answers = watch_answers(client, newest_version(client))
    ended: List[float] = []
    writers = [threading.Thread(target=write_requests, args=(stage, BURST // WRITERS, ended), daemon=True)
               for _ in range(WRITERS)]
    begun = time.time()
    for writer in writers:
        writer.start()
    answered = [at for _, (_, at) in zip(range(BURST), answers)]
    for writer in writers:
        writer.join(PATIENCE)
    if len(answered) < BURST or len(ended) < WRITERS:
        raise RuntimeError(f"only {len(answered)} of {BURST} requests were answered within {PATIENCE} s")
    return max(ended) - begun, answered[-1] - begun


def memory(process: subprocess.Popen[bytes], field: str) -> float:
    """Return VmRSS or VmHWM of a process in MiB."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ":")) / 1024


def requests_seen(stage: Stage) -> int:
    """Return how many requests for velero.io the API server has counted; a real one counts ended watches."""
    if stage.cluster.kind == "fake":
        return int(stage.cluster.count(path_part="/apis/velero.io/"))  # type: ignore[attr-defined]
    text = stage.cluster.admin.raw("GET", "/metrics").data.decode()
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines()
               if line.startswith("apiserver_request_total{") and 'group="velero.io"' in line)


def idle_rate(stage: Stage, seconds: float = 30) -> float:
    """Return the velero.io requests a minute while nobody asks for anything, ourselves included."""
    before = requests_seen(stage)
    if not before:
        raise RuntimeError("the API server does not count its requests, so none would prove nothing")
    time.sleep(seconds)
    return (requests_seen(stage) - before) * 60 / seconds


def wall_time(stage: Stage, *words: str) -> float:
    """Return the milliseconds that a whole command takes, from exec to exit."""
    begun = time.perf_counter()
    process = stage.start(sys.executable, "velero_requests.py", *words, stdout=subprocess.DEVNULL)
    guard = threading.Timer(PATIENCE, process.kill)  # wait(timeout=) looks only every 50 ms
    guard.start()
    code = process.wait()
    taken = 1000 * (time.perf_counter() - begun)
    guard.cancel()
    if code:
        raise RuntimeError(f"`{' '.join(words)}` failed with exit code {code}")
    return taken


def wall_times(stage: Stage, rounds: int, *words: str) -> List[float]:
    """Return the times of some runs in ascending order."""
    return sorted(wall_time(stage, *words) for _ in range(rounds))


def rate_of(sign: Callable[[str], str], count: int) -> float:
    """Return URLs a second over keys that were never signed before."""
    keys = [f"backups/{uuid.uuid4().hex}/nightly-logs.gz" for _ in range(count)]
    begun = time.perf_counter()
    for key in keys:
        sign(key)
    return count / (time.perf_counter() - begun)


def our_presigner() -> Callable[[str], str]:
    """Return a function from a key to its URL as the controller makes it."""
    import velero_requests as ours
    location = ours.Location("default", "aws", BUCKET, region="us-east-1", s3_url="http://127.0.0.1:9000",
                             path_style=True)
    credentials = ours.Credentials("AKIABENCH", "bench-secret")
    life = timedelta(minutes=10)
    return lambda key: ours.presign(ours.object_address(location, key), credentials, location.region,
                                    datetime.now(timezone.utc), life)


def botocore_presigner() -> Callable[[str], str]:
    """Return the same with botocore."""
    import botocore.config
    import botocore.session
    client = botocore.session.Session().create_client(
        "s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:9000", aws_access_key_id="AKIABENCH",
        aws_secret_access_key="bench-secret", config=botocore.config.Config(
            signature_version="s3v4", s3={"addressing_style": "path"}))
    return lambda key: str(client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}, 600))


def presign_figures() -> Iterator[Figure]:
    """Compare in alternating rounds, so that a busy machine slows both alike."""
    ours = our_presigner()
    try:
        theirs = botocore_presigner()
    except ImportError:
        yield Figure("pre-signing, URLs a second", rate_of(ours, 5000), "/s")
        tell("(pre-signing: not compared, botocore is not installed; `make bench` installs it)")
        return
    rounds = [(rate_of(ours, 3000), rate_of(theirs, 300)) for _ in range(9)]
    ratio = statistics.median(one / other for one, other in rounds)
    yield Figure("pre-signing, URLs a second", statistics.median(one for one, _ in rounds), "/s")
    yield Figure("pre-signing by botocore", statistics.median(other for _, other in rounds), "/s")
    enough = min(20, 60000 / statistics.median(other for _, other in rounds))
    yield Figure("pre-signing, ours against botocore", ratio, "x", enough, at_least=True)


FIRST_URL = """
import time
from datetime import datetime, timedelta, timezone
import velero_requests as ours
location = ours.Location("default", "aws", "bench", region="us-east-1")
credentials = ours.Credentials("AKIABENCH", "bench-secret")
begun = time.perf_counter()
address = ours.object_address(location, "backups/b/b-logs.gz")
url = ours.presign(address, credentials, address.region, datetime.now(timezone.utc), timedelta(minutes=10))
print(time.perf_counter() - begun)
"""


def first_url_figure() -> Figure:
    """Measure the first URL of a process that has its credentials, in a new process each time."""
    runs = [subprocess.run([sys.executable, "-c", FIRST_URL], cwd=os.path.dirname(os.path.abspath(__file__)),
                           stdout=subprocess.PIPE, check=True, timeout=60).stdout for _ in range(9)]
    return Figure("first URL once there are credentials", statistics.median(map(float, runs)) * 1000, "ms", 2)


def memory_figures(controller: subprocess.Popen[bytes], *fields: Tuple[str, str, Optional[float], str]
                   ) -> Iterator[Figure]:
    """Return lines from (name, field, limit, Velero's figure) where the kernel tells them."""
    if os.path.exists(f"/proc/{controller.pid}/status"):
        for name, field, limit, velero in fields:
            yield Figure(name, memory(controller, field), "MiB", limit, velero)
    else:
        tell("(memory: not measured, there is no /proc here)")


def response_figures(since_created: Tuple[float, ...], since_sent: Tuple[float, ...]) -> Iterator[Figure]:
    """Return the lines about requests that came one at a time."""
    p95 = sorted(since_created)[int(0.95 * REQUESTS)]
    yield Figure(f"request created -> URL, median of {REQUESTS}", statistics.median(since_created), "ms", 8,
                 "33 ms")
    yield Figure("request created -> URL, p95", p95, "ms", None, "45 ms")
    yield Figure("create sent -> URL, median", statistics.median(since_sent), "ms")


def controller_figures(stage: Stage, controller: subprocess.Popen[bytes]) -> Iterator[Figure]:
    """Measure the controller alone: idle, request by request, in a burst, and idle again."""
    response_times(stage, 1)  # waits until it serves
    yield from memory_figures(controller, ("controller memory, idle", "VmRSS", 40, "82 MiB"))
    yield from response_figures(*zip(*response_times(stage, REQUESTS)))
    remove_requests(stage)
    created, answered = burst_times(stage)
    yield Figure(f"burst: {BURST} requests created by {WRITERS} writers in", created, "s", None, "1.7 s")
    yield Figure("burst: all answered after", answered, "s", None, "33.7 s")
    yield Figure("burst: answered after / created in", answered / created, "x", 2, "19.8 x")
    yield from memory_figures(controller, ("controller memory, after the burst", "VmRSS", 50, "89 MiB"),
                              ("controller memory, peak so far", "VmHWM", None, "-"))
    remove_requests(stage)
    yield Figure("idle: API requests a minute", idle_rate(stage), "", 2, "8")


def command_figures(stage: Stage) -> Iterator[Figure]:
    """Measure whole commands."""
    helps = wall_times(stage, 10, "--help")
    yield Figure("--help, best of 10", helps[0], "ms")
    yield Figure("--help, median of 10", statistics.median(helps), "ms", 100)
    logs = wall_times(stage, 5, "backup", "logs", "chatty")
    yield Figure("backup logs (5.6 MB of text), median of 5", statistics.median(logs), "ms", 125, "125 ms")
    plugins = wall_times(stage, 5, "plugin", "get")
    yield Figure("plugin get, median of 5", statistics.median(plugins), "ms", 303, "303 ms")


def all_figures(stage: Stage) -> Iterator[Figure]:
    """Measure everything with one controller process."""
    done = stage.run(sys.executable, "velero_requests.py", "manifests", stdout=subprocess.PIPE)
    stage.cluster.install_crds(yaml.safe_load_all(done.stdout))
    add_location(stage)
    add_backup(stage, "nightly", BACKUP_LOG.encode())
    add_backup(stage, "chatty", "".join(
        f'time="2024-05-01T03:00:00Z" level=info msg="Backing up item shop/settings-{number:06}" '
        f'backup=velero/chatty\n' for number in range(54400)).encode())
    with open(os.path.join(stage.folder, "controller.log"), "wb") as log, serving(
            stage, sys.executable, "velero_requests.py", "controller", stderr=log) as controller:
        yield from controller_figures(stage, controller)
        yield from command_figures(stage)
    yield from presign_figures()
    yield first_url_figure()


def bench() -> int:
    """Print the table as it is measured; falling short is a line in it, not a failure."""
    with set_stage() as stage:
        tell(f"{stage.servers()}; Python {sys.version.split()[0]}, {os.cpu_count()} cores\n"
             "Velero: 1.18.1 against the real servers on 2 cores\n")
        tell_row(("figure", "measured", "expected", "Velero", "verdict"))
        try:
            for figure in all_figures(stage):
                tell_row(figure.columns())
        except (AssertionError, RuntimeError) as error:
            print(f"bench: could not go on: {error}", file=sys.stderr)
            return 1
    return 0


def main() -> None:
    """Run the demo, the benchmark, or like any test file the tests."""
    play = {"--demo": demo, "--bench": bench}.get(sys.argv[1] if len(sys.argv) == 2 else "")
    if play:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # or the servers would stay behind
        sys.exit(play())
    unittest.main()


if __name__ == "__main__":
    main()
