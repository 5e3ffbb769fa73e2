# SPDX-License-Identifier: Apache-2.0
"""Tests of velero_requests.py: `python3 test_velero_requests.py` with urllib3 and PyYAML, `make test` for all of them.

    python3 test_velero_requests.py TestQueue   one class; add .test_name for one test
    python3 test_velero_requests.py --demo      the main job on a machine without a cluster

No mocks and no patching: pure functions are given values, everything else talks to a server on loopback. FakeCluster
and FakeStore stand in for the Kubernetes API and an S3 store; the same contract tests run against real ones when
KUBEBUILDER_ASSETS names the folder with etcd, kube-apiserver and versitygw. VELERO_CRDS names a folder with Velero's
own CRDs. No test sleeps: it waits for a condition with a deadline, or turns the clock.
"""
from __future__ import annotations

import __future__
import ast
import atexit
import base64
import contextlib
import difflib
import dis
import fcntl
import functools
import gc
import gzip
import hashlib
import hmac
import http.client
import importlib.util
import io
import itertools
import json
import logging
import os
import pty
import py_compile
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
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
import traceback
import tracemalloc
import unicodedata
import unittest
import uuid
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from functools import lru_cache, partial
from itertools import product
from subprocess import DEVNULL, PIPE, STDOUT
from types import CodeType, SimpleNamespace
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, TYPE_CHECKING, Tuple)
from unittest import SkipTest, TestCase, skipUnless
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.sax.saxutils import escape

import urllib3
import yaml

import velero_requests as vr

try:
    import botocore.auth
    import botocore.awsrequest
    import botocore.credentials
    import botocore.endpoint_provider
    import botocore.session
    HAS_BOTOCORE = True
except ImportError:
    HAS_BOTOCORE = False

NO_BOTOCORE = "botocore is not installed, so the URLs were not compared with its own"
NO_CRDS = "VELERO_CRDS names no folder, so the manifests were not compared with Velero's own"

Document = Dict[str, Any]
NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=timezone.utc)
FAR_OFF = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
LONG_AGO = datetime(1, 1, 1, tzinfo=timezone.utc)


def after(**delta: float) -> datetime:
    return NOW + timedelta(**delta)


def when(minutes: Any) -> Any:
    """A number as an instant so many minutes after NOW; anything else as it is."""
    return after(minutes=minutes) if isinstance(minutes, (int, float)) else minutes


def a_key(resource: Any = vr.DOWNLOAD_REQUESTS, name: str = "nightly-x7k2p") -> Any:
    return vr.Key(resource, "velero", name)


def a_download(**over: Any) -> Any:
    """A DownloadRequest record, unanswered and one second old."""
    return vr.Request(**{**dict(key=a_key(), uid="uid-1", version="41", created=after(seconds=-1), deleting=False,
                                target_kind="BackupLog", target_name="nightly", phase=""), **over})


def a_status(**over: Any) -> Any:
    return a_download(**{**dict(key=a_key(vr.STATUS_REQUESTS, "velero-cli-5tn8q"), uid="uid-2", version="42",
                                target_kind="", target_name=""), **over})


def a_location(**over: Any) -> Any:
    return vr.Location(**{**dict(name="default", bucket="bkt", region="eu-west-1"), **over})


def a_location_document(config: Any = None, **spec: Any) -> Document:
    """A BackupStorageLocation document; `spec` replaces fields of its spec."""
    return {"metadata": {"name": "default", "namespace": "velero"}, "spec": {
        "provider": "aws", "objectStorage": {"bucket": "bkt"}, "config": config or {"region": "eu-west-1"}, **spec}}


def some_credentials(**over: Any) -> Any:
    """The key pair of the AWS documentation."""
    return vr.Credentials(**{**dict(access_key="AKIAIOSFODNN7EXAMPLE",
                                    secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"), **over})


class Cases(TestCase):
    def gives(self, function: Callable[..., Any], *rows: Tuple[Any, Any]) -> None:
        """Each row is an argument, or a tuple of them, and what the function makes of it."""
        for given, expected in rows:
            with self.subTest(ascii(given)[:80]):
                self.assertEqual(expected, function(*given) if type(given) is tuple else function(given))

    def refuses(self, function: Callable[..., Any], words: str, *values: Any, error: Any = vr.ConfigError,
                reason: Optional[str] = None) -> None:
        """Each value, or tuple of them, is an error with these words: one short line, without the text `s3cr3t`."""
        for given in values:
            with self.subTest(ascii(given)[:80]):
                with self.assertRaisesRegex(error, words) as caught:
                    function(*given) if type(given) is tuple else function(given)
                said = str(caught.exception)
                self.assertTrue(said.isprintable() and len(said) < 600 and "s3cr3t" not in said, ascii(said))
                self.assertEqual(reason, reason and getattr(caught.exception, "reason"))


if TYPE_CHECKING:
    Mixin = TestCase
else:
    Mixin = object  # unittest must not run the checks without a cluster


class Folder(Mixin):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="velero-requests-test-")
        self.addCleanup(shutil.rmtree, self.folder, True)

    def at(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def enter(self, context: Any) -> Any:
        """Enter a context until the test ends."""
        stack = ExitStack()
        self.addCleanup(stack.close)
        return stack.enter_context(context)

    def set_environment(self, *hidden: str, **changes: str) -> None:
        """Set variables, and hide those that are named, AWS's and those of proxies."""
        others = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        self.enter(environment({**dict.fromkeys((*hidden, *others)), "HOME": self.folder, **changes}))

    def listen(self, level: int) -> io.StringIO:
        """Every word that the module logs in this process at such a level."""
        logger, log = self.enter(logger_kept()), io.StringIO()
        logger.handlers[:], logger.propagate = [logging.StreamHandler(log)], False
        logger.setLevel(level)
        return log


# Values that a stranger may put where text is expected.
HOSTILE: Tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, "", " ", "\0", "x" * 10000, "../../etc", "\n\x1b[2J", "\ud800", [], [[]], [None],
    {}, {"a": {"b": []}}, {"": ""}, [{"name": 5}], "9999-12-31T23:59:59-12:00")

# Names that no backup or restore can have.
BAD_NAMES: Tuple[str, ...] = (
    "", ".", "/", "a/../../x", "a\\b", "a..b", ".a", "a.", "-a", "a-", "a.-b", "a-.b", "A", "a_b", " a", "a\n", "a\0b",
    "\x1b[2J", "a\u2028b", "é", "a%2Fb", "{name}", "a?b", "a#b", "a:b", "a" * 254, "x" * 10000, "\ud800", "１")
GOOD_NAMES: Tuple[str, ...] = ("a", "0", "nightly", "nightly-20240501", "a.b.c", "1.2-3.x", "a--b", "a" * 253)


# ---- The laws of the file ----------------------------------------------------

# `make matrix` lays this file alone into a folder and the archive on PYTHONPATH: then that is what is imported and run.
ARCHIVE = getattr(vr.__loader__, "archive", "")
MODULE = os.path.abspath(ARCHIVE or vr.__file__)
FOLDER = os.path.dirname(os.path.abspath(__file__))
BOTH = ("velero_requests.py", "test_velero_requests.py")


def text_of(name: str) -> str:
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return file.read()


SOURCE = vr.__loader__.get_source("velero_requests")  # type: ignore[union-attr]
TREE = ast.parse(SOURCE)

# What arithmetic on values may import; everything else is the world.
PURE = set("""base64 collections configparser contextlib datetime difflib email enum functools hashlib hmac html
    ipaddress itertools json math posixpath re struct typing unicodedata urllib.parse yaml zlib""".split())
WORLDLY_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "log", "breakpoint"}
WORLDLY_ATTRIBUTES = {"now", "today", "utcnow", "localtime", "gmtime", "urandom", "environ", "getenv", "getLogger",
                      "sleep", "monotonic", "uuid4", "token_hex"}
# A text is paid for by everybody who reads it: the most lines and bytes, names at module level (functions and classes),
# lines of a function, and nested statements. These numbers may only become smaller.
BUDGETS = {"velero_requests.py": (6_910, 397_000), "test_velero_requests.py": (12_190, 750_000),
           "README.md": (255, 34_000)}
MOST_NAMES, LONGEST_FUNCTION, DEEPEST = 330, 45, 4
# Variables that the module reads but nobody sets by hand, and old names of some in the README's table.
OTHER_VARIABLES = {"HOME", "PATH", "KUBERNETES_EXEC_INFO", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT",
                   "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_DEFAULT_PROFILE"}


def names_in(code: Any, *opcodes: str) -> Set[str]:
    """The names that these instructions of a code object, or a statement, have; with LOAD_GLOBAL, of all code in it."""
    if isinstance(code, ast.stmt):  # compiled by itself, annotations as text: scopes are the compiler's own
        code = compile(ast.Module([code], []), MODULE, "exec", __future__.annotations.compiler_flag, dont_inherit=True)
    names = {step.argval for step in dis.get_instructions(code) if step.opname in opcodes}
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType) and "LOAD_GLOBAL" in opcodes)
    return names.union(*(names_in(constant, *opcodes) - names_in(constant, "STORE_NAME") for constant in inner))


def mentioned(statement: ast.stmt) -> Set[str]:
    return names_in(statement, "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") - bound(statement)


def bound(statement: ast.stmt) -> Set[str]:
    return names_in(statement, "STORE_NAME")


def imported_by(tree: ast.AST) -> Dict[str, str]:
    """The names that the import statements in it bind, and the modules behind them."""
    return {(alias.asname or alias.name).split(".")[0]: getattr(node, "module", alias.name) for node in ast.walk(tree)
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names}


def impure(tree: ast.AST) -> Set[str]:
    return {name for name, module in imported_by(tree).items() if not {module, module.split(".")[0]} & PURE}


def line_of(pattern: str) -> int:
    number, = (number for number, line in enumerate(SOURCE.splitlines(), 1) if re.match(pattern, line))
    return number


def depth_of(node: ast.AST) -> int:
    """How deep statements are nested in it; `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        nests = isinstance(child, (ast.If, ast.For, ast.While, ast.With, ast.Try)) and not is_elif
        deepest = max(deepest, depth_of(child) + nests)
    return deepest


@skipUnless(not ARCHIVE, "the laws are about the checkout, and an archive is tested")
class TestLawsOfTheFile(TestCase):
    def test_no_name_is_used_before_it_is_defined(self):
        """No module-level statement, function bodies included, mentions a name that a later one binds."""
        later: Set[str] = set()
        for statement in reversed(TREE.body):
            self.assertFalse(mentioned(statement) & later, f"line {statement.lineno} uses a name that is defined later")
            later = later | bound(statement)

    def test_no_name_is_defined_twice(self):
        for name in BOTH:
            names = [found for node in ast.parse(text_of(name)).body for found in bound(node)
                     if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))]
            self.assertEqual([], sorted({found for found in names if names.count(found) > 1}), name)

    def test_above_the_waterline_is_arithmetic(self):
        """It uses only imports that know no world, asks no clock, environment or chance, and nothing from below."""
        first, waterline = line_of(r"# 1\. "), line_of(r"# The waterline\b")
        other = impure(ast.Module([node for node in TREE.body if node.lineno < first], [])) | WORLDLY_NAMES
        other |= {name for node in TREE.body if node.lineno > waterline for name in bound(node)}
        for statement in (node for node in TREE.body if first < node.lineno < waterline):
            used = mentioned(statement) & other | impure(statement)
            asked = {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
            self.assertFalse(used | asked & WORLDLY_ATTRIBUTES, f"line {statement.lineno}")

    def test_contents_equal_the_banners(self):
        """The module's docstring lists the rooms of its banners in order, the waterline behind the ninth."""
        contents = re.findall(r"(?m)(?:^ +|  )(\d+(?=\.)|===)\.? +([A-Za-z ]+?)(?= {2}|:|$)", vr.__doc__ or "")
        rooms = re.findall(r"(?m)^# (\d+)\. (.+?) — ", SOURCE)
        self.assertEqual([*rooms[:9], ("===", "the waterline"), *rooms[9:]], contents)
        self.assertEqual([str(number) for number in range(1, 18)], [number for number, _ in rooms])
        self.assertTrue(line_of(r"# 9\. ") < line_of(r"# The waterline\b") < line_of(r"# 10\. "))

    def test_every_public_function_and_class_says_what_it_is(self):
        for node in TREE.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                self.assertTrue(ast.get_docstring(node), f"{node.name} in line {node.lineno}")

    def test_the_budgets_hold(self):
        """Nor has a line of either file more than 120 characters, a tab, or blanks at its end."""
        for name, budget in BUDGETS.items():
            text = text_of(name)
            for size, most in zip((text.count("\n"), len(text.encode())), budget):
                self.assertLessEqual(size, most, name)
        names = [node for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        self.assertLessEqual(len(names), MOST_NAMES)
        for node in ast.walk(TREE):
            if isinstance(node, ast.FunctionDef):
                self.assertLessEqual((node.end_lineno or 0) - node.lineno + 1, LONGEST_FUNCTION, node.name)
                self.assertLessEqual(depth_of(node), DEEPEST, node.name)
        for name in BOTH:
            self.assertEqual([], [number for number, line in enumerate(text_of(name).splitlines(), 1)
                                  if len(line) > 120 or line != line.rstrip().expandtabs()], name)

    def test_the_oldest_python_and_the_packages(self):
        """The PEP 723 block names the packages that are imported, and with the version guard the oldest Python."""
        imported = {module.split(".")[0] for module in imported_by(TREE).values()}
        self.assertLessEqual({"yaml", "urllib3"}, imported)
        self.assertLessEqual(imported, {"yaml", "urllib3", *getattr(sys, "stdlib_module_names", imported)})
        block = SOURCE.split("# ///\n")[0]
        self.assertEqual(["urllib3", "PyYAML"], re.findall(r'"(\w+)[<>=]', block.split("dependencies")[1]))
        self.assertIn('# requires-python = ">=3.8"\n', block)
        self.assertIn("if sys.version_info < (3, 8):\n", SOURCE)
        ast.parse(SOURCE, feature_version=(3, 6))  # an older one, too, reads as far as the sentence that tells it
        for name in BOTH:
            ast.parse(text_of(name), feature_version=(3, 8))

    def test_importing_does_nothing(self):
        """Importing starts no thread or server, configures no logging, prints nothing; a command imports what it needs:
        help, completion, manifests and the client's version neither urllib3 nor yaml nor OpenSSL."""
        script = ("import contextlib, io, logging, os, sys, threading\n"
                  "before = os.listdir('/dev/fd'), list(logging.root.handlers)\n"
                  "import velero_requests\n"
                  "assert (os.listdir('/dev/fd'), list(logging.root.handlers)) == before\n"
                  "assert not logging.getLogger('velero_requests').handlers\n"
                  "{}\n"
                  "assert threading.active_count() == 1\n")
        commands = ("for argv in (['--help'], ['completion', 'bash'], ['manifests'], ['version', '--client-only']):\n"
                    "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
                    "        velero_requests.main(argv)\n"
                    "    assert not {'urllib3', 'yaml', 'hashlib'} & set(sys.modules), argv\n")
        for more in ("import test_velero_requests", commands):
            done = subprocess.run([sys.executable, "-B", "-c", script.format(more)], cwd=FOLDER, timeout=60,
                                  check=False, stdout=PIPE, stderr=STDOUT)
            self.assertEqual((0, b""), (done.returncode, done.stdout))

    def test_the_readme_says_what_the_code_does(self):
        """The exit codes of --help, every command, the rights that are tested, and every variable."""
        readme, codes = text_of("README.md"), [int(member) for member in vr.Exit]
        self.assertIn(vr.EPILOG, vr.build_parser().format_help())
        for pattern, text in ((r"(?m)(?:^| ) (\d+) ", vr.EPILOG), (r"(?m)^\| (\d+) \|", readme)):
            self.assertEqual(codes, [int(code) for code in re.findall(pattern, text)])
        self.assertEqual([], [command.words for command in vr.COMMANDS
                              if not re.search(rf"\b{command.words}\b", readme)], "not shown in the README")
        pattern = r"(?:AWS|VELERO|KUBERNETES|NO)_[A-Z0-9_]+|HTTPS?_PROXY|KUBECONFIG"
        variables = {str(node.value) for node in ast.walk(TREE) if isinstance(node, ast.Constant)
                     and re.fullmatch(pattern, str(node.value))}
        told = set(re.findall(rf"\b(?:{pattern})", readme))
        families = tuple(name for name in told if name.endswith("_"))  # AWS_CONTAINER_…
        self.assertEqual(set(), {name for name in variables - OTHER_VARIABLES - told if not name.startswith(families)})
        self.assertEqual(set(), told - variables - {*families, "VELERO_CRDS"}, "not in the module")
        entry_points = re.findall(r"`([a-zA-Z_]+)`", readme.split("## From Python")[1].split("## ")[0])
        self.assertEqual([], [name for name in entry_points if not hasattr(vr, name) and name not in ("hints", "exit")])

    def test_the_checkout_shows_four_files(self):
        """At its top level the repository holds the four files, and else only names that begin with a dot."""
        listed = subprocess.run("git ls-files -z 2>/dev/null", shell=True, cwd=FOLDER, check=False, timeout=60,
                                stdout=PIPE).stdout.decode()
        self.assertLessEqual(set(re.findall(r"(?:^|(?<=\0))[^./\0][^/\0]*", listed)), {*BOTH, "README.md", "Makefile"})


# ---- Ground ------------------------------------------------------------------

class TestErrors(Cases):
    def test_what_they_say(self):
        """Exit code and reason, and whether time may mend it."""
        self.gives(lambda error: (int(error.exit), error.reason, error.retry), *(
            (error("x"), (code, "InternalError", retry)) for error, code, retry in (
                (vr.Error, 1, True), (vr.UsageError, 2, False), (vr.RequestFailed, 1, False), (vr.NotFound, 3, True),
                (vr.TimedOut, 4, True))), *((error, (code, reason, True)) for error, code, reason in (
                    (vr.Unreachable("x"), 6, "Unreachable"), (vr.CredentialsError("x"), 1, "InvalidCredentials"),
                    (vr.StoreError("x"), 1, "StoreError"),
                    (vr.StoreError("x", status=404), 3, "StoreError"), *((vr.ApiError("x", status=status), code, reason)
                    for status, code, reason in ((401, 5, "Forbidden"), (403, 5, "Forbidden"),
                                                 (500, 1, "ClusterError"))))))

    def test_records_show_no_secret(self):
        """No record shows a field that is named like a secret, but for the harmless ones."""
        telling = re.compile("(?i)token$|password|secret|access_key|key$|_data$|certificate$|ca_cert$|body|argument|"
                             "environment|command|external|headers|document|content|url$|clusters|users|contexts")
        harmless = {"Artifact.key", "Request.key", "Location.ca_secret", "Location.secret_name", "Location.secret_key",
                    "Bucket.url", "Command.arguments"}
        records = {name: record for name, record in vars(vr).items()
                   if isinstance(record, type) and hasattr(record, "_fields")}
        self.assertGreater(len(records), 15)
        for name, record in records.items():
            for field in filter(telling.search, record._fields):
                filled = record(**{**dict.fromkeys(record._fields), field: "s3cr3t"})
                self.assertEqual(f"{name}.{field}" in harmless, "s3cr3t" in repr(filled), f"{name}.{field}")


class TestReader(Cases):
    def test_types(self):
        """What is absent or null is empty; another type is an error that names the place and not the value."""
        reader = vr.Reader({"text": "x", "true": True, "one": 1, "list": ["a", 5], "no": None}, "X")
        self.gives(reader.get, (("text", str), "x"), (("true", bool), True), (("one", int), 1), (("no", str), ""),
                   (("no", bool), None), (("gone", [str]), []), (("list", list), ["a", 5]))
        for words, *given in (
                ("X: one must be true or false", "one", bool), ("X: true must be a whole number", "true", int),
                ("X: text must be a list", "text", [str]), ("X: one must be a string: write it in quotes", "one", str),
                ("X: list must be a string$", "list", str), (r"X: list\[1\] must be a string:", "list", [str])):
            self.refuses(reader.get, words, tuple(given))
        self.refuses(reader.need, "X has no no", "no")
        self.refuses(vr.Reader, "X must be a mapping", ([], "X"))


class TestTime(Cases):
    def test_instants(self):
        """Every notation of RFC 3339 is an aware instant in UTC, the default; what Python cannot hold is None."""
        self.gives(vr.parse_time, *((text, NOW) for text in (
            "2026-05-04T12:00:00Z", "2026-05-04t12:00:00z", "2026-05-04 12:00:00Z", "2026-05-04T12:00:00",
            "2026-05-04T12:00:00-00:00", "2026-05-04T14:00:00+0200", "2026-05-04T06:30:00-05:30",
            "2026-05-05T00:00:00+12:00", "2026-05-04T12:00:00." + "0" * 99 + "Z")))
        self.gives(vr.parse_time, *(
            ("2026-05-04T12:00:00.5Z", after(seconds=.5)), ("2026-05-04T12:00:00,000001Z", after(microseconds=1)),
            ("2026-05-04T12:00:00.123456789Z", after(microseconds=123456)), ("9999-12-31T23:59:59Z", FAR_OFF),
            ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=timezone.utc)), ("0001-01-01T00:00:00Z", LONG_AGO)))
        self.assertEqual(timedelta(0), vr.parse_time("2026-05-04T14:00:00+02:00").utcoffset())
        self.gives(vr.parse_time, *((text, None) for text in (
            5, b"2026-05-04T12:00:00Z", NOW, "2026-05-04", "2026-05-04T12:00Z", "2026-05-04T12:00:00Z\n",
            " 2026-05-04T12:00:00Z", "2026-02-30T12:00:00Z", "2026-05-04T24:00:00Z", "2026-05-04T12:60:00Z",
            "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2026-05-04T12:00:00+99:00", "2026-05-04T12:00:00+01:60",
            "２０２６-05-04T12:00:00Z", "2026-05-04T12:00:00.Z", "2026-05-04T12:00:00." + "0" * 100 + "Z", "9" * 10000,
            "9999-12-31T23:59:59-00:01", "0001-01-01T00:00:00+00:01", *HOSTILE)))

    def test_whole_seconds_in_utc(self):
        self.gives(vr.format_time, (LONG_AGO, "0001-01-01T00:00:00Z"), *(
            (instant, "2026-05-04T12:00:00Z") for instant in (
                NOW, after(microseconds=999999), NOW.astimezone(timezone(timedelta(hours=2))))))


class TestDuration(Cases):
    def test_what_go_reads(self):
        self.gives(lambda text: round(vr.parse_duration(text), 12), *(
            ("0", 0), ("+0", 0), ("-0", 0), ("0s", 0), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1h2m3s", 3723),
            ("1.5s", 1.5), (".5s", .5), ("5.s", 5), ("250ms", .25), ("1us", 1e-6), ("1µs", 1e-6), ("1μs", 1e-6),
            ("1ns", 1e-9), ("-1.5h", -5400), ("+5s", 5), ("1m1m", 120), ("007s", 7), ("0.000000001h", 3.6e-6),
            ("0" * 99 + "s", 0)))
        self.refuses(vr.parse_duration, "^invalid duration .{1,99}$", *(
            "", "-", ".", "s", ".s", "5", "00", "1.5", "1d", "1 s", " 1s", "1s\n", "--1s", "1e3s", "1,5s", "inf", "１s",
            "1S", "2562048h", "9" * 400 + "h", "0" * 100 + "s"), error=ValueError)

    def test_what_go_writes(self):
        """Milliseconds are the finest, unless it is said otherwise."""
        self.gives(vr.format_duration, *(
            (0, "0s"), (.001, "1ms"), (.025, "25ms"), (.25, "250ms"), (.999, "999ms"), (.9996, "1s"), (1, "1s"),
            (1.5, "1.5s"), (30, "30s"), (59.9996, "1m0s"), (60, "1m0s"), (90, "1m30s"), (300, "5m0s"),
            (3600, "1h0m0s"), (5400.25, "1h30m0.25s"), (86400, "24h0m0s"), (-90.5, "-1m30.5s"), (-.25, "-250ms"),
            (-.0001, "0s"), ((1.5e-6, 9), "1.5µs"), ((1.2e-8, 9), "12ns")))


class TestOneLine(Cases):
    def test_foreign_text_becomes_harmless(self):
        """Line ends, tabs, escape sequences, direction marks and lone surrogates become single blanks; then the cut.
        Bytes of a path that the locale does not know are shown."""
        self.gives(vr.one_line, *(
            ("", ""), ("plain", "plain"), ("  a \t b\r\nc  ", "a b c"), ("a\x1b[31mb", "a [31mb"), ("a\0b", "a b"),
            ("a\u2028b\u2029c", "a b c"), ("a\u202eb", "a b"), ("a\ud800b", "a b"), ("grün ✓", "grün ✓"),
            ("gr\udcc3\udcbcn", r"gr\xc3\xbcn"),
            (None, "None"), (ValueError("x\ny"), "x y"), ("\x7f\x9b", ""), ("x" * 300, "x" * 300),
            ("x" * 301, "x" * 299 + "…"), (("abcdefgh", 5), "abcd…")))

    def test_no_more_is_kept_than_there_is_room_for(self):
        """Each text is the first of its kind once, as far as it is kept, and beyond the limit none is."""
        seen: Set[str] = set()
        self.gives(lambda text: vr.add_if_new(text, seen, 2), *(
            ("a", True), ("a", False), ("x" * 9999, True), ("x" * 8888, False), ("b", False)))
        self.assertLess(sum(map(len, seen)), 2000)


# What a log line must never hold, and the sentence around it.
SECRET_SHAPES: Tuple[str, ...] = (
    "https://s3/k?X-Amz-Date=20260504T120000Z&X-Amz-Signature={}", "https://s3/k?X-Amz-Credential={}&X-Amz-Date=2026",
    "https://s3/k?a=b&X-Amz-Security-Token={}&x=y", "https://s3/k?x-amz-signature={}&x-amz-expires=600",
    "https://s3/k?AWSAccessKeyId={}&Expires=600", "https://s3/k?SecurityToken={}&Expires=600",
    "https://storage.googleapis.com/k?GoogleAccessId={}", "https://a.blob.core.windows.net/c/k?sv=2020&sig={}&se=2026",
    "https://sts?WebIdentityToken={}&a=b", "https://s3/k?SessionToken={}", "Authorization: Bearer {}",
    "authorization: bearer {}, next", "Authorization: Basic {}", "POST / x-amz-security-token:{} host",
    "X-Amz-Security-Token: {}", "cannot reach https://user:{}@proxy.example:3128/",
    "cannot reach http://{}@proxy.example", "('https://s3/k?X-Amz-Signature={}', 443)",
    '{{"url": "https://s3/k?X-Amz-Signature={}"}}',
    *(f"https://proxy/?u=https%3A%2F%2Fs3%2Fk%3Fa%3Db%26{name}{{}}" for name in (
        "X-Amz-Signature%3D", "X-Amz-Credential%253D", "Security-Token%25253d", "sig\\u003d")))


class TestRedact(Cases):
    def test_every_shape_of_a_secret(self):
        """Signatures, credentials, tokens and passwords are blanked wherever they stand; once more changes nothing."""
        for sentence in SECRET_SHAPES:
            redacted = vr.redact(sentence.format("AKIAsecret%2F20260504/eu-west-1+~_-.abc=="))
            self.assertNotRegex(redacted, "secret|abc")
            start = sentence.split("{}")[0].replace("{{", "{").replace("user:", "")
            self.assertEqual((start, redacted), (redacted.partition("***")[0], vr.redact(redacted)))

    def test_only_the_secret_goes(self):
        """Host and path stay, with an `@` in the path too, and words that only sound like secrets."""
        self.gives(vr.redact, *(("https://u:p@h/a@b", "https://***@h/a@b"), ("https://u:p@q@h/a", "https://***@h/a"),
            ("https://u:p/q@h/a", "https://***@h/a"), ("sig%3Dabc%26se%3D5", "sig%3D***%26se%3D5"),
            ("sig%253Dabc%2526se", "sig%253D***%2526se"), ("sig=abc&se=5", "sig=***&se=5")), *(
            (text, text) for text in (
                "", "Backup velero/nightly does not exist", "https://bkt.s3.eu-west-1.amazonaws.com/backups/b.gz",
                "X-Amz-Date=20260504T120000Z&X-Amz-Expires=600", "the signature does not match",
                "mail to ops@example.com", "https://h/a and ops@example.com", "https://h/a@b/c?d=e@f",
                "https://h:9000/a@b", "https://[::1]:9/a@b", "https://h?a@b", "https://u:1/q@h")))

    def test_the_cut(self):
        """Long text is cut before it is looked at, and no secret is cut in half and shown."""
        for end, place in product(("https://u:s3cr3t@h", "a https://u:s3cr3t@h", "sig=s3cr3t"), range(25)):
            redacted = vr.redact("x " * (vr.REDACTED_LIMIT // 2 - 20) + "x" * (40 - place) + " " + end)
            self.assertNotIn("s3cr", redacted)
            self.assertLessEqual(len(redacted), vr.REDACTED_LIMIT + 1)


class TestLines(Cases):
    def test_any_cut_gives_the_same_lines(self):
        """However the bytes are cut, also within a character; a last line without its newline is dropped."""
        for data in ('{"a":1}\n\n{"b":"grün ✓"}\nend\n'.encode(), b"whole\nhalf", b"half", b"", b"xxxxxxxx\n"):
            for size in range(1, len(data) + 2):
                chunks = [data[start:start + size] for start in range(0, len(data), size)]
                self.assertEqual(data.split(b"\n")[:-1], list(vr.lines(chunks, limit=24)), f"chunks of {size}")

    def test_a_line_without_end(self):
        """A line that grows beyond the limit is an error, and the lines before it are handed out."""
        endless = vr.lines(itertools.chain([b"first\n"], itertools.repeat(b"xxxx")), limit=1000)
        self.assertEqual(b"first", next(endless))
        self.refuses(next, "1000 bytes", endless, error=vr.Error)
        self.assertEqual([b"x" * 8], list(vr.lines([b"xxxx", b"xxxx", b"\n"], limit=8)))
        data = b"12345678\n123456789abc\n" + b"x" * 99 + b"y\n12"
        for size in range(1, len(data) + 1):
            self.assertEqual([b"12345678", b"12345678", b"x" * 8], list(vr.lines(cut(data, size), 8, cut=True)), size)
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        list(vr.lines(itertools.repeat(b"x" * 100_000, 300), 200_000, cut=True))
        self.assertLess(tracemalloc.get_traced_memory()[1], 2_000_000)


# What takes a careless reader too long: a piece that is repeated, or how a text begins, goes on and ends.
NASTY: Any = (*(("", piece, "") for piece in (
    ' |\n|\t|\0|\\|"|a|A|9|%25|\\"|""|","|<|&|&a|\u202e|\U0001f600|a://|a://@|a://%|a://b:c|https://|sig=|Bearer |'
    'Bearer\t|Signature%25|1s|1.|1h1m|<a>|<a>b|<a></b>|<aaaa|[|{|[]|{},|[[],|[{|{"a":|{"a":1},|a: b\n|- |- a\n|? a\n|'
    '#\n|a:\t|&a [*a]\n|k = v\n|[x]\n| k = v\n| #|a.|a-|-|a.a-|[a]|:|1:1:|299 - "|299 - "\\|299 |, |; |a/|../|'
    '99 a=b\n|a,b=c,|-----BEGIN CERTIFICATE-----|-----BEGIN CERTIFICATE-----a-----END CERTIFICATE-----|'
    '<CommonPrefixes>|<CommonPrefixes> |<NextContinuationToken>a|0;chunk-signature=').split("|")),
    ("2026-05-04T12:00:00.", "0", "x"), ("1", "0", ""), ("1", "0", "x"), ("", "1", " size=x\n"), ("<a>", "b", "</"),
    ("sig=", "%", "&"), ("a://", "b", ""), ("a://b:c", "/", ""), ("https://", "@", "/"), ("[x]\nk =", " ", "x"),
    ("[x]\nk = v\n", " k = v\n", ""), ("[x]\nk", " ", ""), ("[x]\n", "a", ""), ("a: ", "9", ""), ('a: "', "\\x41", ""),
    ("a: '", "\n", ""), ("a: [", "a,", ""), ("a: {", "a,", ""), ("[", "{},", "{}]"), ("[", '"[",', '""]'),
    ('["', "\\\\", '"]'), ('{"a":"', "[", '"}'), ("[", "9", "]"), ("[", "[],", "[]]"), ("1", "0", "\r\n"),
    ("<CommonPrefixes>", " ", "<Prefix>"), ("-----BEGIN CERTIFICATE-----", "\n", ""), ("&", "a", ""), ("&#", "9", ";"),
    ("299 ", "x", '"'), ('299 - "', "\\x", ""), ("Mon, 04 May 2026 ", "1:", " GMT"), ("Bearer", " ", '"'),
    ("a", "-", ""), ("a", "-20260504120000", "-"))


def deeper(function: Callable[[bytes], Any]) -> Callable[[str], Any]:
    return lambda text: function(text.encode("utf-8", "replace"))


def in_pieces(function: Callable[[Iterable[bytes]], Any]) -> Callable[[str], Any]:
    return lambda text: list(function(bytes(piece) for piece in zip(*[iter(text.encode("utf-8", "replace"))] * 4)))


def nasty_screen(text: str) -> Any:
    evil = {"metadata": {"name": text, "labels": {text: text}}, "spec": {"ttl": text, "labelSelector": {
        "matchLabels": {text: text}}, "orderedResources": {text: text}}, "status": {"phase": text, "errors": 1}}
    found = {vr.DELETE_REQUESTS: [], vr.POD_VOLUME_BACKUPS: [], "BackupResourceList": {text: [text]},
             "BackupResults": {"errors": {"namespaces": {text: [text]}}}}
    screen = vr.Description(vr.BACKUPS, evil, found, localize=lambda instant: instant, details=True)
    return screen.text, screen.json


# Every function that reads what a stranger wrote.
READERS: Any = {
    "parse_time": vr.parse_time, "parse_duration": vr.parse_duration, "redact": vr.redact, "one_line": vr.one_line,
    "printable": vr.printable, "decode_base64": vr.decode_base64, "parse_json": deeper(vr.parse_json),
    "lines": in_pieces(vr.lines), "aligned": lambda text: vr.aligned([vr.printable(text) + "\t", "a\tb\tc"] * 50),
    "is_http_url": vr.is_http_url,
    "_goes_before_host": lambda text: vr._goes_before_host(text, vr.Address("http", text, "")),
    "bucket_address": lambda text: vr.bucket_address(a_location(region=text, bucket=text)),
    "location_from": lambda text: vr.location_from({"metadata": {"name": text}, "spec": {
        "provider": "aws", "objectStorage": {"bucket": "b", "prefix": text, "caCert": text}, "config": {text: text}}}),
    "object_key": lambda text: vr.object_key(text, vr.TARGETS["BackupLog"], "n"),
    "ini_sections": deeper(lambda content: vr.merge_profiles(vr.ini_sections(content, "X"), {})),
    "identity_from_exec": lambda text: vr.identity_from_exec({"apiVersion": "v", "status": {
        "token": "t", "expirationTimestamp": text}}, "X", "v"), "is_object_name": vr.is_object_name,
    "rule_for": lambda text: vr.rule_for("GET", "/apis/" + text, False), "_unescaped": vr._unescaped,
    "xml_fields": deeper(vr.xml_fields), "listed_prefixes": deeper(vr.listed_prefixes),
    "dns_label": lambda text: vr.dns_label(text, "X"),
    "endpoint_from": lambda text: vr.endpoint_from(f"https://{text}", "X"),
    "is_at_aws": lambda text: a_location(s3_url=f"https://s3.{text}").is_at_aws(),
    "object_info": lambda text: vr.object_info(206, dict.fromkeys(("Content-Range", "Content-Length", "ETag"), text)),
    "backup_sort_key": vr.backup_sort_key, "json_text": vr.json_text, "_add": nasty_screen,
    "tls_context": deeper(lambda pem: vr.tls_context(vr.Trust(pem, alone=True))),
    "parse_yaml": deeper(partial(vr.parse_yaml, what="X")),
    "api_error": deeper(lambda body: vr.api_error(400, body, "GET", "/")),
    "_tell_warnings": lambda text: vr.connect(vr.Cluster("http://127.0.0.1:1"))._tell_warnings({"Warning": text}),
    "retry_after_seconds": lambda text: vr.retry_after_seconds(text, NOW),
    "clock_skew": lambda text: vr.clock_skew({"Date": text}, NOW),
    "_tls_text": lambda text: vr._tls_text(OSError(text)),
    "_meaning": lambda text: vr._meaning(403, "AccessDenied", text, ""), "_what_is": deeper(vr._what_is),
    "store_refusal": deeper(lambda body: vr.store_refusal(
        403, b"<Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>%b</CanonicalRequest>" % body, {},
        "the store", "https://h/k", NOW)), "decode_aws_chunked": in_pieces(vr.decode_aws_chunked),
    "inflate": in_pieces(vr.inflate), "is_resource": lambda text: vr.is_resource(text, text),
    "tar_files": lambda text: list(vr.tar_files([tar_with(
        ("a", b"", {"pax_headers": {"comment": text}}))])), "is_about": deeper(partial(vr.is_about, a_key(name="a"))),
    "_yaml_scalar": lambda text: vr.yaml_text({text: [text]})}
BOMBS: Any = (  # name, reader, text, words of the error
    ("redaction of one word", vr.redact, "https://a:b" * 100_000, ""),
    ("a large ini file", READERS["ini_sections"], "#" * (1 << 20) + "#", "X is larger than 1 MiB"),
    ("a duration of many parts", vr.parse_duration, "1ns" * 34, "invalid duration"),
    ("a large bundle", READERS["tls_context"], "-" * (1 << 20), "holds no PEM certificate"),
    ("a long line in bytes", in_pieces(vr.lines), "x" * 300_000, ""),
    ("a name of places", lambda name: vr.Fields({name: [5] * 9999}, "", {})("", {str: [str]}), "k" * 1_000_000, ""),
    ("a wide line", vr.aligned, ["x" * 1_000_000 + "\ty"] + ["x\ty"] * 9999, ""),
    ("JSON of empty mappings", vr.decode_json, [b"[" + b"{}," * 5_000_000 + b"{}]"], "elements, too large to be shown"),
    ("JSON of mappings in an answer", vr.parse_json, b"[" + b"{}," * 5_000_000 + b"{}]", "more than 2200000 elements"),
    ("JSON of quotes", vr.parse_json, b'",' * 8_000_000, "elements"),
    ("JSON of digits", vr.parse_json, b"[" + b"9" * 1_000_000 + b"]", "no JSON"),
    ("gzip of tiny members", lambda text: list(vr.inflate([text])), gzip.compress(b"") * 60_000, ""))
NO_READERS = {  # what they read is no stranger's text, is short, or is timed with one of the above
    "_check_yaml", "read_body", "parse_http_date", "_is_exempt", "find_part", "open_part", "value_of", "run_download",
    "_reply", "transfer", "run_show", "items"}
READING = re.compile(r"\b(re|yaml|json|configparser|xml|base64|email\.utils|_?[A-Z]{2}[A-Z_]+)\."
                     r"(match|fullmatch|search|find\w*|sub\w*|split|load\w*|parse\w*|decode|b64decode)\b")


class TestTimingLaw(TestCase):
    """Text of strangers takes time in proportion to its length, whatever it is."""

    def setUp(self):
        """Let warnings go nowhere, and the garbage of other tests lie."""
        gc.disable()
        self.addCleanup(gc.enable)
        handler = logging.NullHandler()
        vr.log.addHandler(handler)
        self.addCleanup(vr.log.removeHandler, handler)

    def seconds(self, function: Callable[[str], Any], text: str, tries: int = 1) -> Tuple[float, str]:
        """What a function takes for a text, at best, and what it says when it refuses it."""
        taken, said = [], ""
        for _ in range(tries):
            start = time.thread_time()
            try:
                function(text)
            except (vr.Error, ValueError) as error:
                said = str(error)
            taken.append(time.thread_time() - start)
        return min(taken), said

    def test_four_times_the_text_takes_less_than_ten_times_as_long(self):
        """For every reader and nasty text, where that takes long enough to measure; no reader is missing."""
        for (name, function), (head, piece, tail) in product(READERS.items(), NASTY):
            short, long = (head + piece * (size // len(piece)) + tail for size in (5_000, 20_000))
            if self.seconds(function, long)[0] > 0.01:
                with self.subTest(name, nasty=(head, piece, tail)):
                    once = self.seconds(function, short, 3)[0]
                    self.assertLess(self.seconds(function, long, 3)[0], 10 * once)
        functions, lines = [node for node in ast.walk(TREE) if isinstance(node, ast.FunctionDef)], SOURCE.splitlines()
        found = {node.name for node in functions if READING.search("\n".join(lines[node.lineno - 1:node.end_lineno]))}
        self.assertEqual(set(), found - {*READERS, *NO_READERS}, "readers that are in no table")
        self.assertEqual(set(), {*READERS, *NO_READERS} - {node.name for node in functions}, "functions that are gone")

    def test_no_text_is_a_bomb(self):
        """Each of these took seconds, minutes or all memory; now it is refused, or read, in a moment."""
        for what, function, text, outcome in BOMBS:
            with self.subTest(what):
                taken, said = self.seconds(function, text)
                self.assertLess(taken, 1.0)
                self.assertRegex(said, outcome or r"\A\Z")


class TestParseJson(Cases):
    def test_what_is_read(self):
        """All of JSON, marks in strings and escapes included, a hundred levels deep."""
        for value in (None, 0, -1.5e300, 10 ** 300, "", "\\", '"', '\\"', "[", "{\"", "\ud800", "ü😀", [], {}, [{}],
                      {"": ""}, {"[": "]"}, {"a,b": ['"', "\\\\", "}{"]}, ["\\"], ['\\"[', "]"],
                      json.loads("[" * 100 + "]" * 100)):
            for ascii_only in (True, False):
                text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
                self.gives(vr.parse_json, (text, value), (bytearray(text), value), (b"\xef\xbb\xbf" + text, value))
        self.gives(vr.parse_json, ((b'["[{,,,,,}]","\\",,,,"]', 2), ["[{,,,,,}]", '",,,,']), ((b"[{},0]", 5), [{}, 0]))

    def test_what_is_refused(self):
        """One error without a word of it; depth and elements have a limit, in strings they do not count."""
        self.refuses(vr.parse_json, "^is no JSON$", *(
            b"", b" ", b"s3cr3t", b"[", b"]", b"[}", b'["s3cr3t', b'"\\', b"{s3cr3t}", b"[1,]", b"\xff",
            "[]".encode("utf-16"), b"[" + b"9" * 401 + b"]", b"]" * 200 + b"[" * 200, b"[" * 101 + b"]" * 101,
            b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 100_000, b'{"a":' * 100_000), error=ValueError)
        for given in ((b"[0,0,0,0]", 3), (b"[{},0]", 4), (b'["a","b","c","d"]', 3), (b'",' * 99, 3)):
            self.refuses(vr.parse_json, f"{given[1]} elements", given, error=vr.TooLarge)


# ---- Requests ----------------------------------------------------------------

DOCUMENT: Document = {
    "metadata": {"name": "nightly-x7k2p", "namespace": "velero", "uid": "uid-1", "resourceVersion": "41",
                 "creationTimestamp": "2026-05-04T11:59:59Z"},
    "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}}


def with_places_filled(document: Document, value: Any) -> Iterator[Document]:
    """Copies of a document with one field after the other, at any depth, replaced by a value."""
    for name, inner in document.items():
        yield {**document, name: value}
        if isinstance(inner, dict):
            for changed in with_places_filled(inner, value):
                yield {**document, name: changed}


class TestRequestFrom(Cases):
    def test_fields(self):
        """A reason is our annotation, else a newer Velero's phase Failed with its message."""
        ours = {vr.REASON: "BackupNotFound", vr.MESSAGE: "no such backup"}
        said, failed = dict(reason="BackupNotFound", message="no such backup"), {"phase": "Failed", "message": "m"}
        for metadata, status, over in (
                ({"deletionTimestamp": None}, {}, {}), ({"deletionTimestamp": "x"}, {}, dict(deleting=True)),
                ({}, {"phase": "Processed", "downloadURL": "https://h/k", "expiration": "2026-05-04T12:10:00Z"},
                 dict(phase="Processed", url="https://h/k", expiration=after(minutes=10))),
                ({}, {"processedTimestamp": "2026-05-04T12:00:00Z"}, dict(processed=NOW)),
                ({"annotations": ours}, {}, said), ({"annotations": ours}, failed, dict(said, phase="Failed")),
                ({}, failed, dict(phase="Failed", reason="Failed", message="m")),
                ({"annotations": {}}, {"phase": "Failed"}, dict(phase="Failed", reason="Failed")),
                ({}, {"phase": "New", "message": "m"}, dict(phase="New")),
                ({"uid": "x" * 999, "annotations": {vr.MESSAGE: "x" * 2000}}, {"phase": "y" * 999}, dict(
                    uid="x" * 254, message="x" * 1024, phase="y" * 254))):
            document = {**DOCUMENT, "metadata": {**DOCUMENT["metadata"], **metadata}, "status": status}
            self.assertEqual(a_download(**over), vr.request_from(vr.DOWNLOAD_REQUESTS, document))


# Velero's pkg/persistence/object_store_layout.go: kinds and the ends of their keys, which begin with backups/X/X,
# restores/X/restore-X, or for RestoreVolumeInfo restores/X/X.
LAYOUT = """BackupLog -logs.gz  BackupContents .tar.gz  BackupVolumeSnapshots -volumesnapshots.json.gz
    BackupItemOperations -itemoperations.json.gz  BackupResourceList -resource-list.json.gz  BackupResults -results.gz
    RestoreLog -logs.gz  RestoreResults -results.gz  RestoreResourceList -resource-list.json.gz
    RestoreItemOperations -itemoperations.json.gz  CSIBackupVolumeSnapshots -csi-volumesnapshots.json.gz
    CSIBackupVolumeSnapshotContents -csi-volumesnapshotcontents.json.gz  BackupVolumeInfos -volumeinfo.json.gz
    RestoreVolumeInfo -volumeinfo.json.gz  BackupItemSnapshots -itemsnapshots.json.gz""".split()


class TestTargets(Cases):
    def test_all_kinds(self):
        """Every kind of Velero 1.6 to 1.18 is there with its key, and no other; backups' contents stay as they are."""
        self.assertEqual(LAYOUT[::2], list(vr.TARGETS))
        for (kind, row), end in zip(vr.TARGETS.items(), LAYOUT[1::2]):
            owner = vr.RESTORES if kind.startswith("Restore") else vr.BACKUPS
            prefix = "restore-" if owner is vr.RESTORES and kind != "RestoreVolumeInfo" else ""
            self.assertEqual((kind, f"{owner.plural}/X/{prefix}X{end}", owner, kind != "BackupContents"),
                             (row.kind, row.key.format(name="X"), row.owner, row.gunzip))

    def test_targets(self):
        """Every name that Kubernetes allows has its row; any other, and any other kind, is refused for good."""
        for name in GOOD_NAMES:
            self.assertTrue(vr.is_object_name(name), name)
            self.assertEqual(list(vr.TARGETS), [vr.target_of(kind, name).kind for kind in vr.TARGETS])
        self.gives(vr.is_object_name, *((name, False) for name in BAD_NAMES))
        self.refuses(vr.target_of, "cannot be the name of a restore$", *(("RestoreLog", name) for name in BAD_NAMES),
                     error=vr.RequestFailed, reason="InvalidName")
        self.refuses(vr.target_of, "unknown kind .*RestoreVolumeInfo", *((kind, "nightly") for kind in (
            "", "backuplog", "Backup", "BackupLog ", "BackupLog\n", "x" * 10000, "\ud800")),
            error=vr.RequestFailed, reason="UnknownKind")

    def test_paths(self):
        self.gives(vr.api_path, *(
            ((vr.BACKUPS, "ns", "n", "status"), "/apis/velero.io/v1/namespaces/ns/backups/n/status"),
            ((vr.SECRETS, "ns"), "/api/v1/namespaces/ns/secrets"),
            ((vr.DEPLOYMENTS, "a/b", "c?d#e"), "/apis/apps/v1/namespaces/a%2Fb/deployments/c%3Fd%23e")))


class TestDecisions(Cases):
    """What is decided about a request; times are minutes from now."""
    error = vr.NotFound("backup velero/nightly does not exist", reason="BackupNotFound")
    said = dict(reason="BackupNotFound", message="backup velero/nightly does not exist")
    annotations = {vr.REASON: said["reason"], vr.MESSAGE: said["message"]}
    cut = {"expiration": "2026-05-04T12:10:00Z"}
    server = vr.Server("v1.18.1", (("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod")))

    def outcome(self, outcome: Any) -> Tuple[Any, ...]:
        """Verb, next look, and whether it failed; `answer` where nothing is decided."""
        self.assertTrue(outcome is None or outcome.why.isprintable() and len(outcome.why) < 1200)
        return (outcome.verb, outcome.again, outcome.failed) if outcome else ("answer", None, False)

    def test_triage(self):
        """Expiry comes first; what is answered stays until it expires; the rest is to be answered."""
        for phase, created, expires, verb, again in (
                ("", 0, None, "answer", None), ("New", 0, None, "answer", None), ("", 0, 5, "answer", None),
                ("New", 0, FAR_OFF, "answer", None), ("", 0, -.1, "delete", None), ("", 0, 0, "delete", None),
                ("New", 0, LONG_AGO, "delete", None), ("Processed", 0, -.1, "delete", None),
                ("Failed", 0, -.1, "delete", None), ("Weird", 0, -9e5, "delete", None),
                ("Processed", 0, .1, "leave", .1), ("Processed", 0, 10, "leave", 10), ("Failed", 0, 3, "leave", 3),
                ("Weird", 0, 3, "leave", 3), ("Processed", 0, 10.1, "patch", 10), ("Weird", 0, FAR_OFF, "patch", 10),
                ("Processed", 0, None, "leave", 10), ("Processed", -9, None, "leave", 1),
                ("Processed", -10, None, "delete", None), ("Weird", LONG_AGO, None, "delete", None),
                ("Processed", FAR_OFF, None, "leave", 10), ("Processed", None, None, "leave", 10)):
            request = a_download(phase=phase, created=when(created), expiration=when(expires))
            self.gives(lambda given: self.outcome(vr.triage_download(given, NOW)), (
                request, (verb, when(again), False)), (request._replace(deleting=True), ("leave", None, False)))
        cut = vr.triage_download(a_download(phase="Processed", expiration=FAR_OFF), NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": self.cut}, cut.body)

    def test_answer(self):
        """URL, phase and expiration come in one patch, on the version that was seen; a reason is taken back."""
        for reason, annotations in (("", {}), ("BackupNotFound", {"annotations": {vr.REASON: None, vr.MESSAGE: None}})):
            outcome = vr.answer_download(a_download(reason=reason), "k", "https://h/k?X-Amz", after(minutes=9))
            self.assertEqual({"metadata": {"resourceVersion": "41", **annotations}, "status": {
                "phase": "Processed", "downloadURL": "https://h/k?X-Amz", "expiration": "2026-05-04T12:09:00Z"}},
                outcome.body)
            self.assertEqual(("patch", after(minutes=9), False), self.outcome(outcome))
            self.assertNotIn("X-Amz", repr(outcome) + outcome.why)
            self.assertIn("BackupLog of nightly", outcome.why)

    def test_refuse(self):
        """Reason, message and expiration are written once, a stranger's expiration is cut, time mends what it can."""
        for fields, expires, written, status, again in (
                ({}, None, self.annotations, self.cut, 10), (self.said, 4, None, None, 4),
                (dict(self.said, reason="SecretNotFound"), 4, self.annotations, None, 4),
                (dict(self.said, message="other"), 10, self.annotations, None, 10),
                ({}, FAR_OFF, self.annotations, self.cut, 10), (self.said, FAR_OFF, None, self.cut, 10)):
            outcome = vr.refuse_download(a_download(expiration=when(expires), **fields), self.error, NOW)
            body = outcome.body or {"metadata": {"resourceVersion": "41"}}
            self.assertEqual(("41", written, status), (body["metadata"]["resourceVersion"], body["metadata"].get(
                "annotations"), body.get("status")), (fields, expires))
            self.assertEqual(("patch" if written or status else "leave", when(again), True), self.outcome(outcome))
        self.assertFalse(vr.refuse_download(a_download(), vr.RequestFailed("x", reason="InvalidName"), NOW).failed)

    def test_messages_are_harmless(self):
        """A message is one line of at most 1024 characters without secrets, and recognised the next time."""
        error = vr.Error("a\nb https://user:s3cr3t@h " + "x" * 2000, reason="ClusterError")
        outcome = vr.refuse_download(a_download(), error, NOW)
        message = outcome.body["metadata"]["annotations"][vr.MESSAGE]
        self.assertTrue(message.isprintable() and len(message) == 1024 and "s3cr3t" not in message + outcome.why)
        again = a_download(reason="ClusterError", message=message, expiration=after(minutes=10))
        self.assertEqual("leave", vr.refuse_download(again, error, NOW).verb)

    def test_what_cannot_be_written(self):
        """Without room for annotations the status alone; without that the object is deleted when its life is over."""
        smaller = vr.fall_back_download(a_download(), vr.refuse_download(a_download(), self.error, NOW), NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": self.cut}, smaller.body)
        self.assertEqual(("patch", after(minutes=10), True), self.outcome(smaller))
        for created, verb in ((0, "leave"), (-9, "leave"), (-10, "delete"), (LONG_AGO, "delete"), (None, "leave"),
                              (FAR_OFF, "leave")):
            outcome = vr.fall_back_download(a_download(created=when(created)), smaller, NOW)
            self.assertEqual((verb, verb == "leave"), (outcome.verb, outcome.failed), created)

    def test_status_requests(self):
        """New ones are answered, answered ones live a minute, others are left."""
        for phase, created, processed, verb, again in (
                ("", 0, None, "patch", 5), ("New", 0, LONG_AGO, "patch", 5), ("Processed", 0, 0, "leave", 5),
                ("Processed", -9, -.98, "leave", 5), ("Processed", 0, -1, "delete", None),
                ("Processed", 0, LONG_AGO, "delete", None), ("Processed", -.5, None, "leave", 5),
                ("Processed", -1.1, None, "delete", None), ("Processed", -2, FAR_OFF, "delete", None),
                ("Processed", -.1, FAR_OFF, "leave", 5), ("Processed", FAR_OFF, FAR_OFF, "leave", 5),
                ("Processed", None, None, "leave", 5), ("Failed", -9e3, None, "leave", None),
                ("\x1b[2J" * 100, 0, None, "leave", None)):
            request = a_status(phase=phase, created=when(created), processed=when(processed))
            self.gives(lambda given: self.outcome(vr.decide_status(given, self.server, NOW)), (
                request, (verb, when(again), False)), (request._replace(deleting=True), ("leave", None, False)))
        self.assertEqual({"metadata": {"resourceVersion": "42"}, "status": {
            "phase": "Processed", "processedTimestamp": "2026-05-04T12:00:00Z", "serverVersion": "v1.18.1",
            "plugins": [{"kind": "ObjectStore", "name": "velero.io/aws"},
                        {"kind": "BackupItemAction", "name": "velero.io/pod"}]}},
            vr.decide_status(a_status(), self.server, NOW).body)
        self.assertEqual((("ObjectStore", "velero.io/aws"),), vr.Server("v0").plugins)

    def test_what_is_news(self):
        """What failing controllers write is no news, everything else is."""
        new, processed = dict(phase="New"), dict(phase="Processed")
        for make, old, over, expected in ((a_download, {}, dict(version="42", reason="A", message="b"), False),
                (a_download, {}, dict(version="42", expiration=NOW), False),
                (a_download, new, dict(new, expiration=NOW), False),
                (a_download, dict(reason="A", message="b"), dict(reason="B", message="c", version="43"), False),
                (a_download, {}, processed, True), (a_download, {}, dict(url="u"), True),
                (a_download, {}, dict(deleting=True), True), (a_download, {}, dict(target_name="other"), True),
                (a_download, {}, dict(uid="uid-9"), True), (a_status, {}, dict(version="43"), False),
                (a_status, {}, dict(processed=NOW), True),
                (a_download, processed, dict(processed, expiration=NOW), True)):
            self.assertEqual(expected, vr.is_news(make(**old), make(**over)), (old, over))
        self.assertTrue(vr.is_news(None, a_download()))

    def test_replicas(self):
        """Each has its share; when one goes, only what was its own moves. Whatever else stands there is no replica."""
        names, uids = [f"{vr.REPLICA}{name}" for name in "abc"], [str(uuid.UUID(int=at)) for at in range(900)]
        before = [vr.replica_for(uid, names) for uid in uids]
        self.assertTrue(all(before.count(name) > 240 for name in names))
        self.assertEqual(before, [vr.replica_for(uid, names[::-1]) for uid in uids])
        self.assertEqual([name for name in before if name != names[2]],
                         [vr.replica_for(uid, names[:2]) for uid, was in zip(uids, before) if was != names[2]])
        for fields, expected in ((None, set()), ("velero-requests-a", set()), ({"manager": names[0]}, set()),
                ([{"manager": name} for name in (*names[:2], "kubectl", 7, None)] + [names[2], None], set(names[:2])),
                ([{"manager": "kubectl"}] * 20 + [{"manager": names[0]}], set())):
            self.assertEqual(expected, vr.replicas_in({"metadata": {"managedFields": fields}}), fields)

    def test_turns(self):
        """A request of another replica waits for a moment, never for as long as a clock was set back."""
        own, other = (f"{vr.REPLICA}{name}" for name in "ab")
        theirs = next(uid for uid in map(str, range(99)) if vr.replica_for(uid, (own, other)) == other)
        now, pause = NOW.timestamp(), vr.REPLICA_PAUSE
        for heard, more, expected in (
                (now, {}, now + pause), (now - 9, {}, now - 9 + pause), (now + 600, {}, now + pause),
                (now, {"created": after(seconds=-3)}, 0), (now, {"phase": "Processed"}, 0), (None, {}, 0)):
            request = a_download(**{"uid": theirs, "created": NOW, **more})
            self.assertEqual(expected, vr.turn_of(own, request, {} if heard is None else {other: heard}, NOW))


class TestHostileStatus(TestCase):
    """No decision raises, whatever strangers fill in; an object is looked at again in time, deleted, or left."""

    def check(self, document: Any) -> None:
        """Decide as both kinds; a deletion and a patch name what was seen, so that no other object is hit."""
        download, status = (vr.request_from(kind, document) for kind in vr.REQUEST_KINDS)
        refused = vr.triage_download(download, NOW) or vr.refuse_download(download, vr.NotFound("x"), NOW)
        for request, outcome, minutes, left in (
                (download, refused, 10, False), (status, vr.decide_status(status, vr.Server("v1"), NOW), 5,
                                                 status.phase not in ("", "New", "Processed"))):
            self.assertTrue(isinstance(hash(request), int) and outcome.why and outcome.why.isprintable())
            seen = {"resourceVersion": request.version}
            if outcome.verb == "delete":
                self.assertEqual({**seen, "uid": request.uid}, outcome.body["preconditions"])
            elif outcome.again is None:
                self.assertTrue(request.deleting or left, outcome)
            else:
                self.assertTrue(NOW < outcome.again <= after(minutes=minutes), outcome)
            if outcome.verb == "patch":
                self.assertLessEqual(seen.items(), outcome.body["metadata"].items())
        self.assertIsInstance(vr.plugin_table(document), str)

    def test_every_combination(self):
        """Odd phases and times together, and a value of another type at any place."""
        times = (None, "x", 5, "0001-01-01T00:00:00Z", "2026-05-04T11:00:00Z", "2026-05-04T12:00:00Z",
                 "2026-05-04T12:05:00Z", "2026-05-04T12:10:00.9Z", "2026-05-04T23:00:00Z",
                 "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00")
        for phase, created, filled, deletion in product(
                (None, "", "New", "Processed", "Failed", "\n", 5, []), times, times, (None, "2026-05-04T12:00:00Z")):
            self.check({"metadata": {"creationTimestamp": created, "deletionTimestamp": deletion}, "status": {
                "phase": phase, "expiration": filled, "processedTimestamp": filled}})
        full = {**DOCUMENT, "status": dict.fromkeys(
            ("phase", "downloadURL", "message", "expiration", "processedTimestamp", "plugins"), "Processed")}
        for value in HOSTILE:
            self.check(value)
            for document in with_places_filled(full, value):
                self.check(document)


class TestBackoff(Cases):
    def test_growth(self):
        """The wait doubles with every failure up to the cap, which leaves many tries within the life of a request."""
        self.gives(lambda failures: round(vr.backoff(failures, vr.RETRY_BASE, vr.RETRY_CAP), 6), *(
            (1, .005), (2, .01), (3, .02), (11, 5.12), (13, 20.48), (14, 30), (10**6, 30)))
        self.assertEqual((0.025, 0.25), (vr.URL_POLL, vr.STATUS_POLL), "the pauses of Velero's own client")

    def test_the_next_watch(self):
        """A watch that lived or brought something is followed at once, a line that is down never by a long wait."""
        self.gives(vr.watch_pause, *(
            ((0, 0.0, True, 1), 1), ((0, 0.4, False, 2), .6), ((0, 6.0, False, 1), 0), ((1, 0.0, True, 1), 1),
            ((3, 0.0, True, 2), 8), ((9, 0.0, True, 2), 30), ((1, 0.0, False, 1.5), 1.5), ((3, 0.0, False, 1), 3),
            ((9, 20.0, False, 2), 3)))

    def test_a_silent_line_is_noticed(self):
        """Deaf for at most 45 s, and at most two requests a minute and kind when nothing happens."""
        self.assertLess(vr.WATCH_SILENCE + vr.SHORT_WATCH, 45)
        self.assertGreater(min(vr.WATCH_SECONDS), 60 / 2)
        self.assertGreater(vr.WATCH_SILENCE - max(vr.WATCH_SECONDS), 5)

    def test_expired_versions(self):
        """Status 410 and the reasons Expired and Gone mean a new list, nothing else does."""
        self.gives(vr.is_version_expired, (None, False), (vr.Unreachable("x"), False), *(
            (vr.ApiError("x", status=status, api_reason=reason), expected) for status, reason, expected in (
                (410, "", True), (200, "Expired", True), (500, "Gone", True), (404, "NotFound", False),
                (403, "", False))))

    def test_logs(self):
        """Finished backups and restores have logs, and so have those that only wait for plugins."""
        for phase in ("Completed", "PartiallyFailed", "Failed", "WaitingForPluginOperations",
                      "WaitingForPluginOperationsPartiallyFailed"):
            self.assertEqual("", vr.logs_refusal(vr.BACKUPS, "nightly", phase))
        for phase in ("", "FailedValidation", "InProgress", "Deleting", "FinalizingPartiallyFailed", "completed"):
            self.assertRegex(vr.logs_refusal(vr.RESTORES, "r1", phase),
                             r'(?i)logs for restore "r1" are not available until .*Completed or Failed')


def exposed(text: str) -> Dict[Tuple[str, ...], float]:
    """Prometheus' text format 0.0.4, as strict as its specification -> the values by name and label values."""
    values: Dict[Tuple[str, ...], float] = {}
    types: Dict[str, str] = {}
    assert text.endswith("\n"), "the last line has no end"
    for line in text[:-1].split("\n"):
        told = re.fullmatch(r"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)", line)
        if told:  # HELP, then TYPE, once for a name, before its samples
            word, name, rest = told.groups()
            assert (name in types) == (word == "TYPE") and types.get(name, "") == "", line
            assert word == "HELP" or rest in ("counter", "gauge", "histogram"), line
            types[name] = rest if word == "TYPE" else ""
            continue
        sample = re.fullmatch(r"([a-zA-Z_:][a-zA-Z0-9_:]*)\{(.*)\} (\S+)", line)
        assert sample, line
        family = re.sub("_(bucket|sum|count)$", "", sample[1]) if types.get(sample[1]) is None else sample[1]
        assert family == list(types)[-1] and (family == sample[1]) == (types[family] != "histogram"), line
        labels = re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\["\\n])*)"', sample[2])
        assert ",".join(f'{name}="{value}"' for name, value in labels) == sample[2], line
        key = (sample[1], *(re.sub(r"\\(.)", lambda match: match[1].replace("n", "\n"), value) for _, value in labels))
        assert key not in values and len(dict(labels)) == len(labels), line
        values[key] = float(sample[3])
    for (name, *labels), value in values.items():
        if name.endswith("_bucket") and labels[-1] == "+Inf":  # buckets only grow, and the last has all
            counts = [(float(key[-1]), values[key]) for key in values if key[:-1] == (name, *labels[:-1])]
            assert counts == sorted(counts, key=lambda pair: pair[1]) == sorted(counts), name
            assert value == values[(name.replace("_bucket", "_count"), *labels[:-1])], name
    return values


class TestMetricsText(Cases):
    def test_the_format(self):
        """Counters and gauges as they are, buckets that add up, label values escaped, every metric told of."""
        counts = [0.0] * (len(vr.BUCKETS) + 1)
        counts[0], counts[1], counts[-1] = 2, 1, 4
        odd = 'a "b" \\ c\nd'
        name = "controller_runtime_reconcile_time_seconds"
        text = vr.metrics_text({("velero_requests_refused_total", odd): [3, 3], (name, "x"): [1234.5, *counts],
                                ("rest_client_requests_total", "200", "GET"): [1e6]}) + "\n"
        values = exposed(text)
        self.gives(lambda *key: values.get(key), *(
            (("velero_requests_refused_total", odd), 3), (("rest_client_requests_total", "200", "GET"), 1e6),
            *(((f"{name}_bucket", "x", bound), count) for bound, count in (
                ("0.005", 2), ("0.025", 3), ("300", 3), ("+Inf", 7))),
            ((f"{name}_sum", "x"), 1234.5), ((f"{name}_count", "x"), 7)))
        self.assertEqual(len(vr.METRICS), text.count("# HELP "))
        self.assertEqual(list(vr.BUCKETS), sorted(vr.BUCKETS))


AWKWARD_NAMES = GOOD_NAMES + tuple(
    ("a" * length + mark + "b" * 200)[:253] for length in range(35, 60) for mark in (".", "-", "--", "-" * 30)) + (
        "a." * 126 + "a", "a-" * 126 + "a", "0" * 253)


class TestNewObjects(TestCase):
    def test_documents(self):
        """A ServerStatusRequest as the velero CLI's own; an Event that names the request that was seen."""
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {},
                          "metadata": {"generateName": "velero-cli-", "name": "velero-cli-0a1b", "namespace": "ns"}},
                         vr.new_status_request("ns", "0a1b"))
        self.assertEqual({
            "apiVersion": "v1", "kind": "Event", "type": "Warning", "reason": "BackupNotFound", "message": "m",
            "metadata": {"generateName": "nightly-x7k2p-", "namespace": "velero"}, "count": 1,
            "involvedObject": {"apiVersion": "velero.io/v1", "kind": "DownloadRequest", "namespace": "velero",
                               "name": "nightly-x7k2p", "uid": "uid-1", "resourceVersion": "41"},
            "source": {"component": "velero-requests"}, "firstTimestamp": "2026-05-04T12:00:00Z",
            "lastTimestamp": "2026-05-04T12:00:00Z"}, vr.event_for(a_download(), "BackupNotFound", "m", NOW))

    def test_names(self):
        """Names made of others are valid for every name of a backup or request."""
        for name in AWKWARD_NAMES:
            found = vr.new_download_request("velero", "BackupLog", name, "0123abcd")["metadata"]["name"]
            self.assertTrue(vr.is_object_name(found) and len(found) <= 63, found)
            start = vr.event_for(a_download(key=a_key(name=name)), "R", "m", NOW)["metadata"]["generateName"]
            self.assertTrue(vr.is_object_name(start + "x7k2p") and len(start) <= 58, start)


# ---- Locations ---------------------------------------------------------------

PEM_64 = base64.encodebytes(b"PEM" * 50).decode()
# What can be no label of a host, such as a region.
NO_LABELS = ("x.evil", "x@h", "x/", "x#", "x?", "X", "x y", "x\n", "é", "x。y", "-x", "x-", "x" * 64, "x\\y", "a_b")

# Of a location's spec: its config beside the region, objectStorage beside the bucket, and what the record then says.
LOCATIONS_READ: Any = (({}, {"bucket": "//bkt/", "prefix": "//a/b//"}, {"prefix": "a/b"}), ({}, {"caCertRef": "n"}, {}),
    ({}, {"caCert": PEM_64}, {"ca_cert": b"PEM" * 50}),
    ({}, {"caCert": PEM_64.replace("\n", "\r\n"), "caCertRef": None}, {"ca_cert": b"PEM" * 50}),
    ({}, {"caCert": "", "caCertRef": {"name": "n", "key": "k"}}, {"ca_secret": ("n", "k")}),
    ({}, {"prefix": "x" * 2048}, {"prefix": "x" * 2048}),
    ({}, {"caCert": "AAAA" * 87381 + "AA=="}, {"ca_cert": bytes(1 << 18)}), *((config, {}, over) for config, over in (
        ({"region": "us-gov-west-1"}, {"region": "us-gov-west-1"}), ({"region": ""}, {"region": ""}),
        ({"region": "aws-global"}, {"region": "us-east-1"}), ({"s3Url": "http://h:9000"}, {"s3_url": "http://h:9000"}),
        ({"publicUrl": "https://s3.example"}, {"public_url": "https://s3.example"}),
        ({"profile": "backup"}, {"profile": "backup"}), ({"insecureSkipTLSVerify": "t"}, {"insecure": True}),
        ({"credentialsFile": "/credentials/other"}, {"credentials_file": "/credentials/other"}),
        *(({"s3ForcePathStyle": text}, {"path_style": True}) for text in "1 t T TRUE true True".split()),
        *(({"s3ForcePathStyle": text}, {}) for text in ("0", "f", "F", "FALSE", "false", "False", "")),
        *(({key: value}, {}) for key, values in {  # without effect on a GET
            "signatureVersion": ("4", ""), "enableSharedConfig": ("true", "0", ""),
            "checksumAlgorithm": ("CRC32", "CRC32C", "SHA1", "SHA256", ""), "serverSideEncryption": ("AES256", "any"),
            "kmsKeyId": ("alias/velero",), "customerKeyEncryptionFile": ("/not/here",),
            "customerKeyEncryptionSecret": ("name/key",), "tagging": ("nonsense",), "bucket": ("stale",),
            "prefix": ("stale",), "caCert": ("stale",)}.items() for value in values),
        ({"zz": "x", "": "x" * 9999, "mm": 5}, {"warnings": tuple(f"config key {key!r} is unknown" for key in (
            "", "mm", "zz"))}),
        ({f"k{number:04}": "x" for number in range(5000)}, {  # ten warnings are enough for anybody
            "warnings": tuple(f"config key 'k{number:04}' is unknown" for number in range(10))}))))

# Locations that are refused: words of the error, and config or objectStorage.
LOCATIONS_REFUSED: Any = (*(("bucket '.*without '/'", {}, {"bucket": bucket}) for bucket in (
        None, "", "/", "a/b", ".", "..", "a b", "a\nb", "a\0", 5, ["a"])),
    *(("ARN .*alias", {}, {"bucket": bucket}) for bucket in (
        "arn:aws:s3:us-west-2:123456789012:accesspoint:reports", "arn:", "arn:aws:s3:eu-west-1:@evil/:accesspoint:x")),
    ("S3 Express", {}, {"bucket": "bkt--use1-az4--x-s3"}), ("prefix has more than 2048", {}, {"prefix": "x" * 2049}),
    *(("caCert is not base64, or has more than 256 KiB", {}, {"caCert": text}) for text in (
        "-----BEGIN CERTIFICATE-----", "UEVN!", "UEV", "ü", "AAAA" * 87382)),
    *((f"{key} has more than 2048", {key: "x" * 2049}, {}) for key in ("profile", "s3Url", "region", "kmsKeyId")),
    *((f"{key} is {re.escape(repr(value))}; allowed: {allowed}$", {key: value}, {}) for key, value, allowed in (
        ("s3ForcePathStyle", "yes", "true or false"), ("s3ForcePathStyle", "tRUE", "true or false"),
        ("insecureSkipTLSVerify", "on", "true or false"), ("enableSharedConfig", "2", "true or false"),
        ("signatureVersion", "1", "4"), ("signatureVersion", "s3v4", "4"),
        ("checksumAlgorithm", "crc32", "CRC32, CRC32C, SHA1, SHA256"))),
    *(("signatureVersion", {"signatureVersion": value}, {}) for value in ("x" * 2000, "x" * 99_999, "a\nb", "\x1b[2J")),
    *(("config.region .*no DNS label", {"region": region}, {}) for region in NO_LABELS))


def read_location(config: Document, storage: Document, **spec: Any) -> Any:
    """The record of a location in eu-west-1 with bucket bkt, unless said otherwise."""
    return vr.location_from(a_location_document({"region": "eu-west-1", **config}, objectStorage={
        "bucket": "bkt", **storage}, **spec))


class TestLocationFrom(Cases):
    def test_what_is_read(self):
        self.gives(read_location, *((row[:2], a_location(**row[2])) for row in LOCATIONS_READ))
        said = {key for config, _, over in LOCATIONS_READ if "warnings" not in over for key in config}
        self.assertEqual(set(vr.LOCATION_KEYS), said, "keys that no row has")
        keys = a_location(secret_name="keys", secret_key="cloud")
        self.assertEqual(keys, read_location({}, {}, provider="velero.io/aws", accessMode="ReadOnly",
                                             credential={"name": "keys", "key": "cloud"}))

    def test_what_is_refused(self):
        """One short line that names the location, with a reason."""
        for words, config, storage in LOCATIONS_REFUSED:
            self.refuses(read_location, f"storage location 'default': .*{words}", (config, storage),
                         reason="InvalidStorageLocation")
        self.refuses(lambda provider: read_location({}, {}, provider=provider), "'default': provider is .*only aws", *(
            "", None, "gcp", "AWS", "velero.io/gcp", "example.com/aws", "x" * 100_000), reason="UnsupportedProvider")

    def test_any_field_may_be_wrong(self):
        """A value of another type, at any depth, is a ConfigError or no error, never another one."""
        full = a_location_document({"region": "r", "s3Url": "u"}, credential={"name": "n", "key": "k"})
        for value in HOSTILE:
            for document in with_places_filled(full, value):
                with suppress(vr.ConfigError):
                    vr.location_from(document)

    def test_trouble(self):
        """Velero's own complaint about a location is handed on in one line when it is Unavailable."""
        self.gives(lambda status: vr.location_trouble_from({"status": status}), *(
            (None, ""), ({"phase": "Available", "message": "m"}, ""),
            ({"phase": "Unavailable", "message": "a\nb"}, "a b"),
            ({"phase": "Unavailable"}, "no message; see the Velero server's log")))


class TestObjectKey(Cases):
    def test_prefixes(self):
        """A prefix is cleaned as Go's path.Join cleans it; one that leads out of the bucket is the location's fault."""
        def key_of(prefix: str) -> str:
            return str(vr.object_key(prefix, vr.TARGETS["BackupLog"], "n"))
        self.gives(key_of, *((prefix, f"{root}backups/n/n-logs.gz") for prefix, root in (
            ("", ""), ("./", ""), ("p//q", "p/q/"), ("a/./b", "a/b/"), ("p/../q", "q/"), ("a b/ü", "a b/ü/"),
            ("p/..", ""), ("...", ".../"), ("..a", "..a/"), ("%2e%2e", "%2e%2e/"), (" /. /..", " /"))))
        self.refuses(key_of, "leads out of the bucket", "..", "../x", "a/../..", "a/../../b", "./..",
                     reason="InvalidStorageLocation")


# Keys as S3 allows them, and the path they are signed with.
AWKWARD_OBJECT_KEYS: Any = (
    ("a b", "a%20b"), ("a+b", "a%2Bb"), ("100%", "100%25"), ("%2F", "%252F"), ("%zz", "%25zz"), ("~tilde~", "~tilde~"),
    ("a//b", "a//b"), ("/a", "/a"), ("a/", "a/"), ("é", "%C3%A9"), ("e\u0301", "e%CC%81"), ("😀", "%F0%9F%98%80"),
    ("?x=1", "%3Fx%3D1"), ("#x", "%23x"), ("a&b;c", "a%26b%3Bc"), ("a:b@c", "a%3Ab%40c"),
    ("!*'()", "%21%2A%27%28%29"), ("a\\b", "a%5Cb"), ("\x01\x7f\n", "%01%7F%0A"), ("a..b", "a..b"), ("...", "..."),
    ("\"<>^`{|}", "%22%3C%3E%5E%60%7B%7C%7D"), ("$,[]", "%24%2C%5B%5D"))

# Of a location in eu-west-1 with bucket bkt: what else it says, and the URL of its bucket. AWS's regions and rules for
# buckets are tested with botocore.
ADDRESSES: Any = ((dict(region="us-isolated"), "https://bkt.s3.us-isolated.amazonaws.com"),
    (dict(region="cn-north-1", dualstack=True), "https://bkt.s3.dualstack.cn-north-1.amazonaws.com.cn"),
    (dict(fips=True, bucket="ü"), "https://s3-fips.eu-west-1.amazonaws.com/%C3%BC"),
    *((dict(bucket=bucket), f"https://s3.eu-west-1.amazonaws.com/{quote(bucket, safe='')}") for bucket in (
        "ab", "ab-", "abc.def", "x@evil", "evil.example#", "UPPER", "x:y", "a?b", "[::1]", "10.0.0.1", "a/b", "x\\y")),
    (dict(s3_url="http://in:9000", public_url="https://out"), "https://bkt.out"),
    *((dict(s3_url=url), expected) for url, expected in (
        ("http://MinIO:9000", "http://bkt.minio:9000"), ("HTTP://h:80", "http://bkt.h"),
        ("https://h:443/", "https://bkt.h"), ("https://h:65535", "https://bkt.h:65535"),
        ("http://[::1]:80", "http://[::1]/bkt"),
        ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x/bkt"), ("http://h:1", "http://bkt.h:1"),
        ("http://10.0.0.1:9000", "http://10.0.0.1:9000/bkt"), ("http://10.0.0.1.nip.io", "http://bkt.10.0.0.1.nip.io"),
        ("http://h/base", "http://bkt.h/base"), ("http://my_minio.svc", "http://bkt.my_minio.svc"),
        ("http://h/" + "x" * 2039, "http://bkt.h/" + "x" * 2039))),
    *((dict(s3_url=url, path_style=True), expected) for url, expected in (
        ("http://h:443", "http://h:443/bkt"), ("https://h:", "https://h/bkt"), ("https://h:0443", "https://h/bkt"),
        ("http://h//a//b//", "http://h//a//b/bkt"), ("http://h/a%20b", "http://h/a%20b/bkt"),
        ("http://h/a b", "http://h/a%20b/bkt"), ("http://h/ü+~", "http://h/%C3%BC%2B~/bkt"))),
    *((dict(s3_url="http://h", bucket=bucket), f"http://{bucket}.h" if before else f"http://h/{bucket}")
      for bucket, before in (("abc.def", True), ("abc.de", False), ("abc..def", False), (".abc", False),
                             ("abc.-de", False), ("Team", False), ("192.168.100.100", False))))

# What urlsplit drops, or what others read otherwise than it does; none of it is shown.
NO_ENDPOINTS = (
    " http://h", "http://h ", "\thttp://h", "http://h\n", "http://a\nb", "http://a\tb", "ht\rtp://h", "http://h\\@evil",
    "http://me:s3cr3t@h", "http://s3cr3t@h", "http://h#@evil", "http://h?s3cr3t", "http://h/#s3cr3t", "http://h%2eevil",
    "http://h。evil", "http://h℀evil", "http://[s3cr3t]", "http://[::1]x", "http://[::1", "http://[::1%25eth0]",
    "http://[1:2]", "http://[1.2.3.4]", "http://h:0", "http://h:65536", "http://h:-1", "http://h:s3cr3t", "//h", "h",
    "h:9000", "s3://s3cr3t", "ftp://h", "http:h", "http:///s3cr3t", "http://", "http://.", "https://:9000",
    "\x00http://h", "http://h\x7f", "http://h/a/../b", "http://h/.", "http://h/ ", "http://h ost", "http://ü",
    "http://h|x", "http://*.s3cr3t", "\u2003http://h", "http://h/\ud800", "http://h/" + "x" * 2040)

# The endpoint that the operator names, and URLs to which our own identity belongs, or does not.
IDENTITIES = (
    ("", "https://s3.amazonaws.com https://s3.eu-west-1.amazonaws.com/ https://s3.eu-west-1.amazonaws.com.:443 "
     "https://s3-fips.dualstack.us-gov-west-1.amazonaws.com https://s3.cn-north-1.amazonaws.com.cn",
     "http://s3.eu-west-1.amazonaws.com https://s3.eu-west-1.amazonaws.com:444 https://s3xamazonaws.com "
     "https://ec2-1-2-3-4.compute-1.amazonaws.com https://evil.s3.amazonaws.com https://s3.evil.amazonaws.com "
     "https://vpce-1.vpce-svc-2.us-east-1.vpce.amazonaws.com https://s3.cn-north-1.amazonaws.com "
     "https://s3.eu-west-1.amazonaws.com.evil.example http://minio:9000 http://s3.amazonaws.com "
     "https://s3-fips.cn-north-1.amazonaws.com.cn https://s3.dualstack.eu-west-1.amazonaws.com.cn"),
    ("http://minio:9000", "http://minio:9000 HTTP://MinIO.:9000/base",
     "http://minio:9001 http://minio:90 http://minio https://minio:9000 http://xminio:9000"),
    ("http://minio.", "http://minio http://minio:80", "http://minio.evil.example http://minio:8"),
    ("https://minio", "https://minio:443", "http://minio:443 https://minio.example https://mini"),
    ("http://127.0.0.10", "http://127.0.0.10", "http://127.0.0.010 http://2130706442"),
    ("http://[fd00::000A]:9", "http://[FD00:0::a]:9", "http://[fd00::b]:9 http://[fd00::a]"))


def url_of(location: Any) -> str:
    return "{}://{}{}".format(*vr.bucket_address(location))


class TestStoreEndpoints(Cases):
    def test_addresses(self):
        self.gives(lambda over: url_of(a_location(**over)), *ADDRESSES)
        self.assertEqual(vr.Address("http", "h", "/bkt", "minio"), vr.bucket_address(
            a_location(s3_url="http://h", region="minio", path_style=True)))

    def test_what_aws_has_not(self):
        """FIPS in China, and FIPS or dual-stack with s3Url."""
        for words, over in (("no FIPS endpoints in cn-north-1.*USE_FIPS", dict(region="cn-north-1", fips=True)),
                            ("FIPS.*s3Url", dict(s3_url="http://minio", fips=True)),
                            ("AWS_USE_DUALSTACK_ENDPOINT", dict(s3_url="http://minio", dualstack=True))):
            self.refuses(vr.bucket_address, f"location 'default': .*{words}", a_location(**over),
                         reason="InvalidStorageLocation")

    def test_only_labels_make_hosts(self):
        """What would lead a host elsewhere is refused again where a host is made."""
        for text in ("", *NO_LABELS):
            self.refuses(lambda function, *given: function(*given), "no DNS label", (vr.aws_host, "sts", text),
                         (vr.aws_host, text, "r"), (vr.bucket_address, a_location(region=text, s3_url="http://minio")))
        self.assertEqual("sts.cn-north-1.amazonaws.com.cn", vr.aws_host("sts", "cn-north-1"))

    def test_endpoints_that_are_another_host(self):
        for key, make in (("s3Url", lambda url: a_location(s3_url=url)),
                          ("publicUrl", lambda url: a_location(s3_url="http://h", public_url=url))):
            self.refuses(lambda url: vr.bucket_address(make(url)), f"'default': {key} is no plain http or https URL",
                         *NO_ENDPOINTS, reason="InvalidStorageLocation")

    def test_where_our_own_identity_belongs(self):
        """At AWS, and at the operator's endpoint: scheme, host and port are compared, and not how they are written."""
        for own, ours, others in IDENTITIES:
            for url in f"{ours} {others}".split():
                for location in (a_location(s3_url=url), a_location(s3_url=own, public_url=url)):
                    with self.subTest(url, own=own), suppress(vr.ConfigError if url in others else ()):
                        self.assertEqual(url in ours.split(), location.is_for_own_identity(own))
        self.assertTrue(a_location().is_for_own_identity(""))

    def test_objects(self):
        """Each byte of a key is encoded once behind base path and bucket, slashes are kept, nothing is cleaned up."""
        based = a_location(s3_url="http://h/a%20b", path_style=True)
        for key, path in AWKWARD_OBJECT_KEYS:
            self.gives(lambda location: vr.object_address(location, key).path, (a_location(), f"/{path}"))
            self.assertEqual(f"/a%20b/bkt/{path}", vr.object_address(based, key).path)


# ---- Signing -----------------------------------------------------------------

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestSigningVectors(TestCase):
    def test_presigned_urls(self):
        """The documentation's own; a URL lives from one second to seven days."""
        address = vr.Address("https", "examplebucket.s3.amazonaws.com", "/test.txt", "us-east-1")
        self.assertEqual(
            "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="
            "AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires="
            "86400&X-Amz-SignedHeaders=host&X-Amz-Signature="
            "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404",
            vr.presign(address, some_credentials(), datetime(2013, 5, 24, tzinfo=timezone.utc), timedelta(days=1)))
        more = (("list-type", "2"), ("prefix", "a b/é"))
        self.assertIn("-Date=20260504T120000Z&X-Amz-Expires=600&X-Amz-Security-Token=t%2F%3D&X-Amz-SignedHeaders=host&"
                      "list-type=2&prefix=a%20b%2F%C3%A9&X-Amz-Signature=",
                      vr.presign(address, some_credentials(session_token="t/="), NOW, vr.URL_LIFE, more))
        for seconds, expected in ((1, "1"), (1.9, "1"), (604800, "604800")):
            url = vr.presign(address, some_credentials(), after(microseconds=999999), timedelta(seconds=seconds))
            self.assertIn(f"&X-Amz-Date=20260504T120000Z&X-Amz-Expires={expected}&X-Amz-SignedHeaders=host&", url)
        for seconds in (0, .9, -1, 604801, 1e9):
            self.assertRaises(ValueError, vr.presign, address, some_credentials(), NOW, timedelta(seconds=seconds))

    def test_signed_headers(self):
        """Those of the AWS suite, where all headers are named sorted, and the token is one of them."""
        form = {"content-type": "application/x-www-form-urlencoded", "content-length": "13",
                "x-amz-content-sha256": hashlib.sha256(b"Param1=value1").hexdigest()}
        token = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"
        for token, method, headers, body, expected in (
                (token, "GET", {}, b"", "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
                ("", "POST", form, b"Param1=value1",
                 "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b")):
            keys = vr.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
            given = {**headers, "host": "example.amazonaws.com"}
            signed = vr.sign_headers(method, "/", given, body, keys, "us-east-1", "service",
                                     datetime(2015, 8, 30, 12, 36, tzinfo=timezone.utc))
            names = {*given, "x-amz-date"} | ({"x-amz-security-token"} if token else set())
            self.assertEqual({*names, "authorization"}, set(signed))
            self.assertEqual("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
                             f"SignedHeaders={';'.join(sorted(names))}, Signature={expected}", signed["authorization"])


# What botocore is asked for where it is the oracle.
ORACLE_REGIONS = """us-east-1 eu-west-1 ap-southeast-5 us-gov-west-1 cn-north-1 us-iso-east-1 us-isob-east-1
    eu-isoe-west-1 us-isof-south-1 eusc-de-east-1 mars-north-7 minio""".split()
ORACLE_ENDPOINTS = ["", "", "", *"""http://minio:9000 https://s3.example http://10.0.0.1:9000 https://[fd00::1]
    http://store.example/base https://h:443 http://h:80 https://h:8443/a/b""".split()]
ORACLE_BUCKETS = ["x" * 63, "x" * 64, *"bkt my-bucket-1 a.b abc.def Bkt b_t b 1.2.3.4 bkt! -bkt a..b".split()]


def a_random_location(chance: random.Random) -> Any:
    url, region = chance.choice(ORACLE_ENDPOINTS), chance.choice(ORACLE_REGIONS)
    return a_location(region=region, bucket=chance.choice(ORACLE_BUCKETS), s3_url=url,
                      path_style=chance.random() < 0.4, fips=not url and chance.random() < 0.2,
                      # The rule set has it in the closed partitions, too, where no such host exists.
                      dualstack=not url and "-iso" not in region and chance.random() < 0.2)


@skipUnless(HAS_BOTOCORE, NO_BOTOCORE)
class TestStoreLikeBotocore(TestCase):
    """URLs with botocore as oracle; where we differ on purpose, a rule here says how."""

    def by_the_rules(self, provider: Any, location: Any) -> str:
        """The URL of a bucket by the rule set of AWS, ours where we differ on purpose; empty when it refuses."""
        # Rule 1: no label goes before an IP address, and dots need three letters between them.
        dotted = "." in location.bucket and (location.s3_url.startswith("http://10.") or
                                             min(map(len, location.bucket.split("."))) < 3)
        try:
            endpoint = provider.resolve_endpoint(
                Bucket=location.bucket, Region=location.region, UseFIPS=location.fips, Accelerate=False,
                UseDualStack=location.dualstack, ForcePathStyle=location.path_style or dotted, UseArnRegion=False,
                UseGlobalEndpoint=False, DisableMultiRegionAccessPoints=False,
                **{"Endpoint": location.s3_url} if location.s3_url else {})
        except Exception as error:  # pylint: disable=broad-except
            self.assertIn("Endpoint", type(error).__name__)
            return ""
        scheme = [scheme for scheme in endpoint.properties["authSchemes"] if scheme["name"] == "sigv4"][0]
        self.assertEqual((location.region, "s3"), (scheme["signingRegion"], scheme["signingName"]))
        # Rule 2: the default port is left out of URL and signature.
        return re.sub("^(http://[^/]*):80(?![0-9])|^(https://[^/]*):443(?![0-9])", r"\1\2", str(endpoint.url))

    def test_signatures(self):
        """Of every awkward key, with and without a token."""
        for (key, _), token in product(AWKWARD_OBJECT_KEYS, ("", "t/= é")):
            address = vr.object_address(a_location(), key)
            ours = vr.presign(address, some_credentials(session_token=token), NOW, vr.URL_LIFE)
            request = botocore.awsrequest.AWSRequest("GET", ours.partition("&X-Amz-Signature=")[0])
            request.context["timestamp"] = "20260504T120000Z"
            signer = botocore.auth.S3SigV4QueryAuth(
                botocore.credentials.Credentials(*some_credentials()[:2]), "s3", address.region)
            text = signer.string_to_sign(request, signer.canonical_request(request))
            self.assertEqual(f"{request.url}&X-Amz-Signature={signer.signature(text, request)}", ours)

    def test_urls_of_buckets(self):
        """Random locations give the identical URL, or are refused by both."""
        loader = botocore.session.Session().get_component("data_loader")
        provider = botocore.endpoint_provider.EndpointProvider(
            loader.load_service_model("s3", "endpoint-rule-set-1"), loader.load_data("partitions"))
        chance, compared = random.Random(12), set()
        for _ in range(400):
            location, ours = a_random_location(chance), ""
            with suppress(vr.ConfigError):
                ours = url_of(location)
            self.assertEqual(self.by_the_rules(provider, location), ours, location)
            compared.add(ours)
        self.assertGreater(len(compared), 200)


# ---- Section 8: manifests; its screens are tested before the golden cases ----

def without_descriptions(value: Any) -> Any:
    """A manifest without descriptions and annotations, which tell of the program that made it."""
    if isinstance(value, dict):
        return {name: without_descriptions(item) for name, item in value.items()
                if name != "annotations" and not (name == "description" and isinstance(item, str))}
    return [without_descriptions(item) for item in value] if isinstance(value, list) else value


class TestCrdManifests(TestCase):
    @skipUnless(os.path.isdir(os.environ.get("VELERO_CRDS", "")), NO_CRDS)
    def test_veleros_own(self):
        """The two request kinds are those of Velero 1.6.3 and 1.18.1; of the others spec and status are open."""
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        for release, status_subresource in (("1.6.3", True), ("1.18.1", False)):
            with open(os.path.join(os.environ["VELERO_CRDS"], f"velero-{release}.yaml"), encoding="utf-8") as file:
                theirs = [without_descriptions(crd) for crd in yaml.safe_load_all(file) if crd]
            for crd in theirs:
                version = crd["spec"]["versions"][0]
                if version.get("subresources") == {}:
                    del version["subresources"]
                version.pop("additionalPrinterColumns", None)  # of what Velero alone writes
                if not crd["spec"]["names"]["kind"].endswith("Request"):
                    version["schema"]["openAPIV3Schema"]["properties"].update(spec=anything, status=anything)
            self.assertEqual(theirs, vr.crd_manifests(status_subresource), release)


def name_of(text: str) -> str:
    """The kind of a manifest and the end of its name."""
    document = yaml.safe_load(text)
    return str(document["kind"] + document["metadata"]["name"].replace("velero-requests", ""))


def manifests_of(*words: str) -> Dict[str, Document]:
    return {name_of(text): yaml.safe_load(text) for text in run("manifests", *words).out.decode().split("---\n")}


ALL_FLAGS = ("--log-format=json", "--verify-urls", "--allow-credentials-file", "/credentials/cloud",
             "--server-version=v1.18.1", "--plugin", "RestoreItemAction=velero.io/pod", "--plugin=a=b=c")
DEPLOYED = (*ALL_FLAGS, "--image", "registry.example/python:3.9", "--replicas=3", "--secret",
            "cloud-credentials", "--endpoint", "http://minio.example:9000", "--service-account-annotation",
            "eks.amazonaws.com/role-arn=arn:aws:iam::123456789012:role/velero", "--service-account-annotation=a/b=c=d")


class TestManifests(Cases):
    def test_each_right_has_its_reason(self):
        """A comment above each rule names every verb in it."""
        count = 0
        for part in ("controller", "client", "policy"):
            for rule in re.findall(r"(?m)^- #(.*)\n(  apiGroups:\n(?:  .*\n)+)", run("manifests", part).out.decode()):
                self.assertLessEqual(set(yaml.safe_load(rule[1])["verbs"]), set(re.findall(r"\w+", rule[0])), rule)
                count += 1
        self.assertEqual(count, 5 + 8 + 6 + 7 + 8 + 6)

    def test_the_controller_gets_its_flags(self):
        """The pod's command line means what was typed; everything else is where Kubernetes looks for it."""
        found = manifests_of("controller", *DEPLOYED, "-n", "backups")
        pod = found["Deployment"]["spec"]["template"]["spec"]
        container, = pod["containers"]
        typed, given = (vr.parse(["controller", *words])[1] for words in (
            (*ALL_FLAGS, "-n", "backups", "--health-address", ":8081", "--artifacts-address=:8082"), container["args"]))
        self.assertEqual(vars(typed), vars(given))
        program, held = os.path.basename(MODULE), found["ConfigMap"]
        self.assertEqual(["python3", "-B", f"/program/{program}", "controller"], container["command"])
        self.assertEqual([("AWS_SHARED_CREDENTIALS_FILE", "/credentials/cloud"),
                          ("AWS_ENDPOINT_URL_S3", "http://minio.example:9000")],
                         [(row["name"], row["value"]) for row in container["env"]])
        self.assertEqual({"a/b": "c=d", "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/velero"},
                         found["ServiceAccount"]["metadata"]["annotations"])
        self.assertEqual((3, "registry.example/python:3.9", "cloud-credentials", {"backups"}), (
            found["Deployment"]["spec"]["replicas"], container["image"], pod["volumes"][1]["secret"]["secretName"],
            {document["metadata"]["namespace"] for document in found.values()}))
        self.assertEqual(LEAST, found["Role"]["rules"])
        content = base64.b64decode(held["binaryData"][program]) if ARCHIVE else held["data"][program].encode()
        self.assertEqual(read_bytes(MODULE), content)

    def test_where_it_is_reached(self):
        """The port of the Service that the way through the cluster names leads to artifacts, the other to probes; only
        who is named may connect, if somebody is."""
        found = manifests_of("controller", "--network-policy", "10.0.0.1/32", "--network-policy=fd00::/8")
        container, = found["Deployment"]["spec"]["template"]["spec"]["containers"]
        ports = {row["name"]: row["containerPort"] for row in container["ports"]}
        words = dict(word[2:].split("-address=:") for word in container["args"] if "-address" in word)
        for row in found["Service"]["spec"]["ports"]:
            name = {"http": "artifacts", "health": "health"}[row["name"]]
            self.assertEqual((name, int(words[name])), (row["targetPort"], ports[row["targetPort"]]))
        self.assertEqual({"health"}, {container[f"{probe}Probe"]["httpGet"]["port"] for probe in (
            "startup", "liveness", "readiness")})
        self.assertEqual("http:velero-requests:http", ":".join((
            "http", found["Service"]["metadata"]["name"], found["Service"]["spec"]["ports"][1]["name"])))
        policy, labels = found["NetworkPolicy"]["spec"], found["Deployment"]["spec"]["template"]["metadata"]["labels"]
        self.assertEqual((labels, ["10.0.0.1/32", "fd00::/8"]), (policy["podSelector"]["matchLabels"], [
            row["ipBlock"]["cidr"] for row in policy["ingress"][0]["from"]]))
        self.assertNotIn("NetworkPolicy", manifests_of("controller"))
        secured = manifests_of("controller", "--artifacts-tls-secret", "pair")
        pod, port = secured["Deployment"]["spec"]["template"]["spec"], secured["Service"]["spec"]["ports"][1]
        self.assertEqual(("https", "artifacts"), (port["name"], port["targetPort"]))
        self.assertEqual([{"name": "tls", "secret": {"secretName": "pair"}}], pod["volumes"][1:])
        self.assertEqual({"name": "tls", "mountPath": "/tls", "readOnly": True},
                         pod["containers"][0]["volumeMounts"][1])
        given = vr.parse(["controller", *pod["containers"][0]["args"]])[1]
        self.assertEqual(("/tls/tls.crt", "/tls/tls.key"), (given.artifacts_tls_cert, given.artifacts_tls_key))
        for role in manifests_of("client").values():
            self.assertIn(PROXY_RIGHT, role["rules"])

    def test_the_same_program_is_the_same_text(self):
        """Another program is another template, so its pods are replaced."""
        how = dict(words=(), image="x", replicas=1, secret=None, endpoint=None)
        one, same, other = (vr.yaml_text(*vr.controller_manifests("velero", "x.pyz", content, (), **how))
                            for content in (b"\0", b"\0", b"\1"))
        self.assertEqual(one, same)
        templates = [[document["spec"]["template"] for document in yaml.safe_load_all(text)
                      if document["kind"] == "Deployment"] for text in (one, other)]
        self.assertNotEqual(*templates)
        self.refuses(lambda size: vr.controller_manifests("velero", "x.pyz", bytes(size), (), **how),
                     "x.pyz has 1048577 bytes, and a ConfigMap holds 1048576", (1 << 20) + 1, error=vr.Error)

    def test_who_denies(self):
        """What a policy denies, no right to the call itself would allow."""
        for details, hints in ({"kind": DR}, 1), ({"causes": [{"message": "x"}]}, 0):
            body = json.dumps({"message": "no", "details": details}).encode()
            error = vr.api_error(403, body, "POST", "/apis/velero.io/v1/namespaces/velero/downloadrequests")
            self.assertEqual((hints, vr.Exit.NOT_ALLOWED), (len(error.hints), error.exit))

    def test_what_a_program_brings_is_itself(self):
        """An archive without a word; a script that the image could not run says so."""
        archive = os.path.join(built_archives()[0], PYZ)
        for program, name, field, words, told in (
                (archive, PYZ, "binaryData", (), 0), (MODULE, PROGRAMS[0], "data", (), 1),
                (MODULE, PROGRAMS[0], "data", ("--image", "mine"), 0)):
            done = subprocess.run([sys.executable, program, "manifests", "controller", *words], check=True, timeout=60,
                                  stdout=PIPE, stderr=PIPE)
            data = next(document for document in yaml.safe_load_all(done.stdout)
                        if document["kind"] == "ConfigMap")[field][name]
            self.assertEqual(read_bytes(program), data.encode() if field == "data" else base64.b64decode(data))
            self.assertEqual(done.stderr.count(b"urllib3 and PyYAML, which the image python:3.13-slim lacks"), told)
            self.assertEqual(done.stderr.count(b"\n"), told)


# ---- Stores: gzip and files --------------------------------------------------

CONTENT = b"".join(b"line %d of a log\n" % number for number in range(20))
PACKED = gzip.compress(CONTENT)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start:start + size] for start in range(0, len(data), size))


class TestInflate(TestCase):
    """gzip members become their content, or pass as they are, and nothing else does."""

    def pieces(self, data: bytes, size: int, unpack: bool = True) -> Iterator[bytes]:
        """What comes of data in chunks of a size, with empty chunks between them."""
        return vr.inflate(itertools.chain.from_iterable((chunk, b"") for chunk in cut(data, size)), unpack=unpack)

    def test_what_is_whole(self):
        """However it is cut: members one after another, empty ones too; in small pieces, whatever the ratio."""
        empty, second, zeros = gzip.compress(b""), gzip.compress(b"second"), bytes(5 << 20)
        for data, content, sizes in ((PACKED, CONTENT, range(1, len(PACKED) + 1)), (empty, b"", (1, 99)),
                (PACKED + empty + second, CONTENT + b"second", (1, 7, 9999)),
                (gzip.compress(zeros), zeros, (500, 99_999)), (second * 9999, b"second" * 9999, (1 << 20,))):
            for size in sizes:
                with self.subTest(data=data[-8:], length=len(data), size=size):
                    pieces = list(self.pieces(data, size))
                    self.assertTrue(content == b"".join(pieces))
                    self.assertLessEqual(max(map(len, pieces)), vr.INFLATED_SIZE)
                    self.assertTrue(data == b"".join(self.pieces(data, size, unpack=False)))

    def test_what_is_not_whole(self):
        """Empty, cut short at any byte, or followed by something else; an error says what it is instead."""
        junk = (b"x", b"\x1f", b"\0", b"<html>", PACKED[:5], b"\n", b"\x1f\x8bxx")
        for data, said in ((b"", "empty"), *((PACKED[:length], "short") for length in range(1, len(PACKED))),
                *((PACKED + end, "damaged after|short") for end in junk), (b"\0\0", "not gzip"),
                (b"see X-Amz-Signature=s3cr3t", r"not gzip.*text(?!.*s3cr3t)"),
                (b"<!DOCTYPE html><html>", "not gzip.*HTML"), (b"PK\x03\x04\0\0", "not gzip.*binary")):
            for size, unpack in product((1, 100_000), (True, False)):
                with self.subTest(data=data[-8:], length=len(data), size=size):
                    with self.assertRaisesRegex(vr.StoreError, said if size > 1 else ""):
                        list(self.pieces(data, size, unpack))

    def test_every_flipped_bit(self):
        """A flipped bit anywhere is an error, or lies where gzip keeps no content and changes none."""
        spare = [*range(3, 10), len(PACKED) - 9]  # flags, time and system, and bits behind the last block
        for position in range(8 * len(PACKED)):
            damaged = bytearray(PACKED)
            damaged[position // 8] ^= 1 << position % 8
            with suppress(vr.StoreError):
                self.assertEqual(CONTENT, b"".join(vr.inflate([bytes(damaged)])))
                self.assertIn(position // 8, spare)

    def test_what_comes_before_a_fault(self):
        content, got = bytes(random.Random(8).choices(b"abcdef", k=40_000)), bytearray()
        packed = gzip.compress(content)
        for (place, least), size in product(((len(packed) // 2, 18_000), (len(packed) - 7, 40_000)), (1, 5000, 99_999)):
            got.clear()
            with self.subTest(place=place, size=size), self.assertRaisesRegex(vr.StoreError, "damaged after"):
                for piece in vr.inflate(cut(packed[:place] + b"\xff" * 6 + packed[place + 6:], size)):
                    got += piece
            self.assertTrue(len(got) >= least and content.startswith(got[:least]))

    def test_pieces_come_at_once(self):
        chunks, read = list(cut(gzip.compress(random.Random(5).getrandbits(80_000).to_bytes(10_000, "big")), 1000)), []
        passing = vr.inflate((read.append(chunk) or chunk for chunk in chunks), unpack=False)
        self.assertTrue(all(len(read) <= number + 1 for number, _ in enumerate(passing, 1)))
        self.assertEqual(chunks, read)


class FolderCase(Folder, TestCase):
    def setUp(self):
        super().setUp()
        self.path = self.at("out.gz")

    def found(self) -> Dict[str, bytes]:
        return {name: read_bytes(self.at(name)) for name in os.listdir(self.folder)}


class TestAtomicFile(FolderCase):
    """A file appears whole or not at all, and only where a regular file can be."""

    def test_targets(self):
        """A link needs force, may be no stranger's, and must be named by the user; devices and FIFOs are refused."""
        write_bytes(self.path, b"old")
        here = partial(os.path.join, self.folder)
        os.mkfifo(here("fifo"))
        for name, target, owner in (("dangling", "nowhere", 0), ("to-fifo", "fifo", 0), ("own", "out.gz", os.getuid()),
                                    ("root's", "out.gz", 0), ("theirs", "out.gz", 65534), ("via", "theirs", 0)):
            os.symlink(target, here(name))
            if os.getuid() == 0:  # else all are our own
                os.lchown(here(name), owner, -1)
        refused = "symbolic link of another user" if os.getuid() == 0 else ""
        both, pipe, unnamed = (False, True), "no regular file `-o -`", "no regular file .*--output"
        for path, named, forces, said in (  # `said` without force is always said of what exists
                (here("new"), both, both, ""), ("surely-no-such-file-in-this-folder.gz", both, both, ""),
                (self.path, both, (False,), "exists .*--force"), (self.path, both, (True,), ""),
                *((here(name), (True,), (False,), "exists") for name in ("dangling", "own")),
                *((path, both, both, pipe) for path in (here("fifo"), os.devnull)),
                *((here(name), (False,), both, unnamed) for name in ("own", "to-fifo")),
                (here("to-fifo"), (True,), both, pipe),
                *((here(name), (True,), (True,), "") for name in ("own", "root's", "dangling")),
                *((here(name), (True,), (True,), refused) for name in ("theirs", "via")),
                (self.folder, both, both, "is a folder"), (here("gone", "x"), both, both, "no folder"),
                (os.path.join(self.path, "x"), both, both, "no folder")):
            for by_user, force in product(named, forces):
                with self.subTest(path=path, named=by_user, force=force):
                    found = ""
                    try:
                        vr.check_target(path, force=force, named=by_user)
                    except vr.Error as error:
                        found = " ".join((str(error), *error.hints))
                        self.assertIn(path if said != refused else self.folder, found)
                    self.assertRegex(found, said or r"\A\Z")

    def test_whole_or_not_at_all(self):
        """For the owner alone; an old file, or one that comes meanwhile, stays without force and until the end."""
        def theirs() -> None:
            write_bytes(self.path, b"theirs")

        def fail(error: BaseException) -> None:
            raise error
        errors = (vr.StoreError("cut short"), KeyboardInterrupt(), OSError(5, "Input/output error"), SystemExit(1))
        for before, meanwhile, force, said, after in (
                (None, bool, False, "", b"newer"), (b"old", bool, False, "exists", b"old"),
                (b"old", bool, True, "", b"newer"), (None, theirs, False, "exists", b"theirs"),
                (None, theirs, True, "", b"newer"), *((old, partial(fail, error), bool(old), ".", old)
                                                      for error in errors for old in (None, b"old"))):
            with self.subTest(before=before, meanwhile=meanwhile, force=force):
                if before:
                    write_bytes(self.path, before)
                found = ""
                try:
                    with vr.atomic_file(self.path, "", force=force) as new:
                        new.open_part("")
                        vr.write_all(new.file, b"new")
                        self.assertEqual(before, self.found().get("out.gz"))
                        meanwhile()
                        vr.write_all(new.file, b"er")
                except (vr.Error, *map(type, errors)) as error:
                    found = repr(error)
                self.assertRegex(found, said or r"\A\Z")
                self.assertEqual({"out.gz": after} if after else {}, self.found())
                if after == b"newer":
                    self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))
                if after:
                    os.unlink(self.path)

    def test_long_names(self):
        """As long as the file system allows, whatever the letters; alike ones have partial files of their own."""
        for name in ("a" * 255, "€" * 85, "." + "b" * 254):
            with vr.atomic_file(self.at(name), "", force=False) as new:
                new.open_part("")
            self.assertIn(name, self.found())
        self.assertEqual(2, len({vr.AtomicFile("a" * 240 + end, "", force=False).prefix for end in "pq"}))

    def test_a_file_system_without_links(self):
        """Where there are none, as on vfat and CIFS, a file appears as well, and one that has come meanwhile stays."""
        meanwhile: List[Callable[[], Any]] = [lambda: None]

        def refuse(event: str, _: Any) -> None:
            if meanwhile and event == "os.link":
                meanwhile[0]()
                raise OSError(1, "Operation not permitted")

        def put(path: str) -> None:
            with vr.atomic_file(path, "", force=False) as new:
                new.open_part("")
                new.file.write(b"ours")

        sys.addaudithook(refuse)
        self.addCleanup(meanwhile.clear)
        put(self.path)
        other = self.at("other")
        meanwhile[0] = partial(write_bytes, other, b"theirs")
        self.assertRaisesRegex(vr.Error, f"{other} exists", put, other)
        self.assertEqual({"out.gz": b"ours", "other": b"theirs"}, self.found())

    @skipUnless(hasattr(os, "O_PATH"), "a descriptor without locks is Linux's")
    def test_a_file_system_without_locks(self):
        """Where nothing can be locked, as on NFS without lock daemon, a download does without, and says so at -v."""
        unlockable = os.open(self.folder, os.O_PATH)
        self.addCleanup(os.close, unlockable)
        with self.assertLogs(vr.log, "INFO") as said:
            vr.AtomicFile(self.path, "", force=False)._lock(unlockable)
        self.assertIn(f"another download of {self.path} would not be noticed: Bad file descriptor", said.output[0])


# ---- Section 13: the queue ---------------------------------------------------

# What is done to a queue, and the keys it hands out at each `take` (all that are ready; the clock starts at 1000).
QUEUE_CASES: Any = {"keys come in order, each once": ("add a, add b, add a, add c, take, take", ("abc", "")),
    "a key added while it is worked on comes again, once, afterwards": (
        "add a, work, add a, add a, work, done a, take", ("a", "", "a")),
    "a key comes at its instant and not before, several in the order of their instants": (
        "at l 1030, at s 1010, at n 1020, at p 5, take, clock 1009.9, take, clock 1010, take, clock 1019, take, "
        "clock 1030, take, clock 9999, take", ("p", "", "s", "", "nl", "")),
    "a later instant replaces the one before": (
        "at a 1010, at a 1020, clock 1019, take, clock 1020, take, clock 1100, take", ("", "a", "")),
    "so does an earlier one": (
        "at a 1020, at a 1010, clock 1009, take, clock 1010, take, clock 1100, take", ("", "a", "")),
    "an instant said again fires once": (
        "at a 1010, at a 1020, at a 1010, clock 1010, take, clock 1100, take", ("a", "")),
    "never takes an instant back, one said afterwards comes": (
        "at a 1010, at a inf, at x inf, clock 1010, take, at a 1020, clock 1020, take", ("", "a")),
    "a look takes the place of one said for later": ("at a 1010, add a, take, clock 1010, take", ("a", "")),
    "an instant said while the key is worked on counts, if it is earlier than the one said in the end": (
        "add a, work, at a 1010, done a 1020, clock 1010, take, add b, work, at b 1040, done b 1030, clock 1030, take, "
        "clock 1040, take", ("a", "a", "b", "b", "")),
    "an instant that comes while the key is worked on counts afterwards": (
        "add a, work, at a 1010, clock 1010, work, done a, take", ("a", "", "a"))}


class TestQueue(TestCase):
    """A key at a time, each at its instant, none for two workers."""

    def setUp(self):
        self.now = 1000.0
        self.queue = vr.Queue(lambda: self.now)

    def do(self, deed: str, *words: str) -> Optional[str]:
        """One deed of QUEUE_CASES -> the keys that it takes, None for any other deed."""
        if deed == "clock":
            self.now = float(words[0])
        elif deed == "at":
            self.queue.add_at(words[0], float(words[1]))
        elif deed == "work":
            return self.queue.take(wait=False) or ""
        elif deed == "take":
            keys = []
            for key in iter(lambda: self.queue.take(wait=False), None):
                keys.append(key)
                self.queue.done(key)
            return "".join(keys)
        elif deed == "done":
            self.queue.done(words[0], *map(float, words[1:]))
        else:
            getattr(self.queue, deed)(*words)
        return None

    def test_cases(self):
        for what, (script, wanted) in QUEUE_CASES.items():
            with self.subTest(what):
                self.setUp()
                taken = [self.do(*step.split()) for step in script.split(",")]
                self.assertEqual(list(wanted), [keys for keys in taken if keys is not None])

    def test_waiting_takes_are_woken(self):
        """By the clock when it is turned to the instant of a key; by closing, after which nothing is handed out."""
        with ThreadPoolExecutor(3) as pool:
            self.queue.add_at("a", 5000)
            taken = [pool.submit(self.queue.take) for _ in range(3)]
            self.now = 5000.0
            self.queue.wake()
            wait_until(lambda: any(future.done() for future in taken))
            self.queue.close()
            self.queue.add("b")
            self.assertEqual([None, None, "a"], sorted((future.result(10) for future in taken), key=str))
        self.assertIsNone(self.queue.take())

# ---- Section 14: the server of a few pages ------------------------------------

def told(port: int, sent: bytes = b"", ends: bool = False) -> bytes:
    """What a server on loopback answers, until it closes, to whoever sends this, and perhaps ends its side."""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        with suppress(OSError):  # it may have heard enough
            sock.sendall(sent)
            if ends:
                sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(partial(sock.recv, 65536), b""))


class TestHttpServer(Cases):
    """Whoever comes gets one sentence, in bounds, and holds up nobody else."""

    def start(self, seconds: float = 0.4, host: str = "127.0.0.1", **settings: Any) -> Any:
        self.asked: List[Any] = []

        def answer(*request: Any) -> Any:
            self.asked.append(request)
            return vr.text_page(200, "fine")
        server = vr.HttpServer(f"{host}:0", answer)
        vars(server).update(seconds=seconds, **settings)
        self.addCleanup(server.close)
        self.port = server.listener.getsockname()[1]
        return server

    def test_what_is_answered(self):
        self.start()
        for sent, status, words in ((b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nIf-Match:  x \r\n\r\n", 200, b"fine\n"),
                (b"HEAD / HTTP/1.0\r\n\r\n", 200, b""), (b"GET / HTTP/1.1\r\n\r\n" * 2, 200, b"fine\n"),
                (b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nsomething", 405, b"only GET and HEAD"),
                (b"GET http://h/ HTTP/1.1\r\n\r\n", 400, b"HTTP/1.1"), (b"GET / HTTP/2.0\r\n\r\n", 400, b"HTTP/1.1"),
                (b"GET /\xc3\xa4 HTTP/1.1\r\n\r\n", 400, b"HTTP/1.1"), (b"\x16\x03\x01" * 50, 400, b"0.4 seconds"),
                (b"GET / HTTP/1.1\r\nA: " + b"x" * 9000, 400, b"8192 bytes"), (b"x" * 5_000_000, 400, b"8192 bytes"),
                (b"GET / HTTP/1.1\r\n", 400, b"0.4 seconds"), (b"", 400, b"0.4 seconds")):
            with self.subTest(sent[:40]):
                head, _, body = told(self.port, sent).partition(b"\r\n\r\n")
                self.assertTrue(head.startswith(b"HTTP/1.1 %d" % status) and words in body, (head, body))
                self.assertEqual((body.count(b"\n"), b"Server:" in head), (1 if words else 0, False))
                self.assertIn(b"\r\nConnection: close", head)
                self.assertIn(b"Allow: GET, HEAD" if status == 405 else b"Content-Length: ", head)
        self.assertEqual([("GET", "/a?b=c", {"host": "h", "if-match": "x"}), ("HEAD", "/", {}), ("GET", "/", {})],
                         self.asked)

    def test_megabytes(self):
        """Who sends them can send them, and then reads the answer."""
        self.start(20)
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            client.request("POST", "/", b"x" * 7_000_000)
            self.assertEqual(405, client.getresponse().status)

    def test_a_client_that_ends_its_side(self):
        self.start(60)
        for sent in (b"", b"GET", b"GET / HTTP/1.1\r\n\r\n"):
            self.assertIn(b"\r\n\r\n", told(self.port, sent, ends=True))

    def test_nobody_is_held_up(self):
        """By any number who are silent, trickle or never read: the one that did not move for longest gives way."""
        server, before = self.start(60), threading.active_count()
        for sent in (b"", b"GET / HTTP", b"GET / HTTP/1.1\r\n\r\n"):
            with ExitStack() as held:
                for _ in range(3 * server.most):
                    sock = held.enter_context(closing(socket.create_connection(("127.0.0.1", self.port), 20)))
                    sock.sendall(sent)
                    with within(5):
                        self.assertIn(b"fine", told(self.port, b"GET / HTTP/1.1\r\n\r\n", ends=True))
                wait_until(lambda: threading.active_count() <= before + server.most + 1, 10, "threads to end")
        wait_until(lambda: threading.active_count() <= before and not server.connections, 10, "all threads to end")

    def test_a_piece_that_nobody_takes(self):
        """A deadline ends the connection, though the page has no end."""
        server, ended = self.start(0.3), threading.Event()

        def endless() -> Iterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                ended.set()
        server.answer = lambda *_: (200, {}, endless())
        with closing(socket.create_connection(("127.0.0.1", self.port), 20)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            self.assertTrue(ended.wait(20))

    def test_addresses(self):
        """All of IPv4 and IPv6 without a host; what cannot be listened on is one sentence."""
        self.start(host="")
        self.assertIn(b"fine", told(self.port, b"GET / HTTP/1.1\r\n\r\n"))
        for address, words in ((f"127.0.0.1:{self.port}", "Address already in use"), ("192.0.2.1:0", ""),
                               ("no.such.invalid:0", ""), ("x" * 80 + ":0", ""), ("[::zz]:0", ""), (":65536", "65535")):
            with self.subTest(address), self.assertRaisesRegex(
                    vr.Error, rf"\Acannot listen on {re.escape(address)}: [ -~]*{words}[ -~]*\Z"):
                vr.HttpServer(address, lambda *_: vr.text_page(200, ""))
        for address in ("127.0.0.1:80", ":8081", "[::1]:9", "localhost:0"):
            self.assertEqual(address, vr.parse(["controller", "--health-address", address])[1].health_address)
        self.refuses(vr.parse, "is not HOST:PORT, such as", *(["controller", "--metrics-address", text] for text in (
            "80", "::1:80", "h:", "h:1x", "", "h :1", "[h]]:1", "h:１", "h:-1", "h:123456")), error=vr.UsageError)


USERS = ("admin", "limited", "reader", "controller", "stranger")  # who may talk to either cluster
# Python 3.13 verifies strictly: without the two it refuses a certificate.
KEY_IDENTIFIERS = ("subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid")
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def token_of(user: str) -> str:
    return "token-of-" + user


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """The first true value of condition(), or fail after a deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() <= deadline:
        value = condition()
        if value:
            return value
        pause.wait(0.005)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    if time.monotonic() - began >= seconds:
        raise AssertionError(f"it took {time.monotonic() - began:.2f} s, more than {seconds:g}")


class Clock:
    ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self.ahead

    def text(self, **later: float) -> str:
        """In RFC 3339 what it will show after this timedelta."""
        return (self() + timedelta(**later)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Certificate(NamedTuple):
    """The files of a server certificate for 127.0.0.1 and localhost, and of the authority that signed it."""
    ca: str
    cert: str
    key: str


def run_openssl(*arguments: str) -> None:
    done = subprocess.run(("openssl",) + arguments, stdout=PIPE, stderr=STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stdout.decode(errors='replace')}")


def issue_certificate(folder: str, name: str, names: str = "", days: str = "30", subject: str = "",
                      identifiers: Iterable[str] = KEY_IDENTIFIERS) -> None:
    """Have the authority in folder sign a certificate for alternative names: {name}.crt and {name}.key."""
    base = os.path.join(folder, name)
    constraints = "\n".join(("basicConstraints=CA:FALSE", *identifiers, ""))
    write_bytes(base + ".ext", (constraints + (f"subjectAltName={names}\n" if names else "")).encode())
    run_openssl("req", *NEW_KEY, "-keyout", base + ".key", "-out", base + ".csr", "-subj", f"/CN={subject or name}")
    run_openssl("x509", "-req", "-in", base + ".csr", "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key",
                "-CAcreateserial", "-days", days, "-out", base + ".crt", "-extfile", base + ".ext")


def make_certificate(folder: str, **more: Any) -> Certificate:
    others = itertools.chain(*(("-addext", text) for text in more.get("identifiers", ())))
    run_openssl("req", "-x509", *NEW_KEY, "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.crt", "-days", "30",
                "-subj", "/CN=test-ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign", *others)
    issue_certificate(folder, "tls", "DNS:localhost,DNS:*.localhost,IP:127.0.0.1", subject="loopback", **more)
    return Certificate(*(os.path.join(folder, name) for name in ("ca.crt", "tls.crt", "tls.key")))


@lru_cache(maxsize=None)
def shared_certificate() -> Certificate:
    """The one certificate of this process, made at the first call and removed at exit."""
    folder = tempfile.mkdtemp(prefix="velero-requests-tls-")
    atexit.register(shutil.rmtree, folder, True)
    return make_certificate(folder)


# ---- What both clusters share: the administrator's client, kubeconfig files, CRDs, namespaces

GROUPS = {plural: group for group, plurals in {
    "velero.io/v1": "downloadrequests serverstatusrequests backups restores backupstoragelocations",
    "v1": "secrets events namespaces configmaps pods services serviceaccounts endpoints nodes",
    "apps/v1": "deployments", "batch/v1": "jobs", "apiextensions.k8s.io/v1": "customresourcedefinitions",
    "rbac.authorization.k8s.io/v1": "roles rolebindings clusterroles clusterrolebindings",
    "policy/v1": "poddisruptionbudgets", "admissionregistration.k8s.io/v1":
    "validatingadmissionpolicies validatingadmissionpolicybindings",
    "authorization.k8s.io/v1": "subjectaccessreviews"}.items() for plural in plurals.split()}
MERGE = "application/merge-patch+json"


def resource_path(resource: str, namespace: Optional[str] = None, name: Optional[str] = None) -> str:
    """The API path of a resource that GROUPS knows; a slash in resource names a subresource."""
    plural, _, subresource = resource.partition("/")
    group = GROUPS[plural]
    parts = ["/api/v1" if group == "v1" else "/apis/" + group, *(["namespaces", namespace] if namespace else []),
             plural, quote(name or "", safe=""), subresource]
    return "/".join(filter(None, parts))


class Refused(RuntimeError):
    """The server answered a call of the administrator with an error status."""


class Admin:
    """A small Kubernetes client for tests that shares no line with the module under test."""

    def __init__(self, url: str, token: Optional[str], ca: Optional[str] = None) -> None:
        self.headers = {"Authorization": "Bearer " + token} if token else {}
        context = urllib3.util.ssl_.create_urllib3_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # urllib3 sets it from Python 3.13 on; old authorities fail it
        options: Document = {"ca_certs": ca, "ssl_context": context} if ca else {}
        self.pool = urllib3.connection_from_url(url, maxsize=8, timeout=urllib3.Timeout(connect=5, read=150),
                                                retries=False, **options)
        self.close = self.pool.close

    def raw(self, method: str, path: str, body: Any = None, content_type: str = "application/json",
            query: Optional[Document] = None, stream: bool = False) -> Any:
        """Send one request and return urllib3's response, whatever its status."""
        return self.pool.urlopen(method, path + ("?" + urlencode(query) if query else ""), preload_content=not stream,
                                 body=body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode(),
                                 redirect=False,
                                 headers={**self.headers, **({} if body is None else {"Content-Type": content_type})})

    def call(self, method: str, path: str, *body: Any, unless: int = 0, **options: Any) -> Document:
        """Send one request and return the document answered, nothing at the status `unless`, or raise Refused."""
        response = self.raw(method, path, *body, **options)
        if response.status >= 300 and response.status != unless:
            raise Refused(response.status, response.data[:500])
        return {} if response.status == unless else json.loads(response.data)

    def get(self, resource: str, name: str, namespace: Optional[str] = None) -> Document:
        return self.call("GET", resource_path(resource, namespace, name))

    def list(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Document:
        return self.call("GET", resource_path(resource, namespace), query=query)

    def create(self, resource: str, document: Document, namespace: Optional[str] = None, **options: Any) -> Document:
        """Create an object; apiVersion is filled in when it is missing."""
        return self.call("POST", resource_path(resource, namespace), {"apiVersion": GROUPS[resource], **document},
                         **options)

    def merge_patch(self, resource: str, name: str, patch: Document, namespace: Optional[str] = None) -> Document:
        return self.call("PATCH", resource_path(resource, namespace, name), patch, MERGE)

    def apply(self, text: str, **query: str) -> Any:
        """What `kubectl apply --server-side` does with a document of YAML -> urllib3's response."""
        document = yaml.safe_load(text)
        metadata, plural = document["metadata"], re.sub("y$", "ie", document["kind"].lower()) + "s"
        path = resource_path(plural, metadata.get("namespace"), metadata["name"])
        return self.raw("PATCH", path, text.encode(), "application/apply-patch+yaml",
                        {"fieldManager": "test", **query})

    def delete(self, resource: str, name: str, namespace: Optional[str] = None) -> Document:
        return self.call("DELETE", resource_path(resource, namespace, name))

    def watch(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Iterator[Document]:
        path = resource_path(resource, namespace)
        with closing(self.raw("GET", path, query={"watch": "1", **query}, stream=True)) as response:
            if response.status >= 300:
                raise Refused(response.status, response.read())
            pending = b""
            for part in response.stream(65536):
                *lines, pending = (pending + part).split(b"\n")
                yield from map(json.loads, lines)


class Cluster:
    """What a test may ask of either cluster."""
    kind: str
    url: str
    ca: Optional[str]
    admin: Admin

    def client(self, user: str) -> Admin:
        return Admin(self.url, token_of(user), self.ca)

    def kubeconfig(self, folder: str, user: str = "admin") -> str:
        cluster: Document = {"server": self.url}
        if self.ca:
            cluster["certificate-authority-data"] = base64.b64encode(read_bytes(self.ca)).decode()
        document = {"clusters": [{"name": "test", "cluster": cluster}], "current-context": "test",
                    "users": [{"name": user, "user": {"token": token_of(user)}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}]}
        path = os.path.join(folder, f"kubeconfig-{user}-{uuid.uuid4().hex[:6]}")
        return write_bytes(path, yaml.safe_dump(document).encode())

    def install_crds(self, documents: Iterable[Document]) -> None:
        """Make the cluster serve these CRDs, whatever dialect of them it served before."""
        for document in filter(None, documents):
            name, change = document["metadata"]["name"], {"spec": document["spec"]}
            if not self.admin.create("customresourcedefinitions", document, unless=409):
                self.admin.merge_patch("customresourcedefinitions", name, change)
            wait_until(lambda document=document: self.serves(document), 30, "the CRD " + name)

    def serves(self, crd: Document) -> bool:
        """Say whether the server answers in the CRD's dialect already; a fake always does."""
        return bool(crd)

    def new_namespace(self, name: str = "") -> str:
        name = name or "ns-" + uuid.uuid4().hex[:10]
        self.admin.create("namespaces", {"kind": "Namespace", "metadata": {"name": name}}, unless=409)
        return name

    def clear(self, namespace: str, *resources: str) -> None:
        """Delete all objects of these resources in the namespace, or every one that a test can have left there."""
        for resource in resources or ("secrets", *(name for name, group in GROUPS.items() if group == "velero.io/v1")):
            self.admin.raw("DELETE", resource_path(resource, namespace))


# ---- HTTP/1.1 over loopback: what the fakes are built on, and the one vocabulary of faults

class Request:
    """One request as it came over the wire; target is the raw request line's, unfolded and undecoded."""

    def __init__(self, method: str, target: str, headers: List[Tuple[str, str]], body: bytes) -> None:
        self.method, self.target, self.body, self.header_list = method, target, body, headers
        self.raw_path, _, self.raw_query = target.partition("?")
        self.path = unquote(self.raw_path)
        self.query = dict(parse_qsl(self.raw_query, keep_blank_values=True))
        self.headers = {name.lower(): value for name, value in headers}
        self.content_type = self.headers.get("content-type", "").partition(";")[0].strip()
        self.user: Optional[str] = None
        self.parsed: Any = None
        self.status = 0
        self.at = time.monotonic()


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Any = (("Content-Type", "application/json"),)


STREAM = Answer(0, b"")  # stands for the answer to a watch, which is no single answer


SILENT = threading.Event()  # nobody sets it


class Fault(SimpleNamespace):
    """A scripted misbehaviour of some requests, used up after some times; `hits` counts how often it struck."""

    def strikes(self, request: Request) -> bool:
        struck = self.left > 0 and self.method in (None, request.method) and self.path_part in request.target
        self.left, self.hits = self.left - struck, self.hits + struck
        return bool(struck)


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.reader = sock.makefile("rb")

    def receive(self) -> Optional[Request]:
        """Read the next request, or return None at the end of the connection, or where no HTTP is spoken."""
        method, _, rest = self.reader.readline(65537).decode("latin-1").partition(" ")
        target, version, _ = rest.partition(" HTTP/1.")
        if not version:
            return None
        lines = iter(lambda: self.reader.readline(65537).strip(b"\r\n").decode("latin-1"), "")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        body = self.reader.read(length)
        return Request(method, target, headers, body) if len(body) == length else None  # the client left in it

    def peer_has_left(self) -> bool:
        """Say whether the client closed its side; nobody pipelines, so anything to read means the end."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def cut(self) -> None:
        """End the connection from another thread than its own, which closes it then.

        OpenSSL knows a socket by its number: were it closed here, what its thread still writes would go into whatever
        has that number next. And SSLSocket.shutdown would let that thread go on in plain text."""
        with suppress(OSError):
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection for good; only for the thread that serves it."""
        self.cut()
        self.reader.close()
        self.socket.close()


def head(status: int, headers: Iterable[Tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers), "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def packed(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def changed(answer: Answer, status: int = 0, body: Any = None, headers: Any = ()) -> Answer:
    """The answer with another status, body (bytes, str, a document, or a function of the true one), or headers."""
    body = packed(body) if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
    named = dict(headers)  # None takes one away
    body = answer.body if body is None else body(answer.body) if callable(body) else body
    return Answer(status or answer.status, body, (*(pair for pair in answer.headers if pair[0] not in named),
                                                  *(pair for pair in named.items() if pair[1] is not None)))


class LoopbackServer:
    """A threaded HTTP/1.1 server on 127.0.0.1 with scripted faults and a request log; its Date follows its clock."""
    clock = staticmethod(time.time)

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None) -> None:
        self.requests: List[Request] = []
        self.bugs: List[str] = []
        self.faults: List[Fault] = []
        self.closing = threading.Event()
        self._connections: Dict[Connection, None] = {}
        self._log_lock = threading.Lock()
        self._context = self._tls_context(tls, certificate)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self.host = f"127.0.0.1:{self.port}"
        self.url = ("https://" if tls else "http://") + self.host
        self.start = threading.Thread(target=self._accept, name="loopback-accept", daemon=True).start

    def _tls_context(self, tls: bool, certificate: Optional[Certificate]) -> Optional[ssl.SSLContext]:
        self.ca, *pair = (certificate or shared_certificate()) if tls else (None,)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if context:
            context.load_cert_chain(*pair)
        return context

    def _accept(self) -> None:
        with suppress(OSError):  # the listener has been closed
            while True:
                accepted, _ = self._listener.accept()
                threading.Thread(target=self._converse, args=(accepted,), name="loopback", daemon=True).start()

    def _converse(self, accepted: socket.socket) -> None:
        """Answer the requests of one connection until either side ends it."""
        connection: Any = accepted
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._context.wrap_socket(accepted, server_side=True) if self._context else accepted
            connection = Connection(connection)
            with self._log_lock:
                self._connections[connection] = None
            while not self.closing.is_set():
                request = connection.receive()
                if request is None or not self._respond(request, connection):
                    return
        except OSError:
            pass  # the client went away, or does not speak TLS: that is its own business
        except Exception:  # pylint: disable=broad-except
            self.bugs.append(traceback.format_exc())  # a mistake of the fake's own, for close() to show
        finally:
            with self._log_lock:
                self._connections.pop(connection, None)
            connection.close()

    def _respond(self, request: Request, connection: Connection) -> bool:
        self.identify(request)
        with self._log_lock:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.strikes(request)), None)
        goes_on = self._misbehave(request, connection, **fault.options) if fault else self.answer(request, connection)
        return goes_on and request.headers.get("connection", "").lower() != "close"

    def _misbehave(self, request: Request, connection: Connection, *, hang: Any = b"", apply: bool = False,
                   drop: bool = False, answer: Any = None, wire: Any = None, chunks: Optional[Iterable[Any]] = None,
                   cut: bool = False, cut_after: int = sys.maxsize, pause_after: int = 0, gate: Any = b"",
                   **changes: Any) -> bool:
        self._play([hang], connection)
        made_up = chunks is not None or "status" in changes
        true = self.handle(request) if apply or not (made_up or drop) else None
        if drop:
            return False
        if true is STREAM:
            return self.answer(request, connection)
        base = Answer(200, b"", (("Transfer-Encoding", "chunked"),) if chunks is not None else ())
        scripted = changed(base if made_up else true, **changes)
        response = self.whole(request, answer(request, scripted) if answer else scripted, dated=not wire)
        start = body_start(response)
        response, pause = response[:start + cut_after], start + pause_after
        self._play(wire(response) if wire else [response[:pause], gate, response[pause:]], connection)
        if chunks is not None:
            self._play((chunk(piece) if isinstance(piece, bytes) else chunk(packed(piece) + b"\n") if isinstance(
                piece, dict) else piece for piece in itertools.chain(chunks, [] if cut else [b""])), connection)
        return not (wire or cut) and cut_after == sys.maxsize

    def _play(self, pieces: Iterable[Any], connection: Connection) -> None:
        """Send bytes, let seconds pass, and wait until the test sets an Event, the client leaves or we close."""
        for piece in pieces:
            if isinstance(piece, threading.Event):
                while not (piece.wait(0.02) or self.closing.is_set() or connection.peer_has_left()):
                    pass
            elif isinstance(piece, float):
                self.closing.wait(piece)
            else:
                connection.socket.sendall(piece)

    def whole(self, request: Request, answer: Answer, dated: bool = True) -> bytes:
        headers, bodiless = list(answer.headers), answer.status in (204, 304)
        request.status = answer.status
        if not bodiless and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
            headers.append(("Content-Length", str(len(answer.body))))
        headers += [("Date", formatdate(self.clock(), usegmt=True))] if dated else []
        return head(answer.status, headers) + (b"" if bodiless or request.method == "HEAD" else answer.body)

    def send(self, request: Request, connection: Connection, answer: Answer) -> bool:
        connection.socket.sendall(self.whole(request, answer))
        return True

    def identify(self, request: Request) -> None:
        """Fill in who calls."""

    def answer(self, request: Request, connection: Connection) -> bool:
        return self.send(request, connection, self.handle(request))

    def handle(self, request: Request) -> Answer:
        raise NotImplementedError

    def script(self, method: Optional[str] = None, path_part: str = "", times: int = 1, **options: Any) -> Fault:
        """Make the next matching requests go wrong, as the options say.

        status, headers, body: this answer, as `changed` takes them; without status the true one, changed in these.
        answer=function(request, answer): another answer.
        apply=True: the request has its effect, and only its true answer is lost.
        hang=Event: wait for it first.  drop=True: close the connection without an answer.
        cut_after=N: close it after N bytes of body.  pause_after=N, gate=Event: wait for it after N bytes of body.
        wire=function(response): the pieces to send instead of these bytes, before the connection is closed.
        chunks=pieces, cut=True: a chunked body, maybe without the last chunk; a document is a chunk with a line.
        A piece is bytes to send, an Event to wait for, or seconds to let pass.
        """
        fault = Fault(method=method, path_part=path_part, left=times, hits=0, options=options)
        with self._log_lock:
            self.faults.append(fault)
        return fault

    def unscript(self, all_struck: bool = True) -> None:
        """Forget all scripted faults, each of which must have struck."""
        with self._log_lock:
            idle = [(fault.method, fault.path_part, fault.options) for fault in self.faults if not fault.hits]
            self.faults.clear()
        if idle and all_struck:
            raise AssertionError(f"scripted and never struck: {idle}")

    def seen(self, method: Optional[str] = None, path_part: str = "", user: Optional[str] = None,
             status: Optional[int] = None) -> List[Request]:
        with self._log_lock:
            return [request for request in self.requests
                    if method in (None, request.method) and path_part in request.target
                    and user in (None, request.user) and status in (None, request.status)]

    def count(self, *which: Any, **more: Any) -> int:
        return len(self.seen(*which, **more))

    def forget(self) -> None:
        with self._log_lock:
            self.requests.clear()

    def cut_connections(self) -> None:
        """Cut every open connection, as a restart of the server would."""
        with self._log_lock:
            connections = list(self._connections)
        for connection in connections:
            connection.cut()

    def close(self) -> None:
        """Stop serving and close every connection; no bug may have shown, and every scripted fault must have struck."""
        self.closing.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept()
        self._listener.close()
        self.cut_connections()
        self.unscript()
        if self.bugs:
            raise AssertionError(self.bugs[0])


# ---- FakeCluster: what the module reads of kube-apiserver, both dialects of the status, and no more

API_PATH = re.compile(r"^/apis?/(v1|[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)(?:/([^/]+))?(?:/([^/]+))?$")
OBJECT_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
SERVER_OWNS = ("creationTimestamp", "deletionTimestamp", "generation", "managedFields", "name", "namespace",
               "resourceVersion", "uid")
BUILT_IN = ("Namespace", "CustomResourceDefinition", "Secret", "Event", "ConfigMap", "Deployment", "Service", "Pod")
TRUSTING = ssl._create_unverified_context()  # as the API server trusts what it leads to
PROXIED = re.compile(r"/api/v1/namespaces/([^/]+)/services/([^/]+)/proxy(/.*)")
VERBS = {("GET", True): "get", ("GET", False): "list", ("POST", False): "create", ("PATCH", True): "patch",
         ("DELETE", True): "delete", ("DELETE", False): "deletecollection"}  # by method and whether a name is given


class Failure(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                         "reason": reason, "code": code}


def json_answer(document: Document, status: int = 200) -> Answer:
    return Answer(status, packed(document) + b"\n")


def merge(target: Any, patch: Any) -> Any:
    """Apply a merge patch as RFC 7386 section 2 says, without touching target."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        merged[name] = merge(merged.get(name), value)
        if value is None:
            del merged[name]
    return merged


def violations(value: Any, schema: Document, path: str) -> Iterator[str]:
    """Yield the paths at which a value lacks what its schema requires, or is none of those that it lists."""
    if value not in schema.get("enum", [value]):
        yield path
    elif isinstance(value, dict):
        yield from (f"{path}.{name}" for name in schema.get("required", ()) if name not in value)
        for name, rule in schema.get("properties", {}).items():
            yield from violations(value[name], rule, f"{path}.{name}") if name in value else ()


def selector(query: Dict[str, str], namespace: str) -> Callable[[Document], bool]:
    """A test on documents for the namespace of a path, and the label and the field selector of its query."""
    terms = [term for term in query.get("labelSelector", "").split(",") if term]
    labels = [re.match(r"([\w./-]+)(=|!=)([\w.-]*)$", term) for term in terms]
    name = query.get("fieldSelector", "").rpartition("metadata.name=")[2]
    if None in labels:
        raise Failure(400, "BadRequest", "unable to parse requirement")
    return lambda document: (
        namespace in ("", document["metadata"].get("namespace")) and name in ("", document["metadata"]["name"])
        and all(((document["metadata"].get("labels") or {}).get(label[1]) == label[3]) == (label[2] == "=")
                for label in labels if label))


class Kind:
    def __init__(self, api_version: str, plural: str, kind: str, schema: Document, status: bool = False) -> None:
        self.api_version, self.plural, self.kind, self.schema, self.status = api_version, plural, kind, schema, status
        self.group = api_version.rpartition("/")[0]
        self.full_name = f"{plural}.{self.group}".rstrip(".")
        self.objects: Dict[Tuple[str, str], Document] = {}
        self.forget(0)

    def forget(self, version: int) -> None:
        """Make the versions before this one too old."""
        self.oldest = version
        self.pages: Dict[str, Tuple[int, List[Document]]] = {}  # continue token -> version, what is still to come

    def find(self, namespace: str, name: str) -> Document:
        if (namespace, name) not in self.objects:
            raise Failure(404, "NotFound", f'{self.full_name} "{name}" not found')
        return self.objects[namespace, name]


class Event(NamedTuple):
    """What is sent down the watches on a kind that match the document, or of a test's own down those of a path."""
    line: Optional[bytes]  # None ends the watch
    path_part: str = ""
    version: int = 0
    kind: Optional[Kind] = None
    document: Document = {}


class FakeCluster(LoopbackServer, Cluster):
    """A loopback Kubernetes API that answers what the module reads as kube-apiserver 1.34 does."""
    kind = "fake"

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None) -> None:
        super().__init__(tls, certificate)
        self.tokens = {token_of(user): user for user in USERS}
        self._lock = threading.Condition()
        self._version = 100
        self._events: List[Event] = []
        self._watches: List[Request] = []  # those that are open
        self._kinds = {(GROUPS[plural], plural): Kind(GROUPS[plural], plural, kind, {})
                       for plural, kind in ((kind.lower() + "s", kind) for kind in BUILT_IN)}
        self._grants: List[Any] = []
        self._denials: List[Any] = []
        self.backends: Dict[str, Tuple[str, List[int]]] = {}  # by namespace the Service's one port and those behind it
        self.logs: Dict[str, List[bytes]] = {}  # by pod, lines that begin with their time
        self.start()
        self.admin = self.client("admin")
        self.new_namespace("default")
        self.forget()

    def close(self) -> None:
        self.admin.close()
        super().close()

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Allow what these RBAC PolicyRules say to the user in the namespace ("" means everywhere)."""
        self._grants.extend((user, namespace, rule) for rule in rules)

    def limit(self, user: str, *verbs: str, resource: str = "*", namespace: Optional[str] = None) -> None:
        """Forbid verbs (none means all) on a resource, such as downloadrequests/status, even to the admin."""
        self._denials.append((user, verbs, resource, namespace))

    def unlimit(self) -> None:
        self._denials = []

    def compact(self) -> None:
        """Make all versions but the newest too old for a watch and for a continue token."""
        with self._lock:
            self._version += 1
            for kind in self._kinds.values():
                kind.forget(self._version)

    def watches(self, path_part: str = "") -> List[str]:
        with self._lock:
            return [request.target for request in self._watches if path_part in request.target]

    def push(self, event: Optional[Document], path_part: str = "", *about: Any) -> None:
        """Send an event, of the test's own unless it is `about` something, down the open watches; None ends them."""
        with self._lock:
            self._events.append(Event(packed(event) + b"\n" if event else None, path_part, *about))
            self._lock.notify_all()

    def log(self, pod: str, *lines: bytes) -> None:
        """Let a pod log lines, each of which begins with its time."""
        with self._lock:
            self.logs.setdefault(pod, []).extend(lines)
            self._events.append(Event(b"".join(line + b"\n" for line in lines), f"/{pod}/"))
            self._lock.notify_all()

    def cut_watches(self, path_part: str = "") -> None:
        with self._lock:
            self.push(None, path_part)
            self._watches = [request for request in self._watches if path_part not in request.target]

    def send_bookmarks(self) -> None:
        """Send a bookmark with the newest version down every watch that asked for bookmarks."""
        for kind in list(self._kinds.values()):
            about = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"resourceVersion": self.version}}
            for path in self.watches(f"/{kind.plural}?"):
                if "allowWatchBookmarks=" in path:
                    self.push({"type": "BOOKMARK", "object": about}, path)

    @property
    def version(self) -> str:
        return str(self._version)

    def identify(self, request: Request) -> None:
        token = request.headers.get("authorization", "").partition("Bearer ")[2]
        request.user = self.tokens.get(token) if token else "system:anonymous"
        request.parsed = json.loads(request.body or b"null")

    def _proxy(self, request: Request, connection: Connection, namespace: str, service: str, path: str) -> bool:
        """Hand a request on to a Service's backend without the caller's identity, and its answer back as it comes.
        Nobody may rely on the length of what is asked for without `Accept-Encoding: identity`."""
        scheme, name, port_name = service.split(":")
        try:
            with self._lock:
                self._authorize(request, "get", self._kinds["v1", "services"], namespace, service, "proxy")
                served, ports = self.backends.get(namespace, (None, []))
            if served is None:
                raise Failure(404, "NotFound", f'services "{name}" not found')
            if not ports or served != port_name:
                raise Failure(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')
            far = socket.create_connection(("127.0.0.1", ports[0]), 30)
            far = TRUSTING.wrap_socket(far) if scheme == "https" else far
        except OSError as error:
            failure = Failure(503, "ServiceUnavailable", f"error trying to reach service: {error}")
            return self.send(request, connection, json_answer(failure.document, 503))
        except Failure as failure:
            return self.send(request, connection, json_answer(failure.document, failure.document["code"]))
        with far:
            kept = [(header, value) for header, value in request.header_list if not re.match(
                "authorization$|impersonate-|x-remote-", header, re.IGNORECASE)]
            lines = [f"{request.method} {path} HTTP/1.1", *map(": ".join, kept), "X-Forwarded-For: 127.0.0.1", "", ""]
            far.sendall("\r\n".join(lines).encode("latin-1"))
            answer = far.makefile("rb")
            for line in iter(answer.readline, b"\r\n"):
                if not line:
                    return False
                request.status = request.status or int(line.split()[1])
                known = "identity" in request.headers.get("accept-encoding", "") or "range" in request.headers
                if known or not line.lower().startswith(b"content-length:"):
                    connection.socket.sendall(line)
            connection.socket.sendall(b"\r\n")
            for piece in iter(lambda: answer.read1(65536), b""):
                connection.socket.sendall(piece)
        return False

    def answer(self, request: Request, connection: Connection) -> bool:
        proxied = PROXIED.fullmatch(request.raw_path)
        if proxied:
            return self._proxy(request, connection, *proxied.groups())
        asked, _, rest = request.path.partition("/containerLogs/")
        if rest and not asked:  # it stands in for a kubelet
            request.path = "/api/v1/namespaces/{}/pods/{}/log".format(*rest.split("/"))
        answer = STREAM if rest else self.handle(request)
        return self._watch(request, connection) if answer is STREAM else self.send(request, connection, answer)

    def _place(self, request: Request) -> Tuple[Optional[Kind], str, str, str]:
        match = API_PATH.match(request.path)
        version, namespace, plural, name, subresource = match.groups("") if match else ("",) * 5
        return self._kinds.get((version, plural)), namespace, name, subresource

    def handle(self, request: Request) -> Answer:
        try:
            with self._lock:
                if request.user is None:
                    raise Failure(401, "Unauthorized", "Unauthorized")
                kind, *place = self._place(request)
                if request.path.endswith("/selfsubjectaccessreviews"):
                    return self._review(request)
                return self._act(request, kind, *place) if kind else self._discover(request.path)
        except Failure as failure:
            return json_answer(failure.document, failure.document["code"])

    def _act(self, request: Request, kind: Kind, namespace: str, name: str, subresource: str) -> Answer:
        watches = not name and request.query.get("watch", "0") not in ("0", "false")
        verb = "watch" if watches else VERBS[request.method, bool(name)]
        self._authorize(request, verb, kind, namespace, name, subresource)
        if subresource == "log" and kind.find(namespace, name):
            return STREAM
        if subresource and not (subresource == "status" and kind.status):
            raise Failure(404, "NotFound", f'{kind.full_name} "{name}" not found')
        if verb == "create":
            return json_answer(self._create(kind, namespace, request.parsed), 201)
        if verb == "deletecollection":
            for key in [key for key in kind.objects if namespace in ("", key[0])]:
                self._remove(kind, key)
        if not name:
            return STREAM if watches else self._list(request, kind, namespace)
        document = kind.find(namespace, name)
        if verb == "patch":
            document = self._patch(kind, document, request.parsed, subresource, request.query.get("fieldManager"))
        elif "as=PartialObjectMetadata" in request.headers.get("accept", ""):
            document = {"kind": "PartialObjectMetadata", "metadata": document["metadata"]}
        elif verb == "delete":
            wanted = (request.parsed or {}).get("preconditions") or {}
            if any(document["metadata"][field] != value for field, value in wanted.items()):
                raise Failure(409, "Conflict", "the precondition does not match the record")
            document = self._remove(kind, (namespace, name))
        return json_answer(document)

    def _authorize(self, request: Request, verb: str, kind: Kind, namespace: str, name: str, subresource: str) -> None:
        resource = "/".join(filter(None, (kind.plural, subresource)))
        pinned = name or request.query.get("fieldSelector", "").rpartition("metadata.name=")[2]
        if not self._allows(request.user, verb, kind.group, resource, namespace, pinned):
            named, where = f' "{name}"' if name else "", f'in the namespace "{namespace}"'
            raise Failure(403, "Forbidden", f'{kind.full_name}{named} is forbidden: User "{request.user}" cannot '
                          f'{verb} resource "{resource}" in API group "{kind.group}" {where}')

    def _allows(self, asker: Optional[str], verb: str, group: str, resource: str, namespace: str, name: str) -> bool:
        denied = any(user == asker and verb in (verbs or [verb]) and what in ("*", resource)
                     and where in (None, namespace) for user, verbs, what, where in self._denials)
        return not denied and (asker == "admin" or any(
            user == asker and where in ("", namespace) and {verb, "*"} & set(rule["verbs"])
            and {group, "*"} & set(rule["apiGroups"]) and {resource, "*"} & set(rule["resources"])
            and name in (rule.get("resourceNames") or [name]) for user, where, rule in self._grants))

    def _review(self, request: Request) -> Answer:
        asked = request.parsed["spec"]["resourceAttributes"]
        allowed = self._allows(request.user, *map(asked.get, ("verb", "group", "resource", "namespace")), "")
        return json_answer({**request.parsed, "status": {"allowed": allowed}}, 201)

    def _discover(self, path: str) -> Answer:
        if path == "/version":
            return json_answer({"gitVersion": "v1.34.1"})
        version = re.sub(r"^/apis?/", "", path)
        rows = [{"name": kind.plural + subresource, "kind": kind.kind} for kind in self._kinds.values()
                if kind.api_version == version for subresource in ("", "/status")[:1 + kind.status]]
        return json_answer({"kind": "APIResourceList", "groupVersion": version, "resources": rows}) if rows else Answer(
            404, b"404 page not found\n", (("Content-Type", "text/plain; charset=utf-8"),))

    def _list(self, request: Request, kind: Kind, namespace: str) -> Answer:
        """A page; all pages of a list show the moment of the first."""
        limit, token = int(request.query.get("limit") or 0), request.query.get("continue")
        matches = selector(request.query, namespace)
        if token and token not in kind.pages:
            raise Failure(410, "Expired", "The provided continue parameter is too old")
        version, items = kind.pages[token] if token else (self._version, [
            document for _, document in sorted(kind.objects.items()) if matches(document)])
        page, rest = items[:limit or None], items[limit:] if limit else []
        more = uuid.uuid4().hex if rest else ""
        kind.pages.update({more: (version, rest)} if rest else {})
        return json_answer({"apiVersion": kind.api_version, "items": page, "kind": kind.kind + "List",
                            "metadata": {"continue": more, "resourceVersion": str(version)}})

    def _watch(self, request: Request, connection: Connection) -> bool:
        """Send what happens after a version, or that it is too old, and say that the connection may go on."""
        kind, namespace, name, _ = self._place(request)
        since, seconds = (int(request.query.get(name) or 0) for name in ("resourceVersion", "timeoutSeconds"))
        matches, deadline = selector(request.query, namespace), time.monotonic() + (seconds or 1800)
        with self._lock:
            news, at = [event for event in self._events if event.version > since], len(self._events)
            self._watches.append(request)
            if request.path.endswith("/log"):
                start, end = request.query["sinceTime"].encode()[:19], [Event(None)] * ("follow" not in request.query)
                news = [*(Event(line + b"\n") for line in self.logs.get(name, []) if line[:19] >= start), *end]
            elif since < kind.oldest:  # type: ignore[union-attr]
                gone = Failure(410, "Expired", f"too old resource version: {since}")
                news = [Event(packed({"type": "ERROR", "object": gone.document}) + b"\n"), Event(None)]
        try:
            connection.socket.sendall(self.whole(request, Answer(200, b"", (
                ("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")))))
            while not self.closing.is_set() and time.monotonic() < deadline:
                lines = [event.line for event in news if (event.kind is kind and matches(event.document)) or (
                    event.kind is None and event.path_part in request.target)]
                connection.socket.sendall(b"".join(map(chunk, itertools.takewhile(bool, lines))))
                if None in lines:
                    break
                with self._lock:
                    self._lock.wait_for(lambda at=at: len(self._events) > at, min(0.5, deadline - time.monotonic()))
                    news, at = self._events[at:], len(self._events)
                if not news and connection.peer_has_left():
                    raise ConnectionResetError("the client has left its watch")
            connection.socket.sendall(b"0\r\n\r\n")
            return True
        finally:
            with self._lock:
                self._watches = [other for other in self._watches if other is not request]

    def _create(self, kind: Kind, namespace: str, body: Document) -> Document:
        given = body.get("metadata") or {}
        if namespace:
            self._kinds["v1", "namespaces"].find("", namespace)
        name = given.get("name") or given["generateName"][:58] + uuid.uuid4().hex[:12]
        if (namespace, name) in kind.objects:
            raise Failure(409, "AlreadyExists", f'{kind.full_name} "{name}" already exists')
        owned = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": Clock().text(),
                 **({"namespace": namespace} if namespace else {}), **({"generation": 1} if kind.schema else {})}
        document = {name: value for name, value in body.items() if name != "status" or not kind.status}
        return self._store(kind, {"kind": kind.kind, "apiVersion": kind.api_version, **merge({}, document)}, owned)

    def _store(self, kind: Kind, document: Document, owned: Document, old: Optional[Document] = None) -> Document:
        """Keep a document that fits its schema, with the metadata that the server owns, in place of an old one."""
        name, kept = owned["name"], {name: value for name, value in (document.get("metadata") or {}).items()
                                     if name not in SERVER_OWNS and value}
        document = {**document, "metadata": dict(sorted({**kept, **owned}.items()))}
        wrong = [*violations(document, kind.schema, ""), *([] if OBJECT_NAME.match(name) else [".metadata.name"])]
        if wrong:
            raise Failure(422, "Invalid", f'{kind.kind}.{kind.group} "{name}" is invalid: '
                          + ", ".join(f"{field[1:]}: Invalid value" for field in wrong))
        if document == old:
            return document
        self._write(kind, (owned.get("namespace", ""), name), document)
        if kind.plural == "customresourcedefinitions":
            self._serve(document)
        return kind.find(owned.get("namespace", ""), name)

    def _write(self, kind: Kind, key: Tuple[str, str], after: Optional[Document]) -> None:
        self._version += 1
        before = kind.objects.pop(key, None)
        shown = dict(after or before or {})
        shown["metadata"] = {**shown["metadata"], "resourceVersion": self.version}
        if after is not None:
            kind.objects[key] = shown
        event = {"type": "DELETED" if after is None else "MODIFIED" if before else "ADDED", "object": shown}
        self.push(event, "", self._version, kind, shown)

    def _patch(self, kind: Kind, old: Document, patch: Document, subresource: str, manager: Optional[str]) -> Document:
        document = merge(old, patch)
        owned = {name: value for name, value in old["metadata"].items() if name in SERVER_OWNS}
        if manager:
            others = [entry for entry in owned.get("managedFields", ()) if entry["manager"] != manager]
            owned["managedFields"] = [*others, {"manager": manager, "operation": "Update"}]
        if document["metadata"].get("resourceVersion") not in (None, owned["resourceVersion"]):
            raise Failure(409, "Conflict", f'cannot patch {kind.full_name} "{owned["name"]}": it has been modified')
        if subresource:
            document = {**old, "status": document.get("status")}
        elif kind.status:
            document["status"] = old.get("status")
        document = {name: value for name, value in document.items() if value is not None}
        if "deletionTimestamp" in owned and not document["metadata"].get("finalizers"):
            self._write(kind, (owned["namespace"], owned["name"]), None)
            return document
        return self._store(kind, document, owned, old)

    def _remove(self, kind: Kind, key: Tuple[str, str]) -> Document:
        """Remove an object, or only mark it as deleted while it has finalizers."""
        old = kind.objects[key]
        if old["metadata"].get("finalizers"):
            return self._store(kind, old, {"deletionTimestamp": Clock().text(), **old["metadata"]}, old)
        self._write(kind, key, None)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _serve(self, crd: Document) -> None:
        """Serve a kind as its definition says from now on; another definition ends the watches of the one before."""
        spec, version = crd["spec"], crd["spec"]["versions"][0]
        kind = Kind(f"{spec['group']}/{version['name']}", spec["names"]["plural"], spec["names"]["kind"],
                    version["schema"]["openAPIV3Schema"], "status" in (version.get("subresources") or {}))
        before = self._kinds.get((kind.api_version, kind.plural))
        if before and (before.schema, before.status) == (kind.schema, kind.status):
            return
        if before:
            self.cut_watches(f"/{kind.plural}?")
            kind.objects = before.objects
        kind.forget(self._version)  # a new definition comes with a new cache, which knows nothing of earlier versions
        self._kinds[kind.api_version, kind.plural] = kind


# ---- FakeStore, and Signature Version 4 written from the AWS specification alone, so that it can judge the module's

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
SIGNED_TERMS = re.compile(r"(?P<key>.+?)/(?P<scope>(?P<day>\d{8})/(?P<region>[^/]*)/s3/aws4_request) "
                          rf"(?P<when>(?P=day)T\d{{6}}Z) (?P<expires>\d+) {ALGORITHM} .*\bhost\b")


def canonical(text: str, keep: str = "") -> str:
    """A part of a raw target, one character for each byte, with all but the unreserved (and `keep`) as %XX."""
    return quote(unquote(text, "latin-1"), keep, "latin-1")


def canonical_request(method: str, raw_path: str, raw_query: str, headers: Iterable[Tuple[str, str]],
                      signed: Iterable[str], payload: str) -> str:
    """The canonical request; S3 neither normalises the path nor encodes it twice."""
    values: Dict[str, List[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(signed)
    pairs = (part.replace("+", " ").partition("=")[::2] for part in raw_query.split("&") if part)
    query = sorted(f"{canonical(name)}={canonical(value)}" for name, value in pairs if name != "X-Amz-Signature")
    lines = [method, canonical(raw_path, "/") or "/", "&".join(query)]
    lines += [f"{name}:{','.join(values.get(name, ['']))}" for name in names]
    return "\n".join(lines + ["", ";".join(names), payload])


def string_to_sign(when: str, scope: str, request: str) -> str:
    return "\n".join((ALGORITHM, when, scope, hashlib.sha256(request.encode("utf-8")).hexdigest()))


def signature_of(secret: str, scope: str, text: str) -> str:
    key = ("AWS4" + secret).encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def presigned_url(url: str, access_key: str, secret_key: str, region: str, at: Optional[float] = None,
                  expires: int = 600, token: str = "", method: str = "GET", extra: str = "") -> str:
    """Sign a URL whose path is already encoded; extra is more raw query that is to be signed."""
    host, _, path = url.partition("://")[2].partition("/")
    when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() if at is None else at))
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    query = {"X-Amz-Algorithm": ALGORITHM, "X-Amz-Credential": f"{access_key}/{scope}", "X-Amz-Date": when,
             "X-Amz-Expires": expires, "X-Amz-SignedHeaders": "host"}
    query.update({"X-Amz-Security-Token": token} if token else {})
    raw = urlencode(query, quote_via=quote, safe="") + ("&" + extra if extra else "")
    request = canonical_request(method, "/" + path, raw, [("host", host)], ["host"], UNSIGNED)
    return f"{url}?{raw}&X-Amz-Signature=" + signature_of(secret_key, scope, string_to_sign(when, scope, request))


def xml_answer(content: str, status: int = 200) -> Answer:
    return Answer(status, ('<?xml version="1.0" encoding="UTF-8"?>\n' + content).encode(),
                  (("Content-Type", "application/xml"),))


class StoreError(Exception):
    def __init__(self, status: int, code: str, message: str = "", **elements: str) -> None:
        super().__init__(code)
        self.answer = xml_answer("<Error>" + "".join(f"<{name}>{escape(value)}</{name}>" for name, value in {
            "Code": code, "Message": message or code, **elements}.items()) + "</Error>", status)


class StoredObject(NamedTuple):
    body: bytes
    etag: str
    headers: Tuple[Tuple[str, str], ...]


class Store:
    """What a test may ask of either store."""
    url: str
    access_key: str
    secret_key: str
    region: str
    clock = staticmethod(time.time)

    def url_of(self, bucket: str, key: str, **options: Any) -> str:
        """A pre-signed path-style URL of our own making; options: of presigned_url."""
        own = {"access_key": self.access_key, "secret_key": self.secret_key, "region": self.region, "at": self.clock()}
        return presigned_url(f"{self.url}/{bucket}/" + quote(key), **{**own, **options})


class FakeStore(LoopbackServer, Store):
    """A loopback S3 server that believes no signature it has not recomputed itself."""
    kind = "fake"
    access_key, secret_key = "AKIAFAKESTORE", "fake-store-secret/+"
    page = 1000  # keys in one page of a listing

    def __init__(self, tls: bool = False, region: str = "us-east-1", certificate: Any = None) -> None:
        super().__init__(tls, certificate)
        self.region = region
        # More keys may be added: access key -> (secret, session token that must come with it or "").
        self.keys: Dict[str, Tuple[str, str]] = {self.access_key: (self.secret_key, "")}
        self.buckets: Dict[str, Dict[str, StoredObject]] = {}
        self.start()

    def create_bucket(self, bucket: str) -> None:
        self.buckets.setdefault(bucket, {})

    def put_with_etag(self, bucket: str, key: str, body: bytes, etag: str, **headers: str) -> None:
        """Store an object, its bucket too if need be; a header such as Content_Type is given back with it."""
        self.create_bucket(bucket)
        extra = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        self.buckets[bucket][key] = StoredObject(body, etag, extra or (("Content-Type", "binary/octet-stream"),))

    def put(self, bucket: str, key: str, body: bytes, **headers: str) -> None:
        self.put_with_etag(bucket, key, body, f'"{hashlib.md5(body).hexdigest()}"', **headers)

    def handle(self, request: Request) -> Answer:
        try:
            self._verify(request)
            bucket, _, key = request.path[1:].partition("/")  # path style, and no other
            if bucket not in self.buckets:
                raise StoreError(404, "NoSuchBucket")
            return self._object(request, self.buckets[bucket].get(key)) if key else self._list(request, bucket)
        except StoreError as error:
            return error.answer

    def _list(self, request: Request, bucket: str) -> Answer:
        """A page of the keys and folders; a token is the last name that has been shown."""
        prefix, after = request.query.get("prefix", ""), request.query.get("continuation-token", "")
        names = sorted({prefix + "".join(key[len(prefix):].partition("/")[:2]) for key in self.buckets[bucket]
                        if key.startswith(prefix)})
        left = [name for name in names if name > after]
        shown, rest = left[:self.page], left[self.page:]
        token = f"<NextContinuationToken>{escape(shown[-1])}</NextContinuationToken>" if rest else ""
        return xml_answer(f"<ListBucketResult><IsTruncated>{str(bool(rest)).lower()}</IsTruncated>{token}" + "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" if name.endswith("/") else
            f"<Contents><Key>{escape(name)}</Key></Contents>" for name in shown) + "</ListBucketResult>")

    def _object(self, request: Request, stored: Optional[StoredObject]) -> Answer:
        if stored is None:
            raise StoreError(404, "NoSuchKey")
        if request.headers.get("if-match") not in (None, stored.etag):
            raise StoreError(412, "PreconditionFailed")
        size, span = len(stored.body), re.match(r"^bytes=(\d+)-(\d*)$", request.headers.get("range", ""))
        headers = (("ETag", stored.etag), *stored.headers)
        begin, end = (int(span[1]), min(int(span[2] or size), size - 1)) if span else (0, -1)
        if span and begin >= size:
            raise StoreError(416, "InvalidRange")
        if begin > end:  # no range, or one to be ignored
            return Answer(200, stored.body, headers)
        return Answer(206, stored.body[begin:end + 1], (*headers, ("Content-Range", f"bytes {begin}-{end}/{size}")))

    def _verify(self, request: Request) -> None:
        if "authorization" in request.headers:
            raise StoreError(400, "InvalidArgument", "only one way to authenticate is allowed")
        *given, signature, given_token = (request.query.get("X-Amz-" + name, "") for name in (
            "Credential", "Date", "Expires", "Algorithm", "SignedHeaders", "Signature", "Security-Token"))
        if not signature:
            raise StoreError(403, "AccessDenied")
        when, signed = given[1], given[4].split(";")
        request.user, scope = self._check_terms(" ".join(given))
        if request.user not in self.keys:
            raise StoreError(403, "InvalidAccessKeyId", AWSAccessKeyId=request.user)
        secret, token = self.keys[request.user]
        if token != given_token:
            raise StoreError(400, "InvalidToken")
        if [name for name in request.headers if name.startswith(("x-amz-", "host")) and name not in signed]:
            raise StoreError(403, "AccessDenied", "a header that was not signed")
        parts = request.method, request.raw_path, request.raw_query, request.header_list
        right = canonical_request(*parts, signed, UNSIGNED)
        text = string_to_sign(when, scope, right)
        if signature_of(secret, scope, text) != signature:
            raise StoreError(403, "SignatureDoesNotMatch", AWSAccessKeyId=request.user, StringToSign=text,
                             CanonicalRequest=right)

    def _check_terms(self, text: str) -> Tuple[str, str]:
        malformed, terms = "AuthorizationQueryParametersError", SIGNED_TERMS.match(text)
        if not terms or int(terms["expires"]) > 604800:
            raise StoreError(400, malformed)
        if terms["region"] != self.region:
            raise StoreError(400, malformed, f"the region '{terms['region']}' is wrong; expecting '{self.region}'",
                             Region=self.region)
        age = self.clock() - datetime.strptime(terms["when"] + "+0000", "%Y%m%dT%H%M%SZ%z").timestamp()
        if not -900 <= age <= int(terms["expires"]):
            raise StoreError(403, "AccessDenied", "Request has expired" if age > 0 else "Request is not yet valid")
        return terms["key"], terms["scope"]


# ---- The real servers, one of each for a process: CRDs hold for a whole cluster

def free_port() -> int:
    """A loopback port that nobody uses, from below those that the kernel gives to others by itself."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(15000, 32000)))
            return int(probe.getsockname()[1])


def assets_folder(program: str = "kube-apiserver") -> Optional[str]:
    """The folder of the real servers (KUBEBUILDER_ASSETS) if it has this one."""
    folder = os.environ.get("KUBEBUILDER_ASSETS")
    return folder if folder and os.path.exists(os.path.join(folder, program)) else None


def stop_process(process: subprocess.Popen[bytes]) -> int:
    """End a process, first kindly, and return its exit code; ten seconds are more than a pass in hand can need."""
    process.terminate()
    try:
        return process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def answers(url: str, expected: bytes, **options: Any) -> bool:
    """Say whether a GET of the URL gives a body that contains this."""
    with urllib3.PoolManager(**options) as pool, suppress(urllib3.exceptions.HTTPError):
        return expected in pool.request("GET", url, retries=False, timeout=2.0).data
    return False


class RealServer:
    kind = "real"

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="velero-requests-real-")
        self.children: List[subprocess.Popen[bytes]] = []

    def run(self, ready: Callable[[], bool], *command: str) -> None:
        """Start a program and wait until it is ready, or show the end of its log and fail."""
        path = os.path.join(self.folder, os.path.basename(command[0]) + ".log")
        with open(path, "wb") as log:
            child = subprocess.Popen(command, stdin=DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        self.children.append(child)
        try:
            wait_until(lambda: child.poll() is not None or ready(), 60, command[0])
            if child.poll() is not None:
                raise RuntimeError(f"{command[0]} ended with exit code {child.poll()}")
        except BaseException:
            print(read_bytes(path)[-3000:].decode(errors="replace"), file=sys.stderr)
            self.close()
            raise

    def close(self) -> None:
        for child in reversed(self.children):
            stop_process(child)
        shutil.rmtree(self.folder, ignore_errors=True)


class RealCluster(RealServer, Cluster):
    """etcd and the real kube-apiserver over loopback https, in a temporary folder."""

    def __init__(self, assets: str) -> None:
        super().__init__()
        self.etcd_url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.url = f"https://127.0.0.1:{free_port()}"
        made = make_certificate(self.folder)
        self.ca, self.audit_log = made.ca, os.path.join(self.folder, "audit.log")
        self.limited: List[Tuple[str, Document]] = []
        self.admin = self.client("admin")
        self.run(lambda: answers(self.etcd_url + "/health", b"true"), os.path.join(assets, "etcd"), "--data-dir",
                 os.path.join(self.folder, "etcd"), "--listen-client-urls", self.etcd_url, "--advertise-client-urls",
                 self.etcd_url, "--listen-peer-urls", peer, "--unsafe-no-fsync")
        self.run(self.ready, os.path.join(assets, "kube-apiserver"), *self._flags(made))
        wait_until(lambda: self.admin.raw("GET", "/api/v1/namespaces/default").status == 200, 30, "the namespaces")

    def ready(self) -> bool:
        return answers(self.url + "/readyz", b"ok", ca_certs=self.ca, headers=self.admin.headers)

    def _flags(self, made: Certificate) -> List[str]:
        private, public, tokens, audited = (os.path.join(self.folder, name) for name in (
            "sa.key", "sa.pub", "tokens.csv", "audited"))
        write_bytes(audited, json.dumps({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
                {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
                {"level": "Metadata", "users": ["controller"]}, {"level": "None"}]}).encode())
        run_openssl("genrsa", "-out", private, "2048")
        run_openssl("rsa", "-in", private, "-pubout", "-out", public)
        with open(tokens, "w", encoding="ascii") as file:
            for user in USERS:
                file.write(f"{token_of(user)},{user},{user}" + (',"system:masters"\n' if user == "admin" else "\n"))
        return [f"--{name}={value}" for name, value in {
            "etcd-servers": self.etcd_url, "bind-address": "127.0.0.1", "advertise-address": "127.0.0.1",
            "secure-port": self.url.rpartition(":")[2], "cert-dir": self.folder, "tls-cert-file": made.cert,
            "tls-private-key-file": made.key, "client-ca-file": made.ca, "token-auth-file": tokens,
            "service-account-issuer": "https://kubernetes.default.svc", "service-account-key-file": public,
            "service-account-signing-key-file": private, "authorization-mode": "RBAC",
            "audit-policy-file": audited, "audit-log-path": self.audit_log,
            "disable-admission-plugins": "ServiceAccount", "service-cluster-ip-range": "10.0.0.0/24"}.items()]

    def serves(self, crd: Document) -> bool:
        spec, version = crd["spec"], crd["spec"]["versions"][0]
        plural, wanted = spec["names"]["plural"], "status" in (version.get("subresources") or {})
        base = f"/apis/{spec['group']}/{version['name']}"
        place = f"{base}/namespaces/default/{plural}"
        # Discovery may run ahead of the handler.  A method that no status knows tells: 405 where there is a
        # status subresource, 404 where there is none.
        found, probe, listed = (self.admin.raw(method, path) for method, path in (
            ("GET", base), ("POST", place + "/none/status"), ("GET", place)))
        names = [entry["name"] for entry in json.loads(found.data)["resources"]] if found.status == 200 else []
        if plural not in names or (plural + "/status" in names) != wanted or (listed.status, probe.status) != (
                200, 405 if wanted else 404):
            return False
        # A watch may still be refused with 429 while the server's cache of the kind is made anew.
        since = json.loads(listed.data)["metadata"]["resourceVersion"]
        watch = self.admin.raw("GET", f"{place}?watch=true&timeoutSeconds=1&resourceVersion={since}", stream=True)
        watch.close()
        return watch.status == 200

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Create a Role and its binding, and wait until the authorizer has seen them."""
        name, api = f"{user}-{uuid.uuid4().hex[:6]}", {"apiGroup": "rbac.authorization.k8s.io"}
        self.admin.create("roles", {"kind": "Role", "metadata": {"name": name}, "rules": list(rules)}, namespace)
        self.admin.create("rolebindings", {
            "kind": "RoleBinding", "metadata": {"name": name}, "roleRef": {"kind": "Role", "name": name, **api},
            "subjects": [{"kind": "User", "name": user, **api}]}, namespace)
        wait_until(lambda: self.may(user, namespace, rules[-1]["verbs"][0], rules[-1]["resources"][0],
                                    rules[-1].get("resourceNames", [""])[0]), 10, "the grant")

    def may(self, user: str, namespace: str, verb: str, resource: str, name: str = "") -> bool:
        plural, _, subresource = resource.partition("/")
        review = {"kind": "SubjectAccessReview", "spec": {"user": user, "resourceAttributes": {
            "namespace": namespace, "verb": verb, "group": GROUPS.get(plural, "velero.io").rpartition("/")[0],
            "resource": plural, "subresource": subresource, "name": name}}}
        return bool(self.admin.create("subjectaccessreviews", review)["status"]["allowed"])

    def limit(self, user: str, verb: str, resource: str, namespace: str) -> None:
        """Take one right out of the Roles that `grant` made for a user."""
        for role in self.admin.list("roles", namespace)["items"]:
            if role["metadata"]["name"].startswith(user):
                rules = [{**rule, "resources": [one], "verbs": [name for name in rule["verbs"]
                                                                if (one, name) != (resource, verb)]}
                         for rule in role["rules"] for one in rule["resources"]]
                self.limited.append((namespace, role))
                self.admin.merge_patch("roles", role["metadata"]["name"], {
                    "rules": [rule for rule in rules if rule["verbs"]]}, namespace)
        wait_until(lambda: not self.may(user, namespace, verb, resource), 10, "the limit")

    def unlimit(self) -> None:
        for namespace, role in self.limited:
            self.admin.merge_patch("roles", role["metadata"]["name"], {"rules": role["rules"]}, namespace)
        self.limited = []

    def audit(self, user: str, part: str) -> List[Document]:
        """What this user, the controller or a ServiceAccount, has asked of the API server at such paths."""
        lines = (line for line in read_bytes(self.audit_log).splitlines() if part.encode() in line)
        return [event for event in map(json.loads, lines)
                if event["user"]["username"] == user and part in event["requestURI"]]

    def count(self, _method: None, part: str, user: str, status: int) -> int:
        return sum(event["responseStatus"]["code"] == status for event in self.audit(user, part))

    def compact(self) -> None:
        with closing(Admin(self.etcd_url, None)) as etcd:
            revision = etcd.call("POST", "/v3/kv/range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
            etcd.call("POST", "/v3/kv/compaction", {"revision": revision, "physical": True})


class RealStore(RealServer, Store):
    """versitygw over a temporary folder: a bucket is a folder, an object a file."""
    access_key, secret_key, region = "AKIAREALSTORE", "real-store-secret", "us-east-1"
    ca: Optional[str] = None

    def __init__(self, assets: str) -> None:
        super().__init__()
        self.data = os.path.join(self.folder, "data")
        os.mkdir(self.data)
        self.host = f"127.0.0.1:{free_port()}"
        self.url = "http://" + self.host
        self.run(lambda: answers(self.url, b"<Error>"), os.path.join(assets, "versitygw"), "--port", self.host,
                 "--access", self.access_key, "--secret", self.secret_key, "--region", self.region, "posix", self.data)

    def create_bucket(self, bucket: str) -> None:
        os.makedirs(os.path.join(self.data, bucket), exist_ok=True)

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.create_bucket(bucket)
        with urllib3.PoolManager() as pool:
            response = pool.request("PUT", self.url_of(bucket, key, method="PUT"), body=body, retries=False)
        if response.status != 200:
            raise Refused(response.status, response.data)


@lru_cache(maxsize=None)
def real_server(start: Callable[[str], Any], program: str) -> Any:
    """The one real server of a kind in this process, started at the first call and stopped at exit."""
    assets = assets_folder(program)
    if not assets:
        raise SkipTest(f"no real server: KUBEBUILDER_ASSETS is not set or has no {program}")
    server = start(assets)
    atexit.register(server.close)
    return server


real_cluster = partial(real_server, RealCluster, "kube-apiserver")
real_store = partial(real_server, RealStore, "versitygw")


# ---- What worlds and checks are made of --------------------------------------

def download_request(name: Optional[str] = None, kind: str = "BackupLog", target: str = "b1", **more: Any) -> Document:
    metadata = {"name": name} if name else {"generateName": "made-"}
    return {"apiVersion": "velero.io/v1", "kind": "DownloadRequest", "metadata": metadata,
            "spec": {"target": {"kind": kind, "name": target}}, **more}


def server_answers(has_status: bool) -> Iterator[Tuple[str, str, Any, Any]]:
    """Yield what either cluster answers: method, path, body, and status and reason, or fields of what succeeds."""
    many, own, finalizers = DR, "downloadrequests/own", {"metadata.finalizers": ["a/b"]}
    status = "downloadrequests/a" + "/status" * has_status
    filled = {"phase": "Processed", "downloadURL": "u", "expiration": "2026-01-02T03:14:05Z"}
    for target in ({"kind": "Foo", "name": "x"}, {"name": "x"}, {"kind": None, "name": "x"}):
        yield "POST", many, {**download_request("bad"), "spec": {"target": target}}, "422 Invalid"
    for name, answer in (("x", {"kind": "DownloadRequest"}), ("x", "409 AlreadyExists"), ("Bad_Name", "422 Invalid")):
        yield "POST", many, download_request(name), answer
    yield "POST", many, download_request("a", status={"phase": "New"}), {
        "status": None if has_status else {"phase": "New"}, "metadata.generation": 1}
    yield "POST", many, {**download_request(), "metadata": {"name": "own", "labels": {"a": "b"}, "uid": "5"}}, {}
    yield "POST", "serverstatusrequests", {
        "apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {}, "status": {},
        "metadata": {"generateName": "velero-cli-", "creationTimestamp": None}}, {"apiVersion": "velero.io/v1"}
    yield "POST", "/apis/velero.io/v1/namespaces/nobody/downloadrequests", download_request("x"), "404 NotFound"
    yield from (("GET", path, None, "404 ") for path in ("/apis/velero.io/v2", "foos"))
    yield from ((method, many + "/none", {}, "404 NotFound") for method in ("GET", "PATCH", "DELETE"))
    yield "PATCH", many + "/a/status", {}, {} if has_status else "404 NotFound"
    for patch, answer in ((filled, {"status": filled}), ({"phase": "Failed"}, "422 Invalid"),
                          ({"phase": None}, {"status.phase": None})):
        yield "PATCH", status, {"status": patch}, answer
    yield "PATCH", many + "/a", {"status": {"phase": "New"}}, {"status.phase": None if has_status else "New"}
    yield "PATCH", own, {"metadata": {"resourceVersion": "1"}}, "409 Conflict"
    yield "PATCH", own, {"metadata": {"uid": None, "annotations": {"x": "y"}}, "spec": {"target": {"name": "c"}}}, {
        "spec.target": {"kind": "BackupLog", "name": "c"}, "metadata.annotations": {"x": "y"}}
    for query, names in (("", ["a", "own", "x"]), ("a%3Db", ["own"]), ("a%3Db,c%3Dd", []), ("a!%3Db", ["a", "x"])):
        yield "GET", f"{many}?labelSelector={query}", None, {"names": names}
    yield "GET", many + "?labelSelector=a%20b", None, "400 BadRequest"
    for pin in ({"uid": "xx"}, {"resourceVersion": "1"}):
        yield "DELETE", own, {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": pin}, "409 Conflict"
    for method, body, answer in (
            ("PATCH", {"metadata": {"finalizers": ["a/b"]}}, finalizers), ("DELETE", None, finalizers),
            ("PATCH", {"metadata": {"annotations": {"q": "r"}}}, finalizers),
            ("PATCH", {"metadata": {"finalizers": None}}, {}), ("GET", None, "404 NotFound")):
        yield method, own, body, answer
    yield from (("DELETE", many + "/a", None, {"status": "Success"}), ("DELETE", many, None, {}),
                ("GET", many + "/x", None, "404 NotFound"))


def look_up(document: Any, path: str) -> Any:
    """What stands at a path such as spec.target.kind, or None."""
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def item_names(listed: Document) -> List[str]:
    return [item["metadata"]["name"] for item in listed.get("items", [])]


def fetch(url: str, headers: Optional[Dict[str, str]] = None, ca: Optional[str] = None) -> Any:
    """GET exactly this target; a PoolManager would tidy up the path first."""
    parts = urllib3.util.parse_url(url)
    base = f"{parts.scheme}://{parts.netloc}"
    options: Document = {"ca_certs": ca} if ca else {}
    with urllib3.connection_from_url(base, timeout=20, retries=False, **options) as pool:
        return pool.urlopen("GET", url[len(base):], headers=headers, redirect=False)


# ---- Contract: the tools -----------------------------------------------------

LEAST = [{name: value for name, value in rule.items() if name} for rule in vr.CONTROLLER_RULES]  # without comments

FAR = "9999-12-31T23:59:59Z"
DR, SSR, BSL = "downloadrequests", "serverstatusrequests", "backupstoragelocations"
REASON = "velero-requests.io/reason"
MESSAGE = "velero-requests.io/message"
BEARER = re.compile("X-Amz-(Signature|Credential|Security-Token)=[0-9A-Za-z]{8}")
LOG = b"".join(b'time="2026-01-02T03:04:05Z" level=info msg="line %d"\n' % number for number in range(200))

# Where the artifacts of b1 and r1 lie (TestTargets compares that with Velero); 1.6 knows only the first six kinds.
KEYS = {kind: vr.TARGETS[kind].key.format(name="r1" if kind.startswith("Restore") else "b1") for kind in (
    "BackupLog", "BackupContents", "BackupVolumeSnapshots", "BackupResourceList", "RestoreLog", "RestoreResults",
    *vr.TARGETS)}


class Result(NamedTuple):
    code: int
    out: bytes
    err: str


@contextmanager
def environment(changes: Dict[str, Optional[str]]) -> Iterator[None]:
    """Set environment variables for a while; None takes one away."""
    before = dict(os.environ)
    wanted: Dict[str, Optional[str]] = {**before, **changes}
    os.environ.clear()
    os.environ.update({name: value for name, value in wanted.items() if value is not None})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def logger_kept() -> Iterator[logging.Logger]:
    logger = vr.log
    kept = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield logger
    finally:
        logger.handlers[:], logger.level, logger.propagate = kept


def run(*argv: str, env: Optional[Dict[str, Optional[str]]] = None) -> Result:
    """Run the command line in this process, with streams of its own, and return how it ended."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with environment(env or {}), logger_kept(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = int(vr.main(list(argv)))
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


class Program:
    """The command line as a process of its own, its output in files, ended by its own pid."""

    def __init__(self, folder: str, *argv: str, stdout: Any = None, env: Optional[Dict[str, str]] = None,
                 command: Iterable[str] = (sys.executable, MODULE)) -> None:
        base = os.path.join(folder, "program-" + uuid.uuid4().hex[:6])
        self.out_path, self.err_path = base + ".out", base + ".err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen([*command, *argv], cwd=folder, stdin=DEVNULL,
                stdout=out if stdout is None else stdout, stderr=err, env={**os.environ, **(env or {})})

    def text(self) -> str:
        with open(self.out_path, errors="replace") as out, open(self.err_path, errors="replace") as err:
            return out.read() + err.read()

    def end(self, number: Optional[int] = None, seconds: float = 15) -> Result:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        with open(self.out_path, "rb") as out, open(self.err_path, encoding="utf-8") as err:
            return Result(code, out.read(), err.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def instant(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def keys_file(access_key: str, secret_key: str) -> str:
    return f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key={secret_key}\n"


def secret_with(name: str, text: str, key: str = "keys") -> Document:
    return {"kind": "Secret", "metadata": {"name": name}, "data": {key: base64.b64encode(text.encode()).decode()}}


def location_in(store: Any, name: str, bucket: str, config: Optional[Document] = None, secret: Optional[str] = "cloud",
                **storage: Any) -> Document:
    """A location in a bucket of the store, with more or other values of spec.config and spec.objectStorage."""
    where = {"region": store.region, "s3Url": store.url, "s3ForcePathStyle": "true"}
    return {"kind": "BackupStorageLocation", "metadata": {"name": name}, "spec": {
        "provider": "aws", "config": {**where, **(config or {})}, "objectStorage": {"bucket": bucket, **storage},
        **({"credential": {"name": secret, "key": "keys"}} if secret else {})}}


def reason_of(document: Optional[Document]) -> str:
    return str((look_up(document, "metadata.annotations") or {}).get(REASON, ""))


class World(Folder):
    """A cluster in one dialect, a store, and for each test a namespace with a backup and a restore in it."""
    status_subresource = False
    cluster: Any
    store: Any

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return FakeCluster(tls=True), FakeStore()

    @classmethod
    def crds(cls) -> List[Document]:
        return vr.crd_manifests(cls.status_subresource)

    @classmethod
    def setUpClass(cls):
        crds = cls.crds()
        cls.cluster, cls.store = cls.start()
        for server in [server for server in (cls.cluster, cls.store) if server.kind == "fake"]:
            cls.addClassCleanup(server.close)
        cls.cluster.install_crds(crds)

    def setUp(self):
        for server in [server for server in (self.cluster, self.store) if server.kind == "fake"]:
            self.addCleanup(server.unscript)
        super().setUp()
        self.set_environment("KUBECONFIG", "VELERO_NAMESPACE")
        self.log = self.listen(logging.DEBUG)
        self.admin: Admin = self.cluster.admin
        self.namespace: str = self.cluster.new_namespace()
        self.kubeconfig: str = self.cluster.kubeconfig(self.folder)
        self.clock = Clock()
        self.controllers: List[Any] = []
        self.seed()

    def seed(self) -> None:
        self.make_secret("cloud")
        self.make_location("default")
        self.make_backup("b1")
        self.make_restore("r1", "b1")

    def path(self, rest: str = DR) -> str:
        return f"/namespaces/{self.namespace}/{rest}"

    def move(self, namespace: str = "") -> str:
        """Go on in this namespace, or in a new one with all that a request needs."""
        self.namespace = namespace or self.cluster.new_namespace()
        if not namespace:
            self.seed()
        return self.namespace

    def make(self, resource: str, kind: str, name: str, **more: Any) -> Document:
        return self.admin.create(resource, {"kind": kind, "metadata": {"name": name}, **more}, self.namespace)

    def make_secret(self, name: str, key: str = "keys", text: Optional[str] = None) -> None:
        text = keys_file(self.store.access_key, self.store.secret_key) if text is None else text
        self.admin.create("secrets", secret_with(name, text, key), self.namespace)

    def make_location(self, name: str, config: Optional[Document] = None, secret: Optional[str] = "cloud",
                      **storage: Any) -> None:
        values = {"bucket": self.namespace, "config": config, "secret": secret, **storage}
        self.admin.create(BSL, location_in(self.store, name, **values), self.namespace)

    def make_backup(self, name: str, location: str = "default", phase: str = "Completed") -> None:
        self.make("backups", "Backup", name, spec={"storageLocation": location}, status={"phase": phase})

    def lay_out(self, name: str, config: Optional[Document] = None, secret: str = "", **storage: Any) -> str:
        """Create a location, with a Secret of its own if it has a text, and a backup with a log there -> its name."""
        if secret:
            self.make_secret(name, text=secret)
        self.make_location(name, config, name if secret else None, **storage)
        self.make_backup(name, name)
        self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(LOG))
        return name

    def make_restore(self, name: str, backup: str, phase: str = "Completed") -> None:
        self.make("restores", "Restore", name, spec={"backupName": backup}, status={"phase": phase})

    def put(self, kind: str = "BackupLog", body: bytes = LOG, prefix: str = "", **headers: str) -> bytes:
        """Store the artifact of b1 or r1, compressed as Velero does, and return what lies in the bucket."""
        stored = gzip.compress(body)
        self.store.put(self.namespace, prefix + KEYS[kind], stored, **headers)
        return stored

    def ask(self, kind: str = "BackupLog", name: str = "b1", **more: Any) -> str:
        """Create a DownloadRequest as the velero CLI does, and return its name."""
        document = download_request(None, kind, name, **more)
        return str(self.admin.create(DR, document, self.namespace)["metadata"]["name"])

    def ask_status(self, **more: Any) -> str:
        document = {"kind": "ServerStatusRequest", "metadata": {"generateName": "velero-cli-"}, "spec": {}, **more}
        return str(self.admin.create(SSR, document, self.namespace)["metadata"]["name"])

    def fill(self, name: str, resource: str = DR, **status: Any) -> str:
        """Fill in a status the way of the dialect, as a stranger may, and return the name."""
        subresource = "/status" if self.status_subresource else ""
        self.admin.merge_patch(resource + subresource, name, {"status": status}, self.namespace)
        return name

    def look(self, name: str, resource: str = DR) -> Optional[Document]:
        return self.admin.call("GET", resource_path(resource, self.namespace, name), unless=404) or None

    def names(self, resource: str = DR) -> List[str]:
        return item_names(self.admin.list(resource, self.namespace))

    def serve(self, user: str = "admin", plugins: Tuple[Tuple[str, str], ...] = (), **settings: Any) -> Any:
        """Run a controller on the test's clock until the test ends; settings: attributes of it."""
        api = vr.connect(vr.load_cluster(self.cluster.kubeconfig(self.folder, user)))
        server = vr.Server("v1.18.1", plugins or vr.Server("").plugins)
        controller = vr.Controller(api, self.namespace, server, now=self.clock)
        vars(controller).update(settings)
        thread = threading.Thread(target=vr.run_controller, args=(controller,), daemon=True)
        thread.start()
        self.controllers.append(controller)
        self.addCleanup(self.halt, controller, thread)
        return controller

    def halt(self, controller: Any, thread: threading.Thread) -> None:
        controller.stop.set()
        thread.join(10)
        self.assertFalse(thread.is_alive(), "the controller does not stop")

    def turn(self, **later: float) -> None:
        self.clock.ahead += timedelta(**later)
        for controller in self.controllers:
            controller.queue.wake()

    def processed(self, name: str, resource: str = DR) -> Optional[Document]:
        document = self.look(name, resource)
        return document if look_up(document, "status.phase") == "Processed" else None

    def answered(self, name: str, resource: str = DR) -> Document:
        return wait_until(lambda: self.processed(name, resource), 15, f"an answer to {name}")

    def failed(self, name: str) -> Document:
        return wait_until(lambda: [document for document in [self.look(name)] if reason_of(document)], 15,
                          f"a reason on {name}")[0]

    def healed(self, name: str) -> Document:
        """The request once it is Processed without a reason; the clock passes the back-off."""
        def done() -> Optional[Document]:
            self.turn(seconds=1)
            document = self.processed(name)
            return None if reason_of(document) else document
        return wait_until(done, 15, f"{name} to heal")

    def gone(self, name: str, resource: str = DR) -> None:
        wait_until(lambda: self.look(name, resource) is None, 15, f"{name} to be deleted")

    def settle(self) -> None:
        """Wait until a request made now has been answered: whatever was due before has been looked at."""
        name = self.ask()
        self.answered(name)
        self.admin.delete(DR, name, self.namespace)

    def cli(self, *argv: str, user: str = "admin", env: Optional[Dict[str, Optional[str]]] = None) -> Result:
        kubeconfig = self.kubeconfig if user == "admin" else self.cluster.kubeconfig(self.folder, user)
        return run("--kubeconfig", kubeconfig, "-n", self.namespace, *argv, env=env)

    def program(self, *argv: str, **more: Any) -> Program:
        program = Program(self.folder, *argv, "--kubeconfig", self.kubeconfig, "-n", self.namespace, **more)
        self.addCleanup(program.kill)
        return program

    def kubeconfig_of(self, user: Document) -> str:
        document = yaml.safe_load(read_bytes(self.kubeconfig))
        document["users"][0]["user"] = user
        return write_bytes(self.at("with-user"), yaml.safe_dump(document).encode())

    def assert_failed(self, result: Result, code: int, *words: str) -> None:
        """Check the code, one `error:` line with these words in it, and a stdout without anything."""
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual((result.code, result.out, len(errors)), (code, b"", 1), result.err)
        self.assertEqual([], [word for word in words if word.lower() not in errors[0].lower()], result.err)
        self.assertNotIn("Traceback", result.err)
        self.assert_clean(result.err)

    def assert_clean(self, *texts: Any) -> None:
        for text in map(str, texts):
            for secret in (self.store.secret_key, self.store.access_key, *map(token_of, USERS)):
                self.assertNotIn(secret, text)
            self.assertIsNone(BEARER.search(text), text)

    def assert_soon(self, text: str, minutes: float = 0) -> None:
        """A time lies this far ahead of the clock, give or take half a minute."""
        self.assertLess(abs((instant(text) - self.clock()).total_seconds() - 60 * minutes), 30, text)


class FakeWorld(World):
    """Both servers on loopback, started for this class; every fault that a test scripts must strike."""


class RealWorld(World):
    """The real kube-apiserver and versitygw, one pair for the whole process."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return real_cluster(), real_store()

    def is_refused(self, token: str) -> bool:
        with closing(Admin(self.cluster.url, token, self.cluster.ca)) as client:
            return int(client.raw("GET", "/version").status) == 401

    def apply(self, *words: str, status: Tuple[int, ...] = (200, 201), **query: str) -> Dict[str, Document]:
        """Apply what is printed, server-side -> the answers by name_of; none brings a warning."""
        answers: Dict[str, Document] = {}
        for text in run("manifests", "-n", self.namespace, *words).out.decode().split("---\n"):
            answer = self.admin.apply(text, **query)
            self.assertIn(answer.status, status, answer.data)
            self.assertIsNone(answer.headers.get("Warning"), text)
            answers[name_of(text)] = json.loads(answer.data)
        return answers


class VeleroWorld(World):
    """The CRDs as Velero itself installs them, on the real servers when there, otherwise on the fakes."""
    release = ""

    @classmethod
    def crds(cls) -> List[Document]:
        if "VELERO_CRDS" not in os.environ:
            raise SkipTest(NO_CRDS)
        path = os.path.join(os.environ["VELERO_CRDS"], f"velero-{cls.release}.yaml")
        return list(filter(None, yaml.safe_load_all(read_bytes(path))))

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return RealWorld.start() if assets_folder() else super().start()


class ServerChecks(World):
    """Answers, lists and watches of either cluster, and what either store answers; rights are in the contract."""

    def request(self, name: str) -> str:
        made = self.admin.create(DR, download_request(name), self.namespace)
        return str(made["metadata"]["resourceVersion"])

    def events(self, version: str, last: str = "ADDED:z", **query: Any) -> Dict[str, Document]:
        """What a watch tells until this event, or its end: type:name -> object."""
        found: Dict[str, Document] = {}
        for event in self.admin.watch(DR, self.namespace, **{
                "resourceVersion": version, "timeoutSeconds": 10, **query}):
            found[f"{event['type']}:{event['object']['metadata'].get('name', '')}"] = event["object"]
            if last in found:
                break
            if "allowWatchBookmarks" in query and len(found) == 1:
                self.request("late")  # a real server sends a bookmark near the end, if anything has happened
                if self.cluster.kind == "fake":
                    self.cluster.send_bookmarks()
        return found

    def test_single_answers(self):
        self.addCleanup(self.cluster.install_crds, self.crds())
        for has_status in (True, False):
            self.cluster.install_crds(vr.crd_manifests(has_status))
            base = f"/apis/velero.io/v1/namespaces/{self.cluster.new_namespace()}/"
            for method, path, body, wanted in server_answers(has_status):
                with self.subTest(has_status=has_status, method=method, path=path, body=body):
                    answer = self.admin.raw(method, path if path[0] == "/" else base + path, body,
                                            MERGE if method == "PATCH" else "application/json")
                    document = json.loads(answer.data) if answer.data.startswith(b"{") else {}
                    document["names"] = item_names(document)
                    self.assertEqual(wanted, f"{answer.status} {document.get('reason', '')}" if answer.status > 299 else
                                     {path: look_up(document, path) for path in wanted}, answer.data)

    def test_lists_and_watches(self):
        """Pages show one moment; a watch tells every change once and in order, of one object where that is asked."""
        for name in "ab":
            self.request(name)
        first = self.admin.list(DR, self.namespace, limit=1)
        version, more = self.request("c"), {"continue": first["metadata"]["continue"]}
        second = self.admin.list(DR, self.namespace, limit=1, **more)
        self.assertEqual([["a"], ["b"]], [item_names(page) for page in (first, second)])
        self.assertEqual({"continue": "", "resourceVersion": first["metadata"]["resourceVersion"]}, second["metadata"])
        self.admin.merge_patch(DR, "a", {"metadata": {"labels": {"x": "1"}}}, self.namespace)
        self.admin.delete(DR, "b", self.namespace)
        self.request("z")
        events = self.events(version)
        self.assertEqual(["MODIFIED:a", "DELETED:b", "ADDED:z"], list(events))
        versions = [int(document["metadata"]["resourceVersion"]) for document in events.values()]
        self.assertEqual(sorted(set(versions)), versions)
        self.assertEqual(["ADDED:z"], list(self.events(version, fieldSelector="metadata.name=z")))
        events = self.events(str(versions[-2]), "BOOKMARK:", timeoutSeconds=5, allowWatchBookmarks="true")
        self.assertEqual((["ADDED:z", "ADDED:late", "BOOKMARK:"], {"apiVersion", "kind", "metadata"}), (
            list(events), set(events["BOOKMARK:"])))
        self.assertEqual(*(events[name]["metadata"]["resourceVersion"] for name in ("ADDED:late", "BOOKMARK:")))

    def test_versions_that_are_too_old(self):
        """A watch from one answers 200 with one ERROR event; a new dialect ends the watches and makes all too old."""
        self.addCleanup(self.cluster.install_crds, self.crds())
        version = self.request("a")
        with ThreadPoolExecutor(1) as pool:
            ended_watch = pool.submit(self.events, version, timeoutSeconds=30)
            self.cluster.install_crds(vr.crd_manifests(True))
            ended_watch.result(20)
        for old in ("1", version):
            (status,) = self.events(old).values()
            self.assertEqual((410, "Expired"), (status["code"], status["reason"]))

    def test_stores(self):
        """Keys, ranges and conditions, and every kind of wrong URL with its own code."""
        url_of, awkward = partial(self.store.url_of, self.namespace), "a b+c/ü~$%&=?d#.txt"
        for key, body in ((awkward, b"x"), ("k", b"0123456789")):
            self.store.put(self.namespace, key, body)
        wrong, denied, url = "403 SignatureDoesNotMatch", "403 AccessDenied", url_of("k")
        malformed = "400 AuthorizationQueryParametersError"
        # For an unknown key versitygw differs from AWS, and the fake follows AWS.
        unknown = "403 InvalidAccessKeyId" if self.store.kind == "fake" else "404 XAdminUserNotFound"
        for asked, headers, wanted in (
                (url, {"Range": "bytes=4-", "If-Match": fetch(url).headers["ETag"]}, "206 456789"),
                (url, {"Range": "bytes=10-"}, "416 InvalidRange"), (url, {"If-Match": '"x"'}, "412 PreconditionFailed"),
                (url_of(awkward), {}, "200 x"), (url_of("none"), {}, "404 NoSuchKey"),
                (url_of("k", secret_key="wrong"), {}, wrong), (url_of("k", access_key="NOBODY"), {}, unknown),
                (url.partition("?")[0], {}, denied), (url_of("k", at=time.time() - 700), {}, denied),
                (url_of("k", expires=604801), {}, malformed), (url_of("k", region="nowhere"), {}, malformed),
                (url + "0", {}, wrong), (url.replace("/k?", "/other?"), {}, wrong)):
            with self.subTest(asked, **headers):
                answer = fetch(asked, headers)
                code = re.search(rb"<Code>(.*?)</Code>", answer.data)
                self.assertEqual(wanted, f"{answer.status} {(code[1] if code else answer.data).decode()}")


class TestServersFake(ServerChecks, FakeWorld, TestCase):
    def test_sessions(self):
        """The token of a session belongs to its key; a fault that never strikes is told."""
        self.put()
        self.store.keys["ASIA"] = ("secret", "to+ken/=")
        for token, wanted in (("to+ken/=", 200), ("x", 400), ("", 400)):
            own = {"access_key": "ASIA", "secret_key": "secret", "token": token}
            self.assertEqual(wanted, fetch(self.store.url_of(self.namespace, KEYS["BackupLog"], **own)).status)
        self.store.script("DELETE", "/nothing", drop=True)
        with self.assertRaisesRegex(AssertionError, "never struck: .*DELETE.*/nothing"):
            self.store.unscript()

    def test_who_closes_a_connection(self):
        """A descriptor is closed by the thread that uses it, and not by who ends the server meanwhile."""
        held, go_on = [], threading.Event()

        class Slow(LoopbackServer):
            def answer(self, request: Request, connection: Connection) -> bool:
                held.append(connection)
                return not go_on.wait(10)
        server = Slow(tls=True)
        server.start()
        plain = socket.create_connection(("127.0.0.1", server.port))
        with vr.tls_context(vr.Trust(insecure=True)).wrap_socket(plain) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            wait_until(lambda: held)
            server.close()
            self.assertEqual((b"", True), (client.recv(1), held[0].socket.fileno() >= 0))
            go_on.set()
            wait_until(lambda: held[0].socket.fileno() < 0, 10, "the thread to close it")


class TestServersReal(ServerChecks, RealWorld, TestCase):
    pass


# ---- Contract: the main job, in every world ----------------------------------

class ControllerWorld(World):
    """The controller calls as a user of its own, who may do what README.md says and no more."""

    def seed(self) -> None:
        super().seed()
        self.cluster.grant("controller", *LEAST, namespace=self.namespace)

    def serve(self, user: str = "controller", plugins: Tuple[Tuple[str, str], ...] = (), **settings: Any) -> Any:
        return super().serve(user, plugins, **settings)


class CoreTests(ControllerWorld):
    def test_every_kind_from_request_to_bytes(self):
        """Inflated unless it is the contents; a kind that the CRD does not know is one error."""
        self.serve()
        crd = next(crd for crd in self.crds() if crd["spec"]["names"]["kind"] == "DownloadRequest")
        known = look_up(crd["spec"]["versions"][0],
                        "schema.openAPIV3Schema.properties.spec.properties.target.properties.kind.enum")
        self.assertEqual(set(known), set(list(KEYS)[:6] if self.status_subresource else list(KEYS)[:-1]))
        for kind in KEYS:
            with self.subTest(kind=kind):
                plain = kind.encode() * 100
                stored = self.put(kind, plain)
                result = self.cli("download", KEYS[kind].split("/")[1], "--kind", kind, "-o", "-")
                if kind in known:
                    self.assertEqual((0, stored if kind == "BackupContents" else plain), result[:2], result.err)
                else:
                    self.assert_failed(result, 3, kind)
                    self.assertIn("hint: ", result.err)
        self.assertEqual(self.names(), [])

    def test_what_an_answer_has(self):
        """A URL that works at once, and ten minutes from its signing, whatever a stranger filled in."""
        stored = self.put()
        names = [self.ask(), self.fill(self.ask(), phase="New", downloadURL="http://evil/", expiration=FAR)]
        for _ in range(2):  # two replicas come to one answer, also for what is there before them
            self.serve()
        for name in names:
            document = self.answered(name)
            status = document["status"]
            self.assertEqual((set(status), reason_of(document)), ({"phase", "downloadURL", "expiration"}, ""))
            self.assert_soon(status["expiration"], minutes=10)
            self.assertIn("X-Amz-Expires=600", status["downloadURL"])
            self.assertIn("X-Amz-SignedHeaders=host&", status["downloadURL"] + "&")
            self.assertEqual(fetch(status["downloadURL"]).data, stored)
        for name in (self.ask_status(), self.fill(self.ask_status(), SSR, phase="New")):
            status = self.answered(name, SSR)["status"]
            self.assert_soon(status["processedTimestamp"])
            self.assertEqual((status["serverVersion"], status["plugins"]),
                             ("v1.18.1", [{"kind": "ObjectStore", "name": "velero.io/aws"}]))
        names = [self.ask() for _ in range(20)]
        self.assertEqual([""] * 20, [reason_of(self.answered(name)) for name in names])
        self.make_location("public", {"s3Url": "http://127.0.0.1:1", "publicUrl": "http://public.example:9000/"},
                           prefix="//deep/er//", bucket=f"/{self.namespace}/")
        self.make_backup("b2", "public")
        self.make_restore("r2", "b2")  # its artifacts lie in the location of its backup
        self.assertEqual(f"http://public.example:9000/{self.namespace}/deep/er/restores/r2/restore-r2-logs.gz",
                         self.answered(self.ask("RestoreLog", "r2"))["status"]["downloadURL"].split("?")[0])

    def test_deleted_while_it_fails(self):
        """A failing request that is deleted before its worker knows when to look again stops no worker."""
        controller = self.serve()

        def delete(record: logging.LogRecord) -> bool:  # as a feeder does at the same time
            controller.failures.pop(getattr(record, "look", [None])[0], None)
            return True
        vr.log.handlers[0].addFilter(delete)
        for name in [self.ask(name="nowhere") for _ in range(2 * vr.WORKERS)]:
            self.failed(name)
        self.settle()

    def test_whose_a_request_is(self):
        """Of two replicas one answers each; the other does after a moment, and then takes the first for gone."""
        self.turn(minutes=-1)  # no moment is over before the test turns the clock
        one, other = (self.serve(now=vr.utc_now) for _ in range(2))
        both = {one.name, other.name}

        def have_met() -> bool:
            self.settle()
            return [*one.others, *other.others] == [other.name, one.name]
        wait_until(have_met, 15)
        for ask, resource in ((self.ask, DR), (self.ask_status, SSR)):
            for name in [ask() for _ in range(10)]:
                document = self.answered(name, resource)
                self.assertEqual({vr.replica_for(document["metadata"]["uid"], both)}, vr.replicas_in(document))
        one.queue.close()
        other.others[one.name] -= 10  # seconds ago it was last heard of
        orphans = []
        for name in [self.ask() for _ in range(20)]:
            if vr.replica_for((self.look(name) or {})["metadata"]["uid"], both) == one.name:
                orphans.append(name)
            else:
                self.answered(name)
        self.assertEqual([None] * len(orphans), [self.processed(name) for name in orphans])
        self.turn(minutes=1, seconds=1)
        self.assertEqual([{other.name}] * len(orphans), [vr.replicas_in(self.answered(name)) for name in orphans])
        self.assertEqual({}, other.others)
        for name in [self.ask() for _ in range(10)]:
            self.answered(name)

    def test_logs_contents_plugins_and_version(self):
        """With a budget of 292 years, too; no request is left behind."""
        self.cluster.grant("limited", *CLIENT, namespace=self.namespace)
        self.serve()
        log, ever, path = self.put(), "2562047h47m16.8s", self.at("x")
        self.put("RestoreLog", LOG[:100])
        contents = self.put("BackupContents")
        self.assertEqual((0, LOG, ""), self.cli("backup", "logs", "b1", user="limited"))
        self.assertEqual((0, LOG[:100], ""), self.cli("restore", "logs", "r1", "--timeout", ever))
        self.assertEqual((0, f"Backup b1 has been successfully downloaded to {path}\n".encode(), ""),
                         self.cli("backup", "download", "b1", "-o", path))
        self.assertEqual(contents, read_bytes(path))
        self.assertIn(b"velero.io/aws   ObjectStore\n", self.cli("plugin", "get", "--timeout", ever).out)
        self.assertIn(b"\nServer:\n\tVersion: v1.18.1\n", self.cli("version").out)
        api = vr.connect(vr.load_cluster(self.kubeconfig))
        self.assertEqual(log, fetch(vr.get_download_url(api, self.namespace, "BackupLog", "b1")).data)
        self.assertEqual("ServerStatusRequest", vr.get_server_status(api, self.namespace)["kind"])
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_the_life_of_a_request(self):
        """Ten minutes at most, whoever filled it in or fails; a status request's ends with its look."""
        answered = {"phase": "Processed", "downloadURL": "http://x/"}
        ends = {(DR, self.fill(self.ask(), **status)): minutes for minutes, status in (
            (0.0, {"phase": "New", "expiration": self.clock.text(minutes=-1)}),
            (5.0, {**answered, "expiration": self.clock.text(minutes=5)}), (10.0, answered),
            (10.0, {**answered, "expiration": FAR}), (10.0, {**answered, "expiration": FAR.replace("Z", "-14:00")}))}
        ends.update({(DR, name): 10.0 for name in (self.ask(), self.ask(name="nobody"))})
        ends.update({(SSR, self.fill(self.ask_status(), SSR, phase="Processed", **status)): minutes
                     for minutes, status in ((0.0, {"processedTimestamp": self.clock.text(seconds=-65)}), (5.0, {}),
                                             (5.0, {"processedTimestamp": FAR}))})
        ends[SSR, self.ask_status()] = 5.0
        self.serve()
        before = 0.0
        for moment in (0.0, 4.5, 5.2, 9.5, 10.2):
            self.turn(minutes=moment - before)
            self.settle()
            before = moment
            for (resource, name), end in ends.items():
                if end <= moment:
                    self.gone(name, resource)
                else:
                    self.assertTrue(self.look(name, resource), (end, moment))
        self.assertNotIn("forbidden", self.log.getvalue())

    def failures(self) -> List[Tuple[str, str, str, Optional[Callable[[], Any]]]]:
        """(reason, kind, target, cure) for what is missing or broken, after making what is there."""
        half, senseless = "[default]\naws_access_key_id = hush-hush-1\n", "aws_secret_access_key = hush-hush-2\n[[["
        rows: List[Tuple[str, str, str, Optional[Callable[[], Any]]]] = [
            ("BackupNotFound", "BackupLog", "nobody", lambda: self.make_backup("nobody")),
            ("RestoreNotFound", "RestoreLog", "nothing", lambda: self.make_restore("nothing", "b1")),
            ("BackupNotFound", "RestoreLog", "no-backup", lambda: self.make_backup("later")),
            ("StorageLocationNotFound", "BackupLog", "no-location", lambda: self.make_location("nowhere")),
            *(("InvalidName", "RestoreLog", name, None) for name in (
                "", "../../secrets/cloud", "b1?x", "b1\x00", "b1\x1b[31m", "x" * 10000, "\u0131\u202e"))]
        self.make_restore("no-backup", "later")
        self.make_backup("no-location", "nowhere")

        def give_keys(name: str) -> None:
            self.admin.raw("DELETE", resource_path("secrets", self.namespace, name))
            self.make_secret(name)
        for reason, name, secret, storage in (
                ("SecretNotFound", "lost", None, {}), ("SecretKeyNotFound", "keyless", {"key": "other"}, {}),
                ("InvalidCredentials", "half", {"text": half}, {}),
                ("InvalidCredentials", "senseless", {"text": senseless}, {}),
                ("InvalidStorageLocation", "bucket", {}, {"bucket": "a/b"}), ("UnsupportedProvider", "gcp", {}, {})):
            if secret is not None:
                self.make_secret(name, **secret)
            self.make_location(name, secret=name, **storage)
            self.make_backup(name, name)
            rows.append((reason, "BackupLog", name, None if secret == {} else partial(give_keys, name)))
        self.admin.merge_patch(BSL, "gcp", {"spec": {"provider": "gcp"}}, self.namespace)
        return rows

    def test_every_failure_has_a_reason_and_heals(self):
        """On the object and as an Event, without a secret."""
        self.serve()
        for reason, kind, target, cure in self.failures():
            with self.subTest(reason, target=target[:40]):
                failed = self.failed(self.ask(kind, target))
                said, name = failed["metadata"]["annotations"], failed["metadata"]["name"]
                self.assertEqual(said[REASON], reason)
                self.assertRegex(said[MESSAGE], r"\A[ -~\u00a0-\uffff]{10,1024}\Z")
                self.assertNotIn("downloadURL", failed.get("status") or {})
                if cure:
                    cure()
                    self.assertNotIn(MESSAGE, self.healed(name)["metadata"].get("annotations") or {})
        self.settle()
        events = wait_until(lambda: self.admin.list("events", self.namespace)["items"], 10, "Events")
        event = next(event for event in events if event["reason"] == "BackupNotFound")
        self.assertEqual((event["type"], event["involvedObject"]["kind"]), ("Warning", "DownloadRequest"))
        self.assertRegex(event["message"], "nobody|later")
        self.assert_clean(self.log.getvalue(), events, *(
            item["metadata"] for item in self.admin.list(DR, self.namespace)["items"]))
        self.assertNotRegex(self.log.getvalue() + str(events), "hush|forbidden")


# ---- Contract: everything that both kinds of servers can show ----------------

class ContractTests(CoreTests):
    """The whole contract, on the CRDs that `manifests` prints."""

    def test_the_crd_is_replaced_under_the_running_controller(self):
        """There and back, whatever etcd has forgotten."""
        self.addCleanup(self.cluster.install_crds, self.crds())
        self.serve()
        self.settle()
        for dialect in (not self.status_subresource, self.status_subresource):
            with self.subTest(status_subresource=dialect):
                result = run("manifests", *(["--status-subresource"] if dialect else []))
                documents = list(yaml.safe_load_all(result.out))
                self.assertEqual((0, "", vr.crd_manifests(dialect)), (result.code, result.err, documents))
                self.cluster.install_crds(documents)
                self.answered(self.ask())
                self.answered(self.ask_status(), SSR)
                self.failed(self.ask(name="nobody"))
                self.cluster.compact()
                self.settle()

    def test_the_namespace_comes_from_flag_variable_or_file(self):
        """In this order; velero's configuration may be broken."""
        self.serve()
        self.put()
        os.makedirs(self.at(".config", "velero"))
        ours, other, named = self.namespace, '{"namespace": "default"}', json.dumps({"namespace": self.namespace})
        for code, flag, variable, configured in (
                (0, ours, "default", other), (0, "", ours, other), (0, "", None, named), (3, "default", ours, named),
                (1, "", "A/b", other), (0, ours, None, "\x00"), (0, ours, None, '{"namespace": 5, "cacert": []}')):
            with self.subTest(flag=flag, variable=variable, configured=configured):
                write_bytes(self.at(".config", "velero", "config.json"), configured.encode())
                result = run("backup", "logs", "b1", "--kubeconfig", self.kubeconfig, *(["-n", flag] if flag else []),
                             env={"VELERO_NAMESPACE": variable})
                self.assertEqual(result.code, code, result.err)

    def test_failures_and_their_codes(self):
        """One line that names the object; no file and no request is left."""
        self.make_location("dead", {"s3Url": "http://127.0.0.1:1"})
        self.make_secret("wrong", text=keys_file(self.store.access_key, "not-the-secret"))
        self.make_location("wrong", secret="wrong")
        for name, location in (("b2", "nowhere"), ("b3", "dead"), ("b4", "wrong")):
            self.make_backup(name, location)
        self.make_backup("b5", phase="InProgress")
        self.make_restore("r5", "b1", "InProgress")
        self.store.put(self.namespace, "backups/b4/b4.tar.gz", gzip.compress(b"x"))
        path = self.at("x")
        stranger, unknown = (("--kubeconfig", self.cluster.kubeconfig(self.folder, name))
                             for name in ("stranger", "nobody-knows-me"))
        for code, argv, words in (
                *((4, f"{command} --timeout 200ms", "") for command in (  # the controller starts only after these
                    "backup logs b1", "download b1 -o -", "plugin get", "version")),
                (3, f"download b2 -o {path}", "nowhere"), (1, "backup logs b5", "backup, b5, not available"),
                (1, "restore logs r5", "restore, r5, not available"),
                (1, "backup logs b1 --context elsewhere", "elsewhere"),
                (1, "backup logs b1 --kubeconfig /nowhere/config", "/nowhere/config"),
                (3, "backup logs nobody --timeout 1.5h", "backup, nobody, does not exist"),
                (3, "restore logs nobody --timeout 100000µs", "restore, nobody"), (3, "backup logs b1", "b1"),
                (3, "download ../../secrets/cloud -o -", "secrets/cloud"), (3, f"download b1 -o {path}", "b1"),
                (5, ("backup", "logs", "b1", *stranger), "stranger"), (5, ("plugin", "get", *stranger), "stranger"),
                (5, ("controller", "--once", *stranger), "stranger"), (5, ("backup", "logs", "b1", *unknown), ""),
                (5, f"download b4 -o {path}", ""), (6, f"download b3 -o {path}", "127.0.0.1:1"),
                (2, ("restore", "get", "-l", "a b"), "the selector 'a b'"), (3, ("backup", "logs", ""), "backup")):
            if code != 4 and not self.controllers:
                self.serve()
            with self.subTest(argv=argv):
                result = self.cli(*(argv.split() if isinstance(argv, str) else argv))
                self.assert_failed(result, code, *words.split(", "))
                self.assertNotIn("not-the-secret", result.err)
                self.assertIn("\nhint: " if code == 4 else "", result.err)
                self.assertFalse(os.path.exists(path))
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_the_controller_process_serves_and_leaves_on_signals(self):
        """It declares what it was told, and leaves with 0."""
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number):
                program = self.program("controller", "--plugin", "BackupItemAction=velero.io/pod", "--plugin",
                                       "VolumeSnapshotter=velero.io/aws", "--server-version", "v1.16.2", "-v", "-v")
                self.answered(self.ask())
                self.assertEqual("velero.io/pod BackupItemAction velero.io/aws ObjectStore velero.io/aws "
                                 "VolumeSnapshotter".split(), self.cli("plugin", "get").out.decode().split()[2:])
                self.assertIn(b"Server:\n\tVersion: v1.16.2\n", self.cli("version").out)
                result = program.end(number)
                self.assertEqual((0, b""), result[:2], result.err)
                self.assertNotIn("Traceback", result.err)
                self.assert_clean(result.err)

    def test_once_and_dry_run(self):
        """--once answers, refuses and deletes what is there; --dry-run prints each outcome and changes nothing."""
        name, failing, status_name = self.ask(), self.ask(name="nobody"), self.ask_status()
        past = self.fill(self.ask(), expiration=self.clock.text(minutes=-1))

        def everything() -> List[Any]:
            return [self.admin.list(kind, self.namespace)["items"] for kind in (DR, SSR, "events")]
        before, result = everything(), self.cli("controller", "--dry-run")
        self.assertEqual((result.code, everything()), (0, before), result.err)
        for one, verb in ((name, "patch"), (failing, "patch"), (past, "delete"), (status_name, "patch")):
            self.assertIn(f"/{one}: {verb}: ", result.out.decode())
        self.assert_clean(result.out, result.err)
        result = self.cli("controller", "--once")
        self.assertEqual((0, b""), result[:2], result.err)
        self.assertTrue(self.processed(name))
        version = (self.processed(status_name, SSR) or {})["status"]["serverVersion"]
        self.assertRegex(version, r"\Av[0-9]")  # without the v every velero CLI warns
        self.assertTrue(reason_of(self.look(failing)))
        self.assertIsNone(self.look(past))
        self.assertNotIn("Traceback", result.err)


# ---- Contract: what only a fake can show, by its request log or by a scripted fault

class FaultWorld(ControllerWorld, FakeWorld):
    def setUp(self):
        super().setUp()
        self.cluster.forget()
        self.store.forget()
        self.addCleanup(self.cluster.unlimit)

    def patches(self, name: str = "") -> List[Request]:
        return self.cluster.seen("PATCH", self.path(f"downloadrequests/{name}"))


class FaultTests(FaultWorld):
    """What the dialect of the status changes: patches counted, their answers lost."""

    def tearDown(self):
        """No patch of the controller can have overwritten what it had not seen."""
        for request in self.cluster.seen("PATCH", user="controller"):
            self.assertTrue(request.parsed["metadata"]["resourceVersion"], request.parsed)

    def test_an_answer_that_comes_late(self):
        """The copy in the answer to a patch is older than what the watch has brought meanwhile."""
        controller, gate = self.serve(), threading.Event()
        self.settle()
        self.answered(self.ask_status(), SSR)
        self.cluster.script("PATCH", self.path(SSR), gate=gate)
        name = self.ask_status()
        key = vr.Key(vr.STATUS_REQUESTS, self.namespace, name)
        self.answered(name, SSR)
        version = self.look(self.fill(name, SSR, phase="New"), SSR)["metadata"]["resourceVersion"]
        wait_until(lambda: controller.records[key].version == version)
        gate.set()
        self.answered(name, SSR)

    def test_what_an_answer_costs(self):
        """A merge patch with the version it was decided on; the client's costs a watch."""
        controller = self.serve()
        self.settle()  # from the first answer on the dialect is known
        self.assertEqual(self.status_subresource, vr.DOWNLOAD_REQUESTS in controller.with_subresource)
        self.cluster.forget()
        name = self.ask()
        version = (self.look(name) or {})["metadata"]["resourceVersion"]
        self.answered(name)
        patch, = self.patches(name)
        self.assertEqual((patch.content_type, patch.path.endswith("/status"), set(patch.parsed["status"])), (
            "application/merge-patch+json", self.status_subresource, {"phase", "downloadURL", "expiration"}))
        self.assertLessEqual(int(patch.parsed["metadata"]["resourceVersion"]), int(version) + 1)
        for name in [self.ask() for _ in range(100)]:
            self.answered(name)
        self.assertEqual(len(self.patches()), 101)
        for part in ("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"):
            self.assertLess(self.cluster.count("GET", part), 20)
        self.assertTrue(all(self.path("") in request.path for request in self.cluster.seen(user="controller")))
        self.put()
        self.cluster.forget()
        self.assertEqual(self.cli("backup", "logs", "b1").out, LOG)
        self.assertEqual(self.cluster.count("GET", "/downloadrequests/"), 0, "a client that watches does not poll")

    def test_a_failing_request_is_patched_once(self):
        """Its reason is told in one Event and logged once; tries back off."""
        vr.log.setLevel(logging.INFO)
        self.serve()
        name = self.ask(name="nobody")
        self.failed(name)
        for _ in range(20):
            self.settle()
        tries = self.cluster.count("GET", "/backups/nobody")
        self.assertLess(tries, 12)
        for _ in range(8):
            self.turn(minutes=1)
            self.settle()
        wait_until(lambda: self.cluster.count("GET", "/backups/nobody") > tries + 3, 15, "more tries")
        self.assertLessEqual(len(self.patches(name)), 2 if self.status_subresource else 1)
        self.assertEqual(len([event for event in self.admin.list("events", self.namespace)["items"]
                              if event["involvedObject"]["name"] == name]), 1)
        self.assertEqual(self.log.getvalue().count(name), 1, self.log.getvalue())

    def test_answers_that_go_wrong_are_made_up_for(self):
        """Of a patch, and of what is looked up for it."""
        self.serve()
        lookups = product(("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"), (
            {"status": status, "body": "{}", "times": 3, **AT_ONCE} for status in (500, 200)))
        for path, options in (*(("/downloadrequests/", options) for options in (
                {"status": 500, "body": "oops"}, {"status": 200, "body": "{}"}, {"cut_after": 5},
                {"status": 429, **AT_ONCE}, {"status": 503, "body": "<html>"}, {"drop": True},
                {"drop": True, "apply": True})), *lookups):
            with self.subTest(path, **{key: str(value) for key, value in options.items()}):
                self.turn(minutes=1)  # what was remembered of a location is forgotten
                fault = self.cluster.script("GET" if "times" in options else "PATCH", path, **options)
                self.assertTrue(self.healed(self.ask())["status"]["downloadURL"])
                self.assertEqual(fault.hits, options.get("times", 1))
                self.cluster.unscript()

    def test_a_request_changed_in_between_is_looked_at_again(self):
        """The patch conflicts, and the next look reads it anew."""
        gate = threading.Event()
        self.cluster.script("GET", "/secrets/cloud", hang=gate)
        self.serve()
        name = self.ask()
        wait_until(lambda: self.cluster.count("GET", "/secrets/cloud"), 10, "the pass")
        self.admin.merge_patch(DR, name, {"metadata": {"labels": {"by": "them"}}}, self.namespace)
        gate.set()
        self.assertEqual(self.healed(name)["metadata"]["labels"], {"by": "them"})
        self.assertEqual((self.cluster.count("PATCH", name, status=409), self.cluster.count(
            "GET", self.path("downloadrequests/" + name), "controller")), (1, 1))
        self.assertNotIn("modified", self.log.getvalue())

    def test_what_is_deleted_during_a_pass_stays_forgotten(self):
        controller, gate = self.serve(), threading.Event()
        self.settle()
        self.cluster.script("PATCH", "/downloadrequests/", pause_after=1, gate=gate)
        name = self.ask()
        self.answered(name)
        self.admin.delete(DR, name, self.namespace)
        wait_until(lambda: not controller.records, 10, "the record to go")
        gate.set()
        wait_until(lambda: not controller.queue.working, 10, "the pass to end")
        self.assertEqual(controller.records, {})


class TestContractFaultsStore(FaultWorld, TestCase):
    """The controller, the client and what servers do to them, which no dialect of the status changes."""

    def test_an_idle_controller_makes_no_requests(self):
        """Besides its watches, however long; an answer costs one patch."""
        controller = self.serve()
        wait_until(lambda: len(self.cluster.watches(self.namespace)) == 2, 15, "two watches")
        self.settle()
        wait_until(lambda: not controller.records, 10, "the request to go")
        self.cluster.forget()
        for _ in range(30):
            self.turn(minutes=3)
        self.assertEqual(self.cluster.seen(user="controller"), [])
        self.settle()
        made = [(request.method, bool(request.query)) for request in self.cluster.seen(user="controller")]
        self.assertEqual(made, [("GET", False)] * 3 + [("PATCH", True)])

    def test_once_looks_again_at_what_changed(self):
        name = self.ask()
        self.cluster.script("PATCH", name, 2, status=409, body={"reason": "Conflict"})
        self.assertEqual(0, self.cli("controller", "--once").code)
        self.assertTrue(self.processed(name))

    def test_what_servers_say_is_made_harmless(self):
        """Escape sequences and forged lines; a dry run sends nothing but GET."""
        nasty = "a\nerror: forged\r\x07\x1b[31m\u202e"
        self.cluster.script("GET", SSR + "?limit=", status=200, body={"metadata": {"resourceVersion": "1"},
            "items": [{"metadata": {"namespace": self.namespace, "name": nasty}}]})
        result = self.cli("controller", "--dry-run")
        self.assertTrue(result.code == 0 and result.out.decode().replace("\n", "").isprintable(), result)
        self.assertEqual({request.method for request in self.cluster.seen()}, {"GET"})
        self.serve()
        xml = f"<Error><Code>X\x1b[31m</Code><Message>{nasty}</Message></Error>"
        for server, method, options, code in ((self.store, "GET", {"status": 400, "body": xml}, 1),
                (self.cluster, "POST", {"status": 403, "body": {"message": nasty, "code": 403}}, 5)):
            server.script(method, "b1" if server is self.store else "/downloadrequests", **options)
            result = self.cli("backup", "logs", "b1", "-v")
            self.assertEqual((code, 1), (result.code, len(re.findall("(?m)^error: ", result.err))), result.err)
            self.assertNotRegex(result.err, "[\x00-\x09\x0b-\x1f\u202e]")

    def test_a_create_that_is_interrupted_leaves_nothing(self):
        """Nor one whose answer was lost or wrong; nothing else is deleted."""
        kept, logs, plugins = [self.ask(name="b2"), self.ask_status()], ("backup", "logs", "b1"), ("plugin", "get")
        never, later = {"pause_after": 0}, {"pause_after": 0}  # when the answer comes that the signal overtakes
        for argv, fault, number, code, deletes in ((logs, {"apply": True, "drop": True}, None, 6, 1),
                (logs, {"apply": True, "status": 500, "body": b"{}"}, None, 1, 1),
                *((logs, {"apply": True, "status": 201, "body": {"metadata": metadata}}, None, 6, 1)
                  for metadata in ({}, {"name": ""}, {"name": 5}, {"name": kept[0]}, {"name": "../backups"}, None)),
                (logs, {"status": 403, "body": b"{}"}, None, 5, 0), (logs, never, signal.SIGINT, 130, 1),
                (logs, never, signal.SIGTERM, 143, 1), (logs, later, signal.SIGHUP, 129, 1),
                (plugins, later, signal.SIGINT, 130, 1), (plugins, never, signal.SIGTERM, 143, 1)):
            with self.subTest(fault, argv=argv, number=number):
                self.cluster.forget()
                gate = threading.Event()
                self.cluster.script("POST", "requests", **fault, **({"gate": gate} if number else {}))
                program = self.program(*argv) if number else None
                if program:
                    wait_until(lambda: len(self.names() + self.names(SSR)) > 2, 15, "the create")
                    program.process.send_signal(number)
                if fault is later:
                    gate.set()
                result = program.end() if program else self.cli(*argv)
                self.assertEqual((result.code, result.out, self.names() + self.names(SSR)), (code, b"", kept),
                                 result.err)
                paths = [request.target for request in self.cluster.seen("DELETE")]
                self.assertEqual(deletes, len(paths), paths)
                self.assertTrue(all(re.search("requests/(b1|velero-cli)-[0-9a-f]{8}$", path) for path in paths), paths)

    def test_the_location_s_authority_is_trusted(self):
        """A store with an authority of its own needs the location's caCert, --cacert or --insecure-…."""
        store = self.enter(closing(FakeStore(tls=True)))
        authority = base64.b64encode(read_bytes(str(store.ca))).decode()
        for name, options in (("b2", {}), ("b3", {"caCert": authority})):
            self.make_location(name, {"s3Url": store.url}, **options)
            self.make_backup(name, name)
            store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(LOG))
        self.serve()
        for argv, code in ((("b2",), 6), (("b3",), 0), (("b2", "--cacert", str(store.ca)), 0), (("b2", "--direct"), 6),
                           (("b3", "--direct"), 0), (("b2", "--insecure-skip-tls-verify"), 0)):
            with self.subTest(argv=argv):
                result = self.cli("backup", "logs", *argv)
                self.assertEqual((code, b"" if code else LOG), result[:2], result.err)


class TestContractFaultsNew(FaultTests, TestCase):
    """Faults without a status subresource."""


class TestContractFaultsOld(FaultTests, TestCase):
    status_subresource = True


ALL_PAGES = ("/healthz", "/readyz", "/metrics")


class TestHealth(FaultWorld, TestCase):
    def page(self, path: str, controller: Any = None) -> Tuple[int, str]:
        status, _, body = (controller or self.controllers[-1]).page(ALL_PAGES, path)
        return status, b"".join(body).decode()

    def get(self, port: int, path: str) -> Tuple[bytes, bytes]:
        """Status and body from a program, once it listens."""
        def ask() -> bytes:
            with suppress(ConnectionRefusedError):
                return told(port, f"GET {path} HTTP/1.1\r\n\r\n".encode())
            return b""
        head, _, body = wait_until(ask, 20, f"an answer from port {port}").partition(b"\r\n\r\n")
        return head.split()[1], body

    def test_what_is_unwell(self):
        """A feeder that hears nothing, not even a bookmark or an error, and a worker that does not let go."""
        api = vr.connect(vr.load_cluster(self.kubeconfig))
        for changes, held, passed, words in (
                ({}, 0, 100, "^$"), ({}, 0, 110, "^nothing was heard of downloadrequests for 1m50s; .*serverstatus"),
                ({vr.STATUS_REQUESTS: 90}, 0, 110, "^nothing was heard of downloadrequests for 1m50s$"),
                ({kind: 400 for kind in vr.REQUEST_KINDS}, 0, 290, "^$"),
                ({kind: 400 for kind in vr.REQUEST_KINDS}, 0, 310, "^a worker has held one request for 5m10s$"),
                ({kind: 400 for kind in vr.REQUEST_KINDS}, 200, 310, "^$")):
            controller = vr.Controller(api, self.namespace, vr.Server("v1"))
            now = controller.progress[vr.DOWNLOAD_REQUESTS]
            controller.progress = {**controller.progress, **{kind: now + more for kind, more in changes.items()}}
            controller.queue.working["key"] = 0.0, now + held
            self.assertRegex(controller.trouble(now + passed), words)
        for resource in vr.REQUEST_KINDS:
            controller.progress[resource] -= 1e6
        self.assertEqual(503, self.page("/healthz", controller)[0])
        self.assertEqual((404, "here are only /healthz, /readyz, /metrics\n"), self.page("/", controller))

    def test_an_api_server_that_is_not_there(self):
        """At the start it is waited for, healthy but not ready; when it goes later, there is nothing to restart."""
        away = self.cluster.script(None, self.path(""), ALWAYS, drop=True)
        controller = self.serve()
        wait_until(lambda: away.hits > 2, 20, "attempts")
        words = "waiting for the API server's list of downloadrequests and serverstatusrequests\n"
        self.assertEqual([(200, words), (503, words)], [self.page(path) for path in ALL_PAGES[:2]])
        self.assertIn('rest_client_requests_total{code="<error>",method="GET"}', self.page("/metrics")[1])
        self.cluster.unscript()
        wait_until(lambda: self.page("/readyz") == (200, "ok\n"), 20, "readiness")
        away = self.cluster.script(None, self.path(""), ALWAYS, drop=True)
        self.cluster.cut_connections()
        wait_until(lambda: away.hits > 2, 20, "attempts")
        before = dict(controller.progress)
        wait_until(lambda: all(controller.progress[kind] > before[kind] for kind in before), 20, "failed attempts")
        self.assertEqual([(200, "ok\n")] * 2, [self.page(path) for path in ALL_PAGES[:2]])

    def test_what_is_progress(self):
        """The end of a watch and a bookmark are; a watch that falls silent is none, however often it is opened."""
        silent = self.cluster.script("GET", self.path("downloadrequests?watch="), ALWAYS, chunks=[SILENT])
        controller = self.serve(silence=1.5, watch_seconds=(0.5, 0.5))
        wait_until(lambda: silent.hits, 10, "the first silent watch")
        before = dict(controller.progress)
        wait_until(lambda: silent.hits > 1 and controller.progress[vr.STATUS_REQUESTS] > before[vr.STATUS_REQUESTS], 20,
                   "the second one, and the end of the other kind's")
        self.assertEqual(before[vr.DOWNLOAD_REQUESTS], controller.progress[vr.DOWNLOAD_REQUESTS])
        self.cluster.unscript()
        controller = self.serve()
        wait_until(lambda: self.page("/readyz")[0] == 200 and len(controller.streams) == 2, 20, "two watches")
        before = dict(controller.progress)
        self.cluster.send_bookmarks()
        wait_until(lambda: all(controller.progress[kind] > before[kind] for kind in before), 10, "bookmarks")

    def test_metrics(self):
        """They count what was done, and name no object, namespace, bucket or host."""
        controller = self.serve()
        controller.count(*((("velero_requests_answer_seconds", "X"), seconds) for seconds in (0, .005, .006, 300, 301)))
        names = [self.ask() for _ in range(3)] + [self.ask("RestoreLog", "r1")]
        for name in names:
            self.answered(name)
        self.answered(self.ask_status(), SSR)
        self.failed(self.ask(name="nobody"))
        self.turn(minutes=2)

        def metrics() -> Dict[Tuple[str, ...], float]:
            return exposed(self.page("/metrics")[1])
        wait_until(lambda: metrics()["controller_runtime_reconcile_total", "downloadrequest", "error"] > 2, 10, "tries")
        found, text = metrics(), self.page("/metrics")[1]
        kinds = ("DownloadRequest", "ServerStatusRequest")
        for key, wanted in ((("velero_requests_answered_total", kinds[0], "BackupLog"), 3), (
                ("velero_requests_answered_total", kinds[0], "RestoreLog"), 1), (
                ("velero_requests_answered_total", kinds[1], ""), 1), (
                ("velero_requests_refused_total", "BackupNotFound"), 1), (
                ("velero_requests_answer_seconds_count", kinds[0]), 4), (
                ("velero_requests_answer_seconds_count", kinds[1]), 1), *(
                (("velero_requests_answer_seconds_bucket", "X", bound), count) for bound, count in (
                    ("0.005", 2), ("0.025", 3), ("300", 4), ("+Inf", 5))), (
                ("velero_requests_oldest_unanswered_seconds", kinds[1]), 0), (
                ("workqueue_depth", "downloadrequest", "downloadrequest"), 0), (
                ("controller_runtime_reconcile_total", "serverstatusrequest", "error"), 0)):
            self.assertEqual(wanted, found.get(key), key)
        for key, least in ((("velero_requests_oldest_unanswered_seconds", kinds[0]), 119), (
                ("controller_runtime_reconcile_total", "downloadrequest", "requeue_after"), 4), (
                ("controller_runtime_reconcile_time_seconds_count", "downloadrequest"), 5), (
                ("workqueue_queue_duration_seconds_count", "downloadrequest", "downloadrequest"), 5), (
                ("rest_client_requests_total", "404", "GET"), 1), (("rest_client_requests_total", "200", "PATCH"), 6), (
                ("velero_requests_answer_seconds_bucket", kinds[0], "300"), 4)):
            self.assertGreaterEqual(found.get(key, -1), least, key)
        for name in (self.namespace, "b1", "nobody", "default", self.cluster.host, self.store.host, *names):
            self.assertNotIn(name, text)

    def test_a_program_with_addresses(self):
        """Pages where they were asked for; a log in JSON; the port of another is one sentence."""
        health, metrics = free_port(), free_port()
        program = self.program("controller", "--health-address", f"127.0.0.1:{health}", "--metrics-address",
                               f"127.0.0.1:{metrics}", "--log-format", "json", "-v")
        wait_until(lambda: self.get(health, "/readyz") == (b"200", b"ok\n"), 20, "readiness")
        self.assert_failed(self.cli("controller", "--health-address", f"127.0.0.1:{health}"), 1,
                           f"cannot listen on 127.0.0.1:{health}: address already in use")
        self.assertEqual((b"404", b"here are only /healthz, /readyz\n"), self.get(health, "/metrics"))
        name, failing = self.ask(), self.ask(name="nobody")
        self.answered(name)
        self.failed(failing)
        self.assertTrue(exposed(self.get(metrics, "/metrics")[1].decode()))
        result = program.end(signal.SIGTERM)
        self.assertEqual((0, b""), result[:2], result.err)
        said = [json.loads(line) for line in result.err.splitlines()]
        about = {row["name"]: row for row in said if row.get("name") and row["level"] != "debug"}
        for request, level, target, reason in ((name, "info", "BackupLog b1", ""),
                                               (failing, "warning", "BackupLog nobody", "BackupNotFound")):
            row = about[request]
            self.assertTrue(0 < row.pop("duration") < 60 and instant(row.pop("time")[:19] + "Z"), row)
            self.assertTrue(row.pop("message").startswith(f"DownloadRequest {self.namespace}/{request}: patch: "), row)
            self.assertEqual({"level": level, "controller": "downloadrequest", "namespace": self.namespace,
                              "name": request, "kind": "DownloadRequest", "target": target, "reason": reason}, row)
        self.assertEqual([], [row for row in said if "level" not in row])
        self.assert_clean(result.err)

    def test_the_end(self):
        """It is not ready at once, though the pass in hand is finished; by a signal whoever is silent holds it up for
        less than two seconds."""
        gate = threading.Event()
        fault = self.cluster.script("GET", "/secrets/cloud", hang=gate)
        controller, name = self.serve(stop_time=30.0), self.ask()
        wait_until(lambda: fault.hits and self.page("/readyz")[0] == 200, 15, "the pass")
        controller.stop.set()
        self.assertEqual((503, "stopping\n"), self.page("/readyz"))
        gate.set()
        self.answered(name)
        self.assertLess(vr.Controller.stop_time, 2)
        for held, phase in ((threading.Event(), "Processed"), (SILENT, None)):
            self.move()
            fault = self.cluster.script("GET", self.path("secrets/cloud"), hang=held)
            program, name = self.program("controller"), self.ask()
            wait_until(lambda fault=fault: fault.hits, 15, "the pass")
            program.process.send_signal(signal.SIGTERM)
            if phase:
                with self.assertRaises(AssertionError):  # it must not leave while the pass is under way
                    wait_until(lambda program=program: program.process.poll() is not None, 0.3)
                held.set()
            with within(6):  # a busy machine takes its time
                self.assertEqual(0, program.end().code)
            self.assertEqual(phase, look_up(self.look(name), "status.phase"))


class TestJsonLog(Cases):
    def test_lines(self):
        """An object each, whatever is logged, and no secret."""
        out = io.StringIO()
        handler = logging.StreamHandler(out)
        handler.setFormatter(vr.JsonFormatter())
        logger = logging.Logger("json")
        logger.addHandler(handler)
        secret = f"https://u:hush@h/?X-Amz-Signature={'a' * 64}"
        look = a_key(), a_download(target_name=secret), vr.Outcome("leave", ""), 0.5
        logger.warning("one\n%s \x1b[2J \ud800", secret, extra={"look": look})
        try:
            raise ValueError(secret)
        except ValueError:
            logger.error("two", exc_info=True)
        first, second = map(json.loads, out.getvalue().splitlines())
        self.assertEqual(("warning", 0.5, "BackupLog https://***@h/?X-Amz-Signature=***"), (
            first["level"], first["duration"], first["target"]))
        self.assertIn("ValueError: https://***@h/", second["error"])
        for row in (first, second):
            self.assertRegex(row["time"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00$")
        self.assertNotRegex(out.getvalue(), "hush|aaaa|\x1b")


# ---- Contract: CRDs that check nothing, as strangers and old clusters have them

class LooseTests(World):
    """What the schema usually keeps out, let in."""

    @classmethod
    def crds(cls) -> List[Document]:
        """CRDs whose two request kinds accept anything."""
        crds = vr.crd_manifests(False)
        for crd in crds:
            if crd["spec"]["names"]["kind"] in ("DownloadRequest", "ServerStatusRequest"):
                anything = {"x-kubernetes-preserve-unknown-fields": True}
                loose = {"type": "object", "properties": {"spec": anything, "status": anything}}
                crd["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": loose}
        return crds

    def invent(self, resource: str, document: Document) -> str:
        kind = {DR: "DownloadRequest", SSR: "ServerStatusRequest"}[resource]
        document = {"kind": kind, "metadata": {"generateName": "odd-"}, **document}
        return str(self.admin.create(resource, document, self.namespace)["metadata"]["name"])

    def test_nonsense_is_refused_and_ends(self):
        """Of any shape: it delays nobody and is deleted in the end."""
        good = {"target": {"kind": "BackupLog", "name": "b1"}}
        unknown = [self.invent(DR, spec) for spec in ({}, {"spec": []}, *({"spec": {"target": target}} for target in (
                {"kind": "Nonsense", "name": "b1"}, {"kind": 5, "name": "b1"}, {"kind": "BackupLog", "name": ["b1"]},
                {"kind": "BackupLog"}, [], "b1", None)))]
        ends = [self.invent(DR, {"spec": good, "status": status}) for status in (
            {"phase": "Weird"}, {"phase": ["New"]}, "text", [], None, 5, {"phase": "Failed", "message": "no"},
            *({"phase": "Processed", "expiration": value} for value in ("", "tomorrow", 12345, {"a": []})))]
        ends.append(self.invent(DR, {  # annotations that leave no room for a reason
            "metadata": {"generateName": "full-", "annotations": {"stuff": "x" * 262100}},
            "spec": {"target": {"kind": "BackupLog", "name": "nobody"}}}))
        status_ends = [self.invent(SSR, {"status": {"phase": "Processed", "processedTimestamp": value}})
                       for value in ("then", 5, [])]
        for status in ({"phase": ["x"]}, {"phase": "Weird"}, "text", 5, []):
            self.invent(SSR, {"status": status})
        self.serve()
        for name in unknown:
            self.assertNotIn("downloadURL", self.failed(name).get("status") or {})
        for _ in range(2):
            self.settle()
            self.turn(minutes=10, seconds=5)
        for name in unknown + ends:
            self.gone(name)
        for name in status_ends:
            self.gone(name, SSR)

    def test_clients_understand_failed_and_nonsense(self):
        """Failed with a message ends the waiting, nonsense ends in time."""
        logs, plugin_get, version = ("backup", "logs", "b1"), ("plugin", "get"), ("version",)
        for argv, codes, status, words in (
                (logs, (1,), {"phase": "Failed", "message": "no such thing"}, "no such thing"),
                (logs, (4,), {"phase": "Processed", "downloadURL": 5}, ""), (logs, (4,), {"phase": ["x"]}, ""),
                (logs, (1, 6), {"downloadURL": "ftp://x/"}, ""), (logs, (1, 6), {"downloadURL": "file:///x"}, ""),
                (plugin_get, (0, 1), {"plugins": "x"}, ""), (version, (0, 1), {}, ""),
                (version, (0, 1), {"serverVersion": "v1\x1b[31m\n"}, ""),
                (plugin_get, (0, 1), {"plugins": [5, {"name": 7}, {"name": "a\x1b[1m", "kind": "b"}]}, "")):
            resource, limit = (DR, "1s") if argv == logs else (SSR, "20s")
            filled = status if argv == logs else {"phase": "Processed", **status}

            def fill(resource: str = resource, filled: Document = filled) -> None:
                self.fill(wait_until(lambda: self.names(resource), 15, "the request")[0], resource, **filled)
            with self.subTest(argv=argv, status=str(status)), ThreadPoolExecutor(1) as pool:
                done = pool.submit(fill)
                result = self.cli(*argv, "--timeout", limit)
                done.result(15)
                self.assertIn(result.code, codes, result.err)
                self.assertIn(words, result.err)
                self.assertNotIn("Traceback", result.err)
                self.assertNotIn(b"\x1b", result.out)
                self.assertEqual(self.names(resource), [])


class TestContractLooseFake(LooseTests, FakeWorld, TestCase):
    """Loose CRDs on the fakes."""


class TestContractLooseReal(LooseTests, RealWorld, TestCase):
    """Loose CRDs on the real servers."""


class TestContractFakeNew(ContractTests, FakeWorld, TestCase):
    """Fakes, no status subresource, as Velero 1.9 to 1.18."""


class TestContractFakeOld(ContractTests, FakeWorld, TestCase):
    status_subresource = True


class TestContractRealNew(ContractTests, RealWorld, TestCase):
    """Real servers, no status subresource."""


class TestContractRealOld(ContractTests, RealWorld, TestCase):
    status_subresource = True


class TestContractVeleroNew(VeleroWorld, CoreTests, TestCase):
    release = "1.18.1"


class TestContractVeleroOld(VeleroWorld, CoreTests, TestCase):
    release = "1.6.3"
    status_subresource = True


# ---- Kubeconfig: certificates, servers, and the files of the tests ------------

KUBECTL = shutil.which("kubectl")
NO_KUBECTL = "kubectl is not on the PATH, so what it makes of the kubeconfigs was not compared with ours"


@lru_cache(maxsize=None)
def kube_pki() -> str:
    folder = tempfile.mkdtemp(prefix="velero-requests-pki-")
    atexit.register(shutil.rmtree, folder, True)
    make_certificate(folder)  # ca.crt; tls.crt for localhost and 127.0.0.1
    for arguments in (("alice",), ("bob",), ("named", "DNS:kubernetes.default.svc,DNS:*.example.com"),
                      ("nameless", "", "30", "localhost"), ("expired", "DNS:localhost,IP:127.0.0.1", "-1")):
        issue_certificate(folder, *arguments)
    run_openssl("ec", "-in", f"{folder}/alice.key", "-aes256", "-passout", "pass:x", "-out", f"{folder}/locked.key")
    authority = read_bytes(f"{folder}/ca.crt")  # a block that is none, and a good one after it
    write_bytes(f"{folder}/spoiled.crt", "# é\n".encode() + authority.replace(b"MII", b"QUJD", 1) + authority)
    return folder


def kube_bytes(name: str) -> bytes:
    return read_bytes(os.path.join(kube_pki(), name))


class KubeServer(LoopbackServer):
    """Answers every call like /version and remembers who called, by certificate and by which name; also a forward
    proxy that looks for every host on loopback."""

    def __init__(self, certificate_name: str = "", user: str = "", demand: bool = False) -> None:
        """certificate_name: in kube_pki, for https. user: name:password that a proxy wants. demand: a certificate."""
        self._wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else None
        self._own: Optional[ssl.SSLContext] = None
        if certificate_name:
            self._own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._own.load_cert_chain(*(os.path.join(kube_pki(), certificate_name + end) for end in (".crt", ".key")))
            self._own.load_verify_locations(os.path.join(kube_pki(), "ca.crt"))
            self._own.verify_mode = ssl.CERT_REQUIRED if demand else ssl.CERT_OPTIONAL
            self._own.sni_callback = self.named
        self.names: List[Optional[str]] = []
        super().__init__(tls=bool(certificate_name))
        self.start()

    def named(self, secured: Any, name: Optional[str], _: Any) -> None:
        self.names.append(name)
        secured.kube_name = name

    def _tls_context(self, tls: bool, certificate: Any) -> Optional[ssl.SSLContext]:
        self.ca = None
        return self._own

    def answer(self, request: Any, connection: Any) -> bool:
        subject = (connection.socket.getpeercert() or {}).get("subject", ()) if self._own else ()
        request.user = dict(pair for part in subject for pair in part).get("commonName")
        request.parsed = {"name": getattr(connection.socket, "kube_name", None),
                          "connection": connection.socket.getpeername()[1]}
        if self._wanted not in (None, request.headers.get("proxy-authorization")):
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

    def handle(self, request: Any) -> Answer:
        return Answer(200, b'{"major":"1","minor":"34","gitVersion":"v1.34.2"}')


@lru_cache(maxsize=None)
def kube_servers() -> Document:
    """The servers and proxies that all tests share, by the name that verdicts use; closed at exit."""
    servers = {name: KubeServer(*arguments) for name, *arguments in (
        ("https", "tls"), ("http",), ("named", "named"), ("expired", "expired"), ("nameless", "nameless"), ("proxy",),
        ("guarded", "", "me:p@ss:w"), ("secure", "tls"))}
    for server in servers.values():
        atexit.register(server.close)
    return servers


def kube_fill(text: str, folder: str = "") -> str:
    """Text with what differs from run to run: @HTTPS@ is a server's host and port, @CA@ a file in base64 …"""
    def value(match: Any) -> str:
        name, part = match[1].lower(), match[2]
        if name == "text":
            return json.dumps(kube_bytes(part).decode())[1:-1]
        if name == "base64":
            return base64.b64encode(kube_bytes(part)).decode()
        if name.endswith("port"):
            return str(kube_servers()[name[:-4]].port)
        places = {"dir": lambda: folder, "pki": kube_pki, "path": lambda: os.environ["PATH"]}
        return places[name]() if name in places else str(kube_servers()[name].host)

    return re.sub(r"@([A-Z]+[0-9]*)(?::(\S+?))?@", value, text.replace("@CA@", "@BASE64:ca.crt@"))


def kube_write(folder: str, name: str, content: Any) -> str:
    """Write a file and return its path: bytes as they are, text filled in, documents as YAML."""
    path = os.path.join(folder, name)
    if not isinstance(content, (bytes, str)):
        content = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    write_bytes(path, content if isinstance(content, bytes) else kube_fill(content, folder).encode())
    os.chmod(path, 0o755 if name.endswith("plugin") else 0o644)
    return path


def kube_config(user: Any = None, cluster: Any = None, **top: Any) -> Document:
    """A kubeconfig for the https server, with a token and the authority unless others are given."""
    cluster = {"server": "https://@HTTPS@", "certificate-authority-data": "@CA@", **(cluster or {})}
    return {"current-context": "c", "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "c", "user": {"token": "t"} if user is None else user}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            **{name.replace("_", "-"): value for name, value in top.items()}}


KUBE_ABSENT = dict.fromkeys((
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_MASTER"))


def kube_environment(**values: Optional[str]) -> Any:
    """Set variables for a while, None removes one; those of proxies and kubeconfigs start absent."""
    return environment({**KUBE_ABSENT, **values})


def kube_verdict(failed: bool) -> str:
    """What the servers saw since they were told to forget: server, caller and whom it impersonates; else `error`."""
    for name, server in kube_servers().items():
        calls = [request for request in server.seen() if request.method != "CONNECT"]
        if calls and name != "proxy":
            request, seen = calls[-1], kube_servers()
            scheme, _, secret = request.headers.get("authorization", "").partition(" ")
            who = f"certificate {request.user}" if request.user else "nobody"
            if scheme:
                who = f"basic {base64.b64decode(secret).decode()}" if scheme == "Basic" else f"token {secret}"
            ways = [f" by {way}" for way in ("proxy", "guarded", "secure") if seen[way].seen("CONNECT")]
            known = f" as {request.parsed['name']}" if (request.parsed or {}).get("name") else ""
            borrowed = sorted((unquote(header.lower()[12:]), value.encode("latin-1").decode())  # as the API server does
                              for header, value in request.header_list if header.lower().startswith("impersonate-"))
            return (f"{name}{request.path[:request.path.rindex('/')]}{known}{''.join(ways)}: {who}"
                    f"{''.join(f', {header}={value}' for header, value in borrowed)}{' but failed' if failed else ''}")
    return "error" if failed else "no call"


def kube_forget() -> None:
    for server in kube_servers().values():
        server.forget()
        server.names.clear()


def kube_call(kubeconfig: str = "", context: str = "") -> Document:
    api = vr.connect(vr.load_cluster(kubeconfig, context))
    with warnings.catch_warnings(), closing(api.session):
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)  # it was asked for
        return api.call("GET", "/version")


class KubeFolder(Folder, TestCase):
    def setUp(self):
        super().setUp()
        self.home = self.at("home")
        os.mkdir(self.home)
        kube_forget()

    def write(self, content: Any, name: str = "config") -> str:
        return kube_write(self.folder, name, content)

    def connect(self, document: Any) -> Any:
        api = vr.connect(vr.load_cluster(self.write(document)))
        self.addCleanup(api.session.close)
        return api

    def fails(self, error: Any, act: Callable[[], Any], *words: str) -> Any:
        """Something fails with an error of this class, which has the words in it or its hints, and no secret."""
        with self.assertRaises(error) as caught:
            act()
        text = "\n".join((str(caught.exception), *caught.exception.hints))
        for word in words:
            self.assertIn(word, text)
        self.assertNotIn("s3cr3t", text)
        return caught.exception


# ---- Kubeconfig: one table, and kubectl as the oracle ------------------------

class KubeCase(NamedTuple):
    """One way to be configured, and what kubectl makes of it: a verdict, or `error: words of ours`."""
    verdict: str
    files: Document
    context: str = ""
    kubeconfig: str = "@DIR@/config"
    environment: Dict[str, Optional[str]] = {}
    lenient: bool = False  # kubectl refuses it; the verdict is ours


OK_T, OK_P = "https: token t", "https: token p"
KUBE_V1, KUBE_FOR_EXEC = "client.authentication.k8s.io/v1", "client.authentication.k8s.io/exec"
KUBE_EXEC = {"apiVersion": KUBE_V1, "interactiveMode": "Never", "command": "./plugin"}
KUBE_PLUGIN = f"""#!/bin/sh
echo '{{"apiVersion": "{KUBE_V1}", "kind": "ExecCredential", "status": {{"token": "p"}}}}'
"""
KUBE_EVERYWHERE = {"token": "f\n", "empty": "", "plugin": KUBE_PLUGIN}  # files beside every kubeconfig, and pki
KUBE_CERT = {"client-certificate-data": "@BASE64:alice.crt@", "client-key-data": "@BASE64:alice.key@"}
KUBE_PAIR = {"clientCertificateData": "@TEXT:alice.crt@", "clientKeyData": "@TEXT:alice.key@"}
KUBE_PLAIN = {"server": "http://@HTTP@"}
KUBE_NO_CA = {"certificate-authority-data": None}
KUBE_NAMED = {"server": "https://@NAMED@"}
KUBE_BY_NAME = {"server": "https://a.example.com:@NAMEDPORT@"}
KUBE_INSECURE = {**KUBE_NO_CA, "insecure-skip-tls-verify": True}


def kube_ca(path: str) -> Document:
    return {**KUBE_NO_CA, "certificate-authority": path}


def kube_exec(**fields: Any) -> Document:
    return {"exec": {**KUBE_EXEC, **fields}}


def kube_cases(rows: Iterable[Tuple[Any, ...]], lenient: bool = False) -> Tuple[KubeCase, ...]:
    """Rows of (verdict, fields of the user, fields of the cluster, fields of the file or --context) -> cases."""
    cases = []
    for verdict, user, cluster, top in ((*row, None, None, None)[:4] for row in rows):
        top = dict(top or {})
        context = top.pop("--context", "")
        cases.append(KubeCase(verdict, {"config": kube_config(user, cluster, **top)}, context, lenient=lenient))
    return tuple(cases)


def kube_list(verdict: str, listed: str, **files: Any) -> KubeCase:
    return KubeCase(verdict, files, "", "", {"KUBECONFIG": listed})


def kube_text(verdict: str, *changes: Tuple[str, str], before: str = "", after: str = "",
              lenient: bool = False) -> KubeCase:
    text = before + yaml.safe_dump(kube_config(), sort_keys=False) + after
    for old, new in changes:
        text = text.replace(old, new)
    return KubeCase(verdict, {"config": text}, lenient=lenient)


KUBE_CASES = kube_cases((
    # who calls
    (OK_T,), ("https: token f", {"tokenFile": "token"}), ("https: token f", {"token": "t", "tokenFile": "token"}),
    (OK_T, {"token": "t", "tokenFile": "gone"}), (OK_T, {"token": "t", "tokenFile": "empty"}),
    ("error: cannot read token @DIR@/gone", {"tokenFile": "gone"}),
    ("https: basic u:p", {"username": "u", "password": "p"}), ("https: nobody", {}),
    ("https: certificate alice", KUBE_CERT),
    ("https: certificate alice", {"client-certificate": "pki/alice.crt", "client-key": "@PKI@/alice.key"}),
    (OK_T, {**KUBE_CERT, "token": "t"}),
    *(("error: not a matching pair of PEM, or the key is encrypted", {**KUBE_CERT, "client-key-data": key})
      for key in ("@BASE64:bob.key@", "@BASE64:locked.key@", "QUJD", None)),
    (OK_T, {"client-key": "gone", "token": "t"}),
    ("error: cannot read client certificate @DIR@/gone", {"client-certificate": "gone", "client-key": "pki/alice.key"}),
    ("error: cannot read client key @DIR@/gone", {"client-certificate": "pki/alice.crt", "client-key": "gone"}),
    ("https: certificate alice", {name: f"\r\n{text}\n" for name, text in KUBE_CERT.items()}),
    ("error: not base64", {**KUBE_CERT, "client-key-data": "QUI"}),
    # impersonation
    ("https: token t, extra-a!b+c%é/d=1, extra-a!b+c%é/d=2, group=g, group=h, uid=7, user=jürgen", {
        "token": "t", "as": "jürgen", "as-uid": "7", "as-groups": ["g", "h"],
        "as-user-extra": {"A!b+c%é/d": ["1", "2"]}}),
    ("error: user 'c': whom it impersonates", {"token": "s3cr3t", "as": "a\nb"}),
    ("error: without a user (as)", {"token": "s3cr3t", "as-groups": ["g"]}),
    ("error: without a user (as)", {"token": "s3cr3t", "as-user-extra": {"a": []}}),
    ("https: token t, user=j", {"token": "t", "as": "j", "as-user-extra": {"a": []}}),
    ("https: token t, group=, user=j", {"token": "t", "as": "j", "as-groups": [None]}),
    # plugins
    (OK_P, kube_exec()), (OK_T, {"token": "t", **kube_exec()}),
    ("https: certificate alice", {**KUBE_CERT, **kube_exec()}),
    (OK_P, {"client-key-data": "@BASE64:alice.key@", **kube_exec()}),
    ("https: basic u:p", kube_exec(), {"server": "https://u:p@@HTTPS@"}),
    ("error: exec plugin @DIR@/gone of the kubeconfig is not installed", kube_exec(command="./gone")),
    ("error: user 'c', exec has interactiveMode 'never', not one of Never", kube_exec(interactiveMode="never")),
    (f"error: user 'c', exec has apiVersion '{KUBE_V1}alpha1', not", kube_exec(apiVersion=KUBE_V1 + "alpha1")),
    ("error: user 'c', exec must be a mapping", {"exec": "s3cr3t"}), (OK_T, {"token": "t", "exec": None}),
    ("error: exec: args[0] must be a string", kube_exec(args=[5])),
    ("error: user 'c' uses auth-provider 'gcp'", {"auth-provider": {"name": "gcp"}}),
    # where to, and whom to trust
    (OK_T, None, kube_ca("pki/ca.crt")), ("error: cannot read certificate authority @DIR@/gone", None, kube_ca("gone")),
    ("error: not trusted", None, KUBE_NO_CA), ("error: @DIR@/token holds no PEM", None, kube_ca("token")),
    (OK_T, None, kube_ca("pki/spoiled.crt")), ("error: not trusted", None, kube_ca("@PKI@/alice.crt")),
    (OK_T, None, KUBE_INSECURE), ("expired: token t", None, {**KUBE_INSECURE, "server": "https://@EXPIRED@"}),
    ("named as x.y: token t", None, {**KUBE_INSECURE, **KUBE_NAMED, "tls-server-name": "x.y"}),
    ("named as a.example.com: token t", None, {**KUBE_NAMED, "tls-server-name": "a.example.com"}),
    ("error: 'b.a.example.com'", None, {**KUBE_NAMED, "tls-server-name": "b.a.example.com"}),
    ("error: (it is for no name at all; issuer commonName=test-ca;", None,
     {"server": "https://@NAMELESS@", "tls-server-name": "localhost"}),
    ("http: nobody", None, KUBE_PLAIN), ("http: nobody", kube_exec(), KUBE_PLAIN),
    ("error: cannot read certificate authority", None, {**KUBE_PLAIN, **kube_ca("gone")}),
    ("http: nobody, user=j", {"token": "t", "as": "j"}, KUBE_PLAIN), ("http: nobody", None, {"server": "@HTTP@"}),
    ("error: cluster 'c': server 'ftp://***@", None, {"server": "ftp://me:s3cr3t@@HTTP@"}),
    ("error: cluster 'c' has no server", None, {"server": ""}),
    ("https/k8s/c-1: token t", None, {"server": "https://@HTTPS@/k8s/c-1/"}),
    ("https: basic u:p@", KUBE_CERT, {"server": "https://u:p%40@@HTTPS@"}),
    ("https as localhost: token t", None, {"server": "https://localhost:@HTTPSPORT@"}),
    # proxies
    ("https by guarded: token t", None, {"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}),
    ("error: through its proxy", None, {"proxy-url": "http://me:s3cr3t@@GUARDED@"}),
    ("https by secure: token t", None, {"proxy-url": "https://@SECURE@"}),
    ("error: certificate", None, {**KUBE_NO_CA, "proxy-url": "https://@SECURE@"}),
    ("error: cluster 'c': proxy-url is no http", None, {"proxy-url": "ftp://u:s3cr3t@h"}),
    # contexts and names
    ("error: kubeconfig @DIR@/config has no current-context", None, None, {"current-context": ""}),
    ("error: it has: c", None, None, {"--context": "gone"}),
    (OK_T, None, None, {"current-context": "gone", "--context": "c"}),
    ("error: kubeconfig @DIR@/config has no cluster 'gone'", None, None,
     {"contexts": [{"name": "c", "context": {"cluster": "gone", "user": "c"}}]}),
    ("https: nobody", None, None, {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "gone"}}]}),
    (OK_T, None, None, {"contexts": [{"name": "c", "context": {"cluster": "c"}}], "users": [{"user": {"token": "t"}}]}),
    # types
    ("error: as-groups[0] must be a string", {"as": "j", "as-groups": [["x"]]}),
    ("error: as-user-extra must be a mapping", {"token": "t", "as": "j", "as-user-extra": []}),
    ("error: user 'c': token must be a string: write it in quotes", {"token": 12345}),
    ("https: nobody", {"token": None}),
    ("error: user 'c' must be a mapping", None, None, {"users": [{"name": "c", "user": "s3cr3t"}]}),
    ("error: kubeconfig @DIR@/config: users must be a list", None, None, {"users": {"c": {}}}),
    (OK_T, {"token": "t", "tokenfile": "gone", "Token": "x"}, None, {"more": [1]}),
    ("https: token t, extra-1=x, user=j", {"token": "t", 1: 2, "as": "j", "as-user-extra": {1: ["x"]}}),
)) + kube_cases((  # what kubectl refuses and what harms nobody
    ("https: certificate alice", {**KUBE_CERT, "client-certificate": "gone"}),
    (OK_T, {"token": "t", "username": "u", "password": "p"}), (OK_P, kube_exec(interactiveMode=None)),
    (OK_T, {"token": "t", "exec": {}}), (OK_P, {**kube_exec(), "auth-provider": {"name": "gcp"}}),
    (OK_T, None, {"certificate-authority": "gone"}),
    ("error: expired", None, {"server": "https://@EXPIRED@", "insecure-skip-tls-verify": True}),
    ("http: nobody", {"client-certificate": "gone"}, KUBE_PLAIN),
    ("https by proxy: token t", None, {"proxy-url": "@PROXY@"}),
    ("error: proxy-url is a SOCKS proxy", None, {"proxy-url": "socks5://u:s3cr3t@127.0.0.1:1"}),
    (OK_T, None, None, {"apiVersion": "v2", "users": [None, {"name": "c", "user": {"token": "t"}}, {"name": "c"}, 5,
                                                      {"name": "d", "user": {"token": 5}}, {"name": 5}]}),
), lenient=True)

KUBE_TEXTS: Tuple[KubeCase, ...] = (kube_text("https: token y", ("token: t", "token: y"), lenient=True),
    kube_text(OK_T, ("token: t", "token: !!str x\n    token: t # x")),
    *(kube_text(OK_T, ("token: t", "token: t\t# x")) for _ in range(yaml.__with_libyaml__)),  # pure PyYAML refuses it
    kube_text("error", ("token: t", "token: off")), kube_text(OK_T, before="\ufeff"),
    kube_text(OK_T, before="---\n", after="...\n"), kube_text(OK_T, after="---\ncurrent-context: gone\n"),
    kube_text(OK_T, after="---\n@@ [\n"), kube_text("error", before="---\n---\n"), kube_text(OK_T, ("\n", "\r\n")),
    kube_text("error", ("    token", "\ttoken")), kube_text("error", ("token: t", "token: *x")),
    kube_text(OK_T, ("token: t", "token: *x"), before="other: &x t\n"),
    kube_text(OK_T, ("    token: t", "    <<: *x"), before="other: &x {token: t}\n"),
    *(KubeCase(verdict, {"config": text}) for verdict, text in (  # an error names the line, where YAML knows it
        (OK_T, json.dumps(kube_config(), indent="\t")), (OK_T, json.dumps(kube_config())[:-1] + ",}"),
        ("error: @DIR@/config must be a mapping", "- s3cr3t\n"), ("error: must be a mapping", "s3cr3t"), ("error", ""),
        ("error: current-context", "null"), ("error: current-context", "users: s3cr3t"), ("error", b"\0\0\0\0"),
        ("error", "<!DOCTYPE html>\n<html><body>s3cr3t</body></html>"), ("error", b"a: s3cr3t\0"),
        ("error: UTF-8", b"\x1f\x8b\x08\0s3cr3t\xff"), ("error: UTF-8", b"users:\n- name: \xe9 s3cr3t\n"),
        ("error: line", "s3cr3t: ["), ("error: line 4", "users:\n- name: c\n  user:\n\ttoken: s3cr3t\n"),
        ("error: line 3", "a: b\ntoken: \"s3cr3t\n"), ("error: line 3", "a: b\ns3cr3t s3cr3t\nc: d\n"),
        ("error: line 2", "a: b\ntoken: s3cr3t: x\n"), ("error: line 3", "a: b\n\ntoken: *s3cr3t\n"),
        ("error", "? [s3cr3t]\n: b"), ("error: line 1", "&a [*a, *b]"),
        ("error: no current-context", "clusters: &a [*a]\n"), ("error: no current-context", "a: &a\n  <<: *a\n"),
        ("error: has no context", json.dumps(kube_config(current_context="\x1b]0;x\x07\u202ec"))))))

KUBE_USER_B = {"users": [{"name": "c", "user": {"token": "b"}}]}
KUBE_FILES: Tuple[KubeCase, ...] = (KubeCase(OK_T, {"config": "utf16"}),
    KubeCase("error: @DIR@/config: No such file", {}),
    KubeCase("error: @DIR@/config: Is a directory", {"config/x": "x"}),
    KubeCase("https: token f", {"config": kube_config({"tokenFile": "a/../b/token"}), "b/token": "f"}),
    KubeCase("error: @DIR@/~/token", {"config": kube_config({"tokenFile": "~/token"}), "home/token": "f"}),
    KubeCase(OK_T, {"home/.kube/config": kube_config()}, "", ""), KubeCase("error: no kubeconfig found", {}, "", ""),
    kube_list(OK_T, "@DIR@/gone:@DIR@/b:@DIR@/a", a=kube_config(), b=""),
    kube_list("https: token b", "@DIR@/b:@DIR@/a", a=kube_config({"as": "u"}), b=KUBE_USER_B),
    kube_list("https: token b", "@DIR@/b:@DIR@/a", a=kube_config(current_context="gone"),
              b={"current-context": "d", "users": [{"name": "d", "user": {"token": "b"}}],
                 "contexts": [{"name": "d", "context": {"cluster": "c", "user": "d"}}]}),
    kube_list("error: kubeconfig @DIR@/b", "@DIR@/a:@DIR@/b", a=kube_config(), b="[1"),
    kube_list("https: token f", "@DIR@/b/c:@DIR@/a", a=kube_config({"tokenFile": "gone"}), **{
        "b/c": {"users": [{"name": "c", "user": {"tokenFile": "token"}}]}, "b/token": "f"}),
    kube_list("error: @DIR@/a/b: Not a directory", "@DIR@/a:@DIR@/a/b", a=kube_config()),
    kube_list("error: no kubeconfig found", "@DIR@/gone", **{"home/.kube/config": kube_config()}),
    kube_text("error: cannot be run: Circular reference detected", (
        "token: t", "exec: " + json.dumps({**KUBE_EXEC, "command": "true", "provideClusterInfo": True})), (
            "certificate-", f"extensions:\n    - name: {KUBE_FOR_EXEC}\n      extension: &a [*a]\n    certificate-")),
    kube_list("error: no kubeconfig found", ":", **{"home/.kube/config": kube_config()}),
    KubeCase(OK_T, {"config": kube_config(), "b": KUBE_USER_B}, environment={"KUBECONFIG": "@DIR@/b"}),
    KubeCase("named as a.example.com by proxy: token t", {"config": kube_config(None, KUBE_BY_NAME)},
             environment={"HTTPS_PROXY": "http://@PROXY@"}),
    KubeCase("https by proxy: token t", {"config": kube_config(None, {"proxy-url": "http://@PROXY@"})},
             environment={"HTTPS_PROXY": "http://@GUARDED@", "NO_PROXY": "*"}))


def kube_place(verdict: str, where: str = "plugin", text: str = KUBE_PLUGIN, path: str = "@PATH@",
               lenient: bool = False, **fields: Any) -> KubeCase:
    """A case with a plugin at a place below the folder, and the PATH to look on."""
    return KubeCase(verdict, {"config": kube_config(kube_exec(**fields)), where: text},
                    environment={"PATH": path}, lenient=lenient)


def kube_plugins() -> Iterator[KubeCase]:
    """Where plugins are found, and what is made of what they print."""
    own: Document = {"where": "own-plugin", "command": "./own-plugin"}
    none = "error: neither a token nor a certificate with its key"

    def says(verdict: str, answer: str, ending: str = "") -> KubeCase:
        return kube_place(verdict, text=f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n{ending}", **own)

    for verdict, status, top, ending in ((*row, *({}, "")[len(row) - 2:]) for row in (
            ("https: certificate alice", KUBE_PAIR), (none, {**KUBE_PAIR, "token": "s3cr3t", "clientKeyData": ""}),
            (none, {"token": "p", "clientKeyData": "s3cr3t"}),
            ("error: its exec plugin are not a matching pair", {**KUBE_PAIR, "clientKeyData": "@TEXT:bob.key@"}),
            (none, {}), (none, None), (none, {"token": ""}), ("error: status must be a mapping", "s3cr3t"),
            ("error: plugin @DIR@/own-plugin: token must be a string", {"token": 5}),
            ("error: has characters that cannot be sent", {"token": "s3cr3t\n"}),
            ("error: clientCertificateData must be a string", {"token": "s3cr3t", "clientCertificateData": 5}),
            (OK_P, {"token": "p", "expirationTimestamp": "2020-01-01T00:00:00Z"}),
            ("error: no time", {"token": "p", "expirationTimestamp": "s3cr3t"}),
            ("error: no time", {"token": "p", "expirationTimestamp": 1900000000}),
            (f"error: no ExecCredential of {KUBE_V1}", {"token": "s3cr3t"}, {"apiVersion": KUBE_V1 + "beta1"}),
            (OK_P, {"token": "p"}, {"kind": ""}), ("error: no ExecCredential", {"token": "s3cr3t"}, {"kind": "Secret"}),
            ("error: failed with exit code 3", {"token": "s3cr3t"}, {}, "exit 3"),
            ("error: failed with exit code -9", {"token": "s3cr3t"}, {}, "kill -9 $$"))):
        answer = {"apiVersion": KUBE_V1, "kind": "ExecCredential", "status": status, **top}
        yield says(verdict, json.dumps(answer), ending)
    yield says(OK_P, f"apiVersion: {KUBE_V1}\nkind: ExecCredential\nstatus: {{token: p}}")
    for words, answer in (("no ExecCredential", ""), ("is not YAML", "[s3cr3t @@ [ {"), ("must be a mapping", "<a>")):
        yield says(f"error: {words}", answer)
    yield kube_place(OK_P, text=KUBE_PLUGIN.replace("/v1", "/v1beta1"), apiVersion=KUBE_V1 + "beta1",
                     interactiveMode=None, **own)
    yield kube_place(OK_P, "bin/b-plugin", path="@DIR@/bin:@PATH@", command="b-plugin")
    yield kube_place("error: exec plugin b-plugin of the kubeconfig is not installed", "bin/b-plugin",
                     command="b-plugin", env=[{"name": "PATH", "value": "@DIR@/bin"}])
    for path in ("", ":@PATH@", "home/..:@PATH@"):
        yield kube_place("error: not installed", "b-plugin", path=path, command="b-plugin")
    for command in ("@DIR@/bin/b-plugin", "bin/../bin/b-plugin"):
        yield kube_place(OK_P, "bin/b-plugin", command=command)
    for command in ("bin/other", "./bin"):  # which may not be run
        yield kube_place("error: not installed", "bin/other", command=command)
    yield kube_place("error: cannot be run: Exec format", "b-plugin", "rubbish", command="./b-plugin")
    # Arguments go through no shell; listed variables beat inherited ones, and KUBERNETES_EXEC_INFO beats all.
    told = KUBE_PLUGIN.replace('"p"', '"\'"$1 $TZ$OWN ${KUBERNETES_EXEC_INFO%%\\"*} $HOME"\'"')
    yield kube_place("https: token a b$x v { @DIR@/home", text=told, args=["a b$x"], env=[
        {"name": "TZ", "value": "v"}, {"name": "OWN"}, {"name": "KUBERNETES_EXEC_INFO", "value": "no"}], **own)
    for fields in ({"args": ["a\0b"]}, {"command": "a\0b"}, {"command": "./a\0b"}):
        yield kube_place("error: exec plugin", **fields)
    yield kube_place("error: get it", command="plugin-of-nobody", installHint="get it\x1b[31m at\x07\r\n\u202e \x9b2J")
    yield kube_place("error: must ask on a terminal", interactiveMode="Always")
    yield kube_place(OK_P, interactiveMode="IfAvailable")
    yield kube_place(OK_P, text=KUBE_PLUGIN.replace('"p"', '"p", "expirationTimestamp": "2199-01-01T00:00:00"'),
                     lenient=True, **own)


class TestKubeconfigLikeKubectl(KubeFolder):
    """Tables of kubeconfigs: fields, their precedence and types; texts and files; plugins and their answers."""

    def check(self, act: Callable[[KubeCase, str, str], None]) -> None:
        """Do something for each case, its verdict and its kubeconfig flag, while its files and variables are there."""
        self.addCleanup(os.chdir, os.getcwd())
        for number, case in enumerate(KUBE_CASES + KUBE_TEXTS + KUBE_FILES + tuple(kube_plugins())):
            folder = self.at(str(number))
            os.makedirs(os.path.join(folder, "home"))
            os.symlink(kube_pki(), os.path.join(folder, "pki"))
            for name, content in {**KUBE_EVERYWHERE, **case.files}.items():
                if content == "utf16":
                    content = kube_fill(yaml.safe_dump(kube_config(), sort_keys=False)).encode("utf-16")
                kube_write(folder, name, content)
            variables = {name: kube_fill(value or "", folder) for name, value in case.environment.items()}
            os.chdir(folder)
            kube_forget()
            with self.subTest(case), kube_environment(HOME=os.path.join(folder, "home"), **variables):
                act(case, kube_fill(case.verdict, folder), kube_fill(case.kubeconfig, folder))

    def ours(self, case: KubeCase, verdict: str, path: str) -> None:
        """We call as whom the table says; or there is one printable sentence with its words, no secret and no call."""
        if not verdict.startswith("error"):
            kube_call(path, case.context)
            self.assertEqual(kube_verdict(False), verdict)
            return
        error = self.fails(vr.Error, lambda: kube_call(path, case.context), verdict[7:])
        self.assertEqual(kube_verdict(True), "error")
        self.assertIn(int(error.exit), (1, 6))
        self.assertTrue("".join((str(error), *error.hints)).isprintable(), ascii((error, error.hints)))

    def theirs(self, case: KubeCase, verdict: str, path: str) -> None:
        """The table is what kubectl does; where it would ask for a name, we go on as nobody."""
        done = subprocess.run([str(KUBECTL), "version", "-o", "json", *(["--kubeconfig", path] if path else []),
                               *(["--context", case.context] if case.context else [])], stdin=DEVNULL,
                              stdout=PIPE, check=False, stderr=STDOUT, timeout=20)
        found = "https: nobody" if b"enter Username" in done.stdout else kube_verdict(bool(done.returncode))
        self.assertEqual(found, "error" if case.lenient or verdict.startswith("error") else verdict)

    def test_we_do_what_the_tables_say(self):
        self.check(self.ours)

    @skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_does_what_the_tables_say(self):
        self.check(self.theirs)


# ---- Kubeconfig: exec plugins, with a real program ---------------------------

KUBE_STUB = """#!/bin/sh
cd "$(dirname "$0")"
printf '%s' "$KUBERNETES_EXEC_INFO" > info
read -r line; echo $line > stdin
echo run >> runs
test -f code && { echo please log in >&2; echo s3cr3t; exit "$(cat code)"; }
cat answer
"""
KUBE_EXTENSION = {"float": 1.5, "text": "x", "on": True, "none": None, "list": [1, "2"], "big": 12345678901}
KUBE_OTHER = {"name": "other", "extension": {"a": 1}}
# Fields of a cluster, and what a plugin is told beyond server and authority.
KUBE_TOLD: Any = (
    (kube_ca("@PKI@/ca.crt"), {}), ({"server": "https://@HTTPS@/k8s/"}, {"server": "https://@HTTPS@/k8s/"}),
    (KUBE_INSECURE, {"insecure-skip-tls-verify": True, "certificate-authority-data": None}),
    ({**KUBE_NAMED, "tls-server-name": "a.example.com"}, {**KUBE_NAMED, "tls-server-name": "a.example.com"}),
    *((fields, fields) for fields in ({"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}, {"disable-compression": True})),
    ({"extensions": [KUBE_OTHER, {"name": KUBE_FOR_EXEC, "extension": KUBE_EXTENSION}]}, {"config": KUBE_EXTENSION}),
    ({"extensions": [{"name": KUBE_FOR_EXEC, "extension": "x"}]}, {"config": "x"}),
    ({"extensions": [{"name": KUBE_FOR_EXEC}, KUBE_OTHER]}, {}))


class KubePlugins(KubeFolder):
    def setUp(self):
        super().setUp()
        self.write(KUBE_STUB, "plugin")
        self.answer(token="p")
        self.addCleanup(kube_servers()["https"].unscript)

    def answer(self, version: str = KUBE_V1, **status: Any) -> None:
        self.write(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}), "answer")

    def said(self, name: str) -> str:
        return read_bytes(self.at(name)).decode()

    def config(self, cluster: Any = None, **fields: Any) -> str:
        return self.write(kube_config(kube_exec(**fields), cluster))

    def plugged(self, calls: int = 0) -> Any:
        api = self.connect(kube_config(kube_exec()))
        for _ in range(calls):
            kube_version(api)
        return api

    def seen(self) -> List[str]:
        calls = kube_servers()["https"].seen()
        return [request.headers.get("authorization") or str(request.user) for request in calls]


def kube_version(api: Any) -> Document:
    return api.call("GET", "/version")


def kube_pair(name: str, key: str = "") -> Dict[str, str]:
    return {"clientCertificateData": kube_bytes(f"{name}.crt").decode(),
            "clientKeyData": kube_bytes(f"{key or name}.key").decode()}


def kube_program(path: str, stdin: Any = DEVNULL, seconds: float = 30, memory: str = "unlimited") -> Any:
    with kube_environment(HOME="/nonexistent"):
        return subprocess.run(
            ["/bin/sh", "-c", f'ulimit -v {memory}; exec "$@"', "sh", sys.executable, MODULE, "-n", "v", "--kubeconfig",
             path, "backup", "logs", "b"], stdout=PIPE, stderr=PIPE, check=False, timeout=seconds, stdin=stdin)


class TestExecPluginIsTold(KubePlugins):
    def check(self, call: Callable[[str], Any]) -> None:
        """A plugin hears of the cluster when it asked to, by whoever runs it."""
        for cluster, more in KUBE_TOLD:
            with self.subTest(cluster):
                info = {"server": "https://@HTTPS@", "certificate-authority-data": "@CA@", **more}
                told = {"config": None, **{name: value for name, value in info.items() if value is not None}}
                call(self.config(cluster, provideClusterInfo=True))
                self.assertEqual(json.loads(self.said("info")), {
                    "apiVersion": KUBE_V1, "kind": "ExecCredential", "spec": {
                        "interactive": False, "cluster": json.loads(kube_fill(json.dumps(told)))}})
        self.answer(KUBE_V1 + "beta1", token="p")
        call(self.config(apiVersion=KUBE_V1 + "beta1", interactiveMode=None))
        self.assertEqual(json.loads(self.said("info")), {
            "apiVersion": KUBE_V1 + "beta1", "kind": "ExecCredential", "spec": {"interactive": False}})

    def test_by_us(self):
        self.check(kube_call)

    @skipUnless(KUBECTL, NO_KUBECTL)
    def test_by_kubectl(self):
        self.check(lambda path: subprocess.run(
            [str(KUBECTL), "--kubeconfig", path, "version"], stdin=DEVNULL, stdout=PIPE,
            stderr=STDOUT, check=True, timeout=20))

    def test_stdin_and_stderr(self):
        """A plugin reads our terminal where its mode allows it; what it says on stderr is seen."""
        self.write("3", "code")
        for mode, terminal, line in (("Always", True, "typed"), ("IfAvailable", True, "typed"), ("Never", True, ""),
                                     ("IfAvailable", False, "")):
            with self.subTest(mode, terminal=terminal):
                ours, theirs = os.openpty() if terminal else os.pipe()
                with open(ours, "rb") as one, open(theirs, "wb") as other:
                    os.write(ours if terminal else theirs, b"typed\n")
                    done = kube_program(self.config(interactiveMode=mode), stdin=other if terminal else one)
                info = json.loads(self.said("info"))
                self.assertEqual((line, bool(line)), (self.said("stdin").strip(), info["spec"]["interactive"]))
                self.assertEqual((1, b"", True, False), (
                    done.returncode, done.stdout, b"please log in\n" in done.stderr, b"s3cr3t" in done.stderr))


class TestExecPluginLife(KubePlugins):
    def test_how_long_the_answer_is_kept(self):
        """An answer that ends in more than 30 s, or never, is used again; another is asked for anew."""
        for seconds, runs in ((None, 1), (45, 1), (20, 2)):
            with self.subTest(seconds=seconds):
                self.write("", "runs")
                end = vr.utc_now() + timedelta(seconds=seconds or 0)
                self.answer(token="p", **({} if seconds is None else {"expirationTimestamp": vr.format_time(end)}))
                self.plugged(2)
                self.assertEqual(self.said("runs").count("run"), runs)

    def test_one_run_at_a_time(self):
        """Eight threads that call at once share one run, also after they were refused one after the other."""
        api, barrier = self.plugged(), threading.Barrier(8)
        for runs, token in ((1, "p"), (2, "q")):
            with ThreadPoolExecutor(8) as pool:
                for future in [pool.submit(lambda: (barrier.wait(10), kube_version(api))) for _ in range(8)]:
                    future.result(30)
            self.assertEqual(self.said("runs").count("run"), runs)
            self.assertIn(f"Bearer {token}", self.seen())  # calls that began with the old one may come last
            if runs == 1:
                old = api.session.identity
                self.answer(token="q")
                kube_servers()["https"].script(status=401)
        self.assertTrue(api.session.invalidate(old))  # what came late about an identity that is no longer used
        kube_version(api)
        self.assertEqual(self.said("runs").count("run"), 2)

    def test_no_call_while_it_fails(self):
        """A plugin that fails, at first or later, leaves no way to go on, however often; it heals by itself."""
        broken = json.dumps({**json.loads(self.said("answer")), "status": kube_pair("bob", "alice")})
        for worked, name, content in ((False, "code", "3"), (True, "code", "3"), (False, "answer", b"s3cr3t \xe9"),
                (False, "answer", b"s3cr3t" * (2 << 20)), (False, "answer", "[" * 100000), (True, "answer", broken)):
            with self.subTest(content[:30], worked=worked):
                self.answer(token="p")
                api = self.plugged(int(worked))
                api.session.invalidate(api.session.identity)
                self.write(content, name)
                kube_forget()
                for _ in range(2):
                    self.fails(vr.ConfigError, partial(kube_version, api), "plugin")
                self.assertEqual(self.seen(), [])
                os.remove(self.at(name))
                self.answer(token="p")
                kube_version(api)
                self.assertEqual(self.seen(), ["Bearer p"])


class TestKubeSession(KubePlugins):
    def files(self, name: str, key: str = "", authority: str = "ca.crt") -> None:
        for file, content in (("own.crt", f"{name}.crt"), ("own.key", f"{key or name}.key"), ("own-ca", authority)):
            self.write(kube_bytes(content) if content else "no PEM", file)

    def test_certificate_files(self):
        """Another pair comes with new connections; one that cannot be used leaves the old in use, with a warning."""
        self.files("alice")
        api = self.connect(kube_config({"client-certificate": "own.crt", "client-key": "own.key"}, kube_ca("own-ca")))
        for change, caller, warned in ((lambda: None, "alice", False), (lambda: self.files("bob"), "bob", False),
                (lambda: self.files("bob", "alice"), "bob", True), (lambda: os.remove(self.at("own.key")), "bob", True),
                (lambda: self.files("bob", authority=""), "bob", True), (lambda: self.files("alice"), "alice", False)):
            with self.subTest(caller=caller, warned=warned):
                change()
                api.session.until = time.monotonic()
                with self.assertLogs("velero_requests") as logs:
                    vr.log.warning("first")
                    kube_version(api)
                self.assertEqual((self.seen()[-1], len(logs.output) == 2), (caller, warned), logs.output)
                self.assertAlmostEqual(api.session.until - time.monotonic(), 300, delta=5)

    def test_after_a_refusal(self):
        """After a 401 files are read again at once; what stands in the kubeconfig is not."""
        for user, callers in (({"client-certificate": "own.crt", "client-key": "own.key"}, ["alice", "None", "bob"]),
                              (KUBE_CERT, ["alice", "None"]), ({"token": "t"}, ["Bearer t", "Bearer t"]),
                              ({"tokenFile": "token"}, ["Bearer f", "Bearer f", "Bearer g"]),
                              (kube_exec(), ["alice", "None", "bob"])):
            with self.subTest(user):
                self.files("alice")
                self.write("f\n", "token")
                self.answer(**kube_pair("alice"))
                kube_forget()
                api = self.connect(kube_config(user))
                kube_version(api)
                self.files("bob")
                self.write("g", "token")
                self.answer(**kube_pair("bob"))
                kube_servers()["https"].script(status=401, times=1)
                if len(callers) == 2:
                    self.fails(vr.ApiError, lambda api=api: kube_version(api), "log in again")
                else:
                    kube_version(api)
                self.assertEqual(self.seen(), callers)  # a scripted answer does not look at certificates

    def test_a_token_file_lives_for_50_seconds(self):
        """Then the file counts, whatever happened to certificate files meanwhile; the connection stays."""
        self.files("alice")
        self.write("f", "token")
        api = self.connect(kube_config({"tokenFile": "token"}, kube_ca("own-ca")))
        for token, act in (("f", bool), ("g", bool), ("h", lambda: os.remove(self.at("own-ca")))):
            self.write(token, "token")
            act()
            for _ in range(2):
                kube_version(api)
                self.write("x", "token")
            self.assertAlmostEqual(api.session.until - time.monotonic(), 50, delta=5)
            api.session.until = time.monotonic()
        self.assertEqual(self.seen(), [f"Bearer {token}" for token in "ffgghh"])
        self.assertEqual(len({request.parsed["connection"] for request in kube_servers()["https"].seen()}), 1)


# ---- Kubeconfig: proxies -----------------------------------------------------

KUBE_K8S = "https://k8s.example:6443"
KUBE_PROXIED = {"HTTPS_PROXY": "http://@P@"}


def kube_no_proxy(proxied: bool, url: str, *texts: str) -> Tuple[Tuple[str, Dict[str, str], bool], ...]:
    return tuple((url, {**KUBE_PROXIED, "NO_PROXY": text}, proxied) for text in texts)


# A URL, the environment (@P@ is the proxy), and whether kubectl goes through the proxy. The addresses are multicast
# ones, so that kubectl sends nothing when it goes straight to them. kubectl is asked about the first rows.
KUBE_PROXY_ROWS: Any = (
    (KUBE_K8S, {"https_proxy": "@P@"}, True), (KUBE_K8S, {"HTTPS_PROXY": "", "https_proxy": "http://@P@"}, True),
    (KUBE_K8S, {"HTTP_PROXY": "http://@P@", "ALL_PROXY": "http://@P@"}, False),
    ("http://k8s.example:6443", {"HTTP_PROXY": "http://@P@"}, True),
    ("https://127.9.9.9:1", KUBE_PROXIED, False), ("https://kube.localhost:1", KUBE_PROXIED, True),
    (KUBE_K8S, {**KUBE_PROXIED, "NO_PROXY": "x", "no_proxy": "k8s.example"}, True),
    (KUBE_K8S, {**KUBE_PROXIED, "NO_PROXY": "", "no_proxy": "k8s.example"}, False),
    *kube_no_proxy(False, KUBE_K8S, " * ", ".example", "*.example", "K8S.Example:6443", "x, k8s.example ,y"),
    *kube_no_proxy(True, KUBE_K8S, ".k8s.example", "k8s.example:443", "x k8s.example", "ample", "*:6443"),
    *kube_no_proxy(False, "https://224.1.2.3:6443", "224.1.2.3/8", "224.1.2.3:6443"),
    *kube_no_proxy(True, "https://224.1.2.3:6443", "224.1.2.3:443", ".2.3", "224.*"),
    *kube_no_proxy(False, "https://[ff0e::1]:6443", "[ff0e::1]:6443", "FF0E:0::1"),
    *kube_no_proxy(True, "https://[ff0e::1]:6443", "[ff0e::1]", "ff0e::1:6443"))
KUBE_MORE_PROXY_ROWS = (("http://k8s.example:6443", {"http_proxy": "@P@", "HTTPS_PROXY": "http://x"}, True),
    ("http://k8s.example", {"HTTP_PROXY": "http://@P@", "NO_PROXY": "k8s.example:80"}, False),
    *((url, KUBE_PROXIED, False) for url in ("https://localhost:1", "https://[::1]:1")),
    *kube_no_proxy(False, KUBE_K8S, ".example:6443", ",,k8s.example", "example,224.0.0.0/8"),
    *kube_no_proxy(True, KUBE_K8S, ",", "*.k8s.example", "*example", "*.*", "k8s.*", ":6443"),
    *kube_no_proxy(True, "https://224.1.2.3:6443", "3", "224.0.0.0/33", "225.0.0.0/8", "::/0", "224.0.0.0/8:6443"),
    *kube_no_proxy(False, "https://[ff0e::1]:6443", "ff00::/8"),
    *kube_no_proxy(True, "https://[ff0e::1]:6443", "[ff0e::1]:443", "0.0.0.0/0"),
    *kube_no_proxy(False, "https://K8S.Example", "k8s.example:443"))


class TestProxyOfTheEnvironment(KubeFolder):
    def test_the_tables(self):
        for url, variables, proxied in KUBE_PROXY_ROWS + KUBE_MORE_PROXY_ROWS:
            with self.subTest(url, **variables):
                filled = {name: value.replace("@P@", "proxy:3128") for name, value in variables.items()}
                self.assertEqual(vr.proxy_for(url, filled), "http://proxy:3128" if proxied else "")

    def went(self, number: int) -> bool:
        url, variables, _ = KUBE_PROXY_ROWS[number]
        path = self.write(kube_config(None, {"server": url, **KUBE_INSECURE}), f"config-{number}")
        with closing(KubeServer()) as proxy:
            own = {**{name: value for name, value in os.environ.items() if name not in KUBE_ABSENT}, "HOME": self.home,
                   **{name: value.replace("@P@", proxy.host) for name, value in variables.items()}}
            subprocess.run([str(KUBECTL), "--kubeconfig", path, "get", "--raw", "/", "--request-timeout", "300ms"],
                           env=own, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, check=False, timeout=20)
            return bool(proxy.seen())

    @skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_does_what_the_table_says(self):
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self.went, range(len(KUBE_PROXY_ROWS))))
        for (url, variables, proxied), went in zip(KUBE_PROXY_ROWS, found):
            self.assertEqual(went, proxied, (url, variables))

    def test_proxies(self):
        """A scheme may be in capitals or missing; what we cannot use is an error without the password in it."""
        for proxy, expected in (("", ""), ("HTTP://h:1", "HTTP://h:1"), ("https://x:%40@h:1/", "https://x:%40@h:1/"),
                                ("[::1]:3128", "http://[::1]:3128"), ("me:x@h:1", "http://me:x@h:1")):
            self.assertEqual(vr.proxy_for("https://k8s", {"HTTPS_PROXY": proxy}), expected, proxy)
        for proxy in ("socks5://me:s3cr3t@h:1", "SOCKS4://h", "ftp://me:s3cr3t@h", "http://", "http://h:x",
                      "http://me:s3cr3t@h:99999", "http://me:s3cr3t@[::1"):
            with self.subTest(proxy):
                error = self.fails(vr.ConfigError, lambda proxy=proxy: vr.proxy_for(
                    "https://k8s", {"HTTPS_PROXY": proxy}), "HTTPS_PROXY")
                self.assertEqual(bool(error.hints), "socks" in proxy.lower())


class TestProxyOnTheWire(KubeFolder):
    GUARDED = "http://me:p%40ss%3Aw@@GUARDED@"

    def test_store(self):
        """A store is reached through the same proxies: by a tunnel for https, by its whole URL for http."""
        secure = f"https://a.example.com:{kube_servers()['named'].port}/b/k?s=1"
        plain = "http://a.example.com:81/b/k?s=1"
        for name, server, url, asked in (("guarded", self.GUARDED, secure, ("CONNECT", urlsplit(secure).netloc)),
                ("guarded", self.GUARDED, plain, ("GET", plain)),
                ("secure", "https://@SECURE@", secure, ("CONNECT", urlsplit(secure).netloc))):
            kube_forget()
            with kube_environment(**dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), kube_fill(server))), vr.open_url(
                    url, vr.Trust(kube_bytes("ca.crt"))) as response:
                self.assertIn(b"gitVersion", b"".join(vr.read_body(response)))
            self.assertEqual([asked], [(call.method, call.target) for call in kube_servers()[name].seen()])

    def test_the_proxy_hears_nothing(self):
        """A proxy sees neither token nor, for https, impersonation; the cluster does not see the proxy's password."""
        for server, target in ((KUBE_BY_NAME["server"], "a.example.com:@NAMEDPORT@"),
                               ("http://a.example.com:81/k8s", "http://a.example.com:81/k8s/version")):
            kube_forget()
            kube_call(self.write(kube_config({"token": "t", "as": "j"}, {"server": server, "proxy-url": self.GUARDED})))
            asked = kube_servers()["guarded"].seen()[0]
            self.assertEqual((kube_fill(target), server.startswith("http:"), False),
                             (asked.target, "impersonate-user" in asked.headers, "authorization" in asked.headers))
            for request in kube_servers()["named"].seen():
                self.assertNotIn("proxy-authorization", request.headers)

    def test_the_password_is_never_shown(self):
        """When a proxy fails it is named as the culprit, and not even -v shows its password."""
        for proxy, code, words in (
                (f"http://me:s3cr3t@127.0.0.1:{free_port()}", 6, "through its proxy: Connection refused"),
                ("http://me:s3cr3t@@GUARDED@", 6, "through its proxy: tunnel connection failed: 407"),
                ("https://me:s3cr3t@@PROXY@", 6, "the cluster at https://a.example.com"),
                ("https://me:s3cr3t@@EXPIRED@", 6, "certificate"),
                ("socks5://me:s3cr3t@h", 1, "SOCKS"), ("http://me:s3cr3t@[::1", 1, "no http or https URL")):
            path = self.write(kube_config(None, {**KUBE_BY_NAME, "proxy-url": proxy}))
            with self.subTest(proxy):
                done = run("-v", "-n", "v", "--kubeconfig", path, "backup", "logs", "b", env=KUBE_ABSENT)
                self.assertEqual((done.code, done.out, words in done.err), (code, b"", True), done.err)
                self.assertNotRegex(done.err, f"s3cr3t|{base64.b64encode(b'me:s3cr3t').decode()}|bug")


# ---- Kubeconfig: what TLS errors say -----------------------------------------

class TestTlsErrors(KubeFolder):
    """What is said when TLS with cluster or store fails: what is wrong, with the names to see it."""
    SHOWN = "(it is for localhost, *.localhost, 127.0.0.1; issuer commonName=test-ca; valid until "

    def unreachable(self, cluster: Document, *words: str) -> None:
        path = self.write(kube_config(None, cluster))
        error = self.fails(vr.Unreachable, lambda: kube_call(path), *words)
        self.assertEqual((int(error.exit), kube_verdict(True), len(str(error)) < 600), (6, "error", True))

    def test_what_is_said(self):
        """A certificate that is not trusted is shown with names, issuer and end, through proxies too.

        The second look asks for the same name, and sends nothing."""
        plain = vr.HttpServer("127.0.0.1:0", bool)
        plain.seconds = 0.1
        self.addCleanup(plain.close)
        for cluster, *words in (
                ({"server": "https://@EXPIRED@"}, f"{datetime.now(timezone.utc) - timedelta(days=1):%Y} GMT)",
                 "certificate has expired by this host's clock, 20", "\nset that clock, or renew the certificate"),
                (KUBE_NO_CA, self.SHOWN, "certificate-authority"),
                ({**KUBE_NO_CA, "proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}, self.SHOWN),
                ({**KUBE_NO_CA, **KUBE_BY_NAME, "proxy-url": "http://@PROXY@"}, "for kubernetes.default.svc"),
                (KUBE_NAMED, "kubernetes.default.svc", "*.example.com", "127.0.0.1"),
                ({"server": "https://127.0.0.1:%d" % plain.listener.getsockname()[1]}, "does not speak TLS"),
                ({"server": "https://@HTTP@"}, kube_servers()["http"].host),
                ({"server": f"https://127.0.0.1:{free_port()}"}, "cannot reach the cluster", "Connection refused"),
                ({**KUBE_NO_CA, "tls-server-name": "x.y"}, self.SHOWN)):
            with self.subTest(cluster):
                kube_forget()
                self.unreachable(cluster, *words)
        self.assertEqual(kube_servers()["https"].names, ["x.y"] * 3)

    def test_words_of_other_versions(self):
        """OpenSSL 1.0 to 3.2, LibreSSL and the check of names in ssl, by texts that were recorded, mean the same."""
        pool, kinds = vr.ConnectionPool("https://127.0.0.1:1", "h", quoting=False), urllib3.exceptions
        plain, eof = "what answers there does not speak TLS; is it", "EOF occurred in violation of protocol"
        untrusted, clock = "h has a certificate that is not trusted: ", " by this host's clock, 2"
        for code, said, *words in (
                (None, "[SSL: UNKNOWN_PROTOCOL] unknown protocol", "no TLS with h: ", plain),
                (None, "[SSL: WRONG_VERSION_NUMBER] wrong version number", "no TLS with h: ", plain),
                (None, "[SSL] record layer failure", "no TLS with h: ", plain),
                (None, eof, "no TLS with h: ", eof.lower()),
                (None, f"[SSL: UNEXPECTED_EOF_WHILE_READING] {eof}", "no TLS with h: ", eof.lower()),
                (9, "certificate is not yet valid", untrusted, "certificate is not yet valid", clock),
                (10, "certificate has expired", untrusted, "certificate has expired", clock),
                (19, "self signed certificate", untrusted, "self signed certificate"),
                (0, "hostname 'h' doesn't match 'x'", untrusted, "hostname 'h' doesn't match 'x'"),
                (None, "[SSL: UNKNOWN_PROTOCOL] unknown protocol", "cannot reach h through its proxy: ", plain)):
            cause: Any = (ssl.SSLError(1, f"{said} (_ssl.c:1129)") if code is None else
                          ssl.SSLCertVerificationError(said))
            if code:
                cause.verify_code, cause.verify_message = code, said
            error = kinds.ProxyError("no", cause) if "proxy" in words[0] else kinds.SSLError(cause)
            error.__cause__ = cause
            with self.subTest(said, words=words):
                told = str(pool.unreachable(error))
                self.assertEqual(("".join(words), False), (told[:len("".join(words))], "_ssl" in told))

    def test_an_authority_without_key_identifiers(self):
        """What Python 3.13 refuses in its strict mode, and old clusters have, is trusted: as the cluster's authority,
        as the store's, and as one of the system's."""
        old = make_certificate(self.folder, identifiers=("subjectKeyIdentifier=none", "authorityKeyIdentifier=none"))
        store = self.enter(closing(FakeStore(tls=True, certificate=old)))
        store.put("b", "k", b"x")
        strict = ssl.create_default_context(cafile=old.ca)
        strict.verify_flags |= ssl.VERIFY_X509_STRICT
        with socket.create_connection(("127.0.0.1", store.port)) as sock, self.assertRaises(ssl.SSLError):
            strict.wrap_socket(sock, server_hostname="127.0.0.1")
        pinned, system = vr.Trust(read_bytes(old.ca)), {"SSL_CERT_FILE": old.ca}
        for trust, variables in ((pinned, {}), (pinned._replace(alone=True), {}), (vr.Trust(), system)):
            with kube_environment(**variables), vr.open_url(store.url_of("b", "k"), trust) as answer:
                self.assertEqual(answer.status, 200)

    def test_a_client_certificate_is_missing(self):
        server = self.enter(closing(KubeServer("tls", demand=True)))
        self.unreachable({"server": server.url}, server.host)

    def test_the_system_counts_only_without_an_authority(self):
        """SSL_CERT_FILE is trusted when the kubeconfig names no authority, and not when it names another."""
        with kube_environment(SSL_CERT_FILE=os.path.join(kube_pki(), "ca.crt")):
            self.assertIn("gitVersion", kube_call(self.write(kube_config(None, KUBE_NO_CA))))
            kube_forget()
            self.unreachable({"certificate-authority-data": "@BASE64:alice.crt@"})

    def test_store(self):
        """A store's certificate is explained the same way; with its authority or insecure it is accepted."""
        own = vr.Trust(kube_bytes("ca.crt"))
        for name, trust, words in (("expired", own, ("valid until",)), ("https", vr.Trust(), ("test-ca", "--cacert"))):
            self.fails(vr.Unreachable, vr.open_url(
                kube_servers()[name].url + "/k?X-Amz-Signature=s3cr3t", trust).__enter__, *words)
        for trust in (vr.Trust(insecure=True), own):
            with vr.open_url(kube_servers()["https"].url + "/k", trust) as answer:
                self.assertEqual(answer.status, 200)

    @skipUnless(hasattr(os, "memfd_create"), "no anonymous files here, so keys pass through one on disk")
    def test_keys_are_never_on_disk(self):
        """A call with an inline key opens no file for writing, and leaves no descriptor."""
        opened: List[Any] = []
        watching = [True]

        def hook(event: str, arguments: Any) -> None:
            if watching and event == "open" and isinstance(arguments[0], str) and (
                    set(arguments[1] or "") & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                opened.append(arguments[0])

        def descriptors() -> int:
            wait_until(lambda: not any(server._connections for server in kube_servers().values()), 5, "their ends")
            return len(os.listdir("/proc/self/fd"))
        path, before = self.write(kube_config(KUBE_CERT)), descriptors()
        sys.addaudithook(hook)
        try:
            kube_call(path)
        finally:
            watching.clear()
        self.assertEqual((opened, kube_servers()["https"].seen()[0].user), ([], "alice"))
        wait_until(lambda: descriptors() <= before, 5, "no descriptor more than before")


# ---- Kubeconfig: bad input ---------------------------------------------------

def kube_bombs() -> Iterator[str]:
    """Kubeconfigs that grow into millions of entries, or have no end."""
    good = yaml.safe_dump(kube_config(), sort_keys=False)
    yield "x0: &x0 [a, a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40)) + good
    yield "m0: &m0 {a: b}\n" + "".join(
        f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]\n  k{n}: v\n" for n in range(1, 40)) + good
    yield from ("- " * 100_000, "{\"a\": " + "[" * 100_000 + "]" * 100_000 + "}", "- s3cr3t\n" * (1 << 20),
                "\0" * (9 << 20))


class TestKubeconfigBadInput(KubeFolder):
    """What else is no kubeconfig: one sentence with the file, exit 1, at once."""

    def test_bombs(self):
        """What grows, nests or goes on without end is an error of one line, soon and within two gigabytes."""
        for text in kube_bombs():
            with self.subTest(text[:30]):
                path = self.write(text)
                done = kube_program(path, seconds=25, memory="2000000")
                self.assertEqual((1, b"", False, True), (done.returncode, done.stdout, b"s3cr3t" in done.stderr,
                                                         len(done.stderr) < 1500), done.stderr[-400:])
                self.assertRegex(done.stderr.decode(), rf"\Aerror: [^\n]*{re.escape(path)}[^\n]*\n(hint: [^\n]*\n)*\Z")

    def test_a_list_of_files_that_are_not_there(self):
        """A KUBECONFIG without a file that exists is warned of, but not when a flag names another."""
        with kube_environment(KUBECONFIG="/gone/a:/gone/b", HOME=self.home):
            with self.assertLogs("velero_requests", "WARNING") as logs:
                self.fails(vr.ConfigError, vr.load_cluster, "no kubeconfig found")
                self.fails(vr.ConfigError, lambda: vr.load_cluster("/gone/c"), "/gone/c")
        self.assertEqual([line.partition("exists: ")[2] for line in logs.output], ["/gone/a:/gone/b"])

    def test_a_pipe_that_takes_its_time(self):
        """A pipe, as `<(slow command)` makes it, is read to its end."""
        content = read_bytes(self.write(kube_config()))
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        with ThreadPoolExecutor(1) as pool:
            loaded = pool.submit(vr.load_cluster, f"/dev/fd/{reader}")
            with open(writer, "wb", buffering=0) as pipe:
                for piece in (content[:20], content[20:]):
                    pipe.write(piece)
                    wait_until(lambda: not select.select([reader], [], [], 0)[0], what="the piece to be read")
            self.assertEqual(loaded.result(10).token, "t")


class TestKubeconfigParseYaml(TestCase):
    def test_values(self):
        """Scalars have their types, but dates stay text."""
        for text, value in (
                *((text, text) for text in ("2026-11-22", "2026-11-22T10:00:00Z", "=", "1.2.3", "1e3", "0o17", "yes!")),
                ("'1'", "1"), ('"true"', "true"), ("!!str 1", "1"), ("yes", True), ("True", True), ("No", False),
                ("off", False), ("8443", 8443), ("-1", -1), ("1.5", 1.5), ("0x1F", 31), ("12345678901", 12345678901),
                ("", None), ("~", None), ("null", None)):
            with self.subTest(text):
                read = vr.parse_yaml(f"a: {text}\n".encode(), "X")["a"]
                self.assertEqual((read, type(read)), (value, type(value)))

    def test_limits(self):
        """Depth, nodes and bytes have limits, to the one; an alias counts with all that it stands for."""
        nodes = vr.MAX_YAML_NODES - 1
        for text, good in (("[" * 100 + "]" * 100, True), ("[" * 101 + "]" * 101, False), (f"[{'a,' * nodes}]", True),
                           (f"[{'a,' * nodes}a]", False), (f"[&x [{'a,' * 49_996}], *x]", True),
                           (f"[&x [{'a,' * 50_000}], *x]", False), ("[&x a, *x]", True),
                           (" " * vr.KUBECONFIG_LIMIT, True), (" " * vr.KUBECONFIG_LIMIT + "a", False)):
            with self.subTest(text[:20], good=good), nullcontext() if good else self.assertRaises(vr.ConfigError):
                vr.parse_yaml(text.encode(), "X")


class TestKubeconfigRuleFor(TestCase):
    def test_what_grants_a_call(self):
        """A refused call is told as verb, resource and namespace, and the line of a Role that grants it."""
        root = "/apis/velero.io/v1/namespaces/v/downloadrequests"
        for method, path, verb, *other in (("POST", root, "create"), ("GET", root, "list"), ("GET", root, "watch"),
                ("DELETE", f"{root}/x", "delete"), ("PATCH", f"{root}/x/status", "patch", "downloadrequests/status"),
                ("GET", "/api/v1/namespaces/v/secrets/s", "get", "secrets"),
                ("GET", "/api/v1/namespaces/v/services/http:s:http/proxy/a/b", "get", "services/proxy")):
            told, rule = vr.rule_for(method, path, verb == "watch")
            resource = other[0] if other else DR
            wanted = [{"apiGroups": ["velero.io" if root in path else ""], "resources": [resource], "verbs": [verb],
                       **({"resourceNames": ["http:s:http"]} if "/proxy/" in path else {})}]
            self.assertEqual((f"{verb} {resource} in namespace v", wanted), (told, yaml.safe_load(rule)))
        for path in ("/version", "/apis/velero.io/v1", "/api/v1/namespaces", "", "/api/v1/namespaces/v"):
            self.assertEqual(vr.rule_for("GET", path, False), ("", ""))


# ---- Endurance: the tools ----------------------------------------------------

SOAK = float(os.environ.get("VELERO_SOAK", "8"))
ALWAYS = 1 << 30


def spend(seconds: float) -> None:
    """Let time pass where time itself is what is tested: rates, silences, outages."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5)


def dripped(piece: bytes) -> Iterator[Any]:
    """The same piece again and again, a little time after one another."""
    return itertools.cycle((0.1, piece))


class EnduranceWorld(FaultWorld):
    """A cluster over TLS that fails in scripted ways; the log tells what a user reads at -v."""

    def setUp(self):
        super().setUp()
        vr.log.setLevel(logging.INFO)
        self.addCleanup(lambda: [controller.stop.set() for controller in self.controllers])

    def api(self, kubeconfig: str = "", timeout: float = 20.0, **changes: Any) -> Any:
        """A connection of the module's own, with changes to what the kubeconfig says."""
        api = vr.connect(vr.load_cluster(kubeconfig or self.kubeconfig)._replace(**changes))
        self.addCleanup(lambda: api.session.close())
        return api._replace(timeout=timeout)

    def call(self, name: str, api: Any) -> Any:
        return CALLS[name][2](api, self.namespace)

    def new_token(self) -> str:
        token = "more-" + uuid.uuid4().hex
        self.cluster.tokens[token] = "admin"
        return token

    def watched(self) -> None:
        wait_until(lambda: len(self.cluster.watches(self.path(""))) == 2, 40, "both watches of the test's namespace")

    def looked_at(self, name: str, seconds: float = 60) -> None:
        wait_until(lambda: (self.look(name) or {}).get("status"), seconds, f"a status of {name}")


# ---- Endurance: one request --------------------------------------------------

class TestRetryTables(Cases):
    def test_retry_after_is_seconds_or_a_date(self):
        now = datetime(2015, 10, 21, 7, 28, 0, tzinfo=timezone.utc)
        self.gives(lambda header: vr.retry_after_seconds(header, now), *(
            ("0", 0.0), ("1", 1.0), ("120", 120.0), ("999999999", 999999999.0), ("", None),
            ("Wed, 21 Oct 2015 07:28:07 GMT", 7.0), ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
            ("Wednesday, 21-Oct-15 07:28:07 GMT", 7.0), ("Wed Oct 21 07:28:07 2015", 7.0),
            ("Wed, 21 Oct 2015 09:28:07 +0200", 7.0), ("1.5", None), ("-1", None), ("\xb2", None),
            ("\u0661", None), ("soon", None), ("9" * 400, None), ("1e3", None),
            ("Wed, 99 Oct 2015 07:28:07 GMT", None), (" ", None), ("NaN", None)))

    def test_retry_wait(self):
        """429 may always be sent again, 5xx never for POST, nothing a third time; Retry-After counts up to 10 s."""
        for method, attempt, status, asked, wanted in (
                ("GET", 1, 503, 0.0, 0.0), ("GET", 2, 503, 3.0, 3.0), ("GET", 1, 503, 3600.0, 10.0),
                ("PATCH", 1, 500, None, 0.1), ("DELETE", 2, 502, None, 0.2), ("GET", 3, 504, None, None),
                ("POST", 1, 429, None, 0.1), ("POST", 1, 503, 1.0, None), *(
                    ("GET", 1, status, 1.0, None) for status in (301, 400, 401, 403, 404, 409, 410, 422, 501))):
            self.assertEqual(vr.retry_wait(method, attempt, status, asked), wanted, (method, attempt, status))

    def test_refusals_and_their_cures(self):
        path, long = "/apis/velero.io/v1/namespaces/n/backups", b'{"message": "%b"}' % (b"x" * 100_000)
        for status, body, words, cure in (
                (404, b"404 page not found\n", "the cluster does not serve backups", "are Velero's CRDs installed?"),
                (404, b'{"message": "the server could not find it"}', "the server could not find it", "are Velero's"),
                (404, b'{"message": "b1 not found"}', "b1 not found", ""), (401, b"", "no text", "the credentials of "),
                (403, b"<p>gateway", "<p>gateway", "you may not list backups in namespace n; a Role there grants it"),
                (418, b'{"message": 5}', '{"message": 5}', ""), (418, long, "x" * 1023 + "…", ""),
                (500, b"404 page not found", "404 page not found", "")):
            with self.subTest(words[:40]):
                error = vr.api_error(status, body, "GET", path)
                self.assertEqual(f"{words} (GET {path}: {status})", str(error))
                self.assertRegex("".join(error.hints), f"^{cure}" if cure else "^$")


# A way to call each verb of the module: method, part of the target, the call itself.
CALLS: Any = {"get": ("GET", "/backups/b1", lambda api, space: api.get(vr.BACKUPS, space, "b1")),
    "list": ("GET", "/backups?", lambda api, space: list(api.list_pages(vr.BACKUPS, space))),
    "watch": ("GET", "watch=true", lambda api, space: api.open_watch(
        vr.BACKUPS, space, "0", seconds=1, silence=api.timeout).close()),
    "patch": ("PATCH", "/backups/b1", lambda api, space: api.merge_patch(
        vr.Key(vr.BACKUPS, space, "b1"), {"metadata": {"labels": {"a": "b"}}})),
    "delete": ("DELETE", "/backups/b2", lambda api, space: api.delete(vr.Key(vr.BACKUPS, space, "b2"))),
    "create": ("POST", "/downloadrequests", lambda api, space: api.create(
        vr.DOWNLOAD_REQUESTS, vr.new_download_request(space, "BackupLog", "b1", os.urandom(4).hex())))}
AT_ONCE = {"headers": {"Retry-After": "0"}}
ON_FIRE: Document = {"times": ALWAYS, "body": {"message": "on fire"}, **AT_ONCE}
AGAIN = ("", 2)
# What can happen to a call -> words of its error, none when it succeeds, and how often it is made; the same for a POST.
API_FAULTS: Any = (
    ({"status": 429, **AT_ONCE}, AGAIN, AGAIN), ({"status": 500, "body": "oops", **AT_ONCE}, AGAIN, ("oops", 1)),
    ({"status": 502, "body": "<html>", **AT_ONCE}, AGAIN, ("<html>", 1)),
    ({"status": 504, **AT_ONCE}, AGAIN, ("504", 1)), ({"drop": True}, AGAIN, ("cannot reach", 1)),
    ({"status": 503, "headers": {"Retry-After": formatdate(time.time() - 5, usegmt=True)}}, AGAIN, ("503", 1)),
    ({"drop": True, "apply": True}, AGAIN, ("cannot reach", 1)),
    ({"status": 500, "apply": True, **AT_ONCE}, AGAIN, ("500", 1)), ({"status": 501}, ("501", 1), ("501", 1)),
    ({"status": 403}, ("no text.*403", 1), ("no text.*403", 1)),
    ({"status": 418, "body": {"message": "a teapot"}}, ("^a teapot .*: 418", 1), ("^a teapot .*: 418", 1)),
    ({"status": 429, "headers": {"Retry-After": "5"}}, ("429", 1), ("429", 1)),  # nobody waits longer than the timeout
    ({"status": 429, **ON_FIRE}, ("on fire", 3), ("on fire", 3)),
    ({"status": 503, **ON_FIRE}, ("on fire", 3), ("on fire", 1)),
    ({"hang": SILENT}, ("does not answer in time", 1), ("does not answer in time", 1)))
# Answers of which nothing can be made, by any call that wants a document.
BAD_ANSWERS: Tuple[Document, ...] = (*({"status": 200, "body": body} for body in (
        "<html><body>Sign in</body></html>", '{"kind": "Backup", "meta', "[]", "5", "null", '"x"', "", "[" * 100_000,
        b"\xff\xfe", b"\x00")), {"cut_after": 5}, {"status": 200, "body": "{}" + " " * 50, "cut_after": 9},
    {"chunks": [b'{"kind": ', b'"Back'], "cut": True}, {"pause_after": 5, "gate": SILENT},
    {"status": 200, "body": b"no gzip", "headers": {"Content-Encoding": "gzip"}},
    *({"status": 200, "body": body, "headers": {"Content-Encoding": encoding}} for encoding, body in (
        ("br", b"{}"), ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
        ("gzip", gzip.compress(gzip.compress(b"{}"))), ("gzip", gzip.compress(b"{}") * 2),
        ("gzip", gzip.compress(b"{}")[:-1]), ("gzip", b""))),
    {"status": 403, "body": {"message": "no" * 50}, "cut_after": 9}, {"chunks": [b"{}"], "status": 403, "cut": True},
    {"status": 409, "body": "x" * 100, "pause_after": 5, "gate": SILENT})


class TestRequestFaults(EnduranceWorld, TestCase):
    def test_what_may_be_repeated_is_repeated(self):
        """A POST that may have had its effect is not sent again."""
        api = self.api(timeout=1.0)
        for options, *outcomes in API_FAULTS:
            for name, (method, part, _) in CALLS.items():
                if name == "watch" and "apply" in options:
                    continue  # a watch that was begun has no other answer
                with self.subTest(call=name, **{key: str(value) for key, value in options.items()}):
                    self.cluster.unscript()
                    self.cluster.forget()
                    self.cluster.script(method, part, **options)
                    words, tries = outcomes[method == "POST"]
                    outcome: Any = nullcontext() if not words else self.assertRaisesRegex(
                        (vr.ApiError, vr.Unreachable), words)
                    with within(3), outcome:
                        self.call(name, api._replace(timeout=0.3) if "hang" in options else api)
                    self.assertEqual(self.cluster.count(method, part), tries)

    def test_answers_of_the_wrong_shape_are_one_error(self):
        """It names the call."""
        hasty, patient = self.api(timeout=1), self.api()
        for options, name in product(BAD_ANSWERS, ("get", "list", "create", "patch")):
            (method, part, _), api = CALLS[name], hasty if "gate" in options else patient
            with self.subTest(call=name, **{key: str(value)[:40] for key, value in options.items()}):
                self.cluster.unscript()
                self.cluster.script(method, part, ALWAYS, **options)
                refused = options.get("status", 200) != 200
                self.assertRaisesRegex(vr.ApiError if refused else vr.Unreachable, method, self.call, name, api)

    def test_what_comes_packed_or_is_large(self):
        """One layer of gzip that nobody asked for is taken off; the limit is 48 MiB."""
        api, packing = self.api(), {"Content-Encoding": "gzip"}
        for headers, body in ((packing, gzip.compress(b" " * (vr.ANSWER_LIMIT + 1))), ({}, b"{}" + b" " * (50 << 20))):
            self.cluster.script("GET", "/backups/b1", status=200, body=body, headers=headers)
            self.assertRaisesRegex(vr.Unreachable, "GET .*/backups/b1 has more than 48 MiB", self.call, "get", api)
        body = gzip.compress(b'{"kind": "Backup"}')
        self.cluster.script("GET", "/backups/b1", status=200, body=body, headers=packing)
        self.assertEqual({"kind": "Backup"}, self.call("get", api))
        self.cluster.script("GET", "/backups?", status=200, body=b"x" * (50 << 20))
        self.assertEqual(1, len(self.call("list", api)))  # for smaller pages are asked for

    def test_no_verb_takes_an_impossible_name(self):
        """An empty one would be all objects of the kind."""
        self.ask()
        for name in ("", ".", "..", "a/b", "A"):
            api, key = self.api(), vr.Key(vr.DOWNLOAD_REQUESTS, self.namespace, name)
            self.assertFalse(api.delete(key))
            for refused in (lambda: api.merge_patch(key, {}), lambda: api.get(*key)):
                self.assertRaisesRegex(vr.Missing, "no object can have this name", refused)
        self.assertEqual(len(self.names()), 1)

    def test_connections(self):
        """One serves call after call; after the server closed it every call works, a POST too."""
        api = self.api()
        for name in CALLS:
            with self.subTest(call=name):
                self.call(name, api)
                self.cluster.cut_connections()
                self.call(name, api)
        pool = api.session.pool.pool
        made = pool.num_connections
        for status in (404, 500):
            self.cluster.script("GET", "/backups/b1", status=status, body={"message": "x"}, **AT_ONCE)
            with suppress(vr.ApiError):
                self.call("get", api)
        self.assertEqual((api.session.pool.pool, pool.num_connections), (pool, made))

    def test_connecting_has_a_timeout(self):
        """With a host that never speaks TLS, or accepts no connection."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            api = self.api(server=f"https://127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
            for _ in range(4):  # the first ones fill the listener's queue
                with within(3):
                    self.assertRaises(vr.Unreachable, self.call, "get", api)

    def test_warnings_of_the_cluster_are_shown_once(self):
        """In one line, without tokens, also when the call fails."""
        api = self.api()
        header = f'299 - "v1 is \\"old\\"", 299 - "use v2\tnow, Bearer {token_of("admin")}", 199 - "misc", nonsense'
        for options in ({"status": 404, "body": {}}, {}, {}):
            self.cluster.script("GET", "/backups/b1", headers={"Warning": header}, **options)
            with suppress(vr.Missing):
                self.call("get", api)
        said = self.log.getvalue()
        self.assertEqual([1, 1, 0], [said.count(words) for words in ("v1 is", "use v2", "misc")])
        self.assert_clean(said)


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
HANDSHAKE = "a handshake that trickles"
# What a server may answer -> how it begins, what it goes on with for ever, if not with silence, and if byte by byte.
ATTACKS: Any = {"silence": (b"", b"", False), HANDSHAKE: (b"\x16\x03\x03\x40\x00\x02\x00", b"\x00", True),
    "a status line that trickles": (b"HTTP/1.1 200 ", b"very ", True),
    "a header that trickles": (OK + b"X: ", b"yes ", True), "headers without an end": (OK, b"X: y\r\n", False),
    "a header without an end": (OK, b"X", False),
    "informational answers without an end": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", False),
    "a body that trickles": (OK + b"Content-Length: 60000\r\n\r\n{", b" ", True),
    "a body without an end": (OK + b"\r\n{", b" ", False),
    "a chunk's header that trickles": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0", True),
    "a chunk's header without an end": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0", False),
    "trailers without an end": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n", False),
    "a refusal that trickles": (b"HTTP/1.1 403 No\r\nContent-Length: 60000\r\n\r\n<", b"x", True),
    "an unknown encoding": (OK + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", b"", False)}


class Stranger(LoopbackServer):
    """A server that answers everything by one of the ATTACKS."""

    def __init__(self, attack: str, tls: bool = False) -> None:
        super().__init__(tls and attack != HANDSHAKE)
        self.url, self.attack = f"{'https' if tls else 'http'}://{self.host}", attack
        self.start()

    def _converse(self, accepted: socket.socket) -> None:
        if self.attack != HANDSHAKE:
            super()._converse(accepted)
        elif accepted.recv(65536):
            with suppress(OSError), closing(Connection(accepted)) as connection:
                self._play(self.pieces(), connection)

    def pieces(self) -> Iterator[Any]:
        start, more, is_slow = ATTACKS[self.attack]
        yield start
        while more:
            yield from itertools.chain(*((bytes([byte]), 0.02) for byte in more)) if is_slow else [more * 10_000]
        yield threading.Event()

    def answer(self, request: Request, connection: Connection) -> bool:
        self._play(self.pieces(), connection)
        return False


def strange_api(**more: Any) -> Any:
    return vr.connect(vr.Cluster(insecure=True, **more))._replace(timeout=0.5).get(vr.BACKUPS, "velero", "b1")


def in_time(seconds: float, chunks: Iterable[bytes]) -> bytes:
    """All of the chunks, within so many seconds."""
    with vr.time_limit(seconds):
        return b"".join(chunks)


# A small exchange -> what asks a server for it, within half a second.
EXCHANGES: Any = {"API": lambda server: strange_api(server=server.url),
    "API by a proxy": lambda server: strange_api(server=server.url, proxy_url=kube_servers()["proxy"].url),
    "API by TLS with a proxy": lambda server: strange_api(
        server=server.url, proxy_url=f"https://{kube_servers()['secure'].host}"),
    "CONNECT": lambda server: strange_api(server="https://a.example.com", proxy_url=server.url),
    "STS": lambda server: vr.ask("POST", server.url, {}, b"x", timeout=0.5),
    "region": lambda server: vr.discover_region(vr.Address("http", server.host, "/bucket", "us-east-1"), 0.5),
    "verify": lambda server: vr.verify_url(server.url + "/b/k", vr.Trust(), 0.5),
    "small object": lambda server: in_time(0.5, (
        vr.Bucket(a_location(s3_url=server.url), KEYS_1, vr.Trust()).read_small("k", "it") for _ in "1")),
    "artifact of a screen": lambda server: in_time(0.5, vr.Download(
        vr.UrlSource(lambda skew: (server.url + "/b/k", vr.Trust(), "")), "it", gunzip=True).chunks())}


class TestSlowStrangers(TestCase):
    """Whatever trickles, is silent or has no end: a small exchange is over in time, and in bounds."""

    def suffer(self, row: Tuple[str, str]) -> Tuple[str, float]:
        exchange, attack = row
        started = time.monotonic()
        with closing(Stranger(attack, tls=exchange.startswith("API"))) as server:
            try:
                outcome = f"{EXCHANGES[exchange](server)!r:.100}"
            except vr.Error as error:
                outcome = type(error).__name__
            return outcome, time.monotonic() - started

    def test_every_exchange_has_a_deadline(self):
        kube_servers()
        rows = list(product(EXCHANGES, ATTACKS))
        with ThreadPoolExecutor(8) as pool:
            for (exchange, attack), (outcome, seconds) in zip(rows, pool.map(self.suffer, rows)):
                with self.subTest(exchange=exchange, attack=attack):
                    self.assertLess(seconds, 2.0)
                    if exchange in list(EXCHANGES)[:5] or attack in list(ATTACKS)[:7]:  # which need no body
                        self.assertIn(outcome, ("Unreachable", "ApiError"))


CLOUD = {"name": "cloud", "key": "keys"}
# Whom twenty requests may wait for -> what their location says of itself, and the environment of the controller.
BLACK_HOLES: Any = {
    "store": ({"config": {"region": "r", "s3Url": "@", "s3ForcePathStyle": "true"}, "credential": CLOUD}, {}),
    "STS": ({"config": {"region": "eu-west-1"}}, {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": __file__, "AWS_ENDPOINT_URL_STS": "@"}),
    "container": ({"config": {"region": "eu-west-1"}}, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "@/keys"}),
    "instance": ({"config": {"region": "eu-west-1"}}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "@"}),
    "region": ({"credential": CLOUD}, {"HTTPS_PROXY": "@"})}


class TestBlackHoles(EnduranceWorld, TestCase):
    """Who is silent holds up one worker, once, and neither the others nor the end."""

    def test_twenty_requests_of_a_black_hole(self):
        """They cost one worker one deadline; SIGTERM is heard."""
        for name, hosts in [*((name, 1) for name in BLACK_HOLES), ("store", 20)]:
            with self.subTest(silent=name, hosts=hosts), ExitStack() as stack:
                self.move()
                self.put()
                strangers = [stack.enter_context(closing(Stranger("silence"))) for _ in range(hosts)]
                said, variables = BLACK_HOLES[name]
                spec = json.dumps({"provider": "aws", "objectStorage": {"bucket": "bucket"}, **said})
                for number, stranger in enumerate(strangers):
                    self.make(BSL, "BackupStorageLocation", f"hole-{number}",
                              spec=json.loads(spec.replace("@", stranger.url)))
                for number in range(20):
                    self.make_backup(f"lost-{number}", f"hole-{number % hosts}")
                stack.enter_context(environment({
                    key: value.replace("@", strangers[0].url) for key, value in variables.items()}))
                controller = self.serve(verify_urls=name == "store", stop_time=0.3)
                self.answered(self.ask())
                for number in range(20):
                    self.ask(name=f"lost-{number}")
                wait_until(lambda: any(stranger.requests for stranger in strangers), 5, "the first to wait")
                self.make_backup("b2")
                good, asked = self.ask(name="b2", kind="BackupContents"), time.monotonic()
                self.looked_at(good, 5)
                self.assertLess(time.monotonic() - asked, 2.0)
                self.assertLessEqual(sum(len(stranger.requests) for stranger in strangers), 3)
                controller.stop.set()

    def test_a_host_that_is_busy(self):
        """Who found it so comes again soon, however often before, and it is no failure."""
        self.put()
        controller = self.serve(verify_urls=True)
        with controller.hosts.guard("a"), controller.hosts.guard("b"), controller.hosts.guard("c"):
            name = self.ask()
            spend(1.5)
            self.assertEqual(({}, None), (controller.failures, (self.look(name) or {}).get("status")))
        self.looked_at(name, 0.8)


class TestRotation(EnduranceWorld, TestCase):
    def test_a_refused_token_is_read_again_at_once(self):
        """A call that met 401 is made once more, a POST too; a second 401 is the error, for a fixed token the first."""
        for name, (method, part, _) in CALLS.items():
            with self.subTest(call=name):
                old, new, path = self.new_token(), self.new_token(), self.at("token")
                write_bytes(path, old.encode())
                api = self.api(self.kubeconfig_of({"tokenFile": path}))
                self.call("get", api)
                write_bytes(path, f"{new}\n".encode())
                del self.cluster.tokens[old]
                self.cluster.forget()
                self.call(name, api)
                self.assertEqual([request.status == 401 for request in self.cluster.seen(method, part)], [True, False])
                del self.cluster.tokens[new]
                self.cluster.forget()
                with self.assertRaises(vr.ApiError) as caught:
                    self.call(name, api)
                self.assertEqual((caught.exception.status, self.cluster.count()), (401, 2))
                self.assertIn("log in again", " ".join(caught.exception.hints))
        self.cluster.script("GET", "/backups/b1", ALWAYS, status=401, body={"message": "Unauthorized"})
        self.assert_failed(self.cli("backup", "logs", "b1"), 5, "Unauthorized")
        self.assertEqual(self.cluster.count("GET", "/backups/b1"), 1)

    def test_a_token_that_cannot_be_read(self):
        """The old one stays in use; without one nothing is sent, nothing anonymous."""
        empty = self.api(self.kubeconfig_of({"tokenFile": write_bytes(self.at("empty"), b"")}))
        self.assertRaisesRegex(vr.ConfigError, "empty is empty", self.call, "get", empty)
        self.assertEqual(self.cluster.seen(), [])
        path = write_bytes(self.at("token"), self.new_token().encode())
        api = self.api(self.kubeconfig_of({"tokenFile": path}))
        for content in (b"", b" \n", b"a\nb", b"\xff\x00\x80", None):
            self.call("get", api)
            if content is None:
                os.remove(path)
            else:
                write_bytes(path, content)
            with self.subTest(content=content):
                self.cluster.script("GET", "/backups/b1", status=401, body={})
                self.cluster.forget()
                self.call("get", api)
                self.assertEqual([request.user for request in self.cluster.seen(None, "/backups/b1")], ["admin"] * 2)


RIGHTS = [(verb, rule["apiGroups"][0], resource) for rule in LEAST for resource in rule["resources"]
          for verb in rule["verbs"]]


class Stale(Dict[Any, Any]):
    """Copies that are older than the objects, which are read again after a conflict."""

    def get(self, key: Any, default: Any = None) -> Any:
        record = super().get(key)
        return record._replace(version="1") if record else default


class RightsTests(ControllerWorld):
    """What is not allowed is said once, with the cure, and done when it is allowed again."""

    def rob(self, verb: str, resource: str, user: str = "controller") -> None:
        self.cluster.limit(user, verb, resource=resource, namespace=self.namespace)

    def assert_told(self, text: str, verb: str, resource: str, group: str = "velero.io") -> None:
        """One line says which right is missing, and which line of a Role grants it."""
        line = (f"you may not {verb} {resource} in namespace {self.namespace}; a Role there grants it with: "
                f'- {{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}')
        self.assertEqual(text.count(line), 1, line)

    def test_a_controller_says_once_what_it_may_not(self):
        """However many tries; given back, everything is answered."""
        self.addCleanup(self.cluster.unlimit)
        rights, spaces = [right for right in RIGHTS if self.status_subresource or "/" not in right[2]], []
        for verb, _, resource in rights:
            spaces.append(self.move())
            self.rob(verb, resource)
            self.serve(**({"records": Stale()} if (verb, resource) in (("get", DR), ("get", SSR)) else {}))
            self.ask_status()
            asked = [self.ask("RestoreLog", "r1"), *(self.ask(name=name) for name in ("nobody", "no-one", "none"))]
            if resource == "events":  # there is a reason without them
                self.assertEqual([reason_of(self.failed(name)) for name in asked[1:]], ["BackupNotFound"] * 3)
        for (verb, group, resource), space in zip(rights, spaces):
            with self.subTest(verb=verb, resource=resource):
                self.move(space)
                refused = partial(self.cluster.count, None, self.path(resource.partition("/")[0]), "controller", 403)
                wait_until(lambda refused=refused: refused() > 2 or self.turn(seconds=5), 40, "tries")
                self.assert_told(self.log.getvalue(), verb, resource, group)
        asked = [(self.move(space), self.ask()) for space in spaces]
        self.cluster.unlimit()
        for controller in self.controllers:
            controller.records = dict(controller.records)
        self.turn(seconds=30)  # which is the longest back-off of a request
        for space, name in asked:
            self.move(space)
            wait_until(lambda name=name: self.processed(name), 40, name)
            name = self.ask_status()
            wait_until(lambda name=name: self.processed(name, SSR), 40, name)


class TestRightsReal(RightsTests, RealWorld, TestCase):
    status_subresource = True  # where each right is used


class TestRights(RightsTests, EnduranceWorld, TestCase):
    def test_a_client_names_what_it_may_not_or_does_without(self):
        """Without watch it polls, without delete the request stays, which -v tells; create and get are needed."""
        self.serve()
        self.put()
        logs, plugins, asked = ("backup", "logs", "b1"), ("plugin", "get"), DR
        for verb, words in (("watch", "cannot watch resource"), ("delete", "until it expires")):
            for resource, argv, times in ((asked, logs, 0), (asked, (*logs, "-v"), 1), (SSR, plugins, 0)):
                self.rob(verb, resource, "admin")
                with self.subTest(verb=verb, argv=argv):
                    result = self.cli(*argv)
                    self.assertEqual((0, times), (result.code, result.err.count(words)), result.err)
                    self.assertIn(LOG if argv != plugins else b"velero.io/aws", result.out)
        left = len(self.names()), len(self.names(SSR))
        self.assertEqual((6, 2, 1), (self.cluster.count("GET", "watch=", "admin"), *left))
        self.turn(minutes=11)
        wait_until(lambda: not self.names(), 15, "the controller to delete them")
        for verb, resource, argv in (("get", asked, logs), ("create", asked, logs), ("create", SSR, plugins)):
            with self.subTest(verb=verb, argv=argv):
                self.rob(verb, resource, "admin")
                result = self.cli(*argv, "--timeout", "10s")
                self.assert_failed(result, 5, "forbidden")
                self.assert_told(result.err, verb, resource)


# ---- Endurance: watches ------------------------------------------------------

def status_event(code: Any, reason: str = "") -> Document:
    return {"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                                        "message": "made up", "code": code, "reason": reason}}


BOOKMARK: Document = {"type": "BOOKMARK", "object": {"kind": "DownloadRequest", "apiVersion": "velero.io/v1",
                                                     "metadata": {"resourceVersion": "1"}}}
EXPIRED: Document = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                     "reason": "Expired", "message": "too old resource version"}

# What may become of any GET, by name.
GET_FAULTS: Dict[str, Document] = {
    "HTTP 401": {"status": 401, "body": {"message": "Unauthorized"}}, "HTTP 403": {"status": 403, "body": "forbidden"},
    "HTTP 404": {"status": 404, "body": "404 page not found"}, "HTTP 410": {"status": 410, "body": EXPIRED},
    "reason Expired without 410": {"status": 400, "body": {**EXPIRED, "code": 400}},
    "HTTP 429": {"status": 429, "headers": {"Retry-After": "1"}, "body": "slow down"},
    "HTTP 500": {"status": 500, "body": {"message": "etcd leader changed"}}, "connection reset": {"drop": True},
    "HTTP 302": {"status": 302, "headers": {"Location": "https://127.0.0.1:1/"}},
    **{name: {"status": 200, "body": body} for name, body in {
        "HTML": "<html>\n<body>\nSign in, please", "an empty body": "", "JSON too deep": "[" * 100_000 + "\n",
        "truncated JSON": '{"kind": "DownloadRequestList", "items": [{"meta',
        "JSON of the wrong shape": '[1, null, "x"]\n5\nnull\n{"items": 5}\n'}.items()}}
# What may become of a watch, by name.
WATCH_FAULTS: Dict[str, Document] = {**GET_FAULTS, **{name: {"chunks": chunks} for name, chunks in {
        "a stream that ends at once": [], "a bookmark and the end": [BOOKMARK],
        "a bookmark without version": [{"type": "BOOKMARK", "object": {}}],
        "410 as ERROR event": [status_event(410, "Expired")],
        "ERROR with reason Expired alone": [status_event(None, "Expired")],
        "ERROR with reason Gone alone": [status_event("410", "Gone")],
        "ERROR 429": [status_event(429, "TooManyRequests")], "ERROR without an object": [{"type": "ERROR"}],
        "ended in a line": [b'{"type":"ADDED","object":{"meta'],
        "bytes that are no UTF-8": [b'{"type":"ADDED","object":{"x":"\xff"}}\n'],
        "events of nonsense": [{"type": "ADDED", "object": 5}, {"type": 5}, {"type": "MODIFIED"},
                               {"type": "DELETED", "object": []}, {"type": "NEW", "object": {}}],
        "events for other objects": [
            {"type": kind, "object": {"metadata": {"name": "p", "namespace": space, "resourceVersion": "1"}}}
            for kind in ("ADDED", "MODIFIED", "DELETED") for space in ("", "kube-system")]}.items()},
    "cut in a character": {"chunks": ['{"type":"ADDED","object":{"x":"ü'.encode()[:-1]], "cut": True}}


class TestWatchFaults(EnduranceWorld, TestCase):
    """Whatever a list or a watch comes to, the controller goes on, at leisure, and misses nothing."""

    def test_what_fails(self):
        """Once: an answer is delayed by the back-off. Always: a call a second at most, tried three times, is made, and
        why is said once."""
        for times in (1, ALWAYS):
            sieges: List[Tuple[str, str, Fault]] = []  # each with a namespace and a controller of its own
            for query, faults in (("?watch=true", WATCH_FAULTS), ("?limit=", GET_FAULTS)):
                for name, options in faults.items():
                    space = self.move()
                    sieges.append((name + query, space, self.cluster.script(
                        "GET", self.path(DR + query), times, **options)))
                    self.serve()
            for name, _, fault in sieges:
                wait_until(lambda fault=fault: fault.hits, 15, name)
            before = [fault.hits for _, _, fault in sieges]
            spend(4.0 if times == ALWAYS else 0.0)
            counts = [fault.hits - hits for hits, (_, _, fault) in zip(before, sieges)]
            asked = [(self.move(space), self.ask()) for _, space, _ in sieges]
            self.cluster.unscript()
            for (name, _, _), count, (space, request) in zip(sieges, counts, asked):
                with self.subTest(fault=name, times=times):
                    self.assertLessEqual(count, 9)
                    if "401" in name and times == ALWAYS:
                        told = re.findall(rf"downloadrequests: Unauthorized \(GET \S*/{space}/", self.log.getvalue())
                        self.assertEqual(1, len(told), told)
                    self.move(space)
                    self.looked_at(request, 15 if times == 1 else 40)
            for controller in self.controllers:
                controller.stop.set()

    def test_pages_of_a_list(self):
        """When the next page is gone the list starts anew; what does not end is asked at leisure."""
        page = {"kind": "DownloadRequestList", "items": [], "metadata": {"resourceVersion": "1", "continue": "x"}}
        endless = self.cluster.script("GET", self.path(SSR + "?limit="), ALWAYS, status=200, body=page)
        expired = self.cluster.script("GET", self.path(f"downloadrequests?limit={vr.PAGE_SIZE}&continue="), 2,
                                      status=410, body={**EXPIRED, "metadata": {"continue": "inconsistent"}})
        names = [self.ask() for _ in range(60)]
        self.serve()
        for name in names:
            self.answered(name)
        self.assertEqual(expired.hits, 2)
        self.assertLess(endless.hits, 20)
        pages = partial(self.api().list_pages, vr.DOWNLOAD_REQUESTS, self.namespace, size=20)
        self.assertRaisesRegex(vr.Unreachable, "does not end", list, pages(most=2))  # though each token is a new one
        self.assertEqual(3, len(list(pages())))

    def test_a_bookmark_moves_the_start(self):
        """The next watch starts where the last bookmark was, so that compaction costs no list."""
        self.serve()
        self.watched()
        self.cluster.compact()
        self.cluster.send_bookmarks()
        version = self.cluster.version
        self.cluster.forget()
        self.cluster.cut_watches(self.path())
        self.answered(self.ask())
        first = self.cluster.seen("GET", self.path("downloadrequests?"))[0]
        self.assertEqual((version, "true"), (first.query["resourceVersion"], first.query.get("watch")))

    def test_events_that_lie(self):
        """Old copies, false deletions and objects of other namespaces change nothing for long."""
        other, events = self.cluster.new_namespace(), self.path()
        stray = self.admin.create(DR, download_request("stray"), other)
        self.cluster.grant("controller", *LEAST, namespace=other)
        self.serve()
        self.watched()
        name = self.ask(name="late")
        old = dict(self.look(name) or {})
        self.failed(name)
        for kind, lie in (("MODIFIED", old), ("ADDED", old), ("ADDED", stray), ("DELETED", old)):
            self.cluster.push({"type": kind, "object": lie}, events)
        self.settle()
        self.make_backup("late")
        self.cluster.cut_connections()
        self.healed(name)
        patches = len(self.patches(name))
        self.cluster.push({"type": "ADDED", "object": old}, events)
        for _ in range(2):
            self.settle()
        self.assertLessEqual(len(self.patches(name)), patches + 1)
        self.assertEqual(self.cluster.seen(None, f"/{other}/downloadrequests/stray", "controller"), [])

    def test_a_watch_can_be_interrupted(self):
        """By another thread, whatever proxy is between, TLS within TLS too."""
        for proxy in ("", kube_servers()["proxy"].url, f"https://{kube_servers()['secure'].host}"):
            with self.subTest(proxy=proxy):
                response = self.api(proxy_url=proxy, insecure=True, authority=b"").open_watch(
                    vr.BACKUPS, self.namespace, self.cluster.version, seconds=30)
                timer = threading.Timer(0.1, response.interrupt)
                timer.start()
                with self.assertRaisesRegex(vr.Unreachable, "broke off"):
                    list(vr.watch_events(response))
                timer.join()

    def test_a_controller_notices_silence(self):
        """Or what trickles; nothing is lost."""
        gates = [self.cluster.script("GET", self.path(f"{kind}?watch="), chunks=chunks)
                 for kind, chunks in ((DR, dripped(b'{"type":')), (SSR, [SILENT]))]
        self.serve(silence=1.5, watch_seconds=(0.5, 0.5))
        wait_until(lambda: all(gate.hits for gate in gates), 10, "the watches")
        self.looked_at(self.ask(), 10)  # two seconds, the pause after a failure, and what a busy machine takes

    def test_a_line_that_is_cut_all_the_time(self):
        """A watch that breaks after it brought something starts the next one at once, however often."""
        self.cluster.script("GET", self.path("downloadrequests?watch="), ALWAYS, chunks=[BOOKMARK], cut=True)
        self.serve()
        wait_until(lambda: self.cluster.count("GET", self.path("downloadrequests?watch=")) > 3, 8, "watches")
        self.looked_at(self.ask(), 1.5)

    def test_a_line_that_sticks_costs_one_attempt(self):
        """When one connection of a pool proves dead, no other one is tried; after a pause none at all."""
        api = self.api(timeout=0.7)
        for trouble in ("hang", "pause"):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: self.call("list", api), range(12)))
            self.assertGreater(api.session.pool.pool.num_connections, 1)
            if trouble == "hang":
                self.cluster.script("GET", "/backups/b1", hang=SILENT)
                self.assertRaisesRegex(vr.Unreachable, "in time", self.call, "get", api)
            else:
                api.session.pool.last_answer -= 10
            self.call("create", api)
            self.assertEqual(api.session.pool.pool.num_connections, 1)

    def test_a_client_survives_what_a_watch_comes_to(self):
        """It finds what a silent or busy watch kept back, and leaves no request behind, without a hot loop."""
        self.serve()
        self.put()
        silences = {"silent": [SILENT], "trickling": dripped(b'{"type":'), "of others": dripped(
            b'{"type":"MODIFIED","object":{"metadata":{"name":"other"}}}\n')}
        for name, options in {**WATCH_FAULTS, "50 MB": {"chunks": [b"x" * (1 << 20)] * 50},
                              **{name: {"chunks": chunks} for name, chunks in silences.items()}}.items():
            with self.subTest(fault=name):
                self.cluster.unscript()
                self.cluster.forget()
                self.cluster.script("GET", "fieldSelector", ALWAYS, **options)
                started = time.monotonic()
                result = self.cli("backup", "logs", "b1", "--timeout", "1s" if name in silences else "15s")
                self.assertEqual((0, LOG), result[:2], result.err)
                self.assertLess(time.monotonic() - started, 3)
                self.assertLessEqual(self.cluster.count("GET", "fieldSelector"),
                                     1 if name in ("HTTP 401", "HTTP 403") else 3)
                self.assertEqual(self.names(), [])


needs_proc = skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
# What a process holds, and the processor time it took so far.
Usage = NamedTuple("Usage", [("threads", int), ("sockets", int), ("megabytes", float), ("seconds", float)])


def usage_of(pid: int) -> Usage:
    sockets = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            sockets += os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("socket:")
    pages = int(read_bytes(f"/proc/{pid}/statm").split()[1])
    ticks = sum(map(int, read_bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()[11:13]))
    return Usage(len(os.listdir(f"/proc/{pid}/task")), sockets, pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                 ticks / os.sysconf("SC_CLK_TCK"))


# A connection pool may keep this many idle connections; a leak of one a fault is far above.
IDLE = 8
# What may become of a patch; nothing does in the first case.
LOST: Tuple[Document, ...] = ({}, {"drop": True, "apply": True}, {"status": 500}, {"cut_after": 5}, {"status": 409})


@needs_proc
class TestLeaks(EnduranceWorld, TestCase):
    def test_forty_large_objects(self):
        """A first list of forty objects of 1.2 MB is read in small pages, and costs no more than 24 MiB on top."""
        peaks = []
        for large in (0, 40):
            for number in range(large):
                self.ask(name=f"{number:03}" + "x" * 1_200_000)
            program = self.program("controller")
            self.watched()
            self.answered(self.ask_status(), SSR)
            peaks.append(resident(program.process.pid, "VmHWM"))
            program.kill()
            wait_until(lambda: not self.cluster.watches(self.path("")), 15, "the end of the watches")
        self.assertLess(peaks[1] - peaks[0], 24, peaks)


@needs_proc
class TestSoak(EnduranceWorld, TestCase):
    """Faults at random under load, for VELERO_SOAK seconds, on a controller that is a process of its own."""

    def test_soak(self):
        """Every request is answered, and in the end no more is held than at first."""
        seed, cluster = int(os.environ.get("VELERO_SEED", "20240501")), self.cluster
        print(f"\nsoak of {SOAK:g} s, VELERO_SEED={seed}", file=sys.stderr)
        program, dice, deeds, names = self.program("controller"), random.Random(seed), [], []
        for name in [self.ask() for _ in range(50)] + [self.ask(name="nobody")]:
            self.looked_at(name)
        self.watched()
        pid = program.process.pid
        before, end = usage_of(pid), time.monotonic() + SOAK
        while time.monotonic() < end:
            kind = dice.choice((DR, SSR))
            part, faults = dice.choice(((f"{kind}?watch=", WATCH_FAULTS), (f"{kind}?limit=", GET_FAULTS),
                                        ("backups/b1", GET_FAULTS)))
            deeds.append((part, dice.choice(sorted(faults)), dice.choice(LOST), dice.random() < 0.2))
            cluster.script("GET", self.path(part), **faults[deeds[-1][1]])
            cluster.script("PATCH", self.path(""), **deeds[-1][2])
            cluster.cut_watches(self.path(kind)) if "watch" in part else cluster.compact()
            if deeds[-1][3]:
                cluster.cut_connections()
            names += [self.ask() for _ in range(dice.randrange(5))]
            self.ask_status()
            spend(dice.uniform(0, 0.6))
            self.assertIsNone(program.process.poll(), (seed, deeds[-5:], program.text()[-2000:]))
        cluster.unscript(all_struck=False)
        try:
            for name in names:
                self.looked_at(name)
            self.watched()
            wait_until(lambda: usage_of(pid).threads <= before.threads, 15, "threads to end")
            wait_until(lambda: usage_of(pid).sockets <= before.sockets + IDLE, 15, "sockets to go")
            after = usage_of(pid)
            self.assertLess(after.megabytes - before.megabytes, 15, (before, after))
            self.assertLess(after.seconds - before.seconds, SOAK / 2)
            self.assertNotIn("Traceback", program.text())
            self.assert_clean(program.text())
        except AssertionError as error:
            raise AssertionError(f"VELERO_SEED={seed}: {error}\n{deeds}\n{program.text()[-3000:]}") from error


# ---- Endurance: the real API server ------------------------------------------

ASKING = {"apiGroups": ["velero.io"], "resources": [DR], "verbs": ["create"]}
# What a client needs for the log of a backup.
CLIENT: List[Document] = [
    {"apiGroups": ["velero.io"], "resources": [DR], "verbs": ["create", "get", "watch", "delete"]},
    {"apiGroups": ["velero.io"], "resources": ["backups"], "verbs": ["get"]}]


class TestIdentityReal(RealWorld, TestCase):
    status_subresource = True  # where each right is used

    def new_token(self, name: str) -> str:
        """A token of the ServiceAccount that is worth something for as long as the Secret of this name exists."""
        self.admin.create("secrets", secret_with(name, ""), self.namespace)
        made = self.admin.call("POST", resource_path("serviceaccounts/token", self.namespace, "velero-requests"), {
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": {
                "apiVersion": "v1", "kind": "Secret", "name": name}}})
        wait_until(lambda: not self.is_refused(made["status"]["token"]), 15, "the token to be known")
        return str(made["status"]["token"])

    def revoke(self, name: str, token: str) -> None:
        self.admin.delete("secrets", name, self.namespace)
        wait_until(lambda: self.is_refused(token), 40, "the token to be refused")

    def write_token(self, token: str) -> None:
        """As the kubelet does: a new folder, and then the link to it replaced."""
        folder = self.at("account", f"..{uuid.uuid4().hex}")
        os.makedirs(folder)
        for name, content in (("token", token.encode()), ("ca.crt", read_bytes(self.cluster.ca)),
                              ("namespace", self.namespace.encode())):
            write_bytes(os.path.join(folder, name), content)
        os.symlink(os.path.basename(folder), self.at("account", "..new"))
        os.replace(self.at("account", "..new"), self.at("account", "..data"))

    def start_pod(self, manifests: Dict[str, Document]) -> Program:
        """Start the container of the Deployment in a mount namespace, the ConfigMap's program in a folder."""
        alone = ("unshare", "-m" if os.geteuid() == 0 else "-Urm", "--propagation", "private")
        mount = ('mount -t tmpfs tmpfs /run && mkdir -p "$0" && mount --bind "$1" "$0" && shift && exec env -i "$@"')
        if subprocess.run((*alone, "mount", "-t", "tmpfs", "tmpfs", "/run"), stderr=DEVNULL, check=False).returncode:
            raise SkipTest("no mount namespace may be made here, so nothing ran with the files of a pod")
        for name in ("token", "ca.crt", "namespace"):
            os.symlink(f"..data/{name}", self.at("account", name))
        (name, source), = manifests["ConfigMap"]["data"].items()
        container, = manifests["Deployment"]["spec"]["template"]["spec"]["containers"]
        probed, address = (container[f"{probe}Probe"] for probe in ("startup", "liveness", "readiness")), (
            f"127.0.0.1:{free_port()}")
        args = (word.replace(":8081", address).replace(":8082", "127.0.0.1:0") for word in container["args"])
        command = [*container["command"], *args]
        self.assertEqual(["python3", f"/program/{name}"], [command[0], command[2]])
        command[0], command[2] = sys.executable, write_bytes(self.at(name), source.encode())
        program = Program(self.folder, *command, command=(
            *alone, "sh", "-c", mount, "/run/secrets/kubernetes.io/serviceaccount", self.at("account"), "HOME=/",
            "KUBERNETES_SERVICE_HOST=127.0.0.1", f"KUBERNETES_SERVICE_PORT={urlsplit(self.cluster.url).port}"))
        self.addCleanup(program.kill)
        for path in (probe["httpGet"]["path"] for probe in probed):  # as the kubelet asks
            wait_until(lambda path=path: answers(f"http://{address}{path}", b"ok"), 30, path)
        return program

    def use_each_right(self) -> None:
        past = self.clock.text(minutes=-20)
        names = {self.fill(self.ask(), phase="Processed", expiration=past): DR,
                 self.fill(self.ask_status(), SSR, phase="Processed", processedTimestamp=past): SSR}
        self.answered(self.ask("RestoreLog", "r1"))
        self.answered(self.ask_status(), SSR)
        self.failed(self.ask(name="nobody"))
        for name, resource in names.items():
            self.gone(name, resource)
        wait_until(lambda: self.admin.list("events", self.namespace)["items"], 15, "an Event")

    def test_its_role_is_what_it_needs(self):
        """While tokens are rotated and revoked no call is refused for want of a right, and each right is used."""
        manifests, user = self.apply("controller"), f"system:serviceaccount:{self.namespace}:velero-requests"
        wait_until(lambda: self.cluster.may(user, self.namespace, "create", "events"), 10, "the Role to count")
        one, two = self.new_token("one"), self.new_token("two")
        self.write_token(one)
        program = self.start_pod(manifests)
        self.use_each_right()
        self.write_token(two)
        self.revoke("one", one)
        self.settle()
        self.assertNotIn("WARNING downloadrequests", program.text())
        self.revoke("two", two)
        name = self.ask()
        wait_until(lambda: "nauthorized" in program.text(), 40, "the controller to notice")
        three = self.new_token("three")
        self.write_token(three)
        self.answered(name)
        self.assertEqual(program.end(signal.SIGTERM).code, 0, program.text())
        calls, denied = set(), []
        for event in self.cluster.audit(user, self.path("")):
            what = event["objectRef"]
            resource = "/".join(filter(None, map(what.get, ("resource", "subresource"))))
            calls.add((event["verb"], what.get("apiGroup", ""), resource))
            denied += [event["requestURI"]] * (event["responseStatus"]["code"] == 403)
        self.assertEqual([], denied)
        self.assertEqual(set(RIGHTS), calls | {("get", "velero.io", kind) for kind in (DR, SSR)})  # after a conflict
        self.assert_clean(program.text())
        self.assertFalse([token for token in (one, two, three) if token in program.text()])

    def test_an_identity_is_borrowed_with_all_its_parts(self):
        """The API server sees user, uid, groups and extra of the kubeconfig."""
        extra = {"example.com/reason": ["two words", "50%"], "Scope": ["x"]}
        api = vr.connect(vr.load_cluster(self.kubeconfig_of({
            "token": token_of("admin"), "as": "jane", "as-uid": "42", "as-groups": ["dev", "ops"],
            "as-user-extra": extra})))
        self.addCleanup(api.session.close)
        seen = api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body={
            "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})["status"]["userInfo"]
        self.assertEqual(seen, {"username": "jane", "uid": "42", "groups": ["dev", "ops", "system:authenticated"],
            "extra": {"example.com/reason": ["two words", "50%"], "scope": ["x"]}})


class TestManifestsReal(ControllerWorld, RealWorld, TestCase):
    """What `manifests` prints, on the real API server."""

    def test_they_are_applied_twice(self):
        """Without a warning, also of the strictest Pod Security Standard, and the second time without a change."""
        self.addCleanup(self.cluster.install_crds, self.crds())
        self.addCleanup(self.withdraw_policy)
        strict = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        self.admin.merge_patch("namespaces", self.namespace, {"metadata": {"labels": strict}})
        for words in ("controller",), ("controller", *DEPLOYED), ("client",), ("policy",):
            with self.subTest(words):
                self.assertEqual(self.apply(*words), self.apply(*words))
        for words in ("crds", "--status-subresource"), ("crds",), ():  # the tests' own are changed
            with self.subTest(words):
                self.assertEqual(*([crd["spec"] for crd in self.apply(*words, force="true").values()]
                                   for _ in range(2)))

    def test_what_a_config_map_holds(self):
        """The limit is the API server's own, which also tells that a namespace does not exist."""
        how = dict(words=(), image="x", replicas=1, secret=None, endpoint=None)
        for name in ("x.py", "x.pyz"):
            full = next(row for row in vr.controller_manifests(
                self.namespace, name, b" " * vr.CONFIG_MAP_LIMIT, (), **how) if row["kind"] == "ConfigMap")
            self.assertLess(self.admin.apply(json.dumps(full)).status, 300)
            (full.get("data") or full["binaryData"])["y"] = "AAAA"
            self.assertEqual(422, self.admin.apply(json.dumps(full)).status)
            self.admin.delete("configmaps", "velero-requests", self.namespace)
        for document in self.apply("controller", "-n", "nowhere", status=(404,)).values():
            self.assertEqual('namespaces "nowhere" not found', document["message"])

    def test_two_versions_at_once(self):
        """As during a rolling update: each request is answered once, by one of them."""
        for version in "v1.17.0", "v1.18.1":
            self.serve(server=vr.Server(version))
        asked = [(name, resource) for _ in range(20) for resource, name in ((DR, self.ask()), (SSR, self.ask_status()))]
        self.assertEqual({2}, {self.answered(*request)["metadata"]["generation"] for request in asked})
        self.settle()
        self.assertEqual({2}, {self.answered(*request)["metadata"]["generation"] for request in asked})

    # -- rights per kind of artifact

    def asks(self, user: str, kind: str, name: str, **query: str) -> str:
        """What comes of a request: nothing, or the API server's words."""
        with closing(self.cluster.client(user)) as client:
            answer = client.raw("POST", resource_path(DR, self.namespace), download_request(None, kind, name),
                                query={"dryRun": "All", **query})
            return str(json.loads(answer.data).get("message", ""))

    def withdraw_policy(self) -> None:
        """Take the policy away, and wait until it no longer holds: the others on this server know nothing of it."""
        self.namespace = self.cluster.new_namespace()
        self.cluster.grant("stranger", ASKING, namespace=self.namespace)
        for kind in ("validatingadmissionpolicybindings", "validatingadmissionpolicies"):
            self.admin.raw("DELETE", resource_path(kind, None, "velero-requests"))
        wait_until(lambda: not self.asks("stranger", "BackupLog", "b1"), 30, "the policy to be gone")

    def put_policy(self) -> Dict[str, Document]:
        """Apply it and wait until it holds: the stranger may ask, but has no right to any artifact."""
        self.addCleanup(self.withdraw_policy)
        self.cluster.grant("stranger", ASKING, namespace=self.namespace)
        applied = self.apply("policy")
        wait_until(lambda: "you may not get" in self.asks("stranger", "BackupLog", "b1"), 30, "the policy to hold")
        return applied

    def test_who_may_ask_for_what(self):
        """Each kind is a right of its own, for all names or some, and the refusal has the line that grants it."""
        roles = self.put_policy()
        one = roles["Role-one-backup"]["rules"]
        self.assertEqual(["nightly"], one[-1]["resourceNames"])
        self.cluster.grant("limited", *roles["Role-logs"]["rules"], namespace=self.namespace)
        self.cluster.grant("reader", *one[:-1], {**one[-1], "resourceNames": ["b1"]}, namespace=self.namespace)
        may = {"admin": lambda kind, name: True, "stranger": lambda kind, name: False,
               "limited": lambda kind, name: kind in ("BackupLog", "RestoreLog"),
               "reader": lambda kind, name: not kind.startswith("Restore") and name == "b1"}
        kinds = [kind for kind in KEYS if vr.TARGETS[kind].releases]
        for kind, name, user in product(kinds, ("b1", "b2"), may):
            with self.subTest(kind, name=name, user=user):
                said, right = self.asks(user, kind, name), vr.TARGETS[kind].right
                self.assertEqual(may[user](kind, name), not said, said)
                self.assertIn(f"you may not get {right} of {name} in namespace {self.namespace}; a Role there grants "
                              f"it with: - {{apiGroups: [velero.io], resources: [{right}], verbs: [get]}}" * bool(said),
                              said)

    def test_a_request_for_a_log_becomes_none_for_the_contents(self):
        """Who may patch may do that only within his rights; the answer to a request, and others' changes, pass."""
        self.cluster.grant("limited", {"apiGroups": ["velero.io"], "resources": [DR], "verbs": ["create", "patch"]},
                           *self.put_policy()["Role-logs"]["rules"], namespace=self.namespace)
        path = resource_path(DR, self.namespace, self.ask())
        with closing(self.cluster.client("limited")) as client:
            for change, words in (
                    ({"spec": {"target": {"kind": "BackupContents"}}}, "you may not get backups/contents of b1"),
                    ({"spec": {"target": {"kind": "RestoreLog", "name": "r1"}}}, ""),
                    ({"spec": {"target": {"kind": "RestoreResults"}}}, "you may not get restores/results of r1"),
                    ({"metadata": {"annotations": {"a": "b"}}, "status": {"phase": "New"}}, "")):
                answer = client.raw("PATCH", path, change, MERGE)
                self.assertEqual(403 if words else 200, answer.status, answer.data)
                self.assertIn(words, json.loads(answer.data).get("message", ""))

    def test_each_role_for_people_is_enough(self):
        """Under the policy too, for every command of its use; what it does not grant is not done, and one line says
        which right is missing, and no other one."""
        self.put_policy()
        self.serve()
        for kind in KEYS:
            self.put(kind, b"[]" if re.search("Infos?$|Operations$|Snapshots$", kind) else b"{}")
        for resource, name in ("backups", "b1"), ("restores", "r1"):
            self.admin.merge_patch(resource, name, {"status": {
                "warnings": 1, f"{resource[:-1]}ItemOperationsAttempted": 1}}, self.namespace)
        users = dict(zip(("limited", "reader", "stranger"), ("-logs", "-downloads", "-describe")))
        roles = self.apply("client")
        for user, use in users.items():
            self.cluster.grant(user, *roles["Role" + use]["rules"], namespace=self.namespace)
        downloads = [f"download {KEYS[kind].split('/')[1]} --kind {kind} -o -" for kind in KEYS
                     if vr.TARGETS[kind].releases]
        for user, line, lacks in (
                *(("limited", line, "") for line in ("backup logs b1", "restore logs r1")),
                *(("reader", line, "") for line in (*downloads, "backup get", "restore get", "plugin get", "version")),
                *(("stranger", line, "") for line in (
                    "backup describe b1 --details", "restore describe --details", "backup describe -o json")),
                ("limited", "backup get", "backups"), ("limited", "version", SSR),
                ("limited", "backup describe b1", "requests"),
                ("limited", "download b1 -o -", "backups/contents of b1"),
                ("stranger", "backup logs b1", "backups/log of b1"),
                ("stranger", "download b1 -o -", "backups/contents of b1")):
            with self.subTest(line, user=user):
                result = self.cli(*line.split(), user=user)
                self.assertEqual(5 if lacks else 0, result.code, result.err)
                self.assertIn(lacks, result.err)
                if " of " in lacks:  # it is the policy that denies
                    self.assert_failed(result, 5, "you may not get " + lacks)
                    self.assertNotIn("hint", result.err)
                self.assertTrue(lacks or "forbidden" not in result.err, result.err)


class TestOutageReal(RealWorld, TestCase):
    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        assets = assets_folder()
        if not assets:
            raise SkipTest("no real kube-apiserver: KUBEBUILDER_ASSETS is not set")
        cluster = RealCluster(assets)
        cls.addClassCleanup(cluster.close)
        return cluster, real_store()

    def test_some_seconds_without_an_api_server(self):
        """Under load no request is lost over the outage, and each is answered once."""
        program, cluster = self.program("controller"), self.cluster
        self.settle()
        made: List[str] = []
        done = threading.Event()

        def load() -> None:
            while not done.wait(0.05):
                with suppress(Refused, urllib3.exceptions.HTTPError):
                    made.append(self.ask())
        with ThreadPoolExecutor(1) as pool, ExitStack() as end:
            end.callback(done.set)
            pool.submit(load)
            wait_until(lambda: len(made) > 20, 15, "some load")
            stopped = cluster.children.pop()
            stop_process(stopped)
            spend(5.0)
            cluster.run(cluster.ready, *stopped.args)
            before = len(made)
            wait_until(lambda: len(made) > before + 20, 30, "some more load")
        for name in made:
            self.assertEqual(wait_until(lambda name=name: self.processed(name), 45, name)["metadata"]["generation"], 2)
        self.assertIsNone(program.process.poll())
        self.assertLess(len(program.text().splitlines()), len(made) + 60)


class TestReplicasReal(RealWorld, TestCase):
    """Several controllers without an election: all work, the first patch wins."""

    def replica(self) -> Program:
        """Start one more, and wait until it is ready."""
        address = f"127.0.0.1:{free_port()}"
        program = self.program("controller", "--health-address", address)
        wait_until(lambda: answers(f"http://{address}/readyz", b"ok"), 30, "another replica")
        return program

    def patches(self, resource: str) -> Dict[str, int]:
        """How many patches of a kind the API server has answered, by status code."""
        found: Dict[str, int] = {}
        for line in self.admin.raw("GET", "/metrics").data.decode().splitlines():
            match = re.match(rf'apiserver_request_total{{code="(\d+)".*="{resource}".*verb="PATCH".*}} (\d+)', line)
            if match:
                found[match[1]] = found.get(match[1], 0) + int(match[2])
        return found

    def cost(self, resource: str, work: Callable[[], Any]) -> Tuple[int, int]:
        """How many patches were kept, and how many conflicted, while this was done."""
        before = self.patches(resource)
        work()
        after = self.patches(resource)
        return (after.get("200", 0) - before.get("200", 0), after.get("409", 0) - before.get("409", 0))

    def test_killed_and_replaced_under_load(self):
        """Each request is answered once, whichever replica goes: one in the middle of its work, the others in turn."""
        replicas, names, count = [self.replica() for _ in range(3)], [], 240

        def load() -> None:
            for _ in range(count):
                names.append(self.ask())

        def replace() -> None:
            with ThreadPoolExecutor(1) as pool:
                loading = pool.submit(load)
                wait_until(lambda: len(names) > 20 or loading.done(), 30)
                replicas[0].kill()
                for old in replicas[1:]:
                    self.replica()
                    self.assertEqual(0, old.end(signal.SIGTERM).code)
                loading.result(60)
            for name in names:
                self.assertEqual(2, self.answered(name)["metadata"]["generation"], name)
        kept, conflicts = self.cost(DR, replace)
        self.assertEqual(count, kept)
        self.assertLessEqual(conflicts, 2 * count)  # one for each further replica

    def test_status_requests_and_failing_requests(self):
        """One answer, one reason; what one writes does not wake the others."""
        for _ in range(3):
            self.replica()

        def ask() -> None:
            for name in [self.ask_status() for _ in range(20)]:
                self.answered(name, SSR)

        def fail() -> None:
            names = [self.ask(name="nobody") for _ in range(20)]
            for name in names:
                self.failed(name)
            spend(3.0)
            for name in names:
                self.assertEqual(2, self.failed(name)["metadata"]["generation"], name)  # the expiration is written once
        for resource, work in ((SSR, ask), (DR, fail)):
            with self.subTest(resource):
                kept, conflicts = self.cost(resource, work)
                self.assertEqual(20, kept)
                self.assertLessEqual(conflicts, 2 * 20)


# ---- Demo: its stage is an API, a store, a folder with a copy of the module, a kubeconfig; .ci/bench has it, too

NAMESPACE = "velero"
BUCKET = "velero-backups"
BACKUP_LOG = "".join(f'time="2024-05-01T03:00:0{at}Z" level=info msg="{said}" backup=velero/nightly\n' for at, said in
                     enumerate(("Setting up backup log", "Backing up item shop/settings", "Backed up 1 item")))
BACKUP_FILES = {"metadata/version": b"1.1.0\n",
                "resources/configmaps/namespaces/shop/settings.json": b'{"kind": "ConfigMap"}\n'}


class Stage(NamedTuple):
    """Where commands run: the servers, the working folder, and the environment a user would have set."""
    cluster: Cluster
    store: Any
    folder: str
    environment: Dict[str, str]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **{"stdin": DEVNULL, **options})

    def run(self, *command: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(command, cwd=self.folder, env=self.environment, stdin=DEVNULL,
                              timeout=60, check=False, **options)

    def servers(self) -> str:
        return ", ".join(real if server.kind == "real" else "a stand-in for " + fake for server, real, fake in (
            (self.cluster, "the real kube-apiserver", "the Kubernetes API"),
            (self.store, "the real versitygw", "the S3 store")))


@contextmanager
def set_stage(launcher: str = "") -> Iterator[Stage]:
    """Start the best servers that are there, and put what a user has into a folder; remove all of it afterwards.
    launcher: a script by which `python` runs others."""
    assets, with_store = assets_folder(), assets_folder("versitygw")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="velero-requests-"))
        cluster: Any = stack.enter_context(closing(RealCluster(assets) if assets else FakeCluster(tls=True)))
        store: Any = stack.enter_context(closing(RealStore(with_store) if with_store else FakeStore()))
        shutil.copy(MODULE, folder)
        os.rename(cluster.kubeconfig(folder), os.path.join(folder, "kubeconfig"))
        python = os.path.join(folder, "bin", "python")
        # A link would lose the virtual environment.
        os.chmod(write_bytes(python, f'#!/bin/sh\nexec "{sys.executable}" {launcher} "$@"\n'.encode()), 0o755)
        # Nothing may lead a command to another cluster or store; HOME would hide packages installed with --user.
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KUBE", "VELERO_"))}
        yield Stage(cluster, store, folder, {
            **kept, "HOME": folder, "KUBECONFIG": "kubeconfig", "PYTHONUSERBASE": site.getuserbase(),
            "PATH": os.path.join(folder, "bin") + os.pathsep + kept.get("PATH", os.defpath)})


@contextmanager
def serving(stage: Stage, *command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the controller as a process of its own, and end it as an init system would."""
    process = stage.start(*command, **options)
    try:
        yield process
    finally:
        stop_process(process)


def tar_with(*members: Tuple[str, bytes, Document], form: int = tarfile.PAX_FORMAT, mode: Any = "w") -> bytes:
    """A tar archive of members: name, content and other fields."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode=mode, format=form) as archive:
        for name, content, fields in members:
            member = tarfile.TarInfo(name)
            for field, value in {"size": len(content), **fields}.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(content))
    return target.getvalue()


def tar_of(files: Dict[str, bytes], mode: Any = "w:gz") -> bytes:
    return tar_with(*((name, content, {}) for name, content in files.items()), mode=mode)


def add_backup(stage: Stage, name: str, log: bytes = b"", location: str = "default", **status: int) -> None:
    """Leave a finished backup as Velero does: its object in the cluster, its artifacts in the store."""
    folder = f"backups/{name}/{name}"
    stage.store.put(BUCKET, folder + "-logs.gz", gzip.compress(log))
    stage.store.put(BUCKET, folder + ".tar.gz", tar_of(BACKUP_FILES))
    stage.cluster.admin.create("backups", {"kind": "Backup", "metadata": {"name": name}, "spec": {
        "storageLocation": location}, "status": {"phase": "Completed", **status}}, NAMESPACE)


def add_location(stage: Stage) -> None:
    """Create the namespace, the storage location `default`, and the Secret that opens it."""
    store, admin = stage.store, stage.cluster.admin
    stage.cluster.new_namespace(NAMESPACE)
    admin.create("secrets", secret_with("cloud", keys_file(store.access_key, store.secret_key)), NAMESPACE)
    admin.create(BSL, location_in(store, "default", BUCKET), NAMESPACE)


# ---- Object stores: locations, endpoints, signatures and the plan of credentials, as values ----

ROLE = "arn:aws:iam::123456789012:role/r"
KEYS_1 = vr.Plan.of("keys", {"aws_access_key_id": "AKIA1", "aws_secret_access_key": "s1"})


def pairs(text: str) -> Dict[str, str]:
    """`name=value other='a b'` -> a mapping; PAIR is a pair of keys, R at the end of a word a role."""
    text = re.sub(r"=R\b", f"={ROLE}", text.replace("PAIR", "aws_access_key_id=AKIA1 aws_secret_access_key=s1"))
    return dict(word.split("=", 1) for word in shlex.split(text))


def shown(plan: Any) -> str:
    """A plan as tables write it: `role R external_id=e <- keys AKIA1 s1`."""
    bare = ("aws_", "role_arn", "url", "endpoint", "credential_process")
    words = [value if name.startswith(bare) else f"{name}={value}" for name, value in plan.values]
    return " ".join([plan.how, *words]).replace(ROLE, "R") + (f" <- {shown(plan.source)}" if plan.source else "")


class TestStoreIni(TestCase):
    def test_files(self):
        """A line that is indented more than its key goes on with its value; after a blank or a comment it is a key."""
        for text, expected in (*((f"[x]\n{line}\n", {"x": {"k": value}}) for line, value in (
                    ("k = v # c", "v"), ("k = a#b\t;c", "a#b"), ("k = a==", "a=="), ("k = a%(c)s$H\\n", "a%(c)s$H\\n"),
                    ("k=", ""), ("K  =\t v", "v"), ('k = "a b"', '"a b"'), ("k = ü", "ü"), ("k = 1\nk = v", "v"),
                    ("k = v\n  w # c\n x", "v\nw\nx"))),
                *((f"[x]\n{text}", {"x": {"k": "v", "l": "w"}}) for text in (
                    "k = v\r\nl = w\r\n", "  k = v\n  l = w", "k = v\n\n  l = w", "k = v\n  # c\n  l = w")),
                ("", {}), ("\n# c\n; c\n", {}), ("\ufeff[x] # c\nk=v", {"x": {"k": "v"}}),
                ("[x]\nk = 1\n[profile a b]\nk = 2\n[x]\nl = 3\n[DEFAULT]",
                 {"x": {"k": "1", "l": "3"}, "profile a b": {"k": "2"}, "DEFAULT": {}}),
                ("[x]\ns3 =\n  aws_access_key_id = nested\n  c = d\nk = v",
                 {"x": {"s3": "\naws_access_key_id = nested\nc = d", "k": "v"}})):
            self.assertEqual(expected, vr.ini_sections(text.encode(), "the file"), text)

    def test_what_is_no_file(self):
        """The error names the file and the line, and shows nothing of it."""
        for content, words in (*((text.encode(), rf"line {line} is neither a \[profile\] nor") for text, line in (
                    ("k = s3cr3t", 1), ("[x]\ns3cr3t", 2), ("[x]\n= s3cr3t", 2), ("[x\nk=s3cr3t", 1),
                    ("[x]\nk = v\n\n  s3cr3t", 4), ("[x]\n  k = v\n  s3cr3t", 3))),
                (b"[x]\nk=s3cr3t\xff", "not UTF-8"), (b"#" * (1 << 20) + b"#", "is larger than 1 MiB")):
            with self.subTest(content=content[:40]), self.assertRaisesRegex(
                    vr.CredentialsError, f"^the file.*{words}") as caught:
                vr.ini_sections(content, "the file")
            self.assertEqual(("InvalidCredentials", None), (caught.exception.reason, caught.exception.__cause__))
            self.assertNotIn("s3cr3t", str(caught.exception))
        self.assertEqual({}, vr.ini_sections(b"#" * (1 << 20), "the file"))

    def test_merging(self):
        """Credentials file and config file -> profiles; half a pair or a token is not taken from another section."""
        for credentials, config, expected in (
                ("x a=1", "profile_x a=2 b=3", "x a=1 b=3"), ("x a=1; profile_x a=2", "", "x a=1"),
                ("profile_x a=2; x a=1", "", "x a=1"), ("profile__x a=2", "", "x a=2"), ("", "x a=2", "x a=2"),
                ("", "profilex a=2", "profilex a=2"),
                ("x aws_secret_access_key=C", "profile_x PAIR r=1", "x aws_secret_access_key=C r=1"),
                ("x PAIR", "profile_x aws_session_token=old", "x PAIR")):
            files = [{name.replace("_", " "): pairs(rest) for name, _, rest in (
                text.partition(" ") for text in file.split("; ") if text)} for file in (credentials, config, expected)]
            before = repr(files)
            self.assertEqual(files[2], vr.merge_profiles(*files[:2]))
            self.assertEqual(before, repr(files))


class TestStorePlans(TestCase):
    """Tests for `plan_profile` and `plan_chain`: rows that end in a plan, or behind `!` in words of an error."""

    def assert_plan(self, expected: str, text: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Neither the plan's repr nor the error, which is returned, shows a secret."""
        with self.subTest(text):
            try:
                plan = function(*arguments)
            except vr.Error as error:
                self.assertRegex("!" + str(error), expected)
                self.assertTrue("s3cr3t" not in str(error) and len(str(error)) < 1000 and str(error).isprintable())
                return error
            self.assertEqual(expected, shown(plan))
            self.assertFalse({"s1", "s2", "x y", "u"} & set(re.split(r"\W+", repr(plan))), "a secret is shown")
        return None

    # Profiles beside `a`.
    others = {name: pairs(text) for name, text in (
        ("b", "aws_access_key_id=AKIA2 aws_secret_access_key=s2"), ("c", "credential_process=c"),
        ("d", "role_arn=r1 source_profile=d PAIR"), ("e", "role_arn=r2 web_identity_token_file=/t"),
        ("half", "aws_secret_access_key=s3cr3t"), ("f", "role_arn=r source_profile=g"),
        ("g", "role_arn=r source_profile=f"),
        *((f"p{number}", f"role_arn=r source_profile=p{number + 1}") for number in range(5000)))}

    def check_profile(self, expected: str, text: str, *environment: str, name: str = "a") -> Any:
        return self.assert_plan(expected, text, vr.plan_profile, {**self.others, "a": pairs(text)}, name, "the file",
                                pairs(" ".join(environment)))

    def test_plans(self):
        for text, expected in (
                ("PAIR region=x credential_process=x source_profile=b sso_session=x mfa_serial=m", "keys AKIA1 s1"),
                ("PAIR aws_session_token=u", "keys AKIA1 s1 u"),
                ("credential_process='x y'", "process x y profile=profile 'a' of the file"),
                *((f"role_arn=R {more}", expected) for more, expected in (
                    ("PAIR", "role R <- keys AKIA1 s1"), ("PAIR source_profile=b", "role R <- keys AKIA2 s2"),
                    ("PAIR source_profile=a", "role R <- keys AKIA1 s1"),
                    ("source_profile=b credential_source=x role_session_name=n external_id=e duration_seconds=9",
                     "role R role_session_name=n external_id=e duration_seconds=9 <- keys AKIA2 s2"),
                    ("source_profile=c", "role R <- process c profile=profile 'c' of the file"),
                    ("source_profile=d", "role R <- role r1 <- keys AKIA1 s1"),
                    ("source_profile=e", "role R <- web identity r2 web_identity_token_file=/t"),
                    ("credential_source=Environment", "role R <- keys E e u"),
                    ("credential_source=EcsContainer", "role R <- container http://169.254.170.2/c"),
                    ("credential_source=Ec2InstanceMetadata", "role R <- instance http://169.254.169.254"),
                    ("web_identity_token_file=/t role_session_name=n",
                     "web identity R role_session_name=n web_identity_token_file=/t")))):
            self.check_profile(expected, text, "AWS_ACCESS_KEY_ID=E AWS_SECRET_ACCESS_KEY=e AWS_SESSION_TOKEN=u",
                               "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/c")

    def test_profiles_that_come_to_nothing(self):
        """Each says so, naming profile and file, with nothing in the environment."""
        for text, words in (
                *((text, "needs both.* a role_arn.*EcsContainer.*SSO.*aws configure export-credentials") for text in (
                    "aws_access_key_id=AKIA", "aws_secret_access_key=s3cr3t", "source_profile=x credential_source=x "
                    "web_identity_token_file=x sso_session=x", "role_arn=R")),
                (f"PAIR aws_session_token={'s3cr3t' * 2731}", "aws_session_token has more than 16384"),
                *((f"PAIR {name}='{value}'", f"{name} has a blank") for name, value in zip(
                    vr.KEY_NAMES, ("s3cr3t\nmore", "s3cr3t\u00a0more", "s3\u200bcr3t"))),
                *((f"role_arn=R {more}", words) for more, words in (
                    ("source_profile=gone", " has no profile 'gone'"), ("source_profile=half", "'half'.*needs both"),
                    ("source_profile=a", "circle.*: a -> a"), ("source_profile=f", "a -> f -> g -> f"),
                    ("source_profile=p0", "too far: a -> p0 -> p1"),
                    *((f"credential_source={name}", "Environment, EcsContainer, Ec2InstanceMetadata as")
                      for name in ("environment", "Environment", "EcsContainer", "Ec2InstanceMetadata"))))):
            error = self.check_profile(f"!(?=.*the file).*{words}", text, "AWS_EC2_METADATA_DISABLED=TRUE")
            self.assertEqual("has a blank" in words, "indented" in str(error.hints))
        for name in ("", "a\nb" * 10000):
            self.check_profile("!the file has no profile.{1,100}$", "", name=name)

    shared = {"default": pairs("aws_access_key_id=SHARED aws_secret_access_key=s"), "sso": {"sso_session": "x"},
              "p": pairs("aws_access_key_id=SHAREDP aws_secret_access_key=s"), "region": pairs("region=x output=json")}
    full, relative = "AWS_CONTAINER_CREDENTIALS_FULL_URI=", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI="
    irsa, instance = "AWS_WEB_IDENTITY_TOKEN_FILE=/t AWS_ROLE_ARN=R", "instance http://169.254.169.254"
    # Every source of the chain in its order: what makes it there, and what the plan is then.
    order = (("AWS_ACCESS_KEY_ID=ENV AWS_SECRET_ACCESS_KEY=e", "keys ENV e"),
             (irsa, "web identity R web_identity_token_file=/t"), ("SHARED=default", "keys SHARED s"),
             (full + "http://169.254.170.23/v1", "container http://169.254.170.23/v1"),
             (relative + "/v2", "container http://169.254.170.2/v2"), ("", instance))

    def check(self, text: str, expected: str) -> Any:
        """The plan for an environment; SHARED names the section of `shared` that is the default profile."""
        variables = pairs(text)
        shared = {**self.shared, "default": self.shared[variables["SHARED"]]} if "SHARED" in variables else {}
        named = variables.get("AWS_PROFILE") or variables.get("AWS_DEFAULT_PROFILE") or ""
        return self.assert_plan(expected, text, vr.plan_chain, shared, named, "the files", variables)

    def test_order(self):
        """Of any set of sources the first in the list wins."""
        for chosen in product((False, True), repeat=len(self.order) - 1):
            rows = [row for row, there in zip(self.order, (*chosen, True)) if there]
            self.check(" ".join(text for text, _ in rows), rows[0][1])

    def test_chains(self):
        """A default profile that only says region or output does not end the chain, nor does half a pair of keys."""
        for text, expected in (("SHARED=default AWS_PROFILE=p", "keys SHAREDP s"),
                (f"{self.order[0][0]} AWS_PROFILE=gone", "keys ENV e"),
                ("SHARED=region", self.instance), ("AWS_ACCESS_KEY=a AWS_SECRET_KEY=b", "keys a b"),
                ("AWS_ACCESS_KEY_ID=a AWS_ACCESS_KEY=x AWS_SECRET_KEY=x AWS_SECRET_ACCESS_KEY=b", "keys a b"),
                (f"{self.order[0][0]} AWS_SESSION_TOKEN=u", "keys ENV e u"), ("AWS_SESSION_TOKEN=u", self.instance),
                *((f"{half} {text}", expected) for half in ("AWS_ACCESS_KEY_ID=a", "AWS_SECRET_ACCESS_KEY=b")
                  for text, expected in self.order[1:-1]),
                ("AWS_ROLE_ARN=r", self.instance), ("AWS_WEB_IDENTITY_TOKEN_FILE=/t", self.instance),
                (f"{self.irsa} AWS_ROLE_SESSION_NAME=n",
                 "web identity R role_session_name=n web_identity_token_file=/t"),
                *((self.full + url, "container " + url) for url in (
                    "http://[fd00:ec2::23]/v1", "http://LOCALHOST:8080/x", "http://[::1]:80/x", "https://10.0.0.1/x")),
                (self.relative + "//evil.example", "container http://169.254.170.2//evil.example"),
                (f"{self.relative}/x {self.full}http://localhost/y", "container http://localhost/y"),
                (f"{self.full}http://127.0.0.1/x AWS_CONTAINER_AUTHORIZATION_TOKEN=u "
                 "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=/f", "container http://127.0.0.1/x token=u token_file=/f"),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://[fd00:ec2::254]/", "instance http://[fd00:ec2::254]"),
                (" ".join(word.split("=")[0] + "=" for text, _ in self.order for word in text.split() if word[0] == "A")
                 + " AWS_EC2_METADATA_DISABLED=false AWS_EC2_METADATA_SERVICE_ENDPOINT= AWS_PROFILE=", self.instance)):
            self.check(text, expected)

    def test_chains_that_come_to_nothing(self):
        """What is wrong with the environment or the default profile is said; a container's URL leads nowhere else."""
        error = self.check("AWS_EC2_METADATA_DISABLED=True", "!.*Secret.*environment.*the files.*container.*instance")
        self.assertEqual("CredentialsNotFound", error.reason)
        for text, words in (
                ("SHARED=default AWS_PROFILE=gone", "the files has no profile 'gone'"), ("SHARED=sso", "needs both"),
                ("AWS_ACCESS_KEY_ID='a b' AWS_SECRET_KEY=b", "the environment.* a blank"),
                *((f"{name}=x", "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") for name in (
                    "AWS_ACCESS_KEY_ID", "AWS_SECRET_KEY")),
                ("AWS_EC2_METADATA_SERVICE_ENDPOINT=ftp://h", "METADATA_SERVICE_ENDPOINT is no http URL"),
                *((self.full + url, "AWS_CONTAINER_CREDENTIALS_FULL_URI must be https") for url in (
                    "hTTp://10.0.0.1/", "http://169.254.169.254/x", "ftp://localhost/x", "http://127.0.0.1.evil.org",
                    "http://169.254.170.2@evil.example/x", "http://localhost:99999/", "http://[::1")),
                *((self.relative + text, "AWS_CONTAINER_CREDENTIALS") for text in ("@evil.example", ".evil.example"))):
            self.assertEqual("InvalidCredentials", self.check(text, f"!.*{words}").reason)


class TestStoreLife(TestCase):
    """A URL never outlives the credentials that signed it, and the answer says when it ends."""

    def test_signing(self):
        """Fraction of the second, when keys end, the store's clock before ours -> the URL's life."""
        for fraction, left, skew, life in (
                (0, None, 3600, 600), (0, 599.5, 0, 599), (0.9, 300.5, 0, 300), (0.9, 601, 0, 600),
                (0, 300, -1800, 300), (0, 300, 240, 60), (0, 300, 299, 1)):
            with self.subTest(fraction=fraction, left=left, skew=skew):
                keys = some_credentials(expires=None if left is None else after(seconds=left))
                url, ends = vr.sign(a_location(), "k", keys, after(seconds=fraction), timedelta(seconds=skew))
                query = dict(parse_qsl(urlsplit(url).query))
                self.assertEqual((f"{after(seconds=skew):%Y%m%dT%H%M%SZ}", str(life), after(seconds=fraction + life)),
                                 (query["X-Amz-Date"], query["X-Amz-Expires"], ends))
        for bucket, place in (("b.t", "https://s3.eu-west-1.amazonaws.com/b.t"),
                              ("bkt", "https://bkt.s3.eu-west-1.amazonaws.com/")):
            url = vr.sign(a_location(bucket=bucket), "", some_credentials(), NOW, timedelta(0))[0]
            self.assertEqual(place, url.partition("?")[0])
        for left, skew in ((0.5, 0), (-100000, 0), (300, 300), (-1, -1800)):
            with self.subTest(left=left), self.assertRaisesRegex(vr.ConfigError, "'default'.*expired") as caught:
                vr.sign(a_location(), "k", some_credentials(expires=after(seconds=left)), NOW, timedelta(seconds=skew))
            self.assertEqual("CredentialsExpired", caught.exception.reason)


class TestStoreAnswers(TestCase):
    def test_xml(self):
        """The leaves of an answer come by name, unescaped, whatever is around them."""
        for body, expected in (
                (b"<?xml version='1.0'?>\n<E xmlns='x'>\n  <Code>A</Code><Message>a &amp; b &lt;c&gt;</Message></E>",
                 {"Code": "A", "Message": "a & b <c>"}),
                (b"<C>&#34;a&#39;&#x9;&#xA;\nb</C>", {"C": "\"a'\t\n\nb"}), (b"<C>&amp;lt;</C>", {"C": "&lt;"}),
                (b"<C></C>", {"C": ""}), (b"<C>\xff</C>", {"C": "\ufffd"}), ("<C>ü✓</C>".encode(), {"C": "ü✓"}),
                (b"<A>x</B>", {}), (b"<A>x", {}), (b"plain", {}), (b"<html><p>503</p></html>", {"p": "503"}),
                (b"<!DOCTYPE x [<!ENTITY e SYSTEM \"file:///etc/passwd\">]><C>&e;</C>", {"C": "&e;"}),
                (b" " * 70000 + b"<Code>x</Code>", {}), (b"<a>b</a" * 9000, {})):
            self.assertEqual(expected, vr.xml_fields(body), body[:99])

    def test_differences(self):
        """The element that the store saw otherwise is named, with both sides and no secret; else the key is wrong."""
        address = vr.Address("https", "h:9000", "/bkt/a%20b", "r")
        for changed, words in (
                ({}, "secret key"), ({"method": "HEAD"}, "the method differs: signed 'GET', the store saw 'HEAD'"),
                ({"path": "/bkt/a+b"}, r"the path differs: signed '/bkt/a%20b', the store saw '/bkt/a\+b'"),
                ({"query": "X-Amz-Security-Token=s3cr3t&X-Amz-Signature=ab12"}, "the query differs"),
                ({"host": "host:internal"}, "the host header differs: signed 'host:h:9000', the store saw 'host:int"),
                ({"names": "host;range"}, "the names of the signed headers differs"),
                ({"payload": EMPTY_SHA256}, "the payload hash differs"), ({"method": "\x1b[2J"}, "differs"),
                ({"path": "/x", "host": "host:y"}, "the path differs"), ({"all": ""}, "the method differs"),
                ({"all": "\n" * 50}, "differs"), ({"all": "x" * 100000}, "differs")):
            with self.subTest(**changed):
                url = vr.presign(address, some_credentials(session_token="s3cr3t"), NOW, vr.URL_LIFE)
                lines = {"method": "GET", "path": address.path, "query": urlsplit(url).query.rpartition("&")[0],
                         "host": "host:h:9000", "empty": "", "names": "host", "payload": "UNSIGNED-PAYLOAD", **changed}
                text = vr.explain_signature(url, changed.get("all", "\n".join(lines.values())))
                self.assertRegex(text, words)
                self.assertTrue(text.isprintable() and len(text) < 600, text[:99])
                self.assertFalse("s3cr3t" in text or "ab12" in text, text)


# ---- Stores: the services that hand out temporary keys -----------------------

IMDS_TOKEN, IMDS_KEYS = "/latest/api/token", "/latest/meta-data/iam/security-credentials/"
IMDS_ROLE = IMDS_KEYS + "node-role"


class KeyServices(LoopbackServer):
    """STS, the container's endpoint and the instance metadata service behind one port."""

    def __init__(self) -> None:
        super().__init__()
        self.life = 3600.0  # seconds that keys live
        self.issued: Dict[str, Tuple[str, str]] = {}  # access key -> (secret key, session token)
        self.ends: List[str] = []  # when they end
        self.web_token, self.container_token = "web-identity-of-the-pod", "container-token"
        self.signers = {"AKIASOURCE": ("source-secret/+", "")}  # who may call AssumeRole
        self.imds_tokens: List[str] = []
        self.start()

    def new_keys(self) -> Dict[str, str]:
        number = len(self.ends) + 1
        access_key, secret_key, token = f"ASIATEMP{number:08}", f"temp-secret/+{number}", f"temp-token/+={number}"
        self.ends.append(vr.format_time(vr.utc_now() + timedelta(seconds=self.life)))
        self.issued[access_key] = (secret_key, token)
        return {"AccessKeyId": access_key, "SecretAccessKey": secret_key, "SessionToken": token,
                "Expiration": self.ends[-1]}

    def handle(self, request: Request) -> Answer:
        if request.method == "POST" and request.raw_path == "/":
            return self._sts(request)
        if request.raw_path == "/container":
            if request.headers.get("authorization") != self.container_token:
                return Answer(401, b'{"code": "Unauthorized", "message": "the token is missing or stale"}')
            return self._document()
        if request.method == "PUT" and request.headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit():
            self.imds_tokens.append(f"imds-token-{len(self.imds_tokens)}")
            return Answer(200, self.imds_tokens[-1].encode())
        if request.headers.get("x-aws-ec2-metadata-token") not in self.imds_tokens:
            return Answer(401, b"")
        if request.raw_path == IMDS_KEYS:
            return Answer(200, b"node-role\n")
        return self._document(Code="Success") if request.raw_path == IMDS_ROLE else Answer(404, b"")

    def _document(self, **more: str) -> Answer:
        keys = self.new_keys()
        return Answer(200, json.dumps({"Token": keys.pop("SessionToken"), **keys, **more}).encode())

    def _sts(self, request: Request) -> Answer:
        form = dict(parse_qsl(request.body.decode()))
        action, trouble = form.get("Action", ""), ""
        if action == "AssumeRole":
            trouble = self._signature_trouble(request)
        elif form.get("WebIdentityToken") != self.web_token or "authorization" in request.headers:
            trouble = "AccessDenied"
        if request.raw_query or request.content_type != "application/x-www-form-urlencoded" or \
                form.get("Version") != "2011-06-15" or not form.get("RoleSessionName"):
            trouble = "ValidationError"
        if trouble or form.get("RoleArn") != ROLE:
            return Answer(403, self.sts_refusal(trouble or "AccessDenied"))
        keys = "".join(f"<{name}>{value}</{name}>" for name, value in self.new_keys().items())
        return Answer(200, (f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
                            f"<Credentials>{keys}</Credentials></{action}Result></{action}Response>").encode())

    @staticmethod
    def sts_refusal(code: str) -> bytes:
        return f"<ErrorResponse><Error><Code>{code}</Code><Message>refused</Message></Error></ErrorResponse>".encode()

    def _signature_trouble(self, request: Request) -> str:
        """What is wrong with the signature in the Authorization header, worked out anew from the request."""
        match = re.match(r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8}/[\w-]+/sts/aws4_request), SignedHeaders="
                         r"([\w;-]+), Signature=([0-9a-f]{64})$", request.headers.get("authorization", ""))
        if not match:
            return "IncompleteSignature"
        access_key, scope, names, given = match.groups()
        secret, token = self.signers.get(access_key, ("", ""))
        when = request.headers.get("x-amz-date", "")
        canonical = canonical_request(request.method, request.raw_path, "", request.header_list, names.split(";"),
                                      hashlib.sha256(request.body).hexdigest())
        right = (signature_of(secret, scope, string_to_sign(when, scope, canonical)) == given
                 and scope[:8] == when[:8] and {"host", "x-amz-date"} <= set(names.split(";"))
                 and request.headers.get("x-amz-security-token", "") == token)
        return "" if right else "SignatureDoesNotMatch"


class KeyTests(Folder):
    """The services, a folder, and an environment without any AWS in it."""

    def setUp(self):
        super().setUp()
        self.services = self.enter(closing(KeyServices()))
        self.set_environment(AWS_ENDPOINT_URL_STS=self.services.url)

    def write(self, name: str, text: str) -> str:
        return write_bytes(self.at(name), text.encode("utf-8", "surrogateescape"))

    def plan(self, how: str, **more: str) -> Any:
        """A plan to which the services give keys, with more values or others."""
        if how == "process":
            script = self.write("keys.sh", more["script"])
            return vr.Plan.of(how, {"credential_process": f"sh {shlex.quote(script)}", "profile": "profile 'p' of f"})
        source = vr.Plan.of("keys", {
            "aws_access_key_id": "AKIASOURCE", "aws_secret_access_key": "source-secret/+", **more})
        return vr.Plan.of(how, {"role_arn": ROLE, "web_identity_token_file": self.at("token"),
            "url": self.services.url + "/container", "token": self.services.container_token,
            "endpoint": self.services.url, **more}, source if how == "role" else None)

    def fetch(self, how: str, **more: str) -> str:
        """Carry out a plan -> `keys` that the services have handed out last, or the reason and one sentence."""
        self.write("token", self.services.web_token + "\n")
        try:
            keys: Any = vr.fetch_credentials(self.plan(how, **more), "eu-north-1")
        except vr.Error as error:
            text = str(error)
            secrets = [self.services.web_token, self.services.container_token, *self.services.imds_tokens, "ASIASHOWN",
                       "shown-secret", "AKIASOURCE", "source-secret", *itertools.chain(*self.services.issued.values())]
            self.assertFalse([secret for secret in secrets if secret in text] or not text.isprintable(), text)
            return f"{error.reason}: {text}"
        if not self.services.ends:
            return repr(tuple(keys))
        self.assertEqual(self.services.issued.get(keys.access_key), (keys.secret_key, keys.session_token))
        self.assertEqual(vr.format_time(keys.expires), self.services.ends[-1])
        return "keys"

    def form(self) -> Dict[str, str]:
        return dict(parse_qsl(self.services.seen("POST")[-1].body.decode()))


# Answers without keys in them, which are not shown; the first four may come from STS, too.
NO_KEYS: Tuple[bytes, ...] = (
    b"", b"\xff\xfe\0", b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey></SecretAccessKey>",
    b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey>cut-sec", b"[]", b'{"AccessKeyId": "ASIASHOWN"}',
    b'{"AccessKeyId": 7, "SecretAccessKey": ["ASIASHOWN"]}', b'{"AccessKeyId": "ASIASHOWN", "Sec', b"[" * 60000)
# Each exchange of each plan: method and path.
EXCHANGES_FOR_KEYS: Any = (("web identity", "POST", "/"), ("role", "POST", "/"), ("container", "GET", "/container"),
    ("instance", "PUT", IMDS_TOKEN), ("instance", "GET", IMDS_KEYS), ("instance", "GET", IMDS_ROLE))


class TestStoreServices(KeyTests, TestCase):
    def check(self, expected: str, tries: int, how: str, method: Optional[str] = None, part: str = "",
              more: Optional[Dict[str, str]] = None, **fault: Any) -> None:
        """What comes of a plan when an exchange goes wrong, and how often it was tried."""
        with self.subTest(how=how, part=part, **fault):
            self.services.forget()
            if fault:
                self.services.script(method, part, **fault)
            self.assertRegex(self.fetch(how, **more or {}), f"^{expected}")
            self.assertEqual(tries, len([seen for seen in self.services.seen(method) if part in ("", seen.target)]))
            self.services.unscript()

    def test_what_passes_is_asked_again(self):
        """At each exchange of each service; the third try may be right, and is the last."""
        for row in EXCHANGES_FOR_KEYS:
            reason = "CredentialsNotFound" if row[0] == "instance" else "InvalidCredentials"
            self.check("keys", 3, *row, times=2, status=503)
            self.check(f"{reason}: .*503", 3, *row, times=9, status=503)
        codes = ("IDPCommunicationError", "InvalidIdentityToken", "Throttling", "ThrottlingException",
                 "RequestLimitExceeded")
        faults: List[Document] = [{"status": 400, "body": KeyServices.sts_refusal(code)} for code in codes]
        for fault in (*faults, {"status": 500}, {"status": 429}, {"drop": True}):
            self.check("keys", 2, *EXCHANGES_FOR_KEYS[0], **fault)
        never = threading.Event()
        self.addCleanup(never.set)
        self.check("keys", 2, "instance", "PUT", hang=never)

    def test_what_is_final(self):
        """A refusal is asked for once and told with its code; an answer without keys is an error, and not shown."""
        wrong, none = "InvalidCredentials: ", "CredentialsNotFound: nothing else .* the instance metadata .*role"
        for how, more, words in (("web identity", {"role_arn": ROLE + "-other"},
                 f"STS, asked for role {ROLE}-other, gives no keys: status 403 AccessDenied refused$"),
                ("role", {"aws_secret_access_key": "wrong-secret"}, ".*SignatureDoesNotMatch"),
                *(("container", {"token": token}, "the container's .*: status 401 Unauthorized the token is missing")
                  for token in ("stale", ""))):
            self.check(wrong + words, 1, how, more=more)
        for how, method, part, bodies, words in (("web identity", "POST", "/", NO_KEYS[:4], wrong + "STS, .*"),
                ("container", "GET", "/container", NO_KEYS, wrong + "the container's credential endpoint"),
                ("instance", "GET", IMDS_ROLE, NO_KEYS[:5], none + ".*")):
            for body in bodies:
                self.check(words + " gives no keys: there are none", 1, how, method, part, status=200, body=body)
        for method, part, fault, words in (
                ("PUT", "", {"status": 403}, "status 403"), ("GET", IMDS_KEYS, {"status": 401}, "status 401"),
                ("GET", IMDS_ROLE, {"status": 200, "body": b'{"Code": "AssumeRoleUnauthorized"}'}, "AssumeRoleU"),
                ("GET", IMDS_KEYS, {"status": 200, "body": b"\n"}, "there are none")):
            self.check(f"{none}.* gives no keys: {words}", 1, "instance", method, part, **fault)
        self.check(f"{none}.* gives no keys: no answer$", 3, "instance", "PUT", times=9, drop=True)

    def test_what_is_asked(self):
        """Version 2 of the instance's service; no proxy for it; and what it calls the role stays in its place."""
        proxies = {name: "http://127.0.0.1:1" for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
        with environment({**proxies, "NO_PROXY": None, "no_proxy": None}):
            self.assertEqual(["keys", "keys"], [self.fetch(how) for how in ("instance", "container")])
        token = self.services.imds_tokens[0]
        self.assertEqual([(request.target, request.headers.get("x-aws-ec2-metadata-token")) for request in (
            self.services.seen()[:3])], [(IMDS_TOKEN, None), (IMDS_KEYS, token), (IMDS_ROLE, token)])
        self.services.script("GET", IMDS_KEYS, status=200, body=b"../../../user-data?x=1#y")
        self.assertRegex(self.fetch("instance"), "CredentialsNotFound: .*status 404")
        self.assertEqual(self.services.seen("GET")[-1].target, IMDS_KEYS + "..%2F..%2F..%2Fuser-data%3Fx%3D1%23y")
        self.services.forget()
        self.assertRegex(self.fetch("container", token="one\r\nX-Evil: 1"), "token has characters that cannot be sent")
        self.services.script("PUT", status=200, body=b"one\r\nX-Evil: 1")
        self.assertRegex(self.fetch("instance"), "token of the instance metadata service has characters")
        self.assertEqual(self.services.seen("GET"), [])

    def test_tokens_are_read_anew(self):
        """From their files, which may change; that of a pod goes unsigned, and in the body only."""
        self.assertEqual("keys", self.fetch("web identity"))
        request = self.services.seen()[-1]
        self.assertEqual((request.target, self.form()["WebIdentityToken"]), ("/", self.services.web_token))
        self.assertNotIn(self.services.web_token, str(request.header_list))
        path = self.write("container", self.services.container_token + "\n")
        self.assertEqual("keys", self.fetch("container", token="the file comes first", token_file=path))
        self.services.web_token = self.services.container_token = "rotated"
        self.write("container", "rotated")
        self.assertEqual(["keys", "keys"], [self.fetch("web identity"), self.fetch("container", token_file=path)])
        self.services.forget()
        self.assertRegex(self.fetch("web identity", web_identity_token_file="/lost"), "web identity token /lost")
        self.assertEqual(self.services.seen(), [])

    def test_roles(self):
        """What the form says; AssumeRole bears a signature that a second implementation works out alike. The host is
        that of the region, through a proxy where the environment names one."""
        session = r"[\w+=,.@-]{2,64}"
        for how, path, more, fields in (("web identity", "", {"role_session_name": "pod"}, ("pod", None, None)),
                ("web identity", "", {}, (session, None, None)),
                ("role", "", {"role_session_name": "n", "duration_seconds": "901"}, ("n", None, "901")),
                ("role", "/", {"aws_session_token": "token/+=", "external_id": "e/ &=ü"}, (session, "e/ &=ü", None))):
            with self.subTest(how, **more), environment({"AWS_ENDPOINT_URL_STS": self.services.url + path}):
                self.services.signers["AKIASOURCE"] = ("source-secret/+", more.get("aws_session_token", ""))
                self.assertEqual("keys", self.fetch(how, **more))
                self.assertRegex(self.form()["RoleSessionName"], f"^{fields[0]}$")
                self.assertEqual(fields[1:], (self.form().get("ExternalId"), self.form().get("DurationSeconds")))
        self.services.signers = self.services.issued
        chain = vr.Plan.of("role", {"role_arn": ROLE}, self.plan("web identity"))
        keys = vr.fetch_credentials(chain, "eu-north-1")
        self.assertEqual(list(self.services.issued)[-1], keys.access_key)
        self.services.forget()
        with environment({"AWS_ENDPOINT_URL_STS": None, "HTTPS_PROXY": self.services.url}):
            self.assertRegex(self.fetch("web identity"), "^Unreachable: ")
        self.assertEqual({request.target for request in self.services.seen()}, {"sts.eu-north-1.amazonaws.com:443"})

    def test_programs(self):
        """Their keys end with an Expiration, last without; nothing that they say is shown; stdin is empty."""
        keys = {"Version": 1, "AccessKeyId": "ASIASHOWN", "SecretAccessKey": "shown-secret"}
        end = "datetime.datetime(2040, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)"
        for script, expected in (
                *((f"echo chatter >&2\necho '{json.dumps({**keys, **more})}'", expected) for more, expected in (
                    ({}, "('ASIASHOWN', 'shown-secret', '', None)"),
                    ({"SessionToken": "t", "Expiration": "2040-01-02T03:04:05Z"},
                     f"('ASIASHOWN', 'shown-secret', 't', {end})"),
                    ({"Expiration": "soon"}, "or an Expiration that is no time"))),
                *((f"printf %s {shlex.quote(text)}", "gives no keys: the") for text in ("", "shown-secret", "\udcff")),
                ("echo shown-secret\necho shown-secret >&2\nexit 3\n", "profile 'p' of f: .*fails.*run it by hand"),
                ("read answer || exit 41\n", "fails"), ("exec /absent\n", "fails")):
            with self.subTest(script=ascii(script)):
                found = self.fetch("process", script=script)
                self.assertTrue(found == expected or re.search(f"^InvalidCredentials: .*{expected}", found), found)

    def test_regions(self):
        """S3 names a bucket's region in any answer to a HEAD; what is no label chooses no host."""
        address = vr.Address("http", self.services.host, "/bucket", "us-east-1")
        for status, region, expected in (
                (200, "eu-central-1", "eu-central-1"), (403, "eu-central-1", "eu-central-1"), (301, "", ""),
                (200, "x@evil.example/", "region in the answer of 127.0.0.1.*no DNS label"),
                (404, "", "BucketNotFound.*no such bucket.*objectStorage.bucket")):
            with self.subTest(status=status, region=region):
                self.services.script("HEAD", "/bucket", status=status, headers={"x-amz-bucket-region": region})
                try:
                    self.assertEqual(expected, vr.discover_region(address))
                except vr.Error as error:
                    self.assertRegex(f"{error.reason} {error} {error.hints}", expected)
        self.assertNotIn("authorization", {name for request in self.services.seen() for name in request.headers})


class TestCredentialCache(KeyTests, TestCase):
    def setUp(self):
        super().setUp()
        self.write("token", self.services.web_token)
        self.cache, self.start = vr.CredentialCache(self.plan("web identity"), "us-east-1"), vr.utc_now()

    def take(self, minutes: float, **options: Any) -> Any:
        return self.cache.get(self.start + timedelta(minutes=minutes), **options)

    def test_keys_through_their_life(self):
        """Keys that outlive a URL by a minute are used again. While STS refuses, or others wait for it, the old ones
        serve up to their end; a refusal counts for a while, and shows no key."""
        hosts = vr._thread.hosts = vr.HostLimiter(2, 3600)  # pylint: disable=protected-access
        self.addCleanup(setattr, vr._thread, "hosts", None)
        with self.assertLogs("velero_requests", "WARNING") as logs:
            for rows in (  # minutes, trouble, what comes, and how many exchanges there have been
                    ((0, "", "new", 1), (48.9, "", "same", 1), (49.2, "", "new", 2)),
                    ((0, "", "new", 1), (58, "refuse", "same", 2), (58.9, "refuse", "same", 2),
                     (59.1, "refuse", "same", 3), (61, "refuse", "AccessDenied", 4), (61.07, "", "AccessDenied", 4),
                     (61.1, "", "new", 5)),
                    ((0, "busy", "another request", 0), (0, "", "new", 1), (55, "busy", "same", 1),
                     (61, "busy", "another request", 1), (55, "", "new", 2))):
                self.cache, self.start = vr.CredentialCache(self.cache.plan, "us-east-1"), vr.utc_now()
                self.services.forget()
                for minutes, trouble, expected, exchanges in rows:
                    with self.subTest(minutes=minutes, trouble=trouble), ExitStack() as stack:
                        if trouble == "busy":
                            stack.enter_context(hosts.guard(self.services.host))
                        elif trouble:
                            self.services.script("POST", status=403, body=KeyServices.sts_refusal("AccessDenied"))
                        before = self.cache.credentials
                        try:
                            found = "same" if self.take(minutes) == before else "new"
                        except vr.Error as error:
                            found = str(error)
                        self.assertRegex(found, expected)
                        self.assertEqual(exchanges, len(self.services.seen()))
                        self.services.unscript(all_struck=False)
        self.assertFalse([key for key in itertools.chain(*self.services.issued.values()) if key in str(logs.output)])

    def test_threads(self):
        """Eight of them cost one exchange; those that may not wait are told, or have the old keys while these live.
        Keys that last are kept."""
        gates = threading.Event(), threading.Event()
        taken: List[Any] = []
        for number, (gate, minutes) in enumerate(zip(gates, (0, 55))):
            self.services.script("POST", hang=gate)
            threads = [threading.Thread(target=lambda minutes: taken.append(self.take(minutes)), args=(minutes,))
                       for _ in range(8 - 7 * number)]
            for thread in threads:
                thread.start()
            wait_until(lambda number=number: self.services.seen()[number:], 5, "the exchange")
            if number:
                self.assertEqual(self.take(55), taken[0])
            else:
                self.assertRaises(vr.Busy, self.take, 0, wait=False)
            gate.set()
            for thread in threads:
                thread.join(10)
        self.assertEqual(([8, 1], 2), (sorted(map(taken.count, set(taken)))[::-1], len(self.services.seen())))
        self.cache = vr.CredentialCache(KEYS_1, "us-east-1")
        self.assertEqual(vr.Credentials("AKIA1", "s1"), self.take(600_000))


class TestHostLimiter(TestCase):
    def test_who_may_ask(self):
        """Hosts that have answered before, hosts that are being asked, the host to ask, and whether it may be."""
        for answered, asked, host, may in (
                ("", "", "a", True), ("", "a", "a", False), ("", "ab", "c", True), ("", "abc", "d", False),
                ("a", "bcd", "a", True), ("a", "aa", "a", True), ("a", "aaa", "a", False), ("a", "aaa", "b", True),
                ("ab", "aaab", "b", True), ("a", "aab", "b", False)):
            with self.subTest(answered=answered, asked=asked, host=host), ExitStack() as stack:
                hosts = vr.HostLimiter(4, 3600)
                for name in answered:
                    with hosts.guard(name):
                        pass
                for name in asked:
                    stack.enter_context(hosts.guard(name))
                with nullcontext() if may else self.assertRaises(vr.Busy), hosts.guard(host):
                    pass

    def test_failures(self):
        """A silence is remembered for a while, among a thousand hosts; a quick failure is not, nor an answer."""
        hosts, silence = vr.HostLimiter(4, 3600), vr.Unreachable("no answer")
        for host, quick, pause, error, remembered in (
                ("a", 60.0, 3600, silence, False), ("a", 0.0, 3600, silence, True),
                ("b", 0.0, 3600, vr.StoreError("no"), False), ("c", 0.0, 0, silence, False)):
            hosts.quick, hosts.pause = quick, pause
            with self.subTest(host=host, quick=quick):
                with self.assertRaises(type(error)), hosts.guard(host):
                    raise error
                with self.assertRaisesRegex(vr.Unreachable, "no answer") if remembered else nullcontext(), \
                        hosts.guard(host), hosts.guard("other " + host):
                    pass
        with hosts.guard("b"), hosts.guard("b"):
            pass
        with hosts.guard("x"):
            pass
        with self.assertRaises(vr.Unreachable), hosts.guard("x"):  # which is strange again
            raise silence
        with hosts.guard("x"):
            self.assertRaises(vr.Busy, hosts.guard("x").__enter__)
        for number in range(3000):
            with hosts.guard(str(number)):
                pass
        self.assertLessEqual(len(hosts.outcomes), vr.MAX_HOSTS)


# ---- Stores: from a request to its URL, with keys from the network -----------

class StoreWorld(FakeWorld):
    """A cluster and a store with a clock, asked by `controller --once` in this process."""

    def tearDown(self):
        self.store.clock = time.time
        self.store.keys = {self.store.access_key: (self.store.secret_key, "")}
        self.store.unscript()

    def once(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None) -> Result:
        result = self.cli("controller", "--once", *argv, env=env)
        self.assert_clean(result.err, result.out)
        self.assertNotIn("Traceback", result.err)
        return result

    def answer_to(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None, name: str = "b1") -> Document:
        asked = self.ask(name=name)
        self.once(*argv, env=env)
        return self.admin.get(DR, asked, self.namespace)

    def url_in(self, document: Document) -> str:
        """The URL in an answer, which must be Processed and bear no reason."""
        self.assertEqual((document.get("status", {}).get("phase"), reason_of(document)), ("Processed", ""),
                         document["metadata"].get("annotations"))
        return str(document["status"]["downloadURL"])

    def assert_reason(self, document: Document, reason: str, *words: str) -> None:
        """A request bears this reason, a sentence with these words, all of them patterns, and no URL."""
        notes, status = document["metadata"].get("annotations") or {}, document.get("status") or {}
        self.assertRegex(notes.get(REASON, ""), f"^({reason})$", notes)
        for word in words:
            self.assertRegex(notes[MESSAGE], word)
        self.assertNotIn("\n", notes[MESSAGE])
        self.assertFalse(status.get("downloadURL") or status.get("phase") == "Processed", status)
        self.assert_clean(notes)


# What somebody writes who may create locations and Secrets -> the reason, and words of the message. {evil} is a host of
# his own, {own} the operator's endpoint, {here} a folder of ours.
SIGNERS: Any = (({"region": "x@{evil}/"}, "", "InvalidStorageLocation", "region"),
    ({"s3Url": "http://{evil}"}, "", "ForeignEndpoint", "spec.credential.*AWS_ENDPOINT_URL_S3"),
    ({"publicUrl": "http://{evil}"}, "", "ForeignEndpoint", "AWS_ENDPOINT_URL_S3"),
    ({"s3Url": "http://{evil}", "profile": "p"}, "", "ForeignEndpoint", "not for its"),
    ({"s3Url": "{own}0"}, "", "InvalidStorageLocation|ForeignEndpoint", "s3Url"),
    ({}, "[default]\ncredential_process = touch {here}/ran\n", "InvalidCredentials", "credential_process"),
    ({"profile": "p"}, "[profile p]\nCredential_Process = touch {here}/ran\n", "InvalidCredentials",
     "credential_process"),
    ({}, "[default]\nrole_arn = {role}\nweb_identity_token_file = {here}/token\n", "InvalidCredentials",
     "web_identity_token_file"),
    ({}, "[default]\nrole_arn = {role}\ncredential_source = Environment\n", "InvalidCredentials", "credential_source"),
    ({}, "[default]\nrole_arn = {role}\nsource_profile = p\n", "InvalidCredentials", "no profile 'p'"),
    ({}, "[default]\nrole_arn = {role}\nsource_profile = k\n[k]\naws_access_key_id = a\naws_secret_access_key = b\n"
     "sso_session = x\n", "InvalidCredentials", "profile 'k' of key .*: sso_session .*refused here; give aws_access"),
    ({"region": ""}, "\ufeff[default]\naws_access_key_id = a\naws_secret_access_key = b\nregion = x@{evil}/\n",
     "InvalidStorageLocation", "region of the profile"),
    ({"credentialsFile": "{here}/own"}, "", "CredentialsFileNotAllowed", "spec.credential.*--allow-credentials-file"),
    ({"credentialsFile": "{here}/./allowed"}, "", "CredentialsFileNotAllowed", "allow"),
    ({"credentialsFile": "{here}/allowed", "s3Url": "http://{evil}"}, "", "InvalidCredentials", "credential_process"))


class TestStoreWhoSigns(KeyTests, StoreWorld, TestCase):
    """Our identity signs for locations without a Secret; locations and Secrets of the cluster carry it nowhere else."""

    def setUp(self):
        """Give this process an identity by STS and by files, and a stranger a host."""
        super().setUp()
        self.own_keys = keys_file(self.store.access_key, self.store.secret_key)
        self.evil = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.evil.close)
        self.allowed = self.write("allowed", f"[default]\ncredential_process = touch {self.folder}/ran\n")
        self.pod: Dict[str, Optional[str]] = {
            "AWS_ENDPOINT_URL_S3": self.store.url, "AWS_ENDPOINT_URL_STS": self.services.url,
            "AWS_ROLE_ARN": ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": self.write("token", self.services.web_token),
            "AWS_SHARED_CREDENTIALS_FILE": self.write("own", self.own_keys.replace("default", "p") + self.own_keys)}

    def direct(self, name: str, *flags: str, **env: Optional[str]) -> Result:
        return self.cli("download", name, "--kind=BackupLog", "--url-only", *flags, env={**self.pod, **env})

    def test_a_web_identity_signs_the_url(self):
        """It opens the object, token and all, and lives its ten minutes; one exchange serves nine requests."""
        self.lay_out("own")
        self.store.keys = self.services.issued
        for _ in range(8):
            self.ask(name="own")
        document = self.answer_to(env=self.pod, name="own")
        url = self.url_in(document)
        self.assertEqual(gzip.compress(LOG)[10:], fetch(url).data[10:])
        query = dict(parse_qsl(urlsplit(url).query))
        self.assertEqual(("600", self.services.issued[query["X-Amz-Credential"].split("/")[0]][1]),
                         (query["X-Amz-Expires"], query["X-Amz-Security-Token"]))
        self.assert_soon(document["status"]["expiration"], 10)
        self.assertEqual(([], 1), (self.store.seen(status=403), len(self.services.seen())))

    def test_urls_end_with_the_keys(self):
        """URL, expiration, and what --direct signs; ended keys sign nothing."""
        self.lay_out("own")
        self.services.life = 200
        document = self.answer_to(env=self.pod, name="own")
        end = instant(self.services.ends[-1])
        self.assertLess(abs((instant(document["status"]["expiration"]) - end).total_seconds()), 2)
        for url in (self.url_in(document), self.direct("own", "--direct").out.decode()):
            self.assertTrue(180 < int(dict(parse_qsl(urlsplit(url).query))["X-Amz-Expires"]) <= 202, url)
        self.services.life = -5
        self.assert_reason(self.answer_to(env=self.pod, name="own"), "CredentialsExpired", "expired")
        self.assert_failed(self.direct("own", "--direct"), 1, "the credentials of", "have expired: they end at ",
                           "this host's clock says 20")

    def test_attacks(self):
        """Each is refused before anything is fetched, sent or run, by the controller and by --direct."""
        places = {"evil": f"127.0.0.1:{self.evil.getsockname()[1]}", "own": self.store.url, "here": self.folder,
                  "role": ROLE}
        names = [self.lay_out(f"row{number}", {key: value.format(**places) for key, value in config.items()},
                              secret.format(**places)) for number, (config, secret, _, _) in enumerate(SIGNERS)]
        asked = [self.ask(name=name) for name in names]
        self.once("--verify-urls", "--allow-credentials-file", self.allowed, env=self.pod)
        for name, request, (config, secret, reason, words) in zip(names, asked, SIGNERS):
            with self.subTest(config=config, secret=secret):
                self.assert_reason(self.admin.get(DR, request, self.namespace), reason, words)
                result = self.direct(name, "--direct", "--allow-credentials-file", self.allowed)
                self.assert_failed(result, 1)
                self.assertRegex(result.err, words)
        self.evil.setblocking(False)
        self.assertRaises(BlockingIOError, self.evil.accept)  # nobody came to the stranger's host
        self.assertFalse(os.path.exists(self.at("ran")))
        self.assertEqual([], self.services.seen())

    def test_whose_keys_sign(self):
        """Programs and profiles of our files, the location's Secret before them, what the operator names anywhere."""
        self.services.signers[self.store.access_key] = (self.store.secret_key, "")
        program = json.dumps({"Version": 1, **self.services.new_keys()})
        keys, named = self.write("keys", self.own_keys), self.own_keys.replace("default", "q")
        files = {"AWS_SHARED_CREDENTIALS_FILE": self.write("named", named), "AWS_CONFIG_FILE": self.write(
            "config", f"[default]\ncredential_process = cat {shlex.quote(self.write('printed', program))}\n")}
        document = self.write("location", json.dumps({"spec": {
            "provider": "aws", "objectStorage": {"bucket": self.namespace},
            "config": {"region": self.store.region, "s3Url": self.store.url, "credentialsFile": keys}}}))
        role = f"{named}[default]\nrole_arn = {ROLE}\nsource_profile = q\n[other]\ncredential_process = x\n"
        own, here, away = self.store.access_key, self.store.url, None  # whether our identity belongs to the store
        for name, config, secret, endpoint, flags, env, key in (
                ("program", {}, "", here, (), {**files, "AWS_ROLE_ARN": None}, "ASIATEMP00000001"),
                ("variable", {}, "", here, (), {**files, "AWS_ROLE_ARN": None, "AWS_PROFILE": "q"}, own),
                ("profile", {"profile": "q"}, "", here, (), files, own),
                ("secret", {}, self.own_keys, away, (), {"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "x"}, own),
                ("role", {}, role, away, (), {}, "ASIATEMP00000002"),
                ("flag", {}, "", away, ("--credentials-file", keys), {}, own),
                ("location", {}, "", away, ("--location", document), {}, own),
                ("file", {"credentialsFile": keys}, "", away, ("--allow-credentials-file", keys), {}, own)):
            with self.subTest(name):
                self.lay_out(name, config, secret)
                result = self.direct(name, "--direct", *flags, AWS_ENDPOINT_URL_S3=endpoint, **env)
                self.assertIn(f"X-Amz-Credential={key}", result.out.decode(), result.err)
                self.store.keys.update(self.services.issued)
                self.assertEqual(200, fetch(result.out.decode().strip()).status)
        self.assertEqual(["POST"], [request.method for request in self.services.seen()])

    def test_files_that_are_allowed(self):
        """Only a regular file of a MiB is read, also behind a link; anything else is one sentence and blocks nobody."""
        os.symlink(self.write("good", self.own_keys), self.at("link"))
        os.mkfifo(self.at("fifo"))
        self.write("large", "#" * (1 << 20) + "\n")
        for name, code, words in (("link", 0, "^$"), ("large", 1, "larger than 1 MiB"), *(
                (name, 1, "no regular file") for name in ("fifo", "", "absent", "/dev/zero"))):
            with self.subTest(name=name):
                path = self.at(name)
                backup = self.lay_out("b" + name.replace("/", "-"), {"credentialsFile": path})
                result = self.direct(backup, "--direct", "--allow-credentials-file", path)
                self.assertEqual(code, result.code, result.err)
                self.assertRegex(result.err, words)

    def test_tls_of_aws_is_nobody_s_to_loosen(self):
        """Our own identity trusts the system's authorities at AWS, whatever a location says; a Secret or a file may."""
        spec = {"objectStorage": {"bucket": "bkt", "caCert": base64.b64encode(b"PEM").decode()}}
        secret = {"credential": {"name": "n", "key": "k"}}
        for more, url, own, lax in (({}, "", False, False), (secret, "", False, True), ({}, "", True, True),
                                    ({}, "https://minio", False, True)):
            config = {"region": "eu-west-1", "insecureSkipTLSVerify": "true", "s3Url": url}
            found = vr.find_location(None, "", a_location_document(config, **spec, **more), trusted=own)
            self.assertEqual((lax, lax, not lax), (found.insecure, bool(found.ca_cert), bool(found.warnings)))

    def test_hosts_and_regions(self):
        """FIPS, dual stack and region are those of environment and profile; what cannot be names the culprit."""
        aws, minio = {"region": "us-east-1"}, {"s3Url": "http://minio"}
        for config, profile, env, expected in (
                (aws, "use_fips_endpoint = true", {}, "bkt.s3-fips.us-east-1.amazonaws.com us-east-1"),
                (aws, "use_dualstack_endpoint = TRUE", {}, "bkt.s3.dualstack.us-east-1.amazonaws.com us-east-1"),
                (aws, "use_fips_endpoint = no", {}, "bkt.s3.us-east-1.amazonaws.com us-east-1"),
                (minio, "region = us-east-2", {}, "bkt.minio us-east-2"), (minio, "", {}, "bkt.minio us-east-1"),
                (minio, "region = x", {"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-east-3"}, "bkt.minio us-east-3"),
                ({"region": "cn-north-1"}, "use_fips_endpoint = true", {}, "use_fips_endpoint in the profile"),
                (minio, "", {"AWS_USE_FIPS_ENDPOINT": "true"}, "unset AWS_USE_FIPS_ENDPOINT"),
                (aws, "", {"AWS_ENDPOINT_URL_S3": " http://minio"}, "AWS_ENDPOINT_URL_S3 is no plain"),
                (aws, "", {"AWS_ENDPOINT_URL": "http://a\nb"}, "AWS_ENDPOINT_URL is no plain"),
                (minio, "region = x", {"AWS_REGION": "x@evil/"}, "AWS_REGION is 'x@evil/', no DNS label")):
            with self.subTest(config=config, profile=profile, env=env), environment({"AWS_PROFILE": None, **env}):
                path = self.write("file", f"{self.own_keys}{profile}\n")
                try:
                    found = vr.open_location(None, "", vr.find_location(
                        None, "", a_location_document({**config, "credentialsFile": path}), trusted=True))[0]
                except vr.ConfigError as error:
                    self.assertRegex(str(error), expected)
                else:
                    address = vr.bucket_address(found)
                    self.assertEqual(expected, f"{address.host} {address.region}")


class TestStoreAuthority(StoreWorld, TestCase):
    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return FakeCluster(tls=True), FakeStore(tls=True)

    def test_the_authority_may_lie_in_a_secret(self):
        self.make_secret("authority", "ca.crt", read_bytes(self.store.ca).decode())
        self.make_secret("too-large", "ca.crt", "x" * (257 << 10))
        for name, reference, reason, words in (
                ("good", {"name": "authority", "key": "ca.crt"}, "", ""), ("none", {}, ".+", "certificate"),
                ("large", {"name": "too-large", "key": "ca.crt"}, "InvalidStorageLocation", "caCertRef"),
                ("half", {"name": "authority", "key": "ca.pem"}, "SecretKeyNotFound", "ca.pem"),
                ("lost", {"name": "absent", "key": "ca.crt"}, "SecretNotFound", "absent")):
            with self.subTest(name):
                self.lay_out(name, secret=keys_file(self.store.access_key, self.store.secret_key), caCertRef=reference)
                document = self.answer_to("--verify-urls", name=name)
                self.assert_reason(document, reason, words) if reason else self.url_in(document)


# ---- Stores: what a store answers --------------------------------------------

def refusal_xml(code: str, message: str = "Some &lt;words&gt;", **fields: str) -> bytes:
    more = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


class TestStoreRefusals(TestCase):
    """Each refusal of a store is one sentence, a reason and a cure, and tells nothing of the signature."""
    url = vr.presign(vr.Address("https", "h:9000", "/bkt/k", "r"), some_credentials(session_token="t0ken/+="), NOW,
                     vr.URL_LIFE)

    def test_what_stores_answer(self):
        """S3's codes and those of others, pages that are no S3, forged lines, and what a store echoes of the URL.

        For those who may only see that a URL does not work, reason and known code are the same, without the store's
        words. AWS and MinIO have words of their own for clocks; a minute or less between these is not worth a word, and
        ten years are not signed for, but said."""
        page, elsewhere = b"<!DOCTYPE html><html>login</html>", {"x-amz-bucket-region": "eu-west-3"}
        echo, expired = self.url.replace("&", "&amp;"), refusal_xml("AccessDenied", "Request has expired")
        signed = vr.canonical_request("GET", "/bkt/k", self.url.partition("?")[2].rpartition("&")[0],
                                      {"host": "h:9000"}, vr.UNSIGNED_PAYLOAD)
        at = {minutes: {"Date": formatdate(after(minutes=minutes).timestamp(), usegmt=True)}
              for minutes in (17, -90, 11, 1, -20, 5_258_880, -5_258_880)}
        for status, answer, reason, words, *more in (
                (404, "NoSuchKey", "ArtifactNotFound", "no such file .* never have written it"),
                (404, "NoSuchBucket", "BucketNotFound", "no such bucket .* objectStorage.bucket"),
                (403, "InvalidAccessKeyId", "InvalidCredentials", "Secret or the credentials file"),
                (404, "XAdminUserNotFound", "InvalidCredentials", "Secret or the credentials file"),
                (403, "InvalidToken", "InvalidCredentials", "session token"),
                (403, "InvalidTokenId", "InvalidCredentials", "session token"),
                (403, refusal_xml("SignatureDoesNotMatch", CanonicalRequest=signed.replace("&", "&amp;")),
                 "SignatureDoesNotMatch", "the secret key is not the one of this access key .*correct the secret key"),
                (403, refusal_xml("SignatureDoesNotMatch", CanonicalRequest="GET\n/pub/k"), "SignatureDoesNotMatch",
                 "the path differs: signed '/bkt/k', the store saw '/pub/k'"),
                (400, "ExpiredToken", "CredentialsExpired", "renew"),
                (403, expired, "UrlExpired", "ask for the URL again"),
                (403, expired, "UrlExpired", "11m0s ahead", at[11]),
                (403, expired, "UrlExpired", "3652 days ahead of this host's.* the clocks differ", at[5_258_880]),
                (403, "RequestTimeTooSkewed", "ClockSkew", "3652 days behind this host's.* set the", at[-5_258_880]),
                (403, expired, "UrlExpired", r"\A(?!.*clock is)", at[1]),
                (403, "RequestTimeTooSkewed", "ClockSkew", "17m0s ahead of this host's.* set the clock", at[17]),
                (403, "RequestTimeTooSkewed", "ClockSkew", "1h30m0s behind this host's", at[-90]),
                *((403, refusal_xml("AccessDenied", f"Request is not {said}"), "ClockSkew", "20m0s behind", at[-20])
                  for said in ("yet valid", "valid yet")), (403, "InvalidObjectState", "ArtifactArchived", "archive"),
                (403, "Odd", "StoreAccessDenied", "Odd: Some"),
                (403, "AccessDenied", "StoreAccessDenied", "<words> .*s3:GetObject.*s3:ListBucket"),
                *((400, refusal_xml(code, Region="eu-west-3"), "WrongRegion", "eu-west-3.* correct region")
                  for code in ("AuthorizationHeaderMalformed", "AuthorizationQueryParametersError", "InvalidRequest")),
                (301, "PermanentRedirect", "WrongEndpoint", "eu-west-3.* region or s3Url", elsewhere),
                (307, "TemporaryRedirect", "WrongEndpoint", "s3Url"),
                (301, b"", "WrongEndpoint", "eu-west-3", elsewhere), (400, b"", "WrongRegion", "eu-west-3", elsewhere),
                (400, b"", "StoreError", "answered 400: nothing"), (403, b"", "StoreAccessDenied", "403"),
                (503, "SlowDown", "StoreError", "503: SlowDown", {"Retry-After": "7"}),
                (302, page, "StoreError", "answered 302: an HTML page"), (403, page, "StoreAccessDenied", "HTML"),
                (404, page, "ArtifactNotFound", "HTML"),
                (403, refusal_xml("AccessDenied", echo), "StoreAccessDenied", "https://h:9000/bkt/k"),
                (403, refusal_xml("AccessDenied", "a&#10;error: forged&#27;[2Jb\nc"), "StoreAccessDenied", "forged")):
            body, headers = refusal_xml(answer) if isinstance(answer, str) else answer, dict(*more)
            with self.subTest(status=status, body=body):
                error, guarded = (vr.store_refusal(status, body, headers, "the store", self.url, NOW, quoting=quoting)
                                  for quoting in (True, False))
                text = " ".join((str(error), *error.hints))
                self.assertEqual((reason, reason, status), (error.reason, guarded.reason, error.status))
                self.assertRegex(text, words)
                self.assertTrue(str(error).isprintable())
                self.assertNotRegex(text, f"AKIA|t0ken|{self.url.rpartition('=')[2]}")
                self.assertEqual(bool(error.hints), reason != "StoreError")
                self.assertEqual(vr.Exit.NOT_ALLOWED if reason == "InvalidCredentials" else vr.Exit.FAILED
                                 if reason in vr.EXPIRED else vr.EXIT_OF_STATUS.get(status, vr.Exit.FAILED), error.exit)
                self.assertEqual(7.0 if headers.get("Retry-After") else None, error.retry_after)
                self.assertNotRegex(str(guarded), "words|login|forged|bkt|eu-west|Odd|HTML")
                known = re.search(rb"<Code>(?!Odd)(\w+)", body)
                self.assertIn(known.group(1).decode() if known else "without a code of S3", str(guarded))

    def test_clocks_that_are_not_believed(self):
        for date in ("", "yesterday", "Wed, 99 May 2026 12:00:00 GMT", "Mon, 04 May 99999 12:00:00 GMT",
                     "Tue, 05 May 2026 12:00:01 GMT", "Sun, 03 May 2026 11:59:59 GMT", "Wed, 01 May 2080 00:00:00 GMT"):
            self.assertEqual(timedelta(0), vr.clock_skew({"Date": date}, NOW), date)


# ---- Stores: controller --verify-urls ----------------------------------------

class TestStoreVerify(StoreWorld, TestCase):
    def gets(self) -> List[Request]:
        return self.store.seen("GET", f"/{self.namespace}/")

    def test_good_urls(self):
        """One byte is asked for, once; 416 of an empty object and 200 of a store without ranges prove the URL, too."""
        self.url_in(self.answer_to())  # without the flag a URL for a missing artifact is given, as Velero does
        self.assertEqual(self.gets(), [])
        for body, status in ((b"x" * 9, 206), (b"", 416), (b"x" * 99_999, 200)):
            self.store.put(self.namespace, KEYS["BackupLog"], body)
            if status == 200:
                self.store.script("GET", self.namespace, status=200, body=body)
            self.store.forget()
            self.url_in(self.answer_to("--verify-urls"))
            request, = self.gets()
            self.assertEqual((status, "bytes=0-0"), (request.status, request.headers["range"]))

    def test_what_is_wrong_is_left_on_the_request(self):
        """Reason and a sentence with the store's code, of its words nothing, and no URL; a dry run writes nothing."""
        def tell() -> None:
            self.store.script("GET", self.namespace, times=9, status=403, headers={"x-amz-bucket-region": "CANARY"},
                              body=refusal_xml("AccessDenied", "CANARY", Region="CANARY"))

        def away() -> None:
            self.admin.merge_patch(BSL, "default", {"spec": {"config": {
                "s3Url": f"http://127.0.0.1:{free_port()}"}}}, self.namespace)
        wrong = base64.b64encode(keys_file(self.store.access_key, "a-wrong-secret").encode()).decode()
        for prepare, reason, words in (
                (lambda: self.store.buckets.pop(self.namespace, None), "BucketNotFound", "no such bucket"),
                (lambda: self.store.create_bucket(self.namespace), "ArtifactNotFound", "no such file"),
                (tell, "StoreAccessDenied", "403: AccessDenied"),
                (lambda: (self.store.unscript(), self.admin.merge_patch(
                    "secrets", "cloud", {"data": {"keys": wrong}}, self.namespace)),
                 "SignatureDoesNotMatch", "403: SignatureDoesNotMatch"), (away, "Unreachable", "cannot reach")):
            with self.subTest(reason):
                prepare()
                document = self.answer_to("--verify-urls", "--dry-run")
                self.assertFalse(reason_of(document) or document.get("status"))
                self.admin.delete(DR, document["metadata"]["name"], self.namespace)
                self.store.forget()
                document = self.answer_to("--verify-urls")
                self.assert_reason(document, reason, words)
                self.assertTrue(document["status"]["expiration"])
                self.assertEqual(int(reason != "Unreachable"), len(self.gets()))  # clocks agree: tried once
                self.assertNotIn("CANARY", json.dumps([document, self.admin.list("events", self.namespace)]))
                self.admin.delete(DR, document["metadata"]["name"], self.namespace)

    def test_no_greeting_gets_out(self):
        """What answers in another language than HTTP is not quoted either."""
        for greeting in (b"SSH-2.0-CANARY\r\n", b"-ERR CANARY\r\n", b"HTTP/1.1 CANARY\r\n\r\n", b"CANARY",
                         b"HTTP/1.1 403 CANARY\r\nContent-Length: 1, 2CANARY\r\n\r\n", b""):
            self.store.script("GET", "/b/k", wire=lambda _, greeting=greeting: [greeting])
            with self.subTest(greeting), self.assertRaises(vr.Error) as caught:
                vr.verify_url(f"{self.store.url}/b/k", vr.Trust())
            self.assertNotIn("CANARY", "\n".join((str(caught.exception), *caught.exception.hints)))

    def test_link_local_services_are_not_asked(self):
        """However a URL says such an address, it is refused before a connection is made, through a proxy too."""
        self.store.forget()
        for variables, host in product(({}, {"HTTP_PROXY": self.store.url}), (
                "169.254.169.254", "169.254.170.23:8080", "[::ffff:169.254.169.254]", "[fe80::1]", "168.63.129.16",
                "[::ffff:0:a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "metadata", "Metadata.google.internal.",
                "[fd00:ec2::254]", "2852039166", "0xA9FEA9FE", "169.254.43518", "0251.0376.0251.0376")):
            with self.subTest(host=host, **variables), environment({"NO_PROXY": None, **variables}):
                began = time.monotonic()
                with self.assertRaisesRegex(vr.StoreError, "link-local") as caught:
                    vr.verify_url(f"http://{host}/latest/meta-data/", vr.Trust())
                self.assertEqual(("WrongEndpoint", True), (caught.exception.reason, time.monotonic() - began < 2))
        self.assertEqual([], self.store.requests)

    def test_what_was_looked_up_is_what_is_asked(self):
        """The connection goes to the address that was checked, with the URL's own name in Host and for TLS."""
        for tls in (False, True):
            store = self.enter(closing(FakeStore(tls=tls)))
            store.put("bucket", "a", b"x")
            host = f"localhost:{store.port}"
            url = presigned_url(f"http{'s' if tls else ''}://{host}/bucket/a", store.access_key, store.secret_key,
                                store.region)
            with vr.open_url(url, vr.Trust(read_bytes(str(store.ca)) if tls else b""), address="127.0.0.1") as response:
                self.assertEqual(b"x", b"".join(vr.read_body(response)))
            self.assertEqual(host, store.requests[-1].headers["host"])


class TestStoreRealVerify(RealWorld, TestCase):
    """Signed URLs on the real servers."""

    def test_every_awkward_key_is_fetched(self):
        location = a_location(name="l", bucket=self.namespace, region=self.store.region, s3_url=self.store.url,
                              path_style=True)
        for key, _ in AWKWARD_OBJECT_KEYS:
            if key.strip("/") != key or "\x01" in key or key == "...":
                continue  # versitygw keeps keys as names of files, where these are others
            with self.subTest(key):
                body = ("the object " + key).encode()
                self.store.put(self.namespace, key, body)
                url = vr.presign(vr.object_address(location, key), vr.Credentials(
                    self.store.access_key, self.store.secret_key), vr.utc_now(), vr.URL_LIFE)
                with closing(http.client.HTTPConnection(self.store.host, timeout=20)) as raw:
                    raw.request("GET", url[len(self.store.url):])
                    with vr.open_url(url) as response:
                        self.assertEqual([body] * 2, [raw.getresponse().read(), b"".join(vr.read_body(response))])
                vr.verify_url(url, vr.Trust())


# ---- Stores: what is read of their answers -----------------------------------

def aws_chunked(data: bytes, size: int = 64, signed: bool = True, trailers: bytes = b"") -> bytes:
    extra = b";chunk-signature=" + b"0a" * 32 if signed else b""
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extra, piece) for piece in (*cut(data, size), b""))
    return framed[:-2] + trailers + b"\r\n" if trailers else framed


class TestStoreWords(Cases):
    def test_listing(self):
        """XML's own characters in prefixes and in the token are what they stand for."""
        page = ("<ListBucketResult><IsTruncated>{}</IsTruncated><NextContinuationToken>1&amp;2</NextContinuationToken>"
                "<CommonPrefixes><Prefix>a&amp;b=c/backups/one/</Prefix></CommonPrefixes>"
                "<CommonPrefixes><Prefix>a&amp;b=c/backups/t&#39;wo/</Prefix></CommonPrefixes></ListBucketResult>")
        names = ["a&b=c/backups/one/", "a&b=c/backups/t'wo/"]
        for more, token in (("true", "1&2"), ("false", "")):
            self.assertEqual((names, token), vr.listed_prefixes(page.format(more).encode()))

    def test_what_a_body_is(self):
        """Binary data is not called text, with or without a NUL; text may be cut within a character."""
        for said, *bodies in (("nothing", b""), ("an HTML page", b"<html>", b"  <HTML>"),
                ("binary data", b"\x89PNG\r\n\x1a\n", b"\x1f\x8b\x08", b"a\xff\xfeb", b"a\x1b[2Jb", b"a\0b"),
                ("an XML document", b"<?xml?>", b"<Error><Code>x</Code>"), ("text: sig=***", b"sig=s3cr3t\n"),
                ("text: gr\u00fcn x", "gr\u00fcn\tx".encode()), ("text: aaa", b"a" * 511 + "\u00fc".encode())):
            for body in bodies:
                self.assertTrue(vr._what_is(body).startswith(said), (body, vr._what_is(body)))

    def test_object_info(self):
        """An ETag is an MD5 unless it is weak, of parts, or of an encrypted object; a range has to reach the end."""
        md5 = "0123456789abcdef" * 2
        whole, encryption = vr.ObjectInfo(f'"{md5}"', 9, md5), "x-amz-server-side-encryption"
        for status, headers, changes in ((200, {}, {}), (200, {"ETag": '"abc-3"'}, {"etag": '"abc-3"', "md5": ""}),
                (200, {"ETag": f'W/"{md5}"'}, {"etag": "", "md5": ""}), (200, {"ETag": md5}, {"etag": md5, "md5": ""}),
                (200, {encryption: "aws:kms"}, {"md5": ""}), (200, {encryption: "AES256"}, {}),
                (200, {encryption + "-customer-algorithm": "AES256"}, {"md5": ""}),
                (200, {"Content-Length": "+9"}, {"size": None, "ends": False}),
                (200, {"Content-Length": "", "Transfer-Encoding": "Chunked"}, {"size": None}),
                *((206, {"Content-Range": text}, {"size": 10, "start": 1, "whole": False})
                  for text in ("bytes 1-9/10", "bytes 1-9/*")),
                *((206, {"Content-Range": text}, {"size": None, "start": -1, "whole": False})
                  for text in ("bytes 1-9/11", "bytes 1-8/9", "bytes 9-1/10", "bytes */10", "", "bytes x"))):
            self.assertEqual(whole._replace(**changes), vr.object_info(
                status, {"ETag": f'"{md5}"', "Content-Length": "9", **headers}), (status, headers))

    def test_when_to_try_again(self):
        """Three, five or ten times, by what has come before; at most a minute, and not what stays wrong."""
        for status, reason, moved, waits, more in (
                (0, "BrokenOff", False, 4, {}), (0, "BrokenOff", True, 9, {}), (0, "Unreachable", False, 2, {}),
                (0, "Unreachable", True, 9, {}), (0, "BrokenOff", True, 0, {"retry": False}),
                (503, "StoreError", False, 4, {}), (503, "StoreError", True, 9, {}), (429, "StoreError", True, 9, {}),
                (403, "StoreError", True, 0, {}), (206, "WrongRange", True, 2, {}),
                (503, "StoreError", True, 0, {"retry_after": 61.0}),
                (503, "StoreError", True, 2, {"retry_after": 25.0}), (None, "StoreError", True, 0, {})):
            with self.subTest(status=status, reason=reason, moved=moved, **more):
                fault = vr.Unreachable("x", reason=reason) if status == 0 else vr.StoreError(
                    "x", status=status or 0, reason=reason)
                vars(fault).update(more)
                taken: List[float] = []
                for failures in range(1, 20):
                    taken.append(vr.download_wait(fault, failures, sum(taken), moved, 0.2))
                    if taken[-1] is None:
                        break
                self.assertEqual((waits, None), (len(taken) - 1, taken.pop()))
                self.assertLessEqual(sum(taken), 60)

    def test_progress_text(self):
        """The rate is that of the bytes of this run; what is not known is left out."""
        self.gives(vr.progress_text, ((1 << 20, 4 << 20, 1 << 19, 0.5), "1.0 MiB of 4.0 MiB, 25%, 1.0 MiB/s, 3s left"),
                   ((1 << 20, None, 1 << 20, 2.0), "1.0 MiB, 512.0 KiB/s"),
                   ((9, 18, 0, 0.0), "9 B of 18 B, 50%, 0 B/s"),
                   ((3 << 41, 3 << 41, 1, 1.0), "6.0 TiB of 6.0 TiB, 100%, 1 B/s, 0s left"))


class TestStoreChunked(TestCase):
    """Objects that some SDK stored with its framing."""
    packed = gzip.compress(random.Random(3).getrandbits(5600).to_bytes(700, "big") + LOG)

    def test_framing_is_taken_off(self):
        """Signed, unsigned and with trailers, in pieces of any size, the object inside is read; others stay."""
        crc = b"x-amz-checksum-crc32:AAAAAA==\r\n"
        sealed = crc + b"x-amz-trailer-signature:" + b"0b" * 32 + b"\r\n"
        framed = ((aws_chunked(self.packed, *form), self.packed) for form in product(
            (16, 100, 65536), (True, False), (b"", crc, sealed)))
        plain = ((stored, stored) for stored in (
            self.packed, b"", b"1", b"text\r\n", b"10\r\nabcdef", b"10\r\n" + b"x" * 300, b"0\r\n\r\n", b"a" * 1000,
            b"\x1f", b"\x1f\x8b", b"<html>\r\n", self.packed + self.packed, b"1f\r\n\x1f\x8c" + b"x" * 200))
        for (stored, whole), step in product(itertools.chain(framed, plain), (1, 2, 7, 100, 99_999)):
            with self.subTest(stored[:12], step=step):
                self.assertEqual(b"".join(vr.decode_aws_chunked(cut(stored, step))), whole)

    def test_what_is_cut_or_damaged_is_an_error(self):
        """Wherever a framed object ends before its last chunk, or with a size that is none or does not fit."""
        framed = aws_chunked(self.packed, 100, signed=False)
        second = framed.index(b"\r\n64\r\n") + 2
        wrong = [framed[:second] + text + framed[second + 2:] for text in (b"zz", b"6", b"-1", b"65", b"63")]
        for framed in (framed, aws_chunked(self.packed, 100)):
            last = framed.rindex(b"\r\n0") + 2
            wrong += [framed[:end] for end in {140, 141, 150, 400, len(framed) // 2, *range(last - 3, last + 2)}]
        for stored in wrong:
            with self.subTest(stored[-20:]), self.assertRaisesRegex(vr.StoreError, "cut short|damaged"):
                list(vr.decode_aws_chunked(cut(stored, 50)))


# ---- Downloads: the tools ----------------------------------------------------

MIB = 1 << 20
CUT_COST = MIB  # the most that a cut may cost in bytes sent twice
GROWTH = 14  # MiB that it adds to what a script has resident before
IDLE_FLAG = ("--idle-timeout", "1s")
PART_SUFFIX = ".velero-requests.part"
LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Sign in</form></body></html>"
SPENT_URL = refusal_xml("AccessDenied", "Request has expired")
SLOW_DOWN = refusal_xml("SlowDown", "Please reduce your request rate.")
# What no error text may hold, besides secrets: markup, reprs, urllib3's own words, what steers a terminal.
UGLY = re.compile(r"</?\??(xml|!doctype|html|body|form|error|code|message)\b|object at 0x|Max retries exceeded|"
                  r"Traceback \(most|HTTPConnection|getresponse|[\r\x1b]", re.IGNORECASE)


def part_of(path: str) -> str:
    """Where the partial file of a target lies; when there is none, where nothing does."""
    folder, name = os.path.split(path)
    return os.path.join(folder, next((found for found in os.listdir(folder) if found.startswith(f".{name}.")
                                      and found.endswith(PART_SUFFIX)), ".no" + PART_SUFFIX))


def usual_part(path: str, ending: str) -> str:
    """Where the partial file of b1's log with this ending, mark and ETag, is put."""
    new = vr.AtomicFile(path, "BackupLog of b1", force=False)
    return new.prefix + ending.format(mark=new.digest) + PART_SUFFIX


def noise(size: int, seed: int = 6) -> bytes:
    """Bytes that do not compress, always the same."""
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "big")


@lru_cache(maxsize=8)
def archive(size: int, seed: int = 6) -> bytes:
    """A .tar.gz of about this size, always the same."""
    files = {"metadata/version": b"1.1.0\n", "resources/noise": noise(size, seed)}
    return gzip.compress(tar_of(files, "w"), 1, mtime=0)


def read_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write_bytes(path: str, content: bytes) -> str:
    """Write a file, its folder too if need be, and return its path."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def size_of(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def first_byte(request: Request) -> int:
    """Where the range that a request asks for begins, 0 without a range."""
    return int(re.match(r"(?:bytes=)?(\d*)", request.headers.get("range", ""))[1] or 0)


def body_start(response: bytes) -> int:
    return response.index(b"\r\n\r\n") + 4


# Faults on the wire: bytes to send, an Event to wait for, seconds to let pass.
Pieces = Iterable[Any]


def cut_body(after: int) -> Callable[[bytes], Pieces]:
    """The connection ends after so many bytes of the body."""
    return lambda response: [response[:body_start(response) + after]]


def paced(count: int, seconds: float) -> Callable[[bytes], Pieces]:
    """The body comes in so many pieces with a pause before each."""
    def pieces(response: bytes) -> Iterator[Any]:
        start = body_start(response)
        yield response[:start]
        for piece in cut(response[start:], max(1, (len(response) - start) // count)):
            yield seconds
            yield piece
    return pieces


def chunked(size: int, last: bool = True) -> Callable[[bytes], Pieces]:
    """The body comes in chunked encoding, with or without its last chunk."""
    def pieces(response: bytes) -> Iterator[bytes]:
        start = body_start(response)
        yield re.sub(rb"(?i)content-length: \d+", b"Transfer-Encoding: chunked", response[:start])
        yield from map(chunk, cut(response[start:], size))
        yield b"0\r\n\r\n" if last else b""
    return pieces


class Sentences(World):
    """What every end of a download is checked for."""
    target: str
    path: str

    def make_target(self) -> None:
        self.target = self.at("target")
        self.path = os.path.join(self.target, "x")
        os.makedirs(self.target, exist_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.target)
        os.mkdir(self.target)

    def left(self) -> Set[str]:
        return set(os.listdir(self.target))

    def assert_sentence(self, result: Result, *words: str) -> None:
        """A failure is told in one `error:` line with these words (regular expressions)."""
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, (result.code, result.err))
        for word in words:
            self.assertRegex(errors[0].lower(), word)
        self.assert_tidy(result.err)

    def assert_tidy(self, text: str) -> None:
        self.assertIsNone(UGLY.search(text), text)
        self.assert_clean(text)

    def assert_right(self, result: Result, stored: bytes) -> None:
        """A download ended with the object, and with nothing beside it."""
        self.assertEqual(result.code, 0, result.err)
        self.assertTrue(read_bytes(self.path) == stored, "the file is not the object")
        self.assertEqual(self.left(), {os.path.basename(self.path)})
        self.assert_tidy(result.err)

    def assert_absent(self, result: Result, code: Any, *words: str) -> None:
        """A download failed with one of the codes, and left nothing."""
        self.assertIn(result.code, code if isinstance(code, tuple) else (code,), result.err)
        self.assert_sentence(result, *words)
        self.assertEqual((self.left(), result.out), (set(), b""), result.err)


class DownloadWorld(Sentences, FakeWorld):
    serves = True

    def setUp(self):
        super().setUp()
        self.make_target()
        for server in (self.cluster, self.store):
            server.unscript()
            server.forget()
        self.store.clock, self.store.page = time.time, 1000
        self.cluster.grant("controller", {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                           namespace=self.namespace)
        if self.serves:
            self.serve("controller")

    def contents(self, size: int = 300_000, seed: int = 6, name: str = "b1") -> bytes:
        """Store the contents of a backup, and return what lies in the bucket."""
        self.store.put(self.namespace, f"backups/{name}/{name}.tar.gz", archive(size, seed))
        return archive(size, seed)

    def download(self, *argv: str, name: str = "b1") -> Result:
        return self.cli("download", name, "-o", self.path, *IDLE_FLAG, *argv)

    def stalled(self, reached: int, *argv: str) -> Tuple[Program, threading.Event]:
        """Start a download in a process of its own, which stands still with so many bytes in its partial file."""
        gate = threading.Event()
        self.store.script("GET", pause_after=reached, gate=gate)
        program = self.program("download", "b1", "-o", self.path, *argv)
        wait_until(lambda: size_of(part_of(self.path)) >= max(1, reached - CUT_COST), 15, "the partial file")
        return program, gate

    def gets(self, part: str = "") -> List[Request]:
        """The GETs of objects that the store has seen."""
        return [request for request in self.store.seen("GET", part) if "list-type" not in request.target]

    def by_shell(self, start: str, *argv: str) -> Result:
        done = subprocess.run(["sh", "-c", start + '; exec "$@"', "sh", sys.executable, MODULE, *argv, "--kubeconfig",
             self.kubeconfig, "-n", self.namespace], stdin=DEVNULL, stderr=PIPE, timeout=60, check=False)
        return Result(done.returncode, b"", done.stderr.decode())


class Terminal:
    """A command on a terminal of its own, which it controls: Ctrl-C typed there is a signal."""

    def __init__(self, folder: str, *argv: str, program: Tuple[str, ...] = (sys.executable, MODULE)) -> None:
        self.master, self.slave = pty.openpty()
        self.before = self.after = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            [*program, *argv], cwd=folder, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # pylint: disable=subprocess-popen-preexec-fn
        self.pieces: List[Tuple[float, bytes]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with suppress(OSError):
            while True:
                piece = os.read(self.master, 65536)
                self.pieces.append((time.monotonic(), piece))

    def text(self) -> str:
        """What the terminal has been sent, line ends as the program wrote them."""
        return b"".join(piece for _, piece in self.pieces).decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self, seconds: float = 20) -> Tuple[int, str]:
        """Wait until it has ended, and return its code and all that it said."""
        code, self.after = self.process.wait(seconds), termios.tcgetattr(self.slave)
        os.close(self.slave)
        self.reader.join(5)
        os.close(self.master)
        return code, self.text()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.end()


def resident(pid: int, field: str = "VmRSS") -> float:
    """What a process has resident, in MiB; 0 when it has ended.

    Not VmHWM, its peak: for some hundredths of a second at the start, compiling the file needs more than any transfer.
    """
    with suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as file:
        found = re.search(rf"{field}:\s+(\d+)", file.read())
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


# ---- Downloads: what a store does, and what comes of it ----------------------

STORED = archive(300_000)
HALF = {"wire": cut_body(150_000)}


def forever(**fault: Any) -> Document:
    return {"times": ALWAYS, **fault}


def sized(length: Any) -> Document:
    """A Content-Length that is not the body's, of which all is sent."""
    return {"headers": {"Content-Length": str(length)}, "cut_after": len(STORED)}


MD5, CHANGED, SIZE = "its MD5 is", "the object changed after", len(STORED)
BUSY, SPENT = {"status": 503, "body": SLOW_DOWN}, {"status": 403, "body": SPENT_URL}
PAGE, ENCODED = {"status": 200, "body": LOGIN_PAGE}, {"Content-Encoding": "gzip"}
# What is wrong, what a store does in this order and then no more, the words of a file's error, of a stream's where it
# ends otherwise, the exit code, and whether a partial file remains.
FAULTS: Any = (*((f"cut after {size}", ({"wire": cut_body(size)},)) for size in (0, 1, 100_000, SIZE - 9, SIZE)),
    *((f"cut in the header after {size}", ({"wire": lambda response, size=size: [response[:size]]},))
      for size in (*range(0, 300, 29), 235)),
    ("cut ten times", tuple({"wire": cut_body(29_000)} for _ in range(10))),
    ("dropped", ({"drop": True},)), ("silent", ({"hang": SILENT},)),
    ("silent in the header", ({"wire": lambda response: [response[:20], SILENT]},)),
    *((f"silent after {size}", ({"pause_after": size, "gate": SILENT},)) for size in (0, 100_000)),
    *((f"in chunks, {last}", ({"wire": chunked(1000, last=last)},)) for last in (True, False)),
    *((f"a length of {size}", (sized(size),), MD5) for size in (0, SIZE // 2, SIZE - 1)),
    *((f"a length of {size}", (sized(size),), "", CHANGED) for size in (SIZE + 1, SIZE + 5000)),
    *((f"a length of {text!r}", (sized(text),)) for text in ("-1", "abc", "1e3", "9" * 23, " ", "5, 6")),
    *((f"a range of {text}", (HALF, {"headers": {"Content-Range": text}})) for text in (
        f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes 150001-{SIZE - 1}/{SIZE}", f"bytes 149999-{SIZE - 2}/{SIZE}",
        f"bytes 149999-{SIZE - 1}/{SIZE + 1}", f"bytes 149999-{SIZE - 1}/*", "bytes */100", "nonsense", "bytes 5-4/3",
        None)),
    ("another ETag", (HALF, {"headers": {"ETag": '"other"'}}), "", CHANGED),
    *((str(status), (HALF, {"status": status, "body": refusal_xml("InvalidRange")}), "", CHANGED)
      for status in (412, 416)),
    ("other bytes", (HALF, {"body": lambda body: noise(len(body), seed=3)}), "damaged"),
    ("HTML half way with 200", (HALF, PAGE), "", CHANGED),
    *((f"HTML half way with {status}", (HALF, {**PAGE, "status": status})) for status in (206, 403, 502)),
    ("Range is ignored", (HALF, {"answer": lambda request, true: changed(
        true, 200, STORED, {"Content-Range": None})})),
    ("503", (BUSY, BUSY)), ("expired", (HALF, SPENT)),
    ("403 half way", (HALF, {"status": 403, "body": ""})),
    ("expired again and again", (HALF, SPENT, SPENT, HALF, SPENT, SPENT)),  # bytes in between make up for it
    ("declared gzip", (forever(headers=ENCODED),)),
    ("truly gzip", (forever(body=gzip.compress, headers=ENCODED),), MD5),
    ("500 for ever", (forever(status=500, body="oops"),), "500"), ("503 for ever", (forever(**BUSY),), "503: SlowDown"),
    ("503 for a day", (forever(status=503, body="", headers={"Retry-After": "86400"}),), "503"),
    ("503 from half way on", (HALF, forever(**BUSY)), "503", None, 1, True),
    ("dropped for ever", (forever(drop=True),), "cannot reach", None, 6),
    ("dropped from half way on", (HALF, forever(drop=True)), "cannot reach", None, 6, True),
    *((f"cut in the header after {size} for ever", (forever(wire=lambda response, size=size: [response[:size]]),),
       "cannot reach|broke off", None, 6) for size in (9, 60)),
    ("no body", (forever(wire=cut_body(0)),), f"broke off after 0 of {SIZE} bytes", None, 6),
    ("no body and no length", (forever(wire=lambda _: [b"HTTP/1.1 200 OK\r\n\r\n"]),), "broke off after 0", None, 6),
    ("no chunk", (forever(wire=lambda response: chunked(1000, last=False)(response[:body_start(response)])),),
     "broke off", None, 6),
    ("silent for ever", (forever(pause_after=0, gate=SILENT),), "nothing for 60ms, after 0 bytes|in time", None, 6),
    ("silent from half way on", (HALF, forever(pause_after=0, gate=SILENT)), "sent nothing|in time", None, 6, True),
    ("always too long", (forever(**sized(310_000_000)),), "another part", None, 1, True),
    ("always too short", (forever(**sized(1000)),), MD5), ("HTML", (forever(**PAGE),), "an HTML page"),
    ("HTML as gzip", (forever(**PAGE, headers={"ETag": '"abc"', "Content-Type": "application/gzip"}),), "HTML"),
    ("HTML from half way on", (HALF, forever(**PAGE)), "an HTML page", CHANGED),
    ("always expired", (forever(**SPENT),), "has expired"),
    *((f"{status} for ever", (forever(status=status, body=""),), said, None, code) for status, said, code in (
        (401, "401", 5), (403, "403", 5), (404, "has no such file", 3), (204, "204", 1), (302, "302", 1))),
    ("endless refusal", ({"wire": lambda _: itertools.chain(
        [b"HTTP/1.1 403 No\r\n\r\n<Error><Code>AccessDenied</Code><Message>"], itertools.repeat(b"no " * 20_000))},),
     "403: AccessDenied", None, 5),
    *((f"redirected to {place!r}", (forever(status=307, body=b"", headers={"Location": place}),), "307")
      for place in ("file:///etc/passwd", "http://[", "", "\x01", "http://127.0.0.1:1/")))
ZEROS = '"' + "0" * 32
OBJECTS = (  # what is stored, its ETag unless it is the MD5, what a file has, words
    (STORED, ZEROS + '"', None, MD5), (STORED, ZEROS + '-3"', STORED, ""), (STORED, '"0123"', STORED, ""),
    (STORED, 'W/"abc"', STORED, ""), (STORED, "odd", STORED, ""), (b"", "", None, "the file is empty, not gzip"),
    (STORED + STORED, "", STORED + STORED, ""), (STORED[:-9], "", None, "cut short"),
    (STORED + b"garbage", "", None, "damaged after"), (LOGIN_PAGE, "", None, "HTML"),
    (STORED[:200_000] + b"\xff" * 9 + STORED[200_009:], "", None, "damaged"),
    (aws_chunked(STORED, 1000), "", STORED, ""), (aws_chunked(STORED, 1000)[:3000], "", None, "cut short"))


class TestDownloadFaults(FolderCase):
    """Every fault of a store, for a file and for a stream, ends soon, whole or in one sentence.

    By the library alone, without a cluster and without long waits."""

    @classmethod
    def setUpClass(cls):
        cls.store = FakeStore()
        cls.addClassCleanup(cls.store.close)

    def setUp(self):
        super().setUp()
        self.script(())
        self.said = self.listen(logging.WARNING)
        self.put(STORED)

    def put(self, body: bytes, etag: str = "", **headers: str) -> None:
        self.store.put_with_etag("bucket", "k", body, etag or f'"{hashlib.md5(body).hexdigest()}"', **headers)

    def download(self, gunzip: bool = False, idle: float = 5.0, url: str = "", trust: Any = vr.Trust()) -> Any:
        """A download that is in a hurry; the skew of each URL is noted."""
        self.located: List[timedelta] = []
        download = vr.Download(vr.UrlSource(lambda skew: (
            self.located.append(skew) or url or self.store.url_of("bucket", "k"), trust, ""), idle=idle),
            "BackupLog of b1", gunzip=gunzip)
        download.first_wait = 0.0001
        return download

    def script(self, faults: Iterable[Document]) -> None:
        """Let the store do this, in this order."""
        self.store.unscript(all_struck=False)
        self.store.forget()
        for fault in faults:
            self.store.script("GET", "/bucket/k", **fault)

    def save(self, force: bool = False) -> Any:
        """Download into the file -> the Error that it ends with, or None."""
        try:
            self.download().save(self.path, force=force)
        except vr.Error as error:
            return error
        return None

    def clear(self) -> None:
        for name in os.listdir(self.folder):
            os.unlink(self.at(name))

    def begins(self) -> List[int]:
        """Where the ranges begin that were asked for, each of which has its condition."""
        for request in self.store.seen("GET"):
            self.assertEqual(bool(first_byte(request)), "if-match" in request.headers)
        return [first_byte(request) for request in self.store.seen("GET")]

    def outcome(self, gunzip: bool, words: str = "", code: int = 1, **how: Any) -> Tuple[Any, bytes]:
        """Download into a file, or with gunzip into a stream -> the error, which must have these words, or None; and
        what was written."""
        self.clear()
        error, download, writer = None, self.download(gunzip, **how), io.BytesIO()
        try:
            if gunzip:
                download.write_to(writer)
            else:
                download.save(self.path)
        except vr.Error as raised:
            error = raised
            self.assertRegex(str(error), "^BackupLog of b1: .*(" + (words or "no error") + ")")
            self.assertEqual((code, True, None), (error.exit, str(error).isprintable(), UGLY.search(str(error))))
        self.assertEqual(bool(words), error is not None)
        return error, writer.getvalue() if gunzip else self.found().get("out.gz", b"")

    def test_every_fault(self):
        """A file is whole or absent, and that is said; a stream has a beginning of it. None costs 15 requests."""
        content = gzip.decompress(STORED)
        for row, gunzip in product(FAULTS, (False, True)):
            name, faults, file, stream, code, keeps = row + ("", None, 1, False)[len(row) - 2:]
            with self.subTest(name, gunzip=gunzip):
                self.script(faults)
                self.said.seek(self.said.truncate(0))
                error, written = self.outcome(gunzip, file if stream is None or not gunzip else stream, code,
                                              idle=0.06 if "silent" in name else 5.0)
                self.assertLess(len(self.begins()), 2 if code in (3, 5) else 15)
                if gunzip:  # of what is damaged the beginning is sound
                    self.assertTrue(content.startswith(written[:140_000]) or name == "truly gzip")
                    self.assertTrue(error or written == content)
                elif error:
                    kept, = self.found().values() if keeps else [b""]
                    self.assertEqual(keeps, len(self.found()) == 1 and len(kept) >= 150_000)
                    self.assertTrue(STORED.startswith(kept))
                    self.assertEqual(keeps, "the same command goes on from there" in self.said.getvalue())
                else:
                    self.assertEqual({"out.gz": STORED}, self.found())
                self.assertEqual(not gunzip and stream is not None, "changed" in self.said.getvalue())
        self.script(())

    def test_what_is_stored(self):
        """What is no whole gzip of its ETag never passes; of a stream a sound beginning is written."""
        for (stored, etag, whole, words), gunzip, broken in product(OBJECTS, *[(False, True)] * 2):
            with self.subTest(stored[-9:], etag=etag, gunzip=gunzip, broken=broken):
                self.put(stored, etag)
                self.script([{"wire": cut_body(len(stored) // 2)}] if broken and etag != 'W/"abc"' else ())
                error, written = self.outcome(gunzip, words)  # a weak ETag identifies no bytes
                if gunzip:
                    content = gzip.decompress(whole or STORED)
                    self.assertTrue(content.startswith(written[:140_000]))
                    self.assertGreaterEqual(len(written), len(content) if stored[:len(STORED)] == whole else 0)
                else:
                    self.assertEqual({} if error else {"out.gz": whole}, self.found())
        self.put(STORED, ZEROS + '"', x_amz_server_side_encryption="aws:kms")
        self.assertEqual((None, STORED), self.outcome(False))

    def test_where_it_goes_on(self):
        """At the byte reached; a line that is slow but alive is left alone."""
        stored = archive(12 * MIB)
        self.put(stored)
        for steps in (random.Random(12).choices(range(50_000, 270_000), k=30), [11 * MIB]):
            self.script([{"wire": cut_body(step)} for step in steps])
            self.assertIsNone(self.save(force=True))
            self.assertTrue(read_bytes(self.path) == stored)
            reached = 0
            for begin, step in zip(self.begins(), steps):
                self.assertEqual(max(0, reached - 1), begin)
                reached = begin + step
        self.put(STORED)
        for fault, begins in (({"times": 3, "pause_after": 60_000, "gate": SILENT}, [0, 59_999, 119_998, 179_997]),
                              ({"wire": paced(15, 0.04)}, [0])):
            self.script([fault])
            self.assertEqual((None, STORED), self.outcome(False, idle=0.4))
            self.assertEqual(begins, self.begins())
        self.script([{"wire": cut_body(70_000)}])  # an error counts bytes of the whole
        with self.assertRaisesRegex(vr.Unreachable, f"the download broke off after 170000 of {SIZE} bytes"):
            with self.download().source.open(100_000, "") as (_, chunks, _):
                self.assertEqual(STORED[100_000:], b"".join(chunks))

    def test_an_object_that_changes(self):
        """A file is begun anew, three times at most; a stream has bytes of one. So where If-Match is ignored."""
        def change(count: int, response: bytes) -> Iterator[bytes]:
            yield response[:body_start(response) + 150_000]
            self.put(archive(300_000, seed=20 + count))

        def forget(request: Request, _true: Answer) -> Answer:
            request.headers.pop("if-match", None)
            return self.store.handle(request)
        for changes, gunzip, words in ((1, False, ""), (3, False, ""), (4, False, CHANGED), (1, True, CHANGED)):
            with self.subTest(changes=changes, gunzip=gunzip):
                self.put(STORED)
                self.script([fault for count in range(changes) for fault in (
                    {"wire": partial(change, count)}, {"answer": forget})])
                _, written = self.outcome(gunzip, words)
                self.assertTrue(gzip.decompress(STORED).startswith(written) and len(written) > 100_000 if gunzip else
                                words or written == archive(300_000, seed=19 + changes))

    def test_another_url(self):
        """It is signed by the store's clock where that is far off, but not years, twice in vain at most, and after
        bytes anew."""
        store = self.enter(closing(FakeStore()))
        store.put("bucket", "k", STORED)
        url = store.url_of("bucket", "k")
        for hours, skews, words in ((0, [0], ""), (1, [0, 1, 1], "expired"), (-1, [0, -1, -1], "not yet valid"),
                                    (87_648, [0] * 3, "expired .the store's clock is 3652 days ahead of "),
                                    (-87_648, [0] * 3, "valid .the store's clock is 3652 days behind this ")):
            store.clock = lambda hours=hours: time.time() + 3600 * hours
            self.outcome(False, words, url=url)
            self.assertEqual(skews, [round(skew / timedelta(hours=1)) for skew in self.located])

    def test_retry_after_is_waited_for(self):
        self.script([{**BUSY, "headers": {"Retry-After": "1"}}])
        self.assertEqual((None, STORED), self.outcome(False))
        first, second = (request.at for request in self.store.seen("GET"))
        self.assertTrue(1 <= second - first < 3)

    def test_cuts_under_tls(self):
        """A line that breaks under TLS, without a goodbye, is continued as well; without its authority nothing is."""
        store = self.enter(closing(FakeStore(tls=True)))
        store.put("bucket", "k", STORED)
        for after in (0, 1, 100_000, 250_000):
            store.script("GET", wire=cut_body(after))
        url = store.url_of("bucket", "k")
        self.assertEqual((None, STORED), self.outcome(False, url=url, trust=vr.Trust(read_bytes(str(store.ca)))))
        self.outcome(True, "certificate", 6, url=url)

    def test_leaving_early(self):
        """Whoever closes the chunks, or cannot write them, ends the transfer at once, and no thread stays."""
        self.put(archive(8 * MIB))
        for gunzip, fault in product((False, True), (
                {"wire": paced(100, 0.05)}, {"pause_after": 3 * MIB, "gate": SILENT})):
            self.script([fault])
            with within(1.5), closing(self.download(gunzip, idle=9).chunks()) as chunks:
                self.assertTrue(next(chunks))
            self.assertEqual([0], self.begins())

        def refuse(_data: bytes) -> Any:
            raise error
        for error in (BrokenPipeError(32, "gone"), ValueError("full"), TimeoutError("slow")):
            self.script(())
            with self.assertRaises(type(error)) as caught:
                self.download(True).write_to(SimpleNamespace(write=refuse))
            self.assertEqual((error, [0]), (caught.exception, self.begins()))
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "download"], 10,
                   "the threads to end")

    def test_a_writer_that_takes_a_little(self):
        """It gets the rest again, as a raw pipe would need it, and is not closed."""
        taken: List[bytes] = []
        writer = SimpleNamespace(write=lambda data: taken.append(bytes(data[:9999])) or len(taken[-1]))
        self.assertEqual((SIZE, True), (self.download().write_to(writer), b"".join(taken) == STORED))

    def test_partial_files(self):
        """What an earlier run left is continued where it fits; what is wrong with it costs a second run at most."""
        stored = archive(2 * MIB)
        self.put(stored)
        half, own = stored[:MIB], "{mark}." + hashlib.md5(stored).hexdigest()
        for ending, content, begins, said in (
                (own, half, [MIB - 1], ""), (own, stored, [len(stored) - 1], ""), (own, b"", [0], ""),
                (own, half[:1000], [999], ""), (own, half + bytes(100_000), None, "damaged"),
                (own, half[:5000] + b"\xff" * 9 + half[5009:], None, "damaged; starting over"),
                (own, noise(MIB), None, "damaged"), (own, stored + b"x", None, "changed"),
                (own, half + noise(2 * MIB), None, "changed"), ("{mark}." + "0" * 32, half, None, "changed"),
                ("{mark}.d41d8cd98f00b204e9800998ecf8427e-2", half, None, "changed"), ("{mark}.~", half, [0], ""),
                ("{mark}." + "a" * 65, half, [0], ""), ("00000000" + own[6:], half, [0], "")):
            with self.subTest(ending, size=len(content)):
                self.clear()
                write_bytes(usual_part(self.path, ending), content)
                self.said.seek(self.said.truncate(0))
                self.store.forget()
                self.assertIsNone(self.save())
                self.assertTrue(self.found() == {"out.gz": stored})
                self.assertIn(begins, (None, self.begins()))
                self.assertRegex(self.said.getvalue(), said or r"\A\Z")

    def test_what_stands_in_its_place(self):
        """A link, a second name of another file, a FIFO, a folder, or another user's file is neither written to, nor
        waited for, nor continued; where a link that the target is leads to is replaced."""
        victim, own = self.path + "-victim", "{mark}." + hashlib.md5(STORED).hexdigest()
        link, second_name = (partial(make, victim) for make in (os.symlink, os.link))
        parts = [usual_part(self.path, ending) for ending in (own, "{mark}.0")]
        rows = [(*row, 0, "") for row in product((link, second_name, os.mkfifo, os.mkdir), parts)]
        if os.geteuid() == 0:  # it takes root to give files away
            rows += [(lambda path: write_bytes(path, STORED[:1000]), parts[0], 65534, ""),
                     (os.mkfifo, self.path, 65534, "no regular"), (link, self.path, 65534, "link of another user")]
        for make, odd, owner, words in rows:
            with self.subTest(make=make, odd=odd):
                write_bytes(victim, b"precious")
                make(odd)
                if owner:
                    os.lchown(odd, owner, owner)
                before = os.lstat(odd)
                error = self.save(force=True)
                self.assertRegex(str(error or ""), words or r"\A\Z")
                after = os.lstat(odd)
                self.assertEqual((before.st_ino, before.st_size, before.st_mtime_ns, b"precious"),
                                 (after.st_ino, after.st_size, after.st_mtime_ns, read_bytes(victim)))
                self.assertEqual({odd, victim} if error else {odd, victim, self.path}, {
                    self.at(name) for name in os.listdir(self.folder)})
                self.assertTrue(error or read_bytes(self.path) == STORED)
                if os.path.isdir(odd):
                    os.rmdir(odd)
                self.clear()
        os.symlink(write_bytes(victim, b"old"), self.path)
        self.assertIsNone(self.save(force=True))
        self.assertEqual((True, STORED), (os.path.islink(self.path), read_bytes(victim)))

    @skipUnless(os.geteuid() == 0, "it takes root to become another user")
    def test_a_shared_folder(self):
        """Where somebody else is busy with our names, a download ends with our own file, or in one sentence; nobody
        else's file gets a byte."""
        os.chmod(self.folder, 0o1777)
        outside = tempfile.TemporaryDirectory()
        self.addCleanup(outside.cleanup)
        victim, his = os.path.join(outside.name, "victim"), self.at("his")
        write_bytes(victim, b"precious")
        pid = pester(self.folder, ["out.gz", *(os.path.basename(usual_part(self.path, ending))
                                               for ending in ("{mark}." + hashlib.md5(STORED).hexdigest(), "{mark}.~"))
                                   ], victim)
        self.addCleanup(os.waitpid, pid, 0)
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        wait_until(lambda: size_of(his), 5, "the other user")
        began, ends = time.monotonic(), set()
        while time.monotonic() < began + 2 or (ends != {True, False} and time.monotonic() < began + 15):
            for force in (False, True):
                error = self.save(force)
                ends.add(error is None)
                if error:
                    self.assertRegex(str(error), "cannot write|exists")
                    continue
                there = os.lstat(self.path)
                self.assertEqual((stat.S_IFREG | 0o600, os.geteuid(), 1), (there.st_mode, there.st_uid, there.st_nlink))
                self.assertTrue(read_bytes(self.path) == STORED)
                os.unlink(self.path)
        self.assertEqual(({True, False}, b"his", b"precious"), (ends, read_bytes(his), read_bytes(victim)))
        self.assertEqual([], [entry.name for entry in os.scandir(self.folder)  # a refused file may keep its bytes
                              if entry.stat(follow_symlinks=False).st_uid == 0 and not entry.name.endswith(".part")])

    def test_everything_is_on_disk_before_it_has_its_name(self):
        def note(_frame: Any, event: str, what: Any) -> None:
            if event == "c_call" and what.__module__ == "posix" and what.__name__ in ("fsync", "link", "replace"):
                calls.append(what.__name__)
        for force, naming in ((False, "link"), (True, "replace")):
            calls: List[str] = []
            sys.setprofile(note)
            try:
                self.save(force)
            finally:
                sys.setprofile(None)
            self.assertEqual(["fsync", naming, "fsync"], calls)


class TestDownloadFiles(DownloadWorld, TestCase):
    def test_targets_that_are_refused(self):
        """What exists, or is no file, costs no request; what takes no file is one sentence."""
        self.contents()
        write_bytes(self.path, b"old")
        self.cluster.forget()
        for path, words in ((self.path, "exists"), (os.devnull, "no regular file")):
            result = self.cli("backup", "download", "b1", "-o", path)
            self.assertEqual((1, b"", "regular" in words), (result.code, result.out, "`-o -`" in result.err))
            self.assert_sentence(result, re.escape(path.lower()), words)
        self.assertEqual(self.cluster.seen(user="admin") + self.store.seen(), [])
        result = self.cli("download", "b1", "-o", "/proc/velero-requests-test", *IDLE_FLAG)
        self.assert_sentence(result, "/proc/velero-requests-test")
        self.assertEqual(({"x"}, b"old", []), (self.left(), read_bytes(self.path), self.names()))

    def test_a_full_disk(self):
        """No space is one sentence with the file in it; nothing is left, and an old file is as it was."""
        self.contents(MIB)
        write_bytes(self.path, b"old")
        result = self.by_shell("ulimit -f 400", "download", "b1", "-o", self.path, "--force", *IDLE_FLAG)
        self.assert_sentence(result, re.escape(self.path.lower()), "large|space|full")
        self.assertEqual((1, {"x"}, b"old", []), (result.code, self.left(), read_bytes(self.path), self.names()))

    def test_killed_and_continued(self):
        stored, reached = self.contents(3 * MIB), 5 * MIB // 2
        for number in (signal.SIGINT, signal.SIGKILL):
            with self.subTest(number):
                self.clear()
                program, gate = self.stalled(reached)
                part = part_of(self.path)
                self.assertEqual(({os.path.basename(part)}, 0), (self.left(), os.stat(part).st_mode & 0o077))
                second = self.download("--force")  # meanwhile the target is locked
                self.assertEqual(1, second.code)
                self.assert_sentence(second, re.escape(self.path.lower()), "another download")
                with within(5):
                    result = program.end(number)
                if number == signal.SIGINT:
                    self.assertEqual((130, b"", []), (result.code, result.out, self.names()))
                    self.assertTrue(result.err.endswith(f"what has come is kept in {part}, and the same command goes "
                                                        "on from there\ninterrupted by SIGINT\n"), result.err)
                gate.set()
                self.store.forget()
                self.assert_right(self.download(), stored)
                self.assertEqual([True], [reached - CUT_COST <= first_byte(request) for request in self.gets()])

    def test_an_url_that_expires_half_way(self):
        """A new request is made, the same byte continued, and no request is left; so on stdout."""
        self.store.clock = lambda: self.clock().timestamp()
        stored, text = self.contents(3 * MIB), noise(400_000).hex().encode()
        self.put(body=text)
        for argv, size in ((("download", "b1", "-o", self.path), 2 * MIB), (("backup", "logs", "b1"), 200_000)):
            self.cluster.forget()
            self.store.forget()

            def expire(response: bytes, size: int = size) -> Iterator[bytes]:
                yield response[:body_start(response) + size]
                self.turn(seconds=700)
            self.store.script("GET", wire=expire)
            result = self.cli(*argv, *IDLE_FLAG)
            self.assertEqual((0, 2, []), (result.code, self.cluster.count("POST", "/downloadrequests"), self.names()),
                             result.err)
            self.assertTrue(read_bytes(self.path) == stored if self.path in argv else result.out == text)
            self.assertEqual(2, len({request.target for request in self.gets()}))
            self.assertEqual(size - 1, first_byte(self.gets()[-1]))


def pester(folder: str, names: List[str], victim: str) -> int:
    """Fork a process of the user nobody, that makes and removes all kinds of things in a folder -> its pid."""
    pid = os.fork()
    if pid:
        return pid
    acts: Any = (
        partial(os.symlink, "his"), partial(os.symlink, victim), partial(os.link, "his"),
        lambda name: (os.link("his", "his-too"), os.rename("his-too", name)), os.mkfifo, os.mkdir,
        lambda name: open(name, "xb").close(), lambda _: time.sleep(0.01))
    try:
        os.chdir(folder)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        write_bytes("./his", b"his")
        for act, name in itertools.cycle(product(acts, names)):
            for step in (act, os.unlink, os.rmdir):
                with suppress(OSError):
                    step(name)
    finally:
        os._exit(1)


class TestDownloadMemory(DownloadWorld, TestCase):
    """The size of an object does not show in the memory that its download takes, compiled or as a script."""

    @needs_proc
    def test_it_stays_small(self):
        """300 MB into a file, half a gigabyte of zeros to a pipe, and a body without its end that is refused."""
        member, zeros = gzip.compress(noise(MIB), 1), gzip.compress(b"\0" * (64 * MIB))

        def many(_response: bytes) -> Iterator[bytes]:
            yield head(200, (("Content-Length", str(300 * len(member))), ("ETag", '"large-9"')))
            yield from itertools.repeat(member, 300)

        def ended() -> bool:
            if self.store.requests:  # before, it is being compiled
                seen.append(resident(program.process.pid))
            return program.process.poll() is not None
        self.put("BackupContents")
        for argv, stored, code in ((("download", "b1", "-o", self.path), b"", 0),
                                   (("backup", "logs", "b1"), zeros * 8, 0),
                                   (("download", "b1", "--kind", "BackupLog", "-o", self.path), (zeros * 2)[:-8], 1)):
            with self.subTest(argv):
                self.clear()
                self.store.forget()
                if stored:
                    self.store.put(self.namespace, KEYS["BackupLog"], stored)
                else:
                    self.store.script("GET", wire=many)
                program, seen = self.program(*argv, stdout=DEVNULL), []
                wait_until(ended, 90, "the end")
                self.assertEqual((code, set() if stored else {"x"}), (program.end().code, self.left()))
                self.assertTrue(0 < max(seen) <= seen[0] + GROWTH, f"{seen[0]} MiB before, {max(seen)} at most")


class TestDownloadSeen(DownloadWorld, TestCase):
    def terminal(self, *argv: str) -> Terminal:
        terminal = Terminal(self.folder, *argv, "--kubeconfig", self.kubeconfig, "-n", self.namespace)
        self.addCleanup(terminal.kill)
        return terminal

    def test_what_terminals_and_pipes_see(self):
        """Bytes, percent, rate and time left on one line, no longer than a terminal is wide, redrawn at most 10 times
        a second; no progress in a log or a pipe or with --quiet, no archive."""
        stored = self.contents(MIB)
        self.put()
        self.store.script("GET", times=5, wire=paced(40, 0.04))
        to_file, drawn = ("download", "b1", "-o"), r"(\r[^\r\x1b]{0,%d}\x1b\[K)+[^\r]*"
        rows: Any = (  # argv, columns, code, the whole of what is seen
            ((*to_file, self.path + "0"), 0, 0, drawn % 79), ((*to_file, self.path + "1"), 20, 0, drawn % 19),
            (("backup", "logs", "b1"), 80, 0, re.escape(LOG.decode())),
            ((*to_file, self.path + "2", "--quiet"), 80, 0, ""),
            ((*to_file, "-"), 80, 2, ".*is binary, and stdout is a terminal.*"),
            ((*to_file, "-", "--force"), 80, 0, ".*\x1f.*"))
        terminals = [self.terminal(*row[0]) for row in rows]
        for terminal, row in zip(terminals, rows):
            fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if row[1] else 0, row[1], 0, 0))
        for terminal, (argv, columns, code, pattern) in zip(terminals, rows):
            with self.subTest(argv, columns=columns):
                found, said = terminal.end()
                self.assertEqual(code, found, said)
                self.assertIsNotNone(re.fullmatch(pattern, said, re.DOTALL), said)
        self.assertTrue(read_bytes(self.path + "0") == stored)
        for shown in (r"\d+(\.\d+)? ?%", r"\d ?([kKMG]i?)?B/s", r"\d(s|m|:\d\d)\b left",
                      r"\r\x1b\[K1\.0 MiB in \d+(\.\d)?s\n"):
            self.assertRegex(terminals[0].text(), shown)
        taken = terminals[0].pieces[-1][0] - terminals[0].pieces[0][0]
        self.assertTrue(3 < terminals[0].text().count("\r") <= 10 * taken + 6, taken)
        for fault in (paced(8, 0.1), cut_body(100_000)):  # the time to wait for a URL is not the transfer's
            self.store.script("GET", wire=fault)
            result = self.download("--force", "--timeout", "500ms")
            self.assertEqual((0, None), (result.code, re.search("[\r\x1b]", result.err + result.out.decode())),
                             result.err)
        self.assertEqual(self.download("--quiet", "--force"), (0, b"", ""))
        self.assert_sentence(self.download("--quiet"), "exist")

    def test_ctrl_c_on_a_terminal(self):
        """It ends within 5 s with 130, and a second one does not wait for a cluster that does not answer."""
        self.contents(2 * MIB)
        for twice in (False, True):
            self.clear()
            self.store.script("GET", pause_after=MIB, gate=SILENT)
            if twice:
                hanging = self.cluster.script("DELETE", "/downloadrequests/", times=10, hang=SILENT)
            terminal = self.terminal("download", "b1", "-o", self.path)
            wait_until(lambda: size_of(part_of(self.path)) and self.names(), 15, "the transfer")
            began = time.monotonic()
            terminal.type(b"\x03")
            if twice:
                wait_until(lambda: hanging.hits, 5, "the tidying up")
                terminal.type(b"\x03")
            code, text = terminal.end()
            self.assertLess(time.monotonic() - began, 2 if twice else 5)
            self.assertEqual((130, [], terminal.before), (code, [] if twice else self.names(), terminal.after), text)
            self.assertTrue(text.endswith("\n") and "Traceback" not in text, text)
            self.assertLessEqual(self.left(), {os.path.basename(part_of(self.path))})

    def test_it_says_which_signal(self):
        """Of a file that cannot be continued nothing is kept."""
        self.put(body=noise(2 * MIB).hex().encode())
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            with self.subTest(number):
                result = self.stalled(MIB, "--kind", "BackupLog")[0].end(number)
                told = f"nothing of BackupLog of b1 is kept\ninterrupted by {number.name}\n"
                self.assertEqual((code, told, set(), []), (result.code, result.err, self.left(), self.names()))

    def test_a_terminal_sees_what_is_waited_for(self):
        """After a second, on one line that is gone in the end; not with --quiet, and not in a pipe."""
        for controller in self.controllers:
            controller.stop.set()
        self.cluster.limit("controller", "patch", resource=DR)
        self.addCleanup(self.cluster.unlimit)
        line = r"\A(\rwaiting for %s, at most [01]s more\x1b\[K)+\r\x1b\[K(error|Name): "
        logs, describe = ("backup logs b1 --timeout 1600ms".split(), "backup describe b1 --timeout 1600ms".split())
        piped, *terminals = self.program(*logs), *((self.terminal(*words), pattern) for words, pattern in (
            (logs, line % "the URL of BackupLog of b1"), ((*logs, "--quiet"), r"\Aerror: "),
            (describe, line % "what belongs to backup b1")))
        for terminal, pattern in terminals:
            self.assertRegex(terminal.end()[1], pattern)
        self.assertRegex(piped.end().err, r"(?s)\Aerror: .*hint: .*--direct")

    def test_talkative_when_all_goes_well(self):
        """-v names cluster, namespace, way, request and store, and each retry; without it there is silence."""
        self.put()
        for flags, lines in (
                ((), (rf"the cluster is {self.cluster.url}, the namespace {self.namespace}",
                      "the way: a controller's answer", r"created DownloadRequest \S+/b1-[a-z0-9]{5}",
                      rf"is answered; the store is {self.store.url}", r"deleted DownloadRequest \S+/b1-[a-z0-9]{5}")),
                (("--direct",), ("the way: the storage location, signed for here",
                                 rf"the store is {self.store.url[7:]}, the bucket ", "with 503; trying again in"))):
            if flags:
                self.cluster.script("GET", "/backups/", status=503, body=b"{}")
            result = self.cli("backup", "logs", "b1", "-v", *flags)
            self.assertEqual((0, LOG), (result.code, result.out))
            for line in lines:
                self.assertRegex(result.err, line)
            self.assert_clean(result.err)
            self.assertEqual("", self.cli("backup", "logs", "b1", *flags).err)

    def test_only_a_url_is_printed(self):
        """By --url-only, whoever wrote the status: no control characters, no blanks, only ASCII, http or https; else a
        sentence, and nothing on stdout."""
        for url, code in (
                ("https://s.example/k?X-Amz-Signature=a", 0), ("http://[::1]:9000/k", 0), ("https://", 1),
                *((f"https://s.example/a{odd}k", 1) for odd in ("\x1b[2J", " ", "\n", "\u202e", "\xe9", "\x7f")),
                ("file:///etc/passwd", 1), ("javascript:alert(1)", 1), (" https://s.example/", 1)):
            with self.subTest(url):
                self.cluster.script("POST", "/downloadrequests", answer=lambda _request, true, url=url: json_answer(
                    {**json.loads(true.body), "status": {"downloadURL": url, "phase": "Processed"}}, 201))
                result = self.cli("download", "b1", "--url-only")
                self.assertEqual((code, b"" if code else url.encode() + b"\n"), (result.code, result.out), result.err)
                if code:
                    self.assert_sentence(result, "no printable http or https url")

    def test_nothing_to_list(self):
        """An empty table is said on stderr, as kubectl does; JSON and YAML are lists without items."""
        said = f"No resources found in {self.namespace} namespace.\n"
        for words, err in (("backup get -l no=such", said), ("restore get -l no=such", said),
                           ("backup get -l no=such -o json", ""), ("get backups", "")):
            result = self.cli(*words.split())
            self.assertEqual((0, err, not err), (result.code, result.err, bool(result.out)), words)

    def test_head_leaves(self):
        """When the reader of a log that still comes has left, the command ends within a second, without a word."""
        self.put(body=noise(2 * MIB).hex().encode())
        self.store.script("GET", wire=paced(400, 0.02))
        reading, writing = os.pipe()
        program = self.program("backup", "logs", "b1", stdout=writing)
        os.close(writing)
        self.assertEqual(len(os.read(reading, 10)), 10)
        os.close(reading)
        with within(1.5):
            result = program.end()
        self.assertIn(result.code, (0, 141))
        self.assertEqual(("", [], 1), (result.err, self.names(), len(self.gets())))

    def test_stdout_is_closed(self):
        """With descriptor 1 closed no socket gets the output, and a file comes right or not at all."""
        stored = self.contents()
        self.put()
        for words in ("download b1 -o " + self.path, "download b1 -o -", "backup logs b1"):
            self.clear()
            result = self.by_shell("exec >&-", *words.split())
            if self.left():
                self.assert_right(result, stored)
            else:
                self.assert_absent(result, 1, "stdout")
        self.assertFalse(any(request.status == 400 or not request.method.isupper()
                             for request in self.store.seen() + self.cluster.seen()))


# ---- Downloads, row 6: direct ------------------------------------------------

def backup_document(name: str, phase: str = "Completed") -> bytes:
    return json.dumps({
        "kind": "Backup", "apiVersion": "velero.io/v1", "metadata": {"name": name, "namespace": "velero"},
        "spec": {"storageLocation": "default", "ttl": "720h0m0s"}, "status": {
            "phase": phase, "startTimestamp": "2026-01-02T03:04:05Z", "expiration": "2026-02-01T03:04:05Z"}}).encode()


def first_words(table: bytes) -> List[str]:
    return [line.split()[0] for line in table.decode().splitlines()[1:]]


class DirectTests(Sentences):
    def fill_bucket(self, prefix: str = "") -> Dict[str, bytes]:
        """Store two backups and a restore, and a copy of them in a folder -> what lies in the bucket by key."""
        self.make_target()
        self.copy = self.at("copy" + prefix.replace("/", "-"))
        stored = {"backups/b1/velero-backup.json": backup_document("b1"),
                  "backups/b2/velero-backup.json": backup_document("b2", "PartiallyFailed"),
                  KEYS["BackupContents"]: archive(300_000), KEYS["BackupLog"]: gzip.compress(LOG),
                  KEYS["RestoreLog"]: gzip.compress(LOG[:500])}
        for key, body in stored.items():
            self.store.put(self.namespace, prefix + key, body)
            write_bytes(os.path.join(self.copy, key), body)
        return stored

    def location_document(self, **storage: Any) -> Document:
        """The cluster's storage location without its Secret, as an administrator has it in a file."""
        document: Any = self.look("default", BSL)
        del document["spec"]["credential"]
        document["spec"]["objectStorage"].update(storage)
        return document

    def files(self, document: Any = None, keys: Optional[str] = None) -> Tuple[str, ...]:
        """Write location and credentials -> the flags that name them."""
        location = self.at(f"{uuid.uuid4().hex}-location.yaml")
        document = self.location_document() if document is None else document
        write_bytes(location, document if isinstance(document, bytes) else yaml.safe_dump(document).encode())
        keys = keys_file(self.store.access_key, self.store.secret_key) if keys is None else keys
        return ("--location", location, "--credentials-file", write_bytes(location + "-cloud", keys.encode()))

    def check_way(self, stored: Dict[str, bytes], *flags: str) -> None:
        """Fetch all that there is, and list it."""
        contents = stored[KEYS["BackupContents"]]
        self.assert_right(self.cli("backup", "download", "b1", "-o", self.path, *flags), contents)
        for words, content in (("download b1 -o -", contents), ("backup logs b1", LOG), ("restore logs r1", LOG[:500]),
                               ("download r1 --kind RestoreLog", LOG[:500])):
            self.assertEqual((0, content, ""), self.cli(*words.split(), *flags))
        listed = self.cli("backup", "get", *flags).out.decode()
        self.assertRegex(listed, r"(?s)\nb1 +Completed .*\nb2 +PartiallyFailed ")
        self.clear()

    def test_every_way(self):
        """No request is created, and the cluster is only read, by --location not even that."""
        for prefix in ("", "a/b/"):
            stored, whole = self.fill_bucket(prefix), self.location_document(prefix=prefix)
            self.admin.merge_patch(BSL, "default", {
                "spec": {"objectStorage": {"prefix": prefix.rstrip("/")}}}, self.namespace)
            for flags in (("--direct",), ("--direct", *self.files(whole)), self.files(whole["spec"]),
                          self.files({"spec": whole["spec"]}), ("--location", self.copy),
                          ("--direct", "--location", self.copy + "/")):
                if self.cluster.kind == "fake":
                    self.cluster.forget()
                self.check_way(stored, *flags)
                if self.cluster.kind == "fake":
                    self.assertEqual({"GET"} if flags == ("--direct",) else set(),
                                     {request.method for request in self.cluster.seen()}, flags)
        url = self.cli("download", "b1", "--direct", "--url-only", "--force=false").out.decode().strip()
        self.assertEqual((stored[KEYS["BackupContents"]], []), (fetch(url).data, self.names()))

    def test_with_the_caller_s_rights(self):
        stored = self.fill_bucket()
        rights = [{"apiGroups": [group], "resources": [plural], "verbs": ["get"]} for group, plural in (
            ("velero.io", "backups"), ("velero.io", BSL), ("", "secrets"))]
        self.cluster.grant("reader", *rights, namespace=self.namespace)
        self.cluster.grant("limited", *rights[:2], namespace=self.namespace)
        command = ("download", "b1", "--direct", "-o", self.path)
        self.assert_absent(self.cli(*command, user="limited"), 5, "secret")
        self.assert_right(self.cli(*command, user="reader"), stored[KEYS["BackupContents"]])

    def test_what_the_store_refuses(self):
        self.fill_bucket()
        wrong, flags = self.files(keys=keys_file(self.store.access_key, "not-the-secret")), self.files()
        elsewhere, began = self.files(self.location_document(bucket="no-such-bucket-at-all")), time.monotonic()
        for words, way, code, said in (
                ("download b1 -o FILE", wrong, 5, "."), ("backup get", wrong, 5, "."),
                ("backup logs nobody", flags, 3, "nobody"), ("download b1 --kind BackupResults -o -", flags, 3, "b1"),
                ("download b1 -o FILE", elsewhere, (1, 3), "bucket"), ("backup get", elsewhere, (1, 3), "bucket")):
            result = self.cli(*words.replace("FILE", self.path).split(), *way)
            self.assert_absent(result, code, said)
            self.assertNotIn("not-the-secret", result.err)
        self.assertLess(time.monotonic() - began, 20)


class TestDownloadDirectFake(DirectTests, DownloadWorld, TestCase):
    serves = False

    def listed(self, code: int, *words: str) -> List[str]:
        """The names that `backup get` lists, when it ends with this code."""
        result = self.cli("backup", "get", *words)
        self.assertEqual(code, result.code, result.err)
        self.assertNotRegex(result.err, "Traceback|[\x00-\x09\x0b-\x1f]")
        self.said = result.err
        return first_words(result.out)

    def test_every_location_is_listed(self):
        """What can be listed is, under its location's name; what cannot is a line each, the first one's code counts."""
        for prefix in ("", "other/"):
            self.fill_bucket(prefix)
        self.store.put(self.namespace, "other/backups/b3/velero-backup.json", backup_document("b3"))
        self.make_location("other", prefix="other")
        self.make_location("unreachable", {"s3Url": "http://127.0.0.1:1"})
        result = self.cli("backup", "get", "--direct")
        self.assertEqual([("b1", "default"), ("b1", "other"), ("b2", "default"), ("b2", "other"), ("b3", "other")],
                         [(line.split()[0], line.split()[-2]) for line in result.out.decode().splitlines()[1:]])
        self.assertEqual(6, result.code, result.err)
        self.assert_sentence(result, "^error: storage location 'unreachable': .*127.0.0.1:1")
        one = json.loads(self.cli("backup", "get", "b1", "--direct", "-o", "json").out)
        self.assertEqual(["default", "other"], [item["spec"]["storageLocation"] for item in one["items"]])
        self.make_location("void", secret="gone")
        self.make_location("odd", {"s3ForcePathStyle": "perhaps"})
        self.assertEqual(["b3"], self.listed(1, "nobody", "b3", "--direct"))
        self.assertRegex(self.said, r"\A" + "".join(rf"error: .*{said}.*\n(?:hint: .*\n)*" for said in (
            "'odd'", "'unreachable'", "'void'", 'backup "nobody" does not exist')))
        self.assertEqual(4, self.said.count("error: "), self.said)
        for name in ("default", "other", "unreachable", "odd"):
            self.admin.delete(BSL, name, self.namespace)
        for output in ("table", "json", "yaml"):  # no list at all is not an empty list
            self.assert_failed(self.cli("backup", "get", "--direct", "-o", output), 3, "'void'", "gone")

    def test_backups_that_are_too_large(self):
        self.fill_bucket()
        self.store.put(self.namespace, "backups/b3/velero-backup.json", b" " * (17 << 20))
        self.assertEqual(["b1", "b2"], self.listed(1, *self.files()))
        self.assertRegex(self.said, r"\Aerror: backup 'b3' in .*location.yaml: it is larger than 16 MiB\n\Z")
        troubles: List[Any] = []
        folder = self.at("elements")  # which weigh more than their bytes
        for name in ("b1", "b2", "b3", "b4"):
            write_bytes(os.path.join(folder, "backups", name, "velero-backup.json"),
                        b'{"metadata": {}, "x": [' + b"[]," * 99 + b"0]}")
        found = list(vr.FolderBucket(folder).backups("it", (), troubles, left=15_000))
        self.assertEqual((2, ["the backups in it are too large to be listed, from backup 'b3' in it on"]),
                         (len(found), list(map(str, troubles))))

    def test_what_is_wrong_with_the_files(self):
        self.fill_bucket()
        whole, gone = self.location_document(), self.at("gone")
        spec, quotes = whole["spec"], "must be a string: write it in quotes"
        cases: Any = (
            (b"- a list", None, "location.yaml must be a mapping"), (b"a: [b", None, "location.yaml is not yaml"),
            (backup_document("b1"), None, "kind 'backup'.* backupstoragelocation"), ({"spec": {}}, None, "provider"),
            (whole, "", "cloud|credential"), (whole, "nonsense", "cloud|credential|line"),
            *(({**spec, "config": {**spec["config"], key: value}}, None,
               f"location.yaml: spec.config: {key} {quotes}".lower()) for key, value in (
                   ("s3ForcePathStyle", True), ("region", 2024), ("profile", 1.5), (2024, 2024))),
            ({**spec, "objectStorage": {"bucket": "b", "prefix": 2024}}, None, f"spec.objectstorage: prefix {quotes}"),
            (b"spec:\n  config: {x: %b}" % (b"x" * (1 << 20)), None, "larger than 1 mib"))
        good = self.files()
        rows = [(self.files(document, keys), words) for document, keys, words in cases]
        for flags, words in [*rows, ((*good[:1], gone, *good[2:]), "gone"), ((*good[:3], gone), "gone")]:
            with self.subTest(words):
                self.assert_absent(run("download", "b1", *flags, "-o", self.path), (1, 2), words)
        self.assertRaisesRegex(vr.ConfigError, "it /dev/zero is larger than 8 MiB", vr.read_file, "/dev/zero", "it")

    def test_a_secret_is_missed_before_anybody_is_asked(self):
        document = {"provider": "aws", "objectStorage": {"bucket": "b"}, "credential": {"name": "cloud", "key": "keys"}}
        result = run("backup", "get", *self.files(document)[:2], env={"HTTPS_PROXY": self.store.url, "NO_PROXY": ""})
        self.assertEqual((1, []), (result.code, self.store.seen()), result.err)
        self.assertRegex(result.err, "names the Secret 'cloud', and no cluster is asked\nhint: .*--credentials-file ")

    def test_it_says_what_the_ordinary_way_says(self):
        self.make_backup("b-lost", "gone")
        self.make_backup("b-runs", phase="InProgress")
        for name, code, said in (("nosuch", 3, 'backup "nosuch" does not exist'), ("b-runs", 1, "not available until"),
                                 ("b-lost", 3, "/gone does not exist; backup 'b-lost' asks")):
            self.assert_failed(self.cli("backup", "logs", name, "--direct"), code, said)

    def test_a_folder_that_is_wrong(self):
        self.fill_bucket()
        key, flags = os.path.join(self.copy, KEYS["BackupContents"]), ("--location", self.copy, "-o", self.path)
        for name, said in (("nobody", "cannot read /"), *((name, f"error: backup '{name}' cannot exist")
                                                             for name in ("..", "/etc/passwd", "b1/../b1", ""))):
            self.assert_absent(run("download", *flags, "--", name), 3, said)
        self.assert_failed(run("download", "b1", *flags[:2], "--url-only"), 2, "no URL of what lies in the folder /")
        os.unlink(key)
        for make, remove in ((os.mkdir, os.rmdir), (os.mkfifo, os.unlink)):
            make(key)
            self.assert_absent(self.program("download", "b1", *flags).end(), (1, 3))
            remove(key)
        hint, backups = "hint: name the folder that holds the folder backups\n", os.path.join(self.copy, "backups")
        for words in ("backup get", "backup logs b1", "download b1 -o FILE"):
            for path in (backups, os.path.join(backups, "b1"), self.target):
                result = run(*words.replace("FILE", self.path).split(), "--location", path)
                self.assertEqual((3, b"", True), (*result[:2], hint in result.err), (words, path, result.err))
        self.assert_failed(run("backup", "get", "--location", self.folder + "/no"), 1, self.folder + "/no")
        missing = run("backup", "logs", "b2", "--location", self.copy)
        self.assertEqual((3, False), (missing.code, hint in missing.err), missing.err)

    def test_a_damaged_log_has_a_cure(self):
        self.fill_bucket()
        packed = gzip.compress(LOG)[:-9]
        self.store.put(self.namespace, KEYS["BackupLog"], packed)
        write_bytes(os.path.join(self.copy, KEYS["BackupLog"]), packed)
        again = ("fetch it again; if it is damaged then, the stored object is, and `curl -o FILE "
                 "\"$(velero_requests.py download b1 --kind BackupLog --url-only)\"`")
        for flags, cure in ((("--direct",), again), (self.files(), again), (
                ("--location", self.copy), f"copy {self.copy}/backups/b1/b1-logs.gz from the bucket again")):
            result = self.cli("backup", "logs", "b1", *flags)
            self.assertEqual((1, True), (result.code, LOG.startswith(result.out) and bool(result.out)), result.err)
            self.assertIn(f"hint: {cure}", result.err)

    def test_a_folder_that_may_not_be_read(self):
        """What the file system forbids in a copied bucket is code 5 with its path, and the rest is listed."""
        self.fill_bucket()
        os.chmod(self.folder, 0o755)
        self.listed(0, "--location", self.copy)  # imports what only root may read
        for path, words in (("", "backup get"), ("", "backup logs b1"), ("/b1/b1-logs.gz", "backup logs b1"),
                            ("/b1/velero-backup.json", "backup get")):
            path = f"{self.copy}/backups{path}"
            with self.subTest(path, words=words):
                mode, user = os.stat(path).st_mode & 0o777, os.geteuid()
                os.chmod(path, 0)
                try:
                    os.seteuid(user or 65534)  # root would ignore it
                    result = run(*words.split(), "--location", self.copy)
                finally:
                    os.seteuid(user)
                    os.chmod(path, mode)
                self.assertEqual((5, path.endswith(".json")), (result.code, b"b2" in result.out), result.err)
                self.assert_sentence(result, re.escape(path.lower()), "permission denied")

    def test_a_listing_of_many(self):
        """Each backup of many pages is shown once, eight are read side by side, and of those named no others."""
        names = [f"n{number:03}" for number in range(25)]
        for key in (*(f"backups/{name}/{name}.tar.gz" for name in names), "restores/r1/r1", "kopia/ns/f"):
            self.store.put(self.namespace, key, b"x")
        for name in names:
            self.store.put(self.namespace, f"backups/{name}/velero-backup.json", backup_document(name))
        self.store.page = 4
        self.assertEqual(["n003", "n007"], self.listed(0, "n007", "n003", "--direct"))
        self.assertEqual(2, len(self.store.seen("GET", "velero-backup.json")))
        gate = threading.Event()
        fault = self.store.script("GET", "velero-backup.json", times=8, hang=gate)
        program = self.program("backup", "get", "--direct")
        wait_until(lambda: fault.hits == 8, 15, "eight requests")
        self.assertEqual(2 + 8, len(self.store.seen("GET", "velero-backup.json")))
        gate.set()
        result = program.end()
        self.assertEqual((0, names), (result.code, first_words(result.out)), result.err)

    def test_a_listing_of_strangers(self):
        self.fill_bucket()
        for number, body in enumerate((b"", b"nonsense", b"[]", b"5", b'{"metadata": 5, "status": []}', b"\xff\xfe",
                                       b"[" * 50_000, b'{"metadata": {"name": "\x1b[31m"}}', gzip.compress(b"{}"),
                                       b'{"metadata": {"name": "other"}, "status": {"phase": ["x"]}}')):
            self.store.put(self.namespace, f"backups/odd{number}/velero-backup.json", body)
        for key in ("", "../x/velero-backup.json", "\x1b[2J/velero-backup.json", "a b/velero-backup.json",
                    "&lt;é/velero-backup.json", "/velero-backup.json", "loose"):
            self.store.put(self.namespace, f"backups/{key}", backup_document("evil"))
        self.assertEqual(["b1", "b2"], self.listed(0, *self.files())[:2])
        self.assertNotIn(b"\x1b", self.cli("backup", "get", *self.files(), "-o", "json").out)

    def test_a_listing_that_goes_wrong(self):
        endless = (b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x"
                   b"</NextContinuationToken></ListBucketResult>")
        for status, body, code in ((200, LOGIN_PAGE, 1), (200, b"", 1), (200, b"<ListBucketResult>", 1), (403, b"", 5),
                                   (200, endless, 1)):
            self.store.unscript()
            self.store.script("GET", "list-type", **forever(status=status, body=body))
            self.assert_absent(run("backup", "get", *self.files()), code, "no end" if body == endless else "listing")


class TestDownloadDirectReal(DirectTests, RealWorld, TestCase):
    """Direct on the real API server and the real S3 server."""


# ---- Old stones: hosts that lack what others have ----------------------------

def isolated(what: str) -> List[str]:
    """The command that runs another in a namespace of its own (`n` for the network, `m` for mounts), as far as that is
    allowed; else the test is skipped."""
    for flags in (f"-{what}", f"-r{what}"):
        with suppress(OSError):
            if not subprocess.run(["unshare", flags, "true"], stdout=DEVNULL, stderr=DEVNULL, check=False).returncode:
                return ["unshare", flags]
    raise SkipTest(f"`unshare -{what}` is not allowed here")


READ_ONLY = ('while read -r _ at _; do mount -o remount,bind,ro "$at" 2>/dev/null; done </proc/mounts; '
             'test -w . && exit 77')
BARE: Any = (  # what a shell does before, in which namespaces
    ("unset HOME", ""), ("exec <&-", ""), ("export LC_ALL=C", ""),
    ("export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", ""),  # or Python takes UTF-8 all the same
    ("export HOME=/proc TMPDIR=/nowhere", ""), (READ_ONLY, "m"))


class TestOldStones(DownloadWorld, TestCase):
    """A bare host does what others do: by a controller's answer with a plugin's certificate, and from a folder."""

    def setUp(self):
        super().setUp()
        self.place = self.at("kö")
        write_bytes(os.path.join(self.place, KEYS["BackupLog"]), self.put())
        answer = {"apiVersion": KUBE_V1, "kind": "ExecCredential",
                  "status": {"token": token_of("admin"), **kube_pair("alice")}}
        plugin = write_bytes(self.at("plugin"), f"#!/bin/sh\nprintf %s '{json.dumps(answer)}'\n".encode())
        os.chmod(plugin, 0o755)
        config = os.path.join(self.place, "config")
        os.rename(self.kubeconfig_of(kube_exec(command=plugin)), config)
        self.kubeconfig = config

    def on(self, start: str, space: str, *argv: str) -> Result:
        """How a command ends on such a host."""
        done = subprocess.run([*(isolated(space) if space else ()), "sh", "-c", start + '; exec "$@"', "sh",
                               sys.executable, MODULE, "--kubeconfig", self.kubeconfig, "-n", self.namespace, *argv],
                              stdout=PIPE, stderr=PIPE, timeout=60, check=False, cwd=self.folder)
        if done.returncode == 77:
            raise SkipTest("nothing can be mounted read-only here")
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def test_every_host(self):
        """In the end one where what OpenSSL must read from a file cannot be written, not even in memory."""
        self.admin.merge_patch("backups", "b1", {"metadata": {"annotations": {"x": "Größe"}}}, self.namespace)
        for start, space in BARE:
            ascii_only, saved = "PYTHONUTF8" in start, os.path.join(self.target, "ü")
            with self.subTest(start):
                self.assertEqual((0, LOG, ""), self.on(start, space, "backup", "logs", "b1"))
                shown = self.on(start, space, "backup", "describe", "b1")
                self.assertEqual((0, ""), (shown.code, shown.err))
                self.assertIn(r"Gr\xf6\xdfe" if ascii_only else "Größe", shown.out.decode())
                folder = ("download", "b1", "--kind", "BackupLog", "--location", self.place, "-o", saved)
                result = self.on(start, space, *folder)
                if space:
                    self.assert_failed(result, 1, f"cannot write {saved}: Read-only file system")
                else:
                    self.assertEqual((0, LOG), (result.code, read_bytes(saved)), result.err)
                    self.assert_failed(self.on(start, space, *folder), 1, "target/", "exists")
                    os.unlink(saved)
                self.assert_failed(self.on(start, space, "backup", "logs", "b3", "--location", self.place), 3,
                                   f"{self.folder}/k" + (r"\xc3\xb6" if ascii_only else "ö") + "/backups/b3/b3-logs.gz")
        self.assert_failed(self.on("ulimit -f 0", "", "backup", "logs", "b1"), 1,
                           "exec plugin cannot be put into a temporary file: File too large")


# ---- Downloads, row 7: the library -------------------------------------------

class TestDownloadLibrary(DownloadWorld, TestCase):
    """`import velero_requests` does the same without a word."""

    def setUp(self):
        super().setUp()
        self.api = vr.connect(vr.load_cluster(self.kubeconfig))

    def test_threads_do_not_mix_and_nothing_is_touched(self):
        """Eight streams over one connection object, each cut once, without a word; signal handlers stay."""
        def state() -> Any:
            return (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), vr.log.handlers[:], vr.log.level,
                    sys.stdout, sys.stderr, socket.getdefaulttimeout(), os.getcwd())

        def content(name: str) -> bytes:
            writer = io.BytesIO()
            vr.stream(self.api, self.namespace, "BackupLog", name, writer)
            return writer.getvalue()
        texts = {f"t{number}": noise(100_000, seed=number).hex().encode() for number in range(8)}
        for name, text in texts.items():
            self.make_backup(name)
            self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(text))
            self.store.script("GET", f"/{name}-logs.gz", wire=cut_body(20_000))
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), ThreadPoolExecutor(8) as pool:
            before = state()
            content("t0")
            self.assertEqual(before, state())
            got = dict(zip(texts, pool.map(content, texts)))
        self.assertEqual(("", [], True), (said.getvalue(), self.names(), got == texts))

    def test_leaving_early_tidies_up(self):
        """A generator that is closed deletes its request at once."""
        self.contents(8 * MIB)
        self.store.script("GET", wire=paced(100, 0.1))
        chunks = vr.read_artifact(self.api, self.namespace, "BackupContents", "b1")
        self.assertTrue(next(chunks))
        with within(2):
            chunks.close()
        self.assertEqual(([], 1), (self.names(), len(self.gets())))

# ---- Downloads from the real S3 server, over a line that breaks --------------

class Line(LoopbackServer):
    """A line to a server: each connection may carry so many bytes back."""

    def __init__(self, host: str) -> None:
        super().__init__()
        name, _, port = host.rpartition(":")
        self.to, self.broken = (name, int(port)), 0
        self.plan: List[int] = []  # for the next connections: bytes to let through
        self.start()

    def _converse(self, accepted: socket.socket) -> None:
        left = self.plan.pop(0) if self.plan else sys.maxsize
        with accepted, suppress(OSError), socket.create_connection(self.to, 60) as far:
            far.sendall(accepted.recv(65536))  # a GET comes in one piece
            piece = b"-"
            while left and piece:
                piece = far.recv(min(65536, left))
                accepted.sendall(piece)
                left -= len(piece)
            self.broken += not left


class Sender(LoopbackServer):
    """Answers with as many bytes as the path says, and tells when all are on their way."""
    sent = threading.Event()

    def answer(self, request: Request, connection: Connection) -> bool:
        body = noise(int(request.path[1:]))
        connection.socket.sendall(head(200, [("Content-Length", str(len(body)))]) + body)
        self.sent.set()
        return True


class TestBodies(TestCase):
    def test_pieces_of_any_size(self):
        """They are the body, and the connection serves again; what is there comes at once, though TLS has records."""
        for tls, (count, size, most) in product((False, True), (
                (1, 9, 1), (5_000, 7, 5_000), (300_000, 9_000, 300_000), (90_000, 1 << 18, 3))):
            with self.subTest(tls=tls, count=count), closing(Sender(tls=tls)) as server:
                server.start()
                pool = vr.ConnectionPool(server.url, "it", trust=vr.Trust(insecure=True))
                for _ in range(2):
                    server.sent.clear()
                    response = pool.request("GET", f"/{count}", {}, idle=20)
                    self.assertTrue(most > 3 or server.sent.wait(20))
                    pieces = list(iter(partial(response.read1, size), b""))
                    self.assertEqual(noise(count), b"".join(pieces))
                    self.assertLessEqual(len(pieces), most)
                    self.assertLessEqual(max(map(len, pieces)), size)
                self.assertEqual((2, 1), (len(server.requests), pool.pool.num_connections))


def put_members(store: Any, bucket: str, key: str, member: bytes, count: int, in_a_part: int = 0) -> str:
    """Store equal gzip members one after another without holding them, and return the sha256 of the object.

    In parts its ETag is no MD5. So Velero's AWS plugin stores all that is larger than 5 MiB (manager.NewUploader in its
    object_store.go)."""
    store.create_bucket(bucket)
    parts = ""

    def exchange(method: str, query: str, body: Any = b"", **headers: str) -> Any:
        url = store.url_of(bucket, key, method=method, extra=query)
        response = pool.request(method, url, body=body, headers=headers, retries=False)
        if response.status != 200:
            raise RuntimeError(f"the store answered {response.status}: {response.data[:500]!r}")
        return response
    with urllib3.PoolManager() as pool:
        if in_a_part:
            upload = exchange("POST", "uploads=").data.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
            for number, at in enumerate(range(0, count, in_a_part), 1):
                part = exchange("PUT", f"partNumber={number}&uploadId={upload}", member * min(in_a_part, count - at))
                parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{part.headers['ETag']}</ETag></Part>"
            exchange("POST", f"uploadId={upload}", f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>")
        else:
            exchange("PUT", "", itertools.repeat(member, count), **{"Content-Length": str(count * len(member))})
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(member)
    return digest.hexdigest()


put_in_parts = partial(put_members, in_a_part=5)


class TestDownloadReal(Sentences, RealWorld, TestCase):
    """The engine against the real S3 server; VELERO_BIG_DOWNLOAD says how many MiB break off ten times (CI: 2048)."""

    def test_a_line_that_breaks_ten_times(self):
        """The sha256 is right; the ETag of what is stored in parts, as Velero does, is not taken for an MD5."""
        self.make_target()
        line = self.enter(closing(Line(self.store.host)))
        self.make_location("line", {"s3Url": line.url})
        self.make_backup("b9", "line")
        self.serve()
        count, chance = int(os.environ.get("VELERO_BIG_DOWNLOAD", "48")), random.Random(13)
        expected = put_in_parts(self.store, self.namespace, "backups/b9/b9.tar.gz", gzip.compress(noise(MIB), 1), count)
        line.plan = [chance.randrange(1, count * MIB // 12) for _ in range(10)]
        result = self.program("download", "b9", "-o", self.path).end(seconds=60 + count)
        self.assertEqual((result.code, line.broken, line.plan), (0, 10, []), result.err)
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            for piece in iter(lambda: file.read(MIB), b""):
                digest.update(piece)
        self.assertEqual((expected, {"x"}, []), (digest.hexdigest(), self.left(), self.names()))


# ---- Through the cluster: a Service in front of controllers that reach the store, for clients that do not

FAR_STORE = "http://127.0.0.1:1"  # which no client reaches
INSIDE = "VELERO_REQUESTS_NAMESPACE"  # where there is an address that is no loopback's, and nothing else: the archive
PROXY_RIGHT: Document = {"apiGroups": [""], "resources": ["services/proxy"], "verbs": ["get"],
                         "resourceNames": ["http:velero-requests:http", "https:velero-requests:https"]}


class ThroughWorld(Sentences, ControllerWorld):
    """Controllers at an address that the API server reaches, and a client with no more rights than it needs."""
    near = "127.0.0.1"

    def seed(self) -> None:
        super().seed()
        self.make_target()
        self.cluster.grant("limited", *CLIENT, PROXY_RIGHT, namespace=self.namespace)

    def lead_to(self, *ports: int, name: str = "http") -> None:
        """Let the Service's port of this name lead to these."""
        self.cluster.backends[self.namespace] = name, list(ports)

    def hand_on(self, controller: Any = None, tls: Tuple[str, ...] = ()) -> int:
        """Let a controller hand on artifacts, behind the Service -> its port."""
        server = vr.HttpServer(f"{self.near}:0", (controller or self.serve()).artifact_page, tls)
        self.addCleanup(server.close)
        port = int(server.listener.getsockname()[1])
        self.lead_to(port, name="https" if tls else "http")
        return port

    def idle_controller(self) -> Any:
        """A controller that answers no request."""
        api = vr.connect(vr.load_cluster(self.cluster.kubeconfig(self.folder, "controller")))
        self.addCleanup(api.session.close)
        return vr.Controller(api, self.namespace, vr.Server(""), now=self.clock)

    def start_replica(self, *argv: str) -> Program:
        """A controller in a process of its own, behind the Service alone."""
        port = free_port()
        program = self.program("controller", "--artifacts-address", f"{self.near}:{port}", *argv)
        wait_until(lambda: answers(f"http://{self.near}:{port}/", b"NotServed"), 20, "the replica")
        self.lead_to(port)
        return program

    def make_far(self, name: str, url: str, body: bytes = LOG, **config: str) -> str:
        """A backup whose log lies in the store, for whoever is not led elsewhere by the location's publicUrl."""
        self.make_location(name, {"publicUrl": url, **config})
        self.make_backup(name, name)
        self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(body))
        return name

    def through(self, *argv: str, **more: Any) -> Result:
        return self.cli(*argv, user="limited", **more)


@contextmanager
def swallowing() -> Iterator[int]:
    """A port at which no connection comes about: as many wait there as may."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as held:
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


class ThroughTests(ThroughWorld):
    """What both clusters can show."""

    def test_ways(self):
        """Where the store is not reached, it is the cluster's way; what is told by -v says why. Nobody is led to
        publicUrl but the client, and `--via` decides."""
        self.hand_on()
        with swallowing() as silent, closing(FakeStore(tls=True)) as untrusted:
            for name, url, words, env in (
                    ("name", "http://no.such.invalid:9000", "no.such.invalid", {}),
                    ("refused", "http://127.0.0.1:1", "Connection refused", {}),
                    ("silent", f"http://127.0.0.1:{silent}", "does not answer in time", {}),
                    ("untrusted", untrusted.url, "certificate that is not trusted", {}),
                    ("proxy", "http://store.example:9000", "through its proxy: Connection refused", {
                        "http_proxy": "http://127.0.0.1:1", "no_proxy": "127.0.0.1"})):
                self.make_far(name, url)
                with self.subTest(name, via="auto"), within(9):
                    result = self.through("backup", "logs", name, "-v", env=env)
                    self.assertEqual((0, LOG), result[:2], result.err)
                    self.assertRegex(result.err, rf"(?m)^cannot reach .*{words}.*; going through|{words}.*; going")
                with self.subTest(name, via="cluster"), within(2.5):
                    self.assertEqual((0, LOG, ""), self.through("backup", "logs", name, "--via", "cluster", env=env))
                if name != "silent":  # which takes a while
                    with self.subTest(name, via="store"):
                        result = self.through("backup", "logs", name, "--via", "store", env=env)
                        self.assert_failed(result, 6, words)
            self.assertEqual([], untrusted.requests)
        self.put()
        self.assertEqual((0, LOG), self.through("backup", "logs", "b1", "--via", "store")[:2])
        result = self.through("backup", "logs", "b1", "-v")
        self.assertEqual((0, LOG, False), (*result[:2], "through" in result.err), result.err)
        self.assertEqual([], self.names())

    def test_every_command(self):
        """The contents, describe, a restore's log and the library; what has been chosen is kept for a command."""
        self.hand_on()
        self.admin.merge_patch(BSL, "default", {"spec": {"config": {"publicUrl": FAR_STORE}}}, self.namespace)
        self.make_backup("b2")
        contents = tar_of({"resources/pods/namespaces/web/shop.json": b'{"kind": "Pod"}'})
        self.store.put(self.namespace, KEYS["BackupContents"], contents)
        self.put("RestoreLog")
        listed = gzip.compress(b'{"v1/Pod": ["web/shop"]}')
        for name in ("b1", "b2"):
            self.store.put(self.namespace, f"backups/{name}/{name}-resource-list.json.gz", listed)
        self.assertEqual((0, LOG, ""), self.cli("restore", "logs", "r1"))
        result = self.through("backup", "download", "b1", "-o", self.path)
        self.assertEqual((0, contents, {"x"}), (result.code, read_bytes(self.path), self.left()), result.err)
        self.assertIn(b"shop", self.through("backup", "ls", "b1").out)
        self.assertIn(b"kind: Pod", self.through("backup", "show", "b1", "pods/shop", "--via", "cluster").out)
        result = self.cli("backup", "describe", "b1", "b2", "--details", "-v")
        self.assertEqual(2, result.out.count(b"- web/shop"), result)
        self.assertIn(result.err.count("going through the cluster"), (1, 2, 3), result.err)
        url = self.through("download", "b1", "--url-only").out
        self.assertTrue(url.startswith(b"http://127.0.0.1:1/"), url)
        self.assert_failed(self.through("backup", "logs", "b1", "--via", "cluster", "--direct"), 2, "--via cluster")
        api = vr.connect(vr.load_cluster(self.kubeconfig))
        self.addCleanup(api.session.close)
        for via in ("auto", "cluster"):
            writer = io.BytesIO()
            vr.stream(api, self.namespace, "RestoreLog", "r1", writer, via=via)
            self.assertEqual(LOG, writer.getvalue())
        with self.assertRaises(vr.Unreachable):
            vr.stream(api, self.namespace, "RestoreLog", "r1", io.BytesIO(), via="store")
        self.assertEqual([], self.names())

    def test_no_way(self):
        """The store's failure is told, with what the other way lacks; by --via cluster that alone."""
        self.serve()
        name = self.make_far("far", "http://127.0.0.1:1")
        with closing(vr.HttpServer(f"{self.near}:0", lambda *_: vr.text_page(200, "hello"))) as other:
            for what, ports, user, words, code in (
                    ("no Service", None, "limited", 'services "velero-requests" not found .* manifests controller`', 3),
                    ("no endpoint", (), "limited", "no endpoints available .* --artifacts-address", 6),
                    ("nobody there", (free_port(),), "limited", "error trying to reach service.*-artifacts-address", 6),
                    ("another program", other.listener.getsockname()[1:2], "limited", "is no controller that hands", 6),
                    ("no right", (), "reader", r'is forbidden.* resources: \["services/proxy"\], resourceNames: '
                     r'\["http:velero-requests:http"\], verbs: \["get"\]}', 5)):
                with self.subTest(what):
                    self.cluster.grant("reader", *CLIENT, namespace=self.namespace)
                    if ports is not None:
                        self.lead_to(*ports)
                    result = self.cli("backup", "logs", name, user=user)
                    self.assert_failed(result, 6, "cannot reach the store at 127.0.0.1:1: Connection refused")
                    self.assertRegex(result.err, f"(?m)^hint: there is no way through the cluster: .*{words}")
                    result = self.cli("backup", "logs", name, "--via", "cluster", user=user)
                    self.assert_failed(result, code)
                    self.assertRegex(result.err.replace("\n", " "), words)
        self.assertEqual([], self.names())

    def test_by_tls(self):
        """Where the Service's port is `https`, for whoever may use it by this name, with the certificate that is there
        now; files of no use change nothing."""
        first, other, paths = shared_certificate(), make_certificate(self.folder), (self.at("cert"), self.at("key"))

        def replace(*sources: str) -> None:
            for source, path in zip(sources, paths):
                shutil.copy(source, path)
        replace(*first[1:])
        port = self.hand_on(tls=paths)
        self.cluster.grant("reader", *CLIENT, {**PROXY_RIGHT, "resourceNames": ["https:velero-requests:https"]},
                           namespace=self.namespace)
        log = noise(3 * MIB)
        name = self.make_far("far", FAR_STORE, log)
        for sources, shown in ((), first), (other[1:], other), (first[1:2], other), ((os.devnull,), other):
            replace(*sources)
            with self.subTest(sources):
                self.assertEqual(ssl.PEM_cert_to_DER_cert(read_bytes(shown.cert).decode()), ssl.PEM_cert_to_DER_cert(
                    ssl.get_server_certificate((self.near, port))))
                for user, via in (("limited", "auto"), ("reader", "cluster")):
                    result = self.cli("backup", "logs", name, "--via", via, user=user)
                    self.assertEqual((0, log), result[:2], result.err)
        self.assertEqual(1, self.log.getvalue().count("key is encrypted; what was read before stays"))
        with within(5):
            for _ in range(100):  # who leave before anybody looks
                with socket.create_connection((self.near, port), 20) as gone:
                    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            ssl.get_server_certificate((self.near, port))
        with suppress(ConnectionResetError), socket.create_connection((self.near, port), 20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            self.assertNotIn(b"HTTP", plain.recv(65536))

    def test_both_fail(self):
        """One sentence says it of both; what a controller says of the artifact is the answer."""
        self.hand_on()
        self.make_far("nowhere", "http://127.0.0.1:1", s3Url="http://127.0.0.1:2")
        result = self.through("backup", "logs", "nowhere")
        self.assert_failed(result, 6, "cannot reach the store at 127.0.0.1:1: Connection refused; through the cluster:",
                           "hands on nothing: cannot reach the store at 127.0.0.1:2")
        self.assert_failed(self.through("backup", "logs", "nowhere", "--via", "cluster"), 6, "127.0.0.1:2")
        self.make_far("unwritten", "http://127.0.0.1:1")
        result = self.through("download", "unwritten", "--kind", "BackupVolumeSnapshots", "-o", "-")
        self.assert_failed(result, 3, "has no such file")
        self.assertIn("hint: through the cluster, because cannot reach the store at 127.0.0.1:1", result.err)

    def test_a_request_that_velero_answered(self):
        """Its URL leads a client nowhere, and proves that he may read it; a planted URL is never asked."""
        controller = self.idle_controller()
        self.hand_on(controller)
        self.put()
        planted = self.enter(closing(KubeServer()))

        def answer(url: str) -> None:
            name, = wait_until(self.names, 20, "the client's request")
            self.fill(name, phase="Processed", downloadURL=url, expiration=self.clock.text(minutes=10))
        for url, via in (("http://127.0.0.1:1/x?X-Amz-Signature=0", "auto"), (planted.url + "/secret", "cluster")):
            with ThreadPoolExecutor(1) as pool:
                answering = pool.submit(answer, url)
                self.assertEqual((0, LOG, ""), self.through("backup", "logs", "b1", "--via", via))
                answering.result(20)
        self.assertEqual([], planted.requests)

    def fetched(self, port: int, path: str, proof: str = "", method: str = "GET", **headers: str) -> Any:
        """What an artifact address answers: the response, its reason word filled in."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(http.client.HTTPConnection(self.near, port, timeout=30)) as connection:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {"X-Velero-Requests-Proof": proof, **named}.items():
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            body = response.read() if method != "HEAD" else b""
        self.assertEqual("1", response.headers["X-Velero-Requests"])
        reason = json.loads(body)["reason"] if response.status >= 300 and body else ""
        return SimpleNamespace(status=response.status, body=body, headers=response.headers, reason=reason)

    def test_who_gets_what(self):
        """Only who has read the URL of an answered request that lives; all else is one answer."""
        port, stored = self.hand_on(self.idle_controller()), self.put()
        url, status = "http://127.0.0.1:1/x", {"phase": "Processed", "expiration": self.clock.text(minutes=5)}
        proof, none = (hashlib.sha256(text.encode()).hexdigest() for text in (url, ""))
        mine = self.fill(self.ask(), downloadURL=url, **status)
        other = self.fill(self.ask(), downloadURL=url + "y", **status)
        odd = self.fill(self.ask(), **{**status, "phase": "New", "downloadURL": url})
        bare, new = self.fill(self.ask(), **status), self.ask()
        self.assertEqual((200, stored), (self.fetched(port, f"/artifacts/{mine}", proof).status,
                                         self.fetched(port, f"/artifacts/{mine}", proof).body))
        refused = {self.fetched(port, f"/artifacts/{name}", shown).body for name, shown in (
            (mine, ""), (mine, none), (mine, proof[:-1]), (mine, proof.upper()), (mine, "é"), (other, proof),
            (odd, proof), (bare, none), (new, none), ("nothing", proof), ("nothing", none), ("-", proof))}
        self.assertEqual(1, len(refused), refused)
        self.assertIn(b"NotProven", refused.pop())
        for path in ("/", "/artifacts", "/artifacts/", f"/artifacts/{mine}/", f"/artifacts/{mine}?x", "/metrics",
                     f"/artifacts/a%2F..%2F{mine}", f"//artifacts/{mine}", f"/artifacts/{mine.upper()}",
                     "/artifacts/b/c", "/artifacts/" + "a" * 254):
            answer = self.fetched(port, path, proof)
            self.assertEqual((404, "NotServed"), (answer.status, answer.reason), path)
        doomed = self.ask(metadata={"generateName": "doomed-", "finalizers": ["example.com/stay"]})
        self.fill(doomed, downloadURL=url, **status)
        self.admin.delete(DR, doomed, self.namespace)
        self.addCleanup(self.admin.merge_patch, DR, doomed, {"metadata": {"finalizers": None}}, self.namespace)
        self.assertEqual("UrlExpired", self.fetched(port, f"/artifacts/{doomed}", proof).reason)
        self.turn(minutes=5.1)
        answer = self.fetched(port, f"/artifacts/{mine}", proof)
        self.assertEqual((410, "UrlExpired"), (answer.status, answer.reason))

    def test_what_is_handed_on(self):
        """Ranges, conditions and what tells of the object; failures with a word."""
        port, stored = self.hand_on(self.idle_controller()), self.put()
        url = "http://127.0.0.1:1/x"
        proof = hashlib.sha256(url.encode()).hexdigest()

        def artifact(kind: str = "BackupLog", target: str = "b1") -> str:
            name = self.fill(self.ask(kind, target), phase="Processed", downloadURL=url)
            return f"/artifacts/{name}"
        path = artifact()
        whole = self.fetched(port, path, proof)
        etag, size = whole.headers["ETag"], len(stored)
        self.assertEqual((str(size), "application/octet-stream"), (whole.headers["Content-Length"],
                                                                   whole.headers["Content-Type"]))
        for headers, status, body in (
                ({"Range": "bytes=2-5"}, 206, stored[2:6]), ({"Range": "bytes=7-"}, 206, stored[7:]),
                ({"Range": "bytes=7-", "If_Match": etag}, 206, stored[7:]), ({"If_Match": etag}, 200, stored),
                ({"Range": "bytes=7-", "If_Match": '"x"'}, 412, None), ({"Range": f"bytes={size}-"}, 416, None),
                ({"Range": "bytes=0-1,4-5"}, 404, None), ({"Range": "bytes=1-\u00e9"}, 404, None),
                ({"If_Match": "x"}, 404, None), ({"Range": "lines=1-2"}, 404, None)):
            with self.subTest(**headers):
                answer = self.fetched(port, path, proof, **headers)
                self.assertEqual(status, answer.status)
                if body is not None:
                    self.assertEqual((body, etag), (answer.body, answer.headers["ETag"]))
                if status == 206:
                    self.assertRegex(answer.headers["Content-Range"], rf"^bytes \d+-\d+/{size}$")
        answer = self.fetched(port, path, proof, "HEAD")
        self.assertEqual((200, str(size), etag), (answer.status, *map(answer.headers.get, ("Content-Length", "ETag"))))
        self.make_far("metadata", "", s3Url="http://169.254.169.254")
        for kind, target, status, reason in (
                ("BackupVolumeSnapshots", "b1", 404, "ArtifactNotFound"),
                ("BackupLog", "nobody", 404, "BackupNotFound"), ("BackupLog", "../b1", 409, "InvalidName"),
                ("BackupLog", "metadata", 409, "WrongEndpoint")):
            answer = self.fetched(port, artifact(kind, target), proof)
            self.assertEqual((status, reason), (answer.status, answer.reason), answer.body)

    def restart_cluster(self) -> None:
        """Let the API server end all that it does at once."""
        self.cluster.cut_connections()

    def test_what_breaks_in_the_middle(self):
        """Replicas are killed and others come, or the API server goes away: it goes on at the byte reached."""
        self.admin.merge_patch(BSL, "default", {"spec": {"config": {"publicUrl": FAR_STORE}}}, self.namespace)
        stored = gzip.compress(noise(MIB), 1) * 96
        self.store.put(self.namespace, "backups/b1/b1.tar.gz", stored)
        replicas = [self.start_replica()]

        def replace() -> None:
            while "handing on" not in replicas[-1].text():
                digest.update(stream.read(MIB))
            replicas.pop().kill()
            replicas.append(self.start_replica())
        for breaks in ((replace, replace, replace), (self.restart_cluster,)):
            client, digest = self.program("backup", "download", "b1", "-o", "-", "-v", stdout=PIPE), hashlib.sha256()
            with self.subTest(breaks=len(breaks)), client.process.stdout as stream:
                for deed in breaks:
                    digest.update(stream.read(8 * MIB))
                    deed()
                for piece in iter(lambda: stream.read(MIB), b""):
                    digest.update(piece)
                self.assertEqual((0, hashlib.sha256(stored).digest()), (client.process.wait(30), digest.digest()),
                                 client.text()[-2000:])
                self.assertGreaterEqual(client.text().count("going on at byte"), len(breaks))
                self.assertEqual(1, client.text().count("going through the cluster"))
        self.assertEqual([], self.names())

    def test_many_at_once(self):
        """Of 17 transfers one is told to come later; requests are answered meanwhile, and whoever leaves makes room."""
        controller = self.serve()
        port = self.hand_on(controller)
        self.store.put(self.namespace, KEYS["BackupLog"], gzip.compress(noise(MIB), 1) * 24)
        name = self.answered(self.ask())["metadata"]["name"]
        proof = hashlib.sha256(self.look(name)["status"]["downloadURL"].encode()).hexdigest()
        asked = f"GET /artifacts/{name} HTTP/1.1\r\nX-Velero-Requests-Proof: {proof}\r\n\r\n".encode()
        for rest in (b"", b"HTTP/1.1 200"):  # of those who left before a byte came, and after
            with ExitStack() as held:
                socks = [held.enter_context(socket.create_connection((self.near, port), 20)) for _ in range(16)]
                for sock in socks:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    sock.sendall(asked)
                    self.assertEqual(rest, sock.recv(len(rest)) if rest else b"")
                if rest:
                    answer = self.fetched(port, f"/artifacts/{name}", proof)
                    self.assertEqual((503, "Busy", "2"), (answer.status, answer.reason, answer.headers["Retry-After"]))
                    with within(5):
                        self.settle()
            for method in ("HEAD", "GET"):
                wait_until(lambda: self.fetched(port, f"/artifacts/{name}", proof, method).status == 200, 20, "room")
        for _ in range(16):
            wait_until(lambda: controller.transfers.acquire(blocking=False), 20, "all to end")


class TestThroughFakeNew(ThroughTests, FakeWorld, TestCase):
    def test_a_request_ends_half_way(self):
        """While the line is down the request expires and is deleted: another one is made, and it goes on."""
        controller, stored = self.serve(), gzip.compress(noise(MIB), 1) * 4
        self.store.put(self.namespace, "backups/b1/b1.tar.gz", stored)
        line = self.enter(closing(Line(f"{self.near}:{self.hand_on(controller)}")))
        self.lead_to(line.port)
        line.plan = [MIB, 0]

        def expire() -> None:
            wait_until(lambda: line.broken == 2, 20, "the line to break")
            first, = self.names()
            self.turn(minutes=11)
            self.gone(first)
        with ThreadPoolExecutor(1) as pool:
            expiring = pool.submit(expire)
            result = self.through("backup", "download", "b1", "-o", self.path, "--via", "cluster", "-v")
            expiring.result(20)
        self.assertEqual((0, True), (result.code, read_bytes(self.path) == stored), result.err)
        self.assertRegex(result.err, "no answered DownloadRequest has this name .*asking for another")
        self.assertEqual(([], 2), (self.names(), result.err.count("created DownloadRequest")))
        asked = self.cluster.seen("GET", f"/{self.namespace}/services/http:velero-requests:http/proxy/artifacts/")
        self.assertEqual({"identity"}, {request.headers["accept-encoding"] for request in asked})

    def test_doctor_tries_it(self):
        """It tells which way is open."""
        name = self.make_far("far", FAR_STORE)
        self.serve()
        for ports, said in ((None, "skipped"), ((), "broken"), ("served", "ok")):
            if ports == "served":
                self.hand_on()
            elif ports is not None:
                self.lead_to(*ports)
            out = self.cli("doctor", name).out.decode()
            self.assertRegex(out, r"(?m)^.*way: store.*broken|broken.*way: store")
            self.assertRegex(out, rf"(?m)^.*way: cluster.*{said}|{said}.*way: cluster")

    def test_a_way_that_is_not_there(self):
        """It is looked for once in a command, by both names that its port may have."""
        self.serve()
        self.assert_failed(self.through("backup", "logs", self.make_far("far", FAR_STORE), "-v"), 6, "refused")
        self.assertEqual(2, self.cluster.count("GET", f"/{self.namespace}/services/"))

    def test_the_store_breaks_off(self):
        """Its half answer is not taken for a whole one, with a length or in chunks."""
        self.hand_on()
        stored = gzip.compress(noise(MIB), 1) * 4
        self.store.put(self.namespace, "backups/b1/b1.tar.gz", stored)
        for wire in (cut_body(MIB), cut_body(2 * MIB)):
            self.store.script("GET", "/b1.tar.gz", wire=wire)
        self.store.script("GET", "/b1.tar.gz", status=503, body=SLOW_DOWN, headers={"Retry-After": "1"})
        result = self.through("backup", "download", "b1", "-o", self.path, "--via", "cluster", "-v")
        self.assertEqual((0, True), (result.code, read_bytes(self.path) == stored), result.err)
        self.assertRegex(result.err, r"(?s)broke off after 1048576 of .*SlowDown.* going on at byte \d+ in 1s")

    def test_what_a_controller_says(self):
        """Of a refusal that comes through the proxy one short line is shown, whatever it holds."""
        secret = "https://u:s3cr3t@h/?X-Amz-Signature=" + "a" * 64
        for status, body, reason, words, kind, code in (
                (403, {"reason": "NotProven", "message": "no"}, "NotProven", "hands on nothing: no$", vr.StoreError, 1),
                (403, {"reason": "StoreAccessDenied"}, "StoreAccessDenied", "it answered 403$", vr.StoreError, 5),
                (404, {"reason": "ArtifactNotFound", "message": "x"}, "ArtifactNotFound", "x$", vr.StoreError, 3),
                (502, {"reason": "Unreachable", "message": "x"}, "Unreachable", "x$", vr.Unreachable, 6),
                (503, {"reason": "Busy", "message": "x\n\x1b[2J" * 9999}, "Busy", "x", vr.StoreError, 1),
                (500, {"reason": 5, "message": [secret]}, "StoreError", "it answered 500$", vr.StoreError, 1),
                (409, {"message": secret}, "StoreError", r"https://\*\*\*@h", vr.StoreError, 1),
                (400, b"<html>", "StoreError", "it answered 400$", vr.StoreError, 1),
                (400, b"[" * 9999, "StoreError", "it answered 400$", vr.StoreError, 1)):
            with self.subTest(status=status, body=str(body)[:40]):
                sent = body if isinstance(body, bytes) else packed(body)
                error = vr.proxy_refusal(status, sent, {"Retry-After": "7"})
                self.assertEqual((reason, kind, code), (error.reason, type(error), error.exit))
                self.assertRegex(str(error), words)
                self.assertTrue(str(error).isprintable() and len(str(error)) < 1200 and "s3cr3t" not in str(error))
                self.assertEqual(7.0 if kind is vr.StoreError else None, getattr(error, "retry_after", None))


    def test_files_of_no_use(self):
        """Are one sentence at the start."""
        given = shared_certificate()
        encrypted, missing = self.at("encrypted"), self.at("missing")
        run_openssl("ec", "-in", given.key, "-aes128", "-passout", "pass:x", "-out", encrypted)
        for cert, key, code, words in (
                (given.cert, "", 2, "need each other"), ("", given.key, 2, "need each other"),
                (missing, given.key, 1, f"cannot read the certificate {missing}: No such file"),
                (given.cert, self.folder, 1, f"cannot read the certificate's key {self.folder}: Is a directory"),
                (given.cert, encrypted, 1, f"{encrypted} are not a matching pair of PEM, or the key is encrypted"),
                *((*pair, 1, "are not a matching pair") for pair in ((given.ca, given.key), (os.devnull, os.devnull)))):
            flags = [f"--artifacts-tls-{flag}={path}" for flag, path in (("cert", cert), ("key", key)) if path]
            with self.subTest(words):
                self.assert_failed(self.cli("controller", "--artifacts-address", "127.0.0.1:0", *flags), code, words)
        self.assert_failed(self.cli("controller", *flags), 2, "--artifacts-address")


class TestThroughFakeOld(ThroughTests, FakeWorld, TestCase):
    status_subresource = True


NEAR = "10.77.0.1"  # in a network namespace: a real API server leads to no loopback address


def run_in_namespace(*argv: str, archive: str = "-", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run Python in a network namespace of its own that has such an address, or skip the test."""
    if not assets_folder() or not assets_folder("versitygw"):
        raise SkipTest("no real servers: KUBEBUILDER_ASSETS is not set or has not both")
    start = f"ip link set lo up && ip addr add {NEAR}/32 dev lo || exit 77; exec \"$@\""
    done = subprocess.run([*isolated("n"), "sh", "-c", start, "sh", sys.executable, *argv],
                          env={**os.environ, INSIDE: archive}, stdin=DEVNULL, timeout=600, check=False, **options)
    if done.returncode == 77:
        raise SkipTest("`ip` is missing, so the network namespace has no address")
    return done


def lead_service(admin: Admin, namespace: str, name: str, *ports: int) -> None:
    """Let the Service's one port of this name lead to these, by an Endpoints object whose address is a Pod's."""
    service, pod = {"name": "velero-requests"}, {"kind": "Pod", "name": "backend", "namespace": namespace}
    if admin.create("pods", {"kind": "Pod", "metadata": {"name": "backend"}, "spec": {
            "containers": [{"name": "velero", "image": "x"}]}}, namespace, unless=409):
        admin.merge_patch("pods/status", "backend", {"status": {"podIP": NEAR, "podIPs": [{"ip": NEAR}]}}, namespace)
        admin.create("services", {"kind": "Service", "metadata": service, "spec": {
            "ports": [{"name": name, "port": 80}]}}, namespace)
        admin.create("endpoints", {"kind": "Endpoints", "metadata": service}, namespace)
    admin.merge_patch("endpoints", service["name"], {"subsets": [{
        "addresses": [{"ip": NEAR, "targetRef": pod}], "ports": [{"name": name, "port": port}]}
        for port in ports]}, namespace)


class ThroughNamespace(RealWorld, ThroughTests, TestCase):
    """The real servers."""
    near = NEAR

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        if not os.environ.get(INSIDE):
            raise SkipTest("TestThroughReal runs this in a network namespace of its own")
        return super().start()

    def restart_cluster(self) -> None:
        killed = self.cluster.children.pop()
        killed.kill()
        killed.wait()
        self.cluster.run(self.cluster.ready, *killed.args)

    def lead_to(self, *ports: int, name: str = "http") -> None:
        lead_service(self.admin, self.namespace, name, *ports)


class ThroughNamespaceOld(ThroughNamespace):
    """The other dialect makes a difference where a status is written by hand."""
    status_subresource = True


class TestThroughReal(TestCase):
    """The same with the real servers."""

    def test_in_a_network_namespace(self):
        done = run_in_namespace(os.path.abspath(__file__), "ThroughNamespace", *(
            f"ThroughNamespaceOld.test_{name}" for name in (
                "a_request_that_velero_answered", "who_gets_what", "what_is_handed_on")), stdout=PIPE, stderr=STDOUT)
        self.assertEqual(0, done.returncode, done.stdout.decode(errors="replace")[-20_000:])


# ---- Inside a backup ---------------------------------------------------------

TAR_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def item_path(resource: str, namespace: str, name: str, version: str = "") -> str:
    """Where an item lies in an archive (velero pkg/archive/filesystem.go)."""
    scope = f"namespaces/{namespace}" if namespace else "cluster"
    return "/".join(filter(None, ("resources", resource, version, scope, f"{name}.json")))


def an_object(kind: str, name: str, namespace: str = "", api: str = "v1", **parts: Any) -> Document:
    place = {"namespace": namespace} if namespace else {}
    return {"apiVersion": api, "kind": kind, **parts, "metadata": {
        "name": name, **place, "uid": "u-1", "resourceVersion": "7", **parts.get("metadata", {})}}


def backup_of(*items: Tuple[str, str, Document]) -> bytes:
    """The contents of a backup as Velero makes them: each item without and with the folder of its version."""
    rows: List[Any] = [("metadata/version", b"1.1.0\n", {})]
    for resource, namespace, item in items:
        content = json.dumps(item, separators=(",", ":")).encode()
        rows += [(item_path(resource, namespace, item["metadata"]["name"], folder), content, {})
                 for folder in ("", "v1-preferredversion")]
    return gzip.compress(tar_with(*rows), 1)


class TestTarFiles(Cases):
    """What tarfile and Go write is read in any chunks; what is damaged ends in a sentence after what is sound."""

    def test_formats(self):
        """Long, foreign and odd names, any size, links, devices and folders between them."""
        names = ["a", "resources/é ✓", "x" * 100, f"{'d' * 90}/{'e' * 99}", "role:a b", "..", "../x", "/y"]
        files = [(name, b"c" * size, {}) for name, size in zip(names, (0, 1, 511, 512, 513, 2000, 9, 0))]
        others = [("link", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("f", b"", {"type": b"5"}),
                  ("hard", b"", {"type": tarfile.LNKTYPE, "linkname": "k" * 200}), ("dev", b"", {"type": b"3"})]
        for form, more in (("ustar", []), ("gnu", [("n" * 2000, b"g", {})]), ("pax", [(
                f"a/{'n' * 250}/" * 9 + "é", b"p", {"pax_headers": {"comment": "size=5\nx", "mtime": "1.5"}})])):
            rows = [row for pair in itertools.zip_longest(files, others if form != "ustar" else [], more)
                    for row in pair if row]
            data, wanted = tar_with(*rows, form=TAR_FORMATS[form]), [row[:2] for row in rows if "type" not in row[2]]
            for size in (1, 7, 512, 1000, len(data)):
                with self.subTest(form=form, size=size):
                    self.assertEqual(wanted, list(vr.tar_files(cut(data, size))))

    def test_what_is_damaged(self):
        """Cut anywhere but between members, a changed byte of a header, sizes that cannot be; links that claim a size
        have none; what follows the end is taken and means nothing."""
        data, names = tar_with(("a", b"1" * 700, {}), ("b" * 120, b"2", {})), ["a", "b" * 120]

        def header(name: bytes, size: bytes, kind: bytes) -> bytes:
            block = bytearray(name.ljust(124, b"\0") + size.ljust(24, b"\0") + b" " * 8 + kind.ljust(356, b"\0"))
            block[148:156] = b"%06o\0 " % sum(block)
            return bytes(block)

        for stored, wanted, words in (
                *((data[:length], names[:length >= 1536], "the archive is cut short after (its beginning|a|[./]+@Pax)")
                  for length in (*range(97, 1536, 97), 512, *range(1552, 3584, 97), 2048, 3583)),
                *((data[:length], names, "") for length in range(3584, 4608, 97)),
                (b"", [], ""), (data[:1536], ["a"], ""),
                *((data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1:], ["a"], "the archive is damaged after a")
                  for at in (1536, 1635, 1660, 1671, 1684, 1692, 1793, 1936, 2047)),
                (header(b"x", b"7777777777777", b"0"), [], "^x is larger than 8 MiB"),
                (header(b"x", b"-1", b"0"), [], "damaged after its beginning"),
                (header(b"x", b"\x80" + b"\xff" * 11, b"0"), [], "damaged after"),
                (header(b"x", b"1234", b"2") + data, names, ""), (header(b"x", b"0", b"\0"), ["x"], ""),
                (data + b"more" * 999, names, ""), (b"\0" * 512 + data, [], ""),
                (b"no tar at all" * 99, [], "damaged after its beginning"),
                (header(b"p", b"777777777", b"x") + bytes(9999), [], "p is larger than 8 MiB")):
            found: List[str] = []
            with self.assertRaisesRegex(vr.StoreError, words) if words else suppress():
                found.extend(path for path, _ in vr.tar_files(cut(stored, 300)))
            self.assertEqual(wanted, found, words)

    def test_words_for_resources(self):
        for resource, yes, no in (
                ("deployments.apps", "deployments deployment Deployment deploy deployments.apps DEPLOY.apps", "deploy. "
                 "deployments.app apps pods deploys replicasets.apps"), ("pods", "po Pod pods pods.", "pod.v1 p pos"),
                ("ingresses.networking.k8s.io", "ing Ingress ingresses.networking.k8s.io", "ingress.extensions ingres"),
                ("networkpolicies.networking.k8s.io", "netpol NetworkPolicy networkpolicies", "networkpolicys."),
                ("endpoints", "ep Endpoints endpoint", "end"), ("gateways.x.io", "gateway Gateway.x.io", "gatewaies"),
                ("storageclasses.storage.k8s.io", "sc StorageClass", "s"), ("a", "", "b")):
            self.assertEqual(yes.split(), [word for word in f"{yes} {no}".split() if vr.is_resource(word, resource)])


NASTY_VALUES = {"yes": "yes", "1": "1e3", "octal": "0o14", "y": "y", "n": "N", "tilde": "~", "empty": "",
                "time": "12:30", "date": "2026-05-01", "lines": "a\nb\n", "colon": "a: b", "hash": "a #b",
                "bidi": "\u202e", "é": "✓", "float": ".5", "inf": ".inf", "hex": "0x1F", "merge": "<<", "equal": "=",
                "under": "1_000"}
WEB = an_object("Deployment", "web", "shop", "apps/v1", spec={"replicas": 2, "ratio": 1e22}, status={"replicas": 2})
SETTINGS = an_object("ConfigMap", "settings", "shop", data=NASTY_VALUES)
BOOKS = {**WEB, "metadata": {"name": "web", "namespace": "books"}}
OTHER = an_object("Deployment", "web", "shop", "other.io/v1", spec={"a": "<&>"})
NODES = an_object("ClusterRole", "system:node", "", "rbac/v1")
SHOP = (("namespaces", "", an_object("Namespace", "shop")), ("configmaps", "shop", SETTINGS),
        ("deployments.apps", "shop", WEB), ("deployments.apps", "books", BOOKS),
        ("deployments.other.io", "shop", OTHER), ("secrets", "shop", an_object("Secret", "login", data={
            "password": "aHVudGVyMg=="})),
        ("clusterroles.rbac.authorization.k8s.io", "", NODES))


class TestInside(FolderCase):
    """`backup ls` and `backup show` of an archive in a file."""

    def inside(self, words: str, stored: bytes = backup_of(*SHOP)) -> Result:
        return run("backup", *words.split(), "--file", write_bytes(self.at("b1.tar.gz"), stored))

    def test_ls(self):
        """Columns widen with the rows; an item in two versions is one."""
        lines = self.inside("ls").out.decode().splitlines()
        self.assertEqual(lines[:4] + lines[-2:], [
            "NAMESPACE   RESOURCE   NAME", "<none>      namespaces   shop", "shop        configmaps   settings",
            "shop        deployments.apps   web", "shop        secrets                login",
            "<none>      clusterroles.rbac.authorization.k8s.io   system:node"])
        self.assertEqual(1 + len(SHOP), len(lines))
        for words, resources in (
                ("deploy", ["deployments.apps"] * 2 + ["deployments.other.io"]), ("Deployment.apps --in books", [
                    "deployments.apps"]), ("--in shop --in books secret", ["secrets"]), ("ns", ["namespaces"]),
                ("--in shop", ["configmaps", "deployments.apps", "deployments.other.io", "secrets"])):
            rows = json.loads(self.inside(f"ls {words} -o json").out)
            self.assertEqual(resources, [row["resource"] for row in rows], words)
            self.assertEqual([f"{row['resource']}/{row['name']}" for row in rows],
                             self.inside(f"ls {words} -o name").out.decode().split(), words)

    def test_against_tar_and_jq(self):
        """The same names, and the same objects, by the usual tools."""
        if not (shutil.which("tar") and shutil.which("jq")):
            self.skipTest("there is no tar or no jq to compare with")
        names = [f"{'long-' * (number % 30)}{number}" for number in range(2000)]
        stored = backup_of(*(("configmaps", f"team-{name[-1]}", an_object("ConfigMap", name)) for name in names), *SHOP)

        def output(script: str, *words: str, given: bytes = b"") -> bytes:
            return subprocess.run(["sh", "-c", script, "sh", *words], input=given, stdout=PIPE, check=True,
                                  timeout=60).stdout

        ours, archive_ = self.inside("ls -o name", stored).out.decode().split(), self.at("b1.tar.gz")
        found = re.findall(r"(?m)^resources/([^/]+)/(?:namespaces/[^/]+|cluster)/(.+)\.json$",
                           output('tar tzf "$1"', archive_).decode())
        self.assertEqual((2000 + len(SHOP), ["/".join(item) for item in found]), (len(ours), ours))
        self.assertEqual(
            output('tar xzOf "$1" "$2" | jq -cS .', archive_, item_path("configmaps", "shop", "settings")),
            output("jq -cS .", given=self.inside("show cm/settings -o json", stored).out))

    def test_show(self):
        """All that match, as YAML and as JSON the same; strings that YAML 1.1 or Go reads otherwise stay strings;
        Secrets are told of."""
        go = {"a": "x<&>\u2028"}
        as_go = json.dumps(go).translate({ord(c): f"\\u{ord(c):04x}" for c in "<&>"}).encode()
        of_go = gzip.compress(tar_with((item_path("pods", "a", "b"), as_go, {})))
        for words, wanted in (
                ("cm/settings", [SETTINGS]), ("deploy/web", [WEB, BOOKS, OTHER]), ("--grep system:node", [NODES]),
                ("deploy.apps/web configmaps --in shop --in books", [SETTINGS, WEB, BOOKS]), ("--grep <&>", [OTHER]),
                ("deploy --grep ratio --in shop", [WEB]), ("cm --grep 12:30", [SETTINGS]), ("--grep x<&>\u2028", [go]),
                ("ns --clean", [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}])):
            results = [self.inside(f"show {words} -o {output}", of_go if wanted == [go] else backup_of(*SHOP))
                       for output in ("yaml", "json")]
            self.assertEqual([(0, "")] * 2, [(result.code, result.err) for result in results], words)
            self.assertEqual(wanted, list(yaml.safe_load_all(results[0].out)), words)
            texts = re.split(r"(?m)^(?=\{)", results[1].out.decode())[1:]
            self.assertEqual(wanted, [json.loads(text) for text in texts], words)
        text, secrets = self.inside("show cm/settings").out.decode(), self.inside("show secrets deploy/web")
        for name, value in NASTY_VALUES.items():
            self.assertIn(f": {json.dumps(value, ensure_ascii=value == chr(0x202e))}\n", text, name)
        self.assertEqual("Secrets are shown as they are stored: base64 hides nothing.\n", secrets.err)
        self.assertIn(b'password: "aHVudGVyMg=="\n', secrets.out)

    def test_clean(self):
        """What is left out is what a restore leaves out; a headless Service keeps that."""
        gone = dict.fromkeys("""generateName selfLink uid resourceVersion generation creationTimestamp deletionTimestamp
            deletionGracePeriodSeconds ownerReferences managedFields""".split(), "x")
        kept = {"name": "a", "labels": {"b": "c"}, "annotations": {"d": "e"}, "finalizers": ["f"]}
        headless, labels = {"clusterIP": "None", "clusterIPs": ["None"]}, {"controller-uid": "u", "a": "b"}
        for kind, spec, rest in (
                ("Service", {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [1]}, {"ports": [1]}),
                ("Service", headless, dict(headless)), ("Pod", {"nodeName": "n", "a": 1}, {"a": 1}), ("Pod", [], []),
                ("Other", {"nodeName": "n"}, {"nodeName": "n"}), ("", 5, 5),
                ("Job", {"selector": {"matchLabels": labels}}, {"selector": {"matchLabels": {"a": "b"}}}),
                ("PersistentVolume", {"claimRef": {"uid": "u", "name": "c"}}, {"claimRef": {"name": "c"}})):
            item = {"kind": kind, "metadata": {**kept, **gone}, "spec": spec, "status": {"a": 1}}
            vr.leave_out(item)
            self.assertEqual({"kind": kind, "metadata": kept, "spec": rest}, item)
        self.assertEqual([None] * 4, list(map(vr.leave_out, ([], "x", {"metadata": []}, {"kind": {}}))))

    def test_what_is_strange(self):
        """Names that climb out, links, devices and folders are passed over, and nothing is written; names drive no
        terminal; what is no item, in a wrong place or of another version alone is none."""
        path = item_path("pods", "a", "b")
        rows: Any = [(name, b"{}", {}) for name in (
            "../../" + path, "/" + path, "resources/../cluster/y.json", "resources/pods/namespaces/../x.json",
            "resources/pods/namespaces/a/b/c.json", "resources/pods/other/a.json", path[:-5], "resources/x",
            item_path("pods", "a", "old", "v1beta1"), item_path("p\x1b[2Jods", "a", "\u202ex"), "./" + path)]
        rows += [(path, b"", {"type": b"%d" % kind, "linkname": "/etc/passwd"}) for kind in range(1, 7)]
        result = self.inside("ls", gzip.compress(tar_with(*rows)))
        self.assertEqual((0, "NAMESPACE   RESOURCE   NAME\na           p [2Jods    x\n"
                          "a           pods       b\n", ""), (result.code, result.out.decode(), result.err))
        self.assertEqual(["b1.tar.gz"], os.listdir(self.folder))

    def test_failures(self):
        """One sentence, the right code, and of a damaged archive what is before the fault; it does no harm behind
        the place where nothing more can match, as namespace and group, or group alone of the cluster's own, tell."""
        whole = gzip.decompress(backup_of(*SHOP))
        end = whole.index(b"resources/secrets")
        flipped, short = (gzip.compress(data) for data in (whole[:end] + b"x" + whole[end + 1:], whole[:end + 530]))
        some = "namespaces/shop configmaps/settings deployments.apps/web deployments.apps/web deployments.other.io/web"

        def pod(content: bytes) -> bytes:
            return gzip.compress(tar_with((item_path("pods", "x", "a"), content, {})), 1)
        for words, stored, code, said, out in (
                ("ls", gzip.compress(tar_of({}, "w")), 0, "^No items found in .*b1.tar.gz.\n$", ""),
                ("ls --in nowhere", None, 0, "^No items found", ""),
                ("ls -o json", gzip.compress(b""), 0, "^No items", "[]"),
                ("ls cronjobs", None, 3, "^error: there is no cronjobs in .*\nhint: .* backup ls. tells", ""),
                ("ls cm --in books", None, 3, "no cm in namespace books in", ""),
                ("show po/x cj/y", None, 3, "there is no cj/y, po/x in", ""),
                ("show cm/nobody", None, 3, "there is no cm/nobody in", ""),
                ("show", None, 2, "name what to show", ""), ("show --grep zz", None, 1, "no item holds 'zz'", ""),
                ("ls", b"", 1, "the file is empty", ""), ("ls", b"text", 1, "is not gzip but text", ""),
                ("ls", gzip.compress(b"a log" * 999), 1, "damaged after its beginning", ""),
                ("ls", gzip.compress(whole)[:-9], 1, "cut short", None),
                ("ls -o name", flipped, 1, "the archive is damaged after resources/deployments.other", some),
                ("ls -o name", short, 1, "cut short after resources/deployments.other", some),
                ("show secrets", short, 1, "cut short after resources/deploy", ""),
                ("show po/a", pod(b"{nonsense"), 1, "pods/a: .* not JSON", ""),
                ("show po", pod(b"x" * (9 << 20)), 1, "larger than 8 MiB", ""),
                ("show po/a", pod(b"[" * 999 + b"]" * 999), 1, "not JSON", ""),
                *((f"show {word}", flipped, 0, "^$", None) for word in (
                    "deployments.apps/web --in shop", "deploy.apps/web cm./settings --in shop", "namespaces./shop")),
                *((f"show {word}", flipped, 1, "damaged after", None) for word in (
                    "deploy/web --in shop", "deployments.apps/web", "deploy.apps --in shop", "ns/shop"))):
            with self.subTest(words=words, said=said):
                result = self.inside(words, backup_of(*SHOP) if stored is None else stored)
                self.assertEqual(code, result.code, result.err)
                self.assertRegex(result.err, said)
                self.assertNotIn("Traceback", result.err)
                self.assertTrue(result.out if out is None else result.out.decode().split() == out.split(), result.out)
        for words, said in (("backup ls", "name a backup"), (f"backup ls --file {self.at('gone')}", "cannot read /"),
                            (f"backup ls --file {self.folder}", "cannot read"), ("backup show b1", "name what")):
            result = run(*words.split())
            self.assertRegex(result.err, said)
            self.assertEqual(b"", result.out)

    @needs_proc
    def test_memory(self):
        """A large archive takes no more than a small one, whether it is listed or searched."""
        some = tar_with(*((item_path("pods", "a", f"pod-{number}"), b'{"a":1}', {}) for number in range(400)))
        path = write_bytes(self.at("b1.tar.gz"), gzip.compress(some[:400 * 1024]) * 150 + gzip.compress(some))
        for words in (("ls",), ("show", "--grep", "no such text", "pods.x", "po/pod-399")):
            program, seen = Program(self.folder, "backup", *words, "--file", path), []
            self.addCleanup(program.kill)
            wait_until(lambda: seen.append(resident(program.process.pid)) or program.process.poll() is not None, 90)
            program.end()
            self.assertLess(max(seen[len(seen) // 2:]), 45, words)


class TestInsideWays(DirectTests, DownloadWorld, TestCase):
    """Every way to the bytes; a download that is no longer needed ends."""

    def test_every_way_inside(self):
        self.fill_bucket()
        self.store.put(self.namespace, KEYS["BackupContents"], backup_of(*SHOP))
        write_bytes(os.path.join(self.copy, KEYS["BackupContents"]), backup_of(*SHOP))
        for flags in ((), ("--direct",), self.files(), ("--location", self.copy)):
            listed, shown = (self.cli("backup", *words.split(), *flags) for words in ("ls b1 deploy", "show b1 cm"))
            self.assertEqual((0, 4, ""), (listed.code, listed.out.count(b"\n"), listed.err), flags)
            self.assertEqual((0, [SETTINGS], ""), (shown.code, list(yaml.safe_load_all(shown.out)), shown.err), flags)
        for words in ("ls nobody", "show nobody cm"):
            self.assert_failed(self.cli("backup", *words.split()), 3, "nobody")
        self.assertEqual([], self.names())

    def test_the_download_ends_early(self):
        """The store stands still behind what is shown, and rows are seen before that."""
        stored, gate = backup_of(*SHOP) + gzip.compress(noise(3 * MIB), 1), threading.Event()
        self.addCleanup(gate.set)
        self.store.put(self.namespace, KEYS["BackupContents"], stored)
        self.store.script("GET", pause_after=2 * MIB, gate=gate, times=2)
        shown = self.program("backup", "show", "b1", "deployments.apps/web", "--in", "shop").end(seconds=30)
        self.assertEqual((0, WEB), (shown.code, yaml.safe_load(shown.out)), shown.err)
        listing = self.program("backup", "ls", "b1")
        wait_until(lambda: size_of(listing.out_path) > 200, 15, "rows")
        listing.kill()


class TestInsideReal(RealWorld, TestCase):
    """What the real API server stored, and what it takes back."""

    def test_an_object_comes_back(self):
        """Once it was deleted, what `show --clean` prints makes it anew; for a Job, without that it does not."""
        pod = {"spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}}
        for resource, kind, parts in (
                ("configmaps", "ConfigMap", {"data": {"text": "y"}}), ("pods", "Pod", pod),
                ("services", "Service", {"spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}}),
                ("jobs", "Job", {"spec": {"template": pod}})):
            with self.subTest(kind):
                self.make(resource, kind, "one", **parts)
                stored = self.admin.get(resource, "one", self.namespace)
                archive_ = write_bytes(self.at("a.tar.gz"), backup_of((resource, self.namespace, stored)))
                self.admin.call("DELETE", resource_path(resource, self.namespace, "one"), {
                    "propagationPolicy": "Background", "gracePeriodSeconds": 0})
                wait_until(lambda: self.look("one", resource) is None, what="the deletion")
                shown = run("backup", "show", "--file", archive_, f"{kind}/one", "--clean")
                self.assertEqual((0, ""), (shown.code, shown.err))
                again = self.admin.create(resource, yaml.safe_load(shown.out), self.namespace)
                self.assertNotEqual(stored["metadata"]["uid"], again["metadata"]["uid"])
                self.assertEqual(stored.get("data"), again.get("data"))


# ---- Layouts: what get and describe print, from documents alone, where the golden cases have nothing to say

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
GONE = vr.StoreError("nothing there", status=404, reason="ArtifactNotFound")
LISTS = (vr.DELETE_REQUESTS, vr.POD_VOLUME_BACKUPS, vr.POD_VOLUME_RESTORES)


def in_utc(instant_: datetime) -> datetime:
    return instant_.astimezone(timezone.utc)


def document(kind: str, name: str = "one", metadata: Any = (), **parts: Any) -> Document:
    """A small object with this spec and status."""
    return {"kind": kind, "metadata": {"name": name, "namespace": "velero", **dict(metadata)}, "spec": {}, "status": {},
            **parts}


def described(subject: Any, artifacts: Any = (), related: Any = (), resource: Any = None, **more: Any) -> Any:
    """What describe shows of a backup or, by its kind, a restore; lists and volumes are empty unless given."""
    resource = resource or (vr.RESTORES if subject["kind"] == "Restore" else vr.BACKUPS)
    found: Any = dict.fromkeys((*LISTS, "BackupVolumeInfos", "RestoreVolumeInfo"), [])
    return vr.Description(resource, subject, {**found, **dict(related), **dict(artifacts)}, localize=in_utc, **more)


class TestWords(Cases):
    """Columns, times, ages, durations, selectors and labels as Go writes them, and what is read of documents."""

    def test_no_cell_makes_a_bomb(self):
        """A cell widens the others to 300 characters at most; counted are characters."""
        self.assertEqual(vr.aligned(["x" * 400 + "\ty", "日本:\tb"]), "x" * 400 + "y\n" + "日本:".ljust(302) + "b\n")
        self.assertEqual(vr.aligned(["x" * 400 + "\ty", "a\tb"], **vr.TABLE), f"{'x' * 400}y\n{'a':303}b\n")
        self.assertEqual(vr.aligned([]), "")

    def test_words(self):
        """Times are in the user's zone unless that leaves the calendar; selectors are sorted."""
        some = [{"key": "z", "operator": "Exists"}, {"key": "a", "operator": "DoesNotExist"},
                {"key": "m", "operator": "In", "values": ["2", "1"]}, {"key": "k", "operator": "Near"},
                {"key": "{}", "operator": "NotIn", "values": ["v"]}]
        selector = vr.Fields({"matchLabels": {"n": "3"}, "matchExpressions": some})

        def shown(text: str, hours: float = 0) -> str:
            return vr.go_time(text, lambda moment: moment.astimezone(timezone(timedelta(hours=hours), "X")), "-")
        self.gives(vr.duration, ("", "0s"), ("1.000000001s", "1.000000001s"), ("soon", "<invalid duration 'soon'>"))
        self.gives(vr.age, (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (86399, "23h"),
                   (86400, "1d"), (364.9 * 86400, "364d"), (365 * 86400, "1y"), (1e12, "292y"))
        self.gives(shown, ("", "-"), ("0001-01-01T00:00:00Z", "-"),
                   ("2026-05-01T14:00:00.25+02:00", "2026-05-01 12:00:00.25 +0000 X"),
                   (("9999-12-31T23:59:59Z", 14), "9999-12-31 23:59:59 +0000 UTC"),
                   (("0999-03-01T02:00:00Z", -3.5), "0999-02-28 22:30:00 -0330 X"),
                   ("2026-13-01T00:00:00Z", "<invalid time '2026-13-01T00:00:00Z'>"))
        self.gives(vr.label_selector, (selector, "!a,<error>,m in (1,2),n=3,z,{} notin (v)"))
        self.gives(lambda name: vr.related_of(vr.RESTORES, document("Restore", name))[0][1][23:],
                   ("n" * 63, "n" * 63), ("\ud800" * 64, "\ud800" * 57 + "8369aa"))

    def test_nothing_of_unicode_drives_a_terminal(self):
        """Controls, formats such as bidi marks and tags, halves, separators: all are blanks but two joiners."""
        self.assertEqual(vr.printable("a\x1b[31m\tb\u202ec\ud800日本\u200d語"), "a [31m b c 日本\u200d語")
        for code in range(sys.maxunicode + 1):
            if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
                expected = chr(code) if chr(code) in "\u200c\u200d" else " "
                self.assertEqual(vr.printable(f"a{chr(code)}b"), f"a{expected}b", hex(code))
                byte = f"\\x{code - 0xdc00:x}" if 0xdc80 <= code <= 0xdcff else " "  # how Python holds one of a path
                self.assertEqual(vr.one_line(f"a{chr(code)}b"), f"a{byte}b", hex(code))

    def test_fields(self):
        """What is absent or of a wrong type has Go's zero value; wrong is told by its place, or raised."""
        subject = {"spec": {"ttl": [], "names": ["a", 7], "on": True}, "count": True, "text": "t", "map": {"x": 1},
                   "numbers": [2 ** 63, 2 ** 63 - 1, 1.5], "rows": [{"a": "b"}, 1, {"a": {}}]}
        for path, kind, expected, *wrong in (
                ("text", str, "t"), ("none", str, ""), ("none", int, 0), ("none", bool, None), ("none.x", [str], []),
                ("none", {str: str}, {}), ("spec.on", bool, True), ("spec.ttl", str, "", ".spec.ttl must be a string"),
                ("count", int, 0, ".count must be a whole number"), ("text", [str], [], ".text must be a list"),
                ("spec.names", [str], ["a", ""], ".spec.names[1] must be a string"),
                ("text", bool, None, ".text must be true or false"), ("text.x.y", str, "", ".text must be a mapping"),
                ("map", {str: str}, {"x": ""}, ".map.x must be a string"),
                ("numbers", [int], [0, 2 ** 63 - 1, 0], ".numbers[0] must be a whole number",
                 ".numbers[2] must be a whole number"),
                ("rows", "a", ["b", "", ""], ".rows[1] must be a mapping", ".rows[2].a must be a string")):
            with self.subTest(path=path, kind=kind):
                def found(fields: Any) -> Any:
                    return [row(kind) for row in fields.rows(path)] if kind == "a" else fields(path, kind)
                for place, start in (("", 1), ("Kind", 0)):
                    noted: Dict[str, None] = {}
                    self.assertEqual(found(vr.Fields(subject, place, noted)), expected)
                    self.assertEqual(list(noted), [(place + text)[start:] for text in wrong])
                for text in wrong[:1]:
                    said = f"^this is not what Velero writes: {re.escape(text[1:])}"
                    with self.assertRaisesRegex(vr.StoreError, said):
                        found(vr.Fields(subject))
        with self.assertRaisesRegex(vr.StoreError, ": the document must be a mapping$"):
            vr.Fields([1])("a")


class TestTables(TestCase):
    @staticmethod
    def table(resource: Any, documents: Any, **options: Any) -> List[str]:
        return vr.resource_table(resource, documents, NOON, localize=in_utc, **options).splitlines()

    def test_expiry(self):
        early = "2026-05-01T10:00:00Z"
        for expiration, ttl, created, expected in (
                ("2026-05-01T12:00:00Z", "", "", "0s"), ("0001-01-01T00:00:00Z", "3h", early, "1h"),
                ("", "3h", "", "n/a"), ("", "3h", early, "1h"), ("", "1h30m", early, "30m ago"),
                ("", "0", early, "n/a"), ("", "soon", early, "n/a"), ("", "2500000h", "9999-01-01T00:00:00Z", "n/a")):
            backup = document("Backup", "one", {"creationTimestamp": created}, spec={"ttl": ttl},
                              status={"expiration": expiration})
            self.assertIn(f"<nil>     {expected:<10}", self.table(vr.BACKUPS, [backup])[1])

    def test_any_object_has_a_row(self):
        """What cannot be read is left empty; there are no labels unless they are asked for."""
        strange = [{}, {"spec": None, "status": []}, document("Backup", "n\n\x1b[2J", status={"phase": "Done\tnow"}),
                   {"metadata": {"name": 7, "labels": ["x"]}, "status": {"errors": "x"}}]
        for lines in (self.table(resource, strange) for resource in (vr.BACKUPS, vr.RESTORES)):
            self.assertEqual((len(lines), "\x1b" in "".join(lines), lines[0][-8:]), (5, False, "SELECTOR"))

    def test_ten_thousand_backups_take_no_time(self):
        """Of the processor: under a second, or what YAML of the same takes three times, where that is slow."""
        more = {"status": {"startTimestamp": "2026-05-01T11:00:00Z", "expiration": "2026-05-04T13:00:00Z"}}
        backups = [document("Backup", f"b-{number:014d}", {"labels": {"a": "b"}}, **more) for number in range(10_000)]
        moments = [time.process_time()]
        for function in (lambda: self.table(vr.BACKUPS, backups, show_labels=True), lambda: vr.yaml_text(backups)):
            self.assertGreater(len(function()), 10_000)
            moments.append(time.process_time())
        self.assertLess(moments[1] - moments[0], max(1.0, 3 * (moments[2] - moments[1])))

    def test_what_a_server_says_adds_no_line(self):
        """Its version, and names of plugins, which are sorted by kind, then by name."""
        own = {"client": {"version": f"v{vr.__version__}"}}
        for server, more in ((None, {}), ("v1\n", {"server": {"version": "v1\n"}})):
            self.assertEqual(json.loads(vr.version_text(server, "json")), {**own, **more})
        self.assertTrue(vr.version_text("v1\n\x1b[2J").endswith("\nServer:\n\tVersion: v1 [2J\n"))
        plugins = [{"kind": "Object\nStore", "name": "velero.io/\x1b[31maws"}, {"name": "b"}, {"name": "a"}, "x"]
        self.assertEqual(vr.plugin_table({"status": {"plugins": plugins}}), "NAME                 KIND\n" + " " * 21 +
                         "\na                    \nb                    \nvelero.io/ [31maws   Object Store\n")
        self.assertEqual(["", ""], [vr.plugin_table({"status": status}) for status in ({}, {"plugins": "x"})])

    def test_what_describe_fetches(self):
        """Only what a screen shows: velero's JSON of a backup has no operations."""
        status = {"warnings": 1, "backupItemOperationsAttempted": 1}
        for options, more in (({}, ["BackupItemOperations"]), ({"structured": True}, [])):
            found = vr.artifacts_of(vr.BACKUPS, document("Backup", status=status), details=True, **options)
            self.assertEqual(found, ["BackupResults", *more, "BackupResourceList", "BackupVolumeInfos"])
        for kind, kinds in ((None, []), ("volumeSnapshotsAttempted", ["BackupVolumeSnapshots"]), (
                "csiVolumeSnapshotsAttempted", ["CSIBackupVolumeSnapshots", "CSIBackupVolumeSnapshotContents"])):
            self.assertEqual(vr.legacy_artifacts_of(document("Backup", status={kind: 1})), kinds)

    def test_json_and_yaml(self):
        """JSON escapes what cannot be shown; YAML is in block style, without anchors, and with our own comments."""
        shared, nasty = {"a": ["x"]}, "\x1b\x7f\x9b\u2028\u202e\u2066\ud800\ufeff"
        for function, value, expected in (
                (vr.json_text, {"b": [1], "a": "ü<&>\u0939\u093f\u200d"},
                 '{\n  "b": [\n    1\n  ],\n  "a": "ü<&>\u0939\u093f\u200d"\n}\n'),
                (vr.json_text, nasty, r'"\u001b\u007f\u009b\u2028\u202e\u2066\ud800\ufeff"' + "\n"),
                (vr.yaml_text, {"b": [shared, [shared]], "c": shared, "d": []},
                 "b:\n- a:\n  - x\n- - a:\n    - x\nc:\n  a:\n  - x\nd: []\n")):
            self.assertEqual(function(value), expected)
            self.assertEqual((json.loads if function is vr.json_text else yaml.safe_load)(expected), value)
        self.assertEqual(vr.yaml_text({"a": [{None: "why", "b": 1}], "c": {"d": 2, None: "so"}}),
                         "a:\n- # why\n  b: 1\nc:\n  d: 2\n  # so\n")
        value = {"status": {"errors": 1, "empty": {}, "none": [], "null": None, "yes": True, "float": 1.5},
                 "list": [{"a": [[1, "x"], []], "b": "two\nlines"}, "word"], "é": "日本 ✓", "": "", "n": "n"}
        for documents in ([value, [], "x"], *map(vr.crd_manifests, (True, False))):
            self.assertEqual(list(yaml.safe_load_all(vr.yaml_text(*documents))), documents)

    def test_strings_stay_strings(self):
        """Quoted is what Go or YAML 1.1 takes for something else, and what would be read differently."""
        words = ("y Y n No on OFF true False null ~ 12 1e3 0o14 0x1f 1_000 12:30:45 .5 .inf .nan - -1 +1 = << * & ! | "
                 "> % @ ` 2026-05-01 2026-05-01T12:00:00Z 1.1.0 a: #a 'a' \" é [a] {a} --- ... "
                 "a\x85b a\u202eb").split(" ")
        quoted = (*words, "", " a", "a ", "a  b", "a: b", "a #b", "a\nb", "a\tb", "? a", "- a")
        plain = ("name", "a b", "velero.io/v1", "a:b", "k=v,l=w", "yes-no", "nightly-20260101", "Not", "/a_b@c+d")
        for text in quoted + plain:
            line, form = vr.yaml_text({text: text}), text if text in plain else vr.json_text(text)[:-1]
            self.assertEqual((line, yaml.safe_load(line)), (f"{form}: {form}\n", {text: text}))


class TestScreens(TestCase):
    """`backup describe`, `restore describe`, where the golden cases have nothing to say or we differ from velero."""

    def check(self, screen: Any, *texts: str, troubles: Any = (), **places: Any) -> None:
        """A screen has these texts, in its JSON these values by their places with __ for /, and these troubles."""
        for text in texts:
            self.assertIn(text, screen.text)
        for place, value in places.items():
            self.assertEqual(functools.reduce(lambda found, step: found[step], place.split("__"), screen.json), value)
        self.assertEqual(screen.troubles, list(troubles))

    def test_texts(self):
        """Line breaks stay in their column; of hooks of one name the later one is in the JSON."""
        subject = document("Backup", metadata={"annotations": {"a": "1\n2\n", "b": "3"}}, status={
            "warnings": 1, "validationErrors": ["v"]}, spec={"hooks": {"resources": [
                {"name": "h", "pre": [{"exec": {}}] * 2},
                {"name": "h", "pre": [{"exec": {"command": ["ls", "-l"], "timeout": "30s"}}], "post": [{}]}]}})
        results = {"BackupResults": {"warnings": {"velero": ["one\ntwo", "three"]}}}
        deletions = {vr.DELETE_REQUESTS: [{"status": {"phase": "Processed", "errors": ["x\ny", "z"]}}]}
        self.check(
            described(subject, results, deletions, colorized=True), "\nPhase:  New\n",
            "\nAnnotations:  a=1\n              2\n              b=3\n", "\nValidation errors:  \x1b[31mv\x1b[0m\n",
            "\n  Velero:   one\n            two\n            three\n  Cluster:    <none>\n  Namespaces: <none>\n",
            "\n\nDeletion Attempts (1 failed):\n  <n/a>: Processed\n  Errors:\n    x\n    y\n    z\n",
            spec__hooks__resources__h__postExecHook=[], spec__hooks__resources__h__preExecHook=[
                {"container": "", "command": "ls -l", "onError:": "", "timeout": "30s"}])
        self.check(described(document("Backup", status={"phase": "Failed"})), "\nPhase:  Failed (run ")

    def test_pod_volumes(self):
        """Sizes are told by the phase; phases that velero does not know come last, in the JSON too."""
        def listed(*statuses: Any) -> Any:
            return [{"spec": {"pod": {"namespace": "n", "name": "p"}, "volume": "v", "uploaderType": "kopia"},
                     "status": status} for status in statuses]
        sizes = {"incrementalBytes": 1, "progress": {"totalBytes": 3, "bytesDone": 1}}
        for status, expected in (({"phase": "Completed"}, "v"), ({"phase": "InProgress"}, "v"),
                                 ({"phase": "InProgress", **sizes}, "v (33.33%)"), ({"phase": "Failed", **sizes}, "v"),
                                 ({"phase": "Completed", **sizes}, "v (size: 3, incremental size: 1)"),
                                 ({"phase": "Completed", "progress": {"totalBytes": 1}}, "v (size: 1)")):
            screen = described(document("Backup"), related={vr.POD_VOLUME_BACKUPS: listed(status)}, details=True)
            self.assertTrue(screen.text.endswith(f"\n      n/p: {expected}\n"), screen.text[-60:])
        volumes = listed(*({"phase": phase} for phase in ("Strange", "Canceling", "", "Prepared")))
        counts = dict.fromkeys(("Canceling", "Prepared", "New", "Strange"), 1)
        self.check(described(document("Restore"), related={vr.POD_VOLUME_RESTORES: volumes}),
                   "".join(f"  {name + ':':<12}1\n" for name in counts),
                   status__podVolumeRestores__podVolumeRestoresDetails=counts)

    def test_sizes_of_moved_data(self):
        """The JSON has both as soon as one is known."""
        for sizes, expected in (({}, {}), ({"size": 2}, {"size": 2, "incrementalSize": 0}),
                                ({"size": 0, "incrementalSize": 1}, {"size": 0, "incrementalSize": 1})):
            info = {"backupMethod": "CSISnapshot", "snapshotDataMoved": True, "snapshotDataMovementInfo": sizes}
            screen = described(document("Backup"), {"BackupVolumeInfos": [info]}, details=True)
            found = screen.json["status"]["backupVolumes"]["csiSnapshots"]["/"]["dataMovement"]
            self.assertEqual({name: found[name] for name in found if "ize" in name}, expected)

    def test_missing_artifacts(self):
        places = "status__backupVolumes__errorConclude"
        native = "Backup", "Velero-Native Snapshots: ", "concluding native snapshot info", f"{places}NativeSnapshot"
        csi = "Backup", "CSI Snapshots: ", "concluding CSI snapshot info", f"{places}CSISnapshot"
        restore = ("Restore", "Restore Item Operations:  ", "getting operation info",
                   "status__restoreItemOperations__error")
        rows = {"BackupVolumeInfos": (), "BackupVolumeSnapshots": native, "CSIBackupVolumeSnapshots": csi,
                "CSIBackupVolumeSnapshotContents": csi, "RestoreItemOperations": restore}
        attempted = ("volumeSnapshotsAttempted", "csiVolumeSnapshotsAttempted", "restoreItemOperationsAttempted")
        for missing, (kind, title, what, place) in list(rows.items())[1:]:
            screen = described(document(kind, status=dict.fromkeys(attempted, 1)), {
                **dict.fromkeys(rows, []), "BackupVolumeInfos": GONE, missing: GONE}, details=True)
            text = f"<error {what}: file not found>"
            self.check(screen, f"{title}{text}\n", troubles=[GONE], **{place: text})

    def test_a_missing_bucket_or_owner_is_no_missing_artifact(self):
        """So that a restore whose backup is gone does not look like one of an older server."""
        for error in (vr.NotFound("no backup", reason="BackupNotFound"),
                      vr.StoreError("no bucket", status=404, reason="BucketNotFound")):
            self.check(described(document("Restore"), {"RestoreVolumeInfo": error}), troubles=[error], *[
                f"\n\nCSI Snapshot Restores: <error getting restore volume info: {error}>\n"])
        unknown = vr.NotFound("the cluster does not know the kind", reason="UnknownKind")
        self.assertEqual(*(described(document("Restore"), {"RestoreVolumeInfo": error}).text
                           for error in (unknown, GONE)))

    def test_json_of_a_restore(self):
        """velero has none: ours has the shape of a backup's."""
        spec = {
            "backupName": "b", "namespaceMapping": {"x": "y"}, "resourceModifier": {"kind": "configmap", "name": "m"},
            "uploaderConfig": {"parallelFilesDownload": 2, "writeSparseFiles": True}, "includedNamespaces": ["n"],
            "orLabelSelectors": [{"matchLabels": {"c": "d"}}, {"matchLabels": {"e": "f"}}], "restorePVs": False,
            "existingResourcePolicy": "update", "includeClusterResources": True, "preserveNodePorts": True,
            "itemOperationTimeout": "4h"}
        status = {
            "phase": "InProgress", "progress": {"totalItems": 5, "itemsRestored": 1}, "errors": 1,
            "startTimestamp": "2026-05-01T11:00:00Z", "hookStatus": {"hooksAttempted": 2, "hooksFailed": 1},
            "restoreItemOperationsAttempted": 1, "restoreItemOperationsFailed": 1}
        subject = document("Restore", "one", {"deletionTimestamp": "2026-05-01T12:00:00Z", "labels": {"a": "b"}},
                           spec=spec, status=status)
        infos = [{"restoreMethod": "CSISnapshot", "pvcNamespace": "n", "pvcName": "c", "snapshotDataMoved": moved,
                  "csiSnapshotInfo": {"vscName": "v", "snapshotHandle": "h", "driver": "d"},
                  "snapshotDataMovementInfo": {"operationID": "o", "dataMover": "", "uploaderType": "kopia"}}
                 for moved in (True, False)] + [{"restoreMethod": "PodVolumeRestore"}]
        item = {"Group": "apps", "Resource": "deployments", "Namespace": "n", "Name": "d"}
        operation = {"spec": {"restoreItemAction": "x/y", "operationID": "7", "resourceIdentifier": item}, "status": {
            "phase": "Failed", "error": "no", "nTotal": 4, "operationUnits": "Bytes",
            "created": status["startTimestamp"]}}
        artifacts = {"RestoreVolumeInfo": infos, "RestoreResults": {"errors": {"namespaces": {"n": ["e"]}}},
                     "RestoreResourceList": {"v1/Pod": ["n/p(created)"]}, "RestoreItemOperations": [operation, {}]}
        self.assertEqual(described(subject, artifacts, details=True).json, {
            "metadata": {"name": "one", "namespace": "velero", "labels": {"a": "b"}, "annotations": None},
            "phase": "InProgress", "deleting": True, "warnings": {},
            "errors": {"velero": [], "cluster": [], "namespace": {"n": ["e"]}},
            "spec": {
                "backup": "b", "namespaces": {"included": "n", "excluded": "<none>"},
                "resources": {"included": "*", "excluded": "<none>", "clusterScoped": "included"},
                "namespaceMappings": {"x": "y"}, "labelSelector": "<none>", "orLabelSelector": "c=d or e=f",
                "restorePVs": "false", "existingResourcePolicy": "update", "itemOperationTimeout": "4h0m0s",
                "preserveServiceNodePorts": "true", "resourceModifier": {"type": "configmap", "name": "m"},
                "uploaderConfig": {"writeSparseFiles": "true", "parallelFilesDownload": 2}},
            "status": {
                "estimatedTotalItemsToBeRestored": 5, "itemsRestoredSoFar": 1,
                "started": "2026-05-01 11:00:00 +0000 UTC", "completed": "<n/a>",
                "podVolumeRestores": "<none included>", "hooksAttempted": 2, "hooksFailed": 1,
                "csiSnapshotRestores": {"n/c": {
                    "snapshot": {"snapshotContentName": "v", "storageSnapshotID": "h", "csiDriver": "d"},
                    "dataMovement": {"operationID": "o", "dataMover": "", "uploaderType": "kopia"}}},
                "restoreItemOperations": {"attempted": 1, "completed": 0, "failed": 1, "operations": [
                    {"resource": "deployments.apps n/d", "plugin": "x/y", "operationID": "7", "phase": "Failed",
                     "error": "no", "progress": "0 of 4 complete (Bytes)",
                     "created": "2026-05-01 11:00:00 +0000 UTC"},
                    {"resource": " /", "operationID": "", "phase": ""}]},
                "resourceList": {"v1/Pod": ["n/p(created)"]}}})

    def test_a_list_that_failed(self):
        refusal = vr.ApiError("not allowed to {list} > it", status=403)
        related = dict.fromkeys(LISTS, refusal)
        backup, restore = (described(document(kind), related=related) for kind in ("Backup", "Restore"))
        volumes, deletions, restores = (f"<error getting {what}: not allowed to {{list}} > it>" for what in (
            "pod volume backups", "deletion attempts", "pod volume restores"))
        self.assertTrue(backup.text.endswith(f"\n  Pod Volume Backups: {volumes}\n\nDeletion Attempts: {deletions}\n"))
        self.assertEqual((backup.troubles, backup.json["deletionAttempts"]["error"],
                          backup.json["status"]["backupVolumes"]["podVolumeBackups"]), ([refusal], deletions, volumes))
        self.assertIn(f"\n\nPod Volume Restores: {restores}\n\nCSI", restore.text)
        self.assertEqual(restore.json["status"]["podVolumeRestores"], restores)

    def test_artifacts_of_another_shape(self):
        infos = [{"backupMethod": method, "pvName": 5, "preserveLocalSnapshot": True}
                 for method in ("NativeSnapshot", "CSISnapshot")]
        screen = described(document("Backup", status={"errors": 1, "backupItemOperationsAttempted": 1}), {
            "BackupResults": [], "BackupItemOperations": {"a": 1}, "BackupResourceList": {"v1/Pod": "x"},
            "BackupVolumeInfos": infos}, details=True)
        for before, wrong in (
                ("Errors:  <error getting errors", "BackupResults must be a mapping"),
                ("Operations:  <error getting operation info", "BackupItemOperations must be a list"),
                ("List:           <error getting backup resource list", "BackupResourceList.v1/Pod must be a list"),
                ("  Velero-Native Snapshots: <error concluding native snapshot info",
                 "BackupVolumeInfos[0].pvName must be a string")):
            self.assertIn(f"{before}: this is not what Velero writes: {wrong}>\n", screen.text)
        self.assertTrue(screen.text.endswith("\n        Result: \n\n  Pod Volume Backups: <none included>\n"))
        self.assertEqual([trouble.exit for trouble in screen.troubles], [1] * 4)

    def test_fields_of_the_wrong_type(self):
        """Are listed in a section of their own, the first ten of them."""
        for count, more in ((1, ""), (10, " (and 9 more)"), (11, " (and 10 more)")):
            screen = described(document("Backup", spec={"includedNamespaces": [1] * count}))
            told, troubles = screen.json["unreadable"], [str(trouble) for trouble in screen.troubles]
            self.assertEqual((told, troubles), (
                [f"spec.includedNamespaces[{number}] must be a string" for number in range(min(count, 10))],
                [f"Backup one: {told[0]}{more}"]))
            self.assertIn("\n\nUnreadable:  spec.includedNamespaces[0] must be a string\n", screen.text)
        related = {vr.DELETE_REQUESTS: [{"metadata": {"name": "d"}, "status": {"errors": "x"}}]}
        for kind, wrong in (("Backup", ["DeleteBackupRequest d.status.errors must be a list"]), ("Restore", [])):
            subject = document(kind, spec={"includedResources": "web"}, status={"phase": 1})
            self.assertEqual(sorted(described(subject, related=related).json["unreadable"]), [
                *wrong, "spec.includedResources must be a list", "status.phase must be a string"])

    def test_documents_that_are_none(self):
        """Even those have a screen; without spec and status it is that of an empty one."""
        for resource in (vr.BACKUPS, vr.RESTORES):
            for junk in (None, [], "x", {"metadata": [], "spec": 1, "status": "x"}):
                screen = described(junk, related=dict.fromkeys(LISTS, [junk]), resource=resource)
                self.assertIn("\nPhase:  New\n", screen.text)
                self.assertTrue(vr.json_text(screen.json))
            bare = {"kind": resource.kind, "metadata": {"name": "one", "namespace": "velero"}}
            self.assertEqual(described(bare).text, described(document(resource.kind)).text)

    def test_nothing_that_strangers_write_breaks_a_column_or_drives_a_terminal(self):
        """Nor do a hundred thousand tabs make as many columns."""
        for evil in ("a\tb\x1b[2J\nc", "\t" * 100_000):
            subject = document("Backup", evil, metadata={"labels": {evil: evil}}, spec={
                "storageLocation": evil, "orderedResources": {evil: evil}, "hooks": {"resources": [{"name": evil}]}},
                status={"phase": evil, "validationErrors": [evil], "errors": 1})
            artifacts = {"BackupResults": {"errors": {"namespaces": {evil: [evil]}}},
                         "BackupResourceList": {evil: [evil]},
                         "BackupVolumeInfos": [{"backupMethod": "NativeSnapshot", "pvName": evil}]}
            volume = {"spec": {"pod": {"name": evil}, "volume": evil, "uploaderType": evil}, "status": {"phase": evil}}
            related = {vr.POD_VOLUME_BACKUPS: [volume],
                       vr.DELETE_REQUESTS: [{"status": {"phase": evil, "errors": [evil]}}]}
            for details in (False, True):
                self.assertFalse(set(described(subject, artifacts, related, details=details).text) & set("\t\x1b"))


# ---- Golden: what the real velero CLI prints, case by case -------------------

NO_GOLDEN = "VELERO_GOLDEN names no folder, so nothing was compared with the real velero CLI"
GOLDEN_BUCKET = "backups-bucket"
GOLDEN_KINDS = ("PodVolumeBackup", "PodVolumeRestore", "DeleteBackupRequest")  # only describe reads them


class GoldenLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose times stay text."""
    yaml_implicit_resolvers = {first: [row for row in rows if not row[0].endswith(":timestamp")] for first, rows
                               in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class GoldenCase:
    """One recorded call of the real CLI; its group is the kind of call, such as `backup-get`."""

    def __init__(self, release: str, name: str) -> None:
        texts = []
        for file_name in ("input.yaml", "command.txt", "stdout.txt", "exit.txt"):
            path = os.path.join(os.environ["VELERO_GOLDEN"], release, name, file_name)
            with open(path, encoding="utf-8", newline="") as file:
                texts.append(file.read())
        self.path, self.about = f"{release}/{name}", yaml.load(texts[0], GoldenLoader)
        self.names = (f"{name}*", name if release == "1.18.1" else self.path)  # in the table of differences
        self.group = "-".join(name.split("-")[:1 if name.startswith(("version", "usage")) else 2])
        self.argv, self.out, self.code = shlex.split(texts[1]), texts[2], int(texts[3])
        self.structured = not self.code and bool({"json", "yaml"}.intersection(re.split("[ =]", " ".join(self.argv))))

    def difference(self) -> Tuple[str, int, bool]:
        """How we differ from velero: why, our exit code, and whether the text differs."""
        other_layout = not (self.code or self.structured) and self.out and self.path.startswith((
            "1.6.3/backup-get", "1.6.3/backup-describe", "1.6.3/restore-describe", "1.6.3/restore-get-phases"))
        found = [DIFFERENCES[name] for name in self.names if name in DIFFERENCES]
        return found[0] if found else OTHER_LAYOUT if other_layout else ("", self.code, False)

    def equals(self, out: str) -> bool:
        """Whether our output is velero's: text letter by letter, JSON and YAML by their content."""
        if self.about.get("compare") == "exit" or out == self.out:
            return True
        if self.about.get("unordered"):
            return sorted(out.splitlines()) == sorted(self.out.splitlines())
        return self.structured and mapped(yaml.load(out, GoldenLoader)) == mapped(yaml.load(self.out, GoldenLoader))


# -- where we differ, and why: the README says the same -----------------------------------------------------

OTHER_LAYOUT = ("the screens and tables are 1.18's, whatever the release of the server", 0, True)
FINER = ("velero's every failure is 1; ours say which kind: 2 usage, 3 does not exist, 4 no answer, 5 not allowed, "
         "6 unreachable")
ZERO = "velero ends with 0 although something could not be had"
NO_ANSWER = "no answer is a failure, with its reason on stderr"
OWN_WORDS = "the reason is in our words, which name the artifact, and what can be shown besides is shown; " + ZERO
# Of 1.18.1 unless the name says 1.6.3; a star stands for both.
DIFFERENCES = {name: (why, code, text) for why, code, text, names in (
    (FINER, 2, False, """
        backup-get-invalid-format* backup-describe-invalid-format usage-bad-duration* usage-flag-without-value*
        usage-restore-logs-no-argument* usage-unknown-command* usage-unknown-flag* usage-unknown-short-flag*"""),
    ("an unknown subcommand is a usage error, not help and 0", 2, False, """
        usage-unknown-subcommand-backup* usage-unknown-subcommand-plugin*"""),
    (FINER, 3, False, """
        backup-get-missing* backup-get-one-missing* backup-describe-one-missing backup-logs-missing*
        1.6.3/backup-download-missing backup-download-in-progress backup-logs-no-location restore-logs-no-backup
        restore-logs-no-file*"""),
    (FINER, 5, False, "backup-get-forbidden* backup-describe-forbidden restore-logs-forbidden"),
    (FINER, 6, False, "usage-api-server-down* backup-logs-store-down"),
    (NO_ANSWER, 4, True, "plugin-get-no-answer version-no-answer*"),
    (NO_ANSWER, 4, False, "1.6.3/plugin-get-no-answer"),
    ("we have no release of Velero, so a newer or older server is nothing to warn of", 0, True,
     "version-development* version-newer-server*"),
    ("names of any length work, for the API completes the request's name", 0, True, "backup-logs-huge-name"),
    ("velero crashes on a backup without an expiration", 0, False, "backup-describe-phase-new-json"),
    ("several -L add up, as their help says", 0, True, "backup-get-label-columns"),
    ("an object is printed as it is, without Go's zero values", 0, True, "backup-get-yaml-sparse*"),
    ("an object is printed as it is, its phase too", 0, True, "restore-get-yaml-being-deleted"),
    ("colors are for terminals, unless --colorized asks for them", 0, True, "backup-describe-color-default"),
    ("a line break in a value does not break the columns", 0, True, "backup-describe-annotation-newline"),
    ("every phase is counted, Canceling too", 0, True, "restore-describe-pod-canceling"),
    (ZERO, 3, False, """
        backup-describe-operations-missing restore-describe-operations-missing restore-describe-backup-gone"""),
    (OWN_WORDS, 3, True, """
        backup-describe-volumes-legacy-csi-missing 1.6.3/backup-describe-snapshots
        backup-describe-volumes-legacy-native-missing-json-details 1.6.3/backup-describe-snapshots-missing"""),
    (OWN_WORDS, 1, True, """
        backup-describe-list-broken backup-describe-results-not-gzip backup-describe-results-not-gzip-json
        backup-describe-results-not-json-json backup-describe-volumes-broken backup-describe-volumes-broken-json"""))
    for name in names.split()}


# -- the same as in the README of the golden cases -----------------------------------------------------------

GOLDEN_TIMES = ("YYYY-MM-DDThh:mm:ssZ", "YYYY-MM-DD hh:mm:ss +0000 UTC")
GOLDEN_RULES = (
    (r"https?://127\.0\.0\.1:\d+[^\s\"'\\<>]*", "<URL>"), (r"127\.0\.0\.1:\d+", "<ADDRESS>"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<UUID>"),
    (r"velero-cli-[a-z0-9]{5,8}\b", "velero-cli-<RANDOM>"),
    (r"(\"?resourceVersion\"?: )\"\d+\"", r'\1"<RESOURCE_VERSION>"'), (r"(\"?generation\"?: )\d+", r"\1<GENERATION>"),
    (r"Git commit: .*", "Git commit: <COMMIT>"), (r"(Client:\n\tVersion: ).*", r"\1<CLIENT_VERSION>"))


def mapped(value: Any, change: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """A document whose leaves are changed, without its blocks named managedFields."""
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items() if name != "managedFields"}
    return [mapped(item, change) for item in value] if isinstance(value, list) else change(value)


def golden_text(text: str, began: datetime, folder: str) -> str:
    """Our output with all that varies replaced."""
    first, last = began - timedelta(seconds=2), datetime.now(timezone.utc) + timedelta(seconds=2)
    for placeholder in GOLDEN_TIMES:
        for found in set(re.findall(re.sub("[YMDhms]", r"\\d", placeholder.replace("+", r"\+")), text)):
            if first <= datetime.fromisoformat(f"{found[:19]}+00:00") <= last:
                text = text.replace(found, placeholder)
    text = text.replace(folder, "<CWD>")
    for rule, replacement in GOLDEN_RULES:
        text = re.sub(rule, replacement, text)
    return text


def golden_body(artifact: Document) -> bytes:
    if "raw" in artifact:
        return str(artifact["raw"]).encode()
    if "tar" in artifact:
        return tar_of({path: text.encode() for path, text in artifact["tar"].items()})
    return gzip.compress((json.dumps(artifact["json"]) if "json" in artifact else artifact["text"]).encode())


class GoldenWorld(World):
    """A cluster with the CRDs of one release, in which each case is set up and taken down."""
    release, root = "", "/apis/velero.io/v1/namespaces/velero"

    @classmethod
    def crds(cls) -> List[Document]:
        """Those of the release, and open ones for the kinds that only describe reads."""
        if not os.environ.get("VELERO_GOLDEN"):
            raise SkipTest(NO_GOLDEN)
        crds = vr.crd_manifests(cls.status_subresource)
        return crds + [json.loads(json.dumps(crds[0]).replace("Backup", kind).replace("backup", kind.lower()))
                       for kind in GOLDEN_KINDS]

    def seed(self) -> None:
        self.namespace = self.cluster.new_namespace("velero")
        self.addCleanup(self.cluster.clear, "velero")
        self.cluster.clear("velero")
        self.make_secret("cloud")
        self.make_secret("cloud-credentials", key="cloud")
        self.make_location("default", bucket=GOLDEN_BUCKET)
        self.store.create_bucket(GOLDEN_BUCKET)
        self.users = {user: self.cluster.kubeconfig(self.folder, user) for user in ("admin", "limited")}

    def load(self, case: GoldenCase, began: datetime, end: ExitStack) -> None:
        """Create the objects and artifacts of a case until `end`, with NOW, UID(...) and S3_URL replaced."""
        uids: Dict[str, str] = {}

        def filled(value: Any) -> Any:
            text = str(value)
            if re.match("NOW([-+]|$)", text):  # with an offset such as +29d12h
                offset = re.sub(r"(\d+)d", lambda days: f"{24 * int(days[1])}h", text[3:] or "0")
                return vr.format_time(began + timedelta(seconds=vr.parse_duration(offset)))
            return uids[text[4:-1]] if text.startswith("UID(") else self.store.url if text == "S3_URL" else value
        for document in mapped(case.about.get("objects") or []):
            kind, metadata = document["kind"], document["metadata"]
            if kind not in ("Backup", "Restore", "BackupStorageLocation", *GOLDEN_KINDS):
                continue  # live snapshots of another group, which only 1.6.3 looks at
            doomed, collection = metadata.pop("deletionTimestamp", None), f"{self.root}/{kind.lower()}s"
            path = f"{collection}/{metadata['name']}"
            stored = self.admin.call("POST", collection, mapped(document, filled))
            uids[f"{kind}/{metadata['name']}"] = stored["metadata"]["uid"]
            end.callback(self.admin.raw, "DELETE", path)
            end.callback(self.admin.raw, "PATCH", path, {"metadata": {"finalizers": None}},
                         "application/merge-patch+json")
            if doomed:
                self.admin.call("DELETE", path)
        for key, artifact in (case.about.get("artifacts") or {}).items():
            self.store.put(GOLDEN_BUCKET, key, golden_body(artifact))
            end.callback(*((self.store.buckets[GOLDEN_BUCKET].pop, key) if self.store.kind == "fake" else
                           (os.unlink, os.path.join(self.store.data, GOLDEN_BUCKET, key))))

    def answer(self, case: GoldenCase, end: ExitStack) -> None:
        """Let our controller answer until `end`, as the case's server would; for a status only if it has one."""
        server = case.about.get("server") or {}
        if server or case.group not in ("plugin-get", "version"):
            plugins = tuple((row["kind"], row["name"]) for row in server.get("plugins") or ())
            controller = vr.Controller(vr.connect(vr.load_cluster(self.users["admin"])), "velero",
                                       vr.Server(server.get("serverVersion", ""), plugins))
            thread = threading.Thread(target=vr.run_controller, args=(controller,), daemon=True)
            thread.start()
            end.callback(self.halt, controller, thread)

    def place(self, case: GoldenCase, end: ExitStack) -> str:
        """Stand until `end` in an empty folder with an empty home, with the files and variables of the case."""
        base = tempfile.mkdtemp(dir=self.folder)
        for name in ("files", "home"):
            os.mkdir(os.path.join(base, name))
            for path, text in (case.about.get(name) or {}).items():
                write_bytes(os.path.join(base, name, path), text.encode())
        end.callback(time.tzset)
        end.callback(os.chdir, os.getcwd())
        end.enter_context(environment({
            "TZ": "UTC", "NO_COLOR": "1", "HOME": os.path.join(base, "home"),
            "KUBECONFIG": self.users[case.about.get("user", "admin")], **(case.about.get("env") or {})}))
        os.chdir(os.path.join(base, "files"))
        time.tzset()
        return os.path.join(base, "files")

    def compare(self, case: GoldenCase) -> None:
        began = datetime.now(timezone.utc).replace(microsecond=0)
        with ExitStack() as end:
            self.load(case, began, end)
            self.answer(case, end)
            folder = self.place(case, end)
            result = run("-n", "velero", *case.argv)
            out = golden_text(result.out.decode(), began, folder)
        left = self.admin.call("GET", f"{self.root}/downloadrequests")["items"]
        self.assertEqual((left, "Traceback" in result.err), ([], False), result.err)
        same, (why, code, text) = case.equals(out), case.difference()
        self.assertFalse(why and (code, text) == (case.code, False), f"listed as a difference ({why}) that is none")
        shown = "" if same else "".join(difflib.unified_diff(
            case.out.splitlines(True), out.splitlines(True), "velero", "ours"))
        self.assertEqual((result.code, same), (code, not text), f"{shlex.join(case.argv)}\n{shown}{result.err}")

    def cases(self) -> List[GoldenCase]:
        return [GoldenCase(self.release, name)
                for name in sorted(os.listdir(os.path.join(os.environ["VELERO_GOLDEN"], self.release)))]

    def check(self, cases: List[GoldenCase], fewest: int = 1) -> None:
        self.assertGreaterEqual(len(cases), fewest)
        for case in cases:
            with self.subTest(case=case.path):
                self.compare(case)


class GoldenTests(GoldenWorld):
    def test_backup_describe(self):
        self.check([case for case in self.cases() if case.group == "backup-describe"])

    def test_others(self):
        """All others; and every difference has a case."""
        cases = self.cases()
        unmet = set(DIFFERENCES) - {name for case in cases for name in case.names}
        self.assertFalse([name for name in unmet if name[-1] == "*" or ("1.6.3/" in name) is self.status_subresource])
        self.check([case for case in cases if case.group != "backup-describe"])


class TestGoldenFakeNew(GoldenTests, FakeWorld, TestCase):
    release = "1.18.1"


class TestGoldenFakeOld(GoldenTests, FakeWorld, TestCase):
    release, status_subresource = "1.6.3", True


class TestGoldenReal(GoldenWorld, RealWorld, TestCase):
    release = "1.18.1"

    def test_sample(self):
        """Every fifth case of each group, but those that nobody answers or that ask no server."""
        cases = [case for case in self.cases() if case.group != "usage" and "--timeout" not in case.argv]
        groups = ([case for case in cases if case.group == group] for group in {case.group for case in cases})
        self.check([case for group in groups for case in group[::5]], 40)


# ---- Screens where the golden cases have nothing to say ----------------------

class TestDescribing(FakeWorld, TestCase):
    def shown(self, *words: str, code: int = 0) -> Any:
        result = self.cli(*words)
        self.assertEqual(result.code, code, result.err)
        return result

    def test_nobody_answers(self):
        """The screen is there, each section says what it lacks, the code is 4, and no request is left."""
        result = self.shown("backup", "describe", "b1", "--details", "--timeout", "200ms", code=4)
        self.assertIn(b"Resource List:  <error getting backup resource list: nobody answered", result.out)
        self.assertIn("hint: there is no Deployment velero", result.err)
        self.assertEqual(self.names(), [])

    def test_interrupted(self):
        program = self.program("backup", "describe", "b1", "--details")
        wait_until(lambda: len(self.names()) == 2, 30, "two requests")
        result = program.end(signal.SIGINT, seconds=5)
        self.assertEqual((result.code, result.out, self.names()), (130, b"", []), result.err)

    def test_too_large(self):
        """A resource list that fits no memory is said in its section, and the rest is shown."""
        body = b'{"v1/Pod": [' + b'"web/a-pod-of-many",' * (vr.JSON_LIMIT // 20 + 1) + b'"web/last"]}'
        self.store.put(self.namespace, "backups/b1/b1-resource-list.json.gz", gzip.compress(body, 1))
        self.serve()
        result = self.shown("backup", "describe", "b1", "--details", code=1)
        self.assertRegex(result.out, b"(?s)it is larger than 16 MiB.*Backup Volumes:")

    def test_json_that_velero_has_not(self):
        """Of several backups, for which velero prints text whatever -o says, and of a restore."""
        self.make_backup("b2")
        self.put()
        self.serve()
        backups = json.loads(self.shown("backup", "describe", "b2", "b1", "-o", "json").out)
        self.assertEqual([row["metadata"]["name"] for row in backups], ["b2", "b1"])
        restore = json.loads(self.shown("describe", "restore", "r1", "-o", "json").out)
        self.assertEqual(restore["spec"]["backup"], "b1")


COMMON_FLAGS = "--colorized --context --help --kubeconfig --kubecontext --namespace --timeout --verbose --version -n -v"
OFFERED = {  # what is typed after the program's name -> what may stand in place of its last word, or after its "="
    "": "backup completion controller describe doctor download get logs ls manifests plugin restore show version",
    "ba": "backup", "-": COMMON_FLAGS, "backup ": "describe download get logs ls show", "backup d": "describe download",
    "backup -": COMMON_FLAGS, "backup get --s": "--selector --show-labels",
    "backup describe nightly-2024 --time": "--timeout", "backup get -o ": "json table yaml",
    "backup get --output=j": "json", "backup get --output = j": "json", "backup get --output =": "json table yaml",
    "download b1 --kind RestoreLo": "RestoreLog", "download b1 -o my": "", "restore get --kubeconfig=my": "",
    "backup -vn ": "", "backup get --idle-timeout 30s -o json --sh": "--show-labels",
    "get ": "backup backups plugin plugins restore restores", "get backups --sh": "--show-labels",
    "logs backup nightly-2024 --dir": "--direct", "backup logs b1 --quiet --ver": "--verbose --version",
    "-n velero backup get --sh": "--show-labels", "backup -n velero l": "logs ls",
    "-v --colorized restore d": "describe", "--context get backup ": "describe download get logs ls show",
    "plugin get ": f"{COMMON_FLAGS} --output -o", "nonsense ": "", "manifests c": "client controller crds",
    "completion ": "bash fish zsh", "manifests crds c": "", "completion bash ": COMMON_FLAGS}
TYPED = {**{line: OFFERED[line] for line in ("", "backup get -o ", "backup get --output=j")},
         "download b1 -o my": "my-file", "restore get --kubeconfig=my": "my-file",
         "backup -n velero logs --dir": "--direct"}
PROGRAMS = ("velero_requests.py", "./velero_requests.py", "~/velero_requests.py")


class TestCompletion(FolderCase):
    def setUp(self):
        """Lay a file that can be offered, and in place of the program one that writes down what it is called with."""
        super().setUp()
        program = (f"#!/bin/sh\n[ \"$1\" != __complete ] || exec {sys.executable} {MODULE} \"$@\"\n"
                   "printf '%s\\n' \"$*\" >>typed\n")
        for name, text in (("my-file", ""), ("velero_requests.py", program)):
            os.chmod(write_bytes(self.at(name), text.encode()), 0o755)

    def script(self, shell: str, name: str = "script") -> str:
        return write_bytes(self.at(name), run("completion", shell).out)

    def shell(self, *argv: str) -> Tuple[str, ...]:
        """The command that runs a shell without anybody's settings."""
        return ("env", "-i", f"PATH={self.folder}:{os.environ['PATH']}", f"HOME={self.folder}", "TERM=dumb", "LC_ALL=C",
                f"ZDOTDIR={self.folder}", "INPUTRC=/dev/null", *argv)

    def same(self, found: List[str], offered: str, *about: Any) -> None:
        """Compare what is offered, in whatever order, and whether or not a shell says `--flag=` again."""
        self.assertEqual(sorted(word.rpartition("=")[2] for word in found), sorted(offered.split()), about)

    def check(self, setting: str, *argv: str) -> None:
        """Type lines in a shell that inserts all it offers, run them, and compare what they are called with."""
        write_bytes(self.at(".zshrc"), f"{setting}\nPS1=READY\n".encode())
        terminal = Terminal(self.folder, program=self.shell(*argv))
        self.addCleanup(terminal.kill)
        wait_until(lambda: "READY" in terminal.text(), what="the prompt")
        typed = "".join(f"{program} {line}\x18\x18\n" for program, line in zip(itertools.cycle(PROGRAMS), TYPED))
        terminal.type(typed.encode() + b"exit\n")
        _, text = terminal.end(60)
        called = read_bytes(self.at("typed")).decode().splitlines()
        os.remove(self.at("typed"))
        self.assertEqual(len(called), len(TYPED), text)
        for line, words in zip(TYPED, map(str.split, called)):
            count = line.count(" ")  # of words that are finished
            self.assertEqual(words[:count], line.split(" ")[:count], setting)
            self.same(words[count:], TYPED[line], setting, line)

    def test_what_is_offered(self):
        for line, offered in OFFERED.items():
            result = run("__complete", *line.split(" "))
            self.assertEqual((0, ""), (result.code, result.err), line)
            self.same(result.out.decode().split(), offered, line)

    @skipUnless(shutil.which("bash"), "there is no bash, so its completion was not tried")
    def test_bash(self):
        for setting in ("", "set -u; IFS=-; shopt -s nocaseglob nocasematch failglob", "set -o posix"):
            self.check(f"bind '\"\\C-x\\C-x\": insert-completions'\n{setting}\n. {self.script('bash')}",
                       "bash", "--noprofile", "--rcfile", ".zshrc", "-i")

    @skipUnless(shutil.which("zsh"), "there is no zsh, so its completion was not tried")
    def test_zsh(self):
        """The script may also lie where zsh finds it when it is needed."""
        insert_all = ("zstyle ':completion:*' completer _all_matches _complete\nzstyle ':completion:*' insert true\n"
                      "bindkey '^X^X' complete-word\nautoload -Uz compinit\ncompinit -u -D\n")
        for setting in (f"{insert_all}setopt ksharrays shwordsplit nounset\n. {self.script('zsh')}",
                        f"fpath=({os.path.dirname(self.script('zsh', '_velero_requests'))} $fpath)\n{insert_all}"):
            self.check(setting, "zsh", "-d", "-i")

    @skipUnless(shutil.which("fish"), "there is no fish, so its completion was not tried")
    def test_fish(self):
        ask = "source $argv[1]; for line in $argv[2..-1]; complete -C $line | string split -f 1 \\t; echo .; end"
        for program in PROGRAMS:
            command = self.shell("fish", "-c", ask, self.script("fish"), *(f"{program} {line}" for line in TYPED))
            done = subprocess.run(command, cwd=self.folder, stdout=PIPE, check=True, timeout=60)
            for (line, offered), found in zip(TYPED.items(), done.stdout.decode().split(".\n")):
                self.same(found.split(), offered, program, line)


class TestCompletionOfNames(FakeWorld, TestCase):
    def offers(self, names: str, *words: str) -> None:
        """Check the words that are offered, within two seconds and without a word on stderr."""
        with within(2):
            result = run("__complete", "--kubeconfig", self.kubeconfig, "-n", self.namespace, *words)
        self.assertEqual((0, names, ""), (result.code, " ".join(result.out.decode().split()), result.err), words)

    def test_names(self):
        """Of backups or restores, whichever the command is about, in the namespace and cluster that the line names."""
        self.make_backup("nightly")
        for words, names in (("backup logs ", "b1 nightly"), ("backup describe b1 n", "nightly"),
                             ("get restores ", "r1"), ("download --kind RestoreLog ", "r1"), ("backup logs x", ""),
                             ("download ", "b1 nightly"), ("backup logs --help n", "nightly"),
                             ("--kubeconfig /dev/null backup logs ", "")):
            self.offers(names, *words.split(" "))
        odd = [{"metadata": {"name": name}} for name in ("nice", "n$(id)", "n;x", "n y", "", None)]
        for fault, names in (({"status": 200, "body": {"items": odd}}, "nice"), ({"hang": SILENT}, ""),
                             ({"status": 403, "body": {"kind": "Status", "message": "no"}}, "")):
            self.cluster.unscript()
            self.cluster.script("GET", "/backups", **fault)
            self.offers(names, "backup", "logs", "n")


class TestWaiting(FakeWorld, TestCase):
    def test_it_is_deleted_or_nobody_answers(self):
        """Polling backs off from 25 ms to a second between two looks, with one at the end of the time."""
        self.cluster.grant("reader", {"apiGroups": ["velero.io"], "resources": [DR],
                                      "verbs": ["create", "get"]}, namespace=self.namespace)
        for user in ("reader", "admin"):  # which may watch
            self.kubeconfig = self.cluster.kubeconfig(self.folder, user)
            program = self.program("backup", "logs", "b1", "--timeout", "20s")
            name, = wait_until(self.names, 15, "the request")
            self.admin.delete(DR, name, self.namespace)
            self.assert_failed(program.end(), 1, f"{name} was deleted by somebody else before it was answered")
        self.cluster.forget()
        result = self.cli("backup", "logs", "b1", "--timeout", "2s", user="reader")
        self.assert_failed(result, 4)
        self.assertIn("hint: the reason cannot be seen with your rights", result.err)
        self.assertIn(self.cluster.count("GET", "/downloadrequests/"), range(5, 10))

    def test_why_nobody_answers(self):
        """Hints tell what is wrong with server and location, as far as the caller's rights let it be seen."""
        self.fill("default", BSL, phase="Unavailable", message="no such bucket")
        self.make_backup("lost", "gone")
        self.cluster.grant("limited", {"apiGroups": ["velero.io"], "resources": ["*"], "verbs": ["create", "get"]},
                           namespace=self.namespace)
        for name, user, hint in (
                ("b1", "admin", "there is no Deployment velero in namespace "),
                ("b1", "limited", "storage location 'default' is not available: no such bucket: see "),
                ("lost", "limited", "BackupStorageLocation .*/gone does not exist; backup 'lost' asks for it")):
            result = self.cli("backup", "logs", name, "--timeout", "100ms", user=user)
            self.assertRegex(result.err, f"\nhint: {hint}(.*\n)+hint: --direct needs no controller")


# ---- Logs of pods: lines that are chosen, and how they are followed -----------

LINES = (  # lines of Velero's log, and whether they are about backup velero/nightly
    (b'time="2026-05-04T12:00:00Z" level=info msg=x backup=velero/nightly logSource="a.go:1"', True),
    (b'time="2026-05-04T12:00:00Z" level=info msg="a \\" backup=x" backup=velero/nightly', True),
    (b'level=info backup="velero/nightly" msg="half a \xff character"', True), (b"backup=velero/nightly", True),
    (b"a=b=c d= backup=velero/nightly e=f", True), (b'msg="two\\nlines" backup=velero/nightly', True),
    (b'msg="backup=velero/nightly"', False), (b'msg="a \\" backup=velero/nightly "', False),
    (b'msg="a \\\\\\" backup=velero/nightly x', False), (b"backup=velero/nightly-2", False), (b"", False),
    (b"backup=velero/nightly.x", False), (b"backup=velero/nightl", False), (b"backup=velero2/nightly", False),
    (b"backup=nightly namespace=velero", False), (b"backup=shop/nightly namespace=velero", False),
    (b"restore=velero/nightly", False), (b"podVolumeBackup=velero/nightly", False), (b"x backup=velero/nightly", False),
    (b"goroutine 1 [running]: velero/nightly", False), (b'backup="velero/nightly', False),
    (b'{"backup":"velero/nightly","msg":"x"}', True), (b'{"msg":"x","backup":"velero\\/nightly"}', True),
    (b'{"backup":{"Namespace":"velero","Name":"nightly"}}', True), (b'{"backup":["velero/nightly"]}', False),
    (b'{"a":{"backup":"velero/nightly"}}', False), (b'{"backup":"velero/nightly"', False),
    (b'{"backup":"velero/nightly-2"}', False), (b'{"restore":"velero/nightly"}', False),
    (b'{"msg":"{\\"backup\\":\\"velero/nightly\\"}"}', False), (b"{" * 9000 + b"nightly", False))


class TestLogLines(Cases):
    def test_which_are_chosen(self):
        """By a whole field, in text and JSON; whatever stands in a message, and names that only begin alike, do not."""
        self.gives(partial(vr.is_about, a_key(vr.BACKUPS, "nightly")), *LINES)
        self.gives(partial(vr.is_about, a_key(vr.RESTORES, "a.b")), (b"restore=velero/a.b", True),
                   (b"backup=velero/a.b", False), (b"restore=velero/axb", False), (b'{"restore":"velero/a.b"}', True))

    def test_where_it_goes_on(self):
        """However a log is cut and read again from a whole second on, each line is given once, equal times or not."""
        times = "05.1 05.1 05.1 05.100000001 05.1000000012 05.2 06 06 06.000000001 07.5 07.5".split()
        for end, size in product(("Z", "+02:00"), (1, 3, 500)):
            log = [f"2026-05-04T12:00:{time}{end} line {number}".encode() for number, time in enumerate(times)]
            position, given = vr.LogPosition(LONG_AGO), []
            for cut in range(len(log) + 1):
                whole = b"".join(line + b"\n" for line in log[:cut]) + b"2026-05-04T12:00:05.1Z half a l"
                start = vr.format_time(position.time + timedelta(hours=2 if given and end != "Z" else 0))[:19].encode()
                found = [line for line in whole.splitlines(True) if line[:19] >= start]
                given += position.fresh(vr.lines([b"".join(found)[at:at + size] for at in range(0, len(whole), size)]))
            self.assertEqual([b"line %d" % number for number in range(len(times))], given)

    def test_odd_times(self):
        """Lines before the start and without a time are left out; a clock that is set back loses none."""
        for log, given in ((["2026-05-04T11:59:59.9Z a", "2026-05-04T12:00:00Z b"], b"b"), (["failed to open"], b""),
                           (["2026-05-04T12:00:09Z a", "2026-05-04T11:00:00Z b", "2026-05-04T12:00:09Z c"], b"abc"),
                           (["", "x", "2026-05-04T12:00:00Z", "9" * 9999, "2026-05-04T12:00:00Z  c"], b" c")):
            position = vr.LogPosition(NOW)
            self.assertEqual(given, b"".join(position.fresh(line.encode() for line in log)))


class FollowWorld(World):
    """Velero's Deployment, its pods, and who has their logs: the fake cluster, or one that stands in for a kubelet."""
    node = "n"

    def setUp(self):
        super().setUp()
        self.kubelet, self.number, self.written = self.cluster, 0, b""
        self.make("deployments", "Deployment", "velero", spec={"selector": {"matchLabels": {"deploy": "velero"}}, **{
            "template": {"metadata": {"labels": {"deploy": "velero"}}, "spec": {"containers": [
                {"name": "velero", "image": "x"}]}}}})
        self.make_backup("nightly", phase="InProgress")

    def make_pod(self, name: str) -> str:
        name = f"{name}-{self.namespace}"
        self.admin.create("pods", {"kind": "Pod", "metadata": {"name": name, "labels": {"deploy": "velero"}}, "spec": {
            "nodeName": self.node, "containers": [{"name": "velero", "image": "x"}]}}, self.namespace)
        return name

    def line(self, words: str, field: str = "backup", name: str = "nightly") -> bytes:
        return f'level=info msg="{words}" {field}={self.namespace}/{name} x=y'.encode()

    def say(self, pod: str, count: int = 1, stamp: str = "") -> None:
        """Have a pod log lines about the backup, all at one time, among others; they are what is to be printed."""
        stamp = stamp or self.clock.text(seconds=self.number // 10)[:19] + ".5Z"
        for _ in range(count):
            self.number += 1
            line = self.line(f"line {self.number}")
            self.kubelet.log(pod, *(f"{stamp} ".encode() + text for text in (
                self.line("other", name="nightly-2"), line, self.line("no", "restore"))))
            self.written += line + b"\n"

    def follow(self, *argv: str, **more: Any) -> Program:
        return self.program("backup", "logs", "nightly", "--follow", *argv, **more)

    def printed(self, program: Program) -> None:
        """Wait until all lines are printed, each of them once."""
        wait_until(lambda: sorted(self.written.splitlines()) == sorted(read_bytes(program.out_path).splitlines()), 30,
                   "the lines")

    def finish(self, program: Program, phase: str = "Completed", code: int = 0) -> str:
        """End the backup -> what is on stderr; all lines have been printed once."""
        self.admin.merge_patch("backups", "nightly", {"status": {"phase": phase}}, self.namespace)
        result = program.end(seconds=30)
        self.assertEqual((code, sorted(self.written.splitlines())), (result.code, sorted(result.out.splitlines())),
                         result.err)
        return result.err


class TestFollow(FollowWorld, FakeWorld, TestCase):
    """What Velero's pods log about a backup is printed as it comes."""

    def setUp(self):
        super().setUp()
        self.addCleanup(self.cluster.unlimit)

    def test_it_goes_on(self):
        """A log that ends, breaks in a line, or rotates, pods that are replaced, an API server that restarts."""
        first, log = self.make_pod("first"), self.cluster.logs
        self.kubelet.log(first, self.clock.text(minutes=-2).encode() + b" " + self.line("of another with its name"))
        self.say(first, 3)
        program = self.follow("-v")
        self.printed(program)
        for change in (
                lambda: self.cluster.cut_watches(f"/{first}/"), self.cluster.cut_connections,
                lambda: (self.cluster.script("GET", f"/{first}/", chunks=[log[first][-5][:40]], cut=True),
                         self.cluster.script("GET", f"/{first}/", status=500, body="no kubelet"),
                         self.cluster.script("GET", f"/{first}/", hang=SILENT),  # a kubelet with no new line
                         self.cluster.script("GET", f"/{first}/", status=200, body="failed to open a file\n"),
                         self.cluster.script("GET", "/pods?", drop=True, times=2), self.cluster.cut_connections()),
                lambda: (log.update({first: []}), self.cluster.cut_watches(f"/{first}/"))):
            change()
            self.say(first, 12)
            self.printed(program)
            self.assertEqual(self.written, read_bytes(program.out_path), "in their order")
        second = self.make_pod("second")
        self.say(second, 2)
        self.say(first)
        self.admin.delete("pods", first, self.namespace)
        self.cluster.cut_connections()
        self.printed(program)
        self.say(second)
        third = self.make_pod("third")
        self.say(third)
        self.assertEqual("", re.sub("(?m)^[^e].*\n", "", self.finish(program)))

    def test_how_it_ends(self):
        """With the last lines, though no stream ends, and by the phase's code; a restore likewise."""
        pod = self.make_pod("one")
        for phase, code, words in (("Completed", 0, "^$"), ("FailedValidation", 1, "/nightly ended in phase FailedVal"),
                                   ("PartiallyFailed", 1, "^error: Backup .*nightly ended in phase Partially")):
            self.admin.merge_patch("backups", "nightly", {"status": {"phase": "Finalizing"}}, self.namespace)
            program = self.follow("--selector", "deploy=velero,a!=b")
            self.say(pod)
            self.printed(program)
            hidden = self.kubelet.logs[pod]  # what the last call alone will bring
            hidden.append(hidden[-2].replace(b"msg=", b"last="))
            self.written += hidden[-1].partition(b" ")[2] + b"\n"
            self.cluster.script("GET", f"/{pod}/log?timestamps", chunks=[b"2"], cut=True)  # which breaks off
            self.assertRegex(self.finish(program, phase, code), words)
        self.make_restore("r2", "b1", "InProgress")
        program = self.program("restore", "logs", "r2", "-f")
        line = self.line("its line", "restore", "r2")
        self.kubelet.log(pod, b"2099-05-04T12:00:00Z " + line)
        wait_until(lambda: line in read_bytes(program.out_path), 20, "the line")
        self.admin.delete("restores", "r2", self.namespace)
        result = program.end()
        self.assertEqual((3, True), (result.code, 'restore "r2" does not exist' in result.err))

    def test_odd_lines(self):
        """Bytes are printed as they are, up to 16 MiB a line; a longer one is left out."""
        pod, fits, wide = self.make_pod("one"), b"x" * 10_000_000, b"x" * 17_000_000
        for text in (b"\xff\0\x1b[2J \xe2\x82", b"one\\ntwo", fits, wide, b"end"):
            line = self.line("TEXT").replace(b"TEXT", text)
            self.kubelet.log(pod, self.clock.text().encode() + b" " + line)
            self.written += line + b"\n" if text is not wide else b""
        program = self.follow()
        self.printed(program)
        self.finish(program)

    def test_who_leaves(self):
        """Ctrl-C ends it at once, and so, without a word, does the end of a pipe."""
        pod = self.make_pod("one")
        self.say(pod)
        program = self.follow()
        self.printed(program)
        with within(3):
            result = program.end(signal.SIGINT)
        self.assertEqual((130, "interrupted by SIGINT\n"), (result.code, result.err))
        reading, writing = os.pipe()
        program = self.follow(stdout=writing)
        os.close(writing)
        self.assertEqual(self.written, os.read(reading, 9999))
        os.close(reading)
        self.say(pod)
        self.assertEqual((141, b"", ""), program.end())

    def test_finished_ones(self):
        """Come from the store as ever, with --since from what pods still have; hints lead from one to the other."""
        pod, now = self.make_pod("one"), datetime.now(timezone.utc)
        for hours in (3, 1):
            self.kubelet.log(pod, vr.format_time(now - timedelta(hours=hours)).encode() + b" "
                             + self.line(f"{hours} h", name="b1"))
        self.put()
        self.serve()
        self.assertEqual((0, LOG, ""), self.cli("backup", "logs", "b1", "--follow"))
        self.assertEqual((0, self.line("1 h", name="b1") + b"\n", ""), self.cli(
            "backup", "logs", "b1", "--follow", "--since", "2h"))
        self.assertEqual((0, b"", f"No line about Backup {self.namespace}/b1 found in the logs of Velero's pods.\n"),
                         self.cli("backup", "logs", "b1", "--follow", "--since", "1s"))
        for number in range(9):
            self.make_pod(f"pod{number}")
        self.cluster.forget()
        self.cli("backup", "logs", "b1", "--follow", "--since", "1s")
        seen = self.cluster.seen("GET", "/log?")
        self.assertEqual((8, {"velero"}), (len({request.path for request in seen}), {
            request.query["container"] for request in seen}))
        self.store.buckets[self.namespace].clear()
        hints = since, follow = "hint: `--follow --since 2h` shows what", "hint: --follow shows what Velero's pods log"
        for name, code, told in (("b1", 3, since), ("nightly", 1, follow), ("nowhere", 3, "")):
            result = self.cli("backup", "logs", name)
            self.assert_failed(result, code)
            self.assertEqual([hint == told for hint in hints], [hint in result.err for hint in hints])
        located({"s3Url": f"http://127.0.0.1:{free_port()}"})(self)
        self.assertIn(since, self.cli("backup", "logs", "b1").err)

    def test_what_is_missing(self):
        """Rights with the line of a Role, pods, the Deployment, or a sense."""
        result = self.cli("backup", "logs", "nightly", "--follow")
        self.assert_failed(result, 3, "no pod in namespace", "has the labels deploy=velero")
        self.make_pod("one")
        for verb, resource, group in (("get", "backups", "velero.io"), ("get", "deployments", "apps"),
                                      ("list", "pods", ""), ("get", "pods/log", "")):
            self.cluster.limit("admin", verb, resource=resource)
            result = self.cli("backup", "logs", "nightly", "--follow")
            self.assert_failed(result, 5, f"cannot {verb} resource")
            self.assertIn(f'- {{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}}', result.err)
            self.cluster.unlimit()
        self.admin.delete("deployments", "velero", self.namespace)
        result = self.cli("backup", "logs", "nightly", "--follow")
        self.assert_failed(result, 3, 'deployment "velero" does not exist')
        self.assertIn("\nhint: --selector ", result.err)
        self.assert_failed(self.cli("backup", "logs", "nowhere", "--follow"), 3, 'backup "nowhere" does not exist')
        result = self.cli("backup", "logs", "nightly", "--follow", "--selector", "((")
        self.assert_failed(result, 2, "the cluster does not understand the selector '(('")
        for flags in (("--since", "2h"), ("--selector", "a=b"), ("--follow", "--location", "x")):
            self.assert_failed(self.cli("backup", "logs", "nightly", *flags), 2, "--follow")


class TestFollowReal(FollowWorld, RealWorld, TestCase):
    """The real API server hands on the logs of a kubelet that this stands in for."""

    def setUp(self):
        super().setUp()
        self.kubelet = self.enter(closing(FakeCluster(tls=True)))
        self.node = f"node-{self.namespace}"
        self.admin.create("nodes", {"kind": "Node", "metadata": {"name": self.node}, "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet.port}}}})
        self.addCleanup(self.admin.delete, "nodes", self.node)

    def test_it_goes_on(self):
        """A kubelet that dies looks like one whose log ends; a pod that is replaced; rights that are missing."""
        rules = [{"apiGroups": [GROUPS[resource].rpartition("/")[0]], "resources": [resource], "verbs": ["get", "list"]}
                 for resource in ("backups", "deployments", "pods")]
        self.cluster.grant("limited", *rules, namespace=self.namespace)
        first = self.make_pod("first")
        result = self.cli("backup", "logs", "nightly", "--follow", user="limited")
        self.assert_failed(result, 5, "cannot get resource")
        self.assertIn('resources: ["pods/log"], verbs: ["get"]', result.err)
        self.say(first, 30)
        program = self.follow("-v")
        for change in (self.kubelet.cut_connections, lambda: self.kubelet.cut_watches(f"/{first}/")):
            self.printed(program)
            change()
            self.say(first, 30)
        self.printed(program)
        self.assertEqual(self.written, read_bytes(program.out_path), "in their order")
        self.admin.call("DELETE", resource_path("pods", self.namespace, first), {"gracePeriodSeconds": 0})
        self.say(self.make_pod("second"))
        self.kubelet.cut_connections()
        self.printed(program)
        self.finish(program)


# ---- Doctor: worlds that are broken in one way each ---------------------------

def unlike(server: str, path: str = "", **fault: Any) -> Callable[[Any], Any]:
    """Break the cluster or the store: what every GET of a path comes to from now on."""
    return lambda world: getattr(world, server).script("GET", path, times=99, **fault)


def refusal(status: int, code: str, **elements: str) -> Callable[[Any], Any]:
    answer = StoreError(status, code, **elements).answer
    return unlike("store", status=status, body=answer.body, headers=dict(answer.headers))


def object_of(body: bytes) -> Callable[[Any], Any]:
    return lambda world: world.store.put(world.namespace, KEYS["BackupLog"], body)


def located(config: Optional[Document] = None, **more: Any) -> Callable[[Any], Any]:
    """Break the location of b1: another config, secret or objectStorage."""
    def change(world: Any) -> None:
        spec = location_in(world.store, "default", **{"bucket": world.namespace, "config": config, **more})["spec"]
        world.admin.merge_patch(BSL, "default", {"spec": spec}, world.namespace)
    return change


def keyed(text: str) -> Callable[[Any], Any]:
    """Another Secret with the keys."""
    return lambda world: world.admin.merge_patch("secrets", "cloud", secret_with("cloud", text.format(
        access=world.store.access_key, secret=world.store.secret_key)), world.namespace)


def forbidden(*rows: Tuple[str, str]) -> Callable[[Any], Any]:
    return lambda world: [world.cluster.limit("admin", verb, resource=what) for verb, what in rows]


def talk(cluster: Optional[Document] = None, **user: Any) -> Callable[[Any], Any]:
    """Another kubeconfig: fields of its cluster and user."""
    def change(world: Any) -> None:
        document = yaml.safe_load(read_bytes(world.kubeconfig))
        document["clusters"][0]["cluster"].update({name: value.format(
            closed=free_port(), silent=world.silent, plain=world.store.host, expired=kube_servers()["expired"].host,
            authority=base64.b64encode(kube_bytes("ca.crt")).decode()) for name, value in (cluster or {}).items()})
        document["users"][0]["user"] = user or document["users"][0]["user"]
        world.kubeconfig = write_bytes(world.at("other"), yaml.safe_dump(document).encode())
    return change


def skewed(world: Any) -> None:
    world.store.clock = lambda: time.time() + 1200


# How the world is broken -> the first broken hop and no other, the exit code, words of text and cure, the change, and
# more of the command line. {closed} is a port that nobody listens on, {silent} one that swallows all.
SICK: Any = {
    "no kubeconfig": ("kubeconfig", 1, "no kubeconfig found.*--kubeconfig", lambda w: setattr(w, "kubeconfig", "")),
    "a kubeconfig of nonsense": ("kubeconfig", 1, r"not YAML: line \d.*correct it", lambda w: setattr(w, "kubeconfig",
        write_bytes(w.at("bad"), b"a: [\n"))),
    "a plugin that is not there": ("kubeconfig", 1, "exec plugin nope.*not installed.*get it",
        talk(exec={"apiVersion": vr.EXEC_GROUP + "v1", "command": "nope", "installHint": "get it"})),
    "a plugin that hangs": ("kubeconfig", 6, "no end of it within .*correct it", talk(exec={
        "apiVersion": vr.EXEC_GROUP + "v1", "interactiveMode": "Never", "command": "sleep", "args": ["9"]}),
        "--timeout", "1s"),
    "a wrong authority": ("API server", 6, "not trusted.*issuer commonName=test-ca.*certificate-authority in the",
        talk({"certificate-authority-data": "{authority}"})),
    "an expired certificate": ("API server", 6, "certificate has expired.*valid until",
        talk({"server": "https://{expired}", "certificate-authority-data": "{authority}"})),
    "a name that nobody knows": ("API server", 6, "not known.*server in the kubeconfig.*VPN",
        talk({"server": "https://nowhere.invalid"})),
    "a closed port": ("API server", 6, "refused.*server in the kubeconfig",
        talk({"server": "https://127.0.0.1:{closed}"})),
    "a port that swallows": ("API server", 6, "not answer in time|no end of it", talk({"server": "https://{silent}"}),
        "--timeout", "2s"),
    "a proxy that is down": ("API server", 6, "through its proxy.*refused.*NO_PROXY",
        talk({"proxy-url": "http://127.0.0.1:{closed}"})),
    "a console instead of the API": ("API server", 6, "no Kubernetes API.*server in the kubeconfig", unlike("cluster",
        "/version", status=200, body="<html>")),
    "a token that has expired": ("rights", 5, "Unauthorized.*log in again", talk(token="old")),
    "no CRDs": ("CRDs", 3, "does not serve downloadrequests.*manifests", unlike("cluster", "/apis/velero.io/v1",
        status=404, body="404 page not found\n")),
    "old CRDs": ("CRDs", 3, "does not know DownloadRequests of kind BackupResults.*BackupLog.*CRDs are not upgraded",
        lambda w: w.cluster.install_crds(vr.crd_manifests(True)), "--kind", "BackupResults"),
    "nobody": ("server", 4, "nobody answered.*there is no Deployment velero.*-n", lambda w: w.deploy(None), "--timeout",
        "6s"),
    "a server that is down": ("server", 4, "nobody answered.*no ready pod.*get pods", lambda w: w.deploy(0),
        "--timeout", "6s"),
    "a server that never answers": ("server", 4, "did not take up the request: see its log", lambda w: w.deploy(1),
        "--timeout", "6s"),
    "no right to create": ("request", 5, "forbidden.*a Role there grants it.*create", forbidden(("create", DR))),
    "a backup that is not there": ("backup", 3, '"b1" does not exist.*namespace', lambda w: w.admin.delete("backups",
        "b1", w.namespace)),
    "a backup that still runs": ("backup", 1, "not available until it's finished.*name another",
        lambda w: w.admin.merge_patch("backups", "b1", {"status": {"phase": "InProgress"}}, w.namespace)),
    "a location that is gone": ("location", 3, "default does not exist; backup 'b1' asks for it: create it",
        lambda w: w.admin.delete(BSL, "default", w.namespace)),
    "a location that is not available": ("location", 1, "not available: no such bucket.*kubectl -n",
        lambda w: w.fill("default", BSL, phase="Unavailable", message="no such bucket")),
    "a Secret that is gone": ("location", 3, "Secret .*/cloud does not exist.*create it",
        lambda w: w.admin.delete("secrets", "cloud", w.namespace)),
    "a Secret without its key": ("request", 3, "key 'other' of Secret 'cloud'.*names",
        lambda w: w.admin.merge_patch(BSL, "default", {"spec": {"credential": {"key": "other"}}}, w.namespace)),
    "a wrong access key": ("object", 5, "InvalidAccessKeyId.*correct the Secret", keyed(keys_file("AKIAOTHER",
        "{secret}"))),
    "a wrong secret key": ("object", 5, "SignatureDoesNotMatch: .*the secret key is not.*correct the secret key",
        keyed(keys_file("{access}", "other"))),
    "a wrong bucket": ("object", 3, "no such bucket.*correct objectStorage.bucket", located(bucket="other")),
    "a wrong region": ("object", 1, "region us-east-1.*correct region", located({"region": "eu-west-1"})),
    "a wrong style": ("store", 6, "not known.*s3ForcePathStyle", located({"s3ForcePathStyle": "false",
        "s3Url": "http://localhost:9"})),
    "a host that nobody knows": ("store", 6, "not known.*publicUrl",
        located({"publicUrl": "http://minio.invalid:9000"})),
    "a store that swallows": ("store", 6, "not answer in time|no end of it",
        lambda w: located({"s3Url": f"http://{w.silent}"})(w), "--timeout", "8s"),
    "a store that nobody vouches for": ("store", 6, "not trusted.*issuer commonName=test-ca.*--cacert",
        lambda w: located({"s3Url": w.cluster.url})(w)),
    "a console instead of the store": ("object", 1, "not gzip but an HTML page.*correct s3Url", unlike("store",
        status=200, body="<html>Sign in</html>", headers={"Content-Type": "text/html"})),
    "no right to read": ("object", 5, "AccessDenied.*s3:GetObject", refusal(403, "AccessDenied")),
    "an object in the archive": ("object", 5, "ObjectState.*archive tier", refusal(403, "InvalidObjectState")),
    "keys that have expired": ("object", 1, "ExpiredToken.*renew", refusal(400, "ExpiredToken")),
    "a path that a proxy changes": ("object", 5, "the path differs: signed.*does a proxy.*publicUrl", refusal(403,
        "SignatureDoesNotMatch", CanonicalRequest="GET\n/x")),
    "a clock that is twenty minutes ahead": ("object", 1, "store's clock is .* ahead of this host's.*clocks differ",
        skewed),
    "no artifact": ("object", 3, "no such file.*never have written it", lambda w: w.store.buckets[w.namespace].clear()),
    "an empty object": ("object", 1, "is empty.*fetch it again", object_of(b"")),
    "an object that is no gzip": ("object", 1, "not gzip but text.*fetch it again", object_of(b"plain text" * 999))}
HOPS = "program, kubeconfig, API server, rights, CRDs, server, backup, location, request, store, object".split(", ")


class DoctorTests(World):
    def ask_doctor(self, *argv: str, code: int = 0, gone: bool = False, **more: Any) -> Dict[str, Any]:
        """Hops and ways by name; no secret is told, no request left, and it takes no longer than it may."""
        with within(40):
            result = self.cli("doctor", "-o", "json", *argv, **more)
        getattr(self.cluster, "unscript", bool)()
        self.assertEqual(code, result.code, result.err or result.out)
        self.assert_clean(result.out.decode(), result.err)
        self.assertNotRegex(result.err, "Traceback|bug")
        said = json.loads(result.out)
        self.assertEqual(HOPS, [hop["hop"] for hop in said["hops"]])
        self.assertEqual(["store", "direct", "cluster"], [way["way"] for way in said["ways"]])
        self.assertEqual(([], []), ([], []) if gone else (self.names(), self.names(SSR)))
        return {**{hop["hop"]: SimpleNamespace(**hop) for hop in said["hops"]}, "error": result.err,
                **{"way " + way["way"]: SimpleNamespace(**way) for way in said["ways"]}}

    def states(self, said: Dict[str, Any]) -> Dict[str, List[str]]:
        return {state: [hop for hop in HOPS if said[hop].state == state]
                for state in ("ok", "note", "broken", "skipped")}


class TestDoctor(DoctorTests, StoreWorld, TestCase):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.cluster.unlimit)
        silent = self.enter(closing(socket.create_server(("127.0.0.1", 0))))
        self.silent = f"127.0.0.1:{silent.getsockname()[1]}"

    def heal(self) -> None:
        self.cluster.unlimit()
        self.cluster.install_crds(vr.crd_manifests(False))
        self.tearDown()
        self.store.clock, self.kubeconfig = time.time, self.cluster.kubeconfig(self.folder)
        self.namespace = self.cluster.new_namespace()
        self.cluster.grant("controller", {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                           namespace=self.namespace)
        self.seed()
        self.put()
        self.serve("controller")

    def deploy(self, ready: Optional[int]) -> None:
        """Nobody serves, and Velero's Deployment has so many ready pods, or is not there."""
        self.controllers.pop().stop.set()
        if ready is not None:
            self.make("deployments", "Deployment", "velero", status={"readyReplicas": ready}, spec={"template": {
                "spec": {"containers": [{"image": "velero/velero:v1.18.1"}]}}})

    def test_what_is_broken(self):
        """Each world has one broken hop, with its cure: before it is none, behind it nothing that depends on it."""
        for what, (hop, code, words, change, *argv) in SICK.items():
            with self.subTest(what):
                self.heal()
                env = {argv.pop(): f"http://127.0.0.1:{free_port()}"} if argv[-1:] == ["HTTP_PROXY"] else None
                if change:
                    change(self)
                said = self.ask_doctor("b1", *argv, code=code, env=env)
                states = self.states(said)
                self.assertEqual([hop], states["broken"], states)
                self.assertRegex(f"{said[hop].text}: {said[hop].cure}", f"(?is){words}")
                self.assertTrue(said[hop].cure and f"error: {hop}: " in said["error"] and "hint: " in said["error"])
                for controller in self.controllers:
                    controller.stop.set()

    def test_what_is_sound(self):
        """All is well, also with old CRDs; every hop says what it found, and --direct is a way."""
        self.heal()
        self.make("services", "Service", "velero-requests")
        self.make("deployments", "Deployment", "velero", status={"readyReplicas": 1}, spec={"template": {
            "spec": {"containers": [{"image": "velero/velero:v1.18.1"}]}}})
        for old, argv, kind in ((False, (), "BackupLog"), (True, ("r1", "--kind", "RestoreLog"), "RestoreLog")):
            self.cluster.install_crds(vr.crd_manifests(old))
            self.put(kind)
            for direct in (False, True):
                with self.subTest(argv=argv, direct=direct):
                    self.cluster.forget()
                    said = self.ask_doctor(*argv, *["--direct"] * direct)
                    read = [request for request in self.cluster.seen("GET", "/secrets/", "admin")
                            if "PartialObjectMetadata" not in request.headers["accept"]]
                    self.assertEqual(direct, bool(read), "the content of the Secret is read")
                    self.assertEqual({"ok": HOPS, "note": [], "broken": [], "skipped": []}, self.states(said), said)
                    self.assertEqual(["ok", "ok" if direct else "skipped", "skipped"],
                                     [said[f"way {way}"].state for way in ("store", "direct", "cluster")])
                    self.assertEqual((True, 0), (all(isinstance(said[hop].seconds, float) and not said[hop].cure
                                                     for hop in HOPS), len(said["error"].strip())))
        for hop, words in (("program", f"{vr.__version__}.*OpenSSL.*authorities"), ("kubeconfig", "test.*by token"),
                           ("API server", r"v1\.34.*certificate: it is for localhost.*valid until"), ("rights", "all"),
                           ("CRDs", "1.6 to 1.8, with .*not know: BackupItemOp"), ("store", self.store.host),
                           ("server", "v1.18.1 answers in .*ms; Deployment velero of velero/velero:v1.18.1 has 1"),
                           ("backup", "restore r1: Completed"), ("object", r"Log of r1: \d+ bytes, ETag .* gzip"),
                           ("location", "path style, region us-east-1, keys in cloud$"),
                           ("request", "RestoreLog of r1: answered in ")):
            self.assertRegex(said[hop].text, words)
        talk({"proxy-url": kube_servers()["proxy"].url})(self)
        self.assertIn("127.0.0.1 (a proxy); certificate: it is for", self.ask_doctor()["API server"].text)

    def test_what_is_odd(self):
        """Rights that one can do without, clocks, and what cannot be seen are notes; the rest is looked at."""
        def behind(response: bytes) -> List[bytes]:
            date = formatdate(time.time() - 300, usegmt=True)
            return [response.replace(b"\r\n", f"\r\nDate: {date}\r\n".encode(), 1)]

        seen = [("get", "backups"), ("get", BSL), ("create", SSR), ("get", "secrets"), ("get", "deployments")]
        for what, change, notes, words, argv in (
                ("watch and delete", forbidden(("watch", DR), ("list", "backups")), ["rights"],
                 r"missing: watch downloadrequests, list backups.*velero.io.*downloadrequests.*watch", ("b1",)),
                ("sight", forbidden(*seen), ["rights", "server", "backup", "location"],
                 "get backupstoragelocations.*Role", ("b1",)),
                ("the Secret", forbidden(("get", "secrets")), ["rights"], "get secrets", ("--direct",)),
                ("its clock", unlike("cluster", "/version", wire=behind), ["API server"], "behind this host.*NTP", ()),
                ("the store's clock", lambda w: setattr(w.store, "clock", lambda: time.time() + 300), ["store"],
                 "ahead of this host's.*NTP", ())):
            with self.subTest(what):
                self.heal()
                change(self)
                said = self.ask_doctor(*argv)
                self.assertEqual((notes, []), (self.states(said)["note"], self.states(said)["broken"]), said)
                self.assertRegex(f"{said[notes[0]].text} {said[notes[0]].cure}", words)
                self.assertEqual("ok", said["object"].state)
        self.heal()
        self.make_backup("b0")
        completed = {"status": {"completionTimestamp": "2026-05-04T12:00:00Z"}}
        self.admin.merge_patch("backups", "b0", completed, self.namespace)
        self.assertIn("BackupLog of b0", self.ask_doctor(code=3)["object"].text)
        self.cluster.clear(self.namespace, "backups")
        said = self.ask_doctor()
        self.assertEqual(["skipped"] * 3, [said[hop].state for hop in ("backup", "object", "way store")])
        self.assertIn("name one", said["backup"].text)
        late = vr.Doctor(vr.parse(["doctor", "--timeout", "1ns"])[1])
        self.assertEqual((["skipped"] * 11, 4), ([hop.state for hop in late.hops()], int(late.errors[0].exit)))
        self.heal()
        self.fill("default", BSL, phase="Unavailable")
        located(bucket="other")(self)
        self.assertEqual(["location", "object"], self.states(self.ask_doctor(code=1))["broken"])  # the first counts

    def test_ways(self):
        """--direct works where the URL leads nowhere, and by the store's clock; its failure is told and no hop's."""
        for change, code, direct in (
                (located({"publicUrl": "http://minio.invalid:9000"}), 6, "broken"), (skewed, 1, "ok"),
                (keyed(keys_file("{access}", "other")), 5, "broken"), (lambda w: w.deploy(1), 4, "ok"),
                (lambda w: w.admin.delete("secrets", "cloud", w.namespace), 3, "broken")):
            self.heal()
            change(self)
            said = self.ask_doctor("--direct", code=code)
            self.assertEqual(("broken", direct), (said["way store"].state, said["way direct"].state), said)
        self.assertIn("create it", said["way direct"].text)

    def test_it_is_interrupted(self):
        self.heal()
        self.deploy(1)
        program = self.program("doctor", "b1")
        wait_until(lambda: self.names(SSR), 20, "the request")
        self.assertEqual((130, []), (program.end(signal.SIGINT).code, self.names(SSR)))

    def test_the_screen(self):
        """A line a hop in columns, its cure below, in colors if wanted; the first broken one is on stderr."""
        self.heal()
        self.store.buckets[self.namespace].clear()
        result = self.cli("doctor", "b1", "--colorized")
        lines = result.out.decode().splitlines()
        self.assertEqual([*HOPS, "way: store", "way: direct", "way: cluster"],
                         [line[:13].strip() for line in lines if not line.startswith(" ")])
        self.assertRegex(result.out.decode(), r"object       \x1b\[31mbroken\x1b\[0m +0\.\d{3}  BackupLog of b1: .*no "
                                              r"such file.*\n {29}cure: the backup or restore may never")
        self.assertRegex(result.err, "error: object: BackupLog of b1: .*no such file.*\nhint: the backup")
        self.assertEqual(3, result.code)
        self.assertNotIn("\x1b", self.cli("doctor", "b1").out.decode())


class TestDoctorReal(DoctorTests, RealWorld, TestCase):
    def test_what_it_says(self):
        """Sound, a right that is missing, and no CRD."""
        self.put()
        self.serve()
        self.cluster.grant("limited", {"apiGroups": ["velero.io"], "resources": ["backups", SSR, BSL],
                                       "verbs": ["get", "list", "create", "delete"]}, namespace=self.namespace)
        said = self.ask_doctor("--direct")
        self.assertEqual({"ok": HOPS, "note": [], "broken": [], "skipped": []}, self.states(said), said)
        self.assertEqual(("ok", "ok"), (said["way store"].state, said["way direct"].state))
        self.assertRegex(said["API server"].text, "^v1.*it is for localhost.*valid until")
        self.assertIn("as by Velero 1.9", said["CRDs"].text)
        said = self.ask_doctor("b1", code=5, user="limited")
        self.assertEqual((["rights"], ["request"]), (self.states(said)["note"], self.states(said)["broken"]), said)
        self.assertRegex(said["rights"].cure, r"- {apiGroups: \[.velero.io.\], resources: \[.downloadrequests.\], "
                                              r"verbs: \[.create., .get., .watch., .delete.\]}")
        self.addCleanup(self.cluster.install_crds, self.crds())
        for crd in self.crds():
            self.admin.delete("customresourcedefinitions", crd["metadata"]["name"])
        path = resource_path(DR, self.namespace)
        wait_until(lambda: self.admin.raw("GET", path).status == 404, 30, "the kinds to go")
        said = self.ask_doctor("b1", code=3, gone=True)
        self.assertEqual(["CRDs"], self.states(said)["broken"], said)


class TestCommandLine(TestCase):
    def test_spellings(self):
        """Flags may stand anywhere, verbs first, and what is a flag's value names no command."""
        for typed, command, options in (
                ("-n ns download backup b1", "backup download", {"namespace": "ns", "name": "b1", "url_only": False}),
                ("download backup -o x b1", "backup download", {"output": "x", "kind": "BackupContents"}),
                ("-vn ns logs restore r1", "restore logs", {"namespace": "ns", "verbose": 1, "is_log": True}),
                ("-n download backup get", "backup get", {"namespace": "download", "names": [], "timeout": 60.0}),
                ("-vvn x get backups", "backup get", {"verbose": 2, "namespace": "x", "resource": vr.BACKUPS}),
                ("backup logs b1 --location download", "backup logs", {"location": "download", "direct": True}),
                ("backup get -l x b1 --show-labels b2", "backup get", {"selector": "x", "names": ["b1", "b2"]}),
                ("describe restores --details=false r1", "restore describe", {"colorized": None, "details": False}),
                ("backup describe --details b1", "backup describe", {"names": ["b1"], "details": True}),
                ("download -- --kind", "download", {"name": "--kind", "force": False}),
                ("download --colorized -- -", "download", {"name": "-", "colorized": True}),
                ("controller --plugin a=b --plugin c=d", "controller", {"plugin": [("a", "b"), ("c", "d")]}),
                ("get plugins", "plugin get", {"timeout": 5.0, "colorized": None}),
                ("version --timeout 1000000h", "version", {"timeout": vr.MAX_TIMEOUT})):
            found, values = vr.parse(typed.split())
            self.assertEqual((command, options), (found.words, {key: getattr(values, key) for key in options}), typed)

    def test_wrong_usage(self):
        """It names what was typed, and stdout stays empty; what only Velero does is velero's."""
        for typed, words in (
                ("plugin get --force", "arguments: --force\nhint: see `velero_requests.py plugin get --help`"),
                ("plugin get x --force=1", "unrecognized arguments: --force=1 x\n"), ("backup --nope", ": --nope\n"),
                ("nonsense", "no command `nonsense` here"), ("schedule get", "`velero schedule get`"),
                ("-n ns backup delete b1 --confirm", "`velero backup delete`"), ("install --help", "`velero install`"),
                ("backup logs", "the following arguments are required: BACKUP"), ("backup get --outp json", "--outp"),
                ("version --client-only=", "--client-only: '' is neither true nor false"),
                ("version -n a/b", "'a/b' cannot be the name of a namespace"),
                ("version --timeout 0s", "'0s' is no time to wait"), ("version --timeout 5", "; write for example 30s"),
                ("version --output", "expected one"), ("controller --plugin =x", "'=x' is not KIND=NAME"),
                ("controller --log-format xml", "invalid choice: 'xml'"),
                ("completion csh", "invalid choice: 'csh'"), ("download b1 --kind Backup", "invalid choice: 'Backup'"),
                ("backup logs b1 --credentials-file gone", "without --direct or --location"),
                *((f"download b1 --url-only {flag}", "makes no file; leave out --output and --force\n")
                  for flag in ("-o x", "--force")), ("backup get --location=", "--location: it is empty"),
                ("download b1 -o=", "-o/--output: it is empty"), ("backup describe --cacert=", "--cacert: it is empty"),
                ("backup get --direct -l a=b", "--selector needs the cluster"),
                ("manifests client --image x", "unrecognized arguments: --image x"),
                ("manifests --plugin a=b", "unrecognized arguments: --plugin a=b"),
                ("manifests controller --status-subresource", "unrecognized arguments: --status-subresource"),
                ("manifests pods", "unrecognized arguments: pods"),
                ("manifests controller --replicas x", "'x' is no number of pods"),
                ("manifests controller --secret a/b", "'a/b' cannot be the name of a Secret"),
                ("manifests controller --network-policy 10.0.0.1", "'10.0.0.1' is no network"),
                ("manifests controller --network-policy 10.0.0.1/33", "'10.0.0.1/33' is no network"),
                ("manifests controller --endpoint minio", "'minio' is no http or https URL"),
                ("manifests controller --service-account-annotation x", "'x' has no =")):
            result = run(*typed.split())
            self.assertEqual((2, b"", True), (*result[:2], words in result.err), (typed, result.err))

    def test_groups_print_their_help(self):
        for words, told in (("", "backup describe|exit codes:"), ("backup", "describe  |logs  "),
                            ("-v get --help", "plugins  |restore  "), ("logs -n ns", "print the log of a restore"),
                            ("plugin", "list the plugins"), ("backup get -h", "--show-labels|[BACKUP ...]"),
                            ("manifests -h", "--status-subresource|further commands: manifests crds, manifests ")):
            result = run(*words.split())
            self.assertEqual((0, ""), (result.code, result.err), words)
            for text in told.split("|"):
                self.assertIn(text, result.out.decode())


NO_SPACE = "error: cannot write the output: No space left on device\n"
ENDS = (  # a command, where its stdout and stderr lead, the code it ends with, and what is on stderr then
    ("--help", "full", "", 1, NO_SPACE), ("completion zsh", "full", "", 1, NO_SPACE), ("nonsense", "", "full", 2, ""),
    ("manifests", "closed", "", 141, ""), ("backup logs b1 -vv --kubeconfig /dev/null", "", "full", 1, ""),
    ("backup logs", "", "closed", 2, ""), ("--version", "full", "full", 1, ""), ("--help", "closed", "closed", 141, ""))


class TestEnds(TestCase):
    """However a command ends, there is one sentence and its code, and no word from the interpreter."""

    def test_full_disks_and_closed_pipes(self):
        """With streams buffered, and of the first and the last also unbuffered."""
        base = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        reading, closed = os.pipe()
        os.close(reading)
        self.addCleanup(os.close, closed)
        with open("/dev/full", "wb") as full:
            leads = {"full": full, "closed": closed, "": PIPE}
            started = [(row, subprocess.Popen([sys.executable, MODULE, *row[0].split()], stdout=leads[row[1]],
                                              stderr=leads[row[2]], env={**base, **environ}))
                       for environ, rows in (({}, ENDS), ({"PYTHONUNBUFFERED": "1"}, (ENDS[0], ENDS[-1])))
                       for row in rows]
            for row, process in started:
                out, err = process.communicate(timeout=60)
                self.assertEqual(row[3:], (process.returncode, (err or b"").decode()), (row, out))

    def test_ctrl_c_while_it_is_imported(self):
        """The code is 130 and nothing is said, also by the installed command; an ignored one stays ignored."""
        for before, code in ((signal.SIG_DFL, 130), (signal.SIG_IGN, 0)):
            process = subprocess.Popen(
                [sys.executable, "-X", "importtime", MODULE, "version", "--client-only"],
                stdout=PIPE, stderr=PIPE,
                preexec_fn=partial(signal.signal, signal.SIGINT, before))  # pylint: disable=W1509
            assert process.stderr
            said = b""
            while b" signal\n" not in said and b" base64\n" not in said:  # most is still to come
                said += process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
            self.assertEqual((code, False), (process.returncode, b"Traceback" in rest), rest)


CANARY = "canary/7+secret"
# All commands; those that print a URL or an object are asked for what they show, so only their stderr must be clean.
CANARY_COMMANDS = (
    "controller --once", "controller --once --dry-run", "controller --once --verify-urls --log-format json",
    "download b1 -o FILE",
    "download b1 --kind BackupLog", "download b1 --url-only", "backup get", "backup get --direct -o yaml",
    "backup describe b1 --details", "backup describe b1 -o json", "backup logs b1", "backup logs b1 --direct",
    "backup download b1 -o FILE --force", "restore get -o json", "restore describe r1", "restore logs r1",
    "plugin get --timeout 300ms", "version --timeout 300ms", "manifests", "manifests controller",
    "manifests client", "manifests policy", "completion bash", "doctor b1 --direct",
    "backup ls b1", "backup show b1 configmaps/settings")
ECHO = (f"X-Amz-Signature={'ca7a' * 16}&X-Amz-Security-Token={CANARY} Authorization: Bearer {CANARY} "
        f"http://u:{quote(CANARY, '')}@h/")


class TestCanary(DownloadWorld, TestCase):
    """No secret of ours is in what any command says, logs at any level, or leaves in the cluster."""
    serves = False

    def setUp(self):
        """Give the store keys of which every part is a canary, and the program's host a logger that keeps all."""
        super().setUp()
        self.store.keys["AKIACANARY"] = (CANARY + "-key", CANARY + "-session")
        self.addCleanup(self.store.keys.pop, "AKIACANARY")
        self.admin.delete("backups", "b1", self.namespace)
        self.lay_out("b1", None, keys_file("AKIACANARY", CANARY + "-key") + (
            f"aws_session_token = {CANARY}-session\n[other]\naws_secret_access_key = {CANARY}\n"))
        self.store.put(self.namespace, KEYS["BackupContents"], tar_of(BACKUP_FILES))
        self.put("BackupLog")
        self.put("RestoreLog")
        self.root, root = io.StringIO(), logging.getLogger()
        handler = logging.StreamHandler(self.root)
        root.addHandler(handler)
        self.addCleanup(root.removeHandler, handler)
        self.addCleanup(root.setLevel, root.level)
        root.setLevel(logging.DEBUG)

    def check(self, command: str, *codes: int, kubeconfig: str = "") -> None:
        """Run a command as talkative as can be, and look for all secrets in all that it leaves anywhere."""
        file = os.path.join(self.target, "canary")
        words = command.replace("FILE", file).split()
        for kept in (self.log, self.root):
            kept.seek(0)
            kept.truncate()
        timeout = [] if "--timeout" in words else ["--timeout", "2s"]
        result = run("-vvv", "--kubeconfig", kubeconfig or self.kubeconfig, "-n", self.namespace, *words, *timeout)
        self.cluster.unscript()
        self.store.unscript()
        self.assertIn(result.code, codes or range(7), result.err[-2000:])
        requests, events = (self.admin.list(resource, self.namespace)["items"] for resource in (DR, "events"))
        for text in (result.err, self.log.getvalue(), self.root.getvalue(), json.dumps(events),
                     *(json.dumps(item["metadata"]) for item in requests),
                     "" if "--url-only" in words else result.out.decode()):
            self.assert_clean(text)
            for spelled in (CANARY, quote(CANARY), quote(CANARY, safe=""), "AKIACANARY",
                            base64.b64encode(CANARY.encode()).decode()[:-4]):
                place = text.find(spelled)
                self.assertEqual(-1, place, text[max(0, place - 300):place + 100])
        with suppress(FileNotFoundError):
            os.remove(file)

    def test_when_all_goes_well(self):
        self.assertEqual([], [command.words for command in vr.COMMANDS if not any(
            row.startswith(command.words) for row in CANARY_COMMANDS)], "a command is not in CANARY_COMMANDS")
        self.serve("admin", plugins=(("ObjectStore", "velero.io/aws"),))
        for command in CANARY_COMMANDS:
            self.check(command, 0)

    def test_when_something_fails(self):
        store_says = f"<Error><Code>AccessDenied</Code><Message>{ECHO}</Message></Error>".replace("&", "&amp;").encode()
        cluster_says = {"kind": "Status", "message": ECHO, "reason": "Forbidden"}
        for command, faults in (
                ("controller --once --verify-urls --log-format json", "s GET 403, s GET 400, c GET 403, c PATCH 409"),
                ("backup logs b1 --direct", "s GET 403, s GET 400, c GET 403"),
                ("backup logs b1", "s GET 403, s GET 400, c GET 403, c POST 422, c PATCH 409"),
                ("backup describe b1", "s GET 403, c GET 403, c POST 422"),
                ("download b1 -o FILE", "s GET 400, c GET 403, c PATCH 409")):
            if command == "backup logs b1":
                self.serve("controller")
            for where, method, status in map(str.split, faults.split(", ")):
                if command.startswith("controller"):
                    self.ask()
                server, part, body = ((self.store, "/", store_says) if where == "s" else
                                      (self.cluster, "/velero.io/", cluster_says))
                server.script(method, part, status=int(status), body=body, times=1 if status == "409" else 99)
                self.check(command)

    def test_who_we_are(self):
        program = write_bytes(self.at("plugin"), f"#!/bin/sh\necho '{CANARY} {{'\nexit $1\n".encode())
        os.chmod(program, 0o700)
        plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": program, "interactiveMode": "Never"}
        for user in ({"token": CANARY}, {"username": "u", "password": CANARY},
                     {"client-key-data": base64.b64encode(CANARY.encode()).decode()},
                     *({"exec": {**plugin, "args": [code], "env": [{"name": "A", "value": CANARY}]}} for code in "01")):
            self.check("backup logs b1", kubeconfig=self.kubeconfig_of(user))
        for number, text in enumerate((
                f"[default]\naws_secret_access_key {CANARY}\n", f"[default]\n{CANARY} = x\n",
                f"[default]\naws_access_key_id = a\naws_secret_access_key = {CANARY}\n x\n")):
            self.lay_out(f"bad-{number}", None, text)
            self.check(f"backup logs bad-{number} --direct", 1)
            self.ask(name=f"bad-{number}")
            self.check("controller --once")


# ---- Demo: the main job on a machine without a cluster -----------------------

def tell(text: str) -> None:
    """Print at once: the reader follows along, and a pipe must not reorder what the commands say."""
    print(text, flush=True)


def step(stage: Stage, command: str, *expected: str) -> None:
    """Show a command, run exactly that, show its output, and insist on success and on these texts in it."""
    tell("$ " + command)
    done = stage.run("/bin/sh", "-c", command, stdout=PIPE, stderr=STDOUT)
    output = done.stdout.decode(errors="replace")
    tell(output)
    missing = [text for text in expected if text not in output]
    if done.returncode or missing:
        raise AssertionError(f"`{command}` ended with exit code {done.returncode}; its output lacks {missing}")


def demo(launcher: str = "") -> int:
    """Show the main job with a controller on loopback, and one failure -> 0; raises at the first step that fails."""
    ours = "python " + os.path.basename(MODULE)
    with set_stage(launcher) as stage:
        tell(f"# On loopback: {stage.servers()}.")
        step(stage, f"{ours} manifests > crds.yaml")
        with open(os.path.join(stage.folder, "crds.yaml"), encoding="utf-8") as file:
            stage.cluster.install_crds(yaml.safe_load_all(file))
        add_location(stage)
        add_backup(stage, "nightly", BACKUP_LOG.encode())
        add_backup(stage, "orphan", BACKUP_LOG.encode(), location="gone")
        tell("# The demo has applied crds.yaml and added what Velero leaves behind: a storage location with its\n"
             "# Secret, the backup nightly, and the backup orphan, whose storage location does not exist.\n"
             f"\n$ {ours} controller 2> controller.log &\n")
        with serving(stage, "/bin/sh", "-c", f"exec {ours} controller 2> controller.log") as controller:
            step(stage, f"{ours} backup logs nightly", BACKUP_LOG)
            step(stage, f"{ours} backup download nightly", "nightly-data.tar.gz")
            step(stage, "python -m tarfile --list nightly-data.tar.gz", *BACKUP_FILES)
            step(stage, f"{ours} plugin get", "velero.io/aws")
            step(stage, f"{ours} version", "Client:", "Server:")
            step(stage, f'{ours} backup logs orphan; echo "exit code $?"', "error: ", "/gone ", "exit code 3")
            left = stage.cluster.admin.list(DR, NAMESPACE)["items"]
            tell("$ kill %1")
            code = stop_process(controller)
        step(stage, "cat controller.log", "serving", "stopped")
        if left or code:
            raise AssertionError(f"the controller left with exit code {code}; {len(left)} requests were left behind")
    tell("# Every step did what it should; all of it is stopped and removed.")
    return 0


class TestStart(FolderCase):
    """What runs is what was read: nobody else's code gets in, wherever it lies."""

    def start(self, *argv: str, folder: str = os.path.dirname(MODULE), **options: Any) -> Result:
        done = subprocess.run(argv, cwd=folder, stdout=PIPE, stderr=PIPE, timeout=60, check=False, **options)
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def lay_strangers(self, *names: str) -> None:
        for name in names:
            write_bytes(self.at(name + ".py"), b"raise SystemExit('a stranger was run')")

    def test_nothing_in_the_current_folder_is_imported(self):
        """The module comes from beside the script, the standard library from where it is; `-m` is a module already."""
        self.lay_strangers("velero_requests", "json", "argparse", "ctypes")
        for options, folder in (((MODULE,), self.folder), (("-I", MODULE), self.folder),
                                (("-u", "-W", "error::ResourceWarning", MODULE), self.folder),
                                (("-m", "velero_requests"), os.path.dirname(MODULE))):
            result = self.start(sys.executable, *options, "download", folder=folder)
            self.assertEqual((2, b"", True), (*result[:2], "NAME" in result.err), (options, result.err))

    def test_nothing_beside_the_file_is_imported(self):
        """Neither source nor what is compiled, not even of the file itself."""
        script = shutil.copy(MODULE, self.at("velero_requests.py"))
        self.lay_strangers("stranger", "logging")
        stranger = self.at("stranger.py")
        for name in ("argparse", "signal", "yaml", "json"):
            py_compile.compile(stranger, self.at(name + ".pyc"))
        py_compile.compile(stranger, importlib.util.cache_from_source(script),
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        for words, code in (("controller", 1), ("backup logs b1", 1), ("version --client-only", 0)):
            result = self.start(sys.executable, script, *words.split(), "--kubeconfig", "/dev/null")
            self.assertEqual((code, False), (result.code, "stranger" in result.err), (words, result.err))

    def test_the_current_folder_is_gone(self):
        """What starts at a current folder that was deleted is refused with that; what does not goes on."""
        for words, code, said in (("download b1", 1, "error: the current folder cannot be used"),
                                  ("backup get --kubeconfig x", 1, "error: the current folder"),
                                  ("version --client-only", 0, "")):
            folder = tempfile.mkdtemp()
            result = self.start(sys.executable, MODULE, *words.split(), folder=folder,
                                preexec_fn=partial(os.rmdir, folder))
            self.assertEqual((code, said), (result.code, result.err[:len(said)]), words)

    @skipUnless(shutil.which("make") and not ARCHIVE, "there is no make, or it is an archive that is tested")
    def test_installed(self):
        """The installed command is compiled once, imports nothing from the current folder, and says what is missing."""
        self.lay_strangers("velero_requests", "json", "runpy", "yaml")
        config = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "current-context": "c",
                  "contexts": [{"name": "c", "context": {"cluster": "c"}}]}  # as JSON, which needs no package
        kubeconfig = write_bytes(self.at("config"), json.dumps(config).encode())
        with tempfile.TemporaryDirectory() as prefix:
            made = self.start("make", "--silent", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}")
            self.assertEqual(0, made.code, made.err)
            command = os.path.join(prefix, "bin", "velero_requests.py")
            self.assertTrue(os.access(command, os.X_OK))
            self.assertTrue(read_bytes(command).startswith(f"#!{sys.executable}\n".encode()))
            for options, code, said in (("-v download", 2, r"velero_requests\.cpython-\d+\.pyc matches"), (
                    f"-S plugin get --kubeconfig {kubeconfig}", 1,
                    r"\Aerror: the package (urllib3|yaml) is missing\nhint: `apt-get install ")):
                option, *words = options.split()
                result = self.start(sys.executable, option, command, *words, folder=self.folder)
                self.assertEqual((code, b"", False), (*result[:2], "wrote" in result.err), result.err)
                self.assertRegex(result.err, said)
            self.start("make", "uninstall", f"PREFIX={prefix}")
            self.assertEqual([[], []], [os.listdir(os.path.join(prefix, name)) for name in ("bin", "lib")])

    @skipUnless(shutil.which("make") and not ARCHIVE, "there is no make, or it is an archive that is tested")
    def test_without_the_packages(self):
        """make says in one sentence what is missing and how to get it, and installs nothing."""
        for target in ("install", "test-alone"):
            result = self.start("make", "--silent", target, f"PREFIX={self.folder}", f"PYTHON={sys.executable} -S")
            self.assertEqual((2, b"", []), (*result[:2], os.listdir(self.folder)), result.err)
            self.assertEqual([1] * 5, [result.err.count(words) for words in (
                "error: the package urllib3 is missing\n", "apt-get install python3-urllib3 python3-yaml",
                "dnf install", "apk add", "pip install")], result.err)

    def test_ctrl_c_while_the_interpreter_ends(self):
        write_bytes(self.at("sitecustomize.py"),
                    b"import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n")
        result = self.start(sys.executable, MODULE, "--version", env={**os.environ, "PYTHONPATH": self.folder})
        self.assertEqual((-signal.SIGINT, ""), (result.code, result.err))

    def test_nohup_is_respected(self):
        """A command started with SIGHUP ignored goes on ignoring it; one that ended left signals as before."""
        code = ("import signal, velero_requests as v\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
                "show = lambda _: print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "
                "signal.getsignal(signal.SIGTERM) == v.terminate)\n"
                "v.COMMAND_OF['manifests'] = v.COMMAND_OF['manifests']._replace(run=show)\n"
                "v.main(['manifests']); print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)")
        self.assertEqual(b"True True\nTrue\n", self.start(sys.executable, "-c", code).out)


PYZ = "velero_requests.pyz"
# Runs a script in a Python that lacks some modules.
LACKING = ("import runpy, sys\nlacking, *sys.argv = sys.argv[1:]\n"
           "sys.modules.update(dict.fromkeys(lacking.split(',')))\nrunpy.run_path(sys.argv[0], run_name='__main__')")


@lru_cache(maxsize=None)
def built_archives() -> Tuple[str, str]:
    """The folders of two archives made at the same time, as `make pyz` makes one."""
    folders = [tempfile.mkdtemp(prefix="velero-requests-pyz-") for _ in range(2)]
    for folder in folders:
        atexit.register(shutil.rmtree, folder, True)
    builder = os.path.join(FOLDER, ".ci", "pyz")
    if not os.path.exists(builder):
        raise SkipTest("no archive was made: there is no .ci/pyz beside the tests")
    made = [subprocess.Popen([sys.executable, builder, folder], stdout=PIPE, stderr=STDOUT) for folder in folders]
    output = [process.communicate(timeout=300)[0].decode() for process in made]
    if any(process.returncode for process in made):
        if re.search("No module named pip|No matching distribution", output[0]):
            raise SkipTest("no archive was made: there is no pip, or it reaches no packages")
        raise AssertionError(output[0])
    return folders[0], folders[1]


class TestArchive(FakeWorld, TestCase):
    """velero_requests.pyz: one file that needs only Python."""
    def setUp(self):
        super().setUp()
        self.pyz = shutil.copy(os.path.join(built_archives()[0], PYZ), self.at(PYZ))

    def called(self, *argv: str, path: str = "", **variables: str) -> Result:
        """Run the archive, or what is named, in the test's folder with hardly anything in the environment."""
        program = (sys.executable, path or self.pyz) if os.path.isabs(path or self.pyz) else (path,)
        done = subprocess.run([*program, *argv], cwd=self.folder, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, timeout=60,
                              check=False, env={"PATH": os.environ["PATH"], "HOME": self.folder, **variables})
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def test_what_is_in_it(self):
        """Sources, code of this Python, licences; the same bytes each time, small enough for a ConfigMap."""
        first, second = (read_bytes(os.path.join(folder, PYZ)) for folder in built_archives())
        self.assertTrue(first == second, "two archives of the same inputs differ")
        self.assertLess(len(first), 700_000)
        self.assertEqual(read_bytes(os.path.join(built_archives()[0], "SHA256SUMS")).decode(),
                         f"{hashlib.sha256(first).hexdigest()}  {PYZ}\n")
        with zipfile.ZipFile(self.pyz) as archive:
            *names, last = archive.namelist()
            self.assertEqual((sorted(names), "__main__.py"), (names, last))
            self.assertEqual({(1980, 1, 1, 0, 0, 0)}, {member.date_time for member in archive.infolist()})
            self.assertEqual(archive.read("velero_requests.py"), read_bytes(os.path.join(FOLDER, "velero_requests.py")))
            self.assertEqual(importlib.util.MAGIC_NUMBER, archive.read("velero_requests.pyc")[:4])
        self.assertEqual([1, 1], [sum(re.match(f"{package}-.*/LICENSE", name) is not None for name in names)
                                  for package in ("urllib3", "PyYAML")])

    def test_what_it_says_of_itself(self):
        """Each output names the program as it was called, and --version -v what it is made of."""
        os.symlink(PYZ, self.at("vr"))
        for path in (self.pyz, f"./{PYZ}", "./vr"):
            name = os.path.basename(path)
            with self.subTest(path):
                self.assertIn(f"usage: {name} get", self.called("get", "--help", path=path).out.decode())
                self.assertIn(f"see `{name} --help`", self.called("backup", "fly", path=path).err)
                self.assertIn(f"_velero_requests {name}\n", self.called("completion", "bash", path=path).out.decode())
        out, inside = self.called("-v", "--version").out.decode(), re.escape(self.pyz)
        self.assertRegex(out, rf"(?s)\A{PYZ} {vr.__version__}\nPython {sys.version.split()[0]}: .*SSL .*"
                              rf"urllib3 1\.26\.\d+: {inside}/urllib3\nPyYAML 6.*: {inside}/yaml\n")

    def test_what_is_damaged_or_missing(self):
        """One sentence, and no traceback but where the few lines that find the damage are damaged themselves."""
        content = read_bytes(self.pyz)
        damaged = {f"cut at {size}": content[:size] for size in (100, 5000, len(content) // 2, len(content) - 1)}
        with zipfile.ZipFile(self.pyz) as archive:
            main = archive.getinfo("__main__.py").header_offset
        for at in (*random.Random(1).sample(range(100, main), 20), main + 2000, main + 4000, len(content) - 20):
            damaged[f"changed at {at}"] = content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1:]
        for what, wrong in damaged.items():
            with self.subTest(what):
                result = self.called("--help", path=write_bytes(self.at("wrong"), wrong))
                self.assertEqual((1, b""), result[:2], result.err)
                self.assertRegex(result.err, r"\A([^\n]*damaged[^\n]*copy[ -]it[ -]again[^\n]*SHA-256|"
                                             r"[^\n]*can't find '__main__' module[^\n]*)\n\Z")
        for module, words in (("ssl,_ssl", "error: this Python has no ssl\nhint: use another one"),
                              ("zlib", "error: this Python has no zlib, which an archive needs; use another Python")):
            with self.subTest(module):
                result = self.called(module, self.pyz, "plugin", "get", "--kubeconfig", self.kubeconfig,
                                    path=write_bytes(self.at("lacking"), LACKING.encode()))
                self.assertEqual((1, b"", words), (*result[:2], result.err[:len(words)]))

    def test_nothing_else_is_imported_or_written(self):
        """Not from the current folder or PYTHONPATH; nothing is unpacked."""
        for name in ("yaml", "urllib3", "velero_requests"):
            write_bytes(self.at(name + ".py"), b"raise SystemExit('a stranger was run')")
        before = sorted(os.listdir(self.folder))
        for path in ("", self.folder):
            result = self.called("backup", "get", "--kubeconfig", self.kubeconfig, "-n", self.namespace,
                                PYTHONPATH=path, TMPDIR=self.folder)
            self.assertEqual((0, "", True), (result.code, result.err, b"b1 " in result.out), path)
        self.assertEqual(before, sorted(os.listdir(self.folder)))

    def test_the_authorities_of_the_system(self):
        """SSL_CERT_FILE and SSL_CERT_DIR count as they do for the script."""
        with open(self.kubeconfig, encoding="utf-8") as file:
            config = yaml.safe_load(file)
        del config["clusters"][0]["cluster"]["certificate-authority-data"]
        kubeconfig = write_bytes(self.at("system"), json.dumps(config).encode())
        name = subprocess.check_output(["openssl", "x509", "-hash", "-noout", "-in", self.cluster.ca]).decode().strip()
        os.mkdir(self.at("authorities"))
        shutil.copy(self.cluster.ca, self.at("authorities", name + ".0"))
        argv = ("backup", "get", "--kubeconfig", kubeconfig, "-n", self.namespace)
        for path, (code, variables) in product((MODULE, self.pyz), (
                (6, {}), (0, {"SSL_CERT_FILE": self.cluster.ca}), (0, {"SSL_CERT_DIR": self.at("authorities")}))):
            result = self.called(*argv, path=path, **variables)
            self.assertEqual((code, not code), (result.code, b"b1 " in result.out), (path, variables, result.err))

class TestDemo(TestCase):
    """What the README shows first, as a newcomer runs it: `make demo` runs the same."""

    def test_it_plays(self):
        environment = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "--demo"], stdout=PIPE,
                              stderr=STDOUT, timeout=120, check=False, env=environment)
        self.assertEqual((0, True), (done.returncode, b"Every step did what it should" in done.stdout), done.stdout)


# ---- Nobody else is asked: programs where there is only loopback, under an audit hook of Python

LAUNCHER = """import os, runpy, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        arguments = arguments[1]
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        return
    with open(os.environ.get("NOTES", DEFAULT), "a") as notes:
        notes.write(":".join(map(str, arguments[:2])) + "\\n")
sys.addaudithook(note)
del sys.argv[0]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
AT_S3 = "velero-backups.s3.{}.amazonaws.com:443"
ASKED: Any = (  # what is typed behind `python velero_requests.py`, after variables; its exit code; whom it asks
    ("--help", 0, ""), ("version --client-only", 0, ""), ("controller --once", 0, "CLUSTER"),
    ("plugin get", 0, "CLUSTER"), ("backup get", 0, "CLUSTER"), ("backup logs orphan", 3, "CLUSTER"),
    ("backup logs nightly", 0, "CLUSTER STORE"), ("download nightly -o 1", 0, "CLUSTER STORE"),
    ("backup describe nightly --details", 0, "CLUSTER STORE"), ("backup logs nightly --direct", 0, "CLUSTER STORE"),
    ("backup get --direct", 6, "CLUSTER STORE REFUSED"), ("backup logs refused --direct", 6, "CLUSTER REFUSED"),
    ("backup logs nightly --location copy", 0, ""), ("backup get --location own --credentials-file keys", 0, "STORE"),
    ("download nightly -o 2 --location regionless --credentials-file keys", 0, "STORE"),
    ("backup get --location aws --credentials-file keys", 6, AT_S3.format("us-east-1")),
    ("AWS_REGION=eu-west-1 backup get --location aws --credentials-file keys", 6, AT_S3.format("us-east-1")),
    ("backup logs nightly --location eu --credentials-file keys", 6, AT_S3.format("eu-west-1")),
    ("HTTPS_PROXY=http://REFUSED backup logs nightly --location eu --credentials-file keys", 6, "REFUSED"),
    ("backup get --location eu --credentials-file role", 6, "sts.eu-west-1.amazonaws.com:443"),
    *((f"backup get --location {name}", 1, "169.254.169.254:80") for name in ("eu", "own")),  # which may hold keys
    ("AWS_EC2_METADATA_DISABLED=true backup get --location own", 1, ""),
    ("KUBECONFIG=/dev/null backup get", 1, ""), ("KUBECONFIG=refused backup get", 6, "REFUSED"),
    ("KUBECONFIG=nowhere backup logs nightly", 6, "nowhere.invalid:6443"),
    ("KUBECONFIG=untrusting plugin get", 6, "CLUSTER"))


def lay_configurations(stage: Stage) -> None:
    """Put what the rows of ASKED name into the stage's folder and its cluster."""
    store, at, at_aws = stage.store, partial(os.path.join, stage.folder), {"s3Url": "", "s3ForcePathStyle": "false"}
    stage.cluster.install_crds(vr.crd_manifests(False))
    add_location(stage)
    stage.cluster.admin.create(BSL, location_in(store, "refused", BUCKET, {"s3Url": "http://127.0.0.1:1"}), NAMESPACE)
    for name, location in (("nightly", "default"), ("orphan", "gone"), ("refused", "refused")):
        add_backup(stage, name, BACKUP_LOG.encode(), location)
    kubeconfig = yaml.safe_load(read_bytes(at("kubeconfig")))
    for name, cluster in (("refused", {"server": "https://127.0.0.1:1"}), ("untrusting", {
            "server": stage.cluster.url}), ("nowhere", {"server": "https://nowhere.invalid:6443"})):
        kubeconfig["clusters"][0]["cluster"] = cluster
        write_bytes(at(name), yaml.safe_dump(kubeconfig).encode())
    for name, config in (("own", {}), ("regionless", {"region": ""}), ("aws", {**at_aws, "region": ""}),
                         ("eu", {**at_aws, "region": "eu-west-1"})):
        write_bytes(at(name), yaml.safe_dump(location_in(store, name, BUCKET, config, None)).encode())
    store.put(BUCKET, "backups/nightly/nightly-resource-list.json.gz", gzip.compress(b"{}"))
    keys = keys_file(store.access_key, store.secret_key)
    write_bytes(at("keys"), keys.encode())
    write_bytes(at("role"), f"{keys}role_arn = {ROLE}\nsource_profile = default\n".encode())
    write_bytes(at("copy", "backups", "nightly", "nightly-logs.gz"), gzip.compress(b"copied"))


class TestNobodyElseIsAsked(FolderCase):
    """Only hosts of the configuration are connected to or looked up, by commands and controller, in good and bad."""

    def asked(self, name: str) -> Set[str]:
        """Whom the programs have asked since the last look."""
        noted = read_bytes(self.at(name)).decode() if os.path.exists(self.at(name)) else ""
        write_bytes(self.at(name), b"")
        return set(noted.split())

    def test_with_loopback_alone(self):
        """The demo, a controller and the rows of ASKED, by this test once more in a network of its own."""
        if "VELERO_ALONE" not in os.environ:
            command = [*isolated("n"), sys.executable, os.path.abspath(__file__), type(self).__name__]
            done = subprocess.run(command, stdout=PIPE, stderr=STDOUT, timeout=300, check=False, env={
                **os.environ, "KUBEBUILDER_ASSETS": "", "VELERO_ALONE": "yes"})
            self.assertEqual(0, done.returncode, done.stdout.decode(errors="replace"))
            return
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, up
            self.assertRaises(OSError, sock.connect, ("192.0.2.1", 9))  # for there is no route
        launcher = write_bytes(self.at("launcher.py"), LAUNCHER.replace("DEFAULT", repr(self.at("notes"))).encode())
        demo(launcher)
        self.assertEqual([], [line for line in self.asked("notes") if line[:10] != "127.0.0.1:"])
        with set_stage(launcher) as stage:
            lay_configurations(stage)
            places = {"CLUSTER": stage.cluster.host, "STORE": stage.store.host, "REFUSED": "127.0.0.1:1"}
            program = os.path.basename(MODULE)
            with serving(stage, "/bin/sh", "-c", f"NOTES={self.at('served')} exec python {program} controller "
                         "--verify-urls 2>/dev/null"):
                for typed, code, whom in ASKED:
                    for place, host in places.items():
                        typed, whom = typed.replace(place, host), whom.replace(place, host)
                    line = re.sub(r"^((\S+=\S+ )?)", rf"\1exec python {program} ", typed)
                    done = stage.run("/bin/sh", "-c", line, stdout=PIPE, stderr=STDOUT)
                    with self.subTest(typed):
                        self.assertEqual((set(whom.split()), code), (self.asked("notes"), done.returncode),
                                         done.stdout.decode()[-2000:])
            self.assertEqual({stage.cluster.host, stage.store.host, "127.0.0.1:None"},  # looked up
                             self.asked("served"))


def main(argv: List[str]) -> None:
    if argv != ["--demo"]:
        unittest.main()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # or the servers would stay behind
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(demo())
    except KeyboardInterrupt:
        sys.exit(130)


# What waits for many seconds begins first, so that the others fill the time; what measures comes last and alone.
LONG_WAITS = ("real servers", "more real servers", "TestOutageReal", "TestWatchFaults", "TestContractFaultsStore",
              "TestSoak", "TestRights", "TestProxyOfTheEnvironment", "TestKubeconfigLikeKubectl",
              "TestNobodyElseIsAsked", "TestDoctor", "TestThroughFakeNew", "TestThroughFakeOld", "TestGoldenFakeNew",
              "TestCompletion", "TestDownloadSeen", "TestDownloadFaults", "TestCanary", "TestOldStones", "TestDemo")
IN_THE_CLUSTER = ("TestIdentityReal", "TestManifestsReal", "TestRightsReal")
MEASURES = ("TestTimingLaw", "TestLeaks", "TestDownloadMemory")


def group_of(case: type) -> str:
    """What runs in one process: a class, for it shares its servers, or all that needs the real servers."""
    if case.__name__ in MEASURES:
        return "measures"
    if case.__name__ in IN_THE_CLUSTER:
        return "more real servers"
    with_real_servers = "Real" in case.__name__ or issubclass(case, VeleroWorld)
    return "real servers" if with_real_servers and case is not TestOutageReal else case.__name__


def pytest_collection_modifyitems(items: List[Any]) -> None:
    """For pytest-xdist, when this file is its plugin (-p): tell it the groups, in the order in which they begin."""
    import pytest
    order = {name: number for number, name in enumerate((*LONG_WAITS, "", "measures"))}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item.cls)))
    items.sort(key=lambda item: order.get(group_of(item.cls), order[""]))


if __name__ == "__main__":
    main(sys.argv[1:])
