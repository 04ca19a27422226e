"""How fast a loaded model answers: cases, runs, and what came of them in the published tables' layout."""

from tpudeploy.bench.cases import QUESTION, BenchCase, CaseChoice, Variant, make_cases, make_variants, room_needed
from tpudeploy.bench.measure import FinishedRun, count_runs, measure
from tpudeploy.bench.report import BenchReport, make_report

__all__ = [
    "QUESTION",
    "BenchCase",
    "BenchReport",
    "CaseChoice",
    "FinishedRun",
    "Variant",
    "count_runs",
    "make_cases",
    "make_report",
    "make_variants",
    "measure",
    "room_needed",
]
