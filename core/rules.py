"""The front door of the rule language: what the rest of Vedette imports.

Rule files are read in core/rulefile.py, conditions parsed in core/condition.py.
"""

from vedette.core.rulefile import Rule, RuleSet

__all__ = ["Rule", "RuleSet"]
