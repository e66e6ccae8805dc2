"""The front door of the rule language: what the rest of Vedette imports.

Rule files are read in core/rulefile.py (their YAML in core/ruleyaml.py), conditions parsed in
core/condition.py, output templates compiled in core/output.py; core/fields.py has the catalogue.
"""

from vedette.core.condition import ConditionError, parse_condition
from vedette.core.output import OutputError, Template
from vedette.core.rulefile import LoadResult, Rule, RuleErrors, RuleSet, load, load_rules
from vedette.core.ruleyaml import RuleError, RuleWarning

__all__ = [
    "ConditionError",
    "LoadResult",
    "OutputError",
    "Rule",
    "RuleError",
    "RuleErrors",
    "RuleSet",
    "RuleWarning",
    "Template",
    "load",
    "load_rules",
    "parse_condition",
]
