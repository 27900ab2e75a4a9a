"""``python -m mqauth``: the ``mqauth`` command."""

import sys

from mqauth.cli import main

if __name__ == "__main__":
    sys.exit(main())
