"""__main__: the command line without its script: ``python -m alignlab.cli``."""

import sys

from alignlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
