"""`python -m dreamactor.cli` is `dreamactor`."""

from dreamactor.cli import main

if __name__ == "__main__":
    main()
