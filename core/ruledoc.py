"""The parts of docs that are made: the list of shipped rules, and the tables of the languages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vedette.core import fields, kubearmor, sigma_fields
from vedette.core.rules import Rule, load_rules
from vedette.core.signal import PRIORITIES

_TECHNIQUE = re.compile(r"T[0-9]{4}(?:\.[0-9]{3})?")
_TACTIC = "mitre_"

_HEAD = """\
# Shipped rules

{count} rules in {files} files below `rules/`. Load `base.yaml` first, then any of the others; a
folder stands for all of its files. Every rule has test cases in `rules/tests`, see
[rule-tests.md](rule-tests.md). This page is made from the rules: `python -m vedette.core.ruledoc`.

Rules of priority WARNING and above are quiet on an ordinary Debian host that runs sshd, cron, apt
and a web server; `tests/fleet/test_quiet.py` runs such a day. Those marked *no alert* only feed
sequences. Techniques are those of MITRE ATT&CK. To fit a rule to a site, define its lists and
macros again in a file that is loaded later, or switch it off:

    - rule: outbound_ssh
      enabled: false
"""


def _row(rule: Rule) -> str:
    priority = PRIORITIES[rule.priority] + ("" if rule.alert else ", *no alert*")
    text = " ".join(rule.description.split()).replace("|", "\\|")
    return f"| `{rule.name}` | {priority} | {', '.join(techniques(rule))} | {text} |"


def tactics(rule: Rule) -> list[str]:
    """Return the names of the ATT&CK tactics that a rule's tags name, in their order."""
    return [tag.removeprefix(_TACTIC) for tag in rule.tags if tag.startswith(_TACTIC)]


def techniques(rule: Rule) -> list[str]:
    """Return the numbers of the ATT&CK techniques that a rule's tags name, in their order."""
    return [tag for tag in rule.tags if _TECHNIQUE.fullmatch(tag)]


def shipped_rules_page(rules: Sequence[Rule]) -> str:
    """Return the page, in Markdown: a table for each file, in the rules' order."""
    by_file: dict[str, list[Rule]] = {}
    for rule in rules:
        by_file.setdefault(Path(rule.file).name, []).append(rule)
    parts = [_HEAD.format(count=len(rules), files=len(by_file))]
    for name, some in by_file.items():
        rows = "\n".join(_row(rule) for rule in some)
        head = "| rule | priority | techniques | what it says |\n|---|---|---|---|"
        parts.append(f"## {name}\n\n{head}\n{rows}\n")
    return "\n".join(parts)


_TABLES: Final = (
    ("rules.md", "| field | type | of | meaning |", "", fields.markdown),
    ("sigma.md", "### process_creation", "## Choices", sigma_fields.tables),
    ("kubearmor.md", "| class | syscalls | path |", "What is not seen", kubearmor.tables),
)
"""Page, where its made part begins, what follows it, and what makes it."""


def main() -> None:
    """Write what is made of docs, in the checkout that this file is in."""
    docs = Path(__file__).resolve().parent.parent / "docs"
    page = shipped_rules_page(load_rules([docs.parent / "rules"]).rules)
    (docs / "shipped-rules.md").write_text(page, encoding="utf-8")
    for name, first, behind, make in _TABLES:
        text = (docs / name).read_text(encoding="utf-8")
        begin = text.index(first)
        end = text.index(behind, begin) if behind else len(text)
        made = make().strip() + "\n" + ("\n" if behind else "")
        (docs / name).write_text(text[:begin] + made + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
