"""Bad input of every kind; `tests/haq/test_bad_input.py` runs the cases."""

from tests.haq.bad_input import data, descriptions, models, options, outputs, policies, runs, tables

CASES = [
    case for module in (options, descriptions, tables, policies, models, data, runs, outputs) for case in module.CASES
]
