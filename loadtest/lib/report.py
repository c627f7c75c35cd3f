"""report.html: one file, no network, light and dark. Takes the contents of results.json and the summary of it. Pure."""

from html import escape

from . import cases, charts, summary, text

STYLE = """
:root { color-scheme: light dark; --page: #fcfcfb; --card: #fff; --ink: #1d1f23; --soft: #5c626d; --rule: #e3e5e9;
  --pgpinion: #0b6bcb; --pgbouncer: #c4570a; --pgpinion-b: #c4570a; --direct: #7a7f88; --other: #93bde8; --met: #1a7f37; --unmet: #c62828; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --ink: #e6e8eb; --soft: #9ba2ad; --rule: #343941;
  --pgpinion: #5aaeff; --pgbouncer: #ff9a4d; --pgpinion-b: #ff9a4d; --direct: #9aa1ab; --other: #2f5f90; --met: #4cc26a; --unmet: #ff6f6f; } }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; } figure { margin: 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .8rem; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: .8rem; }
figcaption { color: var(--ink); font-size: .88rem; font-weight: 600; margin-bottom: .3rem; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
svg .tick, svg .axis { fill: var(--soft); } svg .value { font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); } .one { stroke: var(--soft); stroke-dasharray: 4 3; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; } .dot { stroke: none; }
.line.line-pgpinion { stroke: var(--pgpinion); } .line.line-pgbouncer { stroke: var(--pgbouncer); } .line.line-pgpinion-b { stroke: var(--pgpinion-b); } .line.line-direct { stroke: var(--direct); }
.dot.line-pgpinion { fill: var(--pgpinion); } .dot.line-pgbouncer { fill: var(--pgbouncer); } .dot.line-pgpinion-b { fill: var(--pgpinion-b); } .dot.line-direct { fill: var(--direct); }
.bar-one { fill: var(--pgpinion); } .bar-all { fill: var(--other); } .whisker { stroke: var(--ink); stroke-width: 1.2; }
.goal { stroke: var(--unmet); stroke-width: 2.5; } .met, svg .met { color: var(--met); fill: var(--met); }
.unmet, svg .unmet { color: var(--unmet); fill: var(--unmet); }
.key { display: inline-flex; align-items: center; gap: .35rem; margin-right: 1.1rem; color: var(--soft); font-size: .85rem; }
.key i { width: .85rem; height: .85rem; border-radius: 3px; display: inline-block; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { text-align: right; padding: .22rem .55rem; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); font-weight: 600; }
summary { cursor: pointer; color: var(--soft); margin: 1rem 0; }
"""


def page(found, rows):
    """The whole page; `rows` is summary.rows(found["steps"])."""
    other = _reference(found)
    sections = [
        _ratio_section(f"CPU per transaction or MB, against {other}", f"pgpinion / {other}: less is better", rows, "cpu", found),
        _ratio_section(f"Throughput, against {other}", f"pgpinion / {other}: more is better", rows, "rate", found),
        _latency_section(found), _sweep_section(rows, found), _summary_section(rows, found), _raw_section(found),
    ]
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>pgpinion against {other}</title><style>{STYLE}</style></head><body>"
            f"{_head(found, rows)}{''.join(sections)}</body></html>\n")


def _reference(found):
    return {summary.REFERENCE: "PgBouncer"}.get(name := summary.reference(found["poolers"]), name)


def _head(found, rows):
    machine, versions, options = found["machine"], found["versions"], found["options"]
    judged = [row for row in rows if row.met is not None]
    verdict = f"<p><b>{sum(row.met for row in judged)} of {len(judged)} targets met.</b></p>" if judged else ""
    git = found["git"]
    facts = [
        f"{machine['cpu']}, {len(machine['cores'])} cores, {machine['memory_mb'] / 1024:.0f} GB; {machine['system']}, Linux {machine['kernel']}",
        *(f"{name}: {' '.join(words)}" for name, words in found.get("variants", {}).items()),
        "; ".join(versions[name] for name in ("pgpinion", "pgpinion-b", "pgbouncer", "postgres") if versions.get(name)),
        f"{options['rounds']} rounds of {options['seconds']} s; started {found['started']}, finished {found['finished']}"
        + ("; interrupted" if found["interrupted"] else ""),
        f"revision {git['revision'][:12]}{' with changes' if git['changed'] else ''}; load average at the start {machine['load_at_start']:.2f}",
    ]
    facts += [f"Note: {note}." for note in summary.notes(rows, machine)]
    return f"<h1>pgpinion against {_reference(found)}</h1>{verdict}" + "".join(f"<p>{escape(fact)}</p>" for fact in facts)


def _ratio_section(heading, axis, rows, measure, found):
    compared = [row for row in rows if row.measure == measure and row.ratio and not row.case.group]
    if not compared:
        return ""
    compared.sort(key=lambda row: _case_then_layout([(row.case.name, row.layout)]))
    bars = [charts.Bar(row.case.name, f"bar-{row.layout}", row.ratio.median, row.ratio.low, row.ratio.high,
                       row.goal.limit if row.goal else None, row.met) for row in compared]
    keys = [(f"--{'pgpinion' if name == 'one' else 'other'}", _layout_words(name, found)) for name in found["layouts"]]
    note = ("<p>Bar: median of the rounds' ratios. Thin line: smallest to largest round. Red tick: target. Dashed: "
            f"{_reference(found)}.</p>")
    return f'<h2>{heading}</h2>{note}{_keys(keys)}<figure class="card">{charts.ratio_bars(bars, axis)}</figure>'


LATENCY_FROM_PERCENT = 5   # where the latency axis begins


def _latency_section(found):
    places = {}
    for kept in found["latencies"]:
        case = cases.named(kept["case"])
        if kept["curve"] and not case.group and not case.load.reconnect:   # -C: pgbench's latency leaves the connecting out
            places.setdefault((kept["case"], kept["layout"]), []).append(charts.Series(kept["pooler"], kept["curve"]))
    if not places:
        return ""
    figures = [_figure(f"{cases.named(case).about}; {_layout_words(layout, found)}", _latency_chart(series))
               for (case, layout), series in sorted(places.items(), key=_case_then_layout)]
    note = "<p>Every transaction of every round, as pgbench logged it. Each further nine of the percentile takes the same room.</p>"
    return f'<h2>Latency by percentile</h2>{note}{_pooler_keys(found)}<div class="grid2">{"".join(figures)}</div>'


def _latency_chart(series):
    # The quickest few are noise of the clock, and pgbench logs 0 for an answer that was there when it first looked.
    lowest = min((us for one in series for percent, us in one.points if us and percent >= LATENCY_FROM_PERCENT), default=1)
    slowest = max(us for one in series for _, us in one.points)
    highest = max(percent for one in series for percent, _ in one.points)
    milliseconds = [charts.Series(one.name, [(percent, us / 1000) for percent, us in one.points if us >= lowest]) for one in series]
    return charts.lines(charts.percentiles("percentile", highest),
                        charts.logarithmic("ms", lowest / 1000, slowest / 1000, lambda value: f"{value:g}"), milliseconds)


def _sweep_section(rows, found):
    swept = [row for row in rows if row.case.group == "sweep"]
    figures = [_figure(f"{title}; {_layout_words(layout, found)}", chart)
               for measure, title, unit in (("rate", "Throughput", "txn/s"), ("cpu", "CPU per transaction", "us"))
               for layout in found["layouts"]
               if (chart := _sweep_chart([row for row in swept if row.layout == layout and row.measure == measure], found, unit))]
    if not figures:
        return ""
    return ("<h2>Over the number of clients</h2><p>SELECT 1 on 20 servers; medians.</p>"
            f'{_pooler_keys(found)}<div class="grid2">{"".join(figures)}</div>')


def _sweep_chart(rows, found, unit):
    series = [charts.Series(pooler, [(row.case.load.clients, row.medians[pooler]) for row in rows if row.medians.get(pooler)])
              for pooler in found["poolers"]]
    series = [one for one in series if one.points]
    if not series:
        return ""
    clients = sorted({row.case.load.clients for row in rows})
    top = max(value for one in series for _, value in one.points)
    return charts.lines(charts.steps("clients", clients), charts.linear(unit, top, lambda value: f"{value:,g}"), series, dots=True)


def _summary_section(rows, found):
    lines = []
    for row in rows:
        cells = text.summary_line(row, found["poolers"])
        mark = {None: "", True: "met", False: "unmet"}[row.met]
        lines.append("".join(f"<td>{escape(cell)}</td>" for cell in cells[:-1]) + f'<td class="{mark}">{cells[-1]}</td>')
    errors = "".join(f"<p>{escape(error)}</p>" for error in text.errors(rows))
    return f"<h2>All medians</h2>{_table(text.summary_head(found['poolers']), lines)}{errors}"


RAW_COLUMNS = ("rate", "cpu", "busy", "avg", "p50", "p90", "p99", "p999", "connect_ms", "memory", "idle_cpu")


def _raw_section(found):
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in _raw_cells(step)) for step in found["steps"]]
    head = ["case", "shards", "round", "pooler", *RAW_COLUMNS]
    note = ("<p>rate: transactions or MB per second. cpu: us per transaction or MB. busy: cores the pooler used. Latencies in us. "
            "memory: bytes per idle client. idle_cpu: ms per second.</p>")
    return f"<details><summary>Every round</summary>{note}{_table(head, lines)}</details>"


def _raw_cells(step):
    numbers = ["" if step["measures"].get(name) is None else text.number(step["measures"][name]) for name in RAW_COLUMNS]
    if step["error"]:
        numbers = [step["error"][:80], *numbers[1:]]
    return [step["case"], step["layout"], str(step["round"] + 1), step["pooler"], *numbers]


def _case_then_layout(item):
    """Sort key: the table's order of cases, one core before all."""
    case, layout = item[0]
    return cases.CASES.index(cases.named(case)), layout != "one"


def _table(head, lines):
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll card"><table><tr>{titles}</tr>{body}</table></div>'


def _figure(caption, chart):
    return f'<figure class="card"><figcaption>{escape(caption)}</figcaption>{chart}</figure>'


def _pooler_keys(found):
    return _keys([(f"--{name}", name) for name in found["poolers"]])


def _keys(keys):
    return "<p>" + "".join(f'<span class="key"><i style="background: var({colour})"></i>{escape(name)}</span>' for colour, name in keys) + "</p>"


def _layout_words(name, found):
    return "pooler held to one core" if name == "one" else f"pooler on all {len(found['machine']['cores'])} cores"
