"""The training job as a script, for `ray job submit -- python jobs/train.py --config F`."""

import sys

from cvbatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
