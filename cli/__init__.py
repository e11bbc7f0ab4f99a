"""The command line, installed as ``shiftscope.cli``.

One file a command (:mod:`analyze <.analyze>` and its siblings), each with ``add_parser`` and
``run``; :mod:`.program` turns whatever happens into lines on stderr and an exit code. Nothing heavy
is imported before a command runs, and nothing else in the package imports this one.
"""

from __future__ import annotations

from .program import main

__all__ = ["main"]
