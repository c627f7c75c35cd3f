import unittest

from lib.stats import Latencies, Ratio, median_or_none, ratio


class PercentilesAreExact(unittest.TestCase):
    def test_nearest_rank(self):
        hundred = Latencies(range(1, 101))
        self.assertEqual(hundred.percentiles([0, 1, 50, 99, 99.1, 100]), [1, 1, 50, 99, 100, 100])

    def test_ranks_survive_floating_point(self):
        self.assertEqual(Latencies(range(1, 1001)).percentile(99.9), 999)
        self.assertEqual(Latencies(range(1, 10001)).percentile(99.99), 9999)

    def test_repeated_values(self):
        self.assertEqual(Latencies([5] * 99 + [70]).percentiles([50, 99, 99.5]), [5, 5, 70])

    def test_one_and_none(self):
        self.assertEqual(Latencies([7]).percentiles([0, 50, 100]), [7, 7, 7])
        self.assertIsNone(Latencies().percentile(50))
        self.assertEqual(Latencies().curve(), [])

    def test_rounds_add_up(self):
        both = Latencies([1, 2])
        both.add(Latencies([2, 3]))
        self.assertEqual((len(both), both.percentile(50), both.percentile(100)), (4, 2, 3))

    def test_curve_gives_each_nine_the_same_number_of_points(self):
        curve = Latencies(range(1, 1001)).curve(per_decade=1)
        self.assertEqual([round(percent, 6) for percent, _ in curve], [0, 90, 99, 99.9])
        self.assertEqual([us for _, us in curve], [1, 900, 990, 999])


class RatiosComparePerRound(unittest.TestCase):
    def test_median_and_spread_of_the_rounds_ratios(self):
        self.assertEqual(ratio([6, 8, 5], [10, 10, 10]), Ratio(0.6, 0.5, 0.8))

    def test_failed_rounds_are_left_out(self):
        self.assertEqual(ratio([6, None, 5], [10, 10, None]), Ratio(0.6, 0.6, 0.6))

    def test_nothing_to_compare(self):
        self.assertIsNone(ratio([None], [10]))
        self.assertIsNone(ratio([], []))
        self.assertIsNone(ratio([1], [0]))

    def test_median_or_none(self):
        self.assertEqual(median_or_none([3, None, 1]), 2)
        self.assertIsNone(median_or_none([None]))


if __name__ == "__main__":
    unittest.main()
