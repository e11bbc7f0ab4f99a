"""Reports: a page, a document and figures on disk, and a summary for the terminal."""

from shiftscope.reporting.bundle import Report, report
from shiftscope.reporting.formats import FORMATS
from shiftscope.reporting.schema import REPORT_SCHEMA, SCHEMA_VERSION
from shiftscope.reporting.text import Summary, plain_summary, summary
from shiftscope.reporting.verification import write_verification

__all__ = [
    "FORMATS",
    "REPORT_SCHEMA",
    "SCHEMA_VERSION",
    "Report",
    "Summary",
    "plain_summary",
    "report",
    "summary",
    "write_verification",
]
