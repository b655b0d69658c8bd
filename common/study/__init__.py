"""The signed study plan that both sides read; it never touches data."""
