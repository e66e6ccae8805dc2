"""Rule files of any language: told apart by their content, and read within bounds."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vedette.core import documents
from vedette.core.documents import DocumentError
from vedette.core.kubearmor import Host, pattern_regex
from vedette.core.patterns import PatternError, compile_regex
from vedette.core.records import build
from vedette.core.ruleload import AnyRules, load_any
from vedette.core.rules import Template
from vedette.core.twin import Twin

FALCO = "- rule: f\n  condition: evt.type = chdir\n  output: x\n  priority: notice\n"
SIGMA = (
    "title: s\nlogsource: {category: process_creation}\ndetection: {a: {Image: /x}, condition: a}\n"
)
KUBEARMOR = (
    "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\nmetadata: {name: k}\n"
    "spec: {nodeSelector: {matchLabels: {a: b}}, apparmor: x, file: {matchPaths: [{path: /x}]}}\n"
)


def load(tmp_path: Path, *texts: str | bytes, host: Host | None = None) -> AnyRules:
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_any([tmp_path], host)


def kinds(made: AnyRules) -> list[str]:
    return [kind for _, kind in sorted(made.kinds.items())]


def messages(made: AnyRules) -> str:
    return "\n".join(str(found) for found in made.findings)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (FALCO, "falco"), (f"---\n{FALCO}", "falco"), (f"# x\n\n  # y\n---\n{FALCO}", "falco"),
        (f"\ufeff{FALCO}", "falco"), ("[]", "falco"), ("", "falco"), (" \n", "falco"),
        (SIGMA, "sigma"), (f"---\n{SIGMA}", "sigma"), (f"--- # x\r\n{SIGMA}", "sigma"),
        (f"%YAML 1.1\n---\n{SIGMA}", "sigma"), (f"\ufeff{SIGMA}", "sigma"),
        (KUBEARMOR, "kubearmor"), (f"---\n{KUBEARMOR}---\n", "kubearmor"),
        (f"{KUBEARMOR}---\n{SIGMA}", "kubearmor and sigma"),
    ],
)  # fmt: skip
def test_languages_are_told_apart(tmp_path: Path, text: str, kind: str) -> None:
    made = load(tmp_path, text)
    assert kinds(made) == [kind]
    assert made.errors == ()
    assert (made.falco is not None) == (kind == "falco")
    letters = {"falco": "f", "sigma": "s", "kubearmor": "k"}
    expected = [letters[part] for part in kind.split(" and ")] if len(text) > 5 else []
    assert [rule.name[0] for rule in made.rules.rules] == expected


def test_what_is_none_of_them_is_an_error(tmp_path: Path) -> None:
    made = load(tmp_path, "a: b", FALCO)
    assert "0.yaml:1:1: error: neither a list of rules" in messages(made)
    assert [rule.name for rule in made.rules.rules] == ["f"]


def test_files_of_all_languages_are_one_load(tmp_path: Path) -> None:
    made = load(tmp_path, SIGMA, KUBEARMOR, FALCO)
    assert kinds(made) == ["sigma", "kubearmor", "falco"]
    assert [rule.name for rule in made.rules.rules] == ["f", "k file", "s"]
    assert made.decisions["k file"].outcome == "would_block"
    assert {found.severity for found in made.warnings} == {"warning"}
    other = load(tmp_path, host=Host("h", {"a": "c"}))
    assert [rule.name for rule in other.rules.rules] == ["f", "s"]
    assert other.skipped == ("k",)
    assert other.decisions == {}


def test_the_digest_is_over_all_files(tmp_path: Path) -> None:
    first = load(tmp_path, SIGMA, KUBEARMOR).rules.digest
    assert load(tmp_path, SIGMA, KUBEARMOR).rules.digest == first
    assert load(tmp_path, SIGMA, KUBEARMOR + "\n").rules.digest != first
    assert load(tmp_path, SIGMA + KUBEARMOR, "").rules.digest != first


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    made = load(tmp_path, FALCO, SIGMA.replace("title: s", "title: f"))
    assert [rule.name for rule in made.rules.rules] == ["f"]
    assert 'rule "f": the name is taken already, at ' in messages(made)


def test_errors_of_each_language_stop_no_other(tmp_path: Path) -> None:
    made = load(
        tmp_path,
        FALCO.replace("evt.type", "evt.tpye"),
        SIGMA.replace("Image", "Imag"),
        KUBEARMOR.replace("/x", "x"),
        SIGMA.replace("title: s", "title: t"),
        b"title: \xff",
        ": x: [",
    )
    assert [rule.name for rule in made.rules.rules] == ["t"]
    assert made.errors[0].code.startswith("LOAD_ERR_")
    places = [(Path(found.file).name, found.line > 0) for found in made.errors]
    assert places == [(f"{number}.yaml", True) for number in (0, 1, 2, 4, 5)]


def test_directories_are_read_to_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.yml").write_text(SIGMA)
    (tmp_path / "a/x.txt").write_text("no rule")
    (tmp_path / "a/d.yaml").mkdir()
    assert [rule.name for rule in load_any([tmp_path]).rules.rules] == ["s"]
    missing = load_any([tmp_path / "missing.yaml", tmp_path / "a/b/x.yml"])
    assert "missing.yaml: error: No such file or directory" in messages(missing)
    assert [rule.name for rule in missing.rules.rules] == ["s"]


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 200000 values, aliases included"),
        ("title: " + "[" * 100_000, "nested deeper than 32 levels"),
        ("title:\n" + "".join(f"{' ' * n}- \n" for n in range(1, 100)), "deeper than 32 levels"),
        ("title: &a [*a]", "*a is part of itself"),
        ("title: *a", "undefined alias"),
        ("title: 'x", "not YAML"),
        ("title: \x01", "not YAML"),
        ("title: x\n" + "#" * (8 << 20), "larger than 8388608 bytes"),
        ("".join(f"k{n}: v\n" for n in range(100_001)), "more than 200000 values"),
    ],
)
def test_bombs(tmp_path: Path, text: str, message: str) -> None:
    made = load(tmp_path, text, SIGMA)
    assert [rule.name for rule in made.rules.rules] == ["s"]
    (found,) = made.errors
    assert message in found.message


def test_an_alias_is_what_it_stands_for(tmp_path: Path) -> None:
    text = SIGMA.replace("{Image: /x}", "{Image: &v [/x, /y], ParentImage: *v}")
    assert load(tmp_path, text).errors == ()


def test_lists_of_ten_thousand_are_fine(tmp_path: Path) -> None:
    values = ", ".join(f"/x{number}" for number in range(10_000))
    made = load(tmp_path, SIGMA.replace("Image: /x", f"Image|cased: [{values}]"))
    assert made.errors == ()
    (rule,) = made.rules.rules
    assert rule.name == "s"


def test_a_place_that_yaml_knows_is_given() -> None:
    with pytest.raises(DocumentError) as caught:
        documents.compose(b"a: b\nc: [\n", "x")
    assert (caught.value.finding.line, caught.value.finding.file) == (3, "x")
    with pytest.raises(DocumentError) as caught:
        documents.compose("é: a\nb: ".encode() + b"\xff", "x")
    assert (caught.value.finding.line, caught.value.finding.column) == (2, 4)


# Whatever stands in a document, the loaders return.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**70)
    | st.floats()
    | st.text(max_size=5)
    | st.dates()
    | st.sampled_from(["/x", "a and b", "1 of *", "*", "(", "EXECVE", "Block", "1m", "a"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab|*", max_size=3) | SCALARS, inner, max_size=3)
    ),
    max_leaves=6,
)
DOCUMENTS: list[dict[str, Any]] = [
    {
        "title": "a", "id": "x", "name": "a", "level": "low", "status": "test", "tags": ["a.b"],
        "fields": ["User"], "logsource": {"product": "linux", "category": "process_creation"},
        "detection": {"a": {"Image|contains": ["x"]}, "b": ["k"], "condition": "a or not b"},
    },
    {
        "title": "b", "logsource": {"service": "auditd"},
        "detection": {"a": {"type": "EXECVE", "a1|re": "x"}, "b": ["k"], "condition": "a and b"},
    },
    {
        "title": "c",
        "correlation": {
            "type": "value_count", "rules": ["a"], "group-by": ["w"], "timespan": "1m",
            "generate": True, "aliases": {"w": {"a": "User"}},
            "condition": {"gte": 2, "field": "Image"},
        },
    },
    {
        "title": "d",
        "correlation": {"type": "temporal", "rules": ["a", "b"], "timespan": "1m",
                        "condition": "a and b"},
    },
    {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorHostPolicy",
        "metadata": {"name": "k"},
        "spec": {
            "severity": 5, "tags": ["t"], "message": "m", "action": "Audit",
            "nodeSelector": {"matchLabels": {"kubearmor.io/hostnamereg": "h"}},
            "process": {"matchPaths": [{"path": "/x", "allowedArgs": ["a"], "ownerOnly": True}]},
            "file": {
                "matchDirectories": [{"dir": "/d/", "recursive": True, "readOnly": True}],
                "matchPatterns": [{"pattern": "/**/[a-b]?{c,d}"}],
            },
            "network": {"matchProtocols": [{"protocol": "tcp", "fromSource": [{"path": "/x"}]}]},
            "syscalls": {"matchPaths": [{"path": "/x/", "syscall": ["openat"]}]},
            "capabilities": {"matchCapabilities": [{"capability": "x"}]},
        },
    },
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The documents, with something else at a place or two."""
    made = copy.deepcopy(DOCUMENTS)
    for _ in range(draw(st.integers(0, 2))):
        at: Any = made
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(at[key], dict | list) or not draw(st.integers(0, 3)):
                if draw(st.booleans()):
                    at[key] = draw(ANYTHING)
                elif isinstance(at, dict):
                    at[draw(st.text(max_size=3) | st.sampled_from(["action", "filter"]))] = at.pop(
                        key
                    )
                break
            at = at[key]
    return yaml.dump_all(made, allow_unicode=True)


@settings(max_examples=400)
@given(damaged())
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        made = load_any([path], Host("h"))
    for rule in made.rules.rules:
        Template(rule.output)
        assert rule.condition
    assert all(str(found) for found in made.findings)
    Twin(made.rules.rules, on_match=lambda *match: None).feed(build("openat", path=b"/x"))


@given(st.text("/*?[]{},\\^-!a\n", max_size=8))
def test_any_pattern_is_a_regular_expression_or_refused(pattern: str) -> None:
    try:
        compile_regex(pattern_regex(pattern))
    except PatternError as error:
        assert str(error)


HEAD = "title: t\nlogsource: {product: linux, category: process_creation}\n"


def falco(condition: str, number: int = 0, more: str = "") -> str:
    return (
        f"- rule: r{number}\n  condition: evt.type = open and ({condition})\n  output: x\n"
        f"  priority: notice\n{more}"
    )


FLOODS = {
    "unknown fields": "".join(
        falco(" or ".join(f"no.f{i} = 1" for i in range(20_000)), number) for number in range(20)
    ),
    "unknown macros": "".join(falco(f"nosuch{i}", i) for i in range(50_000)),
    "doubtful values": "".join(
        falco("proc.name in (" + ",".join(["'<NA>'"] * 10_000) + ")", number)
        for number in range(60)
    ),
    "unknown keys": falco("proc.name exists", more="".join(f"  k{i}: 1\n" for i in range(200_000))),
    "comments": "#\n" * 4_000_000,
    "documents": "---\n" * 2_000_000,
    "wildcards": HEAD
    + "detection: {a: {CommandLine: ["
    + ",".join("'" + f"*a{i} b" * 30 + "'" for i in range(2_000))
    + "]}, condition: a}\n",
    "directories": "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\n"
    "metadata: {name: p}\nspec:\n  file:\n    matchDirectories:\n"
    + "".join(
        f"    - {{dir: {'/a' * (i % 200 + 1)}/x{i}/, recursive: true, message: m{i}}}\n"
        for i in range(1_000)
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_end_within_a_minute_of_cpu_and_half_a_gigabyte(tmp_path: Path, name: str) -> None:
    path = tmp_path / "flood.yaml"
    path.write_text(FLOODS[name][: 8 << 20])
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from vedette.core.ruleload import load_any\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "load_any([Path(sys.argv[1])])\n"
        # Not ru_maxrss: that begins with what the parent had when it forked.
        "status = Path('/proc/self/status').read_text()\n"
        "print(status.split('VmHWM:')[1].split()[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 << 10
