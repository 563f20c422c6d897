"""The store's client side: the connection, the mapped arena, and the views handed out."""

from __future__ import annotations
