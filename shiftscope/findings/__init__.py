"""Snapshot -> findings: causes with evidence, thresholds with sources, and advice."""

from shiftscope.findings.diagnosis import diagnose, verdict
from shiftscope.findings.finding import CAUSES, SEVERITIES, Evidence, Finding, severity_rank
from shiftscope.findings.thresholds import Thresholds

__all__ = [
    "CAUSES",
    "SEVERITIES",
    "Evidence",
    "Finding",
    "Thresholds",
    "diagnose",
    "severity_rank",
    "verdict",
]
