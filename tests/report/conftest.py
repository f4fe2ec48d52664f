"""A run directory as the stages leave it, with made-up numbers."""

import json
import random

import pytest
from PIL import Image

from cso_jax.files import append_jsonl

TASKS = ["button-press-v3", "door-open-v3", "drawer-open-v3", "peg-insert-side-v3", "push-v3"]
RATES = {
    "reference": (0.9, 0.85, 0.95, 0.6, 0.8),
    "ceiling": (0.75, 0.55, 0.8, 0.3, 0.45),
    "greedy": (0.7, 0.5, 0.75, 0.2, 0.45),
    "imitation": (0.7, 0.5, 0.8, 0.2, 0.4),
    "rsft": (0.8, 0.6, 0.85, 0.25, 0.5),
    "spo": (0.95, 0.8, 0.9, 0.45, 0.75),
}
PHASES = ("physics", "rendering", "inference", "update", "compile", "data", "wait", "other")


def write_run(workdir, episodes=20):
    """Fills `workdir` with every input of the report."""
    draw = random.Random(0)
    config = {"name": "metaworld_5", "seed": 0, "spo": {"clip_low": 0.93, "clip_high": 1.15}, "note": "<b> & co"}
    (workdir / "config.json").write_text(json.dumps(config))
    results = {"config_hash": "3f9c2a1b"}
    rows = []
    for stage, rates in RATES.items():
        results[stage] = {}
        for task, rate in zip(TASKS, rates, strict=True):
            outcomes = [random.Random(f"{task}{i}").random() < rate for i in range(episodes)]
            results[stage][task] = {"successes": sum(outcomes), "episodes": episodes}
            rows += [
                {
                    "stage": stage, "task": task, "init": f"eval:{task}:{i}", "seed": 0, "success": outcome,
                    "steps": 90, "horizon": 500, "renderer": "egl", "versions": {"mujoco": "3.3.0", "jax": "0.10.2"},
                }
                for i, outcome in enumerate(outcomes)
            ]  # fmt: skip
    (workdir / "results.json").write_text(json.dumps(results))
    append_jsonl(workdir / "episodes.jsonl", rows)
    append_jsonl(workdir / "metrics.jsonl", metric_rows(draw))
    timing = {
        stage: {phase: draw.random() * scale for phase in PHASES}
        for stage, scale in (
            ("demos", 60),
            ("codebook", 300),
            ("imitation", 900),
            ("rsft", 1200),
            ("evaluate rsft", 200),
            ("spo", 4000),
        )
    }
    (workdir / "timing.json").write_text(json.dumps(timing))
    counts = [int(3000 / (i + 3)) if i % 5 else 0 for i in range(1000)]
    (workdir / "codebook_usage.json").write_text(json.dumps({"counts": counts}))
    summary = {
        task: {
            "rollouts": 200,
            "successes": 20 * i + 40,
            "kept": 20 * i + 30,
            "states": 50,
            "states_without_success": i,
        }
        for i, task in enumerate(TASKS)
    }
    (workdir / "rsft_summary.json").write_text(json.dumps(summary))
    write_videos(workdir / "videos")


def metric_rows(draw):
    for task in TASKS:
        yield {"stage": "demos", "step": 0, "task": task, "attempts": 55, "successes": 50}
    for step in range(0, 4000, 50):
        noise = draw.uniform(0.95, 1.05)
        yield {
            "stage": "codebook", "step": step, "loss": noise * 30 / (step + 60), "codes_used": min(800, step / 3),
            "perplexity": min(420, step / 6), "grad_norm": None,
        }  # fmt: skip
        yield {"stage": "reference", "step": step, "loss": noise * 20 / (step + 60)}
        loss = noise * (1.2 + 5 * 2 ** (-step / 500))
        row = {"stage": "imitation", "step": step, "loss": loss, "token_accuracy": 1 / (1 + loss)}
        yield row | ({"validation_loss": loss + 0.2} if step % 500 == 0 else {})
    for wave in range(6):
        yield {"stage": "rsft_collect", "step": wave, "rollouts": 200, "successes": 90, "filled_fraction": wave / 5}
        yield {"stage": "rsft", "step": wave * 100, "loss": 1.2 - wave / 20}
    for i in range(60):
        yield {
            "stage": "spo", "step": i, "train_success": 0.5 + i / 150 + draw.uniform(-0.08, 0.08),
            "train_success_task_mean": 0.55 + i / 150 + draw.uniform(-0.05, 0.05),
            "informative_fraction": 0.7 - i / 200 + draw.uniform(-0.05, 0.05), "groups_drawn": 20, "groups_kept": 16,
            "loss": -0.01, "clip_fraction": 0.12 + draw.uniform(-0.03, 0.03), "cut_fraction": 0.07,
            "approx_kl": 0.004 + draw.uniform(0, 0.002), "mean_abs_log_ratio": 0.05, "ratio_p05": 0.9 - i / 2000,
            "ratio_p50": 1.0, "ratio_p95": 1.13 + draw.uniform(0, 0.03), "entropy": 14 - i / 20,
            "mean_steps_success": 120 - i / 3, "mean_steps_failure": 480, "log_prob_drift": 1e-6, "seconds": 61 + i / 9,
        }  # fmt: skip


def write_videos(folder):
    folder.mkdir()
    for i, name in enumerate(("imitation_push-v3_failure", "spo_push-v3_success", "spo_two_words_success")):
        frames = [Image.new("RGB", (96, 96), (40 * i + 60, 20 * j + 60, 120)) for j in range(4)]
        frames[0].save(folder / f"{name}.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)


@pytest.fixture
def full_run(tmp_path):
    write_run(tmp_path)
    return tmp_path
