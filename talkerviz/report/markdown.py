"""Report as Markdown for GitHub: headline figures, flowchart, tables."""

from __future__ import annotations

from talkerviz.flowchart.builder import title_parts
from talkerviz.render.escape import markdown, markdown_cell
from talkerviz.render.notes import notes_on
from talkerviz.render.tables.cells import table_cells
from talkerviz.render.tables.writers import markdown_table
from talkerviz.report.headline_figures import Figures
from talkerviz.trace import TraceRecord

_MAX_ROWS = 20  # rows of a table; the page has all


def render_report(trace: TraceRecord, figures: Figures, chart: str) -> str:
    """Render the report, with a Mermaid chart."""
    lines = [f"# {markdown(', '.join(title_parts(trace).values()))}", "", "| | | |", "| --- | ---: | --- |"]
    lines += [
        f"| {number.label} | **{markdown_cell(number.value)}** | {markdown_cell(number.hint)} |"
        for number in figures.numbers
    ]
    lines += ["", *(f"{markdown_cell(note)}\n" for note in notes_on(trace))]
    lines += ["## Flowchart", "", "```mermaid", chart.rstrip("\n"), "```", "", "## Where the time goes", ""]
    for by, summary in figures.tables.items():
        more = len(summary) - _MAX_ROWS
        notes = (f"{more:,} more rows are in index.html.",) if more > 0 else ()
        lines += [markdown_table(table_cells(summary.head(_MAX_ROWS), by, f"Time by {by}", notes)), ""]
    beside = ["`index.html` is the page", "`calls.csv` has every call"]
    if trace.calls["host_ns"].notna().any():
        beside.append("`trace.json` opens in https://ui.perfetto.dev")
    lines += [f"{', '.join(beside)}.", ""]
    return "\n".join(lines)
