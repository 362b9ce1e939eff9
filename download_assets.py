"""Download published weights and statistics into the places where the configs look for them.

List of files:            python download_assets.py --list
One file:                 python download_assets.py --name vae
Into another folder:      python download_assets.py --name imagenet256 --dest ../fid_stats
From a mirror:            python download_assets.py --name clip --url https://mirror/ViT-B-32.pt
All that a config lacks:  python download_assets.py --all-needed \\
                              --config configs/main_config/train/celeb_t2f_gaus1.2.yaml

A transfer that broke off goes on where it stopped, in the same run or the next. An unfinished file
never gets its final name. Size and checksum are compared if they are known. Proxies are read from
the environment (HTTPS_PROXY, NO_PROXY).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.base.errors import UserError, note
from utils.base.script import one_line_errors
from utils.config.command_line import ArgumentParser, add_config_arguments
from utils.pretrained.assets import ASSETS, BY_NAME, Asset, fetch, fetch_from_hub, needed_by
from utils.pretrained.downloads import Patience
from utils.pretrained.effective_config import load_effective_config


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--name",
        action="append",
        metavar="NAME",
        help=f"file to fetch, may be given more than once: {', '.join(a.name for a in ASSETS)}",
    )
    what.add_argument(
        "--list", action="store_true", help="list all files, their places and their addresses"
    )
    what.add_argument(
        "--all-needed",
        "--all_needed",
        action="store_true",
        help="fetch all files that --config names and that are missing",
    )
    parser.add_argument(
        "--dest", type=Path, help="folder to put the file into; None = where the configs look"
    )
    parser.add_argument(
        "--url",
        help="address to use instead of the listed ones: of the file, of a zip or tar with it, or, "
        "with / at the end, of a folder with it",
    )
    add = parser.add_argument
    patience = Patience()
    add("--retries", type=int, default=patience.attempts, help="tries in a row that bring no bytes")
    add("--backoff", type=float, default=patience.backoff, help="seconds before the second try")
    add(
        "--timeout",
        type=float,
        default=patience.timeout,
        help="seconds to wait for an answer or a byte",
    )
    add_config_arguments(parser)
    return parser.parse_intermixed_args()


def describe(asset: Asset) -> str:
    """Return the lines of an asset for --list."""
    names = ", ".join((asset.name, *asset.aliases))
    state = "there" if asset.file.is_file() else "not there"
    return "\n  ".join((f"{names}: {asset.about}", f"{asset.file} ({state})", *asset.urls))


@one_line_errors
def main() -> None:
    """Fetch the files that the command line asks for; report all failures at the end."""
    args = parse_args()
    if args.list:
        print("\n".join(describe(asset) for asset in ASSETS))
        return
    if args.retries < 1 or args.backoff < 0 or args.timeout <= 0:
        raise UserError("--retries must be at least 1, --backoff at least 0, --timeout above 0")
    patience = Patience(args.retries, args.backoff, args.timeout)

    if args.all_needed:
        if args.dest:
            raise UserError("--dest: with --all-needed, the config says where things belong")
        needs = needed_by(load_effective_config(args))
        todo, hub = needs.files, needs.hub
        for key, source in needs.unknown:
            note(f"{key}: {source} is not there, and is no file that can be fetched")
        if not (todo or hub or needs.unknown):
            print(f"{args.config}: nothing is missing that can be fetched")
    else:
        if unknown := [name for name in args.name if name not in BY_NAME]:
            known = ", ".join(asset.name for asset in ASSETS)
            raise UserError(f"--name {unknown[0]}: unknown; there are {known}")
        assets = [BY_NAME[name] for name in args.name]
        todo = [(a, args.dest / a.file.name if args.dest else a.file) for a in assets]
        hub = []
    if args.url and len(todo) > 1 and not args.url.endswith("/"):
        raise UserError(
            f"--url: is one address for {len(todo)} files; give a folder's, with / last"
        )

    faults = []
    for asset, target in todo:
        try:
            fetch(asset, target, url=args.url, patience=patience)
            print(f"{target}: complete ({target.stat().st_size / 1e6:.1f} MB)")
        except UserError as fault:
            faults.append(str(fault))
    for key, source in hub:
        try:
            fetch_from_hub(key, source)
            print(f"{key}: {source} is in its library's cache")
        except UserError as fault:
            faults.append(str(fault))
    if faults:
        raise UserError("\n".join(faults))


if __name__ == "__main__":
    main()
