"""The privacy rules of both sides: noise, mechanisms, accounting, the boundary."""
