"""The terminal a verb writes to: rich tables and plain lines, silent once its reader has left."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class Terminal(Console):
    """Lines are printed as they are: no colours for numbers, no markup, no wrapping."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def say(self, text: str, style: str = "") -> None:
        """One line."""
        self.print(text, style=style, markup=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """`| head` has seen enough. Work goes on, unseen, to an exit code that tells the truth;
        rich itself would end the program here."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
