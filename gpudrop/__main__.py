"""python -m gpudrop: the command line."""

from gpudrop.cli import main

if __name__ == "__main__":
    main()
