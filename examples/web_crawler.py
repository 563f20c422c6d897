"""A web crawler: each page is fetched by a task, and what it links to is fetched next.

    python examples/web_crawler.py

It crawls a small site that this script serves on this machine. At most ``IN_FLIGHT`` pages are
fetched at a time, and each only once.
"""

from __future__ import annotations

import contextlib
import re
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import skate

IN_FLIGHT = 8
TIMEOUT_S = 10
_LINK = re.compile(r'href="([^"]+)"')


@skate.remote(num_cpus=0.25)
def fetch(url):
    """The links of a page, or None when it is not there."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError:
        return None
    return [urljoin(url, link) for link in _LINK.findall(text)]


def crawl(start):
    """The links of every page that can be reached from ``start``, by URL; None for dead ones."""
    found = {}
    seen = {start}
    frontier = [start]
    running = {}
    while frontier or running:
        while frontier and len(running) < IN_FLIGHT:
            url = frontier.pop()
            running[fetch.remote(url)] = url
        ready, _ = skate.wait(list(running))
        for ref in ready:
            links = found[running.pop(ref)] = skate.get(ref)
            new = set(links or ()) - seen
            seen |= new
            frontier += sorted(new)
    return found


@contextlib.contextmanager
def serve_site(pages):
    """A site whose page ``n`` links to ``2n``, ``2n + 1`` and one that does not exist."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            number = self.path.removeprefix("/page/")
            known = number.isdecimal() and 1 <= int(number) < pages
            self.send_response(200 if known else 404)
            self.end_headers()
            if known:
                links = (2 * int(number), 2 * int(number) + 1)
                body = "".join(f'<a href="/page/{link}">{link}</a>' for link in links)
                self.wfile.write(f'{body}<a href="/nowhere">?</a>'.encode())

        def log_message(self, *_arguments):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/page/1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main(pages=32):
    """How many pages were found, and how many links were dead."""
    with serve_site(pages) as start:
        found = crawl(start)
    dead = sum(links is None for links in found.values())
    return len(found) - dead, dead


if __name__ == "__main__":
    skate.init()
    print("{} pages, {} dead links".format(*main()))
