"""Success of every method on every suite beside the paper: Table 1 and Figure 2, from runs that have finished.

Runs nothing. Reads what one_suite.py, components.py, baselines_il.py and baselines_rl.py left in OUT/<suite>/ for each
suite; for suites from state the results.json of ordinary runs of a config in OUT/<suite>/main/seed_<S>/; and in
OUT/<suite>/remote/<method>/ the rows of `cso_jax.evaluate --policy=ws://...`, the method being octo, openvla, dita, pi0
or pi0_fast. What is missing is shown as missing, and the note says why. The suites are those from state unless --suite
names others.
"""

import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cited
from harness import plots, results
from harness.options import DEFAULT_SUITE, SCALES, parse_seeds
from harness.tables import Table, count_text, interval_text, summarise

from cso_jax import config as configs
from cso_jax import telemetry
from cso_jax.cli import fail
from cso_jax.files import expanded, read_jsonl, rewrite_jsonl

USAGE = (
    "usage: python experiments/main_table.py [--suite=configs/a.py,configs/b.py] [--seeds=3 | --seeds=1,2,3] "
    "[--scale=smoke|small|paper] [--out=DIR]    DIR holds one folder per suite (default runs/experiments)"
)
# Column of the paper, and what it is called.
COLUMNS = {
    "libero_object": "Object", "libero_spatial": "Spatial", "libero_goal": "Goal", "libero_long": "Long",
    "libero_90": "LIBERO-90", "metaworld_ml45": "ML45",
}  # fmt: skip
STATE = "_state"
SUITES = tuple(name + STATE for name in COLUMNS)
METHODS = {
    "octo": "Octo", "openvla": "OpenVLA", "dita": "Dita", "pi0": "π₀", "pi0_fast": "π₀ + FAST",
    "reference": "behaviour cloning", "ceiling": "its chunks through the codebook",
    "resnet_t": "ResNet-T", "diffusion": "Diffusion Policy", "act": "ACT", "mdt": "MDT-style", "vqbet": "VQ-BeT",
    "star": "STAR-style", "imitation": "imitation (QueST)",
    "rsft": "R-SFT only", "reinforce": "REINFORCE", "grape": "GRAPE", "ript": "RIPT", "spo-only": "SPO only",
    "spo": "CSO",
}  # fmt: skip
_SOURCES = ("one_suite", "components", "baselines_il", "baselines_rl")
_REMOTE = "evaluation_remote.jsonl"
_NOTE = (
    "success % [95 % Wilson interval, all seeds pooled] episodes (seeds). -: not run, or not in the paper.\n"
    "how: measured here; remote, by somebody else's server in the same episodes; cited, the paper's number alone "
    "(experiments/cited.py).\n"
    "The paper's numbers are from two cameras and the official demonstrations, ours (state) from poses and scripted "
    "ones: compare the order of the\nrows, not the values. The paper's own 'Overall' averages four suites for CSO and "
    "RIPT and five, with LIBERO-90, for QueST's 81.5,\nwhich on the same four is 80.1."
)

_OF_A_RUN = ("reference", "ceiling", "imitation", "rsft", "spo")  # stages of an ordinary run that are rows here

Rows = dict[tuple[str, str], list[results.Row]]


def gather(out: Path, suites: Sequence[str], seeds: Sequence[int], scale: str) -> Rows:
    """Rows by (method, suite) of the scripts' results files, each seed once."""
    found: Rows = {}
    suffix = "" if scale == "small" else f"_{scale}"
    for suite in suites:
        folder = out / f"{suite}{suffix}"
        made = [row for source in _SOURCES for row in read_jsonl(folder / source / "results.jsonl")]
        own = ordinary_runs(folder / "main", suite) if suite.endswith(STATE) else ()
        for row in [*made, *own, *remote_runs(folder / "remote", suite)]:
            cell = found.setdefault((row["variant"], suite), [])
            if row["seed"] in seeds and all(row["seed"] != other["seed"] for other in cell):
                cell.append(row)
    return found


def ordinary_runs(folder: Path, suite: str) -> Iterator[results.Row]:
    """A row for every stage that `main` evaluated in `folder`/seed_<S>."""
    for path in sorted(folder.glob("seed_*/results.json")):
        cells = json.loads(path.read_text())
        seed = path.parent.name.removeprefix("seed_")
        if not seed.isdecimal():
            continue
        for stage in _OF_A_RUN:
            tasks = cells.get(stage, {}).values()
            if episodes := sum(task["episodes"] for task in tasks):
                successes = sum(task["successes"] for task in tasks)
                yield {
                    "suite": suite, "variant": stage, "seed": int(seed),
                    "successes": successes, "episodes": episodes, "success": successes / episodes,
                }  # fmt: skip


def remote_runs(folder: Path, suite: str) -> Iterator[results.Row]:
    """A row for every seed of every method that a server was asked for, in `folder`/<method>."""
    for path in sorted(folder.glob(f"*/{_REMOTE}")):
        episodes = read_jsonl(path)
        for seed in sorted({row["seed"] for row in episodes}):
            success = [bool(row["success"]) for row in episodes if row["seed"] == seed]
            yield {
                "suite": suite, "variant": path.parent.name, "seed": seed, "remote": True,
                "successes": sum(success), "episodes": len(success), "success": sum(success) / len(success),
            }  # fmt: skip


def how(method: str, rows: Rows, suites: Sequence[str]) -> str | None:
    """Where a method's line is from: "measured", "remote" or "cited"."""
    found = [row for suite in suites for row in rows.get((method, suite), [])]
    if found:
        return "remote" if all(row.get("remote") for row in found) else "measured"
    return "cited" if any(paper(method, suite) for suite in suites) else None


def column(suite: str) -> str:
    """What a suite's column is called."""
    own = suite.removesuffix(STATE)
    return COLUMNS.get(own, own) + (", state" if suite.endswith(STATE) else "")


def paper(method: str, suite: str) -> str | None:
    """The paper's number for a suite, whatever it is seen by."""
    row = cited.ROWS.get(method)
    return row.success.get(suite.removesuffix(STATE)) if row else None


def table_of(rows: Rows, suites: Sequence[str], missing: Sequence[str] = ()) -> Table:
    """Ours and the paper's column of every suite; `missing` are the reasons why suites have no cell."""
    columns = ["", "how"] + [text for suite in suites for text in (column(suite), "paper")]
    lines = []
    for method, label in METHODS.items():
        cells: list[str | None] = [label, how(method, rows, suites)]
        for suite in suites:
            cells += [cell_text(rows.get((method, suite), [])), paper(method, suite)]
        lines.append(cells)
    return Table("Success of every method by suite (Table 1, Figure 2)", columns, lines, "\n".join([_NOTE, *missing]))


def cell_text(found: Sequence[results.Row]) -> str | None:
    """E.g. "99.0 [97.8, 99.5] 600 (3)"."""
    summary = summarise(found)
    if summary is None:
        return None
    return f"{100 * summary.successes / summary.episodes:.1f} {interval_text(summary)} {count_text(summary)}"


def reasons(out: Path, rows: Rows, suites: Sequence[str], seeds: Sequence[int], scale: str) -> list[str]:
    """One line for every suite that has no cell at all."""
    suffix = "" if scale == "small" else f"_{scale}"
    empty = [suite for suite in suites if not any(rows.get((method, suite)) for method in METHODS)]
    return [
        f"{column(suite)}: {out.name}/{suite}{suffix} has no results of {', '.join(_SOURCES)} or main for seeds "
        f"{', '.join(map(str, seeds))}."
        for suite in empty
    ]


def draw(path: Path, rows: Rows, suites: Sequence[str]) -> None:
    """Bars of the methods by suite with their intervals, after Figure 2; only suites with results are drawn."""
    suites = [suite for suite in suites if any(rows.get((method, suite)) for method in METHODS)]
    drawn, (axes,) = plots.figure(1, width=3.0 + 1.4 * len(suites))
    methods = [method for method in METHODS if any(rows.get((method, suite)) for suite in suites)]
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        made = [(x, s) for x, suite in enumerate(suites) if (s := summarise(rows.get((method, suite), [])))]
        rates = [s.successes / s.episodes for _, s in made]
        below = [100 * max(0.0, rate - s.low) for rate, (_, s) in zip(rates, made, strict=True)]
        above = [100 * max(0.0, s.high - rate) for rate, (_, s) in zip(rates, made, strict=True)]
        axes.bar(
            [x + (number - (len(methods) - 1) / 2) * width for x, _ in made],
            [100 * rate for rate in rates], width, color=plots.COLOURS[number % len(plots.COLOURS)],
            label=METHODS[method], yerr=[below, above], error_kw={"linewidth": 0.8},
        )  # fmt: skip
    axes.set_xticks(range(len(suites)), [column(suite) for suite in suites])
    axes.set(ylabel="success %, 95 % interval", ylim=(0, 100), xlim=(-0.5, max(len(suites), 1) - 0.5))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plots.save(drawn, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        telemetry.show(f"{inspect.cleandoc(__doc__ or '')}\n\n{USAGE}")
        return 0
    try:
        given, overrides = configs.split_arguments(arguments)
        unknown = [
            *sorted(given.keys() - {"suite", "seeds", "scale", "out"}),
            *(f"config.{key}" for key, _ in overrides),
        ]
        if unknown:
            raise configs.ConfigError(f"unknown option --{unknown[0]}: this script runs nothing; {USAGE}")
        scale = given.get("scale", "small")
        if scale not in SCALES:
            raise configs.ConfigError(f"--scale must be one of {', '.join(SCALES)}; got {scale!r}")
        seeds = parse_seeds(given.get("seeds", "3"))
        out = expanded(given.get("out", "runs/experiments"))
        if not out.is_dir():
            raise configs.ConfigError(f"--out must be a folder that holds one folder per suite; there is no {out}")
    except configs.ConfigError as error:
        return fail(error)
    chosen = [Path(name).stem for name in given.get("suite", "").split(",") if name]
    extra = Path(DEFAULT_SUITE).stem
    suffix = "" if scale == "small" else f"_{scale}"
    for suite in chosen:
        if suite.removesuffix(STATE) not in COLUMNS and not (out / f"{suite}{suffix}").is_dir():
            return fail(configs.ConfigError(f"nothing of {suite} at scale {scale}: {out} has no {suite}{suffix}"))
    suites = chosen or [*SUITES, *([extra] if (out / f"{extra}{suffix}").is_dir() else [])]
    rows = gather(out, suites, seeds, scale)
    table = table_of(rows, suites, reasons(out, rows, suites, seeds, scale))
    folder = out / "main_table"
    rewrite_jsonl(folder / "results.jsonl", [row for cell in rows.values() for row in cell])
    table.write(folder)
    draw(folder / "success.png", rows, suites)
    telemetry.show(table.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
