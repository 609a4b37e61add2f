"""Make the pocket: atlas, codec, judge, encoder, base model, card. Resumable, CPU or GPU.

    python tools/make_pocket.py codec --minutes 25
    python tools/make_pocket.py judge --minutes 8
    python tools/make_pocket.py encoder --minutes 6
    python tools/make_pocket.py meaning --minutes 4
    python tools/make_pocket.py base --minutes 60 --more      # more to come: keep the rate up
    python tools/make_pocket.py base --minutes 25
    python tools/make_pocket.py base --minutes 8 --guide 1.3 --rate 4e-4
    python tools/make_pocket.py export

Each stage goes on from the averaged weights that its last call left in --folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "src")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = ["atlas", "codec", "judge", "encoder", "meaning", "base", "export", "demo", "card"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--more", action="store_true", help="another call will follow")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "pocket")
    parser.add_argument("--guide", type=float, default=1.0, help="guidance to teach the base")
    parser.add_argument(
        "--rate", type=float, default=1.5e-3, help="first learning rate of the base"
    )
    args = parser.parse_args()
    if args.stage == "atlas":
        from pocket.atlas import write_atlas

        write_atlas(ROOT / "src/variegate/bench/world")
    elif args.stage == "codec":
        from pocket.codec import train_codec

        train_codec(args.folder, args.minutes, final=not args.more)
    elif args.stage == "judge":
        from pocket.judge import train_judge

        train_judge(args.folder, args.minutes)
    elif args.stage == "encoder":
        from pocket.encoder import train_encoder

        train_encoder(args.folder, args.minutes)
    elif args.stage == "meaning":
        from pocket.meaning import train_meaning

        train_meaning(args.folder, args.minutes)
    elif args.stage == "card":
        from pocket.card import write_card

        write_card()
    elif args.stage == "demo":
        from pocket.demo import write_demo_pictures

        write_demo_pictures()
    elif args.stage == "base":
        from pocket.base import train_base
        from pocket.meaning import mean_of_captions

        mean_of = mean_of_captions(args.folder)
        train_base(
            args.folder,
            args.minutes,
            rate=args.rate,
            final=not args.more,
            mean_of=mean_of,
            guide=args.guide,
        )
    else:
        from pocket.export import export

        export(args.folder)


if __name__ == "__main__":
    main()
