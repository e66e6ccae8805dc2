"""The front door of the rule language: what the rest of Vedette imports.

Rule files are read in core/rulefile.py, conditions parsed in core/condition.py, output templates
compiled in core/output.py; core/fields.py has the catalogue.
"""

from vedette.core.condition import ConditionError, parse_condition
from vedette.core.output import OutputError, Template
from vedette.core.rulefile import Rule, RuleError, RuleErrors, RuleSet, load_rules

__all__ = [
    "ConditionError",
    "OutputError",
    "Rule",
    "RuleError",
    "RuleErrors",
    "RuleSet",
    "Template",
    "load_rules",
    "parse_condition",
]
