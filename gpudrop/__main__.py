"""python -m gpudrop: the command line."""

from gpudrop.cli import main

main()
