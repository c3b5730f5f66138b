"""The prediction job as a script, for `ray job submit -- python jobs/predict.py --config F`."""

import sys

from cvbatch.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
