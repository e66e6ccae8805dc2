"""Sigma rules and correlations for Linux: the front door.

Read are the log sources process_creation, file_event, network_connection and auditd. One rule is
compiled in core/sigma_rules.py; what the fields mean here is in core/sigma_fields.py, correlations
are in core/sigma_sequences.py, and docs/sigma.md has the choices that are made where the
specification leaves one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from vedette.core.documents import Finding, NodeError, place, plain
from vedette.core.rulefile import Rule
from vedette.core.sequence import Sequence
from vedette.core.sigma_rules import Compiled, Document, compile_rule, unique_keys
from vedette.core.sigma_sequences import compile_correlations


@dataclass(frozen=True, slots=True)
class SigmaRules:
    """The Sigma rules of one load.

    rules      what the engine runs, in order
    sequences  what the correlator runs: correlations that its language can express
    findings   errors (their rules are not loaded) and warnings
    """

    rules: tuple[Rule, ...]
    sequences: tuple[Sequence, ...]
    findings: tuple[Finding, ...]


def is_sigma(document: yaml.Node) -> bool:
    """Whether a document looks like one of Sigma's."""
    if not isinstance(document, yaml.MappingNode):
        return False
    keys = {key.value for key, _ in document.value if isinstance(key, yaml.ScalarNode)}
    return "title" in keys and bool(keys & {"logsource", "detection", "correlation", "filter"})


def load_sigma(
    documents: Iterable[tuple[str, yaml.Node]], *, skip_unseen: bool = False
) -> SigmaRules:
    """Compile Sigma rules and correlations; ``documents`` are (file, document).

    skip_unseen  rules whose events or fields are not seen here are left out with a warning

    What is wrong with one rule is an error among the findings and leaves the others alone.
    """
    findings: list[Finding] = []
    compiled: dict[str, Compiled] = {}
    titles: dict[str, Document] = {}
    correlations: list[tuple[str, Document]] = []
    for file, node in documents:
        document = Document(file, node, findings, skip_unseen)
        try:
            unique_keys(node)
            document.data = plain(node)
        except NodeError as error:
            findings.append(Finding("error", file, *place(error.node), "", str(error)))
            continue
        is_correlation = "correlation" in document.data
        title = document.title("correlation" if is_correlation else "rule")
        if title is None:
            continue
        known = titles.setdefault(title, document)
        if known is not document:
            document.error(
                f"the title is taken already, at {known.file}:{place(known.node)[0]};"
                " give it another",
                "title",
            )
        elif is_correlation:
            correlations.append((title, document))
        else:
            made = compile_rule(title, document)
            if made is not None:
                compiled[title] = made
    sequences = compile_correlations(correlations, compiled)
    return SigmaRules(tuple(item.rule for item in compiled.values()), sequences, tuple(findings))
