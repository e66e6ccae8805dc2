"""Sequences of any language from files: ours, EQL's, and Sigma's correlations.

A YAML file that is a list is in our language (core/sequence.py), a file ``NAME.eql`` is one query
of EQL; a file whose documents are Sigma's gives its correlations. All Sigma files of one load are
read together, since correlations name rules of other files; what is wrong with the rules beside
them is for `vedette rules check` to say, unless a correlation needs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from vedette.core.ruleload import load_any
from vedette.core.sequence import Loaded, SequenceError, chained, is_ours, load


def load_sequences(paths: Iterable[Path]) -> Loaded:
    """Read sequence files of any language; errors leave the other sequences at work.

    Raises nothing.
    """
    ours: list[Path] = []
    sigma: list[Path] = []
    for path in paths:
        (ours if is_ours(path) else sigma).append(path)
    found = load(ours)
    if not sigma:
        return found
    made = load_any(sigma)
    errors = list(found.errors)
    errors += [
        SequenceError(f"{item.subject}: {item.message}" if item.subject else item.message,
                      file=item.file, line=item.line, column=item.column)
        for item in made.errors
        if item.subject.startswith("correlation") or not item.subject
    ]  # fmt: skip
    sequences = {sequence.name: sequence for sequence in found.sequences}
    for sequence in made.sequences:
        first = sequences.setdefault(sequence.name, sequence)
        if first is not sequence:
            errors.append(
                SequenceError(
                    f"the name is taken already, at {first.file}:{first.line}; give it another",
                    file=sequence.file,
                    line=sequence.line,
                    column=1,
                    sequence=sequence.name,
                )
            )
    return chained(sequences, errors)
