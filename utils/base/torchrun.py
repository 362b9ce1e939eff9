"""torchrun in which a node that does not answer is one line; utils/base/launch.py starts it."""

import sys

from torch.distributed import DistError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import main

try:
    main()
except (DistError, RendezvousError) as fault:
    (reason, *_) = str(fault).splitlines() or [type(fault).__name__]
    print(f"error: the nodes have not met: {reason}", file=sys.stderr)
    sys.exit(5)  # LOST_PROCESS of utils/base/errors.py, which this file cannot import
