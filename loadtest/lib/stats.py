"""Exact percentiles of logged latencies; medians, ratios and their spread over rounds. Pure."""

import math
from collections import Counter
from dataclasses import dataclass
from statistics import median


class Latencies:
    """Latencies in whole microseconds, counted: exact, and as small as the number of different values."""

    def __init__(self, values=()):
        self.counts = Counter(values)

    def add(self, other):
        self.counts.update(other.counts)

    def __len__(self):
        return sum(self.counts.values())

    def percentile(self, percent):
        """Nearest rank: the smallest value that at least `percent` % of all are not above. None when empty."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents):
        """Values for ascending `percents`, in one pass."""
        total = len(self)
        if total == 0:
            return [None] * len(percents)
        ordered = iter(sorted(self.counts.items()))
        value, count = next(ordered)
        seen, answers = count, []
        for percent in percents:
            rank = max(1, math.ceil(percent / 100 * total - 1e-9))   # 99.9 % of 1000 is rank 999 whatever the floating point says
            while seen < rank:
                value, count = next(ordered)
                seen += count
            answers.append(value)
        return answers

    def curve(self, per_decade=20):
        """[percent, us] pairs, evenly spaced on the axis of HdrHistogram's plots (log of 1 / (1 - quantile)), up to the last rank."""
        total = len(self)
        if total == 0:
            return []
        decades = math.log10(total)
        steps = math.floor(decades * per_decade)
        percents = [100 * (1 - 10 ** (-step / per_decade)) for step in range(steps + 1)]
        return [list(pair) for pair in zip(percents, self.percentiles(percents))]


@dataclass(frozen=True)
class Ratio:
    """Subject over reference: median of the per-round ratios, and the smallest and largest of them."""

    median: float
    low: float
    high: float


def ratio(subject, reference):
    """Compare per-round values (None: that round failed). None when no round has both."""
    ratios = [a / b for a, b in zip(subject, reference) if a is not None and b]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None


def median_or_none(values):
    present = [value for value in values if value is not None]
    return median(present) if present else None
