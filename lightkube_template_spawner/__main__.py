"""``python -m lightkube_template_spawner`` is the command ``lightkube-template-spawner``."""

import sys

from lightkube_template_spawner.command import main

sys.exit(main())
