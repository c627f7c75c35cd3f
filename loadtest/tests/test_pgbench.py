import unittest

from lib import pgbench
from lib.stats import Latencies

SUMMARY = """\
pgbench (15.18 (Debian 15.18-0+deb12u1))
transaction type: <builtin: select only>
number of clients: 64
number of transactions actually processed: 10261
number of failed transactions: 0 (0.000%)
latency average = 4.127 ms
initial connection time = 419.455 ms
tps = 15506.019709 (without initial connection time)
"""

RECONNECTING = """\
number of transactions actually processed: 4711
average connection time = 0.350 ms
tps = 942.200000 (including reconnection times)
"""


class SummaryIsRead(unittest.TestCase):
    def test_plain(self):
        outcome = pgbench.parse_summary(SUMMARY, Latencies())
        self.assertEqual((outcome.transactions, outcome.tps, outcome.connect_ms), (10261, 15506.019709, None))

    def test_with_reconnects(self):
        outcome = pgbench.parse_summary(RECONNECTING, Latencies())
        self.assertEqual((outcome.transactions, outcome.tps, outcome.connect_ms), (4711, 942.2, 0.35))

    def test_nothing_done(self):
        self.assertEqual(pgbench.parse_summary("", Latencies()).transactions, 0)


class LogIsRead(unittest.TestCase):
    def test_third_field_is_the_latency(self):
        lines = ["0 199 2241 0 1175850568 995598\n", "1 200 17 0 1175850568 998079\n"]
        self.assertEqual(sorted(pgbench.parse_log(lines).counts), [17, 2241])

    def test_skipped_and_failed_transactions_have_no_latency(self):
        self.assertEqual(len(pgbench.parse_log(["0 1 skipped 0 5 6\n", "0 2 failed 0 5 6\n", "0 3 9 0 5 6\n"])), 1)


class ErrorsAreFound(unittest.TestCase):
    def test_what_the_server_said(self):
        stderr = ('pgbench: error: client 3 script 0 aborted in command 1 query 0: ERROR:  prepared statement "P0_1" does not exist\n'
                  "pgbench: error: Run was aborted; the above results are incomplete.\n")
        self.assertEqual(pgbench.first_error(stderr), 'ERROR:  prepared statement "P0_1" does not exist')

    def test_what_pgbench_said(self):
        stderr = 'pgbench: error: connection to server at "127.0.0.1", port 1 failed: Connection refused\n'
        self.assertEqual(pgbench.first_error(stderr), 'connection to server at "127.0.0.1", port 1 failed: Connection refused')

    def test_none(self):
        self.assertIsNone(pgbench.first_error("pgbench: warning: something mild\n"))
        self.assertIsNone(pgbench.first_error(""))


if __name__ == "__main__":
    unittest.main()
