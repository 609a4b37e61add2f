"""Cut the world's sprites, and a few hundred others for the codec, from Noto Color Emoji."""

# ruff: noqa: C408

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from variegate.bench.world import SUBJECTS

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CELL = 64
COLUMNS = 10
GLYPHS = {
    **dict(elephant="🐘", giraffe="🦒", penguin="🐧", owl="🦉", frog="🐸", turtle="🐢"),
    **dict(octopus="🐙", butterfly="🦋", ladybug="🐞", crab="🦀", fish="🐠", whale="🐳"),
    **dict(fox="🦊", panda="🐼", lion="🦁", pig="🐷", snail="🐌", flamingo="🦩"),
    **dict(unicorn="🦄", parrot="🦜", dragon="🐉", hedgehog="🦔"),
    **dict(car="🚗", bus="🚌", rocket="🚀", bicycle="🚲", airplane="✈", helicopter="🚁"),
    **dict(sailboat="⛵", train="🚂", tractor="🚜", scooter="🛵", saucer="🛸"),
    **dict(apple="🍎", banana="🍌", pizza="🍕", burger="🍔", donut="🍩", strawberry="🍓"),
    **dict(grapes="🍇", carrot="🥕", watermelon="🍉", pineapple="🍍", avocado="🥑"),
    **dict(cake="🎂", mushroom="🍄", cupcake="🧁", taco="🌮"),
    **dict(smiley="😀", clown="🤡", alien="👽", skull="💀", pumpkin="🎃", cowboy="🤠"),
    **dict(robot="🤖", ghost="👻", ogre="👹"),
    **dict(teddy="🧸", ball="⚽", kite="🪁", balloon="🎈", dice="🎲", yoyo="🪀"),
    **dict(cactus="🌵", sunflower="🌻", palm="🌴", rose="🌹", clover="🍀", tulip="🌷"),
    **dict(guitar="🎸", trumpet="🎺", drum="🥁", piano="🎹", saxophone="🎷"),
    **dict(key="🔑", clock="⏰", diamond="💎", umbrella="☂", camera="📷"),
}
# Blocks of pictographs from which the codec's extra sprites come.
BLOCKS = ((0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1FAFF))
# Glyphs that show a held-out concept again, or skin-tone swatches and letters.
ALIKE = set("🐲🦖🛵🏍🍰🥪🌯🥙👺👾🤖👻💐🎏📸🎥📹📽🐦🦅🦆🛺🐎🐴🐿")


def cut(glyph: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """The glyph alone in a square of CELL pixels, or None when the font lacks it."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((8, 8), glyph, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        return None
    sprite = canvas.crop(box)
    side = max(sprite.size)
    square = Image.new("RGBA", (side, side))
    square.paste(sprite, ((side - sprite.width) // 2, (side - sprite.height) // 2))
    return square.resize((CELL, CELL), Image.Resampling.LANCZOS)


def write_atlas(folder: Path) -> None:
    font = ImageFont.truetype(str(FONT), 109)
    rows = -(-len(SUBJECTS) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, name in enumerate(SUBJECTS):
        sprite = cut(GLYPHS[name], font)
        assert sprite is not None, name
        sheet.paste(sprite, (i % COLUMNS * CELL, i // COLUMNS * CELL))
    sheet.save(folder / "atlas.png", optimize=True)
    index = {"cell": CELL, "columns": COLUMNS, "subjects": list(SUBJECTS)}
    (folder / "atlas.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf8")


def extra_sprites() -> list[Image.Image]:
    """Sprites outside the world, without those that show a held-out concept."""
    font = ImageFont.truetype(str(FONT), 109)
    taken = {*GLYPHS.values(), *ALIKE}
    seen: set[bytes] = set()
    sprites = []
    for low, high in BLOCKS:
        for code in range(low, high + 1):
            sprite = None if chr(code) in taken else cut(chr(code), font)
            if sprite is None:
                continue
            pixels = np.asarray(sprite)
            key = pixels.tobytes()
            if key in seen or (pixels[..., 3] > 128).mean() < 0.12:
                continue
            seen.add(key)
            sprites.append(sprite)
    return sprites
