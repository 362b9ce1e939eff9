"""torchrun in which a node that does not answer is one line; utils/base/launch.py starts it.

PyTorch 2.11 has no --shutdown_timeout; here it has.
"""

import sys

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.run import get_args_parser, main

PATIENCE = "--shutdown_timeout"


def known_options(options: list[str], known: set[str]) -> list[str]:
    """Return options without PATIENCE and its number, if torchrun does not know it: set it here."""
    if PATIENCE in known or PATIENCE not in options:
        return options
    place = options.index(PATIENCE)
    PContext.close.__defaults__ = (None, int(options[place + 1]))  # death_sig, timeout
    return options[:place] + options[place + 2 :]


if __name__ == "__main__":
    known = {name for action in get_args_parser()._actions for name in action.option_strings}
    try:
        main(known_options(sys.argv[1:], known))
    except (DistError, RendezvousError) as fault:
        (reason, *_) = str(fault).splitlines() or [type(fault).__name__]
        print(f"error: the nodes have not met: {reason}", file=sys.stderr)
        sys.exit(5)  # LOST_PROCESS of utils/base/errors.py, which this file cannot import
