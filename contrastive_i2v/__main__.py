"""`python -m contrastive_i2v` is `contrastive-i2v`."""

import sys

from contrastive_i2v.cli.main import main

sys.exit(main())
