"""The files of the page, and the paths at which browsers ask for them."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "page"
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
PAGE_FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/dom.js": "dom.js",
    "/figures.js": "figures.js",
    "/settings.js": "settings.js",
    "/favicon.ico": "icon.svg",
}


def read_page(path: str) -> tuple[bytes, str]:
    """What a path of ``PAGE_FILES`` serves, and its media type."""
    file = PAGE / PAGE_FILES[path]
    return file.read_bytes(), _TYPES[file.suffix]
