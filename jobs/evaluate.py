"""The evaluation job as a script, for `ray job submit -- python jobs/evaluate.py --config F`."""

import sys

from cvbatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
