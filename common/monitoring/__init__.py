"""What a machine may ask a running daemon: metrics and health. It never sees a patient's data."""
