"""Metrics, phase accounting and progress lines."""

import io
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cso_jax import telemetry
from cso_jax.files import read_jsonl
from cso_jax.telemetry import MetricsLog, PhaseClock, clock, console, duration_text, load_account, metrics, progress
from cso_jax.telemetry.clock import COMPILE_EVENTS


class FakeTime:
    """Stands in for the time module: the seconds pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    monotonic = time = perf_counter


@pytest.fixture
def fake_time(monkeypatch):
    fake = FakeTime()
    for module in (clock, console, metrics):
        monkeypatch.setattr(module, "time", fake)
    return fake


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_metrics_are_stored_as_plain_rows(tmp_path):
    with MetricsLog(tmp_path) as metrics:
        metrics.write("codebook", 1, loss=jnp.float32(0.5), codes_used=np.int64(7), grad_norm=float("nan"))
        rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert rows[0].pop("time") > 0
    assert rows == [{"stage": "codebook", "step": 1, "loss": 0.5, "codes_used": 7, "grad_norm": None}]
    assert list((tmp_path / "tensorboard" / "codebook").glob("events*"))


def test_metrics_refuse_names_of_the_row(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as metrics, pytest.raises(ValueError, match="time"):
        metrics.write("spo", 1, time=1.0)


def test_rewind_drops_later_rows_of_one_stage_only(tmp_path):
    with MetricsLog(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.write("codebook", step, loss=1.0)
            metrics.write("spo", step, loss=2.0)
        metrics.rewind("spo", 1)
        metrics.write("spo", 2, loss=3.0)
        assert [(row["step"], row["loss"]) for row in metrics.rows("spo")] == [(1, 2.0), (2, 3.0)]
        assert [row["step"] for row in metrics.rows("codebook")] == [1, 2, 3]


def test_metrics_continue_after_a_torn_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "spo", "step": 1, "loss": 1}\n{"stage": "sp')
    with MetricsLog(tmp_path, tensorboard=False) as metrics:
        metrics.rewind("spo", 0)
        metrics.write("spo", 1, loss=4)
        assert [row["loss"] for row in metrics.rows()] == [4]


def test_phases_are_exclusive_and_add_up(fake_time):
    clock = PhaseClock()
    fake_time.now += 1
    with clock.phase("physics"):
        fake_time.now += 2
        with clock.phase("rendering"):
            fake_time.now += 4
        fake_time.now += 8
        assert clock.seconds["physics"] == 10  # an open phase counts
        clock.add("compile", 3)
        clock.add("inference", 0.5, move=False)
    assert clock.snapshot() == {"other": 1, "physics": 7, "rendering": 4, "compile": 3, "inference": 0.5}


def test_a_phase_ends_when_its_body_raises(fake_time):
    clock = PhaseClock()
    with pytest.raises(KeyError, match="a bug"), clock.phase("update"):
        fake_time.now += 1
        raise KeyError("a bug")
    fake_time.now += 1
    assert clock.seconds == {"other": 1, "update": 1}


def test_other_threads_are_not_timed(fake_time):
    clock = PhaseClock()

    def work():
        with clock.phase("data"):
            fake_time.now += 5

    thread = threading.Thread(target=work)
    with clock.phase("wait"):
        thread.start()
        thread.join()
    assert clock.seconds == {"other": 0, "wait": 5}


def test_timing_accumulates_over_saves_and_runs(tmp_path, fake_time):
    path = tmp_path / "timing.json"
    for _ in range(2):
        clock = PhaseClock()
        for stage in ("codebook", "codebook", "spo"):
            with clock.phase("update"):
                fake_time.now += 2
            clock.save(path, stage)
        with clock.phase("physics"):
            fake_time.now += 1
        clock.save(path, "report")
    assert load_account(path) == {"codebook": {"update": 8}, "spo": {"update": 4}, "report": {"physics": 2}}
    path.write_text("{")
    assert load_account(path) == {}


def test_compilation_is_moved_out_of_the_enclosing_phase(capsys):
    clock = PhaseClock()
    clock.watch_compilation(log_above=0.0)
    clock.watch_compilation(log_above=0.0)  # twice counts once
    try:
        with clock.phase("update"):
            jax.jit(lambda x: jnp.tanh(x) @ x + 0.12345)(jnp.ones((3, 3))).block_until_ready()
    finally:
        clock.unwatch_compilation()
    assert clock.seconds["compile"] > 0
    assert "compiled jit(" in capsys.readouterr().err


def test_nested_compile_events_are_booked_once(fake_time):
    clock = PhaseClock()
    clock._on_duration("/jax/checkpoint/write/duration", 5.0)
    with clock.phase("update"):
        fake_time.now += 3
        clock._on_duration(COMPILE_EVENTS + "jaxpr_trace_duration", 2.0)  # traced inside the next one
        fake_time.now += 1
        clock._on_duration(COMPILE_EVENTS + "jaxpr_trace_duration", 4.0)
        fake_time.now += 1
        clock._on_duration(COMPILE_EVENTS + "backend_compile_duration", 1.0)
    assert clock.seconds == {"other": 0, "update": 0, "compile": 5}


def test_progress_in_a_file_is_a_line_now_and_then(fake_time, capsys):
    with progress(100, "rollouts", "episode", initial=20) as bar:
        for _ in range(4):
            bar.update(10)
            bar.set_postfix({"success": 0.51234, "wave": 2})
            fake_time.now += 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "rollouts: 50/100 (50 %) episode, 1.5/s, 20 s, 33 s left, success 0.512, wave 2" in lines[0]
    assert "rollouts: 60/100 (60 %) episode, 1/s, 40 s, 40 s left" in lines[1]


def test_progress_over_an_iterable(capsys):
    assert list(progress([1, 2, 3], "waves", "wave", initial=2)) == [1, 2, 3]
    assert "waves: 5/5 (100 %) wave" in capsys.readouterr().err
    assert list(progress(iter("ab"), "letters")) == ["a", "b"]
    with pytest.raises(TypeError, match="iterable"):
        list(progress(3, "steps"))


def test_progress_on_a_terminal_is_a_bar_that_log_does_not_break(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stderr", terminal)
    with progress(4, "steps", "step") as bar:
        bar.update(2)
        telemetry.warn("half\nway")
        bar.update(2)
    assert "steps: 100%" in terminal.getvalue()
    assert "] warning: half way\n" in terminal.getvalue()


def test_log_is_one_line_with_the_elapsed_time(capsys):
    telemetry.log("hello\nworld")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("[") and err.endswith("] hello world\n")


def test_duration_text():
    assert [duration_text(s) for s in (0.4, 59.6, 185, 7620)] == ["0 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]
    assert duration_text(185, clock=True) == "0:03:05"


def test_timing_file_is_json_of_seconds(tmp_path, fake_time):
    clock = PhaseClock()
    with clock.phase("data"):
        fake_time.now += 1.23456
    clock.save(tmp_path / "timing.json", "demos")
    assert json.loads((tmp_path / "timing.json").read_text()) == {"demos": {"data": 1.2346}}
