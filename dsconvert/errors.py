"""Every error dsconvert raises on purpose.

One base class, so that a caller (and the command line, which turns any of these into one
sentence and the exit code that :mod:`dsconvert.cli.codes` names) needs to know a single name. A
message names the thing, the cause and the remedy.
"""

from __future__ import annotations


class DsconvertError(Exception):
    """Base of every error that dsconvert raises on purpose."""


class UsageError(DsconvertError):
    """The call or the command line asks for something that makes no sense."""


class SnapshotError(DsconvertError):
    """A file can't be read as a snapshot, or can't be written as one."""


class ForeignFileError(SnapshotError):
    """The file is something else altogether (empty, text, HTML, an LFS pointer, a zip, ...)."""


class CorruptSnapshotError(SnapshotError):
    """The file is a pickle, but it is truncated, malformed or beyond the reader's limits."""


class UnsafeSnapshotError(SnapshotError):
    """The file refers to a global that is not on the allow-list. Nothing of it has run."""


class UnsupportedSnapshotError(SnapshotError):
    """The file is a known format that dsconvert does not convert (yet)."""


class OutputError(DsconvertError):
    """The output can't be written (it exists, its folder does not, the disk is full)."""


class TraceError(DsconvertError):
    """The model can't be traced; says which module and which line."""


class PlanError(DsconvertError):
    """A plan is malformed or does not fit the model it is applied to."""


class ConversionError(DsconvertError):
    """A converted model does not run; says which module fails and what to keep."""


class PolishError(UsageError):
    """A model can't be polished (no known inputs, or no images); raised before any work."""


class AdapterError(DsconvertError):
    """An adapter is unknown, registered twice, or does not fit the model."""


class MissingExtraError(DsconvertError):
    """An optional dependency is not installed; names the pip command."""


class DataError(DsconvertError):
    """A data set can't be used (missing, no images, labels that do not fit)."""


class TrainingError(DsconvertError):
    """A training can't go on, or can't be resumed; says what is safe and how to continue."""


class NoGradientsError(TrainingError):
    """A model can't be differentiated."""


class MeasureError(DsconvertError):
    """A model fails while it is measured, or the process that ran it has ended."""


class TargetError(DsconvertError):
    """A target (say, latency=0.2x) is malformed."""


class MissedTargetError(TargetError):
    """No plan reaches the targets, or the result misses one; names the nearest."""


class ExportError(DsconvertError):
    """A model can't be exported, or an export does not compute what the model does."""
