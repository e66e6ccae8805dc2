"""KubeArmor policies: what each part of them decides, in the engine and in the twin."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.machine import Machine
from vedette.core import calls, documents, layout
from vedette.core.fields import AF_INET, AF_UNIX
from vedette.core.kubearmor import (
    CLASSES,
    ENTRY_KEYS,
    Decision,
    Host,
    Policies,
    load_policies,
    pattern_regex,
    priority,
    tables,
)
from vedette.core.patterns import PatternError, compile_regex
from vedette.core.rules import Template
from vedette.core.signal import PRIORITIES

ROOT = Path(__file__).parents[2]
CORPUS = ROOT.parent / "shared/corpora/kubearmor"
O_WRONLY = 1
HOST = Host("web-1", {"app": "demo"})
BLOCKING = Host("web-1", postures=dict.fromkeys(CLASSES, "block"))


def policy(spec: str, name: str = "p", kind: str = "KubeArmorHostPolicy") -> str:
    body = textwrap.indent(textwrap.dedent(spec), "  ")
    return (
        f"apiVersion: security.kubearmor.com/v1\nkind: {kind}\n"
        f"metadata:\n  name: {name}\nspec:\n{body}\n"
    )


def load(*texts: str, host: Host | None = HOST) -> Policies:
    found = [
        (f"{number}.yaml", node)
        for number, text in enumerate(texts)
        for node in documents.compose(text.encode(), f"{number}.yaml")
    ]
    return load_policies(found, host)


def clean(*texts: str, host: Host | None = HOST) -> Policies:
    made = load(*texts, host=host)
    assert [str(f) for f in made.findings if f.severity == "error"] == []
    return made


class Judge:
    """What is decided about events; allowed ones, which make no signals, included."""

    def __init__(self, policies: Policies) -> None:
        self.decisions = policies.decisions
        self.machine = Machine([replace(rule, enabled=True) for rule in policies.rules])

    def _of(self, names: set[str]) -> list[Decision]:
        return sorted((self.decisions[name] for name in names), key=lambda d: (d.policy, d.outcome))

    def run(self, path: bytes, *arguments: bytes, **values: Any) -> list[str]:
        return [d.outcome for d in self._of(self.machine.run(path, *arguments, **values))]

    def open(self, path: bytes, flags: int = 0, **values: Any) -> list[str]:
        return [d.outcome for d in self._of(self.machine.open(path, flags, **values))]

    def __call__(self, kind: str, **values: Any) -> list[str]:
        return [d.outcome for d in self._of(self.machine(kind, **values))]


def judge(spec: str, host: Host | None = HOST) -> Judge:
    return Judge(clean(policy(spec), host=host))


def warnings(policies: Policies) -> list[str]:
    return [str(f) for f in policies.findings if f.severity == "warning"]


def the_error(*texts: str) -> str:
    made = load(*texts)
    (found,) = [f for f in made.findings if f.severity == "error"]
    assert not made.rules
    return str(found)


def test_a_path_is_the_file_that_was_asked_for_or_the_one_that_runs() -> None:
    of = judge("process: {matchPaths: [{path: /bin/su}], action: Audit}")
    assert of.run(b"/bin/su") == ["audit"]
    assert of.run(b"/usr/bin/python3", filename=b"/bin/su") == ["audit"]
    assert of.run(b"/bin/sudo") == []
    assert of.run(b"/bin/su", result=-13) == []
    assert of.open(b"/bin/su") == []


def test_a_name_is_that_of_the_executable() -> None:
    of = judge("process: {matchPaths: [{execname: nc}]}")
    assert of.run(b"/opt/x/nc") == ["would_block"]
    assert of.run(b"/opt/x/ncat") == []
    assert of.run(b"/opt/nc/x") == []


@pytest.mark.parametrize(
    ("recursive", "path", "fits"),
    [
        (False, b"/opt/x", True), (False, b"/opt/d/x", False), (False, b"/opt", False),
        (True, b"/opt/x", True), (True, b"/opt/d/x", True), (True, b"/optional/x", False),
    ],
)  # fmt: skip
def test_directories(recursive: bool, path: bytes, fits: bool) -> None:
    spec = f"matchDirectories: [{{dir: /opt/, recursive: {str(recursive).lower()}}}]"
    of = judge(f"{{process: {{{spec}}}, file: {{{spec}}}}}")
    assert of.run(path) == ["would_block"] * fits
    assert of.open(path) == ["would_block"] * fits


def test_the_root_is_a_directory() -> None:
    of = judge("file: {matchDirectories: [{dir: /}]}")
    assert of.open(b"/x") == ["would_block"]
    assert of.open(b"/x/y") == []


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/*/nc", b"/bin/nc", True), ("/*/nc", b"/usr/bin/nc", False), ("/*/nc", b"//nc", False),
        ("/**/.bashrc", b"/home/ann/.bashrc", True), ("/**/.bashrc", b"/.bashrc", False),
        ("/tmp/**", b"/tmp/a/b", True), ("/tmp/**", b"/tmp/", False),
        ("/etc/*.conf", b"/etc/.conf", True), ("/etc/*.conf", b"/etc/a/b.conf", False),
        ("/dev/tty?", b"/dev/tty1", True), ("/dev/tty?", b"/dev/tty", False),
        ("/dev/tty[0-3]", b"/dev/tty3", True), ("/dev/tty[0-3]", b"/dev/tty4", False),
        ("/dev/tty[^0-3]", b"/dev/tty4", True), ("/dev/tty[^0-3]", b"/dev/tty/", False),
        ("/{bin,sbin}/x", b"/sbin/x", True), ("/{bin,sbin}/x", b"/lib/x", False),
        (r"/a\*", b"/a*", True), (r"/a\*", b"/ab", False), ("/a.b", b"/axb", False),
        ("/a,b}", b"/a,b}", True), ("/x[", b"/x[", True),
    ],
)  # fmt: skip
def test_patterns_are_those_of_apparmor(pattern: str, path: bytes, fits: bool) -> None:
    assert (compile_regex(pattern_regex(pattern)).fullmatch(path) is not None) == fits


def test_a_brace_that_stays_open_is_an_error() -> None:
    with pytest.raises(PatternError):
        pattern_regex("/{a,b")
    assert "pattern: a { that is never closed" in the_error(
        policy("file: {matchPatterns: [{pattern: '/{a'}]}")
    )


def test_a_source_is_the_parent_of_what_runs_and_else_the_process_itself() -> None:
    of = judge(
        """\
        process: {matchPaths: [{path: /bin/id, fromSource: [{path: /usr/bin/bash}]}]}
        file: {matchPaths: [{path: /etc/x, fromSource: [{path: /usr/bin/cat}, {path: /bin/y}]}]}
        network: {matchProtocols: [{protocol: TCP, fromSource: [{path: /usr/bin/cat}]}]}
        """
    )
    assert of.open(b"/etc/x") == ["would_block"]
    tcp = {"family": AF_INET, "l4proto": 6, "socktype": 1}
    assert of("connect", **tcp) == ["would_block"]
    assert of.open(b"/etc/x", pid=5) == of("connect", pid=5, **tcp) == []
    assert of.run(b"/bin/id") == ["would_block"]
    assert of.run(b"/bin/id", pid=7, ppid=6) == []


@pytest.mark.parametrize(
    ("protocol", "l4proto", "socktype"),
    [("tcp", 6, 1), ("UDP", 17, 2), ("icmp", 1, 2), ("raw", 1, 3)],
)
def test_protocols(protocol: str, l4proto: int, socktype: int) -> None:
    of = judge(f"network: {{matchProtocols: [{{protocol: {protocol}}}], action: Audit}}")
    values = {"family": AF_INET, "l4proto": l4proto, "socktype": socktype}
    assert of("connect", **values) == of("bind", **values) == ["audit"]
    assert of("connect", **(values | {"l4proto": 132, "socktype": 5})) == []
    assert of("connect", family=AF_UNIX, path=b"/run/x") == []
    kind = socktype | 0o2000000
    assert of("socket", arg0=AF_INET, arg1=kind, arg2=l4proto, result=3) == ["audit"]
    assert of("socket", arg0=AF_INET, arg1=5, arg2=132, result=3) == []
    assert of("socket", arg0=AF_UNIX, arg1=1, arg2=0, result=3) == []


OWNED = {"owner_flags": layout.OWNER_KNOWN | layout.OWNER_IS_USER}
FOREIGN = {"owner_flags": layout.OWNER_KNOWN}


def test_readers_and_owners_pass() -> None:
    of = judge(
        """\
        file:
          matchPaths:
            - {path: /r, readOnly: true}
            - {path: /o, ownerOnly: true}
            - {path: /ro, readOnly: true, ownerOnly: true}
        """
    )
    assert of.open(b"/r") == []
    assert of.open(b"/r", O_WRONLY) == ["would_block"]
    assert of.open(b"/o", O_WRONLY, **OWNED) == []
    assert of.open(b"/o", uid=0, **FOREIGN) == of.open(b"/o", uid=0) == ["would_block"]
    assert of.open(b"/ro", **OWNED) == []
    assert of.open(b"/ro", O_WRONLY, **OWNED) == of.open(b"/ro", **FOREIGN) == ["would_block"]


def test_the_owner_of_an_executable_is_its_own() -> None:
    of = judge("process: {matchPaths: [{path: /o, ownerOnly: true}]}")
    assert warnings(clean(policy("process: {matchPaths: [{path: /o, ownerOnly: true}]}"))) == []
    assert of.run(b"/o", **OWNED) == []
    # The effective user that a setuid bit makes of a process owns nothing more.
    assert of.run(b"/o", uid=0, **FOREIGN) == ["would_block"]


def test_of_calls_without_a_file_the_owner_is_asked_for_when_policies_are_loaded(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x"
    file.touch()
    uid = file.stat().st_uid
    owners: dict[str, int | None] = {"/o": 1000}
    made = clean(
        policy("file: {matchPaths: [{path: /o, ownerOnly: true}, {path: /n, ownerOnly: true}]}"),
        policy(f"file: {{matchPaths: [{{path: {file}, ownerOnly: true}}]}}", "q"),
        host=Host("h", owner=lambda path: owners.get(path, uid if path == str(file) else None)),
    )
    of = Judge(made)

    def unlinks(path: bytes, uid: int) -> list[str]:
        return of("unlink", path=path, uid=uid)

    assert unlinks(b"/o", 1000) == unlinks(b"/n", 0) == []
    assert unlinks(b"/o", 0) == unlinks(b"/n", 1000) == ["would_block"]
    assert unlinks(str(file).encode(), uid) == []
    assert of.open(b"/o", uid=1000, **FOREIGN) == ["would_block"]
    found = [text for text in warnings(made) if "ownerOnly" in text]
    assert len(found) == 3 and "uid 1000, its owner when this was loaded" in found[0]
    assert "no file is there to ask" in found[1]


def test_only_known_arguments_pass() -> None:
    of = judge("process: {matchPaths: [{path: /bin/python, allowedArgs: [-m, random]}]}")
    assert of.run(b"/bin/python", b"python", b"-m", b"random") == []
    assert of.run(b"/bin/python") == []
    assert of.run(b"/bin/python", b"python", b"-m", b"http") == ["would_block"]
    assert of.run(b"/bin/python", b"python", b"-mrandom") == ["would_block"]


def test_one_allow_makes_an_allow_list() -> None:
    spec = "process: {matchPaths: [{path: /bin/ls}], action: Allow}"
    for host, outcome in ((HOST, "audit"), (BLOCKING, "would_block"), (None, "audit")):
        of = judge(spec, host)
        assert of.run(b"/bin/ls") == ["allow"]
        assert of.run(b"/bin/id") == [outcome]
        assert of.open(b"/etc/passwd") == []
    made = clean(policy(spec))
    assert [rule.name for rule in made.rules if rule.enabled] == ["allow-list process"]
    assert made.decisions["allow-list process"].by == ("path /bin/ls",)


def test_what_an_allow_does_not_let_pass_falls_to_the_posture() -> None:
    of = judge("file: {matchPaths: [{path: /r, readOnly: true}], action: Allow}", BLOCKING)
    assert of.open(b"/r") == ["allow"]
    assert of.open(b"/r", O_WRONLY) == ["would_block"]


def test_all_entries_of_a_class_are_one_list() -> None:
    of = Judge(
        clean(
            policy("process: {matchPaths: [{path: /bin/ls}], action: Allow}", "a"),
            policy("process: {matchPaths: [{path: /bin/id}], action: Audit}", "b"),
            host=BLOCKING,
        )
    )
    assert of.run(b"/bin/ls") == ["allow"]
    assert of.run(b"/bin/id") == ["audit"]
    assert of.run(b"/bin/who") == ["would_block"]


def test_what_is_inherited() -> None:
    made = clean(
        policy(
            """\
            severity: 3
            tags: [top]
            message: "of the top: 100%"
            action: Audit
            file: {matchPaths: [{path: /a}]}
            process:
              severity: 9
              tags: [section]
              message: of the section
              action: Allow
              matchPaths:
                - {path: /b}
                - {path: /c, severity: 1, tags: [own], message: own, action: Block}
            """
        )
    )
    rules = {made.decisions[rule.name].by[0]: rule for rule in made.rules}
    top, section, own = rules["path /a"], rules["path /b"], rules["path /c"]
    assert (top.tags, section.tags, own.tags) == (("top",), ("section",), ("own",))
    assert [PRIORITIES[r.priority] for r in (top, own)] == ["NOTICE", "INFORMATIONAL"]
    assert top.output.startswith("of the top: 100%% (audit): %evt.type %fd.name")
    assert own.output.startswith("own (would block): ")
    assert {made.decisions[r.name].outcome for r in (top, own)} == {"audit", "would_block"}
    assert [r.name for r in made.rules if r.enabled is False] == [
        name for name, d in made.decisions.items() if d.outcome == "allow"
    ]
    of = judge("file: {matchPaths: [{path: /a}]}")
    assert of.open(b"/a") == ["would_block"], "the action is Block where none is given"
    for rule in made.rules:
        Template(rule.output)


def test_severities_are_priorities() -> None:
    found = [PRIORITIES[priority(severity)] for severity in range(1, 11)]
    assert found[0] == "INFORMATIONAL" and found[-1] == "CRITICAL"
    assert [priority(n) for n in range(1, 11)] == sorted(
        (priority(n) for n in range(1, 11)), reverse=True
    )


@pytest.mark.parametrize(
    ("labels", "applies"),
    [
        ("app: demo", True), ("app: other", False), ("missing: x", False),
        ("kubearmor.io/hostname: web-1", True), ("kubearmor.io/hostname: web", False),
        ('kubearmor.io/hostname: "*"', True), ("kubearmor.io/hostname: 'db-1, web-1'", True),
        ("kubearmor.io/hostname: 'db-1,db-2'", False),
        ("kubearmor.io/hostnamereg: ^web-[0-9]$", True),
        ("kubearmor.io/hostnamereg: 'eb-*'", True), ("kubearmor.io/hostnamereg: ^db", False),
        ("kubernetes.io/hostname: web-1", True), ("kubernetes.io/hostname: '*'", False),
        ("{app: demo, kubearmor.io/hostname: web-1}", True),
        ("{app: demo, kubearmor.io/hostname: web-2}", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["KubeArmorHostPolicy", "KubeArmorPolicy"])
def test_labels(kind: str, labels: str, applies: bool) -> None:
    key = "nodeSelector" if kind == "KubeArmorHostPolicy" else "selector"
    text = policy(
        f"{key}:\n  matchLabels:\n    {labels}\nfile: {{matchPaths: [{{path: /a}}]}}", kind=kind
    )
    made = clean(text)
    assert bool(made.rules) == applies
    assert made.skipped == (() if applies else ("p",))
    assert clean(text, host=None).rules, "without a host, all of them apply"


def test_a_symlink_is_followed_and_said() -> None:
    def real(path: str) -> str:
        return re.sub(r"^/bin\b", "/usr/bin", path)

    made = clean(
        policy(
            """\
            process:
              matchPaths: [{path: /bin/su}, {path: /sbin/x}]
              matchDirectories: [{dir: /bin/}]
            """
        ),
        host=Host("h", realpath=real),
    )
    of = Judge(made)
    assert of.run(b"/bin/su") == of.run(b"/usr/bin/su") == ["would_block"]
    assert of.run(b"/bin/a") == of.run(b"/usr/bin/a") == ["would_block"]
    assert of.run(b"/usr/sbin/x") == []
    found = [text for text in warnings(made) if "leads to" in text]
    assert len(found) == 2
    assert found[0].startswith('0.yaml:7:18: warning: policy "p": /bin/su leads to /usr/bin/su')


def test_contradictions_are_settled_and_said() -> None:
    made = clean(
        policy("file: {matchPaths: [{path: /a}], action: Allow}", "one"),
        policy("file:\n  matchPaths:\n  - path: /a\n  action: Block", "two"),
        policy("file: {matchPaths: [{path: /a}], action: Audit}", "three"),
    )
    of = Judge(made)
    assert of.open(b"/a") == ["would_block"]
    found = [text for text in warnings(made) if "contradicted" in text]
    assert len(found) == 2
    assert 'policy "one": Allow on path /a is contradicted by Block at 1.yaml:8' in found[0]
    assert found[0].startswith("0.yaml:6:")


def test_two_policies_of_one_mind_both_speak() -> None:
    made = clean(
        policy("file: {matchPaths: [{path: /a}], action: Audit}", "one"),
        policy("file: {matchPaths: [{path: /a}], action: Audit}", "two"),
    )
    machine = Machine(made.rules)
    assert {made.decisions[name].policy for name in machine.open(b"/a")} == {"one", "two"}


SYSCALLS = """\
syscalls:
  action: Audit
  matchSyscalls:
    - {syscall: [chdir, swapon, frobnicate], fromSource: [{dir: /usr/, recursive: true}]}
    - {syscall: [listen]}
  matchPaths:
    - {path: /etc/, recursive: true, syscall: [open, openat]}
    - {path: /opt/, syscall: [openat]}
    - {path: /srv/x, syscall: [openat, chdir, bind]}
"""


def test_syscalls() -> None:
    made = clean(policy(SYSCALLS))
    of = Judge(made)
    assert of("chdir", path=b"/") == ["audit"]
    assert of("listen", family=AF_INET) == ["audit"]
    assert of.open(b"/etc/a/b") == of.open(b"/opt/a") == of.open(b"/srv/x") == ["audit"]
    assert of.open(b"/opt/a/b") == of.open(b"/srv/x/y") == of.open(b"/etcetera") == []
    assert of.open(b"/etc/missing", result=-2) == ["audit"], "a syscall is one also where it fails"
    found = "\n".join(warnings(made))
    assert "syscall swapon, frobnicate: not captured yet; decides nothing" in found
    assert "syscall bind: captured without a path; decides nothing" in found


CAPABILITIES = """\
capabilities:
  matchCapabilities:
    - {capability: net_raw, fromSource: [{path: /usr/bin/ping}], action: Allow}
    - {capability: net_raw}
    - {capability: CAP_SYS_MODULE, action: Audit}
"""


def used(name: str, result: int = 0) -> dict[str, Any]:
    return {"arg0": calls.CAPABILITIES.index(f"CAP_{name.upper()}".encode()), "result": result}


def test_capabilities_are_decided_about_where_the_process_has_them() -> None:
    of = judge(CAPABILITIES)
    assert of("capable", **used("net_raw")) == ["would_block"]
    assert of("capable", **used("sys_module")) == ["audit"]
    assert of("capable", **used("net_raw", -1)) == []
    assert of("capable", **used("kill", -1)) == []
    assert of.open(b"/etc/passwd") == []
    # The Allow makes an allow-list of the class.
    assert of("capable", **used("kill")) == ["audit"]
    assert judge(CAPABILITIES, BLOCKING)("capable", **used("kill")) == ["would_block"]
    of.run(b"/usr/bin/ping")
    assert of("capable", **used("net_raw")) == ["allow"]
    made = clean(policy(CAPABILITIES))
    assert all("%capability.name" in rule.output for rule in made.rules)


@pytest.mark.parametrize(
    ("name", "hint"), [("net_rawr", "did you mean net_raw?"), ("x", "has no x")]
)
def test_a_capability_that_the_kernel_does_not_have_is_an_error(name: str, hint: str) -> None:
    spec = f"capabilities: {{matchCapabilities: [{{capability: {name}}}]}}"
    assert hint in the_error(policy(spec))


def test_what_cannot_be_seen_is_said() -> None:
    made = clean(
        policy(
            """\
            syscalls:
              matchSyscalls: [{syscall: [write]}, {syscall: [chdir], action: Allow}]
            file: {matchPatterns: [{path: /*/x}, {pattern: /*/y}]}
            network: {matchProtocols: [{protocol: tcp}]}
            apparmor: x
            """
        )
    )
    found = "\n".join(warnings(made))
    for text in (
        "apparmor: is not evaluated",
        "syscall write: captured for login records only; decides nothing",
        "Block: syscalls can only be audited",
        "Allow: there is no allow-list of syscalls",
        "matchPatterns: the key is pattern, not path; taken as a pattern",
        "ignored by KubeArmor's BPF enforcer",
    ):
        assert text in found
    assert "names nothing" in "\n".join(warnings(clean(policy("severity: 1"))))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("file: {matchPaths: [{path: a}]}", "path: expected an absolute path, not a"),
        ("file: {matchPaths: [{path: /a/}]}", "path: ends with /"),
        ("file: {matchPaths: [{}]}", "path: is missing"),
        ("file: {matchPaths: {path: /a}}", "matchPaths: expected a list"),
        ("file: {matchPaths: [/a]}", "file.matchPaths: expected keys and values"),
        ("file: {matchPaths: [{path: [/a]}]}", "path: expected text"),
        ("file: {matchPaths: [{path: ''}]}", "path: is empty"),
        ("file: {matchPaths: [{path: /a, readonly: true}]}", "no readonly; did you mean readOnly?"),
        ("file: {matchPaths: [{path: /a, readOnly: maybe}]}", "readOnly: expected true or false"),
        (
            "file: {matchPaths: [{path: /a}], action: Deny}",
            "action: expected Allow, Audit or Block",
        ),
        ("file: {matchPaths: [{path: /a, severity: 11}]}", "severity: expected a whole number"),
        ("process: {matchPaths: [{path: /a, execname: a}]}", "path and execname: expected one"),
        ("process: {matchPaths: [{execname: a/b}]}", "execname: expected a name without /"),
        ("file: {matchPaths: [{path: /a, fromSource: [{dir: /b}]}]}", "fromSource has no dir"),
        ("network: {matchProtocols: [{protocol: sctp}]}", "protocol: expected tcp, udp, icmp, raw"),
        ("syscalls: {matchSyscalls: [{syscall: [A]}], action: Audit}", "A is no syscall's name"),
        ("proces: {}", "spec has no proces; did you mean process?"),
        ("selector: {}", "selector: a KubeArmorHostPolicy has a nodeSelector"),
        ("nodeSelector: {matchLabels: {kubearmor.io/hostnamereg: '('}}", "hostnamereg: missing )"),
    ],
)
def test_errors_name_the_place(spec: str, message: str) -> None:
    found = the_error(policy(spec))
    assert re.match(r"0\.yaml:[0-9]+:[0-9]+: error: policy \"p\": ", found)
    assert message in found


def test_an_error_stops_its_policy_alone() -> None:
    made = load(
        policy("file: {matchPaths: [{path: a}]}"), policy("file: {matchPaths: [{path: /a}]}", "q")
    )
    assert [d.policy for d in made.decisions.values()] == ["q"]
    assert "give it another" in the_error(*[policy("severity: 1")] * 2)
    assert "kind: expected KubeArmorHostPolicy" in the_error("kind: KubeArmorClusterPolicy")
    assert "apiVersion: expected" in the_error(
        "{apiVersion: security.kubearmor.com/v2, kind: KubeArmorPolicy, metadata: {name: p},"
        " spec: {}}"
    )


def test_more_entries_than_can_be_weighed_are_refused() -> None:
    paths = ", ".join(f"{{path: /{number}}}" for number in range(2001))
    made = load(policy(f"file: {{matchPaths: [{paths}]}}"))
    (found,) = [str(f) for f in made.findings if f.severity == "error"]
    assert "file: more than 2000 entries; the rest is not loaded" in found
    of = Judge(made)
    assert of.open(b"/1999") == ["would_block"]
    assert of.open(b"/2000") == []


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs/kubearmor.md").read_text()
    for (section, group), keys in ENTRY_KEYS.items():
        assert group in page and section in page
        assert [key for key in keys if key not in page] == []


# The order in which entries are looked at, held to a plain reading of docs/kubearmor.md.

PATHS = ["/a", "/d/a", "/d/e/a", "/d/e/b"]
DIRS = ["/", "/d/", "/d/e/"]
SOURCES = ["/usr/bin/cat", "/usr/bin/bash"]
ENTRIES = st.fixed_dictionaries(
    {
        "key": st.sampled_from(
            [("path", path) for path in PATHS]
            + [("dir", folder) for folder in DIRS]
            + [("pattern", "/d/**"), ("pattern", "/**/a")]
        ),
        "recursive": st.booleans(),
        "source": st.none() | st.sampled_from(SOURCES),
        "readOnly": st.booleans(),
        "action": st.sampled_from(["Allow", "Audit", "Block"]),
    }
)
FITS: dict[str, Callable[[str], bool]] = {
    "/d/**": lambda path: path.startswith("/d/") and len(path) > 3,
    "/**/a": lambda path: re.fullmatch("/[^/].*/a", path) is not None,
}


def fits(entry: Mapping[str, Any], path: str, source: str) -> bool:
    kind, value = entry["key"]
    if entry["source"] not in (None, source):
        return False
    if kind == "path":
        return bool(path == value)
    if kind == "pattern":
        return FITS[value](path)
    rest = path.removeprefix(value)
    return rest != path and (entry["recursive"] or "/" not in rest)


def expected(entries: list[dict[str, Any]], path: str, source: str, writes: bool) -> set[str]:
    """Read the entries one level after the other; the first level that fits decides."""
    strictness = ["Allow", "Audit", "Block"]
    strictest: dict[Any, int] = {}
    keys = [
        (e["key"], e["recursive"] if e["key"][0] == "dir" else False, e["source"]) for e in entries
    ]
    for entry, key in zip(entries, keys, strict=True):
        strictest[key] = max(strictest.get(key, 0), strictness.index(entry["action"]))
    kept = [
        entry
        for entry, key in zip(entries, keys, strict=True)
        if strictness.index(entry["action"]) == strictest[key]
    ]
    order = ["path", "dir", "pattern"]

    def level(entry: dict[str, Any]) -> Any:
        kind, value = entry["key"]
        depth = -value.count("/") if kind == "dir" else 0
        return (entry["source"] is None, order.index(kind), depth)

    for here in sorted({level(entry) for entry in kept}):
        found = [e for e in kept if level(e) == here and fits(e, path, source)]
        if found:
            outcomes = set()
            for entry in found:
                passes = not writes if entry["readOnly"] else entry["action"] == "Allow"
                if entry["action"] == "Allow":
                    outcomes.add("allow" if passes else "would_block")
                elif not passes:
                    outcomes.add("audit" if entry["action"] == "Audit" else "would_block")
            return outcomes
    return {"would_block"} if any(e["action"] == "Allow" for e in kept) else set()


@settings(max_examples=150)
@given(st.lists(ENTRIES, max_size=5), st.sampled_from(PATHS), st.booleans(), st.booleans())
def test_the_first_that_fits_decides(
    entries: list[dict[str, Any]], path: str, is_child: bool, writes: bool
) -> None:
    lists: dict[str, list[str]] = {"matchPaths": [], "matchDirectories": [], "matchPatterns": []}
    names = {"path": "matchPaths", "dir": "matchDirectories", "pattern": "matchPatterns"}
    for entry in entries:
        kind, value = entry["key"]
        parts = [f"{kind}: '{value}'", f"action: {entry['action']}"]
        parts.append(f"readOnly: {str(entry['readOnly']).lower()}")
        if kind == "dir":
            parts.append(f"recursive: {str(entry['recursive']).lower()}")
        if entry["source"]:
            parts.append(f"fromSource: [{{path: {entry['source']}}}]")
        lists[names[kind]].append("{" + ", ".join(parts) + "}")
    body = ", ".join(f"{name}: [{', '.join(items)}]" for name, items in lists.items() if items)
    of = Judge(clean(policy(f"file: {{{body}}}"), host=BLOCKING))
    found = of.open(path.encode(), O_WRONLY if writes else 0, pid=6 if is_child else 5)
    source = SOURCES[0] if is_child else SOURCES[1]
    ordered = [e for kind in names for e in entries if e["key"][0] == kind]
    assert set(found) == expected(ordered, path, source, writes)


def test_files_are_removed_renamed_linked_and_made() -> None:
    """Each path that a call works on is decided about by itself."""
    spec = """
        file:
          matchPaths: [{path: /etc/shadow}]
          matchDirectories: [{dir: /etc/, recursive: true, action: Audit}]
        action: Block
        """
    of = Judge(clean(policy(spec)))

    def decided(kind: str, **values: Any) -> list[str]:
        return sorted(of(kind, **values))

    assert decided("unlink", path=b"/etc/shadow") == ["would_block"]
    assert decided("unlink", path=b"/etc/shadow", result=-13) == []
    assert decided("rmdir", path=b"/etc/x") == ["audit"]
    assert decided("mkdirat", path=b"x", dir=b"/etc") == ["audit"]
    assert decided("chmod", path=b"/etc/shadow") == ["would_block"]
    assert decided("unlink", path=b"/home/x") == []
    assert decided("rename", path=b"/etc/shadow", target=b"/etc/x") == [
        "audit",
        "would_block",
    ]
    assert decided("rename", path=b"/home/x", target=b"/etc/shadow") == ["would_block"]
    assert decided("linkat", path=b"/home/x", target=b"/etc/x") == ["audit"]
    # What a symlink points to is not touched.
    assert decided("symlink", path=b"/home/x", data=b"/etc/shadow") == []
    assert decided("symlink", path=b"/etc/x", data=b"/home/x") == ["audit"]


@pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no published policies at {CORPUS}")
def test_published_policies_compile_to_decisions() -> None:
    found = []
    for path in sorted(CORPUS.glob("*.yaml")):
        for node in documents.compose(documents.read(path), path.name):
            found.append((path.name, node))
    made = load_policies(found, None)
    assert [str(f) for f in made.findings if f.severity == "error"] == []
    assert (len(list(CORPUS.glob("*.yaml"))), len(made.decisions)) == (37, 47)
    for file, node in found:
        alone = load_policies([(file, node)], None)
        assert alone.decisions, file
        assert not [f for f in alone.findings if "names nothing" in f.message]
    machine = Machine(made.rules)

    def decisions(names: set[str]) -> set[tuple[str, str]]:
        return {(made.decisions[n].policy, made.decisions[n].outcome) for n in names}

    assert decisions(machine.open(b"/etc/shadow", uid=1000)) == {
        ("hsp-cve-2018-18955", "would_block")
    }
    assert ("hsp-audit-stig-ubuntu-20-010136-su", "audit") in decisions(machine.run(b"/bin/su"))
    assert decisions(machine.open(b"/opt/lib/liblzma.so.5.6.1.x")) == {
        ("hsp-cve-2024-3094-xz-utils-v5-6-backdoor", "would_block")
    }
    assert decisions(machine.open(b"/home/ann/notes")) == set()


def test_the_page_has_the_table_of_the_code() -> None:
    assert tables() in (ROOT / "docs/kubearmor.md").read_text()
