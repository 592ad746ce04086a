"""`python -m slidesparse`, the same as the console script."""

from slidesparse.cli.main import main

if __name__ == "__main__":
    main()
