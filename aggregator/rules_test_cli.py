"""`vedette rules test`: run the cases that stand beside rules."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from vedette.aggregator.terminal import counted
from vedette.core.output import clean
from vedette.core.ruletest import (
    CaseError,
    CaseErrors,
    CaseFile,
    Result,
    UnsupportedRule,
    case_files,
    coverage,
    junit,
    load_cases,
    run_cases,
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EPILOG = (
    "Examples:\n\n`vedette rules test rules/tests`\n\n"
    "`vedette rules test --complete --junit report.xml rules/tests/ssh.yaml`\n\n"
    "`vedette rules test --json rules/tests | jq '.cases[] | select(.passed | not)'`\n\n"
    "Exit codes: 0 all pass, 1 a case fails or, with --complete, is missing, 2 a file cannot be "
    "used."
)


def _run(path: Path) -> tuple[CaseFile | None, list[Result], list[CaseError]]:
    try:
        file = load_cases(path)
        return file, run_cases(file), []
    except CaseErrors as error:
        return None, [], list(error.errors)
    except UnsupportedRule as error:
        return None, [], [CaseError(str(path), 0, 0, "", f"rules: {error}")]


def _show(results: list[Result], errors: list[CaseError], gaps: list[str], files: int) -> None:
    for error in errors:
        typer.echo(str(error))
    for result in results:
        for problem in result.problems:
            case = result.case
            name = clean(case.name.encode())
            typer.echo(f'{case.file}:{case.line}: case "{name}": {clean(problem.encode())}')
    for gap in gaps:
        typer.echo(gap)
    failed = sum(not result.passed for result in results)
    typer.echo(
        f"{len(results) - failed} passed, {failed} failed, {counted(len(errors), 'error')} in "
        + counted(files, "file")
        + (f", {len(gaps)} cases missing" if gaps else "")
    )


def _gaps(files: list[CaseFile]) -> list[str]:
    found = coverage(files)
    return [f'rule "{clean(name.encode())}": no case that it matches'
            for name in found.without_match] + [
        f'rule "{clean(name.encode())}": no case that it does not match'
        for name in found.without_no_match
    ]  # fmt: skip


def test(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Files of cases, or folders of them.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit's XML to FILE.")
    ] = None,
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="Fail where a rule has no case that it matches or none that it does not.",
        ),
    ] = False,
) -> None:
    """Run test cases of rules: events, and the rules that they match.

    Each event goes through the engine as it runs on a host, and through its slow twin.
    """
    loaded: list[CaseFile] = []
    results: list[Result] = []
    errors: list[CaseError] = []
    count = 0
    try:
        for path in case_files(files):
            count += 1
            file, some, wrong = _run(path)
            loaded += [] if file is None else [file]
            results += some
            errors += wrong
    except CaseErrors as error:
        errors += error.errors
    except OSError as error:
        errors.append(CaseError(str(error.filename), 0, 0, "", error.strerror or str(error)))
    if not count and not errors:
        names = ", ".join(map(str, files))
        errors.append(CaseError(names, 0, 0, "", "no cases: a folder without *.yaml or *.yml"))
    gaps = _gaps(loaded) if complete else []
    if junit_file is not None:
        try:
            junit_file.write_bytes(junit(results, errors))
        except OSError as error:
            message = f"cannot be written: {error.strerror}"
            errors.append(CaseError(str(junit_file), 0, 0, "", message))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(_json(results, errors, gaps, count)) + b"\n")
    else:
        _show(results, errors, gaps, count)
    if errors:
        raise typer.Exit(EXIT_USAGE)
    if gaps or not all(result.passed for result in results):
        raise typer.Exit(EXIT_FAILED)


def _json(
    results: list[Result], errors: list[CaseError], gaps: list[str], files: int
) -> dict[str, Any]:
    failed = sum(not result.passed for result in results)
    return {
        "files": files,
        "passed": len(results) - failed,
        "failed": failed,
        "errors": [
            {"file": e.file, "line": e.line, "column": e.column, "case": e.case,
             "message": e.message}
            for e in errors
        ],
        "missing": gaps,
        "cases": [
            {
                "file": result.case.file,
                "line": result.case.line,
                "case": result.case.name,
                "passed": result.passed,
                "matched": result.matched,
                "problems": result.problems,
            }
            for result in results
        ],
    }  # fmt: skip
