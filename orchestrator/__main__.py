"""`python -m orchestrator VERB`: see `cli.py`."""

from orchestrator.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
