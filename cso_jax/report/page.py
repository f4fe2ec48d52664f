"""The HTML page: one file, no scripts, no request to anywhere."""

import base64
import html
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from cso_jax.report import plots, tables
from cso_jax.report.run_files import STAGE_NAMES, Run
from cso_jax.report.table import NONE, Cell, Interval, Table
from cso_jax.telemetry import duration_text

VIDEO_LIMIT = 24 * 2**20  # bytes of videos inside the page: a browser must still open it

CSS = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --paper: #ffffff; --raised: #f6f7f8; --ink: #1c2227; --muted: #5c6770; --grid: #e4e8eb; --rule: #d5dade;
  --blue: #0b6bb0; --orange: #c76a00; --green: #00805d; --red: #c23b12; --grey: #69757e;
  --physics: #0072b2; --rendering: #56b4e9; --inference: #009e73; --update: #e69f00; --compile: #cc79a7;
  --data: #f0e442; --wait: #a3acb3; --checkpoint: #d55e00; --other: #d0d6da; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14181b; --raised: #1d2327; --ink: #e6eaed; --muted: #9aa6ae; --grid: #2b3338; --rule: #364047;
  --blue: #62b4f0; --orange: #f0a13c; --green: #3cc79e; --red: #f5794f; --grey: #a3b0b9;
  --wait: #6d7880; --other: #454f56; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--font);
  -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: 1.7rem; line-height: 1.2; letter-spacing: -.01em; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 52px 0 14px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: .92rem; font-weight: 600; margin: 0 0 6px; }
p { margin: 8px 0; max-width: 74ch; }
.meta, .note, figcaption { color: var(--muted); font-size: .86rem; }
.meta, code, pre { overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; margin: 28px 0 18px; }
.card { background: var(--raised); border-radius: 8px; padding: 16px 18px; border-top: 3px solid var(--stage); }
.card b { display: block; font-size: 2.1rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.card b small { font-size: 1.1rem; font-weight: 500; }
.card span { color: var(--muted); font-size: .86rem; display: block; }
.card .name { color: var(--ink); font-weight: 600; font-size: .92rem; }
ul.changes { list-style: none; margin: 0; padding: 0; }
ul.changes li { padding: 7px 0 7px 26px; position: relative; max-width: 96ch; }
ul.changes b { font-weight: 600; }
ul.changes small { color: var(--muted); font-size: .86rem; }
ul.changes li::before { content: attr(data-sign); position: absolute; left: 2px; font-weight: 700;
  color: var(--muted); }
ul.changes li.improvement::before { color: var(--blue); }
ul.changes li.loss::before { color: var(--red); }
.problem { border-left: 3px solid var(--red); padding: 6px 12px; background: var(--raised); }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 7px 0 7px 22px; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap;
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); }
thead th { color: var(--muted); font-weight: 600; border-bottom-color: var(--rule); vertical-align: bottom; }
table.narrow { min-width: min(100%, 440px); }
table.values td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.total td { font-weight: 600; border-bottom: 1px solid var(--rule); }
td small { color: var(--muted); font-weight: 400; font-size: .82em; }
.bar { display: block; position: relative; height: 5px; min-width: 116px; max-width: 190px; margin: 5px 0 0 auto;
  border-radius: 2px; background: var(--grid); }
.bar i { position: absolute; top: 0; bottom: 0; left: 0; background: var(--stage, var(--blue)); border-radius: 2px; }
.bar u { position: absolute; top: 2px; height: 1px; background: var(--ink); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 28px 26px; }
figure { margin: 0; min-width: 0; }
figure.wide { margin-bottom: 22px; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
.shares { display: grid; grid-template-columns: max-content 1fr max-content; gap: 9px 14px; align-items: center;
  font-size: .88rem; font-variant-numeric: tabular-nums; margin: 0 0 18px; }
.share { display: flex; height: 18px; gap: 1px; border-radius: 3px; overflow: hidden; }
.share i, .key i { background: var(--phase); }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .86rem; margin: 0 0 12px; }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; }
.videos { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px; }
.videos img { width: 100%; display: block; border-radius: 6px; background: var(--raised); }
details { margin-top: 10px; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--raised); border-radius: 8px; padding: 14px; font-size: .8rem; line-height: 1.45;
  white-space: pre-wrap; }
@media (max-width: 560px) { main { padding: 24px 16px 48px; } .cards { gap: 10px; } h2 { margin-top: 40px; } }
@media print { main { max-width: none; } .card, pre { border: 1px solid var(--rule); } }
"""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(run: Run) -> str:
    """Returns the whole page; parts whose inputs do not exist yet are left out."""
    name = str(run.config.get("name") or run.workdir.resolve().name)
    sections = [
        _headline(run, name),
        _data(run),
        _success(run),
        _plots("Learning", plots.learning_plots(run)),
        _plots("Health of the SPO updates", plots.diagnostic_plots(run)),
        _codebook(run),
        _tables("Data collection", [tables.collection_table(run), tables.demos_table(run)]),
        _time(run),
        _tables("Episodes per second", [tables.rollout_table(run)]),
        _videos(run),
        _configuration(run),
    ]
    body = "\n".join(section for section in sections if section)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{_text(name)}, run report</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _headline(run: Run, name: str) -> str:
    details = [f"written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"]
    if run.config_hash:
        details.insert(0, f"configuration {run.config_hash}")
    if run.timing:
        total = sum(sum(phases.values()) for phases in run.timing.values())
        details.append(f"{duration_text(total)} of work so far")
    parts = [f'<h1>{_text(name)}</h1><p class="meta">{_text(" · ".join(details))}</p>']
    parts += [f'<p class="problem">{_text(problem)}</p>' for problem in run.problems]
    if not run.stages:
        parts.append("<p>No stage has been evaluated yet.</p>")
        return "\n".join(parts)
    parts.append(f'<div class="cards">{"".join(_card(run, stage) for stage in run.stages)}</div>')
    changes = tables.comparison_sentences(run)
    if changes:
        parts.append(f'<ul class="changes">{"".join(_change(*change) for change in changes)}</ul>')
    return "\n".join(parts)


def _card(run: Run, stage: str) -> str:
    overall = run.overall(stage)
    low, high = (f"{100 * bound:.1f}" for bound in overall.bounds)
    count = len(run.results[stage])
    rate = f"{100 * overall.rate:.1f}<small> %</small>" if overall.episodes else NONE
    return (
        f'<div class="card" style="--stage:{_stage_colour(stage)}"><span class="name">{STAGE_NAMES[stage]}</span>'
        f"<b>{rate}</b><span>95 % interval {low} to {high}</span>"
        f"<span>n = {overall.episodes:,} episodes, {count} task{'s' if count != 1 else ''}</span></div>"
    )


def _change(sentence: str, verdict: str) -> str:
    sign = {"improvement": "▲", "loss": "▼"}.get(verdict, "○")
    lead, bracket, detail = sentence.partition(" (")
    text = f"<b>{_text(lead)}</b> <small>{_text(bracket.strip() + detail)}</small>"
    return f'<li class="{verdict.split()[0]}" data-sign="{sign}">{text}</li>'


def _data(run: Run) -> str:
    table = tables.data_table(run)
    if table is None:
        return ""
    warning = tables.codebook_warning(run)
    problem = f'<p class="problem">{_text(warning)}</p>' if warning else ""
    colours = [_stage_colour(name) for name in tables.data_rows(run)]
    return f"<h2>{_text(table.title)}</h2>{problem}{_table(table, row_colours=colours)}"


def _success(run: Run) -> str:
    table = tables.success_table(run)
    if table is None:
        return ""
    colours = ["", *(_stage_colour(stage) for stage in run.stages)]
    plot = f'<figure class="wide">{plots.success_by_stage(run)}</figure>'
    return f"<h2>{_text(table.title)}</h2>{plot}{_table(table, colours)}"


def _codebook(run: Run) -> str:
    sentence = tables.codebook_sentence(run)
    if not sentence:
        return ""
    return f"<h2>Codebook use</h2><p>{_text(sentence)}</p><figure>{plots.codebook_usage(run.codebook_counts)}</figure>"


def _plots(title: str, items: Sequence[tuple[str, str]]) -> str:
    figures = "".join(f"<figure><h3>{_text(name)}</h3>{svg}</figure>" for name, svg in items)
    return f'<h2>{_text(title)}</h2><div class="grid">{figures}</div>' if figures else ""


def _tables(title: str, found: Iterable[Table | None]) -> str:
    parts = [f"<h3>{_text(table.title)}</h3>{_table(table)}" for table in found if table is not None]
    return f"<h2>{_text(title)}</h2>{'<p></p>'.join(parts)}" if parts else ""


def _table(table: Table, colours: Sequence[str] = (), *, row_colours: Sequence[str] = ()) -> str:
    """Rates have bars in the colour of their column, or of their row."""
    head = "".join(f"<th>{_text(column)}</th>" for column in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        of_row = row_colours[i] if i < len(row_colours) else ""
        cells = "".join(_cell(cell, colours[j] if j < len(colours) else of_row) for j, cell in enumerate(row))
        rows.append(f"<tr{' class=total' if str(row[0]).startswith('all ') else ''}>{cells}</tr>")
    kind = ' class="values"' if not table.columns[0] else ' class="narrow"' if len(table.columns) < 3 else ""
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    header = f"<thead><tr>{head}</tr></thead>" if table.columns[0] else ""
    return f'<div class="scroll"><table{kind}>{header}<tbody>{"".join(rows)}</tbody></table></div>{note}'


def _cell(cell: Cell, colour: str) -> str:
    if not isinstance(cell, Interval) or not cell.episodes:
        return f"<td>{_text(str(cell))}</td>"
    low, high = cell.bounds
    style = f' style="--stage:{colour}"' if colour else ""
    return (
        f"<td>{100 * cell.rate:.1f} % "
        f"<small>[{100 * low:.0f}, {100 * high:.0f}] {cell.successes}/{cell.episodes}</small>"
        f'<span class="bar"{style}><i style="width:{100 * cell.rate:.1f}%"></i>'
        f'<u style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></u></span></td>'
    )


def _time(run: Run) -> str:
    table = tables.timing_table(run)
    if table is None:
        return ""
    phases = tables.present_phases(run)
    key = "".join(f'<span><i style="--phase:{_phase_colour(phase)}"></i>{_text(phase)}</span>' for phase in phases)
    rows = []
    for stage in tables.timed_stages(run):
        seconds = run.timing[stage]
        total = sum(seconds.values())
        if total <= 0:
            continue
        segments = "".join(
            f'<i title="{_text(phase)}: {duration_text(seconds[phase])}" '
            f'style="--phase:{_phase_colour(phase)};width:{100 * seconds[phase] / total:.2f}%"></i>'
            for phase in phases
            if seconds.get(phase, 0) > 0
        )
        name = _text(tables.stage_label(stage))
        rows.append(f'<span>{name}</span><span class="share">{segments}</span><span>{duration_text(total)}</span>')
    shares = f'<div class="key">{key}</div><div class="shares">{"".join(rows)}</div>'
    return f"<h2>{_text(table.title)}</h2>{shares}{_table(table)}"


def _videos(run: Run) -> str:
    if not run.videos:
        return ""
    figures, used, left_out = [], 0, 0
    for task, stage, outcome, path in sorted(map(_video_parts, run.videos), key=_video_order):
        size = path.stat().st_size
        if used + size > VIDEO_LIMIT:
            left_out += 1
            continue
        used += size
        caption = " · ".join(part for part in (task, STAGE_NAMES.get(stage, stage), outcome) if part)
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        figures.append(
            f'<figure><img src="data:image/gif;base64,{data}" alt="{_text(caption)}" loading="lazy">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
        )
    note = f'<p class="note">{left_out} more in the folder videos: too large for this page.</p>' if left_out else ""
    return f'<h2>Episodes</h2><div class="videos">{"".join(figures)}</div>{note}'


def _video_parts(path: Path) -> tuple[str, str, str, Path]:
    stage, _, rest = path.stem.partition("_")
    task, _, outcome = rest.rpartition("_")
    return task, stage, outcome, path


def _video_order(video: tuple[str, str, str, Path]) -> tuple[str, int, str]:
    task, stage, outcome, _ = video
    order = list(STAGE_NAMES)
    return task, order.index(stage) if stage in order else len(order), outcome


def _configuration(run: Run) -> str:
    protocol = tables.protocol_table(run)
    parts = [f"<h2>{_text(protocol.title)}</h2>{_table(protocol)}"] if protocol is not None else []
    if run.config:
        text = _text(json.dumps(run.config, indent=2, ensure_ascii=False))
        parts.append(f"<h2>Configuration</h2><details><summary>config.json</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _stage_colour(stage: str) -> str:
    return f"var(--{plots.VARIABLES[plots.STAGE_COLOURS[stage]]})"


def _phase_colour(phase: str) -> str:
    return f"var(--{phase if phase in tables.PHASES else 'other'})"


def _text(value: str) -> str:
    return html.escape(value).replace(" %", "&nbsp;%").replace("p &lt; ", "p&nbsp;&lt;&nbsp;")
