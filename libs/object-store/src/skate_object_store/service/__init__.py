"""The store's process side: sockets, the arena's pages, and the loop around the object table."""

from __future__ import annotations
