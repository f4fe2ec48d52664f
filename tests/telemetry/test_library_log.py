"""What libraries say goes to the run's log file; what this package says stays on stderr."""

import contextlib
import logging
import sys
import threading
import warnings

import pytest

from cso_jax.telemetry import library_log


@contextlib.contextmanager
def chatty_libraries():
    """A library's logger with a handler of its own on stderr, as JAX's; one without, as orbax's."""
    own, plain = logging.getLogger("chatty.own"), logging.getLogger("chatty.plain")
    handler = logging.StreamHandler(sys.stderr)
    own.addHandler(handler)
    try:
        yield own, plain
    finally:
        own.removeHandler(handler)
        own.propagate = True


def test_messages_and_warnings_of_libraries_go_to_the_file(tmp_path, capsys):
    file = tmp_path / "log.txt"
    with chatty_libraries() as chatty, library_log.libraries_to(file), warnings.catch_warnings():
        warnings.simplefilter("always")
        for logger in chatty:
            logger.warning("from %s", logger.name)
        warnings.warn_explicit("old style", DeprecationWarning, "/site-packages/other/x.py", 3)
    assert capsys.readouterr().err == ""
    text = file.read_text()
    assert text.count("from chatty.own") == text.count("from chatty.plain") == 1
    assert "/site-packages/other/x.py:3: DeprecationWarning: old style" in text


def test_a_logger_that_keeps_its_messages_to_itself_is_heard_once(tmp_path, capsys):
    with chatty_libraries() as (own, _):
        own.propagate = False
        with library_log.libraries_to(tmp_path / "log.txt"):
            own.warning("on its own")
    assert capsys.readouterr().err == ""
    assert (tmp_path / "log.txt").read_text().count("on its own") == 1


def test_warnings_of_this_package_stay_visible(tmp_path, capsys):
    with library_log.libraries_to(tmp_path / "log.txt"), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn_explicit("2 lines moved", UserWarning, library_log.__file__, 1)
    assert "warning: 2 lines moved" in capsys.readouterr().err
    assert not (tmp_path / "log.txt").exists()


def test_everything_is_as_before_afterwards(tmp_path):
    with chatty_libraries() as chatty:
        before = [list(logger.handlers) for logger in (logging.root, *chatty)], warnings.showwarning
        with pytest.raises(KeyError, match="a bug"), library_log.libraries_to(tmp_path / "log.txt"):
            raise KeyError("a bug")
        assert ([list(logger.handlers) for logger in (logging.root, *chatty)], warnings.showwarning) == before


@pytest.mark.parametrize("place", ["missing/log.txt", "/dev/full"])
def test_a_log_that_cannot_be_written_stops_nothing_and_says_nothing(tmp_path, capsys, place):
    with chatty_libraries() as chatty, library_log.libraries_to(tmp_path / place):
        chatty[1].warning("lost")
    assert capsys.readouterr().err == ""


@contextlib.contextmanager
def unhandled(name):
    """A logger that no handler listens to, though pytest's are there."""
    logger = logging.getLogger(name)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.propagate = True


class Ended:
    def __del__(self):
        raise RuntimeError("Event loop is closed")


def test_what_ends_a_thread_goes_to_the_file(tmp_path, capsys):
    before = sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort
    with library_log.threads_to(tmp_path / "log.txt"):
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
        sys.excepthook(OSError, OSError("from C++"), None)
        Ended()
        with unhandled("cso_jax.tests.unhandled") as logger:
            logger.error("exception calling callback")
    assert (sys.excepthook, threading.excepthook, sys.unraisablehook, logging.lastResort) == before
    assert capsys.readouterr().err == ""
    text = (tmp_path / "log.txt").read_text()
    for said in ("division by zero", "OSError: from C++", "Event loop is closed", "exception calling callback"):
        assert said in text
