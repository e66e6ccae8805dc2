"""KubeArmor policies, read for a host and compiled to rules that report decisions.

Read are KubeArmorHostPolicy and KubeArmorPolicy (security.kubearmor.com/v1), the latter as a policy
for the hosts whose labels it selects. Nothing is enforced here: what a policy blocks is reported
as what would be blocked. docs/kubearmor.md has the semantics in words, and each choice that is
made where KubeArmor is silent or contradicts itself.

The order in which entries are looked at is that of KubeArmor's BPF enforcer (the function
match_and_enforce_path_hooks in KubeArmor/BPF/shared.h), with names of executables and patterns put
in: path with source, directory with source, pattern with source, path, name, directory, pattern;
of directories the deepest first. The first that fits decides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import yaml

from vedette.core import fields, layout
from vedette.core.calls import CAPABILITIES
from vedette.core.catalogue import SYSCALLS
from vedette.core.documents import Finding, NodeError, mapping, place, shown
from vedette.core.expr import Expr
from vedette.core.patterns import PatternError, compile_regex
from vedette.core.rulefile import Rule
from vedette.core.signal import PRIORITIES
from vedette.core.trees import (
    all_of,
    any_of,
    check,
    literal_regex,
    negated,
    one_of,
    regex,
)

API_VERSION: Final = "security.kubearmor.com/v1"
KINDS: Final = ("KubeArmorHostPolicy", "KubeArmorPolicy")
ENTRIES_MAX: Final = 2000
"""Bound of the entries of one class over all policies: each is weighed against each."""
TEXT_CHARS_MAX: Final = 4096
NAME_CHARS_MAX: Final = 253

Class = Literal["process", "file", "network", "capabilities", "syscalls"]
Action = Literal["Allow", "Audit", "Block"]
Outcome = Literal["allow", "audit", "would_block"]
Posture = Literal["audit", "block"]
Key = Literal["path", "execname", "dir", "pattern", "protocol", "capability", "syscall"]

CLASSES: Final[tuple[Class, ...]] = ("process", "file", "network", "capabilities", "syscalls")
_ACTIONS: Final[dict[str, Action]] = {"allow": "Allow", "audit": "Audit", "block": "Block"}
_STRICTNESS: Final = {"Allow": 0, "Audit": 1, "Block": 2}
_COMMON: Final = ("severity", "tags", "message", "action")
_SECTION_KEYS: Final[dict[Class, tuple[str, ...]]] = {
    "process": ("matchPaths", "matchDirectories", "matchPatterns"),
    "file": ("matchPaths", "matchDirectories", "matchPatterns"),
    "network": ("matchProtocols",),
    "capabilities": ("matchCapabilities",),
    "syscalls": ("matchSyscalls", "matchPaths"),
}
ENTRY_KEYS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("process", "matchPaths"): ("path", "execname", "allowedArgs", "ownerOnly", "fromSource"),
    ("process", "matchDirectories"): ("dir", "recursive", "ownerOnly", "fromSource"),
    ("process", "matchPatterns"): ("pattern", "path", "ownerOnly", "fromSource"),
    ("file", "matchPaths"): ("path", "readOnly", "ownerOnly", "fromSource"),
    ("file", "matchDirectories"): ("dir", "recursive", "readOnly", "ownerOnly", "fromSource"),
    ("file", "matchPatterns"): ("pattern", "path", "readOnly", "ownerOnly", "fromSource"),
    ("network", "matchProtocols"): ("protocol", "fromSource"),
    ("capabilities", "matchCapabilities"): ("capability", "fromSource"),
    ("syscalls", "matchSyscalls"): ("syscall", "fromSource"),
    ("syscalls", "matchPaths"): ("path", "recursive", "syscall", "fromSource"),
}
_ELSEWHERE: Final = ("apparmor", "selinux", "presets", "device")
_PROTOCOLS: Final = ("tcp", "udp", "icmp", "raw")
_CONNECTING: Final = tuple(
    name
    for name in ("connect", "accept", "accept4", "bind", "sendto", "sendmsg")
    if name in fields.events_of("fd.l4proto")
)
_MADE: Final = "socket"
_SOCKETS: Final[dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]]] = {
    "tcp": (("AF_INET", "AF_INET6"), 1, (0, 6)),
    "udp": (("AF_INET", "AF_INET6"), 2, (0, 17)),
    "icmp": (("AF_INET", "AF_INET6"), 2, (1, 58)),
    "raw": (("AF_INET", "AF_INET6", "AF_PACKET"), 3, ()),
}
"""Protocol -> domains, type and protocol numbers (none: any) that make such a socket."""
_USED: Final = "capable"
"""The event of a capability's use."""
_TYPE_FLAGS: Final = (0, 0o4000, 0o2000000, 0o2004000)
"""SOCK_NONBLOCK and SOCK_CLOEXEC, which a type can have with it."""
_NOT_ACCESSED: Final = ("symlink", "symlinkat")
"""Calls whose fs.path.target is what a link is to point to, which nothing is done to."""


_FILE_CALLS: Final = (
    "unlink", "unlinkat", "rmdir", "rename", "renameat", "renameat2", "link", "linkat", "symlink",
    "symlinkat", "mkdir", "mkdirat", "mknod", "mknodat", "chmod", "fchmod", "fchmodat", "fchmodat2",
    "chown", "lchown", "fchown", "fchownat", "truncate", "ftruncate",
)  # fmt: skip
"""What KubeArmor's hooks decide about besides opens (path_unlink and its like)."""


def _places(*, accesses: bool) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return (events, the field with a path that they work on), each path by itself.

    accesses  only those that are an access to a file, as KubeArmor's hooks see it
    """
    made: list[tuple[tuple[str, ...], str]] = [(fields.OPENS, "fd.name")]
    for name in ("fs.path.name", "fs.path.source", "fs.path.target"):
        left = tuple(
            event
            for event in fields.events_of(name)
            if event not in fields.OPENS
            and (event in _FILE_CALLS or not accesses)
            and not (name == "fs.path.target" and event in _NOT_ACCESSED)
        )
        if left:
            made.append((left, name))
    return tuple(made)


FILE_PLACES: Final = _places(accesses=True)
_PATH_FIELDS: Final = (
    *_places(accesses=False), (fields.EXECS, "evt.arg.filename"), (("chdir",), "evt.arg.path"),
)  # fmt: skip
_WATCHED_ONLY: Final = ("write",)
_SYSCALL = re.compile(r"[a-z0-9_]{1,64}")
_LABEL_REGEX: Final = "kubearmor.io/hostnamereg"
_LABEL_HOSTNAME: Final = "kubearmor.io/hostname"
_KUBERNETES_HOSTNAME: Final = "kubernetes.io/hostname"
_ROOT_UID: Final = 0


@dataclass(frozen=True)
class Host:
    """What a policy is read for.

    hostname  compared with kubearmor.io/hostname, and with kubernetes.io/hostname where ``labels``
              has none
    labels    the host's own, from its configuration
    postures  class -> what becomes of what an allow-list does not name; "audit" where not given
    owner     path -> uid of its owner, None where there is no such file
    realpath  path -> where its symlinks lead
    """

    hostname: str
    labels: Mapping[str, str] = field(default_factory=dict)
    postures: Mapping[str, Posture] = field(default_factory=dict)
    owner: Callable[[str], int | None] | None = None
    realpath: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule that was made of policies decides, and by which part of them.

    outcome  allow (the rule is disabled: what is allowed makes no signal), audit or would_block
    policy   its metadata.name; of an allow-list: the policies that allow, joined by commas
    section  one of CLASSES
    by       the keys that fit, such as ``path /bin/su from /usr/bin/bash``; at most BY_MAX of them
    places   ``file:line`` of each key
    """

    outcome: Outcome
    policy: str
    section: Class
    by: tuple[str, ...]
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policies:
    """The policies of one load.

    rules      what the engine runs, in order
    decisions  rule name -> what it decides
    findings   errors (their policies are not loaded) and warnings
    skipped    names of the policies that are whole but select other hosts
    """

    rules: tuple[Rule, ...]
    decisions: Mapping[str, Decision]
    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One item of a match list, with what it inherits.

    values      of the key: a path and where it leads, or one of anything else
    sources     executables that the entry is limited to; empty: none
    owner_only  the owner of the file passes
    owner_uid   who that is taken to be where an event does not say it
    recursive   of a dir
    syscalls    of a path in the syscalls section
    """

    policy: _Policy
    section: Class
    action: Action
    key: Key
    values: tuple[str, ...]
    node: yaml.Node
    sources: tuple[str, ...] = ()
    source_dirs: tuple[tuple[str, bool], ...] = ()
    recursive: bool = False
    owner_only: bool = False
    owner_uid: int = _ROOT_UID
    read_only: bool = False
    allowed_args: tuple[str, ...] | None = None
    syscalls: tuple[str, ...] = ()
    severity: int = 1
    tags: tuple[str, ...] = ()
    message: str = ""

    @property
    def level(self) -> tuple[int, int]:
        """Where the entry stands in the order of looking; lower is first."""
        base = 0 if self.sources else 4
        depth = -self.values[0].count("/") if self.key == "dir" else 0
        order = {"path": 0, "execname": 1, "dir": 2, "pattern": 3}.get(self.key, 0)
        if self.sources and self.key == "execname":
            order = 0
        return base + order, depth

    @property
    def text(self) -> str:
        """The key as a person reads it."""
        source = f" from {', '.join(self.sources)}" if self.sources else ""
        return f"{self.key} {self.values[0]}{source}"

    @property
    def where(self) -> str:
        return f"{self.policy.file}:{place(self.node)[0]}"

    @property
    def is_conditional(self) -> bool:
        """Whether the entry lets some pass: owners, readers or known arguments."""
        return self.owner_only or self.read_only or self.allowed_args is not None


@dataclass(frozen=True, eq=False)
class _Policy:
    name: str
    file: str
    node: yaml.Node


def is_policy(document: yaml.Node) -> bool:
    """Whether a document looks like one of KubeArmor's: its apiVersion or its kind says so."""
    if not isinstance(document, yaml.MappingNode):
        return False
    for key, value in document.value:
        if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
            continue
        if key.value == "apiVersion" and value.value.startswith("security.kubearmor.com/"):
            return True
        if key.value == "kind" and value.value.startswith("KubeArmor"):
            return True
    return False


def load_policies(documents: Iterable[tuple[str, yaml.Node]], host: Host | None = None) -> Policies:
    """Compile policies; ``documents`` are (file, document), see core/documents.py.

    host  what they are read for; None: all of them apply, as for a host without symlinks

    What is wrong with one policy is an error among the findings and leaves the others alone.
    """
    reader = _Reader(host)
    for file, document in documents:
        reader.policy(file, document)
    compiler = _Compiler(reader, host)
    compiler.compile()
    return Policies(
        tuple(compiler.rules),
        compiler.decisions,
        tuple(reader.findings),
        tuple(reader.skipped),
    )


# Reading: documents to entries.


class _Reader:
    def __init__(self, host: Host | None) -> None:
        self.host = host
        self.findings: list[Finding] = []
        self.skipped: list[str] = []
        self.entries: dict[Class, list[_Entry]] = {section: [] for section in CLASSES}
        self.names: dict[str, _Policy] = {}
        self.file = ""
        self.subject = ""

    def warn(self, message: str, node: yaml.Node) -> None:
        self.findings.append(Finding("warning", self.file, *place(node), self.subject, message))

    def error(self, message: str, node: yaml.Node) -> None:
        self.findings.append(Finding("error", self.file, *place(node), self.subject, message))

    def policy(self, file: str, document: yaml.Node) -> None:
        self.file, self.subject = file, ""
        try:
            entries = self.one(document)
        except NodeError as error:
            self.error(str(error), error.node)
            return
        for entry in entries:
            self.entries[entry.section].append(entry)

    def one(self, document: yaml.Node) -> list[_Entry]:
        top = self.mapping(document, "a policy")
        kind = self.text(top["kind"][1], "kind") if "kind" in top else ""
        if kind not in KINDS:
            raise NodeError(
                f"kind: expected {' or '.join(KINDS)}, not {shown(kind) or 'nothing'}",
                top["kind"][1] if "kind" in top else document,
            )
        metadata = self.mapping(self.need(top, "metadata", document), "metadata")
        name = self.text(self.need(metadata, "name", document), "metadata.name").strip()
        if not name or len(name) > NAME_CHARS_MAX:
            raise NodeError(f"metadata.name: 1 to {NAME_CHARS_MAX} characters", document)
        self.subject = f'policy "{shown(name)}"'
        self.only(top, ("apiVersion", "kind", "metadata", "spec", "status"), "a policy")
        version = self.need(top, "apiVersion", document)
        if self.text(version, "apiVersion") != API_VERSION:
            raise NodeError(f"apiVersion: expected {API_VERSION}", version)
        known = self.names.get(name)
        if known is not None:
            raise NodeError(
                f"there is a policy of this name already, at {known.file}:{place(known.node)[0]};"
                " give it another",
                document,
            )
        policy = _Policy(name, self.file, document)
        spec = self.mapping(self.need(top, "spec", document), "spec")
        self.only(spec, (*_COMMON, "nodeSelector", "selector", *CLASSES, *_ELSEWHERE), "spec")
        applies = self.applies(spec, kind)
        for key in _ELSEWHERE:
            if key in spec:
                self.warn(f"{key}: is not evaluated, and has no effect here", spec[key][0])
        inherited = self.common(spec, _Inherited())
        entries: list[_Entry] = []
        for section in CLASSES:
            if section in spec:
                entries += self.section(policy, section, spec[section][1], inherited)
        if not entries:
            self.warn("names nothing, and so decides nothing", document)
        self.names[name] = policy
        if not applies:
            self.skipped.append(name)
            return []
        return entries

    # Which hosts.

    def applies(self, spec: _Map, kind: str) -> bool:
        wanted = "nodeSelector" if kind == "KubeArmorHostPolicy" else "selector"
        other = "selector" if wanted == "nodeSelector" else "nodeSelector"
        if other in spec:
            raise NodeError(f"{other}: a {kind} has a {wanted}", spec[other][0])
        if wanted not in spec:
            return True
        selector = self.mapping(spec[wanted][1], wanted)
        self.only(selector, ("matchLabels", "identities"), wanted)
        if "matchLabels" not in selector:
            return True
        found = True
        for label, (key, value) in self.mapping(selector["matchLabels"][1], "matchLabels").items():
            found = self.label(label, self.text(value, label), key) and found
        return found

    def label(self, label: str, value: str, node: yaml.Node) -> bool:
        pattern = None
        if label == _LABEL_REGEX:
            try:
                pattern = compile_regex(b"(?:.*)(?:" + value.encode() + b")(?:.*)")
            except PatternError as error:
                raise NodeError(f"{label}: {error}", node) from None
        if self.host is None:
            return True
        hostname = self.host.hostname
        if pattern is not None:
            return pattern.fullmatch(hostname.encode()) is not None
        if label == _LABEL_HOSTNAME:
            names = [name.strip() for name in value.split(",")]
            return value == "*" or self.host.labels.get(label, hostname) in names
        if label == _KUBERNETES_HOSTNAME:
            return self.host.labels.get(label, hostname) == value
        return self.host.labels.get(label) == value

    # What they say.

    def common(self, found: _Map, above: _Inherited) -> _Inherited:
        """Return what is inherited below a mapping."""
        severity, tags = above.severity, above.tags
        message, action = above.message, above.action
        if "severity" in found:
            node = found["severity"][1]
            text = self.text(node, "severity")
            if not re.fullmatch(r"[0-9]{1,2}", text) or not 1 <= int(text) <= 10:
                raise NodeError("severity: expected a whole number from 1 to 10", node)
            severity = int(text)
        if "tags" in found:
            tags = tuple(dict.fromkeys(self.texts(found["tags"][1], "tags")))
        if "message" in found:
            message = " ".join(self.text(found["message"][1], "message").split())
        if "action" in found:
            node = found["action"][1]
            known = _ACTIONS.get(self.text(node, "action").lower())
            if known is None:
                raise NodeError("action: expected Allow, Audit or Block", node)
            action = known
        return _Inherited(severity, tags, message, action)

    def section(
        self, policy: _Policy, section: Class, node: yaml.Node, above: _Inherited
    ) -> list[_Entry]:
        found = self.mapping(node, section)
        self.only(found, (*_COMMON, *_SECTION_KEYS[section]), section)
        inherited = self.common(found, above)
        entries: list[_Entry] = []
        for name in _SECTION_KEYS[section]:
            if name not in found:
                continue
            if name == "matchPatterns":
                self.warn(
                    "matchPatterns: ignored by KubeArmor's BPF enforcer, not by its AppArmor"
                    " enforcer; here they are looked at, after all else",
                    found[name][0],
                )
            for item in self.items(found[name][1], name):
                values = self.mapping(item, f"{section}.{name}")
                self.only(values, (*_COMMON, *ENTRY_KEYS[section, name]), f"{section}.{name}")
                entries += self.entry(
                    policy, section, name, item, values, self.common(values, inherited)
                )
        if section == "file" and entries:
            unseen = [call for call in _FILE_CALLS if call not in layout.TYPES]
            if unseen:
                self.warn(f"file: {', '.join(unseen)}: not captured yet", node)
        return entries

    def entry(
        self,
        policy: _Policy,
        section: Class,
        name: str,
        item: yaml.Node,
        values: _Map,
        inherited: _Inherited,
    ) -> list[_Entry]:
        sources, dirs = self.sources(values, section)
        action = inherited.action
        owner_uid = _ROOT_UID
        if section == "file" and self.flag(values, "ownerOnly"):
            owner_uid = self.owner(values, item)
        if section == "syscalls" and action != "Audit":
            if action == "Allow":
                self.warn("Allow: there is no allow-list of syscalls; has no effect", item)
                return []
            self.warn("Block: syscalls can only be audited, as in KubeArmor; taken as Audit", item)
            action = "Audit"

        def made(
            key: Key,
            texts: Sequence[str],
            *,
            recursive: bool = False,
            allowed_args: tuple[str, ...] | None = None,
            syscalls: tuple[str, ...] = (),
        ) -> _Entry:
            return _Entry(
                policy, section, action, key, tuple(texts), item, sources, dirs, recursive,
                self.flag(values, "ownerOnly"), owner_uid, self.flag(values, "readOnly"),
                allowed_args, syscalls,
                inherited.severity, inherited.tags, inherited.message,
            )  # fmt: skip

        if section == "network":
            protocol = self.named(values, "protocol", item).lower()
            if protocol not in _PROTOCOLS:
                raise NodeError(f"protocol: expected {', '.join(_PROTOCOLS)}", item)
            return [made("protocol", [protocol])]
        if section == "capabilities":
            return [made("capability", [self.capability(values, item)])]
        if section == "syscalls":
            return self.syscall_entry(name, item, values, made)
        if name == "matchDirectories":
            folder = self.named(values, "dir", item)
            if not folder.endswith("/"):
                self.warn(f"dir: {shown(folder)} has no / at its end; taken with one", item)
                folder += "/"
            paths = self.real(folder.rstrip("/"), "/", item)
            recursive = self.flag(values, "recursive")
            return [made("dir", [path], recursive=recursive) for path in paths]
        if name == "matchPatterns":
            return [made("pattern", [self.pattern(values, item)])]
        if "execname" in values:
            if "path" in values:
                raise NodeError("path and execname: expected one of them", item)
            executable = self.text(values["execname"][1], "execname")
            if "/" in executable or not executable:
                raise NodeError("execname: expected a name without /", values["execname"][1])
            return [made("execname", [executable], allowed_args=self.args(values))]
        path = self.named(values, "path", item)
        if path.endswith("/"):
            raise NodeError("path: ends with /; matchDirectories is for directories", item)
        if re.search(r"[*?\[{]", path):
            self.warn("path: is taken letter by letter; matchPatterns is for wildcards", item)
        return [made("path", self.real(path, "", item), allowed_args=self.args(values))]

    def capability(self, values: _Map, item: yaml.Node) -> str:
        """Return a capability as the kernel names it: net_raw is CAP_NET_RAW."""
        text = self.named(values, "capability", item)
        name = text.upper()
        name = name if name.startswith("CAP_") else f"CAP_{name}"
        known = [known.decode() for known in CAPABILITIES]
        if name not in known:
            close = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0][4:].lower()}?" if close else ""
            raise NodeError(f"capability: the kernel has no {shown(text)}{hint}", item)
        return name

    def syscall_entry(
        self, name: str, item: yaml.Node, values: _Map, made: Callable[..., _Entry]
    ) -> list[_Entry]:
        wanted: list[str] = []
        unseen: dict[str, list[str]] = {}
        for call in self.texts(self.need(values, "syscall", item), "syscall"):
            if not _SYSCALL.fullmatch(call):
                raise NodeError(f"syscall: {shown(call)} is no syscall's name", item)
            if call in _WATCHED_ONLY:
                unseen.setdefault("captured for login records only", []).append(call)
            elif call not in layout.TYPES or call not in SYSCALLS:
                unseen.setdefault("not captured yet", []).append(call)
            elif name == "matchPaths" and not _path_fields(call):
                unseen.setdefault("captured without a path", []).append(call)
            else:
                wanted.append(call)
        for reason, calls in unseen.items():
            self.warn(f"syscall {', '.join(calls)}: {reason}; decides nothing", item)
        if not wanted:
            return []
        if name == "matchSyscalls":
            return [made("syscall", wanted)]
        path = self.named(values, "path", item)
        recursive = self.flag(values, "recursive")
        paths = [path] if path.endswith("/") else self.real(path, "", item)
        return [made("path", paths, recursive=recursive, syscalls=tuple(wanted))]

    def pattern(self, values: _Map, item: yaml.Node) -> str:
        if "pattern" not in values and "path" in values:
            self.warn("matchPatterns: the key is pattern, not path; taken as a pattern", item)
            text = self.named(values, "path", item)
        else:
            if "path" in values:
                raise NodeError("pattern and path: expected pattern alone", item)
            text = self.named(values, "pattern", item)
        try:
            compile_regex(pattern_regex(text))
        except PatternError as error:
            raise NodeError(f"pattern: {error}", item) from None
        return text

    def real(self, path: str, suffix: str, node: yaml.Node) -> list[str]:
        """Return a path, and where it leads on this host if that is another."""
        found = [path + suffix]
        if self.host is not None and self.host.realpath is not None:
            leads = self.host.realpath(path or "/").rstrip("/")
            if leads != path:
                self.warn(
                    f"{shown(path)} leads to {shown(leads)} on this host; both are matched", node
                )
                found.append(leads + suffix)
        return found

    def owner(self, values: _Map, node: yaml.Node) -> int:
        """Return who is taken for the owner in calls that leave no file open."""
        path = next(
            (self.text(values[key][1], key) for key in ("path", "dir", "pattern") if key in values),
            "",
        )
        uid = None
        if self.host is not None and self.host.owner is not None and path.startswith("/"):
            uid = self.host.owner(path)
        taken = _ROOT_UID if uid is None else uid
        source = "no file is there to ask" if uid is None else "its owner when this was loaded"
        self.warn(
            f"ownerOnly: of unlink, rename and other calls that leave no file open, the owner of"
            f" {shown(path)} is taken to be uid {taken}, {source}",
            node,
        )
        return taken

    def args(self, values: _Map) -> tuple[str, ...] | None:
        if "allowedArgs" not in values:
            return None
        return tuple(self.texts(values["allowedArgs"][1], "allowedArgs"))

    def sources(
        self, values: _Map, section: Class
    ) -> tuple[tuple[str, ...], tuple[tuple[str, bool], ...]]:
        if "fromSource" not in values:
            return (), ()
        paths: list[str] = []
        dirs: list[tuple[str, bool]] = []
        known = ("path", "dir", "recursive") if section == "syscalls" else ("path",)
        for item in self.items(values["fromSource"][1], "fromSource"):
            found = self.mapping(item, "fromSource")
            self.only(found, known, "fromSource")
            if "dir" in found:
                dirs.append((self.named(found, "dir", item), self.flag(found, "recursive")))
            else:
                paths += self.real(self.named(found, "path", item).rstrip("/"), "", item)
        return tuple(dict.fromkeys(paths)), tuple(dirs)

    # Nodes.

    def mapping(self, node: yaml.Node, what: str) -> _Map:
        def twice(key: str, first: yaml.Node, second: yaml.Node) -> None:
            self.warn(
                f"{shown(key)}: is there twice, first in line {place(first)[0]}; this one counts",
                second,
            )

        return mapping(node, what, twice)

    def only(self, found: _Map, known: Sequence[str], what: str) -> None:
        for key, (node, _) in found.items():
            if key not in known:
                close = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.6)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
                raise NodeError(f"{what} has no {shown(key)}; {hint}", node)

    def need(self, found: _Map, key: str, node: yaml.Node) -> yaml.Node:
        if key not in found:
            raise NodeError(f"{key}: is missing", node)
        return found[key][1]

    def text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise NodeError(f"{what}: expected text", node)
        if len(node.value) > TEXT_CHARS_MAX or "\0" in node.value:
            raise NodeError(f"{what}: at most {TEXT_CHARS_MAX} characters, none of them NUL", node)
        return str(node.value)

    def named(self, found: _Map, key: str, node: yaml.Node) -> str:
        """Return the text of a key that has to be there, and has to be a path where it is one."""
        text = self.text(self.need(found, key, node), key).strip()
        if not text:
            raise NodeError(f"{key}: is empty", node)
        if key in ("path", "dir", "pattern") and not text.startswith("/"):
            raise NodeError(f"{key}: expected an absolute path, not {shown(text)}", node)
        return text

    def items(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise NodeError(f"{what}: expected a list", node)
        return list(node.value)

    def texts(self, node: yaml.Node, what: str) -> list[str]:
        return [self.text(item, what) for item in self.items(node, what)]

    def flag(self, found: _Map, key: str) -> bool:
        if key not in found:
            return False
        text = self.text(found[key][1], key).lower()
        if text not in ("true", "false"):
            raise NodeError(f"{key}: expected true or false", found[key][1])
        return text == "true"


@dataclass(frozen=True, slots=True)
class _Inherited:
    severity: int = 1
    tags: tuple[str, ...] = ()
    message: str = ""
    action: Action = "Block"


_Map = dict[str, tuple[yaml.Node, yaml.Node]]


def _path_fields(call: str) -> tuple[str, ...]:
    """Return the fields that hold the paths of a syscall; none where it has none."""
    return tuple(name for events, name in _PATH_FIELDS if call in events)


def pattern_regex(pattern: str) -> bytes:
    """Return the regular expression of an AppArmor pattern (apparmor.d(5), "Globbing").

    ``*`` and ``?`` stay within a component of the path, ``**`` does not; a component that begins
    with ``*`` has at least one character where nothing else is in it; ``[a-z]``, ``[^a-z]`` and
    ``{a,b}`` are as in a shell, and a backslash takes the next character as it is.
    """
    data = pattern.encode()
    out: list[bytes] = []
    depth = 0
    at = 0
    while at < len(data):
        char = data[at : at + 1]
        at += 1
        if char == b"*":
            stars = 1
            while data[at : at + 1] == b"*":
                stars += 1
                at += 1
            if out[-1:] == [literal_regex(b"/")] and data[at : at + 1] in (b"", b"/"):
                out.append(b"[^/]")
            out.append(b".*" if stars > 1 else b"[^/]*")
        elif char == b"?":
            out.append(b"[^/]")
        elif char == b"[" and b"]" in data[at + 1 :]:
            end = data.index(b"]", at + 1)
            inner = data[at:end]
            negation = inner[:1] in (b"^", b"!")
            chosen = inner[1:] if negation else inner
            escaped = chosen.replace(b"\\", b"\\\\").replace(b"[", b"\\[").replace(b"^", b"\\^")
            out.append(b"[" + (b"^/" if negation else b"") + escaped + b"]")
            at = end + 1
        elif char == b"{":
            depth += 1
            out.append(b"(?:")
        elif char == b"}" and depth:
            depth -= 1
            out.append(b")")
        elif char == b"," and depth:
            out.append(b"|")
        else:
            if char == b"\\" and at < len(data):
                char = data[at : at + 1]
                at += 1
            out.append(literal_regex(char))
    if depth:
        raise PatternError("a { that is never closed")
    return b"".join(out)


# Compiling: entries to rules.


class _Compiler:
    def __init__(self, reader: _Reader, host: Host | None) -> None:
        self.reader = reader
        self.host = host
        self.rules: list[Rule] = []
        self.decisions: dict[str, Decision] = {}

    def warn(self, entry: _Entry, message: str, severity: Literal["warning", "error"]) -> None:
        subject = f'policy "{shown(entry.policy.name)}"'
        self.reader.findings.append(
            Finding(severity, entry.policy.file, *place(entry.node), subject, message)
        )

    def compile(self) -> None:
        for section in CLASSES:
            entries = self.reader.entries[section]
            if len(entries) > ENTRIES_MAX:
                message = f"{section}: more than {ENTRIES_MAX} entries; the rest is not loaded"
                self.warn(entries[ENTRIES_MAX], message, "error")
                entries = entries[:ENTRIES_MAX]
            entries = self.settle(entries)
            groups: dict[object, list[_Entry]] = {}
            for entry in entries:
                groups.setdefault(_group(entry), []).append(entry)
            for members in groups.values():
                self.group(members, entries)
            allowing = [entry for entry in entries if entry.action == "Allow"]
            if allowing:
                self.allow_list(section, allowing, entries)

    def settle(self, entries: list[_Entry]) -> list[_Entry]:
        """Drop, with a warning, each entry that another of the same key contradicts."""
        strictest: dict[tuple[object, ...], _Entry] = {}
        for entry in entries:
            for key in _keys(entry):
                known = strictest.setdefault(key, entry)
                if _STRICTNESS[entry.action] > _STRICTNESS[known.action]:
                    strictest[key] = entry
        kept: list[_Entry] = []
        for entry in entries:
            winners = [strictest[key] for key in _keys(entry)]
            stricter = [w for w in winners if w.action != entry.action]
            if stricter:
                self.warn(
                    entry,
                    f"{entry.action} on {shown(entry.text)} is contradicted by {stricter[0].action}"
                    f" at {stricter[0].where}; the stricter counts, this one has no effect",
                    "warning",
                )
            else:
                kept.append(entry)
        return kept

    def posture(self, section: Class) -> Outcome:
        chosen = "audit" if self.host is None else self.host.postures.get(section, "audit")
        return "would_block" if chosen == "block" else "audit"

    def group(self, members: list[_Entry], entries: list[_Entry]) -> None:
        first = members[0]
        level = first.level
        above = [
            entry
            for entry in entries
            if entry.level < level and any(_overlap(entry, member) for member in members)
        ]
        base = any_of(
            *(
                all_of(event, _matches(members, names), negated(_matches(above, names)))
                for event, names in _accesses(first.section)
            )
        )
        if first.action == "Allow":
            passes = _passes(first) if first.is_conditional else all_of()
            self.add(members, "allow", all_of(base, passes))
            if first.is_conditional:
                outcome = self.posture(first.section)
                self.add(members, outcome, all_of(base, negated(passes)))
        else:
            outcome = "would_block" if first.action == "Block" else "audit"
            refused = negated(_passes(first)) if first.is_conditional else all_of()
            self.add(members, outcome, all_of(base, refused))

    def allow_list(self, section: Class, allowing: list[_Entry], entries: list[_Entry]) -> None:
        names = list(dict.fromkeys(entry.policy.name for entry in allowing))
        outcome = self.posture(section)
        condition = any_of(
            *(
                all_of(event, negated(_matches(entries, names)))
                for event, names in _accesses(section)
            )
        )
        severity = max(entry.severity for entry in allowing)
        message = f"{section}: not in the allow-list of {', '.join(names[:BY_MAX])}"
        tags = tuple(dict.fromkeys(tag for entry in allowing for tag in entry.tags))
        self.rule(
            f"allow-list {section}", condition, outcome, severity, tags, message, allowing,
            ",".join(names),
        )  # fmt: skip

    def add(self, members: list[_Entry], outcome: Outcome, condition: Expr) -> None:
        first = members[0]
        message = first.message or f"{first.section} policy {first.policy.name}"
        self.rule(
            f"{first.policy.name} {first.section}", condition, outcome, first.severity,
            first.tags, message, members, first.policy.name,
        )  # fmt: skip

    def rule(
        self,
        base: str,
        condition: Expr,
        outcome: Outcome,
        severity: int,
        tags: tuple[str, ...],
        message: str,
        members: list[_Entry],
        policy: str,
    ) -> None:
        first = members[0]
        words = {"allow": "allowed", "audit": "audit", "would_block": "would block"}[outcome]
        name, number = base, 1
        while name in self.decisions:
            number += 1
            name = f"{base} {number}"
        escaped = shown(message).replace("%", "%%")
        self.rules.append(
            Rule(
                name=name,
                condition=condition,
                output=f"{escaped} ({words}): {_OUTPUTS[first.section]}",
                priority=priority(severity),
                tags=tags,
                enabled=outcome != "allow",
                description=message,
                file=first.policy.file,
                line=place(first.node)[0],
            )
        )
        self.decisions[name] = Decision(
            outcome,
            policy,
            first.section,
            tuple(entry.text for entry in members[:BY_MAX]),
            tuple(entry.where for entry in members[:BY_MAX]),
        )


BY_MAX: Final = 16

_PROCESS: Final = "%proc.cmdline (executable %proc.exepath, user %user.name, parent %proc.pexepath)"
_OUTPUTS: Final[dict[Class, str]] = {
    "process": _PROCESS,
    "file": "%evt.type "
    + " ".join(f"%{name}" for _, name in FILE_PLACES)
    + f" (%evt.arg.flags) by {_PROCESS}",
    "network": "%evt.type %fd.l4proto %fd.name (domain=%evt.arg.domain type=%evt.arg.type) by "
    + _PROCESS,
    "capabilities": "%capability.name was used by " + _PROCESS,
    "syscalls": f"%evt.type %fd.name by {_PROCESS}",
}


def priority(severity: int) -> int:
    """Return the priority (index into core.signal.PRIORITIES) of a severity, 1 to 10."""
    name = ("INFORMATIONAL", "NOTICE", "WARNING", "ERROR", "CRITICAL")[(severity - 1) // 2]
    return PRIORITIES.index(name)


def _group(entry: _Entry) -> object:
    """Entries with the same group make one rule: they differ in what they name alone."""
    return (
        entry.policy.name, entry.action, entry.level, entry.sources, entry.source_dirs,
        entry.owner_only, entry.owner_uid, entry.read_only, entry.allowed_args, entry.severity,
        entry.tags, entry.message, entry.syscalls,
    )  # fmt: skip


def _keys(entry: _Entry) -> list[tuple[object, ...]]:
    return [
        (entry.key, value, entry.recursive, source, entry.source_dirs, entry.syscalls)
        for value in entry.values
        for source in entry.sources or ("",)
    ]


def _below(path: str, entry: _Entry) -> bool:
    """Whether a path lies in the directory of an entry."""
    folder = entry.values[0]
    return path.startswith(folder) and (entry.recursive or "/" not in path[len(folder) :])


def _overlap(first: _Entry, second: _Entry) -> bool:
    """Whether one event can fit both keys; True where that is not easily told."""
    if first.sources and second.sources and not set(first.sources) & set(second.sources):
        return False
    if first.section == "process":
        # An exec has two paths, that of the file that was asked for and that of what runs, and
        # each entry may fit another of them.
        return True
    match first.key, second.key:
        case "path", "path":
            return bool(set(first.values) & set(second.values))
        case ("path", "dir") | ("dir", "path"):
            exact, below = (first, second) if first.key == "path" else (second, first)
            return any(_below(path, below) for path in exact.values)
        case "dir", "dir":
            one, other = first.values[0], second.values[0]
            return one.startswith(other) or other.startswith(one)
        case ("protocol", "protocol") | ("capability", "capability"):
            return first.values == second.values
    return True


def _types(names: Iterable[str]) -> Expr:
    return one_of("evt.type", [name.encode() for name in names])


def _accesses(section: Class) -> list[tuple[Expr, tuple[str, ...]]]:
    """Return what is decided about: (the check that an event is one, the fields of its key).

    A call with two paths is two accesses, each of which is decided by itself; an exec with two is
    one, see _overlap.
    """
    match section:
        case "process":
            event = all_of(_types(fields.EXECS), check("evt.rawres", "=", 0))
            return [(event, ("proc.exepath", "evt.arg.filename"))]
        case "file":
            succeeded = check("evt.failed", "=", 0)
            return [(all_of(_types(events), succeeded), (name,)) for events, name in FILE_PLACES]
        case "network":
            return [
                (all_of(_types(_CONNECTING), check("fd.l4proto", "exists")), ("fd.l4proto",)),
                (all_of(_types((_MADE,)), any_of(*map(_socket, _PROTOCOLS))), (_MADE,)),
            ]
        case "capabilities":
            used = all_of(_types((_USED,)), check("evt.failed", "=", 0))
            return [(used, ("capability.name",))]
    return [(all_of(), ())]


def _matches(entries: Sequence[_Entry], names: tuple[str, ...]) -> Expr:
    """Return the check that an access fits one of some entries, their sources included.

    names  the fields that a path can be in; one that fits is enough
    """
    by_source: dict[tuple[object, ...], list[_Entry]] = {}
    for entry in entries:
        by_source.setdefault((entry.sources, entry.source_dirs), []).append(entry)
    return any_of(
        *(
            all_of(_from(members[0]), any_of(*_key_checks(members, names)))
            for members in by_source.values()
        )
    )


def _from(entry: _Entry) -> Expr:
    if not entry.sources and not entry.source_dirs:
        return all_of()
    name = "proc.pexepath" if entry.section == "process" else "proc.exepath"
    found: list[Expr] = []
    if entry.sources:
        found.append(one_of(name, [source.encode() for source in entry.sources]))
    found += [_in_directory(name, folder, deep) for folder, deep in entry.source_dirs]
    return any_of(*found)


def _in_directory(name: str, folder: str, recursive: bool) -> Expr:
    folder = folder.rstrip("/") + "/"
    if recursive:
        return check(name, "startswith", folder.encode())
    if name == "fd.name":
        return check("fd.directory", "=", folder.rstrip("/").encode() or b"/")
    return regex(name, literal_regex(folder.encode()) + b"[^/]+")


def _key_checks(entries: Sequence[_Entry], names: tuple[str, ...]) -> list[Expr]:
    found: list[Expr] = []
    section = entries[0].section
    if section == "syscalls":
        return [_syscall(entry) for entry in entries]
    if section == "network":
        protocols = [entry.values[0] for entry in entries]
        if names == (_MADE,):
            return [_socket(protocol) for protocol in protocols]
        return [one_of("fd.l4proto", [protocol.encode() for protocol in protocols])]
    if section == "capabilities":
        return [one_of("capability.name", [entry.values[0].encode() for entry in entries])]
    paths = [value.encode() for e in entries if e.key == "path" for value in e.values]
    for name in names:
        if paths:
            found.append(one_of(name, paths))
        for entry in entries:
            value = entry.values[0]
            if entry.key == "execname":
                found.append(check(name, "endswith", b"/" + value.encode()))
            elif entry.key == "dir":
                found.append(_in_directory(name, value, entry.recursive))
            elif entry.key == "pattern":
                found.append(regex(name, pattern_regex(value)))
    return found


def _socket(protocol: str) -> Expr:
    """Return the check that a socket of a protocol is made."""
    domains, kind, numbers = _SOCKETS[protocol]
    found: list[Expr] = [
        one_of("evt.arg.domain", [domain.encode() for domain in domains]),
        one_of("evt.arg.type", [b"%d" % (kind | flags) for flags in _TYPE_FLAGS]),
    ]
    if numbers:
        found.append(one_of("evt.arg.proto", [b"%d" % number for number in numbers]))
    return all_of(*found)


def _syscall(entry: _Entry) -> Expr:
    if entry.key == "syscall":
        return one_of("evt.type", [name.encode() for name in entry.values])
    found: list[Expr] = []
    for events, name in _PATH_FIELDS:
        calls = [call.encode() for call in entry.syscalls if call in events]
        if not calls:
            continue
        paths: list[Expr] = []
        for path in entry.values:
            if path.endswith("/"):
                paths.append(_in_directory(name, path, entry.recursive))
            else:
                paths.append(check(name, "pmatch" if entry.recursive else "=", path.encode()))
        found.append(all_of(one_of("evt.type", calls), any_of(*paths)))
    return any_of(*found)


def _passes(entry: _Entry) -> Expr:
    """Return the check that a conditional entry lets an event pass: all its flags agree."""
    found: list[Expr] = []
    if entry.owner_only:
        owns: Expr = check("fs.is_owner", "=", 1)
        if entry.section == "file":
            unopened = all_of(_types(_FILE_CALLS), check("user.uid", "=", entry.owner_uid))
            owns = any_of(owns, unopened)
        found.append(owns)
    if entry.read_only:
        found.append(check("evt.is_open_write", "=", 0))
    if entry.allowed_args is not None:
        one = b"|".join(literal_regex(arg.encode()) for arg in entry.allowed_args)
        found.append(regex("proc.args", b"(?:(?:" + one + b")(?: (?:" + one + b"))*)?"))
    return all_of(*found)


def tables() -> str:
    """Return what the classes are about as docs/kubearmor.md has it, in Markdown."""
    rows = [
        ("process", ", ".join(fields.EXECS), "proc.exepath, evt.arg.filename"),
        *(("file", ", ".join(events), name) for events, name in FILE_PLACES),
        ("network", ", ".join((_MADE, *_CONNECTING)), ""),
        ("capabilities", f"{_USED}: the kernel asked for one, and the process had it", ""),
        ("syscalls", "every syscall that is captured, but write", ""),
        *(("syscalls.matchPaths", ", ".join(events), name) for events, name in _PATH_FIELDS),
    ]
    lines = ["| class | syscalls | path |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
