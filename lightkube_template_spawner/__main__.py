"""``python -m lightkube_template_spawner`` is the command ``lightkube-template-spawner``."""

import sys

from lightkube_template_spawner.cli.orphans import main

sys.exit(main())
