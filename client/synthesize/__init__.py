"""From a cohort to k-anonymous images."""
