"""`python -m laai`: the `laai` command."""

from laai.cli import main

if __name__ == "__main__":
    main()
