"""From raw steps to one row per case, layout and measure: medians, the ratio with its spread, and the verdict. Pure."""

from dataclasses import dataclass

from . import cases
from .stats import Ratio, median_or_none, ratio

SUBJECT = "pgpinion"
REFERENCE = "pgbouncer"       # what the targets are against
VARIANT = "pgpinion-b"        # stands in for it in a run without it: no target holds then
BUSY_MIN = 0.9           # of its one core: below, a pooler's tps was limited by something else
IDLE_LOAD_MAX = 0.25     # load average per core that still counts as a quiet machine


@dataclass(frozen=True)
class Row:
    case: cases.Case
    layout: str
    measure: str
    medians: dict            # pooler -> median over rounds, None when it failed
    errors: dict             # pooler -> why
    ratio: Ratio | None      # subject over reference, round by round
    goal: cases.Goal | None
    met: bool | None         # None: no goal, or nothing to judge
    busy: float | None = None   # cores the reference used

    @property
    def unit(self):
        return self.case.unit_of(self.measure)

    def verdict(self):
        return {None: "", True: "met", False: "not met"}[self.met]


def reference(names):
    """What pgpinion is compared with in a run of these poolers."""
    return VARIANT if VARIANT in names and REFERENCE not in names else REFERENCE


def rows(steps, prepares=False):
    """Summary rows for raw steps (dictionaries as in results.json), in the cases' order, layout by layout.

    `prepares`: PgBouncer ran prepared statements, which has targets of its own.
    """
    against = reference({step["pooler"] for step in steps})
    by_place = {}
    for step in steps:
        by_place.setdefault((step["layout"], step["case"]), []).append(step)
    return [_row(cases.named(case).against(prepares), layout, measure, group, against)
            for (layout, case), group in by_place.items()
            for measure in cases.named(case).shown]


def shown_error(message):
    """What a table cell says of a failure."""
    return "not supported" if unsupported(message) else "failed"


def notes(rows, machine):
    """What a reader must know before believing the rows."""
    told = []
    if machine["load_at_start"] > IDLE_LOAD_MAX * len(machine["cores"]):
        told.append(f"the machine was busy when this began (load average {machine['load_at_start']:.2f}): expect a wide spread")
    for row in rows:
        if row.measure == "rate" and row.goal and row.busy is not None and row.busy < BUSY_MIN:
            told.append(f"{row.case.name}, {row.layout}: PgBouncer used {row.busy:.2f} of its core, so PostgreSQL and pgbench were the limit: "
                        "CPU per transaction tells the poolers apart here, the rate much less")
    return told


def unsupported(message):
    """Whether a failure says that the pooler lacks a feature, rather than that it broke."""
    text = message.lower()
    return "not supported" in text or "unsupported" in text or "prepared statement" in text or "(0a000)" in text


def _row(case, layout, measure, steps, against):
    values, errors = {}, {}
    for step in sorted(steps, key=lambda step: step["round"]):
        values.setdefault(step["pooler"], []).append(step["measures"].get(measure))
        if step["error"]:
            errors[step["pooler"]] = step["error"]
    medians = {pooler: median_or_none(series) for pooler, series in values.items()}
    compared = ratio(values.get(SUBJECT, []), values.get(against, []))
    busy = median_or_none(step["measures"].get("busy") for step in steps if step["pooler"] == against)
    goal = case.goals.get(measure)
    if goal and (goal.layout not in (None, layout) or (against != REFERENCE and goal.of == "ratio")):
        goal = None
    return Row(case, layout, measure, medians, errors, compared, goal, _judge(goal, medians, compared), busy)


def _judge(goal, medians, compared):
    if goal is None:
        return None
    found = medians.get(SUBJECT) if goal.of == "value" else compared and compared.median
    return None if found is None else goal.met(found)
