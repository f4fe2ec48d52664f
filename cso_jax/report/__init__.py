"""The report of a run: one self-contained HTML page, and the same tables as text."""

from pathlib import Path

from cso_jax.files import PathLike, atomic_write_text


def build(workdir: PathLike) -> Path:
    """Writes `workdir/report.html` from what the run has on disk so far, and returns its path.

    Missing inputs leave their part of the page out. Raises FileNotFoundError where there is no such directory.
    """
    from cso_jax.report.page import render
    from cso_jax.report.run_files import load_run

    folder = _existing(workdir)
    path = folder / "report.html"
    atomic_write_text(path, render(load_run(folder)))
    return path


def text_tables(workdir: PathLike) -> str:
    """Returns the tables of the report as plain text for a terminal, with the comparisons of the stages."""
    from cso_jax.report import run_files, tables

    run = run_files.load_run(_existing(workdir))
    parts = list(run.problems)
    found = tables.all_tables(run)
    if not run.stages:
        parts.append("No stage has been evaluated yet.")
    sentences = "\n".join(sentence for sentence, _ in tables.comparison_sentences(run))
    for table in found:
        parts.append(table.as_text())
        if table.title == tables.SUCCESS_TITLE and sentences:
            parts.append(sentences)
        if table.title == tables.DATA_TITLE and (warning := tables.codebook_warning(run)):
            parts.append(warning)
    codebook = tables.codebook_sentence(run)
    if codebook:
        parts.append(f"Codebook: {codebook}")
    return "\n\n".join(parts) + "\n"


def _existing(workdir: PathLike) -> Path:
    folder = Path(workdir)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run directory at {folder}; pass the --workdir of a run that has started")
    return folder
