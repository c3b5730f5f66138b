"""The explanation job as a script, for `ray job submit -- python jobs/explain.py --config F`."""

import sys

from cvbatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
