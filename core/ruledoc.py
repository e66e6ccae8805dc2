"""The page of docs that lists shipped rules, made from the rules themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vedette.core.rules import Rule
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


def main() -> None:
    """Write docs/shipped-rules.md of the checkout that this file is in."""
    from vedette.core.rules import load_rules

    root = Path(__file__).resolve().parent.parent
    page = shipped_rules_page(load_rules([root / "rules"]).rules)
    (root / "docs/shipped-rules.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
