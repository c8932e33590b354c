"""Suites of runs, their execution, and one JSON record a run."""
