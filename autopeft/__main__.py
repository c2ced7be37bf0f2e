"""`python -m autopeft` is the command line."""

from autopeft.cli import main

if __name__ == "__main__":
    main()
