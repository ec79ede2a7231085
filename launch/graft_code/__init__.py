"""Runs generated code against its tests in a restricted process (launch/run_code.py)."""
