"""Draw the two pictures at the top of the README from a finished run of the quickstart:

    python tools/readme_pictures.py WORKDIR [--task=TASK] [--out=docs/images]

quickstart_success.png: success of behaviour cloning and of every stage, all tasks together and each, with 95 % Wilson
intervals and n.
quickstart_before_after.gif: one initial state twice, side by side, the imitation policy's failure and the final
policy's success. Both are of the run's own evaluation; the first task (or TASK) that has both videos is shown.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from cso_jax import telemetry
from cso_jax.files import atomic_write_bytes, read_jsonl
from cso_jax.statistics import wilson

STAGES = {
    "reference": ("behaviour cloning", "#00805d", "^"),
    "imitation": ("imitation", "#8c8c8c", "o"),
    "rsft": ("+ R-SFT", "#c77c11", "s"),
    "spo": ("+ SPO", "#1f6fb4", "D"),
}
GIF_BYTES = 1_000_000
_FRAME_MS, _LAST_MS, _GAP, _BAR = 80, 1500, 8, 24


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--task", default="")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    rows = read_jsonl(options.workdir / "episodes.jsonl")
    missing = [stage for stage in STAGES if not any(row["stage"] == stage for row in rows)]
    if missing:
        parser.error(f"{options.workdir} has no evaluation of {', '.join(missing)}: finish the run first")
    seed = json.loads((options.workdir / "config.json").read_text())["seed"]
    pair = find_pair(options.workdir / "videos", rows, options.task)
    if pair is None:
        parser.error(f"{options.workdir / 'videos'} has no failure and success from one initial state")
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(options.out / "quickstart_success.png", success_png(rows, seed))
    gif = before_after_gif(*pair[1:], pair[0])
    atomic_write_bytes(options.out / "quickstart_before_after.gif", gif)
    telemetry.show(f"{pair[0]}: {len(gif) / 1000:.0f} kB of GIF; both pictures are in {options.out}")
    return 0


def counts(rows: Sequence[dict[str, Any]], stage: str, task: str = "") -> tuple[int, int]:
    """Successes and episodes of a stage, of one task or of all."""
    found = [bool(row["success"]) for row in rows if row["stage"] == stage and task in ("", row["task"])]
    return sum(found), len(found)


def success_png(rows: Sequence[dict[str, Any]], seed: int) -> bytes:
    """The figure as PNG, on white, so that it can be read on a dark page too."""
    tasks = sorted({row["task"] for row in rows}, key=lambda task: (counts(rows, "spo", task)[0], task))
    lines = [*tasks, ""]  # the axis counts upwards; "": all tasks
    labels = [f"{task or 'all tasks'}, n = {counts(rows, 'spo', task)[1]}" for task in lines]
    with matplotlib.rc_context({"font.size": 11, "text.color": "#222222", "axes.edgecolor": "#888888"}):
        figure = Figure(figsize=(5.4, 0.6 * len(lines) + 1.1), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for offset, (stage, (name, colour, marker)) in zip((0.3, 0.1, -0.1, -0.3), STAGES.items(), strict=True):
            cells = [counts(rows, stage, task) for task in lines]
            rates = [100 * won / n for won, n in cells]
            places = [y + offset for y in range(len(lines))]
            for y, (won, n) in zip(places, cells, strict=True):
                axes.plot([100 * bound for bound in wilson(won, n)], [y, y], color=colour, linewidth=1.8)
            axes.plot(rates, places, marker, color=colour, markersize=5.5, label=name)
            right = 100 * wilson(*cells[-1])[1] + 1.5
            axes.text(right, places[-1], f"{rates[-1]:.1f}", va="center", color=colour, fontsize=8.5)
        axes.axhline(len(lines) - 1.5, color="#888888", linewidth=0.8)
        axes.set(xlim=(0, 100), ylim=(-0.6, len(lines) - 0.4))
        axes.set_xlabel(f"success [%] and 95 % Wilson intervals, seed {seed}")
        axes.set_yticks(range(len(lines)), labels)
        axes.grid(axis="x", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, handletextpad=0.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200)
    return buffer.getvalue()


def find_pair(folder: Path, rows: Sequence[dict[str, Any]], task: str = "") -> tuple[str, Path, Path] | None:
    """(task, failure before, success after) of the first task whose two videos are of one initial state."""
    outcome = {(row["stage"], row["task"], row["init"]): bool(row["success"]) for row in rows}
    for before in sorted(folder.glob(f"imitation_{task or '*'}_failure.gif")):
        name = before.stem.removeprefix("imitation_").removesuffix("_failure")
        after = folder / f"spo_{name}_success.gif"
        # The report films the final policy from a state from which imitation failed, where there is one.
        turned = any(
            won and stage == "spo" and of == name and outcome.get(("imitation", of, init)) is False
            for (stage, of, init), won in outcome.items()
        )
        if after.exists() and turned:
            return name, before, after
    return None


def before_after_gif(before: Path, after: Path, task: str) -> bytes:
    """Both videos side by side with a line of text above each, as large as GIF_BYTES allows."""
    videos = [_frames(before), _frames(after)]
    length = max(map(len, videos))
    for side, colours in ((280, 64), (240, 64), (240, 32), (200, 32), (160, 32), (160, 16)):
        frames = [_side_by_side([video[min(i, len(video) - 1)] for video in videos], side, task) for i in range(length)]
        found = _gif(frames, colours)
        if len(found) < GIF_BYTES:
            return found
    raise ValueError(f"{before} and {after} do not fit into {GIF_BYTES} bytes")


def _frames(path: Path) -> list[Image.Image]:
    with Image.open(path) as video:
        found = []
        for i in range(getattr(video, "n_frames", 1)):
            video.seek(i)
            found.append(video.convert("RGB"))
        return found


def _side_by_side(pictures: Sequence[Image.Image], side: int, task: str) -> Image.Image:
    canvas = Image.new("RGB", (2 * side + _GAP, side + _BAR), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    texts = (f"{task}, imitation: fails", "same start, R-SFT and SPO: succeeds")
    for i, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        left = i * (side + _GAP)
        canvas.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, _BAR))
        draw.text((left + side / 2, _BAR / 2), text, fill="#222222", font=font, anchor="mm")
    return canvas


def _gif(frames: Sequence[Image.Image], colours: int) -> bytes:
    """One palette for all frames, and no dithering: both keep unchanged pixels equal, which GIF stores for nothing."""
    sample = np.concatenate([np.asarray(frame) for frame in frames[:: max(1, len(frames) // 6)]])
    palette = Image.fromarray(sample).quantize(colours, dither=Image.Dither.NONE)
    images = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [_FRAME_MS] * (len(images) - 1) + [_LAST_MS]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    raise SystemExit(main())
