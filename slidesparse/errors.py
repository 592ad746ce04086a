"""Exceptions of the library.

Each message carries the offending values and the remedy, in one line: the command line prints it
as it is. Anything else that escapes is a defect of SlideSparse, not of its user.
"""

from __future__ import annotations


class SlideSparseError(Exception):
    """Base of every error that SlideSparse raises on purpose."""


class UsageError(SlideSparseError, ValueError):
    """A value that the caller passed is wrong; the command line exits with 2."""


class PatternError(UsageError):
    """A sparsity pattern that cannot be read or is outside the (2N-2):2N family."""


class ProblemError(UsageError):
    """A GEMM problem whose sizes, dtypes or scale mode cannot exist."""


class KernelError(UsageError):
    """An operand of a kernel whose shape, dtype, layout or device is not what it takes."""


class ModelError(UsageError):
    """A model that is unknown, unreadable or of an unsupported architecture."""


class RecipeError(UsageError):
    """A recipe that cannot be read or names what does not exist."""


class CheckpointError(SlideSparseError):
    """A checkpoint that is damaged, incomplete, of an unknown form, or cannot be written."""


class CalibrationError(SlideSparseError):
    """Calibration text that is missing, too short, or gives inputs that cannot be used."""


class DeviceError(SlideSparseError):
    """A device that is missing or lacks what the caller asked for."""


class CacheError(SlideSparseError):
    """A tuning cache that cannot be written, imported or exported."""


class SearchError(SlideSparseError):
    """A search that could not produce any result."""


class CandidateError(SlideSparseError):
    """One candidate that cannot run; it costs that candidate and nothing else."""


def reason_of(error: BaseException) -> str:
    """What went wrong in one line, for a message that names the file itself."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
