"""``python -m harness``: the command line, from a source tree too."""

from harness.cli import main

main()
