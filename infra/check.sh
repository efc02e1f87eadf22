#!/usr/bin/env bash
# Every gate of the house, in order of how fast it answers. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }

say "ruff";          ruff check .
say "ruff format";   ruff format --check .
say "mypy";          mypy
say "import-linter"; lint-imports --no-cache
# By files, for those of one file share what they have started; more than there are cores, and the
# end-to-end tests first, for those mostly wait.
say "pytest";        exec pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
