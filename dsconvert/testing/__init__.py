"""Conformance checks for authors of adapters and rules; call them in your own tests.

Each check runs every test that applies and reports all problems at once.
"""

from __future__ import annotations

from dsconvert.testing.adapter_checks import check_adapter
from dsconvert.testing.problems import ConformanceError
from dsconvert.testing.rule_checks import check_rule

__all__ = ["ConformanceError", "check_adapter", "check_rule"]
