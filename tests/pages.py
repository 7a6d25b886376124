"""The documents of the project, their parts and the code in them."""

import re

from rmlib.paths import project_root

ROOT = project_root()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def text_of(name):
    return (ROOT / name).read_text()


def section(text, heading):
    """What stands below a heading such as "### Loop", to the next of its level or above."""
    level = len(heading.split()[0])
    below = text.partition(f"\n{heading}\n")[2]
    # a comment in code has one #
    return re.split(rf"^#{{2,{level}}} ", below, flags=re.MULTILINE)[0]


def snippets(text):
    return [body for language, body in FENCE.findall(text) if language == "python"]
