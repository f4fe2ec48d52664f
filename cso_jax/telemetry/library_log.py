"""What the libraries of a run say, in a file instead of between the lines of the run itself."""

import contextlib
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cso_jax import telemetry
from cso_jax.files import PathLike


class _LibraryLog(logging.FileHandler):
    """A full disk or a file that cannot be opened costs the message, never the run."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # of opening the file, which the base class does not catch
            super().emit(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written before
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing, where the base class writes a traceback to stderr for every message."""


@contextlib.contextmanager
def libraries_to(path: PathLike) -> Iterator[None]:
    """Within the block, what libraries log or warn of is appended to the file at `path` instead of going to stderr.

    So what a person reads is what this program says, and an error is its last line. Warnings of this package are shown
    as `telemetry.warn` shows them. The file is made with the first message.
    """
    file = _LibraryLog(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    named = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    moved = [
        (logger, handler)
        for logger in (logging.root, *named)
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stderr, sys.__stderr__)
    ]
    show_before = warnings.showwarning
    for logger, handler in moved:
        logger.removeHandler(handler)
    unheard = [logger for logger in {logger for logger, _ in moved} if not logger.propagate]
    for logger in (logging.root, *unheard):
        logger.addHandler(file)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        warnings.showwarning = show_before
        for logger in (logging.root, *unheard):
            logger.removeHandler(file)
        for logger, handler in moved:
            logger.addHandler(handler)
        file.close()


@contextlib.contextmanager
def threads_to(path: PathLike) -> Iterator[None]:
    """Within the block, what ends threads of libraries is appended to the file at `path`, not written to stderr.

    Where a checkpoint cannot be written, each of orbax's pending writes ends in a traceback of its own, around the line
    that says so.
    """

    def note(error: BaseException | None) -> None:
        with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
            traceback.print_exception(error, file=file)

    before = sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort
    sys.excepthook = lambda kind, error, trace: note(error)  # what C++ threads call
    threading.excepthook = lambda ended: note(ended.exc_value)
    sys.unraisablehook = lambda ignored: note(ignored.exc_value)  # what coroutines of a closed event loop end in
    # What a thread logs of its end where `libraries_to` has ended already.
    logging.lastResort = _LibraryLog(path, encoding="utf-8", delay=True)
    logging.lastResort.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logging.lastResort.close()
        sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort = before


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if Path(filename).is_relative_to(Path(__file__).parent):
        telemetry.warn(str(message))
    else:
        logging.getLogger("py.warnings").warning("%s:%s: %s: %s", filename, lineno, category.__name__, message)
