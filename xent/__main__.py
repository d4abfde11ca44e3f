"""`python -m xent`, and where the `xent` command starts: it says what to install before it needs it."""

import sys


def main() -> None:
    try:
        from xent import cli
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f"xent: the command line needs {error.name}: pip install typer rich psutil")
    cli.app(prog_name="xent")


if __name__ == "__main__":
    main()
