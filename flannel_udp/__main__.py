"""``python -m flannel_udp`` is the same program as ``flannel-udp``."""

import sys

from flannel_udp.cli.main import main

sys.exit(main())
