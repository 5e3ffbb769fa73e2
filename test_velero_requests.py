"""Tests of velero_requests.py: `python3 test_velero_requests.py` with urllib3 and PyYAML, `make test` for all of them.

    python3 test_velero_requests.py TestQueue          one class; add .test_name for one test
    python3 test_velero_requests.py --demo             the main job on a machine without a cluster
    python3 test_velero_requests.py --bench            a table of speed and memory

No mocks and no patching: pure functions are given values, everything else talks to a server on loopback. FakeCluster
and FakeStore stand in for the Kubernetes API and an S3 store; the same contract tests run against a real kube-apiserver
and a real S3 server when KUBEBUILDER_ASSETS names the folder with etcd, kube-apiserver and versitygw. VELERO_CRDS names
a folder with Velero's own CRDs. No test sleeps: it waits for a condition with a deadline, or turns the clock.

Contents
    Laws and units       the file itself, every function above the waterline, the queue, inflate, save
    Servers              FakeCluster, FakeStore, RealCluster, RealStore, and the checks that keep the fakes true
    Contract             what the README promises, seen from outside, on fake and real servers alike
    Kubeconfig           as kubectl reads it, exec plugins, proxies, TLS
    Endurance            retries, identities that rotate, watches that survive, rights, a soak
    Object stores        locations, endpoints, signatures beside botocore's, sources of keys, what a store answers
    Downloads            cut, stalled, changed, hostile and full: the file is right or absent
    Layouts, Golden      what get and describe print, beside what the real velero CLI prints
    Demo and benchmark
"""
from __future__ import annotations

import __future__
import ast
import atexit
import base64
import contextlib
import ctypes
import difflib
import dis
import errno
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
import platform
import posixpath
import pty
import py_compile
import queue
import random
import re
import resource as posix_resource
import select
import shlex
import shutil
import signal
import site
import socket
import ssl
import stat
import statistics
import struct
import subprocess
import sys
import tarfile
import tempfile
import termios
import threading
import time
import traceback
import unicodedata
import unittest
import uuid
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from email.utils import formatdate
from types import CodeType, SimpleNamespace
from typing import (
    Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, TYPE_CHECKING, Tuple, Union)
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes, urlencode, urlsplit

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
        key=a_key(), uid="uid-1", version="41", created=after(seconds=-1), deleting=False, target_kind="BackupLog",
        target_name="nightly", phase="", url="", expiration=None, reason="", message="")
    return vr.Request(**{**fields, **over})


def a_status(**over: Any) -> Any:
    """A ServerStatusRequest record, unanswered and one second old unless said otherwise."""
    fields: Dict[str, Any] = dict(key=a_key(vr.STATUS_REQUESTS, "velero-cli-5tn8q"), uid="uid-2", version="42",
                                  created=after(seconds=-1), deleting=False, phase="", processed=None)
    return vr.Request(**{**fields, **over})


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


def signed_answer(expires: Optional[datetime] = None, now: datetime = NOW, skew: timedelta = timedelta(0),
                  **over: Any) -> Dict[str, Any]:
    """The status of a request whose log is signed for with keys that expire, in such a location."""
    url, ends = vr.sign(a_location(**over), "k", some_credentials(expires=expires), now, skew)
    return vr.answer_download(a_download(), "k", url, ends).body["status"]


# Values that a stranger may put where text is expected.
HOSTILE: Tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, "", " ", "\0", "x" * 10000, "../../etc", "\n\x1b[2J", "\ud800", [], [[]], [None],
    {}, {"a": {"b": []}}, {"": ""}, [{"name": 5}], "9999-12-31T23:59:59-12:00")

# Names that no backup or restore can have.
BAD_NAMES: Tuple[str, ...] = (
    "", ".", "..", "/", "a/b", "../x", "a/../../x", "a\\b", "a..b", ".a", "a.", "-a", "a-", "a.-b", "a-.b",
    "A", "a_b", "a b", " a", "a ", "a\n", "a\0b", "\x1b[2J", "a\u2028b", "é", "a\u0301", "%2e%2e", "a%2Fb", "{name}",
    "a?b", "a#b", "a:b", "a" * 254, "x" * 10000, "\ud800", "１")
GOOD_NAMES: Tuple[str, ...] = ("a", "0", "nightly", "nightly-20240501", "a.b.c", "1.2-3.x", "a--b", "a" * 253)

if HAS_HYPOTHESIS:
    # A machine that is busy with other tests is slow at drawing values, too.
    hypothesis.settings.register_profile("shared", suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("shared")
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
FOLDER = os.path.dirname(os.path.abspath(__file__))


def text_of(name: str) -> str:
    """The text of a file of the repository."""
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return file.read()


SOURCE = text_of(MODULE)
STATEMENTS = ast.parse(SOURCE).body

# What arithmetic on values may import; everything else is the world.
PURE = set("""base64 binascii codecs collections configparser contextlib copy datetime difflib email enum functools
    hashlib heapq hmac html ipaddress itertools json math operator posixpath re string struct textwrap types typing
    unicodedata urllib.parse yaml zlib""".split())
WORLDLY_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "log", "breakpoint"}
WORLDLY_ATTRIBUTES = {"now", "today", "utcnow", "localtime", "gmtime", "urandom", "environ", "getenv", "getLogger",
                      "sleep", "monotonic", "uuid4", "token_hex"}
LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
# A text is paid for by everybody who reads it: the most lines and bytes, names at module level (functions and classes),
# lines of a function, and nested statements. These numbers may only become smaller.
BUDGETS = {"velero_requests.py": (6_640, 358_000), "test_velero_requests.py": (14_800, 872_000),
           "README.md": (220, 28_000)}
MOST_NAMES, LONGEST_FUNCTION, DEEPEST = 315, 45, 4
# Variables that the module reads but nobody sets by hand, and old names of some in the README's table.
OTHER_VARIABLES = {"HOME", "PATH", "KUBERNETES_EXEC_INFO", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT",
                   "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_DEFAULT_PROFILE"}


def code_of(statement: ast.stmt) -> CodeType:
    """One module-level statement compiled by itself, annotations as text: scopes are the compiler's own."""
    module = ast.Module([statement], [])
    return compile(module, MODULE, "exec", __future__.annotations.compiler_flag, dont_inherit=True)


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


def imported_by(tree: ast.AST) -> Dict[str, str]:
    """The names that the import statements in it bind, and the modules behind them."""
    names: Dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({(alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names})
        elif isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: node.module or "" for alias in node.names})
    return names


def line_of(pattern: str) -> int:
    """The number of the one line of the source that begins so."""
    found = [number for number, line in enumerate(SOURCE.splitlines(), 1) if re.match(pattern, line)]
    if len(found) != 1:
        raise AssertionError(f"{len(found)} lines of {MODULE} match {pattern!r}")
    return found[0]


def above_the_waterline() -> List[ast.stmt]:
    """The statements between the banner of room 1 and the waterline."""
    first, last = line_of(r"# 1\. "), line_of(r"# The waterline\b")
    return [statement for statement in STATEMENTS if first < statement.lineno < last]


def depth_of(node: ast.AST) -> int:
    """How deep statements are nested in it; `elif` is no deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and node.orelse == [child] and isinstance(child, ast.If)
        nests = isinstance(child, (ast.If, ast.For, ast.While, ast.With, ast.Try)) and not is_elif
        deepest = max(deepest, depth_of(child) + nests)
    return deepest


def run_script(script: str) -> Tuple[int, bytes]:
    """Run Python code in a new process beside the files -> its exit code, and all that it printed."""
    done = subprocess.run([sys.executable, "-B", "-c", script], cwd=FOLDER, timeout=60, check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.returncode, done.stdout


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
            self.assertFalse(later, f"line {statement.lineno} uses a name that is defined later")

    def test_no_name_is_defined_twice(self) -> None:
        """A later function, class or constant of the same name would take the place of an earlier one."""
        for name in ("velero_requests.py", "test_velero_requests.py"):
            names = [found for node in ast.parse(text_of(name)).body for found in bound(node)
                     if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign))]
            self.assertEqual([], sorted({found for found in names if names.count(found) > 1}), name)

    def test_the_law_finds_a_forward_reference(self) -> None:
        """The check sees a global read in a nested function, and no local, attribute or annotation."""
        source = "def f(a: Later) -> Later:\n    b = a.x(y=1)\n    def g():\n        return h(a, b)"
        self.assertEqual({"h"}, set(mentioned(code_of(ast.parse(source).body[0]))))

    def test_above_the_waterline_is_arithmetic(self) -> None:
        """It uses only imports that know no world, asks no clock, environment or chance, and nothing from below."""
        top = imported_by(ast.Module([node for node in STATEMENTS if isinstance(
            node, (ast.Import, ast.ImportFrom, ast.Try, ast.If))], []))
        impure = {name for name, module in top.items() if module not in PURE and module.split(".")[0] not in PURE}
        waterline = line_of(r"# The waterline\b")
        below = {name for node in STATEMENTS if node.lineno > waterline for name in bound(node)}
        for statement in above_the_waterline():
            used = set(mentioned(code_of(statement))) & (impure | below | WORLDLY_NAMES)
            inner = {module for module in imported_by(statement).values() if module.split(".")[0] not in PURE
                     and module not in PURE}
            asked = {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}
            self.assertFalse(used | inner | asked & WORLDLY_ATTRIBUTES, f"line {statement.lineno}")

    def test_contents_equal_the_banners(self) -> None:
        """The module's docstring lists the rooms of its banners, numbered from 1, the waterline behind the ninth."""
        contents = re.findall(r"^ {4,}(\d+)  (\S.*?) {2,}\S", velero_requests.__doc__ or "", re.MULTILINE)
        self.assertEqual(re.findall(r"(?m)^# (\d+)\. (.+?) — ", SOURCE), contents)
        self.assertEqual([str(number) for number in range(1, 18)], [number for number, _ in contents])
        order = re.findall(r"^ +(\d+|===)  ", velero_requests.__doc__ or "", re.MULTILINE)
        self.assertEqual(["9", "===", "10"], order[8:11])
        self.assertTrue(line_of(r"# 9\. ") < line_of(r"# The waterline\b") < line_of(r"# 10\. "))

    def test_every_public_function_and_class_says_what_it_is(self) -> None:
        for node in STATEMENTS:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                self.assertTrue(ast.get_docstring(node), f"{node.name} in line {node.lineno}")

    def test_the_budgets_hold(self) -> None:
        for name, budget in BUDGETS.items():
            text = text_of(name)
            for size, most in zip((text.count("\n"), len(text.encode())), budget):
                self.assertLessEqual(size, most, name)
        names = [node for node in STATEMENTS if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        self.assertLessEqual(len(names), MOST_NAMES)
        for node in ast.walk(ast.parse(SOURCE)):
            if isinstance(node, ast.FunctionDef):
                self.assertLessEqual((node.end_lineno or 0) - node.lineno + 1, LONGEST_FUNCTION, node.name)
                self.assertLessEqual(depth_of(node), DEEPEST, node.name)

    def test_a_start_imports_what_the_command_needs(self) -> None:
        """Help, completion, manifests and the client's version come without urllib3 and yaml."""
        script = ("import contextlib, io, sys, velero_requests\n"
                  "for argv in (['--help'], ['completion', 'bash'], ['manifests'], ['version', '--client-only']):\n"
                  "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
                  "        velero_requests.main(argv)\n"
                  "    assert not {'urllib3', 'yaml'} & set(sys.modules), argv\n")
        self.assertEqual((0, b""), run_script(script))

    def test_no_line_is_too_long(self) -> None:
        """No line of either file has more than 120 characters, a tab, or blanks at its end."""
        for name in ("velero_requests.py", "test_velero_requests.py"):
            wrong = [number for number, line in enumerate(text_of(name).splitlines(), 1)
                     if len(line) > 120 or line != line.rstrip().expandtabs()]
            self.assertEqual([], wrong, name)

    def test_inline_metadata_names_the_imports(self) -> None:
        """The PEP 723 block names exactly the imported packages that are not of the standard library."""
        standard = getattr(sys, "stdlib_module_names", None)
        if standard is None:
            self.skipTest("this Python does not know the names of its own library")
        imported = {module.split(".")[0] for module in imported_by(ast.parse(SOURCE)).values()}
        packages = {"yaml": "PyYAML", "urllib3": "urllib3"}
        block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", SOURCE)
        self.assertEqual({packages[name] for name in imported - set(standard)},
                         set(re.findall(r'"(\w+)[<>=]', block["content"].split("dependencies")[1])))

    def test_the_oldest_python_is_the_same_everywhere(self) -> None:
        """`requires-python` and the version guard name the same oldest Python, and both files are written in it."""
        self.assertIn('# requires-python = ">=3.8"\n', SOURCE)
        self.assertIn("if sys.version_info < (3, 8):\n", SOURCE)
        for name in ("velero_requests.py", "test_velero_requests.py"):
            ast.parse(text_of(name), feature_version=(3, 8))

    def test_importing_does_nothing(self) -> None:
        """Importing either file starts no thread or server, configures no logging and prints nothing."""
        script = ("import logging, os, sys, threading, urllib3, yaml\n"
                  "before = os.listdir('/dev/fd'), list(logging.root.handlers)\n"
                  "import velero_requests\n"
                  "assert (os.listdir('/dev/fd'), list(logging.root.handlers)) == before\n"
                  "assert threading.active_count() == 1\n"
                  "assert not logging.getLogger('velero_requests').handlers\n"
                  "import test_velero_requests\n"
                  "assert threading.active_count() == 1\n")
        self.assertEqual((0, b""), run_script(script))

    def test_the_readme_says_what_the_code_does(self) -> None:
        """Its tables list the exit codes of --help, every command, the rights that are tested, and every variable."""
        readme, codes = text_of("README.md"), [int(member) for member in vr.Exit]
        self.assertIn(vr.EPILOG, vr.build_parser().format_help())
        self.assertEqual(codes, [int(code) for code in re.findall(r"(?m)(?:^| ) (\d+) ", vr.EPILOG)])
        self.assertEqual(codes, [int(code) for code in re.findall(r"(?m)^\| (\d+) \|", readme)])
        self.assertEqual(set(), {command.words for command in vr.COMMANDS if not re.search(
            rf"\b{command.words}\b", readme)}, "not shown in the README")
        rights = re.search(r"```yaml\n(- \{apiGroups.*?)```", readme, re.DOTALL)
        self.assertEqual(LEAST, yaml.safe_load(rights[1] if rights else "")[:len(LEAST)], "the controller's rights")
        constants = [str(node.value) for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.Constant)]
        variables = {text for text in constants if re.fullmatch(
            r"(AWS|VELERO|KUBERNETES|NO)_[A-Z0-9_]+|HTTPS?_PROXY|KUBECONFIG", text)}
        told = set(re.findall(r"\b(?:AWS|VELERO|NO)_[A-Z0-9_]+|HTTPS?_PROXY|KUBECONFIG", readme))
        families = tuple(name for name in told if name.endswith("_"))  # AWS_CONTAINER_…
        self.assertEqual(set(), {name for name in variables - OTHER_VARIABLES - told if not name.startswith(families)})
        self.assertEqual(set(), told - variables - {*families, "VELERO_CRDS"}, "not in the module")
        entry_points = re.findall(r"`([a-zA-Z_]+)`", readme.split("## From Python")[1].split("## ")[0])
        self.assertEqual([], [name for name in entry_points if not hasattr(vr, name) and name not in ("hints", "exit")])

    def test_the_checkout_shows_four_files(self) -> None:
        """At its top level the repository holds the four files, and else only names that begin with a dot."""
        try:
            listed = subprocess.run(["git", "ls-files", "-z"], cwd=FOLDER, check=True, stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL, timeout=60).stdout.decode()
        except (OSError, subprocess.CalledProcessError):
            self.skipTest("there is no git here, or this is no checkout")
        top = {path.split("/")[0] for path in listed.split("\0") if path}
        self.assertLessEqual({name for name in top if not name.startswith(".")}, {
            "velero_requests.py", "test_velero_requests.py", "README.md", "Makefile"})


# ------------------------------------------------------------------------------------------------------------
# Section 2: errors
# ------------------------------------------------------------------------------------------------------------


class TestErrors(unittest.TestCase):
    """Tests for `Error` and its family, and for what records show."""

    def test_exit_codes(self) -> None:
        for expected, error in (
                (1, vr.Error("x")), (2, vr.UsageError("x")), (1, vr.ConfigError("x")), (1, vr.InvalidRequest("x")),
                (3, vr.NotFound("x")), (4, vr.TimedOut("x")), (6, vr.Unreachable("x")),
                (5, vr.ApiError("x", status=401)), (5, vr.ApiError("x", status=403)), (3, vr.Missing("x", status=404)),
                (1, vr.ApiError("x", status=500)), (5, vr.StoreError("x", status=403)), (1, vr.StoreError("x")),
                (3, vr.StoreError("x", status=404)), (3, vr.RequestFailed("x", reason="BackupNotFound")),
                (1, vr.RequestFailed("x", reason="Failed"))):
            with self.subTest(error=repr(error)):
                self.assertEqual(expected, error.exit)

    def test_only_time_may_mend_what_is_retried(self) -> None:
        self.assertTrue(vr.NotFound("x").retry and vr.ConfigError("x").retry and vr.Unreachable("x").retry)
        self.assertFalse(vr.InvalidRequest("x").retry or vr.UsageError("x").retry)

    def test_records_show_no_secret(self) -> None:
        """No record shows a field that is named like a secret, whatever is in it; the list says which are harmless."""
        telling = re.compile("(?i)token$|password|secret|access_key|key$|_data$|certificate$|ca_cert$|body|argument|"
                             "environment|command|external|headers|document|content|url$|clusters|users|contexts")
        harmless = {"Artifact.key", "Request.key", "Location.ca_secret", "Location.secret_name", "Location.secret_key",
                    "ExecPlugin.command", "Bucket.url", "Command.arguments"}
        records = {name: record for name, record in vars(vr).items()
                   if isinstance(record, type) and hasattr(record, "_fields")}
        self.assertGreater(len(records), 15)
        for name, record in records.items():
            for field in filter(telling.search, record._fields):
                filled = record(**{**dict.fromkeys(record._fields), field: "s3cr3t"})
                with self.subTest(name=name, field=field):
                    self.assertEqual(f"{name}.{field}" in harmless, "s3cr3t" in repr(filled))


class TestReader(unittest.TestCase):
    """Tests for `Reader`, which kubeconfigs and location files are read by."""

    def test_types(self) -> None:
        """What is absent or null is empty; another type is an error that names the place and not the value."""
        document = {"text": "x", "true": True, "one": 1, "list": ["a"], "mixed": ["a", 5], "map": {"a": 1}, "no": None}
        for name, kind, expected in (
                ("text", str, "x"), ("true", bool, True), ("one", int, 1), ("list", list, ["a"]),
                ("list", [str], ["a"]), ("map", dict, {"a": 1}), ("no", str, ""), ("no", bool, False),
                ("gone", list, []), ("gone", [str], []),
                ("text", int, "X: text must be a whole number"), ("one", bool, "X: one must be true or false"),
                ("true", int, "X: true must be a whole number"), ("text", list, "X: text must be a list"),
                ("one", str, "X: one must be a string: write it in quotes"), ("list", str, "X: list must be a string"),
                ("list", dict, "X: list must be a mapping"), ("mixed", [str], r"X: mixed\[1\] must be a string:")):
            with self.subTest(name, kind=kind):
                if isinstance(expected, str) and expected.startswith("X"):
                    self.assertRaisesRegex(vr.ConfigError, expected, vr.Reader(document, "X").get, name, kind)
                else:
                    self.assertEqual(vr.Reader(document, "X").get(name, kind), expected)
        self.assertRaisesRegex(vr.ConfigError, "X has no no", vr.Reader(document, "X").need, "no")
        self.assertRaisesRegex(vr.ConfigError, "X must be a mapping", vr.Reader, [], "X")


# ------------------------------------------------------------------------------------------------------------
# Section 3: text and time
# ------------------------------------------------------------------------------------------------------------

class TestTime(unittest.TestCase):
    """Tests for `parse_time` and `format_time`."""

    def test_instants(self) -> None:
        """Every notation of RFC 3339 becomes an aware instant in UTC; a missing offset is UTC."""
        for text, expected in (
                ("2026-05-04T12:00:00Z", NOW), ("2026-05-04t12:00:00z", NOW), ("2026-05-04 12:00:00Z", NOW),
                ("2026-05-04T12:00:00", NOW), ("2026-05-04T12:00:00-00:00", NOW), ("2026-05-04T14:00:00+02:00", NOW),
                ("2026-05-04T06:30:00-05:30", NOW), ("2026-05-05T00:00:00+12:00", NOW),
                ("2026-05-04T12:00:00.5Z", after(seconds=.5)), ("2026-05-04T12:00:00.000001Z", after(microseconds=1)),
                ("2026-05-04T12:00:00.123456789Z", after(microseconds=123456)),
                ("2026-05-04T12:00:00." + "0" * 99 + "Z", NOW), ("9999-12-31T23:59:59Z", FAR_OFF),
                ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=timezone.utc)),
                ("0001-01-01T00:00:00Z", LONG_AGO)):
            with self.subTest(text=text[:40]):
                parsed = vr.parse_time(text)
                self.assertEqual((expected, timedelta(0)), (parsed, parsed.utcoffset()))

    def test_what_is_no_instant(self) -> None:
        """What is no text, no date, or no instant that Python can hold is None."""
        for text in (5, b"2026-05-04T12:00:00Z", NOW, "tomorrow", "2026-05-04", "12:00:00Z", "2026-05-04T12:00Z",
                     "2026-05-04T12:00:00Z\n", " 2026-05-04T12:00:00Z", "2026-05-04T12:00:00Z" * 2,
                     "2026-02-30T12:00:00Z", "2026-13-01T12:00:00Z",
                     "2026-05-04T25:00:00Z", "2026-05-04T12:60:00Z", "0000-01-01T00:00:00Z",
                     "-2026-05-04T12:00:00Z", "10000-01-01T00:00:00Z", "2026-05-04T12:00:00+99:99",
                     "２０２６-05-04T12:00:00Z", "2026-05-04T12:00:00.Z", "1e400", "9" * 10000, "9999-12-31T23:59:59-00:01",
                     "0001-01-01T00:00:00+00:01", *HOSTILE):
            with self.subTest(text=ascii(text)[:40]):
                self.assertIsNone(vr.parse_time(text))

    def test_whole_seconds_in_utc(self) -> None:
        """Instants are written in UTC and cut off at the second, and are equal when they are read again."""
        for instant, expected in (
                (NOW, "2026-05-04T12:00:00Z"), (after(microseconds=999999), "2026-05-04T12:00:00Z"),
                (NOW.astimezone(timezone(timedelta(hours=2))), "2026-05-04T12:00:00Z"),
                (FAR_OFF, "9999-12-31T23:59:59Z"), (LONG_AGO, "0001-01-01T00:00:00Z")):
            with self.subTest(expected=expected):
                self.assertEqual(expected, vr.format_time(instant))
                self.assertEqual(instant.replace(microsecond=0), vr.parse_time(expected))


class TestDuration(unittest.TestCase):
    """Tests for `parse_duration` and `format_duration`, beside Go's time.Duration."""

    def test_what_go_accepts(self) -> None:
        for text, expected in (
                ("0", 0), ("+0", 0), ("-0", 0), ("0s", 0), ("30s", 30), ("5m", 300), ("1h30m", 5400), ("1h2m3s", 3723),
                ("1.5s", 1.5), (".5s", .5), ("5.s", 5), ("250ms", .25), ("1us", 1e-6), ("1µs", 1e-6), ("1μs", 1e-6),
                ("1ns", 1e-9), ("-1.5h", -5400), ("+5s", 5), ("1m1m", 120), ("007s", 7), ("0.000000001h", 3.6e-6)):
            with self.subTest(text=text):
                self.assertAlmostEqual(expected, vr.parse_duration(text), places=12)

    def test_what_go_refuses(self) -> None:
        for text in ("", "-", "+", ".", "s", ".s", "5", "00", "1.5", "1x", "1d", "1 s", " 1s", "1s ", "1s\n", "1h 2m",
                     "--1s", "+-1s", "1e3s", "1,5s", "inf", "nan", "∞s", "１s", "1S", "2562048h", "9" * 400 + "h"):
            with self.subTest(text=text[:40]), self.assertRaisesRegex(ValueError, "^.{1,119}$"):
                vr.parse_duration(text)

    def test_go_notation(self) -> None:
        """Seconds are written as Go writes them, milliseconds being the finest, and can be read again."""
        for seconds, expected in (
                (0, "0s"), (.025, "25ms"), (.25, "250ms"), (.999, "999ms"), (.9996, "1s"), (1, "1s"), (1.5, "1.5s"),
                (30, "30s"), (59.9996, "1m0s"), (60, "1m0s"), (90, "1m30s"), (300, "5m0s"), (3600, "1h0m0s"),
                (5400.25, "1h30m0.25s"), (86400, "24h0m0s"), (-90.5, "-1m30.5s"), (-.0001, "0s")):
            with self.subTest(seconds=seconds):
                self.assertEqual(expected, vr.format_duration(seconds))
                self.assertAlmostEqual(seconds, vr.parse_duration(expected), places=3)
        self.assertEqual(("1.5µs", "12ns"), (vr.format_duration(1.5e-6, 9), vr.format_duration(1.2e-8, 9)))


class TestOneLine(unittest.TestCase):
    """Tests for `one_line`, `add_if_new` and `backoff`."""

    def test_foreign_text_becomes_harmless(self) -> None:
        """Line ends, tabs, escape sequences, direction marks and lone surrogates become single blanks; then the cut."""
        for text, expected in (
                ("", ""), ("plain", "plain"), ("  a \t b\r\nc  ", "a b c"), ("a\x1b[31mb", "a [31mb"), ("a\0b", "a b"),
                ("a\u2028b\u2029c", "a b c"), ("a\u202eb", "a b"), ("a\ud800b", "a b"), ("grün ✓", "grün ✓"),
                (None, "None"), (ValueError("x\ny"), "x y"), ("\x7f\x9b", ""), ("x" * 300, "x" * 300),
                ("x" * 301, "x" * 299 + "…")):
            with self.subTest(expected=expected[:40]):
                self.assertEqual(expected, vr.one_line(text))
        self.assertEqual("abcd…", vr.one_line("abcdefgh", 5))

    def test_no_more_is_kept_than_there_is_room_for(self) -> None:
        """Each text is the first of its kind once, as far as it is kept, and beyond the limit none is."""
        seen: Set[str] = set()
        rows = (("a", True), ("a", False), ("x" * 9999, True), ("x" * 8888, False), ("b", False))
        self.assertEqual([vr.add_if_new(text, seen, 2) for text, _ in rows], [first for _, first in rows])
        self.assertLess(sum(map(len, seen)), 2000)


# What a log line must never hold, and the sentence around it.
SECRET_SHAPES: Tuple[str, ...] = (
    "https://s3/k?X-Amz-Date=20260504T120000Z&X-Amz-Signature={}", "https://s3/k?X-Amz-Credential={}&X-Amz-Date=2026",
    "https://s3/k?a=b&X-Amz-Security-Token={}&x=y", "https://s3/k?x-amz-signature={}&x-amz-expires=600",
    "https://s3/k?Expires=600&Signature={}", "https://s3/k?AWSAccessKeyId={}&Expires=600",
    "https://s3/k?SecurityToken={}&Expires=600", "https://storage.googleapis.com/k?X-Goog-Signature={}&x=y",
    "https://storage.googleapis.com/k?GoogleAccessId={}", "https://a.blob.core.windows.net/c/k?sv=2020&sig={}&se=2026",
    "https://sts?WebIdentityToken={}&a=b", "https://s3/k?SessionToken={}", "Authorization: Bearer {}",
    "authorization: bearer {}, next", "Authorization: Basic {}",
    "POST / x-amz-security-token:{} host", "X-Amz-Security-Token: {}",
    "cannot reach https://user:{}@proxy.example:3128/",
    "cannot reach http://{}@proxy.example", "('https://s3/k?X-Amz-Signature={}', 443)",
    '{{"url": "https://s3/k?X-Amz-Signature={}"}}',
    *(f"https://proxy/?u=https%3A%2F%2Fs3%2Fk%3Fa%3Db%26{name}{equals}{{}}"
      for equals in ("%3D", "%253D", "%25253d", "\\u003d")
      for name in ("X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "Security-Token", "sig")))


class TestRedact(unittest.TestCase):
    """Tests for `redact`."""

    def test_every_shape_of_a_secret(self) -> None:
        """Signatures, credentials, tokens and passwords are blanked wherever they stand; once more changes nothing."""
        for sentence in SECRET_SHAPES:
            with self.subTest(sentence):
                redacted = vr.redact(sentence.format("AKIAsecret%2F20260504/eu-west-1+~_-.abc=="))
                self.assertNotRegex(redacted, "secret|abc")
                start = sentence.split("{}")[0].replace("{{", "{").replace("user:", "")
                self.assertEqual(start, redacted[:redacted.index("***")])
                self.assertEqual(redacted, vr.redact(redacted))

    def test_only_the_secret_goes(self) -> None:
        """Host and path stay, with an `@` in the path too, and words that only sound like secrets."""
        for text, expected in (
                ("https://u:p@h/a@b", "https://***@h/a@b"), ("https://u:p@q@h/a", "https://***@h/a"),
                ("https://u:p/q@h/a", "https://***@h/a"), ("sig%3Dabc%26se%3D5", "sig%3D***%26se%3D5"),
                ("sig%253Dabc%2526se", "sig%253D***%2526se"), ("sig=abc&se=5", "sig=***&se=5"),
                *((text, text) for text in (
                    "", "Backup velero/nightly does not exist", "https://bkt.s3.eu-west-1.amazonaws.com/backups/b.gz",
                    "X-Amz-Date=20260504T120000Z&X-Amz-Expires=600", "the signature does not match",
                    "mail to ops@example.com", "https://h/a and ops@example.com", "https://h/a@b/c?d=e@f",
                    "https://h:9000/a@b", "https://[::1]:9/a@b", "https://h?a@b", "https://u:1/q@h"))):
            with self.subTest(text):
                self.assertEqual(expected, vr.redact(text))

    def test_the_cut(self) -> None:
        """Long text is cut before it is looked at, and no secret is cut in half and shown."""
        for end in ("https://u:s3cr3t@h", "a https://u:s3cr3t@h", "sig=s3cr3t"):
            for place in range(30):
                redacted = vr.redact("word " * 13_000 + "x" * (vr.REDACTED_LIMIT - 65_000 - place) + " " + end)
                self.assertNotIn("s3cr", redacted)
                self.assertLessEqual(len(redacted), vr.REDACTED_LIMIT + 1)

    def test_our_own_urls(self) -> None:
        """Of a URL signed here, with a token, nothing that opens the store is left."""
        credentials = some_credentials(session_token="AQoDYXdzEPT//wEXAMPLE+token=")
        url = vr.presign(vr.Address("https", "h", "/k", "eu-west-1"), credentials, NOW, vr.URL_LIFE)
        parameters = dict(parse_qsl(urlsplit(vr.redact(url)).query))
        self.assertEqual({"***"}, {parameters[f"X-Amz-{name}"] for name in (
            "Signature", "Credential", "Security-Token")})

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_any_text(self) -> None:
        """Redacting twice is redacting once, for any text."""
        words = strategies.lists(strategies.sampled_from((
            "Bearer ", "sig=", "X-Amz-Signature=", "https://", "@", "&", " ", "***", "a", '"', "Signature=")))
        hypothesis.given(words.map("".join) | strategies.text())(
            lambda text: self.assertEqual(vr.redact(text), vr.redact(vr.redact(text))))()


class TestLines(unittest.TestCase):
    """Tests for `lines`."""

    def test_any_cut_gives_the_same_lines(self) -> None:
        """However the bytes are cut, also within a character; a last line without its newline is dropped."""
        for data in ('{"a":1}\n\n{"b":"grün ✓"}\nend\n'.encode(), b"whole\nhalf", b"half", b"", b"xxxxxxxx\n"):
            for size in range(1, len(data) + 2):
                chunks = [data[start:start + size] for start in range(0, len(data), size)]
                self.assertEqual(data.split(b"\n")[:-1], list(vr.lines(chunks, limit=24)), f"chunks of {size}")

    def test_a_line_without_end(self) -> None:
        """A line that grows beyond the limit is an error, and the lines before it are handed out."""
        endless = vr.lines(itertools.chain([b"first\n"], itertools.repeat(b"xxxx")), limit=1000)
        self.assertEqual(b"first", next(endless))
        self.assertRaisesRegex(vr.Error, "1000 bytes", next, endless)
        self.assertEqual([b"x" * 8], list(vr.lines([b"xxxx", b"xxxx", b"\n"], limit=8)))


# What takes a careless reader too long: a piece that is repeated, or how a text begins, goes on and ends.
NASTY: Tuple[Tuple[str, str, str], ...] = (*(("", piece, "") for piece in (
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
    """The same for text."""
    return lambda text: function(text.encode("utf-8", "replace"))


def in_pieces(function: Callable[[Iterable[bytes]], Any]) -> Callable[[str], Any]:
    """The same for a text that comes in small pieces."""
    return lambda text: list(function(bytes(piece) for piece in zip(*[iter(text.encode("utf-8", "replace"))] * 4)))


def nasty_screen(text: str) -> Any:
    """A screen with a text in many places."""
    evil = {"metadata": {"name": text, "labels": {text: text}}, "spec": {"ttl": text, "labelSelector": {
        "matchLabels": {text: text}}, "orderedResources": {text: text}}, "status": {"phase": text, "errors": 1}}
    related = {vr.DELETE_REQUESTS: [], vr.POD_VOLUME_BACKUPS: []}
    artifacts = {"BackupResults": {"errors": {"namespaces": {text: [text]}}}, "BackupResourceList": {text: [text]}}
    screen = vr.Description(vr.BACKUPS, evil, related, artifacts, localize=lambda instant: instant, details=True)
    return screen.text, screen.json


def warned_of(text: str) -> None:
    """An answer of the API with a warning; nothing is sent for it."""
    vr.connect(vr.Cluster("http://127.0.0.1:1"))._tell_warnings({"Warning": text})


PLUGIN = vr.ExecPlugin("x", (), (), vr.EXEC_VERSIONS[0], "", False, "Never")

# Every function that reads what a stranger wrote.
READERS: Dict[str, Callable[[str], Any]] = {
    "parse_time": vr.parse_time, "parse_duration": vr.parse_duration,
    "redact": vr.redact, "one_line": vr.one_line, "printable": vr.printable,
    "decode_base64": vr.decode_base64, "parse_json": deeper(vr.parse_json), "lines": in_pieces(vr.lines),
    "aligned": lambda text: vr.aligned([vr.printable(text) + "\t", "a\tb\tc"] * 50),
    "table": lambda text: vr.table([(text, text)] + [("a", "b")] * 99),
    "is_http_url": vr.is_http_url, "has_dot_segment": vr.has_dot_segment,
    "_goes_before_host": lambda text: vr._goes_before_host(text, vr.Address("http", text, "")),
    "bucket_address": lambda text: vr.bucket_address(a_location(region=text, bucket=text)),
    "location_from": lambda text: vr.location_from({"metadata": {"name": text}, "spec": {
        "provider": "aws", "objectStorage": {"bucket": "b", "prefix": text, "caCert": text}, "config": {text: text}}}),
    "object_key": lambda text: vr.object_key(text, vr.TARGETS["BackupLog"], "n"),
    "ini_sections": deeper(lambda content: vr.merge_profiles(vr.ini_sections(content, "X"), {})),
    "identity_from_exec": lambda text: vr.identity_from_exec({"apiVersion": PLUGIN.api_version, "status": {
        "token": "t", "expirationTimestamp": text}}, PLUGIN),
    "is_object_name": vr.is_object_name, "rule_for": lambda text: vr.rule_for("GET", "/apis/" + text, False),
    "_unescaped": vr._unescaped, "xml_fields": deeper(vr.xml_fields), "listed_prefixes": deeper(vr.listed_prefixes),
    "dns_label": lambda text: vr.dns_label(text, "X"),
    "endpoint_from": lambda text: vr.endpoint_from(f"https://{text}", "X"),
    "is_at_aws": lambda text: a_location(s3_url=f"https://s3.{text}").is_at_aws(),
    "object_info": lambda text: vr.object_info(206, dict.fromkeys(("Content-Range", "Content-Length", "ETag"), text)),
    "backup_sort_key": vr.backup_sort_key, "json_text": vr.json_text, "_add": nasty_screen,
    "_yaml_scalar": lambda text: vr.yaml_text({text: [text]}),
    "tls_context": deeper(lambda pem: vr.tls_context(vr.Trust(pem, alone=True))),
    "parse_yaml": deeper(functools.partial(vr.parse_yaml, what="X")),
    "api_error": deeper(lambda body: vr.api_error(400, body, "GET", "/")), "_tell_warnings": warned_of,
    "retry_after_seconds": lambda text: vr.retry_after_seconds(text, NOW),
    "clock_skew": lambda text: vr.clock_skew({"Date": text}, NOW),
    "_meaning": lambda text: vr._meaning(403, "AccessDenied", text, ""), "_what_is": deeper(vr._what_is),
    "store_refusal": deeper(lambda body: vr.store_refusal(
        403, b"<Error><Code>SignatureDoesNotMatch</Code><CanonicalRequest>%b</CanonicalRequest>" % body, {},
        "the store", "https://h/k", NOW)),
    "decode_aws_chunked": in_pieces(vr.decode_aws_chunked),
    "inflate": in_pieces(vr.inflate)}
BOMBS: Tuple[Tuple[str, Callable[[Any], Any], Any, str], ...] = (  # name, reader, text, words of the error
    ("redaction", vr.redact, "a://" * 25_000, ""), ("redaction of one word", vr.redact, "https://a:b" * 100_000, ""),
    ("blanks in an ini file", READERS["ini_sections"], "[x]\nk" + " " * 60_000, "line 2"),
    ("a large ini file", READERS["ini_sections"], "#" * (1 << 20) + "#", "X is larger than 1 MiB"),
    ("a duration", vr.parse_duration, "1" * 1_200, "invalid duration"),
    ("a duration of many parts", vr.parse_duration, "1ns" * 34, "invalid duration"),
    ("a bundle without ends", READERS["tls_context"], "-----BEGIN CERTIFICATE-----" * 38_000, "no PEM certificate"),
    ("a large bundle", READERS["tls_context"], "-" * ((1 << 20) + 1), "certificate authority is larger than 1 MiB"),
    ("a long line in bytes", in_pieces(vr.lines), "x" * 300_000, ""),
    ("a name of places", lambda name: vr.Fields({name: [5] * 9999}, "", {})("", {str: [str]}), "k" * 1_000_000, ""),
    ("a wide cell", vr.table, [("x" * 1_000_000, "y")] + [("x", "y")] * 9999, ""),
    ("a wide line", vr.aligned, ["x" * 1_000_000 + "\ty"] + ["x\ty"] * 9999, ""),
    ("depth of a refusal", READERS["api_error"], "[" * 60_000, ""),
    ("JSON of empty mappings", vr.decode_json, [b"[" + b"{}," * 5_000_000 + b"{}]"], "elements, too large to be shown"),
    ("JSON of mappings in an answer", vr.parse_json, b"[" + b"{}," * 5_000_000 + b"{}]", "more than 2200000 elements"),
    ("JSON of quotes", vr.parse_json, b'",' * 8_000_000, "elements"),
    ("JSON of digits", vr.parse_json, b"[" + b"9" * 1_000_000 + b"]", "no JSON"),
    ("gzip of tiny members", lambda text: list(vr.inflate([text])), gzip.compress(b"") * 60_000, ""))
NO_READERS = {  # what they read is no stranger's text, or has been read by one of the above
    "_check_yaml": "parse_yaml is timed with it",
    "read_body": "Content-Length, which http.client bounds",
    "parse_http_date": "retry_after_seconds and clock_skew are timed with it",
    "_is_exempt": "the environment", "find_part": "names of files",
    "open_part": "an ETag, of which 64 characters are looked at",
    "value_of": "the command line", "run_download": "a URL that is_http_url has seen"}
READING = re.compile(r"(re|yaml|json|configparser|xml|base64|email\.utils|PATTERN)\."
                     r"(match|fullmatch|search|find\w*|sub\w*|split|load\w*|parse\w*|decode|b64decode)")


def dotted(node: Any) -> str:
    """A name with its attributes, as it is written; of anything else only the attributes."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def readers_in(source: str) -> Set[str]:
    """The functions of a source that apply a regular expression, or a parser of the library, to something."""
    statements = ast.parse(source).body
    patterns = {dotted(node.targets[0]) for node in statements if isinstance(node, ast.Assign)
                and dotted(getattr(node.value, "func", None)) == "re.compile"}
    found = set()
    inside = [node for outer in statements for node in ([outer] if not isinstance(outer, ast.ClassDef) else outer.body)]
    for function in (node for node in inside if isinstance(node, ast.FunctionDef)):
        for call in (dotted(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)):
            subject, _, verb = call.rpartition(".")
            if READING.fullmatch(f"PATTERN.{verb}" if subject in patterns else call):
                found.add(function.name)
    return found


class TestTimingLaw(unittest.TestCase):
    """Text of strangers takes time in proportion to its length, whatever it is."""

    def setUp(self) -> None:
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

    def check(self, function: Callable[[str], Any], head: str, piece: str, tail: str) -> None:
        """Twice the text takes less than three times as long; what takes no time worth measuring is not measured."""
        short, long = (head + piece * (size // len(piece)) + tail for size in (10_000, 20_000))
        if self.seconds(function, long)[0] > 0.01:
            once = self.seconds(function, short, 3)[0]
            self.assertLess(self.seconds(function, long, 3)[0], 3 * once, f"{once} s for half of {(head, piece, tail)}")

    def test_twice_the_text_takes_less_than_three_times_as_long(self) -> None:
        """For every reader, and every nasty text; no function that reads is missing in the tables."""
        for name, function in READERS.items():
            with self.subTest(name):
                for nasty in NASTY:
                    self.check(function, *nasty)
        functions = {node.name for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.FunctionDef)}
        self.assertEqual(set(), readers_in(SOURCE) - {*READERS, *NO_READERS}, "readers that are in no table")
        self.assertEqual(set(), {*READERS, *NO_READERS} - functions, "functions that are gone")

    def test_no_text_is_a_bomb(self) -> None:
        """Each of these took seconds, minutes or all memory; now it is refused, or read, in a moment."""
        for what, function, text, outcome in BOMBS:
            with self.subTest(what):
                taken, said = self.seconds(function, text)
                self.assertLess(taken, 1.0)
                self.assertIn(outcome, said)
                self.assertEqual(bool(outcome), bool(said), said)

    def test_the_law_sees_what_it_is_to_see(self) -> None:
        """Compiled patterns, functions of `re`, parsers; and a quadratic function fails."""
        source = "import re\n_P = re.compile('a')\ndef f(x):\n    {}\n"
        for line, seen in (("_P.search(x)", {"f"}), ("re.sub('a', '', x)", {"f"}), ("json.loads(x)", {"f"}),
                           ("yaml.safe_load(x)", set()), ("x.split()", set()), ("yaml.load(x)", {"f"})):
            self.assertEqual(readers_in(source.format(line)), seen, line)
        with self.assertRaisesRegex(AssertionError, "for half of"):
            self.check(lambda text: re.search("a+b", text), "", "a", "")


class TestParseJson(unittest.TestCase):
    """Tests for `parse_json`."""

    def test_what_is_read(self) -> None:
        """All of JSON, marks in strings and escapes included, a hundred levels deep."""
        for value in (None, 0, -1.5e300, 10 ** 300, "", "\\", '"', '\\"', "[", "{\"", "\ud800", "ü😀", [], {}, [{}],
                      {"": ""}, {"[": "]"}, {"a,b": ['"', "\\\\", "}{"]}, ["\\"], ['\\"[', "]"],
                      json.loads("[" * 100 + "]" * 100)):
            for ascii_only in (True, False):
                text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
                for content in (text, bytearray(text), b"\xef\xbb\xbf" + text):
                    self.assertEqual(vr.parse_json(content), value)
        self.assertEqual(vr.parse_json(b'["[{,,,,,}]","\\",,,,"]', 2), ["[{,,,,,}]", '",,,,'])

    def test_what_is_refused(self) -> None:
        """One error without a word of it; depth and elements have a limit, in strings they do not count."""
        for content, most, words in (
                *((content, 10 ** 6, "^is no JSON$") for content in (
                    b"", b" ", b"s3cr3t", b"[", b"]", b"[}", b'["s3cr3t', b'"\\', b"{s3cr3t}", b"[1,]", b"\xff",
                    "[]".encode("utf-16"), b"[" + b"9" * 401 + b"]", b"]" * 200 + b"[" * 200,
                    b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 100_000, b'{"a":' * 100_000)),
                (b"[0,0,0,0]", 3, "3 elements"), (b"[{},0]", 4, "4 elements"), (b'["a","b","c","d"]', 3, "3 elements"),
                (b'",' * 99, 3, "3 elements")):
            with self.subTest(content[:9]), self.assertRaisesRegex(ValueError, words) as caught:
                vr.parse_json(content, most)
            self.assertEqual(isinstance(caught.exception, vr.TooLarge), "JSON" not in words)


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
    """Tests for `request_from` with a DownloadRequest."""

    def test_fields(self) -> None:
        status = {"phase": "Processed", "downloadURL": "https://h/k", "expiration": "2026-05-04T12:10:00Z"}
        self.assertEqual(a_download(), vr.request_from(vr.DOWNLOAD_REQUESTS, DOWNLOAD_DOCUMENT))
        self.assertEqual(a_download(phase="Processed", url="https://h/k", expiration=after(minutes=10)),
                         vr.request_from(vr.DOWNLOAD_REQUESTS, {**DOWNLOAD_DOCUMENT, "status": status}))
        self.assertTrue(vr.request_from(vr.DOWNLOAD_REQUESTS, {"metadata": {"deletionTimestamp": "x"}}).deleting)
        self.assertFalse(vr.request_from(vr.DOWNLOAD_REQUESTS, {"metadata": {"deletionTimestamp": None}}).deleting)

    def test_reasons(self) -> None:
        """A reason is our annotation, else a newer Velero's phase Failed with its message."""
        ours = {vr.REASON: "BackupNotFound", vr.MESSAGE: "no such backup"}
        theirs = {"phase": "Failed", "message": "m"}
        for annotations, status, expected in (
                (None, None, ("", "")), (ours, None, ("BackupNotFound", "no such backup")),
                (None, theirs, ("Failed", "m")), (ours, theirs, ("BackupNotFound", "no such backup")),
                (None, {"phase": "Failed"}, ("Failed", "")), (None, {"phase": "New", "message": "m"}, ("", ""))):
            with self.subTest(expected=expected):
                document = {"metadata": {"annotations": annotations}, "status": status}
                request = vr.request_from(vr.DOWNLOAD_REQUESTS, document)
                self.assertEqual(expected, (request.reason, request.message))

    def test_any_field_may_be_wrong(self) -> None:
        full = {**DOWNLOAD_DOCUMENT, "status": {"phase": "New", "downloadURL": "u", "expiration": "e", "message": "m"}}
        for value in HOSTILE:
            self.assertEqual("", vr.request_from(vr.DOWNLOAD_REQUESTS, value).target_name)
            for document in with_places_filled(full, value):
                request = vr.request_from(vr.DOWNLOAD_REQUESTS, document)
                texts = (request.uid, request.version, request.target_kind, request.phase, request.url, request.reason)
                self.assertTrue(all(isinstance(text, str) for text in texts), document)

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_random_documents(self) -> None:
        @hypothesis.given(hostile_documents())
        def check(document: Any) -> None:
            hash(vr.request_from(vr.DOWNLOAD_REQUESTS, document))
            hash(vr.request_from(vr.STATUS_REQUESTS, document))
            vr.plugins_from(document)
        check()


class TestStatusRequestFrom(unittest.TestCase):
    """Tests for `request_from` with a ServerStatusRequest, and `plugins_from`."""

    def test_fields(self) -> None:
        metadata = {"name": "velero-cli-5tn8q", "namespace": "velero", "uid": "uid-2", "resourceVersion": "42",
                    "creationTimestamp": "2026-05-04T11:59:59Z"}
        status = {"phase": "Processed", "processedTimestamp": "2026-05-04T12:00:00Z"}
        self.assertEqual(a_status(), vr.request_from(vr.STATUS_REQUESTS, {"metadata": metadata, "spec": {}}))
        self.assertEqual(a_status(phase="Processed", processed=NOW),
                         vr.request_from(vr.STATUS_REQUESTS, {"metadata": metadata, "status": status}))

    def test_any_field_may_be_wrong(self) -> None:
        full = {"metadata": {"name": "n", "creationTimestamp": "x"}, "status": {"phase": "", "processedTimestamp": ""}}
        for value in HOSTILE:
            self.assertIsInstance(vr.plugins_from({"status": {"plugins": value}}), list)
            for document in with_places_filled(full, value):
                self.assertIsInstance(vr.request_from(vr.STATUS_REQUESTS, document).phase, str)

    def test_plugins(self) -> None:
        """Plugins are sorted by kind, then by name, as the velero CLI sorts them."""
        pairs = [("RestoreItemAction", "velero.io/pod"), ("BackupItemAction", "velero.io/pv"),
                 ("BackupItemAction", "velero.io/pod")]
        document = {"status": {"plugins": [{"kind": kind, "name": name} for kind, name in pairs]}}
        self.assertEqual(sorted(pairs), vr.plugins_from(document))
        self.assertEqual([], vr.plugins_from({}))


PEM_64 = base64.encodebytes(b"PEM" * 50).decode()
ACCESS_POINT = "arn:aws:s3:us-west-2:123456789012:accesspoint:reports"
OUTPOST = "arn:aws:s3-outposts:us-west-2:123456789012:outpost:op-01234567890123456:accesspoint:reports"

# Of a location's spec: its config beside the region, its other fields, and what the record then says.
LOCATIONS_READ: Tuple[Tuple[Dict[str, Any], Dict[str, Any], Dict[str, Any]], ...] = (
    ({}, {}, {}), ({}, {"provider": "velero.io/aws"}, {}), ({}, {"accessMode": "ReadOnly"}, {}),
    ({}, {"credential": {"name": "keys", "key": "cloud"}}, {"secret_name": "keys", "secret_key": "cloud"}),
    ({}, {"objectStorage": {"bucket": "//bkt/", "prefix": "//a/b//"}}, {"prefix": "a/b"}),
    *(({}, {"objectStorage": {"bucket": "bkt", **storage}}, over) for storage, over in (
        ({"caCert": PEM_64}, {"ca_cert": b"PEM" * 50}), ({"caCert": ""}, {}), ({"caCertRef": "n"}, {}),
        ({"caCert": PEM_64.replace("\n", "\r\n")}, {"ca_cert": b"PEM" * 50}),
        ({"caCert": "", "caCertRef": {"name": "n", "key": "k"}}, {"ca_secret": ("n", "k")}),
        ({"caCert": "UEVN", "caCertRef": None}, {"ca_cert": b"PEM"}))),
    ({"region": "us-gov-west-1"}, {}, {"region": "us-gov-west-1"}), ({"region": ""}, {}, {"region": ""}),
    ({"region": "aws-global"}, {}, {"region": "us-east-1"}),
    ({"s3Url": "http://minio:9000"}, {}, {"s3_url": "http://minio:9000"}),
    ({"publicUrl": "https://s3.example"}, {}, {"public_url": "https://s3.example"}),
    ({"profile": "backup"}, {}, {"profile": "backup"}), ({"insecureSkipTLSVerify": "t"}, {}, {"insecure": True}),
    ({"credentialsFile": "/credentials/other"}, {}, {"credentials_file": "/credentials/other"}),
    *(({"s3ForcePathStyle": text}, {}, {"path_style": True}) for text in "1 t T TRUE true True".split()),
    *(({"s3ForcePathStyle": text}, {}, {}) for text in ("0", "f", "F", "FALSE", "false", "False", "")),
    *(({key: value}, {}, {}) for key, values in {  # without effect on a GET
        "signatureVersion": ("4", ""), "enableSharedConfig": ("true", "0", ""),
        "checksumAlgorithm": ("CRC32", "CRC32C", "SHA1", "SHA256", ""), "serverSideEncryption": ("AES256", "any"),
        "kmsKeyId": ("alias/velero",), "customerKeyEncryptionFile": ("/not/here",),
        "customerKeyEncryptionSecret": ("name/key",), "tagging": ("a=b&c=d", "nonsense"), "bucket": ("stale",),
        "prefix": ("stale",), "caCert": ("stale",)}.items() for value in values),
    ({"s3url": "x"}, {}, {"warnings": ("config key 's3url' is unknown",)}),
    ({"zz": "x", "": "x", "mm": "x"}, {}, {"warnings": tuple(f"config key {key!r} is unknown"
                                                             for key in ("", "mm", "zz"))}),
    ({f"k{number:04}": "x" for number in range(5000)}, {}, {  # ten warnings are enough for anybody
        "warnings": tuple(f"config key 'k{number:04}' is unknown" for number in range(10))}))

# The same for locations that are refused: words of the error and its reason, which is InvalidStorageLocation if empty.
LOCATIONS_REFUSED: Tuple[Tuple[Dict[str, Any], Dict[str, Any], str, str], ...] = (
    *(({}, {"provider": provider}, "provider is .*only aws", "UnsupportedProvider") for provider in (
        "", None, "gcp", "AWS", "velero.io/gcp", "example.com/aws", "x" * 100_000)),
    *(({}, {"objectStorage": {"bucket": bucket}}, "bucket '.*without '/'", "") for bucket in (
        None, "", "/", "a/b", ".", "..", "a b", "a\nb", "a\0", 5, ["a"])),
    *(({}, {"objectStorage": {"bucket": bucket}}, "ARN .*alias", "") for bucket in (
        ACCESS_POINT, OUTPOST, "arn:", "arn:aws:s3:eu-west-1:@evil/:accesspoint:x")),
    ({}, {"objectStorage": {"bucket": "bkt--use1-az4--x-s3"}}, "S3 Express", ""),
    *(({}, {"objectStorage": {"bucket": "bkt", "caCert": text}}, "caCert is not base64, or has more than 256 KiB", "")
      for text in (
        "-----BEGIN CERTIFICATE-----", "UEVN!", "UEV", "ü", "UEVN" * 90_000)),
    *(({key: "x" * 2049}, {}, f"{key} has more than 2048", "") for key in (
        "profile", "s3Url", "publicUrl", "credentialsFile", "region", "kmsKeyId")),
    ({}, {"objectStorage": {"bucket": "bkt", "prefix": "x" * 2049}}, "prefix has more than 2048", ""),
    *(({key: value}, {}, f"{key} is {re.escape(repr(value))}; allowed: {allowed}", "") for key, value, allowed in (
        ("s3ForcePathStyle", "yes", "true or false"), ("s3ForcePathStyle", "tRUE", "true or false"),
        ("insecureSkipTLSVerify", "on", "true or false"), ("enableSharedConfig", "2", "true or false"),
        ("signatureVersion", "1", "4"), ("signatureVersion", "s3v4", "4"),
        ("checksumAlgorithm", "crc32", "CRC32, CRC32C, SHA1, SHA256"))),
    *(({"signatureVersion": value}, {}, "signatureVersion", "")
      for value in ("x" * 2000, "x" * 100_000, "a\nb", "\x1b[2J")),
    *(({"region": region}, {}, "config.region .*no DNS label", "") for region in (
        "x.evil.example/", "x@host:1/", "x/", "x#", "x?", "EU-West-1", "eu west", "x\n", "é", "x。y", "-x", "x" * 64,
        "x\\y")))


class TestLocationFrom(unittest.TestCase):
    """Tests for `location_from`."""

    def test_what_is_read(self) -> None:
        for config, spec, over in LOCATIONS_READ:
            with self.subTest(config=str(config)[:99], **spec):
                document = a_location_document({"region": "eu-west-1", **config}, **spec)
                self.assertEqual(a_location(**over), vr.location_from(document))
        said = {key for config, _, over in LOCATIONS_READ if "warnings" not in over for key in config}
        self.assertEqual(set(vr.LOCATION_KEYS), said, "keys that no row has")

    def test_what_is_refused(self) -> None:
        """One short line that names the location, with a reason."""
        for config, spec, words, reason in LOCATIONS_REFUSED:
            with self.subTest(config=str(config)[:99], spec=str(spec)[:99]):
                with self.assertRaisesRegex(vr.ConfigError, f"storage location 'default': .*{words}") as caught:
                    vr.location_from(a_location_document({"region": "r", **config}, **spec))
                self.assertEqual(reason or "InvalidStorageLocation", caught.exception.reason)
                self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 400)

    def test_any_field_may_be_wrong(self) -> None:
        """A value of another type, at any depth, is a ConfigError or no error, never another one."""
        full = a_location_document({"region": "r", "s3Url": "u"}, credential={"name": "n", "key": "k"})
        for value in HOSTILE:
            for document in with_places_filled(full, value):
                with self.subTest(value=repr(value)[:40], spec=repr(document.get("spec"))[:200]):
                    try:
                        vr.location_from(document)
                    except vr.ConfigError as error:
                        self.assertLess(len(str(error)), 11000)

    def test_trouble(self) -> None:
        """Velero's own complaint about a location is handed on in one line when it is Unavailable."""
        for status, expected in ((None, ""), ({"phase": "Available", "message": "m"}, ""),
                                 ({"phase": "Unavailable", "message": "a\nb"}, "a b"),
                                 ({"phase": "Unavailable"}, "no message; see the Velero server's log")):
            self.assertEqual(expected, vr.location_trouble_from({"status": status}))


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
        """Every kind of Velero 1.6 to 1.18 is there with its key, and no other; restores/ belongs to restores."""
        self.assertEqual(set(LAYOUT), {(kind, row.key.format(name="X"), row.gunzip)
                                       for kind, row in vr.TARGETS.items()})
        for kind, row in vr.TARGETS.items():
            self.assertEqual((kind, vr.RESTORES if row.key.startswith("restores/") else vr.BACKUPS),
                             (row.kind, row.owner))


class TestTargetOf(unittest.TestCase):
    """Tests for `target_of` and `is_object_name`."""

    def test_names(self) -> None:
        """Every name that Kubernetes allows has its row; any other is refused in one short line, and for good."""
        for name in GOOD_NAMES:
            self.assertTrue(vr.is_object_name(name), name)
            self.assertEqual(list(vr.TARGETS), [vr.target_of(kind, name).kind for kind in vr.TARGETS])
        for name in BAD_NAMES:
            with self.subTest(name=ascii(name)[:40]), self.assertRaises(vr.InvalidRequest) as caught:
                vr.target_of("RestoreLog", name)
            self.assertFalse(vr.is_object_name(name))
            self.assertEqual(("InvalidName", False), (caught.exception.reason, caught.exception.retry))
            self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 200)

    def test_kinds_that_do_not_exist(self) -> None:
        for kind in ("", "backuplog", "Backup", "BackupLog ", "BackupLog\n", "x" * 10000, "\ud800"):
            with self.subTest(kind=ascii(kind)[:40]), self.assertRaises(vr.InvalidRequest) as caught:
                vr.target_of(kind, "nightly")
            self.assertEqual("UnknownKind", caught.exception.reason)
            self.assertIn("RestoreVolumeInfo", str(caught.exception))
            self.assertTrue(str(caught.exception).isprintable() and len(str(caught.exception)) < 600)


class TestObjectKey(unittest.TestCase):
    """Tests for `object_key`."""

    def test_prefixes(self) -> None:
        """A prefix is cleaned as Go's path.Join cleans it; one that leads out of the bucket is the location's fault."""
        artifact = vr.TARGETS["BackupLog"]
        for prefix, root in (("", ""), (".", ""), ("./", ""), ("p", "p/"), ("p/q", "p/q/"), ("p//q", "p/q/"),
                             ("a/./b", "a/b/"),
                             ("p/../q", "q/"), ("./p", "p/"), ("a b/ü", "a b/ü/"), ("p/..", ""), ("...", ".../"),
                             ("..a", "..a/"), ("a/b/../../c", "c/"), ("%2e%2e", "%2e%2e/")):
            self.assertEqual(f"{root}backups/n/n-logs.gz", vr.object_key(prefix, artifact, "n"), prefix)
        for prefix in ("..", "../x", "a/../..", "a/../../b", "./.."):
            with self.subTest(prefix=prefix), self.assertRaisesRegex(vr.ConfigError,
                                                                     "leads out of the bucket") as caught:
                vr.object_key(prefix, artifact, "n")
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_random_prefixes(self) -> None:
        """No prefix gives a key with a segment that a client would resolve."""
        chance = random.Random(11)
        for _ in range(1000):
            prefix = "".join(chance.choices(("a", ".", "..", "/", "//", " "), k=chance.randrange(8)))
            location = vr.location_from(a_location_document(objectStorage={"bucket": "bkt", "prefix": prefix}))
            with contextlib.suppress(vr.ConfigError):
                key = vr.object_key(location.prefix, vr.TARGETS["BackupLog"], "b")
                self.assertEqual((False, posixpath.normpath(key)), (vr.has_dot_segment(key), key), prefix)


class TestApiPath(unittest.TestCase):
    """Tests for `api_path`."""

    def test_paths(self) -> None:
        root = "/apis/velero.io/v1/namespaces/velero/downloadrequests"
        for arguments, expected in (
                ((vr.DOWNLOAD_REQUESTS, "velero"), root),
                ((vr.DOWNLOAD_REQUESTS, "velero", "n"), root + "/n"),
                ((vr.DOWNLOAD_REQUESTS, "velero", "n", "status"), root + "/n/status"),
                ((vr.SECRETS, "ns", "keys"), "/api/v1/namespaces/ns/secrets/keys"),
                ((vr.DEPLOYMENTS, "ns", "velero"), "/apis/apps/v1/namespaces/ns/deployments/velero"),
                ((vr.BACKUPS, "a/b", "c?d#e"), "/apis/velero.io/v1/namespaces/a%2Fb/backups/c%3Fd%23e")):
            self.assertEqual(expected, vr.api_path(*arguments))


# ------------------------------------------------------------------------------------------------------------
# Section 6: signing
# ------------------------------------------------------------------------------------------------------------

EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
FORM_SHA256 = "9095672bbd1f56dfc5b65f3e153adc8731a4a654192329106275f4c7b24d0b6e"  # of Param1=value1
PUT_SHA256 = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"  # of Welcome to Amazon S3.
DOC_TIME = datetime(2013, 5, 24, tzinfo=timezone.utc)
SUITE_KEYS = vr.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
SUITE_TIME = datetime(2015, 8, 30, 12, 36, tzinfo=timezone.utc)
SUITE_TOKEN = "6e86291e8372ff2a2260956d9b8aae1d763fbf315fa00fa31553b73ebf194267"

# Pre-signed URLs: host, key, region, seconds, token, signature. The first is the documentation's own, the others are of
# the same keys and time.
PRESIGNED: Tuple[Tuple[str, str, str, int, str, str], ...] = (
    ("examplebucket.s3.amazonaws.com", "/test.txt", "us-east-1", 86400, "",
     "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
    ("bkt.s3.eu-west-1.amazonaws.com", "/backups/b1/b1-logs.gz", "eu-west-1", 600,
     "AQoDYXdzEPT//////////wEXAMPLE+token=",
     "64d07eb96c4fcb2d264e378b1f95f8da62b08d610325102125ba8424578465ee"),
    ("s3.eu-west-1.amazonaws.com", "/my.dotted.bucket/a b+c/ü~$%.txt", "eu-west-1", 600, "",
     "8259c85cf5c1f58732c3aba775205f67b67cec765d4e209bf4ec26493eac951f"),
    ("http://minio.velero.svc:9000", "/bkt/k", "minio", 600, "",
     "306735beca18cdd846c3c10af63eb315d5e52b3fe8981f58e8821f5e994713ef"),
    ("bkt.s3.us-east-1.amazonaws.com", "/k", "us-east-1", 604800, "",
     "41df2da33bc5b7759795654f79d84f2c1603e358e12005709bfea8c46af415f5"),
    ("http://[fd00::1]:9000", "/bkt/k", "us-east-1", 600, "",
     "dea7ac5d1992d560fa9d743860b3d44eeb962584bc2af2153cec55daef48b900"))

# The cases of the AWS suite that mean something to a signer for S3: target, signature in the query. Left out are those
# in which other services than S3 clean paths up, and those that fold and trim headers.
UNRESERVED = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SUITE: Tuple[Tuple[str, str], ...] = (
    ("/", "e93c787ed7f371d5c6b165c1b38ede9550f4dce4144713e844b25b7192d3865d"),
    ("/ሴ", "10eae3f14a260bd3911cc6d008d3c576d143b05b62f09782a7a4b37f52178e44"),
    (f"/{UNRESERVED}", "95968482db1b9e0fadef6efc1bd24689f77c77d9ef56919c96a28cc92e0d6005"),
    ("//example//", "822a5a9ba28072c5ab2bb4a6307d0c88276d40e49fec6b724c03fb4d4ba60fc2"),
    ("/example1/example2/../..", "b45db0bfd1cf15003493b733e33aa208dd981bd0e63037a6ed953f71d2118a16"),
    ("/?Param-3=Value3&Param=Value2&%E1%88%B4=Value1",
     "c5f1848ceec943ac2ca68ee720460c23aaae30a2300586597ada94c4a65e4787"),
    (f"/?{UNRESERVED}={UNRESERVED}", "8e76a88a7433637b12778d5592799b29ad21ecd6cf6325051c21d86f0acda2bf"),
    (f"/?X-Amz-Security-Token={SUITE_TOKEN}", "7ff2b50b376cb4d151970630573d6291dc128cc5c2a12ffb237f73cc53f67b6c"))

# Signatures in a header, of suite and documentation: keys, time, method, path, headers, body, signature.
EXAMPLE_HOST, S3_HOST = {"host": "example.amazonaws.com"}, {"host": "examplebucket.s3.amazonaws.com"}
SIGNED_HEADERS: Tuple[Tuple[Any, datetime, str, str, Dict[str, str], bytes, str], ...] = (
    (SUITE_KEYS, SUITE_TIME, "GET", "/", EXAMPLE_HOST, b"",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    (SUITE_KEYS._replace(session_token=SUITE_TOKEN), SUITE_TIME, "GET", "/", EXAMPLE_HOST, b"",
     "07ec1639c89043aa0e3e2de82b96708f198cceab042d4a97044c66dd9f74e7f8"),
    (SUITE_KEYS, SUITE_TIME, "POST", "/", {
        **EXAMPLE_HOST, "content-type": "application/x-www-form-urlencoded", "content-length": "13",
        "x-amz-content-sha256": FORM_SHA256}, b"Param1=value1",
     "d3875051da38690788ef43de4db0d8f280229d82040bfac253562e56c3f20e0b"),
    (some_credentials(), DOC_TIME, "GET", "/test.txt", {
        **S3_HOST, "range": "bytes=0-9", "x-amz-content-sha256": EMPTY_SHA256}, b"",
     "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
    (some_credentials(), DOC_TIME, "PUT", "/test%24file.text", {
        **S3_HOST, "date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "x-amz-content-sha256": PUT_SHA256}, b"Welcome to Amazon S3.",
     "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"))


class TestSigningVectors(unittest.TestCase):
    """The nouns of the specification, `presign` and `sign_headers` with signatures that were published."""

    def test_presigned_urls(self) -> None:
        for host, key, region, seconds, token, expected in PRESIGNED:
            with self.subTest(host=host, key=key):
                scheme, _, host = host.rpartition("://")
                address = vr.Address(scheme or "https", host, quote(key, safe="/-._~"), region)
                url = vr.presign(address, some_credentials(session_token=token), DOC_TIME, timedelta(seconds=seconds))
                self.assertEqual(expected, url.rpartition("&X-Amz-Signature=")[2])
                start = f"{address.scheme}://{host}{address.path}?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential="
                self.assertTrue(url.startswith(f"{start}AKIAIOSFODNN7EXAMPLE%2F20130524%2F"), url)

    def test_life(self) -> None:
        """A URL lives from one second to seven days, in whole seconds cut off."""
        address = vr.Address("https", "h", "/k", "eu-west-1")
        for seconds, expected in ((1, "1"), (1.9, "1"), (604800, "604800")):
            url = vr.presign(address, some_credentials(), after(microseconds=999999), timedelta(seconds=seconds))
            self.assertIn(f"&X-Amz-Date=20260504T120000Z&X-Amz-Expires={expected}&X-Amz-SignedHeaders=host&", url)
        for seconds in (0, .9, -1, 604801, 1e9):
            self.assertRaises(ValueError, vr.presign, address, some_credentials(), NOW, timedelta(seconds=seconds))

    def test_suite(self) -> None:
        """Paths are encoded once and not cleaned up; parameters are encoded, then sorted."""
        stamp, scope = vr.amz_date(SUITE_TIME), "20150830/us-east-1/service/aws4_request"
        self.assertEqual(scope, vr.credential_scope(stamp, "us-east-1", "service"))
        for target, expected in SUITE:
            with self.subTest(target=target):
                path, _, query = target.partition("?")
                query = vr.canonical_query({
                    "X-Amz-Algorithm": vr.ALGORITHM, "X-Amz-Credential": f"AKIDEXAMPLE/{scope}", "X-Amz-Date": stamp,
                    "X-Amz-Expires": "3600", "X-Amz-SignedHeaders": "host", **dict(parse_qsl(query))})
                request = vr.canonical_request("GET", quote(path, safe="/-._~"), query, EXAMPLE_HOST, EMPTY_SHA256)
                self.assertEqual(expected, vr.signature(SUITE_KEYS.secret_key, stamp, scope, request))

    def test_signing_keys(self) -> None:
        for day, expected in (("20120215", "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"),
                              ("20150830", "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9")):
            scope = vr.credential_scope(f"{day}T000000Z", "us-east-1", "iam")
            self.assertEqual(expected, vr.signing_key(SUITE_KEYS.secret_key, scope).hex())

    def test_signed_headers(self) -> None:
        """All headers are named sorted, the token is one of them, and those given stay as they are."""
        for keys, now, method, path, headers, body, expected in SIGNED_HEADERS:
            with self.subTest(method=method, path=path):
                given, service = dict(headers), "s3" if now == DOC_TIME else "service"
                signed = vr.sign_headers(method, path, headers, body, keys, "us-east-1", service, now)
                added = {"x-amz-date", "authorization"} | ({"x-amz-security-token"} if keys.session_token else set())
                self.assertEqual((given, {*given, *added}), (headers, set(signed)))
                self.assertEqual(
                    f"AWS4-HMAC-SHA256 Credential={keys.access_key}/{vr.amz_date(now)[:8]}/us-east-1/{service}/"
                    "aws4_request, "
                    f"SignedHeaders={';'.join(sorted({*signed} - {'authorization'}))}, Signature={expected}",
                    signed["authorization"])


# ------------------------------------------------------------------------------------------------------------
# Section 7: decisions
# ------------------------------------------------------------------------------------------------------------

class TestTriageDownload(unittest.TestCase):
    """Tests for `triage_download`."""

    def test_policy(self) -> None:
        """Expiry comes first; what is answered stays until it expires; the rest is to be answered."""
        ten = after(minutes=10)
        for fields, verb, again in (
                (dict(), "answer", None),
                (dict(phase="New"), "answer", None),
                (dict(expiration=after(minutes=5)), "answer", None),
                (dict(phase="New", expiration=FAR_OFF, url="https://stranger/"), "answer", None),
                (dict(expiration=after(seconds=-1)), "delete", None),
                (dict(expiration=NOW), "delete", None),
                (dict(phase="New", expiration=LONG_AGO), "delete", None),
                (dict(phase="Processed", expiration=after(seconds=-1)), "delete", None),
                (dict(phase="Failed", expiration=after(seconds=-1)), "delete", None),
                (dict(phase="Weird", expiration=after(days=-900)), "delete", None),
                (dict(phase="Processed", expiration=after(seconds=1)), "leave", after(seconds=1)),
                (dict(phase="Processed", expiration=ten), "leave", ten),
                (dict(phase="Failed", expiration=after(minutes=3)), "leave", after(minutes=3)),
                (dict(phase="Weird", expiration=after(minutes=3)), "leave", after(minutes=3)),
                (dict(phase="Processed", expiration=after(minutes=10, seconds=1)), "patch", ten),
                (dict(phase="Weird", expiration=FAR_OFF), "patch", ten),
                (dict(phase="Processed", created=NOW), "leave", ten),
                (dict(phase="Processed", created=after(minutes=-9)), "leave", after(minutes=1)),
                (dict(phase="Processed", created=after(minutes=-10)), "delete", None),
                (dict(phase="Weird", created=LONG_AGO), "delete", None),
                (dict(phase="Processed", created=FAR_OFF), "leave", ten),
                (dict(phase="Processed", created=None), "leave", ten),
                (dict(deleting=True), "leave", None),
                (dict(deleting=True, phase="Processed", expiration=after(minutes=-1)), "leave", None)):
            with self.subTest(**{name: str(value) for name, value in fields.items()}):
                outcome = vr.triage_download(a_download(**fields), NOW)
                self.assertEqual((verb, again), (outcome.verb, outcome.again) if outcome else ("answer", None))
                self.assertFalse(outcome and outcome.failed)

    def test_bodies(self) -> None:
        """The cut is on the version that was seen; a deletion names uid and version, so that no other object is hit."""
        cut = vr.triage_download(a_download(phase="Processed", expiration=FAR_OFF), NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": {"expiration": "2026-05-04T12:10:00Z"}},
                         cut.body)
        old = a_status(phase="Processed", processed=LONG_AGO)
        for outcome, uid, version in ((vr.triage_download(a_download(expiration=NOW), NOW), "uid-1", "41"),
                                      (vr.decide_status(old, vr.Server("v1"), NOW), "uid-2", "42")):
            self.assertEqual({"preconditions": {"uid": uid, "resourceVersion": version}}, outcome.body)


class TestAnswerDownload(unittest.TestCase):
    """Tests for `answer_download`; what is signed, and until when, is tested with `sign`."""

    def test_one_patch(self) -> None:
        """URL, phase and expiration come in one patch, on the version that was seen; a reason is taken back."""
        for reason, annotations in (("", {}), ("BackupNotFound", {"annotations": {vr.REASON: None, vr.MESSAGE: None}})):
            outcome = vr.answer_download(a_download(reason=reason), "k", "https://h/k?X-Amz", after(minutes=9))
            self.assertEqual({"metadata": {"resourceVersion": "41", **annotations}, "status": {
                "phase": "Processed", "downloadURL": "https://h/k?X-Amz", "expiration": "2026-05-04T12:09:00Z"}},
                outcome.body)
            self.assertEqual(("patch", after(minutes=9), False), (outcome.verb, outcome.again, outcome.failed))
            self.assertNotIn("X-Amz", repr(outcome) + outcome.why)
            self.assertIn("BackupLog of nightly", outcome.why)


class TestRefuseDownload(unittest.TestCase):
    """Tests for `refuse_download` and `fall_back_download`."""

    error = vr.NotFound("backup velero/nightly does not exist", reason="BackupNotFound")
    said = dict(reason="BackupNotFound", message="backup velero/nightly does not exist")
    cut = {"expiration": "2026-05-04T12:10:00Z"}

    def test_policy(self) -> None:
        """Reason, message and expiration are written once, a stranger's expiration is cut, time mends what it can."""
        annotations = {vr.REASON: self.said["reason"], vr.MESSAGE: self.said["message"]}
        ten, four = after(minutes=10), after(minutes=4)
        for fields, written, status, again in (
                ({}, annotations, self.cut, ten), (dict(self.said, expiration=four), None, None, four),
                (dict(self.said, reason="SecretNotFound", expiration=four), annotations, None, four),
                (dict(self.said, message="other", expiration=ten), annotations, None, ten),
                (dict(expiration=FAR_OFF), annotations, self.cut, ten),
                (dict(self.said, expiration=FAR_OFF), None, self.cut, ten)):
            with self.subTest(**{name: str(value) for name, value in fields.items()}):
                outcome = vr.refuse_download(a_download(**fields), self.error, NOW)
                body = outcome.body or {"metadata": {}}
                self.assertEqual((written, status), (body["metadata"].get("annotations"), body.get("status")))
                self.assertEqual(("patch" if written or status else "leave", again, True),
                                 (outcome.verb, outcome.again, outcome.failed))
                self.assertEqual("41" if outcome.body else None, body["metadata"].get("resourceVersion"))
        self.assertFalse(vr.refuse_download(a_download(), vr.InvalidRequest("x", reason="InvalidName"), NOW).failed)

    def test_messages_are_harmless(self) -> None:
        """A message is one line of at most 1024 characters without secrets, and recognised the next time."""
        for sentence in SECRET_SHAPES:
            error = vr.Error("a\nb " + sentence.format("s3cr3t") + " x" * 2000, reason="ClusterError")
            outcome = vr.refuse_download(a_download(), error, NOW)
            message = outcome.body["metadata"]["annotations"][vr.MESSAGE]
            with self.subTest(sentence):
                self.assertTrue(message.isprintable() and len(message) <= 1024)
                self.assertNotIn("s3cr3t", message + outcome.why)
                again = a_download(reason="ClusterError", message=message, expiration=after(minutes=10))
                self.assertEqual("leave", vr.refuse_download(again, error, NOW).verb)

    def test_what_cannot_be_written(self) -> None:
        """Without room for annotations the status alone; without that the object is deleted when its life is over."""
        smaller = vr.fall_back_download(a_download(), vr.refuse_download(a_download(), self.error, NOW), NOW)
        self.assertEqual({"metadata": {"resourceVersion": "41"}, "status": self.cut}, smaller.body)
        self.assertEqual(("patch", after(minutes=10), True), (smaller.verb, smaller.again, smaller.failed))
        for created, verb in ((NOW, "leave"), (after(minutes=-9), "leave"), (after(minutes=-10), "delete"),
                              (LONG_AGO, "delete"), (None, "leave"), (FAR_OFF, "leave")):
            with self.subTest(created=created):
                outcome = vr.fall_back_download(a_download(created=created), smaller, NOW)
                self.assertEqual((verb, verb == "leave"), (outcome.verb, outcome.failed))


class TestIsNews(unittest.TestCase):
    """Tests for `is_news`."""

    def test_what_is_news(self) -> None:
        """What failing controllers write is no news, everything else is."""
        for old, new, expected in (
                ({}, dict(version="42", reason="A", message="b"), False),
                ({}, dict(version="42", expiration=NOW), False),
                (dict(phase="New"), dict(phase="New", expiration=NOW), False),
                (dict(reason="A", message="b"), dict(reason="B", message="c", version="43"), False),
                ({}, dict(phase="Processed"), True), ({}, dict(url="u"), True), ({}, dict(deleting=True), True),
                ({}, dict(target_name="other"), True), ({}, dict(uid="uid-9"), True),
                (dict(phase="Processed"), dict(phase="Processed", expiration=NOW), True)):
            with self.subTest(old=old, new=new):
                self.assertEqual(expected, vr.is_news(a_download(**old), a_download(**new)))
        for new, expected in ((dict(version="43"), False), (dict(phase="Processed"), True), (dict(processed=NOW), True),
                              (dict(deleting=True), True), (dict(uid="uid-9"), True)):
            with self.subTest(new=new):
                self.assertEqual(expected, vr.is_news(a_status(), a_status(**new)))
        self.assertTrue(vr.is_news(None, a_download()))


class TestDecideStatus(unittest.TestCase):
    """Tests for `decide_status`."""

    server = vr.Server("v1.18.1", (("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod")))

    def test_policy(self) -> None:
        """New ones are answered, answered ones live a minute, others are left."""
        five = after(minutes=5)
        for fields, verb, again in (
                (dict(), "patch", five),
                (dict(phase="New", processed=LONG_AGO), "patch", five),
                (dict(phase="Processed", processed=NOW), "leave", five),
                (dict(phase="Processed", processed=after(seconds=-59)), "leave", five),
                (dict(phase="Processed", processed=after(seconds=-60)), "delete", None),
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
        """Phase, timestamp, version and plugins in one patch; undeclared, the plugins are the one object store."""
        self.assertEqual({"metadata": {"resourceVersion": "42"}, "status": {
            "phase": "Processed", "processedTimestamp": "2026-05-04T12:00:00Z", "serverVersion": "v1.18.1",
            "plugins": [{"kind": "ObjectStore", "name": "velero.io/aws"},
                        {"kind": "BackupItemAction", "name": "velero.io/pod"}]}},
            vr.decide_status(a_status(), self.server, NOW).body)
        self.assertEqual((("ObjectStore", "velero.io/aws"),), vr.Server("v0").plugins)


class TestHostileStatus(unittest.TestCase):
    """Tests for `triage_download`, `refuse_download`, `decide_status` on what strangers filled in."""

    def check(self, document: Any, now: datetime = NOW) -> None:
        """No decision raises; an object is looked at again in time, deleted, or left for a reason."""
        download, status = (vr.request_from(kind, document) for kind in vr.REQUEST_KINDS)
        outcome = vr.triage_download(download, now) or vr.refuse_download(download, vr.NotFound("x"), now)
        self.check_outcome(download, outcome, now, timedelta(minutes=10))
        outcome = vr.decide_status(status, vr.Server("v1"), now)
        self.check_outcome(status, outcome, now, timedelta(minutes=5), ends=("", "New", "Processed"))

    def check_outcome(self, request: Any, outcome: Any, now: datetime, limit: timedelta,
                      ends: Optional[Tuple[str, ...]] = None) -> None:
        """Judge one outcome."""
        self.assertTrue(outcome.why and outcome.why.isprintable())
        if outcome.verb == "delete":
            self.assertEqual({"uid": request.uid, "resourceVersion": request.version}, outcome.body["preconditions"])
        elif outcome.again is None:
            self.assertTrue(request.deleting or (ends and request.phase not in ends), outcome)
        else:
            self.assertTrue(now < outcome.again <= now + limit, outcome)
        if outcome.verb == "patch":
            self.assertEqual(request.version, outcome.body["metadata"]["resourceVersion"])

    def test_every_combination(self) -> None:
        """All combinations of odd phases and times, and a value of another type at any place, keep the promises."""
        times = (None, "x", 5, "0001-01-01T00:00:00Z", "2026-05-04T11:00:00Z", "2026-05-04T12:00:00Z",
                 "2026-05-04T12:05:00Z", "2026-05-04T12:10:00.9Z", "2026-05-04T23:00:00Z",
                 "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00")
        for phase, created, filled, deletion in itertools.product(
                (None, "", "New", "Processed", "Failed", "\n", 5, []), times, times, (None, "2026-05-04T12:00:00Z")):
            self.check({"metadata": {"creationTimestamp": created, "deletionTimestamp": deletion}, "status": {
                "phase": phase, "expiration": filled, "processedTimestamp": filled}})
        full = {**DOWNLOAD_DOCUMENT, "status": {"phase": "Processed", "expiration": "x", "processedTimestamp": "x"}}
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
                outcome = vr.triage_download(request, now) or vr.refuse_download(request, vr.NotFound("x"), now)
                if outcome.verb == "delete":
                    break
                written = vr.parse_time((outcome.body or {}).get("status", {}).get("expiration"))
                request, now = request._replace(expiration=written or request.expiration), outcome.again
            self.assertEqual("delete", outcome.verb, (phase, filled))
            self.assertLessEqual(now, after(minutes=20))

    @unittest.skipUnless(HAS_HYPOTHESIS, NO_HYPOTHESIS)
    def test_random_documents(self) -> None:
        instants = strategies.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1),
                                        timezones=strategies.just(timezone.utc))
        hypothesis.given(hostile_documents(), instants)(lambda document, now: self.check(document, now))()


class TestBackoff(unittest.TestCase):
    """Tests for `backoff`, `watch_pause` and `is_version_expired`."""

    def test_growth(self) -> None:
        """The wait doubles with every failure up to the cap, which leaves many tries within the life of a request."""
        for failures, expected in ((1, .005), (2, .01), (3, .02), (11, 5.12), (13, 20.48), (14, 30), (10**6, 30)):
            self.assertAlmostEqual(expected, vr.backoff(failures, vr.RETRY_BASE, vr.RETRY_CAP))

    def test_the_constants_of_velero(self) -> None:
        """What Velero's server and CLI have: lives, the second look, and the pauses of a client that polls."""
        self.assertEqual((after(minutes=10), after(minutes=1), after(minutes=5), 0.025, 0.25), (
            NOW + vr.URL_LIFE, NOW + vr.STATUS_LIFE, NOW + vr.STATUS_LOOK_AGAIN, vr.URL_POLL, vr.STATUS_POLL))

    def test_the_next_watch(self) -> None:
        """A watch that lived or brought something is followed at once, a line that is down never by a long wait."""
        for failures, lived, reached, jitter, expected in (
                (0, 0.0, True, 1, 1), (0, 0.4, False, 2, .6), (0, 6.0, False, 1, 0), (1, 0.0, True, 1, 1),
                (3, 0.0, True, 2, 8), (9, 0.0, True, 2, 30), (1, 0.0, False, 1.5, 1.5), (3, 0.0, False, 1, 3),
                (9, 20.0, False, 2, 3)):
            with self.subTest(failures=failures, lived=lived, reached=reached):
                self.assertAlmostEqual(expected, vr.watch_pause(failures, lived, reached, jitter))

    def test_a_silent_line_is_noticed(self) -> None:
        """Deaf for at most 45 s, and at most two requests a minute and kind when nothing happens."""
        self.assertLess(vr.WATCH_SILENCE + vr.SHORT_WATCH, 45)
        self.assertGreater(min(vr.WATCH_SECONDS), 60 / 2)
        self.assertGreater(vr.WATCH_SILENCE - max(vr.WATCH_SECONDS), 5)

    def test_expired_versions(self) -> None:
        """Status 410 and the reasons Expired and Gone mean a new list, nothing else does."""
        for status, reason, expected in ((410, "", True), (410, "Expired", True), (200, "Expired", True),
                                         (500, "Gone", True), (404, "NotFound", False), (403, "", False)):
            with self.subTest(status=status, reason=reason):
                self.assertEqual(expected, vr.is_version_expired(vr.ApiError("x", status=status, api_reason=reason)))
        self.assertFalse(vr.is_version_expired(None) or vr.is_version_expired(vr.Unreachable("x")))


class TestLogsRefusal(unittest.TestCase):
    """Tests for `logs_refusal`."""

    def test_phases(self) -> None:
        """Finished backups and restores have logs, and so have those that only wait for plugins."""
        for phase in ("Completed", "PartiallyFailed", "Failed", "WaitingForPluginOperations",
                      "WaitingForPluginOperationsPartiallyFailed"):
            self.assertEqual("", vr.logs_refusal(vr.BACKUPS, "nightly", phase))
        for phase in ("", "New", "FailedValidation", "InProgress", "Queued", "ReadyToStart", "Deleting", "Finalizing",
                      "FinalizingPartiallyFailed", "completed"):
            with self.subTest(phase=phase):
                self.assertRegex(vr.logs_refusal(vr.RESTORES, "r1", phase),
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
        event = vr.event_for(a_download(), "BackupNotFound", "m", NOW)
        self.assertEqual(("v1", "Event", "Warning", "BackupNotFound", "m", 1, "2026-05-04T12:00:00Z"), tuple(
            event[name] for name in ("apiVersion", "kind", "type", "reason", "message", "count", "firstTimestamp")))
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "DownloadRequest", "namespace": "velero",
                          "name": "nightly-x7k2p", "uid": "uid-1", "resourceVersion": "41"}, event["involvedObject"])
        self.assertEqual(("velero", event["firstTimestamp"]), (event["metadata"]["namespace"], event["lastTimestamp"]))


class TestNewDownloadRequest(unittest.TestCase):
    """Tests for `new_download_request` and `new_status_request`."""

    def test_documents(self) -> None:
        """The object names its target and bears its name, a ServerStatusRequest that of the velero CLI's own."""
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "DownloadRequest",
                          "metadata": {"name": "nightly-0a1b", "namespace": "velero"},
                          "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}},
                         vr.new_download_request("velero", "BackupLog", "nightly", "0a1b"))
        self.assertEqual({"apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {},
                          "metadata": {"generateName": "velero-cli-", "name": "velero-cli-0a1b", "namespace": "ns"}},
                         vr.new_status_request("ns", "0a1b"))

    def test_names(self) -> None:
        """Names made of others are valid for every name of a backup or request, and no two suffixes are the same."""
        for name in AWKWARD_NAMES:
            found = vr.new_download_request("velero", "BackupLog", name, vr.random_suffix())["metadata"]["name"]
            self.assertTrue(VALID_NAME.match(found) and len(found) <= 63, found)
            start = vr.event_for(a_download(key=a_key(name=name)), "R", "m", NOW)["metadata"]["generateName"]
            self.assertTrue(VALID_NAME.match(start + "x7k2p") and len(start) <= 58, start)
        self.assertEqual(100, len({vr.random_suffix() for _ in range(100)}))


# ------------------------------------------------------------------------------------------------------------
# Section 8: manifests; its screens are tested before the golden cases
# ------------------------------------------------------------------------------------------------------------


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
    """The CustomResourceDefinitions of `manifests`."""

    @unittest.skipUnless(os.path.isdir(os.environ.get("VELERO_CRDS", "")), NO_CRDS)
    def test_veleros_own(self) -> None:
        """The two request kinds are those of Velero 1.6.3 and 1.18.1; of the others spec and status are open."""
        anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        for release, status_subresource in (("1.6.3", True), ("1.18.1", False)):
            with open(os.path.join(os.environ["VELERO_CRDS"], f"velero-{release}.yaml"), encoding="utf-8") as file:
                theirs = [without_descriptions(crd) for crd in yaml.safe_load_all(file) if crd]
            for crd in theirs:
                version = crd["spec"]["versions"][0]
                if version.get("subresources") == {}:
                    del version["subresources"]
                if not crd["spec"]["names"]["kind"].endswith("Request"):
                    version["schema"]["openAPIV3Schema"]["properties"].update(spec=anything, status=anything)
            self.assertEqual(theirs, vr.crd_manifests(status_subresource), release)


# ------------------------------------------------------------------------------------------------------------
# Section 12: inflate, checked, check_target, new_file
# ------------------------------------------------------------------------------------------------------------

CONTENT = b"".join(b"line %d of a log\n" % number for number in range(20))
PACKED = gzip.compress(CONTENT)


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """Data in chunks of a size."""
    return (data[start:start + size] for start in range(0, len(data), size))


class TestInflate(unittest.TestCase):
    """gzip members become their content, or pass as they are, and nothing else does."""

    def read(self, data: bytes, size: int, unpack: bool = True) -> bytes:
        """What comes of data in chunks of a size, with empty chunks between them."""
        chunks = itertools.chain.from_iterable((chunk, b"") for chunk in cut(data, size))
        return b"".join(vr.inflate(chunks, unpack=unpack))

    def test_what_is_whole(self) -> None:
        """However it is cut: members one after another, empty ones, padding behind and between them."""
        empty, second = gzip.compress(b""), gzip.compress(b"second")
        for data, content, sizes in (
                (PACKED, CONTENT, range(1, len(PACKED) + 1)), (PACKED + empty + second, CONTENT + b"second",
                                                               (1, 7, 9999)),
                (PACKED + b"\0", CONTENT, (1, 100, 9999)), (PACKED + b"\0" * 20_000, CONTENT, (1, 100, 99_999)),
                (PACKED + b"\0" * 512 + second, CONTENT + b"second", (1, 100, 9999)), (empty, b"", (1, 99)),
                (gzip.compress(bytes(3 << 20)), bytes(3 << 20), (500, 99_999)),
                (second * 9999, b"second" * 9999, (1 << 20,))):
            for size in sizes:
                with self.subTest(data=data[-8:], length=len(data), size=size):
                    self.assertTrue(content == self.read(data, size))
                    self.assertTrue(data == self.read(data, size, unpack=False))

    def test_what_is_not_whole(self) -> None:
        """Empty, cut short at any byte, or followed by something else; an error says what it is instead."""
        junk = (b"x", b"\x1f", b"\0\0x", b"<html>", PACKED[:5], b"\n", b"\x1f\x8bxx")
        for data, said in (
                (b"", "empty"), *((PACKED[:length], "short") for length in range(1, len(PACKED))),
                *((PACKED + end, "damaged after|short") for end in junk),
                (b"see X-Amz-Signature=s3cr3t", "not gzip.*text"),
                (b"<!DOCTYPE html><html>", "not gzip.*HTML"), (b"PK\x03\x04\0\0", "not gzip.*binary"),
                (b"\0\0", "not gzip")):
            for size, unpack in itertools.product((1, 100_000), (True, False)):
                with self.subTest(data=data[-8:], length=len(data), size=size):
                    with self.assertRaises(vr.StoreError) as caught:
                        self.read(data, size, unpack)
                    if size > 1:
                        self.assertRegex(str(caught.exception), said)
                        self.assertNotIn("s3cr3t", str(caught.exception))

    def test_every_flipped_bit(self) -> None:
        """A flipped bit anywhere is an error, or lies where gzip keeps no content and changes none."""
        spare = [*range(3, 10), len(PACKED) - 9]  # flags, time and system, and bits behind the last block
        for position in range(8 * len(PACKED)):
            damaged = bytearray(PACKED)
            damaged[position // 8] ^= 1 << position % 8
            with contextlib.suppress(vr.StoreError):
                self.assertEqual(CONTENT, b"".join(vr.inflate([bytes(damaged)])))
                self.assertIn(position // 8, spare)

    def test_what_comes_before_a_fault(self) -> None:
        """All content before it is yielded, wherever in a chunk it is."""
        content = bytes(random.Random(8).choices(b"abcdef", k=40_000))
        packed = gzip.compress(content)
        for place, least in ((len(packed) // 2, 18_000), (len(packed) - 7, 40_000)):
            for size in (1, 5000, 99_999):
                got: List[bytes] = []
                with self.subTest(place=place, size=size), self.assertRaisesRegex(vr.StoreError, "damaged after"):
                    for piece in vr.inflate(cut(packed[:place] + b"\xff" * 6 + packed[place + 6:], size)):
                        got.append(piece)
                self.assertGreaterEqual(len(b"".join(got)), least)
                self.assertTrue(content.startswith(b"".join(got)[:least]))

    def test_pieces_are_small_and_come_at_once(self) -> None:
        """Whatever the ratio; and nothing is held back until the end."""
        sizes = [len(piece) for piece in vr.inflate([gzip.compress(b"\0" * (16 << 20))])]
        self.assertEqual((16 << 20, True), (sum(sizes), max(sizes) <= vr.INFLATED_SIZE))
        chunks, read = list(cut(gzip.compress(random.Random(5).getrandbits(80_000).to_bytes(10_000, "big")), 1000)), []
        passing = vr.inflate((read.append(chunk) or chunk for chunk in chunks), unpack=False)
        for number, _ in enumerate(passing, 1):
            self.assertLessEqual(len(read) - number, 1)
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
    """What can be told of a target before anything is asked of anybody."""

    def test_targets(self) -> None:
        """A FIFO, device or link is taken only when the user named it; a link needs force, and may be no stranger's."""
        self.write(b"old")
        here = functools.partial(os.path.join, self.folder)
        os.mkfifo(here("fifo"))
        os.symlink("nowhere", here("dangling"))
        for name, owner in {"own": os.getuid(), "root's": 0, "theirs": 65534}.items():
            os.symlink(self.path, here(name))
            if os.getuid() == 0:             # else all are our own
                os.lchown(here(name), owner, -1)
        os.symlink(here("theirs"), here("by-another"))
        refused = "symbolic link of another user" if os.getuid() == 0 else ""
        both, forced, unforced = (False, True), (True,), (False,)
        for path, named, forces, said in (
                (here("new"), True, both, ""), ("surely-no-such-file-in-this-folder.gz", True, both, ""),
                (self.path, True, unforced, "exists"), (self.path, True, forced, ""), (self.path, False, forced, ""),
                (self.path, False, unforced, "exists"), (here("dangling"), True, unforced, "exists"),
                (here("fifo"), True, unforced, ""), (os.devnull, True, unforced, ""),
                (here("fifo"), False, both, "no regular"),
                (here("own"), True, forced, ""), (here("own"), True, unforced, "exists"),
                (here("own"), False, both, "no reg"),
                (here("root's"), True, forced, ""), (here("theirs"), True, forced, refused),
                (here("by-another"), True, forced, refused), (self.folder, True, both, "is a folder"),
                (here("gone", "x"), True, both, "no folder"), (os.path.join(self.path, "x"), True, both, "no folder")):
            for force in forces:
                with self.subTest(path=path, named=named, force=force):
                    found = hints = ""
                    try:
                        vr.check_target(path, force=force, named=named)
                    except vr.Error as error:
                        found, hints = str(error), " ".join(error.hints)
                        self.assertIn(path if said != refused else self.folder, found)
                    self.assertEqual(bool(said), bool(found), found)
                    self.assertIn(said, found)
                    self.assertEqual(said == "exists", "--force" in hints)


class TestAtomicFile(FolderCase):
    """A file appears whole or not at all."""

    def save(self, path: str, chunks: Iterable[bytes], force: bool = False) -> None:
        """Write chunks into a new file."""
        with vr.atomic_file(path, "", force=force) as new:
            new.open_part("")
            for chunk in chunks:
                vr.write_all(new.file, chunk)

    def test_new_and_old_files(self) -> None:
        """Chunks in order, for the owner alone; an old file is untouched without force, and until the end."""
        def chunks() -> Iterator[bytes]:
            yield b"new"
            self.assertEqual(before, self.found().get("out.gz"))
            yield b"er"
        for before, force, after in ((None, False, b"newer"), (b"old", False, b"old"), (b"old", True, b"newer")):
            with self.subTest(before=before, force=force):
                if before:
                    self.write(before)
                with self.assertRaisesRegex(vr.Error, "exists") if before and not force else contextlib.nullcontext():
                    self.save(self.path, chunks(), force)
                self.assertEqual({"out.gz": after}, self.found())
                if after == b"newer":
                    self.assertEqual(0o600, stat.S_IMODE(os.stat(self.path).st_mode))
                os.unlink(self.path)

    def test_an_error_half_way(self) -> None:
        """Nothing is left, and an old file is untouched, even with force."""
        def broken(error: BaseException) -> Iterator[bytes]:
            yield b"half"
            raise error
        for error in (vr.StoreError("cut short"), KeyboardInterrupt(), OSError(5, "Input/output error"), SystemExit(1)):
            for before in ({}, {"out.gz": b"old"}):
                if before:
                    self.write(b"old")
                with self.subTest(error=repr(error)), self.assertRaises((vr.Error, type(error))):
                    self.save(self.path, broken(error), force=bool(before))
                self.assertEqual(before, self.found())
            os.unlink(self.path)

    def test_what_is_in_the_way(self) -> None:
        """A file that comes meanwhile, a folder missing or in the target's place: the Error names the file."""
        def chunks() -> Iterator[bytes]:
            yield b"ours"
            self.write(b"theirs")
        gone = os.path.join(self.folder, "gone", "x")
        for path, pieces, force in ((self.path, chunks(), False), (gone, [b"x"], False), (gone, [b"x"], True)):
            with self.subTest(path=path), self.assertRaisesRegex(vr.Error, re.escape(path)):
                self.save(path, pieces, force)
        self.assertEqual({"out.gz": b"theirs"}, self.found())
        os.unlink(self.path)
        os.mkdir(self.path)
        for force in (False, True):
            with self.subTest(force=force), self.assertRaisesRegex(vr.Error, re.escape(self.path)):
                self.save(self.path, [b"x"], force)
            self.assertEqual(["out.gz"], os.listdir(self.folder))

    def test_long_names(self) -> None:
        """As long as the file system allows, whatever the letters; alike ones have partial files of their own."""
        for name in ("a" * 255, "€" * 85, "." + "b" * 254):
            self.save(os.path.join(self.folder, name), [b"x"])
            self.assertEqual(b"x", self.found()[name])
        stems = {vr.AtomicFile(os.path.join(self.folder, "a" * 240 + end), "", force=False,
                               named=True).stem for end in "pq"}
        self.assertEqual(2, len(stems))


# ------------------------------------------------------------------------------------------------------------
# Section 13: the queue
# ------------------------------------------------------------------------------------------------------------


# What is done to a queue, and the keys it hands out at each `take` (all that are ready; the clock starts at 1000).
QUEUE_CASES: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "keys come in order, each once": ("add a, add b, add a, add c, take, take", ("abc", "")),
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
    "a look now does not cancel the look said for later": ("at a 1010, add a, take, clock 1010, take", ("a", "a")),
    "an instant that comes while the key is worked on counts afterwards": (
        "add a, work, at a 1010, clock 1010, work, done a, take", ("a", "", "a")),
}


class TestQueue(unittest.TestCase):
    """Tests for `Queue`."""

    def setUp(self) -> None:
        self.now = 1000.0
        self.queue = vr.Queue(lambda: self.now)

    def work(self) -> str:
        """Take a key without waiting; no key is an empty text."""
        return self.queue.take(wait=False) or ""

    def take(self) -> str:
        """Take and finish keys until none is ready."""
        taken = ""
        for key in iter(self.work, ""):
            taken += key
            self.queue.done(key)
        return taken

    def test_cases(self) -> None:
        """Every row of QUEUE_CASES."""
        for what, (script, wanted) in QUEUE_CASES.items():
            self.setUp()
            taken = []
            for deed, *words in map(str.split, script.split(",")):
                if deed in ("take", "work"):
                    taken.append(getattr(self, deed)())
                elif deed == "clock":
                    self.now = float(words[0])
                elif deed == "at":
                    self.queue.add_at(words[0], float(words[1]))
                else:
                    getattr(self.queue, deed)(*words)
            with self.subTest(what):
                self.assertEqual(list(wanted), taken)

    def test_waiting_takes_are_woken(self) -> None:
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

    def test_threads_never_share_a_key(self) -> None:
        """Many threads work on few keys, no two on the same one, and no key is lost."""
        held, worked = dict.fromkeys(range(4), 0), dict.fromkeys(range(4), 0)
        trouble: List[int] = []

        def work() -> None:
            for key in iter(self.queue.take, None):
                held[key] += 1
                trouble.extend([key] if held[key] > 1 else [])
                worked[key] += 1
                if worked[key] < 200:
                    self.queue.add(key)
                held[key] -= 1
                self.queue.done(key)
                if min(worked.values()) >= 200:
                    self.queue.close()
        for key in held:
            self.queue.add(key)
        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(work) for _ in range(8)]:
                future.result(30)
        self.assertEqual(([], dict.fromkeys(range(4), 200)), (trouble, worked))

Document = Dict[str, Any]

# Who may talk to either cluster.
USERS = ("admin", "limited", "reader", "controller", "stranger")


def token_of(user: str) -> str:
    return "token-of-" + user


def wait_until(condition: Callable[[], Any], seconds: float = 10.0, what: str = "the condition") -> Any:
    """Return the first true value of condition(), or fail after a deadline."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() <= deadline:
        value = condition()
        if value:
            return value
        pause.wait(0.005)
    raise AssertionError(f"waited {seconds:g} s in vain for {what}")


class Certificate(NamedTuple):
    """The files of a server certificate for 127.0.0.1 and localhost, and of the authority that signed it."""

    ca: str
    cert: str
    key: str


def run_openssl(*arguments: str) -> None:
    done = subprocess.run(("openssl",) + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stdout.decode(errors='replace')}")


def make_certificate(folder: str) -> Certificate:
    """Make an authority and a server certificate signed by it in folder."""
    made = Certificate(*(os.path.join(folder, name) for name in ("ca.crt", "tls.crt", "tls.key")))
    ca_key, request, extensions = (os.path.join(folder, name) for name in ("ca.key", "tls.csr", "tls.ext"))
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run_openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", made.ca, "-days", "30", "-subj", "/CN=test-ca",
                "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    run_openssl("req", *new_key, "-keyout", made.key, "-out", request, "-subj", "/CN=loopback")
    with open(extensions, "w", encoding="ascii") as file:
        # Python 3.13 verifies strictly: without the two key identifiers it refuses the certificate.
        file.write("subjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n"
                   "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n")
    run_openssl("x509", "-req", "-in", request, "-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "30",
                "-out", made.cert, "-extfile", extensions)
    return made


CERTIFICATES: List[Certificate] = []  # the one of this process, once it has been asked for
CERTIFICATE_LOCK = threading.Lock()   # two threads may ask at once


def shared_certificate() -> Certificate:
    """Return the one certificate of this process, made at the first call and removed at exit."""
    with CERTIFICATE_LOCK:
        if not CERTIFICATES:
            folder = tempfile.mkdtemp(prefix="velero-requests-tls-")
            atexit.register(shutil.rmtree, folder, True)
            CERTIFICATES.append(make_certificate(folder))
        return CERTIFICATES[0]


# ------------------------------------------------------------------------------------------------------------
# What both clusters share: the administrator's client, kubeconfig files, CRDs, namespaces
# ------------------------------------------------------------------------------------------------------------

GROUPS = {plural: group for group, plurals in {
    "velero.io/v1": "downloadrequests serverstatusrequests backups restores backupstoragelocations",
    "v1": "secrets events namespaces configmaps pods services serviceaccounts",
    "apps/v1": "deployments", "apiextensions.k8s.io/v1": "customresourcedefinitions",
    "rbac.authorization.k8s.io/v1": "roles rolebindings clusterroles clusterrolebindings",
    "authorization.k8s.io/v1": "subjectaccessreviews"}.items() for plural in plurals.split()}
MERGE = "application/merge-patch+json"


def resource_path(resource: str, namespace: Optional[str] = None, name: Optional[str] = None) -> str:
    """Return the API path of a resource that GROUPS knows; a slash in resource names a subresource."""
    plural, _, subresource = resource.partition("/")
    group = GROUPS[plural]
    parts = ["/api/v1" if group == "v1" else "/apis/" + group, *(["namespaces", namespace] if namespace else []),
             plural, quote(name or "", safe=""), subresource]
    return "/".join(filter(None, parts))


class Refused(Exception):
    """The server answered a call of the administrator with an error status."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body[:500].decode(errors='replace')}")
        self.status = status


class Admin:
    """A small Kubernetes client for tests that shares no line with the module under test."""

    def __init__(self, url: str, token: Optional[str], ca: Optional[str] = None) -> None:
        self.headers = {"Authorization": "Bearer " + token} if token else {}
        context = urllib3.util.ssl_.create_urllib3_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # urllib3 sets it from Python 3.13 on; old authorities fail it
        options: Document = {"ca_certs": ca, "ssl_context": context} if url.startswith("https") else {}
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
        return self.call("GET", resource_path(resource, namespace, name))

    def list(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Document:
        return self.call("GET", resource_path(resource, namespace), query=query)

    def create(self, resource: str, document: Document, namespace: Optional[str] = None) -> Document:
        """Create an object; apiVersion is filled in when it is missing."""
        return self.call("POST", resource_path(resource, namespace), {"apiVersion": GROUPS[resource], **document})

    def merge_patch(self, resource: str, name: str, patch: Document, namespace: Optional[str] = None) -> Document:
        """Apply an RFC 7386 patch to the object or to the subresource named behind a slash."""
        return self.call("PATCH", resource_path(resource, namespace, name), patch, MERGE)

    def patch_status(self, resource: str, name: str, status: Any, namespace: Optional[str] = None) -> Document:
        return self.merge_patch(resource + "/status", name, {"status": status}, namespace)

    def delete(self, resource: str, name: str, namespace: Optional[str] = None, **preconditions: str) -> Document:
        """Delete an object, optionally only with this uid= or resourceVersion=."""
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        return self.call("DELETE", resource_path(resource, namespace, name), body if preconditions else None)

    def watch(self, resource: str, namespace: Optional[str] = None, **query: Any) -> Iterator[Document]:
        """Yield the events of a watch until the server ends it."""
        response = self.raw("GET", resource_path(resource, namespace), query={"watch": "1", **query}, stream=True)
        try:
            if response.status >= 300:
                raise Refused(response.status, response.read())
            pending = b""
            for part in response.stream(65536):
                *lines, pending = (pending + part).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            response.close()

    def close(self) -> None:
        self.pool.close()


class Cluster:
    """What a test may ask of either cluster."""

    kind = "abstract"
    url = ""
    ca: Optional[str] = None
    admin: Admin

    def client(self, user: Optional[str]) -> Admin:
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
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as out:
            yaml.safe_dump(document, out)
        return path

    def install_crds(self, documents: Iterable[Document]) -> None:
        """Make the cluster serve these CRDs, whatever dialect of them it served before."""
        wanted = [document for document in documents if document]
        for document in wanted:
            try:
                self.admin.create("customresourcedefinitions", document)
            except Refused as refused:
                if refused.status != 409:
                    raise
                self.admin.merge_patch("customresourcedefinitions", document["metadata"]["name"],
                                       {"spec": document["spec"]})
        for document in wanted:
            wait_until(functools.partial(self.serves, document), 30, "the CRD " + document["metadata"]["name"])

    def serves(self, crd: Document) -> bool:
        """Say whether the server answers in the CRD's dialect already; a fake always does."""
        return bool(crd)

    def new_namespace(self, name: Optional[str] = None) -> str:
        """Create a namespace, with a fresh name unless one is given, and return its name."""
        name = name or "ns-" + uuid.uuid4().hex[:10]
        response = self.admin.raw("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        if response.status not in (201, 409):
            raise Refused(response.status, response.data)
        return name

    def clear(self, namespace: str) -> None:
        """Delete every object that a test can have left in the namespace."""
        for resource in ("downloadrequests", "serverstatusrequests", "backups", "restores", "backupstoragelocations",
                         "secrets", "events", "deployments"):
            response = self.admin.raw("GET", resource_path(resource, namespace))
            for item in json.loads(response.data).get("items", []) if response.status == 200 else []:
                path = resource_path(resource, namespace, item["metadata"]["name"])
                if item["metadata"].get("finalizers"):
                    self.admin.raw("PATCH", path, {"metadata": {"finalizers": None}}, MERGE)
                self.admin.raw("DELETE", path)


# ------------------------------------------------------------------------------------------------------------
# HTTP/1.1 over loopback: what the fakes are built on, and the one vocabulary of faults
# ------------------------------------------------------------------------------------------------------------

class Request:
    """One request as it came over the wire; target is the raw request line's, unfolded and undecoded."""

    def __init__(self, method: str, target: str, headers: List[Tuple[str, str]], body: bytes) -> None:
        self.method, self.target, self.body = method, target, body
        self.raw_path, _, self.raw_query = target.partition("?")
        self.path = unquote(self.raw_path)
        self.query = dict(parse_qsl(self.raw_query, keep_blank_values=True))
        self.header_list = headers
        self.headers = {name.lower(): value for name, value in headers}
        self.content_type = self.headers.get("content-type", "").partition(";")[0].strip()
        self.user: Optional[str] = None
        self.parsed: Any = None
        self.status = 0
        self.at = time.monotonic()

    def __repr__(self) -> str:
        return f"<{self.method} {self.target} by {self.user} -> {self.status}>"


class Answer(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: Tuple[Tuple[str, str], ...] = (("Content-Type", "application/json"),)


STREAM = Answer(0, b"")  # stands for the answer to a watch, which is no single answer


class Fault:
    """A scripted misbehaviour, used up after some times; `hits` counts how often it struck."""

    def __init__(self, method: Optional[str], path_part: str, times: int, options: Document) -> None:
        self.method, self.path_part, self.left, self.options = method, path_part, times, options
        self.hits = 0

    def strikes(self, request: Request) -> bool:
        """Say whether this fault strikes the request, and count that."""
        if not (self.left > 0 and self.method in (None, request.method) and self.path_part in request.target):
            return False
        self.left, self.hits = self.left - 1, self.hits + 1
        return True


class Connection:

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.reader = sock.makefile("rb")

    def receive(self) -> Optional[Request]:
        """Read the next request, or return None at the end of the connection."""
        line = self.reader.readline(65537)
        if not line.strip():
            return None
        method, target, _ = line.decode("latin-1").split(" ", 2)
        lines = iter(lambda: self.reader.readline(65537).strip(b"\r\n").decode("latin-1"), "")
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        return Request(method, target, headers, self.reader.read(length))

    def peer_has_left(self) -> bool:
        """Say whether the client closed its side; nobody pipelines, so anything to read means the end."""
        try:
            return bool(select.select([self.socket], [], [], 0)[0])
        except (OSError, ValueError):  # cut_connections has closed it meanwhile
            return True

    def close(self) -> None:
        """Close the connection for good, also for a thread that still reads from it."""
        for close in (lambda: self.socket.shutdown(socket.SHUT_RDWR), self.reader.close, self.socket.close):
            with contextlib.suppress(OSError):
                close()


def head(status: int, headers: Iterable[Tuple[str, str]]) -> bytes:
    """Return the status line and the headers, blank line included."""
    lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}"]
    return ("\r\n".join(lines + [f"{name}: {value}" for name, value in headers]) + "\r\n\r\n").encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def packed(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


class LoopbackServer:
    """A threaded HTTP/1.1 server on 127.0.0.1 with scripted faults and a request log."""

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
        self._thread = threading.Thread(target=self._accept, name="loopback-accept", daemon=True)

    def _tls_context(self, tls: bool, certificate: Optional[Certificate]) -> Optional[ssl.SSLContext]:
        made = certificate or shared_certificate() if tls else None
        self.ca = made.ca if made else None
        if not made:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.cert, made.key)
        return context

    def start(self) -> None:
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
            (connection or accepted).close()

    def _respond(self, request: Request, connection: Connection) -> bool:
        """Log the request and answer it, and say whether the connection goes on."""
        self.identify(request)
        with self._log_lock:
            self.requests.append(request)
            fault = next((fault for fault in self.faults if fault.strikes(request)), None)
        try:
            goes_on = self._misbehave(fault.options, request, connection) if fault else \
                self.answer(request, connection)
        except OSError:
            raise
        except Exception:  # pylint: disable=broad-except
            # A mistake of the fake's own is kept where a test can see it.
            self.bugs.append(traceback.format_exc())
            goes_on = self.send(request, connection, Answer(500, self.bugs[-1].encode(), ()))
        return goes_on and request.headers.get("connection", "").lower() != "close"

    def _misbehave(self, options: Document, request: Request, connection: Connection) -> bool:
        """Carry out a scripted fault, and say whether the connection goes on."""
        self._play([options.get("hang", b"")], connection)
        if "chunks" in options:
            return self._send_chunks(options, request, connection)
        scripted = "status" in options
        # With apply the request has its effect and only its answer is lost.
        true = None if (scripted or options.get("drop")) and not options.get("apply") else self.handle(request)
        if options.get("drop"):
            return False
        if true is STREAM:
            return self.answer(request, connection)
        answer = self._scripted(options, None if scripted else true)
        answer = options["answer"](request, answer) if "answer" in options else answer
        request.status = answer.status
        response = self.whole(request, answer, options.get("content_length"), dated="wire" not in options)
        start = response.index(b"\r\n\r\n") + 4
        if "cut_after" in options:
            response = response[:start + options["cut_after"]]
        pause = start + options.get("pause_after", 0)
        self._play(options["wire"](response) if "wire" in options else
                   [response[:pause], options.get("gate", b""), response[pause:]], connection)
        return not {"wire", "cut_after", "content_length"} & set(options)

    def _scripted(self, options: Document, true: Optional[Answer]) -> Answer:
        """Return the true answer with what a fault changes in it, or one made up altogether."""
        body, headers = options.get("body"), options.get("headers") or {}
        content_type = "application/json" if isinstance(body, dict) else "text/plain"
        body = packed(body) if isinstance(body, dict) else body.encode() if isinstance(body, str) else body
        if true:
            return true._replace(body=true.body if body is None else body,
                                 headers=true.headers + tuple(headers.items()))
        return Answer(options["status"], body or b"", tuple({"Content-Type": content_type, **headers}.items()))

    def _send_chunks(self, options: Document, request: Request, connection: Connection) -> bool:
        """Send a chunked body in pieces exactly as given; cut=True ends it without the last chunk."""
        request.status = options.get("status") or 200
        headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked", **(options.get("headers") or {})}
        pieces = (packed(piece) + b"\n" if isinstance(piece, dict) else piece for piece in options["chunks"])
        end = [] if options.get("cut") else [b"0\r\n\r\n"]
        self._play(itertools.chain([head(request.status, headers.items())], (
            chunk(piece) if isinstance(piece, bytes) else piece for piece in pieces), end), connection)
        return bool(end)

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

    def whole(self, request: Request, answer: Answer, length: Optional[int] = None, dated: bool = True) -> bytes:
        """Return an answer as it goes over the wire; length is a lie about the length of the body."""
        headers, bodiless = list(answer.headers), answer.status in (204, 304)
        if not bodiless and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
            headers.append(("Content-Length", str(len(answer.body) if length is None else length)))
        headers += [("Date", formatdate(usegmt=True))] if dated else []
        return head(answer.status, headers) + (b"" if bodiless or request.method == "HEAD" else answer.body)

    def send(self, request: Request, connection: Connection, answer: Answer) -> bool:
        """Send a complete answer in one go, and say that the connection goes on."""
        request.status = answer.status
        connection.socket.sendall(self.whole(request, answer))
        return True

    # -- what a fake fills in --------------------------------------------------------------------------------

    def identify(self, request: Request) -> None:
        """Fill in who calls, for the log."""

    def answer(self, request: Request, connection: Connection) -> bool:
        """Answer one request, and say whether the connection goes on."""
        return self.send(request, connection, self.handle(request))

    def handle(self, request: Request) -> Answer:
        raise NotImplementedError

    # -- what a test uses ------------------------------------------------------------------------------------

    def script(self, method: Optional[str] = None, path_part: str = "", times: int = 1, **options: Any) -> Fault:
        """Make the next matching requests go wrong, as the options say.

        status, headers, body (bytes, str or a document): this answer instead of the true one.
        Without status the true answer is given, with the headers added and the body put in its place.
        answer=function(request, answer): another answer.
        apply=True: the request has its effect first, and then the scripted answer (or the true one) is sent.
        drop=True: the connection is closed without an answer; cut_after=N: after N bytes of body.
        content_length=N: lie about the length.  hang=Event: wait for it first.
        pause_after=N, gate=Event: wait for it after N bytes of body.
        wire=function(response as bytes): what to send instead, after which the connection ends: bytes, an Event to
        wait for, seconds to let pass.
        chunks=[bytes | document | Event, ...], cut=True: a chunked body in these pieces, maybe unfinished.
        """
        fault = Fault(method, path_part, times, options)
        with self._log_lock:
            self.faults.append(fault)
        return fault

    def unscript(self, all_struck: bool = True) -> None:
        """Forget all scripted faults, each of which must have struck."""
        with self._log_lock:
            idle = [fault for fault in self.faults if not fault.hits]
            self.faults.clear()
        if idle and all_struck:
            raise AssertionError("scripted and never struck: " + "; ".join(
                f"{fault.method} {fault.path_part} {fault.options}" for fault in idle))

    def seen(self, method: Optional[str] = None, path_part: str = "", user: Optional[str] = None,
             status: Optional[int] = None) -> List[Request]:
        with self._log_lock:
            return [request for request in self.requests
                    if method in (None, request.method) and path_part in request.target
                    and user in (None, request.user) and status in (None, request.status)]

    def count(self, method: Optional[str] = None, path_part: str = "", user: Optional[str] = None,
              status: Optional[int] = None) -> int:
        return len(self.seen(method, path_part, user, status))

    def forget(self) -> None:
        with self._log_lock:
            self.requests.clear()

    def cut_connections(self) -> None:
        """Close every open connection, as a restart of the server would."""
        with self._log_lock:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def close(self) -> None:
        """Stop serving and close every connection; no bug may have shown, and every scripted fault must have struck."""
        bugs = list(self.bugs)
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_connections()
        if self._thread.is_alive():
            self._thread.join(5)
        self.unscript()
        if bugs:
            raise AssertionError(bugs[0])


# ------------------------------------------------------------------------------------------------------------
# FakeCluster: what the module reads of kube-apiserver, both dialects of the status, and no more
# ------------------------------------------------------------------------------------------------------------

API_PATH = re.compile(r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
                      r"/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?$")
OBJECT_NAME = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
LABEL_VALUE = re.compile(r"^([A-Za-z0-9]([-.\w]{0,61}[A-Za-z0-9])?)?$")
DATE_TIME = re.compile(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([.,]\d+)?([Zz]|[+-]\d\d:\d\d)$")
JSON_TYPES: Dict[str, Tuple[type, ...]] = {"object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,),
                                           "integer": (int,), "number": (int, float)}
SERVER_OWNS = ("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation", "managedFields",
               "name", "namespace", "resourceVersion", "selfLink", "uid")
LABEL_TERM = re.compile(r"^([\w./-]+)(?:(=|==|!=)([\w.-]*))?$")
BUILT_IN = {"namespaces": "Namespace", "customresourcedefinitions": "CustomResourceDefinition", "secrets": "Secret",
            "events": "Event", "configmaps": "ConfigMap", "pods": "Pod", "services": "Service",
            "serviceaccounts": "ServiceAccount", "deployments": "Deployment"}


class Failure(Exception):
    """A request that ends in a Status document."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.document = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
                         "reason": reason, "code": code}
        self.answer = json_answer(self.document, code)


def now_text() -> str:
    """Return the time of day as the API server writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_answer(document: Document, status: int = 200) -> Answer:
    return Answer(status, packed(document) + b"\n")


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


def look_up(document: Any, path: str) -> Any:
    """Return what stands at a path such as spec.target.kind, or None."""
    for part in path.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def rule_of(schema: Document, name: str) -> Optional[Document]:
    """Return the schema of a field, {} for one that may be anything, None for one that is not known."""
    others = schema.get("additionalProperties")
    free = not schema or schema.get("x-kubernetes-preserve-unknown-fields") or others is True
    rule = others if isinstance(others, dict) else {} if free else None
    return schema.get("properties", {}).get(name, rule)


def prune(value: Any, schema: Document) -> Any:
    """Drop what a structural schema does not know, and nulls where null is not allowed; fill in defaults."""
    if isinstance(value, list):
        return [prune(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: rule["default"] for name, rule in schema.get("properties", {}).items() if "default" in rule}
    for name, item in value.items():
        rule = rule_of(schema, name)
        if rule is not None and (item is not None or not rule or rule.get("nullable")):
            kept[name] = prune(item, rule)
    return kept


def violations(value: Any, schema: Document, path: str = "") -> Iterator[str]:
    """Yield the paths at which a value violates a structural schema."""
    wanted = schema.get("type")
    if value is None and (not wanted or schema.get("nullable")):
        return
    fits = wanted is None or type(value) in JSON_TYPES[wanted]
    if schema.get("format") == "date-time":
        fits = isinstance(value, str) and bool(DATE_TIME.match(value))
    if not fits or value not in schema.get("enum", [value]):
        yield path
    elif isinstance(value, dict):
        yield from (f"{path}.{name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            yield from violations(item, rule_of(schema, name) or {}, f"{path}.{name}")
    elif isinstance(value, list):
        for item in value:
            yield from violations(item, schema.get("items", {}), path)


Matcher = Callable[[Document], bool]


def selector(query: Dict[str, str], plural: str) -> Matcher:
    """Return a test on documents for the label and the field selector of a query."""
    labels = [LABEL_TERM.match(term) for term in query.get("labelSelector", "").split(",") if term]
    fields = [term.replace("==", "=").split("=", 1) for term in query.get("fieldSelector", "").split(",") if term]
    if None in labels or any(name != "metadata.name" and plural != "events" for name, _ in fields):
        raise Failure(400, "BadRequest", "unable to parse requirement, or field label not supported")

    def has(document: Document, key: str, operator: Optional[str], wanted: str) -> bool:
        value = (document["metadata"].get("labels") or {}).get(key)
        return value is not None if operator is None else (value == wanted) == (operator != "!=")
    return lambda document: all(has(document, *term.groups()) for term in labels if term) and all(
        (look_up(document, name) or "") == value for name, value in fields)


class Change(NamedTuple):
    """One write: the event that watches see of it."""

    version: int
    namespace: str
    kind: str
    document: Document


class Watcher:
    """One open watch."""

    def __init__(self, path: str, namespace: str, matches: Matcher, bookmarks: bool) -> None:
        self.path, self.namespace, self.matches, self.bookmarks = path, namespace, matches, bookmarks
        self.queue: "queue.SimpleQueue[Optional[bytes]]" = queue.SimpleQueue()  # None ends the watch

    def tell(self, change: Change) -> None:
        """Queue the event of a change, if this watch is to see it."""
        if self.namespace in ("", change.namespace) and self.matches(change.document):
            self.queue.put(packed({"type": change.kind, "object": change.document}) + b"\n")


class Kind:
    """One resource of the fake API: its objects, their history, and the watches on them."""

    def __init__(self, api_version: str, plural: str, kind: str, schema: Optional[Document] = None,
                 status: bool = False) -> None:
        self.api_version, self.plural, self.kind, self.status = api_version, plural, kind, status
        self.group = api_version.rpartition("/")[0]
        self.full_name = f"{plural}.{self.group}" if self.group else plural
        # The server itself looks after these three fields.
        self.schema = None if schema is None else {**schema, "properties": {
            **schema.get("properties", {}), "apiVersion": {}, "kind": {}, "metadata": {}}}
        self.objects: Dict[Tuple[str, str], Document] = {}
        self.watchers: List[Watcher] = []
        self.forget(0)

    def write(self, version: int, key: Tuple[str, str], after: Optional[Document]) -> None:
        """Store or remove an object and tell the watches."""
        before = self.objects.pop(key, None)
        shown = after or before or {}
        if after is not None:
            self.objects[key] = after
        change = Change(version, key[0], "DELETED" if after is None else "MODIFIED" if before else "ADDED", {
            **shown, "metadata": {**shown["metadata"], "resourceVersion": str(version)}})
        self.history.append(change)
        for watcher in self.watchers:
            watcher.tell(change)

    def forget(self, version: int) -> None:
        """Make the versions before this one too old."""
        self.oldest = version
        self.history: List[Change] = []
        self.pages: Dict[str, Tuple[int, List[Document]]] = {}  # continue token -> version, what is still to come

    def end_watches(self, path_part: str = "") -> int:
        """End watches as the server does at their timeout, and return how many there were."""
        ended = [watcher for watcher in self.watchers if path_part in watcher.path]
        for watcher in ended:
            self.watchers.remove(watcher)
            watcher.queue.put(None)
        return len(ended)

    def bookmark(self, version: int) -> bytes:
        return packed({"type": "BOOKMARK", "object": {"apiVersion": self.api_version, "kind": self.kind,
                                                      "metadata": {"resourceVersion": str(version)}}}) + b"\n"


class Target(NamedTuple):
    """What a path means."""

    kind: Kind
    namespace: str
    name: str
    subresource: str

    @property
    def key(self) -> Tuple[str, str]:
        return self.namespace, self.name

    @property
    def object(self) -> Document:
        """Return the object that is there, or fail."""
        if self.key not in self.kind.objects:
            raise Failure(404, "NotFound", f'{self.kind.full_name} "{self.name}" not found')
        return self.kind.objects[self.key]


class FakeCluster(LoopbackServer, Cluster):
    """A loopback Kubernetes API that answers what the module reads as kube-apiserver 1.34 does."""

    kind = "fake"

    def __init__(self, tls: bool = False, certificate: Optional[Certificate] = None) -> None:
        super().__init__(tls, certificate)
        self.tokens = {token_of(user): user for user in USERS}
        self._lock = threading.RLock()
        self._version = 100
        self._kinds = {(kind.group, kind.plural): kind for kind in (
            Kind(GROUPS[plural], plural, kind) for plural, kind in BUILT_IN.items())}
        self._grants: List[Tuple[str, str, Document]] = []
        self._denials: List[Tuple[str, Tuple[str, ...], str, Optional[str]]] = []
        self.start()
        self.admin = self.client("admin")
        self.new_namespace("default")
        self.forget()

    def close(self) -> None:
        self.cut_watches()
        self.admin.close()
        super().close()

    # -- what a test uses ------------------------------------------------------------------------------------

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Allow what these RBAC PolicyRules say to the user in the namespace ("" means everywhere)."""
        self._grants.extend((user, namespace, rule) for rule in rules)

    def limit(self, user: str, *verbs: str, resource: str = "*", namespace: Optional[str] = None) -> None:
        """Forbid verbs (none means all) on a resource, such as downloadrequests/status, even to the admin."""
        self._denials.append((user, verbs, resource, namespace))

    def unlimit(self, user: Optional[str] = None) -> None:
        self._denials = [denial for denial in self._denials if user not in (None, denial[0])]

    def compact(self) -> str:
        """Make all versions but the newest too old for a watch and for a continue token."""
        with self._lock:
            self._version += 1
            for kind in self._kinds.values():
                kind.forget(self._version)
            return str(self._version)

    def cut_watches(self, path_part: str = "") -> int:
        """End the open watches in good order, as at their timeout, and return how many there were."""
        with self._lock:
            return sum(kind.end_watches(path_part) for kind in self._kinds.values())

    def _open_watches(self, path_part: str = "") -> List[Tuple[Kind, Watcher]]:
        with self._lock:
            return [(kind, watcher) for kind in self._kinds.values() for watcher in kind.watchers
                    if path_part in watcher.path]

    def push(self, event: Union[Document, bytes], path_part: str = "") -> None:
        """Send an event of the test's own (a document, or raw bytes) down the open watches."""
        for _, watcher in self._open_watches(path_part):
            watcher.queue.put(event if isinstance(event, bytes) else packed(event) + b"\n")

    def send_bookmarks(self) -> None:
        """Send a bookmark with the newest version down every watch that asked for bookmarks."""
        for kind, watcher in self._open_watches():
            if watcher.bookmarks:
                watcher.queue.put(kind.bookmark(self._version))

    def watches(self, path_part: str = "") -> List[str]:
        return [watcher.path for _, watcher in self._open_watches(path_part)]

    @property
    def version(self) -> str:
        return str(self._version)

    # -- who, what, and may they -----------------------------------------------------------------------------

    def identify(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        request.user = self.tokens.get(token.strip()) if scheme.lower() == "bearer" else "system:anonymous"
        with contextlib.suppress(ValueError):
            request.parsed = json.loads(request.body) if request.body else None

    def answer(self, request: Request, connection: Connection) -> bool:
        """Answer one request; a watch streams until it ends."""
        answer = self.handle(request)
        return self._watch(request, connection) if answer is STREAM else self.send(request, connection, answer)

    def handle(self, request: Request) -> Answer:
        """Return the answer to one request, or STREAM for a watch that may start."""
        try:
            with self._lock:
                if request.user is None:
                    raise Failure(401, "Unauthorized", "Unauthorized")
                target = self._target(request.path)
                return self._act(request, target) if target else self._discover(request.path)
        except Failure as failure:
            return failure.answer

    def _target(self, path: str) -> Optional[Target]:
        """Take the path of a resource that is served apart."""
        match = API_PATH.match(path)
        part = match.groupdict("") if match else {}
        kind = self._kinds.get((part.get("group", ""), part.get("plural", "")))
        if kind is None or kind.api_version.rpartition("/")[2] != part["version"]:
            return None
        return Target(kind, part["namespace"], part["name"], part["subresource"])

    def _act(self, request: Request, target: Target) -> Answer:
        """Do what is asked for, if the caller may."""
        acts: Dict[Tuple[str, bool], Tuple[str, Callable[[Request, Target], Answer]]] = {
            ("GET", True): ("get", lambda _, target: json_answer(target.object)), ("GET", False): ("list", self._list),
            ("POST", False): ("create", self._create), ("PATCH", True): ("patch", self._patch),
            ("DELETE", True): ("delete", self._delete), ("DELETE", False): ("deletecollection", self._delete_all)}
        verb, act = acts[request.method, bool(target.name)]
        if verb == "list" and request.query.get("watch", "0") not in ("0", "false"):
            verb, act = "watch", self._check_watch
        self._authorize(request, target, verb)
        if target.subresource and not (target.subresource == "status" and target.kind.status):
            raise Failure(404, "NotFound", f'{target.kind.full_name} "{target.name}" not found')
        return act(request, target)

    def _authorize(self, request: Request, target: Target, verb: str) -> None:
        resource = "/".join(filter(None, (target.kind.plural, target.subresource)))
        pinned = re.search(r"metadata\.name==?([^,]+)", request.query.get("fieldSelector", ""))
        name = target.name or (pinned[1] if pinned else "")
        allowed = request.user == "admin" or any(
            user == request.user and namespace in ("", target.namespace) and {verb, "*"} & set(rule.get("verbs", ()))
            and {target.kind.group, "*"} & set(rule.get("apiGroups", ()))
            and {resource, "*"} & set(rule.get("resources", ())) and name in (rule.get("resourceNames") or [name])
            for user, namespace, rule in self._grants)
        denied = any(user == request.user and verb in (verbs or [verb]) and denied in ("*", resource)
                     and namespace in (None, target.namespace) for user, verbs, denied, namespace in self._denials)
        if denied or not allowed:
            named = f' "{target.name}"' if target.name else ""
            where = f'in the namespace "{target.namespace}"' if target.namespace else "at the cluster scope"
            raise Failure(403, "Forbidden", f'{target.kind.full_name}{named} is forbidden: User "{request.user}" '
                          f'cannot {verb} resource "{resource}" in API group "{target.kind.group}" {where}')

    def _discover(self, path: str) -> Answer:
        version = re.sub(r"^/apis?/", "", path)
        rows = [{"name": kind.plural + subresource, "singularName": "", "namespaced": True, "kind": kind.kind,
                 "verbs": ["create", "delete", "get", "list", "patch", "watch"]}
                for kind in self._kinds.values() if kind.api_version == version
                for subresource in ("", "/status")[:1 + kind.status]]
        if not rows:
            return Answer(404, b"404 page not found\n", (("Content-Type", "text/plain; charset=utf-8"),))
        return json_answer({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": rows})

    # -- reading ---------------------------------------------------------------------------------------------

    def _number(self, query: Dict[str, str], name: str) -> int:
        text = query.get(name) or "0"
        if not text.isdigit():
            raise Failure(400, "BadRequest", f"{name}: invalid syntax")
        return int(text)

    def _list(self, request: Request, target: Target) -> Answer:
        """Return a page; all pages of a list show the moment of the first."""
        query, kind = request.query, target.kind
        limit, matches, token = self._number(query, "limit"), selector(query, kind.plural), query.get("continue", "")
        version, items = self._version, [
            document for key, document in sorted(kind.objects.items())
            if target.namespace in ("", key[0]) and matches(document)]
        if token and token not in kind.pages:
            raise Failure(410, "Expired", "The provided continue parameter is too old to display a consistent list "
                          "result.")
        version, items = kind.pages[token] if token else (version, items)
        page, rest = items[:limit or None], items[limit:] if limit else []
        more = uuid.uuid4().hex if rest else ""
        kind.pages.update({more: (version, rest)} if rest else {})
        return json_answer({"apiVersion": kind.api_version, "items": page, "kind": kind.kind + "List",
                            "metadata": {"continue": more, "resourceVersion": str(version)}})

    def _check_watch(self, request: Request, target: Target) -> Answer:
        self._number(request.query, "timeoutSeconds")
        self._number(request.query, "resourceVersion")
        selector(request.query, target.kind.plural)
        return STREAM

    def _watch(self, request: Request, connection: Connection) -> bool:
        """Send the events of a watch until it ends, and say that the connection may go on."""
        request.status = 200
        target, query = self._target(request.path), request.query
        assert target is not None
        kind, deadline = target.kind, time.monotonic() + (self._number(query, "timeoutSeconds") or 1800)
        watcher = Watcher(request.target, target.namespace, selector(query, kind.plural),
                          query.get("allowWatchBookmarks") in ("1", "true"))
        with self._lock:
            self._begin(watcher, kind, self._number(query, "resourceVersion"))
        try:
            connection.socket.sendall(head(200, (("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"),
                                                 ("Date", formatdate(usegmt=True)))))
            self._pump(connection, kind, watcher, deadline)
            connection.socket.sendall(b"0\r\n\r\n")
            return True
        finally:
            with self._lock:
                kind.watchers = [other for other in kind.watchers if other is not watcher]

    def _begin(self, watcher: Watcher, kind: Kind, version: int) -> None:
        """Queue what a watch sends at once: everything, what has happened since a version, or that it is too old."""
        if 0 < version < kind.oldest:
            gone = Failure(410, "Expired", f"too old resource version: {version} ({kind.oldest})")
            watcher.queue.put(packed({"type": "ERROR", "object": gone.document}) + b"\n")
            watcher.queue.put(None)
            return
        present = [Change(1, key[0], "ADDED", document) for key, document in sorted(kind.objects.items())]
        for change in [change for change in kind.history if change.version > version] if version else present:
            watcher.tell(change)
        kind.watchers.append(watcher)

    def _pump(self, connection: Connection, kind: Kind, watcher: Watcher, deadline: float) -> None:
        """Send what comes until the deadline, the end of the watch or the client's, a bookmark shortly before."""
        # The real server sends the last bookmark two seconds before the end, too.
        bookmark = deadline - 2.0 if watcher.bookmarks and deadline - 2.0 > time.monotonic() else deadline + 1.0
        while not self.closing.is_set():
            lines: List[Optional[bytes]] = []
            with contextlib.suppress(queue.Empty):
                lines.append(watcher.queue.get(timeout=max(0.0, min(min(deadline, bookmark) - time.monotonic(), 0.5))))
                while True:
                    lines.append(watcher.queue.get_nowait())
            if not lines and connection.peer_has_left():
                raise ConnectionResetError("the client has left its watch")
            if time.monotonic() >= bookmark:
                lines.append(kind.bookmark(self._version))
                bookmark = deadline + 1.0
            connection.socket.sendall(b"".join(chunk(line) for line in lines if line))
            if None in lines or time.monotonic() >= deadline:
                return

    # -- writing ---------------------------------------------------------------------------------------------

    def _create(self, request: Request, target: Target) -> Answer:
        kind, body = target.kind, request.parsed
        if request.content_type != "application/json":
            raise Failure(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        given = body.get("metadata") or {}
        own = {"kind": kind.kind, "apiVersion": kind.api_version}
        if {**own, **body, "namespace": given.get("namespace", target.namespace)} != {
                **body, **own, "namespace": target.namespace}:
            raise Failure(400, "BadRequest", f"the object provided is no {kind.kind}, or not of the namespace sent")
        if target.namespace and ("", target.namespace) not in self._kinds["", "namespaces"].objects:
            raise Failure(404, "NotFound", f'namespaces "{target.namespace}" not found')
        if "name" not in given and "generateName" not in given:
            raise Failure(422, "Invalid", f"{kind.kind} is invalid: metadata.name: Required value")
        target = target._replace(name=given.get("name") or given["generateName"][:58] + "".join(
            random.choices("bcdfghjklmnpqrstvwxz2456789", k=5)))
        if target.key in kind.objects:
            raise Failure(409, "AlreadyExists", f'{kind.full_name} "{target.name}" already exists')
        owned = {"name": target.name, "uid": str(uuid.uuid4()), "creationTimestamp": now_text(),
                 **({"namespace": target.namespace} if target.namespace else {}),
                 **({"generation": 1} if kind.schema is not None or kind.plural == "deployments" else {})}
        document = {name: value for name, value in body.items() if name != "status" or not kind.status}
        return json_answer(self._store(target, {**own, **document}, owned), 201)

    def _store(self, target: Target, document: Document, owned: Document, old: Optional[Document] = None) -> Document:
        """Check a document and keep it, with the metadata that the server owns, in place of an old one."""
        kind = target.kind
        kept = {name: value for name, value in (document.get("metadata") or {}).items()
                if name not in SERVER_OWNS and value not in (None, "", {}, [])}
        metadata = dict(sorted({**kept, **owned}.items()))
        document = {**(document if kind.schema is None else prune(document, kind.schema)), "metadata": metadata}
        self._check(kind, document, old)
        if document == old:
            return document
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        kind.write(self._version, target.key, document)
        if kind.plural == "customresourcedefinitions":
            self._serve(document)
        return document

    def _check(self, kind: Kind, document: Document, old: Optional[Document]) -> None:
        """Refuse what violates the schema; what an update leaves alone may stay wrong."""
        metadata = document["metadata"]
        fields = [field for name in ("spec", "status") if name in document
                  for field in violations(document[name], rule_of(kind.schema or {}, name) or {}, name)
                  if old is None or look_up(document, field) != look_up(old, field)]
        fields += [] if OBJECT_NAME.match(metadata["name"]) else ["metadata.name"]
        fields += [f"metadata.labels.{name}" for name, value in metadata.get("labels", {}).items()
                   if not LABEL_VALUE.match(value)]
        if fields:
            raise Failure(422, "Invalid", f'{kind.kind}.{kind.group} "{metadata["name"]}" is invalid: '
                          + ", ".join(f"{field}: Invalid value" for field in fields))

    def _patch(self, request: Request, target: Target) -> Answer:
        old, kind = target.object, target.kind
        if request.content_type != MERGE:
            raise Failure(415, "UnsupportedMediaType", "the body of the request was in an unknown format")
        if not isinstance(request.parsed, dict):
            raise Failure(400, "BadRequest", "error decoding patch")
        document = merge(old, request.parsed)
        owned = {name: value for name, value in old["metadata"].items() if name in SERVER_OWNS}
        if (document.get("metadata") or old["metadata"]).get("resourceVersion") not in (None, owned["resourceVersion"]):
            raise Failure(409, "Conflict", f'Operation cannot be fulfilled on {kind.full_name} "{target.name}": the '
                          "object has been modified; please apply your changes to the latest version and try again")
        if target.subresource:
            document = {**old, "status": document.get("status")}
        elif kind.status:
            document["status"] = old.get("status")
        document = {name: value for name, value in document.items() if value is not None}
        if "deletionTimestamp" in owned and not (document.get("metadata") or {}).get("finalizers"):
            self._remove(target, now=True)
            return json_answer(document)
        return json_answer(self._store(target, document, owned, old))

    def _delete(self, request: Request, target: Target) -> Answer:
        wanted = (request.parsed or {}).get("preconditions") or {}
        if any(target.object["metadata"][name] != value for name, value in wanted.items()):
            raise Failure(409, "Conflict", f'Operation cannot be fulfilled on {target.kind.full_name} "{target.name}": '
                          f"the precondition {packed(wanted).decode()} does not match the record")
        return json_answer(self._remove(target))

    def _delete_all(self, request: Request, target: Target) -> Answer:
        for namespace, name in sorted(target.kind.objects):
            if target.namespace in ("", namespace):
                self._remove(target._replace(namespace=namespace, name=name))
        return self._list(request, target)

    def _remove(self, target: Target, now: bool = False) -> Document:
        """Remove an object, or only mark it as deleted while it has finalizers."""
        old, kind = target.object, target.kind
        metadata = old["metadata"]
        if metadata.get("finalizers") and not now:
            marks = {"deletionTimestamp": now_text(), "deletionGracePeriodSeconds": 0}
            return old if "deletionTimestamp" in metadata else self._store(target, old, {**metadata, **marks}, old)
        self._version += 1
        kind.write(self._version, target.key, None)
        if kind.plural == "customresourcedefinitions":
            gone = self._kinds.pop((old["spec"]["group"], old["spec"]["names"]["plural"]))
            for key in sorted(gone.objects):
                gone.write(self._version, key, None)
            gone.end_watches()
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def _serve(self, crd: Document) -> None:
        """Serve a kind as its definition says from now on; another definition ends the watches of the one before."""
        spec, version = crd["spec"], crd["spec"]["versions"][0]
        kind = Kind(f"{spec['group']}/{version['name']}", spec["names"]["plural"], spec["names"]["kind"],
                    version["schema"]["openAPIV3Schema"], "status" in (version.get("subresources") or {}))
        before = self._kinds.get((kind.group, kind.plural))
        if before and (before.schema, before.status) == (kind.schema, kind.status):
            return
        if before:
            before.end_watches()
            kind.objects = before.objects
        # A new definition comes with a new cache, which knows nothing of earlier versions.
        kind.forget(self._version)
        self._kinds[kind.group, kind.plural] = kind


# ------------------------------------------------------------------------------------------------------------
# Signature Version 4, written from the AWS specification alone, so that it can judge the module's
# ------------------------------------------------------------------------------------------------------------

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"


def uri_encode(data: bytes, keep: bytes = b"") -> str:
    """Encode every byte but the unreserved ones (and those to keep) as %XX."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~" + keep
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in data)


def uri_decode(text: str) -> bytes:
    """Undo percent-encoding and nothing else; text holds one character for each byte, as the wire did."""
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match.group(1), 16)]), text.encode("latin-1"))


def query_pairs(raw_query: str) -> List[Tuple[str, ...]]:
    """Return the pairs of a raw query, encoded the canonical way."""
    parts = (part.partition("=")[::2] for part in raw_query.split("&") if part)
    return [tuple(uri_encode(uri_decode(text.replace("+", " "))) for text in pair) for pair in parts]


def canonical_request(method: str, raw_path: str, raw_query: str, headers: Iterable[Tuple[str, str]],
                      signed: Iterable[str], payload: str) -> str:
    """Return the canonical request; S3 neither normalises the path nor encodes it twice."""
    values: Dict[str, List[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    names = sorted(signed)
    query = "&".join(f"{name}={value}" for name, value in sorted(query_pairs(raw_query)) if name != "X-Amz-Signature")
    lines = [method, uri_encode(uri_decode(raw_path), b"/") or "/", query]
    lines += [f"{name}:{','.join(values.get(name, ['']))}" for name in names]
    return "\n".join(lines + ["", ";".join(names), payload])


def string_to_sign(when: str, scope: str, request: str) -> str:
    return "\n".join((ALGORITHM, when, scope, hashlib.sha256(request.encode("utf-8")).hexdigest()))


def signature_of(secret: str, scope: str, text: str) -> str:
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def stamp(at: float) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))


def presigned_url(url: str, access_key: str, secret_key: str, region: str, at: Optional[float] = None,
                  expires: int = 600, token: str = "", method: str = "GET", extra: str = "") -> str:
    """Sign a URL whose path is already encoded; extra is more raw query that is to be signed."""
    base, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    when = stamp(time.time() if at is None else at)
    scope = f"{when[:8]}/{region}/s3/aws4_request"
    query = {"X-Amz-Algorithm": ALGORITHM, "X-Amz-Credential": f"{access_key}/{scope}", "X-Amz-Date": when,
             "X-Amz-Expires": str(expires), "X-Amz-SignedHeaders": "host",
             **({"X-Amz-Security-Token": token} if token else {})}
    pairs = [f"{name}={uri_encode(value.encode())}" for name, value in query.items()]
    raw = "&".join(pairs + ([extra] if extra else []))
    request = canonical_request(method, "/" + path, raw, [("host", host)], ["host"], UNSIGNED)
    return f"{base}://{rest}?{raw}&X-Amz-Signature=" + signature_of(
        secret_key, scope, string_to_sign(when, scope, request))


# ------------------------------------------------------------------------------------------------------------
# FakeStore
# ------------------------------------------------------------------------------------------------------------

def xml_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def xml_answer(content: str, status: int = 200) -> Answer:
    return Answer(status, ('<?xml version="1.0" encoding="UTF-8"?>\n' + content).encode(),
                  (("Content-Type", "application/xml"),))


class StoreError(Exception):
    """A request that ends in an S3 error document."""

    def __init__(self, status: int, code: str, message: str, **elements: Any) -> None:
        super().__init__(message)
        self.status = status
        self.elements = {"Code": code, "Message": message, **elements}

    def answer(self, resource: str) -> Answer:
        rows = {**self.elements, "Resource": resource, "RequestId": "FAKE0123456789AB", "HostId": "fake-store"}
        return xml_answer("<Error>" + "".join(
            f"<{name}>{xml_text(str(value))}</{name}>" for name, value in rows.items()) + "</Error>", self.status)


class StoredObject(NamedTuple):
    """One object with what a HEAD would say of it."""

    body: bytes
    etag: str
    modified: str
    headers: Tuple[Tuple[str, str], ...]


class FakeStore(LoopbackServer):
    """A loopback S3 server that believes no signature it has not recomputed itself."""

    kind = "fake"
    page = 1000  # keys in one page of a listing

    def __init__(self, tls: bool = False, region: str = "us-east-1") -> None:
        super().__init__(tls)
        self.access_key, self.secret_key, self.region = "AKIAFAKESTORE", "fake-store-secret/+", region
        # More keys may be added: access key -> (secret, session token that must come with it or "").
        self.keys: Dict[str, Tuple[str, str]] = {self.access_key: (self.secret_key, "")}
        self.clock: Callable[[], float] = time.time
        self.hide_missing = False  # without the right to list a bucket AWS answers 403 for an absent key
        self.buckets: Dict[str, Dict[str, StoredObject]] = {}
        self.path_hosts = {"127.0.0.1", "localhost"}
        self.start()

    def create_bucket(self, bucket: str) -> None:
        self.buckets.setdefault(bucket, {})

    def put(self, bucket: str, key: str, body: bytes, **headers: str) -> None:
        """Store an object, its bucket too if need be; a header such as Content_Type is given back with it."""
        self.put_with_etag(bucket, key, body, '"' + hashlib.md5(body).hexdigest() + '"', **headers)

    def put_with_etag(self, bucket: str, key: str, body: bytes, etag: str, **headers: str) -> None:
        """Store an object whose ETag is not what it would be by itself."""
        self.create_bucket(bucket)
        extra = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        self.buckets[bucket][key] = StoredObject(body, etag, formatdate(self.clock(), usegmt=True), extra)

    def url_of(self, bucket: str, key: str, **options: Any) -> str:
        """Return a valid pre-signed path-style URL of our own making."""
        return presigned_url(f"{self.url}/{bucket}/" + uri_encode(key.encode(), b"/"), self.access_key, self.secret_key,
                             self.region, **{"at": self.clock(), **options})

    # -- requests --------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Answer:
        bucket, key = self._locate(request)
        region = (("x-amz-bucket-region", self.region),) if request.method == "HEAD" and not key else ()
        try:
            self._verify(request)
            answer = self._serve(request, bucket, key)
        except StoreError as error:
            answer = error.answer(request.raw_path)
        return answer._replace(headers=answer.headers + region
                               + (("x-amz-request-id", "FAKE0123456789AB"), ("Server", "AmazonS3")))

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
        if bucket not in self.buckets:
            raise StoreError(404, "NoSuchBucket", "The specified bucket does not exist", BucketName=bucket)
        if not key:
            return Answer(200, b"", ()) if request.method == "HEAD" else self._list(request, bucket)
        if request.method == "PUT":
            self.put(bucket, key, request.body)
            return Answer(200, b"", (("ETag", self.buckets[bucket][key].etag),))
        return self._object(request, bucket, key)

    def _list(self, request: Request, bucket: str) -> Answer:
        """Answer ListObjectsV2 with delimiter and pages."""
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
        rows: Dict[str, str] = {}
        for key, stored in sorted(self.buckets[bucket].items()):
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if end < 0 else key[:end + 1]
            if key.startswith(prefix) and name > request.query.get("continuation-token", ""):
                rows[name] = f"<CommonPrefixes><Prefix>{xml_text(name)}</Prefix></CommonPrefixes>" if end >= 0 else (
                    f"<Contents><Key>{xml_text(key)}</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
                    f"<ETag>{xml_text(stored.etag)}</ETag><Size>{len(stored.body)}</Size></Contents>")
        shown = list(rows)[:self.page]
        more = len(shown) < len(rows)
        token = f"<NextContinuationToken>{xml_text(shown[-1])}</NextContinuationToken>" if more else ""
        return xml_answer(
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{xml_text(prefix)}</Prefix>"
            f"<KeyCount>{len(shown)}</KeyCount><MaxKeys>{self.page}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            + "".join(rows[name] for name in shown) + "</ListBucketResult>")

    def _object(self, request: Request, bucket: str, key: str) -> Answer:
        stored = self.buckets[bucket].get(key)
        if stored is None:
            if self.hide_missing:
                raise StoreError(403, "AccessDenied", "Access Denied")
            raise StoreError(404, "NoSuchKey", "The specified key does not exist.", Key=key)
        if request.headers.get("if-match") not in (None, "*", stored.etag, stored.etag.strip('"')):
            raise StoreError(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold",
                             Condition="If-Match")
        size, span = len(stored.body), re.match(r"^bytes=(\d+)-(\d*)$", request.headers.get("range", ""))
        headers = (("ETag", stored.etag), ("Last-Modified", stored.modified), ("Accept-Ranges", "bytes")) + (
            stored.headers or (("Content-Type", "binary/octet-stream"),))
        begin, end = (int(span[1]), min(int(span[2] or size), size - 1)) if span else (0, -1)
        if span and begin >= size:
            raise StoreError(416, "InvalidRange", "The requested range is not satisfiable", RangeRequested=span[0],
                             ActualObjectSize=size)
        if begin > end:  # no range, or one to be ignored
            return Answer(200, stored.body, headers)
        place = (("Content-Range", f"bytes {begin}-{end}/{size}"),)
        return Answer(206, stored.body[begin:end + 1], headers + place)

    # -- signatures ------------------------------------------------------------------------------------------

    def _verify(self, request: Request) -> None:
        """Refuse the request unless its signature is right, in time and in scope."""
        if "authorization" in request.headers:
            raise StoreError(400, "InvalidArgument", "Only one auth mechanism allowed", ArgumentName="Authorization")
        if "X-Amz-Algorithm=" not in request.raw_query:
            raise StoreError(403, "AccessDenied", "Access Denied")
        given = {unquote(name): unquote(value) for name, value in query_pairs(request.raw_query)}
        access_key, scope = self._check_terms(given)
        request.user = access_key
        if access_key not in self.keys:
            raise StoreError(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our "
                             "records.", AWSAccessKeyId=access_key)
        secret, token = self.keys[access_key]
        if token != given.get("X-Amz-Security-Token", ""):
            raise StoreError(400, "InvalidToken", "The provided token is malformed or otherwise invalid.",
                             **{"Token-0": given.get("X-Amz-Security-Token", "")})
        signed = given["X-Amz-SignedHeaders"].split(";")
        unsigned = [name for name in request.headers if name.startswith(("x-amz-", "host")) and name not in signed]
        if unsigned:
            raise StoreError(403, "AccessDenied", "There were headers present in the request which were not signed",
                             HeadersNotSigned=", ".join(unsigned))
        canonical = canonical_request(request.method, request.raw_path, request.raw_query, request.header_list,
                                      signed, UNSIGNED)
        text = string_to_sign(given["X-Amz-Date"], scope, canonical)
        if not hmac.compare_digest(signature_of(secret, scope, text), given["X-Amz-Signature"]):
            raise StoreError(403, "SignatureDoesNotMatch", "The request signature we calculated does not match the "
                             "signature you provided. Check your key and signing method.",
                             AWSAccessKeyId=access_key, StringToSign=text, SignatureProvided=given["X-Amz-Signature"],
                             CanonicalRequest=canonical)

    def _check_terms(self, given: Dict[str, str]) -> Tuple[str, str]:
        """Check the form and the time of a pre-signed URL, and return access key and scope."""
        wrong = functools.partial(StoreError, 400, "AuthorizationQueryParametersError")
        names = ("Credential", "Signature", "Date", "SignedHeaders", "Expires")
        if given["X-Amz-Algorithm"] != ALGORITHM or not all(given.get("X-Amz-" + name) for name in names):
            raise wrong(f"Query-string authentication version 4 requires {ALGORITHM} and all its parameters.")
        when, expires = given["X-Amz-Date"], given["X-Amz-Expires"]
        if not expires.isdigit() or int(expires) > 604800:
            raise wrong("X-Amz-Expires must be less than a week (in seconds)")
        match = re.match(r"^(.+?)/((\d+)/([^/]*)/s3/aws4_request)$", given["X-Amz-Credential"])
        if not match or match[3] != when[:8] or not re.match(r"^\d{8}T\d{6}Z$", when):
            raise wrong('the Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/s3/aws4_request".')
        if match[4] != self.region:
            raise wrong(f"the region '{match[4]}' is wrong; expecting '{self.region}'", Region=self.region)
        begin = datetime.strptime(when, "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc).timestamp()
        now, end = self.clock(), begin + int(expires)
        if begin > now + 900:
            raise StoreError(403, "AccessDenied", "Request is not yet valid")
        if now > end:
            shown = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (end, now))
            raise StoreError(403, "AccessDenied", "Request has expired", **{
                "X-Amz-Expires": expires, **dict(zip(("Expires", "ServerTime"), shown))})
        return match[1], match[2]


# ------------------------------------------------------------------------------------------------------------
# The real servers, one of each for a process: CRDs hold for a whole cluster
# ------------------------------------------------------------------------------------------------------------

def free_port() -> int:
    """Return a loopback port that nobody uses, from below those that the kernel gives to others by itself."""
    for port in random.SystemRandom().sample(range(15000, 32000), 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("there is no free port")


def assets_folder(program: str = "kube-apiserver") -> Optional[str]:
    """Return the folder of the real servers (KUBEBUILDER_ASSETS) if it has this one."""
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


class Child:
    """A server process of ours with its log, stopped by its own pid."""

    def __init__(self, folder: str, program: str, *arguments: str) -> None:
        self.name = os.path.basename(program)
        self.log = os.path.join(folder, self.name + ".log")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen((program,) + arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            cwd=folder)

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until ready() is true, and fail with the end of the log when that does not happen."""
        try:
            wait_until(lambda: self.process.poll() is not None or ready(), seconds, self.name + " to be ready")
            trouble = "" if self.process.poll() is None else f"{self.name} ended with {self.process.returncode}"
        except AssertionError as error:
            trouble = str(error)
        if trouble:
            with open(self.log, "rb") as log:
                raise RuntimeError(f"{trouble}; its log ends:\n{log.read()[-3000:].decode(errors='replace')}")

    def stop(self) -> None:
        stop_process(self.process)


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
        self.etcd_url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        etcd = Child(self.folder, os.path.join(assets, "etcd"), "--data-dir", os.path.join(self.folder, "etcd"),
                     "--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url,
                     "--listen-peer-urls", peer, "--unsafe-no-fsync")
        self.children.append(etcd)
        etcd.wait_ready(lambda: answers(self.etcd_url + "/health", b"true"), 30)
        port = free_port()
        child = Child(self.folder, os.path.join(assets, "kube-apiserver"), *self._flags(made, port))
        self.children.append(child)
        self.url = f"https://127.0.0.1:{port}"
        self.admin = self.client("admin")
        headers = {"Authorization": "Bearer " + token_of("admin")}
        child.wait_ready(lambda: answers(self.url + "/readyz", b"ok", ca_certs=made.ca, headers=headers), 60)
        wait_until(lambda: self.admin.raw("GET", "/api/v1/namespaces/default").status == 200, 30, "the namespaces")

    def _flags(self, made: Certificate, port: int) -> List[str]:
        private, public, tokens = (os.path.join(self.folder, name) for name in ("sa.key", "sa.pub", "tokens.csv"))
        run_openssl("genrsa", "-out", private, "2048")
        run_openssl("rsa", "-in", private, "-pubout", "-out", public)
        with open(tokens, "w", encoding="ascii") as file:
            for user in USERS:
                file.write(f"{token_of(user)},{user},{user}" + (',"system:masters"\n' if user == "admin" else "\n"))
        flags = {"etcd-servers": self.etcd_url, "bind-address": "127.0.0.1", "advertise-address": "127.0.0.1",
                 "secure-port": str(port), "cert-dir": self.folder, "tls-cert-file": made.cert,
                 "tls-private-key-file": made.key, "client-ca-file": made.ca,
                 "service-account-issuer": "https://kubernetes.default.svc", "service-account-key-file": public,
                 "service-account-signing-key-file": private, "token-auth-file": tokens,
                 "authorization-mode": "RBAC", "disable-admission-plugins": "ServiceAccount",
                 "service-cluster-ip-range": "10.0.0.0/24"}
        return [f"--{name}={value}" for name, value in flags.items()]

    def serves(self, crd: Document) -> bool:
        """Say whether discovery shows the CRD's dialect, and the server really answers and watches in it."""
        spec, version = crd["spec"], crd["spec"]["versions"][0]
        plural, wanted = spec["names"]["plural"], "status" in (version.get("subresources") or {})
        base = f"/apis/{spec['group']}/{version['name']}"
        found = self.admin.raw("GET", base)
        names = [entry["name"] for entry in json.loads(found.data)["resources"]] if found.status == 200 else []
        # Discovery may run ahead of the handler.  A method that no status knows tells: 405 where there is a
        # status subresource, 404 where there is none.
        probe = self.admin.raw("POST", f"{base}/namespaces/default/{plural}/none/status")
        listed = self.admin.raw("GET", f"{base}/{plural}")
        if plural not in names or (plural + "/status" in names) != wanted or listed.status != 200 \
                or probe.status != (405 if wanted else 404):
            return False
        # A watch may still be refused with 429 while the server's cache of the kind is made anew.
        query = {"watch": "true", "resourceVersion": json.loads(listed.data)["metadata"]["resourceVersion"],
                 "timeoutSeconds": 1}
        watch = self.admin.raw("GET", f"{base}/namespaces/default/{plural}", query=query, stream=True)
        watch.close()
        return watch.status == 200

    def grant(self, user: str, *rules: Document, namespace: str) -> None:
        """Create a Role and its binding, and wait until the authorizer has seen them."""
        name, api = f"{user}-{uuid.uuid4().hex[:6]}", "rbac.authorization.k8s.io"
        self.admin.create("roles", {"kind": "Role", "metadata": {"name": name}, "rules": list(rules)}, namespace)
        self.admin.create("rolebindings", {
            "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": api, "kind": "User", "name": user}]}, namespace)
        wait_until(lambda: all(self._allows(user, rule, namespace) for rule in rules), 10, "the grant")

    def _allows(self, user: str, rule: Document, namespace: str) -> bool:
        resource, _, subresource = rule["resources"][0].partition("/")
        attributes = {"namespace": namespace, "verb": rule["verbs"][0], "group": rule["apiGroups"][0],
                      "resource": resource, "subresource": subresource, "name": rule.get("resourceNames", [""])[0]}
        review = {"kind": "SubjectAccessReview", "spec": {"user": user, "resourceAttributes": attributes}}
        return bool(self.admin.create("subjectaccessreviews", review)["status"]["allowed"])

    def compact(self) -> str:
        """Make etcd forget all versions but the newest, and return the revision compacted to."""
        revision = self._etcd("range", {"key": base64.b64encode(b"/").decode()})["header"]["revision"]
        self._etcd("compaction", {"revision": revision, "physical": True})
        return str(revision)

    def _etcd(self, call: str, body: Document) -> Document:
        with urllib3.PoolManager() as pool:
            return json.loads(pool.request("POST", f"{self.etcd_url}/v3/kv/{call}", body=json.dumps(body)).data)

    def close(self) -> None:
        if hasattr(self, "admin"):
            self.admin.close()
        for child in reversed(self.children):
            child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class RealStore:
    """versitygw over a temporary folder: a bucket is a folder, an object a file."""

    kind = "real"
    access_key, secret_key, region = "AKIAREALSTORE", "real-store-secret", "us-east-1"
    ca: Optional[str] = None

    def __init__(self, assets: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="velero-requests-store-")
        self.data = os.path.join(self.folder, "data")
        os.mkdir(self.data)
        self.host = f"127.0.0.1:{free_port()}"
        self.url = "http://" + self.host
        self.child = Child(self.folder, os.path.join(assets, "versitygw"), "--port", self.host, "--access",
                           self.access_key, "--secret", self.secret_key, "--region", self.region, "posix", self.data)
        try:
            self.child.wait_ready(self._listens, 30)
        except BaseException:
            self.close()
            raise

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self.host.rpartition(":")[2]))) == 0

    def create_bucket(self, bucket: str) -> None:
        os.makedirs(os.path.join(self.data, bucket), exist_ok=True)

    def put(self, bucket: str, key: str, body: bytes) -> None:
        """Store an object, making the bucket if need be, with an ETag as a PUT would have left it."""
        self.create_bucket(bucket)
        url = presigned_url(f"{self.url}/{bucket}/" + uri_encode(key.encode(), b"/"), self.access_key, self.secret_key,
                            self.region, method="PUT")
        with urllib3.PoolManager() as pool:
            response = pool.request("PUT", url, body=body, retries=False)
        if response.status != 200:
            raise RuntimeError(f"versitygw answered {response.status}: {response.data.decode(errors='replace')}")

    def close(self) -> None:
        self.child.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.lru_cache(maxsize=None)
def real_server(start: Callable[[str], Any], program: str) -> Any:
    """Return the one real server of a kind in this process, started at the first call and stopped at exit."""
    assets = assets_folder(program)
    if not assets:
        raise unittest.SkipTest(f"no real server: KUBEBUILDER_ASSETS is not set or has no {program}")
    server = start(assets)
    atexit.register(server.close)
    return server


def real_cluster() -> RealCluster:
    return real_server(RealCluster, "kube-apiserver")


def real_store() -> RealStore:
    return real_server(RealStore, "versitygw")


# ------------------------------------------------------------------------------------------------------------
# Proof that the fakes agree with the real servers
# ------------------------------------------------------------------------------------------------------------

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
    """Lists, watches and rights, on either cluster; single answers are compared by TestServersAgree."""

    cluster: Any

    def setUp(self) -> None:
        self.crds = velero_requests.crd_manifests(False)
        self.cluster.install_crds(self.crds)
        self.admin: Admin = self.cluster.admin
        self.namespace: str = self.cluster.new_namespace()

    def make(self, name: str, **more: Any) -> str:
        """Create a DownloadRequest in this test's namespace, and return its version."""
        made = self.admin.create("downloadrequests", download_request(name, **more), self.namespace)
        return str(made["metadata"]["resourceVersion"])

    def patch(self, name: str, **patch: Any) -> None:
        self.admin.merge_patch("downloadrequests", name, patch, self.namespace)

    def events(self, version: str, **query: Any) -> List[Document]:
        """Return what a watch tells until an object named `z`, or its end."""
        found: List[Document] = []
        for event in self.admin.watch("downloadrequests", self.namespace, **{
                "resourceVersion": version, "timeoutSeconds": 10, **query}):
            found.append(event)
            if event["object"]["metadata"].get("name") == "z":
                break
        return found

    def test_lists_come_in_pages_of_one_moment(self) -> None:
        """All pages show the state of the first, whatever is created meanwhile."""
        for name in "abc":
            self.make(name)
        first = self.admin.list("downloadrequests", self.namespace, limit=2)
        self.make("d")
        second = self.admin.list("downloadrequests", self.namespace, limit=2,
                                 **{"continue": first["metadata"]["continue"]})
        self.assertEqual([["a", "b"], ["c"]], [[item["metadata"]["name"] for item in page["items"]]
                                               for page in (first, second)])
        self.assertEqual({"continue": "", "resourceVersion": first["metadata"]["resourceVersion"]}, second["metadata"])

    def test_watches_tell_every_change_in_order(self) -> None:
        """Each change once, from any version on, of one object alone where that is asked for."""
        version = self.admin.list("downloadrequests", self.namespace)["metadata"]["resourceVersion"]
        self.make("a")
        self.make("b")
        self.patch("a", metadata={"labels": {"x": "1"}})
        self.admin.delete("downloadrequests", "b", self.namespace)
        self.make("z")
        events = self.events(version)
        self.assertEqual("ADDED:a ADDED:b MODIFIED:a DELETED:b ADDED:z", " ".join(
            f"{event['type']}:{event['object']['metadata']['name']}" for event in events))
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
        self.assertEqual(sorted(set(versions)), versions)
        for start, query in ((version, {"fieldSelector": "metadata.name=z"}), (str(versions[-2]), {})):
            self.assertEqual(["z"], [event["object"]["metadata"]["name"] for event in self.events(start, **query)])

    def test_a_bookmark_comes_before_the_end(self) -> None:
        """A watch that wants bookmarks gets one shortly before its timeout, if anything has happened."""
        query = {"resourceVersion": self.make("a"), "timeoutSeconds": 5, "allowWatchBookmarks": "true"}
        self.make("b")
        events, last = [], "0"
        for event in self.admin.watch("downloadrequests", self.namespace, **query):
            events.append(event)
            last = self.make("c") if len(events) == 1 else last
        self.assertEqual(["ADDED", "ADDED", "BOOKMARK"], [event["type"] for event in events])
        self.assertEqual({"apiVersion", "kind", "metadata"}, set(events[-1]["object"]))
        self.assertGreaterEqual(int(events[-1]["object"]["metadata"]["resourceVersion"]), int(last))

    def test_an_old_version_is_an_error_event(self) -> None:
        """A watch from a version long gone answers 200 with one ERROR event that holds a Status 410."""
        (event,) = self.events("1")
        status = event["object"]
        self.assertEqual(("ERROR", 410, "Expired"), (event["type"], status["code"], status["reason"]))
        self.assertRegex(status["message"], r"^too old resource version: 1 \(\d+\)$")

    def test_rights(self) -> None:
        """A 403 names user, verb, resource, group and namespace; a grant takes effect; a wrong token is 401."""
        client, path = self.cluster.client("limited"), resource_path("downloadrequests", self.namespace)
        for verb, method, query in (("list", "GET", {}), ("watch", "GET", {"watch": "1"}), ("create", "POST", {})):
            body = download_request("a") if verb == "create" else None
            answer = client.raw(method, path, body, query=query)
            self.assertEqual((403, f'downloadrequests.velero.io is forbidden: User "limited" cannot {verb} resource '
                              f'"downloadrequests" in API group "velero.io" in the namespace "{self.namespace}"'),
                             (answer.status, json.loads(answer.data)["message"]))
        self.cluster.grant("limited", {"verbs": ["get"], "apiGroups": ["velero.io"], "resources": ["downloadrequests"],
                                       "resourceNames": ["a"]}, namespace=self.namespace)
        nobody = Admin(self.cluster.url, "no-such-token", self.cluster.ca)
        self.assertEqual([404, 403, 401, 403], [caller.raw("GET", path + name).status for caller, name in (
            (client, "/a"), (client, "/b"), (nobody, ""), (self.cluster.client(None), ""))])

    def test_an_update_may_leave_wrong_what_was_wrong(self) -> None:
        """After a downgrade of the CRD an object with a kind too new can still be annotated and deleted."""
        self.addCleanup(self.cluster.install_crds, self.crds)
        self.admin.create("downloadrequests", download_request("a", "BackupVolumeInfos"), self.namespace)
        self.cluster.install_crds(json.loads(json.dumps(self.crds).replace('"BackupVolumeInfos"', '"Other"')))
        self.patch("a", metadata={"annotations": {"a": "b"}})
        with self.assertRaisesRegex(Refused, "422.*spec.target.kind"):
            self.patch("a", spec={"target": {"kind": "BackupContent"}})
        self.admin.delete("downloadrequests", "a", self.namespace)

    def test_a_new_dialect_ends_the_watches(self) -> None:
        """When a CRD is replaced its watches end, and versions from before are too old."""
        self.addCleanup(self.cluster.install_crds, self.crds)
        version = self.make("a")
        with ThreadPoolExecutor(1) as pool:
            ended_watch = pool.submit(self.events, version, timeoutSeconds=30)
            begun = time.monotonic()
            self.cluster.install_crds(velero_requests.crd_manifests(True))
            ended_watch.result(20)
            self.assertLess(time.monotonic() - begun, 20)
        self.assertEqual([410], [event["object"].get("code") for event in self.events(version)])


class TestServersFake(ServerChecks, unittest.TestCase):
    """The checks on the fake."""

    def setUp(self) -> None:
        self.cluster = FakeCluster(tls=True)
        self.addCleanup(self.cluster.close)
        super().setUp()


class TestServersReal(ServerChecks, unittest.TestCase):
    """The checks on the real kube-apiserver."""

    def setUp(self) -> None:
        self.cluster = real_cluster()
        super().setUp()


def neutral(data: bytes, namespace: str) -> Any:
    """Return what the module reads of an answer, without what differs from run to run (times, ids, versions)."""
    try:
        document = json.loads(data.decode().replace(namespace, "NS"))
    except ValueError:
        return data
    if document.get("kind") == "Status":
        return document["status"], document.get("reason")
    for metadata in [item["metadata"] for item in [document, *document.get("items", [])]]:
        for name in ("managedFields", "remainingItemCount", "selfLink"):
            metadata.pop(name, None)
        for name in {"uid", "creationTimestamp", "deletionTimestamp", "resourceVersion", "continue", "generation"
                     } & set(metadata):
            metadata[name] = bool(metadata[name])
        if "generateName" in metadata:
            metadata["name"] = re.sub(r"[bcdfghjklmnpqrstvwxz2456789]{5}$", "XXXXX", metadata["name"])
    return document


def request_script(base: str, has_status: bool) -> Iterator[Tuple[str, str, Any, str]]:
    """Yield requests (method, path, body, media type) that both clusters have to answer alike."""
    one, core = base + "/downloadrequests", base.replace("/apis/velero.io/v1", "/api/v1")
    own, status = one + "/own", one + "/a" + ("/status" if has_status else "")
    target = {"kind": "BackupLog", "name": "x"}
    location = {"kind": "BackupStorageLocation", "apiVersion": "velero.io/v1", "metadata": {"name": "default"}}
    wrong_pins: Any = [{"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": wanted}
                       for wanted in ({"uid": "xx"}, {"resourceVersion": "1"})]
    steps: Tuple[Tuple[str, str, List[Any]], ...] = (
        *(("GET", path, [None]) for path in ("/apis/velero.io/v2", base + "/foos", "/apis/nobody.example/v1")),
        ("POST", one, [{**download_request("a", status={"phase": "New", "junk": 1}), "junk": 2}]),
        ("POST", one, [download_request("a")]),
        ("POST", one, [{**download_request("bad"), "spec": {"target": wrong}} for wrong in (
            {**target, "kind": "Foo"}, {"name": "x"}, {"kind": 7, "name": 7}, {"kind": None, "name": None},
            {**target, "name": [1]}, {**target, "name": True}, {**target, "name": {}}, "s", None, [])]),
        ("POST", one, [{**download_request("bad"), "spec": {}}, download_request("bad", status={"phase": "Failed"})]),
        ("POST", one, [{**download_request(), "metadata": metadata} for metadata in (
            {"name": "Bad_Name"}, {}, {"name": "x", "namespace": "other"}, {"name": "x", "labels": {"a": "b c"}},
            {"name": "own", "uid": "5", "generation": 9, "creationTimestamp": "2020-01-01T00:00:00Z"})]),
        ("POST", one, [download_request("null", spec=None, status={"phase": "New", "expiration": None})]),
        ("POST", "/apis/velero.io/v1/namespaces/nobody/downloadrequests", [download_request("x")]),
        ("POST", base + "/serverstatusrequests", [{
            "apiVersion": "velero.io/v1", "kind": "ServerStatusRequest", "spec": {}, "status": {},
            "metadata": {"generateName": "velero-cli-", "resourceVersion": "0", "creationTimestamp": None}}]),
        ("GET", one + "/a", [None]), ("GET", one + "/none", [None]), ("GET", one + "/a/status", [None]),
        ("PATCH", one + "/none", [{}]), ("PATCH", one + "/a/status", [{}]), ("PATCH", one + "/none/status", [{}]),
        ("PATCH", status, [{"status": value} for value in (
            {"phase": "Processed", "downloadURL": "u", "expiration": "2026-01-02T03:14:05Z", "junk": 1},
            {"phase": "Processed"}, "x", None)]),
        ("PATCH", status, [{"status": {"expiration": value}} for value in (
            None, "", "2026-01-02", "2026-01-02T03:14:05.123456789+01:00", "garbage", 5, "2026-01-02T03:14:05")]),
        ("PATCH", status, [{"status": {"phase": value}} for value in (None, "", "Failed", 3)]),
        ("PATCH", status, [{"metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]}, "status": {"phase": "New"}}]),
        ("PATCH", own, [{"metadata": {"annotations": {"an": "2"}}, "spec": {"target": {"name": "b2"}}}, {},
                        {"metadata": {"resourceVersion": "1"}}, {"metadata": {"generation": 77, "uid": None}},
                        {"metadata": {"labels": {"a": "?"}}}, {"spec": None}, {"status": {"phase": "New"}}, [], "s"]),
        ("DELETE", own, wrong_pins), ("PATCH", own, [{"metadata": {"finalizers": ["a/b"]}}]),
        ("DELETE", own, [None, None]), ("POST", one, [download_request("own")]),
        ("PATCH", own, [{"metadata": {"annotations": {"q": "r"}}}, {"metadata": {"finalizers": None}}]),
        ("GET", own, [None]), ("DELETE", one + "/null", [None, None]),
        *(("GET", f"{one}?{query}", [None]) for query in (
            "limit=x", "limit=1", "labelSelector=a%3Db,c!%3Dd,a", "labelSelector=a%20b", "watch=0",
            "fieldSelector=status.phase%3Dx", "watch=1&timeoutSeconds=x")),
        ("POST", base + "/backupstoragelocations", [{**location, "spec": spec} for spec in (
            {"accessMode": "Foo", "provider": "aws", "objectStorage": {"bucket": "b"}}, {"provider": "aws"},
            {"provider": "aws", "objectStorage": {"bucket": "b", "caCert": "aGk="}, "config": {"a": "1", "b": None}})]),
        ("POST", base + "/backups", [{
            "apiVersion": "velero.io/v1", "kind": "Backup", "metadata": {"name": "b1"}, "spec": {
                "ttl": "1h", "labelSelector": None, "hooks": {"resources": None}, "includedNamespaces": ["*"]},
            "status": {"phase": "Completed", "expiration": None}}]),
        ("POST", core + "/secrets", [{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "type": "Opaque",
                                      "data": {"cloud": "aGk="}}]),
        ("PATCH", core + "/secrets/s", [{"data": {"cloud": "eA=="}}]),
        ("DELETE", core + "/secrets/s", [None]), ("GET", core + "/secrets/s", [None]))
    for method, path, bodies in steps:
        for body in bodies:
            yield method, path, body, MERGE if method == "PATCH" else "application/json"
    yield "POST", one, b"{}", "text/plain"
    yield "PATCH", one + "/a", {}, "application/strategic-merge-patch+json"


class TestServersAgree(unittest.TestCase):
    """The same requests to the fake and the real server get the same answers, as far as the module reads them."""

    def test_both_dialects(self) -> None:
        """Send the script to both, with Velero's own CRDs, and compare."""
        for release in ("1.18.1", "1.6.3"):
            clusters: List[Any] = [real_cluster(), FakeCluster()]
            self.addCleanup(clusters[1].close)
            spaces = []
            for cluster in clusters:
                cluster.install_crds(load_crds(release))
                spaces.append(cluster.new_namespace())
            for steps in zip(*(request_script(f"/apis/velero.io/v1/namespaces/{space}", release == "1.6.3")
                               for space in spaces)):
                got = [cluster.admin.raw(*step) for cluster, step in zip(clusters, steps)]
                with self.subTest(release=release, step=str(steps[0]).replace(spaces[0], "NS")):
                    real, fake = ((answer.status, neutral(answer.data, space)) for answer, space in zip(got, spaces))
                    self.assertEqual(real, fake)


class TestServersFaults(unittest.TestCase):
    """The vocabulary of faults."""

    def setUp(self) -> None:
        self.store = FakeStore()
        self.store.put("bucket", "k", b"0123456789")

    def get(self) -> Any:
        """Return status and body of a GET, or the bytes that came before it broke off."""
        with contextlib.closing(http.client.HTTPConnection(self.store.host, timeout=10)) as connection:
            try:
                connection.request("GET", self.store.url_of("bucket", "k")[len(self.store.url):])
                response = connection.getresponse()
                return response.status, response.read()
            except http.client.IncompleteRead as error:
                return error.partial
            except http.client.RemoteDisconnected:
                return b""

    def test_every_fault(self) -> None:
        """Each option does what it says, as often as it is told."""
        opened = threading.Event()
        opened.set()
        right = (200, b"0123456789")
        for options, wanted in (
                ({"status": 429, "body": "slow"}, (429, b"slow")), ({"body": b"<html>"}, (200, b"<html>")),
                ({"status": 403, "body": {"a": 1}}, (403, b'{"a":1}')), ({"drop": True}, b""),
                ({"drop": True, "apply": True}, b""), ({"status": 500, "apply": True}, (500, b"")),
                ({"cut_after": 4}, b"0123"), ({"cut_after": 4, "content_length": 4}, (200, b"0123")),
                ({"hang": opened}, right), ({"pause_after": 4, "gate": opened}, right),
                ({"answer": lambda _, true: true._replace(status=206)}, (206, right[1])),
                ({"wire": lambda response: [response[:-6], opened, 0.01, response[-6:]]}, right),
                ({"chunks": [b"ab", opened, b"c"]}, (200, b"abc")), ({"chunks": [b"ab"], "cut": True}, b"ab")):
            with self.subTest(options=options):
                fault = self.store.script("GET", "/bucket", **options)
                self.assertEqual((wanted, 1, right), (self.get(), fault.hits, self.get()))
        self.store.script("GET", times=3, status=500)
        self.assertEqual([500, 500, 500, 200], [self.get()[0] for _ in range(4)])
        for end in (self.store.unscript, self.store.close):
            self.store.script("DELETE", "/nothing", drop=True)
            with self.assertRaisesRegex(AssertionError, "never struck: DELETE /nothing"):
                end()


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
    unknown_key = "403 InvalidAccessKeyId"

    def signed(self, key: str, **options: Any) -> str:
        """Return a pre-signed URL of an object in the bucket."""
        url = f"{self.store.url}/bucket/" + uri_encode(key.encode(), b"/")
        given = {"access_key": self.store.access_key, "secret_key": self.store.secret_key, "region": self.store.region}
        return presigned_url(url, **{**given, **options})

    def code(self, url: str, **headers: str) -> str:
        """Return the status of a GET and the code in the XML."""
        answer = fetch(url, {name.replace("_", "-"): value for name, value in headers.items()})
        found = re.search(rb"<Code>(.*?)</Code>", answer.data)
        return f"{answer.status} {found.group(1).decode() if found else ''}"

    def test_objects_are_given_back(self) -> None:
        """A signed GET gives the body, its length and an ETag; ranges and conditions work."""
        for key in ("a/b.gz", "a b+c/ü~$%.txt", "a&b=c?d#e"):
            self.store.put("bucket", key, b"0123456789")
            answer = fetch(self.signed(key))
            self.assertEqual((200, b"0123456789"), (answer.status, answer.data), key)
        part = fetch(self.signed(key), {"Range": "bytes=4-", "If-Match": answer.headers["ETag"]})
        self.assertEqual((206, b"456789", "bytes 4-9/10"), (part.status, part.data, part.headers["Content-Range"]))
        self.assertEqual(b"0", fetch(self.signed(key), {"Range": "bytes=0-0"}).data)
        self.assertEqual("412 PreconditionFailed", self.code(self.signed(key), If_Match='"other"'))
        self.assertEqual("416 InvalidRange", self.code(self.signed(key), Range="bytes=10-"))

    def test_what_is_wrong_is_named(self) -> None:
        """Every kind of wrong URL has its own code."""
        self.store.put("bucket", "k", b"x")
        wrong, malformed = "403 SignatureDoesNotMatch", "400 AuthorizationQueryParametersError"
        for url, wanted in ((self.signed("none"), "404 NoSuchKey"), (self.signed("k", secret_key="wrong"), wrong),
                            (self.signed("k") + "0", wrong), (self.signed("k").replace("/k?", "/other?"), wrong),
                            (self.signed("k", access_key="NOBODY"), self.unknown_key),
                            (self.signed("k", at=time.time() - 700), "403 AccessDenied"),
                            (self.signed("k", expires=604801), malformed),
                            (self.signed("k", region="nowhere"), malformed),
                            (f"{self.store.url}/bucket/k", "403 AccessDenied")):
            with self.subTest(url=url):
                self.assertEqual(wanted, self.code(url))


class TestServersFakeStore(StoreChecks, unittest.TestCase):
    """The checks against the fake store, and what only the fake can do."""

    def setUp(self) -> None:
        self.store = FakeStore()
        self.addCleanup(self.store.close)

    def test_the_verifier_signs_as_aws_does(self) -> None:
        """The documentation's example; a token, odd characters, a port, an extra parameter."""
        odd = "my.dotted.bucket/" + uri_encode("a b+c/ü~$%.txt".encode(), b"/")
        keys = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
        for url, region, more, wanted in (
                ("https://examplebucket.s3.amazonaws.com/test.txt", "us-east-1", {"expires": 86400},
                 "aeeed9bbccd4d02e"),
                ("https://bkt.s3.eu-west-1.amazonaws.com/backups/b1/b1-logs.gz", "eu-west-1",
                 {"token": "AQoDYXdzEPT//////////wEXAMPLE+token="}, "64d07eb96c4fcb2d"),
                ("https://s3.eu-west-1.amazonaws.com/" + odd, "eu-west-1", {}, "8259c85cf5c1f587"),
                ("https://bkt.s3.us-east-1.amazonaws.com/k", "us-east-1", {"extra": "x-id=GetObject"},
                 "327b1d2805a698ec"),
                ("http://[fd00::1]:9000/bkt/k", "us-east-1", {}, "dea7ac5d1992d560")):
            options: Document = {"at": 1369353600.0, **more}  # 20130524T000000Z
            self.assertEqual(wanted, presigned_url(url, *keys, region, **options).rpartition("=")[2][:16], url)

    def test_what_only_the_fake_can_do(self) -> None:
        """Targets are taken as they came; a URL dies by the store's clock; a key may need its token."""
        for key in ("/a//b", "a/../b", "./a", "k"):
            self.store.put("bucket", key, key.encode())
            self.assertEqual(fetch(self.signed(key)).data, key.encode())
        host = f"bucket.s3.local:{self.store.port}"
        url = presigned_url(f"http://{host}/k", self.store.access_key, self.store.secret_key, self.store.region)
        self.assertEqual(fetch(url.replace(host, self.store.host), {"Host": host}).data, b"k")
        self.assertEqual("403 SignatureDoesNotMatch", self.code(url.replace(host, self.store.host), Host="b.other"))
        url, now = self.store.url_of("bucket", "k"), time.time()
        self.store.clock = lambda: now + 602
        self.assertIn(b"<Message>Request has expired</Message><X-Amz-Expires>600<", fetch(url).data)
        self.store.clock = lambda: now + 598
        self.assertEqual(fetch(url).status, 200)
        self.store.keys["ASIA"] = ("secret", "to+ken/=")
        good = {"access_key": "ASIA", "secret_key": "secret", "token": "to+ken/="}
        self.assertEqual(fetch(self.signed("k", **good)).status, 200)
        self.assertEqual("400 InvalidToken", self.code(self.signed("k", **{**good, "token": "x"})))
        self.store.hide_missing = True
        self.assertEqual("403 AccessDenied", self.code(self.signed("none")))


class TestServersRealStore(StoreChecks, unittest.TestCase):
    """The checks against versitygw."""

    unknown_key = "404 XAdminUserNotFound"  # here it differs from AWS, and the fake follows AWS

    def setUp(self) -> None:
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


class Result(NamedTuple):
    """What a command came to."""

    code: int
    out: bytes
    err: str


@contextlib.contextmanager
def environment(changes: Dict[str, Optional[str]]) -> Iterator[None]:
    """Set environment variables for a while; None takes one away."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    for name in changes:
        if changes[name] is None:
            os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def logger_kept() -> Iterator[logging.Logger]:
    """Let somebody set up the module's logger for a while."""
    logger = logging.getLogger("velero_requests")
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
            code = int(velero_requests.main(list(argv)))
        except SystemExit as end:
            code = int(end.code or 0)
    return Result(code, out.buffer.getvalue(), err.buffer.getvalue().decode())  # type: ignore[attr-defined]


class Program:
    """The command line as a process of its own, its output in files, ended by its own pid."""

    def __init__(self, folder: str, *argv: str, stdout: Any = None,
                 env: Optional[Dict[str, str]] = None) -> None:
        base = os.path.join(folder, "program-" + uuid.uuid4().hex[:6])
        self.out_path, self.err_path = base + ".out", base + ".err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, velero_requests.__file__, *argv], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=out if stdout is None else stdout, stderr=err, env={**os.environ, **(env or {})})

    def text(self) -> str:
        with open(self.out_path, errors="replace") as out, open(self.err_path, errors="replace") as err:
            return out.read() + err.read()

    def end(self, number: Optional[int] = None, seconds: float = 15) -> Result:
        """Send it a signal, if one is given, and wait until it has ended."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(seconds)
        with open(self.out_path, "rb") as out, open(self.err_path, encoding="utf-8") as err:
            return Result(code, out.read(), err.read())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(timezone.utc) + self.ahead

    def text(self, **later: float) -> str:
        """Return in RFC 3339 what it will show after this timedelta."""
        return (self() + timedelta(**later)).strftime("%Y-%m-%dT%H:%M:%SZ")


def instant(text: str) -> datetime:
    """Return the instant of an RFC 3339 text with seconds and Z."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)


def keys_file(access_key: str, secret_key: str) -> str:
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
        raise NotImplementedError

    @classmethod
    def crds(cls) -> List[Document]:
        return velero_requests.crd_manifests(cls.status_subresource)

    @classmethod
    def setUpClass(cls) -> None:
        crds = cls.crds()
        cls.cluster, cls.store = cls.start()
        for server in (cls.cluster, cls.store):
            if server.kind == "fake":
                cls.addClassCleanup(server.close)
        cls.cluster.install_crds(crds)

    def setUp(self) -> None:
        for server in (self.cluster, self.store):
            if server.kind == "fake":
                self.addCleanup(server.unscript)
        self.folder = tempfile.mkdtemp(prefix="velero-requests-test-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        hidden = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        stack.enter_context(environment({**dict.fromkeys(hidden + ["KUBECONFIG", "VELERO_NAMESPACE"]),
                                         "HOME": self.folder}))
        logger = stack.enter_context(logger_kept())
        self.log = io.StringIO()  # every word that the module logs in this process
        logger.handlers[:], logger.propagate = [logging.StreamHandler(self.log)], False
        logger.setLevel(logging.DEBUG)
        self.admin: Admin = self.cluster.admin
        self.namespace: str = self.cluster.new_namespace()
        self.kubeconfig: str = self.cluster.kubeconfig(self.folder)
        self.clock = Clock()
        self.controllers: List[Any] = []
        self.seed()

    def seed(self) -> None:
        """Make a Secret, a location, a finished backup and a finished restore."""
        self.make_secret("cloud")
        self.make_location("default")
        self.make_backup("b1")
        self.make_restore("r1", "b1")

    # -- things in the cluster and the store --

    def make(self, resource: str, kind: str, name: str, **more: Any) -> Document:
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
        self.make("backups", "Backup", name, spec={"storageLocation": location}, status={"phase": phase})

    def make_restore(self, name: str, backup: str, phase: str = "Completed") -> None:
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
        document = {"kind": "ServerStatusRequest", "metadata": {"generateName": "velero-cli-"}, "spec": {}, **more}
        return str(self.admin.create(SSR, document, self.namespace)["metadata"]["name"])

    def fill(self, name: str, resource: str = "downloadrequests", **status: Any) -> str:
        """Fill in a status the way of the dialect, as a stranger may, and return the name."""
        subresource = "/status" if self.status_subresource else ""
        self.admin.merge_patch(resource + subresource, name, {"status": status}, self.namespace)
        return name

    def look(self, name: str, resource: str = "downloadrequests") -> Optional[Document]:
        response = self.admin.raw("GET", resource_path(resource, self.namespace, name))
        if response.status not in (200, 404):
            raise Refused(response.status, response.data)
        return json.loads(response.data) if response.status == 200 else None

    def names(self, resource: str = "downloadrequests") -> List[str]:
        return [item["metadata"]["name"] for item in self.admin.list(resource, self.namespace)["items"]]

    # -- the controller --

    def serve(self, user: str = "admin", plugins: Tuple[Tuple[str, str], ...] = (), **settings: Any) -> Any:
        """Run a controller on the test's clock until the test ends; settings: attributes of it."""
        api = velero_requests.connect(velero_requests.load_cluster(self.cluster.kubeconfig(self.folder,
                                                                                           user)))
        server = velero_requests.Server("v1.18.1", plugins or velero_requests.Server("").plugins)
        controller = velero_requests.Controller(api, self.namespace, server, now=self.clock)
        vars(controller).update(settings)
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
        self.clock.ahead += timedelta(**later)
        for controller in self.controllers:
            controller.queue.wake()

    def processed(self, name: str, resource: str = "downloadrequests") -> Optional[Document]:
        document = self.look(name, resource)
        return document if document and (document.get("status") or {}).get("phase") == "Processed" else None

    def answered(self, name: str, resource: str = "downloadrequests") -> Document:
        return wait_until(lambda: self.processed(name, resource), 15, f"an answer to {name}")

    def failed(self, name: str) -> Document:
        """Return the request once it bears a reason."""
        return wait_until(lambda: [document for document in [self.look(name)] if reason_of(document)], 15,
                          f"a reason on {name}")[0]

    def healed(self, name: str) -> Document:
        """Return the request once it is Processed without a reason; the clock passes the back-off."""
        def done() -> Optional[Document]:
            self.turn(seconds=1)
            document = self.processed(name)
            return None if reason_of(document) else document
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
    """Both servers on loopback, started for this class; every fault that a test scripts must strike."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return FakeCluster(tls=True), FakeStore()


class RealWorld(World):
    """The real kube-apiserver and versitygw, one pair for the whole process."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return real_cluster(), real_store()


class VeleroWorld(World):
    """The CRDs as Velero itself installs them, on the real servers when there, otherwise on the fakes."""

    release = ""

    @classmethod
    def crds(cls) -> List[Document]:
        return load_crds(cls.release)

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return (real_cluster(), real_store()) if assets_folder() else (FakeCluster(tls=True), FakeStore())


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
        """Each kind that the CRD knows comes as its bytes, inflated unless it is the contents; others are one error."""
        self.serve()
        known = self.known_kinds()
        self.assertEqual(set(known), set(list(KEYS)[:6] if self.status_subresource else list(KEYS)[:-1]))
        for kind in KEYS:
            with self.subTest(kind=kind):
                stored = self.put(kind, kind.encode() * 100)
                result = self.cli("download", KEYS[kind].split("/")[1], "--kind", kind, "-o", "-")
                if kind in known:
                    self.assertEqual(result.code, 0, result.err)
                    self.assertEqual(result.out, stored if kind == "BackupContents" else kind.encode() * 100)
                else:
                    self.assert_failed(result, 1, kind)
                    self.assertIn("hint: ", result.err)
        self.assertEqual(self.names(), [])

    def test_an_answer_has_url_phase_and_expiration(self) -> None:
        """A request, whatever a stranger filled in, gets a URL that works at once, and ten minutes from its signing."""
        self.serve()
        stored = self.put()
        for name in (self.ask(), self.fill(self.ask(), phase="New", downloadURL="http://evil/", expiration=FAR)):
            status = wait_until(lambda name=name: (self.processed(name) or {}).get("status"), 15, "an answer")
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

    # -- which bytes --

    def test_where_urls_lead(self) -> None:
        """Prefixes, slashes around bucket and prefix, publicUrl; a restore lies in the location of its backup."""
        public = self.store.url.replace("127.0.0.1", "localhost")
        self.make_location("slashes", prefix="//deep/er//", bucket=f"/{self.namespace}/")
        self.make_location("public", {"s3Url": "http://127.0.0.1:1", "publicUrl": public})
        self.make_backup("b2", "slashes")
        self.make_restore("r2", "b2")
        self.make_backup("b3", "public")
        self.store.put(self.namespace, "backups/b3/b3-logs.gz", b"x")
        self.serve()
        restored = [(kind, "r2", f"{self.store.url}/{self.namespace}/deep/er/{KEYS[kind].replace('r1', 'r2')}?")
                    for kind in self.known_kinds() if kind.startswith("Restore")]
        for kind, name, start in [
                ("BackupLog", "b2", f"{self.store.url}/{self.namespace}/deep/er/backups/b2/b2-logs.gz?"),
                ("BackupLog", "b3", public + "/"), *restored]:
            with self.subTest(kind=kind, name=name):
                url = self.answered(self.ask(kind, name))["status"]["downloadURL"]
                self.assertTrue(url.startswith(start), url.split("?")[0])
        here, port = self.store.url.rpartition(":")[::2]  # of a name that need not be in /etc/hosts
        url = self.answered(self.ask(name="b3"))["status"]["downloadURL"].replace("http://localhost", here)
        self.assertEqual(fetch(url, {"Host": f"localhost:{port}"}).data, b"x")

    # -- how long a request lives --

    def check_ends(self, ends: Dict[str, float], resource: str, moments: Tuple[float, ...]) -> None:
        """Turn the clock from minute to minute: what ends by then is deleted, and nothing else."""
        before = 0.0
        for moment in moments:
            self.turn(minutes=moment - before)
            before = moment
            self.settle()
            for name in [name for name, end in ends.items() if end <= moment]:
                self.gone(name, resource)
            self.assertLessEqual({name for name, end in ends.items() if end > moment}, set(self.names(resource)))

    def test_the_life_of_a_request(self) -> None:
        """Whatever a stranger filled in, a request lives until its expiration, and ten minutes at most."""
        past, five, twenty = (self.clock.text(minutes=minutes) for minutes in (-1, 5, 20))
        answered = {"phase": "Processed", "downloadURL": "http://x/"}
        ends = {self.fill(self.ask(), **status): minutes for minutes, status in (
            (0.0, {"expiration": past}), (0.0, {"expiration": past, "phase": "New"}),
            (0.0, {**answered, "expiration": past}), (0.0, {**answered, "expiration": "0001-01-01T00:00:00Z"}),
            (5.0, {**answered, "expiration": five}), (5.0, {"phase": "Processed", "expiration": five}),
            (10.0, {"phase": "Processed"}), (10.0, answered), (10.0, {**answered, "expiration": FAR}),
            (10.0, {**answered, "expiration": twenty}), (10.0, {**answered, "expiration": "2999-01-01T00:00:00+14:00"}),
            (10.0, {**answered, "expiration": "9999-12-31T23:59:59-14:00"}))}
        for text in ("0001-01-01T00:00:00+14:00", "2026-01-01T00:00:00.123456789Z", "1990-12-31T23:59:60Z",
                     "2026-01-01t00:00:00z", "9999-12-31T23:59:59.999999999-23:59"):
            with contextlib.suppress(Refused):  # a schema may refuse some of these
                self.fill(self.ask(), **answered, expiration=text)
        self.serve()
        self.check_ends(ends, "downloadrequests", (0.0, 4.5, 5.2, 9.5, 10.2))
        self.turn(minutes=10, seconds=5)
        wait_until(lambda: not self.names(), 15, "all the others to be deleted")

    def test_a_status_given_at_creation_follows_the_dialect(self) -> None:
        """With a status subresource a status given at creation is dropped; without it counts."""
        status = {"phase": "Processed", "downloadURL": "http://x/", "expiration": self.clock.text(minutes=3)}
        name = self.ask(status=status)
        self.serve()
        self.settle()
        is_dropped = self.answered(name)["status"]["downloadURL"] != "http://x/"
        self.assertEqual(is_dropped, self.status_subresource)

    def test_a_failing_request_ends_too(self) -> None:
        """The first failure sets the end of a request, retries do not push it, and then it is deleted."""
        self.serve()
        name = self.ask(name="none")

        def end() -> str:
            return str(((self.look(name) or {}).get("status") or {}).get("expiration", ""))
        first = wait_until(end, 15, "an expiration")
        self.assert_soon(first, minutes=10)
        for _ in range(4):
            self.turn(minutes=1)
            self.settle()
        self.assertEqual(end(), first)
        self.turn(minutes=6, seconds=5)
        self.gone(name)

    def test_the_life_of_a_status_request(self) -> None:
        """Answered with time, version and plugins; gone at the five-minute look, at once when it was old before."""
        plugins = (("ObjectStore", "velero.io/aws"), ("BackupItemAction", "velero.io/pod"))
        ends = {self.fill(self.ask_status(), SSR, phase="Processed", **more): minutes for minutes, more in (
            (0.0, {"processedTimestamp": self.clock.text(seconds=-65)}),
            (5.0, {"processedTimestamp": self.clock.text(seconds=-20)}), (5.0, {}), (5.0, {"processedTimestamp": FAR}),
            *((5.0, {"processedTimestamp": text}) for text in (
                "9999-12-31T23:59:59-14:00", "2999-01-01T00:00:00.5Z", "0001-01-01T00:00:00+14:00")))}
        self.serve(plugins=plugins)
        for name in (self.ask_status(), self.fill(self.ask_status(), SSR, phase="New")):
            ends[name], status = 5.0, self.answered(name, SSR)["status"]
            self.assert_soon(status["processedTimestamp"])
            self.assertEqual(status["serverVersion"], "v1.18.1")
            self.assertEqual({(entry["kind"], entry["name"]) for entry in status["plugins"]}, set(plugins))
        self.answered(self.ask_status(), SSR)  # by now the controller has seen its own answers
        self.check_ends(ends, SSR, (0.0, 4.5, 5.2))

    # -- failures --

    def failures(self) -> Dict[str, Tuple[str, str, Optional[Callable[[], Any]]]]:
        """Return name -> (kind, target, cure) for what is missing or broken, after making what is there."""
        good = base64.b64encode(keys_file(self.store.access_key, self.store.secret_key).encode()).decode()

        def fix_secret(name: str) -> Callable[[], Any]:
            return lambda: self.admin.merge_patch("secrets", name, {"data": {"keys": good}}, self.namespace)
        for name, options in {
                "no-secret": {"secret": "absent"}, "no-key": {"secret": "keyless"}, "no-sense": {"secret": "senseless"},
                "half": {"secret": "halved"}, "binary": {"secret": "bytes"}, "bucket": {"bucket": "a/b"},
                "style": {"config": {"s3ForcePathStyle": "maybe"}},
                "address": {"config": {"s3Url": "ftp://x"}}}.items():
            self.make_location(name, **options)
            self.make_backup(name, name)
        self.make_secret("keyless", key="other")
        self.make_secret("senseless", text="aws_secret_access_key = hush-hush-1\n[[[")
        self.make_secret("halved", text="[default]\naws_access_key_id = hush-hush-2\n")
        self.make("secrets", "Secret", "bytes", data={"keys": base64.b64encode(b"\xff\xfe\x00hush").decode()})
        self.make("backupstoragelocations", "BackupStorageLocation", "gcp",
                  spec={"provider": "gcp", "objectStorage": {"bucket": "x"}})
        self.make_backup("provider", "gcp")
        self.make_backup("no-location", "nowhere")
        self.make_restore("no-backup", "later")
        return {
            "BackupNotFound": ("BackupLog", "nobody", lambda: self.make_backup("nobody")),
            "RestoreNotFound": ("RestoreLog", "nothing", lambda: self.make_restore("nothing", "b1")),
            "BackupNotFound for a restore": ("RestoreLog", "no-backup", lambda: self.make_backup("later")),
            "StorageLocationNotFound": ("BackupLog", "no-location", lambda: self.make_location("nowhere")),
            "SecretNotFound": ("BackupLog", "no-secret", lambda: self.make_secret("absent")),
            "SecretKeyNotFound": ("BackupLog", "no-key", fix_secret("keyless")),
            "InvalidCredentials: no file": ("BackupLog", "no-sense", fix_secret("senseless")),
            "InvalidCredentials: half a pair": ("BackupLog", "half", fix_secret("halved")),
            "InvalidCredentials: no text": ("BackupLog", "binary", fix_secret("bytes")),
            **{f"InvalidStorageLocation: {name}": ("BackupLog", name, None) for name in ("bucket", "style", "address")},
            "UnsupportedProvider": ("BackupLog", "provider", None),
            **{f"InvalidName {number}": ("RestoreLog", name, None) for number, name in enumerate((
                "", "../../other", "b1\n", "b1\x00", "b1\x1b[31m", "%2e%2e", "x" * 10000, "\u0131\u202e"))}}

    def test_every_failure_has_a_reason_and_heals(self) -> None:
        """What is missing or broken is named on the object and as an Event, without a secret, and served once cured."""
        self.serve()
        for case, (kind, target, cure) in self.failures().items():
            with self.subTest(case):
                failed = self.failed(self.ask(kind, target))
                said, name = failed["metadata"]["annotations"], failed["metadata"]["name"]
                self.assertEqual(said[REASON], re.split("[ :]", case)[0])
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
            item["metadata"] for item in self.admin.list("downloadrequests", self.namespace)["items"]))
        self.assertNotIn("hush", self.log.getvalue() + str(events))

    def test_a_stale_reason_goes_with_the_answer(self) -> None:
        document = download_request("stale-1")
        document["metadata"]["annotations"] = {REASON: "Stale", MESSAGE: "long ago", "other": "stays"}
        self.admin.create("downloadrequests", document, self.namespace)
        self.serve()
        self.assertEqual(self.healed("stale-1")["metadata"]["annotations"], {"other": "stays"})

    def test_full_annotations_neither_crash_nor_last(self) -> None:
        """A request whose annotations leave no room for a reason delays nobody and ends all the same."""
        document = download_request("full")
        document["spec"]["target"]["name"] = "nobody"
        document["metadata"]["annotations"] = {"stuff": "x" * 262100}
        self.admin.create("downloadrequests", document, self.namespace)
        self.serve()
        for _ in range(2):
            self.settle()
            self.turn(minutes=10, seconds=5)
        self.gone("full")

    # -- the controller --

    def test_other_namespaces_are_left_alone(self) -> None:
        """Only the namespace told is served, whatever lies in others."""
        other = self.cluster.new_namespace()
        status_request = {"kind": "ServerStatusRequest", "spec": {}, "metadata": {"name": "theirs"}}
        kept = [self.admin.create("downloadrequests", download_request("theirs"), other),
                self.admin.create(SSR, status_request, other)]
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

    def test_two_controllers_come_to_one_answer(self) -> None:
        """Requests from before the start and later ones are answered by two replicas without harm."""
        names, status_name = [self.ask() for _ in range(20)], self.ask_status()
        self.serve()
        self.serve()
        for name in names + [self.ask() for _ in range(20)]:
            document = self.answered(name)
            self.assertEqual((reason_of(document), bool(document["status"]["downloadURL"])), ("", True))
        self.answered(status_name, SSR)

    def test_a_request_on_its_way_out_is_forgotten(self) -> None:
        """A request that is being deleted is not answered, and nobody waits for it."""
        document = download_request("leaving")
        document["metadata"]["finalizers"] = ["example.com/wait"]
        self.admin.create("downloadrequests", document, self.namespace)
        self.admin.delete("downloadrequests", "leaving", self.namespace)
        self.serve()
        self.settle()
        self.assertNotIn("phase", (self.look("leaving") or {}).get("status") or {})
        self.admin.merge_patch("downloadrequests", "leaving", {"metadata": {"finalizers": None}}, self.namespace)
        self.gone("leaving")

    def test_least_rights_are_enough(self) -> None:
        """With the rights of README.md nothing is forbidden, to the controller and to a client that reads a log."""
        self.cluster.grant("controller", *LEAST, namespace=self.namespace)
        self.cluster.grant("limited", *CLIENT, namespace=self.namespace)
        expired = self.fill(self.ask(), phase="Processed", downloadURL="http://x/", expiration="2020-01-01T00:00:00Z")
        self.serve(user="controller")
        self.answered(self.ask("RestoreLog", "r1"))
        self.answered(self.ask_status(), SSR)
        self.failed(self.ask(name="nobody"))
        wait_until(lambda: self.admin.list("events", self.namespace)["items"], 10, "the Event")
        self.gone(expired)
        self.put()
        self.assertEqual(self.cli("backup", "logs", "b1", user="limited"), (0, LOG, ""))
        self.assertEqual(len(self.names()), 2)
        self.assertNotIn("forbidden", self.log.getvalue())

    # -- the library and the client --

    def test_the_library(self) -> None:
        """stream, get_download_url and get_server_status do what they say and delete their requests."""
        self.serve()
        stored, writer = self.put(), io.BytesIO()
        api = velero_requests.connect(velero_requests.load_cluster(self.kubeconfig))
        velero_requests.stream(api, self.namespace, "BackupLog", "b1", writer)
        self.assertEqual(writer.getvalue(), LOG)
        self.assertEqual(fetch(velero_requests.get_download_url(api, self.namespace, "BackupLog", "b1")).data, stored)
        status = velero_requests.get_server_status(api, self.namespace)
        self.assertEqual((status["kind"], status["status"]["phase"]), ("ServerStatusRequest", "Processed"))
        self.assertTrue(status["metadata"]["name"].startswith("velero-cli-"))
        self.assertEqual(self.names() + self.names(SSR), [])
        self.assert_clean(self.log.getvalue())

    def test_a_client_that_may_not_watch_polls(self) -> None:
        """Without the right to watch, list or delete a client still gets its artifact and the status."""
        self.cluster.grant("reader", {"apiGroups": ["velero.io"], "resources": ["downloadrequests", SSR],
                                      "verbs": ["create", "get"]}, namespace=self.namespace)
        self.serve()
        self.put()
        result = self.cli("backup", "logs", "b1", user="reader")
        self.assertEqual((result.code, result.out), (0, LOG), result.err)
        self.assertEqual(self.cli("plugin", "get", user="reader").code, 0)

    # -- commands --

    def test_plugin_get_prints_a_table_or_the_object(self) -> None:
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
                self.assertEqual((document["kind"], document["apiVersion"], len(document["status"]["plugins"])),
                                 ("ServerStatusRequest", "velero.io/v1", 3))

    def test_logs_are_refused_until_the_work_has_finished(self) -> None:
        """Only finished phases have logs; the others are an error before any request is created."""
        self.put()
        self.serve()
        for resource, name, words in (("backups", "b1", ("backup", "b1")), ("restores", "r1", ("restore", "r1"))):
            self.admin.merge_patch(resource, name, {"status": {"phase": "InProgress"}}, self.namespace)
            self.assert_failed(self.cli(words[0], "logs", name), 1, *words, "not available")
        self.admin.merge_patch("backups", "b1", {"status": {"phase": "PartiallyFailed"}}, self.namespace)
        self.assertEqual(self.cli("backup", "logs", "b1").out, LOG)

    def test_backup_download_writes_beside_itself(self) -> None:
        """Without -o the contents land in NAME-data.tar.gz of the current folder, for the owner only; once."""
        self.serve()
        stored = self.put("BackupContents")
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        path = os.path.join(os.getcwd(), "b1-data.tar.gz")
        self.assertEqual(self.cli("backup", "download", "b1"),
                         (0, f"Backup b1 has been successfully downloaded to {path}\n".encode(), ""))
        with open(path, "rb") as file:
            self.assertEqual(file.read(), stored)
        self.assertEqual(os.stat(path).st_mode & 0o777, 0o600)
        self.assert_failed(self.cli("backup", "download", "b1"), 1, path)
        result = self.cli("download", "b1", "--url-only")
        self.assertEqual((result.code, result.err), (0, ""))
        self.assertEqual(fetch(result.out.decode().rstrip("\n")).data, stored)

    def test_manifests_can_be_installed(self) -> None:
        """What manifests prints are the five CRDs, in the dialect asked for."""
        result = run("manifests", *(["--status-subresource"] if self.status_subresource else []))
        self.assertEqual((result.code, result.err), (0, ""))
        documents = list(yaml.safe_load_all(result.out))
        self.assertLessEqual({name + ".velero.io" for name in ("backups", "restores", "backupstoragelocations",
                                                               "downloadrequests", SSR)},
                             {document["metadata"]["name"] for document in documents})
        self.cluster.install_crds(documents)
        self.serve()
        self.settle()

    def test_common_flags_work_before_and_after_the_command(self) -> None:
        """-n, --kubeconfig, --context, --timeout and -v are understood on both sides; KUBECONFIG serves, too."""
        self.serve()
        self.put()
        logs, flags = ["backup", "logs", "b1"], ["-n", self.namespace, "--kubeconfig", self.kubeconfig, "--context",
                                                 "test", "--timeout", "1m0s"]
        equal = [f"--namespace={self.namespace}", f"--kubeconfig={self.kubeconfig}", "--timeout=90s"]
        for argv in ([*flags, "-v", *logs], ["backup", "logs", *flags, "b1", "-v"], [*logs, *flags],
                     [*flags[:4], *logs, *flags[4:]], [*equal, *logs], [*logs, *equal],
                     ["-n", "nowhere", "--timeout", "1s", *logs, *flags]):
            with self.subTest(argv=" ".join(argv)):
                result = run(*argv)
                self.assertEqual((result.code, result.out), (0, LOG), result.err)
        self.assertEqual(run(*logs, "-n", self.namespace, env={"KUBECONFIG": self.kubeconfig}).out, LOG)

    def test_the_namespace_comes_from_flag_variable_or_file(self) -> None:
        """-n wins over VELERO_NAMESPACE, that over the velero CLI's configuration, which may be broken."""
        self.serve()
        self.put()
        os.makedirs(os.path.join(self.folder, ".config", "velero"))
        ours, other = self.namespace, '{"namespace": "default"}'
        for code, flag, variable, configured in (
                (0, ours, "default", other), (0, "", ours, other), (0, "", None, json.dumps({"namespace": ours})),
                (3, "default", ours, json.dumps({"namespace": ours})), (0, ours, None, "nonsense"),
                (1, "", "A/b", other),
                (0, ours, None, '{"namespace": 5, "cacert": []}'), (0, ours, None, "\x00")):
            with self.subTest(flag=flag, variable=variable, configured=configured):
                with open(os.path.join(self.folder, ".config", "velero", "config.json"), "w", encoding="utf-8") as file:
                    file.write(configured)
                result = run("backup", "logs", "b1", "--kubeconfig", self.kubeconfig, *(["-n", flag] if flag else []),
                             env={"VELERO_NAMESPACE": variable})
                self.assertEqual(result.code, code, result.err)

    def test_long_names_and_long_waits_work(self) -> None:
        """A backup's name may be as long as a file name in the bucket, and a budget 292 years."""
        name = ".".join(["b" * 59] * 4)
        self.make_backup(name)
        self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(LOG))
        self.serve()
        for argv in (("backup", "logs", name), ("plugin", "get")):
            result = self.cli(*argv, "--timeout", "2562047h47m16.8s")
            self.assertEqual(result.code, 0, result.err)

    def test_failures_and_their_codes(self) -> None:
        """Every failure is one line that names the object, with the right code; no file and no request is left."""
        self.make_location("dead", {"s3Url": "http://127.0.0.1:1"})
        self.make_secret("wrong", text=keys_file(self.store.access_key, "not-the-secret"))
        self.make_location("wrong", secret="wrong")
        for name, location in (("b2", "nowhere"), ("b3", "dead"), ("b4", "wrong")):
            self.make_backup(name, location)
        self.store.put(self.namespace, "backups/b4/b4.tar.gz", gzip.compress(b"x"))
        self.store.create_bucket(self.namespace)
        self.serve()
        path, unknown = os.path.join(self.folder, "x"), self.cluster.kubeconfig(self.folder, "nobody-knows-me")
        stranger = self.cluster.kubeconfig(self.folder, "stranger")
        for code, argv, words in (
                (3, ("download", "b2", "-o", path), ("nowhere",)),
                (1, ("download", "b1", "-o", os.path.join(self.folder, "no", "such", "x")), ("no/such",)),
                (1, ("download", "b1", "-o", self.folder), (self.folder,)),
                (1, ("backup", "logs", "b1", "--context", "elsewhere"), ("elsewhere",)),
                (1, ("backup", "logs", "b1", "--kubeconfig", "/nowhere/config"), ("/nowhere/config",)),
                (1, ("controller", "--once", "--kubeconfig", "/nowhere/config"), ("/nowhere/config",)),
                (2, ("backup", "get", "-l", "=x"), ("the selector '=x'",)),
                (2, ("restore", "get", "-l", "a b"), ("the selector 'a b'",)),
                (3, ("backup", "logs", "nobody", "--timeout", "1.5h"), ("backup", "nobody", "does not exist")),
                (3, ("restore", "logs", "nobody", "--timeout", "100000µs"), ("restore", "nobody")),
                (3, ("download", "nobody", "--kind", "RestoreLog", "-o", "-"), ("restore", "nobody")),
                (3, ("backup", "logs", ""), ("backup",)), (3, ("backup", "logs", "b1"), ("b1",)),
                (3, ("download", "../../secrets/cloud", "-o", "-"), ("secrets/cloud",)),
                (3, ("download", "b1", "-o", path), ("b1",)),
                (5, ("backup", "logs", "b1", "--kubeconfig", stranger), ("stranger",)),
                (5, ("plugin", "get", "--kubeconfig", stranger), ("stranger",)),
                (5, ("controller", "--once", "--kubeconfig", stranger), ("stranger",)),
                (5, ("download", "b1", "-o", "-", "--kubeconfig", unknown), ()),
                (5, ("download", "b4", "-o", path), ()),
                (6, ("download", "b3", "-o", path), ("127.0.0.1:1",))):
            with self.subTest(argv=" ".join(argv)):
                result = self.cli(*argv)
                self.assert_failed(result, code, *words)
                self.assertNotIn("not-the-secret", result.err)
                self.assertFalse(os.path.exists(path))
        self.assert_clean(self.cli("download", "b4", "-o", path, "-v", "-v").err)
        self.assertEqual(self.names() + self.names(SSR), [])

    def test_when_nobody_answers_it_is_code_4(self) -> None:
        """Without a controller the budget runs out, with a hint, and the request is deleted."""
        for argv in (("backup", "logs", "b1"), ("download", "b1", "-o", "-"), ("plugin", "get"), ("version",)):
            with self.subTest(argv=argv):
                result = self.cli(*argv, "--timeout", "200ms")
                self.assert_failed(result, 4)
                self.assertIn("\nhint: ", result.err)
        self.assertEqual(self.names() + self.names(SSR), [])

    # -- processes --

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
                                  ["velero.io/job", "RestoreItemAction"], ["velero.io/aws", "VolumeSnapshotter"]])
                self.assertIn(b"Server:\n\tVersion: v1.16.2\n", self.cli("version").out)
                result = program.end(number)
                self.assertEqual((result.code, result.out), (0, b""), result.err)
                self.assertNotIn("Traceback", result.err)
                self.assert_clean(result.err)

    def test_bad_plugins_files_are_refused(self) -> None:
        """A plugins file that is none is one error, before the controller starts."""
        path = os.path.join(self.folder, "plugins")
        for content in (None, "- [", "name: x", "- name: x", "- 5", "- {name: x, kind: 7}", "\x00"):
            with self.subTest(content):
                if content is not None:
                    with open(path, "w", encoding="utf-8") as file:
                        file.write(content)
                self.assert_failed(self.cli("controller", "--once", "--plugins-file", path), 1, path)

    def test_once_and_dry_run(self) -> None:
        """--once answers, refuses and deletes what is there; --dry-run prints each outcome and changes nothing."""
        name, failing, status_name = self.ask(), self.ask(name="nobody"), self.ask_status()
        past = self.fill(self.ask(), expiration=self.clock.text(minutes=-1))

        def everything() -> List[Any]:
            return [self.look(one) for one in (name, failing, past)] + [
                self.look(status_name, SSR), self.admin.list("events", self.namespace)["items"]]
        before, result = everything(), self.program("controller", "--dry-run").end()
        self.assertEqual((result.code, everything()), (0, before), result.err)
        for one, verb in ((name, "patch"), (failing, "patch"), (past, "delete"), (status_name, "patch")):
            self.assertIn(f"/{one}: {verb}: ", result.out.decode())
        self.assert_clean(result.out, result.err)
        result = self.program("controller", "--once").end()
        self.assertEqual((result.code, result.out), (0, b""), result.err)
        done = [self.look(name), self.look(status_name, SSR)]
        self.assertEqual([(document or {})["status"]["phase"] for document in done], ["Processed"] * 2)
        self.assertRegex(done[1]["status"]["serverVersion"], r"\Av[0-9]")  # without the v every velero CLI warns
        self.assertTrue(reason_of(self.look(failing)))
        self.assertIsNone(self.look(past))
        self.assertNotIn("Traceback", result.err)


# ------------------------------------------------------------------------------------------------------------
# Contract: what only a fake can show, by its request log or by a scripted fault
# ------------------------------------------------------------------------------------------------------------

class FaultWorld(FakeWorld):
    """Fakes with an empty log, and a controller that calls as a user of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.cluster.unscript()
        self.store.unscript()
        self.cluster.forget()
        self.store.forget()
        self.addCleanup(self.cluster.unlimit)
        self.cluster.grant("controller", EVERYTHING, namespace=self.namespace)

    def serve(self, user: str = "controller", plugins: Tuple[Tuple[str, str], ...] = (), **settings: Any) -> Any:
        """Run a controller as a user of its own, so that the log tells its requests from the test's."""
        return super().serve(user, plugins, **settings)

    def patches(self, name: str = "") -> List[Request]:
        """Return the patches of one request, or of all."""
        return self.cluster.seen("PATCH", f"/namespaces/{self.namespace}/downloadrequests/{name}")


class FaultTests(FaultWorld):
    """Requests counted, answers lost, bodies cut."""

    def test_what_an_answer_costs(self) -> None:
        """One merge patch with the version it was decided on; a burst costs one each, backup and keys are shared."""
        controller = self.serve()
        self.settle()  # from the first answer on the dialect is known
        self.assertEqual([resource.plural for resource in controller.with_subresource],
                         ["downloadrequests"] * self.status_subresource)
        self.cluster.forget()
        name = self.ask()
        version = (self.look(name) or {})["metadata"]["resourceVersion"]
        self.answered(name)
        patch, = self.patches(name)
        self.assertEqual((patch.content_type, patch.path.endswith("/status")),
                         ("application/merge-patch+json", self.status_subresource))
        self.assertEqual(set(patch.parsed["status"]), {"phase", "downloadURL", "expiration"})
        self.assertLessEqual(int(patch.parsed["metadata"]["resourceVersion"]), int(version) + 1)
        for name in [self.ask() for _ in range(100)]:
            self.answered(name)
        self.assertEqual(len(self.patches()), 101)
        for part in ("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"):
            self.assertLess(self.cluster.count("GET", part), 20)
        for request in self.cluster.seen(user="controller"):
            self.assertIn(f"/namespaces/{self.namespace}/", request.path)

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
        """However often a request is tried again, its reason is written once, and told in one Event; tries back off."""
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

    def test_failures_are_not_remembered(self) -> None:
        """What was missing a moment ago is looked up again for the next request."""
        self.serve()
        self.failed(self.ask(name="b2"))
        self.make_backup("b2")
        self.assertEqual(reason_of(self.answered(self.ask(name="b2"))), "")

    def test_an_idle_controller_makes_no_requests(self) -> None:
        """Besides its watches it asks for nothing, however long; also as a process, where an answer costs one patch."""
        program = Program(self.folder, "controller", "--kubeconfig", self.cluster.kubeconfig(self.folder, "controller"),
                          "-n", self.namespace)
        self.addCleanup(program.kill)
        for own in (True, False):
            controller = None if own else self.serve()
            wait_until(lambda: len(self.cluster.watches(self.namespace)) == 2, 15, "two watches")
            self.settle()
            wait_until(lambda controller=controller: not (controller and controller.records), 10, "the request to go")
            self.cluster.forget()
            for _ in range(30):
                self.turn(minutes=3)
            self.assertEqual(self.cluster.seen(user="controller"), [])
            self.settle()
            made = [(request.method, bool(request.query)) for request in self.cluster.seen(user="controller")]
            self.assertEqual(made, [("PATCH", False)] if own else [("GET", False)] * 3 + [("PATCH", False)])
            if controller is None:
                program.kill()
                wait_until(lambda: not self.cluster.watches(self.namespace), 15, "the end of the watches")

    def test_hostile_names_never_reach_a_path(self) -> None:
        """A name that is none is refused before anything is looked up with it."""
        self.serve()
        for name in ("../../secrets/cloud", "a/b", "..", "b1?x", "\x00", ""):
            self.failed(self.ask(name=name))
        self.assertEqual(self.cluster.count("GET", "/backups/"), 0)

    # -- the controller and faults --

    def test_answers_that_go_wrong_are_made_up_for(self) -> None:
        """A conflict, an error, a throttled or a lost answer to the patch delays an answer and no more."""
        stale = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409}
        self.serve()
        for options in ({"status": 409, "body": stale}, {"status": 500, "body": "oops"}, {"status": 200, "body": "{}"},
                        {"status": 429, "headers": {"Retry-After": "0"}}, {"status": 503, "body": "<html>"},
                        {"drop": True}, {"drop": True, "apply": True}, {"cut_after": 5}):
            with self.subTest(**{key: str(value) for key, value in options.items()}):
                fault = self.cluster.script("PATCH", "/downloadrequests/", **options)
                self.assertTrue(self.healed(self.ask())["status"]["downloadURL"])
                self.assertEqual(fault.hits, 1)

    def test_lookups_that_fail_are_made_again(self) -> None:
        """A backup, location or Secret that the API fails to give is a reason, and heals."""
        self.serve()
        for path in ("/backups/b1", "/backupstoragelocations/default", "/secrets/cloud"):
            for options in ({"status": 500, "body": "oops"}, {"status": 200, "body": "{}"}):
                with self.subTest(path=path, **options):
                    self.turn(minutes=1)
                    self.cluster.script("GET", path, times=3, headers={"Retry-After": "0"}, **options)
                    self.healed(self.ask())
                    self.cluster.unscript(all_struck=False)

    def test_a_request_changed_in_between_is_looked_at_again(self) -> None:
        """When somebody changes the request during the pass, the patch conflicts and the next look counts."""
        gate = threading.Event()
        self.cluster.script("GET", "/secrets/cloud", hang=gate)
        self.serve()
        name = self.ask()
        wait_until(lambda: self.cluster.count("GET", "/secrets/cloud"), 10, "the pass")
        self.admin.merge_patch("downloadrequests", name, {"metadata": {"labels": {"by": "them"}}}, self.namespace)
        gate.set()
        document = self.healed(name)
        self.assertEqual(document["metadata"]["labels"], {"by": "them"})
        self.assertEqual(self.cluster.count("PATCH", name, status=409), 1)

    def test_a_patch_that_is_invalid_is_made_smaller(self) -> None:
        """When the API takes the annotations for invalid, the same pass writes the status alone."""
        self.cluster.script("PATCH", "/downloadrequests/", status=422,
                            body={"reason": "Invalid", "message": "too long"})
        self.serve()
        name = self.ask(name="nobody")
        wait_until(lambda: len(self.patches(name)) > 1, 10, "another patch")
        self.assertEqual([("annotations" in patch.parsed["metadata"], "status" in patch.parsed)
                          for patch in self.patches(name)[:2]], [(True, True), (False, True)])

    def test_what_is_deleted_during_a_pass_stays_forgotten(self) -> None:
        """An answer to a patch that comes after the object's end does not bring it back."""
        controller, gate = self.serve(), threading.Event()
        self.settle()
        self.cluster.script("PATCH", "/downloadrequests/", pause_after=1, gate=gate)
        name = self.ask()
        self.answered(name)
        self.admin.delete("downloadrequests", name, self.namespace)
        wait_until(lambda: not controller.records, 10, "the record to go")
        gate.set()
        wait_until(lambda: not controller.queue._working, 10, "the pass to end")
        self.assertEqual(controller.records, {})

    def test_a_signal_lets_the_pass_in_hand_finish(self) -> None:
        """SIGTERM in the middle of a pass: the answer is still written, then the controller leaves with 0."""
        gate = threading.Event()
        fault = self.cluster.script("GET", "/secrets/cloud", hang=gate)
        program = self.program("controller")
        name = self.ask()
        wait_until(lambda: fault.hits, 15, "the pass")
        program.process.send_signal(signal.SIGTERM)
        with self.assertRaises(AssertionError):  # it must not leave while the pass is under way
            wait_until(lambda: program.process.poll() is not None, 0.3)
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
        """--dry-run sends nothing but GET, and prints no escape that a server has put into a name."""
        self.ask()
        self.ask_status()
        self.cluster.forget()
        self.cluster.script("GET", SSR + "?limit=", status=200, body={
            "metadata": {"resourceVersion": "1"},
            "items": [{"metadata": {"namespace": self.namespace, "name": "\x1b[31m\u202e"}}]})
        result = self.cli("controller", "--dry-run")
        self.assertEqual(result.code, 0)
        self.assertTrue(result.out.decode().replace("\n", "").isprintable(), result.out)
        self.assertEqual({request.method for request in self.cluster.seen()}, {"GET"})

    # -- the client's requests --

    def test_a_client_that_watches_does_not_poll(self) -> None:
        """Where watching is allowed the URL comes by the watch."""
        self.serve()
        self.put()
        self.cluster.forget()
        self.cli("backup", "logs", "b1")
        name = next(request for request in self.cluster.seen("DELETE")).path.rpartition("/")[2]
        self.assertLessEqual(self.cluster.count("GET", "/downloadrequests/" + name), 1)

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


class TestContractFaultsStore(FaultWorld, unittest.TestCase):
    """The client and what a store does to it, which no dialect of the status changes."""

    def test_a_signal_while_creating_leaves_nothing(self) -> None:
        """Ctrl-C or SIGTERM between the request's creation and the answer to it leaves no request behind either."""
        logs, plugins = ("downloadrequests", ("backup", "logs", "b1")), (SSR, ("plugin", "get"))
        for number, code, (resource, argv) in (
                (signal.SIGINT, 130, logs), (signal.SIGINT, 130, plugins), (signal.SIGTERM, 143, logs),
                (signal.SIGTERM, 143, plugins), (signal.SIGHUP, 129, logs)):
            with self.subTest(argv=argv, number=number):
                gate = threading.Event()
                self.cluster.script("POST", "/" + resource, pause_after=0, gate=gate)
                program = self.program(*argv)
                wait_until(lambda resource=resource: self.names(resource), 15, "the request")
                program.process.send_signal(number)
                gate.set()
                result = program.end()
                self.assertEqual((result.code, result.out, self.names(resource)), (code, b"", []), result.err)

    def test_a_create_of_unknown_outcome_leaves_nothing(self) -> None:
        """What was carried out though its answer was lost, wrong or interrupted is deleted; nothing else is."""
        kept = self.ask(name="b2")
        hang = threading.Event()
        self.addCleanup(hang.set)
        for fault, number, code, deletes in (
                ({"apply": True, "drop": True}, None, 6, 1),
                ({"apply": True, "status": 500, "body": b"{}"}, None, 1, 1),
                ({"apply": True, "status": 201, "body": {"kind": "DownloadRequest"}}, None, 6, 1),
                ({"status": 403, "body": b"{}"}, None, 5, 0),
                ({"pause_after": 0, "gate": hang}, signal.SIGINT, 130, 1),
                ({"pause_after": 0, "gate": hang}, signal.SIGTERM, 143, 1)):
            with self.subTest(fault, number=number):
                self.cluster.forget()
                self.cluster.script("POST", "/downloadrequests", **fault)
                program = self.program("backup", "logs", "b1")
                if number:
                    wait_until(lambda: len(self.names()) > 1, 15, "the create")
                result = program.end(number)
                self.assertEqual((result.code, result.out, self.names()), (code, b"", [kept]), result.err)
                paths = [request.target for request in self.cluster.seen("DELETE", "/downloadrequests")]
                self.assertEqual(deletes, len(paths), paths)
                self.assertTrue(all(re.search("/downloadrequests/b1-[a-z0-9]{5}$", path) for path in paths), paths)

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
        for options, code in (({"status": 403, "body": "AWSAccessKeyId"}, 5), ({"drop": True}, 0),
                              ({"cut_after": 0}, 0),
                              ({"status": 500}, 0)):
            with self.subTest(**options):
                self.store.script("GET", **options)
                result = self.cli("-v", "-v", "backup", "logs", "b1", "-v")
                self.assertEqual(code, result.code)
                self.assert_clean(result.err)

    def test_what_servers_echo_is_blanked(self) -> None:
        """A signature or token that the store or the cluster repeats in an error is not passed on."""
        self.serve()
        self.put()
        told = (f"Bearer {token_of('admin')} X-Amz-Credential={self.store.access_key}"
                f"&X-Amz-Signature={'0f' * 32}")
        for body in (told, f"<Error><Code>Odd</Code><Message>{told}</Message></Error>"):
            self.store.script("GET", status=400, body=body)
            self.assert_failed(self.cli("backup", "logs", "b1"), 1)
        refusal = {"message": told, "code": 403}
        self.cluster.script("POST", "/downloadrequests", times=5, status=403, body=refusal)
        self.assert_failed(self.cli("backup", "logs", "b1"), 5)

    def test_the_store_s_words_cannot_steer_a_terminal(self) -> None:
        """Control characters in an answer of the store or the cluster do not reach the terminal raw."""
        self.serve()
        self.put()
        hostile = "<Error><Code>X\x1b[31m</Code><Message>a\nerror: forged\r\x07</Message></Error>"
        self.store.script("GET", status=400, body=hostile)
        result = self.cli("backup", "logs", "b1")
        self.assert_failed(result, 1)
        self.assertNotRegex(result.err, "[\x00-\x09\x0b-\x1f]")


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
        targets = ({"kind": "Nonsense", "name": "b1"}, {"kind": 5, "name": "b1"}, {"kind": "BackupLog", "name": ["b1"]},
                   {"kind": "BackupLog"}, {}, [], "b1", None, {"kind": {"a": 1}, "name": {"b": 2}})
        self.serve()
        for spec in [{"spec": {"target": target}} for target in targets] + [{}, {"spec": []}]:
            with self.subTest(spec=str(spec)):
                failed = self.failed(self.invent("downloadrequests", spec))
                self.assertNotIn("downloadURL", failed.get("status") or {})
        self.settle()

    def test_no_status_makes_a_request_immortal(self) -> None:
        """Unknown phases, expirations that are no dates, statuses that are no objects: all end."""
        statuses: Tuple[Any, ...] = (
            {"phase": "Weird"}, {"phase": 7}, {"phase": None}, {"phase": ["New"]}, "text", [], None, 5,
            {"phase": "Failed", "message": "upstream"}, {"phase": "Processed", "expiration": "", "downloadURL": 5},
            *({"phase": "Processed", "expiration": value}
              for value in ("tomorrow", 12345, {"a": []}, "99999-01-01T00:00:00Z")))
        good = {"target": {"kind": "BackupLog", "name": "b1"}}
        names = {self.invent("downloadrequests", {"spec": good, "status": status}): status for status in statuses}
        answered = [self.invent(SSR, {"status": status}) for status in (
            {"phase": "Processed", "processedTimestamp": "then"}, {"phase": "Processed", "processedTimestamp": 5},
            {"phase": "Processed", "processedTimestamp": [], "plugins": 5})]
        for status in ({"phase": ["x"]}, {"phase": "Weird"}, "text", 5, []):
            self.invent(SSR, {"status": status})
        self.serve()
        self.answered(self.ask_status(), SSR)
        for _ in range(2):
            self.settle()
            self.turn(minutes=10, seconds=5)
        for name, status in names.items():
            with self.subTest(status=str(status)):
                self.gone(name)
        for name in answered:
            self.gone(name, SSR)

    def test_the_client_understands_failed_and_nonsense(self) -> None:
        """Phase Failed with a message ends the waiting with it; a status of nonsense ends in time."""
        for status, words in (({"phase": "Failed", "message": "no such thing"}, ("no such thing",)),
                              ({"phase": "Processed", "downloadURL": 5}, ()), ({"phase": ["x"]}, ()),
                              ({"downloadURL": "ftp://x/"}, ()), ({"downloadURL": "file:///etc/passwd"}, ())):
            with self.subTest(status=status):
                program = self.program("backup", "logs", "b1", "--timeout", "1s")
                self.fill(wait_until(self.names, 15, "the request")[0], **status)
                result = program.end()
                self.assert_failed(result, result.code, *words)
                self.assertIn(result.code, (1, 3, 4, 6))
                self.assertEqual(self.names(), [])

    def test_a_server_s_plugins_may_be_nonsense(self) -> None:
        """plugin get and version take what a stranger answered without a traceback."""
        plugin_get, version = ("plugin", "get"), ("version",)
        for command, status in (
                (plugin_get, {"plugins": "x"}), (version, {}), (version, {"serverVersion": "v1\x1b[31m\n"}),
                (plugin_get, {"plugins": [5, {"name": 7}, {"name": "a\x1b[1m", "kind": "b"}]})):
            with self.subTest(status=str(status), command=command):
                program = self.program(*command, "--timeout", "20s")
                self.fill(wait_until(lambda: self.names(SSR), 15, "the request")[0], SSR, phase="Processed", **status)
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
    """What only a real API server has: client certificates, compaction."""

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

    def test_certificates(self) -> None:
        """A client certificate works inline and as files, named relative to the kubeconfig; a wrong authority is 6."""
        names = [os.path.join(self.folder, name) for name in ("client.key", "client.csr", "client.crt", "own.crt")]
        run_openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", names[0], "-out", names[1], "-subj",
                    "/O=system:masters/CN=certified")
        run_openssl("x509", "-req", "-in", names[1], "-CA", self.cluster.ca, "-CAkey",
                    os.path.join(self.cluster.folder, "ca.key"), "-CAcreateserial", "-days", "1", "-out", names[2])
        shutil.copy(self.cluster.ca, names[3])
        data = {}
        for name in names:
            with open(name, "rb") as file:
                data[name] = base64.b64encode(file.read()).decode()
        for code, cluster, user in (
                (3, {"certificate-authority-data": data[names[3]]},
                 {"client-certificate-data": data[names[2]], "client-key-data": data[names[0]]}),
                (3, {"certificate-authority": "own.crt"},
                 {"client-certificate": "client.crt", "client-key": "client.key"}),
                (6, {"certificate-authority": make_certificate(self.folder).ca}, {"token": token_of("admin")})):
            with self.subTest(code=code, cluster=list(cluster)):
                self.assert_failed(run("--kubeconfig", self.kubeconfig_with(cluster, user), "-n", self.namespace,
                                       "backup", "logs", "none"), code)

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


def kube_issue(folder: str, name: str, names: str = "", days: str = "30", subject: str = "") -> None:
    """Have the authority in folder sign a certificate for alternative names: {name}.crt and {name}.key."""
    base = os.path.join(folder, name)
    with open(base + ".ext", "w", encoding="ascii") as file:
        file.write("basicConstraints=CA:FALSE\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
                   + (f"subjectAltName={names}\n" if names else ""))
    run_openssl("req", *KUBE_NEW_KEY, "-keyout", base + ".key", "-out", base + ".csr", "-subj",
                f"/CN={subject or name}")
    run_openssl("x509", "-req", "-in", base + ".csr", "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key",
                "-CAcreateserial", "-days", days, "-out", base + ".crt", "-extfile", base + ".ext")


@functools.lru_cache(maxsize=None)
def kube_pki() -> str:
    """The folder with the authority, the server certificates and the client certificates of these tests."""
    folder = tempfile.mkdtemp(prefix="velero-requests-pki-")
    atexit.register(shutil.rmtree, folder, True)
    make_certificate(folder)  # ca.crt; tls.crt for localhost and 127.0.0.1
    for name in ("alice", "bob"):
        kube_issue(folder, name)
    kube_issue(folder, "named", "DNS:kubernetes.default.svc,DNS:*.example.com")
    kube_issue(folder, "nameless", subject="localhost")
    kube_issue(folder, "expired", "DNS:localhost,IP:127.0.0.1", days="-1")
    with open(os.path.join(folder, "spoiled.crt"), "wb") as file:  # a block that is none, and a good one after it
        file.write("# é\n".encode() + kube_bytes("ca.crt", folder).replace(b"MII", b"QUJD", 1)
                   + kube_bytes("ca.crt", folder))
    return folder


def kube_bytes(name: str, folder: str = "") -> bytes:
    """The content of one file of kube_pki."""
    with open(os.path.join(folder or kube_pki(), name), "rb") as file:
        return file.read()


def kube_base64(name: str) -> str:
    """The same in base64, as the -data fields have it."""
    return base64.b64encode(kube_bytes(name)).decode()


class KubeServer(LoopbackServer):
    """Answers every call like /version, and remembers who called, by certificate and by which name."""

    def __init__(self, certificate_name: str = "", demand: bool = False) -> None:
        """Serve https with a certificate of kube_pki, or http without one."""
        self._own: Optional[ssl.SSLContext] = None
        if certificate_name:
            self._own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._own.load_cert_chain(*(os.path.join(kube_pki(), certificate_name + end) for end in (".crt", ".key")))
            self._own.load_verify_locations(os.path.join(kube_pki(), "ca.crt"))
            self._own.verify_mode = ssl.CERT_REQUIRED if demand else ssl.CERT_OPTIONAL
            self._own.sni_callback = lambda secured, name, _: setattr(secured, "kube_name", name)
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
def kube_servers() -> Dict[str, Any]:
    """The servers and proxies that all tests share, by the name that verdicts use; closed at exit."""
    servers = {"https": KubeServer("tls"), "http": KubeServer(), "named": KubeServer("named"),
               "expired": KubeServer("expired"), "nameless": KubeServer("nameless"), "proxy": KubeProxy(),
               "guarded": KubeProxy("", "me:p@ss:w"), "secure": KubeProxy("tls")}
    for server in servers.values():
        atexit.register(server.close)
    return servers


def kube_fill(text: str, folder: str = "") -> str:
    """Text with what differs from run to run: @HTTPS@ is a server's host and port, @CA@ a file in base64 …"""
    values = {name.upper(): lambda server=server: server.host for name, server in kube_servers().items()}
    values.update({name: functools.partial(kube_base64, file) for name, file in (
        ("CA", "ca.crt"), ("CERT", "alice.crt"), ("KEY", "alice.key"), ("BOBKEY", "bob.key"))})
    values.update({"DIR": lambda: folder, "PKI": kube_pki, "PATH": lambda: os.environ["PATH"],
                   **{f"{name}PORT": lambda name=name: str(kube_servers()[name.lower()].port)
                      for name in ("HTTPS", "NAMED")}})
    text = re.sub(r"@TEXT:(\S+?)@", lambda match: json.dumps(kube_bytes(match[1]).decode())[1:-1], text)
    return re.sub(r"@([A-Z]+)@", lambda match: values[match[1]](), text)


def kube_write(folder: str, name: str, content: Any) -> str:
    """Write a file of a case and return its path: bytes as they are, text filled in, documents as YAML."""
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not isinstance(content, (bytes, str)):
        content = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else kube_fill(content, folder).encode())
    os.chmod(path, 0o755 if name.endswith("plugin") else 0o644)
    return path


def kube_config(user: Any = None, cluster: Any = None, **top: Any) -> Document:
    """A kubeconfig for the https server: entries `c`, with a token and the authority unless others are given."""
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
            request = calls[-1]
            scheme, _, secret = request.headers.get("authorization", "").partition(" ")
            who = f"certificate {request.user}" if request.user else "nobody"
            if scheme:
                who = f"basic {base64.b64decode(secret).decode()}" if scheme == "Basic" else f"token {secret}"
            ways = [f" by {way}" for way in ("proxy", "guarded", "secure") if kube_servers()[way].seen("CONNECT")]
            known = f" as {request.parsed['name']}" if (request.parsed or {}).get("name") else ""
            borrowed = sorted((unquote(header.lower()[12:]), value.encode("latin-1").decode())  # as the API server does
                              for header, value in request.header_list if header.lower().startswith("impersonate-"))
            return (f"{name}{request.path[:request.path.rindex('/')]}{known}{''.join(ways)}: {who}"
                    f"{''.join(f', {header}={value}' for header, value in borrowed)}{' but failed' if failed else ''}")
    return "error" if failed else "no call"


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
            return api.call("GET", "/version")
        finally:
            api.session.close()


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

    def connect(self, document: Any) -> Any:
        """A connection by a kubeconfig; it is closed in the end."""
        api = velero_requests.connect(velero_requests.load_cluster(self.write(document)))
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


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: one table, and kubectl as the oracle
# ------------------------------------------------------------------------------------------------------------

class KubeCase(NamedTuple):
    """One way to be configured, and what kubectl makes of it: a verdict, or `error: words of ours`."""

    what: str
    verdict: str
    files: Dict[str, Any]
    context: str = ""
    kubeconfig: str = "@DIR@/config"
    environment: Dict[str, Optional[str]] = {}
    lenient: bool = False                    # kubectl refuses it; the verdict is ours


KUBE_EXEC = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never", "command": "./plugin"}
KUBE_PLUGIN = """#!/bin/sh
echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "p"}}'
"""
KUBE_EVERYWHERE = {"token": "f\n", "empty": "", "plugin": KUBE_PLUGIN}  # files beside every kubeconfig, and pki
KUBE_CERT = {"client-certificate-data": "@CERT@", "client-key-data": "@KEY@"}
KUBE_PAIR = {"clientCertificateData": "@TEXT:alice.crt@", "clientKeyData": "@TEXT:alice.key@"}
KUBE_PLAIN = {"server": "http://@HTTP@"}
KUBE_NO_CA = {"certificate-authority-data": None}
KUBE_NAMED = {"server": "https://@NAMED@"}
KUBE_BY_NAME = {"server": "https://a.example.com:@NAMEDPORT@"}


def kube_cases(rows: Iterable[Tuple[Any, ...]], lenient: bool = False) -> Tuple[KubeCase, ...]:
    """Rows of (what, verdict, fields of the user, fields of the cluster, fields of the file or --context) -> cases."""
    cases = []
    for what, verdict, user, cluster, top in ((*row, None, None, None)[:5] for row in rows):
        top = dict(top or {})
        context = top.pop("--context", "")
        cases.append(KubeCase(what, verdict, {"config": kube_config(user, cluster, **top)}, context, lenient=lenient))
    return tuple(cases)


def kube_list(what: str, verdict: str, listed: str, **files: Any) -> KubeCase:
    """A case with a KUBECONFIG list; each file is named by a letter."""
    return KubeCase(what, verdict, files, "", "", {"KUBECONFIG": listed})


def kube_yaml(what: str, expected: str, token: str, lenient: bool = False) -> KubeCase:
    """A case whose token is written so, unquoted, in YAML."""
    text = yaml.safe_dump(kube_config({"token": "TOKEN"}), sort_keys=False)
    return KubeCase(what, expected, {"config": text.replace("TOKEN", token)}, lenient=lenient)


def kube_text(what: str, expected: str, change: Callable[[str], str]) -> KubeCase:
    """A case whose file is the text of a good one, changed."""
    return KubeCase(what, expected, {"config": change(yaml.safe_dump(kube_config(), sort_keys=False))})


KUBE_CASES = kube_cases((
    # who calls
    ("a token", "https: token t"),
    ("a token file", "https: token f", {"tokenFile": "token"}),
    ("a token file beats a token", "https: token f", {"token": "t", "tokenFile": "token"}),
    ("a missing token file leaves the token", "https: token t", {"token": "t", "tokenFile": "gone"}),
    ("an empty token file leaves the token", "https: token t", {"token": "t", "tokenFile": "empty"}),
    ("a missing token file", "error: cannot read token @DIR@/gone", {"tokenFile": "gone"}),
    ("a password", "https: basic u:p", {"username": "u", "password": "p"}),
    ("nobody", "https: nobody", {}),
    ("a certificate", "https: certificate alice", KUBE_CERT),
    ("a certificate in files", "https: certificate alice",
     {"client-certificate": "pki/alice.crt", "client-key": "@PKI@/alice.key"}),
    ("a certificate and a token", "https: token t", {**KUBE_CERT, "token": "t"}),
    ("a certificate with another's key", "error: not a matching pair", {**KUBE_CERT, "client-key-data": "@BOBKEY@"}),
    ("a certificate without key", "error: not a matching pair", {"client-certificate-data": "@CERT@"}),
    ("a key without certificate, and a token", "https: token t", {"client-key": "gone", "token": "t"}),
    ("a missing certificate file", "error: cannot read client certificate @DIR@/gone",
     {"client-certificate": "gone", "client-key-data": "@KEY@"}),
    ("a missing key file", "error: cannot read client key @DIR@/gone",
     {"client-certificate-data": "@CERT@", "client-key": "gone", "token": "s3cr3t"}),
    ("base64 with line ends", "https: certificate alice",
     {"client-certificate-data": "@CERT@\n", "client-key-data": "\r\n@KEY@"}),
    ("base64 without its end", "error: not base64", {**KUBE_CERT, "client-key-data": "QUI"}),
    # impersonation
    ("as a user", "https: token t, user=jane", {"token": "t", "as": "jane"}),
    ("as somebody with everything", "https: token t, extra-a/b=1, extra-a/b=2, group=g, group=h, uid=7, user=j",
     {"token": "t", "as": "j", "as-uid": "7", "as-groups": ["g", "h"], "as-user-extra": {"A/b": ["1", "2"]}}),
    ("as somebody, extra keys with signs", "https: token t, extra-a!b+c%é=1, user=j",
     {"token": "t", "as": "j", "as-user-extra": {"a!b+c%é": ["1"]}}),
    ("as somebody of other letters", "https: token t, user=jürgen", {"token": "t", "as": "jürgen"}),
    ("as two lines", "error: user 'c': whom it impersonates", {"token": "s3cr3t", "as": "a\nb"}),
    ("groups without a user", "error: without a user (as)", {"token": "s3cr3t", "as-groups": ["g"]}),
    ("an extra key without values", "https: token t, user=j", {"token": "t", "as": "j", "as-user-extra": {"a": []}}),
    ("a group that is null", "https: token t, group=, user=j", {"token": "t", "as": "j", "as-groups": [None]}),
    # plugins
    ("a plugin", "https: token p", {"exec": KUBE_EXEC}),
    ("a plugin and a token", "https: token t", {"token": "t", "exec": KUBE_EXEC}),
    ("a plugin and a certificate", "https: certificate alice", {**KUBE_CERT, "exec": KUBE_EXEC}),
    ("a plugin and a key without certificate", "https: token p", {"client-key-data": "@KEY@", "exec": KUBE_EXEC}),
    ("a plugin and a server with a password", "https: basic u:p",
     {"exec": KUBE_EXEC}, {"server": "https://u:p@@HTTPS@"}),
    ("a plugin that is not there", "error: exec plugin @DIR@/gone of the kubeconfig is not installed",
     {"exec": {**KUBE_EXEC, "command": "./gone"}}),
    ("a plugin with an odd interactiveMode", "error: user 'c', exec has interactiveMode 'never', not one of Never",
     {"exec": {**KUBE_EXEC, "interactiveMode": "never"}}),
    ("a plugin of an old version", "error: user 'c', exec has apiVersion 'client.authentication.k8s.io/v1alpha1', not",
     {"exec": {**KUBE_EXEC, "apiVersion": "client.authentication.k8s.io/v1alpha1"}}),
    ("a plugin without command", "error: user 'c', exec has no command", {"exec": {**KUBE_EXEC, "command": ""}}),
    ("a plugin that is a text", "error: user 'c', exec must be a mapping", {"exec": "s3cr3t"}),
    ("a plugin that is null", "https: token t", {"token": "t", "exec": None}),
    ("an argument that is a number", "error: exec: args[0] must be a string",
     {"exec": {**KUBE_EXEC, "args": [5]}}),
    ("an auth-provider that is gone", "error: user 'c' uses auth-provider 'gcp'", {"auth-provider": {"name": "gcp"}}),
    # where to, and whom to trust
    ("an authority in a file", "https: token t", None, {**KUBE_NO_CA, "certificate-authority": "pki/ca.crt"}),
    ("a missing authority", "error: cannot read certificate authority @DIR@/gone", None,
     {**KUBE_NO_CA, "certificate-authority": "gone"}),
    ("no authority", "error: not trusted", None, KUBE_NO_CA),
    ("an authority file that is no PEM", "error: @DIR@/token holds no PEM", None,
     {**KUBE_NO_CA, "certificate-authority": "token"}),
    ("an authority after a comment and a bad block", "https: token t", None,
     {**KUBE_NO_CA, "certificate-authority": "pki/spoiled.crt"}),
    ("another authority", "error: not trusted", None, {**KUBE_NO_CA, "certificate-authority": "@PKI@/alice.crt"}),
    ("insecure", "https: token t", None, {**KUBE_NO_CA, "insecure-skip-tls-verify": True}),
    ("insecure with an expired certificate", "expired: token t", None,
     {**KUBE_NO_CA, "server": "https://@EXPIRED@", "insecure-skip-tls-verify": True}),
    ("insecure with another name", "named as x.y: token t", None,
     {**KUBE_NO_CA, **KUBE_NAMED, "tls-server-name": "x.y", "insecure-skip-tls-verify": True}),
    ("an expired certificate", "error: expired (it is for localhost", None, {"server": "https://@EXPIRED@"}),
    ("a certificate of another name", "error: *.example.com", None, KUBE_NAMED),
    ("tls-server-name with a wildcard", "named as a.example.com: token t", None,
     {**KUBE_NAMED, "tls-server-name": "a.example.com"}),
    ("a wrong tls-server-name", "error: 'b.a.example.com'", None, {**KUBE_NAMED, "tls-server-name": "b.a.example.com"}),
    ("a certificate with nothing but a common name", "error: (it is for no name at all; subject commonName=localhost;",
     None,
     {"server": "https://@NAMELESS@", "tls-server-name": "localhost"}),
    ("an http server gets no token", "http: nobody", None, KUBE_PLAIN),
    ("an http server runs no plugin", "http: nobody", {"exec": KUBE_EXEC}, KUBE_PLAIN),
    ("an http server and a missing authority", "error: cannot read certificate authority", None,
     {**KUBE_PLAIN, **KUBE_NO_CA, "certificate-authority": "gone"}),
    ("an http server is told whom to be", "http: nobody, user=j", {"token": "t", "as": "j"}, KUBE_PLAIN),
    ("a server without a scheme", "http: nobody", None, {"server": "@HTTP@"}),
    ("a server of another scheme", "error: cluster 'c': server 'ftp://***@",
     None, {"server": "ftp://me:s3cr3t@@HTTP@"}),
    ("no server", "error: cluster 'c' has no server", None, {"server": ""}),
    ("a server with a path", "https/k8s/c-1: token t", None, {"server": "https://@HTTPS@/k8s/c-1/"}),
    ("a server with a password", "https: basic u:p@", KUBE_CERT, {"server": "https://u:p%40@@HTTPS@"}),
    ("a server by name", "https as localhost: token t", None, {"server": "https://localhost:@HTTPSPORT@"}),
    # proxies
    ("a proxy", "https by proxy: token t", None, {"proxy-url": "http://@PROXY@"}),
    ("a proxy with a password", "https by guarded: token t", None, {"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}),
    ("a proxy with a wrong password", "error: through its proxy", None, {"proxy-url": "http://me:s3cr3t@@GUARDED@"}),
    ("an https proxy", "https by secure: token t", None, {"proxy-url": "https://@SECURE@"}),
    ("an https proxy that is not trusted", "error: certificate", None,
     {**KUBE_NO_CA, "proxy-url": "https://@SECURE@"}),
    ("a proxy of another scheme", "error: cluster 'c': proxy-url is no http", None, {"proxy-url": "ftp://u:s3cr3t@h"}),
    # contexts and names
    ("no current-context", "error: kubeconfig @DIR@/config has no current-context",
     None, None, {"current-context": ""}),
    ("an unknown context", "error: it has: c", None, None, {"--context": "gone"}),
    ("a chosen context", "https: token t", None, None, {"current-context": "gone", "--context": "c"}),
    ("a context with an unknown cluster", "error: kubeconfig @DIR@/config has no cluster 'gone'", None, None,
     {"contexts": [{"name": "c", "context": {"cluster": "gone", "user": "c"}}]}),
    ("a context with an unknown user", "https: nobody", None, None,
     {"contexts": [{"name": "c", "context": {"cluster": "c", "user": "gone"}}]}),
    ("a user without a name", "https: token t", None, None, {
        "contexts": [{"name": "c", "context": {"cluster": "c"}}], "users": [{"user": {"token": "t"}}]}),
    # types
    ("a group that is a list", "error: as-groups[0] must be a string", {"as": "j", "as-groups": [["x"]]}),
    ("extra as a list", "error: as-user-extra must be a mapping", {"token": "t", "as": "j", "as-user-extra": []}),
    ("a token that is a number", "error: user 'c': token must be a string: write it in quotes", {"token": 12345}),
    ("a token that is null", "https: nobody", {"token": None}),
    ("a user that is a text", "error: user 'c' must be a mapping",
     None, None, {"users": [{"name": "c", "user": "s3cr3t"}]}),
    ("a mistake in an entry not in use", "https: token t", None, None, {"users": [
        {"name": "c", "user": {"token": "t"}}, {"name": "d", "user": {"token": "t", "username": "u"}}]}),
    ("users as a mapping", "error: kubeconfig @DIR@/config: users must be a list", None, None, {"users": {"c": {}}}),
    ("unknown fields", "https: token t", {"token": "t", "tokenfile": "gone", "Token": "x"}, None, {"more": [1]}),
    ("a key that is a number", "https: token t, extra-1=x, user=j",
     {"token": "t", 1: 2, "as": "j", "as-user-extra": {1: ["x"]}}),
)) + kube_cases((  # what kubectl refuses and what harms nobody
    ("a certificate both ways", "https: certificate alice", {**KUBE_CERT, "client-certificate": "gone"}),
    ("a token and a password", "https: token t", {"token": "t", "username": "u", "password": "p"}),
    ("a plugin without interactiveMode", "https: token p", {"exec": {**KUBE_EXEC, "interactiveMode": None}}),
    ("a token and a plugin of no use", "https: token t", {"token": "t", "exec": {}}),
    ("a plugin and an auth-provider", "https: token p", {"exec": KUBE_EXEC, "auth-provider": {"name": "gcp"}}),
    ("an authority both ways", "https: token t", None, {"certificate-authority": "gone"}),
    ("insecure with an authority, and expired", "error: expired", None,
     {"server": "https://@EXPIRED@", "insecure-skip-tls-verify": True}),
    ("an http server and a missing certificate", "http: nobody", {"client-certificate": "gone"}, KUBE_PLAIN),
    ("a proxy without a scheme", "https by proxy: token t", None, {"proxy-url": "@PROXY@"}),
    ("a SOCKS proxy", "error: proxy-url is a SOCKS proxy", None, {"proxy-url": "socks5://u:s3cr3t@127.0.0.1:1"}),
    ("two users of one name", "https: token t", None, None,
     {"users": [{"name": "c", "user": {"token": "t"}}, {"name": "c"}]}),
    ("null users", "https: token t", None, None, {"users": [None, {"name": "c", "user": {"token": "t"}}, None]}),
    ("a wrong type in an entry not in use", "https: token t", None, None,
     {"users": [{"name": "c", "user": {"token": "t"}}, {"name": "d", "user": {"token": 5}}, 5, {"name": 5}]}),
    ("another apiVersion", "https: token t", None, None, {"apiVersion": "v2"}),
), lenient=True)

KUBE_TEXTS: Tuple[KubeCase, ...] = (
    # scalars
    kube_yaml("a token that looks like a float", "https: token 1e3", "1e3", lenient=True),
    kube_yaml("a token that looks octal", "https: token 0o17", "0o17", lenient=True),
    kube_yaml("a token that is y", "https: token y", "y", lenient=True),
    kube_yaml("a token that is off", "error", "off"),
    kube_yaml("a token like a date", "https: token 2026-11-22", "2026-11-22"),
    kube_yaml("a token with a tag", "https: token 12", "!!str 12"),
    # the text
    kube_text("a byte order mark", "https: token t", lambda text: "\ufeff" + text),
    kube_text("a beginning and an end", "https: token t", lambda text: f"---\n{text}...\n"),
    kube_text("a second document", "https: token t", lambda text: f"{text}---\ncurrent-context: gone\n"),
    kube_text("rubbish in a second document", "https: token t", lambda text: f"{text}---\n@@ [\n"),
    kube_text("an empty first document", "error", lambda text: f"---\n---\n{text}"),
    kube_text("carriage returns", "https: token t", lambda text: text.replace("\n", "\r\n")),
    kube_text("a tab before a comment", "https: token t",
              lambda text: text.replace("token: t", "token: t\t# x")),
    kube_text("a tab that indents", "error", lambda text: text.replace("    token", "\ttoken")),
    kube_text("a key twice", "https: token t",
              lambda text: text.replace("token: t", "token: x\n    token: t")),
    kube_text("an alias", "https: token t", lambda text: text.replace("token: t", "token: *x").replace(
        "current-context: c", "other: &x t\ncurrent-context: c")),
    kube_text("an unknown alias", "error", lambda text: text.replace("token: t", "token: *x")),
    kube_text("a merge key", "https: token t", lambda text: text.replace("token: t", "<<: *x").replace(
        "current-context: c", "other: &x {token: t}\ncurrent-context: c")),
    kube_text("JSON", "https: token t", lambda text: json.dumps(yaml.safe_load(text))),
    kube_text("JSON with tabs", "https: token t", lambda text: json.dumps(yaml.safe_load(text), indent="\t")),
    kube_text("JSON with a comma too many", "https: token t",
              lambda text: json.dumps(yaml.safe_load(text))[:-1] + ",}"),
    kube_text("a list", "error", lambda text: "[1]"),
    kube_text("nothing", "error", lambda text: ""),
)

KUBE_FILES: Tuple[KubeCase, ...] = (
    KubeCase("Latin-1", "error: UTF-8", {"config": b"users:\n- name: \xe9 s3cr3t\n"}),
    KubeCase("UTF-16", "https: token t", {"config": "utf16"}),
    KubeCase("a file that is not there", "error: @DIR@/config: No such file", {}),
    KubeCase("a folder", "error: @DIR@/config: Is a directory", {"config/x": "x"}),
    KubeCase("a relative path", "https: token f",
             {"config": kube_config({"tokenFile": "a/../b/token"}), "b/token": "f"}),
    KubeCase("a path with a tilde", "error: @DIR@/~/token",
             {"config": kube_config({"tokenFile": "~/token"}), "home/token": "f"}),
    KubeCase("the file at home", "https: token t", {"home/.kube/config": kube_config()}, "", ""),
    KubeCase("no file at home", "error: no kubeconfig found", {}, "", ""),
    kube_list("one member", "https: token t", "@DIR@/a", a=kube_config()),
    kube_list("an absent member", "https: token t", "@DIR@/gone:@DIR@/a", a=kube_config()),
    kube_list("an empty file", "https: token t", "@DIR@/b:@DIR@/a", a=kube_config(), b=""),
    kube_list("the first file's user", "https: token b", "@DIR@/b:@DIR@/a", a=kube_config(),
              b={"users": [{"name": "c", "user": {"token": "b"}}]}),
    kube_list("no fields of the second file's user", "https: token b", "@DIR@/b:@DIR@/a",
              a=kube_config({"as": "u"}), b={"users": [{"name": "c", "user": {"token": "b"}}]}),
    kube_list("the first current-context", "https: token b", "@DIR@/b:@DIR@/a", a=kube_config(current_context="gone"),
              b={"current-context": "d", "users": [{"name": "d", "user": {"token": "b"}}],
                 "contexts": [{"name": "d", "context": {"cluster": "c", "user": "d"}}]}),
    kube_list("a broken second file", "error: kubeconfig @DIR@/b", "@DIR@/a:@DIR@/b", a=kube_config(), b="[1"),
    kube_list("relative paths of each file", "https: token f", "@DIR@/b/c:@DIR@/a", a=kube_config(
        {"tokenFile": "gone"}), **{"b/c": {"users": [{"name": "c", "user": {"tokenFile": "token"}}]}, "b/token": "f"}),
    kube_list("a member below a file", "error: @DIR@/a/b: Not a directory", "@DIR@/a:@DIR@/a/b", a=kube_config()),
    KubeCase("absent members keep the file at home out", "error: no kubeconfig found",
             {"home/.kube/config": kube_config()}, "", "", {"KUBECONFIG": "@DIR@/gone"}),
    KubeCase("a colon keeps the file at home out", "error: no kubeconfig found",
             {"home/.kube/config": kube_config()}, "", "", {"KUBECONFIG": ":"}),
    KubeCase("a flag beats KUBECONFIG", "https: token t", {"config": kube_config(), "b": kube_config({"token": "b"})},
             environment={"KUBECONFIG": "@DIR@/b"}),
    KubeCase("a proxy of the environment is not for loopback", "https: token t", {"config": kube_config()},
             environment={"HTTPS_PROXY": "http://@PROXY@"}),
    KubeCase("a proxy of the environment", "named as a.example.com by proxy: token t",
             {"config": kube_config(None, KUBE_BY_NAME)}, environment={"HTTPS_PROXY": "http://@PROXY@"}),
    KubeCase("a proxy-url beats the environment", "https by proxy: token t",
             {"config": kube_config(None, {"proxy-url": "http://@PROXY@"})},
             environment={"HTTPS_PROXY": "http://@GUARDED@", "NO_PROXY": "*"}),
)


def kube_plugins() -> Iterator[KubeCase]:
    """Where plugins are found, and what is made of what they print."""
    ok, none = "https: token p", "error: neither a token nor a certificate with its key"
    for what, verdict, status, top, ending in ((*row, *({}, "")[len(row) - 3:]) for row in (
            ("a token", ok, {"token": "p"}),
            ("a certificate", "https: certificate alice", KUBE_PAIR),
            ("a certificate without key", none, {**KUBE_PAIR, "token": "s3cr3t", "clientKeyData": ""}),
            ("a key without certificate", none, {"token": "p", "clientKeyData": "s3cr3t"}),
            ("a pair that is none", "error: not a matching pair",
             {"clientCertificateData": "s3cr3t", "clientKeyData": "s3cr3t"}),
            ("a certificate with another's key", "error: its exec plugin are not a matching pair",
             {**KUBE_PAIR, "clientKeyData": "@TEXT:bob.key@"}),
            ("an empty status", none, {}), ("a null status", none, None), ("an empty token", none, {"token": ""}),
            ("a status that is a text", "error: status must be a mapping", "s3cr3t"),
            ("a token that is a number", "error: plugin @DIR@/own-plugin: token must be a string", {"token": 5}),
            ("a token with a line end", "error: has characters that cannot be sent", {"token": "s3cr3t\n"}),
            ("a certificate that is a number", "error: clientCertificateData must be a string",
             {"token": "s3cr3t", "clientCertificateData": 5}),
            ("an end in the past", ok, {"token": "p", "expirationTimestamp": "2020-01-01T00:00:00Z"}),
            ("an end in words", "error: no time", {"token": "p", "expirationTimestamp": "s3cr3t"}),
            ("an end in seconds", "error: no time", {"token": "p", "expirationTimestamp": 1900000000}),
            ("another version", "error: no ExecCredential of client.authentication.k8s.io/v1", {"token": "s3cr3t"},
             {"apiVersion": "client.authentication.k8s.io/v1beta1"}),
            ("no kind", ok, {"token": "p"}, {"kind": ""}),
            ("another kind", "error: no ExecCredential", {"token": "s3cr3t"}, {"kind": "Secret"}),
            ("an exit code", "error: failed with exit code 3", {"token": "s3cr3t"}, {}, "exit 3"),
            ("a signal", "error: failed with exit code -9", {"token": "s3cr3t"}, {}, "kill -9 $$"))):
        answer = json.dumps({"apiVersion": KUBE_EXEC["apiVersion"], "kind": "ExecCredential", "status": status, **top})
        yield kube_place(f"{what} as answer", verdict, "own-plugin", kube_says(answer) + ending, command="./own-plugin")
    for what, verdict, answer in (
            ("YAML", ok, f"apiVersion: {KUBE_EXEC['apiVersion']}\nkind: ExecCredential\nstatus: {{token: p}}"),
            ("nothing", "error: no ExecCredential", ""), ("rubbish", "error: is not YAML", "[s3cr3t @@ [ {"),
            ("a page", "error: must be a mapping", "<html></html>"), ("a list", "error: must be a mapping", "[]")):
        yield kube_place(f"{what} as answer", verdict, "own-plugin", kube_says(answer), command="./own-plugin")
    yield kube_place("v1beta1", ok, "own-plugin", KUBE_PLUGIN.replace("/v1", "/v1beta1"), command="./own-plugin",
                     apiVersion="client.authentication.k8s.io/v1beta1", interactiveMode=None)
    yield kube_place("a bare name on the PATH", ok, "bin/b-plugin", path="@DIR@/bin:@PATH@", command="b-plugin")
    yield kube_place("the plugin's own PATH", "error: exec plugin b-plugin of the kubeconfig is not installed",
                     "bin/b-plugin", command="b-plugin", env=[{"name": "PATH", "value": "@DIR@/bin"}])
    for what, path in (("beside the file", "@PATH@"), ("by an empty PATH", ""), ("by :", ":@PATH@"),
                       ("by a dot", ".:@PATH@"), ("by a relative PATH", "home/..:@PATH@")):
        yield kube_place(f"a bare name {what}", "error: not installed", "b-plugin", path=path, command="b-plugin")
    yield kube_place("an absolute path", ok, "bin/b-plugin", command="@DIR@/bin/b-plugin")
    yield kube_place("a relative path", ok, "bin/b-plugin", command="bin/../bin/b-plugin")
    yield kube_place("a file that may not be run", "error: not installed", "bin/other", command="bin/other")
    yield kube_place("a folder", "error: not installed", "bin/b-plugin", command="./bin")
    yield kube_place("no interpreter", "error: cannot be run: Exec format", "b-plugin", "rubbish", command="./b-plugin")
    yield kube_place("a variable", "https: token v", "own-plugin", KUBE_PLUGIN.replace('"p"', '"\'$OWN\'"'),
                     command="./own-plugin", env=[{"name": "OWN", "value": "x"}, {"name": "OWN", "value": "v"}])
    yield kube_place("arguments as they are", "https: token a b$x", "own-plugin",
                     KUBE_PLUGIN.replace('"p"', '"\'"$1"\'"'), command="./own-plugin", args=["a b$x"])
    yield kube_place("no terminal to ask on", "error: must ask on a terminal", interactiveMode="Always")
    yield kube_place("a terminal if there is one", ok, interactiveMode="IfAvailable")
    yield kube_place("an end without a zone", ok, "own-plugin", KUBE_PLUGIN.replace(
        '"p"', '"p", "expirationTimestamp": "2199-01-01T00:00:00"'), command="./own-plugin", lenient=True)


def kube_says(answer: str) -> str:
    """A plugin that prints this."""
    return f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n"


def kube_place(what: str, verdict: str, where: str = "plugin", text: str = KUBE_PLUGIN, path: str = "@PATH@",
               lenient: bool = False, **fields: Any) -> KubeCase:
    """A case with a plugin at a place below the folder, and the PATH to look on."""
    return KubeCase(what, verdict, {"config": kube_config({"exec": {**KUBE_EXEC, **fields}}), where: text},
                    environment={"PATH": path}, lenient=lenient)


class KubeTable(KubeFolder):
    """What the tests of a table share."""

    def check(self, cases: Tuple[KubeCase, ...], act: Callable[[KubeCase, str, str], None]) -> None:
        """Do something for each case, its verdict and its kubeconfig flag, while its files and variables are there."""
        self.addCleanup(os.chdir, os.getcwd())
        for number, case in enumerate(cases):
            folder = os.path.join(self.folder, str(number))
            os.makedirs(os.path.join(folder, "home"))
            os.symlink(kube_pki(), os.path.join(folder, "pki"))
            for name, content in {**KUBE_EVERYWHERE, **case.files}.items():
                if content == "utf16":
                    content = kube_fill(yaml.safe_dump(kube_config(), sort_keys=False)).encode("utf-16")
                kube_write(folder, name, content)
            variables = {name: kube_fill(value or "", folder) for name, value in case.environment.items()}
            os.chdir(folder)
            kube_forget()
            with self.subTest(case.what), kube_environment(HOME=os.path.join(folder, "home"), **variables):
                act(case, kube_fill(case.verdict, folder), kube_fill(case.kubeconfig, folder))

    def ours(self, case: KubeCase, verdict: str, path: str) -> None:
        """We call as whom the table says; or there is one sentence with its words, no secret and no call."""
        if not verdict.startswith("error"):
            kube_call(path, case.context)
            self.assertEqual(kube_verdict(False), verdict)
            return
        error = self.fails(velero_requests.Error, lambda: kube_call(path, case.context), verdict[7:])
        self.assertEqual(kube_verdict(True), "error")
        self.assertIn(int(error.exit), (1, 6))
        self.assertNotIn("\n", str(error))

    def theirs(self, case: KubeCase, verdict: str, path: str) -> None:
        """The table is what kubectl does; where it would ask for a name, we go on as nobody."""
        done = subprocess.run([str(KUBECTL), "version", "-o", "json", *(["--kubeconfig", path] if path else []),
                               *(["--context", case.context] if case.context else [])], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, check=False, stderr=subprocess.STDOUT, timeout=20)
        found = "https: nobody" if b"enter Username" in done.stdout else kube_verdict(bool(done.returncode))
        self.assertEqual(found, "error" if case.lenient or verdict.startswith("error") else verdict)


class TestKubeconfigLikeKubectl(KubeTable):
    """Tables of kubeconfigs: kubectl does what they say, and so do we."""

    def test_we_do_what_the_tables_say(self) -> None:
        """Each kubeconfig leads to its server and caller, or to an error."""
        self.check(KUBE_CASES + KUBE_TEXTS + KUBE_FILES + tuple(kube_plugins()), self.ours)

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_reads_fields_so(self) -> None:
        """Fields, their precedence and their types."""
        self.check(KUBE_CASES, self.theirs)

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_reads_texts_and_files_so(self) -> None:
        """YAML, JSON and what is neither; where files are found, and how several are seen as one."""
        self.check(KUBE_TEXTS + KUBE_FILES, self.theirs)

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_runs_plugins_so(self) -> None:
        """Where exec plugins are found, and what is made of their answers."""
        self.check(tuple(kube_plugins()), self.theirs)


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: exec plugins, with a real program
# ------------------------------------------------------------------------------------------------------------

KUBE_STUB = """#!/bin/sh
cd "$(dirname "$0")"
printf '%s' "$KUBERNETES_EXEC_INFO" > info
printf '%s|' "$@" > arguments
env > environment
read -r line; echo $line > stdin
echo run >> runs
test -f code && { echo please log in >&2; echo s3cr3t; exit "$(cat code)"; }
cat answer
"""


class KubePlugins(KubeFolder):
    """Tests with a plugin that notes what it is told, and prints what the test wants."""

    def setUp(self) -> None:
        """Write the program; it answers with a token that lasts."""
        super().setUp()
        self.write(KUBE_STUB, "plugin")
        self.answer(token="p")
        self.addCleanup(kube_servers()["https"].unscript)

    def answer(self, version: str = "v1", **status: Any) -> None:
        """What the program prints from now on."""
        self.write(json.dumps({"apiVersion": f"client.authentication.k8s.io/{version}", "kind": "ExecCredential",
                               "status": status}), "answer")

    def said(self, name: str) -> str:
        """What the program noted."""
        with open(os.path.join(self.folder, name), encoding="utf-8") as file:
            return file.read()

    def config(self, cluster: Any = None, **fields: Any) -> str:
        """A kubeconfig with this plugin."""
        return self.write(kube_config({"exec": {**KUBE_EXEC, **fields}}, cluster))

    def plugged(self) -> Any:
        """A connection by this plugin."""
        return self.connect(kube_config({"exec": KUBE_EXEC}))

    def seen(self) -> List[str]:
        """What the server saw of the callers, in order."""
        calls = kube_servers()["https"].seen()
        return [request.headers.get("authorization") or str(request.user) for request in calls]


def kube_version(api: Any, method: str = "GET") -> Document:
    """One call."""
    return api.call(method, "/version")


def kube_pair(name: str) -> Dict[str, str]:
    """A certificate and its key, as a plugin prints them."""
    return {"clientCertificateData": kube_bytes(f"{name}.crt").decode(),
            "clientKeyData": kube_bytes(f"{name}.key").decode()}


def kube_together(count: int, act: Callable[[], Any]) -> None:
    """Do something in so many threads at once, and raise what one of them raised."""
    barrier = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(lambda: (barrier.wait(10), act())) for _ in range(count)]:
            future.result(30)


def kube_program(path: str, stdin: Any = b"", seconds: float = 30, memory: str = "unlimited") -> Any:
    """Run the program with a kubeconfig, and at most so much memory -> the finished process with its output."""
    feed = {"stdin": stdin} if isinstance(stdin, int) else {"input": stdin}
    with kube_environment(HOME="/nonexistent"):
        return subprocess.run(
            ["/bin/sh", "-c", f'ulimit -v {memory}; exec "$@"', "sh", sys.executable, str(velero_requests.__file__),
             "-n", "v", "--kubeconfig", path, "backup", "logs", "b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            check=False, timeout=seconds, **feed)


class TestExecPluginIsTold(KubePlugins):
    """What a plugin is told: KUBERNETES_EXEC_INFO, environment, arguments, stdin."""

    EXEC = "client.authentication.k8s.io/exec"
    OTHER = {"name": "other", "extension": {"a": 1}}
    EXTENSION = {"port": 8443, "float": 1.5, "text": "x", "on": True, "none": None, "list": [1, "2"],
                 "big": 12345678901}
    CLUSTERS: Tuple[Tuple[Document, Document], ...] = (  # fields of a cluster, and what is told beyond server and CA
        ({}, {}),
        ({**KUBE_NO_CA, "certificate-authority": "@PKI@/ca.crt"}, {}),
        ({"server": "https://@HTTPS@/k8s/"}, {"server": "https://@HTTPS@/k8s/"}),
        ({**KUBE_NO_CA, "insecure-skip-tls-verify": True},
         {"insecure-skip-tls-verify": True, "certificate-authority-data": None}),
        ({**KUBE_NAMED, "tls-server-name": "a.example.com"}, {**KUBE_NAMED, "tls-server-name": "a.example.com"}),
        ({"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}, {"proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}),
        ({"disable-compression": True}, {"disable-compression": True}),
        ({"extensions": [OTHER, {"name": EXEC, "extension": EXTENSION}]}, {"config": EXTENSION}),
        ({"extensions": [{"name": EXEC, "extension": "x"}]}, {"config": "x"}),
        ({"extensions": [{"name": EXEC}, OTHER]}, {}))

    def check(self, call: Callable[[str], Any]) -> None:
        """A plugin hears of the cluster when it asked to, by whoever runs it."""
        for cluster, more in self.CLUSTERS:
            info = {"server": "https://@HTTPS@", "certificate-authority-data": "@CA@", **more}
            wanted = {"config": None, **{name: value for name, value in info.items() if value is not None}}
            for version, fields, spec in (
                    ("v1", {"provideClusterInfo": True}, {"interactive": False, "cluster": wanted}),
                    ("v1beta1", {"interactiveMode": None}, {"interactive": False})):
                with self.subTest(cluster, version=version):
                    self.answer(version, token="p")
                    call(self.config(cluster, apiVersion=f"client.authentication.k8s.io/{version}", **fields))
                    self.assertEqual(json.loads(self.said("info")), json.loads(kube_fill(json.dumps({
                        "apiVersion": f"client.authentication.k8s.io/{version}", "kind": "ExecCredential",
                        "spec": spec}))))

    def test_by_us(self) -> None:
        self.check(kube_call)

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_by_kubectl(self) -> None:
        self.check(lambda path: subprocess.run(
            [str(KUBECTL), "--kubeconfig", path, "version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=True, timeout=20))

    def test_arguments_and_environment(self) -> None:
        """Arguments go through no shell; listed variables beat our own, KUBERNETES_EXEC_INFO beats all."""
        with kube_environment(KUBE_OURS="ours", KUBE_BOTH="ours"):
            kube_call(self.config(args=["$HOME", "a b", "*"], env=[
                {"name": "KUBE_BOTH", "value": "x"}, {"name": "KUBE_BOTH", "value": "theirs"},
                {"name": "KUBE_EMPTY"}, {"name": "KUBERNETES_EXEC_INFO", "value": "no"}]))
        self.assertEqual(self.said("arguments"), "$HOME|a b|*|")
        self.assertLessEqual({"KUBE_OURS=ours", "KUBE_BOTH=theirs", "KUBE_EMPTY="},
                             set(self.said("environment").split("\n")))
        self.assertEqual(json.loads(self.said("info"))["kind"], "ExecCredential")

    def test_stdin_and_stderr(self) -> None:
        """A plugin reads our terminal when its mode allows it, nothing else; what it says on stderr is seen."""
        self.write("3", "code")
        for mode, terminal, line in (("Always", True, "typed"), ("IfAvailable", True, "typed"), ("Never", True, ""),
                                     ("IfAvailable", False, "")):
            with self.subTest(mode, terminal=terminal):
                ours, theirs = os.openpty() if terminal else os.pipe()
                os.write(ours if terminal else theirs, b"typed\n")
                try:
                    done = kube_program(self.config(interactiveMode=mode), stdin=theirs if terminal else ours)
                finally:
                    os.close(ours)
                    os.close(theirs)
                self.assertEqual(self.said("stdin").strip(), line)
                self.assertIs(json.loads(self.said("info"))["spec"]["interactive"], bool(line))
                self.assertEqual((done.returncode, done.stdout), (1, b""))
                self.assertIn(b"please log in\n", done.stderr)
                self.assertNotIn(b"s3cr3t", done.stderr)


class TestExecPluginLife(KubePlugins):
    """How long an answer is used, who runs the plugin, and what follows from refusals and failures."""

    def test_how_long_the_answer_is_kept(self) -> None:
        """An answer that ends in more than 30 s, or never, is used again; another is asked for anew."""
        for seconds, runs in ((None, 1), (45, 1), (20, 2), (-60, 2)):
            with self.subTest(seconds=seconds):
                self.write("", "runs")
                end = datetime.now(timezone.utc) + timedelta(seconds=seconds or 0)
                self.answer(token="p", **({} if seconds is None else {"expirationTimestamp": vr.format_time(end)}))
                api = self.plugged()
                kube_version(api)
                kube_version(api)
                self.assertEqual(self.said("runs").count("run"), runs)

    def test_one_run_at_a_time(self) -> None:
        """Eight threads that call at once share one run, also after they were refused one after the other."""
        api = self.plugged()
        kube_together(8, lambda: kube_version(api))
        old = api.session.identity
        self.assertEqual((self.said("runs").count("run"), self.seen()), (1, ["Bearer p"] * 8))
        self.answer(token="q")
        kube_servers()["https"].script(status=401, times=1)
        kube_together(8, lambda: kube_version(api))
        self.assertTrue(api.session.invalidate(old))  # what came late about an identity that is no longer used
        kube_version(api)
        self.assertEqual((self.said("runs").count("run"), self.seen()[-1]), (2, "Bearer q"))

    def test_certificates_and_connections(self) -> None:
        """Another certificate, or none, comes with a new connection; the same one stays on the old."""
        for what, two, last, connections in (("another", kube_pair("bob"), "bob", 2),
                                             ("none", {"token": "p"}, "Bearer p", 2),
                                             ("the same", kube_pair("alice"), "alice", 1)):
            with self.subTest(what):
                kube_forget()
                self.answer(**kube_pair("alice"))
                api = self.plugged()
                kube_version(api)
                kube_version(api)
                self.answer(**two)
                api.session.invalidate(api.session.identity)
                kube_version(api)
                self.assertEqual(self.seen(), ["alice", "alice", last])
                used = [request.parsed["connection"] for request in kube_servers()["https"].seen()]
                self.assertEqual((used[0] == used[1], len(set(used))), (True, connections))

    def test_no_call_while_it_fails(self) -> None:
        """A plugin that fails, at first or later, leaves no way to go on, however often; it heals by itself."""
        for what, worked, name, content in (
                ("at once", False, "code", "3"), ("later", True, "code", "3"),
                ("Latin-1", False, "answer", b"s3cr3t \xe9"), ("big", False, "answer", b"s3cr3t" * (2 << 20)),
                ("deep", False, "answer", "[" * 100000), ("a tab", False, "answer", "status:\n\ttoken: s3cr3t"),
                ("a broken pair", True, "answer", json.dumps({**json.loads(self.said("answer")), "status": {
                    **kube_pair("bob"), "clientKeyData": kube_bytes("alice.key").decode()}}))):
            with self.subTest(what):
                self.answer(token="p")
                api = self.plugged()
                if worked:
                    kube_version(api)
                    api.session.invalidate(api.session.identity)
                self.write(content, name)
                kube_forget()
                for _ in range(2):
                    self.fails(vr.ConfigError, lambda api=api: kube_version(api), "plugin")
                self.assertEqual(self.seen(), [])
                os.remove(os.path.join(self.folder, name))
                self.answer(token="p")
                kube_version(api)
                self.assertEqual(self.seen(), ["Bearer p"])

    def test_odd_names(self) -> None:
        """A program that is not there shows the install hint, made harmless; odd arguments are an error."""
        hint = "get it\x1b[31m at\x07 https://x\r\n\x1b]0;title\x07 or\u202e \x9b2J elsewhere"
        for fields, words in (
                ({"command": "kube-plugin-of-nobody", "installHint": hint}, "nobody of the kubeconfig is not"),
                ({"args": ["a\0b"]}, "exec plugin"), ({"env": [{"name": "A=B", "value": "x"}]}, "exec plugin"),
                ({"command": "a\0b"}, "exec plugin"), ({"command": "./a\0b"}, "exec plugin")):
            with self.subTest(fields):
                path = self.write(json.dumps(kube_config({"exec": {**KUBE_EXEC, **fields}})))
                error = self.fails(vr.ConfigError, lambda path=path: kube_call(path), words)
                self.assertTrue("".join(error.hints).isprintable(), ascii(error.hints))
                self.assertEqual("installHint" in fields, "elsewhere" in "".join(error.hints))


class TestKubeSession(KubePlugins):
    """What is read again from files while connections are open; the test turns the clock."""

    def files(self, name: str) -> None:
        """Put somebody's certificate and key where the kubeconfig says."""
        for end in ("crt", "key"):
            self.write(kube_bytes(f"{name}.{end}"), f"own.{end}")

    def test_certificate_files(self) -> None:
        """Another pair comes with new connections; one that cannot be used leaves the old in use, with a warning."""
        self.files("alice")
        self.write(kube_bytes("ca.crt"), "own-ca")
        api = self.connect(kube_config({"client-certificate": "own.crt", "client-key": "own.key"},
                                       {**KUBE_NO_CA, "certificate-authority": "own-ca"}))
        for what, change, caller, warned in (
                ("nothing new", lambda: None, "alice", False), ("a new pair", lambda: self.files("bob"), "bob", False),
                ("a foreign key", lambda: self.write(kube_bytes("alice.key"), "own.key"), "bob", True),
                ("no key", lambda: os.remove(os.path.join(self.folder, "own.key")), "bob", True),
                ("an empty authority", lambda: (self.files("bob"), self.write("no PEM", "own-ca")), "bob", True),
                ("healed", lambda: (self.files("alice"), self.write(kube_bytes("ca.crt"), "own-ca")), "alice", False)):
            with self.subTest(what):
                change()
                api.session.until = time.monotonic()
                with self.assertLogs("velero_requests") as logs:
                    velero_requests.log.warning("first")
                    kube_version(api)
                self.assertEqual((self.seen()[-1], len(logs.output) == 2), (caller, warned), logs.output)
                self.assertAlmostEqual(api.session.until - time.monotonic(), 300, delta=5)

    def test_after_a_refusal(self) -> None:
        """After a 401 files are read again at once; what stands in the kubeconfig is no better then."""
        self.files("alice")
        for user, callers in (({"client-certificate": "own.crt", "client-key": "own.key"}, ["alice", "None", "bob"]),
                              (KUBE_CERT, ["alice", "None"]), ({"token": "t"}, ["Bearer t", "Bearer t"]),
                              ({"tokenFile": "token"}, ["Bearer f", "Bearer f", "Bearer g"]),
                              ({"exec": KUBE_EXEC}, ["Bearer p", "Bearer p", "Bearer q"])):
            with self.subTest(user):
                self.write("f\n", "token")
                self.answer(token="p")
                kube_forget()
                api = self.connect(kube_config(user))
                kube_version(api)
                self.files("bob")
                self.write("g", "token")
                self.answer(token="q")
                kube_servers()["https"].script(status=401, times=1)
                if len(callers) == 2:
                    self.fails(vr.ApiError, lambda api=api: kube_version(api), "log in again")
                else:
                    kube_version(api)
                self.assertEqual(self.seen(), callers)  # a scripted answer does not look at certificates

    def test_a_token_file_lives_for_50_seconds(self) -> None:
        """A token is used for so long; then the file counts, whatever happened to certificate files meanwhile."""
        self.write("f", "token")
        self.write(kube_bytes("ca.crt"), "own-ca")
        api = self.connect(kube_config({"tokenFile": "token"}, {**KUBE_NO_CA, "certificate-authority": "own-ca"}))
        kube_version(api)
        self.write("g", "token")
        kube_version(api)
        self.assertAlmostEqual(api.session.until - time.monotonic(), 50, delta=5)
        os.remove(os.path.join(self.folder, "own-ca"))
        api.session.until = time.monotonic()
        kube_version(api)
        self.assertEqual(self.seen(), ["Bearer f", "Bearer f", "Bearer g"])


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: proxies
# ------------------------------------------------------------------------------------------------------------

KUBE_K8S = "https://k8s.example:6443"


def kube_no_proxy(proxied: bool, url: str, *texts: str) -> Tuple[Tuple[str, Dict[str, str], bool], ...]:
    """Rows for some NO_PROXY and a URL."""
    return tuple((url, {"HTTPS_PROXY": "http://@P@", "NO_PROXY": text}, proxied) for text in texts)


# A URL, the environment (@P@ is the proxy), and whether kubectl goes through the proxy. The addresses are multicast
# ones, so that kubectl sends nothing when it goes straight to them. kubectl is asked about the first rows.
KUBE_PROXY_ROWS: Tuple[Tuple[str, Dict[str, str], bool], ...] = (
    (KUBE_K8S, {"https_proxy": "@P@"}, True),
    (KUBE_K8S, {"HTTPS_PROXY": "http://@P@", "https_proxy": "http://127.0.0.1:1"}, True),
    (KUBE_K8S, {"HTTPS_PROXY": "", "https_proxy": "http://@P@"}, True),
    (KUBE_K8S, {"HTTP_PROXY": "http://@P@", "ALL_PROXY": "http://@P@"}, False),
    ("http://k8s.example:6443", {"HTTP_PROXY": "http://@P@"}, True),
    ("https://127.9.9.9:1", {"HTTPS_PROXY": "http://@P@"}, False),
    ("https://kube.localhost:1", {"HTTPS_PROXY": "http://@P@"}, True),
    (KUBE_K8S, {"HTTPS_PROXY": "http://@P@", "NO_PROXY": "x", "no_proxy": "k8s.example"}, True),
    (KUBE_K8S, {"HTTPS_PROXY": "http://@P@", "NO_PROXY": "", "no_proxy": "k8s.example"}, False),
    *kube_no_proxy(False, KUBE_K8S, " * ", ".example", "*.example", "K8S.Example:6443", "x, k8s.example ,y"),
    *kube_no_proxy(True, KUBE_K8S, ".k8s.example", "k8s.example:443", "x k8s.example", "ample", "*:6443"),
    *kube_no_proxy(False, "https://224.1.2.3:6443", "224.1.2.3/8", "224.1.2.3:6443"),
    *kube_no_proxy(True, "https://224.1.2.3:6443", "224.1.2.3:443", ".2.3", "224.*"),
    *kube_no_proxy(False, "https://[ff0e::1]:6443", "[ff0e::1]:6443", "FF0E:0::1"),
    *kube_no_proxy(True, "https://[ff0e::1]:6443", "[ff0e::1]", "ff0e::1:6443"))
KUBE_MORE_PROXY_ROWS = (
    (KUBE_K8S, {}, False), (KUBE_K8S, {"HTTPS_PROXY": "http://@P@"}, True),
    (KUBE_K8S, {"https_proxy": "http://@P@"}, True), ("http://k8s.example:6443", {"http_proxy": "@P@"}, True),
    ("http://k8s.example:6443", {"HTTPS_PROXY": "http://@P@"}, False),
    ("http://k8s.example", {"HTTP_PROXY": "http://@P@", "NO_PROXY": "k8s.example:80"}, False),
    *((url, {"HTTPS_PROXY": "http://@P@"}, "//[f" in url or "//224" in url) for url in (
        "https://localhost:1", "https://[::1]:1", "https://224.1.2.3:6443", "https://[ff0e::1]:6443")),
    (KUBE_K8S, {"HTTPS_PROXY": "http://@P@", "no_proxy": "k8s.example"}, False),
    *kube_no_proxy(False, KUBE_K8S, "*", "x,*", "k8s.example", "example", "k8s.example:6443", ".example:6443",
                   ",,k8s.example", "example,224.0.0.0/8"),
    *kube_no_proxy(True, KUBE_K8S, "", ",", "*.k8s.example", "8s.example", "a.k8s.example", "*example", "*.*",
                   "https://k8s.example", "k8s.example/", "224.0.0.0/8", "0.0.0.0/0", "k8s.*",
                   "k8s.example:*", ":6443"),
    *kube_no_proxy(False, "https://224.1.2.3:6443", "224.1.2.3", "224.0.0.0/8", "224.1.2.3/32", "0.0.0.0/0"),
    *kube_no_proxy(True, "https://224.1.2.3:6443", "224.1.2.4", "1.2.3", "3", "224.0.0.0/33", "225.0.0.0/8", "224.",
                   "::/0", "224.0.0.0/8:6443"),
    *kube_no_proxy(False, "https://[ff0e::1]:6443", "ff0e::1", "ff00::/8", "::/0"),
    *kube_no_proxy(True, "https://[ff0e::1]:6443", "ff0e::2", "fe00::/8", "[ff0e::1]:443", "0.0.0.0/0"),
    *kube_no_proxy(False, "https://k8s.example", "k8s.example:443", "k8s.example"),
    *kube_no_proxy(False, "https://K8S.Example:6443", "k8s.example", ".example"))


class TestProxyOfTheEnvironment(KubeFolder):
    """Which URLs go through the proxy that the environment names, as Go decides it."""

    def test_the_tables(self) -> None:
        for url, variables, proxied in KUBE_PROXY_ROWS + KUBE_MORE_PROXY_ROWS:
            with self.subTest(url, **variables):
                filled = {name: value.replace("@P@", "proxy:3128") for name, value in variables.items()}
                self.assertEqual(vr.proxy_for(url, filled), "http://proxy:3128" if proxied else "")

    def went(self, number: int) -> bool:
        """Whether kubectl asks a proxy for the URL of a row."""
        url, variables, _ = KUBE_PROXY_ROWS[number]
        proxy = KubeProxy()
        path = self.write({**kube_config(None, {"server": url, **KUBE_NO_CA, "insecure-skip-tls-verify": True})},
                          f"config-{number}")
        own = {**{name: value for name, value in os.environ.items() if name not in KUBE_ABSENT}, "HOME": self.home,
               **{name: value.replace("@P@", proxy.host) for name, value in variables.items()}}
        try:
            subprocess.run([str(KUBECTL), "--kubeconfig", path, "get", "--raw", "/", "--request-timeout", "300ms"],
                           env=own, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           check=False, timeout=20)
            return bool(proxy.seen())
        finally:
            proxy.close()

    @unittest.skipUnless(KUBECTL, NO_KUBECTL)
    def test_kubectl_does_what_the_table_says(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(self.went, range(len(KUBE_PROXY_ROWS))))
        for (url, variables, proxied), went in zip(KUBE_PROXY_ROWS, found):
            with self.subTest(url, **variables):
                self.assertEqual(went, proxied)

    def test_proxies(self) -> None:
        """A scheme may be in capitals or missing; what we cannot use is an error without the password in it."""
        for proxy, expected in (("", ""), ("HTTP://h:1", "HTTP://h:1"),
                                ("https://me:p%40ss@h:1/", "https://me:p%40ss@h:1/"), ("h:3128", "http://h:3128"),
                                ("[::1]:3128", "http://[::1]:3128"),
                                ("me:x@h:1", "http://me:x@h:1")):
            with self.subTest(proxy):
                self.assertEqual(vr.proxy_for("https://k8s", {"HTTPS_PROXY": proxy}), expected)
        for proxy in ("socks5://me:s3cr3t@h:1", "SOCKS4://h", "ftp://me:s3cr3t@h", "http://", "http://h:x",
                      "http://me:s3cr3t@h:99999", "http://me:s3cr3t@[::1"):
            with self.subTest(proxy):
                error = self.fails(vr.ConfigError, lambda proxy=proxy: vr.proxy_for(
                    "https://k8s", {"HTTPS_PROXY": proxy}), "HTTPS_PROXY")
                self.assertEqual(bool(error.hints), "socks" in proxy.lower())


class TestProxyOnTheWire(KubeFolder):
    """Calls to cluster and store through real proxies on loopback."""

    GUARDED = "http://me:p%40ss%3Aw@@GUARDED@"

    def test_store(self) -> None:
        """A store is reached through the same proxies: tunnelled for https, by its whole URL for http."""
        secure = f"https://a.example.com:{kube_servers()['named'].port}/b/k?s=1"
        plain = "http://a.example.com:81/b/k?s=1"
        for proxy, server, url, variable in (
                ("proxy", "http://@PROXY@", secure, "HTTPS_PROXY"), ("proxy", "http://@PROXY@", plain, "HTTP_PROXY"),
                ("guarded", self.GUARDED, secure, "HTTPS_PROXY"), ("guarded", self.GUARDED, plain, "HTTP_PROXY"),
                ("secure", "https://@SECURE@", secure, "HTTPS_PROXY")):
            kube_forget()
            with self.subTest(proxy, url=url), kube_environment(**{variable: kube_fill(server)}):
                with vr.open_url(url, vr.Trust(kube_bytes("ca.crt"))) as response:
                    self.assertIn(b"gitVersion", b"".join(vr.read_body(response)))
                self.assertEqual([(asked.method, asked.target) for asked in kube_servers()[proxy].seen()],
                                 [("GET", url) if url == plain else ("CONNECT", urlsplit(url).netloc)])
        with kube_environment(HTTPS_PROXY=kube_fill("https://@SECURE@")):
            self.fails(vr.Unreachable, vr.open_url(secure).__enter__, "certificate")

    def test_the_proxy_hears_nothing(self) -> None:
        """A proxy sees neither token nor, for https, impersonation; the cluster does not see the proxy's password."""
        for server, target in ((KUBE_BY_NAME["server"], "a.example.com:@NAMEDPORT@"),
                               ("http://a.example.com:81/k8s", "http://a.example.com:81/k8s/version")):
            kube_forget()
            kube_call(self.write(kube_config({"token": "t", "as": "j"}, {"server": server, "proxy-url": self.GUARDED})))
            asked = kube_servers()["guarded"].seen()[0]
            self.assertEqual(asked.target, kube_fill(target))
            self.assertEqual("impersonate-user" in asked.headers, server.startswith("http:"))
            self.assertNotIn("authorization", asked.headers)
            for request in kube_servers()["named"].seen():
                self.assertNotIn("proxy-authorization", request.headers)

    def test_the_password_is_never_shown(self) -> None:
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
                self.assertEqual((done.code, done.out), (code, b""), done.err)
                self.assertIn(words, done.err)
                for secret in ("s3cr3t", base64.b64encode(b"me:s3cr3t").decode(), "bug"):
                    self.assertNotIn(secret, done.err)


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: what TLS errors say
# ------------------------------------------------------------------------------------------------------------

class TestTlsErrors(KubeFolder):
    """What is said when TLS with cluster or store fails: what is wrong, with the names to see it."""

    SHOWN = ("(it is for localhost, *.localhost, 127.0.0.1; subject commonName=loopback; issuer "
             "commonName=test-ca; valid until ")

    def unreachable(self, cluster: Document, *words: str) -> str:
        """A call to a cluster is Unreachable, with these words, and nothing is sent."""
        path = self.write(kube_config(None, cluster))
        error = self.fails(vr.Unreachable, lambda: kube_call(path), *words)
        self.assertEqual((int(error.exit), kube_verdict(True)), (6, "error"))
        return str(error)

    def test_what_is_said(self) -> None:
        """A certificate that is not trusted is shown with names, subject, issuer and end, through proxies too."""
        for cluster, *words in (
                ({"server": "https://@EXPIRED@"}, "expired", "valid until",
                 str((datetime.now(timezone.utc) - timedelta(days=1)).year)),
                (KUBE_NO_CA, self.SHOWN, "certificate-authority"),
                ({"certificate-authority-data": "@CERT@"}, self.SHOWN),
                ({**KUBE_NO_CA, "proxy-url": "http://me:p%40ss%3Aw@@GUARDED@"}, self.SHOWN),
                ({**KUBE_NO_CA, **KUBE_BY_NAME, "proxy-url": "http://@PROXY@"}, "subject commonName=named"),
                (KUBE_NAMED, "kubernetes.default.svc", "*.example.com", "127.0.0.1"),
                ({"tls-server-name": "b.a.example.com"}, "b.a.example.com", self.SHOWN),
                ({"server": f"https://127.0.0.1:{self.greeter(b'HTTP/1.1 400 Bad Request')}"}, "does not speak TLS"),
                ({"server": f"https://127.0.0.1:{self.greeter(b'SSH-2.0-OpenSSH_9.6')}"}, "does not speak TLS"),
                ({"server": f"https://127.0.0.1:{self.greeter(b'')}"}, "127.0.0.1"),
                ({"server": f"https://127.0.0.1:{free_port()}"}, "cannot reach the cluster", "Connection refused")):
            with self.subTest(cluster):
                self.assertLess(len(self.unreachable(cluster, *words)), 600)

    def test_the_second_look_asks_for_the_same_name(self) -> None:
        """A server that has a certificate for each name is looked at by tls-server-name; nothing is sent to it."""
        server = KubeServer("tls")
        self.addCleanup(server.close)
        names: List[Optional[str]] = []
        server._own.sni_callback = lambda secured, name, _: names.append(name)  # pylint: disable=protected-access
        self.unreachable({**KUBE_NO_CA, "server": server.url, "tls-server-name": "x.y"}, "commonName=loopback")
        self.assertEqual((names, server.seen()), (["x.y"] * 3, []))

    def greeter(self, greeting: bytes) -> int:
        """The port of a server that says one thing to everybody and hangs up."""
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted, _ = listener.accept()
                    with accepted, contextlib.suppress(ConnectionResetError):
                        accepted.recv(5)  # so that the greeting is not the first to come
                        accepted.sendall(greeting + b"\r\n\r\n" * bool(greeting))
                        accepted.shutdown(socket.SHUT_WR)
                        while accepted.recv(4096):
                            pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        for cleanup in ((thread.join, 5), (listener.close,), (listener.shutdown, socket.SHUT_RDWR)):
            self.addCleanup(*cleanup)
        return int(listener.getsockname()[1])

    def test_a_client_certificate_is_missing(self) -> None:
        """A server that insists on a client certificate is Unreachable without one, and answers with one."""
        server = KubeServer("tls", demand=True)
        self.addCleanup(server.close)
        self.unreachable({"server": server.url}, server.host)
        self.assertIn("gitVersion", kube_call(self.write(kube_config(KUBE_CERT, {"server": server.url}))))

    def test_the_system_counts_only_without_an_authority(self) -> None:
        """SSL_CERT_FILE is trusted when the kubeconfig names no authority, and not when it names another."""
        with kube_environment(SSL_CERT_FILE=os.path.join(kube_pki(), "ca.crt")):
            self.assertIn("gitVersion", kube_call(self.write(kube_config(None, KUBE_NO_CA))))
            kube_forget()
            self.unreachable({"certificate-authority-data": "@CERT@"})

    def test_old_authorities(self) -> None:
        """An authority without key identifiers, as old clusters have, is accepted by every Python."""
        made = [os.path.join(self.folder, name)
                for name in ("ca.crt", "ca.key", "tls.crt", "tls.key", "tls.csr", "ext")]
        with open(made[5], "w", encoding="ascii") as file:
            file.write("[old]\nbasicConstraints=CA:TRUE\n[san]\nsubjectAltName=IP:127.0.0.1\n[req]\n"
                       "distinguished_name=name\n[name]\n")
        run_openssl("req", "-x509", *KUBE_NEW_KEY, "-keyout", made[1], "-out", made[0], "-days", "30", "-subj",
                    "/CN=old", "-config", made[5], "-extensions", "old")
        run_openssl("req", *KUBE_NEW_KEY, "-keyout", made[3], "-out", made[4], "-subj", "/CN=x")
        run_openssl("x509", "-req", "-in", made[4], "-CA", made[0], "-CAkey", made[1], "-CAcreateserial", "-days",
                    "30", "-out", made[2], "-extfile", made[5], "-extensions", "san")
        cluster = FakeCluster(tls=True, certificate=Certificate(made[0], made[2], made[3]))
        self.addCleanup(cluster.close)
        api = velero_requests.connect(velero_requests.load_cluster(cluster.kubeconfig(self.folder)))
        self.assertEqual([], next(api.list_pages(velero_requests.SECRETS, "velero"))["items"])

    def test_store(self) -> None:
        """A store's certificate is explained the same way; with its authority or insecure it is accepted."""
        own = vr.Trust(kube_bytes("ca.crt"))
        for name, trust, words in (
                ("expired", own, ("expired", "valid until")), ("named", own, ("*.example.com",)),
                ("nameless", own, ("localhost",)), ("https", vr.Trust(), ("test-ca", "--cacert"))):
            with self.subTest(name):
                self.fails(vr.Unreachable, vr.open_url(
                    kube_servers()[name].url + "/k?X-Amz-Signature=s3cr3t", trust).__enter__, *words)
        for trust in (vr.Trust(insecure=True), own):
            with vr.open_url(kube_servers()["https"].url + "/k", trust) as answer:
                self.assertEqual(answer.status, 200)

    @unittest.skipUnless(hasattr(os, "memfd_create"), "no anonymous files here, so keys pass through one on disk")
    def test_keys_are_never_on_disk(self) -> None:
        """A call with an inline key opens no file for writing, and leaves no descriptor, also when it is no key."""
        opened: List[Any] = []
        watching = [True]

        def hook(event: str, arguments: Any) -> None:
            if watching and event == "open" and isinstance(arguments[0], str) and (
                    set(arguments[1] or "") & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                opened.append(arguments[0])

        path, before = self.write(kube_config(KUBE_CERT)), len(os.listdir("/proc/self/fd"))
        sys.addaudithook(hook)
        try:
            kube_call(path)
        finally:
            watching.clear()
        self.assertEqual((opened, kube_servers()["https"].seen()[0].user), ([], "alice"))
        for key in ("@BOBKEY@", "QUJD"):
            self.fails(vr.ConfigError, lambda key=key: self.connect(
                kube_config({**KUBE_CERT, "client-key-data": key})), "not a matching pair")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_an_encrypted_key(self) -> None:
        """A key behind a passphrase is an error, and nobody is asked for it."""
        path = os.path.join(self.folder, "locked.key")
        run_openssl("ec", "-in", os.path.join(kube_pki(), "alice.key"), "-aes256", "-passout", "pass:x", "-out", path)
        self.fails(vr.ConfigError, lambda: self.connect(kube_config(
            {"client-certificate-data": "@CERT@", "client-key": path})), "encrypted")


# ------------------------------------------------------------------------------------------------------------
# Kubeconfig: bad input
# ------------------------------------------------------------------------------------------------------------

KUBE_EXTENSION = """extensions:
    - name: client.authentication.k8s.io/exec
      extension: {}
    certificate-authority-data"""


def kube_bombs() -> Iterator[Tuple[str, str]]:
    """Kubeconfigs that grow into millions of entries, or have no end."""
    good = yaml.safe_dump(kube_config(), sort_keys=False)
    doubling = "x0: &x0 [a, a]\n" + "".join(f"x{n}: &x{n} [*x{n - 1}, *x{n - 1}]\n" for n in range(1, 40))
    yield "lists", doubling + good
    yield "merge keys", "m0: &m0 {a: b}\n" + "".join(
        f"m{n}: &m{n}\n  <<: [*m{n - 1}, *m{n - 1}]\n  k{n}: v\n" for n in range(1, 40)) + good
    yield "extra values", "values: &values [" + "a, " * 90_000 + "a]\n" + good.replace(
        "token: t", "token: t\n    as: j\n    as-user-extra:\n" + "".join(
            f"      k{n}: *values\n" for n in range(20_000)))
    yield "merged wide maps", "w: &w {" + ", ".join(f"k{n}: 1" for n in range(9_000)) + "}\n" + "".join(
        f"v{n}: {{<<: *w}}\n" for n in range(5_000)) + good
    for what, text in (("dashes", "- " * 100_000), ("brackets", "[" * 100_000), ("JSON", '{"a":' * 100_000),
                       ("closed", "{\"a\": " + "[" * 100_000 + "]" * 100_000 + "}"),
                       ("big", "- s3cr3t\n" * (1 << 20)), ("long", "\0" * (9 << 20))):
        yield what, text


class TestKubeconfigBadInput(KubeFolder):
    """What is no kubeconfig: one sentence with the file, the line where YAML gives one, exit 1, at once."""

    def test_bombs(self) -> None:
        """What grows, nests or goes on without end is an error of one line, soon and within two gigabytes."""
        for what, text in kube_bombs():
            with self.subTest(what):
                path = self.write(text)
                done = kube_program(path, seconds=10, memory="2000000")
                self.assertEqual((done.returncode, done.stdout), (1, b""), done.stderr[-400:])
                self.assertRegex(done.stderr.decode(), rf"\Aerror: [^\n]*{re.escape(path)}[^\n]*\n(hint: [^\n]*\n)*\Z")
                self.assertNotIn(b"s3cr3t", done.stderr)
                self.assertLess(len(done.stderr), 1500)

    def test_documents(self) -> None:
        """What is no kubeconfig; where YAML knows the line it is named, and what stands there is not quoted."""
        for content, words in (
                ("- s3cr3t\n", "must be a mapping"), ("5", "must be a mapping"), ("s3cr3t", "must be a mapping"),
                ("", "current-context"), ("null", "current-context"), ("users: s3cr3t", "current-context"),
                ("<!DOCTYPE html>\n<html><body>s3cr3t</body></html>", ""), (b"\0\0\0\0", ""),
                (b"\x1f\x8b\x08\0s3cr3t\xff", "UTF-8"), ("users:\n- name: c\n  user:\n\ttoken: s3cr3t\n", "line 4"),
                ("a: b\nusers:\n- token: \"s3cr3t\n", "line 4"), ("a: b\ns3cr3t s3cr3t\nc: d\n", "line 3"),
                ("a: b\ntoken: s3cr3t: x\n", "line 2"), ("a: b\n\ntoken: *s3cr3t\n", "line 3"),
                ("clusters: &a [*a]\n", "no current-context"), ("a: &a\n  <<: *a\n", "no current-context"),
                (json.dumps(kube_config(current_context="\x1b]0;x\x07\u202ec")), "has no context")):
            with self.subTest(content):
                path = self.write(content)
                error = self.fails(vr.ConfigError, lambda path=path: vr.load_cluster(path), path, words)
                self.assertTrue(str(error).isprintable(), ascii(error))

    def test_an_extension_that_holds_itself(self) -> None:
        plugin = json.dumps({**KUBE_EXEC, "command": "true", "provideClusterInfo": True})
        path = self.write(yaml.safe_dump(kube_config(), sort_keys=False).replace("token: t", f"exec: {plugin}").replace(
            "certificate-authority-data", KUBE_EXTENSION.format("&a [*a]")))
        self.fails(vr.ConfigError, lambda: kube_call(path), "cannot be written as JSON")

    def test_a_list_of_files_that_are_not_there(self) -> None:
        """A KUBECONFIG without a file that exists is warned of, but not when a flag names another."""
        with kube_environment(KUBECONFIG="/gone/a:/gone/b", HOME=self.home):
            with self.assertLogs("velero_requests", "WARNING") as logs:
                self.fails(vr.ConfigError, vr.load_cluster, "no kubeconfig found")
                self.fails(vr.ConfigError, lambda: vr.load_cluster("/gone/c"), "/gone/c")
        self.assertEqual([line.partition("exists: ")[2] for line in logs.output], ["/gone/a:/gone/b"])

    def test_a_pipe_that_takes_its_time(self) -> None:
        """A pipe, as `<(slow command)` makes it, is read to its end, however many pieces come."""
        with open(self.write(kube_config()), "rb") as file:
            content = file.read()
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        with ThreadPoolExecutor(1) as pool:
            loaded = pool.submit(vr.load_cluster, f"/dev/fd/{reader}")
            with open(writer, "wb", buffering=0) as pipe:
                for piece in (content[:20], content[20:]):
                    pipe.write(piece)
                    wait_until(lambda: not select.select([reader], [], [], 0)[0], what="the piece to be read")
            self.assertEqual(loaded.result(10).token, "t")


class TestKubeconfigParseYaml(unittest.TestCase):
    """Tests for `parse_yaml`."""

    def test_scalars(self) -> None:
        """Scalars have their types, but dates stay text."""
        for text, value in (
                *((text, text) for text in ("2026-11-22", "2026-11-22T10:00:00Z", "=", "1.2.3", "0x", "tRUE", "nil",
                                            "1,5", "yes!", "+", "e3", "_1", "~x", "nULL")),
                ("'1'", "1"), ('"true"', "true"), ("!!str 1", "1"), ("yes", True), ("ON", True), ("true", True),
                ("No", False), ("off", False), ("False", False), ("8443", 8443), ("-1", -1), ("1.5", 1.5), ("0x1F", 31),
                ("1_000", 1000), ("12345678901", 12345678901), ("", None), ("~", None), ("null", None)):
            with self.subTest(text):
                read = vr.parse_yaml(f"a: {text}\n".encode(), "X")["a"]
                self.assertEqual((read, type(read)), (value, type(value)))

    def test_the_first_document(self) -> None:
        """Only the first document counts, whatever comes after it."""
        for text in ("a: b", "---\na: b\n", "a: b\n---\nc: d\n", "a: b\n---\n@ [", "a: b\n...\n",
                     "%YAML 1.1\n---\na: b", "\ufeffa: b", "{a: b}",
                     '{"a": "b"}', '{\n\t"a":\t"b"\n}', "# c\na: b\r\n"):
            with self.subTest(text):
                self.assertEqual(vr.parse_yaml(text.encode(), "X"), {"a": "b"})
        self.assertEqual(vr.parse_yaml("a: b".encode("utf-16"), "X"), {"a": "b"})
        for text in ("", "\n", "# x", "---\n", "---\n---\na: b", "null"):
            with self.subTest(text):
                self.assertIsNone(vr.parse_yaml(text.encode(), "X"))

    def test_limits(self) -> None:
        """Depth, nodes and bytes have limits, to the one; an alias counts with all that it stands for."""
        nodes = vr.MAX_YAML_NODES - 1
        for text, good in (("[" * 100 + "]" * 100, True), ("[" * 101 + "]" * 101, False), (f"[{'a,' * nodes}]", True),
                           (f"[{'a,' * nodes}a]", False), (f"[&x [{'a,' * 49_996}], *x]", True),
                           (f"[&x [{'a,' * 50_000}], *x]", False), ("[&x a, *x]", True),
                           (" " * (1 << 20), True), (" " * ((1 << 20) + 1), False)):
            with self.subTest(text[:20], good=good):
                if good:
                    vr.parse_yaml(text.encode(), "X", 1 << 20)
                else:
                    self.assertRaises(vr.ConfigError, vr.parse_yaml, text.encode(), "X", 1 << 20)

    def test_errors(self) -> None:
        """What is no YAML is one ConfigError that names the source and the line, and quotes nothing."""
        for content, words in (
                (b"a: b\n\tc: s3cr3t", "line 2"), (b"s3cr3t: [", "line"), (b" s3cr3t\xe9", "UTF-8"),
                (b"a: *s3cr3t", "line 1"), (b"? [s3cr3t]\n: b", "X"), (b"a: s3cr3t\0", "X"), (b"&a [*a, *b]", "line 1"),
                (b" " * ((8 << 20) + 1), "X is larger than 8 MiB")):
            with self.subTest(content[:30]), self.assertRaisesRegex(vr.ConfigError, f"X.*{words}|{words}") as caught:
                vr.parse_yaml(content, "X")
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
                ("PATCH", f"{root}/x/status", False, "patch", "downloadrequests/status", "velero.io"),
                ("DELETE", f"{root}/x", False, "delete", "downloadrequests", "velero.io"),
                ("GET", "/api/v1/namespaces/v/secrets/s", False, "get", "secrets", "")):
            with self.subTest(method, path=path):
                words, rule = vr.rule_for(method, path, watching)
                self.assertEqual(words, f"{verb} {resource} in namespace v")
                self.assertEqual(yaml.safe_load(rule),
                                 [{"apiGroups": [group], "resources": [resource], "verbs": [verb]}])
        for path in ("/version", "/apis/velero.io/v1", "/api/v1/namespaces", "", "/api/v1/namespaces/v"):
            self.assertEqual(vr.rule_for("GET", path, False), ("", ""))


# ------------------------------------------------------------------------------------------------------------
# Endurance: the tools
# ------------------------------------------------------------------------------------------------------------

SOAK = float(os.environ.get("VELERO_SOAK", "8"))
LONG = SOAK >= 120
ALWAYS = 1 << 30
EVERYTHING: Document = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}


def spend(seconds: float) -> None:
    """Let time pass where time itself is what is tested: rates, silences, outages."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() > until, seconds + 5)


def dripped(piece: bytes) -> Iterator[bytes]:
    """The same piece again and again, a little time after one another."""
    while True:
        spend(0.1)
        yield piece


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

    def start_with_token(self, token: str) -> Program:
        """Start a controller that takes its token from a file, and return it once it has answered a request."""
        program = Program(self.folder, "controller", "--kubeconfig", self.token_kubeconfig(token), "-n", self.namespace)
        self.addCleanup(program.kill)
        self.settle()
        return program


class EnduranceWorld(TokenFiles, FakeWorld):
    """A cluster over TLS that fails in scripted ways; the controller is a user of its own."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return RestartableCluster(tls=True), FakeStore()

    def setUp(self) -> None:
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

    def serve(self, user: str = "controller", plugins: Tuple[Tuple[str, str], ...] = (), **settings: Any) -> Any:
        """Run a controller as a user of its own, so that the log tells its requests from the test's."""
        return super().serve(user, plugins, **settings)

    def path(self, rest: str = "downloadrequests") -> str:
        """Return a part of the path of what lies in the test's namespace."""
        return f"/namespaces/{self.namespace}/{rest}"

    def api(self, kubeconfig: str = "", timeout: float = 20.0) -> Any:
        """Return a connection of the module's own."""
        api = velero_requests.connect(velero_requests.load_cluster(kubeconfig or self.kubeconfig))
        self.addCleanup(lambda: api.session.close())
        return api._replace(timeout=timeout)

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

    def looked_at(self, name: str, seconds: float = 60) -> None:
        """Wait until a request has a status, answered or not."""
        wait_until(lambda: (self.look(name) or {}).get("status"), seconds, f"a status of {name}")


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
                               ("Wed, 21 Oct 2015 09:28:07 +0200", 7.0), ("1.5", None), ("-1", None), ("\xb2", None),
                               ("\u0661", None), ("soon", None), ("9" * 400, None), ("1e3", None),
                               ("Wed, 99 Oct 2015 07:28:07 GMT", None), (" ", None), ("NaN", None)):
            with self.subTest(header=header):
                self.assertEqual(vr.retry_after_seconds(header, now), wanted)

    def test_what_may_be_sent_again(self) -> None:
        """429 may always, 5xx never for POST, other statuses never, and nothing more than three times."""
        for method in ("GET", "PATCH", "DELETE", "PUT", "POST"):
            for status in (429, 500, 502, 503, 504, 400, 401, 403, 404, 409, 410, 422, 501, 301):
                again = status == 429 or (method != "POST" and status in (500, 502, 503, 504))
                with self.subTest(method=method, status=status):
                    waits = [vr.retry_wait(method, attempt, status, None) is not None for attempt in (1, 2, 3)]
                    self.assertEqual(waits, [again, again, False])

    def test_how_long_to_wait(self) -> None:
        """Retry-After counts up to ten seconds, without one the wait grows from a tenth of a second."""
        for attempt, asked, wanted in ((1, 0.0, 0.0), (2, 3.0, 3.0), (1, 3600.0, 10.0), (1, None, 0.1), (2, None, 0.2)):
            with self.subTest(attempt=attempt, asked=asked):
                self.assertEqual(vr.retry_wait("GET", attempt, 503, asked), wanted)


def http_date(seconds: float) -> str:
    """Return an HTTP date this far from now."""
    return formatdate(time.time() + seconds, usegmt=True)


# A way to call each verb of the module: method, part of the target, the call itself.
CALLS: Dict[str, Tuple[str, str, Callable[[Any, str], Any]]] = {
    "get": ("GET", "/backups/b1", lambda api, space: api.get(vr.BACKUPS, space, "b1")),
    "list": ("GET", "/backups?", lambda api, space: list(api.list_pages(vr.BACKUPS, space))),
    "watch": ("GET", "watch=true", lambda api, space: api.open_watch(
        vr.BACKUPS, space, "0", seconds=1, silence=api.timeout).close()),
    "discovery": ("GET", "/apis/velero.io/v1", lambda api, space: api.served_resources("velero.io/v1")),
    "patch": ("PATCH", "/backups/b1", lambda api, space: api.merge_patch(
        vr.Key(vr.BACKUPS, space, "b1"), {"metadata": {"labels": {"a": "b"}}})),
    "delete": ("DELETE", "/backups/b2", lambda api, space: api.delete(vr.Key(vr.BACKUPS, space, "b2"))),
    "create": ("POST", "/downloadrequests", lambda api, space: api.create(
        vr.DOWNLOAD_REQUESTS, vr.new_download_request(space, "BackupLog", "b1", vr.random_suffix())))}
REPEATABLE = [name for name in CALLS if name != "create"]
AT_ONCE = {"headers": {"Retry-After": "0"}}
# What can happen to a call -> words of its error, none when it is made again and succeeds; and the same for a POST.
API_FAULTS: Tuple[Tuple[Document, str, str], ...] = (
    ({"status": 429, **AT_ONCE}, "", ""), ({"status": 500, "body": "oops", **AT_ONCE}, "", "oops"),
    ({"status": 502, "body": "<html>", **AT_ONCE}, "", "<html>"), ({"status": 504, **AT_ONCE}, "", "504"),
    ({"status": 503, "headers": {"Retry-After": http_date(-5)}}, "", "503"), ({"drop": True}, "", "cannot reach"),
    ({"drop": True, "apply": True}, "", "cannot reach"), ({"status": 500, "apply": True, **AT_ONCE}, "", "500"),
    ({"status": 501}, "501", "501"), ({"status": 403}, "403", "403"),
    ({"status": 418, "body": {"message": "a teapot"}}, "a teapot", "a teapot"),
    ({"status": 429, "headers": {"Retry-After": "5"}}, "429", "429"),  # nobody waits longer than the timeout
    ({"hang": threading.Event()}, "does not answer in time", "does not answer in time"))
# Answers of which nothing can be made, by any call that wants a document.
BAD_ANSWERS: Tuple[Document, ...] = (
    *({"status": 200, "body": body} for body in (
        "<html><body>Sign in</body></html>", '{"kind": "Backup", "meta', "[]", "5", "null", '"x"', "", "[" * 100_000,
        b"\xff\xfe", b"\x00")),
    {"cut_after": 5}, {"status": 200, "body": "{}" + " " * 50, "cut_after": 9},
    {"chunks": [b'{"kind": ', b'"Back'], "cut": True}, {"pause_after": 5, "gate": threading.Event()},
    {"status": 200, "body": b"no gzip", "headers": {"Content-Encoding": "gzip"}},
    *({"status": 200, "body": body, "headers": {"Content-Encoding": encoding}} for encoding, body in (
        ("br", b"{}"), ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))),
        ("gzip", gzip.compress(gzip.compress(b"{}"))),
        ("gzip", gzip.compress(b"{}") * 2), ("gzip", gzip.compress(b"{}")[:-1]), ("gzip", b""))),
    {"status": 403, "body": {"message": "no" * 50}, "cut_after": 9}, {"chunks": [b"{}"], "status": 403, "cut": True},
    {"status": 409, "body": "x" * 100, "pause_after": 5, "gate": threading.Event()})


class TestRequestFaults(EnduranceWorld, unittest.TestCase):
    """Row 6: one call and what can happen to it."""

    def test_what_may_be_repeated_is_repeated(self) -> None:
        """A call has the outcome of the table; a POST that may have had its effect is not sent again."""
        api = self.api(timeout=1.0)
        for options, *outcomes in API_FAULTS:
            for name, (method, part, call) in CALLS.items():
                if name == "watch" and "apply" in options:
                    continue                 # a watch that was begun has no other answer
                with self.subTest(call=name, **{key: str(value) for key, value in options.items()}):
                    self.cluster.forget()
                    patient = api._replace(timeout=0.3) if "hang" in options else api
                    fault, words = self.cluster.script(method, part, **options), outcomes[method == "POST"]
                    started = time.monotonic()
                    if words:
                        with self.assertRaisesRegex((vr.ApiError, vr.Unreachable), words):
                            call(patient, self.namespace)
                    else:
                        call(patient, self.namespace)
                    self.assertLess(time.monotonic() - started, 1.0)
                    self.assertEqual((fault.hits, self.cluster.count(method, part)), (1, 1 if words else 2))

    def test_nothing_is_repeated_without_end(self) -> None:
        """A server that fails every time is asked three times, and its own words are the error."""
        for status, names in ((429, list(CALLS)), (503, REPEATABLE)):
            for name in names:
                method, part, call = CALLS[name]
                with self.subTest(call=name, status=status):
                    self.cluster.unscript()
                    fault = self.cluster.script(method, part, ALWAYS, status=status, body={"message": "on fire"},
                                                **AT_ONCE)
                    self.assertRaisesRegex(vr.ApiError, "on fire.*" + method, call, self.api(), self.namespace)
                    self.assertEqual(fault.hits, 3)

    def test_retry_after_is_kept(self) -> None:
        """A call waits as long as the server says."""
        self.cluster.script("GET", "/backups/b1", status=429, headers={"Retry-After": "1"})
        started = time.monotonic()
        CALLS["get"][2](self.api(), self.namespace)
        self.assertGreaterEqual(time.monotonic() - started, 1.0)

    def test_what_comes_packed(self) -> None:
        """One layer of gzip that nobody asked for is taken off, as far as the answer may be large."""
        for status, body, outcome in ((200, b'{"kind": "Backup"}', ""), (403, b'{"message": "a teapot"}', "a teapot"),
                                      (200, b" " * (vr.ANSWER_LIMIT + 1), "has more than 48 MiB")):
            with self.subTest(status=status, outcome=outcome):
                self.cluster.script("GET", "/backups/b1", status=status, body=gzip.compress(body),
                                    headers={"Content-Encoding": "gzip"})
                if not outcome:
                    self.assertEqual({"kind": "Backup"}, CALLS["get"][2](self.api(), self.namespace))
                    continue
                with self.assertRaisesRegex((vr.ApiError, vr.Unreachable), outcome):
                    CALLS["get"][2](self.api(), self.namespace)

    def test_answers_of_the_wrong_shape_are_one_error(self) -> None:
        """What is no document, is cut, stops or was compressed is an error of the module's own that names the call."""
        api = self.api(timeout=0.4)
        for options in BAD_ANSWERS:
            for name in ("get", "list", "create", "patch", "discovery"):
                method, part, call = CALLS[name]
                with self.subTest(call=name, **{key: str(value)[:40] for key, value in options.items()}):
                    self.cluster.unscript()
                    self.cluster.script(method, part, ALWAYS, **options)
                    with self.assertRaisesRegex((vr.Unreachable, vr.ApiError), method) as caught:
                        call(api, self.namespace)
                    self.assertEqual(isinstance(caught.exception, vr.ApiError), options.get("status", 200) != 200)

    def test_answers_that_are_large(self) -> None:
        """An answer of 50 MB is refused with an error that names the call; a list and the next call go on."""
        api = self.api()
        for whole in (b'{"items": ["' + b"x" * (50 << 20) + b'"]}', b"{}" + b" " * (50 << 20)):
            self.cluster.script("GET", "/backups/b1", status=200, body=whole)
            with self.assertRaisesRegex(vr.Unreachable, "GET .*/backups/b1 has more than 48 MiB"):
                CALLS["get"][2](api, self.namespace)
            CALLS["create"][2](api, self.namespace)
        self.cluster.script("GET", "/backups?", status=200, body=b"x" * (50 << 20))
        self.assertEqual((len(CALLS["list"][2](api, self.namespace)), len(self.names())), (1, 2))

    def test_only_what_was_created_is_deleted(self) -> None:
        """An answer to a create without a name, or with another one, deletes nothing; no verb takes an empty name."""
        others = [self.ask(), self.ask()]
        api = self.api()
        request = vr.new_download_request(self.namespace, "BackupLog", "b1", "x")
        for metadata in ({}, {"name": ""}, {"name": 5}, {"name": others[0]}, {"name": "../backups"}, None):
            with self.subTest(metadata=metadata):
                self.cluster.script("POST", self.path(), status=201, body={"metadata": metadata})
                with self.assertRaisesRegex(vr.Unreachable, "with something else"):
                    with vr.created(api, vr.DOWNLOAD_REQUESTS, request):
                        pass
        for name in ("", ".", "..", "a/b", "A"):
            key = vr.Key(vr.DOWNLOAD_REQUESTS, self.namespace, name)
            self.assertFalse(api.delete(key))
            for refused in (lambda: api.merge_patch(key, {}), lambda: api.get(*key)):
                self.assertRaisesRegex(vr.Missing, "no object can have this name", refused)
        self.assertEqual(sorted(self.names()), sorted(others))

    def test_connections(self) -> None:
        """One connection serves call after call; after the server closed it every call works, a POST too."""
        api = self.api()
        for name, (_, _, call) in CALLS.items():
            with self.subTest(call=name):
                call(api, self.namespace)
                self.cluster.cut_connections()
                call(api, self.namespace)
        pool = api.session.pool.pool
        made = pool.num_connections
        for status in (None, 404, 500):
            if status:
                self.cluster.script("GET", "/backups/b1", 1, status=status, body={"message": "x"}, **AT_ONCE)
            with contextlib.suppress(vr.ApiError):
                CALLS["get"][2](api, self.namespace)
        self.assertIs(api.session.pool.pool, pool)
        self.assertEqual(pool.num_connections, made)

    def test_connecting_has_a_timeout(self) -> None:
        """A host that accepts a connection and never speaks TLS is given up, as is one that accepts none."""
        listener = socket.socket()
        self.addCleanup(listener.close)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        cluster = vr.Cluster(server=f"https://127.0.0.1:{listener.getsockname()[1]}")
        api = vr.connect(cluster)._replace(timeout=0.3)
        for _ in range(4):  # the first ones fill the listener's queue
            started = time.monotonic()
            self.assertRaises(vr.Unreachable, CALLS["get"][2], api, self.namespace)
            self.assertLess(time.monotonic() - started, 3)

    def test_discovery_of_the_wrong_shape_lists_nothing(self) -> None:
        for resources in (5, True, "abc", {"a": 1}, [5, None, {"name": 7}], [[]], None):
            with self.subTest(resources=resources):
                self.cluster.script("GET", "/apis/velero.io/v1", status=200, body={"resources": resources})
                self.assertEqual([], list(filter(None, CALLS["discovery"][2](self.api(), self.namespace))))

    def test_warnings_of_the_cluster_are_shown_once(self) -> None:
        """Each text of a Warning header is shown once, in one line, without tokens, also when the call fails."""
        api = self.api()
        header = (f'299 - "v1 is \\"old\\"", 299 - "use v2\tnow, Bearer {token_of("admin")}", 199 - "misc", nonsense')
        self.cluster.script("GET", "/backups/b1", 4, headers={"Warning": header})
        for _ in range(4):
            CALLS["get"][2](api, self.namespace)
        self.assertEqual((self.said("v1 is"), self.said("use v2"), self.said("misc")), (1, 1, 0))
        self.cluster.script("GET", "/backups/b1", status=404, headers={"Warning": header},
                            body={"reason": "NotFound", "message": "gone"})
        result = self.cli("backup", "logs", "b1")
        self.assert_failed(result, 3)
        self.assertEqual(result.err.count("use v2"), 1)

    def test_errors_quote_the_api(self) -> None:
        """An error has the API's own message, the method, the path and the status; a long one is cut."""
        for body, words in (({"message": "admission webhook says no"}, "admission webhook says no"),
                            ("<html>gateway</html>", "gateway"), ("", "no text"), ({}, "{}"),
                            ({"message": "x" * 100_000}, "xxx"), ({"message": 5}, "5"), ("[]", "[]")):
            with self.subTest(body=str(body)[:40]):
                text = body if isinstance(body, str) else json.dumps(body)
                error = vr.api_error(418, text.encode(), "GET", "/apis/b1")
                self.assertIn(words, str(error))
                self.assertRegex(str(error), r"\(GET /apis/b1: 418\)$")
                self.assertLess(len(str(error)), 1100)

    def test_a_refused_call_names_the_missing_right(self) -> None:
        """403 says verb, resource and namespace, and the line of a Role that grants it, for every call."""
        wanted = {name: ("backups", name) for name in ("get", "list", "watch", "patch", "delete")}
        wanted["create"] = ("downloadrequests", "create")
        self.cluster.limit("admin", "get", "list", "watch", "patch", "delete", resource="backups")
        self.cluster.limit("admin", "create", resource="downloadrequests")
        for name, (resource, verb) in wanted.items():
            with self.subTest(call=name), self.assertRaises(vr.ApiError) as caught:
                CALLS[name][2](self.api(), self.namespace)
            hints = " ".join(caught.exception.hints)
            self.assertEqual(int(caught.exception.exit), 5)
            self.assertIn(f"{verb} {resource} in namespace {self.namespace}", hints)
            self.assertIn(f'apiGroups: ["velero.io"], resources: ["{resource}"], verbs: ["{verb}"]', hints)

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


def slowly(start: bytes, more: bytes) -> Iterator[bytes]:
    """Yield a start, and then one byte after the other, without an end."""
    yield start
    for byte in itertools.cycle(more):
        yield bytes([byte])


def at_once(start: bytes, more: bytes) -> Iterator[bytes]:
    """Yield a start, and then the same 64 KB again and again, without an end."""
    yield start
    yield from itertools.repeat(more * (65536 // len(more)))


OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
NO = b"HTTP/1.1 403 No\r\nContent-Length: 60000\r\n\r\n"


HANDSHAKE = "a handshake that trickles"
# What a server may answer -> its pieces; one of a single byte is followed by a short pause.
ATTACKS: Dict[str, Callable[[], Iterable[bytes]]] = {
    "silence": lambda: (),
    HANDSHAKE: lambda: slowly(b"\x16\x03\x03\x40\x00\x02\x00", b"\x00"),
    "a status line that trickles": lambda: slowly(b"HTTP/1.1 200 ", b"very "),
    "a header that trickles": lambda: slowly(OK + b"X: ", b"yes "),
    "headers without an end": lambda: at_once(OK, b"X: y\r\n"),
    "a header without an end": lambda: at_once(OK, b"X"),
    "informational answers without an end": lambda: at_once(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a body that trickles": lambda: slowly(OK + b"Content-Length: 60000\r\n\r\n{", b" "),
    "a body without an end": lambda: at_once(OK + b"\r\n{", b" "),
    "a chunk's header that trickles": lambda: slowly(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "a chunk's header without an end": lambda: at_once(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers without an end": lambda: at_once(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
    "a refusal that trickles": lambda: slowly(NO + b"<", b"x"),
    "an unknown encoding": lambda: [OK + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}"]}


class Stranger(LoopbackServer):
    """A server that answers everything by one of the ATTACKS."""

    def __init__(self, attack: str, tls: bool = False) -> None:
        """Start serving."""
        super().__init__(tls and attack != HANDSHAKE)
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self.attack = attack
        self.start()

    def _converse(self, accepted: socket.socket) -> None:
        if self.attack != HANDSHAKE:
            super()._converse(accepted)
        elif accepted.recv(65536):
            with contextlib.suppress(OSError), contextlib.closing(Connection(accepted)) as connection:
                self.answer(Request("", "", [], b""), connection)

    def answer(self, request: Request, connection: Connection) -> bool:
        """Send the pieces as long as the client stays."""
        for piece in ATTACKS[self.attack]():
            connection.socket.sendall(piece)
            if self.closing.wait(0.02 if len(piece) == 1 else 0) or connection.peer_has_left():
                return False
        self._play([self.closing], connection)
        return False


def strange_api(**more: Any) -> Any:
    """Ask an API server for a backup, within half a second."""
    api = velero_requests.connect(velero_requests.Cluster(insecure=True, **more))._replace(timeout=0.5)
    return api.get(velero_requests.BACKUPS, "velero", "b1")


def in_time(seconds: float, chunks: Iterable[bytes]) -> bytes:
    """All of the chunks, within so many seconds."""
    with vr.time_limit(seconds):
        return b"".join(chunks)


# A small exchange -> what asks a server for it, within half a second.
EXCHANGES: Dict[str, Callable[[Stranger], Any]] = {
    "API": lambda server: strange_api(server=server.url),
    "API by a proxy": lambda server: strange_api(server=server.url, proxy_url=kube_servers()["proxy"].url),
    "API by TLS with a proxy": lambda server: strange_api(
        server=server.url, proxy_url=f"https://{kube_servers()['secure'].host}"),
    "CONNECT": lambda server: strange_api(server="https://a.example.com", proxy_url=server.url),
    "STS": lambda server: velero_requests.ask("POST", server.url, {}, b"x", timeout=0.5),
    "region": lambda server: velero_requests.discover_region(
        velero_requests.Address("http", server.host, "/bucket", "us-east-1"), 0.5),
    "verify": lambda server: velero_requests.verify_url(server.url + "/b/k", velero_requests.Trust(), 0.5),
    "small object": lambda server: vr.Bucket(a_location(s3_url=server.url), KEYS_1, vr.Trust()).read_small(
        "k", "it", seconds=0.5),
    "artifact of a screen": lambda server: in_time(0.5, vr.Download(
        vr.UrlSource(lambda skew: (server.url + "/b/k", vr.Trust())), "it", gunzip=True).chunks())}


class TestSlowStrangers(unittest.TestCase):
    """Whatever trickles, is silent or has no end: a small exchange is over in time, and in bounds."""

    def suffer(self, row: Tuple[str, str]) -> Tuple[str, float]:
        """Make one exchange with one attacker -> what came of it, and after how many seconds."""
        exchange, attack = row
        server = Stranger(attack, tls=exchange.startswith("API"))
        started = time.monotonic()
        try:
            return f"{EXCHANGES[exchange](server)!r:.100}", time.monotonic() - started
        except velero_requests.Error as error:
            return type(error).__name__, time.monotonic() - started
        finally:
            server.close()

    def test_every_exchange_has_a_deadline(self) -> None:
        """No answer of a stranger takes longer than the exchange may, and what is no answer is an error."""
        kube_servers()
        with ThreadPoolExecutor(8) as pool:
            rows = [(exchange, attack) for exchange in EXCHANGES for attack in ATTACKS]
            outcomes = dict(zip(rows, pool.map(self.suffer, rows)))
        for (exchange, attack), (outcome, seconds) in outcomes.items():
            with self.subTest(exchange=exchange, attack=attack):
                self.assertLess(seconds, 2.0)
                if exchange in list(EXCHANGES)[:5] or attack in list(ATTACKS)[:7]:  # which need no body
                    self.assertIn(outcome, ("Unreachable", "ApiError"))


CLOUD = {"name": "cloud", "key": "keys"}
# Whom twenty requests may wait for -> what their location says of itself, and the environment of the controller.
BLACK_HOLES: Dict[str, Tuple[Document, Dict[str, str]]] = {
    "store": ({"config": {"region": "r", "s3Url": "@", "s3ForcePathStyle": "true"}, "credential": CLOUD}, {}),
    "STS": ({"config": {"region": "eu-west-1"}}, {
        "AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": __file__, "AWS_ENDPOINT_URL_STS": "@"}),
    "container": ({"config": {"region": "eu-west-1"}}, {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "@/keys"}),
    "instance": ({"config": {"region": "eu-west-1"}}, {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "@"}),
    "region": ({"credential": CLOUD}, {"HTTPS_PROXY": "@"})}


class TestBlackHoles(EnduranceWorld, unittest.TestCase):
    """Who is silent holds up one worker, once, and neither the others nor the end."""

    def dig(self, name: str, strangers: List[Stranger]) -> None:
        """Make twenty requests that wait for silent servers."""
        for number in range(20):
            stranger = strangers[number % len(strangers)]
            if number < len(strangers):
                self.addCleanup(stranger.close)
                spec = json.dumps({"provider": "aws", "objectStorage": {"bucket": "bucket"}, **BLACK_HOLES[name][0]})
                self.make("backupstoragelocations", "BackupStorageLocation", f"hole-{number}",
                          spec=json.loads(spec.replace("@", stranger.url)))
            self.make_backup(f"lost-{number}", f"hole-{number % len(strangers)}")
            self.ask(name=f"lost-{number}")

    def test_twenty_requests_of_a_black_hole(self) -> None:
        """They cost one worker one deadline; a good request is answered within two seconds, and SIGTERM is heard."""
        for name, hosts in [*((name, 1) for name in BLACK_HOLES), ("store", 20)]:
            with self.subTest(silent=name, hosts=hosts):
                self.move()
                self.put()
                strangers, variables = [Stranger("silence") for _ in range(hosts)], BLACK_HOLES[name][1]
                with environment({key: value.replace("@", strangers[0].url) for key, value in variables.items()}):
                    controller = self.serve(verify_urls=name == "store", stop_time=0.3)
                    self.answered(self.ask())
                    self.dig(name, strangers)
                    wait_until(lambda: any(stranger.requests for stranger in strangers), 5, "the first to wait")
                    self.make_backup("b2")
                    good, asked = self.ask(name="b2", kind="BackupContents"), time.monotonic()
                    self.looked_at(good, 5)
                    self.assertLess(time.monotonic() - asked, 2.0)
                    self.assertLessEqual(sum(len(stranger.requests) for stranger in strangers), 3)
                    controller.stop.set()

    def test_a_host_that_is_busy(self) -> None:
        """Who found it so comes again soon, however often before, and it is no failure."""
        self.put()
        controller = self.serve(verify_urls=True)
        with contextlib.ExitStack() as stack:
            for host in ("a", "b", "c"):
                stack.enter_context(controller.hosts.guard(host))
            name = self.ask()
            spend(1.5)
            self.assertEqual(({}, None), (controller.failures, (self.look(name) or {}).get("status")))
        self.looked_at(name, 0.8)

    def test_a_signal_is_heard_while_all_is_silent(self) -> None:
        """SIGTERM ends a controller within five seconds whoever keeps a worker waiting."""
        stranger = Stranger("silence")
        self.dig("STS", [stranger])
        program = self.program("controller", env={key: value.replace("@", stranger.url)
                                                  for key, value in BLACK_HOLES["STS"][1].items()})
        wait_until(lambda: stranger.requests, 10, "the first to wait")
        started = time.monotonic()
        self.assertEqual(program.end(signal.SIGTERM).code, 0)
        self.assertLess(time.monotonic() - started, 5.0)


# ------------------------------------------------------------------------------------------------------------
# Endurance: who we are
# ------------------------------------------------------------------------------------------------------------

class TestRotation(EnduranceWorld, unittest.TestCase):
    """Rows 3 and 6: tokens that are replaced while somebody works with them."""

    def test_a_refused_token_is_read_again_at_once(self) -> None:
        """When the file has another token, a call that met 401 is made once more, a POST too."""
        for name, (method, part, call) in CALLS.items():
            with self.subTest(call=name):
                old = self.new_token()
                api = self.api(self.token_kubeconfig(old))
                api.get(vr.BACKUPS, self.namespace, "b1")
                self.write_token(self.new_token())
                del self.cluster.tokens[old]
                self.cluster.forget()
                call(api, self.namespace)
                self.assertEqual([request.status == 401 for request in self.cluster.seen(method, part)], [True, False])

    def test_a_token_that_stays_refused_is_tried_twice(self) -> None:
        """When the file has no better token, the second 401 is the error; one of the kubeconfig is tried once."""
        old = self.new_token()
        api = self.api(self.token_kubeconfig(old))
        del self.cluster.tokens[old]
        for name, (_, _, call) in CALLS.items():
            with self.subTest(call=name):
                self.cluster.forget()
                with self.assertRaises(vr.ApiError) as caught:
                    call(api, self.namespace)
                self.assertEqual((caught.exception.status, self.cluster.count()), (401, 2))
                self.assertIn("log in again", " ".join(caught.exception.hints))
        self.cluster.script("GET", "/backups/b1", ALWAYS, status=401, body={"message": "Unauthorized"})
        self.assert_failed(self.cli("backup", "logs", "b1"), 5, "Unauthorized")
        self.assertEqual(self.cluster.count("GET", "/backups/b1"), 1)

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
                api.get(vr.BACKUPS, self.namespace, "b1")
                spoil()
                self.cluster.script("GET", "/backups/b1", status=401, body={})
                self.cluster.forget()
                api.get(vr.BACKUPS, self.namespace, "b1")
                self.assertEqual([request.user for request in self.cluster.seen(None, "/backups/b1")], ["admin"] * 2)

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
                    self.assertRaises(vr.ConfigError, api.get, vr.BACKUPS, self.namespace, "b1")
                    self.assertEqual(self.cluster.seen(), [])

    def test_a_token_rotates_under_a_running_controller(self) -> None:
        """Old token out, new one in the file: no request notices. Without a new one it waits, and says so once."""
        tokens = [self.new_token("controller")]
        program = self.start_with_token(tokens[0])
        for _ in range(3):
            tokens.append(self.new_token("controller"))
            self.write_token(tokens[-1])
            del self.cluster.tokens[tokens[-2]]
            self.settle()
            self.cluster.cut_watches()
        self.watched()
        self.assertNotIn("nauthorized", program.text())
        del self.cluster.tokens[tokens[-1]]
        self.cluster.cut_watches()
        wait_until(lambda: self.cluster.count("GET", "watch=", status=401) >= 4, 15, "some refusals")
        name = self.ask()
        self.write_token(self.new_token("controller"))
        self.answered(name)
        self.assertEqual(program.text().count("downloadrequests: Unauthorized"), 1, program.text())
        self.assert_clean(*tokens, program.text())
        self.assertEqual(program.end(signal.SIGTERM).code, 0)


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
    """What is not allowed is said once, with the cure."""

    def rob(self, verb: str, resource: str, user: str = "controller") -> None:
        """Take a right in the test's namespace away."""
        self.cluster.limit(user, verb, resource=resource, namespace=self.namespace)

    def test_a_controller_says_once_what_it_may_not(self) -> None:
        """Each missing right is one line with verb, resource, namespace and rule, however many requests and tries."""
        spaces = []
        for verb, _, resource in RIGHTS:
            spaces.append(self.move())
            self.rob(verb, resource)
            self.serve()
            for _ in range(5):
                self.ask()
            self.ask_status()
        for (verb, group, resource), space in zip(RIGHTS, spaces):
            with self.subTest(verb=verb, resource=resource):
                wait_until(lambda space=space, resource=resource: self.cluster.count(
                    None, f"/{space}/{resource}", "controller", 403) > 2 or self.turn(seconds=5), 20, "tries")
                self.assertEqual(self.said(*words_of(verb, group, resource, space)), 1)

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

    def test_a_controller_goes_on_without_events_and_deletions(self) -> None:
        """Requests get their reasons and answers, expired ones are tried with back-off, and the log says so once."""
        self.rob("create", "events")
        self.rob("delete", "downloadrequests")
        self.serve()
        for name in [self.ask(name=f"nobody-{number}") for number in range(5)]:
            self.assertEqual(reason_of(self.failed(name)), "BackupNotFound")
        wait_until(lambda: self.cluster.count("POST", "events", "controller", 403) == 5, 10, "the events")
        self.turn(minutes=11)
        wait_until(lambda: self.cluster.count("DELETE", self.path(), "controller", 403) > 6, 10, "tries")
        self.answered(self.ask())
        self.assertEqual(self.said(*words_of("create", "", "events", self.namespace)), 1)
        self.assertEqual(self.said(*words_of("delete", "velero.io", "downloadrequests", self.namespace)), 1)
        self.assertLess(self.cluster.count("DELETE", self.path(), "controller"), 80)

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

    def test_a_client_does_without(self) -> None:
        """Without watch it polls, without delete the request stays until it expires, which -v tells; get is needed."""
        self.serve()
        self.put()
        for verb, words in (("watch", "cannot watch resource"), ("delete", "until it expires")):
            self.rob(verb, "downloadrequests", "admin")
            for flags, times in (((), 0), (("-v",), 1)):
                with self.subTest(verb=verb, flags=flags):
                    self.cluster.forget()
                    result = self.cli(*flags, "backup", "logs", "b1")
                    self.assertEqual((result.code, result.out), (0, LOG), result.err)
                    self.assertEqual(result.err.count(words), times, result.err)
                    self.assertEqual(self.cluster.count("GET", "watch=", "admin"), 1)
        self.assertEqual(len(self.names()), 2)
        self.turn(minutes=11)
        wait_until(lambda: not self.names(), 15, "the controller to delete them")
        self.rob("get", "downloadrequests", "admin")
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


class StuckLine(KubeProxy):
    """A proxy whose tunnels can be made to say nothing more, while new ones work."""

    def __init__(self) -> None:
        """Start serving."""
        self.stuck = threading.Event()
        super().__init__()

    def stick(self) -> None:
        """Let the tunnels that are open be silent for ever."""
        self.stuck.set()
        self.stuck = threading.Event()

    def _pump(self, one: Any, other: Any) -> None:
        stuck = self.stuck
        while not (stuck.is_set() or self.closing.is_set()):
            for source, sink in ((one, other), (other, one)):
                if select.select([source], [], [], 0.02)[0] and not stuck.is_set():
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    sink.sendall(data)
        self.closing.wait()


class TestWatchFaults(EnduranceWorld, unittest.TestCase):
    """Whatever a list or a watch comes to, the controller goes on, at leisure, and misses nothing."""

    def besiege(self, faults: Dict[str, Document], query: str, times: int) -> Dict[str, Tuple[str, Fault]]:
        """Start a controller in a namespace of its own for each fault -> name -> namespace and fault, once struck."""
        sieges = {}
        for name, options in faults.items():
            space = self.move()
            fault = self.cluster.script("GET", self.path("downloadrequests" + query), times, **options)
            sieges[f"{name}, {query}"] = space, fault
            self.serve()
        for name, (_, fault) in sieges.items():
            wait_until(lambda fault=fault: fault.hits, 15, name)
        return sieges

    def ask_everywhere(self, sieges: Dict[str, Tuple[str, Fault]]) -> Dict[str, str]:
        """Make a request in each namespace -> name -> request."""
        return {name: (self.move(space), self.ask())[1] for name, (space, _) in sieges.items()}

    def test_what_fails_once(self) -> None:
        """Every fault of a watch or a list delays an answer by the back-off and no more."""
        sieges = {**self.besiege(WATCH_FAULTS, "?watch=true", 1), **self.besiege(GET_FAULTS, "?limit=", 1)}
        for name, request in self.ask_everywhere(sieges).items():
            with self.subTest(fault=name):
                self.move(sieges[name][0])
                self.answered(request)
                self.watched()

    def test_what_fails_always_is_tried_at_leisure(self) -> None:
        """No fault makes the controller spin: a call a second at most, tried three times, and afterwards an answer."""
        sieges = {**self.besiege(WATCH_FAULTS, "?watch=true", ALWAYS), **self.besiege(GET_FAULTS, "?limit=", ALWAYS)}
        first = {name: fault.hits for name, (_, fault) in sieges.items()}
        spend(4.0)
        counts = {name: fault.hits - first[name] for name, (_, fault) in sieges.items()}
        asked = self.ask_everywhere(sieges)
        self.cluster.unscript()
        for name, request in asked.items():
            with self.subTest(fault=name):
                self.assertLessEqual(counts[name], 9)
                self.move(sieges[name][0])
                self.looked_at(request, 40)

    def test_pages_of_a_list(self) -> None:
        """When the next page is gone the list starts anew; one that repeats a token is asked at leisure."""
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

    def test_a_list_that_goes_on_and_on(self) -> None:
        """There are only so many pages, though each continue token is a new one."""
        for name in ("a", "b", "c"):
            self.make_backup(name)
        pages = functools.partial(self.api().list_pages, vr.BACKUPS, self.namespace, size=1)
        with self.assertRaisesRegex(vr.Unreachable, "list of backups does not end"):
            list(pages(most=2))
        self.assertGreater(len(list(pages())), 2)

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

    def test_events_that_lie(self) -> None:
        """Old copies, false deletions and objects of other namespaces change nothing for long."""
        other = self.cluster.new_namespace()
        stray = self.admin.create("downloadrequests", download_request("stray"), other)
        self.cluster.grant("controller", EVERYTHING, namespace=other)
        self.serve()
        self.watched()
        name = self.ask(name="late")
        old = dict(self.look(name) or {})
        self.failed(name)
        for kind, lie in (("MODIFIED", old), ("ADDED", old), ("MODIFIED", old), ("ADDED", stray), ("DELETED", old)):
            self.cluster.push({"type": kind, "object": lie}, self.path("downloadrequests"))
        self.settle()
        self.make_backup("late")
        self.cluster.cut_connections()
        self.healed(name)
        self.cluster.push({"type": "ADDED", "object": old}, self.path("downloadrequests"))
        self.settle()
        patches = self.cluster.count("PATCH", "/downloadrequests/" + name)
        self.settle()
        self.assertEqual(self.cluster.count("PATCH", "/downloadrequests/" + name), patches)
        self.assertEqual(self.cluster.seen(None, f"/{other}/downloadrequests/stray", "controller"), [])

    def test_a_watch_can_be_interrupted(self) -> None:
        """Another thread ends a watch, whatever proxy is between, TLS within TLS too."""
        for proxy in ("", kube_servers()["proxy"].url, f"https://{kube_servers()['secure'].host}"):
            with self.subTest(proxy=proxy):
                cluster = velero_requests.load_cluster(self.kubeconfig)._replace(
                    proxy_url=proxy, insecure=True, authority=b"")
                api = velero_requests.connect(cluster)
                self.addCleanup(api.session.close)
                response = api.open_watch(velero_requests.BACKUPS, self.namespace, self.cluster.version, seconds=30)
                timer = threading.Timer(0.1, response.interrupt)
                timer.start()
                with self.assertRaisesRegex(velero_requests.Unreachable, "broke off"):
                    list(velero_requests.watch_events(response))
                timer.join()

    def test_silence_ends_a_watch_and_progress_does_not(self) -> None:
        """A stream that says nothing is given up after the silence asked for; one with an event now and then stays."""
        gate = threading.Event()
        self.cluster.script("GET", "watch=true", chunks=[bookmark("7"), gate])
        api, started = self.api(), time.monotonic()
        response = api.open_watch(velero_requests.BACKUPS, self.namespace, "1", seconds=300, silence=0.5)
        self.assertEqual([kind for kind, _ in velero_requests.watch_events(response)], ["BOOKMARK"])
        self.assertLess(time.monotonic() - started, 5)
        response = api.open_watch(velero_requests.BACKUPS, self.namespace, self.cluster.version, seconds=3, silence=1.2)
        names = ["t1", "t2", "t3"]

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

    def test_a_controller_notices_silence(self) -> None:
        """A watch whose other end has vanished, or trickles, is replaced in time, and nothing is lost."""
        gates = [self.cluster.script("GET", self.path(f"{kind}?watch="), chunks=chunks)
                 for kind, chunks in (("downloadrequests", dripped(b'{"type":')), (SSR, [threading.Event()]))]
        self.serve(silence=1.5, watch_seconds=(0.5, 0.5))
        wait_until(lambda: all(gate.hits for gate in gates), 10, "the watches")
        self.looked_at(self.ask(), 10)       # two seconds, the pause after a failure, and what a busy machine takes

    def test_a_line_that_is_cut_all_the_time(self) -> None:
        """A watch that breaks after it brought something starts the next one at once, however often."""
        self.cluster.script("GET", self.path("downloadrequests?watch="), ALWAYS, chunks=[bookmark("1")], cut=True)
        self.serve()
        wait_until(lambda: self.cluster.count("GET", self.path("downloadrequests?watch=")) > 3, 8, "watches")
        self.looked_at(self.ask(), 1.5)

    def test_a_line_that_sticks_costs_one_attempt(self) -> None:
        """When one connection of a pool proves dead, no other one is tried; after a pause none at all."""
        line = StuckLine()
        self.addCleanup(line.close)
        cluster = velero_requests.load_cluster(self.kubeconfig)._replace(proxy_url=line.url)
        api = velero_requests.connect(cluster)._replace(timeout=0.7)
        self.addCleanup(lambda: api.session.close())  # pylint: disable=unnecessary-lambda

        def spread() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: CALLS["list"][2](api, self.namespace), range(12)))
            line.stick()
        spread()
        with self.assertRaisesRegex(velero_requests.Unreachable, "in time"):
            CALLS["get"][2](api, self.namespace)
        CALLS["get"][2](api, self.namespace)
        spread()
        api.session.pool.answered_at -= 10
        CALLS["create"][2](api, self.namespace)

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
        self.failed(self.ask(name="late"))
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
        """An answer that a watch kept back, half-open or busy with other things, is found when the waiting is over."""
        self.serve()
        self.put()
        other = b'{"type":"MODIFIED","object":{"metadata":{"name":"other"}}}\n'
        for chunks in ([threading.Event()], dripped(b'{"type":'), dripped(other)):
            self.cluster.script("GET", "fieldSelector", chunks=chunks)
            started = time.monotonic()
            result = self.cli("backup", "logs", "b1", "--timeout", "1s")
            self.assertEqual((result.code, result.out), (0, LOG), result.err)
            self.assertLess(time.monotonic() - started, 3)


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


@unittest.skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
class TestLeaks(EnduranceWorld, unittest.TestCase):
    """What a controller needs."""

    def test_forty_large_objects(self) -> None:
        """A first list of forty objects of 1.2 MB is read in small pages, and costs no more than 18 MiB on top."""
        peaks = []
        for large in (0, 40):
            for number in range(large):
                self.ask(name=f"{number:03}" + "x" * 1_200_000)
            program = self.program("controller")
            self.watched()
            self.answered(self.ask_status(), SSR)
            with open(f"/proc/{program.process.pid}/status", encoding="ascii") as file:
                peaks.append(int(re.search(r"VmHWM:\s+(\d+)", file.read()).group(1)) / 1024)
            program.kill()
            wait_until(lambda: not self.cluster.watches(self.path("")), 15, "the end of the watches")
        self.assertLess(peaks[1] - peaks[0], 18, peaks)


@unittest.skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
class TestSoak(EnduranceWorld, unittest.TestCase):
    """Faults at random under load, for VELERO_SOAK seconds, on a controller that is a process of its own."""

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

    def compare(self, program: Program, before: Usage, megabytes: float) -> Usage:
        """Check that a process holds no more than before, when it has come to rest."""
        pid = program.process.pid
        wait_until(lambda: usage_of(pid).threads <= before.threads, 15, "threads to end")
        wait_until(lambda: usage_of(pid).sockets <= before.sockets + IDLE, 15, "sockets to go")
        after = usage_of(pid)
        self.assertLess(after.megabytes - before.megabytes, megabytes, (before, after))
        return after

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
        seed = int(os.environ.get("VELERO_SEED", "20240501"))
        print(f"\nsoak of {SOAK:g} s, VELERO_SEED={seed}", file=sys.stderr)
        dice, program, deeds, names = random.Random(seed), self.start_controller(), [], []
        before, end = usage_of(program.process.pid), time.monotonic() + SOAK
        while time.monotonic() < end:
            deeds.append(self.strike(dice))
            names += [self.ask() for _ in range(dice.randrange(5))]
            self.ask_status()
            spend(dice.uniform(0, 0.6))
            self.assertIsNone(program.process.poll(), (seed, deeds[-5:], program.text()[-2000:]))
        self.cluster.unscript(all_struck=False)
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


class TestIdentityReal(TokenFiles, RealWorld, unittest.TestCase):
    """Identities that change under a running controller, and borrowed ones."""

    def account(self, name: str) -> str:
        """Make a ServiceAccount with the least rights, and return a token of it that the API server accepts."""
        self.cluster.grant(f"system:serviceaccount:{self.namespace}:{name}", *LEAST, namespace=self.namespace)
        self.make("serviceaccounts", "ServiceAccount", name)
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        made = self.admin.call("POST", resource_path("serviceaccounts/token", self.namespace, name), review)
        token = str(made["status"]["token"])
        wait_until(lambda: not self.is_refused(token), 15, "the token to be known")
        return token

    def is_refused(self, token: str) -> bool:
        client = Admin(self.cluster.url, token, self.cluster.ca)
        try:
            return int(client.raw("GET", resource_path("backups", self.namespace)).status) == 401
        finally:
            client.close()

    def end(self, account: str, token: str) -> None:
        """Delete a ServiceAccount, and wait until its token counts no more."""
        self.admin.delete("serviceaccounts", account, self.namespace)
        wait_until(lambda: self.is_refused(token), 30, "the token to be refused")

    def test_a_token_is_replaced(self) -> None:
        """Replaced in time it is no event; with its account gone the controller waits, and goes on with a new one."""
        tokens = [self.account("one")]
        program = self.start_with_token(tokens[0])
        tokens.append(self.account("two"))
        self.write_token(tokens[1])
        self.end("one", tokens[0])
        self.settle()
        self.assertNotIn("WARNING", program.text())
        self.end("two", tokens[1])
        name = self.ask()
        wait_until(lambda: "nauthorized" in program.text(), 15, "the controller to notice")
        tokens.append(self.account("three"))
        self.write_token(tokens[2])
        self.answered(name)
        self.assertEqual(program.end(signal.SIGTERM).code, 0)
        self.assert_clean(program.text())
        self.assertFalse([token for token in tokens if token in program.text()])

    def test_an_identity_is_borrowed_with_all_its_parts(self) -> None:
        """The API server sees user, uid, groups and extra of the kubeconfig."""
        with open(self.kubeconfig, encoding="utf-8") as file:
            document = yaml.safe_load(file)
        extra = {"example.com/reason": ["two words", "50%"], "Scope": ["x"]}
        document["users"][0]["user"].update({
            "as": "jane", "as-uid": "42", "as-groups": ["dev", "ops"], "as-user-extra": extra})
        path = os.path.join(self.folder, "borrowed")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(document, file)
        api = vr.connect(vr.load_cluster(path))
        self.addCleanup(lambda: api.session.close())
        seen = api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body={
            "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})["status"]["userInfo"]
        self.assertEqual(seen, {
            "username": "jane", "uid": "42", "groups": ["dev", "ops", "system:authenticated"],
            "extra": {"example.com/reason": ["two words", "50%"], "scope": ["x"]}})


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

    def test_some_seconds_without_an_api_server(self) -> None:
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
        self.restart(5.0)
        before = len(made)
        wait_until(lambda: len(made) > before + 20, 30, "some more load")
        done.set()
        thread.join(15)
        for name in made:
            self.assertEqual(wait_until(lambda name=name: self.processed(name), 45, name)["metadata"]["generation"], 2)
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


def user_environment(folder: str) -> Dict[str, str]:
    """Return our environment without anything that could lead a command to another cluster or store."""
    leading = ("AWS_", "KUBE", "VELERO_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(leading)}
    return {**kept, "HOME": folder, "KUBECONFIG": "kubeconfig",
            "PATH": os.path.join(folder, "bin") + os.pathsep + kept.get("PATH", os.defpath),
            "PYTHONUSERBASE": site.getuserbase()}  # HOME would hide packages that were installed with --user


@contextlib.contextmanager
def set_stage() -> Iterator[Stage]:
    """Start the best servers that are there, and put what a user has into a folder; remove all of it afterwards."""
    assets, with_store = assets_folder(), assets_folder("versitygw")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="velero-requests-"))
        cluster: Any = RealCluster(assets) if assets else FakeCluster(tls=True)
        stack.callback(cluster.close)
        store: Any = RealStore(with_store) if with_store else FakeStore()
        stack.callback(store.close)
        shutil.copy(str(velero_requests.__file__), folder)
        os.rename(cluster.kubeconfig(folder), os.path.join(folder, "kubeconfig"))
        python = os.path.join(folder, "bin", "python")
        os.mkdir(os.path.dirname(python))
        with open(python, "w", encoding="utf-8") as file:  # a link would lose the virtual environment
            file.write(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        os.chmod(python, 0o755)
        yield Stage(cluster, store, folder, user_environment(folder))


@contextlib.contextmanager
def serving(stage: Stage, *command: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run the controller as a process of its own, and end it as an init system would."""
    process = stage.start(*command, **options)
    try:
        yield process
    finally:
        stop_process(process)


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
    keys = keys_file(store.access_key, store.secret_key)
    admin.create("secrets", {"kind": "Secret", "metadata": {"name": "cloud-credentials"},
                             "data": {"cloud": base64.b64encode(keys.encode()).decode()}}, NAMESPACE)
    config = {"region": store.region, "s3Url": store.url, "s3ForcePathStyle": "true"}
    admin.create("backupstoragelocations", {
        "kind": "BackupStorageLocation", "metadata": {"name": "default"},
        "spec": {"provider": "aws", "objectStorage": {"bucket": BUCKET}, "config": config,
                 "credential": {"name": "cloud-credentials", "key": "cloud"}}}, NAMESPACE)


# ------------------------------------------------------------------------------------------------------------
# Object stores: locations, endpoints, signatures and the plan of credentials, as values
# ------------------------------------------------------------------------------------------------------------

# Keys as S3 allows them, and the path they are signed with.
AWKWARD_OBJECT_KEYS: Tuple[Tuple[str, str], ...] = (
    ("a b", "a%20b"), ("a+b", "a%2Bb"), ("100%", "100%25"), ("%2F", "%252F"), ("%zz", "%25zz"),
    ("~tilde~", "~tilde~"), ("a//b", "a//b"), ("/a", "/a"), ("a/", "a/"), ("é", "%C3%A9"), ("e\u0301", "e%CC%81"),
    ("😀", "%F0%9F%98%80"), ("?x=1", "%3Fx%3D1"), ("#x", "%23x"), ("a&b;c", "a%26b%3Bc"),
    ("a:b@c", "a%3Ab%40c"), ("!*'()", "%21%2A%27%28%29"), ("a\\b", "a%5Cb"), ("\x01\x7f\n", "%01%7F%0A"),
    ("a..b", "a..b"), ("...", "..."), ("\"<>^`{|}", "%22%3C%3E%5E%60%7B%7C%7D"), ("$,[]", "%24%2C%5B%5D"))

# Of a location in eu-west-1 with bucket bkt: what else it says, and the URL of its bucket.
ADDRESSES: Tuple[Tuple[Dict[str, Any], str], ...] = (
    *((dict(region=region), f"https://bkt.s3.{region}.{suffix}") for region, suffix in (
        ("us-east-1", "amazonaws.com"), ("us-gov-west-1", "amazonaws.com"), ("cn-north-1", "amazonaws.com.cn"),
        ("us-iso-east-1", "c2s.ic.gov"), ("us-isob-east-1", "sc2s.sgov.gov"), ("eu-isoe-west-1", "cloud.adc-e.uk"),
        ("us-isof-south-1", "csp.hci.ic.gov"), ("eusc-de-east-1", "amazonaws.eu"), ("mars-north-7", "amazonaws.com"),
        ("us-isolated", "amazonaws.com"))),
    (dict(fips=True), "https://bkt.s3-fips.eu-west-1.amazonaws.com"),
    (dict(dualstack=True), "https://bkt.s3.dualstack.eu-west-1.amazonaws.com"),
    (dict(fips=True, dualstack=True), "https://bkt.s3-fips.dualstack.eu-west-1.amazonaws.com"),
    (dict(region="us-gov-west-1", fips=True, path_style=True), "https://s3-fips.us-gov-west-1.amazonaws.com/bkt"),
    (dict(region="cn-north-1", dualstack=True), "https://bkt.s3.dualstack.cn-north-1.amazonaws.com.cn"),
    (dict(bucket="a" * 63), f"https://{'a' * 63}.s3.eu-west-1.amazonaws.com"),
    *((dict(bucket=bucket), f"https://s3.eu-west-1.amazonaws.com/{path}") for bucket, path in (
        ("my.dotted.bucket", "my.dotted.bucket"), ("Bkt", "Bkt"), ("b_t", "b_t"), ("ab", "ab"), ("-ab", "-ab"),
        ("ab-", "ab-"), ("bkt!", "bkt%21"), ("a" * 64, "a" * 64), ("ü", "%C3%BC"), ("1.2.3.4", "1.2.3.4"))),
    (dict(s3_url="http://in:9000", public_url="https://out"), "https://bkt.out"),
    *((dict(s3_url=url), expected) for url, expected in (
        ("http://MinIO:9000", "http://bkt.minio:9000"), ("HTTP://h:80", "http://bkt.h"),
        ("https://h:443/", "https://bkt.h"),
        ("https://h:65535", "https://bkt.h:65535"), ("http://[::1]:80", "http://[::1]/bkt"),
        ("https://[::1]:80", "https://[::1]:80/bkt"),
        ("https://[2001:DB8::1]:8443/x", "https://[2001:db8::1]:8443/x/bkt"),
        ("http://10.0.0.1:9000", "http://10.0.0.1:9000/bkt"), ("http://10.0.0.1.nip.io", "http://bkt.10.0.0.1.nip.io"),
        ("http://h/base", "http://bkt.h/base"), ("http://my_minio.svc", "http://bkt.my_minio.svc"))),
    *((dict(s3_url=url, path_style=True), expected) for url, expected in (
        ("http://h:443", "http://h:443/bkt"), ("https://h:", "https://h/bkt"), ("https://h:0443", "https://h/bkt"),
        ("http://h/base//", "http://h/base/bkt"), ("http://h//a//b", "http://h//a//b/bkt"),
        ("http://h/a%20b", "http://h/a%20b/bkt"), ("http://h/a b", "http://h/a%20b/bkt"),
        ("http://h/ü", "http://h/%C3%BC/bkt"),
        ("http://h/a+b", "http://h/a%2Bb/bkt"), ("http://h/~x", "http://h/~x/bkt"))),
    *((dict(s3_url="http://h", bucket=bucket), f"http://{bucket}.h" if before else f"http://h/{bucket}")
      for bucket, before in (("abc.def", True), ("abc.de", False), ("abc..def", False), (".abc", False),
                             ("abc.", False),
                             ("abc.-de", False), ("Team", False), ("192.168.100.100", False))),
    (dict(s3_url="https://h", bucket="abc.def"), "https://h/abc.def"))

# What urlsplit drops, or what others read otherwise than it does; none of it is shown.
NO_ENDPOINTS = (
    " http://h", "http://h ", "\thttp://h", "http://h\n", "http://a\nb", "http://a\tb", "ht\rtp://h", "http://h\\@evil",
    "http://me:s3cr3t@h", "http://s3cr3t@h", "http://h#@evil", "http://h?s3cr3t", "http://h/#s3cr3t", "http://h%2eevil",
    "http://h。evil", "http://h℀evil", "http://[s3cr3t]", "http://[::1]x", "http://[::1", "http://[::1%25eth0]",
    "http://[1:2]", "http://h:0", "http://h:65536", "http://h:-1", "http://h:s3cr3t", "//h", "h", "h:9000",
    "s3://s3cr3t",
    "ftp://h", "http:h", "http:///s3cr3t", "http://", "https://:9000", "\x00http://h", "http://h\x7f",
    "http://h/a/../b",
    "http://h/.", "http://h ost", "http://ü", "http://h|x", "http://*.s3cr3t", "\u2003http://h",
    "http://h/" + "x" * 2048)


class TestStoreEndpoints(unittest.TestCase):
    """Where a bucket is, and an object in it."""

    def test_addresses(self) -> None:
        for over, expected in ADDRESSES:
            with self.subTest(**over):
                location = a_location(**over)
                address = vr.bucket_address(location)
                self.assertEqual(expected, "{}://{}{}".format(*address))
                self.assertEqual((location.region, address.host.lower()), (address.region, address.host))

    def test_what_aws_has_not(self) -> None:
        """FIPS in China, and FIPS or dual-stack with s3Url."""
        for over, words in ((dict(region="cn-north-1", fips=True), "no FIPS endpoints in cn-north-1"),
                            (dict(region="cn-north-1", fips=True, dualstack=True), "AWS_USE_FIPS_ENDPOINT"),
                            (dict(s3_url="http://minio", fips=True), "FIPS.*s3Url"),
                            (dict(s3_url="http://minio", dualstack=True), "AWS_USE_DUALSTACK_ENDPOINT"),
                            (dict(public_url="http://minio", fips=True, path_style=True), "AWS_USE_FIPS_ENDPOINT")):
            with self.subTest(**over), self.assertRaisesRegex(vr.ConfigError,
                                                              f"location 'default': .*{words}") as caught:
                vr.bucket_address(a_location(**over))
            self.assertEqual("InvalidStorageLocation", caught.exception.reason)

    def test_only_labels_make_hosts(self) -> None:
        """What would lead a host elsewhere is refused again where a host is made."""
        for text in ("", "x.evil.example/", "x@host:1/", "x/", "EU-West-1", "eu west", "x\n", "é", "-x", "x-", "x" * 64,
                     "a_b"):
            for make in (lambda: vr.aws_host("sts", text), lambda: vr.aws_host(text, "eu-west-1"),
                         lambda: vr.bucket_address(a_location(region=text)),
                         lambda: vr.bucket_address(a_location(region=text, s3_url="http://minio"))):
                with self.subTest(text=text), self.assertRaisesRegex(vr.ConfigError, "no DNS label") as caught:
                    make()
                self.assertEqual("InvalidStorageLocation", caught.exception.reason)
                self.assertTrue(str(caught.exception).isprintable())
        self.assertEqual("sts.cn-north-1.amazonaws.com.cn", vr.aws_host("sts", "cn-north-1"))

    def test_endpoints_that_are_another_host(self) -> None:
        for url in NO_ENDPOINTS:
            for over, key in (({"s3_url": url}, "s3Url"), ({"s3_url": "http://h", "public_url": url}, "publicUrl")):
                with self.subTest(**over), self.assertRaisesRegex(
                        vr.ConfigError, f"'default': {key} is no plain http or https URL") as caught:
                    vr.bucket_address(a_location(**over))
                self.assertEqual("InvalidStorageLocation", caught.exception.reason)
                self.assertNotIn("s3cr3t", str(caught.exception))

    def test_buckets_do_not_change_the_host(self) -> None:
        """Whatever a bucket is called, its host is the endpoint's or below it."""
        for url, host in (("", "s3.eu-west-1.amazonaws.com"), ("https://own.example", "own.example"),
                          ("http://own.example:9000", "own.example:9000")):
            for bucket in ("x@evil", "evil.example", "evil.example#", "UPPER", "x:y", "a?b", "[::1]", "é", "10.0.0.1",
                           "a/b", "x\\y", "arn:aws:s3:evil.example:1:accesspoint:x"):
                with self.subTest(url=url, bucket=bucket):
                    address = vr.bucket_address(a_location(s3_url=url, bucket=bucket))
                    self.assertRegex(address.host, rf"^([a-z0-9.-]+\.)?{re.escape(host)}$")

    def test_where_our_own_identity_belongs(self) -> None:
        """At AWS, and at the operator's endpoint: scheme, host and port are compared, and not how they are written."""
        for own, ours, others in (
                ("",
                 "https://s3.amazonaws.com https://s3.eu-west-1.amazonaws.com/ https://s3.eu-west-1.amazonaws.com.:443 "
                 "https://s3-fips.dualstack.us-gov-west-1.amazonaws.com https://s3.cn-north-1.amazonaws.com.cn",
                 "http://s3.eu-west-1.amazonaws.com https://s3.eu-west-1.amazonaws.com:444 https://s3xamazonaws.com "
                 "https://ec2-1-2-3-4.compute-1.amazonaws.com https://evil.s3.amazonaws.com "
                 "https://s3.evil.amazonaws.com https://vpce-1.vpce-svc-2.us-east-1.vpce.amazonaws.com "
                 "https://s3.cn-north-1.amazonaws.com https://s3.eu-west-1.amazonaws.com.evil.example "
                 "http://minio:9000 "
                 "https://s3-fips.cn-north-1.amazonaws.com.cn https://s3.dualstack.eu-west-1.amazonaws.com.cn"),
                ("http://minio:9000", "http://minio:9000 HTTP://MinIO.:9000/base",
                 "http://minio:9001 http://minio:90 http://minio https://minio:9000 http://xminio:9000"),
                ("http://minio.", "http://minio http://minio:80", "http://minio.evil.example http://minio:8"),
                ("https://minio", "https://minio:443", "http://minio:443 https://minio.example https://mini"),
                ("http://127.0.0.10", "http://127.0.0.10", "http://127.0.0.010 http://2130706442"),
                ("http://[fd00::000A]:9", "http://[FD00:0::a]:9", "http://[fd00::b]:9 http://[fd00::a]")):
            for url in (ours + " " + others).split():
                for over in ({"s3_url": url}, {"s3_url": own, "public_url": url}):
                    with self.subTest(own=own, **over):
                        try:
                            self.assertEqual(url in ours.split(), a_location(**over).is_for_own_identity(own))
                        except vr.ConfigError:
                            self.assertNotIn(url, ours.split())
        minio = a_location(s3_url="http://evil", public_url="http://minio")
        self.assertTrue(minio.is_for_own_identity("http://minio") and a_location().is_for_own_identity(""))

    def test_objects(self) -> None:
        """Each byte of a key is encoded once behind base path and bucket, slashes are kept, nothing is cleaned up."""
        for key, path in AWKWARD_OBJECT_KEYS:
            for over, base in ((dict(), "/"), (dict(s3_url="http://h/a%20b", path_style=True), "/a%20b/bkt/")):
                self.assertEqual(base + path, vr.object_address(a_location(**over), key).path, key)
        for first in range(0, 0xD800, 256):
            key = "".join(map(chr, range(first, first + 256)))
            path = vr.object_address(a_location(), key).path
            self.assertEqual("/" + key, unquote_to_bytes(path).decode())
            self.assertRegex(path, r"\A(?:[A-Za-z0-9\-._~/]|%[0-9A-F]{2})*\Z")


# What botocore is asked for where it is the oracle. Regions of each partition and beside them; endpoints.
ORACLE_REGIONS = ("us-east-1", "eu-west-1", "ap-southeast-5", "us-gov-west-1", "cn-north-1", "us-iso-east-1",
                  "us-isob-east-1", "eu-isoe-west-1", "us-isof-south-1", "eusc-de-east-1", "mars-north-7", "minio")
ORACLE_ENDPOINTS = ("", "", "", "http://minio:9000", "https://s3.example", "http://10.0.0.1:9000", "https://[fd00::1]",
                    "http://store.example/base", "https://h:443", "http://h:80", "https://h:8443/a/b")
ORACLE_BUCKETS = ("bkt", "my-bucket-1", "a.b", "abc.def", "Bkt", "b_t", "b", "1.2.3.4", "bkt!", "x" * 63, "x" * 64,
                  "-bkt", "a..b")
KEY_LETTERS = "abcXYZ019-._~ +=%&?$ü✓😀:@!*'()#\\|^`\"<>{}[];,\t"


def a_random_location(chance: random.Random) -> Any:
    """A location with region, endpoint, style, bucket, FIPS and dual-stack at random."""
    url, region = chance.choice(ORACLE_ENDPOINTS), chance.choice(ORACLE_REGIONS)
    return a_location(region=region, bucket=chance.choice(ORACLE_BUCKETS), s3_url=url,
                      path_style=chance.random() < 0.4, fips=not url and chance.random() < 0.2,
                      # The rule set has it in the closed partitions, too, where no such host exists.
                      dualstack=not url and "-iso" not in region and chance.random() < 0.2)


def a_random_key(chance: random.Random) -> str:
    """A key without a segment that clients would resolve, and without a slash in front or doubled."""
    parts = ("".join(chance.choices(KEY_LETTERS, k=chance.randint(1, 12))) for _ in range(chance.randint(1, 3)))
    return "/".join(part if part.strip(".") else "x" for part in parts)


def a_random_time(chance: random.Random) -> datetime:
    """An instant of this century."""
    return datetime(2001, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=chance.randrange(10**9))


@unittest.skipUnless(HAS_BOTOCORE, NO_BOTOCORE)
class TestStoreLikeBotocore(unittest.TestCase):
    """Addresses, URLs and signed headers with botocore as oracle; where we differ on purpose, a rule here says how."""

    provider: Any = None

    @classmethod
    def setUpClass(cls) -> None:
        """Load the rule set and the partitions of AWS once."""
        loader = botocore.session.Session().get_component("data_loader")
        cls.provider = __import__("botocore.endpoint_provider", fromlist=["EndpointProvider"]).EndpointProvider(
            loader.load_service_model("s3", "endpoint-rule-set-1"), loader.load_data("partitions"))

    def by_the_rules(self, location: Any) -> str:
        """The URL of a bucket by the rule set of AWS, ours where we differ on purpose; empty when it refuses."""
        # Rule 1: no label goes before an IP address, and dots need three letters between them.
        dotted = "." in location.bucket and (location.s3_url.startswith("http://10.") or
                                             min(map(len, location.bucket.split("."))) < 3)
        try:
            endpoint = self.provider.resolve_endpoint(
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

    @staticmethod
    def by_us(location: Any) -> str:
        """The URL of a location's bucket as the module says, empty when it refuses."""
        try:
            return "{}://{}{}".format(*vr.bucket_address(location))
        except vr.ConfigError:
            return ""

    def test_addresses(self) -> None:
        """Random locations are where the rule set of AWS says, or are refused by both."""
        chance = random.Random(12)
        for _ in range(600):
            location = a_random_location(chance)
            self.assertEqual(self.by_the_rules(location), self.by_us(location), location)

    @staticmethod
    def signed(signer: Any, keys: Any, service: str, region: str, now: datetime, request: Any, *more: Any) -> Any:
        """A request signed by a signer of botocore, led through its steps so that the time can be chosen."""
        signer = signer(botocore.credentials.Credentials(keys.access_key, keys.secret_key, keys.session_token or None),
                        service, region, *more)
        request.context["timestamp"] = now.strftime("%Y%m%dT%H%M%SZ")
        # pylint: disable=protected-access
        signer._modify_request_before_signing(request)
        text = signer.string_to_sign(request, signer.canonical_request(request))
        signer._inject_signature_to_request(request, signer.signature(text, request))
        return request

    def test_whole_urls(self) -> None:
        """Random locations, keys, tokens, times and lives give the identical URL."""
        chance, compared = random.Random(13), 0
        for _ in range(150):
            location, key = a_random_location(chance), a_random_key(chance)
            token = chance.choice(("", a_random_key(chance) * 9))
            now, seconds, bucket = a_random_time(chance), chance.choice((1, 600, 604800)), self.by_the_rules(location)
            if bucket:
                credentials = vr.Credentials("AKIA" + str(chance.randrange(10**9)), a_random_key(chance), token)
                theirs = self.signed(botocore.auth.S3SigV4QueryAuth, credentials, "s3", location.region, now,
                                     botocore.awsrequest.AWSRequest("GET", f"{bucket}/{self.percent_encode(key)}"),
                                     seconds).url
                # Rule 3: we send the parameters in the order in which they are signed, botocore puts the token last.
                *parameters, signature = theirs.partition("?")[2].split("&")
                ours = vr.presign(vr.object_address(location, key), credentials, now, timedelta(seconds=seconds))
                self.assertEqual(f"{theirs.partition('?')[0]}?{'&'.join(sorted(parameters))}&{signature}", ours,
                                 location)
                compared += 1
        self.assertGreater(compared, 80)

    @staticmethod
    def percent_encode(key: str) -> str:
        """A key in a path, as botocore's serializer writes it."""
        return str(__import__("botocore.utils", fromlist=["percent_encode"]).percent_encode(key, safe="/~"))

    def test_signed_headers(self) -> None:
        """Random bodies, tokens, regions and times of an STS call are signed as botocore signs them."""
        chance = random.Random(14)
        for _ in range(40):
            now, region, body = a_random_time(chance), chance.choice(ORACLE_REGIONS), a_random_key(chance).encode()
            keys = vr.Credentials("AKIA", a_random_key(chance), chance.choice(("", "t" * 40)))
            headers = {"host": f"sts.{region}.amazonaws.com", "content-type": "application/x-www-form-urlencoded"}
            theirs = self.signed(botocore.auth.SigV4Auth, keys, "sts", region, now, botocore.awsrequest.AWSRequest(
                "POST", f"https://{headers['host']}/", data=body, headers={"Content-Type": headers["content-type"]}))
            ours = vr.sign_headers("POST", "/", headers, body, keys, region, "sts", now)
            self.assertEqual(theirs.headers["Authorization"], ours["authorization"])


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


class TestStoreIni(unittest.TestCase):
    """Tests for `ini_sections` and `merge_profiles`."""

    def test_files(self) -> None:
        """A line that is indented more than its key goes on with its value; after a blank or a comment it is a key."""
        for text, expected in (
                *((f"[x]\n{line}\n", {"x": {"k": value}}) for line, value in (
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

    def test_what_is_no_file(self) -> None:
        """The error names the file and the line, and shows nothing of it."""
        for content, words in (
                *((text.encode(), rf"line {line} is neither a \[profile\] nor") for text, line in (
                    ("k = s3cr3t", 1), ("[x]\ns3cr3t", 2), ("[x]\n= s3cr3t", 2), ("[x\nk=s3cr3t", 1),
                    ("[x]\nk = v\n\n  s3cr3t", 4), ("[x]\n  k = v\n  s3cr3t", 3))),
                (b"[x]\nk=s3cr3t\xff", "not UTF-8"), (b"#" * (1 << 20) + b"#", "is larger than 1 MiB")):
            with self.subTest(content=content[:40]), self.assertRaisesRegex(
                    vr.CredentialsError, f"^the file.*{words}") as caught:
                vr.ini_sections(content, "the file")
            self.assertEqual(("InvalidCredentials", None), (caught.exception.reason, caught.exception.__cause__))
            self.assertNotIn("s3cr3t", str(caught.exception))
        self.assertEqual({}, vr.ini_sections(b"#" * (1 << 20), "the file"))

    def test_merging(self) -> None:
        """Credentials file and config file -> profiles; half a pair or a token is not taken from another section."""
        for credentials, config, expected in (
                ("x a=1", "profile_x a=2 b=3", "x a=1 b=3"), ("x a=1; profile_x a=2", "", "x a=1"),
                ("profile_x a=2; x a=1", "", "x a=1"), ("profile__x a=2", "", "x a=2"), ("", "x a=2", "x a=2"),
                ("", "profilex a=2", "profilex a=2"), ("", "default a=1; profile_default a=2", "default a=1"),
                ("x aws_secret_access_key=C", "profile_x PAIR r=1", "x aws_secret_access_key=C r=1"),
                ("x PAIR", "profile_x aws_session_token=old", "x PAIR")):
            files = [{name.replace("_", " "): pairs(rest) for name, _, rest in (
                text.partition(" ") for text in file.split("; ") if text)} for file in (credentials, config, expected)]
            before = repr(files)
            self.assertEqual(files[2], vr.merge_profiles(*files[:2]))
            self.assertEqual(before, repr(files))


class TestStorePlans(unittest.TestCase):
    """Tests for `plan_profile` and `plan_chain`: rows that end in a plan, or behind `!` in words of an error."""

    def assert_plan(self, expected: str, text: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Check one row, and that neither the plan's repr nor the error, which is returned, shows a secret."""
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

    def test_plans(self) -> None:
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

    def test_profiles_that_come_to_nothing(self) -> None:
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
        for name in ("", "a\nb", "x" * 10000):
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
        """Check the plan for an environment; SHARED names the section of `shared` that is the default profile."""
        variables = pairs(text)
        shared = {**self.shared, "default": self.shared[variables["SHARED"]]} if "SHARED" in variables else {}
        named = variables.get("AWS_PROFILE") or variables.get("AWS_DEFAULT_PROFILE") or ""
        return self.assert_plan(expected, text, vr.plan_chain, shared, named, "the files", variables)

    def test_order(self) -> None:
        """Of any set of sources the first in the list wins."""
        for chosen in itertools.product((False, True), repeat=len(self.order) - 1):
            rows = [row for row, there in zip(self.order, (*chosen, True)) if there]
            self.check(" ".join(text for text, _ in rows), rows[0][1])

    def test_chains(self) -> None:
        """A default profile that only says region or output does not end the chain, nor does half a pair of keys."""
        for text, expected in (
                ("SHARED=default AWS_PROFILE=p", "keys SHAREDP s"),
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

    def test_chains_that_come_to_nothing(self) -> None:
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


class TestStoreLife(unittest.TestCase):
    """A URL never outlives the credentials that signed it, and the answer says when it ends."""

    def test_signing(self) -> None:
        """Fraction of the second, when keys end, the store's clock before ours -> the URL's life."""
        for fraction, left, skew, life in (
                (0, None, 3600, 600), (0, 599.5, 0, 599), (0.9, 300.5, 0, 300), (0.9, 601, 0, 600),
                (0, 300, -1800, 300), (0, 300, 240, 60), (0, 300, 299, 1)):
            with self.subTest(fraction=fraction, left=left, skew=skew):
                keys = some_credentials(expires=None if left is None else after(seconds=left))
                url, ends = vr.sign(a_location(), "k", keys, after(seconds=fraction), timedelta(seconds=skew))
                query = dict(parse_qsl(urlsplit(url).query))
                self.assertEqual((vr.amz_date(after(seconds=skew)), str(life), after(seconds=fraction + life)),
                                 (query["X-Amz-Date"], query["X-Amz-Expires"], ends))
        for bucket, place in (("b.t", "https://s3.eu-west-1.amazonaws.com/b.t"),
                              ("bkt", "https://bkt.s3.eu-west-1.amazonaws.com/")):
            url = vr.sign(a_location(bucket=bucket), "", some_credentials(), NOW, timedelta(0))[0]
            self.assertEqual(place, url.partition("?")[0])
        for left, skew in ((0.5, 0), (-100000, 0), (300, 300), (-1, -1800)):
            with self.subTest(left=left), self.assertRaisesRegex(vr.ConfigError, "'default'.*expired") as caught:
                vr.sign(a_location(), "k", some_credentials(expires=after(seconds=left)), NOW, timedelta(seconds=skew))
            self.assertEqual("CredentialsExpired", caught.exception.reason)


class TestStoreAnswers(unittest.TestCase):
    """Tests for `xml_fields` and `explain_signature`."""

    def test_xml(self) -> None:
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

    def test_differences(self) -> None:
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


# ------------------------------------------------------------------------------------------------------------
# Stores: the services that hand out temporary keys
# ------------------------------------------------------------------------------------------------------------

STORE_ROLE = "arn:aws:iam::123456789012:role/velero"
STORE_IMDS_TOKEN, STORE_IMDS_KEYS = "/latest/api/token", "/latest/meta-data/iam/security-credentials/"
STORE_IMDS_ROLE = STORE_IMDS_KEYS + "node-role"


def store_now() -> datetime:
    return datetime.now(timezone.utc)


class KeyServices(LoopbackServer):
    """STS, the container's endpoint and the instance metadata service behind one port."""

    def __init__(self) -> None:
        """Start serving; every set of keys handed out is new and kept in `issued`."""
        super().__init__()
        self.life = 3600.0                              # seconds that keys live
        self.issued: Dict[str, Tuple[str, str]] = {}    # access key -> (secret key, session token)
        self.ends: List[str] = []                       # when they end
        self.web_token, self.container_token = "web-identity-of-the-pod", "container-token"
        self.signers = {"AKIASOURCE": ("source-secret/+", "")}  # who may call AssumeRole
        self.imds_tokens: List[str] = []
        self.start()

    def new_keys(self) -> Dict[str, str]:
        """Return new keys by the names that all services give them."""
        number = len(self.ends) + 1
        access_key, secret_key, token = f"ASIATEMP{number:08}", f"temp-secret/+{number}", f"temp-token/+={number}"
        self.ends.append(vr.format_time(store_now() + timedelta(seconds=self.life)))
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
        if request.raw_path == STORE_IMDS_KEYS:
            return Answer(200, b"node-role\n")
        return self._document(Code="Success") if request.raw_path == STORE_IMDS_ROLE else Answer(404, b"")

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
        if trouble or form.get("RoleArn") != STORE_ROLE:
            return Answer(403, self.sts_refusal(trouble or "AccessDenied"))
        keys = "".join(f"<{name}>{value}</{name}>" for name, value in self.new_keys().items())
        return Answer(200, (f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result>'
                            f"<Credentials>{keys}</Credentials></{action}Result></{action}Response>").encode())

    @staticmethod
    def sts_refusal(code: str) -> bytes:
        """Return the body of an error as STS words it."""
        return f"<ErrorResponse><Error><Code>{code}</Code><Message>refused</Message></Error></ErrorResponse>".encode()

    def _signature_trouble(self, request: Request) -> str:
        """Return what is wrong with a signature in the Authorization header, worked out anew from the request."""
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


class KeyTests(Mixin):
    """The services, a folder, and an environment without any AWS in it."""

    def setUp(self) -> None:
        self.start_services()

    def start_services(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="velero-requests-keys-")
        self.addCleanup(shutil.rmtree, self.folder, True)
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        hidden = [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]
        self.services = KeyServices()
        stack.callback(self.services.close)
        stack.enter_context(environment({**dict.fromkeys(hidden), "HOME": self.folder,
                                         "AWS_ENDPOINT_URL_STS": self.services.url}))

    def write(self, name: str, text: str) -> str:
        """Write a file into the folder and return its path."""
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        return path

    def plan(self, how: str, **more: str) -> Any:
        """Return a plan to which the services give keys, with more values or others."""
        if how == "process":
            script = self.write("keys.sh", more["script"])
            return vr.Plan.of(how, {"credential_process": f"sh {shlex.quote(script)}", "profile": "profile 'p' of f"})
        source = vr.Plan.of("keys", {
            "aws_access_key_id": "AKIASOURCE", "aws_secret_access_key": "source-secret/+", **more})
        return vr.Plan.of(how, {
            "role_arn": STORE_ROLE, "web_identity_token_file": os.path.join(self.folder, "token"),
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
        """Return the form of the last request to STS."""
        return dict(parse_qsl(self.services.seen("POST")[-1].body.decode()))


# Answers without keys in them, which are not shown; the first four may come from STS, too.
NO_KEYS: Tuple[bytes, ...] = (
    b"", b"\xff\xfe\0", b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey></SecretAccessKey>",
    b"<AccessKeyId>ASIASHOWN</AccessKeyId><SecretAccessKey>cut-sec", b"[]", b'{"AccessKeyId": "ASIASHOWN"}',
    b'{"AccessKeyId": 7, "SecretAccessKey": ["ASIASHOWN"]}', b'{"AccessKeyId": "ASIASHOWN", "Sec', b"[" * 60000)
# Each exchange of each plan: method and path.
EXCHANGES_FOR_KEYS: Tuple[Tuple[str, str, str], ...] = (
    ("web identity", "POST", "/"), ("role", "POST", "/"), ("container", "GET", "/container"),
    ("instance", "PUT", STORE_IMDS_TOKEN), ("instance", "GET", STORE_IMDS_KEYS), ("instance", "GET", STORE_IMDS_ROLE))


class TestStoreServices(KeyTests, unittest.TestCase):
    """Every service that hands out keys, whatever befalls it."""

    def check(self, expected: str, tries: int, how: str, method: Optional[str] = None, part: str = "",
              more: Optional[Dict[str, str]] = None, **fault: Any) -> None:
        """Check one exchange that goes wrong: what comes of the plan, and how often it was tried."""
        with self.subTest(how=how, part=part, **fault):
            self.services.forget()
            if fault:
                self.services.script(method, part, **fault)
            self.assertRegex(self.fetch(how, **more or {}), f"^{expected}")
            self.assertEqual(tries, len([seen for seen in self.services.seen(method) if part in ("", seen.target)]))
            self.services.unscript()

    def test_what_passes_is_asked_again(self) -> None:
        """At each exchange of each service; the third try may be right, and is the last."""
        for row in EXCHANGES_FOR_KEYS:
            reason = "CredentialsNotFound" if row[0] == "instance" else "InvalidCredentials"
            self.check("keys", 3, *row, times=2, status=503)
            self.check(f"{reason}: .*503", 3, *row, times=9, status=503)
        faults: List[Document] = [{"status": 500}, {"status": 429}, {"drop": True}]
        faults += [{"status": 400, "body": KeyServices.sts_refusal(code)} for code in (
            "IDPCommunicationError", "InvalidIdentityToken", "Throttling", "ThrottlingException",
            "RequestLimitExceeded")]
        for fault in faults:
            self.check("keys", 2, *EXCHANGES_FOR_KEYS[0], **fault)
        never = threading.Event()
        self.addCleanup(never.set)
        self.check("keys", 2, "instance", "PUT", hang=never)

    def test_what_is_final(self) -> None:
        """A refusal is asked for once and told with its code; an answer without keys is an error, and not shown."""
        wrong, none = "InvalidCredentials: ", "CredentialsNotFound: nothing else .* the instance metadata .*role"
        for how, more, words in (
                ("web identity", {"role_arn": STORE_ROLE + "-other"},
                 f"STS, asked for role {STORE_ROLE}-other, gives no keys: status 403 AccessDenied refused$"),
                ("role", {"aws_secret_access_key": "wrong-secret"}, ".*SignatureDoesNotMatch"),
                *(("container", {"token": token}, "the container's .*: status 401 Unauthorized the token is missing")
                  for token in ("stale", ""))):
            self.check(wrong + words, 1, how, more=more)
        for how, method, part, bodies, words in (
                ("web identity", "POST", "/", NO_KEYS[:4], wrong + "STS, .*"),
                ("container", "GET", "/container", NO_KEYS, wrong + "the container's credential endpoint"),
                ("instance", "GET", STORE_IMDS_ROLE, NO_KEYS[:5], none + ".*")):
            for body in bodies:
                self.check(words + " gives no keys: there are none", 1, how, method, part, status=200, body=body)
        for method, part, fault, words in (
                ("PUT", "", {"status": 403}, "status 403"), ("GET", STORE_IMDS_KEYS, {"status": 401}, "status 401"),
                ("GET", STORE_IMDS_ROLE, {"status": 200, "body": b'{"Code": "AssumeRoleUnauthorized"}'}, "AssumeRoleU"),
                ("GET", STORE_IMDS_KEYS, {"status": 200, "body": b"\n"}, "there are none")):
            self.check(f"{none}.* gives no keys: {words}", 1, "instance", method, part, **fault)
        self.check(f"{none}.* gives no keys: no answer$", 3, "instance", "PUT", times=9, drop=True)

    def test_what_is_asked(self) -> None:
        """Version 2 of the instance's service; no proxy for it; and what it calls the role stays in its place."""
        proxies = {name: "http://127.0.0.1:1" for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")}
        with environment({**proxies, "NO_PROXY": None, "no_proxy": None}):
            self.assertEqual(["keys", "keys"], [self.fetch(how) for how in ("instance", "container")])
        self.assertEqual([(request.target, request.headers.get("x-aws-ec2-metadata-token"))
                          for request in self.services.seen()][:3],
                         [(STORE_IMDS_TOKEN, None), *((path, self.services.imds_tokens[0]) for path in (
                             STORE_IMDS_KEYS, STORE_IMDS_ROLE))])
        self.services.script("GET", STORE_IMDS_KEYS, status=200, body=b"../../../user-data?x=1#y")
        self.assertRegex(self.fetch("instance"), "CredentialsNotFound: .*status 404")
        self.assertEqual(self.services.seen("GET")[-1].target, STORE_IMDS_KEYS + "..%2F..%2F..%2Fuser-data%3Fx%3D1%23y")
        self.services.forget()
        self.assertRegex(self.fetch("container", token="one\r\nX-Evil: 1"), "token has characters that cannot be sent")
        self.services.script("PUT", status=200, body=b"one\r\nX-Evil: 1")
        self.assertRegex(self.fetch("instance"), "token of the instance metadata service has characters")
        self.assertEqual(self.services.seen("GET"), [])

    def test_tokens_are_read_anew(self) -> None:
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
        lost = self.fetch("web identity", web_identity_token_file=os.path.join(self.folder, "lost"))
        self.assertRegex(lost, "web identity token .*/lost")
        self.assertEqual(self.services.seen(), [])

    def test_roles(self) -> None:
        """What the form says; AssumeRole bears a signature that a second implementation works out alike."""
        session = r"[\w+=,.@-]{2,64}"
        for how, path, more, fields in (
                ("web identity", "", {"role_session_name": "pod"}, ("pod", None, None)),
                ("web identity", "", {}, (session, None, None)),
                ("role", "", {"role_session_name": "n", "duration_seconds": "901"}, ("n", None, "901")),
                ("role", "/", {"aws_session_token": "token/+=", "external_id": "e/ &=ü"}, (session, "e/ &=ü", None))):
            with self.subTest(how, **more), environment({"AWS_ENDPOINT_URL_STS": self.services.url + path}):
                self.services.signers["AKIASOURCE"] = ("source-secret/+", more.get("aws_session_token", ""))
                self.assertEqual("keys", self.fetch(how, **more))
                self.assertRegex(self.form()["RoleSessionName"], f"^{fields[0]}$")
                self.assertEqual(fields[1:], (self.form().get("ExternalId"), self.form().get("DurationSeconds")))
        self.services.signers = self.services.issued
        chain = vr.Plan.of("role", {"role_arn": STORE_ROLE}, self.plan("web identity"))
        keys = vr.fetch_credentials(chain, "eu-north-1")
        self.assertEqual(list(self.services.issued)[-1], keys.access_key)

    def test_the_host_is_that_of_the_region(self) -> None:
        """Through a proxy, where the environment names one."""
        with environment({"AWS_ENDPOINT_URL_STS": None, "HTTPS_PROXY": self.services.url}):
            self.assertRegex(self.fetch("web identity"), "^Unreachable: ")
        self.assertEqual({request.target for request in self.services.seen()}, {"sts.eu-north-1.amazonaws.com:443"})

    def test_programs(self) -> None:
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

    def test_regions(self) -> None:
        """S3 names a bucket's region in any answer to an unsigned HEAD; what is no label chooses no host."""
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


class TestCredentialCache(KeyTests, unittest.TestCase):
    """Keys are renewed before their end, by one caller at a time."""

    def setUp(self) -> None:
        super().setUp()
        self.write("token", self.services.web_token)
        self.cache, self.start = vr.CredentialCache(self.plan("web identity"), "us-east-1"), store_now()

    def take(self, minutes: float, **options: Any) -> Any:
        """Return what the cache gives at a time from the start."""
        return self.cache.get(self.start + timedelta(minutes=minutes), **options)

    def test_keys_through_their_life(self) -> None:
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
                self.cache, self.start = vr.CredentialCache(self.cache.plan, "us-east-1"), store_now()
                self.services.forget()
                for minutes, trouble, expected, exchanges in rows:
                    with self.subTest(minutes=minutes, trouble=trouble), contextlib.ExitStack() as stack:
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

    def test_threads(self) -> None:
        """Eight of them cost one exchange; those that may not wait are told, or have the old keys while these live."""
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

    def test_keys_that_last_cost_nothing(self) -> None:
        self.cache = vr.CredentialCache(KEYS_1, "us-east-1")
        self.assertEqual((vr.Credentials("AKIA1", "s1"), []), (self.take(600_000), self.services.seen()))


class TestHostLimiter(unittest.TestCase):
    """Tests for `HostLimiter`, of four workers and with failures remembered for an hour."""

    def test_who_may_ask(self) -> None:
        """Hosts that have answered before, hosts that are being asked, the host to ask, and whether it may be."""
        for answered, asked, host, may in (
                ("", "", "a", True), ("", "a", "a", False), ("", "ab", "c", True), ("", "abc", "d", False),
                ("a", "bcd", "a", True), ("a", "aa", "a", True), ("a", "aaa", "a", False), ("a", "aaa", "b", True),
                ("ab", "aaab", "b", True), ("a", "aab", "b", False)):
            with self.subTest(answered=answered, asked=asked, host=host), contextlib.ExitStack() as stack:
                hosts = vr.HostLimiter(4, 3600)
                for name in answered:
                    with hosts.guard(name):
                        pass
                for name in asked:
                    stack.enter_context(hosts.guard(name))
                with contextlib.nullcontext() if may else self.assertRaises(vr.Busy), hosts.guard(host):
                    pass

    def test_failures(self) -> None:
        """A silence is remembered for a while, a quick failure is not, and an answer of any kind counts as one."""
        hosts, silence = vr.HostLimiter(4, 3600), vr.Unreachable("no answer")
        for host, quick, pause, error, remembered in (
                ("a", 60.0, 3600, silence, False), ("a", 0.0, 3600, silence, True),
                ("b", 0.0, 3600, vr.StoreError("no"), False), ("c", 0.0, 0, silence, False)):
            hosts.quick, hosts.pause = quick, pause
            with self.subTest(host=host, quick=quick):
                with self.assertRaises(type(error)), hosts.guard(host):
                    raise error
                with self.assertRaisesRegex(vr.Unreachable, "no answer") if remembered else contextlib.nullcontext(), \
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

    def test_memory_is_bounded(self) -> None:
        hosts = vr.HostLimiter(4, 3600)
        for number in range(3000):
            with hosts.guard(str(number)):
                pass
        self.assertLessEqual(len(hosts.ends), vr.MAX_HOSTS)


# ------------------------------------------------------------------------------------------------------------
# Stores: from a request to its URL, with keys from the network
# ------------------------------------------------------------------------------------------------------------

class TimelyStore(FakeStore):
    """A store whose Date header follows its clock."""

    def send(self, request: Request, connection: Connection, answer: Answer) -> bool:
        request.status = answer.status
        dated = answer._replace(headers=(*answer.headers, ("Date", formatdate(self.clock(), usegmt=True))))
        connection.socket.sendall(self.whole(request, dated, dated=False))
        return True


class StoreWorld(FakeWorld):
    """A cluster and a store with a clock, asked by `controller --once` in this process."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return FakeCluster(tls=True), TimelyStore()

    def tearDown(self) -> None:
        """Let the store be as it was."""
        self.store.clock, self.store.hide_missing = time.time, False
        self.store.keys = {self.store.access_key: (self.store.secret_key, "")}
        self.store.unscript()

    def once(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None) -> Result:
        """Run the controller once over what is there."""
        result = self.cli("controller", "--once", *argv, env=env)
        self.assert_clean(result.err, result.out)
        self.assertNotIn("Traceback", result.err)
        return result

    def answer_to(self, *argv: str, env: Optional[Dict[str, Optional[str]]] = None, name: str = "b1") -> Document:
        """Return a new request once the controller has looked at it."""
        asked = self.ask(name=name)
        self.once(*argv, env=env)
        return self.admin.get("downloadrequests", asked, self.namespace)

    def url_in(self, document: Document) -> str:
        """Return the URL in an answer, which must be Processed and bear no reason."""
        self.assertEqual((document.get("status", {}).get("phase"), reason_of(document)), ("Processed", ""),
                         document["metadata"].get("annotations"))
        return str(document["status"]["downloadURL"])

    def assert_reason(self, document: Document, reason: str, *words: str) -> None:
        """Check that a request bears this reason and a sentence with these words, all of them patterns, and no URL."""
        notes, status = document["metadata"].get("annotations") or {}, document.get("status") or {}
        self.assertRegex(notes.get(REASON, ""), f"^({reason})$", notes)
        for word in words:
            self.assertRegex(notes[MESSAGE], word)
        self.assertNotIn("\n", notes[MESSAGE])
        self.assertFalse(status.get("downloadURL") or status.get("phase") == "Processed", status)
        self.assert_clean(notes)

    def lay_out(self, name: str, config: Optional[Document] = None, secret: str = "", **storage: Any) -> str:
        """Create a location, with a Secret of its own if it has a text, and a backup with a log there -> its name."""
        if secret:
            self.make_secret(name, text=secret)
        self.make_location(name, config, name if secret else None, **storage)
        self.make_backup(name, name)
        self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(LOG))
        return name


# What somebody writes who may create locations and Secrets -> the reason, and words of the message. {evil} is a host of
# his own, {own} the operator's endpoint, {here} a folder of ours.
SIGNERS: Tuple[Tuple[Document, str, str, str], ...] = (
    ({"region": "x@{evil}/"}, "", "InvalidStorageLocation", "region"),
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


class TestStoreWhoSigns(KeyTests, StoreWorld, unittest.TestCase):
    """Our identity signs for locations without a Secret; locations and Secrets of the cluster carry it nowhere else."""

    def setUp(self) -> None:
        """Give this process an identity by STS and by files, and a stranger a host."""
        StoreWorld.setUp(self)
        self.start_services()
        self.own_keys = keys_file(self.store.access_key, self.store.secret_key)
        self.evil = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.evil.close)
        self.allowed = self.write("allowed", f"[default]\ncredential_process = touch {self.folder}/ran\n")
        self.pod: Dict[str, Optional[str]] = {
            "AWS_ENDPOINT_URL_S3": self.store.url, "AWS_ENDPOINT_URL_STS": self.services.url,
            "AWS_ROLE_ARN": STORE_ROLE, "AWS_WEB_IDENTITY_TOKEN_FILE": self.write("token", self.services.web_token),
            "AWS_SHARED_CREDENTIALS_FILE": self.write("own", self.own_keys.replace("default", "p") + self.own_keys)}

    def direct(self, name: str, *flags: str, **env: Optional[str]) -> Result:
        return self.cli("download", name, "--kind=BackupLog", "--url-only", *flags, env={**self.pod, **env})

    def test_a_web_identity_signs_the_url(self) -> None:
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

    def test_urls_end_with_the_keys(self) -> None:
        """URL, expiration, and what --direct signs; ended keys sign nothing."""
        self.lay_out("own")
        self.services.life = 200
        document = self.answer_to(env=self.pod, name="own")
        end = instant(self.services.ends[-1])
        self.assertLess(abs((instant(document["status"]["expiration"]) - end).total_seconds()), 2)
        for url in (self.url_in(document), self.direct("own", "--direct").out.decode()):
            self.assertTrue(180 < int(dict(parse_qsl(urlsplit(url).query))["X-Amz-Expires"]) <= 200, url)
        self.services.life = -5
        self.assert_reason(self.answer_to(env=self.pod, name="own"), "CredentialsExpired", "expired")
        self.assert_failed(self.direct("own", "--direct"), 1, "the credentials of", "have expired")

    def assert_nothing_happened(self) -> None:
        """Check that nobody came to the stranger's host, nothing ran, and no keys were asked for."""
        self.evil.setblocking(False)
        self.assertRaises(BlockingIOError, self.evil.accept)
        self.assertFalse(os.path.exists(os.path.join(self.folder, "ran")))
        self.assertEqual([], self.services.seen())

    def test_attacks(self) -> None:
        """Each is refused before anything is fetched, sent or run, by the controller and by --direct."""
        places = {"evil": f"127.0.0.1:{self.evil.getsockname()[1]}", "own": self.store.url, "here": self.folder,
                  "role": STORE_ROLE}
        names = [self.lay_out(f"row{number}", {key: value.format(**places) for key, value in config.items()},
                              secret.format(**places)) for number, (config, secret, _, _) in enumerate(SIGNERS)]
        asked = [self.ask(name=name) for name in names]
        self.once("--verify-urls", "--allow-credentials-file", self.allowed, env=self.pod)
        for name, request, (config, secret, reason, words) in zip(names, asked, SIGNERS):
            with self.subTest(config=config, secret=secret):
                self.assert_reason(self.admin.get("downloadrequests", request, self.namespace), reason, words)
                result = self.direct(name, "--direct", "--allow-credentials-file", self.allowed)
                self.assert_failed(result, 1)
                self.assertRegex(result.err, words)
        self.assert_nothing_happened()

    def test_whose_keys_sign(self) -> None:
        """Programs and profiles of our files, the location's Secret before them, what the operator names anywhere."""
        self.services.signers[self.store.access_key] = (self.store.secret_key, "")
        program = json.dumps({"Version": 1, **self.services.new_keys()})
        keys, named = self.write("keys", self.own_keys), self.own_keys.replace("default", "q")
        files = {"AWS_SHARED_CREDENTIALS_FILE": self.write("named", named), "AWS_CONFIG_FILE": self.write(
            "config", f"[default]\ncredential_process = cat {shlex.quote(self.write('printed', program))}\n")}
        document = self.write("location", json.dumps({"spec": {
            "provider": "aws", "objectStorage": {"bucket": self.namespace},
            "config": {"region": self.store.region, "s3Url": self.store.url, "credentialsFile": keys}}}))
        role = f"{named}[default]\nrole_arn = {STORE_ROLE}\nsource_profile = q\n[other]\ncredential_process = x\n"
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

    def test_files_that_are_allowed(self) -> None:
        """Only a regular file of a MiB is read, also behind a link; anything else is one sentence and blocks nobody."""
        os.symlink(self.write("good", self.own_keys), os.path.join(self.folder, "link"))
        os.mkfifo(os.path.join(self.folder, "fifo"))
        self.write("large", "#" * (1 << 20) + "\n")
        for name, code, words in (("good", 0, "^$"), ("link", 0, "^$"), ("fifo", 1, "no regular file"),
                                  ("", 1, "no regular file"), ("large", 1, "larger than 1 MiB"),
                                  ("absent", 1, "no regular file"), ("/dev/zero", 1, "no regular file")):
            with self.subTest(name=name):
                path = os.path.join(self.folder, name)
                backup = self.lay_out("b" + name.replace("/", "-"), {"credentialsFile": path})
                result = self.direct(backup, "--direct", "--allow-credentials-file", path)
                self.assertEqual(code, result.code, result.err)
                self.assertRegex(result.err, words)

    def test_tls_of_aws_is_nobody_s_to_loosen(self) -> None:
        """Our own identity trusts the system's authorities at AWS, whatever a location says; a Secret or a file may."""
        spec = {"objectStorage": {"bucket": "bkt", "caCert": base64.b64encode(b"PEM").decode()}}
        secret = {"credential": {"name": "n", "key": "k"}}
        for more, url, own, lax in (({}, "", False, False), (secret, "", False, True), ({}, "", True, True),
                                    ({}, "https://minio", False, True)):
            config = {"region": "eu-west-1", "insecureSkipTLSVerify": "true", "s3Url": url}
            found = vr.find_location(None, "", a_location_document(config, **spec, **more), trusted=own)
            self.assertEqual((lax, lax, not lax), (found.insecure, bool(found.ca_cert), bool(found.warnings)))

    def test_hosts_and_regions(self) -> None:
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


class TestStoreAuthority(StoreWorld, unittest.TestCase):
    """A store behind TLS with an authority of its own, kept in a Secret."""

    @classmethod
    def start(cls) -> Tuple[Any, Any]:
        return FakeCluster(tls=True), FakeStore(tls=True)

    def test_the_authority_may_lie_in_a_secret(self) -> None:
        """caCertRef names the Secret that makes the store trusted; without it, or with another, the reason says so."""
        with open(self.store.ca, encoding="ascii") as file:
            self.make_secret("authority", "ca.crt", file.read())
        self.make_secret("too-large", "ca.crt", "x" * (257 << 10))
        for name, reference, reason, words in (
                ("good", {"name": "authority", "key": "ca.crt"}, "", ""), ("none", {}, ".+", "certificate"),
                ("large", {"name": "too-large", "key": "ca.crt"}, "InvalidStorageLocation", "caCertRef"),
                ("half", {"name": "authority", "key": "ca.pem"}, "SecretKeyNotFound", "ca.pem"),
                ("lost", {"name": "absent", "key": "ca.crt"}, "SecretNotFound", "absent")):
            with self.subTest(name):
                self.lay_out(name, secret=keys_file(self.store.access_key, self.store.secret_key), caCertRef=reference)
                document = self.answer_to("--verify-urls", name=name)
                if reason:
                    self.assert_reason(document, reason, words)
                else:
                    self.url_in(document)


# ------------------------------------------------------------------------------------------------------------
# Stores: what a store answers
# ------------------------------------------------------------------------------------------------------------

class StoreRelay(LoopbackServer):
    """A proxy in front of a store that changes requests on their way."""

    def __init__(self, store: FakeStore, change: Callable[[Request], Request]) -> None:
        super().__init__()
        self.store, self.change = store, change
        self.start()

    def handle(self, request: Request) -> Answer:
        return self.store.handle(self.change(request))


def refusal_xml(code: str, message: str = "Some &lt;words&gt;", **fields: str) -> bytes:
    """Return the body of a store's refusal."""
    more = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


class TestStoreRefusals(unittest.TestCase):
    """Each refusal of a store is one sentence, a reason and a cure, and tells nothing of the signature."""

    def setUp(self) -> None:
        self.store = TimelyStore(region="eu-north-1")
        self.addCleanup(self.store.close)
        self.store.put("bucket", "a", b"x" * 10)
        self.store.keys["ASIATEMP1"] = ("temp-secret", "temp-token/+=")
        self.url = self.store.url_of("bucket", "a")

    def refusal(self, url: str, reason: str, *words: str) -> Any:
        """Check how a URL is refused, and return the error."""
        with self.assertRaises(vr.StoreError) as caught, vr.open_url(url):
            pass
        error = caught.exception
        text = "\n".join((str(error), *error.hints))
        self.assertEqual(error.reason, reason, text)
        self.assertTrue(str(error).isprintable())
        self.assertIn(urlsplit(url).netloc, str(error))
        for word in words:
            self.assertIn(word, text)
        query = dict(parse_qsl(urlsplit(url).query))
        for secret in (self.store.access_key, self.store.secret_key, "ASIATEMP", "temp-token",
                       *filter(None, map(query.get, ("X-Amz-Signature", "X-Amz-Security-Token")))):
            self.assertNotIn(secret, text)
        return error

    def signed(self, **changes: str) -> str:
        """Return a URL signed otherwise."""
        return presigned_url(f"{self.store.url}/bucket/a", **{
            "access_key": self.store.access_key, "secret_key": self.store.secret_key, "region": self.store.region,
            **changes})

    def test_what_the_store_finds_itself(self) -> None:
        """Missing files and buckets, foreign keys, old URLs and other regions have a reason and a cure each."""
        store = self.store
        for url, reason, words in (
                (store.url_of("bucket", "none"), "ArtifactNotFound", ("no such file",)),
                (store.url_of("no-bucket", "a"), "BucketNotFound", ("objectStorage.bucket",)),
                (self.signed(access_key="AKIAOTHER"), "InvalidCredentials", ("Secret or the credentials file",)),
                (self.signed(secret_key="wrong"), "SignatureDoesNotMatch", ("the secret key is not the one",)),
                (store.url_of("bucket", "a", at=time.time() - 700), "UrlExpired", ()),
                (store.url_of("bucket", "a", token="temp-token"), "InvalidCredentials", ("session token",)),
                (self.signed(region="us-east-1"), "WrongRegion", ("eu-north-1", "region of the storage location"))):
            with self.subTest(reason, words=words):
                self.assertTrue(self.refusal(url, reason, *words).hints)
        store.hide_missing = True
        self.refusal(store.url_of("bucket", "none"), "StoreAccessDenied", "s3:ListBucket")

    def test_what_other_stores_answer(self) -> None:
        """Codes that our store cannot give, pages that are no S3, forged lines, and what a store echoes of the URL."""
        page, elsewhere = b"<!DOCTYPE html><html>login</html>", {"x-amz-bucket-region": "eu-west-3"}
        for status, body, headers, reason, words in (
                (400, refusal_xml("ExpiredToken"), {}, "CredentialsExpired", ("renew",)),
                (403, refusal_xml("RequestTimeTooSkewed"), {}, "ClockSkew", ("clock",)),
                (403, refusal_xml("InvalidObjectState"), {}, "ArtifactArchived", ("archive",)),
                (403, refusal_xml("AccessDenied"), {}, "StoreAccessDenied", ("s3:GetObject", "Some <words>")),
                (301, refusal_xml("PermanentRedirect"), elsewhere, "WrongEndpoint", ("eu-west-3",)),
                (307, refusal_xml("TemporaryRedirect"), {}, "WrongEndpoint", ("s3Url",)),
                (301, b"", elsewhere, "WrongEndpoint", ("eu-west-3",)),
                (400, b"", elsewhere, "WrongRegion", ("eu-west-3",)),
                (400, b"", {}, "StoreError", ("400",)), (403, b"", {}, "StoreAccessDenied", ()),
                (503, refusal_xml("SlowDown"), {}, "StoreError", ("SlowDown",)), (500, b"", {}, "StoreError", ("500",)),
                (302, page, {"Location": self.store.url + "/login"}, "StoreError", ("HTML",)),
                (403, page, {}, "StoreAccessDenied", ("HTML",)), (404, page, {}, "ArtifactNotFound", ("HTML",)),
                (403, refusal_xml("AccessDenied", "a&#10;error: forged&#27;[2Jb\nc"), {}, "StoreAccessDenied",
                 ("forged",)),
                (403, refusal_xml("AccessDenied", self.url.replace("&", "&amp;")), {}, "StoreAccessDenied", ())):
            with self.subTest(status=status, body=body):
                self.store.script("GET", status=status, body=body, headers=headers)
                self.refusal(self.url, reason, *words)
        self.assertEqual(self.store.seen(path_part="/login"), [])
        self.store.script("GET", status=404, body=refusal_xml("XAdminUserNotFound"))  # no artifact is missing
        self.assertEqual(vr.Exit.NOT_ALLOWED, self.refusal(self.url, "InvalidCredentials").exit)

    def test_what_a_proxy_changes_is_named(self) -> None:
        """A signature that fails because of a proxy names the element that it changed, with both values."""
        def change(request: Request, method: str = "", target: str = "", host: str = "") -> Request:
            pairs = [(name, host or value if name.lower() == "host" else value) for name, value in request.header_list]
            return Request(method or request.method, target or request.target, pairs, b"")
        rows: Tuple[Tuple[str, Callable[[Request], Request], str], ...] = (
            ("host", lambda request: change(request, host="inner.example"), "inner.example"),
            ("path", lambda request: change(request, target=request.target.replace("/pub/", "/", 1)), "/bucket/a"),
            ("query", lambda request: change(request, target=request.target + "&tracking=1"), ""),
            ("method", lambda request: change(request, method="HEAD"), "HEAD"))
        self.store.path_hosts.add("inner.example")
        for element, changed, seen in rows:
            relay = StoreRelay(self.store, changed)
            self.addCleanup(relay.close)
            address = vr.object_address(vr.Location(
                "l", "bucket", region=self.store.region, path_style=True,
                s3_url=relay.url + ("/pub" if element == "path" else "")), "a")
            for keys in (vr.Credentials(self.store.access_key, self.store.secret_key, ""),
                         vr.Credentials("ASIATEMP1", "temp-secret", "temp-token/+=")):
                with self.subTest(element, keys=keys):
                    url = vr.presign(address, keys, store_now(), timedelta(minutes=5))
                    self.refusal(url, "SignatureDoesNotMatch", f"the {element}", "differs", seen)
                    if element == "host":    # the order of parameters is no difference
                        path, _, query = url.partition("?")
                        url = f"{path}?{'&'.join(sorted(query.split('&'), reverse=True))}"
                        self.refusal(url, "SignatureDoesNotMatch", "the host", "inner.example")
            self.assertEqual(relay.bugs, [])


# ------------------------------------------------------------------------------------------------------------
# Stores: controller --verify-urls
# ------------------------------------------------------------------------------------------------------------

class TestStoreVerify(StoreWorld, unittest.TestCase):
    """A URL is tried before it is handed out, when that is asked for."""

    def gets(self) -> List[Request]:
        """Return the GETs of this test's bucket."""
        return self.store.seen("GET", f"/{self.namespace}/")

    def controller(self) -> Any:
        """Return a controller that verifies, and remembers from one run to the next."""
        api = vr.connect(vr.load_cluster(self.kubeconfig))
        return vr.Controller(api, self.namespace, vr.Server("v1"), verify_urls=True)

    def test_good_urls(self) -> None:
        """One byte is asked for, once; 416 of an empty object and 200 of a store without ranges prove the URL, too."""
        self.url_in(self.answer_to())        # without the flag a URL for a missing artifact is given, as Velero does
        self.assertEqual(self.gets(), [])
        for body, fault, status in ((b"x" * 9, {}, 206), (b"", {}, 416),
                                    (b"", {"status": 200, "body": b"x" * 99_999}, 200)):
            with self.subTest(status):
                self.store.put(self.namespace, KEYS["BackupLog"], body)
                if fault:
                    self.store.script("GET", self.namespace, **fault)
                before = len(self.gets())
                self.url_in(self.answer_to("--verify-urls"))
                self.assertEqual([(status, "bytes=0-0")], [
                    (request.status, request.headers["range"]) for request in self.gets()[before:]])

    def test_what_is_wrong_is_left_on_the_request(self) -> None:
        """Reason and a sentence with the store's code are on the request, no URL; a dry run writes nothing."""
        def hide() -> None:
            self.store.create_bucket(self.namespace)
            self.store.hide_missing = True

        def away() -> None:
            self.admin.merge_patch("backupstoragelocations", "default", {"spec": {"config": {
                "s3Url": f"http://127.0.0.1:{free_port()}"}}}, self.namespace)
        wrong = base64.b64encode(keys_file(self.store.access_key, "a-wrong-secret").encode()).decode()
        for prepare, reason, words in (
                (lambda: self.store.buckets.pop(self.namespace, None), "BucketNotFound", "no such bucket"),
                (lambda: self.store.create_bucket(self.namespace), "ArtifactNotFound", "no such file"),
                (hide, "StoreAccessDenied", "AccessDenied"),
                (lambda: self.admin.merge_patch("secrets", "cloud", {"data": {"keys": wrong}}, self.namespace),
                 "SignatureDoesNotMatch", "403: SignatureDoesNotMatch"), (away, "Unreachable", "cannot reach")):
            with self.subTest(reason):
                prepare()
                document, before = self.answer_to("--verify-urls", "--dry-run"), len(self.gets())
                self.assertFalse(reason_of(document) or document.get("status"))
                self.admin.delete("downloadrequests", document["metadata"]["name"], self.namespace)
                document = self.answer_to("--verify-urls")
                self.assert_reason(document, reason, words)
                self.assertTrue(document["status"]["expiration"])
                self.assertEqual(int(reason != "Unreachable"), len(self.gets()) - before)  # clocks agree: tried once
                self.admin.delete("downloadrequests", document["metadata"]["name"], self.namespace)

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

    def test_a_store_with_another_time(self) -> None:
        """That the clocks differ is the reason, and once they agree the request is answered."""
        self.put()
        api = velero_requests.connect(velero_requests.load_cluster(self.kubeconfig))
        controller = velero_requests.Controller(api, self.namespace, vr.Server("v1"), verify_urls=True)
        name = self.ask()
        for minutes, reason in ((20, "UrlExpired"), (-20, "ClockSkew"), (0, "")):
            self.store.clock = lambda minutes=minutes: time.time() + 60 * minutes
            controller.run_once()
            self.assertEqual(reason, reason_of(self.look(name)), minutes)

    def test_no_text_of_the_store_gets_out(self) -> None:
        """A location may lead to a service that answers secrets: nothing of them is on the request or its Event."""
        canary = "CANARY-4711"
        for status, body, headers, reason, said in (
                (404, canary, {}, "ArtifactNotFound", "without a code of S3"),
                (401, canary, {"WWW-Authenticate": canary}, "StoreError", "answered 401"),
                (302, f"<html>{canary}</html>", {"Location": f"http://{canary}/"}, "StoreError", "answered 302"),
                (403, refusal_xml(canary, canary, Region=canary, CanonicalRequest=canary), {}, "StoreAccessDenied",
                 "answered 403"),
                (403, refusal_xml("AccessDenied", canary), {}, "StoreAccessDenied", "403: AccessDenied"),
                (403, refusal_xml("SignatureDoesNotMatch", canary, CanonicalRequest=canary), {},
                 "SignatureDoesNotMatch",
                 "403: SignatureDoesNotMatch"),
                (301, refusal_xml("PermanentRedirect", canary, Region=canary), {"x-amz-bucket-region": canary},
                 "WrongEndpoint", "301: PermanentRedirect"),
                (503, refusal_xml("SlowDown", canary), {"Retry-After": canary}, "StoreError", "503: SlowDown")):
            with self.subTest(status=status, said=said):
                self.store.unscript()
                self.store.script("GET", self.namespace, times=99, status=status, body=body, headers=headers)
                document = self.answer_to("--verify-urls")
                self.assert_reason(document, reason, said)
                for told in (document, self.admin.list("events", self.namespace)):
                    self.assertNotIn(canary, json.dumps(told))

    def test_no_greeting_gets_out(self) -> None:
        """What answers in another language than HTTP is not quoted either."""
        for greeting in (b"SSH-2.0-CANARY\r\n", b"-ERR CANARY\r\n", b"HTTP/1.1 CANARY\r\n\r\n", b"CANARY",
                         b"HTTP/1.1 403 CANARY\r\nContent-Length: 1, 2CANARY\r\n\r\n", b""):
            with self.subTest(greeting):
                line = Line(self.store.host)
                self.addCleanup(line.close)
                line.plan = [greeting]
                with self.assertRaises(vr.Error) as caught:
                    vr.verify_url(f"{line.url}/b/k", vr.Trust())
                self.assertNotIn("CANARY", "\n".join((str(caught.exception), *caught.exception.hints)))

    def test_link_local_services_are_not_asked(self) -> None:
        """However a URL says such an address, it is refused before a connection is made, through a proxy too."""
        line = Line(self.store.host)
        self.addCleanup(line.close)
        for variables in ({}, {"HTTP_PROXY": line.url}):
            for host in ("169.254.169.254", "169.254.170.23:8080", "[::ffff:169.254.169.254]", "[fe80::1]",
                         "168.63.129.16", "[::ffff:0:a9fe:a9fe]", "[64:ff9b:1::a9fe:a9fe]", "metadata",
                         "Metadata.google.internal.", "[fd00:ec2::254]", "2852039166", "0xA9FEA9FE", "169.254.43518",
                         "0251.0376.0251.0376"):
                with self.subTest(host=host, **variables), environment({"NO_PROXY": None, **variables}):
                    began = time.monotonic()
                    with self.assertRaisesRegex(vr.StoreError, "link-local") as caught:
                        vr.verify_url(f"http://{host}/latest/meta-data/", vr.Trust())
                    self.assertEqual("WrongEndpoint", caught.exception.reason)
                    self.assertLess(time.monotonic() - began, 2)
        self.assertEqual(0, line.broken)

    def test_what_was_looked_up_is_what_is_asked(self) -> None:
        """The connection goes to the address that was checked, with the URL's own name in Host and for TLS."""
        for tls in (False, True):
            store = FakeStore(tls=tls)
            self.addCleanup(store.close)
            store.path_hosts.add("localhost")
            store.put("bucket", "a", b"x")
            port = urlsplit(store.url).port
            trust = vr.Trust(read_bytes(str(store.ca)) if tls else b"")
            url = presigned_url(f"http{'s' if tls else ''}://localhost:{port}/bucket/a", store.access_key,
                                store.secret_key, store.region)
            with vr.open_url(url, trust, address="127.0.0.1") as response:
                self.assertEqual(b"x", b"".join(vr.read_body(response)))
            self.assertEqual(f"localhost:{port}", store.requests[-1].headers["host"])


class TestStoreRealVerify(RealWorld, unittest.TestCase):
    """--verify-urls on the real servers."""

    def test_what_is_there_and_what_is_wrong(self) -> None:
        """What is there gets a URL that works; an access key that is unknown is no missing file, though it is a 404."""
        for name, keys in (("wrong", keys_file(self.store.access_key, "a-wrong-secret")),
                           ("unknown", keys_file("AKIAUNKNOWN", "a-wrong-secret"))):
            self.make_secret(name, text=keys)
            self.make_location(name, secret=name)
            self.make_backup(name, name)
        for name, prepare, reason in (
                ("b1", lambda: None, "BucketNotFound"),
                ("b1", lambda: self.store.create_bucket(self.namespace), "ArtifactNotFound"), ("b1", self.put, ""),
                ("wrong", lambda: None, "SignatureDoesNotMatch"), ("unknown", lambda: None, "InvalidCredentials"),
                ("b1", lambda: self.store.put(self.namespace, KEYS["BackupLog"], b""), "")):
            with self.subTest(name, reason=reason):
                prepare()
                asked = self.ask(name=name)
                result = self.cli("controller", "--once", "--verify-urls")
                document = self.admin.get("downloadrequests", asked, self.namespace)
                notes = document["metadata"].get("annotations") or {}
                self.assertEqual(notes.get(REASON, ""), reason, notes)
                self.assert_clean(result.err, notes)
                url = document["status"].get("downloadURL", "")
                self.assertEqual(bool(url), not reason)
                if prepare == self.put:
                    with vr.open_url(url) as response:
                        self.assertEqual(gzip.decompress(b"".join(vr.read_body(response))), LOG)


# ------------------------------------------------------------------------------------------------------------
# Stores: awkward keys on a real store
# ------------------------------------------------------------------------------------------------------------

class TestStoreRealKeys(unittest.TestCase):
    """Signed URLs on versitygw."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.store = real_store()
        cls.bucket = "keys-" + uuid.uuid4().hex[:8]
        cls.store.create_bucket(cls.bucket)

    def test_every_awkward_key_is_fetched(self) -> None:
        """What was put under a key comes by its signed URL, raw and through the module's own client."""
        location = vr.Location("l", self.bucket, region=self.store.region, s3_url=self.store.url, path_style=True)
        keys = vr.Credentials(self.store.access_key, self.store.secret_key)
        # versitygw keeps keys as names of files, where these are others.
        for key in (key for key, _ in AWKWARD_OBJECT_KEYS if key.strip("/") == key and "\x01" not in key
                    and key != "..."):
            with self.subTest(key):
                body = ("the object " + key).encode()
                self.store.put(self.bucket, key, body)
                url = vr.presign(vr.object_address(location, key), keys, store_now(), timedelta(minutes=10))
                self.assertEqual(fetch(url).data, body)
                with vr.open_url(url) as response:
                    self.assertEqual(b"".join(vr.read_body(response)), body)
                vr.verify_url(url, vr.Trust())


# ------------------------------------------------------------------------------------------------------------
# Stores: aws-chunked objects
# ------------------------------------------------------------------------------------------------------------

def aws_chunked(data: bytes, size: int = 64, signed: bool = True, trailers: bytes = b"") -> bytes:
    """Return data in aws-chunked framing."""
    extra = b";chunk-signature=" + b"0a" * 32 if signed else b""
    pieces = [data[at:at + size] for at in range(0, len(data), size)] + [b""]
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extra, piece) for piece in pieces)
    return framed[:-2] + trailers + b"\r\n" if trailers else framed


class TestStoreWords(unittest.TestCase):
    """What is read of a store's answers."""

    def test_listing(self) -> None:
        """XML's own characters in prefixes and in the token are what they stand for."""
        page = ("<ListBucketResult><IsTruncated>{}</IsTruncated><NextContinuationToken>1&amp;2</NextContinuationToken>"
                "<CommonPrefixes><Prefix>a&amp;b=c/backups/one/</Prefix></CommonPrefixes>"
                "<CommonPrefixes><Prefix>a&amp;b=c/backups/t&#39;wo/</Prefix></CommonPrefixes></ListBucketResult>")
        names = ["a&b=c/backups/one/", "a&b=c/backups/t'wo/"]
        for more, token in (("true", "1&2"), ("false", "")):
            self.assertEqual((names, token), vr.listed_prefixes(page.format(more).encode()))

    def test_what_a_body_is(self) -> None:
        """Binary data is not called text, with or without a NUL; text may be cut within a character."""
        for body, said in ((b"", "nothing"), (b"\x89PNG\r\n\x1a\n", "binary data"), (b"\x1f\x8b\x08", "binary data"),
                           (b"a\xff\xfeb", "binary data"), (b"a\x1b[2Jb", "binary data"), (b"a\0b", "binary data"),
                           (b"<html>", "an HTML page"), (b"  <HTML>", "an HTML page"), (b"<?xml?>", "an XML document"),
                           (b"<Error><Code>x</Code>", "an XML document"), (b"sig=s3cr3t\n", "text: sig=***"),
                           ("gr\u00fcn\tx".encode(), "text: gr\u00fcn x"),
                           (b"a" * 199 + "\u00fc".encode(), "text: aaa")):
            with self.subTest(body[:9]):
                self.assertTrue(vr._what_is(body).startswith(said), vr._what_is(body))

    def test_clocks(self) -> None:
        """Ahead or behind, in words; a minute or less is not worth one. AWS and MinIO have words of their own."""
        now = datetime(2024, 5, 1, 12, 0, tzinfo=timezone.utc)
        for code, message, minutes, reason, words in (
                ("RequestTimeTooSkewed", "x", 17, "ClockSkew", "17m0s ahead of this host's"),
                ("RequestTimeTooSkewed", "x", -90, "ClockSkew", "1h30m0s behind this host's"),
                ("AccessDenied", "Request has expired", 11, "UrlExpired", "11m0s ahead"),
                ("AccessDenied", "Request has expired", 1, "UrlExpired", ""),
                ("AccessDenied", "Request is not yet valid", -20, "ClockSkew", "20m0s behind"),
                ("AccessDenied", "Request is not valid yet", -20, "ClockSkew", "20m0s behind")):
            with self.subTest(code=code, minutes=minutes):
                theirs = formatdate((now + timedelta(minutes=minutes)).timestamp(), usegmt=True)
                error = vr.store_refusal(403, refusal_xml(code, message), {"Date": theirs}, "the store", "https://s/k",
                                         now)
                self.assertEqual((reason, timedelta(minutes=minutes), vr.Exit.FAILED),
                                 (error.reason, error.skew, error.exit))
                self.assertIn(words, str(error))
                self.assertEqual(bool(words), "clock is" in str(error))

    def test_a_date_that_is_none(self) -> None:
        """An absent, broken or incredible Date header is no skew."""
        now = datetime(2024, 5, 1, tzinfo=timezone.utc)
        for date in ("", "yesterday", "Wed, 99 May 2024 12:00:00 GMT", "Wed, 01 May 99999 12:00:00 GMT",
                     "Thu, 02 May 2024 00:00:01 GMT", "Mon, 29 Apr 2024 23:59:59 GMT", "Wed, 01 May 2080 00:00:00 GMT"):
            self.assertEqual(timedelta(0), vr.clock_skew({"Date": date}, now), date)

    def test_object_info(self) -> None:
        """An ETag is an MD5 unless it is weak, of parts, or of an encrypted object; a range has to reach the end."""
        md5 = "0123456789abcdef" * 2
        whole = vr.ObjectInfo(f'"{md5}"', 9, md5)
        for status, headers, expected in (
                (200, {}, whole), (200, {"ETag": '"abc-3"'}, whole._replace(etag='"abc-3"', md5="")),
                (200, {"ETag": f'W/"{md5}"'}, whole._replace(etag="", md5="")),
                (200, {"ETag": md5}, whole._replace(etag=md5, md5="")),
                (200, {"x-amz-server-side-encryption": "aws:kms"}, whole._replace(md5="")),
                (200, {"x-amz-server-side-encryption": "AES256"}, whole),
                (200, {"x-amz-server-side-encryption-customer-algorithm": "AES256"}, whole._replace(md5="")),
                (200, {"Content-Length": "+9"}, whole._replace(size=None, ends=False)),
                (200, {"Content-Length": "", "Transfer-Encoding": "Chunked"}, whole._replace(size=None)),
                *((206, {"Content-Range": text}, whole._replace(size=size, start=start, whole=False)) for text, start,
                  size in (
                    ("bytes 1-9/10", 1, 10), ("bytes 1-9/*", 1, 10), ("bytes 1-9/11", -1, None),
                    ("bytes 1-8/9", -1, None),
                    ("bytes 9-1/10", -1, None), ("bytes */10", -1, None), ("", -1, None), ("bytes x", -1, None)))):
            with self.subTest(status=status, **headers):
                self.assertEqual(expected, vr.object_info(status,
                                                          {"ETag": f'"{md5}"', "Content-Length": "9", **headers}))

    def test_when_to_try_again(self) -> None:
        """Three, five or ten times, by what has come before; at most a minute, and not what stays wrong."""
        def broken(reason: str = "BrokenOff", retry: bool = True) -> vr.Error:
            error = vr.Unreachable("x", reason=reason)
            error.retry = retry
            return error

        def answered(status: int, reason: str = "StoreError", after: Optional[float] = None) -> vr.Error:
            error = vr.StoreError("x", status=status, reason=reason)
            error.retry_after = after
            return error
        for error, moved, waits in (
                (broken(), False, 4), (broken(), True, 9), (broken("Unreachable"), False, 2),
                (broken("Unreachable"), True, 9),
                (broken(retry=False), True, 0), (answered(503), False, 4), (answered(503), True, 9),
                (answered(429), True, 9),
                (answered(403), True, 0), (answered(206, "WrongRange"), True, 2), (answered(503, after=61), True, 0),
                (answered(503, after=25), True, 2), (answered(0), True, 0)):
            with self.subTest(error, moved=moved):
                taken: List[float] = []
                while len(taken) < 20:
                    wait = vr.download_wait(error, len(taken) + 1, sum(taken), moved, 0.2)
                    if wait is None:
                        break
                    taken.append(wait)
                self.assertEqual(waits, len(taken))
                self.assertLessEqual(sum(taken), 60)


class TestStoreChunked(unittest.TestCase):
    """Objects that some SDK stored with its framing."""

    def setUp(self) -> None:
        self.packed = gzip.compress(random.Random(3).getrandbits(5600).to_bytes(700, "big") + LOG)

    def read(self, stored: bytes, step: int) -> bytes:
        """Return what is read of an object that comes in pieces of this size."""
        return b"".join(vr.decode_aws_chunked(cut(stored, step)))

    def test_framing_is_taken_off(self) -> None:
        """Signed, unsigned and with trailers, in pieces of any size, the object inside is read."""
        crc = b"x-amz-checksum-crc32:AAAAAA==\r\n"
        sealed = crc + b"x-amz-trailer-signature:" + b"0b" * 32 + b"\r\n"
        for size, signed, trailers in itertools.product((16, 100, 65536), (True, False), (b"", crc, sealed)):
            framed = aws_chunked(self.packed, size, signed, trailers)
            for step in (1, 2, 7, 100, len(framed)):
                with self.subTest(size=size, signed=signed, trailers=len(trailers), step=step):
                    self.assertEqual(self.read(framed, step), self.packed)

    def test_what_is_cut_or_damaged_is_an_error(self) -> None:
        """Wherever a framed object ends before its last chunk, or with a size that is none or does not fit."""
        framed = aws_chunked(self.packed, 100, signed=False)
        second = framed.index(b"\r\n64\r\n") + 2
        wrong = [framed[:second] + text + framed[second + 2:] for text in (b"zz", b"6", b"-1", b"65", b"63")]
        for framed in (framed, aws_chunked(self.packed, 100)):
            last = framed.rindex(b"\r\n0") + 2
            wrong += [framed[:end] for end in {140, 141, 150, 400, len(framed) // 2, *range(last - 3, last + 2)}]
        for stored in wrong:
            with self.subTest(stored[-20:], length=len(stored)), self.assertRaisesRegex(vr.StoreError,
                "cut short|damaged"):
                self.read(stored, 50)

    def test_ordinary_objects_are_not_touched(self) -> None:
        """gzip, text, nothing, and text that begins like a frame come out as they went in."""
        for stored in (self.packed, b"", b"1", b"text\r\n", b"10\r\nabcdef", b"10\r\n" + b"x" * 300, b"0\r\n\r\n",
                       b"a" * 1000,
                       b"\x1f", b"\x1f\x8b", b"<html>\r\n", self.packed + self.packed, b"1f\r\n\x1f\x8c" + b"x" * 200):
            for step in (1, 50, 1000):
                with self.subTest(stored[:12], step=step):
                    self.assertEqual(self.read(stored, step), stored)


# ------------------------------------------------------------------------------------------------------------
# Downloads: the tools
# ------------------------------------------------------------------------------------------------------------

MIB = 1 << 20
CUT_COST = MIB                               # the most that a cut may cost in bytes sent twice
PEAK = 40                                    # MiB resident for a download of any size, once the module is compiled
GROWTH = 14                                  # MiB that it adds to what a script has resident before
IDLE_FLAG = ("--idle-timeout", "1s")
PART_SUFFIX = ".velero-requests.part"
LOGIN_PAGE = b"<!DOCTYPE html><html><body><form>Sign in</form></body></html>"
HTML_TYPE = (("Content-Type", "text/html; charset=utf-8"),)
SPENT_URL = refusal_xml("AccessDenied", "Request has expired")
SLOW_DOWN = refusal_xml("SlowDown", "Please reduce your request rate.")
# What no error text may hold, besides secrets: markup, reprs, urllib3's own words, what steers a terminal.
UGLY = re.compile(r"</?\??(xml|!doctype|html|body|form|error|code|message)\b|object at 0x|Max retries exceeded|"
                  r"Traceback \(most|HTTPConnection|[\r\x1b]", re.IGNORECASE)


def part_of(path: str) -> str:
    """Return where the partial file of a target lies; when there is none, where nothing does."""
    folder, name = os.path.split(path)
    return os.path.join(folder, next((found for found in os.listdir(folder) if found.startswith(f".{name}.")
                                      and found.endswith(PART_SUFFIX)), ".no" + PART_SUFFIX))


def noise(size: int, seed: int = 6) -> bytes:
    """Return bytes that do not compress, always the same."""
    return random.Random(seed).getrandbits(8 * size).to_bytes(size, "big")


@functools.lru_cache(maxsize=8)
def archive(size: int, seed: int = 6) -> bytes:
    """Return a .tar.gz of about this size, always the same."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in (("metadata/version", b"1.1.0\n"), ("resources/noise", noise(size, seed))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(target.getvalue(), 1, mtime=0)


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
    """Return the size of a file, 0 when there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def first_byte(request: Request) -> int:
    """Return where the range that a request asks for begins, 0 without a range."""
    found = re.match(r"bytes=(\d+)-", request.headers.get("range", ""))
    return int(found.group(1)) if found else 0


def with_headers(answer: Answer, **changes: Optional[str]) -> Answer:
    """Return the answer with headers (ETag, Content_Range) replaced, added, or with None taken away."""
    named = {name.replace("_", "-").lower(): (name.replace("_", "-"), value) for name, value in changes.items()}
    kept = tuple(pair for pair in answer.headers if pair[0].lower() not in named)
    return answer._replace(headers=kept + tuple((name, value) for name, value in named.values()
                                                if value is not None))


def body_start(response: bytes) -> int:
    """Return where the body of a response begins."""
    return response.index(b"\r\n\r\n") + 4


Pieces = Iterable[Any]                       # bytes to send, an Event to wait for, seconds to let pass


def cut_body(after: int) -> Callable[[bytes], Pieces]:
    """Return a wire fault: the connection ends after so many bytes of the body."""
    return lambda response: [response[:body_start(response) + after]]


def paced(count: int, seconds: float) -> Callable[[bytes], Pieces]:
    """Return a wire fault: the body comes in so many pieces with a pause before each."""
    def pieces(response: bytes) -> Iterator[Any]:
        start = body_start(response)
        yield response[:start]
        step = max(1, (len(response) - start) // count)
        for position in range(start, len(response), step):
            yield seconds
            yield response[position:position + step]
    return pieces


def chunked(size: int, last: bool = True) -> Callable[[bytes], Pieces]:
    """Return a wire fault: the body in chunked encoding, with or without its last chunk."""
    def pieces(response: bytes) -> Iterator[bytes]:
        start = body_start(response)
        yield re.sub(rb"(?i)content-length: \d+", b"Transfer-Encoding: chunked", response[:start])
        yield from map(chunk, cut(response[start:], size))
        if last:
            yield b"0\r\n\r\n"
    return pieces


def length_of(text: Any) -> Callable[[bytes], Pieces]:
    """Return a wire fault: a Content-Length that is not the body's."""
    return lambda response: [re.sub(rb"Content-Length: \d+", b"Content-Length: %b" % str(text).encode(), response)]


class Sentences(World):
    """What every end of a download is checked for."""

    target: str
    path: str

    def make_target(self) -> None:
        """Make the folder that downloads go to, with nothing else in it."""
        self.target = os.path.join(self.folder, "target")
        os.makedirs(self.target, exist_ok=True)
        self.path = os.path.join(self.target, "x")

    def clear(self) -> None:
        """Empty the target's folder for another try."""
        shutil.rmtree(self.target)
        os.mkdir(self.target)

    def left(self) -> Set[str]:
        return set(os.listdir(self.target))

    def remains(self) -> Set[str]:
        return {os.path.basename(part_of(self.path))}

    def assert_sentence(self, result: Result, *words: str) -> None:
        """Check that a failure is told in one `error:` line with these words (regular expressions)."""
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        self.assertEqual(len(errors), 1, (result.code, result.err))
        for word in words:
            self.assertRegex(errors[0].lower(), word)
        self.assert_tidy(result.err)

    def assert_tidy(self, text: str) -> None:
        """Check that nothing ugly or secret was said."""
        self.assertIsNone(UGLY.search(text), text)
        self.assert_clean(text)

    def assert_right(self, result: Result, stored: bytes) -> None:
        """Check that a download ended with the object, and with nothing beside it."""
        self.assertEqual(result.code, 0, result.err)
        self.assertTrue(read_bytes(self.path) == stored, "the file is not the object")
        self.assertEqual(self.left(), {os.path.basename(self.path)})
        self.assert_tidy(result.err)

    def assert_absent(self, result: Result, code: Any, *words: str) -> None:
        """Check that a download failed with one of the codes, and left nothing."""
        self.assertIn(result.code, code if isinstance(code, tuple) else (code,), result.err)
        self.assertEqual(result.out, b"")
        self.assert_sentence(result, *words)
        self.assertEqual(self.left(), set(), result.err)


class DownloadWorld(Sentences, FakeWorld):
    """The fakes, a controller, and a folder to download into."""

    serves = True

    def setUp(self) -> None:
        """Start with empty logs, no faults, and a controller that calls as a user of its own."""
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
        stored = archive(size, seed)
        self.store.put(self.namespace, f"backups/{name}/{name}.tar.gz", stored)
        return stored

    def download(self, *argv: str, name: str = "b1") -> Result:
        """Download to the target in this process."""
        return self.cli("download", name, "-o", self.path, *IDLE_FLAG, *argv)

    def stalled(self, reached: int, *argv: str) -> Tuple[Program, threading.Event]:
        """Start a download in a process of its own, which stands still with so many bytes in its partial file."""
        gate = threading.Event()
        self.store.script("GET", pause_after=reached, gate=gate)
        program = self.program(*(argv or ("download", "b1", "-o", self.path)))
        wait_until(lambda: size_of(part_of(self.path)) >= max(1, reached - CUT_COST), 15, "the partial file")
        return program, gate

    def gets(self, part: str = "") -> List[Request]:
        """Return the GETs of objects that the store has seen."""
        return [request for request in self.store.seen("GET", part) if "list-type" not in request.target]

    def assert_conditional(self, etag: str) -> None:
        """Check that every Range came with If-Match."""
        for request in self.gets():
            self.assertEqual(etag if first_byte(request) else None, request.headers.get("if-match"), request)

    def usual_part(self, mark: str = "") -> str:
        """Return where the partial file of b1's contents is put, of their own ETag or another."""
        with contextlib.closing(vr.AtomicFile(self.path, "BackupContents of b1", force=False, named=True)) as new:
            return os.path.join(self.target, f"{new.stem}{new.mark}.{mark or self.etag()[1:-1]}{PART_SUFFIX}")

    def etag(self, key: str = KEYS["BackupContents"]) -> str:
        """Return the ETag of an object."""
        return str(self.store.buckets[self.namespace][key].etag)


class Terminal:
    """A command on a terminal of its own, which it controls: Ctrl-C typed there is a signal."""

    def __init__(self, folder: str, *argv: str, stdout: Any = None,
                 program: Tuple[str, ...] = (sys.executable, velero_requests.__file__)) -> None:
        """Start it; stdout may lead elsewhere."""
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            [*program, *argv], cwd=folder, stdin=slave,
            stdout=slave if stdout is None else stdout, stderr=slave, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))  # pylint: disable=subprocess-popen-preexec-fn
        self.pieces: List[Tuple[float, bytes]] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                piece = os.read(self.master, 65536)
                self.pieces.append((time.monotonic(), piece))

    def text(self) -> str:
        """Return what the terminal has been sent, line ends as the program wrote them."""
        return b"".join(piece for _, piece in self.pieces).decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, keys: bytes) -> None:
        """Type on its keyboard."""
        os.write(self.master, keys)

    def end(self, seconds: float = 20) -> Tuple[int, str]:
        """Wait until it has ended, and return its code and all that it said."""
        code = self.process.wait(seconds)
        self.after = termios.tcgetattr(self.slave)
        os.close(self.slave)
        self.reader.join(5)
        os.close(self.master)
        return code, self.text()

    def kill(self) -> None:
        """End it for good, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.end()


def resident(pid: int) -> float:
    """Return what a process has resident, in MiB; 0 when it has ended.

    Not VmHWM, its peak: for some hundredths of a second at the start, compiling the file needs more than any transfer.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


# ------------------------------------------------------------------------------------------------------------
# Downloads: what a store does, and what comes of it
# ------------------------------------------------------------------------------------------------------------

STORED = archive(300_000)
HALF = {"wire": cut_body(150_000)}
SILENT = threading.Event()


def forever(**fault: Any) -> Document:
    """Return a fault that strikes again and again."""
    return {"times": 10_000, **fault}


def answered(status: int, body: Any = LOGIN_PAGE, **headers: str) -> Document:
    """Return a fault: another answer than the true one."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"answer": lambda _request, _true: Answer(status, body, tuple(named.items()))}


def altered(body: Optional[Callable[[bytes], bytes]] = None, **headers: Optional[str]) -> Document:
    """Return a fault: the true answer with another body or other headers."""
    return {"answer": lambda _request, true: with_headers(
        true._replace(body=body(true.body) if body else true.body), **headers)}


def endless_refusal(_response: bytes) -> Pieces:
    """Yield a refusal whose text does not end."""
    yield b"HTTP/1.1 403 Forbidden\r\n\r\n<Error><Code>AccessDenied</Code><Message>"
    yield from itertools.repeat(b"no " * 20_000)


class StoreFault(NamedTuple):
    """What a store does in this order, and then no more; how a file and a stream end: whole, or with these words."""

    name: str
    faults: Tuple[Document, ...]
    file: str = ""
    stream: str = ""
    code: int = 1
    keeps: bool = False                      # whether a partial file remains
MD5, CHANGED, SIZE = "its MD5 is", "the object changed after", len(STORED)
FAULTS = (
    *(StoreFault(f"cut after {size}", ({"wire": cut_body(size)},)) for size in (0, 1, 100_000, SIZE - 9, SIZE)),
    *(StoreFault(f"cut in the header after {size}", ({"wire": lambda response, size=size: [response[:size]]},))
      for size in (0, 9, 60, 250)),
    StoreFault("cut ten times", tuple({"wire": cut_body(29_000)} for _ in range(10))),
    StoreFault("dropped", ({"drop": True},)), StoreFault("silent", ({"hang": SILENT},)),
    StoreFault("silent in the header", ({"wire": lambda response: [response[:20], SILENT]},)),
    *(StoreFault(f"silent after {size}", ({"pause_after": size, "gate": SILENT},)) for size in (0, 100_000)),
    StoreFault("in chunks", ({"wire": chunked(1000)},)),
    StoreFault("in chunks without the last", ({"wire": chunked(1000, last=False)},)),
    *(StoreFault(f"a length of {size}", ({"wire": length_of(size)},), MD5, MD5) for size in (0, SIZE // 2, SIZE - 1)),
    *(StoreFault(f"a length of {size}", ({"wire": length_of(size)},), "", CHANGED) for size in (SIZE + 1, SIZE + 5000)),
    *(StoreFault(f"a length of {text!r}", ({"wire": length_of(text)},)) for text in ("-1", "abc", "1e3", "9" * 23, " ",
        "5, 6")),
    *(StoreFault(f"a range of {text}", (HALF, altered(Content_Range=text))) for text in (
        f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes 150001-{SIZE - 1}/{SIZE}", f"bytes 149999-{SIZE - 2}/{SIZE}",
        f"bytes 149999-{SIZE - 1}/{SIZE + 1}", f"bytes 149999-{SIZE - 1}/*", "bytes */100", "nonsense", "bytes 5-4/3",
        None)),
    StoreFault("another ETag", (HALF, altered(ETag='"other"')), "", CHANGED),
    *(StoreFault(str(status), (HALF, {"status": status, "body": refusal_xml("InvalidRange")}), "", CHANGED)
      for status in (412, 416)),
    StoreFault("other bytes", (HALF, altered(lambda body: noise(len(body), seed=3))), "damaged", "damaged"),
    StoreFault("HTML half way with 200", (HALF, answered(200)), "", CHANGED),
    *(StoreFault(f"HTML half way with {status}", (HALF, answered(status))) for status in (206, 403, 502)),
    StoreFault("Range is ignored", (HALF, {"answer": lambda request, true: Answer(200, STORED, with_headers(
        true, Content_Range=None).headers)})),
    StoreFault("503", ({"status": 503, "body": SLOW_DOWN}, {"status": 503, "body": SLOW_DOWN})),
    StoreFault("expired", (HALF, {"status": 403, "body": SPENT_URL})),
    StoreFault("403 half way", (HALF, {"status": 403, "body": ""})),
    StoreFault("declared gzip", (forever(**altered(Content_Encoding="gzip")),)),
    StoreFault("truly gzip", (forever(**altered(gzip.compress, Content_Encoding="gzip")),), MD5, MD5),
    StoreFault("500 for ever", (forever(status=500, body="oops"),), "500", "500"),
    StoreFault("503 for ever", (forever(status=503, body=SLOW_DOWN),), "503: SlowDown", "503: SlowDown"),
    StoreFault("503 for a day", (forever(status=503, body="", headers={"Retry-After": "86400"}),), "503", "503"),
    StoreFault("503 from half way on", (HALF, forever(status=503, body=SLOW_DOWN)), "503", "503", keeps=True),
    StoreFault("dropped for ever", (forever(drop=True),), "cannot reach", "cannot reach", 6),
    StoreFault("dropped from half way on", (HALF, forever(drop=True)), "cannot reach", "cannot reach", 6, True),
    *(StoreFault(f"cut in the header after {size} for ever", (forever(wire=lambda response,
        size=size: [response[:size]]),),
             "cannot reach|broke off", "cannot reach|broke off", 6) for size in (9, 60)),
    StoreFault("no body", (forever(wire=cut_body(0)),), f"broke off after 0 of {SIZE} bytes", "broke off", 6),
    StoreFault("no body and no length", (forever(wire=lambda _: [b"HTTP/1.1 200 OK\r\n\r\n"]),), "neither length",
               "cut short", 6),
    StoreFault("no chunk", (forever(wire=lambda response: chunked(1000, last=False)(response[:body_start(response)])),),
           "broke off", "broke off", 6),
    StoreFault("silent for ever", (forever(pause_after=0, gate=SILENT),), "sent nothing for 60ms", "sent nothing", 6),
    StoreFault("silent from half way on", (HALF, forever(pause_after=0, gate=SILENT)), "sent nothing", "sent nothing",
               6, True),
    StoreFault("always too long", (forever(wire=length_of(310_000_000)),), "another part", "another part", keeps=True),
    StoreFault("always too short", (forever(wire=length_of(1000)),), MD5, MD5),
    StoreFault("HTML", (forever(**answered(200)),), "an HTML page", "an HTML page"),
    StoreFault("HTML as gzip", (forever(**answered(200, ETag='"abc"', Content_Type="application/gzip")),), "HTML",
               "HTML"),
    StoreFault("HTML from half way on", (HALF, forever(**answered(200))), "an HTML page", CHANGED),
    StoreFault("always expired", (forever(status=403, body=SPENT_URL),), "has expired", "has expired"),
    *(StoreFault(f"{status} for ever", (forever(status=status, body=""),), said, said, code) for status, said, code in (
        (401, "401", 5), (403, "403", 5), (404, "has no such file", 3), (204, "204", 1), (302, "302", 1))),
    StoreFault("endless refusal", ({"wire": endless_refusal},), "403: AccessDenied", "403: AccessDenied", 5),
    *(StoreFault(f"redirected to {place!r}", (forever(status=307, body=b"", headers={"Location": place}),), "307",
                 "307")
      for place in ("file:///etc/passwd", "http://[", "", "\x01", "http://127.0.0.1:1/")))
OBJECTS = (                                  # what is stored, its ETag unless it is the MD5, what a file has, words
    (STORED, '"' + "0" * 32 + '"', None, MD5), (STORED, '"' + "0" * 32 + '-3"', STORED, ""),
    (STORED, '"0123"', STORED, ""),
    (STORED, 'W/"abc"', STORED, ""), (STORED, "odd", STORED, ""), (b"", "", None, "the file is empty, not gzip"),
    (STORED + STORED, "", STORED + STORED, ""), (STORED + bytes(700), "", STORED + bytes(700), ""),
    (STORED + b"garbage", "", None, "damaged after"), (STORED[:-9], "", None, "cut short"),
    (LOGIN_PAGE, "", None, "HTML"),
    (STORED[:-7] + bytes([STORED[-7] ^ 1]) + STORED[-6:], "", None, "damaged after"),
    (STORED[:200_000] + b"\xff" * 9 + STORED[200_009:], "", None, "damaged"),
    (aws_chunked(STORED, 1000), "", STORED, ""), (aws_chunked(STORED, 9999, False, b"x-amz-checksum-crc32:A==\r\n"),
                                                  "", STORED, ""),
    (aws_chunked(STORED, 1000)[:3000], "", None, "cut short"))


class DownloadCase(FolderCase):
    """Downloads by the library alone, without a cluster and without long waits."""

    @classmethod
    def setUpClass(cls) -> None:
        cls.store = FakeStore()
        cls.addClassCleanup(cls.store.close)

    def setUp(self) -> None:
        super().setUp()
        self.store.unscript()
        self.store.forget()
        self.located: List[timedelta] = []   # the skew of each URL
        self.said = io.StringIO()
        logger = self.enter(logger_kept())
        logger.handlers[:], logger.propagate = [logging.StreamHandler(self.said)], False
        logger.setLevel(logging.WARNING)
        self.put(STORED)

    def enter(self, context: Any) -> Any:
        """Enter a context until the test ends."""
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        return stack.enter_context(context)

    def put(self, body: bytes, etag: str = "", **headers: str) -> None:
        """Store the object."""
        self.store.put_with_etag("bucket", "k", body, etag or f'"{hashlib.md5(body).hexdigest()}"', **headers)

    def locate(self, skew: timedelta) -> Tuple[str, Any]:
        """Sign a URL."""
        self.located.append(skew)
        return self.store.url_of("bucket", "k"), vr.Trust()

    def download(self, gunzip: bool = False, idle: float = 5.0) -> Any:
        """Return a download that is in a hurry."""
        download = vr.Download(vr.UrlSource(self.locate, idle=idle), "BackupLog of b1", gunzip=gunzip)
        download.first_wait = 0.0001
        return download

    def script(self, faults: Iterable[Document]) -> None:
        """Let the store do this, in this order."""
        self.store.unscript(all_struck=False)
        self.store.forget()
        for fault in faults:
            self.store.script("GET", "/bucket/k", **fault)

    def end_of(self, action: Callable[[], Any]) -> Any:
        """Return the Error that an action ends with, or None."""
        try:
            action()
        except vr.Error as error:
            return error
        return None

    def begins(self) -> List[int]:
        """Return where the ranges begin that were asked for, each of which has its condition."""
        for request in self.store.seen("GET"):
            self.assertEqual(bool(first_byte(request)), "if-match" in request.headers)
        return [first_byte(request) for request in self.store.seen("GET")]

    def outcome(self, gunzip: bool, idle: float = 5.0) -> Tuple[Any, bytes]:
        """Download into a file, or with gunzip into a stream -> the error or None, and what was written."""
        for name in os.listdir(self.folder):
            os.unlink(os.path.join(self.folder, name))
        download, writer = self.download(gunzip, idle), io.BytesIO()
        error = self.end_of((lambda: download.write_to(writer)) if gunzip else lambda: download.save(self.path))
        return error, writer.getvalue() if gunzip else self.found().get("out.gz", b"")


class TestDownloadFaults(DownloadCase):
    """Every fault of a store, for a file and for a stream, ends soon, whole or in one sentence."""

    def check(self, error: Any, words: str, code: int) -> None:
        """Check how it ended."""
        self.assertEqual(bool(words), error is not None, error)
        if error:
            self.assertRegex(str(error), words)
            self.assertEqual((code, True), (error.exit, str(error).isprintable()))
            self.assertTrue(str(error).startswith("BackupLog of b1: "), error)
            self.assertIsNone(UGLY.search(str(error)))

    def test_every_fault(self) -> None:
        """A file is whole or absent, and that is said; a stream has a beginning of it. None costs 15 requests."""
        content = gzip.decompress(STORED)
        for name, faults, file, stream, code, keeps in FAULTS:
            for gunzip, words in ((False, file), (True, stream)):
                with self.subTest(name, gunzip=gunzip):
                    self.script(faults)
                    self.said.seek(self.said.truncate(0))
                    error, written = self.outcome(gunzip, 0.06 if "silent" in name else 5.0)
                    self.check(error, words, code)
                    self.assertLess(len(self.begins()), 2 if code in (3, 5) else 15)
                    if gunzip:               # of what is damaged the beginning is sound
                        self.assertTrue(content.startswith(written[:140_000]) or name == "truly gzip")
                        self.assertTrue(error or written == content)
                    elif error:
                        kept, = self.found().values() if keeps else [b""]
                        self.assertEqual(keeps, len(self.found()) == 1 and len(kept) >= 150_000)
                        self.assertTrue(STORED.startswith(kept))
                        self.assertEqual(keeps, "the same command goes on from there" in " ".join(error.hints))
                    else:
                        self.assertEqual({"out.gz": STORED}, self.found())
                    self.assertEqual(not gunzip and stream in (CHANGED,), "changed" in self.said.getvalue())
        self.store.unscript(all_struck=False)

    def test_what_is_stored(self) -> None:
        """What is no whole gzip of its ETag never passes; of a stream a sound beginning is written."""
        for number, (stored, etag, whole, words) in enumerate(OBJECTS):
            for gunzip, faults in itertools.product((False, True), ((), ({"wire": cut_body(len(stored) // 2)},))):
                with self.subTest(number, etag=etag, gunzip=gunzip, cut=bool(faults)):
                    self.put(stored, etag)
                    self.script(faults if etag != 'W/"abc"' else ())  # which identifies no bytes
                    error, written = self.outcome(gunzip)
                    self.check(error, words, 1)
                    if gunzip:
                        content = gzip.decompress(whole or STORED)
                        self.assertTrue(content.startswith(written[:140_000]))
                        self.assertGreaterEqual(len(written), len(content) if stored[:len(STORED)] == whole else 0)
                    else:
                        self.assertEqual({} if error else {"out.gz": whole}, self.found())
        self.put(STORED, '"' + "0" * 32 + '"', x_amz_server_side_encryption="aws:kms")
        self.assertEqual((None, STORED), self.outcome(False))

    def test_any_byte_of_a_response(self) -> None:
        """Wherever a response breaks off, in its header or its body."""
        packed = gzip.compress(LOG)
        self.put(packed)
        for point in {*range(0, 500, 13), *range(1, len(packed) + 250, 97),
                      *range(len(packed) + 200, len(packed) + 240)}:
            self.script([{"wire": lambda response, point=point: [response[:point]]}])
            self.assertEqual((None, LOG), self.outcome(True), point)

    def test_a_cut_costs_little(self) -> None:
        """However many, and however much had come: each goes on at the byte reached, and a stall as well."""
        stored = archive(12 * MIB)
        self.put(stored)
        for steps in (random.Random(12).choices(range(50_000, 270_000), k=30), [11 * MIB]):
            self.script([{"wire": cut_body(step)} for step in steps])
            self.assertIsNone(self.end_of(lambda: self.download().save(self.path, force=True)))
            self.assertTrue(read_bytes(self.path) == stored)
            reached = 0
            for begin, step in zip(self.begins(), steps):
                self.assertEqual(max(0, reached - 1), begin)
                reached = begin + step

    def test_where_it_goes_on(self) -> None:
        """Behind what came before a stall, however little; a line that is slow but alive is left alone."""
        self.script([{"times": 3, "pause_after": 60_000, "gate": SILENT}])
        self.assertEqual((None, STORED), self.outcome(False, 0.4))
        self.assertEqual([0, 59_999, 119_998, 179_997], self.begins())
        self.script([{"wire": paced(15, 0.04)}])
        self.assertEqual((None, STORED), self.outcome(False, 0.4))
        self.assertEqual([0], self.begins())

    def test_an_object_that_changes(self) -> None:
        """A file is begun anew, three times at most; a stream has bytes of one. So without If-Match, too."""
        def change(count: int, response: bytes) -> Iterator[bytes]:
            yield response[:body_start(response) + 150_000]
            self.put(archive(300_000, seed=20 + count))

        def forget(request: Request, _true: Answer) -> Answer:
            request.headers.pop("if-match", None)
            return self.store.handle(request)
        for changes, forgetful, gunzip, words in (
                (1, False, False, ""), (1, True, False, ""), (3, False, False, ""), (4, False, False, CHANGED),
                (1, False, True, CHANGED), (1, True, True, CHANGED)):
            with self.subTest(changes=changes, forgetful=forgetful, gunzip=gunzip):
                self.put(STORED)
                self.script([fault for count in range(changes) for fault in (
                    {"wire": functools.partial(change, count)},
                    {"answer": forget} if forgetful else {"answer": lambda _, true: true})])
                error, written = self.outcome(gunzip)
                self.check(error, words, 1)
                self.assertTrue(gzip.decompress(STORED).startswith(written) and len(written) > 100_000 if gunzip else
                                words or written == archive(300_000, seed=19 + changes))
        self.store.unscript(all_struck=False)

    def test_another_url(self) -> None:
        """It is signed by the store's clock where that is far off, twice in vain at most, and after bytes anew."""
        store = TimelyStore()
        self.addCleanup(store.close)
        for hours, skews in ((0, [0]), (1, [0, 1, 1]), (-1, [0, -1, -1])):
            store.clock = lambda hours=hours: time.time() + 3600 * hours
            store.put("bucket", "k", STORED)
            located: List[timedelta] = []
            url = presigned_url(f"{store.url}/bucket/k", store.access_key, store.secret_key, store.region)
            source = vr.UrlSource(lambda skew: located.append(skew) or (url,
                vr.Trust()))  # type: ignore[func-returns-value]
            error = self.end_of(lambda: vr.Download(source, "x", gunzip=False).write_to(io.BytesIO()))
            hours = [round(skew / timedelta(hours=1)) for skew in located]
            self.assertEqual((skews, len(skews) > 1), (hours, bool(error)))
        expired = {"status": 403, "body": SPENT_URL}
        self.script([HALF, expired, expired, HALF, expired, expired])  # bytes in between make up for it
        self.located.clear()
        self.assertEqual((None, STORED), self.outcome(False))
        self.assertEqual(5, len(self.located))

    def test_slow_down(self) -> None:
        """Retry-After is waited for as long as it says."""
        self.script([{"status": 503, "body": SLOW_DOWN, "headers": {"Retry-After": "1"}}])
        self.assertEqual((None, STORED), self.outcome(False))
        first, second = (request.at for request in self.store.seen("GET"))
        self.assertTrue(1 <= second - first < 3)

    def test_an_error_counts_bytes_of_the_object(self) -> None:
        """Where it broke off is told in bytes of the whole, not of the last piece asked for."""
        self.script([{"wire": cut_body(70_000)}])
        with self.assertRaises(vr.Unreachable) as caught, vr.UrlSource(self.locate).open(100_000, "") as (_, chunks, _):
            self.assertEqual(STORED[100_000:], b"".join(chunks))
        self.assertEqual(f"the download broke off after 170000 of {SIZE} bytes", str(caught.exception))

    def test_cuts_under_tls(self) -> None:
        """A line that breaks under TLS, without a goodbye, is continued as well; without its authority nothing is."""
        store = FakeStore(tls=True)
        self.addCleanup(store.close)
        store.put("bucket", "k", STORED)
        for trust, code in ((vr.Trust(read_bytes(str(store.ca))), 0), (vr.Trust(), 6)):
            for after in (0, 1, 100_000, 250_000) if not code else ():
                store.script("GET", wire=cut_body(after))
            source = vr.UrlSource(lambda _skew, trust=trust: (store.url_of("bucket", "k"), trust))
            download, writer = vr.Download(source, "x", gunzip=False), io.BytesIO()
            download.first_wait = 0.001
            error = self.end_of(lambda: download.write_to(writer))
            self.assertEqual((code, code or STORED), (error.exit if error else 0, code or writer.getvalue()), error)

    def test_leaving_early(self) -> None:
        """Whoever closes the chunks, or cannot write them, ends the transfer at once, and no thread stays."""
        self.put(archive(8 * MIB))
        for gunzip in (False, True):
            for fault in ({"wire": paced(100, 0.05)}, {"pause_after": 3 * MIB, "gate": SILENT}):
                self.script([fault])
                began = time.monotonic()
                with contextlib.closing(self.download(gunzip, idle=9).chunks()) as chunks:
                    self.assertTrue(next(chunks))
                self.assertLess(time.monotonic() - began, 1.5)
                self.assertEqual([0], self.begins())

        def refuse(error: Exception) -> Any:
            raise error
        for error in (BrokenPipeError(32, "gone"), ConnectionResetError(104, "gone"), ValueError("full"),
                      TimeoutError("slow"), OSError(28, "No space left on device")):
            self.script(())
            writer = SimpleNamespace(write=lambda _data, error=error: refuse(error))
            with self.assertRaises(type(error)) as caught:
                self.download(True).write_to(writer)
            self.assertIs(caught.exception, error)
            self.assertEqual([0], self.begins())
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "download"], 10,
                   "the threads to end")

    def test_a_writer_that_takes_a_little(self) -> None:
        """It gets the rest again, as a raw pipe would need it, and is not closed."""
        taken: List[bytes] = []
        writer = SimpleNamespace(write=lambda data: taken.append(bytes(data[:9999])) or len(taken[-1]))
        self.assertEqual(SIZE, self.download().write_to(writer))
        self.assertTrue(b"".join(taken) == STORED)

    def test_partial_files(self) -> None:
        """What an earlier run left is continued where it fits; what is wrong with it costs a second run at most."""
        stored = archive(2 * MIB)
        self.put(stored)
        half, etag = stored[:MIB], hashlib.md5(stored).hexdigest()
        with contextlib.closing(vr.AtomicFile(self.path, "BackupLog of b1", force=False, named=True)) as new:
            stem, mark = new.stem, new.mark
        for name, content, begins, said in (
                (f"{mark}.{etag}", half, [MIB - 1], ""), (f"{mark}.{etag}", stored, [len(stored) - 1], ""),
                (f"{mark}.{etag}", b"", [0], ""), (f"{mark}.{etag}", half[:1000], [999], ""),
                (f"{mark}.{etag}", half[:5000] + b"\xff" * 9 + half[5009:], None, "damaged; starting over"),
                (f"{mark}.{etag}", half + bytes(100_000), None, "damaged"),
                (f"{mark}.{etag}", noise(MIB), None, "damaged"),
                (f"{mark}.{etag}", stored + b"x", None, "changed"),
                (f"{mark}.{etag}", half + noise(2 * MIB), None, "changed"),
                (f"{mark}.{'0' * 32}", half, None, "changed"),
                (f"{mark}.d41d8cd98f00b204e9800998ecf8427e-2", half, None, "changed"),
                (f"{mark}.~", half, [0], ""), (f"{mark}.{'a' * 65}", half, [0], ""),
                (f"{'0' * 8}.{etag}", half, [0], "")):
            with self.subTest(name, size=len(content)):
                for left in os.listdir(self.folder):
                    os.unlink(os.path.join(self.folder, left))
                write_bytes(os.path.join(self.folder, f"{stem}{name}{PART_SUFFIX}"), content)
                self.said.seek(self.said.truncate(0))
                self.store.forget()
                self.assertIsNone(self.end_of(lambda: self.download().save(self.path)))
                self.assertTrue(self.found() == {"out.gz": stored})
                self.assertIn(begins, (None, self.begins()))
                self.assertIn(said, self.said.getvalue())
                self.assertEqual(bool(said), bool(self.said.getvalue()))

    def test_odd_things_in_the_partial_file_s_place(self) -> None:
        """A link, a second name of another file, a FIFO or a folder there is neither written to nor waited for."""
        etag = hashlib.md5(STORED).hexdigest()
        outside = tempfile.TemporaryDirectory()
        self.addCleanup(outside.cleanup)
        victim = write_bytes(os.path.join(outside.name, "victim"), b"precious")
        with contextlib.closing(vr.AtomicFile(self.path, "BackupLog of b1", force=False, named=True)) as new:
            start = f"{new.stem}{new.mark}."
        for make in (lambda path: os.symlink(victim, path), lambda path: os.link(victim, path), os.mkfifo, os.mkdir):
            for mark in (etag, "~", "0"):
                with self.subTest(make=make, mark=mark):
                    odd = os.path.join(self.folder, start + mark + PART_SUFFIX)
                    make(odd)
                    self.assertIsNone(self.end_of(lambda: self.download().save(self.path)))
                    self.assertEqual({"out.gz", os.path.basename(odd)}, set(os.listdir(self.folder)))
                    self.assertTrue(read_bytes(self.path) == STORED)
                    self.assertEqual(read_bytes(victim), b"precious")
                    (os.rmdir if os.path.isdir(odd) else os.unlink)(odd)
                    os.unlink(self.path)

    def test_everything_is_on_disk_before_it_has_its_name(self) -> None:
        """The file is synced before it is named, and its folder after."""
        calls: List[str] = []

        def note(_frame: Any, event: str, what: Any) -> None:
            name = getattr(what, "__name__", "")
            if event == "c_call" and what.__module__ == "posix" and name in ("fsync", "link", "rename", "replace"):
                calls.append(name)
        for force, naming in ((False, "link"), (True, "replace")):
            calls.clear()
            sys.setprofile(note)
            try:
                self.download().save(self.path, force=force)
            finally:
                sys.setprofile(None)
            self.assertEqual(["fsync", naming, "fsync"], calls)


FLOCK = {"x86_64": 73, "aarch64": 32}        # the number of the system call flock


def refuse_flock(number: int) -> None:
    """Let the kernel answer each flock of this process with an error, as a file system without locks does (seccomp)."""
    code = b"".join(struct.pack("HBBI", *step) for step in (
        (0x20, 0, 0, 0), (0x15, 0, 1, FLOCK[platform.machine()]),  # load the number of the call; is it flock?
        (0x06, 0, 0, 0x50000 | number), (0x06, 0, 0, 0x7fff0000)))  # yes: this error; no: go on
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, program):  # no new privileges, set the filter
        raise OSError(ctypes.get_errno(), "no filter for system calls")


class TestDownloadFiles(DownloadWorld, unittest.TestCase):
    """`download -o FILE`: a target is the whole object, or as it was."""

    def test_targets_that_are_refused(self) -> None:
        """A file that exists or a folder costs no request; what takes no file is one sentence."""
        self.contents()
        write_bytes(self.path, b"old")
        self.cluster.forget()
        for path, force, words in ((self.path, (), "exists"), (self.target, (), "folder"),
                                   (self.target + "/", ("--force",), "folder")):
            for command in (("download",), ("backup", "download")):
                result = self.cli(*command, "b1", "-o", path, *force)
                self.assertEqual((result.code, result.out), (1, b""))
                self.assert_sentence(result, re.escape(path.lower()), words)
        self.assertEqual(self.cluster.seen(user="admin") + self.store.seen(), [])
        self.assertEqual((self.left(), read_bytes(self.path)), ({"x"}, b"old"))
        result = self.cli("download", "b1", "-o", "/proc/velero-requests-test", *IDLE_FLAG)
        self.assert_sentence(result, "/proc/velero-requests-test")
        self.assertEqual((1, []), (result.code, self.names()))

    def test_force_replaces_only_after_success(self) -> None:
        """The old file is whole until the new one is, and stays when that fails; what a link leads to is replaced."""
        stored = self.contents(2 * MIB)
        link = os.path.join(self.folder, "link")
        os.symlink(write_bytes(self.path, b"old"), link)
        self.store.put(self.namespace, KEYS["BackupContents"],
                       stored[:MIB] + bytes([stored[MIB] ^ 1]) + stored[MIB + 1:])
        for kind in ("BackupContents", "BackupLog"):
            self.store.put(self.namespace, KEYS["BackupLog"], gzip.compress(LOG)[:-3])
            result = self.download("--force", "--kind", kind)
            self.assertEqual((result.code, read_bytes(self.path), self.left()), (1, b"old", {"x"}), result.err)
        self.store.put(self.namespace, KEYS["BackupContents"], stored)
        program, gate = self.stalled(MIB, "download", "b1", "-o", link, "--force")
        self.assertEqual(read_bytes(self.path), b"old")
        gate.set()
        self.assert_right(program.end(), stored)
        self.assertTrue(os.path.islink(link))
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)

    def test_a_target_that_appears_meanwhile(self) -> None:
        """A file that comes while the bytes do is kept and said, and replaced with --force."""
        stored = self.contents(2 * MIB)
        for force in ((), ("--force",)):
            with self.subTest(force=force):
                self.clear()
                program, gate = self.stalled(MIB, "download", "b1", "-o", self.path, *force)
                write_bytes(self.path, b"theirs")
                gate.set()
                result = program.end()
                if force:
                    self.assert_right(result, stored)
                else:
                    self.assertEqual((result.code, read_bytes(self.path)), (1, b"theirs"), result.err)
                    self.assert_sentence(result, re.escape(self.path.lower()), "exist")

    def test_devices_and_stdout(self) -> None:
        """They get each byte once, though the line breaks; a FIFO stays what it is, and nothing is put beside it."""
        stored = self.contents()
        self.put(body=noise(400_000).hex().encode())
        os.mkfifo(self.path)
        self.store.script("GET", "tar.gz", wire=cut_body(100_000), times=2)
        self.store.script("GET", "logs", wire=cut_body(100_000))
        program = self.program("download", "b1", "-o", self.path, *IDLE_FLAG)
        self.assertTrue(read_bytes(self.path) == stored)
        self.assertEqual((program.end().code, self.left(), os.path.isfile(self.path)), (0, {"x"}, False))
        self.assertEqual(self.cli("download", "b1", "-o", "-"), (0, stored, ""))
        self.assertEqual(self.cli("backup", "logs", "b1"), (0, noise(400_000).hex().encode(), ""))
        beside = set(os.listdir("/dev"))
        self.assertEqual(self.cli("download", "b1", "-o", os.devnull).code, 0)
        self.assertEqual((beside, False), (set(os.listdir("/dev")), os.path.isfile(os.devnull)))

    def limited(self, limit: Callable[[], None], *argv: str) -> Result:
        """Run a command as a process that is denied something, by what `limit` does as it starts."""
        done = subprocess.run(
            [sys.executable, velero_requests.__file__, *argv, "--kubeconfig", self.kubeconfig, "-n",
             self.namespace], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
            check=False, preexec_fn=limit)  # pylint: disable=subprocess-popen-preexec-fn
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def test_a_full_disk(self) -> None:
        """No space is one sentence with the file in it; nothing is left, and an old file is as it was."""
        self.contents(MIB)
        write_bytes(self.path, b"old")
        limit = functools.partial(posix_resource.setrlimit, posix_resource.RLIMIT_FSIZE, (400_000, 400_000))
        result = self.limited(limit, "download", "b1", "-o", self.path, "--force", *IDLE_FLAG)
        self.assert_sentence(result, re.escape(self.path.lower()), "large|space|full")
        self.assertEqual((1, {"x"}, b"old", []), (result.code, self.left(), read_bytes(self.path), self.names()))

    @unittest.skipUnless(sys.platform == "linux" and platform.machine() in FLOCK, "no way here to refuse flock")
    def test_a_file_system_without_locks(self) -> None:
        """Where nothing can be locked, as on NFS without lock daemon, a download does without, and says so at -v."""
        stored = self.contents()
        for number, flag in ((errno.ENOLCK, "-v"), (errno.EIO, "--quiet")):
            self.clear()
            result = self.limited(functools.partial(refuse_flock, number), "download", "b1", "-o", self.path, flag)
            self.assert_right(result, stored)
            said = f"another download of {self.path} would not be noticed: {os.strerror(number)}"
            self.assertEqual(flag == "-v", said in result.err)

    def test_names_stay_in_their_folder(self) -> None:
        """No name of a backup makes a file anywhere."""
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.target)
        for name in ("../evil", "/" + "etc/evil", "..", "a/b", "evil\n", "-", "..\\evil"):
            with self.subTest(name):
                result = self.cli("backup", "download", *IDLE_FLAG, "--", name)
                self.assertIn(result.code, (1, 2, 3), result.err)
                self.assertEqual((set(), {"target"}), (self.left(), set(os.listdir(self.folder)) & {"target", "evil"}))
        self.assertEqual(self.gets(), [])

    def test_killed_and_continued(self) -> None:
        """After kill -9 or Ctrl-C the same command asks for the rest only, unless the object has changed."""
        stored, reached = self.contents(3 * MIB), 5 * MIB // 2
        for number, changes in ((signal.SIGINT, False), (signal.SIGKILL, False), (signal.SIGKILL, True)):
            with self.subTest(number, changes=changes):
                self.clear()
                program, gate = self.stalled(reached)
                for name in self.left():
                    self.assertEqual(os.stat(os.path.join(self.target, name)).st_mode & 0o077, 0, name)
                self.assertEqual(self.remains(), self.left())
                self.assertIn(self.etag().strip('"'), part_of(self.path))
                for force in ((), ("--force",)):  # meanwhile the target is locked
                    second = self.download(*force)
                    self.assertEqual((second.code, second.out), (1, b""), second.err)
                    self.assert_sentence(second, re.escape(self.path.lower()), "another download")
                began, result = time.monotonic(), program.end(number)
                self.assertLess(time.monotonic() - began, 5)
                if number == signal.SIGINT:
                    self.assertEqual((130, b"", []), (result.code, result.out, self.names()))
                    self.assertTrue(result.err.endswith(
                        f"interrupted by SIGINT; what has come is kept in {part_of(self.path)}, and the same "
                        "command goes on from there\n"), result.err)
                gate.set()
                self.store.forget()
                stored = self.contents(3 * MIB, seed=21) if changes else stored
                etag = self.etag()
                result = self.download()
                self.assert_right(result, stored)
                self.assertEqual(changes, "changed" in result.err)
                if not changes:
                    self.assertEqual([True], [reached - CUT_COST <= first_byte(request) for request in self.gets()])
                    self.assert_conditional(etag)

    def test_another_backup_into_the_same_target(self) -> None:
        """A partial file of one backup is not continued with another, though they be as long."""
        self.contents(3 * MIB)
        self.make_backup("b2")
        other = self.contents(3 * MIB, seed=22, name="b2")
        self.stalled(2 * MIB)[0].kill()
        self.assert_right(self.download(name="b2"), other)

    def test_an_url_that_expires_half_way(self) -> None:
        """A new request is made, the same byte continued, and no request is left; so with a log on stdout."""
        self.store.clock = lambda: self.clock().timestamp()
        stored, text = self.contents(3 * MIB), noise(400_000).hex().encode()
        self.put(body=text)
        for argv, size, kind in ((("download", "b1", "-o", self.path), 2 * MIB, "BackupContents"),
                                 (("backup", "logs", "b1"), 200_000, "BackupLog")):
            self.cluster.forget()
            self.store.forget()

            def expire(response: bytes, size: int = size) -> Iterator[bytes]:
                yield response[:body_start(response) + size]
                self.turn(seconds=700)
            self.store.script("GET", wire=expire)
            result = self.cli(*argv, *IDLE_FLAG)
            self.assertEqual((0, 2, []), (result.code, self.cluster.count("POST", "/downloadrequests"), self.names()),
                             result.err)
            self.assertTrue(result.out == text if kind == "BackupLog" else read_bytes(self.path) == stored)
            self.assertEqual((2, size - 1), (len({request.target for request in self.gets()}),
                                             first_byte(self.gets()[-1])))
            self.assert_conditional(self.etag(KEYS[kind]))

    def test_the_waiting_budget_does_not_end_a_transfer(self) -> None:
        """A transfer that takes longer than --timeout goes on."""
        stored = self.contents()
        self.store.script("GET", wire=paced(8, 0.1))
        self.assert_right(self.download("--timeout", "500ms"), stored)

    def test_codes(self) -> None:
        """What a store refuses has its code, a file that was there stays, and nothing is left where there was none."""
        self.contents()
        for status, code in ((401, 5), (403, 5), (404, 3), (302, 1), (204, 1)):
            for old in (b"", b"old"):
                with self.subTest(status, old=old):
                    self.clear()
                    if old:
                        write_bytes(self.path, old)
                    self.store.script("GET", status=status, headers={"Location": "http://127.0.0.1:1/"})
                    result = self.download("--force")
                    self.assert_failed(result, code, "BackupContents of b1")
                    self.assert_tidy(result.err)
                    self.assertEqual(([old] if old else [], []),
                                     ([read_bytes(self.path) for _ in self.left()], self.names()))
        self.clear()
        self.store.put(self.namespace, KEYS["BackupContents"], b"")
        result = self.download()
        self.assert_absent(result, 1, "the file is empty, not gzip")
        self.assertIn("hint: fetch it again; if it is damaged then, the stored object is", result.err)


def pester(folder: str, names: List[str], victim: str) -> int:
    """Fork a process of the user nobody, that makes and removes all kinds of things in a folder -> its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.chdir(folder)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        with open("his", "wb") as file:
            file.write(b"his")

        def replace(name: str) -> None:
            os.link("his", "his-too")
            os.rename("his-too", name)

        def make(name: str) -> None:
            with open(name, "xb") as file:
                time.sleep(0.01)
                if os.fstat(file.fileno()).st_size:
                    os.rename("his", "his-file-was-written")
        for act, name in itertools.cycle(itertools.product((
                lambda name: os.symlink("his", name), lambda name: os.symlink(victim, name), os.mkfifo, os.mkdir, make,
                lambda name: os.link("his", name), replace, lambda name: time.sleep(0.01)), names)):
            for step in (act, os.unlink, os.rmdir):
                with contextlib.suppress(OSError):
                    step(name)
    finally:
        os._exit(1)


class TestDownloadSharedFolder(DownloadWorld, unittest.TestCase):
    """A folder in which anybody may make files, as in /tmp."""

    def setUp(self) -> None:
        """Make it, and something to lose outside of it."""
        super().setUp()
        os.chmod(self.target, 0o1777)
        self.victim = write_bytes(os.path.join(self.folder, "victim"), b"precious")

    @unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0, "it takes root to become another user")
    def test_somebody_else_is_busy_with_our_names(self) -> None:
        """A download ends with our own file, or in one sentence; nobody else's file gets a byte."""
        stored = self.contents(100_000)
        names = ["x", *(os.path.basename(self.usual_part(mark)) for mark in ("", "~"))]
        pid = pester(self.target, names, self.victim)
        self.addCleanup(os.waitpid, pid, 0)
        self.addCleanup(os.kill, pid, signal.SIGKILL)
        wait_until(lambda: size_of(os.path.join(self.target, "his")), 5, "the other user")
        began, codes = time.monotonic(), set()
        while time.monotonic() < began + 2 or (codes != {0, 1} and time.monotonic() < began + 15):
            for force in ((), ("--force",)):
                result = self.download(*force)
                codes.add(result.code)
                if result.code:
                    self.assertEqual(1, result.code, result.err)
                    self.assert_sentence(result, "cannot write|exists")
                    continue
                there = os.lstat(self.path)
                self.assertEqual((stat.S_IFREG | 0o600, os.geteuid(), 1), (there.st_mode, there.st_uid, there.st_nlink))
                self.assertTrue(read_bytes(self.path) == stored)
                os.unlink(self.path)
        self.assertEqual({0, 1}, codes)
        self.assertEqual((b"his", b"precious"), (read_bytes(os.path.join(self.target, "his")), read_bytes(self.victim)))
        self.assertEqual([], [name for name in self.left() if os.lstat(os.path.join(self.target, name)).st_uid == 0])

    @unittest.skipUnless(hasattr(os, "geteuid") and os.geteuid() == 0, "it takes root to give files away")
    def test_what_others_have_put_there(self) -> None:
        """Another user's partial file is not continued, his FIFO and what his link leads to are not written to."""
        stored = self.contents(100_000)
        for name, make, code in (
                (os.path.basename(self.usual_part()), lambda path: write_bytes(path, stored[:1000]), 0),
                ("x", os.mkfifo, 1), ("x", lambda path: os.symlink(self.victim, path), 1)):
            with self.subTest(name):
                path = os.path.join(self.target, name)
                make(path)
                os.lchown(path, 65534, 65534)
                before = os.lstat(path)
                result = self.program("download", "b1", "-o", self.path, "--force").end()
                self.assertEqual(code, result.code, result.err)
                after = os.lstat(path)
                self.assertEqual((before.st_ino, before.st_size, before.st_mtime_ns),
                                 (after.st_ino, after.st_size, after.st_mtime_ns))
                self.assertEqual(b"precious", read_bytes(self.victim))
                self.clear()
                os.chmod(self.target, 0o1777)

    def test_the_folder_is_exchanged(self) -> None:
        """What is begun in a folder ends in it, whatever is put in its place meanwhile."""
        stored = self.contents(2 * MIB)
        program, gate = self.stalled(MIB)
        aside, elsewhere = self.target + "-aside", os.path.join(self.folder, "elsewhere")
        os.mkdir(elsewhere)
        os.rename(self.target, aside)
        os.symlink(elsewhere, self.target)
        gate.set()
        self.assertEqual(0, program.end().code, program.text())
        self.assertEqual(([], ["x"]), (os.listdir(elsewhere), os.listdir(aside)))
        self.assertTrue(read_bytes(os.path.join(aside, "x")) == stored)


class TestDownloadUrlOnly(DownloadWorld, unittest.TestCase):
    """`--url-only` where whoever may write a status has written it."""

    serves = False

    def test_only_a_url_is_printed(self) -> None:
        """No control characters, no blanks, only ASCII, http or https; else a sentence, and nothing on stdout."""
        rows = [("https://s.example/k?X-Amz-Signature=a", 0), ("http://[::1]:9000/k", 0), ("https://", 1),
                *((f"https://s.example/a{odd}k", 1) for odd in ("\x1b[2J", " ", "\n", "\u202e", "\xe9", "\x7f")),
                ("file:///etc/passwd", 1), ("javascript:alert(1)", 1), (" https://s.example/", 1)]

        def fill_in() -> None:
            for url, _ in rows:
                name, = wait_until(self.names, 15, "the request")
                self.fill(name, downloadURL=url, phase="Processed")
                wait_until(lambda name=name: name not in self.names(), 15, "the end")
        thread = threading.Thread(target=fill_in, daemon=True)
        thread.start()
        for url, code in rows:
            with self.subTest(url):
                result = self.cli("download", "b1", "--url-only")
                self.assertEqual((code, b"" if code else url.encode() + b"\n"), (result.code, result.out), result.err)
                if code:
                    self.assert_sentence(result, "no printable http or https url")
        thread.join(15)


@unittest.skipUnless(os.path.isdir("/proc/self/fd"), "needs /proc")
class TestDownloadMemory(DownloadWorld, unittest.TestCase):
    """The size of an object does not show in the memory that its download takes, compiled or as a script."""

    def measured(self, *argv: str) -> Tuple[int, float, float]:
        """Run a command as a script -> its code, and what it had resident as it asked for the object, and at most."""
        program, begun, peak = self.program(*argv, stdout=subprocess.DEVNULL), 0.0, 0.0

        def ended() -> bool:
            nonlocal begun, peak
            now = resident(program.process.pid)
            if self.store.requests:
                begun, peak = begun or now, max(peak, now)
            return program.process.poll() is not None
        wait_until(ended, 90, "the end")
        return program.end().code, begun, peak

    def test_it_stays_small(self) -> None:
        """300 MB into a file, half a gigabyte of zeros to a pipe, and a body without its end that is refused."""
        member, zeros = gzip.compress(noise(MIB), 1), gzip.compress(b"\0" * (64 * MIB))

        def many(_response: bytes) -> Iterator[bytes]:
            yield head(200, (("Content-Length", str(300 * len(member))), ("ETag", '"large-9"')))
            yield from itertools.repeat(member, 300)
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
                found, begun, peak = self.measured(*argv)
                self.assertEqual(code, found)
                self.assertTrue(0 < peak <= begun + GROWTH, f"{begun} MiB before, {peak} at most")
                self.assertEqual(set() if stored else {"x"}, self.left())


class TestDownloadSeen(DownloadWorld, unittest.TestCase):
    """What is said on a terminal, into a pipe, and when somebody interrupts."""

    def terminal(self, *argv: str, **options: Any) -> Terminal:
        """Start a command on a terminal."""
        terminal = Terminal(self.folder, *argv, "--kubeconfig", self.kubeconfig, "-n", self.namespace, **options)
        self.addCleanup(terminal.kill)
        return terminal

    def test_progress(self) -> None:
        """Bytes, percent, rate and time left on one line, redrawn at most 10 times a second, then the final line."""
        stored = self.contents(MIB)
        self.store.script("GET", wire=paced(40, 0.04))
        terminal = self.terminal("download", "b1", "-o", self.path)
        code, text = terminal.end()
        self.assertEqual(code, 0, text)
        for shown in (r"\d+(\.\d+)? ?%", r"\d ?([kKMG]i?)?B/s", r"\d(s|m|:\d\d)\b left",
                      r"\r\x1b\[K1\.0 MiB in \d+(\.\d)?s\n"):
            self.assertRegex(text, shown)
        redraws = [at for at, piece in terminal.pieces for _ in range(piece.replace(b"\r\n", b"\n").count(b"\r"))]
        taken = terminal.pieces[-1][0] - terminal.pieces[0][0]
        self.assertTrue(3 < len(redraws) <= 10 * taken + 6, redraws)
        self.assertTrue(read_bytes(self.path) == stored)

    def test_progress_text(self) -> None:
        """The rate is that of the bytes of this run; what is not known is left out."""
        for numbers, text in (((1 << 20, 4 << 20, 1 << 19, 0.5), "1.0 MiB of 4.0 MiB, 25%, 1.0 MiB/s, 3s left"),
                              ((1 << 20, None, 1 << 20, 2.0), "1.0 MiB, 512.0 KiB/s"),
                              ((9, 18, 0, 0.0), "9 B of 18 B, 50%, 0 B/s"),
                              ((3 << 41, 3 << 41, 1, 1.0), "6.0 TiB of 6.0 TiB, 100%, 1 B/s, 0s left")):
            self.assertEqual(text, vr.progress_text(*numbers))

    def test_what_terminals_and_pipes_see(self) -> None:
        """A line no longer than a terminal is wide, no progress in a log or a pipe or with --quiet, no archive."""
        self.contents()
        self.put()
        self.store.script("GET", times=5, wire=paced(10, 0.04))
        rows: Tuple[Tuple[Tuple[str, ...], int, int, str], ...] = (
            (("download", "b1", "-o", self.path + "0"), 0, 0, ""),
            (("download", "b1", "-o", self.path + "1"), 20, 0, ""),
            (("backup", "logs", "b1"), 80, 0, LOG.decode()), (("download", "b1", "-o", self.path + "2", "--quiet"), 80,
                                                              0, ""),
            (("download", "b1", "-o", "-"), 80, 2, "is binary, and stdout is a terminal"),
            (("download", "b1", "-o", "-", "--force"), 80, 0, "\x1f"))
        terminals = [self.terminal(*row[0]) for row in rows]
        for terminal, row in zip(terminals, rows):
            fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if row[1] else 0, row[1], 0, 0))
        for terminal, (argv, columns, code, text) in zip(terminals, rows):
            with self.subTest(argv, columns=columns):
                found, said = terminal.end()
                self.assertEqual(code, found, said)
                if "-" in argv:
                    self.assertIn(text, said)
                elif "--quiet" in argv or text:
                    self.assertEqual(text, said)
                else:
                    self.assertLess(max(map(len, re.findall(r"\r([^\r\x1b]*)\x1b", said))), columns or 80)
        for fault in (paced(10, 0.02), cut_body(100_000)):
            self.store.script("GET", wire=fault)
            result = self.download("--force")
            self.assertEqual((0, None), (result.code, re.search("[\r\x1b]", result.err + result.out.decode())),
                             result.err)
        self.assertEqual(self.download("--quiet", "--force"), (0, b"", ""))
        self.assert_sentence(self.download("--quiet"), "exist")

    def test_ctrl_c_on_a_terminal(self) -> None:
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
            self.assertEqual((130, []), (code, [] if twice else self.names()), text)
            self.assertEqual(terminal.before, terminal.after)
            self.assertTrue(text.endswith("\n") and "Traceback" not in text, text)
            self.assertLessEqual(self.left(), self.remains())

    def test_it_says_which_signal(self) -> None:
        """Of a file that cannot be continued nothing is kept."""
        self.put(body=noise(2 * MIB).hex().encode())
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            with self.subTest(number):
                program, _ = self.stalled(MIB, "download", "b1", "--kind", "BackupLog", "-o", self.path)
                result = program.end(number)
                self.assertEqual((code, f"interrupted by {number.name}; nothing of it is kept\n", set(), []),
                                 (result.code, result.err, self.left(), self.names()))

    def test_a_terminal_sees_what_is_waited_for(self) -> None:
        """After a second, on one line that is gone in the end; not with --quiet, and not in a pipe."""
        for controller in self.controllers:
            controller.stop.set()
        self.cluster.limit("controller", "patch", resource="downloadrequests")
        self.addCleanup(self.cluster.unlimit)
        line = r"\A(\rwaiting for %s, at most [01]s more\x1b\[K)+\r\x1b\[K(error|Name): "
        logs = ("backup", "logs", "b1", "--timeout", "1600ms")
        piped, *terminals = self.program(*logs), *(
            (self.terminal(*words), pattern) for words, pattern in (
                (logs, line % "the URL of BackupLog of b1"), ((*logs, "--quiet"), r"\Aerror: "),
                (("backup", "describe", "b1", "--timeout", "1600ms"), line % "what belongs to backup b1")))
        for terminal, pattern in terminals:
            self.assertRegex(terminal.end()[1], pattern)
        self.assertRegex(piped.end().err, r"(?s)\Aerror: .*hint: .*--direct")

    def test_talkative_when_all_goes_well(self) -> None:
        """-v names cluster, namespace, way, request and store, and each retry; without it there is silence."""
        self.put()
        asked = [rf"the cluster is {self.cluster.url}, the namespace {self.namespace}",
                 "the way: a controller's answer",
                 r"created DownloadRequest \S+/b1-[a-z0-9]{5}", rf"is answered; the store is {self.store.url}",
                 r"deleted DownloadRequest \S+/b1-[a-z0-9]{5}"]
        direct = ["the way: the storage location, signed for here", rf"the store is {self.store.url[7:]}, the bucket "]
        for flags, lines in (((), asked), (("--direct",), direct)):
            with self.subTest(flags):
                for fault, retry in (({}, []), ({"status": 503, "body": b"{}"}, [r"with 503; trying again in"])):
                    if fault:
                        self.cluster.script("GET", "/backups/", **fault)
                    result = self.cli("backup", "logs", "b1", "-v", *flags)
                    self.assertEqual((0, LOG), (result.code, result.out))
                    for line in lines + retry:
                        self.assertRegex(result.err, line)
                    self.assert_clean(result.err)
                self.assertEqual("", self.cli("backup", "logs", "b1", *flags).err)

    def test_nothing_to_list(self) -> None:
        """An empty table is said on stderr, as kubectl does; JSON and YAML are lists without items."""
        said = f"No resources found in {self.namespace} namespace.\n"
        for words, err in (("backup get -l no=such", said), ("restore get -l no=such", said),
                           ("backup get -l no=such -o json", ""), ("get backups", "")):
            with self.subTest(words):
                result = self.cli(*words.split())
                self.assertEqual((0, err, not err), (result.code, result.err, bool(result.out)))

    def test_head_leaves(self) -> None:
        """When the reader of a log that still comes has left, the command ends within a second, without a word."""
        self.put(body=noise(2 * MIB).hex().encode())
        self.store.script("GET", wire=paced(400, 0.02))
        reading, writing = os.pipe()
        program = self.program("backup", "logs", "b1", stdout=writing)
        os.close(writing)
        self.assertEqual(len(os.read(reading, 10)), 10)
        os.close(reading)
        began = time.monotonic()
        result = program.end()
        self.assertLess(time.monotonic() - began, 1.5)
        self.assertIn(result.code, (0, 141))
        self.assertEqual(("", [], 1), (result.err, self.names(), len(self.gets())))

    def test_stdout_is_closed(self) -> None:
        """With descriptor 1 closed no socket gets the output, and a file comes right or not at all."""
        stored = self.contents()
        self.put()
        for argv in (("download", "b1", "-o", self.path), ("download", "b1", "-o", "-"), ("backup", "logs", "b1")):
            with self.subTest(argv):
                self.clear()
                done = subprocess.run(
                    ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, velero_requests.__file__, *argv,
                     "--kubeconfig", self.kubeconfig, "-n", self.namespace], stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, timeout=60, check=False)
                result = Result(done.returncode, b"", done.stderr.decode())
                if self.left():
                    self.assert_right(result, stored)
                else:
                    self.assertEqual(result.code, 1)
                    self.assert_sentence(result, "stdout")
        self.assertFalse(any(request.status == 400 or not request.method.isupper()
                             for request in self.store.seen() + self.cluster.seen()))


# ------------------------------------------------------------------------------------------------------------
# Downloads, row 6: direct
# ------------------------------------------------------------------------------------------------------------

def backup_document(name: str, phase: str = "Completed") -> bytes:
    """Return a velero-backup.json."""
    return json.dumps({
        "kind": "Backup", "apiVersion": "velero.io/v1",
        "metadata": {"name": name, "namespace": "velero", "creationTimestamp": "2026-01-02T03:04:05Z"},
        "spec": {"storageLocation": "default", "includedNamespaces": ["*"], "ttl": "720h0m0s"},
        "status": {"phase": phase, "version": 1, "formatVersion": "1.1.0", "startTimestamp": "2026-01-02T03:04:05Z",
                   "completionTimestamp": "2026-01-02T03:05:05Z", "expiration": "2026-02-01T03:04:05Z"}}).encode()


@contextlib.contextmanager
def without_rights(*paths: str) -> Iterator[None]:
    """Take all permissions from files or folders for a while, and from root its privilege to ignore that."""
    modes = [(path, os.stat(path).st_mode & 0o777) for path in paths]
    user = os.geteuid()
    for path in paths:
        os.chmod(path, 0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path, mode in modes:
            os.chmod(path, mode)


class DirectTests(Sentences):
    """Downloads without a controller, on either pair of servers."""

    def fill_bucket(self, prefix: str = "") -> Dict[str, bytes]:
        """Store two backups and a restore, and return what lies in the bucket by key."""
        stored = {f"backups/{name}/velero-backup.json": backup_document(name, phase)
                  for name, phase in (("b1", "Completed"), ("b2", "PartiallyFailed"))}
        stored.update({KEYS["BackupContents"]: archive(300_000), KEYS["BackupLog"]: gzip.compress(LOG),
                       KEYS["RestoreLog"]: gzip.compress(LOG[:500]),
                       "backups/b2/b2.tar.gz": archive(50_000, seed=2)})
        for key, body in stored.items():
            self.store.put(self.namespace, prefix + key, body)
        return stored

    def location_document(self, **storage: Any) -> Document:
        """Return a storage location as an administrator has it in a file."""
        return {"apiVersion": "velero.io/v1", "kind": "BackupStorageLocation",
                "metadata": {"name": "default", "namespace": "velero"},
                "spec": {"provider": "aws", "objectStorage": {"bucket": self.namespace, **storage},
                         "config": {"region": self.store.region, "s3Url": self.store.url,
                                    "s3ForcePathStyle": "true"}}}

    def files(self, document: Any = None, keys: Optional[str] = None) -> Tuple[str, ...]:
        """Write location and credentials, and return the flags that name them."""
        self.make_target()
        location = os.path.join(self.folder, "location.yaml")
        document = self.location_document() if document is None else document
        write_bytes(location, document if isinstance(document, bytes) else yaml.safe_dump(document).encode())
        keys = keys_file(self.store.access_key, self.store.secret_key) if keys is None else keys
        credentials = write_bytes(os.path.join(self.folder, "cloud"), keys.encode())
        return ("--direct", "--location", location, "--credentials-file", credentials)

    def copied(self, prefix: str = "") -> str:
        """Return a folder with a copy of the bucket."""
        folder = os.path.join(self.folder, "copy")
        for key, body in self.fill_bucket(prefix).items():
            write_bytes(os.path.join(folder, prefix + key), body)
        return folder

    def test_direct_from_the_cluster(self) -> None:
        """--direct needs backup, location and Secret, and nobody who answers: no request is created."""
        self.make_target()
        stored = self.fill_bucket()
        result = self.cli("download", "b1", "--direct", "-o", self.path)
        self.assert_right(result, stored[KEYS["BackupContents"]])
        self.clear()
        result = self.cli("backup", "download", "b1", "--direct", "-o", self.path)
        self.assert_right(result, stored[KEYS["BackupContents"]])
        self.assertEqual(self.cli("backup", "logs", "b1", "--direct"), (0, LOG, ""))
        self.assertEqual(self.cli("restore", "logs", "r1", "--direct"), (0, LOG[:500], ""))
        url = self.cli("download", "b1", "--direct", "--url-only", "--force=false").out.decode().strip()
        self.assertEqual(fetch(url).data, stored[KEYS["BackupContents"]])
        self.assertEqual(self.names(), [])

    def test_direct_with_a_prefix(self) -> None:
        """The location's prefix is before every key, in the cluster and in a file."""
        self.make_target()
        self.make_location("deep", prefix="a/b")
        self.make_backup("b2", "deep")
        stored = self.fill_bucket("a/b/")
        self.assert_right(self.cli("download", "b2", "--direct", "-o", self.path), stored["backups/b2/b2.tar.gz"])
        self.clear()
        flags = self.files(self.location_document(prefix="a/b/"))
        self.assert_right(run("download", "b1", *flags, "-o", self.path), stored[KEYS["BackupContents"]])
        listed = run("backup", "get", *flags)
        self.assertRegex(listed.out.decode(), r"(?m)^b1\s")

    def test_direct_with_the_caller_s_rights(self) -> None:
        """Three rights to read are enough; without one of them it is code 5 and named."""
        self.make_target()
        stored = self.fill_bucket()
        self.cluster.grant("reader", *(
            {"apiGroups": [group], "resources": [plural], "verbs": ["get"]} for group, plural in (
                ("velero.io", "backups"), ("velero.io", "backupstoragelocations"), ("", "secrets"))),
            namespace=self.namespace)
        self.assert_right(self.cli("download", "b1", "--direct", "-o", self.path, user="reader"),
                          stored[KEYS["BackupContents"]])
        self.clear()
        self.cluster.grant("limited", *({"apiGroups": ["velero.io"], "resources": [plural], "verbs": ["get"]}
                                        for plural in ("backups", "backupstoragelocations")),
                           namespace=self.namespace)
        result = self.cli("download", "b1", "--direct", "-o", self.path, user="limited")
        self.assert_absent(result, 5, "secret")

    def test_without_a_cluster(self) -> None:
        """The object or its spec in a file and the credentials in another: everything works, no cluster is asked."""
        stored = self.fill_bucket()
        whole = self.location_document()
        for document in (whole, whole["spec"], {"spec": whole["spec"]}):
            with self.subTest(keys=sorted(document)):
                flags = (*self.files(document), "--kubeconfig", "/nowhere")
                self.clear()
                self.assert_right(run("download", "b1", *flags, "-o", self.path), stored[KEYS["BackupContents"]])
                self.assertEqual(run("backup", "logs", "b1", *flags), (0, LOG, ""))
                self.assertEqual(run("restore", "logs", "r1", *flags), (0, LOG[:500], ""))
                self.assertEqual(run("download", "r1", "--kind", "RestoreLog", *flags).out, LOG[:500])
        self.clear()
        self.assert_right(run("download", "b1", *flags[1:], "-o", self.path), stored[KEYS["BackupContents"]])

    def test_backups_listed_from_the_bucket(self) -> None:
        """`backup get --direct` shows what velero-backup.json says of each."""
        self.fill_bucket()
        flags = self.files()
        result = run("backup", "get", *flags)
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.out.decode(), r"(?m)^b1\s+Completed\b")
        self.assertRegex(result.out.decode(), r"(?m)^b2\s+PartiallyFailed\b")
        document = json.loads(run("backup", "get", *flags, "-o", "json").out)
        self.assertEqual([item["metadata"]["name"] for item in document["items"]], ["b1", "b2"])
        one = run("backup", "get", "b2", *flags)
        self.assertRegex(one.out.decode(), r"(?m)^b2\s")
        self.assertNotRegex(one.out.decode(), r"(?m)^b1\s")
        self.assert_sentence(run("backup", "get", "nobody", *flags), "nobody")

    def test_backups_listed_from_every_location(self) -> None:
        """What can be listed is, under its location's name; what cannot is a line each, the first one's code counts."""
        self.fill_bucket()
        self.fill_bucket("other/")
        self.store.put(self.namespace, "other/backups/b3/velero-backup.json", backup_document("b3", "Completed"))
        self.make_location("other", prefix="other")
        self.make_location("unreachable", {"s3Url": "http://127.0.0.1:1"})
        result = self.cli("backup", "get", "--direct")
        rows = [(line.split()[0], line.split()[-2]) for line in result.out.decode().splitlines()[1:]]
        self.assertEqual([("b1", "default"), ("b1", "other"), ("b2", "default"), ("b2", "other"), ("b3", "other")],
                         rows)
        self.assertEqual(6, result.code, result.err)
        self.assert_sentence(result, "^error: storage location 'unreachable': .*127.0.0.1:1")
        one = self.cli("backup", "get", "b1", "--direct", "-o", "json")
        self.assertTrue(one.out, one.err)
        self.assertEqual(["default", "other"],
                         [item["spec"]["storageLocation"] for item in json.loads(one.out)["items"]])
        self.make_location("lost", secret="gone")
        self.make_location("odd", {"s3ForcePathStyle": "perhaps"})
        result = self.cli("backup", "get", "nobody", "b3", "--direct")
        self.assertEqual((3, 2), (result.code, len(result.out.splitlines())), result.err)
        errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
        for number, said in enumerate(("storage location 'lost'", "storage location 'odd'",
                                       "storage location 'unreachable'", 'backup "nobody" does not exist')):
            self.assertEqual(1, errors[number].count(said), errors)
        self.assertEqual(4, len(errors), errors)

    def test_nothing_that_could_be_listed(self) -> None:
        """Where no location can be listed stdout is empty in every format: no list is not an empty list."""
        self.admin.delete("backupstoragelocations", "default", self.namespace)
        self.make_location("lost", secret="gone")
        for output in ("table", "json", "yaml"):
            self.assert_failed(self.cli("backup", "get", "--direct", "-o", output), 3, "'lost'", "gone")

    def test_one_backup_that_cannot_be_listed(self) -> None:
        """A velero-backup.json that cannot be read hides no other backup, and is said with its location."""
        self.fill_bucket()
        self.store.put(self.namespace, "backups/b3/velero-backup.json", b" " * (17 << 20))
        result = run("backup", "get", *self.files())
        self.assertEqual((1, 3), (result.code, len(result.out.splitlines())), result.err)
        self.assert_sentence(result, "backup 'b3' in .*location.yaml: it is larger than 16 mib")

    def test_backups_that_are_too_large_together(self) -> None:
        """Elements weigh more than their bytes; those that there is room for are listed, and that others are not."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("b1", "b2", "b3", "b4"):
                write_bytes(os.path.join(folder, "backups", name, "velero-backup.json"),
                            b'{"metadata": {}, "x": [' + b"[]," * 99 + b"0]}")
            found, troubles = vr.FolderBucket(folder).backups("it", left=15_000)
        self.assertEqual(["b1", "b2"], [backup["metadata"]["name"] for backup in found])
        self.assertEqual(["the backups in it are too large to be listed, from backup 'b3' in it on"],
                         list(map(str, troubles)))

    def test_files_without_an_end(self) -> None:
        """What is named instead of a file is not read into all of the memory."""
        for purpose in ("certificate authority", "token", "credentials file"):
            with self.assertRaisesRegex(vr.ConfigError, f"{purpose} /dev/zero is larger than 8 MiB"):
                vr.read_file("/dev/zero", purpose)

    def test_what_is_wrong_with_the_files(self) -> None:
        """A location or credentials that cannot be read are one sentence each, with the file or the field in it."""
        self.fill_bucket()
        whole = self.location_document()
        cases: Tuple[Tuple[Any, Optional[str], str], ...] = (
            (b"- a list", None, "location.yaml must be a mapping"), (b"", None, "provider"),
            (b"a: [b", None, "location"), (b"\x00\x01", None, "location"), ({"spec": {}}, None, "bucket|provider"),
            (b"5", None, "location"),
            (backup_document("b1", "Completed"), None, "kind 'backup'.* backupstoragelocation"),
            ({"kind": "List", "items": [whole]}, None, "kind 'list'.* backupstoragelocation"),
            ({**whole["spec"], "provider": "azure"}, None, "azure"), (whole, "", "cloud|credential"),
            (whole, "nonsense", "cloud|credential|line"), (whole, "[default]\n", "cloud|key|credential"),
            *(({**whole["spec"], "config": {**whole["spec"]["config"], key: value}}, None,
               f"location.yaml: spec.config: {key} must be a string: write it in quotes".lower())
              for key, value in (("s3ForcePathStyle", True), ("region", 2024), ("profile", 1.5), (2024, 2024))),
            ({**whole["spec"], "objectStorage": {"bucket": "b", "prefix": 2024}}, None,
             "spec.objectstorage: prefix must be a string: write it in quotes"),
            (b"spec:\n  config: {x: %b}" % (b"x" * (1 << 20)), None, "larger than 1 mib"))
        for document, keys, words in cases:
            with self.subTest(str(document)[:40], keys=keys):
                flags = self.files(document, keys)
                result = run("download", "b1", *flags, "-o", self.path)
                self.assertIn(result.code, (1, 2), result.err)
                self.assert_sentence(result, words)
                self.assertEqual(self.left(), set())
        flags = self.files()
        for place in (2, 4):
            gone = [*flags[:place], os.path.join(self.folder, "gone"), *flags[place + 1:]]
            result = run("download", "b1", *gone, "-o", self.path)
            self.assertIn(result.code, (1, 2))
            self.assert_sentence(result, "gone")

    def test_a_secret_that_no_cluster_is_asked_for(self) -> None:
        """A location in a file that names a Secret needs its contents in a file too; nobody else is asked for keys."""
        document = self.location_document()
        document["spec"]["credential"] = {"name": "cloud-credentials", "key": "cloud"}
        result = run("download", "b1", *self.files(document)[:3], "-o", self.path)
        self.assertEqual(result.code, 1, result.err)
        self.assertIn("names the Secret 'cloud-credentials', and no cluster is asked\nhint: name a file", result.err)

    def test_flags_that_say_nothing(self) -> None:
        """What nobody would use is wrong usage, and the hint leads to the help of the command."""
        for words, said in ((("backup", "logs", "b1", "--credentials-file", "gone"), "without --direct or --location"),
                            (("download", "b1", "--url-only", "-o", "x"), "makes no file; leave out --output\n"),
                            (("download", "b1", "--url-only", "-o", "x", "--force"),
                             "leave out --output and --force\n"),
                            (("backup", "get", "--location", ""), "--location: it is empty"),
                            (("backup", "get", "--location="), "--location: it is empty"),
                            (("backup", "get", "--direct", "--credentials-file="), "-file: it is empty"),
                            (("backup", "logs", "b1", "--cacert", ""), "--cacert: it is empty"),
                            (("backup", "describe", "--cacert="), "--cacert: it is empty"),
                            (("download", "b1", "-o", ""), "--output: it is empty"),
                            (("backup", "logs", "b1", "--follow"), "velero_requests.py backup logs --help")):
            with self.subTest(words=words):
                result = self.cli(*words)
                self.assertEqual((2, b""), (result.code, result.out), result.err)
                self.assertIn(said, result.err)

    def test_direct_says_what_the_ordinary_way_says(self) -> None:
        """A backup that does not exist, is still running, or lies in a location that is gone."""
        self.admin.create("backups", {"kind": "Backup", "metadata": {"name": "b-lost"}, "spec": {
            "storageLocation": "gone"}, "status": {"phase": "Completed"}}, self.namespace)
        self.admin.create("backups", {"kind": "Backup", "metadata": {"name": "b-runs"}, "spec": {
            "storageLocation": "default"}, "status": {"phase": "InProgress"}}, self.namespace)
        for name, code, said in (("nosuch", 3, 'backup "nosuch" does not exist'), ("b-runs", 1, "not available until"),
                                 ("b-lost", 3, "storage location 'gone' does not exist; backup 'b-lost' is in it")):
            with self.subTest(name):
                result = self.cli("backup", "logs", name, "--direct")
                self.assertEqual((code, b""), (result.code, result.out), result.err)
                self.assertIn(said, result.err)

    def test_what_the_store_refuses(self) -> None:
        """Wrong keys are 5 within 6 s, what is not there 3, a wrong region is told."""
        self.fill_bucket()
        wrong = self.files(keys=keys_file(self.store.access_key, "not-the-secret"))
        began = time.monotonic()
        for argv in (("download", "b1", "-o", self.path), ("backup", "logs", "b1"), ("backup", "get")):
            result = run(*argv, *wrong)
            self.assertEqual((result.code, result.out), (5, b""), result.err)
            self.assert_sentence(result)
            self.assertNotIn("not-the-secret", result.err)
        self.assertLess(time.monotonic() - began, 18)
        flags = self.files()
        for argv in (("download", "nobody", "-o", self.path), ("backup", "logs", "nobody"),
                     ("download", "b1", "--kind", "BackupResults", "-o", "-")):
            self.assert_absent(run(*argv, *flags), 3, argv[1].replace("logs", "nobody"))
        elsewhere = self.location_document()
        elsewhere["spec"]["objectStorage"]["bucket"] = "no-such-bucket-anywhere"
        flags = self.files(elsewhere)
        self.assert_absent(run("download", "b1", "-o", self.path, *flags), (1, 3), "bucket")
        self.assert_absent(run("backup", "get", *flags), (1, 3), "bucket")

    def test_a_folder_for_a_bucket(self) -> None:
        """A copied bucket in a folder is as good as the store: archives, logs, listings."""
        self.make_target()
        folder = self.copied()
        stored = read_bytes(os.path.join(folder, KEYS["BackupContents"]))
        for flags in (("--location", folder), ("--direct", "--location", folder + "/")):
            self.clear()
            self.assert_right(run("download", "b1", *flags, "-o", self.path), stored)
            self.assertEqual(run("backup", "logs", "b1", *flags), (0, LOG, ""))
            self.assertEqual(run("restore", "logs", "r1", *flags), (0, LOG[:500], ""))
            listed = run("backup", "get", "--direct", *flags[-2:]).out.decode()
            self.assertRegex(listed, r"(?m)^b1\s+Completed\b")
            self.assertRegex(listed, r"(?m)^b2\s+PartiallyFailed\b")

    def test_a_folder_that_is_wrong(self) -> None:
        """What is missing, damaged, empty or a trap in a folder is refused as it would be from a store."""
        self.make_target()
        folder = self.copied()
        flags = ("--direct", "--location", folder)
        key = os.path.join(folder, KEYS["BackupContents"])
        for name in ("nobody", "..", "../..", "/etc/passwd", "b1/../b1", ""):
            self.assert_absent(run("download", *flags, "-o", self.path, "--", name), 3)
        whole = read_bytes(key)
        for body in (b"", whole[:-1], whole + b"x", LOGIN_PAGE, whole[:-5] + b"\0" + whole[-4:]):
            write_bytes(key, body)
            self.assert_absent(run("download", "b1", *flags, "-o", self.path), 1)
        write_bytes(os.path.join(folder, KEYS["BackupLog"]), gzip.compress(LOG * 99)[:-9])
        log = run("backup", "logs", "b1", *flags)
        self.assertEqual(log.code, 1)
        self.assertTrue((LOG * 99).startswith(log.out) and log.out)
        os.unlink(key)
        for make in (os.mkdir, os.mkfifo):
            make(key)
            done = Program(self.folder, "download", "b1", *flags, "-o", self.path)
            self.addCleanup(done.kill)
            self.assert_absent(done.end(), (1, 3))
            (os.rmdir if os.path.isdir(key) else os.unlink)(key)
        empty = run("backup", "get", "--direct", "--location", self.target)
        self.assertIn(empty.code, (0, 1, 3))
        self.assertNotIn(b"b1", empty.out)
        self.assert_sentence(run("download", "b1", "--direct", "--location", self.folder + "/no", "-o", self.path))


class TestDownloadDirectFake(DirectTests, DownloadWorld, unittest.TestCase):
    """Direct on the fakes, and what only they can show."""

    serves = False

    def test_a_folder_that_is_another(self) -> None:
        """Whatever is looked for in a folder that holds no copied bucket, the hint says which folder to name."""
        folder, hint = self.copied(), "hint: name the folder that holds the folder backups\n"
        for words in (("backup", "get"), ("backup", "logs", "b1"), ("download", "b1", "-o", self.path)):
            for path in (os.path.join(folder, "backups"), os.path.join(folder, "backups", "b1"), self.folder):
                result = run(*words, "--location", path)
                self.assertEqual((3, b""), (result.code, result.out), result.err)
                self.assertIn(hint, result.err)
        missing = run("backup", "logs", "b2", "--location", folder)
        self.assertEqual((3, False), (missing.code, hint in missing.err), missing.err)

    def test_a_damaged_log_has_a_cure(self) -> None:
        """It says how to tell a bad line from a bad object, and how to have that as it is stored."""
        folder = self.copied()
        packed = gzip.compress(LOG)
        self.store.put(self.namespace, KEYS["BackupLog"], packed[:-9])
        for words in (("--direct",), self.files()):
            result = self.cli("backup", "logs", "b1", *words)
            self.assertEqual((1, True), (result.code, LOG.startswith(result.out)), result.err)
            self.assertIn("hint: fetch it again; if it is damaged then, the stored object is, and `curl -o FILE \"$("
                          "velero_requests.py download b1 --kind BackupLog --url-only)\"`", result.err)
        write_bytes(os.path.join(folder, KEYS["BackupLog"]), packed[:-9])
        result = self.cli("backup", "logs", "b1", "--location", folder)
        self.assertEqual((1, True), (result.code, LOG.startswith(result.out)), result.err)
        self.assertIn(f"hint: copy {folder}/backups/b1/b1-logs.gz from the bucket again", result.err)

    def test_a_folder_that_may_not_be_read(self) -> None:
        """What the file system forbids in a copied bucket is code 5 with its path, and the rest is listed."""
        os.chmod(self.folder, 0o755)
        backups = os.path.join(self.copied(), "backups")
        for path, words in ((backups, ("backup", "get")), (backups, ("backup", "logs", "b1")),
                            (os.path.join(backups, "b1", "b1-logs.gz"), ("backup", "logs", "b1")),
                            (os.path.join(backups, "b1", "velero-backup.json"), ("backup", "get"))):
            with self.subTest(path, words=words):
                with without_rights(path):
                    result = run(*words, "--location", os.path.dirname(backups))
                self.assertEqual(5, result.code, result.err)
                self.assert_sentence(result, re.escape(path.lower()), "permission denied")
                self.assertEqual(path.endswith(".json"), b"b2" in result.out)

    def test_what_the_cluster_is_asked(self) -> None:
        """--direct sends nothing but GET to the cluster, --location nothing at all."""
        self.fill_bucket()
        for argv in (("backup", "logs", "b1"), ("backup", "get"), ("restore", "logs", "r1")):
            for flags, methods in ((("--direct",), {"GET"}), (self.files(), set())):
                self.cluster.forget()
                result = self.cli(*argv, *flags)
                self.assertEqual(result.code, 0, result.err)
                self.assertEqual({request.method for request in self.cluster.seen()}, methods)

    def test_cuts_and_faults(self) -> None:
        """Direct downloads survive a cut and an expired URL by signing again themselves."""
        stored = self.fill_bucket()[KEYS["BackupContents"]]
        flags = self.files()

        def expire(response: bytes) -> Iterator[bytes]:
            yield response[:body_start(response) + 100_000]
            self.store.script("GET", KEYS["BackupContents"], status=403, body=SPENT_URL)
        for wire in (cut_body(100_000), expire):
            self.clear()
            self.store.script("GET", KEYS["BackupContents"], wire=wire)
            self.store.forget()
            self.assert_right(run("download", "b1", *flags, *IDLE_FLAG, "-o", self.path), stored)
            self.assertGreater(first_byte(self.gets(KEYS["BackupContents"])[-1]), 0)
            self.assert_conditional(self.etag())

    def test_an_authority_in_the_file(self) -> None:
        """A location's caCert in the file is believed, and without it the store is not."""
        store = FakeStore(tls=True)
        self.addCleanup(store.close)
        store.put(self.namespace, KEYS["BackupLog"], gzip.compress(LOG))
        document = self.location_document()
        document["spec"]["config"]["s3Url"] = store.url
        self.assertEqual(run("backup", "logs", "b1", *self.files(document)).code, 6)
        document["spec"]["objectStorage"]["caCert"] = base64.b64encode(read_bytes(str(store.ca))).decode()
        self.assertEqual(run("backup", "logs", "b1", *self.files(document)), (0, LOG, ""))

    def test_a_listing_of_many_pages(self) -> None:
        """However many pages a listing has, each backup is shown once, and folders of others are not."""
        names = [f"n{number:03}" for number in range(25)]
        for name in names:
            self.store.put(self.namespace, f"backups/{name}/velero-backup.json", backup_document(name))
            self.store.put(self.namespace, f"backups/{name}/{name}.tar.gz", b"x")
        self.store.put(self.namespace, "restores/r1/restore-r1-logs.gz", b"x")
        self.store.put(self.namespace, "kopia/ns/f", b"x")
        self.store.page = 4
        listed = run("backup", "get", *self.files()).out.decode()
        self.assertEqual([line.split()[0] for line in listed.splitlines()[1:]], names)

    def test_a_listing_of_strangers(self) -> None:
        """Odd keys and documents of nonsense spoil neither the listing nor the terminal."""
        self.fill_bucket()
        for number, body in enumerate((b"", b"nonsense", b"[]", b"5", b'{"metadata": 5, "status": []}', b"\xff\xfe",
                                       b"[" * 50_000, b'{"metadata": {"name": "\x1b[31m"}}', gzip.compress(b"{}"),
                                       b'{"metadata": {"name": "other"}, "status": {"phase": ["x"]}}')):
            self.store.put(self.namespace, f"backups/odd{number}/velero-backup.json", body)
        for key in ("backups/", "backups/../x/velero-backup.json", "backups/\x1b[2J/velero-backup.json",
                    "backups/a b/velero-backup.json", "backups/&lt;é/velero-backup.json",
                    "backups//velero-backup.json", "backups/loose"):
            self.store.put(self.namespace, key, backup_document("evil"))
        for argv in ((), ("-o", "json")):
            result = run("backup", "get", *self.files(), *argv)
            self.assertIn(b"b1", result.out)
            self.assertIn(b"b2", result.out)
            self.assertNotIn(b"\x1b", result.out)
            self.assertNotRegex(result.err, "Traceback|[\x00-\x09\x0b-\x1f]")

    def test_a_listing_that_goes_wrong(self) -> None:
        """A listing that is no XML, without end, or refused is one sentence."""
        self.fill_bucket()
        for options, code in (({"status": 200, "body": LOGIN_PAGE}, 1), ({"status": 200, "body": b""}, 1),
                              ({"status": 200, "body": b"<ListBucketResult>"}, 1), ({"status": 403, "body": b""}, 5)):
            with self.subTest(**options):
                self.store.unscript()
                self.store.script("GET", "list-type", times=30, **options)
                result = run("backup", "get", *self.files())
                self.assertEqual((result.code, result.out), (code, b""), result.err)
                self.assert_sentence(result)
        self.store.unscript()
        endless = (b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>x"
                   b"</NextContinuationToken></ListBucketResult>")
        self.store.script("GET", "list-type", **forever(status=200, body=endless))
        self.assertEqual(run("backup", "get", *self.files()).code, 1)


class TestDownloadDirectReal(DirectTests, RealWorld, unittest.TestCase):
    """Direct on the real API server and the real S3 server."""


# ------------------------------------------------------------------------------------------------------------
# Downloads, row 7: the library
# ------------------------------------------------------------------------------------------------------------

class TestDownloadLibrary(DownloadWorld, unittest.TestCase):
    """`import velero_requests` does the same without a word."""

    def setUp(self) -> None:
        """Connect."""
        super().setUp()
        self.api = vr.connect(vr.load_cluster(self.kubeconfig))

    def test_threads_do_not_mix_and_do_not_print(self) -> None:
        """Eight streams over one connection object, each cut once; writers stay open, nothing is printed."""
        texts = {f"t{number}": noise(100_000, seed=number).hex().encode() for number in range(8)}
        for name, text in texts.items():
            self.make_backup(name)
            self.store.put(self.namespace, f"backups/{name}/{name}-logs.gz", gzip.compress(text))
            self.store.script("GET", f"/{name}-logs.gz", wire=cut_body(20_000))

        def content(name: str) -> bytes:
            writer = io.BytesIO()
            vr.stream(self.api, self.namespace, "BackupLog", name, writer)
            return writer.getvalue()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), ThreadPoolExecutor(8) as pool:
            got = dict(zip(texts, pool.map(content, texts)))
        self.assertEqual((said.getvalue(), self.names()), ("", []))
        self.assertTrue(got == texts)

    def test_leaving_early_tidies_up(self) -> None:
        """A generator that is closed deletes its request at once, and so does an error of the writer's own."""
        self.contents(8 * MIB)
        self.store.script("GET", wire=paced(100, 0.1))
        chunks = vr.read_artifact(self.api, self.namespace, "BackupContents", "b1")
        self.assertTrue(next(chunks))
        began = time.monotonic()
        chunks.close()
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual((self.names(), len(self.gets())), ([], 1))
        writer = io.BytesIO()
        writer.close()
        with self.assertRaisesRegex(ValueError, "closed file"):
            vr.stream(self.api, self.namespace, "BackupContents", "b1", writer)
        self.assertEqual(self.names(), [])

    def test_no_handler_and_no_signal_is_touched(self) -> None:
        """A stream leaves signal handlers, the logger, warnings and the standard streams as they were."""
        self.put()

        def state() -> Any:
            logger = vr.log
            return (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), logger.handlers[:],
                    logger.level, sys.stdout, sys.stderr, socket.getdefaulttimeout(), os.getcwd())
        before = state()
        vr.stream(self.api, self.namespace, "BackupLog", "b1", io.BytesIO())
        self.assertEqual(state(), before)
        self.addCleanup(signal.signal, signal.SIGTERM, before[1])
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        before = state()
        vr.stream(self.api, self.namespace, "BackupLog", "b1", io.BytesIO())
        self.assertEqual(state(), before)

    def test_it_says_what_it_needs(self) -> None:
        """The functions that a program uses tell units, errors and who closes what."""
        self.assertIn("Raises", vr.Download.save.__doc__)
        for name, words in (("stream", ("stays open",)), ("read_artifact", ("seconds", "Raises", "Close")),
                            ("get_download_url", ("Raises",))):
            for word in words:
                self.assertIn(word, getattr(vr, name).__doc__)

# ------------------------------------------------------------------------------------------------------------
# Downloads from the real S3 server, over a line that breaks
# ------------------------------------------------------------------------------------------------------------

class Line:
    """A line on loopback to a server: each connection may carry so many bytes back, or a text instead."""

    def __init__(self, host: str) -> None:
        """Listen on a free port."""
        self.to = (host.rpartition(":")[0], int(host.rpartition(":")[2]))
        self.plan: List[Any] = []            # for the next connections: bytes to let through, or an answer
        self.broken = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = "http://" + self.host
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                limit = self.plan.pop(0) if self.plan else None
                threading.Thread(target=self._carry, args=(near, limit), daemon=True).start()

    def _carry(self, near: socket.socket, limit: Any) -> None:
        """Carry one connection until its limit."""
        with near, contextlib.suppress(OSError):
            if isinstance(limit, bytes):
                near.recv(65536)
                near.sendall(limit)
                self.broken += 1
                return
            with socket.create_connection(self.to) as far:
                threading.Thread(target=self._forward, args=(near, far), daemon=True).start()
                carried = 0
                while limit is None or carried < limit:
                    piece = far.recv(65536 if limit is None else min(65536, limit - carried))
                    if not piece:
                        return
                    near.sendall(piece)
                    carried += len(piece)
                self.broken += 1
                near.shutdown(socket.SHUT_RDWR)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        """Carry what the client sends."""
        with contextlib.suppress(OSError):
            while True:
                piece = near.recv(65536)
                if not piece:
                    return
                far.sendall(piece)

    def close(self) -> None:
        """Take no more connections."""
        self.listener.close()


def put_members(store: Any, bucket: str, key: str, member: bytes, count: int) -> str:
    """Store equal gzip members one after another without holding them, and return the sha256 of the object."""
    store.create_bucket(bucket)
    url = presigned_url(f"{store.url}/{bucket}/" + uri_encode(key.encode(), b"/"), store.access_key,
                        store.secret_key, store.region, method="PUT")
    digest = hashlib.sha256()
    connection = http.client.HTTPConnection(store.host, timeout=120)
    with contextlib.closing(connection):
        connection.putrequest("PUT", url[len(store.url):])
        connection.putheader("Content-Length", str(count * len(member)))
        connection.endheaders()
        for _ in range(count):
            digest.update(member)
            connection.send(member)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"the store answered {response.status}: {response.read(500)!r}")
    return digest.hexdigest()


def put_in_parts(store: Any, bucket: str, key: str, member: bytes, count: int, in_a_part: int = 5) -> str:
    """Store equal gzip members in parts, and return the sha256 of the object; its ETag is no MD5 then.

    So Velero's AWS plugin stores all that is larger than 5 MiB (manager.NewUploader in its object_store.go).
    """
    store.create_bucket(bucket)
    place = f"{store.url}/{bucket}/" + uri_encode(key.encode(), b"/")
    connection = http.client.HTTPConnection(store.host, timeout=120)

    def exchange(method: str, query: str, body: bytes = b"") -> Tuple[http.client.HTTPMessage, str]:
        url = presigned_url(place, store.access_key, store.secret_key, store.region, method=method, extra=query)
        connection.request(method, url[len(store.url):], body)
        response = connection.getresponse()
        text = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"the store answered {response.status}: {text[:500]}")
        return response.headers, text
    with contextlib.closing(connection):
        upload = exchange("POST", "uploads=")[1].partition("<UploadId>")[2].partition("</UploadId>")[0]
        digest, parts = hashlib.sha256(), ""
        for number, at in enumerate(range(0, count, in_a_part), 1):
            part = member * min(in_a_part, count - at)
            digest.update(part)
            etag = exchange("PUT", f"partNumber={number}&uploadId={upload}", part)[0]["ETag"]
            parts += f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
        exchange("POST", f"uploadId={upload}", f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode())
    return digest.hexdigest()


class TestDownloadReal(Sentences, RealWorld, unittest.TestCase):
    """The engine against the real S3 server; VELERO_BIG_DOWNLOAD says how many MiB break off ten times (CI: 2048)."""

    def test_a_line_that_breaks_ten_times(self) -> None:
        """Ten random disconnections and a URL that expires on the way: the sha256 is right."""
        self.make_target()
        count = int(os.environ.get("VELERO_BIG_DOWNLOAD", "48"))
        line = Line(self.store.host)
        self.addCleanup(line.close)
        self.make_location("line", {"s3Url": line.url})
        self.make_backup("b9", "line")
        expected = put_members(self.store, self.namespace, "backups/b9/b9.tar.gz", gzip.compress(noise(MIB), 1), count)
        chance = random.Random(13)
        spent = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(SPENT_URL) + SPENT_URL
        line.plan = [chance.randrange(1, count * MIB // 12) for _ in range(10)]
        line.plan.insert(5, spent)
        self.serve()
        program = self.program("download", "b9", "-o", self.path)
        result = program.end(seconds=60 + count)
        self.assertEqual((result.code, line.broken, line.plan), (0, 11, []), result.err)
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            for piece in iter(lambda: file.read(MIB), b""):
                digest.update(piece)
        self.assertEqual(digest.hexdigest(), expected)
        self.assertEqual((self.left(), self.names()), ({"x"}, []))

    def test_what_velero_stores_in_parts(self) -> None:
        """The ETag of an object that was uploaded in parts is no MD5, and is not taken for one."""
        self.make_target()
        self.serve()
        expected = put_in_parts(self.store, self.namespace, KEYS["BackupContents"], gzip.compress(noise(MIB), 1), 11)
        result = self.cli("download", "b1", "-o", self.path)
        self.assertEqual((result.code, self.left()), (0, {"x"}), result.err)
        self.assertEqual(hashlib.sha256(read_bytes(self.path)).hexdigest(), expected)

    def test_after_a_kill(self) -> None:
        """A partial file from the real server is continued, and given up when the object has changed."""
        self.make_target()
        line = Line(self.store.host)
        self.addCleanup(line.close)
        self.make_location("line", {"s3Url": line.url})
        self.make_backup("b9", "line")
        self.serve()
        for changes in (False, True):
            with self.subTest(changes=changes):
                self.clear()
                stored = archive(3 * MIB)
                self.store.put(self.namespace, "backups/b9/b9.tar.gz", stored)
                line.plan = [2 * MIB] + [0] * 100
                program = self.program("download", "b9", "-o", self.path)
                wait_until(lambda: size_of(part_of(self.path)) >= MIB, 15, "the partial file")
                program.kill()
                line.plan = []
                if changes:
                    stored = archive(3 * MIB, seed=41)
                    self.store.put(self.namespace, "backups/b9/b9.tar.gz", stored)
                result = self.cli("download", "b9", "-o", self.path)
                self.assert_right(result, stored)
                self.assertEqual("changed" in result.err, changes)


# ------------------------------------------------------------------------------------------------------------
# Layouts: what get and describe print, from documents alone
# ------------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)
GONE = velero_requests.StoreError("nothing there", status=404, reason="ArtifactNotFound")
NO_VOLUMES = {"BackupVolumeInfos": [], "RestoreVolumeInfo": []}


def in_utc(instant_: datetime) -> datetime:
    """Show a time as it is."""
    return instant_.astimezone(timezone.utc)


def document(kind: str, name: str = "one", **parts: Any) -> Dict[str, Any]:
    """A small object; `labels` and other metadata, spec and status are given."""
    return {"kind": kind, "metadata": {"name": name, "namespace": "velero", **parts.get("metadata", {})},
            "spec": parts.get("spec", {}), "status": parts.get("status", {})}


def described(subject: Any, artifacts: Any = NO_VOLUMES, related: Any = (), resource: Any = None, **more: Any) -> Any:
    """What describe shows of a backup or, by its kind, a restore; lists that it needs are empty unless given."""
    lists = dict.fromkeys((vr.DELETE_REQUESTS, vr.POD_VOLUME_BACKUPS, vr.POD_VOLUME_RESTORES), ())
    resource = resource or (vr.RESTORES if subject["kind"] == "Restore" else vr.BACKUPS)
    return vr.Description(resource, subject, {**lists, **dict(related)}, artifacts, localize=in_utc, **more)


class TestColumns(unittest.TestCase):
    """`aligned`, by the rules of text/tabwriter, and `table`, by those of kubectl."""

    def test_aligned(self) -> None:
        """Here ~ stands for a tab."""
        for lines, expected in (
                ("a:~1\nlonger:~2", "a:       1\nlonger:  2"),            # as wide as the longest cell, and two blanks
                ("a:~1\n\nlonger:~2\nplain\nb:~3", "a:  1\n\nlonger:  2\nplain\nb:  3"),  # what ends a block
                ("~x\n~~y", "  x\n    y"),                                # an empty cell is as wide as the padding
                ("a~a very long end\nb~c~d", "a  a very long end\nb  c  d"),  # what follows the last tab is no cell
                ("~aaaa:~1\n~b\n~c:~2", "  aaaa:  1\n  b\n  c:  2"),      # inner blocks end where outer ones go on
                ("日本:~1\né:~2", "日本:  1\né:   2")):                     # counted are characters
            self.assertEqual(vr.aligned(lines.replace("~", "\t").split("\n")), expected + "\n")
        self.assertEqual(vr.aligned([]), "")

    def test_no_cell_makes_a_bomb(self) -> None:
        """A stranger's cell widens the others to 300 characters at most."""
        rows = [("a", "b")] * 1000 + [("x" * 100_000, "b")]
        for text in (vr.table(rows), vr.aligned(map("\t".join, rows))):
            self.assertLess(len(text), 500_000)
        self.assertEqual(vr.aligned(["x" * 299 + "\ty", "a\tb"]), "x" * 299 + "  y\n" + "a".ljust(301) + "b\n")


class TestWords(unittest.TestCase):
    """Durations, times, ages, selectors and labels as Go writes them."""

    def test_words(self) -> None:
        """Times: the user's zone unless that leaves the calendar; Go's zero time is none; selectors are sorted."""
        east, newfoundland = timezone(timedelta(hours=14)), timezone(timedelta(hours=-3, minutes=-30), "NST")
        some = [{"key": "z", "operator": "Exists"}, {"key": "a", "operator": "DoesNotExist"},
                {"key": "m", "operator": "In", "values": ["2", "1"]}]

        def selector(*expressions: Any, **labels: str) -> str:
            return vr.label_selector(vr.Fields({"matchLabels": labels, "matchExpressions": list(expressions)}))

        def shown(text: str, zone: Any = timezone.utc) -> str:
            return vr.go_time(text, lambda moment: moment.astimezone(zone), "-")

        for found, expected in (
                *((vr.duration(text), text_) for text, text_ in (
                    ("720h", "720h0m0s"), ("", "0s"), ("0", "0s"), ("90s", "1m30s"), ("1h1s", "1h0m1s"),
                    ("-7ns", "-7ns"), ("1500us", "1.5ms"), ("1.000000001s", "1.000000001s"),
                    ("soon", "<invalid duration 'soon'>"))),
                *((vr.age(seconds), text_) for seconds, text_ in (
                    (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (86399, "23h"), (86400, "1d"),
                    (364.9 * 86400, "364d"), (730 * 86400, "2y"), (1e12, "292y"))),
                (shown(""), "-"), (shown("0001-01-01T00:00:00Z"), "-"),
                (shown("2026-05-01T14:00:00.25+02:00"), "2026-05-01 12:00:00.25 +0000 UTC"),
                (shown("0999-12-31T23:59:59Z"), "0999-12-31 23:59:59 +0000 UTC"),
                (shown("9999-12-31T23:59:59Z", east), "9999-12-31 23:59:59 +0000 UTC"),
                (shown("2026-03-01T02:00:00Z", newfoundland), "2026-02-28 22:30:00 -0330 NST"),
                (shown("2026-13-01T00:00:00Z"), "<invalid time '2026-13-01T00:00:00Z'>"),
                (vr.label_selector(vr.Fields(None)), "<none>"), (selector(), "<none>"),
                (selector(b="2", a="1"), "a=1,b=2"),
                (selector(*some, n="3"), "!a,m in (1,2),n=3,z"),
                (selector({"key": "k", "operator": "Near"}), "<error>"),
                (selector({"key": "{}", "operator": "NotIn", "values": ["v"]}), "{} notin (v)"),
                (vr.label_value("n" * 63), "n" * 63), (len(vr.label_value("\ud800" * 64)), 63),
                (vr.label_value("n" * 64), "n" * 57 + hashlib.sha256(b"n" * 64).hexdigest()[:6])):
            self.assertEqual(found, expected)

    def test_nothing_of_unicode_drives_a_terminal(self) -> None:
        """Controls, formats such as bidi marks and tags, halves, separators: all are blanks but two joiners."""
        self.assertEqual(vr.printable("a\x1b[31m\tb\u202ec\ud800日本\u200d語"), "a [31m b c 日本\u200d語")
        for code in range(sys.maxunicode + 1):
            if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
                expected = chr(code) if chr(code) in "\u200c\u200d" else " "
                self.assertEqual(vr.printable(f"a{chr(code)}b"), f"a{expected}b", hex(code))
                self.assertEqual(vr.one_line(f"a{chr(code)}b"), "a b", hex(code))


class TestFields(unittest.TestCase):
    """Go's decoding, without its failures."""

    DOCUMENT = {"spec": {"ttl": [], "names": ["a", 7], "hook": {}, "on": True, "off": False}, "count": True,
                "numbers": [2 ** 63, 2 ** 63 - 1, 1.5], "map": {"x": 1, "y": "z"}, "text": "t", "rows": [{"a": "b"}, 1]}

    def test_values(self) -> None:
        """What is absent or wrong has Go's zero value; wrong is told by its place."""
        for path, kind, expected, wrong in (
                ("text", str, "t", ()), ("none", str, "", ()), ("none", int, 0, ()), ("none", bool, None, ()),
                ("none.x", [str], [], ()), ("none", {str: str}, {}, ()), ("spec.on", bool, True, ()),
                ("spec.ttl", str, "", ("spec.ttl must be a string",)),
                ("spec.names", [str], ["a", ""], ("spec.names[1] must be a string",)),
                ("count", int, 0, ("count must be a whole number",)),
                ("text", bool, None, ("text must be true or false",)),
                ("text.x.y", str, "", ("text must be a mapping",)), ("text", [str], [], ("text must be a list",)),
                ("numbers", [int], [0, 2 ** 63 - 1, 0],
                 ("numbers[0] must be a whole number", "numbers[2] must be a whole number")),
                ("map", {str: str}, {"x": "", "y": "z"}, ("map.x must be a string",))):
            with self.subTest(path=path, kind=kind):
                found = {}
                fields = vr.Fields(self.DOCUMENT, "", found)
                self.assertEqual((fields(path, kind), fields(path, kind), tuple(found)), (expected, expected, wrong))
                if wrong:
                    said = "^this is not what Velero writes: Kind." + re.escape(wrong[0])
                    with self.assertRaisesRegex(vr.StoreError, said):
                        vr.Fields(self.DOCUMENT, "Kind")(path, kind)

    def test_parts_and_rows(self) -> None:
        """Their fields are told by their whole place."""
        wrong: Dict[str, None] = {}
        fields = vr.Fields(self.DOCUMENT, "Backup one", wrong)
        self.assertEqual([fields.part(path)("ttl") for path in ("spec.hook", "spec", "no.no")], [""] * 3)
        self.assertEqual([row("a") for row in fields.rows("rows")], ["b", ""])
        fields.rows("rows")[0]("a", int)
        vr.Fields([1], "", wrong)("a")
        vr.Fields([{"a": 1}], "", wrong).rows()[0]("a")
        vr.Fields({"text": 5}, "", wrong).part("text")("a")
        self.assertEqual(list(wrong), [f"{place} must be {kind}" for place, kind in (
            ("Backup one.spec.ttl", "a string"), ("Backup one.rows[1]", "a mapping"),
            ("Backup one.rows[0].a", "a whole number"), ("the document", "a mapping"), ("[0].a", "a string"),
            ("text", "a mapping"))])


class TestTables(unittest.TestCase):
    """`backup get`, `restore get`."""

    @staticmethod
    def table(resource: Any, documents: Any, **options: Any) -> List[str]:
        """The lines, at noon."""
        return vr.resource_table(resource, documents, NOON, localize=in_utc, **options).splitlines()

    def test_layout(self) -> None:
        """Backups are in velero's order, restores in that of the API; a deletion is seen in the status."""
        deleted = {"deletionTimestamp": "2026-05-01T12:00:00Z"}
        backups = [document("Backup", spec={"storageLocation": "default", "labelSelector": {"matchLabels": {"a": "b"}}},
                            status={"phase": "Queued", "queuePosition": 3, "errors": 1, "warnings": 2,
                                    "startTimestamp": "2026-05-01T11:00:00Z", "expiration": "2026-05-04T13:00:00Z"}),
                   document("Backup", "a", metadata=deleted, status={"expiration": "2026-05-01T11:00:00Z"})]
        restores = [document("Restore", "z", spec={"backupName": "b"}, metadata=deleted),
                    document("Restore", "a", status={"phase": "Failed", "errors": 4, "warnings": 5})]
        for resource, documents, expected in (
                (vr.BACKUPS, backups, (
                    "NAME   STATUS     ERRORS   WARNINGS   CREATED                         EXPIRES   STORAGE LOCATION"
                    "   QUEUE POSITION   SELECTOR\n"
                    "a      Deleting   0        0          <nil>                           1h ago                    "
                    "                    <none>\n"
                    "one    Queued     1        2          2026-05-01 11:00:00 +0000 UTC   3d        default         "
                    "   3                a=b")),
                (vr.RESTORES, restores, """\
NAME   BACKUP   STATUS           STARTED   COMPLETED   ERRORS   WARNINGS   CREATED   SELECTOR
z      b        New (Deleting)   <nil>     <nil>       0        0          <nil>     <none>
a               Failed           <nil>     <nil>       4        5          <nil>     <none>"""),
                (vr.BACKUPS, [], "")):
            self.assertEqual(self.table(resource, documents), expected.splitlines())

    def test_the_newest_of_a_schedule_comes_first(self) -> None:
        """Names without a time stay in alphabetical order."""
        expected = ["a-20260101000000", "b", "nightly-2026", "nightly-20260103000000", "nightly-20260102000000",
                    "nightly-b", "x20260102000000", "x20260103000000"]
        self.assertEqual(sorted(sorted(expected), key=vr.backup_sort_key), expected)

    def test_expiry(self) -> None:
        """From the expiration, else from age and time to live."""
        created, late = {"creationTimestamp": "2026-05-01T10:00:00Z"}, {"creationTimestamp": "9999-01-01T00:00:00Z"}
        for parts, expected in (
                ({}, "n/a"), ({"status": {"expiration": "2026-05-01T12:00:00Z"}}, "0s"),
                ({"spec": {"ttl": "1h30m"}, "metadata": created}, "30m"),
                ({"spec": {"ttl": "3h"}, "metadata": created}, "1h"), ({"metadata": created}, "n/a"),
                ({"spec": {"ttl": "soon"}, "metadata": created}, "n/a"),
                ({"spec": {"ttl": "2500000h"}, "metadata": late}, "n/a"),
                ({"status": {"expiration": "0001-01-01T00:00:00Z"}, "spec": {"ttl": "3h"}, "metadata": created}, "1h"),
                ({"status": {"expiration": "9999-12-31T23:59:59Z"}, "metadata": created}, "292y")):
            self.assertEqual(self.table(vr.BACKUPS, [document("Backup", **parts)])[1].split()[5], expected, parts)

    def test_labels(self) -> None:
        """As columns, and all in the last column."""
        labels = {"x.io/team": "red", "env": ""}
        backups = [document("Backup", "a", metadata={"labels": labels}), document("Backup", "b")]
        lines = self.table(vr.BACKUPS, backups, label_columns=["x.io/team", "none"], show_labels=True)
        self.assertEqual([line[lines[0].index("SELECTOR"):] for line in lines], [
            "SELECTOR   TEAM   NONE   LABELS", "<none>     red           env=,x.io/team=red",
            "<none>                   <none>"])

    def test_any_object_has_a_row(self) -> None:
        """What cannot be read is left empty."""
        strange = [{}, {"spec": None, "status": []},
                   {"metadata": {"name": 7, "labels": ["x"]}, "status": {"errors": "x"}},
                   document("Backup", "n\n\x1b[2J", status={"phase": "Done\tnow"})]
        for resource in (vr.BACKUPS, vr.RESTORES):
            lines = self.table(resource, strange, show_labels=True)
            self.assertEqual((len(lines), "\x1b" in "".join(lines)), (5, False))

    def test_ten_thousand_backups_take_less_than_a_second(self) -> None:
        """Of the processor's time."""
        backups = [document("Backup", f"b-{number:014d}", metadata={"labels": {"a": "b"}},
                            status={"phase": "Completed", "startTimestamp": "2026-05-01T11:00:00Z",
                                    "expiration": "2026-05-04T13:00:00Z"}) for number in range(10_000)]
        start = time.process_time()
        self.assertEqual(len(self.table(vr.BACKUPS, backups, show_labels=True)), 10_001)
        self.assertLess(time.process_time() - start, 1.0)


class TestEncodings(unittest.TestCase):
    """-o json|yaml, `version`, `plugin get`."""

    DOCUMENT = {
        "status": {"errors": 1, "empty": {}, "none": [], "null": None, "yes": True, "float": 1.5},
        "list": [{"a": [[1, "x"], []], "b": "two\nlines"}, "word"], "é": "日本 ✓", "": "", "n": "n"}

    def test_json(self) -> None:
        """An indent of two, in the order of the document; what cannot be shown is escaped."""
        for document, expected in (
                ({"b": [1], "a": "ü<&>"}, '{\n  "b": [\n    1\n  ],\n  "a": "ü<&>"\n}\n'),
                ("\x1b\x7f\x9b\u2028\u202e\u2066\ud800\ufeff",
                 r'"\u001b\u007f\u009b\u2028\u202e\u2066\ud800\ufeff"' + "\n")):
            self.assertEqual(vr.json_text(document), expected)
            self.assertEqual(json.loads(expected), document)

    def test_yaml(self) -> None:
        """Block style, without anchors, read back as what it was."""
        shared = {"a": ["x"]}
        self.assertEqual(vr.yaml_text({"b": [shared, [shared]], "c": shared, "d": []}),
                         "b:\n- a:\n  - x\n- - a:\n    - x\nc:\n  a:\n  - x\nd: []\n")
        for documents in ([self.DOCUMENT, [], "x"], *map(vr.crd_manifests, (True, False))):
            self.assertEqual(list(yaml.safe_load_all(vr.yaml_text(*documents))), documents)

    def test_strings_stay_strings(self) -> None:
        """Quoted is what Go or YAML 1.1 takes for something else, and what would be read differently."""
        words = ("y Y n No on OFF true False null ~ 12 1e3 0o14 0x1f 1_000 12:30:45 .5 .inf .nan - -1 +1 = << * & ! | "
                 "> % @ ` 2026-05-01 2026-05-01T12:00:00Z 1.1.0 a: #a 'a' \" é [a] {a} --- ... "
                 "a\x85b a\u202eb").split(" ")
        for text in (*words, "", " a", "a ", "a  b", "a: b", "a #b", "a\nb", "a\tb", "? a", "- a"):
            line = vr.yaml_text({text: text})
            self.assertEqual(line, f"{vr.json_text(text)[:-1]}: {vr.json_text(text)}")
            self.assertEqual(yaml.safe_load(line), {text: text})
        for text in ("name", "a b", "velero.io/v1", "a:b", "k=v,l=w", "yes-no", "nightly-20260101", "Not", "/a_b@c+d"):
            self.assertEqual(vr.yaml_text({text: text}), f"{text}: {text}\n")
            self.assertEqual(yaml.safe_load(f"{text}: {text}"), {text: text})

    def test_version(self) -> None:
        """Without a server's version only the own one is there; a hostile one cannot add lines."""
        own = f"v{vr.__version__}"
        for version, server, in_json in (
                (None, "", {}), ("v1", "Server:\n\tVersion: v1\n", {"server": {"version": "v1"}}),
                ("v1\n\x1b[2J", "Server:\n\tVersion: v1 [2J\n", {"server": {"version": "v1\n\x1b[2J"}})):
            self.assertEqual(vr.version_text(version), f"Client:\n\tVersion: {own}\n\tGit commit: -\n{server}")
            self.assertEqual(vr.version_document(version), {"client": {"version": own}, **in_json})

    def test_plugins(self) -> None:
        """Columns are at least 6 wide and 3 apart, the last one is not padded; a name cannot add lines or colors."""
        for plugins, expected in (
                ([], ""), ([("K", "a")], "NAME   KIND\na      K\n"),
                ([("Object\nStore", "velero.io/\x1b[31maws"), ("", "b")],
                 "NAME                 KIND\nvelero.io/ [31maws   Object Store\nb                    \n")):
            self.assertEqual(vr.plugin_table(plugins), expected)


class TestNeeds(unittest.TestCase):
    """What describe fetches."""

    def test_artifacts_and_lists(self) -> None:
        """Only what a screen shows; older artifacts where the counts say that there should be some."""
        busy = {"errors": 1, "backupItemOperationsAttempted": 2, "restoreItemOperationsAttempted": 2}
        for resource, status, options, expected in (
                (vr.BACKUPS, {}, {"details": False}, "BackupVolumeInfos"),
                (vr.BACKUPS, busy, {"details": False}, "BackupResults BackupVolumeInfos"),
                (vr.BACKUPS, busy, {"details": True},
                 "BackupResults BackupItemOperations BackupResourceList BackupVolumeInfos"),
                (vr.BACKUPS, busy, {"details": True, "structured": True},
                 "BackupResults BackupResourceList BackupVolumeInfos"),
                (vr.RESTORES, busy, {"details": True, "structured": True},
                 "RestoreResults RestoreItemOperations RestoreResourceList RestoreVolumeInfo")):
            subject = document(resource.kind, status=status)
            self.assertEqual(vr.artifacts_of(resource, subject, **options), expected.split())
        status = {"volumeSnapshotsAttempted": 1, "csiVolumeSnapshotsAttempted": 1}
        self.assertEqual((vr.legacy_artifacts_of(document("Backup", status=status)), vr.legacy_artifacts_of({})), ([
            "BackupVolumeSnapshots", "CSIBackupVolumeSnapshots", "CSIBackupVolumeSnapshotContents"], []))
        self.assertEqual(vr.related_of(vr.BACKUPS, document("Backup", metadata={"uid": "u"})), [
            (vr.DELETE_REQUESTS, "velero.io/backup-name=one,velero.io/backup-uid=u"),
            (vr.POD_VOLUME_BACKUPS, "velero.io/backup-name=one")])
        self.assertEqual(vr.related_of(vr.RESTORES, document("Restore")),
                         [(vr.POD_VOLUME_RESTORES, "velero.io/restore-name=one")])


class TestScreens(unittest.TestCase):
    """`backup describe`, `restore describe`, where the golden cases have nothing to say or we differ from velero."""

    def check(self, screen: Any, *texts: str, troubles: Any = (), **places: Any) -> None:
        """A screen has these texts, in its JSON these values by their places with __ for /, and these troubles."""
        for text in texts:
            self.assertIn(text, screen.text)
        for place, value in places.items():
            found = screen.json
            for step in place.split("__"):
                found = found[step]
            self.assertEqual(found, value, place)
        self.assertEqual(screen.troubles, list(troubles))

    def test_nothing_given(self) -> None:
        """Without spec and status, or with empty ones, each section says so."""
        for kind in ("Backup", "Restore"):
            bare = {"kind": kind, "metadata": {"name": "one", "namespace": "velero"}}
            self.assertEqual(described(bare).text, described(document(kind)).text)
        self.check(described(bare), "Name:         one\nNamespace:    velero\nLabels:       <none>\n"
                   "Annotations:  <none>\n\nPhase:  New\n",
                   "\n\nCSI Snapshot Restores: <none included>\n\nExisting Resource Policy:   <none>\n")

    def test_colors(self) -> None:
        """They do not reach the note behind a phase."""
        for kind, phase, expected in (
                ("Backup", "Failed", "\x1b[31mFailed\x1b[0m (run `velero backup logs one` for more information)"),
                ("Restore", "PartiallyFailed",
                 "\x1b[31mPartiallyFailed\x1b[0m (run 'velero restore logs one' for more information)"),
                ("Restore", "Completed", "\x1b[32mCompleted\x1b[0m"), ("Backup", "InProgress", "InProgress")):
            subject = document(kind, status={"phase": phase, "validationErrors": ["v"]})
            self.check(described(subject, colorized=True), f"\nPhase:  {expected}\n",
                       "Name:         \x1b[1mone\x1b[22m\n", "\nValidation errors:  \x1b[31mv\x1b[0m\n")

    def test_line_breaks_stay_in_their_column(self) -> None:
        """One at the end is dropped."""
        subject = document("Backup", metadata={"annotations": {"a": "1\n2\n", "b": "3"}}, status={"warnings": 1})
        results = {"warnings": {"velero": ["one\ntwo", "three"]}}
        deletion = {"status": {"phase": "Processed", "errors": ["x\ny", "z"]}}
        self.check(described(subject, {**NO_VOLUMES, "BackupResults": results}, {vr.DELETE_REQUESTS: [deletion]}),
                   "Annotations:  a=1\n              2\n              b=3\n\nPhase",
                   "\n  Velero:   one\n            two\n            three\n  Cluster:    <none>\n"
                   "  Namespaces: <none>\n",
                   "\n\nDeletion Attempts (1 failed):\n  <n/a>: Processed\n  Errors:\n    x\n    y\n    z\n")

    def test_every_phase_of_a_pod_volume_is_counted(self) -> None:
        """Those that velero does not know come last, in the JSON too."""
        volumes = [{"spec": {"pod": {"namespace": "n", "name": "p"}, "volume": "v", "uploaderType": "kopia"},
                    "status": {"phase": phase}} for phase in ("Strange", "Canceling", "", "Prepared")]
        expected = {"Canceling": 1, "Prepared": 1, "New": 1, "Strange": 1}
        screen = described(document("Restore"), related={vr.POD_VOLUME_RESTORES: volumes})
        self.check(screen, "\n\nkopia Restores (specify --details for more information):\n" + "".join(
            f"  {name + ':':<12}1\n" for name in expected))
        self.check(screen, status__podVolumeRestores__podVolumeRestoresDetails=expected)

    def test_sizes_of_pod_volumes(self) -> None:
        """What is known of each, by its phase."""
        for phase, done, total, increment, expected in (
                ("Completed", 0, 0, 0, "v"), ("Completed", 0, 1, 0, "v (size: 1)"),
                ("InProgress", 1, 3, 0, "v (33.33%)"),
                ("Completed", 0, 2, 1, "v (size: 2, incremental size: 1)"), ("InProgress", 0, 0, 0, "v"),
                ("InProgress", 0, 1, 1, "v (0.00%)"), ("Failed", 1, 3, 1, "v")):
            volume = {"spec": {"pod": {"namespace": "n", "name": "p"}, "volume": "v"}, "status": {
                "phase": phase, "progress": {"totalBytes": total, "bytesDone": done}, "incrementalBytes": increment}}
            artifacts = {**NO_VOLUMES, "BackupResourceList": {}}
            screen = described(document("Backup"), artifacts, {vr.POD_VOLUME_BACKUPS: [volume]}, details=True)
            self.assertTrue(screen.text.endswith(f"\n      n/p: {expected}\n"), screen.text[-60:])

    def test_operations(self) -> None:
        """With what is known of each; those of a backup are not in velero's JSON, so nobody fetches them for it."""
        operation = {
            "spec": {"restoreItemAction": "x/y", "operationID": "7", "resourceIdentifier": {
                "Group": "apps", "Resource": "deployments", "Namespace": "n", "Name": "d"},
                "postOperationItems": [{"Resource": "pods", "Namespace": "n", "Name": "p"}] * 2},
            "status": {"phase": "Failed", "error": "no", "nTotal": 4, "operationUnits": "Bytes",
                       "created": "2026-05-01T12:00:00Z"}}
        subject = document("Restore", status={"restoreItemOperationsAttempted": 1, "restoreItemOperationsFailed": 1})
        artifacts = {**NO_VOLUMES, "RestoreItemOperations": [operation, {"status": {"nCompleted": 1}}],
                     "RestoreResourceList": {}}
        counts = {"attempted": 1, "completed": 0, "failed": 1}
        self.check(described(subject, artifacts, details=True), """\

Restore Item Operations:
  Operation for deployments.apps n/d:
    Restore Item Action Plugin:  x/y
    Operation ID:                7
    Items to Update:
                      pods n/p
                      pods n/p
    Phase:            Failed
    Operation Error:  no
    Progress:         0 of 4 complete (Bytes)
    Created:          2026-05-01 12:00:00 +0000 UTC
  Operation for  /:
    Operation ID: \x20
    Phase:        \x20
    Progress:      1 of 0 complete ()
""", status__restoreItemOperations={**counts, "operations": [
            {"resource": "deployments.apps n/d", "plugin": "x/y", "operationID": "7", "phase": "Failed",
             "error": "no", "progress": "0 of 4 complete (Bytes)", "created": "2026-05-01 12:00:00 +0000 UTC"},
            {"resource": " /", "operationID": "", "phase": "", "progress": "1 of 0 complete ()"}]})
        self.check(described(subject, artifacts), status__restoreItemOperations=counts)
        text = "<error getting operation info: file not found>"
        self.check(described(subject, {**artifacts, "RestoreItemOperations": GONE}, details=True),
                   f"\nRestore Item Operations:  {text}\n", status__restoreItemOperations__error=text, troubles=[GONE])
        screen = described(document("Backup", status={"backupItemOperationsAttempted": 1}),
                           {**NO_VOLUMES, "BackupResourceList": {}}, details=True)
        self.assertEqual((screen.troubles, "operations" in json.dumps(screen.json).lower()), ([], False))

    def test_volumes_of_older_servers(self) -> None:
        """From three older artifacts; a claim that is not found is said to be so, and so is a missing artifact."""
        subject = document("Backup", status={"volumeSnapshotsAttempted": 1, "csiVolumeSnapshotsAttempted": 1})
        artifacts = {
            "BackupVolumeInfos": GONE,
            "BackupVolumeSnapshots": [{"spec": {"PersistentVolumeName": "pv-1", "volumeIOPS": 5}},
                                      {"spec": {"persistentVolumeName": "pv-2"}}],
            "CSIBackupVolumeSnapshots": [{"metadata": {"namespace": "n"}, "spec": {"source": {
                "persistentVolumeClaimName": "c"}}, "status": {"boundVolumeSnapshotContentName": "content"}},
                {"metadata": {"namespace": "n"}, "status": {"boundVolumeSnapshotContentName": "other"}}],
            "CSIBackupVolumeSnapshotContents": [{"metadata": {"name": "content"}}, {"metadata": {"name": "other"}}],
            "BackupResourceList": {}}
        volumes = described(subject, artifacts, details=True).json["status"]["backupVolumes"]
        self.assertEqual([(name, row["IOPS"]) for name, row in volumes["nativeSnapshots"].items()],
                         [("pv-1", "5"), ("pv-2", "")])
        self.assertEqual(
            [(name, row["snapshot"]["snapshotContentName"]) for name, row in volumes["csiSnapshots"].items()],
            [("n/c", "content"), ("/<PVC name not found>", "other")])
        for kind, title, word, key in (
                ("BackupVolumeSnapshots", "Velero-Native Snapshots", "native", "errorConcludeNativeSnapshot"),
                ("CSIBackupVolumeSnapshots", "CSI Snapshots", "CSI", "errorConcludeCSISnapshot"),
                ("CSIBackupVolumeSnapshotContents", "CSI Snapshots", "CSI", "errorConcludeCSISnapshot")):
            text = f"<error concluding {word} snapshot info: file not found>"
            self.check(described(subject, {**artifacts, kind: GONE}), f"\n  {title}: {text}\n\n", troubles=[GONE],
                       **{f"status__backupVolumes__{key}": text})
        self.check(described(document("Backup"), {"BackupVolumeInfos": GONE}),
                   "\n  Velero-Native Snapshots: <none included>\n\n"
                   "  CSI Snapshots: <none included or not detectable>\n")

    def test_volumes_of_which_nothing_is_known(self) -> None:
        """Each row stands there, empty; of the sizes of moved data both or none are in the JSON."""
        ids = {"snapshotContentName": "", "storageSnapshotID": "", "csiDriver": ""}
        size, moving = {"snapshotSize(bytes)": 0, "result": ""}, {"operationID": "", "uploaderType": ""}
        moved_backup = {**moving, "dataMover": "velero", "result": ""}
        for kind, moved, known, expected in (
                ("Backup", False, {}, {"snapshot": {"operationID": "", **ids, **size}}),
                ("Backup", True, {}, {"snapshot": {**ids, **size}, "dataMovement": moved_backup}),
                ("Backup", True, {"size": 1}, {"snapshot": {**ids, **size}, "dataMovement": {
                    **moved_backup, "size": 1, "incrementalSize": 0}}),
                ("Backup", True, {"incrementalSize": 1}, {"snapshot": {**ids, **size}, "dataMovement": {
                    **moved_backup, "size": 0, "incrementalSize": 1}}),
                ("Restore", False, {}, {"snapshot": ids}),
                ("Restore", True, {}, {"dataMovement": {**moving, "dataMover": ""}})):
            infos = [{"backupMethod": "CSISnapshot", "restoreMethod": "CSISnapshot", "pvcNamespace": "n",
                      "pvcName": "c", "preserveLocalSnapshot": True, "snapshotDataMoved": moved,
                      "snapshotDataMovementInfo": known}]
            artifacts = {"BackupVolumeInfos": infos, "RestoreVolumeInfo": infos, f"{kind}ResourceList": {}}
            screen = described(document(kind), artifacts, details=True)
            self.assertEqual("Operation ID" in screen.text, moved)  # that of a snapshot only where there is one
            self.assertEqual("Incremental data Size (bytes): 1" in screen.text, "incrementalSize" in known)
            place = "csiSnapshotRestores" if kind == "Restore" else "backupVolumes__csiSnapshots"
            self.check(screen, **{f"status__{place}": {"n/c": expected}})

    def test_a_missing_bucket_or_owner_is_no_missing_artifact(self) -> None:
        """So that a restore whose backup is gone does not look like one of an older server."""
        for error in (vr.NotFound("no backup", reason="BackupNotFound"),
                      vr.StoreError("no bucket", status=404, reason="BucketNotFound")):
            self.check(described(document("Restore"), {"RestoreVolumeInfo": error}), troubles=[error], *[
                f"\n\nCSI Snapshot Restores: <error getting restore volume info: {error}>\n"])
        unknown = vr.NotFound("the cluster does not know the kind", reason="UnknownKind")
        self.assertEqual(*(described(document("Restore"), {"RestoreVolumeInfo": error}).text
                           for error in (unknown, GONE)))

    def test_hooks_of_one_name(self) -> None:
        """The later one is the one in the JSON."""
        hook = {"name": "h", "pre": [{"exec": {"command": ["ls", "-l"], "timeout": "30s"}}], "post": [{}]}
        first = {"name": "h", "pre": [{"exec": {}}] * 2}
        screen = described(document("Backup", spec={"hooks": {"resources": [first, hook]}}))
        self.check(screen, "\n      Pre Exec Hook:\n        Container:  \n        Command:    ls -l\n"
                   "        On Error:   \n        Timeout:    30s\n")
        found = screen.json["spec"]["hooks"]["resources"]["h"]
        self.assertEqual((found["preExecHook"], found["postExecHook"]), ([
            {"container": "", "command": "ls -l", "onError:": "", "timeout": "30s"}], []))

    def test_json_of_a_restore(self) -> None:
        """velero has none: ours has the shape of a backup's."""
        deleted = {"deletionTimestamp": "2026-05-01T12:00:00Z", "labels": {"a": "b"}}
        subject = document("Restore", metadata=deleted, spec={
            "backupName": "b", "namespaceMapping": {"x": "y"}, "resourceModifier": {"kind": "configmap", "name": "m"},
            "uploaderConfig": {"parallelFilesDownload": 2, "writeSparseFiles": True}, "includedNamespaces": ["n"],
            "orLabelSelectors": [{"matchLabels": {"c": "d"}}, {"matchLabels": {"e": "f"}}], "restorePVs": False,
            "existingResourcePolicy": "update", "includeClusterResources": True, "preserveNodePorts": True,
            "itemOperationTimeout": "4h"}, status={
                "phase": "InProgress", "progress": {"totalItems": 5, "itemsRestored": 1}, "errors": 1,
                "startTimestamp": "2026-05-01T11:00:00Z", "hookStatus": {"hooksAttempted": 2, "hooksFailed": 1}})
        infos = [{"restoreMethod": "CSISnapshot", "pvcNamespace": "n", "pvcName": "c", "snapshotDataMoved": moved,
                  "csiSnapshotInfo": {"vscName": "v", "snapshotHandle": "h", "driver": "d"},
                  "snapshotDataMovementInfo": {"operationID": "o", "dataMover": "", "uploaderType": "kopia"}}
                 for moved in (True, False)] + [{"restoreMethod": "PodVolumeRestore"}]
        artifacts = {"RestoreVolumeInfo": infos, "RestoreResults": {"errors": {"namespaces": {"n": ["e"]}}},
                     "RestoreResourceList": {"v1/Pod": ["n/p(created)"]}}
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
                "resourceList": {"v1/Pod": ["n/p(created)"]}}})


class TestStrangeDocuments(unittest.TestCase):
    """One section says what is wrong, the others are shown."""

    def test_a_list_that_failed(self) -> None:
        """Is said where it would stand, in text and JSON."""
        refusal = vr.ApiError("not allowed to {list} > it", status=403)
        screen = described(document("Backup"), related={vr.DELETE_REQUESTS: refusal, vr.POD_VOLUME_BACKUPS: refusal})
        volumes, deletions = (f"<error getting {what}: not allowed to {{list}} > it>" for what in (
            "pod volume backups", "deletion attempts"))
        self.assertTrue(screen.text.endswith(f"\n  Pod Volume Backups: {volumes}\n\nDeletion Attempts: {deletions}\n"))
        self.assertEqual((screen.troubles, screen.json["deletionAttempts"]["error"],
                          screen.json["status"]["backupVolumes"]["podVolumeBackups"]), ([refusal], deletions, volumes))
        screen = described(document("Restore"), related={vr.POD_VOLUME_RESTORES: refusal})
        restores = volumes.replace("backups", "restores")
        self.assertIn(f"\n\nPod Volume Restores: {restores}\n\nCSI", screen.text)
        self.assertEqual(screen.json["status"]["podVolumeRestores"], restores)

    def test_artifacts_of_another_shape(self) -> None:
        """Each section tells of its own."""
        artifacts = {"BackupResults": [], "BackupItemOperations": {"a": 1}, "BackupResourceList": {"v1/Pod": "x"},
                     "BackupVolumeInfos": [{"backupMethod": 5}]}
        subject = document("Backup", status={"errors": 1, "backupItemOperationsAttempted": 1})
        screen = described(subject, artifacts, details=True)
        for before, wrong in (
                ("Errors:  <error getting errors", "BackupResults must be a mapping"),
                ("Operations:  <error getting operation info", "BackupItemOperations must be a list"),
                ("List:           <error getting backup resource list", "BackupResourceList.v1/Pod must be a list"),
                ("  Velero-Native Snapshots: <error concluding native snapshot info",
                 "BackupVolumeInfos[0].backupMethod must be a string")):
            self.assertIn(f"{before}: this is not what Velero writes: {wrong}>\n", screen.text)
        self.assertTrue(screen.text.endswith("\n\n  Pod Volume Backups: <none included>\n"))
        self.assertEqual([trouble.exit for trouble in screen.troubles], [1] * 4)
        infos = [{"backupMethod": "NativeSnapshot", "pvName": 5}, {"backupMethod": "CSISnapshot"}]
        self.assertIn("\n  Velero-Native Snapshots: <error concluding native snapshot info: this is not what Velero "
                      "writes: BackupVolumeInfos[0].pvName must be a string>\n\n  CSI Snapshots:\n    /:\n",
                      described(document("Backup"), {"BackupVolumeInfos": infos}).text)

    def test_fields_of_the_wrong_type(self) -> None:
        """Are listed in a section of their own, the first ten of them."""
        for count, last, more in (
                (1, "spec.includedNamespaces[0] must be a string", ""), (11, "and 1 more", " (and 10 more)"),
                (10, "spec.includedNamespaces[9] must be a string", " (and 9 more)")):
            screen = described(document("Backup", spec={"includedNamespaces": [1] * count}))
            told, troubles = screen.json["unreadable"], [str(trouble) for trouble in screen.troubles]
            self.assertEqual((told[-1], len(told), troubles), (
                last, min(count, 11), [f"Backup one: spec.includedNamespaces[0] must be a string{more}"]))
            self.assertIn("\n\nUnreadable:  spec.includedNamespaces[0] must be a string\n", screen.text)
        related = {vr.DELETE_REQUESTS: [{"metadata": {"name": "d"}, "status": {"errors": "x"}}]}
        for kind, wrong in (
                ("Backup", ["spec.includedResources must be a list", "status.phase must be a string",
                            "DeleteBackupRequest d.status.errors must be a list"]),
                ("Restore", ["spec.includedResources must be a list", "status.phase must be a string"])):
            subject = document(kind, spec={"includedResources": "web"}, status={"phase": 1})
            self.assertEqual(sorted(described(subject, related=related).json["unreadable"]), sorted(wrong))

    def test_documents_that_are_none(self) -> None:
        """Even those have a screen."""
        lists = (vr.DELETE_REQUESTS, vr.POD_VOLUME_BACKUPS, vr.POD_VOLUME_RESTORES)
        for junk in (None, [], "x", {"metadata": [], "spec": 1, "status": "x"}):
            for resource in (vr.BACKUPS, vr.RESTORES):
                screen = described(junk, related=dict.fromkeys(lists, [junk]), resource=resource)
                self.assertIn("\nPhase:  New\n", screen.text)
                self.assertTrue(vr.json_text(screen.json))

    def test_nothing_that_strangers_write_breaks_a_column_or_drives_a_terminal(self) -> None:
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

    def test_an_error_in_place_of_everything(self) -> None:
        """Each section says so once, the spec is shown; what cannot be had twice is one trouble."""
        subject = document("Restore", status={"warnings": 1, "restoreItemOperationsAttempted": 1})
        kinds = vr.artifacts_of(vr.RESTORES, subject, details=True)
        screen = described(subject, {kind: vr.Error(f"{kind} is down") for kind in kinds}, details=True)
        self.assertEqual((screen.text.count(" is down>"), len(screen.troubles)), (5, 4))


# ------------------------------------------------------------------------------------------------------------
# Golden: what the real velero CLI prints, case by case
# ------------------------------------------------------------------------------------------------------------

NO_GOLDEN = "VELERO_GOLDEN names no folder, so nothing was compared with the real velero CLI"
GOLDEN_RELEASES = ("1.18.1", "1.6.3")
GOLDEN_BUCKET = "backups-bucket"
GOLDEN_KINDS = ("PodVolumeBackup", "PodVolumeRestore", "DeleteBackupRequest")  # only describe reads them
GOLDEN_OWNED = ("Backup", "Restore", "BackupStorageLocation", *GOLDEN_KINDS)


class GoldenLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose times stay text."""

    yaml_implicit_resolvers = {first: [row for row in rows if not row[0].endswith(":timestamp")] for first, rows
                               in yaml.SafeLoader.yaml_implicit_resolvers.items()}


class GoldenCase(NamedTuple):
    """One recorded call of the real CLI; its group is the kind of call, such as `backup-get`."""

    path: str
    group: str
    about: Document
    argv: List[str]
    out: str
    code: int


def golden_cases(release: str) -> List[GoldenCase]:
    """All cases of a release; the test is skipped where there are none."""
    root = os.environ.get("VELERO_GOLDEN")
    if not root:
        raise unittest.SkipTest(NO_GOLDEN)
    cases = []
    for name in sorted(os.listdir(os.path.join(root, release))):
        texts = []
        for file_name in ("input.yaml", "command.txt", "stdout.txt", "exit.txt"):
            with open(os.path.join(root, release, name, file_name), encoding="utf-8", newline="") as file:
                texts.append(file.read())
        group = "-".join(name.split("-")[:1 if name.startswith(("version", "usage")) else 2])
        cases.append(GoldenCase(f"{release}/{name}", group, yaml.load(texts[0], GoldenLoader), shlex.split(texts[1]),
                                texts[2], int(texts[3])))
    return cases


# -- where we differ, and why: the README says the same -----------------------------------------------------

class Difference(NamedTuple):
    """How we differ from velero in a case: our exit code, and whether the text differs too."""

    why: str
    code: int
    text: bool = False


def differing(why: str, code: int, text: bool, names: str) -> Dict[str, Difference]:
    """One row of differences for each name; one without a release stands for both."""
    return {path: Difference(why, code, text) for name in names.split() for path in (
        [name] if "/" in name else [f"{release}/{name}" for release in GOLDEN_RELEASES])}


FINER = ("velero's every failure is 1; ours say which kind: 2 usage, 3 does not exist, 4 no answer, 5 not allowed, "
         "6 unreachable")
ZERO = "velero ends with 0 although something could not be had"
NO_ANSWER = "no answer is a failure, with its reason on stderr"
OTHER_LAYOUT = "the screens and tables are 1.18's, whatever the release of the server"
OWN_WORDS = "the reason is in our words, which name the artifact, and what can be shown besides is shown; " + ZERO
DIFFERENCES: Dict[str, Difference] = {
    **differing(FINER, 2, False, """
        backup-get-invalid-format 1.18.1/backup-describe-invalid-format usage-bad-duration usage-flag-without-value
        usage-restore-logs-no-argument usage-unknown-command usage-unknown-flag usage-unknown-short-flag"""),
    **differing("an unknown subcommand is a usage error, not help and 0", 2, False, """
        usage-unknown-subcommand-backup usage-unknown-subcommand-plugin"""),
    **differing(FINER, 3, False, """
        backup-get-missing backup-get-one-missing 1.18.1/backup-describe-one-missing backup-logs-missing
        1.6.3/backup-download-missing 1.18.1/backup-download-in-progress 1.18.1/backup-logs-no-location
        1.18.1/restore-logs-no-backup restore-logs-no-file"""),
    **differing(FINER, 5, False, "backup-get-forbidden 1.18.1/backup-describe-forbidden 1.18.1/restore-logs-forbidden"),
    **differing(FINER, 6, False, "usage-api-server-down 1.18.1/backup-logs-store-down"),
    **differing(NO_ANSWER, 4, True, "1.18.1/plugin-get-no-answer version-no-answer"),
    **differing(NO_ANSWER, 4, False, "1.6.3/plugin-get-no-answer"),
    **differing("we have no release of Velero, so a newer or older server is nothing to warn of", 0, True,
                "version-development version-newer-server"),
    **differing("names of any length work, for the API completes the request's name", 0, True,
                "1.18.1/backup-logs-huge-name"),
    **differing("velero crashes on a backup without an expiration", 0, False, "1.18.1/backup-describe-phase-new-json"),
    **differing("several -L add up, as their help says", 0, True, "backup-get-label-columns"),
    **differing("an object is printed as it is, without Go's zero values", 0, True, "backup-get-yaml-sparse"),
    **differing("an object is printed as it is, its phase too", 0, True, "1.18.1/restore-get-yaml-being-deleted"),
    **differing("colors are for terminals, unless --colorized asks for them", 0, True,
                "1.18.1/backup-describe-color-default"),
    **differing("a line break in a value does not break the columns", 0, True,
                "1.18.1/backup-describe-annotation-newline"),
    **differing("every phase is counted, Canceling too", 0, True, "1.18.1/restore-describe-pod-canceling"),
    **differing(ZERO, 3, False, """
        1.18.1/backup-describe-operations-missing 1.18.1/restore-describe-operations-missing
        1.18.1/restore-describe-backup-gone"""),
    **differing(OWN_WORDS, 3, True, """
        1.18.1/backup-describe-volumes-legacy-csi-missing
        1.18.1/backup-describe-volumes-legacy-native-missing-json-details
        1.6.3/backup-describe-snapshots 1.6.3/backup-describe-snapshots-missing"""),
    **differing(OWN_WORDS, 1, True, """
        1.18.1/backup-describe-list-broken 1.18.1/backup-describe-results-not-gzip
        1.18.1/backup-describe-results-not-gzip-json 1.18.1/backup-describe-results-not-json-json
        1.18.1/backup-describe-volumes-broken 1.18.1/backup-describe-volumes-broken-json"""),
    **differing(OTHER_LAYOUT, 0, True, " ".join(f"1.6.3/{group}-{name}" for group, names in (
        ("backup-get", """alias-name format-table label-columns label-columns-comma location name name-twice names
         schedule-order selector selector-and-name selector-column selector-not-equal show-labels"""),
        ("backup-describe", """cluster-resources-false color-failed csi-details csi-none deleting deletions failed hooks
         in-progress new ordered-resources plain restic restic-details rich rich-details snapshots-details two"""),
        ("restore", """get-phases describe-color describe-failed describe-failed-validation describe-flags-false
         describe-full describe-in-progress describe-new describe-restic-details describe-results describe-two"""),
    ) for name in names.split())),
}


# -- the same as in the README of the golden cases -----------------------------------------------------------

GOLDEN_TIMES = (("%Y-%m-%dT%H:%M:%SZ", re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "YYYY-MM-DDThh:mm:ssZ"),
                ("%Y-%m-%d %H:%M:%S +0000 UTC", re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \+0000 UTC"),
                 "YYYY-MM-DD hh:mm:ss +0000 UTC"))
GOLDEN_RULES = tuple((re.compile(pattern, re.MULTILINE), text) for pattern, text in (
    (r"https?://127\.0\.0\.1:\d+[^\s\"'\\<>]*", "<URL>"),
    (r"127\.0\.0\.1:\d+", "<ADDRESS>"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<UUID>"),
    (r"velero-cli-[a-z0-9]{5}\b", "velero-cli-<RANDOM>"),
    (r"(\"?resourceVersion\"?: )\"\d+\"", r'\1"<RESOURCE_VERSION>"'),
    (r"(\"?generation\"?: )\d+", r"\1<GENERATION>"),
    (r"Git commit: .*", "Git commit: <COMMIT>"),
    (r"(Client:\n\tVersion: ).*", r"\1<CLIENT_VERSION>")))


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A document whose leaves are changed, without its blocks named managedFields."""
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items() if name != "managedFields"}
    return [mapped(item, change) for item in value] if isinstance(value, list) else change(value)


def golden_equal(case: GoldenCase, out: str) -> bool:
    """Whether our output is velero's: text letter by letter, JSON and YAML by their content."""
    if case.about.get("compare") == "exit" or out == case.out:
        return True
    if case.about.get("unordered"):
        return sorted(out.splitlines()) == sorted(case.out.splitlines())
    if case.code or not {"json", "yaml"}.intersection(re.split(r"[ =]", " ".join(case.argv))):
        return False
    ours, theirs = (mapped(yaml.load(text, GoldenLoader), lambda leaf: leaf) for text in (out, case.out))
    return bool(ours == theirs)


def golden_text(text: str, began: datetime, folder: str) -> str:
    """Our output with all that varies replaced."""
    first, last = began - timedelta(seconds=2), datetime.now(timezone.utc) + timedelta(seconds=2)
    for form, pattern, placeholder in GOLDEN_TIMES:
        for found in set(pattern.findall(text)):
            if first <= datetime.strptime(found, form).replace(tzinfo=timezone.utc) <= last:
                text = text.replace(found, placeholder)
    text = text.replace(folder, "<CWD>")
    for pattern, replacement in GOLDEN_RULES:
        text = pattern.sub(replacement, text)
    return text


def golden_body(artifact: Document) -> bytes:
    """An artifact as it lies in the bucket."""
    if "raw" in artifact:
        return str(artifact["raw"]).encode()
    if "tar" in artifact:
        return tar_of({path: text.encode() for path, text in artifact["tar"].items()})
    return gzip.compress((json.dumps(artifact["json"]) if "json" in artifact else artifact["text"]).encode())


class GoldenWorld(World):
    """A cluster with the CRDs of one release, in which each case is set up and taken down."""

    release = ""

    @classmethod
    def crds(cls) -> List[Document]:
        """Those of the release, and open ones for the kinds that only describe reads."""
        if not os.environ.get("VELERO_GOLDEN"):
            raise unittest.SkipTest(NO_GOLDEN)
        crds = velero_requests.crd_manifests(cls.release == "1.6.3")
        return crds + [json.loads(json.dumps(crds[0]).replace("Backup", kind).replace("backup", kind.lower()))
                       for kind in GOLDEN_KINDS]

    def seed(self) -> None:
        """Make the namespace, Secret and location that every case has."""
        self.namespace = self.cluster.new_namespace("velero")
        self.addCleanup(self.cluster.clear, "velero")
        self.cluster.clear("velero")
        keys = keys_file(self.store.access_key, self.store.secret_key)
        self.make("secrets", "Secret", "cloud-credentials", data={"cloud": base64.b64encode(keys.encode()).decode()})
        self.make("backupstoragelocations", "BackupStorageLocation", "default", spec={
            "provider": "aws", "objectStorage": {"bucket": GOLDEN_BUCKET},
            "config": {"region": self.store.region, "s3ForcePathStyle": "true", "s3Url": self.store.url},
            "credential": {"name": "cloud-credentials", "key": "cloud"}})
        self.store.create_bucket(GOLDEN_BUCKET)
        self.users = {user: self.cluster.kubeconfig(self.folder, user) for user in ("admin", "limited")}

    # -- one case ----------------------------------------------------------------------------------------------

    def path_of(self, kind: str, name: str = "") -> str:
        """The API path of a kind of velero.io, or of one object."""
        return f"/apis/velero.io/v1/namespaces/velero/{kind.lower()}s" + (f"/{name}" if name else "")

    def load(self, case: GoldenCase, began: datetime, end: contextlib.ExitStack) -> None:
        """Create the objects and artifacts of a case until `end`, with NOW, UID(...) and S3_URL replaced."""
        uids: Dict[str, str] = {}

        def filled(value: Any) -> Any:
            moment = re.fullmatch(r"NOW(?:([-+])(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?)?", str(value))
            uid = re.fullmatch(r"UID\((.*)\)", str(value))
            if moment:
                days, hours, minutes, seconds = (int(number or 0) for number in moment.groups()[1:])
                offset = timedelta(days, hours=hours, minutes=minutes, seconds=seconds)
                return vr.format_time(began - offset if moment.group(1) == "-" else began + offset)
            return uids[uid.group(1)] if uid else self.store.url if value == "S3_URL" else value

        for document in case.about.get("objects") or []:
            document = mapped(document, filled)
            kind, metadata = document["kind"], document["metadata"]
            if kind not in GOLDEN_OWNED:
                continue                     # live snapshots of another group, which only 1.6.3 looks at
            doomed, path = metadata.pop("deletionTimestamp", None), self.path_of(kind, metadata["name"])
            end.callback(self.admin.raw, "DELETE", path)
            stored = self.admin.call("POST", self.path_of(kind), document)
            uids[f"{kind}/{metadata['name']}"] = stored["metadata"]["uid"]
            end.callback(self.admin.raw, "PATCH", path, {"metadata": {"finalizers": None}},
                         "application/merge-patch+json")
            if doomed:
                self.admin.call("DELETE", path)
        for key, artifact in (case.about.get("artifacts") or {}).items():
            self.store.put(GOLDEN_BUCKET, key, golden_body(artifact))
            end.callback(self.forget, key)

    def forget(self, key: str) -> None:
        """Take an object out of the store."""
        if self.store.kind == "fake":
            del self.store.buckets[GOLDEN_BUCKET][key]
        else:
            os.unlink(os.path.join(self.store.data, GOLDEN_BUCKET, key))

    @contextlib.contextmanager
    def answering(self, case: GoldenCase) -> Iterator[None]:
        """Let our controller answer, as the case's server would; for a status only if it has one."""
        server = case.about.get("server") or {}
        if not server and case.group in ("plugin-get", "version"):
            yield
            return
        plugins = tuple((row["kind"], row["name"]) for row in server.get("plugins") or ())
        api = velero_requests.connect(velero_requests.load_cluster(self.users["admin"]))
        controller = velero_requests.Controller(
            api, "velero", velero_requests.Server(server.get("serverVersion", ""), plugins))
        thread = threading.Thread(target=velero_requests.run_controller, args=(controller,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.halt(controller, thread)

    @contextlib.contextmanager
    def placed(self, case: GoldenCase) -> Iterator[str]:
        """Stand in an empty folder with an empty home, the files of the case laid out and its variables set."""
        base, before = tempfile.mkdtemp(dir=self.folder), os.getcwd()
        folders = {name: os.path.join(base, name) for name in ("files", "home")}
        for name, folder in folders.items():
            os.mkdir(folder)
            for path, text in (case.about.get(name) or {}).items():
                os.makedirs(os.path.dirname(os.path.join(folder, path)), exist_ok=True)
                with open(os.path.join(folder, path), "w", encoding="utf-8") as file:
                    file.write(text)
        variables = {"TZ": "UTC", "NO_COLOR": "1", "HOME": folders["home"],
                     "KUBECONFIG": self.users[case.about.get("user", "admin")], **(case.about.get("env") or {})}
        try:
            with environment(variables):
                os.chdir(folders["files"])
                time.tzset()
                yield folders["files"]
        finally:
            os.chdir(before)
            time.tzset()

    def complaint(self, case: GoldenCase) -> str:
        """Run a case -> what is wrong with our answer, or nothing."""
        began = datetime.now(timezone.utc).replace(microsecond=0)
        with contextlib.ExitStack() as end:
            self.load(case, began, end)
            with self.answering(case), self.placed(case) as folder:
                result = run("-n", "velero", *case.argv)
                out = golden_text(result.out.decode(), began, folder)
        left = [item["metadata"]["name"] for item in self.admin.call("GET", self.path_of("DownloadRequest"))["items"]]
        if left or "Traceback" in result.err:
            return f"requests left behind: {left}; stderr: {result.err}"
        same, allowed = golden_equal(case, out), DIFFERENCES.get(case.path, Difference("", case.code))
        if allowed.why and (allowed.code, allowed.text) == (case.code, False):
            return f"listed as a difference ({allowed.why}) that is none"
        if (result.code, same) == (allowed.code, not allowed.text):
            return ""
        shown = "" if same else "".join(difflib.unified_diff(
            case.out.splitlines(True), out.splitlines(True), "velero", "ours"))
        return (f"exit code {result.code} for {allowed.code}, text {'equal' if same else 'different'}\n{shown}"
                f"{result.err}")

    def check(self, cases: List[GoldenCase]) -> None:
        """Compare with velero's answers."""
        self.assertTrue(cases)
        for case in cases:
            with self.subTest(case=case.path):
                complaint = self.complaint(case)
                self.assertFalse(complaint, f"{shlex.join(case.argv)}: {complaint}")


GOLDEN_GROUPS = (
    ("backup-get",), ("backup-describe",), ("backup-logs", "backup-download"), ("restore-get",), ("restore-describe",),
    ("restore-logs",), ("plugin-get", "version"), ("usage",))


class GoldenTests(GoldenWorld):
    """Every case against the fakes."""

    def test_every_case_has_a_group_and_every_difference_a_case(self) -> None:
        cases = golden_cases(self.release)
        self.assertEqual({case.group for case in cases}, {name for groups in GOLDEN_GROUPS for name in groups})
        listed = {path for path in DIFFERENCES if path.startswith(self.release)}
        self.assertEqual(listed - {case.path for case in cases}, set())


for _groups in GOLDEN_GROUPS:
    def _test(self: Any, groups: Tuple[str, ...] = _groups) -> None:
        self.check([case for case in golden_cases(self.release) if case.group in groups])
    _test.__doc__ = f"The real CLI's {' and '.join(_groups)}."
    setattr(GoldenTests, "test_" + "_".join(_groups).replace("-", "_"), _test)


class TestGoldenFakeNew(GoldenTests, FakeWorld, unittest.TestCase):
    """1.18.1."""

    release = "1.18.1"


class TestGoldenFakeOld(GoldenTests, FakeWorld, unittest.TestCase):
    """1.6.3."""

    release, status_subresource = "1.6.3", True


class GoldenRealTests(GoldenWorld):
    """A sample of every group against the real servers."""

    fewest = 0

    def test_sample(self) -> None:
        """Every seventh case of each group, but those that nobody answers or that ask no server."""
        cases = [case for case in golden_cases(self.release) if case.group != "usage" and "--timeout" not in case.argv]
        sample = [case for group in sorted({case.group for case in cases})
                  for case in [case for case in cases if case.group == group][::7]]
        self.assertGreaterEqual(len(sample), self.fewest)
        self.check(sample)


class TestGoldenRealNew(GoldenRealTests, RealWorld, unittest.TestCase):
    """1.18.1."""

    release, fewest = "1.18.1", 30


class TestGoldenRealOld(GoldenRealTests, RealWorld, unittest.TestCase):
    """1.6.3."""

    release, status_subresource, fewest = "1.6.3", True, 10


# ------------------------------------------------------------------------------------------------------------
# Screens where the golden cases have nothing to say
# ------------------------------------------------------------------------------------------------------------

class TestDescribing(FakeWorld, unittest.TestCase):
    """describe and version when things go wrong, and what velero does not have."""

    def test_nobody_answers(self) -> None:
        """The screen is there, each section says what it lacks, the code is 4, and no request is left."""
        result = self.cli("backup", "describe", "b1", "--details", "--timeout", "200ms")
        self.assertEqual(result.code, 4, result.err)
        self.assertIn(b"Resource List:  <error getting backup resource list: nobody answered", result.out)
        self.assertIn("hint: there is no Deployment velero", result.err)
        self.assertEqual(self.names(), [])

    def test_interrupted(self) -> None:
        """Ctrl-C deletes the requests of all artifacts."""
        program = self.program("backup", "describe", "b1", "--details")
        wait_until(lambda: len(self.names()) == 2, what="two requests")
        result = program.end(signal.SIGINT, seconds=5)
        self.assertEqual((result.code, result.out, self.names()), (130, b"", []), result.err)

    def test_too_large(self) -> None:
        """A resource list that fits no memory is said in its section, and the rest is shown."""
        body = b'{"v1/Pod": [' + b'"web/a-pod-of-many",' * (velero_requests.JSON_LIMIT // 20 + 1) + b'"web/last"]}'
        self.store.put(self.namespace, "backups/b1/b1-resource-list.json.gz", gzip.compress(body, 1))
        self.serve()
        result = self.cli("backup", "describe", "b1", "--details")
        self.assertEqual(result.code, 1, result.err)
        self.assertIn(b"it is larger than 16 MiB", result.out)
        self.assertIn(b"Backup Volumes:", result.out)

    def test_json_that_velero_has_not(self) -> None:
        """Of several backups, for which velero prints text whatever -o says, and of a restore."""
        self.make_backup("b2")
        self.serve()
        result = self.cli("backup", "describe", "b2", "b1", "-o", "json")
        self.assertEqual([row["metadata"]["name"] for row in json.loads(result.out)], ["b2", "b1"])
        result = self.cli("describe", "restore", "r1", "-o", "json")
        self.assertEqual(json.loads(result.out)["spec"]["backup"], "b1")

    def test_verb_first(self) -> None:
        """Both orders of words are one command."""
        self.put()
        self.store.put(self.namespace, "backups/b1/b1.tar.gz", tar_of({"a": b"b"}))
        self.serve()
        for one, other in (("backup get", "get backups"), ("restore get", "get restores"), ("plugin get", "get plugin"),
                           ("backup logs b1", "logs backup b1"), ("backup describe b1", "describe backups b1"),
                           ("backup download b1 -o -", "download backup b1 -o -")):
            with self.subTest(other=other):
                results = [self.cli(*words.split()) for words in (one, other)]
                self.assertEqual(results[0].code, 0, results[0].err)
                self.assertEqual(results[0], results[1])

    def test_switches(self) -> None:
        """A switch takes its value only after `=`, so that a name may follow it."""
        self.serve()
        long, short = (self.cli("backup", "describe", words, "b1").out for words in ("--details", "--details=false"))
        self.assertEqual((b"Resource List:" in long, b"Resource List:" in short), (True, False))
        self.assertEqual(self.cli("backup", "get", "--show-labels=perhaps").code, 2)

    def test_locale_without_the_characters(self) -> None:
        """A terminal that cannot show a character gets an escape."""
        self.put()
        self.admin.merge_patch("backups", "b1", {"metadata": {"annotations": {"note": "für 東京"}}}, self.namespace)
        self.serve()
        result = self.program("backup", "describe", "b1", env={"PYTHONIOENCODING": "ascii"}).end()
        self.assertEqual(result.code, 0, result.err)
        self.assertIn(b"note=f\\xfcr \\u6771\\u4eac", result.out)


COMMON_FLAGS = "--colorized --context --help --kubeconfig --kubecontext --namespace --timeout --verbose --version -n -v"
OFFERED = {  # what is typed after the program's name -> what may stand in place of its last word, or after its "="
    "": "backup completion controller describe download get logs manifests plugin restore version", "ba": "backup",
    "-": COMMON_FLAGS, "backup ": "describe download get logs", "backup d": "describe download",
    "backup -": COMMON_FLAGS, "backup get --s": "--selector --show-labels",
    "backup describe nightly-2024 --time": "--timeout", "backup get -o ": "json table yaml",
    "backup get --output=j": "json", "backup get --output = j": "json", "backup get --output =": "json table yaml",
    "download b1 --kind RestoreLo": "RestoreLog", "download b1 -o my": "", "restore get --kubeconfig=my": "",
    "backup -vn ": "", "backup get --idle-timeout 30s -o json --sh": "--show-labels",
    "get ": "backup backups plugin plugins restore restores", "get backups --sh": "--show-labels",
    "logs backup nightly-2024 --dir": "--direct", "backup logs b1 --quiet --ver": "--verbose --version",
    "-n velero backup get --sh": "--show-labels", "backup -n velero l": "logs", "-v --colorized restore d": "describe",
    "--context get backup ": "describe download get logs", "plugin get ": f"{COMMON_FLAGS} --output -o",
    "nonsense ": "", "completion ": "bash fish zsh", "completion bash ": COMMON_FLAGS,
}
TYPED = {"": OFFERED[""], "backup get -o ": "json table yaml", "backup get --output=j": "json",
         "download b1 -o my": "my-file", "restore get --kubeconfig=my": "my-file",
         "backup -n velero logs --dir": "--direct"}


class TestCompletion(FolderCase):
    """What the program offers, and that the shells which are here offer it, too."""

    def setUp(self) -> None:
        """Lay a file that can be offered, and in place of the program one that writes down what it is called with."""
        super().setUp()
        program = (f"#!/bin/sh\n[ \"$1\" != __complete ] || exec {sys.executable} {velero_requests.__file__} \"$@\"\n"
                   "printf '%s\\n' \"$*\" >>typed\n")
        for name, text in (("my-file", ""), ("velero_requests.py", program)):
            write_bytes(os.path.join(self.folder, name), text.encode())
            os.chmod(os.path.join(self.folder, name), 0o755)

    def script(self, shell: str, name: str = "script") -> str:
        return write_bytes(os.path.join(self.folder, name), run("completion", shell).out)

    def shell(self, *argv: str) -> Tuple[str, ...]:
        """The command that runs a shell without anybody's settings."""
        return ("env", "-i", f"PATH={self.folder}:{os.environ['PATH']}", f"HOME={self.folder}", "TERM=dumb", "LC_ALL=C",
                f"ZDOTDIR={self.folder}", "INPUTRC=/dev/null", *argv)

    def same(self, found: List[str], offered: str) -> None:
        """Compare what is offered, in whatever order, and whether or not a shell says `--flag=` again."""
        self.assertEqual(sorted(word.rpartition("=")[2] for word in found), sorted(offered.split()))

    def check(self, setting: str, *argv: str) -> None:
        """Type lines in a shell that inserts all it offers, run them, and compare what they are called with."""
        write_bytes(os.path.join(self.folder, ".zshrc"), f"{setting}\nPS1=READY\n".encode())
        terminal = Terminal(self.folder, program=self.shell(*argv))
        self.addCleanup(terminal.kill)
        wait_until(lambda: "READY" in terminal.text(), what="the prompt")
        programs = itertools.cycle(("velero_requests.py", "./velero_requests.py", "~/velero_requests.py"))
        typed = "".join(f"{program} {line}\x18\x18\n" for program, line in zip(programs, TYPED))
        terminal.type(typed.encode() + b"exit\n")
        _, text = terminal.end()
        called = read_bytes(os.path.join(self.folder, "typed")).decode().splitlines()
        os.remove(os.path.join(self.folder, "typed"))
        self.assertEqual(len(called), len(TYPED), text)
        for line, words in zip(TYPED, map(str.split, called)):
            with self.subTest(setting=setting, line=line):
                finished = line.split(" ")[:-1]
                self.assertEqual(words[:len(finished)], finished)
                self.same(words[len(finished):], TYPED[line])

    def test_what_is_offered(self) -> None:
        """Commands, flags and values; nothing where only the shell knows, which are files."""
        for line, offered in OFFERED.items():
            with self.subTest(line):
                result = run("__complete", *line.split(" "))
                self.assertEqual((0, ""), (result.code, result.err))
                self.same(result.out.decode().split(), offered)

    @unittest.skipUnless(shutil.which("bash"), "there is no bash, so its completion was not tried")
    def test_bash(self) -> None:
        """Whatever the user has set."""
        for setting in ("", "set -u; IFS=-; shopt -s nocaseglob nocasematch failglob", "set -o posix"):
            self.check(f"bind '\"\\C-x\\C-x\": insert-completions'\n{setting}\n. {self.script('bash')}",
                       "bash", "--noprofile", "--rcfile", ".zshrc", "-i")

    @unittest.skipUnless(shutil.which("zsh"), "there is no zsh, so its completion was not tried")
    def test_zsh(self) -> None:
        """The same, and the script may also lie where zsh finds it when it is needed."""
        insert_all = ("zstyle ':completion:*' completer _all_matches _complete\nzstyle ':completion:*' insert true\n"
                      "bindkey '^X^X' complete-word\nautoload -Uz compinit\ncompinit -u -D\n")
        for setting in (f"{insert_all}setopt ksharrays shwordsplit nounset\n. {self.script('zsh')}",
                        f"fpath=({os.path.dirname(self.script('zsh', '_velero_requests'))} $fpath)\n{insert_all}"):
            self.check(setting, "zsh", "-d", "-i")

    @unittest.skipUnless(shutil.which("fish"), "there is no fish, so its completion was not tried")
    def test_fish(self) -> None:
        """The same."""
        ask = "source $argv[1]; for line in $argv[2..-1]; complete -C $line | string split -f 1 \\t; echo .; end"
        for program in ("velero_requests.py", "./velero_requests.py", "~/velero_requests.py"):
            command = self.shell("fish", "-c", ask, self.script("fish"), *(f"{program} {line}" for line in TYPED))
            done = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, check=True, timeout=60)
            for (line, offered), found in zip(TYPED.items(), done.stdout.decode().split(".\n")):
                with self.subTest(program=program, line=line):
                    self.same(found.split(), offered)


class TestCompletionOfNames(FakeWorld, unittest.TestCase):
    """Names of the cluster's objects, when it tells them in time."""

    def offered(self, *words: str) -> Tuple[float, str]:
        """The words offered, and the seconds it took; nothing is said on stderr."""
        began = time.monotonic()
        result = run("__complete", *words)
        self.assertEqual((0, ""), (result.code, result.err))
        return time.monotonic() - began, " ".join(result.out.decode().split())

    def test_names(self) -> None:
        """Backups or restores, whichever the command is about, in the namespace and cluster that the line names."""
        self.make_backup("nightly")
        flags = ("--kubeconfig", self.kubeconfig, "-n", self.namespace)
        for words, names in ((("backup", "logs", ""), "b1 nightly"), (("backup", "describe", "b1", "n"), "nightly"),
                             (("get", "restores", ""), "r1"), (("download", "--kind", "RestoreLog", ""), "r1"),
                             (("download", ""), "b1 nightly"), (("backup", "logs", "x"), ""),
                             (("backup", "logs", "--help", "n"), "nightly")):
            with self.subTest(words):
                self.assertEqual(names, self.offered(*flags, *words)[1])

        self.cluster.script("GET", "/backups", status=200, body={"items": [
            {"metadata": {"name": name}} for name in ("nice", "n$(id)", "n;x", "n y", "", None)]})
        self.assertEqual("nice", self.offered(*flags, "backup", "logs", "n")[1], "what no object can be called")

    def test_a_cluster_that_does_not_tell(self) -> None:
        """Nothing is offered: after a second, or at once for what is wrong."""
        flags = ("--kubeconfig", self.kubeconfig, "-n", self.namespace, "backup", "logs", "")
        self.cluster.script("GET", "/backups", hang=threading.Event())
        seconds, names = self.offered(*flags)
        self.assertEqual(("", True), (names, seconds < 2), seconds)
        self.cluster.unscript()
        self.cluster.script("GET", "/backups", status=403, body={"kind": "Status", "message": "no"})
        self.assertEqual("", self.offered(*flags)[1])
        self.assertEqual("", self.offered("--kubeconfig", "/dev/null", "backup", "logs", "")[1])


class TestWaiting(FakeWorld, unittest.TestCase):
    """How a client waits that may not watch."""

    def setUp(self) -> None:
        """Let a user create and read requests, and no more."""
        super().setUp()
        self.cluster.grant("reader", {"apiGroups": ["velero.io"], "resources": ["downloadrequests"],
                                      "verbs": ["create", "get"]}, namespace=self.namespace)
        self.cluster.forget()

    def test_polling_backs_off(self) -> None:
        """From 25 ms to a second between two looks, and one at the end of the time."""
        result = self.cli("backup", "logs", "b1", "--timeout", "2s", user="reader")
        self.assertEqual((4, b""), (result.code, result.out), result.err)
        self.assertIn(self.cluster.count("GET", "/downloadrequests/"), range(5, 10))

    def test_somebody_else_deletes_it(self) -> None:
        """It is said at once, whether the request is watched or read."""
        for user in ("reader", "admin"):
            with self.subTest(user):
                program = Program(self.folder, "backup", "logs", "b1", "--timeout", "20s", "-n", self.namespace,
                                  "--kubeconfig", self.cluster.kubeconfig(self.folder, user))
                self.addCleanup(program.kill)
                name, = wait_until(self.names, 15, "the request")
                self.admin.delete("downloadrequests", name, self.namespace)
                result = program.end()
                self.assertEqual((1, b""), (result.code, result.out), result.err)
                self.assertIn(f"{name} was deleted by somebody else before it was answered", result.err)


class TestBucketListing(FakeWorld, unittest.TestCase):
    """Of the backups in a bucket only those that are wanted are read, eight side by side."""

    def setUp(self) -> None:
        """Fill the bucket."""
        super().setUp()
        self.rows = [f"b{number:02}" for number in range(20)]
        for name in self.rows:
            self.store.put(self.namespace, f"backups/{name}/velero-backup.json", backup_document(name))
        self.store.forget()

    def test_what_is_wanted(self) -> None:
        result = self.cli("backup", "get", "b07", "b03", "--direct")
        self.assertEqual((0, ["b03", "b07"]), (result.code, [
            line.split()[0] for line in result.out.decode().splitlines()[1:]]), result.err)
        self.assertEqual(2, len(self.store.seen("GET", "velero-backup.json")))

    def test_side_by_side(self) -> None:
        """None of the first eight is answered before all of them are asked for, and nobody asks for more."""
        gate = threading.Event()
        fault = self.store.script("GET", "velero-backup.json", times=8, hang=gate)
        program = self.program("backup", "get", "--direct")
        wait_until(lambda: fault.hits == 8, 15, "eight requests")
        self.assertEqual(8, len(self.store.seen("GET", "velero-backup.json")))
        gate.set()
        result = program.end()
        self.assertEqual((0, self.rows), (result.code, [
            line.split()[0] for line in result.out.decode().splitlines()[1:]]), result.err)


class TestCommandLine(unittest.TestCase):
    """What is typed, and what is said of it."""

    def test_spellings(self) -> None:
        """Flags may stand anywhere, verbs first, and what is a flag's value names no command."""
        for typed, command, options in (
                ("download backup b1", "backup download", {"name": "b1", "kind": "BackupContents", "url_only": False}),
                ("-n ns download backup b1", "backup download", {"namespace": "ns", "name": "b1"}),
                ("download -n ns backup b1", "backup download", {"namespace": "ns", "name": "b1"}),
                ("download backup -o x b1", "backup download", {"output": "x", "name": "b1"}),
                ("-vn ns logs restore r1", "restore logs", {"namespace": "ns", "verbose": 1, "is_log": True}),
                ("-n download backup get", "backup get", {"namespace": "download", "names": [], "timeout": 60.0}),
                ("-vvn download get backups", "backup get",
                 {"verbose": 2, "namespace": "download", "resource": vr.BACKUPS}),
                ("--context download backup logs b1", "backup logs", {"context": "download", "kind": "BackupLog"}),
                ("backup logs b1 --location download", "backup logs", {"location": "download", "direct": False}),
                ("backup get -l download b1 --show-labels b2", "backup get", {"selector": "download",
                                                                              "names": ["b1", "b2"]}),
                ("restore get --show-labels -n create", "restore get", {"namespace": "create", "show_labels": True,
                                                                        "direct": False, "location": None}),
                ("describe restores --details=false r1 --colorized", "restore describe", {"colorized": True,
                                                                                         "details": False}),
                ("download --force b1 -o -", "download", {"force": True, "output": "-", "quiet": False}),
                ("download -- --kind", "download", {"name": "--kind"}), ("download -- -", "download", {"name": "-"}),
                ("plugin get", "plugin get", {"timeout": 5.0, "colorized": None}),
                ("get plugins --timeout 1000000h", "plugin get", {"timeout": vr.MAX_TIMEOUT})):
            with self.subTest(typed):
                found, values = vr.parse(typed.split())
                self.assertEqual((command, options), (found.words, {name: getattr(values, name) for name in options}))

    def test_wrong_usage(self) -> None:
        """It names what was typed, and stdout stays empty; what only Velero does is velero's."""
        for typed, words in (
                ("plugin get --force",
                 "unrecognized arguments: --force\nhint: see `velero_requests.py plugin get --help`"),
                ("plugin get x --force=true", "unrecognized arguments: --force=true x\n"),
                ("backup --nope", ": --nope\n"),
                ("nonsense", "no command `nonsense` here"), ("backup nonsense", "no command `backup nonsense` here"),
                ("backup create b1", "`velero backup create`"),
                ("-n ns backup delete b1 --confirm", "`velero backup delete`"),
                ("schedule get", "`velero schedule get`"), ("install --help", "`velero install`"),
                ("get backup-locations", "`velero get backup-locations`"),
                ("backup logs", "the following arguments are required: BACKUP"), ("backup get --outp json", "--outp"),
                ("version --client-only=perhaps", "--client-only: 'perhaps' is neither true nor false"),
                ("version --client-only=", "'' is neither true nor false"),
                ("version -n a/b", "'a/b' cannot be the name of a namespace"),
                ("version --timeout 0s", "'0s' is no time to wait"), ("version --timeout -5s", "expected one argument"),
                ("version --timeout 5", "'5' is no time to wait; write for example 30s"),
                ("version --output", "expected one"),
                ("controller --plugin =x", "'=x' is not KIND=NAME"), ("completion csh", "invalid choice: 'csh'"),
                ("download b1 --kind Backup", "invalid choice: 'Backup'")):
            with self.subTest(typed):
                result = run(*typed.split())
                self.assertEqual((2, b""), (result.code, result.out), result.err)
                self.assertIn(words, result.err)

    def test_a_name_that_leads_elsewhere(self) -> None:
        """No file is looked for under it, in a folder for a bucket either."""
        result = run("backup", "logs", "--location", "/tmp", "--", "../x")
        self.assertEqual((3, "error: backup '../x' cannot exist\n"), (result.code, result.err))

    def test_groups_print_their_help(self) -> None:
        """A group of commands, with or without --help, tells its commands and ends well; so does no command at all."""
        for words, told in (
                ((), ("backup describe", "exit codes:")), (("backup",), ("describe  ", "logs  ")),
                (("-v", "get", "--help"), ("plugins  ", "restore  ")),
                (("logs", "-n", "ns"), ("print the log of a restore",)), (("plugin",), ("list the plugins",)),
                (("backup", "get", "-h"), ("--show-labels", "[BACKUP ...]"))):
            with self.subTest(words):
                result = run(*words)
                self.assertEqual((0, ""), (result.code, result.err))
                for text in told:
                    self.assertIn(text, result.out.decode())

    def test_no_package_is_needed(self) -> None:
        """What only prints something uses neither urllib3 nor yaml, and argparse is for command lines."""
        code = ("import sys, velero_requests as v\n"
                "v.urllib3 = v.yaml = sys.modules['urllib3'] = sys.modules['yaml'] = None\n"
                "sys.exit(v.main(sys.argv[1:]))")
        for words, expected in (("--help", 0), ("backup", 0), ("--version", 0), ("completion fish", 0),
                                ("manifests", 0), ("version --client-only -o yaml", 0), ("__complete backup d", 0),
                                ("nonsense", 2)):
            with self.subTest(words):
                done = subprocess.run([sys.executable, "-c", code, *words.split()], stdout=subprocess.PIPE, check=False,
                                      stderr=subprocess.PIPE, timeout=60, cwd=os.path.dirname(MODULE))
                self.assertEqual(expected, done.returncode, done.stderr)

    def test_a_secret_is_missed_before_anybody_is_asked(self) -> None:
        """A location in a file that names a Secret fails at once, though its region would have to be asked for."""
        proxy = FakeStore()
        self.addCleanup(proxy.close)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write("{provider: aws, objectStorage: {bucket: b}, credential: {name: cloud, key: keys}}")
            file.flush()
            result = run("backup", "get", "--location", file.name, env={"HTTPS_PROXY": proxy.url, "NO_PROXY": ""})
            self.assertEqual((1, []), (result.code, proxy.requests), result.err)
        self.assertRegex(result.err, "names the Secret 'cloud'.*\nhint: .*--credentials-file FILE")


NO_SPACE = "error: cannot write the output: No space left on device\n"
ENDS = (  # a command, where its stdout and stderr lead, the code it ends with, and what is on stderr then
    *((command, "full", "", 1, NO_SPACE) for command in ("--help", "--version", "completion zsh")),
    *((command, "closed", "", 141, "") for command in ("plugin --help", "--version", "manifests")),
    *((*row, "") for row in (
        ("nonsense", "", "full", 2), ("backup logs b1 -vv --kubeconfig /dev/null", "", "full", 1),
        ("backup logs", "", "closed", 2), ("--version", "full", "full", 1), ("--help", "closed", "closed", 141))))


class TestEnds(unittest.TestCase):
    """However a command ends, there is one sentence and its code, and no word from the interpreter."""

    def test_full_disks_and_closed_pipes(self) -> None:
        """As on a user's machine, where streams are buffered, and of the first and the last also where they are not."""
        base = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        reading, closed = os.pipe()
        os.close(reading)
        self.addCleanup(os.close, closed)
        with open("/dev/full", "wb") as full:
            leads = {"full": full, "closed": closed, "": subprocess.PIPE}
            started = [(row, environ, subprocess.Popen(
                [sys.executable, MODULE, *row[0].split()], stdout=leads[row[1]], stderr=leads[row[2]],
                env={**base, **environ}))
                for environ, rows in (({}, ENDS), ({"PYTHONUNBUFFERED": "1"}, (ENDS[0], ENDS[-1]))) for row in rows]
            for row, environ, process in started:
                with self.subTest(row, environ=environ):
                    out, err = process.communicate(timeout=60)
                    self.assertEqual(row[3:], (process.returncode, (err or b"").decode()), out)

    def test_ctrl_c_while_it_is_imported(self) -> None:
        """The code is 130 and nothing is said, also by the installed command; an ignored one stays ignored."""
        for before, code in ((signal.SIG_DFL, 130), (signal.SIG_IGN, 0)):
            process = subprocess.Popen(
                [sys.executable, "-X", "importtime", MODULE, "version", "--client-only"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                preexec_fn=functools.partial(signal.signal, signal.SIGINT, before))  # pylint: disable=W1509
            assert process.stderr
            said = b""
            while b" signal\n" not in said and b" base64\n" not in said:  # most is still to come
                said += process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, rest = process.communicate(timeout=60)
            self.assertEqual(code, process.returncode, rest)
            self.assertNotIn(b"Traceback", rest)

    def test_ctrl_c_while_the_interpreter_ends(self) -> None:
        """When all is said, Ctrl-C ends the process as a signal does, without a word."""
        with tempfile.TemporaryDirectory() as folder:
            write_bytes(os.path.join(folder, "sitecustomize.py"),
                        b"import atexit, os, signal\natexit.register(os.kill, os.getpid(), signal.SIGINT)\n")
            done = subprocess.run([sys.executable, MODULE, "--version"], timeout=60, check=False,
                                  env={**os.environ, "PYTHONPATH": folder}, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE)
        self.assertEqual((-signal.SIGINT, b""), (done.returncode, done.stderr))


CANARY = "canary/7+secret"
# All commands; those that print a URL or an object are asked for what they show, so only their stderr must be clean.
CANARY_COMMANDS = (
    "controller --once", "controller --once --dry-run", "controller --once --verify-urls", "download b1 -o FILE",
    "download b1 --kind BackupLog", "download b1 --url-only", "backup get", "backup get --direct -o yaml",
    "backup describe b1 --details", "backup describe b1 -o json", "backup logs b1", "backup logs b1 --direct",
    "backup download b1 -o FILE --force", "restore get -o json", "restore describe r1", "restore logs r1",
    "plugin get --timeout 300ms", "version --timeout 300ms", "manifests", "completion bash")
ECHO = (f"X-Amz-Signature={'ca7a' * 16}&X-Amz-Security-Token={CANARY} Authorization: Bearer {CANARY} "
        f"http://u:{quote(CANARY, '')}@h/")


class TestCanary(DownloadWorld, unittest.TestCase):
    """No secret of ours is in what any command says, logs at any level, or leaves in the cluster."""

    serves = False

    def setUp(self) -> None:
        """Give the store keys of which every part is a canary, and the program's host a logger that keeps all."""
        super().setUp()
        self.store.keys["AKIACANARY"] = (CANARY + "-key", CANARY + "-session")
        self.addCleanup(self.store.keys.pop, "AKIACANARY")
        self.make_secret("canary", text=keys_file("AKIACANARY", CANARY + "-key")
                         + f"aws_session_token = {CANARY}-session\n[other]\naws_secret_access_key = {CANARY}\n")
        self.make_location("canary", secret="canary")
        self.admin.delete("backups", "b1", self.namespace)
        self.make_backup("b1", location="canary")
        self.contents()
        self.put("BackupLog")
        self.put("RestoreLog")
        self.root, root = io.StringIO(), logging.getLogger()
        handler = logging.StreamHandler(self.root)
        root.addHandler(handler)
        self.addCleanup(root.removeHandler, handler)
        self.addCleanup(root.setLevel, root.level)
        root.setLevel(logging.DEBUG)

    def kubeconfig_of(self, **user: Any) -> str:
        """Write the kubeconfig for another user entry, and return the path."""
        document = yaml.safe_load(read_bytes(self.kubeconfig))
        document["users"][0]["user"] = user
        return write_bytes(os.path.join(self.folder, "of-" + uuid.uuid4().hex), yaml.safe_dump(document).encode())

    def assert_no_canary(self, *texts: str) -> None:
        """Look for all secrets, as they are and as they are quoted."""
        self.assert_clean(*texts)
        for text in texts:
            for spelled in (CANARY, quote(CANARY), quote(CANARY, safe=""), "AKIACANARY",
                            base64.b64encode(CANARY.encode()).decode()[:-4]):
                place = text.find(spelled)
                self.assertEqual(-1, place, text[max(0, place - 300):place + 100])

    def check(self, command: str, code: Optional[int] = None, kubeconfig: str = "") -> None:
        """Run a command as talkative as can be, and look at all that it leaves anywhere."""
        file = os.path.join(self.folder, "target", "canary")
        words = [file if word == "FILE" else word for word in command.split()]
        for kept in (self.log, self.root):
            kept.seek(0)
            kept.truncate()
        timeout = [] if "--timeout" in words else ["--timeout", "2s"]
        result = run("-vvv", "--kubeconfig", kubeconfig or self.kubeconfig, "-n", self.namespace, *words, *timeout)
        self.cluster.unscript()
        self.store.unscript()
        if code is not None:
            self.assertEqual(code, result.code, result.err[-2000:])
        left = [self.admin.list(resource, self.namespace)["items"] for resource in ("downloadrequests", "events")]
        self.assert_no_canary(
            result.err, self.log.getvalue(), self.root.getvalue(), json.dumps(left[1]),
            *(json.dumps(item["metadata"]) for item in left[0]),
            *([] if "--url-only" in words else [result.out.decode()]))
        with contextlib.suppress(FileNotFoundError):
            os.remove(file)

    def test_when_all_goes_well(self) -> None:
        """Every command there is."""
        self.assertEqual({command.words for command in vr.COMMANDS}, {command.words for command in vr.COMMANDS if any(
            row.startswith(command.words) for row in CANARY_COMMANDS)}, "a command is not in CANARY_COMMANDS")
        self.serve("admin", plugins=(("ObjectStore", "velero.io/aws"),))
        for command in CANARY_COMMANDS:
            with self.subTest(command):
                self.check(command, 0)

    def test_when_something_fails(self) -> None:
        """Stores and clusters that say secrets back, and lines that break."""
        store_says = f"<Error><Code>AccessDenied</Code><Message>{ECHO}</Message></Error>".replace("&", "&amp;").encode()
        cluster_says = {"kind": "Status", "message": ECHO, "reason": "Forbidden"}
        faults = {name: (server, method, {"status": status, "body": body, "times": times})
                  for name, server, method, status, body, times in (
                      ("403", self.store, "GET", 403, store_says, 99), ("400", self.store, "GET", 400, store_says, 99),
                      ("GET", self.cluster, "GET", 403, cluster_says, 99),
                      ("POST", self.cluster, "POST", 422, cluster_says, 99),
                      ("PATCH", self.cluster, "PATCH", 409, cluster_says, 1))}
        for command, names in (("controller --once --verify-urls", "403 400 GET PATCH"),
                               ("backup logs b1 --direct", "403 400 GET"), ("backup logs b1", "403 400 GET POST PATCH"),
                               ("backup describe b1", "403 GET POST"), ("download b1 -o FILE", "400 GET PATCH")):
            if command == "backup logs b1":
                self.serve("controller")
            for name in names.split():
                with self.subTest(command, fault=name):
                    if command.startswith("controller"):
                        self.ask()
                    server, method, fault = faults[name]
                    server.script(method, "/" if server is self.store else "/velero.io/", **fault)
                    self.check(command)

    def test_who_we_are(self) -> None:
        """What is wrong with credentials of every kind is said without them."""
        program = write_bytes(os.path.join(self.folder, "plugin"), f"#!/bin/sh\necho '{CANARY} {{'\nexit $1\n".encode())
        os.chmod(program, 0o700)
        plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": program, "interactiveMode": "Never"}
        for user in ({"token": CANARY}, {"username": "u", "password": CANARY}, {"tokenFile": CANARY + "\n"},
                     {"token": [CANARY]}, {"client-key-data": base64.b64encode(CANARY.encode()).decode()},
                     {"exec": {**plugin, "args": ["0"]}}, {"exec": {**plugin, "args": ["1"]}},
                     {"exec": {**plugin, "args": ["0"], "env": [{"name": "A", "value": CANARY}, {"name": 5}]}}):
            with self.subTest(user):
                path = user.get("tokenFile")
                if path:
                    user = {"tokenFile": write_bytes(os.path.join(self.folder, "token"), f"{CANARY}\0".encode())}
                self.check("backup logs b1", kubeconfig=self.kubeconfig_of(**user))
        for text in (f"[default]\naws_secret_access_key {CANARY}\n", f"{CANARY}\n", f"[default]\n{CANARY} = x\n",
                     f"[default]\naws_access_key_id = a\naws_secret_access_key = {CANARY}\n x\n"):
            with self.subTest(text):
                name = "bad-" + uuid.uuid4().hex[:6]
                self.make_secret(name, text=text)
                self.make_location(name, secret=name)
                self.make_backup(name, location=name)
                self.check(f"backup logs {name} --direct")
                self.ask(name=name)
                self.check("controller --once")

    def test_records(self) -> None:
        """Neither does `repr` tell them, nor a traceback, of what holds them."""
        clusters = [vr.load_cluster(self.kubeconfig_of(**user)) for user in (
            {"token": CANARY}, {"username": "u", "password": CANARY})]
        for record in (*clusters, *map(vr.connect, clusters), vr.Identity(token=CANARY),
                       vr.Credentials("a", CANARY, CANARY),
                       vr.request_from(vr.DOWNLOAD_REQUESTS, {"status": {"downloadURL": ECHO}})):
            self.assert_no_canary(repr(record), str(record))
        self.store.script("GET", status=403, body=ECHO, times=9)
        self.serve("admin")
        api = vr.connect(vr.load_cluster(self.kubeconfig))
        try:
            vr.stream(api, self.namespace, "BackupLog", "b1", io.BytesIO(), timeout=5)
            self.fail("the store refuses")
        except vr.Error:
            self.assert_no_canary(traceback.format_exc())


# ------------------------------------------------------------------------------------------------------------
# Demo: the main job on a machine without a cluster
# ------------------------------------------------------------------------------------------------------------

def tell(text: str) -> None:
    """Print at once: the reader follows along, and a pipe must not reorder what the commands say."""
    print(text, flush=True)


def insist(so: Any, otherwise: str) -> None:
    """End the demo unless this is so."""
    if not so:
        raise AssertionError(otherwise)


def step(stage: Stage, command: str, *expected: str) -> None:
    """Show a command, run exactly that, show its output, and insist on success and on these texts in it."""
    tell("$ " + command)
    done = stage.run("/bin/sh", "-c", command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    tell(output)
    insist(done.returncode == 0, f"`{command}` ended with exit code {done.returncode}")
    for text in expected:
        insist(text in output, f"the output of `{command}` lacks {text!r}")


def demo_commands(stage: Stage) -> None:
    """Do the main job with the controller that is running, and show one failure; no DownloadRequest is left behind."""
    for command, expected in (("backup logs nightly", [BACKUP_LOG]),
                              ("backup download nightly", ["nightly-data.tar.gz"]),
                              ("plugin get", ["velero.io/aws"]), ("version", ["Client:", "Server:"]),
                              ('backup logs orphan; echo "exit code $?"', ["error: ", "/gone ", "exit code 3"])):
        step(stage, f"python velero_requests.py {command}", *expected)
        if "download" in command:
            step(stage, "python -m tarfile --list nightly-data.tar.gz", *BACKUP_FILES)
    insist(not stage.cluster.admin.list("downloadrequests", NAMESPACE)["items"], "DownloadRequests were left behind")


def play_demo() -> None:
    """Run all steps of the demo, or raise at the first that fails."""
    command = "python velero_requests.py controller 2> controller.log"
    with set_stage() as stage:
        tell(f"# On loopback: {stage.servers()}.")
        step(stage, "python velero_requests.py manifests > crds.yaml")
        with open(os.path.join(stage.folder, "crds.yaml"), encoding="utf-8") as file:
            stage.cluster.install_crds(yaml.safe_load_all(file))
        add_location(stage)
        add_backup(stage, "nightly", BACKUP_LOG.encode())
        add_backup(stage, "orphan", BACKUP_LOG.encode(), location="gone")
        tell("# The demo has applied crds.yaml and added what Velero leaves behind: a storage location with its\n"
             "# Secret, the backup nightly, and the backup orphan, whose storage location does not exist.\n"
             f"\n$ {command} &\n")
        with serving(stage, "/bin/sh", "-c", "exec " + command) as controller:
            demo_commands(stage)
            tell("$ kill %1")
            code = stop_process(controller)
        step(stage, "cat controller.log", "serving", "stopped")
        insist(not code, f"the controller left with exit code {code}")


def demo() -> int:
    """Show the main job on loopback, and return 0 only when every step did what it should."""
    try:
        play_demo()
    except (AssertionError, RuntimeError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    tell("# Every step did what it should; all of it is stopped and removed.")
    return 0


STRANGER = b"raise SystemExit('a stranger was run')"


class TestStart(FolderCase):
    """What runs is what was read: nobody else's code gets in, wherever it lies."""

    def start(self, *argv: str, folder: str = "", **options: Any) -> Result:
        """Run a command of the system, in the module's folder unless it is to run in another one."""
        done = subprocess.run(argv, cwd=folder or os.path.dirname(MODULE), stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60, check=False, **options)
        return Result(done.returncode, done.stdout, done.stderr.decode())

    def lay_strangers(self, *names: str) -> None:
        for name in names:
            write_bytes(os.path.join(self.folder, name + ".py"), STRANGER)

    def test_nothing_in_the_current_folder_is_imported(self) -> None:
        """The module comes from beside the script, the standard library from where it is; `-m` is a module already."""
        self.lay_strangers("velero_requests", "json", "argparse", "ctypes")
        for options, folder in (((MODULE,), self.folder), (("-I", MODULE), self.folder),
                                (("-u", "-W", "error::ResourceWarning", MODULE), self.folder),
                                (("-m", "velero_requests"), "")):
            with self.subTest(options=options):
                result = self.start(sys.executable, *options, "download", folder=folder)
                self.assertEqual((2, b""), (result.code, result.out), result.err)
                self.assertIn("NAME", result.err)

    def test_nothing_beside_the_file_is_imported(self) -> None:
        """Neither source nor what is compiled, not even of the file itself: what runs is what was read."""
        script = os.path.join(self.folder, "velero_requests.py")
        shutil.copy(MODULE, script)
        self.lay_strangers("stranger", "logging")
        stranger = os.path.join(self.folder, "stranger.py")
        for name in ("argparse", "signal", "yaml", "json"):
            py_compile.compile(stranger, os.path.join(self.folder, name + ".pyc"))
        py_compile.compile(stranger, importlib.util.cache_from_source(script),
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        for words, code in (("controller", 1), ("backup logs b1", 1), ("version --client-only", 0)):
            with self.subTest(words):
                result = self.start(sys.executable, script, *words.split(), "--kubeconfig", "/dev/null")
                self.assertEqual((code, False), (result.code, "stranger" in result.err), result.err)

    def test_the_current_folder_is_gone(self) -> None:
        """What starts at a current folder that was deleted is refused with that; what does not goes on."""
        for words, code, said in (("download b1", 1, "error: the current folder cannot be used"),
                                  ("backup get --kubeconfig x", 1, "error: the current folder"),
                                  ("version --client-only", 0, "")):
            with self.subTest(words):
                folder = tempfile.mkdtemp()
                result = self.start(sys.executable, MODULE, *words.split(), folder=folder,
                                    preexec_fn=functools.partial(os.rmdir, folder))
                self.assertEqual((code, said), (result.code, result.err[:len(said)]))

    @unittest.skipUnless(shutil.which("make"), "there is no make")
    def test_installed(self) -> None:
        """The installed command is compiled once, imports nothing from the current folder, and says what is missing."""
        self.lay_strangers("velero_requests", "json", "runpy", "yaml")
        with tempfile.TemporaryDirectory() as prefix:
            made = self.start("make", "--silent", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}")
            self.assertEqual(0, made.code, made.err)
            command = os.path.join(prefix, "bin", "velero_requests.py")
            self.assertTrue(os.access(command, os.X_OK))
            self.assertTrue(read_bytes(command).startswith(f"#!{sys.executable}\n".encode()))
            result = self.start(sys.executable, "-v", command, "download", folder=self.folder)
            self.assertEqual((2, b"", False), (result.code, result.out, "wrote" in result.err), result.err)
            self.assertRegex(result.err, r"velero_requests\.cpython-\d+\.pyc matches")
            result = self.start(sys.executable, "-S", command, "plugin", "get", "--kubeconfig", self.kubeconfig(),
                                folder=self.folder)
            self.assertEqual((1, b""), (result.code, result.out), result.err)
            self.assertRegex(result.err, r"\Aerror: the package (urllib3|yaml) is missing\nhint: ")
            self.start("make", "uninstall", f"PREFIX={prefix}")
            self.assertEqual([[], []], [os.listdir(os.path.join(prefix, name)) for name in ("bin", "lib")])

    def kubeconfig(self) -> str:
        """A kubeconfig as JSON, which needs no package to be read."""
        config = {"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}], "current-context": "c",
                  "contexts": [{"name": "c", "context": {"cluster": "c"}}]}
        return write_bytes(os.path.join(self.folder, "config"), json.dumps(config).encode())

    def test_a_package_that_is_missed_late(self) -> None:
        """Where nothing was imported yet, the first use of a package that is missing is the same sentence."""
        code = ("import sys, velero_requests as v\n"
                "def missing(*_): raise ModuleNotFoundError('no', name='yaml')\n"
                "v.Options.api = missing; sys.exit(v.main(['plugin', 'get']))")
        result = self.start(sys.executable, "-c", code)
        self.assertEqual((1, "error: the package yaml is missing", 2),
                         (result.code, result.err.split("\n")[0], result.err.count("\nhint: ")))
        self.assertIn("apt-get install python3-urllib3 python3-yaml", result.err)

    @unittest.skipUnless(shutil.which("make"), "there is no make")
    def test_without_the_packages(self) -> None:
        """make says in one sentence what is missing and how to get it, and installs nothing."""
        for target in ("install", "test-alone"):
            result = self.start("make", "--silent", target, f"PREFIX={self.folder}", f"PYTHON={sys.executable} -S")
            self.assertEqual((2, b"", []), (result.code, result.out, os.listdir(self.folder)), result.err)
            for words in ("error: the package urllib3 is missing\n", "apt-get install python3-urllib3 python3-yaml",
                          "dnf install", "apk add", "pip install"):
                self.assertEqual(1, result.err.count(words), result.err)

    @unittest.skipUnless(shutil.which("make"), "there is no make")
    def test_tests_run_as_on_a_users_machine(self) -> None:
        """make takes the variables away under which streams and modules are others than those of users."""
        result = self.start("make", "-f", "-", "seen", input=b"include Makefile\nseen:\n\t@env\n",
                            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        self.assertIn(b"PATH=", result.out)
        self.assertNotRegex(result.out, b"PYTHON(UNBUFFERED|DONTWRITEBYTECODE)=")

    def test_nohup_is_respected(self) -> None:
        """A command started with SIGHUP ignored goes on ignoring it; one that ended left signals as before."""
        code = ("import signal, velero_requests as v\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
                "v.Options.run_manifests = None; command = v.COMMAND_OF['manifests']\n"
                "show = lambda _: print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, "
                "signal.getsignal(signal.SIGTERM) == v.terminate)\n"
                "v.COMMAND_OF['manifests'] = command._replace(run=show)\n"
                "v.main(['manifests']); print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)")
        self.assertEqual(b"True True\nTrue\n", self.start(sys.executable, "-c", code).out)


class TestDemo(unittest.TestCase):
    """What the README shows first, as a newcomer runs it."""

    def test_it_plays(self) -> None:
        """`--demo` ends well; `make demo` runs the same."""
        environment = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
        done = subprocess.run([sys.executable, os.path.abspath(__file__), "--demo"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120, check=False, env=environment)
        self.assertEqual(0, done.returncode, done.stdout.decode())
        self.assertIn(b"Every step did what it should", done.stdout)


# ------------------------------------------------------------------------------------------------------------
# Benchmark: figures beside what is expected and what Velero 1.18.1 does on the same kind of machine (2 cores)
# ------------------------------------------------------------------------------------------------------------

REQUESTS, BURST, WRITERS, PATIENCE = 200, 1000, 4, 60  # the last one in seconds: the end of every wait
ARCHIVE_MIB, LOG_MB, ROUNDS = 1024, 400, 5
TIMED: Tuple[Tuple[str, float, str, Optional[float], str], ...] = (
    # name, milliseconds expected, velero's, share of the velero CLI's time in the same run, words
    ("--help", 60, "-", None, "--help"),
    ("plugin get", 0.38 * 303, "303 ms", 0.38, "plugin get"),
    ("describe --details", 0.8 * 183, "183 ms", 0.8, "backup describe described --details"),
    ("backup logs, 5.6 MB", 125, "125 ms", 1.0, "backup logs chatty"))
LINE = ('time="2026-05-01T03:{:02}:{:02}Z" level=info msg="Backing up item" backup=velero/wordy logSource='
        '"pkg/backup/item_backupper.go:{}" name=settings-{:07} namespace=shop-{} resource=configmaps\n')
FIRST_URL = """
import time
from datetime import datetime, timedelta, timezone
import velero_requests as ours
location = ours.Location("default", "aws", "bench", region="us-east-1")
credentials = ours.Credentials("AKIABENCH", "bench-secret")
begun = time.perf_counter()
address = ours.object_address(location, "backups/b/b-logs.gz")
url = ours.presign(address, credentials, datetime.now(timezone.utc), timedelta(minutes=10))
print(time.perf_counter() - begun)
"""


def amount(value: float, unit: str) -> str:
    """Return a number in three digits or so with its unit."""
    return f"{value:,.{0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2}f} {unit}".rstrip()


def figure(name: str, measured: float, unit: str = "", limit: Optional[float] = None, velero: str = "-",
           at_least: bool = False) -> None:
    """Print a line of the table; `limit` is the most (or with `at_least` the least) that is expected."""
    expected, verdict = "-", "-"
    if limit is not None:
        expected = (">= " if at_least else "<= ") + amount(limit, unit)
        verdict = "ok" if (measured >= limit if at_least else measured <= limit) else "falls short"
    tell(f"{name:<46}{amount(measured, unit):>12}{expected:>13}{velero:>12}  {verdict}")


def in_turns(rounds: int, *actions: Callable[[], float]) -> List[List[float]]:
    """Return the times of each action in ascending order, taken in turns so that a busy machine slows all alike."""
    taken = [[action() for action in actions] for _ in range(rounds)]
    return [sorted(times) for times in zip(*taken)]


def presign_figures() -> None:
    """Compare in alternating rounds over keys that were never signed before."""
    location = vr.Location("default", BUCKET, region="us-east-1", s3_url="http://127.0.0.1:9000",
                           path_style=True)
    credentials, life = vr.Credentials("AKIABENCH", "bench-secret"), timedelta(minutes=10)

    def ours(key: str) -> str:
        return vr.presign(vr.object_address(location, key), credentials, datetime.now(timezone.utc), life)

    def rate_of(sign: Callable[[str], str], count: int) -> float:
        keys = [f"backups/{uuid.uuid4().hex}/nightly-logs.gz" for _ in range(count)]
        begun = time.perf_counter()
        for key in keys:
            sign(key)
        return count / (time.perf_counter() - begun)
    if not HAS_BOTOCORE:
        figure("pre-signing, URLs a second", rate_of(ours, 5000), "/s")
        tell("(pre-signing: not compared, botocore is not installed; `make bench` installs it)")
        return
    import botocore.config
    client = botocore.session.Session().create_client(
        "s3", region_name="us-east-1", endpoint_url="http://127.0.0.1:9000", aws_access_key_id="AKIABENCH",
        aws_secret_access_key="bench-secret", config=botocore.config.Config(
            signature_version="s3v4", s3={"addressing_style": "path"}))

    def botocores(key: str) -> str:
        return str(client.generate_presigned_url("get_object", {"Bucket": BUCKET, "Key": key}, 600))
    rounds = [(rate_of(ours, 3000), rate_of(botocores, 300)) for _ in range(9)]
    mine, theirs, ratio = (statistics.median(column) for column in zip(*((*row, row[0] / row[1]) for row in rounds)))
    figure("pre-signing, URLs a second", mine, "/s")
    figure("pre-signing by botocore", theirs, "/s")
    figure("pre-signing, ours against botocore", ratio, "x", min(20, 60000 / theirs), at_least=True)


class Bench:
    """What is measured with one controller on one stage."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.admin = stage, stage.cluster.admin
        self.velero = shutil.which("velero")

    # -- what there is to ask for ----------------------------------------------------------------------------

    def furnish(self) -> None:
        """Install the CRDs, a location, and the backups that the commands are timed with."""
        done = self.stage.run(sys.executable, "velero_requests.py", "manifests", stdout=subprocess.PIPE)
        self.stage.cluster.install_crds(yaml.safe_load_all(done.stdout))
        add_location(self.stage)
        add_backup(self.stage, "nightly", BACKUP_LOG.encode())
        add_backup(self.stage, "chatty", "".join(
            f'time="2024-05-01T03:00:00Z" level=info msg="Backing up item shop/settings-{number:06}" '
            f'backup=velero/chatty\n' for number in range(54400)).encode())
        self.add_finished("described", warnings=1, backupItemOperationsAttempted=1, backupItemOperationsCompleted=1)
        shapes: Dict[str, Any] = {
            "BackupResults": {"warnings": {"velero": ["slow"]}, "errors": {}},
            "BackupResourceList": {"v1/ConfigMap": [f"shop/settings-{number}" for number in range(500)]}}
        for artifact in vr.TARGETS.values():
            if artifact.owner == vr.BACKUPS and artifact.gunzip:
                self.stage.store.put(BUCKET, artifact.key.format(name="described"),
                                     gzip.compress(json.dumps(shapes.get(artifact.kind, [])).encode()))

    def add_finished(self, name: str, **status: int) -> None:
        self.admin.create("backups", {
            "kind": "Backup", "metadata": {"name": name}, "spec": {"storageLocation": "default"},
            "status": {"phase": "Completed", **status}}, NAMESPACE)

    def add_wordy_backup(self) -> None:
        """Leave a backup with a log of 400 MB, one gzip member as Velero writes it."""
        self.add_finished("wordy")
        packer, log, size, number = zlib.compressobj(6, zlib.DEFLATED, 31), bytearray(), 0, 0
        while size < LOG_MB * 1_000_000:
            text = "".join(LINE.format(at // 60 % 60, at % 60, at * 7919 % 997, at * 2654435761 % 1000003, at % 17)
                           for at in range(number, number + 20_000)).encode()
            number, size = number + 20_000, size + len(text)
            log += packer.compress(text)
        self.stage.store.put(BUCKET, "backups/wordy/wordy-logs.gz", bytes(log + packer.flush()))

    # -- the controller --------------------------------------------------------------------------------------

    def create_request(self, client: Admin) -> str:
        """Create one DownloadRequest and return its name."""
        return str(client.create("downloadrequests", {
            "kind": "DownloadRequest", "metadata": {"generateName": "bench-"},
            "spec": {"target": {"kind": "BackupLog", "name": "nightly"}}}, NAMESPACE)["metadata"]["name"])

    def answers(self, client: Admin) -> Iterator[Tuple[str, float]]:
        """Return an iterator over name and instant of each request that has got its URL from now on."""
        version = client.list("downloadrequests", NAMESPACE, limit=1)["metadata"]["resourceVersion"]
        events = client.watch("downloadrequests", NAMESPACE, resourceVersion=version, timeoutSeconds=PATIENCE)
        return ((event["object"]["metadata"]["name"], time.time()) for event in events
                if (event["object"].get("status") or {}).get("downloadURL"))

    def response_times(self, count: int) -> List[Tuple[float, float]]:
        """Return milliseconds until a watch shows the URL, one request at a time: since created, since sent."""
        client, times = self.stage.cluster.client("admin"), []
        answers = self.answers(client)
        for _ in range(count):
            sent = time.time()
            name = self.create_request(client)
            created = time.time()
            at = next(at for answered, at in answers if answered == name)
            times.append((1000 * (at - created), 1000 * (at - sent)))
        self.remove_requests()
        return times

    def remove_requests(self) -> None:
        """Delete the DownloadRequests of a measurement, so that the next one starts from nothing."""
        self.admin.call("DELETE", resource_path("downloadrequests", NAMESPACE))

    def burst_times(self) -> Tuple[float, float]:
        """Return the seconds until the writers had created all requests, and until all were answered.

        The writers are threads: four processes on two cores took longer to create the same, not shorter.
        """
        def write(_: int) -> float:
            client = self.stage.cluster.client("admin")
            for _ in range(BURST // WRITERS):
                self.create_request(client)
            return time.time()
        answers, begun = self.answers(self.stage.cluster.client("admin")), time.time()
        with ThreadPoolExecutor(WRITERS) as pool:
            ends = pool.map(write, range(WRITERS))
            answered: Dict[str, float] = {}
            while len(answered) < BURST:
                try:
                    answered.setdefault(*next(answers))
                except StopIteration:
                    raise RuntimeError(f"only {len(answered)} of {BURST} requests were answered within {PATIENCE} s"
                                       ) from None
            created = max(ends)
        self.remove_requests()
        return created - begun, max(answered.values()) - begun

    def requests_seen(self) -> int:
        """Return how many requests for velero.io the API server has counted; a real one counts ended watches."""
        if self.stage.cluster.kind == "fake":
            return int(self.stage.cluster.count(path_part="/apis/velero.io/"))  # type: ignore[attr-defined]
        text = self.admin.raw("GET", "/metrics").data.decode()
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in text.splitlines()
                   if line.startswith("apiserver_request_total{") and 'group="velero.io"' in line)

    def memory_figure(self, name: str, process: subprocess.Popen[bytes], field: str, limit: Optional[float] = None,
                      velero: str = "-") -> None:
        """Print VmRSS or VmHWM of a process, where the kernel tells them."""
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            kib = next(int(line.split()[1]) for line in file if line.startswith(field + ":"))
            figure(name, kib / 1024, "MiB", limit, velero)

    def controller_figures(self, controller: subprocess.Popen[bytes]) -> None:
        """Measure the controller alone: idle, request by request, in a burst, and idle again."""
        self.response_times(1)  # waits until it serves
        self.memory_figure("controller memory, idle", controller, "VmRSS", 33, "82 MiB")
        since_created, since_sent = zip(*self.response_times(REQUESTS))
        figure(f"request created -> URL, median of {REQUESTS}", statistics.median(since_created), "ms", 8, "33 ms")
        figure("request created -> URL, p95", sorted(since_created)[int(0.95 * REQUESTS)], "ms", None, "45 ms")
        figure("create sent -> URL, median", statistics.median(since_sent), "ms")
        created, answered = self.burst_times()
        figure(f"burst: {BURST} requests created by {WRITERS} writers in", created, "s", None, "1.7 s")
        figure("burst: all answered after", answered, "s", None, "33.7 s")
        figure("burst: answered after / created in", answered / created, "x", 2, "19.8 x")
        self.memory_figure("controller memory, after the burst", controller, "VmRSS", 36, "89 MiB")
        self.memory_figure("controller memory, peak so far", controller, "VmHWM")
        before = self.requests_seen()
        if not before:
            raise RuntimeError("the API server does not count its requests, so none would prove nothing")
        time.sleep(30)
        figure("idle: API requests a minute", (self.requests_seen() - before) * 2, "", 4, "8")

    # -- commands --------------------------------------------------------------------------------------------

    def seconds_of(self, *command: str) -> float:
        """Return the wall time of a whole command, from exec to exit; it must succeed."""
        talk = subprocess.DEVNULL if command[0] == self.velero else None  # it misses kinds we do without
        begun = time.perf_counter()
        process = self.stage.start(*command, stdout=subprocess.DEVNULL, stderr=talk)
        guard = threading.Timer(PATIENCE, process.kill)  # wait(timeout=) looks only every 50 ms
        guard.start()
        code = process.wait()
        taken = time.perf_counter() - begun
        guard.cancel()
        if code:
            raise RuntimeError(f"`{' '.join(command)[:60]}` failed with exit code {code}")
        return taken

    def command_figures(self) -> None:
        """Measure whole commands in turns: installed, as a script that is compiled at each start, and velero's own."""
        prefix = os.path.join(self.stage.folder, "installed")
        subprocess.run(["make", "--silent", "install", f"PREFIX={prefix}", f"PYTHON={sys.executable}"], check=True,
                       timeout=PATIENCE, cwd=FOLDER)
        programs = [(sys.executable, os.path.join(prefix, "bin", "velero_requests.py")),
                    (sys.executable, "velero_requests.py"), *([(self.velero,)] if self.velero else [])]
        for name, limit, velero, share, words in TIMED:
            installed, script, *theirs = (1000 * statistics.median(times) for times in in_turns(2 * ROUNDS, *(
                functools.partial(self.seconds_of, *program, *words.split()) for program in programs)))
            figure(f"{name}, median of {2 * ROUNDS}", installed, "ms", limit, velero)
            figure("the same as a script", script, "ms")
            for taken in theirs:
                figure("the same by the velero CLI", taken, "ms")
                figure("ours against the velero CLI", installed / taken, "x", share)
                figure("ours as a script against the velero CLI", script / taken, "x")
        if not self.velero:
            tell("(commands: not compared, there is no velero on the PATH)")

    # -- downloads -------------------------------------------------------------------------------------------

    def peak_memory(self, *command: str) -> float:
        """Return the most that a command has resident, in MiB, once it has run for half a second."""
        process = self.stage.start(*command, stdout=subprocess.DEVNULL)
        begun, peak = time.monotonic(), 0.0
        while process.poll() is None and time.monotonic() < begun + PATIENCE:
            peak = max(peak, resident(process.pid)) if time.monotonic() > begun + 0.5 else peak
            time.sleep(0.02)
        if stop_process(process) or not peak:
            raise RuntimeError(f"`{' '.join(command)[:60]}` failed, or was over before it was looked at")
        return peak

    def compared(self, name: str, ours: Tuple[str, ...], others: Dict[str, Tuple[str, ...]],
                 limits: Dict[str, float], before: Callable[[], None] = lambda: None) -> None:
        """Print the best of some rounds of our command, and of the others in turns with it, and the ratios."""
        def timed(*command: str) -> float:
            before()
            return self.seconds_of(*command)
        best, *theirs = (times[0] for times in in_turns(ROUNDS, *(
            functools.partial(timed, *command) for command in (ours, *others.values()))))
        figure(f"{name}, best of {ROUNDS}", best, "s")
        for other, taken in zip(others, theirs):
            figure(f"the same by {other}", taken, "s")
            figure(f"ours against {other}", best / taken, "x", limits.get(other))

    def download_figures(self) -> None:
        """Compare with curl and velero in the same run; a fake store would measure itself."""
        store, target = self.stage.store, os.path.join(self.stage.folder, "large.tar.gz")
        if store.kind != "real":
            tell("(downloads: not measured, there is no real S3 server)")
            return
        for name, put in (("large", put_in_parts), ("single", put_members)):
            self.add_finished(name)
            put(store, BUCKET, f"backups/{name}/{name}.tar.gz", gzip.compress(noise(MIB), 1), ARCHIVE_MIB)
        self.add_wordy_backup()

        def curl(key: str, then: str) -> Tuple[str, ...]:
            url = presigned_url(f"{store.url}/{BUCKET}/{key}", store.access_key, store.secret_key, store.region)
            return "sh", "-c", f'curl -sf "$1" {then}', "sh", url, target

        def ours(name: str) -> Tuple[str, ...]:
            return sys.executable, "velero_requests.py", "download", name, "-o", target, "--force", "--quiet"

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(target)
        self.seconds_of(*ours("large"))        # warms the cache
        velero: Dict[str, Tuple[str, ...]] = {}
        if self.velero:
            velero = {"velero": (self.velero, "backup", "download", "large", "-o", target)}
        self.compared("1 GiB stored in parts into a file", ours("large"), {
            "curl": curl("backups/large/large.tar.gz", '-o "$2"'),
            "curl && sync": curl("backups/large/large.tar.gz", '-o "$2" && sync "$2"'), **velero},
            {"curl": 1.2, "velero": 1.0}, remove)
        self.compared("1 GiB where the ETag is an MD5", ours("single"), {
            "curl": curl("backups/single/single.tar.gz", '-o "$2"')}, {}, remove)
        figure("1 GiB, memory while it runs", self.peak_memory(*ours("large")), "MiB", PEAK)
        remove()
        log = (sys.executable, "velero_requests.py", "backup", "logs", "wordy")
        if self.velero:
            velero = {"velero": (self.velero, "backup", "logs", "wordy")}
        self.compared(f"{LOG_MB} MB of log text", log, {
            "curl | gzip -dc": curl("backups/wordy/wordy-logs.gz", "| gzip -dc > /dev/null"), **velero},
            {"curl | gzip -dc": 0.9, "velero": 1.0})
        figure("log text, memory while it runs", self.peak_memory(*log), "MiB", PEAK)


def bench() -> int:
    """Print the table as it is measured; falling short is a line in it, not a failure."""
    with set_stage() as stage:
        tell(f"{stage.servers()}; Python {sys.version.split()[0]}, {os.cpu_count()} cores\n"
             "Velero: 1.18.1 against the real servers on 2 cores\n")
        tell(f"{'figure':<46}{'measured':>12}{'expected':>13}{'Velero':>12}  verdict")
        try:
            measured = Bench(stage)
            measured.furnish()
            with open(os.path.join(stage.folder, "controller.log"), "wb") as log, serving(
                    stage, sys.executable, "velero_requests.py", "controller", stderr=log) as controller:
                measured.controller_figures(controller)
                measured.command_figures()
                measured.download_figures()
            presign_figures()
            firsts = [subprocess.run([sys.executable, "-c", FIRST_URL], cwd=FOLDER, stdout=subprocess.PIPE, check=True,
                                     timeout=PATIENCE).stdout for _ in range(9)]
            figure("first URL once there are credentials", statistics.median(map(float, firsts)) * 1000, "ms", 2)
        except (AssertionError, RuntimeError, subprocess.SubprocessError) as error:
            print(f"bench: could not go on: {error}", file=sys.stderr)
            return 1
    return 0


def main(argv: List[str]) -> None:
    """Run the demo, the benchmark, or like any test file the tests."""
    play = {"--demo": demo, "--bench": bench}.get(argv[0] if len(argv) == 1 else "")
    if not play:
        unittest.main()
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # or the servers would stay behind
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(play())
    except KeyboardInterrupt:
        sys.exit(130)


# What waits for many seconds begins first, so that the others fill the time; what measures comes last and alone.
LONG_WAITS = ("real servers", "TestDownloadHopeless", "TestOutageReal", "TestWatchFaults", "TestContractFaultsStore",
              "TestProxyOfTheEnvironment", "TestKubeconfigLikeKubectl", "TestSoak", "TestRights", "TestCanary",
              "TestDemo")
MEASURES = ("TestTimingLaw", "TestLeaks", "TestDownloadMemory")


def group_of(case: type) -> str:
    """Return what runs in one process: a class, for it shares its servers, or all that needs the real servers."""
    if case.__name__ in MEASURES:
        return "measures"
    with_real_servers = "Real" in case.__name__ or case is TestServersAgree or issubclass(case, VeleroWorld)
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
