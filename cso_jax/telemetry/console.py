"""What a person sees of a run: progress and log lines on stderr, results on stdout."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LINE_INTERVAL = 15.0  # seconds between progress lines where stderr is a file


class Progress(Generic[T]):
    """A progress bar on a terminal; in a file, one plain line every 15 seconds at most, and one at the end."""

    def __init__(
        self, iterable: Iterable[T] | None, total: int | None, description: str, unit: str, initial: int
    ) -> None:
        self.description, self.unit, self.total, self.initial, self.n = description, unit, total, initial, initial
        self._iterable = iterable
        self._postfix: dict[str, Any] = {}
        self._start = self._last_line = time.monotonic()
        self._closed = False
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=description, unit=f" {unit}", initial=initial, file=sys.stderr, dynamic_ncols=True
            )

    def update(self, n: int = 1) -> None:
        """Counts `n` more units as done."""
        self.n += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._write_line()

    def set_postfix(self, values: Mapping[str, Any]) -> None:
        """Shows `values` behind the rate, floats with three significant digits."""
        self._postfix = dict(values)
        if self._bar is not None:
            self._bar.set_postfix(self._postfix, refresh=False)

    def close(self) -> None:
        """Ends the bar; the last state stays visible."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        else:
            self._write_line()

    def __iter__(self) -> Iterator[T]:
        if self._iterable is None:
            raise TypeError("this progress was made from a total; give it an iterable to loop over it")
        try:
            for item in self._iterable:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "Progress[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_line(self) -> None:
        self._last_line = time.monotonic()
        log(self.line(self._last_line - self._start))

    def line(self, elapsed: float) -> str:
        """The state as one line of text, `elapsed` seconds after the start."""
        done = self.n - self.initial
        rate = done / elapsed if elapsed > 0 else 0.0
        text = f"{self.description}: {self.n}"
        if self.total is not None:
            share = f" ({100 * self.n // self.total} %)" if self.total else ""
            text += f"/{self.total}{share}"
        text += f" {self.unit}, {rate:.3g}/s, {duration_text(elapsed)}"
        if self.total is not None and rate > 0 and self.n < self.total:
            text += f", {duration_text((self.total - self.n) / rate)} left"
        for name, value in self._postfix.items():
            text += f", {name} {value:.3g}" if isinstance(value, float) else f", {name} {value}"
        return text


def progress(
    iterable_or_total: Iterable[T] | int | None, description: str, unit: str = "step", *, initial: int = 0
) -> Progress[T]:
    """Returns a `Progress` to loop over (an iterable) or to `update` by hand (a total, or None where unknown).

    `initial` is the work an earlier, interrupted run had done; it counts towards the total, not towards the rate. An
    iterable is what is left to do.
    """
    if iterable_or_total is None or isinstance(iterable_or_total, int):
        return Progress(None, iterable_or_total, description, unit, initial)
    length = getattr(iterable_or_total, "__len__", None)
    total = None if length is None else initial + length()
    return Progress(iterable_or_total, total, description, unit, initial)


_started: list[float] = []


def log(message: str) -> None:
    """Writes one line to stderr, with the time since the first line, above any active progress bar."""
    if not _started:
        _started.append(time.monotonic())
    line = f"[{duration_text(time.monotonic() - _started[0], clock=True)}] {' '.join(message.splitlines())}"
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(line, file=sys.stderr)
    else:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def warn(message: str) -> None:
    """`log`, marked as a warning."""
    log(f"warning: {message}")


def duration_text(seconds: float, *, clock: bool = False) -> str:
    """Returns e.g. "42 s", "3 min 05 s", "2 h 07 min"; with `clock` the fixed-width "0:03:05"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if clock:
        return f"{hours}:{minutes:02d}:{rest:02d}"
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{rest} s"


def show(text: str) -> None:
    """Writes `text` to stdout as it is: the result a person asked for, not a log line."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()
