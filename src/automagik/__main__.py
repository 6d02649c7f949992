"""`python -m automagik`: the command line."""

from automagik.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
