"""`python -m crawlfleet`: how the local fleet starts its workers."""

import sys

from crawlfleet.cli import main

sys.exit(main())
