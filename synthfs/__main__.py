"""What runs as `synthfs` and as `python -m synthfs`.

Not for: what a failure looks like (`cli/main`), but for Ctrl-C while Python still reads the program.
"""

import sys


def main() -> None:
    try:
        from synthfs.cli.main import main as run
    except KeyboardInterrupt:
        print("synthfs: interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
