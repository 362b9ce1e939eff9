"""Starting several processes from one command line, and joining them."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from utils.base.errors import LostProcessError, UserError, one_line
from utils.base.processes import ADDRESS, launch
from utils.base.threads import environment_of_user

SAVING_SECONDS = 120  # time after a signal in which processes finish their step and save
MEETING_SECONDS = 300  # time in which all nodes and processes of a job have to come


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


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask for the end: of Ctrl-C, clusters, and a terminal that is lost.

    The latter is not among them if nohup ignores it. Windows has only some of them.
    """
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [n for n in found if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


def relaunch(args: argparse.Namespace) -> None:
    """Replace this process by `torchrun` with its own command line if `args` ask for several.

    Return if one process is asked for, or if a launcher has started this process already.
    Raise UserError if a number of processes or nodes makes no sense, if the port of node 0 is
    taken, or if node 0 cannot be reached.
    """
    if args.num_process_per_node < 1 or args.num_proc_node < 1:
        raise UserError("--num_process_per_node and --num_proc_node must be at least 1")
    if not 0 <= args.node_rank < args.num_proc_node:
        raise UserError(
            f"--node_rank {args.node_rank}: should be 0 to {args.num_proc_node - 1}, as "
            f"--num_proc_node is {args.num_proc_node}"
        )
    if args.num_process_per_node * args.num_proc_node == 1 or "LOCAL_RANK" in os.environ:
        return
    command = [sys.executable, str(Path(__file__).with_name("torchrun.py"))]
    command += ["--nproc_per_node", str(args.num_process_per_node)]
    handled = ",".join([*(number.name for number in stop_signals()), "SIGQUIT"])
    command += ["--signals_to_handle", handled]
    command += ["--shutdown_timeout", str(SAVING_SECONDS)]
    if args.num_proc_node == 1:
        loopback()
        # A free port, so that two runs do not collide, and no look-up of this host's name.
        command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
        command += ["--local_addr", "127.0.0.1"]
    else:
        require_address("--master_address", args.master_address)
        if args.node_rank == 0:
            _require_free_port(args.master_port)
        else:
            wait_for(args.master_address, args.master_port)
        command += ["--nnodes", str(args.num_proc_node), "--node_rank", str(args.node_rank)]
        command += ["--master_addr", args.master_address, "--master_port", str(args.master_port)]
        command += ["--rdzv_conf", f"timeout={MEETING_SECONDS}"]
    # Each process chooses its threads by itself, and a cluster's defaults for torchrun would change
    # what this command line asks for.
    environment = {k: v for k, v in environment_of_user().items() if not k.startswith("PET_")}
    sys.stdout.flush()
    os.execve(sys.executable, command + sys.argv, environment)


def join_processes() -> None:
    """Join the processes that a launcher has started; all of them call this before accelerate.

    Raises UserError if the environment does not say where they meet, or says it wrongly, and
    LostProcessError if they do not all come within MEETING_SECONDS.
    """
    import torch.distributed  # not above: scripts that join nothing start without it

    if "RANK" not in os.environ or torch.distributed.is_initialized():
        return
    place = launch()
    for name in ADDRESS:
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE={place.size}: {name} is not set; start with torchrun")
    if not (port := os.environ["MASTER_PORT"]).isdigit():
        raise UserError(f"MASTER_PORT={port}: should be the number of a free TCP port")
    if place.size == place.local_size:
        _meet_on_this_machine()
    address = os.environ["MASTER_ADDR"]
    require_address("MASTER_ADDR", address)
    if place.rank > 0:
        wait_for(address, int(port))
    patience = datetime.timedelta(seconds=MEETING_SECONDS)
    try:
        store, rank, count = next(torch.distributed.rendezvous("env://", timeout=patience))
    except torch.distributed.DistError as fault:
        reason = str(fault).splitlines()[0]
        raise LostProcessError(
            f"process {place.rank}: the processes have not met: {reason}"
        ) from None
    store.set_timeout(torch.distributed.default_pg_timeout)
    if restart := int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0):
        # torchrun keeps one store for all restarts; it still holds the addresses of dead processes.
        store = torch.distributed.PrefixStore(f"restart_{restart}", store)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    torch.distributed.init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=store,
        rank=rank,
        world_size=count,
    )


def _meet_on_this_machine() -> None:
    """Let the processes of one machine meet there, also if its own name has no address."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError:
        os.environ["MASTER_ADDR"] = "127.0.0.1"


def loopback() -> str:
    """Return the network interface of 127.0.0.1; raise UserError if there is none."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise UserError(
        "several processes need the loopback interface (127.0.0.1), which this machine or "
        "container lacks: ip link set lo up"
    )


def require_address(source: str, address: str) -> None:
    """Raise UserError unless a name has an address; `source` says where the name is given."""
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as fault:
        raise UserError(
            f"{source} {address}: this name has no address here ({one_line(fault)}); give the "
            "host name or the address of node 0 as the other nodes know it"
        ) from fault


def wait_for(address: str, port: int) -> None:
    """Return when the first process listens; raise LostProcessError after MEETING_SECONDS."""
    end, noted = time.monotonic() + MEETING_SECONDS, False
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except (OSError, OverflowError) as fault:
            if isinstance(fault, OverflowError) or time.monotonic() > end:
                raise LostProcessError(
                    f"{address}:{port}: the first process does not answer there after "
                    f"{MEETING_SECONDS} s ({one_line(fault)}). Start all nodes, and open the port"
                ) from fault
        if not noted:
            print(f"note: waiting up to {MEETING_SECONDS} s for {address}:{port}", file=sys.stderr)
            noted = True
        time.sleep(1)


def _require_free_port(port: int) -> None:
    """Raise UserError if another process listens at a port; torchrun would print a traceback."""
    try:
        socket.create_server(("", port)).close()
    except (OSError, OverflowError) as fault:
        reason = os.strerror(fault.errno or 0) if isinstance(fault, OSError) else str(fault)
        raise UserError(
            f"--master_port {port}: cannot be used ({reason}); give all nodes another port"
        ) from fault
