"""The report holds every number with its n, and lives with whatever a run has on disk."""

import json
import re
from html.parser import HTMLParser

import pytest

from cso_jax import report
from cso_jax.files import append_jsonl
from cso_jax.report import page, plots, run_files, tables
from cso_jax.report.table import NONE

VOID = {"meta", "img", "br", "link", "input", "hr"}
OPTIONAL = [
    "config.json", "results.json", "episodes.jsonl", "metrics.jsonl", "timing.json", "codebook_usage.json",
    "rsft_summary.json", "videos",
]  # fmt: skip


class Checker(HTMLParser):
    """Collects tags and complains about elements that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    checker = Checker()
    checker.feed(path.read_text("utf-8"))
    checker.close()
    assert checker.stack == []
    return checker


def remove(path):
    if path.is_dir():
        for item in path.iterdir():
            item.unlink()
        path.rmdir()
    else:
        path.unlink()


@pytest.fixture
def quick_plots(monkeypatch):
    """For tests that look at what is on the page, not at the drawings."""
    monkeypatch.setattr(plots, "draw", lambda *_, **__: "<svg></svg>")


def test_page_is_well_formed_and_complete(full_run):
    path = report.build(full_run)
    assert path == full_run / "report.html"
    checker = check(path)
    text = " ".join(checker.text)
    for expected in ("metaworld_5", "3f9c2a1b", "n = 100 episodes, 5 tasks", "Where the time went", "R-SFT collection"):
        assert expected in text
    run = run_files.load_run(full_run)
    curves = [title for title, _ in (*plots.learning_plots(run), *plots.diagnostic_plots(run))]
    assert {"Codebook: reconstruction", "SPO: entropy of the policy", "Skill ratio"} < set(curves)
    assert all(title in text for title in curves)
    # Beside the curves: success by task and stage, and codebook use.
    assert checker.tags.count("svg") == len(curves) + 2
    assert checker.tags.count("img") == len(list((full_run / "videos").iterdir())) > 0
    assert "two_words · SPO · success" in text
    ids = [value for name, value in checker.attributes if name == "id"]
    assert ids and len(ids) == len(set(ids))


def test_page_asks_nothing_of_the_network(full_run):
    content = report.build(full_run).read_text("utf-8")
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", content))
    assert "<script" not in content
    references = re.findall(r'(?:src|href)="([^"]*)"', content)
    assert {reference.partition(",")[0][:1] for reference in references} == {"d", "#"}
    assert all(reference.startswith(("data:image/gif;base64,", "#")) for reference in references)
    assert set(re.findall(r"url\((.{2})", content)) == {"#p"}


def test_page_escapes_what_the_run_wrote(full_run, quick_plots):
    content = report.build(full_run).read_text("utf-8")
    assert "<b> & co" not in content
    assert "&lt;b&gt; &amp; co" in content


def test_plots_take_their_colours_from_the_page(full_run):
    content = report.build(full_run).read_text("utf-8")
    svgs = re.findall(r"<svg.*?</svg>", content, flags=re.S)
    assert svgs and all("var(--" in svg for svg in svgs)
    assert not [svg for svg in svgs if re.search(r"#[0-9a-f]{6}\b(?!-)", svg)]


def test_text_tables_carry_n_and_intervals(full_run):
    text = report.text_tables(full_run)
    lines = text.splitlines()
    assert re.search(r"all tasks +\d+\.\d % \[\d+, \d+\] \(\d+/100\)", text)
    assert re.search(r"push-v3 +\d+\.\d % \[\d+, \d+\] \(\d+/20\)", text)
    assert "n = 100 paired episodes" in text
    assert next(line for line in lines if line.startswith("Imitation → SPO:")).count("improvement")
    assert "Codebook: 800 of 1000 codes used (80.0 %)" in text


def test_what_the_data_allows_stands_beside_the_cascade(full_run, quick_plots):
    run = run_files.load_run(full_run)
    table = tables.data_table(run)
    assert [row[0] for row in table.rows] == [
        "Behaviour cloning", "Codebook ceiling", "Imitation, greedy", "Imitation, sampled",
    ]  # fmt: skip
    assert [row[1].episodes for row in table.rows] == [100] * 4
    text = report.text_tables(full_run)
    assert re.search(r"Codebook ceiling +\d+\.\d % \[\d+, \d+\] \(\d+/100\) +-\d+\.\d \[-\d+, -\d+\]", text)
    page_text = " ".join(check(report.build(full_run)).text)
    for place in (text, page_text.replace("\xa0", " ")):
        assert place.count("raise config.codebook.steps or config.autoencoder.width.") == 1
        assert "Imitation, greedy" in place
    # The cascade is compared with itself alone.
    assert run.stages == ["imitation", "rsft", "spo"] and run.references == ["reference", "ceiling", "greedy"]
    assert not re.search("(cloning|ceiling|greedy)", " ".join(text for text, _ in tables.comparison_sentences(run)))
    assert tables.success_table(run).columns[1:4] == ["Imitation", "R-SFT", "SPO"]


def test_without_references_nothing_is_said_of_them(full_run, quick_plots):
    for name in ("results.json", "episodes.jsonl"):
        remove(full_run / name)
    write_rows = [
        {"stage": "imitation", "task": "a", "init": f"eval:a:{i}", "seed": 0, "success": True} for i in range(3)
    ]  # fmt: skip
    append_jsonl(full_run / "episodes.jsonl", write_rows)
    assert tables.data_table(run_files.load_run(full_run)) is None
    assert "What the data allows" not in report.text_tables(full_run) + report.build(full_run).read_text("utf-8")


def test_rows_are_sorted_by_the_last_stage(full_run):
    table = tables.success_table(run_files.load_run(full_run))
    rates = [row[3].rate for row in table.rows[1:]]
    assert table.rows[0][0] == "all tasks"
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_one_input_may_be_missing(full_run, quick_plots, missing):
    remove(full_run / missing)
    check(report.build(full_run))
    assert report.text_tables(full_run)


def test_an_empty_directory_has_a_report(tmp_path):
    assert "No stage has been evaluated yet." in " ".join(check(report.build(tmp_path)).text)
    assert report.text_tables(tmp_path) == "No stage has been evaluated yet.\n"
    with pytest.raises(FileNotFoundError, match="no run directory"):
        report.build(tmp_path / "nowhere")


def test_results_fall_back_on_the_episodes(full_run):
    with_results = run_files.load_run(full_run).results
    remove(full_run / "results.json")
    assert run_files.load_run(full_run).results == with_results


def test_an_unreadable_file_is_named_not_fatal(full_run, quick_plots):
    (full_run / "results.json").write_text("{")
    assert "results.json could not be read" in " ".join(check(report.build(full_run)).text)
    assert report.text_tables(full_run).startswith("results.json could not be read")


def test_a_stage_that_did_not_run_is_left_out(full_run, quick_plots):
    results = json.loads((full_run / "results.json").read_text())
    del results["spo"], results["rsft"]["push-v3"]
    (full_run / "results.json").write_text(json.dumps(results))
    run = run_files.load_run(full_run)
    assert run.stages == ["imitation", "rsft"]
    assert [sentence[0].split(":")[0] for sentence in tables.comparison_sentences(run)] == ["Imitation → R-SFT"]
    assert tables.success_table(run).rows[-1][2] == NONE
    check(report.build(full_run))


def test_comparison_in_plain_words(tmp_path):
    def run(before, after):
        (tmp_path / "episodes.jsonl").unlink(missing_ok=True)
        append_jsonl(tmp_path / "episodes.jsonl", [
            {"stage": stage, "task": "a", "init": f"eval:a:{i}", "seed": 0, "success": bool(success)}
            for stage, side in (("imitation", before), ("rsft", after)) for i, success in enumerate(side)
        ])  # fmt: skip
        return run_files.load_run(tmp_path)

    assert tables.comparison_sentences(run([0, 1], [1, 0]))[0][0].startswith(
        "Imitation → R-SFT: no demonstrable difference, 0.0 points"
    )
    text, _ = tables.comparison_sentences(run([0] * 20 + [1], [1] * 20 + [1]))[0]
    assert "+95.2 points" in text and "n = 21 paired episodes, 20 gained, 0 lost, exact p < 0.001" in text
    assert text.startswith("Imitation → R-SFT: improvement")


def test_time_is_listed_in_the_order_of_the_run(full_run):
    (full_run / "timing.json").write_text(
        '{"report": {"other": 3}, "evaluate spo": {"wait": 30}, "spo": {"wait": 100, "checkpoint": 0.5}, "demos": {}}'
    )
    table = tables.timing_table(run_files.load_run(full_run))
    assert table.columns == ["stage", "wait", "checkpoint", "other", "total"]
    assert [row[0] for row in table.rows] == ["Demonstrations", "SPO", "SPO evaluation", "Report", "all stages"]
    assert table.rows[-1][1:] == ["130", "0.5", "3.0", "2 min 14 s"]


def test_rates_of_episodes_by_hand(full_run):
    assert tables.rollout_table(run_files.load_run(full_run)) is None
    (full_run / "timing.json").write_text('{"evaluate spo": {"wait": 3}, "codebook": {"update": 1}}')
    (full_run / "counters.json").write_text(json.dumps({
        "evaluate spo": {
            "programs": 3, "episodes": 10, "steps": 4000, "decisions": 500, "rows": 800, "run_s": 4.0, "worker_s": 8.0,
            "physics_s": 5.0, "render_s": 1.0, "act_s": 1.0, "worker_rss": 50 * 2**20,
        },
        "codebook": {"programs": 2, "recalled": 1},
    }))  # fmt: skip
    run = run_files.load_run(full_run)
    # 500 of 800 rows, 6 of 8 seconds, 1 of 4.
    row = ["SPO evaluation", "10", "1,000", "125", "62 %", "75 %", "25 %", "50"]
    assert tables.rollout_table(run).rows == [row]
    assert "Of 5 programs 4 were compiled" in tables.timing_table(run).note


def test_videos_beyond_the_limit_are_counted(full_run, quick_plots, monkeypatch):
    monkeypatch.setattr(page, "VIDEO_LIMIT", 0)
    checker = check(report.build(full_run))
    assert "img" not in checker.tags
    assert "3 more in the folder videos" in " ".join(checker.text)


def test_plots_name_the_unit_of_the_ratio(full_run, quick_plots):
    run = run_files.load_run(full_run)
    assert "Skill ratio" in dict(plots.diagnostic_plots(run))
    run.config["spo"]["unit"] = "trajectory"
    assert {"Trajectory ratio", "Trajectories outside the clip range"} <= dict(plots.diagnostic_plots(run)).keys()


def test_running_mean_by_hand():
    assert plots.running_mean([1, 2, 3, 4], 3) == [1.5, 2, 3, 3.5]
    assert plots.running_mean([1, 3], 2) == [1, 2]


def test_find_value_searches_every_level():
    assert plots.find_value({"a": {"b": 1}, "c": {"d": {"clip_low": 0.93}}}, "clip_low") == 0.93
    assert plots.find_value({"clip_low": None}, "clip_low") is None


def test_series_skip_rows_without_a_value(full_run):
    (full_run / "metrics.jsonl").write_text(
        '{"stage":"spo","step":1,"entropy":null}\n{"stage":"spo","step":2,"entropy":3}\n'
    )
    assert run_files.load_run(full_run).series("spo", "entropy") == ([2.0], [3.0])
