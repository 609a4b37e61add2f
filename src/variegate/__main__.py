"""`python -m variegate` is the same as `variegate`."""

from variegate.cli import main

if __name__ == "__main__":
    main()
