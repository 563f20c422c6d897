"""Placement policies: plain functions, one per file."""

from __future__ import annotations

from skate_scheduler.policy.hybrid import Fit, HybridConfig, Placement, choose_node

__all__ = ["Fit", "HybridConfig", "Placement", "choose_node"]
