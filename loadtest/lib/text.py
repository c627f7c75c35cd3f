"""Tables and numbers for a terminal. Pure."""

from . import summary


def number(value):
    """Three significant places or so, thousands with commas; a dash for nothing."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(head, lines):
    """Columns aligned: the first to the left, the others to the right."""
    cells = [head, *lines]
    widths = [max(len(str(row[column])) for row in cells) for column in range(len(head))]
    def line(row):
        first, *others = (str(cell) for cell in row)
        return "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]).rstrip()
    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, lines)])


def summary_head(poolers):
    return ["case", "shards", "measure", *poolers, "ratio", "spread", "target", ""]


def summary_line(row, poolers):
    """One summary row as cells."""
    return [row.case.name, row.layout, measure_words(row),
            *(pooler_cell(row, pooler) for pooler in poolers), *ratio_cells(row), str(row.goal or ""), row.verdict()]


def measure_words(row):
    """The unit says it all for the main measures; the others are named."""
    names = {"avg": "latency avg ", "p50": "latency p50 ", "p99": "latency p99 ", "idle_cpu": "idle CPU ", "connect_ms": "connect avg "}
    return names.get(row.measure, "") + row.unit


def pooler_cell(row, pooler):
    if pooler in row.errors:
        return summary.shown_error(row.errors[pooler])
    return number(row.medians.get(pooler))


def ratio_cells(row):
    if row.ratio is None:
        return ["-", ""]
    return [f"{row.ratio.median:.2f}", f"{row.ratio.low:.2f}-{row.ratio.high:.2f}"]


def summary_table(rows, poolers):
    return table(summary_head(poolers), [summary_line(row, poolers) for row in rows])


def errors(rows):
    """Each different failure once, for below the table."""
    told = {f"{row.case.name}, {row.layout}: {pooler}: {message}" for row in rows for pooler, message in row.errors.items()}
    return sorted(told)


def duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"
