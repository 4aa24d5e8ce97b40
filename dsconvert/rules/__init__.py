"""Rewrite rules, one file a rewrite: cost, factors, fit and inverse of each, and their registry."""

from __future__ import annotations

from dsconvert.rules.base import Built, FitMethod, Rule
from dsconvert.rules.registry import register, rule_named, rules

__all__ = ["Built", "FitMethod", "Rule", "register", "rule_named", "rules"]
