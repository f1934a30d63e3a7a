"""`python -m unclip` is the `unclip` command."""

from unclip.cli import main

if __name__ == "__main__":
    main()
