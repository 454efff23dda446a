"""`python -m meshnode` is the same as the `meshnode` command."""

from meshnode.cli.main import main

if __name__ == "__main__":
    main()
