"""``python -m equiscale`` is the command line."""

from equiscale.cli import main

if __name__ == "__main__":
    main()
