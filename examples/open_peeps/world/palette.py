"""Colours of the world, by the names that captions use.

They stay distinguishable when blurred at 64 pixels, and lines of every hair colour are visible on
every skin.
"""

LINE = "#000000"  # of bodies, faces and glasses
UNPAINTED = "#ffffff"  # the fill of a moustache or frame, which is not skin

SKIN = {
    "pale": "#fbe2cf",
    "golden": "#e8c08c",
    "tan": "#cb9163",
    "brown": "#a0673f",
    "dark": "#6f4529",
}
# Also of hats, head scarves and the outline of the head.
HAIR_COLOUR = {
    "black": "#15110f",
    "brown": "#4a2c1a",
    "ginger": "#cc5518",
    "blond": "#efbf2f",
    "gray": "#8b9095",
    "blue": "#2b5fd3",
    "green": "#239a4b",
    "pink": "#e754a8",
    "purple": "#7c38c2",
}
CLOTHING = {
    "white": "#ffffff",
    "red": "#dc3a3a",
    "orange": "#f28a2b",
    "yellow": "#f6cf3a",
    "green": "#4cae52",
    "blue": "#3f78d8",
    "purple": "#9257c2",
    "pink": "#f48fb9",
}
GROUND = {
    "white": "#ffffff",
    "light-gray": "#d3d3d3",
    "pale-yellow": "#fbf0a6",
    "peach": "#ffcfa8",
    "coral": "#ef8573",
    "pale-pink": "#ffd3e2",
    "lavender": "#d9c9f6",
    "sky-blue": "#b5defa",
    "mint-green": "#b9f0cd",
    "teal": "#5cb3ab",
}
