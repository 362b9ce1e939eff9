"""Starting several processes from one command line."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from utils.base.errors import UserError

SAVING_SECONDS = 120  # time after a signal in which processes finish their step and save


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that start several processes without `accelerate launch` or `torchrun`."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--num_process_per_node", type=int, default=1, help="processes to start on this node"
    )
    group.add_argument("--num_proc_node", type=int, default=1, help="number of nodes")
    group.add_argument("--node_rank", type=int, default=0, help="index of this node, from 0")
    group.add_argument("--master_address", default="localhost", help="host name of node 0")
    group.add_argument("--master_port", type=int, default=29500, help="free TCP port of node 0")


def relaunch(args: argparse.Namespace) -> None:
    """Replace this process by `torchrun` with its own command line if `args` ask for several.

    Return if one process is asked for, or if a launcher has started this process already.
    Raise UserError if a number of processes or nodes is below 1, or if the port of node 0 is taken.
    """
    if args.num_process_per_node < 1 or args.num_proc_node < 1:
        raise UserError("--num_process_per_node and --num_proc_node must be at least 1")
    if args.num_process_per_node * args.num_proc_node == 1 or "LOCAL_RANK" in os.environ:
        return
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc_per_node", str(args.num_process_per_node)]
    command += ["--signals_to_handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    command += ["--shutdown_timeout", str(SAVING_SECONDS)]
    if args.num_proc_node == 1:
        command += ["--standalone"]  # picks a free port, so that two runs on a node do not collide
    else:
        if args.node_rank == 0:
            _require_free_port(args.master_port)
        command += ["--nnodes", str(args.num_proc_node), "--node_rank", str(args.node_rank)]
        command += ["--master_addr", args.master_address, "--master_port", str(args.master_port)]
    os.execv(sys.executable, command + sys.argv)


def _require_free_port(port: int) -> None:
    """Raise UserError if another process listens at a port; torchrun would print a traceback."""
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as fault:
        reason = os.strerror(fault.errno or 0) if isinstance(fault, OSError) else str(fault)
        raise UserError(
            f"--master_port {port}: cannot be used ({reason}); give all nodes another port"
        ) from fault
