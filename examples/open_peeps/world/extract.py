"""Extraction of the Open Peeps drawings from the npm package react-peeps to parts.json.gz.

    npm pack react-peeps@0.1.10 && tar xzf react-peeps-0.1.10.tgz
    python -m examples.open_peeps.world.extract package examples/open_peeps/world/parts.json.gz

Every part is a React component that nests `g` and `path`; it becomes the same SVG as text, its
two colours replaced by the placeholders INK (lines) and PAPER (fill). Numbers stay as published.
"""

import gzip
import json
import re
import sys
from pathlib import Path

INK, PAPER = "INK", "PAPER"
FOLDERS = {
    "bust": "pose/bust",
    "sitting": "pose/sitting",
    "standing": "pose/standing",
    "face": "face",
    "hair": "hair",
    "facial_hair": "facialHair",
    "accessory": "accessories",
}
CREDIT = {
    "title": "Open Peeps",
    "author": "Pablo Stanley",
    "address": "https://www.openpeeps.com",
    "licence": "CC0-1.0",
    "package": "react-peeps 0.1.10 by Emre Çakır, https://github.com/CeamKrier/react-peeps",  # noqa: RUF001
    "package_licence": "MIT",
}

ELEMENT = re.compile(
    r'createElement\((?:"(?P<tag>g|path)"|react_1\.default\.Fragment), '
    r"(?:null|\{ (?P<properties>[^}]*) \})|(?P<end>\))"
)
PROPERTY = re.compile(r"(?P<name>\w+): (?P<value>'[^']*'|strokeColor|backgroundColor)")
# The last is the blue of the scrubs: as PAPER, they take any clothing colour like the others.
COLOURS = {"strokeColor": INK, "backgroundColor": PAPER, "'#8FA7DF'": PAPER}


def svg(source: str) -> str:
    """Convert a compiled component to SVG; ValueError if it has elements besides `g` and `path`."""
    body = source[source.rindex("return") :]
    calls = body.count("createElement(")
    text: list[str] = []
    open_tags: list[str | None] = []
    for match in ELEMENT.finditer(body):
        if match["end"]:
            if not open_tags:  # the outermost parenthesis
                break
            tag = open_tags.pop()
            text.append(f"</{tag}>" if tag else "")
        else:
            calls -= 1
            open_tags.append(match["tag"])
            text.append(_open(match["tag"], match["properties"] or ""))
    if calls or open_tags:
        raise ValueError(f"not only g and path: {body[:80]!r}")
    return "".join(text)


def _open(tag: str | None, properties: str) -> str:
    if tag is None:
        return ""
    attributes = [
        (
            "fill-rule" if match["name"] == "fillRule" else match["name"],
            COLOURS.get(match["value"], match["value"].strip("'")),
        )
        for match in PROPERTY.finditer(properties)
    ]
    # stroke="none" is SVG's default
    return (
        f"<{tag}"
        + "".join(f' {name}="{value}"' for name, value in attributes if name != "stroke")
        + ">"
    )


def extract(package: Path) -> dict[str, dict[str, str]]:
    """Return {"credit": …, "bust": {name: SVG}, …} of an unpacked react-peeps."""
    parts: dict[str, dict[str, str]] = {"credit": CREDIT}
    for kind, folder in FOLDERS.items():
        files = sorted((package / "lib" / "peeps" / folder).glob("*.js"))
        parts[kind] = {
            file.stem: svg(file.read_text(encoding="utf-8"))
            for file in files
            if file.stem not in ("index", "z_options")
        }
    return parts


def main(package: str, out: str) -> None:
    """Write the drawings of an unpacked package to a file."""
    text = json.dumps(extract(Path(package)), ensure_ascii=False, sort_keys=True, indent=0)
    # No time and no file name in the header: the same package gives the same bytes.
    Path(out).write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
