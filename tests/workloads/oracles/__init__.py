"""What libraries compute that our ops and mixers compute too: a file a library, each with ORACLES,
which `test_oracles.py` finds."""
