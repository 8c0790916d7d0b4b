"""`python -m inspect_xai` is `inspect-xai`."""

from inspect_xai.cli import main

if __name__ == "__main__":
    main()
