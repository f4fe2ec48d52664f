"""Metrics on disk: one row per logged step, mirrored into TensorBoard."""

import time
from pathlib import Path
from typing import Any

from cso_jax.files import PathLike, append_jsonl, read_jsonl, rewrite_jsonl, to_plain
from cso_jax.telemetry.console import warn


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
