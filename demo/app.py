"""Serve a page on which anyone can type a sentence and see faces.

    python demo/app.py                                        (or: make app)

Your own model:  python demo/app.py --ckpt results/own/checkpoints/0100000.pt
Another port:    python demo/app.py --port 8000

The page listens on this machine only. From a laptop, reach that of a server by a tunnel:
ssh -L 7860:localhost:7860 SERVER. It needs the packages of requirements-app.txt.
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.base.errors import UserError, note
from utils.base.script import one_line_errors

# isort: split
from demo.page.request import Limits
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.sampling.text_to_face import DEMO, TextToFace, default_device

LOCAL = ("127.0.0.1", "localhost", "::1")


class OldName(argparse.Action):
    """A flag of version 0.2 that has another name now: it sets that one, and prints a note."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        """Set the value of the new name."""
        note(f"{option} is now --{self.dest}")
        setattr(namespace, self.dest, values)


def parse_args() -> argparse.Namespace:
    """Parse the command line; raises UserError if a number is out of its range."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--ckpt",
        type=Path,
        default=Path(DEMO),
        help=".pt, .safetensors, a folder of --export, or owner/name on the Hugging Face hub",
    )
    add_config_arguments(parser, instead="the one in the checkpoint; published ones hold none")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        help="another name under which browsers reach the page, e.g. that of a proxy; may be "
        "repeated. Its addresses and the names of this machine need none",
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes any free one")
    limits = Limits()
    parser.add_argument(
        "--max_images", type=int, default=limits.images, help="of one request of a visitor"
    )
    parser.add_argument(
        "--most_pictures", type=int, dest="max_images", action=OldName, help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--most_evaluations",
        type=int,
        default=limits.evaluations,
        help="runs of the network for one request: images times steps, twice that with guidance",
    )
    parser.add_argument("--batch_size", type=int, default=4, help="images generated at once")
    parser.add_argument(
        "--device", default=default_device(), help="where to compute, e.g. cpu or cuda:1"
    )
    args = parser.parse_intermixed_args()
    if min(args.batch_size, args.max_images, args.most_evaluations) < 1:
        raise UserError("--batch_size, --max_images and --most_evaluations: at least 1 each")
    return args


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise UserError if the address is taken or not ours."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as fault:
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({fault}); choose another --port"
        ) from fault


@one_line_errors
def main() -> None:
    """Load the network and serve the page until Ctrl-C."""
    args = parse_args()
    try:
        # Not needed by any other script, and so not in requirements.txt.
        from demo.page.server import Page, Server
    except ModuleNotFoundError as fault:
        raise UserError(f"{fault}: first pip install -r requirements-app.txt") from fault
    listener = listen(args.host, args.port)
    faces = TextToFace.load(
        args.ckpt, config=args.config, overrides=args.overrides, device=args.device
    )
    limits = Limits(images=args.max_images, evaluations=args.most_evaluations)
    names = [*LOCAL, *args.name]
    if args.host not in LOCAL:
        names += [args.host, socket.gethostname(), socket.getfqdn()]
    page = Page(faces, limits, args.batch_size, names)
    for _ in faces.start("a face", num=1).batches():
        pass  # the first image after a start is slow, so no visitor has to wait for it
    port = listener.getsockname()[1]
    print(f"http://{args.host}:{port} shows the page; Ctrl-C ends it", flush=True)
    Server(page).run(sockets=[listener])


if __name__ == "__main__":
    main()
