"""Privacy rules of both sides: noise, mechanisms, accounting, boundary; they build no network."""
