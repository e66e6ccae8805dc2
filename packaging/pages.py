"""Manual pages and shell completion of both commands, made from what `--help` shows.

    python packaging/pages.py STAGE

writes STAGE/man/*.1, a page for each command and sub-command, and the completion files of bash, zsh
and fish where those shells look for them below STAGE/usr/share.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.completion
import typer.main

from vedette import __version__
from vedette.agent import cli as agent_cli
from vedette.aggregator import cli as aggregator_cli

COMMANDS = {"vedette": aggregator_cli.app, "vedette-agent": agent_cli.app}
COMPLETIONS = {
    "bash": "bash-completion/completions/{}",
    "zsh": "zsh/vendor-completions/_{}",
    "fish": "fish/vendor_completions.d/{}.fish",
}


def walk(
    command: Any, name: str, path: tuple[str, ...], parent: Any = None
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield each command below one, itself included: its words, the command, its context."""
    context = command.context_class(command, info_name=name, parent=parent)
    yield path, command, context
    for word, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from walk(child, word, (*path, word), context)


def roff(text: str) -> str:
    """Return text as roff (groff_man(7)): escaped, `code` bold, **bold** bold, empty lines kept."""
    text = re.sub(r"\[/?(dim|bold|red|green|yellow)\]", "", text)
    text = (
        text.replace("\\", "\\(rs").replace("-", "\\-").replace("'", "\\(aq").replace("^", "\\(ha")
    )
    text = text.replace("~", "\\(ti")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    text = re.sub(r"\*\*([^*\n]+)\*\*", r"\\fB\1\\fR", text)
    text = "".join(char if char.isascii() else f"\\[u{ord(char):04X}]" for char in text)
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return "\n.PP\n".join(part if part[:1] != "." else "\\&" + part for part in paragraphs if part)


def page(path: tuple[str, ...], command: Any, context: Any) -> str:
    """Return the manual page of one command."""
    title = "-".join(path)
    summary = command.get_short_help_str(limit=90).rstrip(".")
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
    day = dt.datetime.fromtimestamp(epoch, dt.UTC).date()
    parts = [
        f'.TH "{title.upper()}" "1" "{day}" "vedette {__version__}" "Vedette"',
        ".nh",
        ".SH NAME",
        f"{roff(title)} \\- {roff(summary)}",
        ".SH SYNOPSIS",
        f"\\fB{roff(' '.join(path))}\\fR {roff(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        roff(command.help or summary),
    ]
    options, arguments = [], []
    for parameter in command.get_params(context):
        if getattr(parameter, "hidden", False):
            continue
        found = parameter.get_help_record(context)
        name, text = found or (parameter.make_metavar(context), getattr(parameter, "help", ""))
        target = options if parameter.param_type_name == "option" else arguments
        target += [".TP", f"\\fB{roff(name)}\\fR", roff(text or "") or "\\&"]
    if arguments:
        parts += [".SH ARGUMENTS", *arguments]
    if options:
        parts += [".SH OPTIONS", *options]
    children = [child for child in getattr(command, "commands", {}).items() if not child[1].hidden]
    if children:
        parts.append(".SH COMMANDS")
        for word, child in children:
            child_title = roff(f"{title}-{word}")
            parts += [".TP", f"\\fB{child_title}\\fR(1)", roff(child.get_short_help_str(limit=200))]
    epilog = command.epilog or ""
    examples = re.search(r"Examples?:\s*\n(.*)", epilog, re.DOTALL)
    if examples:
        parts.append(".SH EXAMPLES")
        for line in re.findall(r"`([^`]+)`", examples[1]):
            parts += [".PP", ".nf", f".RS\n{roff(line)}\n.RE", ".fi"]
    root = COMMANDS[path[0]].info
    codes = re.search(r"Exit codes: (.*)", str(root.epilog))
    if codes:
        parts += [".SH EXIT STATUS", roff(codes[1])]
    above = "-".join(path[:-1]) or ("vedette-agent" if path[0] == "vedette" else "vedette")
    parts += [".SH SEE ALSO", f"\\fB{roff(above)}\\fR(1), /usr/share/doc/vedette\\-common"]
    return "\n".join(parts) + "\n"


def main(stage: Path) -> None:
    """Write everything below a folder."""
    man = stage / "man"
    man.mkdir(parents=True, exist_ok=True)
    for name, app in COMMANDS.items():
        for path, command, context in walk(typer.main.get_command(app), name, (name,)):
            (man / f"{'-'.join(path)}.1").write_text(page(path, command, context))
        for shell, place in COMPLETIONS.items():
            target = stage / "usr/share" / place.format(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
            script = typer.completion.get_completion_script(
                prog_name=name, complete_var=variable, shell=shell
            )
            if shell == "zsh":
                # The file is loaded by the first completion, which is then still to be made.
                script = f'{script.rstrip()}\n_{name.replace("-", "_")}_completion "$@"\n'
            target.write_text(script.rstrip() + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
