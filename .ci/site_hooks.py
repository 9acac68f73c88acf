"""What `mkdocs.yml` does besides the pages: the README becomes a page, and links out of docs/ become plain text."""

import pathlib
import posixpath
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
README, PAGE = "README.md", "readme.md"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files, config):
    """Adds the README, as if it lay in docs/."""
    text = (ROOT / README).read_text(encoding="utf-8")
    text = re.sub(r'(\]\(|src=")docs/', r"\1", text)
    files.append(File.generated(config, PAGE, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links to files of the repository that are no pages into their text."""
    folder = posixpath.dirname(page.file.src_uri)

    def mend(match: re.Match) -> str:
        image, label, target = match.groups()
        path, _, anchor = target.partition("#")
        if image or "://" in target or not path:
            return match[0]
        lies = posixpath.normpath(posixpath.join(folder, path))
        if lies == f"../{README}":
            there = posixpath.relpath(PAGE, folder or ".")
            return f"[{label}]({there}{'#' if anchor else ''}{anchor})"
        # the README's own links begin at the root of the repository
        return match[0] if files.get_file_from_path(lies) else label

    return LINK.sub(mend, markdown)
