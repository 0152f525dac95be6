"""`python -m synthfs` is `synthfs`."""

from synthfs.cli.main import main

main()
