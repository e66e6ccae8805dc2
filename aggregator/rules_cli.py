"""The commands for people who write rules: `vedette rules` and `vedette fields`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vedette.aggregator import explain_cli, rules_test_cli
from vedette.aggregator.terminal import counted, example
from vedette.core import fields as catalogue
from vedette.core.condition import condition_text, event_types
from vedette.core.convert import CONDITION_WIDTH, converted
from vedette.core.documents import Finding
from vedette.core.fields import FIELDS, Field, seen_events
from vedette.core.fleet import PSEUDO_FIELDS
from vedette.core.output import clean
from vedette.core.ruleload import AnyRules, load_any, rule_files
from vedette.core.rules import Rule, RuleSet
from vedette.core.ruleyaml import CODES
from vedette.core.signal import PRIORITIES

EXIT_RUNTIME = 1
EXIT_USAGE = 2
# Lines that are piped are not folded, so that grep finds what stands in them.
PIPED_WIDTH = 10_000


rules_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Rule files: check them, list their rules, show what a rule comes to; and bring them to "
    "the fleet, signed.",
    epilog="Exit codes: 0 done, 1 no such rule, 2 the files have errors, or usage.",
)

FilesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="Rule files in Falco's form, KubeArmor policies and Sigma rules, in their order; of a "
        "folder all *.yaml and *.yml, but what lies in a folder `tests`.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SkipOption = Annotated[
    bool,
    typer.Option(
        "--skip-unknown",
        help="Leave out rules that need unknown fields or events, with a warning, as if each had "
        "`skip-if-unknown-filter: true`.",
    ),
]


@rules_app.command(
    "check",
    epilog=example(
        "vedette rules check rules",
        "vedette rules check falco_rules.yaml local.yaml --skip-unknown",
        "vedette rules check rules --json | jq '.falco_load_results[].errors'",
    )
    + "\n\nExit codes: 0 no errors (with --strict: and no warnings), 2 there are.",
)
def check(
    files: FilesArgument,
    skip_unknown: SkipOption = False,
    strict: Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check rule files: all errors and warnings, each with file, line and column.

    All files are one text, in their order. JSON has the form of `falco --validate`; what KubeArmor
    policies and Sigma rules have wrong stands in it as an error or warning of an extension.
    """
    result = load_any(files, skip_unknown=skip_unknown)
    empty = [path for path in files if path.is_dir() and not any(rule_files([path]))]
    if as_json:
        _print_json(_as_falco(result))
    else:
        falco = result.falco
        told = (*falco.errors, *falco.warnings) if falco is not None else ()
        others = [item for item in result.findings if not _is_falco(result, item)]
        for line in (*told, *others):
            _print_error(str(line))
        for text in _summary(result):
            _print(text)
        for path in empty:
            _print_error(f"{path}: warning: a folder without *.yaml or *.yml")
    if result.errors or (strict and (result.warnings or empty)):
        raise typer.Exit(EXIT_USAGE)


def _is_falco(result: AnyRules, finding: Finding) -> bool:
    """Whether the loader of Falco's form has told it, which it does with the line itself."""
    return result.kinds.get(finding.file) == "falco" and finding.code in CODES


def _as_falco(result: AnyRules) -> dict[str, Any]:
    found: dict[str, Any] = {"falco_load_results": []}
    if result.falco is not None:
        found = result.falco.as_falco()
    shown = {entry["name"]: entry for entry in found["falco_load_results"]}
    for finding in result.findings:
        if _is_falco(result, finding):
            continue
        entry = shown.setdefault(
            finding.file, {"name": finding.file, "successful": True, "errors": [], "warnings": []}
        )
        is_error = finding.severity == "error"
        code = "LOAD_ERR_EXTENSION" if is_error else "LOAD_WARNING_EXTENSION"
        position = {"name": finding.file, "line": finding.line, "column": finding.column}
        entry["successful"] = entry["successful"] and not is_error
        entry["errors" if is_error else "warnings"].append(
            {
                "code": code,
                "codedesc": CODES[code],
                "message": finding.message,
                "context": {
                    "locations": [
                        {
                            "item_type": "extension item",
                            "item_name": finding.subject,
                            "position": position,
                        }
                    ],
                    "snippet": "",
                },
            }
        )
    for name in result.kinds:
        shown.setdefault(name, {"name": name, "successful": True, "errors": [], "warnings": []})
    found["falco_load_results"] = list(shown.values())
    return found


def _summary(result: AnyRules) -> Iterable[str]:
    errors = Counter(error.file for error in result.errors)
    warnings = Counter(warning.file for warning in result.warnings)
    rules = Counter(rule.file for rule in result.rules.rules)
    for name in dict.fromkeys([*result.kinds, *errors, *warnings]):
        kind = result.kinds.get(name, "unknown")
        yield (
            f"{name}: {counted(rules[name], 'rule')} ({kind}), {counted(errors[name], 'error')}, "
            + counted(warnings[name], "warning")
        )
    if result.falco is None:
        return
    for plugin in result.falco.plugins:
        wanted = " or ".join(f"{name} {version}" for name, version in plugin.alternatives)
        yield f"{plugin.file}:{plugin.line}: wants the plugin {wanted}; Vedette needs none"
    if result.falco.failed:
        usable = len(result.falco.rules)
        every = usable + len(result.falco.failed)
        yield f"{usable} of {every} rules can be used; these cannot:"
        for name, reasons in result.falco.failed.items():
            yield f"  {name}: {'; '.join(reasons)}"


@rules_app.command(
    "list",
    epilog=example(
        "vedette rules list rules",
        "vedette rules list rules --tag credentials",
        "vedette rules list rules --json | jq -r .rule",
    ),
)
def list_rules(
    files: FilesArgument,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Only rules with all of these tags.")
    ] = None,
    skip_unknown: SkipOption = False,
    as_json: JsonOption = False,
) -> None:
    """List the rules of files, in their order, with priority, tags and place."""
    result = load_any(files, skip_unknown=skip_unknown)
    wanted = set(tag or ())
    found = [rule for rule in result.rules.rules if wanted <= set(rule.tags)]
    if as_json:
        for rule in found:
            _print_json(_rule_json(rule))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in ("rule", "priority", "on", "tags", "place"):
            table.add_column(column, overflow="fold")
        for rule in found:
            on = ("yes" if rule.alert else "feeds sequences") if rule.enabled else "no"
            table.add_row(
                Text(_clean(rule.name)),
                PRIORITIES[rule.priority].lower(),
                on,
                Text(_clean(" ".join(rule.tags))),
                Text(_clean(f"{rule.file}:{rule.line}")),
            )
        _console().print(table)
    _end(result)


@rules_app.command(
    "show",
    epilog=example(
        "vedette rules show 'Read sensitive file untrusted' falco_rules.yaml",
        "vedette rules show shell_reads_shadow rules --json",
    ),
)
def show(
    rule_name: Annotated[str, typer.Argument(metavar="RULE", help="The rule's name.")],
    files: FilesArgument,
    as_json: JsonOption = False,
) -> None:
    """Show one rule as it is used: macros, lists, exceptions and overrides put in."""
    result = load_any(files)
    found = [rule for rule in result.rules.rules if rule.name == rule_name]
    if not found:
        failed = {} if result.falco is None else result.falco.failed
        reasons = failed.get(rule_name)
        if reasons is not None:
            _print_error(f"the rule {rule_name} cannot be used: {'; '.join(reasons)}")
        else:
            names = [*(rule.name for rule in result.rules.rules), *failed]
            _print_error(f"no rule {rule_name}{_hint(rule_name, names)}")
            if result.errors:
                _print_error("the files have errors; `vedette rules check` shows them")
        raise typer.Exit(EXIT_RUNTIME)
    (rule,) = found
    shown = _rule_json(rule)
    if as_json:
        _print_json(shown)
        return
    lines = [f"rule: {rule.name}", f"place: {rule.file}:{rule.line}"]
    if rule.description:
        lines.append(f"desc: {' '.join(rule.description.split())}")
    lines.append(f"priority: {PRIORITIES[rule.priority]}")
    lines.append(f"tags: [{', '.join(rule.tags)}]")
    lines += [f"{key}: {str(shown[key]).lower()}" for key in ("enabled", "alert", "capture")]
    events = shown["events"]
    lines.append(f"events: {'all' if events is None else ', '.join(events)}")
    lines += ["condition:", *_indented(condition_text(rule.condition, CONDITION_WIDTH))]
    lines += ["output:", *_indented(rule.output)]
    for line in lines:
        _print(line)


@rules_app.command(
    "convert",
    epilog=example(
        "vedette rules convert sigma/rules/linux --skip-unknown --output linux.yaml",
        "vedette rules convert policy.yaml | less",
        "vedette rules convert falco_rules.yaml local.yaml --rule 'Read sensitive file untrusted'",
    ),
)
def convert(
    files: FilesArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to FILE, not to the output."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(metavar="RULE", help="Only this rule; may be repeated.")
    ] = None,
    skip_unknown: SkipOption = False,
) -> None:
    """Write rules of any language in Vedette's own YAML, one file for all of them.

    Macros, lists, exceptions and overrides are put in. Correlations of Sigma become sequences; what
    a policy of KubeArmor decides stands in a comment. Read again, the file gives the same rules.
    Nothing is written where the files have errors.
    """
    result = load_any(files, skip_unknown=skip_unknown)
    if result.errors:
        _print_error(result.told)
        _print_error(f"nothing is written: {counted(len(result.errors), 'error')}")
        raise typer.Exit(EXIT_USAGE)
    if rule:
        kept = [item for item in result.rules.rules if item.name in rule]
        for name in set(rule) - {item.name for item in kept}:
            names = [item.name for item in result.rules.rules]
            _print_error(f"no rule {name}{_hint(name, names)}")
            raise typer.Exit(EXIT_RUNTIME)
        result = replace(result, rules=RuleSet(tuple(kept), result.rules.digest), sequences=())
    text = converted(result)
    if output is None:
        sys.stdout.write(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        _print_error(f"{output}: {error.strerror}")
        raise typer.Exit(EXIT_RUNTIME) from None
    written = [counted(len(result.rules.rules), "rule")]
    if result.sequences:
        written.append(counted(len(result.sequences), "sequence"))
    _print(f"{output}: {' and '.join(written)}")


def _indented(text: str) -> Iterable[str]:
    return (f"  {line}" for line in text.split("\n"))


def _rule_json(rule: Rule) -> dict[str, Any]:
    seen = seen_events(rule.condition)
    events = sorted(event_types(rule.condition) & seen)
    return {
        "rule": rule.name,
        "desc": rule.description,
        "priority": PRIORITIES[rule.priority],
        "tags": list(rule.tags),
        "enabled": rule.enabled,
        "alert": rule.alert,
        "capture": rule.capture,
        "capture_ms": rule.capture_ms,
        "file": rule.file,
        "line": rule.line,
        "events": None if len(events) == len(seen) else events,
        "condition": condition_text(rule.condition),
        "output": rule.output,
    }


def _end(result: AnyRules) -> None:
    if result.errors:
        _print_error(f"{counted(len(result.errors), 'error')}; `vedette rules check` shows them")
        raise typer.Exit(EXIT_USAGE)


def fields(
    prefix: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Only fields whose names begin so.")
    ] = "",
    captured: Annotated[
        bool, typer.Option("--captured", help="Only fields that an event can have a value of.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of the guide, of all fields.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
) -> None:
    """List the fields that conditions, outputs and joins can name.

    Of the fields that Falco has, those are listed, too, that a host never has a value of, and those
    that are not captured yet, with what is missing.
    """
    if markdown:
        sys.stdout.write(catalogue.markdown())
        return
    every: dict[str, Field] = {**FIELDS, **PSEUDO_FIELDS}
    found = [
        field
        for name, field in every.items()
        if name.startswith(prefix)
        and not (captured and name in FIELDS and (field.is_absent or not field.captured))
    ]
    if not found:
        _print_error(f"no field {prefix}{_hint(prefix, every)}")
        raise typer.Exit(EXIT_RUNTIME)
    if as_json:
        for field in found:
            _print_json(_field_json(field))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("field", no_wrap=True, style="bold")
    table.add_column("type", no_wrap=True)
    table.add_column("of", overflow="fold")
    table.add_column("what it is", overflow="fold")
    for field in found:
        row = _field_json(field)
        about = field.description + (f" (missing: {field.needs})" if field.needs else "")
        table.add_row(Text(row["name"]), field.type, Text(row["of"]), Text(about))
    _console().print(table)


def _field_json(field: Field) -> dict[str, Any]:
    """Return a field as JSON is to show it; ``for`` says which language has it."""
    is_pseudo = field.name in PSEUDO_FIELDS
    brackets = {"none": "", "optional": "[n]", "key": "[name]"}[field.argument]
    return {
        "field": field.name,
        "name": field.name + brackets,
        "type": field.type,
        "for": "sequences" if is_pseudo else "rules, sequences",
        "of": "the fleet" if is_pseudo else catalogue.events_text(field),
        "description": field.description,
        "events": list(field.events),
        "captured": field.captured,
        "absent": not is_pseudo and field.is_absent,
        "needs": field.needs,
    }


def mount(app: typer.Typer) -> None:
    """Add `rules` and `fields` to the command."""
    rules_app.command("test", epilog=rules_test_cli.EPILOG)(rules_test_cli.test)
    rules_app.command("explain", epilog=explain_cli.EPILOG)(explain_cli.explain_rule)
    rules_app.command("cost", epilog=explain_cli.COST_EPILOG)(explain_cli.cost_of_rules)
    app.add_typer(rules_app, name="rules")
    app.command(
        "fields",
        epilog=example("vedette fields", "vedette fields fd.", "vedette fields --json"),
    )(fields)


def _hint(name: str, known: Iterable[str]) -> str:
    near = catalogue.nearest(name, known)
    return "" if near is None else f"; did you mean {near}?"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def _clean(text: str) -> str:
    return clean(text.encode("utf-8", "backslashreplace"))


def _print(text: str) -> None:
    print(_clean(text))


def _print_error(text: str) -> None:
    for line in text.splitlines():
        print(f"vedette: {_clean(line)}", file=sys.stderr)


def _print_json(row: dict[str, Any]) -> None:
    sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
