"""Mergeable, frozen statistics of a stream of rows, one number for each neuron.

Every tally has `empty`, `of(rows)` and `merge`, and `of(a).merge(of(b))` equals `of` of both. They
take any real dtype on any device, and neither recording nor merging waits for the device.
"""

from shiftscope.tally.base import Tally, merge_all
from shiftscope.tally.counts import Counts
from shiftscope.tally.extrema import Extrema
from shiftscope.tally.moments import Moments, Pooled
from shiftscope.tally.rowsample import RowSample

__all__ = ["Counts", "Extrema", "Moments", "Pooled", "RowSample", "Tally", "merge_all"]
