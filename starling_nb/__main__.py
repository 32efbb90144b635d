"""``python -m starling_nb`` is ``starling-nb``."""

from starling_nb.cli import main

if __name__ == "__main__":
    main()
