import configparser
import json
import tempfile
import tomllib
import unittest
import xml.etree.ElementTree
from pathlib import Path

from lib import cases, charts, poolers, programs, report, rounds, summary, text
from lib.stats import Latencies


def step(pooler, number, measures, case="select1-64x20", layout="one", error=None):
    return rounds.Step(case, layout, number, pooler, measures, error).raw()


def one_case(pgpinion_cpu, pgbouncer_cpu):
    pairs = zip(pgpinion_cpu, pgbouncer_cpu)
    return [step(pooler, number, {"cpu": cpu, "rate": 1e6 / cpu, "busy": 0.5})
            for number, pair in enumerate(pairs) for pooler, cpu in zip(("pgpinion", "pgbouncer"), pair)]


class RowsAreJudged(unittest.TestCase):
    def test_met_and_not_met(self):
        cpu, rate = summary.rows(one_case([5, 6, 7], [10, 10, 10]))
        self.assertEqual((cpu.ratio.median, cpu.ratio.low, cpu.ratio.high, cpu.verdict()), (0.6, 0.5, 0.7, "met"))
        self.assertEqual(rate.verdict(), "met")
        cpu, rate = summary.rows(one_case([9, 9, 9], [10, 10, 10]))
        self.assertEqual((cpu.verdict(), rate.verdict()), ("not met", "not met"))

    def test_rate_is_judged_with_one_core_only(self):
        steps = [{**one, "layout": "all"} for one in one_case([5], [10])]
        cpu, rate = summary.rows(steps)
        self.assertEqual((cpu.verdict(), rate.verdict()), ("met", ""))

    def test_memory_is_judged_by_its_own_value(self):
        steps = [step("pgpinion", 0, {"memory": 900}, case="idle-10000"), step("pgbouncer", 0, {"memory": 800}, case="idle-10000")]
        self.assertEqual(summary.rows(steps)[0].verdict(), "met")

    def test_a_missing_feature_is_told_from_a_failure(self):
        self.assertEqual(summary.shown_error('ERROR:  prepared statement "P0_1" does not exist'), "not supported")
        self.assertEqual(summary.shown_error("server closed the connection unexpectedly"), "failed")

    def test_without_the_reference_nothing_is_judged(self):
        steps = [one for one in one_case([5], [10]) if one["pooler"] == "pgpinion"]
        self.assertEqual([row.verdict() for row in summary.rows(steps)], ["", ""])

    def test_notes_say_when_the_pooler_was_not_the_limit(self):
        rows = summary.rows(one_case([5], [10]))
        self.assertEqual(len(summary.notes(rows, {"load_at_start": 0.1, "cores": [0, 1]})), 1)
        self.assertEqual(len(summary.notes(rows, {"load_at_start": 5.0, "cores": [0, 1]})), 2)


class VariantsAreCompared(unittest.TestCase):
    STEPS = [{**one, "pooler": {"pgbouncer": "pgpinion-b"}.get(one["pooler"], one["pooler"])} for one in one_case([9, 10], [10, 10])]

    def test_the_other_pgpinion_stands_in_for_the_reference(self):
        cpu, rate = summary.rows(self.STEPS)
        self.assertEqual((cpu.ratio.median, cpu.ratio.low, cpu.ratio.high), (0.95, 0.9, 1.0))
        self.assertEqual((cpu.verdict(), rate.verdict()), ("", ""))

    def test_beside_pgbouncer_it_is_only_shown(self):
        both = self.STEPS + [one for one in one_case([9, 10], [20, 20]) if one["pooler"] == "pgbouncer"]
        cpu = summary.rows(both)[0]
        self.assertEqual((cpu.ratio.median, cpu.medians["pgpinion-b"], cpu.verdict()), (0.475, 10, "met"))

    def test_a_variant_is_the_first_but_for_what_is_said(self):
        shell = "/bin/sh"
        found = programs.variants(["pgpinion", "pgpinion-b", "direct"], shell, settings_b=["hand_over = false"])
        binary = programs.pgpinion_binary(shell)
        self.assertEqual(found, {"pgpinion": (binary, ()), "pgpinion-b": (binary, ("hand_over = false",))})
        self.assertEqual(programs.variants(["direct"]), {})
        with self.assertRaises(programs.Missing):
            programs.variants(["pgpinion-b"], shell, binary_b="/no/such/binary")

    def test_settings_stand_in_the_section_of_the_process(self):
        with tempfile.TemporaryDirectory() as directory:
            plan = poolers.Plan(Path(directory), 5432, 20, (0,), settings=("hand_over = false", "steering = false"))
            written = tomllib.loads(poolers._write(plan, "pgpinion.toml", poolers.PGPINION_TOML, 6432).read_text())
        self.assertEqual((written["pgpinion"]["hand_over"], written["pgpinion"]["steering"]), (False, False))
        self.assertEqual(written["endpoints"]["main"]["max_connections"], 20)


class PgBouncerMayPrepare(unittest.TestCase):
    def test_from_its_version_on(self):
        said = {"PgBouncer 1.18.0": False, "PgBouncer 1.20.1": False, "PgBouncer 1.21.0": True, "PgBouncer 1.24.1": True,
                "PgBouncer 2.0": True, "": False, "pgbouncer: not found": False}
        self.assertEqual({version: programs.pgbouncer_prepares(version) for version in said}, said)

    def test_then_both_sides_run_the_same_and_the_target_is_lower(self):
        case = cases.named("S-prepared")
        def sides(case):
            return [case.load_for(pooler).protocol for pooler in ("pgpinion", "pgbouncer")], case.goals["cpu"].limit
        self.assertEqual(sides(case.against(False)), (["prepared", "extended"], 0.65))
        self.assertEqual(sides(case.against(True)), (["prepared", "prepared"], 0.55))
        self.assertEqual([case.name for case in cases.CASES if case.against(True) != case], ["S-prepared"])

    def test_and_rows_are_judged_by_that(self):
        steps = [{**one, "case": "S-prepared"} for one in one_case([6], [10])]
        self.assertEqual([summary.rows(steps, prepares)[0].verdict() for prepares in (False, True)], ["met", "not met"])

    def test_its_configuration_says_so_only_then(self):
        """A PgBouncer before 1.21 does not start with a key it does not know."""
        def written(settings):
            with tempfile.TemporaryDirectory() as directory:
                plan = poolers.Plan(Path(directory), 5432, 20, (0,), settings=settings)
                found = configparser.ConfigParser(interpolation=None)
                found.read(poolers._write(plan, "pgbouncer.ini", poolers.PGBOUNCER_INI, 6432))
            return found["pgbouncer"]
        self.assertEqual(written(poolers.PGBOUNCER_PREPARING)["max_prepared_statements"], "200")
        self.assertNotIn("max_prepared_statements", written(()))

    def test_one_may_be_given(self):
        found = programs.variants(["pgbouncer"], pgbouncer="/bin/sh")
        self.assertEqual(found, {"pgbouncer": (str(Path("/bin/sh").resolve()), ())})
        with self.assertRaises(programs.Missing):
            programs.variants(["pgbouncer"], pgbouncer="/no/such/pgbouncer")


class CasesAreChosen(unittest.TestCase):
    def test_by_name_group_and_pattern(self):
        self.assertEqual([case.name for case in cases.select(["connect"])], ["connect"])
        self.assertEqual(len(cases.select(["sweep"])), len(cases.SWEEP_CLIENTS))
        self.assertEqual([case.name for case in cases.select(["S-*"])], ["S-simple", "S-extended", "S-prepared"])
        self.assertEqual(len(cases.select([])), len(cases.CASES))
        with self.assertRaises(cases.Unknown):
            cases.select(["no-such"])

    def test_names_are_unique(self):
        self.assertEqual(len({case.name for case in cases.CASES}), len(cases.CASES))


class RoundsAlternate(unittest.TestCase):
    def test_order_turns_round(self):
        self.assertEqual([rounds.turn_order(["a", "b"], number) for number in range(3)], [["a", "b"], ["b", "a"], ["a", "b"]])

    def test_layouts(self):
        [small] = rounds.layouts("one", [0, 1])
        self.assertEqual((small.pooler, small.others), ((1,), (0, 1)))
        [large] = rounds.layouts("one", [0, 1, 2, 3])
        self.assertEqual((large.pooler, large.others), ((3,), (0, 1, 2)))
        self.assertEqual([layout.name for layout in rounds.layouts("both", [0, 1])], ["one", "all"])


class TextIsReadable(unittest.TestCase):
    def test_numbers(self):
        self.assertEqual([text.number(value) for value in (None, 0.256, 14.46, 31204.7)], ["-", "0.26", "14.5", "31,205"])

    def test_table_aligns(self):
        self.assertEqual(text.table(["a", "bb"], [["long", 1]]), "a     bb\n----  --\nlong   1")

    def test_duration(self):
        self.assertEqual(text.duration(125.4), "2:05")


class ReportIsWellFormed(unittest.TestCase):
    def test_page_is_one_parseable_file(self):
        steps = one_case([5, 6], [10, 10]) + [step("pgpinion", 0, {}, case="S-prepared", error="<not> supported")]
        steps += [step("pgbouncer", 0, {"rate": clients * 100, "cpu": 10}, case=f"sweep-{clients}") for clients in cases.SWEEP_CLIENTS]
        found = {"machine": {"cpu": "x", "cores": [0, 1], "memory_mb": 1, "system": "s", "kernel": "k", "load_at_start": 0},
                 "versions": {}, "git": {"revision": "r", "changed": False}, "started": "", "finished": "", "interrupted": False,
                 "options": {"rounds": 2, "seconds": 1}, "poolers": ["pgpinion", "pgbouncer"], "layouts": {"one": {}}, "steps": steps,
                 "latencies": [{"case": "select1-64x20", "layout": "one", "pooler": "pgpinion", "curve": Latencies([0, 5, 9]).curve()}]}
        found = json.loads(json.dumps(found))
        page = report.page(found, summary.rows(found["steps"]))
        self.assertNotIn("http", page)
        body = page[page.index("<body>"):page.index("</body>") + len("</body>")]
        root = xml.etree.ElementTree.fromstring(body)
        self.assertGreaterEqual(len(root.findall(".//svg")), 5)
        self.assertIn("pgpinion against PgBouncer", page)
        found["poolers"] = ["pgpinion", "pgpinion-b"]
        self.assertIn("pgpinion against pgpinion-b", report.page(found, summary.rows(VariantsAreCompared.STEPS)))

    def test_axes_cover_their_values(self):
        self.assertEqual([label for _, label in charts.linear("", 47_000, lambda value: f"{value:g}").ticks][-1], "50000")
        ladder = charts.logarithmic("", 0.3, 30, lambda value: f"{value:g}")
        self.assertEqual([label for _, label in ladder.ticks], ["0.2", "0.5", "1", "2", "5", "10", "20", "50"])
        self.assertEqual((ladder.place(0.2), ladder.place(50)), (0, 1))
        nines = charts.percentiles("", 99.9)
        self.assertEqual([round(nines.place(value), 6) for value in (0, 90, 99, 99.9)], [0, 0.333333, 0.666667, 1])


if __name__ == "__main__":
    unittest.main()
