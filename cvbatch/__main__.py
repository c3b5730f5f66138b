"""`python -m cvbatch`: the command line."""

import sys

from cvbatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
