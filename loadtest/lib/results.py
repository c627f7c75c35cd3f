"""What a run of `compare` leaves: results.json with every raw step, and report.html drawn from nothing but that file."""

import json
from datetime import datetime, timezone

from . import machine, report, summary, text

FORMAT = 1   # of results.json; raised when a reader of the old one would be misled


class Record:
    """Collects the steps of a run and writes them."""

    def __init__(self, options, layouts, variants, versions, prepares):
        self.steps = []
        self.latencies = {}
        self._head = {
            "format": FORMAT,
            "started": _now(),
            "options": {"rounds": options.rounds, "seconds": options.seconds, "cases": options.cases, "shards": options.shards},
            "poolers": options.poolers,
            "layouts": {layout.name: {"pooler": layout.pooler, "others": layout.others} for layout in layouts},
            "machine": machine.facts(),
            "variants": {name: [binary, *settings] for name, (binary, settings) in variants.items()},
            "versions": versions,
            "pgbouncer_prepares": prepares,
            "git": machine.git(),
        }

    def add(self, step):
        self.steps.append(step.raw())

    def write(self, directory, interrupted):
        directory.mkdir(parents=True, exist_ok=True)
        curves = [{"case": case, "layout": layout, "pooler": pooler, "transactions": len(kept), "curve": kept.curve()}
                  for (case, layout, pooler), kept in self.latencies.items()]
        whole = {**self._head, "finished": _now(), "interrupted": interrupted, "steps": self.steps, "latencies": curves}
        (directory / "results.json").write_text(json.dumps(whole, indent=1) + "\n")


def render(directory):
    """Print the summary of the results in `directory` and draw its report."""
    found = json.loads((directory / "results.json").read_text())
    rows = summary.rows(found["steps"], found.get("pgbouncer_prepares", False))
    print(text.summary_table(rows, found["poolers"]))
    for line in [*text.errors(rows), *summary.notes(rows, found["machine"])]:
        print(line)
    page = directory / "report.html"
    page.write_text(report.page(found, rows))
    print(f"\n{directory / 'results.json'}\n{page}")


def _now():
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
