"""Videos for the report: evaluated episodes replayed, exactly, with the camera on."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cso_jax import envs, telemetry
from cso_jax.envs import gl
from cso_jax.envs.protocol import EvalInit
from cso_jax.evaluation import make_evaluation_act
from cso_jax.files import atomic_write_bytes, read_jsonl
from cso_jax.rollout.episodes import EpisodeRequest, RolloutError
from cso_jax.run import Run
from cso_jax.stages import table

_FRAME_MS = 80


def run_stage(run: Run, final: str) -> None:
    """Record a success and a failure of up to `config.report.videos` tasks where this machine can draw.

    Where there is one, the success is from an initial state from which the imitation policy failed, and that failure is
    recorded too: the same scene before and after.
    """
    if not run.config.report.videos:
        return
    rows = read_jsonl(run.workdir / "episodes.jsonl")
    chosen = choose(rows, run.tasks, final, run.config.report.videos)
    missing = [row for row in chosen if not _path(run, row).exists()]
    if not missing:
        return
    if envs.needs_gl(run.settings):
        try:
            # Nobody who looks at states chose what draws: only a MUJOCO_GL that turns drawing off is heeded.
            gl.require_gl("pixels", fall_back=run.settings["obs"] != "pixels")
        except RuntimeError as error:
            telemetry.log(f"no videos: {error}")
            return
    try:
        _record(run, missing)
    except RolloutError as error:
        telemetry.warn(f"no videos: {error}")


def _record(run: Run, missing: list[dict[str, Any]]) -> None:
    run.restart_runner()  # processes started before may have been told that nothing is drawn
    for stage in sorted({row["stage"] for row in missing}):
        wanted = [row for row in missing if row["stage"] == stage]
        act = make_evaluation_act(run, stage)
        for row, record in zip(wanted, run.rollout([_request(run, row) for row in wanted], act), strict=True):
            if not record.frames:
                telemetry.log("no videos: the simulators of this run draw nothing")
                return
            if record.success != row["success"]:
                telemetry.warn(f"no video of {row['init']}: replayed here, the episode ended differently")
                continue
            atomic_write_bytes(_path(run, row), gif(record.frames))


def choose(rows: Sequence[dict[str, Any]], tasks: Sequence[str], final: str, count: int) -> list[dict[str, Any]]:
    """Rows of `episodes.jsonl` worth a video: tasks with both outcomes first, then the rest."""
    first = table.STEPS[0]
    before = {(row["task"], row["init"]): row for row in rows if row["stage"] == first}

    def of(task: str, success: bool) -> list[dict[str, Any]]:
        return [r for r in rows if r["stage"] == final and r["task"] == task and r["success"] == success]

    ranked = sorted(tasks, key=lambda task: not (of(task, True) and of(task, False)))
    chosen: list[dict[str, Any]] = []
    for task in ranked[:count]:
        successes, failures = of(task, True), of(task, False)
        turned = [row for row in successes if not before.get((task, row["init"]), {"success": True})["success"]]
        if turned and final != first:
            chosen += [before[task, turned[0]["init"]], turned[0]]
        else:
            chosen += successes[:1]
        chosen += failures[:1]
    return chosen


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """An endless GIF of uint8 `[H, W, 3]` frames, the last one held for a second."""
    images = [Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * (len(images) - 1) + [1000]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


def _path(run: Run, row: dict[str, Any]):
    outcome = "success" if row["success"] else "failure"
    return run.workdir / "videos" / f"{row['stage']}_{row['task']}_{outcome}.gif"


def _request(run: Run, row: dict[str, Any]) -> EpisodeRequest:
    index = int(row["init"].rpartition(":")[2])
    number = index - run.eval_init(row["task"], 0).index
    return EpisodeRequest(EvalInit(row["task"], index), run.episode_key("evaluation", row["task"], number), record=True)
