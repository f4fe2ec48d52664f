"""What a run says about itself: metrics on disk, where its time went, progress and log lines on stderr."""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from cso_jax.files import PathLike, append_jsonl, atomic_write_text, read_jsonl, rewrite_jsonl, to_plain

T = TypeVar("T")

LINE_INTERVAL = 15.0  # seconds between progress lines where stderr is a file
COMPILE_EVENTS = "/jax/core/compile/"  # tracing, lowering and backend compilation all start with this


class MetricsLog:
    """Appends one row per logged step to `workdir/metrics.jsonl` and mirrors it into TensorBoard event files.

    The JSONL file is the record: the report and resumed runs read it. TensorBoard gets one writer per stage
    (`workdir/tensorboard/<stage>`, tags "stage/name"), because its purging of replayed steps works per writer.
    """

    def __init__(self, workdir: PathLike, *, tensorboard: bool = True) -> None:
        self.path = Path(workdir) / "metrics.jsonl"
        self._tensorboard = Path(workdir) / "tensorboard" if tensorboard else None
        self._writers: dict[str, Any] = {}
        self._purge_from: dict[str, int] = {}

    def write(self, stage: str, step: int, **values: Any) -> None:
        """Records `values` (numbers, or NumPy or JAX scalars; NaN and inf are stored as null) at `step` of `stage`."""
        plain = {name: to_plain(value) for name, value in values.items()}
        row = {"stage": stage, "step": int(step), "time": round(time.time(), 3)}
        clash = sorted(row.keys() & plain.keys())
        if clash:
            raise ValueError(f"metric names {clash} are taken by the row itself; rename the metrics")
        append_jsonl(self.path, [row | plain], sync=False)
        writer = self._writer(stage)
        if writer is not None and not _alive(writer):
            # Its thread ends on a full disk, and then the queue to it fills up and blocks for ever.
            warn("TensorBoard's event files can no longer be written; metrics.jsonl goes on")
            self._tensorboard, self._writers, writer = None, {}, None
        if writer is not None:
            for name, value in plain.items():
                if isinstance(value, (int, float)):
                    writer.add_scalar(f"{stage}/{name}", value, int(step))

    def rewind(self, stage: str, step: int) -> None:
        """Drops the rows of `stage` after `step`, so that a resumed stage logs each step once."""
        rows = self.rows()
        kept = [row for row in rows if row.get("stage") != stage or row.get("step", 0) <= step]
        if len(kept) < len(rows):
            rewrite_jsonl(self.path, kept)
            # Purging needs a new event file; a stage that starts over from nothing purges from its first step.
            self._purge_from[stage] = max(0, step + 1)
            writer = self._writers.pop(stage, None)
            if writer is not None:
                writer.close()

    def rows(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Returns the rows written so far, of all stages or of one."""
        return [row for row in read_jsonl(self.path) if stage is None or row.get("stage") == stage]

    def close(self) -> None:
        """Flushes the TensorBoard writers; writing again reopens them."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self, stage: str) -> Any:
        if self._tensorboard is None:
            return None
        if stage not in self._writers:
            from tensorboardX import SummaryWriter

            self._writers[stage] = SummaryWriter(
                str(self._tensorboard / stage), purge_step=self._purge_from.pop(stage, None), flush_secs=10
            )
        return self._writers[stage]


def _alive(writer: Any) -> bool:
    return writer.file_writer.event_writer._worker.is_alive()


class PhaseClock:
    """Books every second of one thread under exactly one phase; seconds outside any phase are "other".

    Nested phases take their time from the enclosing one, so the phases add up to the wall-clock time since the clock
    was made. Only the thread that made the clock is timed: what other threads do overlaps with it.
    """

    def __init__(self) -> None:
        self._booked: dict[str, float] = {}
        self._saved: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = time.perf_counter()
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []
        self._listener: Callable[..., None] | None = None
        self._log_above = float("inf")

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase up to now, phases that are still open included."""
        self._flush()
        return {name: max(0.0, value) for name, value in self._booked.items()}

    def snapshot(self) -> dict[str, float]:
        """A copy of `seconds`; the difference of two snapshots is the time between them."""
        return self.seconds

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books the time inside the `with` block under `name`, less what nested phases take."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._flush()
        self._stack.append(name)
        try:
            yield
        finally:
            self._flush()
            self._stack.pop()

    def add(self, name: str, seconds: float, *, move: bool = True) -> None:
        """Books `seconds`, measured elsewhere, under `name`.

        They are moved there from the phase that is open now; `move=False` adds them on top, for time that did not
        pass in this thread, at the price that the phases no longer add up to the wall-clock time.
        """
        self._flush()
        if move:
            self._book(self._stack[-1] if self._stack else "other", -seconds)
        self._book(name, seconds)

    def watch_compilation(self, log_above: float = float("inf")) -> None:
        """Moves the time JAX spends tracing, lowering and compiling to the phase "compile" from now on.

        Backend compilations of `log_above` seconds or more are logged with the name of the program.
        """
        import jax.monitoring

        self._log_above = log_above
        if self._listener is None:
            self._listener = self._on_duration
            jax.monitoring.register_event_duration_secs_listener(self._listener)

    def unwatch_compilation(self) -> None:
        """Ends `watch_compilation`."""
        import jax.monitoring

        if self._listener is not None:
            jax.monitoring.unregister_event_duration_listener(self._listener)
            self._listener = None

    def save(self, path: PathLike, stage: str) -> None:
        """Adds what was booked since the last save to `stage` in the JSON file at `path`, atomically.

        The file holds {stage: {phase: seconds}} and so sums over stages, saves and resumed runs.
        """
        now = self.snapshot()
        timing = self.load(path)
        phases = timing.setdefault(stage, {})
        for name, value in now.items():
            passed = value - self._saved.get(name, 0.0)
            if passed > 0:  # phases of earlier stages stay in the clock, but take no more time
                phases[name] = round(phases.get(name, 0.0) + passed, 4)
        atomic_write_text(path, json.dumps(timing, indent=1) + "\n")
        self._saved = now

    @staticmethod
    def load(path: PathLike) -> dict[str, dict[str, float]]:
        """Returns {stage: {phase: seconds}} from `path`; {} where the file is missing or unreadable."""
        try:
            timing = json.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError:
            warn(f"{path} is not JSON; the time of earlier runs is lost from the account")
            return {}
        return timing if isinstance(timing, dict) else {}

    def _flush(self) -> None:
        if threading.get_ident() != self._thread:
            return
        now = time.perf_counter()
        self._book(self._stack[-1] if self._stack else "other", now - self._since)
        self._since = now

    def _book(self, name: str, seconds: float) -> None:
        self._booked[name] = self._booked.get(name, 0.0) + seconds

    def _on_duration(self, event: str, duration_secs: float, **details: Any) -> None:
        if not event.startswith(COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        # Programs traced inside another one end first; the outer event repeats their time, which is booked once only.
        start = time.perf_counter() - duration_secs
        inner = 0.0
        while self._spans and self._spans[-1][0] >= start:
            inner += self._spans.pop()[1]
        self._spans.append((start, duration_secs))
        del self._spans[:-4096]  # a large program traces thousands of smaller ones
        self.add("compile", max(0.0, duration_secs - inner))
        if "backend_compile" in event and duration_secs >= self._log_above:
            log(f"compiled {details.get('fun_name', 'a program')} in {duration_secs:.1f} s")


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
