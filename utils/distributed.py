"""Several processes: starting them, sharing a batch among them, agreeing, stopping."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from utils.errors import UserError, note


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for starting several processes without `accelerate launch` or `torchrun`."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--num_process_per_node", type=int, default=1, help="processes to start on this node"
    )
    group.add_argument("--num_proc_node", type=int, default=1, help="number of nodes")
    group.add_argument("--node_rank", type=int, default=0, help="index of this node, from 0")
    group.add_argument("--master_address", default="localhost", help="host name of node 0")
    group.add_argument("--master_port", type=int, default=29500, help="free TCP port of node 0")


def relaunch(args: argparse.Namespace) -> None:
    """Become `torchrun` of this same command line if `args` ask for more than one process.

    Returns if one process is asked for, or if a launcher has started this process already.
    """
    if args.num_process_per_node < 1 or args.num_proc_node < 1:
        raise UserError("--num_process_per_node and --num_proc_node must be at least 1")
    if args.num_process_per_node * args.num_proc_node == 1 or "LOCAL_RANK" in os.environ:
        return
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc_per_node", str(args.num_process_per_node)]
    if args.num_proc_node == 1:
        command += ["--standalone"]  # picks a free port, so that two runs on a node do not collide
    else:
        command += ["--nnodes", str(args.num_proc_node), "--node_rank", str(args.node_rank)]
        command += ["--master_addr", args.master_address, "--master_port", str(args.master_port)]
    os.execv(sys.executable, command + sys.argv)


def start_accelerator(amp: str, grad_accum: int, all_weights_used: bool) -> Accelerator:
    """The processes' common ground. Raises UserError if the device cannot do `amp`.

    `amp`: 'bf16', 'fp16' or 'no'. `all_weights_used`: every step has a gradient for each weight,
    which spares several processes a search.
    """
    wrapper = DistributedDataParallelKwargs(find_unused_parameters=not all_weights_used)
    try:
        return Accelerator(
            mixed_precision=amp,
            gradient_accumulation_steps=grad_accum,
            kwargs_handlers=[wrapper],
            # Without a device, accelerate joins the processes only if told to use the CPU.
            cpu=not torch.accelerator.is_available(),
        )
    except ValueError as error:
        raise UserError(f"train.amp: {amp}: {error}") from error


def images_per_forward(batchsize: int, processes: int, grad_accum: int) -> int:
    """Share of the global batch that a process takes in one forward pass."""
    share, rest = divmod(batchsize, processes * grad_accum)
    if rest or share < 1:
        raise UserError(
            f"train.batchsize: {batchsize} images cannot be shared equally by {processes} "
            f"process(es) x {grad_accum} accumulated step(s); use a multiple of "
            f"{processes * grad_accum}"
        )
    return share


def gather_rng(generator: torch.Generator) -> list[torch.Tensor]:
    """The states of all processes' generators in order of rank, for a checkpoint."""
    return gather_object([generator.get_state()])


class StopSignal:
    """Remembers SIGTERM or SIGINT, so that the step in hand can be finished and saved.

    A second SIGINT interrupts at once.
    """

    # Asking all processes waits for the device, so several of them ask only now and then.
    ASK_EVERY = 10

    def __init__(self) -> None:
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        note(f"{signal.Signals(number).name}: the step in hand is finished and saved")

    def agreed(self, accelerator: Accelerator, step: int) -> int:
        """The signal's number once all processes know of it, else 0; called by all after a step."""
        if accelerator.num_processes == 1:
            return self.received
        if step % self.ASK_EVERY:
            return 0
        received = torch.tensor([self.received], device=accelerator.device)
        return int(accelerator.gather(received).max())
