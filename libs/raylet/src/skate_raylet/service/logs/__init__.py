"""What workers print, on its way to their driver."""
