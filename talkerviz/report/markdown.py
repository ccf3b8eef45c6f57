"""A report as text: the numbers it opens with, the flowchart and the tables, as GitHub shows them."""

from __future__ import annotations

from talkerviz.flowchart.builder import title_parts
from talkerviz.render.escape import markdown, markdown_cell
from talkerviz.render.notes import notes_on
from talkerviz.render.tables.cells import table_cells
from talkerviz.render.tables.writers import markdown_table
from talkerviz.report.headline_figures import Figures
from talkerviz.trace import TraceRecord

_MOST_ROWS = 20


def render_report(trace: TraceRecord, figures: Figures, chart: str) -> str:
    """The whole text, with a Mermaid chart."""
    lines = [f"# {markdown(', '.join(title_parts(trace).values()))}", "", "| | | |", "| --- | ---: | --- |"]
    lines += [
        f"| {one.label} | **{markdown_cell(one.value)}** | {markdown_cell(one.hint)} |" for one in figures.numbers
    ]
    lines += ["", *(f"{markdown_cell(note)}\n" for note in notes_on(trace))]
    lines += ["## Flowchart", "", "```mermaid", chart.rstrip("\n"), "```", "", "## Where the time goes", ""]
    for by, summary in figures.tables.items():
        more = len(summary) - _MOST_ROWS
        notes = (f"{more:,} more rows are in index.html.",) if more > 0 else ()
        lines += [markdown_table(table_cells(summary.head(_MOST_ROWS), by, f"Time by {by}", notes)), ""]
    beside = ["`index.html` is the page", "`calls.csv` has every call"]
    if trace.calls["host_ns"].notna().any():
        beside.append("`trace.json` opens in https://ui.perfetto.dev")
    lines += [f"{', '.join(beside)}.", ""]
    return "\n".join(lines)
