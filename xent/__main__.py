"""The entry point of `python -m xent` and of the `xent` command: it says what to install if typer is missing."""

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
