"""Measure what an edit erased from a model, and what else it changed.

    from eval import audit

    audited = audit(model, edit, suite="pocket", tier="smoke")
    print(audited.verdict, audited.reports)

Importing this package imports no torch; the names below are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.auditing.prepare import PreparedAudit
    from eval.finished_audits import Audit, audit_images, compare, load_audit, rewrite_report
    from eval.library import PreparedAudits, audit, prepare_audit
    from eval.records import AuditResult
    from eval.suites.formats import GridSuite, PromptListSuite, Suite
    from eval.suites.list_reader import PromptList, load_prompt_list
    from eval.suites.suite import load_suite, suite_names

__all__ = [
    "Audit",
    "AuditResult",
    "GridSuite",
    "PreparedAudit",
    "PreparedAudits",
    "PromptList",
    "PromptListSuite",
    "Suite",
    "audit",
    "audit_images",
    "compare",
    "load_audit",
    "load_prompt_list",
    "load_suite",
    "prepare_audit",
    "rewrite_report",
    "suite_names",
]

_MODULES = {  # where the public names are defined
    "Audit": "eval.finished_audits",
    "AuditResult": "eval.records",
    "GridSuite": "eval.suites.formats",
    "PreparedAudit": "eval.auditing.prepare",
    "PreparedAudits": "eval.library",
    "PromptList": "eval.suites.list_reader",
    "PromptListSuite": "eval.suites.formats",
    "Suite": "eval.suites.formats",
    "audit": "eval.library",
    "audit_images": "eval.finished_audits",
    "compare": "eval.finished_audits",
    "load_audit": "eval.finished_audits",
    "load_prompt_list": "eval.suites.list_reader",
    "load_suite": "eval.suites.suite",
    "prepare_audit": "eval.library",
    "rewrite_report": "eval.finished_audits",
    "suite_names": "eval.suites.suite",
}

if not TYPE_CHECKING:  # a type checker would take every name for one that exists

    def __getattr__(name: str) -> object:  # PEP 562
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
