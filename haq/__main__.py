"""`python -m haq` is the same as `haq`."""

from haq.cli import main

if __name__ == "__main__":
    main()
